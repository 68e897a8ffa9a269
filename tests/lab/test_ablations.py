"""The ablations: training that resumes, rows and tables, and gaps that never look like results."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from t4s_helpers.codec.encodings import get_encoding
from t4s_helpers.data.mixtures import SceneMixture
from t4s_helpers.data.registry import load
from t4s_helpers.lab.ablations import design, figures, measure, runs
from t4s_helpers.lab.ablations import tables as tb
from t4s_helpers.lab.ablations.__main__ import main
from t4s_helpers.lab.ablations.design import COMPONENTS, DESIGN, Recipe, RunConfig
from t4s_helpers.lab.ablations.tables import NOT_TRAINED, AblationError
from t4s_helpers.refine import NoRefiner

RRLE = RunConfig("rrle", 16)
ROOT = Path(__file__).parents[2]


def write(rows, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(path, index=False)


# --- training ------------------------------------------------------------------------------------


@pytest.fixture
def trainer(monkeypatch):
    """Stands for the training of one adapter; says whom it trained, and can be cut off."""
    done = SimpleNamespace(names=[], fail_at=None)

    def one(folder, config, seed, recipe, base):
        if len(done.names) == done.fail_at:
            raise KeyboardInterrupt
        done.names.append(config.name(seed))
        (folder / "adapter").mkdir(parents=True)
        (folder / "adapter" / "adapter_config.json").write_text("{}")
        (folder / "adapter" / "finished").touch()

    monkeypatch.setattr(runs, "_train_one", one)
    return done


def test_every_configuration_is_trained_with_every_seed_and_none_twice(trainer, tmp_path):
    trainer.fail_at = 3
    with pytest.raises(KeyboardInterrupt):
        runs.train(tmp_path)
    first, trainer.fail_at = list(trainer.names), None
    folders = runs.train(tmp_path)
    assert len(first) == 3 and trainer.names[:3] == first
    assert len(folders) == len(trainer.names) == len(set(trainer.names)) == 10
    assert {"full-16-s0", "irle-16-s1", "rrle-16-s0", "rrle-24-s1", "rrle-32-s0"} < set(trainer.names)
    assert all(len(seeds) == 2 for seeds in design.trained(tmp_path).values())


def test_adapters_of_different_recipes_never_share_a_folder(trainer, tmp_path):
    runs.train(tmp_path, Recipe(samples=100), [0], [RRLE])
    with pytest.raises(AblationError, match="samples was 100 and is now 200"):
        runs.train(tmp_path, Recipe(samples=200), [0])
    runs.train(tmp_path, Recipe(samples=100), [1], [RRLE])
    assert trainer.names == ["rrle-16-s0", "rrle-16-s1"]


def test_the_command_passes_the_recipe_on(monkeypatch, tmp_path):
    got = {}
    monkeypatch.setattr(runs, "train", lambda *a: got.update(args=a) or [])
    start = tmp_path / "start"
    start.mkdir()
    command = ["train", "--out", str(tmp_path), "--samples", "7", "--lr", "0.001", "--configs",
               "rrle-24", "--seeds", "3", "--ship", "--start", str(start)]
    with pytest.raises(SystemExit, match="holds no adapter to continue.*ablations start"):
        main(command)
    (start / "adapter_config.json").write_text("{}")
    main(command)
    _, recipe, seeds, configs, base, ship = got["args"]
    assert recipe == Recipe(samples=7, lr=1e-3, start=str(start)) and seeds == [3]
    assert configs == [RunConfig("rrle", 24)] and base is None and ship == design.SHIPPED
    main(["train", "--out", str(tmp_path), "--start", str(start), "--lr", "0.001"])
    assert got["args"][1] == replace(design.CONTINUED, lr=1e-3, start=str(start))


@pytest.mark.parametrize("more", [["--components"], ["--configs", "rrle-16-box-all"],
                                  ["--backbone", "llava-1.5-7b"], ["--start", "none"]])
def test_components_and_other_backbones_begin_with_the_bare_base(monkeypatch, tmp_path, more):
    got = {}
    monkeypatch.setattr(runs, "train", lambda *a: got.update(args=a) or [])
    main(["train", "--out", str(tmp_path), *more])
    _, recipe, _, configs, *_ = got["args"]
    assert recipe == Recipe(backbone=recipe.backbone), "bare bases are trained for longer"
    assert set(configs) <= set(COMPONENTS if more[0] in ("--components", "--configs") else DESIGN)


@pytest.fixture(scope="module")
def really_trained(tmp_path_factory):
    tiny_model = pytest.importorskip("tiny_model")
    out = tmp_path_factory.mktemp("ablation")
    recipe = Recipe(samples=4, batch=2, turns=1, rank=4)
    runs.train(out, recipe, [0, 1], [RRLE], tiny_model.folder(), out / "shipped")
    return out


def singular_values(adapter) -> dict:
    """Of what each layer's matrices add to its weight."""
    from safetensors.torch import load_file

    config = json.loads((adapter / "adapter_config.json").read_text())
    tensors = load_file(adapter / "adapter_model.safetensors")
    scale = config["lora_alpha"] / config["r"]
    return {name: scale * (tensors[name.replace("lora_A", "lora_B")].float() @ first.float()).svd().S.numpy()
            for name, first in tensors.items() if "lora_A" in name}


