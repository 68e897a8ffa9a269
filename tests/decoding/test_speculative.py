"""Drafts never change what is written, and on real masks they are worth most of the passes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shared_data import shared_data, shared_tokenizer
from toy_tokenizer import LABELS, Toy, request_cases, walk

from t4s_helpers.codec.encodings import SEG_CLOSE, get_encoding
from t4s_helpers.codec.grid import masks_to_grid
from t4s_helpers.data.refer import load_refer
from t4s_helpers.decoding.grammar import START, Grammar
from t4s_helpers.decoding.speculative import (
    GPU_OVERHEAD, GPU_TREE, Draft, DraftScheduler, DraftTree, Guess, rest_of_row,
)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=20).map(np.array), st.data())
def test_the_rest_of_a_row_begins_with_another_label(above, data):
    col = data.draw(st.integers(0, len(above) - 1))
    last = data.draw(st.integers(-1 if col == 0 else 0, 3))
    first = data.draw(st.none() | st.integers(0, 3).filter(lambda k: k != last))
    rest = rest_of_row(above, col, last, first)
    assert len(rest) == len(above) - col and rest[0] != last and first in (None, rest[0])
    assert np.array_equal(rest_of_row(above, 0, -1), above)  # a row without news repeats the one above


FAR = 1e9
"""Overhead of a pass at which every draft is worth reading to its end."""


def replay(grammar: Grammar, ids, scheduler: DraftScheduler, ahead: int = 99) -> tuple[int, np.ndarray]:
    """Passes in which a model that wants to write ``ids`` does so, and the cells."""
    state, n, passes = START, 0, 0
    cells = np.zeros(grammar.n_lines * grammar.width, int)
    tree, at, kept = DraftTree(), None, []
    while n < len(ids):
        if at is None and len(grammar.choices(state)) > 1:
            scheduler.learn(tree, kept)
            tree, at, kept = scheduler.plan(Draft(grammar, cells, ahead=ahead).guesses(state)), -1, []
            passes += 1
        at = None if at is None else tree.child(at, ids[n])
        kept += [] if at is None else [at]
        start = grammar.index(state.at)
        state, run = grammar.step(state, ids[n])
        n += 1
        if run:
            cells[start:start + run[1]] = run[0]
    return passes, cells


@given(request_cases(), st.sampled_from((0, 2, 99)), st.sampled_from((0, 9, 200)))
def test_any_descriptor_is_written_through_drafts(case, ahead, tree):
    toy, labels, encoding, rng = case
    grid = np.repeat(rng.integers(0, len(labels) + 1, (-(-encoding.rows // 2), encoding.cols)), 2, 0)
    grid = grid[:encoding.rows]
    ids = toy.written(grid, labels, encoding)
    passes, cells = replay(Grammar(toy.ids, labels, encoding), ids, DraftScheduler(40.0, tree), ahead)
    assert passes <= len(ids) and np.array_equal(encoding.restore(cells), grid)


@pytest.mark.parametrize(("side", "most", "most_in_trees"),
                         [(16, 10, 9), (24, 15.5, 13.5), (32, 19.5, 16)])
def test_real_masks_take_few_passes(side, most, most_in_trees):
    ids_of, encoding = shared_tokenizer("internlm2"), get_encoding("rrle", side)
    masks = {sample.masks.tobytes(): sample for sample in load_refer(shared_data("refcoco_mini"))}.values()
    assert len(masks) == 33
    schedulers, passes = (DraftScheduler(FAR), DraftScheduler(GPU_OVERHEAD, GPU_TREE)), []
    for sample in masks:
        grid = masks_to_grid(sample.masks, side, "nearest")
        ids = [i for piece in [*encoding.pieces(grid, sample.labels), SEG_CLOSE] for i in ids_of(piece)]
        grammar = Grammar(ids_of, sample.labels, encoding)
        passes.append([replay(grammar, ids, scheduler)[0] for scheduler in schedulers])
    alone, together = np.mean(passes, 0)
    assert alone <= most and together <= most_in_trees and together < 0.8 * alone


def likeliest(guesses: list[Guess]) -> list[int]:
    """Tokens of the first guess, of the first one behind it, and so on."""
    return [*guesses[0].ids, *likeliest(guesses[0].follow())] if guesses else []


@pytest.mark.parametrize(("bottom", "expected"), [
    (None, ["others *2|dog *2|others *2"] * 4), (2, ["others *2|dog *2|others *2"] * 2 + ["others *6"] * 2)])
def test_below_the_box_a_draft_holds_nothing(bottom, expected):
    toy = Toy()
    grammar = Grammar(toy.ids, LABELS[:1], get_encoding("rrle", (5, 6)))
    cells = np.zeros(30, int)
    cells[2:4] = 1
    state = walk(grammar, START, toy.ids("others *2|dog *2|others *2\n"))
    draft = Draft(grammar, cells, bottom)
    assert toy.text(likeliest(draft.guesses(state))) == "\n".join(expected) + SEG_CLOSE


def choices(*guesses: Guess, depth: int = 3) -> list[Guess]:
    """The same choice between guesses, several times over."""
    def follow():
        return choices(*guesses, depth=depth - 1)

    return [one._replace(follow=follow) for one in guesses] if depth else []


def test_a_draft_reaches_as_far_as_it_pays():
    guesses = choices(Guess((1, 2, 3), 0.8), depth=20)
    reach = [len(DraftScheduler(overhead).plan(guesses).tokens) // 3 for overhead in (0.01, 2.0, 40.0, 1e6)]
    assert reach[0] == 1 and reach == sorted(reach) and reach[1] < reach[2] < reach[3] == 20
    behind = DraftScheduler(0.01).plan(guesses, [7, 8])  # what the model has not read comes first
    assert behind.tokens == [7, 8, 1, 2, 3] and behind.parents == [-1, 0, 1, 2, 3]
    assert DraftScheduler(1.0).plan([]).tokens == []


def test_a_tree_holds_the_likeliest_drafts_and_shares_their_beginnings():
    likely, other = Guess((1, 2), 0.6), Guess((1, 3), 0.3)
    assert DraftScheduler(1e6).plan(choices(likely, other)).tokens == [1, 2] * 3  # no tree
    tree = DraftScheduler(1e6, 100).plan(choices(likely, other))
    assert len(tree.tokens) == 3 * (1 + 2 + 4)
    assert tree.child(-1, 1) == 0 and tree.tokens[tree.child(0, 3)] == 3
    small = DraftScheduler(1e6, 6).plan(choices(likely, other))
    assert 6 <= len(small.tokens) < 9 and small.tokens[:2] == [1, 2]


def test_who_stands_before_whom_in_a_tree():
    tree = DraftTree([5, 6])
    left, right = tree.add(1, [7, 8]), tree.add(1, [9])
    assert (left, right) == (3, 4) and tree.add(-1, [5, 6, 7]) == 2  # known already
    assert tree.parents == [-1, 0, 1, 2, 1]
    assert tree.ancestors().tolist() == [
        [1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 0, 0, 1]]


def test_the_scheduler_learns_which_guesses_hold():
    scheduler, row = DraftScheduler(40.0), Guess((4, 5), "row")
    edge = Guess((1, 2, 3), "edge", lambda: [row])
    before = scheduler.chance(edge), scheduler.chance(row)
    for _ in range(50):
        tree = scheduler.plan([row._replace(follow=lambda: [edge])])
        scheduler.learn(tree, [0, 1, 2, 3])  # the edge is refused, and nothing is known of what follows
    assert scheduler.chance(edge) < 0.2 < before[0] and scheduler.chance(row) > before[1]
    held, of = scheduler.counts["row"]
    assert held - 9 == of - 10 >= 50 >= scheduler.counts["edge"][1] - 10
    trees = DraftScheduler(1e6, 50)  # of two alternatives, the second one holds
    for _ in range(20):
        tree = trees.plan([Guess((1, 3), "edge"), Guess((1, 2), "shorter")])
        trees.learn(tree, [0, tree.child(0, 2)])
    assert trees.counts["edge"] == [7, 30] and trees.counts["shorter"] == [21, 28]


def test_sentences_are_drafted_from_those_before():
    scheduler = DraftScheduler()
    assert scheduler.sentence(()) == scheduler.sentence((7,)) == []
    scheduler.sentences += [(7, 1, 9), (7, 2, 9), (7, 2, 9), (5, 9)]
    for said, rest in (((), (7, 2, 9)), ((5,), (9,)), ((7, 3), (9,))):
        assert scheduler.sentence(said) == [Guess(rest, "sentence")]
    assert scheduler.sentence((7, 2, 9)) == []
