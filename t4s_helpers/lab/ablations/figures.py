"""Figures of the ablations, each from finished tables: no model, no picture.

`t4s_helpers.lab.ablations.tables` makes the tables. Where a configuration was not trained, a hatched
place says so.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from ...codec.encodings import PAPER_ENCODINGS
from ...workbook import plotting
from . import tables as tb

GRID_SIZES = (16, 24, 32)
"""Grid sides of the design, in cells."""


def ceilings(table: pd.DataFrame, panel: str = "set", grid_sizes: Sequence[int] = GRID_SIZES) -> Figure:
    """What true masks reach through the text, by grid side; one panel a set, or a size of objects.

    Args:
        table: `summarise` of oracle rows by ``panel``, grid and refiner. Prompts that were tried at one
            grid alone are left out.
        panel: ``set``, or ``size`` of the rows of `size_groups`.
    """
    sized, groups = panel == "size", list(tb.at_every_grid(table, grid_sizes).groupby(panel, sort=False))
    groups.sort(key=lambda group: float(group[0].split()[0]) if sized else 0)
    shape = dict(columns=4, width=2.7, height=2.9) if sized else dict(columns=2, width=4.2, height=3.3)
    fig, axes = plotting.small_multiples(len(groups), **shape)
    for ax, (name, rows) in zip(axes, groups):
        by_grid(ax, rows, grid_sizes, f"{name} (n = {rows['n'].iloc[0]})")
        ax.set_ylim(0 if sized else 60, 100)
    return fig


def resolution(scores: pd.DataFrame, limits: pd.DataFrame,
               grid_sizes: Sequence[int] = GRID_SIZES) -> Figure:
    """cIoU of trained models by grid side (Figures 6 and 14), R-RLE, one panel a data set.

    Args:
        scores: `summarise` of the rows of `t4s_helpers.lab.ablations.measure.measure`.
        limits: the same of `t4s_helpers.lab.ablations.measure.measure_limits`: the ceilings on the
            same requests.
    """
    names = pd.concat([scores, limits])["set"].unique().tolist() or ["held-out requests"]
    fig, axes = plotting.small_multiples(len(names), columns=3, width=4.2, height=3.3)
    for ax, name in zip(axes, names):
        mine = scores[(scores["set"] == name) & (scores["encoding"] == "rrle")]
        by_grid(ax, mine, grid_sizes, f"{name}, R-RLE", limits[limits["set"] == name])
    return fig


def by_grid(ax: Axes, table: pd.DataFrame, grid_sizes: Sequence[int] = GRID_SIZES,
            title: str | None = None, best_possible: pd.DataFrame | None = None) -> Axes:
    """cIoU by grid side, with and without a refiner.

    Args:
        table: rows of `summarise` of one data set and one encoding.
        best_possible: the same of the true masks through the same grids, drawn faint and dotted.

    Bars span the bootstrap interval, dots are single seeds. A grid without rows is hatched and
    says that it is not trained.
    """
    best = table[:0] if best_possible is None else best_possible
    refiners = _refiners(pd.concat([table, best]))
    for rows, style in ((best, {"linestyle": ":", "alpha": 0.55}), (table, {})):
        for k, refiner in enumerate(refiners):
            mine = rows[rows["refiner"] == refiner].set_index("grid").reindex(grid_sizes)
            name = _name(refiner) + (", true text" if style else "")
            if mine["ciou"].notna().any():
                _line(ax, np.arange(len(grid_sizes)), mine, plotting.label_colour(k + 2), name, **style)
    for k, side in enumerate(grid_sizes):
        if side not in set(table["grid"]):
            _gap(ax, k)
    ax.set_xticks(range(len(grid_sizes)), [f"{side}×{side}" for side in grid_sizes])
    ax.set(xlim=(-0.5, len(grid_sizes) - 0.5), ylim=(0, 100), ylabel="cIoU, %", xlabel="grid, cells")
    ax.set_title(title or "")
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, fontsize="small", loc="best")
    return ax


def _refiners(rows: pd.DataFrame) -> list[str]:
    """The refiners of a table, the grid alone first."""
    return sorted(rows["refiner"].unique(), key=lambda name: (_name(name) == name, name))


def _name(refiner: str) -> str:
    return "grid alone" if refiner == "none" else refiner


def _line(ax: Axes, x: np.ndarray, rows: pd.DataFrame, colour: str, label: str, **style) -> None:
    """A line of cIoU with its intervals and, if it has no style, seeds; missing rows (NaN) leave a gap."""
    y, low, high = (100 * rows[name].to_numpy(float) for name in ("ciou", "ciou_low", "ciou_high"))
    ax.errorbar(x, y, np.maximum([y - low, high - y], 0), color=colour, marker="o", markersize=5,
                capsize=3, elinewidth=1, label=label, **style)
    several = (rows["seeds"] > 1).to_numpy() & (not style)
    for end in ("seed_low", "seed_high"):
        ax.scatter(x[several] + 0.07, 100 * rows[end].to_numpy(float)[several], s=9, color=colour,
                   marker="D", linewidths=0)


def _gap(ax: Axes, at: float, width: float = 0.7) -> None:
    """A place where there could be a result and is none."""
    ax.axvspan(at - width / 2, at + width / 2, facecolor="#f0f0f0", edgecolor=plotting.FAINT,
               hatch="///", linewidth=0, alpha=0.6, zorder=0)
    ax.text(at, 0.5, tb.NOT_TRAINED, rotation=90 if width < 1 else 0, ha="center", va="center",
            color=plotting.ALARM, transform=ax.get_xaxis_transform(), fontsize="small",
            bbox=dict(facecolor="white", edgecolor="none", pad=1.5))


def encodings(scores: pd.DataFrame, times: pd.DataFrame, name: str, grid: int = 16) -> Figure:
    """Encoding against cIoU, tokens and seconds at one grid (Figure 8), of one data set.

    Bars of cIoU span the bootstrap interval, dots are single seeds; those of tokens and seconds go
    from the least to the most of a request.
    """
    table = scores[(scores["set"] == name) & (scores["grid"] == grid)]
    times = times[times["grid"] == grid] if len(times) else pd.DataFrame(columns=["encoding", "decoding"])
    by_mode = {mode: times[times["decoding"] == mode] for mode in ("plain", "fast")}
    masks = {_name(refiner): _percent(table[table["refiner"] == refiner].set_index("encoding"))
             for refiner in _refiners(table)}
    panels = {"cIoU, %": masks, "tokens per answer": {"tokens": _spread(by_mode["fast"], "tokens")},
              "seconds per answer": {mode: _spread(mine, "seconds") for mode, mine in by_mode.items()}}
    fig, axes = pyplot.subplots(1, 3, figsize=(11, 3.3), layout="constrained")
    for ax, (ylabel, series) in zip(axes, panels.items()):
        _grouped_bars(ax, PAPER_ENCODINGS, series, ylabel, set(PAPER_ENCODINGS) - set(table["encoding"]))
    fig.suptitle(f"{name}, {grid} × {grid}", fontsize="medium")
    return fig


def _percent(rows: pd.DataFrame) -> pd.DataFrame:
    """cIoU of rows of `summarise` with its ends, and those of single seeds where there are several, in %."""
    names = {"ciou": "value", "ciou_low": "low", "ciou_high": "high"}
    seeds = ["seed_low", "seed_high"]
    found = rows.reindex(columns=[*names, *seeds, "seeds"]).astype(float)
    found[seeds] = found[seeds].where(found["seeds"] > 1)
    return 100 * found.drop(columns="seeds").rename(columns=names)


def _spread(times: pd.DataFrame, what: str) -> pd.DataFrame:
    """Mean, least and most of a column by encoding."""
    if times.empty:
        return pd.DataFrame(columns=["value", "low", "high"], dtype=float)
    return times.groupby("encoding")[what].agg(value="mean", low="min", high="max")


def _grouped_bars(ax: Axes, groups: Sequence[str], series: Mapping[str, pd.DataFrame], ylabel: str,
                  gaps: Collection[str]) -> None:
    """Bars of ``value`` from ``low`` to ``high``, a dot for a seed; groups without a result are hatched."""
    series = {name: rows.reindex(groups) for name, rows in series.items() if len(rows)}
    if series:
        plotting.bars(ax, groups, {name: rows["value"].tolist() for name, rows in series.items()},
                      {name: list(zip(rows["low"], rows["high"])) for name, rows in series.items()
                       if "low" in rows})
    else:  # a scale would pretend that there is something to read off
        ax.set(xticks=range(len(groups)), xticklabels=[name.replace(" ", "\n") for name in groups], yticks=[])
    drawn = [bars for bars in ax.containers if isinstance(bars, BarContainer)]
    for bars, rows in zip(drawn, series.values(), strict=True):
        x = np.array([bar.get_center()[0] for bar in bars])
        for end in rows.columns.intersection(["seed_low", "seed_high"]):
            ax.scatter(x + 0.05, rows[end], s=9, color=plotting.INK, marker="D", linewidths=0, zorder=3)
    for n, group in enumerate(groups):
        if group in gaps:
            _gap(ax, n)
    ax.set(xlim=(-0.55, len(groups) - 0.45), ylabel=ylabel)


def levers(table: pd.DataFrame) -> Figure:
    """What the levers of the recipe are worth: cIoU of masks, and the share of questions answered right.

    Args:
        table: of `t4s_helpers.lab.ablations.tables.lever_table`. One that was not trained is hatched; one
            that was not asked for masks (the bare base) or for questions stands in the other panel
            alone.
    """
    missing, table = table["status"] == tb.NOT_TRAINED, table.set_index("lever")
    panels = {"cIoU, %": _percent(table),
              "questions right, %": 100 * table[["questions"]].set_axis(["value"], axis=1)}
    fig, axes = pyplot.subplots(1, 2, figsize=(10.5, 3.2), layout="constrained")
    for ax, (ylabel, rows) in zip(axes, panels.items()):
        names = table.index[rows["value"].notna() | missing.to_numpy()]
        known = {"": rows.dropna(subset="value")}
        _grouped_bars(ax, list(names), known, ylabel, set(table.index[missing]))
        ax.set(ylim=(0, 100))
    return fig


def learning_curves(curves: pd.DataFrame) -> Figure:
    """Held-out cIoU against masks seen and against answer tokens seen, a line a configuration.

    Args:
        curves: one row a point: ``config``, ``seed``, ``step``, ``masks``, ``tokens``, ``ciou``. Lines are
            means of the seeds, bands go from the lowest to the highest; without rows the figure says so.
    """
    fig, axes = pyplot.subplots(1, 2, figsize=(9.6, 3.4), layout="constrained", sharey=True)
    for ax, seen in zip(axes, ("masks", "tokens")):
        if curves.empty:
            nothing(ax)
            continue
        for k, (config, points) in enumerate(curves.groupby("config", sort=False)):
            steps = points.groupby("step")
            x, y = steps[seen].mean(), 100 * steps["ciou"].agg(["mean", "min", "max"])
            ax.plot(x, y["mean"], color=plotting.label_colour(k + 2), marker="o", markersize=3, label=config)
            ax.fill_between(x, y["min"], y["max"], color=plotting.label_colour(k + 2), alpha=0.2, linewidth=0)
        ax.set(xlabel={"masks": "masks seen", "tokens": "answer tokens seen"}[seen], ylim=(0, None))
    if len(curves):
        axes[0].set_ylabel("cIoU without a refiner, %")
        plotting.legend_beside(axes[1])
    return fig


def cost_and_quality(points: pd.DataFrame, cost: str, title: str) -> Figure:
    """Cost against quality; what nothing beats in both is joined. Without points, it says so.

    Args:
        points: with ``name``, ``ciou``, the cost and ``refiner``.
        cost: name of the column on the axis, of positive numbers.
    """
    fig, ax = pyplot.subplots(figsize=(7.2, 3.8), layout="constrained")
    if points.empty:
        nothing(ax)
        return fig
    for k, (refiner, mine) in enumerate(points.groupby("refiner", sort=False)):
        ax.scatter(mine[cost], 100 * mine["ciou"], s=34, zorder=3, color=plotting.label_colour(k + 2),
                   label=_name(refiner))
    best = tb.frontier(points, cost)
    ax.plot(best[cost], 100 * best["ciou"], color=plotting.FAINT, linewidth=0.9, zorder=1)
    for x, y, name in zip(best[cost], 100 * best["ciou"], best["name"]):
        ax.annotate(name, (x, y), (5, -11), textcoords="offset points", fontsize="x-small")
    ax.set(xscale="log", xlabel=cost, ylabel="cIoU, %", title=title)
    ax.margins(0.08, 0.1)
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.minorticks_off()
    plotting.legend_beside(ax)
    return fig


def nothing(ax: Axes) -> None:
    """Let axes say that there is nothing to show, and look like no result."""
    ax.set(xticks=[], yticks=[], xlim=(0, 1))
    _gap(ax, 0.5, 1.0)
