"""Numbers from papers, each with its source, and what a run may be compared with.

The files are ``results/published/*.csv``, one number a row: ``method``, ``model``, ``group``,
``dataset``, ``split`` (empty where the source does not name it), ``metric`` (in the words of
`t4s_helpers.evaluation.metrics`), ``value``, ``unit`` (% or s), ``reported_by``, ``where``, ``url``,
``note``. ``works.csv`` adds `WORK` to those of a method, or of its model: its name in figures, year
and month of the first version, how masks are written, the network that makes the pixels from that
(or none), and what it was trained on; empty where no source said.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from ..files import ROOT

FIELDS = ("method", "model", "group", "dataset", "split", "metric", "value", "unit", "reported_by",
          "where", "url", "note")
WORK = ("work", "date", "mask", "refiner", "trained_on")
FOLDER = ROOT / "results" / "published"

STANDS_BESIDE = {
    "res": ("refcoco", "val", ("ciou",)), "gres": ("grefcoco", "val", ("giou", "ciou", "n_acc", "t_acc")),
    "rec": ("refcoco", "val", ("acc50",)), "semantic": ("voc-20", "", ("miou",)),
    "vqa": ("gqa", "", ("accuracy",)),
}
"""Task -> the published data set, split and metrics shown beside scores on scenes, for orientation only."""

NEVER = "never comparable: drawn scenes and a tiny model, not photographs and a 7B model"
FULL = {"refcoco": {"val": 10_834, "testA": 5_657, "testB": 5_095},
        "refcoco+": {"val": 10_758, "testA": 5_726, "testB": 4_889},
        "refcocog": {"val": 4_896, "test": 9_602}}
"""Samples of a whole split, where it is known."""


class PublishedError(ValueError):
    """A file of published numbers that cannot be used; the message names file and line."""


def read_published(folder: Path | str | None = None) -> list[dict[str, Any]]:
    """All published numbers, in the order of the files' names: `FIELDS`, ``value`` a float, `WORK`, ``file``.

    No files, a missing column, a number without a source, or no number is a `PublishedError`.
    """
    rows, folder = [], Path(folder or FOLDER)
    works, known = {}, folder / "works.csv"
    if known.is_file():
        table = pd.read_csv(known, dtype=str, keep_default_na=False).set_index(["method", "model"])
        works = table[list(WORK)].to_dict("index")
    for path in sorted({*folder.glob("*.csv")} - {known}):
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        if tuple(table) != FIELDS:
            raise PublishedError(f"{path} must have the columns {', '.join(FIELDS)}.")
        for number, row in enumerate(table.assign(file=path.name).to_dict("records"), 2):
            if not all(row[key] for key in ("method", "dataset", "metric", "reported_by", "where", "url")):
                raise PublishedError(f"Line {number} of {path} does not say where its number is from.")
            try:
                rows.append({**row, **_work(row, works), "value": float(row["value"])})
            except ValueError:
                raise PublishedError(f"Line {number} of {path} holds no number: {row['value']!r}.") from None
    if not rows:
        raise PublishedError(f"{folder} holds no published numbers: it comes with the repository.")
    return rows


def _work(row: Mapping, works: Mapping[tuple[str, str], dict[str, str]]) -> dict[str, str]:
    """`WORK` of a number: a method may carry a citation in brackets, a group may name the refiner."""
    method = row["method"].split(" (")[0]
    found = works.get((method, row["model"])) or works.get((method, "")) or dict.fromkeys(WORK, "")
    _, named, refiner = row["group"].partition("refiner ")
    return {**found, "refiner": refiner} if named else found


def res_averages(published: Sequence[Mapping] | None = None) -> list[dict[str, Any]]:
    """The best mean cIoU over the eight splits of `FULL` of each dated work, in the order of the dates.

    It is the ``value`` of one row of each work in `read_published`. Where a source gives only some
    splits, the mean of the eight that it states counts; a work with neither is left out.
    """
    runs: dict[tuple, dict] = defaultdict(dict)
    for row in read_published() if published is None else published:
        if row["date"] and row["metric"] == "ciou":
            run = tuple(row[key] for key in ("method", "model", "group", "reported_by"))
            runs[run][row["dataset"], row["split"]] = row
    rows = []
    for found in runs.values():
        splits = [row for (name, split), row in found.items() if split in FULL.get(name, ())]
        stated = [found[key] for key in found if key[1] == "mean of 8"]
        if len(splits) == 8:
            stated = [{**splits[0], "value": fmean(row["value"] for row in splits)}]
        rows += stated
    best = {row["work"]: row for row in sorted(rows, key=lambda row: row["value"])}
    return sorted(best.values(), key=lambda row: row["date"])


def beside(lines: Sequence[Mapping], record: Mapping, published: Sequence[Mapping] | None = None,
           task: str | None = None) -> list[dict[str, Any]]:
    """A run's scores, each beside every published number of its data set, split and metric.

    Args:
        lines: of `t4s_helpers.evaluation.scoring.table_rows`; those of the model are used.
        record: of the run, from `t4s_helpers.evaluation.store.read_run`.
        published: from `read_published`, which is the default.
        task: scores as another task's, such as ``rec`` on the masks of ``res``.

    Returns:
        ``task``, ``metric``, ``run`` and ``published`` (both in percent), ``method``, ``group``,
        ``source``, ``dataset``, and the `warning`.
    """
    published = read_published() if published is None else published
    known, out = record.get("data", {}), []
    for line in (line for line in lines if line["who"] == "model"):
        kind = task or line["task"]
        dataset, split, metrics = known.get("name", ""), known.get("split", ""), line
        if dataset in ("", "scenes"):
            dataset, split, metrics = STANDS_BESIDE.get(kind, ("", "", ()))
        out += [{
            "task": kind, "metric": number["metric"],
            "run": round(100 * line[number["metric"]], 2), "published": number["value"],
            "method": " ".join(filter(None, (number["method"], number["model"]))),
            "group": number["group"], "source": f"{number['where']}, {number['reported_by']}",
            "dataset": f"{number['dataset']} {number['split']}".strip(),
            "warning": warning(line, record, number),
        } for number in published if number["dataset"] == dataset and number["split"] in ("", split)
            and number["metric"] in metrics and number["metric"] in line and number["unit"] == "%"]
    return out


def warning(line: Mapping, record: Mapping, number: Mapping) -> str:
    """What speaks against comparing a table's line, of a run with this record, with a published number.

    Words, empty where nothing is known to.
    """
    settings, known = record["settings"], record.get("data", {})
    if known.get("name", "") in ("", "scenes") or settings.get("backbone") == "embedded":
        return NEVER
    whole = FULL.get(known["name"], {}).get(known.get("split"))
    ours, theirs = settings.get("refiner", "none"), number["refiner"] or "not known"
    found = [
        (whole is not None and line["n"] + line["excluded"] < whole,
         f"a part of the split ({line['n']} of {whole})"),
        (line["excluded"], f"{line['excluded']} samples left out"),
        ((ours == "none") != (theirs.lower() == "none"), f"the refiner is {ours} here, {theirs} there"),
        (settings.get("quantized"), "4-bit weights here"),
        (number["metric"] == "miou", "the source does not state its conventions of mIoU"),
        (not number["split"], "the source does not name the split"),
        (number["method"] == "Text4Seg" and number["model"], f"its backbone is {number['model']}, "
         f"here {settings.get('backbone')}"),
        (number["metric"] == "n_acc" and line.get("malformed_rate")
         and not settings.get("protocol", {}).get("malformed_is_rejection"),
         "a malformed answer is no rejection here"),
    ]
    return "; ".join(words for holds, words in found if holds)
