"""What is asked of a model at evaluation, and how an answer becomes a row of counts.

| task | asked | answer read as | scored by |
|---|---|---|---|
| ``res`` | one expression | mask | cIoU, gIoU, precision, box accuracy |
| ``gres`` | an expression for none, one or many | mask; all "others": rejected | as ``res``, N-acc, T-acc |
| ``rec`` | as ``res`` | the box of the mask | box accuracy |
| ``semantic`` | with a list of classes, without one, or for some | class map | mIoU, pixel accuracy |
| ``instances`` | as ``semantic``, with numbers | objects | PQ, AP |
| ``ores`` | things by a reference, in words or as a mask | as ``gres`` | cIoU, gIoU: text, hybrid, overall |
| ``multi`` | several things, some not there | a mask each; none: rejected | N-acc, T-acc, IoU of each |
| ``correction`` | turns that correct the mask before | as ``gres`` | as ``gres``, gain in IoU |
| ``vqa`` | a question | words | exact match, VQAv2's rule, or yes and no |

Several samples about one picture make a conversation: each is a turn, asked after the model's own
answers to those before, or after the true ones. Every wording is the first of its list
(`t4s_helpers.data.prompts`), so no score depends on chance. A row holds counts, never masks as arrays;
`t4s_helpers.evaluation.scoring` makes tables from rows alone.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
from pycocotools import mask as coco

from ..codec.encodings import Encoding, get_encoding
from ..codec.grid import grid_to_masks, mask_to_box, overlap
from ..data.instances import classes_of, numbered, numbered_grid
from ..data.prompts import SEMANTIC_MODES, SENTENCES, Turn, ask, ask_and_answer, read_absent
from ..data.sample import CLASS_TASKS
from ..data.semantic import VOID_INDEX
from ..decoding.confidence import answer_confidence
from ..refine import Refiner, load_refiner, merge_masks
from .conventions import STRICT, Conventions
from .metrics import VQAAccuracy, YesNoMetric, class_counts

VQA_RULES: dict[str, Callable[[], VQAAccuracy | YesNoMetric]] = {
    "exact": VQAAccuracy, "vqav2": partial(VQAAccuracy, "vqav2"),
    "vqav2-official": partial(VQAAccuracy, "vqav2", normalise="official"), "yes-no": YesNoMetric}
"""How words are scored: the rules' metrics."""

HISTORIES = ("own", *SENTENCES)
"""What a conversation's earlier answers are: the model's own, or the true ones in one of two styles."""

UNSCORED = 65535
"""Index of pixels of a true class map that are not scored."""


class TaskError(ValueError):
    """Samples that cannot be asked or scored as they are; the message names the sample."""


@dataclass(frozen=True)
class Protocol:
    """How samples are asked and scored, fixed before a run.

    Attributes:
        encoding: of the descriptors.
        semantic: one of `t4s_helpers.data.prompts.SEMANTIC_MODES`. ``conditioned`` lists ``classes`` in
            the question (the paper's open-vocabulary protocol, figure 13); ``open`` names none but
            understands them; ``partial`` names those that the picture shows.
        classes: names that answers about classes may use. Indices of class maps count from 1 in this
            order; 0 is "others".
        vqa: one of `VQA_RULES`; empty for the one in each sample's ``meta["rule"]``, else exact match.
        suffix: added to the questions of ``vqa``, such as LLaVA's request for a short answer.
        history: one of `HISTORIES`; the style of true answers should be that of the training.
        conventions: of masks, `t4s_helpers.evaluation.conventions`: how their text is read and refined.
    """

    encoding: Encoding = field(default_factory=get_encoding)
    semantic: str = "conditioned"
    classes: tuple[str, ...] = ()
    vqa: str = ""
    suffix: str = ""
    conventions: Conventions = STRICT
    history: str = "own"

    def __post_init__(self) -> None:
        for what, given, known in (("semantic mode", self.semantic, SEMANTIC_MODES),
                                   ("rule for answers", self.vqa or "exact", VQA_RULES),
                                   ("history", self.history, HISTORIES)):
            if given not in known:
                raise TaskError(f"Unknown {what} {given!r}: choose one of {', '.join(known)}.")

    def plain(self) -> dict[str, Any]:
        """As plain values, fit for JSON; conventions and history where they are not the usual ones."""
        other: dict[str, Any] = {} if self.conventions == STRICT else {"protocol": asdict(self.conventions)}
        other |= {} if self.history == "own" else {"history": self.history}
        return {**other, "encoding": self.encoding.name, "grid_size": list(self.encoding.grid_size),
                "spaced": self.encoding.spaced, "semantic": self.semantic,
                "classes": list(self.classes), "vqa": self.vqa, "suffix": self.suffix}


