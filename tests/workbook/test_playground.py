"""The playground without a browser: its functions, and its widgets driven in this process."""

from __future__ import annotations

import io
from datetime import datetime, timezone
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from t4s_helpers.codec.encodings import DescriptorError, get_encoding, wrap
from t4s_helpers.codec.grid import masks_to_grid
from t4s_helpers.data.prompts import Turn
from t4s_helpers.data.sample import SampleError
from t4s_helpers.decoding.generate import Answer
from t4s_helpers.model.backbones import EMBEDDED, load_backbone
from t4s_helpers.refine import NoRefiner, Refined
from t4s_helpers.workbook import playground as widgets
from t4s_helpers.workbook.playground import (
    PANELS, Picture, Playground, PlaygroundError, ask_model, as_png, check_expression, describe,
    draw_outcome, file_picture, photo_pictures, refine, scene_picture, sentence, suggestions,
    uploaded_picture, write_truth,
)

NOW = datetime(2025, 1, 2, tzinfo=timezone.utc)


class Stub:
    """A backbone that says what it is told to say, one token a character."""

    spec = SimpleNamespace(name="embedded")
    encoder = SimpleNamespace(tokenizer=SimpleNamespace(all_special_tokens=["<eos>", "<image>"]),
                              piece_ids=list)

    def __init__(self, *answers):
        self.answers, self.asked = answers, []

    def say(self, images, chats, encoding, max_new_tokens=9999, progress=True):
        answer = self.answers[min(len(self.asked), len(self.answers) - 1)]
        self.asked.append(([turn.question for turn in chats[0]], images[0].shape))
        if isinstance(answer, BaseException):
            raise answer
        n = len(answer) + 1
        return [Answer(answer[:max_new_tokens], min(n, max_new_tokens), n <= max_new_tokens, 0.1)]


@pytest.fixture(autouse=True)
def _stubs_answer(monkeypatch):
    real = widgets.generate
    monkeypatch.setattr(widgets, "generate", lambda backbone, *args, **options: (
        Stub.say if isinstance(backbone, Stub) else real)(backbone, *args, **options))


