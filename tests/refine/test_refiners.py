"""The refiner: its logic on a small SAM with random weights, its worth on the real MobileSAM."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from t4s_helpers.refine import refiners as refine_module
from t4s_helpers.codec.grid import grid_to_masks, masks_to_grid
from t4s_helpers.evaluation.metrics import SegmentationMetric, mask_iou
from t4s_helpers.refine.refiners import (
    BEST,
    BOX_ONLY,
    PAPER,
    POINTS,
    STRETCHED,
    Prompts,
    RefineError,
    Refiner,
    interior_points,
    ring_points,
    load_refiner,
    mask_logits,
    merge_masks,
    sample_points,
    spread_points,
)
from t4s_helpers.model.weights import WeightsUnavailable, fetch

torch = pytest.importorskip("torch")
mobile_sam = pytest.importorskip("t4s_helpers.refine.mobile_sam")

SIZE = (60, 90)


# ---------------------------------------------------------------------------------------------
# Points
# ---------------------------------------------------------------------------------------------


def disc(shape: tuple[int, int], row: float, column: float, radius: float) -> np.ndarray:
    y, x = np.mgrid[: shape[0], : shape[1]]
    return (y - row) ** 2 + (x - column) ** 2 <= radius**2


@pytest.mark.parametrize("seed", range(5))
def test_points_lie_on_their_side_and_never_twice(seed):
    mask = disc(SIZE, 20, 60, 15)
    points, labels = sample_points(mask, 10, seed)
    assert points.shape == (20, 2) and labels.tolist() == [1] * 10 + [0] * 10
    x, y = points.astype(int).T
    assert (mask[y, x] == labels).all()
    assert len(np.unique(points, axis=0)) == 20


@pytest.mark.parametrize(
    ("pixels", "positive", "negative"), [(1, 1, 10), (7, 7, 10), (96, 10, 0), (93, 10, 3)]
)
def test_a_small_or_full_mask_gives_the_points_it_has(pixels, positive, negative):
    mask = (np.arange(96) < pixels).reshape(8, 12)
    _, labels = sample_points(mask, 10, 0)
    assert (labels == 1).sum() == positive and (labels == 0).sum() == negative


def test_points_depend_on_mask_and_seed_alone():
    mask, other = disc(SIZE, 20, 60, 15), disc(SIZE, 20, 60, 14)
    first = sample_points(mask, 10, 3)[0]
    np.random.seed(1)
    sample_points(other, 10, 3)
    assert (sample_points(mask, 10, 3)[0] == first).all()
    assert (sample_points(mask, 10, 4)[0] != first).any()
    assert (sample_points(other, 10, 3)[0] != first).any()


def test_every_pixel_can_be_drawn():
    mask = np.array([[True, True, True, False]])
    drawn = {tuple(sample_points(mask, 1, seed)[0][0]) for seed in range(60)}
    assert drawn == {(0, 0), (1, 0), (2, 0)}


@pytest.mark.parametrize("choose", [spread_points, interior_points, ring_points])
@pytest.mark.parametrize("shape", [SIZE, (300, 500), (7, 400)])
def test_chosen_points_lie_on_their_side_and_never_twice(choose, shape):
    mask = disc(shape, 0.4 * shape[0], 0.6 * shape[1], 0.3 * min(shape))
    points, labels = choose(mask, 6)
    x, y = points.astype(int).T
    assert (mask[y, x] == labels).all() and (labels == 0).sum() == 6
    assert len(np.unique(points, axis=0)) == len(points) > 6
    assert (choose(mask, 6, seed=5)[0] == points).all(), "nothing is drawn"


@pytest.mark.parametrize("name", POINTS)
@pytest.mark.parametrize("pixels", [1, 3, 9999, 10000])
def test_every_way_to_choose_points_takes_tiny_and_full_masks(name, pixels):
    mask = (np.arange(10000) < pixels).reshape(100, 100)
    points, labels = POINTS[name](mask, 4, 0)
    assert (labels == 1).sum() == min(4, pixels) and (labels == 0).sum() == min(4, 10000 - pixels)
    x, y = points.astype(int).T
    assert (mask[y, x] == labels).all()


def test_interior_points_keep_off_the_edge_and_spread_ones_off_each_other():
    from scipy.ndimage import distance_transform_edt

    mask = disc((100, 120), 45, 60, 30)
    depth = distance_transform_edt(mask)
    found = {name: POINTS[name](mask, 5, 0)[0][:5].astype(int) for name in POINTS}
    deep = {name: min(depth[y, x] for x, y in p) for name, p in found.items()}
    apart = {name: min(np.hypot(*(a - b)) for i, a in enumerate(p) for b in p[:i])
             for name, p in found.items()}
    assert deep["interior"] > 2 * max(deep["spread"], deep["random"])
    assert apart["spread"] > max(apart["interior"], apart["random"])
    assert depth[found["interior"][0][1], found["interior"][0][0]] == depth.max()


# ---------------------------------------------------------------------------------------------
# The mask prompt
# ---------------------------------------------------------------------------------------------


def coverage_by_hand(mask, cells, side_y, side_x):
    """Share of each cell under the mask, cell by cell and pixel by pixel."""
    out = np.zeros(cells)
    for i in range(cells[0]):
        for j in range(cells[1]):
            for y, x in np.argwhere(mask):
                tall = min((i + 1) * side_y, y + 1) - max(i * side_y, y)
                wide = min((j + 1) * side_x, x + 1) - max(j * side_x, x)
                out[i, j] += max(tall, 0) * max(wide, 0)
    return out / (side_y * side_x)


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (7, 7), (3, 2), (1, 9), (23, 17)])
@pytest.mark.parametrize("frame", ["sam", "stretched"])
def test_the_mask_prompt_is_the_inverse_sigmoid_of_exact_coverage(shape, frame):
    mask = np.random.default_rng(shape[0]).random(shape) < 0.5
    cells, pixels = (8, 8), (32, 32)
    scale = pixels[0] / max(shape)
    filled = [int(side * scale + 0.5) for side in shape] if frame == "sam" else pixels
    sides = [4 * side / full for side, full in zip(shape, filled, strict=True)]
    expected = np.clip(coverage_by_hand(mask, cells, *sides), 1e-3, 1 - 1e-3)
    logits = mask_logits(mask, cells, pixels, frame)
    assert logits.shape == cells and logits.dtype == np.float32
    np.testing.assert_allclose(1 / (1 + np.exp(-logits.astype(float))), expected, atol=1e-6)


@pytest.mark.parametrize("shape", [(480, 640), (640, 427), (333, 500), (128, 128), (90, 1300)])
def test_the_mask_prompt_lies_where_sam_lays_the_image(shape):
    """Independent check: send the mask itself through SAM's own image transform."""
    from segment_anything.utils.transforms import ResizeLongestSide

    height, width = shape
    mask = disc(shape, 0.4 * height, 0.7 * width, 0.3 * min(shape))
    scaled = ResizeLongestSide(1024).apply_image(np.uint8(mask)[..., None].repeat(3, 2) * 255)
    framed = np.zeros((1024, 1024))
    framed[: scaled.shape[0], : scaled.shape[1]] = scaled[..., 0] / 255
    shrunk = framed.reshape(256, 4, 256, 4).mean(axis=(1, 3)) > 0.5
    assert mask_iou(mask_logits(mask) > 0, shrunk) > 0.97
    assert mask_iou(mask_logits(mask, frame="stretched") > 0, shrunk) < 0.9 or height == width


