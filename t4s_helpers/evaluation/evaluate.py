"""Model x samples x refiner -> per-sample rows, and scores made of them.

`evaluate` answers samples batch by batch. With a folder it writes each row as it comes, can be killed
and gone on with, and shares the work among the processes of ``accelerate launch`` or ``torchrun``.
Batches are formed once, from the order of the samples alone, and given out whole: what a model says
can depend on the batch that a request is in (padding changes how sums are rounded), so the same
batches make the same rows on any number of processes.

``python -m t4s_helpers.evaluation.evaluate run OUT`` does the same from a shell, and
``python -m t4s_helpers.evaluation.evaluate tables OUT`` makes every table again from the rows, without a model.
"""

from __future__ import annotations

import hashlib
import itertools
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..data.sample import SampleError
from ..decoding.generate import DecodingError, answer_samples, generate, read_answer
from ..codec.grid import grid_to_masks, mask_to_box, masks_to_grid, parse_size
from .store import RUN_FILE, Ledger, LedgerError, Processes, read_run
from .metrics import BoxMetric, SegmentationMetric, overlap
from ..data.prompts import Turn
from .scoring import (
    ScoringError, answer_kind, excluded_table, hardest, score_groups, score_rows, table_rows,
)
from .tasks import Items, Protocol, TaskError, picture_key, question_of, row_of

__all__ = ["distinct_targets", "evaluate", "hardest", "load_samples", "oracle_scores",
           "oracle_summary", "oracle_table", "plan_batches", "read_run", "run_tables",
           "score_groups", "score_rows", "table_rows", "through_text"]


EXPECTED = "expected_iou"
"""The mode of `t4s_helpers.decoding.generate.answer_samples` that `generate` itself does not have."""


def evaluate(backbone, samples: Sequence, size=16, scheme: str = "rrle", refiner=None, *,
             folder: Path | str | None = None, data: str = "", batch: int = 16, seed: int = 0,
             semantic: str = "conditioned", classes: Sequence[str] = (),
             background: str | None = None, absent: str | None = None, vqa: str = "",
             suffix: str = "", restart: bool = False, progress: bool = True,
             **options) -> tuple[list[dict], dict[str, float]]:
    """Score a backbone on samples.

    Args:
        backbone: a `t4s_helpers.model.backbones.Backbone`.
        samples: `Sample` objects, tuples of them (turns of a conversation), or a
            `t4s_helpers.data.Dataset`, whose samples are made when their batch comes.
        refiner: from `t4s_helpers.refine.refiners.load_refiner`, or ``None`` for the coarse mask.
        folder: where rows are kept (`t4s_helpers.evaluation.store`); a run that was stopped goes on. Without
            one they are returned and forgotten, and there is one process.
        data: name of the data set, for the record; a `Dataset` knows its own.
        batch: requests answered together; those about one picture stay together, and its features are
            computed once.
        seed: of the refiner's points, and with the batch's number of sampling.
        semantic, classes, vqa, suffix: see `t4s_helpers.evaluation.tasks.Protocol`. POPE's questions are scored
            by ``yes-no`` unless ``vqa`` says otherwise. Without ``classes`` a data
            set's own list is taken, else every label that the samples have.
        background, absent: conventions of mIoU, see `t4s_helpers.evaluation.metrics.MeanIoU`; needed for
            ``semantic`` samples. A data set knows its own ``background``.
        restart: forget the rows in ``folder``.
        options: for `t4s_helpers.decoding.generate.generate`.

    Returns:
        ``(rows, scores)``: a row per sample in their order (`t4s_helpers.evaluation.tasks.row_of`; one with
        ``excluded`` for a sample whose picture or labels cannot be used), and the scores of
        `score_rows`. Rows with answers of several kinds have no common scores: the dictionary is
        empty, and `table_rows` makes a table.

    Raises:
        TaskError: an id that comes twice, or a label outside the class list; before any answer.
        ScoringError: semantic samples without conventions; before any answer.
        LedgerError: ``folder`` is another run's or in use.
    """
    items, data = Items(samples), getattr(samples, "name", data)
    tasks = _tasks(items)
    vqa = vqa or "yes-no" * data.startswith("pope")
    protocol = Protocol(size, scheme, semantic, _classes(items, tasks, classes), vqa, suffix)
    conventions = {"background": background or getattr(samples, "background", None),
                   "absent": absent}
    if "semantic" in tasks and None in conventions.values():
        raise ScoringError("Semantic samples need background= and absent=, the conventions of mIoU "
                           "(t4s_helpers.evaluation.metrics.MeanIoU), said before the run.")
    run = _Run(backbone, items, protocol, refiner, seed, dict(options))
    batches = plan_batches([items.picture(k) for k in range(len(items))], batch)
    if folder is None:
        rows = run.in_memory(batches, progress)
    else:
        about = {"data": {"name": data, "split": _split(items)},
                 "conventions": conventions}
        rows = _on_disk(run, batches, batch, folder, restart, progress, about)
    return rows, _scores(rows, {**conventions, "classes": protocol.classes or None})


