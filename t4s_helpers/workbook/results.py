"""Results: where figures, tables and headline numbers go, and how they get there safely.

A notebook names its folder once and saves by name::

    run_folder("02_run_length_encoding", PROFILE)
    save_figure(fig, "token_counts")
    save_table(rows, "token_counts")
    headline("codec.tokens.rrle", 107.2, "tokens", n=400)

Opened by hand, a notebook writes to ``results/<notebook>``. Under the runner
(:mod:`t4s_helpers.workbook.runner`) the same calls write to a folder of this run alone, which takes the place
of ``results/<notebook>`` when every cell has passed. Results of a profile other than ``cpu`` live
beside them in ``results/<profile>/<notebook>``, so that one never overwrites the other.

Every file is written beside its final place and moved there in one step: a reader sees the old
file or the new one, never half of one.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..files import ROOT, FileError, atomic_write, clear_errors, json_bytes, write_json
from .tables import csv_text

#: Names of the environment variables through which the runner speaks to a notebook's kernel.
RESULTS_VARIABLE = "T4S_RESULTS"
NOTEBOOK_VARIABLE = "T4S_NOTEBOOK"
STAGE_VARIABLE = "T4S_STAGE"
COMMAND_VARIABLE = "T4S_COMMAND"
PROFILE_VARIABLE = "T4S_PROFILE"

READS_FILE = "reads.json"
HEADLINE_FILE = "headline.json"
MANIFEST_FILE = "manifest.json"
SUMMARY_FILE = "summary.json"

#: The columns of ``summary.json``, in order.
HEADLINE_FIELDS = ("name", "value", "unit", "profile", "n", "notebook", "command")

README_BEGIN = "<!-- results:begin -->"
README_END = "<!-- results:end -->"

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
_HEADLINE_NAME = re.compile(r"[a-z0-9][a-z0-9_@+-]*(\.[a-z0-9_@+-]+)+")


class ResultsError(FileError):
    """A result cannot be saved or found. The message names the file and says what to do."""


# --- folders -------------------------------------------------------------------------------------


class _Current:
    """The notebook that this process writes for: set by :func:`run_folder`."""

    folder: Path | None = None
    notebook: str = ""
    profile: str = "cpu"
    headlines: dict[str, dict[str, Any]] = {}


def results_root() -> Path:
    """Return the folder of all results: ``T4S_RESULTS``, or ``results`` beside the package."""
    return Path(os.environ.get(RESULTS_VARIABLE) or ROOT / "results").expanduser().absolute()


def results_folder(profile: str = "cpu") -> Path:
    """Return the folder that holds one sub-folder per notebook for this profile.

    >>> results_folder("gpu").name, results_folder("gpu").parent == results_folder("cpu")
    ('gpu', True)
    """
    return results_root() if profile == "cpu" else results_root() / profile


def run_folder(notebook: str, profile: str | None = None) -> Path:
    """Make ``notebook``'s own folder, and write everything saved from now on to it.

    Args:
        notebook: the notebook's file name without ``.ipynb``, e.g. ``"02_run_length_encoding"``.
        profile: ``"cpu"``, ``"gpu"`` or another params file's name; default: the runner's profile.

    Returns:
        The existing folder, absolute.

    Raises:
        ResultsError: under the runner, when ``notebook`` is not the notebook that is running.
    """
    notebook = _file_name(notebook, "notebook")
    profile = _file_name(profile or os.environ.get(PROFILE_VARIABLE) or "cpu", "profile")
    running, stage = os.environ.get(NOTEBOOK_VARIABLE), os.environ.get(STAGE_VARIABLE)
    if running and stage and notebook != running:
        raise ResultsError(
            f"run_folder({notebook!r}) is called in notebook {running}: pass {running!r}; to read"
            f" another notebook's results use finished_folder({notebook!r})."
        )
    folder = Path(stage) if running and stage else results_folder(profile) / notebook
    with clear_errors(folder, 0):
        folder.mkdir(parents=True, exist_ok=True)
    _Current.folder, _Current.notebook, _Current.profile = folder, notebook, profile
    _Current.headlines = {}
    return folder


def finished_folder(notebook: str, profile: str | None = None) -> Path:
    """Return the folder with the finished results of another notebook.

    Under the runner the use is recorded, so that ``--resume`` runs this notebook again when the
    other one has new results.

    Raises:
        ResultsError: when that notebook has not been run yet.
    """
    notebook = _file_name(notebook, "notebook")
    profile = profile or (_Current.profile if _Current.folder else None)
    profile = _file_name(profile or os.environ.get(PROFILE_VARIABLE) or "cpu", "profile")
    folder = results_folder(profile) / notebook
    if not folder.is_dir():
        raise ResultsError(
            f"Notebook {notebook} has no results for profile {profile} yet: run it first, with"
            f" python -m t4s_helpers.workbook.runner --profile {profile} --only {notebook.split('_')[0]}."
        )
    stage = os.environ.get(STAGE_VARIABLE)
    if stage:
        reads = _read_json(Path(stage) / READS_FILE, {})
        reads[notebook] = read_manifest(folder).get("started", "")
        write_json(Path(stage) / READS_FILE, reads)
    return folder


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a notebook's results folder, or ``{}`` when it has none."""
    try:
        manifest = _read_json(folder / MANIFEST_FILE, {})
    except ResultsError:
        return {}
    return manifest if isinstance(manifest, dict) else {}


