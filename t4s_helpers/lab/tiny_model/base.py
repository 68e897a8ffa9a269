"""The base: connector and language model, trained from nothing on exercises about scenes.

The pre-trained tower stays frozen. The base learns to find things: their boxes, their cells row by row,
what lies at a point, questions, lists; to repeat phrases, the pieces of descriptors in any order among them;
and, by two losses that need no text (`grounding`), to name what it sees and to look at what it speaks of. It
never sees the descriptor of a mask: that is left to LoRA.

``python -m t4s_helpers.lab.tiny_model.base --tower checkpoints/tower --out checkpoints/base`` trains, logs
to ``log.csv``, asks for every skill ten times on the way (``skills.csv``), goes on from the last checkpoint
after a kill, and writes the finished model to ``<out>/final`` in the format that ``from_pretrained`` reads.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ...data.scenes import make_scene
from ...model.backbones import Backbone, find
from ...model.chat import side_by_side
from ...model.training import ChunkedItems, CsvLog, ScoreLog, arguments, cached_encoder, last_checkpoint
from .architecture import N_VISUAL, build_model, build_processor
from .exercises import some_exercises
from .grounding import WEIGHTS, GroundedTrainer, collate, looks, names_of_tokens, places_of_words
from .muon import Muon
from .skills import skill_scores
from .tokenizer import train_tokenizer
from .tower import load_tower

BATCH = 8
ALONE, IN_A_ROW = 15, 5
"""Exercises about each scene: so many each on its own, and so many as one conversation.

Answers by the dozen make good use of one pass over the picture."""


def base_item(index: int, folder: str, seed: int = 0) -> dict:
    """Item ``index``: exercises about training scene ``index``, most of them side by side."""
    scene, encode = make_scene("train", index), cached_encoder(folder, N_VISUAL)
    exercises = some_exercises([seed, index, 21], scene, ALONE + IN_A_ROW)
    talks = [*([one] for one in exercises[:ALONE]), exercises[ALONE:]]
    item = side_by_side(encode, [[one.turn for one in talk] for talk in talks], scene.image)
    words = places_of_words(encode, scene)
    places = [looks(encode, talk, words, *tokens) for talk, tokens in zip(talks, item["exchanges"])]
    return {**item, "places": places, "names": names_of_tokens(encode, scene)}


def skills_of(backbone: Backbone, n: int, model) -> dict[str, float]:
    """Share of exact answers to held-out exercises, skill by skill."""
    return {row["skill"]: row["exact"] for row in skill_scores(replace(backbone, model=model), n=n)}


def train(tower: Path, out: Path, samples: int, lr: float = 0.02, seed: int = 0, asked: int = 32,
          **changes) -> Path:
    """Train on ``samples`` scenes, each seen once; returns the folder of the finished model.

    Args:
        tower: folder of the pre-trained tower, or of a finished model whose tower is taken over.
        out: folder for checkpoints, log and the finished model.
        lr: of the matrices; embeddings and norms take a tenth.
        asked: held-out exercises of each skill, ten times on the way.
        changes: anything of `TrainingArguments`.
    """
    from transformers import AutoProcessor, set_seed

    final = out / "final"
    if not (final / "tokenizer.json").exists():
        build_processor(train_tokenizer()).save_pretrained(final)
    processor = AutoProcessor.from_pretrained(final)
    set_seed(seed)
    model = build_model(processor.tokenizer, load_tower(tower))
    model.model.vision_tower.requires_grad_(False)
    model.model.language_model.set_attn_implementation("eager")  # the others keep their weights to themselves
    steps = samples // BATCH
    score = partial(skills_of, Backbone(find("embedded", str(final)), model, processor), asked)
    trainer = GroundedTrainer(
        model=model,
        train_dataset=ChunkedItems(partial(base_item, folder=str(final), seed=seed), samples, 2048),
        data_collator=partial(collate, processor=processor),
        args=arguments(
            out, seed=seed, num_train_epochs=1, per_device_train_batch_size=BATCH, max_grad_norm=1.0,
            lr_scheduler_type="warmup_stable_decay", warmup_steps=min(100, steps // 10),
            lr_scheduler_kwargs={"num_decay_steps": steps // 2, "decay_type": "linear", "min_lr_ratio": 0.02},
            **{"logging_steps": 25, "save_steps": 100, **changes},
        ),
        callbacks=[CsvLog(out / "log.csv", more=tuple(WEIGHTS)),
                   ScoreLog(out / "skills.csv", score, {round(at) for at in np.linspace(0, steps, 11)[1:]})],
        optimizers=(Muon(model, lr), None),
    )
    trainer.train(resume_from_checkpoint=last_checkpoint(out))
    model.to(torch.bfloat16).save_pretrained(final)
    return final


def main() -> None:
    """Train from a shell."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tower", type=Path, default=Path("checkpoints/tower"),
                        help="folder of the pre-trained tower, or a model whose tower to take over")
    parser.add_argument("--out", type=Path, default=Path("checkpoints/base"))
    parser.add_argument("--samples", type=int, default=16_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=0.02)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    print(train(args.tower, args.out, args.samples, args.lr, args.seed))


if __name__ == "__main__":
    main()
