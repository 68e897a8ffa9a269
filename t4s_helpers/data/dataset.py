"""Data sets whose samples are made when they are asked for, and the checks that all readers share.

A reader checks its files once, when it is opened. A sample (its masks, its wording, its picture) is
made anew at each access, so memory does not grow with what has been read, and any grid size,
encoding or template can be asked of the same files.

What cannot be used is either refused at once, by a `SampleError` that names it, or listed in
`Dataset.excluded` with a reason, so that a table can say so. It is never scored, and never turned
into "no target".
"""

from __future__ import annotations

import copy
import json
import warnings
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..codec.encodings import DescriptorError, check_labels
from .sample import Sample, SampleError, image_size, size_text

BAD = ("refuse", "exclude")
"""What to do with annotations that cannot be used: refuse the file, or leave them out and say so."""

COUNTS = ("strict", "warn", "off")
"""What a count other than the published one is: an error, a warning, or no matter (subsets)."""

Record = Mapping[str, Any]
"""One object of a JSON file: an image, an annotation, a question."""


class Excluded(NamedTuple):
    """One sample that a data set leaves out.

    Attributes:
        id: of the sample.
        reason: a few words, the same for all of a kind, such as "missing image".
        detail: the whole sentence: which file and row, and what to do.
    """

    id: str
    reason: str
    detail: str


class BadRow(SampleError):
    """An annotation that cannot be used.

    Args:
        reason: the kind of fault in a few words.
        message: the whole sentence.
        harmless: no fault of the file, so that the row is left out even where faults are refused.
    """

    def __init__(self, reason: str, message: str, harmless: bool = False):
        super().__init__(message)
        self.reason, self.harmless = reason, harmless


@dataclass(frozen=True)
class LazyMasks:
    """Masks that are made when they are asked for (a ``MaskSource``): ``draw(*args)``.

    ``shape`` is ``(L, H, W)``; ``draw`` is a function of a module, so that processes can be sent it.
    """

    shape: tuple[int, int, int]
    draw: Callable[..., np.ndarray]
    args: tuple[Any, ...]

    def decode(self) -> np.ndarray:
        """bool ``(L, H, W)``"""
        return self.draw(*self.args)

    def turned(self, orientation: int) -> LazyMasks:
        """Masks of a stored picture as they lie once its EXIF orientation (1 to 8) is applied."""
        n, *size = self.shape
        return LazyMasks((n, *(size[::-1] if orientation > 4 else size)), _turn, (self, orientation))


def _turn(masks: LazyMasks, orientation: int) -> np.ndarray:
    stored = masks.decode()
    upright = stored.transpose(0, 2, 1) if orientation > 4 else stored
    return upright[:, ::-1 if orientation in (3, 4, 7, 8) else 1, ::-1 if orientation in (2, 3, 6, 7) else 1]


