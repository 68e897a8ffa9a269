"""Asking about a picture, stage by stage: plain functions on plain values, under the playground.

A request is worded, answered by a model (or by the codec, from the true mask), read, refined, and told::

    picture = scene_picture("test", 3)
    outcome = refine(ask_model(backbone, picture, "the red star"), load_refiner())
    draw_outcome(outcome)

`t4s_helpers.workbook.playground` connects these functions with widgets.
"""

from __future__ import annotations

import functools
import io
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from ..codec.encodings import Encoding, check_labels, fold, get_encoding
from ..codec.grid import mask_iou, mask_to_box, masks_to_grid
from ..codec.parsing import ParseReport
from ..data import prompts
from ..data.classes import VOC_20
from ..data.expressions import GRES_KINDS, make_expression
from ..data.meaning import MeaningError, meaning
from ..data.photos import photo_samples
from ..data.sample import REFERENCE, SampleError, read_image, speak_of_reference
from ..data.scenes import CATEGORIES, Scene, make_scene
from ..decoding.confidence import answer_confidence
from ..decoding.generate import Answer, ParsedAnswer, generate, parse_answer
from ..evaluation.tasks import to_rle
from ..refine import NoRefiner
from .plotting import STYLE, draw_grid, outline, printable, show_descriptor, show_image, show_mask

LONGEST_SIDE = 1024  # pixels of an own picture, which is made smaller; a SAM model sees no more anyway
LONGEST_EXPRESSION = 200  # characters; a longer text is no referring expression
PANELS = {  # view -> what stands side by side
    "everything": ("grid", "text", "coarse", "refined"),
    "text and grid": ("picture", "grid", "text"),
    "masks": ("picture", "coarse", "refined"),
}
# Who writes the text: the model, or the codec from the true mask, where that is known.
WRITERS = ("the model", "true mask")
BY_HAND = "you"  # who wrote a text that was edited
KINDS = ("segment", "describe", "segment the rest")  # of requests, see `word`
DESCRIBE = "What is in the picture?"


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
    note = _SMALLER.format(width, height, *image.size) if image.size != (width, height) else ""
    return Picture(path.name, np.asarray(image), note=note)


_SMALLER = "The picture was made smaller, from {} x {} to {} x {} pixels."


