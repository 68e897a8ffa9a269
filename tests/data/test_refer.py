"""RefCOCO-family files: the official layout in miniature, broken files, harmful pickles."""

from __future__ import annotations

import copy
import json
import os
import pickle

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from shared_data import shared_data

from t4s_helpers.data import SampleError, load
from t4s_helpers.data.refer import DATASETS, ReferDataset, load_refer

H, W = 24, 32
PHOTO = "COCO_train2014_000000000042.jpg"


def box(x0, y0, x1, y1):
    return [x0, y0, x1, y0, x1, y1, x0, y1]


CODE = {"size": [H, W], "counts": [0, 5, H * W - 5]}
INSTANCES = {
    "images": [{"id": 42, "file_name": PHOTO, "height": H, "width": W}],
    "categories": [{"id": 1, "name": "person"}, {"id": 2, "name": "kite"}],
    "annotations": [
        {"id": 500, "image_id": 42, "category_id": 1, "iscrowd": 0,
         "segmentation": [box(2, 2, 12, 12), box(8, 2, 16, 12)]},
        {"id": 501, "image_id": 42, "category_id": 2, "iscrowd": 1, "segmentation": CODE},
    ],
}


def sentence(number, text):
    return {"sent_id": number, "sent": text, "raw": text.title(), "tokens": text.split()}


REFS = [
    {"ref_id": 0, "ann_id": 500, "image_id": 42, "category_id": 1, "split": "val",
     "file_name": PHOTO.replace(".jpg", "_0.jpg"), "sent_ids": [10, 11],
     "sentences": [sentence(10, "man in red"), sentence(11, "left guy")]},
    {"ref_id": 1, "ann_id": 501, "image_id": 42, "category_id": 2, "split": "testA",
     "file_name": PHOTO.replace(".jpg", "_1.jpg"), "sent_ids": [12],
     "sentences": [sentence(12, "the kite | upper corner")]},
]


@pytest.fixture
def root(tmp_path):
    def build(refs=REFS, instances=INSTANCES, dataset="refcoco", split_by="unc", photo=(W, H)):
        (tmp_path / dataset).mkdir(exist_ok=True)
        data = refs if isinstance(refs, bytes) else pickle.dumps(refs, protocol=2)
        if DATASETS[dataset].any_number:
            (tmp_path / dataset / f"grefs({split_by}).json").write_text(json.dumps(refs))
        else:
            (tmp_path / dataset / f"refs({split_by}).p").write_bytes(data)
        (tmp_path / dataset / "instances.json").write_text(json.dumps(instances))
        photos = tmp_path / DATASETS[dataset].photos
        photos.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", photo, "olive").save(photos / PHOTO)
        return tmp_path

    return build


def changed(content, value, *keys):
    """A copy of ``content`` in which ``content[keys[0]]...[keys[-1]]`` is ``value``."""
    result = inner = copy.deepcopy(content)
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    return result


def opened(where, dataset="grefcoco", **options):
    return ReferDataset(where, dataset, **{"counts": "off", **options})


# what good files become


def test_one_sample_per_sentence(root):
    samples = load_refer(root())
    assert [s.labels for s in samples] == [
        ("man in red",), ("left guy",), ("the kite | upper corner",)]
    assert [s.split for s in samples] == ["val", "val", "testA"]
    assert [s.id for s in load_refer(root(), split="testA")] == [samples[2].id]
    assert len({s.id for s in samples}) == 3 and {s.task for s in samples} == {"res"}
    assert samples[1].meta == {
        "ref_id": 0, "image_id": 42, "ann_ids": (500,), "category": "person",
        "dataset": "refcoco", "split_by": "unc", "sent_id": 11}
    man, _, kite = (sample.masks[0] for sample in samples)
    expected = np.zeros((2, H, W), bool)
    expected[0, 2:12, 2:16] = expected[1, :5, 0] = True
    assert np.array_equal([man, kite], expected) and samples[0].pixels().shape == (H, W, 3)
    first, second = (sample.mask_source.args[0][0][0] for sample in samples[:2])
    assert first is second, "sentences of one reference share their outline"


@pytest.mark.parametrize(
    ("dataset", "split_by"),
    [(name, by) for name, layout in DATASETS.items() for by in layout.split_bys],
)
def test_every_data_set_and_splitting(root, dataset, split_by):
    where = root(dataset=dataset, split_by=split_by)
    samples = load_refer(where, dataset, split_by)
    assert len(samples) == 3 and samples[0].meta["dataset"] == dataset