class Items:
    """Samples, tuples of samples (conversations) or a lazy data set, by number.

    Of a data set nothing is made here: a plan for a large one costs neither time nor memory.

    Args:
        samples: a sequence of `Sample` and of tuples of them, or a `t4s_helpers.data.dataset.Dataset`.

    Attributes:
        ids: of the turns of each item.
        pictures: a key for each item, the same for items about one picture.
        tasks: the tasks among the samples.
        made: the samples, turn by turn, where they are there already; none of a data set.

    Raises:
        TaskError: no samples, an id that comes twice, or turns about pictures of different sizes.
    """

    def __init__(self, samples: Sequence):
        if not len(samples):
            raise TaskError("There are no samples to score: look whether the split or the filter is empty.")
        self.samples, numbers = samples, range(len(samples))
        if hasattr(samples, "by_image"):
            self.made, self.tasks = [], {samples.task}
            self.ids = [[samples.id(k)] for k in numbers]
            self.pictures = [str(samples.image(k)) for k in numbers]
        else:
            talks = [self.turns(k) for k in numbers]
            self.made = [sample for turns in talks for sample in turns]
            self.tasks = {sample.task for sample in self.made}
            self.ids = [[sample.id for sample in turns] for turns in talks]
            self.pictures = [picture_key(turns[0]) for turns in talks]
        (name, times), *_ = Counter(chain(*self.ids)).most_common(1)
        if times > 1:
            raise TaskError(f"The id {name!r} comes {times} times among the samples: each needs one of its "
                            "own, else it would be counted twice.")

    def turns(self, k: int) -> tuple:
        """The samples of item ``k``, the turns of a conversation in order; most items have one."""
        item = self.samples[k]
        turns = tuple(item) if isinstance(item, (tuple, list)) else (item,)
        if len({sample.size for sample in turns}) != 1:
            names = [sample.id for sample in turns]
            raise TaskError(f"The turns {names} of a conversation must be about one picture.")
        return turns


def grouped(things: Iterable, key: Callable[[Any], Hashable]) -> dict[Any, list]:
    """The things by their keys, which stand in the order in which they first come.

    >>> grouped("Ab aB".split(), str.lower)
    {'ab': ['Ab', 'aB']}
    """
    groups: dict[Any, list] = {}
    for one in things:
        groups.setdefault(key(one), []).append(one)
    return groups


def picture_key(sample):
    """A key that samples about one picture, which share its array or its path, have in common."""
    return id(sample.image) if isinstance(sample.image, np.ndarray) else str(sample.image)


def turn_of(sample, protocol: Protocol) -> Turn:
    """A sample's request in its fixed wording, unanswered.

    ``labels`` of the `Turn` are the names that the descriptor may use; none where words are wanted. A
    semantic sample with a label outside the class list is a `TaskError`.
    """
    if sample.task == "vqa":
        return Turn(sample.question + protocol.suffix)
    if sample.task not in CLASS_TASKS:
        turn, wording = ask(sample, encoding=protocol.encoding), protocol.conventions.question
        return replace(turn, question=wording.format(labels=", ".join(turn.labels))) if wording else turn
    classes = protocol.classes or sample.labels
    check_classes(sample, classes)
    absent = [name for name in classes if name not in sample.labels]
    turn = ask(sample, mode=protocol.semantic, distractors=absent)
    if protocol.semantic == "partial":
        return turn
    return replace(turn, labels=numbered(classes) if sample.task == "instances" else tuple(classes))


def answered_turn(sample, text: str, protocol: Protocol) -> Turn:
    """A sample's exchange as the turns behind it have it: with the model's ``text``, or with the truth."""
    true = protocol.history != "own"
    said = ask_and_answer(sample, protocol.encoding, protocol.history).answer if true else (text,)
    return replace(turn_of(sample, protocol), answer=said)


