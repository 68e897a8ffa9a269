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


class Handler(http.server.BaseHTTPRequestHandler):
    """The path says how it behaves; a path that is not listed is not found."""

    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        path, wanted = self.path.strip("/"), self.headers.get("Range")
        again = any(asked == path for asked, _ in self.server.asked)
        self.server.asked.append((path, wanted))
        if path == "slow":
            threading.Event().wait(0.5)
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted else 0
        body, announced = {
            "good": (DATA, None), "slow": (DATA, None), "wrong": (bytes(len(DATA)), None),
            "short": (DATA[:1000], None), "breaks": (b"", len(DATA)),
            "breaks_once": (DATA[start:] if again else DATA[:100_000], len(DATA) - start),
        }.get(path, (None, None))
        if body is None:
            self.send_error(404)
            return
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(announced or len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture(scope="module")
def running():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def server(running):
    running.asked = []
    return running


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

    def add(*sources: Package | str) -> Checkpoint:
        here = f"http://127.0.0.1:{server.server_port}/"
        places = tuple(here + source if isinstance(source, str) else source for source in sources)
        demo = Checkpoint("demo", "demo.pt", SHA, len(DATA), "MIT", "https://example.org", places)
        monkeypatch.setitem(weights.CHECKPOINTS, "demo", demo)
        return demo

    return add


def refused(kind: type = WeightsError) -> str:
    with pytest.raises(kind) as told:
        fetch("demo", progress=False)
    assert told.type is kind
    return str(told.value)


def visible(folder: Path) -> list[str]:
    """What lies in the cache beside the lock's empty file."""
    return sorted(p.name for p in folder.iterdir() if p.suffix != ".lock")


def test_fetches_once_and_then_takes_it_from_the_cache(cache, listed, server):
    listed("good")
    assert "no" in weights.listing().split("demo")[1]
    path = fetch("demo", progress=False)
    assert path == cache / "demo.pt" and path.read_bytes() == DATA
    assert fetch("demo", progress=False) == path
    assert len(server.asked) == 1 and visible(cache) == ["demo.pt"]
    told = weights.listing()
    assert all(name in told for name in weights.CHECKPOINTS) and str(cache) in told
    assert "yes" in told.split("demo")[1]


def test_a_broken_download_is_resumed(cache, listed, server):
    listed("breaks_once")
    assert fetch("demo", progress=False).read_bytes() == DATA
    assert server.asked == [("breaks_once", None), ("breaks_once", "bytes=100000-")]


@pytest.mark.parametrize("path, kind, told", [
    ("breaks", WeightsUnavailable, ["could not be fetched", "gave 0 bytes"]),
    ("wrong", WeightsError, ["the wrong checksum", hashlib.sha256(bytes(len(DATA))).hexdigest()]),
    ("short", WeightsError, ["arrived with the wrong checksum", "1000 of 300000 bytes"])])
def test_what_cannot_be_fetched_leaves_nothing_and_can_be_tried_again(cache, listed, path, kind, told):
    listed(path)
    said = refused(kind)
    assert all(part in said for part in ("demo.pt", *told, SHA, str(cache), "run again"))
    assert visible(cache) == []
    listed("good")
    assert fetch("demo", progress=False).read_bytes() == DATA


def test_the_next_mirror_is_tried_and_what_a_killed_process_left_is_cleared(cache, listed, server):
    left = cache / ".part-demo.pt-old"
    left.mkdir(parents=True)
    (left / "demo.pt").write_bytes(DATA[:10])
    listed("missing", "breaks", "wrong", "good")
    assert fetch("demo", progress=False).read_bytes() == DATA
    assert server.asked[-1][0] == "good" and visible(cache) == ["demo.pt"]


def test_a_wrong_file_in_the_cache_is_named_and_left_alone(cache, listed, server):
    listed("good")
    cache.mkdir()
    (cache / "demo.pt").write_bytes(b"mine")
    told = refused()
    for part in (str(cache / "demo.pt"), SHA, hashlib.sha256(b"mine").hexdigest(), "delete"):
        assert part in told
    assert (cache / "demo.pt").read_bytes() == b"mine" and server.asked == []


def test_two_that_ask_at_once_fetch_once(cache, listed, server):
    listed("slow")
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(lambda _: fetch("demo", progress=False), range(4)))
    assert paths == {cache / "demo.pt"} and len(server.asked) == 1


def test_a_full_disk_and_a_cache_that_is_no_folder_are_one_sentence(cache, listed, monkeypatch):
    listed("good", "good")

    def full(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(file_download, "http_get", full)
    assert re.match("demo.pt was not fetched: the disk .* is full", refused())
    assert visible(cache) == []
    (cache / "file").write_text("not a folder")
    monkeypatch.setenv("T4S_CACHE", str(cache / "file" / "below"))
    assert re.search("cannot be used .* set T4S_CACHE", refused())


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A source archive that carries DATA, on the only shelf where pip looks."""
    top = "t4s_demo_weights-1.0"
    files = {
        "setup.py": b"from setuptools import setup\n"
                    b"setup(name='t4s_demo_weights', version='1.0', packages=[])\n",
        "PKG-INFO": b"Metadata-Version: 2.1\nName: t4s_demo_weights\nVersion: 1.0\n",
        "inner/demo.pt": DATA,
    }
    path = tmp_path / "shelf" / f"{top}.tar.gz"
    path.parent.mkdir()
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"{top}/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    for name in [n for n in os.environ if n.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path.parent))
    return path


@pytest.mark.slow
def test_a_package_is_fetched_by_name_through_pip(cache, listed, archive, server):
    listed(Package("t4s_demo_weights==1.0", weights.sha256_of(archive), "inner/demo.pt"), "good")
    assert fetch("demo", progress=False).read_bytes() == DATA
    assert server.asked == [] and visible(cache) == ["demo.pt"]


@pytest.mark.slow
@pytest.mark.parametrize(("package", "told"), [
    (Package("t4s_demo_weights==2.0", SHA, "inner/demo.pt"), "No matching distribution"),
    (Package("t4s_demo_weights==1.0", "0" * 64, "inner/demo.pt"), "HASHES"),
    (Package("t4s_demo_weights==1.0", "", "inner/none.pt"), "does not hold inner/none.pt"),
], ids=["unknown version", "another archive", "no such member"])
def test_a_package_that_fails_says_so_and_mirrors_follow(cache, listed, archive, package, told):
    if not package.sha256:
        package = replace(package, sha256=weights.sha256_of(archive))
    listed(package)
    assert told in refused(WeightsUnavailable) and visible(cache) == []
    listed(package, "good")
    assert fetch("demo", progress=False).read_bytes() == DATA


def test_the_table_is_well_formed_and_other_names_are_refused(monkeypatch):
    with pytest.raises(WeightsError, match="'mobilesam'.*mobile_sam, sam_vit_b"):
        fetch("mobilesam")
    monkeypatch.delenv("T4S_CACHE", raising=False)
    assert weights.cache_dir() == Path.home() / ".cache" / "t4s"
    for name, entry in weights.CHECKPOINTS.items():
        assert entry.name == name and entry.size > 1e6 and entry.licence
        assert re.fullmatch("[0-9a-f]{64}", entry.sha256)
        assert all(isinstance(s, Package) or s.startswith("https://") for s in entry.sources)


def test_the_listing_needs_no_heavy_import():
    code = ("import sys, t4s_helpers.model.weights as w; w.listing(); "
            "sys.exit(any(m in sys.modules for m in ('torch', 'timm', 'segment_anything')))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
