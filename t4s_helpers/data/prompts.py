"""Questions, answers and conversations: how a sample becomes text.

An answer is a sentence, then the descriptors between ``<seg>`` and ``</seg>`` (paper, section 3.3).
All wordings are our own. Training draws among the templates with a seeded generator; evaluation
always uses the first of each list, so that a score never depends on chance.

Answers are kept as pieces (see `t4s_helpers.codec.encodings.Encoding.pieces`) because the token ids of an
answer are the concatenation of the ids of its pieces, in training and in decoding alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from ..codec.encodings import SEG_CLOSE, SEG_OPEN, Encoding, escape_label
from ..codec.grid import BOX_BINS as BOX_BINS  # read from here by what reads sentences
from ..codec.grid import mask_to_bins
from .dataset import choose
from .instances import classes_of, numbered, numbered_grid
from .sample import CLASS_TASKS, REFERENCE

REQUESTS = {
    "res": (
        "Segment {labels}.",
        "Please mark {labels} in this picture.",
        "Find {labels} and give its mask.",
        "Which cells belong to {labels}?",
        "Show me {labels} as a mask.",
    ),
    "semantic_open": (
        "Segment everything you can see.",
        "Give every object in the picture a label and a mask.",
    ),
    "semantic_partial": (
        "Segment only these: {labels}.",
        "Mark {labels}; leave the rest as others.",
    ),
    "semantic_conditioned": (
        "The classes are {labels}. Segment the picture with them.",
        "Choosing from {labels}, label every part of the picture.",
    ),
    "box": (
        "What box holds {labels}?",
        "Give the box of {labels}.",
        "Locate {labels}.",
    ),
    "row": (
        "Which cells of row {row} of {rows} show {labels}?",
        "In row {row} of {rows}, which cells show {labels}?",
    ),
}
"""Question templates by kind of request; ``{labels}`` is the expression or a list of names."""

NUMBERING = ("Number the objects of each class.", "Give every single object a number of its own.")
"""Said behind a request about classes where their single objects are wanted."""

CHANGES = {
    "add": ("Also {}.", "And {}.", "With {}, please."),
    "drop": ("Not {}.", "Without {}.", "But not {}."),
}
"""How the mask of the answer before is corrected."""

SENTENCES = ("plain", "box")
"""Answer styles: ``plain`` says a fixed sentence; ``box`` first commits to where the target is."""

SEMANTIC_MODES = ("open", "partial", "conditioned")
SEMANTIC_RATIO = (1, 3, 6)
"""How often each mode is drawn in training (paper, section 4.1: all, partial, conditioned)."""

_SHARES = [part / sum(SEMANTIC_RATIO) for part in SEMANTIC_RATIO]


@dataclass(frozen=True)
class Turn:
    """One exchange of a conversation.

    Attributes:
        question: what is asked.
        answer: in pieces whose text is their concatenation; empty while the answer is still open.
        labels: the names that the answer's descriptor may use; none where words are wanted.
        follows: whether the question can be understood only behind the exchange before it.
    """

    question: str
    answer: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    follows: bool = field(default=False, repr=False)  # the other three identify what is asked

    @property
    def text(self) -> str:
        """The answer as one string."""
        return "".join(self.answer)


def chains(turns: Iterable[Turn]) -> list[list[Turn]]:
    """Exchanges in conversations as short as can be understood: each with those that follow from it.

    >>> [len(chain) for chain in chains([Turn("a"), Turn("b"), Turn("also c", follows=True)])]
    [1, 2]
    """
    out: list[list[Turn]] = []
    for turn in turns:
        if out and turn.follows:
            out[-1].append(turn)
        else:
            out.append([turn])
    return out


def question(kind: str, labels=(), rng=None, **numbers) -> str:
    """Word a request.

    Args:
        kind: a key of `REQUESTS`.
        labels: the expression, or the class names, that the request is about.
        rng: a ``numpy.random.Generator`` to draw the wording with; ``None`` takes the first.
        numbers: ``row`` and ``rows`` of a ``row`` question.

    Raises:
        ValueError: an unknown kind, or labels missing where the wording needs them.

    >>> question("semantic_partial", ["star", "blue cloud"])
    'Segment only these: star, blue cloud.'
    """
    choose("kind", kind, tuple(REQUESTS))
    if not labels and kind != "semantic_open":
        raise ValueError(f"A {kind!r} request needs at least one label, but none is given.")
    return _drawn(REQUESTS[kind], rng).format(labels=", ".join(labels), **numbers)


def _drawn(wordings: Sequence[str], rng) -> str:
    return wordings[0 if rng is None else int(rng.integers(len(wordings)))]


def box_in_words(mask) -> str:
    """Where a mask, bool ``(H, W)``, lies: four numbers, or "Nowhere" for an empty mask.

    Returns:
        ``"At x0 y0 x1 y1"``, bins of `BOX_BINS` counted from the top left, both ends included.

    >>> import numpy as np
    >>> mask = np.zeros((64, 64), bool); mask[10:20, 4:8] = True
    >>> box_in_words(mask), box_in_words(mask & False)
    ('At 2 5 3 9', 'Nowhere')
    """
    box = mask_to_bins(mask)
    return "Nowhere" if box is None else "At {} {} {} {}".format(*box)


def read_box(sentence: str) -> tuple[int, int, int, int] | None:
    """The box that an answer's sentence states, `box_in_words` read back.

    Returns:
        ``(x0, y0, x1, y1)`` in bins of `BOX_BINS`, x1 and y1 exclusive as in every box of the house (the
        sentence names the last bins themselves); ``None`` if there is none, or one that ends before it
        begins.

    >>> read_box("At 2 5 3 9:\\n<seg>"), read_box("Nowhere"), read_box("At 9 2 3 5")
    ((2, 5, 4, 10), None, None)
    """
    found = re.search(r"\bAt (\d+) (\d+) (\d+) (\d+)\b", sentence)
    x0, y0, x1, y1 = map(int, found.groups()) if found else (0, 0, -1, -1)
    return (x0, y0, x1 + 1, y1 + 1) if x0 <= x1 and y0 <= y1 else None


def reference_in_words(mask, encoding: Encoding) -> str:
    """A mask, bool ``(H, W)``, as a question names it: its descriptor, with `REFERENCE` for its label."""
    return f"{SEG_OPEN}{encoding.encode(encoding.from_masks(mask[None]), [REFERENCE])}{SEG_CLOSE}"


def with_reference(label: str, mask, encoding: Encoding) -> str:
    """A label as a question names it: `reference_in_words` stands for the word `REFERENCE`."""
    reference = reference_in_words(mask, encoding)
    return re.sub(rf"\b{REFERENCE}\b", lambda _: reference, label)


def absent_in_words(label: str) -> str:
    """That something asked for is not there.

    >>> absent_in_words("the blue cloud")
    'There is no blue cloud.'
    """
    return f"There is no {escape_label(re.sub('^(the|a|an) ', '', label))}."


def read_absent(sentence: str, labels: Iterable[str]) -> list[str]:
    """Those of the labels of which an answer's sentence says that they are not there."""
    return [label for label in labels if absent_in_words(label) in sentence]


