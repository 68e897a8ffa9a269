"""The road from conversations to answers: batches, sampling, history, limits, errors."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_model
import torch

from t4s_helpers.codec.encodings import get_encoding
from t4s_helpers.data.prompts import Turn, ask, ask_and_answer
from t4s_helpers.data.registry import load
from t4s_helpers.decoding.generate import (
    MODES, DecodingError, answer_samples, generate, parse_answer, prompt_inputs, token_budget,
)
from t4s_helpers.decoding.grammar import GrammarError

SAMPLES = load("scenes", "test", n=6, start=50, task="gres")
GRID = get_encoding("rrle", 16)
SMALL = get_encoding("rrle", 4)


def texts(backbone, samples, encoding=SMALL, **options):
    return [a.text for a, _ in answer_samples(backbone, samples, encoding, progress=False, **options)]


def test_a_batch_says_what_each_request_would_alone(shipped):
    """Left padding and the attention mask must not leak; ties could differ, none is known here."""
    options = {"mode": "plain", "max_new_tokens": 24}
    assert texts(shipped, SAMPLES, batch=6, **options) == texts(shipped, SAMPLES, batch=1, **options)


def test_pictures_come_in_the_models_own_type():
    """Not every family converts them itself: DeepSeek-VL 7B in bfloat16 would fail."""
    backbone = tiny_model.backbone()
    backbone.model.bfloat16()
    made = prompt_inputs(backbone, [SAMPLES[0].pixels()], [[Turn("Where is it?")]])
    assert made["pixel_values"].dtype == torch.bfloat16 and made["input_ids"].dtype == torch.int64


def test_earlier_turns_are_the_history(shipped):
    """They go back in as the training data has them, and change the answer; the picture stays first."""
    before, last = Turn("Is there a star?", ("Yes, ", "two.")), ask(SAMPLES[0])
    inputs = prompt_inputs(shipped, [SAMPLES[0].pixels()], [[before, last]])
    prompt = shipped.encoder.tokenizer.decode(inputs["input_ids"][0])
    places = [prompt.index(part) for part in ("<image>", before.question, "Yes, two.", last.question)]
    assert places == sorted(places) and prompt.count("<image>") == shipped.spec.n_image_tokens
    alone, after = (generate(shipped, [SAMPLES[0].pixels()], [turns], SMALL)[0].trace.choices[0].scores
                    for turns in ([last], [before, last]))
    assert not np.allclose(alone, after)


class Watcher:
    """A streamer that keeps what it is given, and stops after so many calls."""

    def __init__(self, stop=None):
        self.seen, self.stop, self.ended = [], stop, False

    def put(self, value):
        self.seen.append(value.flatten().tolist())
        if len(self.seen) == self.stop:
            raise KeyboardInterrupt

    def end(self):
        self.ended = True


@pytest.mark.parametrize("mode", MODES)
def test_a_streamer_sees_the_answer_grow_and_changes_nothing(shipped, mode):
    turns, image = [ask(SAMPLES[0])], SAMPLES[0].pixels()

    def ask_once(**more):
        return generate(shipped, [image], [turns], SMALL, mode=mode, max_new_tokens=40, **more)[0]

    quiet, watcher = ask_once(), Watcher()
    answer = ask_once(streamer=watcher)
    prompt, *grown = watcher.seen
    assert answer.text == quiet.text and watcher.ended
    assert prompt == prompt_inputs(shipped, [image], [turns])["input_ids"][0].tolist()
    assert tuple(token for some in grown for token in some) == answer.ids and len(grown) > 2
    with pytest.raises(KeyboardInterrupt):  # cancelled; the next answer is as before
        ask_once(streamer=Watcher(stop=3))
    assert ask_once().text == quiet.text


def test_a_streamer_follows_a_single_answer():
    with pytest.raises(DecodingError, match="one answer, but 2"):
        generate(None, [0, 0], [[Turn("a")], [Turn("b")]], SMALL, streamer=Watcher())


@pytest.mark.parametrize("mode", ["plain", "constrained", "fast"])
def test_sampling_follows_its_seed(shipped, mode):
    options = {"mode": mode, "batch": 2, "temperature": 1.5, "max_new_tokens": 60}
    one, again, other = (texts(shipped, SAMPLES[:2], seed=seed, **options) for seed in (1, 1, 2))
    assert one == again != other


@pytest.mark.slow
def test_draws_share_the_reading_of_the_prompt(shipped):
    """Several answers to each request, the same whatever the batch and whichever the mode."""
    options = {"temperature": 1.0, "draws": 2, "seed": 3}
    fast = texts(shipped, SAMPLES[:3], mode="fast", batch=6, **options)
    assert len(fast) == 6 and fast == texts(shipped, SAMPLES[:3], mode="fast", batch=2, **options)
    assert fast == texts(shipped, SAMPLES[:3], mode="constrained", batch=4, **options)


def test_numbered_labels_are_written_alike_with_and_without_drafts(shipped):
    """A label may begin another one, "star" and "star 1"."""
    samples = load("scenes", "test", n=1, start=50, task="instances")
    (fast,), (slow,) = (texts(shipped, samples, mode=mode, temperature=6.0, seed=1)
                        for mode in ("fast", "constrained"))
    assert fast == slow
    assert any(f"{label} *" in fast for label in ask(samples[0]).labels if label[-1].isdigit())


def test_questions_are_answered_in_words_and_as_plain_decoding_does(shipped):
    questions = load("scenes", "test", n=6, start=60, task="vqa")
    answers = [texts(shipped, questions, mode=mode, batch=4, max_new_tokens=12) for mode in MODES]
    assert answers[0] == answers[1] == answers[2]
    assert answer_samples(shipped, questions[:1], SMALL, max_new_tokens=2)[0][1] is None


def test_an_answer_that_breaks_off_is_malformed_not_no_target(shipped):
    [(short, parsed)] = answer_samples(shipped, SAMPLES[:1], GRID, max_new_tokens=12, progress=False)
    assert not short.finished and short.n_tokens == 12
    assert parsed.report.malformed and not parsed.report.no_target


def test_true_answers_are_read_back_and_fit_the_budget(shipped):
    for sample in [*SAMPLES, *load("scenes", "train", n=30, task="gres")]:
        turn = ask_and_answer(sample, GRID, style="box")
        parsed = parse_answer(turn.text, sample.labels, sample.size, GRID)
        coarse = np.kron(sample.grid(16), np.ones((8, 8), int))  # scenes are 128 pixels
        assert parsed.report.ok and np.array_equal(parsed.grid, sample.grid(16))
        assert np.array_equal(parsed.masks, [coarse == k + 1 for k in range(len(sample.labels))])
        n = sum(len(shipped.encoder.piece_ids(piece)) for piece in turn.answer)
        assert n < token_budget(shipped.encoder, sample.labels, GRID)


@pytest.mark.parametrize("mode", MODES)
def test_logits_that_are_no_numbers_are_named(mode):
    backbone = tiny_model.backbone()
    with torch.no_grad():
        backbone.model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(DecodingError, match="after 0 tokens are not numbers"):
        answer_samples(backbone, SAMPLES[:1], SMALL, mode=mode)


@pytest.mark.parametrize("mode", MODES)
def test_a_request_beyond_the_context_is_refused(shipped, mode):
    many = Turn("Segment all.", (), tuple(f"thing number {k}" for k in range(900)))
    with pytest.raises(DecodingError, match="900 labels.*fewer labels at a time"):
        generate(shipped, [SAMPLES[0].pixels()], [[many]], get_encoding("full", 64), mode=mode)


@pytest.mark.parametrize(("conversations", "options", "words"), [
    ([[Turn("a")], [Turn("b")]], {}, "1 images came with 2 conversations"),
    ([[]], {}, "Conversation 1 has no turn"), ([[Turn("a")]], {"draws": 0}, "0 answers"),
    ([[Turn("a")]], {"mode": "quick"}, "Unknown decoding mode 'quick'")])
def test_bad_requests_are_named(conversations, options, words):
    with pytest.raises(DecodingError, match=words):
        generate(None, [SAMPLES[0].pixels()], conversations, SMALL, **options)


def test_labels_that_cannot_be_told_apart_name_their_request(shipped, monkeypatch):
    from t4s_helpers.model.chat import ConversationEncoder

    real = ConversationEncoder.piece_ids
    monkeypatch.setattr(ConversationEncoder, "piece_ids",
                        lambda self, piece: real(self, piece.replace("moon", "star")))
    turn = Turn("Segment both.", (), ("a star", "a moon"))
    with pytest.raises(GrammarError, match=r"Request 2 \('Segment both.'\): Label .*(moon|star)"):
        generate(shipped, [SAMPLES[0].pixels()] * 2, [[Turn("a")], [turn]], SMALL, max_new_tokens=2)
