"""The runner, on tiny notebooks in real kernels."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from t4s_helpers.evaluation import provenance
from t4s_helpers.files import ROOT
from t4s_helpers.workbook import plan, runner

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
    """A workbook of two notebooks that has been run once: (folder, results, outcomes)."""
    top = tmp_path_factory.mktemp("workbook")
    notebooks = top / "notebooks"
    (notebooks / "params").mkdir(parents=True)
    for profile in ("cpu", "gpu"):
        (notebooks / "params" / f"{profile}.yaml").write_text("common: {STEPS: 4}\n")
    write(notebooks, "01_first", FIRST, LAST, "print('end')", produces=["01_first/t.csv"])
    write(notebooks, "02_second", SECOND, produces=["02_second/copy.json"])
    write(notebooks / "solutions", "02_second", SECOND)
    with pytest.MonkeyPatch.context() as patch:
        settle(patch, top)
        environment = dict(os.environ)
        outcomes = runner.run_plan(plan.make_plan(notebooks, settings=["TEXT=b c"]))
        assert dict(os.environ) == environment
    return notebooks, top / "results", outcomes


def settle(patch, top):
    patch.setenv("T4S_RESULTS", str(top / "results"))
    patch.setenv("MPLBACKEND", "Agg")
    patch.setattr(provenance, "cuda_device", lambda: "")
    patch.setattr(plan, "package_digest", lambda: "this package")


@pytest.fixture
def workbook(home, monkeypatch):
    settle(monkeypatch, home[0].parent)
    return home


@pytest.fixture
def unchanged(workbook):
    """(notebooks, results), of which a test must leave the results as they were."""
    before = content(workbook[1])
    yield workbook[:2]
    assert content(workbook[1]) == before


def content(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*"))
            if p.is_file() and ".failed" not in p.parts}


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


# --- a run that succeeds


def test_everything_lies_in_the_notebooks_folder_and_nothing_else(workbook):
    _, folder, outcomes = workbook
    assert [(o.notebook, o.status, o.headline) for o in outcomes] == [
        ("01_first", "ok", "first.steps = 4 steps"), ("02_second", "ok", "second.rows = 1 rows")]
    assert sorted(content(folder)) == [
        "01_first/01_first.ipynb", "01_first/headline.json", "01_first/manifest.json",
        "01_first/t.csv", "01_first/t.json",
        "02_second/02_second.ipynb", "02_second/copy.csv", "02_second/copy.json",
        "02_second/headline.json", "02_second/manifest.json", "summary.json",
    ]
    assert not (folder / runner.STAGING).exists()


def test_the_manifest_and_the_summary_tell_how_it_came_about(workbook):
    notebooks, folder, _ = workbook
    manifest = read(folder / "01_first" / "manifest.json")
    assert manifest["status"] == "ok" and manifest["profile"] == "cpu"
    assert manifest["parameters"] == {"PROFILE": "cpu", "STEPS": 4, "TEXT": "b c", "MODE": ""}
    assert manifest["command"].endswith("--only 01 --set 'TEXT=b c'")
    assert 120 < manifest["peak_memory_mb"] < 1000
    assert manifest["seconds"] > 0 and manifest["device"] and manifest["versions"]["python"]
    assert set(manifest["produces"]) == {"headline.json", "t.csv", "t.json"}
    assert {"commit", "dirty", "package", "source", "started"} <= set(manifest)
    second = read(folder / "02_second" / "manifest.json")
    assert second["reads"] == {"01_first": manifest["started"]}
    rows = read(folder / "summary.json")
    assert [(r["name"], r["value"], r["notebook"], r["command"]) for r in rows] == [
        ("first.steps", 4, "01_first", manifest["command"]),
        ("second.rows", 1, "02_second", second["command"])]
    row = read(folder / "01_first" / "t.json")[0]
    assert (row["steps"], row["text"], row["cwd"]) == (4, "b c", str(notebooks))
    assert Path(row["exe"]).samefile(sys.executable)


def test_the_executed_copy_has_outputs_and_no_private_folders(workbook):
    notebooks, folder, _ = workbook
    text = (folder / "01_first" / "01_first.ipynb").read_text()
    node = nbformat.reads(text, as_version=4)
    printed = "".join(o.text for c in node.cells for o in c.outputs if o.output_type == "stream")
    assert "results/01_first ~" in printed and "end" in printed
    assert str(notebooks.parent) not in text and str(Path.home()) + "/" not in text
    assert [c.execution_count for c in node.cells] == [1, 2, 3, 4, 5]
    source = nbformat.read(notebooks / "01_first.ipynb", as_version=4)
    assert len(source.cells) == 4 and all(not c.outputs for c in source.cells)


# --- resuming


def test_resume_keeps_what_is_up_to_date_and_sees_every_kind_of_change(unchanged, monkeypatch):
    notebooks, folder = unchanged
    same = plan.make_plan(notebooks, settings=["TEXT=b c"], resume=True)
    assert [o.status for o in runner.run_plan(same)] == ["kept", "kept"]
    first, second = same.notebooks
    assert not runner.up_to_date(plan.make_plan(notebooks, settings=["TEXT=other"]), first)
    assert not runner.up_to_date(same, replace(first, digest="another digest"))
    assert not runner.up_to_date(same, replace(first, produces=("01_first/x.png",)))
    assert not runner.up_to_date(replace(same, package="another package"), first)
    manifest = folder / "01_first" / "manifest.json"
    old = manifest.read_text()
    manifest.write_text(old.replace('"started": "', '"started": "later'))
    try:
        assert runner.up_to_date(same, first)
        assert not runner.up_to_date(same, second), "its input has new results"
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
def test_a_failure_shows_its_cell_and_leaves_results_as_they_were(unchanged, capsys, mode, words):
    notebooks, folder = unchanged
    assert runner.run_series(settings=[f"MODE={mode}"], folder=notebooks) == 1
    text = capsys.readouterr().out
    for word in (*words, "--resume", "not run"):
        assert word in text
    assert "\x1b" not in text
    assert re.search(r"Memory in use at most: [1-9]\d+ MB", text)
    failed = folder / ".failed" / "01_first"
    assert read(failed / "manifest.json")["status"] == "failed"
    assert (failed / "01_first.ipynb").is_file() and str(failed) in text


def test_two_notebooks_with_one_headline_name_are_told(unchanged, capsys):
    notebooks, _ = unchanged
    write(notebooks, "04_thief", SECOND.replace("02_second", "04_thief"))
    try:
        assert runner.run_series(only=["04"], folder=notebooks) == 1
    finally:
        (notebooks / "04_thief.ipynb").unlink()
    assert "second.rows" in capsys.readouterr().out


def test_a_full_disk_while_finishing_leaves_results_as_they_were(unchanged, capsys, monkeypatch):
    honest = runner.write_json

    def full_for_the_summary(path, data):
        if path.name.startswith("summary"):
            raise OSError(28, "No space left on device")
        return honest(path, data)

    monkeypatch.setattr(runner, "write_json", full_for_the_summary)
    assert runner.run_series(only=["01"], folder=unchanged[0]) == 1
    out = capsys.readouterr().out
    assert "disk is full" in out and "free some space" in out


def test_solutions_leave_the_notebooks_results_and_the_summary_alone(unchanged):
    notebooks, folder = unchanged
    before = content(folder)
    assert runner.run_series(solutions=True, folder=notebooks) == 0
    new = content(folder / "solutions")
    assert "02_second/copy.csv" in new and len(content(folder)) == len(before) + len(new)
    shutil.rmtree(folder / "solutions")


def test_a_wrong_request_ends_before_anything_runs(unchanged, capsys):
    assert runner.run_series(settings=["STEPPS=1"], folder=unchanged[0]) == 2
    captured = capsys.readouterr()
    assert "nearest known name is STEPS" in captured.err and captured.out == ""


# --- putting results in place


def test_swap_brings_the_old_folder_back_when_it_fails(tmp_path):
    place, new = tmp_path / "01_a", tmp_path / runner.STAGING / "01_a.1"
    place.mkdir()
    (place / "x").write_text("old")
    new.parent.mkdir()
    with pytest.raises(FileNotFoundError):
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


def test_a_copy_has_a_widgets_picture_in_place_of_the_widget(tmp_path):
    view = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}}
    outputs = [nbformat.v4.new_output("display_data", dict(view, **more))
               for more in ({"image/png": "iVBORw0KGgo="}, {"text/plain": "a bar"})]
    path = tmp_path / "01_x.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x", outputs=outputs)]), path)
    runner.tidy_copy(path, tmp_path)
    picture, bar = (o.data for o in nbformat.read(path, as_version=4).cells[0].outputs)
    assert set(picture) == {"image/png"} and set(bar) == {*view, "text/plain"}


def test_a_large_copy_is_made_small_and_stays_a_picture(tmp_path, capsys):
    rng = np.random.default_rng(0)
    smooth = np.cumsum(rng.normal(size=(700, 700, 3)), axis=1)
    picture = np.uint8(127 + 110 * np.tanh(smooth / 40) + rng.integers(-6, 7, size=smooth.shape))
    png = io.BytesIO()
    Image.fromarray(picture).save(png, format="PNG")
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
    assert np.abs(small - picture).mean() < 12


def test_a_copy_reads_well_without_a_kernel():
    """Progress bars go, an explorer's picture stays, and pictures say what they show."""
    def shown(**data):
        return new_output("display_data", data={
            {"png": "image/png", "widget": runner.WIDGET}.get(name, "text/plain"): text
            for name, text in data.items()})

    notebook = new_notebook(metadata={"widgets": {}}, cells=[
        new_markdown_cell("# A\n\n## How *large*?\n\ntext"),
        new_code_cell("a", outputs=[shown(widget={}, text="0%"), shown(png="x", text="figure")]),
        new_markdown_cell("**What to notice.** It is `large`.\nMore."),
        new_code_cell("b", outputs=[shown(widget={}, png="y", text="VBox()")]),
        new_markdown_cell("No more.")])
    for _ in range(2):  # a copy that was read before stays as it is
        runner.for_reading(notebook)
        (first,), (second,) = notebook.cells[1].outputs, notebook.cells[3].outputs
        assert first.metadata["image/png"].alt == "Figure: How large? It is large."
        assert second.metadata["image/png"].alt == "Figure: How large?"
        assert runner.WIDGET not in second.data and "widgets" not in notebook.metadata


def test_folders_are_hidden_only_where_they_stand_alone():
    root = str(ROOT)
    stream = new_output("stream", text=f"{root}/x.py:3 {root}x /a{root}/b {root}/results/y")
    shown = {root: ".", f"{root}/results": "results"}
    assert runner.hide_folders(stream, shown).text == f"./x.py:3 {root}x /a{root}/b results/y"
    display = new_output("display_data", data={"image/png": root, "text/plain": [root]})
    assert runner.hide_folders([display], shown)[0].data == {"image/png": root, "text/plain": ["."]}
