"""Figures: colours, texts and artists, and that no text runs into another or out of the figure."""

from __future__ import annotations

import itertools
import math
import warnings
from types import SimpleNamespace

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex, to_rgb
from matplotlib.contour import QuadContourSet
from matplotlib.text import Text
from skimage.color import xyz2lab
from skimage.color.colorconv import xyz_from_rgb

from t4s_helpers.codec.encodings import get_encoding, wrap
from t4s_helpers.codec.grid import masks_to_grid
from t4s_helpers.evaluation.calibration import calibration
from t4s_helpers.workbook import plotting as p

NAMES = ("full", "irle", "rrle")
LABELS = ("cup of coffee", "the small silver spoon that lies on the saucer beside the cup", "$5 *3")
PIXELS = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
MASKS = np.zeros((3, 90, 120), bool)  # the third label has no target
MASKS[0, 5:60, 10:80] = MASKS[1, 40:90, 70:120] = True
GRID = masks_to_grid(MASKS, 16)
LONG = "the woman in the orange space suit who is standing before a flag and a model rocket"


def encode(grid=GRID, labels=LABELS, name="rrle"):
    return get_encoding(name, grid.shape).encode(grid, labels)


@pytest.fixture(autouse=True)
def _own_style():
    with matplotlib.rc_context():
        p.use_style()
        yield
    plt.close("all")


def visible_texts(figure):
    """Every text that a draw puts on the canvas (ticks beyond the limits keep theirs undrawn)."""
    for _ in range(4):  # constrained layout settles, as while saving with a tight box
        figure.canvas.draw()
    unused = set()
    for axis in (axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)):
        low, high = sorted(axis.get_view_interval())
        for tick in axis.get_major_ticks():
            unused |= {tick.label2} if low <= tick.get_loc() <= high else {tick.label1, tick.label2}
    texts = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]
    return [t for t in texts if t.axes is not None and t not in unused]


def assert_texts_are_apart(figure):
    """No two texts overlap, and all are inside the figure (after a real draw)."""
    texts = visible_texts(figure)
    x0, y0, x1, y1 = np.array([text.get_window_extent().extents for text in texts]).T
    width, height = figure.canvas.get_width_height()
    cut = (x0 < -2) | (y0 < -2) | (x1 > width + 2) | (y1 > height + 2)
    assert not cut.any(), [texts[k].get_text() for k in np.flatnonzero(cut)]
    across = np.minimum.outer(x1, x1) - np.maximum.outer(x0, x0)
    down = np.minimum.outer(y1, y1) - np.maximum.outer(y0, y0)
    # a pixel of anti-aliasing, and line boxes that are a little taller than their letters
    over = np.argwhere(np.triu((across > 1.5) & (down > 2.5), 1))
    assert not len(over), [(texts[a].get_text(), texts[b].get_text()) for a, b in over]


def rows_of(ax):
    """The monospaced text in the axes, row after row."""
    words = sorted((t.get_position()[::-1], t.get_text()) for t in ax.texts)
    return ["".join(text for _, text in row) for _, row in itertools.groupby(words, lambda word: word[0][0])]


def fills(ax):
    boxes = [text.get_bbox_patch() for text in ax.texts]
    return [to_hex(box.get_facecolor()) for box in boxes if box is not None]


def legend_of(ax):
    return [text.get_text().replace("\n", " ") for text in ax.get_legend().get_texts()]


# --- colours ------------------------------------------------------------------------------------


def test_label_colours_are_stable_and_all_different():
    assert [p.label_colour(k) for k in range(9)] == [p.OTHERS_COLOUR, *p.PALETTE]
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
    return xyz2lab(xyz_from_rgb @ np.clip(BLIND[blindness] @ linear(colour), 0, 1))


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


# --- pictures -----------------------------------------------------------------------------------


