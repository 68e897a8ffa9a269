"""The grammar accepts what encodings write and nothing else, whatever the tokenizer."""

from __future__ import annotations

import re
import time

import numpy as np
import pytest
from hypothesis import given
from toy_tokenizer import LABELS, ColumnRLE, Toy, request_cases, walk

from t4s_helpers.codec.encodings import SEG_CLOSE, DescriptorError, get_encoding
from t4s_helpers.decoding.grammar import START, Grammar, GrammarError, Position, grammar_of


@given(request_cases())
def test_every_descriptor_is_accepted_to_its_end(case):
    toy, labels, encoding, rng = case
    grid = rng.integers(0, len(labels) + 1, encoding.grid_size)
    grammar = Grammar(toy.ids, labels, encoding)
    end = walk(grammar, START, toy.written(grid, labels, encoding))
    assert grammar.done(end) and not len(grammar.choices(end))


@given(request_cases())
def test_every_way_through_the_grammar_is_a_descriptor(case):
    toy, labels, encoding, rng = case
    grammar, state, ids = Grammar(toy.ids, labels, encoding), START, []
    while not grammar.done(state):
        ids.append(int(rng.choice(grammar.choices(state))))
        state, _ = grammar.step(state, ids[-1])
    text = toy.text(ids).removesuffix(SEG_CLOSE)
    assert encoding.decode(text, labels).shape == encoding.grid_size


@pytest.mark.parametrize(("begun", "forced", "at"), [
    ("others *1", "|dog *", Position(0, 1, 0)), ("others *4", SEG_CLOSE, Position(1, 0, -1))])
def test_where_only_one_token_may_come_it_is_forced(begun, forced, at):
    toy = Toy()
    grammar, ids = Grammar(toy.ids, ["dog"], get_encoding("rrle", (1, 4))), []
    state = walk(grammar, START, toy.ids(begun))
    while len(choices := grammar.choices(state)) == 1:
        ids += choices.tolist()
        state, _ = grammar.step(state, ids[-1])
    assert toy.text(ids) == forced and state.at == at


toy = Toy()


@pytest.mark.parametrize(("piece_ids", "labels", "error", "words"), [
    (lambda piece: toy.ids(piece.replace("é", "e")), ["cafe", "café"], GrammarError,
     "'cafe'.*'café'|'café'.*'cafe'"),  # a tokenizer that does not know the accent
    (lambda piece: toy.ids(re.sub(r"\d+", "7", piece)), ["dog"], GrammarError, "two counts"),
    (toy.ids, [], GrammarError, "at least one label"), (toy.ids, [" "], DescriptorError, "empty")])
def test_labels_that_cannot_be_written_are_named(piece_ids, labels, error, words):
    with pytest.raises(error, match=words):
        Grammar(piece_ids, labels, get_encoding("rrle", 4))


def test_a_tokenizer_that_merges_across_pieces_does_no_harm():
    """Its own reading of the text differs; the pieces' ids are what is written and read back."""
    merging = Toy(r"star \*|\|o|\w+| \*\d+|.|\n")  # knows "star *" as a word, and "|o"
    assert merging.ids("star *1") != merging.ids("star") + merging.ids(" *1")
    encoding = get_encoding("rrle", (1, 4))
    grammar = Grammar(merging.ids, ["star"], encoding)
    said = merging.written(np.array([[0, 0, 1, 1]]), ["star"], encoding)
    assert grammar.done(walk(grammar, START, said))


def test_a_request_s_grammar_is_built_once(shipped):
    one = grammar_of(shipped.encoder, ["star"], get_encoding("rrle", 4))
    assert grammar_of(shipped.encoder, ("star",), get_encoding("rrle", (4, 4))) is one
    others = [grammar_of(shipped.encoder, [label], encoding) for label, encoding in (
        ("moon", get_encoding("rrle", 4)), ("star", get_encoding("irle", 4)), ("star", ColumnRLE(4)))]
    assert len({one, *others}) == 4


def test_long_runs_stay_cheap():
    """64x64 in one sequence of 4,096 cells: a state must not look at every count."""
    toy, rng, encoding = Toy(), np.random.default_rng(0), get_encoding("irle", 64)
    grid = np.kron(rng.integers(0, 4, (8, 8)), np.ones((8, 8), int))
    grammar = Grammar(toy.ids, LABELS[:3], encoding)
    ids = toy.written(grid, LABELS[:3], encoding)
    start = time.process_time()
    assert grammar.done(walk(grammar, START, ids))
    assert (time.process_time() - start) / len(ids) < 2e-3
