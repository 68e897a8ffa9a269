"""Words about rendered scenes: referring expressions, captions, questions, class requests.

An expression is built together with its meaning: the grammar draws a description, evaluates it on
the scene's objects, and keeps it only when the meaning is beyond doubt. ``None`` from a predicate
means "a careful reader could argue" (two objects almost level, say); such expressions are dropped.

Kinds of request, by `Expression.kind`:

==============  ==========================================  =========
``attribute``   the small red umbrella                      1 target
``position``    the leftmost star                           1 target
``relation``    the red umbrella left of the star           1 target
``all``         all blue things; all small stars            2 or more
``pair``        the red star and the blue cloud             2
``none``        a description that fits nothing here        0
==============  ==========================================  =========
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import NamedTuple

import numpy as np

from .dataset import choose
from .sample import CLASS_TASKS, Sample
from .scenes import CATEGORIES, COLORS, SIZES, SPLITS, Scene, SceneObject, is_novel, make_scene

MARGIN = 8.0
"""Pixels by which centres must differ before "left of", "leftmost" and the like are used."""

RELATIONS = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}
"""Relation word -> (axis of ``center``: 0 is x, 1 is y; sign of the difference)."""

SUPERLATIVES = {"leftmost": (0, -1), "rightmost": (0, 1), "highest": (1, -1), "lowest": (1, 1)}

SINGLE_KINDS = ("attribute", "position", "relation")
GRES_KINDS = (*SINGLE_KINDS, "all", "pair", "none")


@dataclass(frozen=True)
class Expression:
    """A request in words and the indices of the objects that it names (none: no target)."""

    text: str
    kind: str
    targets: tuple[int, ...]


class Description(NamedTuple):
    """A conjunction of attributes; ``None`` leaves one open.

    >>> str(Description("small", "red", None)), Description(None, "red", "star").plural()
    ('small red thing', 'red stars')
    """

    size: str | None = None
    color: str | None = None
    category: str | None = None

    def __str__(self) -> str:
        return " ".join(filter(None, (self.size, self.color, self.category or "thing")))

    def plural(self) -> str:
        return f"{self}s"

    def of(self, scene: Scene) -> tuple[int, ...]:
        """Indices of the objects that it fits."""
        return tuple(k for k, thing in enumerate(scene.objects)
                     if all(word in (None, seen) for word, seen in zip(self, thing.words)))


def _describe(thing: SceneObject, use: tuple[bool, ...]) -> Description:
    return Description(*(word if keep else None for word, keep in zip(thing.words, use)))


_USES = [use for use in product((False, True), repeat=3) if any(use)]
"""Which of size, colour and category a description says."""


def descriptions(scene: Scene) -> list[Description]:
    """Every description that fits something in a scene, each once."""
    return list(dict.fromkeys(_describe(thing, use) for thing in scene.objects for use in _USES))


def _one_of(rng, values):
    return values[int(rng.integers(len(values)))]


def _two_of(rng, scene: Scene) -> tuple[int, int]:
    k, other = rng.choice(len(scene.objects), 2, replace=False)
    return int(k), int(other)


def _some_description(rng, scene: Scene) -> Description:
    return _describe(_one_of(rng, scene.objects), _one_of(rng, _USES))


def _unique(rng, scene: Scene, k: int) -> Description | None:
    """A random description that fits object ``k`` and no other."""
    for i in rng.permutation(len(_USES)):
        description = _describe(scene.objects[k], _USES[i])
        if description.of(scene) == (k,):
            return description
    return None


def holds(a: SceneObject, relation: str, b: SceneObject) -> bool | None:
    """Whether ``a`` is e.g. "left of" ``b`` by centres; ``None`` within `MARGIN` pixels."""
    axis, sign = RELATIONS[relation]
    gap = sign * (a.center[axis] - b.center[axis])
    return None if abs(gap) < MARGIN else gap > 0


def extreme(scene: Scene, among: tuple[int, ...], word: str) -> int | None:
    """Index of the e.g. "leftmost" object ``among`` some; ``None`` when the margin is thin."""
    axis, sign = SUPERLATIVES[word]
    ranked = sorted(among, key=lambda k: -sign * scene.objects[k].center[axis])
    if len(ranked) < 2:
        return None
    first, second = (scene.objects[k].center[axis] for k in ranked[:2])
    return ranked[0] if abs(first - second) >= MARGIN else None


def related(scene: Scene, description: Description, relation: str,
            other: int) -> tuple[int, ...] | None:
    """Objects that fit and stand in the relation to ``other``; ``None`` when in doubt."""
    truth = {k: holds(scene.objects[k], relation, scene.objects[other])
             for k in description.of(scene) if k != other}
    return None if None in truth.values() else tuple(k for k, yes in truth.items() if yes)


# --- one builder per kind: text and targets, or None where the scene does not lend itself to it ----


def _attribute(rng, scene: Scene):
    k = int(rng.integers(len(scene.objects)))
    description = _unique(rng, scene, k)
    return description and (f"the {description}", (k,))


def _position(rng, scene: Scene):
    word = str(rng.choice(list(SUPERLATIVES)))
    thing = _one_of(rng, scene.objects)
    description = Description() if rng.random() < 0.15 else _describe(thing, _one_of(rng, _USES))
    k = extreme(scene, description.of(scene), word)
    return None if k is None else (f"the {word} {description}", (k,))


def _relation(rng, scene: Scene):
    if len(scene.objects) < 2:
        return None
    k, other = _two_of(rng, scene)
    return _beside(rng, scene, k, other, (k,))


def _beside(rng, scene: Scene, k: int, other: int, wanted: tuple[int, ...]):
    """Object ``k`` in words and in relation to another, if that names just the ``wanted`` ones."""
    landmark = _unique(rng, scene, other)
    relation = str(rng.choice(list(RELATIONS)))
    description = _describe(scene.objects[k], _one_of(rng, _USES))
    if landmark is None or related(scene, description, relation, other) != wanted:
        return None
    return f"the {description} {relation} the {landmark}", wanted


def _all(rng, scene: Scene):
    description = Description() if rng.random() < 0.1 else _some_description(rng, scene)
    targets = description.of(scene)
    return (f"all {description.plural()}", targets) if len(targets) > 1 else None


def _pair(rng, scene: Scene):
    if len(scene.objects) < 2:
        return None
    pair = _two_of(rng, scene)
    words = [_unique(rng, scene, k) for k in pair]
    return None if None in words else (f"the {words[0]} and the {words[1]}", tuple(sorted(pair)))


def _none(rng, scene: Scene):
    """Mostly a near miss: an object's description with one word changed."""
    if rng.random() < 0.25:
        k, other = rng.integers(len(scene.objects), size=2)
        found = _beside(rng, scene, k, other, ())
        return None if k == other else found
    thing, use = _one_of(rng, scene.objects), _one_of(rng, _USES)
    slot = int(rng.choice(np.flatnonzero(use)))
    word = str(rng.choice((list(SIZES), list(COLORS), CATEGORIES)[slot]))
    description = _describe(thing, use)._replace(**{Description._fields[slot]: word})
    if description.of(scene):
        return None
    return f"all {description.plural()}" if rng.random() < 0.25 else f"the {description}", ()


