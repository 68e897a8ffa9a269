"""How `make book` turns the executed series into a static site; Sphinx reads this file.

Sphinx and myst-nb, because their pages and their search open from disk (jupyter-book 2 writes an
application that needs a server, and fetches its theme from the network). Nothing is executed: the pages
are the executed copies under ``results/``, the README, the list of results and the docstrings. They are
laid out in a folder of their own as they lie in the project, so that links between them hold.
"""

from __future__ import annotations

import shutil
from itertools import groupby
from pathlib import Path

import nbformat
from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

from t4s_helpers import __version__
from t4s_helpers.workbook.plan import discover
from t4s_helpers.workbook.readme import title
from t4s_helpers.workbook.runner import for_reading

ROOT = Path(__file__).resolve().parents[1]

project = "Text4Seg workbook"
author = "Text4Seg workbook authors"
version = release = __version__
extensions = ["myst_nb", "sphinx.ext.apidoc", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
default_role = "py:obj"  # `name` in a docstring: a link where there is such a thing, else code

nb_execution_mode = "off"
nb_mime_priority_overrides = [("html", "text/html", 0), ("html", "image/png", 1)]
nb_render_markdown_format = "myst"  # links in an output's Markdown are those of the page
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["ref.python"]  # a field's `name`, which several classes have, stays without a link

apidoc_modules = [{"path": str(ROOT / "t4s_helpers"), "destination": "api", "separate_modules": True,
                   "module_first": True, "max_depth": 2,
                   "automodule_options": {"members", "show-inheritance"}}]
autodoc_default_options = {"ignore-module-all": True}  # each thing stands on the page of its own module
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "separated"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
napoleon_use_ivar = True

html_theme = "furo"
html_title = project
html_static_path = [str(ROOT / "book" / "static")]
html_css_files = ["book.css"]
html_copy_source = html_show_sourcelink = False
html_show_search_summary = False  # a browser does not let a page read others on the disk
html_math_renderer = "mathml"
html_additional_pages = {"index": "front.html"}
templates_path = [str(ROOT / "book" / "templates")]
root_doc = "README"

FILES = ("README.md", "CHANGELOG.md", "LICENSE", "CITATION.cff", "results/README.md", "results/summary.json",
         "results/00_start_here/pipeline.png", "t4s_helpers/assets/README.md")

CONTENTS = """
```{toctree}
:hidden:
:caption: The notebooks

%s
```

```{toctree}
:hidden:
:caption: To look things up

results/README
recipes
api/modules
t4s_helpers/assets/README
CHANGELOG
notebooks/solutions/README
```
"""
RECIPES = """
# How to add an encoding, a backbone, a refiner, a data set, a notebook

```{include} README.md
:start-after: "## How to add …"
:end-before: "## The embedded model"
```
"""
SOLUTIONS = """
# Answers to the exercises

They are not executed here: open them in JupyterLab, beside the results of the series.

```{toctree}
:maxdepth: 1

%s
```
"""


def lay_out(app, config):
    """Write the book's sources to Sphinx's source folder."""
    source = Path(app.srcdir)
    for path in source.iterdir():  # what an earlier build left
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name in FILES:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, source / name)
    (source / "notebooks" / "solutions").mkdir(parents=True)
    series = discover(ROOT / "notebooks", appendix=True)
    answers = sorted((ROOT / "notebooks" / "solutions").glob("*.ipynb"))
    for path in [*series, *answers]:
        copy = ROOT / "results" / path.stem / path.name if path in series else path
        node = nbformat.read(copy if copy.is_file() else path, as_version=4)
        for cell in for_reading(node).cells:  # myst-nb looks for alt texts at the cell
            for output in cell.get("outputs", []):
                if alt := output.get("metadata", {}).get("image/png", {}).get("alt"):
                    cell.metadata["mystnb"] = {"image": {"alt": alt}}
        nbformat.write(node, source / path.relative_to(ROOT))
    names = [f"{path.stem.split('_')[0]} {title(path)} <notebooks/{path.stem}>" for path in series]
    with (source / "README.md").open("a", encoding="utf-8") as readme:
        readme.write(CONTENTS % "\n".join(names))
    (source / "recipes.md").write_text(RECIPES, encoding="utf-8")
    (source / "notebooks" / "solutions" / "README.md").write_text(
        SOLUTIONS % "\n".join(path.stem for path in answers), encoding="utf-8")


def write_math(translator, node):
    """A formula as MathML, which browsers draw without a script from the network."""
    translator.body.append(tex2mathml(node.astext(), as_block=node.tagname == "math_block"))
    raise nodes.SkipNode


def lay_tables(app, what, name, obj, options, lines):
    """The tables of a docstring, which are written as in Markdown, in Sphinx's notation."""
    rows = []
    for is_table, group in groupby(lines, lambda line: line.startswith("|")):
        if not is_table:
            rows += group
            continue
        rows += [".. list-table::", "   :header-rows: 1", ""]
        for line in group:
            if not line.strip("|-: "):
                continue
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            rows += [f"   {' ' if k else '*'} - {cell}" for k, cell in enumerate(cells)]
    lines[:] = rows


def setup(app):
    """What Sphinx calls at its start."""
    app.connect("config-inited", lay_out)
    app.connect("autodoc-process-docstring", lay_tables)
    app.add_html_math_renderer("mathml", (write_math, None), (write_math, None))
