"""COCO folders: outlines to masks, the index, and files that are broken in one place."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from shared_data import shared_data

from t4s_helpers.data import SampleError, load
from t4s_helpers.data.coco import CocoDataset, draw_groups, draw_outline, read_annotations, read_runs

H, W = 20, 30


def box(x0, y0, x1, y1):
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def pixels_of(*boxes):
    mask = np.zeros((H, W), bool)
    for x0, y0, x1, y1 in boxes:
        mask[y0:y1, x0:x1] = True
    return mask


def plain_code(mask):
    """Uncompressed run lengths down the columns, counted one by one."""
    counts, current = [0], False
    for value in mask.T.reshape(-1):
        if value != current:
            counts.append(0)
            current = value
        counts[-1] += 1
    return {"size": list(mask.shape), "counts": counts}


def packed_code(mask):
    code = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": code["counts"].decode("ascii")}


RING = pixels_of((2, 2, 12, 12)) & ~pixels_of((5, 5, 9, 9))
BLOB = pixels_of((20, 3, 24, 9), (18, 5, 28, 7))

CONTENT = {
    "images": [
        {"id": 7, "file_name": "one.png", "height": H, "width": W},
        {"id": 8, "file_name": "bare.png", "height": H, "width": W},
    ],
    "categories": [{"id": 3, "name": "dog"}, {"id": 1, "name": "cat"}, {"id": 2, "name": "bird"}],
    "annotations": [
        {"id": 11, "image_id": 7, "category_id": 1, "iscrowd": 0,
         "segmentation": [box(1, 1, 6, 6), box(3, 3, 9, 5)]},
        {"id": 12, "image_id": 7, "category_id": 3, "iscrowd": 1, "segmentation": plain_code(RING)},
        {"id": 13, "image_id": 7, "category_id": 1, "iscrowd": 0,
         "segmentation": packed_code(BLOB)},
    ],
}


@pytest.fixture
def folder(tmp_path):
    def build(change=None, content=CONTENT):
        content = copy.deepcopy(content)
        if change:
            change(content)
        (tmp_path / "images").mkdir(exist_ok=True)
        for name in ("one.png", "bare.png"):
            Image.new("RGB", (W, H), "teal").save(tmp_path / "images" / name)
        (tmp_path / "instances.json").write_text(json.dumps(content), encoding="utf-8")
        return tmp_path

    return build


# what a good folder becomes


def test_one_sample_per_annotated_photo(folder):
    (sample,) = CocoDataset(folder())
    assert sample.labels == ("dog", "cat"), "in the order of the file's categories"
    assert (sample.task, sample.split, sample.size) == ("semantic", "train", (H, W))
    assert sample.pixels().shape == (H, W, 3)
    assert sample.meta["image_id"] == 7 and sample.meta["ann_ids"] == (11, 12, 13)
    cats = [pixels_of((1, 1, 6, 6), (3, 3, 9, 5)), BLOB]
    assert np.array_equal(sample.masks, [RING, cats[0] | cats[1]]), "unions, and holes are kept"
    objects, owners = sample.instances()
    assert owners.tolist() == [1, 0, 1] and np.array_equal(objects, [cats[0], RING, cats[1]])


def test_annotation_file_and_photos_in_other_places(folder, tmp_path):
    where = folder()
    (where / "images").rename(tmp_path / "val2017")
    (where / "annotations").mkdir()
    (where / "instances.json").rename(where / "annotations" / "instances_val2017.json")
    path = where / "annotations" / "instances_val2017.json"
    (sample,) = CocoDataset(path, tmp_path / "val2017", split="val")
    assert sample.split == "val" and sample.pixels().shape == (H, W, 3)
    assert CocoDataset(path)[0].image == CocoDataset(tmp_path, split="val")[0].image == sample.image
    with pytest.raises(SampleError, match="no folder of photos .*nowhere"):
        CocoDataset(path, tmp_path / "nowhere")


# outlines


@pytest.mark.parametrize(("segmentation", "mask"), [
    pytest.param([box(2, 2, 10, 10)] * 256 + [box(8, 2, 14, 10)], pixels_of((2, 2, 14, 10)),
                 id="overlapping polygons are merged, not summed"),
    pytest.param([packed_code(RING), packed_code(BLOB)], RING | BLOB, id="several codes are merged"),
    pytest.param([[4.1, 6.1, 4.2, 6.1, 4.2, 6.2]], pixels_of((4, 6, 5, 7)),
                 id="an outline thinner than a pixel keeps one"),
    pytest.param([[1, 1, 20, 15], box(2, 2, 4, 4)], pixels_of((2, 2, 4, 4)),
                 id="two points beside a polygon are not taken for a box"),
])
def test_outlines_become_masks(segmentation, mask):
    assert np.array_equal(draw_outline(segmentation, (H, W)), mask)


@given(hnp.arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40))))
@settings(max_examples=80, deadline=None)
def test_run_length_codes_give_back_their_mask(mask):
    """And packed ones are read as pycocotools writes them."""
    long = np.pad(mask, ((100, 0), (0, 200)), mode="edge")  # runs of several characters
    for one in (mask, long):
        plain, packed = plain_code(one), packed_code(one)
        assert read_runs(packed["counts"]) == read_runs(plain["counts"]) == plain["counts"]
        assert np.array_equal(draw_outline(plain, one.shape), one)
        assert np.array_equal(draw_outline([packed], one.shape), one)


def test_a_group_of_outlines_is_their_union():
    masks = draw_groups([[[box(0, 0, 2, 2)], [box(1, 1, 3, 3)]], []], (H, W))
    assert masks.shape == (2, H, W) and masks[0].sum() == 7 and not masks[1].any()


# broken in one place


def put(where, *keys):
    """A change: sets ``content[keys[0]]...[keys[-1]]`` to ``where``."""
    def change(content):
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = where
    return change


def outline(value):
    return put(value, "annotations", 0, "segmentation")


def code(**changes):
    return outline({**packed_code(RING), **changes})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (outline([]), "Annotation 11 .*no outline"),
        (outline(None), "Annotation 11 .*no outline"),
        (outline("abc"), "Annotation 11 .*no outline"),
        (outline([[1, 1, 5, 5]]), "Annotation 11 .*three points"),
        (outline([[1, 1, 5, 5, 7]]), "Annotation 11 .*pairs"),
        (outline([[1, 1, 5, "5", 7, 8]]), "Annotation 11 .*pairs"),
        (outline([[1, 1, 5, float("nan"), 7, 8]]), "Annotation 11 .*pairs"),
        (outline([[0.1, 0.1, 0.9, 0.1, 0.9, 0.8]]), "Annotation 11 .*between 0 and 1"),
        (outline([box(1, 1, 60, 10)]), r"Annotation 11 .*\(60, 10\), outside .* 30 x 20 pixels"),
        (outline([box(-40, 1, 6, 10)]), "Annotation 11 .*outside"),
        (outline([box(1, 1, 1e9, 5)]), "Annotation 11 .*outside"),
        (code(size=[W, H]), r"Annotation 11 .*\[30, 20\].*\[20, 30\]"),
        (code(size=None), "Annotation 11 .*None"),
        (code(counts=None), "Annotation 11 .*broken run-length"),
        (code(counts=[5, 5]), "Annotation 11 .*600 pixels"),
        (code(counts=[-1, 601]), "Annotation 11 .*600 pixels"),
        (code(counts=[0.5, 599.5]), "Annotation 11 .*600 pixels"),
        (code(counts="~~~~"), "Annotation 11 .*broken run-length"),
        (code(counts=packed_code(RING)["counts"][:-3]), "Annotation 11 .*broken run-length"),
        (code(counts=[H * W]), "Annotation 11 .*without a pixel"),
        (code(counts="\u00e9"), "Annotation 11 .*broken run-length"),
        (put(99, "annotations", 1, "image_id"), "Annotation 12 .*image 99"),
        (put([1], "annotations", 1, "image_id"), "Annotation 12 "),
        (put(99, "annotations", 1, "category_id"), "Annotation 12 .*category 99"),
        (put(11, "annotations", 1, "id"), "Annotation 11 .*occurs twice"),
        (put(None, "annotations", 1, "id"), "Annotation None .*id is missing"),
        (put([1], "annotations", 1, "id"), r"Annotation \[1\] .*id is missing"),
        (put(7, "images", 1, "id"), "'images' whose id, 7,"),
        (put(None, "images", 0, "id"), "'images' whose id, None,"),
        (put("tall", "images", 0, "height"), "Image 7 .*tall"),
        (put(0, "images", 0, "width"), "Image 7 "),
        (put(None, "images", 0, "file_name"), "Image 7 .*file_name"),
        (put("gone.png", "images", 0, "file_name"), "gone.png of image 7 .*does not exist"),
        (put("dog", "categories", 1, "name"), "Category 1 .*'dog'"),
        (put(5, "categories", 1, "name"), "Category 1 .*5"),
        (put("others", "categories", 1, "name"), "/7'.*others"),
        (put({}, "annotations"), "no list of objects 'annotations'"),
        (put([3], "categories"), "no list of objects 'categories'"),
    ],
)
def test_names_what_is_broken(folder, change, words):
    with pytest.raises(SampleError, match=words) as caught:
        CocoDataset(folder(change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"images": ', "\x00", "[" * 100_000])
def test_names_a_file_that_is_no_json_object(tmp_path, content):
    path = tmp_path / "instances.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(SampleError, match=r"instances\.json"):
        read_annotations(path)


def test_names_missing_files(tmp_path):
    with pytest.raises(SampleError, match="no annotation file .*instances.json"):
        CocoDataset(tmp_path)
    (tmp_path / "instances.json").write_text("{}")
    with pytest.raises(SampleError, match="no list of objects 'images'"):
        CocoDataset(tmp_path)
    with pytest.raises(SampleError, match="does not exist"):
        read_annotations(tmp_path / "no.json")


# one road with the public sets


def test_a_photo_with_a_bad_annotation_is_left_out_and_listed(folder):
    def change(content):
        one = content["images"][0]
        content["images"] += [{**one, "id": 9}, {**one, "id": 10, "height": None},
                              {**one, "id": 11, "height": 19}, {**one, "id": 12}]
        good = content["annotations"][0]
        content["annotations"] += [{**good, "id": 20 + k, "image_id": k} for k in (9, 10, 11, 404)]
        content["annotations"].append({**good, "id": None, "image_id": 12})
        content["annotations"].append({**good, "id": 99, "image_id": 9, "segmentation": []})

    where = folder(change)
    data = load(where, bad="exclude")
    name = where.name
    assert [sample.id for sample in data] == [f"{name}/7"] and data.classes == ("dog", "cat")
    assert [(one.id, one.reason) for one in data.excluded] == [
        (f"{name}/8", "photo without annotations"), (f"{name}/9", "unusable outline"),
        (f"{name}/10", "image without a size"), (f"{name}/11", "image of another size"),
        (f"{name}/12", "annotation without an id of its own"), (f"{name}/annotation 424", "unknown image")]
    assert data.exclusions()[0] == {"reason": "photo without annotations", "n": 1, "first": f"{name}/8"}
    with pytest.raises(SampleError, match=r"(?s)5 samples of .*instances\.json cannot be used \(1 x unusable "
                                          r"outline, .*bad='exclude'.*Annotation 99.*Image 10.*says 30 x 19"
                                          r".*Annotation 424 .*image 404"):
        load(where)
    assert len(load(where, bad="exclude", verify=False)) == 2, "without a look at the photos' headers"


def test_numbers_as_pandas_writes_them(folder):
    def change(content):
        content["images"][0].update(id=7.0, height=float(H), width=float(W))
        content["categories"][1]["id"] = 1.0
        content["annotations"][0].update(id=11.0, image_id=7.0, category_id=1.0)
        outline = content["annotations"][1]["segmentation"]
        outline.update(size=[float(H), float(W)], counts=[float(n) for n in outline["counts"]])

    plain, floats = CocoDataset(folder())[0], CocoDataset(folder(change))[0]
    assert floats.id == plain.id and floats.meta["ann_ids"] == (11, 12, 13)
    assert np.array_equal(floats.masks, plain.masks) and floats.labels == plain.labels


@pytest.mark.parametrize("root", ["dog", "animals"])
def test_categories_without_annotations_do_not_count(folder, root):
    """Roboflow's root category may be named like the class below it."""
    def change(content):
        content["categories"].insert(0, {"id": 0, "name": root, "supercategory": "none"})

    data = load(folder(change))
    assert data.classes == ("dog", "cat") == data[0].labels


