r"""Label grids as text and back, exactly.

Three encodings (Text4Seg, section 3.2 and figure 3). For the grid ``[[0, 0], [0, 1]]`` and the label
"dog" they write

- ``full``: the label of every cell, row after row: ``others|others|others|dog``
- ``irle``: runs ``label *count`` over the flattened grid: ``others *3|dog *1``
- ``rrle``: runs within each row, one line per row: ``others *2`` newline ``others *1|dog *1``

A fourth, ``boxwise``, is not the paper's: see `BoxWise`.

Each has two spellings: canonical, with the separators ``|`` and newline, and spaced, as the paper's
released checkpoints write it: a space after each separator and a newline at the end.

Labels may hold any text. What would be read as part of the format is escaped with a backslash: the
backslash itself as ``\\``, ``|`` as ``\p``, newline and carriage return as ``\n`` and ``\r``, ``<`` (as in
``<seg>``) as ``\l``, and a ``*`` before digits at the end of the label as ``\a``.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from .grid import (
    BOX_BINS, MAX_SIDE, BoxGrid, GridSize, Masks, boxes_to_masks, check_grid, grid_to_masks, masks_to_boxes,
    masks_to_grid, no_boxes, parse_grid_size,
)

OTHERS = "others"
INSIDE = "in"  # a label's cells within its box, whatever the label: one token in most vocabularies
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


@dataclass(frozen=True)
class Vocabulary:
    """A label set, ready for reading and writing; see `vocabulary`."""

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
    r"""Inverse of `escape_label`; a backslash that starts no known code stays as it is.

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
    """The label set checked as in `check_labels`, with its look-up tables (cached)."""
    if isinstance(labels, str):
        raise DescriptorError(
            f"labels must be a list of texts, got the single text {labels!r}: write [{labels!r}]")
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
        key = fold(escape_label(name))
        twin = folded.get(key)
        if fault := _fault(name, names[twin - 1] if twin else None):
            raise DescriptorError(f"label {label!r} {fault}")
        names.append(name)
        folded[key] = len(names)
    written = (OTHERS, *map(escape_label, names))
    return Vocabulary(tuple(names), written, {word: k for k, word in enumerate(written)}, folded)


def _fault(name: str, twin: str | None) -> str:
    """What makes a trimmed label unusable, if anything; ``twin`` is an earlier label like it."""
    if not name:
        return "is empty: give every label a name"
    if fold(name).casefold() == OTHERS:
        return "is the word for the background: choose another name for it"
    if twin is not None:
        return f"repeats label {twin!r}: give each label once"
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return "holds half of a surrogate pair and cannot be written as UTF-8"
    return ""


ENCODINGS: dict[str, type[Encoding]] = {}
"""Name -> class. A subclass of `Encoding` with a name of its own registers itself."""

PAPER_ENCODINGS = ("full", "irle", "rrle")
"""Those of the paper, which write one grid over the whole image."""


