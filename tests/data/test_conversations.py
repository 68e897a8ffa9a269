"""Training conversations made on the fly, and their order."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from PIL import Image
from test_semantic import ade, halves
from test_vqa import MAKERS

from t4s_helpers.data import Sample, SampleError, load
from t4s_helpers.data.conversations import (
    Conversations, CroppedMasks, RandomCrops, mix_plan, training_data,
)
from t4s_helpers.data.prompts import Turn


class Encoder:
    """Stands in for a processor: tokens are words."""

    def __call__(self, turns, image=None):
        words = [w for one in turns for w in (one.question + " " + one.text).split()]
        return {"input_ids": words, "labels": words, "image": image}


@pytest.fixture
def sources(tmp_path):
    names = ("gqa", "pope-random", "llava-665k", "ade20k-150")
    for name in names:
        if name in MAKERS:
            MAKERS[name](tmp_path / name)
        else:
            ade(tmp_path / name, halves(1, 2))
    return [load(name, root=tmp_path / name, counts="off") for name in names]


def texts(conversations):
    return [[(t.question, t.text) for t in conversations.turns(n)] for n in range(len(conversations))]


def test_one_pass_over_everything(sources):
    items = Conversations(Encoder(), sources)
    assert len(items) == sum(map(len, sources)) == 8
    asked = sorted(items.source(n).id for n in range(8))
    assert asked == sorted(source[k].id for source in sources for k in range(len(source)))


def test_the_seed_alone_decides(sources):
    once = Conversations(Encoder(), sources, n=40, seed=3)
    again = pickle.loads(pickle.dumps(Conversations(Encoder(), sources, n=40, seed=3)))
    assert texts(once) == [again.turns(n) and [(t.question, t.text) for t in again.turns(n)]
                           for n in range(40)]
    backwards = [[(t.question, t.text) for t in once.turns(n)] for n in reversed(range(40))]
    assert backwards[::-1] == texts(once), "the order of access does not matter"
    assert texts(Conversations(Encoder(), sources, n=40, seed=4)) != texts(once)


@pytest.mark.parametrize(("size", "scheme"), [(16, "rrle"), (8, "irle"), ((4, 6), "full")])
def test_any_grid_and_encoding(sources, size, scheme):
    items = Conversations(Encoder(), [sources[3]], size=size, scheme=scheme)
    (turn,) = items.turns(0)
    rows, cols = (size, size) if isinstance(size, int) else size
    cells = turn.text.split("<seg>")[1].replace("</seg>", "")
    if scheme == "full":
        assert cells.replace("\n", "|").count("|") == rows * cols - 1
    elif scheme == "rrle":
        assert len(cells.splitlines()) == rows


def test_items_are_what_training_wants(sources):
    items = Conversations(Encoder(), sources)
    for n in range(len(items)):
        item = items[n]
        source = items.source(n)
        assert (item["image"] is None) == (source.image is None)
        assert items.lengths()[n] == len(item["input_ids"])
        assert all(isinstance(one, Turn) for one in items.turns(n))


def test_absent_classes_fill_the_list_of_a_conditioned_request(sources):
    few = Conversations(Encoder(), [sources[3]], n=60, distractors=3)
    every = Conversations(Encoder(), [sources[3]], n=60)
    listed = {q.count(",") for [(q, _)] in texts(few) if "choosing" in q.lower()}
    assert listed == {5}, "two present and three absent names, and the template's own comma"
    assert any(q.count(",") >= 149 for [(q, _)] in texts(every))


def test_secret_answers_are_refused(tmp_path):
    MAKERS["vqav2"](tmp_path)
    secret = load("vqav2", "test2015", tmp_path, counts="off")
    with pytest.raises(SampleError, match="no answer to train on"):
        Conversations(Encoder(), [secret])[0]


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


# training


def test_a_model_trains_on_a_mix_of_everything(sources, tmp_path):
    """Masks, words, several turns and no picture at all, through the real processor and trainer."""
    import families

    from t4s_helpers.model import training
    from t4s_helpers.model.backbones import load_backbone

    name = "llava-1.5-7b"
    backbone = load_backbone(name, source=families.folder(name))
    dataset, collate = training_data(backbone, sources, n=24, size=4, distractors=2)
    kinds = {dataset.source(n).image is None for n in range(24)}
    assert kinds == {True, False}, "with and without a picture"
    model = training.add_adapter(backbone, rank=4, alpha=8, dropout=0.0)
    training.fine_tune(backbone, dataset, collate, tmp_path / "out", batch=4, accumulate=1,
                       model=model, learning_rate=1e-2, logging_steps=1)
    losses = [row["loss"] for row in training.read_log(tmp_path / "out" / "log.csv")]
    assert len(losses) == 6 and min(losses[3:]) < losses[0]


def test_data_sets_are_samples_to_training_too(sources):
    """`SampleConversations` takes any sequence of samples."""
    from t4s_helpers.model.training import SampleConversations

    data = SampleConversations(Encoder(), sources[3], 3, size=4)
    assert len(data) == 3 and len(data.lengths()) == 3 and data[2]["image"].shape == (12, 16, 3)


# random crops


def test_crops_show_the_same_part_of_picture_and_masks(tmp_path):
    picture = np.zeros((12, 16, 3), np.uint8)
    picture[:, 8:] = 255
    ade(tmp_path, halves(1, 2))
    path = tmp_path / "images" / "validation" / "ADE_val_00000001.png"
    Image.fromarray(picture).save(path)
    (path.with_suffix(".jpg")).unlink()
    path.rename(path.with_suffix(".jpg"))
    crops = RandomCrops(load("ade20k-150", root=tmp_path, counts="off"), times=20)
    assert len(crops) == 20 and len(crops.classes) == 150
    for n in range(20):
        crop = crops[n]
        y0, x0, y1, x1 = crop.meta["box"]
        assert crop.size == (y1 - y0, x1 - x0) and y1 - y0 >= 6 and x1 - x0 >= 8
        white = crop.pixels()[..., 0] > 127
        for label, mask in zip(crop.labels, crop.masks, strict=True):
            assert np.array_equal(mask, white if label == "building" else ~white)
            assert mask.any()
        assert isinstance(crop.__dict__["_masks"], CroppedMasks)
        assert np.array_equal(crops[n].masks, crop.masks), "the same part at every access"
    assert len({crops[n].meta["box"] for n in range(20)}) > 10


def test_crops_of_pictures_in_memory():
    pixels = np.arange(12 * 16 * 3, dtype=np.uint8).reshape(12, 16, 3)
    masks = np.zeros((2, 12, 16), bool)
    masks[0, :, :8], masks[1, 0, 0] = True, True
    whole = type("Whole", (list,), {"classes": ("a", "b")})(
        [Sample("s", pixels, ("a", "b"), masks, "semantic")])
    seen = {RandomCrops(whole, 30)[n].labels for n in range(30)}
    assert {("a", "b"), ("a",)} <= seen
    for n in range(30):
        crop = RandomCrops(whole, 30)[n]
        if "box" in crop.meta:
            y0, x0, y1, x1 = crop.meta["box"]
            assert np.array_equal(crop.pixels(), pixels[y0:y1, x0:x1])
