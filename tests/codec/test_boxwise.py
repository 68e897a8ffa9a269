"""Grids inside boxes: exact inverses, pixels by brute force, repairs."""

from __future__ import annotations

import numpy as np
import pytest
from codec_strategies import NASTY

from t4s_helpers.codec.encodings import DescriptorError, get_encoding, wrap
from t4s_helpers.codec.grid import BOX_BINS, BoxGrid, masks_to_boxes, masks_to_grid
from t4s_helpers.codec.parsing import parse

BOXWISE = get_encoding("boxwise", (2, 3))
TEXT = "dog At 0 4 7 31\nothers *2|in *1\nin *3\ncat At 3 3 3 3\nin *3\nin *1|others *2"
LABELS = ["dog", "absent", "cat"]


def random_grid(rng, n: int, rows: int, cols: int) -> BoxGrid:
    corners = np.sort(rng.integers(0, BOX_BINS, (n, 2, 2)), axis=1).reshape(n, 4).astype(np.int32)
    there = rng.random(n) < 0.7
    cells = (rng.random((n, rows, cols)) < 0.5) & there[:, None, None]
    return BoxGrid(np.where(there[:, None], corners, -1), cells)


def same(a: BoxGrid, b: BoxGrid) -> bool:
    return np.array_equal(a.boxes, b.boxes) and np.array_equal(a.cells, b.cells)


@pytest.mark.parametrize("spaced", [False, True])
def test_decoding_and_parsing_are_the_inverse_of_encoding(spaced):
    rng = np.random.default_rng(0)
    labels = [*NASTY, "dog At 1 2 3 4", "in *3", "in"]
    for shape in ((1, 1), (3, 2), (12, 16)):
        encoding = get_encoding("boxwise", shape, spaced)
        for n in (1, 2, len(labels)):
            grid = random_grid(rng, n, *shape)
            text = encoding.encode(grid, labels[:n])
            assert text == "".join(encoding.pieces(grid, labels[:n]))
            assert same(encoding.decode(text, labels[:n]), grid)
            read, report = parse(wrap(text, "Here:"), labels[:n], encoding)
            assert same(read, grid) and report.ok and report.no_target == (not grid.any())
    assert BOXWISE.encode(BOXWISE.decode(TEXT, LABELS), LABELS) == TEXT
    assert get_encoding("boxwise", 4).encode(get_encoding("boxwise", 4).blank(2), ["a", "b"]) == "others"


@pytest.mark.parametrize(("old", "new", "message"), [
    ("cat At 3 3 3 3", "cat At 3 3 2 3", "line 4 .*label and its box"),
    ("cat At 3 3 3 3", "cat At 3 3 3 32", "line 4 "), ("cat At", "bird At", "line 4 "),
    ("cat At", "dog At", "in their order"), ("others *2|in *1", "others *2", "box of 'dog': row 1"),
    ("\nin *1|others *2", "", "box of 'cat'"), (TEXT, "", "line 1 ")])
def test_strict_reading_says_where(old, new, message):
    with pytest.raises(DescriptorError, match=message):
        BOXWISE.decode(TEXT.replace(old, new), LABELS)
    with pytest.raises(ValueError, match="instances"):
        BOXWISE.encode(np.zeros((2, 3), int), LABELS)


@pytest.mark.parametrize(("text", "shown", "faults"), [
    (TEXT.replace("\nin *3\ncat", "\ncat"), [1, 0, 4], {"rows_padded": 1}),
    (TEXT.replace("cat", "Cat"), [4, 0, 0], {"near": {"Cat": "cat"}}),
    (TEXT.replace("cat", "cow"), [4, 0, 0], {"unknown": {"cow": 1}}),
    (TEXT.replace("cat At 3 3 3 3", "cat At 3"), [4, 0, 0], {"rows_dropped": 3}),
    (TEXT.replace("cat", "dog"), [4, 0, 0], {"rows_dropped": 2}),
    (TEXT.replace("in *1|", "in|"), [4, 0, 4], {"bad_runs": 1}),
    ("", [0, 0, 0], {"rows_padded": 2}), ("none", [0, 0, 0], {"rows_padded": 2})])
def test_damage_stays_in_its_box_and_is_reported(text, shown, faults):
    grid, report = parse(wrap(text, "Here:"), LABELS, BOXWISE)
    assert grid.cells.sum((1, 2)).tolist() == shown
    assert report.malformed and not report.no_target
    for name, value in faults.items():
        assert getattr(report, name) == value


def test_without_tags_the_prose_is_put_aside():
    grid, report = parse("Sure, here it is\n" + TEXT, LABELS, BOXWISE)
    assert same(grid, BOXWISE.decode(TEXT, LABELS)) and report.before == "Sure, here it is"


def test_pixels_by_brute_force():
    """Boxes that overlap, on an image whose sides are no multiples of anything."""
    rng, (height, width) = np.random.default_rng(1), (41, 67)
    grid = random_grid(rng, 4, 3, 5)
    masks = get_encoding("boxwise", (3, 5)).to_masks(grid, 4, (height, width))
    for k, y, x in np.ndindex(masks.shape):
        x0, y0, x1, y1 = grid.boxes[k]
        row = ((y + 0.5) / height * BOX_BINS - y0) / (y1 + 1 - y0) * 3
        col = ((x + 0.5) / width * BOX_BINS - x0) / (x1 + 1 - x0) * 5
        inside = y0 >= 0 and 0 <= row < 3 and 0 <= col < 5
        assert masks[k, y, x] == (inside and grid.cells[k, int(row), int(col)])


@pytest.mark.parametrize("rule", ["area", "nearest"])
def test_in_the_box_of_the_whole_image_the_cells_are_those_of_the_grid(rule):
    mask = np.random.default_rng(2).random((50, 70)) < 0.5
    mask[0] = mask[:, 0] = mask[-1] = mask[:, -1] = True
    grid = masks_to_boxes([mask, mask & False], 6, rule)
    assert grid.boxes.tolist() == [[0, 0, BOX_BINS - 1, BOX_BINS - 1], [-1] * 4]
    assert np.array_equal(grid.cells[0], masks_to_grid([mask], 6, rule))


def test_a_mask_that_fills_no_cell_keeps_one():
    mask = np.zeros((320, 320), bool)
    mask[(0, 9, 315), (0, 9, 315)] = True
    assert masks_to_boxes([mask], 4).cells.sum() == 1
