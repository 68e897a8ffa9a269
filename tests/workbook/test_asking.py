"""Asking about a picture, stage by stage: the plain functions under the playground."""

from __future__ import annotations

import io
import json
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from fake_backbone import Half, Stub, let_stubs_answer

from t4s_helpers.codec.encodings import DescriptorError, get_encoding, wrap
from t4s_helpers.codec.grid import masks_to_grid
from t4s_helpers.data.prompts import Turn
from t4s_helpers.data.sample import SampleError
from t4s_helpers.evaluation.tasks import from_rle
from t4s_helpers.files import json_bytes
from t4s_helpers.model.backbones import EMBEDDED, load_backbone
from t4s_helpers.refine import NoRefiner
from t4s_helpers.workbook import asking
from t4s_helpers.workbook.asking import (
    PANELS, Cancelled, Follower, Picture, PlaygroundError, alt_text, as_png, ask_model, check_expression,
    describe, draw_outcome, file_picture, photo_pictures, refine, rewritten, scene_picture, sentence,
    suggestions, to_coco, uploaded_picture, word, write_truth,
)


@pytest.fixture(autouse=True)
def _stubs_answer(monkeypatch):
    let_stubs_answer(monkeypatch, asking)


SCENE = scene_picture("val", 3)
TEXTS = suggestions(SCENE)
SINGLE, NOBODY = TEXTS[0], TEXTS[-1]
RIGHT = write_truth(SCENE, SINGLE).answer.text
NOWHERE = write_truth(SCENE, NOBODY).answer.text
EVERYWHERE = wrap(get_encoding().encode(np.ones((16, 16), int), [SINGLE]), "Here:")


# --- pictures and what is known about them


def test_the_grammar_knows_the_truth_of_a_scene():
    truth = SCENE.truth(SINGLE)
    assert truth.known and truth.objects.shape == (1, 128, 128) and truth.mask.any()
    assert SCENE.truth(NOBODY).objects.shape == (0, 128, 128)
    assert not SCENE.truth(NOBODY).mask.any()
    unknown = SCENE.truth("the wombat")
    assert not unknown.known and "'wombat'" in unknown.why and unknown.mask is None


def test_a_photo_knows_its_own_expressions_only():
    photo = photo_pictures()["astronaut"]
    assert photo.truth("The  American FLAG").mask.sum() > 1000
    assert not photo.truth("the dog sitting on the floor").mask.any()
    assert "outlines" in photo.truth("the moon").why
    assert suggestions(photo) and all(photo.truth(text).known for text in suggestions(photo))


def test_an_own_file_is_read_and_made_smaller(tmp_path):
    Image.new("RGB", (3000, 40), "red").save(tmp_path / "wide.png")
    picture = file_picture(f" {tmp_path}/wide.png ")
    assert picture.pixels.shape == (14, 1024, 3) and picture.pixels.dtype == np.uint8
    assert "3000 x 40" in picture.note
    assert suggestions(picture) == () and not picture.truth("the red").known


@pytest.mark.parametrize(("content", "words"), [
    (None, "bad.png does not exist"), (b"no image", "bad.png cannot be read"),
])
def test_a_bad_file_is_named(tmp_path, content, words):
    path = tmp_path / "bad.png"
    if content:
        path.write_bytes(content)
    with pytest.raises(SampleError, match=words):
        file_picture(path)


def test_an_upload_is_named_by_its_own_name(tmp_path):
    content = io.BytesIO()
    Image.new("L", (20, 10), 7).save(content, format="PNG")
    picture = uploaded_picture("../me.png", memoryview(content.getvalue()))
    assert picture.name == "me.png" and picture.pixels.shape == (10, 20, 3) and not picture.note
    assert "from 400 x 200 to 20 x 10" in uploaded_picture("a.png", content.getvalue(), (400, 200)).note
    with pytest.raises(SampleError) as caught:
        uploaded_picture("C:\\cut.jpg", content.getvalue()[:30])
    assert str(caught.value).startswith("Image file cut.jpg cannot be read")


# --- asking


def test_a_perfect_answer_is_read_and_scored():
    backbone = Stub(RIGHT)
    outcome = ask_model(backbone, SCENE, f"  {SINGLE} ", progress=False)
    assert backbone.asked == [([f"Segment {SINGLE}."], (128, 128, 3))]
    assert outcome.answer.text == RIGHT and outcome.answer.n_tokens == len(RIGHT) + 1
    assert outcome.answer.finished and outcome.expression == SINGLE
    assert outcome.report.ok and outcome.iou(outcome.coarse) > 0.5
    assert np.array_equal(outcome.grid, masks_to_grid(SCENE.truth(SINGLE).mask[None], 16))


def test_pixels_alone_can_be_asked_about_after_earlier_turns():
    backbone = Stub(RIGHT)
    outcome = ask_model(backbone, SCENE.pixels, SINGLE, history=[Turn("What is here?", ("A star.",))])
    assert backbone.asked[0][0] == ["What is here?", f"Segment {SINGLE}."]
    assert outcome.coarse.any() and not outcome.known and outcome.iou(outcome.mask) is None


