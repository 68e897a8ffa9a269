"""The ablations: training that resumes, rows and tables, and gaps that never look like results."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from t4s_helpers.codec.encodings import get_encoding
from t4s_helpers.data.registry import load
from t4s_helpers.data.sample import SampleError
from t4s_helpers.evaluation.tasks import to_rle
from t4s_helpers.lab.ablations import design, figures, measure, runs
from t4s_helpers.lab.ablations import tables as tb
from t4s_helpers.lab.ablations.__main__ import main
from t4s_helpers.lab.ablations.design import (
    BASE, DESIGN, EXPECTED, NOT_TRAINED, AblationError, Recipe, RunConfig, configurations, levers,
)
from t4s_helpers.model.backbones import ADAPTERS, load_backbone
from t4s_helpers.model.chat import IGNORE_INDEX, load_tokenizer

RRLE = RunConfig("rrle", 16)
FULL = RunConfig("full", 16)


def write(rows, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(path, index=False)


# --- training ------------------------------------------------------------------------------------


@pytest.fixture
def trainer(monkeypatch):
    """Stands for the training of one adapter; says whom it trained, and can be cut off."""
    done = SimpleNamespace(names=[], fail_at=None)

    def one(folder, config, seed, *_):
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
    assert len(folders) == len(trainer.names) == len(set(trainer.names)) == 18
    assert trainer.names[:2] == ["rrle-16-s0", "rrle-16-s1"], "whole rows first"
    assert {"full-16-s0", "irle-16-s1", "rrle-24-s1", "rrle-32-s0", "rrle-16-plain-s0", "rrle-16-all-s1",
            "rrle-16-target-s0"} < set(trainer.names)
    found = design.trained(tmp_path, configurations(Recipe()))
    assert all(sorted(seeds) == [0, 1] for seeds in found.values())


def test_adapters_of_different_recipes_never_share_a_folder(trainer, tmp_path):
    runs.train(tmp_path, Recipe(samples=100), [0], [RRLE])
    with pytest.raises(AblationError, match="samples was 100 and is now 200"):
        runs.train(tmp_path, Recipe(samples=200), [0])
    runs.train(tmp_path, Recipe(samples=100), [1], [RRLE])
    assert trainer.names == ["rrle-16-s0", "rrle-16-s1"]


def test_the_command_passes_the_recipe_on(monkeypatch, tmp_path):
    got = {}
    monkeypatch.setattr(runs, "train", lambda *args: got.update(args=args))
    main(["train", "--out", str(tmp_path), "--tokens", "7", "--lr", "0.001", "--configs", "rrle-24",
          "--seeds", "3", "--ship"])
    _, recipe, seeds, configs, root, source, ship = got["args"]
    assert recipe == Recipe(tokens=7, lr=1e-3) and seeds == [3] and ship == design.SHIPPED
    assert configs == [RunConfig("rrle", 24)] and root is None and source is None
    main(["train", "--backbone", "llava-1.5-7b", "--data", "refcocog", "--batch", "2"])
    _, recipe, seeds, configs, *_ = got["args"]
    assert recipe == design.recipe_for("llava-1.5-7b", data="refcocog", batch=2) and recipe.quantize == "nf4"
    assert [config.mix for config in configs] == [""] * len(configs), "requests are mixed about scenes alone"


def test_one_lever_is_moved_at_a_time():
    for recipe in (Recipe(), Recipe(style="plain"), Recipe(data="refcoco")):
        base, *others = levers(recipe).values()
        assert base == DESIGN[0]
        for other in others:
            moved = [name for name in ("style", "mix", "label") if getattr(other, name)]
            assert len(moved) == 1 and getattr(other, moved[0]) != getattr(recipe, moved[0], "")
            assert other in configurations(recipe)


def drawn(config, **changes):
    return runs.conversations(config, Recipe(samples=40, **changes))


def test_all_runs_are_asked_the_same_about_the_same_pictures():
    turns = {config: [drawn(config).turns(k) for k in (3, 5)] for config in configurations(Recipe())
             if not config.mix}
    assert len({tuple(turn.question for one in each for turn in one) for each in turns.values()}) == 1
    assert len({each[0][0].text for each in turns.values()}) == len(turns)
    assert all(len(one) == 1 for each in turns.values() for one in each)


def test_a_tag_takes_the_place_of_the_expression_in_the_descriptor_alone():
    [plain], [tagged] = (drawn(config).turns(5) for config in (RRLE, RunConfig("rrle", label="target")))
    assert tagged.question == plain.question and plain.labels[0] in plain.question
    assert tagged.labels == ("target",) and "target *" in tagged.text
    assert tagged.text.replace("target", plain.labels[0]) == plain.text
    [words] = [turn for k in range(9) for turn in drawn(RRLE, mix="all").turns(k) if not turn.labels][:1]
    assert runs.renamed(words, "x") == words


@pytest.mark.parametrize("config", [RRLE, FULL, RunConfig("rrle", 16, mix="all")])
def test_a_run_reads_samples_until_their_answers_use_the_budget(config):
    backbone = pytest.importorskip("tiny_model").backbone()
    mixture = drawn(config)
    used = runs.answer_tokens(backbone.encoder, mixture, 2500, 2)
    assert len(used) % 2 == 0 and used[-1, 1] >= 2500 > used[-3, 1]
    items, _ = runs.training.training_data(backbone, runs.first(mixture, len(used)))
    trained = [sum(int((labels != IGNORE_INDEX).sum()) for _, labels in items[k]["exchanges"])
               for k in range(len(items))]
    assert used[:, 1].tolist() == np.cumsum(trained).tolist(), "these are the tokens that the loss sees"
    asked = [sum(bool(turn.labels) for turn in mixture.turns(k)) for k in range(len(used))]
    assert used[:, 0].tolist() == np.cumsum(asked).tolist()
    with pytest.raises(AblationError, match="All 40 conversations .* draw up more with --samples"):
        runs.answer_tokens(backbone.encoder, mixture, 10**6)


def test_the_plan_tells_what_comes_next_and_what_is_done(tmp_path):
    (tmp_path / "rrle-16-s0" / "adapter").mkdir(parents=True)
    (tmp_path / "rrle-16-s0" / "adapter" / "finished").touch()
    write([{"step": 9, "seconds": 120.0}], tmp_path / "rrle-16-s0" / "log.csv")
    checkpoint = tmp_path / "rrle-16-s1" / "checkpoint-30"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text('{"global_step": 30}')
    table = runs.plan(tmp_path, Recipe(), design=(RRLE, FULL), n=4)
    assert table["adapter"].tolist() == ["rrle-16-s0", "rrle-16-s1", "full-16-s0", "full-16-s1"]
    assert table["state"].tolist() == ["finished", "at step 30", "to be trained", "to be trained"]
    assert table["minutes"][0] == 2 and table["minutes"][1:].isna().all()
    assert table["tokens"][2] > 500 > table["tokens"][0] and table["steps"][0] > 2 * table["steps"][2]


TINY = dict(tokens=900, samples=64, batch=2, rank=4, points=2, n_scored=2)


def as_options(recipe):
    return [text for name, value in recipe.items() for text in (f"--{name.replace('_', '-')}", str(value))]


@pytest.mark.slow
def test_training_goes_on_after_a_kill_and_ends_with_the_budget(tmp_path, monkeypatch):
    source, made = str(pytest.importorskip("tiny_model").folder()), []
    fine_tune = runs.training.fine_tune

    def once(*args, **options):
        made.append(args[3].name)
        if len(made) == 2:
            raise KeyboardInterrupt
        return fine_tune(*args, **options)

    monkeypatch.setattr(runs.training, "fine_tune", once)
    command = ["train", "--out", str(tmp_path / "out"), "--configs", "rrle-16", "rrle-16-target", "--seeds",
               "0", "--ship", str(tmp_path / "shipped"), "--style", "plain", "--source", source,
               *as_options(TINY)]
    with pytest.raises(KeyboardInterrupt):
        main(command)
    main(command)
    assert made == ["rrle-16-s0", "rrle-16-target-s0", "rrle-16-target-s0"], "nothing is done twice"
    recipe = design.read_recipe(tmp_path / "out")
    assert recipe == Recipe(style="plain", **TINY)
    found = design.trained(tmp_path / "out", configurations(recipe))
    for _, curve in runs.logged(found, "scores.csv").groupby("config"):
        assert len(curve) == 3 and curve["step"].iloc[0] == 0 == curve["tokens"].iloc[0]
        assert TINY["tokens"] <= curve["tokens"].iloc[-1] < TINY["tokens"] + 400
        assert (curve["masks"] == curve["samples"]).all() and curve["ciou"].between(0, 1).all()
    assert [place.name for place in (tmp_path / "shipped").iterdir()] == ["rrle-16-s0"]


@pytest.fixture
def own_data(tmp_path):
    """Two files of expressions about photos that are drawn here."""
    for name in ("train", "held"):
        lines = ["image,expression,mask"]
        for k in range(4):
            pixels, mask = np.full((64, 64, 3), 40, np.uint8), np.zeros((64, 64), np.uint8)
            part = np.s_[8 * k:8 * k + 30, 10:44]
            pixels[part], mask[part] = 220, 255
            Image.fromarray(pixels).save(tmp_path / f"{name}{k}.png")
            Image.fromarray(mask).save(tmp_path / f"{name}{k}-mask.png")
            lines.append(f"{name}{k}.png,bright patch {k},{name}{k}-mask.png")
        (tmp_path / f"{name}.csv").write_text("\n".join(lines))
    return tmp_path


@pytest.mark.slow
def test_a_real_class_goes_the_same_way(own_data, tmp_path, monkeypatch):
    """NF4, a processor that prepares the pictures, activations checkpointed: all but the size."""
    import families

    monkeypatch.setattr(runs.training, "fine_tune",
                        partial(runs.training.fine_tune, activation_checkpointing=True))
    out, tables = tmp_path / "out", tmp_path / "tables"
    command = ["--backbone", "smolvlm-256m", "--source", str(families.folder("smolvlm-256m")), "--data",
               str(own_data / "train.csv"), "--held-out", str(own_data / "held.csv"), "--out", str(out),
               "--tables", str(tables), "--configs", "rrle-16", "rrle-16-target", "--seeds", "0",
               "--refiner", "none", "-n", "2", "--timed", "0", "--accumulate", "1",
               *as_options(TINY | {"tokens": 3000})]
    main(["run", "--dry-run", *command])
    assert not out.exists()
    main(["run", *command])
    made = tb.read_tables(tables)
    assert set(made["curves"]["config"]) == {"rrle-16", "rrle-16-target"}
    assert made["curves"].groupby("config")["tokens"].max().ge(3000).all()
    assert made["rows"]["set"].unique().tolist() == [str(own_data / "held.csv")] and len(made["rows"]) == 2
    assert set(made["levers"]["lever"]) == {"recipe", EXPECTED, "tag as label"}


def test_seeds_change_the_matrices_alone():
    from peft import get_peft_model_state_dict

    tiny_model = pytest.importorskip("tiny_model")
    first, second = (get_peft_model_state_dict(runs.training.add_adapter(tiny_model.backbone(), 4, 8, seed=s))
                     for s in (0, 1))
    assert any((first[name] != second[name]).any() for name in first if "lora_A" in name)


# --- held-out requests ---------------------------------------------------------------------------


def test_held_out_requests_go_by_name(own_data):
    scenes = measure.held_out(n=2)
    assert {name: len(samples) for name, samples in scenes.items()} == {"test": 2, "novel": 2}
    assert not {one.id for one in scenes["test"]} & {one.id for one in load("scenes", "train", n=2)}
    [(name, own)] = measure.held_out(str(own_data / "held.csv"), 3).items()
    assert len(own) == 3 and own[0].labels == ("bright patch 0",)
    with pytest.raises(SampleError, match="no split 'testC'"):
        measure.held_out("refcoco:testC", root=own_data)


def test_what_is_no_mask_of_one_target_is_refused(monkeypatch):
    monkeypatch.setattr(measure, "load", lambda *a, **k: load("scenes", "test", n=1, task="vqa"))
    with pytest.raises(AblationError, match="of vqav2 asks for something else"):
        measure.held_out("vqav2")


# --- measuring -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_levers_are_measured_on_targets_and_questions():
    found = {config: {} for config in configurations(Recipe())}
    found[RRLE] = {0: ADAPTERS / "scenes"}
    targets, questions = load("scenes", "val", n=3), load("scenes", "val", task="vqa", n=4)
    rows = measure.measure_levers(found, levers(Recipe()), targets, questions)
    counts = rows["lever"].value_counts().to_dict()
    name = next(iter(levers(Recipe())))
    assert counts == {BASE: 4, name: 7, EXPECTED: 3}
    table = tb.lever_table(rows).set_index("lever")
    assert np.isnan(table["ciou"][BASE]) and list(table.index) == [*levers(Recipe()), EXPECTED, BASE]
    for lever, line in table.iterrows():
        assert (line["status"] == NOT_TRAINED) == (lever not in counts) == (
            line[["ciou", "questions"]].isna().all())
    mine = rows[rows["lever"] == name]
    assert table["ciou"][name] == pytest.approx(mine["intersection"].sum() / mine["union"].sum())
    assert table["n"][name] == 3
    assert table["questions"][name] == pytest.approx(mine["score"].mean())


@pytest.mark.slow
def test_an_answer_uses_the_label_of_its_configuration():
    backbone, targets = load_backbone(adapter="scenes"), load("scenes", "test", n=2)
    for config in (RRLE, RunConfig("rrle", label="target")):
        for sample, (said, parsed) in zip(targets, measure.answered(backbone, targets, config)):
            assert (config.label or sample.labels[0]) + " *" in said.text and parsed.masks.any()
    scores = measure.coarse_scores(backbone, targets, RRLE)
    rows, _ = measure.measure({RRLE: {0: ADAPTERS / "scenes"}}, {"test": targets}, progress=False)
    assert scores["ciou"] == pytest.approx(rows["intersection"].sum() / rows["union"].sum())


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
    full, empty = to_rle(np.ones((4, 4), bool)), to_rle(np.zeros((4, 4), bool))
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


@pytest.fixture
def answering(monkeypatch, tmp_path):
    """Two adapters whose answers are made up; what was answered and may be told to stop."""
    state = SimpleNamespace(asked=[], stop="", found={}, mask=sample().masks[0])

    def answered(opening, folder, config, sets, timed, batch):
        if config.name() == state.stop:
            raise KeyboardInterrupt
        state.asked.append(config.name())
        times = [{"encoding": config.encoding, "grid": config.grid_size, "decoding": "fast", "id": "s",
                  "tokens": 9, "seconds": 0.5}] * timed
        return {"answers": {name: [(to_rle(state.mask), 9)] * len(samples) for name, samples in sets.items()},
                "times": times}

    for config in DESIGN[1::-1]:
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


def test_all_tables_are_written_and_nothing_is_answered_twice(tmp_path, monkeypatch):
    out, tables, asked = tmp_path / "out", tmp_path / "tables", []
    design.keep_recipe(out, Recipe())
    for config in (RRLE, RunConfig("rrle", label="target")):
        adapter = out / config.name(0) / "adapter"
        adapter.mkdir(parents=True)
        for name in ("adapter_config.json", "finished", "adapter_model.safetensors"):
            (adapter / name).write_text(config.name())
        write(curve(config.name(), 0, [0, 0.5]), adapter.parent / "scores.csv")
        write([{"step": 1, "loss": 1.0}], adapter.parent / "log.csv")

    def answered(model, samples, config, draws=1, **options):
        asked.append((config.name(), draws, options.get("mode", "")))
        return [(SimpleNamespace(n_tokens=9, seconds=0.5), SimpleNamespace(
            masks=np.ones((1, *one.size), bool))) for one in samples]

    def evaluate(model, questions, *_, **__):
        if stop and "target" in str(model):
            raise KeyboardInterrupt
        return [{"id": one.id, "score": 1.0} for one in questions], {}

    monkeypatch.setattr(measure, "load_backbone", lambda adapter, **opening: adapter)
    monkeypatch.setattr(measure, "answered", answered)
    monkeypatch.setattr(measure, "evaluate", evaluate)
    command = ["measure", "--out", str(out), "--tables", str(tables), "--refiner", "none", "-n", "2",
               "--timed", "1"]
    stop = True
    with pytest.raises(KeyboardInterrupt):
        main(command)
    before, stop = len(asked), False
    main(command)
    assert asked[before:] == [("rrle-16-target", 1, "")], "the rest was kept"
    made = tb.read_tables(tables)
    assert {name for name, table in made.items() if table.empty} == set()
    assert len(made["rows"]) == 4 and set(made["rows"]["set"]) == {"test", "novel"}
    assert made["levers"]["lever"].value_counts().to_dict() == {
        "recipe": 4, EXPECTED: 2, "tag as label": 4, BASE: 2}
    assert set(made["curves"]["config"]) == {"rrle-16", "rrle-16-target"}
    assert design.read_recipe(tables) == Recipe() and not (tables / "unfinished").exists()


def test_some_answers_are_given_again_and_compared(answering):
    sets = {"test": [sample()]}
    rows, _ = measure.measure(answering.found, sets, FakeRefiner(), progress=False)
    again = measure.measure_again(answering.found, sets, rows)
    assert again.to_dict("records") == [{"config": f"{name}-16", "asked": 1, "same": 1}
                                        for name in ("irle", "rrle")]
    answering.mask = np.eye(4, dtype=bool)
    assert measure.measure_again(answering.found, sets, rows)["same"].tolist() == [0, 0]
    with pytest.raises(AblationError, match="no row of other s by irle-16, seed 0"):
        measure.measure_again(answering.found, {"other": [sample()]}, rows)


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
    assert not any(design.trained("no such folder").values())


def test_a_difference_is_taken_request_by_request():
    """Where both answered alike but for a constant, no spread is left, however different the requests."""
    rows = pd.concat([ROWS.assign(config="one"), ROWS.assign(config="other", intersection=0),
                      ROWS.assign(config="same")])
    gap = tb.difference(rows, "config", "one", "other")
    assert gap.value == pytest.approx(16 / 40) and gap.low <= gap.value <= gap.high
    assert tb.difference(rows, "config", "one", "same") == (0, 0, 0)
    assert "one is above other: +40.0 points" in tb.difference_in_words(rows, "config", "one", "other")
    assert "one is below" not in tb.difference_in_words(rows, "config", "other", "one")
    assert "cannot be told apart here" in tb.difference_in_words(rows, "config", "one", "same")
    assert NOT_TRAINED in tb.difference_in_words(rows, "config", "one", "third")
    assert "third" in tb.difference_in_words(pd.DataFrame(), "config", "one", "third")


def curve(config, seed, scores, tokens=10):
    return [{"config": config, "seed": seed, "step": k, "masks": 4 * k, "tokens": 4 * tokens * k,
             "ciou": score} for k, score in enumerate(scores)]


CURVES = pd.DataFrame(curve("rrle-16", 0, [0, 0.2, 0.5]) + curve("rrle-16", 1, [0, 0.1, 0.3])
                      + curve("full-16", 0, [0, 0.1, 0.2], 50))


def test_what_an_encoding_costs_to_learn_by_hand():
    table = tb.learning(CURVES, 0.3).set_index("config")
    assert table.loc["rrle-16", ["masks to level", "tokens to level"]].tolist() == [8, 80]
    assert table["ciou"].tolist() == pytest.approx([0.4, 0.2]) and table["seeds"].tolist() == [2, 1]
    assert np.isnan(table["tokens to level"]["full-16"]) and table["tokens"]["full-16"] == 400
    assert tb.learning(pd.DataFrame()).empty


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


def truth(name, grid, iou, refiner="none"):
    return {"set": name, "grid": grid, "refiner": refiner, "iou": iou, "id": f"{name} a",
            "intersection": 100 * iou, "predicted": 100, "union": 100, "target": 100, "pixels": 6400,
            "box_right": True}


ORACLE = [truth(name, grid, iou, refiner) for name in ("photos", "mini")
          for grid, iou in ((16, 0.1), (24, 0.5), (32, 0.7)) for refiner in ("none", "sam")]
COSTS = [{"grid": side, "full": 90 * side, "irle": 2 * side, "rrle": 3 * side} for side in (16, 24, 32)]


def test_points_of_cost_and_quality():
    rows = pd.DataFrame(ORACLE + [truth("photos", 16, 1.0, "best")])
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
    from t4s_helpers.model.chat import count_tokens

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


def test_levers_show_masks_and_questions_apart(ax):
    row = tb.summarise(ROWS).iloc[0].to_dict()
    table = pd.DataFrame([{"lever": "box", "status": "measured", "questions": 0.5, **row},
                          {"lever": "no box", "status": NOT_TRAINED},
                          {"lever": BASE, "status": "measured", "questions": 0.75}])
    fig = figures.levers(table)
    for panel, names, heights in zip(fig.axes, (["box", "no box"], ["box", "no box", BASE]),
                                     ([100 * row["ciou"]], [50.0, 75.0])):
        assert [tick.get_text() for tick in panel.get_xticklabels()] == names
        assert heights_of(panel) == pytest.approx(heights)
        assert texts(panel).count(NOT_TRAINED) == 1


def test_learning_curves_show_means_and_bands(ax):
    masks, tokens = figures.learning_curves(CURVES).axes
    assert [line.get_ydata().tolist() for line in masks.lines] == [pytest.approx([0, 15, 40]),
                                                                 pytest.approx([0, 10, 20])]
    assert [line.get_xdata().tolist() for line in tokens.lines] == [[0, 40, 80], [0, 200, 400]]
    band = masks.collections[0].get_paths()[0].vertices
    assert {20, 10} <= set(band[band[:, 0] == 4, 1].round(6))
    assert [line.get_label() for line in tokens.lines] == ["rrle-16", "full-16"]
    for panel in figures.learning_curves(pd.DataFrame()).axes:
        assert NOT_TRAINED in texts(panel) and not panel.lines


def test_ceilings_have_a_panel_for_each_set_or_size(ax):
    rows = tb.size_groups(pd.DataFrame(ORACLE + [truth("photos", 16, 1.0, "best")]).assign(
        target=[3, 300] * 6 + [3]))
    for panel, titles in (("set", ["photos (n = 1)", "mini (n = 1)"]),
                          ("size", ["0 to 1 cells (n = 2)", "4 to 16 cells (n = 2)"])):
        fig = figures.ceilings(tb.summarise(rows, (panel, "grid", "refiner")), panel)
        drawn = [one for one in fig.axes if one.lines]
        assert [one.get_title() for one in drawn] == titles
        assert not any("best" in one.get_legend_handles_labels()[1] for one in drawn)


def test_figures_without_any_adapter_say_so(ax):
    nothing = tb.summarise(pd.DataFrame())
    fig = figures.resolution(nothing, tb.summarise(pd.DataFrame(), ("set", "grid", "refiner")))
    assert texts(fig.axes[0]).count(NOT_TRAINED) == 3 and not fig.axes[0].lines
    for panel in figures.encodings(nothing, pd.DataFrame(), "test").axes:
        assert texts(panel).count(NOT_TRAINED) == 3


def test_the_committed_tables_are_of_the_design():
    """Every configuration and seed has rows, about the same requests, and a curve of the same budget."""
    if not (design.TABLES / "curves.csv").is_file():
        pytest.skip("not trained yet")
    tables, recipe = tb.read_tables(design.TABLES), design.read_recipe(design.TABLES)
    requests = {case: frozenset(zip(rows["set"], rows["id"])) for case, rows in
                tables["rows"].groupby(["config", "seed", "refiner"])}
    assert set(requests) == {(config.name(), seed, name) for config in DESIGN for seed in design.SEEDS
                             for name in ("none", "mobile_sam")} and len(set(requests.values())) == 1
    ends = tables["curves"].groupby(["config", "seed"])["tokens"].max()
    assert set(ends.index) == {(c.name(), seed) for c in configurations(recipe) for seed in design.SEEDS}
    assert ends.between(recipe.tokens, 1.1 * recipe.tokens).all()
    assert set(tb.lever_table(tables["levers"], recipe)["status"]) == {"measured"}
    assert all(design.trained().values()), "one adapter of each configuration ships"


@pytest.mark.parametrize("command, said", [
    (["measure", "--out", ".", "--tables", "."], "No adapter .* train"),
    (["train", "--out", ".", "--configs", "rrle-17"], "No configuration is called 'rrle-17'"),
    (["train", "--out", ".", "--data", "own.csv"], "Nothing is held out of own.csv")])
def test_the_command_says_what_to_do(command, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=said):
        main(command)
