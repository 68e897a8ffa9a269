"""Training on `transformers.Trainer`: label-masked encoding, logs, and the QLoRA recipe.

``python -m t4s_helpers.model.training --help`` fine-tunes a backbone; notebook 04 calls the same
`fine_tune`. On several GPUs, with the configurations in ``t4s_helpers/launch``::

    accelerate launch --config_file t4s_helpers/launch/zero2.yaml -m t4s_helpers.model.training \
        --backbone llava-1.5-7b --data my.csv --batch 4 --accumulate 16
"""

from __future__ import annotations

import csv
import functools
import json
import math
import os
import re
import time
from pathlib import Path

from transformers import TrainerCallback

from .backbones import multiplies_in_bf16, peft_calls
from .chat import IGNORE_INDEX, ConversationEncoder, ConversationError, in_branches, packed, pad_batch  # noqa: F401

IGNORE = IGNORE_INDEX


def arguments(out: Path, **changes):
    """`TrainingArguments` with the workbook's defaults; ``changes`` override them.

    bfloat16 autocast on any device that multiplies in it, no external reporting, checkpoints that
    are complete enough to go on after a kill, data read in order (the data sets are already mixed).
    """
    import torch
    from transformers import TrainingArguments

    on_cpu, bf16 = not torch.cuda.is_available(), multiplies_in_bf16()
    defaults = dict(
        output_dir=str(out), use_cpu=on_cpu, bf16=bf16, fp16=not (bf16 or on_cpu), report_to=[],
        save_total_limit=2, train_sampling_strategy="sequential", remove_unused_columns=False,
        dataloader_num_workers=0, dataloader_pin_memory=not on_cpu, max_grad_norm=1.0,
        optim="adamw_torch",
    )
    return TrainingArguments(**{**defaults, **changes})


def in_full_precision(modules) -> None:
    """Have modules compute in float32, whatever the autocast around them; for good.

    Args:
        modules: each is called with positional and keyword arguments, in which tensors of a 16-bit
            type become float32.
    """
    import torch

    def wrapped(forward):
        def precise(*args, **kwargs):
            args, kwargs = torch.utils._pytree.tree_map(_as_float32, (args, kwargs))
            with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
                return forward(*args, **kwargs)
        return functools.wraps(forward)(precise)

    for module in modules:
        module.forward = wrapped(module.forward)


def _as_float32(value):
    import torch

    half = isinstance(value, torch.Tensor) and value.dtype in (torch.float16, torch.bfloat16)
    return value.float() if half else value


def resumable_trainer(**options):
    """A `transformers.Trainer` whose resume really restores the model.

    ``save_pretrained`` writes some families' tensors under older names (LLaVA's among them). The
    stock trainer reads them back by the new names, finds none, warns, and goes on from random
    weights. Here the model's own ``from_pretrained`` reads them, and every tensor must fit.

    With ``train_sampling_strategy="group_by_length"`` and a data set that has ``lengths()``, items
    of a like length share a batch, in an order that seed and epoch alone decide.
    """
    from transformers import PreTrainedModel, Trainer

    class ResumableTrainer(Trainer):
        def _get_train_sampler(self, train_dataset=None):
            data = self.train_dataset if train_dataset is None else train_dataset
            if self.args.train_sampling_strategy != "group_by_length":
                return super()._get_train_sampler(data)
            # as many as one step holds, over all processes, sorted within themselves
            together = (self.args.train_batch_size * self.args.gradient_accumulation_steps
                        * self.args.world_size)
            return length_sampler(data.lengths(), together, self.args.seed)

        def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
            model = model or self.model
            if not isinstance(model, PreTrainedModel):  # peft and plain modules keep their names
                return super()._load_from_checkpoint(resume_from_checkpoint, model)
            saved = type(model).from_pretrained(resume_from_checkpoint, dtype=model.dtype)
            model.load_state_dict(saved.state_dict())

    return ResumableTrainer(**options)


