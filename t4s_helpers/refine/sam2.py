"""SAM 2.1 as a refiner: the procedure of `t4s_helpers.refine.sam` on transformers' ``Sam2Model``.

SAM pads a picture to its square frame; SAM 2 stretches it over 1024 x 1024 pixels, whatever its shape, and
with it the 256 x 256 cells of the mask prompt. The weights come from the model hub.

Source: Ravi et al., "SAM 2: Segment Anything in Images and Videos" (2024), and the published image predictor.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers import Sam2Model, Sam2Processor

from ..model.weights import from_hub
from .sam import SamRefiner, checked_device

SOURCES = {
    "sam2.1_hiera_tiny": ("facebook/sam2.1-hiera-tiny", "de431c4043854a71d8101e17995dfe596bf101a5"),
    "sam2.1_hiera_small": ("facebook/sam2.1-hiera-small", "ee5bba1d82bb8749febdf90f45e84b687142ba03"),
    "sam2.1_hiera_base_plus": ("facebook/sam2.1-hiera-base-plus", "b7320756a13354e7530a63935656d35b2f91a290"),
    "sam2.1_hiera_large": ("facebook/sam2.1-hiera-large", "665f8e2ad61cf5f53d65644ff27c8ee525124610"),
}
"""Name of a refiner -> hub id and commit of its weights (Apache-2.0). The commits stand in many public
projects on GitHub beside the ids, and, cut short, on the hub's pages of the files."""

LARGEST_LOGIT = 32.0  # to which the published predictor cuts the logits that it takes back


class Sam2Refiner(SamRefiner):
    """SAM 2 as a mask refiner; options as of `t4s_helpers.refine.sam.SamRefiner`.

    Args:
        model: in evaluation mode, on the device to use.
        processor: scales pictures to the model's frame, and masks back.
    """

    names = tuple(SOURCES)
    frame = "stretched"

    def __init__(self, model: Sam2Model, processor: Sam2Processor, name: str = "sam2", **options: Any):
        super().__init__(model, name, **options)
        self.processor = processor

    @classmethod
    def load(cls, name: str, device: str | None, precision: str) -> Sam2Refiner:
        """Fetch model and processor where the hub's cache does not hold them."""
        device, (place, commit) = checked_device(device, precision), SOURCES[name]
        processor, model = (
            from_hub(kind, f"The weights of {name!r}", place, "check the network and run again, or choose "
                     "another refiner, for example 'mobile_sam'.", revision=commit)
            for kind in (Sam2Processor, Sam2Model))
        return cls(model.eval().to(device), processor, name, precision=precision)

    def _predictor(self, sam: Sam2Model) -> SimpleNamespace:
        return SimpleNamespace(model=sam, device=sam.device)

    def _frames(self) -> tuple[tuple[int, int], tuple[int, int]]:
        encoder = self.predictor.model.prompt_encoder
        return encoder.mask_input_size, (encoder.input_image_size,) * 2

    def _embed(self, pixels: np.ndarray) -> dict[str, Any]:
        inputs = self.processor(images=pixels, input_data_format="channels_last", return_tensors="pt")
        with self._autocast():
            maps = self.predictor.model.get_image_embeddings(inputs["pixel_values"].to(self.device))
        return {"features": [one.float() for one in maps], "original_size": pixels.shape[:2]}

    def _decode(self, points: Any, boxes: Any, logits: Any, multimask: bool) -> tuple[torch.Tensor, ...]:
        coords, signs = points or (None, None)
        n = next(len(told) for told in (coords, boxes, logits) if told is not None)
        # Each mask as a picture of its own: the model takes one mask prompt for a picture.
        out = self.predictor.model(
            image_embeddings=[one.expand(n, -1, -1, -1) for one in self.predictor.features],
            input_points=None if coords is None else coords[:, None],
            input_labels=None if signs is None else signs[:, None].int(),
            input_boxes=None if boxes is None else boxes[:, None],
            input_masks=None if logits is None else logits.clamp(-LARGEST_LOGIT, LARGEST_LOGIT),
            multimask_output=multimask)
        return out.pred_masks[:, 0].float(), out.iou_scores[:, 0].float()

    def _at_image_size(self, logits: torch.Tensor) -> torch.Tensor:
        return self.processor.post_process_masks([logits], [self.predictor.original_size])[0][:, 0]
