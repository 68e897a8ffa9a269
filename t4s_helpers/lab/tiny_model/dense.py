"""Per-cell targets for pre-training the vision tower, read off a scene's exact masks.

Like detector pre-training, every cell of the 16x16 feature map learns what it shows and where
that object lies. No text is involved, and nothing here is used after pre-training.
"""

from __future__ import annotations

import numpy as np

from ...codec.grid import BOX_BINS, mask_to_bins
from ...data.scenes import CATEGORIES, COLORS, SCENE_SIZE, SIZES, make_scene
from ...model.chat import IGNORE_INDEX

GRID = 16

MIN_COVER = 0.15
"""A cell shows an object when at least this fraction of its area belongs to it."""

HEADS = {
    "category": len(CATEGORIES) + 1, "color": len(COLORS) + 1, "size": len(SIZES) + 1,
    "inside": 2, "sub0": 2, "sub1": 2, "sub2": 2, "sub3": 2,
    "x0": BOX_BINS, "y0": BOX_BINS, "x1": BOX_BINS, "y1": BOX_BINS,
    "run0": GRID, "run1": GRID,
}
"""Name of a per-cell classification -> number of classes (0 is "nothing" in the first three).

``inside``: the object covers at least half of the cell; ``sub0``..``sub3``: the same for the
cell's quarters; ``x0, y0, x1, y1``: the object's box; ``run0, run1``: first and last column of
the object's run of inside cells in this row that holds the cell.
"""


def dense_targets(scene) -> np.ndarray:
    """Targets of one scene: int8 ``(len(HEADS), 16, 16)`` in the order of `HEADS`.

    Cells that show no object have class 0 in ``category``, ``color``, ``size`` and `IGNORE_INDEX` in
    the rest.
    """
    names = list(HEADS)
    out = np.full((len(names), GRID, GRID), IGNORE_INDEX, np.int8)
    out[:3] = 0
    quarter = np.stack([_pool(o.mask, 2 * GRID) for o in scene.objects])
    cover = quarter.reshape(-1, GRID, 2, GRID, 2).mean((2, 4))
    owner = np.where(cover.max(0) >= MIN_COVER, cover.argmax(0), -1)
    for k, thing in enumerate(scene.objects):
        at = owner == k
        words = (1 + CATEGORIES.index(thing.category), 1 + list(COLORS).index(thing.color),
                 1 + list(SIZES).index(thing.size))
        inside = cover[k] >= 0.5
        quarters = (quarter[k] >= 0.5).reshape(GRID, 2, GRID, 2).transpose(1, 3, 0, 2)
        maps = [*words, inside, *quarters.reshape(4, GRID, GRID), *mask_to_bins(thing.mask),
                *_runs(inside)]
        for row, value in enumerate(maps):
            out[row][at] = value[at] if isinstance(value, np.ndarray) else value
    return out


def _pool(mask: np.ndarray, grid: int) -> np.ndarray:
    side = SCENE_SIZE // grid
    return mask.reshape(grid, side, grid, side).mean((1, 3))


def _runs(inside: np.ndarray):
    """First and last column of the run that holds each inside cell; `IGNORE_INDEX` elsewhere."""
    first, last = np.full((2, GRID, GRID), IGNORE_INDEX, np.int8)
    for row in range(GRID):
        edges = np.flatnonzero(np.diff(np.concatenate(([0], inside[row].astype(np.int8), [0]))))
        for start, stop in zip(edges[::2], edges[1::2]):
            first[row, start:stop], last[row, start:stop] = start, stop - 1
    return first, last


def render_with_targets(index: int, split: str = "train") -> tuple[np.ndarray, np.ndarray]:
    """Scene ``index`` of ``split``: uint8 image ``(128, 128, 3)`` and its `dense_targets`."""
    scene = make_scene(split, index)
    return scene.image, dense_targets(scene)
