"""The RefCOCO family on its official files: refCLEF, RefCOCO, RefCOCO+, RefCOCOg, gRefCOCO.

``t4s data`` shows how the files lie. Expressions, ``refs(<split_by>).p`` and for gRefCOCO
``grefs(unc).json``, may be given as ``.json`` or ``.p``.

Sources: the RefCOCO family, https://github.com/lichengunc/refer (Kazemzadeh et al., EMNLP 2014; Yu
et al., ECCV 2016; Mao et al., CVPR 2016); gRefCOCO, https://github.com/henghuiding/gRefCOCO (Liu et
al., CVPR 2023). The photos are COCO's train2014 and those of SAIAPR TC-12.
"""

from __future__ import annotations

import io
import pickle
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from .coco import is_known, read_annotations
from .dataset import (
    BadRow, Dataset, Record, check_label, choose, first_there, list_of, needed, read_json,
)
from .sample import Sample, SampleError


class Layout(NamedTuple):
    """Where a data set keeps its photos, and the splittings that exist of it.

    ``any_number``: an expression may have several targets or none.
    """

    photos: str
    split_bys: tuple[str, ...]
    any_number: bool = False


_TRAIN2014 = "images/mscoco/images/train2014"

DATASETS = {
    "refclef": Layout("images/saiapr_tc-12", ("unc", "berkeley")),
    "refcoco": Layout(_TRAIN2014, ("unc", "google")),
    "refcoco+": Layout(_TRAIN2014, ("unc",)),
    "refcocog": Layout(_TRAIN2014, ("umd", "google")),
    "grefcoco": Layout(_TRAIN2014, ("unc",), any_number=True),
}
"""The data sets; all but gRefCOCO have one target per expression."""

_NO_TARGET = -1


class ReferDataset(Dataset):
    """Expressions with the objects that they name, one sample per sentence, in the file's order.

    Args:
        root: folder with the layout of the data set.
        dataset, split_by: a key of `DATASETS` and one of its splittings (by default the first).
        split: ``"train"``, ``"val"``, ``"testA"``, ... ; None for all of them.
        checks: see `t4s_helpers.data.dataset.Dataset`; sentences are what is counted.

    Samples have the task ``res`` (gRefCOCO: ``gres``), the photo as a path, the sentence as the one
    label, and its mask drawn when it is asked for: the union of the targets, which may be none.
    ``meta`` holds ``dataset``, ``split_by``, ``ref_id``, ``sent_id``, ``image_id``, ``ann_ids``,
    ``category``, and for several targets the single objects (``instance_masks``,
    ``instance_owners``). Sentences that cannot be a label (empty ones, "others") are excluded.

    Raises:
        SampleError: a file, a photo or a referenced id is missing, the file of expressions holds more
            than plain data, an id occurs twice, an outline cannot be drawn on its photo, or there is
            no such data set, splitting or split; the message names file and row.
    """

    def __init__(self, root: str | Path, dataset: str = "refcoco", split_by: str | None = None,
                 split: str | None = None, **checks: Any):
        choose("dataset", dataset, tuple(DATASETS))
        layout = DATASETS[dataset]
        self.split_by, self.any_number = split_by or layout.split_bys[0], layout.any_number
        self.photos = Path(root) / layout.photos
        path = _find(Path(root), dataset, layout, self.split_by)
        refs = _read_refs(path)
        splits = sorted({str(ref.get("split")) for ref in refs})
        if split is not None and split not in splits:
            raise SampleError(f"{path} has no split {split!r}; it has {', '.join(splits) or 'none'}.")
        self.coco, self._checked = read_annotations(Path(root) / dataset / "instances.json"), None
        rows = [(ref, sentence) for ref in refs if split in (None, str(ref.get("split")))
                for sentence in _sentences(ref)]
        super().__init__(dataset, split or "all", "gres" if self.any_number else "res", path, rows,
                         **checks)

    def row_id(self, row: tuple[Record, Any]) -> str:
        ref, sentence = row
        number = sentence.get("sent_id") if isinstance(sentence, dict) else None
        return f"{self.name}({self.split_by})/{ref.get('ref_id')}/{number}"

    def row_image(self, row: tuple[Record, Any]) -> Path:
        return self.photos / self.coco.images[row[0]["image_id"]]["file_name"]

    def make(self, row: tuple[Record, Any]) -> Sample:
        ref, sentence = row
        annotations = self._targets(ref)
        masks, objects = self.coco.masks(ref["image_id"], annotations, [0] * len(annotations), 1)
        meta = {"dataset": self.name, "split_by": self.split_by, "ref_id": ref["ref_id"],
                "sent_id": sentence.get("sent_id"), "image_id": ref["image_id"],
                "ann_ids": tuple(one["id"] for one in annotations),
                "category": ", ".join(self.coco.categories[one["category_id"]] for one in annotations),
                **(objects if len(annotations) > 1 else {})}
        return Sample(self.row_id(row), self.row_image(row), (sentence["sent"],), masks, self.task,
                      str(ref["split"]), meta=meta)

    def check(self, row: tuple[Record, Any]) -> None:
        ref, sentence = row
        if ref is not self._checked:  # the sentences of a reference follow one another
            self._check_reference(ref)
            self._checked = ref
        if not isinstance(sentence, dict) or not isinstance(sentence.get("sent"), str):
            raise BadRow("sentence without text", f"Reference {ref['ref_id']!r} of {self.source} has a "
                         "sentence without text; fetch the official file.")
        check_label(sentence["sent"], self.row_id(row))

    def _check_reference(self, ref: Record) -> None:
        """Raise `BadRow` unless a reference, its targets and its photo can be used."""
        number, image_id, *_ = needed(ref, self.source, "ref_id", "image_id", "ann_id", "split", "sentences")
        where = f"Reference {number!r} of {self.source}"
        for annotation in self._targets(ref):
            self.coco.check(annotation)
            if annotation["image_id"] != image_id:
                raise BadRow("target in another image", f"{where} is about image {image_id!r}, but its "
                             f"annotation {annotation['id']!r} about image {annotation['image_id']!r}; "
                             "use the two files of one distribution.")
        if not is_known(image_id, self.coco.images):
            raise BadRow("unknown image", f"{where} is about image {image_id!r}, which "
                         f"{self.coco.path} does not list; fetch the complete file.")
        name, size = self.coco.photo(image_id)
        self.check_image(self.photos / name, f"image {image_id!r} of {self.coco.path}", size)

    def _targets(self, ref: Record) -> list[Record]:
        """The annotations that a reference names; gRefCOCO writes none as ``[-1]``."""
        where, said = f"Reference {ref['ref_id']!r} of {self.source}", ref.get("no_target")
        given = ref["ann_id"] if self.any_number and isinstance(ref["ann_id"], list) else [ref["ann_id"]]
        numbers = [number for k, number in enumerate(given) if number not in given[:k]]
        if self.any_number:
            numbers = [number for number in numbers if number != _NO_TARGET]
            if (said is not None and bool(said) == bool(numbers)) or (numbers and _NO_TARGET in given):
                raise BadRow("contradiction about targets", f"{where} has no_target {said!r} but the "
                             f"annotations {given!r}; it is not taken for a request without target: fetch "
                             "the official file.")
        for number in numbers:
            if not is_known(number, self.coco.annotations):
                raise BadRow("unknown annotation", f"{where} names annotation {number!r}, which "
                             f"{self.coco.path} does not have; use the two files of one distribution.")
        return [self.coco.annotations[number] for number in numbers]


