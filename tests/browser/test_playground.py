"""Notebook 09 in a browser."""

from __future__ import annotations


def test_all_cells_run_without_an_error_in_the_console(open_notebook):
    reader = open_notebook("09")
    reader.run_all()
    reader.shot("09")