_BUILDERS = {
    "attribute": _attribute, "position": _position, "relation": _relation,
    "all": _all, "pair": _pair, "none": _none,
}
_TRIES = 12  # of each kind, so that rare kinds come up as often as a scene allows


def make_expression(rng, scene: Scene, kinds=SINGLE_KINDS) -> Expression:
    """Draw one expression of one of ``kinds`` for ``scene``.

    Args:
        rng: a ``numpy.random.Generator``.
        kinds: names from `GRES_KINDS`, tried in random order.

    Returns:
        an expression whose targets are certain. Where no kind succeeds, the full description of
        an object (or of all that share it), or a no-target one if only that is asked.

    Raises:
        ValueError: an unknown kind.
    """
    for kind in kinds:
        choose("kind", kind, GRES_KINDS)
    for i in rng.permutation(len(kinds)):
        for _ in range(_TRIES):
            if found := _BUILDERS[kinds[i]](rng, scene):
                text, targets = found
                return Expression(text, kinds[i], targets)
    return _last_resort(scene, kinds)


def _last_resort(scene: Scene, kinds) -> Expression:
    if set(kinds) == {"none"}:
        pairs = (Description(None, *pair) for pair in product(COLORS, CATEGORIES))
        absent = next(pair for pair in pairs if not pair.of(scene))
        return Expression(f"the {absent}", "none", ())
    full = [Description(*thing.words) for thing in scene.objects]
    for k, description in enumerate(full):
        if description.of(scene) == (k,):
            return Expression(f"the {description}", "attribute", (k,))
    k = max(range(len(full)), key=lambda i: scene.objects[i].mask.sum())
    return Expression(f"all {full[k].plural()}", "all", full[k].of(scene))


