"""The runner: every notebook in a fresh kernel, in order, with a record of what happened.

    python -m t4s_helpers.workbook.runner                              # all numbered notebooks, CPU profile
    python -m t4s_helpers.workbook.runner --only 04 --set STEPS=50     # one notebook, one parameter changed
    python -m t4s_helpers.workbook.runner --resume                     # go on after a failure

A notebook runs in a folder of its own. Only when every cell has passed and every file that it
promises is there does that folder take the place of ``results/<notebook>``; a failing run leaves
earlier results as they were, and its copy in ``results/.failed/<notebook>``.

A notebook's metadata may say, under ``t4s``:

* ``produces``: list of the files it makes, relative to the results folder;
* ``needs``: ``"cuda"``, a list of such needs, or one entry per profile, ``{"gpu": "cuda"}``.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from t4s_helpers.evaluation import provenance
from t4s_helpers.workbook import results
from t4s_helpers.workbook.plan import Notebook, Plan, RunError, make_plan
from t4s_helpers import files
from t4s_helpers.files import FileError

NOTEBOOKS = results.ROOT / "notebooks"
COPY_LIMIT = 1_000_000
STAGING, FAILED = ".staging", ".failed"

_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class NotebookFailed(RuntimeError):
    """A notebook did not finish. ``details`` holds the failing cell and the traceback's end."""

    def __init__(self, message: str, details: str = "", stopped: bool = False):
        super().__init__(message)
        self.details = details
        self.stopped = stopped


@dataclass
class Outcome:
    """One line of the table at the end."""

    notebook: str
    status: str
    seconds: float | None = None
    headline: str = ""
    stopped: bool = False


# --- running one notebook ------------------------------------------------------------------------


def up_to_date(plan: Plan, notebook: Notebook) -> bool:
    """Return True when the finished results are those that a new run would make.

    Same notebook, parameters and package; every product still there; and the results of other
    notebooks that it read are still the ones it read.
    """
    base = results.results_folder(plan.profile)
    manifest = results.read_manifest(base / notebook.name)
    wanted = {
        "status": "ok", "source": notebook.digest, "package": plan.package,
        "parameters": _all_parameters(plan, notebook),
    }
    if any(manifest.get(key) != value for key, value in wanted.items()):
        return False
    if missing_products(notebook, base / notebook.name):
        return False
    reads = manifest.get("reads", {})
    return all(
        results.read_manifest(base / other).get("started", "") == started
        for other, started in reads.items()
    )


def _all_parameters(plan: Plan, notebook: Notebook) -> dict[str, Any]:
    # Through JSON and back, as in the manifest, where a tuple is a list.
    return json.loads(json.dumps({**notebook.parameters, **plan.given[notebook.name]}))


def missing_products(notebook: Notebook, folder: Path) -> list[str]:
    """Return the promised files that are absent from ``folder`` or empty."""
    missing = []
    for product in notebook.produces:
        path = folder / product.removeprefix(f"{notebook.name}/")
        empty_folder = path.is_dir() and not any(path.iterdir())
        if not path.exists() or empty_folder or (path.is_file() and path.stat().st_size == 0):
            missing.append(product)
    return missing


def run_notebook(plan: Plan, notebook: Notebook) -> Outcome:
    """Run one notebook and, when it succeeds, put its results in place.

    Raises:
        NotebookFailed: a cell failed, the kernel died, or a promised file was not made.
        FileError: the results cannot be written, e.g. because the disk is full.
    """
    base = results.results_folder(plan.profile)
    stage = base / STAGING / f"{notebook.name}.{os.getpid()}"
    record = _new_record(plan, notebook)
    began, memory = time.monotonic(), provenance.PeakMemory()
    try:
        _prepare(stage)
        with memory, _kernel_environment(plan, notebook, stage):
            _execute(plan, notebook, stage)
        _check_products(notebook, stage)
        record |= _cost(began, memory) | {"status": "ok"}
        rows = _finish(plan, notebook, stage, record)
    except NotebookFailed as failure:
        record |= _cost(began, memory) | {"status": "failed", "error": str(failure)}
        lines = (failure.details, _after_failure(base, notebook, stage, record))
        failure.details = "\n".join(line for line in lines if line)
        raise
    except OSError as error:
        raise FileError(files.write_error_sentence(error, base / notebook.name)) from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        with contextlib.suppress(OSError):
            stage.parent.rmdir()
    shown = results.format_value(rows[0]["value"], rows[0]["unit"]) if rows else ""
    return Outcome(
        notebook.name, "ok", record["seconds"], f"{rows[0]['name']} = {shown}" if rows else ""
    )


