"""Results: where figures, tables and headline numbers are saved.

A notebook names its folder once and saves by name::

    run_folder("02_run_length_encoding", PROFILE)
    save_figure(fig, "token_counts")
    save_table(frame, "token_counts")
    headline("codec.tokens.rrle", 107.2, "tokens", n=400)

Opened by hand, a notebook writes to ``results/<notebook>``. Under the runner
(`t4s_helpers.workbook.runner`) the same calls write to a folder of this run alone, which replaces
``results/<notebook>`` once every cell has passed. Results of a profile other than ``cpu`` go to
``results/<profile>/<notebook>``, so that one profile never overwrites another.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import ROOT, FileError, atomic_write, clear_errors, json_bytes, write_json

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

#: Environment variables through which the runner speaks to a notebook's kernel.
RESULTS_VARIABLE = "T4S_RESULTS"
NOTEBOOK_VARIABLE = "T4S_NOTEBOOK"
STAGE_VARIABLE = "T4S_STAGE"
COMMAND_VARIABLE = "T4S_COMMAND"

READS_FILE = "reads.json"
HEADLINE_FILE = "headline.json"
MANIFEST_FILE = "manifest.json"
SUMMARY_FILE = "summary.json"

#: The columns of ``summary.json``, in order.
HEADLINE_FIELDS = ("name", "value", "unit", "profile", "n", "notebook", "command")

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
_HEADLINE_NAME = re.compile(r"[a-z0-9][a-z0-9_@+-]*(\.[a-z0-9_@+-]+)+")


class ResultsError(FileError):
    """A result cannot be saved or found. The message names the file and says what to do."""


# --- folders -------------------------------------------------------------------------------------


_current: dict[str, Any] = {}
"""``folder``, ``notebook``, ``profile`` and ``headlines`` of this process: set by `run_folder`."""


def results_root() -> Path:
    """Return the folder of all results: ``T4S_RESULTS``, or ``results`` beside the package."""
    return Path(os.environ.get(RESULTS_VARIABLE) or ROOT / "results").expanduser().absolute()


def results_folder(profile: str = "cpu") -> Path:
    """Return the folder that holds one sub-folder per notebook for this profile.

    >>> results_folder("gpu").name, results_folder("gpu").parent == results_folder("cpu")
    ('gpu', True)
    """
    return results_root() if profile == "cpu" else results_root() / profile


def run_folder(notebook: str, profile: str = "cpu") -> Path:
    """Make ``notebook``'s own folder, and write everything saved from now on to it.

    Args:
        notebook: the notebook's file name without ``.ipynb``, e.g. ``"02_run_length_encoding"``.
        profile: ``"cpu"``, ``"gpu"`` or another params file's name.

    Returns:
        The existing folder, absolute.

    Raises:
        ResultsError: under the runner, when ``notebook`` is not the notebook that is running.
        FileError: the folder cannot be made.
    """
    notebook, profile = _file_name(notebook, "notebook"), _file_name(profile, "profile")
    running, stage = os.environ.get(NOTEBOOK_VARIABLE), os.environ.get(STAGE_VARIABLE)
    if stage and notebook != running:
        raise ResultsError(
            f"run_folder({notebook!r}) is called in notebook {running}: pass {running!r}; to read"
            f" another notebook's results use finished_folder({notebook!r})."
        )
    folder = Path(stage) if stage else results_folder(profile) / notebook
    with clear_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    _current.update(folder=folder, notebook=notebook, profile=profile, headlines={})
    return folder


def finished_folder(notebook: str, profile: str = "cpu") -> Path:
    """Return the folder with the finished results of another notebook.

    Under the runner the use is recorded, so that ``--resume`` runs this notebook again when the
    other one has new results.

    Raises:
        ResultsError: that notebook has not been run yet.
    """
    folder = results_folder(_file_name(profile, "profile")) / _file_name(notebook, "notebook")
    if not folder.is_dir():
        raise ResultsError(
            f"Notebook {notebook} has no results for profile {profile} yet: run it first, with"
            f" {run_command(notebook, profile)}."
        )
    if stage := os.environ.get(STAGE_VARIABLE):
        reads = Path(stage) / READS_FILE
        write_json(reads, {**read_json(reads, {}), notebook: read_manifest(folder).get("started", "")})
    return folder


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a notebook's results folder, or ``{}`` when it has none."""
    try:
        return read_json(folder / MANIFEST_FILE, {})
    except ResultsError:
        return {}


