"""Tables as Markdown, and as CSV files that are read back."""

from __future__ import annotations

import numpy as np
import pytest

from t4s_helpers.workbook.results import ResultsError
from t4s_helpers.workbook.tables import markdown_table, read_rows, write_rows


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


def test_rows_come_back_from_csv_as_they_were(tmp_path):
    rows = [{"text": 'b *2, "x"\nc', "n": 3, "share": 0.1 + 0.2, "kept": False},
            {"n": 4, "more": "late"}]
    path = write_rows(rows, tmp_path / "deep" / "rows.csv")
    assert path == tmp_path / "deep" / "rows.csv" and read_rows(path) == rows
    assert read_rows(write_rows([], tmp_path / "none.csv")) == []
    with pytest.raises(FileNotFoundError):
        read_rows(tmp_path / "missing.csv")


def test_a_table_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = write_rows([{"n": 1}], tmp_path / "rows.csv")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(ResultsError):
        write_rows([{"n": 2}], path)
    assert read_rows(path) == [{"n": 1}] and len(list(tmp_path.iterdir())) == 1
