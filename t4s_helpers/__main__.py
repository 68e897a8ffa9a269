"""The command line of the package: ``python -m t4s_helpers``, or ``t4s`` for short.

    t4s ask photo.jpg "the red umbrella" --out mask.png --overlay overlay.png
    t4s train --backbone llava-1.5-7b --data my.csv --out checkpoints/mine
    t4s evaluate run runs/res -n 500          t4s evaluate tables runs
    t4s data                                  t4s data refcoco --root /data
    t4s weights mobile_sam
    t4s notebooks --only 04 --set STEPS=50

``t4s COMMAND --help`` lists a command's options.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

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
    add("--refiner", default="mobile_sam", help="mobile_sam (default), sam_vit_h, ..., or none")
    add("--out", type=Path, metavar="FILE.png", help="write the mask; several expressions are numbered")
    add("--overlay", type=Path, metavar="FILE.png", help="write the picture with the mask tinted")
    add("--json", action="store_true", help="print everything as JSON")
    add("--seed", type=int, default=0, help="of the refiner's points")


def _model_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--backbone", default="embedded", help="a name of the table in the README")
    add("--adapter", help="a folder, or the name of one that ships; the embedded model takes 'scenes'")
    add("--source", type=Path, help="folder of the backbone, if not its own")
    add("--quantize", choices=("nf4",), help="4-bit weights")


def _ask(args: argparse.Namespace) -> int:
    from .text4seg import Text4Seg

    model = Text4Seg.from_pretrained(
        args.backbone, adapter=args.adapter, refiner=args.refiner, encoding=args.encoding,
        grid_size=args.grid_size, quantize=args.quantize, source=args.source)
    found = model.segment(args.image, args.expressions, seed=args.seed, progress=False)
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


def _numbered(path: Path, k: int, n: int) -> Path:
    """
    >>> _numbered(Path("mask.png"), 1, 3).name, _numbered(Path("mask.png"), 0, 1).name
    ('mask-2.png', 'mask.png')
    """
    return path.with_name(f"{path.stem}-{k + 1}{path.suffix}") if n > 1 else path


# --- data, weights -------------------------------------------------------------------------------


def _data_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("name", nargs="?", help="a data set whose files are to be checked; without one, all are listed")
    add("--root", help="its folder")
    add("--split", help="by default the one that papers report first")
    add("--counts", choices=("strict", "warn", "off"), default="strict",
        help="what to do where the numbers of images and samples are not the published ones")
    add("--bad", choices=("refuse", "exclude"), default="refuse", help="unusable samples")


def _data(args: argparse.Namespace) -> None:
    from .data.registry import listing, load

    if args.name is None:
        print(listing())
        return
    data = load(args.name, args.split, args.root, counts=args.counts, bad=args.bad)
    print(data)
    for row in data.exclusions():
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


COMMANDS: dict[str, tuple[str, Callable, Callable]] = {
    "ask": ("segment what expressions name in a picture", _ask_options, _ask),
    "data": ("list the data sets, or check the files of one", _data_options, _data),
    "weights": ("list or fetch the checkpoints of the refiners", _weights_options, _weights),
}

if __name__ == "__main__":
    sys.exit(main())
