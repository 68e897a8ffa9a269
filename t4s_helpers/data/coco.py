"""COCO annotation files: one owner for reading them and for turning outlines into masks.

`CocoDataset` reads any folder in COCO's format, a user's own data included. The readers of the
RefCOCO family and of the bundled photos build on the same index and the same masks.

Format: https://cocodataset.org/#format-data. Outlines are polygons ``[x0, y0, x1, y1, ...]`` in
pixels (x to the right, y down, the origin at the top left corner of the top left pixel) or
run-length codes, which run down the columns. Polygons are drawn by pycocotools.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .dataset import BadRow, Dataset, LazyMasks, Record, choose, list_of, read_json
from .instances import numbered
from .layout import find_annotations, find_photos, photo_folders
from .sample import CLASS_TASKS, Sample, SampleError, exif_orientation

MOST_ABSENT = 3
"""Classes that a request of the task ``multi`` names although they are not there."""


class CocoDataset(Dataset):
    """One sample for each annotated photo; the labels are the names of the categories that it shows.

    Args:
        source: the annotation file, or a folder that holds it as annotation tools export it; see
            `t4s_helpers.data.layout.find_annotations`.
        image_folder: where the photos are, if not where `t4s_helpers.data.layout.photo_folders` looks.
        split: which annotations of a folder; written into the samples.
        task: ``semantic``; ``instances`` for single objects with numbers (`t4s_helpers.data.instances`);
            ``multi``, which asks for all categories of a photo and for up to `MOST_ABSENT` that it does not
            show, sorted by name (its ``meta`` has no single objects).
        name: of the data set, by default that of the file's folder.
        apply_exif, checks: see `t4s_helpers.data.dataset.Dataset`.

    Samples come in the file's order, the image as a path. Labels come in the order of
    the file's categories; the mask of a label is the union of its objects, crowds included. ``meta`` holds
    ``image_id``, ``ann_ids`` and the single objects (``instance_masks``, ``instance_owners``, and
    ``instance_crowds``, COCO's ``iscrowd``).

    A photo with an annotation that cannot be used counts as unusable whole, as what is not drawn would be
    taught as background. Photos without annotations are always excluded.

    Raises:
        SampleError: a file is missing or broken, an annotation refers to an image or category that
            the file does not have, or its outline cannot be drawn; the message names it.
    """

    def __init__(self, source: str | Path, image_folder: str | Path | None = None, split: str = "train",
                 apply_exif: bool = True, task: str = "semantic", name: str = "", **checks: Any):
        choose("task", task, (*CLASS_TASKS, "multi"))
        path = find_annotations(Path(source), split)
        self.coco, self.apply_exif, self.folders = read_annotations(path), apply_exif, photo_folders(
            path, image_folder)
        self.classes = tuple(self.coco.categories.values())
        if task == "instances":
            numbered(self.classes)  # refuses names that would be mistaken for each other
        by_image: dict[Any, list[Record]] = {image_id: [] for image_id in self.coco.images}
        strays = []
        for annotation in self.coco.annotations.values():
            image_id = annotation.get("image_id")
            (by_image[image_id] if is_known(image_id, by_image) else strays).append(annotation)
        photos = find_photos({k: one.get("file_name") for k, one in self.coco.images.items()}, self.folders)
        super().__init__(name or path.parent.name, split, task, path, [
            *((image_id, photos[image_id], tuple(found)) for image_id, found in by_image.items()),
            *((f"annotation {one.get('id')}", None, (one,)) for one in strays)], **checks)

    def row_id(self, row: tuple) -> str:
        return f"{self.name}/{row[0]}"

    def check(self, row: tuple[Any, Path | None, tuple[Record, ...]]) -> None:
        image_id, image, annotations = row
        owner = f"image {image_id!r} of {self.source}"
        if not annotations:
            raise BadRow("photo without annotations", f"There are no annotations of {owner}.", harmless=True)
        for annotation in annotations:
            self.coco.check(annotation)
        name, size = self.coco.photo(image_id)
        if image is None:
            raise BadRow("missing image", f"The photo {name} of {owner} does not exist in any of the folders "
                         f"{', '.join(map(str, self.folders))}; put it there, or name its folder as "
                         "image_folder.")
        self.check_image(image, owner, size)
        try:
            self.make(row)
        except SampleError as error:
            raise BadRow("unusable sample", str(error)) from error

    def make(self, row: tuple[Any, Path, tuple[Record, ...]]) -> Sample:
        image_id, image, annotations = row
        present = {annotation["category_id"] for annotation in annotations}
        categories = [category for category in self.coco.categories if category in present]
        owners = [categories.index(annotation["category_id"]) for annotation in annotations]
        masks, objects = self.coco.masks(image_id, annotations, owners, len(categories))
        if not self.apply_exif:
            orientation = exif_orientation(image)
            masks = masks.turned(orientation)
            objects["instance_masks"] = objects["instance_masks"].turned(orientation)
        meta = {"image_id": image_id, "ann_ids": tuple(one["id"] for one in annotations), **objects,
                "instance_crowds": tuple(one.get("iscrowd") == 1 for one in annotations)}
        labels = tuple(self.coco.categories[category] for category in categories)
        if self.task == "multi":
            labels, masks, meta = _with_absent(labels, self.classes, masks, self.row_id(row), meta)
        return Sample(self.row_id(row), image, labels, masks, self.task, self.split, meta=meta)


def _with_absent(labels: tuple[str, ...], classes: Sequence[str], masks: LazyMasks, seed: str,
                 meta: dict[str, Any]) -> tuple[tuple[str, ...], LazyMasks, dict[str, Any]]:
    """A request that also names classes that are not there, the same ones for a sample each time."""
    absent = [name for name in classes if name not in labels]
    rng = np.random.default_rng(zlib.crc32(seed.encode()))
    asked = (*labels, *(absent[k] for k in rng.permutation(len(absent))[:MOST_ABSENT]))
    order = sorted(range(len(asked)), key=asked.__getitem__)
    shown = LazyMasks((len(asked), *masks.shape[1:]), _reordered, (masks, order))
    meta = {key: value for key, value in meta.items() if not key.startswith("instance_")}
    return tuple(asked[k] for k in order), shown, meta


def _reordered(masks: LazyMasks, order: Sequence[int]) -> np.ndarray:
    """Masks by their numbers; a number past the last is an empty mask."""
    held = masks.decode()
    return np.stack([held[k] if k < len(held) else np.zeros_like(held[0]) for k in order])


@dataclass(frozen=True)
class CocoFile:
    """An annotation file, indexed by id."""

    path: Path
    images: dict[Any, Record]
    annotations: dict[Any, Record]
    categories: dict[Any, str]

    def photo(self, image_id: Any) -> tuple[str, tuple[int, int]]:
        """File name of an image, and its ``(H, W)`` in pixels; `BadRow` where the file does not say them."""
        name, *sides = (self.images[image_id].get(key) for key in ("file_name", "height", "width"))
        where = f"Image {image_id!r} of {self.path}"
        if not all(isinstance(side, int) and side > 0 for side in sides):
            raise BadRow("image without a size", f"{where} has the height and width {sides}; both must "
                         "be whole numbers of pixels.")
        if not isinstance(name, str):
            raise BadRow("image without a name", f"{where} has no file_name; add it.")
        return name, (sides[0], sides[1])

    def masks(self, image_id: Any, annotations: Sequence[Record], owners: Sequence[int],
              n: int) -> tuple[LazyMasks, dict[str, Any]]:
        """The masks of ``n`` labels, and their single objects as `Sample` takes them in ``meta``.

        ``annotations`` are checked ones of the image, ``owners`` the number of each one's label.
        """
        size, outlines = self.photo(image_id)[1], [annotation["segmentation"] for annotation in annotations]
        groups = [[o for o, owner in zip(outlines, owners, strict=True) if owner == k] for k in range(n)]
        masks, objects = (LazyMasks((len(some), *size), draw_groups, (some, size))
                          for some in (groups, [[o] for o in outlines]))
        return masks, {"instance_masks": objects, "instance_owners": tuple(owners)}

    def check(self, annotation: Record) -> None:
        """Raise `BadRow` unless the annotation can be drawn on its image."""
        identity = annotation.get("id")
        where = f"Annotation {identity!r} of {self.path}"
        if not is_known(identity, self.annotations):
            raise BadRow("annotation without an id of its own", f"{where}: its id is missing or occurs "
                         "twice; give each its own.")
        for kind, table in (("image", self.images), ("category", self.categories)):
            identity = annotation.get(f"{kind}_id")
            if not is_known(identity, table):
                raise BadRow(f"unknown {kind}", f"{where} belongs to {kind} {identity!r}, which the "
                             "file does not list; fetch the complete file, or add what is missing.")
        _, size = self.photo(annotation["image_id"])
        try:
            _check_outline(annotation.get("segmentation"), size)
        except ValueError as error:
            raise BadRow("unusable outline", f"{where} {error}") from error


def draw_groups(groups: Sequence[Sequence[Any]], size: tuple[int, int]) -> np.ndarray:
    """bool ``(L, H, W)``: for each group of checked segmentations the union of its masks."""
    if [len(group) for group in groups] == [1]:  # the usual case, without a copy
        return draw_outline(groups[0][0], size)[None]
    # Column by column in memory, as the outlines are drawn: several times as fast.
    masks = np.zeros((len(groups), *size[::-1]), bool).transpose(0, 2, 1)
    for mask, group in zip(masks, groups, strict=True):
        for segmentation in group:
            mask |= draw_outline(segmentation, size)
    return masks


def draw_outline(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
    """The mask of one segmentation.

    Args:
        segmentation: a list of polygons, of which overlapping ones are merged; a run-length code
            ``{"size": [H, W], "counts": ...}``, compressed or not; or a list of such codes.
        size: ``(H, W)`` of the image, in pixels.

    Returns:
        bool ``(H, W)``. An outline too thin to cover the centre of any pixel gets the one pixel under
        its middle: what was annotated never turns into "nothing there".

    >>> square = [[1, 1, 3, 1, 3, 3, 1, 3]]
    >>> draw_outline(square + square, (4, 4)).astype(int).tolist()
    [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    """
    if isinstance(segmentation, Mapping):
        segmentation = [segmentation]
    if isinstance(segmentation[0], Mapping):
        return np.logical_or.reduce([_unpacked(code, size) for code in segmentation])
    return _draw_polygons(_drawable(segmentation), size)


def read_annotations(path: str | Path) -> CocoFile:
    """Read and index an annotation file; images and annotations are checked when they are used.

    Categories that no annotation has are left out. Numbers such as ids and sizes may be written as floats.

    Raises:
        SampleError: the file is missing, is no JSON, or lacks a part of the format, or a category is
            incomplete; the message names it.
    """
    path = Path(path)
    data = read_json(path)
    if not isinstance(data, dict):
        raise SampleError(f"Annotation file {path} holds no JSON object; give a COCO file.")
    images, annotations, categories = (_by_id(list_of(data, path, name), name, path) for name in
                                       ("images", "annotations", "categories"))
    # Roboflow adds a root category that nothing belongs to, sometimes named like a class.
    used = {one.get("category_id") for one in annotations.values() if is_known(
        one.get("category_id"), categories)}
    names: dict[Any, str] = {}
    for identity in (identity for identity in categories if identity in used):
        name = categories[identity].get("name")
        if not isinstance(name, str) or name in names.values():
            raise SampleError(f"Category {identity!r} of {path} has the name {name!r}, which is no text "
                              "or is taken by another category; give each its own name.")
        names[identity] = name
    return CocoFile(path, images, annotations, names)


def is_known(identity: Any, table: Mapping[Any, Any]) -> bool:
    """Whether ``table`` has an entry of that id; an id that is no number or text it never has."""
    return isinstance(identity, (int, str)) and identity in table


WHOLE = {"id", "image_id", "category_id", "height", "width"}
"""Whole numbers that pandas may have written as floats."""


def _by_id(rows: list[Record], name: str, path: Path) -> dict[Any, Record]:
    """The rows by id; annotations that have none of their own get a key that is no id, for their turn."""
    for row in rows:
        for key in WHOLE & row.keys():
            row[key] = _whole(row[key])
    ids = [row.get("id") for row in rows]
    times = Counter(identity for identity in ids if isinstance(identity, (int, str)))
    own = [is_known(identity, times) and times[identity] == 1 for identity in ids]
    if name != "annotations" and not all(own):
        raise SampleError(f"Annotation file {path} has an entry in '{name}' whose id, "
                          f"{ids[own.index(False)]!r}, is missing or occurs twice; give each its own.")
    return {identity if fine else (k,): row for k, (identity, fine, row) in enumerate(zip(ids, own, rows))}


def _whole(value: Any) -> Any:
    """A float that is a whole number as an integer; pandas writes them so. All else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _check_outline(segmentation: Any, size: tuple[int, int]) -> None:
    """Raise a ValueError, the end of a sentence, unless this can be drawn."""
    codes = [segmentation] if isinstance(segmentation, Mapping) else segmentation
    if not isinstance(codes, Sequence) or isinstance(codes, str) or not codes:
        raise ValueError("has no outline (a box alone is not enough); add polygons or a run-length "
                         "code as its segmentation, or remove it.")
    if all(isinstance(code, Mapping) for code in codes):
        for code in codes:
            _check_code(code, size)
        return
    if not all(_are_numbers(polygon) and len(polygon) % 2 == 0 for polygon in codes):
        raise ValueError("has a polygon that is no list of pairs x, y of numbers; mend it.")
    usable = _drawable(codes)
    if not usable:
        raise ValueError("has no polygon of at least three points; mend or remove it.")
    # Coordinates in another unit would be drawn as nothing or as something else.
    height, width = size
    points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in usable])
    (x0, y0), (x1, y1) = points.min(0), points.max(0)
    if min(height, width) > 8 and min(x0, y0) >= 0 and max(x1, y1) <= 1:
        raise ValueError("has coordinates between 0 and 1 only; multiply them by width and height: "
                         "COCO counts in pixels.")
    slack = 0.05 * max(height, width) + 2
    if min(x0, y0) < -slack or x1 > width + slack or y1 > height + slack:
        raise ValueError(f"reaches from ({x0:g}, {y0:g}) to ({x1:g}, {y1:g}), outside its image of "
                         f"{width} x {height} pixels; correct the outline or the size.")


