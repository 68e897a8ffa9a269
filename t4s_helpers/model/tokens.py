"""Tokenizers alone, without a model: for counting what a text costs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

from ..files import ASSETS

_EMBEDDED = ASSETS / "embedded"


class TokenizerError(ValueError):
    """A tokenizer that cannot be had; the message names it and says what to give instead."""


def load_tokenizer(source: str | Path = "embedded") -> Tokenizer:
    """A tokenizer by name or place.

    Args:
        source: ``"embedded"``, a ``tokenizer.json``, a folder that holds one, or the id of a
            repository on the model hub (fetched, and cached by the hub's own library).

    Raises:
        TokenizerError: nothing usable there.
    """
    from tokenizers import Tokenizer

    place = _EMBEDDED if source == "embedded" else Path(source).expanduser()
    file = place / "tokenizer.json" if place.is_dir() else place
    try:
        # Anything that is not on the disk is taken for a name on the hub.
        on_disk = file.is_file() or place.is_dir()
        return Tokenizer.from_file(str(file)) if on_disk else Tokenizer.from_pretrained(str(source))
    except Exception as error:  # the library raises plain Exception for every fault
        raise TokenizerError(
            f"There is no usable tokenizer at {str(source)!r} ({str(error)[:120]}): give a "
            "tokenizer.json, a folder that holds one, or a repository id of the model hub."
        ) from error


def count_tokens(tokenizer: Tokenizer, text: str) -> int:
    """Tokens of a text, without those that a tokenizer adds at its ends.

    >>> count_tokens(load_tokenizer("embedded"), "others *16")
    2
    """
    return len(tokenizer.encode(text, add_special_tokens=False).ids)
