"""Calibration against torchmetrics, and where its bins end."""

from __future__ import annotations

import numpy as np
import pytest

from t4s_helpers.evaluation.calibration import calibration
from t4s_helpers.evaluation.metrics import MetricError


@pytest.mark.parametrize("bins", [1, 7, 10, 15])
def test_the_error_is_that_of_torchmetrics(bins):
    import torch
    from torchmetrics.functional.classification import binary_calibration_error

    rng = np.random.default_rng(bins)
    stated = rng.beta(0.4, 0.7, 5000).astype(np.float32)
    true = rng.random(5000) < stated**1.7
    oracle = binary_calibration_error(torch.tensor(stated), torch.tensor(true).int(), n_bins=bins, norm="l1")
    assert calibration(stated, true, bins).ece == pytest.approx(oracle.item(), abs=2e-4)


def test_the_table_holds_every_outcome_once():
    found = calibration([0.0, 0.1, 0.1000001, 1.0], [False, False, True, True])
    assert [row["n"] for row in found.rows()] == [2, 1, 1]
    assert np.isnan(found.stated[5]) and found.n.sum() == 4
    assert found.rows()[0]["from"] == 0 and found.rows()[-1]["to"] == 1


@pytest.mark.parametrize(("stated", "true", "words"), [
    ([0.5], [True, False], "1 probabilities came with 2"), ([], [], "at least one"),
    ([1.2], [True], "reach from 1.2"), ([float("nan")], [True], "lie in"),
])
def test_what_cannot_be_sorted_is_named(stated, true, words):
    with pytest.raises(MetricError, match=words):
        calibration(stated, true)
