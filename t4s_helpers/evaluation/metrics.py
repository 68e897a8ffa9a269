"""Scores: what a sample is worth, and how a dataset's number is made of its samples.

Every metric here works the same way. ``update(...)`` scores one sample and keeps what is needed of
it (a few numbers, never the mask), ``compute()`` turns all of them into one flat dictionary,
``merge(other)`` joins the shards of a parallel run, ``state_dict()`` / ``load_state_dict(...)``
carry a half-finished run over a restart, and ``per_sample()`` gives the samples back one by one,
for failure galleries and confidence intervals. Counts are kept as integers and means are summed
exactly (``math.fsum``), so the order in which samples or shards arrive changes no digit.

All scores are fractions in [0, 1]; multiply by 100 for the paper's tables.

| metric | a sample is | keys of ``compute()`` |
|---|---|---|
| ``SegmentationMetric`` | an expression, two masks | ciou, giou, p@0.5 … p@0.9, n_acc, t_acc |
| ``BoxMetric`` | an expression, two boxes | acc50, box_iou |
| ``MeanIoU`` | an image, two class maps | miou, pixel_acc |
| ``VQAAccuracy`` | a question, its answers | accuracy |
| ``YesNoMetric`` | a yes-no question | accuracy, precision, recall, f1, yes_ratio |

Only NumPy is needed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..codec.grid import mask_to_box

PRECISION_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


class MetricError(ValueError):
    """A sample, shard or saved state that cannot be scored; nothing was added to the metric."""


# ---------------------------------------------------------------------------------------------
# One pair of masks
# ---------------------------------------------------------------------------------------------


def overlap(pred: np.ndarray, target: np.ndarray) -> tuple[int, int, int]:
    """Pixel counts ``(intersection, predicted area, true area)`` of two masks.

    Args:
        pred, target: bool ``(H, W)``, the same shape; anything else is refused, because a mask of
            0 and 255, of scores, or of another size would give a number that looks like a score.

    Raises:
        MetricError: not two-dimensional, not boolean, or of different shapes.

    >>> overlap(np.array([[True, True, False]]), np.array([[False, True, True]]))
    (1, 2, 2)
    """
    pred, target = _check_mask(pred, "predicted"), _check_mask(target, "true")
    if pred.shape != target.shape:
        raise MetricError(
            f"The predicted mask is {_size(pred)} (height x width) but the true mask is "
            f"{_size(target)}: resize the prediction to the image before scoring it."
        )
    both = np.count_nonzero(pred & target)
    return int(both), int(np.count_nonzero(pred)), int(np.count_nonzero(target))


def mask_iou(pred: np.ndarray, target: np.ndarray) -> float:
    """Intersection over union of two bool masks ``(H, W)``, in [0, 1]; two empty masks agree: 1.

    >>> mask_iou(np.array([[True, True, False]]), np.array([[False, True, True]]))
    0.3333333333333333
    """
    both, n_pred, n_target = overlap(pred, target)
    union = n_pred + n_target - both
    return both / union if union else 1.0


def box_iou(a: Sequence[float] | None, b: Sequence[float] | None) -> float:
    """Intersection over union of two half-open boxes ``(x0, y0, x1, y1)`` in pixels, in [0, 1].

    ``None`` is "no box": it overlaps nothing, not even another ``None``. Half-open means that a box
    of one pixel is ``(x, y, x + 1, y + 1)``, so that areas are plain products (no "+ 1" rule).

    >>> box_iou((0, 0, 4, 4), (2, 0, 6, 4))
    0.3333333333333333
    """
    a, b = _check_box(a, "first"), _check_box(b, "second")
    if a is None or b is None:
        return 0.0
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    return float(both / union)


def _check_mask(mask: np.ndarray, name: str) -> np.ndarray:
    mask = np.asarray(mask)
    if mask.ndim != 2:
        raise MetricError(f"The {name} mask must be (height, width), its shape is {mask.shape}.")
    if mask.dtype != np.bool_:
        raise MetricError(
            f"The {name} mask must be boolean, but its type is {mask.dtype}: "
            "compare it first, for example `mask > 0`."
        )
    return mask


def _check_box(box: Any, name: str) -> tuple[float, float, float, float] | None:
    if box is None:
        return None
    values = np.asarray(box, dtype=float)
    if values.shape != (4,) or not np.isfinite(values).all():
        raise MetricError(
            f"The {name} box must be four finite numbers (x0, y0, x1, y1), got {box}."
        )
    x0, y0, x1, y1 = values.tolist()
    if x1 <= x0 or y1 <= y0:
        raise MetricError(
            f"The {name} box {box} has no area: boxes are (x0, y0, x1, y1) with x0 < x1 and "
            "y0 < y1; COCO's (x, y, width, height) must be converted first."
        )
    return x0, y0, x1, y1


def _size(mask: np.ndarray) -> str:
    return "x".join(str(side) for side in mask.shape)


def _mean(values: Sequence[float]) -> float:
    """Exact mean, independent of the order; NaN of nothing."""
    values = list(values)
    return math.fsum(values) / len(values) if values else math.nan


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan


# ---------------------------------------------------------------------------------------------
# What all metrics share
# ---------------------------------------------------------------------------------------------


class _Metric:
    """Per-sample records in columns, with names against double counting.

    A subclass names its columns in ``_columns`` (one list each, one entry a sample), its
    conventions in ``_config()``, and writes ``update`` and ``_scores``.
    """

    _columns: tuple[str, ...] = ()

    def __init__(self) -> None:
        self._data: dict[str, list] = {name: [] for name in self._all_columns()}
        self._seen: set[str] = set()

    @classmethod
    def _all_columns(cls) -> tuple[str, ...]:
        return ("sample_id", "malformed", *cls._columns)

    def _config(self) -> dict[str, Any]:
        return {}

    def _scores(self) -> dict[str, float]:
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self._data["malformed"])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} samples)"

    def __contains__(self, sample_id: str) -> bool:
        """Was this sample scored already? (What a resumed run asks.)"""
        return sample_id in self._seen

    def _append(self, sample_id: str | None, malformed: bool, **values: Any) -> None:
        """Add one sample, after everything that can be refused was refused."""
        if sample_id is not None:
            sample_id = str(sample_id)
            if sample_id in self._seen:
                raise MetricError(
                    f"Sample '{sample_id}' was scored already; it was not counted a second time. "
                    "Skip it (`sample_id in metric`) or give it an id of its own."
                )
            self._seen.add(sample_id)
        for name, value in {"sample_id": sample_id, "malformed": bool(malformed), **values}.items():
            self._data[name].append(value)

    def compute(self) -> dict[str, float]:
        """The dataset's scores, see the class; a rate over no samples of its kind is NaN.

        Raises:
            MetricError: no sample was scored at all.
        """
        if not len(self):
            raise MetricError(
                f"{type(self).__name__} has scored no sample, so it has no value: call "
                "`update(...)` first, and look whether the split or the filter is empty."
            )
        n_malformed = sum(self._data["malformed"])
        return {
            **self._scores(),
            "n": len(self),
            "n_malformed": n_malformed,
            "malformed_rate": n_malformed / len(self),
        }

    def per_sample(self) -> dict[str, list]:
        """The samples in the order scored, as columns of equal length (copies)."""
        return {name: list(column) for name, column in self._data.items()}

    def merge(self, other: _Metric) -> _Metric:
        """Add another shard's samples to this one; returns ``self``, leaves ``other`` as it is.

        Raises:
            MetricError: another kind of metric, other conventions, or a sample in both; then
                nothing was added.
        """
        if other is self:
            raise MetricError("A metric cannot be merged with itself: it would count twice.")
        if type(other) is not type(self):
            raise MetricError(
                f"{type(self).__name__} cannot be merged with {type(other).__name__}."
            )
        self._check_config(other._config(), "The shard to merge")
        twice = sorted(self._seen & other._seen)
        if twice:
            raise MetricError(
                f"{len(twice)} sample(s) are in both shards, for example '{twice[0]}'; "
                "nothing was merged. Each sample belongs to one shard only."
            )
        for name, column in self._data.items():
            column.extend(other._data[name])
        self._seen |= other._seen
        return self

    def state_dict(self) -> dict[str, Any]:
        """Everything to go on later or elsewhere; plain lists and numbers, fit for JSON."""
        return {
            "metric": type(self).__name__,
            "config": self._config(),
            "samples": {name: list(column) for name, column in self._data.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> _Metric:
        """Put a saved state in place of this metric's samples; returns ``self``.

        Raises:
            MetricError: the state is another metric's, was made with other conventions, is
                incomplete or names a sample twice; then this metric is left as it was.
        """
        if not isinstance(state, Mapping) or state.get("metric") != type(self).__name__:
            found = state.get("metric") if isinstance(state, Mapping) else type(state).__name__
            raise MetricError(f"A state of {type(self).__name__} was expected, found {found!r}.")
        self._check_config(state.get("config"), "The saved state")
        samples = state.get("samples")
        if not isinstance(samples, Mapping) or set(samples) != set(self._all_columns()):
            raise MetricError(f"The saved state of {type(self).__name__} lacks columns of samples.")
        lengths = {name: len(column) for name, column in samples.items()}
        if len(set(lengths.values())) > 1:
            raise MetricError(f"The saved state is cut off: columns differ in length, {lengths}.")
        ids = [name for name in samples["sample_id"] if name is not None]
        if len(set(ids)) < len(ids):
            twice = next(name for name in ids if ids.count(name) > 1)
            raise MetricError(f"The saved state names sample '{twice}' twice.")
        self._data = {name: list(samples[name]) for name in self._all_columns()}
        self._seen = set(ids)
        return self

    def _check_config(self, found: Any, who: str) -> None:
        # JSON makes lists of tuples: compare what both look like after a trip through it.
        if _plain(found) != _plain(self._config()):
            raise MetricError(
                f"{who} was made with other conventions: {found} there, {self._config()} here."
            )

    def _stable_order(self) -> list[int]:
        """Indices of the samples sorted by id, so that resampling ignores the order of shards."""
        ids = self._data["sample_id"]
        if any(name is None for name in ids):
            return list(range(len(self)))
        return sorted(range(len(self)), key=ids.__getitem__)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value


# ---------------------------------------------------------------------------------------------
# Referring segmentation: RES and GRES
# ---------------------------------------------------------------------------------------------


class SegmentationMetric(_Metric):
    """Scores of referring segmentation, with and without targets (RES, GRES).

    ``compute()`` gives

    - ``ciou`` = sum of intersections / sum of unions over the dataset (large objects weigh more);
    - ``giou`` = mean over samples of their IoU (each sample weighs the same);
    - ``p@0.5`` … ``p@0.9`` = share of the samples *with* target whose IoU reaches (>=) that value;
    - ``n_acc`` = share of the no-target samples that were predicted empty (rejected);
    - ``t_acc`` = share of the target samples that were predicted non-empty;
    - ``n``, ``n_target``, ``n_no_target``, ``n_malformed``, ``malformed_rate``.

    | truth | prediction | IoU of the sample | adds to sum I | adds to sum U |
    |---|---|---|---|---|
    | target | mask | I / U | I | U |
    | target | empty | 0 | 0 | area of the target |
    | none | empty | 1 | 0 | 0 |
    | none | mask | 0 | 0 | area of the prediction |

    A response that could not be read is not a rejection. ``malformed=True`` is counted apart, and a
    no-target sample answered by a malformed response earns nothing, whatever mask was salvaged
    from it (IoU 0, not in ``n_acc``). On samples with a target the salvaged mask is scored like any
    other. Evaluators that swallow such responses credit them as "no target":
    ``malformed_is_rejection=True`` does so too, for comparison with published numbers.

    NaN, not 0, is the value of a rate over no sample of its kind: ``n_acc`` without no-target
    samples, ``t_acc`` and ``p@…`` without target samples, ``ciou`` when the sum of unions is 0.
    No sample at all is an error (see ``compute``).

    Source: Text4Seg, Sec. 4 and tables 1-2; GRES (Liu et al., CVPR 2023), metrics of gRefCOCO.

    >>> metric = SegmentationMetric()
    >>> metric.update(np.array([[True, True]]), np.array([[False, True]]))
    0.5
    >>> metric.update(np.array([[False, False]]), np.array([[False, False]]))
    1.0
    >>> {k: v for k, v in metric.compute().items() if k in ("ciou", "giou", "n_acc")}
    {'ciou': 0.5, 'giou': 0.75, 'n_acc': 1.0}
    """

    _columns = ("intersection", "pred_area", "target_area")

    def __init__(self, *, malformed_is_rejection: bool = False) -> None:
        super().__init__()
        self.malformed_is_rejection = bool(malformed_is_rejection)

    def _config(self) -> dict[str, Any]:
        return {"malformed_is_rejection": self.malformed_is_rejection}

    def update(
        self,
        pred: np.ndarray,
        target: np.ndarray,
        *,
        sample_id: str | None = None,
        malformed: bool = False,
    ) -> float:
        """Score one sample and return its IoU (as defined in the class, in [0, 1]).

        Args:
            pred, target: bool ``(H, W)`` of the same shape; an all-false target means "no target".
            sample_id: a name that may be scored once only; guards resumed and sharded runs.
            malformed: the response did not keep to the format (``ParseReport.malformed``).

        Raises:
            MetricError: see ``overlap``; or the sample was scored before.
        """
        both, pred_area, target_area = overlap(pred, target)
        return self.update_counts(
            both, pred_area, target_area, sample_id=sample_id, malformed=malformed
        )

    def update_counts(
        self,
        intersection: int,
        pred_area: int,
        target_area: int,
        *,
        sample_id: str | None = None,
        malformed: bool = False,
    ) -> float:
        """``update`` from pixel counts, for tables made again from saved results without masks."""
        counts = [int(count) for count in (intersection, pred_area, target_area)]
        if counts != [intersection, pred_area, target_area] or min(counts) < 0:
            raise MetricError(
                f"Pixel counts must be whole and not negative, got intersection {intersection}, "
                f"predicted area {pred_area}, true area {target_area}."
            )
        both, n_pred, n_target = counts
        if both > min(n_pred, n_target):
            raise MetricError(
                f"An intersection of {both} pixels is larger than one of the masks "
                f"({n_pred} predicted, {n_target} true)."
            )
        self._append(
            sample_id, malformed, intersection=both, pred_area=n_pred, target_area=n_target
        )
        return self._iou(len(self) - 1)

    def _rejected(self, index: int) -> bool:
        readable = self.malformed_is_rejection or not self._data["malformed"][index]
        return readable and self._data["pred_area"][index] == 0

    def _union(self, index: int) -> int:
        d = self._data
        return d["pred_area"][index] + d["target_area"][index] - d["intersection"][index]

    def _iou(self, index: int) -> float:
        if self._data["target_area"][index] == 0:
            return float(self._rejected(index))
        return self._data["intersection"][index] / self._union(index)

    def _scores(self) -> dict[str, float]:
        has_target = [area > 0 for area in self._data["target_area"]]
        targets = [i for i, yes in enumerate(has_target) if yes]
        no_targets = [i for i, yes in enumerate(has_target) if not yes]
        ious = [self._iou(i) for i in range(len(self))]
        total = sum(self._union(i) for i in range(len(self)))
        precision = {
            f"p@{t:g}": _mean([ious[i] >= t for i in targets]) for t in PRECISION_THRESHOLDS
        }
        return {
            "ciou": _ratio(sum(self._data["intersection"]), total),
            "giou": _mean(ious),
            **precision,
            "n_acc": _mean([self._rejected(i) for i in no_targets]),
            "t_acc": _mean([self._data["pred_area"][i] > 0 for i in targets]),
            "n_target": len(targets),
            "n_no_target": len(no_targets),
        }

    def per_sample(self) -> dict[str, list]:
        """Columns sample_id, malformed, intersection, pred_area, target_area, union and iou."""
        indices = range(len(self))
        return {
            **super().per_sample(),
            "union": [self._union(i) for i in indices],
            "iou": [self._iou(i) for i in indices],
        }

    def interval(self, name: str = "ciou", **options: Any) -> Interval:
        """Bootstrap confidence interval of ``ciou`` or ``giou``; options go to ``bootstrap``.

        ``groups=`` (one entry a sample, in the order scored) resamples whole groups, for example
        all expressions of an image. With sample ids the result does not depend on the order in
        which samples or shards came.
        """
        if name not in ("ciou", "giou"):
            raise MetricError(f"Intervals exist for 'ciou' and 'giou', not for '{name}'.")
        order = self._stable_order()
        columns = self.per_sample()
        parts = (columns["intersection"], columns["union"]) if name == "ciou" else (columns["iou"],)
        groups = options.pop("groups", None)
        if groups is not None:
            groups = _check_length(list(groups), len(self), "groups")
            options["groups"] = [groups[i] for i in order]
        return bootstrap(*([part[i] for i in order] for part in parts), **options)


# ---------------------------------------------------------------------------------------------
# Referring comprehension: boxes
# ---------------------------------------------------------------------------------------------


class BoxMetric(_Metric):
    """Scores of referring comprehension (REC): is the box of the predicted mask the right one?

    ``compute()`` gives ``acc50``, the share of samples whose box IoU is *above* 0.5 (not equal),
    one more ``accNN`` for every other threshold asked for, ``box_iou``, the mean box IoU, and
    ``n``, ``n_no_box`` (nothing was predicted: counts as wrong), ``n_malformed`` and
    ``malformed_rate``.

    Boxes are half-open ``(x0, y0, x1, y1)`` in pixels. No sample at all is an error.

    Source: Text4Seg, Sec. 4.2 and the Acc@0.5 columns.
    """

    _columns = ("pred_box", "target_box", "iou")

    def __init__(self, thresholds: Sequence[float] = (0.5,)) -> None:
        super().__init__()
        if not thresholds or not all(0 <= t < 1 for t in thresholds):
            raise MetricError(f"Box thresholds must lie in [0, 1), got {tuple(thresholds)}.")
        self.thresholds = tuple(float(t) for t in thresholds)

    def _config(self) -> dict[str, Any]:
        return {"thresholds": list(self.thresholds)}

    def update(
        self,
        pred: np.ndarray | Sequence[float] | None,
        target: np.ndarray | Sequence[float],
        *,
        sample_id: str | None = None,
        malformed: bool = False,
    ) -> float:
        """Score one sample and return its box IoU in [0, 1].

        Args:
            pred: a box, a bool mask ``(H, W)`` (its box is taken), or ``None`` for no prediction;
                an empty mask is no prediction.
            target: the annotated box, or a bool mask ``(H, W)`` with at least one pixel.

        Raises:
            MetricError: a bad mask or box, masks of different sizes, a target without a pixel.
        """
        if np.ndim(pred) == 2 and np.ndim(target) == 2:
            overlap(pred, target)  # for its checks: a mask of another size has a box elsewhere
        pred_box, target_box = _as_box(pred, "predicted"), _as_box(target, "true")
        if target_box is None:
            raise MetricError(
                "The true box is missing (empty mask or None): REC samples always have a target; "
                "score no-target samples with SegmentationMetric."
            )
        iou = box_iou(pred_box, target_box)
        self._append(
            sample_id,
            malformed,
            pred_box=list(pred_box) if pred_box else None,
            target_box=list(target_box),
            iou=iou,
        )
        return iou

    def _scores(self) -> dict[str, float]:
        ious = self._data["iou"]
        return {
            **{f"acc{100 * t:g}": _mean([iou > t for iou in ious]) for t in self.thresholds},
            "box_iou": _mean(ious),
            "n_no_box": sum(box is None for box in self._data["pred_box"]),
        }


def _as_box(value: Any, name: str) -> tuple[float, float, float, float] | None:
    if np.ndim(value) == 2:
        value = mask_to_box(_check_mask(value, name))
    return _check_box(value, name)


# ---------------------------------------------------------------------------------------------
# Semantic segmentation: mean IoU over classes
# ---------------------------------------------------------------------------------------------

BACKGROUND = ("class", "not_averaged", "ignored")
ABSENT = ("skip", "skip_no_truth", "zero", "one")


def class_counts(
    pred: np.ndarray, target: np.ndarray, n_classes: int, ignore_index: int | None = None
) -> dict[str, list[int]]:
    """Pixel counts of an image by class, from which every convention of `MeanIoU` follows.

    Args:
        pred, target: integers ``(H, W)`` in 0 … ``n_classes`` (0 is background), the same shape;
            ``target`` may be ``ignore_index``, and those pixels are not counted.

    Returns:
        ``classes`` that either map shows, and for each of them ``intersection``, ``pred_area``,
        ``target_area`` and ``over_background``, the predicted pixels whose truth is background.

    >>> class_counts(np.array([[1, 1, 0]]), np.array([[1, 0, 2]]), 2)["over_background"]
    [0, 1, 0]
    """
    counted = np.ones(target.shape, bool) if ignore_index is None else target != ignore_index
    p, t = pred[counted].astype(np.int64), target[counted].astype(np.int64)
    areas = [np.bincount(values, minlength=n_classes + 1) for values in (t[t == p], p, t, p[t == 0])]
    shown = np.flatnonzero(areas[1] + areas[2])
    names = ("intersection", "pred_area", "target_area", "over_background")
    return {"classes": shown.tolist(), **{k: a[shown].tolist() for k, a in zip(names, areas)}}


class MeanIoU(_Metric):
    """Mean over classes of their IoU on the whole dataset (mIoU), conventions said out loud.

    Class maps are integers ``(H, W)`` as in a label grid: 0 is background ("others"), ``k`` is
    ``classes[k-1]``. Published tables differ in two conventions, so neither has a default:

    - ``background``, what a true 0 means: ``"class"``, one more class in the mean;
      ``"not_averaged"``, no term of its own, but a class predicted there is a false positive;
      ``"ignored"``, pixels with true background are left out altogether (as for ADE20K-150,
      PASCAL Context-59 and VOC-20, whose lists have no background class).
    - ``absent``, a class that the dataset's pixels do not show: ``"skip"`` leaves it out when it is
      in neither truth nor prediction; ``"skip_no_truth"`` leaves it out also when it was predicted
      (false positives go unpunished); ``"zero"`` and ``"one"`` count it with that value where
      ``"skip"`` would leave it out.

    Pixels whose truth is ``ignore_index`` (255, say; ``None``: no such value) are left out always.

    ``compute()`` gives ``miou``, ``pixel_acc`` (share of counted pixels with the right class),
    ``n_averaged`` (terms in the mean), ``n``, ``n_malformed``, ``malformed_rate``. ``miou`` is NaN
    when no class is left to average, ``pixel_acc`` when no pixel is. No sample at all is an error.

    Per sample, the classes seen and their pixel counts are kept, so memory does not grow with
    the image size or the length of the class list.
    """

    _columns = ("classes", "intersection", "pred_area", "target_area")

    def __init__(
        self,
        classes: int | Sequence[str],
        *,
        background: str,
        absent: str,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__()
        if isinstance(classes, int):
            classes = [f"class {k}" for k in range(1, classes + 1)]
        self.classes = tuple(str(name) for name in classes)
        if not self.classes:
            raise MetricError("MeanIoU needs at least one class.")
        if len(set(self.classes)) < len(self.classes):
            raise MetricError("MeanIoU was given a class list with a name in it twice.")
        if background not in BACKGROUND:
            raise MetricError(f"background must be one of {BACKGROUND}, got {background!r}.")
        if absent not in ABSENT:
            raise MetricError(f"absent must be one of {ABSENT}, got {absent!r}.")
        if ignore_index is not None and 0 <= ignore_index <= len(self.classes):
            raise MetricError(
                f"ignore_index {ignore_index} is the index of a class: use a value above "
                f"{len(self.classes)} or below 0."
            )
        self.background, self.absent, self.ignore_index = background, absent, ignore_index

    def _config(self) -> dict[str, Any]:
        return {
            "classes": list(self.classes),
            "background": self.background,
            "absent": self.absent,
            "ignore_index": self.ignore_index,
        }

    def update(
        self,
        pred: np.ndarray,
        target: np.ndarray,
        *,
        sample_id: str | None = None,
        malformed: bool = False,
    ) -> float:
        """Score one image and return its own mean IoU over the classes it shows (NaN: none).

        Args:
            pred: integers ``(H, W)`` in 0 … number of classes.
            target: integers ``(H, W)`` in 0 … number of classes, or ``ignore_index``.

        Raises:
            MetricError: shapes differ, not integers, or a class index outside the list.
        """
        pred, target = self._check_map(pred, "predicted"), self._check_map(target, "true")
        if pred.shape != target.shape:
            raise MetricError(
                f"The predicted class map is {_size(pred)} (height x width) but the true one is "
                f"{_size(target)}: resize the prediction to the image before scoring it."
            )
        counts = class_counts(pred, target, len(self.classes), self.ignore_index)
        return self.update_counts(**counts, sample_id=sample_id, malformed=malformed)

    def update_counts(
        self,
        classes: Sequence[int],
        intersection: Sequence[int],
        pred_area: Sequence[int],
        target_area: Sequence[int],
        over_background: Sequence[int],
        *,
        sample_id: str | None = None,
        malformed: bool = False,
    ) -> float:
        """``update`` from the counts of `class_counts`, under this metric's own conventions.

        Tables are made again from saved counts under any convention, without class maps.

        Raises:
            MetricError: columns of different lengths, a class index outside the list or named
                twice, counts that are negative or that no two maps could give.
        """
        rows = np.array([classes, intersection, pred_area, target_area, over_background], np.int64)
        self._check_counts(*rows)
        at, both, pred, target, over = rows
        if self.background == "ignored":
            pred, keep = pred - over, at > 0
            both, target = both * keep, target * keep
        shown = pred + target > 0
        self._append(
            sample_id,
            malformed,
            classes=at[shown].tolist(),
            intersection=both[shown].tolist(),
            pred_area=pred[shown].tolist(),
            target_area=target[shown].tolist(),
        )
        return self._sample_iou(len(self) - 1)

    def _check_counts(self, at, both, pred, target, over) -> None:
        if len(set(at.tolist())) < len(at) or (at < 0).any() or (at > len(self.classes)).any():
            raise MetricError(
                f"The classes {at.tolist()} of an image's counts are not different indices from 0 "
                f"to {len(self.classes)}: score it with the class list it was counted with."
            )
        if min(both.min(initial=0), over.min(initial=0)) < 0 or (
            (both > np.minimum(pred, target)) | (over > pred)
        ).any():
            raise MetricError("Counts that no two class maps give: a part is larger than the whole.")

    def _check_map(self, values: np.ndarray, name: str) -> np.ndarray:
        values = np.asarray(values)
        if values.ndim != 2:
            raise MetricError(
                f"The {name} class map must be (height, width), but its shape is {values.shape}."
            )
        if not np.issubdtype(values.dtype, np.integer):
            raise MetricError(
                f"The {name} class map must hold integers, but its type is {values.dtype}."
            )
        outside = (values < 0) | (values > len(self.classes))
        if name == "true" and self.ignore_index is not None:
            outside &= values != self.ignore_index
        if outside.any():
            raise MetricError(
                f"The {name} class map holds the index {values[outside][0]}, but the class list "
                f"ends at {len(self.classes)}"
                + (f" and ignored pixels are {self.ignore_index}." if name == "true" else ".")
            )
        return values

    def _totals(self) -> np.ndarray:
        """Dataset totals, int64 ``(3, classes + 1)``: intersection, predicted and true pixels."""
        totals = np.zeros((3, len(self.classes) + 1), np.int64)
        d = self._data
        for row, column in enumerate(("intersection", "pred_area", "target_area")):
            for shown, counts in zip(d["classes"], d[column]):
                totals[row, shown] += np.asarray(counts, np.int64)
        return totals

    def _class_ious(self) -> np.ndarray:
        """float64 ``(classes + 1,)``, NaN where a class is not in the mean."""
        both, pred, target = self._totals()
        union = pred + target - both
        out = union == 0 if self.absent != "skip_no_truth" else target == 0
        ious = np.divide(both, union, out=np.full(len(union), np.nan), where=~out)
        if self.absent in ("zero", "one"):
            ious[out] = float(self.absent == "one")
        if self.background != "class":
            ious[0] = np.nan
        return ious

    def per_class(self) -> dict[str, float]:
        """IoU of each class by name, NaN where it is not in the mean; "others" first, if it is one.

        >>> metric = MeanIoU(["cat", "dog"], background="ignored", absent="skip")
        >>> metric.update(np.array([[1, 1, 0]]), np.array([[1, 0, 1]]))
        0.5
        >>> metric.per_class()
        {'cat': 0.5, 'dog': nan}
        """
        ious = self._class_ious().tolist()
        named = dict(zip(self.classes, ious[1:]))
        return {"others": ious[0], **named} if self.background == "class" else named

    def _scores(self) -> dict[str, float]:
        both, _, target = self._totals()
        ious = [iou for iou in self._class_ious().tolist() if not math.isnan(iou)]
        return {
            "miou": _mean(ious),
            "pixel_acc": _ratio(int(both.sum()), int(target.sum())),
            "n_averaged": len(ious),
        }

    def _sample_iou(self, index: int) -> float:
        d = self._data
        rows = zip(*(d[name][index] for name in self._columns))
        first = 0 if self.background == "class" else 1
        return _mean([both / (p + t - both) for k, both, p, t in rows if k >= first])

    def per_sample(self) -> dict[str, list]:
        """Columns of the counts by class, and ``iou``, the mean over the classes an image shows."""
        ious = [self._sample_iou(i) for i in range(len(self))]
        return {**super().per_sample(), "iou": ious}


# ---------------------------------------------------------------------------------------------
# Visual questions
# ---------------------------------------------------------------------------------------------

_NUMBERS = {
    word: str(number)
    for number, word in enumerate("zero one two three four five six seven eight nine ten".split())
} | {"none": "0"}
_ARTICLES = {"a", "an", "the"}
_MARKS = ";/[]\"{}()=+\\_-><@`,?!"

# What people type without the apostrophe. Forms that are words of their own without it (its, were,
# well, ill, shell, hell, id, wed, shed, lets) are not here: they stay as they are.
_CONTRACTIONS = {
    word.replace("'", ""): word
    for word in (
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

    Line breaks become spaces; punctuation goes (to nothing where the text has it beside a space
    or has a comma between digits, else to a space); full stops go unless a digit follows; the
    text is lower-cased; number words up to ten become digits; articles go; contractions get
    their apostrophe. Applied to prediction and truth alike.

    Source: the rules published with VQA (Antol et al., 2015) at visualqa.org/evaluation; the list
    of contractions is our own and shorter.

    >>> normalise_answer("The  Two dogs."), normalise_answer("1,000"), normalise_answer("isnt")
    ('2 dogs', '1000', "isn't")
    """
    words = _without_marks(_one_line(text)).lower().split()
    words = [_NUMBERS.get(word, word) for word in words]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _one_line(text: str) -> str:
    if not isinstance(text, str):
        raise MetricError(f"An answer must be text, got {type(text).__name__}.")
    return text.replace("\n", " ").replace("\t", " ").strip()


