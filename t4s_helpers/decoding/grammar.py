"""The grammar of descriptors, token by token: what may come next, and what must.

A descriptor is a sequence of runs. Together with the separator behind it, a run leads from one
`Position` of the grid to the next::

    others *3|      brown dog *5|      others *8 newline      ...      others *16</seg>

`Grammar` knows the token ids of every piece (`t4s_helpers.codec.encodings.Encoding.pieces`) and tells for
every place in a descriptor which tokens lead to a valid one. Where only one does, the token is *forced*,
and the model need not be asked. `Grammar.ebnf` writes the same language down for other decoders.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from ..codec.encodings import INSIDE, OTHERS, SEG_CLOSE, BoxWise, Encoding, vocabulary
from ..codec.grid import BOX_BINS

LARK_LIMIT = 400_000
"""Most alternatives in `Grammar.ebnf`. A 16x16 grid with one label has 544 where rows are lines of their
own, and 131,584 in one sequence of 256 cells."""

KEPT_GRAMMARS = 256
"""Grammars that `grammar_of` remembers for a tokenizer."""


class GrammarError(ValueError):
    """Labels that cannot be told apart token by token, or no labels; the message names them."""


class Position(NamedTuple):
    """The place before a run.

    Attributes:
        line, cell: of the run's first cell; the line after the last once the descriptor is complete.
            Encodings that do not break rows have a single line of all cells.
        last: label of the run before it in this line, -1 at the start of a line.
    """

    line: int
    cell: int
    last: int


class State(NamedTuple):
    """A place in a descriptor: the position, and the tokens of the current run so far."""

    at: Position
    said: tuple[int, ...] = ()


START = State(Position(0, 0, -1))


class BoxPlace(NamedTuple):
    """The place before a part of a box-wise descriptor; it stands for `Position` there.

    Attributes:
        label: the one that is being written, or the last one; 0 before the first, -1 at the end.
        numbers: of its box, in the making; None before a label and within a box.
        inside: the place within its box.
    """

    label: int = 0
    numbers: tuple[int, ...] | None = None
    inside: Position | None = None


END = BoxPlace(-1)

Completion = tuple[int, int] | None
"""The run ``(label, length)`` that a token completes, or None in the middle of one."""


class Grammar:
    """The valid descriptors of one request, as an automaton over token ids.

    Args:
        piece_ids: token ids of a piece, see `t4s_helpers.model.chat.ConversationEncoder.piece_ids`. Only
            these are ever generated, so it does not matter that a tokenizer might merge characters of
            neighbouring pieces.
        labels: what the descriptor may show beside "others".
        encoding: from `t4s_helpers.codec.encodings.get_encoding`.

    Attributes:
        words: the labels as they are written, "others" first.
        n_lines, width: lines of the descriptor and cells in each.
        row_width: cells after which a picture's contents repeat: a line, or a row of the grid where
            one line holds all rows.

    Raises:
        GrammarError: no label, or two labels whose tokens (with what may follow) collide.
        DescriptorError: a label that cannot be used.
    """

    start = START

    def __init__(self, piece_ids: Callable[[str], list[int]], labels: Sequence[str], encoding: Encoding):
        self.labels, self.encoding = tuple(labels), encoding
        self.words = vocabulary(labels).written
        if len(self.words) < 2:
            raise GrammarError("A request needs at least one label, but none is given.")
        self.counts_runs = encoding.counts_runs
        self.n_lines, self.width = encoding.lines
        self.row_width = self.width if encoding.breaks_rows else encoding.cols
        self.label_ids = [tuple(piece_ids(word)) for word in self.words]
        self.count_ids = [(), ()] if not self.counts_runs else [
            (), *(tuple(piece_ids(f" *{n}")) for n in range(1, self.width + 1))]
        self.bar, self.line = (tuple(piece_ids(text)) for text in encoding.separators)
        self.close = (*(piece_ids("\n") if encoding.spaced else ()), *piece_ids(SEG_CLOSE))
        self._count_of = {ids: n for n, ids in enumerate(self.count_ids[1:], 1)}
        # Beginning of a count -> next token -> the smallest count that goes on like this.
        self._count_tokens: dict[tuple[int, ...], dict[int, int]] = {}
        for n, ids in enumerate(self.count_ids):
            for k, token in enumerate(ids):
                self._count_tokens.setdefault(ids[:k], {}).setdefault(token, n)
        self._known: dict[tuple, tuple[np.ndarray, dict[int, Completion]]] = {}
        self._check()

    def longest(self, at: Position) -> int:
        """Length in cells of the longest run that may stand at a position."""
        return self.width - at.cell if self.counts_runs else 1

    def may_follow(self, at: Position, label: int) -> bool:
        """Whether a run of a label may stand at a position: counted runs never repeat a label."""
        return label != at.last or not self.counts_runs

    def move(self, at: Position, label: int, length: int) -> Position:
        """The position after a run."""
        cell = at.cell + length
        return Position(at.line, cell, label) if cell < self.width else Position(at.line + 1, 0, -1)

    def index(self, at: Position) -> int:
        """Number of a position's first cell, counted from the start of the descriptor."""
        return at.line * self.width + at.cell

    def first_run(self, at: Position, cells: np.ndarray) -> tuple[int, int]:
        """Label and length of the run that cells, int ``(n,)``, begin with at a position."""
        cells = cells[:self.longest(at)]
        other = np.flatnonzero(cells != cells[0])
        return int(cells[0]), int(other[0]) if len(other) else len(cells)

    def tokens(self, at: Position, label: int, length: int) -> tuple[int, ...]:
        """Ids of a run and of the separator, or closing tag, behind it."""
        return (*self.label_ids[label], *self.count_ids[length], *self._separator(at, length))

    def _separator(self, at: Position, length: int) -> tuple[int, ...]:
        if at.cell + length < self.width:
            return self.bar
        return self.line if at.line + 1 < self.n_lines else self.close

    def done(self, state: State) -> bool:
        """Whether the descriptor is complete, its closing tag included."""
        return state.at.line == self.n_lines

    def choices(self, state: State) -> np.ndarray:
        """Every token that may come next: int64, ascending; empty when `done`."""
        return self._next(state)[0]

    def step(self, state: State, token: int) -> tuple[State, Completion]:
        """The state after a token, and the run ``(label, length)`` that the token completes, if any.

        Raises:
            GrammarError: the token is not allowed; the message says where.
        """
        at, said = state
        _, after = self._next(state)
        if token not in after:
            raise GrammarError(f"Token {token} is not allowed in line {at.line + 1}, cell {at.cell + 1} "
                               "of this descriptor.")
        run = after[token]
        return (State(self.move(at, *run)) if run else State(at, (*said, token))), run

    def _next(self, state: State) -> tuple[np.ndarray, dict[int, Completion]]:
        """`choices`, and what each of them completes. Remembered, because descriptors repeat."""
        at, said = state
        if self.done(state):
            return np.empty(0, np.int64), {}
        key = (at.line == self.n_lines - 1, at.cell, at.last, said)  # all lines but the last are alike
        if key not in self._known:
            found = self._expand(state)
            self._known[key] = np.array(sorted(found), np.int64), found
        return self._known[key]

    def _expand(self, state: State) -> dict[int, Completion]:
        at, said = state
        n, found = len(said), {}
        for label, ids in enumerate(self.label_ids):
            if self.may_follow(at, label) and ids[:n] == said[:len(ids)]:
                found |= {ids[n]: None} if n < len(ids) else self._after_label(at, label, said[len(ids):])
        return found

    def _after_label(self, at: Position, label: int, said: tuple[int, ...]) -> dict[int, Completion]:
        """What may come next behind a label and some tokens of its count and separator."""
        longest = self.longest(at)
        counts = self._count_tokens.get(said, {})
        found: dict[int, Completion] = {token: None for token, least in counts.items() if least <= longest}
        for k in range(len(said) + 1):  # said[:k] is the count, said[k:] the beginning of the separator
            length = self._count_of.get(said[:k], longest + 1)
            separator, begun = self._separator(at, length), len(said) - k
            if length <= longest and separator[:begun] == said[k:] and begun < len(separator):
                found[separator[begun]] = (label, length) if begun == len(separator) - 1 else None
        return found

    def complete(self, state: State, label: int, length: int) -> tuple[int, ...] | None:
        """Tokens that make the current run the given one; None if it has begun otherwise."""
        ids = self.tokens(state.at, label, length)
        return ids[len(state.said):] if ids[:len(state.said)] == state.said else None

    def _check(self) -> None:
        """No label's tokens may equal another's, or another's followed by a whole count."""
        for k, ids in enumerate(self.label_ids):
            for j, other in enumerate(self.label_ids):
                rest = other[len(ids):] if k != j and other[:len(ids)] == ids else None
                if rest is not None and (not rest or self._may_end_label(rest)):
                    raise GrammarError(
                        f"Label {self.words[j]!r} cannot be told from {self.words[k]!r}: the "
                        "tokenizer writes them, and what may follow, with the same tokens. Rename "
                        "one of them.")
        if self.counts_runs and len(self._count_of) < self.width:
            raise GrammarError("The tokenizer writes two counts with the same tokens, so runs of "
                               "these lengths cannot be told apart. Use another backbone.")

    def _may_end_label(self, rest: tuple[int, ...]) -> bool:
        """Whether tokens begin with what follows a label, up to the next choice."""
        if not self.counts_runs:
            return rest[:len(self.bar)] == self.bar
        return any(rest[:k] in self._count_of and rest[k:k + 1] in (self.bar[:1], self.line[:1])
                   for k in range(1, len(rest)))

    def ebnf(self) -> str:
        """The descriptor and its closing tag as a Lark grammar, over text instead of tokens.

        Servers with structured output (vLLM and SGLang, through llguidance or xgrammar) read it. Each
        line is spelled out by the cells that are left and the label before, so that counts sum to the
        width and neighbouring runs differ.

        Raises:
            GrammarError: more than `LARK_LIMIT` alternatives, as with counts of many cells.
        """
        n = len(self.words)
        alternatives = n * n * self.width * (self.width + 1) // 2 if self.counts_runs else 0
        if alternatives > LARK_LIMIT:
            raise GrammarError(
                f"Spelled out, the grammar of {self.width} cells in one line and {n} labels has "
                f"{alternatives:,} alternatives, more than a server will compile ({LARK_LIMIT:,}). Use "
                "an encoding that breaks rows ('rrle'), a smaller grid or fewer labels.")
        return "\n".join(_lark_runs(self) if self.counts_runs else _lark_cells(self)) + "\n"


