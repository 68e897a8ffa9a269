"""Predictions of a run for other tools, from its rows alone: https://cocodataset.org/#format-results."""

from __future__ import annotations

from pathlib import Path

from ..data.instances import class_of
from ..files import write_json
from .store import read_run


def export_coco(folder: Path | str, out: Path | str | None = None) -> Path:
    """Write the masks of a run as COCO's results file, by default ``coco.json`` in the run's folder.

    A list with an entry for each mask that is not empty: ``image_id`` (the data set's, else the row's number
    from 1), ``category_id`` (of a class its number from 1 in the run's list, of an expression 1),
    ``segmentation`` (RLE) and ``score``, 1 where rows hold no confidence, as those of single objects do.
    ``sample_id`` and ``label`` are added, for COCO's evaluator puts all expressions about an image together.
    """
    rows, record = read_run(folder)
    numbers = {name: k for k, name in enumerate(record["settings"].get("classes", ()), 1)}
    found = [{"image_id": row.get("image_id", row["order"] + 1),
              "category_id": numbers.get(class_of(label) if row.get("task") == "instances" else label, 1),
              "segmentation": rle, "score": row.get("confidences", {}).get(label, 1.0),
              "sample_id": row["id"], "label": label}
             for row in rows for label, rle in row.get("coco_rle", {}).items()]
    return write_json(Path(out or Path(folder) / "coco.json"), found)
