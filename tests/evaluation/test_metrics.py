"""Metrics against torchmetrics, SciPy and slow oracles written from the definitions."""

from __future__ import annotations

import json
import math
import re
import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from t4s_helpers.codec.grid import mask_iou
from t4s_helpers.evaluation.metrics import (
    ABSENT, BACKGROUND, BoxMetric, GrecMetric, Instance, InstanceMetric, MeanIoU, MetricError,
    SegmentationMetric, VQAAccuracy, YesNoMetric, bootstrap, class_counts, normalise_answer, yes_or_no,
)
from t4s_helpers.evaluation.tasks import to_rle

FAST = settings(max_examples=60, deadline=None)
EMPTY = np.zeros((5, 6), bool)
# Of all densities, empty ones often: they are where definitions differ.
masks = st.one_of(arrays(bool, EMPTY.shape), st.just(EMPTY), st.just(~EMPTY))
runs = st.lists(st.tuples(masks, masks, st.booleans()), min_size=1, max_size=8)


def scored(run, order=None, **options):
    """The metric of a run, and the IoU of each sample."""
    metric = SegmentationMetric(**options)
    return metric, [metric.update(run[i][0], run[i][1], sample_id=f"s{i}", malformed=run[i][2])
                    for i in order or range(len(run))]


def mean(values):
    return float(Fraction(sum(values)) / len(values)) if values else math.nan


def jaccard(p: set, t: set):
    return Fraction(len(p & t), len(p | t)) if p | t else Fraction(1)


def pixels(mask):
    return {*zip(*np.nonzero(mask))}


def oracle(run, malformed_is_rejection):
    """The definitions, word for word, on sets of pixels and exact fractions; NaN over no sample."""
    run = [(pixels(pred), pixels(target), malformed) for pred, target, malformed in run]
    rejected = [not p and (malformed_is_rejection or not bad) for p, t, bad in run if not t]
    hits = [jaccard(p, t) for p, t, _ in run if t]
    sum_u = sum(len(p | t) for p, t, _ in run)
    ious = [jaccard(p, t) if t else not p and (malformed_is_rejection or not bad) for p, t, bad in run]
    malformed = [bad for _, _, bad in run]
    return [float(iou) for iou in ious], {
        "ciou": sum(len(p & t) for p, t, _ in run) / sum_u if sum_u else math.nan,
        "giou": mean(ious),
        **{f"p@0.{k}": mean([iou >= Fraction(k, 10) for iou in hits]) for k in range(5, 10)},
        "n_acc": mean(rejected), "t_acc": mean([bool(p) for p, t, _ in run if t]),
        "n_target": len(hits), "n_no_target": len(rejected), "n": len(run),
        "n_malformed": sum(malformed), "malformed_rate": mean(malformed)}


# SegmentationMetric


@FAST
@given(runs, st.booleans())
def test_segmentation_equals_the_definitions(run, credit):
    metric, got = scored(run, malformed_is_rejection=credit)
    ious, scores = oracle(run, credit)
    assert got == ious
    assert metric.compute() == pytest.approx(scores, abs=1e-12, nan_ok=True)
    assert [mask_iou(pred, target) for pred, target, _ in run] == [
        float(jaccard(pixels(pred), pixels(target))) for pred, target, _ in run]


def test_ious_of_masks_and_class_maps_equal_torchmetrics():
    import torch
    from torchmetrics.classification import BinaryJaccardIndex, MulticlassJaccardIndex

    rng, means = np.random.default_rng(2), []
    masks_, their_masks = SegmentationMetric(), BinaryJaccardIndex()
    maps, their_maps = mean_iou(4), MulticlassJaccardIndex(5, average="macro", ignore_index=255)
    for _ in range(20):
        target = rng.choice([0, 1, 3, 4, 255], (9, 11))  # 2 is absent
        guess = rng.choice([0, 1, 3, 4], (9, 11))
        pred = np.where((rng.random((9, 11)) < rng.random()) & (target < 255), target, guess)
        maps.update(pred, target)
        their_maps.update(torch.from_numpy(pred), torch.from_numpy(target))
        masks_.update(pred == 1, target == 1)
        pair = torch.from_numpy(pred == 1), torch.from_numpy(target == 1)
        their_masks.update(*pair)
        means.append(BinaryJaccardIndex()(*pair).item())
    got = {**masks_.compute(), **maps.compute()}
    assert got["miou"] == pytest.approx(their_maps.compute().item(), abs=1e-6) and got["n_averaged"] == 4
    assert got["ciou"] == pytest.approx(their_masks.compute().item(), abs=1e-6)
    assert got["giou"] == pytest.approx(np.mean(means), abs=1e-6)