def _split(items: Items) -> str:
    return items.samples.split if items.lazy else items.dialogue(0).picture.split


def _tasks(items: Items) -> set[str]:
    if not len(items):
        raise TaskError("There are no samples to score: look whether the split or the filter is empty.")
    if items.lazy:
        return {items.samples.task}
    return {sample.task for k in range(len(items)) for sample in items.dialogue(k).turns}


def _classes(items: Items, tasks: set[str], given: Sequence[str]) -> tuple[str, ...]:
    """The class list of the run, and the labels of every sample held against it."""
    known = tuple(given) or tuple(getattr(items.samples, "classes", ()))
    if items.lazy or "semantic" not in tasks:
        return known
    labels = {(label, sample.id) for k in range(len(items)) for sample in items.dialogue(k).turns
              if sample.task == "semantic" for label in sample.labels}
    known = known or tuple(sorted({label for label, _ in labels}))
    stray = sorted((label, name) for label, name in labels if label not in known)
    if stray:
        raise TaskError(f"Sample '{stray[0][1]}' shows {stray[0][0]!r}, which is not among the "
                        f"{len(known)} classes of the list: give the data set's own list.")
    return known


def plan_batches(pictures: Sequence, batch: int) -> list[list[int]]:
    """Numbers of items in batches: in order, items about one picture together.

    A picture's items are cut only where they are more than a batch. The plan depends on the items
    alone, never on the number of processes.

    Args:
        pictures: a hashable key of each item's picture.

    >>> plan_batches(["a", "b", "a", "a", "c"], 3)
    [[0, 2, 3], [1, 4]]
    """
    if batch < 1:
        raise TaskError(f"A batch holds at least one request, got batch={batch}.")
    groups: dict = {}
    for k, key in enumerate(pictures):
        groups.setdefault(key, []).append(k)
    out: list[list[int]] = []
    for group in groups.values():
        for at in range(0, len(group), batch):
            part = group[at:at + batch]
            if out and len(out[-1]) + len(part) <= batch:
                out[-1].extend(part)
            else:
                out.append(list(part))
    return out


def _bar(batches, progress: bool):
    from tqdm.auto import tqdm

    return tqdm(batches, desc="evaluate", unit="batch", disable=not progress or len(batches) < 2)


