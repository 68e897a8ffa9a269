"""The grammar accepts what `pieces` writes and nothing else, whatever the tokenizer."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t4s_helpers.decoding.grammar import START, Grammar, GrammarError, Position
from t4s_helpers.codec.encodings import SCHEMES, SEG_CLOSE, DescriptorError, decode, pieces

LABELS = ("dog", "dog house", "a|b *3", "Zwei-Worte", "x 5")
PATTERNS = {"words": r"\d| \*|[a-zA-Z]+| [a-zA-Z]+|.|\n", "bytes": r"(?s).",
            "numbers": r" \*\d+|\d+|[a-z]+|.|\n"}
"""How a toy tokenizer cuts pieces: into words and digits, single characters, or whole counts."""


class Toy:
    """Token ids for pieces, and back."""

    def __init__(self, pattern: str = PATTERNS["words"]):
        self.pattern, self.known = pattern, {}

    def ids(self, piece: str) -> list[int]:
        return [self.known.setdefault(t, len(self.known)) for t in re.findall(self.pattern, piece)]

    def text(self, ids) -> str:
        back = {i: t for t, i in self.known.items()}
        return "".join(back[i] for i in ids)


def written(toy, grid, labels, scheme, spaced=False):
    ids = [i for piece in pieces(grid, labels, scheme, spaced) for i in toy.ids(piece)]
    return ids + toy.ids(SEG_CLOSE)


requests = st.tuples(st.integers(1, 7), st.integers(1, 12), st.integers(1, len(LABELS)),
                     st.sampled_from(SCHEMES), st.sampled_from(sorted(PATTERNS)),
                     st.integers(0, 2**32 - 1))


@given(requests, st.booleans())
def test_every_descriptor_is_accepted_to_its_end(request, spaced):
    rows, cols, n, scheme, cut, seed = request
    toy, labels = Toy(PATTERNS[cut]), LABELS[:n]
    grid = np.random.default_rng(seed).integers(0, n + 1, (rows, cols))
    grammar = Grammar(toy.ids, labels, (rows, cols), scheme, spaced)
    end = grammar.walk(START, written(toy, grid, labels, scheme, spaced))
    assert grammar.done(end) and grammar.allowed(end) == {}


@given(requests)
def test_every_way_through_the_grammar_is_a_descriptor(request):
    rows, cols, n, scheme, cut, seed = request
    toy, labels, rng = Toy(PATTERNS[cut]), LABELS[:n], np.random.default_rng(seed)
    grammar, state, ids = Grammar(toy.ids, labels, (rows, cols), scheme), START, []
    while not grammar.done(state):
        allowed = grammar.allowed(state)
        token = int(rng.choice(list(allowed)))
        ids.append(token)
        state = allowed[token]
    text = toy.text(ids).removesuffix(SEG_CLOSE)
    assert decode(text, labels, (rows, cols), scheme).shape == (rows, cols)


def test_where_one_token_may_come_it_is_forced():
    toy = Toy()
    grammar = Grammar(toy.ids, ["dog"], (1, 4))
    after_one = grammar.walk(START, toy.ids("others *1"))
    said, state = grammar.forced(after_one)
    assert toy.text(said) == "|dog *"
    assert state.at == Position(0, 1, 0)
    said, state = grammar.forced(grammar.walk(START, toy.ids("others *4")))
    assert toy.text(said) == SEG_CLOSE and grammar.done(state)


@pytest.mark.parametrize("broken", ["others *5", "others *0", "cat", "others *2|others", "|",
                                    "others *2\n", "others *4\nothers *4\nothers"])
def test_what_breaks_the_format_is_refused(broken):
    toy = Toy()
    grammar = Grammar(toy.ids, ["dog"], (2, 4))
    with pytest.raises(GrammarError, match="may not stand"):
        grammar.walk(START, toy.ids(broken))


def test_labels_that_collide_as_tokens_are_named():
    def same(piece):  # a tokenizer that does not know the accent
        return Toy.ids(toy, piece.replace("é", "e"))

    toy = Toy()
    with pytest.raises(GrammarError, match="'cafe'.*'café'|'café'.*'cafe'"):
        Grammar(same, ["cafe", "café"], 4)
    with pytest.raises(GrammarError, match="two counts"):
        Grammar(lambda piece: toy.ids(re.sub(r"\d+", "7", piece)), ["dog"], 4)


def test_a_request_needs_a_label():
    with pytest.raises(GrammarError, match="at least one label"):
        Grammar(Toy().ids, [], 4)
    with pytest.raises(DescriptorError, match="empty"):
        Grammar(Toy().ids, [" "], 4)


def test_long_runs_stay_cheap():
    """64x64 in one sequence of 4,096 cells: a state must not look at every count."""
    toy, rng = Toy(), np.random.default_rng(0)
    grid = np.kron(rng.integers(0, 4, (8, 8)), np.ones((8, 8), int))
    grammar = Grammar(toy.ids, LABELS[:3], 64, "irle")
    ids = written(toy, grid, LABELS[:3], "irle")
    import time

    start = time.perf_counter()
    assert grammar.done(grammar.walk(START, ids))
    assert (time.perf_counter() - start) / len(ids) < 2e-3