def _cost(began: float, memory: provenance.PeakMemory) -> dict[str, Any]:
    seconds = round(time.monotonic() - began, 1)
    return {"seconds": seconds, "peak_memory_mb": round(memory.megabytes)}


def _new_record(plan: Plan, notebook: Notebook) -> dict[str, Any]:
    sha, dirty = provenance.commit()
    return {
        "notebook": notebook.name,
        "status": "running",
        "profile": plan.profile,
        "command": plan.command(notebook),
        "started": datetime.now(timezone.utc).isoformat(),
        "seconds": None,
        "peak_memory_mb": None,
        "device": provenance.device(),
        "commit": sha,
        "dirty": dirty,
        "source": notebook.digest,
        "package": plan.package,
        "parameters": _all_parameters(plan, notebook),
        "versions": provenance.versions(),
    }


def _prepare(stage: Path) -> None:
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir(parents=True)


@contextlib.contextmanager
def _kernel_environment(plan: Plan, notebook: Notebook, stage: Path) -> Iterator[None]:
    """Set what the kernel inherits, and put it back afterwards."""
    old = dict(os.environ)
    roots = [str(results.ROOT), os.environ.get("PYTHONPATH", "")]
    os.environ |= {
        results.NOTEBOOK_VARIABLE: notebook.name,
        results.STAGE_VARIABLE: str(stage),
        results.RESULTS_VARIABLE: str(results.results_root()),
        results.COMMAND_VARIABLE: plan.command(notebook),
        results.PROFILE_VARIABLE: plan.profile,
        "PYTHONPATH": os.pathsep.join(r for r in roots if r),
        # The kernel of this environment, also where the user has one of the same name.
        "JUPYTER_PREFER_ENV_PATH": "1",
        # Kernels that load frozen modules warn about the debugger in the executed copy.
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    for name in ("T4S_CACHE", "T4S_SHARED"):  # the kernel starts in another folder
        if os.environ.get(name):
            os.environ[name] = str(Path(os.environ[name]).expanduser().absolute())
    os.environ.pop("MPLBACKEND", None)  # figures belong in the executed copy
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(old)


def _execute(plan: Plan, notebook: Notebook, stage: Path) -> None:
    """Execute with papermill; the executed copy lies in ``stage`` also after a failure."""
    import logging

    import papermill

    logging.getLogger("papermill").setLevel(logging.ERROR)
    copy = stage / notebook.path.name
    bar = {"desc": notebook.name, "mininterval": 0.1 if sys.stderr.isatty() else 30.0}
    try:
        node = papermill.execute_notebook(
            str(notebook.path), str(copy), parameters=plan.given[notebook.name],
            kernel_name="python3", progress_bar=bar, cwd=str(notebook.path.parent),
            start_timeout=300,  # a busy machine
            extra_arguments=["--IPKernelApp.log_level=CRITICAL"],  # its start and end are noisy
        )
        _check_all_ran(notebook, node)
    except NotebookFailed:
        raise
    except KeyboardInterrupt:
        raise NotebookFailed(f"{notebook.name} was stopped by hand.", stopped=True) from None
    except Exception as error:  # papermill, nbclient, zmq: all mean that this notebook failed
        if files.is_full_disk(error):
            raise
        raise _failure(notebook, copy, error) from error


def _check_all_ran(notebook: Notebook, node: Any) -> None:
    """A cell that calls sys.exit() ends the kernel's work without an error: that is no success."""
    for index, cell in enumerate(node.cells):
        # False: ran without an exception. None: never begun, whatever its status says.
        ended = cell.metadata.get("papermill", {}).get("exception") is False
        if cell.cell_type == "code" and cell.source.strip() and not ended:
            raise NotebookFailed(
                f"{notebook.name} ended early: cell {index + 1} of {len(node.cells)} called"
                " sys.exit() or was never reached.",
                _show_cell(cell.source),
            )


def _failure(notebook: Notebook, copy: Path, error: Exception) -> NotebookFailed:
    """Return the failing cell and the end of the traceback, for people."""
    source, trace = getattr(error, "source", None), getattr(error, "traceback", None)
    if source is None:
        cell = _running_cell(copy)
        why = f"{type(error).__name__}: {error}"
        if type(error).__name__ == "DeadKernelError":
            why = "The kernel died; when a machine runs out of memory, this is how it shows."
        where = f"{notebook.name} stopped before it ended"
        return NotebookFailed(f"{where}: {why}", _show_cell(cell) if cell else "")
    lines = _COLOUR.sub("", "\n".join(trace or [])).splitlines()[-12:]
    stopped = error.ename == "KeyboardInterrupt"
    message = f"{notebook.name} failed in cell [{error.exec_count}] with {error.ename}"
    message += f": {error.evalue}" if error.evalue else ""
    details = _show_cell(source) + "\n" + "\n".join(f"  {line}" for line in lines)
    return NotebookFailed(message, details, stopped)


def _running_cell(copy: Path) -> str:
    """Return the source of the last cell that was begun."""
    import nbformat

    begun = ""
    with contextlib.suppress(Exception):
        for cell in nbformat.read(str(copy), as_version=4).cells:
            if cell.metadata.get("papermill", {}).get("start_time"):
                begun = cell.source
    return begun


def _show_cell(source: str) -> str:
    return "\n".join(f"  | {line}" for line in source.splitlines())


def _check_products(notebook: Notebook, stage: Path) -> None:
    missing = missing_products(notebook, stage)
    if missing:
        raise NotebookFailed(
            f"{notebook.name} ran to its end, but did not make {', '.join(missing)} as it"
            " promises: save it, or correct 't4s.produces' in its metadata."
        )


def _finish(
    plan: Plan, notebook: Notebook, stage: Path, record: dict[str, Any]
) -> list[dict[str, Any]]:
    """Complete the run's folder, put it in place, and add its numbers to the summary."""
    reads = stage / results.READS_FILE
    record["reads"] = json.loads(reads.read_text()) if reads.is_file() else {}
    reads.unlink(missing_ok=True)
    record["produces"] = {
        path.relative_to(stage).as_posix(): path.stat().st_size
        for path in sorted(stage.rglob("*"))
        if path.is_file() and path.name != notebook.path.name
    }
    tidy_copy(stage / notebook.path.name, stage)
    files.write_json(stage / results.MANIFEST_FILE, record)
    rows_file = stage / results.HEADLINE_FILE
    rows = json.loads(rows_file.read_text()) if rows_file.is_file() else []
    summary = results.results_root() / results.SUMMARY_FILE
    merged = results.merged_summary(
        results.read_summary(summary), notebook.name, plan.profile, rows, plan.existing
    )
    # Write first, move last: when the disk is full, nothing has been replaced yet.
    waiting = files.write_json(stage.with_name(f"summary.{os.getpid()}"), merged)
    swap_in(stage, results.results_folder(plan.profile) / notebook.name)
    os.replace(waiting, summary)
    return rows


def swap_in(new: Path, place: Path) -> None:
    """Put folder ``new`` where ``place`` is; the old content comes back if that fails."""
    old = new.with_name(f"{place.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        os.rename(place, old)
    try:
        os.rename(new, place)
    except OSError:
        if old.exists():
            os.rename(old, place)
        raise
    shutil.rmtree(old, ignore_errors=True)


def recover(base: Path) -> None:
    """Undo what an earlier run that was killed left half done in ``base``."""
    import psutil

    for folder in (base / STAGING).glob("*"):
        name, _, tail = folder.name.rpartition(".")
        if tail == "old":
            if not (base / name).exists():
                os.rename(folder, base / name)
            else:
                shutil.rmtree(folder, ignore_errors=True)
        elif tail.isdigit() and psutil.pid_exists(int(tail)):
            continue  # another runner is at work
        elif folder.is_dir():
            shutil.rmtree(folder, ignore_errors=True)
        else:
            folder.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        (base / STAGING).rmdir()


def _keep_failed(
    base: Path, notebook: Notebook, stage: Path, record: dict[str, Any]
) -> Path | None:
    """Keep a failed run's folder for looking at; never a reason to fail once more."""
    place = base / FAILED / notebook.name
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(stage / results.MANIFEST_FILE, record)
        shutil.rmtree(place, ignore_errors=True)
        os.rename(stage, place)
    except (OSError, FileError):
        return None
    return place


def _after_failure(base: Path, notebook: Notebook, stage: Path, record: dict[str, Any]) -> str:
    """Keep the failed run and say where it is, what it used, and that nothing else changed."""
    kept = _keep_failed(base, notebook, stage, record)
    copy = kept / notebook.path.name if kept else None
    text = f"  Memory in use at most: {record['peak_memory_mb']} MB.\n"
    text += f"  The run up to there: {copy}." if copy and copy.is_file() else "  No copy was kept."
    if (base / notebook.name).is_dir():
        text += f"\n  Earlier results are as they were: {base / notebook.name}."
    return text


# --- the executed copy ---------------------------------------------------------------------------


def tidy_copy(path: Path, stage: Path) -> None:
    """Make the executed copy fit to be shared: small, and without this machine's folders."""
    import nbformat

    node = nbformat.read(str(path), as_version=4)
    kept = ("start_time", "end_time", "duration", "parameters", "version")
    node.metadata["papermill"] = {
        key: value for key, value in node.metadata.get("papermill", {}).items() if key in kept
    }
    patterns = _private_folders(stage, path.stem)
    for cell in node.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            _hide_folders(output, patterns)
    content = nbformat.writes(node)
    if len(content.encode()) > COPY_LIMIT:
        node.metadata.pop("widgets", None)
        _shrink_pictures(node)
        content = nbformat.writes(node)
    files.atomic_write({path: content.encode()})
    size = path.stat().st_size
    if size > COPY_LIMIT:
        print(f"  note: {path.name} is {size / 1e6:.1f} MB executed; show fewer or smaller"
              " pictures to stay under 1 MB.", file=sys.stderr)


def _private_folders(stage: Path, name: str) -> list[tuple[re.Pattern, str]]:
    """Return patterns of this machine's folders and what to show instead, the longest first."""
    known = {
        str(Path.home()): "~",
        tempfile.gettempdir(): "TMP",
        sys.prefix: ".venv" if sys.prefix != sys.base_prefix else sys.prefix,
        str(results.ROOT): ".",
        str(results.results_root()): "results",
        str(stage): f"results/{name}",
    }
    ordered = sorted(known.items(), key=lambda pair: -len(pair[0]))
    return [
        (re.compile(r"(?<![\w.-])" + re.escape(folder) + r"(?![\w.-])"), shown)
        for folder, shown in ordered if len(folder) > 1
    ]


def _hide_folders(output: Any, patterns: Sequence[tuple[re.Pattern, str]]) -> None:
    """Replace folders of this machine in the text of one output."""
    def clean(text: Any) -> Any:
        if isinstance(text, list):
            return [clean(line) for line in text]
        for pattern, shown in patterns:
            text = pattern.sub(lambda _, s=shown: s, text) if isinstance(text, str) else text
        return text

    for key in ("text", "evalue", "traceback"):
        if key in output:
            output[key] = clean(output[key])
    data = output.get("data", {})
    for kind in [k for k in data if k.startswith("text/")]:
        data[kind] = clean(data[kind])


def _shrink_pictures(node: Any) -> None:
    """Store the pictures in a copy that is too large with 256 colours."""
    import base64
    import io

    from PIL import Image

    for output in (o for c in node.cells for o in c.get("outputs", [])):
        data = output.get("data", {})
        if "image/png" not in data:
            continue
        picture = Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
        small = io.BytesIO()
        picture.convert("RGB").quantize(256).save(small, format="PNG", optimize=True)
        if small.tell() < 0.75 * len(data["image/png"]):
            data["image/png"] = base64.b64encode(small.getvalue()).decode()


# --- the whole run -------------------------------------------------------------------------------


def run(plan: Plan, say: Any = print) -> list[Outcome]:
    """Run every notebook of the plan in order; stop at the first that fails.

    Returns:
        One outcome per notebook, with status ``ok``, ``kept`` (``--resume``), ``skipped: ...``,
        ``failed`` or ``not run``.
    """
    recover(results.results_folder(plan.profile))
    outcomes: list[Outcome] = []
    for position, notebook in enumerate(plan.notebooks, 1):
        say(f"[{position}/{len(plan.notebooks)}] {notebook.name}")
        outcome = _run_or_skip(plan, notebook, say)
        outcomes.append(outcome)
        if outcome.status == "failed":
            rest = plan.notebooks[position:]
            return outcomes + [Outcome(n.name, "not run") for n in rest]
    return outcomes


def _run_or_skip(plan: Plan, notebook: Notebook, say: Any) -> Outcome:
    if "cuda" in notebook.needs_for(plan.profile) and not provenance.cuda_device():
        return Outcome(notebook.name, "skipped: needs a CUDA GPU")
    if plan.resume and up_to_date(plan, notebook):
        return Outcome(notebook.name, "kept")
    try:
        return run_notebook(plan, notebook)
    except NotebookFailed as failure:
        say(f"\n{failure}\n{failure.details}\n")
        return Outcome(notebook.name, "failed", stopped=failure.stopped)
    except FileError as error:
        say(f"\n{notebook.name}: {error}\n")
        return Outcome(notebook.name, "failed")


def summary_table(outcomes: Sequence[Outcome]) -> str:
    """Return the table that ends a run: notebook, seconds, status, headline number.

    >>> print(summary_table([Outcome("00_start_here", "ok", 4.2, "codec.round_trip = 100 %")]))
    notebook       seconds  status  headline
    00_start_here      4.2  ok      codec.round_trip = 100 %
    """
    rows = [("notebook", "seconds", "status", "headline")]
    for o in outcomes:
        rows.append((o.notebook, "" if o.seconds is None else f"{o.seconds:.1f}", o.status,
                     o.headline))
    wide = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        f"{a:<{wide[0]}}  {b:>{wide[1]}}  {c:<{wide[2]}}  {d}".rstrip() for a, b, c, d in rows
    )


def _closing(plan: Plan, outcomes: Sequence[Outcome]) -> str:
    base, total = results.results_folder(plan.profile), sum(o.seconds or 0 for o in outcomes)
    text = f"\n{summary_table(outcomes)}\n\n{total:.0f} s in all, profile {plan.profile}."
    if any(o.status == "failed" for o in outcomes):
        return text + "\nAfter mending the cause, go on where it stopped with --resume."
    return text + (
        f"\nExecuted notebooks, figures, tables: {base}/<notebook>/"
        f"\nAll headline numbers: {results.results_root() / results.SUMMARY_FILE}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m t4s_helpers.workbook.runner", description="Run the workbook's notebooks in order."
    )
    add = parser.add_argument
    add("--profile", default="cpu", help="which notebooks/params/<profile>.yaml to use (cpu)")
    add("--only", nargs="+", action="extend", default=[], metavar="NN",
        help="only these notebooks, by number or name: --only 04 05, --only A1")
    add("--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE", dest="settings",
        help="change a parameter of the notebooks that declare it")
    add("--appendix", action="store_true", help="also the appendix notebooks A1_*, A2_*, ...")
    add("--resume", action="store_true",
        help="keep results that are up to date: same notebook, parameters, package and inputs")
    add("--notebooks", type=Path, default=NOTEBOOKS, help="another folder of notebooks")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns 0, 1 when a notebook failed, 2 when the request cannot be met."""
    options = _parser().parse_args(arguments)
    only = [token for text in options.only for token in text.split(",") if token]
    try:
        plan = make_plan(
            options.notebooks.expanduser().absolute(), options.profile, only, options.settings,
            options.appendix, options.resume,
        )
        outcomes = run(plan, functools.partial(print, flush=True))
    except (RunError, FileError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped by hand; finished results are as they were.", file=sys.stderr)
        return 130
    print(_closing(plan, outcomes), flush=True)
    if any(o.stopped for o in outcomes):
        return 130
    return 1 if any(o.status == "failed" for o in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
