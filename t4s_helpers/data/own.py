"""A user's own data: a folder in COCO's format, or a CSV file of image, expression, mask file."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .sample import Sample, SampleError, read_image

COLUMNS = ("image", "expression", "mask")


@dataclass(frozen=True)
class MaskFile:
    """A mask kept as an image file and read when it is asked for; any non-black pixel belongs."""

    path: Path
    shape: tuple[int, int, int]

    def decode(self) -> np.ndarray:
        """bool ``(1, H, W)``."""
        return _read_mask(self.path)[None]


def load_own(source: str | Path, split: str = "train") -> list[Sample]:
    """Samples from a CSV file (see :func:`load_csv`) or from COCO annotations.

    Parameters
    ----------
    source:
        A file that ends in ``.csv``; or a folder or file for :func:`t4s_helpers.data.coco.load_coco`.
    split:
        Written into the samples.

    Raises
    ------
    SampleError
        From the reader of either form.
    """
    if Path(source).suffix.lower() == ".csv":
        return load_csv(source, split=split)
    from .coco import load_coco

    return load_coco(source, split=split)


def load_csv(path: str | Path, folder: str | Path | None = None, split: str = "train",
             task: str = "res") -> list[Sample]:
    """One sample per line of a CSV file with the columns ``image``, ``expression``, ``mask``.

    Parameters
    ----------
    path:
        The CSV file, UTF-8, with a header line; further columns are kept in ``meta``.
    folder:
        What the file names are relative to; by default the folder of the CSV file.
    split, task:
        Written into the samples.

    Returns
    -------
    Samples in the file's order. An empty ``mask`` is a no-target request (the picture is then
    read once for its size). Pictures and masks stay on disk until they are asked for.

    Raises
    ------
    SampleError
        When the file or a column is missing, when a line has no image or expression, or when a
        file that it names is missing or unreadable; the message names file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise SampleError(f"There is no file {path}; give a CSV file with the columns "
                          f"{', '.join(COLUMNS)}.")
    base = path.parent if folder is None else Path(folder)
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise SampleError(f"{path} has no column {', '.join(missing)}; its first line must "
                              f"name the columns {', '.join(COLUMNS)}.")
        rows = [(reader.line_num, row) for row in reader]
    return [_sample(path, line, row, base, split, task) for line, row in rows]


def _sample(path: Path, line: int, row: dict, base: Path, split: str, task: str) -> Sample:
    image, expression, mask = ((row.get(name) or "").strip() for name in COLUMNS)
    try:
        if not image or not expression:
            raise SampleError("has no image or no expression; fill in both or delete the line.")
        if not (base / image).is_file():
            raise SampleError(f"names the image {base / image}, which does not exist.")
        if mask:
            source = MaskFile(base / mask, (1, *_read_mask(base / mask).shape))
        else:
            source = np.zeros((1, *read_image(base / image).shape[:2]), bool)
        meta = {k: v for k, v in row.items() if k is not None and k not in COLUMNS}
        return Sample(f"{path.stem}/{line}", base / image, (expression,), source, task, split,
                      meta=meta)
    except SampleError as error:
        raise SampleError(f"Line {line} of {path}: {error}") from error


def _read_mask(path: Path) -> np.ndarray:
    """bool ``(H, W)``: the pixels of a mask file that are not black."""
    return read_image(path).any(axis=2)
