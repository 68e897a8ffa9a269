"""Tables of the ablations: from one row an answer to what figures show, without a model.

`t4s_helpers.lab.ablations.measure` makes the rows, `t4s_helpers.lab.ablations.figures` draws the tables.
All tables are pandas frames.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd

from ...codec.encodings import PAPER_ENCODINGS
from ...evaluation.metrics import bootstrap
from ...files import ROOT

TABLES = ROOT / "results" / "ablations"
"""Where the tables of the shipped adapters lie: what the command ``measure`` found."""

NOT_TRAINED = "not trained"

PAPER_REFINER = pd.DataFrame([
    {"refiner": "None", "cIoU": 73.5, "Acc@0.5": 89.3, "s": 5.34},
    {"refiner": "SAM-B", "cIoU": 75.5, "Acc@0.5": 89.9, "s": 5.54},
    {"refiner": "SAM-L", "cIoU": 79.1, "Acc@0.5": 90.6, "s": 5.73},
    {"refiner": "SAM-H", "cIoU": 79.3, "Acc@0.5": 90.0, "s": 5.92},
])
"""Table 6: InternVL2-8B, refCOCO val, 16 x 16 descriptors."""

COMPONENT_NAMES = {
    "rrle-16-box-res": "box, targets only", "rrle-16-plain-res": "fixed sentence",
    "rrle-16-box-res, expected IoU": "box, expected IoU",
    "rrle-16-box-all": "box, mix with questions",
    "scenes": "shipped adapter", "base": "base, no adapter",
}
"""What tables and figures call the rows of `t4s_helpers.lab.ablations.measure.measure_components`."""

_AVERAGED = {"box_right": "acc50", "tokens": "tokens", "seconds": "seconds",
             "refine_seconds": "refine_seconds", "fallback": "fallback_rate"}


class AblationError(RuntimeError):
    """A training or table that cannot be used; the message names it and says what to do."""


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


def rule_gains(rows: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """What the rule ``area`` gains over ``nearest``, target by target, on the grid alone.

    Args:
        rows: of the oracle table with both rules, and ``set``.

    Returns:
        one row a set and grid: ``gain`` in IoU, points, with its 95 % interval ``low``, ``high``; how
        many targets each rule loses altogether (``lost by nearest``, ``lost by area``); ``n``.
    """
    out = []
    for (name, grid), case in rows[rows["refiner"] == "none"].groupby(["set", "grid"], sort=False):
        area, nearest = (case.loc[case["rule"] == rule, "iou"].to_numpy()
                         for rule in ("area", "nearest"))
        gain = bootstrap(100 * (area - nearest), seed=seed)
        out.append({"set": name, "grid": grid, "gain": gain.value, "low": gain.low,
                    "high": gain.high, "lost by nearest": int((nearest == 0).sum()),
                    "lost by area": int((area == 0).sum()), "n": len(area)})
    return pd.DataFrame(out)


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
        rows: of the oracle table, rule ``area``; further prompts of a refiner count as far as they were
            tried at every grid.
        costs: one row a ``grid``, mean tokens in a column for each encoding.
    """
    area = at_every_grid(rows[rows["rule"] == "area"])
    tokens = costs.melt("grid", list(PAPER_ENCODINGS), "encoding", "tokens")
    points = summarise(area, ("grid", "refiner"), seed).merge(tokens, on="grid")
    return points.assign(name=points["grid"].astype(str) + " " + points["encoding"])


def cost_points(scores: pd.DataFrame, times: pd.DataFrame) -> pd.DataFrame:
    """Points of `frontier` for trained models, by grid, encoding, refiner and decoding mode.

    Their ``seconds`` are those of an answer and of its refinement.

    Args:
        scores: `summarise` of the rows of one set.
        times: one row an answer and decoding mode.
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


def component_table(rows: pd.DataFrame) -> pd.DataFrame:
    """One row for each of `COMPONENT_NAMES`: scores of masks, and the share of questions answered right.

    The columns are those of `summarise`, ``questions`` and ``n_questions``. What was not measured has
    neither and is `NOT_TRAINED`.

    >>> one = pd.DataFrame([{"component": "base", "seed": 0, "id": "q", "score": 1.0}])
    >>> component_table(one)["questions"].tolist()[-1]
    1.0
    """
    asked = rows.dropna(subset=["score"]).groupby("component")["score"]
    questions = pd.DataFrame({"questions": asked.mean(), "n_questions": asked.size()})
    masks = summarise(rows.dropna(subset=["union"]) if "union" in rows else rows[:0], ("component",))
    names = pd.Series(COMPONENT_NAMES, name="recipe").rename_axis("component").reset_index()
    out = names.merge(masks, "left", on="component").merge(questions, "left", on="component")
    known = out[["ciou", "questions"]].notna().any(axis=1)
    return out.assign(status=np.where(known, "measured", NOT_TRAINED))


def every_run(tables: Mapping[str, pd.DataFrame], name: str, steps: int) -> pd.DataFrame:
    """The table ``name`` and that of the same configurations trained for longer, with ``steps``.

    Args:
        tables: from `read_tables`.
        name: ``rows`` or ``logs``.
        steps: of training behind the table itself.
    """
    parts = [tables[key] for key in (name, f"longer_{name}") if key in tables]
    return pd.concat(parts).fillna({"steps": steps}) if len(parts) > 1 else (
        parts[0].assign(steps=steps) if parts else pd.DataFrame())


def by_steps(rows: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """What more steps of training change, for the configurations that were trained for more.

    Only seeds that a configuration has in every run count, so that runs differ in their steps alone.

    Args:
        rows: from `every_run`, of one data set.
        seed: of the bootstrap.

    Returns:
        what `summarise` says by ``encoding``, ``grid``, ``refiner`` and ``steps``.
    """
    config = ["encoding", "grid"]
    lengths = rows.groupby(config)["steps"].transform("nunique")
    has = rows.groupby([*config, "seed"])["steps"].transform("nunique")
    return summarise(rows[(lengths > 1) & (has == lengths)], (*config, "refiner", "steps"), seed)


def read_tables(*folders: Path | str) -> dict[str, pd.DataFrame]:
    """The tables that figures are made of, each from the first folder that has it.

    Returns:
        name -> frame: ``rows``, ``times``, ``limits``, ``components``, ``logs`` of the command
        ``measure``; ``oracle_rows`` and ``costs`` of notebook ``08_ablations``; ``longer_rows`` and
        ``longer_logs``, what ``measure`` wrote into folders ``steps-<n>`` in these, with ``steps``.

    Raises:
        AblationError: no folder has any.
    """
    names = ("rows", "times", "limits", "components", "logs", "oracle_rows", "costs")
    tables = {name: _read(path) for folder in reversed(folders) for name in names
              if (path := Path(folder) / f"{name}.csv").is_file()}
    if not tables:
        raise AblationError(f"There is no table in {', '.join(map(str, folders))}: make them with 'python "
                            "-m t4s_helpers.lab.ablations measure' or notebook 08_ablations.")
    for name in ("rows", "logs"):
        longer = [_read(path).assign(steps=int(path.parent.name.removeprefix("steps-")))
                  for folder in folders for path in sorted(Path(folder).glob(f"steps-[0-9]*/{name}.csv"))]
        if longer:
            tables[f"longer_{name}"] = pd.concat(longer)
    return tables


def _read(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path, dtype={"id": str, "set": str})
    except pd.errors.EmptyDataError:
        return pd.DataFrame()