def _own_folder() -> Path:
    if _Current.folder is None:
        raise ResultsError(
            "There is no results folder yet: call run_folder('NN_name', PROFILE) in the set-up"
            " cell, then save."
        )
    return _Current.folder


def _file_name(name: str, what: str) -> str:
    if not isinstance(name, str) or not _FILE_NAME.fullmatch(name):
        raise ResultsError(
            f"{what} {name!r} cannot be a file name here: use letters, digits and _ . + - only,"
            " without a folder."
        )
    return name


# --- writing -------------------------------------------------------------------------------------


def _read_json(path: Path, default: Any) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return default
    except (ValueError, OSError) as error:
        raise ResultsError(
            f"{path} cannot be read ({error}): delete it and run its notebook again."
        ) from error


# --- figures and tables --------------------------------------------------------------------------


def save_figure(fig: Any, name: str, dpi: int = 100) -> Path:
    """Save a Matplotlib figure as ``<name>.png`` in this notebook's folder.

    Args:
        fig: a ``matplotlib.figure.Figure``.
        name: the file's name without ending.
        dpi: dots per inch; figures are committed, so keep them small.

    Returns:
        The path of the PNG.
    """
    path = _own_folder() / f"{_file_name(name, 'figure')}.png"
    picture = io.BytesIO()
    # Without the Software field the same figure gives the same bytes after an upgrade.
    fig.savefig(picture, format="png", dpi=dpi, bbox_inches="tight", metadata={"Software": None})
    atomic_write({path: picture.getvalue()})
    return path


def save_table(rows: Iterable[Mapping[str, Any]], name: str) -> Path:
    """Save rows as ``<name>.csv`` and ``<name>.json`` in this notebook's folder, both or neither.

    Args:
        rows: one mapping per row, column -> text, number, bool or None. Columns come in the order
            in which they first appear; a missing value and a NaN are saved as empty (``null``).
        name: the files' name without ending.

    Returns:
        The path of the CSV file.
    """
    folder, name = _own_folder(), _file_name(name, "table")
    table = [{str(k): _plain(v, f"{name}, column {k}") for k, v in row.items()} for row in rows]
    columns = list(dict.fromkeys(column for row in table for column in row))
    if not columns:
        raise ResultsError(f"Table {name!r} has no rows: there is nothing to save.")
    table = [{column: row.get(column) for column in columns} for row in table]
    path = folder / f"{name}.csv"
    atomic_write({path: csv_text(table).encode(), path.with_suffix(".json"): json_bytes(table)})
    return path


def load_table(name: str, notebook: str | None = None) -> list[dict[str, Any]]:
    """Read a table that :func:`save_table` wrote, with the types that it had.

    Args:
        name: the table's name without ending.
        notebook: the notebook that saved it; default: the one that is running.
    """
    folder = finished_folder(notebook) if notebook else _own_folder()
    path = folder / f"{_file_name(name, 'table')}.json"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.csv"))) or "none"
        raise ResultsError(f"There is no table {name!r} in {folder}; the tables there: {known}.")
    return _read_json(path, [])


def _plain(value: Any, where: str) -> Any:
    """Return ``value`` as a plain Python text, number, bool or None."""
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()  # NumPy and torch scalars
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float) and not math.isinf(value):
        return None if math.isnan(value) else value
    raise ResultsError(
        f"{where}: {value!r} cannot be saved in a table; use text, a finite number or None."
    )


# --- headline numbers ----------------------------------------------------------------------------


def headline(
    name: str, value: float, unit: str, n: int, *, command: str | None = None
) -> dict[str, Any]:
    """Record one headline number of this notebook; the runner adds it to ``summary.json``.

    The first one that a notebook records is the number shown in the runner's table.

    Args:
        name: dotted lower-case name, e.g. ``"embedded.res.ciou"``.
        value: a finite number.
        unit: e.g. ``"%"``, ``"s"``, ``"tokens"``, ``"x"``; ``"ratio"`` for a value in 0..1.
        n: on how many samples (or repetitions) the number rests, at least 1.
        command: what regenerates it; default: the runner's command for this notebook.

    Returns:
        The row, with the fields of :data:`HEADLINE_FIELDS`.
    """
    folder, value = _own_folder(), _plain(value, f"headline {name}")
    command = command or os.environ.get(COMMAND_VARIABLE) or run_command(
        _Current.notebook, _Current.profile
    )
    row = dict(zip(HEADLINE_FIELDS, (
        name, value, unit, _Current.profile, _plain(n, f"headline {name}, n"),
        _Current.notebook, command,
    ), strict=True))
    _check_headline(row)
    _Current.headlines[name] = row
    write_json(folder / HEADLINE_FILE, list(_Current.headlines.values()))
    return row


