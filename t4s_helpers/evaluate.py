"""Model x samples x refiner -> per-sample rows and scores."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from .decoding import answer_samples
from .descriptors import grid_to_masks, mask_to_box, masks_to_grid, parse_size
from .metrics import BoxMetric, SegmentationMetric, VQAAccuracy, overlap


def evaluate(backbone, samples: Sequence, size=16, scheme: str = "rrle", refiner=None,
             **options) -> tuple[list[dict], dict[str, float]]:
    """Score a backbone on samples of one task.

    Args:
        backbone: a `t4s_helpers.backbones.Backbone`.
        samples: `Sample` objects, all ``vqa`` or none.
        refiner: from `t4s_helpers.refine.load_refiner`, or ``None`` for the coarse mask.
        options: for `t4s_helpers.decoding.generate`.

    Returns:
        ``(rows, scores)``: a row per sample (id, text, parse report, intersection, union, time)
        and the scores of `score_rows`.
    """
    out = answer_samples(backbone, samples, size, scheme, **options)
    rows = []
    for sample, (said, reading) in zip(samples, out):
        row = {"id": sample.id, "task": sample.task, "text": said.text, "tokens": said.n_tokens,
               "finished": said.finished, "seconds": said.seconds, **sample.meta}
        if reading is None:
            row |= {"question": sample.question, "truth": sample.answer}
        else:
            row |= _mask_row(sample, reading, refiner)
        rows.append(row)
    return rows, score_rows(rows)


def _mask_row(sample, reading, refiner) -> dict:
    masks = reading.masks
    if refiner is not None and masks.any():
        masks = refiner.refine_masks(sample.pixels(), masks)
    pred, truth = masks.any(0), sample.masks.any(0)
    intersection, n_pred, n_truth = overlap(pred, truth)
    return {
        "label": ", ".join(sample.labels), "malformed": reading.report.malformed,
        "intersection": intersection, "union": n_pred + n_truth - intersection,
        "predicted": n_pred, "target": n_truth,
        "box": _written(mask_to_box(pred)), "true_box": _written(mask_to_box(truth)),
    }


def _written(box) -> str | None:
    """A box as text, since a table's cells hold no lists."""
    return None if box is None else " ".join(map(str, box))


def _read(box: str | None):
    return None if box is None else [int(side) for side in box.split()]


def score_rows(rows: Sequence[dict]) -> dict[str, float]:
    """Scores from per-sample rows alone, so that tables are made again without a model."""
    if rows and rows[0]["task"] == "vqa":
        metric = VQAAccuracy()
        for row in rows:
            metric.update(row["text"], row["truth"])
        return metric.compute()
    masks, boxes = SegmentationMetric(), BoxMetric()
    for row in rows:
        masks.update_counts(row["intersection"], row["predicted"], row["target"],
                            malformed=row["malformed"])
        if row["true_box"] is not None:
            boxes.update(_read(row["box"]), _read(row["true_box"]))
    return {**masks.compute(), **(boxes.compute() if len(boxes) else {}),
            "malformed_rate": sum(row["malformed"] for row in rows) / max(1, len(rows)),
            "tokens": float(np.mean([row["tokens"] for row in rows])),
            "seconds": float(np.mean([row["seconds"] for row in rows]))}


def score_groups(rows: Sequence[dict], by: str, order: Sequence = ()) -> list[dict]:
    """Scores of the rows that agree in one fact, a row of a table for each group.

    Args:
        rows: from `evaluate`; those without the fact are left out.
        by: name of the fact (``kind``, ``n_objects``, ``size``, ``novel``).
        order: groups in the order wanted; the others follow, sorted.

    Returns:
        ``by``, ``group``, ``n``, ``ciou``, ``giou``.

    >>> count = {"task": "res", "malformed": False, "predicted": 2, "true_box": None, "tokens": 1,
    ...          "seconds": 0.1, "target": 2}
    >>> rows = [{**count, "size": "small", "intersection": 1}, {**count, "intersection": 2}]
    >>> [(row["group"], row["n"], round(row["giou"], 2)) for row in score_groups(rows, "size")]
    [('small', 1, 0.33)]
    """
    found = {row[by] for row in rows if by in row}
    names = [name for name in order if name in found]
    out = []
    for name in [*names, *sorted(found - set(names))]:
        chosen = [row for row in rows if row.get(by) == name]
        scores = score_rows(chosen)
        out.append({"by": by, "group": name, "n": len(chosen),
                    **{key: scores[key] for key in ("ciou", "giou")}})
    return out


def oracle_scores(samples: Sequence, size=16, rule: str = "area") -> dict[str, float]:
    """What a perfect model would reach without a refiner: true mask -> grid -> mask."""
    masks, boxes = SegmentationMetric(), BoxMetric()
    for sample in samples:
        grid = masks_to_grid(sample.masks, size, rule)
        pred = grid_to_masks(grid, len(sample.labels), sample.size).any(0)
        truth = sample.masks.any(0)
        masks.update(pred, truth)
        if truth.any():
            boxes.update(pred, truth)
    return {**masks.compute(), **(boxes.compute() if len(boxes) else {})}


def through_text(sample, size=16, rule: str = "area", scheme: str = "rrle") -> np.ndarray:
    """What a perfect model would hand on: true masks -> grid -> text -> parser -> masks.

    Returns:
        bool ``(L, H, W)`` at the image's size.
    """
    from .parsing import parse
    from .rle import encode, wrap

    text = wrap(encode(sample.grid(size, rule), sample.labels, scheme), "Here is the mask:")
    grid, _ = parse(text, sample.labels, size, scheme)
    return grid_to_masks(grid, len(sample.labels), sample.size)