def test_show_image_draws_the_picture_and_nothing_else_and_places_left_over_are_hidden():
    figure, axes = p.small_multiples(5, 3, 2.0, 1.5)
    assert axes.shape == (5,) and figure.get_size_inches().tolist() == [6.0, 3.0]
    assert [ax.axison for ax in figure.axes] == [True] * 5 + [False]
    ax = axes[0]
    assert p.show_image(ax, PIXELS, "a title") is ax and ax.get_title() == "a title"
    assert np.array_equal(ax.images[0].get_array(), PIXELS)
    assert not ax.get_xticks().size and not any(s.get_visible() for s in ax.spines.values())
    with pytest.raises(ValueError, match=r"\(3, 4, 9\)"):
        p.show_image(ax, np.zeros((3, 4, 9)))
    with pytest.raises(ValueError):
        p.small_multiples(0)


def test_show_mask_tints_outlines_and_names():
    _, (ax, bare) = plt.subplots(1, 2)
    assert p.show_mask(ax, PIXELS, MASKS, LABELS, alpha=0.5) is ax
    overlay = ax.images[1].get_array()
    both = tuple(np.argwhere(MASKS[0] & MASKS[1])[0])  # the smaller mask is on top
    for place, label in (((10, 15), 1), ((80, 100), 2), (both, 2)):
        assert to_hex(overlay[place][:3]) == p.label_colour(label)
    assert ((overlay[..., 3] == 0.5) == MASKS.any(0)).all()
    outlines = [c for c in ax.collections if isinstance(c, QuadContourSet)]
    assert {to_hex(c.get_edgecolor()[0]) for c in outlines} == {p.PALETTE[0], p.PALETTE[1]}
    assert legend_of(ax) == [LABELS[0], LABELS[1], "$5 *3 (no target)"]
    assert [to_hex(h.get_facecolor()) for h in ax.get_legend().get_patches()] == list(p.PALETTE[:3])
    p.show_mask(bare, PIXELS, MASKS[0])
    assert bare.get_legend() is None and len(bare.images) == 2
    for bad, words in ((np.zeros((1, 3, 4), bool), r"90, 120.*\(1, 3, 4\)"),
                       (np.zeros((3, 90, 120), np.uint8), "uint8"), (MASKS[:2], "2 masks but 3 labels")):
        with pytest.raises(ValueError, match=words):
            p.show_mask(bare, PIXELS, bad, LABELS)


def test_an_outline_closes_at_the_edge_of_the_picture():
    _, ax = plt.subplots()
    (path,) = p.outline(ax, np.ones((4, 5), bool), "red").collections[0].get_paths()
    assert np.array_equal(path.vertices[0], path.vertices[-1])
    assert path.vertices.min(0).tolist() == [-0.5, -0.5]
    assert path.vertices.max(0).tolist() == [4.5, 3.5]


@pytest.mark.parametrize("size", [1, (12, 20), 64])
def test_draw_grid_tints_every_cell_where_it_lies(size):
    grid = masks_to_grid(MASKS, size)
    _, ax = plt.subplots()
    assert p.draw_grid(ax, PIXELS, grid, LABELS) is ax
    tints = ax.images[1]
    assert tints.get_extent() == [-0.5, 119.5, 89.5, -0.5]
    colours = [[to_hex(tint) for tint in row] for row in tints.get_array()[..., :3]]
    assert colours == [[p.label_colour(k) for k in row] for row in grid]
    net = [c for c in ax.collections if isinstance(c, LineCollection)][:2]
    assert [len(lines.get_segments()) for lines in net] == [n - 1 for n in grid.shape]
    named = {int(t.get_text()): at for t, at in zip(ax.get_yticklabels(), ax.get_yticks())}
    assert named == pytest.approx({r: (r - 0.5) * 90 / len(grid) - 0.5 for r in named}) and 1 in named
    assert len(named) in (1, 12, 16)
    texts = legend_of(ax)
    assert texts[0] == LABELS[0] and texts[2] == "$5 *3 (no cell)"
    assert ("others" in texts) == bool((grid == 0).any())
    with pytest.raises(ValueError):
        p.draw_grid(ax, PIXELS, np.array([[0, 2]]), ["a"])


def test_borders_enclose_the_labels_cells():
    _, ax = plt.subplots()
    p.draw_grid(ax, PIXELS, np.array([[0, 1], [0, 0]]), ["a"], legend=False)
    borders = [c for c in ax.collections if isinstance(c, LineCollection)][-2:]
    edges = [tuple(point) for border in borders for edge in border.get_segments() for point in edge]
    assert len(edges) == 8  # the two ends of four edges
    assert set(edges) == {(59.5, -0.5), (119.5, -0.5), (59.5, 44.5), (119.5, 44.5)}


