"""Tables of the ablations: from one row an answer to what figures show, without a model.

`t4s_helpers.lab.ablations.measure` makes the rows, `t4s_helpers.lab.ablations.figures` draws the tables.
All tables are pandas frames.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd

from ...codec.encodings import PAPER_ENCODINGS
from ...evaluation.metrics import Interval, bootstrap
from .design import BASE, EXPECTED, NOT_TRAINED, Recipe, levers

PAPER_REFINER = pd.DataFrame([
    {"refiner": "None", "cIoU": 73.5, "Acc@0.5": 89.3, "s": 5.34},
    {"refiner": "SAM-B", "cIoU": 75.5, "Acc@0.5": 89.9, "s": 5.54},
    {"refiner": "SAM-L", "cIoU": 79.1, "Acc@0.5": 90.6, "s": 5.73},
    {"refiner": "SAM-H", "cIoU": 79.3, "Acc@0.5": 90.0, "s": 5.92},
])
"""Table 6: InternVL2-8B, refCOCO val, 16 x 16 descriptors."""

_AVERAGED = {"box_right": "acc50", "tokens": "tokens", "seconds": "seconds",
             "refine_seconds": "refine_seconds", "fallback": "fallback_rate"}


def summarise(rows: pd.DataFrame, by: Sequence[str] = ("set", "encoding", "grid", "refiner"),
              seed: int = 0) -> pd.DataFrame:
    """Scores of the rows that agree in ``by``, with error bars; no model is needed.

    Args:
        rows: with ``id``, ``intersection``, ``union``, ``box_right`` and, where there are several,
            ``seed``.
        by: columns that tell the cases apart.
        seed: of the bootstrap.

    Returns:
        one row a case: ``by``, ``n`` requests, ``seeds``; ``ciou`` of all rows together with its
        bootstrap interval ``ciou_low``, ``ciou_high`` (95 %, requests drawn, all seeds of a request
        together); ``seed_low``, ``seed_high``, the lowest and highest cIoU of a single seed;
        ``giou``, ``acc50`` in [0, 1]; means of tokens and seconds where the rows have them.
    """
    if rows.empty:
        return pd.DataFrame(columns=[*by, "ciou"])
    out = [{**dict(zip(by, case)), **_scores(members, seed)}
           for case, members in rows.groupby(list(by), sort=False)]
    return pd.DataFrame(out)


def _scores(members: pd.DataFrame, seed: int) -> dict[str, float]:
    inter, union = (members[name].to_numpy(float) for name in ("intersection", "union"))
    spread = bootstrap(inter, union, groups=members["id"].tolist(), seed=seed)
    seeds = members["seed"] if "seed" in members else pd.Series(0, members.index)
    sums = members[["intersection", "union"]].groupby(seeds).sum()
    single = sums["intersection"] / sums["union"].where(sums["union"] > 0)
    iou = np.divide(inter, union, out=np.ones_like(inter), where=union > 0)
    means = {name: float(members[key].astype(float).mean()) for key, name in _AVERAGED.items()
             if key in members and members[key].notna().all()}
    return {"n": members["id"].nunique(), "seeds": len(single), "ciou": spread.value,
            "ciou_low": spread.low, "ciou_high": spread.high, "seed_low": single.min(),
            "seed_high": single.max(), "giou": float(iou.mean()), **means}


def with_gaps(table: pd.DataFrame, cases: pd.DataFrame) -> pd.DataFrame:
    """The table with a row for every case asked for; a case without rows is `NOT_TRAINED`.

    >>> table = pd.DataFrame([{"grid": 16, "ciou": 0.5}])
    >>> with_gaps(table, pd.DataFrame({"grid": [16, 24]}))["status"].tolist()
    ['measured', 'not trained']
    """
    out = cases.merge(table, "left", on=list(cases.columns), indicator="status")
    return out.assign(status=np.where(out["status"] == "both", "measured", NOT_TRAINED))


def size_groups(rows: pd.DataFrame, edges: Sequence[float] = (0, 1, 4, 16, np.inf)) -> pd.DataFrame:
    """Rows with ``size``: how many cells of a 16 x 16 grid the true mask would fill.

    Args:
        rows: with ``target`` and ``pixels`` (of the whole picture).
        edges: each group goes from one edge up to the next.

    >>> size_groups(pd.DataFrame({"target": [10, 100], "pixels": 2560}))["size"].tolist()
    ['1 to 4 cells', '4 to 16 cells']
    """
    names = [f"{low:g} to {high:g} cells" if np.isfinite(high) else f"{low:g} cells and more"
             for low, high in pairwise(edges)]
    filled = 256 * rows["target"] / rows["pixels"]
    return rows.assign(size=pd.cut(filled, list(edges), right=False, labels=names).astype(str))


def at_every_grid(rows: pd.DataFrame, grid_sizes: Iterable[int] = ()) -> pd.DataFrame:
    """The rows of refiners that were tried at every grid: those given, or all that the rows have.

    >>> rows = pd.DataFrame({"refiner": ["a", "a", "b"], "grid": [16, 24, 16]})
    >>> at_every_grid(rows)["refiner"].tolist()
    ['a', 'a']
    """
    wanted = set(grid_sizes) or set(rows["grid"])
    tried = rows.groupby("refiner")["grid"].agg(set)
    return rows[rows["refiner"].isin(tried.index[[grids >= wanted for grids in tried]])]


def oracle_points(rows: pd.DataFrame, costs: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Points of `frontier` for true text: every grid, encoding and refiner, and its cost in tokens.

    Args:
        rows: of the oracle table; further prompts of a refiner count if they were tried at every grid.
        costs: one row a ``grid``, mean tokens in a column for each encoding.
    """
    tokens = costs.melt("grid", list(PAPER_ENCODINGS), "encoding", "tokens")
    points = summarise(at_every_grid(rows), ("grid", "refiner"), seed).merge(tokens, on="grid")
    return points.assign(name=points["grid"].astype(str) + " " + points["encoding"])


