"""The refiner's benchmark: medians by stage, and what a fallback threshold would reject."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from t4s_helpers.lab.benchmarks.refine import time_stages, trust_table


class Scripted:
    """A refiner that answers with what it was given for each picture."""

    def __init__(self, answers, ms=()):
        self.answers, self.ms, self.k = answers, list(ms), -1

    def forget_images(self):
        self.k = -1

    def set_image(self, pixels):
        self.k += 1
        return self

    def refine(self, coarse, seed, min_iou=0.3, prompts=None):
        mask, agreement = self.answers[self.k] if self.answers else (coarse[0], 1.0)
        return SimpleNamespace(masks=mask[None], agreement=[agreement],
                               ms=self.ms[self.k] if self.ms else {})


def test_thresholds_count_what_they_would_reject():
    truth = np.zeros((32, 32), bool)
    truth[3:21, 3:21] = True
    nothing = np.zeros_like(truth)
    refiner = Scripted([(truth, 0.25), (nothing, 0.0), (truth, 0.8)])
    rows = trust_table(refiner, iter([(None, truth)] * 3), {"paper": None},
                       thresholds=(0.1, 0.3))
    assert rows[["least", "rejected", "better", "n"]].to_numpy().tolist() == [
        [0.0, 0, 0, 3], [0.1, 1, 0, 3], [0.3, 2, 1, 3]]
    miou = rows["miou"].tolist()
    assert miou[0] == pytest.approx(2 / 3) and miou[1] > miou[2] > 2 / 3


def test_an_embedding_counts_once_and_stages_are_medians():
    def stage(image, decoder):
        return {"image": image, "prompts": 2.0, "decoder": decoder, "masks": 1.0}

    sample = SimpleNamespace(masks=np.ones((1, 8, 8), bool), labels=("x",), size=(8, 8),
                             pixels=lambda: None)
    refiner = Scripted([], [stage(900.0, 50.0), stage(3.0, 70.0), stage(4.0, 60.0)])
    row = time_stages(refiner, [sample] * 3)
    assert row == {"n": 3, "image": 900.0, "prompts": 2.0, "decoder": 60.0, "masks": 1.0, "own": 3.0}


def test_objects_of_a_coco_folder_come_photo_by_photo_the_largest_first(tmp_path):
    import json

    from PIL import Image

    from t4s_helpers.lab.benchmarks.refine import coco_objects

    (tmp_path / "images").mkdir()
    notes, images = [], []
    for k in (1, 2):
        Image.new("RGB", (60, 40)).save(tmp_path / "images" / f"{k}.png")
        images.append({"id": k, "file_name": f"{k}.png", "height": 40, "width": 60})
        for n, side in enumerate((5, 30, 25, 35)):
            square = [0, 0, side, 0, side, side, 0, side]
            notes.append({"id": 10 * k + n, "image_id": k, "category_id": 1, "iscrowd": 0,
                          "area": side**2, "bbox": [0, 0, side, side], "segmentation": [square]})
    (tmp_path / "instances.json").write_text(json.dumps({
        "images": images, "annotations": notes, "categories": [{"id": 1, "name": "thing"}]}))
    found = list(coco_objects(tmp_path, 3, per_photo=2))
    sides = [round(mask.sum() ** 0.5) for _, mask in found]
    assert sides == [35, 30, 35] and found[0][0] is found[1][0]
    assert all(pixels.shape == (40, 60, 3) for pixels, _ in found)