class _Run:
    """A model, what it is asked, and how: makes the rows of a batch."""

    def __init__(self, backbone, items: Items, protocol: Protocol, refiner, seed: int, options: dict):
        self.backbone, self.items, self.protocol = backbone, items, protocol
        self.refiner, self.seed, self.options = refiner, seed, options

    def ids(self, numbers) -> list[str]:
        return [name for k in numbers for name in self.items.ids(k)]

    def in_memory(self, batches, progress: bool) -> list[dict]:
        made = [row for k, numbers in enumerate(_bar(batches, progress))
                for row in self.rows(numbers, k)]
        order = {name: k for k, name in enumerate(self.ids(range(len(self.items))))}
        return sorted(made, key=lambda row: order[row["id"]])

    def settings(self, batch: int) -> dict:
        """All that decides the answers, as plain values."""
        return {**_identity(self.backbone), **self.protocol.plain(), "batch": batch,
                "refiner": getattr(self.refiner, "name", "none"), "seed": self.seed,
                "samples": self._digest(), "n": len(self.items),
                **{key: _plain(value) for key, value in sorted(self.options.items())}}

    def _digest(self) -> str:
        total = hashlib.sha256()
        for k in range(len(self.items)):
            total.update("\0".join(self.items.ids(k)).encode() + b"\n")
            if self.items.lazy:
                continue
            for sample in self.items.dialogue(k).turns:
                asked = question_of(sample, self.protocol)
                total.update(repr((asked, sample.task, sample.size, sample.answer)).encode())
                if isinstance(sample.image, np.ndarray):
                    total.update(zlib.crc32(np.ascontiguousarray(sample.image)).to_bytes(4, "big"))
        return total.hexdigest()[:16]

    def rows(self, numbers: Sequence[int], batch: int) -> list[dict]:
        """Rows of the items with these numbers, turn by turn within an item."""
        from ..decoding.reuse import shared_pictures

        talks, pictures, excluded = [self.items.dialogue(k) for k in numbers], {}, {}
        for k, talk in enumerate(talks):
            try:
                pictures[k] = talk.picture.pixels()
                excluded |= self._unusable(k, talk)
            except SampleError as error:
                excluded[k] = ("unreadable image", str(error))
        try:
            with shared_pictures(self.backbone.model):
                said = self._talk({k: talk for k, talk in enumerate(talks) if k not in excluded},
                                  pictures, batch)
        except DecodingError as error:
            raise DecodingError(f"{error} This came up among the samples {self.ids(numbers)}.") \
                from error
        rows = []
        for k, talk in enumerate(talks):
            for turn, sample in enumerate(talk.turns):
                row = self._row(sample, *said[k][turn]) if k in said else _left_out(
                    sample, *excluded[k])
                rows.append(row if len(talk.turns) == 1 else {**row, "turn": turn})
        return rows

    def _unusable(self, k: int, talk) -> dict:
        """Why the talk cannot be asked in this mode of decoding, if so: labels that are alike."""
        if self.options.get("mode", "plain") == "plain":
            return {}
        from ..decoding.grammar import Grammar, GrammarError

        for sample in talk.turns:
            labels = question_of(sample, self.protocol).labels
            try:
                if labels:
                    Grammar(self.backbone.encoder.piece_ids, labels, self.protocol.size,
                            self.protocol.scheme, False)
            except GrammarError as error:
                return {k: ("labels that cannot be told apart", str(error))}
        return {}

    def _talk(self, talks: dict, pictures: dict, batch: int) -> dict[int, list]:
        """Number -> (answer, what was asked) of each turn; a turn of all talks goes together."""
        from ..decoding.talking import AskedAfter, talking

        said: dict[int, list] = {k: [] for k in talks}
        backbone = talking(self.backbone)
        for turn in range(max((len(talk.turns) for talk in talks.values()), default=0)):
            going = [k for k, talk in talks.items() if turn < len(talk.turns)]
            asked = [question_of(talks[k].turns[turn], self.protocol) for k in going]
            questions = [AskedAfter(one.text, [Turn(q.text, (a.text,)) for a, q in said[k]])
                         for k, one in zip(going, asked)]
            if self.options.get("mode") == EXPECTED:
                answers = self._best([talks[k].turns[turn] for k in going], turn, batch)
            else:
                answers = generate(backbone, [pictures[k] for k in going], questions,
                                   [one.labels for one in asked], self.protocol.size, len(going),
                                   scheme=self.protocol.scheme, seed=self.seed + batch,
                                   progress=False, **self.options)
            for k, answer, one in zip(going, answers, asked):
                said[k].append((answer, one))
        return said

    def _best(self, samples, turn: int, batch: int) -> list:
        """Answers of the mode that weighs several grids, which words its questions itself."""
        if turn or any(sample.task == "semantic" for sample in samples):
            raise TaskError(f"Mode '{EXPECTED}' answers single requests with their own labels: decode "
                            "class lists and conversations with mode='fast'.")
        said = answer_samples(self.backbone, samples, self.protocol.size, self.protocol.scheme,
                              batch=len(samples), seed=self.seed + batch, progress=False,
                              **self.options)
        return [answer for answer, _ in said]

    def _row(self, sample, said, asked) -> dict:
        reading = None if not asked.labels else read_answer(
            said.text, asked.labels, sample.size, self.protocol.size, self.protocol.scheme)
        refiner = None if getattr(self.refiner, "name", "none") == "none" else self.refiner
        return row_of(sample, said, reading, self.protocol, refiner, self.seed)


