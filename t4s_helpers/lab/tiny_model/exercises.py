"""What the base is taught: exercises about scenes, by the dozen, most of them with short answers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ...codec.grid import masks_to_grid
from ...data.expressions import caption, make_expression, make_question, union_mask
from ...data.meaning import meaning
from ...data.prompts import BOX_BINS, Turn, box_in_words, question
from ...data.scenes import SCENE_SIZE
from .words import COPY, any_phrase, any_pieces

KINDS = (*["attribute"] * 3, *["position"] * 2, *["relation"] * 2, "all", "pair", "none", "none")
"""Kinds of expression, as often as they are drawn."""

ROWS = 16


class Exercise(NamedTuple):
    """An exchange about a scene, and where each piece of its answer is to be seen.

    Attributes:
        where: a mask for each piece, bool ``(H, W)``; ``None`` or an empty one: in no one place.
    """

    turn: Turn
    where: tuple[np.ndarray | None, ...] = (None,)


def some_exercises(seed, scene, n: int) -> list[Exercise]:
    """``n`` exercises about a scene, none asked twice."""
    rng, found = np.random.default_rng(seed), {}
    names, shares = list(EXERCISES), [share for share, _ in EXERCISES.values()]
    while len(found) < n:
        one = EXERCISES[str(rng.choice(names, p=shares))][1](rng, scene)
        found[one.turn.question] = one
    return list(found.values())


def _asked(rng, scene) -> tuple[str, np.ndarray]:
    expression = make_expression(rng, scene, [str(rng.choice(KINDS))])
    return expression.text, union_mask(scene, expression.targets)


def box_exercise(rng, scene) -> Exercise:
    """Where something is, or that it is nowhere."""
    text, mask = _asked(rng, scene)
    return Exercise(Turn(question("box", [text], rng), (box_in_words(mask),)), (mask,))


def row_exercise(rng, scene) -> Exercise:
    """Which cells of one row of the 16 x 16 grid show something: "at 3, 5 wide", or "none"."""
    text, mask = _asked(rng, scene)
    grid = masks_to_grid(mask[None], ROWS)
    shown = np.flatnonzero(grid.any(1))
    row = int(rng.choice(shown)) if len(shown) and rng.random() < 0.8 else int(rng.integers(ROWS))
    asked = question("row", [text], rng, row=row, rows=ROWS)
    return Exercise(Turn(asked, (spans_in_words(grid[row]),)), (in_row(mask, row),))


def spans_exercise(rng, scene) -> Exercise:
    """The box of something, then its cells row by row."""
    text, mask = _asked(rng, scene)
    grid = masks_to_grid(mask[None], ROWS)
    shown = np.flatnonzero(grid.any(1))
    pieces = (box_in_words(mask), *(f"\n{row} {spans_in_words(grid[row])}" for row in shown))
    return Exercise(Turn(f"Which cells of {ROWS} rows show {text}?", pieces),
                    (mask, *(in_row(mask, row) for row in shown)))


def in_row(mask: np.ndarray, row: int) -> np.ndarray:
    """The part of a mask that lies in one row of cells."""
    side = len(mask) // ROWS
    part = np.zeros_like(mask)
    part[row * side:(row + 1) * side] = mask[row * side:(row + 1) * side]
    return part


def spans_in_words(row: np.ndarray) -> str:
    """First cell and width of each run of non-zero cells.

    >>> spans_in_words(np.array([0, 0, 1, 1, 0, 1]))
    'at 2, 2 wide; at 5, 1 wide'
    """
    edges = np.flatnonzero(np.diff(np.concatenate(([0], row > 0, [0]))))
    spans = [f"at {a}, {b - a} wide" for a, b in zip(edges[::2], edges[1::2])]
    return "; ".join(spans) or "none"


def point_exercise(rng, scene) -> Exercise:
    """What covers a point, given in the units of boxes: an object's three words, or "nothing"."""
    step = SCENE_SIZE // BOX_BINS
    covers = np.stack([o.mask.reshape(BOX_BINS, step, BOX_BINS, step).mean((1, 3))
                       for o in scene.objects])
    shown = int(rng.integers(len(scene.objects))) if rng.random() < 0.85 else None
    sure = covers.max(0) == 0 if shown is None else covers[shown] == 1
    if not sure.any():
        return box_exercise(rng, scene)
    y, x = (int(v) for v in np.argwhere(sure)[int(rng.integers(sure.sum()))])
    at = np.zeros((SCENE_SIZE, SCENE_SIZE), bool)
    at[y * step:(y + 1) * step, x * step:(x + 1) * step] = True
    words = "nothing" if shown is None else " ".join(scene.objects[shown].words)
    return Exercise(Turn(f"What is at {x} {y}?", (words,)), (at,))


def list_exercise(rng, scene) -> Exercise:
    """Everything from left to right, with boxes or without."""
    if rng.random() < 0.3:
        return Exercise(Turn("Describe the picture.", (caption(scene),)))
    ordered = sorted(scene.objects, key=lambda thing: thing.center[0])
    said = [f"{', ' * (k > 0)}{' '.join(thing.words)} {box_in_words(thing.mask)}"
            for k, thing in enumerate(ordered)]
    return Exercise(Turn("List everything with its box.", tuple(said)),
                    tuple(thing.mask for thing in ordered))


def ask_exercise(rng, scene) -> Exercise:
    """A question with a one-word answer; what colour or thing something is can be seen there."""
    kind, asked, reply = make_question(rng, scene)
    where = None
    if kind in ("color", "category"):
        targets = meaning(scene, asked[asked.index("the "):-1]).targets
        where = union_mask(scene, targets)
    return Exercise(Turn(asked, (reply,)), (where,))


def copy_exercise(rng, scene) -> Exercise:
    """Say a phrase again, whatever the picture shows: descriptors repeat labels never seen before."""
    phrase = any_phrase(rng)
    if rng.random() < 0.6:  # LoRA trains no embeddings, so whatever descriptors are made of must be known
        phrase = f"<seg>{any_pieces(rng, _asked(rng, scene)[0])}</seg>"
    return Exercise(Turn(COPY[int(rng.integers(len(COPY)))].format(phrase), (phrase,)))


EXERCISES = {"box": (0.38, box_exercise), "row": (0.1, row_exercise), "spans": (0.08, spans_exercise),
             "point": (0.1, point_exercise), "ask": (0.21, ask_exercise), "list": (0.05, list_exercise),
             "copy": (0.08, copy_exercise)}
"""Exercises by name: how often each is drawn, and what draws it."""
