"""Metrics against torchmetrics, SciPy and slow oracles written from the definitions."""

from __future__ import annotations

import json
import math
import random
import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from t4s_helpers.codec.grid import box_iou, mask_iou
from t4s_helpers.evaluation.metrics import (
    ABSENT, BACKGROUND, BoxMetric, MeanIoU, MetricError, SegmentationMetric, VQAAccuracy, YesNoMetric,
    bootstrap, class_counts, normalise_answer, yes_or_no,
)

FAST = settings(max_examples=60, deadline=None)


def masks(shape=(5, 6)):
    """Masks of all densities, empty ones often: they are where definitions differ."""
    dense = arrays(bool, shape)
    return st.one_of(dense, st.just(np.zeros(shape, bool)), st.just(np.ones(shape, bool)))


def runs(shape=(5, 6), max_size=8):
    one = st.tuples(masks(shape), masks(shape), st.booleans())
    return st.lists(one, min_size=1, max_size=max_size)


def scored(run, **options):
    metric = SegmentationMetric(**options)
    for i, (pred, target, malformed) in enumerate(run):
        metric.update(pred, target, sample_id=f"s{i}", malformed=malformed)
    return metric


def pixels(mask):
    return {(y, x) for y in range(mask.shape[0]) for x in range(mask.shape[1]) if mask[y, x]}


def oracle(run, malformed_is_rejection):
    """The definitions, word for word, on sets of pixels and exact fractions; NaN over no sample."""
    sum_i = sum_u = 0
    ious, hits, rejected, found = [], [], [], []
    for pred, target, malformed in run:
        p, t = pixels(pred), pixels(target)
        if not t:
            ok = not p and (malformed_is_rejection or not malformed)
            rejected.append(ok)
            ious.append(Fraction(ok))
            sum_u += len(p)
        else:
            found.append(bool(p))
            iou = Fraction(len(p & t), len(p | t))
            ious.append(iou)
            hits.append(iou)
            sum_i += len(p & t)
            sum_u += len(p | t)

    def mean(values):
        return float(Fraction(sum(values)) / len(values)) if values else math.nan

    tenths = {f"p@0.{t}": mean([iou >= Fraction(t, 10) for iou in hits]) for t in range(5, 10)}
    return {
        "ciou": sum_i / sum_u if sum_u else math.nan,
        "giou": mean(ious),
        **tenths,
        "n_acc": mean(rejected),
        "t_acc": mean(found),
        "n_target": len(found),
        "n_no_target": len(rejected),
        "n": len(run),
        "n_malformed": sum(m for _, _, m in run),
        "malformed_rate": sum(m for _, _, m in run) / len(run),
    }


# SegmentationMetric


@FAST
@given(runs(), st.booleans())
def test_segmentation_equals_the_definitions(run, credit):
    got = scored(run, malformed_is_rejection=credit).compute()
    assert got == pytest.approx(oracle(run, credit), abs=1e-12, nan_ok=True)


def test_segmentation_equals_torchmetrics():
    torch = pytest.importorskip("torch")
    classification = pytest.importorskip("torchmetrics.classification")
    rng = np.random.default_rng(0)
    metric, dataset, means = SegmentationMetric(), classification.BinaryJaccardIndex(), []
    hits = {t: [] for t in (0.5, 0.7, 0.9)}
    for _ in range(40):
        target = rng.random((12, 17)) < rng.uniform(0.05, 0.9)
        pred = target ^ (rng.random((12, 17)) < rng.uniform(0, 0.5))
        metric.update(pred, target)
        p, t = torch.from_numpy(pred), torch.from_numpy(target)
        dataset.update(p, t)
        means.append(classification.BinaryJaccardIndex()(p, t).item())
        for threshold, found in hits.items():
            found.append(means[-1] >= threshold)
    got = metric.compute()
    assert got["ciou"] == pytest.approx(dataset.compute().item(), abs=1e-6)
    assert got["giou"] == pytest.approx(np.mean(means), abs=1e-6)
    for threshold, found in hits.items():
        assert got[f"p@{threshold}"] == pytest.approx(np.mean(found))


def square(shape, y, x, side):
    mask = np.zeros(shape, bool)
    mask[y : y + side, x : x + side] = True
    return mask


