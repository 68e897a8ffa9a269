"""What to run, and with which parameters: all that can be checked before a minute is spent.

Parameters come from three places, of which the later wins: the notebook's own ``parameters`` cell,
``notebooks/params/<profile>.yaml`` (a section ``common`` and one per notebook), ``--set``. A name
that no notebook concerned declares is refused, with the nearest known name. Values of ``common``
go to the notebooks that declare them.

A notebook's metadata may say, under ``t4s``:

* ``produces``: list of the files it makes, relative to the results folder;
* ``needs``: ``"cuda"``, or what each profile needs, ``{"gpu": "cuda"}``.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import hashlib
import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..evaluation.provenance import package_digest
from ..files import ROOT
from . import results

NOTEBOOKS = ROOT / "notebooks"

#: Lines of a notebook's text that `t4s_helpers.workbook.readme` writes: whole lines, as matched.
MINUTES_LINE = re.compile(r"^\| *Minutes *\|.*$", re.M)
NEXT_LINE = re.compile(r"^\*\*Next\.?\*\*.*$", re.M)

_NUMBERED = re.compile(r"\d\d_\w+")
_APPENDIX = re.compile(r"[A-Z]\d_\w+")


class RunError(RuntimeError):
    """The run cannot start as asked. The message says what is wrong and what would be right."""


@dataclass(frozen=True)
class Notebook:
    """What the runner knows about a notebook before running it."""

    path: Path
    parameters: dict[str, Any]
    needs: str | Mapping[str, str] = ""
    produces: tuple[str, ...] = ()
    digest: str = ""

    @property
    def name(self) -> str:
        """File name without ``.ipynb``, e.g. ``02_run_length_encoding``."""
        return self.path.stem

    def needs_cuda(self, profile: str) -> bool:
        """Return True when this notebook cannot run under ``profile`` without a CUDA GPU."""
        needs = self.needs.get(profile) if isinstance(self.needs, Mapping) else self.needs
        return needs == "cuda"


@dataclass(frozen=True)
class Plan:
    """Everything that one call of the runner will do."""

    profile: str
    notebooks: tuple[Notebook, ...]
    given: dict[str, dict[str, Any]]
    settings: tuple[str, ...] = ()
    resume: bool = False
    existing: tuple[str, ...] = ()
    package: str = ""
    solutions: bool = False

    @property
    def base(self) -> Path:
        """The folder that gets one sub-folder of results per notebook."""
        folder = results.results_folder(self.profile)
        return folder / "solutions" if self.solutions else folder

    def command(self, notebook: Notebook) -> str:
        """Return the command that repeats this run of one notebook."""
        own = [s for s in self.settings if s.split("=")[0].strip() in notebook.parameters]
        options = ["--solutions"] * self.solutions + [f"--set {shlex.quote(s)}" for s in own]
        return results.run_command(notebook.name, self.profile, options)

    def values(self, notebook: Notebook) -> dict[str, Any]:
        """Return all parameters of a notebook in this run, as its manifest holds them."""
        # Through JSON and back, where a tuple becomes a list.
        return json.loads(json.dumps({**notebook.parameters, **self.given[notebook.name]}))


def make_plan(
    folder: Path = NOTEBOOKS, profile: str = "cpu", only: Sequence[str] = (),
    settings: Sequence[str] = (), appendix: bool = False, solutions: bool = False,
    resume: bool = False,
) -> Plan:
    """Check everything that can be checked beforehand, and return what to do.

    Args:
        folder: where the notebooks and ``params/<profile>.yaml`` live.
        profile: the name of a params file.
        only: see `discover`.
        settings: ``NAME=VALUE`` texts; they win over the params file.
        appendix: see `discover`.
        solutions: run ``folder/solutions`` instead.
        resume: keep the results that are up to date.

    Raises:
        RunError: what was asked for does not fit the notebooks.
    """
    place = folder / "solutions" if solutions else folder
    chosen = discover(place, only, appendix)
    every = {path: read_notebook(path) for path in discover(place, appendix=True)}
    # Solutions are small: what the profile sets for the large notebooks is not for them.
    sections = {} if solutions else load_params(folder, profile)
    notebooks = [every[path] for path in chosen]
    given = choose_parameters([*every.values()], notebooks, sections, parse_settings(settings), profile)
    return Plan(
        profile, tuple(notebooks), given, tuple(settings), resume,
        tuple(path.stem for path in every), package_digest(), solutions,
    )


# --- the notebooks -------------------------------------------------------------------------------


def discover(folder: Path, only: Sequence[str] = (), appendix: bool = False) -> list[Path]:
    """Return the notebooks to run, in order.

    Args:
        folder: where ``NN_*.ipynb`` and ``A1_*.ipynb`` live.
        only: numbers (``"04"``, ``"4"``, ``"A1"``) or full names; empty for all numbered ones.
        appendix: also the ``A1_*`` ones when ``only`` is empty.

    Raises:
        RunError: no notebooks, or an entry of ``only`` that fits none.
    """
    found = sorted(folder.glob("*.ipynb"))
    numbered = [p for p in found if _NUMBERED.fullmatch(p.stem)]
    extra = [p for p in found if _APPENDIX.fullmatch(p.stem)]
    if not numbered and not extra:
        raise RunError(f"There are no notebooks (NN_name.ipynb) in {folder}: nothing to run.")
    if not only:
        return numbered + extra if appendix else numbered
    chosen = {_find(token, numbered + extra) for token in only}
    return [p for p in numbered + extra if p in chosen]


def _find(token: str, paths: Sequence[Path]) -> Path:
    wanted = token.removesuffix(".ipynb")
    short = wanted.zfill(2) if wanted.isdigit() else wanted.upper()
    for path in paths:
        if path.stem == wanted or path.stem.split("_")[0] == short:
            return path
    names = ", ".join(p.stem for p in paths)
    raise RunError(f"--only {token}: there is no such notebook; there are {names}.")


def read_notebook(path: Path) -> Notebook:
    """Read a notebook's parameters, needs and products; refuse what the runner cannot trust."""
    import nbformat

    try:
        node = nbformat.read(str(path), as_version=4)
    except Exception as error:  # nbformat raises many kinds for a broken file
        raise RunError(f"{path.name} is not a readable notebook: {error}.") from error
    cells = [c for c in node.cells if "parameters" in c.metadata.get("tags", [])]
    if len(cells) > 1:
        raise RunError(f"{path.name} has {len(cells)} cells tagged 'parameters': keep one.")
    parameters = parse_parameters(cells[0].source, path.name) if cells else {}
    wishes = node.metadata.get("t4s", {})
    needs, produces = wishes.get("needs", ""), tuple(wishes.get("produces", ()))
    unknown = {*(needs.values() if isinstance(needs, Mapping) else [needs])} - {"", "cuda"}
    if unknown:
        raise RunError(f"{path.name} needs {unknown.pop()!r}; the runner knows 'cuda' alone.")
    for file in produces:
        if not file.startswith(f"{path.stem}/") or ".." in Path(file).parts:
            raise RunError(
                f"{path.name} says that it produces {file!r}, which is outside its own folder:"
                f" write '{path.stem}/...'."
            )
    return Notebook(path, parameters, needs, produces, _digest(node))


