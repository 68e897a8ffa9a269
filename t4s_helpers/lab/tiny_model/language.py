"""Training of the connector and the language model on short grounded answers.

The base learns boxes, which cells of a single row show something, questions, counts and captions
about scenes; and, without a picture, to copy, count and write run lengths of arbitrary words. It
never sees a picture with segmentation text: that is left to the QLoRA adapters. The pre-trained
tower stays frozen but for its last, merging stage.

``python -m t4s_helpers.lab.tiny_model.language --out checkpoints/base`` trains, logs to ``log.csv``, goes
on from the last checkpoint, and writes the finished model to ``<out>/final`` in the format that
``from_pretrained`` reads; ``--start`` goes on from a finished model.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np

from ...codec.grid import masks_to_grid
from ...data.expressions import caption, make_expression, make_question, union_mask
from ...data.prompts import BOX_BINS, Turn, box_in_words, question
from ...data.scenes import SCENE_SIZE, make_scene
from ...model.chat import pad_batch, side_by_side
from ...model.training import (
    ChunkedItems, CsvLog, ResumableTrainer, arguments, cached_encoder, last_checkpoint,
)
from .architecture import N_VISUAL, build_model, build_processor
from .tokenizer import train_tokenizer
from .tower import load_tower
from .words import text_turn

BATCH = 8
TEXT_EVERY = 4
"""One batch in so many holds exercises without pictures."""

LENGTH = 176
"""Text tokens at which a conversation gets no further exchange: short answers come by the dozen,
so that one pass over the picture trains many of them and batches hold little padding."""

BOX_KINDS = ("attribute", "attribute", "position", "relation", "all", "pair", "none", "none")


def scene_turn(rng, scene) -> Turn:
    """One exchange about a scene: a box, a point, a question, a row, or everything at once."""
    kinds = {"box": 3, "point": 2, "ask": 2, "list": 1, "row": 4}
    kind = str(rng.choice([kind for kind, often in kinds.items() for _ in range(often)]))
    if kind == "ask":
        _, ask, reply = make_question(rng, scene)
        return Turn(ask, (reply,))
    return {"box": box_turn, "point": point_turn, "row": row_turn, "list": list_turn}[kind](rng, scene)


def list_turn(rng, scene) -> Turn:
    """Everything from left to right, with boxes or without."""
    if rng.random() < 0.3:
        return Turn("Describe the picture.", (caption(scene),))
    ordered = sorted(scene.objects, key=lambda thing: thing.center[0])
    said = [f"{t.size} {t.color} {t.category} {box_in_words(t.mask)}" for t in ordered]
    return Turn("List everything with its box.", (", ".join(said),))


def point_turn(rng, scene) -> Turn:
    """What covers a point, given in the units of boxes: an object's three words, or "nothing"."""
    step = SCENE_SIZE // BOX_BINS
    covers = np.stack([o.mask.reshape(BOX_BINS, step, BOX_BINS, step).mean((1, 3))
                       for o in scene.objects])
    shown = int(rng.integers(len(scene.objects))) if rng.random() < 0.85 else None
    sure = covers.max(0) == 0 if shown is None else covers[shown] == 1
    if not sure.any():
        return box_turn(rng, scene)
    y, x = (int(v) for v in np.argwhere(sure)[int(rng.integers(sure.sum()))])
    words = "nothing"
    if shown is not None:
        thing = scene.objects[shown]
        words = f"{thing.size} {thing.color} {thing.category}"
    return Turn(f"What is at {x} {y}?", (words,))


def box_turn(rng, scene) -> Turn:
    """Where something is, or that it is nowhere."""
    expression = make_expression(rng, scene, [BOX_KINDS[int(rng.integers(len(BOX_KINDS)))]])
    where = box_in_words(union_mask(scene, expression.targets))
    return Turn(question("box", [expression.text], rng), (where,))


def row_turn(rng, scene) -> Turn:
    """Which cells of one row show something: "at 3, 5 wide", or "none"."""
    expression = make_expression(rng, scene, [BOX_KINDS[int(rng.integers(len(BOX_KINDS)))]])
    rows = int(rng.choice((16, 24, 32), p=(0.9, 0.05, 0.05)))
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


def base_item(index: int, folder: str, split: str = "train", seed: int = 0) -> dict:
    """Item ``index``: ids, labels and, unless its batch is text alone, the image."""
    encode = cached_encoder(folder, N_VISUAL)
    rng = np.random.default_rng([seed, index, 21])
    if (index // BATCH) % TEXT_EVERY == TEXT_EVERY - 1:
        turns = until_long(encode, lambda: text_turn(rng))
        return side_by_side(encode, [[turn] for turn in turns])
    scene = make_scene(split, index)
    turns = until_long(encode, lambda: scene_turn(rng, scene))
    return side_by_side(encode, [[turn] for turn in turns], scene.image)


def until_long(encode, draw) -> list[Turn]:
    """Exchanges from ``draw``, none asked twice, until they fill `LENGTH` tokens."""
    turns: list[Turn] = []
    asked, length = set(), 0
    for _ in range(40):
        turn = draw()
        more = 2 + len(encode.tokenizer(turn.question + turn.text)["input_ids"])
        if turn.question in asked or (turns and length + more > 1.25 * LENGTH):
            continue
        asked.add(turn.question)
        turns.append(turn)
        length += more
        if length >= LENGTH:
            break
    return turns


def train(tower: Path, out: Path, samples: int, lr: float = 1e-3, seed: int = 0,
          start: Path | None = None) -> Path:
    """Train on ``samples`` conversations; returns the folder of the finished model.

    Args:
        tower: folder of the pre-trained tower, or of a finished model whose tower is taken over.
        out: folder for checkpoints, log and the finished model.
        start: a finished model to go on from, in place of an untrained language model.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor, set_seed

    final = out / "final"
    if not (final / "tokenizer.json").exists():
        known = AutoProcessor.from_pretrained(start).tokenizer if start else train_tokenizer()
        build_processor(known).save_pretrained(final)
    processor = AutoProcessor.from_pretrained(final)
    set_seed(seed)
    if start:
        model = AutoModelForImageTextToText.from_pretrained(start, dtype="float32")
    else:
        model = build_model(processor.tokenizer, load_tower(tower))
    freeze_tower(model)
    trainer = ResumableTrainer(
        model=model,
        train_dataset=ChunkedItems(partial(base_item, folder=str(final), seed=seed), samples),
        data_collator=partial(pad_batch, processor=processor),
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
    """Train from a shell."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tower", type=Path, default=Path("checkpoints/tower"),
                        help="folder of the pre-trained tower, or a model whose tower to take over")
    parser.add_argument("--out", type=Path, default=Path("checkpoints/base"))
    parser.add_argument("--samples", type=int, default=96_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=Path, help="a finished model to go on from")
    parser.add_argument("--lr", type=float, default=1e-3)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    print(train(args.tower, args.out, args.samples, args.lr, args.seed, args.start))


if __name__ == "__main__":
    main()