def _left_out(sample, reason: str, detail: str) -> dict:
    return {"id": sample.id, "task": sample.task, "split": sample.split, "excluded": reason,
            "detail": detail}


def _plain(value):
    return value if isinstance(value, (str, int, float, bool, type(None))) else repr(value)


def _identity(backbone) -> dict:
    """Which model answers: name, type of numbers, and a digest of its weights.

    Of a large model the digest covers the adapter alone; its base has a name and a revision.
    """
    import torch

    spec, model = backbone.spec, backbone.model
    parts = sorted(model.named_parameters())
    if sum(part.numel() for _, part in parts) > 5e7:
        parts = [(name, part) for name, part in parts if "lora_" in name]
    total = hashlib.sha256()
    for name, part in parts:
        flat = part.detach().flatten().contiguous().cpu()
        total.update(name.encode() + flat.view(torch.uint8).numpy().tobytes())
    return {"backbone": spec.name, "revision": spec.revision, "weights": total.hexdigest()[:16],
            "dtype": str(getattr(model, "dtype", "")).removeprefix("torch."),
            "quantized": bool(getattr(model, "is_loaded_in_4bit", False))}


def _on_disk(run: _Run, batches, batch: int, folder, restart: bool, progress: bool,
             about: dict) -> list[dict]:
    left_out = [{"id": one.id, "reason": one.reason, "detail": one.detail}
                for one in getattr(run.items.samples, "excluded", ())]
    processes = Processes()
    ledger = Ledger(folder, run.settings(batch), [run.ids(numbers) for numbers in batches],
                    order=run.ids(range(len(run.items))), restart=restart, processes=processes,
                    about={**about, "excluded": left_out, **_made_with(processes)})
    try:
        for k in _bar(ledger.todo(), progress and processes.rank == 0):
            ledger.write(k, run.rows(batches[k], k))
        return ledger.finish()
    finally:
        ledger.close()


def _made_with(processes: Processes) -> dict:
    import torch

    from . import provenance

    commit, dirty = provenance.commit()
    return {"package": provenance.package_digest(), "commit": commit, "dirty": dirty,
            "device": provenance.device(), "processes": processes.count,
            "threads": torch.get_num_threads(), "versions": provenance.versions()}


def _scores(rows, conventions: dict) -> dict[str, float]:
    scored = [row for row in rows if not row.get("excluded") and row.get("score", 0) is not None]
    kinds = {answer_kind(row["task"]) for row in scored}
    rules = {row.get("rule") for row in scored}
    return score_rows(scored, **conventions) if len(kinds) == len(rules) == 1 else {}


def run_tables(folder: Path | str, background: str | None = None,
               absent: str | None = None) -> tuple[list[dict], list[dict]]:
    """Every table of a run, or of all runs below a folder, from rows alone.

    Args:
        background, absent: other conventions of mIoU than the run's own.

    Returns:
        ``(scores, excluded)``: lines of `t4s_helpers.evaluation.scoring.table_rows`, and of
        `t4s_helpers.evaluation.scoring.excluded_table` with the run's name under ``set``.

    Raises:
        LedgerError: no run there, or one that is damaged.
    """
    folder = Path(folder)
    runs = sorted(path.parent for path in folder.rglob(RUN_FILE))
    if not runs:
        raise LedgerError(f"{folder} holds no run: give the folder that `evaluate` wrote to.")
    scores, excluded = [], []
    for one in runs:
        rows, record = read_run(one)
        name = one.relative_to(folder).as_posix() if one != folder else one.name
        known = record.get("conventions", {})
        given = {"background": background or known.get("background"),
                 "absent": absent or known.get("absent"),
                 "classes": record["settings"].get("classes") or None}
        scores += table_rows(name, rows, record.get("excluded", ()), **given)
        excluded += [{"set": name, **line}
                     for line in excluded_table(rows, record.get("excluded", ()))]
    return scores, excluded


