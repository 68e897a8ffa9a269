"""Tolerant reading of model output: a grid always comes back, and a report of what was amiss.

The strict counterpart, for text that `Encoding.encode` wrote, is `Encoding.decode`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from .encodings import (
    INSIDE, OTHERS, SEG_CLOSE, SEG_OPEN, BoxWise, DescriptorError, Encoding, Vocabulary, fold, read_head,
    unescape_label, vocabulary,
)
from .grid import BoxGrid

_SHOWN = 80  # characters of an unknown label that the report keeps


@dataclass
class ParseReport:
    """What `parse` had to repair.

    The cells filled with others are ``rows_padded * cols + cells_padded``; the cells that had no
    place are ``rows_dropped`` rows and ``cells_dropped`` cells. Where the text has no rows (``full``,
    ``irle``), what is missing or too much at the end counts as whole rows and the rest.

    Attributes:
        ok: every cell is as the text says: nothing was filled, cut or guessed, no tag is missing.
        found_seg: the text has ``<seg>``.
        closed: the descriptors end with ``</seg>``.
        rows_found: rows in the text, of whatever length, also those dropped.
        rows_padded: rows missing at the end, filled with others.
        rows_dropped: rows too many, and blank lines between rows.
        cells_padded: cells missing in rows that are there, filled with others.
        cells_dropped: cells beyond the end of a row, cut off.
        bad_runs: runs with a missing, unreadable, zero or too large count (in ``full``: with a count).
        unknown: how many runs have each label that was not asked for; they are read as others.
        near: written label -> the one asked label that it is `near` to; a fault in either reading.
        lenient: labels in ``near`` were read as those asked for; by default they are ``unknown``.
        no_target: well-formed (``ok``), and every cell is others: the model says that nothing is there.
        before: text before the descriptors, trimmed: the answer sentence.
        after: text after ``</seg>``, trimmed.
    """

    ok: bool = False
    found_seg: bool = False
    closed: bool = False
    rows_found: int = 0
    rows_padded: int = 0
    rows_dropped: int = 0
    cells_padded: int = 0
    cells_dropped: int = 0
    bad_runs: int = 0
    unknown: dict[str, int] = field(default_factory=dict)
    near: dict[str, str] = field(default_factory=dict)
    lenient: bool = False
    no_target: bool = False
    before: str = ""
    after: str = ""

    @property
    def malformed(self) -> bool:
        """Not ``ok``. Such an answer is never a "no target"."""
        return not self.ok

    @property
    def verdict(self) -> str:
        """The gravest fault in two or three words, for a census of answers.

        >>> from t4s_helpers.codec.encodings import get_encoding
        >>> parse("<seg>dog *2", ["dog"], get_encoding("rrle", 2))[1].verdict
        'no </seg>'
        """
        if self.ok:
            return "well-formed"
        if not self.found_seg and self.rows_found == 0:
            return "no descriptors"
        return next((verdict for verdict, _ in self._faults() if verdict), "other fault")

    def summary(self) -> str:
        """The report in one sentence.

        >>> from t4s_helpers.codec.encodings import get_encoding
        >>> parse("<seg>dog *2", ["dog"], get_encoding("rrle", 2))[1].summary()
        'Malformed: no </seg>, 1 row missing.'
        """
        if self.ok:
            extra = ", and every cell is others" if self.no_target else ""
            return f"Well-formed: {_count(self.rows_found, 'row')} read as written{extra}."
        return f"Malformed: {', '.join(told for _, told in self._faults())}."

    def _faults(self) -> Iterator[tuple[str, str]]:
        """Verdict and words of each fault; prose before bare descriptors has no verdict of its own."""
        if self.before and not self.found_seg:
            yield "", f"text without {SEG_OPEN}"
        if self.found_seg and not self.closed:
            yield f"no {SEG_CLOSE}", f"no {SEG_CLOSE}"
        for verdict, number, noun, what in (
            ("wrong rows", self.rows_padded, "row", "missing"),
            ("wrong rows", self.rows_dropped, "row", "too many"),
            ("wrong row length", self.cells_padded, "cell", "missing"),
            ("wrong row length", self.cells_dropped, "cell", "too many"),
            ("bad count", self.bad_runs, "run", "with a bad count"),
        ):
            if number:
                yield verdict, f"{_count(number, noun)} {what}"
        strangers = [f"{name!r} x{n}" for name, n in self.unknown.items() if name not in self.near]
        near = [f"{written!r} for {asked!r}" for written, asked in self.near.items()]
        for verdict, names in (("unknown label", strangers), ("near label", near)):
            if names:
                more = f" and {len(names) - 3} more" if len(names) > 3 else ""
                yield verdict, f"{verdict}s: {', '.join(names[:3])}{more}"


def near(written: str) -> str:
    """What is left of a label without the differences that the lenient reading forgives; may be empty.

    Upper and lower case, punctuation (Unicode's classes P), an article at the beginning and repeated
    white space. Two labels are near where this is the same. There is no edit distance: a misspelt
    "brwon dog" stays unknown, as "cat" would be near to "car".

    >>> near("The brown  Dog."), near("man, left"), near("a")
    ('brown dog', 'man left', 'a')
    """
    plain = "".join(c for c in fold(written).casefold() if not unicodedata.category(c).startswith("P"))
    words = plain.split()
    return " ".join(words[1:] if len(words) > 1 and words[0] in ("a", "an", "the") else words)


@lru_cache(maxsize=256)
def _near_labels(names: tuple[str, ...]) -> dict[str, int]:
    """Grid value by `near` form, others included; forms that two labels share are left out."""
    forms = [near(name) for name in (OTHERS, *names)]
    return {form: k for k, form in enumerate(forms) if form and forms.count(form) == 1}


def parse(text: str, labels: Sequence[str], encoding: Encoding, lenient: bool = False
          ) -> tuple[Any, ParseReport]:
    r"""Read a model's answer: a whole response with its tags, or bare descriptors.

    Reads the canonical and the spaced spelling. Whatever the text, there is a grid: a short row is
    filled up with others and shifts no later row, a long one is cut; missing rows are others, surplus
    rows are dropped; unknown labels count as others; a run without a count is one cell, a count of 0
    is none, one that is too large ends with the row (or with the grid, where rows are not lines).
    Of several ``<seg>`` the last one before ``</seg>`` opens the descriptors. Without ``<seg>``, lines
    of prose at the beginning are skipped.

    Args:
        text: the answer.
        labels: the labels that were asked for.
        encoding: in which the model was to write, with its grid.
        lenient: read a label that was not asked for as the asked one that it is `near` to, where there is
            exactly one.

    Returns:
        The grid, int32 ``(rows, cols)``, or a `t4s_helpers.codec.grid.BoxGrid` of the encoding
        ``boxwise``, and a `ParseReport`.

    Raises:
        ValueError: unusable labels; never because of ``text``.

    >>> from t4s_helpers.codec.encodings import get_encoding
    >>> answer = "Here.\n<seg>dog *1\n cat *2</seg>"
    >>> grid, report = parse(answer, ["dog"], get_encoding("rrle", 2))
    >>> grid.tolist(), report.cells_padded, report.unknown
    ([[1, 0], [0, 0]], 1, {'cat': 1})
    """
    words = vocabulary(labels)
    report = ParseReport(lenient=lenient)
    _, body, torn = _cut_out(text, report)
    try:
        grid = encoding.decode(body, labels)
        report.rows_found = _n_rows(encoding, grid)
    except DescriptorError:
        grid = _repair(body, words, encoding, report)
    report.ok = not torn and not any(report._faults())
    report.no_target = report.ok and not grid.any()
    return grid, report


class Run(NamedTuple):
    """A part of an answer's text: one run, or what stands between runs."""

    text: str
    label: int  # grid value; -1: no run
    cells: tuple[int, ...] = ()  # row-major numbers of the grid's cells that it writes
    fault: str = ""  # what `parse` repairs here


def read_runs(text: str, labels: Sequence[str], encoding: Encoding) -> list[Run]:
    r"""The text in parts, each with the cells that `parse` gives it; together they are the text.

    Args and errors as in `parse`.

    >>> from t4s_helpers.codec.encodings import get_encoding
    >>> runs = read_runs("<seg>dog *1|cat *1\ndog *2</seg>", ["dog"], get_encoding("rrle", 2))
    >>> for run in runs[1:4]:
    ...     print(run)
    Run(text='dog *1', label=1, cells=(0,), fault='')
    Run(text='|', label=-1, cells=(), fault='')
    Run(text='cat *1', label=0, cells=(1,), fault="'cat' was not asked for")
    """
    report, words = ParseReport(), vocabulary(labels)
    start, body, torn = _cut_out(text, report)
    start += len(body) - len(body.lstrip())
    lines = body.strip().split("\n") if body.strip() else []
    if not report.found_seg:
        kept = _skip_prose(lines, words, report)
        start += sum(len(line) + 1 for line in lines[:len(lines) - len(kept)])
        lines = kept
    prose = f"text without {SEG_OPEN}" if report.before and not report.found_seg else ""
    (n_lines, width), parts = encoding.lines, [Run(text[:start], -1, (), prose)]
    order = encoding.arrange(np.arange(encoding.rows * encoding.cols).reshape(encoding.grid_size))
    blank = encoding.breaks_rows and len(lines) > n_lines  # then blank lines are no rows
    row = at = 0
    for k, line in enumerate(lines):
        if k and encoding.breaks_rows:
            row, at = row + bool(lines[k - 1].strip() or not blank), 0
        parts += [Run("\n", -1)] if k else []
        runs = line.split("|") if line.strip() or not blank else []
        for n, run in enumerate(runs, 1):
            parts += [Run("|", -1)] if n > 1 else []
            value, count, fault = _judged(run, words, width, encoding)
            places = order[row, at:at + count] if row < n_lines else ()
            at += count
            last = n == len(runs) and (encoding.breaks_rows or k == len(lines) - 1)
            over = min(count, at - width)
            fault = fault or (
                "this row is too many" if row >= n_lines else f"{_count(over, 'cell')} too many" if over > 0
                else f"{_count(width - at, 'cell')} of this row missing" if last and at < width else "")
            parts.append(Run(run, value, tuple(int(cell) for cell in places), fault))
        parts += [] if runs else [Run(line, -1)]
    missing = (n_lines if encoding.breaks_rows else encoding.rows) if not lines else n_lines - row - 1
    told = [f"{_count(missing, 'row')} missing"] * (missing > 0) + [f"no {SEG_CLOSE}"] * torn
    tail = text[sum(len(part.text) for part in parts):]
    if told and not tail:  # nothing stands behind to show it at
        parts[-1] = parts[-1]._replace(fault="; ".join(filter(None, (parts[-1].fault, *told))))
    shown: list[Run] = []
    for part in (*parts, Run(tail, -1, (), "; ".join(told))):
        if part.text:
            shown.append(part)
        elif part.fault and shown:  # an empty run is seen by the bar before it
            shown[-1] = shown[-1]._replace(fault=shown[-1].fault or part.fault)
    return shown


def _judged(run: str, words: Vocabulary, width: int, encoding: Encoding) -> tuple[int, int, str]:
    """Grid value and cells of a run as `parse` reads it, and its fault."""
    report = ParseReport()
    value, count = _read_run(run.strip(), words, width, encoding, report)
    strange = next((f"{name!r} was not asked for" for name in report.unknown), "")
    return value, count, strange or ("no valid count" if report.bad_runs else "")


def _cut_out(text: str, report: ParseReport) -> tuple[int, str, bool]:
    """Where the descriptors in an answer begin, the descriptors, and whether their end is torn off.

    Notes in the report which tags there are and what is around them.
    """
    first = text.find(SEG_OPEN)
    report.found_seg = first >= 0
    end = text.find(SEG_CLOSE, max(first, 0))
    report.closed = end >= 0
    start = 0
    if report.found_seg:
        last = text.rfind(SEG_OPEN, first, end) if report.closed else first
        report.before = text[:last].strip()
        start = last + len(SEG_OPEN)
    if report.closed:
        report.after = text[end + len(SEG_CLOSE):].strip()
        return start, text[start:end], False
    body = _without_torn_tag(text[start:])
    return start, body, report.found_seg or len(body) < len(text) - start


def _without_torn_tag(body: str) -> str:
    """The text without the first characters of a ``</seg>`` at its end."""
    for n in range(len(SEG_CLOSE) - 1, 0, -1):
        if body.endswith(SEG_CLOSE[:n]):
            return body[:-n]
    return body


def _n_rows(encoding: Encoding, grid: Any) -> int:
    """Rows that a report counts: the text's lines, or the grid's rows where the text has none."""
    if isinstance(grid, BoxGrid):
        return encoding.rows * int((grid.boxes[:, 0] >= 0).sum())
    return encoding.lines[0] if encoding.breaks_rows else encoding.rows


def _repair(body: str, words: Vocabulary, encoding: Encoding, report: ParseReport) -> Any:
    """Read what can be read."""
    lines = body.strip().split("\n") if body.strip() else []
    if isinstance(encoding, BoxWise):
        return _repair_boxes(lines, words, encoding, report)
    if not report.found_seg:
        lines = _skip_prose(lines, words, report)
    cells = np.zeros(encoding.lines, np.int32)
    if encoding.breaks_rows:
        _repair_rows(cells, lines, words, encoding, report)
    else:
        asked = _fill(cells[0], "|".join(lines), words, encoding, report) if lines else 0
        missing, cols = cells.size - asked, encoding.cols
        report.rows_padded, report.cells_padded = divmod(max(missing, 0), cols)
        report.rows_dropped, report.cells_dropped = divmod(max(-missing, 0), cols)
    grid = encoding.restore(cells)
    report.rows_found = _n_rows(encoding, grid) - report.rows_padded + report.rows_dropped
    return grid


def _repair_boxes(lines: list[str], words: Vocabulary, encoding: BoxWise, report: ParseReport) -> BoxGrid:
    """Each box with the lines up to the next one; a label that comes twice has its last box."""
    grid, inside = encoding.blank(len(words.names)), vocabulary([INSIDE])
    heads = [k for k, line in enumerate(lines) if read_head(line.strip())[0]]
    before = [line for line in lines[:heads[0] if heads else None] if line.strip() != OTHERS]
    if report.found_seg:
        report.rows_dropped += len(before)
    else:
        report.before = "\n".join(before).strip()
    if not heads and (before or not lines):
        report.rows_padded = encoding.rows
    for start, stop in zip(heads, [*heads[1:], len(lines)]):
        word, box = read_head(lines[start].strip())
        cells, value = np.zeros(encoding.lines, np.int32), _meant(word, words, report)
        _repair_rows(cells, lines[start + 1:stop], inside, encoding, report)
        if value and grid.boxes[value - 1, 0] >= 0:
            report.rows_dropped += encoding.rows
        if value:
            grid.boxes[value - 1], grid.cells[value - 1] = box, cells > 0
    report.rows_found = len(lines) - len(heads) - len(before) if heads else 0
    return grid


def _repair_rows(cells: np.ndarray, lines: list[str], words: Vocabulary, encoding: Encoding,
                 report: ParseReport) -> None:
    """Each line into its own row of ``cells``, so that damage stays within a row."""
    rows, width = cells.shape
    if len(lines) > rows:  # blank lines stand for empty rows only where there is room for them
        kept = [line for line in lines if line.strip()]
        report.rows_dropped += len(lines) - len(kept)
        lines = kept
    for row, line in zip(cells, lines):
        asked = _fill(row, line, words, encoding, report)
        report.cells_padded += max(width - asked, 0)
        report.cells_dropped += max(asked - width, 0)
    report.rows_padded += max(rows - len(lines), 0)
    report.rows_dropped += max(len(lines) - rows, 0)


def _skip_prose(lines: list[str], words: Vocabulary, report: ParseReport) -> list[str]:
    """The lines from the first one that can be a row; what is before goes to the report."""
    start = 0
    while start < len(lines) and "|" not in lines[start] and not _is_run(lines[start], words):
        start += 1
    report.before = "\n".join(lines[:start]).strip()
    return lines[start:]


def _is_run(run: str, words: Vocabulary) -> bool:
    return _split_run(run)[1] is not None or _look_up(run.strip(), words) is not None


def _fill(row: np.ndarray, line: str, words: Vocabulary, encoding: Encoding, report: ParseReport) -> int:
    """Write the runs of one line into its cells; returns how many cells they ask for."""
    at = 0
    for run in line.split("|"):
        value, count = _read_run(run.strip(), words, row.size, encoding, report)
        row[at: at + count] = value
        at += count
    return at


def _read_run(run: str, words: Vocabulary, width: int, encoding: Encoding,
              report: ParseReport) -> tuple[int, int]:
    """Grid value and number of cells of one run."""
    if not run:
        report.bad_runs += 1
        return 0, 0
    stem, count = _split_run(run)
    word = run if count is None else stem  # no written label ends with a star and digits
    value = _look_up(word, words)
    if value is None and count is None and (value := _look_up(stem, words)) is not None:
        word = stem
    counted = count is not None and 1 <= count <= width
    report.bad_runs += not (counted if encoding.counts_runs else word == run)
    if value is None:
        value = _meant(word, words, report)
    return value or 0, 1 if count is None else min(count, width)


def _meant(word: str, words: Vocabulary, report: ParseReport) -> int | None:
    """Grid value of a label; one that was not asked for goes to the report."""
    value = _look_up(word, words)
    if value is not None:
        return value
    name, meant = unescape_label(word)[:_SHOWN], _near_value(word, words)
    if meant is not None:
        report.near[name] = (OTHERS, *words.names)[meant]
    if meant is None or not report.lenient:
        report.unknown[name] = report.unknown.get(name, 0) + 1
    return meant if report.lenient else None


def _split_run(run: str) -> tuple[str, int | None]:
    """Label and count of ``label *count``; without readable digits the count is None."""
    word, star, digits = run.rpartition("*")
    digits = digits.strip()
    if not star:
        return run, None
    if not (digits.isascii() and digits.isdigit()):
        return word.rstrip(), None
    # Python refuses to convert thousands of digits; ten are too large for any grid anyway.
    return word.rstrip(), int(digits.lstrip("0")[:10] or "0")


def _look_up(word: str, words: Vocabulary) -> int | None:
    value = words.index.get(word)
    return words.folded.get(fold(word)) if value is None and _short(word, words) else value


def _near_value(word: str, words: Vocabulary) -> int | None:
    return _near_labels(words.names).get(near(unescape_label(word))) if _short(word, words) else None


def _short(word: str, words: Vocabulary) -> bool:
    """Whether a word is short enough to be worth folding: nonsense may be very long."""
    return len(word) <= 4 * max(map(len, words.written))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
