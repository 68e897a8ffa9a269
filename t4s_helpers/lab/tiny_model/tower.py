"""Dense pre-training of the vision tower: every cell says what it shows and where that lies.

``python -m t4s_helpers.lab.tiny_model.tower --samples 100000 --out checkpoints/tower`` trains, logs to
``log.csv`` in the same folder, and continues from the last checkpoint after a kill.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ...model.chat import IGNORE_INDEX, pixel_values
from ...model.training import (
    ChunkedItems, CsvLog, ResumableTrainer, arguments, last_checkpoint, on_all_cores,
)
from .architecture import IMAGE_MEAN, IMAGE_STD, vision_config
from .dense import HEADS, render_with_targets

WEIGHTS = {"category": 2.0}
"""Loss weights that are not 1: shape is learned last."""


class DenseTower(nn.Module):
    """The tower with one linear layer that classifies each cell under every head.

    ``forward`` takes ``pixel_values`` float ``(B, 3, 128, 128)`` and ``targets`` int64
    ``(B, n_heads, 16, 16)`` and returns ``{"loss", "logits"}``, logits ``(B, 256, sum of classes)``.
    """

    def __init__(self):
        super().__init__()
        from transformers import SegformerModel

        config = vision_config(merge=False)
        self.tower = SegformerModel(config)
        self.heads = nn.Linear(config.hidden_sizes[-1], sum(HEADS.values()))

    def forward(self, pixel_values, targets=None):
        logits = self.heads(self.tower(pixel_values, output_hidden_states=True).hidden_states[-1])
        if targets is None:
            return {"logits": logits}
        loss = 0.0
        for k, (name, part) in enumerate(zip(HEADS, logits.float().split(list(HEADS.values()), -1))):
            truth = targets[:, k].flatten(1)
            loss = loss + WEIGHTS.get(name, 1.0) * head_loss(part, truth)
        return {"loss": loss, "logits": logits}


def head_loss(logits, truth):
    """Cross entropy; empty cells weigh a fifth so that they do not drown the objects."""
    weight = torch.where(truth == IGNORE_INDEX, 0.0, torch.where(truth == 0, 0.2, 1.0))
    each = F.cross_entropy(logits.flatten(0, 1), truth.flatten(), ignore_index=IGNORE_INDEX,
                           reduction="none")
    return (each * weight.flatten()).sum() / weight.sum().clamp(min=1)


def collate(items) -> dict:
    """Rendered scenes with targets as one batch for `DenseTower`."""
    images, targets = zip(*items)
    return {"pixel_values": pixel_values(np.stack(images), IMAGE_MEAN, IMAGE_STD),
            "targets": torch.as_tensor(np.stack(targets)).long()}


@torch.no_grad()
def head_accuracies(model: DenseTower, split: str = "val", n: int = 512) -> dict[str, float]:
    """Accuracy per head over the cells of ``n`` scenes that show an object."""
    model.eval()
    items = on_all_cores(partial(render_with_targets, split=split), list(range(n)))
    right, seen = np.zeros(len(HEADS)), np.zeros(len(HEADS))
    for at in range(0, n, 64):
        batch = collate(items[at:at + 64])
        logits = model(batch["pixel_values"])["logits"]
        for k, part in enumerate(logits.split(list(HEADS.values()), -1)):
            truth = batch["targets"][:, k].flatten(1)
            use = truth > 0 if k < 3 else truth != IGNORE_INDEX
            right[k] += (part.argmax(-1) == truth)[use].sum().item()
            seen[k] += use.sum().item()
    return dict(zip(HEADS, (right / seen.clip(1)).round(4).tolist()))


def train(out: Path, samples: int, batch: int = 32, lr: float = 1.5e-3, seed: int = 0) -> dict:
    """Train on ``samples`` training scenes, each seen once; returns val accuracies."""
    from transformers import set_seed

    set_seed(seed)
    model = DenseTower()
    trainer = ResumableTrainer(
        model=model, data_collator=collate,
        train_dataset=ChunkedItems(render_with_targets, samples),
        args=arguments(
            out, seed=seed, num_train_epochs=1, per_device_train_batch_size=batch,
            learning_rate=lr, lr_scheduler_type="cosine", warmup_steps=0.05, weight_decay=0.02,
            adam_beta2=0.98, logging_steps=25, save_steps=250, label_names=["targets"],
        ),
        callbacks=[CsvLog(out / "log.csv")],
    )
    trainer.train(resume_from_checkpoint=last_checkpoint(out))
    scores = head_accuracies(model)
    from safetensors.torch import save_file

    save_file(model.state_dict(), out / "tower.safetensors")
    return scores


def load_tower(folder: Path) -> dict:
    """Tensors of a pre-trained tower, named as in `DenseTower`.

    Args:
        folder: what `train` wrote, or a finished model, whose tower is taken over.
    """
    from safetensors.torch import load_file

    if (Path(folder) / "tower.safetensors").exists():
        return load_file(Path(folder) / "tower.safetensors")
    from transformers import AutoModelForImageTextToText

    state = AutoModelForImageTextToText.from_pretrained(folder).model.vision_tower.state_dict()
    return {f"tower.{name}": tensor.float() for name, tensor in state.items()
            if not name.startswith("stages.3.")}


def main() -> None:
    """Pre-train from a shell."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("checkpoints/tower"))
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    print(train(args.out, args.samples, lr=args.lr, seed=args.seed))


if __name__ == "__main__":
    main()