class BoxGrammar(Grammar):
    """The grammar of the encoding ``boxwise``: labels in their order, each with a box and cells in it.

    Its places are `BoxPlace`. It completes no runs of a grid over the image, so that there are neither
    drafts (``width`` is 0) nor confidence.
    """

    start = State(BoxPlace())  # type: ignore[arg-type]

    def __init__(self, piece_ids: Callable[[str], list[int]], labels: Sequence[str], encoding: BoxWise):
        self.labels, self.encoding = tuple(labels), encoding
        self.words = vocabulary(labels).written
        if len(self.words) < 2:
            raise GrammarError("A request needs at least one label, but none is given.")
        self.n_lines = self.width = 0
        self.inner = Grammar(piece_ids, [INSIDE], encoding.inside)
        self.line, self.close = self.inner.line, self.inner.close
        self.heads = [(*piece_ids(word), *piece_ids(" At")) for word in self.words]
        self.numbers = [tuple(piece_ids(f" {n}")) for n in range(BOX_BINS)]
        self.nothing = (*piece_ids(OTHERS), *self.close)
        self._states: dict[State, dict[int, State]] = {}
        for k, ids in enumerate(self.heads):
            if ids in self.heads[:k]:
                raise GrammarError(f"Label {self.words[k]!r} cannot be told from "
                                   f"{self.words[self.heads.index(ids)]!r}: the tokenizer writes both with "
                                   "the same tokens. Rename one of them.")

    def index(self, at) -> int:
        return 0

    def done(self, state: State) -> bool:
        return state.at == END

    def choices(self, state: State) -> np.ndarray:
        return np.array(sorted(self._after(state)), np.int64)

    def step(self, state: State, token: int) -> tuple[State, Completion]:
        after = self._after(state)
        if token not in after:
            raise GrammarError(f"Token {token} is not allowed at {state.at} of this descriptor.")
        return after[token], None

    def ebnf(self) -> str:
        raise GrammarError("The encoding 'boxwise' has no grammar for servers: decode it here.")

    def _after(self, state: State) -> dict[int, State]:
        """Each token that may come next, and the state behind it."""
        if state not in self._states:
            tokens = set(self._next_tokens(*state))
            self._states[state] = {token: self._settled(State(state.at, (*state.said, token)))
                                   for token in tokens}
        return self._states[state]

    def _next_tokens(self, at, said: tuple[int, ...]) -> Iterator[int]:
        for ids, after in self._ways(at):
            if len(ids) > len(said) and ids[:len(said)] == said:
                yield ids[len(said)]
            elif ids == said[:len(ids)]:
                yield from self._next_tokens(after, said[len(ids):])

    def _settled(self, state: State) -> State:
        """The state with the place moved on, once no other way fits what was said."""
        at, said = state
        fits = self._fitting(at, said)
        if len(fits) > 1 or len(fits[0][0]) > len(said):
            return state
        [(ids, after)] = fits
        return self._settled(State(after, said[len(ids):])) if said[len(ids):] else State(after)

    def _fitting(self, at: BoxPlace, said: tuple[int, ...]) -> list[tuple[tuple[int, ...], BoxPlace]]:
        """The ways from a place that begin with what was said, or that it goes on from."""
        return [(ids, after) for ids, after in self._ways(at) if ids[:len(said)] == said
                or (ids == said[:len(ids)] and self._fitting(after, said[len(ids):]))]

    def _ways(self, at: BoxPlace) -> list[tuple[tuple[int, ...], BoxPlace]]:
        """What may be written at a place as a whole, and the place behind it."""
        label, numbers, inside = at
        n, inner = len(self.words), self.inner
        if inside is not None:
            runs = [(k, length) for k in range(2) if inner.may_follow(inside, k)
                    for length in range(1, inner.longest(inside) + 1)]
            ways = []
            for run in runs:
                ids, after = inner.tokens(inside, *run), inner.move(inside, *run)
                last = after.line == inner.n_lines  # there the inner grammar closes the descriptor
                ways.append((ids, END if last else BoxPlace(label, None, after)))
                if last and label < n - 1:
                    ways.append(((*ids[:-len(self.close)], *self.line), BoxPlace(label)))
            return ways
        if numbers is None:
            ways = [(self.heads[k], BoxPlace(k, ())) for k in range(label + 1, n)] if label >= 0 else []
            return ways + [(self.nothing, END)] * (label == 0)
        least = numbers[-2] if len(numbers) > 1 else 0  # a box ends no sooner than it starts
        if len(numbers) < 3:
            return [(self.numbers[k], BoxPlace(label, (*numbers, k))) for k in range(least, BOX_BINS)]
        return [((*self.numbers[k], *self.line), BoxPlace(label, None, Position(0, 0, -1)))
                for k in range(least, BOX_BINS)]


