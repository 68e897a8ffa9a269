"""Measuring the adapters of the ablations: one row an answer, of which every table is made."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pycocotools import mask as rle
from tqdm.auto import tqdm

from ...codec.encodings import PAPER_ENCODINGS, get_encoding, wrap
from ...data.prompts import ask
from ...data.registry import ENTRIES, load
from ...decoding.confidence import best_expected_iou
from ...decoding.generate import Answer, ParsedAnswer, answer_samples, generate, parse_answer
from ...evaluation.evaluate import evaluate
from ...evaluation.metrics import SegmentationMetric
from ...evaluation.oracle import oracle_table, pixel_counts
from ...evaluation.tasks import from_rle, to_rle
from ...files import write_json
from ...model.backbones import load_backbone
from ...model.chat import count_tokens
from ...refine import NoRefiner
from .design import BASE, DESIGN, EXPECTED, AblationError, RunConfig, Trained

DRAWS = 8
"""Answers to a request among which expected IoU chooses."""


def held_out(data: str = "scenes", n: int = 96, root: Path | str | None = None) -> dict[str, list]:
    """Requests for one target each that no adapter was trained on.

    Args:
        data: ``"scenes"``: held-out ones, and those with unseen pairs of colour and shape. Else names for
            `t4s_helpers.data.load`, separated by commas, each with its split as in ``refcoco:testA`` or the
            one that papers report first; or the path of a file of your own.
        n: the first so many requests of each; root: folder of the data sets.

    Returns:
        name of the set -> samples. An `AblationError`: one asks for several things, or for words.
    """
    if data == "scenes":
        return {split: load("scenes", split, n=n, start=8_000) for split in ("test", "novel")}
    sets = {}
    for given in data.split(","):
        name, _, split = given.partition(":") if given.partition(":")[0] in ENTRIES else (given, "", "")
        # Adapters are compared with each other, so that a part of a public set does as well.
        sets[given] = list(load(name, split or None, root, n=n, counts="warn"))
        if odd := [one for one in sets[given] if len(getattr(one, "labels", ())) != 1]:
            raise AblationError(f"The ablations score masks of one target, and {odd[0]!r} of {given} asks "
                                "for something else: take scenes, a RefCOCO set or a CSV of expressions.")
    return sets


def answered(backbone, samples: Sequence, config: RunConfig, draws: int = 1,
             **options) -> list[tuple[Answer, ParsedAnswer]]:
    """Answers, decoded under the grammar, to samples of one target, as a configuration writes them.

    Args:
        draws: answers drawn to each request, whose grid with the best expected IoU counts; 1 for the
            model's own answer.
        options: for `t4s_helpers.decoding.generate.generate`.
    """
    turns = [replace(turn, labels=(config.label,)) if config.label else turn for turn in map(ask, samples)]
    drawing = {"draws": draws, "temperature": 1.0} if draws > 1 else {}
    said = generate(backbone, [one.pixels() for one in samples], [[turn] for turn in turns], config.text,
                    progress=False, **drawing, **options)
    out = []
    for k, (turn, sample) in enumerate(zip(turns, samples)):
        pairs = [(one, parse_answer(one.text, turn.labels, sample.size, config.text))
                 for one in said[k * draws:(k + 1) * draws]]
        out.append(best_expected_iou(pairs, sample.size, config.text) if draws > 1 else pairs[0])
    return out


def coarse_scores(backbone, samples: Sequence, config: RunConfig, batch: int = 32) -> dict[str, float]:
    """A point of a learning curve: ``ciou`` and ``giou`` in [0, 1] without a refiner."""
    metric = SegmentationMetric()
    for sample, (_, parsed) in zip(samples, answered(backbone, samples, config, batch=batch)):
        metric.update(parsed.masks[0], sample.masks[0])
    scores = metric.compute()
    return {"ciou": scores["ciou"], "giou": scores["giou"]}


def measure(found: Trained, sets: Mapping[str, Sequence], refiner=None,
            opening: Mapping[str, Any] | None = None, n_timed: int = 0, batch: int = 32, seed: int = 0,
            progress: bool = True, keep: Path | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Score every adapter that is there.

    Answers are decoded under the grammar in mode ``fast``, so none is malformed. The masks of all
    adapters for one picture are refined together, on one embedding.

    Args:
        found: from `t4s_helpers.lab.ablations.design.trained`.
        sets: from `held_out`.
        refiner: from `t4s_helpers.refine.load_refiner`; None: the coarse masks alone.
        opening: how the backbone is loaded, `t4s_helpers.lab.ablations.design.Recipe.opening`.
        n_timed: requests that the first seed answers one by one in two decoding modes, for seconds.
        seed: of the refiner's points.
        keep: folder for what is finished, one file an adapter and one a set, from which a call after
            an interruption resumes; None: nothing is kept.

    Returns:
        ``(rows, times)``. ``rows``: one an answer and refiner, with pixel counts, tokens and the
        refiner's seconds (embedding included). ``times``: one an answer and decoding mode.
    """
    refiner, answers, times, rows = refiner or NoRefiner(), {}, [], []
    ids = {name: [sample.id for sample in samples] for name, samples in sets.items()}
    jobs = [(config, s, folder) for config, seeds in found.items() for s, folder in seeds.items()]
    for config, s, folder in tqdm(jobs, desc="answer", unit="adapter", disable=not progress):
        timed = n_timed if s == min(found[config]) else 0
        done = _kept(keep, config.name(s), keep and [ids, timed, _digest(folder)],
                     partial(_answered, opening, folder, config, sets, timed, batch))
        answers[config, s] = done["answers"]
        times += done["times"]
    for name, samples in sets.items():
        about = keep and [ids[name], [_digest(folder) for *_, folder in jobs], seed, refiner.name]
        bar = tqdm(samples, desc=f"refine {name}", unit="request", disable=not (progress and jobs))
        rows += _kept(keep, f"refined-{name}", about, lambda name=name, bar=bar: [
            {"set": name, **row} for k, sample in enumerate(bar) for row in _scored(
                sample, {job: said[name][k] for job, said in answers.items()}, refiner, seed)])
    return pd.DataFrame(rows), pd.DataFrame(times)