@pytest.mark.slow
def test_runs_continue_an_adapter_that_has_seen_them_all(really_trained, tmp_path):
    from safetensors.torch import load_file

    tiny_model = pytest.importorskip("tiny_model")
    recipe = Recipe(samples=8, batch=2, turns=1, rank=2, lr=1e-3)
    configs = (RRLE, RunConfig("irle", 4))
    source = really_trained / "shipped" / "rrle-16-s0"
    start = runs.train_start(tmp_path / "start", source, recipe, configs, tiny_model.folder(),
                             tmp_path / "shipped")
    shrunk = load_file(tmp_path / "start" / "shrunk" / "adapter_model.safetensors")
    after = load_file(start / "adapter_model.safetensors")
    assert shrunk.keys() == after.keys() == load_file(source / "adapter_model.safetensors").keys()
    assert {min(t.shape) for t in shrunk.values()} == {2}
    for name, values in singular_values(source).items():
        kept = singular_values(tmp_path / "start" / "shrunk")[name]
        assert np.allclose(kept[:2], values[:2], rtol=1e-2) and kept[2:].max() < 1e-3 * kept[0]
    assert any((shrunk[name] != after[name]).any() for name in shrunk)
    assert (tmp_path / "shipped" / "start" / "log.csv").is_file()
    assert runs.train_start(tmp_path / "start", source, recipe, configs) == start  # done before
    went_on = Recipe(samples=2, batch=2, turns=1, rank=2, lr=0.0, start=str(start))
    [config] = runs.train(tmp_path / "runs", went_on, [0], [RRLE], tiny_model.folder())
    same = load_file(config / "adapter_model.safetensors")
    assert all((same[name] == after[name]).all() for name in after), "it begins where start ended"


def test_losses_are_found_where_an_adapter_was_trained_and_where_it_ships(tmp_path):
    for k, place in enumerate(("rrle-16-s0/adapter", "irle-16-s1", "rrle-24-s0")):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "adapter_config.json").write_text("{}")
        (tmp_path / place / "finished").touch()
        if k < 2:
            write([{"step": 10, "samples": 160, "loss": 0.5 + k}],
                  tmp_path / place.partition("/")[0] / "log.csv")
    found = design.trained(tmp_path)
    assert sum(map(len, found.values())) == 3
    assert runs.losses(found).to_dict("records") == [
        {"encoding": "irle", "grid": 16, "seed": 1, "step": 10, "loss": 1.5},
        {"encoding": "rrle", "grid": 16, "seed": 0, "step": 10, "loss": 0.5}]


def test_seeds_change_the_matrices_and_not_the_requests(really_trained):
    from safetensors.torch import load_file

    shipped = design.trained(really_trained / "shipped")
    assert sorted(shipped[RRLE]) == [0, 1] and not shipped[RunConfig("full", 16)]
    first, second = (load_file(shipped[RRLE][s] / "adapter_model.safetensors") for s in (0, 1))
    assert any((first[name] != second[name]).any() for name in first if "lora_A" in name)
    assert (shipped[RRLE][0] / "log.csv").is_file()
    base = json.loads((shipped[RRLE][0] / "adapter_config.json").read_text())
    assert base["base_model_name_or_path"] == "embedded"


