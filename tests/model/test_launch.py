"""Training in several processes: the loss of one, one log, one adapter; the configurations load."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_model
import yaml

import t4s_helpers
from t4s_helpers.model.training import read_log

LAUNCH = Path(t4s_helpers.__file__).parent / "model" / "launch"


def train(out: Path, launcher=(), batch: int = 2, accumulate: int = 2) -> list[dict]:
    """Four steps of the training command on 16 scenes; the rows of its log."""
    command = [sys.executable, *launcher, "-m", "t4s_helpers.model.training",
               "--base", str(tiny_model.folder()), "--out", str(out), "--samples", "16",
               "--turns", "1", "--mix", "res", "--size", "8", "--batch", str(batch),
               "--accumulate", str(accumulate), "--lr", "1e-2", "--log-every", "1",
               "--dropout", "0"]  # each process would drop other inputs
    root = Path(__file__).parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
                   "PYTHONPATH": str(root)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root,
                          timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    return read_log(out / "log.csv")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    out = tmp_path_factory.mktemp("alone")
    return out, train(out)


TORCHRUN = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29632")
"""What ``accelerate launch`` starts on GPUs; on a CPU it starts several processes by MPI alone."""


def test_two_processes_train_as_one(alone, tmp_path):
    """The same global batch of four, split between processes in place of passes."""
    from safetensors.torch import load_file

    rows = train(tmp_path, TORCHRUN, accumulate=1)
    out, want = alone
    assert [(r["step"], r["samples"]) for r in rows] == [(r["step"], r["samples"]) for r in want]
    assert rows and all(abs(a["loss"] - b["loss"]) < 1e-3 for a, b in zip(rows, want))
    a, b = (load_file(place / "adapter" / "adapter_model.safetensors") for place in (out, tmp_path))
    assert a.keys() == b.keys()
    assert all((a[key] - b[key]).abs().max() < 5e-3 for key in a)


@pytest.mark.parametrize("name", ["zero2", "fsdp"])
def test_the_configurations_are_accelerates(name):
    from accelerate.commands.config.config_args import load_config_from_file

    loaded = load_config_from_file(str(LAUNCH / f"{name}.yaml"))
    written = yaml.safe_load((LAUNCH / f"{name}.yaml").read_text())
    assert loaded.distributed_type == written["distributed_type"]
    assert loaded.num_processes == 2


def test_a_sharded_run_stores_four_bits_in_the_type_of_the_rest(monkeypatch):
    from t4s_helpers.model.backbones import quantization

    import torch

    assert quantization(()).bnb_4bit_quant_storage == torch.uint8
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    config = quantization(())
    assert config.bnb_4bit_quant_storage == config.bnb_4bit_compute_dtype
