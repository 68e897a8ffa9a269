"""The shape of the notebooks: every notebook has it, and every rule catches its violation."""

from __future__ import annotations

import ast
import copy
import io
import json
import re
import tokenize
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from t4s_helpers.workbook import plan, runner

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))
SOLUTIONS = sorted(FOLDER.glob("solutions/*.ipynb"))
COPIES = sorted(ROOT.glob("results/[0-9A-Z]*/*.ipynb")) + sorted(ROOT.glob("results/gpu/*/*.ipynb"))

CODE_LINES, ALL_LINES, FUNCTION_LINES = 15, 25, 10
GLANCE = ("learn", "needs", "produces", "minutes", "cpu", "gpu memory", "paper")
ENDING = ("summary", "limits", "exercises", "next")


# --- reading cells


def tags(cell):
    return cell.metadata.get("tags", [])


def tagged(node, tag):
    return [i for i, cell in enumerate(node.cells) if tag in tags(cell)]


def code(node):
    return [cell for cell in node.cells if cell.cell_type == "code"]


def code_cells(node):
    return [(i, cell) for i, cell in enumerate(node.cells, 1) if cell.cell_type == "code"]


def syntax(cell, *kinds):
    """Nodes of a cell's syntax tree, without the lines that only IPython reads."""
    lines = ["" if re.match(r"\s*[%!?]", line) else line for line in cell.source.splitlines()]
    return [n for n in ast.walk(ast.parse("\n".join(lines))) if isinstance(n, kinds)]


def functions(cell):
    return syntax(cell, ast.FunctionDef, ast.AsyncFunctionDef)


def comments(source):
    """Line number -> comment."""
    found = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: t.string.lstrip("#").strip() for t in found if t.type == tokenize.COMMENT}


# --- the rules: each yields one sentence per violation


def opening(node, name):
    first = node.cells[0]
    lines = [line for line in first.source.splitlines() if line.strip()]
    title = lines[0] if lines else ""
    if first.cell_type != "markdown" or not title.startswith("# ") or not title.endswith("?"):
        yield "the first cell is not a title '# ...?', a question"
    answer = next((line for line in lines[1:] if not line.startswith(("#", "|"))), "")
    if not answer.rstrip("*_ ").endswith((".", "!")):
        yield "the title is not followed by its answer in one sentence"


def at_a_glance(node, name):
    text = "\n".join(c.source for c in node.cells[:3] if c.cell_type == "markdown").lower()
    table = "\n".join(line for line in text.splitlines() if line.strip().startswith("|"))
    if not re.search(r"^\s*\|[ :|-]*---[ :|-]*\|\s*$", table, re.M):
        yield "there is no at-a-glance table in the first cells"
    missing = [word for word in GLANCE if word not in table]
    if missing:
        yield f"the at-a-glance table does not say: {', '.join(missing)}"


def parameters(node, name):
    found = tagged(node, "parameters")
    if len(found) != 1:
        yield f"there are {len(found)} cells tagged 'parameters', not one"
        return
    source = node.cells[found[0]].source
    try:
        values = plan.parse_parameters(source, name)
    except plan.RunError as error:
        yield str(error)
        return
    if values.get("PROFILE") != "cpu":
        yield 'the parameters cell does not set PROFILE = "cpu"'
    remarks = comments(source)
    for statement in ast.parse(source).body:
        spots = range(statement.lineno, statement.end_lineno + 1)
        if not any(remarks.get(line) for line in spots):
            yield f"parameter on line {statement.lineno} has no comment with its unit"
    if found[0] != node.cells.index(code(node)[0]):
        yield "the parameters cell is not the first code cell"


def stripped(node, name):
    if any(c.outputs or c.execution_count is not None for c in code(node)):
        yield "outputs are not stripped"
    if "widgets" in node.metadata or "papermill" in node.metadata:
        yield "the metadata holds traces of an execution"


