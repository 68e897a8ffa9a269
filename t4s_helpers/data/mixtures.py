"""What a model is trained on: mixtures of conversations, worded when they are asked for.

A mixture has a length, ``turns(i)`` (the exchanges of conversation ``i``) and ``image(i)`` (its
picture); `t4s_helpers.model.training.training_data` encodes it for a backbone. Nothing is written out
beforehand. Which samples stand where, and how each is worded, depends on the seed alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..codec.encodings import Encoding, get_encoding
from .beyond import requests
from .dataset import choose
from .prompts import Turn, ask_and_answer
from .registry import ENTRIES, load
from .sample import BEYOND_TASKS, CLASS_TASKS, Sample, SampleError, read_image
from .scenes import CATEGORIES, SPLITS, Scene, make_scene

MIXES = {
    "res": {"res": 1.0},
    "gres": {"res": 0.4, "gres": 0.6},
    "all": {"res": 0.35, "gres": 0.4, "semantic": 0.1, "vqa": 0.15},
    **{task: {"res": 0.3, "gres": 0.3, task: 0.4} for task in ("instances", *BEYOND_TASKS)},
    "beyond": {"res": 0.1, "gres": 0.15, "instances": 0.15, "ores": 0.25, "multi": 0.15, "correction": 0.2},
}
"""Share of each task among the requests drawn about a scene; a correction is one of several turns."""


@dataclass(frozen=True)
class SceneMixture:
    """Conversations about drawn scenes, a mix of tasks; several requests about one picture.

    Attributes:
        n: conversations; number ``i`` is about scene ``i`` of ``split``.
        mix: a key of `MIXES`.
        n_requests: most requests in a conversation, no two with the same mask for an answer.
        seed: changes only what is asked about the scenes.
        encoding, style: of the answers, see `t4s_helpers.data.prompts.ask_and_answer`.

    Raises:
        ValueError: an unknown mix.
    """

    n: int
    mix: str = "all"
    n_requests: int = 4
    split: str = "train"
    seed: int = 0
    encoding: Encoding = field(default_factory=get_encoding)
    style: str = "plain"

    def __post_init__(self) -> None:
        choose("mix", self.mix, tuple(MIXES))

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
        turns, seen, shares = [], set(), MIXES[self.mix]
        for _ in range(2 * self.n_requests):
            task = str(rng.choice(list(shares), p=list(shares.values())))
            samples = requests(rng, scene, task)[:self.n_requests - len(turns)]
            targets = {sample.question or np.packbits(sample.masks.any(0)).tobytes() for sample in samples}
            if targets & seen:  # else the answer could be copied instead of read off the picture
                continue
            seen |= targets
            n_absent = int(rng.integers(1, 5)) if task in CLASS_TASKS else 0
            absent = _absent(CATEGORIES, samples[0], n_absent, rng)
            turns += [ask_and_answer(sample, self.encoding, self.style, rng, distractors=absent)
                      for sample in samples]
            if len(turns) == self.n_requests:
                break
        return scene, turns


def _absent(classes: Sequence[str], sample: Sample, n: int | None, rng: np.random.Generator) -> list[str]:
    """``n`` class names (None: all) that a sample does not show, for a request to list."""
    names = [name for name in classes if name not in sample.labels]
    if n is None or n >= len(names):
        return names
    return [names[k] for k in rng.choice(len(names), n, replace=False)]


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
    """Data sets gone through together; `named_mixture` takes them by name.

    Args:
        datasets: of samples or of conversations; each is gone through as often as its weight says.
        n: conversations in an epoch; by default the sum of the data sets' lengths times their weights.
        weights: passes over each data set in an epoch, by default 1 (the paper goes twice over the RES
            sets). Where ``n`` is given, only their ratio matters.
        seed: decides the order and the wording of each.
        distractors: for data sets of classes, how many names of absent classes a conditioned request
            lists beside the present ones; None for the whole class list.
        encoding, style: of the answers.
        epochs: one after the other, each in another order and with other wordings.

    A sample with ``task="vqa"`` needs an answer; a data set without public answers is refused.
    """

    def __init__(self, datasets: Sequence, n: int | None = None, weights: Sequence[float] | None = None,
                 seed: int = 0, distractors: int | None = None, encoding: Encoding | None = None,
                 style: str = "plain", epochs: int = 1):
        self.datasets, self.seed, self.distractors = list(datasets), seed, distractors
        self.encoding, self.style = encoding or get_encoding(), style
        lengths = [len(data) for data in self.datasets]
        plans = [mix_plan(lengths, n, weights, 1_000_003 * seed + epoch) for epoch in range(epochs)]
        self.plan = tuple(map(np.concatenate, zip(*plans)))

    def __len__(self) -> int:
        return len(self.plan[0])

    def source(self, index: int) -> Sample | Conversation:
        """The sample or conversation behind number ``index``."""
        k, i = (int(part[index]) for part in self.plan)
        return self.datasets[k][i]

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
        classes = getattr(self.datasets[int(self.plan[0][index])], "classes", ())
        absent = _absent(classes, source, self.distractors, rng)
        return [ask_and_answer(source, self.encoding, self.style, rng, distractors=absent)]


def named_mixture(passes: Mapping[str, float], root: str | Path | None = None, *, crops: bool = False,
                  reading: Mapping[str, Any] | None = None, **options: Any) -> DataMixture:
    """Training data by name.

    Args:
        passes: data set -> how often an epoch goes through it; the names are those of
            `t4s_helpers.data.load`, their first split is read (the one for training).
        root: see `t4s_helpers.data.load`.
        crops: of semantic data sets, each pass cuts every photo to another random part.
        reading: more options of `t4s_helpers.data.load`, such as ``bad``.
        options: for `DataMixture`.

    Raises:
        SampleError: an unknown name, or whatever opening a data set finds.
    """
    datasets, weights = [], list(passes.values())
    for k, (name, times) in enumerate(passes.items()):
        split = next(iter(ENTRIES[name].splits)) if name in ENTRIES else "train"
        data = load(name, split, root, **reading or {})
        if crops and getattr(data, "task", "") == "semantic":
            data, weights[k] = RandomCrops(data, round(times)), 1
        datasets.append(data)
    return DataMixture(datasets, weights=weights, **options)


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


class RandomCrops:
    """Samples of a semantic data set, each cut to a random part (paper, appendix B).

    Labels that the part does not show go; if it shows none, the sample stays whole. ``times`` goes
    over the data set so often, with other parts (the paper: 10). Its sides are half to all of the
    image's, and depend on the index alone.
    """

    def __init__(self, whole, times: int = 1):
        self.whole, self.times, self.classes = whole, times, whole.classes

    def __len__(self) -> int:
        return self.times * len(self.whole)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"Sample {index} of {len(self)}")
        sample = self.whole[index % len(self.whole)]
        rng = np.random.default_rng([0, index, 59])
        height, width = (max(1, round(n * rng.uniform(0.5, 1.0))) for n in sample.size)
        y, x = (int(rng.integers(0, n - side + 1)) for n, side in zip(sample.size, (height, width)))
        part = np.s_[y:y + height, x:x + width]
        masks = sample.masks[:, *part]
        shown = masks.any((1, 2))
        if not shown.any():
            return sample
        image = sample.image[part] if isinstance(sample.image, np.ndarray) else sample.image
        labels = tuple(label for label, seen in zip(sample.labels, shown) if seen)
        return Sample(f"{sample.id}/crop{index}", image, labels, masks[shown], sample.task, sample.split,
                      meta={"part": (y, x, y + height, x + width)})
