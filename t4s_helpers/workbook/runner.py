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
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..evaluation import provenance
from ..files import ROOT, FileError, atomic_write, clear_errors, is_full_disk, write_json
from . import results
from .plan import Notebook, Plan, RunError, make_plan

COPY_LIMIT = 1_000_000
"""Bytes that an executed copy should not exceed: copies are committed."""
STAGING, FAILED = ".staging", ".failed"
WIDGET = "application/vnd.jupyter.widget-view+json"

_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class NotebookFailed(RuntimeError):
    """A notebook did not finish. ``details`` holds the failing cell and the traceback's end."""

    def __init__(self, message: str, details: str = "", exit: int = 1):
        super().__init__(message)
        self.details, self.exit = details, exit


@dataclass
class Outcome:
    """One line of the closing table; ``exit`` is what the run's exit status must be at least."""

    notebook: str
    status: str
    seconds: float | None = None
    headline: str = ""
    exit: int = 0


# --- the whole series ----------------------------------------------------------------------------


def run_series(**request: Any) -> int:
    """Run notebooks in order, print what happens, and stop at the first that fails.

    Args:
        request: what to run; see `t4s_helpers.workbook.plan.make_plan`.

    Returns:
        The exit status: 0, 1 when a notebook failed, 2 when the request cannot be met, 130 when
        stopped by hand.
    """
    try:
        plan = make_plan(**request)
        outcomes = run_plan(plan)
    except RunError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped by hand; finished results are as they were.", file=sys.stderr)
        return 130
    total = sum(outcome.seconds or 0 for outcome in outcomes)
    print(f"\n{closing_table(outcomes)}\n\n{total:.0f} s in all, profile {plan.profile}.")
    status = max((outcome.exit for outcome in outcomes), default=0)
    if status:
        print("Once the cause is mended, go on where it stopped with --resume.", flush=True)
    else:
        print(f"Executed notebooks, figures, tables: {plan.base}/<notebook>/")
        print(f"All headline numbers: {results.results_root() / results.SUMMARY_FILE}", flush=True)
    return status


def run_plan(plan: Plan) -> list[Outcome]:
    """Run every notebook of the plan in order; stop at the first that fails.

    Returns:
        One outcome per notebook, with status ``ok``, ``kept`` (``--resume``), ``failed`` or ``not run``.
    """
    recover(plan.base)
    outcomes: list[Outcome] = []
    for position, notebook in enumerate(plan.notebooks, 1):
        print(f"[{position}/{len(plan.notebooks)}] {notebook.name}", flush=True)
        if plan.resume and up_to_date(plan, notebook):
            outcomes.append(Outcome(notebook.name, "kept"))
        else:
            outcomes.append(run_notebook(plan, notebook))
        if outcomes[-1].exit:
            return outcomes + [Outcome(later.name, "not run") for later in plan.notebooks[position:]]
    return outcomes


def closing_table(outcomes: Sequence[Outcome]) -> str:
    """Return the table that ends a run: notebook, seconds, status, headline number.

    >>> print(closing_table([Outcome("00_start", "ok", 4.2, "a.b = 100 %"), Outcome("01_x", "failed")]))
    notebook                     seconds  status   headline
    00_start                         4.2  ok       a.b = 100 %
    01_x                                  failed
    """
    row = "{:<28} {:>7}  {:<7}  {}".format
    lines = [row("notebook", "seconds", "status", "headline")]
    for o in outcomes:
        lines.append(row(o.notebook, "" if o.seconds is None else f"{o.seconds:.1f}", o.status, o.headline))
    return "\n".join(line.rstrip() for line in lines)


# --- is there anything to do? --------------------------------------------------------------------


def up_to_date(plan: Plan, notebook: Notebook) -> bool:
    """Return True when the finished results are those that a new run would make.

    Same notebook, parameters and package; every product still there; and the results of other
    notebooks that it read are still the ones it read.
    """
    manifest = results.read_manifest(plan.base / notebook.name)
    wanted = {"status": "ok", "source": notebook.digest, "package": plan.package,
              "parameters": plan.values(notebook)}
    inputs = results.results_folder(plan.profile)
    return (
        all(manifest.get(key) == value for key, value in wanted.items())
        and not missing_products(notebook, plan.base / notebook.name)
        and all(results.read_manifest(inputs / other).get("started", "") == started
                for other, started in manifest.get("reads", {}).items())
    )


def missing_products(notebook: Notebook, folder: Path) -> list[str]:
    """Return the promised files that are absent from ``folder`` or empty."""
    paths = {product: folder / product.removeprefix(f"{notebook.name}/") for product in notebook.produces}
    return [product for product, path in paths.items() if not (path.is_file() and path.stat().st_size)]


# --- running one notebook ------------------------------------------------------------------------


