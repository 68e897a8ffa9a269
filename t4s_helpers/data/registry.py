"""Everything that the workbook reads, by one name: public sets, drawn scenes, photos, own files.

``t4s data`` prints the table of public sets; :func:`load` is the one door to all of them::

    data = load("refcoco", split="testA", root="/data/refer")
    sample = data[0]
    data.exclusions()       # what was left out, and why
"""

from __future__ import annotations

import importlib
import os
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .dataset import Dataset
from .sample import Sample, SampleError

ROOT_VARIABLE = "T4S_DATA"
"""Environment variable with the folder of data sets, where no ``root`` is given."""


@dataclass(frozen=True)
class Entry:
    """What is known of a data set before any file is read."""

    name: str
    task: str
    """``res``, ``gres``, ``semantic``, ``vqa`` or ``conversation``."""
    splits: Mapping[str, Any]
    """Split -> published number of samples; None where none is known, several where versions differ."""
    reader: str
    """``module:callable`` below ``t4s_helpers.data``, called with ``root`` and the options."""
    options: Mapping[str, Any]
    layout: str
    """What the folder ``root`` must hold."""
    source: str
    """Where the files come from."""
    licence: str
    metric: str
    """How it is scored, in the words of `t4s_helpers.evaluation.metrics`."""
    note: str = ""
    folder: str = ""
    """Folder below ``T4S_DATA`` where the layout starts, if no ``root`` is given."""
    reported: str = ""
    """The split that papers report first, where it is not the validation split."""

    @property
    def default_split(self) -> str:
        """The split that papers report first."""
        names = list(self.splits)
        return self.reported or next((n for n in names if n.startswith("val")), names[-1])


def load(name: str, split: str | None = None, root: str | Path | None = None, *,
         n: int | None = None, start: int = 0, counts: str = "strict", bad: str = "refuse",
         verify: bool = True, **options: Any) -> Dataset | list[Sample]:
    """Open a data set by name.

    Parameters
    ----------
    name:
        A key of :data:`ENTRIES`; ``"scenes"`` (drawn pictograms; options ``task`` and ``palette``),
        ``"photos"`` (the bundled ones), or the path of your own CSV file or COCO folder.
    n, start:
        Only so many samples, from this one on. Of scenes there is no end: 500 unless ``n`` says else.
    split:
        One of the entry's splits; by default the one that papers report first.
    root:
        The folder with the entry's layout; by default the entry's folder below the environment
        variable ``T4S_DATA``.
    counts:
        What a number of samples other than the published one is: ``"strict"``, an error; ``"warn"``,
        a warning; ``"off"``, no matter (a subset on purpose).
    bad:
        What an annotation that cannot be used is: ``"refuse"``, an error that names it;
        ``"exclude"``, an entry of ``dataset.excluded`` with a reason.
    verify:
        Also look at every image's header: is it an image, and of its annotation's size.
    options:
        For the reader, see the class that the entry names.

    Returns
    -------
    A list of samples for scenes, photos and own files; else a
    :class:`~t4s_helpers.data.dataset.Dataset`: ``len``, ``[i]`` (a Sample), ``[a:b]``, ``id(i)``,
    ``image(i)``, ``by_image()``, ``shuffled(seed)``, ``classes``, ``excluded``, ``exclusions()``.
    ``llava-665k`` holds :class:`~t4s_helpers.data.mixtures.Conversation` instead of samples.

    What samples hand on in ``meta``, beside ids:

    - ``res``, ``gres``: ``ann_ids`` (empty: no target), ``category``; with several targets the single
      objects. ``reasonseg``: ``ignore``, a mask source ``(1, H, W)`` of pixels that are not scored.
    - ``semantic``: labels are the classes that the image shows. ``class_ids`` are their values ``k``
      in the class map (``dataset.classes[k-1]``), ``class_map`` the map itself, read by its
      ``.read()``: int32 ``(H, W)``, 0 background, 255 ignored. ``dataset.background`` and
      ``dataset.ignore_index`` are what `t4s_helpers.evaluation.metrics.MeanIoU` wants to know.
    - ``vqa``: ``question`` ends with how to answer; ``answers``, all true answers; ``rule``, how
      they are compared (``exact``, ``vqav2``, ``yes-no``). Without public answers ``answer`` is None.

    Raises
    ------
    SampleError
        An unknown name or split, no root, or whatever the reader finds; before any sample is made.
    """
    if name == "scenes":
        return _scenes(split or "test", 500 if n is None else n, start, **options)
    end = None if n is None else start + n
    if name == "photos" or name not in ENTRIES and Path(name).expanduser().exists():
        return _own(name, split or "train")[start:end]
    entry = find(name)
    split = split or entry.default_split
    if split not in entry.splits:
        raise SampleError(f"{name} has no split {split!r}; choose one of "
                          f"{', '.join(entry.splits)}.")
    module, _, called = entry.reader.partition(":")
    reader = getattr(importlib.import_module(f".{module}", __package__), called)
    dataset = reader(_root(entry, root), split=split, published=entry.splits[split],
                     counts=counts, bad=bad, verify=verify, **{**entry.options, **options})
    return dataset if n is None and not start else dataset[start:end]