def run_command(notebook: str, profile: str = "cpu", settings: Iterable[str] = ()) -> str:
    """Return the command that runs one notebook again.

    >>> run_command("07_evaluation", settings=["N=50"])
    'python -m t4s_helpers.workbook.runner --profile cpu --only 07 --set N=50'
    """
    extra = "".join(f" --set {setting}" for setting in settings)
    only = notebook.split("_")[0]
    return f"python -m t4s_helpers.workbook.runner --profile {profile} --only {only}{extra}"


def _check_headline(row: Mapping[str, Any]) -> None:
    name, value, n = row["name"], row["value"], row["n"]
    if not isinstance(name, str) or not _HEADLINE_NAME.fullmatch(name):
        raise ResultsError(
            f"Headline name {name!r} is not dotted lower case such as 'embedded.res.ciou'."
        )
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ResultsError(f"Headline {name} needs a finite number, not {value!r}.")
    if not isinstance(row["unit"], str) or not row["unit"].strip():
        raise ResultsError(f"Headline {name} needs a unit, such as '%', 's' or 'ratio'.")
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ResultsError(f"Headline {name} needs n, the number of samples behind it, not {n!r}.")


def read_summary(path: Path | None = None) -> list[dict[str, Any]]:
    """Return the rows of ``summary.json``; an empty list when there is none yet."""
    return _read_json(path or results_root() / SUMMARY_FILE, [])


def merged_summary(
    rows: list[dict[str, Any]], notebook: str, profile: str, fresh: list[dict[str, Any]],
    existing: Iterable[str] | None = None,
) -> list[dict[str, Any]]:
    """Return ``rows`` with this notebook's numbers replaced by ``fresh``, sorted by name.

    Args:
        rows: the summary as it is.
        notebook, profile: whose rows ``fresh`` replaces; all other rows stay.
        fresh: the new rows.
        existing: the names of all notebooks; a row of one that no longer exists gives way.

    Raises:
        ResultsError: when another notebook already owns one of the names in this profile.
    """
    kept = [r for r in rows if (r["notebook"], r["profile"]) != (notebook, profile)]
    names = {row["name"] for row in fresh}
    alive = None if existing is None else set(existing)
    for row in [r for r in kept if r["name"] in names and r["profile"] == profile]:
        if alive is None or row["notebook"] in alive:
            raise ResultsError(
                f"Headline {row['name']} of notebook {notebook} already belongs to notebook"
                f" {row['notebook']}: give one of them another name."
            )
        kept.remove(row)
    return sorted([*kept, *fresh], key=lambda r: (r["name"], r["profile"]))


# --- the README's table --------------------------------------------------------------------------


def readme_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return the summary's rows as a Markdown table."""
    lines = ["| number | value | n | profile | made by |", "|---|---:|---:|---|---|"]
    for row in rows:
        cells = (
            f"`{row['name']}`", format_value(row["value"], row["unit"]), str(row["n"]),
            row["profile"], f"`{row['command']}`",
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def format_value(value: float, unit: str) -> str:
    """Return a number with four significant digits and its unit.

    >>> format_value(71.23456, "%"), format_value(0.51, "ratio"), format_value(12345, "tokens")
    ('71.23 %', '0.51', '12345 tokens')
    """
    text = str(value) if isinstance(value, int) else f"{value:.4g}"
    if isinstance(value, float) and abs(value) >= 1e4:
        text = f"{value:.0f}"
    return text if unit == "ratio" else f"{text} {unit}"


def readme_with_results(text: str, rows: Iterable[Mapping[str, Any]]) -> str:
    """Return the README's text with the table between its markers made anew."""
    if text.count(README_BEGIN) != 1 or text.count(README_END) != 1:
        raise ResultsError(
            f"The README needs the markers {README_BEGIN} and {README_END} once each, on lines of"
            " their own: put them where the results table belongs."
        )
    before, rest = text.split(README_BEGIN)
    if README_END not in rest:
        raise ResultsError(f"In the README {README_END} comes before {README_BEGIN}: swap them.")
    after = rest.split(README_END)[1]
    return f"{before}{README_BEGIN}\n{readme_table(rows)}\n{README_END}{after}"


def update_readme(readme: Path | None = None, summary: Path | None = None) -> bool:
    """Bring the README's results table up to date; return True when it changed."""
    readme = readme or ROOT / "README.md"
    if not readme.is_file():
        raise ResultsError(f"{readme} is not there: the results table has no place to go.")
    old = readme.read_text(encoding="utf-8")
    new = readme_with_results(old, read_summary(summary))
    if new != old:
        atomic_write({readme: new.encode()})
    return new != old


def main(arguments: list[str] | None = None) -> int:
    """``python -m t4s_helpers.workbook.results readme``: make the README's results table anew."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments != ["readme"]:
        print("usage: python -m t4s_helpers.workbook.results readme", file=sys.stderr)
        return 2
    try:
        changed = update_readme()
    except ResultsError as error:
        print(error, file=sys.stderr)
        return 1
    print("README.md: results table " + ("made anew." if changed else "is up to date."))
    return 0


if __name__ == "__main__":
    sys.exit(main())
