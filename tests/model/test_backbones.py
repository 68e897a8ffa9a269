"""Every family of the table, offline: sample -> processor -> QLoRA step -> adapter -> answer."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import families
import numpy as np
import pytest
import tiny_model
from miniatures import MAKERS, ade, halves

from t4s_helpers import data
from t4s_helpers.codec.encodings import get_encoding
from t4s_helpers.codec.parsing import parse
from t4s_helpers.data.mixtures import DataMixture
from t4s_helpers.data.photos import load_photos
from t4s_helpers.data.prompts import ask_and_answer
from t4s_helpers.files import ASSETS
from t4s_helpers.model import backbones, training
from t4s_helpers.model.backbones import BACKBONES, BackboneError
from t4s_helpers.model.chat import IGNORE_INDEX, pad_batch

pytestmark = pytest.mark.timeout(600)

GRID4 = get_encoding("rrle", 4)


def load(name, **options):
    return backbones.load_backbone(name, source=families.folder(name), **options)


@pytest.fixture(scope="module")
def samples():
    return load_photos()[:2]


@pytest.mark.parametrize("name", families.FAMILIES)
def test_only_the_answer_is_trained(name, samples):
    backbone = load(name)
    encoder, one = backbone.encoder, ask_and_answer(samples[0], GRID4)
    item = encoder([one], samples[0].image)
    trained = [i for i in item["labels"] if i != IGNORE_INDEX]
    said = [i for piece in one.answer for i in encoder.piece_ids(piece)]
    assert trained[:-1] == said and trained[-1] == encoder.tokenizer.eos_token_id
    prompt = encoder.prompt([one], samples[0].image)["input_ids"][0].tolist()
    assert item["labels"][:len(prompt)] == [IGNORE_INDEX] * len(prompt)
    end = len(prompt) + len(trained)
    assert item["input_ids"][:end] == prompt + trained and item["labels"][len(prompt):end] == trained


@pytest.mark.parametrize("name", families.FAMILIES)
def test_the_loss_needs_the_logits_of_answers_alone(name, samples):
    backbone = load(name)
    items, collate = training.training_data(backbone, DataMixture([samples], encoding=GRID4))
    batch = collate([items[0], items[1]])
    found = []
    for inputs in (batch, training.answers_alone(batch)):
        backbone.model.zero_grad()
        out = backbone.model(**inputs)
        out.loss.backward()
        grads = [p.grad for p in backbone.model.parameters() if p.grad is not None]
        found.append([out.loss.detach(), *grads])
    assert out.logits.shape[:-1] == ((batch["labels"] != IGNORE_INDEX).sum(),)
    for a, b in zip(*found, strict=True):
        assert (a - b).abs().max() <= 1e-4 * max(1e-3, float(a.abs().max()))


@pytest.mark.parametrize("name", families.FAMILIES)
def test_lora_reaches_connector_and_language_model_and_nothing_else(name):
    import torch

    model = load(name).model
    assert type(model).__name__ == BACKBONES[name].model_class
    pattern = re.compile(BACKBONES[name].lora_targets)
    linear = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    hit = {n for n in linear if pattern.fullmatch(n)}
    vision = re.compile(r".*(vision_tower|vision_model|high_res_vision_(model|neck)|visual\."
                        r"(blocks|patch_embed|pos_embed))")
    rest = linear - hit
    assert all(vision.match(n) or n == "lm_head" for n in rest), sorted(rest)[:5]
    assert not any(vision.match(n) for n in hit)
    assert any("layers" in n for n in hit) and any("layers" not in n for n in hit)


@pytest.mark.slow
@pytest.mark.parametrize("name", families.FAMILIES)
def test_one_family_from_sample_to_answer(name, samples, tmp_path):
    """NF4, LoRA, falling loss, the adapter back from disk, an answer that parses."""
    import torch

    backbone = load(name, quantize="nf4")
    assert any("4bit" in type(m).__name__ for m in backbone.model.modules())
    model = training.add_adapter(backbone, rank=8, alpha=16, dropout=0.0)
    dataset, collate = training.training_data(backbone, DataMixture([samples], 12, encoding=GRID4))
    model = training.fine_tune(backbone, dataset, collate, tmp_path, batch=2, accumulate=1, model=model,
                               learning_rate=1e-2, logging_steps=1)
    losses = [row["loss"] for row in training.read_log(tmp_path / "log.csv")]
    assert len(losses) == 6 and losses[-1] < losses[0] - 0.1
    model.eval()
    batch = collate([dataset[0], dataset[1]])
    fresh = load(name, quantize="nf4", adapter=tmp_path / "adapter")
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, fresh.model(**batch).logits)
    one = ask_and_answer(samples[0], GRID4)
    inputs = fresh.encoder.prompt([one], samples[0].image)
    said = fresh.model.generate(**inputs, max_new_tokens=24, do_sample=False)
    text = fresh.encoder.tokenizer.decode(said[0, inputs["input_ids"].shape[1]:])
    grid, report = parse(text, samples[0].labels, GRID4)
    assert grid.shape == (4, 4) and report is not None


@pytest.mark.slow
def test_a_model_trains_on_a_mixture_of_everything(tmp_path):
    """Masks, words, several turns and no picture at all, through a real processor and trainer."""
    names = ("gqa", "pope-random", "llava-665k")
    for name in names:
        MAKERS[name](tmp_path / name)
    ade(tmp_path / "ade20k-150", halves(1, 2))
    sources = [data.load(name, root=tmp_path / name, counts="off") for name in (*names, "ade20k-150")]
    mixture = DataMixture(sources, n=24, encoding=GRID4, distractors=2)
    assert {mixture.image(n) is None for n in range(24)} == {True, False}
    backbone = load("llava-1.5-7b")
    training.fine_tune(backbone, *training.training_data(backbone, mixture), tmp_path / "out", batch=4,
                       accumulate=1, model=training.add_adapter(backbone, rank=4, alpha=8, dropout=0.0),
                       learning_rate=1e-2, logging_steps=1)
    losses = [row["loss"] for row in training.read_log(tmp_path / "out" / "log.csv")]
    assert len(losses) == 6 and min(losses[3:]) < losses[0]


def test_pictures_are_squeezed_where_they_would_be_cropped():
    name = "llava-1.5-7b"
    image = np.zeros((40, 160, 3), np.uint8)
    image[:, :20] = 255  # would be cut off by a centre crop
    pixels = load(name).processor.image_processor(image, return_tensors="pt")["pixel_values"]
    assert pixels.shape[-2:] == (families.SIDE, families.SIDE)
    assert pixels[..., :4].mean() > pixels[..., 20:].mean() + 1


@pytest.mark.parametrize("name", ["qwen2.5-vl-7b", "qwen3-vl-8b"])
def test_qwen_is_told_which_tokens_are_visual(name, samples):
    backbone = load(name)
    item = backbone.encoder([ask_and_answer(samples[0], GRID4)], samples[0].image)
    image_id = backbone.model.config.image_token_id
    assert len(item["mm_token_type_ids"]) == len(item["input_ids"])
    assert [t == image_id for t in item["input_ids"]] == [k == 1 for k in item["mm_token_type_ids"]]
    short = item | {k: item[k][:-5] for k in ("input_ids", "labels", "mm_token_type_ids")}
    batch = pad_batch([item, short], backbone.processor)
    assert batch["mm_token_type_ids"].shape == batch["input_ids"].shape
    assert batch["mm_token_type_ids"][1, -5:].sum() == 0


def test_every_line_of_the_table_is_of_a_kind_that_is_tried_out_here():
    def kind(name):
        spec = BACKBONES[name]
        return spec.model_class, spec.lora_targets, spec.keep, spec.squeeze

    assert {kind(name) for name in BACKBONES} <= {kind(name) for name in (*families.FAMILIES, "embedded")}
    assert all(0 < spec.kept < spec.billions for spec in BACKBONES.values())
    assert len({spec.source for spec in BACKBONES.values()}) == len(BACKBONES)


def test_the_listing_says_what_each_needs_and_what_fits_here(monkeypatch):
    monkeypatch.setattr(backbones, "free_memory", lambda: (6.9, "on the GPU"))
    rows = {line.split()[0]: line for line in backbones.listing().splitlines()}
    # 4.4 billion weights, 0.8 of them in 16 bits: (0.8 * 2 + 3.6 * 4.13 / 8) * 1e9 / 2**30 = 3.2 GB
    want = "qwen3-vl-4b Qwen3VL Qwen/Qwen3-VL-4B-Instruct 4.4 3.2 10 answers"
    assert rows["qwen3-vl-4b"].split() == want.split()
    assert rows["llava-1.5-13b"].endswith(" -") and rows["smolvlm-256m"].endswith(" trains")
    assert "6.9 GB free on the GPU" in rows["NF4"] and set(BACKBONES) < set(rows)


def test_another_source_is_not_asked_for_the_commit_of_the_tables():
    for name in BACKBONES.keys() & families.FAMILIES.keys():
        spec = load(name).spec
        assert (spec.name, spec.source, spec.revision) == (name, str(families.folder(name)), "main")
    assert all(spec.revision == "main" or re.fullmatch("[0-9a-f]{40}", spec.revision)
               for spec in BACKBONES.values())


def test_pictures_in_unequal_numbers_of_tiles_share_a_batch(samples):
    """SmolVLM: a wide picture has fewer tiles than a square one; each answers in a batch as alone."""
    import torch

    backbone = load("smolvlm-256m")
    backbone.model.float()
    encoder, one = backbone.encoder, ask_and_answer(samples[0], GRID4)
    images = [np.random.default_rng(n).integers(0, 256, (40, 40 * n, 3), np.uint8) for n in (1, 2, 1)]
    items = [encoder([one], image) for image in images]
    assert [item["pixel_values"].shape[1] for item in items] == [5, 3, 5]
    named = [encoder.tokenizer.decode(item["input_ids"]).count("<row_") for item in items]
    assert named == [4, 2, 4]
    assert [item["input_ids"].count(backbone.model.config.image_token_id) for item in items] == [20, 12, 20]
    batch = pad_batch(items, backbone.processor)
    with torch.no_grad():
        logits = backbone.model(**batch).logits
        for item, together in zip(items, logits):
            alone = backbone.model(**pad_batch([item], backbone.processor)).logits[0]
            torch.testing.assert_close(together[:len(alone)], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("options", "words"), [
    ({"name": "internvl2-8b"}, "internvl3.5-8b"), ({"name": "Qwen-VL-7B"}, "qwen3-vl-8b"),
    ({"name": "gpt"}, "llava-1.5-7b.*smolvlm2-2.2b"), ({"quantize": "int3"}, "int3"),
    ({"source": "/nowhere/at/all"}, "/nowhere/at/all"), ({"adapter": "no-such-adapter"}, "no-such-adapter")])
def test_what_cannot_be_loaded_is_named_and_what_could_be(options, words):
    with pytest.raises(BackboneError, match=words):
        backbones.load_backbone(**{"source": tiny_model.folder(), **options})


@pytest.mark.slow
def test_loading_an_adapter_warns_of_nothing_and_asks_the_hub_nothing():
    program = """if True:
        from t4s_helpers.model.backbones import load_backbone
        import peft.utils.other
        def never(repo, file, **_): raise AssertionError(f"asked the hub for {file} of {repo}")
        peft.utils.other.file_exists = never  # peft only warns of what goes wrong here
        load_backbone("embedded", adapter="scenes")"""
    env = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    done = subprocess.run([sys.executable, "-c", program], cwd=backbones.ASSETS.parents[1], env=env,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if line and "Loading weights" not in line] == []


def test_what_ships_is_small_and_the_embedded_line_is_true():
    sizes = [path.stat().st_size / 1e6 for path in ASSETS.rglob("*.safetensors")]
    assert sizes and max(sizes) <= 25
    model = backbones.load_backbone("embedded").model
    assert type(model).__name__ == BACKBONES["embedded"].model_class
    assert sum(p.numel() for p in model.parameters()) <= 12_000_000
