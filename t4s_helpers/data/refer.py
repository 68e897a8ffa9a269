"""The RefCOCO family on its official files: refCLEF, RefCOCO, RefCOCO+, RefCOCOg, gRefCOCO.

Layout, as the public distributions unpack::

    <root>/<dataset>/refs(<split_by>).p            expressions and what they refer to
    <root>/<dataset>/instances.json                outlines, COCO's format
    <root>/images/mscoco/images/train2014/*.jpg    photos (refCLEF: images/saiapr_tc-12)

gRefCOCO has ``grefs(unc).json`` instead; any expressions may be given as ``.json`` or ``.p``.

Sources: the RefCOCO family, https://github.com/lichengunc/refer (Kazemzadeh et al., EMNLP 2014; Yu
et al., ECCV 2016; Mao et al., CVPR 2016); gRefCOCO, https://github.com/henghuiding/gRefCOCO (Liu et
al., CVPR 2023). The photos are COCO's train2014 and those of SAIAPR TC-12.
"""

from __future__ import annotations

import io
import pickle
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .coco import AnnotationMasks, is_known, read_annotations
from .dataset import BadRow, Dataset, Inspection, Record, list_of, progress, read_json
from .sample import Sample, SampleError


@dataclass(frozen=True)
class Layout:
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

_REF_KEYS = ("ref_id", "image_id", "ann_id", "split", "sentences")
_NO_TARGET = -1