def oracle_scores(samples: Sequence, size=16, rule: str = "area") -> dict[str, float]:
    """What a perfect model would reach without a refiner: true mask -> grid -> mask."""
    masks, boxes = SegmentationMetric(), BoxMetric()
    for sample in samples:
        grid = masks_to_grid(sample.masks, size, rule)
        pred = grid_to_masks(grid, len(sample.labels), sample.size).any(0)
        truth = sample.masks.any(0)
        masks.update(pred, truth)
        if truth.any():
            boxes.update(pred, truth)
    return {**masks.compute(), **(boxes.compute() if len(boxes) else {})}


def through_text(sample, size=16, rule: str = "area", scheme: str = "rrle") -> np.ndarray:
    """What a perfect model would hand on: true masks -> grid -> text -> parser -> masks.

    Returns:
        bool ``(L, H, W)`` at the image's size.
    """
    from ..codec.parsing import parse
    from ..codec.encodings import encode, wrap

    text = wrap(encode(sample.grid(size, rule), sample.labels, scheme), "Here is the mask:")
    grid, _ = parse(text, sample.labels, size, scheme)
    return grid_to_masks(grid, len(sample.labels), sample.size)


def distinct_targets(samples: Sequence) -> list:
    """One sample for each target of each image, in order.

    Several expressions often name the same object; a table about masks counts it once. The first
    stays. Requests without a target go.
    """
    kept, seen = [], set()
    for sample in samples:
        masks = sample.masks
        key = (picture_key(sample), np.packbits(masks.any(0)).tobytes())
        if masks.any() and key not in seen:
            seen.add(key)
            kept.append(sample)
    return kept


def oracle_table(samples: Sequence, sizes: Sequence = (16, 24, 32),
                 rules: Sequence[str] = ("area", "nearest"), refiner=None, others=None,
                 scheme: str = "rrle", seed: int = 0,
                 progress: bool = True) -> tuple[list[dict], list[dict]]:
    """Ceilings of the representation: true masks through the text, with and without a refiner.

    Each label is scored alone. Samples of one image share one image embedding.

    Args:
        samples: `Sample` objects with masks; several may show the same image.
        sizes, rules: of the grid, see `t4s_helpers.codec.grid.masks_to_grid`.
        refiner: from `t4s_helpers.refine.refiners.load_refiner`; ``None`` scores the grid alone, which the
            table has in any case, under the name ``none``.
        others: name -> `t4s_helpers.refine.refiners.Prompts`; further ways to ask the refiner, tried at the
            first of the sizes only.
        scheme: of the text.
        seed: of the refiner's points.

    Returns:
        ``(rows, table)``. ``rows``: one a label and case, with pixel counts, ``iou``, whether the
        box is right (IoU > 0.5) and whether the refiner fell back to the coarse mask. ``table``:
        one row a case (``grid``, ``rule``, ``refiner``) with ``ciou`` and ``giou`` in [0, 1],
        ``fallbacks`` and ``n``.
    """
    from tqdm.auto import tqdm

    rows = []
    groups = _by_image(samples)
    for group in tqdm(groups, desc="oracle", unit="image", disable=not progress):
        truth = np.concatenate([sample.masks for sample in group])
        names = [(sample.id, label) for sample in group for label in sample.labels]
        ways = _refined_ways(refiner, others, group)
        for size, rule in itertools.product(sizes, rules):
            coarse = np.concatenate([through_text(s, size, rule, scheme) for s in group])
            for way, (refine, only_first) in ways.items():
                if only_first and size != sizes[0]:
                    continue
                masks, fell_back = refine(coarse, seed)
                case = {"grid": _grid_name(size), "rule": rule, "refiner": way}
                rows += [
                    {"id": name, "label": label, **case, **pixel_counts(mask, true), "fallback": fell}
                    for (name, label), mask, true, fell
                    in zip(names, masks, truth, fell_back.tolist(), strict=True)
                ]
    return rows, oracle_summary(rows)


