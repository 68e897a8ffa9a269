"""Figures: colours, texts and artists, and that no text runs into another or out of the figure."""

from __future__ import annotations

import itertools
import math
import warnings

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_hex, to_rgb
from matplotlib.contour import QuadContourSet
from matplotlib.text import Text

from t4s_helpers.workbook import plotting as p
from t4s_helpers.codec.grid import masks_to_grid
from t4s_helpers.codec.encodings import get_encoding, wrap

NAMES = ("full", "irle", "rrle")


def encode(grid, labels, name="rrle", spaced=False):
    return get_encoding(name, np.shape(grid), spaced).encode(grid, labels)


def pieces(grid, labels):
    return get_encoding("rrle", np.shape(grid)).pieces(grid, labels)



LABELS = ("cup of coffee", "the small silver spoon that lies on the saucer beside the cup", "$5 *3")


@pytest.fixture(autouse=True)
def _own_style():
    with matplotlib.rc_context():
        p.use_style()
        yield
    plt.close("all")


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)


@pytest.fixture
def masks():
    stack = np.zeros((3, 90, 120), bool)
    stack[0, 5:60, 10:80] = True
    stack[1, 40:90, 70:120] = True
    return stack  # the third label has no target


@pytest.fixture
def grid(masks):
    return masks_to_grid(masks, 16)


def visible_texts(figure):
    """Every text that a draw puts on the canvas (ticks beyond the limits keep theirs undrawn)."""
    figure.canvas.draw()
    unused = set()
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in axis.get_major_ticks():
                unused.add(tick.label2)
                if not low <= tick.get_loc() <= high:
                    unused.add(tick.label1)
    texts = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]
    return [t for t in texts if t.axes is not None and t not in unused]


def assert_texts_are_apart(figure):
    """No two texts overlap, and all are inside the figure (after a real draw)."""
    texts = visible_texts(figure)
    assert texts
    boxes = [(t.get_text(), t.get_window_extent()) for t in texts]
    width, height = figure.canvas.get_width_height()
    for name, box in boxes:
        assert box.x0 > -2 and box.y0 > -2, f"{name!r} is cut off at the left or bottom: {box}"
        assert box.x1 < width + 2 and box.y1 < height + 2, f"{name!r} is cut off: {box}"
    for (name, a), (other, b) in itertools.combinations(boxes, 2):
        across = min(a.x1, b.x1) - max(a.x0, b.x0)
        down = min(a.y1, b.y1) - max(a.y0, b.y0)
        # a pixel of anti-aliasing, and line boxes that are a little taller than their letters
        assert across < 1.5 or down < 2.5, f"{name!r} overlaps {other!r}: {across:.1f} x {down:.1f}"


def words(ax):
    """All of the text in the axes, row after row."""
    ax.figure.canvas.draw()
    rows = {}
    for text in ax.texts:
        rows.setdefault(math.floor(text.get_position()[1]), []).append(text)
    in_order = [sorted(rows[r], key=lambda t: t.get_position()[0]) for r in sorted(rows)]
    return ["".join(text.get_text() for text in row) for row in in_order]


# ---------------------------------------------------------------------------------------------
# Colours
# ---------------------------------------------------------------------------------------------


def test_label_colours_are_stable_and_all_different():
    assert p.label_colour(0) == p.OTHERS_COLOUR
    assert [p.label_colour(k + 1) for k in range(8)] == list(p.PALETTE)
    assert len({p.label_colour(k) for k in range(61)}) == 61
    with pytest.raises(ValueError):
        p.label_colour(-1)


def linear(colour):
    rgb = np.array(to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


# Viénot, Brettel & Mollon 1999: what red- and green-blind eyes see, in linear RGB
BLIND = {
    "none": np.eye(3),
    "protan": np.array([[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]]),
    "deutan": np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]]),
}


