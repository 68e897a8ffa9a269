"""Label masks token by token, padding, QLoRA on an untrained model, resume, logs."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import tiny_model

from t4s_helpers.model import training
from t4s_helpers.data.expressions import scene_sample
from t4s_helpers.data.instructions import instruction
from t4s_helpers.data.prompts import Turn, turn
from t4s_helpers.model.training import IGNORE, ConversationEncoder, ConversationError, pad_batch


@pytest.fixture(scope="module")
def encoder():
    from transformers import AutoProcessor

    return ConversationEncoder(AutoProcessor.from_pretrained(tiny_model.folder()), 64)


def trained_text(encoder, item):
    return encoder.tokenizer.decode([i for i in item["labels"] if i != IGNORE])


def test_only_answers_and_their_end_marks_are_trained(encoder):
    scene, turns = instruction(3, "all", 4, style="box")
    item = encoder(turns, has_image=True)
    assert trained_text(encoder, item) == "".join(t.text + "<eos>" for t in turns)
    for token, label in zip(item["input_ids"], item["labels"]):
        assert label in (IGNORE, token)


def test_nothing_of_question_or_picture_is_trained(encoder):
    item = encoder([Turn("Where is it?", ("At 1 2 3 4",))], has_image=True)
    image = encoder.processor.image_token_id
    assert item["input_ids"].count(image) == 64
    context = [t for t, label in zip(item["input_ids"], item["labels"]) if label == IGNORE]
    assert encoder.tokenizer.decode([t for t in context if t != image]) == \
        "<bos><user>Where is it?<assistant>"


def test_ids_of_an_answer_are_those_of_its_pieces(encoder):
    one = turn(scene_sample("test", 2, "gres"), 16)
    item = encoder([one], has_image=True)
    said = [i for i in item["labels"] if i != IGNORE][:-1]
    assert said == [i for piece in one.answer for i in encoder.piece_ids(piece)]
    assert encoder.tokenizer.decode(said) == one.text


def test_fast_and_processor_paths_agree(encoder):
    scene, turns = instruction(1, "res", 2)
    slow = ConversationEncoder(encoder.processor)(turns, scene.image)
    fast = encoder(turns, has_image=True)
    assert slow["input_ids"] == fast["input_ids"] and slow["labels"] == fast["labels"]
    from t4s_helpers.lab.tiny_model.architecture import pixel_values

    assert np.allclose(slow["pixel_values"], pixel_values(scene.image[None]), atol=1e-5)


def test_long_samples_are_refused_not_cut(encoder):
    short = ConversationEncoder(encoder.processor, 64, max_length=80)
    with pytest.raises(ConversationError, match="80"):
        short([turn(scene_sample("test", 2, "res"), 16)], has_image=True)


def test_templates_that_lose_answers_are_refused(encoder):
    processor = copy.copy(encoder.processor)
    processor.chat_template = "{% for m in messages %}{{ m['role'] }}{% endfor %}"
    with pytest.raises(ConversationError, match="drops or reorders"):
        ConversationEncoder(processor, 64)([Turn("a?", ("b",))])


def test_templates_without_an_end_mark_still_teach_to_stop(encoder):
    processor = copy.copy(encoder.processor)
    processor.chat_template = (
        "{% for m in messages %}{% for p in m['content'] %}"
        "{{ p['text'] if p['type'] == 'text' else '' }} {% endfor %}{% endfor %}")
    item = ConversationEncoder(processor, 64)([Turn("a?", ("b",))])
    assert trained_text(encoder, item) == "b<eos>"


def test_processor_items_equal_the_fast_ones(encoder):
    backbone = tiny_model.backbone()
    data, collate = training.scene_data(backbone, 2, mix="all", n=1)
    plain = training.SceneConversations(ConversationEncoder(encoder.processor), 2, "all", 1)
    a, b = collate([data[k] for k in (0, 1)]), pad_batch([plain[k] for k in (0, 1)], 0)
    assert set(a) - set(b) == {"position_ids"} and set(b) <= set(a)
    for name in set(b) - {"attention_mask"}:
        assert np.allclose(a[name], b[name], atol=1e-5), name


@pytest.mark.parametrize("has_image", [True, False])
def test_requests_side_by_side_are_answered_as_if_alone(encoder, has_image):
    import torch

    from t4s_helpers.lab.tiny_model.language import collate, in_branches, packed

    scene, turns = instruction(3, "all", 3, style="box")
    image = scene.image if has_image else None
    item = in_branches(encoder(turns, has_image=has_image), encoder.tokenizer)
    batch = collate([packed(item, image), packed(in_branches(
        encoder(turns[:1], has_image=has_image), encoder.tokenizer), image)], 0)
    model = tiny_model.backbone().model
    with torch.no_grad():
        together = model(**batch).logits[0]
        for part, one in enumerate(turns, 1):
            alone = collate([packed(encoder([one], has_image=has_image), image)], 0)
            here = torch.tensor(item["part"]) == part
            n = int(here.sum())
            assert alone["input_ids"][0, -n:].tolist() == batch["input_ids"][0][here].tolist()
            assert alone["labels"][0, -n:].tolist() == batch["labels"][0][here].tolist()
            want = model(**alone).logits[0, -n:]
            assert torch.allclose(together[here], want, atol=1e-4)
    assert part == len(turns) == max(item["part"])


def test_one_request_a_picture_needs_no_mask_to_read(encoder):
    import torch

    from t4s_helpers.lab.tiny_model.language import collate, in_branches, packed
    from t4s_helpers.model.training import _parts_mask

    scene, turns = instruction(3, "all", 3, style="box")
    items = [packed(in_branches(encoder([one], has_image=True), encoder.tokenizer), scene.image)
             for one in turns]
    batch = collate(items, 0)
    length = batch["input_ids"].shape[1]
    assert len({len(item["input_ids"]) for item in items}) > 1 and batch["attention_mask"].all()
    masked = {**batch, "attention_mask": _parts_mask([item["part"] for item in items], length)}
    model, trained = tiny_model.backbone().model, batch["labels"] != IGNORE
    with torch.no_grad():
        ours, theirs = model(**batch), model(**masked)
    assert torch.allclose(ours.logits[trained], theirs.logits[trained], atol=1e-4)
    assert float(ours.loss) == pytest.approx(float(theirs.loss), abs=1e-5)


def test_padding_is_never_trained_nor_attended():
    batch = pad_batch([{"input_ids": [5, 6, 7], "labels": [IGNORE, 6, 7]},
                       {"input_ids": [5], "labels": [5], "pixel_values": np.ones((1, 3, 2, 2))}], 0)
    assert batch["labels"].tolist() == [[IGNORE, 6, 7], [5, IGNORE, IGNORE]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["pixel_values"].shape == (1, 3, 2, 2)


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
    """Six QLoRA steps on four scenes, seen again and again."""
    out = tmp_path_factory.mktemp("run")
    backbone = tiny_model.backbone(quantize="nf4")
    model = training.add_adapter(backbone, rank=8, alpha=16, dropout=0.0)
    data, collate = training.scene_data(backbone, 4, mix="res", n=1, size=8)
    data = [data[k] for k in range(4)] * 6
    model = training.fine_tune(backbone, data, collate, out, batch=4, accumulate=1, model=model,
                               learning_rate=1e-2, logging_steps=1, save_steps=3)
    return out, replace(backbone, model=model.eval())


def test_qlora_trains_connector_and_language_model_alone(short_run):
    _, backbone = short_run
    trained = {n for n, p in backbone.model.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    assert any("multi_modal_projector" in n for n in trained)
    assert any("language_model" in n for n in trained)
    assert not any("vision_tower" in n for n in trained)


def test_the_base_really_is_in_four_bits(short_run):
    import bitsandbytes as bnb

    _, backbone = short_run
    quantized = [n for n, m in backbone.model.named_modules() if isinstance(m, bnb.nn.Linear4bit)]
    assert len(quantized) == 7 and all(".layers.3." in n for n in quantized)  # what is wired is kept
    assert all(m.weight.quant_state.nested for m in backbone.model.modules()
               if isinstance(m, bnb.nn.Linear4bit))


def test_the_loss_falls(short_run):
    rows = training.read_log(short_run[0] / "log.csv")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[-1]["loss"] < 0.9 * rows[0]["loss"]


def test_an_adapter_reloaded_from_disk_gives_the_same_logits(short_run):
    import torch

    out, backbone = short_run
    again = tiny_model.backbone(quantize="nf4", adapter=out / "adapter")
    inputs = backbone.encoder.prompt([Turn("Segment the star.", ())],
                                     scene_sample("test", 0).pixels())
    with torch.inference_mode():
        a, b = (one.model(**inputs).logits for one in (backbone, again))
    assert torch.equal(a, b)


def test_the_log_keeps_one_curve_over_a_resume(tmp_path):
    from types import SimpleNamespace

    args = SimpleNamespace(per_device_train_batch_size=2, gradient_accumulation_steps=1,
                           world_size=1)

    def at(step, first=True):
        return SimpleNamespace(global_step=step, is_world_process_zero=first)

    log = training.CsvLog(tmp_path / "log.csv")
    log.on_train_begin(args, at(0), None)
    for step in (1, 2, 3):
        log.on_log(args, at(step), None, {"loss": 3.0 - step})
        training.CsvLog(log.path).on_log(args, at(step, first=False), None, {"loss": 9.0})
    log.on_train_begin(args, at(2), None)  # killed after step 2's save
    log.on_log(args, at(3), None, {"loss": 0.5})
    rows = training.read_log(tmp_path / "log.csv")
    assert [(r["step"], r["samples"], r["loss"]) for r in rows] == [(1, 2, 2), (2, 4, 1), (3, 6, .5)]


def test_a_loss_that_is_no_number_stops_training(tmp_path):
    from types import SimpleNamespace

    with pytest.raises(training.TrainingError, match="step 4"):
        training.StopOnNaN().on_log(SimpleNamespace(output_dir=str(tmp_path)),
                                    SimpleNamespace(global_step=4), None, {"loss": float("nan")})


def test_resume_restores_every_tensor_although_names_change_on_disk(tmp_path):
    """LLaVA's tensors are saved under older names; a resume must not start from random weights."""
    import torch
    from transformers import LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(tiny_model.folder())
    model.save_pretrained(tmp_path / "checkpoint-1")
    other = copy.deepcopy(model)
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(1.0)
    trainer = training.resumable_trainer(model=other, args=training.arguments(tmp_path / "out"))
    trainer._load_from_checkpoint(str(tmp_path / "checkpoint-1"))
    for (name, a), b in zip(model.named_parameters(), other.parameters()):
        assert torch.equal(a, b), name


