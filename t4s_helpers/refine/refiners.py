"""The protocol of refiners: coarse masks and the image in, sharp masks at the image's size out.

The paper's refiner is in `t4s_helpers.refine.sam`. ``none`` is one too, so nobody has to ask for one.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from ..codec.grid import mask_iou
from .prompts import PAPER_PROMPTS, Prompts, RefineError

REFINERS: dict[str, type[Refiner]] = {}
"""Name -> class, filled by the subclasses of `Refiner`; SAM's names join at the first need of one."""

MIN_IOU = 0.3
"""A refined mask that overlaps the coarse one less than this is not trusted.

A good refinement of a small object leaves much of the coarse mask behind. On 91 COCO objects with oracle
16 x 16 grids, 0.6 rejected 16 masks, 12 of them better than the coarse one; 0.3 rejected 3, 1 better.
"""


@dataclass(frozen=True, eq=False)
class Refined:
    """Refined masks of one image, in the order of the coarse ones.

    Attributes:
        masks: bool ``(L, H, W)``, the image's size.
        scores: float32 ``(L,)``, the IoU that the refiner expects of its own mask; NaN for none.
        agreement: float32 ``(L,)``, IoU of the refiner's mask with the coarse one; NaN where that is empty.
        fallback: bool ``(L,)``, where the refiner's mask was rejected and the coarse one kept.
        ms: milliseconds of ``image`` (SAM's embedding, counted once), ``prompts``, ``decoder``, ``masks``.
    """

    masks: np.ndarray
    scores: np.ndarray
    agreement: np.ndarray
    fallback: np.ndarray
    ms: dict[str, float] = field(default_factory=dict)

    @property
    def merge_scores(self) -> np.ndarray:
        """float32 ``(L,)`` for `merge_masks`: ``scores``, and 0 where a coarse mask took the place."""
        return np.where(self.fallback, np.float32(0), self.scores)


