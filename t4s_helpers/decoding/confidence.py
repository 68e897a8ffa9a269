"""How sure the model is of every cell, from the passes that wrote the answer.

At each choice in a descriptor the model gives every allowed token a probability. Those of the runs that
were written, multiplied along a row, are exact: ``P(label, end)`` of a run given all before it. Runs that
were *not* written lead to places where the model was never asked, so the marginal of a cell,

    P(cell (r, c) is k | the rows above as written)
        = sum over all ways to write row r of P(way) [way gives (r, c) label k],

is known only in part. `cell_confidence` gives both: ``known``, the share of the probability that comes
from what the model said, and ``probs``, the marginals with the rest filled in by an edge-to-edge Markov
chain. In the chain a run starts anywhere; where the model was not asked, the distribution of the run that
was written at that place of the row stands in, cut to what is possible there (the object's right edge is
taken to lie where it would have lain had the left edge been elsewhere). Hence for every cell and label

    |probs - exact| <= 1 - known,

and the first cell of every row is exact. Two schemes differ. ``irle`` runs go on over the ends of rows:
the chain of a row starts within the run that reaches it, given that it does. In ``full`` every cell is a
choice of its own, whose distribution, given the cells before it *as written*, is taken for the marginal;
``known`` is then the probability of the cells of the row before it. Where several labels or counts begin
with the same token and another was written, they share that token's probability equally, and do not
count as known beyond what they have in common.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from .speculative import FIRST_WIDTH
from .grammar import Grammar, Position

LEAST = 1e-5
"""States of the chain with less probability than this are not followed."""


class ConfidenceError(ValueError):
    """Choices that do not belong to a finished descriptor; the message says why."""


@dataclass(frozen=True, eq=False)
class Confidence:
    """Probabilities of the cells of one answer.

    Attributes:
        probs: float32 ``(L + 1, rows, cols)``; row 0 of the first axis is "others", ``k`` is
            ``labels[k - 1]``. In [0, 1], sums to 1 over the first axis.
        known: float32 ``(rows, cols)`` in [0, 1], the share of each cell's distribution that the model
            has stated; the rest is filled in.
        log_empty: log of the probability that all cells are "others", where the answer says so and
            it is therefore known; else ``None``.
    """

    probs: np.ndarray
    known: np.ndarray
    log_empty: float | None = None

    def __getitem__(self, label: int) -> np.ndarray:
        """The map of one label: float32 ``(rows, cols)``; 0 is "others"."""
        return self.probs[label]

    @property
    def grid(self) -> np.ndarray:
        """The likeliest label of each cell, int32 ``(rows, cols)``."""
        return self.probs.argmax(0).astype(np.int32)


@dataclass
class _Run:
    """A run that was written, and what the model thought of in its place.

    Attributes:
        start, end: cells from the start of the grid; ``label``.
        labels: float64 ``(L + 1,)``, probability of each label.
        ends: label -> float64 ``(cells + 1,)``, probability of each end given the label; only of
            labels that were followed to their counts.
        sure: ``(label, least, most, probability)`` of what was stated: that a run of this label begins
            here and has from ``least`` to ``most`` cells.
        taken: the probability of the run as it was written.
    """

    start: int
    end: int
    label: int
    labels: np.ndarray
    ends: dict[int, np.ndarray] = field(default_factory=dict)
    sure: list[tuple[int, int, int, float]] = field(default_factory=list)
    taken: float = 1.0


def softmax(scores: np.ndarray) -> np.ndarray:
    """Probabilities, float64, of logits ``(n,)``."""
    powers = np.exp(scores.astype(np.float64) - scores.max())
    return powers / powers.sum()


def cell_confidence(grammar: Grammar, choices: Sequence, grid: np.ndarray) -> Confidence:
    """The map of an answer.

    Args:
        grammar: of the request.
        choices: `t4s_helpers.decoding.constrained.Choice` objects, all of the answer's.
        grid: int ``(rows, cols)``, the labels that were written.

    Raises:
        ConfidenceError: the choices are not those of this grid.
    """
    rows, cols = grid.shape
    if grid.size != grammar.rows * grammar.cols:
        raise ConfidenceError(f"A grid of {rows}x{cols} cells came with the grammar of "
                              f"{grammar.rows * grammar.cols} cells.")
    runs = _written_runs(grammar, choices, grid)
    chain = _Chain(runs, len(grammar.words), rows, cols, grammar.scheme)
    maps = [chain.row(row) for row in range(rows)]
    probs, known = (np.stack(parts, -2).astype(np.float32) for parts in zip(*maps))
    empty = sum(np.log(run.taken) for run in runs) if not grid.any() else None
    return Confidence(probs / probs.sum(0), known.clip(0, 1), empty)


def _written_runs(grammar: Grammar, choices, grid: np.ndarray) -> list[_Run]:
    asked: dict[Position, dict] = {}
    for state, tokens, scores in choices:
        asked.setdefault(state.at, {})[state.said] = dict(zip(tokens.tolist(), softmax(scores)))
    at, out, cells = Position(0, 0, -1), [], grid.reshape(-1)
    while at.row < grammar.rows:
        start = at.row * grammar.cols + at.col
        limit = start + 1 if grammar.scheme == "full" else (at.row + 1) * grammar.cols
        other = np.flatnonzero(cells[start:limit] != cells[start])
        label, length = int(cells[start]), int(other[0]) if len(other) else limit - start
        out.append(_run(grammar, at, start, label, length, asked.get(at, {}), grid.size))
        at = grammar.move(at, label, length)
    if left := set(asked) - {Position(*divmod(run.start, grammar.cols), _last(grammar, out, k))
                             for k, run in enumerate(out)}:
        raise ConfidenceError(f"There was a choice at {min(left)}, where this grid has no run.")
    return out


def _last(grammar: Grammar, runs: list[_Run], k: int) -> int:
    """The label before a run, as positions tell it."""
    return -1 if runs[k].start % grammar.cols == 0 else runs[k - 1].label


def _run(grammar: Grammar, at: Position, start: int, label: int, length: int, asked: dict,
         cells: int) -> _Run:
    """What the model thought of at a position, as probabilities of labels and lengths."""
    said = grammar.tokens(at, label, length)
    out = _Run(start, start + length, label, np.zeros(len(grammar.words)))
    reach, chance = [1.0], 1.0  # probability of having said the first k tokens
    for k, token in enumerate(said):
        chance *= asked[said[:k]][token] if said[:k] in asked else 1.0
        reach.append(chance)
    out.taken = chance
    followed, groups = [], {}
    for other in range(len(grammar.words)):
        if other == at.last and grammar.scheme != "full":
            continue
        ids = grammar.label_ids[other]
        if said[:len(ids)] == ids:
            followed.append(other)
        else:
            groups.setdefault(ids[:_common(ids, said) + 1], []).append((other, None))
    most = 1 if grammar.scheme == "full" else grammar.cols - at.col
    for other in followed:
        for n in range(1, most + 1):
            ids = grammar.tokens(at, other, n)
            groups.setdefault(ids[:_common(ids, said) + 1], []).append((other, n))
    for ids, members in groups.items():
        _share(out, ids, members, said, reach, asked, cells)
    for ends in out.ends.values():
        ends /= max(ends.sum(), 1e-300)
    return out


def _common(a: tuple, b: tuple) -> int:
    """Tokens that two sequences begin with alike."""
    return next((k for k, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def _share(out: _Run, ids: tuple, members: list, said: tuple, reach: list, asked: dict,
           cells: int) -> None:
    """Give a run that begins with these tokens its probability, or several their equal parts."""
    k = len(ids) - 1
    if ids == said[:len(ids)]:
        chance = reach[-1]
    else:
        chance = reach[k] * asked.get(said[:k], {}).get(ids[k], 0.0)
    names = {label for label, _ in members}
    for label, length in members:
        part = chance / len(members)
        out.labels[label] += part
        if length is not None:
            out.ends.setdefault(label, np.zeros(cells + 1))[out.start + length] += part
    if len(names) == 1:
        lengths = [length or 1 for _, length in members]
        out.sure.append((members[0][0], min(lengths), max(lengths), chance))


class _Chain:
    """The Markov chain of edges, row by row."""

    def __init__(self, runs: list[_Run], n: int, rows: int, cols: int, scheme: str):
        self.runs, self.n, self.rows, self.cols, self.scheme = runs, n, rows, cols, scheme
        self.starts = np.array([run.start for run in runs])
        self.seen = sorted({run.label for run in runs} - {0}) or list(range(1, n))

    def row(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Marginals ``(L + 1, cols)`` and the known share ``(cols,)``."""
        begin = row * self.cols
        probs, known = np.zeros((self.n, self.cols)), np.zeros(self.cols)
        if self.scheme == "full":
            self._stated(begin, begin, 1.0, known)
            return np.stack([run.labels for run in self.runs[begin:begin + self.cols]], 1), known
        mass = np.zeros((self.cols + 1, self.n + 1))  # by column and label before; -1 is none
        first = self._enter(begin, mass, probs, known)
        self._stated(begin, *first, known)
        for col in range(self.cols):
            for last in np.flatnonzero(mass[col] > LEAST):
                last = -1 if last == self.n else int(last)
                self._leave(begin, col, last, mass, probs)
        total = probs.sum(0)
        return probs / np.where(total > 0, total, 1), known

    def _enter(self, begin: int, mass, probs, known) -> tuple[int, float]:
        """Start a row; returns the first run that starts in it and the chance to get there."""
        if self.scheme != "irle" or begin == 0:
            mass[0, -1] = 1
            return int(np.searchsorted(self.starts, begin)), 1.0
        k = int(np.searchsorted(self.starts, begin)) - 1  # the run that reaches the row
        run = self.runs[k]
        ends = _cut(run.ends[run.label], begin - 1)
        if ends is None:  # it was written against all odds
            mass[0, run.label] = 1
            return k + 1, 0.0
        self._spend(begin, 0, run.label, ends, 1.0, mass, probs)
        reach = begin - run.start
        groups = [group for group in run.sure if group[0] == run.label]
        if any(least < reach <= most and part > 0 for _, least, most, part in groups):
            return k + 1, 0.0
        total = sum(part for _, least, _, part in groups if least >= reach)
        for _, least, _, part in groups:
            known[:max(0, least - reach)] += part / total
        return k + 1, run.taken / total

    def _stated(self, begin: int, k: int, chance: float, known) -> None:
        """Add what was said along the row as it was written."""
        while k < len(self.runs) and self.runs[k].start < begin + self.cols and chance > 0:
            run = self.runs[k]
            col = run.start - begin
            for _, least, _, part in run.sure:
                known[col:col + least] += chance * part
            chance *= run.taken
            k += 1

    def _leave(self, begin: int, col: int, last: int, mass, probs) -> None:
        """Send the probability of a place on to where its runs end."""
        here = mass[col, last]
        run = self._asked_at(begin + col, last)
        labels = self._labels(run, last)
        for label in np.flatnonzero(here * labels > LEAST).tolist():
            ends = self._ends(run, begin, col, label)
            self._spend(begin, col, label, ends, here * labels[label], mass, probs)

    def _spend(self, begin: int, col: int, label: int, ends, chance: float, mass, probs) -> None:
        """Give a run's cells their probability, and the places where it may end theirs."""
        here = ends[begin + col:begin + self.cols]
        probs[label, col:] += chance * (1 - np.cumsum(here)).clip(0)
        mass[col:self.cols, label] += chance * here

    def _asked_at(self, cell: int, last: int) -> _Run:
        """The run written at a place, or the next of the row if that one's label just ended."""
        k = int(np.searchsorted(self.starts, cell, "right")) - 1
        run = self.runs[k]
        if run.label != last:
            return run
        after = self.runs[min(k + 1, len(self.runs) - 1)]
        return after if after.start // self.cols == cell // self.cols else run

    def _labels(self, run: _Run, last: int) -> np.ndarray:
        """Probabilities of the label of a run behind a label, -1 at the start of a row."""
        labels = run.labels.copy()
        if last >= 0:
            labels[last] = 0
        if labels.sum() > LEAST:
            return labels / labels.sum()
        labels[:] = 0
        labels[0 if last > 0 else self.seen] = 1
        return labels / labels.sum()

    def _ends(self, run: _Run, begin: int, col: int, label: int) -> np.ndarray:
        """Probabilities of the end of a run of a label that starts in a column."""
        if label in run.ends and (ends := _cut(run.ends[label], begin + col)) is not None:
            return ends
        for shift in self._nearby(begin):
            ends = self._ends_of(begin + shift + col, label)
            if ends is not None:
                return np.roll(ends, -shift)
        width = self.cols if label == 0 else max(1, round(FIRST_WIDTH * self.cols))
        return _at(begin + min(col + width, self.cols), self.rows * self.cols)

    def _nearby(self, begin: int) -> list[int]:
        """The row itself, the two above and the two below, as distances in cells."""
        steps = (0, -1, 1, -2, 2)
        return [k * self.cols for k in steps if 0 <= begin + k * self.cols < self.rows * self.cols]

    def _ends_of(self, cell: int, label: int) -> np.ndarray | None:
        """Ends of the next run of a label that was written after a cell, within its row."""
        close = (cell // self.cols + 1) * self.cols
        k = max(0, int(np.searchsorted(self.starts, cell, "right")) - 1)
        while k < len(self.runs) and self.runs[k].start < close:
            run = self.runs[k]
            if run.label == label and run.end > cell:
                ends = run.ends[label].copy()
                ends[close] += ends[close + 1:].sum()
                ends[close + 1:] = 0
                return _cut(ends, cell)
            k += 1
        return None


def _at(end: int, cells: int) -> np.ndarray:
    out = np.zeros(cells + 1)
    out[end] = 1
    return out


def _cut(ends: np.ndarray, cell: int) -> np.ndarray | None:
    """Given that a run reaches beyond a cell; ``None`` if that was not thought possible."""
    out = ends.copy()
    out[:cell + 1] = 0
    total = out.sum()
    return out / total if total > LEAST else None
