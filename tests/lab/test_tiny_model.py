"""How the embedded base is made: dense targets, its exercises, its optimizer, its architecture."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tiny_model
import torch
from safetensors.torch import load_file
from transformers import AutoProcessor

from t4s_helpers.codec.encodings import get_encoding
from t4s_helpers.codec.grid import masks_to_grid
from t4s_helpers.data.prompts import Turn, box_in_words, read_box
from t4s_helpers.data.scenes import CATEGORIES, COLORS, SIZES, make_scene
from t4s_helpers.decoding.generate import generate
from t4s_helpers.lab.tiny_model import base, dense, exercises, grounding, muon, skills
from t4s_helpers.lab.tiny_model.architecture import build_processor
from t4s_helpers.lab.tiny_model.tokenizer import train_tokenizer
from t4s_helpers.model.backbones import load_backbone
from t4s_helpers.model.chat import ConversationEncoder
from t4s_helpers.model.training import read_log


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


def test_spans_are_read_off_the_row():
    assert exercises.spans_in_words(np.array([0, 0, 0])) == "none"
    assert exercises.spans_in_words(np.array([1, 1, 0, 2])) == "at 0, 2 wide; at 3, 1 wide"


def test_the_base_is_asked_many_things_none_twice_and_never_sees_a_descriptor():
    asked = set()
    for index in range(40):
        turns = [one.turn for one in exercises.some_exercises([0, index], make_scene("train", index), 20)]
        assert len({turn.question for turn in turns}) == 20
        assert not any("others" in turn.text or " *" in turn.text for turn in turns)
        asked |= {turn.question.split()[0] for turn in turns}
    assert asked > {"Locate", "Give", "In", "Which", "Is", "How", "List", "Describe", "Repeat:"}
    again = exercises.some_exercises([0, 3], make_scene("train", 3), 20)
    assert [one.turn for one in again] != turns


def test_points_are_named_by_what_covers_them():
    rng, said = np.random.default_rng(5), set()
    for index in range(60):
        scene = make_scene("val", index)
        turn = exercises.point_exercise(rng, scene).turn
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
    texts = {exercises.list_exercise(np.random.default_rng(k), scene).turn.text for k in range(20)}
    ordered = sorted(scene.objects, key=lambda o: o.center[0])
    assert len(texts) == 2  # with boxes and without
    for text in texts:
        parts = text.split(", ")
        assert len(parts) == len(ordered)
        assert all(f"{o.size} {o.color} {o.category}" in p for o, p in zip(ordered, parts))


def test_cells_are_told_row_by_row_and_each_piece_knows_where_it_is_seen():
    scene, rng = make_scene("val", 4), np.random.default_rng(1)
    drawn = (exercises.spans_exercise(rng, scene) for _ in range(30))
    turn, where = next(one for one in drawn if one.where[0].any())
    box, *rows = turn.answer
    assert read_box(box) == read_box(box_in_words(where[0])) and len(where) == len(turn.answer)
    grid = np.zeros((16, 16), int)
    for row, mask in zip(rows, where[1:]):
        number, spans = row.split(maxsplit=1)
        assert mask[8 * int(number):8 * int(number) + 8].sum() == mask.sum() > 0
        for span in spans.split("; "):
            _, first, width, _ = span.replace(",", "").split()
            grid[int(number), int(first):int(first) + int(width)] = 1
    assert np.array_equal(grid, masks_to_grid(where[0][None], 16))


def test_all_that_descriptors_are_made_of_is_said_in_exercises():
    """LoRA trains no embeddings: a token that the base never learned to say is out of an adapter's reach."""
    tokenizer, said = train_tokenizer(), set()
    for index in range(400):
        copied = exercises.copy_exercise(np.random.default_rng(index), make_scene("train", index))
        said.update(tokenizer.encode(copied.turn.text))
    counts = [f" *{n}" for n in range(1, 65)]
    texts = ["<seg>", "</seg>", "others", "|", "\n", *counts, "the", "all", *CATEGORIES]
    needed = {i for text in texts for i in tokenizer.encode(text)}
    assert needed <= said, tokenizer.convert_ids_to_tokens(sorted(needed - said))


