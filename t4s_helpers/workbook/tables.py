"""Tables: rows as Markdown for a notebook, and as a CSV file that is read back as it was written.

A notebook's own tables are saved by `t4s_helpers.workbook.results.save_table`.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Number
from pathlib import Path
from typing import Any


def markdown_table(
    rows: Sequence[Mapping[str, Any]], fmt: str = "{:.3g}", code: Sequence[str] = ()
) -> str:
    r"""Rows as a Markdown table.

    Args:
        rows: one mapping per row, column -> value. Columns come in the order in which they first
            appear; a missing value, None and NaN leave the cell empty.
        fmt: how numbers with a fraction are written; whole numbers stay whole.
        code: columns to set in a fixed-width face, for text in which every character counts.

    Raises:
        ValueError: no rows.

    >>> print(markdown_table([{"grid": 16, "IoU": 0.71234}, {"grid": 24}]))
    | grid | IoU |
    |---:|---:|
    | 16 | 0.712 |
    | 24 |  |
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if not columns:
        raise ValueError("A table needs at least one row with one column.")
    sides = ["---:" if _all_numbers(rows, name) else "---" for name in columns]
    lines = [columns, None, *([_cell(row.get(c), fmt, c in code) for c in columns] for row in rows)]
    return "\n".join(
        "|" + "|".join(sides) + "|" if line is None else "| " + " | ".join(line) + " |"
        for line in lines
    )


def write_rows(rows: Sequence[Mapping[str, Any]], path: Path | str) -> Path:
    """Rows as a CSV file, whole or not at all; no rows, an empty file.

    Args:
        rows: one mapping per row. Columns come in the order in which they first appear; a missing
            value and None leave the cell empty.

    Returns:
        the path.

    Raises:
        t4s_helpers.workbook.results.ResultsError: it cannot be written; what was there before still is.
    """
    from ..files import atomic_write

    path = Path(path)
    atomic_write({path: csv_text(rows).encode()})
    return path


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    r"""Rows as the text of a CSV file, as `write_rows` writes it; no rows, no text.

    >>> csv_text([{"grid": 16, "label": "brown dog"}, {"grid": 24}])
    'grid,label\n16,brown dog\n24,\n'
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [columns, *([row.get(name) for name in columns] for row in rows)] if columns else []
    return "".join(_csv_line(line) for line in lines)


def _csv_line(values: Iterable[Any]) -> str:
    # With "\n" as its own line end, csv would leave a carriage return in a value unquoted.
    line = io.StringIO()
    csv.writer(line, lineterminator="\r\n").writerow(values)
    return line.getvalue()[:-2] + "\n"


def read_rows(path: Path | str) -> list[dict[str, Any]]:
    """The rows of a CSV file by `write_rows`; columns without a value in a row are left out of it.

    Raises:
        FileNotFoundError: there is no such file.
    """
    with open(path, newline="", encoding="utf-8") as file:
        return [{name: cell_value(text) for name, text in row.items() if text not in ("", None)}
                for row in csv.DictReader(file)]


def cell_value(cell: str) -> bool | int | float | str:
    """A cell of a CSV file as what it was: true or false, a whole number, a number, else the text.

    >>> cell_value("16"), cell_value("0.5"), cell_value("True"), cell_value("rrle")
    (16, 0.5, True, 'rrle')
    """
    if cell in ("True", "False"):
        return cell == "True"
    for kind in (int, float):
        try:
            return kind(cell)
        except ValueError:
            pass
    return cell


def _all_numbers(rows: Sequence[Mapping[str, Any]], name: str) -> bool:
    values = [row[name] for row in rows if row.get(name) is not None]
    return all(isinstance(v, Number) and not isinstance(v, bool) for v in values)


def _cell(value: Any, fmt: str, code: bool) -> str:
    value = value.item() if hasattr(value, "item") else value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    text = fmt.format(value) if isinstance(value, float) else str(value)
    text = text.replace("\n", "⏎").replace("|", "\\|")
    return f"`{text}`" if code and text else text