def _scenes(split: str, n: int, start: int, task: str = "res", palette: str = "seen") -> list:
    """``n`` samples about drawn scenes; tuples of samples, turn by turn, for ``"conversation"``."""
    from .expressions import scene_dialogue, scene_samples

    if task == "conversation":
        return [scene_dialogue(split, k) for k in range(start, start + n)]
    return scene_samples(split, n, task, start, palette=palette)


def _own(name: str, split: str) -> list[Sample]:
    from .own import load_own
    from .photos import photo_samples

    return photo_samples() if name == "photos" else load_own(Path(name).expanduser(), split)


def find(name: str) -> Entry:
    """The entry of that name; otherwise a :class:`SampleError` lists the names."""
    if name not in ENTRIES:
        raise SampleError(f"There is no data set and no file {name!r}; give the path of a CSV file or COCO "
                          f"folder, or choose scenes, photos, {', '.join(ENTRIES)}.")
    return ENTRIES[name]


def _root(entry: Entry, root: str | Path | None) -> Path:
    if root is None:
        base = os.environ.get(ROOT_VARIABLE)
        if not base:
            raise SampleError(
                f"{entry.name} needs its folder: give root=..., or set {ROOT_VARIABLE} to the "
                f"folder that holds {entry.folder or 'the data sets'}/. The layout is: "
                f"{entry.layout}")
        root = Path(base, entry.folder)
    root = Path(root).expanduser()
    if not root.is_dir():
        raise SampleError(f"The folder {root} of {entry.name} does not exist. The layout below it "
                          f"is: {entry.layout}. Source: {entry.source}")
    return root


def _refer(name: str, dataset: str, split_by: str, task: str, splits, source: str,
           note: str = "") -> Entry:
    photos = "images/saiapr_tc-12" if dataset == "refclef" else "images/mscoco/images/train2014"
    file = "grefs({}).json" if dataset == "grefcoco" else "refs({}).p"
    return Entry(
        name, task, splits, "refer:ReferDataset", {"dataset": dataset, "split_by": split_by},
        f"{dataset}/{file.format(split_by)}, {dataset}/instances.json, {photos}/*.jpg",
        source,
        "expressions: research use as their authors state; COCO annotations CC BY 4.0, photos under "
        "their Flickr licences" if dataset != "refclef" else
        "expressions and SAIAPR TC-12 photos: research use as their authors state",
        "cIoU, gIoU" + (", N-acc, T-acc" if task == "gres" else ", box Acc@0.5"), note, "refer",
    )


_REFER = "https://github.com/lichengunc/refer"
_VOC = "http://host.robots.ox.ac.uk/pascal/VOC"
_POPE = "https://github.com/AoiDragon/POPE (output/coco)"
_COCO_TERMS = "annotations CC BY 4.0; photos under their Flickr licences"


def _semantic(name: str, reader: str, splits, layout: str, source: str, licence: str, folder: str,
              note: str = "", **options) -> Entry:
    return Entry(name, "semantic", splits, f"semantic:{reader}", options, layout, source, licence,
                 "mIoU, conventions as arguments", note, folder)


