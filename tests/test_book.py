"""The check that `make book` ends with: what leads nowhere is found."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location("check", Path(__file__).parents[1] / "book" / "check.py")
check = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(check)

OTHER = '<h1 id="here">Other</h1>'


@pytest.mark.parametrize("body, words", [
    ('<a href="other.html#here">x</a><a href="#own" id="own">y</a><img src="a%20b.png" alt="z">', ""),
    ('<a href="https://example.org/">x</a><a href="mailto:a@b.c">y</a>', ""),
    ('<a href="gone.html">x</a>', "gone.html leads nowhere"),
    ('<a href="other.html#gone">x</a>', "names a place that is not there"),
    ('<img src="a%20b.png">', "has no alternative text"),
    ('<script src="https://example.org/x.js"></script>', "is loaded from the network"),
    ('<link rel="stylesheet" href="//example.org/x.css">', "is loaded from the network"),
    ('<meta http-equiv="refresh" content="0; url=gone.html">', "gone.html leads nowhere"),
])
def test_what_leads_nowhere_is_found(tmp_path, capsys, body, words):
    check.page.cache_clear()
    (tmp_path / "other.html").write_text(OTHER)
    (tmp_path / "a b.png").write_bytes(b"png")
    (tmp_path / "page.html").write_text(body)
    assert check.main(str(tmp_path)) == bool(words)
    assert words in capsys.readouterr().out


def test_an_empty_folder_is_no_book(tmp_path):
    check.page.cache_clear()
    assert check.main(str(tmp_path)) == 1
