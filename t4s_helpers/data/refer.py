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

import pickle
import warnings
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..codec.encodings import DescriptorError, check_labels
from .coco import AnnotationMasks, CocoFile, Record, image_path, is_known, read_annotations
from .dataset import BadRow, Dataset, Guard, check_count
from .rows import Rows, read_rows
from .sample import Sample, SampleError, image_size


@dataclass(frozen=True)
class Layout:
    """Where a data set keeps its photos, and the splittings that exist of it."""

    photos: str
    split_bys: tuple[str, ...]
    any_number: bool = False
    """Whether an expression may have several targets or none."""


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

    Parameters
    ----------
    root:
        Folder with the layout shown above.
    dataset, split_by:
        A key of :data:`DATASETS` and one of its splittings (by default the first).
    split:
        ``"train"``, ``"val"``, ``"testA"``, ... ; None for all of them.
    published, counts:
        The number of sentences that the split should have, and what another one is: ``"strict"``,
        an error; ``"warn"``, a warning; ``"off"``, no matter, for a subset on purpose.
    bad:
        ``"refuse"``: an annotation that cannot be used is an error; ``"exclude"``: its sentences go
        to ``excluded``.
    verify:
        Also compare the size of every photo with its annotations; reads the photos' headers.

    Samples have the task ``res`` (gRefCOCO: ``gres``), the photo as a path, the sentence as the one
    label, and its mask drawn when it is asked for: the union of the targets, which may be none.
    ``meta`` holds ``dataset``, ``split_by``, ``ref_id``, ``sent_id``, ``image_id``, ``ann_ids``,
    ``category``, and for several targets the single objects (``instance_masks``,
    ``instance_owners``). Sentences that cannot be a label (empty ones, "others") are excluded.

    Raises
    ------
    SampleError
        When a file, a photo or a referenced id is missing, when the file of expressions holds more
        than plain data, when an id occurs twice, when an outline cannot be drawn on its photo, or
        when there is no such data set, splitting or split; the message names file and row.
    """

    def __init__(self, root: str | Path, dataset: str = "refcoco", split_by: str | None = None,
                 split: str | None = None, published: int | None = None, counts: str = "strict",
                 bad: str = "refuse", verify: bool = True):
        layout = _layout(dataset)
        self.root, self.split_by = Path(root), split_by or layout.split_bys[0]
        self.photos = self.root / layout.photos
        self.path = _refs_path(self.root, dataset, layout, self.split_by)
        super().__init__(dataset, split or "all", "gres" if layout.any_number else "res")
        self._any_number, self._last = layout.any_number, (-1, {})
        self._refs, chosen = _read_refs(self.path, split)
        self.coco = read_annotations(self.root / dataset / "instances.json")
        listed = self._index(chosen, Guard(bad), verify)
        check_count(listed, published, f"{split!r} of {self.path}", counts)

    def __len__(self) -> int:
        return len(self._ref_of)

    def id(self, index: int) -> str:
        ref = self._refs[int(self._ref_of[index])]
        return self._name(ref, ref["sentences"][self._sentence_of[index]])

    def image(self, index: int) -> Path:
        ref = self._refs[int(self._ref_of[index])]
        return self.photos / self.coco.images[ref["image_id"]]["file_name"]

    def sample(self, index: int) -> Sample:
        number, k = int(self._ref_of[index]), int(self._sentence_of[index])
        if self._last[0] != number:  # the sentences of one reference share all but their text
            self._last = number, self._common(self._refs[number])
        common = self._last[1]
        sentence = common["sentences"][k]
        given = {name: value for name, value in common.items() if name != "sentences"}
        given["meta"] = {**common["meta"], "sent_id": sentence.get("sent_id")}
        return Sample(self._name(common["meta"], sentence), labels=(sentence["sent"],), **given)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": (-1, {})}

    def _name(self, ref: Record, sentence: Record) -> str:
        number = sentence.get("sent_id") if isinstance(sentence, dict) else None
        return f"{self.name}({self.split_by})/{ref['ref_id']}/{number}"

    def _index(self, chosen: Sequence[int], guard: Guard, verify: bool) -> int:
        """Check what is asked for and note which sentences can be used; how many are listed."""
        from tqdm.auto import tqdm

        photos = _Photos(self.coco, self.photos, verify)
        ref_of, sentence_of, keys, listed = array("i"), array("i"), array("q"), 0
        for number in tqdm(chosen, self.path.name, unit=" refs", disable=len(chosen) < 20_000):
            ref = self._refs[int(number)]
            sentences, fault = [], self._fault(ref, int(number), photos)
            if isinstance(ref.get("sentences"), list):
                sentences = ref["sentences"]
            listed += len(sentences)
            if fault is not None:
                names = [self._name(ref, s) for s in sentences] if "ref_id" in ref else []
                for name in names or [f"{self.path.name}, reference number {number}"]:
                    guard.report(name, fault)
                continue
            for k, sentence in enumerate(sentences):
                if not _usable(sentence["sent"]):
                    guard.report(self._name(ref, sentence), BadRow(
                        "expression that cannot be a label",
                        f"{self._name(ref, sentence)} ({sentence['sent']!r})"), always_exclude=True)
                    continue
                ref_of.append(int(number))
                sentence_of.append(k)
                keys.append(hash((ref["ref_id"], sentence.get("sent_id"))))
        self._ref_of, self._sentence_of = np.asarray(ref_of), np.asarray(sentence_of)
        self._drop_twins(np.asarray(keys), guard)
        self.excluded = tuple(guard.excluded)
        return listed

    def _drop_twins(self, keys: np.ndarray, guard: Guard) -> None:
        """Of samples with the same id, only the first can stay."""
        _, first, times = np.unique(keys, return_index=True, return_counts=True)
        if not (times > 1).any():
            return
        suspects = np.flatnonzero(np.isin(keys, keys[first[times > 1]]))
        seen, twins = set(), []
        for index in suspects.tolist():
            name = self.id(index)
            if name in seen:
                guard.report(name, BadRow(
                    "duplicated id",
                    f"{name} occurs twice in {self.path}; fetch the official file."))
                twins.append(index)
            seen.add(name)
        self._ref_of = np.delete(self._ref_of, twins)
        self._sentence_of = np.delete(self._sentence_of, twins)

    def _fault(self, ref: Record, number: int, photos: _Photos) -> BadRow | None:
        """What is wrong with a reference, its targets or its photo."""
        try:
            _check_ref(ref, number, self.path)
            for annotation in self._targets(ref):
                self.coco.check(annotation)
                if annotation["image_id"] != ref["image_id"]:
                    raise BadRow(
                        "target in another image",
                        f"Reference {ref['ref_id']!r} of {self.path} is about image "
                        f"{ref['image_id']!r}, but its annotation {annotation['id']!r} about image "
                        f"{annotation['image_id']!r}; use the two files of one distribution.")
            photos.check(ref, self.path)
        except BadRow as fault:
            return fault
        return None

    def _targets(self, ref: Record) -> list[Record]:
        """The annotations that a reference names."""
        numbers = _target_ids(ref, self.path) if self._any_number else [ref["ann_id"]]
        for number in numbers:
            if not is_known(number, self.coco.annotations):
                raise BadRow(
                    "unknown annotation",
                    f"Reference {ref['ref_id']!r} of {self.path} names annotation {number!r}, "
                    f"which {self.coco.path} does not have; use the two files of one distribution.")
        return [self.coco.annotations[number] for number in numbers]

    def _common(self, ref: Record) -> dict[str, Any]:
        """What the samples of one reference share, and its sentences."""
        annotations = self._targets(ref)
        outlines = tuple(annotation["segmentation"] for annotation in annotations)
        image = self.coco.images[ref["image_id"]]
        size = int(image["height"]), int(image["width"])
        meta = {
            "ref_id": ref["ref_id"],
            "image_id": ref["image_id"],
            "ann_ids": tuple(annotation["id"] for annotation in annotations),
            "category": ", ".join(self.coco.categories[a["category_id"]] for a in annotations),
            "dataset": self.name,
            "split_by": self.split_by,
        }
        if len(annotations) > 1:
            meta["instance_masks"] = AnnotationMasks(tuple((o,) for o in outlines), size)
            meta["instance_owners"] = (0,) * len(outlines)
        return {"image": self.photos / image["file_name"], "masks": AnnotationMasks((outlines,), size),
                "task": self.task, "split": str(ref["split"]), "meta": meta,
                "sentences": ref["sentences"]}


def load_refer(
    root: str | Path,
    dataset: str = "refcoco",
    split_by: str | None = None,
    split: str | None = None,
) -> list[Sample]:
    """The samples of a :class:`ReferDataset` as a list, whatever their number.

    For subsets and small files, where everything fits into memory; anything unusable is refused.
    Sentences that cannot be a label are left out with one warning that names them.
    """
    data = ReferDataset(root, dataset, split_by, split, counts="off", verify=False)
    if data.excluded:
        shown = ", ".join(one.detail for one in data.excluded[:5])
        warnings.warn(
            f"{len(data.excluded)} sentences of {data.path} cannot be labels and were left out: "
            f"{shown}{', ...' if len(data.excluded) > 5 else ''}",
            stacklevel=2,
        )
    return list(data)


def _layout(dataset: str) -> Layout:
    if dataset not in DATASETS:
        raise SampleError(f"There is no data set {dataset!r}; choose one of {', '.join(DATASETS)}.")
    return DATASETS[dataset]


def _refs_path(root: Path, dataset: str, layout: Layout, split_by: str) -> Path:
    """The file of expressions; whatever is missing of the layout is named."""
    stem, ending = ("grefs", ".json") if layout.any_number else ("refs", ".p")
    names = [f"{stem}({split_by}){end}" for end in (ending, ".json", ".p")]
    path = next((p for p in (root / dataset / n for n in names) if p.exists()),
                root / dataset / names[0])
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
        "missing from where `python -m t4s_helpers.data` says."
    )


class _PlainUnpickler(pickle.Unpickler):
    """Reads lists, dicts, texts and numbers; refuses whatever would import or run something."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _read_refs(path: Path, split: str | None) -> tuple[Rows, Sequence[int]]:
    """The references of a file, and the numbers of those of a split."""
    names: dict[str, int] = {}
    codes = array("i")

    def note(_: str, ref: Record) -> None:
        codes.append(names.setdefault(str(ref.get("split")), len(names)))

    if path.suffix == ".json":
        rows = read_rows(path, on_row=note, what="The file of expressions").get("")
        if not isinstance(rows, Rows):
            raise SampleError(f"{path} holds no list of references; fetch the official file.")
    else:
        refs = _unpickled(path)
        for ref in refs:
            note("", ref)
        try:
            rows = Rows.packed(_slim(ref) for ref in refs)
        except TypeError as error:
            raise SampleError(f"{path} was not read, as it holds more than texts and numbers "
                              f"({error}); fetch the official file.") from error
    if split is None:
        return rows, range(len(rows))
    if split not in names:
        raise SampleError(f"{path} has no split {split!r}; it has "
                          f"{', '.join(sorted(names)) or 'none'}.")
    return rows, np.flatnonzero(np.asarray(codes) == names[split])


