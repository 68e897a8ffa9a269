"""Label grids as text and back, exactly.

Three schemes (Text4Seg, section 3.2 and figure 3). For the grid ``[[0, 0], [0, 1]]`` and the label
"dog" they write

- ``full``: the label of every cell, row after row: ``others|others|others|dog``
- ``irle``: runs ``label *count`` over the flattened grid: ``others *3|dog *1``
- ``rrle``: runs within each row, a line per row: ``others *2`` newline ``others *1|dog *1``

Each comes in two spellings: canonical, with the separators ``|`` and newline, and spaced, as the
paper's released checkpoints write it: a space after each separator and a newline at the end.

Labels may hold any text. What would be read as part of the format is escaped with a backslash:

====================================  ==========
in the label                          in the text
====================================  ==========
backslash                             ``\\\\``
``|``                                 ``\\p``
newline, carriage return              ``\\n``, ``\\r``
``<`` (as in ``<seg>``)               ``\\l``
``*`` before digits at the end        ``\\a``
====================================  ==========
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from .grid import MAX_SIDE, Size, check_grid, parse_size

OTHERS = "others"
SCHEMES = ("full", "irle", "rrle")
SEG_OPEN = "<seg>"
SEG_CLOSE = "</seg>"

_CODE = {"\\": "\\\\", "|": "\\p", "\n": "\\n", "\r": "\\r", "<": "\\l", "*": "\\a"}
_CHARACTER = {code: character for character, code in _CODE.items()}
_TO_ESCAPE = re.compile(r"[\\|\n\r<]|\*(?=\s*[0-9]+\Z)")
_ESCAPED = re.compile(r"\\[\\pnrla]")
_COUNT_TEXT = tuple(f" *{n}" for n in range(MAX_SIDE * MAX_SIDE + 1))
_COUNT_VALUE = {str(n): n for n in range(1, MAX_SIDE * MAX_SIDE + 1)}


class DescriptorError(ValueError):
    """Labels or text that cannot be written as, or read from, semantic descriptors."""


class Vocabulary(NamedTuple):
    """A label set, ready for reading and writing; see :func:`vocabulary`."""

    names: tuple[str, ...]  # the labels, trimmed
    written: tuple[str, ...]  # as they stand in the text: written[0] is others, then the labels
    index: dict[str, int]  # written form -> grid value
    folded: dict[str, int]  # the same after `fold`


def fold(text: str) -> str:
    """Text without the differences that a tokenizer may undo: Unicode NFC, single spaces."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def escape_label(label: str) -> str:
    r"""The label as it stands in descriptor text.

    >>> print(escape_label("a|b"), escape_label("row *3"), escape_label("5*7 photo"))
    a\pb row \a3 5*7 photo
    """
    return _TO_ESCAPE.sub(lambda match: _CODE[match[0]], label)


def unescape_label(text: str) -> str:
    r"""Inverse of :func:`escape_label`; a backslash that starts no known code stays as it is.

    >>> unescape_label(r"a\pb")
    'a|b'
    """
    return _ESCAPED.sub(lambda match: _CHARACTER[match[0]], text)


def check_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """The labels without surrounding white space, in their order.

    Raises:
        DescriptorError: not a sequence of texts, or a label that is empty, spells "others" (in any
            case), repeats another one (up to white space and Unicode composition) or cannot be
            written as UTF-8. The message names the label.

    >>> check_labels([" dog ", "a|b"])
    ('dog', 'a|b')
    """
    return vocabulary(labels).names


def vocabulary(labels: Sequence[str]) -> Vocabulary:
    """The label set checked as in :func:`check_labels`, with its look-up tables (cached)."""
    if isinstance(labels, str):
        raise DescriptorError(
            f"labels must be a list of texts, got the single text {labels!r}: write [{labels!r}]"
        )
    try:
        return _vocabulary(tuple(labels))
    except TypeError:
        raise DescriptorError(f"labels must be a list of texts, got {labels!r}") from None


