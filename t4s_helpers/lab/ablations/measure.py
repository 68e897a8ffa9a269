"""Measuring the adapters of the ablations: one row an answer, of which every table is made."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from pycocotools import mask as rle
from tqdm.auto import tqdm

from ...codec.encodings import PAPER_ENCODINGS, Encoding, get_encoding, wrap
from ...codec.grid import box_iou, grid_to_masks
from ...data.prompts import ask
from ...data.registry import load
from ...decoding.generate import answer_samples, generate, parse_answer
from ...evaluation.evaluate import evaluate
from ...evaluation.oracle import oracle_table, pixel_counts
from ...evaluation.scoring import box_from_text
from ...files import write_json
from ...model.backbones import load_backbone
from ...model.chat import count_tokens
from ...refine import NoRefiner
from .design import RunConfig, Trained
from .tables import AblationError


def scene_sets(n: int) -> dict[str, list]:
    """The embedded model's splits: held-out scenes, and scenes with unseen colour-shape pairs."""
    return {split: load("scenes", split, n=n, start=8_000) for split in ("test", "novel")}


def component_sets(n: int) -> tuple[list, list]:
    """Targets and questions about held-out scenes for `measure_components`, ``n`` each."""
    return (load("scenes", "test", n=n, start=8_000),
            load("scenes", "test", task="vqa", n=n, start=4_000))


def refer_sets(folder: Path | str, n: int, split: str = "val") -> dict[str, list]:
    """The first ``n`` requests of every RefCOCO data set that lies in a folder (Table 8).

    Raises:
        AblationError: none does.
    """
    there = [name for name, by in (("refcoco", "unc"), ("refcoco+", "unc"), ("refcocog", "umd"))
             if (Path(folder) / name / f"refs({by}).p").is_file()]
    if not there:
        raise AblationError(f"{folder} holds no refcoco, refcoco+ or refcocog; see the README on "
                            "the layout of data.")
    return {f"{name} {split}": load(name, split, folder)[:n] for name in there}


