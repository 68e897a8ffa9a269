"""Masks to label grids and back; overlap of masks and boxes.

A label grid is an int32 array ``(rows, cols)``, row 0 at the top of the image, column 0 at its
left. 0 stands for "others" (the background), ``k`` for ``labels[k - 1]``. Masks are boolean
arrays ``(H, W)`` in the same orientation. Cell ``(i, j)`` covers the image area
``[i * H / rows, (i + 1) * H / rows) x [j * W / cols, (j + 1) * W / cols)``, in pixels.

Semantic descriptors: Text4Seg (ICLR 2025), section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

MAX_SIDE = 64
RULES = ("area", "nearest")
BOX_BINS = 32
"""Boxes in text are given in 32nds of the image's width and height, first and last included."""

GridSize = int | tuple[int, int]
Masks = np.ndarray | Sequence[np.ndarray]


@dataclass(frozen=True, eq=False)
class BoxGrid:
    """For each label a box, and a grid of its own inside it; boxes and masks may overlap.

    Attributes:
        boxes: int32 ``(L, 4)``, ``x0 y0 x1 y1`` in bins of `BOX_BINS`, both ends included; -1 throughout
            for a label that is not there.
        cells: bool ``(L, rows, cols)``, the label's cells; row 0 at the top of its box.
    """

    boxes: np.ndarray
    cells: np.ndarray

    def any(self) -> bool:
        """Whether any label holds a cell."""
        return bool(self.cells.any())

    def tolist(self) -> dict[str, list]:
        """Plain values, fit for JSON."""
        return {"boxes": self.boxes.tolist(), "cells": self.cells.astype(int).tolist()}


def parse_grid_size(grid_size: GridSize) -> tuple[int, int]:
    """Grid size as ``(rows, cols)``; one number means a square grid.

    >>> parse_grid_size(16), parse_grid_size((12, 20))
    ((16, 16), (12, 20))

    Raises:
        ValueError: not one or two whole numbers from 1 to 64.
    """
    pair = (grid_size, grid_size) if isinstance(grid_size, (int, np.integer)) else grid_size
    try:
        rows, cols = pair
        whole = all(isinstance(n, (int, np.integer)) and n is not True for n in (rows, cols))
    except (TypeError, ValueError):
        whole = False
    if not whole or not (1 <= rows <= MAX_SIDE and 1 <= cols <= MAX_SIDE):
        raise ValueError(f"grid size {grid_size!r} is not usable: give one whole number or (rows, cols), "
                         f"each from 1 to {MAX_SIDE}")
    return int(rows), int(cols)


def check_grid(grid: np.ndarray, n_labels: int) -> np.ndarray:
    """The grid as an integer array ``(rows, cols)`` whose values lie in ``0..n_labels``.

    Raises:
        ValueError: wrong number of axes, a side beyond 64, not integers, or a value out of range.
    """
    array = np.asarray(grid)
    if array.ndim != 2 or array.dtype.kind not in "iu":
        raise ValueError(f"a label grid is a 2-D array of integers, got {array.ndim} axes of {array.dtype}")
    parse_grid_size(array.shape)
    low, high = array.min(), array.max()
    if low < 0 or high > n_labels:
        raise ValueError(f"the grid holds {low if low < 0 else high}, but with {n_labels} labels "
                         f"its values must lie between 0 and {n_labels}")
    return array


