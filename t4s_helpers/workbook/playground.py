"""The playground: ask for something in a picture and watch every stage of the answer.

``playground(backbone)`` shows it in any notebook. What happens is done by the plain functions of
`t4s_helpers.workbook.asking`; :class:`Playground` connects them with ipywidgets and with the canvas of
`t4s_helpers.workbook.canvas`. A request runs in a thread, for a kernel that is busy hears no *Cancel*, and
one request runs at a time; meanwhile a second thread embeds the picture for the refiner. What has been
computed is remembered, so another view, or a request made before, costs nothing.

Elements of the page, for tests and styles: ``t4s-playground`` around everything, in it ``t4s-source``,
``t4s-split``, ``t4s-index``, ``t4s-photo``, ``t4s-path``, ``t4s-expression`` (Enter asks), ``t4s-suggestion``
(several), ``t4s-writer``, ``t4s-ask``, ``t4s-describe``, ``t4s-rest``, ``t4s-cancel``, ``t4s-offer`` (text
from the true outline), ``t4s-talk`` (earlier answers go along), ``t4s-reference`` (the mouse paints),
``t4s-compare``, ``t4s-history``, ``t4s-state`` (with ``t4s-ready``, ``t4s-busy``, ``t4s-answered`` or
``t4s-failed``), and for each of one or two settings an ``t4s-answer`` (``t4s-a``, ``t4s-b``) with
``t4s-encoding``, ``t4s-grid``, ``t4s-adapter``, ``t4s-refiner``, ``t4s-view``, ``t4s-opacity``,
``t4s-true-outline``, the canvas (classes in its module), ``t4s-notes``, ``t4s-save-png``,
``t4s-save-coco`` and ``t4s-save-text``.
"""

from __future__ import annotations

import base64
import contextvars
import functools
import html
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any

import ipywidgets
import numpy as np
from matplotlib.figure import Figure

from ..codec.encodings import PAPER_ENCODINGS, OTHERS, Encoding, get_encoding
from ..codec.grid import grid_to_masks
from ..codec.parsing import Run, read_runs
from ..data.prompts import Turn
from ..data.scenes import SPLITS
from ..files import json_bytes
from ..model.backbones import load_backbone
from ..refine import load_refiner
from .asking import (
    KINDS, WRITERS, Cancelled, Follower, Outcome, Picture, PlaygroundError, alt_text, as_png, ask_model,
    describe, draw_outcome, file_picture, photo_pictures, refine, rewritten, scene_picture, sentence,
    suggestions, to_coco, unseen, uploaded_picture, word, write_truth,
)
from .canvas import Canvas, blank, dashed, png, tinted
from .plotting import show_image

SOURCES = ("scene", "photo", "own file")
STATES = ("ready", "busy", "answered", "failed")
VIEWS = ("as it comes", "grid", "coarse mask", "refined mask", "confidence", "picture")
GRIDS = (8, 16, 24, 32, 64)  # sides that are offered besides the adapter's own
SAVES = {"png": "figure.png", "coco": "coco.json", "text": "answer.txt"}
_KEPT = 32  # requests that are remembered
_CHIPS = 8  # suggestions shown


def playground(backbone: Any, **options: Any) -> Playground:
    """Show the playground under a notebook's cell; options as in :class:`Playground`."""
    from IPython.display import display

    shown = Playground(backbone, **options)
    display(shown)
    return shown


