"""Single objects in text: their numbers, and what has none."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image
from toy_tokenizer import CLASSES

from t4s_helpers.codec.encodings import DescriptorError, get_encoding
from t4s_helpers.codec.parsing import parse
from t4s_helpers.data import SampleError, load
from t4s_helpers.data.expressions import scene_samples
from t4s_helpers.data.instances import MOST, class_of, numbered, numbered_grid
from t4s_helpers.data.mixtures import SceneMixture, named_mixture
from t4s_helpers.data.prompts import NUMBERING, ask, ask_and_answer
from t4s_helpers.data.sample import Sample

FOUR = get_encoding("rrle", 4)
DOG, CAT, EIGHTH = 1, 1 + MOST + 1, MOST + 1  # "dog", "cat" and "dog 8" in a grid of the two classes


def sample(*objects, labels=("dog", "cat"), crowds=None):
    """Of objects ``(label, y0, x0, y1, x1)`` in 8 x 8 pixels, two by two of which are a cell."""
    masks = np.zeros((len(objects), 8, 8), bool)
    for mask, (_, y0, x0, y1, x1) in zip(masks, objects):
        mask[y0:y1, x0:x1] = True
    owners = [labels.index(label) for label, *_ in objects]
    unions = np.stack([masks[[k == owner for owner in owners]].any(0) for k in range(len(labels))])
    meta = {"instance_masks": masks, "instance_owners": owners}
    meta |= {} if crowds is None else {"instance_crowds": crowds}
    return Sample("s", np.zeros((8, 8, 3), np.uint8), labels, unions, "instances", meta=meta)


def test_numbers_follow_the_text_whatever_the_order_of_the_annotations():
    objects = [("dog", 4, 0, 8, 2), ("cat", 0, 2, 2, 4), ("dog", 0, 6, 6, 8), ("dog", 0, 0, 2, 2)]
    for order in ([0, 1, 2, 3], [3, 2, 1, 0]):
        turn = ask_and_answer(sample(*(objects[k] for k in order)), FOUR, mode="partial")
        assert turn.text.partition("<seg>")[2].removesuffix("</seg>").split("\n") == [
            "dog 1 *1|cat 1 *1|others *1|dog 2 *1", "others *3|dog 2 *1",
            "dog 3 *1|others *2|dog 2 *1", "dog 3 *1|others *3"]
        assert turn.question == "Segment only these: dog, cat. Number the objects of each class."


@pytest.mark.parametrize("kind", CLASSES)
def test_the_next_new_object_always_has_the_next_number(kind):
    encoding, several = kind(16), 0
    for one in scene_samples("train", 20, "instances"):
        turn = ask_and_answer(one, encoding, rng=np.random.default_rng(3))
        grid, report = parse(turn.text, turn.labels, encoding)
        asked = {class_of(label) for label in turn.labels if label[-1] == "1"}
        assert report.ok and asked <= set(one.labels)
        for name in asked:
            said = [int(n) for n in re.findall(rf"\b{name} (\d)", turn.text.partition("<seg>")[2])]
            n_true = sum(one.labels[owner] == name for owner in one.instances()[1])
            assert list(dict.fromkeys(said)) == [*range(1, n_true + 1)], "each object has a cell here"
            several += n_true > 1
    assert several > 2


def test_touching_overlapping_and_tiny_objects():
    touching = numbered_grid(sample(("dog", 0, 0, 8, 4), ("dog", 0, 4, 8, 8)), ["dog"], FOUR)
    assert touching.tolist() == [[2, 2, 3, 3]] * 4
    lying_on = numbered_grid(sample(("dog", 0, 0, 8, 8), ("cat", 2, 2, 4, 5)), ["dog", "cat"], FOUR)
    assert np.argwhere(lying_on == CAT + 1).tolist() == [[1, 1]], "of equals the smaller has the cell"
    assert (lying_on == DOG + 1).sum() == 15
    tiny = sample(("dog", 0, 0, 1, 1), ("dog", 1, 1, 2, 2))  # both within one cell
    assert numbered_grid(tiny, ["dog"], FOUR)[0].tolist() == [2, 0, 0, 0], "one cell for two, and no gap"


def test_crowds_and_what_numbers_do_not_reach_stand_by_name_alone():
    crowd = sample(("dog", 0, 0, 4, 8), ("dog", 4, 0, 8, 2), crowds=(True, False))
    assert numbered_grid(crowd, ["dog"], FOUR).tolist() == [[DOG] * 4] * 2 + [[DOG + 1, 0, 0, 0]] * 2
    many = sample(*(("dog", 2 * (k // 4), 2 * (k % 4), 2 * (k // 4) + 2, 2 * (k % 4) + 2)
                    for k in reversed(range(10))))
    assert numbered_grid(many, ["dog"], FOUR).ravel().tolist() == [
        *range(DOG + 1, EIGHTH + 1), DOG, DOG, 0, 0, 0, 0, 0, 0]


def test_an_absent_class_has_no_cells_and_all_numbers_are_offered():
    one = sample(("dog", 0, 0, 4, 4))
    assert not numbered_grid(one, ["cat", "bird"], FOUR).any()
    assert (numbered_grid(one, ["cat", "dog"], FOUR) == CAT + 1).sum() == 4, "the order is the request's"
    assert ask(one).labels == numbered(["dog", "cat"]) and len(ask(one).labels) == 2 * (MOST + 1)
    for scene in scene_samples("val", 20, "instances"):
        assert (~scene.has_target).sum() == 1 and scene.meta["n_objects"] == len(scene.instances()[0])


def test_names_that_would_be_mistaken_are_refused():
    with pytest.raises(DescriptorError, match="'zone 1' repeats"):
        numbered(["zone", "zone 1"])
    assert numbered([" dog "])[:2] == ("dog", "dog 1")


def test_coco_files_give_single_objects_by_name_and_as_a_person_s_own(tmp_path):
    outlines = [[x, 0, x + 4, 0, x + 4, 4, x, 4] for x in (4, 0)]
    notes = [{"id": k, "image_id": 7, "category_id": 3, "iscrowd": k, "segmentation": [outline]}
             for k, outline in enumerate(outlines)]
    content = {"images": [{"id": 7, "file_name": "a.png", "height": 8, "width": 8}],
               "categories": [{"id": 3, "name": "dog"}], "annotations": notes}
    (tmp_path / "annotations").mkdir()
    (tmp_path / "train2017").mkdir()
    (tmp_path / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    Image.new("RGB", (8, 8)).save(tmp_path / "train2017" / "a.png")
    (named,) = load("coco-instances", "train", tmp_path, counts="off")
    (own,) = load(tmp_path, task="instances")
    assert named.task == own.task == "instances" and named.id == "coco-instances/7"
    assert named.crowds().tolist() == [False, True]
    mixture = named_mixture({"coco-instances": 1}, tmp_path, reading={"counts": "off"}, encoding=FOUR)
    assert "<seg>dog *2|dog 1 *2\ndog *2|dog 1 *2\nothers *4\nothers *4</seg>" in mixture.turns(0)[0].text
    (tmp_path / "own.csv").write_text("image,expression,mask\n")
    with pytest.raises(SampleError, match="own.csv is a table .*leave task out"):
        load(tmp_path / "own.csv", task="instances")
    with pytest.raises(SampleError, match="option task; leave it out for refcoco"):
        load("refcoco", task="instances")


def test_scenes_mix_them_in():
    asked = [turn.question for k in range(20) for turn in SceneMixture(20, "instances").turns(k)]
    assert 8 < sum(one.endswith(NUMBERING) for one in asked) < len(asked)
