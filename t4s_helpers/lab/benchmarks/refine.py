"""What a refinement costs: ``python -m t4s_helpers.lab.benchmarks.refine`` times the bundled photos."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import pandas as pd

from ...codec.grid import grid_to_masks, masks_to_grid
from ...data.registry import load
from ...evaluation.oracle import distinct_targets
from ...refine import BEST_PROMPTS, PAPER_PROMPTS, load_refiner

_KEPT_MS = 20.0  # a kept embedding takes less than this; a fresh one more, on a GPU too


def time_stages(refiner, samples: Sequence, grid_size=16, seed: int = 0) -> dict:
    """Medians of a refinement's milliseconds, every mask alone; samples of one photo stand together.

    Returns:
        ``n`` and the stages of `t4s_helpers.refine.Refined.ms`, ``image`` of fresh embeddings alone;
        ``own`` is what is not SAM, ``prompts`` and ``masks`` together.
    """
    refiner.forget_images()
    found = []
    for sample in samples:
        coarse = grid_to_masks(masks_to_grid(sample.masks, grid_size), len(sample.labels), sample.size)
        found.append(refiner.set_image(sample.pixels()).refine(coarse[:1], seed=seed).ms)
    ms = pd.DataFrame(found)
    ms["image"] = ms["image"].where(ms["image"] > _KEPT_MS)
    row = ms.median().to_dict()
    return {"n": len(samples), **row, "own": row["prompts"] + row["masks"]}


def main() -> None:
    """Time the photos, with the paper's prompts and with the best ones."""
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("--refiner", default="mobile_sam")
    parser.add_argument("--precision", default="float32")
    args = parser.parse_args()
    sam, samples = load_refiner(args.refiner, precision=args.precision), distinct_targets(load("photos"))
    rows = {name: time_stages(sam.with_prompts(prompts), samples)
            for name, prompts in (("paper", PAPER_PROMPTS), ("best", BEST_PROMPTS))}
    print(pd.DataFrame(rows).T.round(1).to_string())


if __name__ == "__main__":
    main()
