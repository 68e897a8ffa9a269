"""Check a folder of HTML pages: every link, picture, script and anchor in it must be there, offline.

    python book/check.py build/book

Links to the web are counted, not followed; a page may load nothing from there.
"""

from __future__ import annotations

import sys
from functools import cache
from html.parser import HTMLParser
from os.path import normpath
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The ``links`` of a page, its ``anchors``, and the pictures ``mute``, which have no alternative text."""

    def __init__(self, path: Path):
        super().__init__()
        self.links, self.anchors, self.mute = [], {"", "top"}, []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors |= {found[name] for name in ("id", "name") if found.get(name)}
        self.links += [(name, found[name]) for name in ("href", "src") if found.get(name)]
        if tag == "link" or name_of_refresh(found):
            self.links.append(("src", name_of_refresh(found) or found["href"]))
        if tag == "img" and not found.get("alt"):
            self.mute.append(found.get("src"))


def name_of_refresh(found: dict) -> str:
    """Where a page sends its reader by itself."""
    return found.get("content", "").partition("url=")[2] if found.get("http-equiv") == "refresh" else ""


page = cache(Page)


def faults(folder: Path):
    """Yield a sentence for each link of the pages that leads nowhere."""
    for path in sorted(folder.rglob("*.html")):
        for picture in page(path).mute:
            yield f"{path}: the picture {picture} has no alternative text"
        for kind, link in page(path).links:
            there = urlsplit(link)
            if there.scheme in ("http", "https") or there.netloc:
                if kind == "src":
                    yield f"{path}: {link} is loaded from the network"
            elif not there.scheme:
                target = Path(normpath(path.parent / unquote(there.path))) if there.path else path
                if not target.is_file():
                    yield f"{path}: {link} leads nowhere"
                elif target.suffix == ".html" and unquote(there.fragment) not in page(target).anchors:
                    yield f"{path}: {link} names a place that is not there"


def main(folder: str) -> int:
    """Print what is wrong, and return 1 if anything is, or if there is no page at all."""
    found = list(faults(Path(folder)))
    pages = page.cache_info().currsize
    print(*found, f"{pages} pages, {len(found)} faults in links and pictures.", sep="\n")
    return bool(found) or not pages


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
