"""Drafts never change what is written, and on real masks they are worth most of the passes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shared_data import shared_data, shared_tokenizer
from test_grammar import LABELS, PATTERNS, Toy, requests, written

from t4s_helpers.decoding.speculative import (
    GPU_OVERHEAD, GPU_TREE, Draft, Guess, Pace, Part, Tree, in_turn, rest_of_row, row_runs,
)
from t4s_helpers.decoding.grammar import START, Grammar
from t4s_helpers.codec.encodings import SEG_CLOSE

rows = st.lists(st.integers(0, 3), min_size=1, max_size=20)


@given(rows, st.data())
def test_the_rest_of_a_row_ends_with_it_and_neighbours_differ(above, data):
    col = data.draw(st.integers(0, len(above) - 1))
    last = data.draw(st.integers(-1 if col == 0 else 0, 3))
    first = data.draw(st.none() | st.integers(0, 3).filter(lambda k: k != last))
    runs = rest_of_row(row_runs(above), col, last, first)
    labels, ends = zip(*runs)
    assert ends[-1] == len(above) and ends[0] > col and list(ends) == sorted(set(ends))
    assert all(a != b for a, b in zip((last, *labels), labels))
    assert first is None or labels[0] == first


def test_a_row_without_news_repeats_the_one_above():
    above = [(0, 3), (1, 8), (0, 16)]
    assert rest_of_row(above, 0, -1) == above


FAR = 1e9
"""Overhead of a pass at which every draft is worth reading to its end."""


def replay(grammar: Grammar, draft: Draft, ids, pace: Pace, ahead: int = 99) -> int:
    """Passes in which a model that wants to write ``ids`` does so, the prompt's not counted."""
    state, n, passes = START, 0, 0

    def push(token):
        nonlocal state, n
        before = state
        state, run = grammar.step(state, token)
        n += 1
        if run:
            draft.settle(before.at, *run)

    def force():
        for token in grammar.forced(state)[0]:
            assert ids[n] == token
            push(token)

    force()
    while n < len(ids):
        passes += 1
        tree, at, kept = pace.plan(draft.guesses(state, ahead)), -1, []
        while at is not None and n < len(ids):
            at = tree.child(at, ids[n])
            push(ids[n])
            kept += [] if at is None else [at]
        pace.learn(tree, kept)
        force()
    return passes


