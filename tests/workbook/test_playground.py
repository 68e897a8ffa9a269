"""The playground's widgets without a browser, driven in this process."""

from __future__ import annotations

import _thread
import base64
import gc
import io
import json
import random
import signal
import threading
import time

import numpy as np
import pytest
from fake_backbone import Half, Stub, let_stubs_answer
from PIL import Image

from t4s_helpers.codec.encodings import get_encoding, wrap
from t4s_helpers.data import prompts
from t4s_helpers.refine import NoRefiner
from t4s_helpers.workbook import asking
from t4s_helpers.workbook import playground as widgets
from t4s_helpers.workbook.asking import scene_picture, suggestions, write_truth
from t4s_helpers.workbook.playground import VIEWS, Playground, PlaygroundError


@pytest.fixture(autouse=True)
def _stubs_answer(monkeypatch):
    let_stubs_answer(monkeypatch, asking)


SCENE = scene_picture("val", 3)
SINGLE, NOBODY = suggestions(SCENE)[0], suggestions(SCENE)[-1]
RIGHT = write_truth(SCENE, SINGLE).answer.text
EVERYWHERE = wrap(get_encoding().encode(np.ones((16, 16), int), [SINGLE]), "Here:")


def anything(turn, encoding):
    """A fake's answer to any request: a row of cells for each label."""
    grid = np.zeros(encoding.grid_size, int)
    for k in range(min(len(grid), len(turn.labels))):
        grid[k, 2:9] = k + 1
    return "".join(prompts.answer(grid, turn.labels, encoding)) if turn.labels else "A star."


def playground(*answers, pause=0.0, **options):
    half = Half()
    shown = Playground(Stub(*answers or (RIGHT,), pause=pause), refiners=("half", "none"), split="val",
                       load=lambda name: half if name == "half" else NoRefiner(), **options)
    shown.half = half
    return shown


def png_file(size=(20, 10)):
    content = io.BytesIO()
    Image.new("RGB", size).save(content, format="PNG")
    return content.getvalue()


def drop(shown, name, content, size=()):
    """What the browser sends with a picture that was dropped, pasted or chosen."""
    told = {"type": "picture", "name": name, "size": list(size)}
    shown.sides[0].canvas._handle_custom_msg(told, [memoryview(content)])


def edit(shown, text):
    """What the browser sends when the text was edited."""
    shown.sides[0].canvas.set_state({"text": text})
    return shown.wait()


# --- a request


def test_it_starts_with_a_picture_and_a_click_shows_every_stage():
    shown = playground()
    canvas, first = shown.sides[0].canvas, shown.sides[0].canvas.picture
    assert shown.state == "ready" and shown.picture.name == "scene val 0" and shown.outcome is None
    assert first.startswith(b"\x89PNG") and canvas.grid == [] and canvas.mask == b""
    assert [chip.description for chip in shown.chips if chip.description] == list(suggestions(shown.picture))
    shown.controls["index"].value = 3
    assert canvas.picture != first
    shown.chips[0].click()
    assert shown.controls["expression"].value == SINGLE
    states = []
    shown.button.observe(lambda change: states.append((change["new"], shown.state)), "disabled")
    shown.button.click()
    shown.wait()
    assert states == [(True, "busy"), (False, "answered")]
    assert shown.outcome.answer.text == RIGHT and shown.outcome.refiner == "half"
    assert canvas.grid == shown.outcome.grid.tolist() and canvas.mask.startswith(b"\x89PNG")
    assert canvas.labels == ["others", SINGLE] and "".join(run["text"] for run in canvas.runs) == RIGHT
    assert canvas.editable and not any(run["fault"] for run in canvas.runs)
    assert "IoU with the true mask" in shown.sides[0].notes.value
    assert list(shown.times) == ["first row", "text", "coarse mask", "refined mask"]
    assert sorted(shown.times.values()) == list(shown.times.values()) and "first row after" in shown.message


def test_rows_appear_as_they_are_written_and_the_refiner_looks_meanwhile():
    shown, rows, editable = playground(), [], []
    canvas = shown.sides[0].canvas
    canvas.observe(lambda change: rows.append(sum(min(row) >= 0 for row in change["new"])), "grid")
    canvas.observe(lambda change: editable.append(change["new"]), "editable")
    looked = []
    shown.half.set_image = lambda pixels: looked.append(len(shown.backbone.streamed)) or shown.half
    shown.request(index=3, expression=SINGLE)
    assert rows[-17:] == [*range(17)] or rows[-16:] == [*range(1, 17)]
    assert looked[0] < 16 and len(looked) == 2 and editable[-1]


