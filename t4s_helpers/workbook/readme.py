"""What the results say in prose: tables and links that are generated, never typed.

`update_readme` writes four things from ``results/summary.json``, the manifests and the notebooks'
titles: the README's table of notebooks and its short table of numbers, ``results/README.md`` with
all numbers, and in each notebook the minutes at the top and the link to the next one at the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from ..files import ROOT, atomic_write
from .plan import MINUTES_LINE, NEXT_LINE, discover
from .results import SUMMARY_FILE, ResultsError, format_value, read_json, read_manifest

#: The README's short table: headline number -> what it says. Values come from the CPU profile.
HIGHLIGHTS = {
    "descriptors.photos.ciou.16":
        "cIoU of the true mask of a photo once it has gone through a 16×16 grid",
    "tokens.photos.full": "tokens of such a mask when every cell is written out",
    "tokens.photos.rrle": "tokens of the same mask as run lengths, row by row",
    "codec.one_cell_off.iou.rrle": "IoU that is left when one count in the text is off by one",
    "refine.photos.ciou.none": "cIoU of coarse masks of photos, before refinement",
    "refine.photos.ciou.mobile_sam": "cIoU of the same masks after MobileSAM",
    "embedded.res.ciou": "cIoU of the embedded model on held-out drawn scenes",
    "embedded.res.ciou_ceiling": "the most that its grid allows on these scenes",
    "embedded.gres.n_acc": "share of requests without a target that it rejects",
    "embedded.vqa.accuracy": "share of questions that it answers correctly in words",
    "embedded.malformed_rate": "share of its free-running answers that the parser had to repair",
    "decoding.speedup.cpu": "how much faster the decoder with grammar and drafts is than plain decoding",
}


def update_readme(root: Path = ROOT) -> list[Path]:
    """Bring everything that is generated in the project's folder up to date; return what changed."""
    texts = generated(root)
    changed = {path: text.encode() for path, text in texts.items() if read_text(path) != text}
    atomic_write(changed)
    return list(changed)


def generated(root: Path = ROOT, results: Path | None = None) -> dict[Path, str]:
    """Return every file with generated parts, as it should be: path -> text.

    Args:
        root: the project's folder, with ``README.md`` and ``notebooks``.
        results: the folder of results; default: ``root / "results"``.

    Raises:
        ResultsError: a notebook or the README has no place for what belongs there.
    """
    results = results or root / "results"
    paths = discover(root / "notebooks", appendix=True)
    rows = read_json(results / SUMMARY_FILE, [])
    readme = read_text(root / "README.md")
    readme = between(readme, "notebooks", notebook_table(paths, results))
    readme = between(readme, "results", highlight_table(rows))
    texts = {root / "README.md": readme, root / "results" / "README.md": all_numbers(rows, paths)}
    for path, following in zip(paths, [*paths[1:], None], strict=True):
        texts[path] = notebook_text(path, following, results)
    return texts


def read_text(path: Path) -> str:
    """Return a file's text, or no text when there is no such file."""
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def between(text: str, name: str, content: str) -> str:
    """Return ``text`` with the lines between the markers of ``name`` replaced.

    >>> between("a\\n<!-- x:begin -->\\nold\\n<!-- x:end -->\\nb", "x", "new")
    'a\\n<!-- x:begin -->\\nnew\\n<!-- x:end -->\\nb'
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(end) < text.index(begin):
        raise ResultsError(
            f"The README needs the lines {begin} and {end}, once each and in this order, where its"
            f" table of {name} belongs."
        )
    return f"{text[:text.index(begin)]}{begin}\n{content}\n{text[text.index(end):]}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> str:
    """Return a Markdown table; ``align`` has one of ``l`` and ``r`` per column."""
    sides = ["---:" if side == "r" else "---" for side in align]
    lines = [header, sides, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# --- the tables ----------------------------------------------------------------------------------


def title(path: Path) -> str:
    """Return the question that is a notebook's title."""
    for line in _read(path).cells[0].source.splitlines():
        if line.startswith("# "):
            return line.removeprefix("# ").strip()
    raise ResultsError(f"{path.name} has no title: begin its first cell with '# ', a question.")


def minutes(path: Path, results: Path) -> str:
    """Return how many minutes the last run of a notebook took, at least 1; no text without a run."""
    seconds = read_manifest(results / path.stem).get("seconds")
    return str(max(1, round(seconds / 60))) if seconds else ""


def notebook_table(paths: Sequence[Path], results: Path) -> str:
    """Return the README's table of notebooks."""
    rows = [(f"[`{p.stem}`](notebooks/{p.name})", title(p), minutes(p, results)) for p in paths]
    return markdown(("notebook", "question", "minutes, CPU"), rows, "llr")


def highlight_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the README's short table: value, what it says, and where it comes from."""
    found = {row["name"]: row for row in rows if row["profile"] == "cpu"}
    chosen = [(text, found[name]) for name, text in HIGHLIGHTS.items() if name in found]
    lines = [
        (text, format_value(row["value"], row["unit"]), str(row["n"]), row["notebook"].split("_")[0])
        for text, row in chosen
    ]
    return markdown(("number", "value", "n", "notebook"), lines, "lrrl")


def all_numbers(rows: Sequence[Mapping[str, Any]], paths: Sequence[Path]) -> str:
    """Return ``results/README.md``: every headline number, by notebook."""
    titles = {path.stem: title(path) for path in paths}
    text = (
        "# All headline numbers\n\nGenerated by `make readme` from [`summary.json`](summary.json),"
        " which the notebooks write. n is the number of samples or repetitions.\n"
    )
    ordered = sorted(rows, key=lambda row: (row["notebook"], row["name"], row["profile"]))
    for notebook, own in groupby(ordered, key=lambda row: row["notebook"]):
        lines = [
            (f"`{row['name']}`", format_value(row["value"], row["unit"]), str(row["n"]),
             row["profile"], f"`{row['command']}`") for row in own
        ]
        table = markdown(("number", "value", "n", "profile", "command"), lines, "lrrll")
        text += f"\n## {notebook}\n\n{titles.get(notebook, '')}\n\n{table}\n"
    return text


# --- the notebooks -------------------------------------------------------------------------------


def notebook_text(path: Path, following: Path | None, results: Path) -> str:
    """Return a notebook's file with its minutes and the link to the next notebook."""
    import nbformat

    node = _read(path)
    last = node.cells[-1]
    first = next((cell for cell in node.cells[:3] if MINUTES_LINE.search(cell.source)), None)
    if first is None:
        raise ResultsError(f"{path.name} needs a row '| Minutes | ...' in its at-a-glance table.")
    spent, spent_gpu = minutes(path, results), minutes(path, results / "gpu")
    written = MINUTES_LINE.search(first.source)[0].strip(" |").partition(", ")[2]
    cost = f"{spent or 'not measured'} on the CPU, {f'{spent_gpu} on one GPU' if spent_gpu else written}"
    first.source = MINUTES_LINE.sub(f"| Minutes | {cost.rstrip(', ')} |", first.source)
    line = "**Next.** This was the last notebook; the [README](../README.md) has the map."
    if following:
        line = f"**Next.** [`{following.stem}`]({following.name}): {title(following)}"
    body = NEXT_LINE.sub("", last.source).rstrip()
    last.source = f"{body}\n\n{line}"
    return nbformat.writes(node) + "\n"


def _read(path: Path) -> Any:
    import nbformat

    return nbformat.read(path, as_version=nbformat.NO_CONVERT)