def _digest(node: Any) -> str:
    """Return a hash of what a person wrote: no outputs, no counts, no generated lines."""
    content = [
        [c.cell_type, NEXT_LINE.sub("", MINUTES_LINE.sub("", c.source)), c.metadata.get("tags", [])]
        for c in node.cells
    ]
    text = json.dumps([content, node.metadata.get("t4s", {})], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def parse_parameters(source: str, where: str = "the notebook") -> dict[str, Any]:
    """Return the names and default values of a ``parameters`` cell: literals only.

    `papermill.inspect_notebook` reads the cell line by line with a pattern. It loses a parameter
    whose text holds ``=``, cuts one at ``#``, and passes over statements that are no assignments.

    >>> parse_parameters("STEPS = 300  # optimiser steps\\nLR: float = 2e-4  # per step")
    {'STEPS': 300, 'LR': 0.0002}
    """
    try:
        statements = ast.parse(source).body
    except SyntaxError as error:
        raise RunError(f"{where}: the parameters cell is not Python: {error}.") from error
    values: dict[str, Any] = {}
    for statement in statements:
        try:
            name, literal = _assignment(statement)
            values[name] = ast.literal_eval(literal)
        except ValueError:
            raise RunError(
                f"{where}: line {statement.lineno} of the parameters cell is not NAME = literal:"
                " move it to the set-up cell."
            ) from None
    return values


def _assignment(statement: ast.stmt) -> tuple[str, ast.expr]:
    match statement:
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            return name, value
        case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
            return name, value
    raise ValueError


# --- parameters ----------------------------------------------------------------------------------


def load_params(folder: Path, profile: str) -> dict[str, dict[str, Any]]:
    """Read ``params/<profile>.yaml``: a section ``common`` and one per notebook.

    Raises:
        RunError: no such profile, or a file that is not a mapping of mappings.
    """
    import yaml

    path = folder / "params" / f"{profile}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml"))) or "none"
        raise RunError(f"There is no profile {profile!r}; the profiles in {path.parent}: {known}.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise RunError(f"{path} is not valid YAML: {error}.") from error
    if not isinstance(content, dict):
        raise RunError(f"{path} must hold sections (common, or a notebook's name), not a list.")
    for name, section in content.items():
        if not isinstance(section or {}, dict):
            raise RunError(f"{path}: section {name!r} must hold lines NAME: value.")
    return {str(name): section or {} for name, section in content.items()}


def choose_parameters(
    every: Sequence[Notebook], chosen: Sequence[Notebook], sections: Mapping[str, Mapping],
    settings: Mapping[str, Any], profile: str,
) -> dict[str, dict[str, Any]]:
    """Return, for each chosen notebook, the values to pass; refuse names that nobody declares.

    Args:
        every: all notebooks, for checking the sections of the params file.
        chosen: those that will run.
        sections: from `load_params`.
        settings: from `parse_settings`.
        profile: passed as ``PROFILE`` where a notebook declares it.
    """
    by_name = {notebook.name: notebook for notebook in every}
    for section, values in sections.items():
        if section != "common" and section not in by_name:
            raise _unknown(f"params/{profile}.yaml: there is no notebook", section, by_name)
        owners = every if section == "common" else [by_name[section]]
        _check_known(values, owners, f"params/{profile}.yaml")
    _check_known(settings, chosen, "--set")
    if "PROFILE" in {*settings, *(name for values in sections.values() for name in values)}:
        raise RunError("PROFILE is set by the option --profile alone: remove it elsewhere.")
    given: dict[str, dict[str, Any]] = {}
    for notebook in chosen:
        values = {"PROFILE": profile, **sections.get("common", {}), **sections.get(notebook.name, {})}
        given[notebook.name] = {
            name: fit_value(name, value, notebook.parameters[name], notebook.name)
            for name, value in {**values, **settings}.items() if name in notebook.parameters
        }
    return given


def _check_known(names: Iterable[str], owners: Sequence[Notebook], source: str) -> None:
    known = {name for notebook in owners for name in notebook.parameters}
    where = f"notebook {owners[0].name}" if len(owners) == 1 else "any of the notebooks"
    for name in names:
        if name not in known:
            raise _unknown(f"{source}: in {where} there is no parameter", name, known)


def _unknown(what: str, name: str, known: Iterable[str]) -> RunError:
    upper = {each.upper(): each for each in known}
    near = difflib.get_close_matches(name.upper(), upper, n=1, cutoff=0.0)
    hint = f"the nearest known name is {upper[near[0]]}" if near else "it has none at all"
    return RunError(f"{what} {name!r}; {hint}.")


def parse_settings(texts: Sequence[str]) -> dict[str, Any]:
    """Read ``NAME=VALUE`` texts; a value is a Python or YAML literal, otherwise text.

    >>> parse_settings(["RATE=2e-4", "LIVE=true", "SIZES=[16, 24]", "TEXT=red cup"])
    {'RATE': 0.0002, 'LIVE': True, 'SIZES': [16, 24], 'TEXT': 'red cup'}
    """
    import yaml

    settings: dict[str, Any] = {}
    for text in texts:
        name, sign, value = (part.strip() for part in text.partition("="))
        if not sign or not name.isidentifier():
            raise RunError(f"--set {text}: write --set NAME=VALUE, for example --set STEPS=50.")
        settings[name] = value
        with contextlib.suppress(yaml.YAMLError):
            settings[name] = yaml.safe_load(value)
        with contextlib.suppress(ValueError, SyntaxError):
            settings[name] = ast.literal_eval(value)
    return settings


def fit_value(name: str, value: Any, default: Any, notebook: str) -> Any:
    """Return ``value`` in the type of ``default``; refuse what does not fit it.

    Whole numbers fit decimal ones, a list fits a tuple, anything fits a default of None.
    """
    value = list(value) if isinstance(value, tuple) else value  # papermill has no notation for tuples
    wanted = list if isinstance(default, tuple) else type(default)
    if default is None or value is None or type(value) is wanted:
        return value
    if wanted in (float, str) and type(value) in (int, float, str):
        with contextlib.suppress(ValueError):  # YAML reads 2e-4 as text, and a label "7" as a number
            return wanted(value)
    raise RunError(
        f"{name}={value!r} does not fit notebook {notebook}: its type is {wanted.__name__}, for"
        f" example {default!r}."
    )
