"""What the runner will do: discovery, the parameters cell, profiles, --set."""

from __future__ import annotations

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from t4s_helpers.workbook import plan
from t4s_helpers.workbook.plan import RunError

PARAMETERS = "PROFILE = 'cpu'  # name\nSTEPS = 3  # steps\nRATE = 2e-4  # per step"


def write(folder, name, parameters=PARAMETERS, **metadata):
    cells = [new_markdown_cell("# Why?\n\n| Minutes | 3 on the CPU |")]
    for source in [parameters] if isinstance(parameters, str) else parameters:
        cells += [new_code_cell(source, metadata={"tags": ["parameters"]})]
    path = folder / f"{name}.ipynb"
    path.parent.mkdir(exist_ok=True)
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(new_notebook(cells=cells, metadata={"t4s": metadata, "kernelspec": kernel}), path)
    return path


@pytest.fixture
def folder(tmp_path):
    for name in ("02_runs", "00_start", "10_beyond", "A1_base", "draft", "solutions/02_runs"):
        write(tmp_path, name)
    (tmp_path / "params").mkdir()
    (tmp_path / "params" / "cpu.yaml").write_text("common: {}\n")
    return tmp_path


# --- discovery


@pytest.mark.parametrize("only, appendix, found", [
    ([], False, ["00_start", "02_runs", "10_beyond"]),
    ([], True, ["00_start", "02_runs", "10_beyond", "A1_base"]),
    (["2"], False, ["02_runs"]), (["02"], False, ["02_runs"]),
    (["02_runs"], False, ["02_runs"]), (["02_runs.ipynb"], False, ["02_runs"]),
    (["a1", "10", "00"], False, ["00_start", "10_beyond", "A1_base"]),
])
def test_notebooks_come_in_order(folder, only, appendix, found):
    assert [p.stem for p in plan.discover(folder, only, appendix)] == found


def test_notebooks_that_are_not_there_are_said(folder):
    with pytest.raises(RunError, match=r"--only 7.*00_start, 02_runs"):
        plan.discover(folder, ["7"])
    for place in (folder / "params", folder / "nowhere"):
        with pytest.raises(RunError, match="no notebooks"):
            plan.discover(place)


def test_solutions_are_run_on_demand_and_lie_apart(folder):
    (folder / "params" / "cpu.yaml").write_text("02_runs: {STEPS: 9}\n")
    made = plan.make_plan(folder, solutions=True, settings=["RATE=1"])
    assert [n.path for n in made.notebooks] == [folder / "solutions" / "02_runs.ipynb"]
    assert made.given == {"02_runs": {"PROFILE": "cpu", "RATE": 1.0}}
    assert made.base.name == "solutions"
    assert made.command(made.notebooks[0]).endswith("--only 02 --solutions --set RATE=1")


# --- the parameters cell


def test_literals_of_every_kind_are_read():
    source = "A = -1  # m\nB: float = .5  # s\nC = ('x', None)  # n\nD = {'k': [True]}  # n"
    assert plan.parse_parameters(source) == {
        "A": -1, "B": 0.5, "C": ("x", None), "D": {"k": [True]}}


def test_papermill_alone_would_lose_parameters(tmp_path):
    """Why the cell is parsed here: the day this fails, `papermill.inspect_notebook` will do."""
    import papermill

    source = 'A = 1\nTEXT = "a=b"  # free\nCOLOUR = "#ff0000"  # shown'
    seen = papermill.inspect_notebook(write(tmp_path, "00_x", source))
    assert "TEXT" not in seen and seen["COLOUR"]["default"] == '"'
    assert plan.parse_parameters(source) == {"A": 1, "TEXT": "a=b", "COLOUR": "#ff0000"}


@pytest.mark.parametrize("line", [
    "X = len('a')", "import os", "X = Y = 1", "X: int", "X, Y = 1, 2", "a.b = 1", "X += 1"])
def test_what_is_not_a_literal_is_refused_with_its_line(line):
    with pytest.raises(RunError, match=r"nb\.ipynb: line 2"):
        plan.parse_parameters("A = 1\n" + line, "nb.ipynb")


def test_files_that_cannot_be_trusted_are_refused(tmp_path):
    with pytest.raises(RunError, match="not Python"):
        plan.read_notebook(write(tmp_path, "00_x", "A = = 1"))
    with pytest.raises(RunError, match="2 cells tagged 'parameters'"):
        plan.read_notebook(write(tmp_path, "00_x", ["A = 1", "B = 1"]))
    (tmp_path / "00_x.ipynb").write_text("{")
    with pytest.raises(RunError, match=r"00_x\.ipynb is not a readable notebook"):
        plan.read_notebook(tmp_path / "00_x.ipynb")
    for product in ("grid.png", "01_other/grid.png", "00_x/../01/grid.png"):
        with pytest.raises(RunError, match="outside its own folder"):
            plan.read_notebook(write(tmp_path, "00_x", produces=[product]))