def distinct_targets(samples: Sequence) -> list:
    """One sample for each target of each image, in order.

    Several expressions often name the same object; a table about masks counts it once. The first
    stays. Requests without a target go.
    """
    kept, seen = [], set()
    for sample in samples:
        masks = sample.masks
        key = (_image_key(sample), np.packbits(masks.any(0)).tobytes())
        if masks.any() and key not in seen:
            seen.add(key)
            kept.append(sample)
    return kept


def oracle_table(samples: Sequence, sizes: Sequence = (16, 24, 32),
                 rules: Sequence[str] = ("area", "nearest"), refiner=None, others=None,
                 scheme: str = "rrle", seed: int = 0,
                 progress: bool = True) -> tuple[list[dict], list[dict]]:
    """Ceilings of the representation: true masks through the text, with and without a refiner.

    Each label is scored alone. Samples of one image share one image embedding.

    Args:
        samples: `Sample` objects with masks; several may show the same image.
        sizes, rules: of the grid, see `t4s_helpers.descriptors.masks_to_grid`.
        refiner: from `t4s_helpers.refine.load_refiner`; ``None`` scores the grid alone, which the
            table has in any case, under the name ``none``.
        others: name -> `t4s_helpers.refine.Prompts`; further ways to ask the refiner, tried at the
            first of the sizes only.
        scheme: of the text.
        seed: of the refiner's points.

    Returns:
        ``(rows, table)``. ``rows``: one a label and case, with pixel counts, ``iou``, whether the
        box is right (IoU > 0.5) and whether the refiner fell back to the coarse mask. ``table``:
        one row a case (``grid``, ``rule``, ``refiner``) with ``ciou`` and ``giou`` in [0, 1],
        ``fallbacks`` and ``n``.
    """
    from tqdm.auto import tqdm

    rows = []
    groups = _by_image(samples)
    for group in tqdm(groups, desc="oracle", unit="image", disable=not progress):
        truth = np.concatenate([sample.masks for sample in group])
        names = [(sample.id, label) for sample in group for label in sample.labels]
        ways = _refined_ways(refiner, others, group)
        for size, rule in itertools.product(sizes, rules):
            coarse = np.concatenate([through_text(s, size, rule, scheme) for s in group])
            for way, (refine, only_first) in ways.items():
                if only_first and size != sizes[0]:
                    continue
                masks, fell_back = refine(coarse, seed)
                case = {"grid": _grid_name(size), "rule": rule, "refiner": way}
                rows += [
                    {"id": name, "label": label, **case, **pixel_counts(mask, true), "fallback": fell}
                    for (name, label), mask, true, fell
                    in zip(names, masks, truth, fell_back.tolist(), strict=True)
                ]
    return rows, oracle_summary(rows)


def oracle_summary(rows: Sequence[dict]) -> list[dict]:
    """The table of `oracle_table` from its rows alone, so that it is made again without SAM."""
    cases: dict[tuple, list[dict]] = {}
    for row in rows:
        cases.setdefault((row["grid"], row["rule"], row["refiner"]), []).append(row)
    table = []
    for (grid, rule, way), members in cases.items():
        metric = SegmentationMetric()
        for row in members:
            metric.update_counts(row["intersection"], row["predicted"], row["target"])
        scores = metric.compute()
        table.append({
            "grid": grid, "rule": rule, "refiner": way, "ciou": scores["ciou"],
            "giou": scores["giou"], "fallbacks": sum(row["fallback"] for row in members),
            "n": len(members),
        })
    return table


def _refined_ways(refiner, others, group) -> dict:
    """name -> (function of coarse masks and seed, whether only the first size is asked for)."""
    ways = {"none": (lambda coarse, seed: (coarse, np.zeros(len(coarse), bool)), False)}
    if refiner is None or refiner.name == "none":
        return ways
    refiner.set_image(group[0].pixels())

    def asking(**options):
        def refine(coarse, seed):
            result = refiner.refine(coarse, seed=seed, **options)
            return result.masks, result.fallback
        return refine

    ways[refiner.name] = (asking(), False)
    return ways | {name: (asking(prompts=one), True) for name, one in (others or {}).items()}


def _by_image(samples: Sequence) -> list[list]:
    groups: dict = {}
    for sample in samples:
        groups.setdefault(_image_key(sample), []).append(sample)
    return list(groups.values())


def _image_key(sample):
    # Samples of one photo share its array; two equal arrays would only cost a second embedding.
    return id(sample.image) if isinstance(sample.image, np.ndarray) else str(sample.image)


def _grid_name(size) -> str:
    rows, cols = parse_size(size)
    return str(rows) if rows == cols else f"{rows}x{cols}"


def pixel_counts(mask: np.ndarray, truth: np.ndarray) -> dict:
    """Counts of one mask against the truth, in pixels; its IoU; whether its box's IoU is > 0.5."""
    from .metrics import box_iou

    both, predicted, target = overlap(mask, truth)
    union = predicted + target - both
    right = box_iou(mask_to_box(mask), mask_to_box(truth)) > 0.5
    return {"intersection": both, "predicted": predicted, "target": target, "union": union,
            "pixels": truth.size, "iou": both / union if union else 1.0, "box_right": bool(right)}
