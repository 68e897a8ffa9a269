"""The playground: ask for something in a picture and see every stage of the answer.

``playground(backbone)`` shows it in any notebook. What happens is done by plain functions on plain
values, which notebooks and tests call as well::

    picture = scene_picture("test", 3)
    outcome = refine(ask_model(backbone, picture, "the red star"), load_refiner())
    draw_outcome(outcome)

:class:`Playground` only connects them with ipywidgets. It remembers what it has computed, so that
another view, or a request made before, costs a drawing and nothing else; and whatever a reader
types ends in an answer or in one sentence.
"""

from __future__ import annotations

import functools
import html
import io
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import ipywidgets
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from ..codec.encodings import Encoding, check_labels, fold, get_encoding
from ..codec.grid import mask_iou, masks_to_grid
from ..data import prompts
from ..data.expressions import GRES_KINDS, make_expression
from ..data.meaning import MeaningError, meaning
from ..data.photos import photo_samples
from ..data.sample import SampleError, read_image
from ..data.scenes import SPLITS, Scene, make_scene
from ..decoding.generate import Answer, ParsedAnswer, generate, parse_answer
from ..refine import NoRefiner, load_refiner
from .plotting import (
    STYLE, descriptor_html, draw_grid, outline, printable, show_descriptor, show_image, show_mask,
)

LONGEST_SIDE = 1024  # pixels of an own picture, which is made smaller; a SAM model sees no more anyway
LONGEST_EXPRESSION = 200  # characters; a longer text is no referring expression
PANELS = {  # view -> what stands side by side
    "everything": ("grid", "text", "coarse", "refined"),
    "text and grid": ("picture", "grid", "text"),
    "masks": ("picture", "coarse", "refined"),
}
# Who writes the text: the model, or the codec from the true mask, where that is known.
WRITERS = ("the model", "true mask")
SOURCES = ("scene", "photo", "own file")
# State of the widgets -> colour of the status line.
STATES = {"ready": "#555555", "busy": "#0072b2", "answered": "#00734f", "failed": "#b00020"}
_KEPT = 32  # requests whose outcomes are kept


class PlaygroundError(ValueError):
    """A request that cannot be met; the message says what to change."""


# --- pictures -----------------------------------------------------------------------------------


class Truth(NamedTuple):
    """What is known about the answer to an expression."""

    objects: np.ndarray | None  # bool (N, H, W), one mask per object that is meant; None: not known
    why: str = ""  # it is not known, a sentence

    known = property(lambda self: self.objects is not None, doc="There is a true mask, be it empty.")
    mask = property(lambda self: self.objects.any(axis=0) if self.known else None,
                    doc="bool ``(H, W)``: everything that is meant.")


@dataclass(frozen=True, eq=False)
class Picture:
    """Something to ask about."""

    name: str
    pixels: np.ndarray  # uint8 RGB (H, W, 3)
    scene: Scene | None = None  # where it is a rendered one; its grammar then knows the true masks
    answers: dict[str, np.ndarray] = field(default_factory=dict)
    """Expression -> bool ``(N, H, W)``, of pictures with outlines."""
    note: str = ""  # what to know about the picture, a sentence

    def truth(self, expression: str) -> Truth:
        """The true masks of an expression, or why they are not known."""
        if self.scene is not None:
            try:
                targets = meaning(self.scene, expression).targets
            except MeaningError as error:
                return Truth(None, str(error))
            masks = [self.scene.objects[k].mask for k in targets]
            return Truth(np.array(masks, bool).reshape(-1, *self.pixels.shape[:2]))
        for text, masks in self.answers.items():
            if fold(text).casefold() == fold(expression).casefold():
                return Truth(masks)
        return Truth(None, "This expression is none of those that outlines were drawn for."
                     if self.answers else "Nobody has drawn outlines on this picture.")


@functools.lru_cache(maxsize=32)
def scene_picture(split: str, index: int) -> Picture:
    """Scene ``index`` of ``split``; arguments and errors as in `make_scene`."""
    scene = make_scene(split, index)
    return Picture(f"scene {split} {index}", scene.image, scene)


