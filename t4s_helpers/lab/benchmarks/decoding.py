"""What an answer costs: passes, tokens and milliseconds by decoding mode, encoding, grid and batch.

``python -m t4s_helpers.lab.benchmarks.decoding`` measures all of it in one run and keeps the table in
``results/bench_decoding/decoding.csv``; a run that was stopped resumes.

By default every mode is made to write the requests' true answers, box sentence included, and pays for each
of its passes. So the table does not depend on what an adapter has learned, nor does it need a model that
knows photos: ``--pictures photos`` writes about the bundled ones, whose outlines take longer answers than
those of scenes. ``--own`` lets the model speak for itself.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import product
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from ...codec.encodings import ENCODINGS, PAPER_ENCODINGS, Encoding, get_encoding
from ...data.prompts import ask, ask_and_answer
from ...data.refer import load_refer
from ...data.registry import load
from ...decoding import generate as generation
from ...decoding.constrained import ConstrainedSequence, DescriptorProcessor, FiniteLogits
from ...decoding.generate import MODES, answer_samples, generate
from ...evaluation.oracle import distinct_targets
from ...files import ROOT, atomic_write
from ...model.backbones import load_backbone
from ...workbook.results import results_root

TABLE = ROOT / "results" / "bench_decoding" / "decoding.csv"
"""The table that is kept with the workbook."""

LIMIT = 9000
"""Tokens after which an answer is cut: a full-length one of a 32x32 grid is shorter."""

CONFIGURATIONS = {**{mode: {"mode": mode, "trees": False} for mode in MODES},
                  "trees": {"mode": "fast", "trees": True}}
"""How answers are written, by name: ``trees`` is ``fast`` with trees of drafts, as on a GPU."""

KEYS = ("pictures", "answers", "encoding", "grid", "batch")
"""What tells the rows of the table apart, beside the mode."""

Job = tuple[dict, Callable[[], dict]]
"""Settings, and a function that measures and returns a row."""


def true_tokens(encoder, sample, encoding: Encoding) -> list[int]:
    """Token ids of a request's true answer with a box sentence, the end mark included."""
    said = ask_and_answer(sample, encoding, style="box").answer
    return [i for piece in said for i in encoder.piece_ids(piece)] + [encoder.tokenizer.eos_token_id]


@contextmanager
def given_answers(answers: Iterable[Sequence[int]]) -> Iterator[None]:
    """Within, `generate` writes given token ids in place of the model's choices, and pays for every pass.

    Args:
        answers: token ids, the end mark included, one answer for each that is generated, in their order.
    """
    waiting = iter(answers)

    class GivenSequence(ConstrainedSequence):
        def __init__(self, *args, **named):
            super().__init__(*args, **named)
            self.given = next(waiting)

        def choose(self, logits):
            super().choose(logits)
            return self.given[len(self.ids)]

    class GivenLogits(FiniteLogits):
        given: list[Sequence[int]] | None = None

        def __call__(self, input_ids, scores):
            scores = super().__call__(input_ids, scores)
            self.given = self.given or [next(waiting) for _ in input_ids]
            written = input_ids.shape[1] - self.prompt
            for row, ids in enumerate(self.given):
                scores[row, ids[min(written, len(ids) - 1)]] = torch.inf
            return scores

    with patch.multiple(generation, ConstrainedSequence=GivenSequence, FiniteLogits=GivenLogits):
        yield


def time_decoding(backbone, samples: Sequence, encoding: Encoding, mode: str = "fast", batch: int = 1,
                  own: bool = True, pictures: str = "scenes") -> dict:
    """Answer requests and time it.

    Args:
        backbone: a `t4s_helpers.model.backbones.Backbone`.
        samples: requests that want a mask.
        mode: a key of `CONFIGURATIONS`. Left to itself, ``plain`` writes whatever encoding the model has
            learned.
        own: time the model's own answers instead of the true ones.
        pictures: what to call the requests in the row.

    Returns:
        a row: the settings, ``n``, medians over the answers of ``tokens``, ``passes`` (the one over the
        prompt not counted) and ``ms`` (wall clock of its batch divided by the batch size), the quartiles
        ``ms_q1`` and ``ms_q3``, and ``cpu_ms``: processor time of an answer on average, pictures and
        grammar included, which tells more than the clock on a busy machine.
    """
    given = nullcontext() if own else given_answers(
        [true_tokens(backbone.encoder, sample, encoding) for sample in samples])
    start = time.process_time()
    with given:
        answers = generate(backbone, [sample.pixels() for sample in samples],
                           [[ask(sample)] for sample in samples], encoding, batch=batch, progress=False,
                           max_new_tokens=None if own and mode == "plain" else LIMIT,
                           **CONFIGURATIONS[mode])
    cpu = 1000 * (time.process_time() - start) / len(answers)
    table = pd.DataFrame({"tokens": [a.n_tokens for a in answers],
                          "passes": [a.trace.passes if a.trace else a.n_tokens for a in answers],
                          "ms": [1000 * a.seconds for a in answers]})
    return {"pictures": pictures, "answers": "own" if own else "true", "encoding": encoding.name,
            "grid": encoding.rows, "mode": mode, "batch": batch, "n": len(answers),
            **table.median().to_dict(), "ms_q1": float(table["ms"].quantile(0.25)),
            "ms_q3": float(table["ms"].quantile(0.75)), "cpu_ms": cpu}


