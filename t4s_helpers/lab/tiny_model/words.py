"""Text for the tokenizer and for the language model's picture-free diet.

A real language model arrives knowing how to copy, count and write run lengths of any words;
LoRA trains no embeddings, so the embedded base must know them too before it is fine-tuned.
"""

from __future__ import annotations

import numpy as np

from ...data.prompts import Turn
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


def invented_word(rng) -> str:
    """A word that means nothing: two or three syllables, sometimes with a digit or capital."""
    word = "".join(rng.choice(SYLLABLES, int(rng.integers(2, 4))))
    chance = rng.random()
    return f"{word}{rng.integers(10)}" if chance < 0.1 else word.title() if chance < 0.2 else word


def any_phrase(rng, longest: int = 6) -> str:
    """One to ``longest`` words, invented, everyday, or from the pictogram world."""
    n = int(rng.integers(1, longest + 1))
    pools = (COMMON, CATEGORIES, tuple(COLORS), tuple(SIZES))
    words = []
    for _ in range(n):
        pick = int(rng.integers(len(pools) + 1))
        words.append(invented_word(rng) if pick == len(pools) else str(rng.choice(pools[pick])))
    return " ".join(words)


def copy_turn(rng) -> Turn:
    """Say a phrase again."""
    phrase = any_phrase(rng, 8)
    if rng.random() < 0.3:  # LoRA trains no embeddings, so the tags must be known by then
        phrase = f"<seg>{phrase}</seg>"
    ask = ("Repeat: {}", "Say this again: {}", "Copy {}")[int(rng.integers(3))]
    return Turn(ask.format(phrase), (phrase,))


def count_turn(rng) -> Turn:
    """Count how often a word stands in a list."""
    word, other = any_phrase(rng, 1), any_phrase(rng, 1)
    n = int(rng.integers(1, 13))
    line = [word] * n + [other] * int(rng.integers(0, 5))
    line = [line[i] for i in rng.permutation(len(line))]
    n = line.count(word)
    return Turn(f"How often does {word} occur in: {' '.join(line)}?", (str(n),))


def runs_turn(rng) -> Turn:
    """Write a list of words as run lengths, a row at a time."""
    names = [any_phrase(rng, 2) for _ in range(int(rng.integers(1, 4)))]
    rows, text = [], []
    for k in range(int(rng.integers(1, 4))):
        row: list[str] = []
        for _ in range(int(rng.integers(1, 4))):
            row += [str(rng.choice(names))] * int(rng.integers(1, 12))
        rows.append(row[:16])
        text += ["\n"] if k else []
        text += _runs(rows[-1])
    asked = "\n".join(", ".join(row) for row in rows)
    return Turn(f"Write as runs:\n{asked}", tuple(text))


def _runs(row: list[str]) -> list[str]:
    out: list[str] = []
    start = 0
    for k in range(1, len(row) + 1):
        if k == len(row) or row[k] != row[start]:
            out += ["|"] * bool(out) + [row[start], f" *{k - start}"]
            start = k
    return out


def rectangle_turn(rng) -> Turn:
    """Draw a rectangle of one word on a ground of another, as run lengths: keeping count of rows.

    Corners are given as boxes are elsewhere, in 32nds, on 16 rows of 16; a cell that is covered by half
    belongs to the rectangle. Half of the answers first say the corners again, as those about pictures
    will. The tags stand where counting starts and ends.
    """
    ground = word = any_phrase(rng, 2)
    while word == ground:
        word = any_phrase(rng, 4)
    (x0, x1), (y0, y1) = (sorted(int(v) for v in rng.integers(0, 32, 2)) for _ in range(2))
    left, right = x0 // 2, x1 // 2 + 1
    drawn, empty = [ground] * left + [word] * (right - left) + [ground] * (16 - right), [ground] * 16
    text: list[str] = []
    for row in range(16):
        text += (["\n"] if row else []) + _runs(drawn if y0 // 2 <= row <= y1 // 2 else empty)
    answer = ("\n", "<seg>", *text, "</seg>")
    if rng.random() < 0.5:
        return Turn(f"16 rows of 16 {ground}, {word} at {x0} {y0} {x1} {y1}:", answer)
    return Turn(f"Draw {word} at {x0} {y0} {x1} {y1} on {ground}.", (f"At {x0} {y0} {x1} {y1}", ":", *answer))


def text_turn(rng) -> Turn:
    """One exercise without a picture; half of them draw rectangles, the hardest to learn."""
    exercises = (copy_turn, copy_turn, count_turn, runs_turn, *[rectangle_turn] * 4)
    return exercises[int(rng.integers(len(exercises)))](rng)


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
        exercise = text_turn(rng)
        yield exercise.question
        yield exercise.text
        yield f"At {' '.join(map(str, rng.integers(0, 65, 4)))}"
        yield "Nowhere" if index % 2 else "Here is the mask:"
        yield f"at {rng.integers(0, 32)}, {rng.integers(1, 33)} wide"
        yield f"others *{rng.integers(1, 65)}|{expression} *{rng.integers(1, 65)}"
        yield " ".join((*COMMON, *CATEGORIES, *COLORS, *SIZES)) if index % 50 == 0 else "others"
