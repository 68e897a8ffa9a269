"""The paper's trainings by name, and all that ``python -m t4s_helpers train`` does.

`RECIPES` is the table of them. A `Plan` says what is to be trained, on what and how; `describe` tells
what that would read and take, and `train` does it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..codec.encodings import get_encoding
from ..data.mixtures import DataMixture, SceneMixture, named_mixture
from .adapters import export_adapter
from .backbones import BackboneError, find, load_backbone, load_processor, open_adapter
from .chat import ConversationEncoder
from .training import (
    EMBEDDED_SETTINGS, PAPER_SETTINGS, TrainingError, TrainingSet, add_adapter, fine_tune, paper_passes,
    processes, read_log, training_data,
)

SCENES = 32_000
"""Conversations about drawn scenes, where no number is given."""


@dataclass(frozen=True)
class Recipe:
    """A training of the paper; rank, learning rate and batch are the same for all.

    Attributes:
        passes: data set -> how often an epoch goes through its training split.
        epochs: as many.
        start: the recipe whose adapter is trained further; "" for fresh matrices.
        paper: where the paper describes it, and what it says of size and time.
        differs: what is different here.
        crops: each pass cuts every photo to another random part.
    """

    passes: Mapping[str, float]
    epochs: int
    start: str
    paper: str
    differs: str
    crops: bool = False


_RES = {"refclef": 2, "refcoco": 2, "refcoco+": 2, "refcocog": 2}

RECIPES = {
    "res": Recipe(_RES, 5, "", "section 4.2, appendices A and B: 800k samples an epoch, about two days on "
                  "8 A800 (40 GB)", "wordings of the requests"),
    "gres": Recipe({"grefcoco": 2}, 2, "res", "section 4.2, appendix B: 419k samples an epoch",
                   "wordings of the requests"),
    "semantic": Recipe({"cocostuff": 10}, 1, "", "section 4.5, appendix B: 1.16M random crops; requests "
                       "for all, some or the listed classes as 1 : 3 : 6",
                       "wordings; sides of a crop are half to all of the photo's, which the paper does not "
                       "state; LLaVA-1.5-7B in the paper", crops=True),
    "mix": Recipe({"llava-665k": 1, **_RES}, 1, "", "section 4.4: LLaVA's instructions and the data of "
                  "'res' together", "starts from the finished LLaVA-1.5 (the paper: from its second stage, "
                  "before these instructions); 1 epoch, which the paper does not state"),
}
"""The trainings of the paper by name."""


@dataclass(frozen=True)
class Plan:
    """What is to be trained: the options of ``t4s train``.

    Attributes:
        backbone: a key of `t4s_helpers.model.backbones.BACKBONES`.
        source: folder or hub id to load it from, if not its own.
        quantize: ``"nf4"``, or ``None``: LoRA on the unquantized base, five times faster on a CPU.
        recipe: a key of `RECIPES`: its data and epochs, in steps of 128 conversations.
        data: without a recipe, ``"scenes"``, or what `t4s_helpers.data.load` opens by name or path;
            several are separated by commas.
        weights: passes over each of these in an epoch, by default one.
        root, reading: folder of the data sets, and more options of `t4s_helpers.data.load`.
        samples: conversations in all; by default the epochs' (`SCENES` of drawn scenes).
        epochs: by default the recipe's, or one.
        turns, mix: exchanges per conversation and their mix; for scenes alone.
        encoding, grid_size: how answers are written.
        style: of the sentence before the descriptor, by default ``"plain"``, the paper's, with a
            recipe and ``"box"`` without.
        batch: conversations in a pass, by default 4 (32 for the embedded model).
        accumulate: passes in a step, by default 1, with a recipe as many as make 128 conversations.
        lr: learning rate, by default the paper's (`EMBEDDED_SETTINGS` for the embedded model).
        rank, dropout: of fresh LoRA matrices, whose alpha is twice the rank.
        start: an adapter to train further; ``"none"`` for fresh matrices where the recipe wants one.
        out: folder for checkpoints, ``log.csv`` and ``adapter/``; a second training there resumes.
        export: also write the adapter here in the form in which it ships.
    """

    backbone: str = "embedded"
    source: Path | str | None = None
    quantize: str | None = "nf4"
    recipe: str = ""
    data: str = "scenes"
    weights: tuple[float, ...] = ()
    root: Path | str | None = None
    reading: Mapping[str, Any] = field(default_factory=dict)
    samples: int | None = None
    epochs: int | None = None
    turns: int = 4
    mix: str = "all"
    encoding: str = "rrle"
    grid_size: int = 16
    style: str | None = None
    batch: int | None = None
    accumulate: int | None = None
    lr: float | None = None
    optim: str = "adamw_torch"
    log_every: int = 10
    seed: int = 0
    rank: int = 64
    dropout: float = 0.05
    start: Path | str | None = None
    out: Path | str = "checkpoints/adapter"
    export: Path | str | None = None

    def __post_init__(self) -> None:
        if self.recipe and self.recipe not in RECIPES:
            raise TrainingError(f"There is no recipe {self.recipe!r}: choose {', '.join(RECIPES)}.")
        if self.weights and len(self.weights) != len(self.data.split(",")):
            raise TrainingError(f"{len(self.weights)} weights for the data {self.data!r}: give one for each.")

    @property
    def batches(self) -> tuple[int, int, int]:
        """Conversations in a pass, passes in a step, processes."""
        batch = self.batch or (32 if self.backbone == "embedded" else 4)
        return batch, self.accumulate or (paper_passes(batch) if self.recipe else 1), processes()

    @property
    def work(self) -> Recipe:
        """The recipe, or one made of ``data`` and ``weights``."""
        names = self.data.split(",")
        passes = dict(zip(names, self.weights or [1.0] * len(names)))
        return RECIPES[self.recipe] if self.recipe else Recipe(passes, 1, "", "", "")

    def mixture(self) -> DataMixture | SceneMixture:
        """The conversations to train on; opening the data sets looks at every annotation."""
        style = self.style or ("plain" if self.recipe else "box")
        encoding = get_encoding(self.encoding, self.grid_size)
        if self.data == "scenes" and not self.recipe:
            return SceneMixture(self.samples or SCENES, self.mix, self.turns, seed=self.seed,
                                encoding=encoding, style=style)
        return named_mixture(
            self.work.passes, self.root, crops=self.work.crops, reading=self.reading, n=self.samples,
            epochs=1 if self.samples else self.epochs or self.work.epochs, seed=self.seed,
            encoding=encoding, style=style)


def describe(plan: Plan, mixture: DataMixture | SceneMixture) -> str:
    """What a training would read and take, in lines of text; no weights are loaded.

    Hours are those at the speed of an earlier or interrupted training in ``plan.out``.
    """
    spec, recipe, n = find(plan.backbone), plan.work, len(mixture)
    batch, passes, together = plan.batches
    lines = [f"recipe: {plan.recipe}, the paper's {recipe.paper}", f"  differs in: {recipe.differs}"
             ] if plan.recipe else []
    if isinstance(mixture, DataMixture):
        for data, times in zip(mixture.datasets, np.bincount(mixture.plan[0], minlength=1)):
            lines.append(f"data: {data if not isinstance(data, list) else f'{len(data)} samples'}, "
                         f"{times:,} conversations from it")
            lines += [f"  excluded: {row['n']:,} x {row['reason']}, first {row['first']}"
                      for row in getattr(data, "exclusions", list)()]
    rate = PAPER_SETTINGS | (EMBEDDED_SETTINGS if plan.backbone == "embedded" else {})
    wanted = f"the adapter of recipe {recipe.start!r}, given by start" if recipe.start else ""
    speed = _speed(Path(plan.out))
    hours = (f"{n / speed / 3600:.1f} at the {speed:.2f} conversations a second of {plan.out}/log.csv"
             if speed else f"unknown until a training in {plan.out} has logged its first steps")
    return "\n".join([
        *lines, f"conversations: {n:,}, {_tokens(plan, mixture)}",
        f"steps: {-(-n // (batch * passes * together)):,} of {batch * passes * together} conversations "
        f"(batch {batch} x accumulate {passes} x processes {together})",
        f"start: {plan.start or wanted or 'fresh matrices'}; rank {plan.rank}, learning rate "
        f"{plan.lr or rate['learning_rate']}",
        f"memory: about {spec.memory_gb} GB of a GPU (4 bits, batch 4)" if spec.memory_gb else
        "memory: any", f"hours: {hours}"])


def _speed(out: Path) -> float | None:
    """Conversations per second of the training whose log lies in a folder, if there is one."""
    rows = read_log(out / "log.csv")
    seconds = rows[-1]["seconds"] - rows[0]["seconds"] if rows else 0
    return (rows[-1]["samples"] - rows[0]["samples"]) / seconds if seconds else None


def _tokens(plan: Plan, mixture: DataMixture | SceneMixture, n: int = 32) -> str:
    """Mean length of ``n`` conversations, spread over the mixture, and of what is trained of them."""
    try:
        processor = load_processor(find(plan.backbone, plan.source))
    except BackboneError as error:
        return f"tokens unknown: {error}"
    items = TrainingSet(ConversationEncoder(processor), mixture)
    picked = [items[k] for k in np.linspace(0, len(items) - 1, min(n, len(items))).astype(int).tolist()]
    read, trained = (np.mean([len(one["labels"]) for one in picked]),
                     np.mean([np.sum(np.asarray(one["labels"]) >= 0) for one in picked]))
    return (f"about {read:.0f} tokens each, {trained:.0f} of them trained ({len(items) * trained:,.0f} "
            "in all)")


def train(plan: Plan, mixture: DataMixture | SceneMixture | None = None) -> Path:
    """Fine-tune a backbone as a plan says: everything behind ``t4s train``.

    Args:
        mixture: that of the plan, where it has been opened already.

    Returns:
        the folder of the trained adapter.

    Raises:
        TrainingError: the recipe continues from another one's adapter, and none is given; or as
            `t4s_helpers.model.training.fine_tune`.
    """
    from accelerate import PartialState

    if plan.work.start and not plan.start:
        raise TrainingError(f"The paper trains {plan.recipe!r} on top of {plan.work.start!r}: give the "
                            "adapter of that training as start, or start='none' for fresh matrices.")
    loaded = load_backbone(plan.backbone, plan.quantize, source=plan.source)
    model = (open_adapter(loaded, plan.start, trainable=True) if plan.start not in (None, "none")
             else add_adapter(loaded, plan.rank, 2 * plan.rank, plan.dropout, plan.seed))
    batch, passes, _ = plan.batches
    fine_tune(loaded, *training_data(loaded, mixture or plan.mixture()), plan.out, batch, passes,
              model=model, seed=plan.seed, optim=plan.optim, logging_steps=plan.log_every,
              **({} if plan.lr is None else {"learning_rate": plan.lr}))
    adapter = Path(plan.out) / "adapter"
    state = PartialState()
    if plan.export and state.is_main_process:
        export_adapter(adapter, plan.export, plan.backbone)
    # A process that ends without this may be aborted while its connections are still in use.
    state.wait_for_everyone()
    state.destroy_process_group()
    return adapter
