"""Coarse mask -> SAM prompts -> refined mask.

The procedure of the paper (appendix A.1): the inverse sigmoid of the coarse mask as a mask prompt,
10 positive and 10 negative points drawn from it, and three predictor calls in all, each handed the
low-resolution logits of the one before. The result has the image's size.

Two things differ from the usual code for it. SAM sees an image scaled so that its longest side
fills a square frame, the rest of the frame is padding; the mask prompt is laid into that same
frame and not stretched over it. Points come from a generator seeded for each mask, so that a
result depends on the image, the mask and the seed alone, not on what was refined before.

Frames: an image is ``(H, W)``, row 0 at the top. SAM's input frame has 1024 x 1024 pixels, its
mask frame 256 x 256 cells over the same square. Boxes are half-open ``(x0, y0, x1, y1)``.
"""

from __future__ import annotations

import functools
import hashlib
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from t4s_helpers.descriptors import mask_to_box
from t4s_helpers.metrics import mask_iou

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

# Decoder rows worked on at once: on the CPU one at a time is fastest, on CUDA a batch is.
_BATCH = {"cpu": 1}
_BATCH_ELSEWHERE = 16


class RefineError(ValueError):
    """Something that cannot be refined; the message says what to change."""


@dataclass(frozen=True)
class Prompts:
    """What SAM is told about a coarse mask. The defaults are the paper's.

    Parameters
    ----------
    points : "random" or "none"
        Points drawn without repetition from the coarse mask and from the rest of the image.
    n_points : int
        At most this many positive and this many negative points; a mask with fewer pixels gives
        all it has, and a mask that fills the image gives no negative ones.
    box : bool
        The bounding box of the coarse mask.
    mask : "hard" or "none"
        The inverse sigmoid of the coarse mask for the first call.
    frame : "sam" or "stretched"
        How the mask prompt lies: in SAM's padded frame, or stretched over it, as a square grid
        is when its aspect is forgotten.
    calls : int
        Predictor calls in all, at least 1. Each after the first gets the logits of the one before.
    multimask : bool
        Let SAM propose three masks at each call and keep the one that it scores highest.

    Raises
    ------
    RefineError
        A value that is none of these, or no prompt at all.
    """

    points: str = "random"
    n_points: int = 10
    box: bool = False
    mask: str = "hard"
    frame: str = "sam"
    calls: int = 3
    multimask: bool = False

    def __post_init__(self) -> None:
        for name, choices in (
            ("points", ("random", "none")),
            ("mask", ("hard", "none")),
            ("frame", ("sam", "stretched")),
        ):
            value = getattr(self, name)
            if value not in choices:
                raise RefineError(
                    f"Prompts({name}={value!r}) is not known; choose one of {', '.join(choices)}."
                )
        for name in ("n_points", "calls"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise RefineError(
                    f"Prompts({name}={getattr(self, name)!r}) must be a whole number from 1."
                )
        if self.points == "none" and self.mask == "none" and not self.box:
            raise RefineError("Prompts needs at least one of points, box and mask.")


PAPER = Prompts()
"""10 + 10 points and the mask's logits in SAM's frame, three calls."""

STRETCHED = Prompts(frame="stretched")
"""The same with the mask prompt stretched over SAM's frame, to show what that costs."""

BOX_ONLY = Prompts(points="none", box=True, mask="none", calls=1)
"""One call with the box of the coarse mask."""


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

    def refine(self, masks: np.ndarray, seed: int = 0, **options: Any) -> RefineResult:
        """A copy of the coarse masks, without scores; the options of a refiner are ignored."""
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
    """

    def __init__(self, sam: Sam, name: str = "sam", cached_images: int = 8) -> None:
        from segment_anything import SamPredictor

        self.name = name
        self.predictor = SamPredictor(sam)
        self._embeddings: OrderedDict[bytes, _Embedding] = OrderedDict()
        self._cached_images = max(1, cached_images)
        self._image_ms = 0.0

    @property
    def device(self) -> torch.device:
        """Where SAM runs."""
        return self.predictor.device

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
        prompts: Prompts = PAPER,
        min_iou: float = MIN_IOU,
    ) -> RefineResult:
        """Refine coarse masks of the image given to :meth:`set_image`.

        An empty coarse mask stays empty, SAM is not asked about it. Each mask's result depends
        on the image, that mask, ``seed`` and the options alone.

        Parameters
        ----------
        masks : bool array (L, H, W)
            Coarse masks at the image's size; ``L`` may be 0.
        seed : int
            Of the points, from 0.
        prompts : Prompts
            What SAM is told; the paper's choice by default.
        min_iou : float
            In [0, 1]. Where SAM's mask overlaps the coarse one less than this (IoU), the coarse
            mask is kept and ``fallback`` is set. 0 takes every mask that SAM gives.

        Raises
        ------
        RefineError
            No image was set; masks that are not bool, have no label axis or another size than
            the image; a negative seed; a threshold outside [0, 1].
        """
        image = self.predictor.original_size if self.predictor.is_image_set else None
        coarse = _checked_masks(masks, image)
        _check_options(seed, min_iou)
        asked = np.flatnonzero(coarse.any(axis=(1, 2)))
        found, scores, ms = self._ask(coarse[asked], seed, prompts)
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
        predictor.set_image(pixels)
        if self.device.type == "cuda":
            import torch

            torch.cuda.synchronize(self.device)  # for honest milliseconds
        return _Embedding(predictor.features, predictor.original_size, predictor.input_size)

    def _select(self, embedding: _Embedding) -> None:
        """Put an embedding where ``SamPredictor.set_torch_image`` puts a new one."""
        self.predictor.features = embedding.features
        self.predictor.original_size = embedding.original_size
        self.predictor.input_size = embedding.input_size
        self.predictor.is_image_set = True

    def _ask(
        self, coarse: np.ndarray, seed: int, prompts: Prompts
    ) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
        """SAM's masks bool ``(A, H, W)`` and scores ``(A,)`` for non-empty coarse masks."""
        found = np.zeros(coarse.shape, bool)
        scores = np.zeros(len(coarse), np.float32)
        start = time.perf_counter()
        told = [self._prompt(mask, seed, prompts) for mask in coarse]
        ms = {"prompts": _ms_since(start)}
        start = time.perf_counter()
        for rows in _batches(told, _BATCH.get(self.device.type, _BATCH_ELSEWHERE)):
            found[rows], scores[rows] = self._predict([told[r] for r in rows], prompts)
        ms["decoder"] = _ms_since(start)
        return found, scores, ms

    def _prompt(self, mask: np.ndarray, seed: int, prompts: Prompts) -> dict[str, np.ndarray]:
        """The prompts of one mask in SAM's frames, as keyword arrays of ``predict_torch``."""
        scaled = self._scaled(*mask.shape)
        scale = np.array([scaled[1] / mask.shape[1], scaled[0] / mask.shape[0]])
        told: dict[str, np.ndarray] = {}
        if prompts.points == "random":
            pixels, labels = sample_points(mask, prompts.n_points, seed)
            # The middle of a pixel; SAM itself adds the half that leads to the middle of its own.
            told["point_coords"] = (pixels + 0.5) * scale - 0.5
            told["point_labels"] = labels
        if prompts.box:
            told["boxes"] = np.array(mask_to_box(mask), float) * np.tile(scale, 2)
        if prompts.mask == "hard":
            encoder = self.predictor.model.prompt_encoder
            told["mask_input"] = mask_logits(
                mask, encoder.mask_input_size, encoder.input_image_size, prompts.frame
            )[None]
        return told

    def _predict(
        self, told: list[dict[str, np.ndarray]], prompts: Prompts
    ) -> tuple[np.ndarray, np.ndarray]:
        import torch

        def batch(key: str) -> torch.Tensor | None:
            if key not in told[0]:
                return None
            dtype = torch.int if key == "point_labels" else torch.float
            rows = np.stack([t[key] for t in told])
            return torch.as_tensor(rows, dtype=dtype, device=self.device)

        points, labels, boxes = (batch(k) for k in ("point_coords", "point_labels", "boxes"))
        logits = batch("mask_input")
        for _ in range(prompts.calls):
            masks, scores, logits = self.predictor.predict_torch(
                points, labels, boxes, logits, multimask_output=prompts.multimask
            )
            best = scores.argmax(dim=1)
            rows = torch.arange(len(best), device=best.device)
            logits = logits[rows, best][:, None]
        return masks[rows, best].cpu().numpy(), scores[rows, best].float().cpu().numpy()


def load_refiner(name: str = "mobile_sam", device: str | None = None) -> Refiner | NoRefiner:
    """A refiner by name; the same object each time in one process.

    Parameters
    ----------
    name : str
        One of :data:`REFINERS`. A SAM model's checkpoint is fetched (:mod:`t4s_helpers.weights`)
        where it is not in the cache.
    device : str or None
        As PyTorch names it, for example ``"cuda"``; None takes CUDA where there is one, else the
        CPU.

    Raises
    ------
    RefineError
        Unknown name.
    t4s_helpers.weights.WeightsError
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
    return _loaded(name, str(torch.device(chosen)))


@functools.lru_cache(maxsize=None)
def _loaded(name: str, device: str) -> Refiner:
    from t4s_helpers.weights import fetch

    return Refiner(_build(name, fetch(name)).to(device), name=name)


def _build(name: str, path: Any) -> Sam:
    if name == "mobile_sam":
        from t4s_helpers.mobile_sam import build_mobile_sam

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


def mask_logits(
    mask: np.ndarray,
    cells: tuple[int, int] = (256, 256),
    frame_size: tuple[int, int] = (1024, 1024),
    frame: str = "sam",
) -> np.ndarray:
    """A mask as SAM's mask prompt: the inverse sigmoid of how much of each cell it covers.

    Parameters
    ----------
    mask : bool array (H, W)
    cells : (rows, columns) of SAM's mask frame.
    frame_size : (rows, columns) of SAM's input frame in pixels.
    frame : "sam" or "stretched"
        ``sam`` scales the longest side to the frame and leaves the rest as background, as SAM
        does with the image; ``stretched`` pulls the mask over the whole frame.

    Returns
    -------
    float32 array ``cells``, from -6.9 (background) to 6.9 (covered), see :data:`LOGIT_EPS`.

    >>> wide = np.ones((2, 4), bool)
    >>> (mask_logits(wide, (4, 4), (16, 16)) > 0).astype(int).tolist()
    [[1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]]
    >>> bool((mask_logits(wide, (4, 4), (16, 16), "stretched") > 0).all())
    True
    """
    height, width = mask.shape
    if frame == "sam":
        scale = max(frame_size) / max(height, width)
        # SAM rounds the scaled sides to whole pixels.
        filled = int(height * scale + 0.5), int(width * scale + 0.5)
    else:
        filled = frame_size
    row_edges = _edges(cells[0], frame_size[0], filled[0], height)
    column_edges = _edges(cells[1], frame_size[1], filled[1], width)
    covered = _integrate(_integrate(mask, row_edges).T, column_edges).T
    covered /= (row_edges[1] - row_edges[0]) * (column_edges[1] - column_edges[0])
    covered = np.clip(covered, LOGIT_EPS, 1 - LOGIT_EPS)
    return np.log(covered / (1 - covered)).astype(np.float32)


def _edges(cells: int, frame: int, filled: int, pixels: int) -> np.ndarray:
    """The ``cells + 1`` edges of a frame's cells in image pixels; some lie past the image."""
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
