"""Figures: every function draws into the axes it is given and returns it; none saves or shows.

Colours follow the label's number in the request, as in a label grid: ``label_colour(0)`` is
"others" and grey, ``label_colour(k)`` belongs to ``labels[k-1]`` in every figure of the workbook.
The first eight can be told apart with any common colour blindness (Okabe & Ito; one dark blue
added); further ones are lighter and darker shades of them.

Matplotlib's constrained layout places the axes. Texts are wrapped, and monospaced text gets its
size, for the share of the figure that the axes have in their grid: create the figure in its final
size, and keep axes with a legend beside them out of figures with long texts. Labels are shown as
written: ``$`` starts no formula, and a character that the font lacks becomes a box.

Pictures are ``(H, W, 3)`` uint8 and masks bool ``(H, W)`` or ``(L, H, W)``, row 0 at the top.
"""

from __future__ import annotations

import html
import math
import re
import textwrap
import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import groupby
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from ..codec.encodings import OTHERS, SEG_CLOSE, SEG_OPEN, fold, vocabulary
from ..codec.grid import check_grid

OTHERS_COLOUR = "#777777"
INK = "#222222"
FAINT = "#767676"
ALARM = "#b00020"
PALETTE = (
    "#d55e00",  # vermilion
    "#0072b2",  # blue
    "#009e73",  # bluish green
    "#cc79a7",  # reddish purple
    "#e69f00",  # orange
    "#56b4e9",  # sky blue
    "#f0e442",  # yellow
    "#332288",  # indigo
)
STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": FAINT,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "figure.constrained_layout.use": True,
    "figure.dpi": 110,
    "figure.facecolor": "white",
    "font.size": 9,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "savefig.dpi": 150,
    "text.color": INK,
    "text.hinting": "none",  # letters keep their width at every size, so that columns line up
    "xtick.color": FAINT,
    "xtick.labelcolor": INK,
    "xtick.labelsize": 8.5,
    "ytick.color": FAINT,
    "ytick.labelcolor": INK,
    "ytick.labelsize": 8.5,
}

_MONO = "DejaVu Sans Mono"  # ships with matplotlib, so figures look the same everywhere
_SANS = "DejaVu Sans"
_LETTER = 0.58  # mean width of a letter of _SANS, of its size
_MONO_LETTER = 0.602  # width of every letter of _MONO, of its size
_SIZES = tuple(np.arange(9.0, 4.9, -0.25).tolist())  # points, of monospaced text
_LINE = 1.42  # distance of two monospaced lines, of their size


def use_style() -> None:
    """Set the workbook's matplotlib style for the session; notebooks call it while setting up."""
    matplotlib.rcParams.update(STYLE)


