"""What ships loads and is small; what cannot be loaded is named."""

from __future__ import annotations

import shutil

import pytest
import tiny_model
from safetensors.torch import load_file, save_file

from t4s_helpers.files import ASSETS
from t4s_helpers.model import backbones


@pytest.mark.parametrize(("options", "words"), [
    ({"name": "llava-2"}, "llava-1.5-7b"), ({"quantize": "int3"}, "int3"),
    ({"source": "/nowhere/at/all"}, "/nowhere/at/all"), ({"adapter": "no-such-adapter"}, "no-such-adapter")])
def test_what_cannot_be_loaded_is_named(options, words):
    with pytest.raises(backbones.BackboneError, match=words):
        backbones.load_backbone(**{"source": tiny_model.folder(), **options})


def test_an_adapter_for_another_base_is_refused(tmp_path):
    shutil.copytree(backbones.ADAPTERS / "scenes", tmp_path / "other")
    tensors = load_file(tmp_path / "other" / "adapter_model.safetensors")
    save_file({name: tensor[:, :-1].contiguous() for name, tensor in tensors.items()},
              tmp_path / "other" / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(backbones.BackboneError, match="another base"):
        tiny_model.backbone(adapter=tmp_path / "other")


def test_the_shipped_model_is_small_enough():
    sizes = {path: path.stat().st_size / 1e6 for path in ASSETS.rglob("*.safetensors")}
    assert sizes and all(size <= 25 for size in sizes.values())
    model = backbones.load_backbone("embedded").model
    assert sum(p.numel() for p in model.parameters()) <= 12_000_000