class Half:
    """A refiner that keeps the left half of a mask, and counts."""

    name = "half"

    def __init__(self, fallback=False):
        self.calls, self.fallback = 0, fallback

    def set_image(self, pixels):
        return self

    def refine(self, masks, seed=0):
        self.calls += 1
        masks = masks.copy()
        masks[:, :, masks.shape[2] // 2:] = False
        return Refined(masks, np.ones(1), np.ones(1), np.array([self.fallback]))


SCENE = scene_picture("val", 3)
TEXTS = suggestions(SCENE)
SINGLE, NOBODY = TEXTS[0], TEXTS[-1]
RIGHT = write_truth(SCENE, SINGLE).answer.text
NOWHERE = write_truth(SCENE, NOBODY).answer.text
EVERYWHERE = wrap(get_encoding().encode(np.ones((16, 16), int), [SINGLE]), "Here:")


def playground(*answers, **options):
    half = Half()
    shown = Playground(Stub(*answers or (RIGHT,)), refiners=("half", "none"), split="val",
                       load=lambda name: half if name == "half" else NoRefiner(), **options)
    shown.half = half
    return shown


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
    assert picture.name == "me.png" and picture.pixels.shape == (10, 20, 3)
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
    assert outcome.coarse.any() and not outcome.truth.known and outcome.iou(outcome.mask) is None


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


# --- the widgets


def test_it_starts_with_a_picture_and_a_click_shows_every_stage():
    shown = playground()
    assert shown.state == "ready" and shown.picture.name == "scene val 0"
    assert shown.outcome is None and shown.image.value == b""
    assert (shown.image.layout.display, shown.preview.layout.display) == ("none", "block")
    assert bytes(shown.preview.value).startswith(b"\x89PNG")
    assert shown.controls["expression"].options == suggestions(shown.picture)
    shown.controls["index"].value = 3
    shown.controls["expression"].value = SINGLE
    states = []
    shown.button.observe(lambda change: states.append((change["new"], shown.state)), "disabled")
    shown.button.click()
    assert states == [(True, "busy"), (False, "answered")]
    assert shown.outcome.answer.text == RIGHT and shown.outcome.refiner == "half"
    assert shown.image.layout.display == "block" and bytes(shown.image.value).startswith(b"\x89PNG")
    assert "IoU with the true mask" in shown.notes.value
    assert "&lt;seg&gt;" in shown.text.value and "<seg>" not in shown.text.value


def test_another_view_or_refiner_asks_no_model_and_the_first_is_remembered():
    shown = playground()
    first, seen = shown.request(index=3, expression=SINGLE), {shown.image.value}
    for name, value in (("view", "masks"), ("true_outline", False)):
        shown.controls[name].value = value
        seen.add(shown.image.value)
    assert len(seen) == 3 and shown.outcome is first
    shown.controls["refiner"].value = "none"
    assert shown.outcome.refined is None and shown.state == "answered"
    shown.controls["refiner"].value = "half"
    assert shown.outcome is first
    assert shown.request(expression=f"{SINGLE} ") is first
    assert (len(shown.backbone.asked), shown.half.calls, shown.written) == (1, 1, 1)


def test_a_refiner_chosen_with_a_request_is_for_that_request():
    shown = playground(RIGHT, EVERYWHERE.replace(SINGLE, "the thing"))
    shown.request(index=3, expression=SINGLE, refiner="none")
    shown.request(index=3, expression="the thing", refiner="half")
    assert shown.half.calls == 1 and shown.outcome.expression == "the thing"


def test_the_true_mask_needs_no_model():
    shown = playground(RuntimeError("the model must not be asked"))
    outcome = shown.request(index=3, expression=SINGLE, writer="true mask")
    assert outcome.answer.text == RIGHT and outcome.answer.n_tokens
    assert len(shown.backbone.asked) == 0


def test_another_picture_takes_the_answer_away():
    shown = playground()
    shown.request(index=3, expression=SINGLE)
    shown.controls["source"].value = "photo"
    assert shown.state == "ready" and shown.outcome is None and shown.image.value == b""
    assert shown.picture.name == f"photo {shown.controls['photo'].value}"
    shown.controls["photo"].value = "cat"
    assert "the cat's nose" in shown.controls["expression"].options


@pytest.mark.parametrize(("choices", "words"), [
    ({"expression": ""}, "empty"),
    ({"expression": "others"}, "background"),
    ({"expression": "see <image>"}, "steers the model"),
    ({"expression": "the wombat", "writer": "true mask"}, "wombat"),
    ({"source": "own file", "expression": "x"}, "Give the path"),
    ({"source": "own file", "path": "/no/such.png", "expression": "x"}, "/no/such.png"),
])
def test_bad_input_ends_in_a_sentence_and_the_next_request_works(choices, words):
    shown = playground()
    first, picture = shown.request(index=3, expression=SINGLE), shown.image.value
    assert shown.request(**choices) is None
    assert shown.state == "failed" and words in shown.message
    if "source" not in choices:  # the picture is the same, and so is the answer about it
        assert shown.outcome is first and shown.image.value == picture
        assert shown.message.endswith("still the answer before.")
    assert words.replace("<", "&lt;") in shown.status.value
    assert "Traceback" not in shown.status.value and "\n" not in shown.message
    assert not shown.button.disabled and shown.failure is not None
    assert shown.request(source="scene", expression=SINGLE, writer="the model") is first


@pytest.mark.parametrize("error", [KeyError("k"), RuntimeError("CUDA out of memory.\nTried")])
def test_the_unexpected_is_one_line_and_kept_for_the_curious(error):
    shown = playground(error, RIGHT)
    assert shown.request(index=3, expression=SINGLE) is None
    assert type(error).__name__ in shown.message and "\n" not in shown.message
    assert "playground.failure" in shown.message and shown.failure is error
    assert shown.request() and len(shown.backbone.asked) == 2  # a failure is not remembered


def test_an_interrupt_leaves_the_button_free():
    shown = playground(KeyboardInterrupt(), RIGHT)
    with pytest.raises(KeyboardInterrupt):
        shown.request(index=3, expression=SINGLE)
    assert shown.state == "failed" and not shown.button.disabled
    assert shown.request() is not None


@pytest.mark.parametrize(("choices", "words"), [
    ({"colour": 1}, "no control 'colour'"), ({"split": "moon"}, "'split' does not take 'moon'"),
    ({"index": -1}, "'index' does not take -1"), ({"index": "x"}, "does not take 'x'"),
])
def test_a_program_cannot_choose_what_is_not_offered(choices, words):
    shown = playground()
    with pytest.raises(PlaygroundError, match=words):
        shown.request(**choices, expression=SINGLE)
    assert len(shown.backbone.asked) == 0


def test_the_file_that_was_named_last_counts(tmp_path):
    content = io.BytesIO()
    Image.new("RGB", (20, 10)).save(content, format="PNG")
    (tmp_path / "b.png").write_bytes(content.getvalue())
    shown = playground()
    shown.upload.value = ({"name": "a.png", "type": "image/png", "size": 1, "last_modified": NOW,
                           "content": memoryview(content.getvalue())},)
    assert shown.controls["source"].value == "own file" and shown.picture.name == "a.png"
    shown.controls["path"].value = str(tmp_path / "b.png")
    assert shown.picture.name == "b.png" and shown.state == "ready"


def test_an_upload_by_old_widgets_ends_in_a_sentence_and_paths_still_work(tmp_path):
    """ipywidgets 7 has a dict of names, where 8 has a tuple of files."""
    Image.new("RGB", (20, 10)).save(tmp_path / "b.png")
    shown = playground()
    shown.upload = SimpleNamespace(value={"a.png": {"metadata": {}, "content": b""}})
    shown._choose_upload(None)
    assert shown.state == "failed" and "need ipywidgets 8" in shown.message and "path" in shown.message
    assert "ipywidgets 8" in shown.status.value and shown.controls["source"].value == "scene"
    shown.controls["source"].value = "own file"
    shown.controls["path"].value = str(tmp_path / "b.png")
    assert shown.picture.name == "b.png" and shown.state == "ready"


def test_old_outcomes_are_let_go(monkeypatch):
    monkeypatch.setattr(widgets, "_KEPT", 2)
    shown = playground()
    monkeypatch.setattr(widgets, "draw_outcome", lambda *args: Figure((1, 1)))
    for k in (0, 1, 2, 2, 0):
        shown.request(index=3, expression=f"thing {k}", refiner="none")
    for k in (3, 4, 5, 6, 0):
        shown.request(expression=f"thing {k}")
    assert len(shown.backbone.asked) == 8  # thing 0 was asked again only once it was let go


def test_one_call_shows_the_playground(monkeypatch):
    seen = []
    monkeypatch.setattr("IPython.display.display", seen.append)
    shown = widgets.playground(Stub(RIGHT), split="val")
    assert seen == [shown.panel] and shown.picture.name == "scene val 0"


def test_a_sentence_is_cut_and_never_empty():
    assert sentence(PlaygroundError("a\n b")) == "A b."
    assert len(sentence(PlaygroundError("x" * 900))) == 400
    assert "KeyError" in sentence(KeyError()) and "ValueError: X)" in sentence(ValueError("x"))
    assert sentence(FileNotFoundError(2, "gone", "f")) == "[Errno 2] gone: 'f'."


@pytest.mark.skipif(not (EMBEDDED / "config.json").exists(), reason="no embedded model here")
def test_the_embedded_model_answers():
    outcome = ask_model(load_backbone("embedded"), SCENE, SINGLE, max_new_tokens=8)
    assert 1 <= outcome.answer.n_tokens <= 8 and outcome.grid.shape == (16, 16)
    assert outcome.truth.known and outcome.model == "embedded"
