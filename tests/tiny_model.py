"""A backbone made on the spot for tests: the embedded model's shape and processor, but untrained."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from t4s_helpers.model.backbones import EMBEDDED, load_backbone

LAYERS = 4
"""One more than the layers that fine-tuning leaves alone (``Spec.lora_targets``)."""


@functools.cache
def folder() -> Path:
    """A saved, untrained embedded model; made once per test run."""
    place = Path(tempfile.mkdtemp(prefix="t4s-tiny-"))
    AutoProcessor.from_pretrained(EMBEDDED).save_pretrained(place)
    config = AutoConfig.from_pretrained(EMBEDDED)
    config.text_config.num_hidden_layers = LAYERS
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(config, dtype=torch.float32).save_pretrained(place)
    return place


def backbone(**options):
    return load_backbone("embedded", source=folder(), **options)
