"""Rows of large JSON files, kept on disk: only where each row begins stays in memory.

A file is read once, in pieces, to find its rows and to check them; a row is parsed again when it is
asked for (some microseconds). So a file of a million annotations costs megabytes, not gigabytes.
"""

from __future__ import annotations

import json
import os
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .sample import SampleError

_PIECE = 1 << 22
_BAR_FROM = 64 << 20
_SPACE = re.compile(r"[ \t\n\r]*")
_DELIMITERS = " \t\n\r,:]}"
_DECODER = json.JSONDecoder()

OnRow = Callable[[str, Any], None]


class Rows(Sequence):
    """JSON values by number, parsed at each access.

    Parameters
    ----------
    source:
        The file, or the bytes themselves.
    starts, sizes:
        int64 and int32 ``(n,)``: where each row begins, and its length, in bytes.
    columns:
        Values that were kept of every row: name -> array or list of ``n``.
    keyed:
        The rows are entries of an object: each is a pair ``(key, value)``.
    """

    def __init__(self, source: Path | bytes, starts, sizes, columns=None, keyed: bool = False):
        self.source, self.keyed, self.columns = source, keyed, columns or {}
        self.starts, self.sizes = np.asarray(starts, np.int64), np.asarray(sizes, np.int32)
        self._stamp = None if isinstance(source, bytes) else _stamp(source)
        self._file: _File | None = None

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> Any:
        start, size = int(self.starts[index]), int(self.sizes[index])
        text = self._bytes(start, size)
        if self.keyed:
            return next(iter(json.loads(b"{" + text + b"}").items()))
        return json.loads(text)

    def _bytes(self, start: int, size: int) -> bytes:
        if isinstance(self.source, bytes):
            return self.source[start:start + size]
        # A process that was forked must not share its parent's file.
        if self._file is None or self._file.process != os.getpid():
            if _stamp(self.source) != self._stamp:
                raise SampleError(f"{self.source} was changed after it was opened; open it again.")
            self._file = _File(self.source)
        return os.pread(self._file.number, size, start)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}

    @staticmethod
    def packed(values: Iterable[Any]) -> Rows:
        """Rows of values that are in memory, written as compact JSON."""
        blob, sizes = bytearray(), array("i")
        for value in values:
            text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
            text = text.encode("utf-8", "surrogatepass")
            blob += text
            sizes.append(len(text))
        ends = np.cumsum(np.asarray(sizes, np.int64))
        return Rows(bytes(blob), ends - np.asarray(sizes, np.int64), sizes)


class _File:
    """An open file of this process, closed with the last reference to it."""

    def __init__(self, path: Path):
        self.process, self.number = os.getpid(), os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        os.close(self.number)


class Table(Mapping):
    """Rows by their id, which is one of their columns."""

    def __init__(self, rows: Rows, key: str = "id"):
        self.rows, self._ids = rows, rows.columns[key]
        self._place: dict[Any, int] | None = None
        if isinstance(self._ids, np.ndarray):
            self._order = np.argsort(self._ids, kind="stable")
            self._sorted = self._ids[self._order]
            self._rising = bool((self._order[1:] > self._order[:-1]).all())
            if self._rising:  # then sorting changes nothing and need not be kept
                self._order, self._sorted = None, self._ids
        else:
            self._place = {identity: n for n, identity in enumerate(self._ids)}

    def place(self, identity: Any) -> int | None:
        """The number of the row with this id, or None."""
        if self._place is not None:
            return self._place.get(identity)
        if not isinstance(identity, (int, np.integer)):
            return None
        at = int(np.searchsorted(self._sorted, identity))
        if at == len(self._sorted) or self._sorted[at] != identity:
            return None
        return at if self._order is None else int(self._order[at])

    def __getitem__(self, identity: Any) -> Any:
        at = self.place(identity)
        if at is None:
            raise KeyError(identity)
        return self.rows[at]

    def __contains__(self, identity: Any) -> bool:
        return self.place(identity) is not None

    def __iter__(self) -> Iterator[Any]:
        return (n.item() if isinstance(n, np.generic) else n for n in self._ids)

    def __len__(self) -> int:
        return len(self.rows)

    def values(self):
        return (self.rows[n] for n in range(len(self.rows)))

    def items(self):
        return ((identity, self.rows[n]) for n, identity in enumerate(self))