def check_classes(sample, classes: Sequence[str]) -> None:
    """Raise a `TaskError` if a sample shows a label that the class list does not have."""
    stray = [label for label in sample.labels if label not in classes]
    if stray:
        raise TaskError(f"Sample '{sample.id}' shows {stray[0]!r}, which is not among the {len(classes)} "
                        "classes of the list: give the data set's own list.")


def row_of(sample, answer, parsed, protocol: Protocol, refiner: Refiner | None = None, seed: int = 0,
           before: np.ndarray | None = None) -> dict:
    """A sample's row: what was asked and answered, and the counts that scores are made of.

    Args:
        answer: `t4s_helpers.decoding.generate.Answer`.
        parsed: `t4s_helpers.decoding.generate.ParsedAnswer` over the labels of `turn_of`; None for words.
        refiner: from `t4s_helpers.refine.load_refiner`; by default ``none``, the coarse mask.
        seed: of the refiner's points.
        before: of a correction, the mask that it corrects (`mask_before`).

    Returns:
        plain values, fit for JSON. ``intersection``, ``predicted``, ``target`` and ``union`` are in pixels,
        and the first three of the true mask put through the grid and back are ``ceiling``; ``counts`` of
        a class map is class -> the numbers of `t4s_helpers.evaluation.metrics.class_counts`; ``coco_rle``
        is label -> COCO's compressed RLE of the final mask, ``true_rle`` that of the true one (where no
        pixel is left out of the score); boxes are texts, for a table's cells; ``boxes`` are the mask's
        `component_boxes`, ``true_boxes`` (``gres``, where the data set names single objects) the objects'.
        Of ``instances``, ``true_instances`` are the true objects, ``ceiling_rle`` these through the grid, and
        ``confidences`` label -> mean probability of a found object's cells, where the decoder knows it. Of
        ``multi``, ``things`` and ``ceiling_things`` are label -> intersection, predicted and true pixels, and
        ``said_absent`` the labels that the sentence says are not there. ``before``, of a correction, are the
        same three numbers of the mask that it corrects, against the truth of this turn.
    """
    row = {"id": sample.id, "task": sample.task, "split": sample.split, "text": answer.text,
           "tokens": answer.n_tokens, "finished": answer.finished, "seconds": answer.seconds}
    if sample.task == "vqa":
        row |= _words_row(sample, answer, protocol)
    else:
        start = time.perf_counter()
        builds = {"semantic": _map_row, "instances": partial(_instance_row, answer), "multi": _things_row}
        build = builds.get(sample.task, _mask_row)
        row |= {"label": ", ".join(sample.labels), "labels": list(sample.labels),
                **_reading(parsed, protocol.conventions),
                **build(sample, parsed, protocol, refiner or load_refiner("none"), seed)}
        row["after_seconds"] = time.perf_counter() - start
        row |= {} if before is None else {"before": list(overlap(before, sample.masks.any(0)))}
    facts = {key: value for key, value in sample.meta.items()
             if isinstance(value, (str, int, float, bool)) and value == value and key not in row}
    return row | facts


def _reading(parsed, conventions: Conventions) -> dict:
    report = parsed.report
    return {"malformed": report.malformed, "rejected": report.no_target, "verdict": report.verdict,
            "protocol": conventions.name, "malformed_is_rejection": conventions.malformed_is_rejection}


def reread(row: dict, protocol: Protocol) -> dict:
    """A row of a mask as other conventions read its text: the coarse mask, without a model or a picture.

    ``protocol`` has the encoding of the run. A row without its true mask is a `TaskError`.
    """
    if "true_rle" not in row:
        raise TaskError(f"Row '{row.get('id')}' holds no true mask (true_rle) to compare with: it is of an "
                        "older version or leaves pixels out of the score. Score it as it is, or run again.")
    truth = from_rle(row["true_rle"])
    parsed = protocol.conventions.read(row["text"], row["labels"], truth.shape, protocol.encoding)
    return {**row, **_reading(parsed, protocol.conventions),
            **_counted(parsed.masks.any(0), truth, row["label"])}


def _counted(pred: np.ndarray, truth: np.ndarray, label: str) -> dict:
    both, n_pred, n_truth = overlap(pred, truth)
    return {"intersection": both, "union": n_pred + n_truth - both, "predicted": n_pred, "target": n_truth,
            "box": _box(pred), "boxes": component_boxes(pred), "true_box": _box(truth),
            "coco_rle": {label: to_rle(pred)} if n_pred else {}}


