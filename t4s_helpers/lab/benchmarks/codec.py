"""How long the codec takes on 16 x 16 grids: ``python -m t4s_helpers.lab.benchmarks.codec``.

Microseconds per grid, on one core, for grids as referring expressions give them: one object, an
ellipse of random place, size and tilt, under the area rule.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from functools import partial
from timeit import repeat

import numpy as np
import pandas as pd

from ...codec.encodings import ENCODINGS, get_encoding, wrap
from ...codec.grid import masks_to_grid
from ...codec.parsing import parse

LABELS = ["the small red umbrella left of the star"]


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
        grids.append(masks_to_grid([(u / long) ** 2 + (v / short) ** 2 <= 1]))
    return grids


def microseconds(function: Callable, arguments: Sequence, rounds: int) -> float:
    """Time of one call, averaged over the arguments; the best of some rounds."""
    best = min(repeat(lambda: [function(one) for one in arguments], number=1, repeat=rounds))
    return 1e6 * best / len(arguments)


def benchmark(n: int = 100, rounds: int = 20, seed: int = 0) -> pd.DataFrame:
    """One row an encoding: µs of encode, decode, parse and parse of a damaged text; characters."""
    grids, rows = typical_grids(n, seed), []
    for name in ENCODINGS:
        encoding = get_encoding(name)
        texts = [encoding.encode(grid, LABELS) for grid in grids]
        answers = [wrap(text, "Here it is.") for text in texts]
        read = partial(parse, labels=LABELS, encoding=encoding)
        # A run too many in the middle and no end tag: the repairing path.
        damaged = [a[:len(a) // 2] + "|dog *2|" + a[len(a) // 2:-6] for a in answers]
        rows.append({
            "encoding": name,
            "encode_us": microseconds(partial(encoding.encode, labels=LABELS), grids, rounds),
            "decode_us": microseconds(partial(encoding.decode, labels=LABELS), texts, rounds),
            "parse_us": microseconds(read, answers, rounds),
            "parse_damaged_us": microseconds(read, damaged, rounds),
            "characters": np.mean([len(text) for text in texts]),
        })
    return pd.DataFrame(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--grids", type=int, default=100, help="number of grids")
    parser.add_argument("--rounds", type=int, default=20, help="the best one counts")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(benchmark(options.grids, options.rounds, options.seed).round(1).to_string(index=False))
