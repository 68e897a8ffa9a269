"""The RefCOCO family on its official files: refCLEF, RefCOCO, RefCOCO+, RefCOCOg.

Layout, as the public distribution unpacks::

    <root>/<dataset>/refs(<split_by>).p            expressions and what they refer to
    <root>/<dataset>/instances.json                outlines, COCO's format
    <root>/images/mscoco/images/train2014/*.jpg    photos (refCLEF: images/saiapr_tc-12)
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..rle import DescriptorError, check_labels
from .coco import AnnotationMasks, CocoFile, Record, image_path, is_known, read_annotations
from .sample import Sample, SampleError


@dataclass(frozen=True)
class Layout:
    """Where a data set keeps its photos, and the splittings that exist of it."""

    photos: str
    split_bys: tuple[str, ...]


_TRAIN2014 = "images/mscoco/images/train2014"

DATASETS = {
    "refclef": Layout("images/saiapr_tc-12", ("unc", "berkeley")),
    "refcoco": Layout(_TRAIN2014, ("unc", "google")),
    "refcoco+": Layout(_TRAIN2014, ("unc",)),
    "refcocog": Layout(_TRAIN2014, ("umd", "google")),
}
"""Data sets of one target per expression. Those with any number of targets (gRefCOCO) differ in
:func:`_read_refs` and :func:`_targets` only."""

_REF_KEYS = ("ref_id", "image_id", "ann_id", "split", "sentences")


def load_refer(
    root: str | Path,
    dataset: str = "refcoco",
    split_by: str = "unc",
    split: str | None = None,
) -> list[Sample]:
    """One sample per sentence.

    Parameters
    ----------
    root:
        Folder with the layout shown above.
    dataset, split_by:
        A key of :data:`DATASETS` and one of its splittings.
    split:
        ``"train"``, ``"val"``, ``"testA"``, ... ; None for all of them.

    Returns
    -------
    Samples in the file's order, task ``res``: the image as a path, the sentence as the one label,
    its mask drawn when it is asked for. ``meta`` holds ``dataset``, ``split_by``, ``ref_id``,
    ``sent_id``, ``image_id``, ``ann_ids`` and ``category``. Sentences that cannot be a label
    (empty ones, "others") are left out with one warning that names them.

    Raises
    ------
    SampleError
        When a file, a photo or a referenced id is missing, when the file of expressions holds
        more than plain data, or when there is no such data set, splitting or split.
    """
    layout = _layout(dataset)
    root = Path(root)
    refs_path = root / dataset / f"refs({split_by}).p"
    _check_layout(root, dataset, layout, refs_path)
    refs = _of_split(_read_refs(refs_path), split, refs_path)
    coco = read_annotations(root / dataset / "instances.json")
    samples: list[Sample] = []
    unusable: list[str] = []
    for ref in refs:
        common = _common(coco, ref, root / layout.photos, refs_path)
        common["meta"].update(dataset=dataset, split_by=split_by)
        for sentence in _sentences(ref, refs_path):
            name = f"{dataset}({split_by})/{ref['ref_id']}/{sentence['sent_id']}"
            label = sentence["sent"]
            if _usable(label):
                meta = {**common["meta"], "sent_id": sentence["sent_id"]}
                samples.append(Sample(name, **{**common, "labels": (label,), "meta": meta}))
            else:
                unusable.append(f"{name} ({label!r})")
    _warn_of(unusable, refs_path)
    return samples


def _layout(dataset: str) -> Layout:
    if dataset not in DATASETS:
        raise SampleError(f"There is no data set {dataset!r}; choose one of {', '.join(DATASETS)}.")
    return DATASETS[dataset]


def _check_layout(root: Path, dataset: str, layout: Layout, refs_path: Path) -> None:
    needed = (refs_path, root / dataset / "instances.json", root / layout.photos)
    missing = [path for path in needed if not path.exists()]
    if not missing:
        return
    there = sorted(path.name for path in (root / dataset).glob("refs(*).p"))
    found = f" ({', '.join(there)} is there)" if there and refs_path in missing else ""
    raise SampleError(
        f"{missing[0]} does not exist{found}; the layout is "
        f"{root}/{dataset}/refs({'|'.join(layout.split_bys)}).p, "
        f"{root}/{dataset}/instances.json and photos in {root}/{layout.photos}."
    )


class _PlainUnpickler(pickle.Unpickler):
    """Reads lists, dicts, texts and numbers; refuses whatever would import or run something."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _read_refs(path: Path) -> list[Record]:
    """The references of an official file, without running what a pickle could carry."""
    try:
        refs = _unpickle(path)
    except Exception as error:  # a broken pickle can fail in almost any way
        raise SampleError(
            f"{path} was not read, as it is no pickle of plain lists, dicts, texts and numbers "
            f"({' '.join(str(error).split()) or type(error).__name__}); fetch the official file."
        ) from error
    if not isinstance(refs, list) or not all(isinstance(ref, dict) for ref in refs):
        raise SampleError(f"{path} holds no list of references; fetch the official file.")
    for number, ref in enumerate(refs):
        absent = [key for key in _REF_KEYS if key not in ref]
        if absent:
            raise SampleError(
                f"Reference number {number} of {path} lacks {', '.join(absent)}; "
                "fetch the official file."
            )
    return refs