def test_precision_counts_an_iou_equal_to_the_threshold():
    metric = SegmentationMetric()
    for k in (5, 6, 7, 8, 9):  # IoU exactly k/10
        metric.update_counts(k, k, 10)
    got = metric.compute()
    assert [got[f"p@0.{k}"] for k in (5, 6, 7, 8, 9)] == [1.0, 0.8, 0.6, 0.4, 0.2]


@FAST
@given(runs, st.randoms(use_true_random=False))
def test_the_order_of_samples_changes_no_digit(run, chance):
    one, _ = scored(run)
    other, _ = scored(run, chance.sample(range(len(run)), len(run)))
    assert json.dumps(one.compute()) == json.dumps(other.compute())
    assert str(one.interval(n_resamples=20)) == str(other.interval(n_resamples=20))


@pytest.mark.parametrize("counts", [(-1, 2, 3), (0.5, 2, 3), (3, 2, 4), (3, 4, 2)])
def test_impossible_counts_are_refused(counts):
    metric = SegmentationMetric()
    with pytest.raises(MetricError, match="Pixel counts"):
        metric.update_counts(*counts)
    assert len(metric) == 0


def test_scoring_keeps_up_with_the_data():
    """A mask of a COCO photo costs well under a millisecond (2,000 samples a second a core)."""
    photos, metric = np.random.default_rng(0).random((8, 480, 640)) < 0.5, SegmentationMetric()
    start = time.process_time()
    for i in range(400):
        metric.update(photos[i % 8], photos[(i + 1) % 8])
    assert (time.process_time() - start) / 400 < 2e-3  # generous: shared machines are slow


# All metrics alike


def mean_iou(classes=3, background="class", absent="skip", ignore_index=255):
    return MeanIoU(classes, background=background, absent=absent, ignore_index=ignore_index)


TWO_SAMPLES = [
    (SegmentationMetric, [(np.eye(3, dtype=bool), np.ones((3, 3), bool)), (EMPTY, EMPTY)]),
    (BoxMetric, [((0, 0, 4, 4), (0, 0, 4, 5)), (None, (0, 0, 4, 5))]),
    (lambda: mean_iou(["x", "y"]), [(np.array([[0, 1, 1]]), np.array([[0, 1, 255]], np.uint8)),
                                    (np.array([[2, 2, 0]]), np.array([[2, 1, 0]]))]),
    (lambda: VQAAccuracy("vqav2"), [("yes", ["yes"] * 2 + ["no"] * 8), ("no", ["yes"] * 2 + ["no"] * 8)]),
    (YesNoMetric, [("Yes, there is.", "yes"), ("There is not.", "yes")]),
]


@pytest.mark.parametrize(("make", "samples"), TWO_SAMPLES)
def test_no_samples_is_an_error_and_none_counts_twice(make, samples):
    metric = make()
    with pytest.raises(MetricError, match="scored no sample"):
        metric.compute()
    for name, sample in zip((7, "b"), samples):
        metric.update(*sample, sample_id=name, malformed=name == "b")
    before = metric.compute()
    assert before["n"] == len(metric) == 2 and before["malformed_rate"] == 0.5
    with pytest.raises(MetricError, match="'7' was scored already"):
        metric.update(*samples[1], sample_id="7")
    assert json.dumps(metric.compute()) == json.dumps(before)  # NaN equals NaN here


