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

DRAWS = 8
"""Answers drawn for each request; they are written side by side, so a draw costs far less than an
answer of its own."""


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


def best_grid(confidences: Sequence, grids: Sequence[np.ndarray]) -> np.ndarray:
    """The label grid whose masks each have the highest expected IoU.

    A label is taken to have no target with the share of answers that do not show it; the maps of the
    others are the mixture. A cell that several labels want goes to the likeliest of them.

    Args:
        confidences: `t4s_helpers.decoding.confidence.Confidence` objects of one request's answers.
        grids: int ``(rows, cols)`` each, what these answers say.

    Returns:
        int32 ``(rows, cols)``, 0 others.
    """
    wanted = np.zeros_like(confidences[0].probs)
    for label in range(1, len(wanted)):
        maps = [one.probs[label] for one, grid in zip(confidences, grids) if (grid == label).any()]
        if maps:
            mask, _ = best_mask(maps, 1 - len(maps) / len(grids))
            wanted[label] = np.where(mask, np.mean(maps, 0) + 1e-9, 0)
    return wanted.argmax(0).astype(np.int32)


def answer_samples(backbone, samples, size=16, scheme: str = "rrle", draws: int = DRAWS,
                   temperature: float = 1.0, **options) -> list[tuple]:
    """Answer requests by the best grid in place of the likeliest text.

    Args:
        backbone, samples, size, scheme: as for `t4s_helpers.decoding.generate.answer_samples`.
        draws: answers that are drawn for each request, in mode ``fast``; 0 for the greedy answer's
            own map, which costs no pass beyond those of the answer, and never makes one of no
            answer, nor the other way round.
        temperature: of the draws. 1 draws from the model's own distribution.
        options: for `t4s_helpers.decoding.generate.generate`.

    Returns:
        ``(Answer, Reading)`` for each sample. The answer's text is the grid written as a descriptor;
        tokens and seconds are those of all its draws together. ``vqa`` samples are answered as
        usual.

    Raises:
        DecodingError: see `t4s_helpers.decoding.generate.generate`, or a draw that ran into the token limit.
    """
    from .generate import answer_samples as drawn

    each = max(1, draws)
    options |= {"mode": "fast", "draws": each, "temperature": temperature if draws else 0.0}
    out = drawn(backbone, samples, size, scheme, **options)
    return [_best(sample, out[k * each:(k + 1) * each], size, scheme)
            for k, sample in enumerate(samples)]


def _best(sample, answers: list, size, scheme: str) -> tuple:
    """One ``(Answer, Reading)`` from those of a request."""
    from .generate import Answer, answer_confidence, read_answer
    from ..codec.encodings import encode, wrap

    if sample.task == "vqa":
        return answers[0]
    labels = answers[0][0].grammar.labels
    grid = best_grid([answer_confidence(*one) for one in answers],
                     [reading.grid for _, reading in answers])
    text = wrap(encode(grid, labels, scheme), f"Best of {len(answers)}:")
    answer = Answer(text, sum(one.n_tokens for one, _ in answers), True,
                    sum(one.seconds for one, _ in answers))
    return answer, read_answer(text, labels, sample.size, size, scheme)
