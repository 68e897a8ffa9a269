"""What SAM is told: points on their side, logits of exact coverage, both in SAM's frame."""

from __future__ import annotations

import numpy as np
import pytest

from t4s_helpers.codec.grid import mask_iou
from t4s_helpers.refine import Prompts, RefineError, mask_logits, sample_points
from t4s_helpers.refine.prompts import POINTS, filled_frame, sam_prompt

SIZE = (60, 90)


def disc(shape: tuple[int, int], row: float, column: float, radius: float) -> np.ndarray:
    y, x = np.mgrid[: shape[0], : shape[1]]
    return (y - row) ** 2 + (x - column) ** 2 <= radius**2


# Points


TINY = [(np.arange(10000) < pixels).reshape(100, 100) for pixels in (1, 3, 9997, 9999, 10000)]
MASKS = [*TINY, *(disc((h, w), 0.4 * h, 0.6 * w, 0.3 * min(h, w)) for h, w in (SIZE, (300, 500), (7, 400)))]


@pytest.mark.parametrize("name", POINTS)
@pytest.mark.parametrize("mask", MASKS)
def test_points_lie_on_their_side_and_never_twice_as_many_as_there_are(name, mask):
    for seed in range(3):
        points, labels = POINTS[name](mask, 6, seed)
        x, y = points.astype(int).T
        assert (mask[y, x] == labels).all() and len(np.unique(points, axis=0)) == len(points)
        assert [(labels == sign).sum() for sign in (1, 0)] == [min(6, mask.sum()), min(6, (~mask).sum())]
        assert name == "random" or (POINTS[name](mask, 6, 0)[0] == points).all(), "nothing is drawn"


def test_drawn_points_depend_on_mask_and_seed_alone_and_any_pixel_can_be_one():
    mask, other = disc(SIZE, 20, 60, 15), disc(SIZE, 20, 60, 14)
    first = sample_points(mask, 10, 3)[0]
    np.random.seed(1)
    assert (sample_points(mask, 10, 3)[0] == first).all()
    assert (sample_points(mask, 10, 4)[0] != first).any()
    assert (sample_points(other, 10, 3)[0] != first).any()
    mask = np.array([[True, True, True, False]])
    drawn = {tuple(sample_points(mask, 1, seed)[0][0]) for seed in range(60)}
    assert drawn == {(0, 0), (1, 0), (2, 0)}


def test_interior_points_keep_off_the_edge_and_spread_ones_off_each_other():
    from scipy.ndimage import distance_transform_edt

    mask = disc((100, 120), 45, 60, 30)
    depth = distance_transform_edt(mask)
    found = {name: choose(mask, 5, 0)[0][:5].astype(int) for name, choose in POINTS.items()}
    deep = {name: min(depth[y, x] for x, y in p) for name, p in found.items()}
    apart = {name: min(np.hypot(*(a - b)) for i, a in enumerate(p) for b in p[:i])
             for name, p in found.items()}
    assert deep["interior"] > 2 * max(deep["spread"], deep["random"])
    assert apart["spread"] > max(apart["interior"], apart["random"])
    assert depth[found["interior"][0][1], found["interior"][0][0]] == depth.max()


def test_ring_points_lie_half_a_cell_to_a_cell_away():
    square = np.zeros((64, 64), bool)
    square[20:40, 20:40] = True
    points, labels = POINTS["ring"](square, 8, 0)
    x, y = points[labels == 0].T
    away = np.hypot(np.maximum(abs(x - 29.5) - 9.5, 0), np.maximum(abs(y - 29.5) - 9.5, 0))
    assert len(away) == 8 and (away >= 2).all() and (away <= 4).all()


# The mask prompt


