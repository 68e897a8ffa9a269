"""Coarse mask -> SAM prompts -> refined mask.

The procedure of the paper (appendix A.1): the inverse sigmoid of the coarse mask as a mask prompt,
10 positive and 10 negative points drawn from it, and three predictor calls in all, each handed the
low-resolution logits of the one before. The result has the image's size.

Two things differ from the usual code for it. SAM sees an image scaled so that its longest side
fills a square frame, the rest of the frame is padding; the mask prompt is laid into that same
frame and not stretched over it. Points come from a generator seeded for each mask, so that a
result depends on the image, the mask and the seed alone, not on what was refined before.

What SAM is told is a :class:`Prompts`. :data:`PAPER` is the paper's procedure, :data:`BEST` the one
that did best on the bundled photos (notebook ``06_sam_refinement`` compares them).

Frames: an image is ``(H, W)``, row 0 at the top. SAM's input frame has 1024 x 1024 pixels, its
mask frame 256 x 256 cells over the same square. Boxes are half-open ``(x0, y0, x1, y1)``.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from t4s_helpers.codec.grid import mask_to_box
from t4s_helpers.evaluation.metrics import mask_iou

if TYPE_CHECKING:
    import torch
    from segment_anything.modeling import Sam

REFINERS = ("mobile_sam", "sam_vit_b", "sam_vit_l", "sam_vit_h", "none")
"""Names that :func:`load_refiner` knows; ``none`` hands the coarse mask through."""

MIN_IOU = 0.3
"""A refined mask that overlaps the coarse one less than this is not trusted.

A small object fills its one or two cells badly, so that a good refinement of it leaves much of
the coarse mask. Counted on 91 COCO objects with oracle 16 x 16 grids: a threshold of 0.6 threw 16
masks away, 12 of them better than the coarse one; 0.3 threw 3 away, 1 of them better.
"""

LOGIT_EPS = 1e-3
"""Coverage is kept this far from 0 and 1, so that its inverse sigmoid stays within +-6.9."""

PRECISIONS = ("float32", "bfloat16", "float16")
"""Of SAM's arithmetic; 16 bits are meant for CUDA."""

# Decoder rows worked on at once: on the CPU one at a time is fastest, on CUDA a batch is.
_BATCH = {"cpu": 1}
_BATCH_ELSEWHERE = 16

RING = (1 / 32, 1 / 16)
"""Where ring points lie: distances from the coarse mask in shares of the image's longer side, half
a cell to one cell of a 16 x 16 grid."""

# Spread, interior and ring points are looked for among at most this many pixels a side.
_POINT_CELLS = 128


class RefineError(ValueError):
    """Something that cannot be refined; the message says what to change."""


