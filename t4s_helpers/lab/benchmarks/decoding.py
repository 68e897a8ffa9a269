"""What an answer costs: passes, tokens and milliseconds by decoding mode, encoding, grid and batch.

``python -m t4s_helpers.lab.benchmarks.decoding`` measures all of it in one run and keeps the table in
``results/bench_decoding/decoding.csv``; a run that was stopped goes on where it stopped.
``python -m t4s_helpers.lab.benchmarks.decoding --equality 500`` compares ``fast`` with ``constrained`` instead,
token by token (``equality.csv``), and ``--confidence 50`` the confidence of answers with 256 draws of a
row each (``confidence.csv``).

The true answers of the requests are written, box sentence included, whatever the model would have
said: every mode is led along the same tokens and pays for its passes in full, so the table does not
depend on what an adapter has learned; nor does it need a model that knows photos: ``--pictures photos``
writes about the bundled ones, whose outlines take longer answers than those of scenes. ``--own`` lets
the model speak for itself.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ...decoding.generate import MODES, answer_samples, generate
from ...data.prompts import ask, turn
from ...codec.encodings import SCHEMES
from ...workbook.tables import read_rows, write_rows

TABLE = Path(__file__).resolve().parents[3] / "results" / "bench_decoding" / "decoding.csv"
"""The table that is kept with the workbook."""

LIMIT = 9000
"""Tokens after which an answer is cut: a full-length one of a 32x32 grid is shorter."""

EQUAL_SIZES = (8, 12, 16, 20, 24, 28, 32)
"""Grid sizes at which the modes are compared."""

WAYS = (*MODES, "trees")
"""How answers are written: ``trees`` is ``fast`` with trees of drafts, as on a GPU; ``fast`` without."""

TIE = 2e-4
"""Difference of two logits within which rounding decides: a pass over many tokens sums in another order
than passes over one."""

KEYS = ("pictures", "answers", "scheme", "size", "mode", "batch")
"""What tells the rows of the table apart."""


def true_tokens(encoder, sample, size=16, scheme: str = "rrle") -> list[int]:
    """Token ids of a request's true answer with a box sentence, the end mark included."""
    said = turn(sample, size, scheme=scheme, style="box").answer
    return [i for piece in said for i in encoder.piece_ids(piece)] + [encoder.tokenizer.eos_token_id]


def _options(way: str) -> dict:
    """What `generate` is told for one of `WAYS`."""
    return {"mode": "fast", "trees": True} if way == "trees" else {"mode": way, "trees": False}


def time_decoding(backbone, samples, mode: str = "fast", size=16, scheme: str = "rrle",
                  batch: int = 1, own: bool = True, pictures: str = "scenes") -> dict:
    """Answer requests and time it; their pictures are read again for each.

    Args:
        backbone: a `t4s_helpers.model.backbones.Backbone`.
        samples: requests that want a mask.
        mode: one of `WAYS`; ``plain`` writes whatever encoding the model has learned, unless it is led.
        size, scheme, batch: as for `t4s_helpers.decoding.generate.generate`.
        own: time the model's own answers; else it is led along the true ones.
        pictures: what to call the requests in the row.

    Returns:
        a row: the settings, ``n``, medians over the answers of ``tokens``, ``passes`` (the one over
        the prompt not counted) and ``ms`` (wall clock, of its batch divided by the batch), the
        quartiles ``ms_q1`` and ``ms_q3``, and ``cpu_ms``: processor time of an answer on average,
        pictures and grammar included, which tells more than the clock on a busy machine.
    """
    asked = [ask(sample) for sample in samples]
    leads = None if own else [true_tokens(backbone.encoder, s, size, scheme) for s in samples]
    start = time.process_time()
    answers = generate(
        backbone, [s.pixels() for s in samples], [one.question for one in asked],
        [one.labels for one in asked], size, scheme=scheme, batch=batch, progress=False,
        **_options(mode), leads=leads, max_new_tokens=None if own and mode == "plain" else LIMIT)
    cpu = 1000 * (time.process_time() - start) / len(answers)
    passes = [a.trace.passes if a.trace else a.n_tokens for a in answers]
    first, middle, third = np.percentile([1000 * a.seconds for a in answers], (25, 50, 75))
    return {"pictures": pictures, "answers": "own" if own else "true", "scheme": scheme, "size": size, "mode": mode,
            "batch": batch, "n": len(answers),
            "tokens": float(np.median([a.n_tokens for a in answers])),
            "passes": float(np.median(passes)), "ms": float(middle), "ms_q1": float(first),
            "ms_q3": float(third), "cpu_ms": cpu}


