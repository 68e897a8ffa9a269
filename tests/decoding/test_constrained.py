"""Held to the grammar, nothing malformed comes out; with drafts, the very same tokens do."""

from __future__ import annotations

import families
import numpy as np
import pytest
import tiny_model
import torch
from toy_tokenizer import ColumnRLE

from t4s_helpers.codec.encodings import SEG_CLOSE, SEG_OPEN, get_encoding
from t4s_helpers.codec.parsing import parse
from t4s_helpers.data.registry import load
from t4s_helpers.decoding.confidence import answer_confidence
from t4s_helpers.decoding.constrained import ConstrainedSequence
from t4s_helpers.decoding.generate import DecodingError, answer_samples
from t4s_helpers.decoding.grammar import grammar_of
from t4s_helpers.model.backbones import load_backbone

pytestmark = pytest.mark.timeout(600)


def check_modes(backbone, samples, encoding, batches=(1,), limit=1500, trees=(None,)) -> list[list]:
    """Hold ``fast`` against ``constrained``, in batches of every size; returns the answers of ``fast``."""
    def answers(mode, batch, trees=None):
        return answer_samples(backbone, samples, encoding, mode=mode, batch=batch, progress=False,
                              max_new_tokens=limit, trees=trees)

    slow = answers("constrained", 16)
    fasts = [answers("fast", batch, tree) for batch in batches for tree in trees]
    for fast in fasts:
        for (a, parsed), (b, _), sample in zip(slow, fast, samples, strict=True):
            assert a.text == b.text and a.n_tokens == b.n_tokens, (sample.id, encoding)
            assert a.trace.sources == b.trace.sources and b.trace.passes <= a.trace.passes
            assert parsed.report.ok or not a.finished, (a.text, parsed.report.summary())
            assert SEG_OPEN in a.text and (SEG_CLOSE in a.text or not a.finished)
            if a.finished:  # the passes of both modes tell the same probabilities
                one, other = (answer_confidence(answer, parsed) for answer in (a, b))
                assert np.allclose(one.probs, other.probs, atol=2e-3)
                assert np.allclose(one.known, other.known, atol=2e-3)
    return fasts


@pytest.mark.slow
@pytest.mark.parametrize("name", families.FAMILIES)
def test_every_family_writes_the_same_fast_and_slow(name):
    backbone = load_backbone(name, source=families.folder(name))
    backbone.model.float()
    photos = load("photos")[:3]
    for encoding in (get_encoding("rrle", 4), get_encoding("irle", (2, 7)), get_encoding("full", 2)):
        check_modes(backbone, photos, encoding, (1, 3), trees=(False, True))


def marked(slow: bool, *values):
    return pytest.param(*values, marks=[pytest.mark.slow] if slow else [])


@pytest.mark.parametrize(("grid_size", "n"), [
    marked(False, 8, 8), marked(True, 8, 48), marked(True, 24, 2), marked(True, 32, 1), (1, 2), ((5, 11), 3)])
def test_the_embedded_model_writes_the_same_fast_and_slow(shipped, grid_size, n):
    """At grids that the adapter was not trained for it rambles; the start of an answer is enough."""
    samples = load("scenes", "test", n=n, start=30_000, task="gres")
    check_modes(shipped, samples, get_encoding("rrle", grid_size), batches=(16,), limit=250)


@pytest.mark.slow
@pytest.mark.parametrize("n", [marked(False, 6), marked(True, 32)])
def test_drafts_save_most_passes_and_trees_more(shipped, n):
    """With and without targets, in batches whose rows advance at different speeds."""
    samples = load("scenes", "test", n=n, start=32_000, task="gres")
    chain, tree = check_modes(shipped, samples, get_encoding(), batches=(5,), trees=(False, True))
    assert all(answer.finished and parsed.report.ok for answer, parsed in chain)
    passes = [sum(answer.trace.passes for answer, _ in fast) for fast in (chain, tree)]
    assert passes[1] < passes[0] < sum(answer.n_tokens for answer, _ in chain) / 4
    for answer, trace in ((answer, answer.trace) for answer, _ in chain + tree):
        assert len(trace.sources) == len(trace.at_pass) == len(trace.drafted) == answer.n_tokens
        assert set(trace.sources) == {"free", "chosen", "forced"}
        assert trace.at_pass == sorted(trace.at_pass) and trace.at_pass[-1] <= trace.passes


def test_rejected_draft_logits_are_the_next_draft(shipped):
    """A wrong guess at the sentence costs one pass, not one for each of its numbers."""
    samples = load("scenes", "test", n=12, start=33_000, task="res")
    said = [a for a, _ in answer_samples(shipped, samples, get_encoding("rrle", 8), batch=1, progress=False)]
    [tag] = shipped.encoder.piece_ids(SEG_OPEN)
    spent = [a.trace.at_pass[a.ids.index(tag)] for a in said[4:]]
    assert np.mean(spent) < 3, spent
    assert all(a.trace.drafted[0] and a.trace.at_pass[:2] == [0, 0] for a in said[4:])  # with the prompt


@pytest.mark.parametrize("encoding", [get_encoding("irle", 5), get_encoding("full", 5), ColumnRLE((4, 6)),
                                      get_encoding("rrle", 6, spaced=True)])
def test_other_encodings_too(shipped, encoding):
    check_modes(shipped, load("scenes", "test", n=3, start=31_000, task="gres"), encoding, (3,))


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_an_untrained_model_cannot_break_the_format(temperature):
    samples = load("scenes", "test", n=2, start=10, task="semantic")
    said = answer_samples(tiny_model.backbone(), samples, get_encoding("rrle", 4), mode="constrained",
                          progress=False, temperature=temperature, seed=1)
    assert all(parsed.report.ok and answer.finished for answer, parsed in said)


def test_the_sentence_before_the_tag_is_the_models_own(shipped):
    samples = load("scenes", "test", n=4, start=70, task="res")
    plain, fast = ([a.text.partition(SEG_OPEN) for a, _ in answer_samples(
        shipped, samples, get_encoding(), mode=mode, progress=False, max_new_tokens=24)]
        for mode in ("plain", "fast"))
    assert [one[:2] for one in plain] == [one[:2] for one in fast] and SEG_OPEN in plain[0]


def test_a_model_that_only_chats_is_brought_to_the_tag():
    """Free text has a limit: then the tag is forced, and the answer still is a descriptor."""
    encoder, encoding = tiny_model.backbone().encoder, get_encoding("rrle", 2)
    sequence = ConstrainedSequence(encoder, grammar_of(encoder, ["star"], encoding))
    chat = torch.zeros(len(encoder.tokenizer))
    chat[300], chat[sequence.end] = 1, 2
    while not sequence.finished and len(sequence.ids) < 400:
        sequence.push(sequence.choose(chat))
    text = encoder.tokenizer.decode(sequence.ids, skip_special_tokens=True)
    assert sequence.finished and parse(text, ["star"], encoding)[1].ok
    with pytest.raises(DecodingError, match="not numbers"):
        ConstrainedSequence(encoder, None).choose(chat * float("nan"))
