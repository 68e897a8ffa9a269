"""The command that measures on a GPU, tried on a toy; and what it makes of finished tables."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from t4s_helpers.lab.benchmarks import gpu as bench


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tmp_path_factory.mktemp("weights")


def test_without_a_gpu_nothing_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA GPU.*--shrunk"):
        bench.main(["train", "--out", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_random_weights_are_made_once_and_load_like_real_ones(weights):
    from t4s_helpers.model.backbones import load_backbone

    folder = bench.random_weights("llava-1.5-7b", weights, shrunk=True)
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert bench.random_weights("llava-1.5-7b", weights, shrunk=True) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    backbone = load_backbone("llava-1.5-7b", source=folder)
    item = bench.long_item(backbone.encoder, 1024)
    visual = item["input_ids"].count(backbone.model.config.image_token_index)
    assert (len(item["input_ids"]), len(item["labels"]), visual) == (1024, 1024, 576)


def test_shapes_are_those_of_seven_and_thirteen_billions():
    from transformers import LlavaForConditionalGeneration

    tokenizer = bench._processor().tokenizer
    for name, billions in (("llava-1.5-7b", 7.06), ("llava-1.5-13b", 13.35)):
        with torch.device("meta"):
            model = LlavaForConditionalGeneration(bench._config(name, tokenizer))
        assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, abs=0.01)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="the toy is for machines without a GPU")
def test_training_is_measured_and_kept(tmp_path, weights, capsys):
    command = ["train", "--shrunk", "--shapes", "llava-1.5-7b", "--weights", str(weights), "--out",
               str(tmp_path), "--batch", "1", "--tokens", "640", "--steps", "2"]
    bench.main(command)
    [row] = pd.read_csv(tmp_path / "training.csv").to_dict("records")
    assert (row["shape"], row["device"], row["batch"], row["tokens"]) == (
        "llava-1.5-7b, shrunk", "CPU", 1, 640)
    assert row["samples_per_s"] == pytest.approx(1000 / row["ms"], rel=0.02)
    assert row["torch"] == torch.__version__.split("+")[0]
    assert np.isnan(row["peak_gb"]) and row["target_gb"] == 14  # no GPU, no peak
    assert "target_gb 14" in capsys.readouterr().out
    before = (tmp_path / "training.csv").read_bytes()
    bench.main(command)
    assert (tmp_path / "training.csv").read_bytes() == before


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="the toy is for machines without a GPU")
def test_decoding_is_measured_and_judged(tmp_path, weights, monkeypatch, capsys):
    monkeypatch.setattr(bench, "DECODE", [("plain", 16), ("fast", 16), ("trees", 16), ("fast", 32),
                                          ("trees", 32)])
    bench.main(["decode", "--shrunk", "--weights", str(weights), "--out", str(tmp_path),
                "--samples", "1"])
    rows = pd.read_csv(tmp_path / "decoding.csv").set_index(["mode", "grid"])
    assert rows.loc[("plain", 16), "passes"] == rows.loc[("plain", 16), "tokens"]
    passes = rows["passes"]
    assert passes["trees", 16] <= passes["fast", 16] < passes["plain", 16] / 8
    assert "times faster than plain at 16 x 16" in capsys.readouterr().out


def test_verdicts_take_the_better_draft_and_only_whole_tables():
    def row(mode, grid, ms, shape="a"):
        return {"shape": shape, "device": "G", "weights": "nf4", "mode": mode, "grid": grid, "ms": ms}

    ms = {("plain", 16): 800.0, ("constrained", 16): 810.0, ("fast", 16): 120.0, ("trees", 16): 100.0,
          ("plain", 32): 2000.0, ("fast", 32): 200.0, ("trees", 32): 400.0}
    whole = [row(*key, value) for key, value in ms.items()]
    found = bench.verdicts(pd.DataFrame([*whole, row("plain", 16, 1.0, "b")]))
    assert found.to_dict("records") == [
        {"shape": "a", "device": "G", "weights": "nf4", "over_plain": 8.0, "fine_over_plain": 0.25}]
