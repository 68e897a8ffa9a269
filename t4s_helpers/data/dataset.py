"""Data sets whose samples are made when they are asked for, and the checks that all readers share.

A reader checks its files once, when it is opened. A sample (its masks, its wording, its picture) is
made anew at each access, so memory does not grow with what has been read, and any grid size,
encoding or template can be asked of the same files.

What cannot be used is either refused at once, by a `SampleError` that names it, or listed in
`Dataset.excluded` with a reason, so that a table can say so. It is never scored, and never turned
into "no target".
"""

from __future__ import annotations

import json
import warnings
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
    """One thing that a data set leaves out.

    Attributes:
        id: of the sample, where it has one; else of the annotation or file.
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


class Dataset(Sequence):
    """Samples by number, made at each access.

    ``dataset[i]`` is a `t4s_helpers.data.sample.Sample` and ``dataset[a:b]`` again a data set. The
    order is that of the files. Instances can be sent to other processes.

    Attributes:
        name, split, task: as in `t4s_helpers.data.load`.
        classes: of a semantic data set (``classes[k-1]`` is value ``k`` of a class map), else empty.
        background, ignore_index: of a semantic data set, what value 0 of its class maps means to
            `MeanIoU`, and the value of pixels that are never scored; else None.
        excluded: what is left out, as `Excluded`; ``len(dataset)`` does not count it.
    """

    background: str | None = None
    ignore_index: int | None = None

    def __init__(self, name: str, split: str, task: str, classes: Sequence[str] = (),
                 excluded: Sequence[Excluded] = ()):
        self.name, self.split, self.task = name, split, task
        self.classes, self.excluded = tuple(classes), tuple(excluded)

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def id(self, index: int) -> str:
        """The id of sample ``index``, without making it; unique in the data set."""

    @abstractmethod
    def image(self, index: int) -> Path:
        """The image file of sample ``index``, without making it; the same for all its samples."""

    @abstractmethod
    def sample(self, index: int) -> Sample:
        """Sample ``index`` (from 0, not negative)."""

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.subset(range(len(self))[index])
        at = index + len(self) if index < 0 else index
        if not 0 <= at < len(self):
            raise IndexError(f"Sample {index} of {self}")
        return self.sample(int(at))

    def __repr__(self) -> str:
        left_out = f", {len(self.excluded)} excluded" if self.excluded else ""
        return f"<{self.name} {self.split}: {len(self)} {self.task} samples{left_out}>"

    def ids(self) -> Iterator[str]:
        """The ids in order."""
        return (self.id(index) for index in range(len(self)))

    def subset(self, indices: Sequence[int]) -> Dataset:
        """The samples with these numbers, in this order, as a data set."""
        return Subset(self, np.asarray(indices, dtype=np.int64))

    def shuffled(self, seed: int) -> Dataset:
        """All samples in an order that ``seed`` alone decides."""
        return self.subset(np.random.default_rng([seed, 17]).permutation(len(self)))

    def by_image(self) -> list[list[int]]:
        """Numbers of the samples that share an image, in the order of each image's first one.

        The features of an image then need to be computed once.
        """
        groups: dict[str, list[int]] = {}
        for index in range(len(self)):
            groups.setdefault(str(self.image(index)), []).append(index)
        return list(groups.values())

    def exclusions(self) -> list[dict[str, Any]]:
        """A table of what is left out: ``reason``, ``n`` and ``first`` (an id), most common first."""
        counts = Counter(one.reason for one in self.excluded)
        first = {one.reason: one.id for one in reversed(self.excluded)}
        return [{"reason": reason, "n": n, "first": first[reason]}
                for reason, n in counts.most_common()]


class Subset(Dataset):
    """Some samples of a data set in an order of its own; nothing is copied."""

    def __init__(self, whole: Dataset, indices: np.ndarray):
        if len(indices) and not -len(whole) <= indices.min() <= indices.max() < len(whole):
            raise IndexError(f"Samples {indices.min()} to {indices.max()} of {whole}")
        super().__init__(whole.name, whole.split, whole.task, whole.classes, whole.excluded)
        self.background, self.ignore_index = whole.background, whole.ignore_index
        self.whole, self.indices = whole, indices % max(1, len(whole))

    def __len__(self) -> int:
        return len(self.indices)

    def id(self, index: int) -> str:
        return self.whole.id(int(self.indices[index]))

    def image(self, index: int) -> Path:
        return self.whole.image(int(self.indices[index]))

    def sample(self, index: int) -> Sample:
        return self.whole.sample(int(self.indices[index]))


class Inspection:
    """What is checked while a data set is opened; it collects what cannot be used, or refuses it.

    Args:
        published: the number of samples that the split should have; several where releases differ.
        counts: one of `COUNTS`, what another number is.
        bad: one of `BAD`.
        verify: whether image headers are read too.

    Raises:
        SampleError: an unknown word for ``counts`` or ``bad``.
    """

    def __init__(self, published: int | Sequence[int] | None = None, counts: str = "strict",
                 bad: str = "refuse", verify: bool = True):
        choose("counts", counts, COUNTS)
        choose("bad", bad, BAD)
        self.published, self.counts, self.bad, self.verify = published, counts, bad, verify
        self.excluded: list[Excluded] = []
        self._ids: set[str] = set()
        self._photos: dict[tuple[Path, Any], BadRow | None] = {}

    def leave_out(self, name: str, fault: BadRow) -> None:
        """Note that ``name`` is left out because of ``fault``, or raise it."""
        if self.bad == "refuse" and not fault.harmless:
            raise fault
        self.excluded.append(Excluded(name, fault.reason, str(fault)))

    @contextmanager
    def row(self, name: str) -> Iterator[None]:
        """Leave ``name`` out if what is done within this context finds it unusable."""
        try:
            yield
        except BadRow as fault:
            self.leave_out(name, fault)

    def unique(self, name: str) -> None:
        """Of samples with the same id, only the first can stay."""
        if name in self._ids:
            raise BadRow("duplicated id", f"{name} occurs twice in its file; fetch the official file.")
        self._ids.add(name)

    def label(self, text: str, name: str) -> None:
        """Whether an expression can be a label ("others" and empty ones cannot)."""
        try:
            check_labels((text,))
        except DescriptorError as error:
            raise BadRow("expression that cannot be a label", f"{name} ({text!r}): {error}",
                         harmless=True) from error

    def photo(self, path: Path, owner: str, size: tuple[int, int] | None = None) -> None:
        """`check_photo`, with each photo looked at once."""
        if (path, size) not in self._photos:
            try:
                check_photo(path, owner, size, self.verify)
                self._photos[path, size] = None
            except BadRow as fault:
                self._photos[path, size] = fault
        if fault := self._photos[path, size]:
            raise fault

    def count(self, found: int, what: str) -> None:
        """Compare the number of samples in a file with the published one."""
        known = (self.published,) if isinstance(self.published, int) else tuple(self.published or ())
        if self.counts == "off" or not known or found in known:
            return
        message = (
            f"{what} holds {found:,} samples instead of the {' or '.join(f'{n:,}' for n in known)} "
            "that are published, so its scores cannot be compared with anyone's. Fetch the official "
            "files; for a subset on purpose pass counts='warn' or counts='off'."
        )
        if self.counts == "strict":
            raise SampleError(message)
        warnings.warn(message, stacklevel=3)


def check_photo(path: Path, owner: str, size: tuple[int, int] | None = None,
                verify: bool = True) -> None:
    """Raise `BadRow` unless a photo is there and, with ``verify``, is an image of ``size`` (H, W)."""
    if not path.is_file():
        raise BadRow("missing image", f"The photo {path} of {owner} does not exist; unpack the "
                     "photos again.")
    if not verify:
        return
    try:
        found = image_size(path)
    except SampleError as error:
        raise BadRow("unreadable image", str(error)) from error
    if size is not None and found != size:
        raise BadRow("image of another size",
                     f"{path} is {size_text(found)}, but {owner} says {size[1]} x {size[0]}; use the "
                     "photos that were annotated.")


def choose(name: str, value: Any, known: Sequence[str]) -> None:
    """Refuse an option's value that is not among the known ones."""
    if value not in known:
        raise SampleError(f"{name}={value!r} is not known; choose one of {', '.join(known)}.")


