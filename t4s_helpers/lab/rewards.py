"""Rewards in place of imitation: group-relative policy optimization (GRPO) of an adapter on its own answers.

Imitation teaches tokens, but IoU is what counts. Each request is answered several times at temperature 1;
answers with more IoU than the others of their group become likelier, the rest less likely, and a penalty on
the KL divergence holds the model near its start. The format needs no reward, because the grammar holds.

trl's ``GRPOTrainer`` reads pictures too, but it samples by ``model.generate`` or vLLM without processors of
the logits, and takes log-probabilities over the whole vocabulary. Here the grammar is a part of the policy: a
forced token has probability 1, and elsewhere what is allowed shares the probability. So the loop is our own.

    python -m t4s_helpers.lab.rewards --adapter scenes --steps 100 --out checkpoints/rewards

writes ``rewards.csv``, a row a step, and in the end ``adapter/``. The same command resumes a stopped run.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from ..codec.encodings import SEG_OPEN, Encoding, get_encoding
from ..codec.grid import box_iou, mask_iou
from ..data.prompts import ask, box_in_words, read_box
from ..data.registry import load
from ..decoding.generate import Answer, answer_samples, generate, parse_answer, read_answers
from ..evaluation.metrics import SegmentationMetric
from ..files import atomic_write
from ..model.adapters import export_adapter
from ..model.backbones import ADAPTERS, Backbone, load_backbone, open_adapter

FIRST = 2_000_000
"""Number of the first training scene, far behind those of other trainings; held-out ones are of ``val``."""
REFERENCE = "start"
"""Name of the adapter's frozen copy, from which the KL divergence is taken."""


def rewards_of(sample, answer: Answer, encoding: Encoding) -> dict[str, float]:
    """IoU of an answer's mask and, where its sentence says where, of its box; ``reward`` is their mean.

    All in [0, 1]. Where there is no target, saying so earns 1 and anything else 0.
    """
    parsed, truth = parse_answer(answer.text, sample.labels, sample.size, encoding), sample.masks.any(0)
    found = {"iou": mask_iou(parsed.masks.any(0), truth)}
    sentence = answer.text.partition(SEG_OPEN)[0]
    said = read_box(sentence)
    if sentence.startswith(("At ", "Nowhere")):
        found["box_iou"] = float(not truth.any() and sentence.startswith("Nowhere"))
        if said and truth.any():
            found["box_iou"] = box_iou(said, read_box(box_in_words(truth)))
    return {"reward": float(np.mean(list(found.values()))), **found}


def advantages(rewards: np.ndarray) -> np.ndarray:
    """How much better than its group each answer is, in standard deviations: float ``(requests, draws)``.

    A group whose answers all earn the same teaches nothing.

    >>> advantages(np.array([[0.0, 1.0], [0.5, 0.5]])).tolist()
    [[-1.0, 1.0], [0.0, 0.0]]
    """
    apart, spread = rewards - rewards.mean(1, keepdims=True), rewards.std(1, keepdims=True)
    return np.divide(apart, spread, out=np.zeros_like(apart), where=spread > 1e-6)


def log_probs(logits: torch.Tensor, answer: Answer) -> torch.Tensor:
    """Log-probabilities of the tokens of an answer that were a choice, float ``(choices,)``.

    Within the descriptor they are shared among what the grammar allows; forced tokens are left out.

    Args:
        logits: float ``(tokens, vocabulary)``, from `t4s_helpers.decoding.generate.read_answers`.
        answer: drawn with a grammar, so that it has a trace.
    """
    sources, allowed = np.array(answer.trace.sources), torch.ones(logits.shape, dtype=torch.bool)
    for k, choice in zip(np.flatnonzero(sources == "chosen"), answer.trace.choices, strict=True):
        allowed[k] = False
        allowed[k, torch.from_numpy(choice.tokens)] = True
    free = torch.from_numpy(np.flatnonzero(sources != "forced"))
    scores = logits[free].float().masked_fill(~allowed[free].to(logits.device), -torch.inf).log_softmax(-1)
    return scores.gather(1, torch.tensor(answer.ids)[free].to(logits.device)[:, None])[:, 0]


