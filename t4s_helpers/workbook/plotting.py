"""Figures: every function draws into the axes it is given and returns it; none saves or shows.

Colours follow the label's number in the request, as in a label grid: ``label_colour(0)`` is
"others" and grey, ``label_colour(k)`` belongs to ``labels[k-1]`` in every figure of the workbook.
The first eight can be told apart with any common colour blindness (Okabe & Ito; one dark blue
added); further ones are lighter and darker shades of them.

Text fits: titles, legends, descriptor text and token strips are laid out when the figure is drawn,
for the room that their axes then have, so they neither run into a neighbour nor out of the figure.
Labels are shown as written: ``$`` starts no formula, and a character that the font lacks becomes
a box.

Pictures are ``(H, W, 3)`` uint8 and masks bool ``(H, W)`` or ``(L, H, W)``, row 0 at the top.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.textpath import text_to_path
from matplotlib.transforms import Bbox

from ..codec.grid import check_grid
from ..codec.grid import mask_iou
from ..codec.encodings import OTHERS, SEG_CLOSE, SEG_OPEN, fold, vocabulary

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
    "xtick.color": FAINT,
    "xtick.labelcolor": INK,
    "xtick.labelsize": 8.5,
    "ytick.color": FAINT,
    "ytick.labelcolor": INK,
    "ytick.labelsize": 8.5,
}

_MONO = "DejaVu Sans Mono"  # ships with matplotlib, so figures look the same everywhere
_SANS = "DejaVu Sans"
_FONTS = tuple(np.arange(9.0, 4.9, -0.25).tolist())  # points, of descriptor and token text
_MAX_FONT = _FONTS[0]
_EASY_FONT = 6.5  # large enough: labels are not cut any further for a larger one
_LINE_HEIGHT = 1.42  # of the font size


# ---------------------------------------------------------------------------------------------
# Style, colours, figures
# ---------------------------------------------------------------------------------------------


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
    base = PALETTE[place]
    if turn == 0:
        return base
    # Shades closer and closer to white, then to black, so that no two indices share a colour.
    strength = 0.55 * (1 - 0.6 ** ((turn + 1) // 2))
    return mix(base, "white" if turn % 2 else "black", strength)


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


# ---------------------------------------------------------------------------------------------
# Laying text out for the room there is
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Room:
    """What axes have: width and height in points, and how wide their backend sets text."""

    width: float
    height: float
    renderer: Any
    beside: bool = False
    """The height is that of the axes beside, which the text is to be aligned with."""

    def advance(self, size: float) -> float:
        """Width in points of one monospaced character; backends round it to whole pixels."""
        if self.renderer is None:
            return _text_width("x" * 50, size, _MONO) / 50
        scale = self.renderer.points_to_pixels(1.0)
        key = (type(self.renderer), scale, size)
        if key not in _ADVANCES:
            font = FontProperties(family=_MONO, size=size)
            width = self.renderer.get_text_width_height_descent("x" * 50, font, False)[0]
            _ADVANCES[key] = width / 50 / scale
        return _ADVANCES[key]


_ADVANCES: dict[tuple[type, float, float], float] = {}  # measuring costs, and happens often
_FitFunction = Callable[[_Room], bool]


class _FitLocator:
    """Leaves the axes where they are, but tells its fits how large they have become.

    Matplotlib asks an axes locator before it lays out and before it draws, which is the only time
    when the size is known: layout engines, ``tight_layout`` and saving all move axes. A fit is a
    function of a :class:`_Room`; one that returns False is forgotten.
    """

    def __init__(self, ax: Axes) -> None:
        self.ax, self.inner = ax, ax.get_axes_locator()
        self.fits: dict[str, _FitFunction] = {}
        self.beside: Axes | None = None
        self.can_align: _FitFunction = bool

    def __call__(self, ax: Axes, renderer: Any) -> Bbox:
        place = self.inner(ax, renderer) if self.inner else ax.get_position(original=True)
        room = self._room(place, renderer)
        if self.beside is not None and self.beside.figure is ax.figure:
            other = self.beside.get_position()  # after its aspect was applied
            level = Bbox([[place.x0, other.y0], [place.x1, other.y1]])
            level_room = self._room(level, renderer, beside=True)
            if self.can_align(level_room):
                place, room = level, level_room
        for name, fit in list(self.fits.items()):
            if not fit(room):
                del self.fits[name]
        return place

    def _room(self, place: Bbox, renderer: Any, beside: bool = False) -> _Room:
        box = place.transformed(self.ax.figure.transSubfigure)
        scale = 72 / self.ax.figure.dpi
        return _Room(box.width * scale, box.height * scale, renderer, beside)

    def get_subplotspec(self) -> Any:
        """So that ``tight_layout`` still sees axes of a grid."""
        return self.ax.get_subplotspec()


def _fit(ax: Axes, name: str, fit: _FitFunction) -> _FitLocator:
    """Run ``fit`` now and whenever the axes may have changed; one fit of each name."""
    locator = ax.get_axes_locator()
    if not isinstance(locator, _FitLocator):
        locator = _FitLocator(ax)
        ax.set_axes_locator(locator)
    locator.fits[name] = fit
    locator(ax, None)
    return locator


@lru_cache(maxsize=4096)
def _text_width(text: str, size: float, family: str = _SANS, weight: str = "normal") -> float:
    """Width of one line of text in points."""
    font = FontProperties(family=family, size=size, weight=weight)
    return text_to_path.get_text_width_height_descent(text, font, ismath=False)[0]


@lru_cache(maxsize=8)
def _glyphs(family: str) -> frozenset[int]:
    return frozenset(get_font(findfont(FontProperties(family=family))).get_charmap())


def printable(text: str, family: str = _SANS) -> str:
    """The text in characters that the font has; others, and control characters, as a box."""
    known = _glyphs(family)
    text = unicodedata.normalize("NFC", text)
    return "".join(c if ord(c) in known and c.isprintable() else "\u25a1" for c in text)


def _wrap(text: str, width: float, size: float, max_lines: int = 3) -> str:
    """Break a text into lines of at most ``width`` points; what is too much ends in ``…``."""
    lines: list[str] = []
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.split(" "):
            longer = f"{line} {word}" if line else word
            if not line or _text_width(longer, size) <= width:
                line = longer
            else:
                lines.append(line)
                line = word
        lines.append(line)
    lines = [part for line in lines for part in _break(line, width, size)]
    if len(lines) > max_lines:
        lines = lines[:max_lines]
        lines[-1] = _cut(lines[-1] + "…", width, size)
    return "\n".join(lines)


def _break(line: str, width: float, size: float) -> list[str]:
    """A line that is one too long word, in pieces."""
    parts = []
    while _text_width(line, size) > width and len(line) > 1:
        n = len(line) - 1
        while n > 1 and _text_width(line[:n], size) > width:
            n -= 1
        parts.append(line[:n])
        line = line[n:]
    return [*parts, line]


def _cut(line: str, width: float, size: float) -> str:
    while _text_width(line, size) > width and len(line) > 2:
        line = line[:-2] + "…"
    return line


def set_title(ax: Axes, title: str | None, side: str = "center") -> Axes:
    """A title over the axes, wrapped to their width and at most three lines long.

    ``side`` is ``"center"``, or ``"left"`` as over text. None leaves the title as it is.
    """
    if title is None:
        return ax
    title = "\n".join(printable(line) for line in title.split("\n"))
    artist = ax.set_title(title, loc=side, parse_math=False)
    shown = [title]

    def fit(room: _Room) -> bool:
        if ax.get_title(side) != shown[0]:
            return False  # someone else has set another title, or cleared the axes
        shown[0] = _wrap(title, 0.98 * room.width, artist.get_fontsize())
        artist.set_text(shown[0])
        return True

    _fit(ax, "title", fit)
    return ax


def legend_below(ax: Axes, labels: Sequence[str], colours: Sequence[str]) -> Axes:
    """A legend of coloured squares under axes without tick labels there, in columns that fit."""
    labels = [printable(label) for label in labels]
    if not labels:
        return ax
    size = FontProperties(size=matplotlib.rcParams["legend.fontsize"]).get_size_in_points()
    shown: list[Any] = [None, None]  # the layout, the legend

    def fit(room: _Room) -> bool:
        if shown[1] is not None and ax.get_legend() is not shown[1]:
            return False
        beside_square = max(room.width - 2.6 * size, 3 * size)
        wrapped = [_wrap(label, beside_square, size, 2) for label in labels]
        column = max(_text_width(line, size) for text in wrapped for line in text.split("\n"))
        n = max(1, min(len(labels), int(room.width // (column + 3.4 * size))))
        if shown[0] != (wrapped, n):
            shown[:] = (wrapped, n), _legend(ax, wrapped, colours, n)
        return True

    _fit(ax, "legend", fit)
    return ax


def _legend(ax: Axes, labels: Sequence[str], colours: Sequence[str], columns: int) -> Any:
    handles = [Patch(facecolor=colour, label=text) for text, colour in zip(labels, colours)]
    legend = ax.legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
        ncols=columns,
        frameon=False,
        handlelength=1.0,
        handleheight=0.9,
        handletextpad=0.5,
        columnspacing=1.4,
        borderaxespad=0.4,
        labelspacing=0.35,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return legend


# ---------------------------------------------------------------------------------------------
# Pictures, masks, grids
# ---------------------------------------------------------------------------------------------


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
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    ax.spines[:].set_visible(False)
    return set_title(ax, title)


def show_mask(
    ax: Axes,
    pixels: np.ndarray,
    masks: np.ndarray,
    labels: Sequence[str] | None = None,
    title: str | None = None,
    *,
    alpha: float = 0.45,
    legend: bool = True,
) -> Axes:
    """The picture with masks laid over it: tinted, outlined, with a legend of the labels.

    Where masks overlap the smaller one is on top. A label whose mask is empty is in the legend as
    "no target".

    Args:
        ax, pixels, title: as in :func:`show_image`.
        masks: bool ``(L, H, W)``, or one mask ``(H, W)``.
        labels: ``L`` texts; None: no legend.
        alpha: strength of the tint, 0 to 1.
        legend: draw the legend.

    Raises:
        ValueError: masks of another size than the picture, or another number than labels.
    """
    show_image(ax, pixels, title)
    masks = _masks_of(masks, np.shape(pixels)[:2])
    if labels is not None and len(labels) != len(masks):
        raise ValueError(f"There are {len(masks)} masks but {len(labels)} labels.")
    overlay = np.zeros((*masks.shape[1:], 4), np.uint8)
    order = sorted(range(len(masks)), key=lambda k: -np.count_nonzero(masks[k]))
    for k in order:
        overlay[masks[k]] = [*_rgb255(label_colour(k + 1)), round(255 * alpha)]
    ax.imshow(overlay, interpolation="nearest")
    for k in order:
        outline(ax, masks[k], label_colour(k + 1))
    if labels is not None and legend and len(labels):
        texts = [f"{t}{'' if masks[k].any() else ' (no target)'}" for k, t in enumerate(labels)]
        legend_below(ax, texts, [label_colour(k + 1) for k in range(len(labels))])
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
    height, width_px = padded.shape
    contour = ax.contour(
        np.arange(width_px) - 1,
        np.arange(height) - 1,
        padded,
        levels=[0.5],
        colors=[colour],
        linewidths=width,
        linestyles="--" if dashed else "-",
    )
    light = _luminance(colour) > 0.8
    contour.set_path_effects([withStroke(linewidth=width + 1, foreground=INK if light else "w")])
    ax.set_xlim(-0.5, mask.shape[1] - 0.5)
    ax.set_ylim(mask.shape[0] - 0.5, -0.5)
    return ax


def draw_grid(
    ax: Axes,
    pixels: np.ndarray,
    grid: np.ndarray,
    labels: Sequence[str],
    title: str | None = None,
    *,
    alpha: float = 0.5,
    row_numbers: bool = True,
    legend: bool = True,
) -> Axes:
    """The label grid over the picture: cell borders, and each cell tinted with its label.

    Args:
        ax, pixels, title: as in :func:`show_image`.
        grid: int ``(rows, cols)``; 0 is others, ``k`` is ``labels[k-1]``. It is stretched over the
            picture, as in the method, whatever the picture's proportions.
        labels: the label texts.
        alpha: strength of the tint of labelled cells, 0 to 1; others get a light grey veil.
        row_numbers: number the rows at the left from 1, as :func:`show_descriptor` does.
        legend: a legend of the labels in the grid, others included.

    Raises:
        ValueError: an unusable grid, or a value in it without a label.
    """
    show_image(ax, pixels, title)
    grid = check_grid(grid, len(labels))
    height, width = np.shape(pixels)[:2]
    used = sorted(set(grid.ravel().tolist()))
    veil = {k: [*to_rgb(label_colour(k)), alpha if k else 0.30] for k in used}
    tints = np.array([veil[k] for k in grid.ravel().tolist()]).reshape(*grid.shape, 4)
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    ax.imshow(tints, extent=extent, interpolation="nearest", aspect=ax.get_aspect())
    xs, ys = (np.linspace(0, n, k + 1) - 0.5 for n, k in zip((width, height), grid.shape[::-1]))
    _add_lines(ax, _net(xs, ys), "white", 0.5, 0.65)
    for k in used:
        if k:
            _add_lines(ax, _borders(grid == k, xs, ys), label_colour(k), 1.6, 1.0)
    if row_numbers:
        _number_rows(ax, (ys[:-1] + ys[1:]) / 2)
    if legend:
        names = [OTHERS, *labels]
        shown = [*range(1, len(labels) + 1), *([0] if 0 in used else [])]
        missing = {k for k in shown if k not in used}
        texts = [f"{names[k]}{' (no cell)' if k in missing else ''}" for k in shown]
        legend_below(ax, texts, [label_colour(k) for k in shown])
    return ax


def draw_confidence(
    ax: Axes,
    pixels: np.ndarray,
    probs: np.ndarray,
    title: str | None = None,
    *,
    label: int = 1,
    truth: np.ndarray | None = None,
) -> Axes:
    """How likely each cell shows a label, over the picture: the likelier, the stronger the tint.

    Args:
        ax, pixels, title: as in :func:`show_image`.
        probs: float ``(rows, cols)`` in [0, 1], one label's map; it is stretched over the picture.
        label: the label's number, for its colour.
        truth: bool ``(H, W)``, whose outline is drawn dashed.

    The line runs where the probability crosses one half.

    Raises:
        ValueError: an array that is no map.
    """
    probs = np.asarray(probs, float)
    if probs.ndim != 2 or not (probs.min() >= 0 and probs.max() <= 1):
        raise ValueError(f"A map is (rows, cols) with values in [0, 1], but this array is "
                         f"{probs.shape} and reaches to {probs.max():g}.")
    show_image(ax, pixels, title)
    height, width = np.shape(pixels)[:2]
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    tint = np.empty((*probs.shape, 4))
    tint[..., :3], tint[..., 3] = to_rgb(label_colour(label)), 0.9 * probs
    veil = np.full((1, 1, 4), (1.0, 1.0, 1.0, 0.55))
    ax.imshow(veil, extent=extent, aspect=ax.get_aspect())
    ax.imshow(tint, extent=extent, interpolation="nearest", aspect=ax.get_aspect())
    xs, ys = (np.linspace(0, n, k + 1) - 0.5 for n, k in zip((width, height), probs.shape[::-1]))
    _add_lines(ax, _net(xs, ys), FAINT, 0.4, 0.35)
    _add_lines(ax, _borders(probs > 0.5, xs, ys), label_colour(label), 1.6, 1.0)
    if truth is not None:
        outline(ax, truth, INK, width=1.1, dashed=True)
    ax.set_xlim(-0.5, width - 0.5)
    ax.set_ylim(height - 0.5, -0.5)
    return ax


def _net(xs: np.ndarray, ys: np.ndarray) -> list:
    across = [[(xs[0], y), (xs[-1], y)] for y in ys[1:-1]]
    return across + [[(x, ys[0]), (x, ys[-1])] for x in xs[1:-1]]


def _borders(cells: np.ndarray, xs: np.ndarray, ys: np.ndarray) -> list:
    """The cell edges between True and not True (or the picture's edge)."""
    padded = np.pad(cells, 1)
    rows, cols = np.nonzero(padded[1:, 1:-1] != padded[:-1, 1:-1])
    lines = [[(xs[c], ys[r]), (xs[c + 1], ys[r])] for r, c in zip(rows, cols)]
    rows, cols = np.nonzero(padded[1:-1, 1:] != padded[1:-1, :-1])
    return lines + [[(xs[c], ys[r]), (xs[c], ys[r + 1])] for r, c in zip(rows, cols)]


def _add_lines(ax: Axes, lines: list, colour: str, width: float, alpha: float) -> None:
    ax.add_collection(
        LineCollection(lines, colors=colour, linewidths=width, alpha=alpha, capstyle="projecting"),
        autolim=False,
    )


def _number_rows(ax: Axes, centres: np.ndarray) -> None:
    """Row numbers as tick labels, every second, fifth … one where all of them have no room."""
    ax.tick_params(axis="y", length=0, pad=2, labelsize=7, labelcolor=FAINT, labelleft=True)
    shown = [0]

    def fit(room: _Room) -> bool:
        if shown[0] and len(ax.get_yticks()) != len(range(0, len(centres), shown[0])):
            return False
        across, down = (abs(np.diff(limits)[0]) for limits in (ax.get_xlim(), ax.get_ylim()))
        pictured = min(room.height, room.width * down / across)
        step = next(
            (s for s in (1, 2, 4, 5, 8, 10, 16, 32) if s * pictured / len(centres) >= 7.5), 64
        )
        if step != shown[0]:
            shown[0] = step
            ax.set_yticks(centres[::step], [str(r + 1) for r in range(0, len(centres), step)])
        return True

    _fit(ax, "rows", fit)


def before_after(
    axes: Sequence[Axes],
    pixels: np.ndarray,
    coarse: np.ndarray,
    refined: np.ndarray,
    truth: np.ndarray,
    title: str | None = None,
) -> Sequence[Axes]:
    """Coarse mask, refined mask and truth side by side, the IoU with the truth in the titles.

    The true outline is dashed in the first two, so that one sees what the refiner mended.

    Args:
        axes: three axes, or four: then the picture alone comes first, under ``title``.
        pixels: uint8 ``(H, W, 3)``.
        coarse, refined, truth: bool ``(H, W)``.
        title: for the picture (four axes), or the first line over the coarse mask (three).

    Raises:
        ValueError: another number of axes, or masks of another size than the picture.
    """
    axes = list(axes)
    if len(axes) not in (3, 4):
        raise ValueError(f"before_after draws into three or four axes, got {len(axes)}.")
    if len(axes) == 4:
        show_image(axes[0], pixels, title)
    first = f"{title}\n" if title and len(axes) == 3 else ""
    panels = [
        (f"{first}coarse, IoU {mask_iou(coarse, truth):.2f}", coarse),
        (f"refined, IoU {mask_iou(refined, truth):.2f}", refined),
        ("truth", truth),
    ]
    for ax, (name, mask) in zip(axes[-3:], panels):
        show_mask(ax, pixels, mask, title=name)
        if mask is not truth:
            outline(ax, truth, "#ffffff", width=1.0, dashed=True)
    return axes


def _masks_of(masks: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    masks = np.asarray(masks)
    masks = masks[None] if masks.ndim == 2 else masks
    if masks.ndim != 3 or masks.dtype != np.bool_:
        raise ValueError(
            f"Masks are boolean (labels, height, width), but these are {masks.dtype} {masks.shape}."
        )
    if masks.shape[1:] != tuple(size):
        raise ValueError(
            f"The masks are {masks.shape[1]}x{masks.shape[2]} (height x width), "
            f"but the picture is {size[0]}x{size[1]}."
        )
    return masks


def _rgb255(colour: str) -> list[int]:
    return [round(255 * channel) for channel in to_rgb(colour)]


def _luminance(colour: str) -> float:
    """Perceived brightness, 0 black to 1 white."""
    return float(np.dot(to_rgb(colour), (0.299, 0.587, 0.114)))


# ---------------------------------------------------------------------------------------------
# Monospaced text: descriptors and tokens
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Span:
    """Characters of one look; ``fill`` is the colour behind them, ``edge`` separates neighbours."""

    text: str
    ink: str = INK
    fill: str | None = None
    boxed: bool = False


_Atom = tuple[_Span, ...]  # what is not broken over two lines while there is room


@dataclass
class _Line:
    number: str
    atoms: list[_Atom]

    @property
    def length(self) -> int:
        return sum(_length(atom) for atom in self.atoms)


_Row = tuple[str, list[tuple[int, _Span]]]  # number, spans with their first column


def _length(atom: _Atom) -> int:
    return sum(len(span.text) for span in atom)


class _MonoBlock:
    """Lines of coloured monospaced text that fill their axes in the largest size that fits.

    With ``aligned``, the lines and briefer versions of them, each line gets the same share of the
    height and none is broken; where they have no room for that, ``lines`` are wrapped as usual.
    """

    def __init__(
        self, ax: Axes, lines: Sequence[_Line], aligned: Sequence[Sequence[_Line]] = ()
    ) -> None:
        self.ax, self.lines, self.aligned = ax, list(lines), aligned
        self.gutter = max((len(line.number) for line in self.lines), default=0)
        self.gutter += 1 if self.gutter else 0
        self.background: PolyCollection | None = None
        self.texts: list[Any] = []
        self.known: tuple[Any, ...] | None = None
        ax.set(xticks=[], yticks=[])
        ax.grid(False)
        ax.spines[:].set_visible(False)
        ax.patch.set_visible(False)

    def fit(self, room: _Room) -> bool:
        if self.background is not None and self.background.axes is not self.ax:
            return False  # the axes were cleared
        size = (round(room.width, 1), round(room.height, 1), room.advance(_MAX_FONT))
        known = (*size, room.beside)
        if known == self.known or min(size) <= 1:
            return True
        self.known = known
        font, line_height, rows = self._layout(room)
        self._draw(rows, font)
        self.ax.set_xlim(0, room.width / room.advance(font))
        self.ax.set_ylim(room.height / line_height, 0)
        return True

    def _layout(self, room: _Room) -> tuple[float, float, list[_Row]]:
        """Font size and line height in points, and the rows of text."""
        if room.beside:
            font, lines = self._align(room)
            pitch = room.height / len(lines)
            return font, pitch, self._rows(lines, max(line.length for line in lines))
        for font in _FONTS:
            columns, lines = self._columns(room, font), int(room.height / (_LINE_HEIGHT * font))
            if sum(_count_rows(line, columns) for line in self.lines) <= lines:
                break
        return font, _LINE_HEIGHT * font, _elide(self._rows(self.lines, columns), lines)

    def can_align(self, room: _Room) -> bool:
        return bool(self.aligned) and self._align(room)[0] > 0

    def _align(self, room: _Room) -> tuple[float, Sequence[_Line]]:
        """The font, 0 where none is small enough, and the longest lines that are easy to read."""
        fonts = [self._one_row_font(room, lines) for lines in self.aligned]
        best = max(range(len(fonts)), key=lambda i: (min(fonts[i], _EASY_FONT), -i))
        return fonts[best], self.aligned[best]

    def _one_row_font(self, room: _Room, lines: Sequence[_Line]) -> float:
        """The largest font in which no line must be broken, 0 where there is none."""
        pitch, longest = room.height / len(lines), max(line.length for line in lines)
        fonts = (f for f in _FONTS if f <= pitch / 1.2 and self._columns(room, f) >= longest)
        return next(fonts, 0.0)

    def _columns(self, room: _Room, font: float) -> int:
        """Characters in a row beside the numbers; half a one stays free at the edge."""
        return max(int(room.width / room.advance(font) - self.gutter - 0.5), 8)

    def _rows(self, lines: Sequence[_Line], columns: int) -> list[_Row]:
        return [
            (line.number if i == 0 else "", spans)
            for line in lines
            for i, spans in enumerate(_break_line(line, columns))
        ]

    def _draw(self, rows: list[_Row], font: float) -> None:
        boxes, fills, edges = [], [], []
        texts: list[tuple[float, int, str, str, str]] = []
        for r, (number, spans) in enumerate(rows):
            if number:
                texts.append((self.gutter - 1, r, number, FAINT, "right"))
            for start, span in spans:
                x, end = self.gutter + start, self.gutter + start + len(span.text)
                if span.fill:
                    boxes.append([(x, r + 0.06), (end, r + 0.06), (end, r + 0.94), (x, r + 0.94)])
                    fills.append(span.fill)
                    edges.append("white" if span.boxed else span.fill)
                letters = span.text.lstrip()
                if letters:
                    blanks = len(span.text) - len(letters)
                    texts.append((x + blanks, r, letters.rstrip(), span.ink, "left"))
        if self.background is not None:
            self.background.remove()
        self.background = PolyCollection(
            boxes, facecolors=fills, edgecolors=edges, linewidths=0.7, zorder=1
        )
        self.ax.add_collection(self.background, autolim=False)
        self._write(texts, font)

    def _write(self, texts: list[tuple[float, int, str, str, str]], font: float) -> None:
        """Texts at (column, row); what is there already is used again."""
        while len(self.texts) > len(texts):
            self.texts.pop().remove()
        while len(self.texts) < len(texts):
            artist = self.ax.text(0, 0, "", family=_MONO, parse_math=False, zorder=2)
            artist.set_in_layout(False)  # it fits by construction; no reason to move the axes
            self.texts.append(artist)
        for artist, (x, row, text, ink, side) in zip(self.texts, texts):
            artist.set(
                position=(x, row + 0.72), text=text, color=ink, horizontalalignment=side,
                fontsize=font,
            )


def _count_rows(line: _Line, columns: int) -> int:
    rows, used, room = 1, 0, columns
    for atom in line.atoms:
        n = _length(atom)
        if used and used + n > room:
            rows, used, room = rows + 1, 0, columns - 2
        used += n
        while used > room:
            rows, used, room = rows + 1, used - room, columns - 2
    return rows


def _break_line(line: _Line, columns: int) -> list[list[tuple[int, _Span]]]:
    """The rows of one line; continued rows are indented by two columns."""
    rows: list[list[tuple[int, _Span]]] = [[]]
    at = 0
    for atom in line.atoms:
        if at > (2 if len(rows) > 1 else 0) and at + _length(atom) > columns:
            rows.append([])
            at = 2
        for span in atom:
            text = span.text
            while text:
                part, text = text[: columns - at], text[columns - at:]
                rows[-1].append((at, _Span(part, span.ink, span.fill, span.boxed)))
                at += len(part)
                if text:
                    rows.append([])
                    at = 2
    return rows


def _elide(rows: list[_Row], room: int) -> list[_Row]:
    """The first and last rows, and how many are missing, where not all have room."""
    if len(rows) <= room:
        return rows
    tail = max((room - 1) // 3, 0)
    head = max(room - 1 - tail, 1)
    note = f"… {len(rows) - head - tail} lines not shown …"
    return [*rows[:head], ("", [(0, _Span(note, FAINT))]), *rows[len(rows) - tail:]]


_SMALL_WORDS = {"", *"a an the of in on at to by with and or that which is next".split()}


def short_labels(labels: Sequence[str], width: int = 20) -> list[str]:
    """Labels cut to ``width`` characters, still different from each other.

    The article at the beginning goes first, then words at the end; where two labels would look
    the same, their beginnings go instead, and at last they are numbered.

    >>> short_labels(["the woman in the orange suit", "cat"], 16)
    ['woman in the or…', 'cat']
    >>> short_labels(["person on the far left side", "person on the far right side"], 17)
    ['…far left side', '…far right side']
    """
    short = [_short_end(label, width) for label in labels]
    for shorten in (_short_start, _short_number):
        for text in {text for text in short if short.count(text) > 1}:
            twins = [k for k, other in enumerate(short) if other == text]
            for i, k in enumerate(twins):
                short[k] = shorten(labels[k], width, i)
    return short


def _short_end(label: str, width: int) -> str:
    if len(label) <= width:
        return label
    first, _, rest = label.partition(" ")
    if first.lower() in ("a", "an", "the") and rest:
        label = rest
    if len(label) <= width:
        return label
    cut = label[: width - 1]
    words = cut.split(" ")
    torn = label[len(cut) - len(words[-1]):].partition(" ")[0]  # the word that the cut goes through
    if torn != words[-1]:
        words.pop()
    n_whole = len(words)
    while words and words[-1].lower() in _SMALL_WORDS:
        words.pop()
    at_word = " ".join(words)
    enough = 0.4 if len(words) < n_whole or torn.lower() in _SMALL_WORDS else 0.5
    return (at_word if len(at_word) >= enough * width else cut.rstrip()) + "…"


def _short_start(label: str, width: int, i: int) -> str:
    if len(label) <= width:
        return label
    cut = label[len(label) - width + 1:]
    at_word = cut.partition(" ")[2]
    return "…" + (at_word if len(at_word) >= 0.6 * width else cut).lstrip()


def _short_number(label: str, width: int, i: int) -> str:
    mark = f"…{i + 1}"
    return label[: width - len(mark)] + mark


def show_descriptor(
    ax: Axes,
    text: str | Sequence[str],
    labels: Sequence[str],
    title: str | None = None,
    *,
    row_numbers: bool = True,
    beside: Axes | None = None,
    label_width: int = 20,
    legend: bool = False,
) -> Axes:
    """Descriptor text in monospace, each run in the colour of its label.

    Any of the three encodings, either spelling, bare or as a whole response with its sentence and
    ``<seg>``; malformed text too: a label that was not asked for stands out in red. The size of
    the letters follows from the room; text that would be too small to read is shown without its
    middle, which says how many lines it has.

    Args:
        ax: where to draw.
        text: the text, or its pieces (:func:`t4s_helpers.codec.encodings.pieces`).
        labels: the labels that were asked for; they give the colours.
        title: over it, wrapped.
        row_numbers: number the lines of row-wise text from 1.
        beside: axes of :func:`draw_grid`; the rows stand at the height of the grid's rows, where
            they have room for that.
        label_width: longer labels are cut (for the eye only), see :func:`short_labels`; with
            ``beside`` more, if the rows need it.
        legend: a legend with the whole labels.

    Raises:
        DescriptorError: unusable labels.
    """
    text = text if isinstance(text, str) else "".join(text)
    before, body, after = _around_tags(text)
    lines = _descriptor_lines(body, labels, label_width, row_numbers)
    briefer: list[list[_Line]] = []
    if beside is not None and len(lines) > 1 and not before and not after:
        widths = [label_width, *(w for w in (16, 12, 9) if w < label_width)]
        briefer = [_descriptor_lines(body, labels, width, row_numbers) for width in widths]
    lines = [_plain_line(part) for part in before] + lines + [_plain_line(part) for part in after]
    block = _MonoBlock(ax, lines, briefer)
    locator = _fit(ax, "text", block.fit)
    locator.beside, locator.can_align = beside if briefer else None, block.can_align
    if legend:
        legend_below(ax, list(labels), [label_colour(k + 1) for k in range(len(labels))])
    return set_title(ax, title, "left")


def _around_tags(text: str) -> tuple[list[str], str, list[str]]:
    """Lines before, the descriptors, lines after; the tags stand with the outer lines."""
    before: list[str] = []
    after: list[str] = []
    if SEG_OPEN in text:
        head, _, text = text.partition(SEG_OPEN)
        before = [*filter(None, head.strip().split("\n")), SEG_OPEN]
    if SEG_CLOSE in text:
        text, _, tail = text.partition(SEG_CLOSE)
        after = [SEG_CLOSE, *filter(None, tail.strip().split("\n"))]
    return before, text.removesuffix("\n"), after


def _plain_line(text: str) -> _Line:
    words = printable(text, _MONO).split(" ")
    return _Line("", [(_Span(word + " ", FAINT),) for word in words])


def _descriptor_lines(
    body: str, labels: Sequence[str], label_width: int, row_numbers: bool
) -> list[_Line]:
    words = vocabulary(labels)
    if not body.strip():
        return [_plain_line("(no descriptors)")]
    shown = [OTHERS, *short_labels([printable(w, _MONO) for w in words.written[1:]], label_width)]
    rows = body.split("\n")
    bar = (_Span("|", "#b8b8b8"),)
    lines = []
    for r, row in enumerate(rows, 1):
        atoms = [_run_atom(run, words, shown, label_width) for run in row.split("|")]
        number = str(r) if row_numbers and len(rows) > 1 else ""
        lines.append(_Line(number, [atom + bar for atom in atoms[:-1]] + atoms[-1:]))
    return lines


def _run_atom(run: str, words: Any, shown: Sequence[str], label_width: int) -> _Atom:
    """One run as spans: blank before it, label, count."""
    lead = run[: len(run) - len(run.lstrip())]
    name, star, digits = run.strip().rpartition("*")
    if not (star and digits.strip().isdigit()):
        name, star, digits = run.strip(), "", ""
    name = name.rstrip()
    k = words.index.get(name, words.folded.get(fold(name)))
    count = f" *{printable(digits.strip(), _MONO)}" if star else ""
    blank = (_Span(" "),) if lead else ()
    if k is None:
        unknown = _short_end(printable(name, _MONO), label_width) or "?"
        return (*blank, _Span(unknown + count, "white", ALARM))
    if k == 0:
        return (*blank, _Span(shown[0] + count, FAINT))
    return (*blank, _Span(shown[k] + count, INK, mix(label_colour(k), "white", 0.62)))


def show_tokens(
    ax: Axes,
    tokens: Sequence[str],
    trained: Sequence[bool],
    title: str | None = None,
    *,
    legend: bool = True,
) -> Axes:
    """The tokens of a sample in reading order; those that the loss sees are coloured.

    Line breaks inside tokens are shown as ``↵`` and followed, a token that is a blank as ``␣``; a
    token that repeats four times or more (image placeholders) is written once with its count.

    Args:
        ax: where to draw.
        tokens: the text of each token.
        trained: of the same length; True where the label is not masked (the answer).
        title: over it, wrapped.
        legend: how many tokens there are of each kind.

    Raises:
        ValueError: lengths that differ.
    """
    trained = [bool(flag) for flag in trained]
    if len(tokens) != len(trained):
        raise ValueError(f"There are {len(tokens)} tokens but {len(trained)} mask entries.")
    colours = {True: mix(PALETTE[1], "white", 0.62), False: "#e3e3e3"}
    lines = [_Line("", [])]
    for (token, flag), same in groupby(zip(tokens, trained)):
        n = sum(1 for _ in same)
        for text in [f"{_visible(token)} ×{n}"] if n >= 4 else [_visible(token)] * n:
            span = _Span(text, INK if flag else "#5a5a5a", colours[flag], boxed=True)
            lines[-1].atoms.append((span,))
            if "\n" in token:
                lines.append(_Line("", []))
    if not lines[-1].atoms:
        lines.pop()
    _fit(ax, "text", _MonoBlock(ax, lines).fit)
    if legend:
        n_trained = sum(trained)
        texts = [f"trained: {n_trained} tokens", f"not trained: {len(tokens) - n_trained} tokens"]
        legend_below(ax, texts, [colours[True], colours[False]])
    return set_title(ax, title, "left")


def show_trace(ax: Axes, tokens: Sequence[str], trace: Any, title: str | None = None) -> Axes:
    """The tokens of an answer in reading order, coloured by what each one cost.

    Args:
        ax: where to draw.
        tokens: the text of each token.
        trace: the answer's `t4s_helpers.decoding.constrained.Trace`.
        title: over it, wrapped.

    Raises:
        ValueError: lengths that differ.
    """
    if len(tokens) != len(trace.sources):
        raise ValueError(f"There are {len(tokens)} tokens but {len(trace.sources)} in the trace.")
    kinds = ["forced" if source == "forced" else "drafted" if drafted else "asked"
             for source, drafted in zip(trace.sources, trace.drafted)]
    colours = {"asked": mix(PALETTE[0], "white", 0.35), "drafted": mix(PALETTE[1], "white", 0.62),
               "forced": "#e3e3e3"}
    lines = [_Line("", [])]
    for token, kind in zip(tokens, kinds):
        ink = INK if kind != "forced" else "#5a5a5a"
        lines[-1].atoms.append((_Span(_visible(token), ink, colours[kind], boxed=True),))
        if "\n" in token:
            lines.append(_Line("", []))
    _fit(ax, "text", _MonoBlock(ax, [line for line in lines if line.atoms]).fit)
    texts = [f"{name}: {kinds.count(kind)}" for kind, name in (
        ("asked", "a pass each"), ("drafted", "guessed, confirmed"), ("forced", "forced"))]
    legend_below(ax, texts, list(colours.values()))
    return set_title(ax, title, "left")


def _visible(token: str) -> str:
    token = token.replace("\r", "").replace("\n", "↵").replace("\t", "⇥")
    if not token.strip(" "):
        return "␣" * len(token) or "∅"
    return printable(token, _MONO)


# ---------------------------------------------------------------------------------------------
# Numbers
# ---------------------------------------------------------------------------------------------


def bars(
    ax: Axes,
    groups: Sequence[str],
    series: Mapping[str, Sequence[float]],
    errors: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    *,
    ylabel: str = "",
    title: str | None = None,
    fmt: str = "{:.1f}",
    colours: Mapping[str, str] | None = None,
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
    pitch = 0.8 / len(series)
    texts = []
    for s, (name, values) in enumerate(series.items()):
        colour = (colours or {}).get(name) or label_colour(s + 2 if len(series) > 1 else 2)
        x = np.arange(len(groups)) + (s - (len(series) - 1) / 2) * pitch
        heights = np.asarray(values, float)
        ax.bar(x, np.nan_to_num(heights), 0.92 * pitch, color=colour, label=printable(name))
        bounds = np.array(errors[name], float) if name in errors else np.c_[heights, heights]
        if name in errors:
            away = np.maximum((bounds - heights[:, None]) * (-1, 1), 0).T
            ax.errorbar(x, heights, away, fmt="none", ecolor=INK, elinewidth=0.9, capsize=2)
        for at, value, (low, high) in zip(x, heights, bounds):
            written = "n/a" if math.isnan(value) else fmt.format(value)
            end = 0.0 if math.isnan(value) else (min(value, low) if value < 0 else max(value, high))
            texts.append(_bar_text(ax, at, end, written, value < 0))
    ax.axhline(0, color=FAINT, linewidth=0.8)
    ax.set_xlim(-0.55, len(groups) - 0.45)
    ax.set_xticks(range(len(groups)), [printable(name) for name in groups])
    ax.tick_params(axis="x", length=0)
    ax.grid(False, axis="x")
    ax.set_ylabel(ylabel)
    _fit(ax, "bars", _BarFit(ax, texts, [printable(g) for g in groups], pitch))
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


def _bar_text(ax: Axes, x: float, y: float, text: str, below: bool) -> Any:
    artist = ax.annotate(
        text, (x, y), (0, -2 if below else 2), textcoords="offset points", fontsize=8,
        ha="center", va="top" if below else "bottom", color=INK, annotation_clip=False,
    )
    artist.set_parse_math(False)
    artist.set_in_layout(False)
    return artist


class _BarFit:
    """Keeps the values of bars apart, inside the axes, and group names from touching."""

    def __init__(self, ax: Axes, texts: list, groups: list[str], pitch: float) -> None:
        self.ax, self.texts, self.groups, self.pitch = ax, texts, groups, pitch
        ends = [text.xy[1] for text in texts]
        self.low, self.high = min(0.0, *ends), max(0.0, *ends)
        self.size: tuple[float, float] | None = None

    def __call__(self, room: _Room) -> bool:
        if self.texts[0].axes is not self.ax:
            return False
        size = (round(room.width, 1), round(room.height, 1))
        if size != self.size:
            self.size = size
            unit = room.width / (len(self.groups) + 0.1)  # points between two groups
            self._fit_limits(room.height, self._fit_values(unit * self.pitch))
            self._fit_names(0.94 * unit)
        return True

    def _fit_values(self, room: float) -> float:
        """Smaller, then upright where a value is wider than its bar; returns their height."""
        longest = max((text.get_text() for text in self.texts), key=lambda t: _text_width(t, 8.0))
        font = next((f for f in (8.0, 7.0, 6.0) if _text_width(longest, f) <= room - 1), None)
        upright = font is None
        font = font or min(7.0, max(room, 4.0))
        for text in self.texts:
            text.set(fontsize=font, rotation=90 if upright else 0)
        return _text_width(longest, font) if upright else font

    def _fit_limits(self, height: float, text_height: float) -> None:
        share = min((text_height + 5) / height, 0.4)
        top, bottom = share, share if self.low < 0 else 0.0
        span = (self.high - self.low or 1.0) / (1 - top - bottom)
        self.ax.set_ylim(self.low - bottom * span, self.high + top * span)

    def _fit_names(self, room: float) -> None:
        labels = self.ax.get_xticklabels()
        font = labels[0].get_fontsize()
        words = [word for name in self.groups for word in name.split()]
        turned = any(_text_width(word, font) > room for word in words)
        for label, name in zip(labels, self.groups):
            label.set_text(name if turned else _wrap(name, room, font))
            label.set(rotation=35 if turned else 0, ha="right" if turned else "center")
            label.set(rotation_mode="anchor", parse_math=False)
        self.ax.set_xticks(range(len(self.groups)), [label.get_text() for label in labels])


def reliability(ax: Axes, curves: Mapping[str, Any], title: str | None = None) -> Axes:
    """Reliability diagram: how often it came true, by the probability that was stated.

    Args:
        ax: where to draw.
        curves: name -> `t4s_helpers.decoding.calibration.Calibration`. The area of a dot grows with the
            number of cells behind it; the legend gives each curve's expected calibration error.
        title: over it, wrapped.
    """
    ax.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle="--", zorder=1)
    for k, (name, found) in enumerate(curves.items(), 1):
        used = np.flatnonzero(found.n)
        colour = label_colour(k)
        ax.plot(found.stated[used], found.observed[used], color=colour, linewidth=1.4,
                label=f"{name}: error {100 * found.ece:.1f} %", zorder=2)
        area = 12 + 150 * np.sqrt(found.n[used] / found.n.sum())
        ax.scatter(found.stated[used], found.observed[used], s=area, color=colour, alpha=0.75,
                   edgecolors="white", linewidths=0.8, zorder=3)
    ax.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xlabel="probability stated", aspect="equal",
           ylabel="share that came true")
    ax.grid(True, axis="both")
    if curves:
        ax.legend(loc="upper left")
    return set_title(ax, title)


def legend_beside(ax: Axes) -> Axes:
    """The legend of the axes' own artists to the right of them, where it covers nothing."""
    handles, names = ax.get_legend_handles_labels()
    size = FontProperties(size=matplotlib.rcParams["legend.fontsize"]).get_size_in_points()
    legend = ax.legend(
        handles, [_wrap(name, 14 * size, size) for name in names], loc="upper left",
        bbox_to_anchor=(1.0, 1.0), frameon=False, handlelength=1.2, borderaxespad=0.3,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return ax


def smoothed(values: Sequence[float], weight: float) -> np.ndarray:
    """Exponential moving average without the usual pull towards the first value; float ``(N,)``.

    ``weight`` in [0, 1) is the share that the past keeps at each step. Values that are not finite
    are skipped: the average goes on from before them.

    >>> smoothed([4.0, 0.0], 0.5).round(3).tolist()
    [4.0, 1.333]
    """
    if not 0 <= weight < 1:
        raise ValueError(f"The smoothing weight must lie in [0, 1), got {weight}.")
    total = mass = 0.0
    result = []
    for value in np.asarray(values, float):
        if math.isfinite(value):
            total = weight * total + (1 - weight) * value
            mass = weight * mass + (1 - weight)
        result.append(total / mass if mass else math.nan)
    return np.array(result)


def loss_curve(
    ax: Axes,
    steps: Sequence[float],
    values: Sequence[float],
    smooth: float = 0.9,
    *,
    label: str = "loss",
    colour: str | None = None,
    xlabel: str = "step",
    ylabel: str = "loss",
    title: str | None = None,
) -> Axes:
    """A loss over the steps: each value faint, their moving average bold, the last in the legend.

    Call it again for a second curve in the same axes. Steps whose loss was not finite are marked
    at the bottom, so that a diverged run does not look like a short one.

    Args:
        ax: where to draw.
        steps, values: ``(N,)`` numbers.
        smooth: see :func:`smoothed`; 0 draws the values alone.
        label, colour: of this curve.
        xlabel, ylabel, title: texts.

    Raises:
        ValueError: lengths that differ, or no value.
    """
    steps, values = np.asarray(steps, float), np.asarray(values, float)
    if steps.shape != values.shape or steps.ndim != 1 or not len(steps):
        raise ValueError(
            f"A curve needs a value for each step, and one at least: {values.shape}, {steps.shape}."
        )
    colour = colour or label_colour(2 + len(ax.get_legend_handles_labels()[1]))
    line = smoothed(values, smooth)
    broken = ~np.isfinite(values)
    if smooth:
        ax.plot(steps, values, color=colour, alpha=0.3, linewidth=0.8)
    name = f"{printable(label)} (last {line[-1]:.3g})"
    dot = "o" if np.count_nonzero(~broken) == 1 else None  # one point makes no line
    ax.plot(
        steps, np.where(broken, np.nan, line), color=colour, linewidth=1.8, marker=dot, label=name
    )
    if broken.any():
        ax.plot(
            steps[broken], np.zeros(broken.sum()), "x", color=ALARM, clip_on=False,
            transform=ax.get_xaxis_transform(), label=f"not finite ({broken.sum()} steps)",
        )
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.locator_params(axis="x", nbins=5)  # counts of samples are long words
    _fit(ax, "legend", _clear_corner(ax))
    return set_title(ax, title)


def _clear_corner(ax: Axes) -> _FitFunction:
    """A legend in the upper right corner, and limits that keep the curves out from under it."""
    legend = ax.legend(loc="upper right", frameon=False, borderaxespad=0.2)
    texts = legend.get_texts()
    for text in texts:
        text.set_parse_math(False)
    size = texts[0].get_fontsize()
    wide = max(_text_width(text.get_text(), size) for text in texts) + 4 * size
    tall = 1.6 * size * len(texts) + 0.6 * size
    points = [line.get_xydata() for line in ax.lines if line.get_transform() == ax.transData]
    xs, ys = np.concatenate(points).T
    xs, ys = xs[np.isfinite(ys)], ys[np.isfinite(ys)]

    def fit(room: _Room) -> bool:
        if ax.get_legend() is not legend:
            return False
        if len(ys):
            left, right = ax.get_xlim()
            under = ys[xs >= right - (right - left) * min(wide / room.width, 1)]
            low, high = min(ys), max(ys)
            span = (high - low or 1.0) * 1.08
            free = 1 - min(tall / room.height, 0.6)
            if len(under):
                span = max(span, (max(under) - low) / free * 1.03)
            ax.set_ylim(low - 0.04 * span, low + span)
        return True

    return fit