class Dataset(Sequence):
    """Samples by number, made at each access.

    ``dataset[i]`` is a `t4s_helpers.data.sample.Sample` and ``dataset[a:b]`` again a data set. The
    order is that of the files. Instances can be sent to other processes.

    A reader lists its rows, a tuple for each sample, and says whether a row can be used (`check`) and what
    its sample is (`make`). A row begins with the sample's number or name and its image file, or the
    reader says where they are (`row_id`, `row_image`).

    Args:
        source: file or folder that is read; messages name it.
        rows: of all samples that it lists.
        published: the number of samples that the split should have; several where releases differ.
        listed: the number to compare with it, if not that of the rows.
        counts: one of `COUNTS`, what another number is.
        bad: one of `BAD`.
        verify: whether image headers are read too.

    Attributes:
        name, split, task: as in `t4s_helpers.data.load`.
        classes: of a semantic data set (``classes[k-1]`` is value ``k`` of a class map), else empty.
        background, ignore_index: of a semantic data set, what value 0 of its class maps means to
            `MeanIoU`, and the value of pixels that are never scored; else None.
        apply_exif: whether annotations lie on photos as their EXIF orientation shows them; a user's own may
            lie on the pictures as they are stored instead.
        rows: of the samples that can be used.
        excluded: what is left out, as `Excluded`; ``len(dataset)`` does not count it.

    Raises:
        SampleError: an unknown word for ``counts`` or ``bad``, another number of samples than published,
            or rows that cannot be used, unless these are to be excluded; the message lists them.
    """

    classes: tuple[str, ...] = ()
    background: str | None = None
    ignore_index: int | None = None
    apply_exif: bool = True

    def __init__(self, name: str, split: str, task: str, source: Path, rows: Sequence[tuple],
                 published: int | Sequence[int] | None = None, listed: int | None = None,
                 counts: str = "strict", bad: str = "refuse", verify: bool = True):
        from tqdm.auto import tqdm

        choose("counts", counts, COUNTS)
        choose("bad", bad, BAD)
        self.name, self.split, self.task, self.source, self.verify = name, split, task, source, verify
        _check_count(f"{split!r} of {source}", len(rows) if listed is None else listed, published, counts)
        self.rows, excluded, faults, ids = [], [], [], set()
        self._fine: set[tuple[Path, Any]] = set()
        for row in tqdm(rows, f"{name} {split}", delay=3):  # no bar where a few seconds are enough
            row_id = self.row_id(row)
            try:
                self.check(row)
                if row_id in ids:
                    raise BadRow("duplicated id", f"{row_id} occurs twice in {source}; fetch the "
                                 "official file.")
            except BadRow as fault:
                excluded.append(Excluded(row_id, fault.reason, str(fault)))
                faults += [] if fault.harmless else [fault]
            else:
                ids.add(row_id)
                self.rows.append(row)
        self.excluded = tuple(excluded)
        self._fine.clear()
        if faults and bad == "refuse":
            raise _refusal(source, faults)

    def row_id(self, row: Any) -> str:
        """The id of a row's sample, unique in the data set; also of a row that cannot be used."""
        return f"{self.name}/{self.split}/{row[0]}"

    def row_image(self, row: Any) -> Path:
        """The image file of a row's sample; the same for all samples of an image."""
        return row[1]

    @abstractmethod
    def check(self, row: Any) -> None:
        """Raise `BadRow` unless a row can be used."""

    @abstractmethod
    def make(self, row: Any) -> Sample:
        """The sample of a row."""

    def check_image(self, path: Path, owner: str, size: tuple[int, int] | None = None) -> None:
        """`check_photo`; while a data set is opened, each photo is looked at once."""
        if (path, size) not in self._fine:
            check_photo(path, owner, size, self.verify, self.apply_exif)
            self._fine.add((path, size))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.subset(range(len(self))[index])
        return self.make(self.rows[index])

    def __repr__(self) -> str:
        left_out = f", {len(self.excluded)} excluded" if self.excluded else ""
        return f"<{self.name} {self.split}: {len(self)} {self.task} samples{left_out}>"

    def id(self, index: int) -> str:
        """The id of sample ``index``, without making it."""
        return self.row_id(self.rows[index])

    def image(self, index: int) -> Path:
        """The image file of sample ``index``, without making it."""
        return self.row_image(self.rows[index])

    def subset(self, indices: Sequence[int]) -> Dataset:
        """The samples with these numbers, in this order, as a data set; no annotation is copied."""
        part = copy.copy(self)
        part.rows = [self.rows[index] for index in indices]
        return part

    def by_image(self) -> list[list[int]]:
        """Numbers of the samples that share an image, in the order of each image's first one.

        The features of an image then need to be computed once.
        """
        groups: dict[str, list[int]] = {}
        for index, row in enumerate(self.rows):
            groups.setdefault(str(self.row_image(row)), []).append(index)
        return list(groups.values())

    def exclusions(self) -> list[dict[str, Any]]:
        """A table of what is left out: ``reason``, ``n`` and ``first`` (an id), most common first."""
        counts = Counter(one.reason for one in self.excluded)
        first = {one.reason: one.id for one in reversed(self.excluded)}
        return [{"reason": reason, "n": n, "first": first[reason]}
                for reason, n in counts.most_common()]


def _check_count(what: str, found: int, published: int | Sequence[int] | None, counts: str) -> None:
    """Compare the number of samples in a file with the published one."""
    known = (published,) if isinstance(published, int) else tuple(published or ())
    if counts == "off" or not known or found in known:
        return
    message = (
        f"{what} holds {found:,} samples instead of the {' or '.join(f'{n:,}' for n in known)} "
        "that are published, so its scores cannot be compared with anyone's. Fetch the official "
        "files; for a subset on purpose pass counts='warn' or counts='off'."
    )
    if counts == "strict":
        raise SampleError(message)
    warnings.warn(message, stacklevel=4)


