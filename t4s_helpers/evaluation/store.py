"""Rows of a run on disk: written batch by batch, safe against a kill, shared among processes.

A run's folder holds ``run.json`` (settings, their fingerprint, what was left out, where it was made)
and rows as JSON, one a line: ``rows.<process>.jsonl`` while it runs, ``rows.jsonl`` in the order of
the samples when it is done. A batch counts when all its rows are there; what a kill left of a batch
is dropped and made anew, so nothing is lost and nothing counts twice.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..files import atomic_write, write_error_sentence, write_json

RUN_FILE = "run.json"
ROWS_FILE = "rows.jsonl"
TIMES = ("seconds", "after_seconds")
"""The parts of a row that differ between two runs of the same thing."""


class StoreError(RuntimeError):
    """A run's folder that cannot be resumed or read; the message names the file and line."""


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits that stand for settings; the order of their names does not matter.

    >>> fingerprint({"batch": 16, "mode": "fast"}) == fingerprint({"mode": "fast", "batch": 16})
    True
    """
    text = json.dumps(settings, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_lines(path: Path) -> tuple[list[dict], str]:
    """The rows of a file and what a kill left of its last line.

    Returns:
        ``(rows, torn)``; ``torn`` is empty where the file ends with a whole line.

    Raises:
        StoreError: a line in the middle that is no row, or an id that comes twice.
    """
    *lines, torn = path.read_bytes().split(b"\n")
    rows: dict[str, tuple[int, dict]] = {}
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            name = str(row["id"])
        except (ValueError, TypeError, KeyError):
            raise StoreError(
                f"Line {number} of {path} is no row of a run ({line[:40]!r} ...). A kill can only tear the "
                "last line, so the file was changed: start again in a new folder.") from None
        if name in rows:
            raise StoreError(f"Lines {rows[name][0]} and {number} of {path} are both about sample "
                             f"'{name}', which would count twice: start again in a new folder.")
        rows[name] = number, row
    return [row for _, row in rows.values()], torn.decode("utf-8", "replace")


def read_run(folder: Path | str) -> tuple[list[dict], dict]:
    """The rows of a run, finished or not, and its record.

    A torn last line is left out with a warning that names the file.

    Raises:
        StoreError: no run there, or rows that belong to other settings.
    """
    folder = Path(folder)
    record = _record(folder)
    if record is None:
        raise StoreError(f"{folder} holds no {RUN_FILE}: give the folder of a run.")
    rows = _merged(folder, record["fingerprint"])
    return sorted(rows.values(), key=lambda row: row["order"]), record


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("rows*.jsonl"))


def _record(folder: Path) -> dict | None:
    path = folder / RUN_FILE
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        record["fingerprint"], record["settings"]
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path} is not the record of a run ({error}): start in a new folder.") from error
    return record


def _merged(folder: Path, expected: str) -> dict[str, dict]:
    """id -> row of all files; a row in two files (a kill while they were joined) counts once."""
    rows: dict[str, dict] = {}
    for path in _files(folder):
        found, torn = read_lines(path)
        if torn:
            warnings.warn(f"The last line of {path} is torn off and was left out: {torn[:40]!r}",
                          stacklevel=4)
        for row in found:
            if row["run"] != expected:
                raise StoreError(f"Sample '{row['id']}' in {path} was scored under other settings "
                                 f"(run {row['run']}, not {expected}): start in a new folder.")
            if _timeless(rows.setdefault(row["id"], row)) != _timeless(row):
                raise StoreError(f"Two files in {folder} answer sample '{row['id']}' in two ways: start "
                                 "again in a new folder.")
    return rows


def _timeless(row: Mapping) -> dict:
    return {key: value for key, value in row.items() if key not in TIMES}


class Processes:
    """The processes of a run, through accelerate where a launcher started several.

    ``accelerate launch`` and ``torchrun`` set ``WORLD_SIZE``; without it there is one process and
    accelerate is not imported.

    Attributes:
        rank, count: number of this process, and how many there are.
        first_here: whether this is the first process on its machine.
    """

    def __init__(self) -> None:
        self.state, self.rank, self.count, self.first_here = None, 0, 1, True
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            import torch
            from accelerate import PartialState

            self.state = PartialState(cpu=not torch.cuda.is_available())
            self.rank, self.count = self.state.process_index, self.state.num_processes
            self.first_here = self.state.is_local_main_process

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.state:
            self.state.wait_for_everyone()

    def leave(self) -> None:
        """Wait for all and disconnect; the last thing that they do together.

        A process that ends without it may be aborted while the threads of its connections still run.
        """
        if self.state:
            self.wait()
            self.state.destroy_process_group()

    def gather(self, items: list) -> list:
        """The lists of all processes, joined in the order of their ranks; the same everywhere."""
        if not self.state:
            return list(items)
        from accelerate.utils import gather_object

        return gather_object(list(items))


class RunStore:
    """A run that is being written; as a context manager it lets go of its folder at the end.

    Args:
        folder: of the run; made where there is none. Machines may share it or have one each.
        settings: what decides the answers, as plain values; a folder is resumed under the same
            settings alone.
        batches: ids of the rows of each batch.
        order: all ids in the order of the samples; by default that of the batches.
        about: further facts for the record (what was left out before, versions); not compared.
        restart: forget what the folder holds.

    Raises:
        StoreError: the folder belongs to other settings (the message names them), is in use by
            another run, or holds rows that do not belong to this run.
    """

    def __init__(self, folder: Path | str, settings: Mapping[str, Any], batches: Sequence[Sequence[str]],
                 order: Sequence[str] = (), about: Mapping[str, Any] | None = None, restart: bool = False,
                 processes: Processes | None = None):
        self.folder, self.processes = Path(folder), processes or Processes()
        self.settings = json.loads(json.dumps(settings))
        self.fingerprint, self.batches = fingerprint(self.settings), [list(b) for b in batches]
        self.batch_of = {name: k for k, ids in enumerate(self.batches) for name in ids}
        self.order = {name: k for k, name in enumerate(order or self.batch_of)}
        self._lock, self._file = None, None
        self._in_turn(lambda: self._open(restart, dict(about or {})))
        rows = _merged(self.folder, self.fingerprint)
        self.done = {self.batch_of[name] for name in self.processes.gather(list(rows))}

    def __enter__(self) -> RunStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _in_turn(self, act: Callable[[], None]) -> None:
        """Let the first process of each machine act; what stops one stops all, with its message."""
        failed: list[str] = []
        if self.processes.first_here:
            try:
                act()
            except StoreError as error:
                failed = [str(error)]
        failed = self.processes.gather(failed)
        if failed:
            self.close()
            raise StoreError(failed[0])

    def _open(self, restart: bool, about: dict) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        if restart:
            for path in [*_files(self.folder), self.folder / RUN_FILE]:
                path.unlink(missing_ok=True)
        record = _record(self.folder)
        if record is None:
            if _files(self.folder):
                raise StoreError(f"{self.folder} holds rows without {RUN_FILE}, so nothing tells what "
                                 "they are: start in a new folder, or with restart.")
            write_json(self.folder / RUN_FILE, {"fingerprint": self.fingerprint, **about,
                                                "settings": self.settings})
            return
        self._check_settings(record["settings"])
        if record.get("package") != about.get("package"):
            warnings.warn(f"The package has changed since {self.folder} was begun: its rows may differ "
                          "from what it would write now. Start with restart to be sure.", stacklevel=6)
        self._mend()

    def _check_settings(self, theirs: Mapping) -> None:
        names = sorted(key for key in {*theirs, *self.settings} if theirs.get(key) != self.settings.get(key))
        if names:
            shown = "; ".join(f"{key}: {_short(theirs.get(key))} there, {_short(self.settings.get(key))} here"
                              for key in names)
            raise StoreError(f"The run in {self.folder} was begun with other settings ({shown}). Resume it "
                             "with those, start in a new folder, or forget its rows with restart.")

    def _mend(self) -> None:
        """Drop what a kill left of a batch: torn lines, and rows whose batch is not complete."""
        found = {path: read_lines(path) for path in _files(self.folder)}
        there = {row["id"] for rows, _ in found.values() for row in rows}
        if stray := there - self.order.keys():
            raise StoreError(f"{self.folder} has a row for sample '{min(stray)}', which is none of this "
                             "run's samples: start in a new folder.")
        whole = {k for k, ids in enumerate(self.batches) if there.issuperset(ids)}
        for path, (rows, torn) in found.items():
            kept = [row for row in rows if self.batch_of[row["id"]] in whole]
            if torn or len(kept) < len(rows):
                atomic_write({path: _lines(kept)})

    def _take_lock(self) -> None:
        """Held while this process lives, so a kill leaves no lock behind."""
        name = hashlib.sha256(str(self.folder.resolve()).encode()).hexdigest()[:16]
        lock = FileLock(Path(tempfile.gettempdir()) / f"t4s-run-{name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise StoreError(f"Another process is writing to {self.folder}: wait for it, or choose "
                             "another folder.") from None
        self._lock = lock

    def todo(self) -> list[int]:
        """Numbers of the batches that this process is to make."""
        left = [k for k in range(len(self.batches)) if k not in self.done]
        return left[self.processes.rank::self.processes.count]

    def write(self, batch: int, rows: Sequence[dict]) -> None:
        """Add a finished batch: on disk when this returns.

        Raises:
            StoreError: the rows are not those of the batch, or the disk is full; what was written
                before stays.
        """
        ids = [row["id"] for row in rows]
        if ids != self.batches[batch]:
            raise StoreError(f"Batch {batch} must have the rows {self.batches[batch][:3]} ..., got "
                             f"{ids[:3]} ...")
        path = self.folder / f"rows.{self.processes.rank:05d}.jsonl"
        content = _lines([{**row, "order": self.order[row["id"]], "batch": batch, "run": self.fingerprint}
                          for row in rows])
        try:
            self._file = self._file or path.open("ab")
            self._file.write(content)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise StoreError(write_error_sentence(error, path, len(content))) from error

    def finish(self) -> list[dict]:
        """All rows in the order of the samples, joined in ``rows.jsonl`` by the first process.

        Raises:
            StoreError: samples without a row.
        """
        self._close_file()
        self.processes.wait()
        here = _merged(self.folder, self.fingerprint)
        rows = {row["id"]: row for row in self.processes.gather(list(here.values()))}
        if missing := [name for name in self.order if name not in rows]:
            raise StoreError(f"{len(missing)} samples have no row in {self.folder}, '{missing[0]}' "
                             "for one: run again to make them.")
        ordered = [rows[name] for name in self.order]
        self._in_turn(lambda: self._join(ordered))
        self.close()
        return ordered

    def _join(self, rows: list[dict]) -> None:
        atomic_write({self.folder / ROWS_FILE: _lines(rows)})
        for path in _files(self.folder):
            if path.name != ROWS_FILE:
                path.unlink(missing_ok=True)

    def _close_file(self) -> None:
        if self._file:
            self._file.close()
            self._file = None

    def close(self) -> None:
        """Let go of the folder."""
        self._close_file()
        if self._lock:
            self._lock.release()
            self._lock = None


def _lines(rows: Sequence[Mapping]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n" for row in rows)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."
