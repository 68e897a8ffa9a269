"""Another tower under a finished base: the language model is told what it was told, only better."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from t4s_helpers.model import backbones
from t4s_helpers.lab.tiny_model import drawing
from t4s_helpers.lab.tiny_model import eyes
from t4s_helpers.lab.tiny_model.alignment import by_visual_token
from t4s_helpers.lab.tiny_model.dense import render_with_targets
from t4s_helpers.lab.tiny_model.tower import collate


@pytest.fixture(scope="module")
def backbone():
    return backbones.load_backbone("embedded")


@pytest.fixture(scope="module")
def model(backbone):
    return backbone.model


@pytest.fixture(scope="module")
def batch():
    return collate([render_with_targets(index) for index in range(40)])


def tower_of(model) -> dict:
    return {f"tower.{name}": tensor.clone()
            for name, tensor in model.model.vision_tower.state_dict().items()
            if not name.startswith("stages.3.")}


def test_the_directions_are_those_that_the_wired_layers_read(model):
    room = eyes.code_directions(model.model.language_model)
    n = sum(drawing.VISUAL.values())
    assert room.shape == (256, n)
    assert torch.allclose(room.T @ room, torch.eye(n), atol=1e-5)
    read = model.model.language_model.layers[2].self_attn.v_proj.weight[:32] * drawing.LOUD
    assert torch.allclose(room[:, 4:36].T, read, atol=0.01)


def test_rows_are_read_where_visual_tokens_say_them(model, batch):
    """The four directions of the row are in the order of `drawing.row_code`."""
    with torch.no_grad():
        tokens = model.model.multi_modal_projector(eyes.see(model, batch["pixel_values"]))
        said = tokens / tokens.norm(dim=-1, keepdim=True) @ eyes.code_directions(
            model.model.language_model)[:, :4]
    known = drawing.row_code(torch.arange(64) // 8).expand_as(said)
    together = torch.corrcoef(torch.cat([said.flatten(0, 1).T, known.flatten(0, 1).T]))[:4, 4:]
    assert (together.diagonal() > 0.8).all() and (together - together.diagonal().diag()).abs().max() < 0.3


def test_the_shipped_base_knows_where_objects_begin_and_end(model):
    found = eyes.columns_right(model, 24)
    assert found["exact"] > 0.5 and found["cells"] < 1


def test_features_in_other_coordinates_are_read_as_before(backbone, model, batch):
    """A tower that says the same in another way, here twice as loud, changes nothing above."""
    other = tower_of(model)
    for name in ("tower.stages.2.layer_norm.weight", "tower.stages.2.layer_norm.bias"):
        other[name] *= 2
    with torch.no_grad():
        before = model.model.multi_modal_projector(eyes.see(model, batch["pixel_values"]))
    grown = eyes.change_tower(model, other, batch["pixel_values"])
    lost, changed = eyes.fit(grown, backbone.processor.tokenizer, batch["pixel_values"],
                             batch["targets"], model, steps=60)
    with torch.no_grad():
        after = grown.model.multi_modal_projector(eyes.see(grown, batch["pixel_values"]))
    room = eyes.code_directions(model.model.language_model)
    words = torch.eye(256) - room @ room.T
    off = ((after - before) @ words).norm() / (before @ words).norm()
    assert off < 0.35 and changed < 0.1 and 0 < lost < 0.6, (off, changed, lost)
    assert not torch.equal(eyes.see(grown, batch["pixel_values"]), eyes.see(model, batch["pixel_values"]))
    kept = grown.model.language_model.state_dict()
    other_than_before = [name for name, tensor in model.model.language_model.state_dict().items()
                         if not torch.equal(kept[name], tensor)]
    assert other_than_before == ["layers.1.self_attn.k_proj.weight"]


def test_a_strange_tower_is_refused(model, batch):
    with pytest.raises(ValueError, match="not the tower of such a model"):
        eyes.change_tower(model, {"tower.stages.9.x": torch.zeros(1)}, batch["pixel_values"])


def test_visual_tokens_can_be_kept_like_those_of_another_model(backbone, model, batch):
    """What `like` says apart from the codes is what is fitted, not what the model says itself."""
    like, grown = copy.deepcopy(model), copy.deepcopy(model)
    with torch.no_grad():
        like.model.multi_modal_projector.linear_2.bias.add_(
            torch.randn(256, generator=torch.Generator().manual_seed(0)) * 0.3)
        wanted, own = (one.model.multi_modal_projector(eyes.see(model, batch["pixel_values"]))
                       for one in (like, model))
    eyes.fit(grown, backbone.processor.tokenizer, batch["pixel_values"], batch["targets"], like, steps=150)
    with torch.no_grad():
        got = grown.model.multi_modal_projector(eyes.see(grown, batch["pixel_values"]))
    room = eyes.code_directions(model.model.language_model)
    apart = torch.eye(256) - room @ room.T
    assert ((got - wanted) @ apart).norm() < 0.5 * ((own - wanted) @ apart).norm()


def test_the_tower_learns_to_say_what_the_connector_cannot_work_out(backbone, model, batch, monkeypatch):
    images, targets = batch["pixel_values"], batch["targets"]
    room = eyes.code_directions(model.model.language_model)
    codes = drawing.visual_codes(by_visual_token(targets))

    @torch.no_grad()
    def off(one):
        tokens = one.model.multi_modal_projector(eyes.see(one, images))
        said = tokens / tokens.norm(dim=-1, keepdim=True) @ room * 16 / drawing.LOUD
        return (said - codes).square().sum(-1).mean().item()

    monkeypatch.setattr(eyes, "TOGETHER", 1e-4)  # gently: a dozen steps must not begin with a leap
    grown = copy.deepcopy(model)
    eyes.fit(grown, backbone.processor.tokenizer, images, targets, model, steps=12, together=True)
    assert off(grown) < 0.98 * off(model)
    old, new = (one.model.vision_tower.state_dict() for one in (model, grown))
    assert any(not torch.equal(old[name], new[name]) for name in old)


def test_a_tower_can_be_trained_further(tmp_path):
    from t4s_helpers.lab.tiny_model import tower

    scores = tower.train(tmp_path, 4, batch=2, lr=1e-4, start=backbones.EMBEDDED, first=70)
    again = tower.load_tower(tmp_path)
    old = tower.load_tower(backbones.EMBEDDED)
    name = "tower.stages.2.blocks.0.mlp.dense1.weight"
    name = name if name in again else sorted(again)[-1]
    assert again[name].shape == old[name].shape and not torch.equal(again[name], old[name])
    assert np.allclose(again[name], old[name], atol=0.05) and set(scores) >= {"run0", "category"}
