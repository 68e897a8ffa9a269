"""The book as it opens from disk: no server, nothing from the network."""

from __future__ import annotations

from pathlib import Path

import pytest

BOOK = Path(__file__).resolve().parents[2] / "build" / "book"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_book_opens_from_disk_and_can_be_searched(chromium, scheme, keep):
    if not (BOOK / "index.html").is_file():
        pytest.skip("there is no book yet: run make book")
    page, asked, errors = chromium.new_page(color_scheme=scheme), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((BOOK / "index.html").as_uri())
    page.get_by_role("link", name="02 Why run lengths").first.click()
    page.wait_for_selector("img[alt^='Figure: How does the text grow']")
    keep(f"book_{scheme}", page.screenshot())
    page.get_by_placeholder("Search").first.fill("calibration")
    page.keyboard.press("Enter")
    page.wait_for_selector("#search-results li a")
    page.close()
    assert not errors and not [url for url in asked if url.startswith("http")]
