"""Another tower under a finished base: the language model is told what it was told, only better."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from t4s_helpers import backbones
from t4s_helpers.tiny_base import drawing, eyes
from t4s_helpers.tiny_base.dense import render_with_targets
from t4s_helpers.tiny_base.tower import collate


@pytest.fixture(scope="module")
def model():
    return backbones.load_backbone("embedded").model


@pytest.fixture(scope="module")
def batch():
    return collate([render_with_targets(index) for index in range(40)])


def tower_of(model) -> dict:
    return {f"tower.{name}": tensor.clone()
            for name, tensor in model.model.vision_tower.state_dict().items()
            if not name.startswith("stages.3.")}


def test_the_directions_are_those_that_the_wired_layers_read(model):
    room = eyes.code_directions(model.model.language_model)
    n = sum(drawing.VISUAL[name] for name in eyes.PARTS)
    assert room.shape == (256, n)
    assert torch.allclose(room.T @ room, torch.eye(n), atol=1e-5)
    read = model.model.language_model.layers[2].self_attn.v_proj.weight[:32] * drawing.LOUD
    assert torch.allclose(room[:, :32].T, read, atol=0.01)


def test_the_shipped_base_knows_where_objects_begin_and_end(model):
    found = eyes.columns_right(model, 24)
    assert found["exact"] > 0.5 and found["cells"] < 1


def test_features_in_other_coordinates_are_read_as_before(model, batch):
    """A tower that says the same in another way, here twice as loud, changes nothing above."""
    other = tower_of(model)
    loud = [name for name in other if name.startswith("tower.stages.2.layer_norm.")] or [
        name for name in other if name.startswith("tower.") and "layer_norm.2." in name]
    assert loud
    for name in loud:
        other[name] *= 2
    with torch.no_grad():
        before = model.model.multi_modal_projector(eyes.see(model, batch["pixel_values"]))
    grown, lost, changed = eyes.change_tower(model, other, batch["pixel_values"], batch["targets"],
                                             steps=60)
    with torch.no_grad():
        after = grown.model.multi_modal_projector(eyes.see(grown, batch["pixel_values"]))
    room = eyes.code_directions(model.model.language_model)
    words = torch.eye(256) - room @ room.T
    off = ((after - before) @ words).norm() / (before @ words).norm()
    assert off < 0.35 and changed < 0.1 and 0 < lost < 0.6, (off, changed, lost)
    assert not torch.equal(eyes.see(grown, batch["pixel_values"]), eyes.see(model, batch["pixel_values"]))
    kept = grown.model.language_model.state_dict()
    assert all(torch.equal(kept[name], tensor)
               for name, tensor in model.model.language_model.state_dict().items())


def test_a_strange_tower_is_refused(model, batch):
    with pytest.raises(ValueError, match="not the tower of such a model"):
        eyes.change_tower(model, {"tower.stages.9.x": torch.zeros(1)}, batch["pixel_values"],
                          batch["targets"])


def test_a_tower_can_be_trained_further(tmp_path):
    from t4s_helpers.tiny_base import tower

    scores = tower.train(tmp_path, 4, batch=2, lr=1e-4, start=backbones.EMBEDDED, first=70)
    again = tower.load_tower(tmp_path)
    old = tower.load_tower(backbones.EMBEDDED)
    name = "tower.stages.2.blocks.0.mlp.dense1.weight"
    name = name if name in again else sorted(again)[-1]
    assert again[name].shape == old[name].shape and not torch.equal(again[name], old[name])
    assert np.allclose(again[name], old[name], atol=0.05) and set(scores) >= {"run0", "category"}
