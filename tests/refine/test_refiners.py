"""The protocol of refiners: what all of them share, and what a new one has to bring."""

from __future__ import annotations

import numpy as np
import pytest

from t4s_helpers.refine import (
    BEST_PROMPTS, REFINERS, NoRefiner, Prompts, RefineError, Refiner, load_refiner, merge_masks,
)

SIZE = (6, 9)
PIXELS = np.zeros((*SIZE, 3), np.uint8)
COARSE = np.zeros((3, *SIZE), bool)
COARSE[0, :4, :4] = COARSE[2, 1:, 5:] = True  # the second is empty


class Shifted(Refiner):
    """Moves every mask to the right; scores count the masks."""

    def __init__(self, columns: int) -> None:
        super().__init__("shifted")
        self.columns, self.asked = columns, []

    def redraw(self, masks, seed, prompts, confidence):
        self.asked.append((len(masks), seed, prompts, confidence))
        return np.roll(masks, self.columns, axis=2), np.arange(len(masks)) / 2


def test_a_mask_that_leaves_the_coarse_one_behind_falls_back():
    refiner = Shifted(1).set_image(PIXELS)
    free = refiner.refine(COARSE, min_iou=0.0)
    np.testing.assert_array_equal(free.masks, np.roll(COARSE, 1, axis=2))
    np.testing.assert_allclose(free.agreement, [12 / 20, np.nan, 15 / 25], rtol=1e-6)
    np.testing.assert_array_equal(free.scores, np.float32([0, np.nan, 0.5]))
    assert not free.fallback.any()
    kept = refiner.refine(COARSE, min_iou=0.61)
    np.testing.assert_array_equal(kept.masks, COARSE)
    assert kept.fallback.tolist() == [True, False, True] and kept.scores[2] == 0.5
    np.testing.assert_array_equal(kept.merge_scores, np.float32([0, np.nan, 0]))
    assert not np.shares_memory(kept.masks, COARSE)


def test_empty_masks_are_not_asked_about_and_options_arrive():
    refiner = Shifted(0).set_image(PIXELS)
    soft, grids = Prompts(mask="soft"), [np.full((2, 2), k / 4) for k in range(3)]
    refiner.refine(COARSE, seed=5, prompts=soft, confidence=grids)
    n, seed, prompts, confidence = refiner.asked[0]
    assert (n, seed, prompts) == (2, 5, soft)
    assert [grid[0, 0] for grid in confidence] == [0, 0.5]
    assert not refiner.refine(COARSE[1:2]).masks.any() and refiner.asked[-1][0] == 0
    assert refiner.refine(COARSE[:0]).masks.shape == (0, *SIZE)
    other = refiner.with_prompts(BEST_PROMPTS)
    assert other.refine_masks(PIXELS, COARSE, seed=2).shape == COARSE.shape
    assert other.asked[-1][1:3] == (2, BEST_PROMPTS) and refiner.prompts == Prompts()


def test_no_refiner_keeps_the_coarse_masks():
    refiner = load_refiner("none")
    assert isinstance(refiner, NoRefiner) and refiner.name == "none" and load_refiner("none") is refiner
    COARSE.flags.writeable = PIXELS.flags.writeable = False
    result = refiner.set_image(PIXELS).refine(COARSE, min_iou=1.0)
    np.testing.assert_array_equal(result.masks, COARSE)
    assert not result.fallback.any() and np.isnan(result.merge_scores).all()
    assert not np.shares_memory(result.masks, COARSE)


def test_a_new_refiner_is_one_class_and_an_unknown_one_lists_the_known():
    class Filled(Refiner):
        names = ("filled",)

        def redraw(self, masks, seed, prompts, confidence):
            return np.ones_like(masks), np.ones(len(masks))

    try:
        assert load_refiner("filled").refine_masks(PIXELS, COARSE, min_iou=0)[0].all()
        assert load_refiner("filled").name == "filled"
    finally:
        del REFINERS["filled"]
    pytest.importorskip("torch")
    with pytest.raises(RefineError, match=r"'sam'.*none.*mobile_sam.*sam2\.1_hiera_large"):
        load_refiner("sam")


# Merging


def test_merging_goes_by_score_and_not_by_order():
    big, small = np.ones((3, 3), bool), np.eye(3, dtype=bool)
    for of_big, of_small, winner in ((0.5, 0.5, small), (0.9, 0.1, big), (0.0, np.nan, big)):
        for masks in ([big, small], [small, big]):
            scores = [of_big if mask is big else of_small for mask in masks]
            assert masks[merge_masks(np.stack(masks), scores)[0, 0] - 1] is winner
    merged = merge_masks(np.stack([small, small]), [0.5, 0.5])
    assert merged.dtype == np.int32 and (merged == small).all(), "of equal masks the first"


@pytest.mark.parametrize("wrong", [(np.ones((2, 3, 3)), [1, 2]), (np.ones((2, 3, 3), bool), [1])])
def test_masks_that_cannot_be_merged_are_refused(wrong):
    with pytest.raises(RefineError, match="merge_masks"):
        merge_masks(*wrong)


# Bad input


@pytest.mark.parametrize("image", [
    np.zeros((8, 9), np.uint8), np.zeros((8, 9, 1), np.uint8), np.zeros((8, 9, 4), np.uint8),
    np.zeros((8, 9, 3), np.float32), np.zeros((0, 9, 3), np.uint8), "photo.jpg",
])
def test_an_image_that_is_not_rgb_is_refused(image):
    with pytest.raises(RefineError, match="uint8 RGB .* got .*repeat a grey channel.*drop alpha"):
        NoRefiner("none").set_image(image)


@pytest.mark.parametrize(("masks", "options", "told"), [
    (np.ones((1, *SIZE), np.uint8), {}, "must be bool .*got uint8"),
    (np.ones(SIZE, bool), {}, r"one mask is masks\[None\]"),
    (np.ones((1, SIZE[1], SIZE[0]), bool), {}, "6 x 9 pixels but the image is 9 x 6"),
    *[(COARSE, options, next(iter(options))) for options in (
        {"seed": -1}, {"seed": 1.5}, {"min_iou": 1.5}, {"min_iou": float("nan")})],
    *[(COARSE[:2], {"prompts": Prompts(mask="soft"), "confidence": grids}, told) for grids, told in (
        (None, "2 masks and 0 grids"), (np.zeros((1, 4, 4)), "2 masks and 1 grids"),
        (np.zeros((2, 4)), "grid 0 has the shape"), (np.full((2, 4, 4), 1.1), r"grid 0 .*outside \[0, 1\]"),
        ([np.zeros((4, 4)), np.full((4, 4), np.nan)], "grid 1 .*outside"))],
])
def test_masks_and_options_that_cannot_be_used_are_refused(masks, options, told):
    refiner = NoRefiner("none")
    with pytest.raises(RefineError, match="set_image"):
        refiner.refine(masks, **options)
    with pytest.raises(RefineError, match=told):
        refiner.set_image(PIXELS).refine(masks, **options)


def test_confidence_is_looked_at_where_it_is_asked_for_alone():
    refiner = NoRefiner("none").set_image(PIXELS)
    assert refiner.refine(COARSE, confidence=np.full((2, 4, 4), 1.1)).masks.shape == COARSE.shape