# pickles


def python2(value):
    """The value as Python 2 pickled it: protocol 0, texts as bytes."""
    if isinstance(value, dict):
        items = b"".join(python2(k) + python2(v) + b"s" for k, v in value.items())
        return b"(d" + items
    if isinstance(value, list):
        return b"(l" + b"".join(python2(v) + b"a" for v in value)
    if isinstance(value, bytes):
        return b"S" + repr(value)[1:].encode() + b"\n"
    if isinstance(value, str):
        return python2(value.encode())
    return b"L%dL\n" % value


@pytest.mark.parametrize("text", ["caf\u00e9 sign", "caf\u00e9 sign".encode("latin-1")])
def test_pickles_of_python_2(root, text):
    refs = changed(REFS, text, 0, "sentences", 0, "sent")
    assert load_refer(root(python2(refs) + b"."))[0].labels == ("caf\u00e9 sign",)


class Harmful:
    def __init__(self, call, *arguments):
        self.reduced = (call, arguments)

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("deep", [False, True])
def test_a_harmful_pickle_runs_nothing(root, tmp_path, protocol, deep):
    trace = tmp_path / "trace"
    harmful = Harmful(os.mkdir, str(trace))
    refs = changed(REFS, harmful, 0, "sentences", 0, "tokens") if deep else harmful
    assert len(load_refer(root(pickle.dumps(REFS, protocol=protocol)))) == 3
    data = pickle.dumps(refs, protocol=protocol)
    with pytest.raises(SampleError, match=r"refs\(unc\)\.p was not read.*mkdir"):
        load_refer(root(data))
    assert not trace.exists()
    pickle.loads(data)
    assert trace.exists(), "the pickle is harmful where it is trusted"


@pytest.mark.parametrize(("refs", "words"), [
    *((pickle.dumps(Harmful(call), protocol=2), "was not read.*asks for")
      for call in (eval, getattr, np.array, complex, set, copy.copy)),
    *((data, "was not read") for data in (b"", b"no pickle", pickle.dumps(REFS)[:-20], b"P1\n.",
                                          b"\x80\x04\x8d" + b"\xff" * 8, b"\x80\x02\x82\x01.")),
    ({}, "holds no list"), ([1], "holds no list"),
])
def test_nothing_but_plain_data_is_admitted(root, refs, words):
    with pytest.raises(SampleError, match=rf"refs\(unc\)\.p {words}"):
        load_refer(root(refs))


# files that do not fit together


def test_outlines_nobody_refers_to_may_be_broken(root):
    instances = changed(INSTANCES, [], "annotations", 1, "segmentation")
    assert len(load_refer(root(instances=instances), split="val")) == 2


@pytest.mark.parametrize("gone", ["refcoco/refs(unc).p", "refcoco/instances.json", "images"])
def test_shows_the_layout_where_something_is_missing(root, gone):
    where = root()
    (where / gone).rename(where / "elsewhere")
    with pytest.raises(SampleError) as caught:
        load_refer(where)
    assert gone in str(caught.value).split(" does not exist")[0]
    for part in ("refcoco/refs(unc|google).p", "instances.json", "images/mscoco/images/train2014"):
        assert part in str(caught.value).split("the layout is")[1]


@pytest.mark.parametrize(("asked", "words"), [
    ({"split_by": "google"}, r"refs\(google\)\.p does not exist \(refs\(unc\)\.p is"),
    ({"dataset": "coco"}, "'coco' is not known; choose one of refclef, refcoco,"),
    ({"split": "test"}, r"refs\(unc\)\.p has no split 'test'; .*testA, val"),
    ({"bad": "toss"}, "'toss'"), ({"counts": "lax"}, "'lax'"),
])
def test_names_the_choices(root, asked, words):
    with pytest.raises(SampleError, match=words):
        opened(root(), **{"dataset": "refcoco", **asked})


@pytest.mark.parametrize("text", ["", "  ", "others", "Others "])
def test_warns_of_sentences_that_cannot_be_labels(root, text):
    refs = changed(REFS, text, 0, "sentences", 1, "sent")
    with pytest.warns(UserWarning, match=r"1 sentences of .*left out: refcoco\(unc\)/0/11"):
        assert len(load_refer(root(refs))) == 2


