"""The ablations: training that resumes, rows and tables, and gaps that never look like results."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from t4s_helpers.lab.ablations import figures as figures
from t4s_helpers.lab.ablations import tables as tables
from t4s_helpers.lab.ablations import runs as ablations
from t4s_helpers.lab.ablations.tables import NOT_TRAINED, AblationError, read_tables
from t4s_helpers.lab.ablations.runs import DESIGN, LEVERS, Cell, Recipe
from t4s_helpers.workbook.tables import read_rows, write_rows

RRLE = Cell("rrle", 16)


# --- training ------------------------------------------------------------------------------------


@pytest.fixture
def trainer(monkeypatch):
    """Stands for the training of one adapter; says whom it trained, and can be cut off."""
    done = SimpleNamespace(names=[], fail_at=None)

    def one(folder, cell, seed, recipe, base):
        if len(done.names) == done.fail_at:
            raise KeyboardInterrupt
        done.names.append(cell.name(seed))
        (folder / "adapter").mkdir(parents=True)
        (folder / "adapter" / "adapter_config.json").write_text("{}")
        (folder / "adapter" / "finished").touch()

    monkeypatch.setattr(ablations, "_train_one", one)
    return done


def test_every_cell_is_trained_with_every_seed(trainer, tmp_path):
    folders = ablations.train(tmp_path)
    assert len(folders) == len(trainer.names) == len(set(trainer.names)) == 10
    assert {"full-16-s0", "irle-16-s1", "rrle-16-s0", "rrle-24-s1", "rrle-32-s0"} < set(trainer.names)
    assert all(len(seeds) == 2 for seeds in ablations.trained(tmp_path).values())


def test_training_goes_on_where_it_was_cut_off(trainer, tmp_path):
    trainer.fail_at = 3
    with pytest.raises(KeyboardInterrupt):
        ablations.train(tmp_path)
    first, trainer.fail_at = list(trainer.names), None
    ablations.train(tmp_path)
    assert len(first) == 3 and len(trainer.names) == 10 and trainer.names[:3] == first


def test_adapters_of_different_recipes_never_share_a_folder(trainer, tmp_path):
    ablations.train(tmp_path, Recipe(samples=100), [0], [RRLE])
    with pytest.raises(AblationError, match="samples was 100 and is now 200"):
        ablations.train(tmp_path, Recipe(samples=200), [0])
    ablations.train(tmp_path, Recipe(samples=100), [1], [RRLE])
    assert trainer.names == ["rrle-16-s0", "rrle-16-s1"]


def test_the_command_passes_the_recipe_on(monkeypatch, tmp_path):
    got = {}
    monkeypatch.setattr(ablations, "train", lambda *a: got.update(args=a) or [])
    start = tmp_path / "start"
    start.mkdir()
    command = ["train", "--out", str(tmp_path), "--samples", "7", "--lr", "0.001", "--cells",
               "rrle-24", "--seeds", "3", "--ship", "--start", str(start)]
    with pytest.raises(SystemExit, match="holds no adapter to go on from.*ablations start"):
        ablations.main(command)
    (start / "adapter_config.json").write_text("{}")
    ablations.main(command)
    out, recipe, seeds, design, base, ship = got["args"]
    assert recipe == Recipe(samples=7, lr=1e-3, start=str(start)) and seeds == [3]
    assert design == [Cell("rrle", 24)] and base is None and ship == ablations.SHIPPED
    ablations.main(["train", "--out", str(tmp_path), "--start", str(start), "--lr", "0.001"])
    assert got["args"][1] == replace(ablations.CONTINUED, lr=1e-3, start=str(start))


@pytest.mark.parametrize("more", [["--levers"], ["--cells", "rrle-16-box-all"],
                                  ["--backbone", "llava-1.5-7b"], ["--start", "none"]])
def test_levers_and_other_backbones_begin_with_the_bare_base(monkeypatch, tmp_path, more):
    got = {}
    monkeypatch.setattr(ablations, "train", lambda *a: got.update(args=a) or [])
    ablations.main(["train", "--out", str(tmp_path), *more])
    _, recipe, _, design, *_ = got["args"]
    assert recipe == Recipe(backbone=recipe.backbone), "bare bases are trained for longer"
    assert set(design) <= set(LEVERS if more[0] in ("--levers", "--cells") else DESIGN)


@pytest.fixture(scope="module")
def really_trained(tmp_path_factory):
    tiny_model = pytest.importorskip("tiny_model")
    out = tmp_path_factory.mktemp("ablation")
    recipe = Recipe(samples=4, batch=2, turns=1, rank=4)
    ablations.train(out, recipe, [0, 1], [RRLE], tiny_model.folder(), out / "shipped")
    return out


def test_cells_go_on_from_an_adapter_that_has_seen_them_all(really_trained, tmp_path):
    from safetensors.torch import load_file

    tiny_model = pytest.importorskip("tiny_model")
    recipe = Recipe(samples=8, batch=2, turns=1, rank=2, lr=1e-3)
    design = (RRLE, Cell("irle", 4))
    source = really_trained / "shipped" / "rrle-16-s0"
    start = ablations.train_start(tmp_path / "start", source, recipe, design, tiny_model.folder(),
                                  tmp_path / "shipped")
    shrunk = load_file(tmp_path / "start" / "shrunk" / "adapter_model.safetensors")
    after = load_file(start / "adapter_model.safetensors")
    assert shrunk.keys() == after.keys() == load_file(source / "adapter_model.safetensors").keys()
    assert {min(t.shape) for t in shrunk.values()} == {2}
    assert any((shrunk[name] != after[name]).any() for name in shrunk)
    assert (tmp_path / "shipped" / "start" / "log.csv").is_file()
    assert ablations.train_start(tmp_path / "start", source, recipe, design) == start  # done before
    went_on = Recipe(samples=2, batch=2, turns=1, rank=2, lr=0.0, start=str(start))
    [cell] = ablations.train(tmp_path / "cells", went_on, [0], [RRLE], tiny_model.folder())
    same = load_file(cell / "adapter_model.safetensors")
    assert all((same[name] == after[name]).all() for name in after), "it begins where start ended"


def test_turns_are_whole_batches_of_distinct_items():
    parts = [[f"{name}{k}" for k in range(6)] for name in "abc"]
    seen = list(ablations.InTurn(parts, 2))
    assert sorted(seen) == sorted(sum(parts, [])) and len(seen) == 18
    for k in range(0, 18, 2):
        assert seen[k][0] == seen[k + 1][0] == "abc"[k // 2 % 3]


def test_losses_are_found_where_an_adapter_was_trained_and_where_it_ships(tmp_path):
    for k, place in enumerate(("rrle-16-s0/adapter", "irle-16-s1", "rrle-24-s0")):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "adapter_config.json").write_text("{}")
        (tmp_path / place / "finished").touch()
        if k < 2:
            write_rows([{"step": 10, "samples": 160, "loss": 0.5 + k}],
                       tmp_path / place.partition("/")[0] / "log.csv")
    found = ablations.trained(tmp_path)
    assert sum(map(len, found.values())) == 3
    assert ablations.logs(found) == [
        {"encoding": "irle", "grid": 16, "seed": 1, "step": 10, "loss": 1.5},
        {"encoding": "rrle", "grid": 16, "seed": 0, "step": 10, "loss": 0.5}]


def test_seeds_change_the_matrices_and_not_the_requests(really_trained):
    from safetensors.torch import load_file

    shipped = ablations.trained(really_trained / "shipped")
    assert sorted(shipped[RRLE]) == [0, 1] and not shipped[Cell("full", 16)]
    first, second = (load_file(shipped[RRLE][s] / "adapter_model.safetensors") for s in (0, 1))
    assert any((first[name] != second[name]).any() for name in first if "lora_A" in name)
    assert (shipped[RRLE][0] / "log.csv").is_file()
    base = json.loads((shipped[RRLE][0] / "adapter_config.json").read_text())
    assert base["base_model_name_or_path"] == "embedded"


def test_all_cells_are_asked_the_same_about_the_same_pictures():
    from t4s_helpers.data.instructions import instruction

    seen = {}
    for cell in DESIGN:
        _, turns = instruction(5, "res", 2, seed=0, size=cell.size, scheme=cell.scheme, style="box")
        seen[cell] = [turn.question for turn in turns], turns[0].text
    assert len({tuple(questions) for questions, _ in seen.values()}) == 1
    assert len({answer for _, answer in seen.values()}) == len(DESIGN)


# --- measuring -----------------------------------------------------------------------------------


def test_levers_are_measured_on_targets_and_questions():
    from t4s_helpers.model.backbones import ADAPTERS
    from t4s_helpers.data.expressions import scene_samples

    found = {cell: {} for cell in LEVERS}
    name = LEVERS[0].name()
    found[LEVERS[0]] = {0: ADAPTERS / "scenes"}
    targets, questions = scene_samples("val", 3, "res"), scene_samples("val", 4, "vqa")
    rows = ablations.measure_levers(found, targets, questions, others={"scenes": "scenes"},
                                    progress=False)
    weighed = f"{name}, expected IoU"
    counts = {lever: sum(r["lever"] == lever for r in rows) for lever in tables.LEVER_NAMES}
    assert {k: n for k, n in counts.items() if n} == {"base": 4, name: 7, weighed: 3, "scenes": 7}
    table = {line["lever"]: line for line in tables.lever_table(rows)}
    assert list(table) == list(tables.LEVER_NAMES) and "ciou" not in table["base"]
    for lever, line in table.items():
        assert (line["status"] == NOT_TRAINED) == (counts[lever] == 0) == (
            not {"ciou", "questions"} & set(line))
    assert table["scenes"]["ciou"] == table[name]["ciou"], "one adapter under two names"
    masks = [r for r in rows if r["lever"] == name and "union" in r]
    whole = sum(r["intersection"] for r in masks) / sum(r["union"] for r in masks)
    assert table[name]["ciou"] == pytest.approx(whole) and table[name]["n"] == 3
    asked = [r["score"] for r in rows if r["lever"] == name and "score" in r]
    assert table[name]["questions"] == pytest.approx(sum(asked) / 4)


def test_levers_change_the_sentence_and_the_mix(monkeypatch):
    import t4s_helpers.model.training as training

    seen = []
    monkeypatch.setattr(training, "scene_data", lambda *a, **options: seen.append(options))
    for cell in LEVERS:
        ablations._conversations(None, cell, Recipe())
    assert [(o["style"], o["mix"]) for o in seen] == [("box", "res"), ("plain", "res"), ("box", "all")]


class FakeRefiner:
    """Takes the top row of pixels away; counts its pictures and calls."""

    name = "mobile_sam"

    def __init__(self):
        self.images, self.sizes = 0, []

    def set_image(self, pixels):
        self.images += 1

    def refine(self, masks, seed):
        self.sizes.append(len(masks))
        cut = masks.copy()
        cut[:, 0] = False
        return SimpleNamespace(masks=cut, fallback=np.zeros(len(masks), bool))


def sample():
    truth = np.zeros((1, 4, 4), bool)
    truth[0, :2] = True
    return SimpleNamespace(id="s", size=(4, 4), masks=truth, pixels=lambda: None)


def test_all_adapters_masks_of_a_picture_are_refined_on_one_embedding():
    refiner = FakeRefiner()
    full, empty = np.ones((2, 2), int), np.zeros((2, 2), int)
    answers = {(RRLE, 0): (full, 9), (RRLE, 1): (empty, 5), (Cell("full", 16), 0): (full, 70)}
    rows = ablations._scored(sample(), answers, refiner, 0)
    assert refiner.images == 1 and refiner.sizes == [3] and len(rows) == 6
    found = {(r["encoding"], r["seed"], r["refiner"]): r for r in rows}
    assert found["rrle", 0, "none"]["intersection"] == 8 and found["rrle", 0, "none"]["union"] == 16
    assert found["rrle", 0, "mobile_sam"]["intersection"] == 4
    assert found["rrle", 1, "mobile_sam"]["predicted"] == 0
    assert found["full", 0, "none"]["tokens"] == 70
    assert found["rrle", 1, "mobile_sam"]["refine_seconds"] == 0 < (
        found["rrle", 0, "mobile_sam"]["refine_seconds"])


def test_nothing_said_is_no_reason_to_look_at_the_picture():
    refiner = FakeRefiner()
    rows = ablations._scored(sample(), {(RRLE, 0): (np.zeros((2, 2), int), 5)}, refiner, 0)
    assert refiner.images == 0 and [r["intersection"] for r in rows] == [0, 0]


def test_measuring_what_is_not_trained_gives_no_rows():
    nothing = {cell: {} for cell in DESIGN}
    assert ablations.measure(nothing, {"test": [sample()]}, FakeRefiner()) == ([], [])


def test_a_trained_adapter_is_measured(really_trained, monkeypatch):
    import tiny_model

    from t4s_helpers.model import backbones

    load = backbones.load_backbone
    monkeypatch.setattr(backbones, "load_backbone",
                        lambda *a, **k: load(*a, source=tiny_model.folder(), **k))
    found = ablations.trained(really_trained)
    rows, times = ablations.measure(found, {"test": ablations.scene_sets(2)["test"]}, None,
                                    n_timed=1, progress=False)
    assert len(rows) == 4 and {r["seed"] for r in rows} == {0, 1}
    assert {t["decoding"] for t in times} == {"plain", "fast"}
    assert all(r["tokens"] > 0 and r["refiner"] == "none" for r in rows)


@pytest.fixture
def answering(monkeypatch, tmp_path):
    """Two adapters whose answers are made up; what was answered and may be told to stop."""
    state = SimpleNamespace(asked=[], stop="", found={}, grid=[[1, 1], [0, 0]])

    def answered(backbone, folder, cell, sets, timed, batch):
        if cell.name() == state.stop:
            raise KeyboardInterrupt
        state.asked.append(cell.name())
        times = [{"encoding": cell.scheme, "grid": cell.size, "decoding": "fast", "id": "s",
                  "tokens": 9, "seconds": 0.5}] * timed
        return {"answers": {name: [(state.grid, 9)] * len(samples) for name, samples in sets.items()},
                "times": times}

    for cell in DESIGN[1:3]:
        folder = tmp_path / cell.name(0)
        folder.mkdir()
        (folder / "adapter_model.safetensors").write_bytes(cell.name().encode())
        state.found[cell] = {0: folder}
    monkeypatch.setattr(ablations, "_answered", answered)
    return state


def test_measuring_goes_on_where_it_was_cut_off(answering, tmp_path):
    sets, keep = {"test": [sample()]}, tmp_path / "keep"
    whole = ablations.measure(answering.found, sets, FakeRefiner(), n_timed=1, progress=False)
    answering.asked, answering.stop = [], "rrle-16"
    with pytest.raises(KeyboardInterrupt):
        ablations.measure(answering.found, sets, FakeRefiner(), n_timed=1, keep=keep, progress=False)
    answering.stop = ""
    refiner = FakeRefiner()
    rows, times = ablations.measure(answering.found, sets, refiner, n_timed=1, keep=keep, progress=False)
    assert answering.asked == ["irle-16", "rrle-16"] and refiner.images == 1
    seconds = {"refine_seconds": 0}
    assert [{**r, **seconds} for r in rows] == [{**r, **seconds} for r in whole[0]]
    assert times == whole[1] and len(times) == 2
    again = ablations.measure(answering.found, sets, refiner, n_timed=1, keep=keep, progress=False)
    assert again == (rows, times) and refiner.images == 1, "nothing is done twice"
    (answering.found[RRLE][0] / "adapter_model.safetensors").write_bytes(b"trained further")
    ablations.measure(answering.found, sets, refiner, n_timed=1, keep=keep, progress=False)
    assert answering.asked[2:] == ["rrle-16"] and refiner.images == 2, "what changed is done again"


def test_some_answers_are_given_again_and_compared(answering):
    sets = {"test": [sample()]}
    rows, _ = ablations.measure(answering.found, sets, FakeRefiner(), progress=False)
    again = ablations.measure_again(answering.found, sets, rows, progress=False)
    assert again == [{"encoding": name, "grid": 16, "asked": 1, "same": 1} for name in ("irle", "rrle")]
    answering.grid = [[1, 0], [0, 0]]
    again = ablations.measure_again(answering.found, sets, rows, progress=False)
    assert [row["same"] for row in again] == [0, 0]
    with pytest.raises(AblationError, match="no row of other s by irle at 16"):
        ablations.measure_again(answering.found, {"other": [sample()]}, rows, progress=False)


# --- tables --------------------------------------------------------------------------------------


def answer(name, seed, both, union, **more):
    return {"set": "test", "encoding": "rrle", "grid": 16, "refiner": "none", "id": name,
            "seed": seed, "intersection": both, "union": union, "box_right": both > 5,
            "tokens": 10 + seed, **more}


ROWS = [answer("a", 0, 8, 10), answer("b", 0, 2, 10), answer("a", 1, 6, 10), answer("b", 1, 0, 10)]


def test_scores_and_error_bars_by_hand():
    [row] = tables.summarise(ROWS)
    assert row["ciou"] == pytest.approx(16 / 40) and row["giou"] == pytest.approx(0.4)
    assert (row["seed_low"], row["seed_high"]) == (pytest.approx(0.3), pytest.approx(0.5))
    assert row["n"] == 2 and row["seeds"] == 2 and row["acc50"] == 0.5 and row["tokens"] == 10.5
    # Requests are drawn, both seeds of one together: all a gives 14/20, all b gives 2/20.
    assert row["ciou_low"] == pytest.approx(0.1) and row["ciou_high"] == pytest.approx(0.7)


def test_a_cell_that_is_not_trained_has_no_number_anywhere():
    cases = [{"encoding": c.scheme, "grid": c.size, "refiner": "none"} for c in DESIGN]
    table = tables.with_gaps(tables.summarise(ROWS), cases)
    assert [row["status"] for row in table].count(NOT_TRAINED) == 4
    for row in table:
        numbers = {k for k, v in row.items() if isinstance(v, float)}
        assert (row["status"] == "measured") == bool(numbers)
    assert ablations.coverage(ablations.trained("no such folder")) == [
        {"encoding": c.scheme, "grid": c.size, "adapters": NOT_TRAINED} for c in DESIGN]


def test_more_steps_are_compared_on_the_seeds_that_all_runs_have(tmp_path):
    write_rows([*ROWS, *({**row, "encoding": "irle"} for row in ROWS)], tmp_path / "rows.csv")
    write_rows([answer("a", 0, 9, 10), answer("b", 0, 3, 10)], tmp_path / "steps-30" / "rows.csv")
    rows = tables.every_run(tables.read_tables(tmp_path), "rows", 10)
    assert [row["steps"] for row in rows] == [10] * 8 + [30] * 2
    table = tables.by_steps(rows)
    assert [(row["encoding"], row["steps"]) for row in table] == [("rrle", 10), ("rrle", 30)]
    assert [row["ciou"] for row in table] == pytest.approx([10 / 20, 12 / 20])
    assert all(row["seeds"] == 1 for row in table), "seed 1 was not trained for longer"
    assert tables.by_steps(rows[:8]) == [] and tables.every_run({}, "logs", 10) == []


def test_size_groups_hold_their_edges():
    rows = [{"target": t, "pixels": 256} for t in (0, 1, 3, 4, 15, 16, 256)]
    assert [r["size"] for r in tables.size_groups(rows)] == [
        "0 to 1 cells", "1 to 4 cells", "1 to 4 cells", "4 to 16 cells", "4 to 16 cells",
        "16 cells and more", "16 cells and more"]


@pytest.mark.parametrize("seed", range(5))
def test_the_frontier_is_what_nothing_beats(seed):
    rng = np.random.default_rng(seed)
    points = [{"name": k, "t": int(t), "ciou": float(c)} for k, (t, c) in enumerate(
        zip(rng.integers(1, 9, 30), rng.integers(0, 9, 30) / 9))]
    kept = tables.frontier(points, "t")

    def beaten(p):
        return any(q["t"] <= p["t"] and q["ciou"] >= p["ciou"]
                   and (q["t"], q["ciou"]) != (p["t"], p["ciou"]) for q in points)

    values = {(p["t"], p["ciou"]) for p in points if not beaten(p)}
    assert {(p["t"], p["ciou"]) for p in kept} == values and len(kept) == len(values)


def truth(name, rule, grid, iou, refiner="none"):
    return {"set": name, "rule": rule, "grid": grid, "refiner": refiner, "iou": iou, "id": f"{name} a",
            "intersection": 100 * iou, "predicted": 100, "union": 100, "target": 100, "pixels": 6400,
            "box_right": True}


ORACLE = [truth(name, rule, grid, iou + bonus, refiner) for name in ("photos", "mini")
          for rule, bonus in (("area", 0.1), ("nearest", 0.0))
          for grid, iou in ((16, 0.0), (24, 0.4), (32, 0.6)) for refiner in ("none", "sam")]


def test_what_the_area_rule_gains_by_hand():
    gains = tables.rule_gains(ORACLE + [truth("photos", "area", 16, 0.3, "best")])
    assert [(g["set"], g["grid"]) for g in gains] == [(n, s) for n in ("photos", "mini")
                                                      for s in (16, 24, 32)]
    assert all(g["gain"] == pytest.approx(10) and g["n"] == 1 for g in gains)
    assert [g["lost by nearest"] for g in gains] == [1, 0, 0] * 2
    assert not any(g["lost by area"] for g in gains)


def test_points_of_cost_and_quality():
    costs = [{"grid": s, "full": 90 * s, "irle": 2 * s, "rrle": 3 * s} for s in (16, 24, 32)]
    points = tables.oracle_points(ORACLE + [truth("photos", "area", 16, 1.0, "best")], costs)
    assert len(points) == 3 * 3 * 2 and {p["refiner"] for p in points} == {"none", "sam"}
    assert {p["tokens"] for p in points if p["name"] == "24 irle"} == {48}
    scores = [{"encoding": "rrle", "grid": 16, "refiner": way, "ciou": 0.5, "refine_seconds": s}
              for way, s in (("none", 0.0), ("sam", 2.0))]
    times = [{"encoding": "rrle", "grid": 16, "decoding": mode, "seconds": s}
             for mode, s in (("plain", 4.0), ("fast", 1.0), ("fast", 2.0))]
    points = tables.cost_points(scores + [{**scores[0], "grid": 32}], times)
    assert [(p["name"], p["seconds"]) for p in points] == [
        ("16 rrle plain", 4.0), ("16 rrle fast", 1.5), ("16 rrle plain", 6.0), ("16 rrle fast", 3.5)]


def test_text_costs_count_the_true_descriptors():
    from t4s_helpers.data.expressions import scene_samples
    from t4s_helpers.codec.encodings import encode
    from t4s_helpers.model.tokens import count_tokens, load_tokenizer

    tokenizer, [one] = load_tokenizer(), scene_samples("test", 1, "res")
    rows = ablations.text_costs([one], tokenizer, (16,), ("full", "rrle"))
    assert [r["tokens"] for r in rows] == [
        count_tokens(tokenizer, encode(one.grid(16), one.labels, scheme))
        for scheme in ("full", "rrle")]
    short = ablations.text_costs([one], tokenizer, (16,), ("full", "rrle"), "x")
    assert all(a["tokens"] < b["tokens"] for a, b in zip(short, rows))


# --- figures -------------------------------------------------------------------------------------


@pytest.fixture
def axes():
    from matplotlib import pyplot

    fig, axes = pyplot.subplots(1, 3)
    yield axes
    pyplot.close(fig)


def texts(ax):
    return [text.get_text() for text in ax.texts]


def test_a_grid_that_is_not_trained_is_hatched_and_has_no_point(axes):
    ax = figures.plot_resolution(axes[0], tables.summarise(ROWS))
    assert texts(ax).count(NOT_TRAINED) == 2
    points = {x for line in ax.lines for x in line.get_xdata() if len(line.get_xdata())}
    assert points == {0}, "a point at 16 alone"
    assert sum(patch.get_hatch() is not None for patch in ax.patches) == 2


def test_no_line_leads_over_a_grid_that_is_not_trained(axes):
    rows = [{**row, "grid": grid} for row in ROWS for grid in (16, 32)]
    ax = figures.plot_resolution(axes[0], tables.summarise(rows))
    solid = [list(line.get_xdata()) for line in ax.lines if line.get_linestyle() == "-"]
    assert sorted(solid) == [[0], [2]]
    rows += [{**row, "grid": 24} for row in ROWS]
    ax = figures.plot_resolution(axes[1], tables.summarise(rows))
    assert [0, 1, 2] in [list(line.get_xdata()) for line in ax.lines]


def test_encodings_show_what_there_is_and_name_what_is_not(axes):
    times = [{"encoding": "rrle", "grid": 16, "decoding": mode, "tokens": 9, "seconds": s}
             for mode, s in (("plain", 2.0), ("fast", 1.0))]
    figures.plot_encodings(axes, tables.summarise(ROWS), times)
    for ax, heights in zip(axes, ([40.0], [9.0], [2.0, 1.0])):
        assert [t for t in texts(ax) if t != "40.0"] == [NOT_TRAINED] * 2
        assert sorted(round(p.get_height(), 6) for p in ax.patches if not p.get_hatch()) == sorted(
            heights)
    assert "40.0" in texts(axes[0])


def test_levers_show_masks_and_questions_apart(axes):
    row = tables.summarise(ROWS)[0]
    table = [{"recipe": "box, targets", "status": "measured", "questions": 0.5, **row},
             {"recipe": "no box", "status": NOT_TRAINED},
             {"recipe": "base", "status": "measured", "questions": 0.75}]
    figures.plot_levers(axes[:2], table)
    for ax, names, heights in zip(axes, (["box,\ntargets", "no box"], ["box,\ntargets", "no box", "base"]),
                                  ([100 * row["ciou"]], [50.0, 75.0])):
        assert [tick.get_text() for tick in ax.get_xticklabels()] == names
        assert [p.get_height() for p in ax.patches if not p.get_hatch()] == pytest.approx(heights)
        assert texts(ax).count(NOT_TRAINED) == 1


def test_steps_show_every_run_and_say_when_there_is_one_alone():
    from matplotlib import pyplot

    rows = [{**row, "steps": n} for row in ROWS for n in (10, 30)]
    logs = [{"encoding": "rrle", "grid": 16, "seed": seed, "steps": n, "step": step, "loss": 1 / step}
            for seed in (0, 1) for n in (10, 30) for step in range(5, n + 1, 5)]
    fig = figures.steps(tables.by_steps(rows), logs)
    losses, scores = fig.axes
    assert [list(line.get_xdata()) for line in losses.lines] == [[5, 10], [5, 10, 15, 20, 25, 30]]
    assert [tick.get_text() for tick in scores.get_xticklabels()] == ["10", "30"]
    assert [40.0, 40.0] in [list(line.get_ydata()) for line in scores.lines]
    pyplot.close(fig)
    fig = figures.steps([], logs)
    assert all("no cell is trained for longer" in texts(ax) and not ax.lines for ax in fig.axes)
    pyplot.close(fig)


def test_nothing_looks_like_nothing(axes):
    ax = figures.plot_nothing(axes[0], "no adapter")
    assert "no adapter" in texts(ax) and not ax.lines and not ax.collections


OF_TRUTH = {"ceilings.png", "rules.png", "sizes.png", "frontier.png"}
OF_MODELS = {"resolution.png", "encodings.png", "frontier_model.png", "levers.png", "steps.png"}


@pytest.mark.parametrize("folders, made", [(["models"], OF_MODELS), (["models", "truth"], OF_TRUTH | OF_MODELS),
                                           (["truth"], OF_TRUTH)])
def test_figures_come_from_the_tables_without_a_model(tmp_path, folders, made):
    limits = [r for r in ORACLE if r["rule"] == "area" and r["refiner"] == "none"]
    answers = [{**r, "refine_seconds": 0.0} for r in ROWS]
    for name, rows in {"models/rows": answers, "models/steps-300/rows": answers, "models/times": [],
                       "models/limits": limits, "models/levers": [], "truth/oracle_rows": ORACLE,
                       "truth/costs": [{"grid": s, "full": 9 * s, "irle": s, "rrle": 2 * s}
                                       for s in (16, 24, 32)]}.items():
        write_rows(rows, tmp_path / f"{name}.csv")
    program = ("import sys; sys.modules.update({n: None for n in ('torch', 'transformers', 'timm')});"
               "from t4s_helpers.lab.ablations.runs import main; main(sys.argv[1:])")
    done = subprocess.run(
        [sys.executable, "-c", program, "plot", "--tables", *(str(tmp_path / f) for f in folders),
         "--out", str(tmp_path / "figures")], cwd=Path(__file__).parents[2], capture_output=True,
        text=True)
    assert done.returncode == 0, done.stderr
    assert {p.name for p in (tmp_path / "figures").iterdir()} == made


def test_the_committed_tables_are_of_the_adapters_that_ship():
    """Every adapter of the design has rows, about the same requests as every other."""
    folder = Path(__file__).parents[2] / "results" / "ablations"
    rows = read_rows(folder / "rows.csv")
    asked = {}
    for row in rows:
        asked.setdefault((row["encoding"], row["grid"], row["seed"], row["refiner"]), []).append(
            (row["set"], row["id"]))
    shipped = {(cell.scheme, cell.size, seed, way) for cell, seeds in ablations.trained().items()
               for seed in seeds for way in ("none", "mobile_sam")}
    assert all(ablations.trained().values()) and set(asked) == shipped
    assert len({tuple(sorted(requests)) for requests in asked.values()}) == 1
    longer = read_tables(folder)["longer_rows"]
    assert {(row["set"], row["id"]) for row in longer} == set(next(iter(asked.values())))
    assert {row["steps"] for row in longer}.isdisjoint({ablations.STEPS})
    assert read_rows(folder / "logs.csv") == ablations.logs(ablations.trained())


def test_the_command_says_what_to_do_where_nothing_is_trained(tmp_path):
    with pytest.raises(SystemExit, match="No adapter .* train"):
        ablations.main(["measure", "--adapters", str(tmp_path), "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="There is no table"):
        ablations.main(["plot", "--tables", str(tmp_path), "--out", str(tmp_path)])


def test_refcoco_that_is_not_there_is_named(tmp_path):
    with pytest.raises(AblationError, match="holds no refcoco"):
        ablations.refer_sets(tmp_path, 3)
