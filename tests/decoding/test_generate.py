"""Generation, batching, reading, scoring, with an untrained model and with the shipped one."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_model

from t4s_helpers.model import backbones
from t4s_helpers.decoding import generate as decoding
from t4s_helpers.data.expressions import scene_samples
from t4s_helpers.evaluation.evaluate import evaluate, oracle_scores, score_rows
from t4s_helpers.data.prompts import turn

SAMPLES = scene_samples("test", 6, "gres", start=50)


@pytest.fixture(scope="module")
def shipped():
    return backbones.load_backbone("embedded", adapter="scenes")


def test_a_batch_says_what_each_request_would_alone(shipped):
    """Left padding and the attention mask must not leak; ties could differ, none is known here."""
    images, asked = [s.pixels() for s in SAMPLES], [turn(s).question for s in SAMPLES]
    together = decoding.generate(shipped, images, asked, batch=6, max_new_tokens=24)
    alone = decoding.generate(shipped, images, asked, batch=1, max_new_tokens=24)
    assert [a.text for a in together] == [a.text for a in alone]


def test_pictures_come_in_the_models_own_type():
    """Not every family converts them itself: DeepSeek-VL 7B in bfloat16 would fail."""
    backbone = tiny_model.backbone()
    backbone.model.bfloat16()
    made = decoding._inputs(backbone, backbone.encoder, [SAMPLES[0].pixels()], ["Where is it?"])
    assert str(made["pixel_values"].dtype) == "torch.bfloat16"
    assert str(made["input_ids"].dtype) == "torch.int64"


def test_sampling_is_repeated_by_its_seed(shipped):
    def said(seed):
        return [a.text for a in decoding.generate(
            shipped, [SAMPLES[0].pixels()] * 2, ["Segment the star."] * 2, temperature=1.5,
            seed=seed, max_new_tokens=16)]

    assert said(1) == said(1) and said(1) != said(2)


def test_an_answer_cut_by_the_limit_is_malformed_not_no_target(shipped):
    rows, scores = evaluate(shipped, SAMPLES, max_new_tokens=12, progress=False)
    assert all(row["malformed"] and not row["finished"] for row in rows)
    assert scores["malformed_rate"] == 1.0 and scores["n_acc"] == 0.0


def test_true_answers_score_what_the_grid_allows():
    for sample in SAMPLES:
        one = turn(sample, 16, style="box")
        reading = decoding.read_answer(one.text, sample.labels, sample.size)
        assert np.array_equal(reading.grid, sample.grid(16)) and reading.report.ok
    scores = oracle_scores(SAMPLES)
    both = union = 0
    for sample in SAMPLES:  # brute force: scenes are 128 pixels, so a cell is 8 by 8
        coarse = np.kron(sample.grid(16) > 0, np.ones((8, 8), bool)).astype(bool)
        truth = sample.masks.any(0)
        both, union = both + (coarse & truth).sum(), union + (coarse | truth).sum()
    assert scores["ciou"] == pytest.approx(both / union)
    assert scores["n_acc"] == 1.0


def test_scores_come_again_from_rows_alone(shipped):
    rows, scores = evaluate(shipped, SAMPLES[:3], max_new_tokens=200, progress=False)
    assert score_rows(rows)["giou"] == scores["giou"]
    questions = scene_samples("test", 4, "vqa")
    rows, scores = evaluate(shipped, questions, max_new_tokens=12, progress=False)
    assert score_rows(rows) == scores and 0 <= scores["accuracy"] <= 1


def test_budget_covers_every_true_answer(shipped):
    encoder = shipped.encoder
    for sample in scene_samples("train", 60, "gres"):
        pieces = turn(sample, 16, style="box").answer
        n = sum(len(encoder.piece_ids(piece)) for piece in pieces)
        assert n < decoding.token_budget(encoder, sample.labels, 16)


def test_images_and_questions_must_match():
    with pytest.raises(decoding.DecodingError, match="1 images came with 2 questions"):
        decoding.generate(None, [1], ["a", "b"])


@pytest.mark.parametrize("call, words", [
    (lambda: backbones.load_backbone("llava-2"), "llava-1.5-7b"),
    (lambda: backbones.load_backbone("embedded", quantize="int3"), "int3"),
    (lambda: backbones.load_backbone("embedded", source="/nowhere/at/all"), "/nowhere/at/all"),
    (lambda: tiny_model.backbone(adapter="no-such-adapter"), "no-such-adapter"),
])
def test_what_cannot_be_loaded_is_named(call, words):
    with pytest.raises(backbones.BackboneError, match=words):
        call()


def test_an_adapter_for_another_base_is_refused(tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(backbones.ADAPTERS / "scenes", tmp_path / "other")
    tensors = load_file(tmp_path / "other" / "adapter_model.safetensors")
    save_file({name: t[:, :-1].contiguous() for name, t in tensors.items()},
              tmp_path / "other" / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(backbones.BackboneError, match="another base"):
        tiny_model.backbone(adapter=tmp_path / "other")


def test_the_shipped_model_is_small_enough():
    sizes = {p: p.stat().st_size / 1e6 for p in backbones.ASSETS.rglob("*.safetensors")}
    assert sizes and all(size <= 25 for size in sizes.values())
    model = backbones.load_backbone("embedded").model
    assert sum(p.numel() for p in model.parameters()) <= 12_000_000