def _words_row(sample, answer, protocol: Protocol) -> dict:
    truth = list(sample.meta.get("answers") or [sample.answer])
    rule = protocol.vqa or sample.meta.get("rule") or "exact"
    said = truth if len(truth) > 1 else truth[0]
    public = truth != [None]  # not in some test splits
    return {"question": sample.question, "truth": said, "rule": rule,
            "score": VQA_RULES[rule]().update(answer.text, said) if public else None}


def mask_before(sample, row: dict, protocol: Protocol, refiner: Refiner, seed: int = 0) -> np.ndarray:
    """The mask that the next turn corrects, bool ``(H, W)``.

    Args:
        sample, row: of the turn before. A true history has its true mask, through grid and refiner.
    """
    if protocol.history == "own":
        return row_masks(row, sample.size).any(0)
    return _refined(_through_grid(sample.masks, protocol), sample, refiner, seed).any(0)


def _refined(masks: np.ndarray, sample, refiner: Refiner, seed: int, **refining) -> np.ndarray:
    if not masks.any():  # no reason to look at the picture
        return masks
    return refiner.refine_masks(sample.pixels(), masks, seed=seed, **refining)


def _things_row(sample, parsed, protocol: Protocol, refiner: Refiner, seed: int) -> dict:
    found = _refined(parsed.masks, sample, refiner, seed, **protocol.conventions.refining(parsed))

    def counted(masks: np.ndarray) -> dict[str, list[int]]:
        return {label: list(overlap(*pair)) for label, *pair in zip(sample.labels, masks, sample.masks)}

    return {"things": counted(found), "ceiling_things": counted(_through_grid(sample.masks, protocol)),
            "said_absent": read_absent(parsed.report.before, sample.labels),
            "coco_rle": {label: to_rle(mask) for label, mask in zip(sample.labels, found) if mask.any()}}


def _mask_row(sample, parsed, protocol: Protocol, refiner: Refiner, seed: int) -> dict:
    truth, ignored = sample.masks, _ignored(sample)
    through = _through_grid(truth, protocol)
    masks = _refined(parsed.masks, sample, refiner, seed, **protocol.conventions.refining(parsed))
    pred, truth, through = (some.any(0) & ~ignored for some in (masks, truth, through))
    return {
        **_counted(pred, truth, ", ".join(sample.labels)),
        "ceiling": list(overlap(through, truth)), "ceiling_box": _box(through),
        **({} if ignored.any() else {"true_rle": to_rle(truth)}),
        **({"true_boxes": [_box(one) for one in sample.instances()[0] if one.any()]}
           if sample.task == "gres" and "ann_ids" in sample.meta else {}),
    }


def component_boxes(mask: np.ndarray) -> list[str]:
    """The boxes of a mask's connected components (also by corners), as texts ``x0 y0 x1 y1``.

    They stand for single objects where GREC asks for a set of boxes. A mask does not tell objects apart: one
    box of the whole mask could never be right about two of them, while components are right wherever objects
    lie apart. Objects that touch give one box, one that is cut in two gives two, and a speck is a box:
    leaving small ones out would be a threshold to tune.

    >>> component_boxes(np.array([[1, 1, 0, 0], [0, 0, 0, 1]], bool))
    ['0 0 2 1', '3 1 4 2']
    """
    from scipy.ndimage import find_objects, label

    return [f"{x.start} {y.start} {x.stop} {y.stop}"
            for y, x in find_objects(label(mask, np.ones((3, 3)))[0])]


def _map_row(sample, parsed, protocol: Protocol, refiner: Refiner, seed: int) -> dict:
    classes = list(turn_of(sample, protocol).labels)
    names, indices = ["others", *classes], [classes.index(label) + 1 for label in sample.labels]
    truth = _layered(sample.masks, indices)
    stored = sample.meta.get("class_map")  # of data sets whose truth is a map: it knows what is void
    if stored is not None:
        truth[stored.read() == VOID_INDEX] = UNSCORED
    truth[_ignored(sample)] = UNSCORED
    pred = _class_map(sample, parsed, refiner, seed)
    ceiling = _layered(_through_grid(sample.masks, protocol), indices)
    return {
        "n_classes": len(classes), "unknown": dict(parsed.report.unknown),
        **{key: {names[k]: row for k, row in class_counts(some, truth, len(classes), UNSCORED).items()}
           for key, some in (("counts", pred), ("ceiling_counts", ceiling))},
        "coco_rle": {names[k]: to_rle(pred == k) for k in np.unique(pred).tolist() if k},
    }


