"""The grammar of grids inside boxes: what the encoding writes and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_model
from toy_tokenizer import LABELS, PATTERNS, Toy, walk

from t4s_helpers.codec.encodings import SEG_CLOSE, get_encoding
from t4s_helpers.data.registry import load
from t4s_helpers.decoding.confidence import answer_confidence
from t4s_helpers.decoding.generate import DecodingError, answer_samples
from t4s_helpers.decoding.grammar import BoxGrammar, GrammarError

NAMES = (*LABELS, "dog At 1", "dog At 1 2")


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("spaced", [False, True])
def test_random_walks_are_the_texts_that_the_encoding_writes(pattern, spaced):
    encoding, toy = get_encoding("boxwise", (2, 3), spaced), Toy(PATTERNS[pattern])
    rng, seen = np.random.default_rng(0), set()
    for n in (1, 3, len(NAMES)):
        grammar = BoxGrammar(toy.ids, NAMES[:n], encoding)
        for _ in range(30):
            state, ids = grammar.start, []
            while not grammar.done(state):
                ids.append(int(rng.choice(grammar.choices(state))))
                state, _ = grammar.step(state, ids[-1])
            grid = encoding.decode(toy.text(ids).removesuffix(SEG_CLOSE), NAMES[:n])
            assert ids == toy.written(grid, NAMES[:n], encoding)
            assert grammar.done(walk(grammar, grammar.start, ids)) and not len(grammar.choices(state))
            seen.add(int((grid.boxes[:, 0] >= 0).sum()))
    assert seen >= {0, 1, 2}


def test_what_it_does_not_take():
    toy, encoding = Toy(), get_encoding("boxwise", (1, 2))
    grammar = BoxGrammar(toy.ids, ["dog"], encoding)
    state = walk(grammar, grammar.start, toy.ids("dog At 5 6"))
    with pytest.raises(GrammarError, match="not allowed"):  # the box would end before it starts
        walk(grammar, state, [*toy.ids(" 4"), *toy.ids(" 6")])
    with pytest.raises(GrammarError, match="cannot be told"):
        BoxGrammar(lambda piece: toy.ids(piece.replace("é", "e")), ["cafe", "café"], encoding)
    with pytest.raises(GrammarError, match="at least one label"):
        BoxGrammar(toy.ids, [], encoding)


@pytest.mark.parametrize("mode", ["constrained", "fast"])
def test_an_untrained_model_cannot_break_the_format(mode):
    samples = load("scenes", "test", n=2, start=10, task="semantic")
    said = answer_samples(tiny_model.backbone(), samples, get_encoding("boxwise", 3), mode=mode,
                          progress=False, temperature=2.0, seed=1)
    assert all(parsed.report.ok and answer.finished for answer, parsed in said)
    assert any(parsed.masks.any() for _, parsed in said)
    with pytest.raises(DecodingError, match="boxes"):
        answer_confidence(*said[0])
