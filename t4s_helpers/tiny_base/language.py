"""Training of the connector and the language model on short grounded answers.

The base learns boxes, which cells of a single row show something, questions, counts and captions
about scenes; and, without a picture, to copy, count and write run lengths of arbitrary words. It
never sees a picture with segmentation text: that is left to the QLoRA adapters. The pre-trained tower stays frozen but for its last, merging stage.

``python -m t4s_helpers.tiny_base.language --tower checkpoints/tower --out checkpoints/base``
trains, logs to ``log.csv``, goes on from the last checkpoint, and writes the finished model to
``<out>/final`` in the format that ``from_pretrained`` reads.
"""

from __future__ import annotations

import argparse
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from ..data.expressions import (
    GRES_KINDS, caption, make_expression, make_question, union_mask,
)
from ..data.scenes import make_scene
from ..descriptors import masks_to_grid
from ..prompts import Turn, box_in_words, question
from .architecture import N_VISUAL
from .rendering import ChunkedItems

BATCH = 32
TEXT_EVERY = 5
"""One batch in so many holds exercises without pictures."""

BOX_KINDS = ("attribute", "attribute", "position", "relation", "all", "pair", "none", "none")


DIETS = ("text", "boxes", "all")
"""``text``: exercises without pictures, on which copying is learned first and fast; ``boxes``:
where things are and what they are; ``all``: everything, a batch in `TEXT_EVERY` without pictures."""


def base_turns(rng, scene, diet: str = "all") -> list[Turn]:
    """Exchanges about one scene: boxes, rows, questions and a caption, in random order."""
    if diet == "boxes":
        asked = [make_question(rng, scene)[1:] for _ in range(2)]
        return [Turn(ask, (reply,)) for ask, reply in asked] + [
            box_turn(rng, scene) for _ in range(4)]
    turns = [box_turn(rng, scene) for _ in range(3)] + [row_turn(rng, scene) for _ in range(3)]
    turns += [Turn(ask, (reply,)) for _, ask, reply in (make_question(rng, scene) for _ in "ab")]
    if rng.random() < 0.5:
        turns.append(Turn("Describe the picture.", (caption(scene),)))
    return [turns[i] for i in rng.permutation(len(turns))]


def box_turn(rng, scene) -> Turn:
    """Where something is, or that it is nowhere."""
    expression = make_expression(rng, scene, [BOX_KINDS[int(rng.integers(len(BOX_KINDS)))]])
    where = box_in_words(union_mask(scene, expression.targets))
    return Turn(question("box", [expression.text], rng), (where,))


def row_turn(rng, scene) -> Turn:
    """Which cells of one row show something: "at 3, 5 wide", or "none"."""
    expression = make_expression(rng, scene, [BOX_KINDS[int(rng.integers(len(BOX_KINDS)))]])
    rows = int(rng.choice((16, 24, 32), p=(0.7, 0.15, 0.15)))
    grid = masks_to_grid(union_mask(scene, expression.targets)[None], rows)
    shown = np.flatnonzero(grid.any(1))
    row = int(rng.choice(shown)) if len(shown) and rng.random() < 0.8 else int(rng.integers(rows))
    ask = question("row", [expression.text], rng, row=row, rows=rows)
    return Turn(ask, (spans_in_words(grid[row]),))


def spans_in_words(row: np.ndarray) -> str:
    """First cell and width of each run of non-zero cells.

    >>> spans_in_words(np.array([0, 0, 1, 1, 0, 1]))
    'at 2, 2 wide; at 5, 1 wide'
    """
    edges = np.flatnonzero(np.diff(np.concatenate(([0], row > 0, [0]))))
    spans = [f"at {a}, {b - a} wide" for a, b in zip(edges[::2], edges[1::2])]
    return "; ".join(spans) or "none"


@lru_cache(maxsize=2)
def cached_encoder(folder: str):
    """The encoder of a saved processor; cached, because worker processes call item by item."""
    from transformers import AutoProcessor

    from ..training import ConversationEncoder

    return ConversationEncoder(AutoProcessor.from_pretrained(folder), N_VISUAL)


