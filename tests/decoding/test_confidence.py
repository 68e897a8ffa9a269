"""Confidence against the sum over every way to write a row, and what is made of it."""

from __future__ import annotations

import numpy as np
import pytest
from test_grammar import LABELS, PATTERNS, Toy

from t4s_helpers.decoding.confidence import ConfidenceError, cell_confidence, softmax
from t4s_helpers.decoding.constrained import Choice
from t4s_helpers.decoding.grammar import START, Grammar


class Model:
    """A language model made of a hash: any tokens have a distribution over the next."""

    def __init__(self, sharpness: float, seed: int):
        self.sharpness, self.seed, self.asked = sharpness, seed, {}

    def scores(self, ids: tuple, choices) -> np.ndarray:
        if ids not in self.asked:
            rng = np.random.default_rng([self.seed, *ids])
            self.asked[ids] = self.sharpness * rng.normal(size=200).astype(np.float32)
        return self.asked[ids][choices]


def write(grammar: Grammar, model: Model):
    """The greedy answer: its ids, cells and choices."""
    state, ids, cells, choices = START, [], [], []
    while not grammar.done(state):
        allowed = grammar.choices(state)
        scores = model.scores(tuple(ids), allowed)
        if len(allowed) > 1:
            choices.append(Choice(state, allowed, scores))
        token = int(allowed[scores.argmax()])
        ids.append(token)
        state, run = grammar.step(state, token)
        cells += [run[0]] * run[1] if run else []
    return ids, np.array(cells), choices


def exact(grammar: Grammar, model: Model, ids, cells, row: int, cols: int) -> np.ndarray:
    """Marginals of a row given the cells above it as written: the sum over all ways to go on.

    ``(L + 1, cols)``. Ways whose cells differ above the row are not followed.
    """
    out = np.zeros((len(grammar.words), cols))
    stop = (row + 1) * cols

    def follow(state, said, got, chance):
        if len(got) > row * cols and tuple(got[:row * cols]) != tuple(cells[:row * cols]):
            return
        if len(got) >= stop:
            for col, label in enumerate(got[row * cols:stop]):
                out[label, col] += chance
            return
        allowed = grammar.choices(state)
        odds = softmax(model.scores(said, allowed))
        for token, p in zip(allowed.tolist(), odds):
            after, run = grammar.step(state, token)
            now = got + [run[0]] * run[1] if run else got
            if all(a == b for a, b in zip(now, cells[:row * cols])):
                follow(after, (*said, token), now, chance * p)

    follow(START, (), [], 1.0)
    return out / out.sum(0)


CASES = [("rrle", (3, 4), 1, "words"), ("rrle", (2, 4), 2, "numbers"), ("rrle", (1, 10), 1, "numbers"),
         ("irle", (3, 3), 1, "words"), ("irle", (2, 3), 2, "numbers"), ("irle", (2, 4), 1, "words"),
         ("full", (2, 4), 2, "words"), ("rrle", (2, 3), 3, "bytes")]


@pytest.mark.parametrize(("scheme", "size", "n", "cut"), CASES)
@pytest.mark.parametrize("sharpness", [0.3, 3.0])
def test_the_known_share_bounds_the_error(scheme, size, n, cut, sharpness):
    toy = Toy(PATTERNS[cut])
    grammar = Grammar(toy.ids, LABELS[:n], size, scheme)
    worst = []
    for seed in range(2):
        model = Model(sharpness, seed)
        ids, cells, choices = write(grammar, model)
        found = cell_confidence(grammar, choices, cells.reshape(size))
        assert found.probs.shape == (n + 1, *size) and found.probs.dtype == np.float32
        assert np.allclose(found.probs.sum(0), 1, atol=1e-5)
        for row in range(size[0]):
            truth = exact(grammar, model, ids, cells, row, size[1])
            error = np.abs(found.probs[:, row] - truth).max(0)
            assert (error <= 1 - found.known[row] + 1e-3).all(), (row, error, found.known[row])
            worst.append(error.max())
            if scheme == "rrle" and cut == "words":
                assert found.known[row, 0] == pytest.approx(1, abs=1e-3)
    assert max(worst) > 0.001  # else nothing was unknown, and nothing was tested


def test_a_sure_model_is_known_throughout():
    toy = Toy()
    grammar = Grammar(toy.ids, LABELS[:1], (4, 6))
    ids, cells, choices = write(grammar, Model(200.0, 1))
    found = cell_confidence(grammar, choices, cells.reshape(4, 6))
    assert found.known.min() > 0.99 and np.array_equal(found.grid, cells.reshape(4, 6))
    assert found[1].shape == (4, 6)


def test_choices_of_another_answer_are_refused():
    grammar = Grammar(Toy().ids, LABELS[:1], (3, 5))
    _, cells, choices = write(grammar, Model(1.0, 3))
    with pytest.raises(ConfidenceError, match="no run"):
        cell_confidence(grammar, choices, np.zeros((3, 5), int))
    with pytest.raises(ConfidenceError, match="15 cells"):
        cell_confidence(grammar, choices, cells.reshape(3, 5)[:2])