def test_a_checkpoint_cut_off_while_it_was_saved_is_passed_over(tmp_path):
    import json

    assert training.last_checkpoint(tmp_path / "none") is None
    for step, state in ((2, '{"global_step": 2}'), (10, '{"global_step": 10}'), (30, '{"glo')):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text(state)
    (tmp_path / "checkpoint-40").mkdir()
    assert training.last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    (tmp_path / "checkpoint-30" / "trainer_state.json").write_text(json.dumps({"global_step": 30}))
    assert training.last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-30")


class Killed(Exception):
    pass


def test_a_run_killed_at_any_step_goes_on_along_the_same_curve(tmp_path):
    """Killed while checkpoint 6 is being written: it resumes at 3, and the curve is the same."""
    from transformers import TrainerCallback

    class Kill(TrainerCallback):
        def on_save(self, args, state, control, **_):
            if state.global_step == 6:
                (tmp_path / "b" / "checkpoint-6" / "trainer_state.json").write_text("{")
                raise Killed

    def run(out, callbacks=()):
        backbone = tiny_model.backbone(quantize="nf4")
        model = training.add_adapter(backbone, rank=4, alpha=8, dropout=0.1)
        data = training.SceneConversations(ConversationEncoder(backbone.processor), 32, "res", 1,
                                           size=6)
        training.fine_tune(backbone, data, lambda items: pad_batch(items, 0), out, batch=2,
                           accumulate=2, model=model, learning_rate=1e-2, logging_steps=1,
                           save_steps=3, callbacks=callbacks)
        return [(row["step"], row["loss"]) for row in training.read_log(out / "log.csv")]

    want = run(tmp_path / "a")
    with pytest.raises(Killed):
        run(tmp_path / "b", [Kill()])
    assert run(tmp_path / "b") == want and len(want) == 8


