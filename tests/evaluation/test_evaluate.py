"""The evaluator: batches, kills, processes, conversations, class maps, what is left out, tables."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny_model
from PIL import Image
from shared_data import shared_data

from t4s_helpers.__main__ import main
from t4s_helpers.codec.encodings import get_encoding
from t4s_helpers.data.dataset import BadRow, Dataset
from t4s_helpers.data.expressions import scene_dialogue, scene_samples
from t4s_helpers.data.prompts import ask_and_answer
from t4s_helpers.data.registry import load
from t4s_helpers.decoding import generate as decoding
from t4s_helpers.decoding.generate import DecodingError
from t4s_helpers.decoding.grammar import GrammarError
from t4s_helpers.evaluation import evaluate as module
from t4s_helpers.evaluation.conventions import OFFICIAL
from t4s_helpers.evaluation.evaluate import evaluate, plan_batches, run_tables
from t4s_helpers.evaluation.scoring import ScoringError, score_rows, table_rows
from t4s_helpers.evaluation.store import StoreError, read_run
from t4s_helpers.evaluation.tasks import TaskError, from_rle

ROOT = Path(__file__).parents[2]
FOUR, TWO = get_encoding("rrle", 4), get_encoding("rrle", 2)
QUIET = {"progress": False}
CONVENTIONS = {"background": "not_averaged", "absent": "skip"}
TORCHRUN = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29633")


def arguments(out: Path, *more: str) -> list[str]:
    return ["evaluate", "run", str(out), "--source", str(tiny_model.folder()), "--adapter", "none", "--task",
            "gres", "-n", "24", "--grid-size", "4", "--batch", "2", *more]


def start(out: Path, *launcher: str) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": "."}
    return subprocess.Popen([sys.executable, *launcher, "-m", "t4s_helpers", *arguments(out)], text=True,
                            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def shell(out: Path, *launcher: str) -> str:
    process = start(out, *launcher)
    printed, errors = process.communicate(timeout=800)
    assert process.returncode == 0, errors[-2000:]
    return printed


def timeless(folder: Path) -> tuple[str, str]:
    """The rows and the table of scores of a run, but for seconds and its name."""
    rows = pd.DataFrame(read_run(folder)[0]).drop(columns=["seconds", "after_seconds"])
    return rows.to_json(), pd.read_csv(folder / "scores.csv").drop(columns=["set", "seconds"]).to_csv()


@pytest.fixture(scope="module")
def tiny():
    return tiny_model.backbone()


@pytest.mark.slow
@pytest.mark.timeout(1800)  # six processes start, on a machine that may have other work
def test_two_processes_and_a_kill_in_the_middle_give_the_digits_of_one(tmp_path):
    alone, shared, killed = (tmp_path / name for name in ("alone", "shared", "killed"))
    shell(alone)
    shell(shared, *TORCHRUN)
    assert timeless(shared) == timeless(alone) and read_run(shared)[1]["processes"] == 2
    process, until = start(killed), time.time() + 600
    while time.time() < until and process.poll() is None and len(list(killed.glob("rows.*"))) < 3:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert 3 <= len(list(killed.glob("rows.*"))) < 12, "the run was not in its middle"
    assert " 24 " in shell(killed, *TORCHRUN)  # resumed by two
    assert timeless(killed) == timeless(alone)


def test_the_command_refuses_other_settings_and_makes_tables_alone(tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    with pytest.raises(StoreError, match="holds no run"):
        run_tables(tmp_path)
    few = arguments(out, "-n", "8")
    assert main(few) == 0
    before, rows = timeless(out), read_run(out)[0]
    assert main([*few, "--seed", "7"]) == 1
    assert "seed: 0 there, 7 here" in capsys.readouterr().err
    monkeypatch.setattr(module, "generate", None)
    assert main(["evaluate", "tables", str(out)]) == 0
    assert timeless(out) == before and "run gres" in capsys.readouterr().out
    model, ceiling = run_tables(out)[0]
    assert model["ciou"] == score_rows(rows)["ciou"] and ceiling["n_acc"] == 1.0
    for row in rows:  # the mask kept as RLE is the one that was counted
        masks = [from_rle(rle) for rle in row["coco_rle"].values()]
        assert sum(int(mask.sum()) for mask in masks) == row["predicted"]


@pytest.mark.parametrize(("more", "protocol", "mode"), [
    ((), "strict", "fast"), (("--protocol", "official"), "official", "plain"),
    (("--reading", "lenient"), "lenient", "fast"),
    (("--protocol", "official", "--mode", "fast"), "official", "fast")])
def test_the_command_hands_on_the_protocol_with_its_mode(tmp_path, monkeypatch, more, protocol, mode):
    told = {}
    monkeypatch.setattr(module, "evaluate", lambda *_, **options: told.update(options))
    assert main(arguments(tmp_path, *more)) == 1, "there is no run of which to print tables"
    assert (told["protocol"].name, told["mode"]) == (protocol, mode)
    with pytest.raises(SystemExit):
        main(arguments(tmp_path, "--protocol", "official", "--reading", "lenient"))


def test_pictures_stay_together_and_nothing_is_lost():
    rng = np.random.default_rng(0)
    for _ in range(50):
        keys = rng.integers(0, 6, int(rng.integers(1, 40))).tolist()
        size = int(rng.integers(1, 9))
        batches = plan_batches(keys, size)
        assert sorted(k for batch in batches for k in batch) == list(range(len(keys)))
        assert max(map(len, batches)) <= size
        for key in set(keys):
            need = -(-keys.count(key) // size)
            assert sum(any(keys[k] == key for k in batch) for batch in batches) == need


def test_the_expressions_of_a_picture_share_its_features(tiny, monkeypatch):
    counts, real = [], decoding.shared_pictures

    @contextmanager
    def watched(model):
        with real(model) as count:
            yield count
        counts.append((count.given, count.read))

    monkeypatch.setattr(decoding, "shared_pictures", watched)
    base = scene_samples("test", 2)
    several = [replace(base[k % 2], id=f"s{k}", image=base[k % 2].image, masks=base[k % 2].masks)
               for k in range(6)]
    rows, _ = evaluate(tiny, several, FOUR, batch=3, **QUIET)
    assert counts == [(3, 1), (3, 1)]
    assert [row["id"] for row in rows] == [f"s{k}" for k in range(6)], "rows keep the samples' order"


def test_what_cannot_be_scored_is_refused_before_any_answer():
    maps = scene_samples("test", 4, "semantic")
    with pytest.raises(TaskError, match="no samples"):
        evaluate(None, [], FOUR)
    with pytest.raises(ScoringError, match="background= and absent="):
        evaluate(None, maps, FOUR)
    with pytest.raises(TaskError, match="not among the 1 classes"):
        evaluate(None, maps, FOUR, classes=["star"], **CONVENTIONS)


def test_class_maps_are_scored_under_the_conventions_that_were_said(tiny):
    samples = scene_samples("test", 4, "semantic")
    rows, scored = evaluate(tiny, samples, FOUR, **CONVENTIONS, **QUIET)
    assert 0 <= scored["miou"] <= 1 and scored["n"] == 4
    listed = sorted({label for sample in samples for label in sample.labels})
    assert {row["n_classes"] for row in rows} == {len(listed)}
    table = table_rows("maps", rows, **CONVENTIONS, classes=listed)
    assert table[0]["miou"] == scored["miou"] and table[1]["who"] == "ceiling"
    assert table[0]["background"] == "not_averaged"


def asked(monkeypatch) -> list[tuple]:
    """Fills as `generate` is called: ``(questions of a conversation, history's answers, options)``."""
    calls = []

    def generate(backbone, images, conversations, encoding, **options):
        calls.extend(([turn.question for turn in turns], [turn.text for turn in turns[:-1]], options)
                     for turns in conversations)
        return decoding.generate(backbone, images, conversations, encoding, **options)

    monkeypatch.setattr(module, "generate", generate)
    return calls


@pytest.mark.parametrize("expected_iou", [0, 2])
def test_a_conversation_is_asked_turn_after_turn(tiny, monkeypatch, expected_iou):
    calls = asked(monkeypatch)
    rows, scored = evaluate(tiny, [scene_dialogue("test", k) for k in range(3)], FOUR, batch=2,
                            max_new_tokens=200, expected_iou=expected_iou, **QUIET)
    assert [(row["turn"], row["task"]) for row in rows[:3]] == [(0, "vqa"), (1, "gres"), (2, "gres")]
    assert scored == {}, "answers of two kinds have no common score"
    assert [(line["set"], line["n"]) for line in table_rows("talk", rows) if line["who"] == "model"] == [
        ("talk, turn 1", 3), ("talk, turn 2", 3), ("talk, turn 3", 3)]
    told = {tuple(history) for _, history, _ in calls}
    for k in range(0, 9, 3):  # the model's own answers are the history
        texts = [row["text"] for row in rows[k:k + 3]]
        assert {(), tuple(texts[:1]), tuple(texts[:2])} <= told
    assert all(("Best of 2" in row["text"]) == bool(expected_iou and row["task"] == "gres") for row in rows)


@pytest.mark.parametrize("history", ["own", "box"])
def test_a_correction_follows_its_own_or_the_true_mask(tiny, monkeypatch, history):
    calls, (talk,) = asked(monkeypatch), load("scenes", n=1, task="correction")
    rows, scored = evaluate(tiny, [talk], TWO, max_new_tokens=99, history=history, **QUIET)
    assert [len(questions) for questions, *_ in calls] == [1, 2, 3]
    assert ["before" in row for row in rows] == [row["turn"] > 0 for row in rows] and "gain" in scored
    own = history == "own"
    said = [row["text"] if own else ask_and_answer(one, TWO, "box").text for row, one in zip(rows, talk)]
    assert calls[1][1] == said[:1] and calls[2][1] == said[:2]
    assert not own or [row["before"][1] for row in rows[1:]] == [row["predicted"] for row in rows[:-1]]


def test_masks_in_questions_and_several_names_are_answered_and_scored(tiny, monkeypatch):
    calls, samples = asked(monkeypatch), load("scenes", n=2, task="ores")
    rows, scored = evaluate(tiny, samples, TWO, **QUIET)
    assert ["<seg>" in questions[0] for questions, *_ in calls] == [False, True]
    assert not any(row["malformed"] for row in rows) and "ciou" in scored
    rows, scored = evaluate(tiny, load("scenes", n=1, task="multi"), TWO, **QUIET)
    assert not any(row["malformed"] for row in rows) and {"n_acc", "target_iou", "said"} <= {*scored}
    with pytest.raises(TaskError, match="ores, multi, correction and expected_iou go with 'strict'"):
        evaluate(tiny, samples, TWO, protocol=OFFICIAL, **QUIET)


def test_expected_iou_serves_class_lists_too(tiny):
    one = scene_samples("test", 1, "semantic")
    (row,), _ = evaluate(tiny, one, FOUR, expected_iou=2, **CONVENTIONS, **QUIET)
    assert "Best of 2" in row["text"] and not row["malformed"]


@pytest.mark.parametrize("expected_iou", [0, 2])
def test_a_suffix_is_asked_where_the_record_says_so(tiny, tmp_path, monkeypatch, expected_iou):
    """Expected IoU once worded its questions itself, and left the suffix out."""
    calls = asked(monkeypatch)
    evaluate(tiny, scene_samples("test", 2, "vqa"), FOUR, folder=tmp_path, suffix=" In one word.",
             max_new_tokens=8, expected_iou=expected_iou, **QUIET)
    assert len(calls) == 2 and all(questions[0].endswith(" In one word.") for questions, *_ in calls)
    assert "draws" not in calls[0][2], "words are answered once, greedily"
    settings = read_run(tmp_path)[1]["settings"]
    assert (settings["suffix"], settings["expected_iou"]) == (" In one word.", expected_iou)
    assert (settings["encoding"], settings["grid_size"]) == ("rrle", [4, 4])


def test_the_official_protocol_asks_and_decodes_in_its_own_way(tiny, tmp_path, monkeypatch):
    calls = asked(monkeypatch)
    samples, options = scene_samples("test", 3, "gres"), {"folder": tmp_path, "max_new_tokens": 40, **QUIET}
    rows, scored = evaluate(tiny, samples, FOUR, protocol=OFFICIAL, **options)
    assert all(questions[0].startswith("Can you segment the ") for questions, *_ in calls)
    assert {options["mode"] for *_, options in calls} == {"plain"}
    assert {row["protocol"] for row in rows} == {"official"} and scored["n"] == 3
    settings = read_run(tmp_path)[1]["settings"]
    assert settings["mode"] == "plain" and settings["protocol"]["reading"] == "official"
    with pytest.raises(StoreError, match="protocol: .*official.* there, null here"):
        evaluate(tiny, samples, FOUR, mode="plain", **options)
    for kind, options in (("semantic", CONVENTIONS), ("res", {"expected_iou": 2})):
        with pytest.raises(TaskError, match="'official' reads one answer about one expression"):
            evaluate(None, scene_samples("test", 1, kind), FOUR, protocol=OFFICIAL, **options)


def test_what_cannot_be_asked_is_left_out_and_counted(tiny, tmp_path, monkeypatch):
    def grammar_of(encoder, labels, encoding):
        if "twin" in labels:
            raise GrammarError("Label 'twin' cannot be told from 'twin '.")

    monkeypatch.setattr(module, "grammar_of", grammar_of)
    good = scene_samples("test", 4)
    Image.fromarray(good[1].image[:64]).save(tmp_path / "half.png")
    bad = [good[0], replace(good[1], image=tmp_path / "half.png", masks=good[1].masks),
           replace(good[2], image=tmp_path / "gone.png", masks=good[2].masks),
           replace(good[3], labels=("twin",), masks=good[3].masks)]
    rows, scored = evaluate(tiny, bad, FOUR, folder=tmp_path / "run", **QUIET)
    assert scored["n"] == 1
    assert [row.get("excluded") for row in rows] == [
        None, *["unreadable image"] * 2, "labels that cannot be told apart"]
    assert "64" in rows[1]["detail"] and "gone.png" in rows[2]["detail"]
    lines, excluded = run_tables(tmp_path / "run")
    assert lines[0]["n"] == 1 and lines[0]["excluded"] == 3
    assert excluded[0] == {"set": "run", "reason": "unreadable image", "n": 2, "first": "res-test-000001"}
    again, _ = evaluate(tiny, bad, FOUR, folder=tmp_path / "run", **QUIET)
    assert again == rows, "nothing was answered a second time"


class Lazy(Dataset):
    """Makes samples when asked, and keeps which; those whose ids differ by a "b" share a picture."""

    classes = ("cloud", "star", "no such thing")
    background, ignore_index = "ignored", 255

    def __init__(self, samples):
        self.made = []
        super().__init__("voc-20", "val", "semantic", ROOT, samples, bad="exclude")

    def row_id(self, row):
        return row.id

    def row_image(self, row):
        return Path(row.id.removesuffix("b"))

    def check(self, row):
        if row.id == "gone":
            raise BadRow("missing image", "gone.jpg does not exist")

    def make(self, row):
        self.made.append(row.id)
        return row


def test_a_data_set_is_made_batch_by_batch_and_brings_its_own_conventions(tiny, tmp_path, monkeypatch):
    found = [s for s in scene_samples("test", 60, "semantic") if set(s.labels) <= {"cloud", "star"}][:2]
    found += [replace(s, id=s.id + "b", masks=s.masks) for s in found]
    known = found[0].labels[0]

    def generate(backbone, images, conversations, encoding, **options):  # one class, everywhere
        said = decoding.generate(backbone, images, conversations, encoding, **options)
        labels = [turns[-1].labels for turns in conversations]
        grids = [np.full((4, 4), 1 + some.index(known)) for some in labels]
        return [replace(one, text=f"<seg>{encoding.encode(grid, some)}</seg>")
                for one, grid, some in zip(said, grids, labels)]

    monkeypatch.setattr(module, "generate", generate)
    lazy = Lazy([*found, replace(found[0], id="gone", masks=found[0].masks)])
    rows, scored = evaluate(tiny, lazy, FOUR, folder=tmp_path / "run", batch=2, absent="skip", **QUIET)
    assert sorted(lazy.made) == sorted(s.id for s in found), "each sample is made once"
    assert [row["id"] for row in rows] == [s.id for s in found]
    assert {row["n_classes"] for row in rows} == {3}
    record = read_run(tmp_path / "run")[1]
    assert record["data"] == {"name": "voc-20", "split": "val"}
    own = {"background": "ignored", "absent": "skip"}
    assert record["conventions"] == own
    lines, excluded = run_tables(tmp_path / "run")
    assert lines[0]["excluded"] == 1 and excluded[0]["reason"] == "missing image"
    others = {"background": "class", "absent": "zero"}
    other = run_tables(tmp_path / "run", **others)[0][0]
    assert 0 < other["miou"] != scored["miou"] == lines[0]["miou"] > 0
    assert own.items() <= lines[0].items() and others.items() <= other.items()


def test_decoding_that_cannot_go_on_names_the_samples(tiny):
    with pytest.raises(DecodingError, match="(?s)dreaming.*res-test-000000"):
        evaluate(tiny, scene_samples("test", 1), FOUR, mode="dreaming", progress=False)


def test_a_real_data_set_goes_through_by_its_name(tiny, tmp_path):
    found = load("refcoco", root=shared_data("refcoco_mini"), n=5, counts="off")
    rows, scored = evaluate(tiny, found, FOUR, folder=tmp_path / "run", batch=4, **QUIET)
    assert [row["id"] for row in rows] == [found.id(k) for k in range(5)]
    assert scored["n"] == scored["n_target"] == 5
    record = read_run(tmp_path / "run")[1]
    assert record["data"]["name"] == "refcoco" and record["settings"]["n"] == 5
    line = run_tables(tmp_path / "run")[0][1]
    assert line["who"] == "ceiling" and line["ciou"] > 0.2, "the true masks were drawn on their photos"