@pytest.mark.parametrize("frame", ["sam", "stretched"])
def test_a_grid_of_probabilities_lies_where_its_cells_lie(frame):
    """As the same grid blown up to the image, its cells being whole pixels there."""
    grid = np.random.default_rng(0).random((4, 5))
    blown = grid.repeat(12, 0).repeat(30, 1)
    small = mask_logits(grid, (8, 8), (32, 32), frame, blown.shape)
    np.testing.assert_allclose(small, mask_logits(blown, (8, 8), (32, 32), frame), atol=1e-4)


def test_both_frames_agree_on_a_square_image():
    mask = disc((97, 97), 30, 50, 22)
    np.testing.assert_allclose(mask_logits(mask), mask_logits(mask, frame="stretched"))


# ---------------------------------------------------------------------------------------------
# The procedure, on a small SAM with random weights
# ---------------------------------------------------------------------------------------------


class Spy:
    """Stands for a method, keeps what it was called with and what it answered."""

    def __init__(self, method) -> None:
        self.method, self.calls, self.answers = method, [], []

    def __call__(self, *args, **kwargs):
        self.calls.append((args, kwargs))
        self.answers.append(self.method(*args, **kwargs))
        return self.answers[-1]


@pytest.fixture(scope="module")
def small_sam():
    torch.manual_seed(0)
    return mobile_sam.build_mobile_sam(img_size=128)


