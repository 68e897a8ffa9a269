"""What a refinement costs and when it is to be trusted: milliseconds by stage, and the fallback.

``python -m t4s_helpers.lab.benchmarks.refine`` times the bundled photos;
``python -m t4s_helpers.lab.benchmarks.refine --coco FOLDER`` also counts, on a folder in COCO's format, how
many of the masks that each fallback threshold would throw away were better than the coarse ones.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ...codec.grid import grid_to_masks, masks_to_grid
from ...evaluation.metrics import mask_iou
from ...refine.refiners import BEST, PAPER, load_refiner

_KEPT_MS = 20.0
"""An image whose embedding is kept takes less than this, on a GPU a fresh one takes more."""

WAYS = {"paper": PAPER, "best": BEST}


def time_stages(refiner, samples: Sequence, size=16, seed: int = 0) -> dict:
    """Medians of a refinement's milliseconds, every mask alone.

    Args:
        refiner: from `t4s_helpers.refine.refiners.load_refiner`.
        samples: `Sample` objects; those of one photo stand together.

    Returns:
        ``n`` and, in ms, ``image`` (of those that had to be embedded), ``prompts``, ``decoder``,
        ``masks``, and ``own``: what is not SAM, ``prompts`` and ``masks`` together.
    """
    found: dict[str, list[float]] = {"image": [], "prompts": [], "decoder": [], "masks": []}
    refiner.forget_images()
    for sample in samples:
        coarse = grid_to_masks(masks_to_grid(sample.masks, size), len(sample.labels), sample.size)
        ms = refiner.set_image(sample.pixels()).refine(coarse[:1], seed=seed).ms
        for stage, values in found.items():
            if stage != "image" or ms["image"] > _KEPT_MS:
                values.append(ms[stage])
    row = {stage: float(np.median(values)) if values else np.nan for stage, values in found.items()}
    return {"n": len(samples), **row, "own": row["prompts"] + row["masks"]}


def time_bare_call(refiner, sample, times: int = 9) -> float:
    """Milliseconds of one call of ``segment_anything``'s own ``predict``, median: the measure of a machine.

    Args:
        refiner: from `t4s_helpers.refine.refiners.load_refiner`, of a SAM model.
        sample: whose picture is asked about, with twenty points and an empty mask prompt.
    """
    predictor = refiner.set_image(sample.pixels()).predictor
    height, width = sample.size
    points = np.random.default_rng(0).random((20, 2)) * (width, height)
    told = dict(point_coords=points, point_labels=np.arange(20) % 2,
                mask_input=np.zeros((1, 256, 256), np.float32), multimask_output=False)
    spent = []
    for _ in range(times + 1):
        start = time.perf_counter()
        predictor.predict(**told)
        spent.append(time.perf_counter() - start)
    return 1e3 * float(np.median(spent[1:]))  # the first warms up


def trust_table(refiner, objects: Iterator[tuple[np.ndarray, np.ndarray]], ways=None, size=16,
                thresholds: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6),
                seed: int = 0) -> list[dict]:
    """How good each fallback threshold would be, by way of asking.

    Args:
        objects: pairs of pixels uint8 ``(H, W, 3)`` and true mask bool ``(H, W)``; those of one
            photo stand together, so that they share its embedding.
        ways: name -> `t4s_helpers.refine.refiners.Prompts`; by default `WAYS`.

    Returns:
        one row a way and threshold: ``n`` objects; how many were ``thrown`` away, and how many of
        these were ``better`` than the coarse mask; ``miou`` over all objects with the fallback.
    """
    ways = ways or WAYS
    seen: dict[str, list] = {name: [] for name in ways}
    for pixels, truth in objects:
        coarse = grid_to_masks(masks_to_grid(truth[None], size, "nearest"), 1, truth.shape)
        if not coarse.any():
            continue
        refiner.set_image(pixels)
        for name, prompts in ways.items():
            result = refiner.refine(coarse, seed=seed, prompts=prompts, min_iou=0.0)
            seen[name].append((result.agreement[0], mask_iou(result.masks[0], truth),
                               mask_iou(coarse[0], truth)))
    return [row for name, found in seen.items() for row in _by_threshold(name, found, thresholds)]


def _by_threshold(name: str, found: list[tuple], thresholds: Sequence[float]) -> Iterator[dict]:
    agreement, refined, rough = np.array(found).T
    for least in (0.0, *thresholds):
        out = agreement < least
        yield {"way": name, "least": least, "n": len(found), "thrown": int(out.sum()),
               "better": int((refined > rough)[out].sum()),
               "miou": float(np.where(out, rough, refined).mean())}


def coco_objects(folder: Path | str, n: int, per_photo: int = 4,
                 least_pixels: int = 400) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Up to ``n`` single objects of a COCO folder, a few from each photo, the largest first."""
    from ...data.coco import load_coco

    left = n
    for sample in load_coco(folder):
        masks = sorted(sample.meta["instance_masks"].decode(), key=lambda m: -m.sum())
        chosen = [m for m in masks if m.sum() >= least_pixels][:min(per_photo, left)]
        pixels = sample.pixels() if chosen else None
        yield from ((pixels, mask) for mask in chosen)
        left -= len(chosen)
        if not left:
            return


def main() -> None:
    import argparse

    from tqdm.auto import tqdm

    from ...data.photos import photo_samples
    from ...evaluation.evaluate import distinct_targets

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--refiner", default="mobile_sam")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--coco", help="folder in COCO's format for the fallback's threshold")
    parser.add_argument("-n", type=int, default=240, help="of its objects")
    parser.add_argument("--no-times", action="store_true", help="count the threshold alone")
    args = parser.parse_args()
    sam = load_refiner(args.refiner, precision=args.precision)
    samples = distinct_targets(photo_samples())
    for name, prompts in () if args.no_times else WAYS.items():
        row = time_stages(sam.asking(prompts), samples)
        told = "  ".join(f"{k} {v:7.1f}" for k, v in row.items() if k != "n")
        print(f"{name:6} n {row['n']}  ms: {told}", flush=True)
    if not args.no_times:
        print(f"one bare call {time_bare_call(sam, samples[0]):7.1f} ms", flush=True)
    if args.coco:
        objects = tqdm(coco_objects(args.coco, args.n), total=args.n, unit="object")
        for row in trust_table(sam, objects):
            print(f"{row['way']:6} least {row['least']:.1f}: {row['thrown']:3} of {row['n']} thrown "
                  f"away, {row['better']:3} of them better; mean IoU {row['miou']:.4f}", flush=True)


if __name__ == "__main__":
    main()