def test_another_view_or_refiner_asks_no_model_and_the_first_is_remembered():
    shown = playground()
    first, canvas = shown.request(index=3, expression=SINGLE), shown.sides[0].canvas
    seen = []
    for view in VIEWS:
        shown.controls["view"].value = view
        seen.append(canvas.shown[0])
    assert seen == ["mask", "grid", "mask", "mask", "confidence", "none"] and shown.outcome is first
    shown.controls["true_outline"].value = False
    assert "outline" not in canvas.shown
    shown.controls["refiner"].value = "none"
    assert shown.wait().outcome.refined is None and shown.state == "answered"
    shown.controls["refiner"].value = "half"
    assert shown.wait().outcome is first
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
    canvas = shown.sides[0].canvas
    assert shown.state == "ready" and shown.outcome is None and canvas.runs == [] and canvas.mask == b""
    assert shown.picture.name == f"photo {shown.controls['photo'].value}"
    shown.controls["photo"].value = "cat"
    assert "the cat's nose" in [chip.description for chip in shown.chips]


def test_on_a_photo_the_embedded_model_warns_first_and_the_true_outline_is_offered():
    shown = playground(RuntimeError("the model must not be asked"))
    assert shown.offer.layout.display == "none"
    shown.controls["source"].value = "photo"
    assert "drawn scenes alone" in shown.message and shown.offer.layout.display == "block"
    shown.offer.click()
    assert shown.wait().state == "answered" and shown.outcome.writer == "true mask"
    assert shown.outcome.known and shown.outcome.mask.any()


# --- editing, conversation, comparison, history


def test_an_edit_moves_the_mask_and_marks_faults_in_place():
    shown = playground()
    first = shown.request(index=3, expression=SINGLE)
    row = next(k for k, line in enumerate(RIGHT.split("\n")) if SINGLE in line and "*" in line)
    lines = RIGHT.split("\n")
    lines[row] = f"{SINGLE} *16"
    edit(shown, "\n".join(lines))
    assert shown.state == "answered" and shown.outcome.writer == "you"
    assert (shown.outcome.grid != first.grid).any(axis=1).sum() == 1
    assert (shown.outcome.grid == 1).all(axis=1).any()
    assert shown.half.calls == 2 and shown.outcome.refined is not None
    edit(shown, RIGHT.replace(f"{SINGLE} *", "wombat *", 1).replace("</seg>", ""))
    faults = [run["fault"] for run in shown.sides[0].canvas.runs if run["fault"]]
    assert faults[0] == "'wombat' was not asked for" and "no </seg>" in faults[-1]
    edit(shown, RIGHT)
    assert np.array_equal(shown.outcome.grid, first.grid)
    assert shown.written == 1 and shown.request() is first  # edits are not remembered as answers


def test_cells_and_runs_name_each_other():
    shown = playground()
    outcome, canvas = shown.request(index=3, expression=SINGLE), shown.sides[0].canvas
    written = np.full(outcome.grid.size, -1)
    for run in canvas.runs:
        written[list(run["cells"])] = run["label"]
    assert np.array_equal(written.reshape(outcome.grid.shape), outcome.grid)


def test_describe_segment_and_segment_the_rest_are_one_conversation():
    shown = playground(anything)
    assert shown.request("describe", talk=True).answer.text == "A star."
    assert shown.sides[0].canvas.grid == [] and shown.sides[0].canvas.runs[0]["text"] == "A star."
    shown.request(expression="star; the cloud")
    rest = shown.request("segment the rest")
    assert "star" not in rest.turn.labels and "heart" in rest.turn.labels
    assert [len(asked) for asked, _ in shown.backbone.asked] == [1, 2, 3]
    shown.controls["talk"].value = False
    shown.request(expression="star")
    assert len(shown.backbone.asked[-1][0]) == 1


