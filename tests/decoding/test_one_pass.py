"""A grid judged in one pass: by logits made up by hand, and by the shipped model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from t4s_helpers.codec.encodings import SEG_OPEN, get_encoding
from t4s_helpers.codec.grid import mask_iou
from t4s_helpers.data.prompts import Turn, ask
from t4s_helpers.data.registry import load
from t4s_helpers.decoding.generate import DecodingError, answer_samples, read_answers
from t4s_helpers.decoding.one_pass import draft_grid, judged, one_pass


def test_every_cell_follows_its_own_logits(shipped):
    """Behind a draft that says "others" throughout; in full, where each cell is a choice."""
    encoder, encoding, labels = shipped.encoder, get_encoding("full", (2, 3)), ("red star", "moon")
    wanted = np.array([[0, 1, 2], [2, 2, 0]])
    draft = np.zeros((2, 3), np.int32)
    opening = encoder.piece_ids(SEG_OPEN)
    ids = [i for piece in (*encoding.pieces(draft, labels), "</seg>") for i in encoder.piece_ids(piece)]
    logits = torch.zeros(len(opening) + len(ids), len(encoder.tokenizer))
    for cell, label in enumerate(wanted.ravel()):
        logits[len(opening) + 2 * cell, encoder.piece_ids(("others", *labels)[label])[0]] = 9.0
    assert np.array_equal(judged(encoder, opening, ids, logits, draft, labels, encoding), wanted)


def test_drafts_fill_the_box_that_is_stated():
    encoding = get_encoding("rrle", (4, 8))
    assert draft_grid("At 0 24 31 31:", encoding, 2).tolist() == [[0] * 8] * 3 + [[1] * 4 + [2] * 4]
    assert not draft_grid("Nowhere:", encoding, 1).any()
    assert draft_grid("Here is the mask:", encoding, 1).sum() == 8


def test_the_shipped_model_finds_most_in_one_pass(shipped):
    samples = load("scenes", "test", n=4, start=41_000, task="gres")
    encoding = get_encoding()
    written = answer_samples(shipped, samples, encoding, progress=False)
    found = answer_samples(shipped, samples, encoding, by=one_pass, passes=2, batch=4, progress=False)
    alike = [mask_iou(a.masks.any(0), b.masks.any(0)) for (_, a), (_, b) in zip(written, found)]
    assert np.mean(alike) > 0.5, alike
    for (a, _), (b, parsed) in zip(written, found):
        assert parsed.report.ok and a.text.partition(SEG_OPEN)[0] == b.text.partition(SEG_OPEN)[0]
        assert b.finished and b.n_tokens == len(b.ids)
    assert sum(b.trace.passes for b, _ in found) < sum(a.trace.passes for a, _ in written)
    given = answer_samples(shipped, samples[:1], encoding, by=one_pass, sentence="Here is the mask:")
    assert given[0][0].trace.passes == 0 and given[0][0].text.startswith("Here is the mask:\n<seg>")


def test_logits_along_an_answer_are_those_that_wrote_it(shipped):
    """In a batch of prompts and answers of different lengths."""
    samples = load("scenes", "test", n=3, start=70, task="res")
    said = [answer for answer, _ in answer_samples(shipped, samples, get_encoding("rrle", 4), progress=False)]
    assert len({answer.n_tokens for answer in said}) > 1
    with torch.inference_mode():
        read = read_answers(shipped, [one.pixels() for one in samples], [[ask(one)] for one in samples],
                            [answer.ids for answer in said])
    for logits, answer in zip(read, said):
        assert logits.shape[0] == answer.n_tokens
        at = np.flatnonzero(np.array(answer.trace.sources) == "chosen")
        for k, choice in zip(at, answer.trace.choices, strict=True):
            assert np.allclose(logits[k].numpy()[choice.tokens], choice.scores, atol=1e-3)


def test_what_cannot_be_judged_in_one_pass(shipped):
    image = np.zeros((8, 8, 3), np.uint8)
    for turn, name, passes in ((Turn("What?"), "rrle", 1), (Turn("It.", (), ("it",)), "boxwise", 1),
                               (Turn("It.", (), ("it",)), "rrle", 0)):
        with pytest.raises(DecodingError, match="needs labels"):
            one_pass(shipped, [image], [[turn]], get_encoding(name, 4), passes=passes)