def lab(colour, blindness):
    xyz_of_rgb = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    xyz = xyz_of_rgb @ np.clip(BLIND[blindness] @ linear(colour), 0, 1)
    f = np.cbrt(xyz / [0.9505, 1.0, 1.089])
    f = np.where(f > 6 / 29, f, xyz / [0.9505, 1.0, 1.089] * (29 / 6) ** 2 / 3 + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("blindness", BLIND)
def test_the_palette_can_be_told_apart_when_colour_blind(blindness):
    colours = [p.label_colour(k) for k in range(9)]
    for a, b in itertools.combinations(colours, 2):
        assert np.linalg.norm(lab(a, blindness) - lab(b, blindness)) > 10, (a, b)


@pytest.mark.parametrize("k", range(1, 25))
def test_text_on_a_tint_has_contrast(k):
    tint, ink = (linear(c) @ (0.2126, 0.7152, 0.0722)
                 for c in (p.mix(p.label_colour(k), "white", 0.62), p.INK))
    assert (tint + 0.05) / (ink + 0.05) >= 4.5


# ---------------------------------------------------------------------------------------------
# Pictures
# ---------------------------------------------------------------------------------------------


def test_show_image_draws_the_picture_and_nothing_else(pixels):
    _, ax = plt.subplots()
    assert p.show_image(ax, pixels, "a title") is ax
    assert np.array_equal(ax.images[0].get_array(), pixels)
    assert ax.get_title() == "a title"
    assert not ax.get_xticks().size and not any(s.get_visible() for s in ax.spines.values())
    with pytest.raises(ValueError, match=r"\(3, 4, 9\)"):
        p.show_image(ax, np.zeros((3, 4, 9)))


def test_show_mask_tints_outlines_and_names(pixels, masks):
    _, ax = plt.subplots()
    assert p.show_mask(ax, pixels, masks, LABELS, alpha=0.5) is ax
    overlay = ax.images[1].get_array()
    assert to_hex(overlay[10, 15, :3] / 255) == p.label_colour(1)
    assert to_hex(overlay[80, 100, :3] / 255) == p.label_colour(2)
    assert (overlay[..., 3] > 0).sum() == masks.any(0).sum()
    # the smaller mask is on top where both are
    both = np.argwhere(masks[0] & masks[1])[0]
    assert to_hex(overlay[tuple(both)][:3] / 255) == p.label_colour(2)
    outlines = [c for c in ax.collections if isinstance(c, QuadContourSet)]
    assert {to_hex(c.get_edgecolor()[0]) for c in outlines} == {p.PALETTE[0], p.PALETTE[1]}
    legend = ax.get_legend()
    texts = [text.get_text().replace("\n", " ") for text in legend.get_texts()]
    assert texts == [LABELS[0], LABELS[1], "$5 *3 (no target)"]
    assert [to_hex(h.get_facecolor()) for h in legend.get_patches()] == list(p.PALETTE[:3])


def test_an_outline_closes_at_the_edge_of_the_picture(pixels):
    _, ax = plt.subplots()
    p.outline(ax, np.ones((4, 5), bool), "red")
    (contour,) = ax.collections
    (path,) = contour.get_paths()
    assert np.array_equal(path.vertices[0], path.vertices[-1])
    assert path.vertices.min(0).tolist() == [-0.5, -0.5]
    assert path.vertices.max(0).tolist() == [4.5, 3.5]


def test_show_mask_takes_one_mask_and_no_labels(pixels, masks):
    _, ax = plt.subplots()
    p.show_mask(ax, pixels, masks[0])
    assert ax.get_legend() is None and len(ax.images) == 2


@pytest.mark.parametrize(
    ("bad", "labels", "words_"),
    [
        (np.zeros((1, 3, 4), bool), ["a"], "3x4.*90x120"),
        (np.zeros((1, 90, 120), np.uint8), ["a"], "uint8"),
        (np.zeros((2, 90, 120), bool), ["a"], "2 masks but 1 labels"),
    ],
)
def test_bad_masks_are_refused(pixels, bad, labels, words_):
    _, ax = plt.subplots()
    with pytest.raises(ValueError, match=words_):
        p.show_mask(ax, pixels, bad, labels)


@pytest.mark.parametrize("size", [1, 5, 16, (12, 20), 64])
def test_draw_grid_tints_every_cell_where_it_lies(pixels, masks, size):
    grid = masks_to_grid(masks, size)
    figure, ax = plt.subplots()
    assert p.draw_grid(ax, pixels, grid, LABELS) is ax
    figure.canvas.draw()
    tints = ax.images[1]
    assert tints.get_extent() == [-0.5, 119.5, 89.5, -0.5]
    assert tints.get_array().shape == (*grid.shape, 4)
    for row, col in np.ndindex(grid.shape):
        assert to_hex(tints.get_array()[row, col, :3]) == p.label_colour(grid[row, col])
    net = next(c for c in ax.collections if isinstance(c, LineCollection))
    assert len(net.get_segments()) == sum(grid.shape) - 2
    named = {int(t.get_text()): at for t, at in zip(ax.get_yticklabels(), ax.get_yticks())}
    assert named[1] == pytest.approx(90 / grid.shape[0] / 2 - 0.5)
    texts = [t.get_text().replace("\n", " ") for t in ax.get_legend().get_texts()]
    assert texts[0] == LABELS[0] and texts[2] == "$5 *3 (no cell)"
    assert ("others" in texts) == bool((grid == 0).any())


def test_grid_borders_enclose_the_labels_cells(pixels):
    _, ax = plt.subplots()
    p.draw_grid(ax, pixels, np.array([[0, 1], [0, 0]]), ["a"], legend=False)
    border = [c for c in ax.collections if isinstance(c, LineCollection)][-1]
    assert len(border.get_segments()) == 4  # a single cell has four edges
    corners = {tuple(point) for segment in border.get_segments() for point in segment}
    assert corners == {(59.5, -0.5), (119.5, -0.5), (59.5, 44.5), (119.5, 44.5)}


def test_draw_grid_refuses_values_without_a_label(pixels):
    _, ax = plt.subplots()
    with pytest.raises(ValueError):
        p.draw_grid(ax, pixels, np.array([[0, 2]]), ["a"])


@pytest.mark.parametrize("n", [3, 4])
def test_before_after_says_the_iou(pixels, masks, n):
    figure, axes = p.small_multiples(n, n)
    coarse, truth = masks[0], np.roll(masks[0], 11, axis=0)
    p.before_after(axes, pixels, coarse, truth, truth, "cup")
    titles = [ax.get_title() for ax in axes]
    assert titles[-3].split("\n")[-1] == f"coarse, IoU {44 / 66:.2f}"
    assert titles[-2:] == ["refined, IoU 1.00", "truth"]
    assert titles[0].startswith("cup")
    with pytest.raises(ValueError, match="three or four axes"):
        p.before_after(axes[:2], pixels, coarse, truth, truth)


def test_small_multiples_hides_what_is_left_over():
    figure, axes = p.small_multiples(5, 3, 2.0, 1.5)
    assert axes.shape == (5,) and len(figure.axes) == 6
    assert not figure.axes[5].axison and all(ax.axison for ax in axes)
    assert figure.get_size_inches().tolist() == [6.0, 3.0]
    with pytest.raises(ValueError):
        p.small_multiples(0)


# ---------------------------------------------------------------------------------------------
# Descriptors and tokens
# ---------------------------------------------------------------------------------------------


def fills(ax):
    ax.figure.canvas.draw()
    (background,) = [c for c in ax.collections if type(c) is PolyCollection]
    return [to_hex(colour) for colour in background.get_facecolor()]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spaced", [False, True])
def test_show_descriptor_shows_the_whole_text(grid, name, spaced):
    _, ax = plt.subplots(figsize=(9, 8))
    labels = ["cup", "spoon", "$5"]
    text = encode(grid, labels, name, spaced)
    assert p.show_descriptor(ax, text, labels, row_numbers=False) is ax
    shown = "".join(words(ax))
    assert shown.replace(" ", "") == text.replace("\n", "").replace(" ", "")
    tints = {p.mix(p.label_colour(k), "white", 0.62) for k in (1, 2)}
    assert set(fills(ax)) == tints


def test_pieces_and_text_look_the_same(grid):
    _, (a, b) = plt.subplots(1, 2)
    p.show_descriptor(a, encode(grid, LABELS), LABELS)
    p.show_descriptor(b, pieces(grid, LABELS), LABELS)
    assert words(a) == words(b)


def test_rows_are_numbered_from_one(grid):
    _, ax = plt.subplots(figsize=(8, 6))
    p.show_descriptor(ax, encode(grid, LABELS), LABELS)
    rows = words(ax)
    assert len(rows) == 16
    assert all(row.startswith(str(r + 1)) for r, row in enumerate(rows))


def test_rows_stand_beside_the_rows_of_the_grid(pixels, grid):
    figure, (a, b) = plt.subplots(1, 2, figsize=(10, 4))
    p.draw_grid(a, pixels, grid, LABELS)
    p.show_descriptor(b, encode(grid, LABELS), LABELS, beside=a)
    figure.canvas.draw()
    for r, text in enumerate(sorted((t for t in b.texts if t.get_text().isdigit()),
                                    key=lambda t: int(t.get_text()))):
        middle = np.mean(text.get_window_extent().intervaly)
        expected = a.transData.transform((0, (r + 0.5) * 90 / 16 - 0.5))[1]
        assert abs(middle - expected) < 4, f"row {r + 1}"


def test_labels_are_cut_further_before_aligned_rows_get_hard_to_read(pixels):
    labels = ["the red saucer under the cup", "the other red saucer"]
    grid = np.tile([0, 1, 0, 2, 1, 2, 0, 1], (4, 1))
    sizes = {}
    for width in (9, 3):
        _, (a, b) = plt.subplots(1, 2, figsize=(width, 4), width_ratios=[1, 4], layout="constrained")
        p.draw_grid(a, pixels, grid, labels, legend=False)
        p.show_descriptor(b, encode(grid, labels), labels, beside=a)
        sizes[width] = (words(b)[0], b.texts[0].get_fontsize(), len(words(b)))
    assert "red saucer…" in sizes[9][0] and sizes[9][1] >= 6.5 and sizes[9][2] == 4
    assert sizes[3][2] > 4  # far too narrow for one line a row: wrapped, not aligned
    assert_texts_are_apart(b.figure)


def test_labels_that_were_not_asked_for_stand_out():
    _, ax = plt.subplots()
    p.show_descriptor(ax, "others *3|cap *2\ncup *5\n|cup *x\ncup", ["cup"])
    assert fills(ax).count(p.ALARM) == 3  # cap, the empty run, and "cup *x", which is no label
    assert len(words(ax)) == 4


def test_a_response_keeps_its_sentence_and_tags(grid):
    _, ax = plt.subplots(figsize=(8, 6))
    p.show_descriptor(ax, wrap(encode(grid, LABELS), "Here you are."), LABELS)
    rows = words(ax)
    assert rows[0].replace(" ", "") == "Hereyouare." and rows[1] == "<seg>"
    assert rows[2].startswith("1") and rows[-1] == "</seg>"
    _, ax = plt.subplots()
    p.show_descriptor(ax, "<seg>", LABELS)
    assert words(ax) == ["<seg>", "(nodescriptors)"]


def test_text_without_room_loses_its_middle_and_says_so():
    grid = np.tile([[0, 1]], (64, 32))
    _, ax = plt.subplots(figsize=(4, 2))
    p.show_descriptor(ax, encode(grid, ["a label"]), ["a label"])
    rows = words(ax)
    assert sum("lines not shown" in row for row in rows) == 1
    assert rows[0].startswith("1")
    assert min(text.get_fontsize() for text in ax.texts) >= 5
    assert_texts_are_apart(ax.figure)


def test_escaped_labels_get_their_colour():
    _, ax = plt.subplots()
    labels = ["a|b", "row *3"]
    p.show_descriptor(ax, encode(np.array([[1, 2]]), labels), labels)
    assert fills(ax) == [p.mix(p.label_colour(k), "white", 0.62) for k in (1, 2)]
    assert words(ax) == ["a\\pb *1|row \\a3 *1"]


@pytest.mark.parametrize(
    ("label", "width", "short"),
    [
        ("cat", 12, "cat"),
        ("the American flag", 13, "American flag"),
        ("the woman in the orange suit", 12, "woman…"),
        ("the woman in the orange suit", 20, "woman in the orange…"),
        ("black helmet with a rim", 12, "black helme…"),
        ("black helmet with a rim", 14, "black helmet…"),
        ("donaudampfschiff", 8, "donauda…"),
    ],
)
def test_labels_are_cut_at_words_where_enough_is_left(label, width, short):
    assert p.short_labels([label], width) == [short]


def test_short_labels_stay_different():
    labels = ["person on the left in red", "person on the left in blue", "cat", "x" * 40, "x" * 41]
    short = p.short_labels(labels, 16)
    assert len(set(short)) == 5 and short[2] == "cat"
    assert all(len(text) <= 16 for text in short)


def test_a_label_in_letters_that_the_font_lacks_is_a_box():
    figure, (a, b) = plt.subplots(1, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of missing glyphs
        p.show_image(a, np.zeros((4, 4, 3), np.uint8), "\u732b")
        p.show_descriptor(b, "\u732b *2|others *2", ["\u732b"], legend=True)
        figure.canvas.draw()
    assert a.get_title() == "\u25a1" and words(b) == ["\u25a1 *2|others *2"]


def test_show_tokens_colours_what_is_trained():
    tokens = ["<img>", *["<ctx>"] * 256, "</img>", " Find", " it", "\n", "others", " *16", " ", "\n"]
    trained = [False] * 261 + [True] * 4
    _, ax = plt.subplots()
    assert p.show_tokens(ax, tokens, trained) is ax
    assert words(ax) == ["<img><ctx> ×256</img>Findit↵", "others*16␣↵"]
    colours = fills(ax)
    assert len(colours) == 10 and len(set(colours[:6])) == 1 and len(set(colours[6:])) == 1
    assert colours[0] != colours[-1]
    texts = [t.get_text() for t in ax.get_legend().get_texts()]
    assert texts == ["trained: 4 tokens", "not trained: 261 tokens"]
    with pytest.raises(ValueError, match="265 tokens but 1"):
        p.show_tokens(ax, tokens, [True])


def test_show_tokens_of_nothing():
    figure, ax = plt.subplots()
    p.show_tokens(ax, [], [])
    figure.canvas.draw()
    assert ax.get_legend().get_texts()[0].get_text() == "trained: 0 tokens"


# ---------------------------------------------------------------------------------------------
# Numbers
# ---------------------------------------------------------------------------------------------


def test_bars_have_their_values_and_intervals():
    figure, ax = plt.subplots()
    series = {"coarse": [61.24, math.nan], "refined": [74.4, 70.0]}
    assert p.bars(ax, ["val", "$t"], series, {"refined": [(70, 78), (69, 72)]}, ylabel="cIoU") is ax
    figure.canvas.draw()
    assert [bar.get_height() for bar in ax.patches] == [61.24, 0, 74.4, 70.0]
    texts = {t.get_text(): t for t in ax.texts}
    assert set(texts) == {"61.2", "n/a", "74.4", "70.0"}
    assert texts["74.4"].xy[1] == 78  # above the interval
    ends = np.concatenate([line.get_segments() for line in ax.collections])[:, :, 1]
    assert np.allclose(ends, [[70, 78], [69, 72]])
    assert [t.get_text() for t in ax.get_xticklabels()] == ["val", "$t"]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["coarse", "refined"]
    assert ax.get_ylim()[1] > 78


def test_crowded_bars_stand_their_values_upright_and_turn_their_names():
    figure, ax = plt.subplots(figsize=(4, 3))
    rng = np.random.default_rng(0)
    names = [f"benchmark {k}" for k in range(6)]
    p.bars(ax, names, {f"s{k}": rng.uniform(-90, 900, 6) for k in range(4)})
    figure.canvas.draw()
    assert {t.get_rotation() for t in ax.texts} == {90}
    assert {t.get_rotation() for t in ax.get_xticklabels()} == {35}
    boxes = [t.get_window_extent() for t in ax.texts]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    inside = ax.get_window_extent()
    assert all(box.y0 > inside.y0 - 1 and box.y1 < inside.y1 + 1 for box in boxes)


@pytest.mark.parametrize(
    ("groups", "series", "errors"),
    [
        ([], {"a": []}, None),
        (["x"], {}, None),
        (["x"], {"a": [1, 2]}, None),
        (["x"], {"a": [1]}, {"b": [(0, 1)]}),
        (["x"], {"a": [1]}, {"a": []}),
    ],
)
def test_bad_bars_are_refused(groups, series, errors):
    _, ax = plt.subplots()
    with pytest.raises(ValueError):
        p.bars(ax, groups, series, errors)


def test_smoothing_is_an_average_without_a_pull_to_the_start():
    values = np.random.default_rng(0).normal(3, 1, 50)
    w = 0.8
    for n in (1, 2, 50):
        weights = w ** np.arange(n)[::-1]
        expected = (weights * values[:n]).sum() / weights.sum()
        assert p.smoothed(values[:n], w)[-1] == pytest.approx(expected)
    assert np.array_equal(p.smoothed(values, 0), values)
    assert p.smoothed([math.nan, 2.0, math.inf, 2.0], w)[1:].tolist() == pytest.approx([2, 2, 2])
    with pytest.raises(ValueError):
        p.smoothed(values, 1.0)


def test_loss_curves_share_axes_and_mark_what_diverged():
    figure, ax = plt.subplots()
    steps = np.arange(40.0)
    values = np.exp(-steps / 10)
    values[30:] = math.nan
    assert p.loss_curve(ax, steps, values, label="train") is ax
    p.loss_curve(ax, steps, np.full(40, 0.5), 0, label="validation")
    figure.canvas.draw()
    texts = [t.get_text() for t in ax.get_legend().get_texts()]
    assert texts[0].startswith("train (last 0.") and texts[2] == "validation (last 0.5)"
    assert texts[1] == "not finite (10 steps)"
    crosses = next(line for line in ax.lines if line.get_marker() == "x")
    assert crosses.get_xdata().tolist() == list(range(30, 40))
    colours = {line.get_color() for line in ax.lines if line.get_marker() != "x"}
    assert len(colours) == 2
    with pytest.raises(ValueError):
        p.loss_curve(ax, [1, 2], [1])


def test_the_legend_covers_no_curve():
    figure, ax = plt.subplots(figsize=(4, 2.5))
    steps = np.arange(100)
    p.loss_curve(ax, steps, steps / 100, 0, label="rising")
    p.loss_curve(ax, steps, 0.9 + steps / 900, 0, label="high")
    figure.canvas.draw()
    box = ax.get_legend().get_window_extent()
    for line in ax.lines:
        points = ax.transData.transform(line.get_xydata())
        assert not any(box.contains(*point) for point in points)


# ---------------------------------------------------------------------------------------------
# Room: nothing overlaps, nothing is cut
# ---------------------------------------------------------------------------------------------

LONG = "the woman in the orange space suit who is standing before a flag and a model rocket"


def everything(pixels, masks, grid, figsize):
    figure, axes = plt.subplots(3, 3, figsize=figsize)
    for ax in axes[0, :2]:
        p.show_mask(ax, pixels, masks, LABELS, LONG)
    p.draw_grid(axes[0, 2], pixels, grid, LABELS, LONG)
    for ax, name in zip(axes[1], NAMES):
        p.show_descriptor(ax, encode(grid, LABELS, name), LABELS, LONG)
    tokens = [f" {word}" for word in (LONG * 3).split()]
    p.show_tokens(axes[2, 0], tokens, [k > 9 for k in range(len(tokens))], LONG)
    rng = np.random.default_rng(1)
    names = ["validation of refCOCO", "test A", "averylongnamewithoutanyspace"]
    p.bars(axes[2, 1], names, {f"series {k}": rng.uniform(-20, 900, 3) for k in range(3)})
    p.loss_curve(axes[2, 2], range(50), np.exp(-np.arange(50) / 9), title=LONG)
    return figure


@pytest.mark.parametrize("figsize", [(9, 9), (14, 10)])
@pytest.mark.parametrize("layout", ["constrained", "tight"])
def test_no_text_overlaps_or_is_cut(pixels, masks, grid, figsize, layout):
    matplotlib.rcParams["figure.constrained_layout.use"] = layout == "constrained"
    figure = everything(pixels, masks, grid, figsize)
    if layout == "tight":
        figure.tight_layout()
        figure.tight_layout()  # matplotlib's own advice where decorations follow from the size
    assert_texts_are_apart(figure)


def test_text_follows_when_the_figure_is_resized_or_saved(pixels, masks, grid, tmp_path):
    figure = everything(pixels, masks, grid, (12, 10))
    figure.canvas.draw()
    for size, dpi in (((8, 9), 60), ((15, 12), 200)):
        figure.set_size_inches(size)
        figure.set_dpi(dpi)
        assert_texts_are_apart(figure)
    for ending in ("png", "pdf", "svg"):
        figure.savefig(tmp_path / f"x.{ending}", bbox_inches="tight", dpi=70)
        assert (tmp_path / f"x.{ending}").stat().st_size > 10_000


@pytest.mark.parametrize("dpi", [60, 100, 144, 150])
def test_monospaced_text_keeps_to_its_columns(grid, dpi):
    """Backends round character widths to pixels: the columns must follow what is drawn."""
    figure, ax = plt.subplots(figsize=(7, 4), dpi=dpi)
    p.show_descriptor(ax, encode(grid, LABELS), LABELS)
    figure.canvas.draw()
    for text in ax.texts:
        start = text.get_position()[0]
        if text.get_ha() == "left":
            end = ax.transData.inverted().transform(text.get_window_extent().max)[0]
            assert end < start + len(text.get_text()) + 0.6, text.get_text()


def test_axes_can_be_cleared_and_drawn_again(pixels, masks, grid):
    """What a widget does: the next picture must not be laid out by the last one's text."""
    figure, ax = plt.subplots()
    for _ in range(2):
        p.show_descriptor(ax, encode(grid, LABELS), LABELS, LONG, legend=True)
        figure.canvas.draw()
        ax.clear()
        p.show_mask(ax, pixels, masks, LABELS, "short")
        figure.canvas.draw()
        assert ax.get_xlim() == (-0.5, 119.5) and not ax.texts
        assert ax.get_title() == "short"
        ax.clear()
        p.bars(ax, ["a"], {"x": [1.0]})
        figure.canvas.draw()
        ax.clear()
    ax.set_title("mine")
    ax.plot([0, 1])
    figure.canvas.draw()
    assert ax.get_title() == "mine" and ax.get_legend() is None and ax.get_xlim()[1] < 2


def test_drawing_twice_changes_nothing(pixels, masks, grid):
    figure = everything(pixels, masks, grid, (10, 9))
    for _ in range(3):  # titles, legends and axes settle
        figure.canvas.draw()
    first = np.asarray(figure.canvas.buffer_rgba()).copy()
    figure.canvas.draw()
    assert np.array_equal(first, np.asarray(figure.canvas.buffer_rgba()))


def test_figures_do_not_need_pyplot_or_the_style(pixels, masks, grid):
    with matplotlib.rc_context(matplotlib.rcParamsDefault):
        figure = matplotlib.figure.Figure(figsize=(8, 4), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2)
        p.draw_grid(left, pixels, grid, LABELS, LONG)
        p.show_descriptor(right, encode(grid, LABELS), LABELS, LONG, legend=True)
        assert_texts_are_apart(figure)


def test_subfigures_have_a_width_of_their_own(pixels):
    figure = plt.figure(figsize=(8, 4), layout="none")
    left, right = figure.subfigures(1, 2)
    ax = p.show_image(left.subplots(), pixels, LONG)
    p.show_image(right.subplots(), pixels, LONG)
    figure.canvas.draw()
    assert ax.title.get_window_extent().width <= 0.5 * 0.775 * figure.bbox.width


def test_nothing_shows_or_saves(pixels, masks, grid, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a plotting function showed or saved a figure")

    monkeypatch.setattr(plt, "show", refuse)
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", refuse)
    everything(pixels, masks, grid, (9, 9)).canvas.draw()


def test_a_confidence_map_is_tinted_by_probability(pixels):
    probs = np.array([[0.0, 0.25], [0.75, 1.0]])
    _, ax = plt.subplots()
    truth = np.zeros(pixels.shape[:2], bool)
    truth[20:50, 30:90] = True
    assert p.draw_confidence(ax, pixels, probs, "the $5 mug", label=2, truth=truth) is ax
    tint = ax.images[-1].get_array()
    assert np.allclose(tint[..., 3], 0.9 * probs) and to_hex(tint[0, 1, :3]) == p.label_colour(2)
    borders = [c for c in ax.collections if isinstance(c, LineCollection)
               and to_hex(c.get_edgecolor()[0]) == p.label_colour(2)]
    assert len(borders) == 1  # around the cells above one half
    with pytest.raises(ValueError, match="values in \\[0, 1\\]"):
        p.draw_confidence(ax, pixels, 2 * probs)


def test_a_reliability_diagram_shows_every_curve_and_its_error():
    from t4s_helpers.evaluation.calibration import calibration

    rng = np.random.default_rng(0)
    stated = rng.random(500)
    curves = {"honest": calibration(stated, rng.random(500) < stated),
              "boastful": calibration(stated, rng.random(500) < stated / 2)}
    _, ax = plt.subplots()
    assert p.reliability(ax, curves) is ax
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert [text.split(":")[0] for text in texts] == ["honest", "boastful"]
    assert f"{100 * curves['boastful'].ece:.1f} %" in texts[1]
    dots = ax.collections[1].get_offsets()
    assert np.allclose(dots[:, 1], curves["boastful"].observed[curves["boastful"].n > 0])