def coverage_by_hand(mask, cells, side_y, side_x):
    """Share of each cell under the mask, cell by cell and pixel by pixel."""
    out = np.zeros(cells)
    for i, j in np.ndindex(*cells):
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
    transforms = pytest.importorskip("segment_anything.utils.transforms")

    height, width = shape
    mask = disc(shape, 0.4 * height, 0.7 * width, 0.3 * min(shape))
    scaled = transforms.ResizeLongestSide(1024).apply_image(np.uint8(mask)[..., None].repeat(3, 2) * 255)
    assert scaled.shape[:2] == filled_frame(shape)
    framed = np.zeros((1024, 1024))
    framed[: scaled.shape[0], : scaled.shape[1]] = scaled[..., 0] / 255
    shrunk = framed.reshape(256, 4, 256, 4).mean(axis=(1, 3)) > 0.5
    assert mask_iou(mask_logits(mask) > 0, shrunk) > 0.97
    stretched = mask_logits(mask, frame="stretched")
    if height == width:
        np.testing.assert_allclose(mask_logits(mask), stretched)
    else:
        assert mask_iou(stretched > 0, shrunk) < 0.9


@pytest.mark.parametrize(("frame", "mask", "size"), [
    ("stretched", np.random.default_rng(0).random((16, 16)) < 0.5, (30, 90)),  # a grid
    *(("sam", disc(size, 0.4 * size[0], 0.7 * size[1], 0.3 * min(size)), size)
      for size in ((480, 640), (500, 333), (256, 256), (40, 30)))])
def test_a_bilinear_prompt_is_the_logits_resized_and_0_outside(frame, mask, size):
    torch = pytest.importorskip("torch")

    filled = filled_frame(size, 256) if frame == "sam" else (256, 256)
    hard = torch.tensor(np.where(mask, np.log(999), -np.log(999)))[None, None]
    expected = np.zeros((256, 256))
    expected[:filled[0], :filled[1]] = torch.nn.functional.interpolate(
        hard, filled, mode="bilinear", align_corners=False, antialias=True)[0, 0]
    logits = mask_logits(mask, frame=frame, image_size=size, resize="bilinear")
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, atol=1e-3)
    prompts = Prompts(mask="soft", frame=frame, resize="bilinear")
    assert (sam_prompt(np.ones(size, bool), prompts, 0, mask)["mask_input"] == logits).all()


@pytest.mark.parametrize("frame", ["sam", "stretched"])
def test_a_grid_of_probabilities_lies_where_its_cells_lie(frame):
    """As the same grid blown up to the image, its cells being whole pixels there."""
    grid = np.random.default_rng(0).random((4, 5))
    blown = grid.repeat(12, 0).repeat(30, 1)
    small = mask_logits(grid, (8, 8), (32, 32), frame, blown.shape)
    np.testing.assert_allclose(small, mask_logits(blown, (8, 8), (32, 32), frame), atol=1e-4)


# A prompt configuration


def test_each_setting_says_its_own_to_sam():
    mask, grid = disc(SIZE, 30, 30, 12), np.random.default_rng(1).random((16, 12))
    assert set(sam_prompt(mask, Prompts())) == {"point_coords", "point_labels", "mask_input"}
    assert set(sam_prompt(mask, Prompts(points="none", mask="none", box=True))) == {"boxes"}
    few = sam_prompt(mask, Prompts(points="ring", n_points=3))
    assert few["point_labels"].tolist() == [1] * 3 + [0] * 3
    shown = {
        mask_logits(mask).tobytes(): Prompts(strength=1.0),
        (mask_logits(mask) / 2).tobytes(): Prompts(strength=0.5),
        np.float32(mask_logits(mask) > 0).tobytes(): Prompts(mask="binary"),
        mask_logits(mask, frame="stretched").tobytes(): Prompts(frame="stretched"),
        (2 * mask_logits(grid, image_size=SIZE)).tobytes(): Prompts(mask="soft", strength=2.0),
    }
    for wanted, prompts in shown.items():
        assert sam_prompt(mask, prompts, 0, grid)["mask_input"].tobytes() == wanted
    assert len(shown) == 5
    agreement = Prompts(multimask=True, choose="agreement", mask="none")
    assert (sam_prompt(mask, agreement)["coarse"] == (mask_logits(mask) > 0)).all()


@pytest.mark.parametrize("options", [
    {"points": "grid"}, {"mask": "grey"}, {"choose": "largest"}, {"frame": "square"}, {"strength": 0},
    {"resize": "area"},
    {"strength": float("nan")}, {"box": 1}, {"calls": True}, {"calls": 0}, {"n_points": 0},
    {"points": "none", "mask": "none"},
])
def test_prompts_that_make_no_sense_are_refused(options):
    with pytest.raises(RefineError, match="Prompts"):
        Prompts(**options)
