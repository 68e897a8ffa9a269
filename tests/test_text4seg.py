"""The front doors: `Text4Seg` in Python and ``t4s`` in a shell."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import t4s_helpers
from t4s_helpers import Text4Seg, get_encoding, load
from t4s_helpers import __main__ as command
from t4s_helpers.codec.encodings import DescriptorError
from t4s_helpers.data.sample import SampleError
from t4s_helpers.evaluation.tasks import from_rle
from t4s_helpers.text4seg import as_pixels


@pytest.fixture(scope="module")
def model():
    return Text4Seg.from_pretrained("embedded")


@pytest.fixture(scope="module")
def samples():
    return load("scenes", "test", n=3)


@pytest.fixture
def picture(samples, tmp_path):
    path = tmp_path / "scene.png"
    Image.fromarray(samples[0].pixels()).save(path)
    return path


def test_one_expression_gives_one_segmentation(model, samples, picture):
    assert model.encoding == get_encoding("rrle", 16), "the paper's is the default"
    found = model.segment(picture, samples[0].labels[0])
    assert found.mask.shape == samples[0].size and found.masks.shape == (1, *samples[0].size)
    assert found.grid.shape == (16, 16) and not found.malformed and "<seg>" in found.text
    assert found.confidence.probs.shape == (2, 16, 16)
    assert found.summary().startswith(repr(samples[0].labels[0]))
    assert found._repr_png_().startswith(b"\x89PNG")


def test_lists_come_back_as_lists(model, samples):
    first, second = (sample.pixels() for sample in samples[:2])
    names = [sample.labels[0] for sample in samples]
    one = model.segment(first, names[0])
    many = model.segment(first, [names[0], names[1]], progress=False)
    nested = model.segment([first, second], [names[0], [names[1]]], progress=False)
    assert len(many) == 2 and many[0].text == one.text == nested[0].text
    assert [part.expression for part in nested[1]] == [names[1]]


def test_what_is_said_of_no_target_and_of_malformed_answers(model, samples):
    found = model.segment(samples[0].pixels(), "the purple submarine", max_new_tokens=9)
    assert found.malformed and not found.no_target and found.confidence is None
    assert "cannot be trusted" in found.summary()
    empty = SimpleNamespace(malformed=False, no_target=True, expression="the cat")
    assert "Nothing in this picture is 'the cat'" in type(found).summary(empty)


def test_the_mask_survives_every_way_out(model, samples, tmp_path):
    found = model.segment(samples[0].pixels(), samples[0].labels[0])
    saved = np.asarray(Image.open(found.save(tmp_path / "mask.png")))
    assert ((saved == 255) == found.mask).all() and set(np.unique(saved)) <= {0, 255}
    told = json.loads(json.dumps(found.to_dict()))
    assert (from_rle(told["coco_rle"]) == found.mask).all() and told["pixels"] == found.mask.sum()
    tinted = np.asarray(Image.open(found.save_overlay(tmp_path / "overlay.png")))
    assert ((tinted != found.image).any(-1) <= found.mask).all()


def test_pictures_are_files_arrays_or_pil_images(picture):
    pixels = as_pixels(picture)
    assert (as_pixels(Image.open(picture)) == pixels).all() and as_pixels(pixels) is pixels
    with pytest.raises(SampleError, match="float64"):
        as_pixels(pixels / 255)
    with pytest.raises(SampleError, match="no-such.png does not exist"):
        as_pixels("no-such.png")


def test_bad_requests_are_named(model, samples):
    with pytest.raises(DescriptorError, match="'others' is the word for the background"):
        model.segment(samples[0].pixels(), "others")
    with pytest.raises(ValueError, match="2 pictures came with"):
        model.segment([samples[0].pixels()] * 2, "the red star")


def test_the_facade_names_what_there_is():
    assert all(getattr(t4s_helpers, name) is not None for name in t4s_helpers.__all__)
    with pytest.raises(AttributeError, match="no_such"):
        _ = t4s_helpers.no_such


# --- the command line ----------------------------------------------------------------------------


def test_ask_writes_masks_and_json(samples, picture, tmp_path, capsys):
    names = [sample.labels[0] for sample in samples[:2]]
    status = command.main(["ask", str(picture), *names, "--refiner", "none", "--json",
                           "--out", str(tmp_path / "mask.png"), "--overlay", str(tmp_path / "o.png")])
    told = json.loads(capsys.readouterr().out)
    assert [one["expression"] for one in told] == names
    assert all((tmp_path / name).is_file() for name in ("mask-1.png", "mask-2.png", "o-1.png", "o-2.png"))
    assert status in (0, command.NO_TARGET) and (status == 0) == (not any(o["no_target"] for o in told))


@pytest.mark.parametrize("malformed, no_target, status", [
    ([False, False], [False, False], 0), ([False, False], [False, True], command.NO_TARGET),
    ([True, False], [False, True], command.MALFORMED)])
def test_the_status_of_ask_tells_them_apart(monkeypatch, capsys, malformed, no_target, status):
    found = [SimpleNamespace(malformed=bad, no_target=none, summary=lambda: "said")
             for bad, none in zip(malformed, no_target)]
    fake = SimpleNamespace(segment=lambda *args, **options: found)
    monkeypatch.setattr(Text4Seg, "from_pretrained", lambda *args, **options: fake)
    assert command.main(["ask", "picture.png", "a", "b"]) == status
    assert capsys.readouterr().out == "said\nsaid\n"


def test_errors_are_one_sentence(capsys):
    assert command.main(["ask", "no-such.png", "the star", "--refiner", "none"]) == 1
    assert "t4s ask: Image file no-such.png does not exist" in capsys.readouterr().err
    assert command.main(["data", "no-such-set"]) == 1
    assert command.main(["weights", "no-such-weights"]) == 1
    with pytest.raises(SystemExit) as stopped:
        command.main(["train", "--no-such-option"])
    assert stopped.value.code == 2


def test_data_weights_and_backbones_are_listed(capsys):
    assert command.main(["data"]) == command.main(["weights"]) == command.main(["backbones"]) == 0
    out = capsys.readouterr().out
    assert "refcocog" in out and "mobile_sam" in out and "smolvlm-256m" in out


def test_a_run_is_trained_evaluated_and_tabulated(tmp_path, capsys):
    assert command.main(["train", "--samples", "4", "--batch", "2", "--rank", "2", "--quantize", "none",
                         "--turns", "1", "--mix", "res", "--out", str(tmp_path / "adapter")]) == 0
    adapter = str(tmp_path / "adapter" / "adapter")
    assert command.main(["evaluate", "run", str(tmp_path / "run"), "-n", "2", "--adapter", adapter]) == 0
    table = capsys.readouterr().out
    assert "ciou" in table and "model" in table
    assert command.main(["evaluate", "tables", str(tmp_path)]) == 0
    assert "ciou" in capsys.readouterr().out
