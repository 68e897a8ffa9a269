"""Held to the grammar, nothing malformed comes out; with drafts, the very same tokens do."""

from __future__ import annotations

import families
import numpy as np
import pytest
import tiny_model

from t4s_helpers.model import backbones
from t4s_helpers.decoding import generate as decoding
from t4s_helpers.decoding.constrained import ConstraintError, Writer
from t4s_helpers.data.expressions import scene_samples
from t4s_helpers.data.photos import load_photos
from t4s_helpers.decoding.generate import DecodingError, answer_samples
from t4s_helpers.codec.parsing import parse
from t4s_helpers.data.prompts import ask
from t4s_helpers.codec.encodings import SEG_CLOSE, SEG_OPEN

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def shipped():
    return backbones.load_backbone("embedded", adapter="scenes")


def both(backbone, samples, size, scheme="rrle", batches=(1,), limit=1500, trees=(None,)):
    """Answers of ``constrained``, and of ``fast`` in batches of every size asked for."""
    def answers(mode, batch, trees=None):
        return answer_samples(backbone, samples, size, scheme, mode=mode, batch=batch,
                              progress=False, max_new_tokens=limit, trees=trees)

    return answers("constrained", 16), [answers("fast", batch, tree) for batch in batches
                                        for tree in trees]


def check(slow, fasts, samples, size, scheme="rrle"):
    for fast in fasts:
        for (a, read), (b, _), sample in zip(slow, fast, samples, strict=True):
            assert a.text == b.text and a.n_tokens == b.n_tokens, (sample.id, size, scheme)
            assert a.trace.sources == b.trace.sources
            assert read.report.ok or not a.finished, (a.text, read.report.summary())
            assert SEG_OPEN in a.text and (SEG_CLOSE in a.text or not a.finished)
            assert b.trace.passes <= a.trace.passes
            if a.finished:
                same_confidence(a, b, read)


def same_confidence(a, b, reading):
    """The passes of both modes tell the same probabilities."""
    slow, fast = (decoding.answer_confidence(answer, reading) for answer in (a, b))
    assert slow.probs.shape == (slow.probs.shape[0], *reading.grid.shape)
    assert np.allclose(slow.probs.sum(0), 1, atol=1e-5) and slow.probs.min() >= 0
    assert np.allclose(slow.probs, fast.probs, atol=2e-3)
    assert np.allclose(slow.known, fast.known, atol=2e-3)


@pytest.mark.parametrize("name", families.FAMILIES)
def test_every_family_writes_the_same_fast_and_slow(name):
    backbone = backbones.load_backbone(name, source=families.folder(name))
    backbone.model.float()
    photos = load_photos()[:3]
    for size, scheme in ((4, "rrle"), ((2, 7), "irle"), (2, "full")):
        slow, fasts = both(backbone, photos, size, scheme, (1, 3), trees=(False, True))
        check(slow, fasts, photos, size, scheme)


SIZES = [(8, 48), (16, 32), (24, 2), (32, 1), (1, 4), ((5, 11), 8)]


@pytest.mark.parametrize(("size", "n"), SIZES)
def test_the_embedded_model_writes_the_same_fast_and_slow(shipped, size, n):
    """With and without targets, in batches whose rows go on at different paces."""
    samples = scene_samples("test", n, "gres", start=30_000)
    learned = size == 16  # at larger grids the adapter rambles; the start of an answer is enough
    slow, fasts = both(shipped, samples, size, batches=(16,), limit=1500 if learned else 250)
    check(slow, fasts, samples, size)
    if learned:
        assert all(a.finished and reading.report.ok for a, reading in slow)
        [fast] = fasts
        passes, tokens = (np.mean(values) for values in zip(
            *((a.trace.passes, a.n_tokens) for a, _ in fast)))
        assert passes < tokens / 4


