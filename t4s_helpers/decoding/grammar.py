"""The grammar of descriptors, token by token: what may follow, and what must.

A descriptor is a sequence of runs; with the separator after it, a run is a *move* from one
`Position` of the grid to the next::

    others *3|      brown dog *5|      others *8 newline      ...      others *16</seg>

`Grammar` knows the token ids of every piece (`t4s_helpers.codec.encodings.pieces`) and answers, for any place in
a descriptor, which tokens lead to a valid one. Where only one does, the token is *forced*: the model
need not be asked. `Grammar.ebnf` writes the same language down for other decoders.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ..codec.grid import Size, parse_size
from ..codec.encodings import SEG_CLOSE, check_scheme, vocabulary


class GrammarError(ValueError):
    """Labels that cannot be told apart token by token, or no labels; the message says which."""


class Position(NamedTuple):
    """Before a run.

    Attributes:
        row, col: the run's first cell; the row after the last once the descriptor is complete.
            In ``irle`` and ``full`` a single row holds all cells.
        last: label of the run before it in this row, -1 at the start of a row.
    """

    row: int
    col: int
    last: int


class State(NamedTuple):
    """A place in a descriptor: the position, and the tokens of the current run so far."""

    at: Position
    said: tuple[int, ...] = ()


START = State(Position(0, 0, -1))

_NONE = np.empty(0, np.int64)

LARK_LIMIT = 400_000
"""Alternatives in `Grammar.ebnf`: a 16x16 grid with one label has 131,584 in ``irle``, 544 in ``rrle``."""


class Grammar:
    """Valid descriptors of one request, as an automaton over token ids.

    Args:
        piece_ids: token ids of a piece, see
            `t4s_helpers.model.training.ConversationEncoder.piece_ids`. Only these are ever generated, so
            a tokenizer that would merge characters across the borders of pieces does no harm.
        labels: what the request allows beside "others".
        size, scheme: of the grid, see `t4s_helpers.codec.encodings.pieces`.
        spaced: the spaced spelling.

    Raises:
        GrammarError: no label, or two labels whose tokens (with what follows) collide.
        DescriptorError: an unusable label or scheme.
    """

    def __init__(self, piece_ids: Callable[[str], list[int]], labels: Sequence[str],
                 size: Size = 16, scheme: str = "rrle", spaced: bool = False):
        rows, cols = parse_size(size)
        check_scheme(scheme)
        self.labels = tuple(labels)
        self.words = vocabulary(labels).written
        if len(self.words) < 2:
            raise GrammarError("A request needs at least one label, but none is given.")
        self.scheme = scheme
        self.rows, self.cols = (rows, cols) if scheme == "rrle" else (1, rows * cols)
        self.label_ids = [tuple(piece_ids(word)) for word in self.words]
        self.count_ids = [()] + [() if scheme == "full" else tuple(piece_ids(f" *{n}"))
                                 for n in range(1, self.cols + 1)]
        self.bar, self.line = (tuple(piece_ids(text)) for text in
                               (("| ", "\n ") if spaced else ("|", "\n")))
        self.close = (*(piece_ids("\n") if spaced else ()), *piece_ids(SEG_CLOSE))
        self._count_of = {ids: n for n, ids in enumerate(self.count_ids) if ids}
        self._counts = self._count_tokens()
        self._next: dict[tuple, tuple] = {}
        self._check()

    def _count_tokens(self) -> dict[tuple[int, ...], dict[int, int]]:
        """Beginning of a count -> next token -> the least count that goes on so."""
        out: dict[tuple[int, ...], dict[int, int]] = {}
        for n, ids in enumerate(self.count_ids):
            for k, token in enumerate(ids):
                out.setdefault(ids[:k], {}).setdefault(token, n)
        return out

    def runs(self, at: Position) -> list[tuple[int, int]]:
        """``(label, length)`` of every run that may stand at a position."""
        left = 1 if self.scheme == "full" else self.cols - at.col
        barred = None if self.scheme == "full" else at.last
        return [(k, n) for k in range(len(self.words)) if k != barred for n in range(1, left + 1)]

    def move(self, at: Position, label: int, length: int) -> Position:
        """The position after a run."""
        col = at.col + length
        return Position(at.row, col, label) if col < self.cols else Position(at.row + 1, 0, -1)

    def tokens(self, at: Position, label: int, length: int) -> tuple[int, ...]:
        """Ids of a run and of the separator, or the closing tag, that follows it."""
        return (*self.label_ids[label], *self.count_ids[length], *self._end(at, label, length))

    def _end(self, at: Position, label: int, length: int) -> tuple[int, ...]:
        after = self.move(at, label, length)
        if after.row == self.rows:
            return self.close
        return self.line if after.col == 0 else self.bar

    def done(self, state: State) -> bool:
        """Whether the descriptor is complete, its closing tag included."""
        return state.at.row == self.rows

    def allowed(self, state: State) -> dict[int, State]:
        """Every token that may come next, and the state after it; empty when `done`."""
        return {int(token): self.step(state, int(token))[0] for token in self.choices(state)}

    def choices(self, state: State) -> np.ndarray:
        """Every token that may come next: int64, ascending; empty when `done`."""
        return _NONE if self.done(state) else self._entry(state)[0]

    def step(self, state: State, token: int) -> tuple[State, tuple[int, int] | None]:
        """The state after a token, and the run ``(label, length)`` that it completes, if it does.

        Raises:
            GrammarError: the token is not allowed; the message says where.
        """
        at, said = state
        after = {} if self.done(state) else self._entry(state)[1]
        if token not in after:
            raise GrammarError(f"Token {token} may not stand in row {at.row + 1}, cell {at.col + 1} "
                               "of this descriptor.")
        run = after[token]
        return (State(self.move(at, *run)) if run else State(at, (*said, token))), run

    def _entry(self, state: State) -> tuple[np.ndarray, dict[int, tuple[int, int] | None]]:
        """`choices`, and what each of them completes; kept, for a descriptor comes by again."""
        at, said = state
        key = (at.row == self.rows - 1, at.col, at.last, said)  # other rows are all alike
        if key not in self._next:
            found = self._expand(state)
            self._next[key] = np.array(sorted(found), np.int64), found
        return self._next[key]

    def _expand(self, state: State) -> dict[int, tuple[int, int] | None]:
        """Next token -> the run that it completes, or ``None`` in the middle of one."""
        at, said = state
        n, found = len(said), {}
        for label, ids in enumerate(self.label_ids):
            if label == at.last and self.scheme != "full":
                continue
            if n < len(ids) and ids[:n] == said:
                found[ids[n]] = None
            elif n >= len(ids) and ids == said[:len(ids)]:
                found |= self._after_label(at, label, said[len(ids):])
        return found

    def _after_label(self, at: Position, label: int, said: tuple[int, ...]) -> dict:
        """The same behind the tokens of a label: counts, separators."""
        left = self.cols - at.col
        found = {token: None for token, least in self._counts.get(said, {}).items()
                 if least <= left}
        for k in range(len(said) + 1):  # said[:k] is the count, said[k:] the separator's start
            length = 1 if self.scheme == "full" else self._count_of.get(said[:k], left + 1)
            if length > left or self.scheme == "full" and k:
                continue
            end = self._end(at, label, length)
            if end[:len(said) - k] == said[k:] and len(said) - k < len(end):
                last = len(said) - k == len(end) - 1
                found[end[len(said) - k]] = (label, length) if last else None
        return found

    def complete(self, state: State, label: int, length: int) -> tuple[int, ...] | None:
        """Tokens that finish the current run as asked; ``None`` if it has begun otherwise."""
        ids = self.tokens(state.at, label, length)
        return ids[len(state.said):] if ids[:len(state.said)] == state.said else None

    def walk(self, state: State, ids) -> State:
        """The state after some tokens.

        Raises:
            GrammarError: one of them is not allowed; the message says where.
        """
        for token in ids:
            state, _ = self.step(state, int(token))
        return state

    def forced(self, state: State) -> tuple[list[int], State]:
        """The tokens that must come next, up to the next choice or the end."""
        ids = []
        while len(choices := self.choices(state)) == 1:
            ids.append(int(choices[0]))
            state, _ = self.step(state, ids[-1])
        return ids, state

    def _check(self) -> None:
        """No label's tokens may equal another's, or another's followed by a whole count."""
        for k, ids in enumerate(self.label_ids):
            for j, other in enumerate(self.label_ids):
                rest = other[len(ids):] if k != j and other[:len(ids)] == ids else None
                if rest is not None and (not rest or self._is_count(rest)):
                    raise GrammarError(
                        f"Label {self.words[j]!r} cannot be told from {self.words[k]!r}: the "
                        "tokenizer writes them, and what may follow, with the same tokens. Rename "
                        "one of them.")
        if self.scheme != "full" and len(self._count_of) < self.cols:
            raise GrammarError("The tokenizer writes two counts with the same tokens, so runs of "
                               "these lengths cannot be told apart. Use another backbone.")

    def _is_count(self, rest: tuple[int, ...]) -> bool:
        """Whether tokens begin with what may follow a label up to the next choice."""
        if self.scheme == "full":
            return rest[:len(self.bar)] == self.bar
        return any(rest[:k] in self._count_of and rest[k:k + 1] in (self.bar[:1], self.line[:1])
                   for k in range(1, len(rest)))

    def ebnf(self) -> str:
        """The descriptor, its closing tag included, as a Lark grammar.

        Servers with structured output (vLLM and SGLang, through llguidance or xgrammar) read it. It
        speaks of text and not of tokens. Rows are spelled out by the cells that are left and the
        label before, so counts sum to the width and neighbouring runs differ.

        Raises:
            GrammarError: it would have more than `LARK_LIMIT` alternatives, as for long ``irle`` runs.
        """
        parts = 0 if self.scheme == "full" else len(self.words) ** 2 * self.cols * (self.cols + 1) // 2
        if parts > LARK_LIMIT:
            raise GrammarError(
                f"Spelled out, the grammar of {self.cols} cells in one go and {len(self.words)} labels "
                f"has {parts:,} alternatives, more than a server will compile ({LARK_LIMIT:,}). Use "
                "scheme='rrle', a smaller grid or fewer labels.")
        return _Lark(self).text()


