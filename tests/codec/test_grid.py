"""Masks <-> label grids, against pixel counting and Hall's theorem."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from codec_strategies import grids, quick
from hypothesis import given
from hypothesis import strategies as st

from t4s_helpers.codec.grid import check_grid, grid_to_masks, mask_to_box, masks_to_grid, parse_grid_size

sizes = st.tuples(st.integers(1, 6), st.integers(1, 6))


@st.composite
def mask_stacks(draw, max_masks: int = 5, max_side: int = 14) -> np.ndarray:
    """bool ``(L, H, W)``: boxes (often overlapping, often tiny) and noise; some empty."""
    n = draw(st.integers(1, max_masks))
    height, width = draw(st.integers(1, max_side)), draw(st.integers(1, max_side))
    masks = np.zeros((n, height, width), bool)
    for mask in masks:
        kind = draw(st.sampled_from(["box", "box", "dot", "noise", "empty"]))
        rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        y, x = rng.integers(0, height), rng.integers(0, width)
        if kind == "box":
            mask[y: y + rng.integers(1, height + 1), x: x + rng.integers(1, width + 1)] = True
        elif kind == "dot":
            mask[y, x] = True
        elif kind == "noise":
            mask[:] = rng.random((height, width)) < rng.random()
    return masks


def count_pixels(mask: np.ndarray, rows: int, cols: int) -> np.ndarray:
    """Area of each cell under the mask in units of 1 / (rows * cols) pixels, by counting.

    The mask is enlarged ``rows`` times in height and ``cols`` times in width, so that every cell
    is a block of H x W whole pixels.
    """
    height, width = mask.shape
    large = np.repeat(np.repeat(mask, rows, axis=0), cols, axis=1)
    return np.array([
        [int(large[i * height:(i + 1) * height, j * width:(j + 1) * width].sum())
         for j in range(cols)] for i in range(rows)
    ])


def matching_size(choices: list[set[int]]) -> int:
    """Most sets that can be given distinct members of theirs: the deficiency form of Hall."""
    n = len(choices)
    subsets = (s for k in range(n + 1) for s in combinations(choices, k))
    return n - max(len(s) - len(set().union(*s)) for s in subsets)


@quick
@given(mask_stacks(), sizes)
def test_area_rule_keeps_everyone_visible_that_it_can(masks, size):
    covered = np.array([count_pixels(mask, *size) for mask in masks])
    grid = masks_to_grid(masks, size)
    touched = [set(np.flatnonzero(c).tolist()) for c in covered]
    objects = [k for k, cells in enumerate(touched) if cells]
    visible = [k for k in objects if (grid == k + 1).any()]
    assert len(visible) >= matching_size([touched[k] for k in objects])
    for k, cells in enumerate(touched):
        assert set(np.flatnonzero(grid == k + 1).tolist()) <= cells


@quick
@given(mask_stacks(), sizes)
def test_area_rule_changes_only_what_it_must(masks, size):
    """Where every object owns a cell by majority (at least half), the grid is the majority."""
    _, height, width = masks.shape
    covered = np.array([count_pixels(mask, *size) for mask in masks])
    union = count_pixels(masks.any(axis=0), *size)
    order = sorted(range(len(masks)), key=lambda k: masks[k].sum())
    majority = np.zeros(size, int)
    for cell in np.ndindex(size):
        if 2 * union[cell] >= height * width:
            majority[cell] = 1 + max(order, key=lambda k: covered[k][cell])
    present = {k + 1 for k in range(len(masks)) if masks[k].any()}
    grid = masks_to_grid(masks, size)
    if present <= set(majority.ravel().tolist()):
        assert np.array_equal(grid, majority)
    else:
        orphans = len(present - set(majority.ravel().tolist()))
        assert (grid != majority).sum() <= orphans * len(masks)
    if len(present) == 1 and not majority.any():  # too thin for any cell: where there is most of it
        (k,) = present
        assert grid.sum() == k and covered[k - 1][grid == k] == covered[k - 1].max()


@quick
@given(mask_stacks(), sizes, st.data())
def test_objects_that_share_a_label(masks, size, data):
    owners = data.draw(st.lists(st.integers(0, 2), min_size=len(masks), max_size=len(masks)))
    covered = np.array([count_pixels(mask, *size) for mask in masks])
    grid = masks_to_grid(masks, size, owners=owners)
    objects = [k for k in range(len(masks)) if covered[k].any()]
    touched = {k: set(np.flatnonzero(covered[k]).tolist()) for k in objects}
    own = {k: touched[k] & set(np.flatnonzero(grid == owners[k] + 1).tolist()) for k in objects}
    possible = matching_size(list(touched.values()))
    if possible == len(objects):
        assert matching_size(list(own.values())) == len(objects)
        assert all(own.values())
    assert set(np.unique(grid)) <= {0, *(k + 1 for k in owners)}


def test_two_blue_things_in_one_label():
    """By hand: the dot far from the box keeps a cell although they share the label."""
    masks = np.zeros((2, 8, 8), bool)
    masks[0, :4, :4] = True
    masks[1, 7, 7] = True
    assert masks_to_grid(masks, 2, owners=[0, 0]).tolist() == [[1, 0], [0, 1]]
    assert masks_to_grid(masks.any(axis=0)[None], 2).tolist() == [[1, 0], [0, 0]]
    # The label is chosen by the union of its objects: two thirds in two parts beat one third.
    parts = np.zeros((3, 1, 6), bool)
    parts[0, 0, :2], parts[1, 0, 2:4], parts[2, 0, 4:] = True, True, True
    assert masks_to_grid(parts, 1, owners=[1, 0, 0]).tolist() == [[1]]


def test_an_augmenting_path_moves_a_neighbour():
    """By hand, 1x3 cells of 4 pixels: c fits only cell 0, held by a, who moves on, as must b."""
    masks = np.zeros((3, 1, 12), bool)
    masks[0, 0, 0:5] = True  # a: all of cell 0, a quarter of cell 1
    masks[1, 0, 5:9] = True  # b: most of cell 1, a quarter of cell 2
    masks[2, 0, 0] = True  # c: a pixel of cell 0
    assert masks_to_grid(masks[:2], (1, 3)).tolist() == [[1, 2, 0]]
    assert masks_to_grid(masks, (1, 3)).tolist() == [[3, 1, 2]]


@quick
@given(mask_stacks(), sizes)
def test_nearest_samples_the_cell_centres(masks, size):
    _, height, width = masks.shape
    grid = masks_to_grid(masks, size, "nearest")
    area = masks.sum(axis=(1, 2))
    for i, j in np.ndindex(size):
        y, x = int((i + 0.5) * height / size[0]), int((j + 0.5) * width / size[1])
        there = [k for k in range(len(masks)) if masks[k, y, x]]
        expected = 1 + min(there, key=lambda k: (area[k], k)) if there else 0
        assert grid[i, j] == expected


@quick
@given(grids(3, max_side=12), st.integers(1, 3), st.integers(1, 3))
def test_grid_to_masks_and_back(grid, up, across):
    rows, cols = grid.shape
    masks = grid_to_masks(grid, 3, (rows * up, cols * across))
    enlarged = np.kron(grid, np.ones((up, across), int))
    assert np.array_equal(masks, np.stack([enlarged == k for k in (1, 2, 3)]))
    for rule in ("area", "nearest"):
        assert np.array_equal(masks_to_grid(masks, (rows, cols), rule), grid)
    # The centre pixel of each cell knows its cell at any size that is not smaller.
    odd = grid_to_masks(grid, 3, (rows + up, cols + across))
    assert np.array_equal(masks_to_grid(odd, (rows, cols), "nearest"), grid)


def test_grid_to_masks_on_other_shapes():
    grid = np.array([[1, 2], [0, 1]])
    masks = grid_to_masks(grid, 2, (3, 3))
    assert masks.dtype == bool and masks.shape == (2, 3, 3)
    assert masks[0].tolist() == [[True, False, False], [False, True, True], [False, True, True]]
    assert grid_to_masks(grid, 2, (1, 1))[0].tolist() == [[True]]
    assert grid_to_masks(np.zeros((2, 2), int), 0, (4, 4)).shape == (0, 4, 4)


def test_no_masks_and_integer_masks():
    assert masks_to_grid([], (2, 3)).tolist() == [[0, 0, 0], [0, 0, 0]]
    assert masks_to_grid(np.zeros((0, 5, 5), bool), 2).tolist() == [[0, 0], [0, 0]]
    assert masks_to_grid(np.zeros((2, 5, 5), bool), 2).tolist() == [[0, 0], [0, 0]]
    # 255 in uint8 must not wrap around, wherever masks are joined.
    bright = np.full((3, 4, 4), 255, np.uint8)
    assert masks_to_grid(bright, 2, owners=[0, 0, 0]).tolist() == [[1, 1], [1, 1]]


def test_half_is_half_on_sides_that_do_not_divide():
    """640x427 in 16x16: a half plane's edge is exactly half a cell; float error would show."""
    mask = np.zeros((427, 640), bool)
    mask[:, :20] = True
    assert masks_to_grid([mask], 16)[:, 0].all()
    mask[0, 19] = False
    assert masks_to_grid([mask], 16)[:, 0].tolist() == [0] + [1] * 15


