"""Fine-tuning on `transformers.Trainer`: QLoRA, data for it, logs, checkpoints.

`training_data` and `fine_tune` serve notebook 04 as well as ``python -m t4s_helpers train``
(`t4s_helpers.model.recipes`). On several GPUs, with the configurations in ``t4s_helpers/model/launch``::

    accelerate launch --config_file t4s_helpers/model/launch/zero2.yaml -m t4s_helpers train \
        --backbone llava-1.5-7b --data my.csv --batch 4 --accumulate 16
"""

from __future__ import annotations

import csv
import json
import math
import os
import time
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn
from transformers import (
    AutoProcessor, DynamicCache, PreTrainedModel, Trainer, TrainerCallback, TrainingArguments, set_seed,
)
from transformers.trainer_pt_utils import LengthGroupedSampler

from ..data.mixtures import SceneMixture
from ..data.prompts import chains
from ..files import atomic_write
from .backbones import Backbone, multiplies_in_bf16, peft_calls
from .chat import IGNORE_INDEX, ConversationEncoder, ConversationError, pad_batch, side_by_side

PAPER_SETTINGS = dict(
    learning_rate=2e-4, lr_scheduler_type="linear", warmup_steps=0.03, weight_decay=0.0,
    max_grad_norm=1.0, adam_beta1=0.9, adam_beta2=0.95, num_train_epochs=1,
)
"""The paper's hyper-parameters (section 4.1), as `TrainingArguments`."""

PAPER_BATCH = 128
"""Conversations in one step of the paper's training."""

EMBEDDED_SETTINGS = dict(learning_rate=3e-3, activation_checkpointing=False)
"""Where the embedded model deviates: a few million parameters want a larger step, and fit any memory."""


class TrainingError(RuntimeError):
    """Training that cannot go on; the message says where the last good checkpoint is."""


# --- data -------------------------------------------------------------------------------------------


class TrainingSet:
    """A mixture of conversations as a map-style data set: item ``i`` is encoded when it is read.

    Args:
        encoder: made without ``n_image_tokens``, so that the processor prepares the pictures.
        mixture: of `t4s_helpers.data.mixtures`: has ``__len__``, ``turns(i)`` and ``image(i)``.
    """

    def __init__(self, encoder: ConversationEncoder, mixture):
        self.encoder, self.mixture = encoder, mixture

    def __len__(self) -> int:
        return len(self.mixture)

    def __getitem__(self, index: int) -> dict:
        return self.encoder(self.mixture.turns(index), self.mixture.image(index))

    def lengths(self) -> list[int]:
        """Tokens of every item but for those of its picture."""
        from tqdm.auto import tqdm

        return [len(self.encoder(self.mixture.turns(index))["input_ids"])
                for index in tqdm(range(len(self)), "lengths", disable=len(self) < 1000)]


class ChunkedItems:
    """A map-style data set that makes its items chunk by chunk, by all cores, for reading in order.

    Rendering scenes beside the training would slow it down several times on a small machine.

    Args:
        work: module-level function from an item number to an item.
        n: number of items.
        chunk: items made at a time; reading item ``i`` makes the chunk that holds it.
    """

    def __init__(self, work: Callable[[int], Any], n: int, chunk: int = 8192):
        self.work, self.n, self.chunk = work, n, chunk
        self._at: int | None = None
        self._items: list = []

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> Any:
        at = i // self.chunk
        if at != self._at:
            start = at * self.chunk
            self._items = []  # frees the old chunk before the new one is made
            self._items = on_all_cores(self.work, range(start, min(start + self.chunk, self.n)))
            self._at = at
        return self._items[i - at * self.chunk]


def on_all_cores(work: Callable, jobs: Sequence, processes: int | None = None) -> list:
    """``[work(job) for job in jobs]``, shared out; ``work`` is a module-level function."""
    processes = processes or os.cpu_count() or 1
    if processes == 1 or len(jobs) < 256:
        return [work(job) for job in jobs]
    with get_context("forkserver").Pool(processes, _on_any_core) as pool:
        return pool.map(work, jobs, chunksize=64)


