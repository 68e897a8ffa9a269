"""Figures of the ablations, each from finished tables: no model, no picture.

`t4s_helpers.lab.ablations.tables` makes the tables. Notebook ``08_ablations`` and ``python -m
t4s_helpers.lab.ablations.runs plot`` call the same functions: ``plot_*`` draws into axes, the others make a
whole figure. Where a cell of the design was not trained, a hatched place says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from ...workbook import plotting
from .tables import (
    NOT_TRAINED, at_every_grid, by_steps, cost_points, every_run, frontier, lever_table,
    oracle_points, rule_gains, size_groups, summarise,
)

SIZES = (16, 24, 32)
"""Grid sides of the design, in cells."""


def _bounds(row: Mapping) -> tuple[float, float]:
    return 100 * row["ciou_low"], 100 * row["ciou_high"]


def plot_resolution(ax: Axes, table: Sequence[Mapping], sizes: Sequence[int] = SIZES,
                    title: str | None = None, best_possible: Sequence[Mapping] = ()) -> Axes:
    """cIoU by grid side, with and without a refiner (Figures 6 and 14).

    Args:
        table: rows of `summarise` of one data set and one encoding.
        best_possible: the same of the true masks through the same grids, drawn faint and dashed.

    Bars span the bootstrap interval, dots are single seeds. A grid without rows is hatched and
    says that it is not trained.
    """
    at = {size: k for k, size in enumerate(sizes)}
    refiners = _ways([*table, *best_possible])
    for rows, style in ((best_possible, dict(linestyle=":", alpha=0.55)), (table, {})):
        for k, way in enumerate(refiners):
            mine = sorted((r for r in rows if r["refiner"] == way and r["grid"] in at),
                          key=lambda r: r["grid"])
            # No line leads over a grid that was not measured.
            for n, part in enumerate(_neighbours(mine, at)):
                _line(ax, [at[r["grid"]] for r in part], part, plotting.label_colour(k + 2),
                      None if n else _way(way) + (", true text" if style else ""), **style)
    for size in set(sizes) - {r["grid"] for r in table}:
        _gap(ax, at[size])
    ax.set_xticks(range(len(sizes)), [f"{s}×{s}" for s in sizes])
    ax.set(xlim=(-0.5, len(sizes) - 0.5), ylim=(0, 100), ylabel="cIoU, %", xlabel="grid, cells")
    plotting.set_title(ax, title)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, fontsize="small", loc="best")
    return ax


def _neighbours(rows: Sequence[Mapping], at: Mapping[int, int]) -> list[list]:
    """The rows, in order, in runs without a grid missing between them."""
    runs: list[list] = []
    for row in rows:
        if runs and at[row["grid"]] == at[runs[-1][-1]["grid"]] + 1:
            runs[-1].append(row)
        else:
            runs.append([row])
    return runs


def _ways(rows: Iterable[Mapping]) -> list[str]:
    """The refiners of a table, the grid alone first."""
    return sorted({row["refiner"] for row in rows}, key=lambda way: (way != "none", way))


def _way(refiner: str) -> str:
    return "grid alone" if refiner == "none" else refiner


def _line(ax: Axes, x, rows, colour: str, label: str | None, **style) -> None:
    y = np.array([100 * r["ciou"] for r in rows])
    low, high = np.array([_bounds(r) for r in rows]).T
    ax.errorbar(x, y, [np.maximum(y - low, 0), np.maximum(high - y, 0)], color=colour, marker="o",
                markersize=5, capsize=3, elinewidth=1, label=label, **style)
    if not style:
        for place, row in zip(x, rows):
            _seeds(ax, place, row, colour)


def _seeds(ax: Axes, x: float, row: Mapping, colour: str, **style) -> None:
    """The best and the worst single seed of a case, where it has several."""
    if row["seeds"] > 1:
        ends = [100 * row["seed_low"], 100 * row["seed_high"]]
        ax.scatter([x + 0.07] * 2, ends, s=9, color=colour, marker="D", linewidths=0, **style)


def _gap(ax: Axes, at: float, width: float = 0.7, text: str = NOT_TRAINED) -> None:
    """A place where there could be a result and is none."""
    ax.axvspan(at - width / 2, at + width / 2, facecolor="#f0f0f0", edgecolor=plotting.FAINT,
               hatch="///", linewidth=0, alpha=0.6, zorder=0)
    ax.text(at, 0.5, text, rotation=90, ha="center", va="center", color=plotting.ALARM,
            transform=ax.get_xaxis_transform(), fontsize="small",
            bbox=dict(facecolor="white", edgecolor="none", pad=1.5))


def plot_encodings(axes: Sequence[Axes], table: Sequence[Mapping], times: Sequence[Mapping],
                   schemes: Sequence[str] = ("full", "irle", "rrle")) -> Sequence[Axes]:
    """Encoding against cIoU, tokens and seconds (Figure 8), three axes.

    Args:
        table: rows of `summarise` of one data set at one grid.
        times: rows of `measure` at the same grid; seconds by decoding mode.

    Bars of cIoU span the bootstrap interval, dots are single seeds; those of tokens and seconds go
    from the least to the most of a request.
    """
    for k, way in enumerate(_ways(table)):
        for n, scheme in enumerate(schemes):
            for row in table:
                if (row["refiner"], row["encoding"]) == (way, scheme):
                    x = n + 0.2 * (2 * k - 1)
                    _bar(axes[0], x, 100 * row["ciou"], plotting.label_colour(k + 2), _way(way),
                         _bounds(row))
                    _seeds(axes[0], x, row, plotting.INK, zorder=3)
                    # In words too: a bar of no height looks like none.
                    _value(axes[0], x, 100 * row["ciou"], 100 * row["ciou_high"])
    for n, scheme in enumerate(schemes):
        mine = [t for t in times if t["encoding"] == scheme]
        if mine:
            tokens = [t["tokens"] for t in mine if t["decoding"] == "fast"]
            _bar(axes[1], n, float(np.mean(tokens)), plotting.label_colour(4), "tokens",
                 (min(tokens), max(tokens)))
        for k, mode in enumerate(("plain", "fast")):
            seconds = [t["seconds"] for t in mine if t["decoding"] == mode]
            if seconds:
                _bar(axes[2], n + 0.2 * (2 * k - 1), float(np.mean(seconds)),
                     plotting.label_colour(k + 5), mode, (min(seconds), max(seconds)))
    there = {row["encoding"] for row in table}
    for ax, ylabel in zip(axes, ("cIoU, %", "tokens an answer", "seconds an answer")):
        for n, scheme in enumerate(schemes):
            if scheme not in there:
                _gap(ax, n)
        ax.set_xticks(range(len(schemes)), schemes)
        ax.set(xlim=(-0.55, len(schemes) - 0.45), ylabel=ylabel)
        if not ax.containers:  # no bar: a scale would pretend that there is something to read off
            ax.set_yticks([])
        _legend_once(ax)
    return axes


def plot_levers(axes: Sequence[Axes], table: Sequence[Mapping]) -> Sequence[Axes]:
    """The levers of the recipe: cIoU of masks, and the share of questions answered right; two axes.

    Args:
        table: rows of `lever_table` with ``recipe``, the name to show. Bars span the bootstrap
            interval, dots are single seeds. A lever without rows is hatched; one that was not asked
            for masks (the bare base) or for questions stands in the other axes alone.
    """
    for ax, key, ylabel in zip(axes, ("ciou", "questions"), ("cIoU, %", "questions right, %")):
        shown = [r for r in table if key in r or r.get("status") == NOT_TRAINED]
        for n, row in enumerate(shown):
            if key not in row:
                _gap(ax, n)
                continue
            value = 100 * row[key]
            ends = _bounds(row) if key == "ciou" else (value, value)
            _bar(ax, n, value, plotting.label_colour(2), row["recipe"], ends)
            if key == "ciou":
                _seeds(ax, n, row, plotting.INK, zorder=3)
            _value(ax, n, value, ends[1])
        ax.set_xticks(range(len(shown)), [r["recipe"].replace(", ", ",\n") for r in shown],
                      fontsize="small")
        ax.set(xlim=(-0.55, len(shown) - 0.45), ylim=(0, 100), ylabel=ylabel)
    return axes


def _bar(ax: Axes, x: float, value: float, colour: str, label: str, ends) -> None:
    ax.bar(x, value, 0.36, color=colour, label=label)
    away = [[max(value - ends[0], 0)], [max(ends[1] - value, 0)]]
    ax.errorbar([x], [value], away, fmt="none", ecolor=plotting.INK, elinewidth=0.9, capsize=2)


def _value(ax: Axes, x: float, value: float, top: float) -> None:
    ax.annotate(f"{value:.1f}", (x, top), (0, 3), textcoords="offset points", ha="center",
                fontsize="small")


def _legend_once(ax: Axes) -> None:
    handles = dict(zip(*reversed(ax.get_legend_handles_labels())))
    if len(handles) > 1:
        ax.legend(handles.values(), handles.keys(), frameon=False, fontsize="small")


def plot_frontier(ax: Axes, points: Sequence[Mapping], cost: str = "tokens",
                  title: str | None = None) -> Axes:
    """Cost against quality; what nothing beats in both is joined.

    Args:
        points: rows with ``name``, ``ciou``, the cost and ``refiner``.
        cost: name of the column on the axis, of positive numbers.
    """
    for k, way in enumerate(dict.fromkeys(p["refiner"] for p in points)):
        mine = [p for p in points if p["refiner"] == way]
        ax.scatter([p[cost] for p in mine], [100 * p["ciou"] for p in mine], s=34, zorder=3,
                   color=plotting.label_colour(k + 2), label=_way(way))
    best = frontier(points, cost)
    ax.plot([p[cost] for p in best], [100 * p["ciou"] for p in best], color=plotting.FAINT,
            linewidth=0.9, zorder=1)
    for k, p in enumerate(best):
        ax.annotate(p["name"], (p[cost], 100 * p["ciou"]), (5, -11), textcoords="offset points",
                    fontsize="x-small")
    ax.set(xscale="log", xlabel=cost, ylabel="cIoU, %")
    ax.margins(0.08, 0.1)
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.minorticks_off()
    plotting.set_title(ax, title)
    return ax


def plot_losses(ax: Axes, logs: Sequence[Mapping], cells: Sequence[tuple]) -> Axes:
    """Training loss by step, a colour for each cell and its first seed; shorter runs are faint.

    Args:
        logs: of `t4s_helpers.lab.ablations.runs.logs`, each row with ``steps``, those of its run.
        cells: ``(encoding, grid)`` of those to draw, in the order of their colours.
    """
    for k, cell in enumerate(cells):
        mine = [row for row in logs if (row["encoding"], row["grid"]) == cell]
        first = min((row["seed"] for row in mine), default=0)
        longest = max((row["steps"] for row in mine), default=0)
        for length in sorted({row["steps"] for row in mine}):
            points = [(row["step"], row["loss"]) for row in mine
                      if (row["steps"], row["seed"]) == (length, first)]
            ax.plot(*zip(*points), color=plotting.label_colour(k + 2), linewidth=1.3,
                    alpha=1.0 if length == longest else 0.35)
    ax.set(xlabel="step", ylabel="loss a token", ylim=(0, None))
    return ax


def plot_steps(ax: Axes, table: Sequence[Mapping], cells: Sequence[tuple]) -> Axes:
    """cIoU by steps of training, a colour for each cell; refined masks dashed.

    Args:
        table: rows of `by_steps`. Bars span the bootstrap interval.
        cells: ``(encoding, grid)`` of those to draw, in the order of their colours.
    """
    for k, (encoding, grid) in enumerate(cells):
        for n, way in enumerate(_ways(table)):
            mine = sorted((r for r in table if (r["encoding"], r["grid"], r["refiner"])
                           == (encoding, grid, way)), key=lambda r: r["steps"])
            if mine:
                _line(ax, [r["steps"] * 1.02**k for r in mine], mine, plotting.label_colour(k + 2),
                      None if n else f"{encoding}, {grid} × {grid}", linestyle="--" if n else "-")
    ticks = sorted({row["steps"] for row in table})
    ax.set(xscale="log", ylim=(0, 100), xlabel="steps (dashed: refined)", ylabel="cIoU, %")
    ax.set_xticks(ticks, [str(tick) for tick in ticks])
    ax.minorticks_off()
    return ax


def plot_nothing(ax: Axes, text: str = NOT_TRAINED) -> Axes:
    """Axes that say that there is nothing to show, and look like no result."""
    ax.set(xticks=[], yticks=[], xlim=(0, 1))
    _gap(ax, 0.5, 1.0, "")
    ax.text(0.5, 0.5, text, ha="center", va="center", transform=ax.transAxes, color=plotting.ALARM,
            bbox=dict(facecolor="white", edgecolor="none", pad=3))
    return ax


# --- whole figures -------------------------------------------------------------------------------


def _panels(names: Sequence[str], columns: int, width: float, height: float):
    return plotting.small_multiples(max(1, len(names)), columns=columns, width=width, height=height)


def _names(rows: Iterable[Mapping], key: str = "set") -> list[str]:
    return list(dict.fromkeys(row[key] for row in rows))


def ceilings(table: Sequence[Mapping], sizes: Sequence[int] = SIZES, rule: str = "area") -> Figure:
    """What true masks reach through the text, by grid side; one panel a set of pictures.

    Args:
        table: `summarise` of the rows of `t4s_helpers.evaluation.evaluate.oracle_table` by set, rule, grid and
            refiner. A way to refine that was tried at one grid alone is left out.
    """
    table = at_every_grid([r for r in table if r["rule"] == rule], sizes)
    fig, axes = _panels(_names(table), 2, 4.2, 3.3)
    for ax, name in zip(axes, _names(table)):
        plot_resolution(ax, [r for r in table if r["set"] == name], sizes, f"{name}, true text")
        ax.set_ylim(60, 100)
    return fig


def rules(gains: Sequence[Mapping]) -> Figure:
    """What the rule ``area`` gains over ``nearest``; rows of `rule_gains`."""
    fig, ax = pyplot.subplots(figsize=(6.4, 3.0))
    names, grids = _names(gains), _names(gains, "grid")
    at = {(g["set"], g["grid"]): g for g in gains}
    plotting.bars(ax, [f"{s} × {s}" for s in grids],
                  {name: [at[name, s]["gain"] for s in grids] for name in names},
                  {name: [(at[name, s]["low"], at[name, s]["high"]) for s in grids] for name in names},
                  ylabel="gain in IoU, points", title="area rule against nearest, grid alone")
    plotting.legend_beside(ax)
    return fig


def sizes_of_objects(table: Sequence[Mapping], sizes: Sequence[int] = SIZES) -> Figure:
    """The ceilings by size of the object, one panel a size.

    Args:
        table: `summarise` of the rows of `size_groups` by size, grid and refiner.
    """
    table = at_every_grid(table, sizes)
    order = sorted(_names(table, "size"), key=lambda text: float(text.split()[0]))
    fig, axes = _panels(order, 4, 2.7, 2.9)
    for ax, size in zip(axes, order):
        mine = [r for r in table if r["size"] == size]
        plot_resolution(ax, mine, sizes, f"{size} (n = {mine[0]['n']})")
    return fig


def cost_and_quality(points: Sequence[Mapping], cost: str, title: str) -> Figure:
    """`plot_frontier` with room for its legend; without points, a figure that says so."""
    fig, ax = pyplot.subplots(figsize=(7.2, 3.8))
    if points:
        plot_frontier(ax, points, cost, title)
        plotting.legend_beside(ax)
    else:
        plot_nothing(ax, "no adapter of the ablation is trained")
    return fig


def resolution(scores: Sequence[Mapping], limits: Sequence[Mapping] = (),
               sizes: Sequence[int] = SIZES) -> Figure:
    """cIoU of trained models by grid side (Figures 6 and 14), R-RLE, one panel a data set.

    Args:
        scores: `summarise` of the rows of `t4s_helpers.lab.ablations.runs.measure`.
        limits: the same of `t4s_helpers.lab.ablations.runs.measure_limits`: the ceilings on the same requests.
    """
    names = _names([*scores, *limits])
    fig, axes = _panels(names, 3, 4.2, 3.3)
    for ax, name in zip(axes, names or [NOT_TRAINED]):
        mine = [r for r in scores if r["set"] == name and r["encoding"] == "rrle"]
        plot_resolution(ax, mine, sizes, f"{name}, R-RLE", [r for r in limits if r["set"] == name])
    return fig


def encodings(scores: Sequence[Mapping], times: Sequence[Mapping], name: str, grid: int = 16) -> Figure:
    """Encoding against cIoU, tokens and seconds at one grid (Figure 8), of one data set."""
    fig, axes = pyplot.subplots(1, 3, figsize=(11, 3.3), layout="constrained")
    plot_encodings(axes, [r for r in scores if r["set"] == name and r["grid"] == grid],
                   [t for t in times if t["grid"] == grid])
    fig.suptitle(f"{name}, {grid} × {grid}", fontsize="medium")
    return fig


def levers(table: Sequence[Mapping]) -> Figure:
    """`plot_levers` of the rows of `t4s_helpers.lab.ablations.tables.lever_table`."""
    fig, axes = pyplot.subplots(1, 2, figsize=(10.5, 3.2), layout="constrained")
    plot_levers(axes, table)
    return fig


def steps(table: Sequence[Mapping], logs: Sequence[Mapping]) -> Figure:
    """What more steps of training change: losses and cIoU of the same cells; else, that it is not known.

    Args:
        table: rows of `by_steps`.
        logs: of `t4s_helpers.lab.ablations.runs.logs`, from `every_run`.
    """
    cells = list(dict.fromkeys((row["encoding"], row["grid"]) for row in table))
    fig, axes = pyplot.subplots(1, 2, figsize=(9.6, 3.4), layout="constrained")
    if cells:
        plot_losses(axes[0], logs, cells)
        plot_steps(axes[1], table, cells)
        plotting.legend_beside(axes[1])
    else:
        for ax in axes:
            plot_nothing(ax, "no cell is trained for longer")
    return fig


def plot_all(tables: Mapping[str, Sequence[Mapping]], out: Path | str, n_steps: int) -> list[Path]:
    """Every figure whose tables are there, as PNG files; no model.

    Args:
        tables: name -> rows as `t4s_helpers.lab.ablations.tables.read_tables` reads them.
        n_steps: of training behind the table ``rows``.

    Returns:
        the files, in the notebook's order.
    """
    matplotlib.use("agg")
    plotting.use_style()
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in {**_of_truth(tables), **_of_models(tables, n_steps)}.items():
        paths.append(out / f"{name}.png")
        figure.savefig(paths[-1], dpi=100)
        pyplot.close(figure)
    return paths


def _of_truth(tables) -> dict[str, Figure]:
    rows = tables.get("oracle_rows")
    if not rows:
        return {}
    grouped = size_groups([r for r in rows if r["rule"] == "area"])
    made = {"ceilings": ceilings(summarise(rows, ("set", "rule", "grid", "refiner"))),
            "rules": rules(rule_gains(rows)),
            "sizes": sizes_of_objects(summarise(grouped, ("size", "grid", "refiner")))}
    if tables.get("costs"):
        made["frontier"] = cost_and_quality(oracle_points(rows, tables["costs"]), "tokens",
                                            "true masks: every grid, encoding and refiner")
    return made


def _of_models(tables, n_steps: int) -> dict[str, Figure]:
    made = {}
    if "rows" in tables:
        scores, times = summarise(tables["rows"]), tables.get("times", [])
        limits = summarise(tables.get("limits", []), ("set", "grid", "refiner"))
        name = (_names(tables["rows"]) or [NOT_TRAINED])[0]
        made = {"resolution": resolution(scores, limits), "encodings": encodings(scores, times, name),
                "frontier_model": cost_and_quality(
                    cost_points([r for r in scores if r["set"] == name], times), "seconds",
                    "grid × encoding × decoding × refiner")}
        if "longer_rows" in tables:
            rows = [row for row in every_run(tables, "rows", n_steps) if row["set"] == name]
            made["steps"] = steps(by_steps(rows), every_run(tables, "logs", n_steps))
    if "levers" in tables:
        made["levers"] = levers(lever_table(tables["levers"]))
    return made
