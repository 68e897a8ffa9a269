"""The runner: every notebook in a fresh kernel, in order, with a record of what happened.

    python -m t4s_helpers notebooks                              # all numbered notebooks, CPU profile
    python -m t4s_helpers notebooks --only 04 --set STEPS=50     # one notebook, one parameter changed
    python -m t4s_helpers notebooks --resume                     # go on after a failure

A notebook runs in a folder of its own. Only when every cell has passed and every promised file is
there does that folder replace ``results/<notebook>``; a failing run leaves earlier results as they
were, and its copy in ``results/.failed/<notebook>``.
"""

from __future__ import annotations

import contextlib
import functools
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

from ..evaluation import provenance
from ..files import FileError, atomic_write, is_full_disk, write_error_sentence, write_json
from . import results
from .plan import NOTEBOOKS, Notebook, Plan, RunError, make_plan

COPY_LIMIT = 1_000_000
"""Bytes that an executed copy should not exceed: copies are committed."""
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
    """One line of the closing table; ``stopped`` means by hand."""

    notebook: str
    status: str
    seconds: float | None = None
    headline: str = ""
    stopped: bool = False


# --- the whole series ----------------------------------------------------------------------------


def run_series(
    profile: str = "cpu", only: Sequence[str] = (), settings: Sequence[str] = (), *,
    appendix: bool = False, solutions: bool = False, resume: bool = False, folder: Path = NOTEBOOKS,
) -> int:
    """Run notebooks in order, print what happens, and stop at the first that fails.

    Args:
        profile: which ``params/<profile>.yaml`` to use.
        only: numbers or names, also several in one text: ``["04,05", "A1"]``; empty for all.
        settings: ``NAME=VALUE`` texts that change parameters of the notebooks that declare them.
        appendix: also the appendix notebooks, ``A1_*`` and so on.
        solutions: the answers to the exercises, ``solutions/NN_*``, instead of the notebooks; their
            results go to ``results/solutions`` and not into the summary.
        resume: keep results that are up to date: same notebook, parameters, package and inputs.
        folder: where the notebooks live.

    Returns:
        The exit status: 0, 1 when a notebook failed, 2 when the request cannot be met, 130 when
        stopped by hand.
    """
    tokens = [token for text in only for token in text.split(",") if token]
    try:
        plan = make_plan(folder, profile, tokens, settings, appendix, solutions, resume)
        outcomes = run_plan(plan)
    except (RunError, FileError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped by hand; finished results are as they were.", file=sys.stderr)
        return 130
    print(_closing(plan, outcomes), flush=True)
    if any(outcome.stopped for outcome in outcomes):
        return 130
    return int(any(outcome.status == "failed" for outcome in outcomes))


def run_plan(plan: Plan) -> list[Outcome]:
    """Run every notebook of the plan in order; stop at the first that fails.

    Returns:
        One outcome per notebook, with status ``ok``, ``kept`` (``--resume``), ``skipped: ...``,
        ``failed`` or ``not run``.
    """
    recover(plan.base)
    outcomes: list[Outcome] = []
    for position, notebook in enumerate(plan.notebooks, 1):
        print(f"[{position}/{len(plan.notebooks)}] {notebook.name}", flush=True)
        outcomes.append(_run_or_skip(plan, notebook))
        if outcomes[-1].status == "failed":
            return outcomes + [Outcome(later.name, "not run") for later in plan.notebooks[position:]]
    return outcomes


def _run_or_skip(plan: Plan, notebook: Notebook) -> Outcome:
    if notebook.needs_cuda(plan.profile) and not provenance.cuda_device():
        return Outcome(notebook.name, "skipped: needs a CUDA GPU")
    if plan.resume and up_to_date(plan, notebook):
        return Outcome(notebook.name, "kept")
    try:
        return run_notebook(plan, notebook)
    except NotebookFailed as failure:
        print(f"\n{failure}\n{failure.details}\n", flush=True)
        return Outcome(notebook.name, "failed", stopped=failure.stopped)
    except FileError as error:
        print(f"\n{notebook.name}: {error}\n", flush=True)
        return Outcome(notebook.name, "failed")


def summary_table(outcomes: Sequence[Outcome]) -> str:
    """Return the table that ends a run: notebook, seconds, status, headline number.

    >>> print(summary_table([Outcome("00_start_here", "ok", 4.2, "codec.round_trip = 100 %")]))
    notebook                     seconds  status  headline
    00_start_here                    4.2  ok      codec.round_trip = 100 %
    """
    wide = max(len(outcome.status) for outcome in [Outcome("", "status"), *outcomes])
    lines = [f"{'notebook':<28} seconds  {'status':<{wide}}  headline"]
    for o in outcomes:
        seconds = "" if o.seconds is None else f"{o.seconds:.1f}"
        lines.append(f"{o.notebook:<28} {seconds:>7}  {o.status:<{wide}}  {o.headline}".rstrip())
    return "\n".join(lines)


def _closing(plan: Plan, outcomes: Sequence[Outcome]) -> str:
    total = sum(outcome.seconds or 0 for outcome in outcomes)
    text = f"\n{summary_table(outcomes)}\n\n{total:.0f} s in all, profile {plan.profile}."
    if any(outcome.status == "failed" for outcome in outcomes):
        return text + "\nOnce the cause is mended, go on where it stopped with --resume."
    return text + (
        f"\nExecuted notebooks, figures, tables: {plan.base}/<notebook>/"
        f"\nAll headline numbers: {results.results_root() / results.SUMMARY_FILE}"
    )


# --- is there anything to do? --------------------------------------------------------------------


def up_to_date(plan: Plan, notebook: Notebook) -> bool:
    """Return True when the finished results are those that a new run would make.

    Same notebook, parameters and package; every product still there; and the results of other
    notebooks that it read are still the ones it read.
    """
    manifest = results.read_manifest(plan.base / notebook.name)
    wanted = {
        "status": "ok", "source": notebook.digest, "package": plan.package,
        "parameters": plan.values(notebook),
    }
    if any(manifest.get(key) != value for key, value in wanted.items()):
        return False
    if missing_products(notebook, plan.base / notebook.name):
        return False
    inputs = results.results_folder(plan.profile)
    return all(
        results.read_manifest(inputs / other).get("started", "") == started
        for other, started in manifest.get("reads", {}).items()
    )


def missing_products(notebook: Notebook, folder: Path) -> list[str]:
    """Return the promised files that are absent from ``folder`` or empty."""
    def is_there(path: Path) -> bool:
        return any(path.iterdir()) if path.is_dir() else path.is_file() and path.stat().st_size > 0

    return [product for product in notebook.produces
            if not is_there(folder / product.removeprefix(f"{notebook.name}/"))]


# --- running one notebook ------------------------------------------------------------------------


def run_notebook(plan: Plan, notebook: Notebook) -> Outcome:
    """Run one notebook and, when it succeeds, put its results in place.

    Raises:
        NotebookFailed: a cell failed, the kernel died, or a promised file was not made.
        FileError: the results cannot be written, e.g. because the disk is full.
    """
    stage = plan.base / STAGING / f"{notebook.name}.{os.getpid()}"
    record = _new_record(plan, notebook)
    began, memory = time.monotonic(), provenance.PeakMemory()
    try:
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir(parents=True)
        with memory, _kernel_environment(plan, notebook, stage):
            _execute(plan, notebook, stage)
        _check_products(notebook, stage)
        record |= _cost(began, memory) | {"status": "ok"}
        rows = _finish(plan, notebook, stage, record)
    except NotebookFailed as failure:
        record |= _cost(began, memory) | {"status": "failed", "error": str(failure)}
        lines = (failure.details, _keep_failed(plan, notebook, stage, record))
        failure.details = "\n".join(line for line in lines if line)
        raise
    except OSError as error:
        raise FileError(write_error_sentence(error, plan.base / notebook.name)) from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        with contextlib.suppress(OSError):
            stage.parent.rmdir()
    shown = [f"{r['name']} = {results.format_value(r['value'], r['unit'])}" for r in rows[:1]]
    return Outcome(notebook.name, "ok", record["seconds"], "".join(shown))


def _cost(began: float, memory: provenance.PeakMemory) -> dict[str, Any]:
    seconds = round(time.monotonic() - began, 1)
    return {"seconds": seconds, "peak_memory_mb": round(memory.megabytes)}


def _new_record(plan: Plan, notebook: Notebook) -> dict[str, Any]:
    sha, dirty = provenance.commit()
    return {
        "notebook": notebook.name,
        "profile": plan.profile,
        "command": plan.command(notebook),
        "started": datetime.now(timezone.utc).isoformat(),
        "device": provenance.device(),
        "commit": sha,
        "dirty": dirty,
        "source": notebook.digest,
        "package": plan.package,
        "parameters": plan.values(notebook),
        "versions": provenance.versions(),
    }


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
        "PYTHONPATH": os.pathsep.join(root for root in roots if root),
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
    except KeyboardInterrupt:
        raise NotebookFailed(f"{notebook.name} was stopped by hand.", stopped=True) from None
    except Exception as error:  # papermill, nbclient, zmq: all mean that this notebook failed
        if is_full_disk(error):
            raise
        raise _failure(notebook, copy, error) from error
    _check_all_ran(notebook, node)


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
    if not hasattr(error, "ename"):  # it did not happen in a cell's code
        why = f"{type(error).__name__}: {error}"
        if type(error).__name__ == "DeadKernelError":
            why = "The kernel died; this is what running out of memory looks like."
        return NotebookFailed(f"{notebook.name} stopped before its end: {why}", _running_cell(copy))
    message = f"{notebook.name} failed in cell [{error.exec_count}] with {error.ename}"
    message += f": {error.evalue}" if error.evalue else ""
    trace = _COLOUR.sub("", "\n".join(error.traceback or [])).splitlines()[-12:]
    details = "\n".join([_show_cell(error.source), *(f"  {line}" for line in trace)])
    return NotebookFailed(message, details, error.ename == "KeyboardInterrupt")


def _running_cell(copy: Path) -> str:
    """Return the last cell that was begun, for people."""
    import nbformat

    with contextlib.suppress(Exception):
        for cell in reversed(nbformat.read(str(copy), as_version=4).cells):
            if cell.metadata.get("papermill", {}).get("start_time"):
                return _show_cell(cell.source)
    return ""


def _show_cell(source: str) -> str:
    return "\n".join(f"  | {line}" for line in source.splitlines())


def _check_products(notebook: Notebook, stage: Path) -> None:
    missing = missing_products(notebook, stage)
    if missing:
        raise NotebookFailed(
            f"{notebook.name} ran to its end, but did not make {', '.join(missing)} as it"
            " promises: save it, or correct 't4s.produces' in its metadata."
        )


# --- putting results in place --------------------------------------------------------------------


def _finish(
    plan: Plan, notebook: Notebook, stage: Path, record: dict[str, Any]
) -> list[dict[str, Any]]:
    """Complete the run's folder, put it in place, and add its numbers to the summary."""
    record["reads"] = results.read_json(stage / results.READS_FILE, {})
    (stage / results.READS_FILE).unlink(missing_ok=True)
    record["produces"] = {
        path.relative_to(stage).as_posix(): path.stat().st_size
        for path in sorted(stage.rglob("*"))
        if path.is_file() and path.name != notebook.path.name
    }
    tidy_copy(stage / notebook.path.name, stage)
    write_json(stage / results.MANIFEST_FILE, record)
    rows = results.read_json(stage / results.HEADLINE_FILE, [])
    summary = results.results_root() / results.SUMMARY_FILE
    merged = results.read_summary(summary)
    if not plan.solutions:
        merged = results.merged_summary(merged, notebook.name, plan.profile, rows, plan.existing)
    # Write first, move last: when the disk is full, nothing has been replaced yet.
    waiting = write_json(stage.with_name(f"summary.{os.getpid()}"), merged)
    swap_in(stage, plan.base / notebook.name)
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
    finally:
        recover(place.parent)


def recover(base: Path) -> None:
    """Undo what an earlier run that was killed left half done in ``base``."""
    import psutil

    for path in (base / STAGING).glob("*"):
        name, _, tail = path.name.rpartition(".")
        if tail == "old" and not (base / name).exists():
            os.rename(path, base / name)
        elif tail.isdigit() and psutil.pid_exists(int(tail)):
            continue  # another runner is at work
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        (base / STAGING).rmdir()


def _keep_failed(plan: Plan, notebook: Notebook, stage: Path, record: dict[str, Any]) -> str:
    """Keep a failed run's folder; say where it is, what it used, and that nothing else changed."""
    place = plan.base / FAILED / notebook.name
    copy = place / notebook.path.name
    shutil.rmtree(place, ignore_errors=True)
    with contextlib.suppress(OSError, FileError):  # never a reason to fail once more
        place.parent.mkdir(parents=True, exist_ok=True)
        write_json(stage / results.MANIFEST_FILE, record)
        os.rename(stage, place)
    text = f"  Memory in use at most: {record['peak_memory_mb']} MB.\n"
    text += f"  The run up to there: {copy}." if copy.is_file() else "  No copy was kept."
    if (plan.base / notebook.name).is_dir():
        text += f"\n  Earlier results are as they were: {plan.base / notebook.name}."
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
        if cell.cell_type == "code":
            cell.outputs = hide_folders(cell.outputs, patterns)
    content = nbformat.writes(node)
    if len(content.encode()) > COPY_LIMIT:
        node.metadata.pop("widgets", None)
        _shrink_pictures(node)
        content = nbformat.writes(node)
    atomic_write({path: content.encode()})
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


def hide_folders(value: Any, patterns: Sequence[tuple[re.Pattern, str]]) -> Any:
    """Return outputs with the folders of this machine replaced in all text, but not in pictures."""
    if isinstance(value, str):
        return functools.reduce(lambda text, p: p[0].sub(lambda _: p[1], text), patterns, value)
    if isinstance(value, list):
        return [hide_folders(item, patterns) for item in value]
    if isinstance(value, dict):
        return type(value)({
            key: item if key.startswith("image/") else hide_folders(item, patterns)
            for key, item in value.items()
        })
    return value


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