def _on_any_core() -> None:
    """Free a worker from the one core that its parent's main thread may be bound to by OpenMP."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, range(os.cpu_count() or 1))


@lru_cache(maxsize=2)
def cached_encoder(folder: str, n_image_tokens: int) -> ConversationEncoder:
    """The encoder of a saved processor; cached, because worker processes call item by item."""
    return ConversationEncoder(AutoProcessor.from_pretrained(folder), n_image_tokens)


IN_A_ROW = 4
"""One in so many conversations about scenes is read as a whole, so that a later turn can be answered too."""


def scene_item(index: int, mixture: SceneMixture, folder: str, n_image_tokens: int) -> dict:
    """Item ``index`` about scenes: its requests, most of them side by side, and the uint8 picture."""
    scene, turns = mixture.conversation(index)
    talks = chains(turns) if index % IN_A_ROW else [turns]
    return side_by_side(cached_encoder(folder, n_image_tokens), talks, scene.image)


def training_data(backbone: Backbone, mixture) -> tuple[Any, Callable[[list[dict]], dict]]:
    """Data set and collator of a mixture, for `fine_tune`.

    A user's own data goes this way: ``training_data(backbone, named_mixture({"my.csv": 1}))``.

    Args:
        mixture: of `t4s_helpers.data.mixtures`. The backbone's processor encodes it item by item;
            for the embedded model, scenes are made ahead in chunks by all cores, and the requests
            about one scene stand side by side (`t4s_helpers.model.chat.side_by_side`).

    Raises:
        ConversationError: the mixture is empty.
    """
    if not len(mixture):
        raise ConversationError("There are no conversations to train on: the mixture is empty.")
    processor, n_image_tokens = backbone.processor, backbone.spec.n_image_tokens
    if n_image_tokens and isinstance(mixture, SceneMixture):
        folder = str(backbone.model.config.name_or_path or backbone.spec.source)
        work = partial(scene_item, mixture=mixture, folder=folder, n_image_tokens=n_image_tokens)
        data: Any = ChunkedItems(work, len(mixture))
    else:
        data = TrainingSet(ConversationEncoder(processor, dtype=backbone.model.dtype), mixture)
    return data, partial(pad_batch, processor=processor)


# --- the trainer ------------------------------------------------------------------------------------


def arguments(out: Path, **changes):
    """`TrainingArguments` with the workbook's defaults; ``changes`` override them.

    bfloat16 autocast on any device that multiplies in it, no external reporting, complete checkpoints,
    data read in order (mixtures are already shuffled).
    """
    on_cpu, bf16 = not torch.cuda.is_available(), multiplies_in_bf16()
    return TrainingArguments(**{
        "output_dir": str(out), "use_cpu": on_cpu, "bf16": bf16, "fp16": not (bf16 or on_cpu),
        "report_to": [], "save_total_limit": 2, "train_sampling_strategy": "sequential",
        "remove_unused_columns": False, "dataloader_pin_memory": not on_cpu, "optim": "adamw_torch",
        **changes})


class ResumableTrainer(Trainer):
    """A trainer whose resume really restores the model.

    ``save_pretrained`` writes some families' tensors under older names (LLaVA's among them), under
    which the stock trainer finds none: it warns, and continues from random weights. Here the model's
    own ``from_pretrained`` reads them, and every tensor must fit.

    With ``train_sampling_strategy="group_by_length"`` and a data set that has ``lengths()``, items
    of similar length share a batch, in an order that depends on seed and epoch alone.
    """

    def _get_train_sampler(self, train_dataset=None):
        data: Any = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(data)
        # As many items as one step of all processes holds are sorted among themselves.
        together = (self.args.train_batch_size * self.args.gradient_accumulation_steps
                    * self.args.world_size)
        return LengthSampler(data.lengths(), together, self.args.seed)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if "groups" in inputs:
            return loss_side_by_side(model, **inputs)
        inputs = answers_alone(inputs) if "input_ids" in inputs else inputs
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        model = model or self.model
        if isinstance(model, PreTrainedModel):
            saved = type(model).from_pretrained(resume_from_checkpoint, dtype=model.dtype)
            model.load_state_dict(saved.state_dict())
        else:  # peft and plain modules keep their names
            super()._load_from_checkpoint(resume_from_checkpoint, model)


def answers_alone(batch: dict) -> dict:
    """Ask a model for the logits of trained tokens alone; the loss and its gradients stay the same.

    A picture has hundreds of tokens and a vocabulary a hundred thousand words, whose logits would take
    most of a small model's memory.
    """
    following = nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORE_INDEX)
    trained = following != IGNORE_INDEX
    return {**batch, "logits_to_keep": trained, "shift_labels": following[trained]}


def loss_side_by_side(model, groups: Sequence[dict], **shared):
    """Mean cross-entropy of the trained tokens of exchanges, each read behind its picture alone.

    Args:
        groups, shared: of `t4s_helpers.model.chat.pad_batch` for items side by side.
    """
    # Read once; gradients of all exchanges flow back through these keys and values.
    picture = model(**shared, use_cache=True, logits_to_keep=1).past_key_values
    if picture is None:
        raise TrainingError("One pass over a scene serves all requests about it, but activation "
                            "checkpointing keeps none of it: leave activation_checkpointing off.")
    total, n = 0.0, 0
    for group in groups:
        row, ids, labels = (group[name] for name in ("row", "input_ids", "labels"))
        trained = int((labels != IGNORE_INDEX).sum())
        total += trained * model(input_ids=ids, labels=labels, past_key_values=of_rows(picture, row)).loss
        n += trained
    return total / n


def of_rows(cache: DynamicCache, rows: torch.Tensor) -> DynamicCache:
    """The keys and values of chosen rows of a batch, with their gradients."""
    return DynamicCache([tuple(part.index_select(0, rows) for part in (layer.keys, layer.values))
                         for layer in cache.layers])


class LengthSampler(LengthGroupedSampler):
    """An order that puts items of similar length together, the same after every resume.

    transformers' own depends on the state of the global generator; this one on seed and epoch alone.

    Args:
        lengths: of every item.
        together: how many items are sorted by length among themselves.
    """

    def __init__(self, lengths: list[int], together: int, seed: int):
        super().__init__(together, lengths=lengths)
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before it reads the epoch's items."""
        self.generator = torch.Generator().manual_seed(1_000_003 * self.seed + epoch)