@pytest.fixture
def refiner(small_sam):
    return Refiner(small_sam, name="small")


@pytest.fixture
def spy(refiner, monkeypatch):
    """Of the predictor calls: points and their signs, boxes, logits, multimask -> logits, IoU."""
    spy = Spy(refiner._decode)
    monkeypatch.setattr(refiner, "_decode", spy)
    return spy


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


@pytest.fixture
def coarse():
    """Ordinary, empty, tiny (3 pixels), full, ordinary."""
    tiny = np.zeros(SIZE, bool)
    tiny[5, 7:10] = True
    return np.stack(
        [disc(SIZE, 30, 30, 12), np.zeros(SIZE, bool), tiny, np.ones(SIZE, bool)]
        + [disc(SIZE, 20, 70, 15)]
    )


def test_three_calls_each_with_the_logits_of_the_last(refiner, spy, pixels, coarse):
    refiner.set_image(pixels).refine(coarse[:1])
    assert len(spy.calls) == 3
    prompts = [args for args, _ in spy.calls]
    expected = mask_logits(coarse[0], (32, 32), (128, 128))
    np.testing.assert_array_equal(prompts[0][2][0, 0].numpy(), expected)
    for before, after in zip(spy.answers, prompts[1:], strict=False):
        assert torch.equal(before[0], after[2])
    for points, boxes, _, multimask in prompts:
        assert torch.equal(points[0], prompts[0][0][0]) and torch.equal(points[1], prompts[0][0][1])
        assert boxes is None and multimask is False
    assert prompts[0][0][1].tolist() == [[1] * 10 + [0] * 10]


@pytest.mark.parametrize("multimask", [False, True])
@pytest.mark.parametrize("box", [False, True])
def test_the_calls_are_those_of_sams_own_predictor(refiner, spy, pixels, coarse, box, multimask):
    """Independent check: the same prompts through ``SamPredictor.predict_torch``."""
    asked = Prompts(box=box, multimask=multimask)
    result = refiner.set_image(pixels).refine(coarse[:1], prompts=asked, min_iou=0.0)
    (points, labels), boxes, logits, _ = spy.calls[0][0]
    for _ in range(3):
        masks, scores, logits = refiner.predictor.predict_torch(
            points, labels, boxes, logits, multimask_output=multimask
        )
        best = int(scores[0].argmax())
        logits = logits[:, best : best + 1]
    np.testing.assert_array_equal(result.masks[0], masks[0, best].numpy())
    assert result.scores[0] == pytest.approx(scores[0, best].item(), abs=1e-6)


def test_points_and_box_arrive_in_sams_frame(refiner, spy, pixels, coarse):
    refiner.set_image(pixels).refine(coarse[:1], prompts=Prompts(box=True, calls=1))
    (points, _), boxes, _, _ = spy.calls[0][0]
    drawn, _ = sample_points(coarse[0], 10, 0)
    transform = refiner.predictor.transform
    framed = transform.apply_coords(drawn + 0.5, SIZE) - 0.5
    np.testing.assert_allclose(points[0].numpy(), framed, atol=1e-4)
    box = transform.apply_boxes(np.array([[18, 18, 43, 43]]), SIZE)
    np.testing.assert_allclose(boxes.numpy(), box, atol=1e-4)


def test_choices_reach_sam(refiner, spy, pixels, coarse):
    refiner.set_image(pixels)
    refiner.refine(coarse[:1], prompts=BOX_ONLY)
    points, boxes, logits, _ = spy.calls[-1][0]
    assert points is None and logits is None and boxes.shape == (1, 4)
    refiner.refine(coarse[:1], prompts=STRETCHED)
    stretched = mask_logits(coarse[0], (32, 32), (128, 128), "stretched")
    np.testing.assert_array_equal(spy.calls[1][0][2][0, 0].numpy(), stretched)


def test_the_mask_prompt_can_be_weaker_or_binary(refiner, spy, pixels, coarse):
    refiner.set_image(pixels)
    full = mask_logits(coarse[0], (32, 32), (128, 128))
    for asked, wanted in ((Prompts(strength=0.5, calls=1), full / 2),
                          (Prompts(mask="binary", calls=1), full > 0)):
        refiner.refine(coarse[:1], prompts=asked)
        np.testing.assert_array_equal(spy.calls[-1][0][2][0, 0].numpy(), wanted)


