"""Hypothesis strategies that the codec's tests share: label sets and label grids."""

from __future__ import annotations

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from t4s_helpers.codec.encodings import DescriptorError, check_labels

# No deadline: the machine may be busy with other work. No database: nothing is left on disk.
quick = settings(max_examples=50, deadline=None, database=None)

NASTY = [
    "a|b", "|", "two\nlines", "row *3", "row*3", "row *  12", "*3", "*", "dog *", "<seg>", "</seg>",
    "x < 3", "back\\slash", "\\", "\\p", "ends with \\", "others *2", "other", "héllo", "犬 *４",
    "5*7 photo", "a  b", "line\u2028end", "tab\there", "cr\rlf", "<|im_end|>", "🐕 with a 🎩",
    " *1| *2\n",
]


def _usable(labels: list[str]) -> bool:
    try:
        check_labels(labels)
    except DescriptorError:
        return False
    return True


_characters = st.one_of(
    st.sampled_from("ab \\|\n\r<>*/19s"), st.characters(exclude_categories=("Cs",))
)
label_texts = st.one_of(st.sampled_from(NASTY), st.text(_characters, min_size=1, max_size=12))
label_sets = st.lists(label_texts, max_size=5).filter(_usable)


@st.composite
def grids(draw, n_labels: int, max_side: int = 64) -> np.ndarray:
    """int32 ``(rows, cols)``: noise, or long runs as real masks have them."""
    shape = draw(st.integers(1, max_side)), draw(st.integers(1, max_side))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    grid = rng.integers(0, n_labels + 1, shape, dtype=np.int32)
    if draw(st.booleans()):
        top, left = rng.integers(0, shape)
        grid[top:, left:] = rng.integers(0, n_labels + 1)
        grid[:top] = 0
    return grid


@st.composite
def labelled_grids(draw, max_side: int = 64) -> tuple[np.ndarray, list[str]]:
    labels = draw(label_sets)
    return draw(grids(len(labels), max_side)), labels
