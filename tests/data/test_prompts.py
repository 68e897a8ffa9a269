"""Wordings, answers as pieces, conversations."""

from __future__ import annotations

import numpy as np
import pytest

from t4s_helpers.codec.encodings import PAPER_ENCODINGS, get_encoding
from t4s_helpers.codec.grid import masks_to_grid
from t4s_helpers.codec.parsing import parse
from t4s_helpers.data import prompts
from t4s_helpers.data.expressions import scene_sample


def test_evaluation_wording_never_depends_on_chance():
    assert len({prompts.question("res", ["a star"]) for _ in range(5)}) == 1
    rng = np.random.default_rng(0)
    drawn = {prompts.question("res", ["a star"], rng) for _ in range(60)}
    assert drawn == {t.format(labels="a star") for t in prompts.REQUESTS["res"]}


@pytest.mark.parametrize("style", prompts.SENTENCES)
@pytest.mark.parametrize("name", PAPER_ENCODINGS)
def test_answers_are_read_back_as_the_grid_they_came_from(style, name):
    encoding = get_encoding(name)
    for index in range(12):
        sample = scene_sample("test", index, "gres")
        one = prompts.ask_and_answer(sample, encoding, style=style)
        grid, report = parse(one.text, one.labels, encoding)
        assert one.labels == sample.labels and report.ok
        assert np.array_equal(grid, sample.grid(encoding.grid_size))
        assert report.no_target == (not sample.masks.any())


def test_partial_requests_leave_the_other_classes_out():
    sample = next(s for k in range(50) if len((s := scene_sample("test", k, "semantic")).labels) > 2)
    encoding = get_encoding(grid_size=8)
    for seed in range(8):
        asked = prompts.ask(sample, np.random.default_rng(seed), "partial")
        told = prompts.ask_and_answer(sample, encoding, rng=np.random.default_rng(seed), mode="partial")
        assert set(asked.labels) <= set(sample.labels) and not asked.answer
        assert (told.question, told.labels) == (asked.question, asked.labels)
        masks = sample.masks[[sample.labels.index(name) for name in asked.labels]]
        assert np.array_equal(parse(told.text, told.labels, encoding)[0], masks_to_grid(masks, 8))


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


def test_questions_are_answered_in_words():
    one = prompts.ask_and_answer(scene_sample("test", 0, "vqa"), get_encoding())
    assert one.labels == () and one.text == scene_sample("test", 0, "vqa").answer


@pytest.mark.parametrize("call, words", [
    (lambda: prompts.question("poem", ["a"]), "poem"),
    (lambda: prompts.question("res"), "at least one label"),
    (lambda: prompts.answer(np.zeros((2, 2), int), ["a"], get_encoding(grid_size=2), "rhyme"), "rhyme"),
    (lambda: prompts.answer(np.zeros((2, 2), int), ["a"], get_encoding(grid_size=2), "box"), "mask"),
    (lambda: prompts.ask(scene_sample("test", 0, "semantic"), mode="some"), "'some'"),
])
def test_bad_requests_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
