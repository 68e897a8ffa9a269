"""Training the adapters of the ablations: one for each configuration and seed, all else alike.

All start from the base and read the same samples in the same order. A run is as long as its answers
allow: it reads samples until their answers have used the recipe's tokens, and its learning rate falls
to zero there.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from ...data.mixtures import SceneMixture, named_mixture
from ...data.prompts import Turn
from ...data.registry import ENTRIES, load
from ...files import atomic_write
from ...model import adapters, training
from ...model.backbones import find, load_backbone, load_processor
from ...model.chat import IGNORE_INDEX, ConversationEncoder
from ...refine import load_refiner
from . import measure as m
from .design import (
    DESIGN, SEEDS, AblationError, Recipe, RunConfig, Trained, configurations, finished, keep_recipe, levers,
    read_recipe, trained,
)


def train(out: Path | str, recipe: Recipe | None = None, seeds: Sequence[int] = SEEDS,
          design: Sequence[RunConfig] | None = None, root: Path | str | None = None,
          source: Path | str | None = None, ship: Path | str | None = None) -> list[Path]:
    """Train every configuration with every seed; finished ones are left as they are.

    A seed draws the LoRA matrices and dropout, nothing else.

    Args:
        out: one folder an adapter: checkpoints, ``log.csv``, ``scores.csv`` (the learning curve) and
            ``adapter``; ``recipe.json``. A call after an interruption resumes.
        design: what to train, by default all `configurations` of the recipe.
        root: folder of the data sets, see `t4s_helpers.data.load`.
        source: folder or hub id of the backbone's weights, if not its own.
        ship: also export the adapters of `DESIGN` with the first of the seeds here, as they ship.

    Returns:
        the adapters' folders, in the order of design and seeds. An `AblationError`: ``out`` holds adapters
        of another recipe, or there are no held-out requests.
    """
    recipe, out, done = recipe or Recipe(), Path(out), []
    if not recipe.held_out and not {*recipe.data.split(",")} <= {"scenes", *ENTRIES}:
        raise AblationError(f"Nothing is held out of {recipe.data}: name another file of requests, which "
                            "training does not see, with --held-out.")
    keep_recipe(out, recipe)
    for config in design or configurations(recipe):
        for seed in seeds:
            folder = out / config.name(seed)
            if not finished(folder):
                _train_one(folder, config, seed, recipe, root, source)
            done.append(folder / "adapter")
            if ship and config in DESIGN and seed == seeds[0]:
                adapters.export_adapter(done[-1], Path(ship) / folder.name, recipe.backbone)
    return done


def _train_one(folder: Path, config: RunConfig, seed: int, recipe: Recipe, root, source) -> None:
    backbone = load_backbone(**recipe.opening(source))
    mixture, together = conversations(config, recipe, root), _together(recipe)
    used = answer_tokens(backbone.encoder, mixture, recipe.tokens, together)
    steps = len(used) // together
    print(f"{config.name(seed)}: {len(used)} conversations, {used[-1, 1]} tokens, {steps} steps", flush=True)
    asked = next(iter(m.held_out(recipe.held_out or recipe.data, recipe.n_scored, root).values()))

    def score(model):
        return m.coarse_scores(replace(backbone, model=model), asked, config)

    def beside(step):
        return dict(zip(("masks", "tokens"), used[step * together - 1].tolist() if step else (0, 0)))

    at = {round(step) for step in np.linspace(0, steps, recipe.points + 1)}
    model = training.add_adapter(backbone, recipe.rank, 2 * recipe.rank, seed=seed)
    training.fine_tune(
        backbone, *training.training_data(backbone, first(mixture, len(used))), folder, batch=recipe.batch,
        accumulate=recipe.accumulate, model=model, learning_rate=recipe.lr, seed=seed,
        train_sampling_strategy="sequential", save_steps=max(1, min(100, steps // 4)),
        callbacks=[training.ScoreLog(folder / "scores.csv", score, at, beside)])
    # The adapter's files come one by one; only this mark says that all of them are there.
    (folder / "adapter" / "finished").touch()


def _together(recipe: Recipe) -> int:
    """Conversations in a step, of all processes."""
    return recipe.batch * recipe.accumulate * training.processes()


# --- what is read ------------------------------------------------------------------------------------


class Part:
    """A view of a mixture: its first ``n`` conversations, whose targets may be called by another word."""

    def __init__(self, mixture, n: int, word: str = ""):
        self.mixture, self.n, self.word = mixture, n, word
        self.image = mixture.image

    def __len__(self) -> int:
        return self.n

    def turns(self, index: int) -> list[Turn]:
        """The exchanges of conversation ``index``."""
        turns = self.mixture.turns(index)
        return [renamed(turn, self.word) for turn in turns] if self.word else turns


def renamed(turn: Turn, word: str) -> Turn:
    """The exchange whose descriptor calls its one label by another word; the question stays.

    >>> renamed(Turn("Segment a dog.", ("dog", " *2"), ("dog",)), "x").text
    'x *2'
    """
    if len(turn.labels) != 1:
        return turn
    answer = tuple(word if piece == turn.labels[0] else piece for piece in turn.answer)
    return replace(turn, answer=answer, labels=(word,))


def first(mixture, n: int):
    """The first ``n`` conversations of a mixture; those about scenes stay scenes, which are made ahead."""
    return replace(mixture, n=n) if isinstance(mixture, SceneMixture) else Part(mixture, n)


def conversations(config: RunConfig, recipe: Recipe, root: Path | str | None = None):
    """All conversations that are drawn up, answered as a configuration writes.

    One request each: three full-length answers side by side make such long rows that attention over
    them takes ten times as long as over three R-RLE ones.
    """
    layout = dict(seed=recipe.data_seed, encoding=config.text, style=config.style or recipe.style)
    mixture = (SceneMixture(recipe.samples, config.mix or recipe.mix, 1, **layout)
               if recipe.data == "scenes" else
               named_mixture(dict.fromkeys(recipe.data.split(","), 1), root, n=recipe.samples,
                             reading={"counts": "warn"}, **layout))
    return Part(mixture, len(mixture), config.label) if config.label else mixture


def answer_tokens(encoder: ConversationEncoder, mixture, tokens: int, together: int = 1) -> np.ndarray:
    """What the answers of a mixture use, conversation by conversation, until it is enough.

    Args:
        tokens: enough.
        together: the number of conversations is a multiple of it.

    Returns:
        int64 ``(n, 2)``: masks and answer tokens of the first conversations, each with all before it.

    Raises:
        AblationError: the mixture is used up before.
    """
    used, total = [], np.zeros(2, np.int64)
    while not used or total[1] < tokens or len(used) % together:
        if len(used) == len(mixture):
            raise AblationError(f"All {len(used)} conversations have {total[1]} answer tokens, and {tokens} "
                                "are to be used: draw up more with --samples.")
        turns = mixture.turns(len(used))
        trained = sum(label != IGNORE_INDEX for label in encoder(turns)["labels"])
        total = total + (sum(bool(turn.labels) for turn in turns), trained)
        used.append(total)
    return np.array(used)


# --- what is known -----------------------------------------------------------------------------------


def plan(out: Path | str, recipe: Recipe | None = None, seeds: Sequence[int] = SEEDS,
         design: Sequence[RunConfig] | None = None, root: Path | str | None = None,
         source: Path | str | None = None, n: int = 32) -> pd.DataFrame:
    """What `train` would do, in its order; no weights are loaded.

    Returns:
        one row an adapter: ``adapter``; about how many ``tokens`` an answer has (of the first ``n``
        conversations), and so ``conversations`` and ``steps``; the ``minutes`` that its log tells, and
        its ``state``.
    """
    recipe, rows = recipe or Recipe(), []
    encoder = ConversationEncoder(load_processor(find(recipe.backbone, source)))
    for config in design or configurations(recipe):
        mixture = first(conversations(config, recipe, root), min(n, recipe.samples))
        each = answer_tokens(encoder, mixture, 0, len(mixture))[-1, 1] / len(mixture)
        for seed in seeds:
            folder = Path(out) / config.name(seed)
            reached = (training.last_checkpoint(folder) or "").rpartition("-")[2]
            log = training.read_log(folder / "log.csv")
            rows.append({"adapter": config.name(seed), "tokens": round(each),
                         "conversations": round(recipe.tokens / each),
                         "steps": round(recipe.tokens / each / _together(recipe)),
                         "minutes": round(log[-1]["seconds"] / 60, 1) if log else np.nan,
                         "state": "finished" if finished(folder) else
                                  f"at step {reached}" if reached else "to be trained"})
    return pd.DataFrame(rows)


def write_tables(out: Path | str, tables: Path | str, root: Path | str | None = None,
                 source: Path | str | None = None, refiner: str = "mobile_sam", n: int = 96,
                 timed: int = 8) -> None:
    """Measure the adapters in a folder; a call after an interruption resumes.

    Args:
        out, root, source: what `train` was given.
        tables: folder for ``rows``, ``times``, ``limits``, ``levers``, ``curves``, ``logs`` as CSV files, and
            the recipe.
        refiner: a name for `t4s_helpers.refine.load_refiner`.
        n, timed: held-out requests a set, and those of them answered one by one for seconds.

    An `AblationError`: no adapter is finished.
    """
    recipe, tables = read_recipe(out), Path(tables)
    every = trained(out, configurations(recipe)) if recipe else {}
    if not recipe or not any(every.values()):
        raise AblationError(f"No adapter of the ablation lies in {out}: train them with "
                            "'python -m t4s_helpers.lab.ablations train --out FOLDER'.")
    sets = m.held_out(recipe.held_out or recipe.data, n, root)
    questions = load("scenes", "test", task="vqa", n=n, start=4_000) if recipe.data == "scenes" else []
    opening, keep = recipe.opening(source), tables / "unfinished"
    rows, times = m.measure({config: every[config] for config in DESIGN}, sets, load_refiner(refiner),
                            opening, timed, keep=keep)
    made = {"rows": rows, "times": times, "limits": m.measure_limits(sets), "levers": m.measure_levers(
        every, levers(recipe), next(iter(sets.values())), questions, opening, keep=keep),
        "curves": logged(every, "scores.csv"), "logs": logged(every, "log.csv")}
    atomic_write({tables / f"{name}.csv": table.to_csv(index=False).encode() for name, table in made.items()}
                 | {tables / "recipe.json": (Path(out) / "recipe.json").read_bytes()})
    shutil.rmtree(keep, ignore_errors=True)


def logged(found: Trained, name: str) -> pd.DataFrame:
    """``scores.csv`` (the learning curves) or ``log.csv`` of adapters where they were trained, together."""
    parts = [pd.read_csv(file).assign(config=config.name(), encoding=config.encoding,
                                      grid=config.grid_size, seed=seed)
             for config, seeds in found.items() for seed, folder in seeds.items()
             if (file := folder.parent / name).is_file()]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