def test_a_painted_thing_stands_in_the_question():
    shown = playground(anything)
    canvas = shown.sides[0].canvas
    alike = "all other things of the same color as this"
    assert shown.request(reference=True, index=3, expression=alike) is None and "paint" in shown.message
    assert canvas.brush == 2
    painted = np.array(canvas.painted)
    painted[16:32, 32:48] = canvas.brush
    canvas.set_state({"painted": painted.tolist()})  # what the browser sends
    outcome = shown.request(expression=alike)
    question = outcome.turn.question
    assert outcome.turn.labels == (alike,) and "the same color as <seg>" in question
    text = question[question.index("<seg>"):question.index("</seg>")].removeprefix("<seg>")
    grid = get_encoding().decode(text, ["this"])
    assert grid[4:8, 8:12].all() and grid.sum() == 16
    assert shown.request(expression="all stars") is None and "'this' once" in shown.message
    assert shown.request(reference=False, expression="all stars").turn.question.endswith("all stars.")
    assert canvas.brush == -1 and canvas.painted == []
    assert shown.request(reference=True, index=4, expression=alike) is None, "another picture"


def test_two_settings_are_compared_side_by_side():
    other = Stub(anything)
    shown = playground(anything, adapters=["plain"], load_model=lambda name, adapter: other)
    assert shown.sides[1].panel.layout.display == "none"
    shown.request(expression="star", compare=True, encoding_b="irle", grid_b=(24, 24), refiner_b="none",
                  adapter_b="plain")
    a, b = (side.outcome for side in shown.sides)
    assert a.encoding == get_encoding() and b.encoding == get_encoding("irle", 24)
    assert a.refiner == "half" and b.refined is None and np.shape(shown.sides[1].canvas.grid) == (24, 24)
    assert len(other.asked) == len(shown.backbone.asked) == 1
    assert shown.sides[1].panel.layout.display == "flex"


def test_earlier_requests_can_be_shown_again():
    shown = playground(anything)
    first = shown.request(index=3, expression="star")
    shown.request(index=4, expression="cloud")
    shown.controls["history"].value = 0
    assert shown.outcome is first and shown.picture.name == "scene val 3" and shown.written == 2
    assert shown.sides[0].canvas.labels == ["others", "star"]


def test_what_is_shown_is_exported_and_has_a_picture_without_a_kernel():
    shown = playground()
    assert shown._repr_mimebundle_()[1]["image/png"]["alt"] == "scene val 0, nothing asked yet"
    outcome, sent = shown.request(index=3, expression=SINGLE), []
    shown.sides[0].canvas.send = lambda content, buffers: sent.append((content, buffers))
    for kind in ("coco", "text"):
        shown.sides[0].saves[kind].click()
    (_, (coco,)), (named, (text,)) = sent
    assert text.decode() == outcome.answer.text and named == {"type": "save", "name": "answer.txt"}
    assert json.loads(coco)["annotations"][0]["area"] == outcome.mask.sum()
    data, about = shown._repr_mimebundle_()
    assert base64.b64decode(data["image/png"])[:4] == b"\x89PNG"
    assert "application/vnd.jupyter.widget-view+json" in data and SINGLE in about["image/png"]["alt"]


# --- cancelling, and whatever goes wrong


def test_cancel_ends_a_request_and_the_next_one_works():
    shown = playground(RIGHT, pause=0.05)
    shown.controls["index"].value = 3
    shown.controls["expression"].value = SINGLE
    shown.ask()
    shown.ask()  # one at a time: a second press does nothing
    while not shown.backbone.streamed:
        time.sleep(0.01)
    start = time.perf_counter()
    assert not shown.stop.disabled
    shown.stop.click()
    assert shown.wait().state == "ready" and shown.message == "Cancelled."
    assert time.perf_counter() - start < 0.5 and len(shown.backbone.streamed) < 16
    assert shown.sides[0].canvas.runs == [] and shown.outcome is None and shown.stop.disabled
    shown.backbone.pause = 0
    assert shown.request().answer.text == RIGHT and len(shown.backbone.asked) == 2


def test_cancel_does_not_wait_for_the_refiner():
    shown, free = playground(), threading.Event()
    shown.half.refine = lambda masks, seed: free.wait(5)
    shown.controls["index"].value = 3
    shown.controls["expression"].value = SINGLE
    shown.ask()
    while "coarse mask" not in shown.times:
        time.sleep(0.01)
    shown.cancel()
    assert shown.wait().state == "ready" and "last answer" in shown.message
    assert shown.outcome.answer.text == RIGHT and shown.outcome.refined is None
    free.set()


