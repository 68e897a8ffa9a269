"""The runner, on tiny notebooks in real kernels."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from t4s_helpers.evaluation import provenance
from t4s_helpers.files import ROOT, clear_errors
from t4s_helpers.workbook import plan, results, runner

pytestmark = pytest.mark.timeout(600)

FIRST = """
import os, sys, time, warnings
from pathlib import Path
from t4s_helpers.workbook.results import headline, run_folder, save_table
folder = run_folder("01_first", PROFILE)
weight = bytearray(b"1" * 120_000_000)
time.sleep(2)  # long enough to be seen also where the machine is busy
save_table([{"steps": STEPS, "text": TEXT, "cwd": os.getcwd(), "exe": sys.executable}], "t")
headline("first.steps", STEPS, "steps", 1)
print(folder, Path.home())
"""
LAST = """
if MODE == "error":
    1 / 0
if MODE == "exit":
    sys.exit(0)
if MODE == "die":
    os.kill(os.getpid(), 9)
if MODE == "forget":
    (folder / "t.csv").unlink()
"""
SECOND = """
import pandas
from t4s_helpers.workbook.results import finished_folder, headline, run_folder, save_table
run_folder("02_second", PROFILE)
save_table(pandas.read_csv(finished_folder("01_first") / "t.csv"), "copy")
headline("second.rows", 1, "rows", 1)
"""


def write(folder, name, *cells, **metadata):
    parameters = "PROFILE = 'cpu'  # name\nSTEPS = 3  # steps\nTEXT = 'a'  # any\nMODE = ''  # kind"
    nodes = [new_code_cell(parameters, metadata={"tags": ["parameters"]})]
    nodes += [new_code_cell(cell.strip()) for cell in cells]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    metadata = {"t4s": metadata, "kernelspec": kernel}
    folder.mkdir(exist_ok=True)
    nbformat.write(new_notebook(cells=nodes, metadata=metadata), folder / f"{name}.ipynb")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A workbook of three notebooks that has been run once: (folder, results, outcomes)."""
    top = tmp_path_factory.mktemp("workbook")
    notebooks = top / "notebooks"
    (notebooks / "params").mkdir(parents=True)
    for profile in ("cpu", "gpu"):
        (notebooks / "params" / f"{profile}.yaml").write_text("common: {STEPS: 4}\n")
    write(notebooks, "01_first", FIRST, LAST, "print('end')", produces=["01_first/t.csv"])
    write(notebooks, "02_second", SECOND, produces=["02_second/copy.json"])
    write(notebooks / "solutions", "02_second", SECOND)
    write(notebooks, "03_gpu", "raise SystemExit('never run here')", needs="cuda")
    with pytest.MonkeyPatch.context() as patch:
        settle(patch, top)
        environment = dict(os.environ)
        outcomes = runner.run_plan(plan.make_plan(notebooks, settings=["TEXT=b c"]))
        assert dict(os.environ) == environment
    return top, notebooks, top / "results", outcomes


def settle(patch, top):
    patch.setenv("T4S_RESULTS", str(top / "results"))
    patch.setenv("MPLBACKEND", "Agg")
    patch.setattr(provenance, "cuda_device", lambda: "")
    patch.setattr(plan, "package_digest", lambda: "this package")


@pytest.fixture
def workbook(home, monkeypatch):
    settle(monkeypatch, home[0])
    return home


def content(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*"))
            if p.is_file() and ".failed" not in p.parts}


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


# --- a run that succeeds


def test_outcomes_say_what_happened(workbook):
    outcomes = workbook[3]
    assert [(o.notebook, o.status, o.headline) for o in outcomes] == [
        ("01_first", "ok", "first.steps = 4 steps"),
        ("02_second", "ok", "second.rows = 1 rows"),
        ("03_gpu", "skipped: needs a CUDA GPU", ""),
    ]


