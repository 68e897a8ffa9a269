"""Pictures that come several times in a batch are read once, and nothing else changes."""

from __future__ import annotations

import families
import pytest
import tiny_model

from t4s_helpers.model.backbones import load_backbone
from t4s_helpers.data.scenes import make_scene
from t4s_helpers.decoding.generate import generate
from t4s_helpers.decoding.reuse import shared_pictures

PICTURES = [make_scene("test", k).image for k in (3, 3, 4, 3)]
ASKED = ["Segment the star.", "Where is the blue cloud?", "How many?", "Segment all things."]


def answers(backbone):
    said = generate(backbone, PICTURES, ASKED, batch=4, max_new_tokens=12, progress=False)
    return [one.text for one in said]


@pytest.mark.parametrize("name", families.FAMILIES)
def test_every_family_answers_as_before(name):
    backbone = load_backbone(name, source=families.folder(name))
    backbone.model.float()
    want = answers(backbone)
    with shared_pictures(backbone.model) as count:
        assert answers(backbone) == want
    assert 0 < count.read < count.given, count
    assert answers(backbone) == want and "get_image_features" not in vars(backbone.model.model)


def test_the_embedded_model_with_its_adapter_reads_two_of_four():
    backbone = load_backbone("embedded", adapter="scenes")
    want = answers(backbone)
    with shared_pictures(backbone.model) as count:
        assert answers(backbone) == want
    assert (count.given, count.read) == (4, 2)


def test_pictures_that_differ_are_all_read():
    backbone = tiny_model.backbone()
    with shared_pictures(backbone.model) as count:
        generate(backbone, [make_scene("test", k).image for k in range(3)], ASKED[:3],
                 max_new_tokens=2, progress=False)
    assert (count.given, count.read) == (3, 3)


def test_an_error_leaves_the_model_as_it_was():
    backbone = tiny_model.backbone()
    with pytest.raises(ZeroDivisionError), shared_pictures(backbone.model):
        1 / 0
    assert "get_image_features" not in vars(backbone.model.model)