def test_trees_of_drafts_take_fewer_passes_to_the_same_answers(shipped):
    samples = scene_samples("test", 12, "gres", start=32_000)
    slow, fasts = both(shipped, samples, 16, batches=(1, 5), trees=(False, True))
    check(slow, fasts, samples, 16)
    chain, tree = (sum(a.trace.passes for a, _ in fast) for fast in fasts[:2])
    assert tree < chain


def test_what_was_heard_in_passing_is_drafted(shipped):
    """A wrong guess at the sentence costs one pass, not one for each of its numbers."""
    samples = scene_samples("test", 12, "res", start=33_000)
    said = [a for a, _ in answer_samples(shipped, samples, 8, mode="fast", batch=1, progress=False)]
    [tag] = shipped.encoder.piece_ids(SEG_OPEN)
    spent = [a.trace.at_pass[a.ids.index(tag)] for a in said[4:]]
    assert np.mean(spent) < 3, spent
    assert all(a.trace.drafted[0] and a.trace.at_pass[:2] == [0, 0] for a in said[4:])  # with the prompt


@pytest.mark.parametrize("scheme", ["irle", "full"])
def test_other_schemes_too(shipped, scheme):
    samples = scene_samples("test", 6, "gres", start=31_000)
    check(*both(shipped, samples, 6, scheme, (4,)), samples, 6, scheme)


def test_an_untrained_model_cannot_break_the_format():
    samples = scene_samples("test", 4, "semantic", start=10)
    for temperature in (0.0, 2.0):
        said = answer_samples(tiny_model.backbone(), samples, 6, mode="constrained", progress=False,
                              temperature=temperature, seed=1)
        assert all(reading.report.ok and a.finished for a, reading in said)


def test_sampling_follows_its_seed(shipped):
    samples = scene_samples("test", 3, "res", start=40)

    def said(seed, mode="constrained"):
        return [a.text for a, _ in answer_samples(shipped, samples, 6, mode=mode, batch=2,
                                                  temperature=1.5, seed=seed, progress=False)]

    assert said(1) == said(1) == said(1, "fast") != said(2)


def test_questions_are_answered_freely_and_as_plain_decoding_does(shipped):
    questions = scene_samples("test", 6, "vqa", start=60)
    answers = {mode: [a.text for a, _ in answer_samples(
        shipped, questions, mode=mode, progress=False, batch=4, max_new_tokens=12)]
        for mode in decoding.MODES}
    assert answers["plain"] == answers["constrained"] == answers["fast"]


def test_the_sentence_before_the_tag_is_the_models_own(shipped):
    samples = scene_samples("test", 8, "res", start=70)
    plain = answer_samples(shipped, samples, 16, progress=False)
    fast = answer_samples(shipped, samples, 16, mode="fast", progress=False)
    for (a, _), (b, _) in zip(plain, fast):
        if SEG_OPEN in a.text:
            assert a.text.split(SEG_OPEN)[0] == b.text.split(SEG_OPEN)[0]


def test_the_trace_tells_what_was_free(shipped):
    samples = scene_samples("test", 4, "res", start=80)
    for answer, _ in answer_samples(shipped, samples, 16, mode="fast", progress=False):
        trace = answer.trace
        assert len(trace.sources) == len(trace.at_pass) == len(trace.drafted) == answer.n_tokens
        assert set(trace.sources) == {"free", "chosen", "forced"}
        assert trace.at_pass == sorted(trace.at_pass) and trace.at_pass[-1] <= trace.passes


def test_logits_that_are_no_numbers_are_named():
    import torch

    backbone = tiny_model.backbone()
    with torch.no_grad():
        backbone.model.lm_head.weight.fill_(float("nan"))
    for mode in decoding.MODES:
        with pytest.raises(DecodingError, match="after 0 tokens are not numbers"):
            answer_samples(backbone, scene_samples("test", 1, "res"), 4, mode=mode)