def test_a_confidence_map_is_tinted_by_probability():
    probs = np.array([[0.0, 0.25], [0.75, 1.0]])
    _, ax = plt.subplots()
    assert p.draw_confidence(ax, PIXELS, probs, "the $5 mug", truth=MASKS[0]) is ax
    tint = ax.images[-1].get_array()
    assert np.allclose(tint[..., 3], 0.9 * probs) and to_hex(tint[0, 1, :3]) == p.label_colour(1)
    edges = [len(c.get_segments()) for c in ax.collections if isinstance(c, LineCollection)
             and to_hex(c.get_edgecolor()[0]) == p.label_colour(1)]
    assert sum(edges) == 6  # around the lower two cells, the ones above one half
    with pytest.raises(ValueError, match="values in \\[0, 1\\]"):
        p.draw_confidence(ax, PIXELS, 2 * probs)


# --- descriptors and tokens ---------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spaced", [False, True])
def test_the_whole_text_is_shown_in_a_figure_and_on_a_page(name, spaced):
    _, (ax, twin) = plt.subplots(1, 2, figsize=(18, 8))
    labels = ["a|b", "row *3", "$5"]
    encoding = get_encoding(name, 16, spaced)
    text = encoding.encode(GRID, labels)
    assert p.show_descriptor(ax, text, labels) is ax
    lines = text.removesuffix("\n").split("\n")
    expected = "".join(f"{r}{line}" if name == "rrle" else line for r, line in enumerate(lines, 1))
    assert "".join(rows_of(ax)).replace(" ", "") == expected.replace(" ", "")
    tints = {p.mix(p.label_colour(k), "white", 0.62) for k in (1, 2)}
    assert set(fills(ax)) == tints
    p.show_descriptor(twin, encoding.pieces(GRID, labels), labels)
    assert rows_of(twin) == rows_of(ax)
    page = p.descriptor_html(text, labels).data
    assert page.count("<br>") == len(lines) - 1 and all(f"background:{tint}" in page for tint in tints)


@pytest.mark.parametrize("width", [6, 10, 14])
def test_rows_stand_beside_the_rows_of_the_grid(width):
    figure, (a, b) = plt.subplots(1, 2, figsize=(width, 4))
    p.draw_grid(a, PIXELS, GRID, LABELS)
    p.show_descriptor(b, encode(), LABELS, beside=a)
    figure.canvas.draw()
    numbers = [t for t in b.texts if t.get_text().strip().isdigit()]
    assert [int(t.get_text()) for t in numbers] == list(range(1, 17))
    for r, text in enumerate(numbers):
        middle = np.mean(text.get_window_extent().intervaly)
        expected = a.transData.transform((0, (r + 0.5) * 90 / 16 - 0.5))[1]
        assert abs(middle - expected) < 4, f"row {r + 1}"
    assert_texts_are_apart(figure)


def test_labels_are_cut_further_before_aligned_rows_get_hard_to_read():
    labels = ["the red saucer under the cup", "the other red saucer"]
    grid = np.tile([0, 1, 0, 2, 1, 2, 0, 1], (4, 1))
    rows, sizes = {}, {}
    for width in (7, 3):
        figure, (a, b) = plt.subplots(1, 2, figsize=(width, 4), width_ratios=[1, 4])
        p.draw_grid(a, PIXELS, grid, labels, legend=False)
        p.show_descriptor(b, encode(grid, labels), labels, beside=a)
        assert_texts_are_apart(figure)
        rows[width], sizes[width] = rows_of(b), {text.get_fontsize() for text in b.texts}
    assert "red saucer…" in rows[7][0] and "red saucer under" not in rows[7][0]
    assert min(sizes[7]) >= 5 and len(rows[7]) == 4
    assert len(rows[3]) > 4  # far too narrow for one line a row: wrapped, not aligned


