"""Semantic segmentation on official files: COCO-Stuff, ADE20K-150, PASCAL Context, PASCAL VOC.

A class map is int32 ``(H, W)``: 0 is background, ``k`` is ``classes[k-1]`` and `VOID_INDEX` a pixel
that is never scored. Each reader says which pixel values of its files mean what; a value that has
no meaning is an error that names file and value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from .classes import ADE20K_150, COCO_STUFF, COCO_STUFF_IDS, CONTEXT_59, CONTEXT_459, VOC_20
from .dataset import BadRow, Dataset, Inspection, choose, progress
from .sample import Sample, SampleError

VOID_INDEX = 255
"""Value of pixels without a label, which are never scored."""

BACKGROUND = ("ignored", "class")
"""What pixels of no listed class count as: not at all, or as a class of their own."""


@dataclass(frozen=True)
class ClassMap:
    """The classes of an image's pixels, kept as a file and read when they are asked for.

    ``meaning`` holds pairs (pixel value, class map value). In a ``.mat`` file of 459 labels those
    that it does not name are background.
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
    lookup = _lookup(source.meaning, source.path.suffix == ".mat")
    found = lookup[values] if values.size else values
    if values.size == 0 or found.min() < 0:
        wrong = sorted(set(values[found < 0].tolist())) if values.size else []
        raise BadRow(
            "class outside the list",
            f"{source.path} holds the pixel values {', '.join(map(str, wrong[:5]))}, which are no "
            "classes of this data set; use the annotation files that its documentation names.")
    found.setflags(write=False)
    return found


@lru_cache(maxsize=16)
def _lookup(meaning: tuple[tuple[int, int], ...], many: bool) -> np.ndarray:
    """Pixel value -> class map value, -1 for none."""
    table = np.full(65_536, -1, np.int16)
    if many:
        table[:460] = 0
    for value, k in meaning:
        table[value] = k
    return table


def _read_values(path: Path) -> np.ndarray:
    """Pixel values of an annotation file, unsigned ``(H, W)``."""
    check_annotation(path)
    try:
        values = _read_mat(path) if path.suffix == ".mat" else _read_indices(path)
    except SampleError:
        raise
    except Exception as error:  # a broken file can fail in almost any way
        raise BadRow("unreadable annotation", f"Annotation file {path} cannot be read "
                     f"({' '.join(str(error).split())}); fetch it again.") from error
    if values.ndim != 2 or values.dtype.kind != "u":
        raise BadRow("unreadable annotation",
                     f"Annotation file {path} holds {values.dtype} of shape {values.shape} instead "
                     "of one class number for each pixel; use the index images, not coloured ones.")
    return values


def check_annotation(path: Path) -> None:
    """Raise `BadRow` where an annotation file is missing."""
    if not path.is_file():
        raise BadRow("missing annotation",
                     f"Annotation file {path} does not exist; unpack the annotations again.")


def _read_indices(path: Path) -> np.ndarray:
    from PIL import Image

    with Image.open(path) as image:
        values = np.array(image)  # of a palette image the indices, not the colours
    return values.astype(np.uint16) if image.mode.startswith("I") else values


def _read_mat(path: Path) -> np.ndarray:
    from scipy.io import loadmat

    return loadmat(path)["LabelMap"].astype(np.uint16)


@dataclass(frozen=True)
class ClassMasks:
    """One mask for each of some classes of a map (a ``MaskSource``); ``shape`` is ``(L, H, W)``."""

    source: ClassMap
    class_ids: tuple[int, ...]
    shape: tuple[int, int, int]

    def decode(self) -> np.ndarray:
        """bool ``(L, H, W)``"""
        return _class_map(self.source) == np.array(self.class_ids, np.int16)[:, None, None]


