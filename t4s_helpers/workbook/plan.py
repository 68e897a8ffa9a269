"""What to run, and with which parameters: all that can be checked before a minute is spent.

Parameters come from three places, of which the later wins: the notebook's own ``parameters`` cell,
``notebooks/params/<profile>.yaml`` (a section ``common`` and one per notebook), ``--set``. A name
that no notebook concerned declares is refused, with the nearest known name. Values of ``common``
go to the notebooks that declare them.

A notebook's metadata may list, under ``t4s.produces``, the files it makes, relative to the results
folder.
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


class RunError(RuntimeError):
    """The run cannot start as asked. The message says what is wrong and what would be right."""


@dataclass(frozen=True)
class Notebook:
    """What the runner knows about a notebook before running it."""

    path: Path
    parameters: dict[str, Any]
    produces: tuple[str, ...]
    digest: str

    @property
    def name(self) -> str:
        """File name without ``.ipynb``, e.g. ``02_run_length_encoding``."""
        return self.path.stem


@dataclass(frozen=True)
class Plan:
    """Everything that one call of the runner will do; ``existing`` names every notebook there is."""

    profile: str
    notebooks: list[Notebook]
    given: dict[str, dict[str, Any]]
    settings: Sequence[str]
    existing: set[str]
    solutions: bool
    resume: bool
    package: str

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
        only: numbers or names, also several in one text: ``["04,05", "A1"]``; empty for all.
        settings: ``NAME=VALUE`` texts that change parameters of the notebooks that declare them;
            they win over the params file.
        appendix: also the appendix notebooks, ``A1_*`` and so on.
        solutions: the answers to the exercises, ``solutions/NN_*``, instead of the notebooks; their
            results go to ``results/solutions`` and not into the summary.
        resume: keep results that are up to date: same notebook, parameters, package and inputs.

    Raises:
        RunError: what was asked for does not fit the notebooks.
    """
    place = folder / "solutions" if solutions else folder
    tokens = [token for text in only for token in text.split(",") if token]
    every = {path.stem: read_notebook(path) for path in discover(place, appendix=True)}
    notebooks = [every[path.stem] for path in discover(place, tokens, appendix)]
    # Solutions are small: what the profile sets for the large notebooks is not for them.
    sections = {} if solutions else load_params(folder, profile, every)
    changes = parse_settings(settings)
    _check_known(changes, notebooks, "--set")
    given: dict[str, dict[str, Any]] = {}
    for notebook in notebooks:
        values = {"PROFILE": profile, **sections.get("common", {}), **sections.get(notebook.name, {})}
        given[notebook.name] = {
            name: fit_value(name, value, notebook.parameters[name], notebook.name)
            for name, value in {**values, **changes}.items() if name in notebook.parameters
        }
    return Plan(profile, notebooks, given, settings, set(every), solutions, resume, package_digest())


# --- the notebooks -------------------------------------------------------------------------------


def discover(folder: Path, only: Sequence[str] = (), appendix: bool = False) -> list[Path]:
    """Return the notebooks to run, in order.

    Those of ``only``: numbers (``"04"``, ``"4"``, ``"A1"``) or names. Without it all numbered ones
    (``NN_*.ipynb``) and, with ``appendix``, also ``A1_*.ipynb`` and so on.

    Raises:
        RunError: no notebooks, or an entry of ``only`` that fits none.
    """
    found = sorted(p for p in folder.glob("*.ipynb") if re.fullmatch(r"(\d|[A-Z])\d_\w+", p.stem))
    if not found:
        raise RunError(f"There are no notebooks (NN_name.ipynb) in {folder}: nothing to run.")
    if not only:
        return [p for p in found if appendix or p.stem[0].isdigit()]
    by_key = {key: p for p in found for key in (p.stem, p.stem[:2])}
    chosen = set()
    for token in only:
        key = token.removesuffix(".ipynb")
        chosen.add(by_key.get(key) or by_key.get(key.zfill(2).upper()))
        if None in chosen:
            names = ", ".join(p.stem for p in found)
            raise RunError(f"--only {token}: there is no such notebook; there are {names}.")
    return [p for p in found if p in chosen]


def read_notebook(path: Path) -> Notebook:
    """Read a notebook's parameters and products; refuse what the runner cannot trust."""
    import nbformat

    try:
        node = nbformat.read(str(path), as_version=4)
    except Exception as error:  # nbformat raises many kinds for a broken file
        raise RunError(f"{path.name} is not a readable notebook: {error}.") from error
    cells = [c for c in node.cells if "parameters" in c.metadata.get("tags", [])]
    if len(cells) > 1:
        raise RunError(f"{path.name} has {len(cells)} cells tagged 'parameters': keep one.")
    parameters = parse_parameters(cells[0].source, path.name) if cells else {}
    about = node.metadata.get("t4s", {})
    produces = tuple(about.get("produces", ()))
    for file in produces:
        if not file.startswith(f"{path.stem}/") or ".." in Path(file).parts:
            raise RunError(
                f"{path.name} says that it produces {file!r}, which is outside its own folder:"
                f" write '{path.stem}/...'."
            )
    # What a person wrote: no outputs, no counts, no generated lines.
    content = [
        [c.cell_type, NEXT_LINE.sub("", MINUTES_LINE.sub("", c.source)), c.metadata.get("tags", [])]
        for c in node.cells
    ]
    text = json.dumps([content, about], sort_keys=True)
    return Notebook(path, parameters, produces, hashlib.sha256(text.encode()).hexdigest()[:16])


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
        match statement:
            case (ast.Assign(targets=[ast.Name(id=name)], value=literal)
                  | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as literal)):
                with contextlib.suppress(ValueError):
                    values[name] = ast.literal_eval(literal)
                    continue
        raise RunError(f"{where}: line {statement.lineno} of the parameters cell is not NAME = literal:"
                       " move it to the set-up cell.")
    return values


# --- parameters ----------------------------------------------------------------------------------


def load_params(
    folder: Path, profile: str, every: Mapping[str, Notebook]
) -> dict[str, dict[str, Any]]:
    """Read ``params/<profile>.yaml``: a section ``common`` and one per notebook of ``every``.

    Raises:
        RunError: no such profile, a file that is not a mapping of mappings, or a name in it that no
            notebook concerned declares.
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
    sections = {str(name): section or {} for name, section in content.items()}
    for name, section in sections.items():
        if not isinstance(section, dict):
            raise RunError(f"{path}: section {name!r} must hold lines NAME: value.")
        if name != "common" and name not in every:
            raise _unknown(f"params/{profile}.yaml: there is no notebook", name, every)
        owners = [*every.values()] if name == "common" else [every[name]]
        _check_known(section, owners, f"params/{profile}.yaml")
    return sections


def _check_known(names: Iterable[str], owners: Sequence[Notebook], source: str) -> None:
    """Refuse a name that none of the notebooks declares, or that ``--profile`` alone may set."""
    known = {name for notebook in owners for name in notebook.parameters}
    where = f"notebook {owners[0].name}" if len(owners) == 1 else "any of the notebooks"
    for name in names:
        if name == "PROFILE":
            raise RunError("PROFILE is set by the option --profile alone: remove it elsewhere.")
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
