"""Requests beyond the paper: masks in the question, several names, corrections."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from toy_tokenizer import CLASSES

from t4s_helpers.codec.encodings import get_encoding
from t4s_helpers.codec.parsing import parse
from t4s_helpers.data import SampleError, load
from t4s_helpers.data.beyond import CRITERIA, DEEP, correction, multi, ores, scene_items
from t4s_helpers.data.coco import MOST_ABSENT
from t4s_helpers.data.mixtures import MIXES, SceneMixture, named_mixture
from t4s_helpers.data.prompts import ask, ask_and_answer, chains, read_absent, read_box
from t4s_helpers.data.sample import BEYOND_TASKS
from t4s_helpers.data.scenes import Scene, SceneObject

FOUR = get_encoding("rrle", 4)


def scene(*things):
    """A scene of 8 x 8 pixels: things "size color category", each on a row of its own, from left to right."""
    objects = []
    for k, words in enumerate(things):
        mask = np.zeros((8, 8), bool)
        mask[2 * k:2 * k + 2, :4] = True
        size, color, category = words.split()
        objects.append(SceneObject(category, color, size, (20.0 * k, 3.0), mask, (0, 2 * k, 4, 2 * k + 2)))
    return Scene("test-0", "test", np.zeros((8, 8, 3), np.uint8), tuple(objects))


def rows(sample, k: int = 0) -> set[int]:
    """The objects of `scene` that a sample's mask shows."""
    return {int(y) // 2 for y in np.flatnonzero(sample.masks[k].any(1))}


@pytest.mark.parametrize("kind", CLASSES)
def test_a_reference_stands_in_the_question_in_the_encoding_asked_for(kind):
    encoding = kind(16)
    for sample in scene_items("test", 12, "ores"):
        asked = ask(sample, np.random.default_rng(2), encoding=encoding)
        assert ("<seg>" in asked.question) == (sample.meta["request"] == "hybrid")
        if sample.meta["request"] == "hybrid":
            before, body, after = asked.question.replace("</seg>", "<seg>").split("<seg>")
            where = np.kron(encoding.decode(body, ["this"]), np.ones((8, 8), int)).astype(bool)
            assert (where & sample.meta["reference"]).sum() > 0.6 * where.sum()
            assert asked.labels[0].removesuffix("this") in before + after
    with pytest.raises(ValueError, match="holds a mask: say in which encoding"):
        ask(sample)


def test_both_ways_to_ask_mean_the_same_things():
    four = scene("small red star", "large red star", "small blue star", "large red cloud")
    words, seen = [o.words for o in four.objects], set()
    for seed in range(200):
        text, hybrid = ores(np.random.default_rng(seed), four)
        held = set(np.flatnonzero([np.array_equal(o.mask, hybrid.meta["reference"]) for o in four.objects]))
        assert len(held) == 1 and np.array_equal(text.masks, hybrid.masks) and "reference" not in text.meta
        (one,), (label,) = held, hybrid.labels
        seen.add(text.meta["kind"])
        for place, name in enumerate(("size", "color", "kind")):
            if label.endswith(f"same {name} as this"):
                alike = {k for k in range(4) if words[k][place] == words[one][place]}
                assert rows(text) == alike - held, "the reference is not among what is meant"
        if label == "all things left of this":
            assert rows(text) == set(range(one))
    assert seen == set(CRITERIA)


def test_a_person_s_table_may_have_references(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    Image.fromarray(np.kron([[0, 0], [1, 0]], np.ones((4, 4))).astype(bool)).save(tmp_path / "m.png")
    (tmp_path / "own.csv").write_text("image,expression,mask,reference\na.png,all cups left of this,,m.png\n"
                                      "a.png,all cups,m.png,\n")
    hybrid, text = load(tmp_path / "own.csv", task="ores")
    assert (hybrid.meta["request"], text.meta["request"]) == ("hybrid", "text") and text.has_target.all()
    assert ask(hybrid, encoding=get_encoding("rrle", 2)).question == (
        "Segment all cups left of <seg>others *2\nthis *1|others *1</seg>.")
    with pytest.raises(SampleError, match="one label with the word 'this' once"):
        replace(text, meta=hybrid.meta, masks=text.masks)


@pytest.mark.parametrize("style", ["plain", "box"])
def test_the_answer_says_what_is_not_there_and_marks_the_rest(style):
    several = [s for s in scene_items("test", 40, "multi") if not s.has_target.all() and s.has_target.any()]
    assert len(several) > 10
    for sample in several:
        turn = ask_and_answer(sample, get_encoding(), style)
        grid, report = parse(turn.text, turn.labels, get_encoding())
        absent = [name for name, there in zip(sample.labels, sample.has_target) if not there]
        assert report.ok and read_absent(report.before, sample.labels) == absent
        assert {turn.labels[k - 1] for k in np.unique(grid) if k} == {*sample.labels} - {*absent}
        assert all(name in turn.question for name in sample.labels)
        assert (read_box(report.before) is not None) == (style == "box")


def test_names_are_true_and_at_least_two():
    two, fits = scene("small red star", "large blue cloud"), {
        0: {"small", "red", "star", "leftmost"}, 1: {"large", "blue", "cloud", "rightmost"}}
    for seed in range(60):
        one = multi(np.random.default_rng(seed), two)
        assert len(one.labels) in (2, 3, 4)
        for k, label in enumerate(one.labels):
            words = set(label.split()) - {"the", "thing"}
            assert rows(one, k) == {thing for thing, said in fits.items() if words <= said}


def test_a_correction_changes_the_mask_before_as_it_says():
    four = scene("small red star", "large red star", "small blue star", "large blue cloud")
    words = [set(o.words) for o in four.objects]
    for seed in range(100):
        turns = correction(np.random.default_rng(seed), four)
        assert len(turns) == DEEP and len({one.labels for one in turns}) == 1
        assert len({one.masks.tobytes() for one in turns}) == DEEP, "each turn changes something"
        for before, after in itertools.pairwise(turns):
            said = {w.removesuffix("s") for w in after.meta["change"].split()} - {"the", "thing", "one"}
            fits = {k for k in range(4) if said <= words[k]}
            if after.meta["kind"] == "add":
                assert not fits & rows(before) and rows(after) == rows(before) | fits
            else:
                assert fits & rows(before) and rows(after) == rows(before) - fits
    said = {"add": "Also", "drop": "Not"}[after.meta["kind"]]
    assert ask(after).follows and ask(after).question == f"{said} {after.meta['change']}."
    alone = correction(np.random.default_rng(0), scene("small red star"))
    assert [rows(one) for one in alone] == [{0}, set()], "of a single thing, there is nothing else to do"


@pytest.mark.parametrize("task", BEYOND_TASKS)
def test_they_come_by_name_in_any_part(task):
    many, few = load("scenes", n=7, task=task), load("scenes", n=2, start=5, task=task)
    assert len(many) == 7 and repr(few) == repr(many[5:])


def test_the_mix_has_its_shares_and_keeps_turns_together():
    assert all(sum(shares.values()) == pytest.approx(1) for shares in MIXES.values())
    found = map(SceneMixture(60, "beyond", encoding=FOUR).turns, range(60))
    talks = [talk for turns in found for talk in chains(turns)]
    assert {(len(talk), len({turn.labels for turn in talk})) for talk in talks} == {(1, 1), (2, 1), (3, 1)}


def test_a_person_s_coco_folder_is_asked_for_classes_that_are_not_there(tmp_path):
    names, outline = ("zebra", "dog", "cat", "cow", "ant"), [[0, 0, 4, 0, 4, 4, 0, 4]]
    (tmp_path / "images").mkdir()
    for k in range(2):
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / f"{k}.png")
    (tmp_path / "instances.json").write_text(json.dumps({
        "images": [{"id": k, "file_name": f"{k}.png", "height": 8, "width": 8} for k in range(2)],
        "categories": [{"id": k, "name": name} for k, name in enumerate(names)],
        "annotations": [{"id": k + 1, "image_id": int(k > 0), "category_id": k, "segmentation": outline}
                        for k in range(5)]}))
    one, _ = load(tmp_path, task="multi")
    assert len(one.labels) == 1 + MOST_ABSENT and list(one.labels) == sorted(one.labels)
    assert one.labels == load(tmp_path, task="multi")[0].labels, "the same ones each time"
    assert dict(zip(one.labels, one.masks.sum((1, 2)).tolist()))["zebra"] == 16 == one.masks.sum()
    mixture = named_mixture({str(tmp_path): 1}, reading={"task": "multi"}, encoding=FOUR)
    (turn,) = next(turns for turns in map(mixture.turns, range(2)) if "zebra *2" in turns[0].text)
    assert turn.text.count("There is no") == MOST_ABSENT and "<seg>zebra *2|others *2\n" in turn.text