@given(requests, st.sampled_from((0, 2, 99)), st.sampled_from((0, 9, 200)))
def test_any_descriptor_is_written_through_drafts(request, ahead, tree):
    rows, cols, n, scheme, cut, seed = request
    toy, rng = Toy(PATTERNS[cut]), np.random.default_rng(seed)
    grid = np.repeat(rng.integers(0, n + 1, (-(-rows // 2), cols)), 2, 0)[:rows]
    grammar = Grammar(toy.ids, LABELS[:n], (rows, cols), scheme)
    draft, ids = Draft(grammar, cols), written(toy, grid, LABELS[:n], scheme)
    assert replay(grammar, draft, ids, Pace(40.0, tree), ahead) <= len(ids)
    assert np.array_equal(draft.cells.reshape(rows, cols), grid)


@pytest.mark.parametrize(("size", "most", "most_in_trees"),
                         [(16, 10, 9), (24, 15.5, 13.5), (32, 19.5, 16)])
def test_real_masks_take_few_passes(size, most, most_in_trees):
    from t4s_helpers.data.refer import load_refer
    from t4s_helpers.codec.grid import masks_to_grid

    samples = load_refer(shared_data("refcoco_mini"))
    ids_of = shared_tokenizer("internlm2")
    masks = {sample.masks.tobytes(): sample for sample in samples}.values()
    assert len(masks) == 33
    chain, tree = Pace(FAR), Pace(GPU_OVERHEAD, GPU_TREE)
    passes = []
    for sample in masks:
        grid = masks_to_grid(sample.masks, size, "nearest")
        ids = [i for piece in pieces_and_close(grid, sample.labels) for i in ids_of(piece)]
        grammar = Grammar(ids_of, sample.labels, size)
        passes.append([replay(grammar, Draft(grammar, size), ids, pace) for pace in (chain, tree)])
    alone, together = np.mean(passes, 0)
    assert alone <= most and together <= most_in_trees and together < 0.8 * alone


def test_below_the_box_a_draft_holds_nothing():
    toy = Toy()
    grammar = Grammar(toy.ids, LABELS[:1], (5, 6))
    state = grammar.walk(START, toy.ids("others *2|dog *2|others *2\n"))
    guesses = {}
    for bottom in (None, 2):
        draft = Draft(grammar, 6, bottom)
        for at, run in zip((0, 2, 4), ((0, 2), (1, 2), (0, 2))):
            draft.cells[at:at + run[1]] = run[0]
        guesses[bottom] = toy.text(draft.tokens(state, 9)).split("\n")
    row = "others *2|dog *2|others *2"
    assert guesses[None] == [row] * 3 + [row + SEG_CLOSE]
    assert guesses[2] == [row, row, "others *6", "others *6" + SEG_CLOSE]


def test_a_draft_reaches_as_far_as_it_pays():
    parts = [Part((1, 2, 3), 0.8)] * 20
    reach = [len(Pace(overhead).plan(in_turn(iter(parts))).tokens) // 3
             for overhead in (0.01, 2.0, 40.0, 1e6)]
    assert reach[0] == 1 and reach == sorted(reach) and reach[1] < reach[2] < reach[3] == 20
    assert Pace(1.0).plan([]).tokens == []


def choices(*ways, depth: int = 3) -> list[Guess]:
    """The same choice between parts, several times over."""
    return [Guess(way, lambda: choices(*ways, depth=depth - 1)) for way in ways] if depth else []


def test_a_tree_holds_the_likeliest_drafts_and_shares_their_beginnings():
    likely, other = Part((1, 2), 0.6), Part((1, 3), 0.3)
    assert Pace(1e6).plan(choices(likely, other)).tokens == [1, 2] * 3  # no tree: the likeliest alone
    tree = Pace(1e6, 100).plan(choices(likely, other))
    assert len(tree.tokens) == 3 * (1 + 2 + 4) and not tree.is_chain
    assert tree.child(-1, 1) == 0 and tree.tokens[tree.child(0, 3)] == 3
    small = Pace(1e6, 6).plan(choices(likely, other))
    assert 6 <= len(small.tokens) < 9 and small.tokens[:2] == [1, 2]


def test_who_stands_before_whom_in_a_tree():
    tree = Tree([5, 6])
    left, right = tree.add(1, [7, 8]), tree.add(1, [9])
    assert (left, right) == (3, 4) and tree.add(-1, [5, 6, 7]) == 2  # known already
    assert tree.parents == [-1, 0, 1, 2, 1] and tree.depths() == [0, 1, 2, 3, 2]
    assert tree.ancestors().tolist() == [
        [1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 0, 0, 1]]
    assert Tree([1, 2]).is_chain and not tree.is_chain


def test_the_pace_learns_which_guesses_hold():
    pace, edge, row = Pace(40.0), Part((1, 2, 3), "edge"), Part((4, 5), "row")
    before = pace.chance(edge), pace.chance(row)
    for _ in range(50):
        tree = pace.plan(in_turn(iter([row, edge, row])))
        pace.learn(tree, [0, 1, 2, 3])  # the edge is refused, and nothing is known of what follows
    assert pace.chance(edge) < 0.2 < before[0] and pace.chance(row) > before[1]
    held, of = pace.fared["row"]
    assert held - 9 == of - 10 >= 50 >= pace.fared["edge"][1] - 10


def test_the_pace_learns_of_ways_beside_each_other():
    pace, edge, less = Pace(1e6, 50), Part((1, 3), "edge"), Part((1, 2), "less")
    for _ in range(20):
        tree = pace.plan(choices(edge, less, depth=1))
        pace.learn(tree, [0, tree.child(0, 2)])
    assert pace.fared["edge"] == [7, 30] and pace.fared["less"] == [21, 28]


def test_sentences_are_drafted_from_those_before():
    pace = Pace()
    assert pace.sentence(()) is None
    pace.sentences += [(7, 1, 9), (7, 2, 9), (7, 2, 9), (5, 9)]
    assert pace.sentence(()) == Part((7, 2, 9), "sentence")
    assert pace.sentence((5,)).ids == (9,) and pace.sentence((7, 3)).ids == (9,)
    assert pace.sentence((7, 2, 9)) is None


def pieces_and_close(grid, labels):
    from t4s_helpers.codec.encodings import pieces

    return [*pieces(grid, labels), SEG_CLOSE]
