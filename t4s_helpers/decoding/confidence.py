"""How sure the model is of every cell, and the grid that is the best bet.

At each choice in a descriptor the model gives every allowed token a probability. For the runs that were
written, their product along a row is exact: ``P(label, end)`` of a run given everything before it. Runs
that were *not* written lead to places where the model was never asked. So the marginal of a cell,

    P(cell (r, c) is k | the rows above as written)
        = sum of P(text) over all texts of row r that give cell (r, c) label k,

is known only in part. `cell_confidence` gives both: ``known``, the share of the probability that the model
has stated, and ``probs``, the marginals with the rest filled in by a Markov chain over the edges of runs,
in which a run may start anywhere. Where the model was not asked, the distribution of the run that was
written at that place of the row stands in, restricted to what is possible there (the object's right edge
is assumed to lie where it would have been had the left edge been elsewhere). Hence for every cell and label::

    |probs - exact| <= 1 - known,

and the first cell of every row is exact. Where rows are not broken, runs go on over the ends of rows: the
chain of a row starts within the run that reaches it, given that it does. Where runs are not counted, every
cell is a choice of its own, whose distribution given the cells before it *as written* is taken for the
marginal; ``known`` is then the probability of the cells before it in its row. Where several labels or
counts begin with the same token and another was written, they share that token's probability equally, and
count as known only as far as they agree.

**Expected IoU.** Greedy decoding writes the likeliest next token, and a model that is unsure of every cell
writes "others" row after row; but what is scored is IoU. For independent cells with probabilities ``p`` and
a predicted set ``S`` that is not empty, the size of the union does not depend on which cells of ``S`` are
true, so::

    E[IoU(S, X)] = sum of p over S  *  E[1 / (|S| + |X outside S|)].

The best ``S`` of a given size takes the likeliest cells, and the distribution of ``|X outside S|`` is
updated one cell at a time, so the optimum over all sets is found exactly in ``O(n^2)``. The empty set
scores 1 where the truth is empty (gIoU's rule for requests without a target) and 0 elsewhere; since the
cells are anything but independent there, that probability has to be given. With several drawn answers the
truth is one of them with equal probability: a mixture, over which expectations are averaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import softmax

from ..codec.encodings import Encoding, wrap
from .constrained import Choice
from .generate import Answer, DecodingError, ParsedAnswer, parse_answer
from .grammar import BoxGrammar, Grammar, Position
from .speculative import FIRST_WIDTH

LEAST = 1e-5
"""States of the chain with less probability than this are not followed."""


@dataclass(frozen=True, eq=False)
class Confidence:
    """Probabilities of the cells of one answer.

    Attributes:
        probs: float32 ``(L + 1, rows, cols)``; index 0 of the first axis is "others", ``k`` is
            ``labels[k - 1]``. In [0, 1], sums to 1 over the first axis.
        known: float32 ``(rows, cols)`` in [0, 1], the share of each cell's distribution that the model
            has stated; the rest is filled in.
    """

    probs: np.ndarray
    known: np.ndarray

    def __getitem__(self, label: int) -> np.ndarray:
        """The map of one label: float32 ``(rows, cols)``; 0 is "others"."""
        return self.probs[label]


def answer_confidence(answer: Answer, parsed: ParsedAnswer) -> Confidence:
    """The probability of each label in each cell of an answer, from the passes that wrote it.

    Args:
        answer, parsed: from `t4s_helpers.decoding.generate.answer_samples`, modes ``constrained`` or
            ``fast``.

    Raises:
        DecodingError: a plain answer, one that was cut short, or one in boxes.
    """
    if answer.grammar is None:
        raise DecodingError("Only answers held to a grammar have a confidence: decode with "
                            "mode='constrained' or mode='fast'.")
    if isinstance(answer.grammar, BoxGrammar):
        raise DecodingError("Grids within boxes have no map over the image: use another encoding.")
    if not parsed.report.ok:
        raise DecodingError("The answer was cut short, so its confidence is unknown: raise "
                            "max_new_tokens.")
    return cell_confidence(answer.grammar, answer.trace.choices, parsed.grid)


def best_expected_iou(drawn: Sequence[tuple[Answer, ParsedAnswer]], image_size: tuple[int, int],
                      encoding: Encoding) -> tuple[Answer, ParsedAnswer]:
    """The grid with the best expected IoU in place of the likeliest text.

    Args:
        drawn: a request's answers with what was parsed of them, decoded in mode ``fast`` or
            ``constrained``: several draws at temperature 1, the model's own distribution; or the greedy
            answer alone, whose map costs no further pass but never turns an answer into an empty one, nor
            an empty one into an answer.
        image_size: ``(H, W)`` in pixels.
        encoding: of the answers.

    Returns:
        the grid written as an answer, with the tokens and seconds of all draws together, and what it
        parses to.

    Raises:
        DecodingError: see `answer_confidence`.
    """
    confidences = [answer_confidence(*one) for one in drawn]
    grid = best_grid(confidences, [parsed.grid for _, parsed in drawn])
    labels = drawn[0][0].grammar.labels
    text = wrap(encoding.encode(grid, labels), f"Best of {len(drawn)}:")
    answer = Answer(text, sum(one.n_tokens for one, _ in drawn), True, sum(one.seconds for one, _ in drawn))
    return answer, parse_answer(text, labels, image_size, encoding)


def expected_ious(probs: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Expected IoU of the first ``k`` cells of an order, for ``k = 1 ... n``; cells independent.

    Args:
        probs: float ``(n,)`` in [0, 1].
        order: int ``(n,)``, a permutation of the cells.

    Returns:
        float64 ``(n,)``.

    >>> expected_ious(np.array([0.5, 1.0]), np.array([1, 0])).round(3).tolist()
    [0.75, 0.75]
    """
    p = np.asarray(probs, np.float64)[order]
    n = len(p)
    outside = np.zeros(n + 1)  # P(|X outside S| = j), from S = everything on
    outside[0] = 1
    sizes, out, inside = np.arange(n + 1), np.zeros(n), np.cumsum(p)
    for k in range(n, 0, -1):
        out[k - 1] = inside[k - 1] * (outside[:n - k + 1] / (k + sizes[:n - k + 1])).sum()
        outside[1:] = outside[1:] * (1 - p[k - 1]) + outside[:-1] * p[k - 1]
        outside[0] *= 1 - p[k - 1]
    return out


