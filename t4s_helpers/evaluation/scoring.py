"""From rows to tables, without a model: every number can be made again from the rows of a run.

A row is what `t4s_helpers.evaluation.tasks.row_of` makes of a sample. Rows of excluded samples have a
reason under ``excluded`` and no counts; they are counted separately and never scored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from ..codec.encodings import Encoding
from ..data.instances import class_of
from .conventions import OFFICIAL, STRICT, Conventions
from .metrics import BoxMetric, GrecMetric, Instance, InstanceMetric, MeanIoU, SegmentationMetric
from .tasks import VQA_RULES, Protocol, grouped, reread

SHOWN = ("ciou", "giou", "p@0.5", "p@0.7", "p@0.9", "acc50", "grec", "n_acc", "t_acc", "miou",
         "pixel_acc", "pq", "sq", "rq", "ap", "ap50", "target_iou", "said", "gain", "accuracy", "f1",
         "yes_ratio", "malformed_rate", "tokens", "seconds")
"""Columns of a table, in order; a task has some of them."""


class ScoringError(ValueError):
    """Rows that cannot be scored together; the message says why."""


class NoCommonScore(ScoringError):
    """Rows of which none can be scored, or whose answers no one number can sum up."""


def score_rows(rows: Sequence[dict], *, background: str | None = None, absent: str | None = None,
               classes: Sequence[str] | None = None, ceiling: bool = False,
               malformed_is_rejection: bool = False) -> dict[str, float]:
    """Scores of one task's rows.

    Args:
        rows: of one kind of answer (masks, class maps, objects, named things or words). Excluded ones are
            left out.
        background, absent: see `t4s_helpers.evaluation.metrics.MeanIoU`; ``semantic`` rows need them.
        classes: of ``semantic`` rows, where absent ones count; by default every class that a row knows.
        ceiling: score the true masks put through the grid in place of the answers.
        malformed_is_rejection: see `t4s_helpers.evaluation.metrics.SegmentationMetric`; also where the rows'
            own protocol says so.

    Returns:
        the metrics' scores; ``tokens`` and ``seconds`` are means over the answers. Of ``multi`` each thing
        asked for counts as a sample of `t4s_helpers.evaluation.metrics.SegmentationMetric`: ``n_acc``, of
        those that are not there, the share without a mask; ``t_acc``, of the others, with one;
        ``target_iou``, the mean IoU of the others; and ``said``, the share of all of which the sentence
        says rightly whether they are there. ``gain`` is the mean over corrections of the IoU after a turn
        minus that of the mask before it, both with the turn's truth.

    Raises:
        NoCommonScore: no row left to score, or answers of different kinds, rules or protocols.
        ScoringError: conventions missing, or a class outside the list.
    """
    scored = [row for row in rows if not row.get("excluded") and row.get("score", 0) is not None]
    kinds = {answer_kind(row["task"]) for row in scored}
    if len(kinds) != 1:
        raise NoCommonScore(
            f"{len(scored)} of {len(rows)} rows can be scored, with answers of "
            f"{len(kinds)} kinds ({', '.join(sorted(kinds)) or 'none'}): score one kind at a time.")
    kind = kinds.pop()
    if kind == "map":
        scores = _maps(scored, background, absent, classes, ceiling)
    elif kind == "objects":
        scores = instance_metric(scored, ceiling).compute()
    elif kind == "things":
        scores = _things(scored, ceiling)
    elif kind == "mask":
        scores = _masks(scored, ceiling, malformed_is_rejection)
    else:
        scores = {} if ceiling else _words(scored)
    costs = () if ceiling else ("tokens", "seconds")
    means = {name: [row[name] for row in scored if name in row] or [np.nan] for name in costs}
    return {**scores, **{name: float(np.mean(values)) for name, values in means.items()}}


def answer_kind(task: str) -> str:
    """``"words"``, ``"map"``, ``"objects"``, ``"things"`` or ``"mask"``: what answers to a task are."""
    return {"vqa": "words", "semantic": "map", "instances": "objects", "multi": "things"}.get(task, "mask")


def _words(rows) -> dict[str, float]:
    rules = {row.get("rule", "exact") for row in rows}
    if len(rules) > 1:
        raise NoCommonScore(f"Rows under the rules {sorted(rules)} have no common score.")
    metric = VQA_RULES[rules.pop()]()
    for row in rows:
        metric.update(row["text"], row["truth"], sample_id=row.get("id"))
    return metric.compute()


def _maps(rows, background, absent, classes, ceiling) -> dict[str, float]:
    if background is None or absent is None:
        raise ScoringError(
            "mIoU has no usual convention: give background= ('class', 'not_averaged' or 'ignored') and "
            "absent= ('skip', 'skip_no_truth', 'zero' or 'one').")
    key = "ceiling_counts" if ceiling else "counts"
    names = ["others", *(classes or sorted({name for row in rows for name in row[key]} - {"others"}))]
    metric = MeanIoU(names[1:], background=background, absent=absent)
    for row in rows:
        if stray := row[key].keys() - set(names):
            raise ScoringError(f"Row '{row['id']}' counts {min(stray)!r}, which the class list does not "
                               "have: score it with the list of its run.")
        metric.update_counts({names.index(name): counts for name, counts in row[key].items()},
                             sample_id=row["id"], malformed=not ceiling and row["malformed"])
    return metric.compute()


def instance_metric(rows: Sequence[dict], ceiling: bool = False) -> InstanceMetric:
    """The metric of rows of the task ``instances``, whose ``by_class()`` has the scores of each class."""
    metric = InstanceMetric()
    for row in rows:
        found, sure = (row["ceiling_rle"], {}) if ceiling else (row["coco_rle"], row["confidences"])
        metric.update([Instance(class_of(label), rle, sure.get(label, 1.0)) for label, rle in found.items()],
                      [Instance(**one) for one in row["true_instances"]], sample_id=row["id"],
                      malformed=not ceiling and row["malformed"])
    return metric


def _things(rows, ceiling: bool) -> dict[str, float]:
    every, there, said = SegmentationMetric(), SegmentationMetric(), []
    for row in rows:
        malformed = not ceiling and row["malformed"]
        for label, counts in row["ceiling_things" if ceiling else "things"].items():
            said.append((label in row["said_absent"]) == (counts[2] == 0))
            for metric in (every, there) if counts[2] else (every,):
                metric.update_counts(*counts, sample_id=f"{row['id']}: {label}", malformed=malformed)
    bad = 0 if ceiling else sum(row["malformed"] for row in rows)  # answers, not things
    return {**every.compute(), "n": len(rows), "n_malformed": bad, "malformed_rate": bad / len(rows),
            "target_iou": there.compute()["giou"] if len(there) else np.nan,
            **({} if ceiling else {"said": float(np.mean(said))})}


def _masks(rows, ceiling: bool, malformed_is_rejection: bool) -> dict[str, float]:
    protocols = {(row.get("protocol", "strict"), row.get("malformed_is_rejection", False)) for row in rows}
    if len(protocols) > 1:
        raise NoCommonScore(f"Rows under the protocols {sorted(name for name, _ in protocols)} have no "
                            "common score: score each alone.")
    credited = malformed_is_rejection or protocols.pop()[1]
    masks, boxes, grec = SegmentationMetric(malformed_is_rejection=credited), BoxMetric(), GrecMetric()
    gains = []
    for row in rows:
        counts = (row["intersection"], row["predicted"], row["target"])
        malformed = not ceiling and row["malformed"]
        iou = masks.update_counts(*(row["ceiling"] if ceiling else counts), sample_id=row.get("id"),
                                  malformed=malformed)
        if "before" in row:
            gains.append(iou - SegmentationMetric().update_counts(*row["before"]))
        if row["true_box"] is not None:
            boxes.update(box_from_text(row["ceiling_box" if ceiling else "box"]),
                         box_from_text(row["true_box"]), malformed=malformed)
        if not ceiling and "true_boxes" in row:
            found, true = (list(map(box_from_text, row[key])) for key in ("boxes", "true_boxes"))
            grec.update(found, true, malformed=malformed and not credited)
    whole = [grec] if len(grec) == len(masks) else []  # GREC is a score of all samples or of none
    return {**{k: v for one in (boxes, *whole, masks) if len(one) for k, v in one.compute().items()},
            **({"gain": float(np.mean(gains))} if gains else {})}


def compare_protocols(rows: Sequence[dict], encoding: Encoding,
                      protocols: Sequence[Conventions] = (STRICT, OFFICIAL),
                      metrics: Sequence[str] = ("ciou", "giou", "n_acc", "t_acc")) -> list[dict]:
    """How far the conventions of reading alone move scores: the same texts, read by each of them.

    Coarse masks are compared, whether the run (with this ``encoding``) had a refiner or not; of a run
    without one, `STRICT` gives its own scores. Excluded rows, words and class maps are left out. A row that
    `t4s_helpers.evaluation.tasks.reread` cannot read again is a `TaskError`.

    Returns:
        a row for each protocol and metric, ``protocol``, ``metric``, ``value`` in [0, 1]; a metric that no
        row has (``n_acc`` where each has a target) is left out.
    """
    masks = [row for row in rows if not row.get("excluded") and answer_kind(row["task"]) == "mask"]
    table = []
    for one in protocols:
        scores = score_rows([reread(row, Protocol(encoding, conventions=one)) for row in masks])
        table += [{"protocol": one.name, "metric": name, "value": scores[name]}
                  for name in metrics if np.isfinite(scores[name])]
    return table


def box_from_text(box: str | None) -> list[int] | None:
    """A row's ``box`` as numbers ``[x0, y0, x1, y1]``, in pixels; None stays None."""
    return None if box is None else [int(side) for side in box.split()]


