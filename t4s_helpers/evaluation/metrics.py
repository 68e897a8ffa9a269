"""Scores: what one sample is worth, and how the number of a data set is made of its samples.

Every metric works the same way: ``update(...)`` scores one sample, ``compute()`` gives one flat
dictionary, ``len(metric)`` is the number of samples. Each ``update`` also takes ``sample_id``, a name
that may be scored once only, and ``malformed``: the response did not keep to the format
(``ParseReport.malformed``). Counts are integers and means are summed exactly (``math.fsum``), so the
order of the samples changes no digit. All scores are fractions in [0, 1]; multiply by 100 for the paper's
tables. NumPy is needed, for GREC SciPy, and for single objects pycocotools too.

| metric | a sample is | keys of ``compute()`` |
|---|---|---|
| ``SegmentationMetric`` | an expression, two masks | ciou, giou, p@0.5 … p@0.9, n_acc, t_acc |
| ``BoxMetric`` | an expression, two boxes | acc50, box_iou |
| ``GrecMetric`` | an expression, two sets of boxes | grec, n_acc |
| ``MeanIoU`` | an image, two class maps | miou, pixel_acc |
| ``InstanceMetric`` | an image, two lists of objects | pq, sq, rq, ap, ap50, ap75 |
| ``VQAAccuracy`` | a question, its answers | accuracy |
| ``YesNoMetric`` | a yes-no question | accuracy, precision, recall, f1, yes_ratio |
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from itertools import chain, count
from typing import Any, NamedTuple

import numpy as np

from ..codec.grid import box_iou, mask_to_box, overlap

PRECISION_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


class MetricError(ValueError):
    """A sample that cannot be scored; nothing was added to the metric."""


def _mean(values: Iterable[float]) -> float:
    """Exact mean, independent of the order; NaN of nothing."""
    values = list(values)
    return math.fsum(values) / len(values) if values else math.nan


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else math.nan


class _Metric:
    """Scored samples by name; subclasses write ``update`` and ``_scores``."""

    def __init__(self) -> None:
        self._samples: dict[str | int, Any] = {}  # id, or number without one: what `_scores` needs
        self._n_malformed = 0

    def __len__(self) -> int:
        return len(self._samples)

    def _append(self, sample: Any, sample_id: str | None = None, malformed: bool = False) -> None:
        """Add one sample, after everything that can be refused was refused."""
        key = len(self) if sample_id is None else str(sample_id)
        if key in self._samples:
            raise MetricError(f"Sample '{key}' was scored already: leave it out or give it its own id.")
        self._samples[key] = sample
        self._n_malformed += bool(malformed)

    def _columns(self) -> np.ndarray:
        """The parts of all samples, float64 ``(parts, N)``."""
        return np.array(list(self._samples.values()), float).T

    def compute(self) -> dict[str, float]:
        """The scores of all samples, see the class; no sample at all is a `MetricError`."""
        if not len(self):
            raise MetricError(f"{type(self).__name__} has scored no sample: is the split or filter empty?")
        bad = self._n_malformed
        return {**self._scores(), "n": len(self), "n_malformed": bad, "malformed_rate": bad / len(self)}


class SegmentationMetric(_Metric):
    """Scores of referring segmentation, with and without targets (RES, GRES).

    ``compute()`` gives

    - ``ciou`` = sum of intersections / sum of unions over the dataset (large objects weigh more);
    - ``giou`` = mean over samples of their IoU (each sample weighs the same);
    - ``p@0.5`` … ``p@0.9`` = share of the samples *with* target whose IoU reaches (>=) that value;
    - ``n_acc`` = share of no-target samples predicted empty; ``t_acc`` = of the others, predicted non-empty;
    - ``n``, ``n_target``, ``n_no_target``, ``n_malformed``, ``malformed_rate``.

    | truth | prediction | IoU of the sample | adds to sum I | adds to sum U |
    |---|---|---|---|---|
    | target | mask | I / U | I | U |
    | target | empty | 0 | 0 | area of the target |
    | none | empty | 1 | 0 | 0 |
    | none | mask | 0 | 0 | area of the prediction |

    A malformed response is not a rejection: without a target it earns nothing, whatever mask was salvaged
    from it; with one, the salvaged mask is scored like any other. Evaluators that swallow malformed
    responses credit them as "no target"; ``malformed_is_rejection=True`` does so too, for comparison with
    published numbers. A rate over no sample of its kind is NaN, as is ``ciou`` without any union.

    Source: Text4Seg, Sec. 4 and tables 1-2; GRES (Liu et al., CVPR 2023), metrics of gRefCOCO.

    >>> metric, empty = SegmentationMetric(), np.array([[False, False]])
    >>> metric.update(~empty, np.array([[False, True]])), metric.update(empty, empty)
    (0.5, 1.0)
    >>> {k: v for k, v in metric.compute().items() if k in ("ciou", "giou", "n_acc")}
    {'ciou': 0.5, 'giou': 0.75, 'n_acc': 1.0}
    """

    def __init__(self, *, malformed_is_rejection: bool = False) -> None:
        super().__init__()
        self.malformed_is_rejection = bool(malformed_is_rejection)

    def update(self, pred: np.ndarray, target: np.ndarray, **about: Any) -> float:
        """Score one sample and return its IoU, as defined in the class.

        Args:
            pred, target: bool ``(H, W)`` of the same shape, else `ValueError`; an all-false target means
                "no target".
        """
        return self.update_counts(*overlap(pred, target), **about)

    def update_counts(self, intersection: int, pred_area: int, target_area: int, *,
                      malformed: bool = False, **about: Any) -> float:
        """`update` from pixel counts, for tables made again from stored rows without masks."""
        given = (intersection, pred_area, target_area)
        both, n_pred, n_target = map(int, given)
        if (both, n_pred, n_target) != given or not 0 <= both <= min(n_pred, n_target):
            raise MetricError(
                f"Pixel counts must be whole, not negative, and the intersection no larger than a mask: got "
                f"{intersection} of {pred_area} predicted and {target_area} true pixels.")
        union = n_pred + n_target - both
        rejected = n_pred == 0 and (self.malformed_is_rejection or not malformed)
        iou = both / union if n_target else float(rejected)
        self._append((both, union, iou, n_target, n_pred, rejected), malformed=malformed, **about)
        return iou

    def _scores(self) -> dict[str, float]:
        both, union, iou, n_target, n_pred, rejected = self._columns()
        there = n_target > 0
        return {
            "ciou": _ratio(both.sum(), union.sum()),
            "giou": _mean(iou),
            **{f"p@{t:g}": _mean(iou[there] >= t) for t in PRECISION_THRESHOLDS},
            "n_acc": _mean(rejected[~there]), "t_acc": _mean(n_pred[there] > 0),
            "n_target": int(there.sum()), "n_no_target": int((~there).sum()),
        }

    def interval(self, name: str = "ciou", **options: Any) -> Interval:
        """Interval of ``ciou`` or ``giou`` by `bootstrap`, with its options.

        ``groups`` has one entry a sample, in the order scored, which changes nothing where all have ids.
        """
        if name not in ("ciou", "giou"):
            raise MetricError(f"Intervals exist for 'ciou' and 'giou', not for '{name}'.")
        keys = list(self._samples)
        order = sorted(range(len(keys)), key=lambda i: (isinstance(keys[i], int), keys[i]))
        if (groups := options.get("groups")) is not None:
            _check_length(groups, len(self), "groups")
            options["groups"] = [groups[i] for i in order]
        table = np.array([self._samples[keys[i]][:3] for i in order], float)
        both, union, iou = table.reshape(-1, 3).T
        return bootstrap(iou, **options) if name == "giou" else bootstrap(both, union, **options)


class BoxMetric(_Metric):
    """Scores of referring comprehension (REC): is the box of the predicted mask the right one?

    ``compute()`` gives ``acc50``, the share of samples whose box IoU is *above* 0.5 (not equal), one
    more ``accNN`` for every other threshold asked for, ``box_iou``, the mean box IoU, and ``n``,
    ``n_no_box`` (nothing was predicted: counts as wrong), ``n_malformed`` and ``malformed_rate``. Boxes
    are half-open ``(x0, y0, x1, y1)`` in pixels. Source: Text4Seg, Sec. 4.2 and the Acc@0.5 columns.
    """

    def __init__(self, thresholds: Sequence[float] = (0.5,)) -> None:
        super().__init__()
        self.thresholds = tuple(float(t) for t in thresholds)
        if not self.thresholds or not all(0 <= t < 1 for t in self.thresholds):
            raise MetricError(f"Box thresholds must lie in [0, 1), got {self.thresholds}.")

    def update(self, pred: np.ndarray | Sequence[float] | None, target: np.ndarray | Sequence[float],
               **about: Any) -> float:
        """Score one sample and return its box IoU in [0, 1].

        Args:
            pred: a box, a bool mask ``(H, W)`` (its box is taken), or ``None`` or an empty mask for no
                prediction.
            target: the annotated box, or a bool mask ``(H, W)`` with at least one pixel. A bad mask or
                box, masks of different sizes and a missing target are a `ValueError`.
        """
        masks = [mask for mask in (pred, target) if np.ndim(mask) == 2]
        if masks:
            overlap(masks[0], masks[-1])  # for its checks: a mask of another size has a box elsewhere
        pred_box, target_box = (mask_to_box(a) if np.ndim(a) == 2 else a for a in (pred, target))
        if target_box is None:
            raise MetricError("The true box is missing (empty mask or None): score samples without a target "
                              "with SegmentationMetric.")
        iou = box_iou(pred_box, target_box)
        self._append((iou, pred_box is None), **about)
        return iou

    def _scores(self) -> dict[str, float]:
        iou, no_box = self._columns()
        return {**{f"acc{100 * t:g}": _mean(iou > t) for t in self.thresholds},
                "box_iou": _mean(iou), "n_no_box": int(no_box.sum())}


class GrecMetric(_Metric):
    """Scores of generalised comprehension (GREC): are all boxes right, and none too many?

    ``compute()`` gives ``grec``, the share of samples with an F1 of 1 at IoU >= 0.5: predicted and true boxes
    pair off one to one, each pair with at least that IoU; without a target, nothing is predicted and the
    response is not malformed. ``n_acc`` is that share of the samples without a target (NaN: none). Source:
    GREC (He et al., 2023), Pr@(F1=1, IoU>=0.5); its published code pairs greedily and by generalised IoU,
    which is never larger.
    """

    def update(self, pred: Sequence, target: Sequence, *, malformed: bool = False, **about: Any) -> float:
        """Score one sample, two lists of boxes ``(x0, y0, x1, y1)`` that may be empty; returns 1 or 0."""
        from scipy.optimize import linear_sum_assignment

        right = len(pred) == len(target)
        if right and target:
            near = np.array([[box_iou(p, t) >= 0.5 for t in target] for p in pred])
            right = bool(near[linear_sum_assignment(near, maximize=True)].all())
        elif right:
            right = not malformed
        self._append((right, len(target)), malformed=malformed, **about)
        return float(right)

    def _scores(self) -> dict[str, float]:
        right, n_target = self._columns()
        return {"grec": _mean(right), "n_acc": _mean(right[n_target == 0])}


BACKGROUND = ("class", "not_averaged", "ignored")
ABSENT = ("skip", "skip_no_truth", "zero", "one")


def class_counts(pred: np.ndarray, target: np.ndarray, n_classes: int,
                 ignore_index: int | None = None) -> dict[int, list[int]]:
    """Pixel counts of an image by class, from which every convention of `MeanIoU` follows.

    Maps are integers ``(H, W)`` in 0 … ``n_classes``, 0 is background. Pixels whose truth is
    ``ignore_index`` are not counted. Each class that either map shows has its intersection, predicted area,
    true area, and predicted pixels whose truth is background.

    >>> class_counts(np.array([[1, 1, 0]]), np.array([[1, 0, 2]]), 2)
    {0: [0, 1, 1, 0], 1: [1, 2, 1, 1], 2: [0, 0, 1, 0]}
    """
    counted = np.ones(target.shape, bool) if ignore_index is None else target != ignore_index
    p, t = pred[counted].astype(np.int64), target[counted].astype(np.int64)
    counts = np.array([np.bincount(part, minlength=n_classes + 1) for part in (t[t == p], p, t, p[t == 0])])
    return {k: counts[:, k].tolist() for k in np.flatnonzero(counts.any(axis=0)).tolist()}


class MeanIoU(_Metric):
    """Mean over classes of their IoU on the whole dataset (mIoU), with explicit conventions.

    In class maps, integers ``(H, W)``, 0 is background ("others") and ``k`` is ``classes[k-1]``. Published
    tables differ in two conventions, so neither has a default:

    - ``background``, what a true 0 means: ``"class"``, one more class in the mean;
      ``"not_averaged"``, no term of its own, but a class predicted there is a false positive;
      ``"ignored"``, those pixels are left out (as for ADE20K-150, PASCAL Context-59 and VOC-20, whose
      lists have no background class).
    - ``absent``, a class that no image shows: ``"skip"`` leaves it out when it is in neither truth nor
      prediction; ``"skip_no_truth"`` also when it was predicted (false positives go unpunished);
      ``"zero"`` and ``"one"`` count it with that value where ``"skip"`` would leave it out.

    Pixels whose truth is ``ignore_index`` (255, say; ``None``: no such value) are left out always.
    ``compute()`` gives ``miou`` (NaN when no class is left to average), ``pixel_acc`` (share of the
    counted pixels with the right class, NaN when there is none), ``n_averaged`` (terms in the mean),
    ``n``, ``n_malformed``, ``malformed_rate``.
    """

    def __init__(self, classes: int | Sequence[str], *, background: str, absent: str,
                 ignore_index: int | None = None) -> None:
        super().__init__()
        names = range(classes) if isinstance(classes, int) else classes
        self.n_classes = len(names)
        if not names or len(set(names)) < len(names):
            raise MetricError("MeanIoU needs a class list with at least one name, and no name twice.")
        if background not in BACKGROUND or absent not in ABSENT:
            raise MetricError(f"background must be one of {BACKGROUND} and absent one of {ABSENT}, got "
                              f"{background!r} and {absent!r}.")
        if ignore_index is not None and 0 <= ignore_index <= self.n_classes:
            raise MetricError(f"ignore_index {ignore_index} is the index of a class: use one above "
                              f"{self.n_classes} or below 0.")
        self.background, self.absent, self.ignore_index = background, absent, ignore_index
        # Intersection, predicted and true pixels of background and classes, over all samples.
        self._totals = np.zeros((3, self.n_classes + 1), np.int64)

    def update(self, pred: np.ndarray, target: np.ndarray, **about: Any) -> float:
        """Score one image and return its own mean IoU over the classes it shows (NaN: none).

        Class maps of different shapes, and values that are no class (but in ``target`` the
        ``ignore_index``), are a `MetricError`.
        """
        pred, target = self._check_map(pred, "predicted"), self._check_map(target, "true")
        if pred.shape != target.shape:
            raise MetricError(f"The predicted class map is {pred.shape} (height, width), the true one "
                              f"{target.shape}: resize the prediction.")
        return self.update_counts(class_counts(pred, target, self.n_classes, self.ignore_index), **about)

    def update_counts(self, counts: Mapping[int, Sequence[int]], **about: Any) -> float:
        """`update` from the counts of `class_counts`, for tables made again under any convention.

        A class outside the list and counts that no two maps give are a `MetricError`.
        """
        at = np.array(list(counts), np.int64)
        if (at < 0).any() or (at > self.n_classes).any():
            raise MetricError(f"The classes {at.tolist()} are not all from 0 to {self.n_classes}: score "
                              "an image with its own class list.")
        both, pred, target, over = np.array(list(counts.values()), np.int64).reshape(len(at), 4).T
        if ((both < 0) | (over < 0) | (both > np.minimum(pred, target)) | (over > pred)).any():
            raise MetricError("Counts that no two class maps give: a part is larger than the whole.")
        if self.background == "ignored":
            pred, keep = pred - over, at > 0
            both, target = both * keep, target * keep
        averaged = (pred + target > 0) & ((at > 0) | (self.background == "class"))
        iou = _mean((both / np.maximum(pred + target - both, 1))[averaged])
        self._append(iou, **about)
        self._totals[:, at] += both, pred, target
        return iou

    def _check_map(self, values: np.ndarray, name: str) -> np.ndarray:
        values = np.asarray(values)
        if values.ndim != 2 or not np.issubdtype(values.dtype, np.integer):
            raise MetricError(f"The {name} class map must be integers (height, width), not {values.dtype} "
                              f"of shape {values.shape}.")
        outside = (values < 0) | (values > self.n_classes)
        if name == "true" and self.ignore_index is not None:
            outside &= values != self.ignore_index
        if outside.any():
            raise MetricError(f"The {name} class map holds the index {values[outside][0]}, but the list "
                              f"ends at {self.n_classes} (ignore_index: {self.ignore_index}).")
        return values

    def _scores(self) -> dict[str, float]:
        both, pred, target = self._totals
        union = pred + target - both
        shown = target > 0 if self.absent == "skip_no_truth" else union > 0
        ious = both / np.maximum(union, 1)
        if self.absent in ("zero", "one"):
            ious[~shown] = self.absent == "one"
            shown[:] = True
        if self.background != "class":
            shown[0] = False
        return {"miou": _mean(ious[shown]), "pixel_acc": _ratio(both.sum(), target.sum()),
                "n_averaged": int(shown.sum())}


class Instance(NamedTuple):
    """One object of an image, a found or a true one.

    Attributes:
        label: its class.
        rle: its mask as COCO's compressed RLE, ``{"size": [H, W], "counts": ...}``.
        score: confidence in a found one, in [0, 1].
        crowd: of a true one, whether it is a region of several that were not told apart.
    """

    label: str
    rle: Mapping[str, Any]
    score: float = 1.0
    crowd: bool = False


class InstanceMetric(_Metric):
    """Scores of single objects: panoptic quality of matched ones (PQ), and COCO's average precision (AP).

    In each image, found and true objects of a class make pairs, one to one, where their IoU is *above* 0.5.
    With TP pairs, FP found and FN true objects without a partner, each over the whole data set, a class has

    - ``sq``, the mean IoU of its pairs (0 without a pair); ``rq`` = TP / (TP + FP / 2 + FN / 2);
    - ``pq`` = ``sq`` * ``rq``.

    ``compute()`` gives their means over the classes of which anything was found or there (`by_class` has
    each); ``ap``, ``ap50``, ``ap75`` (IoU from 0.5 to 0.95 in steps of 0.05; 0.5; 0.75); ``n_found``,
    ``n_true``, ``n_pairs``, ``n``, ``n_malformed``, ``malformed_rate``. A mean over nothing is NaN.

    A crowd is neither matched nor missed, and what lies by more than half in crowds of its class is not
    counted as found. AP takes found objects by falling score; of equal scores, as of answers without a
    confidence, those of the first ids come first, and AP says little.

    Source: PQ: Kirillov et al., CVPR 2019, section 4; as masks may overlap here, pairs are those of the
    greatest sum of IoUs. AP: COCO (Lin et al., 2014), by pycocotools.
    """

    def update(self, found: Sequence[Instance], true: Sequence[Instance], **about: Any) -> float:
        """Score one image and return its own PQ (NaN: nothing found or there)."""
        sizes = {tuple(one.rle["size"]) for one in (*found, *true)}
        if len(sizes) > 1:
            raise MetricError(f"The masks of an image have the sizes (height, width) {sorted(sizes)}: resize "
                              "the found ones to the image.")
        matched = {label: _pair_off([one for one in found if one.label == label],
                                    [one for one in true if one.label == label])
                   for label in {one.label for one in (*found, *true)}}
        self._append((matched, tuple(found), tuple(true)), **about)
        return _mean(row["pq"] for row in _qualities([matched]))

    def by_class(self) -> list[dict[str, Any]]:
        """A row for each class: ``label``, ``pq``, ``sq``, ``rq``, ``n_found``, ``n_true``, ``n_pairs``."""
        return _qualities([matched for matched, _, _ in self._samples.values()])

    def _scores(self) -> dict[str, float]:
        rows = self.by_class()
        return {**{key: _mean(row[key] for row in rows) for key in ("pq", "sq", "rq")},
                **dict(zip(("ap", "ap50", "ap75"), self._precisions())),
                **{key: sum(row[key] for row in rows) for key in ("n_found", "n_true", "n_pairs")}}

    def _precisions(self) -> list[float]:
        """AP over all thresholds, at 0.5 and at 0.75."""
        from pycocotools import mask as coco
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        images = [self._samples[key][1:] for key in sorted(self._samples, key=str)]
        labels = sorted({one.label for one in chain.from_iterable(chain(*images))})
        if not labels:
            return [math.nan] * 3
        found, true = COCO(), COCO()
        with redirect_stdout(StringIO()):  # pycocotools prints as it goes
            for index, side in zip((found, true), zip(*images)):
                ids = count(1)  # to COCOeval, 0 is no object
                index.dataset = {
                    "images": [{"id": k, "height": 0, "width": 0} for k in range(len(images))],
                    "categories": [{"id": k, "name": label} for k, label in enumerate(labels)],
                    "annotations": [
                        {"id": next(ids), "image_id": k, "category_id": labels.index(one.label),
                         "segmentation": one.rle, "area": float(coco.area(one.rle)), "score": one.score,
                         "iscrowd": int(one.crowd)} for k, image in enumerate(side) for one in image]}
                index.createIndex()
            judge = COCOeval(true, found, "segm")
            judge.evaluate()
            judge.accumulate()
            judge.summarize()
        return [math.nan if value < 0 else float(value) for value in judge.stats[:3]]


def _pair_off(found: Sequence[Instance], true: Sequence[Instance]) -> tuple[list[float], int, int]:
    """IoUs of an image's pairs of one class, and numbers of the found and the true objects that count."""
    from pycocotools import mask as coco
    from scipy.optimize import linear_sum_assignment

    rles, single = [one.rle for one in found], [one.rle for one in true if not one.crowd]
    crowds = [one.rle for one in true if one.crowd]
    iou = np.reshape(coco.iou(rles, single, [0] * len(single)), (len(found), len(single)))
    iou = np.where(iou > 0.5, iou, 0)
    pairs = [pair for pair in zip(*linear_sum_assignment(iou, maximize=True)) if iou[pair]]
    # Of a crowd, pycocotools gives the share of the found object that lies in it.
    inside = np.reshape(coco.iou(rles, crowds, [1] * len(crowds)), (len(found), len(crowds))).sum(1)
    inside[[k for k, _ in pairs]] = 0
    return [float(iou[pair]) for pair in pairs], int((inside <= 0.5).sum()), len(single)