def _slim(ref: Record) -> Record:
    """A reference without what is not read from it: the sentences' tokens and raw texts."""
    kept = {key: ref[key] for key in (*_REF_KEYS, "no_target") if key in ref}
    if isinstance(kept.get("sentences"), list):
        kept["sentences"] = [
            {k: s[k] for k in ("sent_id", "sent") if k in s} if isinstance(s, dict) else None
            for s in kept["sentences"]
        ]
    return kept


def _unpickled(path: Path) -> list[Record]:
    """The references of an official pickle, without running what a pickle could carry."""
    try:
        refs = _unpickle(path)
    except Exception as error:  # a broken pickle can fail in almost any way
        raise SampleError(
            f"{path} was not read, as it is no pickle of plain lists, dicts, texts and numbers "
            f"({' '.join(str(error).split()) or type(error).__name__}); fetch the official file."
        ) from error
    if not isinstance(refs, list) or not all(isinstance(ref, dict) for ref in refs):
        raise SampleError(f"{path} holds no list of references; fetch the official file.")
    return refs


def _unpickle(path: Path) -> Any:
    """Some official files were written by Python 2, whose texts may be UTF-8 or Latin-1 bytes."""
    try:
        with path.open("rb") as file:
            return _PlainUnpickler(file, encoding="utf-8").load()
    except UnicodeDecodeError:
        with path.open("rb") as file:
            return _PlainUnpickler(file, encoding="latin-1").load()