def test_all_runs_are_asked_the_same_about_the_same_pictures():
    seen = {}
    for config in DESIGN:
        encoding = get_encoding(config.encoding, config.grid_size)
        turns = SceneMixture(6, mix="res", n_requests=2, encoding=encoding, style="box").turns(5)
        seen[config] = [turn.question for turn in turns], turns[0].text
    assert len({tuple(questions) for questions, _ in seen.values()}) == 1
    assert len({answer for _, answer in seen.values()}) == len(DESIGN)


# --- measuring -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_components_are_measured_on_targets_and_questions():
    from t4s_helpers.model.backbones import ADAPTERS

    found = {config: {} for config in COMPONENTS}
    name = COMPONENTS[0].name()
    found[COMPONENTS[0]] = {0: ADAPTERS / "scenes"}
    targets, questions = load("scenes", "val", n=3), load("scenes", "val", task="vqa", n=4)
    rows = measure.measure_components(found, targets, questions, others={"scenes": "scenes"},
                                      progress=False)
    counts = rows["component"].value_counts().to_dict()
    assert counts == {"base": 4, name: 7, f"{name}, expected IoU": 3, "scenes": 7}
    table = tb.component_table(rows).set_index("component")
    assert list(table.index) == list(tb.COMPONENT_NAMES) and np.isnan(table["ciou"]["base"])
    for component, line in table.iterrows():
        assert (line["status"] == NOT_TRAINED) == (component not in counts) == (
            line[["ciou", "questions"]].isna().all())
    assert table["ciou"]["scenes"] == table["ciou"][name], "one adapter under two names"
    mine = rows[rows["component"] == name]
    assert table["ciou"][name] == pytest.approx(mine["intersection"].sum() / mine["union"].sum())
    assert table["n"][name] == 3
    assert table["questions"][name] == pytest.approx(mine["score"].mean())


def test_components_change_the_sentence_and_the_mix(monkeypatch):
    monkeypatch.setattr(runs.training, "training_data", lambda backbone, mixture: mixture)
    seen = [runs._conversations(None, config, Recipe()).turns(3) for config in COMPONENTS]
    assert seen[0][0].text.startswith(("At ", "Nowhere")) and seen[1][0].text.startswith("Here is")
    assert len({one[0].question for one in seen[:2]}) == 1


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
    answers = {(RRLE, 0): (full, 9), (RRLE, 1): (empty, 5), (RunConfig("full", 16), 0): (full, 70)}
    rows = measure._scored(sample(), answers, refiner, 0)
    assert refiner.images == 1 and refiner.sizes == [3] and len(rows) == 6
    found = {(r["encoding"], r["seed"], r["refiner"]): r for r in rows}
    assert found["rrle", 0, "none"]["intersection"] == 8 and found["rrle", 0, "none"]["union"] == 16
    assert found["rrle", 0, "mobile_sam"]["intersection"] == 4
    assert found["rrle", 1, "mobile_sam"]["predicted"] == 0
    assert found["full", 0, "none"]["tokens"] == 70
    assert found["rrle", 1, "mobile_sam"]["refine_seconds"] == 0 < (
        found["rrle", 0, "mobile_sam"]["refine_seconds"])
    rows = measure._scored(sample(), {(RRLE, 0): (empty, 5)}, refiner, 0)
    assert refiner.images == 1, "an empty answer is no reason to look at the picture"
    assert [r["intersection"] for r in rows] == [0, 0]


@pytest.mark.slow
def test_a_trained_adapter_is_measured(really_trained, monkeypatch):
    import tiny_model

    from t4s_helpers.model.backbones import load_backbone

    monkeypatch.setattr(measure, "load_backbone",
                        lambda *a, **k: load_backbone(*a, source=tiny_model.folder(), **k))
    rows, times = measure.measure(design.trained(really_trained), {"test": load("scenes", "test", n=2)},
                                  NoRefiner(), n_timed=1, progress=False)
    assert len(rows) == 4 and set(rows["seed"]) == {0, 1} and set(rows["refiner"]) == {"none"}
    assert set(times["decoding"]) == {"plain", "fast"} and (rows["tokens"] > 0).all()


