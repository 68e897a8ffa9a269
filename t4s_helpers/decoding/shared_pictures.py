"""One pass of the vision tower for each picture of a batch, however many requests are about it.

In referring segmentation several expressions ask about one picture. A batch then holds the same pixels
several times, and the tower would read each copy.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
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

    @functools.wraps(original)  # `generate` reads the signature to know what to hand over
    def once(pixel_values, *args, **named):
        sizes = _rows_per_picture(pixel_values, args, named)
        if sizes is None:
            return original(pixel_values, *args, **named)
        kept, copies = _distinct([pixel_values, *_tensors(args, named)], sizes)
        count.given += len(copies)
        count.read += len(kept)
        if len(kept) == len(copies):
            return original(pixel_values, *args, **named)
        select = functools.partial(_select, sizes=sizes, kept=kept)
        output = original(select(pixel_values), *map(select, args),
                          **{name: select(value) for name, value in named.items()})
        return _repeat(output, len(kept), copies)

    inner.get_image_features = once  # an instance's attribute hides the class's method
    try:
        yield count
    finally:
        del inner.get_image_features


def _tensors(args: Sequence, named: dict) -> list[torch.Tensor]:
    return [value for value in (*args, *named.values()) if isinstance(value, torch.Tensor)]


def _rows_per_picture(pixels, args: Sequence, named: dict) -> list[int] | None:
    """Rows of the pixel tensor for each picture; None where that cannot be told."""
    if pixels is None or pixels.ndim < 2:
        return None
    if pixels.ndim == 2:  # the patches of all pictures in one sequence
        grid = named.get("image_grid_thw", args[0] if args else None)
        sizes = None if grid is None else grid.prod(-1).tolist()
        return sizes if sizes is not None and sum(sizes) == len(pixels) else None
    alike = all(len(value) == len(pixels) for value in _tensors(args, named))
    return [1] * len(pixels) if alike else None


def _distinct(tensors: Sequence[torch.Tensor], sizes: list[int]) -> tuple[list[int], list[int]]:
    """Numbers of the pictures to read, and for each picture which of these it equals."""
    parts = [tensor.split(sizes if len(tensor) == sum(sizes) else 1) for tensor in tensors]
    kept: list[int] = []
    copies = []
    for k in range(len(sizes)):
        same = next((n for n, other in enumerate(kept)
                     if all(torch.equal(part[k], part[other]) for part in parts)), len(kept))
        if same == len(kept):
            kept.append(k)
        copies.append(same)
    return kept, copies


def _select(value, sizes: list[int], kept: list[int]):
    """The part of an argument that belongs to some pictures."""
    if not isinstance(value, torch.Tensor):
        return value
    parts = value.split(1 if len(value) == len(sizes) else sizes)
    return torch.cat([parts[k] for k in kept])


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
