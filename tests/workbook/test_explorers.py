"""The explorers without a browser: what follows from a painted mask, and from a choice."""

from __future__ import annotations

import base64

import numpy as np
import pytest
from pycocotools import mask as rle

from t4s_helpers.codec.encodings import PAPER_ENCODINGS, get_encoding
from t4s_helpers.data.registry import load
from t4s_helpers.workbook.asking import as_png
from t4s_helpers.workbook.canvas import blank
from t4s_helpers.workbook.explorers import AblationExplorer, DPI, MaskExplorer
from t4s_helpers.workbook.runner import WIDGET

SAMPLES = [one for one in load("scenes", "test", n=6) if one.has_target.all()][:3]


def test_texts_tokens_and_runs_follow_what_is_painted():
    explorer = MaskExplorer(SAMPLES[0])
    begun = dict(explorer.tokens)
    painted = np.array(blank())
    painted[:32, :16] = 1
    explorer.canvas.painted = painted.tolist()
    explorer.side.value = 8
    assert np.array_equal(explorer.grid, np.pad(np.ones((4, 2), int), ((0, 4), (0, 6))))
    for name in PAPER_ENCODINGS:
        read = get_encoding(name, 8).decode(explorer.texts[name], [explorer.label])
        assert np.array_equal(read, explorer.grid) and explorer.texts[name][:40] in explorer.table.value
    assert explorer.tokens["irle"] < explorer.tokens["rrle"] < explorer.tokens["full"] < begun["full"]
    cells = [cell for run in explorer.canvas.runs for cell in run["cells"] if run["label"] == 1]
    assert sorted(cells) == np.flatnonzero(explorer.grid).tolist()
    explorer.clear.click()
    assert not explorer.grid.any() and explorer.canvas.grid == np.zeros((8, 8), int).tolist()


def rows():
    """A perfect writer on two grids, and a model that says "others" and whose refiner fills the picture."""
    for sample in SAMPLES:
        for side in (4, 16):
            text = get_encoding("rrle", side).encode(sample.grid(side), sample.labels)
            yield {"id": sample.id, "writer": "true mask", "encoding": "rrle", "grid": side,
                   "text": f"<seg>{text}</seg>", "refiner": "none", "mask": ""}
        empty = get_encoding("irle", 4).encode(np.zeros((4, 4), int), sample.labels)
        case = {"id": sample.id, "writer": "model", "encoding": "irle", "grid": 4,
                "text": f"<seg>{empty}</seg>"}
        whole = rle.encode(np.ones(sample.size, np.uint8, order="F"))["counts"].decode()
        yield {**case, "refiner": "none", "mask": ""}
        yield {**case, "refiner": "whole", "mask": whole}


def test_the_same_pictures_change_with_every_choice():
    explorer = AblationExplorer(list(rows()), SAMPLES)
    c = explorer.controls
    assert explorer.masks() == {} and "Not trained" in explorer.told.value  # the model in rrle, at 16
    assert explorer.image.layout.display == "none"
    c["encoding"].value, c["grid"].value = "irle", 4
    assert list(explorer.masks()) == [sample.id for sample in SAMPLES]
    assert not any(mask.any() for mask in explorer.masks().values())
    c["refiner"].value = "whole"
    assert all(mask.all() for mask in explorer.masks().values())
    c["refiner"].value, c["writer"].value = "none", "true mask"
    assert c["encoding"].disabled and len(explorer.masks()) == 3
    coarse = explorer.image.value
    c["grid"].value = 16
    assert explorer.image.value[:4] == b"\x89PNG" and explorer.image.value != coarse
    with pytest.raises(ValueError, match="none of these pictures"):
        AblationExplorer(list(rows()), SAMPLES[:1])


def test_an_explorer_is_a_widget_and_a_picture_in_one_output():
    for explorer in (MaskExplorer(SAMPLES[0]), AblationExplorer(list(rows()), SAMPLES)):
        bundle = explorer._repr_mimebundle_()
        assert WIDGET in bundle and base64.b64decode(bundle["image/png"]) == as_png(explorer.still(), DPI)