@pytest.mark.parametrize(("make", "pred", "target", "words"), [
    (SegmentationMetric, np.zeros((2, 3), bool), np.zeros((3, 2), bool), "2.*3.*3.*2"),
    (SegmentationMetric, np.zeros((2, 3), np.uint8), np.zeros((2, 3), bool), "bool.*uint8"),
    (SegmentationMetric, np.zeros((2, 3), bool), np.zeros((2, 3), float), "bool.*float64"),
    (SegmentationMetric, np.zeros((1, 2, 3), bool), np.zeros((2, 3), bool), r"\(1, 2, 3\)"),
    (BoxMetric, (0, 0, 1, 1), None, "missing"),
    (BoxMetric, (0, 0, 1, 1), np.zeros((3, 3), bool), "missing"),
    (BoxMetric, (5, 5, 2, 9), (0, 0, 1, 1), "no area"),
    (BoxMetric, (0, 0, 1), (0, 0, 1, 1), "four"),
    (BoxMetric, (0, 0, math.nan, 1), (0, 0, 1, 1), "finite"),
    (BoxMetric, np.ones((2, 2), bool), np.ones((4, 4), bool), "2.*2.*4.*4"),
    (BoxMetric, np.ones((2, 2), int), (0, 0, 2, 2), "bool"),
    (mean_iou, [[4]], [[1]], "predicted.*index 4.*ends at 3"),
    (mean_iou, [[255]], [[1]], "predicted.*index 255"),
    (mean_iou, [[1]], [[9]], "true.*index 9.*255"),
    (mean_iou, [[-1]], [[1]], "index -1"),
    (mean_iou, [[1.0]], [[1]], "integers"),
    (mean_iou, [[1, 1]], [[1]], "1, 2.*1, 1"),
    (mean_iou, [1], [1], "height, width"),
    (YesNoMetric, "yes", "maybe", "yes or no"),
    (lambda: VQAAccuracy("vqav2"), "x", ["x"], "1 true answer"),
    (VQAAccuracy, "x", [], "0 true answer"),
    (VQAAccuracy, None, ["x"], "must be text"),
    (lambda: VQAAccuracy(normalise="official"), "x", [1, "x"], "must be text"),
])
def test_bad_samples_are_named_and_not_scored(make, pred, target, words):
    metric = make()
    with pytest.raises(ValueError, match=words):
        metric.update(pred, target)
    assert len(metric) == 0


@pytest.mark.parametrize("make", [
    lambda: mean_iou(0), lambda: mean_iou(["a", "a"]), lambda: mean_iou(background="no"),
    lambda: mean_iou(absent="no"), lambda: mean_iou(ignore_index=2), lambda: VQAAccuracy("soft"),
    lambda: VQAAccuracy(normalise="no"), lambda: BoxMetric([1]), lambda: BoxMetric([]),
])
def test_unknown_conventions_are_refused(make):
    with pytest.raises(MetricError):
        make()


# Boxes

side = st.integers(0, 9)
boxes = st.builds(lambda x, y, w, h: (x, y, x + w + 1, y + h + 1), side, side, side, side)


@FAST
@given(st.lists(st.tuples(st.none() | boxes, boxes), min_size=1, max_size=6))
def test_boxes_equal_counted_pixels(run):
    def inside(box):
        return {(y, x) for y in range(box[1], box[3]) for x in range(box[0], box[2])} if box else set()

    metric = BoxMetric()
    ious = [jaccard(inside(pred), inside(target)) for pred, target in run]
    assert [metric.update(pred, target) for pred, target in run] == [float(iou) for iou in ious]
    got = metric.compute()
    assert got["acc50"] == mean([iou > Fraction(1, 2) for iou in ious])
    assert got["box_iou"] == pytest.approx(mean(ious))
    assert got["n_no_box"] == sum(pred is None for pred, _ in run)


def test_masks_stand_for_their_boxes_and_one_half_is_not_enough():
    metric = BoxMetric((0.5, 0.25))
    mask = np.zeros((5, 5), bool)
    mask[2, 3] = True
    assert metric.update(mask, (3, 2, 4, 3)) == 1
    assert metric.update((0, 0, 2, 1), (0, 0, 4, 1)) == 0.5
    assert metric.update(np.zeros((5, 5), bool), mask) == 0
    got = metric.compute()
    assert (got["acc50"], got["acc25"], got["n_no_box"]) == (1 / 3, 2 / 3, 1)