def test_an_interrupt_cancels_and_leaves_the_button_free():
    shown = playground(RIGHT, pause=0.05)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell runs us behind
    threading.Timer(0.2, _thread.interrupt_main).start()
    with pytest.raises(KeyboardInterrupt):
        shown.request(index=3, expression=SINGLE)
    signal.signal(signal.SIGINT, before)
    assert shown.state == "ready" and not shown.button.disabled
    shown.backbone.pause = 0
    assert shown.request() is not None


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
    first = shown.request(index=3, expression=SINGLE)
    grid = shown.sides[0].canvas.grid
    assert shown.request(**choices) is None
    assert shown.state == "failed" and words in shown.message
    if "source" not in choices:  # the picture is the same, and so is the answer about it
        assert shown.outcome is first and shown.sides[0].canvas.grid == grid
        assert shown.message.endswith("still the last answer.")
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


@pytest.mark.parametrize(("choices", "words"), [
    ({"colour": 1}, "no control 'colour'"), ({"split": "moon"}, "'split' does not take 'moon'"),
    ({"index": -1}, "'index' does not take -1"), ({"index": "x"}, "does not take 'x'"),
])
def test_a_program_cannot_choose_what_is_not_offered(choices, words):
    shown = playground()
    with pytest.raises(PlaygroundError, match=words):
        shown.request(**choices, expression=SINGLE)
    assert len(shown.backbone.asked) == 0


def test_a_picture_that_is_dropped_counts_until_another_is_named(tmp_path):
    (tmp_path / "b.png").write_bytes(png_file())
    shown = playground()
    drop(shown, "a.png", png_file(), (400, 200))
    assert shown.controls["source"].value == "own file" and shown.picture.name == "a.png"
    assert "400 x 200" in shown.picture.note
    drop(shown, "a.png", png_file((30, 10)))  # another file of the same name
    assert shown.picture.pixels.shape == (10, 30, 3)
    drop(shown, "bad.png", b"no picture")
    assert shown.state == "failed" and "bad.png cannot be read" in shown.message and shown.picture is None
    shown.controls["path"].value = str(tmp_path / "b.png")
    assert shown.picture.name == "b.png" and shown.state == "ready"


def test_two_hundred_random_inputs_end_in_an_answer_or_a_sentence_and_leave_nothing_behind(monkeypatch):
    monkeypatch.setattr(widgets, "_KEPT", 4)
    rng, hooked = random.Random(0), []
    monkeypatch.setattr(threading, "excepthook", hooked.append)
    shown, ends, sizes = playground(anything, RuntimeError("x"), anything), set(), []
    letters = "abc |*3<seg>\n\\;犬\u202e\ud800\x00<image>others$%&'\""
    for k in range(200):
        typed = "".join(rng.choices(letters, k=rng.randrange(1, 12))) * rng.choice([1, 1, 30])
        shown.request(rng.choice(asking.KINDS) if k % 3 else "segment", index=rng.randrange(3),
                      expression=typed, talk=rng.random() < 0.3, refiner=rng.choice(["half", "none"]),
                      view=rng.choice(VIEWS), writer=rng.choice(asking.WRITERS))
        if rng.random() < 0.3 and shown.outcome is not None:
            edit(shown, "".join(rng.choices(letters, k=40)))
        assert shown.state in ("answered", "failed") and shown.message and "\n" not in shown.message
        assert "Traceback" not in shown.message and not shown.button.disabled
        ends.add(shown.state)
        if k in (99, 199):
            gc.collect()
            sizes.append(len(gc.get_objects()))
    assert ends == {"answered", "failed"} and not hooked
    assert sizes[1] < 1.02 * sizes[0]  # objects that are alive


def test_old_outcomes_are_let_go(monkeypatch):
    monkeypatch.setattr(widgets, "_KEPT", 2)
    shown = playground(anything)
    for k in (0, 1, 0, 2, 3, 0):
        shown.request(index=3, expression=f"thing {k}")
    assert len(shown.backbone.asked) == 5  # thing 0 was asked again only once it was let go
    assert len(shown.history) == 2 and len(shown._kept) <= 4


def test_one_call_shows_the_playground(monkeypatch):
    seen = []
    monkeypatch.setattr("IPython.display.display", seen.append)
    shown = widgets.playground(Stub(RIGHT), split="val")
    assert seen == [shown] and shown.picture.name == "scene val 0"
