"""Rewarded answers: what they earn, their probability under the grammar, and that a step goes uphill."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import tiny_model
import torch
from scipy.special import softmax

from t4s_helpers.codec.encodings import get_encoding
from t4s_helpers.data.prompts import ask, ask_and_answer
from t4s_helpers.data.registry import load
from t4s_helpers.decoding import constrained
from t4s_helpers.decoding.generate import Answer, generate, read_answers
from t4s_helpers.lab import rewards
from t4s_helpers.model.backbones import Backbone, load_backbone
from t4s_helpers.model.training import add_adapter

SMALL = get_encoding("rrle", 2)


@pytest.fixture(autouse=True)
def brief(monkeypatch):
    """An untrained model chats until it is stopped."""
    monkeypatch.setattr(constrained, "SENTENCE_LIMIT", 4)
    monkeypatch.setattr(constrained, "TAIL_LIMIT", 2)


def trainable() -> Backbone:
    loaded = tiny_model.backbone()
    model = add_adapter(loaded, rank=4, alpha=8)
    model.add_adapter(rewards.REFERENCE, model.peft_config["default"])
    model.set_adapter("default")
    return Backbone(loaded.spec, model.eval(), loaded.processor)


def test_what_answers_earn():
    some = load("scenes", "test", n=40, start=0, task="gres")
    target = next(one for one in some if one.masks.any())
    nothing = next(one for one in some if not one.masks.any())
    encoding = get_encoding("rrle", 32)
    texts = {one.id: ask_and_answer(one, encoding, "box").text for one in (target, nothing)}

    def earned(sample, text):
        return rewards.rewards_of(sample, Answer(text, 1, True, 0.0), encoding)

    right, empty = earned(target, texts[target.id]), replace(target, masks=nothing.masks)
    assert right["box_iou"] == 1 and 0.5 < right["iou"] < 1
    assert right["reward"] == pytest.approx((1 + right["iou"]) / 2)
    assert earned(nothing, texts[nothing.id]) == {"reward": 1, "iou": 1, "box_iou": 1}
    assert earned(target, ask_and_answer(empty, encoding, "box").text)["reward"] == 0
    found = replace(nothing, masks=target.masks)
    assert earned(nothing, ask_and_answer(found, encoding, "box").text)["reward"] == 0
    swapped = "At 31 31 0 0:" + texts[target.id].partition(":")[2]
    assert earned(target, swapped)["box_iou"] == 0 and earned(target, swapped)["iou"] == right["iou"]
    assert "box_iou" not in earned(target, ask_and_answer(target, encoding).text)


def test_a_step_makes_the_better_answer_likelier(monkeypatch):
    """Two answers to one request; the second earns more."""
    backbone, samples = trainable(), load("scenes", "test", n=1, start=3, task="res")
    said, kept = [], rewards.generate
    monkeypatch.setattr(rewards, "generate", lambda *args, **options: said.extend(
        found := kept(*args, **options)) or found)
    monkeypatch.setattr(rewards, "rewards_of", lambda sample, answer, _: {"reward": float(answer is said[1])})

    def chances():
        images, turns = [samples[0].pixels()] * 2, [[ask(samples[0])]] * 2
        with torch.no_grad():
            logits = read_answers(backbone, images, turns, [one.ids for one in said[:2]])
        return [rewards.log_probs(*pair).sum().item() for pair in zip(logits, said)]

    optimizer = torch.optim.SGD([p for p in backbone.model.parameters() if p.requires_grad], lr=0.0)
    first = rewards.step(backbone, optimizer, samples, SMALL, draws=2, beta=0.0, seed=1)
    assert first["reward"] == 0.5 and first["kl"] == pytest.approx(0, abs=1e-6) and first["flat"] == 0
    before = chances()
    optimizer.param_groups[0]["lr"] = 0.2
    del said[:]
    rewards.step(backbone, optimizer, samples, SMALL, draws=2, beta=0.0, seed=1)
    worse, better = np.subtract(chances(), before)
    assert better > 0 > worse
    assert rewards.step(backbone, optimizer, samples, SMALL, draws=2, seed=2)["kl"] > 1e-6


def test_probabilities_are_those_that_tokens_were_drawn_with():
    """Within the descriptor, shared among what the grammar allows."""
    backbone, sample = tiny_model.backbone(), load("scenes", "test", n=1, start=3, task="res")[0]
    [said] = generate(backbone, [sample.pixels()], [[ask(sample)]], SMALL, temperature=1.0, seed=4)
    [logits] = read_answers(backbone, [sample.pixels()], [[ask(sample)]], [said.ids])
    found = rewards.log_probs(logits, said)
    sources = [source for source in said.trace.sources if source != "forced"]
    chosen = [k for k, source in enumerate(sources) if source == "chosen"]
    assert len(found) == len(sources) and found.requires_grad and chosen
    tokens = np.array(said.ids)[np.array(said.trace.sources) == "chosen"]
    for k, token, (_, allowed, scores) in zip(chosen, tokens, said.trace.choices):
        chance = softmax(scores)[allowed == token].item()
        assert found[k].exp().item() == pytest.approx(chance, abs=1e-3)


def test_a_resumed_run_is_the_run_that_was_not_stopped(tmp_path):
    options = dict(encoding=SMALL, requests=1, draws=2, n_held_out=1, every=1, task="res", lr=1e-2)
    whole = rewards.train(trainable(), tmp_path / "a", steps=2, **options)
    rewards.train(trainable(), tmp_path / "b", steps=1, **options)
    resumed = rewards.train(trainable(), tmp_path / "b", steps=2, **options)
    columns = whole.columns.drop("seconds")
    pd.testing.assert_frame_equal(whole[columns], resumed[columns])
    assert len(pd.read_csv(tmp_path / "b" / "rewards.csv")) == 3
    assert (tmp_path / "b" / "adapter" / "adapter_config.json").is_file()


def test_the_command_moves_an_adapter_beside_its_frozen_copy_and_exports_it(tmp_path, monkeypatch):
    seen = []

    def no_steps(backbone, out, **options):
        seen.append((backbone, options))
        backbone.model.save_pretrained(out / "adapter", selected_adapters=["default"])
        return pd.DataFrame({"held_out_ciou": [0.5]})

    monkeypatch.setattr(rewards, "train", no_steps)
    rewards.main(["--out", str(tmp_path / "out"), "--export", str(tmp_path / "shipped"), "--steps", "3"])
    [(backbone, options)] = seen
    assert options["steps"] == 3 and not backbone.model.training
    weights = dict(backbone.model.named_parameters())
    moved = [name for name, p in weights.items() if p.requires_grad]
    assert moved and all(".default." in name for name in moved)
    assert all(torch.equal(weights[name], weights[name.replace(".default.", f".{rewards.REFERENCE}.")])
               for name in moved)
    assert load_backbone("embedded", adapter=tmp_path / "shipped")
