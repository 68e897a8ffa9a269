"""Files of the project: where they lie, and writing them whole or not at all.

Every file is written beside its final place and moved there in one step: a reader sees the old
file or the new one, never half of one.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE.parent
ASSETS = PACKAGE / "assets"
"""What ships with the package: the embedded model, its adapters, outlines of the photos."""

_FULL_DISK = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


class FileError(RuntimeError):
    """A file cannot be written or read. The message names it and says what to do."""


@contextlib.contextmanager
def clear_errors(path: Path, need: int = 0) -> Iterator[None]:
    """Turn the operating system's write errors into one sentence that says what to do."""
    try:
        yield
    except OSError as error:
        raise FileError(write_error_sentence(error, path, need)) from error


def write_error_sentence(error: OSError, path: Path, need: int = 0) -> str:
    """Say in one sentence why ``path`` could not be written and what to do about it."""
    if is_full_disk(error):
        folder = next(place for place in path.absolute().parents if place.is_dir())
        size = f" needs {_size(need)}, but" if need else " could not be saved:"
        return (
            f"{path}{size} its disk is full ({_size(shutil.disk_usage(folder).free)} free): free some"
            " space and run again; what was saved before is as it was."
        )
    reason = error.strerror or type(error).__name__
    return (
        f"{path} could not be written ({reason}): choose a folder you may write to (for results"
        " with T4S_RESULTS=FOLDER), or change its permissions."
    )


def is_full_disk(error: BaseException) -> bool:
    """Return True when ``error`` says that the disk (or the user's quota) is full."""
    return isinstance(error, OSError) and error.errno in _FULL_DISK


def _size(n: int) -> str:
    """Return a number of bytes for people.

    >>> _size(512), _size(1_234_567)
    ('1 kB', '1.2 MB')
    """
    return f"{math.ceil(n / 1e3)} kB" if n < 1e6 else f"{n / 1e6:.1f} MB"


def atomic_write(files: Mapping[Path, bytes]) -> None:
    """Write every file of ``files`` (path -> content), all of them or none.

    The contents go to hidden files beside the final ones first; only when all are on the disk are
    they moved into place.

    Raises:
        FileError: disk full, no permission, ...; the files are then as they were before.
    """
    waiting: dict[Path, Path] = {}
    try:
        for path, content in files.items():
            waiting[path] = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            with clear_errors(path, len(content)):
                path.parent.mkdir(parents=True, exist_ok=True)
                with open(waiting[path], "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
        for path, temporary in waiting.items():
            with clear_errors(path, len(files[path])):
                os.replace(temporary, path)
    finally:
        for temporary in waiting.values():
            temporary.unlink(missing_ok=True)


def json_bytes(value: Any) -> bytes:
    """A value as the text of a JSON file, indented."""
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write_json(path: Path, value: Any) -> Path:
    """Write ``value`` as indented JSON, atomically."""
    try:
        content = json_bytes(value)
    except (TypeError, ValueError) as error:
        raise FileError(f"{path} cannot hold this value as JSON: {error}.") from error
    atomic_write({path: content})
    return path