def _refusal(source: Path, faults: Sequence[BadRow]) -> SampleError:
    """The error for rows that cannot be used: the one, or a list of them."""
    details, most = list(dict.fromkeys(map(str, faults))), 20
    if len(details) == 1:
        return faults[0]
    kinds = ", ".join(f"{n} x {reason}" for reason, n in Counter(one.reason for one in faults).most_common())
    more = [f"... and {len(details) - most} more"] if len(details) > most else []
    return SampleError("\n  ".join([
        f"{len(faults)} samples of {source} cannot be used ({kinds}). Mend them, or pass bad='exclude' to go "
        "on without them; `excluded` of the data set then lists all of them.", *details[:most], *more]))


def check_photo(path: Path, owner: str, size: tuple[int, int] | None = None,
                verify: bool = True, apply_exif: bool = True) -> None:
    """Raise `BadRow` unless a photo is there and, with ``verify``, is an image of ``size`` (H, W)."""
    if not path.is_file():
        raise BadRow("missing image", f"The photo {path} of {owner} does not exist; correct its "
                     "name, or unpack the photos again.")
    if not verify:
        return
    try:
        found = image_size(path, apply_exif)
        turned = size not in (None, found) and size == image_size(path, not apply_exif)
    except SampleError as error:
        raise BadRow("unreadable image", str(error)) from error
    if size not in (None, found):
        hint = (f"that is {'before' if apply_exif else 'after'} its EXIF orientation is applied: if it was "
                f"annotated like that, pass apply_exif={not apply_exif}, else correct the size."
                if turned else "use the photos that were annotated.")
        raise BadRow("image of another size",
                     f"{path} is {size_text(found)}, but {owner} says {size[1]} x {size[0]}; {hint}")


def check_annotation(path: Path) -> None:
    """Raise `BadRow` where an annotation file is missing."""
    if not path.is_file():
        raise BadRow("missing annotation",
                     f"Annotation file {path} does not exist; correct its name, or unpack it again.")


def check_label(text: str, name: str) -> None:
    """Raise `BadRow` for an expression that cannot be a label ("others" and empty ones)."""
    try:
        check_labels((text,))
    except DescriptorError as error:
        raise BadRow("expression that cannot be a label", f"{name} ({text!r}): {error}",
                     harmless=True) from error


def needed(row: Any, source: Path, *names: str) -> list[Any]:
    """The entries ``names`` of a row of ``source``, or a `BadRow` that says which are absent."""
    absent = [name for name in names if not isinstance(row, dict) or name not in row]
    if absent:
        raise BadRow("incomplete row", f"A row of {source} lacks {', '.join(absent)}: "
                     f"{' '.join(str(row).split())[:120]}; fetch the official file.")
    return [row[name] for name in names]


def choose(name: str, value: Any, known: Sequence[str]) -> None:
    """Refuse an option's value that is not among the known ones."""
    if value not in known:
        raise SampleError(f"{name}={value!r} is not known; choose one of {', '.join(known)}.")


def first_there(root: Path, *names: str) -> Path:
    """The first of these files or folders below ``root`` that exists, else the first."""
    return next((root / name for name in names if (root / name).exists()), root / names[0])


def read_json(path: Path, what: str = "Annotation file", lines: bool = False) -> Any:
    """The content of a JSON file.

    A file of RefCOCO's size (135 MB, 197,000 outlines) takes 9 seconds and 0.85 GB.

    Args:
        what: how messages call the file.
        lines: each line is a content of its own; returns a list of them.

    Raises:
        SampleError: the file is missing or is no JSON; the message names it, and the line.
    """
    if not path.is_file():
        raise SampleError(f"{what} {path} does not exist; check the path.")
    found: list[Any] = []
    try:
        text = path.read_text(encoding="utf-8-sig")
        found.extend(map(json.loads, text.rstrip().split("\n") if lines else [text]))
    except (OSError, ValueError, RecursionError) as error:
        where = f"line {len(found) + 1}: " if lines else ""
        raise SampleError(f"{what} {path} cannot be read as JSON ({where}{error}); it may be cut short: "
                          "fetch or export it again.") from error
    return found if lines else found[0]


def list_of(data: Any, path: Path, name: str = "") -> list[Record]:
    """The list of objects ``name`` in a file's content, or the content itself; else a `SampleError`."""
    rows = data.get(name) if name and isinstance(data, dict) else data
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise SampleError(f"{path} holds no list of objects{f' {name!r}' if name else ''}; fetch or "
                          "export the file again.")
    return rows
