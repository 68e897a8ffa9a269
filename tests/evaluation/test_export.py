"""What other tools read of a run."""

from __future__ import annotations

import json
from contextlib import closing

import numpy as np
from pycocotools.coco import COCO

from t4s_helpers.__main__ import main
from t4s_helpers.evaluation.store import RunStore
from t4s_helpers.evaluation.tasks import to_rle

SIZE = (5, 7)


def run(folder, classes=()):
    """Two masks about one image, a rejection, a class map about an image without a number."""
    masks = np.random.default_rng(0).random((4, *SIZE)) < 0.5
    rows = [{"id": "a", "image_id": 42, "coco_rle": {"dog": to_rle(masks[0])}},
            {"id": "b", "image_id": 42, "coco_rle": {"cat": to_rle(masks[1])}},
            {"id": "none", "image_id": 43, "coco_rle": {}},
            {"id": "map", "coco_rle": {"sky": to_rle(masks[2]), "sea": to_rle(masks[3])}},
            {"id": "objects", "task": "instances", "image_id": 43, "coco_rle": {"sea 2": to_rle(masks[1])},
             "confidences": {"sea 2": 0.25}},
            {"id": "words", "text": "yes"}]
    ids = [row["id"] for row in rows]
    with closing(RunStore(folder, {"classes": list(classes)}, [ids], ids)) as store:
        store.write(0, rows)
        store.finish()
    return masks


def test_coco_reads_the_masks_back(tmp_path, capsys):
    masks = run(tmp_path / "run", ("land", "sea", "sky"))
    assert main(["evaluate", "export", str(tmp_path / "run"), "--out", str(tmp_path / "it.json")]) == 0
    assert str(tmp_path / "it.json") in capsys.readouterr().out
    truth = COCO()
    truth.dataset = {"images": [{"id": k, "height": SIZE[0], "width": SIZE[1]} for k in (4, 42, 43)],
                     "annotations": [], "categories": [{"id": k} for k in (1, 2, 3)]}
    truth.createIndex()
    found = truth.loadRes(str(tmp_path / "it.json"))
    entries = found.loadAnns(found.getAnnIds())
    assert [(one["image_id"], one["category_id"], one["score"], one["sample_id"]) for one in entries] == [
        (42, 1, 1.0, "a"), (42, 1, 1.0, "b"), (4, 3, 1.0, "map"), (4, 2, 1.0, "map"),
        (43, 2, 0.25, "objects")]
    for one, mask in zip(entries, [*masks, masks[1]], strict=True):
        assert np.array_equal(found.annToMask(one), mask) and one["area"] == mask.sum()


def test_the_file_stands_in_the_run_by_default_and_no_run_is_an_error(tmp_path, capsys):
    run(tmp_path)
    assert main(["evaluate", "export", str(tmp_path), "--form", "coco"]) == 0
    assert len(json.loads((tmp_path / "coco.json").read_text())) == 5
    assert main(["evaluate", "export", str(tmp_path / "gone")]) == 1
    assert "holds no run.json" in capsys.readouterr().err
