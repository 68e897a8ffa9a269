"""One pass of the vision tower for each picture of a batch, however many requests are about it.

In referring segmentation several expressions ask about one picture. A batch then holds the same pixels
several times, and the tower would read each copy.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass
class PictureCount:
    """How many pictures a model was given, and how many its vision tower read."""

    given: int = 0
    read: int = 0


@contextmanager
def shared_pictures(model) -> Iterator[PictureCount]:
    """Within, equal pictures of one batch go through the model's vision tower once.

    Works on transformers' ``get_image_features``, for pictures as rows of a tensor (LLaVA, DeepSeek-VL,
    InternVL's tiles, SmolVLM's stacks of tiles) and as one sequence of patches with their grid (the Qwen
    families). What is laid out in another way is read as it comes.

    Args:
        model: a transformers image-text model, with or without an adapter around it.

    Yields:
        a running `PictureCount`.
    """
    count = PictureCount()
    readers = [part for part in model.modules() if hasattr(type(part), "get_image_features")]
    if not readers:
        yield count
        return
    inner = readers[-1]  # the outer ones only hand on to it
    original = inner.get_image_features
    names = list(inspect.signature(original).parameters)

    @functools.wraps(original)  # `generate` reads the signature to know what to hand over
    def once(*args, **named):
        named = dict(zip(names, args)) | named
        tensors = {name: value for name, value in named.items() if isinstance(value, torch.Tensor)}
        sizes = _rows_per_picture(tensors)
        if sizes is None:
            return original(**named)
        parts = {name: value.split(1 if len(value) == len(sizes) else sizes)
                 for name, value in tensors.items()}
        kept, copies = _distinct(list(zip(*parts.values())))
        count.given += len(copies)
        count.read += len(kept)
        if len(kept) == len(copies):
            return original(**named)
        chosen = {name: torch.cat([some[k] for k in kept]) for name, some in parts.items()}
        return _repeat(original(**named | chosen), len(kept), copies)

    inner.get_image_features = once  # an instance's attribute hides the class's method
    try:
        yield count
    finally:
        del inner.get_image_features


def _rows_per_picture(tensors: dict[str, torch.Tensor]) -> list[int] | None:
    """Rows of the pixel tensor for each picture; None where that cannot be told."""
    pixels = tensors.get("pixel_values")
    if pixels is None or pixels.ndim < 2:
        return None
    if pixels.ndim == 2:  # the patches of all pictures in one sequence
        grid = tensors.get("image_grid_thw")
        sizes = None if grid is None else grid.prod(-1).tolist()
        return sizes if sizes is not None and sum(sizes) == len(pixels) else None
    return [1] * len(pixels) if all(len(value) == len(pixels) for value in tensors.values()) else None


def _distinct(pictures: list[tuple[torch.Tensor, ...]]) -> tuple[list[int], list[int]]:
    """Numbers of the pictures to read, and for each picture which of these it equals."""
    kept: list[int] = []
    copies = []
    for k, picture in enumerate(pictures):
        same = next((n for n, other in enumerate(kept) if all(map(torch.equal, picture, pictures[other]))),
                    len(kept))
        if same == len(kept):
            kept.append(k)
        copies.append(same)
    return kept, copies


def _repeat(output, n: int, copies: list[int]):
    """The output for ``n`` pictures, as if every copy had been read."""
    def repeated(value, name: str):
        if len(value) != n:
            raise RuntimeError(f"A vision tower gave {len(value)} entries in {name} for {n} pictures.")
        return [value[k] for k in copies] if isinstance(value, (list, tuple)) else value[copies]

    # What the language models read of a tower's output; every other field is left as it is.
    if getattr(output, "pooler_output", None) is not None:
        output.pooler_output = repeated(output.pooler_output, "pooler_output")
    if getattr(output, "deepstack_features", None) is not None:  # one entry for each layer
        output.deepstack_features = [repeated(layer, "a layer") for layer in output.deepstack_features]
    return output
