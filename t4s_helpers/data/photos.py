"""Real photos that need no download, with outlines and expressions drawn for this project.

The photos are those that scikit-image bundles in its package; only our outlines
(``photos.json``, COCO's format with a list ``expressions``) are part of this project.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .coco import read_annotations
from .dataset import Record, read_json
from .sample import Sample, SampleError, read_image

_OUTLINES = Path(__file__).with_name("photos.json")


def load_photos() -> list[Sample]:
    """One sample per photo, with several labels that do not overlap (task ``gres``).

    Every label has a target; a label such as "the coins in the top row" has several.

    Raises:
        SampleError: a photo is missing or is not the one that the outlines were drawn on; the message
            names it.

    >>> [sample.id for sample in load_photos()][:3]
    ['photos/astronaut', 'photos/coffee', 'photos/cat']
    """
    return list(_samples(by_photo=True))


def photo_samples() -> list[Sample]:
    """One sample per expression: single targets (task ``res``), several or none (``gres``).

    ``meta["categories"]`` names what the targets are, in the order of the single objects.
    """
    return list(_samples(by_photo=False))


def _samples(by_photo: bool) -> Iterator[Sample]:
    """A sample for each photo, with the expressions that its overview has, or for each expression."""
    coco, expressions = read_annotations(_OUTLINES), read_json(_OUTLINES)["expressions"]
    for image in coco.images.values():
        pixels = read_photo(image)
        mine = [one for one in expressions if one["image_id"] == image["id"]]
        groups = [[one for one in mine if one["overview"]]] if by_photo else [[one] for one in mine]
        for asked in groups:
            owners = [label for label, one in enumerate(asked) for _ in one["annotation_ids"]]
            targets = [coco.annotations[number] for one in asked for number in one["annotation_ids"]]
            masks, objects = coco.masks(image["id"], targets, owners, len(asked))
            meta = {**objects, "instance_masks": objects["instance_masks"].decode(), "photo": image["name"],
                    "categories": tuple(coco.categories[one["category_id"]] for one in targets)}
            yield Sample(f"photos/{image['name']}" + ("" if by_photo else f"/{asked[0]['id']}"), pixels,
                         tuple(one["text"] for one in asked), masks.decode(),
                         "gres" if by_photo or len(targets) != 1 else "res", "test", meta=meta)


def read_photo(image: Record) -> np.ndarray:
    """uint8 ``(H, W, 3)`` of a bundled photo, checked to be the one that the outlines belong to.

    The file is checked, not its pixels: decoders of JPEG may differ in the last bit.
    """
    path = bundled_folder() / image["file_name"]
    fault = ""
    if not path.is_file():
        fault = "is missing"
    elif hashlib.sha256(path.read_bytes()).hexdigest() != image["sha256"]:
        fault = "is not the one that the outlines were drawn on (its SHA-256 differs)"
    if fault:
        raise SampleError(f"The photo '{image['name']}', {path}, {fault}; install scikit-image 0.26 anew.")
    return read_image(path)


def bundled_folder() -> Path:
    """Where scikit-image keeps its photos; looked up without importing it."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise SampleError("The photos come with scikit-image, which is not installed; install it.")
    return Path(spec.submodule_search_locations[0]) / "data"
