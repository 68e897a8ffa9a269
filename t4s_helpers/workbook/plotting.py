"""Figures: every function draws into the axes it is given and returns it; none saves or shows.

Colours follow the label's number in the request, as in a label grid: ``label_colour(0)`` is
"others" and grey, ``label_colour(k)`` belongs to ``labels[k-1]`` in every figure of the workbook.
The first eight can be told apart with any common colour blindness (Okabe & Ito; one dark blue
added); further ones are lighter and darker shades of them.

Matplotlib's constrained layout places the axes. Texts are wrapped for the share of the figure that
the axes have in their grid: create the figure in its final size, and keep axes with a legend beside
them out of figures with long texts. Labels are shown as written: ``$`` starts no formula, and a
character that the font lacks becomes a box.

In every function ``ax`` is where to draw, ``title`` is a text over it, wrapped (``None``: none),
``pixels`` a uint8 picture ``(H, W, 3)`` or grey ``(H, W)``, and masks are bool ``(H, W)`` or
``(L, H, W)``, row 0 at the top. What does not fit together raises a ``ValueError``.
"""

from __future__ import annotations

import html
import math
import re
import textwrap
import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import groupby, product
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.transforms import Bbox

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
_LINE = 1.2  # smallest distance of two monospaced lines, of their size
_LARGEST = 8  # points, of monospaced text


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
    """A figure with room for ``n`` small plots, ``width`` x ``height`` inches each (or square).

    Returns the figure and its axes, ``(n,)``, in reading order; places left over are hidden.
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


def _share(ax: Axes) -> np.ndarray:
    """Width and height in points of the axes' place in the grid of their figure, less a gap beside."""
    figure, spec = ax.get_figure(root=False), ax.get_subplotspec()
    size = 72 / figure.dpi * figure.bbox.size
    if spec is None:
        return size * ax.get_position(original=True).size
    grid = spec.get_gridspec()
    columns, rows = grid.get_width_ratios(), grid.get_height_ratios()
    return size * (sum(columns[k] for k in spec.colspan) / sum(columns),
                   sum(rows[k] for k in spec.rowspan) / sum(rows)) - (14, 0)


def _wrap(text: str, columns: float, max_lines: int = 3) -> str:
    """Printable lines of so many letters; what is too much ends in ``…``."""
    return "\n".join(
        textwrap.fill(printable(line), max(int(columns), 6), max_lines=max_lines, placeholder="…")
        for line in text.split("\n"))


def set_title(ax: Axes, title: str | None, side: str = "center") -> Axes:
    """A title over the axes, wrapped to their width, each of its lines into three at most.

    ``side`` is ``"center"``, or ``"left"`` as over text. None leaves the title as it is.
    """
    if title is not None:
        artist = ax.set_title("", loc=side, parse_math=False)
        artist.set_text(_wrap(title, 0.93 * _share(ax)[0] / (_LETTER * artist.get_fontsize())))
    return ax


def _legend(
    ax: Axes, handles: Sequence[Any], names: Sequence[str], columns: float, **place: Any
) -> Axes:
    """A legend with names wrapped to so many letters."""
    legend = ax.legend(handles, [_wrap(name, columns, 2) for name in names], frameon=False, **place)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return ax


def _legend_below(ax: Axes, names: Mapping[str, str]) -> None:
    """A legend, name -> colour, under axes without tick labels there, one name a line."""
    if names:
        _legend(ax, [Patch(facecolor=colour) for colour in names.values()], list(names),
                _share(ax)[0] / (_LETTER * STYLE["legend.fontsize"]) - 5, loc="upper center",
                bbox_to_anchor=(0.5, 0.0), handlelength=1.0, handleheight=0.9, handletextpad=0.5,
                borderaxespad=0.4, labelspacing=0.35)


def legend_beside(ax: Axes) -> Axes:
    """The legend of the axes' own artists to the right of them, where it covers nothing."""
    return _legend(ax, *ax.get_legend_handles_labels(), 24, loc="upper left", bbox_to_anchor=(1.0, 1.0),
                   handlelength=1.2, borderaxespad=0.3)


# --- pictures, masks, grids ---------------------------------------------------------------------