def read_json(path: Path, default: Any) -> Any:
    """Return the content of a JSON file of results, or ``default`` when there is none.

    Raises:
        ResultsError: the file is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return default
    except (ValueError, OSError) as error:
        raise ResultsError(
            f"{path} cannot be read ({error}): delete it and run its notebook again."
        ) from error


def _own_folder() -> Path:
    if not _current:
        raise ResultsError(
            "There is no results folder yet: call run_folder('NN_name', PROFILE) in the set-up"
            " cell, then save."
        )
    return _current["folder"]


def _file_name(name: str, what: str) -> str:
    if not isinstance(name, str) or not _FILE_NAME.fullmatch(name):
        raise ResultsError(
            f"{what} {name!r} cannot be a file name here: use letters, digits and _ . + - only,"
            " without a folder."
        )
    return name


# --- figures and tables --------------------------------------------------------------------------


def save_figure(fig: Figure, name: str, dpi: int = 100) -> Path:
    """Save a Matplotlib figure as ``<name>.png`` in this notebook's folder, and return its path.

    Figures are committed: keep ``dpi``, the dots per inch, small.
    """
    path = _own_folder() / f"{_file_name(name, 'figure')}.png"
    picture = io.BytesIO()
    # Without the Software field the same figure gives the same bytes after an upgrade.
    fig.savefig(picture, format="png", dpi=dpi, bbox_inches="tight", metadata={"Software": None})
    atomic_write({path: picture.getvalue()})
    return path


def save_table(table: pandas.DataFrame | Iterable[Mapping[str, Any]], name: str) -> Path:
    """Save a table as ``<name>.csv`` and ``<name>.json`` in this notebook's folder, both or neither.

    Args:
        table: a data frame, whose named index levels are saved as columns and whose nameless index
            is not; or one mapping per row, with columns in the order of first appearance. Cells
            are text, finite numbers, bools or missing values, which are saved as empty (``null``).
        name: the files' name without ending.

    Returns:
        The path of the CSV file.

    Raises:
        ResultsError: no rows, or a value that no table can hold; the message names the column.
    """
    import pandas

    folder, name = _own_folder(), _file_name(name, "table")
    if not isinstance(table, pandas.DataFrame):
        table = pandas.DataFrame([dict(row) for row in table], dtype=object)
    elif any(level is not None for level in table.index.names):
        table = table.reset_index()
    if table.empty:
        raise ResultsError(f"Table {name!r} has no rows: there is nothing to save.")
    rows = [
        {str(column): _plain(cell, f"{name}, column {column}") for column, cell in zip(table.columns, row)}
        for row in table.itertuples(index=False, name=None)
    ]
    # With "\n" as its line end, the csv module would leave a carriage return in a cell unquoted.
    text = pandas.DataFrame(rows, dtype=object).to_csv(index=False, lineterminator="\r\n")
    path = folder / f"{name}.csv"
    text = text.replace("\r\n", "\n")
    atomic_write({path: text.encode(), folder / f"{name}.json": json_bytes(rows)})
    return path


def _plain(value: Any, where: str) -> Any:
    """Return ``value`` as a plain Python text, number, bool or None."""
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()  # NumPy and torch scalars
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if type(value).__name__ in ("NAType", "NaTType"):
        return None  # how pandas writes a missing value in a column that is not of floats
    if isinstance(value, float) and not math.isinf(value):
        return None if math.isnan(value) else value
    raise ResultsError(f"{where}: {value!r} cannot be saved in a table; use text, a finite number or None.")


# --- headline numbers ----------------------------------------------------------------------------


def headline(name: str, value: float, unit: str, n: int) -> dict[str, Any]:
    """Record one headline number of this notebook; the runner adds it to ``summary.json``.

    The first one that a notebook records is the number shown in the runner's table.

    Args:
        name: dotted lower-case name, e.g. ``"embedded.res.ciou"``.
        value: a finite number.
        unit: e.g. ``"%"``, ``"s"``, ``"tokens"``, ``"x"``; ``"ratio"`` for a value in 0..1.
        n: on how many samples (or repetitions) the number rests, at least 1.

    Returns:
        The row, with the fields of `HEADLINE_FIELDS`.
    """
    path = _own_folder() / HEADLINE_FILE
    value, n = _plain(value, f"headline {name}"), _plain(n, f"headline {name}, n")
    if not isinstance(name, str) or not _HEADLINE_NAME.fullmatch(name):
        raise ResultsError(f"Headline name {name!r} is not dotted lower case such as 'embedded.res.ciou'.")
    if type(value) not in (int, float):
        raise ResultsError(f"Headline {name} needs a finite number, not {value!r}.")
    if not isinstance(unit, str) or not unit.strip():
        raise ResultsError(f"Headline {name} needs a unit, such as '%', 's' or 'ratio'.")
    if type(n) is not int or n < 1:
        raise ResultsError(f"Headline {name} needs n, the number of samples behind it, not {n!r}.")
    notebook, profile = _current["notebook"], _current["profile"]
    command = os.environ.get(COMMAND_VARIABLE) or run_command(notebook, profile)
    values = (name, value, unit, profile, n, notebook, command)
    row = dict(zip(HEADLINE_FIELDS, values, strict=True))
    _current["headlines"][name] = row
    write_json(path, list(_current["headlines"].values()))
    return row


def run_command(notebook: str, profile: str = "cpu", options: Iterable[str] = ()) -> str:
    """Return the command that runs one notebook again.

    >>> run_command("07_evaluation", options=["--set N=50"])
    'python -m t4s_helpers notebooks --profile cpu --only 07 --set N=50'
    """
    only = notebook.split("_")[0]
    return " ".join([f"python -m t4s_helpers notebooks --profile {profile} --only {only}", *options])


def format_value(value: float, unit: str) -> str:
    """Return a number with four significant digits and its unit.

    >>> format_value(71.23456, "%"), format_value(0.51, "ratio"), format_value(12345, "tokens")
    ('71.23 %', '0.51', '12345 tokens')
    """
    text = f"{value:.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
    return text if unit == "ratio" else f"{text} {unit}"


def merged_summary(
    rows: list[dict[str, Any]], notebook: str, profile: str, fresh: list[dict[str, Any]],
    existing: Container[str],
) -> list[dict[str, Any]]:
    """Return ``rows`` with this notebook's numbers replaced by ``fresh``, sorted by name.

    Rows of a notebook that is not among the ``existing`` ones are dropped.

    Raises:
        ResultsError: another notebook already owns one of the names in this profile.
    """
    kept = [row for row in rows if row["notebook"] in existing
            and (row["notebook"], row["profile"]) != (notebook, profile)]
    owners = {row["name"]: row["notebook"] for row in kept if row["profile"] == profile}
    for name in (row["name"] for row in fresh if row["name"] in owners):
        raise ResultsError(
            f"Headline {name} of notebook {notebook} already belongs to notebook {owners[name]}:"
            " give one of them another name."
        )
    return sorted([*kept, *fresh], key=lambda row: (row["name"], row["profile"]))
