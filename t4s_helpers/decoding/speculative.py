"""Guesses at the rest of a descriptor, cheap enough to be wrong.

A drafted token costs next to nothing: the model reads the whole draft in one pass, and what it would
have written itself stays. Objects change little from row to row, so the guess for a row is the row
above, and where the current row has already left it, the row above from its next edge on. Where a
guess may well be wrong, others stand beside it: drafts that share their beginnings form a tree, and one
pass reads all of it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from heapq import heappop, heappush
from typing import NamedTuple

import numpy as np

from .grammar import Grammar, Position, State

CPU_OVERHEAD, GPU_OVERHEAD = 80.0, 2000.0
"""What a pass costs beside the tokens it reads, in tokens: measured for the embedded model on two cores,
and for a 7B model, whose weights must be read from memory for one token as for a hundred."""

GPU_TREE = 256
"""Tokens of a tree of drafts, all rows of a batch together, where parallel work is free."""

FIRST_WIDTH = 0.1
"""Guessed width of an object where it first appears, of the grid's width."""

Run = tuple[int, int]
"""``(label, end)``, the end exclusive."""


def row_runs(row) -> list[Run]:
    """The runs of a row of labels.

    >>> row_runs([0, 0, 1, 0])
    [(0, 2), (1, 3), (0, 4)]
    """
    row = np.asarray(row)
    ends = [*(np.flatnonzero(np.diff(row)) + 1).tolist(), len(row)]
    return [(int(row[end - 1]), end) for end in ends]


def rest_of_row(above: list[Run], col: int, last: int, first: int | None = None,
                appears: int = 1) -> list[Run]:
    """Guess the runs of a row from a cell on.

    Args:
        above: the runs of the row above, the last one ending with the row.
        col: the first cell to guess.
        last: label of the run that ends there, -1 at the start of the row.
        first: label of the first guessed run, if that is known already.
        appears: label of an object that the row above does not have.

    Returns:
        runs that end with the row; neighbours differ, the first one from ``last``.

    >>> above = [(0, 3), (1, 8), (0, 16)]
    >>> rest_of_row(above, 2, 0)  # the object begins a cell earlier
    [(1, 8), (0, 16)]
    >>> rest_of_row(above, 3, 0), rest_of_row(above, 5, 0)
    ([(1, 8), (0, 16)], [(1, 8), (0, 16)])
    """
    cols = above[-1][1]
    at = next(k for k, (_, end) in enumerate(above) if end > col)
    if first is None and above[at][0] != last:
        return _proper(above[at:], col, last)
    if first is None:  # the run above goes on, this one has ended
        rest = above[at + 1:]
    else:
        rest = next((above[k:] for k in range(at, len(above)) if above[k][0] == first), [])
        if first == 0 and rest and rest[0][1] == cols and at < len(above) - 1:
            rest = [(0, col + 1), *above[at:]]  # the object has left the border a little
    if not rest:
        label = first if first is not None else (0 if last else appears)
        rest = [(label, cols if label == 0 else col + max(1, round(FIRST_WIDTH * cols)))]
    return _proper([*rest, (0, cols)], col, last)


def _proper(runs: list[Run], col: int, last: int) -> list[Run]:
    """Without empty runs and repeated labels, to the end of the row."""
    cols, out = runs[-1][1], []
    for label, end in runs:
        end = min(end, cols)
        if end <= (out[-1][1] if out else col):
            continue
        if out and out[-1][0] == label:
            out[-1] = (label, end)
        elif out or label != last:
            out.append((label, end))
    return out


class Part(NamedTuple):
    """A stretch of a draft that is right or wrong as a whole.

    Attributes:
        ids: its token ids.
        kind: what sort of guess it is, for `Pace`: ``"row"`` (a run that is a whole row),
            ``"edge"`` (one that ends within its row), ``"rest"`` (one up to the row's end after
            others), ``"less"``, ``"more"`` (one that ends a cell before or behind the likeliest),
            ``"gone"`` (a row of nothing below an object), ``"sentence"``, ``"heard"`` (the text before
            the descriptor: that of an answer before, or what the model said of it in passing); or the
            probability that it is right, where that is known.
    """

    ids: tuple[int, ...]
    kind: str | float