def best_mask(maps: Sequence[np.ndarray], empty: float) -> tuple[np.ndarray, float]:
    """The mask with the highest expected IoU.

    Args:
        maps: float ``(rows, cols)`` each, probabilities of the cells in each part of a mixture in
            which they are independent. One map for one answer, several for drawn ones, of equal weight.
        empty: probability that there is no target. The maps speak of the rest.

    Returns:
        bool ``(rows, cols)`` and its expected IoU. All False where "no target" is the better bet.

    >>> best_mask([np.array([[0.9, 0.6, 0.1]])], empty=0.2)[0].tolist()
    [[True, True, False]]
    """
    maps = np.asarray(maps, np.float64)
    mean = maps.mean(0)
    order = np.argsort(-mean, axis=None, kind="stable")
    scores = np.mean([expected_ious(one.reshape(-1), order) for one in maps], 0)
    k = int(scores.argmax())
    mask = np.zeros(mean.size, bool)
    if (best := (1 - empty) * scores[k]) > empty:
        mask[order[:k + 1]] = True
    return mask.reshape(mean.shape), float(max(best, empty))


def best_grid(confidences: Sequence[Confidence], grids: Sequence[np.ndarray]) -> np.ndarray:
    """The label grid whose masks each have the highest expected IoU.

    A label is taken to have no target with the share of answers that do not show it; the maps of the
    others are the mixture. A cell that several labels want goes to the likeliest of them.

    Args:
        confidences: of one request's answers.
        grids: int ``(rows, cols)`` each, what these answers say.

    Returns:
        int32 ``(rows, cols)``, 0 others.
    """
    wanted = np.zeros_like(confidences[0].probs)
    for label in range(1, len(wanted)):
        maps = [one.probs[label] for one, grid in zip(confidences, grids) if (grid == label).any()]
        if maps:
            mask, _ = best_mask(maps, 1 - len(maps) / len(grids))
            wanted[label] = np.where(mask, np.mean(maps, 0) + 1e-9, 0)
    return wanted.argmax(0).astype(np.int32)


def cell_confidence(grammar: Grammar, choices: Sequence[Choice], grid: np.ndarray) -> Confidence:
    """The map of an answer.

    Args:
        grammar: of the request.
        choices: all of the answer's, from its trace.
        grid: int ``(rows, cols)``, the labels that were written.

    Raises:
        DecodingError: the choices are not those of this grid.
    """
    encoding = grammar.encoding
    if grid.shape != (encoding.rows, encoding.cols):
        raise DecodingError(f"A grid of {grid.shape[0]}x{grid.shape[1]} cells came with the grammar of "
                            f"{encoding.rows}x{encoding.cols} cells.")
    runs = _written_runs(grammar, choices, encoding.arrange(grid).reshape(-1))
    chain = _Chain(runs, grammar)
    maps = [chain.row(begin) for begin in range(0, grid.size, grammar.row_width)]
    probs, known = (np.concatenate(parts, -1).astype(np.float32) for parts in zip(*maps))
    probs = np.stack([encoding.restore(one) for one in probs / probs.sum(0)])
    return Confidence(probs, encoding.restore(known.clip(0, 1)))


