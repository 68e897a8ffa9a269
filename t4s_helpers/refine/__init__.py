"""Refiners: from the coarse mask of a label grid to a sharp one at the image's size."""

from .prompts import BEST_PROMPTS, PAPER_PROMPTS, Prompts, RefineError, mask_logits, sample_points
from .refiners import MIN_IOU, REFINERS, NoRefiner, Refined, Refiner, load_refiner, merge_masks

__all__ = [
    "BEST_PROMPTS", "MIN_IOU", "PAPER_PROMPTS", "REFINERS", "NoRefiner", "Prompts", "RefineError", "Refined",
    "Refiner", "load_refiner", "mask_logits", "merge_masks", "sample_points",
]