def _are_numbers(values: Any) -> bool:
    """Whether this is a sequence of finite numbers."""
    return (isinstance(values, Sequence) and set(map(type, values)) <= {int, float}
            and all(map(math.isfinite, values)))


def _check_code(code: Record, size: tuple[int, int]) -> None:
    if code.get("size") not in (list(size), tuple(size)):
        raise ValueError(f"has a run-length code for (height, width) {code.get('size')}, but its image "
                         f"has {list(size)}; use the outline that was drawn on this image.")
    try:
        runs = read_runs(code.get("counts"))
    except (TypeError, ValueError):
        runs = []
    whole = all(isinstance(run, int) and run >= 0 for run in runs)
    if not whole or sum(runs) != size[0] * size[1]:
        raise ValueError("has a broken run-length code: its runs do not add up to the "
                         f"{size[0] * size[1]} pixels of the image; export it again.")
    if not sum(runs[1::2]):
        raise ValueError("has a run-length code without a pixel; mend or remove it.")


def read_runs(counts: str | bytes | Sequence[int]) -> list[int]:
    """Run lengths of a code; a compressed one has 5 bits a character, from the fourth run on differences.

    Read here, as a broken code would make pycocotools write beyond its memory.
    """
    if not isinstance(counts, (str, bytes)):
        return [_whole(run) for run in counts]
    runs: list[int] = []
    value = shift = 0
    for byte in counts.encode("ascii") if isinstance(counts, str) else counts:
        digit = byte - 48
        if not 0 <= digit < 64:
            raise ValueError(f"character {byte} in a run-length code")
        value |= (digit & 0x1F) << shift
        shift += 5
        if digit & 0x20:
            continue
        if digit & 0x10:  # sign
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("a run-length code that ends within a number")
    return runs


def _unpacked(code: Record, size: tuple[int, int]) -> np.ndarray:
    """bool ``(H, W)`` of run lengths down the columns, of which the first is background.

    The array lies in memory as it was read, column by column.
    """
    runs = read_runs(code["counts"])
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(size[::-1]).T


def _draw_polygons(polygons: list[list[float]], size: tuple[int, int]) -> np.ndarray:
    """bool ``(H, W)``: the union, merged as run lengths so that overlaps cannot wrap around."""
    from pycocotools import mask as coco_mask

    mask = _unpacked(coco_mask.merge(coco_mask.frPyObjects(polygons, *size)), size)
    if not mask.any():
        middle = np.floor([np.mean(polygons[0][1::2]), np.mean(polygons[0][0::2])])
        mask[tuple(np.clip(middle, 0, np.subtract(size, 1)).astype(int))] = True
    return mask


def _drawable(polygons: Sequence[Any]) -> list[Any]:
    """The polygons with an inside; pycocotools would take two points for a box."""
    return [list(polygon) for polygon in polygons if len(polygon) >= 6]
