"""Questions, answers and conversations: how a sample becomes text.

An answer is a sentence, then the descriptors between ``<seg>`` and ``</seg>`` (paper, section 3.3).
All wordings are our own. Training draws among the templates with a seeded generator; evaluation
always uses the first of each list, so that a score never depends on chance.

Answers are kept as pieces (see `t4s_helpers.codec.encodings.pieces`) because the token ids of an answer are
the concatenation of the ids of its pieces, in training and in decoding alike.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..codec.grid import mask_to_box, masks_to_grid
from ..codec.encodings import pieces

BOX_BINS = 32
"""Boxes in words are given in 32nds of the image's width and height, first and last included."""

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

SENTENCES = ("plain", "box")
"""Answer styles: ``plain`` says a fixed sentence; ``box`` first commits to where the target is."""

SEMANTIC_MODES = ("open", "partial", "conditioned")
SEMANTIC_RATIO = (1, 3, 6)
"""How often each mode is drawn in training (paper, section 4.1: all, partial, conditioned)."""


@dataclass(frozen=True)
class Turn:
    """One exchange: the question, and the answer as pieces whose text is their concatenation."""

    question: str
    answer: tuple[str, ...]

    @property
    def text(self) -> str:
        """The answer as one string."""
        return "".join(self.answer)


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
    if kind not in REQUESTS:
        raise ValueError(f"No question is worded for {kind!r}: choose one of {', '.join(REQUESTS)}.")
    if not labels and kind != "semantic_open":
        raise ValueError(f"A {kind!r} request needs at least one label, but none is given.")
    templates = REQUESTS[kind]
    template = templates[0 if rng is None else int(rng.integers(len(templates)))]
    return template.format(labels=", ".join(labels), **numbers)


