"""What to do with a trained adapter: ship it, or merge it into the weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from .backbones import load_backbone


def export_adapter(adapter: Path | str, out: Path | str, base: str) -> Path:
    """Copy an adapter in the form in which it ships: bfloat16, the base by name, nothing else.

    Args:
        adapter: a folder that peft saved, for example ``out/adapter`` or a checkpoint.
        out: the new folder.
        base: name of the backbone that it belongs to; replaces the path on this machine.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    config = json.loads((Path(adapter) / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = base
    tensors = load_file(Path(adapter) / "adapter_model.safetensors")
    save_file({name: t.to(torch.bfloat16).contiguous() for name, t in tensors.items()},
              out / "adapter_model.safetensors", metadata={"format": "pt"})
    (out / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    return out


def merge_adapter(name: str, adapter: Path | str, out: Path | str,
                  source: Path | str | None = None) -> Path:
    """Add an adapter's matrices to the weights of its backbone and save the sum with its processor.

    The result needs neither peft nor this package: any server that loads the backbone loads it. The
    sum is formed in float32 on the unquantized weights and stored in bfloat16. An adapter trained on
    NF4 weights meets slightly different ones here; this is how QLoRA adapters are usually deployed.

    Args:
        name: a key of `t4s_helpers.model.backbones.BACKBONES`.
        adapter: folder of a peft adapter, or the name of one that ships.
        out: a new folder.
        source: another folder or hub id of the backbone.

    Returns:
        ``out``; ``load_backbone(name, source=out)`` reads it.

    Raises:
        BackboneError: from `t4s_helpers.model.backbones.load_backbone`.
        FileExistsError: ``out`` holds files already.
    """
    out = Path(out)
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty: merged weights go to a new folder.")
    backbone = load_backbone(name, adapter=adapter, source=source)
    merged = backbone.model.float().merge_and_unload()
    merged.to(torch.bfloat16).save_pretrained(out)
    backbone.processor.save_pretrained(out)
    return out
