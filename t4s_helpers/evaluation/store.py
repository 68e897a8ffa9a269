"""Rows of a run on disk: written batch by batch, safe against a kill, shared among processes.

A run's folder holds ``run.json`` (settings, their fingerprint, what was left out, where it was made)
and rows as JSON, one a line: ``rows.<batch>.jsonl`` while it runs, a file being whole or not there, and
``rows.jsonl`` in the order of the samples when it is done. So a kill costs the batches in work and
nothing else, and nothing counts twice.
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

from ..files import atomic_write, write_json

RUN_FILE = "run.json"
ROWS_FILE = "rows.jsonl"


class StoreError(RuntimeError):
    """A run's folder that cannot be resumed or read; the message names the file and line."""


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits that stand for settings; the order of their names does not matter.

    >>> fingerprint({"batch": 16, "mode": "fast"}) == fingerprint({"mode": "fast", "batch": 16})
    True
    """
    text = json.dumps(settings, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_run(folder: Path | str) -> tuple[list[dict], dict]:
    """The rows of a run, finished or not, in the order of its samples, and its record.

    No run there, a line that is no row of it, or a sample that comes twice is a `StoreError`.
    """
    folder = Path(folder)
    record = _record(folder)
    if record is None:
        raise StoreError(f"{folder} holds no {RUN_FILE}: give the folder of a run.")
    rows = _rows(folder, record["fingerprint"])
    return sorted(rows.values(), key=lambda row: row["order"]), record


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


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("rows.*.jsonl"))


def _rows(folder: Path, run: str) -> dict[str, dict]:
    """id -> row; once the rows are joined, a part that a kill has left beside them is not looked at."""
    rows: dict[str, dict] = {}
    joined = folder / ROWS_FILE
    for path in [joined] if joined.is_file() else _parts(folder):
        for number, line in enumerate(path.read_bytes().splitlines(), 1):
            try:
                row = json.loads(line)
                name, other = row["id"], row["run"] != run
            except (ValueError, TypeError, KeyError):
                raise StoreError(f"Line {number} of {path} is no row of a run ({line[:40]!r} ...): the file "
                                 "was changed, start again in a new folder.") from None
            if other:
                raise StoreError(f"Sample '{name}' in {path} was scored under other settings (run "
                                 f"{row['run']}, not {run}): start in a new folder.")
            if name in rows:
                raise StoreError(f"Line {number} of {path} is about sample '{name}', which has a row already "
                                 "and would count twice: start again in a new folder.")
            rows[name] = row
    return rows


class Processes:
    """The processes of a run, through accelerate where a launcher started several.

    ``accelerate launch`` and ``torchrun`` set ``WORLD_SIZE``; without it there is one process and
    accelerate is not imported. ``rank`` is the number of this process among ``count``; ``first_here`` says
    whether it is the first one on its machine.
    """

    def __init__(self) -> None:
        self.state, self.rank, self.count, self.first_here = None, 0, 1, True
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            import torch
            from accelerate import PartialState

            self.state = PartialState(cpu=not torch.cuda.is_available())
            self.rank, self.count = self.state.process_index, self.state.num_processes
            self.first_here = self.state.is_local_main_process

    def leave(self) -> None:
        """Wait for all and disconnect; the last thing that they do together.

        A process that ends without it may be aborted while the threads of its connections still run.
        """
        if self.state:
            self.state.wait_for_everyone()
            self.state.destroy_process_group()

    def gather(self, items: list) -> list:
        """Wait for all; their lists, joined in the order of the ranks, the same everywhere."""
        if not self.state:
            return items
        from accelerate.utils import gather_object

        return gather_object(items)


class RunStore:
    """A run that is being written; `close` lets go of its folder.

    Args:
        folder: of the run; made where there is none. Machines may share it or have one each.
        settings: what decides the answers, as plain values; a folder is resumed under the same
            settings alone.
        batches: ids of the rows of each batch.
        order: all ids in the order of the samples.
        about: further facts for the record (what was left out before, versions); not compared.
        restart: forget what the folder holds.

    Raises:
        StoreError: the folder belongs to other settings (the message names them), is in use by
            another run, or holds rows that do not belong to this run.
    """

    def __init__(self, folder: Path | str, settings: Mapping[str, Any], batches: Sequence[Sequence[str]],
                 order: Sequence[str], about: Mapping[str, Any] | None = None, restart: bool = False,
                 processes: Processes | None = None):
        self.folder, self.processes = Path(folder), processes or Processes()
        self.settings = json.loads(json.dumps(settings))
        self.fingerprint, self.batches = fingerprint(self.settings), [list(b) for b in batches]
        self.order = {name: k for k, name in enumerate(order)}
        place = hashlib.sha256(str(self.folder.resolve()).encode()).hexdigest()[:16]
        # Held while this process lives, so a kill leaves no lock behind.
        self._lock = FileLock(Path(tempfile.gettempdir()) / f"t4s-run-{place}.lock")
        self.done = set(self._together(lambda: self._open(restart, dict(about or {}))))

    def _together(self, act: Callable[[], list]) -> list:
        """When all are here, let the first process of each machine act; what they return, for all.

        What stops one stops all, with its message.
        """
        self.processes.gather([])
        made, failed = [], []
        if self.processes.first_here:
            try:
                made = act()
            except RuntimeError as error:
                failed = [str(error)]
        if failed := self.processes.gather(failed):
            self.close()
            raise StoreError(failed[0])
        return self.processes.gather(made)

    def _open(self, restart: bool, about: dict) -> list[int]:
        """Take the folder; the batches that it holds."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise StoreError(f"Another process is writing to {self.folder}: wait for it, or choose "
                             "another folder.") from None
        if restart:
            for path in (*_parts(self.folder), self.folder / ROWS_FILE, self.folder / RUN_FILE):
                path.unlink(missing_ok=True)
        record = _record(self.folder)
        if record is None:
            if any(self.folder.glob("rows*.jsonl")):
                raise StoreError(f"{self.folder} holds rows without {RUN_FILE} to tell what they are: start "
                                 "in a new folder, or with restart.")
            write_json(self.folder / RUN_FILE, {"fingerprint": self.fingerprint, **about,
                                                "settings": self.settings})
            return []
        here, there = self.settings, record["settings"]
        if names := sorted(key for key in {*there, *here} if there.get(key) != here.get(key)):
            shown = "; ".join(f"{key}: {_short(there.get(key))} there, {_short(here.get(key))} here"
                              for key in names)
            raise StoreError(f"The run in {self.folder} was begun with other settings ({shown}). Resume it "
                             "with those, start in a new folder, or forget its rows with restart.")
        if record.get("package") != about.get("package"):
            warnings.warn(f"The package has changed since {self.folder} was begun: its rows may differ "
                          "from what it would write now. Start with restart to be sure.", stacklevel=6)
        made = _rows(self.folder, self.fingerprint).keys()
        if stray := made - self.order.keys():
            raise StoreError(f"{self.folder} has a row for sample '{min(stray)}', which is none of this "
                             "run's samples: start in a new folder.")
        return [k for k, ids in enumerate(self.batches) if made >= set(ids)]

    def todo(self) -> list[int]:
        """Numbers of the batches that this process is to make."""
        left = [k for k in range(len(self.batches)) if k not in self.done]
        return left[self.processes.rank::self.processes.count]

    def write(self, batch: int, rows: Sequence[dict]) -> None:
        """Add a finished batch: on disk when this returns.

        Other rows than the batch's are a `StoreError`; a full disk, say, is a `FileError`, and what was
        written before stays.
        """
        ids = [row["id"] for row in rows]
        if ids != self.batches[batch]:
            raise StoreError(f"Batch {batch} must have the rows {self.batches[batch][:3]} ..., got "
                             f"{ids[:3]} ...")
        _write(self.folder / f"rows.{batch:06d}.jsonl",
               [{**row, "order": self.order[row["id"]], "batch": batch, "run": self.fingerprint}
                for row in rows])

    def finish(self) -> list[dict]:
        """All rows in the order of the samples, joined in ``rows.jsonl``; one missing is a `StoreError`."""
        found = self._together(lambda: list(_rows(self.folder, self.fingerprint).values()))
        rows = {row["id"]: row for row in found}
        if missing := [name for name in self.order if name not in rows]:
            raise StoreError(f"{len(missing)} samples have no row in {self.folder}, '{missing[0]}' "
                             "for one: run again to make them.")
        ordered = [rows[name] for name in self.order]
        self._together(lambda: self._join(ordered))
        self.close()
        return ordered

    def _join(self, rows: list[dict]) -> list:
        _write(self.folder / ROWS_FILE, rows)
        for path in self.folder.glob("*rows.*.jsonl*"):  # also what a kill left half written, .rows.….tmp
            path.unlink(missing_ok=True)
        return []

    def close(self) -> None:
        """Let go of the folder."""
        self._lock.release()


def _write(path: Path, rows: Sequence[Mapping]) -> None:
    lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows]
    atomic_write({path: "".join(lines).encode()})


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."
