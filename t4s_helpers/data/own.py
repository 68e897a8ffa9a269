"""A user's own data: a folder in COCO's format, or a CSV file of image, expression, mask file."""

from __future__ import annotations

import csv
import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from .coco import CocoDataset
from .dataset import BadRow, Dataset, LazyMasks, check_annotation, choose
from .layout import find_file
from .masks import read_mask
from .sample import Sample, SampleError, exif_orientation, image_size

COLUMNS = ("image", "expression", "mask")


def load_own(source: str | Path, split: str = "train", **options: Any) -> Dataset:
    """A `TableDataset` of a CSV file; of any other file or folder a `CocoDataset`. ``options`` are theirs."""
    table = Path(source).suffix.lower() in (".csv", ".tsv", ".txt")
    if table and options.get("task", "ores") != "ores":
        raise SampleError(f"{source} is a table of expressions, whose one other task is ores: leave task out "
                          "or give a COCO folder.")
    return (TableDataset if table else CocoDataset)(Path(source), split=split, **options)


class TableDataset(Dataset):
    """One sample for each line of a CSV file, in its order.

    Args:
        source: a file with the columns ``image``, ``expression``, ``mask`` named in its first line, apart by
            commas, semicolons or tabs; further columns are kept in ``meta``. Its file names are relative to
            its folder. An empty ``mask`` is a no-target request; `t4s_helpers.data.masks.read_mask` says
            what mask files mean.
        split: written into the samples.
        task: ``res``; or ``ores``, where a column ``reference`` may name the file of a mask that stands for
            the word "this" of the expression, as in "all cups left of this".
        encoding: of the file; by default what its first bytes or its content tell.
        apply_exif, checks: see `t4s_helpers.data.dataset.Dataset`. With ``verify`` every mask is read once.

    Raises:
        SampleError: the file or a column is missing, a line has no image or expression, or a file
            that it names is missing, unreadable or of another size; the message names file and line.
    """

    def __init__(self, source: str | Path, split: str = "train", encoding: str | None = None,
                 apply_exif: bool = True, task: str = "res", **checks: Any):
        choose("task", task, ("res", "ores"))
        path, self.apply_exif = Path(source), apply_exif
        super().__init__(path.stem, split, task, path, [
            (line, *_resolved(row, path.parent)) for line, row in _read_table(path, encoding)], **checks)

    def row_id(self, row: tuple) -> str:
        return f"{self.name}/{row[0]}"

    def check(self, row: tuple[int, Path | None, str, Path | None, dict]) -> None:
        line, image, expression, mask, more = row
        try:
            if image is None or not expression:
                raise BadRow("incomplete line", "It has no image or no expression; fill in both or cut it.")
            if any(map(str.strip, more.get(None) or ())):
                raise BadRow("line with too many fields", "It has more fields than the first line names; put "
                             "an expression with a comma into quotation marks.")
            size = None
            if mask is not None:
                check_annotation(mask)
                size = read_mask(mask, self.apply_exif).shape[1:] if self.verify else None
            self.check_image(image, f"mask {mask}" if mask else "this line", size)
            self.make(row)
        except SampleError as fault:
            raise BadRow(getattr(fault, "reason", "unusable sample"),
                         f"Line {line} of {self.source}: {fault}") from fault

    def make(self, row: tuple[int, Path, str, Path | None, dict]) -> Sample:
        _, image, expression, mask, more = row
        meta = {key: value for key, value in more.items() if key is not None}
        if self.task == "ores":
            meta["request"] = "text"
            if name := (meta.pop("reference", "") or "").strip():
                base = self.source.parent
                reference = self._masks(image, find_file(name, [base]) or base / name).decode()[0]
                meta |= {"request": "hybrid", "reference": reference}
        return Sample(self.row_id(row), image, (expression,), self._masks(image, mask), self.task, self.split,
                      meta=meta)

    def _masks(self, image: Path, mask: Path | None) -> LazyMasks:
        """The one mask of a file, upright as the image is shown; an empty one without a file."""
        shape = (1, *image_size(image, self.apply_exif))
        masks = LazyMasks(shape, read_mask, (mask, self.apply_exif)) if mask else LazyMasks(
            shape, np.zeros, (shape, bool))
        return masks if self.apply_exif else masks.turned(exif_orientation(image))


def _resolved(row: dict[Any, Any], base: Path) -> tuple[Path | None, str, Path | None, dict[Any, Any]]:
    """Image, expression, mask and all else of a line; a file that is not there has its name as written."""
    image, expression, mask = ((row.pop(column) or "").strip() for column in COLUMNS)
    image, mask = (find_file(name, [base]) or (base / name if name else None) for name in (image, mask))
    return image, expression, mask, row


def _read_table(path: Path, encoding: str | None) -> list[tuple[int, dict[str, Any]]]:
    """Number and content of each line."""
    if not path.is_file():
        raise SampleError(f"There is no file {path}; give a CSV file with the columns {', '.join(COLUMNS)}.")
    text = _text(path, encoding)
    header = text.partition("\n")[0]
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count))
    try:
        reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
        if missing := [name for name in COLUMNS if name not in reader.fieldnames]:
            raise SampleError(
                f"{path} has no column {', '.join(missing)}; its first line, {header.strip()!r}, must name "
                f"the columns {', '.join(COLUMNS)}, apart by commas, semicolons or tabs.")
        return [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise SampleError(f"Line {reader.line_num + 1} of {path} is no line of a CSV file ({error}); look "
                          "for a quotation mark that is not closed.") from error


def _text(path: Path, encoding: str | None) -> str:
    """The text of a file: UTF-16 by its first bytes, else UTF-8, else what Excel writes on Windows."""
    data = path.read_bytes()
    utf16 = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"i\0": "utf-16-le", b"\0i": "utf-16-be"}
    for one in (encoding,) if encoding else (utf16.get(data[:2], "utf-8-sig"), "cp1252"):
        try:
            text = data.decode(one)
        except (UnicodeError, LookupError) as error:
            fault = error
            continue
        if one == "cp1252":
            odd = next(line for line in text.splitlines() if not line.isascii())
            warnings.warn(f"{path} is not UTF-8 and was read as Windows-1252, for example {odd[:80]!r}. If "
                          "that is not what you wrote, pass encoding=..., or save it as UTF-8.", stacklevel=2)
        return text
    raise SampleError(f"{path} cannot be read as text ({fault}); save it as UTF-8, or pass encoding=...")