@pytest.mark.parametrize("orientation", range(1, 9))
def test_outlines_on_the_stored_picture_are_turned_with_it(folder, orientation):
    where = folder()
    pixels = np.zeros((H, W, 3), np.uint8)
    pixels[BLOB] = 255
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(where / "images" / "one.png", exif=exif)
    sample = load(where, apply_exif=False)[0]
    shown = sample.pixels()[..., 0] > 0
    objects, _ = sample.instances()
    assert np.array_equal(objects[2], shown) and shown.sum() == BLOB.sum()
    assert (sample.masks[1] | ~shown).all()
    if orientation > 4:
        with pytest.raises(SampleError, match="one.png is 20 x 30 .*says 30 x 20; that is before its EXIF .*"
                                              "pass apply_exif=False"):
            load(where)
    else:
        assert np.array_equal(load(where)[0].instances()[0][2], BLOB)


# real data


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_real_photos_agree_with_pycocotools():
    where = shared_data("coco_pool")
    reference = COCO(where / "instances.json")
    samples = load(where)
    assert len(samples) == len({a["image_id"] for a in reference.anns.values()})
    assert sum(len(s.meta["ann_ids"]) for s in samples) == len(reference.anns)
    for sample in samples:
        objects, owners = sample.instances()
        for mask, owner, number in zip(objects, owners, sample.meta["ann_ids"], strict=True):
            annotation = reference.anns[number]
            assert np.array_equal(mask, reference.annToMask(annotation).astype(bool))
            assert sample.labels[owner] == reference.cats[annotation["category_id"]]["name"]
        assert sample.has_target.all()
    assert samples[0].pixels().shape[:2] == samples[0].size


@settings(max_examples=60)
@given(st.lists(st.lists(st.tuples(st.floats(-2, 40), st.floats(-2, 30)), min_size=3, max_size=9),
                min_size=1, max_size=3))
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_polygons_are_drawn_as_pycocotools_draws_them(shapes):
    polygons = [[number for point in shape for number in point] for shape in shapes]
    code = coco_mask.merge(coco_mask.frPyObjects(polygons, 28, 38))
    drawn = coco_mask.decode(code).astype(bool)
    mask = draw_outline(polygons, (28, 38))
    assert np.array_equal(mask, drawn) or (not drawn.any() and mask.sum() == 1)
