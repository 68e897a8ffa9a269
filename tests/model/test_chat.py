"""Label masks token by token, requests side by side, padding, tokenizers alone."""

from __future__ import annotations

import copy
import shutil

import numpy as np
import pytest
from transformers import AutoProcessor

from t4s_helpers.data.beyond import scene_items
from t4s_helpers.data.expressions import scene_sample
from t4s_helpers.data.mixtures import SceneMixture
from t4s_helpers.data.prompts import Turn, ask_and_answer
from t4s_helpers.codec.encodings import get_encoding
from t4s_helpers.model.backbones import EMBEDDED
from t4s_helpers.model.chat import (
    IGNORE_INDEX, ConversationEncoder, ConversationError, TokenizerError, count_tokens, load_tokenizer,
    pad_batch, pixel_values, side_by_side,
)

SCENES = SceneMixture(8, style="box")


@pytest.fixture(scope="module")
def encoder():
    return ConversationEncoder(AutoProcessor.from_pretrained(EMBEDDED), 64)


def retemplated(encoder, template: str) -> ConversationEncoder:
    processor = copy.copy(encoder.processor)
    processor.chat_template = template
    return ConversationEncoder(processor, 64)


def trained_text(encoder, item):
    return encoder.tokenizer.decode([i for i in item["labels"] if i != IGNORE_INDEX])


def test_only_answers_and_their_end_marks_are_trained(encoder):
    turns = SCENES.turns(3)
    item = encoder(turns, has_image=True)
    assert trained_text(encoder, item) == "".join(t.text + "<eos>" for t in turns)
    assert all(label in (IGNORE_INDEX, i) for i, label in zip(item["input_ids"], item["labels"]))
    item = encoder([Turn("Where is it?", ("At 1 2 3 4",))], has_image=True)
    context = [i for i, label in zip(item["input_ids"], item["labels"]) if label == IGNORE_INDEX]
    assert encoder.tokenizer.decode(context) == "<bos><user>" + 64 * "<image>" + "Where is it?<assistant>"


def test_ids_of_an_answer_are_those_of_its_pieces(encoder):
    turn = ask_and_answer(scene_sample("test", 2, "gres"), get_encoding())
    said = [i for i in encoder([turn], has_image=True)["labels"] if i != IGNORE_INDEX][:-1]
    assert said == [i for piece in turn.answer for i in encoder.piece_ids(piece)]
    assert encoder.tokenizer.decode(said) == turn.text


def test_masks_in_questions_and_earlier_answers_are_read_as_they_were_trained(encoder):
    """At decoding both come back as text, which is cut into tokens anew."""
    _, hybrid = scene_items("test", 2, "ores")
    for samples in ([hybrid], *scene_items("test", 2, "correction")):
        turns = [ask_and_answer(one, get_encoding(), "box") for one in samples]
        trained, prompt = encoder(turns, has_image=True), encoder.prompt_text(turns)
        prompt = prompt.replace("<image>", 64 * "<image>")
        ids = encoder.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        assert trained["input_ids"][:len(ids)] == ids
        assert trained_text(encoder, trained) == "".join(turn.text + "<eos>" for turn in turns)


def test_the_fast_path_equals_the_processors(encoder):
    scene, turns = SCENES.conversation(1)
    slow = ConversationEncoder(encoder.processor)(turns, scene.image)
    fast = encoder(turns, has_image=True)
    assert slow["input_ids"] == fast["input_ids"] and slow["labels"] == fast["labels"]
    pixels = pixel_values(scene.image[None], 0.5, 0.25)
    assert np.allclose(slow["pixel_values"], pixels, atol=1e-5)


def test_long_conversations_and_templates_that_lose_answers_are_refused(encoder):
    short = ConversationEncoder(encoder.processor, 64, max_length=80)
    with pytest.raises(ConversationError, match="80"):
        short(SCENES.turns(0), has_image=True)
    with pytest.raises(ConversationError, match="drops or reorders"):
        retemplated(encoder, "{% for m in messages %}{{ m['role'] }}{% endfor %}")([Turn("a?", ("b",))])


def test_templates_without_an_end_mark_still_teach_to_stop(encoder):
    plain = retemplated(encoder, "{% for m in messages %}{% for p in m['content'] %}"
                                 "{{ p['text'] if p['type'] == 'text' else '' }} {% endfor %}{% endfor %}")
    assert trained_text(encoder, plain([Turn("a?", ("b",))])) == "b<eos>"


@pytest.mark.parametrize("has_image", [True, False])
def test_conversations_side_by_side_stand_as_if_alone_in_groups_of_like_length(encoder, has_image):
    scene, turns = SCENES.conversation(3)
    image = scene.image if has_image else None
    asked = [[[turn] for turn in turns], [turns[:2], turns[2:]]]
    batch = pad_batch([side_by_side(encoder, some, image) for some in asked], encoder.processor)
    pad, seen = encoder.tokenizer.pad_token_id, []
    for group in batch["groups"]:
        for row, ids, labels in zip(*(group[name].tolist() for name in ("row", "input_ids", "labels"))):
            n = len(ids) - ids[::-1].index(encoder.tokenizer.eos_token_id)
            assert set(ids[n:]) <= {pad} and set(labels[n:]) <= {IGNORE_INDEX}
            seen.append((row, batch["input_ids"][row].tolist() + ids[:n], labels[:n]))
    alone = [(row, encoder(one, has_image=has_image)) for row, some in enumerate(asked) for one in some]
    shared = batch["input_ids"].shape[1]
    assert sorted(seen) == sorted((row, item["input_ids"], item["labels"][shared:]) for row, item in alone)
    assert ("pixel_values" in batch) == has_image and len(batch["groups"]) == 3
    longest = [group["input_ids"].shape[1] for group in batch["groups"]]
    assert longest == sorted(longest) and longest[0] < longest[-1]


def test_padding_is_never_trained_nor_attended(encoder):
    items = [{"input_ids": [5, 6, 7], "labels": [IGNORE_INDEX, 6, 7]},
             {"input_ids": [5], "labels": [5], "pixel_values": np.ones((1, 3, 2, 2))}]
    batch = pad_batch(items, encoder.processor)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [5, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORE_INDEX, 6, 7], [5, IGNORE_INDEX, IGNORE_INDEX]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["pixel_values"].shape == (1, 3, 2, 2)


# tokenizers alone


def test_a_file_its_folder_and_the_name_are_the_same_tokenizer(tmp_path):
    shutil.copy(EMBEDDED / "tokenizer.json", tmp_path)
    text = "others *4\nothers *1|the small red star *2|others *1"
    named = load_tokenizer("embedded").encode(text).ids
    for place in (tmp_path, tmp_path / "tokenizer.json", str(tmp_path)):
        assert load_tokenizer(place).encode(text).ids == named
    tokenizer = load_tokenizer("embedded")
    assert count_tokens(tokenizer, text) == len(named) and count_tokens(tokenizer, "") == 0


@pytest.mark.parametrize("content", [None, "{not json"])
def test_a_folder_without_a_usable_tokenizer_is_named(tmp_path, content):
    if content:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(TokenizerError, match=tmp_path.name):
        load_tokenizer(tmp_path)