def show_image(ax: Axes, pixels: np.ndarray, title: str | None = None) -> Axes:
    """The picture alone, without ticks."""
    pixels = np.asarray(pixels)
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (3, 4)):
        raise ValueError(f"A picture is (height, width, 3), but this array is {pixels.shape}.")
    ax.imshow(pixels, cmap="gray" if pixels.ndim == 2 else None)
    ax.autoscale(False)  # what is drawn over the picture leaves its limits
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
    """The picture with masks laid over it: tinted, outlined, with a legend of the labels, if any.

    ``alpha`` (0 to 1) is the strength of the tint. Where masks overlap the smaller one is on top. A
    label whose mask is empty is in the legend as "no target".
    """
    show_image(ax, pixels, title)
    masks, (height, width) = np.asarray(masks), np.shape(pixels)[:2]
    masks = masks[None] if masks.ndim == 2 else masks
    if masks.dtype != np.bool_ or masks.shape != (len(masks), height, width):
        raise ValueError(f"Masks over this picture are bool (labels, {height}, {width}), "
                         f"but these are {masks.dtype} {masks.shape}.")
    if len(labels) not in (0, len(masks)):
        raise ValueError(f"There are {len(masks)} masks but {len(labels)} labels.")
    overlay = np.zeros((height, width, 4))
    for k in np.argsort(-masks.sum(axis=(1, 2)), stable=True):
        overlay[masks[k]] = [*to_rgb(label_colour(k + 1)), alpha]
        outline(ax, masks[k], label_colour(k + 1))
    ax.imshow(overlay, interpolation="nearest")
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
    return ax


def draw_grid(
    ax: Axes, pixels: np.ndarray, grid: np.ndarray, labels: Sequence[str],
    title: str | None = None, *, row_numbers: bool = True, legend: bool = True,
) -> Axes:
    """The label grid over the picture: cell borders, and each cell tinted with its label.

    Args:
        ax, pixels, title: see above.
        grid: int ``(rows, cols)``; 0 is others, ``k`` is ``labels[k-1]``. It is stretched over the
            picture, as in the method, whatever the picture's proportions.
        labels: the label texts.
        row_numbers: number the rows at the left from 1, as :func:`show_descriptor` does.
        legend: a legend of the labels, and of others where the grid has it.
    """
    show_image(ax, pixels, title)
    grid = check_grid(grid, len(labels))
    colours = [label_colour(k) for k in range(len(labels) + 1)]
    tints = np.array([[*to_rgb(colour), 0.5 if k else 0.3] for k, colour in enumerate(colours)])
    xs, ys = _draw_cells(ax, tints[grid], "white", 0.65)
    present = np.bincount(grid.ravel(), minlength=len(colours)) > 0
    for k in np.flatnonzero(present[1:]) + 1:
        _draw_borders(ax, grid == k, xs, ys, colours[k])
    if legend:
        names = {text + ("" if present[k] else " (no cell)"): colours[k]
                 for k, text in enumerate(labels, 1)}
        _legend_below(ax, names | ({OTHERS: colours[0]} if present[0] else {}))
    if row_numbers:  # as many as have room, where the picture is 2 inches wide or more
        height, width = np.shape(pixels)[:2]
        step = math.ceil(len(grid) / min(25 * height / width, 16))
        ax.set_yticks((ys[:-1:step] + ys[1::step]) / 2, range(1, len(grid) + 1, step))
        ax.tick_params(axis="y", length=0, pad=2, labelsize=7, labelcolor=FAINT, labelleft=True)
    return ax