def measure(found: Trained, sets: Mapping[str, Sequence], refiner=None, backbone: str = "embedded",
            n_timed: int = 4, batch: int = 32, seed: int = 0, progress: bool = True,
            keep: Path | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Score every adapter that is there.

    Answers are decoded under the grammar in mode ``fast``, so none is malformed. The masks of all
    adapters for one picture are refined together, on one embedding.

    Args:
        found: from `t4s_helpers.lab.ablations.design.trained`.
        sets: name -> samples of one target.
        refiner: from `t4s_helpers.refine.load_refiner`; None: the coarse masks alone.
        n_timed: requests answered one by one in every decoding mode, for seconds; 0 for none.
        seed: of the refiner's points.
        keep: folder for what is finished, one file an adapter and one a set, from which a call after
            an interruption resumes; None: nothing is kept.

    Returns:
        ``(rows, times)``. ``rows``: one an answer and refiner, with pixel counts, tokens and the
        refiner's seconds (embedding included). ``times``: one an answer and decoding mode.
    """
    refiner = refiner or NoRefiner()
    ids = {name: [sample.id for sample in samples] for name, samples in sets.items()}
    jobs = [(config, s, folder) for config, seeds in found.items() for s, folder in seeds.items()]
    answers, times, rows = {}, [], []
    for config, s, folder in tqdm(jobs, desc="answer", unit="adapter", disable=not progress):
        timed = n_timed if s == min(found[config]) else 0
        about = keep and [ids, timed, _digest(folder)]
        done = _kept(keep, config.name(s), about,
                     partial(_answered, backbone, folder, config, sets, timed, batch))
        answers[config, s] = done["answers"]
        times += done["times"]
    for name, samples in sets.items():
        about = keep and [ids[name], [_digest(folder) for *_, folder in jobs], seed, refiner.name]
        bar = tqdm(samples, desc=f"refine {name}", unit="request", disable=not (progress and jobs))
        rows += _kept(keep, f"refined-{name}", about,
                      partial(_all_scored, name, bar, answers, refiner, seed))
    return pd.DataFrame(rows), pd.DataFrame(times)


def _all_scored(name: str, samples: Iterable, answers: Mapping[tuple, Mapping], refiner, seed: int):
    return [{"set": name, **row} for k, sample in enumerate(samples) for row in _scored(
        sample, {job: said[name][k] for job, said in answers.items()}, refiner, seed)]


def _kept(folder: Path | None, name: str, about, make):
    """What ``make`` returned about the same before, where that was kept; what it returns now else."""
    if folder is None:
        return make()
    told = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:12]
    file = Path(folder) / f"{name.replace('/', '_')}-{told}.json"
    if not file.is_file():
        write_json(file, make())
    return json.loads(file.read_text())


def _digest(adapter: Path) -> str:
    return hashlib.sha256((Path(adapter) / "adapter_model.safetensors").read_bytes()).hexdigest()


def _answered(backbone: str, adapter: Path, config: RunConfig, sets, n_timed: int, batch: int) -> dict:
    """``answers``: set -> (grid as lists, tokens) a sample; ``times``: rows."""
    model = load_backbone(backbone, adapter=adapter)
    encoding = get_encoding(config.encoding, config.grid_size)
    answers = {}
    for name, samples in sets.items():
        out = answer_samples(model, samples, encoding, batch=batch, progress=False)
        answers[name] = [(parsed.grid.tolist(), said.n_tokens) for said, parsed in out]
    timed = next(iter(sets.values()))[:n_timed] if n_timed else []
    return {"answers": answers, "times": _times(model, timed, encoding)}


def _times(model, samples, encoding: Encoding) -> list[dict]:
    rows = []
    for mode in ("plain", "fast") if samples else ():
        options = dict(mode=mode, batch=1, progress=False)
        answer_samples(model, samples[:1], encoding, **options)  # warms up
        for sample in samples:
            [(said, _)] = answer_samples(model, [sample], encoding, **options)
            rows.append({"encoding": encoding.name, "grid": encoding.rows, "decoding": mode,
                         "id": sample.id, "tokens": said.n_tokens, "seconds": said.seconds})
    return rows


def _scored(sample, answers: Mapping[tuple, tuple], refiner, seed: int) -> list[dict]:
    """Rows of one request: every adapter's mask, as it is and refined."""
    if not answers:
        return []
    coarse = np.concatenate([grid_to_masks(np.array(grid), 1, sample.size)
                             for grid, _ in answers.values()])
    nothing = np.zeros(len(coarse), bool)
    cases = {"none": (coarse, nothing, 0.0)}
    if refiner.name not in cases:
        cases[refiner.name] = (_refined(sample, coarse, refiner, seed) if coarse.any()
                               else (coarse, nothing, 0.0))  # no reason to look at the picture
    return [{"id": sample.id, "encoding": config.encoding, "grid": config.grid_size, "seed": s,
             "refiner": name, **pixel_counts(masks[k], sample.masks[0]), "fallback": bool(fell[k]),
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


def measure_again(found: Trained, sets: Mapping[str, Sequence], rows: pd.DataFrame, **more) -> pd.DataFrame:
    """Answer some of the requests behind finished rows once more, without a refiner.

    Args:
        found: from `t4s_helpers.lab.ablations.design.trained`; of each, the first seed answers.
        sets: name -> some of the samples that the rows are about.
        rows: of `measure`, perhaps made on another machine.
        more: for `measure`.

    Returns:
        one row a configuration: ``encoding``, ``grid``, ``asked``, and ``same``, how many answers have
        the tokens and the pixels of their row. Where two tokens are all but equally likely, another
        processor's rounding can choose the other.

    Raises:
        AblationError: the rows are about other requests.
    """
    firsts = {config: dict([min(seeds.items())]) for config, seeds in found.items() if seeds}
    keys, values = ["set", "id", "encoding", "grid", "seed"], ["tokens", "intersection", "predicted"]
    again, _ = measure(firsts, sets, n_timed=0, **more)
    before = rows.loc[rows["refiner"] == "none", keys + values]
    both = again[keys + values].merge(before, "left", on=keys, suffixes=("", " before"), indicator=True)
    if len(missing := both[both["_merge"] != "both"]):
        row = missing.iloc[0]
        raise AblationError(f"The table has no row of {row['set']} {row['id']} by {row['encoding']} at "
                            f"{row['grid']}, seed {row['seed']}: it is of other adapters or requests. Make "
                            "it again with 'python -m t4s_helpers.lab.ablations measure'.")
    both["same"] = (both[values].to_numpy() == both[[f"{name} before" for name in values]].to_numpy()).all(1)
    counted = both.groupby(["encoding", "grid"], sort=False)["same"].agg(asked="size", same="sum")
    return counted.reset_index()


def gallery(found: Trained, samples: Sequence, refiner, backbone: str = "embedded",
            grid_sizes: Sequence[int] = (16, 24, 32), seed: int = 0) -> list[dict]:
    """Answers to keep, of the first seed of every configuration and of a perfect model, with their masks.

    Returns:
        a row for each answer and refiner: ``id``, ``writer`` ("model" or "true mask"), ``encoding``,
        ``grid``, ``text``, ``refiner``, and ``mask``, the counts of COCO's compressed RLE where a refiner
        made one; for `t4s_helpers.workbook.explorers.AblationExplorer`.
    """
    cases = [("true mask", get_encoding("rrle", side), None) for side in grid_sizes]
    cases += [("model", get_encoding(config.encoding, config.grid_size), min(seeds.items())[1])
              for config, seeds in found.items() if seeds]
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


def measure_components(found: Trained, targets: Sequence, questions: Sequence,
                       backbone: str = "embedded", others: Mapping[str, Path | str] | None = None,
                       batch: int = 32, progress: bool = True) -> pd.DataFrame:
    """What each component of the recipe is worth: masks of targets, and answers to questions.

    Args:
        found: from `t4s_helpers.lab.ablations.design.trained`, of `COMPONENTS`.
        targets: samples of one target.
        questions: samples of questions, which the bare backbone answers too.
        others: name -> further adapter, a name or a folder, of 16 x 16 descriptors.

    Returns:
        one row an answer: ``component`` (the configuration's name, ``base`` for the bare backbone, and
        the first configuration's name with ``expected IoU`` where its drawn grids are weighed,
        `t4s_helpers.decoding.confidence.best_expected_iou`), ``seed``, ``id``, and for a target pixel
        counts and ``tokens``, for a question ``score``.
    """
    jobs = [(config.name(), s, folder, config.grid_size) for config, seeds in found.items()
            for s, folder in seeds.items()]
    jobs += [(name, 0, adapter, 16) for name, adapter in (others or {}).items()]
    first, options = next(iter(found)).name(), dict(batch=batch, progress=progress)
    out = _component_rows(load_backbone(backbone), questions, get_encoding(), "base", 0, **options)
    for name, s, adapter, grid_size in jobs:
        model, encoding = load_backbone(backbone, adapter=adapter), get_encoding("rrle", grid_size)
        out += _component_rows(model, targets, encoding, name, s, **options)
        out += _component_rows(model, questions, encoding, name, s, **options)
        if name == first:
            out += _component_rows(model, targets, encoding, f"{name}, expected IoU", s,
                                   expected_iou=8, **options)
    return pd.DataFrame(out)


def _component_rows(model, samples, encoding: Encoding, component: str, seed: int, **options) -> list[dict]:
    rows, _ = evaluate(model, samples, encoding, **options)
    kept = ("id", "intersection", "union", "tokens", "score")
    return [{"component": component, "seed": seed, **{key: row[key] for key in kept if key in row},
             **_box_right(row)} for row in rows]


def _box_right(row: dict) -> dict[str, bool]:
    if "true_box" not in row:
        return {}
    boxes = [box_from_text(row[name]) for name in ("box", "true_box")]
    return {"box_right": None not in boxes and box_iou(*boxes) > 0.5}


def wordings(backbone, samples: Sequence, words: Mapping[str, str | None], encoding: Encoding,
             batch: int = 32) -> pd.DataFrame:
    """Answers whose descriptor names the target in another way than the question.

    The question stays; under the grammar, the descriptor can only use the label given here. No
    adapter was trained on that, so this asks how much an answer hangs on the label's text.

    Args:
        samples: of one target.
        words: name of the wording -> label for every descriptor; None: the expression itself.

    Returns:
        one row a request and wording: ``wording``, ``id``, pixel counts, ``tokens``, ``seconds``.
    """
    asked, rows = [ask(sample) for sample in samples], []
    for name, word in words.items():
        turns = asked if word is None else [replace(turn, labels=(word,)) for turn in asked]
        answers = generate(backbone, [sample.pixels() for sample in samples], [[turn] for turn in turns],
                           encoding, batch=batch, progress=False)
        for sample, turn, said in zip(samples, turns, answers):
            mask = parse_answer(said.text, turn.labels, sample.size, encoding).masks[0]
            rows.append({"wording": name, "id": sample.id, "tokens": said.n_tokens,
                         "seconds": said.seconds, **pixel_counts(mask, sample.masks[0])})
    return pd.DataFrame(rows)


def text_costs(samples: Sequence, tokenizer, grid_sizes: Sequence[int] = (16, 24, 32),
               encodings: Sequence[str] = PAPER_ENCODINGS, word: str | None = None) -> pd.DataFrame:
    """Tokens of the true descriptor of every sample; no model.

    Args:
        tokenizer: from `t4s_helpers.model.chat.load_tokenizer`.
        word: label in the descriptor of a sample with one label; None: its own labels.

    Returns:
        one row a sample, encoding and grid: ``id``, ``encoding``, ``grid``, ``tokens``.
    """
    rows = []
    for sample in samples:
        labels = sample.labels if word is None else (word,)
        for side in grid_sizes:
            for name in encodings:
                encoding = get_encoding(name, side)
                text = encoding.encode(encoding.from_masks(sample.masks, objects=sample.instances()), labels)
                rows.append({"id": sample.id, "encoding": name, "grid": side,
                             "tokens": count_tokens(tokenizer, text)})
    return pd.DataFrame(rows)
