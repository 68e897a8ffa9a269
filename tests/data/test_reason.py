"""ReasonSeg on a miniature of its files."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from t4s_helpers.data import SampleError, load

H, W = 20, 30


def shape(label, x0, y0, x1, y1):
    return {"label": label, "labels": [label], "shape_type": "polygon", "image_name": "a.jpg",
            "points": [[x0, y0], [x1, y0], [x1, y1], [x0, y1]], "group_ids": [-1], "flags": {}}


def put(root, stem="a", shapes=None, text=("the thing to sit on",), split="val", encoding="utf-8"):
    folder = root / split
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (W, H), "olive").save(folder / f"{stem}.jpg")
    shapes = [shape("target", 2, 3, 9, 8)] if shapes is None else shapes
    found = {"text": list(text), "is_sentence": True, "shapes": shapes}
    (folder / f"{stem}.json").write_text(json.dumps(found, ensure_ascii=False), encoding=encoding)
    return root


def opened(root, split="val", **options):
    return load("reasonseg", split, root, **{"counts": "off", **options})


def filled(x0, y0, x1, y1):
    mask = np.zeros((H, W), bool)
    mask[y0:y1 + 1, x0:x1 + 1] = True  # corners are pixels, and outlines belong
    return mask


def test_a_target_with_its_outline(tmp_path):
    sample = opened(put(tmp_path, shapes=[shape("target", 2, 3, 5, 6), shape("target", 4, 5, 9, 9)]))[0]
    assert sample.labels == ("the thing to sit on",) and sample.task == "res"
    assert np.array_equal(sample.masks, [filled(2, 3, 5, 6) | filled(4, 5, 9, 9)])
    assert sample.meta["is_sentence"] and not sample.meta["ignore"].decode().any()
    assert sample.pixels().shape == (H, W, 3)


@pytest.mark.parametrize("reverse", [False, True])
def test_the_smaller_polygon_counts(tmp_path, reverse):
    """Whatever their order in the file; a withdrawn one does not."""
    shapes = [shape("target", 2, 3, 15, 12), shape("ignore", 4, 4, 6, 6), shape("flag", 0, 0, 29, 19)]
    sample = opened(put(tmp_path, shapes=shapes[::-1] if reverse else shapes))[0]
    ignored = filled(4, 4, 6, 6)
    assert np.array_equal(sample.meta["ignore"].decode()[0], ignored)
    assert np.array_equal(sample.masks[0], filled(2, 3, 15, 12) & ~ignored)


def test_one_sample_per_instruction_in_training_only(tmp_path):
    for split in ("train", "val"):
        put(tmp_path, text=("one", "two"), split=split)
    assert [s.labels[0] for s in opened(tmp_path, "train")] == ["one", "two"]
    assert [s.labels[0] for s in opened(tmp_path, "val")] == ["one"]
    put(tmp_path, "b", text=(), split="train")
    assert [one.id for one in opened(tmp_path, "train", bad="exclude").excluded] == ["reasonseg/train/b/0"]
    with pytest.raises(SampleError, match="holds 2 samples instead of the 239"):  # images are counted
        load("reasonseg", "train", tmp_path)


def test_files_written_on_windows(tmp_path):
    data = opened(put(tmp_path, text=("the caf\u00e9\u2019s sign",), encoding="cp1252"))
    assert data[0].labels == ("the caf\u00e9\u2019s sign",)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"shapes": [shape("ignore", 1, 1, 4, 4)]}, "no target outline"),
        ({"shapes": []}, "no target outline"),
        ({"shapes": [shape("target", 1, 1, 400, 4)]}, "image of another size"),
        ({"shapes": [{"label": "target", "points": [[1, 2, 3]]}]}, "unusable outline"),
        ({"shapes": [{"label": "target"}]}, "unreadable annotation"),
        ({"text": ()}, "unreadable annotation"),
    ],
)
def test_bad_files_are_refused_or_listed(tmp_path, change, reason):
    put(tmp_path, "b")
    put(tmp_path, "c", **change)
    with pytest.raises(SampleError, match=r"c\.json"):
        opened(tmp_path)
    data = opened(tmp_path, bad="exclude")
    assert len(data) == 1 and [one.reason for one in data.excluded] == [reason]


@pytest.mark.parametrize("ending", [".jpg", ".json"])
def test_names_the_half_that_is_missing(tmp_path, ending):
    put(tmp_path)
    (tmp_path / "val" / f"a{ending}").unlink()
    with pytest.raises(SampleError, match=f"a{ending} .*does not exist"):
        opened(tmp_path)
