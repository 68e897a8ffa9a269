"""What the paper's backbones cost on the GPU at hand, measured with random weights of their shapes.

Memory and time depend on shapes and not on what the weights hold, so nothing is fetched::

    python -m t4s_helpers.lab.benchmarks.gpu train    # memory and samples a second of a QLoRA step
    python -m t4s_helpers.lab.benchmarks.gpu decode   # passes and milliseconds of true answers, by mode

A table each is kept in ``results/gpu``, with the device's name and the versions; a run that was
stopped resumes. The random weights go through `t4s_helpers.model.backbones.load_backbone`
like real ones; they take 14 GB (7B) and 27 GB (13B) of disk under ``--weights``. The tokenizer is the
embedded model's; its answers are about as long as a large model's (notebook 02).
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformers import (
    AutoTokenizer, CLIPImageProcessor, CLIPVisionConfig, LlamaConfig, LlavaConfig,
    LlavaForConditionalGeneration, LlavaProcessor, TrainerCallback,
)

from ...codec.encodings import get_encoding
from ...data.prompts import ask_and_answer
from ...evaluation.provenance import cuda_device, versions
from ...model.backbones import EMBEDDED, find, half, load_backbone
from ...model.chat import pad_batch
from ...model.training import fine_tune
from ...workbook.results import results_root
from .decoding import Job, fill_table, time_decoding, timed_requests

SHAPES = {
    "llava-1.5-7b": dict(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32,
                         num_attention_heads=32),
    "llava-1.5-13b": dict(hidden_size=5120, intermediate_size=13824, num_hidden_layers=40,
                          num_attention_heads=40),
}
"""Language models of the backbones of the same names, as their repositories configure them."""

VISION = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
              projection_dim=768, image_size=336, patch_size=14)
"""CLIP ViT-L/14 at 336 pixels, the vision tower of both: 576 visual tokens."""

SHRUNK = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2)
"""In place of both shapes, to try the command out without a GPU; no measurement."""

TARGET_GB = {"llava-1.5-7b": 14, "llava-1.5-13b": 22}
"""What a QLoRA step at batch 4 and 1,024 tokens is to stay under, with checkpointing."""

DECODE = [("plain", 16), ("constrained", 16), ("fast", 16), ("trees", 16), ("plain", 32), ("fast", 32),
          ("trees", 32)]


def random_weights(name: str, place: Path | str, shrunk: bool = False, seed: int = 0) -> Path:
    """A folder like that of a backbone, with random weights in its shapes.

    Args:
        name: one of `SHAPES`.
        place: where the folder is made; one that is finished there is taken as it is.
        shrunk: make a toy of two narrow layers.

    Returns:
        the folder, for ``load_backbone(name, source=folder)``.
    """
    folder = Path(place) / (f"{name}-shrunk" if shrunk else name)
    if (folder / "finished").is_file():
        return folder
    processor = _processor()
    torch.manual_seed(seed)
    fits = torch.cuda.is_available() and torch.cuda.mem_get_info()[0] > 2.5e9 * find(name).billions
    with torch.device("cuda" if fits else "cpu"):  # drawn in minutes on a processor
        model = LlavaForConditionalGeneration._from_config(
            _config(name, processor.tokenizer, shrunk), dtype=half())
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "finished").touch()
    return folder


def _processor():
    """LLaVA-1.5's, with the embedded tokenizer."""
    tokenizer, side = AutoTokenizer.from_pretrained(EMBEDDED), VISION["image_size"]
    images = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    return LlavaProcessor(images, tokenizer, patch_size=VISION["patch_size"],
                          vision_feature_select_strategy="default", num_additional_image_tokens=1,
                          chat_template=tokenizer.chat_template)


def _config(name: str, tokenizer, shrunk: bool = False):
    toy = SHRUNK if shrunk else {}
    tower, language = {**VISION, **toy}, {**SHAPES[name], **toy}
    text = LlamaConfig(**language, vocab_size=32064, max_position_embeddings=4096, rms_norm_eps=1e-5,
                       pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
                       eos_token_id=tokenizer.eos_token_id, tie_word_embeddings=False)
    return LlavaConfig(vision_config=CLIPVisionConfig(**tower).to_dict(), text_config=text.to_dict(),
                       image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
                       vision_feature_layer=-2, tie_word_embeddings=False)


class StepClock(TrainerCallback):
    """Seconds of every optimizer step, from its start to the end of its work on the GPU."""

    def __init__(self):
        self.seconds: list[float] = []

    def on_step_begin(self, args, state, control, **_):
        _wait()
        self._start = time.perf_counter()

    def on_step_end(self, args, state, control, **_):
        _wait()
        self.seconds.append(time.perf_counter() - self._start)


def training_cost(backbone, out: Path | str, batch: int = 4, tokens: int = 1024, steps: int = 6,
                  optim: str = "adamw_torch") -> dict:
    """Peak memory and speed of QLoRA steps, by `t4s_helpers.model.training.fine_tune` as it trains.

    Args:
        backbone: loaded with ``quantize="nf4"``.
        out: folder for what `fine_tune` writes.
        batch: conversations a step.
        tokens: of each, the picture's among them.
        steps: at least 2; the first warms up and does not count.

    Returns:
        ``peak_gb`` (allocated) and ``weights_gb`` in GB of 2**30 bytes, None without a GPU;
        ``ms`` a step (median) and ``samples_per_s``.
    """
    item, clock = long_item(backbone.encoder, tokens), StepClock()
    before = _gigabytes("memory_allocated")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    fine_tune(backbone, [item] * (batch * steps), partial(
        pad_batch, processor=backbone.processor), out, batch=batch, accumulate=1,
        resume=False, callbacks=[clock], optim=optim, save_strategy="no")
    spent = float(np.median(clock.seconds[1:]))
    return {"weights_gb": before, "peak_gb": _gigabytes("max_memory_allocated"), "ms": 1000 * spent,
            "samples_per_s": batch / spent}