@dataclass(frozen=True)
class Encoding:
    r"""How label grids of one size are written as text, and read back exactly.

    A further encoding is one subclass: its ``name``, whether ``breaks_rows`` and ``counts_runs``, and,
    where the cells do not come row by row, their order in `arrange` and `restore`.

    Args:
        grid_size: ``(rows, cols)``, or one number for a square; 1 to 64 each.
        spaced: write the spelling of the paper's checkpoints; both are read.

    Raises:
        ValueError: an unusable size.

    >>> rrle = get_encoding("rrle", 2)
    >>> text = rrle.encode([[0, 0], [0, 1]], ["dog"])
    >>> text, rrle.decode(text, ["dog"]).tolist()
    ('others *2\nothers *1|dog *1', [[0, 0], [0, 1]])
    """

    grid_size: GridSize = 16
    spaced: bool = False
    rows: int = field(init=False, repr=False, compare=False)  # of the grid
    cols: int = field(init=False, repr=False, compare=False)

    name: ClassVar[str] = ""
    breaks_rows: ClassVar[bool] = False  # every row is a line of its own
    counts_runs: ClassVar[bool] = True  # runs ``label *count``, or else the label of every cell

    def __init_subclass__(cls) -> None:
        if cls.name:
            ENCODINGS[cls.name] = cls

    def __post_init__(self) -> None:
        rows, cols = parse_grid_size(self.grid_size)
        for name, value in (("grid_size", (rows, cols)), ("rows", rows), ("cols", cols)):
            object.__setattr__(self, name, value)

    @property
    def lines(self) -> tuple[int, int]:
        """How many lines the text has, and how many cells a line describes."""
        return (self.rows, self.cols) if self.breaks_rows else (1, self.rows * self.cols)

    @property
    def separators(self) -> tuple[str, str]:
        """What stands between the runs of a line, and between lines."""
        return _separators(self.spaced)

    def from_masks(self, masks: Masks, rule: str = "area",
                   objects: tuple[Masks, Sequence[int]] | None = None) -> Any:
        """What `pieces` writes of masks, one a label: here a label grid, int32 ``(rows, cols)``.

        Args:
            masks, rule: see `t4s_helpers.codec.grid.masks_to_grid`.
            objects: masks of single objects and the label of each, from 0; each object stays visible.
        """
        shown, owners = objects or (masks, None)
        return masks_to_grid(shown, self.grid_size, rule, owners)

    def to_masks(self, grid: Any, n_labels: int, shape: tuple[int, int]) -> np.ndarray:
        """What was read, as masks: bool ``(n_labels, H, W)`` for the image size ``shape``."""
        return grid_to_masks(grid, n_labels, shape)

    def blank(self, n_labels: int) -> Any:
        """A grid that shows nothing."""
        return np.zeros(self.grid_size, np.int32)

    def arrange(self, grid: np.ndarray) -> np.ndarray:
        """The grid's cells in the order in which they are written, as an array of shape `lines`."""
        return grid.reshape(self.lines)

    def restore(self, cells: np.ndarray) -> np.ndarray:
        """The grid ``(rows, cols)`` of an array of shape `lines`: the inverse of `arrange`."""
        return cells.reshape(self.grid_size)

    def pieces(self, grid: np.ndarray, labels: Sequence[str]) -> list[str]:
        r"""The text in pieces: labels, counts (``" *3"``) and separators.

        Tokenized one by one they give the same token ids in training and in decoding.

        Args:
            grid: int ``(rows, cols)``; 0 is others, ``k`` is ``labels[k - 1]``.
            labels: the label texts.

        Raises:
            DescriptorError: an unusable label.
            ValueError: a grid of another size, or a value in it without a label.

        >>> get_encoding("rrle", 2).pieces([[0, 0], [0, 1]], ["dog"])
        ['others', ' *2', '\n', 'others', ' *1', '|', 'dog', ' *1']
        """
        written = vocabulary(labels).written
        array = check_grid(grid, len(written) - 1)
        if array.shape != self.grid_size:
            raise ValueError(f"this encoding is of {self.rows}x{self.cols} grids, but the grid is "
                             f"{array.shape[0]}x{array.shape[1]}: get_encoding(name, grid_size)")
        cells, (bar, line_break) = self.arrange(array), self.separators
        parts: list[str] = []
        if self.counts_runs:
            for k, count, starts_line in _runs(cells):
                parts += (line_break if starts_line else bar, written[k], _COUNT_TEXT[count])
        else:
            for line in cells.tolist():
                for n, k in enumerate(line):
                    parts += (bar if n else line_break, written[k])
        del parts[0]
        return [*parts, "\n"] if self.spaced else parts

    def encode(self, grid: np.ndarray, labels: Sequence[str]) -> str:
        """The grid as descriptor text; arguments and errors as in `pieces`."""
        return "".join(self.pieces(grid, labels))

    def decode(self, text: str, labels: Sequence[str]) -> np.ndarray:
        """The grid that was encoded, and nothing but that: the exact inverse of `encode`.

        Accepts just the texts that `encode` writes, in either spelling. For model output use
        `t4s_helpers.codec.parsing.parse`.

        Returns:
            int32 ``(rows, cols)``.

        Raises:
            DescriptorError: the text differs from what `encode` writes; the message names row and
                run. Also for an unusable label.
        """
        index = vocabulary(labels).index
        spaced = text.endswith("\n")  # only that spelling ends so
        bar, line_break = _separators(spaced)
        body = text[:-1] if spaced else text
        lines = body.split(line_break) if self.breaks_rows else [body]
        if len(lines) != self.lines[0]:
            raise DescriptorError(f"the text has {len(lines)} rows, the grid needs {self.lines[0]}")
        values: list[int] = []
        counts: list[int] = []
        for row, line in enumerate(lines, 1):
            where = f"row {row}, " if self.breaks_rows else ""
            self._read_line(line.split(bar), index, where, values, counts)
        return self.restore(np.repeat(np.array(values, np.int32), counts).reshape(self.lines))

    def _read_line(self, runs: list[str], index: dict[str, int], where: str,
                   values: list[int], counts: list[int]) -> None:
        """Append the value and the length of each run; refuse what `encode` does not write."""
        total, last = 0, -1
        for n, run in enumerate(runs, 1):
            word, count = run, 1
            if self.counts_runs:
                word, star, digits = run.rpartition(" *")
                count = _COUNT_VALUE.get(digits, 0) if star else 0
            k = index.get(word, -1)
            if k < 0 or count == 0 or k == last:
                fault = ("has no valid count: write 'label *count'" if count == 0
                         else f"has the unknown label {word[:80]!r}" if k < 0
                         else "repeats the label of the run before it")
                raise DescriptorError(f"{where}{'run' if self.counts_runs else 'cell'} {n} "
                                      f"({run[:80]!r}) {fault}")
            values.append(k)
            counts.append(count)
            total += count
            last = k if self.counts_runs else -1
        if total != self.lines[1]:
            raise DescriptorError(f"{where}the text describes {total} cells instead of {self.lines[1]}")


