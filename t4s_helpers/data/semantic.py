"""Semantic segmentation on official files: COCO-Stuff, ADE20K-150, PASCAL Context, PASCAL VOC.

A class map is int32 ``(H, W)``: 0 is background, ``k`` is ``classes[k-1]`` and `VOID_INDEX` a pixel
that is never scored. `FORMS` says which pixel values of the files mean what; a value that has no
meaning is an error that names file and value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .classes import ADE20K_150, COCO_STUFF, COCO_STUFF_IDS, CONTEXT_59, CONTEXT_459, VOC_20
from .dataset import BadRow, Dataset, LazyMasks, check_annotation, choose, first_there
from .sample import Sample, SampleError

VOID_INDEX = 255
"""Value of pixels without a label, which are never scored."""

BACKGROUND = ("ignored", "class")
"""What pixels of no listed class count as: not at all, or as a class of their own."""


@dataclass(frozen=True)
class ClassMap:
    """The classes of an image's pixels, kept as a file and read when they are asked for.

    ``meaning`` holds pairs (pixel value, class map value).
    """

    path: Path
    meaning: tuple[tuple[int, int], ...]

    def read(self) -> np.ndarray:
        """int32 ``(H, W)``; see the module.

        Raises:
            BadRow: the file is missing, cannot be read or holds a value without a meaning.
        """
        return _class_map(self).astype(np.int32)


@lru_cache(maxsize=4)
def _class_map(source: ClassMap) -> np.ndarray:
    """int16 ``(H, W)``; the last few are kept, as a sample asks for its map several times."""
    values = _read_values(source.path)
    lookup = np.full(65_536, -1, np.int16)
    for value, k in source.meaning:
        lookup[value] = k
    found = lookup[values]
    if wrong := sorted(set(values[found < 0].tolist())):
        raise BadRow(
            "class outside the list",
            f"{source.path} holds the pixel values {', '.join(map(str, wrong[:5]))}, which are no "
            "classes of this data set; use the annotation files that its documentation names.")
    found.setflags(write=False)
    return found


def _read_values(path: Path) -> np.ndarray:
    """Pixel values of an annotation file, unsigned ``(H, W)``; of a palette image its indices."""
    from PIL import Image

    check_annotation(path)
    try:
        if path.suffix == ".mat":
            from scipy.io import loadmat

            values = loadmat(path)["LabelMap"].astype(np.uint16)
        else:
            with Image.open(path) as image:
                values = np.array(image)
            values = values.astype(np.uint16) if image.mode.startswith("I") else values
    except Exception as error:  # a broken file can fail in almost any way
        raise BadRow("unreadable annotation", f"Annotation file {path} cannot be read "
                     f"({' '.join(str(error).split())}); fetch it again.") from error
    if values.ndim != 2 or values.dtype.kind != "u":
        raise BadRow("unreadable annotation",
                     f"Annotation file {path} holds {values.dtype} of shape {values.shape} instead "
                     "of one class number for each pixel; use the index images, not coloured ones.")
    return values


class Form(NamedTuple):
    """Where the files of a data set lie below its root, and what they mean; ``{}`` is the split.

    Attributes:
        meaning: pixel value -> class map value (0: background, ``k``: ``classes[k-1]``, `VOID_INDEX`).
        ending: of annotation files.
        annotations, photos: folders; of several the first that is there counts.
        lists: files with the names of images, likewise; without any, all files of the folders count.
    """

    classes: tuple[str, ...]
    meaning: dict[int, int]
    ending: str
    annotations: tuple[str, ...]
    photos: tuple[str, ...] = ("JPEGImages",)
    lists: tuple[str, ...] = ()


def _counted(names: Sequence[str], classes: Sequence[str], first: int = 1) -> dict[int, int]:
    """The meaning of values that count ``names``."""
    return {value: classes.index(name) + 1 for value, name in enumerate(names, first)}


def _stuff(ending: str, meaning: dict[int, int]) -> Form:
    return Form(COCO_STUFF, {VOID_INDEX: VOID_INDEX, **meaning}, ending,
                ("annotations/{}", "stuffthingmaps/{}"), ("images/{}", "{}"))


def _context(folder: str, meaning: dict[int, int], ending: str = ".png") -> Form:
    return Form(CONTEXT_59, meaning, ending, (f"{folder}/pc59_{{}}", folder),
                lists=("ImageSets/SegmentationContext/{}.txt", "{}.txt"))


_TRAIN_IDS = "_labelTrainIds.png"
_ALPHABETICAL = sorted(CONTEXT_59)

FORMS = {
    "cocostuff": {
        "stuffthingmaps": _stuff(".png", {
            number - 1: COCO_STUFF.index(name) + 1 for number, name in COCO_STUFF_IDS.items()}),
        "trainids": _stuff(_TRAIN_IDS, _counted(COCO_STUFF, COCO_STUFF, 0)),
    },
    "ade20k-150": {
        "annotations": Form(ADE20K_150, {0: VOID_INDEX, **_counted(ADE20K_150, ADE20K_150)}, ".png",
                            ("annotations/{}",), ("images/{}",)),
    },
    "voc-20": {
        "SegmentationClass": Form(
            VOC_20, {0: 0, VOID_INDEX: VOID_INDEX, **_counted(VOC_20, VOC_20)}, ".png",
            ("SegmentationClass",), lists=("ImageSets/Segmentation/{}.txt",)),
    },
    "context-59": {
        "SegmentationClassContext": _context(
            "SegmentationClassContext", {0: 0, **_counted(_ALPHABETICAL, CONTEXT_59)}),
        "59_context_labels": _context("59_context_labels", {0: 0, **_counted(CONTEXT_59, CONTEXT_59)}),
        "annotations_detectron2": _context(
            "annotations_detectron2", {VOID_INDEX: 0, **_counted(_ALPHABETICAL, CONTEXT_59, 0)}),
        "trainval": _context("trainval", {**dict.fromkeys(range(460), 0), **{
            CONTEXT_459[name]: k for k, name in enumerate(CONTEXT_59, 1)}}, ".mat"),
    },
}
"""The data sets, and the forms in which their annotations go round (the argument ``maps``).