def _qualities(images: Sequence[Mapping[str, tuple[list[float], int, int]]]) -> list[dict[str, Any]]:
    """`InstanceMetric.by_class` of what `_pair_off` found in images, by class."""
    rows = []
    for label in sorted(set(chain(*images))):
        ious, n_found, n_true = zip(*(image[label] for image in images if label in image))
        pairs, all_found, all_true = list(chain(*ious)), sum(n_found), sum(n_true)
        if all_found + all_true:
            sq, rq = _mean(pairs or [0.0]), 2 * len(pairs) / (all_found + all_true)
            rows.append({"label": label, "pq": sq * rq, "sq": sq, "rq": rq, "n_found": all_found,
                         "n_true": all_true, "n_pairs": len(pairs)})
    return rows


_NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(
    "zero one two three four five six seven eight nine ten".split())}
_ARTICLES = {"a", "an", "the"}
_MARKS = ';/[]"{}()=+\\_-><@`,?!'

# What people type without the apostrophe, but for words of their own (its, were, well, ill, shell, hell,
# id, wed, shed, lets), which stay as they are.
_CONTRACTIONS = {
    word.replace("'", ""): word for word in (
        "ain't aren't can't couldn't didn't doesn't don't hadn't hasn't haven't isn't mightn't "
        "mustn't needn't oughtn't shan't shouldn't wasn't weren't won't wouldn't "
        "could've might've must've should've would've i've they've we've what've you've "
        "he's here's how's she's somebody's someone's something's that's there's what's when's "
        "where's who's why's he'd how'd it'd somebody'd someone'd that'd there'd they'd where'd "
        "who'd you'd how'll it'll that'll they'll what'll who'll you'll there're they're what're "
        "why're you're i'm ma'am o'clock 'twas y'all"
    ).split()
}