def test_the_four_cases_by_hand():
    empty, target = np.zeros((4, 4), bool), square((4, 4), 0, 0, 2)
    metric = SegmentationMetric()
    assert metric.update(square((4, 4), 0, 1, 2), target) == 2 / 6
    assert metric.update(empty, target) == 0
    assert metric.update(empty, empty) == 1
    assert metric.update(square((4, 4), 0, 0, 3), empty) == 0
    got = metric.compute()
    assert got["ciou"] == 2 / (6 + 4 + 0 + 9)
    assert got["giou"] == pytest.approx((1 / 3 + 0 + 1 + 0) / 4)
    assert (got["n_acc"], got["t_acc"]) == (0.5, 0.5)
    assert (got["n"], got["n_target"], got["n_no_target"]) == (4, 2, 2)


def test_precision_counts_an_iou_equal_to_the_threshold():
    metric = SegmentationMetric()
    for k in (5, 6, 7, 8, 9):  # IoU exactly k/10
        metric.update_counts(k, k, 10)
    got = metric.compute()
    assert [got[f"p@0.{k}"] for k in (5, 6, 7, 8, 9)] == [1.0, 0.8, 0.6, 0.4, 0.2]


# All metrics alike

TWO_SAMPLES = {
    SegmentationMetric: [(np.eye(3, dtype=bool), np.ones((3, 3), bool)), (np.zeros((3, 3), bool),) * 2],
    BoxMetric: [((0, 0, 4, 4), (0, 0, 4, 5)), (None, (0, 0, 4, 5))],
    MeanIoU: [(np.array([[0, 1, 1]]), np.array([[0, 1, 255]], np.uint8)),
              (np.array([[2, 2, 0]]), np.array([[2, 1, 0]]))],
    VQAAccuracy: [("yes", ["yes"] * 2 + ["no"] * 8), ("no", ["yes"] * 2 + ["no"] * 8)],
    YesNoMetric: [("Yes, there is.", "yes"), ("There is not.", "yes")],
}
MAKE = {
    **{kind: kind for kind in TWO_SAMPLES},
    BoxMetric: lambda: BoxMetric((0.5, 0.75)),
    MeanIoU: lambda: MeanIoU(["x", "y"], background="class", absent="skip", ignore_index=255),
    VQAAccuracy: lambda: VQAAccuracy("vqav2"),
}


@pytest.mark.parametrize("kind", MAKE)
def test_no_samples_is_an_error_and_none_counts_twice(kind):
    metric = MAKE[kind]()
    with pytest.raises(MetricError, match="scored no sample"):
        metric.compute()
    for name, sample in zip((7, "b"), TWO_SAMPLES[kind], strict=True):
        metric.update(*sample, sample_id=name, malformed=name == "b")
    before = metric.compute()
    assert before["n"] == len(metric) == 2 and before["malformed_rate"] == 0.5
    with pytest.raises(MetricError, match="'7' was scored already"):
        metric.update(*TWO_SAMPLES[kind][1], sample_id="7")
    assert json.dumps(metric.compute()) == json.dumps(before)  # NaN equals NaN here


@FAST
@given(runs(max_size=10), st.randoms(use_true_random=False))
def test_the_order_of_samples_changes_no_digit(run, chance):
    shuffled = SegmentationMetric()
    for i in chance.sample(range(len(run)), len(run)):
        pred, target, malformed = run[i]
        shuffled.update(pred, target, sample_id=f"s{i}", malformed=malformed)
    assert json.dumps(shuffled.compute()) == json.dumps(scored(run).compute())
    assert str(shuffled.interval(n_resamples=20)) == str(scored(run).interval(n_resamples=20))


# Bad masks


@pytest.mark.parametrize(("pred", "target", "words"), [
    (np.zeros((2, 3), bool), np.zeros((3, 2), bool), "2.*3.*3.*2"),
    (np.zeros((2, 3), np.uint8), np.zeros((2, 3), bool), "bool.*uint8"),
    (np.zeros((2, 3), bool), np.zeros((2, 3), float), "bool.*float64"),
    (np.zeros((1, 2, 3), bool), np.zeros((2, 3), bool), r"\(1, 2, 3\)"),
])
def test_bad_masks_are_named_and_not_scored(pred, target, words):
    metric = SegmentationMetric()
    with pytest.raises(ValueError, match=words):
        metric.update(pred, target)
    assert len(metric) == 0