def test_the_digest_follows_what_a_person_wrote(tmp_path):
    path = write(tmp_path, "00_x")
    before = plan.read_notebook(path).digest
    node = nbformat.read(path, as_version=4)
    node.cells[1].execution_count = 7
    node.metadata["language_info"] = {"name": "python"}
    node.cells[0].source = node.cells[0].source.replace("3 on the CPU", "4 on the CPU")
    nbformat.write(node, path)
    assert plan.read_notebook(path).digest == before
    node.cells[0].source += "\n\nBecause."
    nbformat.write(node, path)
    assert plan.read_notebook(path).digest != before


# --- profiles and values


def test_later_sources_win_and_only_declared_names_are_passed(folder):
    write(folder, "02_runs", PARAMETERS + "\nGRID = 16  # cells")
    (folder / "params" / "cpu.yaml").write_text(
        "common: {STEPS: 5, GRID: 24}\n02_runs: {STEPS: 6, RATE: 1}\n")
    made = plan.make_plan(folder, only=["00,02"], settings=["RATE=1e-3"])
    assert made.given == {
        "00_start": {"PROFILE": "cpu", "STEPS": 5, "RATE": 1e-3},
        "02_runs": {"PROFILE": "cpu", "STEPS": 6, "GRID": 24, "RATE": 1e-3},
    }


def test_the_command_repeats_only_what_concerns_the_notebook(folder):
    write(folder, "02_runs", PARAMETERS + "\nTEXT = 'a'  # free")
    made = plan.make_plan(folder, settings=["TEXT=red cup", "STEPS=4"])
    start = "python -m t4s_helpers notebooks --profile cpu --only"
    assert [made.command(n) for n in made.notebooks[:2]] == [
        f"{start} 00 --set STEPS=4", f"{start} 02 --set 'TEXT=red cup' --set STEPS=4"]


@pytest.mark.parametrize("yaml, setting, words", [
    ("", "STEPPS=4", ["--set", "'STEPPS'", "any of the notebooks", "nearest known name is STEPS"]),
    ("", "steps=4", ["nearest known name is STEPS"]),
    ("02_runs: {RATTE: 1}", "", ["params/cpu.yaml", "02_runs", "nearest known name is RATE"]),
    ("common: {STEP: 1}", "", ["params/cpu.yaml", "nearest known name is STEPS"]),
    ("02_run: {STEPS: 1}", "", ["'02_run'", "nearest known name is 02_runs"]),
    ("", "PROFILE=gpu", ["--profile"]),
    ("", "STEPS", ["NAME=VALUE"]),
    ("", "STEPS=many", ["STEPS='many'", "int", "00_start"]),
    ("", "STEPS=1.5", ["int"]),
    ("", "STEPS=true", ["int"]),
    ("- a", "", ["sections"]),
    ("02_runs: 3", "", ["NAME: value"]),
    ("a: [", "", ["YAML"]),
])
def test_what_does_not_fit_is_refused_in_one_sentence(folder, yaml, setting, words):
    (folder / "params" / "cpu.yaml").write_text(yaml + "\n")
    with pytest.raises(RunError) as caught:
        plan.make_plan(folder, settings=[setting] if setting else [])
    for word in words:
        assert word in str(caught.value)


def test_what_is_not_there_is_not_taken(folder):
    write(folder, "02_runs", [])
    assert plan.make_plan(folder, only=["02"]).given == {"02_runs": {}}
    with pytest.raises(RunError, match=r"in notebook 02_runs .*'STEPS'; it has none"):
        plan.make_plan(folder, only=["02"], settings=["STEPS=4"])
    with pytest.raises(RunError, match=r"'cpuu'.*: cpu"):
        plan.make_plan(folder, profile="cpuu")


@pytest.mark.parametrize("value, default, fitted", [
    (3, 0.5, 3.0), ("2e-4", 0.5, 2e-4), ((1, 2), [0], [1, 2]), ([1], (0, 1), [1]), (7, "b", "7"),
    ("x", None, "x"), (None, 3, None), (True, False, True)])
def test_values_take_the_type_of_the_default(value, default, fitted):
    result = plan.fit_value("X", value, default, "nb")
    assert result == fitted and type(result) is type(fitted)


@pytest.mark.parametrize("value, default", [
    (1, True), (True, 1), (True, 0.5), (0.5, 1), ("a", [1]), ([1], "a"), (True, "a")])
def test_values_of_another_type_are_refused(value, default):
    with pytest.raises(RunError, match="does not fit"):
        plan.fit_value("X", value, default, "nb")
