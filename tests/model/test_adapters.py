"""Merging and refusing adapters."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import families
import pytest
import tiny_model
import torch
from safetensors.torch import load_file, save_file

from t4s_helpers.data.expressions import scene_sample
from t4s_helpers.data.prompts import Turn
from t4s_helpers.model import adapters, backbones, training
from t4s_helpers.model.backbones import BACKBONES, BackboneError


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """An adapter whose matrices are far from zero."""
    model = training.add_adapter(tiny_model.backbone(), rank=4, alpha=8)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.normal_(0, 0.1)
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(folder / "raw")
    return adapters.export_adapter(folder / "raw", folder / "shipped", "embedded")


def logits(backbone):
    inputs = backbone.encoder.prompt([Turn("Segment the star.")],
                                     scene_sample("test", 0).pixels())
    with torch.inference_mode():
        return backbone.model(**inputs).logits


def test_merged_weights_answer_as_base_and_adapter_do(adapter, tmp_path):
    out = adapters.merge_adapter("embedded", adapter, tmp_path / "merged", tiny_model.folder())
    merged = backbones.load_backbone("embedded", source=out)
    assert not any("lora" in name for name, _ in merged.model.named_parameters())
    want = logits(tiny_model.backbone(adapter=adapter))
    base = logits(tiny_model.backbone())
    got = logits(merged)
    assert (got - want).abs().max() < 0.05 * (want - base).abs().max()
    assert torch.equal(got.argmax(-1), want.argmax(-1))


def test_merged_weights_never_overwrite(adapter, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        adapters.merge_adapter("embedded", adapter, tmp_path, tiny_model.folder())


@pytest.mark.parametrize(("base", "rename", "told"), [
    ("llava-1.5-7b", str, "trained on 'llava-1.5-7b'"),
    ("llava-hf/llava-1.5-7b-hf", str, "trained on 'llava-1.5-7b'"),
    ("embedded", lambda name: name.replace("layers.3", "layers.7"), "another base.*no counterpart")])
def test_an_adapter_of_another_base_is_refused(adapter, tmp_path, base, rename, told):
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({rename(name): t for name, t in tensors.items()}, tmp_path / "adapter_model.safetensors")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": base}))
    with pytest.raises(BackboneError, match=told):
        tiny_model.backbone(adapter=tmp_path)


@pytest.mark.parametrize("trainable", [False, True])
def test_an_adapter_that_lost_a_matrix_is_neither_used_nor_trained_further(adapter, tmp_path, trainable):
    """peft would only warn, and fill the gap with a fresh matrix."""
    shutil.copytree(adapter, tmp_path / "copy")
    tensors = load_file(adapter / "adapter_model.safetensors")
    lost = sorted(tensors)[0]
    save_file({name: t for name, t in tensors.items() if name != lost},
              tmp_path / "copy" / "adapter_model.safetensors")
    with pytest.raises(BackboneError, match=f"1 of its matrices .*{lost}"):
        backbones.open_adapter(tiny_model.backbone(), tmp_path / "copy", trainable=trainable)


def test_an_adapter_of_another_shape_is_refused(adapter):
    with pytest.raises(BackboneError, match="does not fit"):
        backbones.load_backbone("llava-1.5-7b", source=families.folder("llava-1.5-7b"), adapter=adapter)
    other = replace(tiny_model.backbone(), model=families.FAMILIES["llava-1.5-7b"]()[0])
    with pytest.raises(BackboneError, match="does not fit 'embedded', it was trained on another base"):
        backbones.open_adapter(other, adapter)


def test_too_little_gpu_memory_says_need_free_amount_and_setting():
    spec = BACKBONES["llava-1.5-13b"]
    backbones.check_memory(spec, "nf4", 12.0)
    with pytest.raises(BackboneError, match=r"25.0 GB.*12.0 GB are free.*quantize='nf4'"):
        backbones.check_memory(spec, None, 12.0)
    with pytest.raises(BackboneError, match=r"6.0 GB are free.*llava-1.5-7b"):
        backbones.check_memory(spec, "nf4", 6.0)


def test_a_tokenizer_without_the_image_token_is_refused(tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(tiny_model.folder(), folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace("<image>", "<unused>").replace(
            '"image_token"', '"unused_token"'))
    with pytest.raises(BackboneError, match="does not know its image token '<image>'"):
        backbones.load_backbone("embedded", source=folder)
