"""SAM as the refiner of the paper (section 3.3, appendix A.1).

The coarse mask becomes *logits* for SAM's mask prompt, 10 positive points are drawn inside it and 10
negative ones outside (`t4s_helpers.refine.prompts.sam_prompt`), and SAM is called three times, each time
with the low-resolution logits of the call before. Unlike in the usual code, the mask prompt lies where SAM
lays the image, and a result depends on the image, the mask and the seed alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import torch
from segment_anything import SamPredictor, sam_model_registry
from segment_anything.modeling import Sam

from ..model.weights import fetch
from .mobile_sam import build_mobile_sam, renamed
from .prompts import Prompts, RefineError, digest, filled_frame, sam_prompt
from .refiners import Refiner

MODELS = {"mobile_sam": build_mobile_sam, "sam_vit_b": sam_model_registry["vit_b"],
          "sam_vit_l": sam_model_registry["vit_l"], "sam_vit_h": sam_model_registry["vit_h"]}
"""Name of a checkpoint -> function that builds its model, with random weights."""

PRECISIONS = ("float32", "bfloat16", "float16")  # the 16-bit ones are meant for CUDA


class SamRefiner(Refiner):
    """SAM as a mask refiner, on ``segment_anything.SamPredictor``.

    Args:
        sam: in evaluation mode, on the device to use.
        name: shown in tables.
        cached_images: how many image embeddings to keep (4 MB each at 1024 pixels, 17 MB of SAM 2).
        precision: one of `PRECISIONS`, by PyTorch's autocast; anything else, and float16 on the CPU,
            is a `RefineError`. Logits and scores are float32 in any case.

    Attributes:
        predictor: the ``SamPredictor``, holding the embedding of the last image.
        batch: masks that go through the decoder together. One at a time is fastest on the CPU.
    """

    names = tuple(MODELS)
    frame: ClassVar[str] = "sam"  # how the model lays the image, see `t4s_helpers.refine.prompts.sam_prompt`

    def __init__(self, sam: Sam, name: str = "sam", cached_images: int = 8, precision: str = "float32"):
        super().__init__(name)
        _check_precision(precision, sam.device.type)
        self.precision = precision
        self.predictor = self._predictor(sam)
        self.batch = 1 if sam.device.type == "cpu" else 16
        self._cached_images = cached_images
        self._embeddings: dict[bytes, dict[str, Any]] = {}  # the one used last comes last
        self._seen: dict[str, Any] = {}

    @classmethod
    def load(cls, name: str, device: str | None, precision: str) -> SamRefiner:
        """Fetch the checkpoint where it is not in the cache, and build the model."""
        device = checked_device(device, precision)
        published = torch.load(fetch(name), map_location="cpu", weights_only=True)
        sam = MODELS[name]()
        sam.load_state_dict(renamed(published))  # every key and shape must fit
        return cls(sam.eval().to(device), name, precision=precision)

    @property
    def device(self) -> torch.device:
        """Where SAM runs."""
        return self.predictor.device

    def forget_images(self) -> None:
        """Drop the kept embeddings, to time a fresh one or to free their memory."""
        self._embeddings.clear()

    def see(self, pixels: np.ndarray) -> None:
        """Embed an image, or find its embedding again by its content."""
        key = digest(pixels)
        self._seen = self._embeddings.pop(key, None) or self._embed(pixels)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # for honest milliseconds
        self._embeddings[key] = self._seen
        if len(self._embeddings) > self._cached_images:
            del self._embeddings[next(iter(self._embeddings))]
        vars(self.predictor).update(self._seen)

    def redraw(
        self, masks: np.ndarray, seed: int, prompts: Prompts, confidence: list[np.ndarray] | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The paper's procedure: prompts for each mask, then the predictor calls."""
        found, scores = np.zeros(masks.shape, bool), np.zeros(len(masks), np.float32)
        vars(self.predictor).update(self._seen)  # the predictor may be shared, see `with_prompts`
        frames = *self._frames(), self.frame
        with self._timed("prompts"):
            grids = confidence or [None] * len(masks)
            told = [sam_prompt(m, prompts, seed, g, *frames) for m, g in zip(masks, grids, strict=True)]
        with self._timed("decoder"):
            for rows in _batches(told, self.batch):
                found[rows], scores[rows] = self._predict([told[row] for row in rows], prompts)
        return found, scores

    def _predict(self, told: list[dict[str, np.ndarray]], prompts: Prompts) -> tuple[np.ndarray, ...]:
        """Masks bool ``(B, H, W)`` and scores float32 ``(B,)`` of one batch."""
        batch = {key: torch.as_tensor(np.stack([one[key] for one in told]), dtype=torch.float,
                                      device=self.device) for key in told[0]}
        points = (batch["point_coords"], batch["point_labels"]) if "point_coords" in batch else None
        logits, every = batch.get("mask_input"), torch.arange(len(told), device=self.device)
        with torch.no_grad(), self._autocast():
            for _ in range(prompts.calls):
                low, iou = self._decode(points, batch.get("boxes"), logits, prompts.multimask)
                best = _choice(low, iou, batch.get("coarse"))
                logits = low[every, best][:, None]
            # Brought to the image's size once, at the end: the calls between need the logits alone.
            masks = self._at_image_size(logits)
        return masks.cpu().numpy(), iou[every, best].cpu().numpy()

    # -- what depends on the model

    def _predictor(self, sam: Sam) -> Any:
        """Holds the model, and what is kept of the image seen last."""
        return SamPredictor(sam)

    def _frames(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """(rows, columns) of the mask frame, and of the input frame in pixels."""
        encoder = self.predictor.model.prompt_encoder
        return encoder.mask_input_size, encoder.input_image_size

    def _decode(self, points: Any, boxes: Any, logits: Any, multimask: bool) -> tuple[torch.Tensor, ...]:
        """One call: low-resolution logits float32 ``(B, M, 256, 256)`` and their scores ``(B, M)``."""
        model = self.predictor.model
        sparse, dense = model.prompt_encoder(points=points, boxes=boxes, masks=logits)
        places = model.prompt_encoder.get_dense_pe()
        low, iou = model.mask_decoder(self.predictor.features, places, sparse, dense, multimask)
        return low.float(), iou.float()

    def _at_image_size(self, logits: torch.Tensor) -> torch.Tensor:
        """Low-resolution logits ``(B, 1, 256, 256)`` -> masks, bool ``(B, H, W)``."""
        predictor = self.predictor
        masks = predictor.model.postprocess_masks(logits, predictor.input_size, predictor.original_size)
        return masks[:, 0] > predictor.model.mask_threshold

    def _embed(self, pixels: np.ndarray) -> dict[str, Any]:
        """What is kept of an image in the predictor, by attribute: here what ``set_image`` leaves there."""
        predictor, (height, width) = self.predictor, pixels.shape[:2]
        if min(filled_frame((height, width), predictor.transform.target_length)) < 1:
            raise RefineError(f"An image of {width} x {height} pixels is too thin for SAM's frame; crop it.")
        with self._autocast():
            predictor.set_image(pixels)
        kept = {name: vars(predictor)[name] for name in ("original_size", "input_size", "is_image_set")}
        return {"features": predictor.features.float(), **kept}

    def _autocast(self) -> torch.autocast:
        enabled = self.precision != "float32"
        return torch.autocast(self.device.type, getattr(torch, self.precision), enabled=enabled)


def _choice(low: torch.Tensor, scores: torch.Tensor, coarse: torch.Tensor | None) -> torch.Tensor:
    """Index of the mask that goes on in each row, int64 ``(B,)``; see ``Prompts.choose``."""
    if coarse is not None:
        found, coarse = low > 0, coarse[:, None] > 0
        both = (found & coarse).sum(dim=(2, 3))
        scores = scores * both / (found | coarse).sum(dim=(2, 3)).clamp(min=1)
    return scores.argmax(dim=1)


def _batches(told: list[dict[str, np.ndarray]], size: int) -> Iterator[list[int]]:
    """Rows that go through the decoder together: prompts with equally many points."""
    alike: dict[int, list[int]] = {}  # padding points would change what SAM answers
    for row, prompt in enumerate(told):
        alike.setdefault(len(prompt.get("point_labels", ())), []).append(row)
    for rows in alike.values():
        for first in range(0, len(rows), size):
            yield rows[first : first + size]


def checked_device(device: str | None, precision: str) -> str:
    """The device to use, by default the GPU where there is one; `RefineError` for a precision it lacks."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    _check_precision(precision, torch.device(device).type)
    return device


def _check_precision(precision: str, device: str) -> None:
    if precision not in PRECISIONS:
        raise RefineError(f"precision={precision!r} is not known; choose one of {', '.join(PRECISIONS)}.")
    if precision == "float16" and device == "cpu":
        raise RefineError("precision='float16' needs a GPU; on the CPU choose 'float32' or 'bfloat16'.")