def grammar_of(encoder, labels: Sequence[str], encoding: Encoding) -> Grammar:
    """The grammar of a request, built once for each tokenizer, label list and encoding.

    Args:
        encoder: a backbone's `t4s_helpers.model.chat.ConversationEncoder`.
        labels, encoding: see `Grammar`.

    Raises:
        GrammarError, DescriptorError: see `Grammar`.
    """
    kept = _GRAMMARS.setdefault(encoder.tokenizer, {})
    key = tuple(labels), encoding
    if key not in kept:
        kind: Any = BoxGrammar if isinstance(encoding, BoxWise) else Grammar
        kept[key] = kind(encoder.piece_ids, labels, encoding)
        if len(kept) > KEPT_GRAMMARS:
            del kept[next(iter(kept))]
    return kept[key]


_GRAMMARS: WeakKeyDictionary = WeakKeyDictionary()


# Each literal of the Lark text is a whole run. Lexers take the longest literal that fits, so a label that
# another one begins with must not stand alone ("dog", "dog house"); whole runs never begin with each other.

def _lark_cells(grammar: Grammar) -> list[str]:
    def labels(after: str) -> str:
        return " | ".join(_quoted(word + after) for word in grammar.words)

    cells = grammar.width
    repeat = f"cell{{{cells - 1}}} " if cells > 1 else ""
    rules = [f"start: {repeat}last", f"last: {labels(SEG_CLOSE)}"]
    return rules + [f"cell: {labels('|')}"] * (cells > 1)


def _lark_runs(grammar: Grammar) -> list[str]:
    def runs(left: int, last: int | None) -> str:
        """Runs that fill ``left`` cells behind a run of label ``last``."""
        return " | ".join(
            f"{_quoted(f'{word} *{n}|')} r{left - n}_{k}" if n < left else _quoted(f"{word} *{n}")
            for k, word in enumerate(grammar.words) if k != last for n in range(1, left + 1))

    rest = f' ("\\n" row){{{grammar.n_lines - 1}}}' if grammar.n_lines > 1 else ""
    return [f'start: row{rest} "{SEG_CLOSE}"', f"row: {runs(grammar.width, None)}",
            *(f"r{left}_{last}: {runs(left, last)}" for left in range(grammar.width - 1, 0, -1)
              for last in range(len(grammar.words)))]


_quoted = partial(json.dumps, ensure_ascii=False)  # a Lark string literal is one of JSON
