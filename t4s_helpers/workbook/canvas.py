"""One canvas for notebooks: a picture, what lies over it, and the text that says it.

:class:`Canvas` is an ipywidget whose front-end (``canvas.js``, plain JavaScript, and ``canvas.css``) does
all that has to be quick in the browser, so it goes on while the kernel works: drawing, the link between
cells and the runs of the text, painting, making a dropped picture smaller. It takes plain values, reports
what the reader does, and knows no model::

    canvas = Canvas(picture=png(pixels), grid=grid.tolist(), labels=["others", "the red star"])
    canvas.observe(lambda change: print("cell", change["new"]), "cell")

Elements of the page, for tests and styles: ``t4s-canvas`` (around everything; takes drops and pastes,
``t4s-dragged`` meanwhile), ``t4s-side``, ``t4s-picture`` (the canvas, ``data-cell`` is the cell pointed at;
arrow keys move it, Enter clicks), ``t4s-legend`` (``data-label``), ``t4s-swatch``, ``t4s-readout`` (the cell
in words), ``t4s-load`` and ``t4s-file`` (the file input), ``t4s-text`` (the text), in it ``t4s-run``
(``data-run``, its number), ``t4s-labelled``, ``t4s-lit`` (pointed at or selected) and ``t4s-fault``.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
from matplotlib.colors import to_rgb
from PIL import Image
from traitlets import Bool, Bytes, Dict, Float, Int, List, Unicode

from .plotting import label_colour

COLOURS = tuple(label_colour(k) for k in range(25))  # of labels, as in the notebooks' figures
LAYERS = ("grid", "mask", "outline", "confidence")
RASTER = 64  # cells a side of what is painted


class Canvas(anywidget.AnyWidget):
    """A picture with layers over it and its text beside it.

    Traits that the kernel sets; a grid is a list of rows, row 0 at the top:

    Attributes:
        picture: bytes of an image file, see `png`.
        grid: ints ``(rows, cols)``: 0 others, ``k`` is ``labels[k]``, -1 not written yet.
        labels: names by grid value, the first is "others".
        colours: CSS colours by grid value.
        mask: bytes of a PNG with an alpha channel, see `tinted`; drawn with ``opacity`` (0 to 1).
        outline: the same, drawn as it is, see `dashed`.
        confidence: floats ``(rows, cols)`` in [0, 1], or empty.
        shown: which of `LAYERS` are drawn. A painted mask is drawn always.
        runs: the text in parts, see `t4s_helpers.codec.parsing.read_runs`: dicts ``text``, ``label`` (-1: no
            run), ``cells`` (row-major numbers of the cells that it writes) and ``fault`` (a sentence or "").
        editable: the text can be edited, and ``text`` follows.
        accepts: pictures may be dropped, pasted or chosen, see `on_picture`.
        brush: value that the mouse paints into ``painted``; -1: it points instead.
        brush_size: diameter in cells of ``painted``.
        width: of the picture on the page, CSS pixels.
        alt: the picture in words, for readers who do not see it.
        message: what stands under the picture while no cell is pointed at.

    Traits that the reader sets:

    Attributes:
        cell, run: number of the cell and of the run pointed at, -1 for none.
        clicked: number of the cell clicked last, or -1.
        selected: number of the run that stays highlighted; the kernel may set it too.
        text: what stands in the text after an edit.
        painted: ints ``(rows, cols)`` of any size, first set by the kernel (`blank`).
    """

    _esm = Path(__file__).with_suffix(".js")
    _css = Path(__file__).with_suffix(".css")

    picture = Bytes().tag(sync=True)
    grid = List(List(Int())).tag(sync=True)
    labels = List(Unicode()).tag(sync=True)
    colours = List(Unicode(), COLOURS).tag(sync=True)
    mask = Bytes().tag(sync=True)
    opacity = Float(0.5, min=0, max=1).tag(sync=True)
    outline = Bytes().tag(sync=True)
    confidence = List(List(Float())).tag(sync=True)
    shown = List(Unicode(), LAYERS[:3]).tag(sync=True)
    runs = List(Dict()).tag(sync=True)
    editable = Bool(False).tag(sync=True)
    accepts = Bool(False).tag(sync=True)
    brush = Int(-1).tag(sync=True)
    brush_size = Int(3, min=1).tag(sync=True)
    width = Int(360).tag(sync=True)
    alt = Unicode("a picture").tag(sync=True)
    message = Unicode().tag(sync=True)

    cell = Int(-1).tag(sync=True)
    run = Int(-1).tag(sync=True)
    clicked = Int(-1).tag(sync=True)
    selected = Int(-1).tag(sync=True)
    text = Unicode().tag(sync=True)
    painted = List(List(Int())).tag(sync=True)

    def on_picture(self, take: Callable[[str, bytes, tuple[int, ...]], Any]) -> None:
        """Call ``take(name, content, size)`` with each picture that is dropped, pasted or chosen.

        ``content`` is an image file of at most 1024 pixels a side where the browser can read it, and
        ``size`` the (width, height) that it had before, empty where the browser could not.
        """
        def received(widget: Any, content: Any, buffers: Sequence[Any]) -> None:
            if isinstance(content, dict) and content.get("type") == "picture" and buffers:
                size = tuple(int(n) for n in content.get("size", ()))
                take(str(content.get("name", "picture")), bytes(buffers[0]), size)

        self.on_msg(received)

    def save(self, name: str, content: bytes) -> None:
        """Let the browser save a file."""
        self.send({"type": "save", "name": name}, [content])


def png(pixels: np.ndarray) -> bytes:
    """A uint8 picture ``(H, W)``, ``(H, W, 3)`` or ``(H, W, 4)`` as the bytes of a PNG file."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "png", compress_level=1)
    return content.getvalue()


def tinted(masks: np.ndarray) -> bytes:
    """Masks, bool ``(L, H, W)``, in the colours of their labels, for `Canvas.mask`; b"" if all are empty.

    Where masks overlap, the smaller one is on top.
    """
    if not np.any(masks):
        return b""
    picture = np.zeros((*masks.shape[1:], 4), np.uint8)
    for k in np.argsort(-masks.sum((1, 2)), stable=True):
        picture[masks[k]] = [*_rgb(COLOURS[1 + k % (len(COLOURS) - 1)]), 255]
    return png(picture)


def dashed(mask: np.ndarray) -> bytes:
    """The edge of a mask, bool ``(H, W)``, in black and white dashes, for `Canvas.outline`."""
    if not mask.any():
        return b""
    inside = np.pad(mask, 1)
    core = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    rows, cols = np.nonzero(mask & ~core)
    dash = max(2, max(mask.shape) // 48)
    picture = np.zeros((*mask.shape, 4), np.uint8)
    picture[rows, cols] = np.where(((rows + cols) // dash % 2)[:, None], [255] * 4, [0, 0, 0, 255])
    return png(picture)


def blank() -> list[list[int]]:
    """An empty raster to paint on."""
    return [[0] * RASTER for _ in range(RASTER)]


def _rgb(colour: str) -> list[int]:
    return [round(255 * part) for part in to_rgb(colour)]
