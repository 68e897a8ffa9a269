"""What an expression means on a scene: the grammar of `expressions`, read instead of written.

`expressions` draws a meaning and words it; this module takes words that a person typed and finds
the objects that they name, so that any request in the grammar has a true mask. Like the grammar
it answers only where the meaning is beyond doubt; everything else is a `MeaningError` that says
what is unclear.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .expressions import RELATIONS, SUPERLATIVES, Description, Expression, extreme, related
from .scenes import CATEGORIES, COLORS, SIZES, Scene

_ARTICLES = ("the", "a", "an")
_RELATION = re.compile(rf"(?<!\S)({'|'.join(RELATIONS)})(?!\S)")
_AND = re.compile(r"(?<!\S)and(?!\S)")


class MeaningError(ValueError):
    """An expression without a certain meaning on this scene; the message says why."""


@dataclass(frozen=True)
class _Phrase:
    """"the leftmost small star" or "all red things": a choice among what a description fits."""

    description: Description
    plural: bool
    superlative: str | None

    def __str__(self) -> str:
        noun = self.description.plural() if self.plural else str(self.description)
        return f"{self.superlative} {noun}" if self.superlative else noun


def meaning(scene: Scene, text: str) -> Expression:
    """The objects of ``scene`` that ``text`` names.

    Args:
        scene: a `t4s_helpers.data.scenes.Scene`.
        text: an expression of the scenes' grammar; case, the article and a full stop at the end
            do not matter.

    Returns:
        an `t4s_helpers.data.expressions.Expression`, of kind ``none`` and without targets where
        the description fits nothing.

    Raises:
        MeaningError: a word outside the grammar, a description that should fit one object and
            fits several, or a position too close to call.

    >>> from t4s_helpers.data.scenes import make_scene
    >>> meaning(make_scene("val", 3), "all large things").kind
    'all'
    """
    said = " ".join(text.casefold().strip(" .!?").split())
    if not said:
        raise MeaningError("The expression is empty: name something, such as 'the red star'.")
    relations, halves = _RELATION.findall(said), _AND.split(said)
    if len(relations) > 1:
        raise MeaningError(f"One relation at a time, please: {' and '.join(relations)}.")
    if len(halves) > 2 or (len(halves) == 2 and relations):
        raise MeaningError("An 'and' joins two plain descriptions: ask for the rest on its own.")
    if len(halves) == 2:
        return Expression(text, "pair", _pair(scene, [_read(half) for half in halves]))
    phrase, *rest = _RELATION.split(said)
    phrase = _read(phrase)
    targets = _choose(scene, phrase, _related(scene, phrase, rest[0], _read(rest[1])) if rest
                      else phrase.description.of(scene))
    kind = ("none" if not targets else "all" if phrase.plural else "relation" if rest
            else "position" if phrase.superlative else "attribute")
    return Expression(text, kind, targets)


def _pair(scene: Scene, phrases: list[_Phrase]) -> tuple[int, ...]:
    """The objects that either of two phrases names."""
    targets: set[int] = set()
    for phrase in phrases:
        found = _choose(scene, phrase, phrase.description.of(scene))
        if not found:
            raise MeaningError(f"There is no {phrase} here, so one half of the 'and' is missing.")
        targets.update(found)
    return tuple(sorted(targets))


def _read(text: str) -> _Phrase:
    """A text as [all | article] [superlative] [size] [colour] noun."""
    rest = text.split()

    def take(known) -> str | None:
        return rest.pop(0) if rest and rest[0] in known else None

    every = take(("all",)) is not None
    take(("the",) if every else _ARTICLES)
    superlative, size, color = take(SUPERLATIVES), take(SIZES), take(COLORS)
    noun = rest.pop(0) if rest else ""
    category, plural = _noun(noun)
    if rest:
        raise MeaningError(f"After {noun!r} the scenes' grammar expects nothing more, but there is "
                           f"{' '.join(rest)!r}; relations are {', '.join(RELATIONS)}.")
    if superlative and (every or plural):
        raise MeaningError(f"There is one {superlative} thing at most: ask for it in the singular.")
    return _Phrase(Description(size, color, category), every or plural, superlative)


def _noun(word: str) -> tuple[str | None, bool]:
    """Category, ``None`` for "thing", and whether the word is a plural."""
    known = {"thing": None, **{category: category for category in CATEGORIES}}
    for form, plural in ((word, False), (word.removesuffix("s"), True)):
        if form in known:
            return known[form], plural
    said = f"does not know the word {word!r}" if word else "misses a noun"
    raise MeaningError(
        f"The scenes' grammar {said}: say [size] [colour] thing with {', '.join(SIZES)}; "
        f"{', '.join(COLORS)}; thing, {', '.join(CATEGORIES)}."
    )


def _choose(scene: Scene, phrase: _Phrase, among: tuple[int, ...]) -> tuple[int, ...]:
    """What the phrase names of the objects that it fits."""
    if phrase.plural or len(among) < 2:
        return among
    if phrase.superlative is None:
        raise MeaningError(f"{len(among)} objects are a {phrase.description}: add a word, or ask "
                           f"for all {phrase.description.plural()}.")
    k = extreme(scene, among, phrase.superlative)
    if k is None:
        raise MeaningError(f"Two objects are too close to call for the {phrase}: add a word.")
    return (k,)


def _related(scene: Scene, phrase: _Phrase, relation: str, landmark: _Phrase) -> tuple[int, ...]:
    """What the phrase's description fits and stands in the relation to the one landmark."""
    if landmark.plural:
        raise MeaningError(f"{relation!r} needs one landmark, but {str(landmark)!r} is a plural.")
    marks = _choose(scene, landmark, landmark.description.of(scene))
    if not marks:
        return ()  # nothing can be left of what is not there
    near = related(scene, phrase.description, relation, marks[0])
    if near is None:
        raise MeaningError(f"Whether the {phrase.description} is {relation} the {landmark} is too "
                           "close to call: choose another relation.")
    return near
