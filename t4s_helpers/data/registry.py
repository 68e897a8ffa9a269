"""Everything that the workbook reads, by one name: public sets, drawn scenes, photos, own files.

`load` is the one door to all of them::

    data = load("refcoco", split="testA", root="/data/refer")
    sample = data[0]
    data.exclusions()       # what was left out, and why

The public sets stand in ``registry.json``, and ``t4s data`` prints them.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .dataset import Dataset
from .sample import BEYOND_TASKS, Sample, SampleError

ROOT_VARIABLE = "T4S_DATA"
"""Environment variable with the folder of data sets, where no ``root`` is given."""

OWN_OPTIONS = {"image_folder", "apply_exif", "encoding", "task"}
"""Options of `load` that only a user's own files have, and ``task`` scenes."""


@dataclass(frozen=True)
class Entry:
    """What is known of a data set before any file is read; a row of ``registry.json``.

    Attributes:
        task: ``res``, ``gres``, ``semantic``, ``instances``, ``vqa`` or ``conversation``.
        splits: split -> published number of samples; None where none is known, several where releases
            differ.
        reader: ``module:callable`` below ``t4s_helpers.data``, called with ``root`` and the options.
        layout: what the folder ``root`` must hold.
        source: where the files come from.
        metric: how it is scored, in the words of `t4s_helpers.evaluation.metrics`.
        folder: below ``T4S_DATA``, where the layout starts if no ``root`` is given.
        reported: the split that papers report first, where it is not the validation split.
    """

    name: str
    task: str
    splits: Mapping[str, Any]
    reader: str
    layout: str
    source: str
    licence: str
    metric: str
    options: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    folder: str = ""
    reported: str = ""

    @property
    def default_split(self) -> str:
        """The split that papers report first."""
        names = list(self.splits)
        return self.reported or next((n for n in names if n.startswith("val")), names[-1])


ENTRIES: dict[str, Entry] = {name: Entry(name, **row) for name, row in json.loads(
    Path(__file__).with_name("registry.json").read_text(encoding="utf-8")).items()}
"""All public data sets by name."""


