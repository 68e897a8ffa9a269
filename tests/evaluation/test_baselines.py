"""SAM 3 as a baseline that is given the words: the real classes in miniature, with random weights."""

from __future__ import annotations

import numpy as np
import pytest

from t4s_helpers.data import load
from t4s_helpers.evaluation.baselines import WordSegmenter, baseline_scores
from t4s_helpers.model.backbones import EMBEDDED
from t4s_helpers.model.weights import WeightsUnavailable

t = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def segmenter():
    import torch

    words = t.AutoProcessor.from_pretrained(EMBEDDED).tokenizer
    tower = dict(model_type="sam3_vit_model", hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                 num_attention_heads=2, image_size=112, window_size=4, global_attn_indexes=[1],
                 pretrain_image_size=56)
    parts = dict(hidden_size=32, num_attention_heads=4)
    config = t.Sam3Config(
        vision_config=dict(model_type="sam3_vision_model", backbone_config=tower, fpn_hidden_size=32,
                           backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]]),
        text_config=dict(model_type="clip_text_model", vocab_size=len(words), hidden_size=32,
                         projection_dim=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
                         max_position_embeddings=32, eos_token_id=words.eos_token_id),
        geometry_encoder_config=dict(**parts, num_layers=1, intermediate_size=64),
        detr_encoder_config=dict(**parts, num_layers=1, intermediate_size=64),
        detr_decoder_config=dict(**parts, num_layers=1, intermediate_size=64, num_queries=5),
        mask_decoder_config=parts)
    torch.manual_seed(0)
    processor = t.Sam3Processor(t.Sam3ImageProcessor(size={"height": 112, "width": 112}), words)
    return WordSegmenter(t.Sam3Model(config).eval(), processor)


def test_a_phrase_gives_a_mask_of_the_pictures_size(segmenter):
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    surest = segmenter.mask(image, "the red star", single=True)
    assert surest.shape == (40, 60) and surest.dtype == bool
    every = WordSegmenter(segmenter.model, segmenter.processor, -1.0).mask(image, "the red star")
    assert (every >= surest).all(), "all instances hold the surest one"
    nothing = WordSegmenter(segmenter.model, segmenter.processor, 1.0).mask(image, "the red star")
    assert nothing.shape == (40, 60) and not nothing.any()
    assert segmenter.mask(image, "a star " * 60).shape == (40, 60), "long phrases are cut off"


def test_masks_are_scored_as_a_models(segmenter, monkeypatch):
    samples = load("scenes", "test", n=3, task="gres", start=8)
    true = {sample.labels[0]: sample.masks.any(0) for sample in samples}
    monkeypatch.setattr(WordSegmenter, "mask", lambda self, image, phrase, single: true[phrase])
    scores = baseline_scores(segmenter, samples)
    assert scores["ciou"] == scores["giou"] == scores["acc50"] == 1.0 and scores["n"] == 3


def test_missing_weights_are_told(tmp_path):
    with pytest.raises(WeightsUnavailable, match="accept its licence"):
        WordSegmenter.load(str(tmp_path))
