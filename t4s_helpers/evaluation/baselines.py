"""A segmenter that is given the words themselves: what SAM 3 reaches on the same samples.

SAM 3 finds and outlines all instances of a short noun phrase, with a decoder of its own and no language
model. It is a baseline for what a language model adds, not a part of the method.

Source: Carion et al., "SAM 3: Segment Anything with Concepts" (2025); the classes are those of transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..model.weights import from_hub
from .metrics import BoxMetric, SegmentationMetric


@dataclass
class WordSegmenter:
    """SAM 3 with a phrase as its prompt.

    Attributes:
        model: a ``Sam3Model`` in evaluation mode, on the device to use.
        processor: its ``Sam3Processor``.
        threshold: least confidence of an instance, in [0, 1].
    """

    model: Any
    processor: Any
    threshold: float = 0.5

    @classmethod
    def load(cls, source: str = "facebook/sam3", device: str | None = None) -> WordSegmenter:
        """Fetch the weights, for which the hub wants a login, where its cache does not hold them."""
        import torch
        from transformers import Sam3Model, Sam3Processor

        model, processor = (
            from_hub(kind, "SAM 3", source, "check the network, accept its licence on the hub and log in, or "
                     "leave the baseline out.") for kind in (Sam3Model, Sam3Processor))
        return cls(model.eval().to(device or ("cuda" if torch.cuda.is_available() else "cpu")), processor)

    def mask(self, image: np.ndarray, phrase: str, single: bool = False) -> np.ndarray:
        """What a phrase names, bool ``(H, W)``.

        Args:
            image: uint8 ``(H, W, 3)``.
            phrase: cut off behind SAM 3's 32 tokens.
            single: only the instance that it is surest of, however unsure; else all above the threshold.
        """
        import torch

        words = self.processor.tokenizer(phrase, padding="max_length", max_length=32, truncation=True,
                                         return_tensors="pt")
        shown = self.processor(images=image, input_data_format="channels_last", return_tensors="pt")
        inputs = {**shown, **words}
        with torch.inference_mode():
            out = self.model(**{name: inputs[name].to(self.model.device) for name in
                                ("pixel_values", "input_ids", "attention_mask")})
        [found] = self.processor.post_process_instance_segmentation(
            out, -1.0 if single else self.threshold, target_sizes=[image.shape[:2]])
        if not len(found["scores"]):  # the masks of nothing keep the model's size
            return np.zeros(image.shape[:2], bool)
        masks = found["masks"][found["scores"].argmax()][None] if single else found["masks"]
        return masks.bool().any(0).cpu().numpy()


def baseline_scores(segmenter: WordSegmenter, samples: Sequence) -> dict[str, float]:
    """Scores of a segmenter's masks, as `t4s_helpers.evaluation.scoring.score_rows` has them for a model's.

    Args:
        samples: of the tasks ``res``, with one target each, or ``gres``.
    """
    from tqdm.auto import tqdm

    masks, boxes = SegmentationMetric(), BoxMetric()
    for sample in tqdm(samples, "baseline"):
        truth = sample.masks.any(0)
        pred = segmenter.mask(sample.pixels(), sample.labels[0], single=sample.task == "res")
        masks.update(pred, truth, sample_id=sample.id)
        if truth.any():
            boxes.update(pred, truth)
    return {**(boxes.compute() if len(boxes) else {}), **masks.compute()}