class SemanticDataset(Dataset):
    """Images with a class map each; labels are the classes that an image shows, in list order.

    Args:
        name, split: of the data set.
        classes: its class list.
        pairs: image file and annotation file of each sample.
        meaning: pixel value -> class map value (0: background, ``k``: ``classes[k-1]``, `VOID_INDEX`).
        background: one of `BACKGROUND`; as a class it is number 0.
        checks: see `t4s_helpers.data.dataset.Inspection`. With ``verify`` every annotation file is read
            once, and images that show none of the classes are excluded; without it a fault is an error
            when the sample is asked for.
    """

    def __init__(self, name: str, split: str, classes: Sequence[str],
                 pairs: Iterable[tuple[Path, Path]], meaning: Mapping[int, int],
                 background: str = "ignored", **checks: Any):
        choose("background", background, BACKGROUND)
        super().__init__(name, split, "semantic", classes)
        self.background, self.ignore_index = background, VOID_INDEX
        self._meaning, self._pairs = tuple(sorted(meaning.items())), []
        pairs, inspection = list(pairs), Inspection(**checks)
        inspection.count(len(pairs), f"{split!r} of {name}")
        shown_from = 200 if inspection.verify else len(pairs) + 1
        for pair in progress(pairs, f"{name} {split}", "images", shown_from):
            with inspection.row(self._name(pair)):
                inspection.unique(self._name(pair))
                self._check(pair, inspection)
                self._pairs.append(pair)
        self.excluded = tuple(inspection.excluded)

    def __len__(self) -> int:
        return len(self._pairs)

    def id(self, index: int) -> str:
        return self._name(self._pairs[index])

    def image(self, index: int) -> Path:
        return self._pairs[index][0]

    def class_map(self, index: int) -> np.ndarray:
        """int32 ``(H, W)`` of sample ``index``."""
        return ClassMap(self._pairs[index][1], self._meaning).read()

    def sample(self, index: int) -> Sample:
        image, annotation = self._pairs[index]
        source = ClassMap(annotation, self._meaning)
        class_ids = _shown(source)
        masks = ClassMasks(source, class_ids, (len(class_ids), *_class_map(source).shape))
        meta = {"class_ids": class_ids, "class_map": source, "dataset": self.name}
        return Sample(self.id(index), image, tuple(self.classes[k - 1] for k in class_ids), masks,
                      "semantic", self.split, meta=meta)

    def _name(self, pair: tuple[Path, Path]) -> str:
        return f"{self.name}/{self.split}/{pair[0].stem}"

    def _check(self, pair: tuple[Path, Path], inspection: Inspection) -> None:
        image, annotation = pair
        if not inspection.verify:
            check_annotation(annotation)
            inspection.photo(image, str(annotation))
            return
        source = ClassMap(annotation, self._meaning)
        inspection.photo(image, str(annotation), _class_map(source).shape)
        if not _shown(source):
            raise BadRow("no class of the list", f"{annotation} shows none of the classes.", harmless=True)


def _shown(source: ClassMap) -> tuple[int, ...]:
    """Class map values of the classes that an image shows."""
    counts = np.bincount(_class_map(source).ravel(), minlength=VOID_INDEX + 1)
    counts[[0, VOID_INDEX]] = 0
    return tuple(np.flatnonzero(counts).tolist())


class CocoStuff(SemanticDataset):
    """COCO-Stuff 164k, 171 classes.

    Layout: ``images/<split>/*.jpg`` (or ``<split>/*.jpg``) of COCO 2017 and
    ``annotations/<split>/*.png`` (or ``stuffthingmaps/<split>/*.png``), unpacked from
    stuffthingmaps_trainval2017.zip of https://github.com/nightrome/cocostuff. There a pixel is the
    class's number less one, 0 to 181, and 255 has no label.

    ``maps="trainids"`` reads ``*_labelTrainIds.png`` beside them instead, 0 to 170 and 255, as
    mmsegmentation converts them.
    """

    def __init__(self, root: str | Path, split: str = "val2017", maps: str = "stuffthingmaps",
                 **options: Any):
        root = Path(root)
        endings = {"stuffthingmaps": ".png", "trainids": "_labelTrainIds.png"}
        choose("maps", maps, tuple(endings))
        ending = endings[maps]
        annotations = _folder(root, f"annotations/{split}", f"stuffthingmaps/{split}")
        photos = _folder(root, f"images/{split}", split)
        if maps == "trainids":
            meaning = {k: k + 1 for k in range(len(COCO_STUFF))}
        else:
            meaning = {number - 1: COCO_STUFF.index(name) + 1
                       for number, name in COCO_STUFF_IDS.items()}
        found = (path.name for path in annotations.glob(f"*{ending}"))
        stems = (name.removesuffix(ending) for name in found
                 if maps == "trainids" or not name.endswith("_labelTrainIds.png"))
        super().__init__("cocostuff", split, COCO_STUFF,
                         _paired(photos, annotations, stems, ending),
                         {**meaning, VOID_INDEX: VOID_INDEX}, **options)


class Ade20k(SemanticDataset):
    """ADE20K's scene parsing benchmark, 150 classes.

    Layout: ``images/<split>/*.jpg`` and ``annotations/<split>/*.png`` with the splits ``training``
    and ``validation``, unpacked from
    http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip. A pixel is 1 to 150;
    0, "other objects", is never scored. If ``objectInfo150.txt`` is there, its names must be ours.
    """

    def __init__(self, root: str | Path, split: str = "validation", **options: Any):
        root = Path(root)
        _check_object_info(root / "objectInfo150.txt")
        photos, annotations = (_folder(root, f"{part}/{split}") for part in
                               ("images", "annotations"))
        stems = (path.stem for path in annotations.glob("*.png"))
        meaning = {0: VOID_INDEX, **{k: k for k in range(1, len(ADE20K_150) + 1)}}
        super().__init__("ade20k-150", split, ADE20K_150,
                         _paired(photos, annotations, stems, ".png"), meaning, **options)