def short_cells(node, name):
    for number, cell in code_cells(node):
        lines = [line.strip() for line in cell.source.splitlines()]
        codes = sum(not line.startswith("#") for line in lines if line)
        if codes > CODE_LINES and "parameters" not in tags(cell):
            yield f"cell {number} has more than {CODE_LINES} lines of code"
        if len(lines) > ALL_LINES:
            yield f"cell {number} has more than {ALL_LINES} lines"
        for function in functions(cell):
            if function.end_lineno - function.lineno + 1 > FUNCTION_LINES:
                yield f"{function.name}() is longer than {FUNCTION_LINES} lines: to the package"


def no_golf(node, name):
    """Fifteen lines are to be reached by moving code to the package, not by squeezing it.

    Long lines and several statements on a line are found by `make check`.
    """
    for number, cell in code_cells(node):
        loops = syntax(cell, ast.comprehension, ast.For)
        if any(isinstance(n.iter, (ast.List, ast.Tuple)) and len(n.iter.elts) == 1 for n in loops):
            yield f"cell {number} loops over a single element, where an assignment is meant"
        if any(sum(hasattr(n, "generators") for n in ast.walk(top)) > 2
               for top in syntax(cell, ast.expr) if hasattr(top, "generators")):
            yield f"cell {number} nests three comprehensions"


def plain_python(node, name):
    for number, cell in code_cells(node):
        if re.search(r"^\s*[!%]+\s*(pip|conda)\b", cell.source, re.M):
            yield f"cell {number} installs packages"
    if any("colab" in cell.source.lower() for cell in node.cells):
        yield "a cell speaks of Colab"


def checks(node, name):
    found = tagged(node, "checks")
    asserts = [n for i in found for n in syntax(node.cells[i], ast.Assert)]
    if not found or len(asserts) < 2:
        yield "there is no cell tagged 'checks' with a few asserts"
    if any(isinstance(a.test, ast.Constant) for a in asserts):
        yield "an assert in the checks can never fail"


def saving(node, name):
    found = tagged(node, "save")
    if not found:
        yield "there is no cell tagged 'save'"
    elif tagged(node, "checks") and max(tagged(node, "checks")) > max(found):
        yield "the checks come after the save"
    if f'run_folder("{name}"' not in "\n".join(c.source for c in code(node)):
        yield f'run_folder("{name}", ...) is never called'


def ending(node, name):
    last = node.cells[-1]
    text = last.source.lower()
    missing = [word for word in ENDING if not re.search(rf"(^#+ |\*\*){word}\b", text, re.M)]
    if last.cell_type != "markdown" or missing:
        yield f"the last cell lacks, as heading or in bold: {', '.join(missing) or 'text'}"


def frame(node, name):
    ids = [cell.get("id") for cell in node.cells]
    if None in ids or len(set(ids)) != len(ids):
        yield "cell ids are missing or not unique"
    if node.metadata.get("kernelspec", {}).get("name") != "python3":
        yield "the kernel is not python3"
    if (node.nbformat, node.nbformat_minor) < (4, 5):
        yield "the format is older than 4.5"
    if not node.metadata.get("t4s", {}).get("produces", []):
        yield "the metadata says nothing under t4s.produces"


RULES = (opening, at_a_glance, parameters, stripped, short_cells, no_golf, plain_python, checks,
         saving, ending, frame)
SOLUTION_RULES = (parameters, stripped, short_cells, no_golf, plain_python)


def problems(node, name, rules=RULES):
    return [sentence for rule in rules for sentence in rule(node, name)]


def names_defined_twice(nodes, package):
    """Functions that two notebooks, or a notebook and the package, define: name -> places."""
    places = {name: ["t4s_helpers"] for name in package}
    for name, node in nodes.items():
        for function in (f.name for cell in code(node) for f in functions(cell)):
            places.setdefault(function, []).append(name)
    return {name: where for name, where in places.items() if len(where) > 1}


def package_functions():
    found = set()
    for path in (ROOT / "t4s_helpers").rglob("*.py"):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        found |= {n.name for n in body if isinstance(n, ast.FunctionDef)}
    return {name for name in found if not name.startswith("_") and name != "main"}


# --- the notebooks that are there


@pytest.mark.parametrize("path", PATHS + SOLUTIONS, ids=lambda p: p.relative_to(FOLDER).as_posix())
def test_the_notebook_has_the_shape(path):
    """A solution is a small notebook of the same name."""
    node = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(node)
    assert not problems(node, path.stem, RULES if path in PATHS else SOLUTION_RULES)
    assert (FOLDER / path.name).is_file()
    assert any(syntax(cell, ast.Assert) for cell in code(node)), "nothing is asserted"


