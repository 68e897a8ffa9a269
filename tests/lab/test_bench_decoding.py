"""The benchmark: its rows, its table that goes on where it stopped, and what it says of speed."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_model

from t4s_helpers.lab.benchmarks import decoding as bench
from t4s_helpers.decoding.constrained import Choice, Trace
from t4s_helpers.data.expressions import scene_samples
from t4s_helpers.decoding.generate import MODES, Answer, generate
from t4s_helpers.decoding.grammar import START
from t4s_helpers.data.prompts import ask, turn


@pytest.fixture(scope="module")
def requests():
    return scene_samples("test", 2, "res", start=10)


def test_every_mode_writes_the_true_answer(requests):
    backbone = tiny_model.backbone()
    for scheme in ("rrle", "full"):
        leads = [bench.true_tokens(backbone.encoder, s, 4, scheme) for s in requests]
        for mode in MODES:
            said = generate(backbone, [s.pixels() for s in requests],
                            [ask(s).question for s in requests], [s.labels for s in requests], 4,
                            mode=mode, scheme=scheme, leads=leads, max_new_tokens=400)
            for answer, sample, lead in zip(said, requests, leads):
                assert answer.text == turn(sample, 4, scheme=scheme, style="box").text
                assert answer.n_tokens == len(lead) and answer.finished


def test_a_row_tells_what_was_measured(requests):
    backbone = tiny_model.backbone()
    rows = [bench.time_decoding(backbone, requests, mode, 4, "rrle", 2, own=False)
            for mode in ("plain", "fast", "trees")]
    plain, fast, trees = rows
    assert plain["tokens"] == fast["tokens"] == plain["passes"] > fast["passes"]
    assert trees["mode"] == "trees" and trees["passes"] <= fast["passes"]
    assert all(row["ms_q1"] <= row["ms"] <= row["ms_q3"] and row["cpu_ms"] > 0 for row in rows)
    assert "fast" in bench.written(fast) and "rrle" in bench.written(fast)


def test_what_the_grammar_costs_is_a_part_of_every_step(requests):
    backbone = tiny_model.backbone()
    before = generate(backbone, [requests[0].pixels()], [ask(requests[0]).question],
                      [requests[0].labels], 4, mode="constrained")[0]
    row = bench.grammar_cost(backbone, requests, 4, batch=2)
    assert row["batch"] == 2 and row["steps"] >= before.n_tokens
    assert 0 < row["grammar_ms"] < row["step_ms"]
    assert row["share"] == pytest.approx(row["grammar_ms"] / row["step_ms"])
    after = generate(backbone, [requests[0].pixels()], [ask(requests[0]).question],
                     [requests[0].labels], 4, mode="constrained")[0]
    assert after.text == before.text


def test_fast_and_constrained_are_compared(requests, monkeypatch):
    backbone = tiny_model.backbone()
    for way in ("fast", "trees"):
        row = bench.compare_modes(backbone, requests, 3, 2, way=way)
        assert (row["mode"], row["equal"], row["tied"], row["n"], row["first"]) == (way, 2, 0, 2, "")
    from dataclasses import replace

    honest = bench.answer_samples

    def wrong(*args, mode, **options):
        out = honest(*args, mode=mode, **options)
        return [(replace(a, text=a.text + "!"), r) if mode == "fast" and k else (a, r)
                for k, (a, r) in enumerate(out)]

    monkeypatch.setattr(bench, "answer_samples", wrong)
    row = bench.compare_modes(backbone, requests, 3, 2)
    assert (row["equal"], row["first"]) == (1, requests[1].id)


@pytest.mark.parametrize(("gap", "source", "tie"), [
    (1e-5, "chosen", True), (0.1, "chosen", False), (1e-5, "free", False)])
def test_only_a_choice_between_equals_counts_as_a_tie(gap, source, tie):
    choices = [Choice(START, np.array([4, 5]), np.array([2.0, 0.0], np.float32)),
               Choice(START, np.array([3, 7]), np.array([9.0, 9.0 + gap], np.float32))]
    trace = Trace(sources=["free", "chosen", "forced", source], choices=choices)
    one = Answer("a", 4, True, 0.0, trace, None, (1, 4, 2, 7))
    assert bench.part_at_a_tie(one, Answer("b", 4, True, 0.0, trace, None, (1, 4, 2, 3))) == tie
    assert not bench.part_at_a_tie(one, Answer("c", 4, True, 0.0, trace, None, (1, 4, 2, 8)))
    assert not bench.part_at_a_tie(one, one)


def test_confidence_is_compared_with_draws(requests):
    row = bench.check_confidence(tiny_model.backbone(), requests[0], 4, draws=200)
    assert row["beyond"] == 0 and 0 < row["known"] <= 1 and row["noise"] < 0.05
    assert row["map"] < row["text"]  # an untrained model is unsure; its text hides that


def test_a_table_goes_on_where_it_stopped(tmp_path):
    done, path = [], tmp_path / "made" / "table.csv"

    def job(k, fails=False):
        def measure():
            if fails:
                raise KeyboardInterrupt
            done.append(k)
            return {"mode": "fast", "size": k, "ms": 1.5 * k, "first": ""}
        return {"mode": "fast", "size": k}, measure

    with pytest.raises(KeyboardInterrupt):
        bench.run([job(1), job(2), job(3, fails=True)], path, False, lambda row: None)
    rows = bench.run([job(1), job(2), job(3)], path, False, lambda row: None)
    assert done == [1, 2, 3] and [row["ms"] for row in rows] == [1.5, 3.0, 4.5]
    assert [row["size"] for row in bench.read_rows(path)] == [1, 2, 3]
    bench.run([job(2)], path, True, lambda row: None)
    assert done == [1, 2, 3, 2] and len(bench.read_rows(path)) == 1


def test_speed_is_told_against_plain_full_length_and_batch_one():
    def row(scheme, mode, batch, ms):
        return {"pictures": "scenes", "answers": "true", "scheme": scheme, "size": 16, "mode": mode,
                "batch": batch, "ms": ms}

    table = [row("rrle", "plain", 1, 600.0), row("rrle", "fast", 1, 100.0),
             row("full", "plain", 1, 3000.0), row("rrle", "fast", 8, 40.0)]
    single, eight = bench.speedups(table)
    assert (single["over_plain"], single["over_full"], single["over_single"]) == (6, 30, 1)
    assert (eight["over_plain"], eight["over_single"]) == (None, 2.5)


def test_the_command_keeps_its_table(tmp_path, capsys):
    command = ["--adapter", "", "--samples", "1", "--sizes", "2", "--schemes", "rrle", "--modes",
               "fast", "--batches", "1", "--out", str(tmp_path)]
    assert bench.main(command) == 0
    [row] = bench.read_rows(tmp_path / "decoding.csv")
    assert (row["mode"], row["size"], row["n"], row["answers"]) == ("fast", 2, 1, "true")
    before = (tmp_path / "decoding.csv").read_bytes()
    assert bench.main(command) == 0 and (tmp_path / "decoding.csv").read_bytes() == before
    assert "fast" in capsys.readouterr().out
    assert bench.main([*command, "--pictures", "photos"]) == 0
    scenes, photos = bench.read_rows(tmp_path / "decoding.csv")
    assert (scenes["pictures"], photos["pictures"]) == ("scenes", "photos") and scenes == row


def test_timed_requests_have_one_target_each_their_own():
    for pictures in ("scenes", "photos"):
        found = bench.timed_requests(pictures, 6)
        assert len(found) == 6 and all(len(s.labels) == 1 and s.masks.any() for s in found)
        assert len({(s.id, s.masks.tobytes()) for s in found}) == 6