def test_no_target_is_right_only_when_it_is_readable():
    right = ask_model(Stub(NOWHERE), SCENE, NOBODY)
    assert right.report.no_target and right.iou(right.mask) == 1.0
    assert any(line.endswith("says so: right.") for line in describe(right))
    broken = ask_model(Stub("Nowhere:\n<seg>oth"), SCENE, NOBODY)
    assert not broken.mask.any() and broken.iou(broken.mask) == 0.0
    assert any("does not count" in line for line in describe(broken))
    assert not any("right." in line for line in describe(broken))
    wrong = ask_model(Stub(EVERYWHERE.replace(SINGLE, NOBODY)), SCENE, NOBODY)
    assert wrong.iou(wrong.mask) == 0.0
    assert any("yet the answer marks something" in line for line in describe(wrong))


def test_an_endless_answer_is_told():
    outcome = ask_model(Stub("x" * 5000), SCENE, SINGLE, max_new_tokens=50)
    assert not outcome.answer.finished and outcome.answer.n_tokens == 50
    assert "stopped at the limit" in describe(outcome)[0]


@pytest.mark.parametrize("label", ["a|b", "rows *3", "<seg>x</seg>", "5 $ and $ 6", "日本", "a\\b"])
def test_what_looks_like_the_format_is_escaped_not_refused(label):
    photo = Picture("p", SCENE.pixels, None, {label: SCENE.truth(SINGLE).objects})
    outcome = write_truth(photo, label)
    assert outcome.report.ok and outcome.iou(outcome.coarse) > 0.5
    assert as_png(draw_outcome(outcome, figure=Figure(), notes=True)).startswith(b"\x89PNG")


@pytest.mark.parametrize(("text", "kind", "words"), [
    ("", PlaygroundError, "empty"), (" \n ", PlaygroundError, "empty"),
    ("x" * 201, PlaygroundError, "201 characters"), ("Others", DescriptorError, "background"),
    ("the <image> here", PlaygroundError, "'<image>'"), ("a\ud800", DescriptorError, "surrogate"),
])
def test_expressions_that_cannot_be_asked(text, kind, words):
    with pytest.raises(kind, match=words):
        check_expression(text, Stub.encoder.tokenizer)


@pytest.mark.parametrize("expression", TEXTS)
@pytest.mark.parametrize("style", ["box", "plain"])
def test_the_true_mask_comes_back_as_the_grid_of_its_objects(expression, style):
    outcome = write_truth(SCENE, expression, get_encoding("rrle", 24), style=style, encoder=Stub().encoder)
    objects = SCENE.truth(expression).objects
    if len(objects):
        assert np.array_equal(
            outcome.grid, masks_to_grid(objects, 24, owners=np.zeros(len(objects), int)))
    assert outcome.report.ok and outcome.grid.any() == bool(len(objects))
    assert outcome.answer.n_tokens == len(outcome.answer.text) + 1
    assert "no model was asked" in describe(outcome)[0]


def test_refining_replaces_the_mask_and_can_be_undone():
    half, outcome = Half(fallback=True), write_truth(SCENE, SINGLE)
    refined = refine(outcome, half)
    assert refined.refiner == "half" and refined.mask is refined.refined
    assert any("coarse one was kept" in line for line in describe(refined))
    undone = refine(refined, NoRefiner())
    assert undone.refined is None and np.array_equal(undone.mask, outcome.coarse)
    assert refine(write_truth(SCENE, NOBODY), half).refined.sum() == 0 and half.calls == 1


def test_a_photo_tells_what_the_embedded_model_has_never_seen():
    text = "the American flag"
    asked = ask_model(Stub(RIGHT.replace(SINGLE, text)), photo_pictures()["astronaut"], text)
    assert any("drawn scenes alone" in line for line in describe(asked))
    assert any("the target is missed" in line for line in describe(asked))
    assert not any("drawn scenes" in line for line in describe(write_truth(SCENE, SINGLE)))


def test_several_expressions_are_one_request():
    """Each has its own grid value, mask, truth and score."""
    texts = [text for text in TEXTS if SCENE.truth(text).mask.any()][:2]
    outcome = refine(write_truth(SCENE, " ; ".join(texts)), Half())
    assert outcome.turn.labels == tuple(texts) and outcome.turn.question.startswith("Segment only these")
    assert outcome.coarse.shape == outcome.refined.shape == (2, 128, 128) and outcome.report.ok
    single = [write_truth(SCENE, text) for text in texts]
    assert outcome.iou(outcome.coarse) == pytest.approx(np.mean([o.iou(o.coarse) for o in single]), abs=0.2)
    with pytest.raises(DescriptorError, match="repeats"):
        word("segment", "a; a", SCENE)