@pytest.mark.parametrize("counts", [(-1, 2, 3), (0.5, 2, 3), (3, 2, 4), (3, 4, 2)])
def test_impossible_counts_are_refused(counts):
    metric = SegmentationMetric()
    with pytest.raises(MetricError):
        metric.update_counts(*counts)
    assert len(metric) == 0


@FAST
@given(masks(), masks())
def test_mask_iou_equals_sets(pred, target):
    p, t = pixels(pred), pixels(target)
    assert mask_iou(pred, target) == (len(p & t) / len(p | t) if p | t else 1)


# Boxes

corner = st.integers(0, 9)
boxes = st.builds(
    lambda x, y, w, h: (x, y, x + w + 1, y + h + 1), corner, corner, corner, corner
)


def box_pixels(box):
    return {(y, x) for y in range(box[1], box[3]) for x in range(box[0], box[2])}


@FAST
@given(boxes, boxes)
def test_box_iou_equals_counted_pixels(a, b):
    p, q = box_pixels(a), box_pixels(b)
    assert box_iou(a, b) == len(p & q) / len(p | q)


@FAST
@given(st.lists(st.tuples(masks(), masks()), min_size=1, max_size=6))
def test_boxes_of_masks_equal_the_definition(run):
    run = [(pred, target) for pred, target in run if target.any()]
    assume(run)
    metric, right = BoxMetric(), []
    for pred, target in run:
        metric.update(pred, target)
        spans = [
            {(y, x) for y in range(min(ys), max(ys) + 1) for x in range(min(xs), max(xs) + 1)}
            for ys, xs in ((np.nonzero(m)[0], np.nonzero(m)[1]) for m in (pred, target))
            if len(ys)
        ]
        right.append(len(spans) == 2 and 2 * len(spans[0] & spans[1]) > len(spans[0] | spans[1]))
    got = metric.compute()
    assert got["acc50"] == pytest.approx(np.mean(right))
    assert got["n_no_box"] == sum(not pred.any() for pred, _ in run)


def test_an_iou_of_exactly_one_half_is_wrong():
    metric = BoxMetric((0.5, 0.25))
    assert metric.update((0, 0, 2, 1), (0, 0, 4, 1)) == 0.5
    got = metric.compute()
    assert got["acc50"] == 0 and got["acc25"] == 1


def test_boxes_are_half_open():
    assert box_iou((0, 0, 1, 1), (1, 0, 2, 1)) == 0  # neighbours do not overlap
    assert box_iou((3, 2, 4, 3), (3, 2, 4, 3)) == 1  # one pixel has an area
    mask = np.zeros((5, 5), bool)
    mask[2, 3] = True
    assert BoxMetric().update(mask, (3, 2, 4, 3)) == 1


@pytest.mark.parametrize(("pred", "target", "words"), [
    ((0, 0, 1, 1), None, "missing"),
    ((0, 0, 1, 1), np.zeros((3, 3), bool), "missing"),
    ((5, 5, 2, 9), (0, 0, 1, 1), "no area"),
    ((0, 0, 1), (0, 0, 1, 1), "four"),
    ((0, 0, math.nan, 1), (0, 0, 1, 1), "finite"),
    (np.ones((2, 2), bool), np.ones((4, 4), bool), "2.*2.*4.*4"),
    (np.ones((2, 2), int), np.ones((2, 2), bool), "bool"),
    (np.ones((2, 2), int), (0, 0, 2, 2), "bool"),
])
def test_bad_boxes_are_named_and_not_scored(pred, target, words):
    metric = BoxMetric()
    with pytest.raises(ValueError, match=words):
        metric.update(pred, target)
    assert len(metric) == 0


# Mean IoU

N_CLASSES, IGNORE = 3, 255
class_maps = arrays(np.int64, (3, 4), elements=st.integers(0, N_CLASSES))
true_maps = arrays(np.uint8, (3, 4), elements=st.sampled_from([0, 1, 2, 3, IGNORE]))


