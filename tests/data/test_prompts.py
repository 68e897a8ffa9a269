"""Wordings, answers as pieces, conversations."""

from __future__ import annotations

import numpy as np
import pytest

from t4s_helpers.data import prompts
from t4s_helpers.data.expressions import scene_sample
from t4s_helpers.codec.parsing import parse


def test_evaluation_wording_never_depends_on_chance():
    assert len({prompts.question("res", ["a star"]) for _ in range(5)}) == 1
    rng = np.random.default_rng(0)
    drawn = {prompts.question("res", ["a star"], rng) for _ in range(60)}
    assert drawn == {t.format(labels="a star") for t in prompts.REQUESTS["res"]}


@pytest.mark.parametrize("style", prompts.SENTENCES)
@pytest.mark.parametrize("scheme", ["full", "irle", "rrle"])
def test_answers_are_read_back_as_the_grid_they_came_from(style, scheme):
    for index in range(12):
        sample = scene_sample("test", index, "gres")
        one = prompts.turn(sample, 16, scheme=scheme, style=style)
        grid, report = parse(one.text, sample.labels, 16, scheme)
        assert report.ok and np.array_equal(grid, sample.grid(16))
        assert report.no_target == (not sample.masks.any())


def test_box_sentence_states_the_box_of_all_targets():
    mask = np.zeros((128, 64), bool)
    mask[64:, 32:] = True
    assert prompts.box_in_words(mask) == "At 16 16 31 31"
    assert prompts.box_in_words(np.zeros((4, 4), bool)) == "Nowhere"


def test_partial_requests_leave_the_other_classes_out():
    sample = next(s for k in range(50) if len((s := scene_sample("test", k, "semantic")).labels) > 2)
    for seed in range(8):
        asked = prompts.ask(sample, np.random.default_rng(seed), "partial")
        assert set(asked.labels) <= set(sample.labels)
        for name, mask in zip(asked.labels, asked.masks):
            assert np.array_equal(mask, sample.masks[sample.labels.index(name)])


def test_conditioned_requests_list_absent_classes_too():
    sample = scene_sample("test", 1, "semantic")
    asked = prompts.ask(sample, None, "conditioned", distractors=["zebra"])
    assert "zebra" in asked.question and "zebra" not in asked.labels


def test_modes_come_in_the_papers_proportions():
    rng, sample = np.random.default_rng(0), scene_sample("test", 1, "semantic")
    said = [prompts.ask(sample, rng).question for _ in range(400)]
    everything = sum(q in prompts.REQUESTS["semantic_open"] for q in said)
    classes = sum(q.startswith(("The classes", "Choosing")) for q in said)
    assert 20 <= everything <= 65 and 200 <= classes <= 280


def test_messages_carry_the_picture_once():
    turns = [prompts.Turn("one?", ("1",)), prompts.Turn("two?", ("2",))]
    chat = prompts.messages(turns, open_ended=True)
    assert [m["role"] for m in chat] == ["user", "assistant", "user"]
    kinds = [part["type"] for m in chat for part in m["content"]]
    assert kinds.count("image") == 1 and kinds[0] == "image"


@pytest.mark.parametrize("call, words", [
    (lambda: prompts.question("poem", ["a"]), "poem"),
    (lambda: prompts.question("res"), "at least one label"),
    (lambda: prompts.answer(np.zeros((2, 2), int), ["a"], style="rhyme"), "rhyme"),
    (lambda: prompts.answer(np.zeros((2, 2), int), ["a"], style="box"), "mask"),
    (lambda: prompts.ask(scene_sample("test", 0, "semantic"), mode="some"), "'some'"),
])
def test_bad_requests_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
