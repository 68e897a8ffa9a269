"""Data that lies beside a checkout and is used where it is there, never required."""

from __future__ import annotations

import os
from pathlib import Path

_BESIDE = Path(__file__).resolve().parents[3] / "shared"


def shared_folder(*parts: str) -> Path | None:
    """A folder below ``T4S_SHARED``, or below ``shared`` beside the checkout; None without it.

    >>> shared_folder("no", "such", "folder") is None
    True
    """
    root = Path(os.environ.get("T4S_SHARED") or _BESIDE).expanduser()
    folder = root.joinpath(*parts)
    return folder if folder.is_dir() else None
