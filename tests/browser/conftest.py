"""JupyterLab in headless Chromium: the notebooks as a reader has them in front of them.

``lab`` starts a server on a free port, with a token, on copies of the notebooks in a folder of its own;
``open_notebook`` opens one of them and hands out a `Reader`. A test fails when the page reports an error.
"""

from __future__ import annotations

import io
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

ROOT = Path(__file__).resolve().parents[2]
SHOTS = ROOT / "results" / "browser"
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync")
#: What JupyterLab itself reports at every start, without any widget of ours.
NOT_OURS = ("favicon", "/api/workspaces", "/lsp/status", "ResizeObserver loop")
SPEC = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
ALL_CELLS = "() => window.jupyterapp.commands.execute('notebook:run-all-cells')"
FAILED = pytest.StashKey[bool]()
KERNEL = "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel"


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)
            item.add_marker(pytest.mark.timeout(600))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    item.stash[FAILED] = item.stash.get(FAILED, False) or report.failed
    return report


@pytest.fixture(scope="session")
def chromium():
    from browser.chromium import chromium as found
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found(), args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """A running JupyterLab: the folder of its notebooks, and its address with ``%s`` for one of them."""
    place = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "notebooks", place / "notebooks")
    (place / "results").mkdir()
    for folder in (ROOT / "results").iterdir():  # to read; what a notebook writes goes to the copy
        if folder.is_dir():
            shutil.copytree(folder, place / "results" / folder.name)
    settings = place / "settings" / "@jupyterlab"
    for name, chosen in {  # all cells stand on the page, and nothing asks for the news
        "notebook-extension/tracker": {"windowingMode": "none"},
        "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    }.items():
        (settings / name).parent.mkdir(parents=True, exist_ok=True)
        (settings / f"{name}.jupyterlab-settings").write_text(json.dumps(chosen))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token, base = secrets.token_hex(16), f"http://127.0.0.1:{port}"
    homes = {f"{name}_DIR": str(place / name.lower()) for name in (
        "JUPYTER_CONFIG", "JUPYTER_RUNTIME", "JUPYTERLAB_WORKSPACES")}
    with (place / "log.txt").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}",
             "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}",
             f"--ServerApp.root_dir={place / 'notebooks'}", "--LabApp.expose_app_in_browser=True"],
            cwd=place, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            env=os.environ | homes | {
                "JUPYTERLAB_SETTINGS_DIR": str(settings.parent), "T4S_RESULTS": str(place / "results"),
                "IPYTHONDIR": str(place / "ipython"), "JUPYTER_PREFER_ENV_PATH": "1",
                "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])})
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{base}/api/status?token={token}", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, (place / "log.txt").read_text()
                time.sleep(0.1)
        yield place / "notebooks", f"{base}/doc/tree/%s?token={token}"
    finally:
        server.terminate()
        server.wait(30)


def keep_shot(name, png):
    """Keep a screenshot as a small file."""
    from PIL import Image

    SHOTS.mkdir(parents=True, exist_ok=True)
    small = Image.open(io.BytesIO(png)).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    small.save(SHOTS / f"{name}.png", optimize=True)


@pytest.fixture
def keep():
    return keep_shot


@pytest.fixture
def open_notebook(chromium, lab, request, tmp_path):
    """Open a notebook by the beginning of its name, or a new one with some cells, for a `Reader`.

    When the test is over, it fails if the page reported an error; of a test that failed a picture is kept.
    """
    folder, address = lab
    page = chromium.new_page(viewport={"width": 1500, "height": 1100})
    page.set_default_timeout(30_000)
    errors = []
    page.on("console", lambda said: errors.append(f"{said.text} ({said.location.get('url')})")
            if said.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))

    def open_one(name, *cells):
        path = next(folder.glob(f"{name}*.ipynb"), folder / f"{name}.ipynb")
        if cells:
            nbformat.write(new_notebook(cells=[*map(new_code_cell, cells)], metadata=SPEC), path)
        page.goto(address % path.name)
        page.wait_for_function(f"() => window.jupyterapp && {KERNEL}?.status === 'idle'")
        return Reader(page)

    yield open_one
    if request.node.stash.get(FAILED, False):
        page.screenshot(path=tmp_path / "failed.png")
        print(f"The page as it was: {tmp_path / 'failed.png'}", *errors, sep="\n")
    page.evaluate(f"() => {KERNEL}?.shutdown()")
    page.close()
    ours = [error for error in errors if not any(words in error for words in NOT_OURS)]
    assert not ours, ours


class Reader:
    """What a reader does with an open notebook; ``page`` is Playwright's."""

    def __init__(self, page):
        self.page = page

    def run_all(self):
        """Run every cell; fail with the traceback when one fails."""
        assert self.page.evaluate(ALL_CELLS), self.trouble()
        self.wait_idle()
        assert not self.trouble()

    def trouble(self):
        return self.page.locator("[data-mime-type='application/vnd.jupyter.error']").all_inner_texts()

    def wait_idle(self, seconds=120):
        self.page.wait_for_function(f"() => {KERNEL}?.status === 'idle'", timeout=1000 * seconds)

    def restart(self):
        self.page.evaluate(f"() => {KERNEL}.restart()")
        self.wait_idle()

    def python(self, code):
        """Run code in the notebook's kernel, beside its cells; returns what it printed."""
        return self.page.evaluate(
            """async (code) => {
                let said = "";
                const future = KERNEL.requestExecute({code, store_history: false});
                future.onIOPub = ({content}) => { said += content.text ?? content.evalue ?? ""; };
                await future.done;
                return said;
            }""".replace("KERNEL", KERNEL), code)

    def shot(self, name, place=None):
        """Keep a picture of the page, or of a locator on it, as ``results/browser/<name>.png``."""
        keep_shot(name, (place or self.page).screenshot())