@pytest.fixture
def answering(monkeypatch, tmp_path):
    """Two adapters whose answers are made up; what was answered and may be told to stop."""
    state = SimpleNamespace(asked=[], stop="", found={}, grid=[[1, 1], [0, 0]])

    def answered(backbone, folder, config, sets, timed, batch):
        if config.name() == state.stop:
            raise KeyboardInterrupt
        state.asked.append(config.name())
        times = [{"encoding": config.encoding, "grid": config.grid_size, "decoding": "fast", "id": "s",
                  "tokens": 9, "seconds": 0.5}] * timed
        return {"answers": {name: [(state.grid, 9)] * len(samples) for name, samples in sets.items()},
                "times": times}

    for config in DESIGN[1:3]:
        folder = tmp_path / config.name(0)
        folder.mkdir()
        (folder / "adapter_model.safetensors").write_bytes(config.name().encode())
        state.found[config] = {0: folder}
    monkeypatch.setattr(measure, "_answered", answered)
    return state


def test_measuring_resumes_where_it_was_interrupted(answering, tmp_path):
    sets, options = {"test": [sample()]}, dict(n_timed=1, progress=False)
    nothing, times = measure.measure({config: {} for config in DESIGN}, sets, FakeRefiner(), **options)
    assert nothing.empty and times.empty, "what is not trained has no rows"
    whole = measure.measure(answering.found, sets, FakeRefiner(), **options)
    options["keep"] = tmp_path / "keep"
    answering.asked, answering.stop = [], "rrle-16"
    with pytest.raises(KeyboardInterrupt):
        measure.measure(answering.found, sets, FakeRefiner(), **options)
    answering.stop = ""
    refiner = FakeRefiner()
    rows, times = measure.measure(answering.found, sets, refiner, **options)
    assert answering.asked == ["irle-16", "rrle-16"] and refiner.images == 1
    pd.testing.assert_frame_equal(rows.drop(columns="refine_seconds"),
                                  whole[0].drop(columns="refine_seconds"))
    pd.testing.assert_frame_equal(times, whole[1])
    again = measure.measure(answering.found, sets, refiner, **options)
    assert again[0].equals(rows) and refiner.images == 1, "nothing is done twice"
    (answering.found[RRLE][0] / "adapter_model.safetensors").write_bytes(b"trained further")
    measure.measure(answering.found, sets, refiner, **options)
    assert answering.asked[2:] == ["rrle-16"] and refiner.images == 2, "what changed is done again"


def test_some_answers_are_given_again_and_compared(answering):
    sets = {"test": [sample()]}
    rows, _ = measure.measure(answering.found, sets, FakeRefiner(), progress=False)
    again = measure.measure_again(answering.found, sets, rows, progress=False)
    assert again.to_dict("records") == [{"encoding": name, "grid": 16, "asked": 1, "same": 1}
                                        for name in ("irle", "rrle")]
    answering.grid = [[1, 0], [0, 0]]
    assert measure.measure_again(answering.found, sets, rows, progress=False)["same"].tolist() == [0, 0]
    with pytest.raises(AblationError, match="no row of other s by irle at 16"):
        measure.measure_again(answering.found, {"other": [sample()]}, rows, progress=False)


# --- tables --------------------------------------------------------------------------------------


def answer(name, seed, both, union, **more):
    return {"set": "test", "encoding": "rrle", "grid": 16, "refiner": "none", "id": name,
            "seed": seed, "intersection": both, "union": union, "box_right": both > 5,
            "tokens": 10 + seed, **more}


ROWS = pd.DataFrame([answer("a", 0, 8, 10), answer("b", 0, 2, 10), answer("a", 1, 6, 10),
                     answer("b", 1, 0, 10)])


