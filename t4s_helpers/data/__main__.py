"""``python -m t4s_helpers.data``: which data sets can be read, and where their files belong.

``python -m t4s_helpers.data NAME --root FOLDER [--split SPLIT]`` opens one and says what is wrong.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence

from .dataset import BAD, COUNTS
from .registry import ENTRIES, ROOT_VARIABLE, load, table
from .sample import SampleError


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m t4s_helpers.data",
        description="List the data sets that can be read, or check the files of one.")
    parser.add_argument("name", nargs="?", choices=ENTRIES, help="a data set to check")
    parser.add_argument("--root", help=f"its folder; else its place below ${ROOT_VARIABLE}")
    parser.add_argument("--split", help="by default the one that papers report first")
    parser.add_argument("--counts", choices=COUNTS, default="strict")
    parser.add_argument("--bad", choices=BAD, default="refuse")
    options = parser.parse_args(arguments)
    if options.name is None:
        print(listing())
        return 0
    try:
        data = load(options.name, options.split, options.root, counts=options.counts,
                    bad=options.bad)
    except SampleError as error:
        print(error, file=sys.stderr)
        return 1
    print(data)
    for row in data.exclusions():
        print(f"  excluded: {row['n']} x {row['reason']}, first {row['first']}")
    if len(data):
        print(f"  first: {data[0]}")
    return 0


def listing() -> str:
    """The table as text, a paragraph for each data set."""
    paragraphs = []
    for row in table():
        lines = [f"{row['name']}  ({row['task']}: {row['metric']})"]
        for key in ("splits", "layout", "folder", "source", "licence", "note"):
            if row[key]:
                value = f"${ROOT_VARIABLE}/{row[key]}" if key == "folder" else row[key]
                lines.append(textwrap.fill(f"{key}: {value}", 100, initial_indent="    ",
                                           subsequent_indent="        ",
                                           break_long_words=False, break_on_hyphens=False))
        paragraphs.append("\n".join(lines))
    return "\n\n".join(paragraphs)


if __name__ == "__main__":
    sys.exit(main())