def union_mask(scene: Scene, targets) -> np.ndarray:
    """Visible pixels of the named objects, bool ``(H, W)``; all False for no target."""
    mask = np.zeros(scene.image.shape[:2], bool)
    for k in targets:
        mask |= scene.objects[k].mask
    return mask


# --- captions and questions ---------------------------------------------------------------------


def caption(scene: Scene) -> str:
    """All objects from left to right: ``"a small red star, a large blue cloud"``."""
    ordered = sorted(scene.objects, key=lambda thing: thing.center[0])
    return ", ".join(_a(Description(*thing.words)) for thing in ordered)


def make_question(rng, scene: Scene) -> tuple[str, str, str]:
    """Draw ``(kind, question, answer)`` with a one-word answer.

    Kinds: ``count`` (a digit), ``exist`` and ``side`` (yes or no), ``color``, ``category``.
    """
    while True:
        kind = _one_of(rng, tuple(_ASKERS))
        if found := _ASKERS[kind](rng, scene):
            return kind, *found


def _ask_count(rng, scene: Scene):
    description = Description() if rng.random() < 0.2 else _some_description(rng, scene)
    if rng.random() < 0.15:
        description = Description(None, None, str(rng.choice(CATEGORIES)))
    return f"How many {description.plural()} are there?", str(len(description.of(scene)))


def _ask_exist(rng, scene: Scene):
    if rng.random() < 0.5:
        return f"Is there {_a(_some_description(rng, scene))}?", "yes"
    absent = make_expression(rng, scene, ("none",)).text
    if not absent.startswith("the ") or any(word in absent for word in RELATIONS):
        return None
    return f"Is there {_a(absent[4:])}?", "no"


def _a(noun) -> str:
    """The noun with its article: "an orange star"."""
    return f"{'an' if str(noun)[0] in 'aeiou' else 'a'} {noun}"


def _ask_word(rng, scene: Scene, kind: str, wording: str, uses):
    """Ask for the ``kind`` of word, in a description of one object that says the ``uses``."""
    k = int(rng.integers(len(scene.objects)))
    description = _describe(scene.objects[k], _one_of(rng, uses))
    if description.of(scene) != (k,):
        return None
    return wording.format(description), getattr(scene.objects[k], kind)


def _ask_side(rng, scene: Scene):
    if len(scene.objects) < 2:
        return None
    a, b = _two_of(rng, scene)
    words = [_unique(rng, scene, k) for k in (a, b)]
    relation = str(rng.choice(list(RELATIONS)))
    truth = holds(scene.objects[a], relation, scene.objects[b])
    if None in words or truth is None:
        return None
    return f"Is the {words[0]} {relation} the {words[1]}?", "yes" if truth else "no"


_ASKERS = {
    "count": _ask_count, "exist": _ask_exist,
    "color": partial(_ask_word, kind="color", wording="What color is the {}?", uses=(
        (False, False, True), (True, False, True), (True, False, False))),
    "category": partial(_ask_word, kind="category", wording="What is the {}?", uses=(
        (False, True, False), (True, True, False), (True, False, False))),
    "side": _ask_side,
}


# --- samples ------------------------------------------------------------------------------------


_STREAMS = {"res": 11, "rec": 11, "gres": 12, "semantic": 13, "vqa": 14, "conversation": 15,
            "instances": 16}
"""``rec`` asks what ``res`` asks, so that boxes and masks are scored on the same requests."""


