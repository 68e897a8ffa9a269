"""The order of the rooms: data flows one way, and a room imports only what stands before it.

Every import counts, also one inside a function. The list below is the plan of the house.
"""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "t4s_helpers"

#: Room, or file at the top -> what it may import besides itself.
ALLOWED = {
    "files": set(),
    "codec": set(),
    "data": {"files", "codec"},
    "model": {"files", "codec", "data"},
    "decoding": {"files", "codec", "data", "model"},
    "refine": {"files", "codec", "data", "model", "decoding"},
    "evaluation": {"files", "codec", "data", "model", "decoding", "refine"},
    "workbook": {"files", "codec", "data", "model", "decoding", "refine", "evaluation"},
    "lab": {"files", "codec", "data", "model", "decoding", "refine", "evaluation", "workbook"},
}
#: The front doors, which open every room but lab.
DOORS = ("__init__", "__main__", "text4seg")
#: Who may import lab besides lab.
USES_LAB = ("notebooks/05", "notebooks/08", "notebooks/10", "notebooks/A1", "notebooks/solutions/05",
            "notebooks/solutions/08", "notebooks/solutions/10", "notebooks/solutions/A1", "tests/lab/")


def imports(source, module, modules):
    """Yield (module, name) for each import of the package's own: name is "" for a whole module.

    Args:
        source: Python text.
        module: its dotted name, for relative imports; "" outside the package.
        modules: the dotted names of all modules, to tell a module from a name in its package.
    """
    base = module if f"{module}.__init__" in modules else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.startswith(PACKAGE))
        elif isinstance(node, ast.ImportFrom):
            place = resolve_name("." * node.level + (node.module or ""), base)
            if place.partition(".")[0] == PACKAGE:
                for alias in node.names:
                    inner = f"{place}.{alias.name}"
                    yield (inner, "") if is_module(inner, modules) else (place, alias.name)


def is_module(name, modules):
    return name in modules or f"{name}.__init__" in modules


def read_package(folder):
    """Return {dotted name: source} of a package; a package's own name ends in ``__init__``."""
    files = {path: path.relative_to(folder.parent).with_suffix("") for path in folder.rglob("*.py")}
    return {".".join(dotted.parts): path.read_text(encoding="utf-8") for path, dotted in files.items()}


def room(module):
    return module.split(".")[1] if "." in module else "__init__"


def faults(sources):
    """Yield a sentence for each import in the package that the plan does not allow."""
    graph = {}
    for name, source in sources.items():
        module = name.removesuffix(".__init__")
        for target, imported in imports(source, module, sources):
            there, here = room(target), room(name)
            graph.setdefault(module, set()).add(target)
            if here in DOORS:
                if there == "lab":
                    yield f"{name}: a front door imports {target}"
            elif there != here and there not in ALLOWED.get(here, ()):
                yield f"{name} imports {target}: {here} may not import {there}"
            if imported.startswith("_") and not imported.startswith("__") and target != module:
                yield f"{name} imports the private {imported} of {target}"
            if target.rpartition(".")[2].startswith("_") and not target.endswith("__"):
                yield f"{name} imports the private module {target}"
    try:
        TopologicalSorter({module: targets - {module} for module, targets in graph.items()}).prepare()
    except CycleError as error:
        yield f"a circle: {' -> '.join(reversed(error.args[1]))}"


SOURCES = read_package(ROOT / PACKAGE)


def test_rooms_import_only_what_stands_before_them():
    assert list(faults(SOURCES)) == []


def test_every_room_is_in_the_plan():
    assert {room(name) for name in SOURCES} - set(DOORS) == set(ALLOWED)


def test_nothing_else_imports_lab():
    texts = {p.relative_to(ROOT).as_posix(): p.read_text(encoding="utf-8")
             for p in (ROOT / "tests").rglob("*.py")}
    for path in (ROOT / "notebooks").rglob("*.ipynb"):
        cells = [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
        plain = "\n".join(line for c in cells for line in c.splitlines() if not line.startswith(("%", "!")))
        texts[path.relative_to(ROOT).as_posix()] = plain
    users = {name for name, text in texts.items()
             if any(room(target) == "lab" for target, _ in imports(text, "", SOURCES))}
    assert {name for name in users if not name.startswith(USES_LAB)} == set()


@pytest.mark.parametrize("module, line, words", [
    ("codec.grid", "from ..data import sample", "codec may not import data"),
    ("codec.grid", "def f():\n    import t4s_helpers.model", "codec may not import model"),
    ("codec.grid", "from t4s_helpers.files import ROOT", "codec may not import files"),
    ("files", "from .codec.grid import GridSize", "files may not import codec"),
    ("workbook.results", "from ..lab import bench", "workbook may not import lab"),
    ("__init__", "from .lab import bench", "a front door imports t4s_helpers.lab.bench"),
    ("data.sample", "from .. import Text4Seg", "data may not import __init__"),
    ("data.sample", "from ..codec.grid import _hidden", "the private _hidden of t4s_helpers.codec.grid"),
    ("data.sample", "from .registry import load", "a circle: "),
    ("data.__init__", "from .registry import load\nfrom . import sample", None),
    ("data.sample", "from ..codec.grid import GridSize\nimport numpy", None),
])
def test_every_kind_of_fault_is_found(module, line, words):
    names = ["__init__", "files", "codec.__init__", "codec.grid", "data.__init__", "data.sample",
             "model.__init__", "workbook.results", "lab.__init__", "lab.bench"]
    sources = {f"{PACKAGE}.{name}": "" for name in names}
    sources[f"{PACKAGE}.data.registry"] = "from .sample import Sample"
    sources[f"{PACKAGE}.{module}"] = line
    found = list(faults(sources))
    assert found == [] if words is None else any(words in sentence for sentence in found), found