def merged_borders(tokenize: Callable[[str], list[int]], labels: Sequence[str], size: Size = 16
                   ) -> list[str]:
    """Where a tokenizer would read a descriptor otherwise than piece by piece.

    Training and decoding write the ids of the pieces, so this does no harm here; a server that
    tokenizes the text as a whole feeds the model ids that it was not trained on.

    Args:
        tokenize: ids of a text, without special tokens.
        labels: of the request.

    Returns:
        the first border of each kind that is merged, as ``"'star' + ' *3'"``; empty if none is.
    """
    words, cols = vocabulary(labels).written, parse_size(size)[1]
    counts = [f" *{n}" for n in range(1, cols + 1)]
    kinds = [[(word, count) for word in words for count in counts],
             [(count, after) for count in counts for after in ("|", "\n", SEG_CLOSE)],
             [(before, word) for before in ("|", "\n") for word in words]]
    merged = ([f"{a!r} + {b!r}" for a, b in kind
               if list(tokenize(a + b)) != [*tokenize(a), *tokenize(b)]] for kind in kinds)
    return [found[0] for found in merged if found]


class _Lark:
    """Writes a `Grammar` as Lark text: one rule for each (cells left, label before).

    Each literal is a whole run. Lexers take the longest literal that fits, so that of two labels the
    one that begins with the other must not stand alone ("dog", "dog house"); whole runs never begin
    with each other.
    """

    def __init__(self, grammar: Grammar):
        self.grammar = grammar

    def text(self) -> str:
        g = self.grammar
        if g.scheme == "full":
            cells = g.rows * g.cols
            repeat = f"cell{{{cells - 1}}} " if cells > 1 else ""
            lines = [f"start: {repeat}last", f"last: {self._labels(SEG_CLOSE)}"]
            return "\n".join(lines + [f"cell: {self._labels('|')}"] * (cells > 1)) + "\n"
        rest = f' ("\\n" row){{{g.rows - 1}}}' if g.rows > 1 else ""
        lines = [f'start: row{rest} "{SEG_CLOSE}"', f"row: {self._tail(g.cols, None)}"]
        lines += [f"r{left}_{last}: {self._tail(left, last)}" for left in range(g.cols - 1, 0, -1)
                  for last in range(len(g.words))]
        return "\n".join(lines) + "\n"

    def _labels(self, after: str) -> str:
        return " | ".join(_quoted(word + after) for word in self.grammar.words)

    def _tail(self, left: int, last: int | None) -> str:
        """Runs that fill ``left`` cells after a run of label ``last``."""
        return " | ".join(
            f"{_quoted(f'{word} *{n}|')} r{left - n}_{k}" if n < left else _quoted(f"{word} *{n}")
            for k, word in enumerate(self.grammar.words) if k != last for n in range(1, left + 1))


def _quoted(text: str) -> str:
    """A Lark string literal.

    >>> print(_quoted('a "b"'))
    "a \\"b\\""
    """
    escaped = "".join(_ESCAPES.get(c, c if c.isprintable() else f"\\u{ord(c):04x}") for c in text)
    return f'"{escaped}"'


_ESCAPES = {"\\": "\\\\", '"': '\\"', "\t": "\\t"}
