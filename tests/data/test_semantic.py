"""Semantic readers on miniatures of the official files."""

from __future__ import annotations

import numpy as np
import pytest
from miniatures import H, W, ade, cocostuff, context, halves, photo, put_image, voc

from t4s_helpers.data import SampleError, load
from t4s_helpers.data.classes import (
    ADE20K_150, COCO_STUFF, COCO_STUFF_IDS, CONTEXT_59, CONTEXT_459, VOC_20,
)
from t4s_helpers.data.semantic import FORMS, VOID_INDEX
from t4s_helpers.evaluation.metrics import MeanIoU
from t4s_helpers.codec.encodings import check_labels


def opened(name, root, **options):
    return load(name, root=root, **{"counts": "off", **options})


def class_map(data):
    return data[0].meta["class_map"].read()


# class lists


def test_lists_have_the_official_lengths_and_can_be_labels():
    for names, n in ((COCO_STUFF, 171), (ADE20K_150, 150), (CONTEXT_59, 59), (VOC_20, 20)):
        assert len(names) == len(set(names)) == n
        assert check_labels(names) == names


def test_numbers_of_coco_stuff():
    """As labels.txt of the release has them."""
    known = {1: "person", 11: "fire hydrant", 13: "stop sign", 25: "giraffe", 27: "backpack", 44: "bottle",
             46: "wine glass", 65: "bed", 67: "dining table", 70: "toilet", 72: "tv", 82: "refrigerator",
             84: "book", 90: "toothbrush", 92: "banner", 106: "clouds", 118: "floor-wood", 124: "grass",
             145: "playingfield", 157: "sky-other", 169: "tree", 173: "wall-other", 182: "wood"}
    assert known.items() <= COCO_STUFF_IDS.items()
    unused = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91}
    assert set(range(1, 183)) - set(COCO_STUFF_IDS) == unused


def test_numbers_of_ade():
    """As objectInfo150.txt of the release has them."""
    known = {1: "wall", 13: "person", 27: "sea", 45: "chest of drawers", 52: "grandstand",
             76: "swivel chair", 90: "television", 106: "conveyer belt", 120: "ball", 131: "screen",
             139: "ashcan", 150: "flag"}
    assert {number: ADE20K_150[number - 1] for number in known} == known


def test_numbers_of_the_459_labels_of_pascal_context():
    """The original list is sorted by name, so numbers rise with names."""
    names = sorted(CONTEXT_459)
    assert [CONTEXT_459[n] for n in names] == sorted(CONTEXT_459.values())
    assert CONTEXT_459["aeroplane"] == 2 and CONTEXT_459["wood"] == 458


# readers


