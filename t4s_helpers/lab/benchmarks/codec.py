"""How long the codec takes on 16x16 grids: ``python -m t4s_helpers.lab.benchmarks.codec [--out FILE]``.

Prints microseconds per grid, on one core, for grids as referring expressions give them: one
object, an ellipse of random place, size and tilt, under the area rule.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter

import numpy as np

from ...codec.grid import masks_to_grid
from ...codec.parsing import parse
from ...codec.encodings import SCHEMES, decode, encode, wrap

LABEL = "the small red umbrella left of the star"
SIZE = 16


def typical_grids(n: int, seed: int = 0) -> list[np.ndarray]:
    """``n`` label grids ``(16, 16)``, int32, of one elliptic object each."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:128, :128] + 0.5
    grids = []
    for _ in range(n):
        cy, cx = rng.uniform(24, 104, 2)
        long, short = rng.uniform(16, 48), rng.uniform(8, 24)
        tilt = rng.uniform(0, math.pi)
        u = (x - cx) * math.cos(tilt) + (y - cy) * math.sin(tilt)
        v = (y - cy) * math.cos(tilt) - (x - cx) * math.sin(tilt)
        grids.append(masks_to_grid([(u / long) ** 2 + (v / short) ** 2 <= 1], SIZE))
    return grids


def microseconds(function: Callable, arguments: Sequence, repeat: int) -> float:
    """Time of one call, averaged over the arguments; the best of ``repeat`` rounds."""
    rounds = []
    for _ in range(repeat):
        start = perf_counter()
        for argument in arguments:
            function(argument)
        rounds.append((perf_counter() - start) / len(arguments))
    return 1e6 * min(rounds)


def benchmark(n: int = 100, repeat: int = 20, seed: int = 0) -> list[dict[str, str | float]]:
    """One row per scheme: µs of encode, decode, parse and parse of a damaged text; characters."""
    grids = typical_grids(n, seed)
    rows = []
    for scheme in SCHEMES:
        texts = [encode(grid, [LABEL], scheme) for grid in grids]
        answers = [wrap(text, "Here it is.") for text in texts]
        # A run too many in the middle and no end tag: the repairing path.
        damaged = [a[: len(a) // 2] + "|dog *2|" + a[len(a) // 2 : -6] for a in answers]
        encode_us = microseconds(lambda g: encode(g, [LABEL], scheme), grids, repeat)
        parse_us = microseconds(lambda t: parse(t, [LABEL], SIZE, scheme), answers, repeat)
        rows.append({
            "scheme": scheme,
            "encode_us": encode_us,
            "decode_us": microseconds(lambda t: decode(t, [LABEL], SIZE, scheme), texts, repeat),
            "parse_us": parse_us,
            "encode_parse_us": encode_us + parse_us,
            "parse_damaged_us": microseconds(
                lambda t: parse(t, [LABEL], SIZE, scheme), damaged, repeat
            ),
            "characters": sum(map(len, texts)) / n,
        })
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--grids", type=int, default=100, help="number of grids")
    parser.add_argument("--repeat", type=int, default=20, help="rounds; the best one counts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="also write the rows to this JSON file")
    options = parser.parse_args(arguments)
    rows = benchmark(options.grids, options.repeat, options.seed)
    print(" ".join(f"{name:>16}" for name in rows[0]))
    for row in rows:
        print(" ".join(f"{v:>16.1f}" if isinstance(v, float) else f"{v:>16}"
                       for v in row.values()))
    if options.out:
        options.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