@pytest.mark.slow
@pytest.mark.parametrize("path", SOLUTIONS, ids=[p.stem for p in SOLUTIONS])
def test_the_solution_runs(path, tmp_path, monkeypatch):
    """From the results that are there; what it writes goes to a folder of its own."""
    for folder in (ROOT / "results").iterdir():
        (tmp_path / folder.name).symlink_to(folder)
    (tmp_path / "summary.json").unlink(missing_ok=True)
    monkeypatch.setenv("T4S_RESULTS", str(tmp_path))
    assert runner.run_series(only=[path.stem], solutions=True) == 0


def test_commands_that_are_named_exist():
    named = {name for path in (*PATHS, *SOLUTIONS, FOLDER.parent / "README.md")
             for name in re.findall(r"python -m (t4s_helpers[.\w]*\w)", path.read_text(encoding="utf-8"))}
    places = {name: FOLDER.parent.joinpath(*name.split(".")) for name in named}
    wrong = [name for name, place in places.items()
             if not (place.with_suffix(".py").is_file() or (place / "__main__.py").is_file())]
    assert named and not wrong


def test_no_function_is_defined_twice_over_the_series():
    nodes = {p.stem: nbformat.read(p, as_version=4) for p in PATHS}
    assert not names_defined_twice(nodes, package_functions())


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_the_profiles_fit_the_notebooks(profile):
    made = plan.make_plan(FOLDER, profile, appendix=True)
    assert [n.name for n in made.notebooks] == [p.stem for p in PATHS], "a name is not NN_name"


@pytest.mark.parametrize("path", COPIES, ids=[p.stem for p in COPIES])
def test_the_executed_copy_is_small_and_passed(path):
    assert path.stat().st_size <= 1_000_000
    manifest = json.loads((path.parent / "manifest.json").read_text())
    assert manifest["status"] == "ok" and manifest["notebook"] == path.stem
    assert (FOLDER / path.name).is_file(), "its notebook is gone: remove the results too"
    now = [c.source for c in code(nbformat.read(FOLDER / path.name, as_version=4))]
    then = [c.source for c in code(nbformat.read(path, as_version=4))
            if "injected-parameters" not in tags(c)]
    assert then == now, f"made by other code than {path.name} has now: run it again"


# --- the rules themselves


def good():
    def text(source):
        return new_markdown_cell(source)

    def cell(source, *names):
        return new_code_cell(source, metadata={"tags": list(names)})

    rows = "\n".join(f"| {word} | - |" for word in (
        "Learn", "Needs", "Produces", "Minutes on CPU and on one GPU", "GPU memory", "Paper"))
    return new_notebook(
        cells=[
            text("# Can a mask be text?\n\nYes, one word per patch.\n\n| | |\n|---|---|\n" + rows),
            cell('PROFILE = "cpu"  # name\nGRID = (16,  # cells per side\n        24)',
                 "parameters"),
            cell('from t4s_helpers.workbook.results import run_folder\nrun_folder("01_grids", PROFILE)'),
            # A function of ten lines, in a cell of fifteen lines of code: no more is allowed.
            cell("# Why.\ndef double(x):\n" + "    x += 0\n" * 8 + "    return 2 * x\n\n"
                 "value = double(GRID[0])\n" + "value += 0\n" * 4),
            cell("assert value == 32\nassert value > GRID[0]", "checks"),
            cell("print('saved')", "save"),
            text("## Summary\n- a\n\n**Limits** b\n\n## Exercises\n1. c\n\n**Next** d"),
        ],
        metadata={"t4s": {"produces": ["01_grids/t.csv"]}, "kernelspec": {
            "name": "python3", "display_name": "Python 3", "language": "python"}},
    )


def test_a_good_notebook_has_no_problems():
    node = good()
    nbformat.validate(node)
    assert problems(node, "01_grids") == []


def source(index, old, new):
    def change(node):
        assert old in node.cells[index].source
        node.cells[index].source = node.cells[index].source.replace(old, new)
    return change