def test_scores_and_error_bars_by_hand():
    [row] = tb.summarise(ROWS).to_dict("records")
    assert row["ciou"] == pytest.approx(16 / 40) and row["giou"] == pytest.approx(0.4)
    assert (row["seed_low"], row["seed_high"]) == (pytest.approx(0.3), pytest.approx(0.5))
    assert row["n"] == 2 and row["seeds"] == 2 and row["acc50"] == 0.5 and row["tokens"] == 10.5
    # Requests are drawn, both seeds of one together: all a gives 14/20, all b gives 2/20.
    assert row["ciou_low"] == pytest.approx(0.1) and row["ciou_high"] == pytest.approx(0.7)


def test_what_is_not_trained_has_no_number_anywhere():
    cases = pd.DataFrame([{"encoding": c.encoding, "grid": c.grid_size, "refiner": "none"} for c in DESIGN])
    table = tb.with_gaps(tb.summarise(ROWS), cases)
    assert (table["status"] == NOT_TRAINED).sum() == 4
    assert ((table["status"] == NOT_TRAINED) == table["ciou"].isna()).all()
    assert set(design.coverage(design.trained("no such folder"))["adapters"]) == {NOT_TRAINED}


def test_more_steps_are_compared_on_the_seeds_that_all_runs_have(tmp_path):
    write(pd.concat([ROWS, ROWS.assign(encoding="irle")]), tmp_path / "rows.csv")
    write([answer("a", 0, 9, 10), answer("b", 0, 3, 10)], tmp_path / "steps-30" / "rows.csv")
    rows = tb.every_run(tb.read_tables(tmp_path), "rows", 10)
    assert rows["steps"].tolist() == [10] * 8 + [30] * 2
    table = tb.by_steps(rows)
    assert table[["encoding", "steps"]].values.tolist() == [["rrle", 10], ["rrle", 30]]
    assert table["ciou"].tolist() == pytest.approx([10 / 20, 12 / 20])
    assert (table["seeds"] == 1).all(), "seed 1 was not trained for longer"
    assert tb.by_steps(rows[:8]).empty and tb.every_run({}, "logs", 10).empty


def test_size_groups_hold_their_edges():
    rows = pd.DataFrame({"target": [0, 1, 3, 4, 15, 16, 256], "pixels": 256})
    assert tb.size_groups(rows)["size"].tolist() == [
        "0 to 1 cells", "1 to 4 cells", "1 to 4 cells", "4 to 16 cells", "4 to 16 cells",
        "16 cells and more", "16 cells and more"]


@pytest.mark.parametrize("seed", range(5))
def test_the_frontier_is_what_nothing_beats(seed):
    rng = np.random.default_rng(seed)
    points = pd.DataFrame({"t": rng.integers(1, 9, 30), "ciou": rng.integers(0, 9, 30) / 9})
    pairs = set(points.itertuples(index=False, name=None))
    best = {p for p in pairs if not any(q[0] <= p[0] and q[1] >= p[1] and q != p for q in pairs)}
    kept = list(tb.frontier(points, "t").itertuples(index=False, name=None))
    assert set(kept) == best and len(kept) == len(best)


def truth(name, rule, grid, iou, refiner="none"):
    return {"set": name, "rule": rule, "grid": grid, "refiner": refiner, "iou": iou, "id": f"{name} a",
            "intersection": 100 * iou, "predicted": 100, "union": 100, "target": 100, "pixels": 6400,
            "box_right": True}


ORACLE = [truth(name, rule, grid, iou + bonus, refiner) for name in ("photos", "mini")
          for rule, bonus in (("area", 0.1), ("nearest", 0.0))
          for grid, iou in ((16, 0.0), (24, 0.4), (32, 0.6)) for refiner in ("none", "sam")]
COSTS = [{"grid": side, "full": 90 * side, "irle": 2 * side, "rrle": 3 * side} for side in (16, 24, 32)]


def test_what_the_area_rule_gains_by_hand():
    gains = tb.rule_gains(pd.DataFrame(ORACLE + [truth("photos", "area", 16, 0.3, "best")]))
    assert gains[["set", "grid"]].values.tolist() == [[name, side] for name in ("photos", "mini")
                                                      for side in (16, 24, 32)]
    assert gains["gain"].tolist() == pytest.approx([10] * 6) and (gains["n"] == 1).all()
    assert gains["lost by nearest"].tolist() == [1, 0, 0] * 2 and not gains["lost by area"].any()


