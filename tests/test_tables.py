"""Markdown tables."""

from __future__ import annotations

import numpy as np
import pytest

from t4s_helpers.tables import markdown_table


def test_columns_in_the_order_of_first_appearance_and_gaps_left_empty():
    text = markdown_table([{"a": 1, "b": "x"}, {"c": None, "a": float("nan")}])
    assert text.split("\n") == ["| a | b | c |", "|---:|---|---:|", "| 1 | x |  |", "|  |  |  |"]


def test_what_would_break_the_table_is_written_otherwise():
    text = markdown_table([{"text": "a|b\nc"}])
    assert text.count("\n") == 2 and r"a\|b⏎c" in text


def test_numbers_and_code():
    text = markdown_table(
        [{"n": np.int64(1234567), "x": np.float32(0.5), "yes": True, "t": "a *2"}], "{:.2f}", ["t"]
    )
    assert text.split("\n")[2] == "| 1234567 | 0.50 | True | `a *2` |"
    assert text.split("\n")[1] == "|---:|---:|---|---|"


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="at least one row"):
        markdown_table([])