def oracle_summary(rows: Sequence[dict]) -> list[dict]:
    """The table of `oracle_table` from its rows alone, so that it is made again without SAM."""
    cases: dict[tuple, list[dict]] = {}
    for row in rows:
        cases.setdefault((row["grid"], row["rule"], row["refiner"]), []).append(row)
    table = []
    for (grid, rule, way), members in cases.items():
        metric = SegmentationMetric()
        for row in members:
            metric.update_counts(row["intersection"], row["predicted"], row["target"])
        scores = metric.compute()
        table.append({
            "grid": grid, "rule": rule, "refiner": way, "ciou": scores["ciou"],
            "giou": scores["giou"], "fallbacks": sum(row["fallback"] for row in members),
            "n": len(members),
        })
    return table


def _refined_ways(refiner, others, group) -> dict:
    """name -> (function of coarse masks and seed, whether only the first size is asked for)."""
    ways = {"none": (lambda coarse, seed: (coarse, np.zeros(len(coarse), bool)), False)}
    if refiner is None or refiner.name == "none":
        return ways
    refiner.set_image(group[0].pixels())

    def asking(**options):
        def refine(coarse, seed):
            result = refiner.refine(coarse, seed=seed, **options)
            return result.masks, result.fallback
        return refine

    ways[refiner.name] = (asking(), False)
    return ways | {name: (asking(prompts=one), True) for name, one in (others or {}).items()}


def _by_image(samples: Sequence) -> list[list]:
    groups: dict = {}
    for sample in samples:
        groups.setdefault(picture_key(sample), []).append(sample)
    return list(groups.values())


def _grid_name(size) -> str:
    rows, cols = parse_size(size)
    return str(rows) if rows == cols else f"{rows}x{cols}"


def pixel_counts(mask: np.ndarray, truth: np.ndarray) -> dict:
    """Counts of one mask against the truth, in pixels; its IoU; whether its box's IoU is > 0.5."""
    from .metrics import box_iou

    both, predicted, target = overlap(mask, truth)
    union = predicted + target - both
    right = box_iou(mask_to_box(mask), mask_to_box(truth)) > 0.5
    return {"intersection": both, "predicted": predicted, "target": target, "union": union,
            "pixels": truth.size, "iou": both / union if union else 1.0, "box_right": bool(right)}


# --- the command ---------------------------------------------------------------------------------


def load_samples(data: str, split: str | None = None, root=None, task: str | None = None,
                 n: int | None = None, start: int = 0, palette: str = "seen", **options):
    """Samples by the name of their data set.

    Args:
        data: ``"scenes"``, whose ``task`` may be any of `t4s_helpers.data.sample.TASKS` or
            ``"conversation"``, or a name that `t4s_helpers.data.load` knows.
        n, start: how many, and from which on; all by default (500 scenes).
        palette: of scenes, see `t4s_helpers.data.scenes.make_scene`.
        options: for `t4s_helpers.data.load`.
    """
    if data != "scenes":
        from ..data import load

        found = load(data, split, root, **options)
        return found[start:None if n is None else start + n]
    from ..data.expressions import scene_dialogue, scene_samples

    split, n = split or "test", 500 if n is None else n
    if task == "conversation":
        return [scene_dialogue(split, k) for k in range(start, start + n)]
    return scene_samples(split, n, task or "res", start, palette=palette)