def test_the_shipped_base_can_say_any_descriptor():
    backbone, text = load_backbone("embedded"), "<seg>others *3|the red dog *2|others *11\nothers *16</seg>"
    answer, = generate(backbone, [make_scene("val", 3).image], [[Turn(f"Repeat: {text}")]], get_encoding(),
                       mode="plain", max_new_tokens=40, progress=False)
    assert answer.text == text


def test_questions_of_color_and_kind_know_the_object_they_ask_about():
    for index in range(30):
        scene = make_scene("val", index)
        turn, (where,) = exercises.ask_exercise(np.random.default_rng(index), scene)
        if turn.question.startswith("What"):
            thing = next(o for o in scene.objects if (o.mask & where).any())
            assert turn.text in (thing.color, thing.category) and np.array_equal(thing.mask, where)


def test_visual_tokens_are_named_by_what_the_cells_under_them_show():
    scene, tokenizer = make_scene("val", 3), train_tokenizer()
    ids = grounding.names_of_tokens(ConversationEncoder(build_processor(tokenizer), 64), scene)
    cells = dense.dense_targets(scene)[:3].reshape(3, 8, 2, 8, 2).transpose(1, 3, 0, 2, 4).reshape(64, 3, 4)
    for named, shown in zip(ids, cells):
        words = {("nothing", *some)[kind] for some, kinds in zip((CATEGORIES, COLORS, SIZES), shown)
                 for kind in kinds}
        assert {tokenizer.decode([int(i)]).strip() for i in named} == words


def test_words_of_scenes_are_one_token_at_the_start_of_a_text_and_within():
    tokenizer = train_tokenizer()
    for word in (*CATEGORIES, *COLORS, *SIZES):
        assert [len(tokenizer.tokenize(text)) for text in (word, f" {word}")] == [1, 1], word


def test_words_of_a_question_look_at_what_they_name_and_answers_at_what_they_speak_of():
    processor = tiny_model.backbone().processor
    processor.tokenizer = train_tokenizer()
    encode, scene = ConversationEncoder(processor, grounding.N_VISUAL), make_scene("val", 4)
    words, thing = grounding.places_of_words(encode, scene), scene.objects[0]
    for spelt in (f" {thing.category}", f" {thing.category}s", thing.category):
        [token] = encode.piece_ids(spelt)
        alike = np.any([one.mask for one in scene.objects if one.category == thing.category], 0)
        assert np.array_equal(words[token], grounding.places(alike))
    assert encode.piece_ids(" thing")[0] not in words
    turn = Turn(f"Where is the {thing.category}?", (box_in_words(thing.mask),))
    talk, read = [exercises.Exercise(turn, (thing.mask,))], encode([turn], has_image=True)
    ids, labels = np.array(read["input_ids"]), np.array(read["labels"])
    found, (start, *_, end) = grounding.looks(encode, talk, words, ids, labels), np.flatnonzero(labels >= 0)
    [named] = np.flatnonzero(ids == encode.piece_ids(f" {thing.category}")[0])
    assert np.array_equal(found[named], words[ids[named]])
    assert (found[start - 1:end - 1] == grounding.places(thing.mask)).all() and not found[end - 1:].any()
    assert not found[:named].any() and not found[named + 1:start - 1].any()


def test_looking_is_scored_from_where_a_token_is_read(monkeypatch):
    """Against the loss written out for one exchange read in one piece."""
    backbone = tiny_model.backbone()
    backbone.processor.tokenizer = train_tokenizer()
    encode, model = ConversationEncoder(backbone.processor, grounding.N_VISUAL), backbone.model
    model.model.language_model.set_attn_implementation("eager")
    monkeypatch.setattr(base, "cached_encoder", lambda *_: encode)
    items = [base.base_item(index, "") for index in (3, 4)]
    losses = grounding.grounded_losses(model, **grounding.collate(items, backbone.processor))
    assert set(losses) == set(grounding.WEIGHTS) and all(loss.requires_grad for loss in losses.values())

    k = next(k for k, known in enumerate(items[1]["places"]) if known.any())
    one = {**items[1], "exchanges": [items[1]["exchanges"][k]], "places": [items[1]["places"][k]]}
    batch = grounding.collate([one], backbone.processor)
    alone = grounding.grounded_losses(model, **batch)
    (ids, labels), start = one["exchanges"][0], len(one["input_ids"])
    ids = torch.tensor([[*one["input_ids"], *ids]]).long()
    out = model(input_ids=ids, pixel_values=batch["pixel_values"], output_attentions=True,
                labels=torch.tensor([[*[-100] * start, *labels]]).long())
    first = ids[0].tolist().index(model.config.image_token_index)
    paid = out.attentions[grounding.LOOKING][0, :, :, first:first + grounding.N_VISUAL]
    shares = [paid[:, start + t, known].sum(-1)
              for t, known in enumerate(one["places"][0]) if known.any()]
    assert float(alone["look"]) == pytest.approx(float(-(torch.stack(shares) + 1e-3).log().mean()), rel=1e-3)
    assert float(alone["answer"]) == pytest.approx(float(out.loss), rel=1e-3)


