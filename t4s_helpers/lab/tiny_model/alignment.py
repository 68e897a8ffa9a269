"""Alignment of the connector: visual tokens come to lie where the words for them lie.

LLaVA aligns its connector on captions before anything else. Here every visual token knows which
objects it shows, so the alignment is dense: its embedding must point to the words of category,
colour and size of what it covers, and keep, readable by linear layers that are thrown away later,
where that lies (the heads of `.dense`). The language model is not touched, only its word embeddings
are read. No text is generated and no descriptor is seen.

``python -m t4s_helpers.lab.tiny_model.alignment --start checkpoints/text/final --out checkpoints/align``
trains, logs to ``log.csv``, goes on from the last checkpoint, and writes the model to
``<out>/final``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from ...data.scenes import CATEGORIES, COLORS, SIZES
from .dense import GRID, HEADS, render_with_targets
from .language import freeze_tower
from .rendering import ChunkedItems
from .tower import WEIGHTS, collate, head_loss

NOTHING = "nothing"
WORDS = (CATEGORIES, tuple(COLORS), tuple(SIZES))
TEMPERATURE = 0.05
EMPTY_WEIGHT = 0.2
"""Weight of a visual token that shows no object, so that the background does not drown the rest."""


class Alignment(nn.Module):
    """Tower and connector of a model, with word targets and probing heads.

    ``forward`` takes ``pixel_values`` float ``(B, 3, 128, 128)`` and ``targets`` int64
    ``(B, n_heads, 16, 16)`` and returns ``{"loss", "words"}``, the mean cross-entropy of the words.
    """

    def __init__(self, model, tokenizer):
        super().__init__()
        self.tower = model.model.vision_tower
        self.connector = model.model.multi_modal_projector
        table = model.get_input_embeddings().weight.detach()
        ids = [[first_token(tokenizer, word) for word in words] for words in WORDS]
        flat = [first_token(tokenizer, NOTHING), *(i for part in ids for i in part)]
        self.register_buffer("words", F.normalize(table[flat], dim=-1), persistent=False)
        self.register_buffer("length", table.norm(dim=-1).mean(), persistent=False)
        self.probes = nn.Linear(table.shape[1], 4 * sum(HEADS.values()))

    def forward(self, pixel_values, targets):
        features = self.tower(pixel_values, output_hidden_states=True).hidden_states[-1]
        visual = self.connector(features)
        truth = by_visual_token(targets)
        words = self._word_loss(visual, truth)
        size = (visual.norm(dim=-1).mean().log() - self.length.log()) ** 2
        return {"loss": words + size + self._probe_loss(visual, truth) / len(HEADS),
                "words": words.detach()}

    def _word_loss(self, visual, truth):
        said = word_targets(truth[:, :3])
        log_p = (F.normalize(visual, dim=-1) @ self.words.T / TEMPERATURE).log_softmax(-1)
        each = -(said * log_p).sum(-1) / said.sum(-1)
        weight = torch.where(said[..., 0] > 0, EMPTY_WEIGHT, 1.0)
        return (each * weight).sum() / weight.sum()

    def _probe_loss(self, visual, truth):
        logits = self.probes(visual).float().unflatten(-1, (4, -1)).flatten(1, 2)
        parts = logits.split(list(HEADS.values()), -1)
        return sum(WEIGHTS.get(name, 1.0) * head_loss(part, truth[:, k].flatten(1))
                   for k, (name, part) in enumerate(zip(HEADS, parts)))


def first_token(tokenizer, word: str) -> int:
    """Id of the first token of a word inside a text."""
    return tokenizer(f" {word}", add_special_tokens=False)["input_ids"][0]


def by_visual_token(targets):
    """``(B, n, 16, 16)`` per cell -> ``(B, n, 64, 4)``: the four cells of every visual token."""
    half = GRID // 2
    cut = targets.unflatten(3, (half, 2)).unflatten(2, (half, 2))
    return cut.transpose(3, 4).flatten(4, 5).flatten(2, 3)


def word_targets(truth):
    """Which words belong to a visual token.

    Args:
        truth: int64 ``(B, 3, 64, 4)``: category, colour and size of its cells, 0 for nothing.

    Returns:
        float ``(B, 64, 1 + n_words)``, 1 for each word of what a cell shows; the first column is
        `NOTHING`, 1 where no cell shows anything.
    """
    parts = [F.one_hot(truth[:, k], 1 + len(words)).amax(2)[..., 1:]
             for k, words in enumerate(WORDS)]
    said = torch.cat(parts, -1).float()
    return torch.cat([(said.sum(-1, keepdim=True) == 0).float(), said], -1)


@torch.no_grad()
def word_accuracy(model, tokenizer, n: int = 64, split: str = "val") -> dict[str, float]:
    """How often a visual token's nearest word is right, over ``n`` scenes.

    Returns:
        ``nothing``: among the tokens that show no object, those nearest to "nothing";
        ``category``, ``color``, ``size``: among the others, those whose nearest word of that kind
        belongs to one of their cells.
    """
    aligned = Alignment(model, tokenizer).eval()
    batch = collate([render_with_targets(index, split) for index in range(n)])
    features = aligned.tower(batch["pixel_values"], output_hidden_states=True).hidden_states[-1]
    near = F.normalize(aligned.connector(features), dim=-1) @ aligned.words.T
    said = word_targets(by_visual_token(batch["targets"])[:, :3])
    empty = said[..., 0] > 0
    scores, at = {"nothing": (near.argmax(-1) == 0)[empty].float().mean().item()}, 1
    for name, words in zip(("category", "color", "size"), WORDS):
        kind = slice(at, at + len(words))
        first = near[..., kind].argmax(-1, keepdim=True)
        scores[name] = said[..., kind].gather(-1, first)[..., 0][~empty].mean().item()
        at = kind.stop
    return scores


def train(start: Path, out: Path, samples: int, batch: int = 32, lr: float = 1e-3,
          seed: int = 0) -> Path:
    """Align the connector of the model in ``start``; returns the folder of the result."""
    from transformers import AutoModelForImageTextToText, AutoProcessor, set_seed

    from ...model.training import CsvLog, arguments, last_checkpoint, resumable_trainer

    set_seed(seed)
    processor = AutoProcessor.from_pretrained(start)
    model = AutoModelForImageTextToText.from_pretrained(start, dtype=torch.float32)
    freeze_tower(model)
    aligned = Alignment(model, processor.tokenizer)
    trainer = resumable_trainer(
        model=aligned, train_dataset=ChunkedItems(render_with_targets, samples),
        data_collator=collate,
        args=arguments(
            out, seed=seed, num_train_epochs=1, per_device_train_batch_size=batch,
            learning_rate=lr, lr_scheduler_type="cosine", warmup_steps=0.03, weight_decay=0.0,
            logging_steps=20, save_steps=200, label_names=["targets"],
        ),
        callbacks=[CsvLog(out / "log.csv")],
    )
    trainer.train(resume_from_checkpoint=last_checkpoint(out))
    final = out / "final"
    processor.save_pretrained(final)
    model.to(torch.bfloat16).save_pretrained(final)
    return final


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--start", type=Path, default=Path("checkpoints/text/final"))
    parser.add_argument("--out", type=Path, default=Path("checkpoints/align"))
    parser.add_argument("--samples", type=int, default=16_384)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    print(train(args.start, args.out, args.samples, seed=args.seed))


if __name__ == "__main__":
    main()
