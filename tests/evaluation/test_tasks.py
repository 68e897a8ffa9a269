"""What is asked and how answers are counted, against counts made pixel by pixel."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from t4s_helpers.codec.encodings import get_encoding
from t4s_helpers.codec.grid import mask_to_box
from t4s_helpers.data.expressions import scene_samples
from t4s_helpers.data.instances import numbered
from t4s_helpers.data.prompts import answer
from t4s_helpers.data.registry import load
from t4s_helpers.data.sample import Sample
from t4s_helpers.decoding.generate import Answer, parse_answer
from t4s_helpers.evaluation import tasks
from t4s_helpers.evaluation.oracle import oracle_scores
from t4s_helpers.evaluation.scoring import (
    NoCommonScore, ScoringError, excluded_table, hardest, score_rows, table_rows,
)
from t4s_helpers.evaluation.tasks import (
    Items, Protocol, TaskError, from_rle, mask_before, row_masks, row_of, to_rle, turn_of,
)
from t4s_helpers.refine import NoRefiner, Refined

FOUR = get_encoding("rrle", 4)
CLASSES = ("cat", "dog", "sky")
PICTURE = np.zeros((8, 8, 3), np.uint8)


def sample(labels=("cat",), task="semantic", masks=None, **more):
    if masks is None:  # two rows of pixels for each label
        masks = np.repeat(np.eye(4, dtype=bool)[:len(labels)], 2, 1)[:, :, None] & np.ones(8, bool)
    return Sample(more.pop("id", "s"), PICTURE, labels, masks, task=task, **more)


def row(one, text: str, protocol=Protocol(FOUR, classes=CLASSES), **options) -> dict:
    labels = turn_of(one, protocol).labels
    parsed = parse_answer(text, labels, one.size, protocol.encoding) if labels else None
    made = row_of(one, Answer(text, 9, True, 0.5), parsed, protocol, **options)
    return json.loads(json.dumps(made, allow_nan=False))  # what a file keeps


def written(grid, labels, encoding=FOUR) -> str:
    return "".join(answer(np.array(grid), labels, encoding))


def question(**more):
    return sample((), "vqa", np.zeros((0, 8, 8), bool), **{"question": "?", **more})


def test_every_list_of_classes_is_asked_in_one_wording():
    one = sample(("dog", "cat"))
    conditioned = turn_of(one, Protocol(FOUR, classes=CLASSES))
    assert conditioned.question == "The classes are cat, dog, sky. Segment the picture with them."
    assert conditioned.labels == CLASSES
    wide = turn_of(one, Protocol(FOUR, classes=CLASSES, semantic="open"))
    assert "cat" not in wide.question and wide.labels == CLASSES
    part = turn_of(one, Protocol(FOUR, classes=CLASSES, semantic="partial"))
    assert part.labels == ("dog", "cat") and "sky" not in part.question
    with pytest.raises(TaskError, match="'s' shows 'bird', which is not among the 3 classes"):
        turn_of(sample(("bird",)), Protocol(classes=CLASSES))


@pytest.mark.parametrize("options", [{"semantic": "all"}, {"vqa": "bleu"}, {"history": "true"}])
def test_an_unknown_protocol_is_refused(options):
    with pytest.raises(TaskError, match="choose one of"):
        Protocol(**options)


def test_turns_are_about_one_picture_and_ids_come_once():
    other = Sample("t", np.zeros((4, 4, 3), np.uint8), ("cat",), np.zeros((1, 4, 4), bool))
    with pytest.raises(TaskError, match="one picture"):
        Items([(sample(), other)])
    with pytest.raises(TaskError, match="'s' comes 2 times"):
        Items([sample(), (sample(id="a"), sample())])
    assert Items([sample(), (sample(id="a"), sample(id="b"))]).ids[1] == ["a", "b"]


def test_the_counts_of_a_mask_are_those_of_its_pixels():
    rng = np.random.default_rng(3)
    for _ in range(20):
        truth = rng.random((1, 8, 8)) < 0.4
        grid = (rng.random((4, 4)) < 0.4).astype(int)
        one = sample(("cat",), "res", truth)
        made = row(one, written(grid, ["cat"]))
        pred = np.kron(grid, np.ones((2, 2), int)).astype(bool)
        both, union = int((pred & truth[0]).sum()), int((pred | truth[0]).sum())
        assert (made["intersection"], made["union"], made["predicted"], made["target"]) == (
            both, union, pred.sum(), truth.sum())
        assert not made["malformed"] and made["rejected"] == (not pred.any())
        assert np.array_equal(row_masks(made, (8, 8)).any(0), pred)
        box = mask_to_box(pred)
        assert made["box"] == (" ".join(map(str, box)) if box else None)
    assert row_masks({"coco_rle": {}}, (8, 8)).shape == (0, 8, 8)
    oblong = rng.random((13, 7)) < 0.5
    assert np.array_equal(from_rle(json.loads(json.dumps(to_rle(oblong)))), oblong)


def test_grec_from_the_files_of_grefcoco(tmp_path):
    photos = tmp_path / "images/mscoco/images/train2014"
    for folder in (photos, tmp_path / "grefcoco"):
        folder.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(photos / "a.jpg")
    corners = {7: [0, 0, 4, 0, 4, 4, 0, 4], 8: [6, 6, 8, 6, 8, 8, 6, 8]}
    (tmp_path / "grefcoco/instances.json").write_text(json.dumps({
        "images": [{"id": 1, "file_name": "a.jpg", "height": 8, "width": 8}],
        "categories": [{"id": 1, "name": "dog"}],
        "annotations": [{"id": k, "image_id": 1, "category_id": 1, "segmentation": [outline]}
                        for k, outline in corners.items()]}))
    asked = {"both dogs": [7, 8], "the first dog": [7], "the cat": [-1]}
    (tmp_path / "grefcoco/grefs(unc).json").write_text(json.dumps([
        {"ref_id": k, "image_id": 1, "ann_id": ids, "no_target": ids == [-1], "split": "val",
         "sentences": [{"sent_id": k, "sent": text}]} for k, (text, ids) in enumerate(asked.items())]))
    data = load("grefcoco", "val", tmp_path, counts="off")
    corner = np.zeros((4, 4), int)
    corner[:2, :2] = 1
    both = corner.copy()
    both[3, 3] = 1
    right = [row(one, written(grid, one.labels)) for one, grid in zip(data, (both, corner, 0 * corner))]
    found = score_rows(right)
    assert (found["grec"], found["n_acc"], found["t_acc"], found["giou"]) == (1, 1, 1, 1)
    wrong = [row(one, written(corner, one.labels)) for one in data]
    found = score_rows(wrong)
    assert found["grec"] == pytest.approx(1 / 3) and found["n_acc"] == 0
    assert found["giou"] == pytest.approx((16 / 20 + 1 + 0) / 3)


def test_pixels_that_are_not_scored_count_for_nothing():
    truth, ignore = np.zeros((1, 8, 8), bool), np.zeros((8, 8), bool)
    truth[0, :4], ignore[2:6] = True, True
    one = sample(("cat",), "res", truth, meta={"ignore": ignore})
    made = row(one, written(np.ones((4, 4), int), ["cat"]))
    assert (made["intersection"], made["predicted"], made["target"]) == (16, 32, 16)


def test_a_rejection_must_be_well_formed():
    nothing = sample(("cat",), "gres", np.zeros((1, 8, 8), bool))
    good = row(nothing, written(np.zeros((4, 4), int), ["cat"]))
    torn = row(nothing, "I see no cat.")
    assert good["rejected"] and not torn["rejected"] and torn["malformed"]
    assert score_rows([good])["n_acc"] == 1 and score_rows([torn])["n_acc"] == 0
    assert score_rows([torn], malformed_is_rejection=True)["n_acc"] == 1
    assert math.isnan(score_rows([good])["t_acc"]), "no sample of its kind"


def test_grec_takes_components_for_objects_where_the_data_set_names_them():
    objects = np.zeros((2, 8, 8), bool)
    objects[0, :4, :2], objects[1, 4:, 6:] = True, True  # 2 x 4 and 2 x 4 pixels, apart
    meta = {"ann_ids": (7, 8), "instance_masks": objects, "instance_owners": (0, 0)}
    both = sample(("cats",), "gres", objects.any(0)[None], meta=meta)
    made = row(both, written([[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 1]], ["cats"]))
    assert made["boxes"] == made["true_boxes"] == ["0 0 2 4", "6 4 8 8"] and made["box"] == "0 0 8 8"
    joined = row(both, written([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], ["cats"]))
    assert joined["boxes"] == ["0 0 8 8"], "cells that touch by a corner are one"
    none = sample(("cats",), "gres", np.zeros((1, 8, 8), bool), id="none", meta={"ann_ids": ()})
    nothing = row(none, written(np.zeros((4, 4), int), ["cats"]))
    assert nothing["boxes"] == nothing["true_boxes"] == []
    assert score_rows([made, nothing])["grec"] == 1 and score_rows([joined, nothing])["grec"] == 0.5
    assert table_rows("gres", [joined, nothing])[0]["grec"] == 0.5
    torn = row(none, "no cats")
    assert score_rows([made, torn])["grec"] == 0.5 and score_rows([made, torn])["n_acc"] == 0
    assert score_rows([made, torn], malformed_is_rejection=True)["grec"] == 1
    one = sample(("cats",), "gres", objects.any(0)[None], id="u")
    unnamed = row(one, written(np.ones((4, 4), int), ["cats"]))
    assert "true_boxes" not in unnamed and "grec" not in score_rows([made, unnamed])


def confusion(pairs):
    """Class -> counts, pixel by pixel."""
    names, out = ["others", *CLASSES], defaultdict(lambda: [0, 0, 0, 0])
    for p, t in pairs:
        out[names[p]][0] += p == t
        out[names[p]][1] += 1
        out[names[t]][2] += 1
        out[names[p]][3] += t == 0
    return out


def test_the_counts_of_a_class_map_are_those_of_its_pixels():
    rng = np.random.default_rng(5)
    for _ in range(20):
        grid, truth = rng.integers(0, 4, (4, 4)), rng.integers(0, 4, (8, 8))
        shown = [c for c in (1, 2, 3) if (truth == c).any()]
        one = sample([CLASSES[c - 1] for c in shown], masks=np.stack([truth == c for c in shown]))
        made = row(one, written(grid, CLASSES))
        pred = np.kron(grid, np.ones((2, 2), int))
        assert made["counts"] == confusion(zip(pred.flat, truth.flat))
        assert made["coco_rle"].keys() == {CLASSES[c - 1] for c in np.unique(pred) if c}


def test_void_pixels_of_a_stored_map_are_left_out():
    stored = np.ones((8, 8), np.int32)
    stored[4:] = 255
    source = SimpleNamespace(read=lambda: stored)
    one = sample(("cat",), masks=np.ones((1, 8, 8), bool), meta={"class_map": source})
    made = row(one, written(np.full((4, 4), 2), CLASSES))
    assert made["counts"] == {"cat": [0, 0, 32, 0], "dog": [0, 32, 0, 0]}


def test_a_class_that_no_one_shows_follows_the_convention():
    one = sample(("cat",), masks=np.ones((1, 8, 8), bool))
    rows = [row(one, written(np.ones((4, 4), int), CLASSES))]

    def miou(**options):
        return score_rows(rows, background="ignored", **{"absent": "skip", **options})["miou"]

    assert miou() == 1 and miou(absent="one", classes=CLASSES) == 1
    assert miou(absent="zero", classes=CLASSES) == pytest.approx(1 / 3)
    with pytest.raises(ScoringError, match="which the class list does not have"):
        miou(classes=["dog"])
    with pytest.raises(ScoringError, match="no usual convention") as fault:
        score_rows(rows)
    assert not isinstance(fault.value, NoCommonScore), "evaluate passes over no other fault than that"


def test_of_refined_masks_that_overlap_the_surest_counts():
    class Sam(NoRefiner):
        def refine(self, masks, seed=0, **options):
            scores = np.array([0.9, 0.2, 0.5], np.float32)[:len(masks)]
            nothing = np.zeros(len(masks), bool)
            return Refined(np.ones_like(masks), scores, scores, nothing)

    one = sample(("cat", "dog"))
    grid = [[1, 1, 2, 2]] * 4
    made = row(one, written(grid, CLASSES), refiner=Sam("sam"))
    assert list(made["coco_rle"]) == ["cat"] and made["counts"]["cat"][1] == 64


def test_single_objects_are_scored_by_their_classes_not_by_their_numbers():
    objects = np.zeros((3, 8, 8), bool)
    objects[0, :4, :4], objects[1, :4, 4:], objects[2, 4:, :2] = True, True, True
    one = sample(("cat", "dog"), "instances", np.stack([objects[:2].any(0), objects[2]]), meta={
        "instance_masks": objects, "instance_owners": (0, 0, 1), "instance_crowds": (False, False, True)})
    asked = turn_of(one, Protocol(FOUR, classes=CLASSES))
    assert asked.labels == numbered(CLASSES) and "cat, dog, sky" in asked.question
    assert turn_of(one, Protocol(FOUR, "partial")).labels == numbered(["cat", "dog"])
    first, third, dog = (numbered(CLASSES).index(name) + 1 for name in ("cat 1", "cat 3", "dog"))
    made = row(one, written([[third, third, first, first]] * 2 + [[dog, 0, 0, 0]] * 2, asked.labels))
    assert made["coco_rle"].keys() == {"cat 1", "cat 3"} and made["ceiling_rle"].keys() == {"cat 1", "cat 2"}
    assert [(t["label"], t["crowd"]) for t in made["true_instances"]] == [
        ("cat", False), ("cat", False), ("dog", True)]
    got, ceiling = score_rows([made]), score_rows([made], ceiling=True)
    assert got["pq"] == got["ap"] == ceiling["pq"] == 1 and (got["n_found"], got["n_true"]) == (2, 2)
    half = row(one, written([[third, third, third, third]] * 2 + [[0] * 4] * 2, asked.labels))
    assert score_rows([half])["pq"] == 0 and table_rows("x", [half])[0]["rq"] == 0


def test_an_object_is_as_sure_as_its_cells(monkeypatch):
    protocol, one = Protocol(FOUR, "partial"), sample(("cat",), "instances")
    text = written([[2, 2, 3, 0]] + [[1, 0, 0, 0]] * 3, numbered(["cat"]))  # cat 1, cat 2, and cats
    parsed = parse_answer(text, numbered(["cat"]), one.size, FOUR)
    probs = np.arange(160).reshape(10, 4, 4) / 160
    monkeypatch.setattr(tasks, "answer_confidence", lambda *_: SimpleNamespace(probs=probs))
    made = row_of(one, Answer(text, 9, True, 0.5, grammar=object()), parsed, protocol)
    assert made["confidences"] == {"cat 1": 32.5 / 160, "cat 2": 50 / 160}
    assert row_of(one, Answer(text, 9, True, 0.5), parsed, protocol)["confidences"] == {}


def test_each_named_thing_counts_for_itself():
    masks = np.zeros((3, 8, 8), bool)
    masks[0, :4], masks[1, 4:, :4] = True, True  # the third, "the sky", is not there
    one = sample(("the cat", "the dog", "the sky"), "multi", masks, id="m")
    cells = [[1, 1, 1, 1]] + [[0] * 4] + [[3, 3, 2, 2]] * 2  # half of the cat, no dog where it is, and a sky
    made = row(one, "There is no dog. " + written(cells, one.labels))
    assert made["things"] == {"the cat": [16, 16, 32], "the dog": [0, 16, 16], "the sky": [0, 16, 0]}
    assert made["said_absent"] == ["the dog"] and made["coco_rle"].keys() == {"the cat", "the dog", "the sky"}
    got, ceiling = score_rows([made]), score_rows([made], ceiling=True)
    assert [got[k] for k in ("n_acc", "t_acc", "target_iou", "n", "said")] == [0, 1, 0.25, 1, 1 / 3]
    assert ceiling["n_acc"] == ceiling["target_iou"] == 1
    cells = [[1] * 4] * 2 + [[2, 2, 0, 0]] * 2
    right = {**row(one, "There is no sky. " + written(cells, one.labels)), "id": "other"}
    line = table_rows("x", [made, right])[0]
    assert [line[k] for k in ("n", "target_iou", "said", "n_acc")] == [2, 0.625, 2 / 3, 0.5]
    broken = score_rows([row(one, "<seg>the cat *4")])  # what breaks off rejects nothing
    assert broken["n_acc"] == 0 and broken["n_malformed"] == broken["malformed_rate"] == 1


def test_a_correction_gains_what_it_adds_to_the_mask_before():
    truth = np.arange(8)[None, :, None] < [4] * 8
    first = sample(("cat",), "correction", truth & False, id="a")
    after = sample(("cat",), "correction", truth, id="b", meta={"kind": "add", "change": "the dog"})
    said = [row(first, written([[1, 1, 0, 0]] + [[0] * 4] * 3, ["cat"])),
            written([[1] * 4] * 2 + [[0] * 4] * 2, ["cat"])]
    own = mask_before(first, said[0], Protocol(FOUR), NoRefiner("none"))
    made = row(after, said[1], before=own)
    assert made["before"] == [8, 8, 32] and score_rows([made])["gain"] == 0.75
    assert score_rows([said[0], made])["gain"] == 0.75, "the first turn has nothing before it"
    true = mask_before(first, said[0], Protocol(FOUR, history="plain"), NoRefiner("none"))
    assert not true.any() and row(after, said[1], before=true)["before"] == [0, 0, 32]
    assert "gain" not in score_rows([said[0]]) and table_rows("x", [made])[0]["gain"] == 0.75


def test_references_in_words_and_as_masks_have_lines_of_their_own():
    some = [sample(("cat",), "ores", id=form, meta={"request": form}) for form in ("text", "hybrid")]
    made = [row(one, written([[fill] * 4] * 4, ["cat"])) for one, fill in zip(some, (0, 1))]
    lines = [(line["set"], line["n"], line["ciou"]) for line in table_rows("x", made)[::2]]
    assert lines == [("x", 2, 0.2), ("x, text", 1, 0.0), ("x, hybrid", 1, 0.25)]


def test_words_are_scored_by_the_rule_of_the_sample():
    assert row(question(answer="2"), "Two.")["score"] == 1
    many = row(question(meta={"answers": ["2"] * 2 + ["3"] * 8, "rule": "vqav2"}), "two")
    assert many["score"] == 0.6 and score_rows([many])["accuracy"] == 0.6
    made = row(question(answer="yes"), "Yes, it is.", Protocol(vqa="yes-no"))
    assert score_rows([made])["f1"] == 1 and made["rule"] == "yes-no"
    with pytest.raises(ScoringError, match="no common score"):
        score_rows([made, many])
    secret = row(question(), "two")  # whose answer is not public
    assert secret["score"] is None and table_rows("vqa", [secret])[0]["n"] == 1
    with pytest.raises(ScoringError, match="0 of 1 rows"):
        score_rows([secret])


def test_no_rows_and_mixed_rows_have_no_scores():
    mask = row(sample(("cat",), "res"), written(np.ones((4, 4), int), ["cat"]))
    left_out = {"id": "x", "task": "res", "excluded": "unreadable image"}
    for rows in ([], [left_out], [mask, row(question(answer="a"), "a")]):
        with pytest.raises(ScoringError, match="rows can be scored.*one kind at a time"):
            score_rows(rows)
    assert score_rows([mask, left_out]) == score_rows([mask])


def test_what_is_left_out_is_counted_by_reason():
    rows = [{"id": "a", "task": "res", "excluded": "unreadable image"}, {"id": "b", "task": "res"}]
    before = [{"id": "c", "reason": "missing image"}, {"id": "d", "reason": "missing image"}]
    assert excluded_table(rows, before) == [
        {"reason": "missing image", "n": 2, "first": "c"},
        {"reason": "unreadable image", "n": 1, "first": "a"}]


def test_the_hardest_are_the_lowest_and_then_the_largest():
    counts = {"right": (9, 9), "small miss": (0, 4), "large miss": (0, 90), "rejected": (0, 0),
              "torn": (0, 0), "half": (5, 10)}
    rows = [{"id": name, "task": "gres", "intersection": both, "union": union, "malformed": name == "torn"}
            for name, (both, union) in counts.items()]
    assert [one["id"] for one in hardest(rows, 4)] == ["large miss", "small miss", "torn", "half"]


def test_the_ceiling_of_scenes_is_that_of_the_oracle():
    samples, eight = scene_samples("test", 8, "gres"), get_encoding("rrle", 8)
    rows = [row(one, written(np.zeros((8, 8), int), one.labels, eight), Protocol(eight)) for one in samples]
    ceiling, oracle = score_rows(rows, ceiling=True), oracle_scores(samples, 8)
    for key in ("ciou", "giou", "n_acc", "acc50"):
        assert ceiling[key] == oracle[key]
