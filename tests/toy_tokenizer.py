"""A tokenizer made of a regular expression, a further encoding, and requests in both."""

from __future__ import annotations

import re

import numpy as np
from hypothesis import strategies as st

from t4s_helpers.codec.encodings import SEG_CLOSE, FullLength, ImageRLE, RowRLE

LABELS = ("dog", "dog house", "a|b *3", "Zwei-Worte", "x 5")
PATTERNS = {"words": r"\d| \*|[a-zA-Z]+| [a-zA-Z]+|.|\n", "bytes": r"(?s).",
            "numbers": r" \*\d+|\d+|[a-z]+|.|\n"}
"""How pieces are cut: into words and digits, single characters, or whole counts."""


class Toy:
    """Token ids for pieces, and back."""

    def __init__(self, pattern: str = PATTERNS["words"]):
        self.pattern, self.known = pattern, {}

    def ids(self, piece: str) -> list[int]:
        return [self.known.setdefault(t, len(self.known)) for t in re.findall(self.pattern, piece)]

    def text(self, ids) -> str:
        back = {i: t for t, i in self.known.items()}
        return "".join(back[i] for i in ids)

    def written(self, grid, labels, encoding) -> list[int]:
        """Ids of a grid's descriptor, its closing tag included."""
        return [i for piece in [*encoding.pieces(grid, labels), SEG_CLOSE] for i in self.ids(piece)]


class ColumnRLE(ImageRLE):
    """Runs down the columns: an encoding that nothing in the package knows of."""

    name = ""

    def arrange(self, grid):
        return np.ascontiguousarray(grid.T).reshape(self.lines)

    def restore(self, cells):
        return cells.reshape(self.cols, self.rows).T


CLASSES = (FullLength, ImageRLE, RowRLE, ColumnRLE)


@st.composite
def request_cases(draw):
    """A toy tokenizer, labels, an encoding, and a random generator."""
    shape = draw(st.tuples(st.integers(1, 7), st.integers(1, 12)))
    encoding = draw(st.sampled_from(CLASSES))(shape, draw(st.booleans()))
    toy = Toy(PATTERNS[draw(st.sampled_from(sorted(PATTERNS)))])
    labels = LABELS[:draw(st.integers(1, len(LABELS)))]
    return toy, labels, encoding, np.random.default_rng(draw(st.integers(0, 2**32 - 1)))


def walk(grammar, state, ids):
    """The state after some tokens; an error if one of them is not allowed."""
    for token in ids:
        state, _ = grammar.step(state, int(token))
    return state