def _vqa(name: str, reader: str, splits, layout: str, source: str, licence: str, rule: str,
         note: str = "", reported: str = "", **options) -> Entry:
    metric = "accuracy and F1 of 'yes'" if rule == "yes-no" else f"VQA accuracy, rule '{rule}'"
    return Entry(name, "vqa", splits, f"vqa:{reader}", options, layout, source, licence, metric,
                 note, name.partition("-")[0], reported)


_LIST = [
    _refer("refclef", "refclef", "unc", "res",
           dict.fromkeys(("train", "val", "testA", "testB", "testC")), _REFER,
           "no published count is checked"),
    _refer("refclef-berkeley", "refclef", "berkeley", "res",
           dict.fromkeys(("train", "val", "test")), _REFER, "no published count is checked"),
    _refer("refcoco", "refcoco", "unc", "res",
           {"train": 120_624, "val": 10_834, "testA": 5_657, "testB": 5_095}, _REFER),
    _refer("refcoco-google", "refcoco", "google", "res",
           dict.fromkeys(("train", "val", "test")), _REFER, "no published count is checked"),
    _refer("refcoco+", "refcoco+", "unc", "res",
           {"train": 120_191, "val": 10_758, "testA": 5_726, "testB": 4_889}, _REFER),
    _refer("refcocog", "refcocog", "umd", "res",
           {"train": 80_512, "val": 4_896, "test": 9_602}, _REFER),
    _refer("refcocog-google", "refcocog", "google", "res",
           {"train": 85_474, "val": 9_536}, _REFER),
    _refer("grefcoco", "grefcoco", "unc", "gres",
           {"train": 209_344, "val": 16_870, "testA": 18_712, "testB": 14_933},
           "https://github.com/henghuiding/gRefCOCO", "several targets or none"),
    Entry("reasonseg", "res", {"train": 239, "val": 200, "test": 779}, "reason:ReasonSeg", {},
          "train/*.jpg with *.json of the same name, val/..., test/...",
          "https://github.com/dvlab-research/LISA#dataset", "research use as its authors state",
          "cIoU, gIoU, without the pixels of meta['ignore']",
          "counted in images; a training image has several instructions", "ReasonSeg"),
    _semantic("cocostuff", "CocoStuff", {"train2017": 118_287, "val2017": 5_000},
              "images/{train2017,val2017}/*.jpg, annotations/{train2017,val2017}/*.png "
              "(stuffthingmaps; or *_labelTrainIds.png)",
              "https://github.com/nightrome/cocostuff (stuffthingmaps_trainval2017.zip)",
              "annotations CC BY 4.0; photos under their Flickr licences", "cocostuff",
              "171 classes"),
    _semantic("ade20k-150", "Ade20k", {"training": 20_210, "validation": 2_000},
              "images/{training,validation}/*.jpg, annotations/{training,validation}/*.png, "
              "objectInfo150.txt",
              "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
              "annotations BSD-3; images for non-commercial research", "ADEChallengeData2016"),
    _semantic("context-59", "PascalContext", {"train": 4_998, "val": 5_105},
              "JPEGImages/*.jpg, SegmentationClassContext/*.png (or trainval/*.mat), "
              "ImageSets/SegmentationContext/{train,val}.txt",
              f"https://cs.stanford.edu/~roozbeh/pascal-context; photos {_VOC}/voc2010",
              "research use as the authors and Flickr's terms state", "VOCdevkit/VOC2010",
              "background is not scored", background="ignored"),
    _semantic("context-60", "PascalContext", {"train": 4_998, "val": 5_105},
              "as context-59", f"https://cs.stanford.edu/~roozbeh/pascal-context; photos {_VOC}/voc2010",
              "research use as the authors and Flickr's terms state", "VOCdevkit/VOC2010",
              "background is a class", background="class"),
    _semantic("voc-20", "Voc", {"train": 1_464, "val": 1_449},
              "JPEGImages/*.jpg, SegmentationClass/*.png, ImageSets/Segmentation/{train,val}.txt",
              f"{_VOC}/voc2012", "research use; photos under Flickr's terms", "VOCdevkit/VOC2012",
              "background is not scored", background="ignored"),
    _semantic("voc-21", "Voc", {"train": 1_464, "val": 1_449}, "as voc-20", f"{_VOC}/voc2012",
              "research use; photos under Flickr's terms", "VOCdevkit/VOC2012",
              "background is a class", background="class"),
    _vqa("vqav2", "VqaV2", {"train2014": 443_757, "val2014": 214_354, "test-dev2015": 107_394,
                            "test2015": 447_793},
         "v2_OpenEnded_mscoco_{split}_questions.json, v2_mscoco_{split}_annotations.json, "
         "{train2014,val2014,test2015}/*.jpg", "https://visualqa.org/download.html", _COCO_TERMS,
         "vqav2", "test answers are not public"),
    _vqa("gqa", "Gqa", {"train": 943_000, "val": 132_062, "testdev": 12_578},
         "questions1.2/{split}_balanced_questions.json, images/*.jpg",
         "https://cs.stanford.edu/people/dorarad/gqa/download.html",
         "annotations CC BY 4.0; images of Visual Genome", "exact", reported="testdev"),
    _vqa("vizwiz", "VizWiz", {"train": 20_523, "val": 4_319, "test": 8_000},
         "Annotations/{train,val,test}.json, {train,val,test}/*.jpg",
         "https://vizwiz.org/tasks-and-datasets/vqa", "CC BY 4.0", "vqav2",
         "test answers are not public"),
    _vqa("scienceqa", "ScienceQa", {"train": 12_726, "val": 4_241, "test": 4_241},
         "problems.json, pid_splits.json, images/{train,val,test}/{id}/image.png",
         "https://github.com/lupantech/ScienceQA", "CC BY-NC-SA 4.0", "exact",
         "questions without a picture are excluded and counted", reported="test"),
    _vqa("textvqa", "TextVqa", {"train": 34_602, "val": 5_000, "test": 5_734},
         "TextVQA_0.5.1_{split}.json, train_images/*.jpg (train and val), test_images/*.jpg",
         "https://textvqa.org/dataset", "CC BY 4.0; photos of Open Images", "vqav2",
         "test answers are not public"),
    *(_vqa(f"pope-{kind}", "Pope", {"test": published},
           f"coco_pope_{kind}.json, val2014/*.jpg", _POPE, "MIT; " + _COCO_TERMS, "yes-no",
           kind=kind)
      for kind, published in (("random", (2_910, 3_000)), ("popular", 3_000),
                              ("adversarial", 3_000))),
    Entry("llava-665k", "conversation", {"train": 665_298}, "vqa:LlavaMix", {},
          "llava_v1_5_mix665k.json, coco/train2017, gqa/images, ocr_vqa/images, "
          "textvqa/train_images, vg/VG_100K, vg/VG_100K_2",
          "https://huggingface.co/datasets/liuhaotian/LLaVA-Instruct-150K",
          "CC BY-NC 4.0 and the terms of its parts", "none: for training",
          "conversations, some without a picture", "llava"),
]