def progress(rows: Sequence[Any], name: str, unit: str, least: int = 20_000):
    """The rows, with a progress bar where there are at least so many."""
    from tqdm.auto import tqdm

    return tqdm(rows, name, unit=f" {unit}", disable=len(rows) < least)


def read_json(path: Path, what: str = "Annotation file") -> Any:
    """The content of a JSON file.

    A file of RefCOCO's size (135 MB, 197,000 outlines) takes 9 seconds and 0.85 GB.

    Args:
        what: how messages call the file.

    Raises:
        SampleError: the file is missing or is no JSON; the message names it.
    """
    if not path.is_file():
        raise SampleError(f"{what} {path} does not exist; check the path.")
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise SampleError(f"{what} {path} cannot be read as JSON ({error}); it may be cut short: "
                          "fetch or export it again.") from error


def read_json_lines(path: Path) -> list[Record]:
    """The rows of a file with one JSON object a line; a `SampleError` names file and line."""
    if not path.is_file():
        raise SampleError(f"Annotation file {path} does not exist; check the path.")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        try:
            rows += [json.loads(line)] if line.strip() else []
            fine = not rows or isinstance(rows[-1], dict)
        except ValueError:
            fine = False
        if not fine:
            raise SampleError(f"Line {number} of {path} is no JSON object; it may be cut short: "
                              "fetch the file again.")
    return rows


def list_of(data: Any, path: Path, name: str = "") -> list[Record]:
    """The list of objects ``name`` in a file's content, or the content itself; else a `SampleError`."""
    rows = data.get(name) if name and isinstance(data, dict) else data
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise SampleError(f"{path} holds no list of objects{f' {name!r}' if name else ''}; fetch or "
                          "export the file again.")
    return rows