def answer(grid, labels, encoding: Encoding, style: str = "plain", mask=None, absent=()) -> tuple[str, ...]:
    """The answer to a segmentation request, as pieces.

    Args:
        grid: what the encoding writes, see its ``from_masks``: a label grid, int ``(rows, cols)``.
        labels: its label texts; ``grid == k`` means ``labels[k-1]``.
        encoding: of the descriptor.
        style: one of `SENTENCES`; ``box`` needs ``mask``.
        mask: bool ``(H, W)``, everything asked for, from which the box is read.
        absent: labels of which the sentence says first that they are not there.

    Raises:
        ValueError: an unknown style, style ``box`` without a mask, or a grid of another size.
        DescriptorError: an unusable label.
    """
    choose("style", style, SENTENCES)
    if style == "box" and mask is None:
        raise ValueError("Answer style 'box' reads the box from a mask, but no mask is given.")
    opening = "Here is the mask" if style == "plain" else box_in_words(mask)
    opening = " ".join([*map(absent_in_words, absent), opening])
    return (opening, ":", "\n", SEG_OPEN, *encoding.pieces(grid, labels), SEG_CLOSE)


def ask(sample, rng=None, mode: str | None = None, distractors=(), encoding: Encoding | None = None) -> Turn:
    """Word the request of a sample; the answer stays open.

    Args:
        sample: a `t4s_helpers.data.sample.Sample`.
        rng: draws wording, mode and the order of class names; ``None`` fixes all three.
        mode: for samples of `CLASS_TASKS` one of `SEMANTIC_MODES`. ``partial`` asks for some of the
            labels and leaves the rest to "others"; ``conditioned`` lists the labels together with
            ``distractors``, names that do not occur; ``open`` names nothing.
        encoding: of the descriptors; a request with a reference has one in the question.

    Returns:
        a `Turn` whose labels are those of the sample that are asked for; for ``instances`` with their
        numbers, see `t4s_helpers.data.instances`.

    Raises:
        ValueError: an unknown mode, or a reference without an encoding; see also `question`.
    """
    if sample.task == "vqa":
        return Turn(sample.question)
    labels, kind, named = sample.labels, "res", sample.labels
    if sample.task == "correction" and "change" in sample.meta:
        return Turn(_drawn(CHANGES[sample.meta["kind"]], rng).format(sample.meta["change"]), (), labels, True)
    if sample.task == "ores" and "reference" in sample.meta:
        if encoding is None:
            raise ValueError(f"The question of {sample!r} holds a mask: say in which encoding to write it.")
        named = (with_reference(labels[0], sample.meta["reference"], encoding),)
    if sample.task in CLASS_TASKS:
        mode = mode or ("conditioned" if rng is None else str(rng.choice(SEMANTIC_MODES, p=_SHARES)))
        choose("mode", mode, SEMANTIC_MODES)
        kind = f"semantic_{mode}"
        if mode == "partial" and rng is not None:
            n = int(rng.integers(1, len(labels) + 1))
            named = labels = tuple(labels[i] for i in sorted(rng.choice(len(labels), n, replace=False)))
        elif mode == "conditioned":
            named = [*labels, *distractors]
            named = sorted(named) if rng is None else [named[i] for i in rng.permutation(len(named))]
    asked = question(kind, named, rng)
    if sample.task == "instances":
        asked += f" {_drawn(NUMBERING, rng)}"
        labels = numbered(labels)
    return Turn(asked, (), tuple(labels))


def ask_and_answer(sample, encoding: Encoding, style: str = "plain", rng=None,
                   mode: str | None = None, distractors=()) -> Turn:
    """The exchange for one sample: `ask` with its true answer.

    Args:
        encoding: of the descriptor, with its grid, which is drawn by the rule "area".
        style: see `answer`.
        rng, mode, distractors: see `ask`.
    """
    turn = ask(sample, rng, mode, distractors, encoding)
    if sample.task == "vqa":
        return replace(turn, answer=(sample.answer,))
    single = sample.task == "instances"
    names = classes_of(turn.labels) if single else turn.labels
    masks = sample.masks[[sample.labels.index(name) for name in names]]
    grid = numbered_grid(sample, names, encoding) if single else encoding.from_masks(masks)
    absent = [name for name, mask in zip(names, masks) if sample.task == "multi" and not mask.any()]
    return replace(turn, answer=answer(grid, turn.labels, encoding, style, masks.any(0), absent))