@pytest.mark.parametrize("points", ["spread", "interior", "ring"])
def test_chosen_points_reach_sam(refiner, spy, pixels, coarse, points):
    refiner.set_image(pixels).refine(coarse[:1], prompts=Prompts(points=points, n_points=3))
    sent, labels = spy.calls[0][0][0]
    wanted, _ = POINTS[points](coarse[0], 3, 0)
    scale = refiner.predictor.transform.target_length / max(SIZE)
    np.testing.assert_allclose(sent[0].numpy(), (wanted + 0.5) * scale - 0.5, atol=0.5)
    assert labels.tolist() == [[1] * 3 + [0] * 3]


def test_multimask_keeps_the_best_scored(refiner, spy, pixels, coarse):
    options = {"prompts": Prompts(multimask=True), "min_iou": 0.0}
    result = refiner.set_image(pixels).refine(coarse[:1], **options)
    low, scores = spy.answers[-1]
    best = int(scores[0].argmax())
    assert scores.shape == (1, 3)
    assert result.scores[0] == scores[0, best].item()
    fed_back = spy.answers[0][0][0, int(spy.answers[0][1][0].argmax())]
    assert torch.equal(spy.calls[1][0][2][0, 0], fed_back)


def test_multimask_can_keep_what_agrees_with_the_coarse_mask(refiner, pixels, coarse, monkeypatch):
    """Three made-up masks: the best scored is elsewhere, the second best fits."""
    wanted = torch.as_tensor(mask_logits(coarse[0], (32, 32), (128, 128)))
    low = torch.stack([-wanted, wanted, wanted - 8])[None]
    answer = low, torch.tensor([[0.9, 0.7, 0.8]])
    monkeypatch.setattr(refiner, "_decode", lambda *_: answer)
    refiner.set_image(pixels)
    for choose, score in (("score", 0.9), ("agreement", 0.7)):
        asked = Prompts(multimask=True, choose=choose, calls=1)
        result = refiner.refine(coarse[:1], prompts=asked, min_iou=0.0)
        assert result.scores[0] == pytest.approx(score)
        assert (result.agreement[0] > 0.8) == (choose == "agreement")


def test_a_soft_prompt_is_made_of_the_confidence(refiner, spy, pixels, coarse):
    grids = np.random.default_rng(1).random((5, 16, 12))
    asked = Prompts(mask="soft", strength=2.0)
    soft = refiner.set_image(pixels).refine(coarse, prompts=asked, confidence=grids, min_iou=0.0)
    sent = [args[2][0, 0].numpy() for args, _ in spy.calls[::3]]
    wanted = [2 * mask_logits(grid, (32, 32), (128, 128), image_size=SIZE) for grid in grids]
    # Masks with equally many points go first together; the empty one, number 1, does not go.
    order = [next(k for k, want in enumerate(wanted) if np.array_equal(want, got)) for got in sent]
    assert sorted(order) == [0, 2, 3, 4] and not soft.masks[1].any()


def test_a_sure_model_gives_nearly_the_hard_prompt(refiner, spy, pixels):
    grid = np.zeros((20, 30))
    grid[4:11, 6:17] = 1.0  # cells of 3 x 3 pixels
    mask = grid_to_masks(grid.astype(int), 1, SIZE)
    refiner.set_image(pixels)
    hard = refiner.refine(mask, min_iou=0.0)
    soft = refiner.refine(mask, prompts=Prompts(mask="soft"), confidence=grid[None], min_iou=0.0)
    np.testing.assert_allclose(spy.calls[0][0][2], spy.calls[3][0][2], atol=1e-4)
    assert soft.scores[0] == pytest.approx(hard.scores[0], abs=1e-4)


@pytest.mark.parametrize(
    ("confidence", "told"),
    [
        (None, "none was given"),
        (np.zeros((1, 4, 4)), "2 masks and 1 grids"),
        (np.zeros((2, 4)), "grid 0 has the shape"),
        (np.full((2, 4, 4), 1.1), r"grid 0 holds values that are not in \[0, 1\]"),
        ([np.zeros((4, 4)), np.full((4, 4), np.nan)], "grid 1 holds values"),
    ],
)
def test_confidence_that_cannot_be_used_is_refused(refiner, pixels, coarse, confidence, told):
    refiner.set_image(pixels)
    with pytest.raises(RefineError, match=told):
        refiner.refine(coarse[:2], prompts=Prompts(mask="soft"), confidence=confidence)
    assert refiner.refine(coarse[:2], confidence=confidence).masks.shape == (2, *SIZE)


