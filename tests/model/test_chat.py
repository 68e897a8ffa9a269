"""Label masks token by token, requests side by side, padding, tokenizers alone."""

from __future__ import annotations

import copy
import shutil
from functools import partial

import numpy as np
import pytest
import tiny_model
import torch
from transformers import AutoProcessor

from t4s_helpers.data.expressions import scene_sample
from t4s_helpers.data.mixtures import SceneMixture
from t4s_helpers.data.prompts import Turn, ask_and_answer
from t4s_helpers.codec.encodings import get_encoding
from t4s_helpers.model.backbones import EMBEDDED
from t4s_helpers.model.chat import (
    IGNORE_INDEX, ConversationEncoder, ConversationError, TokenizerError, branch_mask, count_tokens,
    in_branches, load_tokenizer, packed, pad_batch, pixel_values,
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
def test_requests_side_by_side_are_answered_as_if_alone(encoder, has_image):
    scene, turns = SCENES.conversation(3)
    image = scene.image if has_image else None
    collate = partial(pad_batch, processor=encoder.processor)
    item, first = (in_branches(encoder(some, has_image=has_image), encoder.tokenizer)
                   for some in (turns, turns[:1]))
    batch = collate([packed(item, image), packed(first, image)])
    model = tiny_model.backbone().model
    with torch.no_grad():
        together = model(**batch).logits[0]
        for part, turn in enumerate(turns, 1):
            alone = collate([packed(encoder([turn], has_image=has_image), image)])
            here = torch.tensor(item["part"]) == part
            n = int(here.sum())
            assert alone["input_ids"][0, -n:].tolist() == batch["input_ids"][0, :len(here)][here].tolist()
            assert alone["labels"][0, -n:].tolist() == batch["labels"][0, :len(here)][here].tolist()
            want = model(**alone).logits[0, -n:]
            assert torch.allclose(together[:len(here)][here], want, atol=1e-4)
    assert part == len(turns) == max(item["part"]) > 2


def test_one_request_a_picture_needs_no_mask_to_read(encoder):
    scene, turns = SCENES.conversation(3)
    items = [packed(in_branches(encoder([turn], has_image=True), encoder.tokenizer), scene.image)
             for turn in turns]
    batch = pad_batch(items, encoder.processor)
    assert len({len(item["input_ids"]) for item in items}) > 1 and batch["attention_mask"].all()
    length = batch["input_ids"].shape[1]
    parts = torch.tensor([[*item["part"], *[-1] * (length - len(item["part"]))] for item in items])
    masked = {**batch, "attention_mask": branch_mask(parts)}
    model, trained = tiny_model.backbone().model, batch["labels"] != IGNORE_INDEX
    with torch.no_grad():
        ours, theirs = model(**batch), model(**masked)
    assert torch.allclose(ours.logits[trained], theirs.logits[trained], atol=1e-4)
    assert float(ours.loss) == pytest.approx(float(theirs.loss), abs=1e-5)


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
