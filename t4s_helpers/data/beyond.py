"""Requests beyond the paper, on scenes: masks in the question, several names, corrections.

A mask is text, so it can stand wherever text can. Three tasks make use of that:

==============  ========================================================  ==============================
``ores``        all other things of the same color as ``<seg>...</seg>``  everything meant, one mask
``multi``       the red star, the blue cloud, the small heart             a mask for each that is there
``correction``  the red star; Also the blue cloud.; Not the small one.    the mask before, corrected
==============  ========================================================  ==============================

- ``ores`` asks by a reference and a criterion (`CRITERIA`). Each request is made twice: the reference in
  words (``text``) and as a mask in the question (``hybrid``), where its place in the words is `REFERENCE`.
  The reference itself is never among what is meant.
- ``multi`` names one to three things that are there and up to two that are not, at least two in all; one in
  ten times none is there. The answer's sentence says what is not there, and those labels have no cells.
- ``correction`` is a conversation of up to `DEEP` turns. Its one label is that of the first request; each
  further turn adds to the mask or takes from it, and no two turns have the same mask.

Source: RAS (Cao et al., 2025, arXiv 2506.05342) for omni-modal referring expression segmentation and its
criteria; GSVA (Xia et al., CVPR 2024) for several targets and the rejection of what is absent.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from .dataset import choose
from .expressions import (
    RELATIONS, Description, descriptions, make_expression, related, request, union_mask,
)
from .sample import BEYOND_TASKS, REFERENCE, Sample
from .scenes import SPLITS, Scene, make_scene

CRITERIA = ("category", "attribute", "location", "free")
"""What relates the things that are meant to the reference: their kind, their color or size, where they are,
or two of these at once."""

DEEP = 3
"""Turns of a correction, the first request included."""

_STREAMS = {"ores": 17, "multi": 18, "correction": 19}
_TRIES = 24
_SAME = {"size": 0, "color": 1, "kind": 2}  # places in `SceneObject.words`


def scene_items(split: str, n: int, task: str, start: int = 0) -> list:
    """Requests about drawn scenes for one of `t4s_helpers.data.sample.BEYOND_TASKS`.

    Returns:
        ``n`` samples, or of ``correction`` ``n`` tuples of them, turn by turn. Item ``i`` is about scene
        ``i``; of ``ores`` about scene ``i // 2``, even numbers in words and odd ones by a mask, so that
        both are asked the same.
    """
    choose("task", task, BEYOND_TASKS)
    make, each = {"ores": (ores, 2), "multi": (multi, 1), "correction": (correction, 1)}[task]
    end, made = start + n, {}
    for index in range(start // each, -(-end // each)):
        rng = np.random.default_rng([SPLITS[split], index, _STREAMS[task]])
        made[index] = make(rng, make_scene(split, index))
    return [made[i // 2][i % 2] if task == "ores" else made[i] for i in range(start, end)]


def requests(rng, scene: Scene, task: str) -> tuple[Sample, ...]:
    """One request about a scene for any task, drawn with ``rng``; of ``correction`` all its turns."""
    if task == "ores":
        return ores(rng, scene)[int(rng.integers(2))],
    if task == "multi":
        return multi(rng, scene),
    return correction(rng, scene) if task == "correction" else (request(rng, scene, task),)


def _sample(task: str, scene: Scene, name: str, labels: tuple[str, ...], targets: Iterable, **meta) -> Sample:
    """A sample whose mask ``k`` shows the objects ``targets[k]``."""
    masks = np.stack([union_mask(scene, one) for one in targets])
    meta = {"n_objects": len(scene.objects), "n_targets": len(set().union(*targets)), **meta}
    return Sample(f"{task}-{scene.id}{name}", scene.image, labels, masks, task, scene.split, meta=meta)


# --- references -----------------------------------------------------------------------------------


def ores(rng, scene: Scene) -> tuple[Sample, Sample]:
    """One request by reference, in words and with a mask; about one in three has no target.

    Returns:
        samples whose ``meta`` holds ``kind`` (of `CRITERIA`) and ``request``, ``text`` or ``hybrid``; of the
        second also the ``reference``, bool ``(H, W)``. The reference has a description that fits nothing
        else; where a scene has none, it is all that look alike.
    """
    reference, found = make_expression(rng, scene, ("attribute", "position")), None
    for _ in range(_TRIES):
        kind = str(rng.choice(CRITERIA))
        drawn = _CRITERIA[kind](rng, scene, reference.targets)
        found = (kind, *drawn) if drawn else found
        if drawn and (drawn[1] or rng.random() < 0.1):  # little is learned from nothing
            break
    kind, text, targets = found or ("category", *_alike(scene, reference.targets, ("kind",)))
    mask = union_mask(scene, reference.targets)
    return tuple(_sample("ores", scene, f"-{form}", (text.format(words),), [targets], kind=kind, request=form,
                         **more)
                 for form, words, more in (("text", reference.text, {}),
                                           ("hybrid", REFERENCE, {"reference": mask})))


def _alike(scene: Scene, held: tuple[int, ...], names) -> tuple[str, tuple[int, ...]]:
    """Words, with a place for the reference ``held``, and everything else with its kind, color or size."""
    words = scene.objects[held[0]].words
    targets = tuple(k for k, thing in enumerate(scene.objects) if k not in held
                    and all(thing.words[_SAME[name]] == words[_SAME[name]] for name in names))
    return f"all other things of the same {' and '.join(names)} as {{}}", targets


def _attribute(rng, scene: Scene, held):
    return _alike(scene, held, [str(rng.choice(["color", "size"]))])


def _location(rng, scene: Scene, held, description: Description | None = None):
    description = description or Description()
    relation = str(rng.choice(list(RELATIONS)))
    targets = related(scene, description, relation, held[0]) if len(held) == 1 else None
    return None if targets is None else (f"all {description.plural()} {relation} {{}}", targets)


def _free(rng, scene: Scene, held):
    """Two of the criteria at once."""
    if rng.random() < 0.5:
        left_out = str(rng.choice(list(_SAME)))
        return _alike(scene, held, [name for name in _SAME if name != left_out])
    named = descriptions(scene)
    return _location(rng, scene, held, named[int(rng.integers(len(named)))])


_CRITERIA = {"category": lambda rng, scene, held: _alike(scene, held, ("kind",)), "attribute": _attribute,
             "location": _location, "free": _free}


# --- several names ----------------------------------------------------------------------------------


def multi(rng, scene: Scene) -> Sample:
    """One request that names several things, those that are not there among them, in any order."""
    n_here = 0 if rng.random() < 0.1 else int(rng.integers(1, 4))
    here: dict[tuple[int, ...], str] = {}
    for _ in range(_TRIES):
        if len(here) < n_here:
            one = make_expression(rng, scene, ("attribute", "position"))
            here.setdefault(one.targets, one.text)
    n_absent, absent = max(int(rng.integers(3)), 2 - len(here)), dict[str, None]()
    while len(absent) < n_absent:
        text = make_expression(rng, scene, ("none",)).text
        if text.startswith("the ") and not any(word in text for word in RELATIONS):
            absent[text] = None
    things = [*((text, targets) for targets, text in here.items()), *((text, ()) for text in absent)]
    labels, targets = zip(*(things[k] for k in rng.permutation(len(things))))
    return _sample("multi", scene, "", labels, targets, kind=f"{len(here)} of {len(things)}")


# --- corrections ------------------------------------------------------------------------------------


def correction(rng, scene: Scene) -> tuple[Sample, ...]:
    """A first request and its corrections, two or three turns; one where a scene has no room for more.

    Returns:
        samples whose ``meta`` holds ``kind``, ``first``, ``add`` or ``drop``, and from the second on
        ``change``, the words for what is added or dropped.
    """
    first = make_expression(rng, scene, ("attribute", "position", "all", "pair"))
    turns = [("first", "", frozenset(first.targets))]
    while len(turns) < DEEP and (steps := _steps(scene, [held for *_, held in turns])):
        kind = str(rng.choice(sorted({step[0] for step in steps})))
        steps = [step for step in steps if step[0] == kind]
        turns.append(steps[int(rng.integers(len(steps)))])
    return tuple(_sample("correction", scene, f"-{k}", (first.text,), [sorted(held)], kind=kind,
                         **({"change": change} if change else {}))
                 for k, (kind, change, held) in enumerate(turns))


def _steps(scene: Scene, before: list[frozenset]) -> list[tuple[str, str, frozenset]]:
    """All corrections that lead to a new mask; to an empty one only where there is no other."""
    held, steps = before[-1], []
    for description in descriptions(scene):
        fits = frozenset(description.of(scene))
        meant = fits & held or fits
        kind, after = ("drop", held - fits) if fits & held else ("add", held | fits)
        words = str(description) if len(meant) == 1 else description.plural()
        # "Not the large one" speaks of those that are marked; "also the large thing" of all the others.
        words = words.replace("thing", "one") if kind == "drop" else words
        if after not in before:
            steps.append((kind, f"the {words}", after))
    return [step for step in steps if step[2]] or steps