# gRefCOCO: any number of targets


def gref(number, ann_id, no_target=None, split="val", text="both kites"):
    ref = {"ref_id": number, "ann_id": ann_id, "image_id": 42, "split": split,
           "file_name": PHOTO, "category_id": [2 if n != -1 else -1 for n in ann_id],
           "sent_ids": [number], "sentences": [{**sentence(number, text), "exist": True}]}
    return ref if no_target is None else {**ref, "no_target": no_target}


GREFS = [gref(0, [500], False, text="man"), gref(1, [500, 501], False, text="both"),
         gref(2, [-1], True, text="a giraffe"), gref(3, [], True, text="a zebra"),
         gref(4, [501, 501], text="the kite")]


def test_any_number_of_targets(root):
    one, both, none, empty, twice = opened(root(GREFS, dataset="grefcoco"))
    assert {s.task for s in (one, both, none)} == {"gres"}
    assert [s.meta["ann_ids"] for s in (one, both, none, empty, twice)] == [
        (500,), (500, 501), (), (), (501,)]
    assert [s.has_target.tolist() for s in (one, both, none, empty)] == [
        [True], [True], [False], [False]]
    assert none.masks.shape == (1, H, W)
    assert np.array_equal(both.masks[0], one.masks[0] | twice.masks[0])
    objects, owners = both.instances()
    assert objects.shape == (2, H, W) and owners.tolist() == [0, 0]
    assert both.meta["category"] == "person, kite" and none.meta["category"] == ""


@pytest.mark.parametrize(("dataset", "refs"), [("grefcoco", GREFS), ("refcoco", REFS)])
def test_expressions_may_be_either_kind_of_file(root, dataset, refs):
    where = root(refs, dataset=dataset)
    (path,) = (where / dataset).glob("*refs(unc).*")
    expected = [(s.id, s.labels, s.meta.get("ann_ids")) for s in opened(where, dataset)]
    path.unlink()
    if path.suffix == ".json":
        path.with_suffix(".p").write_bytes(pickle.dumps(refs))
    else:
        path.with_suffix(".json").write_text(json.dumps(refs))
    assert [(s.id, s.labels, s.meta.get("ann_ids")) for s in opened(where, dataset)] == expected


@pytest.mark.parametrize(("ann_id", "no_target"), [([-1], False), ([], False), ([500], True),
                                                   ([500, -1], False), ([500, -1], None)])
def test_contradictions_never_hide_as_no_target(root, ann_id, no_target):
    where = root([*GREFS, gref(9, ann_id, no_target)], dataset="grefcoco")
    with pytest.raises(SampleError, match="Reference 9 .* not taken for a request without target"):
        opened(where)
    data = opened(where, bad="exclude")
    assert len(data) == 5 and data.excluded[0].id == "grefcoco(unc)/9/9"


# counts and exclusions


def test_counts_are_checked(root):
    """As many as published are right; leaving some out does not make the file another one."""
    where = root()
    with pytest.raises(SampleError, match=r"'testA' of .*refs\(unc\)\.p holds 1 samples instead of "
                                          r"the 5,657"):
        load("refcoco", "testA", where)
    with pytest.warns(UserWarning, match="5,657"):
        assert len(load("refcoco", "testA", where, counts="warn")) == 1
    many = [{**REFS[1], "ref_id": n, "sentences": [sentence(n, f"kite {n}")]} for n in range(5657)]
    assert len(load("refcoco", "testA", root(many))) == 5657
    many[7] = {**many[7], "ann_id": 777}
    data = load("refcoco", "testA", root(many), bad="exclude")
    assert len(data) == 5656
    assert data.exclusions() == [
        {"reason": "unknown annotation", "n": 1, "first": "refcoco(unc)/7/7"}]