class Guess(NamedTuple):
    """A part, and what may come after it.

    Attributes:
        part: tokens.
        follow: returns the guesses that may follow, the likeliest first.
    """

    part: Part
    follow: Callable[[], list[Guess]]


def in_turn(parts: Iterator[Part], then: Callable[[], list[Guess]] = list) -> list[Guess]:
    """Parts one after the other as guesses without a choice, then others."""
    part = next(parts, None)
    return then() if part is None else [Guess(part, partial(in_turn, parts, then))]


class Tree:
    """Drafts that share their beginnings, for one pass over all of them.

    Attributes:
        tokens: ids; each comes after the token that it follows.
        parents: for each the index of the token that it follows, -1 for what is already written.
    """

    def __init__(self, tokens: Iterable[int] = ()):
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self._children: dict[tuple[int, int], int] = {}
        self._planted: list[tuple[int, Part, int]] = []
        self.add(-1, tokens)

    def add(self, parent: int, ids: Iterable[int]) -> int:
        """Tokens in a row behind another; returns the index of the last one."""
        for token in ids:
            at = self._children.setdefault((parent, token), len(self.tokens))
            if at == len(self.tokens):
                self.tokens.append(token)
                self.parents.append(parent)
            parent = at
        return parent

    def child(self, parent: int, token: int) -> int | None:
        """Index of a token behind another, if it was drafted."""
        return self._children.get((parent, token))

    def plant(self, parent: int, part: Part) -> int:
        """`add` a part, and remember what sort of guess it was."""
        at = self.add(parent, part.ids)
        self._planted.append((parent, part, at))
        return at

    def fared(self, accepted: Iterable[int]) -> Iterator[tuple[Part, bool]]:
        """Parts whose place was reached, and whether each held.

        Args:
            accepted: indices of the tokens that were kept.
        """
        kept = {-1, *accepted}
        return ((part, at in kept) for parent, part, at in self._planted if parent in kept)

    def depths(self) -> list[int]:
        """How many of the tree's tokens stand before each one."""
        out: list[int] = []
        for parent in self.parents:
            out.append(0 if parent < 0 else out[parent] + 1)
        return out

    def ancestors(self) -> np.ndarray:
        """Bool ``(n, n)``: whether token ``j`` stands before token ``i``, or is the same."""
        out = np.eye(len(self.tokens), dtype=bool)
        for at, parent in enumerate(self.parents):
            if parent >= 0:
                out[at] |= out[parent]
        return out

    @property
    def is_chain(self) -> bool:
        """Whether every token has at most one other behind it."""
        return self.parents == list(range(-1, len(self.tokens) - 1))


