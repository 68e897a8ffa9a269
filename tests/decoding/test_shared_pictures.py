"""Pictures that come several times in a batch are read once, and nothing else changes."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext

import families
import pytest
import tiny_model

from t4s_helpers.codec.encodings import get_encoding
from t4s_helpers.data.prompts import Turn
from t4s_helpers.data.scenes import make_scene
from t4s_helpers.decoding import generate as generation
from t4s_helpers.decoding.shared_pictures import PictureCount, shared_pictures
from t4s_helpers.model.backbones import load_backbone

PICTURES = [make_scene("test", k).image for k in (3, 3, 4, 3)]
ASKED = ["Segment the star.", "Where is the blue cloud?", "How many?", "Segment all things."]


def answers(backbone, monkeypatch, sharing: bool, pictures=PICTURES):
    """Texts, and how many pictures were given and read; with the sharing in `generate` or without."""
    counts = []

    @contextmanager
    def watched(model):
        with shared_pictures(model) if sharing else nullcontext(PictureCount()) as count:
            yield
        counts.append((count.given, count.read))

    monkeypatch.setattr(generation, "shared_pictures", watched)
    said = generation.generate(backbone, pictures, [[Turn(text)] for text in ASKED[:len(pictures)]],
                               get_encoding(), mode="plain", batch=4, max_new_tokens=12, progress=False)
    assert "get_image_features" not in vars(backbone.model.model)
    [count] = counts
    return [one.text for one in said], count


@pytest.mark.slow
@pytest.mark.parametrize("name", families.FAMILIES)
def test_every_family_answers_as_before(name, monkeypatch):
    backbone = load_backbone(name, source=families.folder(name))
    backbone.model.float()
    want, _ = answers(backbone, monkeypatch, sharing=False)
    said, (given, read) = answers(backbone, monkeypatch, sharing=True)
    assert said == want and 0 < read < given


def test_the_embedded_model_with_its_adapter_reads_every_picture_once(shipped, monkeypatch):
    want, _ = answers(shipped, monkeypatch, sharing=False)
    assert answers(shipped, monkeypatch, sharing=True) == (want, (4, 2))
    assert answers(shipped, monkeypatch, True, PICTURES[1:3])[1] == (2, 2)


def test_an_error_leaves_the_model_as_it_was():
    backbone = tiny_model.backbone()
    with pytest.raises(ZeroDivisionError), shared_pictures(backbone.model):
        raise ZeroDivisionError
    assert "get_image_features" not in vars(backbone.model.model)
