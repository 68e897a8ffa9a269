"""What a refinement costs and when to trust it: milliseconds by stage, and the fallback's threshold.

``python -m t4s_helpers.lab.benchmarks.refine`` times the bundled photos; ``--coco FOLDER`` also counts, on a
folder in COCO's format, how many masks that each threshold would reject were better than the coarse ones.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from ...codec.grid import grid_to_masks, mask_iou, masks_to_grid
from ...data.coco import load_coco
from ...data.photos import photo_samples
from ...evaluation.oracle import distinct_targets
from ...refine import BEST_PROMPTS, PAPER_PROMPTS, Prompts, load_refiner

_KEPT_MS = 20.0  # a kept embedding takes less than this; a fresh one more, on a GPU too
CONFIGURATIONS = {"paper": PAPER_PROMPTS, "best": BEST_PROMPTS}


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


def trust_table(refiner, objects: Iterator[tuple[np.ndarray, np.ndarray]],
                configurations: Mapping[str, Prompts] = CONFIGURATIONS, grid_size=16,
                thresholds: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6), seed: int = 0) -> pd.DataFrame:
    """How good each fallback threshold would be, by prompt configuration.

    Args:
        objects: pairs of pixels uint8 ``(H, W, 3)`` and true mask bool ``(H, W)``, photo by photo.

    Returns:
        one row a configuration (``prompts``) and threshold (``least``): ``n`` objects, how many were
        ``rejected``, how many of these ``better`` than the coarse mask, ``miou`` with the fallback.
    """
    seen = []
    for pixels, truth in objects:
        coarse = grid_to_masks(masks_to_grid(truth[None], grid_size, "nearest"), 1, truth.shape)
        if coarse.any():
            refiner.set_image(pixels)
            for name, prompts in configurations.items():
                result = refiner.refine(coarse, seed=seed, prompts=prompts, min_iou=0.0)
                ious = mask_iou(result.masks[0], truth), mask_iou(coarse[0], truth)
                seen.append((name, result.agreement[0], *ious))
    table = []
    for name, found in pd.DataFrame(seen).groupby(0, sort=False):
        _, agreement, refined, rough = (found[column].to_numpy() for column in found)
        for least in (0.0, *thresholds):
            out = agreement < least
            table.append({"prompts": name, "least": least, "n": len(found), "rejected": int(out.sum()),
                          "better": int((refined > rough)[out].sum()),
                          "miou": float(np.where(out, rough, refined).mean())})
    return pd.DataFrame(table)


def coco_objects(folder: Path | str, n: int, per_photo: int = 4,
                 least_pixels: int = 400) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Up to ``n`` single objects of a COCO folder, a few from each photo, the largest first."""
    for sample in load_coco(folder):
        masks = sorted(sample.meta["instance_masks"].decode(), key=lambda m: -m.sum())
        chosen = [m for m in masks if m.sum() >= least_pixels][: min(per_photo, n)]
        pixels = sample.pixels() if chosen else None
        yield from ((pixels, mask) for mask in chosen)
        n -= len(chosen)
        if not n:
            return


def main() -> None:
    """Time the photos, count on a COCO folder; see the module."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--refiner", default="mobile_sam")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--coco", help="folder in COCO's format for the fallback's threshold")
    parser.add_argument("-n", type=int, default=240, help="of its objects")
    parser.add_argument("--no-times", action="store_true", help="count the threshold alone")
    args = parser.parse_args()
    sam = load_refiner(args.refiner, precision=args.precision)
    if not args.no_times:
        samples = distinct_targets(photo_samples())
        rows = {name: time_stages(sam.with_prompts(told), samples) for name, told in CONFIGURATIONS.items()}
        print(pd.DataFrame(rows).T.round(1).to_string())
    if args.coco:
        objects = tqdm(coco_objects(args.coco, args.n), total=args.n, unit="object")
        print(trust_table(sam, objects).round(4).to_string(index=False))


if __name__ == "__main__":
    main()