class _Run(NamedTuple):
    """A run that was written, and what the model thought of in its place.

    Attributes:
        start, end: in cells from the start of the descriptor.
        label: of the run.
        labels: float64 ``(L + 1,)``, probability of each label.
        ends: label -> float64 ``(cells + 1,)``, probability of each end given the label; only for
            labels that were followed to their counts.
        stated: ``(label, least, most, probability)`` that a run of this label begins here and has from
            ``least`` to ``most`` cells.
        taken: the probability of the run as it was written.
    """

    start: int
    end: int
    label: int
    labels: np.ndarray
    ends: dict[int, np.ndarray]
    stated: list[tuple[int, int, int, float]]
    taken: float


def _written_runs(grammar: Grammar, choices: Sequence[Choice], cells: np.ndarray) -> list[_Run]:
    asked: dict[Position, dict] = {}
    for state, tokens, scores in choices:
        asked.setdefault(state.at, {})[state.said] = dict(zip(tokens.tolist(),
                                                              softmax(scores.astype(np.float64))))
    at, out = Position(0, 0, -1), []
    while at.line < grammar.n_lines:
        label, length = grammar.first_run(at, cells[grammar.index(at):])
        out.append(_run(grammar, at, label, length, asked.pop(at, {}), len(cells)))
        at = grammar.move(at, label, length)
    if asked:
        raise DecodingError(f"There was a choice at {min(asked)}, where this grid has no run.")
    return out


def _run(grammar: Grammar, at: Position, label: int, length: int, asked: dict, cells: int) -> _Run:
    """What the model thought of at a position, as probabilities of labels and lengths."""
    said, start = grammar.tokens(at, label, length), grammar.index(at)
    odds = [asked.get(said[:k], {token: 1.0})[token] for k, token in enumerate(said)]
    reach = np.cumprod([1.0, *odds]).tolist()  # probability of having said the first k tokens
    # Runs by the tokens up to where they depart from what was said; labels that depart have no length.
    groups: dict[tuple, list[tuple[int, int | None]]] = {}
    for other, ids in enumerate(grammar.label_ids):
        followed = said[:len(ids)] == ids
        for n in range(1, grammar.longest(at) + 1) if followed else [None]:
            if grammar.may_follow(at, other):
                ids = grammar.tokens(at, other, n) if followed else ids
                same = next((k for k, (x, y) in enumerate(zip(ids, said)) if x != y), len(ids))
                groups.setdefault(ids[:same + 1], []).append((other, n))
    labels, ends, stated = np.zeros(len(grammar.words)), {}, []
    for ids, members in groups.items():
        *before, last = ids
        chance = reach[-1] if ids == said else (
            reach[len(before)] * asked.get(tuple(before), {}).get(last, 0.0))
        for other, n in members:
            labels[other] += chance / len(members)
            if n is not None:
                ends.setdefault(other, np.zeros(cells + 1))[start + n] += chance / len(members)
        if len({other for other, _ in members}) == 1:
            lengths = [n or 1 for _, n in members]
            stated.append((members[0][0], min(lengths), max(lengths), chance))
    ends = {other: some / max(some.sum(), 1e-300) for other, some in ends.items()}
    return _Run(start, start + length, label, labels, ends, stated, reach[-1])