def test_points_of_cost_and_quality():
    rows = pd.DataFrame(ORACLE + [truth("photos", "area", 16, 1.0, "best")])
    points = tb.oracle_points(rows, pd.DataFrame(COSTS))
    assert len(points) == 3 * 3 * 2 and set(points["refiner"]) == {"none", "sam"}
    assert set(points.loc[points["name"] == "24 irle", "tokens"]) == {48}
    scores = pd.DataFrame([{"encoding": "rrle", "grid": grid, "refiner": name, "ciou": 0.5,
                            "refine_seconds": seconds} for grid, name, seconds in
                           ((16, "none", 0.0), (16, "sam", 2.0), (32, "none", 0.0))])
    times = pd.DataFrame([{"encoding": "rrle", "grid": 16, "decoding": mode, "seconds": seconds}
                          for mode, seconds in (("plain", 4.0), ("fast", 1.0), ("fast", 2.0))])
    points = tb.cost_points(scores, times)
    assert points[["name", "seconds"]].values.tolist() == [
        ["16 rrle plain", 4.0], ["16 rrle fast", 1.5], ["16 rrle plain", 6.0], ["16 rrle fast", 3.5]]


def test_text_costs_count_the_true_descriptors():
    from t4s_helpers.model.chat import count_tokens, load_tokenizer

    tokenizer, [one] = load_tokenizer(), load("scenes", "test", n=1)
    rows = measure.text_costs([one], tokenizer, (16,), ("full", "rrle"))
    assert rows["tokens"].tolist() == [
        count_tokens(tokenizer, get_encoding(name).encode(one.grid(16), one.labels))
        for name in ("full", "rrle")]
    short = measure.text_costs([one], tokenizer, (16,), ("full", "rrle"), "x")
    assert (short["tokens"] < rows["tokens"]).all()


# --- figures -------------------------------------------------------------------------------------


@pytest.fixture
def ax():
    from matplotlib import pyplot

    yield pyplot.subplots()[1]
    pyplot.close("all")


def texts(ax):
    return [text.get_text() for text in ax.texts]


def heights_of(ax):
    return sorted(patch.get_height() for patch in ax.patches if not patch.get_hatch() and patch.get_height())


def test_a_grid_that_is_not_trained_is_hatched_and_no_line_leads_over_it(ax):
    rows = pd.concat([ROWS.assign(grid=grid) for grid in (16, 32)])
    figures.by_grid(ax, tb.summarise(rows))
    assert texts(ax).count(NOT_TRAINED) == sum(p.get_hatch() is not None for p in ax.patches) == 1
    [line] = [line for line in ax.lines if line.get_linestyle() == "-"]
    assert np.isfinite(line.get_ydata()).tolist() == [True, False, True]


def test_encodings_show_what_there_is_and_name_what_is_not(ax):
    times = pd.DataFrame([{"encoding": "rrle", "grid": 16, "decoding": mode, "tokens": 9, "seconds": s}
                          for mode, s in (("plain", 2.0), ("fast", 1.0))])
    fig = figures.encodings(tb.summarise(ROWS), times, "test")
    for panel, heights in zip(fig.axes, ([40.0], [9.0], [1.0, 2.0])):
        assert texts(panel).count(NOT_TRAINED) == 2
        assert heights_of(panel) == pytest.approx(heights)
    assert "40.0" in texts(fig.axes[0])


def test_components_show_masks_and_questions_apart(ax):
    row = tb.summarise(ROWS).iloc[0].to_dict()
    table = pd.DataFrame([{"recipe": "box, targets", "status": "measured", "questions": 0.5, **row},
                          {"recipe": "no box", "status": NOT_TRAINED},
                          {"recipe": "base", "status": "measured", "questions": 0.75}])
    fig = figures.components(table)
    for panel, names, heights in zip(
            fig.axes, (["box, targets", "no box"], ["box, targets", "no box", "base"]),
            ([100 * row["ciou"]], [50.0, 75.0])):
        assert [tick.get_text() for tick in panel.get_xticklabels()] == names
        assert heights_of(panel) == pytest.approx(heights)
        assert texts(panel).count(NOT_TRAINED) == 1