def read_rows(path: str | Path, columns: Mapping[str, Sequence[str]] | None = None,
              on_row: OnRow | None = None, keyed: bool = False, what: str = "Annotation file"
              ) -> dict[str, Any]:
    """Find the rows of a JSON file.

    Parameters
    ----------
    path:
        A file that holds an object of lists (COCO's form), a list, or with ``keyed`` an object
        whose entries are the rows.
    columns:
        For each list, by name, the entries of its rows to keep in memory. The name of a file's
        only list is ``""``.
    on_row:
        Called with the name of the list and each row. Non-ASCII texts are not decoded yet then.
    what:
        What messages call the file.

    Returns
    -------
    name -> :class:`Rows` for lists of objects, the value itself for anything else.

    Raises
    ------
    SampleError
        When the file is missing or is no JSON; the message names it.
    """
    path = Path(path)
    if not path.is_file():
        raise SampleError(f"{what} {path} does not exist; check the path.")
    try:
        with open(path, "rb") as file:
            reader = _Reader(file, path, columns or {}, on_row)
            return reader.entries_as_rows() if keyed else reader.document()
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, SampleError):
            raise
        raise SampleError(
            f"{what} {path} cannot be read as JSON ({error}); it may be cut short: "
            "fetch or export it again."
        ) from error


