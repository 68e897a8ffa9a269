"""Results: saving, full disks, headline numbers, the README's table."""

from __future__ import annotations

import csv
import json
import math
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t4s_helpers.workbook import results
from t4s_helpers.workbook.results import ResultsError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """Every test writes below tmp_path and starts without a current notebook."""
    for name in ("T4S_NOTEBOOK", "T4S_STAGE", "T4S_COMMAND", "T4S_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("T4S_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(results._Current, "folder", None)
    monkeypatch.setattr(results._Current, "headlines", {})
    return tmp_path / "results"


@pytest.fixture
def full_disk(monkeypatch):
    """Every write meets the real ENOSPC of /dev/full, after a part has reached the file."""
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")

    def write(path, content):
        path.write_bytes(content[: len(content) // 2])
        with open("/dev/full", "wb") as file:
            file.write(content)

    monkeypatch.setattr(results, "_write_bytes", write)


def content(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*")
            if p.is_file()}


# --- folders


def test_profiles_do_not_share_a_folder(own_folder):
    cpu = results.run_folder("01_grids", "cpu")
    gpu = results.run_folder("01_grids", "gpu")
    assert cpu == own_folder / "01_grids" and gpu == own_folder / "gpu" / "01_grids"
    assert cpu.is_dir() and gpu.is_dir()


def test_without_a_variable_the_results_lie_beside_the_package(monkeypatch):
    monkeypatch.delenv("T4S_RESULTS")
    assert results.results_root() == ROOT / "results"


def test_under_the_runner_the_run_writes_to_its_stage(tmp_path, monkeypatch):
    monkeypatch.setenv("T4S_NOTEBOOK", "01_grids")
    monkeypatch.setenv("T4S_STAGE", str(tmp_path / "stage"))
    assert results.run_folder("01_grids") == tmp_path / "stage"
    with pytest.raises(ResultsError, match="01_grids.*finished_folder"):
        results.run_folder("02_runs")


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a b", "x\0", None])
def test_names_cannot_leave_the_folder(name):
    results.run_folder("01_grids")
    with pytest.raises(ResultsError, match="file name"):
        results.save_table([{"a": 1}], name)
    with pytest.raises(ResultsError, match="file name"):
        results.run_folder(name)


def test_saving_without_a_folder_says_what_to_call():
    with pytest.raises(ResultsError, match=r"run_folder\("):
        results.save_table([{"a": 1}], "t")


def test_reading_results_that_are_not_there_names_the_command():
    with pytest.raises(ResultsError, match=r"run it first.*--only 04"):
        results.finished_folder("04_qlora")


def test_reading_another_notebook_is_recorded_under_the_runner(own_folder, tmp_path, monkeypatch):
    other = own_folder / "04_qlora"
    other.mkdir(parents=True)
    results.write_json(other / "manifest.json", {"started": "then"})
    stage = tmp_path / "stage"
    stage.mkdir()
    monkeypatch.setenv("T4S_STAGE", str(stage))
    assert results.finished_folder("04_qlora") == other
    assert json.loads((stage / "reads.json").read_text()) == {"04_qlora": "then"}


# --- tables and figures

cells = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text() | st.floats(
    allow_infinity=False, allow_nan=False
)
column = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=8)


@given(st.lists(st.dictionaries(column, cells, min_size=1, max_size=4), min_size=1, max_size=5))
def test_tables_come_back_as_saved(rows):
    results.run_folder("01_grids")
    results.save_table(rows, "t")
    columns = list(dict.fromkeys(k for row in rows for k in row))
    assert results.load_table("t") == [{k: row.get(k) for k in columns} for row in rows]
    with open(results._Current.folder / "t.csv", newline="", encoding="utf-8") as file:
        read = list(csv.reader(file))
    assert read[0] == columns
    assert len([r for r in read[1:] if r]) <= len(rows)


def test_csv_and_json_agree_and_numpy_scalars_are_plain():
    results.run_folder("01_grids")
    path = results.save_table(
        [{"label": 'a, "b"', "iou": np.float32(0.5), "n": np.int64(3), "ok": np.bool_(True)},
         {"label": "c", "iou": math.nan}], "t")
    assert path.read_text() == 'label,iou,n,ok\n"a, ""b""",0.5,3,True\nc,,,\n'
    assert results.load_table("t")[1] == {"label": "c", "iou": None, "n": None, "ok": None}
    assert results.load_table("t")[0]["ok"] is True


@pytest.mark.parametrize("value", [math.inf, -math.inf, [1], {"a": 1}, np.zeros(2)])
def test_what_no_table_holds_is_refused_by_column(value, own_folder):
    results.run_folder("01_grids")
    with pytest.raises(ResultsError, match="column iou"):
        results.save_table([{"iou": value}], "t")
    assert content(own_folder) == {}


def test_a_missing_table_names_those_that_are_there():
    results.run_folder("01_grids")
    results.save_table([{"a": 1}], "tokens")
    with pytest.raises(ResultsError, match="tokens"):
        results.load_table("token")
    with pytest.raises(ResultsError, match="no rows"):
        results.save_table([], "empty")


def test_a_table_of_another_notebook_can_be_read():
    results.run_folder("01_grids")
    results.save_table([{"a": 1}], "t")
    results.run_folder("02_runs")
    assert results.load_table("t", notebook="01_grids") == [{"a": 1}]


def test_a_figure_is_a_png_and_the_same_each_time(own_folder):
    from matplotlib.figure import Figure

    results.run_folder("01_grids")
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([0, 1], [1, 0])
    first = results.save_figure(figure, "line", dpi=60).read_bytes()
    assert first.startswith(b"\x89PNG") and b"Software" not in first
    assert results.save_figure(figure, "line", dpi=60).read_bytes() == first
    larger = results.save_figure(figure, "line", dpi=120).read_bytes()
    assert len(larger) > len(first)
    assert list(content(own_folder)) == ["01_grids/line.png"]


# --- when writing fails


def test_a_full_disk_is_one_sentence_and_changes_nothing(own_folder, full_disk, request):
    folder = own_folder / "01_grids"
    folder.mkdir(parents=True)
    for name in ("t.csv", "t.json", "headline.json", "f.png"):
        (folder / name).write_bytes(b"old")
    before = content(own_folder)
    results.run_folder("01_grids")

    from matplotlib.figure import Figure

    attempts = {
        "t.csv": lambda: results.save_table([{"a": 1}], "t"),
        "f.png": lambda: results.save_figure(Figure(), "f"),
        "headline.json": lambda: results.headline("a.b", 1.0, "%", 3),
    }
    for name, attempt in attempts.items():
        with pytest.raises(ResultsError) as caught:
            attempt()
        message = str(caught.value)
        assert name in message and "needs" in message and "free some space" in message
        assert "\n" not in message
        assert content(own_folder) == before


def test_the_second_file_failing_leaves_the_first_as_it_was(own_folder, monkeypatch):
    results.run_folder("01_grids")
    results.save_table([{"a": 1}], "t")
    before, honest = content(own_folder), results._write_bytes

    def second_fails(path, data):
        if path.name.startswith(".t.json"):
            raise OSError(28, "No space left on device")
        honest(path, data)

    monkeypatch.setattr(results, "_write_bytes", second_fails)
    with pytest.raises(ResultsError, match=r"t\.json.*disk is full"):
        results.save_table([{"a": 2}], "t")
    assert content(own_folder) == before


def test_a_folder_that_cannot_be_made_is_explained(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("T4S_RESULTS", str(tmp_path / "file"))
    with pytest.raises(ResultsError, match="T4S_RESULTS=FOLDER"):
        results.run_folder("01_grids")


def test_json_that_is_not_json_is_refused_before_writing(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("old")
    for value in (math.nan, {1, 2}):
        with pytest.raises(ResultsError, match="x.json"):
            results.write_json(path, value)
    assert path.read_text() == "old"


# --- headline numbers


def test_a_headline_has_all_fields_and_stays_in_order(own_folder):
    results.run_folder("07_evaluation")
    row = results.headline("embedded.res.ciou", np.float64(51.25), "%", 200)
    results.headline("codec.microseconds", 93.0, "µs", 1000, command="make benchmark")
    assert row == {
        "name": "embedded.res.ciou", "value": 51.25, "unit": "%", "profile": "cpu", "n": 200,
        "notebook": "07_evaluation",
        "command": "python -m t4s_helpers.workbook.runner --profile cpu --only 07",
    }
    saved = json.loads((own_folder / "07_evaluation" / "headline.json").read_text())
    assert [r["name"] for r in saved] == ["embedded.res.ciou", "codec.microseconds"]
    assert saved[1]["command"] == "make benchmark"


def test_a_new_run_starts_a_new_list(own_folder):
    results.run_folder("07_evaluation")
    results.headline("old.name", 1, "%", 1)
    results.headline("new.name", 1, "%", 1)
    results.run_folder("07_evaluation")
    results.headline("new.name", 2, "%", 1)
    saved = json.loads((own_folder / "07_evaluation" / "headline.json").read_text())
    assert [(r["name"], r["value"]) for r in saved] == [("new.name", 2)]


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
    new = results.merged_summary(old, "01_a", "cpu", [row("c.new"), row("a.x", value=9.0)])
    assert [(r["name"], r["profile"], r["value"]) for r in new] == [
        ("a.x", "cpu", 9.0), ("a.x", "gpu", 1.0), ("b.x", "cpu", 1.0), ("c.new", "cpu", 1.0)]
    assert len(old) == 4


def test_two_notebooks_cannot_own_one_name():
    old = [row("b.x", "02_b")]
    with pytest.raises(ResultsError, match="02_b"):
        results.merged_summary(old, "01_a", "cpu", [row("b.x")], existing=["01_a", "02_b"])
    moved = results.merged_summary(old, "01_a", "cpu", [row("b.x")], existing=["01_a"])
    assert [r["notebook"] for r in moved] == ["01_a"]


# --- the README


def test_the_readme_table_is_made_between_its_markers(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"top\n{results.README_BEGIN}\nstale\n{results.README_END}\nend\n")
    summary = results.write_json(tmp_path / "summary.json", [row("a|b.x", value=71.23456)])
    assert results.update_readme(readme, summary) is True
    text = readme.read_text()
    assert text.startswith("top\n") and text.endswith("\nend\n") and "stale" not in text
    assert r"| `a\|b.x` | 71.23 % | 1 | cpu | `run 01_a` |" in text
    assert results.update_readme(readme, summary) is False


@pytest.mark.parametrize("text", [
    "no markers", results.README_BEGIN, results.README_END + results.README_BEGIN,
    (results.README_BEGIN + results.README_END) * 2,
])
def test_a_readme_without_one_place_is_left_alone(text, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(text)
    with pytest.raises(ResultsError):
        results.update_readme(readme, tmp_path / "none.json")
    assert readme.read_text() == text


def test_the_command_line_needs_its_word(capsys):
    assert results.main([]) == 2
    assert "readme" in capsys.readouterr().err


def committed_summary():
    """The summary of the last commit, or None: a run on this machine may have made another one."""
    done = subprocess.run(["git", "-C", str(ROOT), "show", "HEAD:results/summary.json"],
                          capture_output=True, text=True)
    return json.loads(done.stdout) if done.returncode == 0 else None


def test_the_readme_shows_the_summary():
    readme, summary = ROOT / "README.md", ROOT / "results" / "summary.json"
    if not readme.is_file() or not summary.is_file():
        pytest.skip("the README or results/summary.json is not there yet")
    text = readme.read_text(encoding="utf-8")
    rows = json.loads(summary.read_text(encoding="utf-8"))
    assert rows == sorted(rows, key=lambda r: (r["name"], r["profile"]))
    assert all(tuple(r) == results.HEADLINE_FIELDS for r in rows)
    known = [r for r in (rows, committed_summary()) if r is not None]
    assert text in [results.readme_with_results(text, r) for r in known], (
        "the README's table is not that of results/summary.json:"
        " run python -m t4s_helpers.workbook.results readme")