def miou_oracle(run, background, absent):
    """Pixel by pixel, class by class."""
    pairs = [
        (int(p), int(t))
        for pred, target in run
        for p, t in zip(pred.flat, target.flat)
        if t != IGNORE and not (background == "ignored" and t == 0)
    ]
    terms = []
    for k in range(0 if background == "class" else 1, N_CLASSES + 1):
        union = sum(p == k or t == k for p, t in pairs)
        if absent == "skip_no_truth" and not any(t == k for _, t in pairs):
            continue
        if union:
            terms.append(Fraction(sum(p == t == k for p, t in pairs), union))
        elif absent in ("zero", "one"):
            terms.append(Fraction(absent == "one"))
    right = [p == t for p, t in pairs]
    return (
        float(sum(terms) / len(terms)) if terms else math.nan,
        sum(right) / len(right) if right else math.nan,
    )


@FAST
@given(
    st.lists(st.tuples(class_maps, true_maps), min_size=1, max_size=4),
    st.sampled_from(BACKGROUND),
    st.sampled_from(ABSENT),
)
def test_maps_and_stored_counts_equal_the_definition_under_every_convention(run, background, absent):
    by_maps, by_counts = (
        MeanIoU(N_CLASSES, background=background, absent=absent, ignore_index=IGNORE) for _ in "ab")
    for pred, target in run:
        own = by_maps.update(pred, target)
        by_counts.update_counts(class_counts(pred, target, N_CLASSES, IGNORE))
    got = by_maps.compute()
    assert (got["miou"], got["pixel_acc"]) == pytest.approx(miou_oracle(run, background, absent), nan_ok=True)
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
    metric = MeanIoU(3, background="class", absent="skip")
    good = {0: [2, 2, 3, 2], 1: [1, 2, 1, 1]}
    with pytest.raises(MetricError, match=words):
        metric.update_counts({**good, **change})
    assert not len(metric)
    metric.update_counts(good)


@pytest.mark.parametrize("absent_class", [None, 2])
def test_mean_iou_equals_torchmetrics(absent_class):
    torch = pytest.importorskip("torch")
    classification = pytest.importorskip("torchmetrics.classification")
    rng = np.random.default_rng(2)
    ours = MeanIoU(4, background="class", absent="skip", ignore_index=255)
    theirs = classification.MulticlassJaccardIndex(5, average="macro", ignore_index=255)
    for _ in range(10):
        target = rng.integers(0, 5, (9, 11))
        pred = np.where(rng.random((9, 11)) < 0.6, target, rng.integers(0, 5, (9, 11)))
        if absent_class is not None:
            target[target == absent_class] = 0
            pred[pred == absent_class] = 0
        target[rng.random((9, 11)) < 0.1] = 255
        ours.update(pred, target)
        theirs.update(torch.from_numpy(pred), torch.from_numpy(target))
    assert ours.compute()["miou"] == pytest.approx(theirs.compute().item(), abs=1e-6)
    assert ours.compute()["n_averaged"] == 5 - (absent_class is not None)


def test_the_conventions_differ_where_they_should():
    pred, target = np.array([[1, 1, 2, 0]]), np.array([[0, 1, 0, 0]])
    got = {}
    for background in BACKGROUND:
        for absent in ABSENT:
            metric = MeanIoU(3, background=background, absent=absent)
            metric.update(pred, target)
            got[background, absent] = metric.compute()["miou"]
    # class 0: 1/3, class 1: 1/2, class 2: predicted only -> 0, class 3: nowhere
    assert got["class", "skip"] == pytest.approx((1 / 3 + 1 / 2 + 0) / 3)
    assert got["class", "zero"] == pytest.approx((1 / 3 + 1 / 2 + 0 + 0) / 4)
    assert got["class", "one"] == pytest.approx((1 / 3 + 1 / 2 + 0 + 1) / 4)
    assert got["not_averaged", "skip"] == pytest.approx((1 / 2 + 0) / 2)
    assert got["not_averaged", "skip_no_truth"] == 0.5
    assert got["ignored", "skip"] == 1.0  # only the pixel of class 1 is looked at


def test_mean_iou_of_nothing_but_ignored_pixels_is_nan():
    metric = MeanIoU(2, background="ignored", absent="skip", ignore_index=255)
    assert math.isnan(metric.update(np.array([[1, 2]]), np.array([[255, 0]])))
    got = metric.compute()
    assert math.isnan(got["miou"]) and math.isnan(got["pixel_acc"]) and got["n_averaged"] == 0