@functools.lru_cache(maxsize=1)
def photo_pictures() -> Mapping[str, Picture]:
    """The photos that are bundled with scikit-image and have outlines, by name.

    Raises:
        SampleError: the photos cannot be read.
    """
    pictures: dict[str, Picture] = {}
    for sample in photo_samples():
        name = sample.meta["photo"]
        if name not in pictures:
            pictures[name] = Picture(f"photo {name}", sample.pixels())
        pictures[name].answers[sample.labels[0]] = sample.instances()[0]
    return pictures


def file_picture(path: str | Path) -> Picture:
    """A picture of the reader's own, at most `LONGEST_SIDE` pixels long.

    Raises:
        PlaygroundError: no path is given.
        SampleError: missing, truncated, not an image; the message names the file.
    """
    if not str(path).strip():
        raise PlaygroundError("Give the path of an image file, or upload one.")
    path = Path(str(path).strip()).expanduser()
    image = Image.fromarray(read_image(path))
    width, height = image.size
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    note = "The picture was made smaller, from {} x {} to {} x {} pixels.".format(width, height, *image.size)
    return Picture(path.name, np.asarray(image), note=note if image.size != (width, height) else "")


def uploaded_picture(name: str, content: bytes) -> Picture:
    """A picture from the bytes of an uploaded file; errors as in `file_picture`, naming it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / (Path(name.replace("\\", "/")).name or "upload")
        path.write_bytes(bytes(content))
        try:
            return file_picture(path)
        except SampleError as error:
            raise SampleError(str(error).replace(str(path), path.name)) from error


def suggestions(picture: Picture, seed: int = 0) -> tuple[str, ...]:
    """Expressions whose answer is known, for a reader to start from; none for an own picture.

    For a scene one of each kind that it lends itself to, the single target first, no target last.
    """
    if picture.scene is None:
        return tuple(picture.answers)
    rng = np.random.default_rng([seed, 9])
    drawn = (make_expression(rng, picture.scene, (kind,)).text for kind in GRES_KINDS)
    return tuple(dict.fromkeys(drawn))


# --- asking -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Outcome:
    """One request with everything that came of it."""

    picture: Picture
    turn: prompts.Turn  # worded for the model; its one label is the expression, trimmed
    writer: str  # one of WRITERS
    model: str  # name of the backbone, empty where it wrote nothing
    answer: Answer  # 0 tokens where nobody counted
    parsed: ParsedAnswer  # its grid, coarse masks, and what the parser had to repair
    truth: Truth
    refiner: str = "none"  # before or without one
    refined: np.ndarray | None = None  # bool (H, W), None without a refiner
    fallback: bool = False  # the refiner's mask left the coarse one behind, which was kept
    refine_seconds: float = 0.0

    expression = property(lambda self: self.turn.labels[0])
    grid = property(lambda self: self.parsed.grid, doc="int32 ``(rows, cols)``, 1 the expression.")
    coarse = property(lambda self: self.parsed.masks[0], doc="bool ``(H, W)``, the grid's cells.")
    report = property(lambda self: self.parsed.report)
    mask = property(lambda self: self.coarse if self.refined is None else self.refined,
                    doc="The final mask: the refined one where there is one.")

    def iou(self, mask: np.ndarray) -> float | None:
        """IoU of a mask with the truth, ``None`` where that is not known.

        As in `t4s_helpers.evaluation.metrics.SegmentationMetric`, an answer that could not be read
        is no rejection: without a target it earns nothing.
        """
        if not self.truth.known:
            return None
        if self.report.malformed and not self.truth.mask.any():
            return 0.0
        return mask_iou(mask, self.truth.mask)


def check_expression(expression: str, tokenizer: Any = None) -> str:
    """The expression on one line and trimmed, if it can be asked about.

    What the text format gives a meaning (``|``, ``*3``, ``<seg>``) may stand in it: the codec
    escapes that. The ``tokenizer`` is that of the model that will read it.

    Raises:
        PlaygroundError: empty, too long, or with a control token of the model.
        DescriptorError: the reserved word "others", or text that is not Unicode.

    >>> check_expression("  the red  star ")
    'the red star'
    """
    text = " ".join(expression.split())
    if not text:
        raise PlaygroundError("The expression is empty: say what to look for.")
    if len(text) > LONGEST_EXPRESSION:
        raise PlaygroundError(f"The expression has {len(text)} characters: say it in at most "
                              f"{LONGEST_EXPRESSION}.")
    check_labels([text])
    for token in getattr(tokenizer, "all_special_tokens", ()):
        if token and token in text:
            raise PlaygroundError(f"The expression holds {token!r}, which steers the model: "
                                  "leave it out.")
    return text


def ask_model(
    backbone: Any, picture: Picture | np.ndarray, expression: str,
    encoding: Encoding | None = None, history: Sequence[prompts.Turn] = (), **options: Any,
) -> Outcome:
    """Ask a backbone for what an expression names.

    Args:
        backbone: a `t4s_helpers.model.backbones.Backbone`.
        picture: a `Picture`, or uint8 pixels ``(H, W, 3)``.
        expression: what to look for.
        encoding: of the text, as the adapter was trained; R-RLE of 16 x 16 cells by default.
        history: answered turns about the same picture that come before the question.
        options: for `t4s_helpers.decoding.generate.generate`.

    Raises:
        PlaygroundError, DescriptorError: see `check_expression`.
    """
    picture = picture if isinstance(picture, Picture) else Picture("picture", picture)
    expression = check_expression(expression, backbone.encoder.tokenizer)
    encoding = encoding or get_encoding()
    turn = prompts.Turn(prompts.question("res", [expression]), labels=(expression,))
    answer = generate(backbone, [picture.pixels], [[*history, turn]], encoding, **options)[0]
    parsed = parse_answer(answer.text, turn.labels, picture.pixels.shape[:2], encoding)
    return Outcome(picture, turn, WRITERS[0], backbone.spec.name, answer, parsed,
                   picture.truth(expression))


def write_truth(
    picture: Picture, expression: str, encoding: Encoding | None = None, style: str = "box",
    encoder: Any = None,
) -> Outcome:
    """The answer that a perfect model would write, read back as any other answer.

    Every object of the true mask keeps at least one cell (`masks_to_grid` with its rule ``area``).

    Args:
        picture, expression, encoding: as in `ask_model`.
        style: of the answer's sentence, one of `t4s_helpers.data.prompts.SENTENCES`.
        encoder: the backbone's, to count tokens with; ``None`` counts none.

    Raises:
        PlaygroundError: the true mask is not known; the message says why. See also
            `check_expression`.
    """
    expression = check_expression(expression, encoder and encoder.tokenizer)
    truth = picture.truth(expression)
    if not truth.known:
        raise PlaygroundError(f"The true mask of {expression!r} is not known. {truth.why}")
    start = time.perf_counter()
    encoding = encoding or get_encoding()
    # Without an object there is nothing to keep visible: one empty mask is the whole request.
    objects = truth.objects if len(truth.objects) else truth.mask[None]
    grid = masks_to_grid(objects, encoding.grid_size, "area", np.zeros(len(objects), int))
    pieces = prompts.answer(grid, [expression], encoding, style, truth.mask)
    seconds = time.perf_counter() - start
    tokens = 1 + sum(len(encoder.piece_ids(piece)) for piece in pieces) if encoder else 0
    turn = prompts.Turn(prompts.question("res", [expression]), pieces, (expression,))
    answer = Answer(turn.text, tokens, True, seconds)
    parsed = parse_answer(turn.text, turn.labels, truth.mask.shape, encoding)
    return Outcome(picture, turn, WRITERS[1], "", answer, parsed, truth)


def refine(outcome: Outcome, refiner: Any, seed: int = 0) -> Outcome:
    """The outcome with its coarse mask refined by one of `load_refiner`; ``none`` takes that away.

    ``seed`` is of the points that a refiner draws.
    """
    if isinstance(refiner, NoRefiner) or not outcome.coarse.any():  # no reason to look at the picture
        refined = None if isinstance(refiner, NoRefiner) else outcome.coarse
        return replace(outcome, refiner=refiner.name, refined=refined, fallback=False, refine_seconds=0.0)
    start = time.perf_counter()
    done = refiner.set_image(outcome.picture.pixels).refine(outcome.coarse[None], seed=seed)
    return replace(outcome, refiner=refiner.name, refined=done.masks[0], fallback=bool(done.fallback[0]),
                   refine_seconds=time.perf_counter() - start)


# --- saying and showing -------------------------------------------------------------------------


def describe(outcome: Outcome) -> list[str]:
    """What came of a request, in sentences: cost, format, agreement with the truth, warnings."""
    told = [_cost(outcome), outcome.report.summary(), _agreement(outcome)]
    if outcome.report.malformed and not outcome.coarse.any():
        told.append("The mask is empty, but the text is malformed: that does not count as saying "
                    "that nothing is there.")
    if outcome.fallback:
        told.append(f"The mask of {outcome.refiner} left the coarse one behind, so the coarse one "
                    "was kept.")
    if outcome.model == "embedded" and outcome.picture.scene is None:
        told.append("The embedded model was trained on drawn scenes alone: on any other picture "
                    "its answer is a guess, however tidy its text looks.")
    return [*told, outcome.picture.note] if outcome.picture.note else told


def _cost(outcome: Outcome) -> str:
    tokens = f"{outcome.answer.n_tokens} tokens"
    if outcome.writer == WRITERS[0]:
        said = f"The {outcome.model} model wrote {tokens} in {outcome.answer.seconds:.1f} s"
        said += "" if outcome.answer.finished else " and was stopped at the limit"
    else:
        counted = f", {tokens}" if outcome.answer.n_tokens else ""
        said = f"This text was written from the true mask{counted}; no model was asked"
    if outcome.refined is not None and outcome.coarse.any():
        said += f"; {outcome.refiner} took {outcome.refine_seconds:.1f} s"
    return f"{said}."


def _agreement(outcome: Outcome) -> str:
    if not outcome.truth.known:
        return f"Whether the mask is right cannot be scored. {outcome.truth.why}"
    if outcome.truth.mask.any():
        scores = f"{outcome.iou(outcome.coarse):.2f} for the coarse mask"
        if outcome.refined is not None:
            scores += f" and {outcome.iou(outcome.refined):.2f} for the refined one"
        missed = outcome.iou(outcome.mask) < 0.5
        return f"IoU with the true mask: {scores}" + ("; the target is missed." if missed else ".")
    said = "Nothing in the picture fits the expression"
    if outcome.coarse.any():
        return f"{said}, yet the answer marks something."
    return f"{said}." if outcome.report.malformed else f"{said}, and the answer says so: right."


def draw_outcome(
    outcome: Outcome, view: str = "everything", true_outline: bool = True,
    figure: Figure | None = None, notes: bool = False,
) -> Figure:
    """Picture, text, grid and masks of a request side by side under its question.

    Args:
        outcome: what to show.
        view: a key of `PANELS`. The refined mask is left out where there is none.
        true_outline: dash the outline of the true mask, where it is known, over the masks.
        figure: an empty one to draw into; ``None`` makes one with pyplot.
        notes: write the sentences of `describe` under the panels.

    Raises:
        PlaygroundError: an unknown view.
    """
    from matplotlib import pyplot

    if view not in PANELS:
        raise PlaygroundError(f"There is no view {view!r}: choose {', '.join(PANELS)}.")
    panels = [p for p in PANELS[view] if p != "refined" or outcome.refined is not None]
    with matplotlib.rc_context(STYLE):
        figure = figure or pyplot.figure()
        told = [printable(line) for line in describe(outcome)] if notes else []
        height, width = outcome.picture.pixels.shape[:2]
        figure.set_size_inches(3.2 * len(panels), 1.6 + 3.0 * min(max(height / width, 0.75), 1.5)
                               + 0.2 * len(told))
        figure.set_layout_engine("constrained")
        look = {"x": 0.01, "ha": "left", "wrap": True, "parse_math": False}
        figure.suptitle(printable(f"{outcome.picture.name}: {outcome.turn.question}"), fontsize=11, **look)
        if told:
            figure.supxlabel("\n".join(told), fontsize=9, **look)
        for ax, panel in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
            _draw_panel(ax, panel, outcome, true_outline)
    return figure


def _draw_panel(ax: Any, panel: str, outcome: Outcome, true_outline: bool) -> None:
    pixels, labels = outcome.picture.pixels, outcome.turn.labels
    if panel == "picture":
        show_image(ax, pixels, "the picture")
    elif panel == "grid":
        draw_grid(ax, pixels, outcome.grid, labels, "the grid, {} x {}".format(*outcome.grid.shape))
    elif panel == "text":
        name = "the text" if outcome.writer == WRITERS[0] else "the true text"
        count = f", {outcome.answer.n_tokens} tokens" if outcome.answer.n_tokens else ""
        show_descriptor(ax, outcome.answer.text, labels, name + count)
    else:
        mask = outcome.refined if panel == "refined" else outcome.coarse
        name = outcome.refiner if panel == "refined" else "coarse mask"
        show_mask(ax, pixels, mask, title=name + _verdict(outcome, mask))
        if true_outline and outcome.truth.known:
            outline(ax, outcome.truth.mask, "#ffffff", width=1.0, dashed=True)


def _verdict(outcome: Outcome, mask: np.ndarray) -> str:
    """The end of a mask's title."""
    if mask.any() and outcome.truth.known and not outcome.truth.mask.any():
        return ", nothing to find"
    if not mask.any():
        return ", empty" + (" (malformed)" if outcome.report.malformed else "")
    score = outcome.iou(mask)
    return "" if score is None else f", IoU {score:.2f}"


