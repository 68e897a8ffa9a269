"""How the embedded base is made: dense targets, its text diet, its architecture."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
import tiny_model

from t4s_helpers.codec.grid import masks_to_grid
from t4s_helpers.data.scenes import CATEGORIES, COLORS, SIZES, make_scene
from t4s_helpers.lab.tiny_model import dense, language, words


def test_dense_targets_say_what_a_cell_shows():
    for index in range(25):
        scene = make_scene("val", index)
        maps = dict(zip(dense.HEADS, dense.dense_targets(scene)))
        for row, col in itertools.product(range(16), range(16)):
            cell = np.s_[8 * row:8 * row + 8, 8 * col:8 * col + 8]
            covers = [thing.mask[cell].mean() for thing in scene.objects]
            if max(covers) < dense.MIN_COVER:
                assert maps["category"][row, col] == 0 and maps["x0"][row, col] == dense.IGNORE_INDEX
                continue
            thing = scene.objects[int(np.argmax(covers))]
            assert CATEGORIES[maps["category"][row, col] - 1] == thing.category
            assert list(COLORS)[maps["color"][row, col] - 1] == thing.color
            assert list(SIZES)[maps["size"][row, col] - 1] == thing.size
            assert maps["inside"][row, col] == (max(covers) >= 0.5)
            assert maps["x0"][row, col] == thing.box[0] // 4
            assert maps["y1"][row, col] == (thing.box[3] - 1) // 4


def test_dense_runs_are_those_of_the_descriptor():
    scene = make_scene("val", 4)
    maps = dict(zip(dense.HEADS, dense.dense_targets(scene)))
    alone = next(o for o in scene.objects)
    grid = masks_to_grid(alone.mask[None], 16)
    for row in range(16):
        for value, run in itertools.groupby(range(16), key=lambda c: grid[row, c]):
            run = list(run)
            owned = [c for c in run if value and maps["run0"][row, c] != dense.IGNORE_INDEX
                     and maps["category"][row, c] - 1 == CATEGORIES.index(alone.category)]
            for col in owned:
                assert (maps["run0"][row, col], maps["run1"][row, col]) == (run[0], run[-1])


def test_rectangles_of_words_are_drawn_where_they_were_asked():
    rng, forms = np.random.default_rng(0), set()
    for _ in range(60):
        turn = words.rectangle_turn(rng)
        said, drawn = turn.text.removesuffix("</seg>").split("\n<seg>")
        corners = re.search(r" at (\d+ \d+ \d+ \d+)( on .*\.|:)$", turn.question)[1]
        assert said in ("", f"At {corners}:")
        forms.add(said == "")
        lines = [[run.rsplit(" *", 1) for run in line.split("|")] for line in drawn.split("\n")]
        grid = np.array([[word for word, count in line for _ in range(int(count))] for line in lines])
        x0, y0, x1, y1 = (int(v) // 2 for v in corners.split())
        inside = np.zeros((16, 16), bool)
        inside[y0:y1 + 1, x0:x1 + 1] = True
        assert len(set(grid[inside])) == 1 >= len(set(grid[~inside]))
        assert not set(grid[inside]) & set(grid[~inside])
    assert len(forms) == 2


def test_runs_exercises_are_true():
    rng = np.random.default_rng(1)
    for _ in range(80):
        turn = words.runs_turn(rng)
        asked = [line.split(", ") for line in turn.question.split("\n")[1:]]
        oracle = "\n".join("|".join(f"{k} *{len(list(g))}" for k, g in itertools.groupby(row))
                           for row in asked)
        assert turn.text == oracle


def test_counting_exercises_are_true():
    rng = np.random.default_rng(2)
    for _ in range(80):
        turn = words.count_turn(rng)
        ask, line = turn.question.removesuffix("?").split(" occur in: ")
        assert line.split().count(ask.split("does ")[1]) == int(turn.text)


def test_spans_are_read_off_the_row():
    assert language.spans_in_words(np.array([0, 0, 0])) == "none"
    assert language.spans_in_words(np.array([1, 1, 0, 2])) == "at 0, 2 wide; at 3, 1 wide"


def test_one_batch_in_so_many_has_no_picture():
    folder, first = str(tiny_model.folder()), (language.TEXT_EVERY - 1) * language.BATCH
    assert "image" in language.base_item(first - 1, folder)
    assert "image" not in language.base_item(first, folder)


def test_the_base_never_sees_segmentation_text_with_a_picture():
    rng = np.random.default_rng(0)
    for index in range(40):
        scene = make_scene("train", index)
        for _ in range(20):
            turn = language.scene_turn(rng, scene)
            assert "<seg>" not in turn.text and " *" not in turn.text


def test_points_are_named_by_what_covers_them():
    rng, said = np.random.default_rng(5), set()
    for index in range(60):
        scene = make_scene("val", index)
        turn = language.point_turn(rng, scene)
        if not turn.question.startswith("What is at "):
            continue
        x, y = (int(word) for word in turn.question.rstrip("?").split()[-2:])
        at = np.s_[4 * y:4 * y + 4, 4 * x:4 * x + 4]
        here = {f"{o.size} {o.color} {o.category}" for o in scene.objects if o.mask[at].all()}
        assert turn.text in (here or {"nothing"}), (index, x, y)
        if not here:
            assert not any(o.mask[at].any() for o in scene.objects)
        said.add(turn.text)
    assert "nothing" in said and len(said) > 20


def test_lists_name_every_object_from_left_to_right():
    scene = make_scene("val", 3)
    texts = {language.list_turn(np.random.default_rng(k), scene).text for k in range(20)}
    ordered = sorted(scene.objects, key=lambda o: o.center[0])
    assert len(texts) == 2  # with boxes and without
    for text in texts:
        parts = text.split(", ")
        assert len(parts) == len(ordered)
        assert all(f"{o.size} {o.color} {o.category}" in p for o, p in zip(ordered, parts))


def test_a_conversation_is_filled_without_asking_twice():
    folder = str(tiny_model.folder())
    encode = language.cached_encoder(folder, language.N_VISUAL)
    rng, scene = np.random.default_rng(0), make_scene("train", 1)
    turns = language.until_long(encode, lambda: language.scene_turn(rng, scene))
    asked = [turn.question for turn in turns]
    assert len(set(asked)) == len(asked) > 4


def test_merging_stage_lays_cells_side_by_side():
    import torch
    from torch.nn import functional as F

    from t4s_helpers.lab.tiny_model.architecture import merge_cells

    conv = torch.nn.Conv2d(3, 12, 3, stride=2, padding=1)
    with torch.no_grad():
        merge_cells(conv)
        x = torch.randn(1, 3, 8, 8)
        blocks = F.unfold(x, 2, stride=2).view(1, 3, 4, 4, 4)  # channel, place in block, row, col
        assert torch.allclose(conv(x), blocks.transpose(1, 2).reshape(1, 12, 4, 4))


def test_no_token_crosses_the_border_of_two_pieces():
    tokenizer = tiny_model.backbone().processor.tokenizer
    pieces = ["others", " *12", "|", "the small red star", " *4", "\n", "others", " *16", "</seg>"]
    apart = [i for piece in pieces for i in tokenizer(piece, add_special_tokens=False)["input_ids"]]
    assert tokenizer("".join(pieces), add_special_tokens=False)["input_ids"] == apart


@pytest.mark.parametrize("text", ["é☂ naïve", "a|b\\p", "  two  spaces ", "</seg", "1234567", "日本"])
def test_the_tokenizer_writes_any_text(text):
    tokenizer = tiny_model.backbone().processor.tokenizer
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_skills_are_scored_by_exact_answers():
    from t4s_helpers.lab.tiny_model import skills

    backbone = tiny_model.backbone()
    rows = skills.skill_scores(backbone, ("copy", "box", "ask color"), n=3, batch=2)
    assert [row["skill"] for row in rows] == ["copy", "box", "ask color"]
    assert all(0 <= row["exact"] <= row["tokens_right"] <= 1 for row in rows)
    again = skills.exercise("ask color", 1)
    assert again[0] == skills.exercise("ask color", 1)[0] and again[0].question.startswith("What c")
    with pytest.raises(ValueError, match="copy"):
        skills.exercise("sing", 0)