@pytest.mark.slow
def test_the_base_is_trained_and_goes_on_where_it_was_killed(tmp_path, monkeypatch):
    """One step and a kill, then the second: the same model as two steps at once."""
    class Kill(base.CsvLog):
        def on_save(self, *_, **__):
            raise KeyboardInterrupt

    tower = tmp_path / "tower"
    tiny_model.backbone().model.save_pretrained(tower)
    how = dict(tower=tower, samples=2 * base.BATCH, asked=2, save_steps=1, logging_steps=1)
    whole = load_file(base.train(out=tmp_path / "whole", **how) / "model.safetensors")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(base, "CsvLog", Kill)
        base.train(out=tmp_path / "parts", **how)
    final = base.train(out=tmp_path / "parts", **how)
    parts = load_file(final / "model.safetensors")
    assert all(torch.equal(tensor, parts[name]) for name, tensor in whole.items())
    frozen = load_file(tower / "model.safetensors")
    kept = [name for name in whole if "vision_tower.encoder.patch_embeddings.0" in name]
    assert kept and all(torch.equal(whole[name].float(), frozen[name].bfloat16().float()) for name in kept)
    assert len(AutoProcessor.from_pretrained(final).tokenizer) == 1536
    rows = read_log(tmp_path / "parts" / "log.csv")
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:  # the loss and its parts
        assert row["loss"] == pytest.approx(sum(w * row[k] for k, w in grounding.WEIGHTS.items()), abs=2e-3)
    asked = read_log(tmp_path / "parts" / "skills.csv")
    assert [row["step"] for row in asked] == [0, 1, 2] and {*skills.SKILLS} < {*asked[0]}


def test_muon_orthogonalizes_steps_of_matrices_and_leaves_the_rest_to_adamw():
    torch.manual_seed(0)
    for shape in ((6, 4), (4, 6)):
        singular = torch.linalg.svdvals(muon.orthogonalized(torch.randn(shape)))
        assert singular.min() > 0.6 and singular.max() < 1.3
    model = tiny_model.backbone().model
    model.model.vision_tower.requires_grad_(False)
    optimizer = muon.Muon(model, lr=0.1, weight_decay=0.0)
    norm, matrix = model.model.language_model.norm.weight, model.model.multi_modal_projector.linear_1.weight
    norm.grad, matrix.grad = torch.ones_like(norm), torch.randn_like(matrix)
    before = [weight.detach().clone() for weight in (norm, matrix)]
    optimizer.step()
    moved = [(old - new).detach() for old, new in zip(before, (norm, matrix))]
    assert torch.allclose(moved[0], torch.full_like(norm, 0.01), atol=1e-4)  # AdamW's first step is lr / 10
    assert torch.linalg.svdvals(moved[1]).max() < 0.13 and norm.grad is not None and matrix.grad is None
    again = muon.Muon(model, lr=0.1)
    again.load_state_dict(optimizer.state_dict())
    assert torch.equal(again.state[matrix]["average"], optimizer.state[matrix]["average"])


def test_merging_stage_lays_cells_side_by_side():
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
    backbone = tiny_model.backbone()
    rows = skills.skill_scores(backbone, ("copy", "box", "ask color"), n=3, batch=2)
    assert [row["skill"] for row in rows] == ["copy", "box", "ask color"]
    assert all(0 <= row["exact"] <= row["tokens_right"] <= 1 for row in rows)
    again = skills.exercise("ask color", 1)
    assert again[0] == skills.exercise("ask color", 1)[0] and again[0].question.startswith("What c")
    with pytest.raises(ValueError, match="copy"):
        skills.exercise("sing", 0)