def base_item(index: int, folder: str, split: str = "train", seed: int = 0,
              diet: str = "all") -> dict:
    """Item ``index`` of the base's diet: ids, labels and, unless it is text alone, the image."""
    from .words import text_turn

    encode = cached_encoder(folder)
    rng = np.random.default_rng([seed, index, 21])
    if diet == "text" or diet == "all" and (index // BATCH) % TEXT_EVERY == TEXT_EVERY - 1:
        return packed(encode([text_turn(rng) for _ in range(3)]))
    scene = make_scene(split, index)
    return packed(encode(base_turns(rng, scene, diet), has_image=True), scene.image)


def packed(item: dict, image=None) -> dict:
    """Small arrays instead of lists: thousands of items wait in memory."""
    out = {name: np.asarray(values, np.int16) for name, values in item.items()}
    return out if image is None else {**out, "image": image}


def collate(items: list[dict], pad_id: int) -> dict:
    """Pad, and normalise the images that there are."""
    from ..training import pad_batch
    from .architecture import pixel_values

    images = [item["image"] for item in items if "image" in item]
    batch = pad_batch([{k: v for k, v in item.items() if k != "image"} for item in items], pad_id)
    if images:
        batch["pixel_values"] = pixel_values(np.stack(images))
    return batch


def train(tower: Path, out: Path, samples: int, lr: float = 1e-3, seed: int = 0,
          diet: str = "all", start: Path | None = None) -> Path:
    """Train on ``samples`` conversations; returns the folder of the finished model.

    Args:
        tower: folder of the pre-trained tower.
        out: folder for checkpoints, log and the finished model.
        diet: one of `DIETS`.
        start: a finished model to go on from, in place of an untrained language model.
    """
    from safetensors.torch import load_file
    from transformers import AutoModelForImageTextToText, AutoTokenizer, set_seed

    from ..training import CsvLog, arguments, resumable_trainer
    from .architecture import build_model, build_processor
    from .tokenizer import train_tokenizer
    from .tower import last_checkpoint

    final = out / "final"
    if not (final / "tokenizer.json").exists():
        known = AutoTokenizer.from_pretrained(start) if start else train_tokenizer()
        build_processor(known).save_pretrained(final)
    tokenizer = AutoTokenizer.from_pretrained(final)
    set_seed(seed)
    if start:
        model = AutoModelForImageTextToText.from_pretrained(start, dtype="float32")
    else:
        model = build_model(tokenizer, load_file(tower / "tower.safetensors"))
    freeze_tower(model)
    trainer = resumable_trainer(
        model=model,
        train_dataset=ChunkedItems(partial(base_item, folder=str(final), seed=seed, diet=diet), samples),
        data_collator=partial(collate, pad_id=tokenizer.pad_token_id),
        args=arguments(
            out, seed=seed, num_train_epochs=1, per_device_train_batch_size=BATCH,
            learning_rate=lr, lr_scheduler_type="cosine", warmup_steps=0.03, weight_decay=0.01,
            adam_beta2=0.95, logging_steps=25, save_steps=250,
        ),
        callbacks=[CsvLog(out / "log.csv")],
    )
    trainer.train(resume_from_checkpoint=last_checkpoint(out))
    import torch

    model.to(torch.bfloat16).save_pretrained(final)
    return final


def freeze_tower(model) -> None:
    """Leave only the tower's merging stage, the connector and the language model trainable."""
    for name, weight in model.model.vision_tower.named_parameters():
        weight.requires_grad_(name.startswith("stages.3."))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tower", type=Path, default=Path("checkpoints/tower"))
    parser.add_argument("--out", type=Path, default=Path("checkpoints/base"))
    parser.add_argument("--samples", type=int, default=96_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--diet", choices=DIETS, default="all")
    parser.add_argument("--start", type=Path, help="a finished model to go on from")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    print(train(args.tower, args.out, args.samples, seed=args.seed, diet=args.diet,
                start=args.start))


if __name__ == "__main__":
    main()
