"""Two layers put below a base find what a phrase describes, and leave the rest as it was."""

from __future__ import annotations

import pytest
import tiny_model
import torch

from t4s_helpers.model import backbones
from t4s_helpers.lab.tiny_model import matching
from t4s_helpers.lab.tiny_model.alignment import by_visual_token, word_targets
from t4s_helpers.lab.tiny_model.dense import render_with_targets
from t4s_helpers.lab.tiny_model.tower import collate


def batch(n):
    made = collate([render_with_targets(index) for index in range(n)])
    return made["pixel_values"], word_targets(by_visual_token(made["targets"])[:, :3])[..., 1:]


def test_a_grown_model_keeps_its_weights_and_gains_two_layers():
    backbone = tiny_model.backbone()
    grown, shares = matching.add_matching(backbone.model, backbone.processor.tokenizer, *batch(8),
                                          ["What box holds the red star?"])
    old, new = (m.model.language_model.layers for m in (backbone.model, grown))
    assert len(new) == len(old) + 2
    for a, b in zip(old, new[2:]):
        for (name, x), (_, y) in zip(a.named_parameters(), b.named_parameters()):
            assert torch.equal(x, y), name
    assert set(shares) == {"category", "color", "size"}


def test_codes_keep_the_words_apart():
    codes = matching._codes()
    near = (codes @ codes.T - torch.eye(len(codes))).abs().max()
    assert codes.shape == (len(matching.WORDS), 14) and near < 0.55


def test_a_direction_separates_what_can_be_separated():
    noise = torch.Generator().manual_seed(0)
    these, those = torch.randn(50, 40, generator=noise), torch.randn(400, 40, generator=noise)
    these[:, 3] += 6
    direction = matching._separate(these, those)
    assert (these @ direction).mean().item() == pytest.approx(1, abs=1e-4)
    assert (these @ direction).min() > (those @ direction).max()


@pytest.mark.parametrize("words", matching.PHRASES)
def test_the_shipped_base_looks_at_what_is_meant(words):
    found = matching.looks_at(backbones.load_backbone("embedded"), words, n=24)
    assert found["right"] > 0.75 and found["target"] > 3 * found["others"]