class ReferDataset(Dataset):
    """Expressions with the objects that they name, one sample per sentence, in the file's order.

    Args:
        root: folder with the layout shown above.
        dataset, split_by: a key of `DATASETS` and one of its splittings (by default the first).
        split: ``"train"``, ``"val"``, ``"testA"``, ... ; None for all of them.
        checks: see `t4s_helpers.data.dataset.Inspection`; sentences are what is counted.

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
        if dataset not in DATASETS:
            raise SampleError(f"There is no data set {dataset!r}; choose one of {', '.join(DATASETS)}.")
        layout = DATASETS[dataset]
        super().__init__(dataset, split or "all", "gres" if layout.any_number else "res")
        self.split_by, self.any_number = split_by or layout.split_bys[0], layout.any_number
        self.photos = Path(root) / layout.photos
        self.path = _find(Path(root), dataset, layout, self.split_by)
        inspection = Inspection(**checks)
        refs = _of_split(_read_refs(self.path), split, self.path)
        self.coco = read_annotations(Path(root) / dataset / "instances.json")
        self._items: list[tuple[Record, Record]] = []
        listed = sum(self._inspect(*row, inspection) for row in progress(refs, self.path.name, "refs"))
        self.excluded = tuple(inspection.excluded)
        inspection.count(listed, f"{split!r} of {self.path}")

    def __len__(self) -> int:
        return len(self._items)

    def id(self, index: int) -> str:
        return self._name(*self._items[index])

    def image(self, index: int) -> Path:
        return self.photos / self.coco.images[self._items[index][0]["image_id"]]["file_name"]

    def sample(self, index: int) -> Sample:
        ref, sentence = self._items[index]
        annotations = self._targets(ref)
        outlines, size = tuple(one["segmentation"] for one in annotations), self.coco.size(ref["image_id"])
        meta = {"dataset": self.name, "split_by": self.split_by, "ref_id": ref["ref_id"],
                "sent_id": sentence.get("sent_id"), "image_id": ref["image_id"],
                "ann_ids": tuple(one["id"] for one in annotations),
                "category": ", ".join(self.coco.categories[one["category_id"]] for one in annotations)}
        if len(annotations) > 1:
            meta["instance_masks"] = AnnotationMasks(tuple((o,) for o in outlines), size)
            meta["instance_owners"] = (0,) * len(outlines)
        return Sample(self._name(ref, sentence), self.image(index), (sentence["sent"],),
                      AnnotationMasks((outlines,), size), self.task, str(ref["split"]), meta=meta)

    def _name(self, ref: Record, sentence: Any) -> str:
        number = sentence.get("sent_id") if isinstance(sentence, dict) else None
        return f"{self.name}({self.split_by})/{ref['ref_id']}/{number}"

    def _inspect(self, number: int, ref: Record, inspection: Inspection) -> int:
        """Note which sentences of a reference can be used; returns how many it lists."""
        sentences = ref["sentences"] if isinstance(ref.get("sentences"), list) else []
        try:
            self._check(ref, number, inspection)
        except BadRow as fault:
            names = [self._name(ref, sentence) for sentence in sentences] if "ref_id" in ref else []
            for name in names or [f"{self.path.name}, reference number {number}"]:
                inspection.leave_out(name, fault)
            return len(sentences)
        for sentence in sentences:
            name = self._name(ref, sentence)
            with inspection.row(name):
                inspection.label(sentence["sent"], name)
                inspection.unique(name)
                self._items.append((ref, sentence))
        return len(sentences)

    def _check(self, ref: Record, number: int, inspection: Inspection) -> None:
        """Raise `BadRow` unless a reference, its targets and its photo can be used."""
        absent = [key for key in _REF_KEYS if key not in ref]
        if absent:
            raise BadRow("incomplete reference", f"Reference number {number} of {self.path} lacks "
                         f"{', '.join(absent)}; fetch the official file.")
        where = f"Reference {ref['ref_id']!r} of {self.path}"
        if not isinstance(ref["sentences"], list) or not all(
                isinstance(s, dict) and isinstance(s.get("sent"), str) for s in ref["sentences"]):
            raise BadRow("sentence without text", f"{where} has a sentence without text; fetch the "
                         "official file.")
        image_id = ref["image_id"]
        for annotation in self._targets(ref):
            self.coco.check(annotation)
            if annotation["image_id"] != image_id:
                raise BadRow("target in another image", f"{where} is about image {image_id!r}, but its "
                             f"annotation {annotation['id']!r} about image {annotation['image_id']!r}; "
                             "use the two files of one distribution.")
        if not is_known(image_id, self.coco.images):
            raise BadRow("unknown image", f"{where} is about image {image_id!r}, which "
                         f"{self.coco.path} does not list; fetch the complete file.")
        inspection.photo(self.photos / self.coco.images[image_id]["file_name"],
                         f"image {image_id!r} of {self.coco.path}", self.coco.size(image_id))

    def _targets(self, ref: Record) -> list[Record]:
        """The annotations that a reference names."""
        numbers = _target_ids(ref, self.path) if self.any_number else [ref["ann_id"]]
        for number in numbers:
            if not is_known(number, self.coco.annotations):
                raise BadRow("unknown annotation",
                             f"Reference {ref['ref_id']!r} of {self.path} names annotation {number!r}, "
                             f"which {self.coco.path} does not have; use the two files of one "
                             "distribution.")
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
            f"{len(data.excluded)} sentences of {data.path} cannot be labels and were left out: "
            f"{shown}{', ...' if len(data.excluded) > 5 else ''}", stacklevel=2)
    return list(data)


def _find(root: Path, dataset: str, layout: Layout, split_by: str) -> Path:
    """The file of expressions; whatever is missing of the layout is named."""
    stem, ending = ("grefs", ".json") if layout.any_number else ("refs", ".p")
    names = [f"{stem}({split_by}){end}" for end in (ending, ".json", ".p")]
    path = next((p for p in (root / dataset / n for n in names) if p.exists()), root / dataset / names[0])
    needed = (path, root / dataset / "instances.json", root / layout.photos)
    missing = [path for path in needed if not path.exists()]
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
    try:
        refs = _unpickle(path)
    except Exception as error:  # a broken pickle can fail in almost any way
        raise SampleError(
            f"{path} was not read, as it is no pickle of plain lists, dicts, texts and numbers "
            f"({' '.join(str(error).split()) or type(error).__name__}); fetch the official file."
        ) from error
    return list_of(refs, path)


def _unpickle(path: Path) -> Any:
    """Some official files were written by Python 2, whose texts may be UTF-8 or Latin-1 bytes."""
    data = path.read_bytes()
    try:
        return _PlainUnpickler(io.BytesIO(data), encoding="utf-8").load()
    except UnicodeDecodeError:
        return _PlainUnpickler(io.BytesIO(data), encoding="latin-1").load()


def _of_split(refs: list[Record], split: str | None, path: Path) -> list[tuple[int, Record]]:
    """The references of a split with their numbers in the file."""
    if split is not None and split not in {str(ref.get("split")) for ref in refs}:
        names = sorted({str(ref.get("split")) for ref in refs})
        raise SampleError(f"{path} has no split {split!r}; it has {', '.join(names) or 'none'}.")
    return [(number, ref) for number, ref in enumerate(refs) if split in (None, str(ref.get("split")))]


def _target_ids(ref: Record, path: Path) -> list[Any]:
    """Annotation ids of a reference to any number of objects; gRefCOCO writes none as ``[-1]``."""
    given = ref["ann_id"] if isinstance(ref["ann_id"], list) else [ref["ann_id"]]
    named = [number if isinstance(number, (int, str)) else repr(number) for number in given]
    numbers = [number for number in dict.fromkeys(named) if number != _NO_TARGET]
    said = ref.get("no_target")
    if (said is not None and bool(said) != (not numbers)) or (numbers and _NO_TARGET in given):
        raise BadRow(
            "contradiction about targets",
            f"Reference {ref['ref_id']!r} of {path} has no_target {said!r} but the annotations "
            f"{given!r}; it is not taken for a request without target: fetch the official file.")
    return numbers