def last_checkpoint(out: Path | str) -> str | None:
    """The newest complete checkpoint in a folder, or ``None``.

    The trainer writes ``trainer_state.json`` last; where it cannot be read, saving was cut off.
    """
    steps = (path.name[11:] for path in Path(out).glob("checkpoint-*"))
    for step in sorted((int(step) for step in steps if step.isdigit()), reverse=True):
        folder = Path(out) / f"checkpoint-{step}"
        with suppress(OSError, ValueError):
            if json.loads((folder / "trainer_state.json").read_text()).get("global_step") == step:
                return str(folder)
    return None


class CsvLog(TrainerCallback):
    """Keeps step, samples, loss, learning rate and seconds in a CSV file, as training logs them.

    The file holds the trainer's history, which a resume takes over from the checkpoint: always one
    curve. ``seconds`` counts training time over all runs.

    Args:
        more: names of further columns that the trainer logs beside its loss.
    """

    fields = ("step", "samples", "loss", "learning_rate", "grad_norm", "seconds")

    def __init__(self, path: Path | str, more: Sequence[str] = ()):
        self.path, self.fields = Path(path), (*self.fields, *more)

    def on_train_begin(self, args, state, control, **_):
        before = [row["seconds"] for row in state.log_history if "seconds" in row]
        self._start = time.time() - (before[-1] if before else 0)
        self._write(state)

    def on_log(self, args, state, control, logs=None, **_):
        if logs and "loss" in logs:
            state.log_history[-1].update(samples=samples_seen(args, state),
                                         seconds=round(time.time() - self._start, 1))
            self._write(state)

    def _write(self, state) -> None:
        losses = [row for row in state.log_history if "loss" in row]
        _write_rows(self.path, state, pd.DataFrame(losses, columns=self.fields))


