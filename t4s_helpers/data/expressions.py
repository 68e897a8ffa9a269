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

from dataclasses import dataclass
from itertools import product

import numpy as np

from .sample import Sample
from .scenes import (
    CATEGORIES, COLORS, SIZES, SPLITS, Scene, SceneObject, is_novel, make_scene,
)

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


@dataclass(frozen=True)
class Description:
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

    def fits(self, thing: SceneObject) -> bool:
        wanted = (self.size, self.color, self.category)
        return all(word in (None, seen) for word, seen in zip(wanted, thing.words))

    def of(self, scene: Scene) -> tuple[int, ...]:
        return tuple(k for k, thing in enumerate(scene.objects) if self.fits(thing))


def _describe(thing: SceneObject, use: tuple[bool, ...]) -> Description:
    return Description(*(word if keep else None for word, keep in zip(thing.words, use)))


_USES = [use for use in product((False, True), repeat=3) if any(use)]
"""Which of size, colour and category a description says."""


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


# --- one builder per kind: an Expression, or None where the scene does not lend itself to it ------


def _attribute(rng, scene: Scene) -> Expression | None:
    k = int(rng.integers(len(scene.objects)))
    description = _unique(rng, scene, k)
    return description and Expression(f"the {description}", "attribute", (k,))


def _position(rng, scene: Scene) -> Expression | None:
    word = str(rng.choice(list(SUPERLATIVES)))
    thing = _one_of(rng, scene.objects)
    description = Description() if rng.random() < 0.15 else _describe(thing, _one_of(rng, _USES))
    k = extreme(scene, description.of(scene), word)
    return None if k is None else Expression(f"the {word} {description}", "position", (k,))


def _relation(rng, scene: Scene) -> Expression | None:
    if len(scene.objects) < 2:
        return None
    k, other = _two_of(rng, scene)
    landmark = _unique(rng, scene, other)
    relation = str(rng.choice(list(RELATIONS)))
    description = _describe(scene.objects[k], _one_of(rng, _USES))
    if landmark is None or related(scene, description, relation, other) != (k,):
        return None
    return Expression(f"the {description} {relation} the {landmark}", "relation", (k,))


def related(scene: Scene, description: Description, relation: str,
            other: int) -> tuple[int, ...] | None:
    """Objects that fit and stand in the relation to ``other``; ``None`` when in doubt."""
    truth = {
        k: holds(scene.objects[k], relation, scene.objects[other])
        for k in description.of(scene) if k != other
    }
    return None if None in truth.values() else tuple(k for k, yes in truth.items() if yes)


def _all(rng, scene: Scene) -> Expression | None:
    description = Description() if rng.random() < 0.1 else _some_description(rng, scene)
    targets = description.of(scene)
    return Expression(f"all {description.plural()}", "all", targets) if len(targets) > 1 else None


def _pair(rng, scene: Scene) -> Expression | None:
    if len(scene.objects) < 2:
        return None
    pair = _two_of(rng, scene)
    words = [_unique(rng, scene, k) for k in pair]
    if None in words:
        return None
    return Expression(f"the {words[0]} and the {words[1]}", "pair", tuple(sorted(pair)))


def _none(rng, scene: Scene) -> Expression | None:
    """Mostly a near miss: an object's description with one word changed."""
    if rng.random() < 0.25:
        return _none_relation(rng, scene)
    thing, use = _one_of(rng, scene.objects), _one_of(rng, _USES)
    words = [word if keep else None for word, keep in zip(thing.words, use)]
    slot = int(rng.choice(np.flatnonzero(use)))
    words[slot] = str(rng.choice((list(SIZES), list(COLORS), CATEGORIES)[slot]))
    description = Description(*words)
    if description.of(scene):
        return None
    text = f"all {description.plural()}" if rng.random() < 0.25 else f"the {description}"
    return Expression(text, "none", ())


def _none_relation(rng, scene: Scene) -> Expression | None:
    k, other = (int(i) for i in rng.integers(len(scene.objects), size=2))
    landmark = _unique(rng, scene, other)
    relation = str(rng.choice(list(RELATIONS)))
    description = _describe(scene.objects[k], _one_of(rng, _USES))
    if k == other or landmark is None or related(scene, description, relation, other) != ():
        return None
    return Expression(f"the {description} {relation} the {landmark}", "none", ())


_BUILDERS = {
    "attribute": _attribute, "position": _position, "relation": _relation,
    "all": _all, "pair": _pair, "none": _none,
}


