"""Expected IoU against the sum over all truths, and the best mask against all masks."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from t4s_helpers.decoding.confidence import Confidence
from t4s_helpers.decoding.expected_iou import best_grid, best_mask, expected_ious


def by_hand(mask, maps, empty) -> float:
    """Expected IoU over every truth, the empty one apart."""
    mask = np.asarray(mask, bool)
    if not mask.any():
        return empty
    total = 0.0
    for truth in product((False, True), repeat=mask.size):
        truth = np.array(truth)
        chance = np.mean([np.prod(np.where(truth, one, 1 - one)) for one in maps])
        total += chance * (mask & truth).sum() / (mask | truth).sum()
    return (1 - empty) * total


@pytest.mark.parametrize("seed", range(5))
def test_the_formula_is_the_sum_over_all_truths(seed):
    rng = np.random.default_rng(seed)
    probs, order = rng.random(7) ** 2, rng.permutation(7)
    found = expected_ious(probs, order)
    for k in range(1, 8):
        mask = np.isin(np.arange(7), order[:k])
        assert found[k - 1] == pytest.approx(by_hand(mask, [probs], 0.0))


@pytest.mark.parametrize("seed", range(8))
def test_no_mask_is_better_than_the_best(seed):
    rng = np.random.default_rng(seed)
    probs, empty = rng.random((2, 3)) ** 1.5, float(rng.choice([0.0, 0.2, 0.4]))
    mask, score = best_mask([probs], empty)
    assert mask.shape == (2, 3)
    assert score == pytest.approx(by_hand(mask.ravel(), [probs.ravel()], empty))
    assert all(by_hand(other, [probs.ravel()], empty) <= score + 1e-9
               for other in product((False, True), repeat=6))


def test_a_mixture_is_averaged():
    maps = np.random.default_rng(1).random((3, 2, 3))
    mask, score = best_mask(maps, 0.1)
    assert score == pytest.approx(by_hand(mask.ravel(), [one.ravel() for one in maps], 0.1))


def test_what_greedy_decoding_gives_up_is_found():
    """Every cell is likelier "others", and the best mask still is not empty."""
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


def test_requests_are_answered_by_the_best_grid():
    """Through the same door as the other modes, with the text and the masks of the grid."""
    import tiny_model

    from t4s_helpers.data.expressions import scene_samples
    from t4s_helpers.decoding.generate import answer_samples

    backbone, samples = tiny_model.backbone(), scene_samples("test", 2, "res", start=5)
    for draws in (0, 3):
        out = answer_samples(backbone, samples, 4, mode="expected_iou", draws=draws, progress=False)
        assert len(out) == 2
        for (said, reading), sample in zip(out, samples):
            assert reading.report.ok and reading.grid.shape == (4, 4) and said.finished
            assert reading.masks.shape == (1, *sample.size)
            assert f"Best of {max(1, draws)}:" in said.text and said.n_tokens > 0
    [(free, _)] = answer_samples(backbone, scene_samples("test", 1, "vqa"), 4, mode="expected_iou",
                                 draws=2, max_new_tokens=4, progress=False)
    assert "Best of" not in free.text