BAD = {
    # reason: (a change of references and annotations, words of the message)
    "unknown annotation": (lambda refs, _: refs[1].update(ann_id=[501]),
                           r"Reference 1 .*annotation \[501\].*instances\.json"),
    "target in another image": (lambda refs, _: refs[1].update(image_id=43),
                                "Reference 1 .*image 43.*annotation 501 about image 42"),
    "incomplete row": (lambda refs, _: refs[1].pop("image_id"),
                       "A row of .*unc.* lacks image_id: .*'ref_id': 1"),
    "sentence without text": (lambda refs, _: refs[1].update(sentences=[{"sent_id": 12}]),
                              "Reference 1 .*without text"),
    "duplicated id": (lambda refs, _: refs[1].update(ref_id=0, sentences=[sentence(10, "again")]),
                      "0/10 occurs twice"),
    "unusable outline": (lambda _, coco: coco["annotations"][1].update(segmentation=[[1, 2]]),
                         "Annotation 501 "),
    "unknown category": (lambda _, coco: coco["annotations"][1].update(category_id=99),
                         "Annotation 501 .*category 99"),
    "unknown image": (lambda refs, coco: (
        refs[1].update(image_id=7), coco["annotations"][1].update(image_id=7)), "Annotation 501 .*image 7"),
    "missing image": (lambda refs, coco: (
        refs[1].update(image_id=7), coco["annotations"][1].update(image_id=7),
        coco["images"].append({"id": 7, "file_name": "gone.jpg", "height": H, "width": W})), "gone.jpg"),
    "image of another size": (lambda refs, coco: (
        refs[1].update(image_id=7),
        coco["annotations"][1].update(image_id=7, segmentation=[box(1, 1, 5, 5)]),
        coco["images"].append({"id": 7, "file_name": PHOTO, "height": H, "width": W + 1})),
        f"{PHOTO} is 32 x 24 pixels .* says 33 x 24"),
}


@pytest.mark.parametrize("reason", BAD)
def test_bad_rows_are_refused_or_listed(root, reason):
    refs, instances = copy.deepcopy(REFS), copy.deepcopy(INSTANCES)
    change, words = BAD[reason]
    change(refs, instances)
    where = root(refs, instances)
    with pytest.raises(SampleError, match=words) as caught:
        opened(where, "refcoco")
    assert "\n" not in str(caught.value)
    data = opened(where, "refcoco", bad="exclude")
    assert [one.reason for one in data.excluded] == [reason]
    assert [s.labels[0] for s in data] == ["man in red", "left guy"]
    assert data.excluded[0].id and data.excluded[0].detail == str(caught.value)


@pytest.mark.parametrize("sentences", ["man", None, ["man"]])
def test_sentences_of_another_kind_are_named(root, sentences):
    data = opened(root(changed(REFS, sentences, 1, "sentences")), "refcoco", bad="exclude")
    assert len(data) == 2 and [one.reason for one in data.excluded] == ["sentence without text"]


def test_headers_of_photos_are_read_where_they_are_verified(root):
    assert len(opened(root(photo=(W + 1, H)), "refcoco", verify=False)) == 3


# a data set made on access


def test_parts_and_order(root):
    data = opened(root(), "refcoco")
    assert [s.id for s in data[1:]] == [data.id(1), data.id(2)]
    assert data[-1].id == data.id(2) and data[:2][1].id == data.id(1)
    assert data.by_image() == [[0, 1, 2]] and data.image(0) == data[0].image
    for wrong in (3, -4):
        with pytest.raises(IndexError):
            data[wrong]
    again = pickle.loads(pickle.dumps(data.subset([2, 0])))  # as it travels to other processes
    assert [s.id for s in again] == [data.id(2), data.id(0)]
    assert np.array_equal(again[1].masks, data[0].masks)


# real data


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize(
    ("dataset", "split_by", "n_refs", "n_sentences"),
    [("refcoco", "unc", 33, 96), ("refcocog", "umd", 13, 24)],
)
def test_real_files_agree_with_pycocotools(dataset, split_by, n_refs, n_sentences):
    where = shared_data("refcoco_mini")
    samples = load_refer(where, dataset, split_by)
    assert len(samples) == n_sentences
    assert len({s.meta["ref_id"] for s in samples}) == n_refs
    with pytest.raises(SampleError, match="that are published"):
        load(dataset, "val", where)
    assert not load(dataset, "val", where, counts="off").excluded
    reference = COCO(where / dataset / "instances.json")
    for sample in samples:
        (number,) = sample.meta["ann_ids"]
        mask = reference.annToMask(reference.anns[number])
        assert np.array_equal(sample.masks[0], mask.astype(bool))
        assert sample.pixels().shape == (*sample.size, 3)