def _unpickle(path: Path) -> Any:
    """Some official files were written by Python 2, whose texts may be UTF-8 or Latin-1 bytes."""
    try:
        with path.open("rb") as file:
            return _PlainUnpickler(file, encoding="utf-8").load()
    except UnicodeDecodeError:
        with path.open("rb") as file:
            return _PlainUnpickler(file, encoding="latin-1").load()


def _of_split(refs: list[Record], split: str | None, path: Path) -> list[Record]:
    if split is None:
        return refs
    chosen = [ref for ref in refs if ref["split"] == split]
    if not chosen:
        names = ", ".join(sorted({str(ref["split"]) for ref in refs}))
        raise SampleError(f"{path} has no split {split!r}; it has {names or 'none'}.")
    return chosen


def _targets(coco: CocoFile, ref: Record, path: Path) -> list[Record]:
    """The annotations that a reference names; here always one."""
    if not is_known(ref["ann_id"], coco.annotations):
        raise SampleError(
            f"Reference {ref['ref_id']!r} of {path} names annotation {ref['ann_id']!r}, which "
            f"{coco.path} does not have; use the two files of one distribution."
        )
    return [coco.annotations[ref["ann_id"]]]


def _common(coco: CocoFile, ref: Record, photos: Path, path: Path) -> dict[str, Any]:
    """What the samples of one reference share: everything but the sentence."""
    annotations = _targets(coco, ref, path)
    for annotation in annotations:
        coco.check(annotation)
        if annotation["image_id"] != ref["image_id"]:
            raise SampleError(
                f"Reference {ref['ref_id']!r} of {path} is about image {ref['image_id']!r}, but "
                f"its annotation {annotation['id']!r} about image {annotation['image_id']!r}; "
                "use the two files of one distribution."
            )
    outlines = tuple(annotation["segmentation"] for annotation in annotations)
    return {
        "image": image_path(coco, ref["image_id"], photos),
        "masks": AnnotationMasks((outlines,), coco.size(ref["image_id"])),
        "task": "res",
        "split": str(ref["split"]),
        "meta": {
            "ref_id": ref["ref_id"],
            "image_id": ref["image_id"],
            "ann_ids": tuple(annotation["id"] for annotation in annotations),
            "category": ", ".join(coco.categories[a["category_id"]] for a in annotations),
        },
    }


def _sentences(ref: Record, path: Path) -> Iterator[Record]:
    for sentence in ref["sentences"]:
        if not isinstance(sentence, dict) or not isinstance(sentence.get("sent"), str):
            raise SampleError(
                f"Reference {ref['ref_id']!r} of {path} has a sentence without text; "
                "fetch the official file."
            )
        yield {"sent_id": None, **sentence}


def _usable(label: str) -> bool:
    try:
        check_labels((label,))
    except DescriptorError:
        return False
    return True


def _warn_of(unusable: list[str], path: Path) -> None:
    if unusable:
        shown = ", ".join(unusable[:5]) + (", ..." if len(unusable) > 5 else "")
        warnings.warn(
            f"{len(unusable)} sentences of {path} cannot be labels and were left out: {shown}",
            stacklevel=3,
        )