def written(row: dict) -> str:
    """A row of the table as a line of text."""
    return (f"{row['pictures']:13}{row['mode']:12}{row['scheme']:6}{row['size']:3}  "
            f"batch {row['batch']}  "
            f"{row['tokens']:6.0f} tokens {row['passes']:6.0f} passes {row['ms']:8.0f} ms "
            f"({row['ms_q1']:.0f}-{row['ms_q3']:.0f}), "
            f"{row['cpu_ms']:.0f} ms of processor")


def speedups(rows: Sequence[dict]) -> list[dict]:
    """How much sooner ``fast`` ends, for every setting of the table that has both.

    Returns:
        rows ``pictures, answers, scheme, size, batch``, ``over_plain`` (the same encoding), ``over_full``
        (plain full-length at the same grid and batch) and ``over_single`` (answers a second against
        batch 1); ``None`` where the other was not measured.
    """
    ms = {tuple(row[key] for key in KEYS): row["ms"] for row in rows}

    def ratio(*key, than: float) -> float | None:
        return ms[key] / than if key in ms else None

    return [{"pictures": of, "answers": a, "scheme": scheme, "size": size, "batch": batch,
             "over_plain": ratio(of, a, scheme, size, "plain", batch, than=one),
             "over_full": ratio(of, a, "full", size, "plain", batch, than=one),
             "over_single": ratio(of, a, scheme, size, "fast", 1, than=one)}
            for (of, a, scheme, size, mode, batch), one in ms.items() if mode == "fast"]


def side_by_side(rows: Sequence[dict], value: str = "ms") -> list[dict]:
    """The table with the decoding modes in columns, one row for all else that tells its rows apart.

    >>> row = {"pictures": "scenes", "answers": "true", "scheme": "rrle", "size": 16, "batch": 1}
    >>> side_by_side([{**row, "mode": "plain", "passes": 92.0},
    ...               {**row, "mode": "fast", "passes": 8.0}], "passes")[0]["fast"]
    8.0
    """
    wide: dict[tuple, dict] = {}
    for row in rows:
        rest = {key: row[key] for key in KEYS if key != "mode"}
        wide.setdefault(tuple(rest.values()), rest)[row["mode"]] = row[value]
    return list(wide.values())


def compare_modes(backbone, samples, size=16, batch: int = 1, scheme: str = "rrle",
                  limit: int = 600, way: str = "fast") -> dict:
    """Whether ``fast`` writes what ``constrained`` writes, token by token.

    Args:
        way: ``"fast"`` or ``"trees"``, see `WAYS`.

    Returns:
        a row: the settings, ``n``, ``equal`` (answers that are the same), ``tied`` (others, see
        `part_at_a_tie`), ``tokens`` compared, medians of ``passes_fast`` and
        ``passes_constrained``, ``first`` (id of the first sample that differs otherwise, or "").
    """
    def answers(mode: str, batch: int) -> list:
        return [answer for answer, _ in answer_samples(
            backbone, samples, size, scheme, batch=batch, progress=False,
            **_options(mode), max_new_tokens=limit)]

    slow, fast = answers("constrained", max(batch, 8)), answers(way, batch)
    same = [a.text == b.text and a.n_tokens == b.n_tokens and a.trace.sources == b.trace.sources
            for a, b in zip(slow, fast, strict=True)]
    tied = [not equal and part_at_a_tie(a, b) for equal, a, b in zip(same, slow, fast)]
    different = [sample.id for sample, *alike in zip(samples, same, tied) if not any(alike)]
    return {"scheme": scheme, "size": size, "batch": batch, "mode": way, "n": len(samples),
            "equal": sum(same), "tied": sum(tied),
            "tokens": sum(a.n_tokens for a in slow),
            "passes_fast": float(np.median([a.trace.passes for a in fast])),
            "passes_constrained": float(np.median([a.trace.passes for a in slow])),
            "first": next(iter(different), "")}