class Pace:
    """How far a draft should reach, learned from how the drafts so far have fared.

    A pass over ``n`` tokens costs as much as ``overhead + n`` of them. A part of a draft saves a pass
    if it and all before it holds; else its tokens are wasted. It is worth reading if the gain times its
    chance is more than the loss times the chance against it.

    Args:
        overhead: what a pass costs beside its tokens, in tokens: some tens on a processor, where
            tokens are read one after the other; thousands where parallel work is free.
        tree: tokens of a tree of drafts, about; 0 for the likeliest draft alone. On real masks a tree
            saves three passes in ten, and reads five times the tokens: on a processor, at a loss.
    """

    def __init__(self, overhead: float = CPU_OVERHEAD, tree: int = 0):
        self.overhead, self.tree = overhead, tree
        # held, of; to begin with
        self.fared = {"row": [9, 10], "edge": [7, 10], "rest": [19, 20], "less": [1, 8],
                      "more": [1, 8], "gone": [1, 10], "sentence": [1, 10], "heard": [1, 2]}
        self.sentences: deque[tuple[int, ...]] = deque(maxlen=16)

    def chance(self, part: Part) -> float:
        """How likely a part is to hold, if all before it does."""
        if isinstance(part.kind, float):
            return part.kind
        held, of = self.fared[part.kind]
        return held / of

    def plan(self, guesses: list[Guess]) -> Tree:
        """The drafts that are worth reading, the likeliest parts first; the first part always is."""
        tree, waiting, number = Tree(), [], 0
        behind, so_far = -1, 1.0
        while True:
            for guess in guesses if self.tree else guesses[:1]:
                number += 1  # of equal chances, the first come
                heappush(waiting, (-so_far * self.chance(guess.part), number, guess, behind))
            if not waiting or 0 < self.tree <= len(tree.tokens):
                return tree
            minus, _, guess, parent = heappop(waiting)
            so_far = -minus
            if tree.tokens and so_far * self.overhead < (1 - so_far) * len(guess.part.ids):
                return tree
            behind = tree.plant(parent, guess.part)
            guesses = guess.follow()

    def learn(self, tree: Tree, accepted: Iterable[int]) -> None:
        """Take note of which tokens of a draft held."""
        for part, held in tree.fared(accepted):
            if part.kind in self.fared:
                self.fared[part.kind][0] += held
                self.fared[part.kind][1] += 1

    def sentence(self, said: Sequence[int]) -> Part | None:
        """A guess at the rest of the sentence before the descriptor, from those of the answers before.

        All of it, however unlikely: what the model answers to a wrong number tells what it is about
        to say behind it.
        """
        said, rest = tuple(said), []
        while (now := (*said, *rest)) not in self.sentences:
            n = len(now)
            alike = [one for one in self.sentences if len(one) > n and one[:1] == now[:1]]
            exact = [one for one in alike if one[:n] == now]
            votes = Counter(one[n] for one in exact or (alike if n else self.sentences))
            if not votes:
                break
            rest.append(votes.most_common(1)[0][0])
        return Part(tuple(rest), "sentence") if rest else None


