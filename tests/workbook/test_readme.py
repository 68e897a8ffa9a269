"""Generated prose: the README's tables, the list of all numbers, minutes and links in notebooks."""

from __future__ import annotations

import io
import subprocess
import tarfile

import nbformat
import pytest
from nbformat.v4 import new_markdown_cell, new_notebook

from t4s_helpers.files import ROOT, write_json
from t4s_helpers.workbook import readme
from t4s_helpers.workbook.results import HEADLINE_FIELDS, ResultsError, read_json

MARKERS = [f"<!-- {name}:{side} -->" for name in ("notebooks", "results") for side in ("begin", "end")]
GLANCE = "# How {}?\n\nSo.\n\n| | |\n|---|---|\n| Minutes | 9 on the CPU, 15 on one GPU |\n| Paper | 3 |"


def row(name, notebook, value=1.0, profile="cpu"):
    values = (name, value, "%", profile, 5, notebook, f"run {notebook}")
    return dict(zip(HEADLINE_FIELDS, values, strict=True))


@pytest.fixture
def project(tmp_path):
    """A README and three notebooks, of which the first has been run."""
    (tmp_path / "notebooks").mkdir()
    for name in ("00_start", "02_runs", "A1_base"):
        cells = [new_markdown_cell(GLANCE.format(name)), new_markdown_cell("## Summary\n\n**Next.** old")]
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        node = new_notebook(cells=cells, metadata={"kernelspec": kernel})
        nbformat.write(node, tmp_path / "notebooks" / f"{name}.ipynb")
    lines = ["top", MARKERS[0], "stale", *MARKERS[1:3], "stale", MARKERS[3], "end", ""]
    (tmp_path / "README.md").write_text("\n".join(lines))
    write_json(tmp_path / "results" / "00_start" / "manifest.json", {"seconds": 100})
    write_json(tmp_path / "results" / "summary.json", [
        row("embedded.res.ciou", "02_runs", 71.23456), row("embedded.res.ciou", "02_runs", 3, "gpu"),
        row("a|b.x", "00_start")])
    return tmp_path


def test_the_tables_are_made_between_their_markers(project):
    assert len(readme.update_readme(project)) == 5 and readme.update_readme(project) == []
    text = (project / "README.md").read_text()
    assert text.startswith("top\n") and text.endswith("\nend\n") and "stale" not in text
    assert "| [`00_start`](notebooks/00_start.ipynb) | How 00_start? | 2 |" in text
    assert "| [`02_runs`](notebooks/02_runs.ipynb) | How 02_runs? |  |" in text
    assert f"| {readme.HIGHLIGHTS['embedded.res.ciou']} | 71.23 % | 5 | 02 |" in text
    assert "a|b.x" not in text and "3 %" not in text.replace("71.23 %", "")


def test_all_numbers_lie_beside_the_results(project):
    readme.update_readme(project)
    text = (project / "results" / "README.md").read_text()
    assert "## 00_start\n\nHow 00_start?" in text
    assert r"| `a\|b.x` | 1 % | 5 | cpu | `run 00_start` |" in text
    assert "| `embedded.res.ciou` | 3 % | 5 | gpu | `run 02_runs` |" in text


def test_notebooks_get_their_minutes_and_their_next(project):
    write_json(project / "results" / "gpu" / "02_runs" / "manifest.json", {"seconds": 10})
    readme.update_readme(project)
    nodes = [nbformat.read(p, as_version=4) for p in sorted((project / "notebooks").iterdir())]
    assert [n.cells[0].source.splitlines()[6] for n in nodes] == [
        "| Minutes | 2 on the CPU, 15 on one GPU |",
        "| Minutes | not measured on the CPU, 1 on one GPU |",
        "| Minutes | not measured on the CPU, 15 on one GPU |"]
    assert [n.cells[1].source.splitlines()[2] for n in nodes] == [
        "**Next.** [`02_runs`](02_runs.ipynb): How 02_runs?",
        "**Next.** [`A1_base`](A1_base.ipynb): How A1_base?",
        "**Next.** This was the last notebook; the [README](../README.md) has the map."]


@pytest.mark.parametrize("text", [
    "no markers", "\n".join(MARKERS[2:]), "\n".join(MARKERS[::-1]), "\n".join(MARKERS * 2)])
def test_a_readme_without_one_place_is_left_alone(text, project):
    (project / "README.md").write_text(text)
    with pytest.raises(ResultsError, match="notebooks:begin"):
        readme.update_readme(project)
    assert (project / "README.md").read_text() == text


def test_a_notebook_without_a_place_is_named(project):
    path = project / "notebooks" / "02_runs.ipynb"
    path.write_text(path.read_text().replace("| Minutes |", "| Time |"))
    with pytest.raises(ResultsError, match=r"02_runs\.ipynb needs a row"):
        readme.update_readme(project)


# --- this project


def committed_results(folder):
    """The summary and the manifests of the last commit: a run since then may have made others."""
    names = ["results/summary.json", ":(glob)results/**/manifest.json"]
    done = subprocess.run(["git", "-C", str(ROOT), "archive", "HEAD", *names], capture_output=True)
    if done.returncode:
        pytest.skip("this is no git checkout with results")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder / "results"


def stale(results):
    return [path.name for path, text in readme.generated(ROOT, results).items()
            if readme.read_text(path) != text]


def test_everything_generated_is_up_to_date(tmp_path):
    if stale(ROOT / "results"):
        assert not stale(committed_results(tmp_path)), "run: make readme"


def test_the_summary_is_sorted_and_complete():
    rows = read_json(ROOT / "results" / "summary.json", [])
    assert rows == sorted(rows, key=lambda r: (r["name"], r["profile"]))
    assert all(tuple(r) == HEADLINE_FIELDS for r in rows)
    assert len(readme.HIGHLIGHTS) <= 12
    assert set(readme.HIGHLIGHTS) <= {r["name"] for r in rows if r["profile"] == "cpu"}