def box_in_words(mask) -> str:
    """Where a mask lies: four numbers, or "Nowhere" for an empty mask.

    Args:
        mask: bool ``(H, W)``.

    Returns:
        ``"At x0 y0 x1 y1"``, bins of `BOX_BINS` counted from the top left, both ends included.

    >>> import numpy as np
    >>> mask = np.zeros((64, 64), bool); mask[10:20, 4:8] = True
    >>> box_in_words(mask), box_in_words(mask & False)
    ('At 2 5 3 9', 'Nowhere')
    """
    box = mask_to_box(mask)
    if box is None:
        return "Nowhere"
    h, w = mask.shape
    x0, y0, x1, y1 = box
    bins = (x0 * BOX_BINS // w, y0 * BOX_BINS // h,
            (x1 - 1) * BOX_BINS // w, (y1 - 1) * BOX_BINS // h)
    return "At " + " ".join(map(str, bins))


def read_box(sentence: str) -> tuple[int, int, int, int] | None:
    """The box that an answer's sentence states, `box_in_words` read back.

    Returns:
        ``(x0, y0, x1, y1)`` in bins of `BOX_BINS`, both ends included; ``None`` if there is none.

    >>> read_box("At 2 5 3 9:\\n<seg>"), read_box("Nowhere"), read_box("Here is the mask")
    ((2, 5, 3, 9), None, None)
    """
    found = re.search(r"\bAt (\d+) (\d+) (\d+) (\d+)\b", sentence)
    return tuple(map(int, found.groups())) if found else None


def answer(grid, labels, scheme: str = "rrle", style: str = "plain", mask=None,
           spaced: bool = False) -> tuple[str, ...]:
    """The answer to a segmentation request, as pieces.

    Args:
        grid: int ``(rows, cols)`` label grid.
        labels: its label texts; ``grid == k`` means ``labels[k-1]``.
        scheme: ``full``, ``irle`` or ``rrle``.
        style: one of `SENTENCES`; ``box`` needs ``mask``.
        mask: bool ``(H, W)``, everything asked for, from which the box is read.
        spaced: write separators as the paper's released checkpoints do.

    Raises:
        ValueError: an unknown style, or style ``box`` without a mask.
        DescriptorError: from `t4s_helpers.codec.encodings.pieces`.
    """
    if style not in SENTENCES:
        raise ValueError(f"Unknown answer style {style!r}: choose one of {', '.join(SENTENCES)}.")
    if style == "box" and mask is None:
        raise ValueError("Answer style 'box' reads the box from a mask, but no mask is given.")
    opening = "Here is the mask" if style == "plain" else box_in_words(mask)
    return (opening, ":", "\n", "<seg>", *pieces(grid, labels, scheme, spaced), "</seg>")


@dataclass(frozen=True)
class Request:
    """What is asked for: the question, and the labels and masks that its answer is about."""

    question: str
    labels: tuple[str, ...]
    masks: object


def ask(sample, rng=None, mode: str | None = None, distractors=()) -> Request:
    """Word the request of a sample.

    Args:
        sample: a `t4s_helpers.data.sample.Sample`.
        rng: draws wording, mode and the order of class names; ``None`` fixes all three.
        mode: for ``semantic`` samples one of `SEMANTIC_MODES`. ``partial`` asks for some of the
            labels and leaves the rest to "others"; ``conditioned`` lists the labels together with
            ``distractors``, names that do not occur; ``open`` names nothing.

    Raises:
        ValueError: an unknown mode; see also `question`.
    """
    labels, masks, kind, named = sample.labels, sample.masks, "res", sample.labels
    if sample.task == "vqa":
        return Request(sample.question, (), masks)
    if sample.task == "semantic":
        mode = mode or _draw_mode(rng)
        if mode not in SEMANTIC_MODES:
            raise ValueError(f"Unknown mode {mode!r}: choose one of {', '.join(SEMANTIC_MODES)}.")
        kind = f"semantic_{mode}"
        if mode == "partial":
            labels, masks = _some(labels, masks, rng)
        named = _mixed([*labels, *distractors], rng) if mode == "conditioned" else labels
    return Request(question(kind, named, rng), tuple(labels), masks)


def turn(sample, size=16, rule: str = "area", scheme: str = "rrle", style: str = "plain",
         rng=None, mode: str | None = None, distractors=()) -> Turn:
    """The exchange for one sample: `ask` with its true answer.

    Args:
        size, rule: grid size and down-sampling rule, see `t4s_helpers.codec.grid.masks_to_grid`.
        scheme, style: see `answer`.
    """
    asked = ask(sample, rng, mode, distractors)
    if sample.task == "vqa":
        return Turn(asked.question, (sample.answer,))
    grid = masks_to_grid(asked.masks, size, rule)
    everything = asked.masks.any(0) if style == "box" else None
    return Turn(asked.question, answer(grid, asked.labels, scheme, style, everything))


def _draw_mode(rng) -> str:
    if rng is None:
        return "conditioned"
    share = [part / sum(SEMANTIC_RATIO) for part in SEMANTIC_RATIO]
    return SEMANTIC_MODES[int(rng.choice(len(SEMANTIC_MODES), p=share))]


def _some(labels, masks, rng):
    """A non-empty part of the labels with their masks; all of them without a generator."""
    if rng is None:
        return labels, masks
    keep = sorted(rng.choice(len(labels), int(rng.integers(1, len(labels) + 1)), replace=False))
    return tuple(labels[i] for i in keep), masks[keep]


def _mixed(names, rng):
    return sorted(names) if rng is None else [names[i] for i in rng.permutation(len(names))]


def messages(turns, image: bool = True, open_ended: bool = False) -> list[dict]:
    """Exchanges as chat messages for ``processor.apply_chat_template``.

    Args:
        turns: `Turn` objects in order.
        image: whether the first question carries the picture.
        open_ended: leave out the last answer, for generation.
    """
    chat = []
    for k, one in enumerate(turns):
        content = [{"type": "text", "text": one.question}]
        if image and k == 0:
            content.insert(0, {"type": "image"})
        chat.append({"role": "user", "content": content})
        chat.append({"role": "assistant", "content": [{"type": "text", "text": one.text}]})
    return chat[:-1] if open_ended else chat