def make_expression(rng, scene: Scene, kinds=SINGLE_KINDS, tries: int = 12) -> Expression:
    """Draw one expression of one of ``kinds`` for ``scene``.

    Args:
        rng: a ``numpy.random.Generator``.
        kinds: names from `GRES_KINDS`. They are tried in random order, each ``tries`` times, so
            that rare kinds come up as often as a scene allows.

    Returns:
        an expression whose targets are certain. Where no kind succeeds, the full description of
        an object (or of all that share it), or a no-target one if only that is asked.

    Raises:
        ValueError: an unknown kind.
    """
    unknown = set(kinds) - set(_BUILDERS)
    if unknown:
        raise ValueError(f"Unknown kind of expression {sorted(unknown)}: use {GRES_KINDS}.")
    for i in rng.permutation(len(kinds)):
        for _ in range(tries):
            found = _BUILDERS[kinds[i]](rng, scene)
            if found is not None:
                return found
    return _last_resort(scene, kinds)


def _last_resort(scene: Scene, kinds) -> Expression:
    if set(kinds) == {"none"}:
        absent = next(d for c, k in product(COLORS, CATEGORIES)
                      if not (d := Description(None, c, k)).of(scene))
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
    ordered = sorted(scene.objects, key=lambda o: o.center[0])
    return ", ".join(_a(f"{o.size} {o.color} {o.category}") for o in ordered)


def make_question(rng, scene: Scene) -> tuple[str, str, str]:
    """Draw ``(kind, question, answer)`` with a one-word answer.

    Kinds: ``count`` (a digit), ``exist`` and ``side`` (yes or no), ``color``, ``category``.
    """
    builders = (_ask_count, _ask_exist, _ask_color, _ask_category, _ask_side)
    while True:
        found = _one_of(rng, builders)(rng, scene)
        if found is not None:
            return found


def _ask_count(rng, scene: Scene) -> tuple[str, str, str]:
    description = Description() if rng.random() < 0.2 else _some_description(rng, scene)
    if rng.random() < 0.15:
        description = Description(None, None, str(rng.choice(CATEGORIES)))
    return "count", f"How many {description.plural()} are there?", str(len(description.of(scene)))


def _ask_exist(rng, scene: Scene) -> tuple[str, str, str] | None:
    if rng.random() < 0.5:
        return "exist", f"Is there {_a(_some_description(rng, scene))}?", "yes"
    absent = make_expression(rng, scene, ("none",)).text
    if not absent.startswith("the ") or any(word in absent for word in RELATIONS):
        return None
    return "exist", f"Is there {_a(absent[4:])}?", "no"


def _a(noun) -> str:
    """The noun with its article: "an orange star"."""
    return f"{'an' if str(noun)[0] in 'aeiou' else 'a'} {noun}"


def _ask_color(rng, scene: Scene) -> tuple[str, str, str] | None:
    uses = ((False, False, True), (True, False, True), (True, False, False))
    return _ask_word(rng, scene, "color", "What color is the {}?", uses)


def _ask_category(rng, scene: Scene) -> tuple[str, str, str] | None:
    uses = ((False, True, False), (True, True, False), (True, False, False))
    return _ask_word(rng, scene, "category", "What is the {}?", uses)


def _ask_word(rng, scene: Scene, kind: str, wording: str, uses) -> tuple[str, str, str] | None:
    k = int(rng.integers(len(scene.objects)))
    description = _describe(scene.objects[k], _one_of(rng, uses))
    if description.of(scene) != (k,):
        return None
    return kind, wording.format(description), getattr(scene.objects[k], kind)


def _ask_side(rng, scene):
    if len(scene.objects) < 2:
        return None
    a, b = _two_of(rng, scene)
    words = [_unique(rng, scene, k) for k in (a, b)]
    relation = str(rng.choice(list(RELATIONS)))
    truth = holds(scene.objects[a], relation, scene.objects[b])
    if None in words or truth is None:
        return None
    return "side", f"Is the {words[0]} {relation} the {words[1]}?", "yes" if truth else "no"


# --- samples ------------------------------------------------------------------------------------