def _check_ref(ref: Record, number: int, path: Path) -> None:
    absent = [key for key in _REF_KEYS if key not in ref]
    if absent:
        raise BadRow("incomplete reference", f"Reference number {number} of {path} lacks "
                     f"{', '.join(absent)}; fetch the official file.")
    texts = isinstance(ref["sentences"], list) and all(
        isinstance(s, dict) and isinstance(s.get("sent"), str) for s in ref["sentences"])
    if not texts:
        raise BadRow("sentence without text", f"Reference {ref['ref_id']!r} of {path} has a "
                     "sentence without text; fetch the official file.")


def _target_ids(ref: Record, path: Path) -> list[Any]:
    """Annotation ids of a reference to any number of objects; gRefCOCO writes none as ``[-1]``."""
    given = ref["ann_id"] if isinstance(ref["ann_id"], list) else [ref["ann_id"]]
    numbers = [number for number in dict.fromkeys(map(_hashable, given)) if number != _NO_TARGET]
    said = ref.get("no_target")
    if said is not None and bool(said) != (not numbers) or (numbers and _NO_TARGET in given):
        raise BadRow(
            "contradiction about targets",
            f"Reference {ref['ref_id']!r} of {path} has no_target {said!r} but the annotations "
            f"{given!r}; it is not taken for a request without target: fetch the official file.")
    return numbers