def test_an_empty_mask_stays_empty_and_sam_is_not_asked(refiner, spy, pixels):
    result = refiner.set_image(pixels).refine(np.zeros((2, *SIZE), bool), min_iou=0.0)
    assert not result.masks.any() and spy.calls == []
    assert np.isnan(result.scores).all() and np.isnan(result.agreement).all()
    assert result.n_fallback == 0


def test_no_labels_give_no_masks(refiner, pixels):
    result = refiner.set_image(pixels).refine(np.zeros((0, *SIZE), bool))
    assert result.masks.shape == (0, *SIZE) and len(result.scores) == 0


def test_a_result_does_not_depend_on_its_company(refiner, pixels, coarse):
    refiner.set_image(pixels)
    together = refiner.refine(coarse, min_iou=0.0)
    backwards = refiner.refine(coarse[::-1], min_iou=0.0)
    np.testing.assert_array_equal(together.masks, backwards.masks[::-1])
    np.testing.assert_array_equal(together.scores, backwards.scores[::-1])
    for k in range(len(coarse)):
        alone = refiner.refine(coarse[k : k + 1], min_iou=0.0)
        np.testing.assert_array_equal(together.masks[k], alone.masks[0])


def test_a_batch_answers_like_one_by_one(refiner, spy, pixels, coarse, monkeypatch):
    refiner.set_image(pixels)
    embeddings = refiner.predictor.features
    single = refiner.refine(coarse, min_iou=0.0)
    n_single = len(spy.calls)
    monkeypatch.setitem(refine_module._BATCH, "cpu", 8)
    batched = refiner.refine(coarse, min_iou=0.0)
    # Tiny and full masks have other numbers of points and keep to themselves.
    assert n_single == 3 * 4 and len(spy.calls) - n_single == 3 * 3
    assert refiner.predictor.features is embeddings, "one embedding, however many labels"
    np.testing.assert_allclose(single.scores, batched.scores, atol=1e-4)
    assert (single.masks == batched.masks).mean() > 0.999


def test_a_mask_that_leaves_the_coarse_one_behind_falls_back(refiner, pixels, coarse):
    refiner.set_image(pixels)
    free = refiner.refine(coarse, min_iou=0.0)
    asked = coarse.any(axis=(1, 2))
    iou = [mask_iou(f, c) for f, c in zip(free.masks[asked], coarse[asked], strict=True)]
    np.testing.assert_allclose(free.agreement[asked], iou, rtol=1e-6)
    assert free.n_fallback == 0
    # A threshold between the values: those below fall back, those above do not.
    between = float(np.sort(iou)[:2].mean())
    some = refiner.refine(coarse, min_iou=between)
    assert some.n_fallback == 1
    kept = some.fallback
    np.testing.assert_array_equal(some.masks[kept], coarse[kept])
    np.testing.assert_array_equal(some.masks[~kept], free.masks[~kept])
    assert (refiner.refine(coarse, min_iou=1.0).masks == coarse).all()


def test_merging_goes_by_score_and_not_by_order(refiner, pixels, coarse):
    big, small = disc(SIZE, 30, 45, 25), disc(SIZE, 30, 45, 8)
    for masks in ([big, small], [small, big]):
        inner = merge_masks(np.stack(masks), [0.5, 0.5])[30, 45]
        assert masks[inner - 1] is small, "of equal scores the smaller mask wins"
        scores = [0.9 if m is big else 0.1 for m in masks]
        assert masks[merge_masks(np.stack(masks), scores)[30, 45] - 1] is big
        unknown = [np.nan if m is small else 0.0 for m in masks]
        assert masks[merge_masks(np.stack(masks), unknown)[30, 45] - 1] is big
    result = refiner.set_image(pixels).refine(coarse, min_iou=0.0)
    merged = merge_masks(result.masks, result.merge_scores)
    order = [4, 2, 0, 3, 1]
    other = refiner.refine(coarse[order], min_iou=0.0)
    turned = merge_masks(other.masks, other.merge_scores)
    np.testing.assert_array_equal(merged, np.array([0, *(o + 1 for o in order)])[turned])
    assert (merged > 0).sum() == result.masks.any(0).sum() and merged.dtype == np.int32


