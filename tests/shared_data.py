"""Real data for checks that lies beside the project, where it is there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def shared_data(name: str) -> Path:
    """A folder of ``T4S_SHARED`` or ``../shared``; skips the test where it is absent."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("T4S_SHARED", beside)) / "data" / name
    if not folder.is_dir():
        pytest.skip(f"no {folder}: set T4S_SHARED to the folder with data/{name}")
    return folder
