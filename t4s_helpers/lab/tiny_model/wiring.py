"""Copying wired into a fresh language model: where training starts, not where it ends.

What a large model learns from trillions of words, "after A came B last time, so B comes again", a
small one trained for an hour would hardly find. It takes two steps of attention (Olsson et al.,
2022, "In-context learning and induction heads"): a head that looks at the previous token, and, in
the next layer, heads that look for places whose previous token is the current one and say what
stands there. `wire_copying` sets a few heads of the first two layers to do just that; every weight
stays trainable.
"""

from __future__ import annotations

import torch

PREVIOUS_HEADS = (0, 1)
INDUCTION_HEADS = (0, 1, 2, 3)

SHARPNESS = 8.0
"""Attention logit per frequency of a previous-token head at its peak."""

MATCH = 4.0
"""Gain of the product of queries and keys in an induction head."""

WRITE, SAY = 0.06, 0.1
"""Gains with which the two kinds of head write into the residual stream."""


def wire_copying(language_model, seed: int = 0) -> None:
    """Set heads of the first two layers of an untrained Llama to copy.

    Args:
        language_model: a ``LlamaModel`` with ``attention_bias=True``, as many key as query heads,
            and at least four query heads of an even width.
    """
    first, second = (layer.self_attn for layer in language_model.layers[:2])
    width, dim = language_model.config.hidden_size, first.head_dim
    noise = torch.Generator().manual_seed(seed)
    read, keep, say = (_orthonormal(width, width, noise) for _ in range(3))
    with torch.no_grad():
        language_model.embed_tokens.weight.mul_(1.5)
        for layer in language_model.layers:  # quieter at first, as in GPT-2
            layer.self_attn.o_proj.weight.mul_(0.35)
            layer.mlp.down_proj.weight.mul_(0.35)
        for head in PREVIOUS_HEADS:
            at = slice(head * dim, (head + 1) * dim)
            _attend_to_previous(first, at, language_model.config.rope_parameters["rope_theta"])
            first.v_proj.weight[at] = read[at]
            first.o_proj.weight[:, at] = WRITE * keep[at].T
        slow = _slow_dimensions(dim)
        for k, head in enumerate(INDUCTION_HEADS):
            at, part = slice(head * dim, (head + 1) * dim), slice(k * len(slow), (k + 1) * len(slow))
            for projection, basis in ((second.q_proj, read), (second.k_proj, keep)):
                projection.weight[at] = 0
                projection.weight[[at.start + i for i in slow]] = MATCH**0.5 * basis[part]
            second.v_proj.weight[at] = say[at]
            second.o_proj.weight[:, at] = SAY * say[at].T


def _orthonormal(rows: int, columns: int, noise: torch.Generator) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(columns, rows, generator=noise))[0].T.contiguous()


def _attend_to_previous(attention, at: slice, theta: float) -> None:
    """Constant queries and keys whose rotary angles agree one token apart."""
    half = (at.stop - at.start) // 2
    size = (SHARPNESS * (2 * half) ** 0.5) ** 0.5
    for projection in (attention.q_proj, attention.k_proj):
        projection.weight[at] = 0
        projection.bias[at] = 0
    for i in range(6):  # fast frequencies tell neighbours apart
        angle = torch.tensor(theta ** (-i / half))
        attention.k_proj.bias[at.start + i] = size
        attention.q_proj.bias[at.start + i] = size * torch.cos(angle)
        attention.q_proj.bias[at.start + half + i] = -size * torch.sin(angle)


def _slow_dimensions(dim: int) -> list[int]:
    """Dimensions of a head that rotate so slowly that far tokens still match."""
    half = dim // 2
    return [*range(half // 2, half), *range(half + half // 2, dim)]