def masks_to_grid(masks: Masks, grid_size: GridSize = 16, rule: str = "area",
                  owners: Sequence[int] | None = None) -> np.ndarray:
    """Label grid of a set of masks.

    ``rule="area"``: a cell is foreground where the union of the masks covers at least half of it,
    and takes the label that covers most of it (on a tie, the smaller one). Then every mask that is
    not empty but owns no cell is given one that it touches: the one it covers most among those that
    can be spared (background, or of an owner with more cells); failing that, owners of a single
    cell move on to another one that they touch (an augmenting path). So all objects stay visible
    wherever each can have a cell of its own, and otherwise as many as possible.

    ``rule="nearest"``, as the paper resizes its masks: each mask is sampled at the pixel under the
    cell's centre, pixel ``floor((i + 1/2) * H / rows)``; where masks overlap, the smaller one wins
    (of two equal ones the first). Objects between the centres are lost.

    Args:
        masks: bool ``(L, H, W)``, or a list of arrays ``(H, W)``; integer masks count as true
            where they are not 0.
        grid_size: see `parse_grid_size`.
        rule: ``"area"`` or ``"nearest"``.
        owners: for masks that are objects rather than labels: ``masks[i]`` belongs to label
            ``owners[i]`` (from 0). Several objects may share a label; each stays visible.

    Returns:
        int32 ``(rows, cols)``: 0 is others, ``k`` is label ``k - 1``.

    Raises:
        ValueError: masks of different or no size or of a wrong type, an unknown rule, or owners
            that do not fit the masks.
    """
    rows, cols = parse_grid_size(grid_size)
    _check_rule(rule)
    stack = _as_stack(masks)
    label_of = _check_owners(owners, len(stack))
    if not stack:
        return np.zeros((rows, cols), np.int32)
    if rule == "nearest":
        holder = _nearest_holder(stack, rows, cols)
    else:
        holder = _area_holder(stack, label_of, rows, cols)
    grid = np.where(holder < 0, 0, label_of[holder] + 1)
    return grid.astype(np.int32).reshape(rows, cols)


def grid_to_masks(grid: np.ndarray, n_labels: int, shape: tuple[int, int]) -> np.ndarray:
    """One mask per label: every pixel takes the label of the cell that holds its centre.

    Args:
        grid: int ``(rows, cols)``, values ``0..n_labels``.
        n_labels: number of labels.
        shape: ``(H, W)`` of the masks, in pixels.

    Returns:
        bool ``(n_labels, H, W)``.

    >>> grid_to_masks(np.array([[0, 1]]), 1, (1, 4)).tolist()
    [[[False, False, True, True]]]
    """
    grid = check_grid(grid, n_labels)
    height, width = shape
    if height < 1 or width < 1:
        raise ValueError(f"a mask needs at least one pixel, got the shape {tuple(shape)}")
    picture = grid[np.ix_(_centres(height, grid.shape[0]), _centres(width, grid.shape[1]))]
    masks = np.zeros((n_labels, height, width), bool)  # of hundreds of labels most are never touched
    for k in np.unique(grid[grid > 0]):
        masks[k - 1] = picture == k
    return masks


def no_boxes(n_labels: int, grid_size: GridSize) -> BoxGrid:
    """A `BoxGrid` in which no label is there."""
    return BoxGrid(np.full((n_labels, 4), -1, np.int32),
                   np.zeros((n_labels, *parse_grid_size(grid_size)), bool))


def masks_to_boxes(masks: Masks, grid_size: GridSize = 16, rule: str = "area") -> BoxGrid:
    """Each mask as its box and a grid inside it (the idea of Text4Seg++'s box-wise descriptors).

    Args:
        masks, grid_size: see `masks_to_grid`; the grid is that of one box.
        rule: ``"area"``: a cell belongs to the mask that covers at least half of it; a mask that covers
            half of none has the one that it covers most. ``"nearest"``: the pixel under its centre decides.

    >>> grid = masks_to_boxes([np.tri(64, dtype=bool)], 2)
    >>> grid.boxes.tolist(), grid.cells.astype(int).tolist()
    ([[0, 0, 31, 31]], [[[1, 0], [1, 1]]])
    """
    rows, cols = parse_grid_size(grid_size)
    _check_rule(rule)
    stack = _as_stack(masks)
    grid = no_boxes(len(stack), (rows, cols))
    for k, mask in enumerate(stack):
        box = mask_to_bins(mask)
        if box is None:
            continue
        (height, width), (x0, y0, x1, y1) = mask.shape, box
        down, across = (rows, height, y0, y1 + 1, BOX_BINS), (cols, width, x0, x1 + 1, BOX_BINS)
        if rule == "nearest":
            grid.cells[k] = mask[np.ix_(_centres(*down), _centres(*across))]
        else:
            covered = _overlap(*down).astype(np.float64) @ mask @ _overlap(*across).T
            grid.cells[k] = 2 * covered >= height * (y1 + 1 - y0) * width * (x1 + 1 - x0)
            if not grid.cells[k].any():
                grid.cells[k].flat[covered.argmax()] = True
        if grid.cells[k].any():
            grid.boxes[k] = box
    return grid


