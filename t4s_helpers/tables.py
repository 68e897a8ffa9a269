"""Tables: rows as Markdown for a notebook, cells of a CSV file read back; `t4s_helpers.results` saves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Number
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


def number_or_text(cell: str) -> int | float | str:
    """A cell of a CSV file as what it was: a whole number, a number, else the text.

    >>> number_or_text("16"), number_or_text("0.5"), number_or_text("rrle")
    (16, 0.5, 'rrle')
    """
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
