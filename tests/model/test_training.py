"""QLoRA on an untrained model, its data, resume, logs; several processes train as one."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import bitsandbytes as bnb
import numpy as np
import pytest
import tiny_model
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback, TrainerState

from t4s_helpers.codec.encodings import get_encoding
from t4s_helpers.data.expressions import scene_sample
from t4s_helpers.data.mixtures import DataMixture, SceneMixture
from t4s_helpers.data.photos import load_photos
from t4s_helpers.data.prompts import Turn
from t4s_helpers.model import training
from t4s_helpers.model.backbones import open_adapter, quantization
from t4s_helpers.model.chat import (
    IGNORE_INDEX, ConversationEncoder, ConversationError, pad_batch, side_by_side,
)

LAUNCH = Path(training.__file__).parent / "launch"


def scenes(n: int, grid_size: int, **options) -> SceneMixture:
    return SceneMixture(n, encoding=get_encoding("rrle", grid_size), **options)


# data


@pytest.mark.parametrize("has_image", [True, False])
def test_side_by_side_conversations_train_as_if_alone(has_image):
    backbone = tiny_model.backbone()
    encoder, model = backbone.encoder, backbone.model
    asked, alone = [], []
    for index in (3, 4):
        scene, turns = scenes(8, 4, style="box").conversation(index)
        image, talks = scene.image if has_image else None, [turns[:2], turns[2:], *([turn] for turn in turns)]
        asked.append(side_by_side(encoder, talks, image))
        alone += [ConversationEncoder(backbone.processor)(talk, image) for talk in talks]
    want, n = 0.0, 0
    for item in alone:
        batch = pad_batch([item], backbone.processor)
        trained = int((batch["labels"] != IGNORE_INDEX).sum())
        want, n = want + trained * model(**batch).loss, n + trained
    want = gradients(model, want / n)
    ours = gradients(model, training.loss_side_by_side(model, **pad_batch(asked, backbone.processor)))
    assert ours.keys() == want.keys() and ("projector" in " ".join(ours)) == has_image
    assert all(np.allclose(ours[name], want[name], atol=1e-5) for name in want)


def test_corrections_are_trained_behind_what_they_correct():
    backbone, mixture = tiny_model.backbone(), scenes(12, 4, mix="correction")
    index = next(k for k in range(12) if any(turn.follows for turn in mixture.turns(k)))
    (data, _), turns = training.training_data(backbone, mixture), mixture.turns(index)
    texts = [backbone.encoder.tokenizer.decode(ids.tolist()) for ids, _ in data[index]["exchanges"]]
    assert len(texts) < len(turns) == sum(text.count("<assistant>") for text in texts)
    after = next(k for k, turn in enumerate(turns) if turn.follows)
    assert any(turns[after - 1].text in text and turns[after].text in text for text in texts)


def test_one_in_four_conversations_about_scenes_is_read_as_a_whole():
    backbone, mixture = tiny_model.backbone(), scenes(8, 4)
    data, _ = training.training_data(backbone, mixture)
    asked = [len(mixture.turns(k)) for k in range(8)]
    assert [len(data[k]["exchanges"]) for k in range(8)] == [1, *asked[1:4], 1, *asked[5:]]
    whole = backbone.encoder.tokenizer.decode(data[4]["exchanges"][0][0].tolist())
    assert all(turn.text in whole for turn in mixture.turns(4)) and asked[4] > 1


def test_scenes_made_ahead_train_as_those_encoded_by_the_processor():
    backbone = tiny_model.backbone()
    data, collate = training.training_data(backbone, SceneMixture(2, n_requests=1))
    plain = training.TrainingSet(ConversationEncoder(backbone.processor), SceneMixture(2, n_requests=1))
    ahead, read = collate([data[0], data[1]]), pad_batch([plain[0], plain[1]], backbone.processor)
    assert np.allclose(ahead["pixel_values"], read["pixel_values"], atol=1e-5)
    with torch.no_grad():
        for _ in range(2):  # and it leaves its batch as it was
            ours = training.loss_side_by_side(backbone.model, **ahead)
            assert float(ours) == pytest.approx(float(backbone.model(**read).loss), abs=1e-5)


def gradients(model, loss) -> dict[str, np.ndarray]:
    model.zero_grad()
    loss.backward()
    found = {name: weight.grad.numpy() for name, weight in model.named_parameters()
             if weight.grad is not None and weight.grad.any()}
    return {"loss": loss.detach().numpy(), **found}


def test_lengths_are_those_of_the_text():
    data, _ = training.training_data(
        tiny_model.backbone(), DataMixture([load_photos()[:3]], 5, encoding=get_encoding("rrle", 4)))
    full = [len(data[k]["input_ids"]) for k in range(5)]
    assert [n - m for n, m in zip(full, data.lengths())] == [64] * 5


def test_an_empty_mixture_is_refused():
    with pytest.raises(ConversationError, match="empty"):
        training.training_data(tiny_model.backbone(), SceneMixture(0))


def test_chunks_hand_out_every_item_in_order():
    items = training.ChunkedItems(np.sqrt, 10, chunk=4)
    assert [items[k] for k in range(len(items))] == list(np.sqrt(range(10)))
    assert items[1] == 1 and items[9] == 3  # a chunk that is gone is made again


@pytest.mark.slow
def test_all_cores_together_keep_the_order():
    assert training.on_all_cores(np.sqrt, range(300), 2) == list(np.sqrt(range(300)))


# QLoRA


def six_steps(out: Path, n: int = 6, side_by_side: bool = True, **changes):
    """QLoRA steps on four scenes, seen again and again; the backbone with the trained model."""
    backbone = tiny_model.backbone(quantize="nf4")
    model = training.add_adapter(backbone, rank=8, alpha=16, dropout=0.0)
    mixture = scenes(4, 8, mix="res", n_requests=1)
    data, collate = training.training_data(backbone, mixture)
    if not side_by_side:
        data = training.TrainingSet(ConversationEncoder(backbone.processor), mixture)
    model = training.fine_tune(backbone, [data[k] for k in range(4)] * n, collate, out, batch=4,
                               accumulate=1, model=model, learning_rate=1e-2, logging_steps=1, **changes)
    return replace(backbone, model=model.eval())


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    return out, six_steps(out)


def test_qlora_trains_connector_and_language_model_alone_on_four_bits(short_run):
    out, backbone = short_run
    rows = training.read_log(out / "log.csv")
    assert [(row["step"], row["samples"]) for row in rows] == [(k, 4 * k) for k in range(1, 7)]
    assert rows[-1]["loss"] < 0.9 * rows[0]["loss"] and rows[-1]["seconds"] >= rows[0]["seconds"] > 0
    trained = {n for n, p in backbone.model.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name and "vision_tower" not in name for name in trained)
    assert any("multi_modal_projector" in n for n in trained)
    assert any("language_model" in n for n in trained)
    quantized = {n: m for n, m in backbone.model.named_modules() if isinstance(m, bnb.nn.Linear4bit)}
    assert len(quantized) == 4 * 7 + 2 and not any("vision_tower" in n for n in quantized)
    assert all(m.weight.quant_state.nested for m in quantized.values())


def test_an_adapter_reloaded_from_disk_gives_the_same_logits_and_can_be_trained_further(short_run):
    out, backbone = short_run
    again = tiny_model.backbone(quantize="nf4", adapter=out / "adapter")
    inputs = backbone.encoder.prompt([Turn("Segment the star.")], scene_sample("test", 0).pixels())
    with torch.inference_mode():
        a, b = (one.model(**inputs).logits for one in (backbone, again))
    assert torch.equal(a, b)
    more = open_adapter(tiny_model.backbone(), out / "adapter", trainable=True)
    one, other = ({name for name, p in model.named_parameters() if p.requires_grad}
                  for model in (more, backbone.model))
    assert one == other


def test_an_optimizer_of_bitsandbytes_and_checkpointing_train_too(short_run, tmp_path):
    """`paged_adamw_8bit` needs CUDA's paging; its 8-bit step is the same without."""
    with pytest.raises(training.TrainingError, match="leave activation_checkpointing off"):
        six_steps(tmp_path / "scenes", n=1, activation_checkpointing=True)
    six_steps(tmp_path, n=3, side_by_side=False, optim="adamw_8bit", activation_checkpointing=True)
    want = [row["loss"] for row in training.read_log(short_run[0] / "log.csv")]
    rows = training.read_log(tmp_path / "log.csv")
    assert rows[0]["loss"] == pytest.approx(want[0]) and rows[-1]["loss"] < rows[0]["loss"]


