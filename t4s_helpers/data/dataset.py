"""Data sets whose samples are made when they are asked for.

A reader checks its files once, when it is opened, and keeps a small index. A sample (its masks, its
wording, its picture) is made anew at each access, so memory does not grow with what has been read,
and any grid size, encoding or template can be asked of the same files.

What cannot be used is either refused at once, by a :class:`~t4s_helpers.data.sample.SampleError`
that names it, or kept in :attr:`Dataset.excluded` with a reason, so that a table can say so. It is
never scored and never turned into "no target".
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .sample import Sample, SampleError

BAD = ("refuse", "exclude")
"""What to do with annotations that cannot be used: refuse the file, or leave them out and say so."""

COUNTS = ("strict", "warn", "off")
"""What a count other than the published one is: an error, a warning, or no matter (subsets)."""


class Excluded(NamedTuple):
    """One thing that a data set leaves out."""

    id: str
    """Of the sample, where it has one; else of the annotation or file."""
    reason: str
    """A few words, the same for all of a kind: "missing image", "duplicated id", ..."""
    detail: str
    """The whole sentence: which file and row, and what to do."""


class BadRow(SampleError):
    """An annotation that cannot be used; ``reason`` is the kind of fault in a few words."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


class Dataset(Sequence):
    """Samples by number, made at each access.

    ``dataset[i]`` is a :class:`~t4s_helpers.data.sample.Sample` and ``dataset[a:b]`` again a data
    set. The order is that of the files. Instances can be sent to other processes.

    Attributes
    ----------
    name, split, task:
        As in :func:`t4s_helpers.data.load`.
    classes:
        The class list of a semantic data set (``classes[k-1]`` is value ``k`` of a class map), else
        an empty tuple.
    background, ignore_index:
        Of a semantic data set: what value 0 of its class maps means to `metrics.MeanIoU`, and the
        value of pixels that are never scored; else None.
    excluded:
        What is left out, as :class:`Excluded`; ``len(dataset)`` does not count it.
    """

    background: str | None = None
    ignore_index: int | None = None

    def __init__(self, name: str, split: str, task: str, classes: tuple[str, ...] = (),
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
            return Subset(self, np.arange(len(self))[index])
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
        """The samples of these numbers, in this order, as a data set."""
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


class Guard:
    """Collects what cannot be used, or refuses it: one for each data set that is opened."""

    def __init__(self, bad: str = "refuse"):
        if bad not in BAD:
            raise SampleError(f"bad={bad!r} is not known; choose one of {', '.join(BAD)}.")
        self.bad, self.excluded = bad, []

    def report(self, name: str, error: SampleError, always_exclude: bool = False) -> None:
        """Note that ``name`` is left out because of ``error``, or raise it."""
        if self.bad == "refuse" and not always_exclude:
            raise error
        reason = getattr(error, "reason", "unusable annotation")
        self.excluded.append(Excluded(name, reason, str(error)))


def check_count(found: int, published: int | Sequence[int] | None, what: str,
                counts: str = "strict") -> None:
    """Compare the number of samples in a file with the published one.

    Raises
    ------
    SampleError
        When they differ and ``counts`` is ``"strict"``.
    """
    if counts not in COUNTS:
        raise SampleError(f"counts={counts!r} is not known; choose one of {', '.join(COUNTS)}.")
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
    warnings.warn(message, stacklevel=3)
