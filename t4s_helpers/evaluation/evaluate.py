"""Model x samples x refiner -> a row per sample, and scores made from the rows.

`evaluate` answers samples batch by batch. With a folder it writes each batch's rows as they come, can be
stopped at any moment and resumed, and shares the work among the processes of ``accelerate launch`` or
``torchrun``. Batches are formed once, from the order of the samples alone, and handed out whole: an answer
can depend on the batch that a request is in (padding changes how sums are rounded), so the same batches
give the same rows on any number of processes.

``python -m t4s_helpers evaluate run OUT`` does the same from a shell, and
``python -m t4s_helpers evaluate tables OUT`` makes every table again from the rows, without a model.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from contextlib import closing, suppress
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from ..codec.encodings import BoxWise, Encoding
from ..data.prompts import Turn
from ..data.sample import BEYOND_TASKS, CLASS_TASKS, SampleError
from ..decoding.confidence import best_expected_iou
from ..decoding.generate import DecodingError, generate
from ..decoding.grammar import GrammarError, grammar_of
from ..refine import Refiner, load_refiner
from . import provenance
from .conventions import STRICT, Conventions
from .scoring import NoCommonScore, ScoringError, excluded_table, score_rows, table_rows
from .store import RUN_FILE, Processes, RunStore, StoreError, read_run
from .tasks import (
    Items, Protocol, TaskError, answered_turn, check_classes, grouped, mask_before, row_of, turn_of,
)


def evaluate(backbone, samples: Sequence, encoding: Encoding, refiner: Refiner | None = None, *,
             folder: Path | str | None = None, data: str = "", batch: int = 16, seed: int = 0,
             semantic: str = "conditioned", classes: Sequence[str] = (),
             background: str | None = None, absent: str | None = None, vqa: str = "",
             suffix: str = "", restart: bool = False, progress: bool = True,
             expected_iou: int = 0, protocol: Conventions = STRICT, history: str = "own",
             **options) -> tuple[list[dict], dict[str, float]]:
    """Score a backbone on samples.

    Args:
        backbone: a `t4s_helpers.model.backbones.Backbone`.
        samples: `Sample` objects, tuples of them (turns of a conversation), or a
            `t4s_helpers.data.dataset.Dataset`, whose samples are made when their batch comes.
        encoding: of the descriptors, from `t4s_helpers.codec.encodings.get_encoding`.
        refiner: from `t4s_helpers.refine.load_refiner`; by default ``none``, the coarse mask.
        folder: where rows are kept (`t4s_helpers.evaluation.store`) and a stopped run is resumed. Without
            one they are returned only, and there is one process.
        data: name of the data set, for the record; a `Dataset` knows its own.
        batch: requests answered together; those about one picture stay together, and its features are
            computed once.
        seed: of the refiner's points and, with the batch's number, of sampling.
        semantic, classes, vqa, suffix: see `t4s_helpers.evaluation.tasks.Protocol`. ``vqa`` is ``yes-no``
            for POPE, ``classes`` the data set's own list, else every label that the samples have.
        background, absent: conventions of mIoU, see `t4s_helpers.evaluation.metrics.MeanIoU`; needed for
            ``semantic`` samples. A data set knows its own ``background``.
        restart: forget the rows in ``folder``.
        expected_iou: answers drawn at temperature 1 for each mask or class map, whose grid with the best
            expected IoU counts (`t4s_helpers.decoding.confidence.best_expected_iou`); 0 for the model's
            own answer.
        protocol: one of `t4s_helpers.evaluation.conventions`; ``OFFICIAL`` asks, reads, refines and scores
            masks as the paper's code does.
        history: the earlier answers of a conversation, see `t4s_helpers.evaluation.tasks.Protocol`.
        options: for `t4s_helpers.decoding.generate.generate`, such as ``mode`` and ``max_new_tokens``.

    Returns:
        ``(rows, scores)``: `t4s_helpers.evaluation.tasks.row_of` for each sample in their order (one with
        ``excluded`` where its picture or labels cannot be used), and the rows'
        `t4s_helpers.evaluation.scoring.score_rows`. Answers of several kinds have no common scores, but
        a table, `t4s_helpers.evaluation.scoring.table_rows`.

    Raises:
        TaskError, ScoringError: an id that comes twice, a label outside the class list, semantic samples
            without conventions, or what the official protocol does not know; before any answer.
        StoreError: ``folder`` belongs to another run or is in use.
    """
    items, data = Items(samples), getattr(samples, "name", data)
    vqa = vqa or "yes-no" * data.startswith("pope")
    plain = not (items.tasks & {*CLASS_TASKS, *BEYOND_TASKS} or expected_iou or isinstance(encoding, BoxWise))
    if protocol.reading == "official" and not plain:
        raise TaskError(f"The protocol '{protocol.name}' reads one answer about one expression: boxwise, "
                        f"classes, {', '.join(BEYOND_TASKS)} and expected_iou go with 'strict'.")
    if expected_iou and "instances" in items.tasks:
        raise TaskError("Drawn answers may give one number to different objects, so that there is no "
                        "expected IoU of single objects: leave expected_iou out.")
    options = {"mode": protocol.mode, **options} if protocol.mode else options
    asked = Protocol(encoding, semantic, _classes(items, classes), vqa, suffix, protocol, history)
    conventions = {"background": background or getattr(samples, "background", None), "absent": absent}
    if "semantic" in items.tasks and None in conventions.values():
        raise ScoringError("Semantic samples need background= and absent=, the conventions of mIoU "
                           "(t4s_helpers.evaluation.metrics.MeanIoU), chosen before the run.")
    run = _Run(backbone, items, asked, refiner or load_refiner("none"), seed, expected_iou, options)
    batches = plan_batches(items.pictures, batch)
    if folder is None:
        rows = run.in_memory(batches, progress)
    else:
        split = getattr(samples, "split", None) or items.turns(0)[0].split
        about = {"data": {"name": data, "split": split}, "conventions": conventions}
        rows = _on_disk(run, batches, batch, folder, restart, progress, about)
    with suppress(NoCommonScore):
        return rows, score_rows(rows, **conventions, classes=asked.classes)
    return rows, {}


def _classes(items: Items, given: Sequence[str]) -> tuple[str, ...]:
    """The class list of the run, against which the labels of every sample are checked."""
    known = tuple(given) or tuple(getattr(items.samples, "classes", ()))
    samples = [sample for sample in items.made if sample.task in CLASS_TASKS]
    known = known or tuple(sorted({label for sample in samples for label in sample.labels}))
    for sample in samples:
        check_classes(sample, known)
    return known


def plan_batches(pictures: Sequence, batch: int) -> list[list[int]]:
    """Numbers of items in batches: in order, items about one picture together.

    A picture's items are split only where there are more than fit a batch. The plan depends on the items
    alone, never on the number of processes; ``pictures`` is a hashable key of each item's picture.

    >>> plan_batches(["a", "b", "a", "a", "c"], 3)
    [[0, 2, 3], [1, 4]]
    """
    if batch < 1:
        raise TaskError(f"A batch holds at least one request, got batch={batch}.")
    out: list[list[int]] = []
    for group in grouped(range(len(pictures)), pictures.__getitem__).values():
        for at in range(0, len(group), batch):
            part = group[at:at + batch]
            if out and len(out[-1]) + len(part) <= batch:
                out[-1] += part
            else:
                out.append(part)
    return out


def _bar(batches, progress: bool):
    return tqdm(batches, desc="evaluate", unit="batch", disable=not progress or len(batches) < 2)


class _Run:
    """A model, what it is asked, and how: makes the rows of a batch."""

    def __init__(self, backbone, items: Items, protocol: Protocol, refiner: Refiner, seed: int,
                 expected_iou: int, options: dict):
        self.backbone, self.items, self.protocol, self.refiner = backbone, items, protocol, refiner
        self.seed, self.expected_iou, self.options = seed, expected_iou, options

    def in_memory(self, batches, progress: bool) -> list[dict]:
        made = [row for k, numbers in enumerate(_bar(batches, progress)) for row in self.rows(numbers, k)]
        order = {name: k for k, name in enumerate(chain(*self.items.ids))}
        return sorted(made, key=lambda row: order[row["id"]])

    def settings(self, batch: int) -> dict:
        """All that decides the answers, as plain values."""
        plain = (str, int, float, bool, type(None))
        return {**_identity(self.backbone), **self.protocol.plain(), "batch": batch,
                "refiner": self.refiner.name, "seed": self.seed, "expected_iou": self.expected_iou,
                "samples": self._digest(), "n": len(self.items.ids),
                **{key: value if isinstance(value, plain) else repr(value)
                   for key, value in sorted(self.options.items())}}

    def _digest(self) -> str:
        total = hashlib.sha256()
        for k, ids in enumerate(self.items.ids):
            total.update("\0".join(ids).encode() + b"\n")
            for sample in self.items.turns(k) if self.items.made else ():
                turn = turn_of(sample, self.protocol)
                total.update(repr((turn, sample.task, sample.size, sample.answer)).encode())
                if isinstance(sample.image, np.ndarray):
                    total.update(zlib.crc32(np.ascontiguousarray(sample.image)).to_bytes(4, "big"))
        return total.hexdigest()[:16]

    def rows(self, numbers: Sequence[int], batch: int) -> list[dict]:
        """Rows of the items with these numbers, turn by turn within an item."""
        talks, pictures, excluded = [self.items.turns(k) for k in numbers], {}, {}
        for k, samples in enumerate(talks):
            try:
                pictures[k] = samples[0].pixels()
                for labels in (turn_of(sample, self.protocol).labels for sample in samples):
                    if labels and self.options.get("mode") != "plain":  # which decodes without a grammar
                        grammar_of(self.backbone.encoder, labels, self.protocol.encoding)
            except SampleError as error:
                excluded[k] = {"excluded": "unreadable image", "detail": str(error)}
            except GrammarError as error:
                excluded[k] = {"excluded": "labels that cannot be told apart", "detail": str(error)}
        try:
            answered = self._talk({k: samples for k, samples in enumerate(talks) if k not in excluded},
                                  pictures, batch)
        except DecodingError as error:
            names = [sample.id for samples in talks for sample in samples]
            raise DecodingError(f"{error} This came up among the samples {names}.") from error
        rows: list[dict] = []
        for k, samples in enumerate(talks):
            for turn, sample in enumerate(samples):
                if k in excluded:
                    row = {"id": sample.id, "task": sample.task, "split": sample.split, **excluded[k]}
                else:
                    how = self.protocol, self.refiner, self.seed
                    before = (mask_before(samples[turn - 1], rows[-1], *how)
                              if turn and sample.task == "correction" else None)
                    row = row_of(sample, *answered[k][turn], *how, before)
                rows.append(row if len(samples) == 1 else {**row, "turn": turn})
        return rows

    def _talk(self, talks: dict, pictures: dict, batch: int) -> dict[int, list[tuple]]:
        """Number -> (answer, parsed answer) of each turn; one turn of all conversations goes together."""
        answered: dict[int, list] = {k: [] for k in talks}
        history: dict[int, list[Turn]] = {k: [] for k in talks}
        for number in range(max(map(len, talks.values()), default=0)):
            going = [k for k, samples in talks.items() if number < len(samples)]
            for k in going:
                history[k].append(turn_of(talks[k][number], self.protocol))
            answers = self._answers([pictures[k] for k in going], [history[k] for k in going], batch)
            for k, answer in zip(going, answers):
                answered[k].append(answer)
                history[k][-1] = answered_turn(talks[k][number], answer[0].text, self.protocol)
        return answered

    def _answers(self, pictures: list, conversations: list[list[Turn]], batch: int) -> list[tuple]:
        """``(answer, parsed answer or None)`` to the last turn of each conversation."""
        found: dict[int, tuple] = {}
        wanted = [self.expected_iou if turns[-1].labels else 0 for turns in conversations]
        for draws in sorted(set(wanted)):
            numbers = [k for k, n in enumerate(wanted) if n == draws]
            drawing = {"draws": draws, "temperature": 1.0} if draws else {}
            answers = iter(generate(
                self.backbone, [pictures[k] for k in numbers], [conversations[k] for k in numbers],
                self.protocol.encoding, batch=len(numbers), seed=self.seed + batch, progress=False,
                **{**self.options, **drawing}))
            for k in numbers:
                mine, labels = [next(answers) for _ in range(max(1, draws))], conversations[k][-1].labels
                found[k] = self._chosen(mine, labels, pictures[k].shape[:2]) if labels else (mine[0], None)
        return [found[k] for k in range(len(pictures))]

    def _chosen(self, answers: list, labels, image_size) -> tuple:
        """The answer that counts among those to one request, and what it parses to."""
        encoding, read = self.protocol.encoding, self.protocol.conventions.read
        pairs = [(one, read(one.text, labels, image_size, encoding)) for one in answers]
        return best_expected_iou(pairs, image_size, encoding) if self.expected_iou else pairs[0]


def _identity(backbone) -> dict:
    """Which model answers: name, type of numbers, and a digest of its weights.

    Of a large model the digest covers the adapter alone; its base has a name and a revision.
    """
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
    processes, items, (commit, dirty) = Processes(), run.items, provenance.commit()
    about |= {"excluded": [one._asdict() for one in getattr(items.samples, "excluded", ())],
              "package": provenance.package_digest(), "commit": commit, "dirty": dirty,
              "device": provenance.device(), "processes": processes.count,
              "threads": torch.get_num_threads(), "versions": provenance.versions()}
    ids = [list(chain.from_iterable(items.ids[k] for k in numbers)) for numbers in batches]
    with closing(RunStore(folder, run.settings(batch), ids, list(chain(*items.ids)), about, restart,
                          processes)) as store:
        for k in _bar(store.todo(), progress and processes.rank == 0):
            store.write(k, run.rows(batches[k], k))
        return store.finish()


def run_tables(folder: Path | str, background: str | None = None,
               absent: str | None = None) -> tuple[list[dict], list[dict]]:
    """Every table of a run, or of all runs below a folder, from rows alone.

    Args:
        background, absent: other conventions of mIoU than the run's own.

    Returns:
        ``(scores, excluded)``: rows of `t4s_helpers.evaluation.scoring.table_rows`, and of
        `t4s_helpers.evaluation.scoring.excluded_table` with the run's name under ``set``. No run, or a
        damaged one, is a `StoreError`.
    """
    folder = Path(folder)
    runs = sorted(path.parent for path in folder.rglob(RUN_FILE))
    if not runs:
        raise StoreError(f"{folder} holds no run: give the folder that `evaluate` wrote to.")
    scores, excluded = [], []
    for one in runs:
        rows, record = read_run(one)
        name = one.relative_to(folder).as_posix() if one != folder else one.name
        known, before = record.get("conventions", {}), record.get("excluded", ())
        scores += table_rows(name, rows, before, background=background or known.get("background"),
                             absent=absent or known.get("absent"),
                             classes=record["settings"].get("classes") or None)
        excluded += [{"set": name, **line} for line in excluded_table(rows, before)]
    return scores, excluded