def normalise_answer(text: str) -> str:
    """An answer as the VQA benchmarks compare it.

    Punctuation becomes nothing where the text has it beside a space or has a comma between digits,
    else a space; full stops go unless a digit follows; the text is lower-cased; number words up to ten
    become digits; articles go; contractions get their apostrophe.

    Source: the rules published with VQA (Antol et al., 2015) at visualqa.org/evaluation; the list of
    contractions is our own and shorter.

    >>> normalise_answer("The  Two dogs."), normalise_answer("1,000"), normalise_answer("isnt")
    ('2 dogs', '1000', "isn't")
    """
    words = [_NUMBERS.get(word, word) for word in _without_marks(_one_line(text)).lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _one_line(text: str) -> str:
    if not isinstance(text, str):
        raise MetricError(f"An answer must be text, got {type(text).__name__}.")
    return text.replace("\n", " ").replace("\t", " ").strip()


def _without_marks(text: str) -> str:
    """Punctuation to nothing or to a space, and full stops that no digit follows to nothing."""
    joined, out = re.search(r"\d,\d", text), text
    for mark in _MARKS:
        out = out.replace(mark, "" if joined or f"{mark} " in text or f" {mark}" in text else " ")
    return re.sub(r"\.(?!\d)", "", out)


def yes_or_no(text: str) -> str:
    """``"no"`` if an answer has "no" or "not" before its first full stop, else ``"yes"``.

    Source: the evaluation of POPE (Li et al., 2023), whose rule this is.

    >>> yes_or_no("No, there is none."), yes_or_no("There is not."), yes_or_no("Yes. Not far.")
    ('no', 'no', 'yes')
    """
    words = _one_line(text).split(".")[0].replace(",", " ").lower().split()
    return "no" if {"no", "not"} & set(words) else "yes"


class YesNoMetric(_Metric):
    """Scores of yes-no questions (POPE); "yes" is the positive class.

    ``compute()`` gives ``accuracy``, ``precision``, ``recall``, ``f1``, ``yes_ratio`` (share of the
    questions answered with yes), and the counts. Precision without a yes, recall without a true yes,
    and F1 without either are NaN. Answers are read by `yes_or_no`.

    Source: POPE (Li et al., EMNLP 2023). Its published numbers are means over three ways to choose
    absent objects: score each of them alone.

    >>> metric = YesNoMetric()
    >>> [metric.update(said, true) for said, true in (("Yes.", "yes"), ("yes", "no"), ("No", "no"))]
    [1.0, 0.0, 1.0]
    >>> {key: round(value, 2) for key, value in metric.compute().items() if key in ("f1", "yes_ratio")}
    {'f1': 0.67, 'yes_ratio': 0.67}
    """

    def update(self, prediction: str, answer: str, **about: Any) -> float:
        """Score one question and return 1 or 0; a true answer must be yes or no, else `MetricError`."""
        truth = _one_line(answer).lower()
        if truth not in ("yes", "no"):
            raise MetricError(f"The true answer of a yes-no question must be yes or no, got {answer!r}.")
        said = yes_or_no(prediction)
        self._append((said == "yes", truth == "yes"), **about)
        return float(said == truth)

    def _scores(self) -> dict[str, float]:
        said, true = self._columns()
        hits, n_said, n_true = (said * true).sum(), said.sum(), true.sum()
        return {"accuracy": _mean(said == true), "precision": _ratio(hits, n_said),
                "recall": _ratio(hits, n_true), "f1": _ratio(2 * hits, n_said + n_true),
                "yes_ratio": _mean(said)}


class VQAAccuracy(_Metric):
    """Share of questions answered right, by one of two rules.

    - ``rule="exact"``: 1 when the prediction equals one of the true answers (GQA, ScienceQA, the
      workbook's own scenes);
    - ``rule="vqav2"``: the consensus rule for several (usually ten) human answers: leave each annotator
      out in turn, score min(matches among the others / 3, 1), and average (VQAv2, VisWiz, TextVQA).
      With ten annotators, 1, 2, 3, 4+ matches score 0.3, 0.6, 0.9, 1.

    ``normalise`` says what is compared: raw text (``False``), both sides after `normalise_answer`
    (``True``), or ``"official"``, as the official VQAv2 evaluation does: where all annotators gave the same
    string, only line breaks and outer blanks of the prediction go; elsewhere the prediction is normalised,
    and of the true answers the punctuation.

    ``compute()`` gives ``accuracy``, ``n``, ``n_malformed``, ``malformed_rate``. A malformed response
    is scored by its text, and counted.

    Source: VQA (Antol et al., 2015); VQAv2 (Goyal et al., 2017).

    >>> VQAAccuracy("vqav2").update("Two.", ["2"] * 2 + ["3"] * 8)
    0.6
    """

    def __init__(self, rule: str = "exact", *, normalise: bool | str = True) -> None:
        super().__init__()
        if rule not in ("exact", "vqav2"):
            raise MetricError(f"The rule of VQAAccuracy is 'exact' or 'vqav2', got {rule!r}.")
        if normalise not in (True, False, "official"):
            raise MetricError(f"normalise is True, False or 'official', got {normalise!r}.")
        self.rule, self.normalise = rule, normalise

    def update(self, prediction: str, answers: str | Sequence[str], **about: Any) -> float:
        """Score one question (0 … 1), given the true answer or, for VQAv2, all annotators' answers."""
        answers = [answers] if isinstance(answers, str) else list(answers)
        if len(answers) < (2 if self.rule == "vqav2" else 1):
            raise MetricError(f"The rule '{self.rule}' was given {len(answers)} true answer(s) for the "
                              f"prediction {prediction!r}: pass all the annotators' answers.")
        said, truths = self._compared(prediction, answers)
        matches, n = truths.count(said), len(truths)
        if self.rule == "exact":
            score = float(matches > 0)
        else:
            # Those left out who agreed leave one match fewer. In thirds: 3 of 10 is 0.9, not 0.8999….
            thirds = matches * min(matches - 1, 3) + (n - matches) * min(matches, 3) if matches else 0
            score = thirds / (3 * n)
        self._append(score, **about)
        return score

    def _compared(self, prediction: str, answers: list[str]) -> tuple[str, list[str]]:
        """Prediction and true answers in the form in which they are compared."""
        if not self.normalise:
            return str(prediction), [str(answer) for answer in answers]
        if self.normalise != "official":
            return normalise_answer(prediction), [normalise_answer(answer) for answer in answers]
        said = _one_line(prediction)
        if len(set(answers)) == 1:
            return said, answers
        return normalise_answer(said), [_without_marks(_one_line(answer)) for answer in answers]

    def _scores(self) -> dict[str, float]:
        return {"accuracy": _mean(self._samples.values())}


class Interval(NamedTuple):
    """A score with its confidence interval, ``low <= high``, in the unit of the score."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return "{:.3f} [{:.3f}, {:.3f}]".format(*self)


def bootstrap(values: Sequence[float], weights: Sequence[float] | None = None, *,
              groups: Sequence[Any] | None = None, level: float = 0.95, n_resamples: int = 1000,
              seed: int = 0) -> Interval:
    """Percentile bootstrap interval of a mean, or of a ratio of sums.

    Samples are drawn with replacement, as many as there are. The statistic is the mean (gIoU, accuracy)
    or, with ``weights``, ``sum(values) / sum(weights)`` (cIoU: intersections and unions).

    Args:
        values, weights: ``(N,)`` finite numbers; weights >= 0.
        groups: ``(N,)`` hashable keys; whole groups are drawn, since several expressions of one image, say,
            are not independent evidence.
        level: share of resamples inside the interval, in (0, 1).
        seed: of ``numpy.random.default_rng``.

    Resamples whose weights sum to 0 are left out; where no other is left, the bounds are NaN.

    >>> bootstrap([1, 0, 1, 1], seed=3)
    Interval(value=0.75, low=0.25, high=1.0)
    """
    numbers = np.asarray(values, float)
    if numbers.ndim != 1 or not len(numbers):
        raise MetricError("The bootstrap was given no samples: pass one number for each sample.")
    weights = np.ones(len(numbers)) if weights is None else np.asarray(weights, float)
    _check_length(weights, len(numbers), "weights")
    if not (np.isfinite(numbers).all() and np.isfinite(weights).all() and (weights >= 0).all()):
        raise MetricError("The bootstrap needs finite values, and weights that are not negative.")
    if not 0 < level < 1 or n_resamples < 1:
        raise MetricError(f"level must lie in (0, 1) and n_resamples reach 1: {level}, {n_resamples}.")
    pairs = np.stack([numbers, weights])
    if groups is not None:  # a group is resampled as one sample, the sum of its own
        _check_length(groups, len(numbers), "groups")
        places = {key: k for k, key in enumerate(dict.fromkeys(groups))}
        place = [places[key] for key in groups]
        pairs = np.stack([np.bincount(place, row, len(places)) for row in pairs])
    rng, n = np.random.default_rng(seed), pairs.shape[1]
    step = max(1, 2_000_000 // n)  # resamples at a time: a few million draws fit the memory
    sizes = [min(step, n_resamples - start) for start in range(0, n_resamples, step)]
    totals = np.concatenate([pairs[:, rng.integers(n, size=(size, n))].sum(axis=2) for size in sizes], axis=1)
    totals = totals[:, totals[1] > 0]
    value = _ratio(math.fsum(numbers), math.fsum(weights))
    if not totals.shape[1]:
        return Interval(value, math.nan, math.nan)
    low, high = np.quantile(totals[0] / totals[1], [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def _check_length(values: Sequence[Any], n: int, name: str) -> None:
    if len(values) != n:
        raise MetricError(f"There are {n} samples but {len(values)} {name}.")