class _Chain:
    """The Markov chain of edges between the runs of an answer, row by row."""

    def __init__(self, runs: list[_Run], grammar: Grammar):
        self.runs, self.grammar = runs, grammar
        self.n, self.cells, self.cols = len(grammar.words), runs[-1].end, grammar.row_width
        self.starts = np.array([run.start for run in runs])
        self.shown = sorted({run.label for run in runs} - {0}) or list(range(1, self.n))

    def row(self, begin: int) -> tuple[np.ndarray, np.ndarray]:
        """Marginals ``(L + 1, cols)`` and known share ``(cols,)`` of the row that begins with a cell."""
        probs, known = np.zeros((self.n, self.cols)), np.zeros(self.cols)
        if not self.grammar.counts_runs:
            self._add_stated(begin, begin, 1.0, known)
            return np.stack([run.labels for run in self.runs[begin:begin + self.cols]], 1), known
        mass = np.zeros((self.cols + 1, self.n + 1))  # by column and label before; -1 is none
        first, chance = self._enter(begin, mass, probs, known)
        self._add_stated(begin, first, chance, known)
        for col in range(self.cols):
            for last in np.flatnonzero(mass[col] > LEAST):
                last = -1 if last == self.n else int(last)
                run = self._asked_at(begin + col, last)
                chances = mass[col, last] * self._labels(run, last)
                for label in np.flatnonzero(chances > LEAST).tolist():
                    self._spend(begin, col, label, self._ends(run, begin, col, label), chances[label],
                                mass, probs)
        total = probs.sum(0)
        return probs / np.where(total > 0, total, 1), known

    def _enter(self, begin: int, mass, probs, known) -> tuple[int, float]:
        """Start a row; returns the first run that starts in it and the probability of getting there."""
        k = int(np.searchsorted(self.starts, begin))
        if self.grammar.encoding.breaks_rows or begin == 0:
            mass[0, -1] = 1
            return k, 1.0
        run = self.runs[k - 1]  # it reaches the row
        ends = _cut(run.ends[run.label], begin - 1)
        if ends is None:  # it was written against all odds
            mass[0, run.label] = 1
            return k, 0.0
        self._spend(begin, 0, run.label, ends, 1.0, mass, probs)
        reach = begin - run.start
        groups = [group for group in run.stated if group[0] == run.label]
        if any(least < reach <= most and part > 0 for _, least, most, part in groups):
            return k, 0.0
        total = sum(part for _, least, _, part in groups if least >= reach)
        for _, least, _, part in groups:
            known[:max(0, least - reach)] += part / total
        return k, run.taken / total

    def _add_stated(self, begin: int, k: int, chance: float, known) -> None:
        """Add what the model has stated along the row as it was written, from one of its runs on."""
        for run in self.runs[k:int(np.searchsorted(self.starts, begin + self.cols))]:
            for _, least, _, part in run.stated:
                known[run.start - begin:run.start - begin + least] += chance * part
            chance *= run.taken

    def _spend(self, begin: int, col: int, label: int, ends, chance: float, mass, probs) -> None:
        """Give a run's cells their probability, and the places where it may end theirs."""
        here = ends[begin + col:begin + self.cols]
        probs[label, col:] += chance * (1 - np.cumsum(here)).clip(0)
        mass[col:self.cols, label] += chance * here

    def _asked_at(self, cell: int, last: int) -> _Run:
        """The run written at a place, or the next of the row if that one's label just ended."""
        k = int(np.searchsorted(self.starts, cell, "right")) - 1
        run, after = self.runs[k], self.runs[min(k + 1, len(self.runs) - 1)]
        return after if run.label == last and after.start // self.cols == cell // self.cols else run

    def _labels(self, run: _Run, last: int) -> np.ndarray:
        """Probabilities of the label of a run behind a label, -1 at the start of a row."""
        labels = run.labels.copy()
        if last >= 0:
            labels[last] = 0
        if labels.sum() <= LEAST:
            labels[:] = 0
            labels[0 if last > 0 else self.shown] = 1
        return labels / labels.sum()

    def _ends(self, run: _Run, begin: int, col: int, label: int) -> np.ndarray:
        """Probabilities of the end of a run of a label that starts in a column."""
        if label in run.ends and (ends := _cut(run.ends[label], begin + col)) is not None:
            return ends
        for rows in (0, -1, 1, -2, 2):  # the row itself, the two above and the two below
            shift = rows * self.cols
            if 0 <= begin + shift < self.cells:
                ends = self._ends_of(begin + shift + col, label)
                if ends is not None:
                    return np.roll(ends, -shift)
        width = self.cols if label == 0 else max(1, round(FIRST_WIDTH * self.cols))
        ends = np.zeros(self.cells + 1)
        ends[begin + min(col + width, self.cols)] = 1
        return ends

    def _ends_of(self, cell: int, label: int) -> np.ndarray | None:
        """Ends of the next run of a label that was written after a cell, within its row."""
        close = (cell // self.cols + 1) * self.cols
        for run in self.runs[:int(np.searchsorted(self.starts, close))]:
            if run.label == label and run.end > cell:
                ends = run.ends[label].copy()
                ends[close] += ends[close + 1:].sum()
                ends[close + 1:] = 0
                return _cut(ends, cell)
        return None


def _cut(ends: np.ndarray, cell: int) -> np.ndarray | None:
    """Given that a run reaches beyond a cell; ``None`` if that was not thought possible."""
    out = ends.copy()
    out[:cell + 1] = 0
    total = out.sum()
    return out / total if total > LEAST else None
