"""What to run, and with which parameters: all that can be checked before a minute is spent.

Parameters come from three places, the later one wins: the notebook's own ``parameters`` cell,
``notebooks/params/<profile>.yaml`` (a section ``common`` and one per notebook), ``--set``. A name
that no notebook concerned declares is refused, with the nearest name that is known. Values of
``common`` go to the notebooks that declare them.
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

from t4s_helpers.workbook import results
from t4s_helpers.evaluation.provenance import package_digest

KNOWN_NEEDS = ("cuda",)

_NUMBERED = re.compile(r"\d\d_\w+")
_APPENDIX = re.compile(r"[A-Z]\d_\w+")


class RunError(RuntimeError):
    """The run cannot start as asked. The message says what is wrong and what would be right."""


@dataclass(frozen=True)
class Notebook:
    """What the runner knows about a notebook before running it."""

    path: Path
    parameters: dict[str, Any]
    needs: Any = ()
    produces: tuple[str, ...] = ()
    digest: str = ""

    @property
    def name(self) -> str:
        """File name without ``.ipynb``, e.g. ``02_run_length_encoding``."""
        return self.path.stem

    def needs_for(self, profile: str) -> tuple[str, ...]:
        """Return what this notebook needs under ``profile``, e.g. ``("cuda",)``."""
        needs = self.needs.get(profile, ()) if isinstance(self.needs, Mapping) else self.needs
        return (needs,) if isinstance(needs, str) else tuple(needs or ())


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

    def command(self, notebook: Notebook) -> str:
        """Return the command that repeats this run of one notebook."""
        own = [s for s in self.settings if s.split("=")[0] in notebook.parameters]
        return results.run_command(notebook.name, self.profile, [shlex.quote(s) for s in own])


# --- what is there to run ------------------------------------------------------------------------


def discover(folder: Path, only: Sequence[str] = (), appendix: bool = False) -> list[Path]:
    """Return the notebooks to run, in order.

    Args:
        folder: where ``NN_*.ipynb`` and ``A1_*.ipynb`` live.
        only: numbers (``"04"``, ``"4"``, ``"A1"``) or full names; empty for all numbered ones.
        appendix: also the ``A1_*`` ones when ``only`` is empty.

    Raises:
        RunError: no notebooks, or an entry of ``only`` that fits none.
    """
    found = sorted(folder.glob("*.ipynb")) if folder.is_dir() else []
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
    produces = tuple(wishes.get("produces", ()))
    for file in produces:
        if not file.startswith(f"{path.stem}/") or ".." in Path(file).parts:
            raise RunError(
                f"{path.name} says that it produces {file!r}, which is outside its own folder:"
                f" write '{path.stem}/...'."
            )
    content = [[c.cell_type, c.source, c.metadata.get("tags", [])] for c in node.cells]
    text = json.dumps([content, wishes], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    notebook = Notebook(path, parameters, wishes.get("needs", ()), produces, digest)
    _check_needs(notebook)
    return notebook


def _check_needs(notebook: Notebook) -> None:
    per_profile = isinstance(notebook.needs, Mapping)
    for profile in list(notebook.needs) if per_profile else [""]:
        for need in notebook.needs_for(profile):
            if need not in KNOWN_NEEDS:
                raise RunError(
                    f"{notebook.path.name} needs {need!r}, which the runner does not know;"
                    f" known: {', '.join(KNOWN_NEEDS)}."
                )


def parse_parameters(source: str, where: str = "the notebook") -> dict[str, Any]:
    """Return the names and default values of a ``parameters`` cell: literals only.

    >>> parse_parameters("STEPS = 300  # optimiser steps\\nLR: float = 2e-4  # per step")
    {'STEPS': 300, 'LR': 0.0002}
    """
    values: dict[str, Any] = {}
    try:
        statements = ast.parse(source).body
    except SyntaxError as error:
        raise RunError(f"{where}: the parameters cell is not Python: {error}.") from error
    for statement in statements:
        name, literal = _assignment(statement)
        try:
            if not name or literal is None:
                raise ValueError
            values[name] = ast.literal_eval(literal)
        except ValueError:
            raise RunError(
                f"{where}: line {statement.lineno} of the parameters cell is not NAME = literal:"
                " move it to the set-up cell."
            ) from None
    return values


def _assignment(statement: ast.stmt) -> tuple[str, ast.expr | None]:
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        target, value = statement.targets[0], statement.value
    elif isinstance(statement, ast.AnnAssign):
        target, value = statement.target, statement.value
    else:
        return "", None
    return (target.id if isinstance(target, ast.Name) else ""), value


# --- parameters ----------------------------------------------------------------------------------


def profiles(folder: Path) -> list[str]:
    """Return the names of the profiles: one per ``params/*.yaml``."""
    return sorted(p.stem for p in (folder / "params").glob("*.yaml"))


def load_params(folder: Path, profile: str) -> dict[str, dict[str, Any]]:
    """Read ``params/<profile>.yaml``: a section ``common`` and one per notebook.

    Raises:
        RunError: no such profile, or a file that is not a mapping of mappings.
    """
    import yaml

    path = folder / "params" / f"{profile}.yaml"
    if not path.is_file():
        known = ", ".join(profiles(folder)) or "none"
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
    return sections


def choose_parameters(
    every: Sequence[Notebook], chosen: Sequence[Notebook], sections: Mapping[str, Mapping],
    settings: Mapping[str, str], profile: str,
) -> dict[str, dict[str, Any]]:
    """Return, for each chosen notebook, the values to pass; refuse names that nobody declares.

    Args:
        every: all notebooks, for checking the sections of the params file.
        chosen: those that will run.
        sections: from :func:`load_params`.
        settings: from ``--set``, name -> value as typed.
        profile: passed as ``PROFILE`` where a notebook declares it.
    """
    by_name = {n.name: n for n in every}
    for section, values in sections.items():
        if section != "common" and section not in by_name:
            raise _unknown(f"params/{profile}.yaml: section", section, by_name)
        owners = every if section == "common" else [by_name[section]]
        for name in values:
            _check_known(name, owners, f"params/{profile}.yaml")
    for name in settings:
        _check_known(name, chosen, f"--set {name}")
    if "PROFILE" in {*settings, *(n for s in sections.values() for n in s)}:
        raise RunError("PROFILE is set by the option --profile alone: remove it elsewhere.")
    return {n.name: _values_for(n, sections, settings, profile) for n in chosen}


def _values_for(
    notebook: Notebook, sections: Mapping[str, Mapping], settings: Mapping[str, str], profile: str
) -> dict[str, Any]:
    given = {"PROFILE": profile, **sections.get("common", {}), **sections.get(notebook.name, {})}
    given = {k: v for k, v in given.items() if k in notebook.parameters}
    given |= {k: read_value(v) for k, v in settings.items() if k in notebook.parameters}
    return {k: fit_value(k, v, notebook.parameters[k], notebook.name) for k, v in given.items()}


def _check_known(name: str, owners: Sequence[Notebook], source: str) -> None:
    known = {p: n.name for n in reversed(owners) for p in n.parameters}
    if name not in known:
        where = f"notebook {owners[0].name}" if len(owners) == 1 else "any of the notebooks"
        owner = known if len(owners) > 1 else {}
        raise _unknown(f"{source}: there is no parameter", name, known, f" in {where}", owner)


def _unknown(
    what: str, name: str, known: Iterable[str], where: str = "", owner: Mapping[str, str] = {}
) -> RunError:
    near = {k.upper(): k for k in known}
    best = difflib.get_close_matches(name.upper(), near, n=1, cutoff=0.0)
    if not best:
        return RunError(f"{what} {name!r}{where}: it has none.")
    nearest = near[best[0]]
    home = f" (notebook {owner[nearest]})" if nearest in owner else ""
    return RunError(f"{what} {name!r}{where}; the nearest known name is {nearest}{home}.")


def read_value(text: str) -> Any:
    """Read a value as typed after ``--set NAME=``: a Python or YAML literal, otherwise text.

    >>> read_value("2e-4"), read_value("true"), read_value("[16, 24]"), read_value("rrle")
    (0.0002, True, [16, 24], 'rrle')
    """
    import yaml

    with contextlib.suppress(ValueError, SyntaxError):
        return ast.literal_eval(text)
    with contextlib.suppress(yaml.YAMLError):
        return yaml.safe_load(text)
    return text


def fit_value(name: str, value: Any, default: Any, notebook: str) -> Any:
    """Return ``value`` in the type of ``default``; refuse what does not fit it.

    Whole numbers fit decimal ones, a list fits a tuple, anything fits a default of None.
    """
    if isinstance(value, tuple):
        value = list(value)  # papermill has no notation for tuples
    if default is None or value is None:
        return value
    wanted = list if isinstance(default, tuple) else type(default)
    if wanted is float and not isinstance(value, bool):
        with contextlib.suppress(TypeError, ValueError):
            return float(value)  # YAML reads 2e-4 as text
    if wanted is str and isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)  # a label or a version that looks like a number
    if type(value) is wanted:
        return value
    raise RunError(
        f"{name}={value!r} does not fit notebook {notebook}: its type is {wanted.__name__}, for"
        f" example {default!r}."
    )


def parse_settings(texts: Sequence[str]) -> dict[str, str]:
    """Split ``NAME=VALUE`` texts."""
    settings: dict[str, str] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name.strip().isidentifier():
            raise RunError(f"--set {text}: write --set NAME=VALUE, for example --set STEPS=50.")
        settings[name.strip()] = value.strip()
    return settings


def make_plan(
    folder: Path, profile: str = "cpu", only: Sequence[str] = (), settings: Sequence[str] = (),
    appendix: bool = False, resume: bool = False,
) -> Plan:
    """Check everything that can be checked before a minute is spent, and return what to do."""
    paths = discover(folder, only, appendix)
    everything = discover(folder, appendix=True)
    every = {p: read_notebook(p) for p in everything}
    chosen = [every[p] for p in paths]
    sections = load_params(folder, profile)
    values = parse_settings(settings)
    given = choose_parameters(list(every.values()), chosen, sections, values, profile)
    return Plan(
        profile, tuple(chosen), given, tuple(f"{k}={v}" for k, v in values.items()), resume,
        tuple(n.name for n in every.values()), package_digest(),
    )