def draw_confidence(
    ax: Axes, pixels: np.ndarray, probs: np.ndarray, title: str | None = None,
    *, truth: np.ndarray | None = None,
) -> Axes:
    """How likely each cell shows a label, over the picture: the likelier, the stronger the tint.

    ``probs``, float ``(rows, cols)`` in [0, 1], is stretched over the picture; the line runs where
    it crosses one half. The outline of the mask ``truth`` is dashed.
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


class _Mono(Text):
    """Monospaced text in axes where x counts letters and y rows: as large as those are when drawn."""

    def __init__(self, column: int, row: int, text: str, **look: Any) -> None:
        super().__init__(column, row + 0.5, printable(text, _MONO), family=_MONO, parse_math=False,
                         verticalalignment="center_baseline", clip_on=False, **look)
        self.column = column
        self.set_in_layout(False)  # it is made to fit; no reason to move the axes

    def draw(self, renderer: Any) -> None:
        points = 72 / self.get_figure(root=True).dpi
        letter, row = points * np.abs(self.axes.bbox.size / self.axes.viewLim.size)
        size = min(letter / _MONO_LETTER, row / _LINE, _LARGEST)
        self.set(fontsize=size, x=self.column * size * _MONO_LETTER / letter)
        super().draw(renderer)


def _write(ax: Axes, rows: Sequence[_Row], columns: int, room: int) -> None:
    """Write rows into axes with room for so many columns and rows."""
    ax.set(xlim=(0, columns), ylim=(room, 0))
    for r, row in enumerate(rows):
        column = 0
        for text, ink, fill in row:
            box = {"boxstyle": "square,pad=0.08", "facecolor": fill, "edgecolor": "white",
                   "linewidth": 0.6}
            if text.strip():
                ax.add_artist(_Mono(column, r, text, color=ink, bbox=box if fill else None))
            column += len(text)


def _write_wrapped(ax: Axes, lines: Sequence[_Row]) -> None:
    """Write into empty axes, in a size in which all lines fit; if none does, the first ones."""
    width, height = _share(ax) * (1.03, 0.75)  # roughly: letters shrink with their axes
    for size in (8, 7, 6):
        columns, room = int(width / (_MONO_LETTER * size)), max(int(height / (1.42 * size)), 2)
        rows = _wrapped(lines, columns)
        if len(rows) <= room:
            break
    else:
        rows[room - 1:] = [[_Word(f"… {len(rows) - room + 1} lines not shown")]]
    _write(ax, rows, columns, room)


def _as_high(ax: Axes, picture: Axes) -> None:
    """Hold the axes at the height of a picture, which is settled when the figure is drawn."""
    def place(ax: Axes, renderer: Any) -> Bbox:
        picture.apply_aspect()
        mine, its = ax.get_position(original=True), picture.get_position()
        return Bbox.from_extents(mine.x0, its.y0, mine.x1, its.y1)

    ax.set_axes_locator(place)


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
    ``<seg>``; malformed text too: a label that was not asked for stands out in red. What would be
    too small to read is left out, and a note says how many lines those are; use
    :func:`descriptor_html` for the whole text on a notebook's page.

    Args:
        ax, title: see above.
        text: the text, or its pieces (``Encoding.pieces``).
        labels: the labels that were asked for; they give the colours.
        beside: axes of :func:`draw_grid`; the rows stand at the height of the grid's rows, where
            they have room for that.
        label_width: longer labels are cut (for the eye only), see :func:`short_labels`; with
            ``beside`` more, if the rows need it.

    Raises:
        DescriptorError: unusable labels.
    """
    set_title(_bare(ax), title, "left")
    text = text if isinstance(text, str) else "".join(text)
    if beside is not None and SEG_OPEN not in text:
        width, height = _share(ax)
        for letters in (label_width, 16, 12, 9):
            rows = _descriptor_rows(text, labels, min(letters, label_width))
            columns = max(_length(row) for row in rows)
            if 1 < len(rows) <= height / 7 and columns <= width / (5.5 * _MONO_LETTER):
                _as_high(ax, beside)
                _write(ax, rows, columns, len(rows))
                return ax
    _write_wrapped(ax, _descriptor_rows(text, labels, label_width))
    return ax


def descriptor_html(text: str | Sequence[str], labels: Sequence[str], title: str = "") -> Any:
    """Descriptor text for a notebook's page, an ``IPython.display.HTML``; nothing is cut.

    Arguments as in :func:`show_descriptor`; everything in it is escaped.
    """
    from IPython.display import HTML

    faint = "inherit;opacity:0.75"  # legible on a light and on a dark page
    rows = ["".join(f'<span style="color:{faint if ink == FAINT else ink};background:{fill or "none"}">'
                    f"{html.escape(words)}</span>"
                    for words, ink, fill in row)
            for row in _descriptor_rows("".join(text), labels)]
    heading = f"<b>{html.escape(title)}</b>" if title else ""
    return HTML(f'{heading}<pre style="line-height:1.35">{"<br>".join(rows)}</pre>')