def _without_marks(text: str) -> str:
    """Punctuation to nothing or to a space, and full stops that no digit follows to nothing."""
    joined = re.search(r"\d,\d", text) is not None
    original = text
    for mark in _MARKS:
        beside_space = f"{mark} " in original or f" {mark}" in original
        text = text.replace(mark, "" if beside_space or joined else " ")
    return re.sub(r"\.(?!\d)", "", text)


def yes_or_no(text: str) -> str:
    """What an answer to a yes-no question says: ``"no"`` if its first sentence denies, else ``"yes"``.

    Source: the evaluation of POPE (Li et al., 2023), whose rule this is: a "no" or a "not" among
    the words before the first full stop.

    >>> yes_or_no("No, there is none."), yes_or_no("There is not."), yes_or_no("Yes. Not far.")
    ('no', 'no', 'yes')
    """
    words = _one_line(text).split(".")[0].replace(",", " ").lower().split()
    return "no" if {"no", "not"} & set(words) else "yes"


class YesNoMetric(_Metric):
    """Scores of yes-no questions about what a picture shows (POPE); "yes" is the positive class.

    ``compute()`` gives ``accuracy``, ``precision``, ``recall``, ``f1``, ``yes_ratio`` (share of the
    questions answered with yes), and the counts. Precision without a yes, recall without a true
    yes, and F1 without either are NaN. Answers are read by `yes_or_no`.

    Source: POPE (Li et al., EMNLP 2023). Published POPE numbers are F1 or accuracy, as a mean over
    its three ways to choose absent objects: score each of them alone.

    >>> metric = YesNoMetric()
    >>> [metric.update(said, true) for said, true in (("Yes.", "yes"), ("yes", "no"), ("No", "no"))]
    [1.0, 0.0, 1.0]
    >>> {key: round(value, 2) for key, value in metric.compute().items() if key in ("f1", "yes_ratio")}
    {'f1': 0.67, 'yes_ratio': 0.67}
    """

    _columns = ("said_yes", "is_yes")

    def update(self, prediction: str, answer: str, *, sample_id: str | None = None,
               malformed: bool = False) -> float:
        """Score one question and return 1 or 0.

        Raises:
            MetricError: not text, or a true answer that is neither yes nor no.
        """
        truth = _one_line(answer).lower()
        if truth not in ("yes", "no"):
            raise MetricError(f"The true answer of a yes-no question must be yes or no, got {answer!r}.")
        said = yes_or_no(prediction)
        self._append(sample_id, malformed, said_yes=said == "yes", is_yes=truth == "yes")
        return float(said == truth)

    def _scores(self) -> dict[str, float]:
        pairs = list(zip(self._data["said_yes"], self._data["is_yes"]))
        hits = sum(said and true for said, true in pairs)
        said, true = (sum(column) for column in zip(*pairs))
        return {
            "accuracy": _mean([a == b for a, b in pairs]),
            "precision": _ratio(hits, said),
            "recall": _ratio(hits, true),
            "f1": _ratio(2 * hits, said + true),
            "yes_ratio": said / len(pairs),
        }


