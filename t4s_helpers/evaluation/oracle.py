"""Ceilings of the representation: what a perfect model would reach, with and without a refiner."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from tqdm.auto import tqdm

from ..codec.encodings import Encoding, get_encoding, wrap
from ..codec.grid import GridSize, box_iou, grid_to_masks, mask_to_box, masks_to_grid, overlap
from ..codec.parsing import parse
from ..refine import Prompts, Refiner, load_refiner
from .metrics import BoxMetric, SegmentationMetric
from .tasks import grouped, picture_key


def oracle_scores(samples: Sequence, grid_size: GridSize = 16, rule: str = "area") -> dict[str, float]:
    """What a perfect model would reach without a refiner: true mask -> grid -> mask."""
    masks, boxes = SegmentationMetric(), BoxMetric()
    for sample in samples:
        grid = masks_to_grid(sample.masks, grid_size, rule)
        pred = grid_to_masks(grid, len(sample.labels), sample.size).any(0)
        truth = sample.masks.any(0)
        masks.update(pred, truth)
        if truth.any():
            boxes.update(pred, truth)
    return {**masks.compute(), **(boxes.compute() if len(boxes) else {})}


def through_text(sample, encoding: Encoding, rule: str = "area") -> np.ndarray:
    """What a perfect model would pass on, bool ``(L, H, W)``: masks -> grid -> text -> parser -> masks."""
    drawn = encoding.from_masks(sample.masks, rule, sample.instances())
    grid, _ = parse(wrap(encoding.encode(drawn, sample.labels), "Here is the mask:"), sample.labels, encoding)
    return encoding.to_masks(grid, len(sample.labels), sample.size)


def distinct_targets(samples: Sequence) -> list:
    """One sample, the first, for each target of each image, in order; requests without a target go.

    Several expressions often name the same object, which a table about masks counts once.
    """
    wanted = (sample for sample in samples if sample.masks.any())
    groups = grouped(wanted, lambda sample: (picture_key(sample), np.packbits(sample.masks.any(0)).tobytes()))
    return [same[0] for same in groups.values()]


def oracle_table(samples: Sequence, grid_sizes: Sequence[GridSize] = (16, 24, 32),
                 rules: Sequence[str] = ("area", "nearest"), refiner: Refiner | None = None,
                 others: Mapping[str, Prompts] | None = None, encoding: Encoding | None = None,
                 seed: int = 0, progress: bool = True) -> tuple[list[dict], list[dict]]:
    """True masks through the text, as they are and refined.

    Each label is scored alone. Samples of one image share one image embedding.

    Args:
        samples: `Sample` objects with masks; several may show the same image.
        grid_sizes, rules: of the grid, see `t4s_helpers.codec.grid.masks_to_grid`.
        refiner: from `t4s_helpers.refine.load_refiner`, beside the grid alone, which is named ``none``.
        others: name -> further prompts for the refiner, tried at the first of the grid sizes only.
        encoding: of the text, without its grid size; ``rrle`` by default.
        seed: of the refiner's points.

    Returns:
        ``(rows, table)``: a row for each label and case, with `pixel_counts` and ``fallback``, whether the
        refiner fell back to the coarse mask; and their `oracle_summary`.
    """
    encoding, none, rows = encoding or get_encoding(), load_refiner("none"), []
    refiners = {one.name: one for one in (none, refiner or none)}
    asked = [(name, one, {}) for name, one in refiners.items()]
    further = [(name, refiner, {"prompts": prompts}) for name, prompts in (others or {}).items()]
    groups = list(grouped(samples, picture_key).values())
    for group in tqdm(groups, desc="oracle", unit="image", disable=not progress):
        pixels, truth = group[0].pixels(), np.concatenate([sample.masks for sample in group])
        names = [(sample.id, label) for sample in group for label in sample.labels]
        for one in refiners.values():
            one.set_image(pixels)
        for size, rule in itertools.product(grid_sizes, rules):
            sized = replace(encoding, grid_size=size)
            coarse = np.concatenate([through_text(sample, sized, rule) for sample in group])
            for name, one, options in asked + further * (size == grid_sizes[0] and len(asked) > 1):
                result = one.refine(coarse, seed=seed, **options)
                rows += [{"id": sample_id, "label": label, "grid": _grid_name(sized), "rule": rule,
                          "refiner": name, **pixel_counts(mask, true), "fallback": bool(fell)}
                         for (sample_id, label), mask, true, fell
                         in zip(names, result.masks, truth, result.fallback, strict=True)]
    return rows, oracle_summary(rows)


def oracle_summary(rows: Sequence[dict]) -> list[dict]:
    """The table of `oracle_table` from its rows alone, so that it can be made again without SAM.

    One row a case (``grid``, ``rule``, ``refiner``): ``ciou`` and ``giou`` in [0, 1], ``fallbacks``, ``n``.
    """
    table = []
    for case, members in grouped(rows, lambda row: (row["grid"], row["rule"], row["refiner"])).items():
        metric = SegmentationMetric()
        for row in members:
            metric.update_counts(row["intersection"], row["predicted"], row["target"])
        scores = metric.compute()
        table.append({**dict(zip(("grid", "rule", "refiner"), case)), "ciou": scores["ciou"],
                      "giou": scores["giou"], "fallbacks": sum(row["fallback"] for row in members),
                      "n": len(members)})
    return table


def _grid_name(encoding: Encoding) -> str:
    rows, cols = encoding.grid_size
    return str(rows) if rows == cols else f"{rows}x{cols}"


def pixel_counts(mask: np.ndarray, truth: np.ndarray) -> dict:
    """Counts of one mask against the truth, in pixels; its IoU; whether its box's IoU is above 0.5."""
    both, predicted, target = overlap(mask, truth)
    union = predicted + target - both
    right = box_iou(mask_to_box(mask), mask_to_box(truth)) > 0.5
    return {"intersection": both, "predicted": predicted, "target": target, "union": union,
            "pixels": truth.size, "iou": both / union if union else 1.0, "box_right": bool(right)}
