"""Calibration: does what is stated with a probability of 0.8 come true four times in five?

Reliability diagram and expected calibration error (Naeini et al., 2015; Guo et al., 2017, "On calibration
of modern neural networks", equations 2 and 3), over cells of label grids, say. NumPy alone.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .metrics import MetricError


class Calibration(NamedTuple):
    """Outcomes by stated probability, in bins of equal width over [0, 1].

    Attributes:
        stated: float64 ``(bins,)``, mean probability in each bin; NaN where it is empty.
        observed: float64 ``(bins,)``, share of outcomes that came true; NaN likewise.
        n: int64 ``(bins,)``.
        ece: expected calibration error in [0, 1]: the mean gap between the two, weighted by ``n``.
    """

    stated: np.ndarray
    observed: np.ndarray
    n: np.ndarray
    ece: float

    def rows(self) -> list[dict]:
        """A table, one row for each bin that is not empty."""
        edges = np.linspace(0, 1, len(self.n) + 1)
        return [{"from": float(edges[k]), "to": float(edges[k + 1]), "n": int(self.n[k]),
                 "stated": float(self.stated[k]), "observed": float(self.observed[k])}
                for k in np.flatnonzero(self.n)]


def calibration(stated, true, bins: int = 10) -> Calibration:
    """Sort outcomes by their stated probability.

    Args:
        stated: float in [0, 1], any shape but empty; anything else is a `MetricError`.
        true: bool of the same shape, whether it came true.
        bins: of equal width; a probability on an edge belongs to the lower bin, 0 to the first.

    >>> calibration([0.95, 0.85, 0.85, 0.05], [True, True, False, False]).ece.__round__(3)
    0.2
    """
    stated, true = np.asarray(stated, np.float64).ravel(), np.asarray(true, bool).ravel()
    if stated.shape != true.shape or not len(stated):
        raise MetricError(f"{len(stated)} probabilities came with {len(true)} outcomes; give as many "
                          "of one as of the other, and at least one.")
    low, high = stated.min(), stated.max()
    if not (low >= 0 and high <= 1):
        raise MetricError(f"Probabilities must lie in [0, 1], but they reach from {low:g} to {high:g}.")
    at = (np.ceil(stated * bins).astype(int) - 1).clip(0, bins - 1)
    n = np.bincount(at, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean, share = np.bincount(at, stated, bins) / n, np.bincount(at, true, bins) / n
    gap = np.nansum(np.abs(mean - share) * n) / n.sum()
    return Calibration(mean, share, n, float(gap))
