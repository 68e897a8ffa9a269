"""The paper's ablations by command: train, measure, plot.

    python -m t4s_helpers.lab.ablations start   --out checkpoints/start --ship
    python -m t4s_helpers.lab.ablations train   --out checkpoints/ablations --ship
    python -m t4s_helpers.lab.ablations train   --out checkpoints/components --components --ship
    python -m t4s_helpers.lab.ablations measure --out results/ablations
    python -m t4s_helpers.lab.ablations plot    --tables results/ablations --out figures

A configuration whose adapter is missing is called not trained, in every table and figure. All commands
resume where they were interrupted.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from ...files import atomic_write
from . import design
from .tables import AblationError, read_tables

RECIPE = {
    "backbone": "name of the backbone", "samples": "conversations", "batch": "conversations in a pass",
    "accumulate": "passes in a step", "turns": "requests in a conversation",
    "mix": "of requests about scenes", "style": "of the answer's sentence", "lr": "learning rate",
    "rank": "of the LoRA matrices", "quantize": "nf4 or none",
    "data": "COCO folder or CSV file of your own; rendered scenes else",
    "data_seed": "of what is asked about which picture",
}
"""Fields of a `design.Recipe` that can be given, and what they say."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command."""
    args = _parser().parse_args(argv)
    try:
        {"start": _start, "train": _train, "measure": _measure, "plot": _plot}[args.command](args)
    except AblationError as error:
        raise SystemExit(str(error)) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m t4s_helpers.lab.ablations", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    recipe = argparse.ArgumentParser(add_help=False)
    add = recipe.add_argument
    add("--out", type=Path, required=True, help="folder for checkpoints, logs and adapters")
    add("--ship", nargs="?", const=design.SHIPPED, type=Path,
        help="export finished adapters here too (without a folder: into the package)")
    add("--base", type=Path, help="folder to load the backbone from, if not its own")
    for field in fields(design.Recipe):
        if field.name in RECIPE:
            add(f"--{field.name.replace('_', '-')}", type=type(field.default),
                help=f"{RECIPE[field.name]}; by default the recipe's")
    start = commands.add_parser("start", parents=[recipe], help="the adapter that the runs continue")
    start.add_argument("--adapter", default="scenes", help="name or folder of one that knows the task")
    add = commands.add_parser("train", parents=[recipe],
                              help="one adapter for each configuration and seed").add_argument
    add("--components", action="store_true", help="those of the recipe's components, from the bare base")
    add("--configs", nargs="+", metavar="CONFIG", help="only these, rrle-24 for example")
    add("--seeds", type=int, nargs="+", default=[0, 1])
    add("--start", help="folder of the adapter to continue, or 'none'; by default the one that ships "
        "for the embedded model, and none for the components and for other backbones")
    add = commands.add_parser("measure", help="score the adapters that are there").add_argument
    add("--adapters", type=Path, default=design.SHIPPED,
        help="folder of <configuration>-s<seed> folders; by default the package's")
    add("--out", type=Path, required=True, help="folder for the tables")
    add("--backbone", default="embedded")
    add("--refiner", default="mobile_sam")
    add("--data", help="folder with RefCOCO's files; rendered scenes else")
    add("--split", default="val", help="part of the data")
    add("-n", type=int, default=96, help="requests a split")
    add("--timed", type=int, default=8, help="requests answered one by one for seconds")
    add("--batch", type=int, default=32)
    add = commands.add_parser("plot", help="the figures from the tables, without a model").add_argument
    add("--tables", type=Path, required=True, nargs="+",
        help="folders of tables: results/ablations, results/08_ablations")
    add("--out", type=Path, required=True, help="folder for the PNG files")
    return parser


def _recipe(args: argparse.Namespace, usual: design.Recipe, start: str = "") -> design.Recipe:
    given = {name: getattr(args, name) for name in RECIPE if getattr(args, name) is not None}
    return replace(usual, **given, start=start)


def _start(args: argparse.Namespace) -> None:
    from .runs import train_start

    print(train_start(args.out, args.adapter, _recipe(args, design.START_RECIPE), base=args.base,
                      ship=args.ship))


def _train(args: argparse.Namespace) -> None:
    from .runs import train

    known = {config.name(): config for config in (*design.DESIGN, *design.COMPONENTS)}
    if unknown := set(args.configs or ()) - known.keys():
        raise AblationError(f"No configuration is called {min(unknown)!r}: choose {', '.join(known)}.")
    chosen = ([known[name] for name in args.configs] if args.configs else
              design.COMPONENTS if args.components else design.DESIGN)
    bare = set(chosen) <= set(design.COMPONENTS) or (args.backbone or "embedded") != "embedded"
    start = args.start or ("none" if bare else str(design.SHIPPED / design.START))
    if start != "none" and not (Path(start) / "adapter_config.json").is_file():
        raise AblationError(f"{start} holds no adapter to continue. 'python -m t4s_helpers.lab.ablations "
                            "start' makes one; with '--start none' all begin with the bare base.")
    recipe = (_recipe(args, design.BARE_BASE) if start == "none" else
              _recipe(args, design.CONTINUED, start))
    for folder in train(args.out, recipe, args.seeds, chosen, args.base, args.ship):
        print(folder)


def _measure(args: argparse.Namespace) -> None:
    from ...refine import load_refiner
    from . import measure as m
    from .runs import losses

    found = design.trained(args.adapters)
    if not any(found.values()):
        raise AblationError(f"No adapter of the ablation lies in {args.adapters}: train them with "
                            "'python -m t4s_helpers.lab.ablations train', or name their folder.")
    sets = m.refer_sets(args.data, args.n, args.split) if args.data else m.scene_sets(args.n)
    unfinished = args.out / "unfinished"
    rows, times = m.measure(found, sets, load_refiner(args.refiner), args.backbone, args.timed,
                            args.batch, keep=unfinished)
    tables = {"rows": rows, "times": times, "limits": m.measure_limits(sets), "logs": losses(found)}
    components = design.trained(args.adapters, design.COMPONENTS)
    if any(components.values()) and not args.data:  # they are of the recipe for scenes
        tables["components"] = m.measure_components(
            components, *m.component_sets(args.n), args.backbone, {"scenes": "scenes"}, args.batch)
    atomic_write({args.out / f"{name}.csv": table.to_csv(index=False).encode()
                  for name, table in tables.items()})
    shutil.rmtree(unfinished)
    print(design.coverage(found).to_string(index=False))


def _plot(args: argparse.Namespace) -> None:
    from .figures import plot_all

    for path in plot_all(read_tables(*args.tables), args.out, design.STEPS):
        print(path)


if __name__ == "__main__":
    main()