def test_everything_lies_in_the_notebooks_folder_and_nothing_else(workbook):
    assert sorted(content(workbook[2])) == [
        "01_first/01_first.ipynb", "01_first/headline.json", "01_first/manifest.json",
        "01_first/t.csv", "01_first/t.json",
        "02_second/02_second.ipynb", "02_second/copy.csv", "02_second/copy.json",
        "02_second/headline.json", "02_second/manifest.json", "summary.json",
    ]
    assert not (workbook[2] / runner.STAGING).exists()


def test_the_kernel_has_its_parameters_its_place_and_this_python(workbook):
    import sys

    _, notebooks, folder, _ = workbook
    row = read(folder / "01_first" / "t.json")[0]
    assert (row["steps"], row["text"], row["cwd"]) == (4, "b c", str(notebooks))
    assert Path(row["exe"]).samefile(sys.executable)


def test_the_manifest_tells_how_it_came_about(workbook):
    manifest = read(workbook[2] / "01_first" / "manifest.json")
    assert manifest["status"] == "ok" and manifest["profile"] == "cpu"
    assert manifest["parameters"] == {"PROFILE": "cpu", "STEPS": 4, "TEXT": "b c", "MODE": ""}
    assert manifest["command"].endswith("--only 01 --set 'TEXT=b c'")
    assert 120 < manifest["peak_memory_mb"] < 1000
    assert manifest["seconds"] > 0 and manifest["device"] and manifest["versions"]["python"]
    assert set(manifest["produces"]) == {"headline.json", "t.csv", "t.json"}
    assert {"commit", "dirty", "package", "source", "started"} <= set(manifest)
    second = read(workbook[2] / "02_second" / "manifest.json")
    assert second["reads"] == {"01_first": manifest["started"]}


def test_the_summary_is_merged_and_sorted(workbook):
    rows = read(workbook[2] / "summary.json")
    assert [(r["name"], r["value"], r["notebook"]) for r in rows] == [
        ("first.steps", 4, "01_first"), ("second.rows", 1, "02_second")]
    assert all(tuple(r) == results.HEADLINE_FIELDS for r in rows)
    assert rows[0]["command"].endswith("--only 01 --set 'TEXT=b c'")


def test_the_executed_copy_has_outputs_and_no_private_folders(workbook):
    top, _, folder, _ = workbook
    text = (folder / "01_first" / "01_first.ipynb").read_text()
    node = nbformat.reads(text, as_version=4)
    printed = "".join(o.text for c in node.cells for o in c.outputs if o.output_type == "stream")
    assert "results/01_first ~" in printed and "end" in printed
    assert str(top) not in text and str(Path.home()) + "/" not in text
    assert [c.execution_count for c in node.cells] == [1, 2, 3, 4, 5]


def test_the_source_notebook_is_not_touched(workbook):
    node = nbformat.read(workbook[1] / "01_first.ipynb", as_version=4)
    assert len(node.cells) == 4 and all(not c.outputs for c in node.cells)


# --- resuming


def test_resume_keeps_what_is_up_to_date(workbook):
    _, notebooks, folder, _ = workbook
    before = content(folder)
    same = plan.make_plan(notebooks, settings=["TEXT=b c"], resume=True)
    assert [o.status for o in runner.run_plan(same)][:2] == ["kept", "kept"]
    assert content(folder) == before


def test_resume_sees_every_kind_of_change(workbook, monkeypatch):
    _, notebooks, folder, _ = workbook
    first, second = plan.make_plan(notebooks).notebooks[:2]

    def current(notebook, settings=("TEXT=b c",)):
        made = plan.make_plan(notebooks, settings=list(settings), resume=True)
        return runner.up_to_date(made, notebook)

    assert current(first) and current(second)
    assert not current(first, settings=["TEXT=other"])
    assert not current(replace(first, digest="another digest"))
    assert not current(replace(first, produces=("01_first/x.png",)))
    monkeypatch.setattr(plan, "package_digest", lambda: "another package")
    assert not current(first)
    monkeypatch.undo()
    settle(monkeypatch, workbook[0])
    manifest = folder / "01_first" / "manifest.json"
    old = manifest.read_text()
    manifest.write_text(old.replace('"started": "', '"started": "later'))
    try:
        assert current(first) and not current(second), "its input has new results"
    finally:
        manifest.write_text(old)