@pytest.mark.parametrize(
    "size", [0, 65, -1, 1.5, (16, 0), (16, 16, 16), "16", None, True, (2.0, 2)]
)
def test_unusable_sizes(size):
    with pytest.raises(ValueError, match="from 1 to 64"):
        parse_grid_size(size)


@pytest.mark.parametrize("size", [7, np.int64(7), (7, 7), [7, 7], np.array([7, 7])])
def test_usable_sizes(size):
    assert parse_grid_size(size) == (7, 7)
    assert all(type(side) is int for side in parse_grid_size(size))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: masks_to_grid(np.ones((4, 4), bool)), "mask 0 has the shape"),
        (lambda: masks_to_grid([np.ones((4, 4), bool), np.ones((4, 5), bool)]), "mask 1 has"),
        (lambda: masks_to_grid([np.ones((4, 0), bool)]), "mask 0 has the shape"),
        (lambda: masks_to_grid([np.full((4, 4), 0.5)]), "threshold"),
        (lambda: masks_to_grid([np.ones((4, 4), bool)], rule="mean"), "unknown rule 'mean'"),
        (lambda: masks_to_grid([np.ones((4, 4), bool)], owners=[0, 1]), "one label index"),
        (lambda: masks_to_grid([np.ones((4, 4), bool)], owners=[-1]), "one label index"),
        (lambda: masks_to_grid([np.ones((4, 4), bool)], owners=[0.5]), "one label index"),
        (lambda: grid_to_masks(np.array([[2]]), 1, (4, 4)), "the grid holds 2"),
        (lambda: grid_to_masks(np.array([[1]]), 1, (0, 4)), "at least one pixel"),
        (lambda: check_grid(np.array([[True]]), 1), "integers"),
        (lambda: mask_to_box(np.ones((1, 4, 4), bool)), "two axes"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 40), st.integers(1, 4))
def test_the_order_in_memory_does_not_matter(seed, height, width, n):
    """Outlines are drawn column by column; grids and boxes are those of the same mask by rows."""
    rng = np.random.default_rng(seed)
    masks = rng.random((n, height, width)) < rng.choice([0.02, 0.5])
    columns = np.ascontiguousarray(masks.transpose(0, 2, 1)).transpose(0, 2, 1)
    for size in (16, (3, 7)):
        assert np.array_equal(masks_to_grid(masks, size), masks_to_grid(columns, size))
    for mask, column in zip(masks, columns):
        ys, xs = np.nonzero(mask)
        box = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) if len(xs) else None
        assert mask_to_box(mask) == mask_to_box(column) == box