@lru_cache(maxsize=256)
def _vocabulary(labels: tuple[str, ...]) -> Vocabulary:
    names: list[str] = []
    folded = {OTHERS: 0}
    for label in labels:
        if not isinstance(label, str):
            raise DescriptorError(f"label {label!r} is no text: labels must be a list of texts")
        name = str(label.strip())
        _check_label(label, name, folded, names)
        names.append(name)
        folded[fold(escape_label(name))] = len(names)
    written = (OTHERS, *map(escape_label, names))
    index = {word: k for k, word in enumerate(written)}
    return Vocabulary(tuple(names), written, index, folded)


def _check_label(label: str, name: str, folded: dict[str, int], names: list[str]) -> None:
    if not name:
        raise DescriptorError(f"label {label!r} is empty: give every label a name")
    if fold(name).casefold() == OTHERS:
        raise DescriptorError(
            f"label {label!r} is the word for the background: choose another name for it"
        )
    twin = folded.get(fold(escape_label(name)))
    if twin is not None:
        raise DescriptorError(
            f"label {label!r} repeats label {names[twin - 1]!r}: give each label once"
        )
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise DescriptorError(
            f"label {label!r} holds half of a surrogate pair and cannot be written as UTF-8"
        ) from None


def check_scheme(scheme: str) -> str:
    """The scheme, if it is one of :data:`SCHEMES`; otherwise a DescriptorError."""
    if scheme not in SCHEMES:
        raise DescriptorError(f"unknown scheme {scheme!r}: choose one of {', '.join(SCHEMES)}")
    return scheme


def pieces(
    grid: np.ndarray, labels: Sequence[str], scheme: str = "rrle", spaced: bool = False
) -> list[str]:
    r"""The descriptor text in pieces: labels, counts (``" *3"``) and separators.

    Joined they are :func:`encode`'s text. Tokenized one by one they give the same token ids in
    training and in decoding.

    Args:
        grid: int ``(rows, cols)``, 1 to 64 each; 0 is others, ``k`` is ``labels[k - 1]``.
        labels: the label texts.
        scheme: ``"full"``, ``"irle"`` or ``"rrle"``.
        spaced: separators ``"| "`` and ``"\n "``, and ``"\n"`` as the last piece.

    Raises:
        DescriptorError: an unusable label or scheme.
        ValueError: an unusable grid, or a value in it without a label.

    >>> pieces([[0, 0], [0, 1]], ["dog"])
    ['others', ' *2', '\n', 'others', ' *1', '|', 'dog', ' *1']
    """
    check_scheme(scheme)
    written = vocabulary(labels).written
    array = check_grid(grid, len(written) - 1)
    bar, line_break = ("| ", "\n ") if spaced else ("|", "\n")
    parts: list[str] = []
    if scheme == "full":
        for k in array.ravel().tolist():
            parts += (bar, written[k])
    else:
        for k, count, starts_row in zip(*_runs(array, scheme)):
            parts += (line_break if starts_row else bar, written[k], _COUNT_TEXT[count])
    del parts[0]
    if spaced:
        parts.append("\n")
    return parts


def encode(
    grid: np.ndarray, labels: Sequence[str], scheme: str = "rrle", spaced: bool = False
) -> str:
    r"""The grid as descriptor text; arguments and errors as in :func:`pieces`.

    >>> encode([[0, 0], [0, 1]], ["dog"]), encode([[0, 0], [0, 1]], ["dog"], "irle", spaced=True)
    ('others *2\nothers *1|dog *1', 'others *3| dog *1\n')
    """
    return "".join(pieces(grid, labels, scheme, spaced))


