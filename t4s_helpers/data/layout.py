"""Where annotation tools put what they export: the annotation file, and the photos that it names.

Known are COCO's own folders (``annotations/instances_train2017.json``, ``train2017/``), CVAT's
(``annotations/instances_default.json``, ``images/``), Roboflow's (``train/_annotations.coco.json`` beside
the photos) and Label Studio's (``result.json``, ``images/``).
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from unicodedata import normalize

from .sample import SampleError

_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Words for the parts of a data set, as folders and files are called, and the split that each means."""


def find_annotations(source: Path, split: str) -> Path:
    """The annotation file of a split: ``source`` itself, or the one that its folder holds.

    Looked at are ``instances.json``, else all ``*.json`` of the folder, of its part of that name
    (``valid/`` for ``val``) and of ``annotations/``. A file that is named after another split does not
    count, and one named ``instances...`` goes before captions and key points. None, or more than one, is a
    `SampleError` that lists what is there.
    """
    for path in (source, source / "instances.json"):
        if path.is_file():
            return path
    wanted = _SPLITS.get(split, split)
    parts = [source / name for name in dict.fromkeys((split, *_SPLITS)) if _SPLITS.get(name, name) == wanted]
    there = [path for folder in (source, *parts, source / "annotations")
             for path in sorted(folder.glob("*.json"))]
    named = [path for path in there if path.parent in parts or wanted in _splits(path.stem)]
    found = named or [path for path in there if not _splits(path.stem)]
    found = [path for path in found if path.stem.startswith(("instances", "_annotations.coco"))] or found
    if len(found) == 1:
        return found[0]
    listed = ", ".join(map(str, (found or there)[:5])) or "neither instances.json nor annotations/*.json"
    raise SampleError(f"There is {'more than one' if found else 'no'} annotation file for split {split!r} "
                      f"in {source}: found was {listed}. Give the annotation file itself, or another split.")


def _splits(name: str) -> set[str]:
    """The splits that a file's name speaks of: ``{"val"}`` for ``instances_val2017``."""
    return {_SPLITS[word] for word in re.findall("[a-z]+", name.lower()) if word in _SPLITS}


def photo_folders(annotations: Path, given: str | Path | None = None) -> list[Path]:
    """Folders that may hold the photos of an annotation file, or the one that is ``given``.

    They are ``images/`` and the folder of the file, or the one above ``annotations/``; and in both the
    part that the end of the file's name says (``train2017`` of ``instances_train2017.json``).
    """
    if given is not None:
        if not Path(given).is_dir():
            raise SampleError(f"There is no folder of photos {given}; correct image_folder.")
        return [Path(given)]
    beside, part = annotations.parent, annotations.stem.rpartition("_")[2]
    above = [beside.parent] if beside.name == "annotations" else []
    tried = [folder for root in (*above, beside) for folder in (
        root / "images" / part, root / part, root / "images", root)]
    return [folder for folder in dict.fromkeys(tried) if folder.is_dir()]


def find_photos(names: Mapping[Any, Any], folders: Sequence[Path]) -> dict[Any, Path | None]:
    """For each image the file of its name, or else of the last part of it, where no other has the same."""
    last = {key: PurePosixPath(name.replace("\\", "/")).name for key, name in names.items()
            if isinstance(name, str)}
    times = Counter(last.values())
    return {key: find_file(name, folders) or find_file(times[last.get(key)] == 1 and last[key], folders)
            for key, name in names.items()}


def find_file(name: Any, folders: Sequence[Path]) -> Path | None:
    """The first file of that name in one of the folders, with any slashes and in any form of Unicode."""
    if not isinstance(name, str) or not name:
        return None
    name = name.replace("\\", "/")
    spelled = dict.fromkeys((name, normalize("NFC", name), normalize("NFD", name)))
    return next((folder / one for one in spelled for folder in folders if os.path.isfile(folder / one)), None)