def speedups(table: pd.DataFrame) -> pd.DataFrame:
    """How many times faster ``fast`` is, for every setting of the table that it was measured in.

    Returns:
        `KEYS`, and ``over_plain`` (the same encoding), ``over_full`` (plain full-length at the same grid
        and batch) and ``over_single`` (answers a second against batch 1); NaN where the other was not
        measured.
    """
    ms = table.set_index([*KEYS, "mode"])["ms"]
    rows = []
    for key, spent in ms.xs("fast", level="mode").items():
        here = dict(zip(KEYS, key))
        others = {"over_plain": {**here, "mode": "plain"},
                  "over_full": {**here, "encoding": "full", "mode": "plain"},
                  "over_single": {**here, "batch": 1, "mode": "fast"}}
        rows.append(here | {name: ms.get(tuple(other.values()), np.nan) / spent
                            for name, other in others.items()})
    return pd.DataFrame(rows)


def grammar_cost(backbone, samples: Sequence, encoding: Encoding, batch: int = 1) -> dict:
    """What it takes to hold ``constrained`` decoding to the grammar.

    Returns:
        a row: ``mode``, ``encoding``, ``grid``, ``batch``, ``steps`` of `generate`, ``step_ms`` on
        average and ``grammar_ms`` of it spent on the grammar, ``share``.
    """
    hold, spent = DescriptorProcessor.__call__, []

    def timed(self, *args):
        start = time.perf_counter()
        scores = hold(self, *args)
        spent.append(time.perf_counter() - start)
        return scores

    with patch.object(DescriptorProcessor, "__call__", timed):
        start = time.perf_counter()
        answer_samples(backbone, samples, encoding, batch=batch, progress=False, mode="constrained")
        whole = time.perf_counter() - start
    return {"mode": "constrained", "encoding": encoding.name, "grid": encoding.rows, "batch": batch,
            "steps": len(spent), "step_ms": 1e3 * whole / len(spent),
            "grammar_ms": 1e3 * sum(spent) / len(spent), "share": sum(spent) / whole}


def fill_table(jobs: Iterable[Job], path: Path, fresh: bool = False) -> pd.DataFrame:
    """Do the jobs that a table lacks. It is saved after each, so that a stopped run resumes.

    Args:
        jobs: settings, and a function that measures and returns the row.
        path: the CSV.
        fresh: measure again what is there.

    Returns:
        the rows of the jobs.
    """
    jobs = list(jobs)
    rows = []
    if path.is_file() and not fresh:  # left to itself, pandas takes the word "true" for a truth value
        rows = pd.read_csv(path, keep_default_na=False, dtype={"answers": str}).to_dict("records")
    wanted = []
    for settings, measure in tqdm(jobs, desc=path.stem, unit="setting"):
        found = [row for row in rows if all(row.get(key) == value for key, value in settings.items())]
        if not found:
            found = [{name: round(value, 3) if isinstance(value, float) else value
                      for name, value in measure().items()}]
            rows += found
            atomic_write({path: pd.DataFrame(rows).to_csv(index=False).encode()})
            tqdm.write(", ".join(f"{name} {value}" for name, value in found[0].items()))
        wanted += found
    return pd.DataFrame(wanted)


def timed_requests(pictures: str, n: int) -> list:
    """Requests of one target.

    Args:
        pictures: ``"scenes"`` (rendered, held out), ``"photos"`` (the bundled ones), or a folder with
            RefCOCO's files.
        n: at most.
    """
    if pictures == "scenes":
        return load("scenes", "test", n=n, start=10_000, task="res")
    found = load("photos") if pictures == "photos" else load_refer(pictures)
    return distinct_targets([sample for sample in found if len(sample.labels) == 1])[:n]


def timing_jobs(backbone, args: argparse.Namespace) -> Iterator[Job]:
    """The settings of the table, the small ones first."""
    samples, pictures = timed_requests(args.pictures, 2 * args.samples), Path(args.pictures).name
    for grid, name, batch, mode in product(args.grids, args.encodings, args.batches, args.modes):
        some = samples if batch > 1 else samples[:args.samples]
        settings = {"pictures": pictures, "answers": "own" if args.own else "true", "encoding": name,
                    "grid": grid, "mode": mode, "batch": batch, "n": len(some)}
        yield settings, partial(time_decoding, backbone, some, get_encoding(name, grid), mode, batch,
                                args.own, pictures)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the command line says, and print how much faster ``fast`` is."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backbone", default="embedded")
    parser.add_argument("--adapter", default="scenes", help="name or folder; '' for none")
    parser.add_argument("--pictures", default="scenes", help="'scenes', 'photos' (the bundled ones) or "
                        "a folder with RefCOCO's files: whose true answers are written")
    parser.add_argument("--samples", type=int, default=8, help="requests a setting; twice as many in batches")
    parser.add_argument("--encodings", nargs="+", default=[*PAPER_ENCODINGS], choices=ENCODINGS)
    parser.add_argument("--grids", type=int, nargs="+", default=[16, 24, 32])
    parser.add_argument("--modes", nargs="+", default=[*CONFIGURATIONS], choices=CONFIGURATIONS)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--own", action="store_true", help="the model's own answers, not true ones")
    parser.add_argument("--out", type=Path, default=results_root() / "bench_decoding")
    parser.add_argument("--fresh", action="store_true", help="measure again what is there")
    args = parser.parse_args(arguments)
    backbone = load_backbone(args.backbone, adapter=args.adapter or None)
    table = fill_table(timing_jobs(backbone, args), args.out / "decoding.csv", args.fresh)
    if (table["mode"] == "fast").any():
        print(speedups(table).round(1).to_string(index=False))


if __name__ == "__main__":
    main()