def length_sampler(lengths: list[int], together: int, seed: int):
    """Order in which items of a like length stand together, the same after every resume.

    transformers' ``LengthGroupedSampler``, whose order depends on the state of the global generator,
    with a generator of its own: ``set_epoch`` (the trainer calls it) and ``seed`` decide.

    Args:
        lengths: of every item.
        together: how many items are sorted by length among themselves.
    """
    import torch
    from transformers.trainer_pt_utils import LengthGroupedSampler

    class SeededSampler(LengthGroupedSampler):
        epoch = 0

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

        def __iter__(self):
            self.generator = torch.Generator().manual_seed(1_000_003 * seed + self.epoch)
            return super().__iter__()

    return SeededSampler(together, lengths=lengths)


def last_checkpoint(out: Path | str) -> str | None:
    """The newest complete checkpoint in a folder, or ``None``.

    The trainer writes ``trainer_state.json`` last, so a checkpoint without one that can be read was
    cut off while it was saved, and the one before it is taken.
    """
    def step(folder: Path) -> int:
        return int(folder.name.rpartition("-")[2])

    found = [p for p in Path(out).glob("checkpoint-*") if p.name[11:].isdigit() and p.is_dir()]
    for folder in sorted(found, key=step, reverse=True):
        try:
            state = json.loads((folder / "trainer_state.json").read_text())
        except (OSError, ValueError):
            continue
        if state.get("global_step") == step(folder):
            return str(folder)
    return None


class CsvLog(TrainerCallback):
    """Appends step, samples, loss, learning rate and seconds to a CSV file as training logs them.

    Rows of steps that are trained again after a resume are dropped first, so that the file always
    holds one curve. ``seconds`` counts training time over all runs.
    """

    fields = ("step", "samples", "loss", "learning_rate", "grad_norm", "seconds")

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self._start, self._before = time.time(), 0.0

    def on_train_begin(self, args, state, control, **_):
        if not state.is_world_process_zero:
            return
        kept = [row for row in read_log(self.path) if row["step"] <= state.global_step]
        self._before, self._start = (kept[-1]["seconds"] if kept else 0.0), time.time()
        with open(self.path, "w", newline="") as file:
            writer = csv.DictWriter(file, self.fields)
            writer.writeheader()
            writer.writerows(kept)

    def on_log(self, args, state, control, logs=None, **_):
        if not logs or "loss" not in logs or not state.is_world_process_zero:
            return
        row = {name: logs.get(name) for name in ("loss", "learning_rate", "grad_norm")}
        row["step"] = state.global_step
        row["samples"] = (state.global_step * args.per_device_train_batch_size
                          * args.gradient_accumulation_steps * args.world_size)
        row["seconds"] = round(self._before + time.time() - self._start, 1)
        with open(self.path, "a", newline="") as file:
            csv.DictWriter(file, self.fields).writerow(row)


def read_log(path: Path | str) -> list[dict]:
    """Rows of a `CsvLog` file as numbers; no file, no rows."""
    if not Path(path).exists():
        return []
    with open(path, newline="") as file:
        return [{k: float(v) if v else None for k, v in row.items()} for row in csv.DictReader(file)]


# --- QLoRA --------------------------------------------------------------------------------------

PAPER = dict(
    learning_rate=2e-4, lr_scheduler_type="linear", warmup_steps=0.03, weight_decay=0.0,
    max_grad_norm=1.0, adam_beta1=0.9, adam_beta2=0.95, num_train_epochs=1,
)
"""The paper's hyper-parameters (section 4.1); its global batch is 128."""

PAPER_BATCH = 128

TINY = dict(learning_rate=5e-4)
"""Where the embedded model deviates: a few million parameters want a larger step."""


class TrainingError(RuntimeError):
    """Training that cannot go on; the message says where the last good checkpoint is."""