def uploaded_picture(name: str, content: bytes, size: Sequence[int] = ()) -> Picture:
    """A picture from the bytes of an uploaded file; errors as in `file_picture`, naming it.

    ``size`` is the (width, height) that it had before a browser made it smaller.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / (Path(name.replace("\\", "/")).name or "upload")
        path.write_bytes(bytes(content))
        try:
            picture = file_picture(path)
            height, width = picture.pixels.shape[:2]
            smaller = len(size) == 2 and tuple(size) != (width, height)
            return replace(picture, note=_SMALLER.format(*size, width, height)) if smaller else picture
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


@dataclass(frozen=True, eq=False, repr=False)
class Outcome:
    """One request with everything that came of it; without labels the answer is in words.

    Masks are bool ``(L, H, W)``, one for each label.
    """

    picture: Picture
    turn: prompts.Turn  # worded for the model; its labels are the expressions, trimmed
    writer: str  # one of WRITERS, or BY_HAND
    model: str  # name of the backbone, empty where it wrote nothing
    answer: Answer  # 0 tokens where nobody counted
    parsed: ParsedAnswer  # its grid, coarse masks, and what the parser had to repair
    truths: tuple[Truth, ...]  # one for each label
    encoding: Encoding
    refiner: str = "none"  # before or without one
    refined: np.ndarray | None = None  # None without a refiner
    fallback: bool = False  # the refiner left a coarse mask behind, which was kept
    refine_seconds: float = 0.0

    expression = property(lambda self: "; ".join(self.turn.labels))
    grid = property(lambda self: self.parsed.grid, doc="int32 ``(rows, cols)``, ``k`` is label ``k - 1``.")
    coarse = property(lambda self: self.parsed.masks, doc="The grid's cells.")
    report = property(lambda self: self.parsed.report)
    mask = property(lambda self: self.coarse if self.refined is None else self.refined,
                    doc="The final masks: the refined ones where there are any.")
    known = property(lambda self: bool(self.truths) and all(truth.known for truth in self.truths),
                     doc="Whether all true masks are.")
    true_mask = property(lambda self: np.any([truth.mask for truth in self.truths if truth.known], axis=0)
                         if self.known else None, doc="bool ``(H, W)``: everything that is meant.")

    @functools.cached_property
    def confidence(self) -> np.ndarray | None:
        """How likely each cell shows any label, float32 ``(rows, cols)``; None where nobody stated it."""
        if self.answer.grammar is None or self.report.malformed or self.writer != WRITERS[0]:
            return None
        return np.clip(1 - answer_confidence(self.answer, self.parsed)[0], 0, 1)

    def iou(self, masks: np.ndarray) -> float | None:
        """Mean IoU of masks with the true ones, ``None`` where those are not known.

        As in `t4s_helpers.evaluation.metrics.SegmentationMetric`, an answer that could not be read
        is no rejection: without a target it earns nothing.
        """
        if not self.known:
            return None
        scores = [0.0 if self.report.malformed and not truth.mask.any() else mask_iou(mask, truth.mask)
                  for mask, truth in zip(masks, self.truths, strict=True)]
        return float(np.mean(scores))


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


def word(kind: str, text: str, picture: Picture, history: Sequence[prompts.Turn] = (),
         tokenizer: Any = None, reference: np.ndarray | None = None,
         encoding: Encoding | None = None) -> prompts.Turn:
    """A request of one of `KINDS` in the model's words.

    Args:
        kind: ``segment`` what the text names, ``describe`` in words, or ``segment the rest``: whatever of
            the usual classes (the scenes' pictograms, else VOC's) the history has not asked for.
        text: an expression, or several with ``;`` between them.
        picture: that is asked about.
        history: earlier turns.
        tokenizer: see `check_expression`.
        reference: bool ``(H, W)``, what "this" in an expression to segment is; the question says it in the
            ``encoding``, R-RLE of 16 x 16 cells by default.

    Raises:
        PlaygroundError, DescriptorError: see `check_expression`; a kind that there is not; a reference
            that is empty, or of which the expression does not speak.
    """
    if kind not in KINDS:
        raise PlaygroundError(f"There is no request {kind!r}: choose {', '.join(KINDS)}.")
    if kind == "describe":
        return prompts.Turn(DESCRIBE)
    if kind == "segment the rest":
        asked = {fold(label).casefold() for turn in history for label in turn.labels}
        classes = CATEGORIES if picture.scene is not None else VOC_20
        labels = tuple(name for name in classes if name not in asked)
        return prompts.Turn(prompts.question("semantic_conditioned", labels), labels=labels)
    parts = [part for part in text.split(";") if part.strip()] or [text]
    labels = check_labels([check_expression(part, tokenizer) for part in parts])
    named = labels if reference is None else [_referring(labels, reference, encoding or get_encoding())]
    return prompts.Turn(prompts.question("res" if len(labels) == 1 else "semantic_partial", named),
                        labels=labels)


def _referring(labels: Sequence[str], reference: np.ndarray, encoding: Encoding) -> str:
    """The one label with the reference in its place."""
    if not reference.any():
        raise PlaygroundError(f"Nothing is painted: paint over the thing that {REFERENCE!r} stands for.")
    if not speak_of_reference(labels):
        raise PlaygroundError(f"Say {REFERENCE!r} once, where the painted thing belongs: "
                              f"'all other things of the same color as {REFERENCE}' for example.")
    return prompts.with_reference(labels[0], reference, encoding)


def ask_model(
    backbone: Any, picture: Picture | np.ndarray, expression: str | prompts.Turn,
    encoding: Encoding | None = None, history: Sequence[prompts.Turn] = (), **options: Any,
) -> Outcome:
    """Ask a backbone for what an expression names.

    Args:
        backbone: a `t4s_helpers.model.backbones.Backbone`.
        picture: a `Picture`, or uint8 pixels ``(H, W, 3)``.
        expression: what to look for, several with ``;`` between them; or a turn made by `word`.
        encoding: of the text, as the adapter was trained; R-RLE of 16 x 16 cells by default.
        history: answered turns about the same picture that come before the question.
        options: for `t4s_helpers.decoding.generate.generate`; ``streamer=Follower(...)`` for example.

    Raises:
        PlaygroundError, DescriptorError: see `check_expression`.
    """
    picture = picture if isinstance(picture, Picture) else Picture("picture", picture)
    turn = expression if isinstance(expression, prompts.Turn) else word(
        KINDS[0], expression, picture, history, backbone.encoder.tokenizer)
    encoding = encoding or get_encoding()
    answer = generate(backbone, [picture.pixels], [[*history, turn]], encoding, **options)[0]
    return _read(picture, turn, WRITERS[0], backbone.spec.name, answer, encoding)


def _read(picture: Picture, turn: prompts.Turn, writer: str, model: str, answer: Answer,
          encoding: Encoding) -> Outcome:
    """The outcome of an answer, before refinement."""
    size = picture.pixels.shape[:2]
    if turn.labels:
        parsed = parse_answer(answer.text, turn.labels, size, encoding)
    else:
        parsed = ParsedAnswer(np.zeros(encoding.grid_size, np.int32), np.zeros((0, *size), bool),
                              ParseReport(ok=True))
    return Outcome(picture, turn, writer, model, answer, parsed, tuple(map(picture.truth, turn.labels)),
                   encoding)


class Follower:
    """A streamer for `ask_model` that calls ``on_text`` with the whole text so far, whenever it grows.

    What ``on_text`` raises, `Cancelled` for example, ends the answer.

    Args:
        tokenizer: of the backbone.
        on_text: gets the text without special tokens.
    """

    def __init__(self, tokenizer: Any, on_text: Callable[[str], Any]) -> None:
        self.tokenizer, self.on_text = tokenizer, on_text
        self.ids: list[int] | None = None  # None before the prompt, which comes first

    def put(self, value: Any) -> None:
        """Called by ``generate`` with new token ids."""
        if self.ids is not None:
            self.ids += value.flatten().tolist()
        self.ids = self.ids or []
        self.on_text(self.tokenizer.decode(self.ids, skip_special_tokens=True))

    def end(self) -> None:
        """Called by ``generate`` at the end."""


class Cancelled(Exception):
    """A request that was stopped by its reader."""


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
        PlaygroundError: a true mask is not known; the message says why. See also
            `check_expression`.
    """
    turn = expression if isinstance(expression, prompts.Turn) else word(
        KINDS[0], expression, picture, (), encoder and encoder.tokenizer)
    if not turn.labels:
        raise PlaygroundError("Only the model describes a picture: choose it as the writer of the text.")
    start, encoding = time.perf_counter(), encoding or get_encoding()
    objects, owners = [], []
    for k, label in enumerate(turn.labels):
        truth = picture.truth(label)
        if not truth.known:
            raise PlaygroundError(f"The true mask of {label!r} is not known. {truth.why}")
        # Without an object there is nothing to keep visible: one empty mask is the whole request.
        objects.extend(truth.objects if len(truth.objects) else truth.mask[None])
        owners += [k] * max(1, len(truth.objects))
    grid = masks_to_grid(np.array(objects), encoding.grid_size, "area", np.array(owners))
    pieces = prompts.answer(grid, turn.labels, encoding, style, np.any(objects, axis=0))
    seconds = time.perf_counter() - start
    tokens = 1 + sum(len(encoder.piece_ids(piece)) for piece in pieces) if encoder else 0
    turn = replace(turn, answer=pieces)
    return _read(picture, turn, WRITERS[1], "", Answer(turn.text, tokens, True, seconds), encoding)


