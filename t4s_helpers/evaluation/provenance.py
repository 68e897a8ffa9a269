"""The record of a run: which sources, which versions, which machine, how much memory."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
from importlib import metadata
from pathlib import Path

import psutil

from ..files import PACKAGE, ROOT

VERSIONS = (
    "numpy", "torch", "torchvision", "transformers", "peft", "bitsandbytes", "accelerate",
    "segment-anything", "scikit-image", "pycocotools", "matplotlib", "papermill", "jupyterlab",
)


def package_digest(folder: Path | None = None) -> str:
    """Return a hash of the package's files, so that ``--resume`` sees uncommitted changes too."""
    folder, total = folder or PACKAGE, hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        if "__pycache__" not in path.parts and not path.name.startswith("."):
            total.update(path.relative_to(folder).as_posix().encode() + b"\0")
            total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()[:16]


def _said(*command: str) -> str | None:
    """What a command prints, without outer blanks; None where it fails or cannot be run."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL,
                              timeout=120, check=True).stdout.strip()
    return None


def commit() -> tuple[str, bool | None]:
    """Return the commit, and whether the sources differ from it; unknown without git."""
    git = ("git", "-C", str(ROOT))
    changes = _said(*git, "status", "--porcelain", "--", "t4s_helpers", "notebooks", "requirements")
    return _said(*git, "rev-parse", "HEAD") or "unknown", None if changes is None else bool(changes)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in VERSIONS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


@functools.lru_cache(maxsize=1)
def cuda_device() -> str:
    """Return the name of the first CUDA device, or an empty text when there is none.

    torch is asked in a process of its own, and only where a driver can be seen: its import costs seconds
    and memory.
    """
    signs = shutil.which("nvidia-smi") or any(map(os.path.exists, ("/dev/nvidiactl", "/dev/dxg")))
    if not signs and sys.platform != "win32":
        return ""
    question = "import torch; print(torch.cuda.get_device_name(0) if torch.cuda.is_available() else '')"
    return _said(sys.executable, "-c", question) or ""


def device() -> str:
    """Describe the machine: the GPU when there is one, then processor and cores."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        if found := re.search(r"^model name\s*:(.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
            name = found[1].strip()
    gpu = cuda_device()
    return f"{gpu}; " * bool(gpu) + f"{name}, {os.cpu_count()} cores"


class PeakMemory:
    """Watch the memory of the processes started while this block runs (a notebook's kernel and its own).

    ``megabytes`` is the largest sum of resident sizes seen at ten looks a second, or the largest size that
    the system reports for one process if that is more. A peak in a process's last tenth of a second can be
    missed.
    """

    def __init__(self, interval: float = 0.1):
        self.interval = interval
        self.megabytes = 0.0

    def __enter__(self) -> PeakMemory:
        self._older = {process.pid for process in psutil.Process().children(recursive=True)}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        before: set[int] = set()
        while not self._stop.wait(self.interval):
            with contextlib.suppress(psutil.Error):
                young = {one.pid: one for one in psutil.Process().children(recursive=True)
                         if one.pid not in self._older}
                # Until it has become its own program, a new process seems to hold its parent's memory.
                sizes = [resident(one) for pid, one in young.items() if pid in before]
                before = set(young)
                highest = max([sum(now for now, _ in sizes), *(peak for _, peak in sizes)])
                self.megabytes = max(self.megabytes, highest / 1e6)


def resident(process: psutil.Process) -> tuple[int, int]:
    """Return (resident bytes now, resident bytes at their highest) of one process; 0 if it is gone.

    The highest is what Linux tells of the process alone (``ru_maxrss`` would count its parent's memory
    too); elsewhere it is what there is now.
    """
    now = peak = 0
    with contextlib.suppress(psutil.Error, OSError, ValueError, IndexError):
        now = peak = process.memory_info().rss
        status = Path(f"/proc/{process.pid}/status").read_text()  # where the system has it
        peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
    return now, peak