def test_labels_that_were_not_asked_for_stand_out_and_a_page_escapes_them():
    _, ax = plt.subplots()
    text = "others *3|cap *2\nb&c *5\n|b&c *x\nb&c"
    p.show_descriptor(ax, text, ["b&c"])
    assert fills(ax).count(p.ALARM) == 3  # cap, the empty run, and "b&c *x", which is no label
    assert len(rows_of(ax)) == 4
    page = p.descriptor_html([text[:9], text[9:]], ["b&c"], "a <i> & more").data
    assert "b&amp;c *5" in page and "a &lt;i&gt; &amp; more" in page and "<i>" not in page
    assert page.count(f"color:white;background:{p.ALARM}") == 3


def test_a_response_keeps_its_sentence_and_tags():
    _, (ax, empty, bare) = plt.subplots(1, 3, figsize=(16, 6))
    p.show_descriptor(ax, wrap(encode(), "Here you are."), LABELS)
    rows = rows_of(ax)
    assert rows[:2] == ["Here you are.", "<seg>"] and rows[2].strip().startswith("1")
    assert rows[-1] == "</seg>" and len(rows) >= 19
    p.show_descriptor(empty, "<seg>", LABELS)
    assert rows_of(empty) == ["<seg>", "(no descriptors)"]
    p.show_descriptor(bare, "", LABELS)
    assert rows_of(bare) == ["(no descriptors)"]


def test_text_without_room_loses_its_end_and_says_so():
    _, ax = plt.subplots(figsize=(4, 2))
    p.show_descriptor(ax, encode(np.tile([[0, 1]], (64, 32)), ["a label"]), ["a label"])
    assert_texts_are_apart(ax.figure)
    rows = rows_of(ax)
    assert "lines not shown" in rows[-1] and rows[0].strip().startswith("1")
    assert min(text.get_fontsize() for text in ax.texts) >= 5


def test_short_labels_stay_different():
    labels = ["person on the left in red", "person on the left in blue", "cat", "x" * 40, "x" * 41,
              "the American flag"]
    short = p.short_labels(labels, 16)
    assert len(set(short)) == 6 and short[2] == "cat" and short[5] == "American flag"
    assert all(len(text) <= 16 for text in short)