# --- runs that fail


@pytest.mark.parametrize("mode, words", [
    ("error", ["01_first failed in cell [4] with ZeroDivisionError: division by zero",
               "|     1 / 0", "----> 2     1 / 0"]),
    ("exit", ["ended early", "sys.exit()", "|     sys.exit(0)"]),
    ("die", ["The kernel died", "|     os.kill(os.getpid(), 9)"]),
    ("forget", ["did not make 01_first/t.csv"]),
])
def test_a_failure_shows_its_cell_and_leaves_results_as_they_were(workbook, capsys, mode, words):
    _, notebooks, folder, _ = workbook
    before = content(folder)
    assert runner.run_series(settings=[f"MODE={mode}"], folder=notebooks) == 1
    text = capsys.readouterr().out
    for word in words:
        assert word in text
    assert "\x1b" not in text
    assert "--resume" in text and "not run" in text
    assert re.search(r"Memory in use at most: [1-9]\d+ MB", text)
    assert content(folder) == before
    failed = folder / ".failed" / "01_first"
    assert read(failed / "manifest.json")["status"] == "failed"
    assert (failed / "01_first.ipynb").is_file() and str(failed) in text


def test_two_notebooks_with_one_headline_name_are_told(workbook, capsys):
    _, notebooks, folder, _ = workbook
    before = content(folder)
    write(notebooks, "04_thief", SECOND.replace("02_second", "04_thief"))
    try:
        assert runner.run_series(only=["04"], folder=notebooks) == 1
    finally:
        (notebooks / "04_thief.ipynb").unlink()
    assert "second.rows" in capsys.readouterr().out
    assert content(folder) == before


def test_a_full_disk_while_finishing_leaves_results_as_they_were(workbook, capsys, monkeypatch):
    _, notebooks, folder, _ = workbook
    before, honest = content(folder), runner.write_json

    def full_for_the_summary(path, data):
        if path.name.startswith("summary"):
            with clear_errors(path, 9):
                raise OSError(28, "No space left on device")
        return honest(path, data)

    monkeypatch.setattr(runner, "write_json", full_for_the_summary)
    assert runner.run_series(only=["01"], folder=notebooks) == 1
    out = capsys.readouterr().out
    assert "disk is full" in out and "free some space" in out
    assert content(folder) == before


def test_solutions_leave_the_notebooks_results_and_the_summary_alone(workbook):
    _, notebooks, folder, _ = workbook
    before = content(folder)
    assert runner.run_series(solutions=True, folder=notebooks) == 0
    after = content(folder)
    new = {name for name in after if name not in before}
    assert {name: after[name] for name in before} == before
    assert "solutions/02_second/copy.csv" in new and all(n.startswith("solutions/") for n in new)
    shutil.rmtree(folder / "solutions")


# --- requests that cannot be met, without a kernel


@pytest.mark.parametrize("request_, word", [
    ({"settings": ["STEPPS=1"]}, "nearest known name is STEPS"),
    ({"only": ["09"]}, "01_first"),
    ({"profile": "tpu"}, "cpu, gpu"),
    ({"folder": ROOT / "t4s_helpers"}, "no notebooks"),
])
def test_a_wrong_request_ends_before_anything_runs(workbook, capsys, request_, word):
    before = content(workbook[2])
    assert runner.run_series(**{"folder": workbook[1]} | request_) == 2
    captured = capsys.readouterr()
    assert word in captured.err and captured.out == ""
    assert content(workbook[2]) == before


def test_only_takes_commas(workbook, monkeypatch):
    asked = []
    monkeypatch.setattr(runner, "run_plan", lambda made: asked.extend(made.notebooks) or [])
    assert runner.run_series(only=["01,02", "3"], folder=workbook[1]) == 0
    assert [n.name for n in asked] == ["01_first", "02_second", "03_gpu"]