@contextmanager
def _collector_paused() -> Iterator[None]:
    """No garbage collection: millions of objects that all stay are read in two thirds of the time."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


@_collector_paused()
def load(name: str | Path, split: str | None = None, root: str | Path | None = None, *,
         n: int | None = None, start: int = 0, counts: str = "strict", bad: str = "refuse",
         verify: bool = True, **options: Any) -> Dataset | list[Sample]:
    """Open a data set by name.

    Args:
        name: a key of `ENTRIES`; ``"scenes"`` (drawn pictograms; options ``task`` and ``palette``),
            ``"photos"`` (the bundled ones), or the path of your own CSV file or COCO folder (options of
            `t4s_helpers.data.own.TableDataset` and `t4s_helpers.data.coco.CocoDataset`).
        split: one of the entry's splits; by default the one that papers report first, of your own files
            ``"train"``.
        root: the folder with the entry's layout, or the one above it; by default what the environment
            variable ``T4S_DATA`` says.
        n, start: only ``n`` samples, from number ``start`` on. Scenes have no end: 500 by default.
        counts: what a number of samples other than the published one is: ``"strict"``, an error;
            ``"warn"``, a warning; ``"off"``, no matter (a subset on purpose). Your own files have none.
        bad: what an annotation that cannot be used is: ``"refuse"``, an error that names it;
            ``"exclude"``, an entry of ``dataset.excluded`` with a reason.
        verify: also look at every image's header: is it an image, and of its annotation's size.
        options: for the reader.

    Returns:
        A list of samples for scenes and photos; else a `t4s_helpers.data.dataset.Dataset`.
        What its samples hand on in ``meta`` is said by their reader, the class that the entry names.
        ``llava-665k`` holds `t4s_helpers.data.mixtures.Conversation` instead of samples.

    Raises:
        SampleError: an unknown name or split, no root, or whatever the reader finds; before any sample
            is made.
    """
    asked = sorted((OWN_OPTIONS - {"task"} if name == "scenes" else OWN_OPTIONS) & options.keys())
    if asked and (name in ENTRIES or name in ("scenes", "photos")):
        raise SampleError(f"Only files of your own have the option {', '.join(asked)}; leave it out for "
                          f"{name}.")
    if name == "scenes":
        return _scenes(split or "test", 500 if n is None else n, start, **options)
    end = None if n is None else start + n
    if name == "photos":
        from .photos import photo_samples

        return photo_samples()[start:end]
    if name not in ENTRIES and Path(name).expanduser().exists():
        from .own import load_own

        return load_own(Path(name).expanduser(), split or "train", bad=bad, verify=verify,
                        **options)[start:end]
    entry = find(name)
    split = split or entry.default_split
    if split not in entry.splits:
        raise SampleError(f"{name} has no split {split!r}; choose one of {', '.join(entry.splits)}.")
    module, _, called = entry.reader.partition(":")
    reader = getattr(importlib.import_module(f".{module}", __package__), called)
    dataset = reader(_root(entry, root), split=split, published=entry.splits[split],
                     counts=counts, bad=bad, verify=verify, **{**entry.options, **options})
    return dataset if n is None and not start else dataset[start:end]


def _scenes(split: str, n: int, start: int, task: str | None = None, palette: str = "seen") -> list:
    """``n`` samples about drawn scenes; tuples of them, turn by turn, where the task is a conversation."""
    from .beyond import scene_items
    from .expressions import scene_dialogue, scene_samples

    if task == "conversation":
        return [scene_dialogue(split, k) for k in range(start, start + n)]
    if task in BEYOND_TASKS and palette == "seen":
        return scene_items(split, n, task, start)
    return scene_samples(split, n, task or "res", start, palette=palette)


def find(name: str | Path) -> Entry:
    """The entry of that name; otherwise a `SampleError` lists the names."""
    if name not in ENTRIES:
        raise SampleError(f"There is no data set and no file '{name}'; give the path of a CSV file or COCO "
                          f"folder, or choose scenes, photos, {', '.join(ENTRIES)}.")
    return ENTRIES[name]


def _root(entry: Entry, root: str | Path | None) -> Path:
    given = root or os.environ.get(ROOT_VARIABLE)
    if not given:
        raise SampleError(
            f"{entry.name} needs its folder: give root=..., or set {ROOT_VARIABLE} to the "
            f"folder that holds {entry.folder or 'the data sets'}/. The layout is: {entry.layout}")
    above = Path(given).expanduser()
    folder = above / entry.folder
    if root and not folder.is_dir():
        folder = above
    if not folder.is_dir():
        raise SampleError(f"The folder {folder} of {entry.name} does not exist. The layout below it "
                          f"is: {entry.layout}. Source: {entry.source}")
    return folder


def listing() -> str:
    """The entries as text, a paragraph for each."""
    return "\n\n".join(map(_paragraph, ENTRIES.values()))


def _paragraph(entry: Entry) -> str:
    told = {"splits": ", ".join(f"{name} {_number(n)}".strip() for name, n in entry.splits.items()),
            "layout": entry.layout, "folder": entry.folder and f"${ROOT_VARIABLE}/{entry.folder}",
            "source": entry.source, "licence": entry.licence, "note": entry.note}
    wrapped = (textwrap.fill(f"{key}: {text}", 100, initial_indent=" " * 4, subsequent_indent=" " * 8,
                             break_long_words=False, break_on_hyphens=False)
               for key, text in told.items() if text)
    return "\n".join([f"{entry.name}  ({entry.task}: {entry.metric})", *wrapped])


def _number(n: Any) -> str:
    """A published number of samples, or several, or none: "1,449", "2,910 or 3,000", ""."""
    return " or ".join(f"{one:,}" for one in ([n] if isinstance(n, int) else n or ()))
