"""The package, its codec and the plans of data and decoding need NumPy and the standard library alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

MODULES = [f"t4s_helpers{name}" for name in (
    "", ".codec.grid", ".codec.encodings", ".codec.parsing", ".__main__", ".text4seg", ".files",
    ".data.sample", ".data.prompts", ".decoding.grammar",
    ".evaluation.metrics", ".workbook.results")]

PROGRAM = """
import importlib, json, sys
import numpy, numpy.random, numpy.testing
added = {}
for module in sys.argv[1:]:
    before = set(sys.modules)
    importlib.import_module(module)
    new = {name.partition(".")[0] for name in set(sys.modules) - before}
    added[module] = sorted(new - sys.stdlib_module_names - {"t4s_helpers"})
print(json.dumps(added))
"""


def test_nothing_heavier_than_numpy():
    """In a fresh Python; pytest comes last, to show that the check does see other packages."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *MODULES, "pytest"],
        cwd=Path(__file__).resolve().parents[1], capture_output=True, text=True,
    )
    assert done.returncode == 0, done.stderr
    added = json.loads(done.stdout)
    assert "pytest" in added.pop("pytest")
    assert added == {module: [] for module in MODULES}