def label_colour(index: int) -> str:
    """Colour ``#rrggbb`` of a grid value: grey for 0 (others), the same for ``k`` everywhere.

    >>> label_colour(0), label_colour(1), label_colour(1 + len(PALETTE)) != label_colour(1)
    ('#777777', '#d55e00', True)
    """
    if index < 0:
        raise ValueError(f"A grid value is 0 or more, got {index}.")
    if index == 0:
        return OTHERS_COLOUR
    turn, place = divmod(index - 1, len(PALETTE))
    if turn == 0:
        return PALETTE[place]
    # Shades closer and closer to white, then to black, so that no two indices share a colour.
    strength = 0.55 * (1 - 0.6 ** ((turn + 1) // 2))
    return mix(PALETTE[place], "white" if turn % 2 else "black", strength)


def mix(colour: str, other: str, share: float) -> str:
    """``colour`` with ``share`` (0 to 1) of ``other`` in it, as ``#rrggbb``.

    >>> mix("#000000", "#ffffff", 0.5)
    '#808080'
    """
    return to_hex((1 - share) * np.array(to_rgb(colour)) + share * np.array(to_rgb(other)))


def small_multiples(
    n: int, columns: int = 4, width: float = 2.6, height: float | None = None
) -> tuple[Figure, np.ndarray]:
    """A figure with room for ``n`` small plots; places left over are hidden.

    Args:
        n: number of plots, at least 1.
        columns: plots in a row at most.
        width, height: of one plot, in inches; the height is the width where not given.

    Returns:
        The figure and its axes, ``(n,)``, in reading order.
    """
    from matplotlib import pyplot

    if n < 1 or columns < 1:
        raise ValueError(f"A figure needs at least one plot and one column, got {n} and {columns}.")
    columns = min(n, columns)
    rows = math.ceil(n / columns)
    size = (columns * width, rows * (height or width))
    figure, axes = pyplot.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    flat = axes.ravel()
    for ax in flat[n:]:
        ax.set_axis_off()
    return figure, flat[:n]


# --- titles and legends -------------------------------------------------------------------------


@lru_cache(maxsize=8)
def _glyphs(family: str) -> frozenset[int]:
    return frozenset(get_font(findfont(FontProperties(family=family))).get_charmap())


def printable(text: str, family: str = _SANS) -> str:
    """The text in characters that the font has; others, and control characters, as a box."""
    known = _glyphs(family)
    text = unicodedata.normalize("NFC", text)
    return "".join(c if ord(c) in known and c.isprintable() else "\u25a1" for c in text)


def _room(ax: Axes) -> tuple[float, float]:
    """Width and height in points that a constrained layout has for the axes.

    The titles and legends that are there by now are taken off the height: they make all rows of
    axes equally low.
    """
    figure, spec = ax.get_figure(root=False), ax.get_subplotspec()
    width, height = 72 / figure.dpi * figure.bbox.size
    if spec is None:
        place = ax.get_position(original=True)
        return width * place.width, height * place.height
    for text in (figure.get_suptitle(), figure.get_supxlabel()):
        height -= 14 * len(text.splitlines())
    grid, taken = spec.get_gridspec(), {}
    for other in figure.axes:
        if (place := other.get_subplotspec()) is not None:
            taken[place.rowspan.start] = max(taken.get(place.rowspan.start, 0), _height_of_texts(other))
    columns, rows = np.array(grid.get_width_ratios()), np.array(grid.get_height_ratios())
    across = columns[spec.colspan.start:spec.colspan.stop].sum() / columns.sum()
    down = rows[spec.rowspan.start:spec.rowspan.stop].sum() / rows.sum()
    return width * across - 14, (height - sum(taken.values())) * down


def _height_of_texts(ax: Axes) -> float:
    """Points over and under the axes for their title and legend."""
    titles = max(len(ax.get_title(side).splitlines()) for side in ("left", "center", "right"))
    legend = ax.get_legend()
    lines = sum(len(text.get_text().splitlines()) for text in legend.get_texts()) if legend else 0
    return 14 * titles + 12 * lines + 18


def _picture_height(ax: Axes) -> float:
    """Points that a picture in the axes will be high."""
    width, height = _room(ax)
    return min(height, width * np.ptp(ax.get_ylim()) / np.ptp(ax.get_xlim()))


def _wrap(text: str, width: float, size: float, max_lines: int = 3) -> str:
    """Break a text into lines of about ``width`` points; what is too much ends in ``…``."""
    columns = max(int(width / (_LETTER * size)), 6)
    lines = [line for part in text.split("\n") for line in textwrap.wrap(part, columns) or [""]]
    if len(lines) > max_lines:
        lines[max_lines - 1:] = [lines[max_lines - 1][: columns - 1].rstrip() + "…"]
    return "\n".join(lines)


def set_title(ax: Axes, title: str | None, side: str = "center") -> Axes:
    """A title over the axes, wrapped to their width and at most three lines long.

    ``side`` is ``"center"``, or ``"left"`` as over text. None leaves the title as it is.
    """
    if title is not None:
        title = "\n".join(printable(line) for line in title.split("\n"))
        artist = ax.set_title("", loc=side, parse_math=False)
        artist.set_text(_wrap(title, 0.93 * _room(ax)[0], artist.get_fontsize()))
    return ax


def _legend_below(ax: Axes, names: Mapping[str, str]) -> None:
    """A legend, name -> colour, under axes without tick labels there, one name a line."""
    if not names:
        return
    size = STYLE["legend.fontsize"]
    width = _room(ax)[0] - 2.6 * size
    legend = ax.legend(
        handles=[Patch(facecolor=colour, label=_wrap(printable(name), width, size, 2))
                 for name, colour in names.items()],
        loc="upper center", bbox_to_anchor=(0.5, 0.0), frameon=False, handlelength=1.0,
        handleheight=0.9, handletextpad=0.5, borderaxespad=0.4, labelspacing=0.35)
    for text in legend.get_texts():
        text.set_parse_math(False)


def legend_beside(ax: Axes) -> Axes:
    """The legend of the axes' own artists to the right of them, where it covers nothing."""
    handles, names = ax.get_legend_handles_labels()
    legend = ax.legend(
        handles, ["\n".join(textwrap.wrap(name, 24)) for name in names], loc="upper left",
        bbox_to_anchor=(1.0, 1.0), frameon=False, handlelength=1.2, borderaxespad=0.3)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return ax


# --- pictures, masks, grids ---------------------------------------------------------------------


def show_image(ax: Axes, pixels: np.ndarray, title: str | None = None) -> Axes:
    """The picture alone, without ticks.

    Args:
        ax: where to draw.
        pixels: uint8 ``(H, W, 3)``, or grey ``(H, W)``.
        title: over it, wrapped.

    Raises:
        ValueError: an array of another shape.
    """
    pixels = np.asarray(pixels)
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (3, 4)):
        raise ValueError(f"A picture is (height, width, 3), but this array is {pixels.shape}.")
    ax.imshow(pixels, cmap="gray" if pixels.ndim == 2 else None)
    ax.set_xlim(-0.5, pixels.shape[1] - 0.5)
    ax.set_ylim(pixels.shape[0] - 0.5, -0.5)
    return set_title(_bare(ax), title)


def _bare(ax: Axes) -> Axes:
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    ax.spines[:].set_visible(False)
    return ax


def show_mask(
    ax: Axes, pixels: np.ndarray, masks: np.ndarray, labels: Sequence[str] = (),
    title: str | None = None, *, alpha: float = 0.45,
) -> Axes:
    """The picture with masks laid over it: tinted, outlined, with a legend of the labels.

    Where masks overlap the smaller one is on top. A label whose mask is empty is in the legend as
    "no target".

    Args:
        ax, pixels, title: as in :func:`show_image`.
        masks: bool ``(L, H, W)``, or one mask ``(H, W)``.
        labels: ``L`` texts; none: no legend.
        alpha: strength of the tint, 0 to 1.

    Raises:
        ValueError: masks of another size than the picture, or another number than labels.
    """
    show_image(ax, pixels, title)
    masks, (height, width) = np.asarray(masks), np.shape(pixels)[:2]
    masks = masks[None] if masks.ndim == 2 else masks
    if masks.ndim != 3 or masks.dtype != np.bool_:
        raise ValueError(
            f"Masks are boolean (labels, height, width), but these are {masks.dtype} {masks.shape}.")
    if masks.shape[1:] != (height, width):
        raise ValueError(f"The masks are {masks.shape[1]}x{masks.shape[2]} (height x width), "
                         f"but the picture is {height}x{width}.")
    if len(labels) not in (0, len(masks)):
        raise ValueError(f"There are {len(masks)} masks but {len(labels)} labels.")
    overlay = np.zeros((*masks.shape[1:], 4))
    order = sorted(range(len(masks)), key=lambda k: -np.count_nonzero(masks[k]))
    for k in order:
        overlay[masks[k]] = [*to_rgb(label_colour(k + 1)), alpha]
    ax.imshow(overlay, interpolation="nearest")
    for k in order:
        outline(ax, masks[k], label_colour(k + 1))
    _legend_below(ax, {text + ("" if mask.any() else " (no target)"): label_colour(k)
                       for k, (text, mask) in enumerate(zip(labels, masks), 1)})
    return ax


def outline(
    ax: Axes, mask: np.ndarray, colour: str, *, width: float = 1.4, dashed: bool = False
) -> Axes:
    """The outline of a bool mask ``(H, W)``, with a thin light edge that shows on dark pictures."""
    mask = np.asarray(mask, bool)
    if not mask.any():
        return ax
    # A border of background closes the outlines of objects that the picture cuts off.
    padded = np.pad(mask, 1).astype(np.uint8)
    down, across = padded.shape
    contour = ax.contour(np.arange(across) - 1, np.arange(down) - 1, padded, levels=[0.5],
                         colors=[colour], linewidths=width, linestyles="--" if dashed else "-")
    bright = np.dot(to_rgb(colour), (0.299, 0.587, 0.114)) > 0.8
    contour.set_path_effects([withStroke(linewidth=width + 1, foreground=INK if bright else "w")])
    ax.set_xlim(-0.5, mask.shape[1] - 0.5)
    ax.set_ylim(mask.shape[0] - 0.5, -0.5)
    return ax


def draw_grid(
    ax: Axes, pixels: np.ndarray, grid: np.ndarray, labels: Sequence[str],
    title: str | None = None, *, row_numbers: bool = True, legend: bool = True,
) -> Axes:
    """The label grid over the picture: cell borders, and each cell tinted with its label.

    Args:
        ax, pixels, title: as in :func:`show_image`.
        grid: int ``(rows, cols)``; 0 is others, ``k`` is ``labels[k-1]``. It is stretched over the
            picture, as in the method, whatever the picture's proportions.
        labels: the label texts.
        row_numbers: number the rows at the left from 1, as :func:`show_descriptor` does.
        legend: a legend of the labels, and of others where the grid has it.

    Raises:
        ValueError: an unusable grid, or a value in it without a label.
    """
    show_image(ax, pixels, title)
    grid = check_grid(grid, len(labels))
    colours = [label_colour(k) for k in range(len(labels) + 1)]
    tints = np.array([[*to_rgb(colour), 0.5 if k else 0.3] for k, colour in enumerate(colours)])
    xs, ys = _draw_cells(ax, tints[grid], "white", 0.65)
    present = [bool((grid == k).any()) for k in range(len(colours))]
    for k, colour in enumerate(colours):
        if k and present[k]:
            _draw_borders(ax, grid == k, xs, ys, colour)
    if legend:
        names = {text + ("" if present[k] else " (no cell)"): colours[k]
                 for k, text in enumerate(labels, 1)}
        _legend_below(ax, names | ({OTHERS: colours[0]} if present[0] else {}))
    if row_numbers:
        _number_rows(ax, (ys[:-1] + ys[1:]) / 2)
    return ax


def draw_confidence(
    ax: Axes, pixels: np.ndarray, probs: np.ndarray, title: str | None = None,
    *, truth: np.ndarray | None = None,
) -> Axes:
    """How likely each cell shows a label, over the picture: the likelier, the stronger the tint.

    The line runs where the probability crosses one half.

    Args:
        ax, pixels, title: as in :func:`show_image`.
        probs: float ``(rows, cols)`` in [0, 1], one label's map; it is stretched over the picture.
        truth: bool ``(H, W)``, whose outline is drawn dashed.

    Raises:
        ValueError: an array that is no map.
    """
    probs = np.asarray(probs, float)
    if probs.ndim != 2 or not (probs.min() >= 0 and probs.max() <= 1):
        raise ValueError(f"A map is (rows, cols) with values in [0, 1], but this array is "
                         f"{probs.shape} and reaches to {probs.max():g}.")
    show_image(ax, pixels, title)
    tint = np.empty((*probs.shape, 4))
    tint[..., :3], tint[..., 3] = to_rgb(PALETTE[0]), 0.9 * probs
    _draw_cells(ax, np.full((1, 1, 4), (1.0, 1.0, 1.0, 0.55)))  # a veil
    xs, ys = _draw_cells(ax, tint, FAINT, 0.35)
    _draw_borders(ax, probs > 0.5, xs, ys, PALETTE[0])
    return ax if truth is None else outline(ax, truth, INK, width=1.1, dashed=True)


def _draw_cells(
    ax: Axes, colours: np.ndarray, net: str = "white", alpha: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Stretch RGBA cells ``(rows, cols, 4)`` over a shown picture; returns their borders, x and y."""
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    ax.imshow(colours, extent=(left, right, bottom, top), interpolation="nearest",
              aspect=ax.get_aspect())
    rows, cols = colours.shape[:2]
    xs, ys = np.linspace(left, right, cols + 1), np.linspace(top, bottom, rows + 1)
    ax.hlines(ys[1:-1], left, right, colors=net, linewidth=0.5, alpha=alpha)
    ax.vlines(xs[1:-1], top, bottom, colors=net, linewidth=0.5, alpha=alpha)
    return xs, ys


def _draw_borders(ax: Axes, cells: np.ndarray, xs: np.ndarray, ys: np.ndarray, colour: str) -> None:
    """Draw the edges between cells that are True and not (or the picture's edge)."""
    padded = np.pad(cells, 1)
    look: dict[str, Any] = {"colors": colour, "linewidth": 1.6, "capstyle": "projecting"}
    rows, cols = np.nonzero(padded[1:, 1:-1] != padded[:-1, 1:-1])
    ax.hlines(ys[rows], xs[cols], xs[cols + 1], **look)
    rows, cols = np.nonzero(padded[1:-1, 1:] != padded[1:-1, :-1])
    ax.vlines(xs[cols], ys[rows], ys[rows + 1], **look)


def _number_rows(ax: Axes, centres: np.ndarray) -> None:
    """Row numbers as tick labels, every second, fifth … one where all of them have no room."""
    pitch = _picture_height(ax) / len(centres)
    step = next((s for s in (1, 2, 4, 5, 8, 10, 16, 32) if s * pitch >= 7.5), 64)
    ax.set_yticks(centres[::step], [str(r + 1) for r in range(0, len(centres), step)])
    ax.tick_params(axis="y", length=0, pad=2, labelsize=7, labelcolor=FAINT, labelleft=True)


# --- monospaced text: descriptors and tokens ----------------------------------------------------


class _Word(NamedTuple):
    """Characters of one look, never broken over two rows; ``fill`` is the colour behind them."""

    text: str
    ink: str = FAINT
    fill: str | None = None


_Row = list[_Word]
_BAR = _Word("|", "#b8b8b8")


def _length(row: _Row) -> int:
    return sum(len(word.text) for word in row)


def _wrapped(lines: Sequence[_Row], columns: int) -> list[_Row]:
    """Rows of so many letters; those that continue a line are indented, none begins with a bar."""
    rows = []
    for line in lines:
        rows.append([line[0]])
        for word in line[1:]:
            if word != _BAR and len(rows[-1]) > 1 and _length(rows[-1]) + len(word.text) >= columns:
                rows.append([_Word(" " * (len(line[0].text) + 2))])
            rows[-1].append(word)
    return rows


def _write(ax: Axes, lines: Sequence[_Row]) -> None:
    """Write into empty axes, in the largest size in which all lines fit; if none does, the first."""
    width, height = _room(ax)
    for size in _SIZES:
        rows = _wrapped(lines, int(width / (_MONO_LETTER * size)))
        room = max(int(height / (_LINE * size)), 2)
        if len(rows) <= room:
            break
    else:
        rows[room - 1:] = [[_Word(f"… {len(rows) - room + 1} lines not shown")]]
    for r, row in enumerate(rows):
        _write_row(ax, row, size, 1.0, -(r + 0.5) * _LINE * size, ax)


def _size_beside(ax: Axes, lines: Sequence[_Row], picture: Axes) -> float:
    """The largest size in which the lines can stand at the height of a grid's rows, in points."""
    pitch = _picture_height(picture) / len(lines)
    longest = max(_length(line) for line in lines)
    return min(_SIZES[0], pitch / 1.2, 0.97 * _room(ax)[0] / (_MONO_LETTER * longest))


def _write_row(
    ax: Axes, row: _Row, size: float, height: float, offset: float, level: Axes
) -> None:
    """Write a row ``offset`` points over the ``height`` (0 to 1) of the axes ``level``."""
    column = 0
    for text, ink, fill in row:
        if text.strip():
            box = {"boxstyle": "square,pad=0.08", "facecolor": fill, "edgecolor": "white",
                   "linewidth": 0.6}
            artist = ax.annotate(
                printable(text, _MONO), (0, height), (column * _MONO_LETTER * size, offset - 0.36 * size),
                xycoords=(ax.transAxes, level.transAxes), textcoords="offset points", fontsize=size,
                family=_MONO, color=ink, annotation_clip=False, bbox=box if fill else None,
                parse_math=False)
            artist.set_in_layout(False)  # it was made to fit; no reason to move the axes
        column += len(text)


def short_labels(labels: Sequence[str], width: int = 20) -> list[str]:
    """Labels cut to ``width`` characters, still different from each other.

    An article at the beginning goes, then the end; where two labels would look the same, their
    beginnings go instead, and at last they are numbered.

    >>> short_labels(["the woman in the orange suit", "cat"], 16)
    ['woman in the or…', 'cat']
    >>> short_labels(["person on the far left side", "person on the far right side"], 16)
    ['…e far left side', '… far right side']
    """
    bare = [re.sub("^(an?|the) ", "", text, flags=re.I) if len(text) > width else text for text in labels]
    short = [text if len(text) <= width else text[: width - 1].rstrip() + "…" for text in bare]
    twins = [k for k, text in enumerate(short) if short.count(text) > 1]
    for k in twins:
        short[k] = labels[k] if len(labels[k]) <= width else "…" + labels[k][1 - width:]
    for i, k in enumerate([k for k in twins if short.count(short[k]) > 1], 1):
        short[k] = f"{labels[k][: width - 1 - len(str(i))]}…{i}"
    return short


def show_descriptor(
    ax: Axes, text: str | Sequence[str], labels: Sequence[str], title: str | None = None,
    *, beside: Axes | None = None, label_width: int = 20,
) -> Axes:
    """Descriptor text in monospace, each run in the colour of its label, row-wise text numbered.

    Any of the three encodings, either spelling, bare or as a whole response with its sentence and
    ``<seg>``; malformed text too: a label that was not asked for stands out in red. The letters
    are as large as the room allows; what would be too small to read is left out, and a note says
    how many lines those are. :func:`descriptor_html` shows the whole text on a notebook's page.

    Args:
        ax: where to draw.
        text: the text, or its pieces (``Encoding.pieces``).
        labels: the labels that were asked for; they give the colours.
        title: over it, wrapped.
        beside: axes of :func:`draw_grid`; the rows stand at the height of the grid's rows, where
            they have room for that.
        label_width: longer labels are cut (for the eye only), see :func:`short_labels`; with
            ``beside`` more, if the rows need it.

    Raises:
        DescriptorError: unusable labels.
    """
    set_title(_bare(ax), title, "left")
    rows, size = _descriptor_rows(text, labels, label_width), 0.0
    if beside is not None and len(rows) > 1 and SEG_OPEN not in text:
        for width in (label_width, 16, 12, 9):
            rows = _descriptor_rows(text, labels, min(width, label_width))
            size = _size_beside(ax, rows, beside)
            if size >= 6.5:
                break
    if size < _SIZES[-1]:
        _write(ax, rows)
        return ax
    if _picture_height(beside) < _room(ax)[1]:  # then the title, too, stands where the picture's does
        ax.set_box_aspect(_picture_height(beside) / _room(ax)[0])
    for r, row in enumerate(rows):
        _write_row(ax, row, size, 1 - (r + 0.5) / len(rows), 0.0, beside)
    return ax


def descriptor_html(text: str | Sequence[str], labels: Sequence[str], title: str = "") -> Any:
    """Descriptor text for a notebook's page, in the colours of its labels, nothing cut.

    Args:
        text, labels: as in :func:`show_descriptor`.
        title: over it.

    Returns:
        An ``IPython.display.HTML``; everything in it is escaped.
    """
    from IPython.display import HTML

    rows = ["".join(f'<span style="color:{ink};background:{fill or "none"}">{html.escape(words)}</span>'
                    for words, ink, fill in row)
            for row in _descriptor_rows(text, labels, None)]
    heading = f"<b>{html.escape(title)}</b>" if title else ""
    return HTML(f'{heading}<pre style="line-height:1.35">{"<br>".join(rows)}</pre>')


def _descriptor_rows(
    text: str | Sequence[str], labels: Sequence[str], width: int | None
) -> list[_Row]:
    """The lines of a text as coloured runs, each with its number first; labels cut to ``width``.

    Sentences and tags stand in rows of their own, which have no number.
    """
    text = text if isinstance(text, str) else "".join(text)
    words = vocabulary(labels)
    names = [OTHERS, *(short_labels(words.written[1:], width) if width else words.written[1:])]
    inside = SEG_OPEN not in text
    rows: list[tuple[int, _Row]] = []  # line numbers, 0 for none
    for part in re.split(f"\n?({SEG_OPEN}|{SEG_CLOSE})\n?", text.removesuffix("\n")):
        is_tag = part in (SEG_OPEN, SEG_CLOSE)
        if inside and not is_tag and part.strip():
            rows += [(r, _runs(line, words, names, width)) for r, line in enumerate(part.split("\n"), 1)]
        elif inside or part.strip():
            plain = part if is_tag or not inside else "(no descriptors)"
            rows += [(0, [_Word(piece) for piece in re.findall(r"\S{1,24} ?| ", line)])
                     for line in plain.split("\n")]
        inside = part == SEG_OPEN if is_tag else inside
    last = max(r for r, _ in rows)
    gutter = f"{{:>{len(str(last))}}} " if last > 1 else ""
    return [[_Word(gutter.format(r or "")), *row] for r, row in rows]


def _runs(line: str, words: Any, names: Sequence[str], width: int | None) -> _Row:
    """A line of descriptors as words, with bars between them."""
    row = []
    for run in line.split("|"):
        name, star, count = run.strip().rpartition("*")
        if not (star and count.strip().isdigit()):
            name, star, count = run.strip(), "", ""
        name = name.rstrip()
        k = words.index.get(name, words.folded.get(fold(name)))
        counted = f" *{count.strip()[:9]}" if star else ""
        if run[:1].isspace():
            row.append(_Word(" "))
        if k is None:
            shown = short_labels([name], width)[0] if width else name
            row.append(_Word((shown or "?") + counted, "white", ALARM))
        elif k == 0:
            row.append(_Word(OTHERS + counted))
        else:
            row.append(_Word(names[k] + counted, INK, mix(label_colour(k), "white", 0.62)))
        row.append(_BAR)
    return row[:-1]


def show_tokens(
    ax: Axes, tokens: Sequence[str], trained: Sequence[bool], title: str | None = None
) -> Axes:
    """The tokens of a sample in reading order; those that the loss sees are coloured.

    Line breaks inside tokens are shown as ``↵`` and followed, a token that is a blank as ``␣``; a
    token that repeats four times or more (image placeholders) is written once with its count.

    Args:
        ax: where to draw.
        tokens: the text of each token.
        trained: of the same length; True where the label is not masked (the answer).
        title: over it, wrapped.

    Raises:
        ValueError: lengths that differ.
    """
    kinds = ["trained" if flag else "not trained" for flag in trained]
    looks = {"trained": (INK, mix(PALETTE[1], "white", 0.62)), "not trained": ("#5a5a5a", "#e3e3e3")}
    return _show_kinds(ax, tokens, kinds, looks, " tokens", title)


def show_trace(ax: Axes, tokens: Sequence[str], trace: Any, title: str | None = None) -> Axes:
    """The tokens of an answer in reading order, coloured by what each one cost.

    ``trace`` is the answer's `t4s_helpers.decoding.constrained.Trace`; the rest is as in
    :func:`show_tokens`.
    """
    kinds = ["forced" if source == "forced" else "guessed, confirmed" if drafted else "a pass each"
             for source, drafted in zip(trace.sources, trace.drafted)]
    looks = {"a pass each": (INK, mix(PALETTE[0], "white", 0.35)),
             "guessed, confirmed": (INK, mix(PALETTE[1], "white", 0.62)),
             "forced": ("#5a5a5a", "#e3e3e3")}
    return _show_kinds(ax, tokens, kinds, looks, "", title)


def _show_kinds(
    ax: Axes, tokens: Sequence[str], kinds: Sequence[str], looks: Mapping[str, tuple[str, str]],
    unit: str, title: str | None,
) -> Axes:
    """Tokens in the look (ink, fill) of their kind, and a legend that counts them."""
    if len(tokens) != len(kinds):
        raise ValueError(f"There are {len(tokens)} tokens, but {len(kinds)} marks for them.")
    set_title(_bare(ax), title, "left")
    _legend_below(ax, {f"{kind}: {kinds.count(kind)}{unit}": fill for kind, (_, fill) in looks.items()})
    rows: list[_Row] = [[_Word("")]]
    for (token, kind), same in groupby(zip(tokens, kinds)):
        n = sum(1 for _ in same)
        for text in [f"{_visible(token)} ×{n}"] if n >= 4 else [_visible(token)] * n:
            rows[-1].append(_Word(text, *looks[kind]))
            if "\n" in token:
                rows.append([_Word("")])
    _write(ax, [row for row in rows if len(row) > 1])
    return ax


def _visible(token: str) -> str:
    token = token.replace("\r", "").replace("\n", "↵").replace("\t", "⇥")
    return token if token.strip(" ") else "␣" * len(token) or "∅"


# --- numbers ------------------------------------------------------------------------------------


def bars(
    ax: Axes, groups: Sequence[str], series: Mapping[str, Sequence[float]],
    errors: Mapping[str, Sequence[tuple[float, float]]] | None = None, *, ylabel: str = "",
    title: str | None = None, fmt: str = "{:.1f}", colours: Mapping[str, str] | None = None,
) -> Axes:
    """Grouped bars with their values on top.

    Args:
        ax: where to draw.
        groups: names of the groups, along the axis.
        series: name -> one value a group; the bars of one series share a colour. NaN: no bar, and
            "n/a" in its place.
        errors: name -> one ``(low, high)`` a group, as absolute bounds (the ends of an interval,
            not lengths).
        ylabel, title: texts.
        fmt: how values are written.
        colours: name -> colour, in place of the palette's order.

    Raises:
        ValueError: lengths that differ, or no bars.
    """
    errors = errors or {}
    _check_bars(groups, series, errors)
    width, height = _room(ax)
    unit = (width - (150 if len(series) > 1 else 50)) / len(groups)  # points of a group
    pitch = 0.8 / len(series)
    written = {name: ["n/a" if math.isnan(value) else fmt.format(value) for value in values]
               for name, values in series.items()}
    longest = max(len(text) for texts in written.values() for text in texts)
    size = next((size for size in (8, 7, 6) if _LETTER * size * longest <= unit * pitch), 0)
    look = {"fontsize": size} if size else {"fontsize": 7, "rotation": 90}
    for s, (name, values) in enumerate(series.items()):
        heights = np.nan_to_num(np.array(values, float))
        bounds = np.array(errors[name], float) - heights[:, None] if name in errors else None
        drawn = ax.bar(
            np.arange(len(groups)) + (s - (len(series) - 1) / 2) * pitch, heights, 0.92 * pitch,
            color=(colours or {}).get(name) or label_colour(s + 2 if len(series) > 1 else 2),
            label=printable(name), error_kw={"ecolor": INK, "elinewidth": 0.9, "capsize": 2},
            yerr=None if bounds is None else np.maximum(bounds * (-1, 1), 0).T)
        for text in ax.bar_label(drawn, written[name], padding=2, color=INK, **look):
            text.set_parse_math(False)
    text_height = size + 6 if size else _LETTER * 7 * longest + 4
    share = min(text_height / max(height - 50, 60), 0.3)
    ax.margins(y=share / (1 - 2 * share))
    ax.axhline(0, color=FAINT, linewidth=0.8)
    ax.set_xlim(-0.55, len(groups) - 0.45)
    _name_groups(ax, [printable(name) for name in groups], unit)
    ax.grid(False, axis="x")
    ax.set_ylabel(ylabel)
    if len(series) > 1:
        legend_beside(ax)
    return set_title(ax, title)


def _check_bars(groups: Sequence[str], series: Mapping, errors: Mapping) -> None:
    if not len(groups) or not series:
        raise ValueError("There are no bars to draw: pass at least one group and one series.")
    for name, values in [*series.items(), *errors.items()]:
        if name not in series:
            raise ValueError(f"There are errors for '{name}', but no series of that name.")
        if len(values) != len(groups):
            raise ValueError(f"Series '{name}' has {len(values)} entries for {len(groups)} groups.")


def _name_groups(ax: Axes, names: Sequence[str], room: float) -> None:
    """Names under groups ``room`` points wide: wrapped, or turned where a word is longer."""
    columns = max(int(0.97 * room / (_LETTER * STYLE["xtick.labelsize"])), 1)
    turned = any(len(word) > columns for name in names for word in name.split())
    look = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if turned else {}
    shown = names if turned else ["\n".join(textwrap.wrap(name, columns)) for name in names]
    ax.set_xticks(range(len(names)), shown, parse_math=False, **look)
    ax.tick_params(axis="x", length=0)


def reliability(ax: Axes, curves: Mapping[str, Any], title: str | None = None) -> Axes:
    """Reliability diagram: how often it came true, by the probability that was stated.

    Args:
        ax: where to draw.
        curves: name -> `t4s_helpers.evaluation.calibration.Calibration`. The area of a dot grows
            with the number of cells behind it; the legend gives each curve's expected calibration
            error.
        title: over it, wrapped.
    """
    ax.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle="--", zorder=1)
    for k, (name, found) in enumerate(curves.items(), 1):
        used = np.flatnonzero(found.n)
        stated, observed = found.stated[used], found.observed[used]
        ax.plot(stated, observed, color=label_colour(k), linewidth=1.4, zorder=2,
                label=f"{name}: error {100 * found.ece:.1f} %")
        ax.scatter(stated, observed, s=12 + 150 * np.sqrt(found.n[used] / found.n.sum()), zorder=3,
                   color=label_colour(k), alpha=0.75, edgecolors="white", linewidths=0.8)
    ax.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xlabel="probability stated", aspect="equal",
           ylabel="share that came true")
    ax.grid(True, axis="both")
    if curves:
        ax.legend(loc="upper left")
    return set_title(ax, title)


def loss_curve(
    ax: Axes, steps: Sequence[float], values: Sequence[float], smooth: float = 0.9, *,
    label: str = "loss", xlabel: str = "step", title: str | None = None,
) -> Axes:
    """A loss over the steps: each value faint, their moving average bold, the last in the legend.

    Call it again for a second curve in the same axes. Steps whose loss was not finite are marked
    at the bottom, so that a diverged run does not look like a short one.

    Args:
        ax: where to draw.
        steps, values: ``(N,)`` numbers.
        smooth: share in [0, 1) that the moving average keeps of the past at each step; it has no
            pull towards the first value, and skips what is not finite. 0 draws the values alone.
        label: of this curve.
        xlabel, title: texts.

    Raises:
        ValueError: lengths that differ, no value, or a share outside [0, 1).
    """
    import pandas as pd

    steps, values = np.asarray(steps, float), np.asarray(values, float)
    if steps.shape != values.shape or steps.ndim != 1 or not len(steps):
        raise ValueError(
            f"A curve needs a value for each step, and one at least: {values.shape}, {steps.shape}.")
    if not 0 <= smooth < 1:
        raise ValueError(f"The smoothing must lie in [0, 1), got {smooth}.")
    colour = label_colour(2 + len(ax.get_legend_handles_labels()[1]))
    broken = ~np.isfinite(values)
    finite = pd.Series(np.where(broken, np.nan, values))
    line = finite.ewm(alpha=1 - smooth, ignore_na=True).mean().to_numpy()
    if smooth:
        ax.plot(steps, finite, color=colour, alpha=0.3, linewidth=0.8)
    dot = "o" if np.count_nonzero(~broken) == 1 else None  # one point makes no line
    ax.plot(steps, np.where(broken, np.nan, line), color=colour, linewidth=1.8, marker=dot,
            label=f"{printable(label)} (last {line[-1]:.3g})")
    if broken.any():
        ax.plot(steps[broken], np.zeros(broken.sum()), "x", color=ALARM, clip_on=False,
                transform=ax.get_xaxis_transform(), label=f"not finite ({broken.sum()} steps)")
    ax.set(xlabel=xlabel, ylabel="loss")
    ax.locator_params(axis="x", nbins=5)  # counts of samples are long words
    ax.margins(y=0.12)
    for text in ax.legend(loc="best", frameon=False).get_texts():
        text.set_parse_math(False)
    return set_title(ax, title)