def test_a_mask_that_fell_back_does_not_win_by_the_score_of_another(refiner, pixels, coarse):
    result = refiner.set_image(pixels).refine(coarse, min_iou=1.0)
    assert result.fallback.any()
    assert (result.merge_scores[result.fallback] == 0).all()
    assert np.isnan(result.merge_scores[1])


@pytest.mark.parametrize("wrong", [(np.ones((2, 3, 3)), [1, 2]), (np.ones((2, 3, 3), bool), [1])])
def test_masks_that_cannot_be_merged_are_refused(wrong):
    with pytest.raises(RefineError, match="merge_masks"):
        merge_masks(*wrong)


def test_sixteen_bits_answer_nearly_alike(small_sam, pixels, coarse):
    exact = Refiner(small_sam).set_image(pixels).refine(coarse, min_iou=0.0)
    rough = Refiner(small_sam, precision="bfloat16").set_image(pixels).refine(coarse, min_iou=0.0)
    assert rough.scores.dtype == np.float32
    np.testing.assert_allclose(rough.scores, exact.scores, atol=0.05)
    assert (rough.scores != exact.scores)[[0, 2, 3, 4]].all(), "it was another arithmetic"


def test_a_precision_that_cannot_be_is_refused(small_sam):
    with pytest.raises(RefineError, match="float8.*float32"):
        Refiner(small_sam, precision="float8")
    with pytest.raises(RefineError, match="wants a GPU"):
        load_refiner("mobile_sam", device="cpu", precision="float16")


def test_another_way_of_asking_shares_the_embedding(refiner, spy, pixels, coarse):
    other = refiner.asking(BOX_ONLY)
    refiner.set_image(pixels)
    asked = other.set_image(pixels).refine(coarse[:1], min_iou=0.0)
    assert len(refiner._embeddings) == 1
    named = refiner.refine(coarse[:1], prompts=BOX_ONLY, min_iou=0.0)
    np.testing.assert_array_equal(asked.masks, named.masks)
    assert refiner.prompts == PAPER
    assert (refiner.refine(coarse[:1], min_iou=0.0).scores != named.scores).all()
    assert load_refiner("none").asking(BEST) is load_refiner("none")


def test_the_seed_changes_points_and_repeats(refiner, pixels, coarse):
    refiner.set_image(pixels)
    first, again, other = (refiner.refine(coarse[:1], seed=s, min_iou=0.0) for s in (0, 0, 1))
    np.testing.assert_array_equal(first.masks, again.masks)
    assert first.scores[0] != other.scores[0]


def test_the_embedding_is_kept_by_content(small_sam, pixels, monkeypatch):
    refiner = Refiner(small_sam, cached_images=2)
    spy = Spy(refiner.predictor.set_image)
    monkeypatch.setattr(refiner.predictor, "set_image", spy)
    mask = disc(SIZE, 30, 30, 12)[None]
    first = refiner.set_image(pixels).refine(mask, min_iou=0.0)
    other = pixels.copy()
    other[0, 0, 0] ^= 255
    refiner.set_image(other)
    assert len(spy.calls) == 2
    again = refiner.set_image(pixels.copy()).refine(mask, min_iou=0.0)
    assert len(spy.calls) == 2
    np.testing.assert_array_equal(first.masks, again.masks)
    wide = np.ascontiguousarray(pixels.transpose(1, 0, 2))
    refiner.set_image(wide)  # the third content pushes the least recent one out
    assert refiner.refine(mask.transpose(0, 2, 1)).masks.shape == (1, 90, 60)
    refiner.set_image(pixels)
    assert len(spy.calls) == 3
    refiner.set_image(other)
    assert len(spy.calls) == 4
    refiner.forget_images()
    refiner.set_image(other)
    assert len(spy.calls) == 5


def test_milliseconds_count_an_image_once(refiner, pixels, coarse):
    refiner.set_image(pixels)
    first, second = refiner.refine(coarse), refiner.refine(coarse)
    assert list(first.ms) == ["image", "prompts", "decoder", "masks"]
    assert first.ms["image"] > 0 and first.ms["decoder"] > 0 and second.ms["image"] == 0


def test_refine_masks_gives_masks_alone(refiner, pixels, coarse):
    masks = refiner.refine_masks(pixels, coarse, seed=2, min_iou=0.0)
    np.testing.assert_array_equal(masks, refiner.refine(coarse, seed=2, min_iou=0.0).masks)


def test_input_is_never_written_to(refiner, pixels, coarse):
    pixels.flags.writeable = coarse.flags.writeable = False
    refiner.refine_masks(pixels, coarse)
    kept = load_refiner("none").refine_masks(pixels, coarse)
    assert not np.shares_memory(kept, coarse)