class FullLength(Encoding):
    """The label of every cell, row after row; the paper's plain semantic descriptors."""

    name = "full"
    counts_runs = False


class ImageRLE(Encoding):
    """Runs over the flattened grid, as if its rows were one long line (I-RLE)."""

    name = "irle"


class RowRLE(Encoding):
    """Runs within each row, one line per row (R-RLE, the paper's choice)."""

    name = "rrle"
    breaks_rows = True


class BoxWise(Encoding):
    r"""Each label's box, then a grid inside it: the idea of Text4Seg++'s box-wise descriptors.

    A label is said once. Its box follows in 32nds of the image (as in answers that state a box), and then
    R-RLE over the box alone, where "in" stands for the label. Labels come in their order; those that are
    not there are left out, and where none is the text is "others". Grids are
    `t4s_helpers.codec.grid.BoxGrid`, so boxes and masks may overlap.

    >>> masks = np.zeros((1, 64, 64), bool); masks[0, 8:16, 8:12] = masks[0, 12:16, 8:16] = True
    >>> boxwise = get_encoding("boxwise", 2)
    >>> boxwise.encode(boxwise.from_masks(masks), ["dog"])
    'dog At 4 4 7 7\nin *1|others *1\nin *2'
    """

    name = "boxwise"
    breaks_rows = True

    @property
    def inside(self) -> Encoding:
        """The encoding within a box, of the one label `INSIDE`."""
        return RowRLE(self.grid_size, self.spaced)

    def from_masks(self, masks: Masks, rule: str = "area",
                   objects: tuple[Masks, Sequence[int]] | None = None) -> BoxGrid:
        """Boxes and cells of masks (`t4s_helpers.codec.grid.masks_to_boxes`), single objects or not."""
        return masks_to_boxes(masks, self.grid_size, rule)

    def to_masks(self, grid: BoxGrid, n_labels: int, shape: tuple[int, int]) -> np.ndarray:
        return boxes_to_masks(grid, shape)

    def blank(self, n_labels: int) -> BoxGrid:
        return no_boxes(n_labels, self.grid_size)

    def pieces(self, grid: Any, labels: Sequence[str]) -> list[str]:
        r"""The text in pieces: labels, " At", numbers (``" 7"``), and those of `RowRLE`.

        Raises:
            DescriptorError: an unusable label.
            ValueError: no `BoxGrid`, or one of other labels or of another size.
        """
        written = vocabulary(labels).written
        if not isinstance(grid, BoxGrid) or grid.cells.shape != (len(written) - 1, *self.grid_size):
            raise ValueError(f"the encoding 'boxwise' writes a BoxGrid of {len(written) - 1} labels with "
                             f"{self.rows}x{self.cols} cells each, as its from_masks makes it; numbered "
                             "objects (the task 'instances') need an encoding of one grid, such as 'rrle'")
        line_break, parts = self.separators[1], []
        for word, box, cells in zip(written[1:], grid.boxes.tolist(), grid.cells):
            if min(box) >= 0:
                rows = self.inside.pieces(cells.astype(np.int32), [INSIDE])
                parts += [line_break, word, " At", *(f" {n}" for n in box), line_break,
                          *(rows[:-1] if self.spaced else rows)]
        parts = parts[1:] or [OTHERS]
        return [*parts, "\n"] if self.spaced else parts

    def decode(self, text: str, labels: Sequence[str]) -> Any:
        """The `BoxGrid` that was encoded; else a `DescriptorError` that names the label."""
        index, spaced = vocabulary(labels).index, text.endswith("\n")
        line_break, last = _separators(spaced)[1], 0
        lines, grid = (text[:-1] if spaced else text).split(line_break), self.blank(len(index) - 1)
        if lines == [OTHERS]:
            return grid
        for at in range(0, len(lines), self.rows + 1):
            word, box = read_head(lines[at])
            k = index.get(word, 0)
            if k <= last:
                raise DescriptorError(f"line {at + 1} ({lines[at][:80]!r}) must be a label and its box, "
                                      "'label At x0 y0 x1 y1', labels in their order")
            rows = line_break.join(lines[at + 1:at + 1 + self.rows]) + "\n" * spaced
            try:
                grid.cells[k - 1] = self.inside.decode(rows, [INSIDE])
            except DescriptorError as error:
                raise DescriptorError(f"in the box of {word!r}: {error}") from None
            grid.boxes[k - 1], last = box, k
        return grid