def test_the_conversation_decides_what_the_rest_is():
    rest = word("segment the rest", "", SCENE, [Turn("q", ("a",), ("star", "the red cloud"))])
    assert "star" not in rest.labels and len(rest.labels) > 10 and rest.question.startswith("The classes")
    assert word("describe", "", SCENE).labels == ()
    told = ask_model(Stub("A star."), SCENE, word("describe", "", SCENE))
    assert told.answer.text == "A star." and len(told.mask) == 0 and len(describe(told)) == 1
    assert alt_text(told).endswith("A star.") and as_png(draw_outcome(told, figure=Figure(), notes=True))
    with pytest.raises(PlaygroundError, match="sing"):
        word("sing", "", SCENE)
    with pytest.raises(PlaygroundError, match="Only the model"):
        write_truth(SCENE, word("describe", "", SCENE))


def test_an_edited_text_is_read_like_any_answer():
    outcome = ask_model(Stub(RIGHT), SCENE, SINGLE)
    edited = rewritten(outcome, RIGHT.replace("</seg>", ""))
    assert edited.report.malformed and np.array_equal(edited.grid, outcome.grid)
    assert edited.confidence is None and "by hand" in describe(edited)[0]


def test_a_follower_is_told_the_text_so_far_and_may_stop_it():
    seen = []
    outcome = ask_model(Stub(RIGHT), SCENE, SINGLE, streamer=Follower(Stub.encoder.tokenizer, seen.append))
    assert outcome.answer.text == seen[-1] == RIGHT and seen[0] == "" and len(seen) == 2 + RIGHT.count("\n")
    assert all(later.startswith(before) for before, later in pairwise(seen))

    def stop(text):
        if "<seg>" in text:
            raise Cancelled

    backbone = Stub(RIGHT)
    with pytest.raises(Cancelled):
        ask_model(backbone, SCENE, SINGLE, streamer=Follower(backbone.encoder.tokenizer, stop))
    assert len(backbone.streamed) == 1


# --- exports


def test_coco_annotations_hold_the_masks(tmp_path):
    """Read back by pycocotools, as other tools would."""
    from pycocotools.coco import COCO

    outcome = refine(write_truth(SCENE, f"{SINGLE}; {NOBODY}"), Half())
    (tmp_path / "a.json").write_bytes(json_bytes(to_coco(outcome)))
    read = COCO(tmp_path / "a.json")
    (only,) = read.loadAnns(read.getAnnIds())
    assert np.array_equal(read.annToMask(only).astype(bool), outcome.mask[0])
    assert read.loadCats(only["category_id"])[0]["name"] == SINGLE and only["area"] == outcome.mask[0].sum()
    assert np.array_equal(from_rle(json.loads((tmp_path / "a.json").read_text())["annotations"][0][
        "segmentation"]), outcome.mask[0])


def test_alt_texts_say_where():
    text = alt_text(write_truth(SCENE, f"{SINGLE}; {NOBODY}"))
    assert text.startswith("Scene val 3; ") and f"{SINGLE}: " in text and f"{NOBODY}: nowhere" in text


# --- drawing


@pytest.mark.parametrize("view", PANELS)
@pytest.mark.parametrize("refined", [False, True])
def test_every_view_draws_its_panels(view, refined):
    outcome = ask_model(Stub(RIGHT), SCENE, SINGLE)
    outcome = refine(outcome, Half()) if refined else outcome
    figure = draw_outcome(outcome, view, figure=Figure(), notes=True)
    shown = [panel for panel in PANELS[view] if refined or panel != "refined"]
    assert len(figure.axes) == len(shown)
    assert outcome.turn.question in figure.get_suptitle()
    assert outcome.report.summary()[:20] in figure.get_supxlabel()
    picture = Image.open(io.BytesIO(as_png(figure)))
    assert picture.width > 250 * len(shown) and len(np.unique(np.asarray(picture.convert("L")))) > 50


@pytest.mark.parametrize("text", ["", "<seg></seg>", "no tags at all", "<seg>$x$ *3|\n" * 40])
def test_nonsense_is_drawn_too(text):
    outcome = ask_model(Stub(text), SCENE, SINGLE)
    assert outcome.report.malformed
    assert as_png(draw_outcome(outcome, figure=Figure(), notes=True)).startswith(b"\x89PNG")


def test_an_unknown_view_or_truth_says_why():
    with pytest.raises(PlaygroundError, match="'the wombat' is not known. The scenes' grammar"):
        write_truth(SCENE, "the wombat")
    with pytest.raises(PlaygroundError, match="'sideways'.*everything"):
        draw_outcome(write_truth(SCENE, SINGLE), "sideways", figure=Figure())


def test_a_sentence_is_cut_and_never_empty():
    assert sentence(PlaygroundError("a\n b")) == "A b."
    assert len(sentence(PlaygroundError("x" * 900))) == 400
    assert "KeyError" in sentence(KeyError()) and "ValueError: X)" in sentence(ValueError("x"))
    assert sentence(FileNotFoundError(2, "gone", "f")) == "[Errno 2] gone: 'f'."


@pytest.mark.skipif(not (EMBEDDED / "config.json").exists(), reason="no embedded model here")
def test_the_embedded_model_answers():
    outcome = ask_model(load_backbone("embedded"), SCENE, SINGLE, max_new_tokens=8)
    assert 1 <= outcome.answer.n_tokens <= 8 and outcome.grid.shape == (16, 16)
    assert outcome.known and outcome.model == "embedded"
