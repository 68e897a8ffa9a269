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


def shared_tokenizer(name: str):
    """Token ids of a piece by a real tokenizer, as it stands after other text; skips as above."""
    from functools import cache

    tokenizers = pytest.importorskip("tokenizers")
    file = shared_data("refcoco_mini").parents[1] / "tokenizers" / name / "tokenizer.json"
    if not file.is_file():
        pytest.skip(f"no tokenizer at {file}")
    tokenizer = tokenizers.Tokenizer.from_file(str(file))
    anchor = tokenizer.encode("\n", add_special_tokens=False).ids

    @cache
    def ids(piece: str) -> tuple[int, ...]:
        found = tokenizer.encode("\n" + piece, add_special_tokens=False).ids
        if found[:len(anchor)] == anchor:
            return tuple(found[len(anchor):])
        return tuple(tokenizer.encode(piece, add_special_tokens=False).ids)

    return ids