def with_reference(loaded: Backbone, adapter: Path | str) -> Backbone:
    """A backbone whose adapter `step` can move: trainable, beside its frozen copy, in evaluation mode.

    Args:
        loaded: a backbone without an adapter; it is wrapped in place.
        adapter: folder of a peft adapter, or the name of one that ships.
    """
    model = open_adapter(loaded, adapter, trainable=True).eval()
    model.load_adapter(str(ADAPTERS / adapter if (ADAPTERS / adapter).is_dir() else adapter), REFERENCE)
    return Backbone(loaded.spec, model, loaded.processor)


@contextmanager
def at_the_start(model):
    """Within, the model answers as it did before the first step."""
    model.set_adapter(REFERENCE)
    try:
        yield
    finally:
        model.set_adapter("default")


def step(backbone: Backbone, optimizer, samples: Sequence, encoding: Encoding, *, draws: int = 8,
         beta: float = 0.04, batch: int = 16, seed: int = 0) -> dict[str, float]:
    """One step: draw answers, reward them, and move the weights.

    Every answer is used once, so the policy that drew it is the one that is moved, and nothing is clipped.

    Args:
        backbone: from `with_reference`. It is in evaluation mode, as with dropout the answers would not be
            those of the policy that drew them.
        draws: answers to each request, a group.
        beta: weight of the KL divergence.
        batch: answers in a pass.

    Returns:
        means over the answers (``reward``, ``iou``, ``box_iou``), ``kl`` a token in nats, ``grad_norm``, and
        ``flat``, the share of groups that taught nothing.
    """
    turns = [[ask(sample, encoding=encoding)] for sample in samples for _ in range(draws)]
    images = [sample.pixels() for sample in samples for _ in range(draws)]
    said = generate(backbone, images[::draws], turns[::draws], encoding, temperature=1.0, draws=draws,
                    batch=batch, seed=seed, progress=False)
    earned = pd.DataFrame([rewards_of(samples[k // draws], one, encoding) for k, one in enumerate(said)])
    worth = advantages(earned["reward"].to_numpy().reshape(-1, draws))
    total = sum(source != "forced" for answer in said for source in answer.trace.sources)
    optimizer.zero_grad()
    kl = 0.0
    for at in range(0, len(said), batch):
        some = slice(at, at + batch)
        asked = backbone, images[some], turns[some], [answer.ids for answer in said[some]]
        with torch.no_grad(), at_the_start(backbone.model):
            before = [log_probs(*pair) for pair in zip(read_answers(*asked), said[some])]
        loss = torch.zeros(())
        for logits, answer, start, gain in zip(read_answers(*asked), said[some], before, worth.flat[some]):
            now = log_probs(logits, answer)
            apart = start - now
            divergence = (apart.exp() - apart - 1).sum()  # unbiased and never negative (Schulman's k3)
            loss = loss.to(now.device) + (beta * divergence - float(gain) * now.sum()) / total
            kl += divergence.item() / total
        loss.backward()
    norm = torch.nn.utils.clip_grad_norm_([p for p in backbone.model.parameters() if p.requires_grad], 1.0)
    optimizer.step()
    return {**earned.mean().to_dict(), "kl": kl, "grad_norm": float(norm),
            "flat": float((worth == 0).all(1).mean())}


def held_out(backbone: Backbone, samples: Sequence, encoding: Encoding, batch: int) -> dict[str, float]:
    """cIoU and gIoU of greedy answers."""
    metric = SegmentationMetric()
    for sample, (_, parsed) in zip(samples, answer_samples(backbone, samples, encoding, batch=batch,
                                                           progress=False)):
        metric.update(parsed.masks.any(0), sample.masks.any(0))
    return {f"held_out_{name}": metric.compute()[name] for name in ("ciou", "giou")}


def train(backbone: Backbone, out: Path, encoding: Encoding, *, steps: int, requests: int = 4, draws: int = 8,
          lr: float = 5e-5, beta: float = 0.04, batch: int = 16, seed: int = 0, task: str = "gres",
          every: int = 20, n_held_out: int = 64) -> pd.DataFrame:
    """Steps on drawn scenes, from the last one kept in ``out`` on; returns the rows of ``rewards.csv``.

    Everything drawn depends on seed and step alone, so a resumed run is the run that was not stopped.
    ``every`` so many steps, and at both ends, held-out scenes are scored and the state is kept.
    """
    weights = {name: p for name, p in backbone.model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(weights.values(), lr=lr, weight_decay=0.0)
    test, rows, kept = load("scenes", "val", n=n_held_out, task=task), [], out / "state.pt"
    if kept.is_file():
        state = torch.load(kept, map_location="cpu")
        optimizer.load_state_dict(state["optimizer"])
        rows = state["rows"]
        with torch.no_grad():
            for name, p in weights.items():
                p.copy_(state["weights"][name])
    rows = rows or [{"step": 0, "seconds": 0.0, **held_out(backbone, test, encoding, batch)}]
    for k in tqdm(range(len(rows), steps + 1), desc="rewards", unit="step"):
        start, first = time.perf_counter(), FIRST + (1_000_000 * seed + k) * requests
        samples = load("scenes", "train", n=requests, start=first, task=task)
        row = step(backbone, optimizer, samples, encoding, draws=draws, beta=beta, batch=batch,
                   seed=1_000_003 * seed + k)
        row = {"step": k, "seconds": rows[-1]["seconds"] + time.perf_counter() - start, **row}
        last = k % every == 0 or k == steps
        rows.append(row | (held_out(backbone, test, encoding, batch) if last else {}))
        if last:
            file = io.BytesIO()
            torch.save({"optimizer": optimizer.state_dict(), "rows": rows,
                        "weights": {name: p.detach().cpu() for name, p in weights.items()}}, file)
            atomic_write({kept: file.getvalue()})
        atomic_write({out / "rewards.csv": pd.DataFrame(rows).to_csv(index=False).encode()})
    backbone.model.save_pretrained(out / "adapter", selected_adapters=["default"])
    return pd.DataFrame(rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Train an adapter on its own rewarded answers."""
    parser = argparse.ArgumentParser(prog="python -m t4s_helpers.lab.rewards", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--adapter", default="scenes", help="to start from: the name of a shipped one, or a folder")
    add("--out", type=Path, required=True, help="folder for rewards.csv, the state and the new adapter")
    add("--export", type=Path, help="folder for the adapter as it ships")
    add("--backbone", default="embedded")
    add("--encoding", default="rrle")
    add("--grid", type=int, default=16, help="side, cells")
    add("--task", default="gres", choices=("res", "gres"))
    for name, value, told in (("steps", 100, "steps"), ("requests", 4, "requests in a step"),
                              ("draws", 8, "answers to each"), ("batch", 16, "answers in a pass"),
                              ("lr", 5e-5, "learning rate"), ("beta", 0.04, "weight of the KL divergence"),
                              ("every", 20, "steps between held-out scores"), ("seed", 0, "seed")):
        add(f"--{name}", type=type(value), default=value, help=f"{told} (default {value})")
    args = vars(parser.parse_args(argv))
    backbone = with_reference(load_backbone(args.pop("backbone")), args.pop("adapter"))
    encoding, export = get_encoding(args.pop("encoding"), args.pop("grid")), args.pop("export")
    args["out"].mkdir(parents=True, exist_ok=True)
    table = train(backbone, encoding=encoding, **args)
    if export:
        export_adapter(args["out"] / "adapter", export, backbone.spec.name)
    print(table.dropna(subset=["held_out_ciou"]).round(4).to_string(index=False))


if __name__ == "__main__":
    main()
