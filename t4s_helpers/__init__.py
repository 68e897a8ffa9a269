"""Helpers of the Text4Seg workbook: image segmentation written and read as text.

>>> from t4s_helpers import get_encoding
>>> print(get_encoding("rrle", (2, 3)).encode([[0, 0, 1], [0, 1, 1]], ["brown dog"]))
others *2|brown dog *1
others *1|brown dog *2

Importing the package loads NumPy and the standard library only. The names below are imported from
their rooms when they are first used; `Text4Seg` is the whole method in one object.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.2.0"

_HOMES = {
    "Text4Seg": "text4seg", "Segmentation": "text4seg",
    "Encoding": "codec.encodings", "get_encoding": "codec.encodings",
    "masks_to_grid": "codec.grid", "grid_to_masks": "codec.grid", "parse": "codec.parsing",
    "Sample": "data.sample", "load": "data.registry",
    "load_backbone": "model.backbones", "generate": "decoding.generate",
    "load_refiner": "refine", "evaluate": "evaluation.evaluate",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 't4s_helpers' has no name {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