def scene_sample(split: str, index: int, task: str = "res", kinds=None,
                 palette: str = "seen") -> Sample:
    """One request about scene ``index`` of ``split``.

    Args:
        task: ``res`` and ``rec`` (one target), ``gres`` (any number; one request in four has
            no target), ``semantic`` (every category present is a label), ``vqa``.
        kinds: kinds of expression; by default those that belong to the task.
        palette: see `t4s_helpers.data.scenes.make_scene`; only ``semantic`` requests, which name
            no colour, go with another than the seen one.

    Raises:
        ValueError: words of colour would be asked about paint that they do not describe.

    Returns:
        a `Sample` whose ``meta`` holds ``kind``, ``n_objects``, ``n_targets`` and, for one target,
        its ``size`` word and whether its colour and category are a held-out pair (``novel``).
    """
    if palette != "seen" and task != "semantic":
        raise ValueError(f"Task {task!r} names colours, which the palette {palette!r} does not show: "
                         "ask for task 'semantic'.")
    scene = make_scene(split, index, palette=palette)
    rng = np.random.default_rng([SPLITS[split], index, _TASK_STREAM[task]])
    return request(rng, scene, task, kinds)


def request(rng, scene: Scene, task: str = "res", kinds=None) -> Sample:
    """One request about a scene, drawn with ``rng``; see `scene_sample`."""
    common = {"id": f"{task}-{scene.id}", "image": scene.image, "task": task,
              "split": scene.split}
    if task == "vqa":
        kind, question, answer = make_question(rng, scene)
        return Sample(**common, labels=(), masks=np.zeros((0, *scene.image.shape[:2]), bool),
                      question=question, answer=answer, meta={"kind": kind})
    if task == "semantic":
        labels = tuple(sorted({o.category for o in scene.objects}))
        masks = [union_mask(scene, Description(None, None, c).of(scene)) for c in labels]
        return Sample(**common, labels=labels, masks=np.stack(masks),
                      meta={"kind": "semantic", "n_objects": len(scene.objects)})
    expression = make_expression(rng, scene, kinds or _task_kinds(rng, task))
    return Sample(**common, labels=(expression.text,),
                  masks=union_mask(scene, expression.targets)[None],
                  meta=_facts(scene, expression))


_DIALOGUE_STREAM = 15
_TASK_STREAM = {"res": 11, "rec": 11, "gres": 12, "semantic": 13, "vqa": 14}
"""``rec`` asks what ``res`` asks, so that boxes and masks are scored on the same requests."""


def _task_kinds(rng, task: str):
    if task in ("res", "rec"):
        return SINGLE_KINDS
    return ("none",) if rng.random() < 0.25 else (*SINGLE_KINDS, "all", "pair")


def _facts(scene: Scene, expression: Expression) -> dict:
    facts = {"kind": expression.kind, "n_objects": len(scene.objects),
             "n_targets": len(expression.targets)}
    if len(expression.targets) == 1:
        thing = scene.objects[expression.targets[0]]
        facts |= {"size": thing.size, "novel": is_novel(thing.color, thing.category)}
    return facts


def scene_samples(split: str, n: int, task: str = "res", start: int = 0, kinds=None,
                  palette: str = "seen"):
    """The requests of scenes ``start`` to ``start + n - 1``; a list of ``n`` samples."""
    return [scene_sample(split, index, task, kinds, palette) for index in range(start, start + n)]


def scene_dialogue(split: str, index: int) -> tuple[Sample, Sample, Sample]:
    """Three requests in a row about scene ``index``: describe it, segment one thing, segment all.

    The first is answered in words (every object, left to right), the second names one object that
    its attributes tell from the others, the third asks for everything of its category.

    Source: the conversation of the paper's figure 19.
    """
    scene = make_scene(split, index)
    rng = np.random.default_rng([SPLITS[split], index, _DIALOGUE_STREAM])
    one = make_expression(rng, scene, ("attribute",))
    named = scene.objects[one.targets[0]]
    word = Description(None, None, named.category)
    common = {"image": scene.image, "split": split}
    words = Sample(f"talk-{scene.id}-0", labels=(), task="vqa", question="Describe the picture.",
                   masks=np.zeros((0, *scene.image.shape[:2]), bool), answer=caption(scene),
                   meta={"kind": "describe"}, **common)
    every = Expression(f"all {word.plural()}", "all", word.of(scene))
    asked = [Sample(f"talk-{scene.id}-{k}", labels=(e.text,), task="gres",
                    masks=union_mask(scene, e.targets)[None], meta=_facts(scene, e), **common)
             for k, e in enumerate((one, every), 1)]
    return words, *asked