def _instance_row(answer, sample, parsed, protocol: Protocol, refiner: Refiner, seed: int) -> dict:
    """What has a number is an object; classes by their names alone are neither found nor missed."""
    labels = turn_of(sample, protocol).labels
    classes = classes_of(labels)
    single = {k: label for k, label in enumerate(labels, 1) if label not in classes}
    layers, sure = _class_map(sample, parsed, refiner, seed), {}
    found = {single[k]: to_rle(layers == k) for k in np.unique(layers).tolist() if k in single}
    if answer.grammar is not None and parsed.report.ok:
        probs = answer_confidence(answer, parsed).probs
        sure = {label: float(probs[k][parsed.grid == k].mean())
                for k, label in single.items() if label in found}
    grid = numbered_grid(sample, classes, protocol.encoding)
    through, (masks, owners) = grid_to_masks(grid, len(labels), sample.size), sample.instances()
    ceiling = {single[k]: to_rle(through[k - 1]) for k in np.unique(grid).tolist() if k in single}
    return {"coco_rle": found, "confidences": sure, "ceiling_rle": ceiling,
            "true_instances": [{"label": sample.labels[owner], "rle": to_rle(mask), "crowd": bool(crowd)}
                               for mask, owner, crowd in zip(masks, owners, sample.crowds(), strict=True)
                               if mask.any()]}


def _class_map(sample, parsed, refiner: Refiner, seed: int) -> np.ndarray:
    """The predicted class map over the asked labels, int32 ``(H, W)``.

    Where refined masks overlap, the better score counts, see `t4s_helpers.refine.merge_masks`.
    """
    shown = (np.flatnonzero(parsed.masks.any((1, 2))) + 1).tolist()
    if not shown:
        return np.zeros(sample.size, np.int32)
    masks = parsed.masks[[k - 1 for k in shown]]
    result = refiner.set_image(sample.pixels()).refine(masks, seed=seed)
    return np.array([0, *shown], np.int32)[merge_masks(result.masks, result.merge_scores)]


def _through_grid(masks: np.ndarray, protocol: Protocol) -> np.ndarray:
    """Masks as a perfect model would give them back without a refiner, bool ``(L, H, W)``."""
    grid = protocol.encoding.from_masks(masks)
    return protocol.encoding.to_masks(grid, len(masks), masks.shape[1:])


def _ignored(sample) -> np.ndarray:
    """bool ``(H, W)``: pixels that count for nothing; ``meta["ignore"]`` of a sample (ReasonSeg)."""
    found = sample.meta.get("ignore", np.zeros(sample.size, bool))
    found = found.decode() if hasattr(found, "decode") else np.asarray(found)
    return found.astype(bool).reshape(sample.size)


def _layered(masks: np.ndarray, indices: Sequence[int]) -> np.ndarray:
    """Masks as one map of indices, int32 ``(H, W)``; of several at a pixel, the last counts."""
    layers = np.zeros(masks.shape[1:], np.int32)
    for mask, index in zip(masks, indices):
        layers[mask] = index
    return layers


def _box(mask: np.ndarray) -> str | None:
    return " ".join(map(str, mask_to_box(mask) or ())) or None


def to_rle(mask: np.ndarray) -> dict:
    """A bool mask ``(H, W)`` as COCO's compressed RLE, with text for its bytes."""
    rle = coco.encode(np.asfortranarray(mask, np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def from_rle(rle: dict) -> np.ndarray:
    """The bool mask ``(H, W)`` of `to_rle`.

    >>> mask = np.eye(3, dtype=bool)
    >>> bool((from_rle(to_rle(mask)) == mask).all())
    True
    """
    return coco.decode({**rle, "counts": rle["counts"].encode("ascii")}).astype(bool)


def row_masks(row: dict, size: tuple[int, int]) -> np.ndarray:
    """The predicted masks of a row, bool ``(L, H, W)`` in the order of ``row["coco_rle"]``; L may be 0."""
    masks = [from_rle(rle) for rle in row.get("coco_rle", {}).values()]
    return np.array(masks, bool).reshape(-1, *size)