def read_lines(path: str | Path, what: str = "Annotation file") -> Rows:
    """The rows of a file with one JSON object a line; empty lines are passed over.

    Raises
    ------
    SampleError
        When the file is missing or a line is no JSON object; the message names file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise SampleError(f"{what} {path} does not exist; check the path.")
    pack, start = _Packer(()), 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    fine = isinstance(json.loads(line), dict)
                except ValueError:
                    fine = False
                if not fine:
                    raise SampleError(f"Line {number} of {path} is no JSON object; it may be cut "
                                      "short: fetch the file again.")
                pack.add({}, start, start + len(line))
            start += len(line)
    return pack.rows(path)


class _Reader:
    """One pass through a file; a character of the text is a byte of the file (Latin-1)."""

    def __init__(self, file, path: Path, columns, on_row):
        from tqdm.auto import tqdm

        self.file, self.path, self.columns = file, path, columns
        self.on_row = on_row or (lambda name, row: None)
        self.text, self.base, self.at, self.done = "", 0, 0, False
        size = path.stat().st_size
        self.bar = tqdm(total=size, desc=path.name, unit="B", unit_scale=True,
                        disable=size < _BAR_FROM)
        self.more()
        if self.text.startswith("\xef\xbb\xbf"):  # the byte order mark of some editors
            self.at = 3

    def more(self) -> None:
        """Drop what has been read and add the next piece."""
        piece = self.file.read(max(_PIECE, len(self.text) - self.at))
        self.done = not piece
        self.text = self.text[self.at:] + piece.decode("latin-1")
        self.base, self.at = self.base + self.at, 0
        self.bar.update(len(piece))

    def peek(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            self.at = _SPACE.match(self.text, self.at).end()
            if self.at < len(self.text) or self.done:
                return self.text[self.at:self.at + 1]
            self.more()

    def take(self, allowed: str) -> str:
        found = self.peek()
        if not found or found not in allowed:
            wanted = " or ".join(repr(mark) for mark in allowed)
            raise ValueError(f"{found!r} instead of {wanted} at byte {self.base + self.at}")
        self.at += 1
        return found

    def value(self) -> tuple[Any, int, int]:
        """The next value, and the bytes between which it lies."""
        self.peek()
        while True:
            try:
                found, end = _DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                if self.done or not self._cut(error):
                    raise ValueError(f"{error.msg} at byte {self.base + error.pos}") from error
            else:
                after = self.text[end:end + 1]
                # A number that the piece's end cuts ("12.", "3e") is not to be taken for its start.
                open_ended = isinstance(found, (int, float)) and after not in _DELIMITERS
                if after and not open_ended or self.done:
                    start, self.at = self.base + self.at, end
                    return found, start, self.base + end
            self.more()

    def _cut(self, error: json.JSONDecodeError) -> bool:
        """Whether the piece's end may be what is wrong."""
        return error.msg.startswith("Unterminated") or error.pos > len(self.text) - 16

    def document(self) -> dict[str, Any]:
        if self.peek() == "[":
            return self._finish({"": self._list("")})
        if self.peek() != "{":
            self._no_object()
        self.take("{")
        found: dict[str, Any] = {}
        for name in self._keys():
            if self.peek() == "[":
                found[name] = self._list(name)
            else:
                _, start, end = self.value()
                found[name] = self._exact(start, end)
        return self._finish(found)

    def _no_object(self) -> None:
        self.value()
        raise SampleError(
            f"Annotation file {self.path} holds no JSON object; give a COCO file."
        )

    def _finish(self, found: dict[str, Any]) -> dict[str, Any]:
        rest = self.peek()
        self.bar.close()
        if rest:
            raise ValueError(f"Extra data at byte {self.base + self.at}")
        return found

    def _keys(self) -> Iterator[str]:
        """The keys of an object, each time up to its value."""
        if self.peek() == "}":
            self.at += 1
            return
        while True:
            if self.peek() != '"':
                self.take('"')
            self.key_start = self.base + self.at
            key, start, end = self.value()
            self.take(":")
            yield key if key.isascii() else self._exact(start, end)
            if self.take(",}") == "}":
                return

    def _list(self, name: str) -> Any:
        """Rows where every element is an object, else the list itself."""
        begin = self.base + self.at
        self.take("[")
        pack = _Packer(self.columns.get(name, ()))
        plain = False
        if self.peek() == "]":
            self.at += 1
            return pack.rows(self.path)
        while True:
            row, start, end = self.value()
            plain |= not isinstance(row, dict)
            if not plain:
                pack.add(row, start, end)
                self.on_row(name, row)
            if self.take(",]") == "]":
                break
        return self._exact(begin, self.base + self.at) if plain else pack.rows(self.path)

    def entries_as_rows(self) -> dict[str, Any]:
        self.take("{")
        pack = _Packer(self.columns.get("", ()))
        for _ in self._keys():
            key_start = self.key_start
            row, _, end = self.value()
            if not isinstance(row, dict):
                raise ValueError(f"no object at byte {key_start}")
            pack.add(row, key_start, end)
            self.on_row("", row)
        return self._finish({"": pack.rows(self.path, keyed=True)})

    def _exact(self, start: int, end: int) -> Any:
        """The value between two bytes, its texts decoded as UTF-8."""
        return json.loads(os.pread(self.file.fileno(), end - start, start))


class _Packer:
    """Collects where rows lie and the columns that are kept of them."""

    def __init__(self, columns: Sequence[str]):
        self.starts, self.sizes = array("q"), array("i")
        self.columns: dict[str, Any] = {name: array("q") for name in columns}

    def add(self, row: Mapping[str, Any], start: int, end: int) -> None:
        self.starts.append(start)
        self.sizes.append(end - start)
        for name, column in self.columns.items():
            value = row.get(name)
            try:
                column.append(value)
            except (TypeError, OverflowError):  # not a whole number: a plain list from now on
                self.columns[name] = [*column, value]

    def rows(self, path: Path, keyed: bool = False) -> Rows:
        columns = {name: np.asarray(c) if isinstance(c, array) else c
                   for name, c in self.columns.items()}
        return Rows(path, self.starts, self.sizes, columns, keyed)


def _stamp(path: Path) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns
