"""What the base is taught: exercises with short answers about scenes, by the dozen."""

from __future__ import annotations

import numpy as np

from ...codec.grid import masks_to_grid
from ...data.expressions import caption, make_expression, make_question, union_mask
from ...data.prompts import BOX_BINS, Turn, box_in_words, question
from ...data.scenes import SCENE_SIZE
from .words import COPY, any_phrase

KINDS = (*["attribute"] * 3, *["position"] * 2, *["relation"] * 2, "all", "pair", "none", "none")
"""Kinds of expression, as often as they are drawn."""


def some_exercises(seed, scene, n: int) -> list[Turn]:
    """``n`` exercises about a scene, none asked twice."""
    rng, turns = np.random.default_rng(seed), {}
    names, shares = list(EXERCISES), [share for share, _ in EXERCISES.values()]
    while len(turns) < n:
        turn = EXERCISES[str(rng.choice(names, p=shares))][1](rng, scene)
        turns[turn.question] = turn
    return list(turns.values())


def box_turn(rng, scene) -> Turn:
    """Where something is, or that it is nowhere."""
    expression = make_expression(rng, scene, [str(rng.choice(KINDS))])
    where = box_in_words(union_mask(scene, expression.targets))
    return Turn(question("box", [expression.text], rng), (where,))


def row_turn(rng, scene) -> Turn:
    """Which cells of one row of the 16 x 16 grid show something: "at 3, 5 wide", or "none"."""
    expression = make_expression(rng, scene, [str(rng.choice(KINDS))])
    grid = masks_to_grid(union_mask(scene, expression.targets)[None], 16)
    shown = np.flatnonzero(grid.any(1))
    row = int(rng.choice(shown)) if len(shown) and rng.random() < 0.8 else int(rng.integers(16))
    return Turn(question("row", [expression.text], rng, row=row, rows=16), (spans_in_words(grid[row]),))


def spans_in_words(row: np.ndarray) -> str:
    """First cell and width of each run of non-zero cells.

    >>> spans_in_words(np.array([0, 0, 1, 1, 0, 1]))
    'at 2, 2 wide; at 5, 1 wide'
    """
    edges = np.flatnonzero(np.diff(np.concatenate(([0], row > 0, [0]))))
    spans = [f"at {a}, {b - a} wide" for a, b in zip(edges[::2], edges[1::2])]
    return "; ".join(spans) or "none"


def point_turn(rng, scene) -> Turn:
    """What covers a point, given in the units of boxes: an object's three words, or "nothing"."""
    step = SCENE_SIZE // BOX_BINS
    covers = np.stack([o.mask.reshape(BOX_BINS, step, BOX_BINS, step).mean((1, 3))
                       for o in scene.objects])
    shown = int(rng.integers(len(scene.objects))) if rng.random() < 0.85 else None
    sure = covers.max(0) == 0 if shown is None else covers[shown] == 1
    if not sure.any():
        return box_turn(rng, scene)
    y, x = (int(v) for v in np.argwhere(sure)[int(rng.integers(sure.sum()))])
    words = "nothing" if shown is None else " ".join(scene.objects[shown].words)
    return Turn(f"What is at {x} {y}?", (words,))


def list_turn(rng, scene) -> Turn:
    """Everything from left to right, with boxes or without."""
    if rng.random() < 0.3:
        return Turn("Describe the picture.", (caption(scene),))
    ordered = sorted(scene.objects, key=lambda thing: thing.center[0])
    said = [f"{' '.join(thing.words)} {box_in_words(thing.mask)}" for thing in ordered]
    return Turn("List everything with its box.", (", ".join(said),))


def ask_turn(rng, scene) -> Turn:
    """A question with a one-word answer."""
    _, ask, reply = make_question(rng, scene)
    return Turn(ask, (reply,))


def copy_turn(rng, scene) -> Turn:
    """Say a phrase again, whatever the picture shows: descriptors repeat labels never seen before."""
    phrase = any_phrase(rng)
    if rng.random() < 0.3:  # LoRA trains no embeddings, so the tags must be known by then
        phrase = f"<seg>{phrase}</seg>"
    return Turn(COPY[int(rng.integers(len(COPY)))].format(phrase), (phrase,))


EXERCISES = {"box": (0.4, box_turn), "row": (0.15, row_turn), "point": (0.12, point_turn),
             "ask": (0.2, ask_turn), "list": (0.05, list_turn), "copy": (0.08, copy_turn)}
"""Exercises by name: how often each is drawn, and what draws it."""
