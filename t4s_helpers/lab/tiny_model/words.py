"""Words beyond those of scenes, and the text on which the tokenizer is trained.

A real language model arrives knowing how to copy any words; LoRA trains no embeddings, so the embedded
base must know that too before it is fine-tuned.
"""

from __future__ import annotations

import numpy as np

from ...data.scenes import CATEGORIES, COLORS, SIZES

COMMON = tuple("""
person man woman child boy girl dog cat bird cow sheep bear zebra giraffe elephant car bus truck
train boat bicycle motorcycle airplane traffic light sign bench chair couch table bed door window
wall floor ceiling roof house building bridge road street path grass tree plant bush leaf rock sand
sea water river lake sky snow hill mountain field cup bowl plate fork knife spoon bottle glass
banana apple orange pizza cake bread carrot book clock vase lamp bag hat shirt coat shoe tie ball
kite board laptop phone mouse keyboard screen sink oven toaster fridge brown pink gray dark bright
left right top bottom middle front back near far big tall short long round old young one two three
wearing holding sitting standing next behind under over between with without other another corner
""".split())
"""Everyday words, so that labels outside the pictogram world are not spelt letter by letter."""

SYLLABLES = tuple("ba de fi go ku la me ni po ru sa te vi wo xu ya zen tor mak lin".split())

COPY = ("Repeat: {}", "Say this again: {}", "Copy {}")
"""Wordings of the request to copy a phrase."""


def invented_word(rng) -> str:
    """A word that means nothing: syllables, sometimes with a digit or capital, or any four characters."""
    word = "".join(rng.choice(SYLLABLES, int(rng.integers(2, 4))))
    chance = rng.random()
    if chance < 0.1:
        return "".join(map(chr, rng.integers(33, 127, 4)))
    return f"{word}{rng.integers(10)}" if chance < 0.2 else word.title() if chance < 0.3 else word


def any_phrase(rng) -> str:
    """One to eight words, invented, everyday, or from the pictogram world."""
    n = int(rng.integers(1, 9))
    pools = (COMMON, CATEGORIES, tuple(COLORS), tuple(SIZES))
    words = []
    for _ in range(n):
        pick = int(rng.integers(len(pools) + 1))
        words.append(invented_word(rng) if pick == len(pools) else str(rng.choice(pools[pick])))
    return " ".join(words)


def any_pieces(rng, label: str) -> str:
    """The pieces of descriptors drawn at random, which describe nothing: labels, counts and separators."""
    said = ""
    for _ in range(int(rng.integers(2, 6))):
        word = str(rng.choice(["others", label, any_phrase(rng)]))
        said += f"{word} *{rng.integers(1, 65)}{rng.choice(['|', chr(10)])}"
    return said[:-1]


def corpus(lines: int = 2500, seed: int = 0):
    """Lines on which the tokenizer is trained: scene talk, exercises, numbers, run lengths."""
    from ...data.expressions import GRES_KINDS, caption, make_expression, make_question
    from ...data.prompts import REQUESTS, question
    from ...data.scenes import make_scene

    rng = np.random.default_rng([seed, 9])
    for index in range(lines):
        scene = make_scene("train", index % 2000)
        expression = make_expression(rng, scene, GRES_KINDS).text
        kind = list(REQUESTS)[int(rng.integers(len(REQUESTS)))]
        yield question(kind, [expression], rng, row=int(rng.integers(32)), rows=16)
        yield expression
        yield caption(scene)
        yield " ".join(make_question(rng, scene)[1:])
        yield COPY[index % len(COPY)].format(any_phrase(rng))
        yield f"What is at {rng.integers(32)} {rng.integers(32)}? nothing List everything with its box."
        yield f"At {' '.join(map(str, rng.integers(0, 65, 4)))}"
        yield "Nowhere" if index % 2 else "Here is the mask:"
        yield f"at {rng.integers(0, 32)}, {rng.integers(1, 33)} wide"
        yield f"others *{rng.integers(1, 65)}|{expression} *{rng.integers(1, 65)}"
        yield " ".join((*COMMON, *CATEGORIES, *COLORS, *SIZES)) if index % 50 == 0 else "others"
        if index % 25 == 0:  # a word at the start of an answer or a label has no space before it
            yield from (*CATEGORIES, *COLORS, *SIZES)
