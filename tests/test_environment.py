"""One source of truth for versions: lock, pyproject, environment.yml, Makefile and this Python."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import t4s_helpers

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements" / "lock.txt"
#: Extras that only a command of their own installs, from a file of their own beside the lock.
TOOLS = ("book", "browser")

#: Where the lock must hold: every Python that pyproject.toml accepts, on every system.
PLACES = [
    {"python_version": python.rpartition(".")[0], "python_full_version": python,
     "platform_system": system, "sys_platform": system.lower(), "platform_machine": machine,
     "os_name": "posix"}
    for python in ("3.11.2", "3.11.9", "3.12.3", "3.13.0")
    for system, machine in (("Linux", "x86_64"), ("Linux", "aarch64"), ("Darwin", "arm64"))
]


def lock_lines(path=LOCK):
    lines = [line.strip() for line in path.read_text().splitlines()]
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def pins(place=None):
    """Name -> pin, of those that apply in one place; here by default."""
    place = default_environment() | (place or {})
    applying = [r for r in lock_lines() if r.marker is None or r.marker.evaluate(place)]
    locked = {canonicalize_name(r.name): r for r in applying}
    assert len(locked) == len(applying), "a package is locked twice"
    return locked


def version(requirement):
    return next(iter(requirement.specifier)).version


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def direct():
    extras = project()["optional-dependencies"]
    parts = [project()["dependencies"], *(extras[name] for name in extras if name not in TOOLS)]
    return [Requirement(text) for part in parts for text in part]


# --- the lock


def test_exact_versions_stand_in_the_lock_alone():
    """Neither pyproject.toml nor the Makefile repeats a pin, and the tools' files agree with the lock."""
    assert len(lock_lines()) > 100
    for requirement in lock_lines():
        operators = [s.operator for s in requirement.specifier]
        assert operators == ["=="] and "*" not in str(requirement.specifier), requirement
        assert not requirement.url and "+" not in version(requirement), requirement
    assert all(s.operator == ">=" for requirement in direct() for s in requirement.specifier)
    others = {*(ROOT / "requirements").iterdir(), *(ROOT / name for name in (
        "Makefile", "environment.yml", ".ci/run"))} - {LOCK, *map(tool_file, TOOLS)}
    for path in others:
        assert not re.search(r"[A-Za-z0-9]==\d", path.read_text()), path


def tool_file(name):
    return LOCK.with_name(f"{name}.txt")


@pytest.mark.parametrize("tool", TOOLS)
def test_the_tools_of_one_command_are_pinned_and_change_no_locked_package(tool):
    pinned = {canonicalize_name(r.name) for r in lock_lines(tool_file(tool))}
    wanted = {canonicalize_name(Requirement(text).name) for text in project()["optional-dependencies"][tool]}
    assert wanted <= pinned, "run make lock"
    locked = {canonicalize_name(r.name): {version(r)} for r in lock_lines()}
    for requirement in lock_lines(tool_file(tool)):
        assert version(requirement) in locked.get(canonicalize_name(requirement.name), {version(requirement)})


@pytest.mark.parametrize("place", PLACES, ids=lambda p: "-".join([*p.values()][1:5:3]))
def test_everywhere_everything_that_is_asked_for_is_locked_once_at_a_version_that_fits(place):
    locked = pins(place)
    for requirement in direct():
        pin = locked.get(canonicalize_name(requirement.name))
        assert pin, f"{requirement.name} is in pyproject.toml but not in the lock: run make lock"
        assert requirement.specifier.contains(version(pin), prereleases=True), requirement
    for_gpus = [name for name in locked if re.fullmatch(r"nvidia-.*|cuda-.*|triton", name)]
    assert bool(for_gpus) == (place["platform_system"] == "Linux")


def test_this_environment_is_the_locked_one():
    found = {canonicalize_name(d.name): d.version.split("+")[0] for d in metadata.distributions()}
    wrong = {name: f"{found.get(name, 'missing')}, locked {version(pin)}"
             for name, pin in pins().items() if found.get(name) != version(pin)}
    assert not wrong, f"this is not the environment that make installs: {wrong}"


def test_nothing_that_a_locked_package_needs_is_left_to_chance():
    locked, missing = pins(), {}
    for name in locked:
        for need in map(Requirement, metadata.requires(name) or []):
            if need.marker and not need.marker.evaluate(default_environment() | {"extra": ""}):
                continue
            found = locked.get(canonicalize_name(need.name))
            if found is None or not need.specifier.contains(version(found), prereleases=True):
                missing[f"{name} -> {need}"] = str(found)
    assert not missing


def test_what_the_package_imports_is_declared():
    imported = set()
    for path in (ROOT / "t4s_helpers").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.split(".")[0])
    imported -= set(sys.stdlib_module_names) | {"t4s_helpers"}
    owners = metadata.packages_distributions()
    declared = {canonicalize_name(r.name) for r in direct()}
    unknown = {m for m in imported
               if not declared & {canonicalize_name(d) for d in owners.get(m, [])}}
    assert not unknown, f"imported by the package, but not in pyproject.toml: {sorted(unknown)}"


# --- one Python, one version


def test_every_file_accepts_the_same_pythons():
    assert project()["requires-python"] == ">=3.11,<3.14"
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert conda == ["python>=3.11,<3.14", "pip", {"pip": ["-r requirements/lock.txt", "-e ."]}]
    makefile = (ROOT / "Makefile").read_text()
    assert "(3, 11) <= sys.version_info[:2] < (3, 14)" in makefile
    assert "python3.11 python3.12 python3.13" in makefile


