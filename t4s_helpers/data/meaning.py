"""What an expression means on a scene: the grammar of `expressions`, read instead of written.

`expressions` draws a meaning and words it; this module takes words that a person typed and finds
the objects that they name, so that any request in the grammar has a true mask. Like the grammar
it answers only where the meaning is beyond doubt; everything else is a `MeaningError` that says
what is unclear.
"""

from __future__ import annotations

from dataclasses import dataclass

from .expressions import RELATIONS, SUPERLATIVES, Description, Expression, extreme, related
from .scenes import CATEGORIES, COLORS, SIZES, Scene

_ARTICLES = ("the", "a", "an")
_RELATION_WORDS = {relation: tuple(relation.split()) for relation in RELATIONS}


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
    words = text.casefold().strip(" .!?").split()
    if not words:
        raise MeaningError("The expression is empty: name something, such as 'the red star'.")
    relation, at = _find_relation(words)
    if "and" in words:
        return _pair(scene, text, words, relation)
    if relation is None:
        phrase = _read(words)
        targets = _choose(scene, phrase, phrase.description.of(scene))
        return Expression(text, _kind(phrase, None, targets), targets)
    phrase, landmark = _read(words[:at]), _read(words[at + len(_RELATION_WORDS[relation]):])
    targets = _choose(scene, phrase, _related(scene, phrase, relation, landmark))
    return Expression(text, _kind(phrase, relation, targets), targets)


def _kind(phrase: _Phrase, relation: str | None, targets: tuple[int, ...]) -> str:
    if not targets:
        return "none"
    if phrase.plural:
        return "all"
    return "relation" if relation else "position" if phrase.superlative else "attribute"


def _pair(scene: Scene, text: str, words: list[str], relation: str | None) -> Expression:
    if relation is not None or words.count("and") > 1:
        raise MeaningError("An 'and' joins two plain descriptions: ask for the rest on its own.")
    targets: set[int] = set()
    for part in (words[: words.index("and")], words[words.index("and") + 1:]):
        phrase = _read(part)
        found = _choose(scene, phrase, phrase.description.of(scene))
        if not found:
            raise MeaningError(f"There is no {phrase} here, so one half of the 'and' is missing.")
        targets.update(found)
    return Expression(text, "pair", tuple(sorted(targets)))


def _find_relation(words: list[str]) -> tuple[str | None, int]:
    """The relation and where its words begin; ``(None, -1)`` without one."""
    found = [
        (relation, i)
        for relation, phrase in _RELATION_WORDS.items()
        for i in range(len(words))
        if tuple(words[i:i + len(phrase)]) == phrase
    ]
    if len(found) > 1:
        raise MeaningError(f"One relation at a time, please: {' and '.join(r for r, _ in found)}.")
    return found[0] if found else (None, -1)


def _read(words: list[str]) -> _Phrase:
    """Words as [all | article] [superlative] [size] [colour] noun."""
    rest = list(words)
    every = bool(rest) and rest[0] == "all"
    if rest and (every or rest[0] in _ARTICLES):
        rest.pop(0)
    if every and rest and rest[0] == "the":
        rest.pop(0)
    superlative = rest.pop(0) if rest and rest[0] in SUPERLATIVES else None
    size = rest.pop(0) if rest and rest[0] in SIZES else None
    color = rest.pop(0) if rest and rest[0] in COLORS else None
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


def _related(
    scene: Scene, phrase: _Phrase, relation: str, landmark: _Phrase
) -> tuple[int, ...]:
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
