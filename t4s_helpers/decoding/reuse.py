"""One pass of the vision tower for each picture of a batch, however many requests it has.

In referring segmentation several expressions ask about one picture. A batch then holds the same
pixels several times, and the tower would read each copy.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

PER_PICTURE = ("pooler_output", "deepstack_features")
"""What the language models read of a tower's output; every other field is left as it is."""


@dataclass
class Reuse:
    """How many pictures a model was given and how many its tower read."""

    given: int = 0
    read: int = 0


@contextmanager
def shared_pictures(model) -> Iterator[Reuse]:
    """Within, equal pictures of one batch go through the model's tower once.

    Works on transformers' ``get_image_features``, for pictures as rows of a tensor (LLaVA,
    DeepSeek-VL, InternVL's tiles, SmolVLM's stacks of tiles) and as a run of patches with their grid
    (the Qwen families). What is laid out in another way is read as it comes.

    Args:
        model: a transformers image-text model, with or without an adapter around it.

    Yields:
        `Reuse`, counting.
    """
    count = Reuse()
    inner = _reader(model)
    if inner is None:
        yield count
        return
    original = inner.get_image_features

    @functools.wraps(original)  # `generate` reads the signature to know what to hand over
    def once(pixel_values, *args, **named):
        pictures = _Pictures.of(pixel_values, args, named)
        if pictures is None:
            return original(pixel_values, *args, **named)
        kept, copies = pictures.distinct()
        count.given += len(copies)
        count.read += len(kept)
        if len(kept) == len(copies):
            return original(pixel_values, *args, **named)
        return _spread(original(*pictures.chosen(kept), **pictures.named(kept)), len(kept), copies)

    inner.get_image_features = once  # an instance's attribute hides the class's method
    try:
        yield count
    finally:
        del inner.get_image_features


def _reader(model):
    """The innermost module with ``get_image_features``; the outer ones only hand on to it."""
    found = [part for part in model.modules() if hasattr(type(part), "get_image_features")]
    return found[-1] if found else None


class _Pictures:
    """The tensors of a call, cut into pictures."""

    def __init__(self, tensors, sizes, args, named):
        self.tensors, self.sizes, self.args, self._named = tensors, sizes, args, named

    @classmethod
    def of(cls, pixels, args, named) -> _Pictures | None:
        """None where it cannot be told which part belongs to which picture."""
        import torch

        if pixels is None or pixels.ndim < 2:
            return None
        grid = named.get("image_grid_thw", args[0] if pixels.ndim == 2 and args else None)
        if pixels.ndim == 2:  # patches of all pictures in one run
            if grid is None or int(grid.prod(-1).sum()) != len(pixels):
                return None
            return cls((pixels,), grid.prod(-1).tolist(), args, named)
        others = [value for value in (*args, *named.values()) if isinstance(value, torch.Tensor)]
        if any(len(value) != len(pixels) for value in others):
            return None
        return cls((pixels, *others), [1] * len(pixels), args, named)

    def distinct(self) -> tuple[list[int], list[int]]:
        """Numbers of the pictures to read, and for each picture which of these it equals."""
        ends = [0]
        for size in self.sizes:
            ends.append(ends[-1] + size)
        self.places = [slice(a, b) for a, b in zip(ends, ends[1:])]
        kept: list[int] = []
        copies = []
        for k in range(len(self.sizes)):
            same = next((n for n, other in enumerate(kept) if self._equal(k, other)), None)
            if same is None:
                same = len(kept)
                kept.append(k)
            copies.append(same)
        return kept, copies

    def _equal(self, a: int, b: int) -> bool:
        import torch

        first, second = self.places[a], self.places[b]
        return all(tensor[first].shape == tensor[second].shape
                   and torch.equal(tensor[first], tensor[second]) for tensor in self.tensors)

    def chosen(self, kept):
        """The positional arguments for the pictures kept."""
        return self._cut(self.tensors[0], kept), *(self._part(value, kept) for value in self.args)

    def named(self, kept):
        return {name: self._part(value, kept) for name, value in self._named.items()}

    def _part(self, value, kept):
        import torch

        if not isinstance(value, torch.Tensor):
            return value
        return value[kept] if len(value) == len(self.sizes) else self._cut(value, kept)

    def _cut(self, tensor, kept):
        import torch

        return torch.cat([tensor[self.places[k]] for k in kept])


def _spread(output, n: int, copies: list[int]):
    """The output for ``n`` pictures, as if every copy had been read."""
    for name in PER_PICTURE:
        value = getattr(output, name, None)
        if value is not None:
            setattr(output, name, _repeated(value, n, copies, name))
    return output


def _repeated(value, n: int, copies: list[int], name: str):
    if name == "deepstack_features":  # one entry a layer
        return [_repeated(layer, n, copies, "layer") for layer in value]
    if len(value) != n:
        raise RuntimeError(f"A vision tower gave {len(value)} entries in {name} for {n} pictures.")
    return [value[k] for k in copies] if isinstance(value, (list, tuple)) else value[copies]
