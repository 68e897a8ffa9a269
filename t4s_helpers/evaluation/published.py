"""Numbers from papers, each with its source, and what a run may be compared with.

The files are ``results/published/*.csv``, one number a row: ``method``, ``model``, ``group``,
``dataset``, ``split`` (empty where the source does not name it), ``metric`` (in the words of
`t4s_helpers.evaluation.metrics`), ``value``, ``unit`` (% or s), ``reported_by``, ``where``, ``url``,
``note``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ..files import ROOT

FIELDS = ("method", "model", "group", "dataset", "split", "metric", "value", "unit", "reported_by",
          "where", "url", "note")
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
    """All published numbers, files in the order of their names: `FIELDS`, ``value`` a float, and ``file``.

    No files, a missing column, a number without a source, or no number is a `PublishedError`.
    """
    rows = []
    for path in sorted(Path(folder or FOLDER).glob("*.csv")):
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        if tuple(table) != FIELDS:
            raise PublishedError(f"{path} must have the columns {', '.join(FIELDS)}.")
        for number, row in enumerate(table.assign(file=path.name).to_dict("records"), 2):
            if not all(row[key] for key in ("method", "dataset", "metric", "reported_by", "where", "url")):
                raise PublishedError(f"Line {number} of {path} does not say where its number is from.")
            try:
                rows.append({**row, "value": float(row["value"])})
            except ValueError:
                raise PublishedError(f"Line {number} of {path} holds no number: {row['value']!r}.") from None
    if not rows:
        raise PublishedError(f"{folder or FOLDER} holds no published numbers: it comes with the repository.")
    return rows


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
    found = [
        (whole is not None and line["n"] + line["excluded"] < whole,
         f"a part of the split ({line['n']} of {whole})"),
        (line["excluded"], f"{line['excluded']} samples left out"),
        (settings.get("refiner", "none") == "none" and "refiner None" not in number["group"],
         "no refiner here; the paper refines with SAM ViT-H"),
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