def long_item(encoder, tokens: int) -> dict:
    """A training item of exactly so many tokens: a true answer, its end repeated or cut off."""
    [sample] = timed_requests("photos", 1)
    item = encoder([ask_and_answer(sample, get_encoding("rrle", 32))], sample.pixels())
    for name in ("input_ids", "labels"):
        ids = list(item[name])
        item[name] = (ids + ids[-32:] * tokens)[:tokens]
    return item


def _gigabytes(what: str) -> float | None:
    return getattr(torch.cuda, what)() / 2**30 if torch.cuda.is_available() else None


def _free() -> None:
    """Return the memory of models that are no longer held to the device."""
    gc.collect()
    torch.cuda.empty_cache()


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def training_jobs(args: argparse.Namespace) -> Iterator[Job]:
    """A step of each shape."""
    def measure(name: str, settings: dict) -> dict:
        _free()
        backbone = load_backbone(name, "nf4", source=random_weights(name, args.weights, args.shrunk))
        _free()
        cost = training_cost(backbone, args.weights / f"{name}-run", args.batch, args.tokens, args.steps)
        return {**settings, **cost, "target_gb": TARGET_GB[name], **_versions()}

    for name in args.shapes:
        settings = {**_about(name, args), "batch": args.batch, "tokens": args.tokens}
        yield settings, partial(measure, name, settings)


def decoding_jobs(args: argparse.Namespace) -> Iterator[Job]:
    """True answers about photos, by mode and grid, with weights in 16 bits or in 4."""
    held: dict = {}
    some = timed_requests("photos", args.samples)

    def backbone(name: str):
        if name not in held:  # one model at a time
            held.clear()
            _free()
            held[name] = load_backbone(name, args.quantize or None,
                                       source=random_weights(name, args.weights, args.shrunk))
            _free()
        return held[name]

    def measure(name: str, mode: str, grid: int, about: dict) -> dict:
        timed = partial(time_decoding, backbone(name), encoding=get_encoding("rrle", grid), mode=mode,
                        own=False, pictures="photos")
        timed(some[:1])  # warms up
        return {**about, **timed(some), **_versions()}

    for name in args.shapes:
        about = {**_about(name, args), "weights": args.quantize or "16 bits"}
        for mode, grid in DECODE:
            settings = {**about, "mode": mode, "grid": grid, "n": len(some)}
            yield settings, partial(measure, name, mode, grid, about)


def verdicts(table: pd.DataFrame) -> pd.DataFrame:
    """Each shape's two questions: how much faster drafts are, and what a fine grid costs with them.

    Returns:
        ``shape, device, weights``, ``over_plain`` (plain against the better of ``fast`` and ``trees`` at
        16 x 16; target 8) and ``fine_over_plain`` (that at 32 x 32 against plain at 16 x 16; target at
        most 1). Only of shapes that were measured in full.
    """
    ms = table.pivot(index=["shape", "device", "weights"], columns=["mode", "grid"], values="ms")
    ms = ms.reindex(columns=pd.MultiIndex.from_tuples(DECODE, names=["mode", "grid"])).dropna()
    drafts = {grid: ms[[("fast", grid), ("trees", grid)]].min(axis=1) for grid in (16, 32)}
    plain = ms["plain", 16]
    out = pd.DataFrame({"over_plain": plain / drafts[16], "fine_over_plain": drafts[32] / plain})
    return out.reset_index()


def _about(name: str, args: argparse.Namespace) -> dict:
    return {"shape": f"{name}, shrunk" if args.shrunk else name, "device": cuda_device() or "CPU"}


def _versions() -> dict:
    known = versions()
    return {name: known[name] for name in ("torch", "transformers", "peft", "bitsandbytes") if name in known}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("train", "decode"))
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, help="default: all to train, 7B to decode")
    parser.add_argument("--weights", type=Path, default=Path("checkpoints/random"))
    parser.add_argument("--out", type=Path, default=results_root() / "gpu")
    parser.add_argument("--batch", type=int, default=4, help="conversations in a training step")
    parser.add_argument("--tokens", type=int, default=1024, help="of a conversation, picture included")
    parser.add_argument("--steps", type=int, default=6, help="training steps; the first is not counted")
    parser.add_argument("--samples", type=int, default=6, help="answers in each decoding mode")
    parser.add_argument("--quantize", choices=("", "nf4"), default="", help="weights for decoding")
    parser.add_argument("--shrunk", action="store_true", help="try the command on a toy; measures nothing")
    parser.add_argument("--fresh", action="store_true", help="measure again what is there")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure as the command line says, and print what the tables say of the targets."""
    args = _parser().parse_args(arguments)
    if not (torch.cuda.is_available() or args.shrunk):
        raise SystemExit("There is no CUDA GPU here to measure on; --shrunk tries the command on a toy.")
    args.shapes = args.shapes or (list(SHAPES) if args.what == "train" else ["llava-1.5-7b"])
    if args.what == "train":
        fill_table(training_jobs(args), args.out / "training.csv", args.fresh)
        return
    table = fill_table(decoding_jobs(args), args.out / "decoding.csv", args.fresh)
    if len(found := verdicts(table)):
        print("over_plain: times faster than plain at 16 x 16; fine_over_plain: 32 x 32 with drafts, as a "
              f"share of plain 16 x 16\n{found.round(2).to_string(index=False)}")


if __name__ == "__main__":
    main()
