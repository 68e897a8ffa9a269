"""Real photos that need no download, with outlines and expressions drawn for this project.

The photos are those that scikit-image bundles in its package; only our outlines
(``photos.json``, COCO's format with a list ``expressions``) are part of this project.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from .coco import AnnotationMasks, CocoFile, Record, read_annotations
from .sample import Sample, SampleError, read_image

_OUTLINES = Path(__file__).with_name("photos.json")


def load_photos() -> list[Sample]:
    """One sample per photo, with several labels that do not overlap (task ``gres``).

    Every label has a target; a label such as "the coins in the top row" has several.

    Raises
    ------
    SampleError
        When a photo is missing or is not the one that the outlines were drawn on; the message
        names it.

    >>> [sample.id for sample in load_photos()][:3]
    ['photos/astronaut', 'photos/coffee', 'photos/cat']
    """
    coco = read_annotations(_OUTLINES)
    samples = []
    for image_id, image in coco.images.items():
        shown = [e for e in _expressions(coco, image_id) if e["overview"]]
        samples.append(_sample(coco, image, shown, f"photos/{image['name']}", "gres"))
    return samples


def photo_samples() -> list[Sample]:
    """One sample per expression: single targets (task ``res``), several or none (``gres``).

    ``meta["categories"]`` names what the targets are, in the order of the single objects.
    """
    coco = read_annotations(_OUTLINES)
    samples = []
    for image_id, image in coco.images.items():
        pixels = _pixels(image)
        for expression in _expressions(coco, image_id):
            task = "res" if len(expression["annotation_ids"]) == 1 else "gres"
            name = f"photos/{image['name']}/{expression['id']}"
            samples.append(_sample(coco, image, [expression], name, task, pixels))
    return samples


def _expressions(coco: CocoFile, image_id: Any) -> list[Record]:
    return [e for e in coco.extra["expressions"] if e["image_id"] == image_id]


def _sample(
    coco: CocoFile,
    image: Record,
    expressions: list[Record],
    name: str,
    task: str,
    pixels: np.ndarray | None = None,
) -> Sample:
    targets = [[coco.annotations[i] for i in e["annotation_ids"]] for e in expressions]
    single = [annotation for group in targets for annotation in group]
    owners = [label for label, group in enumerate(targets) for _ in group]
    size = coco.size(image["id"])
    objects = AnnotationMasks(tuple((a["segmentation"],) for a in single), size).decode()
    masks = np.zeros((len(targets), *size), bool)
    for mask, owner in zip(objects, owners, strict=True):
        masks[owner] |= mask
    return Sample(
        id=name,
        image=_pixels(image) if pixels is None else pixels,
        labels=tuple(e["text"] for e in expressions),
        masks=masks,
        task=task,
        split="test",
        meta={
            "photo": image["name"],
            "categories": tuple(coco.categories[a["category_id"]] for a in single),
            "instance_masks": objects,
            "instance_owners": tuple(owners),
        },
    )


def _pixels(image: Record) -> np.ndarray:
    """uint8 ``(H, W, 3)`` of a bundled photo, checked against the one the outlines belong to.

    The file is checked, not its pixels: decoders of JPEG may differ in the last bit.
    """
    path = _bundled_folder() / image["file_name"]
    advice = "install scikit-image 0.26 anew"
    if not path.is_file():
        raise SampleError(f"The photo '{image['name']}', {path}, is missing; {advice}.")
    if hashlib.sha256(path.read_bytes()).hexdigest() != image["sha256"]:
        raise SampleError(
            f"The photo '{image['name']}', {path}, is not the one that the outlines were drawn "
            f"on (its SHA-256 differs); {advice}."
        )
    pixels = read_image(path)
    if pixels.shape[:2] != (image["height"], image["width"]):
        raise SampleError(
            f"The photo '{image['name']}', {path}, has the shape {pixels.shape} instead of "
            f"({image['height']}, {image['width']}, 3); {advice}."
        )
    return pixels


def _bundled_folder() -> Path:
    """Where scikit-image keeps its photos; looked up without importing it."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise SampleError("The photos come with scikit-image, which is not installed; install it.")
    return Path(spec.submodule_search_locations[0]) / "data"
