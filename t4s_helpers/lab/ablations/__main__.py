"""The ablations by command: train, measure, or run, which does both.

    python -m t4s_helpers.lab.ablations run --out checkpoints/ablations --tables results/ablations
    python -m t4s_helpers.lab.ablations run --backbone llava-1.5-7b --data refcoco --root /data --dry-run

All of it resumes where it was interrupted. A configuration whose adapter is missing is called not
trained, in every table and figure.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from ...files import atomic_write
from . import design
from .design import AblationError, Recipe


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command."""
    args = _parser().parse_args(argv)
    try:
        if args.command != "measure":
            _train(args)
        if args.command != "train" and not args.dry_run:
            measure(args.out, args.tables, args.root, args.source, args.refiner, args.n, args.timed)
    except AblationError as error:
        raise SystemExit(str(error)) from None


def _parser() -> argparse.ArgumentParser:
    about = f"the recipe, which all adapters share:\n\n{Recipe.__doc__}"
    parser = argparse.ArgumentParser(prog="python -m t4s_helpers.lab.ablations", description=__doc__,
                                     epilog=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("command", choices=("run", "train", "measure"))
    add("--out", type=Path, default=Path("checkpoints/ablations"), help="folder of the adapters")
    add("--tables", type=Path, default=design.TABLES, help="folder of the tables")
    add("--dry-run", action="store_true", help="say what would be trained, in which order")
    add("--root", type=Path, help="folder of the data sets")
    add("--source", help="folder or hub id to load the backbone from, if not its own")
    add("--configs", nargs="+", metavar="CONFIG", help="train only these, rrle-24 for example")
    add("--seeds", type=int, nargs="+", default=[*design.SEEDS])
    add("--ship", nargs="?", const=design.SHIPPED, type=Path,
        help="export the design's adapters with the first seed here too; without a folder, into the package")
    add("--refiner", default="mobile_sam")
    add("-n", type=int, default=96, help="held-out requests a set")
    add("--timed", type=int, default=8, help="requests answered one by one for seconds")
    for field in fields(Recipe):
        other = design.REAL.get(field.name, field.default)
        add(f"--{field.name.replace('_', '-')}", type=type(field.default),
            help=f"see below; by default {field.default!r}, with a backbone of the hub {other!r}")
    return parser


def _train(args: argparse.Namespace) -> None:
    from .runs import plan, train

    names = [one.name for one in fields(Recipe) if getattr(args, one.name) is not None]
    recipe = design.recipe_for(**{name: getattr(args, name) for name in names})
    known = {config.name(): config for config in design.configurations(recipe)}
    if unknown := set(args.configs or ()) - known.keys():
        raise AblationError(f"No configuration is called {min(unknown)!r}: choose {', '.join(known)}.")
    what = (args.out, recipe, args.seeds, [known[name] for name in args.configs or known], args.root,
            args.source)
    if args.dry_run:
        print(recipe, plan(*what).to_string(index=False), sep="\n")
    else:
        train(*what, args.ship)


def measure(out: Path | str, tables: Path | str, root: Path | str | None = None,
            source: Path | str | None = None, refiner: str = "mobile_sam", n: int = 96,
            timed: int = 8) -> None:
    """Write the tables of the adapters in a folder; a call after an interruption resumes.

    Args:
        out, root, source: what `t4s_helpers.lab.ablations.runs.train` was given.
        tables: folder for ``rows``, ``times``, ``limits``, ``levers``, ``curves``, ``logs`` as CSV files, and
            the recipe.
        refiner: a name for `t4s_helpers.refine.load_refiner`.
        n, timed: held-out requests a set, and those of them answered one by one for seconds.

    An `AblationError`: no adapter is finished.
    """
    from ...data.registry import load
    from ...refine import load_refiner
    from . import measure as m
    from .runs import logged

    recipe, tables = design.read_recipe(out), Path(tables)
    every = design.trained(out, design.configurations(recipe)) if recipe else {}
    if not recipe or not any(every.values()):
        raise AblationError(f"No adapter of the ablation lies in {out}: train them with "
                            "'python -m t4s_helpers.lab.ablations train --out FOLDER'.")
    sets = m.held_out(recipe.held_out or recipe.data, n, root)
    questions = load("scenes", "test", task="vqa", n=n, start=4_000) if recipe.data == "scenes" else []
    opening, keep = recipe.opening(source), tables / "unfinished"
    rows, times = m.measure({config: every[config] for config in design.DESIGN}, sets, load_refiner(refiner),
                            opening, timed, keep=keep)
    levers = m.measure_levers(every, design.levers(recipe), next(iter(sets.values())), questions, opening,
                              keep=keep)
    made = {"rows": rows, "times": times, "limits": m.measure_limits(sets), "levers": levers,
            "curves": logged(every, "scores.csv"), "logs": logged(every, "log.csv")}
    atomic_write({tables / f"{name}.csv": table.to_csv(index=False).encode() for name, table in made.items()}
                 | {tables / "recipe.json": (Path(out) / "recipe.json").read_bytes()})
    shutil.rmtree(keep, ignore_errors=True)


if __name__ == "__main__":
    main()
