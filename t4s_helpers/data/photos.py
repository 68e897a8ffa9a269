"""Real photos that need no download, with outlines and expressions drawn for this project.

The photos are those that scikit-image bundles in its package; only our outlines
(``photos.json``, COCO's format with a list ``expressions``) are part of this project.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import numpy as np

from .coco import AnnotationMasks, CocoFile, read_annotations
from .dataset import Record
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
    coco = read_annotations(_OUTLINES)
    return [_sample(coco, image, [e for e in _expressions(coco, image) if e["overview"]],
                    f"photos/{image['name']}", "gres", read_photo(image))
            for image in coco.images.values()]


def photo_samples() -> list[Sample]:
    """One sample per expression: single targets (task ``res``), several or none (``gres``).

    ``meta["categories"]`` names what the targets are, in the order of the single objects.
    """
    coco = read_annotations(_OUTLINES)
    samples = []
    for image in coco.images.values():
        pixels = read_photo(image)
        for expression in _expressions(coco, image):
            task = "res" if len(expression["annotation_ids"]) == 1 else "gres"
            name = f"photos/{image['name']}/{expression['id']}"
            samples.append(_sample(coco, image, [expression], name, task, pixels))
    return samples


def _expressions(coco: CocoFile, image: Record) -> list[Record]:
    return [e for e in coco.extra["expressions"] if e["image_id"] == image["id"]]


def _sample(coco: CocoFile, image: Record, expressions: list[Record], name: str, task: str,
            pixels: np.ndarray) -> Sample:
    size = coco.size(image["id"])
    targets = [[coco.annotations[i] for i in e["annotation_ids"]] for e in expressions]
    single = [annotation for group in targets for annotation in group]
    owners = tuple(label for label, group in enumerate(targets) for _ in group)
    groups = tuple(tuple(a["segmentation"] for a in group) for group in targets)
    objects = AnnotationMasks(tuple((a["segmentation"],) for a in single), size).decode()
    meta = {"photo": image["name"], "instance_masks": objects, "instance_owners": owners,
            "categories": tuple(coco.categories[a["category_id"]] for a in single)}
    return Sample(name, pixels, tuple(e["text"] for e in expressions), AnnotationMasks(groups, size).decode(),
                  task, "test", meta=meta)


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
