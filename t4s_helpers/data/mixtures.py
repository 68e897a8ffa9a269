"""What a model is trained on: mixtures of conversations, worded when they are asked for.

A mixture has a length, ``turns(i)`` (the exchanges of conversation ``i``) and ``image(i)`` (its
picture); `t4s_helpers.model.training.training_data` encodes it for a backbone. Nothing is written out
beforehand. Which samples stand where, and how each is worded, depends on the seed alone, not on the
process, the order of access or what was read before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..codec.encodings import Encoding, get_encoding
from .dataset import choose
from .expressions import request
from .prompts import Turn, ask_and_answer
from .registry import find, load
from .sample import MaskSource, Sample, SampleError, is_source, read_image
from .scenes import CATEGORIES, SPLITS, Scene, make_scene

MIXES = {
    "res": {"res": 1.0},
    "gres": {"res": 0.4, "gres": 0.6},
    "all": {"res": 0.35, "gres": 0.4, "semantic": 0.1, "vqa": 0.15},
}
"""Share of each task among the requests about a scene."""

PAPER_MIXES = {
    "res": {"refclef": 2, "refcoco": 2, "refcoco+": 2, "refcocog": 2},
    "gres": {"grefcoco": 1},
    "open": {"cocostuff": 10},
}
"""Passes over the data sets in one epoch of the paper's trainings (section 4.1, appendix B): referring
expressions (800k samples), the generalised ones that continue from it, and open vocabulary, where each
pass cuts every photo to another random part."""


@dataclass(frozen=True)
class SceneMixture:
    """Conversations about drawn scenes, a mix of tasks; several requests about one picture.

    Attributes:
        n: conversations; number ``i`` is about scene ``i`` of ``split``.
        mix: a key of `MIXES`.
        n_requests: most requests in a conversation, no two with the same mask for an answer.
        seed: changes only what is asked about the scenes.
        encoding, rule, style: of the answers, see `t4s_helpers.data.prompts.ask_and_answer`.

    Raises:
        ValueError: an unknown mix.
    """

    n: int
    mix: str = "all"
    n_requests: int = 4
    split: str = "train"
    seed: int = 0
    encoding: Encoding = field(default_factory=get_encoding)
    rule: str = "area"
    style: str = "plain"

    def __post_init__(self) -> None:
        if self.mix not in MIXES:
            raise ValueError(f"Unknown mix {self.mix!r}: choose one of {', '.join(MIXES)}.")

    def __len__(self) -> int:
        return self.n

    def image(self, index: int) -> np.ndarray:
        """uint8 ``(128, 128, 3)``"""
        return make_scene(self.split, index).image

    def turns(self, index: int) -> list[Turn]:
        """The exchanges of conversation ``index``."""
        return self.conversation(index)[1]

    def conversation(self, index: int) -> tuple[Scene, list[Turn]]:
        """Scene and exchanges of conversation ``index``."""
        rng = np.random.default_rng([SPLITS[self.split], index, self.seed, 31])
        scene = make_scene(self.split, index)
        return scene, self._about(rng, scene)

    def _about(self, rng: np.random.Generator, scene: Scene) -> list[Turn]:
        turns, seen, tasks = [], set(), MIXES[self.mix]
        for _ in range(2 * self.n_requests):
            task = str(rng.choice(list(tasks), p=list(tasks.values())))
            sample = request(rng, scene, task)
            target = np.packbits(sample.masks.any(0)).tobytes() if len(sample.masks) else sample.question
            if target in seen:  # else the answer could be copied instead of read off the picture
                continue
            seen.add(target)
            absent = _absent_classes(rng, sample.labels) if task == "semantic" else ()
            turns.append(ask_and_answer(sample, self.encoding, self.rule, self.style, rng,
                                        distractors=absent))
            if len(turns) == self.n_requests:
                break
        return turns


def _absent_classes(rng: np.random.Generator, present: Sequence[str]) -> list[str]:
    """One to four class names that a conditioned request lists although they do not occur."""
    others = [name for name in CATEGORIES if name not in present]
    return [str(name) for name in rng.choice(others, int(rng.integers(1, 5)), replace=False)]


@dataclass(frozen=True)
class SampleMixture:
    """One request each about any samples; every pass over the samples words the requests anew.

    Attributes:
        samples: `t4s_helpers.data.sample.Sample` objects, read from disk when their turn comes.
        n: conversations; number ``i`` asks about sample ``i`` modulo their number.
        seed: of wordings and modes.
        encoding, rule, style: of the answers.

    Raises:
        SampleError: there are no samples.
    """

    samples: Sequence[Sample]
    n: int
    seed: int = 0
    encoding: Encoding = field(default_factory=get_encoding)
    rule: str = "area"
    style: str = "plain"

    def __post_init__(self) -> None:
        if not len(self.samples):
            raise SampleError("There are no samples to train on.")

    def __len__(self) -> int:
        return self.n

    def image(self, index: int) -> np.ndarray:
        """uint8 ``(H, W, 3)``"""
        return self.samples[index % len(self.samples)].pixels()

    def turns(self, index: int) -> list[Turn]:
        """The exchange of conversation ``index``; its picture is not read."""
        rng = np.random.default_rng([self.seed, index, 41])
        sample = self.samples[index % len(self.samples)]
        return [ask_and_answer(sample, self.encoding, self.rule, self.style, rng)]


@dataclass(frozen=True)
class Conversation:
    """Questions and answers about one picture, or about none; ``turns`` are pairs of texts."""

    id: str
    image: Path | None
    turns: tuple[tuple[str, str], ...]
    meta: dict[str, Any] = field(default_factory=dict)

    def pixels(self) -> np.ndarray | None:
        """uint8 RGB ``(H, W, 3)``, read anew at each call; None without a picture."""
        return None if self.image is None else read_image(self.image)


class DataMixture:
    """Data sets gone through together; `paper_mixture` has the paper's by name.

    Args:
        datasets: of samples or of conversations; each is gone through as often as its weight says.
        n: conversations; by default the sum of the data sets' lengths times their weights.
        weights: passes over each data set, by default 1 (the paper goes twice over the RES sets). Where
            ``n`` is given, only their ratio matters.
        seed: decides the order and the wording of each.
        distractors: for semantic data sets, how many names of absent classes a conditioned request
            lists beside the present ones; None for the whole class list.
        encoding, rule, style: of the answers.

    A sample with ``task="vqa"`` needs an answer; a data set without public answers is refused.
    """

    def __init__(self, datasets: Sequence, n: int | None = None, weights: Sequence[float] | None = None,
                 seed: int = 0, distractors: int | None = None, encoding: Encoding | None = None,
                 rule: str = "area", style: str = "plain"):
        self.datasets, self.seed, self.distractors = list(datasets), seed, distractors
        self.layout = (encoding or get_encoding(), rule, style)
        self.plan = mix_plan([len(data) for data in self.datasets], n, weights, seed)

    def __len__(self) -> int:
        return len(self.plan[0])

    def source(self, index: int) -> Sample | Conversation:
        """The sample or conversation behind number ``index``."""
        return self.datasets[int(self.plan[0][index])][int(self.plan[1][index])]

    def image(self, index: int) -> np.ndarray | None:
        """uint8 ``(H, W, 3)``; None for a conversation without a picture."""
        return self.source(index).pixels()

    def turns(self, index: int) -> list[Turn]:
        """The exchanges of conversation ``index``; its picture is not read."""
        source = self.source(index)
        if isinstance(source, Conversation):
            return [Turn(asked, (answered,)) for asked, answered in source.turns]
        if source.task == "vqa" and source.answer is None:
            raise SampleError(f"{source!r} has no answer to train on; its split keeps them secret.")
        rng = np.random.default_rng([self.seed, index, 43])
        absent = self._absent(source, self.datasets[int(self.plan[0][index])], rng)
        return [ask_and_answer(source, *self.layout, rng, distractors=absent)]

    def _absent(self, sample: Sample, data, rng: np.random.Generator) -> list[str]:
        absent = [name for name in getattr(data, "classes", ()) if name not in sample.labels]
        if self.distractors is None or self.distractors >= len(absent):
            return absent
        return [absent[k] for k in rng.choice(len(absent), self.distractors, replace=False)]


def paper_mixture(name: str, root: str | Path | None = None, counts: str = "strict",
                  **options: Any) -> DataMixture:
    """A training mixture of the paper by name.

    Args:
        name: a key of `PAPER_MIXES`.
        root, counts: see `t4s_helpers.data.load`; by default each data set's place below ``T4S_DATA``.
        options: for `DataMixture`.

    Raises:
        SampleError: an unknown name, or whatever opening a data set finds.
    """
    choose("name", name, tuple(PAPER_MIXES))
    passes = PAPER_MIXES[name]
    datasets = [load(one, next(iter(find(one).splits)), root, counts=counts) for one in passes]
    if name == "open":
        return DataMixture([RandomCrops(data, times) for data, times in zip(datasets, passes.values())],
                           **options)
    return DataMixture(datasets, weights=list(passes.values()), **options)


def mix_plan(lengths: Sequence[int], n: int | None = None, weights: Sequence[float] | None = None,
             seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Which sample of which data set stands where in a training mix.

    Every data set is shuffled and gone through completely before any of its samples comes again.

    Returns:
        uint8 and int32 ``(n,)``: the data set and the sample in it; five bytes an item.

    Raises:
        SampleError: no data set, an empty one with a weight, or weights that do not fit.

    >>> source, index = mix_plan([3, 2], weights=[1, 2])
    >>> np.bincount(source).tolist(), sorted(index[source == 1].tolist())
    ([3, 4], [0, 0, 1, 1])
    """
    weights = [1.0] * len(lengths) if weights is None else list(weights)
    if not lengths or len(weights) != len(lengths) or min(weights) < 0 or sum(weights) == 0:
        raise SampleError(f"A mix of {len(lengths)} data sets with the weights {weights}: give at "
                          "least one data set, and one weight of 0 or more for each.")
    if any(w and not length for w, length in zip(weights, lengths)):
        raise SampleError("A data set of the mix is empty: there are no samples to train on.")
    shares = np.array([w * length for w, length in zip(weights, lengths)], float)
    total = round(shares.sum()) if n is None else n
    ends = np.round(np.cumsum(shares) * total / shares.sum()).astype(np.int64)
    counts = np.diff(ends, prepend=0)
    source = np.repeat(np.arange(len(lengths), dtype=np.uint8), counts)
    index = np.concatenate([_passes(length, int(count), [seed, k, 47])
                            for k, (length, count) in enumerate(zip(lengths, counts))])
    order = np.random.default_rng([seed, 53]).permutation(total)
    return source[order], index[order]