def boxes_to_masks(grid: BoxGrid, shape: tuple[int, int]) -> np.ndarray:
    """One mask per label, bool ``(L, H, W)``: a pixel takes the cell of the box that holds its centre."""
    masks = np.zeros((len(grid.boxes), *shape), bool)
    for k in np.flatnonzero(grid.cells.any((1, 2))):
        (x0, y0, x1, y1), cells = grid.boxes[k].tolist(), grid.cells[k]
        (y, row), (x, col) = (_in_box(pixels, side, start, end + 1) for pixels, side, start, end in zip(
            shape, cells.shape, (y0, x0), (y1, x1)))
        masks[k][np.ix_(y, x)] = cells[np.ix_(row, col)]
    return masks


def _in_box(pixels: int, cells: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """The pixels whose centre lies in a box from one bin to before another, and the cell of each."""
    middle = (2 * np.arange(pixels) + 1) * BOX_BINS - 2 * pixels * start
    cell = middle * cells // (2 * pixels * (stop - start))
    inside = np.flatnonzero((cell >= 0) & (cell < cells))
    return inside, cell[inside]


def mask_to_bins(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """The box of a mask, bool ``(H, W)``, in bins of `BOX_BINS`: ``(x0, y0, x1, y1)``, both ends included.

    >>> mask_to_bins(np.eye(64, dtype=bool) & (np.arange(64) < 8))
    (0, 0, 3, 3)
    """
    box = mask_to_box(mask)
    if box is None:
        return None
    (height, width), (x0, y0, x1, y1) = mask.shape, box
    return (x0 * BOX_BINS // width, y0 * BOX_BINS // height,
            (x1 - 1) * BOX_BINS // width, (y1 - 1) * BOX_BINS // height)


def mask_to_box(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """Smallest box around a mask, ``(x0, y0, x1, y1)`` in pixels, x1 and y1 exclusive.

    None where the mask is empty.

    >>> mask_to_box(np.array([[0, 0, 0], [0, 1, 1]], bool))
    (1, 1, 3, 2)
    """
    mask = np.asarray(mask)
    if mask.ndim != 2:
        raise ValueError(f"a mask has two axes (H, W), got {mask.ndim}")
    if mask.flags.f_contiguous and not mask.flags.c_contiguous:
        # Along memory first, then across what is left: several times as fast.
        box = mask_to_box(mask.T)
        return box and (box[1], box[0], box[3], box[2])
    rows = np.flatnonzero(mask.any(axis=1))
    if rows.size == 0:
        return None
    y0, y1 = int(rows[0]), int(rows[-1]) + 1
    cols = np.flatnonzero(mask[y0:y1].any(axis=0))
    return int(cols[0]), y0, int(cols[-1]) + 1, y1


def overlap(pred: np.ndarray, target: np.ndarray) -> tuple[int, int, int]:
    """Pixel counts ``(intersection, predicted area, true area)`` of two masks.

    Args:
        pred, target: bool ``(H, W)``, the same shape; anything else is refused, because a mask of
            0 and 255, of scores, or of another size would give a number that looks like a score.

    Raises:
        ValueError: not two-dimensional, not boolean, or of different shapes.

    >>> overlap(np.array([[True, True, False]]), np.array([[False, True, True]]))
    (1, 2, 2)
    """
    pred, target = np.asarray(pred), np.asarray(target)
    for name, mask in (("predicted", pred), ("true", target)):
        if mask.ndim != 2:
            raise ValueError(f"The {name} mask must be (height, width), its shape is {mask.shape}.")
        if mask.dtype != np.bool_:
            raise ValueError(f"The {name} mask must be boolean, but its type is {mask.dtype}: "
                             "compare it first, for example `mask > 0`.")
    if pred.shape != target.shape:
        ours, true = ("x".join(map(str, mask.shape)) for mask in (pred, target))
        raise ValueError(f"The predicted mask is {ours} (height x width) but the true mask is {true}: "
                         "resize the prediction to the image before scoring it.")
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


def _check_box(box: Sequence[float] | None, name: str) -> Sequence[float] | None:
    if box is None:
        return None
    values = np.asarray(box, dtype=float)
    if values.shape != (4,) or not np.isfinite(values).all():
        raise ValueError(f"The {name} box must be four finite numbers (x0, y0, x1, y1), got {box}.")
    if values[2] <= values[0] or values[3] <= values[1]:
        raise ValueError(f"The {name} box {box} has no area: boxes are (x0, y0, x1, y1) with x0 < x1 and "
                         "y0 < y1; COCO's (x, y, width, height) must be converted first.")
    return values.tolist()


def _as_stack(masks: Masks) -> list[np.ndarray]:
    """The masks as boolean arrays of one shape ``(H, W)``."""
    stack = [np.asarray(mask) for mask in masks]
    for i, mask in enumerate(stack):
        if mask.ndim != 2 or mask.size == 0:
            raise ValueError(f"mask {i} has the shape {mask.shape}: give masks of shape (H, W), "
                             "as a list or stacked to (L, H, W)")
        if mask.shape != stack[0].shape:
            raise ValueError(f"mask {i} has the shape {mask.shape}, but mask 0 has {stack[0].shape}: "
                             "all masks of one image need the same size")
        if mask.dtype.kind not in "biu":
            raise ValueError(f"mask {i} holds {mask.dtype} values: threshold it to true and false first")
    return [mask if mask.dtype == bool else mask != 0 for mask in stack]


def _check_rule(rule: str) -> None:
    if rule not in RULES:
        raise ValueError(f"unknown rule {rule!r}: choose one of {', '.join(RULES)}")


def _check_owners(owners: Sequence[int] | None, n_masks: int) -> np.ndarray:
    """Label index of each mask, int64 ``(n_masks,)``."""
    if owners is None:
        return np.arange(n_masks)
    array = np.asarray(owners)
    if array.shape != (n_masks,) or (n_masks and (array.dtype.kind not in "iu" or array.min() < 0)):
        raise ValueError(f"owners must hold one label index (0, 1, ...) for each of the {n_masks} masks, "
                         f"got {owners!r}")
    return array.astype(np.int64)


def _centres(cells: int, pixels: int, start: int = 0, stop: int = 1, of: int = 1) -> np.ndarray:
    """The pixel at the middle of each cell, in whole numbers.

    The cells share the part of the pixels from ``start / of`` to ``stop / of``, by default all.
    """
    middles = (2 * np.arange(cells) + 1) * (stop - start) + 2 * cells * start
    return middles * pixels // (2 * cells * of)


@lru_cache(maxsize=64)
def _overlap(cells: int, pixels: int, start: int = 0, stop: int = 1, of: int = 1) -> np.ndarray:
    """Length that cell ``i`` shares with pixel ``y``, float32 ``(cells, pixels)``; cells as in `_centres`.

    In units of ``1 / (cells * of)`` of a pixel: there every edge is a whole number (a cell is
    ``pixels * (stop - start)`` long, a pixel ``cells * of``), so that sums are exact and half is half.
    """
    cell = (np.arange(cells)[:, None] * (stop - start) + cells * start) * pixels
    pixel = np.arange(pixels)[None, :] * cells * of
    shared = np.minimum(cell + pixels * (stop - start), pixel + cells * of) - np.maximum(cell, pixel)
    weights = np.maximum(shared, 0).astype(np.float32)
    weights.setflags(write=False)
    return weights


def _covered(stack: list[np.ndarray], rows: int, cols: int) -> np.ndarray:
    """Area of each cell under each mask, int64 ``(L, rows * cols)``; a whole cell is ``H * W``."""
    covered = np.zeros((len(stack), rows * cols), np.int64)
    for i, mask in enumerate(stack):
        box = mask_to_box(mask)  # outside of it there is nothing to add up
        if box is None:
            continue
        x0, y0, x1, y1 = box
        height, width = mask.shape
        # Whole numbers up to H in the first product, H * W in the second: float32 holds the
        # former exactly, float64 the latter.
        strips = _overlap(rows, height)[:, y0:y1] @ mask[y0:y1, x0:x1].astype(np.float32)
        across = _overlap(cols, width)[:, x0:x1].T.astype(np.float64)
        covered[i] = (strips.astype(np.float64) @ across).ravel()
    return covered


def _nearest_holder(stack: list[np.ndarray], rows: int, cols: int) -> np.ndarray:
    """Index of the mask at each cell's centre, -1 where there is none; int64 ``(cells,)``."""
    height, width = stack[0].shape
    centre = np.ix_(_centres(rows, height), _centres(cols, width))
    holder = np.full((rows, cols), -1)
    area = np.array([np.count_nonzero(mask) for mask in stack])
    # Painted from large to small, and on a tie the later one first: the smaller (earlier) one stays.
    for i in np.argsort(area, kind="stable")[::-1]:
        holder[stack[i][centre]] = i
    return holder.ravel()


def _area_holder(stack: list[np.ndarray], label_of: np.ndarray, rows: int, cols: int) -> np.ndarray:
    """Index of the mask that owns each cell under the area rule, -1 for none; ``(cells,)``."""
    best = covered = _covered(stack, rows, cols)
    labels, member = np.unique(label_of, return_inverse=True)
    if len(labels) < len(stack):
        # The label is chosen by the union of its objects, then the object within the label.
        unions = [np.any([stack[i] for i in np.flatnonzero(member == k)], axis=0)
                  for k in range(len(labels))]
        winner = _largest(_covered(unions, rows, cols), unions)
        best = np.where(member[:, None] == winner, covered, -1)
    all_covered = covered if len(stack) == 1 else _covered([np.any(stack, axis=0)], rows, cols)
    holder = np.where(2 * all_covered[0] >= stack[0].size, _largest(best, stack), -1)
    held = np.bincount(holder[holder >= 0], minlength=len(stack))
    for newcomer in np.flatnonzero((held == 0) & covered.any(axis=1)):
        _seat(int(newcomer), holder, held, covered)
    return holder


def _largest(covered: np.ndarray, masks: list[np.ndarray]) -> np.ndarray:
    """Index of the largest value in each column; on a tie, of the smallest mask."""
    order = np.argsort([np.count_nonzero(mask) for mask in masks], kind="stable")
    return order[np.argmax(covered[order], axis=0)]


def _seat(newcomer: int, holder: np.ndarray, held: np.ndarray, covered: np.ndarray) -> None:
    """Give a mask without a cell one that it touches, in place, where that is possible.

    One step of a maximum bipartite matching of masks and cells, by the shortest augmenting path: a
    mask that holds a cell before still holds one after.
    """
    asked_by: dict[int, tuple[int, int] | None] = {newcomer: None}
    queue = [newcomer]
    for who in queue:
        touched = np.argsort(-covered[who], kind="stable")[: np.count_nonzero(covered[who])]
        holders = holder[touched]
        free = (holders < 0) | (held[holders] > 1)
        if free.any():
            break
        for cell, other in zip(touched.tolist(), holders.tolist()):
            if other not in asked_by:
                asked_by[other] = (who, cell)
                queue.append(other)
    else:
        return
    step: tuple[int, int] | None = (who, int(touched[np.argmax(free)]))
    while step:  # each cell given up goes to the mask that asked for it
        who, cell = step
        if holder[cell] >= 0:
            held[holder[cell]] -= 1
        holder[cell] = who
        held[who] += 1
        step = asked_by[who]