def as_png(figure: Figure, dpi: int = 90) -> bytes:
    """The figure as the bytes of a PNG file."""
    return _png(figure.savefig, dpi=dpi, bbox_inches="tight")


def _png(save: Callable[..., Any], **options: Any) -> bytes:
    content = io.BytesIO()
    save(content, format="png", **options)
    return content.getvalue()


def sentence(error: BaseException) -> str:
    """An error in one line that a reader can act on; never a traceback."""
    text = " ".join(str(error).split())
    if len(text) > 400:
        text = f"{text[:399]}…"
    elif text:
        text = text[0].upper() + text[1:] + ("" if text[-1] in ".!?…" else ".")
    ours = type(error).__module__.startswith("t4s_helpers.")
    if text and (ours or isinstance(error, OSError)):
        return text
    return (f"Something unexpected went wrong ({type(error).__name__}"
            f"{text and ': '}{text.rstrip('.')}); playground.failure holds the whole story.")


# --- the widgets --------------------------------------------------------------------------------


def playground(backbone: Any, **options: Any) -> Playground:
    """Show the playground under a notebook's cell; options as in :class:`Playground`.

    In an executed copy, without a kernel behind it, the widgets are a line of text.
    """
    from IPython.display import display

    shown = Playground(backbone, **options)
    display(shown.panel)
    return shown


