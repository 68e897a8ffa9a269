"""Explorers: change one thing with the mouse and see what follows; no model runs.

An explorer shows itself at the end of a cell. Where no kernel runs, in an executed copy or in the book, a
figure stands in its place.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from typing import Any

import ipywidgets
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from pycocotools import mask as rle

from ..codec.encodings import PAPER_ENCODINGS, get_encoding
from ..codec.grid import mask_iou, masks_to_grid
from ..codec.parsing import read_runs
from ..data.sample import Sample
from ..decoding.generate import parse_answer
from ..model.chat import count_tokens, load_tokenizer
from .asking import as_png
from .canvas import RASTER, Canvas, blank, png
from .plotting import bars, draw_grid, outline, show_descriptor, show_mask

DPI = 80  # of the figures
TRUE = "true mask"  # a writer, beside "model"


class Explorer:
    """A ``panel`` of ipywidgets, and `still`, the figure for where no kernel runs."""

    panel: ipywidgets.Widget

    def still(self) -> Figure:
        raise NotImplementedError

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """Both in one output: JupyterLab takes the widget, a page without a kernel the picture."""
        picture = base64.b64encode(as_png(self.still(), DPI)).decode()
        return self.panel._repr_mimebundle_() | {"image/png": picture}


# --- a mask of one's own ------------------------------------------------------------------------------


class MaskExplorer(Explorer):
    """Paint a mask with the mouse: the grid, the three texts and their tokens follow.

    Args:
        sample: the picture, its first label, and the mask to begin with; from any data set.
        grid_size: cells a side to begin with, 2 to 64.
        tokenizer: counts the tokens; by default that of the embedded model.
    """

    def __init__(self, sample: Sample, grid_size: int = 16, tokenizer: Any = None):
        self.sample, self.label = sample, sample.labels[0]
        self.tokenizer = tokenizer or load_tokenizer("embedded")
        w = ipywidgets
        self.canvas = Canvas(
            picture=png(sample.pixels()), labels=["others", self.label], shown=["grid"], brush=1,
            opacity=0.35, painted=masks_to_grid(sample.masks[:1], RASTER, "nearest").tolist(),
            alt=f"the picture to paint on; the mask to begin with is that of {self.label}",
            message="Paint with the mouse; point at a cell or at the text to see what belongs together.")
        self.side = w.IntSlider(grid_size, 2, 64, description="grid side")
        self.brush = w.ToggleButtons(options={"paint": 1, "erase": 0}, style={"button_width": "5em"})
        self.width = w.IntSlider(4, 1, 16, description="brush")
        self.clear = w.Button(description="clear", layout=w.Layout(width="5em"))
        self.table = w.HTML()
        w.link((self.brush, "value"), (self.canvas, "brush"))
        w.link((self.width, "value"), (self.canvas, "brush_size"))
        self.clear.on_click(lambda button: self.canvas.set_trait("painted", blank()))
        self.canvas.observe(self._follow, "painted")
        self.side.observe(self._follow, "value")
        tools = w.HBox([self.side, self.brush, self.width, self.clear])
        self.panel = w.VBox([tools, self.canvas, self.table])
        self.panel.add_class("t4s-mask-explorer")
        self._follow()

    def _follow(self, change: Any = None) -> None:
        self.grid = masks_to_grid(np.array(self.canvas.painted)[None] > 0, self.side.value)
        self.texts = {name: get_encoding(name, self.side.value).encode(self.grid, [self.label])
                      for name in PAPER_ENCODINGS}
        self.tokens = {name: count_tokens(self.tokenizer, text) for name, text in self.texts.items()}
        with self.canvas.hold_sync():  # grid and runs arrive together
            self.canvas.grid = self.grid.tolist()
            self.canvas.runs = [run._asdict() for run in read_runs(
                self.texts["rrle"], [self.label], get_encoding("rrle", self.side.value))]
        rows = (f"<tr><th>{name}</th><td>{self.tokens[name]} tokens</td><td>{len(text)} characters</td><td>"
                f'<pre style="max-height:5em;max-width:44em;overflow:auto;white-space:pre-wrap;margin:0">'
                f"{html.escape(text)}</pre></td></tr>" for name, text in self.texts.items())
        self.table.value = f'<table style="text-align:left">{"".join(rows)}</table>'

    def still(self) -> Figure:
        figure = Figure(figsize=(12, 4), layout="constrained")
        picture, text, costs = figure.subplots(1, 3, width_ratios=(1, 1.5, 0.8))
        draw_grid(picture, self.sample.pixels(), self.grid, [self.label], f"{self.side.value} cells a side")
        show_descriptor(text, self.texts["rrle"], [self.label], "rrle", beside=picture, label_width=14)
        bars(costs, list(self.tokens), {"tokens": list(self.tokens.values())}, ylabel="tokens", fmt="{:.0f}")
        return figure


# --- the ablation's answers ---------------------------------------------------------------------------


class AblationExplorer(Explorer):
    """Choose grid, encoding and refiner, and see the same pictures change.

    Args:
        answers: rows of `t4s_helpers.lab.ablations.measure.gallery`, as saved in ``answers.json``.
        samples: those that the rows are about.

    Raises:
        ValueError: a row is about none of the samples.
    """

    def __init__(self, answers: pd.DataFrame | Sequence[Mapping[str, Any]], samples: Sequence[Sample]):
        self.samples = {sample.id: sample for sample in samples}
        self.rows: dict[tuple, dict[str, Mapping[str, Any]]] = {}
        for row in pd.DataFrame(answers).to_dict("records"):
            if row["id"] not in self.samples:
                raise ValueError(f"There is an answer about {row['id']!r}, which is none of these pictures: "
                                 "load the samples that the notebook asked about.")
            case = row["writer"], row["encoding"], row["grid"], row["refiner"]
            self.rows.setdefault(case, {})[row["id"]] = row
        w, choices = ipywidgets, [sorted({case[k] for case in self.rows}, key=str) for k in range(4)]
        self.controls = {name: w.ToggleButtons(options=choices[k], description=name,
                                               style={"button_width": "7em"})
                         for k, name in enumerate(("writer", "encoding", "grid", "refiner"))}
        for name, usual in (("writer", "model"), ("encoding", "rrle"), ("grid", 16), ("refiner", "none")):
            if usual in self.controls[name].options:
                self.controls[name].value = usual
        self.image, self.told, self._pictures = w.Image(format="png"), w.HTML(), {}
        for control in self.controls.values():
            control.observe(self._follow, "value")
        choosing = w.HBox(list(self.controls.values()), layout=w.Layout(flex_flow="row wrap"))
        self.panel = w.VBox([choosing, self.told, self.image])
        self.panel.add_class("t4s-ablation-explorer")
        self._follow()

    @property
    def case(self) -> tuple[str, str, int, str]:
        """What is chosen; on true masks every encoding says the same, so one stands for all."""
        writer, encoding, grid, refiner = (control.value for control in self.controls.values())
        return writer, "rrle" if writer == TRUE else encoding, grid, refiner

    def masks(self) -> dict[str, np.ndarray]:
        """Sample id -> bool ``(H, W)`` of the chosen case; empty where nothing was trained for it."""
        return {key: final_mask(row, self.samples[key]) for key, row in self.rows.get(self.case, {}).items()}

    def _follow(self, change: Any = None) -> None:
        self.controls["encoding"].disabled = self.case[0] == TRUE
        found = {key: mask_iou(mask, self.samples[key].masks[0]) for key, mask in self.masks().items()}
        self.told.value = (
            f"Mean IoU of these {len(found)} pictures: <b>{np.mean(list(found.values())):.3f}</b>. The tint "
            "is the answer, the dashed line the truth." if found else
            "Not trained: no adapter writes this. That is no result, good or bad.")
        if self.case not in self._pictures:
            self._pictures[self.case] = as_png(self.still(), DPI) if found else b""
        self.image.value = self._pictures[self.case]
        self.image.layout.display = "block" if found else "none"

    def still(self) -> Figure:
        masks, columns = self.masks(), 6
        rows = max(1, -(-len(masks) // columns))
        figure = Figure(figsize=(2.2 * columns, 2.6 * rows), layout="constrained")
        for ax in (places := figure.subplots(rows, columns, squeeze=False).ravel()):
            ax.set_axis_off()
        for ax, (key, mask) in zip(places, masks.items()):
            sample = self.samples[key]
            show_mask(ax, sample.pixels(), mask,
                      title=f"{sample.labels[0]}\nIoU {mask_iou(mask, sample.masks[0]):.2f}")
            outline(ax, sample.masks[0], "#222222", dashed=True)
        figure.suptitle("{}, {}, {} cells a side, refiner {}".format(*self.case))
        return figure


def final_mask(row: Mapping[str, Any], sample: Sample) -> np.ndarray:
    """The mask of an answer, bool ``(H, W)``: the refined one where there is one, else the text's cells."""
    if row["refiner"] != "none":
        return rle.decode({"size": sample.size, "counts": row["mask"]}).astype(bool)
    encoding = get_encoding(row["encoding"], row["grid"])
    return parse_answer(row["text"], sample.labels, sample.size, encoding).masks[0]