class Answering:
    """One answer on the page: its settings, its canvas, and what they show.

    Attributes:
        controls: name -> widget.
        canvas: see `t4s_helpers.workbook.canvas.Canvas`.
        outcome: what is shown, ``None`` before the first answer about a picture.
        base: key of the text that is shown, and its outcome before refinement.
    """

    def __init__(self, encoding: Encoding, refiners: Sequence[str], adapters: Sequence[str], name: str):
        w, small = ipywidgets, {"layout": ipywidgets.Layout(width="17em")}
        sizes = sorted({encoding.grid_size, *((n, n) for n in GRIDS)})
        self.encoding, self.outcome, self.base, self._pictured = encoding, None, (None, None), None
        self.controls: dict[str, Any] = {
            "encoding": w.Dropdown(options=list(PAPER_ENCODINGS), value=encoding.name, description="encoding",
                                   **small),
            "grid": w.Dropdown(options=[("{} x {}".format(*size), size) for size in sizes],
                               value=encoding.grid_size, description="grid", **small),
            "adapter": w.Dropdown(options=[("as loaded", ""), *((a, a) for a in adapters)],
                                  description="adapter", **small),
            "refiner": w.Dropdown(options=list(dict.fromkeys(refiners)), description="refiner", **small),
            "view": w.Dropdown(options=VIEWS, description="view", **small),
            "opacity": w.FloatSlider(0.5, min=0, max=1, step=0.05, description="opacity", **small),
            "true_outline": w.Checkbox(True, description="true outline", indent=False),
        }
        c, self.canvas, self.notes = self.controls, Canvas(), _classed(w.HTML(), "notes")
        w.jslink((c["opacity"], "value"), (self.canvas, "opacity"))
        self.saves = {kind: _classed(w.Button(description=f"save {kind}"), f"save-{kind}") for kind in SAVES}
        for key, control in c.items():
            _classed(control, key)
        for key in ("view", "true_outline"):
            c[key].observe(lambda change: self.outcome and self.show(self.outcome), "value")
        for kind, button in self.saves.items():
            button.on_click(functools.partial(self._save, kind))
        self.settings = w.HBox([c["encoding"], c["grid"], c["adapter"], c["refiner"]])
        self.panel = w.VBox([self.settings, w.HBox([c["view"], c["opacity"], c["true_outline"]]), self.canvas,
                             self.notes, w.HBox(list(self.saves.values()))])
        self.settings.layout.flex_flow = "row wrap"
        for one in ("answer", name):
            _classed(self.panel, one)

    def chosen(self) -> Encoding:
        """The encoding that is chosen."""
        c = self.controls
        return get_encoding(c["encoding"].value, c["grid"].value, self.encoding.spaced)

    def clear(self, picture: Picture | None) -> None:
        """Show a picture without an answer."""
        self.outcome, self.base = None, (None, None)
        self.notes.value = ""
        with self.canvas.hold_sync():
            self._place(picture)
            self._write(Turn(""), [], np.zeros((0, 0)))
            self.canvas.confidence = []
            self.canvas.mask = self.canvas.outline = b""
            self.canvas.editable, self.canvas.message = False, ""
            self.canvas.alt = f"{picture.name}, nothing asked yet" if picture else "no picture"

    def stream(self, picture: Picture, turn: Turn, text: str, encoding: Encoding) -> int:
        """Show a text as far as it is written; returns how many rows are whole."""
        runs = [run._replace(fault="") for run in _runs(turn, text, encoding)]
        grid = np.full(encoding.rows * encoding.cols, -1)
        for run in runs[:-1] if runs and runs[-1].label >= 0 else runs:  # the last count may still grow
            grid[list(run.cells)] = run.label
        grid = grid.reshape(encoding.grid_size)
        with self.canvas.hold_sync():
            self._place(picture)
            self._write(turn, runs, grid)
            self.canvas.editable, self.canvas.mask, self.canvas.outline = False, b"", b""
            self.canvas.shown = ["grid"]
        return int((grid >= 0).all(axis=1).sum())

    def show(self, outcome: Outcome) -> None:
        """Show an outcome in the view that is chosen."""
        self.outcome, view, turn = outcome, self.controls["view"].value, outcome.turn
        shown = {"grid": "grid", "confidence": "confidence", "picture": "none"}.get(view, "mask")
        sure = outcome.confidence
        with self.canvas.hold_sync():
            self._place(outcome.picture)
            self._write(turn, _runs(turn, outcome.answer.text, outcome.encoding), outcome.grid)
            self.canvas.confidence = [] if sure is None else np.round(sure, 4).tolist()
            self.canvas.mask = tinted(outcome.coarse if view == "coarse mask" else outcome.mask)
            self.canvas.outline = dashed(outcome.true_mask) if outcome.known else b""
            dashes = self.controls["true_outline"].value and view != "picture"
            self.canvas.shown = [shown, "outline"] if dashes else [shown]
            self.canvas.editable, self.canvas.alt = bool(turn.labels), alt_text(outcome)
            self.canvas.text = outcome.answer.text
            none = view == "confidence" and sure is None
            self.canvas.message = "Nobody stated how sure this text is." if none else turn.question
        told = "".join(f"<li>{html.escape(line)}</li>" for line in describe(outcome))
        self.notes.value = f"<ul>{told}</ul>"

    def _place(self, picture: Picture | None) -> None:
        if picture is not self._pictured:
            self.canvas.picture, self._pictured = png(picture.pixels) if picture else b"", picture

    def _write(self, turn: Turn, runs: list[Run], grid: np.ndarray) -> None:
        self.canvas.labels = [OTHERS, *turn.labels]
        self.canvas.grid = grid.tolist() if turn.labels else []
        self.canvas.runs = [run._asdict() for run in runs]

    def _save(self, kind: str, _: Any) -> None:
        if self.outcome is not None:
            self.canvas.save(SAVES[kind], self.export(kind))

    def export(self, kind: str) -> bytes:
        """What is shown as a file: ``png``, ``coco`` (JSON) or ``text``."""
        if self.outcome is None or kind not in SAVES:
            raise PlaygroundError(f"There is no answer yet, or no format {kind!r}: {', '.join(SAVES)}.")
        if kind == "text":
            return self.outcome.answer.text.encode()
        if kind == "coco":
            return json_bytes(to_coco(self.outcome))
        return as_png(draw_outcome(self.outcome, figure=Figure(), notes=True))