def add_adapter(backbone, rank: int = 64, alpha: int = 128, dropout: float = 0.05, seed: int = 0):
    """Put fresh LoRA matrices on connector and language model (paper: rank 64, alpha 128).

    Returns:
        the peft model; only the LoRA matrices are trainable.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed

    set_seed(seed)
    model = backbone.model
    # Not peft's prepare_model_for_kbit_training: it would store the whole unquantized vision tower
    # in float32. Freezing and checkpointing are all that is needed of it.
    for weight in model.parameters():
        weight.requires_grad_(False)
    if model.device.type == "cuda":
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, bias="none",
                        target_modules=backbone.spec.lora_targets, task_type="CAUSAL_LM")
    with peft_calls():
        return get_peft_model(model, config)


def continued_adapter(backbone, folder: Path | str):
    """The backbone with a saved adapter, ready to be trained further (GRES after RES, say)."""
    from peft import PeftModel

    for weight in backbone.model.parameters():
        weight.requires_grad_(False)
    with peft_calls():
        return PeftModel.from_pretrained(backbone.model, str(folder), is_trainable=True)


class StopOnNaN(TrainerCallback):
    """Ends training when the loss is no longer a number; the last checkpoint stays."""

    def on_log(self, args, state, control, logs=None, **_):
        if logs and "loss" in logs and not math.isfinite(float(logs["loss"])):
            raise TrainingError(
                f"The loss is {logs['loss']} at step {state.global_step}. Lower the learning rate; "
                f"the last good checkpoint is in {args.output_dir}."
            )


def fine_tune(backbone, dataset, collate, out: Path | str, batch: int = 16,
              accumulate: int | None = None, resume: bool = True, model=None, callbacks=(),
              **changes):
    """Fine-tune LoRA matrices on conversations with the paper's recipe.

    The same call serves a notebook, ``python -m t4s_helpers.model.training``, ``accelerate launch`` and
    ``torchrun``; with several processes each takes every so-manieth batch.

    Args:
        backbone: a `t4s_helpers.model.backbones.Backbone`, loaded with ``quantize="nf4"`` for QLoRA.
        dataset: map-style, items for ``collate``. If it has ``lengths()``, items of a like length
            share a batch (``train_sampling_strategy="sequential"`` keeps the data's own order).
        collate: list of items -> batch with ``labels`` (see `pad_batch`).
        out: folder for checkpoints, ``log.csv`` and, at the end, ``adapter/``.
        batch: conversations in one forward pass of one process.
        accumulate: passes per step; by default as many as make the paper's global batch of 128.
        resume: go on from the last complete checkpoint in ``out``, if there is one.
        model: a peft model that is already prepared; by default `add_adapter` makes one.
        callbacks: further `TrainerCallback` objects.
        changes: anything of `TrainingArguments`, over `PAPER`; ``optim="paged_adamw_8bit"`` keeps
            the optimizer's state in 8 bits and lets it overflow to the host's memory (CUDA).

    Returns:
        the trained peft model; its adapter is saved in ``out/adapter``.

    Raises:
        TrainingError: the loss is not a number, or the GPU's memory is too small.
    """
    import torch

    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    settings = {**PAPER, **(TINY if backbone.spec.name == "embedded" else {}), **changes}
    if hasattr(dataset, "lengths"):
        settings.setdefault("train_sampling_strategy", "group_by_length")
    model = model or add_adapter(backbone, seed=settings.get("seed", 0))
    in_full_precision(module for name, module in model.named_modules()
                      if any(re.fullmatch(one, name) for one in backbone.spec.precise))
    passes = accumulate or max(1, PAPER_BATCH // (batch * n_processes()))
    trainer = resumable_trainer(
        model=model, train_dataset=dataset, data_collator=collate,
        args=arguments(
            out, per_device_train_batch_size=batch, label_names=["labels"],
            gradient_accumulation_steps=passes,
            **{"logging_steps": 10, "save_steps": 100, **settings},
        ),
        callbacks=[CsvLog(out / "log.csv"), StopOnNaN(), *callbacks],
    )
    try:
        trainer.train(resume_from_checkpoint=last_checkpoint(out) if resume else None)
    except torch.OutOfMemoryError as error:
        raise TrainingError(_memory_advice(backbone.spec, batch, passes, out)) from error
    # Training wraps the forward pass in autocast; without unwrapping, the model in memory would
    # answer in lower precision than the same adapter loaded from disk.
    model = trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
    trainer.save_model(str(out / "adapter"))  # by the main process, gathered where it is sharded
    trainer.accelerator.wait_for_everyone()
    return model


def n_processes() -> int:
    """Processes that train together, as ``accelerate launch`` and ``torchrun`` announce them."""
    return int(os.environ.get("WORLD_SIZE", 1))


def _memory_advice(spec, batch: int, passes: int, out: Path) -> str:
    import torch

    free, total = (n / 2**30 for n in torch.cuda.mem_get_info())
    smaller = max(1, batch // 2)
    return (f"The GPU's memory ran out: {total:.0f} GB in all, {free:.1f} GB free now; "
            f"{spec.name!r} wants about {spec.memory_gb} GB at batch 4. Set batch={smaller}, "
            f"accumulate={passes * batch // smaller} (the same global batch), "
            "optim='paged_adamw_8bit', a smaller grid or fewer exchanges in a conversation. "
            f"Checkpoints are in {out}; the same call goes on from the last.")


# --- conversations about scenes -------------------------------------------------------------------


def scene_item(index: int, folder: str, mix: str = "all", n: int = 4, split: str = "train",
               seed: int = 0, **layout) -> dict:
    """Training item ``index`` for the embedded model: one scene, up to ``n`` requests about it.

    The requests stand side by side and do not see each other's answers.
    """
    from ..data.instructions import instruction
    from ..lab.tiny_model.language import cached_encoder

    scene, turns = instruction(index, mix, n, split, seed, **layout)
    encode = cached_encoder(folder)
    return packed(in_branches(encode(turns, has_image=True), encode.tokenizer), scene.image)


class SceneConversations:
    """Training items about scenes for any backbone, each encoded by its processor when read."""

    def __init__(self, encoder: ConversationEncoder, samples: int, mix: str = "all", n: int = 4,
                 split: str = "train", seed: int = 0, **layout):
        self.encoder, self.samples = encoder, samples
        self.options = {"mix": mix, "n": n, "split": split, "seed": seed, **layout}

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> dict:
        from ..data.instructions import instruction

        scene, turns = instruction(index, **self.options)
        return self.encoder(turns, scene.image)

    def lengths(self) -> list[int]:
        """Tokens of every item but for its picture's."""
        from ..data.instructions import instruction

        return _text_lengths(self, lambda index: instruction(index, **self.options)[1])


class SampleConversations:
    """Training items about any samples: item ``i`` asks about sample ``i`` modulo their number.

    Args:
        encoder: made without ``n_image_tokens``, so that the processor prepares the pictures.
        samples: `t4s_helpers.data.sample.Sample` objects, read from disk when their turn comes.
        n: number of items; every pass over the samples words the requests anew.
        seed: of wordings and modes.
        layout: ``size``, ``rule``, ``scheme`` and ``style``, see `t4s_helpers.data.prompts.turn`.
    """

    def __init__(self, encoder: ConversationEncoder, samples, n: int, seed: int = 0, **layout):
        if not len(samples):
            raise ConversationError("There are no samples to train on.")
        self.encoder, self.samples, self.n = encoder, samples, n
        self.seed, self.layout = seed, layout

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> dict:
        return self.encoder(self.turns(index), self.samples[index % len(self.samples)].pixels())

    def turns(self, index: int) -> list:
        """The exchanges of item ``index``, without reading its picture."""
        import numpy as np

        from ..data.prompts import turn

        rng = np.random.default_rng([self.seed, index, 41])
        return [turn(self.samples[index % len(self.samples)], rng=rng, **self.layout)]

    def lengths(self) -> list[int]:
        """Tokens of every item but for its picture's."""
        return _text_lengths(self, self.turns)


def _text_lengths(dataset, turns) -> list[int]:
    from tqdm.auto import tqdm

    return [len(dataset.encoder(turns(index))["input_ids"])
            for index in tqdm(range(len(dataset)), "lengths", disable=len(dataset) < 1000)]


def sample_data(backbone, samples, n: int, seed: int = 0, **layout):
    """Data set and collator of ``n`` requests about any samples, for `fine_tune`.

    A user's own data goes this way: ``sample_data(backbone, load_own("my.csv"), 1000)``.

    Args:
        backbone: a `t4s_helpers.model.backbones.Backbone`.
        samples, n, seed, layout: see `SampleConversations`.

    Returns:
        ``(dataset, collate)``.
    """
    from functools import partial

    encoder = ConversationEncoder(backbone.processor, dtype=backbone.model.dtype)
    return (SampleConversations(encoder, samples, n, seed, **layout),
            partial(pad_batch, pad_id=backbone.processor.tokenizer.pad_token_id))


def scene_data(backbone, samples: int, **options):
    """Data set and collator of ``samples`` conversations about scenes, for `fine_tune`.

    Args:
        backbone: a `t4s_helpers.model.backbones.Backbone`. The embedded model's items are made ahead,
            in chunks, by all cores; those of other backbones by their processor, one by one.
        options: ``mix``, ``n``, ``split``, ``seed`` and the layout of answers, see
            `t4s_helpers.data.instructions`.

    Returns:
        ``(dataset, collate)``.
    """
    from functools import partial

    pad_id = backbone.processor.tokenizer.pad_token_id
    if backbone.spec.n_image_tokens is None:
        return (SceneConversations(backbone.encoder, samples, **options),
                partial(pad_batch, pad_id=pad_id))
    from ..lab.tiny_model.language import collate
    from ..lab.tiny_model.rendering import ChunkedItems

    folder = backbone.model.config.name_or_path or backbone.spec.source
    return (ChunkedItems(partial(scene_item, folder=str(folder), **options), samples),
            partial(collate, pad_id=pad_id))


def main() -> None:
    import argparse

    from .adapters import export_adapter
    from .backbones import BACKBONES, load_backbone
    from ..data.instructions import MIXES
    from ..data.own import load_own
    from ..evaluation.store import Processes
    from ..data.prompts import SENTENCES
    from ..codec.encodings import SCHEMES

    parser = argparse.ArgumentParser(description="Fine-tune a backbone with QLoRA.")
    parser.add_argument("--backbone", choices=BACKBONES, default="embedded")
    parser.add_argument("--base", type=Path, help="folder to load the backbone from, if not its own")
    parser.add_argument("--data", help="COCO folder or CSV file of your own; rendered scenes else")
    parser.add_argument("--out", type=Path, default=Path("checkpoints/adapter"))
    parser.add_argument("--samples", type=int, default=32_000, help="conversations")
    parser.add_argument("--turns", type=int, default=4, help="exchanges in a scene's conversation")
    parser.add_argument("--mix", choices=MIXES, default="all", help="of requests about scenes")
    parser.add_argument("--style", choices=SENTENCES, default="box")
    parser.add_argument("--scheme", choices=SCHEMES, default="rrle")
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--batch", type=int, default=32, help="conversations in a pass")
    parser.add_argument("--accumulate", type=int, default=1, help="passes in a step")
    parser.add_argument("--lr", type=float, default=TINY["learning_rate"])
    parser.add_argument("--optim", default="adamw_torch",
                        help="'paged_adamw_8bit' saves memory on a GPU")
    parser.add_argument("--log-every", type=int, default=10, help="steps between lines of log.csv")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rank", type=int, default=64, help="of the LoRA matrices; alpha is twice it")
    parser.add_argument("--dropout", type=float, default=0.05, help="of the LoRA matrices' input")
    parser.add_argument("--start", type=Path, help="adapter folder to go on from")
    parser.add_argument("--export", type=Path, help="folder for the adapter as it ships")
    parser.add_argument("--quantize", choices=("nf4", "none"), default="nf4",
                        help="'none' trains LoRA on the unquantized base: five times faster on a CPU")
    args = parser.parse_args()
    backbone = load_backbone(args.backbone, None if args.quantize == "none" else "nf4",
                             source=args.base)
    layout = dict(seed=args.seed, size=args.size, scheme=args.scheme, style=args.style)
    if args.data:
        dataset, collate = sample_data(backbone, load_own(args.data), args.samples, **layout)
    else:
        dataset, collate = scene_data(backbone, args.samples, mix=args.mix, n=args.turns, **layout)
    model = continued_adapter(backbone, args.start) if args.start else add_adapter(
        backbone, args.rank, 2 * args.rank, args.dropout, args.seed)
    fine_tune(backbone, dataset, collate, args.out, batch=args.batch, accumulate=args.accumulate,
              seed=args.seed, model=model, learning_rate=args.lr, optim=args.optim,
              logging_steps=args.log_every)
    if args.export and int(os.environ.get("RANK", 0)) == 0:
        export_adapter(args.out / "adapter", args.export, backbone.spec.name)
    Processes().leave()


if __name__ == "__main__":
    main()