@dataclass(frozen=True)
class Prompts:
    """What SAM is told about a coarse mask. The defaults are the paper's.

    Parameters
    ----------
    points : "random", "spread", "interior", "ring" or "none"
        Of the coarse mask and of the rest of the image. ``random`` draws without repetition;
        ``spread`` takes points that lie as far from one another as can be; ``interior`` also keeps
        them away from the coarse mask's edge, which is a cell's edge and not the object's;
        ``ring`` has positive points as ``interior`` and negative ones in a ring near the mask.
    n_points : int
        At most this many positive and this many negative points; a mask with fewer pixels gives
        all it has, and a mask that fills the image gives no negative ones.
    box : bool
        The bounding box of the coarse mask.
    mask : "hard", "soft", "binary" or "none"
        For the first call. The inverse sigmoid: ``hard`` of the coarse mask, ``soft`` of the
        probabilities that came with it (``confidence`` of :meth:`Refiner.refine`). ``binary`` is
        the mask as it is, 1 and 0, which SAM does not read: a common mistake, to show its cost.
    strength : float
        Above 0; the mask's logits are multiplied by it. Below 1 SAM is told to trust them less.
    frame : "sam" or "stretched"
        How the mask prompt lies: in SAM's padded frame, or stretched over it, as a square grid
        is when its aspect is forgotten.
    calls : int
        Predictor calls in all, at least 1. Each after the first gets the logits of the one before.
    multimask : bool
        Let SAM propose three masks at each call; ``choose`` says which goes on.
    choose : "score" or "agreement"
        Of three masks: the one that SAM scores highest, or the one whose score times its IoU with
        the coarse mask is highest (in SAM's mask frame).

    Raises
    ------
    RefineError
        A value that is none of these, or no prompt at all.
    """

    points: str = "random"
    n_points: int = 10
    box: bool = False
    mask: str = "hard"
    strength: float = 1.0
    frame: str = "sam"
    calls: int = 3
    multimask: bool = False
    choose: str = "score"

    def __post_init__(self) -> None:
        for name, choices in (
            ("points", ("random", "spread", "interior", "ring", "none")),
            ("mask", ("hard", "soft", "binary", "none")),
            ("frame", ("sam", "stretched")),
            ("choose", ("score", "agreement")),
        ):
            value = getattr(self, name)
            if value not in choices:
                raise RefineError(
                    f"Prompts({name}={value!r}) is not known; choose one of {', '.join(choices)}."
                )
        for name in ("box", "multimask"):
            if not isinstance(getattr(self, name), bool):
                raise RefineError(f"Prompts({name}={getattr(self, name)!r}) must be True or False.")
        for name in ("n_points", "calls"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise RefineError(
                    f"Prompts({name}={value!r}) must be a whole number from 1."
                )
        if not 0 < self.strength < float("inf"):
            raise RefineError(f"Prompts(strength={self.strength!r}) must be a number above 0.")
        if self.points == "none" and self.mask == "none" and not self.box:
            raise RefineError("Prompts needs at least one of points, box and mask.")


PAPER = Prompts()
"""10 + 10 points and the mask's logits in SAM's frame, three calls."""

STRETCHED = Prompts(frame="stretched")
"""The same with the mask prompt stretched over SAM's frame, to show what that costs."""

BOX_ONLY = Prompts(points="none", box=True, mask="none", calls=1)
"""One call with the box of the coarse mask."""

BEST = Prompts(points="ring", box=True, strength=0.5)
"""Points deep inside and in a ring around, the box, and the mask's logits at half their strength.

Chosen among some thirty ways to ask by the cIoU on the bundled photos (53 targets, oracle 16 x 16
grids by both rules), and on nothing else."""


@dataclass(frozen=True, eq=False)
class RefineResult:
    """Refined masks of one image, in the order of the coarse ones."""

    masks: np.ndarray
    """bool ``(L, H, W)``, the image's size."""
    scores: np.ndarray
    """float32 ``(L,)``: the IoU that SAM expects of its own mask; NaN where it was not asked."""
    agreement: np.ndarray
    """float32 ``(L,)`` in [0, 1]: IoU of SAM's mask with the coarse one; NaN where not asked."""
    fallback: np.ndarray
    """bool ``(L,)``: SAM's mask left the coarse one behind, which was kept instead."""
    ms: dict[str, float] = field(default_factory=dict)
    """Milliseconds by stage: ``image`` (the embedding, counted by the first result after it),
    ``prompts``, ``decoder`` (all predictor calls) and ``masks``."""

    @property
    def merge_scores(self) -> np.ndarray:
        """float32 ``(L,)`` for :func:`merge_masks`: ``scores``, and 0 where the coarse mask was kept.

        SAM's score speaks of SAM's own mask, not of the coarse one that took its place.
        """
        return np.where(self.fallback, np.float32(0), self.scores)

    @property
    def n_fallback(self) -> int:
        """How many labels fell back to their coarse mask."""
        return int(np.count_nonzero(self.fallback))


class NoRefiner:
    """The refiner ``none``: the same methods as :class:`Refiner`, the coarse masks unchanged."""

    name = "none"

    def __init__(self) -> None:
        self._shape: tuple[int, int] | None = None

    def set_image(self, pixels: np.ndarray) -> NoRefiner:
        """Take uint8 RGB ``(H, W, 3)``; see :meth:`Refiner.set_image`."""
        self._shape = _checked_pixels(pixels).shape[:2]
        return self

    def asking(self, prompts: Prompts) -> NoRefiner:
        """Itself: there is nothing to ask."""
        return self

    def refine(self, masks: np.ndarray, seed: int = 0, **options: Any) -> RefineResult:
        """A copy of the coarse masks, without scores; a refiner's options change nothing."""
        coarse = _checked_masks(masks, self._shape)
        unasked = np.full(len(coarse), np.nan, np.float32)
        kept = np.zeros(len(coarse), bool)
        return RefineResult(coarse.copy(), unasked, unasked.copy(), kept)

    def refine_masks(self, pixels: np.ndarray, masks: np.ndarray, **options: Any) -> np.ndarray:
        """bool ``(L, H, W)``: a copy of the coarse masks."""
        return self.set_image(pixels).refine(masks, **options).masks


_NO_REFINER = NoRefiner()


@dataclass(frozen=True)
class _Embedding:
    features: torch.Tensor
    original_size: tuple[int, int]
    input_size: tuple[int, int]


class Refiner:
    """SAM as a mask refiner, on ``segment_anything.SamPredictor``.

    Parameters
    ----------
    sam : segment_anything.modeling.Sam
        In evaluation mode, on the device to use.
    name : str
        Shown in tables.
    cached_images : int
        How many image embeddings to keep (4 MB each at 1024 pixels).
    precision : str
        One of :data:`PRECISIONS`. 16 bits run under PyTorch's autocast; the weights stay as they
        are, logits and scores come back as float32.

    Raises
    ------
    RefineError
        An unknown precision, or float16 on the CPU.
    """

    def __init__(
        self, sam: Sam, name: str = "sam", cached_images: int = 8, precision: str = "float32"
    ) -> None:
        from segment_anything import SamPredictor

        _check_precision(precision, sam.device.type)
        self.name = name
        self.precision = precision
        self.prompts = PAPER
        self.predictor = SamPredictor(sam)
        self._embeddings: OrderedDict[bytes, _Embedding] = OrderedDict()
        self._cached_images = max(1, cached_images)
        self._image_ms = 0.0
        # Where the cells of the embedding lie: the same for every image and prompt.
        self._places: torch.Tensor | None = None

    @property
    def device(self) -> torch.device:
        """Where SAM runs."""
        return self.predictor.device

    def asking(self, prompts: Prompts) -> Refiner:
        """The same SAM with the same kept embeddings, asked in another way where none is named.

        >>> refiner = load_refiner().asking(BEST)  # doctest: +SKIP
        """
        other = copy.copy(self)
        other.prompts = prompts
        return other

    def forget_images(self) -> None:
        """Drop the kept embeddings, to time a fresh one or to free their memory."""
        self._embeddings.clear()

    def set_image(self, pixels: np.ndarray) -> Refiner:
        """Choose the image whose masks :meth:`refine` gets next.

        Parameters
        ----------
        pixels : uint8 array (H, W, 3)
            RGB, 0..255. An image with the same content as a recent one costs a few milliseconds:
            its embedding is kept.

        Returns
        -------
        The refiner itself, so that ``refiner.set_image(pixels).refine(masks)`` reads well.

        Raises
        ------
        RefineError
            Not uint8 RGB (a grey or an RGBA image, a float one), or no pixel to see once the
            longest side is scaled to SAM's frame.
        """
        start = time.perf_counter()
        pixels = _checked_pixels(pixels)
        key = _content(pixels)
        if key in self._embeddings:
            self._embeddings.move_to_end(key)
        else:
            self._check_aspect(pixels)
            self._embeddings[key] = self._embed(pixels)
            while len(self._embeddings) > self._cached_images:
                self._embeddings.popitem(last=False)
        self._select(self._embeddings[key])
        self._image_ms = _ms_since(start)
        return self

    def refine(
        self,
        masks: np.ndarray,
        seed: int = 0,
        prompts: Prompts | None = None,
        min_iou: float = MIN_IOU,
        confidence: Any = None,
    ) -> RefineResult:
        """Refine coarse masks of the image given to :meth:`set_image`.

        All masks share the image's one embedding and go through the decoder in batches. An empty
        coarse mask stays empty, SAM is not asked about it. Each mask's result depends on the
        image, that mask, its confidence, ``seed`` and the options alone.

        Parameters
        ----------
        masks : bool array (L, H, W)
            Coarse masks at the image's size; ``L`` may be 0.
        seed : int
            Of the points, from 0.
        prompts : Prompts
            What SAM is told; by default :data:`PAPER`, or what :meth:`asking` was given.
        min_iou : float
            In [0, 1]. Where SAM's mask overlaps the coarse one less than this (IoU), the coarse
            mask is kept and ``fallback`` is set. 0 takes every mask that SAM gives.
        confidence : float array (L, rows, cols), or a list of L such grids; only for ``mask="soft"``
            Probability in [0, 1] of each label in each cell of a grid that is laid over the image
            as the label grid is. Without it a ``soft`` prompt cannot be made.

        Raises
        ------
        RefineError
            No image was set; masks that are not bool, have no label axis or another size than
            the image; a negative seed; a threshold outside [0, 1]; for a ``soft`` prompt,
            probabilities that are missing, not one grid a mask, or outside [0, 1].
        """
        prompts = prompts or self.prompts
        image = self.predictor.original_size if self.predictor.is_image_set else None
        coarse = _checked_masks(masks, image)
        _check_options(seed, min_iou)
        asked = np.flatnonzero(coarse.any(axis=(1, 2)))
        soft = _checked_confidence(confidence, len(coarse)) if prompts.mask == "soft" else None
        found, scores, ms = self._ask(
            coarse[asked], seed, prompts, soft and [soft[k] for k in asked]
        )
        refined, start = coarse.copy(), time.perf_counter()
        agreement = np.full(len(coarse), np.nan, np.float32)
        agreement[asked] = [mask_iou(f, c) for f, c in zip(found, coarse[asked], strict=True)]
        fallback = agreement < min_iou  # False where NaN: not asked
        trusted = ~fallback[asked]
        refined[asked[trusted]] = found[trusted]
        all_scores = np.full(len(coarse), np.nan, np.float32)
        all_scores[asked] = scores
        ms = {"image": self._image_ms, **ms, "masks": _ms_since(start)}
        self._image_ms = 0.0
        return RefineResult(refined, all_scores, agreement, fallback, ms)

    def refine_masks(self, pixels: np.ndarray, masks: np.ndarray, **options: Any) -> np.ndarray:
        """:meth:`set_image` and :meth:`refine` in one, the masks alone: bool ``(L, H, W)``."""
        return self.set_image(pixels).refine(masks, **options).masks

    def _check_aspect(self, pixels: np.ndarray) -> None:
        height, width = pixels.shape[:2]
        if min(self._scaled(height, width)) < 1:
            raise RefineError(
                f"An image of {width} x {height} pixels is too thin for SAM: scaled to its frame, "
                "no row or column is left; crop it."
            )

    def _scaled(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of SAM's input frame that an image of this size fills."""
        transform = self.predictor.transform
        return transform.get_preprocess_shape(height, width, transform.target_length)

    def _embed(self, pixels: np.ndarray) -> _Embedding:
        predictor = self.predictor
        with self._autocast():
            predictor.set_image(pixels)
        if self.device.type == "cuda":
            import torch

            torch.cuda.synchronize(self.device)  # for honest milliseconds
        return _Embedding(
            predictor.features.float(), predictor.original_size, predictor.input_size
        )

    def _autocast(self) -> Any:
        if self.precision == "float32":
            return contextlib.nullcontext()
        import torch

        return torch.autocast(self.device.type, getattr(torch, self.precision))

    def _select(self, embedding: _Embedding) -> None:
        """Put an embedding where ``SamPredictor.set_torch_image`` puts a new one."""
        self.predictor.features = embedding.features
        self.predictor.original_size = embedding.original_size
        self.predictor.input_size = embedding.input_size
        self.predictor.is_image_set = True

    def _ask(
        self, coarse: np.ndarray, seed: int, prompts: Prompts, soft: list[np.ndarray] | None
    ) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
        """SAM's masks bool ``(A, H, W)`` and scores ``(A,)`` for non-empty coarse masks."""
        found = np.zeros(coarse.shape, bool)
        scores = np.zeros(len(coarse), np.float32)
        start = time.perf_counter()
        told = [
            self._prompt(mask, seed, prompts, soft and soft[k]) for k, mask in enumerate(coarse)
        ]
        ms = {"prompts": _ms_since(start)}
        start = time.perf_counter()
        for rows in _batches(told, _BATCH.get(self.device.type, _BATCH_ELSEWHERE)):
            found[rows], scores[rows] = self._predict([told[r] for r in rows], prompts)
        ms["decoder"] = _ms_since(start)
        return found, scores, ms

    def _prompt(
        self, mask: np.ndarray, seed: int, prompts: Prompts, soft: np.ndarray | None
    ) -> dict[str, np.ndarray]:
        """The prompts of one mask in SAM's frames, as arrays without a batch axis."""
        scaled = self._scaled(*mask.shape)
        scale = np.array([scaled[1] / mask.shape[1], scaled[0] / mask.shape[0]])
        encoder = self.predictor.model.prompt_encoder
        frame = encoder.mask_input_size, encoder.input_image_size
        told: dict[str, np.ndarray] = {}
        if prompts.points != "none":
            pixels, labels = POINTS[prompts.points](mask, prompts.n_points, seed)
            # The middle of a pixel; SAM itself adds the half that leads to the middle of its own.
            told["point_coords"] = (pixels + 0.5) * scale - 0.5
            told["point_labels"] = labels
        if prompts.box:
            told["boxes"] = np.array(mask_to_box(mask), float) * np.tile(scale, 2)
        if prompts.mask in ("hard", "binary"):
            logits = mask_logits(mask, *frame, prompts.frame)
            logits = (logits > 0).astype(np.float32) if prompts.mask == "binary" else logits
            told["mask_input"] = prompts.strength * logits[None]
        elif soft is not None:
            logits = mask_logits(soft, *frame, prompts.frame, mask.shape)
            told["mask_input"] = prompts.strength * logits[None]
        if prompts.multimask and prompts.choose == "agreement":
            told["coarse"] = mask_logits(mask, *frame) > 0
        return told

    def _predict(
        self, told: list[dict[str, np.ndarray]], prompts: Prompts
    ) -> tuple[np.ndarray, np.ndarray]:
        """Masks bool ``(B, H, W)`` and scores float32 ``(B,)`` of one batch."""
        import torch

        predictor, model = self.predictor, self.predictor.model
        batch = {key: self._batch(key, [t[key] for t in told]) for key in told[0]}
        points = (batch["point_coords"], batch["point_labels"]) if "point_coords" in batch else None
        logits = batch.get("mask_input")
        with torch.no_grad(), self._autocast():
            for _ in range(prompts.calls):
                low, iou = self._decode(points, batch.get("boxes"), logits, prompts.multimask)
                best = _choice(low, iou, batch.get("coarse"))
                rows = torch.arange(len(best), device=best.device)
                logits = low[rows, best][:, None]
            # At the image's size once, at the end: the calls between need the logits alone.
            masks = model.postprocess_masks(logits, predictor.input_size, predictor.original_size)
            masks = masks[:, 0] > model.mask_threshold
        return masks.cpu().numpy(), iou[rows, best].cpu().numpy()

    def _batch(self, key: str, rows: list[np.ndarray]) -> torch.Tensor:
        import torch

        dtypes = {"point_labels": torch.int, "coarse": torch.bool}
        stacked = torch.as_tensor(np.stack(rows), dtype=dtypes.get(key, torch.float))
        return stacked.to(self.device)

    def _decode(
        self, points: Any, boxes: Any, logits: Any, multimask: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Low-resolution logits float32 ``(B, M, 256, 256)`` and their scores ``(B, M)``."""
        model = self.predictor.model
        if self._places is None:
            self._places = model.prompt_encoder.get_dense_pe().detach()
        sparse, dense = model.prompt_encoder(points=points, boxes=boxes, masks=logits)
        low, iou = model.mask_decoder(
            image_embeddings=self.predictor.features,
            image_pe=self._places,
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask,
        )
        return low.float(), iou.float()


def _choice(
    low: torch.Tensor, scores: torch.Tensor, coarse: torch.Tensor | None
) -> torch.Tensor:
    """Index of the mask that goes on in each row, int64 ``(B,)``; see ``Prompts.choose``."""
    if coarse is not None:
        found, coarse = low > 0, coarse[:, None]
        both = (found & coarse).sum(dim=(2, 3))
        scores = scores * both / (found | coarse).sum(dim=(2, 3)).clamp(min=1)
    return scores.argmax(dim=1)


def merge_masks(masks: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """One label map from masks that may overlap: the better score wins a pixel, whatever the order.

    Parameters
    ----------
    masks : bool array (L, H, W)
        For example :attr:`RefineResult.masks`.
    scores : float array (L,)
        For example :attr:`RefineResult.merge_scores`. NaN loses against every number; of equal
        scores the smaller mask wins, of equally large ones the first.

    Returns
    -------
    int32 array (H, W): 0 is others, ``k`` is label ``k - 1``, as in a label grid.

    Raises
    ------
    RefineError
        Not bool ``(L, H, W)``, or not one score a mask.

    >>> masks = np.array([[[True, True, False]], [[False, True, True]]])
    >>> merge_masks(masks, [0.9, 0.7]).tolist(), merge_masks(masks, [0.7, 0.9]).tolist()
    ([[1, 1, 2]], [[1, 2, 2]])
    """
    masks, scores = np.asarray(masks), np.asarray(scores, float)
    if masks.ndim != 3 or masks.dtype != bool or scores.shape != masks.shape[:1]:
        raise RefineError(
            f"merge_masks wants bool masks (L, H, W) and L scores, got {masks.dtype} "
            f"{masks.shape} and {scores.shape}."
        )
    known = np.where(np.isnan(scores), -np.inf, scores)
    area = masks.sum(axis=(1, 2))
    merged = np.zeros(masks.shape[1:], np.int32)
    # Painted from the worst to the best, so that the best stays.
    for k in np.lexsort((-np.arange(len(masks)), -area, known)):
        merged[masks[k]] = k + 1
    return merged


def load_refiner(
    name: str = "mobile_sam", device: str | None = None, precision: str = "float32"
) -> Refiner | NoRefiner:
    """A refiner by name; the same object each time in one process.

    Parameters
    ----------
    name : str
        One of :data:`REFINERS`. A SAM model's checkpoint is fetched (:mod:`t4s_helpers.model.weights`)
        where it is not in the cache.
    device : str or None
        As PyTorch names it, for example ``"cuda"``; None takes CUDA where there is one, else the
        CPU.
    precision : str
        One of :data:`PRECISIONS`, see :class:`Refiner`.

    Raises
    ------
    RefineError
        Unknown name or precision, or float16 on the CPU.
    t4s_helpers.model.weights.WeightsError
        The checkpoint cannot be had.
    """
    if name not in REFINERS:
        raise RefineError(
            f"There is no refiner named {name!r}; choose one of {', '.join(REFINERS)}."
        )
    if name == "none":
        return _NO_REFINER
    import torch

    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    _check_precision(precision, torch.device(chosen).type)
    return _loaded(name, str(torch.device(chosen)), precision)


@functools.lru_cache(maxsize=None)
def _loaded(name: str, device: str, precision: str) -> Refiner:
    from t4s_helpers.model.weights import fetch

    return Refiner(_build(name, fetch(name)).to(device), name=name, precision=precision)


def _check_precision(precision: str, device: str) -> None:
    if precision not in PRECISIONS:
        raise RefineError(
            f"precision={precision!r} is not known; choose one of {', '.join(PRECISIONS)}."
        )
    if precision == "float16" and device == "cpu":
        raise RefineError(
            "precision='float16' wants a GPU; on the CPU choose 'float32' or 'bfloat16'."
        )


def _build(name: str, path: Any) -> Sam:
    if name == "mobile_sam":
        from t4s_helpers.refine.mobile_sam import build_mobile_sam

        return build_mobile_sam(path)
    import torch
    from segment_anything import sam_model_registry

    sam = sam_model_registry[name.removeprefix("sam_")]()
    sam.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return sam.eval()


def sample_points(mask: np.ndarray, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw positive points from a mask and negative points from the rest of the image.

    The generator is seeded by ``seed`` and the mask's content, so that neither the order of the
    labels nor the way that a data set is cut into pieces changes a point.

    Parameters
    ----------
    mask : bool array (H, W)
    n : int
        Points of each sign; where there are fewer pixels, all of them.
    seed : int
        From 0.

    Returns
    -------
    points : float64 array (P, 2)
        Pixel indices ``(x, y)``, ``P <= 2 n``, positive ones first, no pixel twice.
    labels : int64 array (P,)
        1 for positive, 0 for negative.

    >>> points, labels = sample_points(np.array([[True, False, False]]), n=2, seed=0)
    >>> points[0].tolist(), labels.tolist()
    ([0.0, 0.0], [1, 0, 0])
    """
    rng = np.random.default_rng([seed, int.from_bytes(_content(np.packbits(mask)), "little")])
    flat = mask.reshape(-1)
    inside, outside = np.flatnonzero(flat), np.flatnonzero(~flat)
    chosen = [rng.choice(part, min(n, len(part)), replace=False) for part in (inside, outside)]
    rows, columns = np.divmod(np.concatenate(chosen), mask.shape[1])
    labels = np.repeat([1, 0], [len(part) for part in chosen])
    return np.stack([columns, rows], axis=1).astype(float), labels


def spread_points(mask: np.ndarray, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points of a mask, and of the rest of the image, as far from one another as can be.

    The first lies deepest inside its side, each further one where the nearest point so far is
    farthest. Nothing is drawn: ``seed`` is there so that the ways to choose points are called
    alike. Form as in :func:`sample_points`; sides of more than 128 pixels are looked at in steps.

    >>> spread_points(np.ones((5, 5), bool), 3)[0].tolist()
    [[2.0, 2.0], [0.0, 0.0], [4.0, 0.0]]
    """
    return _greedy_points(mask, n, edge_counts=False)


def interior_points(mask: np.ndarray, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points deep inside a mask and far outside it, by the distance transform.

    Each lies where the smaller of two distances is largest: to the mask's edge (the picture's
    border is one for positive points only) and to the points so far. Otherwise as
    :func:`spread_points`.

    >>> square = np.zeros((5, 7), bool); square[1:4, 2:5] = True
    >>> interior_points(square, 1)[0].tolist()
    [[3.0, 2.0], [0.0, 0.0]]
    """
    return _greedy_points(mask, n, edge_counts=True)


def ring_points(mask: np.ndarray, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points deep inside a mask, and points that are spread over a ring around it.

    The ring lies where the distance from the mask is within :data:`RING`: beyond the coarse
    mask's uncertain edge, yet near enough to say where the object ends. Where a mask leaves no
    room for it, the rest of the image is taken. Otherwise as :func:`interior_points`.

    >>> square = np.zeros((64, 64), bool); square[20:40, 20:40] = True
    >>> points, labels = ring_points(square, 8)
    >>> x, y = points[labels == 0].T
    >>> away = np.hypot(np.maximum(abs(x - 29.5) - 9.5, 0), np.maximum(abs(y - 29.5) - 9.5, 0))
    >>> bool((away >= 64 * RING[0]).all() and (away <= 64 * RING[1]).all())
    True
    """
    return _greedy_points(mask, n, edge_counts=True, ring=RING)


POINTS = {"random": sample_points, "spread": spread_points, "interior": interior_points,
          "ring": ring_points}
"""How ``Prompts.points`` chooses: functions of a mask, a number of points and a seed."""


def _greedy_points(
    mask: np.ndarray, n: int, edge_counts: bool, ring: tuple[float, float] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    from scipy.ndimage import distance_transform_edt

    step = max(1, -(-max(mask.shape) // _POINT_CELLS))
    small = mask[step // 2 :: step, step // 2 :: step]
    # Thinned out, a small mask (or a small rest) may be gone; such a picture is taken whole.
    if small.any() != mask.any() or small.all() != mask.all():
        step, small = 1, mask
    inside = distance_transform_edt(np.pad(small, 1))[1:-1, 1:-1]
    outside = distance_transform_edt(~small) if small.any() else np.ones(small.shape)
    negative = _farthest(outside, n, edge_counts)
    if ring:
        near, far = (max(small.shape) * share for share in ring)
        band = (outside >= near) & (outside <= far)
        negative = _farthest(band.astype(float), n, edge_counts=False) if band.any() else negative
    chosen = [_farthest(inside, n, edge_counts), negative]
    points = np.concatenate(chosen).astype(float) * step + step // 2
    labels = np.repeat([1, 0], [len(part) for part in chosen])
    return points, labels


def _farthest(depth: np.ndarray, n: int, edge_counts: bool) -> np.ndarray:
    """Greedily chosen ``(x, y)`` of positive depth, int64 ``(<= n, 2)``, the deepest first."""
    rows, columns = np.nonzero(depth)
    room, chosen = depth[rows, columns], []
    for k in range(min(n, len(rows))):
        best = int(room.argmax())
        chosen.append((columns[best], rows[best]))
        away = np.hypot(rows - rows[best], columns - columns[best])
        room = np.minimum(room, away) if edge_counts or k else away
    return np.array(chosen, np.int64).reshape(-1, 2)


def mask_logits(
    mask: np.ndarray,
    cells: tuple[int, int] = (256, 256),
    frame_size: tuple[int, int] = (1024, 1024),
    frame: str = "sam",
    image_size: tuple[int, int] | None = None,
) -> np.ndarray:
    """A mask as SAM's mask prompt: the inverse sigmoid of how much of each cell it covers.

    Parameters
    ----------
    mask : bool array (H, W), or float array of probabilities in [0, 1]
    cells : (rows, columns) of SAM's mask frame.
    frame_size : (rows, columns) of SAM's input frame in pixels.
    frame : "sam" or "stretched"
        ``sam`` scales the longest side to the frame and leaves the rest as background, as SAM
        does with the image; ``stretched`` pulls the mask over the whole frame.
    image_size : (H, W), or None for the mask's own
        Of the image that a coarser grid of probabilities lies over.

    Returns
    -------
    float32 array ``cells``, from -6.9 (background) to 6.9 (covered), see :data:`LOGIT_EPS`.

    >>> wide = np.ones((2, 4), bool)
    >>> (mask_logits(wide, (4, 4), (16, 16)) > 0).astype(int).tolist()
    [[1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]]
    >>> bool((mask_logits(wide, (4, 4), (16, 16), "stretched") > 0).all())
    True
    """
    height, width = image_size or mask.shape
    if frame == "sam":
        scale = max(frame_size) / max(height, width)
        # SAM rounds the scaled sides to whole pixels.
        filled = int(height * scale + 0.5), int(width * scale + 0.5)
    else:
        filled = frame_size
    row_edges = _edges(cells[0], frame_size[0], filled[0], mask.shape[0])
    column_edges = _edges(cells[1], frame_size[1], filled[1], mask.shape[1])
    covered = _integrate(_integrate(mask, row_edges).T, column_edges).T
    covered /= (row_edges[1] - row_edges[0]) * (column_edges[1] - column_edges[0])
    covered = np.clip(covered, LOGIT_EPS, 1 - LOGIT_EPS)
    return np.log(covered / (1 - covered)).astype(np.float32)


def _edges(cells: int, frame: int, filled: int, pixels: int) -> np.ndarray:
    """The ``cells + 1`` edges of a frame's cells in the mask's pixels; some lie past the mask."""
    return np.arange(cells + 1) * (frame / cells) * (pixels / filled)


def _integrate(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Integrals of ``values`` (constant in each pixel of axis 0) between neighbouring edges."""
    total = np.zeros((len(values) + 1, values.shape[1]))
    np.cumsum(values, axis=0, out=total[1:])
    edges = np.minimum(edges, len(values))
    whole = np.minimum(edges.astype(int), len(values) - 1)
    part = (edges - whole)[:, None]
    return np.diff(total[whole] * (1 - part) + total[whole + 1] * part, axis=0)


def _batches(told: list[dict[str, np.ndarray]], size: int) -> Iterator[list[int]]:
    """Rows that go through the decoder together: only prompts with equally many points.

    Padding points would change what SAM answers, and so a result by its company in the batch.
    """
    alike: dict[int, list[int]] = {}
    for row, prompt in enumerate(told):
        alike.setdefault(len(prompt.get("point_labels", ())), []).append(row)
    for rows in alike.values():
        for first in range(0, len(rows), size):
            yield rows[first : first + size]


def _checked_pixels(pixels: Any) -> np.ndarray:
    pixels = np.asarray(pixels)
    told = f"An image to refine on must be uint8 RGB (H, W, 3), got {pixels.dtype} {pixels.shape}"
    if pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 1):
        raise RefineError(f"{told}: a grey image; repeat its channel three times.")
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        raise RefineError(f"{told}: an RGBA image; drop the alpha channel with pixels[..., :3].")
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or not pixels.size:
        raise RefineError(f"{told}; t4s_helpers.data.sample.read_image gives the right form.")
    return pixels


def _checked_masks(masks: Any, image: tuple[int, int] | None) -> np.ndarray:
    if image is None:
        raise RefineError("There is no image yet; call set_image(pixels) first.")
    masks = np.asarray(masks)
    if masks.dtype != bool:
        raise RefineError(f"Coarse masks must be bool, got {masks.dtype}; compare, as in m > 0.")
    if masks.ndim != 3:
        raise RefineError(
            f"Coarse masks must be (L, H, W), got {masks.shape}; one mask is masks[None]."
        )
    if masks.shape[1:] != tuple(image):
        raise RefineError(
            f"Coarse masks are {masks.shape[2]} x {masks.shape[1]} pixels but the image is "
            f"{image[1]} x {image[0]}; use grid_to_masks with the image's size."
        )
    return masks


def _checked_confidence(confidence: Any, n: int) -> list[np.ndarray]:
    told = "A soft mask prompt needs confidence=, a grid (rows, cols) of probabilities for each mask"
    if confidence is None:
        raise RefineError(f"{told}, and none was given; ask with mask='hard', or hand it over.")
    grids = [np.asarray(grid, float) for grid in confidence]
    if len(grids) != n:
        raise RefineError(f"{told}; there are {n} masks and {len(grids)} grids.")
    for k, grid in enumerate(grids):
        if grid.ndim != 2 or not grid.size:
            raise RefineError(f"{told}; grid {k} has the shape {grid.shape}.")
        if not ((grid >= 0) & (grid <= 1)).all():  # False for NaN too
            raise RefineError(f"{told}; grid {k} holds values that are not in [0, 1].")
    return grids


def _check_options(seed: int, min_iou: float) -> None:
    if not isinstance(seed, (int, np.integer)) or seed < 0:
        raise RefineError(f"seed must be a whole number from 0, got {seed!r}.")
    if not 0 <= min_iou <= 1:
        raise RefineError(f"min_iou must lie in [0, 1], got {min_iou!r}.")


def _content(array: np.ndarray) -> bytes:
    """16 bytes that tell arrays of different shape or content apart."""
    digest = hashlib.blake2b(str(array.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(array))
    return digest.digest()


def _ms_since(start: float) -> float:
    return (time.perf_counter() - start) * 1e3