# ---------------------------------------------------------------------------------------------
# Bad input
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "told"),
    [
        (np.zeros((8, 9), np.uint8), "grey image; repeat its channel"),
        (np.zeros((8, 9, 1), np.uint8), "grey image; repeat its channel"),
        (np.zeros((8, 9, 4), np.uint8), "RGBA image; drop the alpha"),
        (np.zeros((8, 9, 3), np.float32), "uint8 RGB .* got float32"),
        (np.zeros((0, 9, 3), np.uint8), "uint8 RGB"),
        ("photo.jpg", "uint8 RGB"),
    ],
)
@pytest.mark.parametrize("which", ["small", "none"])
def test_an_image_that_is_not_rgb_is_refused(refiner, image, told, which):
    with pytest.raises(RefineError, match=told):
        (refiner if which == "small" else load_refiner("none")).set_image(image)


def test_an_image_too_thin_for_sam_is_refused(refiner):
    with pytest.raises(RefineError, match="1000 x 2 pixels is too thin"):
        refiner.set_image(np.zeros((2, 1000, 3), np.uint8))


@pytest.mark.parametrize(
    ("masks", "told"),
    [
        (np.ones((1, *SIZE), np.uint8), "must be bool, got uint8"),
        (np.ones(SIZE, bool), r"one mask is masks\[None\]"),
        (np.ones((1, SIZE[1], SIZE[0]), bool), "60 x 90 pixels but the image is 90 x 60"),
    ],
)
@pytest.mark.parametrize("which", ["small", "none"])
def test_masks_that_do_not_fit_are_refused(refiner, pixels, masks, told, which):
    chosen = refiner if which == "small" else load_refiner("none")
    with pytest.raises(RefineError, match=told):
        chosen.set_image(pixels).refine(masks)


def test_an_image_must_come_first(small_sam, coarse):
    for fresh in (Refiner(small_sam), refine_module.NoRefiner()):
        with pytest.raises(RefineError, match="set_image"):
            fresh.refine(coarse)


@pytest.mark.parametrize("options", [{"seed": -1}, {"seed": 0.5}, {"min_iou": 1.5}])
def test_options_out_of_range_are_refused(refiner, pixels, coarse, options):
    with pytest.raises(RefineError, match=next(iter(options))):
        refiner.set_image(pixels).refine(coarse, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"points": "grid"},
        {"mask": "grey"},
        {"choose": "largest"},
        {"strength": 0},
        {"strength": float("nan")},
        {"box": 1},
        {"calls": True},
        {"frame": "square"},
        {"calls": 0},
        {"n_points": 0},
        {"points": "none", "mask": "none"},
    ],
)
def test_prompts_that_make_no_sense_are_refused(options):
    with pytest.raises(RefineError, match="Prompts"):
        Prompts(**options)


def test_an_unknown_refiner_lists_the_known_ones():
    with pytest.raises(RefineError, match="'sam'.*mobile_sam.*none"):
        load_refiner("sam")


def test_a_checkpoint_of_another_model_is_refused(tmp_path, small_sam):
    state = small_sam.state_dict()
    state.pop("mask_decoder.iou_token.weight")
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(RuntimeError, match="iou_token"):
        mobile_sam.build_mobile_sam(tmp_path / "other.pt")


# ---------------------------------------------------------------------------------------------
# The real MobileSAM
# ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def real():
    try:
        fetch("mobile_sam", progress=False)
    except WeightsUnavailable as error:
        pytest.skip(f"MobileSAM's checkpoint is not to be had here: {error}")
    return load_refiner("mobile_sam", device="cpu")


