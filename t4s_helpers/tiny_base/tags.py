"""Fitting the embeddings of ``<seg>`` and ``</seg>`` alone.

LoRA trains no embeddings, and the diet of the first base held neither tag, so that its model could
not write them, whatever the adapter asked for. This script fits those two rows of the (tied)
embedding matrix under a trained adapter, on descriptor answers, and changes nothing else.

``python -m t4s_helpers.tiny_base.tags --base FOLDER --adapter FOLDER`` writes the base back.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .tokenizer import TAGS


def fit_tags(backbone, data, collate, batch: int = 16, lr: float = 2e-2, log=print) -> list[float]:
    """Train the tags' embeddings for one pass over ``data``; returns the loss of each step.

    Args:
        backbone: a `t4s_helpers.backbones.Backbone` with its adapter, unquantized.
        data, collate: see `t4s_helpers.training.scene_data`.
    """
    import torch

    model = backbone.model
    for weight in model.parameters():
        weight.requires_grad_(False)
    table = model.get_input_embeddings().weight.requires_grad_(True)
    rows = torch.zeros(len(table), 1)
    rows[backbone.processor.tokenizer.convert_tokens_to_ids(list(TAGS))] = 1
    hook = table.register_hook(lambda grad: grad * rows.to(grad))
    optimizer, losses = torch.optim.Adam([table], lr), []
    for at in range(0, len(data) - batch + 1, batch):
        inputs = collate([data[k] for k in range(at, at + batch)])
        with torch.autocast(model.device.type, torch.bfloat16):
            loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        log(f"step {len(losses)}: loss {losses[-1]:.3f}")
    hook.remove()
    return losses


def main() -> None:
    import torch

    from ..backbones import ADAPTERS, EMBEDDED, load_backbone
    from ..training import scene_data

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--base", type=Path, default=EMBEDDED)
    parser.add_argument("--adapter", type=Path, default=ADAPTERS / "scenes")
    parser.add_argument("--samples", type=int, default=640)
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    backbone = load_backbone("embedded", source=args.base, adapter=args.adapter)
    data, collate = scene_data(backbone, args.samples, mix="all", n=2, style="box", seed=args.seed)
    fit_tags(backbone, data, collate)
    backbone.model.unload().to(torch.bfloat16).save_pretrained(args.base)


if __name__ == "__main__":
    main()