def read_head(line: str) -> tuple[str, tuple[int, ...]]:
    """Label, as written, and box of the line before a box's cells; no label if it is none.

    >>> read_head("red dog At 4 4 7 31"), read_head("red dog At 8 4 7 31")
    (('red dog', (4, 4, 7, 31)), ('', ()))
    """
    found = _HEAD.fullmatch(line)
    box = tuple(map(int, found.groups()[1:])) if found else ()
    right = box and box[0] <= box[2] < BOX_BINS and box[1] <= box[3] < BOX_BINS
    return (found[1], box) if found and right else ("", ())


_HEAD = re.compile(r"(.*\S) At" + " (0|[1-9][0-9]?)" * 4)


def get_encoding(name: str = "rrle", grid_size: GridSize = 16, spaced: bool = False) -> Encoding:
    """An encoding by name.

    Args:
        name: a key of `ENCODINGS`: ``"full"``, ``"irle"``, ``"rrle"`` or ``"boxwise"``.
        grid_size, spaced: see `Encoding`.

    Raises:
        DescriptorError: an unknown name.
        ValueError: an unusable size.

    >>> get_encoding("irle", (12, 20)).lines
    (1, 240)
    """
    if name not in ENCODINGS:
        raise DescriptorError(f"unknown encoding {name!r}: choose one of {', '.join(ENCODINGS)}")
    return ENCODINGS[name](grid_size, spaced)


def wrap(text: str, sentence: str) -> str:
    r"""A whole response: the answer sentence, then the descriptors between their tags.

    >>> wrap("others *1", "Here it is.")
    'Here it is.\n<seg>others *1</seg>'

    Raises:
        DescriptorError: the sentence holds one of the tags (as a label in it may).
    """
    for tag in (SEG_OPEN, SEG_CLOSE):
        if tag in sentence:
            raise DescriptorError(f"the answer sentence {sentence!r} holds {tag}: "
                                  "pass the labels in it through escape_label")
    return f"{sentence}\n{SEG_OPEN}{text}{SEG_CLOSE}"


def _separators(spaced: bool) -> tuple[str, str]:
    return ("| ", "\n ") if spaced else ("|", "\n")


def _runs(cells: np.ndarray) -> Iterator[tuple[int, int, bool]]:
    """Value and length of each run in each line, and whether it begins a line."""
    flat, width = cells.ravel(), cells.shape[1]
    begins = np.empty(flat.size + 1, bool)
    np.not_equal(flat[1:], flat[:-1], out=begins[1:-1])
    begins[::width] = True  # also past the end, where the last run ends
    edges = np.flatnonzero(begins)
    starts = edges[:-1]
    lengths = edges[1:] - starts
    return zip(flat[starts].tolist(), lengths.tolist(), (starts % width == 0).tolist())