def cost_points(scores: pd.DataFrame, times: pd.DataFrame) -> pd.DataFrame:
    """Points of `frontier` for trained models, by grid, encoding, refiner and decoding mode.

    Their ``seconds`` are those of an answer and of its refinement. ``scores`` is `summarise` of the rows of
    one set, ``times`` has one row an answer and decoding mode.
    """
    if scores.empty or times.empty:
        return pd.DataFrame()
    cases = ["encoding", "grid", "decoding"]
    spent = times.groupby(cases, sort=False, as_index=False)["seconds"].mean()
    points = scores.merge(spent, on=cases[:2])
    names = points["grid"].astype(str) + " " + points["encoding"] + " " + points["decoding"]
    return points.assign(name=names, seconds=points["seconds"] + points["refine_seconds"])


def frontier(points: pd.DataFrame, cost: str) -> pd.DataFrame:
    """The points that no other beats or equals in both cost and cIoU, the cheapest first.

    >>> points = pd.DataFrame({"name": list("abc"), "t": [1, 2, 3], "ciou": [0.5, 0.4, 0.6]})
    >>> frontier(points, "t")["name"].tolist()
    ['a', 'c']
    """
    ordered = points.sort_values([cost, "ciou"], ascending=[True, False], kind="stable")
    before = ordered["ciou"].cummax().shift(fill_value=-np.inf)
    return ordered[ordered["ciou"] > before]


def lever_table(rows: pd.DataFrame, recipe: Recipe | None = None) -> pd.DataFrame:
    """One row for each lever of a recipe: scores of masks, and the share of questions answered right.

    The columns are those of `summarise`, ``questions`` and ``n_questions``. What was not measured has
    neither and is `NOT_TRAINED`.
    """
    rows = rows.reindex(columns=rows.columns.union(["lever", "score", "union"]))
    asked = rows.dropna(subset=["score"]).groupby("lever")["score"]
    questions = pd.DataFrame({"questions": asked.mean(), "n_questions": asked.size()})
    masks = summarise(rows.dropna(subset=["union"]), ("lever",))
    names = pd.DataFrame({"lever": [*levers(recipe or Recipe()), EXPECTED, BASE]})
    out = names.merge(masks, "left", on="lever").merge(questions, "left", on="lever")
    known = out[["ciou", "questions"]].notna().any(axis=1)
    return out.assign(status=np.where(known, "measured", NOT_TRAINED))


