"""Tables of the ablations: from one row an answer to what figures show, without a model.

`t4s_helpers.lab.ablations.runs` makes the rows; `t4s_helpers.lab.ablations.figures` draws the tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...workbook.tables import read_rows

TABLES = Path(__file__).resolve().parents[3] / "results" / "ablations"
"""Where the tables of the shipped cells lie: what the command ``measure`` found."""

NOT_TRAINED = "not trained"

PAPER_RESOLUTION = {16: 67.5, 32: 71.4}
"""Section 4.6: average cIoU over the RES data sets without a refiner, by grid side, in %."""

PAPER_REFINER = (
    {"refiner": "None", "cIoU": 73.5, "Acc@0.5": 89.3, "s": 5.34},
    {"refiner": "SAM-B", "cIoU": 75.5, "Acc@0.5": 89.9, "s": 5.54},
    {"refiner": "SAM-L", "cIoU": 79.1, "Acc@0.5": 90.6, "s": 5.73},
    {"refiner": "SAM-H", "cIoU": 79.3, "Acc@0.5": 90.0, "s": 5.92},
)
"""Table 6: InternVL2-8B, refCOCO val, 16 x 16 descriptors."""

PAPER_FULL = {"tokens": 590, "s": 19.0}
"""Section 4.6: what full-length descriptors cost, roughly."""

LEVER_NAMES = {
    "rrle-16-box-res": "box, targets only", "rrle-16-plain-res": "fixed sentence",
    "rrle-16-box-res, expected IoU": "box, expected IoU",
    "rrle-16-box-all": "box, mix with questions",
    "scenes": "shipped adapter", "base": "base, no adapter",
}
"""How the rows of `t4s_helpers.lab.ablations.runs.measure_levers` are called in tables and figures."""


class AblationError(RuntimeError):
    """A training or table that cannot be used; the message names it and says what to do."""


def summarise(rows: Sequence[Mapping], by: Sequence[str] = ("set", "encoding", "grid", "refiner"),
              seed: int = 0) -> list[dict]:
    """Scores of the rows that agree in ``by``, with error bars; no model is needed.

    Args:
        rows: with ``id``, ``intersection``, ``union``, ``box_right`` and, where there are several,
            ``seed``; what else is there and is a number is averaged when it is in `_AVERAGED`.

    Returns:
        one row a case: ``by``, ``n`` requests, ``seeds``; ``ciou`` of all rows together with its
        bootstrap interval ``ciou_low``, ``ciou_high`` (95 %, requests drawn, all seeds of a request
        together); ``seed_low``, ``seed_high``, the lowest and highest cIoU of a single seed;
        ``giou``, ``acc50`` in [0, 1]; means of tokens and seconds.
    """
    from ...evaluation.metrics import bootstrap

    cases: dict[tuple, list[Mapping]] = {}
    for row in rows:
        cases.setdefault(tuple(row[name] for name in by), []).append(row)
    out = []
    for case, members in cases.items():
        inter, union = (np.array([m[k] for m in members], float) for k in ("intersection", "union"))
        spread = bootstrap(inter, union, groups=[m["id"] for m in members], seed=seed)
        single = _by_seed(members)
        iou = np.divide(inter, union, out=np.ones_like(inter), where=union > 0)
        out.append({**dict(zip(by, case)), "n": len({m["id"] for m in members}),
                    "seeds": len(single), "ciou": spread.value, "ciou_low": spread.low,
                    "ciou_high": spread.high, "seed_low": min(single), "seed_high": max(single),
                    "giou": float(iou.mean()),
                    **{name: float(np.mean([m[key] for m in members]))
                       for key, name in _AVERAGED.items() if key in members[0]}})
    return out


_AVERAGED = {"box_right": "acc50", "tokens": "tokens", "seconds": "seconds",
             "refine_seconds": "refine_seconds", "fallback": "fallback_rate"}


def _by_seed(members: Iterable[Mapping]) -> list[float]:
    sums: dict[Any, np.ndarray] = {}
    for m in members:
        at = m.get("seed", 0)
        sums[at] = sums.get(at, np.zeros(2)) + (m["intersection"], m["union"])
    return [float(i / u) if u else float("nan") for i, u in sums.values()]


def with_gaps(table: Sequence[Mapping], cases: Sequence[Mapping]) -> list[dict]:
    """The table with one row for every case asked for; a case without rows is `NOT_TRAINED`.

    >>> with_gaps([{"grid": 16, "ciou": 0.5}], [{"grid": 16}, {"grid": 24}])[1]
    {'grid': 24, 'status': 'not trained'}
    """
    out = []
    for case in cases:
        match = [row for row in table if all(row.get(k) == v for k, v in case.items())]
        out += [{**row, "status": "measured"} for row in match] or [{**case, "status": NOT_TRAINED}]
    return out


def size_groups(rows: Sequence[Mapping], edges: Sequence[float] = (0, 1, 4, 16, float("inf")),
                cells: int = 256) -> list[dict]:
    """Rows with ``size``: how many cells of a 16 x 16 grid the true mask would fill.

    Args:
        rows: with ``target`` and ``pixels`` (of the whole picture).
        edges: the groups are from one edge up to the next.

    >>> size_groups([{"target": 10, "pixels": 2560}, {"target": 100, "pixels": 2560}])[1]["size"]
    '4 to 16 cells'
    """
    names = [f"{low:g} to {high:g} cells" if np.isfinite(high) else f"{low:g} cells and more"
             for low, high in zip(edges, edges[1:])]
    place = [int(np.searchsorted(edges, cells * row["target"] / row["pixels"], "right")) - 1
             for row in rows]
    return [{**row, "size": names[k]} for row, k in zip(rows, place)]


def rule_gains(rows: Sequence[Mapping], seed: int = 0) -> list[dict]:
    """What the rule ``area`` gains over ``nearest``, target by target, on the grid alone.

    Args:
        rows: of `t4s_helpers.evaluation.evaluate.oracle_table` with both rules, and ``set``.

    Returns:
        one row a set and grid: ``gain`` in IoU, points, with its 95 % interval ``low``, ``high``; how
        many targets each rule loses altogether (``lost by nearest``, ``lost by area``); ``n``.
    """
    from ...evaluation.metrics import bootstrap

    alone: dict[tuple, dict[str, list[float]]] = {}
    for row in rows:
        if row["refiner"] == "none":
            case = alone.setdefault((row["set"], row["grid"]), {"area": [], "nearest": []})
            case[row["rule"]].append(row["iou"])
    out = []
    for (name, size), case in alone.items():
        area, nearest = np.array(case["area"]), np.array(case["nearest"])
        gain = bootstrap(100 * (area - nearest), seed=seed)
        out.append({"set": name, "grid": size, "gain": gain.value, "low": gain.low,
                    "high": gain.high, "lost by nearest": int((nearest == 0).sum()),
                    "lost by area": int((area == 0).sum()), "n": len(area)})
    return out


def at_every_grid(rows: Sequence[Mapping], sizes: Iterable[int] = ()) -> list[Mapping]:
    """The rows of refiners that were tried at every grid: at those given, else at all of the rows.

    >>> rows = [{"refiner": "a", "grid": 16}, {"refiner": "a", "grid": 24}, {"refiner": "b", "grid": 16}]
    >>> [row["refiner"] for row in at_every_grid(rows)]
    ['a', 'a']
    """
    grids: dict[str, set[int]] = {}
    for row in rows:
        grids.setdefault(row["refiner"], set()).add(row["grid"])
    wanted = set(sizes) or set().union(*grids.values())
    return [row for row in rows if grids[row["refiner"]] >= wanted]


def oracle_points(rows: Sequence[Mapping], costs: Sequence[Mapping], seed: int = 0) -> list[dict]:
    """Points of `frontier` for true text: every grid, encoding and refiner, its cost in tokens.

    Args:
        rows: of `t4s_helpers.evaluation.evaluate.oracle_table`, rule ``area``; further ways to refine count as
            far as they were tried at every grid.
        costs: one row a ``grid``, mean tokens in a column for each encoding.
    """
    from ...codec.encodings import SCHEMES

    area = at_every_grid([r for r in rows if r["rule"] == "area"])
    tokens = {row["grid"]: row for row in costs}
    return [{"name": f"{r['grid']} {scheme}", **r, "tokens": tokens[r["grid"]][scheme]}
            for r in summarise(area, ("grid", "refiner"), seed=seed) for scheme in SCHEMES]


def cost_points(scores: Sequence[Mapping], times: Sequence[Mapping]) -> list[dict]:
    """Points of `frontier` for trained models: ``seconds`` of an answer and its refinement, for every
    grid, encoding, refiner and decoding mode.

    Args:
        scores: `summarise` of the rows of `measure`, of one set.
        times: of `measure`.
    """
    points = []
    for row in scores:
        for mode in dict.fromkeys(t["decoding"] for t in times):
            mine = [t["seconds"] for t in times if (t["encoding"], t["grid"], t["decoding"])
                    == (row["encoding"], row["grid"], mode)]
            if mine:
                points.append({**row, "name": f"{row['grid']} {row['encoding']} {mode}",
                               "seconds": float(np.mean(mine)) + row["refine_seconds"]})
    return points


def frontier(points: Sequence[Mapping], cost: str) -> list[Mapping]:
    """The points that no other beats or equals in both cost and cIoU, the cheapest first.

    >>> [p["name"] for p in frontier([{"name": "a", "t": 1, "ciou": 0.5},
    ...     {"name": "b", "t": 2, "ciou": 0.4}, {"name": "c", "t": 3, "ciou": 0.6}], "t")]
    ['a', 'c']
    """
    kept: list[Mapping] = []
    for point in sorted(points, key=lambda p: (p[cost], -p["ciou"])):
        if not kept or point["ciou"] > kept[-1]["ciou"]:
            kept.append(point)
    return kept


def lever_table(rows: Sequence[Mapping]) -> list[dict]:
    """One row for each of `LEVER_NAMES`: what `summarise` says of its masks, and ``questions``, the share
    answered right, of ``n_questions``; what was not measured has neither and is `NOT_TRAINED`.

    >>> lever_table([{"lever": "base", "seed": 0, "id": "q", "score": 1.0}])[-1]["questions"]
    1.0
    """
    masks = {row["lever"]: row for row in summarise([r for r in rows if "union" in r], ("lever",))}
    table = []
    for lever, name in LEVER_NAMES.items():
        right = [row["score"] for row in rows if row["lever"] == lever and "score" in row]
        told = {"questions": float(np.mean(right)), "n_questions": len(right)} if right else {}
        status = "measured" if right or lever in masks else NOT_TRAINED
        table.append({"recipe": name, "lever": lever, "status": status, **masks.get(lever, {}), **told})
    return table


def every_run(tables: Mapping[str, Sequence[Mapping]], name: str, steps: int) -> list[dict]:
    """The table ``name`` and that of the same cells trained for longer, each row with its ``steps``.

    Args:
        tables: from `read_tables`.
        name: ``rows`` or ``logs``.
        steps: of training behind the table itself.
    """
    rows = (*tables.get(name, ()), *tables.get(f"longer_{name}", ()))
    return [{"steps": steps, **row} for row in rows]


def by_steps(rows: Sequence[Mapping], seed: int = 0) -> list[dict]:
    """What more steps of training change, for the cells that were trained for more.

    Only seeds that a cell has in every run count, so that runs differ in their steps alone.

    Args:
        rows: from `every_run`, of one data set.
        seed: of the bootstrap.

    Returns:
        what `summarise` says by ``encoding``, ``grid``, ``refiner`` and ``steps``.
    """
    runs: dict[tuple, dict[int, set]] = {}
    for row in rows:
        cell = runs.setdefault((row["encoding"], row["grid"]), {})
        cell.setdefault(row["steps"], set()).add(row["seed"])
    shared = {cell: set.intersection(*seeds.values()) for cell, seeds in runs.items() if len(seeds) > 1}
    kept = [row for row in rows if row["seed"] in shared.get((row["encoding"], row["grid"]), ())]
    return summarise(kept, ("encoding", "grid", "refiner", "steps"), seed=seed)


def read_tables(*folders: Path | str) -> dict[str, list[dict]]:
    """The tables that figures are made of, from the first folder that has each.

    Returns:
        name -> rows: ``rows``, ``times``, ``limits``, ``levers``, ``logs`` of the command ``measure``;
        ``oracle_rows`` and ``costs`` of notebook ``08_ablations``; ``longer_rows`` and
        ``longer_logs``, what ``measure`` wrote into folders ``steps-<n>`` in these, with ``steps``.
        What lies nowhere is left out.

    Raises:
        AblationError: no folder has any.
    """
    names = ("rows", "times", "limits", "levers", "logs", "oracle_rows", "costs")
    places = {name: Path(folder) / f"{name}.csv" for folder in reversed(folders) for name in names
              if (Path(folder) / f"{name}.csv").is_file()}
    if not places:
        raise AblationError(f"There is no table in {', '.join(map(str, folders))}; 'python -m "
                            "t4s_helpers.lab.ablations.runs measure' or notebook 08_ablations makes them.")
    tables = {name: read_rows(place) for name, place in places.items()}
    for name in ("rows", "logs"):
        longer = [place for folder in folders
                  for place in sorted(Path(folder).glob(f"steps-[0-9]*/{name}.csv"))]
        if longer:
            tables[f"longer_{name}"] = [
                {**row, "steps": int(place.parent.name.removeprefix("steps-"))}
                for place in longer for row in read_rows(place)]
    return tables