def _hashable(number: Any) -> Any:
    return number if isinstance(number, (int, str)) else repr(number)


class _Photos:
    """Whether photos are there and of the size that their annotations say; each looked at once."""

    def __init__(self, coco: CocoFile, folder: Path, verify: bool):
        self.coco, self.folder, self.verify = coco, folder, verify
        self._fine = np.zeros(len(coco.images), bool)
        self._faults: dict[Any, BadRow] = {}

    def check(self, ref: Record, path: Path) -> None:
        """Raise :class:`BadRow` unless the photo of a reference can be used."""
        image_id = ref["image_id"]
        if not is_known(image_id, self.coco.images):
            raise BadRow("unknown image", f"Reference {ref['ref_id']!r} of {path} is about image "
                         f"{image_id!r}, which {self.coco.path} does not list; fetch the complete "
                         "file.")
        place = self.coco.images.place(image_id)
        if image_id in self._faults:
            raise self._faults[image_id]
        if not self._fine[place]:
            try:
                check_photo(self.coco, image_id, self.folder, self.verify)
            except BadRow as fault:
                self._faults[image_id] = fault
                raise
            self._fine[place] = True


def check_photo(coco: CocoFile, image_id: Any, folder: Path, verify: bool = True) -> None:
    """Raise :class:`BadRow` unless a photo is there and, with ``verify``, has its stated size."""
    path = image_path(coco, image_id, folder)
    if not verify:
        return
    try:
        found = image_size(path)
    except SampleError as error:
        raise BadRow("unreadable image", str(error)) from error
    if found != coco.size(image_id):
        height, width = coco.size(image_id)
        raise BadRow(
            "image of another size",
            f"{path} is {found[1]} x {found[0]} pixels (width x height), but {coco.path} says "
            f"{width} x {height}; use the photos that the annotations were drawn on.")


def _usable(label: str) -> bool:
    try:
        check_labels((label,))
    except DescriptorError:
        return False
    return True
