"""Real data for checks that lies beside the project, where it is there."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from t4s_helpers.data.shared import shared_folder


def shared_data(name: str) -> Path:
    """A folder of the shared data; skips the test where it is absent."""
    folder = shared_folder("data", name)
    if folder is None:
        pytest.skip(f"set T4S_SHARED to the folder with data/{name}")
    return folder


def shared_tokenizer(name: str):
    """Token ids of a piece by a real tokenizer, as it stands after other text; skips as above."""
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
