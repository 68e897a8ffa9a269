"""A backbone made on the spot for tests: the embedded architecture, untrained, tiny tokenizer."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path


@functools.cache
def folder() -> Path:
    """A saved, untrained embedded model; made once per test run."""
    import torch
    from transformers import AutoTokenizer

    from t4s_helpers.lab.tiny_model.architecture import build_model, build_processor
    from t4s_helpers.lab.tiny_model.tokenizer import train_tokenizer

    place = Path(tempfile.mkdtemp(prefix="t4s-tiny-"))
    train_tokenizer(vocab_size=600, lines=40).save_pretrained(place)
    tokenizer = AutoTokenizer.from_pretrained(place)
    build_processor(tokenizer).save_pretrained(place)
    torch.manual_seed(0)
    build_model(tokenizer).save_pretrained(place)
    return place


def backbone(**options):
    from t4s_helpers.model.backbones import load_backbone

    return load_backbone("embedded", source=folder(), **options)
