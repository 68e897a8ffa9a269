"""The grid with the best expected IoU, in place of the likeliest text.

Greedy decoding writes the likeliest next token, and a model that is unsure of every cell says "others"
row by row; what is scored is IoU. For cells that are independent with probabilities ``p``, and a
predicted set ``S`` that is not empty,

    E[IoU(S, X)] = sum of p over S  *  E[1 / (|S| + |X outside S|)],

because the union's size does not depend on the cells of ``S``; the best ``S`` of a size takes the
likeliest cells, and the distribution of ``|X outside S|`` grows by one cell at a time. So the optimum over
all sets is found exactly in ``O(n^2)``. The empty set scores 1 where the truth is empty (gIoU's rule for
requests without a target) and 0 elsewhere; the probability of that is not the product over cells, which
are anything but independent here, and is asked for.

With several drawn answers the truth is one of them with equal probability: a mixture, over which
expectations are averaged.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def expected_ious(probs: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Expected IoU of the first ``k`` cells of an order, for ``k = 1 ... n``; cells independent.

    Args:
        probs: float ``(n,)`` in [0, 1].
        order: int ``(n,)``, a permutation of the cells.

    Returns:
        float64 ``(n,)``.

    >>> expected_ious(np.array([0.5, 1.0]), np.array([1, 0])).round(3).tolist()
    [0.75, 0.75]
    """
    p = np.asarray(probs, np.float64)[order]
    n = len(p)
    outside = np.zeros(n + 1)  # P(|X outside S| = j), from S = everything on
    outside[0] = 1
    sizes, out, inside = np.arange(n + 1), np.zeros(n), np.cumsum(p)
    for k in range(n, 0, -1):
        out[k - 1] = inside[k - 1] * (outside[:n - k + 1] / (k + sizes[:n - k + 1])).sum()
        outside[1:] = outside[1:] * (1 - p[k - 1]) + outside[:-1] * p[k - 1]
        outside[0] *= 1 - p[k - 1]
    return out


def best_mask(maps: Sequence[np.ndarray], empty: float, weights: Sequence[float] | None = None
              ) -> tuple[np.ndarray, float]:
    """The mask with the highest expected IoU.

    Args:
        maps: float ``(rows, cols)`` each, probabilities of the cells in each part of a mixture in
            which they are independent. One map for one answer, several for drawn ones.
        empty: probability that there is no target. The maps speak of the rest.
        weights: of the maps, by default all the same.

    Returns:
        bool ``(rows, cols)`` and its expected IoU. All False where "no target" is the better bet.

    >>> best_mask([np.array([[0.9, 0.6, 0.1]])], empty=0.2)[0].tolist()
    [[True, True, False]]
    """
    maps = np.asarray(maps, np.float64)
    weights = np.full(len(maps), 1 / len(maps)) if weights is None else np.asarray(weights)
    mean = np.tensordot(weights / weights.sum(), maps, 1)
    order = np.argsort(-mean, axis=None, kind="stable")
    scores = sum(w * expected_ious(one.reshape(-1), order)
                 for w, one in zip(weights / weights.sum(), maps))
    k = int(scores.argmax())
    mask = np.zeros(mean.size, bool)
    if (best := (1 - empty) * scores[k]) > empty:
        mask[order[:k + 1]] = True
    return mask.reshape(mean.shape), float(max(best, empty))


def best_grid(confidences: Sequence, empty: Sequence[float]) -> np.ndarray:
    """The label grid whose masks each have the highest expected IoU.

    A cell that several labels want goes to the likeliest of them.

    Args:
        confidences: `t4s_helpers.confidence.Confidence` objects of one request's answers.
        empty: for each label, the probability that it has no target.

    Returns:
        int32 ``(rows, cols)``, 0 others.
    """
    probs = np.stack([one.probs for one in confidences])
    wanted = np.zeros(probs.shape[1:])
    for label in range(1, probs.shape[1]):
        maps = [one for one in probs[:, label] if one.max() > 0.5] or list(probs[:, label])
        mask, _ = best_mask(maps, empty[label - 1])
        wanted[label] = np.where(mask, probs[:, label].mean(0) + 1e-9, 0)
    return wanted.argmax(0).astype(np.int32)