class Voc(SemanticDataset):
    """PASCAL VOC 2012, 20 classes.

    Layout: ``JPEGImages/*.jpg``, ``SegmentationClass/*.png`` and
    ``ImageSets/Segmentation/<split>.txt`` of http://host.robots.ox.ac.uk/pascal/VOC/voc2012. A pixel
    is 1 to 20, 0 for background, 255 for the rim of an object, which is never scored.
    ``annotations`` names another folder, such as ``SegmentationClassAug``.
    """

    def __init__(self, root: str | Path, split: str = "val", background: str = "ignored",
                 annotations: str = "SegmentationClass", **options: Any):
        root = Path(root)
        folder = _folder(root, annotations)
        stems = _listed(root / "ImageSets" / "Segmentation" / f"{split}.txt")
        meaning = {VOID_INDEX: VOID_INDEX, **{k: k for k in range(len(VOC_20) + 1)}}
        super().__init__("voc-20" if background == "ignored" else "voc-21", split, VOC_20,
                         _paired(_folder(root, "JPEGImages"), folder, stems, ".png", False),
                         meaning, background, **options)


_ALPHABETICAL = sorted(CONTEXT_59)
CONTEXT_MAPS = {
    "SegmentationClassContext": (".png", {0: 0, **{
        n: CONTEXT_59.index(name) + 1 for n, name in enumerate(_ALPHABETICAL, 1)}}),
    "59_context_labels": (".png", {k: k for k in range(len(CONTEXT_59) + 1)}),
    "annotations_detectron2": (".png", {VOID_INDEX: 0, **{
        n: CONTEXT_59.index(name) + 1 for n, name in enumerate(_ALPHABETICAL)}}),
    "trainval": (".mat", {CONTEXT_459[name]: k for k, name in enumerate(CONTEXT_59, 1)}),
}
"""The forms in which PASCAL Context goes round, by folder: ending, pixel value -> class map value.

``SegmentationClassContext`` is written by mmsegmentation's converter: 1 to 59 in the *alphabetical*
order of the names, 0 background. ``59_context_labels`` is the authors' own: 1 to 59 in the order of
59_labels.txt. ``annotations_detectron2`` counts from 0 alphabetically, 255 is background.
``trainval`` holds the original 459 labels (``LabelMap``). To read one as another gives class maps
that look right and are not, so a folder of another name needs ``maps``.
"""


class PascalContext(SemanticDataset):
    """PASCAL Context, 59 classes, on VOC 2010's photos.

    Layout: ``JPEGImages/*.jpg``, ``ImageSets/SegmentationContext/<split>.txt`` (or ``<split>.txt``)
    and one of the folders of `CONTEXT_MAPS`; see there, and
    https://cs.stanford.edu/~roozbeh/pascal-context.

    ``maps`` chooses among them, and ``annotations`` names the folder where its name is another.
    """

    def __init__(self, root: str | Path, split: str = "val", background: str = "ignored",
                 maps: str | None = None, annotations: str | None = None, **options: Any):
        root = Path(root)
        if maps is None:
            maps = next((name for name in CONTEXT_MAPS if (root / name).is_dir()), None)
        if maps not in CONTEXT_MAPS:
            raise SampleError(f"There are no annotations in {root}: put them into one of the "
                              f"folders {', '.join(CONTEXT_MAPS)}, whose values differ, or say "
                              "which of these they are with maps=... and annotations=FOLDER.")
        ending, meaning = CONTEXT_MAPS[maps]
        folder = _folder(root, annotations or maps)
        if (folder / f"pc59_{split}").is_dir():  # detectron2 keeps the splits apart
            folder = folder / f"pc59_{split}"
        lists = [root / "ImageSets" / "SegmentationContext" / f"{split}.txt", root / f"{split}.txt"]
        stems = _listed(next((path for path in lists if path.is_file()), lists[0]))
        super().__init__("context-59" if background == "ignored" else "context-60", split,
                         CONTEXT_59,
                         _paired(_folder(root, "JPEGImages"), folder, stems, ending, False),
                         meaning, background, **options)


def _folder(root: Path, *names: str) -> Path:
    """The first of these folders that exists."""
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise SampleError(f"There is no folder {root / names[0]}; `t4s data` says "
                      "where its files come from and how they lie.")


def _listed(path: Path) -> list[str]:
    if not path.is_file():
        raise SampleError(f"The list of images {path} does not exist; unpack ImageSets too.")
    return [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines()
            if line.strip()]


def _paired(photos: Path, annotations: Path, stems: Iterable[str], ending: str,
            all_photos: bool = True) -> list[tuple[Path, Path]]:
    """Photo and annotation of each stem; with ``all_photos`` also of photos without annotations."""
    stems = list(stems)
    if all_photos:
        stems = sorted({*stems, *(path.stem for path in photos.glob("*.jpg"))})
    return [(photos / f"{stem}.jpg", annotations / f"{stem}{ending}") for stem in stems]


def _check_object_info(path: Path) -> None:
    """The names of ADE20K's own table must be ours, in our order."""
    if not path.is_file():
        return
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    names = tuple(row[-1].split(",")[0].strip() for row in rows if len(row) > 1)
    if names != ADE20K_150:
        wrong = next((f"row {k}: {a!r}, not {b!r}" for k, (a, b) in
                      enumerate(zip(names, ADE20K_150), 1) if a != b), f"{len(names)} rows")
        raise SampleError(f"{path} is not the class list of the 150-class benchmark ({wrong}); use "
                          "the files of ADEChallengeData2016.zip.")