def grammar_cost(backbone, samples, size=16, scheme: str = "rrle", batch: int = 1) -> dict:
    """What it takes to hold ``constrained`` decoding to the grammar.

    Returns:
        a row: ``mode``, ``scheme``, ``size``, ``batch``, ``steps`` of `generate`, ``step_ms`` on
        average and ``grammar_ms`` of it spent on the grammar, ``share``.
    """
    from unittest.mock import patch

    from ...decoding.constrained import DescriptorProcessor

    hold, spent = DescriptorProcessor.__call__, []

    def timed(self, *args):
        start = time.perf_counter()
        scores = hold(self, *args)
        spent.append(time.perf_counter() - start)
        return scores

    with patch.object(DescriptorProcessor, "__call__", timed):
        start = time.perf_counter()
        answer_samples(backbone, samples, size, scheme, batch=batch, progress=False, **_options("constrained"))
        whole = time.perf_counter() - start
    return {"mode": "constrained", "scheme": scheme, "size": size, "batch": batch, "steps": len(spent),
            "step_ms": 1e3 * whole / len(spent), "grammar_ms": 1e3 * sum(spent) / len(spent),
            "share": sum(spent) / whole}


def part_at_a_tie(a, b) -> bool:
    """Whether two answers part at a choice that the model left to rounding: both tokens' logits are
    within `TIE`.

    Args:
        a, b: different `t4s_helpers.decoding.generate.Answer` objects to one request, with traces.
    """
    at = next((k for k, (one, other) in enumerate(zip(a.ids, b.ids)) if one != other), None)
    if at is None or a.trace.sources[at] != "chosen":
        return False
    choice = a.trace.choices[a.trace.sources[:at].count("chosen")]
    scores = dict(zip(choice.tokens.tolist(), choice.scores.tolist()))
    return abs(scores[a.ids[at]] - scores.get(b.ids[at], float("inf"))) < TIE


def sampled_row(backbone, sample, answer, row: int, draws: int = 256, seed: int = 0) -> np.ndarray:
    """How often each label stands in each cell of a row, if the model goes on from the rows above.

    Args:
        answer: to the sample, in mode ``fast`` or ``constrained``, scheme ``rrle``.
        row: of the grid, from 0; the rows above stay as they were written.
        draws: ways to write the row.

    Returns:
        float64 ``(L + 1, cols)``, frequencies.
    """
    import torch

    from ...decoding.constrained import DraftingDecoder, Writer
    from ...decoding.generate import _inputs

    class OneRow(DraftingDecoder):
        def _over(self, number: int) -> bool:
            return self.writers[number].state.at.row > row

    rng, old = np.random.default_rng(seed), answer.grammar
    asked, size = ask(sample), (old.rows, old.cols)
    writers = [Writer(backbone.encoder, asked.labels, size, rng=rng) for _ in range(draws)]
    for writer in writers:
        for token in answer.ids:
            if writer.state is not None and writer.state.at.row == row:
                break
            writer.push(token)
        writer.read = len(writer.ids) - 1  # the last one is the end of the prompt here
    inputs = _inputs(backbone, backbone.encoder, [sample.pixels()], [asked.question])
    said = torch.tensor([writers[0].ids], device=inputs["input_ids"].device)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], said], 1)
    for name in set(inputs) & {"attention_mask", "token_type_ids", "mm_token_type_ids"}:
        fill = torch.full_like(said, int(name == "attention_mask"))
        inputs[name] = torch.cat([inputs[name], fill], 1)
    with torch.inference_mode():
        backbone.model.generate(**inputs, do_sample=False, max_new_tokens=LIMIT,
                                custom_generate=OneRow(writers))
    cells = np.stack([writer.draft.cells.reshape(size)[row] for writer in writers])
    return np.stack([(cells == label).mean(0) for label in range(len(old.words))])