def _parser():
    import argparse

    parser = argparse.ArgumentParser(prog="python -m t4s_helpers.evaluation.evaluate", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="answer and score samples; goes on where it was stopped")
    run.add_argument("out", type=Path, help="the run's folder")
    _data_arguments(run.add_argument_group("data"))
    _model_arguments(run.add_argument_group("model"))
    _protocol_arguments(run.add_argument_group("how it is asked"))
    run.add_argument("--restart", action="store_true", help="forget the rows that are there")
    tables = commands.add_parser("tables", help="make the tables again from rows, without a model")
    tables.add_argument("out", type=Path, help="a run's folder, or one that holds runs")
    for one in (run, tables):
        _convention_arguments(one.add_argument_group("conventions of mIoU"))
    return parser


def _data_arguments(group) -> None:
    group.add_argument("--data", default="scenes", help="scenes, or a name that data.load knows")
    group.add_argument("--split")
    group.add_argument("--root", type=Path)
    group.add_argument("--task", help="of scenes: res, gres, rec, semantic, vqa or conversation")
    group.add_argument("-n", type=int, help="so many samples only")
    group.add_argument("--start", type=int, default=0)
    group.add_argument("--palette", default="seen")
    group.add_argument("--counts", choices=("strict", "warn", "off"), default="strict")
    group.add_argument("--bad", choices=("refuse", "exclude"), default="exclude")


def _model_arguments(group) -> None:
    from ..model.backbones import BACKBONES

    group.add_argument("--backbone", choices=BACKBONES, default="embedded")
    group.add_argument("--adapter", help="a folder, or a shipped one's name (scenes)")
    group.add_argument("--source", type=Path, help="folder of the backbone, if not its own")
    group.add_argument("--quantize", choices=("nf4",))
    group.add_argument("--refiner", default="none", help="none, mobile_sam, ...")


def _protocol_arguments(group) -> None:
    from ..decoding.generate import MODES
    from ..data.prompts import SEMANTIC_MODES
    from .tasks import VQA_RULES

    group.add_argument("--mode", choices=(*MODES, EXPECTED), default="fast")
    group.add_argument("--batch", type=int, default=8)
    group.add_argument("--size", type=int, default=16)
    group.add_argument("--scheme", choices=("full", "irle", "rrle"), default="rrle")
    group.add_argument("--max-new-tokens", type=int)
    group.add_argument("--semantic", choices=SEMANTIC_MODES, default="conditioned")
    group.add_argument("--vqa", choices=VQA_RULES, default="")
    group.add_argument("--suffix", default="", help="added to questions")
    group.add_argument("--seed", type=int, default=0)


def _convention_arguments(group) -> None:
    from .metrics import ABSENT, BACKGROUND

    group.add_argument("--background", choices=BACKGROUND)
    group.add_argument("--absent", choices=ABSENT)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 when done."""
    args = _parser().parse_args(arguments)
    if args.command == "run":
        _run_command(args)
        processes = Processes()
        processes.leave()
        if processes.rank:
            return 0
    _print_tables(args)
    return 0


def _run_command(args) -> None:
    from ..model.backbones import load_backbone
    from ..refine.refiners import load_refiner

    more = {} if args.data == "scenes" else {"counts": args.counts, "bad": args.bad}
    samples = load_samples(args.data, args.split, args.root, args.task, args.n, args.start,
                           args.palette, **more)
    backbone = load_backbone(args.backbone, args.quantize, args.adapter, args.source)
    refiner = None if args.refiner == "none" else load_refiner(args.refiner)
    evaluate(backbone, samples, args.size, args.scheme, refiner, folder=args.out, batch=args.batch,
             data=args.data, seed=args.seed, semantic=args.semantic, background=args.background, absent=args.absent,
             vqa=args.vqa, suffix=args.suffix, restart=args.restart, mode=args.mode,
             max_new_tokens=args.max_new_tokens)


def _print_tables(args) -> None:
    from ..files import write_json
    from ..workbook.tables import markdown_table

    scores, excluded = run_tables(args.out, args.background, args.absent)
    write_json(args.out / "scores.json", scores)
    print(markdown_table(scores))
    if excluded:
        print("\nLeft out:\n\n" + markdown_table(excluded))


if __name__ == "__main__":
    raise SystemExit(main())