def rewritten(outcome: Outcome, text: str) -> Outcome:
    """The outcome as if this text had been the answer: what an edit by hand does to the masks."""
    answer = Answer(text, 0, True, 0.0)
    return _read(outcome.picture, outcome.turn, BY_HAND, outcome.model, answer, outcome.encoding)


def refine(outcome: Outcome, refiner: Any, seed: int = 0) -> Outcome:
    """The outcome with its coarse masks refined by one of `load_refiner`; ``none`` takes that away.

    ``seed`` is of the points that a refiner draws.
    """
    if isinstance(refiner, NoRefiner) or not outcome.coarse.any():  # no reason to look at the picture
        refined = None if isinstance(refiner, NoRefiner) else outcome.coarse
        return replace(outcome, refiner=refiner.name, refined=refined, fallback=False, refine_seconds=0.0)
    start = time.perf_counter()
    done = refiner.set_image(outcome.picture.pixels).refine(outcome.coarse, seed=seed)
    return replace(outcome, refiner=refiner.name, refined=done.masks, fallback=bool(np.any(done.fallback)),
                   refine_seconds=time.perf_counter() - start)


# --- saying and showing -------------------------------------------------------------------------


def describe(outcome: Outcome) -> list[str]:
    """What came of a request, in sentences: cost, format, agreement with the truth, warnings."""
    told = [_cost(outcome)]
    if outcome.turn.labels:
        told += [outcome.report.summary(), _agreement(outcome)]
    if outcome.report.malformed and not outcome.coarse.any():
        told.append("The mask is empty, but the text is malformed: that does not count as saying "
                    "that nothing is there.")
    if outcome.fallback:
        told.append(f"The mask of {outcome.refiner} left the coarse one behind, so the coarse one "
                    "was kept.")
    told += [unseen(outcome.model, outcome.picture), outcome.picture.note]
    return [line for line in told if line]