def check_confidence(backbone, sample, size=16, draws: int = 256) -> dict:
    """Compare the map of an answer with draws, in its most doubtful row.

    Returns:
        a row: ``id``, ``row``, mean absolute errors over its cells of the map (``map``), of the answer
        taken for certain (``text``), what chance alone makes of so many draws (``noise``), the
        ``known`` share, and ``beyond``: cells off by more than the unknown share and four standard
        errors, of which there must be none.
    """
    from ...decoding.generate import answer_confidence

    [(answer, reading)] = answer_samples(backbone, [sample], size, mode="fast", progress=False)
    found = answer_confidence(answer, reading)
    row = int((found.probs * (1 - found.probs)).sum((0, 2)).argmax())
    truth, stated = sampled_row(backbone, sample, answer, row, draws), found.probs[:, row]
    said = np.stack([reading.grid[row] == label for label in range(len(stated))])
    spread = np.sqrt(truth * (1 - truth) / draws)
    beyond = np.abs(stated - truth) > 1 - found.known[row] + 4 * np.maximum(spread, 1 / draws)
    return {"id": sample.id, "size": size, "row": row, "map": float(np.abs(stated - truth).mean()),
            "text": float(np.abs(said - truth).mean()),
            "noise": float((spread * np.sqrt(2 / np.pi)).mean()),
            "known": float(found.known[row].mean()), "beyond": int(beyond.sum())}


def run(jobs: Iterable[tuple[dict, object]], path: Path, fresh: bool, say) -> list[dict]:
    """Do jobs that a table lacks; it is saved after each.

    Args:
        jobs: ``(settings, function that measures and returns the row)``.
        path: the CSV.
        fresh: forget what is there.
        say: function of each new row.
    """
    from tqdm.auto import tqdm

    jobs = list(jobs)
    rows = read_rows(path) if path.is_file() and not fresh else []
    for settings, measure in tqdm(jobs, desc=path.stem, unit="setting"):
        if any(all(row.get(key) == value for key, value in settings.items()) for row in rows):
            continue
        rows.append({name: round(value, 3) if isinstance(value, float) else value
                     for name, value in measure().items()})
        write_rows(rows, path)
        say(rows[-1])
    wanted = [settings for settings, _ in jobs]
    return [row for row in rows if any(all(row.get(key) == value for key, value in one.items())
                                       for one in wanted)]


def timed_requests(pictures: str, n: int) -> list:
    """Requests of one target.

    Args:
        pictures: ``"scenes"`` (rendered, held out), ``"photos"`` (the bundled ones), or a folder with
            RefCOCO's files.
        n: at most.
    """
    from ...data.expressions import scene_samples
    from ...data.photos import photo_samples
    from ...data.refer import load_refer
    from ...evaluation.evaluate import distinct_targets

    if pictures == "scenes":
        return scene_samples("test", n, "res", start=10_000)
    found = photo_samples() if pictures == "photos" else load_refer(pictures)
    return distinct_targets([s for s in found if len(s.labels) == 1])[:n]