def _descriptor_rows(text: str, labels: Sequence[str], width: int = 10**9) -> list[_Row]:
    """The lines of a text as coloured runs, each with its number first; labels cut to ``width``.

    Sentences and tags stand in rows of their own, which have no number.
    """
    words = vocabulary(labels)
    names = [OTHERS, *short_labels(words.written[1:], width)]
    before, opened, rest = text.rpartition(SEG_OPEN)
    body, closed, after = rest.partition(SEG_CLOSE)
    lines = body.removeprefix("\n").removesuffix("\n").split("\n") if body.strip() else []
    digits = len(str(len(lines))) if len(lines) > 1 else 0

    def plain(text: str) -> list[_Row]:
        return [[_Word(" " * (digits + 1) * bool(digits)),
                 *map(_Word, re.findall(r"\S{1,24} ?| ", line))]
                for line in text.strip("\n").split("\n") if line.strip()]

    return [*plain(before), *plain(opened), *plain("" if lines else "(no descriptors)"),
            *([_Word(f"{r:{digits}} " if digits else ""), *_runs(line, words, names, width)]
              for r, line in enumerate(lines, 1)),
            *plain(closed), *plain(after)]


def _runs(line: str, words: Any, names: Sequence[str], width: int) -> _Row:
    """A line of descriptors as words, with bars between them."""
    row = []
    for run in line.split("|"):
        name, count = re.fullmatch(r"\s*(.*?)\s*(?:\*\s*(\d+)\s*)?", run, re.S).groups()
        counted = f" *{count[:9]}" if count else ""
        k = words.index.get(name, words.folded.get(fold(name)))
        if run[:1].isspace():
            row.append(_Word(" "))
        if k is None:
            row.append(_Word((short_labels([name], width)[0] or "?") + counted, "white", ALARM))
        elif k == 0:
            row.append(_Word(OTHERS + counted))
        else:
            row.append(_Word(names[k] + counted, INK, mix(label_colour(k), "white", 0.62)))
        row.append(_BAR)
    return row[:-1]


def show_tokens(
    ax: Axes, tokens: Sequence[str], trained: Sequence[bool], title: str | None = None
) -> Axes:
    """The tokens of a sample in reading order; those that the loss sees (``trained``) are coloured.

    Line breaks inside tokens are shown as ``↵`` and followed, a token that is a blank as ``␣``; a
    token that repeats four times or more (image placeholders) is written once with its count.
    """
    kinds = ["trained" if flag else "not trained" for flag in trained]
    looks = {"trained": (INK, mix(PALETTE[1], "white", 0.62)), "not trained": ("#5a5a5a", "#e3e3e3")}
    return _show_kinds(ax, tokens, kinds, looks, " tokens", title)


def show_trace(ax: Axes, tokens: Sequence[str], trace: Any, title: str | None = None) -> Axes:
    """The tokens of an answer in reading order, coloured by what each one cost.

    ``trace`` is the answer's `t4s_helpers.decoding.constrained.Trace`.
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
    _write_wrapped(ax, [row for row in rows if len(row) > 1])
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
        ax, title: see above.
        groups: names of the groups, along the axis.
        series: name -> one value a group; the bars of one series share a colour. NaN: no bar, and
            "n/a" in its place.
        errors: name -> one ``(low, high)`` a group, as absolute bounds (the ends of an interval,
            not lengths).
        ylabel: text at the axis.
        fmt: how values are written.
        colours: name -> colour, in place of the palette's order.
    """
    errors = errors or {}
    if not len(groups) or not series:
        raise ValueError("There are no bars to draw: pass at least one group and one series.")
    for name, values in [*series.items(), *errors.items()]:
        if name not in series:
            raise ValueError(f"There are errors for '{name}', but no series of that name.")
        if len(values) != len(groups):
            raise ValueError(f"Series '{name}' has {len(values)} entries for {len(groups)} groups.")
    room = (_share(ax)[0] - (150 if len(series) > 1 else 50)) / len(groups)  # points of a group
    pitch = 0.8 / len(series)
    written = {name: ["n/a" if math.isnan(value) else fmt.format(value) for value in values]
               for name, values in series.items()}
    longest = max(len(text) for texts in written.values() for text in texts)
    upright = 7 * _LETTER * longest > room * pitch
    for s, (name, values) in enumerate(series.items()):
        heights = np.nan_to_num(np.array(values, float))
        bounds = np.array(errors[name], float) - heights[:, None] if name in errors else None
        drawn = ax.bar(
            np.arange(len(groups)) + (s - (len(series) - 1) / 2) * pitch, heights, 0.92 * pitch,
            color=(colours or {}).get(name) or label_colour(s + 2 if len(series) > 1 else 2),
            label=printable(name), error_kw={"ecolor": INK, "elinewidth": 0.9, "capsize": 2},
            yerr=None if bounds is None else np.maximum(bounds * (-1, 1), 0).T)
        for text in ax.bar_label(drawn, written[name], padding=2, color=INK, fontsize=7,
                                 rotation=90 if upright else 0):
            text.set_parse_math(False)
    ax.margins(y=0.3 if upright else 0.12)
    ax.axhline(0, color=FAINT, linewidth=0.8)
    ax.set_xlim(-0.55, len(groups) - 0.45)
    _name_groups(ax, groups, room)
    ax.grid(False, axis="x")
    ax.set_ylabel(ylabel)
    if len(series) > 1:
        legend_beside(ax)
    return set_title(ax, title)


