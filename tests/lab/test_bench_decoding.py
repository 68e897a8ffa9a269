"""The benchmark: its rows, its table that resumes where it stopped, and what it says of speed."""

from __future__ import annotations


import numpy as np
import pandas as pd
import pytest
import tiny_model

from t4s_helpers.codec.encodings import get_encoding
from t4s_helpers.data.prompts import ask, ask_and_answer
from t4s_helpers.data.registry import load
from t4s_helpers.decoding.generate import MODES, answer_samples, generate
from t4s_helpers.lab.benchmarks import decoding as bench

SMALL = get_encoding("rrle", 4)


@pytest.fixture(scope="module")
def requests():
    return load("scenes", "test", n=2, start=10, task="res")


@pytest.mark.parametrize("name", ["rrle", "full"])
def test_every_mode_writes_the_true_answer(requests, name):
    backbone, encoding = tiny_model.backbone(), get_encoding(name, 4)
    true = [bench.true_tokens(backbone.encoder, sample, encoding) for sample in requests]
    for mode in MODES:
        with bench.given_answers(true):
            said = generate(backbone, [s.pixels() for s in requests], [[ask(s)] for s in requests],
                            encoding, mode=mode, max_new_tokens=400, progress=False)
        for answer, sample, ids in zip(said, requests, true, strict=True):
            assert answer.text == ask_and_answer(sample, encoding, style="box").text
            assert answer.n_tokens == len(ids) and answer.finished


def test_a_row_tells_what_was_measured(requests):
    backbone = tiny_model.backbone()
    plain, fast, trees = (bench.time_decoding(backbone, requests, SMALL, mode, 2, own=False)
                          for mode in ("plain", "fast", "trees"))
    assert plain["tokens"] == fast["tokens"] == plain["passes"] > fast["passes"]
    assert trees["mode"] == "trees" and trees["passes"] <= fast["passes"]
    assert all(row["ms_q1"] <= row["ms"] <= row["ms_q3"] and row["cpu_ms"] > 0
               for row in (plain, fast, trees))
    assert (fast["encoding"], fast["grid"], fast["answers"], fast["n"]) == ("rrle", 4, "true", 2)


def test_what_the_grammar_costs_is_a_part_of_every_step(requests):
    backbone = tiny_model.backbone()

    def written():
        options = {"mode": "constrained", "progress": False}
        return answer_samples(backbone, requests[:1], SMALL, **options)[0][0]

    before = written()
    row = bench.grammar_cost(backbone, requests, SMALL, batch=2)
    assert row["batch"] == 2 and row["steps"] >= before.n_tokens
    assert 0 < row["grammar_ms"] < row["step_ms"]
    assert row["share"] == pytest.approx(row["grammar_ms"] / row["step_ms"])
    assert written().text == before.text


def test_a_table_resumes_where_it_stopped(tmp_path):
    done, path = [], tmp_path / "made" / "table.csv"

    def job(k, fails=False):
        def measure():
            if fails:
                raise KeyboardInterrupt
            done.append(k)
            return {"mode": "fast", "grid": k, "ms": 1.5 * k, "first": ""}
        return {"mode": "fast", "grid": k}, measure

    with pytest.raises(KeyboardInterrupt):
        bench.fill_table([job(1), job(2), job(3, fails=True)], path)
    table = bench.fill_table([job(1), job(2), job(3)], path)
    assert done == [1, 2, 3] and table["ms"].tolist() == [1.5, 3.0, 4.5]
    assert pd.read_csv(path, dtype={"answers": str})["grid"].tolist() == [1, 2, 3]
    bench.fill_table([job(2)], path, fresh=True)
    assert done == [1, 2, 3, 2] and len(pd.read_csv(path, dtype={"answers": str})) == 1
    assert [p.name for p in path.parent.iterdir()] == ["table.csv"]


def test_speed_is_told_against_plain_full_length_and_batch_one():
    columns = ["encoding", "mode", "batch", "ms"]
    table = pd.DataFrame([("rrle", "plain", 1, 600.0), ("rrle", "fast", 1, 100.0),
                          ("full", "plain", 1, 3000.0), ("rrle", "fast", 8, 40.0)], columns=columns)
    found = bench.speedups(table.assign(pictures="scenes", answers="true", grid=16)).set_index("batch")
    assert found.loc[1, ["over_plain", "over_full", "over_single"]].tolist() == [6, 30, 1]
    assert np.isnan(found.loc[8, "over_plain"]) and found.loc[8, "over_single"] == 2.5


def test_the_command_keeps_its_table(tmp_path, capsys):
    command = ["--adapter", "", "--samples", "1", "--grids", "2", "--encodings", "rrle", "--modes",
               "fast", "--batches", "1", "--out", str(tmp_path)]
    path = tmp_path / "decoding.csv"
    bench.main(command)
    [row] = pd.read_csv(path, dtype={"answers": str}).to_dict("records")
    assert (row["mode"], row["grid"], row["n"], row["answers"]) == ("fast", 2, 1, "true")
    before = path.read_bytes()
    bench.main(command)
    assert path.read_bytes() == before
    assert "fast" in capsys.readouterr().out
    bench.main([*command, "--pictures", "photos"])
    assert pd.read_csv(path, dtype={"answers": str})["pictures"].tolist() == ["scenes", "photos"]
    assert path.read_bytes().startswith(before)


@pytest.mark.parametrize("pictures", ["scenes", "photos"])
def test_timed_requests_have_one_target_each_their_own(pictures):
    found = bench.timed_requests(pictures, 6)
    assert len(found) == 6 and all(len(s.labels) == 1 and s.masks.any() for s in found)
    assert len({(s.id, s.masks.tobytes()) for s in found}) == 6
