"""The playground in a browser: notebook 09, and by itself as in any notebook."""

from __future__ import annotations

import io
import re

import pytest
from PIL import Image

PLAY = """
from t4s_helpers import load_backbone
from t4s_helpers.workbook.playground import playground
play = playground(load_backbone("embedded", adapter="scenes"), refiners=("none", "mobile_sam"))
"""
#: Note when the page says what: in ``seen`` how many lines of text stood there, in ``told`` the states.
WATCH = """() => {
    const text = document.querySelector('.t4s-a .t4s-text'), status = document.querySelector('.t4s-status');
    Object.assign(window, {seen: [], told: []});
    new MutationObserver(() => seen.push(text.textContent.split('\\n').length))
        .observe(text, {childList: true, subtree: true});
    new MutationObserver(() => told.push([performance.now(), status.innerText]))
        .observe(status, {childList: true, subtree: true, characterData: true});
}"""
#: Requests, by the model or from the true mask; the kernel's memory in MB after one half and after all.
MANY = """
import os, psutil
for k in range(200):
    play.request(index=k, expression="the red star", writer="true mask" if k % 5 else "the model")
    if k in (99, 199):
        print(psutil.Process(os.getpid()).memory_info().rss / 1e6)
"""


class Player:
    """A reader with the playground in front; ``place`` finds a part of it by the end of its class."""

    def __init__(self, reader):
        self.reader, self.page = reader, reader.page
        reader.run_all()
        self.page.wait_for_selector(".t4s-playground .t4s-picture")
        self.page.evaluate(WATCH)

    def place(self, name):
        return self.page.locator(f".t4s-playground .t4s-{name}").locator("visible=true")

    def ask(self, expression, press="Enter"):
        """Type an expression, press Enter or a button, and wait until the page reacts."""
        self.page.evaluate("() => { told.length = seen.length = 0 }")
        self.place("expression").locator("input").fill(expression)
        self.page.keyboard.press(press) if press == "Enter" else self.place(press).click()
        self.page.wait_for_function("() => told.length")

    def wait(self, state="answered"):
        self.page.wait_for_selector(f".t4s-state.t4s-{state}")
        return self.told()

    def told(self):
        return self.place("state").inner_text()


@pytest.fixture
def player(open_notebook):
    return Player(open_notebook("play", PLAY))


def test_all_cells_run_without_an_error_in_the_console(open_notebook):
    reader = open_notebook("09")
    reader.run_all()
    reader.shot("09")


def test_rows_stream_cells_and_runs_belong_together_and_the_text_can_be_edited(player):
    expression = player.place("suggestion").first.inner_text()
    player.ask(expression)
    player.page.wait_for_function("() => seen.length")
    player.wait()
    seen = player.page.evaluate("seen")
    assert len({*seen} & {*range(2, 17)}) >= 3, f"the rows came at once: {seen}"
    pane, picture = player.place("text"), player.place("picture")
    target = pane.locator(".t4s-run.t4s-labelled").first
    target.hover()
    assert "t4s-lit" in target.get_attribute("class")
    picture.hover()
    assert int(picture.get_attribute("data-cell")) >= 0 and pane.locator(".t4s-lit").count() == 1
    player.reader.shot("playground")
    row = pane.locator(".t4s-run").filter(has_text=re.compile(r"^others \*16$")).first
    keys = player.page.keyboard
    labelled = pane.locator(".t4s-labelled").count()
    row.click()
    keys.press("Home")
    keys.press("Shift+End")
    keys.insert_text(f"{expression} *16")
    player.page.wait_for_function("(n) => document.querySelectorAll('.t4s-a .t4s-labelled').length > n",
                                  arg=labelled)
    player.wait()
    assert "True" in player.reader.python("print((play.outcome.grid == 1).all(axis=1).any())")
    row.click()  # the next one that is all others
    keys.press("End")
    keys.press("Backspace")
    keys.insert_text("5")
    player.page.wait_for_selector(".t4s-a .t4s-fault")
    player.wait()


def test_a_painted_reference_stands_in_the_question(player):
    player.place("reference").locator("input").check()
    picture, mouse = player.place("picture"), player.page.mouse
    picture.scroll_into_view_if_needed()
    box = picture.bounding_box()
    mouse.move(box["x"] + 0.1 * box["width"], box["y"] + 0.2 * box["height"])
    mouse.down()
    mouse.move(box["x"] + 0.4 * box["width"], box["y"] + 0.2 * box["height"], steps=12)
    mouse.up()
    player.page.wait_for_timeout(500)  # strokes are sent a few times a second
    player.ask("all other things of the same color as this")
    assert "as <seg>" in player.wait() and "this *" in player.told()
    player.reader.shot("playground_reference")


def test_a_long_answer_is_cancelled_within_moments(player):
    player.place("grid").locator("select").select_option(label="64 x 64")
    player.ask("the blue thing", "ask")
    player.page.wait_for_function("() => seen.length > 1")
    pressed = player.page.evaluate("() => performance.now()")
    player.place("cancel").click()
    assert "Cancelled" in player.wait("ready")
    ended = next(when for when, words in player.page.evaluate("told") if "Cancelled." in words)
    assert ended - pressed < 2000


def test_an_own_picture_is_asked_about_and_a_new_kernel_takes_over(player):
    png = io.BytesIO()
    Image.new("RGB", (1500, 900), "steelblue").save(png, "PNG")
    player.place("file").set_input_files(
        {"name": "own.png", "mimeType": "image/png", "buffer": png.getvalue()})
    player.page.wait_for_function("() => document.querySelector('.t4s-status').innerText.includes('own.png')")
    assert "drawn scenes alone" in player.told()
    player.ask("the boat")
    player.wait()
    player.reader.shot("playground_own")
    player.reader.restart()
    again = Player(player.reader)
    again.ask("")
    assert "empty" in again.wait("failed")
    again.ask("the red star")
    again.wait()


def test_memory_is_flat_over_many_requests(player):
    half, whole = map(float, player.reader.python(MANY).split())
    assert whole - half < 50
    assert player.page.locator(".t4s-playground .t4s-canvas").count() == 2