def test_batches_hold_items_of_a_like_length_in_an_order_that_seed_and_epoch_decide():
    lengths = list(np.random.default_rng(0).integers(10, 500, 256))
    orders = []
    for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0)):
        sampler = training.length_sampler(lengths, 16, seed)
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert orders[0] == orders[1] and sorted(orders[0]) == list(range(256))
    assert orders[0] != orders[2] and orders[0] != orders[3]

    def padding(order):
        rows = np.asarray(lengths)[np.asarray(order)].reshape(-1, 16)
        return (rows.max(1, keepdims=True) - rows).sum()

    assert padding(orders[0]) < 0.35 * padding(range(256))


def test_lengths_are_those_of_the_text(encoder):
    from t4s_helpers.data.photos import load_photos

    data = training.SampleConversations(ConversationEncoder(encoder.processor), load_photos()[:3],
                                        5, size=4)
    full = [len(data[k]["input_ids"]) for k in range(5)]
    assert [n - m for n, m in zip(full, data.lengths())] == [64] * 5


def test_too_little_gpu_memory_names_what_to_change(monkeypatch, tmp_path):
    import torch
    from transformers import Trainer

    def out_of_memory(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2**30, 24 * 2**30))
    monkeypatch.setattr(Trainer, "train", out_of_memory)
    backbone = tiny_model.backbone()
    with pytest.raises(training.TrainingError, match="batch=4, accumulate=8.*go(es)? on"):
        training.fine_tune(backbone, [0], list, tmp_path, batch=8, accumulate=4)