def tag(index, *names):
    return lambda node: node.cells[index].metadata.update(tags=list(names))


def add(index, text):
    return lambda node: node.cells.insert(index, new_code_cell(text))


LONG_FUNCTION = "def f(x):\n" + "    x += 1\n" * 9 + "    return x"

VIOLATIONS = {
    "no question": (source(0, "text?", "text"), "a question"),
    "no answer": (source(0, "Yes, one word per patch.", ""), "answer"),
    "answer without end": (source(0, "patch.", "patch"), "answer"),
    "no table": (source(0, "|---|---|", ""), "at-a-glance"),
    "a row is missing": (source(0, "GPU memory", "Memory"), "gpu memory"),
    "no parameters": (tag(1), "0 cells tagged 'parameters'"),
    "two parameters": (tag(3, "parameters"), "2 cells tagged"),
    "a computed parameter": (source(1, '"cpu"', 'str("cpu")'), "line 1"),
    "a parameter without comment": (source(1, "# cells per side", ""), "unit"),
    "an empty comment": (source(1, "# name", "#"), "unit"),
    "a hash in a text is no comment": (source(1, '"cpu"  # name', '"#cpu"'), "unit"),
    "another default profile": (source(1, '"cpu"', '"gpu"'), "PROFILE"),
    "code before the parameters": (add(1, "x = 1"), "first code cell"),
    "an execution count": (lambda n: n.cells[2].update(execution_count=1), "stripped"),
    "an output": (lambda n: n.cells[2].outputs.append(
        new_output("stream", text="hi")), "stripped"),
    "a trace of papermill": (lambda n: n.metadata.update(papermill={}), "traces"),
    "sixteen lines of code": (add(3, "x = 1\n" * 16), "15 lines of code"),
    "twenty-six lines": (add(3, "# note\n" * 26), "25 lines"),
    "a long function": (add(3, LONG_FUNCTION), "f() is longer"),
    "a long function after a magic": (add(3, "%time\n" + LONG_FUNCTION), "f() is longer"),
    "a loop for a name": (add(3, "[y for y in [[1, 2]]]"), "single element"),
    "three loops, nested": (add(3, "[[[a for a in d] for d in b] for b in c]"), "three comprehensions"),
    "pip": (add(3, "x = 1\n!pip install y"), "installs"),
    "pip by magic": (add(3, "%pip install y"), "installs"),
    "colab": (add(3, "import google.colab"), "Colab"),
    "no checks": (tag(4), "'checks'"),
    "one assert only": (source(4, "assert value > GRID[0]", ""), "few asserts"),
    "an assert that cannot fail": (source(4, "value == 32", "True"), "never fail"),
    "no save": (tag(5), "'save'"),
    "checks after the save": (lambda n: n.cells.insert(4, n.cells.pop(5)), "after the save"),
    "another notebook's folder": (source(2, "01_grids", "02_runs"), "never called"),
    "no limits": (source(6, "**Limits**", "limits"), "limits"),
    "no last words": (lambda n: n.cells.pop(), "last cell"),
    "an id twice": (lambda n: n.cells[3].update(id=n.cells[2]["id"]), "unique"),
    "another kernel": (lambda n: n.metadata.kernelspec.update(name="julia"), "kernel"),
    "an old format": (lambda n: n.update(nbformat_minor=4), "4.5"),
    "no products": (lambda n: n.metadata.t4s.pop("produces"), "t4s.produces"),
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_every_rule_catches_its_violation(name):
    change, words = VIOLATIONS[name]
    node = copy.deepcopy(good())
    change(node)
    found = problems(node, "01_grids")
    assert any(words in sentence for sentence in found), found


def test_a_function_in_two_notebooks_or_in_the_package_is_found():
    node = good()
    assert names_defined_twice({"01_a": node, "02_b": node}, set()) == {"double": ["01_a", "02_b"]}
    assert names_defined_twice({"01_a": node}, {"double"}) == {"double": ["t4s_helpers", "01_a"]}
    assert names_defined_twice({"01_a": node}, {"halve"}) == {}
    assert {"save_table", "read_notebook"} <= package_functions()