def scene_sample(split: str, index: int, task: str = "res", palette: str = "seen") -> Sample:
    """One request about scene ``index`` of ``split``.

    Args:
        task: ``res`` and ``rec`` (one target), ``gres`` (any number; one request in four has
            no target), ``semantic`` (every category present is a label), ``instances`` (so is one
            that is absent), ``vqa``.
        palette: see `t4s_helpers.data.scenes.make_scene`; only requests about classes, which name
            no colour, go with another than the seen one.

    Raises:
        ValueError: words of colour would be asked about paint that they do not describe.

    Returns:
        a `Sample` whose ``meta`` holds ``kind``, ``n_objects``, ``n_targets`` and, for one target,
        its ``size`` word and whether its colour and category are a held-out pair (``novel``); of
        ``instances`` the single objects and ``n_same``, the most of one category.
    """
    if palette != "seen" and task not in CLASS_TASKS:
        raise ValueError(f"Task {task!r} names colours, which the palette {palette!r} does not show: "
                         "ask for task 'semantic'.")
    scene = make_scene(split, index, palette)
    rng = np.random.default_rng([SPLITS[split], index, _STREAMS[task]])
    return request(rng, scene, task)


def scene_samples(split: str, n: int, task: str = "res", start: int = 0, palette: str = "seen"):
    """The requests of scenes ``start`` to ``start + n - 1``; a list of ``n`` samples."""
    return [scene_sample(split, index, task, palette) for index in range(start, start + n)]


def request(rng, scene: Scene, task: str = "res") -> Sample:
    """One request about a scene, drawn with ``rng``; see `scene_sample`."""
    if task == "vqa":
        kind, question, answer = make_question(rng, scene)
        return _in_words(scene, f"vqa-{scene.id}", kind, question, answer)
    if task in CLASS_TASKS:
        shown, meta = [o.category for o in scene.objects], {"kind": task, "n_objects": len(scene.objects)}
        absent = [_one_of(rng, [c for c in CATEGORIES if c not in shown])] if task == "instances" else []
        labels = tuple(sorted({*shown, *absent}))
        masks = [union_mask(scene, Description(None, None, c).of(scene)) for c in labels]
        if task == "instances":
            meta |= {"n_same": max(Counter(shown).values()), "instance_owners": [*map(labels.index, shown)],
                     "instance_masks": np.stack([o.mask for o in scene.objects])}
        return Sample(f"{task}-{scene.id}", scene.image, labels, np.stack(masks), task, scene.split,
                      meta=meta)
    kinds = SINGLE_KINDS
    if task == "gres":
        kinds = ("none",) if rng.random() < 0.25 else (*SINGLE_KINDS, "all", "pair")
    return _in_masks(scene, f"{task}-{scene.id}", task, make_expression(rng, scene, kinds))


def _in_words(scene: Scene, name: str, kind: str, question: str, answer: str) -> Sample:
    return Sample(name, scene.image, (), None, "vqa", scene.split, question, answer, {"kind": kind})


def _in_masks(scene: Scene, name: str, task: str, expression: Expression) -> Sample:
    targets = expression.targets
    facts = {"kind": expression.kind, "n_objects": len(scene.objects), "n_targets": len(targets)}
    if len(targets) == 1:
        thing = scene.objects[targets[0]]
        facts |= {"size": thing.size, "novel": is_novel(thing.color, thing.category)}
    return Sample(name, scene.image, (expression.text,), union_mask(scene, targets)[None], task,
                  scene.split, meta=facts)


def scene_dialogue(split: str, index: int) -> tuple[Sample, Sample, Sample]:
    """Three requests in a row about scene ``index``: describe it, segment one thing, segment all.

    The first is answered in words (every object, left to right), the second names one object that
    its attributes tell from the others, the third asks for everything of its category.

    Source: the conversation of the paper's figure 19.
    """
    scene = make_scene(split, index)
    rng = np.random.default_rng([SPLITS[split], index, _STREAMS["conversation"]])
    one = make_expression(rng, scene, ("attribute",))
    word = Description(None, None, scene.objects[one.targets[0]].category)
    every = Expression(f"all {word.plural()}", "all", word.of(scene))
    return (_in_words(scene, f"talk-{scene.id}-0", "describe", "Describe the picture.", caption(scene)),
            _in_masks(scene, f"talk-{scene.id}-1", "gres", one),
            _in_masks(scene, f"talk-{scene.id}-2", "gres", every))
