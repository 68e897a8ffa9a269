"""Muon: gradient descent whose steps change all directions of a weight matrix by the same amount.

Source: K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024.
"""

from __future__ import annotations

import torch


class Muon(torch.optim.AdamW):
    """Muon for the matrices of layers and connector, AdamW for embeddings, norms and biases.

    ``torch.optim.Muon`` takes matrices alone, and multiplies in bfloat16, in which a processor without
    units for it is some eighty times slower than in float32.

    Args:
        model: an untrained ``LlavaForConditionalGeneration``; frozen weights are left alone.
        lr: of the matrices; the rest takes a tenth of it.
    """

    def __init__(self, model, lr: float = 0.02, momentum: float = 0.95, weight_decay: float = 0.01):
        core = (model.model.language_model.layers, model.model.multi_modal_projector)
        trained = [p for p in model.parameters() if p.requires_grad]
        inner = {id(p) for part in core for p in part.parameters() if p.ndim == 2}
        super().__init__([
            {"params": [p for p in trained if id(p) in inner], "lr": lr, "weight_decay": weight_decay},
            {"params": [p for p in trained if id(p) not in inner], "lr": lr / 10, "weight_decay": 0.0},
        ], betas=(momentum, 0.95))

    @torch.no_grad()
    def step(self, closure=None):
        """Change the matrices, then let AdamW change the rest, which alone has gradients left."""
        matrices = self.param_groups[0]
        for p in matrices["params"]:
            if p.grad is None:
                continue
            if p not in self.state:  # AdamW looks for a step in every state that it loads
                self.state[p] = {"step": torch.tensor(0.0), "average": torch.zeros_like(p)}
            average = self.state[p]["average"]
            average.lerp_(p.grad, 1 - matrices["betas"][0])
            ahead = p.grad.lerp(average, matrices["betas"][0])
            p.mul_(1 - matrices["lr"] * matrices["weight_decay"])
            p.add_(orthogonalized(ahead), alpha=-matrices["lr"] * max(1, p.shape[0] / p.shape[1]) ** 0.5)
            p.grad = None
        return super().step(closure)


def orthogonalized(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """About the nearest matrix with orthonormal rows or columns: all singular values between 0.7 and 1.2.

    By Newton and Schulz's iteration with Jordan's coefficients, in float32.
    """
    x = matrix / matrix.norm().clamp(min=1e-7)
    if tall := x.shape[0] > x.shape[1]:
        x = x.T
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=-4.775, alpha=2.0315), x, beta=3.4445)
    return x.T if tall else x