def _passes(length: int, count: int, seed: list[int]) -> np.ndarray:
    """``count`` numbers below ``length``, int32: one shuffled pass after the other."""
    rng = np.random.default_rng(seed)
    whole = [rng.permutation(length).astype(np.int32) for _ in range(-(-count // max(1, length)))]
    return np.concatenate([np.zeros(0, np.int32), *whole])[:count]


@dataclass(frozen=True)
class CroppedMasks:
    """A part of other masks (a ``MaskSource``): ``keep`` of its labels, within ``box``."""

    source: MaskSource
    keep: tuple[int, ...]
    box: tuple[int, int, int, int]
    """``(y0, x0, y1, x1)`` in pixels, ends exclusive."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(L, H, W)``"""
        y0, x0, y1, x1 = self.box
        return len(self.keep), y1 - y0, x1 - x0

    def decode(self) -> np.ndarray:
        """bool ``(L, H, W)``"""
        y0, x0, y1, x1 = self.box
        return self.source.decode()[list(self.keep), y0:y1, x0:x1]


class RandomCrops:
    """Samples of a semantic data set, each cut to a random part (paper, appendix B).

    Labels that the part does not show go; if it shows none, the sample stays whole. ``times`` goes
    over the data set so often, with other parts (the paper: 10). The part depends on seed and index
    alone. ``share``: least and greatest length of the part's sides, as a share of the image's.
    """

    def __init__(self, whole, times: int = 1, seed: int = 0, share: tuple[float, float] = (0.5, 1.0)):
        self.whole, self.times, self.seed, self.share = whole, times, seed, share
        self.classes = whole.classes

    def __len__(self) -> int:
        return self.times * len(self.whole)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"Sample {index} of {len(self)}")
        sample = self.whole[index % len(self.whole)]
        masks = sample.masks
        box = self._box(index, sample.size)
        y0, x0, y1, x1 = box
        keep = tuple(np.flatnonzero(masks[:, y0:y1, x0:x1].any((1, 2))).tolist())
        if not keep:
            return sample
        given = {"id": f"{sample.id}/crop{index}", "labels": tuple(sample.labels[k] for k in keep),
                 "task": sample.task, "split": sample.split, "meta": {"box": box}}
        if isinstance(sample.image, np.ndarray):
            return Sample(image=sample.image[y0:y1, x0:x1], masks=masks[list(keep), y0:y1, x0:x1],
                          **given)
        source = sample.mask_source
        cropped = (CroppedMasks(source, keep, box) if is_source(source)
                   else masks[list(keep), y0:y1, x0:x1])
        return CroppedSample(image=sample.image, masks=cropped, **given)

    def _box(self, index: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
        rng = np.random.default_rng([self.seed, index, 59])
        sides = [max(1, round(n * rng.uniform(*self.share))) for n in size]
        y, x = (int(rng.integers(0, n - side + 1)) for n, side in zip(size, sides))
        return y, x, y + sides[0], x + sides[1]


class CroppedSample(Sample):
    """A sample whose picture is the part ``meta["box"]`` of its file."""

    def pixels(self) -> np.ndarray:
        """uint8 RGB ``(H, W, 3)`` of the part, read anew at each call."""
        y0, x0, y1, x1 = self.meta["box"]
        part = read_image(self.image)[y0:y1, x0:x1]
        self._check_pixels(part, f"the part {self.meta['box']} of {self.image}")
        return part
