"""The explorers of notebooks 02 and 08 in a browser, each in a notebook of its own."""

from __future__ import annotations

import re

MASK = """
from t4s_helpers.data.registry import load
from t4s_helpers.workbook.explorers import MaskExplorer
explorer = MaskExplorer(load("scenes", "test", n=1)[0])
explorer
"""
ABLATION = """
from t4s_helpers.lab.ablations.measure import gallery, scene_sets
from t4s_helpers.refine import NoRefiner
from t4s_helpers.workbook.explorers import AblationExplorer
pictures = scene_sets(6)["test"]
explorer = AblationExplorer(gallery({}, pictures, NoRefiner()), pictures)
explorer
"""


def counts(panel):
    return [int(count) for count in re.findall(r"(\d+) tokens", panel.inner_text())]


def test_a_painted_mask_is_told_in_three_encodings_while_the_mouse_moves(open_notebook):
    reader = open_notebook("mask_explorer", MASK)
    reader.run_all()
    page, panel = reader.page, reader.page.locator(".t4s-mask-explorer")
    picture = panel.locator(".t4s-picture")
    picture.scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    box, begun = picture.bounding_box(), counts(panel)
    assert len(begun) == 3 and begun[0] > begun[2] > begun[1]
    page.mouse.move(box["x"] + 20, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 20, box["y"] + 30, steps=12)
    page.wait_for_function("(begun) => !document.querySelector('.t4s-mask-explorer').innerText"
                           ".includes(`${begun} tokens`)", arg=begun[0])  # before the button is released
    page.mouse.up()
    reader.wait_idle()
    written = counts(panel)
    assert written != begun and int(reader.python("print((explorer.grid[1] > 0).sum())")) >= 13
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 30)
    assert panel.locator(".t4s-run.t4s-lit").count() == 1
    slider = panel.locator(".noUi-handle").first
    slider.press("ArrowRight")
    page.wait_for_function("(old) => !document.querySelector('.t4s-mask-explorer').innerText"
                           ".includes(`${old} tokens`)", arg=written[0])
    assert reader.python("print(len(explorer.grid))").strip() == "17"
    reader.shot("explorer_mask", panel)
    panel.get_by_role("button", name="clear").click()
    reader.wait_idle()
    assert reader.python("print(explorer.grid.any())").strip() == "False"


def test_a_choice_changes_the_same_pictures(open_notebook):
    reader = open_notebook("ablation_explorer", ABLATION)
    reader.run_all()
    panel = reader.page.locator(".t4s-ablation-explorer")
    source = "document.querySelector('.t4s-ablation-explorer img').src"
    before, told = reader.page.evaluate(source), panel.inner_text()
    panel.get_by_role("button", name="32").click()
    reader.page.wait_for_function(f"(before) => {source} != before", arg=before)
    assert "Mean IoU of these 6 pictures" in told and panel.inner_text() != told
    reader.page.wait_for_timeout(300)
    reader.shot("explorer_ablation", panel)