def pattern(height: int = 768, width: int = 1024) -> np.ndarray:
    """Colour ramps, a red rectangle and a green one; nothing in it depends on a library."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([x * 255 // width, y * 255 // height, (x * y // 512) % 256], -1)
    image[200:500, 300:700] = (230, 60, 40)
    image[550:700, 100:260] = (20, 200, 90)
    return image.astype(np.uint8)


# What MobileSAM's published code gives for `pattern` with the same checkpoint (CPU, float32):
# (channel, row, column) of the embedding -> value.
PUBLISHED = {
    (0, 0, 0): -0.077401,
    (17, 10, 20): 0.020872,
    (64, 31, 40): 0.042679,
    (100, 47, 63): -0.006290,
    (128, 40, 10): -0.142377,
    (200, 5, 50): -0.009454,
    (255, 60, 30): -0.007068,
    (31, 20, 33): 0.169276,
}


def test_the_embedding_is_that_of_the_published_code(real):
    features = real.set_image(pattern()).predictor.features[0].numpy()
    assert features.shape == (256, 64, 64)
    for place, value in PUBLISHED.items():
        assert features[place] == pytest.approx(value, abs=2e-5)
    assert features.std() == pytest.approx(0.107749, abs=1e-5)


def test_one_click_finds_the_rectangle_as_the_published_code_does(real):
    predictor = real.set_image(pattern()).predictor
    click = {"point_coords": np.array([[500, 350]]), "point_labels": np.array([1])}
    masks, scores, _ = predictor.predict(**click, multimask_output=True)
    np.testing.assert_allclose(scores, [1.00795, 0.879568, 0.727022], atol=1e-4)
    assert masks[0].sum() == pytest.approx(119058, rel=1e-3)


def test_grid_masks_become_sharp(real):
    """Objects with known outlines, from 16 x 16 grids, on an image that is not square."""
    truth = np.zeros((2, 768, 1024), bool)
    truth[0, 200:500, 300:700] = truth[1, 550:700, 100:260] = True
    coarse = grid_to_masks(masks_to_grid(truth, 16, "nearest"), 2, truth.shape[1:])
    result = real.set_image(pattern()).refine(coarse)
    for got, rough, want in zip(result.masks, coarse, truth, strict=True):
        assert mask_iou(got, want) > mask_iou(rough, want) + 0.02
    assert mask_iou(result.masks[1], truth[1]) > 0.9 > mask_iou(coarse[1], truth[1])
    assert result.n_fallback == 0 and (result.scores > 0.8).all()


def test_the_same_refiner_each_time(real):
    assert load_refiner("mobile_sam", device="cpu") is real
    assert load_refiner("none") is load_refiner("none")


def refcoco_mini() -> Path:
    shared = os.environ.get("T4S_SHARED")
    root = Path(shared) if shared else Path(__file__).parents[3] / "shared"
    root = root / "data" / "refcoco_mini"
    if not root.is_dir():
        pytest.skip(f"no RefCOCO sample at {root}; set T4S_SHARED")
    return root


def referred(root: Path) -> dict[Path, np.ndarray]:
    """Photo -> masks of the objects that RefCOCO's sample refers to."""
    from pycocotools import mask as coco

    folder = root / "refcoco"
    stored = json.loads((folder / "instances.json").read_text())
    with open(next(folder.glob("refs*.p")), "rb") as file:
        wanted = {ref["ann_id"] for ref in pickle.load(file)}
    photos = {image["id"]: image for image in stored["images"]}
    found: dict[Path, list[np.ndarray]] = {}
    for note in stored["annotations"]:
        if note["id"] in wanted:
            photo = photos[note["image_id"]]
            outline = coco.frPyObjects(note["segmentation"], photo["height"], photo["width"])
            path = root / "images/mscoco/images/train2014" / photo["file_name"]
            found.setdefault(path, []).append(coco.decode(coco.merge(outline)).astype(bool))
    return {path: np.stack(found[path]) for path in sorted(found)}


def test_refinement_pays_on_real_photos_and_the_frame_matters(real):
    """Four photos of the RefCOCO sample, oracle grids: SAM's frame must beat the stretched one."""
    from t4s_helpers.data.sample import read_image

    options = {"sam": PAPER, "stretched": STRETCHED, "best": BEST}
    scores = {name: SegmentationMetric() for name in ("grid", *options)}
    for path, truth in list(referred(refcoco_mini()).items())[::4][:4]:
        rough = np.concatenate(
            [grid_to_masks(masks_to_grid(t[None], 16, "nearest"), 1, t.shape) for t in truth]
        )
        real.set_image(read_image(path))
        found = {n: real.refine(rough, prompts=p).masks for n, p in options.items()}
        for name, masks in {"grid": rough, **found}.items():
            for mask, target in zip(masks, truth, strict=True):
                scores[name].update(mask, target)
    ciou = {name: metric.compute()["ciou"] for name, metric in scores.items()}
    assert ciou["sam"] > ciou["grid"] + 0.03
    assert ciou["sam"] > ciou["stretched"] + 0.02
    assert ciou["best"] > ciou["sam"] - 0.01, "what the photos chose must not fail elsewhere"
