"""What a model is trained on: which conversations, in which order and words."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from miniatures import MAKERS, ade, cocostuff, halves
from PIL import Image

from t4s_helpers.codec.encodings import get_encoding
from t4s_helpers.data import Sample, SampleError, load
from t4s_helpers.data.mixtures import (
    MIXES, DataMixture, RandomCrops, SceneMixture, mix_plan, named_mixture,
)


@pytest.fixture
def sources(tmp_path):
    names = ("gqa", "pope-random", "llava-665k")
    for name in names:
        MAKERS[name](tmp_path / name)
    ade(tmp_path / "ade20k-150", halves(1, 2))
    return [load(name, root=tmp_path / name, counts="off") for name in (*names, "ade20k-150")]


def turns(mixture):
    return [mixture.turns(n) for n in range(len(mixture))]


# scenes


@pytest.mark.parametrize("mix", MIXES)
def test_conversations_never_ask_for_one_mask_twice(mix):
    for found in turns(SceneMixture(40, mix)):
        answers = [one.text.partition("<seg>")[2] for one in found if one.labels]
        shapes = [tuple(answer.replace("|", "\n").split("\n")) for answer in answers]
        assert 1 <= len(found) <= 4 and len(set(shapes)) == len(shapes)


def test_scenes_are_asked_about_by_number_and_seed():
    one, other = SceneMixture(6, seed=1), SceneMixture(6, seed=2)
    assert turns(one) == turns(SceneMixture(6, seed=1)) != turns(other)
    scene, said = one.conversation(5)
    assert said == one.turns(5) and np.array_equal(scene.image, other.image(5)) and len(one) == 6
    assert SceneMixture(1, "res", encoding=get_encoding("irle", 8)).turns(0)[0].text.count("\n") == 1
    with pytest.raises(ValueError, match="mix='some' is not known; choose one of res, gres, all"):
        SceneMixture(1, "some")


# any samples


def test_samples_are_worded_anew_at_each_pass():
    samples = load("photos", n=2)
    layout = dict(style="box", encoding=get_encoding(grid_size=8))
    mixture = DataMixture([samples], epochs=10, **layout)
    assert len(mixture) == 20
    first = [k for k in range(20) if mixture.source(k) == samples[0]]
    assert len(first) == 10 and np.array_equal(mixture.image(first[0]), samples[0].pixels())
    assert {one.labels for k in first for one in mixture.turns(k)} == {samples[0].labels}
    assert len({one.question for k in first for one in mixture.turns(k)}) > 1
    assert turns(mixture) == turns(DataMixture([samples], epochs=10, **layout))
    assert mixture.turns(0)[0].text.startswith("At ")
    with pytest.raises(SampleError, match="no samples"):
        DataMixture([[]], 3)


def test_an_epoch_ends_before_the_next_begins():
    mixture = DataMixture([list("abc"), list("xy")], weights=[1, 2], epochs=3, seed=2)
    epochs = [[mixture.source(7 * epoch + k) for k in range(7)] for epoch in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [sorted("abcxxyy")] * 3
    assert len(set(map(tuple, epochs))) > 1, "each in an order of its own"


# data sets, as the paper mixes them


def test_one_pass_over_everything(sources):
    mixture = DataMixture(sources)
    assert len(mixture) == sum(map(len, sources)) == 8
    asked = sorted(mixture.source(n).id for n in range(8))
    assert asked == sorted(source[k].id for source in sources for k in range(len(source)))
    pictures = [mixture.image(n) for n in range(8)]
    assert [image is None for image in pictures] == [mixture.source(n).image is None for n in range(8)]
    assert {True, False} == {image is None for image in pictures}


def test_the_seed_alone_decides(sources):
    once = DataMixture(sources, n=40, seed=3)
    again = pickle.loads(pickle.dumps(DataMixture(sources, n=40, seed=3)))
    assert turns(once) == turns(again) != turns(DataMixture(sources, n=40, seed=4))
    backwards = [once.turns(n) for n in reversed(range(40))]
    assert backwards[::-1] == turns(once), "the order of access does not matter"


def test_answers_are_in_the_encoding_that_was_asked(sources):
    encoding = get_encoding("full", (4, 6))
    (one,) = DataMixture(sources[3:], encoding=encoding).turns(0)
    assert encoding.decode(one.text.split("<seg>")[1].removesuffix("</seg>"), one.labels).any()


def test_absent_classes_fill_the_list_of_a_conditioned_request(sources):
    few = turns(DataMixture(sources[3:], n=60, distractors=3))
    every = turns(DataMixture(sources[3:], n=60))
    listed = {one.question.count(",") for (one,) in few if "choosing" in one.question.lower()}
    assert listed == {5}, "two present and three absent names, and the template's own comma"
    assert any(one.question.count(",") >= 149 for (one,) in every)


def test_secret_answers_are_refused(tmp_path):
    MAKERS["vqav2"](tmp_path)
    secret = load("vqav2", "test2015", tmp_path, counts="off")
    with pytest.raises(SampleError, match="no answer to train on"):
        DataMixture([secret]).turns(0)


def test_the_plan_goes_through_a_data_set_before_it_repeats():
    source, index = mix_plan([5, 3], weights=[1, 2], seed=1)
    assert len(source) == 11 and source.dtype == np.uint8 and index.dtype == np.int32
    assert sorted(index[source == 0].tolist()) == [0, 1, 2, 3, 4]
    assert sorted(index[source == 1].tolist()) == [0, 0, 1, 1, 2, 2]
    source, index = mix_plan([100, 100], n=30, weights=[2, 1])
    assert np.bincount(source).tolist() == [20, 10]
    assert len(set(index[source == 0].tolist())) == 20


@pytest.mark.parametrize(("lengths", "weights"), [([], None), ([3], [1, 1]), ([3], [0]),
                                                  ([3], [-1]), ([3, 0], [1, 1])])
def test_mixes_that_make_no_sense(lengths, weights):
    with pytest.raises(SampleError):
        mix_plan(lengths, weights=weights)


def test_a_mixture_by_name(tmp_path):
    cocostuff(tmp_path / "cocostuff", halves(0, 181), "train2017")
    mixture = named_mixture({"cocostuff": 10, "photos": 0.5}, tmp_path, crops=True,
                            reading={"counts": "off"}, distractors=2)
    shown = [mixture.source(n) for n in range(len(mixture)) if mixture.plan[0][n] == 0]
    assert len(shown) == 10 and len({sample.size for sample in shown}) > 1
    assert {label for sample in shown for label in sample.labels} == {"person", "wood"}
    assert len(mixture) - 10 == round(len(load("photos")) / 2)
    own_folder = load("cocostuff", "train2017", tmp_path / "cocostuff", counts="off")
    assert [sample.labels for sample in own_folder] == [("person", "wood")], "the set's folder will do, too"
    with pytest.raises(SampleError, match="no data set and no file 'mine'"):
        named_mixture({"mine": 1})


# random crops


def test_crops_show_the_same_part_of_picture_and_masks(tmp_path):
    picture = np.zeros((12, 16, 3), np.uint8)
    picture[:, 8:] = 255
    ade(tmp_path, halves(1, 2))
    path = tmp_path / "images" / "validation" / "ADE_val_00000001.jpg"
    Image.fromarray(picture).save(path, "PNG")
    data = load("ade20k-150", root=tmp_path, counts="off")
    in_memory = type("Whole", (list,), {"classes": data.classes})([
        Sample("s", picture, data[0].labels, data[0].masks, "semantic")])
    for whole in (data, in_memory):
        crops = RandomCrops(whole, times=20)
        assert len(crops) == 20 and len(crops.classes) == 150
        for n, crop in enumerate(crops[n] for n in range(20)):
            y0, x0, y1, x1 = crop.meta["part"]
            assert crop.size == (y1 - y0, x1 - x0) and y1 - y0 >= 6 and x1 - x0 >= 8
            white = crop.pixels()[..., 0] > 127
            for label, mask in zip(crop.labels, crop.masks, strict=True):
                assert np.array_equal(mask, white if label == "building" else ~white) and mask.any()
            assert np.array_equal(crops[n].masks, crop.masks), "the same part at every access"
        assert len({crops[n].meta["part"] for n in range(20)}) > 10
        assert DataMixture([crops]).turns(0)[0].labels


def test_labels_that_a_part_does_not_show_go():
    masks = np.zeros((2, 12, 16), bool)
    masks[0, :, :8] = masks[1, 0, 0] = True
    for kept, labels in (([0, 1], {("a", "b"), ("a",)}), ([1], {("b",)})):
        sample = Sample("s", np.zeros((12, 16, 3), np.uint8), tuple("ab"[k] for k in kept), masks[kept])
        crops = RandomCrops(type("Whole", (list,), {"classes": ("a", "b")})([sample]), 30)
        assert {crops[n].labels for n in range(30)} == labels
    assert any(crops[n] is sample for n in range(30)), "nothing is shown: the sample stays whole"