def test_the_version_is_written_once_and_cited():
    assert project()["dynamic"] == ["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == t4s_helpers.__version__
    assert f"\n## {t4s_helpers.__version__}" in (ROOT / "CHANGELOG.md").read_text()


# --- the Makefile, with a Python that only pretends to install

FAKE = """#!/bin/sh
# Stands for a Python and for the environment's python: notes pip's work, installs nothing.
case "$1 $2" in
  "-c import sys"*) exit 0 ;;
  "-c import pip"*) exit 0 ;;
  "-c import ensurepip"*) exit ${FAKE_NO_ENSUREPIP:-0} ;;
  "-m venv") for place; do :; done; mkdir -p "$place/bin"; cp "$0" "$place/bin/python"; exit 0 ;;
  "-m pip") echo "pip $*" >> "$FAKE_LOG"; exit ${FAKE_PIP_STATUS:-0} ;;
esac
echo "ran $*" >> "$FAKE_LOG"
"""


@pytest.fixture
def make(tmp_path):
    """Call make in a copy of the project's frame; returns (status, what was done, output)."""
    if not shutil.which("make"):
        pytest.skip("make is not installed")
    frame = tmp_path / "project"
    shutil.copytree(ROOT / "requirements", frame / "requirements")
    shutil.copy(ROOT / "Makefile", frame)
    fake = tmp_path / "python3.12"
    fake.write_text(FAKE)
    fake.chmod(0o755)
    log = tmp_path / "log"

    def call(*arguments, **variables):
        log.write_text("")
        outside = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
        done = subprocess.run(
            ["make", f"PYTHON={fake}", *arguments], cwd=call.frame, text=True, timeout=60,
            env=outside | {"FAKE_LOG": str(log)} | variables, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        return done.returncode, log.read_text().splitlines(), done.stdout

    call.frame, call.fake = frame, fake
    return call


def installs(done):
    return [line for line in done if line.startswith("pip ")]


def test_make_installs_once_and_again_after_an_interruption(make):
    status, done, _ = make("test", FAKE_PIP_STATUS="1")
    assert status != 0 and len(done) == 1
    assert not list((make.frame / ".venv").glob("complete-*"))
    status, done, output = make("test")
    assert status == 0, output
    assert [line.split()[-2:] for line in installs(done)] == [
        ["-r", "requirements/lock.txt"], ["-e", "."]]
    assert done[-1] == "ran -m pytest -q -n 2 --dist worksteal"
    assert make("test", "ARGS=-k codec", "WORKERS=4")[1] == [
        "ran -m pytest -q -n 4 --dist worksteal -k codec"]
    assert make("test-slow")[1] == ["ran -m pytest -q -n 2 --dist worksteal -m slow"]
    assert make("check")[1] == ["ran -m ruff check t4s_helpers tests notebooks book", "ran -m mypy"]
    assert make("workbook", "ARGS=--only 04", "PROFILE=gpu")[1] == [
        "ran -m t4s_helpers weights mobile_sam",
        "ran -m t4s_helpers notebooks --appendix --profile gpu --only 04"]


def test_the_tools_of_a_command_are_installed_by_it_once(make):
    make("test")
    status, done, output = make("book")
    assert status == 0 and "requirements/book.txt" in output, output
    assert len(installs(done)) == 1 and done[0].endswith("-r requirements/book.txt -c requirements/lock.txt")
    assert done[1].startswith("ran -m sphinx -c book -b html ") and " -W " in done[1]
    assert done[2:] == ["ran book/check.py build/book"] == make("book")[1][1:]
    assert make("test-browser", "ARGS=-x")[1][1:] == [
        "ran tests/browser/chromium.py", "ran -m pytest -q -m browser -x tests/browser"]


def test_another_lock_or_another_place_makes_the_environment_anew(make):
    make("test")
    (make.frame / ".venv" / "leftover").write_text("from the old environment")
    lock = make.frame / "requirements" / "lock.txt"
    lock.write_text(lock.read_text() + "# changed\n")
    assert len(installs(make("test")[1])) == 2
    assert not (make.frame / ".venv" / "leftover").exists()
    assert installs(make("test")[1]) == []
    make.frame = make.frame.rename(make.frame.with_name("moved"))
    assert len(installs(make("test")[1])) == 2


def test_without_ensurepip_the_outer_pip_installs(make):
    status, done, output = make("test", FAKE_NO_ENSUREPIP="1")
    assert status == 0, output
    assert all("pip -m pip --python .venv/bin/python install" in line for line in installs(done))
    assert len(installs(done)) == 2


def test_a_wrong_python_is_named(make):
    make.fake.write_text("#!/bin/sh\nexit 1\n")
    status, done, output = make("test")
    assert status != 0 and done == []
    assert "Python 3.11, 3.12 or 3.13 is needed" in output and "make PYTHON=" in output
    assert not (make.frame / ".venv").exists()


def test_make_help_lists_every_target(make):
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)[1].split()
    listed = [line.split()[0] for line in make("help")[2].splitlines() if line.strip()]
    assert sorted(listed) == sorted(phony)


def test_the_makefiles_own_test_of_a_python_is_right():
    question = re.search(r"^SUITABLE := (.*)$", (ROOT / "Makefile").read_text(), re.M)[1]
    for version, status in (((3, 10), 1), ((3, 11), 0), ((3, 13), 0), ((3, 14), 1), ((4, 0), 1)):
        asked = question.replace("sys.version_info[:2]", str(version))
        assert subprocess.run([sys.executable, "-c", asked]).returncode == status


def test_the_ci_script_calls_its_commands_in_order():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    text = script.read_text()
    assert text.startswith("#!/usr/bin/env bash") and "set -euo pipefail" in text
    assert re.findall(r"^time make (.*)$", text, re.M) == [
        "check", "test", "test-slow", "workbook", "book", "test-browser"]
    subprocess.run(["bash", "-n", str(script)], check=True)