class Refiner:
    """What all refiners share: checks of what comes in, the agreement, the fallback to coarse masks.

    A new refiner is one subclass: `names` registers it for `load_refiner`, `redraw` does the work;
    `see` (once an image) and `load` may be overridden.

    >>> class Opposite(Refiner):
    ...     names = ("opposite",)
    ...     def redraw(self, masks, seed, prompts, confidence):
    ...         return ~masks, np.full(len(masks), 0.5)
    >>> refiner = REFINERS["opposite"]().set_image(np.zeros((1, 2, 3), np.uint8))
    >>> refiner.refine(np.array([[[True, False]]]), min_iou=0).masks.tolist()
    [[[False, True]]]
    >>> del REFINERS["opposite"]
    """

    names: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        REFINERS.update(dict.fromkeys(vars(cls).get("names", ()), cls))

    def __init__(self, name: str = "") -> None:
        self.name = name or self.names[0]
        self.prompts = PAPER_PROMPTS
        self._shape: tuple[int, int] | None = None
        self._ms: dict[str, float] = {}

    @classmethod
    def load(cls, name: str, device: str | None, precision: str) -> Refiner:
        """Make the refiner that `load_refiner` returns."""
        return cls(name)

    def see(self, pixels: np.ndarray) -> None:
        """Take note of an image, uint8 RGB ``(H, W, 3)``."""

    def redraw(
        self, masks: np.ndarray, seed: int, prompts: Prompts, confidence: list[np.ndarray] | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Masks bool ``(A, H, W)`` in place of coarse ones, and scores ``(A,)``, NaN for none.

        The arguments are those of `refine`, without empty masks; ``A`` may be 0.
        """
        raise NotImplementedError

    def with_prompts(self, prompts: Prompts) -> Refiner:
        """The same refiner, sharing model and embeddings, with other prompts by default."""
        other = copy.copy(self)
        other.prompts = prompts
        return other

    def set_image(self, pixels: np.ndarray) -> Refiner:
        """Choose the image whose masks `refine` gets next; returns the refiner itself.

        Args:
            pixels: uint8 RGB ``(H, W, 3)``. SAM keeps the embeddings of recent images, by content.

        Raises:
            RefineError: not uint8 RGB, or so thin that no pixel is left in SAM's frame.
        """
        with self._timed("image"):
            pixels = _checked_pixels(pixels)
            self.see(pixels)
        self._shape = pixels.shape[:2]
        return self

    def refine(
        self, masks: np.ndarray, seed: int = 0, prompts: Prompts | None = None,
        min_iou: float = MIN_IOU, confidence: Any = None,
    ) -> Refined:
        """Refine coarse masks of the image given to `set_image`.

        An empty mask stays empty. A result depends on the image, its mask and the options alone.

        Args:
            masks: bool ``(L, H, W)`` at the image's size; ``L`` may be 0.
            seed: of anything random, from 0.
            prompts: what SAM is told; by default `PAPER_PROMPTS`, or those of `with_prompts`.
            min_iou: in [0, 1]. Where the refined mask overlaps the coarse one less than this (IoU),
                the coarse mask is kept and ``fallback`` is set. 0 accepts every mask.
            confidence: for ``mask="soft"`` alone: L grids ``(rows, cols)`` of probabilities in [0, 1]
                of each label in each cell, laid over the image as the label grid is.

        Raises:
            RefineError: no image was set, masks do not fit it, or an option is out of range.
        """
        prompts = prompts or self.prompts
        coarse = _checked_masks(masks, self._shape)
        if not isinstance(seed, (int, np.integer)) or seed < 0:
            raise RefineError(f"seed must be a whole number from 0, got {seed!r}.")
        if not 0 <= min_iou <= 1:
            raise RefineError(f"min_iou must lie in [0, 1], got {min_iou!r}.")
        grids = _checked_confidence(confidence, len(coarse)) if prompts.mask == "soft" else None
        asked = np.flatnonzero(coarse.any(axis=(1, 2)))
        refined = coarse.copy()
        scores, agreement = np.full((2, len(coarse)), np.nan, np.float32)
        grids = grids and [grids[k] for k in asked]
        found, scores[asked] = self.redraw(coarse[asked], seed, prompts, grids)
        with self._timed("masks"):
            agreement[asked] = [mask_iou(f, c) for f, c in zip(found, coarse[asked], strict=True)]
            fallback = agreement < min_iou  # False where NaN
            trusted = ~fallback[asked]
            refined[asked[trusted]] = found[trusted]
        ms, self._ms = {"image": 0.0, **self._ms}, {}
        return Refined(refined, scores, agreement, fallback, ms)

    def refine_masks(self, pixels: np.ndarray, masks: np.ndarray, **options: Any) -> np.ndarray:
        """`set_image` and `refine` in one, the masks alone: bool ``(L, H, W)``."""
        return self.set_image(pixels).refine(masks, **options).masks

    @contextlib.contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._ms[stage] = (time.perf_counter() - start) * 1e3


class NoRefiner(Refiner):
    """``none``: the coarse masks as they are, without scores."""

    names = ("none",)

    def redraw(self, masks: np.ndarray, *_: Any) -> tuple[np.ndarray, np.ndarray]:
        """The masks themselves; see `Refiner.redraw`."""
        return masks, np.full(len(masks), np.nan)


def merge_masks(masks: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """One label map from masks that may overlap: the better score wins a pixel, whatever the order.

    Args:
        masks: bool ``(L, H, W)``, else `RefineError`; for example `Refined.masks`.
        scores: float ``(L,)``, for example `Refined.merge_scores`. NaN loses against every number. Of
            equal scores the smaller mask wins, of equally large masks the first.

    Returns:
        int32 ``(H, W)``: 0 is others, ``k`` is label ``k - 1``, as in a label grid.

    >>> masks = np.array([[[True, True, False]], [[False, True, True]]])
    >>> merge_masks(masks, [0.9, 0.7]).tolist(), merge_masks(masks, [0.7, 0.9]).tolist()
    ([[1, 1, 2]], [[1, 2, 2]])
    """
    masks, scores = np.asarray(masks), np.asarray(scores, float)
    if masks.ndim != 3 or masks.dtype != bool or scores.shape != masks.shape[:1]:
        raise RefineError(f"merge_masks needs bool masks (L, H, W) and L scores, got {masks.dtype} "
                          f"{masks.shape} and {scores.shape}.")
    known, area = np.where(np.isnan(scores), -np.inf, scores), masks.sum(axis=(1, 2))
    merged = np.zeros(masks.shape[1:], np.int32)
    # Painted from the worst to the best, so that the best stays.
    for k in np.lexsort((-np.arange(len(masks)), -area, known)):
        merged[masks[k]] = k + 1
    return merged


def _checked_pixels(pixels: Any) -> np.ndarray:
    pixels = np.asarray(pixels)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or not pixels.size:
        raise RefineError(
            f"An image to refine on must be uint8 RGB (H, W, 3), got {pixels.dtype} {pixels.shape}: repeat a "
            "grey channel three times, drop alpha with pixels[..., :3], or read the file with read_image.")
    return pixels


def _checked_masks(masks: Any, image: tuple[int, int] | None) -> np.ndarray:
    if image is None:
        raise RefineError("There is no image yet; call set_image(pixels) first.")
    masks = np.asarray(masks)
    if masks.dtype != bool or masks.ndim != 3:
        raise RefineError(f"Coarse masks must be bool (L, H, W), got {masks.dtype} {masks.shape}; "
                          "one mask is masks[None], and m > 0 makes numbers bool.")
    if masks.shape[1:] != image:
        (height, width), (rows, columns) = image, masks.shape[1:]
        raise RefineError(f"Coarse masks are {columns} x {rows} pixels but the image is {width} x {height}; "
                          "use grid_to_masks with the image's size.")
    return masks


def _checked_confidence(confidence: Any, n: int) -> list[np.ndarray]:
    told = "A soft mask prompt needs confidence=, a grid (rows, cols) of probabilities for each mask"
    grids = [np.asarray(grid, float) for grid in (() if confidence is None else confidence)]
    if len(grids) != n:
        raise RefineError(f"{told}; there are {n} masks and {len(grids)} grids (mask='hard' needs none).")
    for k, grid in enumerate(grids):
        if grid.ndim != 2 or not grid.size or not ((grid >= 0) & (grid <= 1)).all():  # False for NaN
            raise RefineError(f"{told}; grid {k} has the shape {grid.shape} or values outside [0, 1].")
    return grids