def run_notebook(plan: Plan, notebook: Notebook) -> Outcome:
    """Run one notebook and, when it succeeds, put its results in place.

    It fails when a cell does, when the kernel dies, when a promised file was not made, or when the
    results cannot be written; what happened is then printed.
    """
    place = plan.base / notebook.name
    stage = plan.base / STAGING / f"{notebook.name}.{os.getpid()}"
    record = _new_record(plan, notebook)
    try:
        with clear_errors(place):
            shutil.rmtree(stage, ignore_errors=True)
            stage.mkdir(parents=True)
            _execute(plan, notebook, stage, record)
            rows = _finish(plan, notebook, stage, record)
    except NotebookFailed as failure:
        record |= {"status": "failed", "error": str(failure)}
        kept = _keep_failed(place, stage, record)
        print("", failure, *filter(None, [failure.details, kept]), "", sep="\n", flush=True)
        return Outcome(notebook.name, "failed", exit=failure.exit)
    except FileError as error:
        print(f"\n{notebook.name}: {error}\n", flush=True)
        return Outcome(notebook.name, "failed", exit=1)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        with contextlib.suppress(OSError):
            stage.parent.rmdir()
    shown = [f"{r['name']} = {results.format_value(r['value'], r['unit'])}" for r in rows[:1]]
    return Outcome(notebook.name, "ok", record["seconds"], "".join(shown))


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
    roots = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    os.environ |= {
        results.NOTEBOOK_VARIABLE: notebook.name,
        results.STAGE_VARIABLE: str(stage),
        results.RESULTS_VARIABLE: str(results.results_root()),
        results.COMMAND_VARIABLE: plan.command(notebook),
        "PYTHONPATH": os.pathsep.join(root for root in roots if root),
        # The kernel of this environment, also where the user has one of the same name.
        "JUPYTER_PREFER_ENV_PATH": "1",
        # Kernels that load frozen modules warn about the debugger in the executed copy.
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    for name in ("T4S_CACHE", "T4S_DATA", "T4S_SHARED"):  # the kernel starts in another folder
        if os.environ.get(name):
            os.environ[name] = str(Path(os.environ[name]).expanduser().absolute())
    os.environ.pop("MPLBACKEND", None)  # figures belong in the executed copy
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(old)


def _execute(plan: Plan, notebook: Notebook, stage: Path, record: dict[str, Any]) -> None:
    """Execute with papermill; the executed copy lies in ``stage`` also after a failure.

    Time and memory go to ``record``.
    """
    import logging

    import papermill

    logging.getLogger("papermill").setLevel(logging.ERROR)
    copy = stage / notebook.path.name
    bar = {"desc": notebook.name, "mininterval": 0.1 if sys.stderr.isatty() else 30.0}
    began, memory = time.monotonic(), provenance.PeakMemory()
    try:
        with memory, _kernel_environment(plan, notebook, stage):
            node = papermill.execute_notebook(
                str(notebook.path), str(copy), parameters=plan.given[notebook.name],
                kernel_name="python3", progress_bar=bar, cwd=str(notebook.path.parent),
                start_timeout=300,  # a busy machine
                extra_arguments=["--IPKernelApp.log_level=CRITICAL"],  # its start and end are noisy
            )
    except KeyboardInterrupt:
        raise NotebookFailed(f"{notebook.name} was stopped by hand.", exit=130) from None
    except Exception as error:  # papermill, nbclient, zmq: all mean that this notebook failed
        if is_full_disk(error):
            raise
        raise _failure(notebook, copy, error) from error
    finally:
        record["seconds"] = round(time.monotonic() - began, 1)
        record["peak_memory_mb"] = round(memory.megabytes)
    # A cell that calls sys.exit() ends the kernel's work without an error: that is no success.
    for index, cell in enumerate(node.cells, 1):
        # False: ran without an exception. None: never begun, whatever its status says.
        ended = cell.metadata.get("papermill", {}).get("exception") is False
        if cell.cell_type == "code" and cell.source.strip() and not ended:
            raise NotebookFailed(
                f"{notebook.name} ended early: cell {index} of {len(node.cells)} called sys.exit() or"
                " was never reached.", _show_cell(cell.source))


def _failure(notebook: Notebook, copy: Path, error: Exception) -> NotebookFailed:
    """Return what failed, with its cell and the end of the traceback, for people."""
    import nbformat

    details = []
    with contextlib.suppress(Exception):  # there may be no copy yet
        begun = [cell for cell in nbformat.read(str(copy), as_version=4).cells
                 if cell.metadata.get("papermill", {}).get("start_time")]
        details = [_show_cell(begun[-1].source)]
    name = getattr(error, "ename", "")
    if name:
        message = f"failed in cell [{error.exec_count}] with {name}"
        message += f": {error.evalue}" if error.evalue else ""
        trace = _COLOUR.sub("", "\n".join(error.traceback or [])).splitlines()[-12:]
        details += [f"  {line}" for line in trace]
    elif type(error).__name__ == "DeadKernelError":
        message = "stopped before its end: The kernel died; this is what running out of memory looks like."
    else:  # it did not happen in a cell's code
        message = f"stopped before its end: {type(error).__name__}: {error}"
    exit = 130 if name == "KeyboardInterrupt" else 1
    return NotebookFailed(f"{notebook.name} {message}", "\n".join(details), exit)


def _show_cell(source: str) -> str:
    return "\n".join(f"  | {line}" for line in source.splitlines())


# --- putting results in place --------------------------------------------------------------------


def _finish(plan: Plan, notebook: Notebook, stage: Path, record: dict[str, Any]) -> list[dict[str, Any]]:
    """Complete the run's folder, put it in place, and add its numbers to the summary."""
    if missing := missing_products(notebook, stage):
        raise NotebookFailed(
            f"{notebook.name} ran to its end, but did not make {', '.join(missing)} as it"
            " promises: save it, or correct 't4s.produces' in its metadata."
        )
    record |= {"status": "ok", "reads": results.read_json(stage / results.READS_FILE, {})}
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
    merged = results.read_json(summary, [])
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


def _keep_failed(place: Path, stage: Path, record: dict[str, Any]) -> str:
    """Keep a failed run's folder; say where it is, what it used, and that nothing else changed."""
    kept = place.parent / FAILED / place.name
    copy = kept / f"{place.name}.ipynb"
    shutil.rmtree(kept, ignore_errors=True)
    with contextlib.suppress(OSError, FileError):  # never a reason to fail once more
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_json(stage / results.MANIFEST_FILE, record)
        os.rename(stage, kept)
    text = f"  Memory in use at most: {record['peak_memory_mb']} MB.\n"
    text += f"  The run up to there: {copy}." if copy.is_file() else "  No copy was kept."
    return text + (f"\n  Earlier results are as they were: {place}." if place.is_dir() else "")


# --- the executed copy ---------------------------------------------------------------------------


def tidy_copy(path: Path, stage: Path) -> None:
    """Make the executed copy fit to be shared: small, and without this machine's folders."""
    import nbformat

    shown = {
        str(Path.home()): "~",
        tempfile.gettempdir(): "TMP",
        sys.prefix: ".venv" if sys.prefix != sys.base_prefix else sys.prefix,
        str(ROOT): ".",
        str(results.results_root()): "results",
        str(stage): f"results/{path.stem}",
    }
    node = nbformat.read(str(path), as_version=4)
    kept = ("start_time", "end_time", "duration", "parameters", "version")
    about = node.metadata.get("papermill", {})
    node.metadata["papermill"] = {key: about[key] for key in about if key in kept}
    for cell in node.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = hide_folders(cell.outputs, shown)
    for_reading(node)
    if len(nbformat.writes(node).encode()) > COPY_LIMIT:
        _shrink_pictures(node)
    content = nbformat.writes(node).encode()
    atomic_write({path: content})
    if len(content) > COPY_LIMIT:
        print(f"  note: {path.name} is {len(content) / 1e6:.1f} MB executed; show fewer or smaller"
              " pictures to stay under 1 MB.", file=sys.stderr)


def for_reading(node: Any) -> Any:
    """Change an executed notebook so that it reads well where no kernel runs, and return it.

    A widget gives way to what else its output holds (an explorer's is a picture); what holds nothing else,
    a progress bar say, goes. Every picture gets an alternative text, where `IPython.display.Image` keeps
    one: the heading that it stands under, and the first sentence of what the text after it tells to notice.
    """
    node.metadata.pop("widgets", None)
    heading, texts = "", [cell.source if cell.cell_type == "markdown" else "" for cell in node.cells]
    for index, cell in enumerate(node.cells):
        heading = (re.findall(r"^#+ +(.+)$", texts[index], re.M) or [heading])[-1]
        kept = [output for output in cell.get("outputs", [])
                if not (output.get("data", {}).pop(WIDGET, None) and set(output.data) <= {"text/plain"})]
        for output in kept:
            if "image/png" in output.get("data", {}):
                told = re.match(r"\*\*What to notice\.\*\*\s+(.+?[.:?])(?:\s|$)",
                                next(filter(None, texts[index:]), ""), re.S)
                words = " ".join(f"Figure: {heading} {told[1] if told else ''}".split())
                output.metadata.setdefault("image/png", {}).setdefault("alt", re.sub("[*`$]", "", words))
        if cell.cell_type == "code":
            cell.outputs = kept
    return node


def hide_folders(value: Any, shown: Mapping[str, str]) -> Any:
    """Return outputs with folders of this machine replaced in all text, but not in pictures.

    Args:
        value: outputs, or a part of them.
        shown: folder -> what to write instead. Of folders in each other the innermost counts.
    """
    if isinstance(value, str):
        folders = sorted((f for f in shown if len(f) > 1), key=len, reverse=True)
        pattern = rf"(?<![\w.-])({'|'.join(map(re.escape, folders))})(?![\w.-])"
        return re.sub(pattern, lambda found: shown[found[1]], value)
    if isinstance(value, list):
        return [hide_folders(item, shown) for item in value]
    if isinstance(value, dict):
        return type(value)({
            key: item if key.startswith("image/") else hide_folders(item, shown)
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
        if "image/png" in data:
            small = io.BytesIO()
            picture = Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
            picture.convert("RGB").quantize(256).save(small, format="PNG", optimize=True)
            if small.tell() < 0.75 * len(data["image/png"]):
                data["image/png"] = base64.b64encode(small.getvalue()).decode()