# --- putting results in place


def test_swap_brings_the_old_folder_back_when_it_fails(tmp_path, monkeypatch):
    place, new = tmp_path / "01_a", tmp_path / runner.STAGING / "01_a.1"
    place.mkdir()
    (place / "x").write_text("old")
    new.mkdir(parents=True)
    honest = os.rename

    def fails_for_new(source, target):
        if Path(source) == new:
            raise PermissionError(13, "no")
        honest(source, target)

    monkeypatch.setattr(runner.os, "rename", fails_for_new)
    with pytest.raises(PermissionError):
        runner.swap_in(new, place)
    assert (place / "x").read_text() == "old"


def test_recovery_after_being_killed_between_the_two_moves(tmp_path):
    staging = tmp_path / runner.STAGING
    nobody = 2**22 + 1  # above the largest process number
    for name in ("01_a.old", "02_b.old", f"03_c.{nobody}", f"04_d.{os.getpid()}"):
        (staging / name).mkdir(parents=True)
        (staging / name / "x").write_text(name)
    (staging / f"summary.{nobody}").write_text("half")
    (tmp_path / "02_b").mkdir()
    runner.recover(tmp_path)
    assert (tmp_path / "01_a" / "x").read_text() == "01_a.old"
    assert sorted(p.name for p in staging.iterdir()) == [f"04_d.{os.getpid()}"]
    assert (tmp_path / "02_b").is_dir()


# --- the executed copy


def test_a_large_copy_is_made_small_and_stays_a_picture(tmp_path, capsys):
    import io

    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    smooth = np.cumsum(rng.normal(size=(700, 700, 3)), axis=1)
    picture = 127 + 110 * np.tanh(smooth / 40) + rng.integers(-6, 7, size=smooth.shape)
    picture = Image.fromarray(np.uint8(picture))
    png = io.BytesIO()
    picture.save(png, format="PNG")
    encoded = base64.b64encode(png.getvalue()).decode()
    assert len(encoded) > runner.COPY_LIMIT
    output = new_output("display_data", data={"image/png": encoded, "text/plain": "figure"})
    notebook = new_notebook(cells=[new_code_cell("show()", outputs=[output])])
    path = tmp_path / "01_a.ipynb"
    nbformat.write(notebook, path)
    runner.tidy_copy(path, tmp_path)
    assert path.stat().st_size < runner.COPY_LIMIT and capsys.readouterr().err == ""
    data = nbformat.read(path, as_version=4).cells[0].outputs[0].data["image/png"]
    small = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"), float)
    assert np.abs(small - np.asarray(picture, float)).mean() < 12


def test_folders_are_hidden_only_where_they_stand_alone():
    root = str(ROOT)
    patterns = [(re.compile(r"(?<![\w.-])" + re.escape(root) + r"(?![\w.-])"), ".")]
    stream = new_output("stream", text=f"{root}/x.py:3 {root}x /a{root}/b")
    assert runner.hide_folders(stream, patterns).text == f"./x.py:3 {root}x /a{root}/b"
    shown = new_output("display_data", data={"image/png": root, "text/plain": [root]})
    hidden = runner.hide_folders([shown], patterns)[0]
    assert hidden.data == {"image/png": root, "text/plain": ["."]}


def test_the_closing_table_lists_every_notebook():
    table = runner.summary_table([
        runner.Outcome("00_start_here", "ok", 4.25, "codec.round_trip = 100 %"),
        runner.Outcome("04_qlora_finetuning", "failed"), runner.Outcome("05_decoding", "not run")])
    lines = table.splitlines()
    assert lines[0].split() == ["notebook", "seconds", "status", "headline"]
    assert lines[1].endswith("codec.round_trip = 100 %") and "4.2" in lines[1]
    assert [line.split()[0] for line in lines[1:]] == [
        "00_start_here", "04_qlora_finetuning", "05_decoding"]
