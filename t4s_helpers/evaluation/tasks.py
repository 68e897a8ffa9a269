"""What is asked of a model at evaluation, and how an answer becomes a row of counts.

| task | asked | answer read as | scored by |
|---|---|---|---|
| ``res`` | one expression | mask | cIoU, gIoU, precision, box accuracy |
| ``gres`` | an expression for none, one or many | mask; all "others" is a rejection | as ``res``, and N-acc, T-acc |
| ``rec`` | as ``res`` | the box of the mask | box accuracy |
| ``semantic`` | with a list of classes, without one, or for some | class map | mIoU, pixel accuracy |
| ``vqa`` | a question | words | exact match, VQAv2's rule, or yes and no |

Several samples about one picture make a conversation: each is a turn, asked after the model's own
answers to those before. Every wording is the first of its list (`t4s_helpers.data.prompts`), so no score
depends on chance. A row holds counts, never masks as arrays; `t4s_helpers.evaluation.scoring` makes tables of
rows alone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..codec.grid import grid_to_masks, mask_to_box, masks_to_grid
from .metrics import VQAAccuracy, YesNoMetric, class_counts, overlap
from ..data.prompts import SEMANTIC_MODES, ask

VQA_RULES = ("exact", "vqav2", "vqav2-official", "yes-no")
"""How words are scored; ``vqav2-official`` is `VQAAccuracy` with ``normalise="official"``."""


class TaskError(ValueError):
    """Samples that cannot be asked or scored as they are; the message names the sample."""


@dataclass(frozen=True)
class Protocol:
    """How samples are asked and scored, fixed before a run.

    Attributes:
        size, scheme: of the descriptors.
        semantic: one of `t4s_helpers.data.prompts.SEMANTIC_MODES`. ``conditioned`` lists ``classes`` in
            the question (the paper's open-vocabulary protocol, figure 13); ``open`` names none and
            understands them; ``partial`` names those that the picture shows.
        classes: names that a semantic answer may use. Indices of class maps count from 1 in this
            order; 0 is "others".
        vqa: one of `VQA_RULES`; empty for the one in each sample's ``meta["rule"]``, else exact match.
        suffix: added to the questions of ``vqa``, such as LLaVA's request for a short answer.
    """

    size: int | tuple[int, int] = 16
    scheme: str = "rrle"
    semantic: str = "conditioned"
    classes: tuple[str, ...] = ()
    vqa: str = ""
    suffix: str = ""

    def __post_init__(self) -> None:
        if self.semantic not in SEMANTIC_MODES:
            raise TaskError(f"Unknown semantic mode {self.semantic!r}: choose one of "
                            f"{', '.join(SEMANTIC_MODES)}.")
        if self.vqa not in ("", *VQA_RULES):
            raise TaskError(f"Unknown rule for answers {self.vqa!r}: choose one of "
                            f"{', '.join(VQA_RULES)}.")

    def plain(self) -> dict[str, Any]:
        """As plain values, fit for JSON."""
        size = self.size if isinstance(self.size, int) else list(self.size)
        return {"size": size, "scheme": self.scheme, "semantic": self.semantic,
                "classes": list(self.classes), "vqa": self.vqa, "suffix": self.suffix}


@dataclass(frozen=True)
class Question:
    """A worded request, and the names that its descriptor may use (none: words are wanted)."""

    text: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Dialogue:
    """Samples about one picture, asked in order; most have one turn."""

    turns: tuple

    def __post_init__(self) -> None:
        if not self.turns or len({sample.size for sample in self.turns}) > 1:
            raise TaskError(f"The turns {[sample.id for sample in self.turns]} of a conversation must be about one picture.")

    @property
    def picture(self):
        """The sample whose picture the first question shows."""
        return self.turns[0]


class Items:
    """Samples, tuples of samples (conversations) or a lazy data set, by number.

    Ids and pictures are known without making a sample, so that a plan for a large data set costs
    neither time nor memory.

    Args:
        samples: a sequence of `Sample` and of tuples of them, or a `t4s_helpers.data.Dataset`.

    Raises:
        TaskError: an id that comes twice; the message names it.
    """

    def __init__(self, samples: Sequence):
        self.samples, self.lazy = samples, hasattr(samples, "by_image")
        seen: set[str] = set()
        twice = [i for k in range(len(samples)) for i in self.ids(k) if i in seen or seen.add(i)]
        if twice:
            raise TaskError(
                f"{len(twice)} ids come twice among the samples, {twice[0]!r} for one: each sample "
                "needs an id of its own, else it would be counted twice.")

    def __len__(self) -> int:
        return len(self.samples)

    def ids(self, k: int) -> tuple[str, ...]:
        """Ids of the turns of item ``k``."""
        if self.lazy:
            return (self.samples.id(k),)
        return tuple(sample.id for sample in _turns(self.samples[k]))

    def picture(self, k: int):
        """A key that items about one picture share."""
        return str(self.samples.image(k)) if self.lazy else picture_key(_turns(self.samples[k])[0])

    def dialogue(self, k: int) -> Dialogue:
        """Item ``k`` with its samples."""
        return Dialogue(_turns(self.samples[k]))


def _turns(item) -> tuple:
    if isinstance(item, Dialogue):
        return item.turns
    return tuple(item) if isinstance(item, (tuple, list)) else (item,)


def picture_key(sample):
    """Of a sample: the same for samples of one picture.

    Samples of one photo share its array or its path; two equal arrays would only cost a second pass.
    """
    return id(sample.image) if isinstance(sample.image, np.ndarray) else str(sample.image)


def question_of(sample, protocol: Protocol) -> Question:
    """The fixed wording of a sample's request.

    Raises:
        TaskError: a semantic sample with a label outside the class list.
    """
    if sample.task == "vqa":
        return Question(sample.question + protocol.suffix)
    if sample.task != "semantic":
        asked = ask(sample)
        return Question(asked.question, asked.labels)
    classes = protocol.classes or sample.labels
    stray = [label for label in sample.labels if label not in classes]
    if stray:
        raise TaskError(
            f"Sample '{sample.id}' shows {stray[0]!r}, which is not among the {len(classes)} classes "
            "of the list: give the data set's own list.")
    absent = [name for name in classes if name not in sample.labels]
    asked = ask(sample, mode=protocol.semantic, distractors=absent)
    return Question(asked.question, sample.labels if protocol.semantic == "partial" else classes)


# --- rows ----------------------------------------------------------------------------------------


def row_of(sample, said, reading, protocol: Protocol, refiner=None, seed: int = 0) -> dict:
    """A sample's row: what was asked and said, the prediction, and the counts that scores are made of.

    Args:
        said: `t4s_helpers.decoding.generate.Answer`.
        reading: `t4s_helpers.decoding.generate.Reading` over the labels of `question_of`; None for words.
        refiner: from `t4s_helpers.refine.refiners.load_refiner`; None scores the coarse mask.
        seed: of the refiner's points.

    Returns:
        plain values, fit for JSON. ``intersection``, ``predicted``, ``target`` and ``union`` are
        pixels; ``ceiling`` the first three of the true mask put through the grid and back; ``counts``
        of a class map is class -> intersection, predicted, true, predicted over background; ``rle``
        maps label -> COCO's compressed RLE of the final mask.
    """
    row = {"id": sample.id, "task": sample.task, "split": sample.split, "text": said.text,
           "tokens": said.n_tokens, "finished": said.finished, "seconds": said.seconds}
    if sample.task == "vqa":
        row |= _words_row(sample, said, protocol)
    else:
        start = time.perf_counter()
        build = _map_row if sample.task == "semantic" else _mask_row
        row |= build(sample, reading, protocol, refiner, seed)
        row["after_seconds"] = time.perf_counter() - start
    facts = {key: value for key, value in sample.meta.items()
             if isinstance(value, (str, int, float, bool)) and value == value and key not in row}
    return row | facts


def _words_row(sample, said, protocol: Protocol) -> dict:
    truth = list(sample.meta.get("answers") or [sample.answer])
    rule = protocol.vqa or sample.meta.get("rule") or "exact"
    row = {"question": sample.question, "truth": truth if len(truth) > 1 else truth[0], "rule": rule}
    if truth == [None]:  # a test split whose answers are not public
        return {**row, "score": None}
    return {**row, "score": words_metric(rule).update(said.text, row["truth"])}


def words_metric(rule: str):
    """The metric for answers in words under one of `VQA_RULES`."""
    if rule == "yes-no":
        return YesNoMetric()
    return VQAAccuracy(rule.split("-")[0], normalise="official" if "-" in rule else True)


def _report(report) -> dict:
    return {"malformed": report.malformed, "rejected": report.no_target, "verdict": report.verdict}


def _mask_row(sample, reading, protocol: Protocol, refiner, seed: int) -> dict:
    masks, truth, ignored = reading.masks, sample.masks, _ignored(sample)
    through = grid_to_masks(masks_to_grid(truth, protocol.size), len(truth), sample.size)
    if refiner is not None and masks.any():
        masks = refiner.refine_masks(sample.pixels(), masks, seed=seed)
    pred, truth, through = (some.any(0) & ~ignored for some in (masks, truth, through))
    both, n_pred, n_truth = overlap(pred, truth)
    label = ", ".join(sample.labels)
    return {
        "label": label, "labels": list(sample.labels), **_report(reading.report),
        "intersection": both, "union": n_pred + n_truth - both, "predicted": n_pred,
        "target": n_truth, "ceiling": list(overlap(through, truth)),
        "box": _box(pred), "true_box": _box(truth), "ceiling_box": _box(through), "rle": {label: to_rle(pred)} if n_pred else {},
    }


def _map_row(sample, reading, protocol: Protocol, refiner, seed: int) -> dict:
    classes = list(question_of(sample, protocol).labels)
    names, truth = ["others", *classes], _true_map(sample, classes)
    through = grid_to_masks(masks_to_grid(sample.masks, protocol.size), len(sample.labels), sample.size)
    pred = _class_map(sample, reading, refiner, seed)
    ceiling = _layered(through, [classes.index(label) + 1 for label in sample.labels])
    return {
        "label": ", ".join(sample.labels), "labels": list(sample.labels), "n_classes": len(classes),
        **_report(reading.report), "unknown": dict(reading.report.unknown),
        "counts": _named(class_counts(pred, truth, len(classes), UNSCORED), names),
        "ceiling_counts": _named(class_counts(ceiling, truth, len(classes), UNSCORED), names),
        "rle": {names[k]: to_rle(pred == k) for k in np.unique(pred).tolist() if k},
    }


UNSCORED = 65535
"""Index of pixels of a true class map that are not scored."""


def _true_map(sample, classes: list[str]) -> np.ndarray:
    """Indices into the class list, int32 ``(H, W)``; of masks that overlap, the last counts."""
    truth = _layered(sample.masks, [classes.index(label) + 1 for label in sample.labels])
    stored = sample.meta.get("class_map")  # of data sets whose truth is a map: it knows what is void
    if stored is not None:
        from ..data.semantic import IGNORE

        truth[stored.read() == IGNORE] = UNSCORED
    truth[_ignored(sample)] = UNSCORED
    return truth


def _ignored(sample) -> np.ndarray:
    """bool ``(H, W)``: pixels that count for nothing; ``meta["ignore"]`` of a sample (ReasonSeg)."""
    found = sample.meta.get("ignore")
    if found is None:
        return np.zeros(sample.size, bool)
    found = found.decode() if hasattr(found, "decode") else np.asarray(found)
    return found.astype(bool).reshape(sample.size)


def _layered(masks, indices) -> np.ndarray:
    """Masks as one map of indices, int32 ``(H, W)``; of several at a pixel, the last counts."""
    layers = np.zeros(masks.shape[1:], np.int32)
    for mask, index in zip(masks, indices):
        layers[mask] = index
    return layers


def _class_map(sample, reading, refiner, seed: int) -> np.ndarray:
    """The predicted class map over the asked labels, int32 ``(H, W)``; where refined masks overlap, SAM's
    surest counts, see `t4s_helpers.refine.refiners.merge_masks`."""
    shown = [int(k) for k in np.unique(reading.grid) if k]
    masks = reading.masks[[k - 1 for k in shown]]
    if refiner is None or not len(masks):
        return _layered(masks, shown) if shown else np.zeros(sample.size, np.int32)
    from ..refine.refiners import merge_masks

    result = refiner.set_image(sample.pixels()).refine(masks, seed=seed)
    return np.array([0, *shown], np.int32)[merge_masks(result.masks, result.merge_scores)]


def _named(counts: dict, names: Sequence[str]) -> dict[str, list[int]]:
    columns = zip(*(counts[key] for key in COUNTS))
    return {names[k]: list(column) for k, column in zip(counts["classes"], columns)}


COUNTS = ("intersection", "pred_area", "target_area", "over_background")
"""The numbers of a class in a row's ``counts``, in order; see `t4s_helpers.evaluation.metrics.class_counts`."""


def _box(mask) -> str | None:
    """A mask's box as text, since a table's cells hold no lists."""
    box = mask_to_box(mask)
    return None if box is None else " ".join(map(str, box))


def to_rle(mask: np.ndarray) -> dict:
    """A bool mask ``(H, W)`` as COCO's compressed RLE, with text for its bytes."""
    from pycocotools import mask as coco

    rle = coco.encode(np.asfortranarray(mask, np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def from_rle(rle: dict) -> np.ndarray:
    """The bool mask ``(H, W)`` of `to_rle`.

    >>> mask = np.eye(3, dtype=bool)
    >>> bool((from_rle(to_rle(mask)) == mask).all())
    True
    """
    from pycocotools import mask as coco

    return coco.decode({**rle, "counts": rle["counts"].encode("ascii")}).astype(bool)


def row_masks(row: dict, size: tuple[int, int]) -> np.ndarray:
    """The predicted masks of a row, bool ``(L, H, W)`` in the order of ``row["rle"]``; L may be 0."""
    masks = [from_rle(rle) for rle in row.get("rle", {}).values()]
    return np.array(masks, bool).reshape(-1, *size)
