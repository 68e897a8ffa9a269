"""The command line of the package: ``python -m t4s_helpers``, or ``t4s`` for short.

    t4s ask photo.jpg "the red umbrella" --out mask.png --overlay overlay.png
    t4s train --backbone llava-1.5-7b --data my.csv --out checkpoints/mine
    t4s train --backbone llava-1.5-7b --recipe res --root /data --dry-run
    t4s evaluate run runs/res -n 500          t4s evaluate tables runs
    t4s data                                  t4s data refcoco --root /data
    t4s weights mobile_sam                    t4s backbones
    t4s notebooks --only 04 --set STEPS=50

``t4s COMMAND --help`` lists a command's options.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .files import atomic_write

if TYPE_CHECKING:
    from .text4seg import Text4Seg

MALFORMED, NO_TARGET = 3, 4
"""Exit statuses of ``ask``: an answer that breaks the format; a well-formed one that finds nothing."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status: 0 when done, 1 for an error, 2 for wrong usage."""
    parser = argparse.ArgumentParser(prog="t4s", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (told, options, run) in COMMANDS.items():
        command = commands.add_parser(name, help=told, description=told)
        options(command)
        command.set_defaults(run=run)
    args = parser.parse_args(arguments)
    try:
        return args.run(args) or 0
    except (ValueError, RuntimeError, OSError) as error:
        if type(error).__module__.startswith("t4s_helpers") or isinstance(error, FileExistsError):
            print(f"t4s {args.command}: {error}", file=sys.stderr)
            return 1
        raise


# --- ask -----------------------------------------------------------------------------------------


def _ask_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("image", type=Path, metavar="IMAGE", help="an image file")
    add("expressions", nargs="+", metavar="EXPRESSION", help="what to segment; each is a request")
    _model_options(parser)
    add("--encoding", default="rrle", help="what the adapter was trained to write")
    add("--grid-size", type=int, default=16, metavar="N")
    add("--refiner", default="mobile_sam", help="mobile_sam (default), sam_vit_h, sam2.1_hiera_tiny, none")
    add("--out", type=Path, metavar="FILE.png", help="write the mask; several expressions are numbered")
    add("--overlay", type=Path, metavar="FILE.png", help="write the picture with the mask tinted")
    add("--json", action="store_true", help="print everything as JSON")
    add("--seed", type=int, default=0, help="of the refiner's points")


def _model_options(parser: argparse._ActionsContainer) -> None:
    add = parser.add_argument
    add("--backbone", default="embedded", help="a name that `t4s backbones` lists")
    add("--adapter", help="a folder, or the name of one that ships, or none; the embedded model takes "
        "'scenes'")
    add("--source", type=Path, help="folder of the backbone, if not its own")
    add("--quantize", choices=("nf4",), help="4-bit weights")


def _ask(args: argparse.Namespace) -> int:
    found = _model(args).segment(args.image, args.expressions, seed=args.seed, progress=False)
    for k, one in enumerate(found):
        if args.out:
            one.save(_numbered(args.out, k, len(found)))
        if args.overlay:
            one.save_overlay(_numbered(args.overlay, k, len(found)))
    if args.json:
        print(json.dumps([one.to_dict() for one in found], indent=1, ensure_ascii=False))
    else:
        print("\n".join(one.summary() for one in found))
    if any(one.malformed for one in found):
        return MALFORMED
    return NO_TARGET if any(one.no_target for one in found) else 0


def _model(args: argparse.Namespace) -> Text4Seg:
    from .text4seg import Text4Seg

    return Text4Seg.from_pretrained(
        args.backbone, adapter=args.adapter, refiner=args.refiner, encoding=args.encoding,
        grid_size=args.grid_size, quantize=args.quantize, source=args.source)


def _numbered(path: Path, k: int, n: int) -> Path:
    """The file for result number ``k`` of ``n``.

    >>> _numbered(Path("mask.png"), 1, 3).name, _numbered(Path("mask.png"), 0, 1).name
    ('mask-2.png', 'mask.png')
    """
    return path.with_name(f"{path.stem}-{k + 1}{path.suffix}") if n > 1 else path


# --- train ---------------------------------------------------------------------------------------


def _train_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--backbone", default="embedded", help="a name that `t4s backbones` lists")
    add("--source", type=Path, help="folder of the backbone, if not its own")
    add("--quantize", choices=("nf4", "none"), default="nf4",
        help="'none' trains on the unquantized base: five times faster on a CPU")
    add("--out", type=Path, default=Path("checkpoints/adapter"), help="checkpoints, log.csv, adapter")
    add("--start", help="folder of an adapter to train further; 'none' for fresh matrices")
    add("--export", type=Path, help="folder for the adapter as it ships")
    add("--dry-run", action="store_true", help="say what would be read and what it takes, and stop")
    add("--merge", type=Path, metavar="FOLDER", help="do not train: add the adapter in --start to the "
        "weights of its backbone and save the sum here")
    add = parser.add_argument_group("data").add_argument
    add("--recipe", default="", help="a training of the paper: res, gres, semantic or mix")
    add("--data", default="scenes", help="scenes, photos, names of data sets with commas between them, or "
        "your own CSV file or COCO folder")
    add("--weights", type=_numbers, default=(), metavar="N,N", help="passes over each of them in an epoch")
    _reading_options(add, "exclude")
    add("--samples", type=int, help="conversations in all; 32000 about scenes by default")
    add("--epochs", type=int, help="by default the recipe's, or one")
    add("--turns", type=int, default=4, help="requests in a conversation about a scene")
    add("--mix", default="all", help="of requests about scenes: res, gres, all, instances, ores, multi, "
        "correction, or beyond, which has them all but classes and questions")
    add("--task", choices=("semantic", "instances", "multi", "ores"), help="of your own COCO folder: "
        "classes (default), single objects with numbers, or several classes by name, also absent ones; of "
        "your own CSV file: ores, by references")
    add("--encoding", default="rrle")
    add("--grid-size", type=int, default=16, metavar="N")
    add("--style", choices=("plain", "box"), help="of the sentence before the descriptor; plain in the "
        "paper's recipes, otherwise box")
    add = parser.add_argument_group("optimization").add_argument
    add("--batch", type=int, help="conversations in a pass: 4, and 32 for the embedded model")
    add("--accumulate", type=int, help="passes in a step: 1, and in a recipe what makes 128 conversations")
    add("--lr", type=float, help="by default the paper's, and a larger one for the embedded model")
    add("--optim", default="adamw_torch", help="'paged_adamw_8bit' saves memory on a GPU")
    add("--log-every", type=int, default=10, metavar="STEPS")
    add("--seed", type=int, default=0)
    add("--rank", type=int, default=64, help="of the LoRA matrices; alpha is twice it")
    add("--dropout", type=float, default=0.05, help="of the LoRA matrices' input")


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(map(float, text.split(",")))


def _train(args: argparse.Namespace) -> None:
    if args.merge:
        from .model.adapters import merge_adapter

        print(merge_adapter(args.backbone, args.start, args.merge, args.source))
        return
    from .model.recipes import Plan, describe, train

    options = {name: value for name, value in vars(args).items() if name in Plan.__annotations__}
    options["quantize"] = None if args.quantize == "none" else args.quantize
    plan = Plan(**options, reading=_reading(args))
    mixture = plan.mixture()
    if os.environ.get("RANK", "0") == "0":  # of several processes one tells
        print(describe(plan, mixture))
    if not args.dry_run:
        print(train(plan, mixture))


# --- evaluate ------------------------------------------------------------------------------------


def _evaluate_options(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="what", required=True, metavar="run|tables|export")
    run = commands.add_parser("run", help="answer and score samples; resumes where it was stopped")
    run.add_argument("out", type=Path, help="the run's folder")
    run.add_argument("--restart", action="store_true", help="forget the rows that are there")
    add = run.add_argument_group("data").add_argument
    add("--data", default="scenes", help="scenes, photos, a data set's name, or your own file")
    add("--split")
    _reading_options(add, "exclude")
    add("--task", help="of scenes: res, gres, rec, semantic, instances, ores, multi, correction, vqa or "
        "conversation; of your own COCO folder: semantic, instances or multi; of your own CSV file: ores")
    add("-n", type=int, help="only so many samples")
    add("--start", type=int, default=0, help="from this one on")
    add("--palette", default="seen", help="of scenes")
    model = run.add_argument_group("model")
    _model_options(model)
    model.add_argument("--refiner", default="none", help="none, mobile_sam, ...")
    asked = run.add_argument_group("how it is asked and read")
    add = asked.add_mutually_exclusive_group().add_argument
    add("--protocol", choices=("strict", "official", "official-2024"), default="strict",
        help="'official' asks, reads, refines and scores masks as the paper's code does")
    add("--reading", choices=("strict", "lenient"), dest="protocol", help="'lenient' is strict, but counts a "
        "label that differs from one asked label in case, punctuation or article alone")
    add = asked.add_argument
    add("--mode", choices=("plain", "constrained", "fast"), help="by default fast; official: plain")
    add("--expected-iou", type=int, default=0, metavar="DRAWS",
        help="draw so many answers and take the grid with the best expected IoU")
    add("--batch", type=int, default=8)
    add("--encoding", default="rrle")
    add("--grid-size", type=int, default=16, metavar="N")
    add("--max-new-tokens", type=int)
    add("--semantic", choices=("open", "partial", "conditioned"), default="conditioned")
    add("--vqa", choices=("exact", "vqav2", "vqav2-official", "yes-no"), default="")
    add("--suffix", default="", help="added to questions")
    add("--history", choices=("own", "plain", "box"), default="own", help="earlier answers of a talk: the "
        "model's (default), or the true ones with a plain sentence or with a box")
    add("--seed", type=int, default=0)
    tables = commands.add_parser("tables", help="make the tables again from rows, without a model")
    tables.add_argument("out", type=Path, help="a run's folder, or one that holds runs")
    export = commands.add_parser("export", help="write a run's masks for other tools, without a model")
    export.add_argument("out", type=Path, metavar="run", help="a run's folder")
    export.add_argument("--form", choices=("coco",), default="coco", help="COCO's results file (default)")
    export.add_argument("--out", type=Path, dest="file", metavar="FILE", help="by default coco.json there")
    for one in (run, tables):
        add = one.add_argument_group("conventions of mIoU").add_argument
        add("--background", choices=("class", "not_averaged", "ignored"))
        add("--absent", choices=("skip", "skip_no_truth", "zero", "one"))


def _evaluate(args: argparse.Namespace) -> None:
    from .evaluation.store import Processes

    if args.what == "export":
        from .evaluation.export import export_coco

        print(export_coco(args.out, args.file))
        return
    if args.what == "run":
        _evaluate_run(args)
        processes = Processes()
        processes.leave()
        if processes.rank:  # one process prints
            return
    _print_tables(args)


def _evaluate_run(args: argparse.Namespace) -> None:
    from .data.registry import load
    from .evaluation.conventions import PROTOCOLS
    from .evaluation.evaluate import evaluate

    protocol = PROTOCOLS[args.protocol]
    options = _reading(args) | ({"palette": args.palette} if args.data == "scenes" else {})
    samples = load(args.data, args.split, args.root, n=args.n, start=args.start, **options)
    model = _model(args)
    evaluate(model.backbone, samples, model.encoding, model.refiner, folder=args.out, data=args.data,
             batch=args.batch, seed=args.seed, semantic=args.semantic, background=args.background,
             absent=args.absent, vqa=args.vqa, suffix=args.suffix, restart=args.restart,
             expected_iou=args.expected_iou, protocol=protocol, history=args.history,
             mode=args.mode or protocol.mode or "fast", max_new_tokens=args.max_new_tokens)


def _print_tables(args: argparse.Namespace) -> None:
    import pandas as pd

    from .evaluation.evaluate import run_tables

    scores, excluded = (pd.DataFrame(rows) for rows in
                        run_tables(args.out, args.background, args.absent))
    atomic_write({args.out / "scores.csv": scores.to_csv(index=False).encode()})
    print(scores.round(4).to_string(index=False, na_rep=""))
    if len(excluded):
        print(excluded.to_string(index=False))


# --- data, weights, backbones, notebooks ---------------------------------------------------------


def _data_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("name", nargs="?", help="a data set whose files are to be checked; without one, all are listed")
    add("--split", help="by default the one that papers report first")
    _reading_options(add, "refuse")


def _reading_options(add: Callable, bad: str) -> None:
    """How data sets are read, for every command that does."""
    add("--root", type=Path, help="folder of the data sets, if not T4S_DATA")
    add("--counts", choices=("strict", "warn", "off"), default="strict",
        help="what to do where the numbers of images and samples are not the published ones")
    add("--bad", choices=("refuse", "exclude"), default=bad, help="unusable samples")
    add("--image-folder", type=Path, help="of your own annotations, if the photos do not lie beside them")
    add("--no-exif", action="store_true", help="your own annotations lie on the pictures as they are "
        "stored, not as their EXIF data turns them")


def _reading(args: argparse.Namespace) -> dict[str, Any]:
    own = {"image_folder": args.image_folder, "apply_exif": False if args.no_exif else None,
           "task": getattr(args, "task", None)}
    return {"counts": args.counts, "bad": args.bad, **{k: v for k, v in own.items() if v is not None}}


def _data(args: argparse.Namespace) -> None:
    from .data.registry import listing, load

    if args.name is None:
        print(listing())
        return
    data = load(args.name, args.split, args.root, **_reading(args))
    print(f"{len(data)} samples of {args.name}" if isinstance(data, list) else data)
    for row in getattr(data, "exclusions", list)():
        print(f"  excluded: {row['n']} x {row['reason']}, first {row['first']}")
    if len(data):
        print(f"  first: {data[0]}")


def _weights_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", help="checkpoints to fetch; without one, all are listed")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _weights(args: argparse.Namespace) -> None:
    from .model.weights import fetch, listing

    if not args.names:
        print(listing())
    for name in args.names:
        print(fetch(name, progress=not args.quiet))


def _backbones(args: argparse.Namespace) -> None:
    from .model.backbones import listing

    print(listing())


def _notebooks_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--profile", default="cpu", help="which notebooks/params/<profile>.yaml to use (cpu)")
    add("--only", nargs="+", action="extend", default=[], metavar="NN",
        help="only these notebooks, by number or name: --only 04 05, --only A1")
    add("--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE", dest="settings",
        help="change a parameter of the notebooks that declare it")
    add("--appendix", action="store_true", help="also the appendix notebooks A1_*, A2_*, ...")
    add("--solutions", action="store_true", help="the answers to the exercises, instead of the notebooks")
    add("--resume", action="store_true",
        help="keep results that are up to date: same notebook, parameters, package and inputs")
    add("--readme", action="store_true",
        help="run nothing: bring tables, minutes and links in README and notebooks up to date")


def _notebooks(args: argparse.Namespace) -> int:
    if args.readme:
        from .workbook.readme import update_readme

        print("\n".join(map(str, update_readme())) or "All is up to date.")
        return 0
    from .workbook.runner import run_series

    return run_series(profile=args.profile, only=args.only, settings=args.settings,
                      appendix=args.appendix, solutions=args.solutions, resume=args.resume)


COMMANDS: dict[str, tuple[str, Callable, Callable]] = {
    "ask": ("segment what expressions name in a picture", _ask_options, _ask),
    "train": ("fine-tune a backbone with QLoRA", _train_options, _train),
    "evaluate": ("answer and score samples, or make tables of finished runs", _evaluate_options,
                 _evaluate),
    "backbones": ("list the backbones, the memory that each needs, and what fits here", lambda _: None,
                  _backbones),
    "data": ("list the data sets, or check the files of one", _data_options, _data),
    "notebooks": ("run the workbook's notebooks in order", _notebooks_options, _notebooks),
    "weights": ("list or fetch the checkpoints of the refiners", _weights_options, _weights),
}

if __name__ == "__main__":
    sys.exit(main())
