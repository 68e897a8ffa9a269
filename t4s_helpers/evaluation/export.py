"""Predictions of a run in the forms of other tools, from its rows alone.

``coco`` is COCO's results file, https://cocodataset.org/#format-results. Other evaluators of expressions have no
form for masks: that of https://github.com/lichengunc/refer scores generated sentences, and lmms-eval documents
none for its refcoco tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..files import write_json
from .store import read_run


def coco_results(rows: Sequence[dict], classes: Sequence[str] = ()) -> list[dict]:
    """Masks as COCO's results file lists them; an empty one has no entry.

    Args:
        rows: of `t4s_helpers.evaluation.store.read_run`.
        classes: the run's class list, which numbers categories from 1; an expression's is 1.

    Returns:
        ``image_id`` (the data set's, else the row's number from 1), ``category_id``, ``segmentation`` (RLE)
        and ``score``, 1 as rows hold no confidence; further ``sample_id`` and ``label``, since COCO's
        evaluator puts all expressions about one image together.
    """
    numbers = {name: k for k, name in enumerate(classes, 1)}
    return [{"image_id": row.get("image_id", row["order"] + 1), "category_id": numbers.get(label, 1),
             "segmentation": rle, "score": 1.0, "sample_id": row["id"], "label": label}
            for row in rows for label, rle in row.get("coco_rle", {}).items()]


FORMS = {"coco": coco_results}
"""Name of a form -> function of rows and class list, whose result is written as JSON."""


def export_run(folder: Path | str, form: str = "coco", out: Path | str | None = None) -> Path:
    """Write a run's predictions in one of `FORMS`, by default to ``<form>.json`` in its folder."""
    rows, record = read_run(folder)
    path = Path(out or Path(folder) / f"{form}.json")
    write_json(path, FORMS[form](rows, record["settings"].get("classes", ())))
    return path