def _kept(folder: Path | None, name: str, about, make):
    """What ``make`` returned about the same before, where that was kept; what it returns now else."""
    if folder is None:
        return make()
    told = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:12]
    file = Path(folder) / f"{re.sub(r'[^A-Za-z0-9+-]+', '_', name)}-{told}.json"
    if not file.is_file():
        write_json(file, make())
    return json.loads(file.read_text())


def _digest(adapter: Path) -> str:
    return hashlib.sha256((Path(adapter) / "adapter_model.safetensors").read_bytes()).hexdigest()


def _answered(opening, adapter: Path, config: RunConfig, sets, n_timed: int, batch: int) -> dict:
    """``answers``: set -> (COCO's RLE of the mask, tokens) a sample; ``times``: rows."""
    model, times = load_backbone(**opening or {}, adapter=adapter), []
    answers = {name: [(to_rle(parsed.masks[0]), said.n_tokens)
                      for said, parsed in answered(model, samples, config, batch=batch)]
               for name, samples in sets.items()}
    timed = next(iter(sets.values()))[:n_timed]
    for mode in ("plain", "fast") if timed else ():
        answered(model, timed[:1], config, mode=mode)  # warms up
        said = [answered(model, [sample], config, mode=mode)[0][0] for sample in timed]
        times += [{"encoding": config.encoding, "grid": config.grid_size, "decoding": mode, "id": sample.id,
                   "tokens": one.n_tokens, "seconds": one.seconds} for sample, one in zip(timed, said)]
    return {"answers": answers, "times": times}