class VQAAccuracy(_Metric):
    """Share of questions answered right, by one of two rules.

    - ``rule="exact"``: 1 when the normalised prediction equals one of the normalised true answers
      (GQA, ScienceQA, the workbook's own scenes);
    - ``rule="vqav2"``: the consensus rule for several (usually ten) human answers: leave each
      annotator out in turn, score min(matches among the others / 3, 1), and average
      (VQAv2, VisWiz, TextVQA). With ten annotators, 1, 2, 3, 4+ matches score 0.3, 0.6, 0.9, 1.

    ``normalise`` says what is compared:

    - ``True``: both sides pass through ``normalise_answer``, always;
    - ``"official"``: as the official VQAv2 evaluation does, to set beside published numbers. Where
      all annotators gave the same string, line breaks and outer blanks go from the prediction and
      nothing else happens; elsewhere the prediction is normalised, while of the true answers only
      the punctuation is (they were published in lower case, with digits);
    - ``False``: raw text.

    ``compute()`` gives ``accuracy``, ``n``, ``n_malformed``, ``malformed_rate``. A malformed
    response is scored by its text, and counted. No sample at all is an error.

    Source: VQA (Antol et al., 2015); VQAv2 (Goyal et al., 2017).

    >>> VQAAccuracy("vqav2").update("Two.", ["2"] * 2 + ["3"] * 8)
    0.6
    """

    _columns = ("prediction", "score")

    def __init__(self, rule: str = "exact", *, normalise: bool | str = True) -> None:
        super().__init__()
        if rule not in ("exact", "vqav2"):
            raise MetricError(f"The rule of VQAAccuracy is 'exact' or 'vqav2', got {rule!r}.")
        if normalise not in (True, False, "official"):
            raise MetricError(f"normalise is True, False or 'official', got {normalise!r}.")
        self.rule = rule
        self.normalise = normalise if normalise == "official" else bool(normalise)

    def _config(self) -> dict[str, Any]:
        return {"rule": self.rule, "normalise": self.normalise}

    def update(
        self,
        prediction: str,
        answers: str | Sequence[str],
        *,
        sample_id: str | None = None,
        malformed: bool = False,
    ) -> float:
        """Score one question and return its score in [0, 1].

        Args:
            prediction: the response's answer; an empty one is wrong unless a true answer is too.
            answers: the true answer, or all annotators' answers; at least one.

        Raises:
            MetricError: not text, no true answer, or fewer than two under the VQAv2 rule.
        """
        answers = [answers] if isinstance(answers, str) else list(answers)
        if len(answers) < (2 if self.rule == "vqav2" else 1):
            raise MetricError(
                f"The rule '{self.rule}' was given {len(answers)} true answer(s) for the "
                f"prediction {prediction!r}: pass all the annotators' answers."
            )
        said, truths = self._compared(prediction, answers)
        matches = truths.count(said)
        score = float(matches > 0) if self.rule == "exact" else _consensus(matches, len(answers))
        self._append(sample_id, malformed, prediction=prediction, score=score)
        return score

    def _compared(self, prediction: str, answers: list[str]) -> tuple[str, list[str]]:
        """Prediction and true answers in the form in which they are compared."""
        if self.normalise is True:
            return normalise_answer(prediction), [normalise_answer(answer) for answer in answers]
        if not self.normalise:
            return str(prediction), [str(answer) for answer in answers]
        said = _one_line(prediction)
        if len(set(answers)) == 1:
            return said, answers
        return normalise_answer(said), [_without_marks(_one_line(answer)) for answer in answers]

    def _scores(self) -> dict[str, float]:
        return {"accuracy": _mean(self._data["score"])}