def test_bad_requests_are_named(shipped):
    sample = scene_samples("test", 1, "res")[0]
    ask_for = [sample.pixels()], [ask(sample).question]
    with pytest.raises(DecodingError, match="Unknown decoding mode 'quick'"):
        decoding.generate(shipped, *ask_for, mode="quick")
    with pytest.raises(DecodingError, match="1 questions came with 2 lists"):
        decoding.generate(shipped, *ask_for, [["a"], ["b"]], mode="fast")


def test_confidence_needs_a_whole_answer_under_the_grammar(shipped):
    samples = scene_samples("test", 1, "res", start=90)
    for options, words in (({"mode": "plain"}, "mode='fast'"),
                           ({"mode": "fast", "max_new_tokens": 20}, "raise max_new_tokens")):
        [(answer, reading)] = answer_samples(shipped, samples, 16, progress=False, **options)
        with pytest.raises(DecodingError, match=words):
            decoding.answer_confidence(answer, reading)


def test_draws_share_the_reading_of_the_prompt(shipped):
    """Several answers to each question, the same whatever the batch and whichever the mode."""
    samples = scene_samples("test", 3, "res", start=95)

    def said(**options):
        return [a.text for a, _ in answer_samples(shipped, samples, 4, temperature=1.0, draws=2,
                                                  seed=3, progress=False, **options)]

    fast = said(mode="fast", batch=6)
    assert len(fast) == 6 and fast == said(mode="fast", batch=2) == said(mode="constrained", batch=4)
    with pytest.raises(DecodingError, match="0 answers"):
        answer_samples(shipped, samples, 4, draws=0, mode="fast")


def test_a_request_beyond_the_context_is_refused(shipped):
    sample = scene_samples("test", 1, "res")[0]
    many = [f"thing number {k}" for k in range(900)]
    for mode in decoding.MODES:
        with pytest.raises(DecodingError, match="900 labels.*fewer labels at a time"):
            decoding.generate(shipped, [sample.pixels()], ["Segment " + ", ".join(many) + "."], [many],
                              mode=mode)


def test_an_interrupted_answer_is_no_missing_target(shipped):
    """Wherever a stream breaks off, what came is read, and told to be broken."""
    sample = scene_samples("test", 1, "res", start=80)[0]
    [(answer, _)] = answer_samples(shipped, [sample], 16, mode="fast", progress=False)
    for cut in range(len(answer.text.rsplit(SEG_CLOSE)[0])):
        _, report = parse(answer.text[:cut], sample.labels, 16)
        assert report.malformed, answer.text[:cut]


def test_a_tokenizer_that_merges_across_pieces_does_no_harm():
    """Its own reading of the text differs; the pieces' ids are what is written and read back."""
    from t4s_helpers.decoding.grammar import START, Grammar, merged_borders

    def tokenize(text):  # knows "star *" as a word, and "|o"
        import re

        return [sum(map(ord, part)) for part in re.findall(r"star \*|\|o|\w+| \*\d+|.|\n", text)]

    assert merged_borders(tokenize, ["star", "sun"], 4) == ["'star' + ' *1'", "'|' + 'others'"]
    grammar = Grammar(tokenize, ["star"], (1, 4))
    said = [i for piece in ("others", " *2", "|", "star", " *2", SEG_CLOSE) for i in tokenize(piece)]
    assert grammar.done(grammar.walk(START, said))


def test_a_model_that_only_chats_is_brought_to_the_tag():
    """Free text has a limit: then the tag is forced, and the answer still is a descriptor."""
    import torch

    backbone = tiny_model.backbone()
    writer = Writer(backbone.encoder, ["star"], 2)
    chat = torch.zeros(len(backbone.encoder.tokenizer))
    chat[300], chat[writer.end] = 1, 2
    for _ in range(400):
        if writer.finished:
            break
        writer.push(writer.choose(chat))
        chat[writer.end] = 2
    text = backbone.encoder.tokenizer.decode(writer.ids, skip_special_tokens=True)
    assert parse(text, ["star"], 2)[1].ok
    with pytest.raises(ConstraintError, match="not numbers"):
        Writer(backbone.encoder, ["star"], 2).choose(chat * float("nan"))
