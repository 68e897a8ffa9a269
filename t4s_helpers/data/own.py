"""A user's own data: a folder in COCO's format, or a CSV file of image, expression, mask file."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from .coco import load_coco
from .dataset import LazyMasks
from .sample import Sample, SampleError, read_image

COLUMNS = ("image", "expression", "mask")


def read_mask(path: Path) -> np.ndarray:
    """bool ``(1, H, W)`` of an image file; any non-black pixel belongs."""
    return read_image(path).any(axis=2)[None]


def load_own(source: str | Path, split: str = "train") -> list[Sample]:
    """Samples from a CSV file, or from COCO's folder or file (`load_coco`).

    Args:
        source: a CSV file, UTF-8, with the columns ``image``, ``expression``, ``mask`` named in its
            first line; further columns are kept in ``meta``. Its file names are relative to its folder.
        split: written into the samples.

    Returns:
        One sample per line, of the task ``res``, in the file's order. An empty ``mask`` is a no-target
        request. Pictures and masks stay on disk until they are asked for; they are read once for their
        sizes.

    Raises:
        SampleError: the file or a column is missing, a line has no image or expression, or a file
            that it names is missing or unreadable; the message names file and line.
    """
    path = Path(source)
    if path.suffix.lower() != ".csv":
        return load_coco(path, split=split)
    if not path.is_file():
        raise SampleError(f"There is no file {path}; give a CSV file with the columns "
                          f"{', '.join(COLUMNS)}.")
    samples = []
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise SampleError(f"{path} has no column {', '.join(missing)}; its first line must "
                              f"name the columns {', '.join(COLUMNS)}.")
        for row in reader:
            try:
                samples.append(_sample(f"{path.stem}/{reader.line_num}", row, path.parent, split))
            except SampleError as error:
                raise SampleError(f"Line {reader.line_num} of {path}: {error}") from error
    return samples


def _sample(name: str, row: dict, base: Path, split: str) -> Sample:
    image, expression, mask = ((row.get(column) or "").strip() for column in COLUMNS)
    if not image or not expression:
        raise SampleError("has no image or no expression; fill in both or delete the line.")
    size = read_image(base / (mask or image)).shape[:2]
    if not (base / image).is_file():
        raise SampleError(f"names the image {base / image}, which does not exist.")
    masks = LazyMasks((1, *size), read_mask, (base / mask,)) if mask else np.zeros((1, *size), bool)
    meta = {key: value for key, value in row.items() if key is not None and key not in COLUMNS}
    return Sample(name, base / image, (expression,), masks, split=split, meta=meta)