def _consensus(matches: int, n: int) -> float:
    """Mean over annotators left out of min(matches among the others / 3, 1).

    ``matches`` of the left-out annotators agreed themselves, and leave one match fewer behind.
    Kept in thirds until the end, so that 3 of 10 is 0.9 and not 0.8999….
    """
    thirds = matches * min(matches - 1, 3) + (n - matches) * min(matches, 3) if matches else 0
    return thirds / (3 * n)


# ---------------------------------------------------------------------------------------------
# How sure is a number?
# ---------------------------------------------------------------------------------------------


class Interval(NamedTuple):
    """A score with its confidence interval, ``low <= high``, in the unit of the score."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap(
    values: Sequence[float],
    weights: Sequence[float] | None = None,
    *,
    groups: Sequence[Any] | None = None,
    level: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of a mean, or of a ratio of sums.

    Samples are drawn with replacement, as many as there are; with ``weights`` the statistic is
    ``sum(values) / sum(weights)`` of the drawn samples (cIoU: intersections and unions), without
    it is their mean (gIoU, accuracy).

    Args:
        values: ``(N,)`` finite numbers.
        weights: ``(N,)`` finite numbers >= 0, in the place of N ones.
        groups: ``(N,)`` hashable keys; whole groups are drawn, for samples that belong together
            (several expressions of one image are not independent evidence).
        level: share of resamples inside the interval, in (0, 1).
        n_resamples: number of resamples.
        seed: of ``numpy.random.default_rng``; the same seed gives the same interval.

    Returns:
        ``Interval(value, low, high)``. Resamples whose weights sum to 0 have no value and are left
        out; where none has one, all three are NaN.

    Raises:
        MetricError: nothing to resample, lengths that differ, values that are not finite.

    >>> bootstrap([1, 0, 1, 1], seed=3)
    Interval(value=0.75, low=0.25, high=1.0)
    """
    numbers = np.asarray(values, float)
    if numbers.ndim != 1 or not len(numbers):
        raise MetricError("The bootstrap was given no samples: pass one number for each sample.")
    if weights is None:
        weights = np.ones(len(numbers))
    weights = _check_length(np.asarray(weights, float), len(numbers), "weights")
    if not (np.isfinite(numbers).all() and np.isfinite(weights).all() and (weights >= 0).all()):
        raise MetricError("The bootstrap needs finite values, and weights that are not negative.")
    if not 0 < level < 1 or n_resamples < 1:
        raise MetricError(
            f"level must lie in (0, 1) and n_resamples be >= 1, got {level} and {n_resamples}."
        )
    pairs = np.stack([numbers, weights])
    if groups is not None:
        pairs = _sum_by_group(pairs, _check_length(list(groups), len(numbers), "groups"))
    totals = _resample(pairs, n_resamples, np.random.default_rng(seed))
    totals = totals[:, totals[1] > 0]
    value = _ratio(math.fsum(numbers), math.fsum(weights))
    if not totals.shape[1]:
        return Interval(value, math.nan, math.nan)
    low, high = np.quantile(totals[0] / totals[1], [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def _sum_by_group(pairs: np.ndarray, groups: list) -> np.ndarray:
    index: dict[Any, int] = {}
    places = np.array([index.setdefault(key, len(index)) for key in groups])
    return np.stack([np.bincount(places, row, len(index)) for row in pairs])


def _resample(pairs: np.ndarray, n_resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Sums of ``pairs`` (2, N) over resamples, (2, n_resamples), a few million draws at a time."""
    n = pairs.shape[1]
    step = max(1, 2_000_000 // n)
    parts = []
    for start in range(0, n_resamples, step):
        drawn = rng.integers(n, size=(min(step, n_resamples - start), n))
        parts.append(pairs[:, drawn].sum(axis=2))
    return np.concatenate(parts, axis=1)


def _check_length(values: Any, n: int, name: str) -> Any:
    if len(values) != n:
        raise MetricError(f"There are {n} samples but {len(values)} {name}.")
    return values