@pytest.mark.parametrize(("pred", "target", "words"), [
    ([[4]], [[1]], "predicted.*index 4.*ends at 3"),
    ([[255]], [[1]], "predicted.*index 255"),
    ([[1]], [[9]], "true.*index 9.*255"),
    ([[-1]], [[1]], "index -1"),
    ([[1.0]], [[1]], "integers"),
    ([[1, 1]], [[1]], "1, 2.*1, 1"),
    ([1], [1], "height, width"),
])
def test_bad_class_maps_are_named_and_not_scored(pred, target, words):
    metric = MeanIoU(3, background="class", absent="skip", ignore_index=255)
    with pytest.raises(MetricError, match=words):
        metric.update(np.array(pred), np.array(target))
    assert len(metric) == 0


@pytest.mark.parametrize("options", [
    {"classes": 0}, {"classes": ["a", "a"]}, {"background": "no"}, {"absent": "no"}, {"ignore_index": 2},
])
def test_bad_conventions_are_refused(options):
    options = {"classes": 3, "background": "class", "absent": "skip", **options}
    with pytest.raises(MetricError):
        MeanIoU(options.pop("classes"), **options)


# Visual questions


def consensus_oracle(prediction, answers):
    scores = []
    for left_out in range(len(answers)):
        others = answers[:left_out] + answers[left_out + 1 :]
        scores.append(min(Fraction(others.count(prediction), 3), 1))
    return float(sum(scores) / len(scores))


@FAST
@given(st.sampled_from("abc"), st.lists(st.sampled_from("abc"), min_size=2, max_size=12))
def test_the_consensus_rule_leaves_each_annotator_out(prediction, answers):
    # letters as they are: normalisation would drop the article "a"
    metric = VQAAccuracy("vqav2", normalise=False)
    assert metric.update(prediction, answers) == consensus_oracle(prediction, answers)


def test_ten_annotators_give_the_four_known_scores():
    metric = VQAAccuracy("vqav2")
    scores = [metric.update("cat", ["cat"] * k + ["dog"] * (10 - k)) for k in range(6)]
    assert scores == [0, 0.3, 0.6, 0.9, 1, 1]
    assert metric.compute()["accuracy"] == pytest.approx(3.8 / 6)


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
    assert not set(clean) & set(",-?!/\n") and "  " not in clean and clean == clean.strip()
    assert clean == clean.lower()


def test_exact_match_takes_any_of_the_answers():
    metric = VQAAccuracy()
    assert metric.update("Two", "2") == 1
    assert metric.update("a bike", ["bicycle", "bike"]) == 1
    assert metric.update("car", ["bicycle", "bike"]) == 0
    assert metric.update("", "bike", malformed=True) == 0
    assert metric.compute() == {
        "accuracy": 0.5, "n": 4, "n_malformed": 1, "malformed_rate": 0.25,
    }
    assert VQAAccuracy(normalise=False).update("Two", "2") == 0


def official_oracle(prediction, answers):
    """The published procedure step by step, for answers without contractions."""
    def marks_off(text):
        out = text
        for mark in ";/[]\"{}()=+\\_-><@`,?!":
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
@given(
    st.sampled_from(["two", "2", "The cat.", "cat", "t-shirt", "t shirt", "1,000", "a cat", "no!"]),
    st.lists(st.sampled_from(["2", "two", "cat", "t-shirt", "1,000", "no", "No"]), min_size=2,
             max_size=10),
)
def test_the_official_rule_equals_its_procedure(prediction, answers):
    metric = VQAAccuracy("vqav2", normalise="official")
    assert metric.update(prediction, answers) == official_oracle(prediction, answers)


def test_the_official_rule_leaves_unanimous_answers_alone():
    unanimous, mixed = ["2"] * 10, ["2"] * 9 + ["3"]
    for prediction, answers, ours, official in (
        ("two", unanimous, 1, 0), ("two", mixed, 1, 1), (" 2\n", unanimous, 1, 1),
        ("2", ["two"] * 9 + ["3"], 1, 0),  # words in the truth stay words
    ):
        assert VQAAccuracy("vqav2").update(prediction, answers) == ours
        assert VQAAccuracy("vqav2", normalise="official").update(prediction, answers) == official