# Mean IoU

IGNORE = 255
class_maps = arrays(np.int64, (3, 4), elements=st.integers(0, 3))
true_maps = (arrays(np.uint8, (3, 4), elements=st.sampled_from([0, 1, 2, 3, IGNORE]))
             | st.just(np.full((3, 4), IGNORE, np.uint8)))


def miou_oracle(run, background, absent):
    """Pixel by pixel, class by class."""
    pairs = [(int(p), int(t)) for pred, target in run for p, t in zip(pred.flat, target.flat)
             if t != IGNORE and not (background == "ignored" and t == 0)]
    terms = []
    for k in range(0 if background == "class" else 1, 4):
        union = sum(k in pair for pair in pairs)
        if absent == "skip_no_truth" and not any(t == k for _, t in pairs):
            continue
        if union:
            terms.append(Fraction(pairs.count((k, k)), union))
        elif absent in ("zero", "one"):
            terms.append(Fraction(absent == "one"))
    return mean(terms), mean([p == t for p, t in pairs]), len(terms)


@FAST
@given(st.lists(st.tuples(class_maps, true_maps), min_size=1, max_size=4), st.sampled_from(BACKGROUND),
       st.sampled_from(ABSENT))
def test_maps_and_stored_counts_equal_the_definition_under_every_convention(run, background, absent):
    by_maps, by_counts = (mean_iou(3, background, absent) for _ in "ab")
    for pred, target in run:
        own = by_maps.update(pred, target)
        by_counts.update_counts(class_counts(pred, target, 3, IGNORE))
    got = by_maps.compute()
    assert (got["miou"], got["pixel_acc"], got["n_averaged"]) == pytest.approx(
        miou_oracle(run, background, absent), nan_ok=True)
    assert json.dumps(got) == json.dumps(by_counts.compute())
    if len(run) == 1 and absent == "skip":
        assert own == pytest.approx(got["miou"], nan_ok=True)


@pytest.mark.parametrize(("change", "words"), [
    ({9: [0, 0, 0, 0]}, "from 0 to 3"),
    ({0: [5, 2, 3, 2]}, "no two class maps"),
    ({1: [1, 2, 1, 3]}, "no two class maps"),
    ({0: [-1, 2, 3, 2]}, "no two class maps"),
])
def test_counts_of_no_class_maps_are_refused(change, words):
    metric, good = mean_iou(), {0: [2, 2, 3, 2], 1: [1, 2, 1, 1]}
    with pytest.raises(MetricError, match=words):
        metric.update_counts({**good, **change})
    assert not len(metric)
    metric.update_counts(good)


# Visual questions


def consensus_oracle(prediction, answers):
    scores = []
    for left_out in range(len(answers)):
        others = answers[:left_out] + answers[left_out + 1:]
        scores.append(min(Fraction(others.count(prediction), 3), 1))
    return mean(scores)


def official_oracle(prediction, answers):
    """The published procedure step by step, for answers without contractions."""
    def marks_off(text):
        out = text
        for mark in ';/[]"{}()=+\\_-><@`,?!':
            apart = mark + " " in text or " " + mark in text or re.search(r"\d,\d", text)
            out = out.replace(mark, "" if apart else " ")
        return re.sub(r"\.(?!\d)", "", out)

    prediction = prediction.strip()
    if len(set(answers)) > 1:
        answers = [marks_off(answer) for answer in answers]
        digits = {"none": "0", "one": "1", "two": "2", "three": "3"}
        words = [digits.get(word, word) for word in marks_off(prediction).lower().split()]
        prediction = " ".join(word for word in words if word not in ("a", "an", "the"))
    return consensus_oracle(prediction, answers)


@FAST
@given(st.sampled_from(["two", " 2\n", "The cat.", "cat", "t-shirt", "t shirt", "1,000", "a cat", "no!"]),
       st.lists(st.sampled_from(["2", "two", "cat", "t-shirt", "1,000", "no", "No"]), min_size=2,
                max_size=10))