def test_steps_show_every_run_and_say_when_there_is_one_alone(ax):
    rows = pd.concat([ROWS.assign(steps=n) for n in (10, 30)])
    logs = pd.DataFrame([{"encoding": "rrle", "grid": 16, "seed": seed, "steps": n, "step": step,
                          "loss": 1 / step}
                         for seed in (0, 1) for n in (10, 30) for step in range(5, n + 1, 5)])
    losses, scores = figures.steps(tb.by_steps(rows), logs).axes
    assert [list(line.get_xdata()) for line in losses.lines] == [[5, 10], [5, 10, 15, 20, 25, 30]]
    assert [tick.get_text() for tick in scores.get_xticklabels()] == ["10", "30"]
    assert [40.0, 40.0] in [list(line.get_ydata()) for line in scores.lines]
    for panel in figures.steps(pd.DataFrame(), logs).axes:
        assert "no configuration is trained for longer" in texts(panel) and not panel.lines


OF_TRUTH = {"ceilings.png", "rules.png", "sizes.png", "frontier.png"}
OF_MODELS = {"resolution.png", "encodings.png", "frontier_model.png", "components.png", "steps.png"}


@pytest.mark.parametrize("folders, made", [
    (["models"], OF_MODELS), (["models", "truth"], OF_TRUTH | OF_MODELS), (["truth"], OF_TRUTH)])
def test_figures_come_from_the_tables_without_a_model(tmp_path, folders, made):
    limits = [r for r in ORACLE if r["rule"] == "area" and r["refiner"] == "none"]
    answers = ROWS.assign(refine_seconds=0.0)
    times = [{"encoding": "rrle", "grid": 16, "decoding": "fast", "id": "a", "tokens": 9, "seconds": 1.0}]
    components = [{"component": "base", "seed": 0, "id": "q", "score": 1.0}]
    for name, rows in {"models/rows": answers, "models/steps-300/rows": answers, "models/times": times,
                       "models/limits": limits, "models/components": components,
                       "models/logs": [{"encoding": "rrle", "grid": 16, "seed": 0, "step": 1, "loss": 1.0}],
                       "truth/oracle_rows": ORACLE, "truth/costs": COSTS}.items():
        write(rows, tmp_path / f"{name}.csv")
    program = ("import sys; sys.modules.update({n: None for n in ('torch', 'transformers', 'timm')});"
               "from t4s_helpers.lab.ablations.__main__ import main; main(sys.argv[1:])")
    done = subprocess.run(
        [sys.executable, "-c", program, "plot", "--tables", *(str(tmp_path / f) for f in folders),
         "--out", str(tmp_path / "figures")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {p.name for p in (tmp_path / "figures").iterdir()} == made


def test_the_committed_tables_are_of_the_adapters_that_ship():
    """Every adapter of the design has rows, about the same requests as every other."""
    tables = tb.read_tables(ROOT / "results" / "ablations")
    requests = {case: frozenset(zip(rows["set"], rows["id"])) for case, rows in
                tables["rows"].groupby(["encoding", "grid", "seed", "refiner"])}
    shipped = {(config.encoding, config.grid_size, seed, name)
               for config, seeds in design.trained().items() for seed in seeds
               for name in ("none", "mobile_sam")}
    assert all(design.trained().values()) and set(requests) == shipped
    [asked] = set(requests.values())
    longer = tables["longer_rows"]
    assert set(zip(longer["set"], longer["id"])) == asked
    assert design.STEPS not in set(longer["steps"])
    pd.testing.assert_frame_equal(tables["logs"], runs.losses(design.trained()))


@pytest.mark.parametrize("command, said", [
    (["measure", "--adapters", ".", "--out", "."], "No adapter .* train"),
    (["plot", "--tables", ".", "--out", "."], "There is no table"),
    (["train", "--out", ".", "--configs", "rrle-17"], "No configuration is called 'rrle-17'"),
    (["measure", "--out", ".", "--data", "."], "holds no refcoco")])
def test_the_command_says_what_to_do(command, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=said):
        main(command)