class Playground:
    """Widgets around `word`, `ask_model`, `write_truth`, `refine` and `rewritten`.

    A program uses the same widgets as a reader: it sets their values and clicks, or calls
    :meth:`request`. Where there is no kernel behind it, it is a picture of what it showed.

    Args:
        backbone: a `t4s_helpers.model.backbones.Backbone`.
        refiners: names to choose from, the first one is chosen.
        encoding, style: of the text, as the adapter was trained.
        adapters: further ones to compare, by name or folder; each loads the backbone again.
        seed: of suggestions and of the refiner's points.
        split: of the first scene.
        load, load_model: make a refiner of its name, a backbone of its name and ``adapter``.

    Attributes:
        panel: the widget to display.
        controls: name -> widget, of what can be chosen; ``_b`` ends the names of the second setting.
        sides: the two settings with their answers; the second is shown by ``compare``.
        picture: what is chosen, ``None`` where the choice cannot be shown.
        message: what the status line says, as plain text.
        state: one of `STATES`; after ``failed`` the next request starts afresh.
        failure: the error behind the last sentence, for who wants its traceback.
        written: number of texts that were written so far; a view or a refiner adds none.
        times: stage -> seconds from the press, of the last request.
        history: outcomes, the latest last.
        turns: what the conversation about this picture holds.
    """

    def __init__(
        self, backbone: Any, refiners: Sequence[str] = ("mobile_sam", "none"),
        encoding: Encoding | None = None, style: str = "box", adapters: Sequence[str] = (), seed: int = 0,
        split: str = "test", load: Callable[[str], Any] = load_refiner,
        load_model: Callable[..., Any] = load_backbone,
    ) -> None:
        self.backbone, self.load, self.seed, self.style = backbone, load, seed, style
        self.encoding = encoding or get_encoding()
        self._model = functools.lru_cache(2)(lambda name: load_model(backbone.spec.name, adapter=name))
        self.picture: Picture | None = None
        self.failure: BaseException | None = None
        self.state, self.message, self.written = "ready", "", 0
        self.times: dict[str, float] = {}
        self.history: list[Outcome] = []
        self.turns: list[Turn] = []
        self._kept: dict[Any, Outcome] = {}
        self._own: tuple[str, bytes, tuple[int, ...]] = ("", b"", ())
        self._guard, self._cancel, self._pool = threading.RLock(), threading.Event(), ThreadPoolExecutor(1)
        self._idle = threading.Event()
        self._idle.set()
        self._next: Callable[[], str] | None = None
        self._running = self._setting = self._on_page = False
        self._timer = threading.Timer(0, lambda: None)
        self._pressed = 0.0
        self._make_widgets(refiners, adapters, split)
        self._choose_picture()

    outcome = property(lambda self: self.sides[0].outcome, doc="What the first setting shows, or ``None``.")

    def request(self, kind: str = KINDS[0], **choices: Any) -> Outcome | None:
        """Set widgets by name, ask, and wait, as a reader would: ``request(index=3, expression="…")``.

        Args:
            kind: one of `t4s_helpers.workbook.asking.KINDS`.
            choices: names are those of ``controls``.

        Returns:
            the outcome, or ``None`` where the status line says what went wrong.

        Raises:
            PlaygroundError: a name that no widget has, or a value that it does not offer.
        """
        self._setting = True  # a refiner chosen on the way is for the coming answer alone
        try:
            for name, value in choices.items():
                self._set(name, value)
        finally:
            self._setting = False
        self.ask(kind)
        try:
            self.wait()
        except KeyboardInterrupt:
            self.cancel()
            self.wait()
            raise
        return self.outcome if self.state == "answered" else None

    def ask(self, kind: str = KINDS[0]) -> None:
        """Start a request with what the widgets say; returns at once."""
        self._start(functools.partial(self._request, kind))

    def cancel(self, _: Any = None) -> None:
        """End the running request as soon as its next tokens come."""
        with self._guard:
            self._cancel.set()
            if self._running:
                self._tell("busy", "Cancelling …")

    def wait(self) -> Playground:
        """Wait until nothing runs any more."""
        while not self._idle.wait(0.05):  # a thread's own join() may not be interrupted
            pass
        return self

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

    def _make_widgets(self, refiners: Sequence[str], adapters: Sequence[str], split: str) -> None:
        w, row = ipywidgets, ipywidgets.HBox
        wide = {"layout": w.Layout(width="32em")}
        typed, toggled = wide | {"continuous_update": False}, wide | {"style": {"button_width": "7em"}}
        self.sides = [Answering(self.encoding, refiners, adapters, name) for name in "ab"]
        own: dict[str, Any] = {
            "source": w.ToggleButtons(options=SOURCES, description="picture", **toggled),
            "split": w.Dropdown(options=list(SPLITS), value=split, description="split"),
            "index": w.BoundedIntText(value=0, min=0, max=10**6, description="scene"),
            "photo": w.Dropdown(options=list(photo_pictures()), description="photo"),
            "path": w.Text(description="file", placeholder="/path/to/picture.jpg", **typed),
            "expression": w.Text(description="expression", placeholder="the red star; the cloud", **wide),
            "writer": w.ToggleButtons(options=WRITERS, description="text by", **toggled),
            "talk": w.Checkbox(False, description="earlier answers go along", indent=False),
            "reference": w.Checkbox(False, description="paint what 'this' is", indent=False),
            "compare": w.Checkbox(False, description="compare two settings", indent=False),
            "history": w.Dropdown(options=[("earlier requests", -1)], description="history", **wide),
        }
        buttons = {name: w.Button(description=text) for name, text in {
            "ask": "Ask", "describe": "Describe", "rest": "Segment the rest", "cancel": "Cancel",
            "offer": "Write the text from the true outline"}.items()}
        for name, widget in (own | buttons).items():
            _classed(widget, name)
        self.button, self.offer, self.stop = buttons["ask"], buttons["offer"], buttons["cancel"]
        self.button.button_style, self.offer.layout.width, self._buttons = "primary", "20em", buttons
        self.chips = [_classed(w.Button(layout=w.Layout(width="auto")), "suggestion") for _ in range(_CHIPS)]
        self.status = _classed(w.HTML(), "status")
        a, b = (side.controls for side in self.sides)
        self.controls = own | a | {f"{name}_b": control for name, control in b.items()}
        self._sources = {  # source -> its widgets, and how its picture is loaded
            "scene": (row([own["split"], own["index"]]),
                      lambda: scene_picture(own["split"].value, own["index"].value)),
            "photo": (row([own["photo"]]), lambda: photo_pictures()[own["photo"].value]),
            "own file": (row([own["path"]]), self._own_picture),
        }
        answers = row([side.panel for side in self.sides])
        chips = row(self.chips)
        answers.layout.flex_flow = chips.layout.flex_flow = "row wrap"
        self.panel = _classed(w.VBox([
            own["source"], *(place for place, _ in self._sources.values()), own["expression"], chips,
            own["writer"], row([buttons[name] for name in ("ask", "describe", "rest", "cancel")]),
            row([own[name] for name in ("talk", "reference", "compare")]), self.status, self.offer, answers,
            own["history"],
        ]), "playground")
        self._connect(buttons)

    def _connect(self, buttons: dict[str, Any]) -> None:
        c = self.controls
        for name in ("source", "split", "index", "photo", "path"):
            c[name].observe(self._choose_picture, "value")
        for kind, name in zip(KINDS, ("ask", "describe", "rest")):
            buttons[name].on_click(lambda _, kind=kind: self.ask(kind))
        c["expression"].on_msg(lambda _, said, __: said.get("event") == "submit" and self.ask())
        self.stop.on_click(self.cancel)
        self.offer.on_click(self._take_offer)
        for chip in self.chips:
            chip.on_click(lambda chip: self._set("expression", chip.tooltip))
        c["talk"].observe(lambda change: None if change["new"] else self.turns.clear(), "value")
        c["reference"].observe(self._paint, "value")
        c["compare"].observe(self._compare, "value")
        c["history"].observe(self._show_earlier, "value")
        for side in self.sides:
            side.controls["refiner"].observe(functools.partial(self._refine_again, side), "value")
            side.canvas.observe(functools.partial(self._edit, side), "text")
        self.sides[0].canvas.on_picture(self._take_picture)
        self._compare()

    # -- reacting: to a change of widgets, or to a click

    def _choose_picture(self, change: Any = None) -> None:
        """Load and show the chosen picture; an answer about another one is taken away."""
        source, self.picture = self.controls["source"].value, None
        self.turns.clear()
        for name, (place, _) in self._sources.items():
            place.layout.display = "flex" if name == source else "none"
        try:
            if source == SOURCES[2] and not self.controls["path"].value.strip():
                said = "Give the path of an image file, or drop, paste or choose one below."
            else:
                self.picture = self._sources[source][1]()
                said = unseen(self.backbone.spec.name, self.picture)
                said = f"{said and said + ' '}Ask for something in {self.picture.name}."
            self._tell("ready", said)
        except Exception as error:
            self._fail(error, "")
        for side in self.sides:
            side.clear(self.picture)
        self._paint()
        known = suggestions(self.picture, self.seed) if self.picture else ()
        for chip, text in zip(self.chips, (*known, *[""] * _CHIPS)):
            chip.description = chip.tooltip = text
            chip.layout.display = "block" if text else "none"
        warned = self.picture is not None and unseen(self.backbone.spec.name, self.picture)
        self.offer.layout.display = "block" if warned and known else "none"
        self._embed_soon()

    def _embed_soon(self) -> None:
        """While a reader thinks about what to ask, the refiner looks at the picture."""
        self._timer.cancel()
        if self._on_page and self.picture is not None:
            self._timer = threading.Timer(0.5, self._embed, (self.picture, self.controls["refiner"].value))
            self._timer.daemon = True
            self._timer.start()

    def _take_picture(self, name: str, content: bytes, size: tuple[int, ...]) -> None:
        """A picture was dropped, pasted or chosen."""
        if not self._running:
            path, self._own = f"{name} (uploaded)", (f"{name} (uploaded)", content, size)
            with self.panel.hold_trait_notifications():
                changed = (self.controls["source"].value, self.controls["path"].value) == (SOURCES[2], path)
                self.controls["path"].value, self.controls["source"].value = path, SOURCES[2]
            if changed:  # another file of the same name changes no widget
                self._choose_picture()

    def _own_picture(self) -> Picture:
        path, content, size = self._own
        if content and self.controls["path"].value == path:
            return uploaded_picture(path.removesuffix(" (uploaded)"), content, size)
        return file_picture(self.controls["path"].value)

    def _take_offer(self, _: Any) -> None:
        text = self.controls["expression"].value
        if self.picture and not self.picture.truth(text).known:
            self.controls["expression"].value = suggestions(self.picture, self.seed)[0]
        self.controls["writer"].value = WRITERS[1]
        self.ask()

    def _compare(self, change: Any = None) -> None:
        on = self.controls["compare"].value
        self.sides[1].panel.layout.display = "flex" if on else "none"
        self.sides[0].settings.layout.display = "flex"

    def _paint(self, change: Any = None) -> None:
        """Let the mouse paint a reference, from nothing, or point at cells."""
        canvas, on = self.sides[0].canvas, self.controls["reference"].value
        with canvas.hold_sync():
            # In a colour that the answer about it, which has one label, does not use.
            canvas.brush, canvas.painted = (2, blank()) if on else (-1, [])

    def _reference(self, picture: Picture) -> np.ndarray | None:
        """What was painted, bool ``(H, W)``, if it goes along."""
        painted = np.array(self.sides[0].canvas.painted) > 0
        return grid_to_masks(painted.astype(int), 1, picture.pixels.shape[:2])[0] if painted.size else None

    def _show_earlier(self, change: Any) -> None:
        at = change["new"]
        if 0 <= at < len(self.history) and not self._running:
            outcome = self.history[at]
            self.picture, side = outcome.picture, self.sides[0]
            side.base = (None, replace(outcome, refined=None, refiner="none"))
            side.show(outcome)
            self._tell("answered", f"Shown again: {outcome.turn.question}")

    def _refine_again(self, side: Answering, change: Any) -> None:
        if side.base[1] is not None and not self._setting:
            self._start(lambda: self._finish(side, *side.base), again=True)

    def _edit(self, side: Answering, change: Any) -> None:
        """The text was edited in the browser: the grid follows at once, then the refined mask."""
        if side.outcome is None or not side.canvas.editable or change["new"] == side.outcome.answer.text:
            return
        outcome = rewritten(side.outcome, change["new"])
        with self._guard:
            side.show(outcome)
        self._start(lambda: self._finish(side, None, outcome), again=True)

    # -- running: one job at a time, in a thread

    def _start(self, job: Callable[[], str], again: bool = False) -> None:
        """Run a job, whose result is what the status line says in the end.

        Where one runs, another press does nothing; with ``again`` the latest job waits for its turn.
        """
        with self._guard:
            if self._running:
                self._next = job if again else self._next
                return
            self._running = True
            self._idle.clear()
            self._timer.cancel()
            self._cancel.clear()
            self._tell("busy", "Working …")
            # With the context of the press, so that the kernel knows where messages belong.
            run = contextvars.copy_context().run
            threading.Thread(target=run, args=(self._work, job), daemon=True).start()

    def _work(self, job: Callable[[], str] | None) -> None:
        while job is not None:
            told: tuple[Any, ...] = ("failed", "Stopped before the end: ask again.")
            try:
                told = ("answered", job())
            except Cancelled:
                told = ("ready", "Cancelled.")
            except Exception as error:
                told = ("failed", error)
            finally:
                with self._guard:
                    job, self._next = self._next, None
                    self._running = job is not None
                    self._settle(*told)
                    if job is None:
                        self._idle.set()

    def _settle(self, state: str, said: Any) -> None:
        """Say how a job ended; after a failure show the answer before it again."""
        if state != "answered":
            for side in self.sides:
                side.show(side.outcome) if side.outcome else side.clear(self.picture)
        left = " Below is still the last answer." if self.outcome and state != "answered" else ""
        if isinstance(said, Exception):
            self._fail(said, left)
        else:
            self._tell(state, said + left)

    def _fail(self, error: Exception, left: str) -> None:
        self.failure = error
        self._tell("failed", sentence(error) + left)

    def _tell(self, state: str, message: str) -> None:
        self.state, self.message = state, message
        self.status.value = f'<span class="t4s-state t4s-{state}" role="status">{html.escape(message)}</span>'
        busy = state == "busy"
        for name, button in self._buttons.items():
            button.disabled = busy != (name == "cancel")
        self.button.icon = "spinner" if busy else ""
        for name in ("source", "split", "index", "photo", "path", "history"):
            self.controls[name].disabled = busy
        self.sides[0].canvas.accepts = not busy

    # -- doing, in that thread

    def _request(self, kind: str) -> str:
        self._pressed, self.times = time.perf_counter(), {}
        picture = self.picture or self._sources[self.controls["source"].value][1]()
        goes_along = self.controls["talk"].value or kind == KINDS[2]
        history = tuple(self.turns) if goes_along else ()
        tokenizer = self.backbone.encoder.tokenizer
        turn = word(kind, self.controls["expression"].value, picture, history, tokenizer,
                    self._reference(picture), self.sides[0].chosen())
        for side in self.sides[:1 + self.controls["compare"].value]:
            key = (picture, turn, self.controls["writer"].value, history, side.chosen(),
                   side.controls["adapter"].value)
            text = self._kept.get(key) or self._keep(key, self._write(side, *key))
            self._finish(side, key, text)
        self._remember(self.outcome)
        return f"{turn.question} {self._told_times()}"

    def _write(self, side: Answering, picture: Picture, turn: Turn, writer: str, history: tuple[Turn, ...],
               encoding: Encoding, adapter: str) -> Outcome:
        self.written += 1
        if writer == WRITERS[1]:
            return write_truth(picture, turn, encoding, self.style, self.backbone.encoder)
        backbone = self._model(adapter) if adapter else self.backbone
        refiner, embedding = side.controls["refiner"].value, []

        def grows(text: str) -> None:
            self._go_on()
            with self._guard:
                rows = side.stream(picture, turn, text, encoding)
            if rows:
                self._mark("first row")
            if rows and not embedding:  # not before, for the first row is waited for
                embedding.append(self._embed(picture, refiner))

        follower = Follower(backbone.encoder.tokenizer, grows)
        return ask_model(backbone, picture, turn, encoding, history, progress=False, streamer=follower)

    def _finish(self, side: Answering, key: Any, text: Outcome) -> str:
        """Refine the masks of a text and show them; the result is for the status line."""
        self._mark("text")
        name, side.base = side.controls["refiner"].value, (key, text)
        outcome = self._kept.get((key, name))  # of an edited text, which has no key, none is kept
        if outcome is None:
            with self._guard:
                side.show(text)
            self._mark("coarse mask")
            outcome = self._waited(self._pool.submit(lambda: refine(text, self.load(name), self.seed)))
            if key:
                self._keep((key, name), outcome)
        with self._guard:
            side.show(outcome)
        self._mark("refined mask")
        return text.turn.question

    def _embed(self, picture: Picture, refiner: str) -> Future:
        # What fails here fails again, and is told, when the masks are refined.
        return self._pool.submit(lambda: self.load(refiner).set_image(picture.pixels))

    def _waited(self, future: Future) -> Any:
        while not future.done():
            wait([future], 0.1)
            self._go_on()
        return future.result()

    def _go_on(self) -> None:
        if self._cancel.is_set():
            raise Cancelled

    def _keep(self, key: Any, outcome: Outcome) -> Outcome:
        self._kept[key] = outcome
        while len(self._kept) > 2 * _KEPT:
            del self._kept[next(iter(self._kept))]
        return outcome

    def _remember(self, outcome: Outcome) -> None:
        """Into the history, and where it can be read into the conversation."""
        with self._guard:
            self.history = [*self.history, outcome][-_KEPT:]
            names = [f"{k}. {one.picture.name}: {one.turn.question}"[:80]
                     for k, one in enumerate(self.history, 1)]
            options = [("earlier requests", -1), *((name, k) for k, name in enumerate(names))]
            self.controls["history"].options = options
            if not outcome.report.malformed:
                self.turns[:] = [*self.turns, replace(outcome.turn, answer=(outcome.answer.text,))][-8:]

    def _mark(self, stage: str) -> None:
        self.times.setdefault(stage, time.perf_counter() - self._pressed)

    def _told_times(self) -> str:
        return "Answered: " + ", ".join(f"{stage} after {s:.2f} s" for stage, s in self.times.items()) + "."

    # -- without a kernel

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict, dict]:
        """The widgets, and a picture of what they show for where there is no kernel."""
        side, self._on_page = self.sides[0], True
        self._embed_soon()
        if self.outcome is not None:
            picture = side.export("png")
        else:
            figure = Figure((3, 3), layout="constrained")
            if self.picture is not None:
                show_image(figure.subplots(), self.picture.pixels, self.picture.name)
            picture = as_png(figure)
        bundle = self.panel._repr_mimebundle_()
        return {**bundle, "image/png": base64.b64encode(picture).decode(), "text/plain": side.canvas.alt}, {
            "image/png": {"alt": side.canvas.alt}}


def _runs(turn: Turn, text: str, encoding: Encoding) -> list[Run]:
    return read_runs(text, turn.labels, encoding) if turn.labels else [Run(text, -1)]


def _classed(widget: Any, name: str) -> Any:
    return widget.add_class(f"t4s-{name.replace('_', '-')}")