def test_the_rules_for_several_answers_equal_their_procedures(prediction, answers):
    raw, official = (VQAAccuracy("vqav2", normalise=how) for how in (False, "official"))
    for several in (answers, answers[:1] * 9):  # the second: all agree
        assert raw.update(prediction, several) == consensus_oracle(prediction, several)
        assert official.update(prediction, several) == official_oracle(prediction, several)


def test_ten_annotators_give_the_four_known_scores():
    scores = [VQAAccuracy("vqav2").update("cat", ["cat"] * k + ["dog"] * (10 - k)) for k in range(6)]
    assert scores == [0, 0.3, 0.6, 0.9, 1, 1]


@pytest.mark.parametrize(("text", "expected"), [
    ("Yes.", "yes"), (" The red\tumbrella\n", "red umbrella"), ("an apple and a pear", "apple and pear"),
    ("Ten", "10"), ("none", "0"), ("1,000", "1000"), ("10,000 people, maybe", "10000 people maybe"),
    ("red, white", "red white"), ("t-shirt", "t shirt"), ("black/white", "black white"),
    ("black / white", "black white"), ("3.5", "3.5"), ("3.5.", "3.5"), ("U.S.A.", "usa"), ("what?!", "what"),
    ("dont", "don't"), ("Isn't", "isn't"), ("its", "its"), ("", ""),
])
def test_normalisation(text, expected):
    assert normalise_answer(text) == expected


@FAST
@given(st.text(alphabet="aAtheo19.,-?!'/ \n", max_size=12))
def test_normalised_text_holds_no_marks_and_no_wide_spaces(text):
    clean = normalise_answer(text)
    assert not set(clean) & set(",-?!/\n") and clean == " ".join(clean.split()).lower()


def test_exact_match_takes_any_of_the_answers():
    metric = VQAAccuracy()
    assert [metric.update(*pair) for pair in (
        ("Two", "2"), ("a bike", ["bicycle", "bike"]), ("car", ["bicycle", "bike"]), ("", "bike"))] == [
            1, 1, 0, 0]
    assert metric.compute() == {"accuracy": 0.5, "n": 4, "n_malformed": 0, "malformed_rate": 0}
    assert VQAAccuracy(normalise=False).update("Two", "2") == 0


@FAST
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=20))
def test_yes_and_no_equal_torchmetrics(pairs):
    import torch
    from torchmetrics.functional import classification as theirs

    metric = YesNoMetric()
    for said, true in pairs:
        metric.update("Yes" if said else "No, it is not.", "yes" if true else "no")
    got = metric.compute()
    said, true = (torch.tensor(column).int() for column in zip(*pairs))
    for key in ("accuracy", "precision", "recall", "f1_score"):  # theirs is 0 over nothing, where ours is NaN
        oracle = getattr(theirs, f"binary_{key}")(said, true).item()
        assert np.nan_to_num(got[key.removesuffix("_score")]) == pytest.approx(oracle, abs=1e-6)
    assert [math.isnan(got[key]) for key in ("precision", "recall", "f1")] == [
        not said.any(), not true.any(), not (said | true).any()]
    assert got["yes_ratio"] == pytest.approx(said.float().mean().item())


@pytest.mark.parametrize(("text", "read"), [
    ("Yes", "yes"), ("no", "no"), ("No.", "no"), ("There is not a cat, yes.", "no"),
    ("Yes. There is no dog.", "yes"), ("nothing", "yes"), ("", "yes"),
])
def test_yes_or_no_reads_the_first_sentence(text, read):
    assert yes_or_no(text) == read


# Bootstrap


def test_bootstrap_equals_scipy():
    from scipy import stats

    rng = np.random.default_rng(5)
    both, union = rng.integers(0, 50, 120), rng.integers(50, 90, 120)
    got = bootstrap(both, union, n_resamples=4000, level=0.9, seed=1)
    expected = stats.bootstrap(
        (both, union), lambda a, b, axis: a.sum(axis) / b.sum(axis), paired=True,
        n_resamples=4000, confidence_level=0.9, method="percentile", rng=2,
    ).confidence_interval
    assert got.value == both.sum() / union.sum()
    assert got[1:] == pytest.approx(expected, abs=0.07 * (expected.high - expected.low))