def timing_jobs(backbone, args):
    """The settings of the table, the small ones first."""
    samples, name = timed_requests(args.pictures, 2 * args.samples), Path(args.pictures).name
    for size in args.sizes:
        for scheme in args.schemes:
            for batch in args.batches:
                some = samples if batch > 1 else samples[:args.samples]
                for mode in args.modes:
                    settings = {"pictures": name, "answers": "own" if args.own else "true",
                                "scheme": scheme, "size": size, "mode": mode, "batch": batch,
                                "n": len(some)}
                    yield settings, lambda some=some, mode=mode, size=size, scheme=scheme, \
                        batch=batch: time_decoding(backbone, some, mode, size, scheme, batch,
                                                   args.own, name)


def equality_jobs(backbone, n: int):
    """Samples with and without a target spread over the grid sizes, one at a time and together."""
    from ...data.expressions import scene_samples

    cases = [(size, batch, way) for size in EQUAL_SIZES for batch, way in
             ((1, "fast"), (8, "fast"), (4, "trees"))]
    each = -(-n // len(cases))
    for k, (size, batch, way) in enumerate(cases):
        settings = {"scheme": "rrle", "size": size, "batch": batch, "mode": way, "n": each}
        yield settings, lambda k=k, size=size, batch=batch, way=way: compare_modes(
            backbone, scene_samples("test", each, "gres", start=90_000 + k * each), size, batch,
            way=way)


def confidence_jobs(backbone, n: int):
    """Doubtful rows of ``n`` requests against draws."""
    from ...data.expressions import scene_samples

    for sample in scene_samples("test", n, "res", start=80_000):
        yield {"id": sample.id, "size": 16}, lambda sample=sample: check_confidence(backbone, sample)


def main(arguments: Sequence[str] | None = None) -> int:
    import argparse

    from ...model.backbones import load_backbone
    from ...workbook.results import results_root

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backbone", default="embedded")
    parser.add_argument("--adapter", default="scenes", help="name or folder; '' for none")
    parser.add_argument("--pictures", default="scenes", help="'scenes', 'photos' (the bundled ones) or "
                        "a folder with RefCOCO's files: whose true answers are written")
    parser.add_argument("--samples", type=int, default=8,
                        help="requests per setting; twice as many in batches")
    parser.add_argument("--schemes", nargs="+", default=[*SCHEMES], choices=SCHEMES)
    parser.add_argument("--sizes", type=int, nargs="+", default=[16, 24, 32])
    parser.add_argument("--modes", nargs="+", default=[*WAYS], choices=WAYS)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--own", action="store_true", help="the model's own answers, not true ones")
    parser.add_argument("--equality", type=int, metavar="N",
                        help="compare fast with constrained on N samples instead")
    parser.add_argument("--confidence", type=int, metavar="N",
                        help="compare the confidence of N answers with draws instead")
    parser.add_argument("--out", type=Path, default=results_root() / "bench_decoding")
    parser.add_argument("--fresh", action="store_true", help="measure again what is there")
    args = parser.parse_args(arguments)
    backbone = load_backbone(args.backbone, adapter=args.adapter or None)
    if args.equality:
        rows = run(equality_jobs(backbone, args.equality), args.out / "equality.csv", args.fresh, print)
        equal, tied, n = (sum(row[key] for row in rows) for key in ("equal", "tied", "n"))
        print(f"{equal} of {n} answers are the same, {tied} others part at a tie")
        return int(equal + tied < n)
    if args.confidence:
        rows = run(confidence_jobs(backbone, args.confidence), args.out / "confidence.csv", args.fresh,
                   lambda row: None)
        print({key: round(float(np.mean([row[key] for row in rows])), 4)
               for key in ("map", "text", "noise", "known", "beyond")})
        return int(any(row["beyond"] for row in rows))
    rows = run(timing_jobs(backbone, args), args.out / "decoding.csv", args.fresh,
               lambda row: print(written(row), flush=True))
    for row in speedups(rows):
        print(" ".join(f"{name} {value if not isinstance(value, float) else f'{value:.1f}x'}"
                       for name, value in row.items()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
