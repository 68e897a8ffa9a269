"""Confidence against the sum over every way to write a row; expected IoU against the sum over all truths."""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np
import pytest
from scipy.special import softmax
from toy_tokenizer import LABELS, PATTERNS, ColumnRLE, Toy

from t4s_helpers.codec.encodings import FullLength, ImageRLE, RowRLE, get_encoding
from t4s_helpers.data.registry import load
from t4s_helpers.decoding.confidence import (
    Confidence, answer_confidence, best_expected_iou, best_grid, best_mask, cell_confidence, expected_ious,
)
from t4s_helpers.decoding.constrained import Choice
from t4s_helpers.decoding.generate import DecodingError, answer_samples
from t4s_helpers.decoding.grammar import START, Grammar


def model_of(sharpness: float, seed: int):
    """A language model made of a hash: behind any tokens it has scores of the next."""
    @cache
    def scores(ids: tuple) -> np.ndarray:
        return sharpness * np.random.default_rng([seed, *ids]).normal(size=200).astype(np.float32)

    return scores


def write(grammar: Grammar, model):
    """The greedy answer: its cells and choices."""
    state, ids, cells, choices = START, (), [], []
    while not grammar.done(state):
        allowed = grammar.choices(state)
        scores = model(ids)[allowed]
        if len(allowed) > 1:
            choices.append(Choice(state, allowed, scores))
        ids = (*ids, int(allowed[scores.argmax()]))
        state, run = grammar.step(state, ids[-1])
        cells += [run[0]] * run[1] if run else []
    return np.array(cells), choices


def exact(grammar: Grammar, model, cells, row: int, cols: int) -> np.ndarray:
    """Marginals ``(L + 1, cols)`` of a row given the cells above it as written: the sum over all ways on."""
    out = np.zeros((len(grammar.words), cols))
    above, stop = cells[:row * cols].tolist(), (row + 1) * cols

    def follow(state, said, got, chance):
        if len(got) >= stop:
            np.add.at(out, (got[row * cols:stop], range(cols)), chance)
            return
        allowed = grammar.choices(state)
        for token, p in zip(allowed.tolist(), softmax(model(said)[allowed])):
            after, run = grammar.step(state, token)
            now = got + [run[0]] * run[1] if run else got
            if all(a == b for a, b in zip(now, above)):
                follow(after, (*said, token), now, chance * p)

    follow(START, (), [], 1.0)
    return out / out.sum(0)


CASES = [(RowRLE((3, 4)), 1, "words"), (RowRLE((2, 4)), 2, "numbers"), (RowRLE((1, 10)), 1, "numbers"),
         (ImageRLE((3, 3)), 1, "words"), (ImageRLE((2, 3)), 2, "numbers"), (ImageRLE((2, 4)), 1, "words"),
         (FullLength((2, 4)), 2, "words"), (RowRLE((2, 3)), 3, "bytes"), (ColumnRLE((3, 3)), 1, "words")]


@pytest.mark.parametrize(("encoding", "n", "cut"), CASES)
@pytest.mark.parametrize("sharpness", [0.3, 3.0])
def test_the_known_share_bounds_the_error(encoding, n, cut, sharpness):
    rows, cols = encoding.grid_size
    grammar = Grammar(Toy(PATTERNS[cut]).ids, LABELS[:n], encoding)
    worst = []
    for seed in range(2):
        model = model_of(sharpness, seed)
        cells, choices = write(grammar, model)
        found = cell_confidence(grammar, choices, encoding.restore(cells))
        assert found.probs.shape == (n + 1, rows, cols) and found.probs.dtype == np.float32
        assert np.allclose(found.probs.sum(0), 1, atol=1e-5)
        probs = np.stack([encoding.arrange(one).reshape(rows, cols) for one in found.probs])
        known = encoding.arrange(found.known).reshape(rows, cols)
        for row in range(rows):
            truth = exact(grammar, model, cells, row, cols)
            error = np.abs(probs[:, row] - truth).max(0)
            assert (error <= 1 - known[row] + 1e-3).all(), (row, error, known[row])
            worst.append(error.max())
            if encoding.breaks_rows and cut == "words":
                assert known[row, 0] == pytest.approx(1, abs=1e-3)
    assert max(worst) > 0.001  # else nothing was unknown, and nothing was tested