def score_groups(rows: Sequence[dict], by: str, order: Sequence = ()) -> list[dict]:
    """Scores of the rows that agree in one fact, a row of a table for each group.

    Args:
        rows: with masks for answers; those without the fact are left out.
        by: the fact (``kind``, ``n_objects``, ``size``, ``novel``).
        order: groups in the order wanted; the others follow, sorted.

    Returns:
        ``by``, ``group``, ``n``, ``ciou``, ``giou``.

    >>> row = {"task": "res", "malformed": False, "predicted": 2, "true_box": None, "target": 2}
    >>> score_groups([{**row, "size": "small", "intersection": 1}, {**row, "intersection": 2}], "size")
    [{'by': 'size', 'group': 'small', 'n': 1, 'ciou': 0.3333333333333333, 'giou': 0.3333333333333333}]
    """
    groups = grouped((row for row in rows if by in row), lambda row: row[by])
    names = [*(name for name in order if name in groups), *sorted(groups.keys() - set(order))]
    scores = {name: score_rows(groups[name]) for name in names}
    return [{"by": by, "group": name, "n": len(groups[name]), "ciou": found["ciou"], "giou": found["giou"]}
            for name, found in scores.items()]


def excluded_table(rows: Sequence[dict], excluded: Sequence[dict] = ()) -> list[dict]:
    """What a run left out, by reason: ``reason``, ``n`` and ``first`` (an id), most common first.

    Args:
        rows: those with ``excluded`` were left out while it ran.
        excluded: mappings with ``id`` and ``reason``, left out before.
    """
    found = [(one["id"], one["reason"]) for one in excluded]
    found += [(row["id"], row["excluded"]) for row in rows if row.get("excluded")]
    first = {reason: name for name, reason in reversed(found)}
    return [{"reason": reason, "n": n, "first": first[reason]}
            for reason, n in Counter(reason for _, reason in found).most_common()]