def _write_rows(path: Path, state, rows: pd.DataFrame) -> None:
    # All processes have the same history, and one of them writes it.
    if state.is_world_process_zero:
        atomic_write({path: rows.to_csv(index=False).encode()})


def samples_seen(args, state) -> int:
    """How many samples all processes together have trained on so far."""
    return (state.global_step * args.per_device_train_batch_size * args.gradient_accumulation_steps
            * args.world_size)


class ScoreLog(TrainerCallback):
    """Scores the model at given steps and keeps the scores in a CSV file: a learning curve.

    As with `CsvLog`, the file holds the trainer's history, which a resume takes over from the checkpoint.
    The model answers in evaluation mode and with a random state of its own: training goes on as if
    nobody had asked.

    Args:
        path: of the file: ``step``, ``samples``, what ``beside`` says, and the scores.
        score: model -> name -> number.
        steps: the optimizer steps after which to score; 0 is before the first.
        beside: step -> further columns, the tokens seen for example; by default none.
    """

    def __init__(self, path: Path | str, score: Callable[[Any], Mapping[str, float]],
                 steps: Container[int], beside: Callable[[int], Mapping[str, float]] | None = None):
        self.path, self.score, self.steps = Path(path), score, steps
        self.beside = beside or (lambda step: {})

    def on_train_begin(self, args, state, control, **about):
        self._write(state)
        self.on_step_end(args, state, control, **about)

    def on_step_end(self, args, state, control, model=None, **_):
        step, known = state.global_step, {row["step"] for row in self._rows(state)}
        if step not in self.steps or step in known:
            return
        was_training = model.training
        with torch.random.fork_rng(), torch.no_grad():
            scores = self.score(model.eval())
        model.train(was_training)
        # In an entry of its own, apart from those of the loss; by name, as there may be several curves.
        state.log_history.append({"step": step, self.path.name: {
            "step": step, "samples": samples_seen(args, state), **self.beside(step),
            **{name: float(value) for name, value in scores.items()}}})
        self._write(state)

    def _rows(self, state) -> list[dict]:
        return [entry[self.path.name] for entry in state.log_history if self.path.name in entry]

    def _write(self, state) -> None:
        if rows := self._rows(state):
            _write_rows(self.path, state, pd.DataFrame(rows))


def read_log(path: Path | str) -> list[dict]:
    """Rows of a `CsvLog` file as numbers; no file, no rows."""
    if not Path(path).exists():
        return []
    with open(path, newline="") as file:
        return [{k: float(v) if v else None for k, v in row.items()} for row in csv.DictReader(file)]


# --- QLoRA ------------------------------------------------------------------------------------------


def add_adapter(backbone: Backbone, rank: int = 64, alpha: int = 128, dropout: float = 0.05,
                seed: int = 0):
    """Put fresh LoRA matrices on connector and language model (paper: rank 64, alpha 128).

    Returns:
        the peft model; only the LoRA matrices are trainable.
    """
    from peft import LoraConfig, get_peft_model

    set_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, bias="none",
                        target_modules=backbone.spec.lora_targets, task_type="CAUSAL_LM")
    # Without peft's prepare_model_for_kbit_training, which would store the vision tower in float32.
    with peft_calls():
        return get_peft_model(backbone.model, config)


class StopOnNaN(TrainerCallback):
    """Ends training when the loss is no longer a number; the last checkpoint stays."""

    def on_log(self, args, state, control, logs=None, **_):
        if logs and "loss" in logs and not math.isfinite(float(logs["loss"])):
            raise TrainingError(f"The loss is {logs['loss']} at step {state.global_step}: lower the learning "
                                f"rate; the last good checkpoint is in {args.output_dir}.")


