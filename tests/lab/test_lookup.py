"""The look-up's keys, fitted to what their heads are for."""

from __future__ import annotations

import pytest
import torch

from t4s_helpers.model import backbones
from t4s_helpers.lab.tiny_model import eyes
from t4s_helpers.lab.tiny_model import lookup
from t4s_helpers.lab.tiny_model import matching
from t4s_helpers.lab.tiny_model.alignment import by_visual_token, word_targets
from t4s_helpers.lab.tiny_model.dense import render_with_targets
from t4s_helpers.lab.tiny_model.tower import collate


@pytest.fixture(scope="module")
def backbone():
    return backbones.load_backbone("embedded")


@pytest.fixture(scope="module")
def batch():
    return collate([render_with_targets(index) for index in range(24)])


@pytest.fixture(scope="module")
def shown(batch):
    return word_targets(by_visual_token(batch["targets"])[:, :3])[..., 1:].float()


def fresh(backbone, shown):
    return lookup.LookUp(backbone.model, backbone.processor.tokenizer, shown)


def test_phrases_fit_what_shows_every_word(shown):
    query, fits = lookup.phrases(shown, torch.Generator().manual_seed(0), n=6)
    assert torch.allclose(query.sum(-1), torch.ones(24, 6))
    for scene, row in enumerate(query):
        for k, weights in enumerate(row):
            words = weights.nonzero()[:, 0]
            assert 1 <= len(words) <= 3
            assert torch.equal(fits[scene, k], (shown[scene][:, words] > 0).all(-1))
    some = fits.any(-1).float().mean()
    assert 0.5 < some < 1  # and some fit nothing


def test_keys_are_read_off_the_layer_and_written_back_unchanged(backbone, shown):
    attention = backbone.model.model.language_model.layers[1].self_attn
    before = attention.k_proj.weight.clone()
    fresh(backbone, shown).write(backbone.model)
    assert torch.allclose(before, attention.k_proj.weight, atol=2e-2 * before.abs().max().item())
    with torch.no_grad():
        attention.k_proj.weight.copy_(before)


def test_logits_are_those_of_the_layer(backbone, batch, shown, monkeypatch):
    """Rotary turns, the start of the text and all: against the model's own attention."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    model, behind = backbone.model, 20
    monkeypatch.setattr(lookup, "BEHIND", (behind, behind + 1))
    own = fresh(backbone, shown)
    attention = model.model.language_model.layers[1].self_attn
    with torch.no_grad():
        tokens = model.model.multi_modal_projector(eyes.see(model, batch["pixel_values"][:1]))
        seen = matching._normed(tokens)
        noise = torch.Generator().manual_seed(0)
        coded = torch.randn(1, own.heads, 1, 14, generator=noise)
        got = own._logits(seen, coded, noise)

        half, dim = attention.head_dim // 2, attention.head_dim
        theta = attention.config.rope_parameters["rope_theta"]
        gain = matching.look_up_gain(attention)
        query = torch.zeros(1, own.heads, 1, dim)
        for k, pair in enumerate(range(matching.FIRST_PAIR, half - 1)):
            angle = torch.tensor(matching.DISTANCE * theta ** (-pair / half))
            one, other = coded[..., 2 * k], coded[..., 2 * k + 1]
            query[..., pair] = gain * (angle.cos() * one + angle.sin() * other)
            query[..., half + pair] = gain * (angle.cos() * other - angle.sin() * one)
        query[..., half - 1] = gain
        key = attention.k_proj(seen).view(1, 64, own.heads, dim).transpose(1, 2)
        rope = model.model.language_model.rotary_emb
        place = torch.cat([torch.arange(64), torch.tensor([64 + behind])])[None]
        cos, sin = rope(seen, place)
        query, _ = apply_rotary_pos_emb(query, query, cos[:, -1:], sin[:, -1:])
        key, _ = apply_rotary_pos_emb(key, key, cos[:, :-1], sin[:, :-1])
        wanted = query @ key.transpose(-1, -2) / dim**0.5
    assert torch.corrcoef(torch.stack([got.flatten(), wanted.flatten()]))[0, 1] > 0.999
    assert (got - wanted).abs().max() < 0.05 * wanted.abs().max()


def test_fitting_the_keys_draws_attention_to_what_is_meant(backbone, batch, shown):
    """From keys that know nothing, on a few scenes alone."""
    own = fresh(backbone, shown)
    own.probe = torch.randn(own.probe.shape, generator=torch.Generator().manual_seed(0)) * 0.01
    own.probe.requires_grad_(True)
    with torch.no_grad():
        tokens = backbone.model.model.multi_modal_projector(eyes.see(backbone.model, batch["pixel_values"]))
    noise, at = torch.Generator().manual_seed(0), torch.arange(24)
    descent = torch.optim.Adam([own.probe], lr=5e-3)
    losses = []
    for _ in range(120):
        loss = own.loss(tokens, at, noise)
        descent.zero_grad()
        loss.backward()
        descent.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
