"""What annotation tools export is opened as it lies."""

from __future__ import annotations

import json
from unicodedata import normalize

import pytest
from PIL import Image

from t4s_helpers.codec.encodings import get_encoding
from t4s_helpers.data import SampleError, load
from t4s_helpers.data.layout import find_annotations
from t4s_helpers.data.mixtures import DataMixture

BOX = [2, 3, 12, 3, 12, 13, 2, 13]


def export(root, annotations, photos, names):
    """Photos, and an annotation file that calls them so, each with a box of 100 pixels."""
    for place in photos:
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 20), "teal").save(root / place)
    (root / annotations).parent.mkdir(parents=True, exist_ok=True)
    (root / annotations).write_text(json.dumps({
        "images": [{"id": k, "file_name": name, "height": 20, "width": 30} for k, name in enumerate(names)],
        "categories": [{"id": 0, "name": "cups", "supercategory": "none"},
                       {"id": 1, "name": "cup", "supercategory": "cups"}],
        "annotations": [{"id": k, "image_id": k, "category_id": 1, "segmentation": [BOX]}
                        for k in range(len(names))]}), encoding="utf-8")


def check(data, *places):
    assert all(s.image.as_posix().endswith(place) for s, place in zip(data, places, strict=True))
    for sample in data:
        assert sample.labels == data.classes == ("cup",)
        assert sample.masks.sum() == 100 and sample.pixels().shape == (20, 30, 3)


def test_roboflow(tmp_path):
    for split in ("train", "valid", "test"):
        export(tmp_path, f"{split}/_annotations.coco.json", [f"{split}/{split}.jpg"], [f"{split}.jpg"])
    for split, folder in ((None, "train"), ("train", "train"), ("valid", "valid"), ("val", "valid"),
                          ("test", "test")):
        check(load(tmp_path, split), f"{folder}/{folder}.jpg")
    check(load(tmp_path / "valid"), "valid/valid.jpg")
    with pytest.raises(SampleError, match="no annotation file for split 'mine'"):
        load(tmp_path, "mine")


@pytest.mark.parametrize("name", ["images/1/ab-cup.jpg", "images\\1/ab-cup.jpg", "images\\ab-cup.jpg",
                                  "..\\..\\label-studio\\media\\upload\\4\\ab-cup.jpg",
                                  "/data/upload/1/ab-cup.jpg", "ab-cup.jpg"])
def test_label_studio(tmp_path, name):
    export(tmp_path, "result.json", ["images/ab-cup.jpg"], [name])
    check(load(tmp_path), "images/ab-cup.jpg")
    check(load(tmp_path / "result.json"), "images/ab-cup.jpg")


@pytest.mark.parametrize("place", ["images/a.jpg", "images/default/a.jpg", "default/a.jpg", "a.jpg",
                                   "annotations/a.jpg"])
def test_cvat(tmp_path, place):
    export(tmp_path, "annotations/instances_default.json", [place], ["a.jpg"])
    check(load(tmp_path), place)


def test_a_folder_like_cocos_own(tmp_path):
    for split in ("train", "val"):
        for kind in ("instances", "captions"):
            export(tmp_path, f"annotations/{kind}_{split}2017.json", [f"{split}2017/a.jpg"], ["a.jpg"])
    check(load(tmp_path), "train2017/a.jpg")
    check(load(tmp_path, "val"), "val2017/a.jpg")
    with pytest.raises(SampleError, match="no annotation file for split 'test' .*captions_train2017.json"):
        load(tmp_path, "test")


def test_the_annotations_of_another_split_are_never_taken(tmp_path):
    export(tmp_path, "annotations/my_train.json", ["images/a.jpg"], ["a.jpg"])
    check(load(tmp_path), "images/a.jpg")
    with pytest.raises(SampleError, match="no annotation file for split 'val' .*my_train.json"):
        load(tmp_path, "val")
    (tmp_path / "annotations" / "train_2.json").write_text("{}")
    with pytest.raises(SampleError, match="more than one annotation file .*my_train.json.*train_2.json"):
        find_annotations(tmp_path, "train")


def test_a_last_part_that_two_images_share_is_not_taken(tmp_path):
    export(tmp_path, "result.json", ["images/1.jpg"], ["left/1.jpg", "right/1.jpg"])
    with pytest.raises(SampleError, match=r"(?s)2 x missing image.*left/1\.jpg of image 0 .*does not exist "
                                          r"in any of the folders .*/images, .*image_folder"):
        load(tmp_path)


@pytest.mark.parametrize("written, there", [("NFD", "NFC"), ("NFC", "NFD")])
def test_file_names_in_another_form_of_unicode(tmp_path, written, there):
    place = normalize(there, "images/Tür.jpg")
    export(tmp_path, "result.json", [place], [normalize(written, "Tür.jpg")])
    check(load(tmp_path), place)


def test_photos_in_a_folder_of_their_own(tmp_path):
    export(tmp_path, "one/result.json", ["far/away/a.jpg"], ["a.jpg"])
    check(load(tmp_path / "one", image_folder=tmp_path / "far" / "away"), "far/away/a.jpg")


def test_an_export_is_trained_on(tmp_path):
    export(tmp_path, "result.json", ["images/a.jpg", "images/b.jpg"], ["a.jpg", "b.jpg"])
    mixture = DataMixture([load(tmp_path)], 3, encoding=get_encoding(grid_size=4))
    assert [mixture.turns(k)[0].labels for k in range(3)] == [("cup",)] * 3
    assert mixture.image(2).shape == (20, 30, 3) and "cup *" in mixture.turns(1)[0].text