def unseen(model: str, picture: Picture) -> str:
    """A warning where a model cannot know what a picture shows, else an empty text."""
    if model != "embedded" or picture.scene is not None:
        return ""
    return ("The embedded model was trained on drawn scenes alone: on any other picture "
            "its answer is a guess, however tidy its text looks.")


def _cost(outcome: Outcome) -> str:
    tokens = f"{outcome.answer.n_tokens} tokens"
    if outcome.writer == WRITERS[0]:
        said = f"The {outcome.model} model wrote {tokens} in {outcome.answer.seconds:.1f} s"
        said += "" if outcome.answer.finished else " and was stopped at the limit"
    elif outcome.writer == BY_HAND:
        said = "This text was edited by hand; no model was asked"
    else:
        counted = f", {tokens}" if outcome.answer.n_tokens else ""
        said = f"This text was written from the true mask{counted}; no model was asked"
    if outcome.refined is not None and outcome.coarse.any():
        said += f"; {outcome.refiner} took {outcome.refine_seconds:.1f} s"
    return f"{said}."


def _agreement(outcome: Outcome) -> str:
    if not outcome.known:
        why = next(truth.why for truth in outcome.truths if not truth.known)
        return f"Whether the mask is right cannot be scored. {why}"
    if outcome.true_mask.any():
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
        show_mask(ax, pixels, mask, labels if len(labels) > 1 else (), name + _verdict(outcome, mask))
        if true_outline and outcome.known:
            outline(ax, outcome.true_mask, "#ffffff", width=1.0, dashed=True)


def _verdict(outcome: Outcome, mask: np.ndarray) -> str:
    """The end of a mask's title."""
    if mask.any() and outcome.known and not outcome.true_mask.any():
        return ", nothing to find"
    if not mask.any():
        return ", empty" + (" (malformed)" if outcome.report.malformed else "")
    score = outcome.iou(mask)
    return "" if score is None else f", IoU {score:.2f}"


def as_png(figure: Figure, dpi: int = 90) -> bytes:
    """The figure as the bytes of a PNG file."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=dpi, bbox_inches="tight")
    return content.getvalue()


def alt_text(outcome: Outcome) -> str:
    """What a figure of the outcome shows, in one sentence for who does not see it."""
    where = outcome.picture.name
    if not outcome.turn.labels:
        return f"{where[0].upper()}{where[1:]}, described: {outcome.answer.text.strip()}"
    told = []
    for k, label in enumerate(outcome.turn.labels, 1):
        n, (x0, y0, x1, y1) = (outcome.grid == k).sum(), mask_to_box(outcome.grid == k) or (0, 0, 0, 0)
        place = f"{n} of {outcome.grid.size} cells, rows {y0 + 1} to {y1}, columns {x0 + 1} to {x1}"
        told.append(f"{label}: {place if n else 'nowhere'}")
    return f"{where[0].upper()}{where[1:]}; marked as {'; '.join(told)}."


def to_coco(outcome: Outcome) -> dict[str, Any]:
    """The final masks as a COCO annotation file, masks as compressed RLE; empty ones are left out."""
    height, width = outcome.picture.pixels.shape[:2]
    found = []
    for k, mask in enumerate(outcome.mask, 1):
        if (box := mask_to_box(mask)) is not None:
            found.append({"id": len(found) + 1, "image_id": 1, "category_id": k, "iscrowd": 0,
                          "area": int(mask.sum()), "segmentation": to_rle(mask),
                          "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]]})
    return {"images": [{"id": 1, "file_name": outcome.picture.name, "height": height, "width": width}],
            "categories": [{"id": k, "name": name} for k, name in enumerate(outcome.turn.labels, 1)],
            "annotations": found}


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