def test_a_loss_that_is_no_number_stops_training(tmp_path):
    backbone = tiny_model.backbone()
    backbone.model.model.language_model.norm.weight.data.fill_(float("nan"))
    data, collate = training.training_data(backbone, scenes(2, 4, n_requests=1))
    with pytest.raises(training.TrainingError, match="The loss is nan at step 1"):
        training.fine_tune(backbone, data, collate, tmp_path, batch=1, accumulate=1, logging_steps=1)


def test_too_little_gpu_memory_names_what_to_change(monkeypatch, tmp_path):
    def out_of_memory(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2**30, 24 * 2**30))
    monkeypatch.setattr(Trainer, "train", out_of_memory)
    with pytest.raises(training.TrainingError, match="batch=4, accumulate=8.*continues from"):
        training.fine_tune(tiny_model.backbone(), [0], list, tmp_path, batch=8, accumulate=4)


def test_batches_hold_items_of_similar_length_in_an_order_that_seed_and_epoch_decide():
    lengths = np.random.default_rng(0).integers(10, 500, 256)
    orders = []
    for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0)):
        sampler = training.LengthSampler(list(lengths), 16, seed)
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert orders[0] == orders[1] and sorted(orders[0]) == list(range(256))
    assert orders[0] != orders[2] and orders[0] != orders[3]

    def padding(order):
        rows = lengths[np.asarray(order)].reshape(-1, 16)
        return (rows.max(1, keepdims=True) - rows).sum()

    assert padding(orders[0]) < 0.35 * padding(range(256))


