"""Refiners: from the coarse mask of a label grid to a sharp one at the image's size."""

from __future__ import annotations

import functools

from .prompts import BEST_PROMPTS, PAPER_PROMPTS, Prompts, RefineError, mask_logits, sample_points
from .refiners import MIN_IOU, REFINERS, NoRefiner, Refined, Refiner, merge_masks

__all__ = [
    "BEST_PROMPTS", "MIN_IOU", "PAPER_PROMPTS", "REFINERS", "NoRefiner", "Prompts", "RefineError", "Refined",
    "Refiner", "load_refiner", "mask_logits", "merge_masks", "sample_points",
]


def load_refiner(name: str = "mobile_sam", device: str | None = None, precision: str = "float32") -> Refiner:
    """A refiner by name; the same object each time for the same arguments.

    Args:
        name: ``none``, or a SAM model: ``mobile_sam``, ``sam_vit_b``, ``sam_vit_l``, ``sam_vit_h``, whose
            checkpoint is fetched where it is not in the cache (`t4s_helpers.model.weights`), or
            ``sam2.1_hiera_tiny``, ``_small``, ``_base_plus``, ``_large``, fetched by the model hub's library.
        device: as PyTorch names it; by default ``"cuda"`` where there is one, else ``"cpu"``.
        precision: see `t4s_helpers.refine.sam.SamRefiner`.

    Raises:
        RefineError: unknown name or precision, or float16 on the CPU.
        t4s_helpers.model.weights.WeightsError: the checkpoint cannot be had.
    """
    if name not in REFINERS:
        from . import sam  # noqa: F401  registers SAM's names; it imports PyTorch
    if name not in REFINERS:
        from . import sam2  # noqa: F401  and SAM 2's; it imports transformers
    if name not in REFINERS:
        raise RefineError(f"There is no refiner named {name!r}; choose one of {', '.join(REFINERS)}.")
    return _load(REFINERS[name], name, device, precision)


_load = functools.cache(lambda kind, *options: kind.load(*options))