class Playground:
    """Widgets around `ask_model`, `write_truth`, `refine` and `draw_outcome`.

    A program uses the same widgets as a reader: it sets their values and clicks, or calls
    :meth:`request`.

    Args:
        backbone: a `t4s_helpers.model.backbones.Backbone`.
        refiners: names to choose from, the first one is chosen.
        encoding, style: of the text, as the adapter was trained.
        seed: of suggestions and of the refiner's points.
        split: of the first scene.
        load: makes a refiner of its name, when it is first needed.

    Attributes:
        panel: the widget to display.
        controls: name -> widget, of what can be chosen.
        picture: what is chosen, ``None`` where the choice cannot be shown.
        outcome: what is shown, ``None`` before the first answer about a picture.
        message: what the status line says, as plain text.
        state: one of `STATES`; after ``failed`` the next request starts afresh.
        failure: the error behind the last sentence, for who wants its traceback.
        written: number of texts that were written so far; a view or a refiner adds none.
    """

    def __init__(
        self, backbone: Any, refiners: Sequence[str] = ("mobile_sam", "none"),
        encoding: Encoding | None = None, style: str = "box", seed: int = 0, split: str = "test",
        load: Callable[[str], Any] = load_refiner,
    ) -> None:
        self.backbone, self.load, self.seed = backbone, load, seed
        self.encoding, self.style = encoding or get_encoding(), style
        self.picture: Picture | None = None
        self.outcome: Outcome | None = None
        self.failure: BaseException | None = None
        self.state, self.message, self.written = "ready", "", 0
        self._asking = False
        # A picture is loaded once while it is chosen, so requests are remembered by the object.
        self._written = functools.lru_cache(_KEPT)(self._write)
        self._refined = functools.lru_cache(2 * _KEPT)(self._refine)
        self._make_widgets(refiners, split)
        for react, names in ((self._choose_picture, ("source", "split", "index", "photo", "path")),
                             (self._show_again, ("refiner", "view", "true_outline"))):
            for name in names:
                self.controls[name].observe(react, "value")
        self.upload.observe(self._choose_upload, "value")
        self.button.on_click(self._ask)
        self._choose_picture()

    def request(self, **choices: Any) -> Outcome | None:
        """Set widgets by name and ask, as a reader would: ``request(index=3, expression="…")``.

        Names: source, split, index, photo, path, expression, writer, refiner, view, true_outline.

        Returns:
            the outcome, or ``None`` where the status line says what went wrong.

        Raises:
            PlaygroundError: a name that no widget has, or a value that it does not offer.
        """
        self._asking = True  # a refiner chosen on the way is for the coming answer alone
        try:
            for name, value in choices.items():
                self._set(name, value)
        finally:
            self._asking = False
        self.button.click()
        return self.outcome if self.state == "answered" else None

    def _set(self, name: str, value: Any) -> None:
        if name not in self.controls:
            raise PlaygroundError(f"There is no control {name!r}: choose {', '.join(self.controls)}.")
        control = self.controls[name]
        refused = PlaygroundError(f"The control {name!r} does not take {value!r}.")
        try:
            control.value = value
        except Exception as error:  # traitlets' own texts speak of traits and instances
            raise refused from error
        if control.value != value:  # a number outside the range was moved into it
            raise refused

    def _make_widgets(self, refiners: Sequence[str], split: str) -> None:
        w, box, row = ipywidgets, ipywidgets.VBox, ipywidgets.HBox
        wide = {"layout": w.Layout(width="32em")}
        typed, toggled = wide | {"continuous_update": False}, wide | {"style": {"button_width": "7em"}}
        self.controls: dict[str, Any] = {
            "source": w.ToggleButtons(options=SOURCES, description="picture", **toggled),
            "split": w.Dropdown(options=list(SPLITS), value=split, description="split"),
            "index": w.BoundedIntText(value=0, min=0, max=10**6, description="scene"),
            "photo": w.Dropdown(options=list(photo_pictures()), description="photo"),
            "path": w.Text(description="file", placeholder="/path/to/picture.jpg", **typed),
            "expression": w.Combobox(description="expression", placeholder="the red star", **typed),
            "writer": w.ToggleButtons(options=WRITERS, description="text by", **toggled),
            "refiner": w.Dropdown(options=list(dict.fromkeys(refiners)), description="refiner"),
            "view": w.Dropdown(options=list(PANELS), description="view"),
            "true_outline": w.Checkbox(value=True, description="dash the true outline"),
        }
        self.upload = w.FileUpload(accept="image/*", multiple=False, description="upload")
        self.button = w.Button(description="Ask", button_style="primary")
        self.status, self.notes, self.text = w.HTML(), w.HTML(), w.HTML()
        self.preview = w.Image(format="png", layout=w.Layout(width="240px"))
        self.image = w.Image(format="png", layout=w.Layout(max_width="100%"))
        c = self.controls
        self._sources = {  # source -> its widgets, and how its picture is loaded
            "scene": (row([c["split"], c["index"]]),
                      lambda: scene_picture(c["split"].value, c["index"].value)),
            "photo": (row([c["photo"]]), lambda: photo_pictures()[c["photo"].value]),
            "own file": (row([c["path"], self.upload]), self._own_picture),
        }
        asking = box([c["source"], *(place for place, _ in self._sources.values()), c["expression"],
                      c["writer"], c["refiner"], self.button])
        raw = w.Accordion(children=[self.text], titles=("the text as it was written",))
        self.panel = box([row([asking, self.preview]), self.status,
                          row([c["view"], c["true_outline"]]), self.image, self.notes, raw])

    # -- reacting: to a change of widgets, or to a click

    def _choose_picture(self, change: Any = None) -> None:
        """Load and show the chosen picture; an answer about another one is taken away."""
        source = self.controls["source"].value
        for name, (place, _) in self._sources.items():
            place.layout.display = "flex" if name == source else "none"
        self.picture = self.outcome = None
        self._put(self.preview, b"")
        self._put(self.image, b"")
        self.notes.value = self.text.value = ""
        self.controls["expression"].options = ()
        if source == SOURCES[2] and not self.controls["path"].value.strip():
            self._tell("ready", "Give the path of an image file, or upload one.")
            return
        with self._working("reading the picture"):
            self.picture = self._load_picture()
            self._put(self.preview, _png(Image.fromarray(self.picture.pixels).save))
            self.controls["expression"].options = suggestions(self.picture, self.seed)
            self._tell("ready", f"Ask for something in {self.picture.name}.")

    def _choose_upload(self, change: Any) -> None:
        if isinstance(self.upload.value, Mapping):
            self._tell("failed", "Uploads need ipywidgets 8, and this is an older one: give the path of the "
                       "file, or update ipywidgets and restart the kernel.")
        for file in self._uploads():
            self.controls["path"].value = _path_of(file)
            self.controls["source"].value = SOURCES[2]
            self._choose_picture()  # another file of the same name changes no widget

    def _show_again(self, change: Any) -> None:
        if self.outcome is not None and not self._asking:
            with self._working("showing the answer"):
                self._answer(self.outcome.picture, self.outcome.expression, self.outcome.writer)

    def _ask(self, button: Any) -> None:
        with self._working("writing the answer"):
            if self.picture is None:
                self.picture = self._load_picture()  # tells again what is wrong with the choice
            self._answer(self.picture, self.controls["expression"].value,
                         self.controls["writer"].value)

    @contextmanager
    def _working(self, doing: str) -> Iterator[None]:
        """Show that work goes on; whatever happens, end in a state that takes the next request."""
        self._tell("busy", f"Working: {doing} …")
        try:
            yield
        except Exception as error:
            self.failure = error
            left = " Below is still the answer before." if self.outcome is not None else ""
            self._tell("failed", sentence(error) + left)
        finally:
            if self.state == "busy":  # also when the reader interrupts the kernel
                self._tell("failed", "Stopped before the end: ask again.")

    def _tell(self, state: str, message: str) -> None:
        self.state, self.message = state, message
        self.status.value = f'<span style="color:{STATES[state]}">{html.escape(message)}</span>'
        self.button.disabled = state == "busy"
        self.button.icon = "spinner" if state == "busy" else ""

    @staticmethod
    def _put(place: Any, png: bytes) -> None:
        """Show a picture; a browser draws an empty one as a broken one, so that is hidden."""
        place.value, place.layout.display = png, "block" if png else "none"

    # -- doing

    def _load_picture(self) -> Picture:
        return self._sources[self.controls["source"].value][1]()

    def _uploads(self) -> Sequence[Mapping[str, Any]]:
        """The uploaded files; none where ipywidgets 7 has them in a dict."""
        return () if isinstance(self.upload.value, Mapping) else self.upload.value

    def _own_picture(self) -> Picture:
        path = self.controls["path"].value
        for file in self._uploads():
            if path == _path_of(file):
                return uploaded_picture(file["name"], file["content"])
        return file_picture(path)

    def _answer(self, picture: Picture, expression: str, writer: str) -> None:
        expression = check_expression(expression, self.backbone.encoder.tokenizer)
        self.outcome = self._refined(picture, expression, writer, self.controls["refiner"].value)
        view, dashed = self.controls["view"].value, self.controls["true_outline"].value
        self._put(self.image, as_png(draw_outcome(self.outcome, view, dashed, Figure())))
        told = "".join(f"<li>{html.escape(line)}</li>" for line in describe(self.outcome))
        self.notes.value = f"<ul>{told}</ul>"
        self.text.value = descriptor_html(self.outcome.answer.text, self.outcome.turn.labels).data
        self._tell("answered", f"{self.outcome.turn.question} Answered, see below.")

    def _write(self, picture: Picture, expression: str, writer: str) -> Outcome:
        self.written += 1
        if writer == WRITERS[0]:
            return ask_model(self.backbone, picture, expression, self.encoding, progress=False)
        return write_truth(picture, expression, self.encoding, self.style, self.backbone.encoder)

    def _refine(self, picture: Picture, expression: str, writer: str, name: str) -> Outcome:
        return refine(self._written(picture, expression, writer), self.load(name), self.seed)


def _path_of(file: Mapping[str, Any]) -> str:
    """What stands as the path of an uploaded file."""
    return f"{file['name']} (uploaded)"