# --- what it costs to learn ------------------------------------------------------------------------


def learning(curves: pd.DataFrame, level: float = 0.3) -> pd.DataFrame:
    """What an encoding costs to learn, from its learning curves, the mean of all seeds.

    Args:
        curves: one row a point: ``config``, ``seed``, ``step``, ``masks``, ``tokens``, ``ciou``.
        level: of cIoU, to be reached.

    Returns:
        one row a configuration: ``masks`` and ``tokens`` seen at the end, and the ``ciou`` there;
        ``masks to level`` and ``tokens to level`` at the first point that reaches it (NaN: none does).
    """
    out = []
    for config, points in curves.groupby("config", sort=False) if len(curves) else ():
        mean = points.groupby("step")[["masks", "tokens", "ciou"]].mean()
        reached = mean[mean["ciou"] >= level]
        first = reached.iloc[0] if len(reached) else mean.iloc[-1] * np.nan
        out.append({"config": config, "seeds": points["seed"].nunique(), **mean.iloc[-1],
                    "masks to level": first["masks"], "tokens to level": first["tokens"]})
    return pd.DataFrame(out)


# --- sentences about tables ------------------------------------------------------------------------


def difference(rows: pd.DataFrame, by: str, one, other, seed: int = 0) -> Interval:
    """By how much the cIoU of one case lies above another's on the requests that both answered.

    ``by`` is the column that tells the cases apart. The 95 % interval is that of a bootstrap that draws
    requests, all seeds of training together.
    """
    sums = [rows[rows[by] == case].groupby("id")[["intersection", "union"]].sum() for case in (one, other)]
    both = pd.concat(sums, axis=1, join="inner").to_numpy(float)
    drawn = np.random.default_rng(seed).integers(len(both), size=(1000, len(both)))
    totals = np.concatenate([both.sum(0)[None], both[drawn].sum(1)])
    gaps = totals[:, 0] / totals[:, 1] - totals[:, 2] / totals[:, 3]
    return Interval(float(gaps[0]), *map(float, np.quantile(gaps[1:], [0.025, 0.975])))


def difference_in_words(rows: pd.DataFrame, by: str, one, other) -> str:
    """`difference` as a sentence; that a case is not trained is one as well.

    Cases are told apart where the interval excludes zero and every seed of training agrees.
    """
    missing = [str(case) for case in (one, other) if not len(rows) or case not in set(rows[by])]
    if missing:
        return f"{one} against {other}: **{NOT_TRAINED}** ({', '.join(missing)})."
    gap = difference(rows, by, one, other)
    seeds = set.intersection(*(set(rows.loc[rows[by] == case, "seed"]) for case in (one, other)))
    each = [difference(rows[rows["seed"] == seed], by, one, other).value for seed in sorted(seeds)]
    sure = gap.low * gap.high > 0 and all(value * gap.value > 0 for value in each)
    said = f"{one} is {'above' if gap.value > 0 else 'below'} {other}" if sure else (
        f"{one} and {other} cannot be told apart here")
    by_seed = ", ".join(f"{100 * value:+.1f}" for value in each)
    return (f"{said}: {100 * gap.value:+.1f} points of cIoU [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}]; "
            f"seed by seed {by_seed or 'none in common'}.")


# --- files -----------------------------------------------------------------------------------------


def read_tables(folder: Path | str) -> dict[str, pd.DataFrame]:
    """The tables that the command ``measure`` wrote into a folder; one that is not there is empty."""
    names = ("rows", "times", "limits", "levers", "curves", "logs")
    return {name: _read(Path(folder) / f"{name}.csv") for name in names}


def _read(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path, dtype={"id": str, "set": str})
    except (FileNotFoundError, pd.errors.EmptyDataError):
        return pd.DataFrame()