def processes() -> int:
    """How many train together, as ``accelerate launch`` or ``torchrun`` started them."""
    return int(os.environ.get("WORLD_SIZE", 1))


def paper_passes(batch: int) -> int:
    """Passes of ``batch`` conversations in each process that make the paper's global batch."""
    return max(1, PAPER_BATCH // (batch * processes()))


def fine_tune(backbone: Backbone, dataset, collate, out: Path | str, batch: int = 16,
              accumulate: int | None = None, resume: bool = True, model=None,
              callbacks: Sequence[TrainerCallback] = (), **changes):
    """Fine-tune LoRA matrices on conversations with the paper's recipe.

    Several processes (``accelerate launch``, ``torchrun``) share the batches out among them. On a GPU,
    activations are checkpointed.

    Args:
        backbone: loaded with ``quantize="nf4"`` for QLoRA.
        dataset: map-style, items for ``collate``. If it has ``lengths()``, items of similar length
            share a batch (``train_sampling_strategy="sequential"`` keeps the data's own order).
        collate: list of items -> batch with ``labels``. `training_data` makes both.
        out: folder for checkpoints, ``log.csv`` and, at the end, ``adapter/``.
        batch: conversations in one forward pass of one process.
        accumulate: passes per step; by default as many as make the paper's global batch of 128.
        resume: continue from the last complete checkpoint in ``out``, if there is one.
        model: a peft model that is already prepared; by default `add_adapter` makes one.
        callbacks: further `TrainerCallback` objects.
        changes: anything of `TrainingArguments`, over `PAPER_SETTINGS`; on CUDA,
            ``optim="paged_adamw_8bit"`` takes 8 bits and may overflow to the host's memory.

    Returns:
        the trained peft model; its adapter is saved in ``out/adapter``.

    Raises:
        TrainingError: the loss is not a number, or the GPU's memory is too small.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {
        "logging_steps": 10, "save_steps": 100, "activation_checkpointing": torch.cuda.is_available(),
        # With it, a loss that is no number would be logged as the mean of those before.
        "logging_nan_inf_filter": False,
        **({"train_sampling_strategy": "group_by_length"} if hasattr(dataset, "lengths") else {}),
        **PAPER_SETTINGS, **(EMBEDDED_SETTINGS if backbone.spec.name == "embedded" else {}), **changes}
    model = model or add_adapter(backbone, seed=settings.get("seed", 0))
    passes = accumulate or paper_passes(batch)
    trainer = ResumableTrainer(
        model=model, train_dataset=dataset, data_collator=collate,
        args=arguments(out, per_device_train_batch_size=batch, label_names=["labels"],
                       gradient_accumulation_steps=passes, **settings),
        callbacks=[CsvLog(out / "log.csv"), StopOnNaN(), *callbacks])
    try:
        trainer.train(resume_from_checkpoint=last_checkpoint(out) if resume else None)
    except torch.OutOfMemoryError as error:
        free, total = (n / 2**30 for n in torch.cuda.mem_get_info())
        smaller = max(1, batch // 2)
        raise TrainingError(
            f"The GPU's memory ran out ({free:.1f} of {total:.0f} GB are free now, {backbone.spec.name!r} "
            f"wants about {backbone.spec.memory_gb} GB at batch 4): set batch={smaller}, "
            f"accumulate={passes * batch // smaller} (the same global batch), optim='paged_adamw_8bit', a "
            f"smaller grid or fewer exchanges; the same call continues from the last checkpoint in {out}."
        ) from error
    # Training wraps the forward pass in autocast; without unwrapping, the model in memory would
    # answer in lower precision than the same adapter loaded from disk.
    model = trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
    trainer.save_model(str(out / "adapter"))  # by the main process, gathered where it is sharded
    trainer.accelerator.wait_for_everyone()
    return model
