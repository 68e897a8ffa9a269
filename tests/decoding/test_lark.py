"""The exported grammar in a decoder that is not ours: llguidance, which vLLM and SGLang use."""

from __future__ import annotations

import numpy as np
import pytest
from toy_tokenizer import LABELS, Toy, walk

from t4s_helpers.codec.encodings import SEG_CLOSE, get_encoding
from t4s_helpers.decoding.grammar import START, Grammar, GrammarError

llguidance = pytest.importorskip("llguidance")

NAMES = (*LABELS, 'a "quoted" one', "back\\slash", "ünïcödé 狗")
BYTES = llguidance.LLTokenizer("byte")
every_name = pytest.mark.parametrize("name", ["full", "irle", "rrle"])


def matcher(labels, encoding):
    lark = Grammar(Toy().ids, labels, encoding).ebnf()
    found = llguidance.LLMatcher(BYTES, llguidance.LLMatcher.grammar_from_lark(lark))
    assert not found.is_error(), found.get_error()
    return found


def accepts(compiled, text: str) -> bool:
    compiled.reset()
    ids = BYTES.tokenize_bytes(text.encode())
    return compiled.try_consume_tokens(ids) == len(ids) and compiled.is_accepting()


@every_name
@pytest.mark.parametrize(("shape", "n"), [((1, 1), 1), ((3, 5), 2), ((4, 4), 8), ((16, 16), 1)])
def test_every_descriptor_of_ours_is_accepted(name, shape, n):
    if (name, shape) == ("irle", (16, 16)):
        shape = (8, 8)  # counts up to 256 take a compiler minutes
    encoding, labels, rng = get_encoding(name, shape), NAMES[:n], np.random.default_rng(n)
    compiled = matcher(labels, encoding)
    for top in (1, 2, n + 1):  # nothing, one label, all of them
        for _ in range(4):
            text = encoding.encode(rng.integers(0, min(top, n + 1), shape), labels) + SEG_CLOSE
            assert accepts(compiled, text), text


BROKEN = {
    "rrle": ["dog *3|others *3\nothers *5{}", "dog *2|others *2\nothers *5{}",  # a row too long, too short
             "others *5{}", "others *5\nothers *5\nothers *5{}",  # rows too few, too many
             "cat *5\nothers *5{}", "others *5\ndog *2|dog *3{}", "others *0|dog *5\nothers *5{}",
             "others *05\nothers *5{}", "others\nothers *5{}", "others *5|\nothers *5{}",
             "others *2|others *3\nothers *5{}",
             "others *5\nothers *5", "others *5\nothers *5{} and more", "others *5 \nothers *5{}", "{}"],
    "irle": ["others *9{}", "others *11{}", "dog *5|dog *5{}", "dog *5\nothers *5{}", "cat *10{}",
             "others *10", "others *4|others *6{}", "others *4||dog *6{}"],
    "full": ["|".join(["others"] * 9) + "{}", "|".join(["others"] * 11) + "{}",
             "|".join(["cat"] * 10) + "{}", "|".join(["others"] * 10), "others *10{}",
             "\n".join(["others"] * 10) + "{}"],
}


@pytest.mark.parametrize(("name", "broken"),
                         [(name, text) for name, texts in BROKEN.items() for text in texts])
def test_what_breaks_the_format_is_refused_there_and_here(name, broken):
    text, encoding, toy = broken.format(SEG_CLOSE), get_encoding(name, (2, 5)), Toy()
    assert not accepts(matcher(["dog"], encoding), text), text
    if "{}" in broken:  # what is not closed is no fault yet
        with pytest.raises(GrammarError, match="is not allowed in line"):
            walk(Grammar(toy.ids, ["dog"], encoding), START, toy.ids(text))


@every_name
def test_one_changed_character_is_noticed(name):
    """Any single deletion leaves no descriptor: nothing in the text is redundant."""
    encoding, labels = get_encoding(name, (2, 4)), ["dog", "red kite"]
    text = encoding.encode(np.array([[0, 1, 1, 0], [2, 2, 0, 0]]), labels) + SEG_CLOSE
    compiled = matcher(labels, encoding)
    assert accepts(compiled, text)
    assert not any(accepts(compiled, text[:k] + text[k + 1:]) for k in range(len(text)))


def test_a_grammar_too_large_to_compile_is_refused():
    with pytest.raises(GrammarError, match="an encoding that breaks rows"):
        Grammar(Toy().ids, ["dog"], get_encoding("irle", 64)).ebnf()
    assert len(Grammar(Toy().ids, NAMES, get_encoding("rrle", 64)).ebnf()) < 4e6