def _scored(sample, answers: Mapping[tuple, tuple], refiner, seed: int) -> list[dict]:
    """Rows of one request: every adapter's mask, as it is and refined."""
    if not answers:
        return []
    coarse = np.array([from_rle(mask) for mask, _ in answers.values()])
    nothing = np.zeros(len(coarse), bool)
    cases = {"none": (coarse, nothing, 0.0)}
    if refiner.name not in cases:
        cases[refiner.name] = (_refined(sample, coarse, refiner, seed) if coarse.any()
                               else (coarse, nothing, 0.0))  # no reason to look at the picture
    return [{"id": sample.id, "config": config.name(), "encoding": config.encoding,
             "grid": config.grid_size, "seed": s, "refiner": name,
             **pixel_counts(masks[k], sample.masks[0]), "fallback": bool(fell[k]),
             "tokens": answers[config, s][1], "refine_seconds": each if coarse[k].any() else 0.0}
            for name, (masks, fell, each) in cases.items() for k, (config, s) in enumerate(answers)]


def _refined(sample, coarse: np.ndarray, refiner, seed: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Masks, fallbacks, and the seconds that one answer alone would have cost."""
    start = time.perf_counter()
    refiner.set_image(sample.pixels())
    embedded = time.perf_counter()
    done = refiner.refine(coarse, seed=seed)
    # each answer alone would pay for the embedding, and for its share of the decoder
    share = (time.perf_counter() - embedded) / coarse.any((1, 2)).sum()
    return done.masks, done.fallback, embedded - start + share


def measure_limits(sets: Mapping[str, Sequence], grid_sizes: Sequence[int] = (16, 24, 32)) -> pd.DataFrame:
    """The ceilings on the same requests: true masks through the same grids, without a refiner."""
    return pd.DataFrame([{"set": name, **row, "grid": int(row["grid"])}
                         for name, samples in sets.items()
                         for row in oracle_table(samples, grid_sizes, ["area"], progress=False)[0]])


def measure_again(found: Trained, sets: Mapping[str, Sequence], rows: pd.DataFrame) -> pd.DataFrame:
    """Answer some of the requests behind finished rows once more, without a refiner.

    Args:
        found: from `t4s_helpers.lab.ablations.design.trained`; of each, the first seed answers.
        sets: name -> some of the samples that the rows of `measure` are about.

    Returns:
        one row a configuration: ``config``, ``asked``, and ``same``, how many answers have the tokens and
        the pixels of their row. Where two tokens are all but equally likely, another processor's
        rounding can choose the other. An `AblationError`: the rows are about other requests.
    """
    again, _ = measure({config: dict([min(seeds.items())]) for config, seeds in found.items() if seeds}, sets,
                       progress=False)
    keys, values = ["set", "id", "config", "seed"], ["tokens", "intersection", "predicted"]
    before = rows.loc[rows["refiner"] == "none", keys + values]
    both = again[keys + values].merge(before, "left", on=keys, suffixes=("", " before"), indicator=True)
    if len(missing := both[both["_merge"] != "both"]):
        row = missing.iloc[0]
        raise AblationError(f"The table has no row of {row['set']} {row['id']} by {row['config']}, seed "
                            f"{row['seed']}: it is of other adapters or requests. Make it again with "
                            "'python -m t4s_helpers.lab.ablations measure'.")
    both["same"] = (both[values].to_numpy() == both[[f"{name} before" for name in values]].to_numpy()).all(1)
    return both.groupby("config", sort=False)["same"].agg(asked="size", same="sum").reset_index()


def gallery(found: Trained, samples: Sequence, refiner, backbone: str = "embedded",
            grid_sizes: Sequence[int] = (16, 24, 32), seed: int = 0) -> list[dict]:
    """Answers to keep, of a perfect model and each paper encoding's first seed, with their masks.

    Returns:
        a row for each answer and refiner: ``id``, ``writer`` ("model" or "true mask"), ``encoding``,
        ``grid``, ``text``, ``refiner``, and ``mask``, the counts of COCO's compressed RLE where a refiner
        made one; for `t4s_helpers.workbook.explorers.AblationExplorer`.
    """
    cases = [("true mask", get_encoding("rrle", side), None) for side in grid_sizes]
    cases += [("model", get_encoding(config.encoding, config.grid_size), min(seeds.items())[1])
              for config, seeds in found.items() if seeds and config.encoding in PAPER_ENCODINGS]
    rows = []
    for writer, encoding, adapter in cases:
        texts = ([wrap(encoding.encode(one.grid(encoding.grid_size), one.labels), "") for one in samples]
                 if adapter is None else [said.text for said, _ in answer_samples(
                     load_backbone(backbone, adapter=adapter), samples, encoding, progress=False)])
        rows += [{"id": one.id, "writer": writer, "encoding": encoding.name, "grid": encoding.rows,
                  "text": text, "refiner": "none", "mask": ""} for one, text in zip(samples, texts)]
    refined = []
    for sample in samples:  # a picture is embedded once
        own = [row for row in rows if row["id"] == sample.id]
        coarse = np.concatenate([parse_answer(row["text"], sample.labels, sample.size, get_encoding(
            row["encoding"], row["grid"])).masks for row in own])
        masks = _refined(sample, coarse, refiner, seed)[0] if coarse.any() else coarse
        refined += [{**row, "refiner": refiner.name, "mask": rle.encode(np.asfortranarray(mask, np.uint8))[
            "counts"].decode()} for row, mask in zip(own, masks)]
    return rows + refined


def measure_levers(found: Trained, levers: Mapping[str, RunConfig], targets: Sequence,
                   questions: Sequence = (), opening: Mapping[str, Any] | None = None, batch: int = 32,
                   keep: Path | None = None) -> pd.DataFrame:
    """What each lever is worth: masks of targets, and answers to questions.

    Args:
        levers: `t4s_helpers.lab.ablations.design.levers`, row -> configuration; the adapters of the first
            also answer by expected IoU.
        targets: samples of one target, ``questions``: of questions, which the bare base answers too.
        found, opening, keep: as in `measure`.

    Returns:
        one row an answer: ``lever``, ``seed``, ``id``, and for a target pixel counts and ``tokens``, for a
        question ``score``.
    """
    jobs = [(row, config, s, folder) for row, config in levers.items() for s, folder in found[config].items()]
    jobs += [(BASE, DESIGN[0], 0, None)] if jobs and len(questions) else []
    asked, out = [[one.id for one in samples] for samples in (targets, questions)], []
    for row, config, s, folder in tqdm(jobs, desc="levers", unit="adapter", disable=keep is None):
        draws = {row: 1, EXPECTED: DRAWS} if row == next(iter(levers)) else {row: 1} if folder else {}
        rows = _kept(keep, f"lever {row} {s}", keep and [asked, folder and _digest(folder)], partial(
            _lever_rows, opening, folder, config, targets, questions, draws, batch))
        out += [{"lever": row, "seed": s, **one} for one in rows]
    return pd.DataFrame(out)


def _lever_rows(opening, adapter, config: RunConfig, targets, questions, draws, batch: int) -> list[dict]:
    model = load_backbone(**opening or {}, adapter=adapter)
    rows = [{"lever": name, "id": sample.id, "tokens": said.n_tokens,
             **pixel_counts(parsed.masks[0], sample.masks[0])} for name, n in draws.items()
            for sample, (said, parsed) in zip(targets, answered(model, targets, config, n, batch=batch))]
    scored = evaluate(model, questions, config.text, batch=batch, progress=False)[0] if questions else []
    return rows + [{"id": row["id"], "score": row["score"]} for row in scored]


def text_costs(samples: Sequence, tokenizer, grid_sizes: Sequence[int] = (16, 24, 32),
               encodings: Sequence[str] = PAPER_ENCODINGS, word: str | None = None) -> pd.DataFrame:
    """Tokens of the true descriptors: one row a sample, encoding and grid.

    Args:
        tokenizer: from `t4s_helpers.model.chat.load_tokenizer`.
        word: label in the descriptor of a sample with one label; None: its own labels.
    """
    rows = []
    for sample in samples:
        labels = sample.labels if word is None else (word,)
        for encoding in (get_encoding(name, side) for side in grid_sizes for name in encodings):
            text = encoding.encode(encoding.from_masks(sample.masks, objects=sample.instances()), labels)
            rows.append({"id": sample.id, "encoding": encoding.name, "grid": encoding.rows,
                         "tokens": count_tokens(tokenizer, text)})
    return pd.DataFrame(rows)
