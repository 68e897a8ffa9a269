"""The refiner's benchmark: medians by stage."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from t4s_helpers.lab.benchmarks.refine import time_stages


class Timed:
    """A refiner that says what stages took."""

    def __init__(self, ms):
        self.ms = iter(ms)

    def forget_images(self):
        pass

    def set_image(self, pixels):
        return self

    def refine(self, coarse, seed):
        return SimpleNamespace(ms=next(self.ms))


def test_an_embedding_counts_once_and_stages_are_medians():
    def stage(image, decoder):
        return {"image": image, "prompts": 2.0, "decoder": decoder, "masks": 1.0}

    sample = SimpleNamespace(masks=np.ones((1, 8, 8), bool), labels=("x",), size=(8, 8),
                             pixels=lambda: None)
    refiner = Timed([stage(900.0, 50.0), stage(3.0, 70.0), stage(4.0, 60.0)])
    row = time_stages(refiner, [sample] * 3)
    assert row == {"n": 3, "image": 900.0, "prompts": 2.0, "decoder": 60.0, "masks": 1.0, "own": 3.0}