def load_refer(root: str | Path, dataset: str = "refcoco", split_by: str | None = None,
               split: str | None = None) -> list[Sample]:
    """The samples of a `ReferDataset` as a list, whatever their number.

    For subsets and small files, where everything fits into memory; anything unusable is refused.
    Sentences that cannot be a label are left out with one warning that names them.
    """
    data = ReferDataset(root, dataset, split_by, split, counts="off", verify=False)
    if data.excluded:
        shown = ", ".join(one.detail for one in data.excluded[:5])
        warnings.warn(
            f"{len(data.excluded)} sentences of {data.source} cannot be labels and were left out: "
            f"{shown}{', ...' if len(data.excluded) > 5 else ''}", stacklevel=2)
    return list(data)


def _find(root: Path, dataset: str, layout: Layout, split_by: str) -> Path:
    """The file of expressions; whatever is missing of the layout is named."""
    stem, ending = ("grefs", ".json") if layout.any_number else ("refs", ".p")
    path = first_there(root / dataset, *(f"{stem}({split_by}){end}" for end in (ending, ".json", ".p")))
    parts = (path, root / dataset / "instances.json", root / layout.photos)
    missing = [part for part in parts if not part.exists()]
    if not missing:
        return path
    there = sorted(p.name for p in (root / dataset).glob(f"{stem}(*)*"))
    found = f" ({', '.join(there)} is there)" if there and path in missing else ""
    raise SampleError(
        f"{missing[0]} does not exist{found}; the layout is "
        f"{root}/{dataset}/{stem}({'|'.join(layout.split_bys)}){ending}, "
        f"{root}/{dataset}/instances.json and photos in {root}/{layout.photos}. Fetch what is "
        "missing from where `t4s data` says.")


class _PlainUnpickler(pickle.Unpickler):
    """Reads lists, dicts, texts and numbers; refuses whatever would import or run something."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _read_refs(path: Path) -> list[Record]:
    """The references of a file, without running what a pickle could carry."""
    if path.suffix == ".json":
        return list_of(read_json(path, "The file of expressions"), path)
    data = path.read_bytes()
    try:
        try:
            refs = _PlainUnpickler(io.BytesIO(data), encoding="utf-8").load()
        except UnicodeDecodeError:  # some official files hold texts of Python 2 in Latin-1
            refs = _PlainUnpickler(io.BytesIO(data), encoding="latin-1").load()
    except Exception as error:  # a broken pickle can fail in almost any way
        raise SampleError(
            f"{path} was not read, as it is no pickle of plain lists, dicts, texts and numbers "
            f"({' '.join(str(error).split()) or type(error).__name__}); fetch the official file."
        ) from error
    return list_of(refs, path)


def _sentences(ref: Record) -> list[Any]:
    """The sentences of a reference; one None where it has no list of them, so that it is checked."""
    return ref["sentences"] if isinstance(ref.get("sentences"), list) else [None]