# resume


def test_resume_restores_every_tensor_although_names_change_on_disk(tmp_path):
    """LLaVA's tensors are saved under older names; a resume must not start from random weights."""
    model = tiny_model.backbone().model
    model.save_pretrained(tmp_path / "checkpoint-1")
    other = copy.deepcopy(model)
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(1.0)
    trainer = training.ResumableTrainer(model=other, args=training.arguments(tmp_path / "out"))
    trainer._load_from_checkpoint(str(tmp_path / "checkpoint-1"))
    for (name, a), b in zip(model.named_parameters(), other.parameters()):
        assert torch.equal(a, b), name


def test_a_checkpoint_cut_off_while_it_was_saved_is_passed_over(tmp_path):
    assert training.last_checkpoint(tmp_path / "none") is None
    for step, state in ((2, '{"global_step": 2}'), (10, '{"global_step": 10}'), (30, '{"glo')):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text(state)
    (tmp_path / "checkpoint-40").mkdir()
    assert training.last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    (tmp_path / "checkpoint-30" / "trainer_state.json").write_text(json.dumps({"global_step": 30}))
    assert training.last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-30")


def test_a_learning_curve_leaves_the_model_and_its_chances_alone(tmp_path):
    model, args, state = torch.nn.Dropout(), training.arguments(tmp_path), TrainerState(log_history=[])
    log = training.ScoreLog(tmp_path / "scores.csv",
                            lambda m: {"chance": torch.rand(()), "trains": m.training},
                            {0, 3}, lambda step: {"tokens": 7 * step})
    torch.manual_seed(1)
    want = torch.rand(())
    torch.manual_seed(1)
    log.on_train_begin(args, state, None, model=model)
    for state.global_step in (1, 2, 3, 3):
        log.on_step_end(args, state, None, model=model)
    assert torch.rand(()) == want and model.training
    rows = training.read_log(tmp_path / "scores.csv")
    assert [(row["step"], row["samples"], row["tokens"], row["trains"]) for row in rows] == [
        (0, 0, 0, 0), (3, 3 * args.per_device_train_batch_size, 21, 0)]


class Killed(Exception):
    pass