def test_coco_stuff(tmp_path):
    cocostuff(tmp_path, halves(0, 181))  # person and wood, less one
    data = opened("cocostuff", tmp_path)
    sample = data[0]
    assert data.classes == COCO_STUFF and data.split == "val2017"
    assert sample.labels == ("person", "wood") and sample.task == "semantic"
    assert sample.meta["class_ids"] == (1, 171)
    assert sample.masks[0, :, :W // 2].all() and not sample.masks[0, :, W // 2:].any()
    assert np.array_equal(class_map(data), halves(1, 171))
    assert class_map(data).dtype == np.int32
    assert sample.pixels().shape == (H, W, 3)


def test_forms_of_coco_stuff(tmp_path):
    cocostuff(tmp_path, halves(255, 156))
    cocostuff(tmp_path, halves(170, 255), ending="_labelTrainIds.png")
    data = opened("cocostuff", tmp_path)
    assert len(data) == 1, "the converted file is no image of its own"
    assert data[0].labels == ("sky-other",)
    assert np.array_equal(class_map(data), halves(VOID_INDEX, COCO_STUFF.index("sky-other") + 1))
    data = opened("cocostuff", tmp_path, maps="trainids")
    assert len(data) == 1 and data[0].labels == ("wood",)
    with pytest.raises(SampleError, match="maps='labels' is not known"):
        opened("cocostuff", tmp_path, maps="labels")


@pytest.mark.parametrize(("name", "make", "values", "words"), [
    ("cocostuff", cocostuff, halves(0, 11), r"139\.png holds the pixel values 11,"),  # never annotated
    ("ade20k-150", ade, halves(1, 151), r"001\.png holds the pixel values 151,"),
    ("voc-20", voc, halves(1, 21), r"033\.png holds the pixel values 21,"),
])
def test_numbers_outside_the_list_are_refused(tmp_path, name, make, values, words):
    make(tmp_path, values)
    with pytest.raises(SampleError, match=words):
        opened(name, tmp_path)


def test_ade(tmp_path):
    ade(tmp_path, halves(0, 150))
    data = opened("ade20k-150", tmp_path)
    assert data[0].labels == ("flag",)
    assert np.array_equal(class_map(data), halves(VOID_INDEX, 150))


def test_names_of_ade_must_be_those_of_its_own_table(tmp_path):
    ade(tmp_path, halves(1, 2))
    rows = [f"{k}\t0.1\t1\t1\t{name}, another word" for k, name in enumerate(ADE20K_150, 1)]
    info = tmp_path / "objectInfo150.txt"
    info.write_text("\n".join(["Idx\tRatio\tTrain\tVal\tName", *rows]))
    assert opened("ade20k-150", tmp_path)[0].labels == ("wall", "building")
    info.write_text(info.read_text().replace("\tsky,", "\theaven,"))
    with pytest.raises(SampleError, match="row 3: 'heaven', not 'sky'"):
        opened("ade20k-150", tmp_path)


@pytest.mark.parametrize(("name", "background"), [("voc-20", "ignored"), ("voc-21", "class")])
def test_voc_with_and_without_background(tmp_path, name, background):
    """What the reader says of itself is what MeanIoU asks for: a perfect answer scores one."""
    values = halves(0, 15)
    values[0] = 255
    voc(tmp_path, values)
    data = opened(name, tmp_path)
    assert (data.name, data.background, data[0].labels) == (name, background, ("person",))
    truth = class_map(data)
    assert (truth[0] == VOID_INDEX).all() and truth[1, 0] == 0
    metric = MeanIoU(data.classes, background=data.background, absent="skip",
                     ignore_index=data.ignore_index)
    metric.update(np.where(truth == VOID_INDEX, 0, truth), truth)
    assert metric.compute()["miou"] == 1


CONTEXT_CASES = {
    # pixel values of "bag" and "bicycle", and of no class: in the authors' list 2 is "bicycle"
    "SegmentationClassContext": (2, 6, 0),
    "59_context_labels": (21, 2, 0),
    "annotations_detectron2": (1, 5, 255),
    "trainval": (9, 23, 3),
}


@pytest.mark.parametrize("folder", FORMS["context-59"])
def test_every_form_of_pascal_context(tmp_path, folder):
    bag, bicycle, other = CONTEXT_CASES[folder]
    values = halves(bag, bicycle)
    values[0] = other
    context(tmp_path, values, folder)
    data = opened("context-59", tmp_path)
    expected = halves(CONTEXT_59.index("bag") + 1, CONTEXT_59.index("bicycle") + 1)
    expected[0] = 0
    assert data[0].labels == ("bicycle", "bag"), "in the order of the list"
    assert np.array_equal(class_map(data), expected)


def test_a_folder_of_another_name_needs_to_be_explained(tmp_path):
    context(tmp_path, halves(1, 2), "my_maps")
    with pytest.raises(SampleError, match="annotations=FOLDER and maps=.*59_context_labels"):
        opened("context-59", tmp_path)
    data = opened("context-59", tmp_path, maps="59_context_labels", annotations="my_maps")
    assert data[0].labels == ("aeroplane", "bicycle")


# bad input


FAULTS = {
    # what is done to the second photo and its annotations: (reason, words of the message)
    "no photo": (lambda image, maps: image.unlink(), "missing image", r"0002\.jpg .* does not exist"),
    "no maps": (lambda image, maps: maps.unlink(), "missing annotation", r"0002\.png does not exist"),
    "other size": (lambda image, maps: photo(image, (H, W + 1)), "image of another size",
                   "17 x 12 pixels .* says 16 x 12"),
    "other class": (lambda image, maps: put_image(maps, halves(1, 151)), "class outside the list",
                    r"0002\.png holds the pixel values 151,"),
    "coloured": (lambda image, maps: photo(maps), "unreadable annotation",
                 "one class number for each pixel"),
    "cut": (lambda image, maps: maps.write_bytes(maps.read_bytes()[:40]), "unreadable annotation",
            "cannot be read"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_used_is_refused_or_listed(tmp_path, fault):
    spoil, reason, words = FAULTS[fault]
    for stem in ("0001", "0002"):
        ade(tmp_path, halves(1, 2), stem)
    spoil(*(tmp_path / part / "validation" / f"0002{ending}"
            for part, ending in (("images", ".jpg"), ("annotations", ".png"))))
    with pytest.raises(SampleError, match=words):
        opened("ade20k-150", tmp_path)
    data = opened("ade20k-150", tmp_path, bad="exclude")
    assert len(data) == 1
    assert data.exclusions() == [{"reason": reason, "n": 1, "first": "ade20k-150/validation/0002"}]
    with pytest.raises(SampleError, match="0002"):  # unverified, it is found later at the latest
        opened("ade20k-150", tmp_path, verify=False)[1].pixels()


def test_images_that_show_no_class_are_listed(tmp_path):
    ade(tmp_path, halves(1, 2))
    ade(tmp_path, halves(0, 0), "ADE_val_00000002")
    data = opened("ade20k-150", tmp_path)
    assert len(data) == 1 and data.excluded[0].reason == "no class of the list"


@pytest.mark.parametrize(
    ("name", "gone", "words"),
    [("ade20k-150", "images/validation", "images/validation"),
     ("ade20k-150", "annotations/validation", "annotations/validation"),
     ("voc-20", "ImageSets/Segmentation/val.txt", r"val\.txt does not exist"),
     ("voc-20", "SegmentationClass", "SegmentationClass")],
)
def test_names_what_is_missing(tmp_path, name, gone, words):
    (ade if name.startswith("ade") else voc)(tmp_path, halves(1, 2))
    (tmp_path / gone).rename(tmp_path / "elsewhere")
    with pytest.raises(SampleError, match=words):
        opened(name, tmp_path)
