"""The ablations by command: train, measure, or run, which does both.

    python -m t4s_helpers.lab.ablations run --out checkpoints/ablations --tables results/ablations
    python -m t4s_helpers.lab.ablations run --backbone llava-1.5-7b --data refcoco --root /data --dry-run

All of it resumes where it was interrupted. A configuration whose adapter is missing is called not
trained, in every table and figure.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from . import design, runs
from .design import AblationError, Recipe


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command."""
    args = _parser().parse_args(argv)
    try:
        if args.command != "measure":
            _train(args)
        if args.command != "train" and not args.dry_run:
            runs.write_tables(args.out, args.tables, args.root, args.source, args.refiner, args.n, args.timed)
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
    names = [one.name for one in fields(Recipe) if getattr(args, one.name) is not None]
    recipe = design.recipe_for(**{name: getattr(args, name) for name in names})
    known = {config.name(): config for config in design.configurations(recipe)}
    if unknown := set(args.configs or ()) - known.keys():
        raise AblationError(f"No configuration is called {min(unknown)!r}: choose {', '.join(known)}.")
    what = (args.out, recipe, args.seeds, [known[name] for name in args.configs or known], args.root,
            args.source)
    if args.dry_run:
        print(recipe, runs.plan(*what).to_string(index=False), sep="\n")
    else:
        runs.train(*what, args.ship)


if __name__ == "__main__":
    main()