ENTRIES: dict[str, Entry] = {entry.name: entry for entry in _LIST}
"""All data sets by name."""


def table() -> list[dict[str, str]]:
    """The entries as rows of text, for printing and for notebooks."""
    return [
        {
            "name": one.name, "task": one.task,
            "splits": ", ".join(name if n is None else f"{name} {_numbers(n)}"
                                for name, n in one.splits.items()),
            "metric": one.metric, "layout": one.layout, "source": one.source,
            "licence": one.licence, "folder": one.folder, "note": one.note,
        }
        for one in ENTRIES.values()
    ]


def _numbers(n: Any) -> str:
    return " or ".join(f"{m:,}" for m in ((n,) if isinstance(n, int) else n))


def listing() -> str:
    """The table as text, a paragraph for each data set."""
    paragraphs = []
    for row in table():
        lines = [f"{row['name']}  ({row['task']}: {row['metric']})"]
        for key in ("splits", "layout", "folder", "source", "licence", "note"):
            if row[key]:
                value = f"${ROOT_VARIABLE}/{row[key]}" if key == "folder" else row[key]
                lines.append(textwrap.fill(f"{key}: {value}", 100, initial_indent="    ",
                                           subsequent_indent="        ",
                                           break_long_words=False, break_on_hyphens=False))
        paragraphs.append("\n".join(lines))
    return "\n\n".join(paragraphs)
