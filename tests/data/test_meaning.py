"""Reading the scenes' grammar: every expression that is written is read back as it was meant."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from t4s_helpers.data.expressions import GRES_KINDS, make_expression
from t4s_helpers.data.meaning import MeaningError, meaning
from t4s_helpers.data.scenes import SceneObject, make_scene


def thing(size, color, category, x, y):
    empty = np.zeros((128, 128), bool)
    return SceneObject(category, color, size, (float(x), float(y)), empty, (0, 0, 1, 1))


SCENE = SimpleNamespace(objects=(
    thing("small", "red", "star", 20, 30),  # 0
    thing("large", "red", "star", 100, 34),  # 1
    thing("small", "blue", "cloud", 60, 90),  # 2
    thing("small", "blue", "ring", 61, 20),  # 3
))


@pytest.mark.parametrize("kind", GRES_KINDS)
def test_what_the_grammar_writes_is_read_as_it_was_meant(kind):
    rng, wrong, told = np.random.default_rng(5), [], 0
    for index in range(120):
        scene = make_scene("val", index)
        said = make_expression(rng, scene, (kind,))
        found = meaning(scene, said.text)
        told += said.kind == kind
        if found.targets != said.targets:
            wrong.append((index, said, found))
    assert not wrong and told > 40


@pytest.mark.parametrize(("text", "targets", "kind"), [
    ("the small red star", (0,), "attribute"),
    ("Small red STAR.", (0,), "attribute"),
    ("a cloud", (2,), "attribute"),
    ("all red things", (0, 1), "all"),
    ("the red stars", (0, 1), "all"),
    ("all the small things", (0, 2, 3), "all"),
    ("all clouds", (2,), "all"),
    ("the leftmost star", (0,), "position"),
    ("the leftmost cloud", (2,), "position"),
    ("the lowest thing", (2,), "position"),
    ("the highest thing", (3,), "position"),
    ("the star left of the cloud", (0,), "relation"),
    ("all blue things right of the small star", (2, 3), "all"),
    ("the leftmost star above the cloud", (0,), "relation"),
    ("the star below the cloud", (), "none"),
    ("the star left of the anchor", (), "none"),
    ("the green star", (), "none"),
    ("all green things", (), "none"),
    ("the ring and the small star", (0, 3), "pair"),
    ("all stars and the ring", (0, 1, 3), "pair"),
])
def test_meanings(text, targets, kind):
    found = meaning(SCENE, text)
    assert (found.targets, found.kind) == (targets, kind)


@pytest.mark.parametrize(("text", "words"), [
    ("", "empty"),
    (" . ", "empty"),
    ("the wombat", "does not know the word 'wombat'"),
    ("the small red", "misses a noun"),
    ("the red small star", "'small'"),
    ("the star", "2 objects are a star"),
    ("the star near the cloud", "expects nothing more"),
    ("the highest star", "too close to call"),
    ("the ring left of the cloud", "too close to call"),
    ("the ring left of the star", "2 objects are a star"),
    ("the cloud left of the red stars", "plural"),
    ("the leftmost stars", "singular"),
    ("the cloud and the anchor", "no anchor here"),
    ("the cloud and the ring and the small star", "'and'"),
    ("the ring above the cloud and the small star", "'and'"),
    ("the ring above the cloud left of the small star", "One relation"),
])
def test_what_is_unclear_is_said(text, words):
    with pytest.raises(MeaningError) as caught:
        meaning(SCENE, text)
    assert words in str(caught.value) and "\n" not in str(caught.value)