def table_rows(name: str, rows: Sequence[dict], excluded: Sequence[dict] = (),
               **conventions) -> list[dict]:
    """A run as rows of a table: the model's scores and, for masks and maps, the grid's ceiling.

    Args:
        name: of the run.
        excluded: see `excluded_table`.
        conventions: ``background``, ``absent`` and ``classes``, for maps.

    Returns:
        a row for each task and turn of a conversation (of ``ores`` one for all requests, one for those in
        words and one for those with a mask), and for ``who``, ``model`` or ``ceiling``: ``set``,
        ``task``, ``n``, ``excluded``, the conventions of mIoU where it is one, the scores among `SHOWN`.
    """
    left_out = sum(one["n"] for one in excluded_table(rows, excluded))
    kept = [row for row in rows if not row.get("excluded")]
    groups = grouped(kept, lambda row: (row["task"], f", turn {row['turn'] + 1}" if "turn" in row else ""))
    groups |= grouped((row for row in kept if row["task"] == "ores" and "request" in row),
                      lambda row: (row["task"], f", {row['request']}"))
    lines = []
    for (task, part), chosen in groups.items():
        given = conventions if task == "semantic" else {}
        unscored = all(row.get("score", 0) is None for row in chosen)
        for who in ("model",) if task == "vqa" else ("model", "ceiling"):
            scores = {} if unscored else score_rows(chosen, **given, ceiling=who == "ceiling")
            lines.append({
                "set": name + part, "task": task, "who": who,
                "n": len(chosen), "excluded": left_out,
                **{key: value for key, value in given.items() if isinstance(value, str)},
                **{key: scores[key] for key in SHOWN if np.isfinite(scores.get(key, np.nan))}})
    return lines


def hardest(rows: Sequence[dict], n: int = 8) -> list[dict]:
    """The ``n`` rows with masks that scored worst: lowest IoU, and among equals the largest error first.

    A request without a target scores 0 with a mask or a malformed answer.
    """
    def key(row):
        damaged = row["malformed"] and not row.get("malformed_is_rejection")
        rejected = not row["union"] and not damaged
        iou = row["intersection"] / row["union"] if row["union"] else float(rejected)
        return iou, row["intersection"] - row["union"], row["id"]

    masks = [row for row in rows if not row.get("excluded") and answer_kind(row["task"]) == "mask"]
    return sorted(masks, key=key)[:n]