class Draft:
    """What is settled of a descriptor, and guesses at the rest of it.

    Args:
        grammar: of the request; scheme ``rrle`` has rows to learn from, in the others every ``width``
            cells count as one.
        width: columns of the grid.
        bottom: the last row that holds anything, where the answer's sentence has said so.
    """

    def __init__(self, grammar: Grammar, width: int, bottom: int | None = None):
        self.grammar, self.width, self.bottom = grammar, width, bottom
        self.cells = np.zeros(grammar.rows * grammar.cols, np.int32)
        self.seen = 1

    def settle(self, at: Position, label: int, length: int) -> None:
        """Take note of a run that has been decided."""
        start = self._flat(at)
        self.cells[start:start + length] = label
        self.seen = label or self.seen

    def tokens(self, state: State, ahead: int) -> list[int]:
        """The likeliest token ids from a place in the descriptor on; see `parts`."""
        return [token for part in self.parts(state, ahead) for token in part.ids]

    def parts(self, state: State, ahead: int) -> Iterator[Part]:
        """The likeliest way for a descriptor to go on from a place in it, run by run.

        Args:
            ahead: rows to guess after the current one.
        """
        guesses = self.guesses(state, ahead)
        while guesses:
            yield guesses[0].part
            guesses = guesses[0].follow()

    def guesses(self, state: State, ahead: int, then: Callable[[], list[Guess]] = list
                ) -> list[Guess]:
        """How a descriptor may go on from a place in it, the likeliest way first.

        Args:
            ahead: rows to guess after the current one.
            then: what may come after the descriptor.
        """
        begun = None if self.grammar.done(state) else self._finish_run(state)
        if begun is None:
            return then()
        _, (label, length) = begun
        return self._ways(self.cells, state, label, length, state.at.row + ahead, then)

    def _after(self, cells, at: Position, last: int, then) -> list[Guess]:
        """Guesses at the run that stands at a position; all cells before it are settled.

        Args:
            last: the row to end with.
        """
        if at.row == self.grammar.rows:
            return then()
        if self.grammar.scheme == "rrle" and at.row > last:
            return []
        runs = self._runs(at, self._guess(cells, at, 0 if self.grammar.scheme == "rrle" else last))
        if self.grammar.scheme != "rrle":
            return in_turn(self._in_a_row(at, runs), then)
        return self._ways(cells, State(at), *runs[0], last, then)

    def _in_a_row(self, at: Position, runs: list[Run]) -> Iterator[Part]:
        for label, length in runs:
            yield self._part(at, label, length, self.grammar.tokens(at, label, length))
            at = self.grammar.move(at, label, length)

    def _ways(self, cells, state: State, label: int, length: int, last: int, then) -> list[Guess]:
        """A run as a guess, and what else it may be."""
        at, out = state.at, []
        for kind, label, length in self._kinds(at, label, length):
            if (ids := self.grammar.complete(state, label, length)) is None:
                continue
            part = Part(ids, kind) if kind else self._part(at, label, length, ids)
            out.append(Guess(part, partial(self._settled, cells, at, label, length, last, then)))
        return out

    def _settled(self, cells, at: Position, label: int, length: int, last: int, then) -> list[Guess]:
        cells, start = cells.copy(), self._flat(at)
        cells[start:start + length] = label
        return self._after(cells, self.grammar.move(at, label, length), last, then)

    def _kinds(self, at: Position, label: int, length: int) -> list[tuple[str, int, int]]:
        """``(kind, label, length)`` of the likeliest run, its kind left open, and of others."""
        ways, cols = [("", label, length)], self.grammar.cols
        if self.grammar.scheme == "rrle" and at.col + length < cols:
            ways += [("less", label, length - 1)] * (length > 1)
            ways += [("more", label, length + 1)]  # up to the row's end, maybe
            ways += [("gone", 0, cols)] * (at.col == 0 and length + 1 < cols)
        return ways

    def _part(self, at: Position, label: int, length: int, ids) -> Part:
        ends = at.col + length == self.grammar.cols
        return Part(tuple(ids), "edge" if not ends else "rest" if at.col else "row")

    def _flat(self, at: Position) -> int:
        return at.row * self.grammar.cols + at.col

    def _finish_run(self, state: State):
        """Tokens that finish the run begun, and the run: the guessed one, or the nearest possible."""
        most = 1 if self.grammar.scheme == "full" else self.grammar.cols - state.at.col
        for first in (None, *range(len(self.grammar.words))):
            if first is not None and first == state.at.last and self.grammar.scheme != "full":
                continue
            label, guessed = self._runs(state.at, self._guess(self.cells, state.at, 1, first))[0]
            for length in sorted(range(1, most + 1), key=lambda n: abs(n - guessed)):
                ids = self.grammar.complete(state, label, length)
                if ids is not None:
                    return ids, (label, length)
        return None

    def _guess(self, cells, at: Position, ahead: int, first: int | None = None) -> np.ndarray:
        """Guessed labels of the cells from a position on, to the end of a row.

        Args:
            cells: all labels, right up to the position.
            ahead: rows after the current one.
            first: label of the first run, if that is known.
        """
        row, col = divmod(self._flat(at), self.width)
        lines = cells.reshape(-1, self.width)
        above, line = lines[row - 1] if row else np.zeros_like(lines[0]), lines[row].copy()
        last, start = -1 if self.grammar.scheme == "full" else at.last, col
        like = row_runs(self._next_line(above, row))
        for label, end in rest_of_row(like, col, last, first, self.seen):
            line[start:end] = label
            start = end
        out = [line]
        for below in range(row + 1, min(len(lines), row + 1 + ahead)):
            out.append(self._next_line(out[-1], below))
        return np.concatenate(out)[col:]

    def _next_line(self, above: np.ndarray, row: int) -> np.ndarray:
        """A guess at a row from the one above: the same, but below the box nothing."""
        return np.zeros_like(above) if row - 1 == self.bottom else above

    def _runs(self, at: Position, cells: np.ndarray) -> list[Run]:
        """Cells as the grammar's runs ``(label, length)``; one that may go on is left out."""
        cols, scheme = self.grammar.cols, self.grammar.scheme
        if scheme == "full":
            return [(int(label), 1) for label in cells]
        out, col, k = [], at.col, 0
        while k < len(cells):
            end = k + 1
            while end < len(cells) and cells[end] == cells[k] and col + end - k < cols:
                end += 1
            closed = end < len(cells) or col + end - k == cols
            if closed or not out:
                out.append((int(cells[k]), end - k))
            col = (col + end - k) % cols
            k = end
        return out