def decode(
    text: str, labels: Sequence[str], size: Size, scheme: str = "rrle"
) -> np.ndarray:
    r"""The grid that was encoded, and nothing but that: the exact inverse of :func:`encode`.

    Accepts just the texts that ``encode`` writes for this size, in either spelling. For model
    output use :func:`t4s_helpers.codec.parsing.parse`.

    Returns:
        int32 ``(rows, cols)``.

    Raises:
        DescriptorError: the text differs from what ``encode`` writes; the message names row and
            run. Also for an unusable label or scheme.
        ValueError: an unusable size.

    >>> decode("others *2\nothers *1|dog *1", ["dog"], 2).tolist()
    [[0, 0], [0, 1]]
    """
    rows, cols = parse_size(size)
    check_scheme(scheme)
    index = vocabulary(labels).index
    lines, bar = _split_lines(text, scheme)
    height, width = (rows, cols) if scheme == "rrle" else (1, rows * cols)
    if len(lines) != height:
        raise DescriptorError(f"the text has {len(lines)} rows, the grid needs {rows}")
    if scheme == "full":
        values = [index.get(word, -1) for word in lines[0].split(bar)]
        if len(values) != width or -1 in values:
            raise _explain_full(lines[0].split(bar), index, rows, cols)
        return np.array(values, np.int32).reshape(rows, cols)
    values, counts = [], []
    for line in lines:
        total, last = 0, -1
        for run in line.split(bar):
            word, _, digits = run.rpartition(" *")
            k, count = index.get(word, -1), _COUNT_VALUE.get(digits, 0)
            if k < 0 or count == 0 or k == last:
                raise _explain_runs(lines, bar, index, width)
            values.append(k)
            counts.append(count)
            total += count
            last = k
        if total != width:
            raise _explain_runs(lines, bar, index, width)
    return np.repeat(np.array(values, np.int32), counts).reshape(rows, cols)


def wrap(text: str, sentence: str) -> str:
    r"""A whole response: the answer sentence, then the descriptors between their tags.

    >>> wrap("others *1", "Here it is.")
    'Here it is.\n<seg>others *1</seg>'

    Raises:
        DescriptorError: the sentence holds one of the tags (as a label in it may).
    """
    for tag in (SEG_OPEN, SEG_CLOSE):
        if tag in sentence:
            raise DescriptorError(
                f"the answer sentence {sentence!r} holds {tag}: "
                "pass the labels in it through escape_label"
            )
    return f"{sentence}\n{SEG_OPEN}{text}{SEG_CLOSE}"


def _runs(grid: np.ndarray, scheme: str) -> tuple[list[int], list[int], list[bool]]:
    """Value and length of each run, and whether it begins a row (never for ``irle``)."""
    flat = grid.ravel()
    begins = np.empty(flat.size, bool)
    begins[0] = True
    np.not_equal(flat[1:], flat[:-1], out=begins[1:])
    if scheme == "rrle":
        begins[:: grid.shape[1]] = True
    starts = np.flatnonzero(begins)
    ends = np.empty_like(starts)
    ends[:-1] = starts[1:]
    ends[-1] = flat.size
    row_starts = (starts % (grid.shape[1] if scheme == "rrle" else flat.size) == 0).tolist()
    return flat[starts].tolist(), (ends - starts).tolist(), row_starts


def _split_lines(text: str, scheme: str) -> tuple[list[str], str]:
    """The text's lines and its separator within a line; only the spaced spelling ends in \\n."""
    spaced = text.endswith("\n")
    body = text[:-1] if spaced else text
    lines = body.split("\n " if spaced else "\n") if scheme == "rrle" else [body]
    return lines, "| " if spaced else "|"


def _explain_runs(
    lines: list[str], bar: str, index: dict[str, int], width: int
) -> DescriptorError:
    """The error for the first thing that is wrong in runs that :func:`decode` refused."""
    for r, line in enumerate(lines, 1):
        row = f"row {r}, " if len(lines) > 1 else ""
        total, last = 0, None
        for i, run in enumerate(line.split(bar), 1):
            word, star, digits = run.rpartition(" *")
            where = f"{row}run {i} ({run[:80]!r})"
            if not star or digits not in _COUNT_VALUE:
                return DescriptorError(f"{where} has no valid count: write 'label *count'")
            if word not in index:
                return DescriptorError(f"{where} has the unknown label {word[:80]!r}")
            if word == last:
                return DescriptorError(f"{where} repeats the label of the run before it")
            total, last = total + _COUNT_VALUE[digits], word
        if total != width:
            return DescriptorError(f"{row}the counts sum to {total} instead of {width}")
    raise AssertionError("these runs are well-formed")


def _explain_full(
    words: list[str], index: dict[str, int], rows: int, cols: int
) -> DescriptorError:
    """The error for the first thing that is wrong in labels that :func:`decode` refused."""
    for i, word in enumerate(words):
        if word not in index:
            where = f"row {i // cols + 1}, cell {i % cols + 1}"
            return DescriptorError(f"{where} has the unknown label {word[:80]!r}")
    return DescriptorError(
        f"the text has {len(words)} labels, the {rows}x{cols} grid needs {rows * cols}"
    )