@pytest.mark.slow
def test_a_run_killed_at_any_step_resumes_along_the_same_curve(tmp_path):
    """Killed while checkpoint 6 is being written: it resumes at 3, and the curve is the same.

    So are the scores, and taking them changes no loss.
    """
    class Kill(TrainerCallback):
        def on_save(self, args, state, control, **_):
            if state.global_step == 6:
                (tmp_path / "b" / "checkpoint-6" / "trainer_state.json").write_text("{")
                raise Killed

    def run(out, callbacks=()):
        backbone = tiny_model.backbone(quantize="nf4")
        model = training.add_adapter(backbone, rank=4, alpha=8, dropout=0.1)
        # Encoded one by one, so that batches hold items of similar length in an order of their own.
        data = training.TrainingSet(ConversationEncoder(backbone.processor),
                                    scenes(32, 6, mix="res", n_requests=1))
        training.fine_tune(backbone, data, partial(pad_batch, processor=backbone.processor), out, batch=2,
                           accumulate=2, model=model, learning_rate=1e-2, logging_steps=1,
                           save_steps=3, callbacks=callbacks)
        return [(row["step"], row["loss"]) for row in training.read_log(out / "log.csv")]

    def score(model):
        lora = sum(float(weight.sum()) for name, weight in model.named_parameters() if "lora_" in name)
        return {"lora": lora, "chance": float(torch.rand(())), "trains": model.training}

    def scored(name):
        return training.ScoreLog(tmp_path / name / "scores.csv", score, range(0, 9, 2))

    want = run(tmp_path / "a")
    run(tmp_path / "c", [scored("c")])
    with pytest.raises(Killed):
        run(tmp_path / "b", [scored("b"), Kill()])
    assert run(tmp_path / "b", [scored("b")]) == want and len(want) == 8
    b, c = (training.read_log(tmp_path / name / "scores.csv") for name in "bc")
    assert [row["step"] for row in b] == [0, 2, 4, 6, 8] and not any(row["trains"] for row in b)
    assert [row["lora"] for row in b] == [row["lora"] for row in c] and b[0]["lora"] != b[-1]["lora"]


# several processes

TORCHRUN = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29632")
"""What ``accelerate launch`` starts on GPUs; on a CPU it starts several processes by MPI alone."""


def train_by_itself(out: Path, launcher=(), accumulate: int = 2) -> list[dict]:
    """Four steps of `recipes.train` on 16 scenes, in processes of their own; the rows of its log."""
    program = out.with_suffix(".py")
    program.write_text("from t4s_helpers.model.recipes import Plan, train\n" + f"""
train(Plan(out={str(out)!r}, source={str(tiny_model.folder())!r}, samples=16, turns=1, mix="res",
           grid_size=8, batch=2, accumulate={accumulate}, lr=1e-2, log_every=1,
           export={str(out / "shipped")!r}, dropout=0))  # each process would drop other inputs
""")
    root = Path(__file__).parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
                   "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, *launcher, str(program)], capture_output=True, text=True,
                          env=environment, cwd=root, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    return training.read_log(out / "log.csv")


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    """The same global batch of four, split between processes instead of passes."""
    want = train_by_itself(tmp_path / "one")
    rows = train_by_itself(tmp_path / "two", TORCHRUN, accumulate=1)
    assert [(r["step"], r["samples"]) for r in rows] == [(r["step"], r["samples"]) for r in want]
    assert rows and all(abs(a["loss"] - b["loss"]) < 1e-3 for a, b in zip(rows, want))
    a, b = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("one", "two"))
    assert a.keys() == b.keys()
    assert all((a[key] - b[key]).abs().max() < 5e-3 for key in a)
    shipped = json.loads((tmp_path / "two" / "shipped" / "adapter_config.json").read_text())
    assert shipped["base_model_name_or_path"] == "embedded"


@pytest.mark.parametrize("name", ["zero2", "fsdp"])
def test_the_configurations_are_accelerates(name):
    loaded = load_config_from_file(str(LAUNCH / f"{name}.yaml"))
    written = yaml.safe_load((LAUNCH / f"{name}.yaml").read_text())
    assert loaded.distributed_type == written["distributed_type"]
    assert loaded.num_processes == 2


def test_a_sharded_run_stores_four_bits_in_the_type_of_the_rest(monkeypatch):
    assert quantization(()).bnb_4bit_quant_storage == torch.uint8
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    config = quantization(())
    assert config.bnb_4bit_quant_storage == config.bnb_4bit_compute_dtype
