"""Tokenizers alone, and the folder beside the checkout."""

from __future__ import annotations

import shutil

import pytest

pytest.importorskip("tokenizers")

from t4s_helpers.data.shared import shared_folder  # noqa: E402
from t4s_helpers.model.tokens import _EMBEDDED, TokenizerError, count_tokens, load_tokenizer  # noqa: E402


def test_a_file_its_folder_and_the_name_are_the_same_tokenizer(tmp_path):
    shutil.copy(_EMBEDDED / "tokenizer.json", tmp_path)
    text = "others *4\nothers *1|the small red star *2|others *1"
    named = load_tokenizer("embedded").encode(text).ids
    for place in (tmp_path, tmp_path / "tokenizer.json", str(tmp_path)):
        assert load_tokenizer(place).encode(text).ids == named
    assert count_tokens(load_tokenizer("embedded"), text) == len(named)


def test_special_tokens_are_not_counted():
    tokenizer = load_tokenizer("embedded")
    assert count_tokens(tokenizer, "") == 0
    assert count_tokens(tokenizer, "others *16") == count_tokens(tokenizer, "others") + 1


@pytest.mark.parametrize("content", [None, "{not json"])
def test_a_folder_without_a_usable_tokenizer_is_named(tmp_path, content):
    if content:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(TokenizerError, match=tmp_path.name):
        load_tokenizer(tmp_path)


def test_shared_folder(tmp_path, monkeypatch):
    (tmp_path / "data" / "mine").mkdir(parents=True)
    monkeypatch.setenv("T4S_SHARED", str(tmp_path))
    assert shared_folder("data", "mine") == tmp_path / "data" / "mine"
    assert shared_folder("data", "other") is None
