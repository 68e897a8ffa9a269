"""Results: folders, saving, full disks, headline numbers."""

from __future__ import annotations

import csv
import json
import math
import os

import numpy as np
import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from t4s_helpers.files import ROOT, FileError, write_json
from t4s_helpers.workbook import results
from t4s_helpers.workbook.results import ResultsError


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """Every test writes below tmp_path and starts without a current notebook."""
    for name in ("T4S_NOTEBOOK", "T4S_STAGE", "T4S_COMMAND"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("T4S_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(results, "_current", {})
    return tmp_path / "results"


def content(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def saved(name="t"):
    return json.loads((results._current["folder"] / f"{name}.json").read_text(encoding="utf-8"))


# --- folders


def test_profiles_do_not_share_a_folder(own_folder, monkeypatch):
    cpu, gpu = results.run_folder("01_grids", "cpu"), results.run_folder("01_grids", "gpu")
    assert cpu == own_folder / "01_grids" and gpu == own_folder / "gpu" / "01_grids"
    assert cpu.is_dir() and gpu.is_dir()
    monkeypatch.delenv("T4S_RESULTS")
    assert results.results_root() == ROOT / "results"


def test_under_the_runner_the_run_writes_to_its_stage(tmp_path, monkeypatch):
    monkeypatch.setenv("T4S_NOTEBOOK", "01_grids")
    monkeypatch.setenv("T4S_STAGE", str(tmp_path / "stage"))
    assert results.run_folder("01_grids") == tmp_path / "stage"
    with pytest.raises(ResultsError, match=r"01_grids.*finished_folder"):
        results.run_folder("02_runs")


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a b", "x\0", None])
def test_names_cannot_leave_the_folder(name):
    results.run_folder("01_grids")
    for attempt in (lambda: results.save_table([{"a": 1}], name), lambda: results.run_folder(name)):
        with pytest.raises(ResultsError, match="file name"):
            attempt()


def test_what_is_to_be_called_or_run_first_is_told():
    with pytest.raises(ResultsError, match=r"run_folder\("):
        results.save_table([{"a": 1}], "t")
    with pytest.raises(ResultsError, match=r"run it first.*python -m t4s_helpers notebooks .*--only 04"):
        results.finished_folder("04_qlora")


def test_reading_another_notebook_is_recorded_under_the_runner(own_folder, tmp_path, monkeypatch):
    write_json(own_folder / "04_qlora" / "manifest.json", {"started": "then"})
    monkeypatch.setenv("T4S_STAGE", str(tmp_path / "stage"))
    assert results.finished_folder("04_qlora") == own_folder / "04_qlora"
    assert json.loads((tmp_path / "stage" / "reads.json").read_text()) == {"04_qlora": "then"}


# --- tables and figures

cells = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text() | st.floats(
    allow_infinity=False, allow_nan=False)
column = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=8)


@given(st.lists(st.dictionaries(column, cells, min_size=1, max_size=4), min_size=1, max_size=5))
def test_tables_come_back_as_saved(rows):
    results.run_folder("01_grids")
    path = results.save_table(rows, "t")
    columns = list(dict.fromkeys(k for row in rows for k in row))
    assert saved() == [{k: row.get(k) for k in columns} for row in rows]
    with open(path, newline="", encoding="utf-8") as file:
        header, *read = csv.reader(file)
    assert header == [name.replace("\r\n", "\n") for name in columns]
    assert sum(map(bool, read)) <= len(rows)


def test_csv_and_json_agree_and_numpy_scalars_are_plain():
    results.run_folder("01_grids")
    path = results.save_table(
        [{"label": 'a, "b"', "iou": np.float32(0.5), "n": np.int64(3), "ok": np.bool_(True)},
         {"label": "c", "iou": math.nan}], "t")
    assert path.read_text() == 'label,iou,n,ok\n"a, ""b""",0.5,3,True\nc,,,\n'
    assert saved()[1] == {"label": "c", "iou": None, "n": None, "ok": None}
    assert saved()[0]["ok"] is True


def test_a_frame_is_saved_with_its_named_index_alone():
    results.run_folder("01_grids")
    frame = pandas.DataFrame({"data": ["a", "a", "b"], "iou": [0.25, 0.75, None], 16: [1, 2, 3]})
    assert results.save_table(frame.tail(2), "t").read_text() == "data,iou,16\na,0.75,2\nb,,3\n"
    means = frame.groupby("data").mean()
    assert results.save_table(means, "t").read_text() == "data,iou,16\na,0.5,1.5\nb,,3.0\n"
    pandas.testing.assert_frame_equal(
        pandas.read_csv(results._current["folder"] / "t.csv", index_col="data"),
        means.set_axis(["iou", "16"], axis=1), check_dtype=False, check_index_type=False)
    gaps = frame.assign(n=pandas.array([1, None, 3], dtype="Int64"))
    results.save_table(gaps, "t")
    assert [row["n"] for row in saved()] == [1, None, 3]


@pytest.mark.parametrize("value", [math.inf, -math.inf, [1], {"a": 1}, np.zeros(2)])
def test_what_no_table_holds_is_refused_by_column(value, own_folder):
    results.run_folder("01_grids")
    with pytest.raises(ResultsError, match="column iou"):
        results.save_table([{"iou": value}], "t")
    with pytest.raises(ResultsError, match="no rows"):
        results.save_table([], "t")
    assert content(own_folder) == {}


def test_a_figure_is_a_png_and_the_same_each_time(own_folder):
    results.run_folder("01_grids")
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([0, 1], [1, 0])
    first = results.save_figure(figure, "line", dpi=60).read_bytes()
    assert first.startswith(b"\x89PNG") and b"Software" not in first
    assert results.save_figure(figure, "line", dpi=60).read_bytes() == first
    assert len(results.save_figure(figure, "line", dpi=120).read_bytes()) > len(first)
    assert list(content(own_folder)) == ["01_grids/line.png"]


# --- when writing fails


@pytest.mark.parametrize("name, file, attempt", [
    ("t.csv", 1, lambda: results.save_table([{"a": 1}], "t")),
    ("t.json", 2, lambda: results.save_table([{"a": 1}], "t")),
    ("f.png", 1, lambda: results.save_figure(Figure(), "f")),
    ("headline.json", 1, lambda: results.headline("a.b", 1.0, "%", 3)),
])
def test_a_full_disk_is_one_sentence_and_changes_nothing(name, file, attempt, own_folder, monkeypatch):
    folder = results.run_folder("01_grids")
    for old in ("t.csv", "t.json", "headline.json", "f.png"):
        (folder / old).write_bytes(b"old")
    before, handles = content(own_folder), []

    def full_at_this_file(handle):
        handles.append(handle)
        if len(handles) == file:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_at_this_file)
    with pytest.raises(FileError) as caught:
        attempt()
    message = str(caught.value)
    assert name in message and "needs" in message and "disk is full" in message
    assert "free some space" in message and "\n" not in message and content(own_folder) == before


def test_a_folder_that_cannot_be_made_is_explained(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("T4S_RESULTS", str(tmp_path / "file"))
    with pytest.raises(FileError, match="T4S_RESULTS=FOLDER"):
        results.run_folder("01_grids")


@pytest.mark.parametrize("value", [math.nan, {1, 2}])
def test_json_that_is_not_json_is_refused_before_writing(value, tmp_path):
    path = tmp_path / "x.json"
    path.write_text("old")
    with pytest.raises(FileError, match=r"x\.json"):
        write_json(path, value)
    assert path.read_text() == "old"


# --- headline numbers


def test_a_headline_has_all_fields_and_stays_in_order(own_folder):
    results.run_folder("07_evaluation")
    row = results.headline("embedded.res.ciou", np.float64(51.25), "%", 200)
    results.headline("codec.microseconds", 93.0, "µs", 1000)
    assert row == {
        "name": "embedded.res.ciou", "value": 51.25, "unit": "%", "profile": "cpu", "n": 200,
        "notebook": "07_evaluation",
        "command": "python -m t4s_helpers notebooks --profile cpu --only 07",
    }
    assert [r["name"] for r in saved("headline")] == ["embedded.res.ciou", "codec.microseconds"]
    results.run_folder("07_evaluation")  # a new run starts a new list
    results.headline("new.name", 1, "%", 1)
    results.headline("new.name", 2, "%", 1)
    assert [(r["name"], r["value"]) for r in saved("headline")] == [("new.name", 2)]


@pytest.mark.parametrize("bad, word", [
    (("Ciou", 1.0, "%", 5), "dotted"),
    (("a b.c", 1.0, "%", 5), "dotted"),
    (("a.b", math.nan, "%", 5), "finite"),
    (("a.b", True, "%", 5), "finite"),
    (("a.b", "3", "%", 5), "finite"),
    (("a.b", 1.0, "", 5), "unit"),
    (("a.b", 1.0, "%", 0), "samples"),
    (("a.b", 1.0, "%", 2.5), "samples"),
])
def test_a_headline_that_says_nothing_is_refused(bad, word, own_folder):
    results.run_folder("07_evaluation")
    with pytest.raises(ResultsError, match=word):
        results.headline(*bad)
    assert content(own_folder) == {}


def row(name, notebook="01_a", value=1.0, profile="cpu"):
    return {"name": name, "value": value, "unit": "%", "profile": profile, "n": 1,
            "notebook": notebook, "command": f"run {notebook}"}


def test_merging_replaces_only_this_notebooks_rows():
    old = [row("a.x"), row("a.gone"), row("b.x", "02_b"), row("a.x", profile="gpu")]
    fresh = [row("c.new"), row("a.x", value=9.0)]
    new = results.merged_summary(old, "01_a", "cpu", fresh, {"01_a", "02_b"})
    assert [(r["name"], r["profile"], r["value"]) for r in new] == [
        ("a.x", "cpu", 9.0), ("a.x", "gpu", 1.0), ("b.x", "cpu", 1.0), ("c.new", "cpu", 1.0)]
    assert len(old) == 4


def test_two_notebooks_cannot_own_one_name_but_a_notebook_that_is_gone_gives_way():
    old = [row("b.x", "02_b"), row("b.y", "02_b")]
    with pytest.raises(ResultsError, match="02_b"):
        results.merged_summary(old, "01_a", "cpu", [row("b.x")], {"01_a", "02_b"})
    moved = results.merged_summary(old, "01_a", "cpu", [row("b.x")], {"01_a"})
    assert [(r["name"], r["notebook"]) for r in moved] == [("b.x", "01_a")]