def test_bootstrap_is_repeatable_and_brackets_the_value():
    values = np.random.default_rng(0).random(50)
    first, again, other = (bootstrap(values, seed=s) for s in (7, 7, 8))
    assert first == again != other and first.value == pytest.approx(values.mean())
    narrow = bootstrap(values, level=0.5, seed=7)
    assert first.low < narrow.low < first.value < narrow.high < first.high


def test_groups_are_drawn_whole():
    # ten copies of the same four samples are no more evidence than four samples
    values, groups = [0.0, 0.2, 0.8, 1.0] * 10, [0, 1, 2, 3] * 10
    grouped = bootstrap(values, groups=groups, seed=0)
    assert grouped == pytest.approx(bootstrap([0.0, 0.2, 0.8, 1.0], seed=0))
    assert grouped.high - grouped.low > 2 * np.subtract(*bootstrap(values, seed=0)[:0:-1])


def test_metric_intervals_agree_with_their_scores():
    rng = np.random.default_rng(3)
    metric = SegmentationMetric()
    for i in range(30):
        target = rng.random((6, 6)) < 0.5
        metric.update(target ^ (rng.random((6, 6)) < 0.2), target, sample_id=f"{i:02d}")
    for name in ("ciou", "giou"):
        interval, score = metric.interval(name, n_resamples=200), metric.compute()[name]
        assert interval.low < score < interval.high and interval.value == pytest.approx(score)
    by_image = metric.interval("ciou", groups=[i // 3 for i in range(30)], n_resamples=200)
    assert by_image != metric.interval("ciou", n_resamples=200)
    for wrong in ({"name": "n_acc"}, {"groups": [1]}):
        with pytest.raises(MetricError, match="'n_acc'|1 groups"):
            metric.interval(**wrong)


@pytest.mark.parametrize(("values", "options"), [
    ([], {}), ([1, 2], {"weights": [1]}), ([1, 2], {"groups": [1]}), ([1, math.nan], {}),
    ([1, 2], {"weights": [1, -1]}), ([1, 2], {"level": 1}), ([1, 2], {"n_resamples": 0}),
])
def test_bad_bootstrap_input_is_refused(values, options):
    with pytest.raises(MetricError):
        bootstrap(values, **options)
    assert np.isnan(bootstrap([0, 0], [0, 0])).all(), "without a union there is no interval, but no error"


A, B, FAR = (0, 0, 4, 4), (10, 0, 14, 4), (20, 0, 24, 4)
HALF, LESS = (0, 0, 4, 2), (0, 0, 4, 1)  # IoU with A: 8/16 and 4/16


@pytest.mark.parametrize(("pred", "target", "right"), [
    ([A], [A], 1), ([HALF], [A], 1), ([LESS], [A], 0), ([B, A], [A, B], 1), ([A], [A, B], 0),
    ([A, B], [A], 0), ([A, FAR], [A, B], 0), ([A, A], [A, B], 0), ([], [A], 0), ([A], [], 0), ([], [], 1),
    # the nearest pair first, as a greedy search takes it (A with A), would leave HALF and (0, 0, 4, 5) over
    ([A, HALF], [A, (0, 0, 4, 5)], 1)])
def test_grec_wants_every_box_and_no_other(pred, target, right):
    assert GrecMetric().update(pred, target) == right


def test_grec_counts_samples_and_rejections():
    metric = GrecMetric()
    for pred, target, malformed in (([A], [A], True), ([A], [B], False), ([], [], False), ([], [], True)):
        metric.update(pred, target, malformed=malformed)
    assert metric.compute() == {"grec": 0.5, "n_acc": 0.5, "n": 4, "n_malformed": 2, "malformed_rate": 0.5}
    with pytest.raises(MetricError, match="has scored no sample"):
        GrecMetric().compute()


def strip(start, stop, label="dog", width=20, **more):
    """An object: some of the columns of a picture one pixel high."""
    return Instance(label, to_rle((np.arange(width) >= start)[None] & (np.arange(width) < stop)), **more)


def test_panoptic_quality_equals_torchmetrics():
    import torch
    from torchmetrics.detection import PanopticQuality

    rng, ours = np.random.default_rng(4), InstanceMetric()
    theirs = PanopticQuality({1, 2}, {0}, return_sq_and_rq=True, return_per_class=True)
    for _ in range(12):  # maps of (class, number), class 0 the background
        true, other = (np.kron(rng.integers(0, [3, 2], (3, 3, 2)), np.ones((4, 4, 1), int)) for _ in range(2))
        found = np.where(rng.random((12, 12, 1)) < rng.random() / 2, other, true)
        sides = []
        for one in (found, true):
            one[one[..., 0] == 0] = 0
            sides.append([Instance(str(c), to_rle((one == (c, k)).all(-1)))
                          for c, k in np.unique(one.reshape(-1, 2), axis=0) if c])
        ours.update(*sides)
        theirs.update(torch.from_numpy(found)[None], torch.from_numpy(true)[None])
    rows, expected = ours.by_class(), theirs.compute().reshape(-1, 3)[:2]
    got = [[row[key] for key in ("pq", "sq", "rq")] for row in rows]
    assert got == pytest.approx(expected.numpy(), abs=1e-6)
    assert ours.compute()["pq"] == pytest.approx(expected[:, 0].mean().item(), abs=1e-6)
    assert all(0.1 < value < 0.95 for row in got for value in row), "neither all right nor all wrong"


def test_panoptic_quality_by_hand():
    metric = InstanceMetric()
    true = [strip(0, 4), strip(10, 14), strip(0, 4, "cat"), strip(16, 20, "cow", crowd=True)]
    found = [strip(0, 3), strip(10, 12), strip(4, 8, "cat"), strip(17, 20, "cow"), strip(13, 18, "cow")]
    assert metric.update(found, true) == pytest.approx((0.75 * 0.5 + 0 + 0) / 3)
    assert metric.by_class() == [
        {"label": "cat", "pq": 0, "sq": 0, "rq": 0, "n_found": 1, "n_true": 1, "n_pairs": 0},
        # what lies in the crowd is not counted, what lies there by two fifths is
        {"label": "cow", "pq": 0, "sq": 0, "rq": 0, "n_found": 1, "n_true": 0, "n_pairs": 0},
        # an IoU of 3/4 is a pair, one of exactly 1/2 is none
        {"label": "dog", "pq": 0.375, "sq": 0.75, "rq": 0.5, "n_found": 2, "n_true": 2, "n_pairs": 1}]
    assert metric.compute()["n_true"] == 3
    one_to_one = InstanceMetric()  # a found object has an IoU of 4/6 with each of two that overlap
    one_to_one.update([strip(1, 6)], [strip(0, 5), strip(2, 7)])
    assert one_to_one.by_class()[0]["n_pairs"] == 1
    nothing = InstanceMetric()
    assert math.isnan(nothing.update([], [])) and math.isnan(nothing.compute()["ap"])
    with pytest.raises(MetricError, match="resize"):
        metric.update([strip(0, 4, width=30)], true)


def test_average_precision_by_hand():
    """Of two objects one is found: precision counts at the 51 of 101 recalls up to 1/2."""
    def scores(right, wrong, order=("a", "b"), **more):
        metric = InstanceMetric()
        for name in order:
            found = [strip(0, 4, score=right)] if name == "a" else [strip(8, 10, score=wrong)]
            metric.update(found, [strip(0, 4), *more.get(name, [])], sample_id=name)
        return metric.compute()

    assert scores(0.9, 0.8)["ap50"] == pytest.approx(51 / 101)
    assert scores(0.8, 0.9)["ap50"] == scores(0.8, 0.9, ("b", "a"))["ap50"] == pytest.approx(51 / 101 / 2)
    assert scores(0.8, 0.9, b=[strip(8, 14, crowd=True)])["ap"] == pytest.approx(51 / 101)
    metric = InstanceMetric()
    metric.update([strip(0, 4), strip(8, 11)], [strip(0, 4), strip(8, 12)])  # IoU 1 and 0.75
    got = metric.compute()
    assert got["ap50"] == got["ap75"] == pytest.approx(1)
    assert got["ap"] == pytest.approx((6 + 4 * 51 / 101) / 10)