def _name_groups(ax: Axes, names: Sequence[str], room: float) -> None:
    """Names under groups ``room`` points wide: wrapped, or turned where a word is longer."""
    columns = int(0.97 * room / (_LETTER * STYLE["xtick.labelsize"]))
    turned = any(len(word) > columns for name in names for word in name.split())
    look = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if turned else {}
    shown = [printable(name) if turned else _wrap(name, columns) for name in names]
    ax.set_xticks(range(len(names)), shown, parse_math=False, **look)
    ax.tick_params(axis="x", length=0)


def reliability(ax: Axes, curves: Mapping[str, Any], title: str | None = None) -> Axes:
    """Reliability diagram: how often it came true, by the probability that was stated.

    ``curves`` is name -> `t4s_helpers.evaluation.calibration.Calibration`. The area of a dot grows
    with the number of cells behind it; the legend gives each curve's expected calibration error.
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

    ``smooth`` in [0, 1) is the share that the moving average keeps of the past at each step; it has
    no pull towards the first value, and skips what is not finite. 0 draws the values alone.
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
    _legend(ax, *ax.get_legend_handles_labels(), 40, loc="best")
    return set_title(ax, title)


def timeline(ax: Axes, points: Sequence[Mapping], title: str | None = None) -> Axes:
    """Works over time, of `t4s_helpers.evaluation.published.res_averages`, by how they write masks.

    Names stand where the layout leaves room beside their markers: give the figure its size before.
    """
    when = [int(point["date"][:4]) + (int(point["date"][5:]) - 0.5) / 12 for point in points]
    places = np.column_stack([when, [point["value"] for point in points]])
    for k, mask in enumerate(dict.fromkeys(point["mask"] for point in points), 1):
        ax.scatter(*places[[point["mask"] == mask for point in points]].T, s=36, color=label_colour(k),
                   marker="osD^vPX*"[(k - 1) % 8], label=mask, edgecolors="white", linewidths=0.6, zorder=3)
    ax.set(xlabel="year of the first version", ylabel="mean cIoU of the 8 splits (%)")
    ax.locator_params(axis="x", integer=True)
    ax.margins(0.08)
    legend_beside(set_title(ax, title)).figure.draw_without_rendering()
    boxes = [Bbox.from_extents(*(dot - 4), *(dot + 4)) for dot in ax.transData.transform(places)]
    for k in np.argsort(-places[:, 1]):
        text = ax.annotate(printable(points[k]["work"]), places[k], (0, 0), textcoords="offset points",
                           fontsize=8, va="center")
        for up, (across, side) in product((0, 10, -10), ((8, "left"), (-8, "right"), (0, "center"))):
            text.set(position=(across, up), ha=side)
            box = text.get_window_extent()
            if not box.count_overlaps(boxes) and ax.bbox.count_contains(box.corners()) == 4:
                break
        boxes.append(box)
    return ax
