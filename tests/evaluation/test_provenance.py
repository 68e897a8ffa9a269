"""The record of a run."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import numpy as np
import psutil

from t4s_helpers.evaluation import provenance


def test_the_package_hash_follows_names_and_contents(tmp_path):
    (tmp_path / "a.py").write_text("1")
    first = provenance.package_digest(tmp_path)
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "a.pyc").write_text("x")
    (tmp_path / ".hidden").write_text("x")
    assert provenance.package_digest(tmp_path) == first
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    second = provenance.package_digest(tmp_path)
    (tmp_path / "b.py").write_text("2")
    assert len({first, second, provenance.package_digest(tmp_path)}) == 3


def test_commit_and_dirty_flag(tmp_path, monkeypatch):
    def git(*arguments):
        subprocess.run(["git", "-c", "user.name=n", "-c", "user.email=e@example.org",
                        *arguments], cwd=tmp_path, check=True, capture_output=True)

    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance.commit() == ("unknown", None)
    git("init", "-q")
    (tmp_path / "t4s_helpers").mkdir()
    (tmp_path / "t4s_helpers" / "a.py").write_text("1")
    git("add", "-A")
    git("commit", "-q", "-m", "a")
    sha, dirty = provenance.commit()
    assert len(sha) == 40 and dirty is False
    (tmp_path / "results.json").write_text("results do not make the sources dirty")
    assert provenance.commit() == (sha, False)
    (tmp_path / "t4s_helpers" / "b.py").write_text("a new module does")
    assert provenance.commit() == (sha, True)


def test_versions_and_device_are_those_that_run():
    found = provenance.versions()
    assert found["numpy"] == np.__version__
    assert found["python"] == platform.python_version()
    assert f"{os.cpu_count()} cores" in provenance.device()


def test_peak_memory_sees_children_and_theirs_but_not_older_ones():
    big = "import time; x = b'1' * 150_000_000; print('up', flush=True); time.sleep(60)"
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {big!r}])"
    older = subprocess.Popen([sys.executable, "-c", big], stdout=subprocess.PIPE)
    older.stdout.readline()
    try:
        with provenance.PeakMemory(interval=0.05) as none:
            subprocess.run([sys.executable, "-c", "import time; time.sleep(0.5)"], check=True)
        with provenance.PeakMemory(interval=0.05) as seen:
            child = subprocess.Popen([sys.executable, "-c", nested], stdout=subprocess.PIPE)
            child.stdout.readline()
            subprocess.run([sys.executable, "-c", "import time; time.sleep(0.5)"], check=True)
            for process in psutil.Process(child.pid).children(recursive=True):
                process.kill()
            child.wait(timeout=30)
    finally:
        older.kill()
        older.wait()
    assert 0 < none.megabytes < 100
    assert 150 < seen.megabytes < 350