def test_an_optimizer_of_bitsandbytes_trains_too(tmp_path):
    """`paged_adamw_8bit` needs CUDA's paging; its 8-bit step is the same without."""
    backbone = tiny_model.backbone(quantize="nf4")
    model = training.add_adapter(backbone, rank=4, alpha=8, dropout=0.0)
    data, collate = training.scene_data(backbone, 4, mix="res", n=1, size=6)
    training.fine_tune(backbone, [data[k] for k in range(4)] * 3, collate, tmp_path, batch=4,
                       accumulate=1, model=model, learning_rate=1e-2, logging_steps=1,
                       optim="adamw_8bit")
    rows = training.read_log(tmp_path / "log.csv")
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_what_must_be_exact_is_computed_in_full_precision_under_autocast():
    """The embedded model's wired layers read sixteenths apart; 16 bits would take one row for another."""
    import torch

    model = copy.deepcopy(tiny_model.backbone().model)
    layers, said = model.model.language_model.layers, {}
    for k in (0, len(layers) - 1):
        layers[k].mlp.gate_proj.register_forward_hook(
            lambda _, args, out, k=k: said.update({k: out.dtype}))
    ids = torch.tensor([[1, 5, 6, 7]])
    plain = model(input_ids=ids).logits
    training.in_full_precision(layers[:1])
    assert torch.equal(model(input_ids=ids).logits, plain)
    with torch.autocast("cpu", torch.bfloat16):
        model(input_ids=ids)
    assert said == {0: torch.float32, len(layers) - 1: torch.bfloat16}


def test_fine_tuning_keeps_the_wired_layers_exact(short_run):
    layers = short_run[1].model.base_model.model.model.language_model.layers
    assert ["forward" in vars(layer) for layer in layers] == [True, True, True, False]