def test_a_sure_model_is_known_throughout_and_choices_of_another_answer_are_refused():
    grammar = Grammar(Toy().ids, LABELS[:1], get_encoding("rrle", (4, 6)))
    cells, choices = write(grammar, model_of(200.0, 1))
    found = cell_confidence(grammar, choices, cells.reshape(4, 6))
    assert found.known.min() > 0.99 and np.array_equal(found.probs.argmax(0), cells.reshape(4, 6))
    assert np.array_equal(found[1], found.probs[1])
    with pytest.raises(DecodingError, match="no run"):
        cell_confidence(grammar, choices, np.ones((4, 6), int))
    with pytest.raises(DecodingError, match="4x6 cells"):
        cell_confidence(grammar, choices, cells.reshape(4, 6)[:2])


@pytest.mark.parametrize(("options", "words"), [
    ({"mode": "plain", "max_new_tokens": 20}, "mode='fast'"),
    ({"max_new_tokens": 20}, "raise max_new_tokens")])
def test_confidence_needs_a_whole_answer_under_the_grammar(shipped, options, words):
    samples = load("scenes", "test", n=1, start=90, task="res")
    [one] = answer_samples(shipped, samples, get_encoding(), progress=False, **options)
    with pytest.raises(DecodingError, match=words):
        answer_confidence(*one)


def by_hand(mask, maps, empty: float = 0.0) -> float:
    """Expected IoU over every truth, the empty one apart; all masks and maps ``(n,)``."""
    mask = np.asarray(mask, bool)
    if not mask.any():
        return empty
    truths = np.array(list(product((False, True), repeat=mask.size)))
    chances = np.mean([np.prod(np.where(truths, one, 1 - one), 1) for one in maps], 0)
    return (1 - empty) * (chances * (mask & truths).sum(1) / (mask | truths).sum(1)).sum()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("n", [1, 3])
def test_no_mask_is_better_than_the_best(seed, n):
    """By the sum over all truths: for every mask of one answer, for the mask found in a mixture."""
    rng = np.random.default_rng(seed)
    maps, empty, order = rng.random((n, 6)) ** 1.5, float(rng.choice([0.0, 0.2, 0.4])), rng.permutation(6)
    mask, score = best_mask(maps.reshape(n, 2, 3), empty)
    assert mask.shape == (2, 3) and score == pytest.approx(by_hand(mask.ravel(), maps, empty))
    if n == 1:
        assert all(by_hand(other, maps, empty) <= score + 1e-9 for other in product((0, 1), repeat=6))
        firsts = [np.isin(np.arange(6), order[:k]) for k in range(1, 7)]
        assert np.allclose(expected_ious(maps[0], order), [by_hand(first, maps) for first in firsts])


def test_what_greedy_decoding_gives_up_is_found():
    """Every cell is likelier "others", and the best mask still is not empty, unless nothing is meant."""
    assert best_mask([np.full((1, 4), 0.45)], 0.0)[0].all()
    assert not best_mask([np.full((1, 4), 0.45)], 0.9)[0].any()


def test_several_labels_share_the_cells():
    probs = np.zeros((3, 1, 3), np.float32)
    probs[1] = [[0.9, 0.6, 0.0]]
    probs[2] = [[0.0, 0.35, 0.9]]
    probs[0] = 1 - probs.sum(0)
    sure = Confidence(probs, np.ones((1, 3)))
    grid = np.array([[1, 1, 2]])
    assert best_grid([sure], [grid]).tolist() == [[1, 1, 2]]
    assert best_grid([sure] * 3, [grid, 0 * grid, 0 * grid]).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize(("draws", "temperature"), [(1, 0.0), (3, 1.0)])
def test_the_best_grid_comes_as_an_answer(shipped, draws, temperature):
    encoding = get_encoding("rrle", 4)
    [sample] = load("scenes", "test", n=1, start=5, task="res")
    drawn = answer_samples(shipped, [sample], encoding, draws=draws, temperature=temperature, progress=False)
    answer, parsed = best_expected_iou(drawn, sample.size, encoding)
    assert parsed.report.ok and parsed.masks.shape == (1, *sample.size)
    assert answer.finished and f"Best of {draws}:" in answer.text
    assert answer.n_tokens == sum(one.n_tokens for one, _ in drawn)
    maps, grids = [answer_confidence(*one) for one in drawn], [one.grid for _, one in drawn]
    assert np.array_equal(parsed.grid, best_grid(maps, grids))
