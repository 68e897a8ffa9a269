"""The evaluator: batches, kills, processes, conversations, class maps, what is left out, tables."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_model

from t4s_helpers.data.expressions import scene_dialogue, scene_samples
from t4s_helpers.evaluation.evaluate import (
    evaluate, load_samples, main, plan_batches, read_run, run_tables, score_rows,
)
from t4s_helpers.evaluation.store import TIMES, LedgerError
from t4s_helpers.evaluation.scoring import ScoringError, table_rows
from t4s_helpers.evaluation.tasks import TaskError, from_rle

ROOT = Path(__file__).parents[2]
FAST = {"mode": "fast", "progress": False}
TORCHRUN = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29633")


def command(out: Path, *more: str, launcher=(), n: int = 24):
    return [sys.executable, *launcher, "-m", "t4s_helpers.evaluation.evaluate", "run", str(out), "--source",
            str(tiny_model.folder()), "--task", "gres", "-n", str(n), "--size", "4", "--batch", "2",
            *more]


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
            "PYTHONPATH": str(ROOT)}


def shell(out: Path, *more: str, **options) -> str:
    done = subprocess.run(command(out, *more, **options), capture_output=True, text=True, cwd=ROOT,
                          env=environment(), timeout=800)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def timeless(folder: Path) -> list[dict]:
    return [{key: value for key, value in row.items() if key not in TIMES}
            for row in read_run(folder)[0]]


def scores(folder: Path) -> list[dict]:
    return [{key: value for key, value in line.items() if key != "seconds"}
            for line in json.loads((folder / "scores.json").read_text())]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "run"
    shell(out)
    return out


@pytest.fixture(scope="module")
def tiny():
    return tiny_model.backbone()


@pytest.mark.timeout(1800)  # three processes start, on a machine that may have other work
def test_two_processes_give_the_digits_of_one(alone, tmp_path):
    out = tmp_path / "run"
    shell(out, launcher=TORCHRUN)
    assert timeless(out) == timeless(alone)
    assert json.dumps(scores(out)) == json.dumps(scores(alone))
    assert json.loads((out / "run.json").read_text())["processes"] == 2


@pytest.mark.timeout(1800)
def test_a_kill_in_the_middle_loses_and_doubles_nothing(alone, tmp_path):
    out = tmp_path / "run"
    process = subprocess.Popen(command(out), cwd=ROOT, env=environment(),
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    part, until = out / "rows.00000.jsonl", time.time() + 600
    while time.time() < until and process.poll() is None:
        if part.exists() and part.read_bytes().count(b"\n") >= 5:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = part.read_bytes().count(b"\n")
    assert 5 <= before < 24, "the run was not in its middle"
    with part.open("ab") as file:
        file.write(b'{"id": "gres-test-0000')  # half a line, as a kill while writing leaves
    printed = shell(out, launcher=TORCHRUN)  # gone on with by two
    assert timeless(out) == timeless(alone) and scores(out) == scores(alone)
    assert "| 24 |" in printed


@pytest.mark.timeout(1800)
def test_other_settings_do_not_go_on_with_a_run(alone):
    done = subprocess.run(command(alone, "--seed", "7"), capture_output=True, text=True, cwd=ROOT,
                          env=environment(), timeout=800)
    assert done.returncode and "seed: 0 there, 7 here" in done.stderr


def test_tables_come_again_without_a_model(alone, capsys):
    before = scores(alone)
    began = time.perf_counter()
    assert main(["tables", str(alone)]) == 0
    assert time.perf_counter() - began < 5
    assert scores(alone) == before and "| run |" in capsys.readouterr().out
    rows = read_run(alone)[0]
    model, ceiling = run_tables(alone)[0]
    assert model["ciou"] == score_rows(rows)["ciou"] and ceiling["n_acc"] == 1.0
    for row in rows:  # the mask kept as RLE is the one that was counted
        masks = [from_rle(rle) for rle in row["rle"].values()]
        assert sum(int(mask.sum()) for mask in masks) == row["predicted"]


def test_tables_of_no_run_say_so(tmp_path):
    with pytest.raises(LedgerError, match="holds no run"):
        run_tables(tmp_path)


# --- batches -------------------------------------------------------------------------------------


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
    from t4s_helpers.decoding import reuse

    counts, real = [], reuse.shared_pictures
    from contextlib import contextmanager

    @contextmanager
    def watched(model):
        with real(model) as count:
            yield count
        counts.append((count.given, count.read))

    monkeypatch.setattr(reuse, "shared_pictures", watched)
    base = scene_samples("test", 2)
    several = [replace(base[k % 2], id=f"s{k}", image=base[k % 2].image, masks=base[k % 2].masks)
               for k in range(6)]
    rows, _ = evaluate(tiny, several, 4, batch=3, **FAST)
    assert counts == [(3, 1), (3, 1)]
    assert [row["id"] for row in rows] == [f"s{k}" for k in range(6)], "rows keep the samples' order"


def test_an_id_that_comes_twice_is_refused_before_any_answer():
    sample = scene_samples("test", 1)[0]
    with pytest.raises(TaskError, match="'res-test-000000'"):
        evaluate(None, [sample, sample])
    with pytest.raises(TaskError, match="no samples"):
        evaluate(None, [])


# --- tasks through the whole path ----------------------------------------------------------------


def test_class_maps_need_conventions_and_a_list_that_fits(tiny):
    samples = scene_samples("test", 4, "semantic")
    with pytest.raises(ScoringError, match="background= and absent="):
        evaluate(None, samples)
    with pytest.raises(TaskError, match="not among the 1 classes"):
        evaluate(None, samples, classes=["star"], background="class", absent="skip")
    rows, scored = evaluate(tiny, samples, 4, background="not_averaged", absent="skip", **FAST)
    assert 0 <= scored["miou"] <= 1 and scored["n"] == 4
    listed = sorted({label for sample in samples for label in sample.labels})
    assert all(row["n_classes"] == len(listed) for row in rows)
    table = table_rows("maps", rows, background="not_averaged", absent="skip", classes=listed)
    assert table[0]["miou"] == scored["miou"] and table[1]["who"] == "ceiling"
    assert table[0]["background"] == "not_averaged"


def test_a_conversation_is_asked_turn_after_turn(tiny):
    talks = [scene_dialogue("test", k) for k in range(3)]
    rows, scored = evaluate(tiny, talks, 4, batch=2, max_new_tokens=80, **FAST)
    assert [(row["turn"], row["task"]) for row in rows[:3]] == [(0, "vqa"), (1, "gres"), (2, "gres")]
    assert scored == {}, "answers of two kinds have no common score"
    table = table_rows("talk", rows)
    assert [(line["set"], line["n"]) for line in table if line["who"] == "model"] == [
        ("talk, turn 1", 3), ("talk, turn 2", 3), ("talk, turn 3", 3)]


def test_the_history_of_a_conversation_reaches_the_model(tiny):
    from t4s_helpers.data.prompts import Turn
    from t4s_helpers.decoding.talking import AskedAfter, talking

    asked = AskedAfter("Segment it.", [Turn("Describe the picture.", ("a star",))])
    text = talking(tiny).encoder.prompt_text([Turn(asked, ())])
    alone = tiny.encoder.prompt_text([Turn("Segment it.", ())])
    assert text.index("Describe the picture.") < text.index("a star") < text.index("Segment it.")
    assert text.count("<image>") == 1 and "a star" not in alone


def test_a_picture_that_cannot_be_read_is_left_out_and_counted(tiny, tmp_path):
    from PIL import Image

    good = scene_samples("test", 3)
    Image.fromarray(good[1].image[:64]).save(tmp_path / "half.png")
    bad = [good[0], replace(good[1], image=tmp_path / "half.png", masks=good[1].masks),
           replace(good[2], image=tmp_path / "gone.png", masks=good[2].masks)]
    rows, scored = evaluate(tiny, bad, 4, folder=tmp_path / "run", **FAST)
    assert scored["n"] == 1
    assert [row.get("excluded") for row in rows] == [None, *["unreadable image"] * 2]
    assert "64" in rows[1]["detail"] and "gone.png" in rows[2]["detail"]
    lines, excluded = run_tables(tmp_path / "run")
    assert lines[0]["n"] == 1 and lines[0]["excluded"] == 2
    assert excluded == [{"set": "run", "reason": "unreadable image", "n": 2,
                         "first": "res-test-000001"}]
    again, _ = evaluate(tiny, bad, 4, folder=tmp_path / "run", **FAST)
    assert again == rows, "nothing was answered a second time"


def test_samples_by_name():
    assert [s.task for s in load_samples("scenes", n=2, task="rec", start=5)] == ["rec", "rec"]
    assert len(load_samples("scenes", n=1, task="conversation")[0]) == 3
    seen, unseen = (load_samples("scenes", n=1, task="semantic", palette=p)[0]
                    for p in ("seen", "unseen"))
    assert np.array_equal(seen.masks, unseen.masks) and seen.labels == unseen.labels
    assert seen.id != unseen.id and not np.array_equal(seen.image, unseen.image)
    with pytest.raises(ValueError, match="names colours"):
        load_samples("scenes", n=1, task="res", palette="unseen")


class Lazy:
    """A data set as `t4s_helpers.data.load` gives it: samples by number, made when asked for."""

    name, split, task = "voc-20", "val", "semantic"
    classes = ("cloud", "star", "no such thing")
    background, ignore_index = "ignored", 255

    def __init__(self, samples, excluded=()):
        self.samples, self.excluded, self.made = samples, excluded, []

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, k):
        self.made.append(k)
        return self.samples[k]

    def id(self, k):
        return self.samples[k].id

    def image(self, k):
        return f"{k // 2}.jpg"

    def by_image(self):
        return [[0, 1], [2, 3]]


def test_a_data_set_is_made_batch_by_batch_and_brings_its_own_conventions(tiny, tmp_path, monkeypatch):
    from typing import NamedTuple

    from t4s_helpers.decoding import generate as decoding
    from t4s_helpers.evaluation import evaluate as module
    from t4s_helpers.codec.encodings import encode

    class Excluded(NamedTuple):
        id: str
        reason: str
        detail: str

    found = [s for s in scene_samples("test", 60, "semantic") if set(s.labels) <= {"cloud", "star"}][:2]
    found += [replace(s, id=s.id + "b", masks=s.masks) for s in found]

    def generate(backbone, pictures, questions, labels, *more, **options):  # one class, everywhere
        said = decoding.generate(backbone, pictures, questions, labels, *more, **options)
        return [replace(one, text=f"<seg>{encode(np.full((4, 4), 1 + asked.index(known)), asked)}</seg>")
                for one, asked in zip(said, labels)]

    known = found[0].labels[0]
    monkeypatch.setattr(module, "generate", generate)
    lazy = Lazy(found, [Excluded("gone", "missing image", "gone.jpg does not exist")])
    rows, scored = evaluate(tiny, lazy, 4, folder=tmp_path / "run", batch=2, absent="skip", **FAST)
    assert sorted(lazy.made) == list(range(len(found))), "each sample is made once"
    assert [row["id"] for row in rows] == [s.id for s in found]
    assert all(row["n_classes"] == 3 for row in rows)
    record = read_run(tmp_path / "run")[1]
    assert record["data"] == {"name": "voc-20", "split": "val"}
    assert record["conventions"] == {"background": "ignored", "absent": "skip"}
    lines, excluded = run_tables(tmp_path / "run")
    assert lines[0]["excluded"] == 1 and excluded[0]["reason"] == "missing image"
    assert lines[0]["miou"] == scored["miou"]
    other = run_tables(tmp_path / "run", background="class", absent="zero")[0][0]
    assert 0 < other["miou"] != scored["miou"] > 0
    assert (other["background"], other["absent"]) == ("class", "zero")
    assert (lines[0]["background"], lines[0]["absent"]) == ("ignored", "skip")


def test_the_mode_that_weighs_grids_answers_single_requests_only(tiny):
    with pytest.raises(TaskError, match="expected_iou"):
        evaluate(tiny, scene_samples("test", 1, "semantic"), 4, mode="expected_iou", progress=False,
                 background="class", absent="skip")


def test_decoding_that_cannot_go_on_names_the_samples(tiny):
    from t4s_helpers.decoding.generate import DecodingError

    with pytest.raises(DecodingError, match="(?s)dreaming.*res-test-000000"):
        evaluate(tiny, scene_samples("test", 1), 4, mode="dreaming", progress=False)


def test_a_real_data_set_goes_through_by_its_name(tiny, tmp_path):
    from shared_data import shared_data

    found = load_samples("refcoco", root=shared_data("refcoco_mini"), n=5, counts="off")
    rows, scored = evaluate(tiny, found, 4, folder=tmp_path / "run", batch=4, **FAST)
    assert [row["id"] for row in rows] == [found.id(k) for k in range(5)]
    assert scored["n"] == scored["n_target"] == 5
    record = read_run(tmp_path / "run")[1]
    assert record["data"]["name"] == "refcoco" and record["settings"]["n"] == 5
    line = run_tables(tmp_path / "run")[0][1]
    assert line["who"] == "ceiling" and line["ciou"] > 0.2, "the true masks were drawn on their photos"