@FAST
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=20))
def test_yes_and_no_equal_torchmetrics(pairs):
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("torchmetrics.functional.classification")
    metric = YesNoMetric()
    for said, true in pairs:
        metric.update("Yes" if said else "No, it is not.", "yes" if true else "no")
    got = metric.compute()
    said, true = (torch.tensor(column).int() for column in zip(*pairs))
    for key, theirs in (
        ("accuracy", functional.binary_accuracy), ("precision", functional.binary_precision),
        ("recall", functional.binary_recall), ("f1", functional.binary_f1_score),
    ):
        if math.isnan(got[key]):  # they say 0 where there is nothing to divide by
            assert theirs(said, true) == 0
        else:
            assert got[key] == pytest.approx(theirs(said, true).item(), abs=1e-6)
    assert got["yes_ratio"] == pytest.approx(said.float().mean().item())


@pytest.mark.parametrize(("text", "read"), [
    ("Yes", "yes"), ("no", "no"), ("No.", "no"), ("There is not a cat, yes.", "no"),
    ("Yes. There is no dog.", "yes"), ("nothing", "yes"), ("", "yes"),
])
def test_yes_or_no_reads_the_first_sentence(text, read):
    assert yes_or_no(text) == read


def test_a_yes_no_question_needs_a_yes_or_a_no():
    with pytest.raises(MetricError, match="neither|yes or no"):
        YesNoMetric().update("yes", "maybe")


def test_bad_answers_are_refused():
    metric = VQAAccuracy("vqav2")
    for prediction, answers in (("x", ["x"]), ("x", []), (None, ["x"] * 10), ("x", [1] * 10)):
        with pytest.raises(MetricError):
            metric.update(prediction, answers)
    with pytest.raises(MetricError):
        VQAAccuracy("soft")
    assert len(metric) == 0


# Bootstrap


def test_bootstrap_equals_scipy():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(5)
    both, union = rng.integers(0, 50, 120), rng.integers(50, 90, 120)
    got = bootstrap(both, union, n_resamples=4000, level=0.9, seed=1)
    expected = stats.bootstrap(
        (both, union), lambda a, b, axis: a.sum(axis) / b.sum(axis), paired=True,
        n_resamples=4000, confidence_level=0.9, method="percentile", rng=2,
    ).confidence_interval
    assert got.value == both.sum() / union.sum()
    width = expected.high - expected.low
    assert abs(got.low - expected.low) < 0.07 * width
    assert abs(got.high - expected.high) < 0.07 * width


def test_bootstrap_is_repeatable_and_brackets_the_value():
    values = np.random.default_rng(0).random(50)
    first, again, other = (bootstrap(values, seed=s) for s in (7, 7, 8))
    assert first == again != other
    assert first.value == pytest.approx(values.mean())
    assert first.low < first.value < first.high
    narrow = bootstrap(values, level=0.5, seed=7)
    assert first.low < narrow.low < narrow.high < first.high


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
    got = metric.compute()
    for name in ("ciou", "giou"):
        interval = metric.interval(name, n_resamples=200)
        assert interval.value == pytest.approx(got[name])
        assert interval.low < got[name] < interval.high
    by_image = metric.interval("ciou", groups=[i // 3 for i in range(30)], n_resamples=200)
    assert by_image != metric.interval("ciou", n_resamples=200)
    for wrong in ({"name": "n_acc"}, {"groups": [1]}):
        with pytest.raises(MetricError, match="'n_acc'|1 groups"):
            metric.interval(**wrong)


def test_bootstrap_without_a_union_has_no_interval():
    assert all(math.isnan(x) for x in bootstrap([0, 0], [0, 0]))


@pytest.mark.parametrize(("values", "options"), [
    ([], {}), ([1, 2], {"weights": [1]}), ([1, 2], {"groups": [1]}), ([1, math.nan], {}),
    ([1, 2], {"weights": [1, -1]}), ([1, 2], {"level": 1}), ([1, 2], {"n_resamples": 0}),
])
def test_bad_bootstrap_input_is_refused(values, options):
    with pytest.raises(MetricError):
        bootstrap(values, **options)


def test_scoring_keeps_up_with_the_data():
    """A mask of a COCO photo costs well under a millisecond (2,000 samples a second a core)."""
    import time

    rng = random.Random(0)
    masks_ = [square((480, 640), rng.randrange(200), rng.randrange(300), 200) for _ in range(8)]
    metric = SegmentationMetric()
    start = time.process_time()
    for i in range(400):
        metric.update(masks_[i % 8], masks_[(i + 1) % 8])
    assert (time.process_time() - start) / 400 < 2e-3  # generous: shared machines are slow