- COCO-Stuff: in ``stuffthingmaps`` a pixel is the class's number less one, 0 to 181, and 255 has no
  label. ``trainids`` lie beside them as mmsegmentation converts them, 0 to 170 and 255.
- ADE20K: a pixel is 1 to 150; 0, "other objects", is never scored.
- PASCAL VOC: a pixel is 1 to 20, 0 for background, 255 for the rim of an object, which is never scored.
- PASCAL Context: ``SegmentationClassContext`` is written by mmsegmentation's converter: 1 to 59 in the
  *alphabetical* order of the names, 0 background. ``59_context_labels`` is the authors' own: 1 to 59 in
  the order of 59_labels.txt. ``annotations_detectron2`` counts from 0 alphabetically, 255 is background,
  and keeps the splits apart. ``trainval`` holds the original 459 labels (``LabelMap``). To read one as
  another gives class maps that look right and are not, so a folder of another name needs ``maps``.
"""


class SemanticDataset(Dataset):
    """Images with a class map each; labels are the classes that an image shows, in list order.

    Args:
        root: folder with the layout of the data set.
        dataset: a key of `FORMS`.
        split: of the data set, as its folders and lists call it.
        background: one of `BACKGROUND`; as a class it is number 0.
        maps: which form the annotations have; by default the first whose folder is there.
        annotations: their folder, where it has another name, such as ``SegmentationClassAug``.
        checks: see `t4s_helpers.data.dataset.Dataset`. With ``verify`` every annotation file is read
            once, and images that show none of the classes are excluded; without it a fault is an error
            when the sample is asked for.
    """

    ignore_index = VOID_INDEX

    def __init__(self, root: str | Path, dataset: str, split: str, background: str = "ignored",
                 maps: str | None = None, annotations: str | None = None, **checks: Any):
        choose("background", background, BACKGROUND)
        root = Path(root)
        folder, form = _find_annotations(root, FORMS[dataset], split, maps, annotations)
        photos = first_there(root, *(name.format(split) for name in form.photos))
        if not photos.is_dir():
            raise SampleError(f"There is no folder {photos}; `t4s data` says where its files come from "
                              "and how they lie.")
        if form.lists:
            listed = first_there(root, *(name.format(split) for name in form.lists))
            if not listed.is_file():
                raise SampleError(f"The list of images {listed} does not exist; unpack ImageSets too.")
            stems = [line.split()[0] for line in listed.read_text(encoding="utf-8").splitlines()
                     if line.strip()]
        else:
            stems = sorted({*_stems(folder, form.ending), *_stems(photos, ".jpg")})
        if form.classes is ADE20K_150:
            _check_object_info(root / "objectInfo150.txt")
        self.classes, self.background = form.classes, background
        self._meaning = tuple(form.meaning.items())
        name = dataset if background == "ignored" else f"{dataset.split('-')[0]}-{len(self.classes) + 1}"
        super().__init__(name, split, "semantic", root, [
            (stem, photos / f"{stem}.jpg", folder / f"{stem}{form.ending}") for stem in stems], **checks)

    def check(self, row: tuple[str, Path, Path]) -> None:
        _, image, annotation = row
        check_annotation(annotation)
        source = ClassMap(annotation, self._meaning)
        self.check_image(image, str(annotation), _class_map(source).shape if self.verify else None)
        if self.verify and not _shown(source):
            raise BadRow("no class of the list", f"{annotation} shows none of the classes.", harmless=True)

    def make(self, row: tuple[str, Path, Path]) -> Sample:
        _, image, annotation = row
        source = ClassMap(annotation, self._meaning)
        class_ids = _shown(source)
        masks = LazyMasks((len(class_ids), *_class_map(source).shape), _masks, (source, class_ids))
        meta = {"class_ids": class_ids, "class_map": source, "dataset": self.name}
        return Sample(self.row_id(row), image, tuple(self.classes[k - 1] for k in class_ids), masks,
                      "semantic", self.split, meta=meta)


def _masks(source: ClassMap, class_ids: tuple[int, ...]) -> np.ndarray:
    """bool ``(L, H, W)``: one mask for each of some classes of a map."""
    return _class_map(source) == np.array(class_ids, np.int16)[:, None, None]


def _shown(source: ClassMap) -> tuple[int, ...]:
    """Class map values of the classes that an image shows."""
    counts = np.bincount(_class_map(source).ravel(), minlength=VOID_INDEX + 1)
    counts[[0, VOID_INDEX]] = 0
    return tuple(np.flatnonzero(counts).tolist())


def _find_annotations(root: Path, forms: dict[str, Form], split: str, maps: str | None,
                      annotations: str | None) -> tuple[Path, Form]:
    """The folder of a split's annotations, and the form that they have."""
    if maps is not None:
        choose("maps", maps, tuple(forms))
        forms = {maps: forms[maps]}
    tried = [(Path(name.format(split)), form) for form in forms.values() for name in form.annotations]
    if annotations and len(forms) == 1:
        tried = [(Path(annotations, *path.parts[1:]), form) for path, form in tried]
    found = [(root / path, form) for path, form in tried if (root / path).is_dir()]
    if not found or (annotations and len(forms) > 1):
        raise SampleError(f"There are no annotations in {root}: put them into one of its folders "
                          f"{', '.join(str(path) for path, _ in tried)}, or name their folder and what "
                          f"its values mean with annotations=FOLDER and maps=..., one of {', '.join(forms)}.")
    return found[0]


def _stems(folder: Path, ending: str) -> list[str]:
    """Names of the files with that ending, without it; converted maps are no images of their own."""
    return [path.name.removesuffix(ending) for path in folder.glob(f"*{ending}")
            if ending == _TRAIN_IDS or not path.name.endswith(_TRAIN_IDS)]


def _check_object_info(path: Path) -> None:
    """The names of ADE20K's own table, where it is there, must be ours, in our order."""
    if not path.is_file():
        return
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    names = [row[-1].split(",")[0].strip() for row in rows if len(row) > 1]
    wrong = [f"row {k}: {a!r}, not {b!r}" for k, (a, b) in enumerate(zip(names, ADE20K_150), 1) if a != b]
    if wrong or len(names) != len(ADE20K_150):
        raise SampleError(f"{path} is not the class list of the 150-class benchmark "
                          f"({wrong[0] if wrong else f'{len(names)} rows'}); use the files of "
                          "ADEChallengeData2016.zip.")
