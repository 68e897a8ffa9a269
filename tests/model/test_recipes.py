"""The paper's trainings by name: what they read, how often, and what is said of them beforehand."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_model
from miniatures import ade, cocostuff, halves

from t4s_helpers.data.registry import ENTRIES
from t4s_helpers.model import recipes
from t4s_helpers.model.recipes import RECIPES, Plan, describe
from t4s_helpers.model.training import TrainingError


def plan(tmp_path, **changes) -> Plan:
    """Training on miniatures below ``tmp_path`` with a model that was never trained."""
    return Plan(**{"root": tmp_path, "reading": {"counts": "off"}, "source": tiny_model.folder(),
                   "quantize": None, "grid_size": 4, "out": tmp_path / "out", **changes})


def test_recipes_name_known_sets_and_one_another():
    assert {name for recipe in RECIPES.values() for name in recipe.passes} <= ENTRIES.keys()
    assert {recipe.start for recipe in RECIPES.values()} == {"", "res"}
    published = {name: next(iter(ENTRIES[name].splits.values())) for name in ("grefcoco", "cocostuff")}
    assert sum(n * RECIPES["gres"].passes["grefcoco"] for n in [published["grefcoco"]]) == 418_688  # "419k"


def test_a_recipe_reads_its_data_as_often_as_the_paper(tmp_path):
    cocostuff(tmp_path / "cocostuff", halves(0, 181), "train2017")
    wanted = plan(tmp_path, recipe="semantic")
    mixture = wanted.mixture()
    assert len(mixture) == 10 and mixture.style == "plain"
    assert len({mixture.source(k).size for k in range(10)}) > 1, "every pass shows another part"
    told = describe(wanted, mixture)
    assert "10 conversations from it" in told and "section 4.5" in told and "hours: unknown" in told
    assert "steps: 1 of 128 conversations (batch 32 x accumulate 4 x processes 1)" in told
    assert len(plan(tmp_path, recipe="semantic", samples=3).mixture()) == 3
    for name, first in (("res", "refclef"), ("gres", "grefcoco"), ("mix", "llava")):
        with pytest.raises(ValueError, match=first):
            plan(tmp_path, recipe=name).mixture()


def test_sets_with_weights_and_epochs(tmp_path):
    cocostuff(tmp_path / "cocostuff", halves(0, 181), "train2017")
    ade(tmp_path / "ADEChallengeData2016", halves(1, 2), "ADE_train_00000001", "training")
    wanted = plan(tmp_path, data="cocostuff,ade20k-150", weights=(2, 3), epochs=4)
    mixture = wanted.mixture()
    assert np.bincount(mixture.plan[0]).tolist() == [8, 12] and mixture.style == "box"
    with pytest.raises(TrainingError, match="1 weights for the data 'cocostuff,ade20k-150'"):
        plan(tmp_path, data="cocostuff,ade20k-150", weights=(2,))
    with pytest.raises(TrainingError, match="no recipe 'all': choose res, gres, semantic, mix"):
        plan(tmp_path, recipe="all")


def test_hours_are_those_of_the_log(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "log.csv").write_text(
        "step,samples,loss,learning_rate,grad_norm,seconds\n1,32,2,1,1,10\n2,64,1,1,1,26\n")
    wanted = plan(tmp_path, samples=7200, turns=1, mix="res")
    told = describe(wanted, wanted.mixture())
    assert "hours: 1.0 at the 2.00 conversations a second" in told
    assert "conversations: 7,200, about " in told and "of them trained (" in told


def test_a_recipe_that_continues_another_wants_its_adapter(tmp_path):
    with pytest.raises(TrainingError, match="'gres' on top of 'res': give the adapter"):
        recipes.train(plan(tmp_path, recipe="gres"))