def test_a_label_in_letters_that_the_font_lacks_is_a_box():
    figure, (a, b) = plt.subplots(1, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of missing glyphs
        p.show_mask(a, np.zeros((4, 4, 3), np.uint8), np.ones((4, 4), bool), ["\u732b"], "\u732b")
        p.show_descriptor(b, "\u732b *2|others *2", ["\u732b"])
        figure.canvas.draw()
    assert a.get_title() == "\u25a1" and legend_of(a) == ["\u25a1"]
    assert rows_of(b) == ["\u25a1 *2|others *2"]


def test_show_tokens_colours_what_is_trained():
    tokens = ["<img>", *["<ctx>"] * 256, "</img>", " Find", " it", "\n", "others", " *16", " ", "\n"]
    trained = [False] * 261 + [True] * 4
    _, (ax, empty) = plt.subplots(1, 2)
    assert p.show_tokens(ax, tokens, trained) is ax
    assert rows_of(ax) == ["<img><ctx> ×256</img> Find it↵", "others *16␣↵"]
    colours = fills(ax)
    assert len(colours) == 10 and len(set(colours[:6])) == 1 and len(set(colours[6:])) == 1
    assert colours[0] != colours[-1]
    assert legend_of(ax) == ["trained: 4 tokens", "not trained: 261 tokens"]
    p.show_tokens(empty, [], [])
    assert rows_of(empty) == [] and legend_of(empty)[0] == "trained: 0 tokens"
    with pytest.raises(ValueError, match="265 tokens, but 1"):
        p.show_tokens(ax, tokens, [True])


def test_show_trace_colours_what_a_token_cost():
    _, ax = plt.subplots()
    trace = SimpleNamespace(sources=("model", "model", "forced"), drafted=(False, True, True))
    assert p.show_trace(ax, ["a", "b", "\n"], trace) is ax
    assert legend_of(ax) == ["a pass each: 1", "guessed, confirmed: 1", "forced: 1"]
    assert len(set(fills(ax))) == 3 and rows_of(ax) == ["ab↵"]


# --- numbers ------------------------------------------------------------------------------------


def test_bars_have_their_values_and_intervals():
    _, ax = plt.subplots()
    series = {"coarse": [61.24, math.nan], "refined": [74.4, 70.0]}
    assert p.bars(ax, ["val", "$t"], series, {"refined": [(70, 78), (69, 72)]}, ylabel="cIoU") is ax
    assert [bar.get_height() for bar in ax.patches] == [61.24, 0, 74.4, 70.0]
    texts = {t.get_text(): t for t in ax.texts}
    assert set(texts) == {"61.2", "n/a", "74.4", "70.0"}
    assert texts["74.4"].xy[1] == 78  # above the interval
    ends = np.concatenate([line.get_segments() for line in ax.collections])[:, :, 1]
    assert np.allclose(ends, [[70, 78], [69, 72]])
    assert [t.get_text() for t in ax.get_xticklabels()] == ["val", "$t"]
    assert legend_of(ax) == ["coarse", "refined"] and ax.get_ylim()[1] > 78


def test_crowded_bars_stand_their_values_upright_and_turn_their_names():
    figure, ax = plt.subplots(figsize=(4, 3))
    values = np.random.default_rng(0).uniform(-90, 900, (4, 6))
    p.bars(ax, [f"benchmark {k}" for k in range(6)], {f"s{k}": row for k, row in enumerate(values)})
    figure.canvas.draw()
    assert {t.get_rotation() for t in ax.texts} == {90}
    assert {t.get_rotation() for t in ax.get_xticklabels()} == {35}
    boxes = [t.get_window_extent() for t in ax.texts]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    inside = ax.get_window_extent()
    assert all(box.y0 > inside.y0 - 1 and box.y1 < inside.y1 + 1 for box in boxes)
    for groups, series, errors in [
        ([], {"a": []}, None), (["x"], {}, None), (["x"], {"a": [1, 2]}, None),
        (["x"], {"a": [1]}, {"b": [(0, 1)]}), (["x"], {"a": [1]}, {"a": []}),
    ]:
        with pytest.raises(ValueError):
            p.bars(ax, groups, series, errors)


def bold(values, weight):
    """The moving average that `loss_curve` draws."""
    _, ax = plt.subplots()
    p.loss_curve(ax, range(len(values)), values, weight)
    return ax.lines[-1 if np.isfinite(values).all() else -2].get_ydata()


def test_smoothing_is_an_average_without_a_pull_to_the_start():
    values = np.random.default_rng(0).normal(3, 1, 50)
    for n in (1, 2, 50):
        weights = 0.8 ** np.arange(n)[::-1]
        assert bold(values[:n], 0.8)[-1] == pytest.approx((weights * values[:n]).sum() / weights.sum())
    assert np.array_equal(bold(values, 0), values)
    assert bold([math.nan, 2.0, math.inf, 4.0], 0.8)[[1, 3]].tolist() == pytest.approx([2, 28 / 9])
    with pytest.raises(ValueError, match="smoothing"):
        bold(values, 1.0)


def test_loss_curves_share_axes_and_mark_what_diverged():
    _, ax = plt.subplots()
    steps = np.arange(40.0)
    values = np.exp(-steps / 10)
    values[30:] = math.nan
    assert p.loss_curve(ax, steps, values, label="train") is ax
    p.loss_curve(ax, steps, np.full(40, 0.5), 0, label="validation")
    texts = legend_of(ax)
    assert texts[0].startswith("train (last 0.") and texts[2] == "validation (last 0.5)"
    assert texts[1] == "not finite (10 steps)"
    crosses = next(line for line in ax.lines if line.get_marker() == "x")
    assert crosses.get_xdata().tolist() == list(range(30, 40))
    assert len({line.get_color() for line in ax.lines if line.get_marker() != "x"}) == 2
    with pytest.raises(ValueError):
        p.loss_curve(ax, [1, 2], [1])


def test_a_reliability_diagram_shows_every_curve_and_its_error():
    rng = np.random.default_rng(0)
    stated = rng.random(500)
    curves = {"honest": calibration(stated, rng.random(500) < stated),
              "boastful": calibration(stated, rng.random(500) < stated / 2)}
    _, ax = plt.subplots()
    assert p.reliability(ax, curves) is ax
    assert [text.split(":")[0] for text in legend_of(ax)] == ["honest", "boastful"]
    assert f"{100 * curves['boastful'].ece:.1f} %" in legend_of(ax)[1]
    dots = ax.collections[1].get_offsets()
    assert np.allclose(dots[:, 1], curves["boastful"].observed[curves["boastful"].n > 0])


# --- room: nothing overlaps, nothing is cut -----------------------------------------------------


def pictures(axes):
    p.show_image(axes[0], PIXELS, LONG)
    p.show_mask(axes[1], PIXELS, MASKS, LABELS, LONG)
    p.draw_grid(axes[2], PIXELS, GRID, LABELS, LONG)


def descriptors(axes):
    for ax, name in zip(axes, NAMES):
        p.show_descriptor(ax, encode(name=name), LABELS, LONG)


def pairs(axes):
    p.draw_grid(axes[0], PIXELS, GRID, LABELS, LONG)
    p.show_descriptor(axes[1], encode(), LABELS, LONG, beside=axes[0])
    tokens = [f" {word}" for word in (LONG * 3).split()]
    p.show_tokens(axes[2], tokens, [k > 9 for k in range(len(tokens))], LONG)


def numbers(axes):
    names = ["validation of refCOCO", "test A", "averylongnamewithoutanyspace"]
    values = np.random.default_rng(1).uniform(-20, 900, (3, 3))
    p.bars(axes[0], names, {f"series {k}": row for k, row in enumerate(values)})
    p.bars(axes[1], ["test A", "test B"], {"cIoU of the grid alone": [61.2, 74.4]}, title=LONG)
    p.loss_curve(axes[2], range(50), np.exp(-np.arange(50) / 9), label="train")


@pytest.mark.parametrize("draw", [pictures, descriptors, pairs, numbers])
@pytest.mark.parametrize(("figsize", "dpi"), [((10, 3.6), 60), ((12, 4), 110)])
def test_no_text_overlaps_or_is_cut(draw, figsize, dpi):
    figure, axes = plt.subplots(1, 3, figsize=figsize, dpi=dpi)
    draw(axes)
    assert_texts_are_apart(figure)
    first = np.asarray(figure.canvas.buffer_rgba()).copy()
    figure.canvas.draw()
    assert np.array_equal(first, np.asarray(figure.canvas.buffer_rgba()))


def test_nothing_needs_pyplot_or_the_style_and_nothing_shows_or_saves(monkeypatch):
    monkeypatch.setattr(plt, "show", None)  # a call would fail
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", None)
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, "text.hinting": "none"}):
        figure = matplotlib.figure.Figure(figsize=(8, 4), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = (part.subplots() for part in figure.subfigures(1, 2))
        p.draw_grid(left, PIXELS, GRID, LABELS, LONG)
        p.show_descriptor(right, encode(), LABELS, LONG)
        assert_texts_are_apart(figure)


@pytest.mark.parametrize("size", [(9, 5.5), (12, 7)])
def test_timeline_names_every_work_once_and_inside(size):
    points = [{"work": f"Work {k}", "date": f"202{4 + k // 8}-{1 + k % 8:02}", "value": 70 + k * 5 % 9,
               "mask": ("text", "polygon", "embedding")[k % 3]} for k in range(18)]
    points += [{**points[0], "work": "same place", "mask": "polygon"}, {**points[0], "work": "and again"}]
    figure, ax = plt.subplots(figsize=size)
    assert p.timeline(ax, points, "over time") is ax
    assert_texts_are_apart(figure)
    assert sorted(t.get_text() for t in ax.texts) == sorted(point["work"] for point in points)
    for text in ax.texts:
        assert ax.bbox.padded(1).count_contains(text.get_window_extent().corners()) == 4, text
    assert sum(len(dots.get_offsets()) for dots in ax.collections) == len(points)
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["text", "polygon", "embedding"]
    first = ax.collections[0].get_offsets()[0]
    assert tuple(first) == pytest.approx((2024 + 0.5 / 12, 70))
