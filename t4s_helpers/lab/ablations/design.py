"""The design of the ablations: which adapters are compared, by which recipe, and which are there.

The paper's three ablations ask about resolution, encoding and refiner (Figures 6, 8, 14; Tables 6, 8).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ...files import ASSETS
from .tables import NOT_TRAINED

SHIPPED = ASSETS / "adapters" / "ablations"
"""Where the trained adapters ship: one folder ``<encoding>-<grid>-s<seed>`` each."""

SEEDS = (0, 1)


@dataclass(frozen=True)
class RunConfig:
    """What differs between the adapters of an ablation.

    How an answer is written; and, if need be, the sentence before it or the mix of requests.
    """

    encoding: str
    grid_size: int
    style: str = ""
    mix: str = ""

    def name(self, seed: int | None = None) -> str:
        """Of the configuration, or of its adapter with one seed.

        >>> RunConfig("rrle", 16).name(), RunConfig("rrle", 16, mix="all").name(1)
        ('rrle-16', 'rrle-16-all-s1')
        """
        own = [self.encoding, str(self.grid_size), self.style, self.mix,
               "" if seed is None else f"s{seed}"]
        return "-".join(part for part in own if part)


DESIGN = tuple(RunConfig(*one) for one in (
    ("full", 16), ("irle", 16), ("rrle", 16), ("rrle", 24), ("rrle", 32)))
"""The three encodings at 16 x 16, and R-RLE at the three resolutions."""

COMPONENTS = tuple(RunConfig("rrle", 16, *one) for one in (
    ("box", "res"), ("plain", "res"), ("box", "all")))
"""Components of the recipe: an answer states a box first, against a fixed sentence; and nothing but
targets is asked for, against the mix with questions. Trained from the bare base."""

Trained = Mapping[RunConfig, Mapping[int, Path]]
"""Configuration -> seed -> folder of the adapter."""


def trained(folder: Path | str = SHIPPED, design: Sequence[RunConfig] = DESIGN) -> Trained:
    """The adapters that are there.

    Args:
        folder: of adapters as they ship, or the one that `train` was given.

    Returns:
        an entry for every configuration of the design; an empty one: not trained.
    """
    found: dict[RunConfig, dict[int, Path]] = {config: {} for config in design}
    for config in design:
        for place in sorted(Path(folder).glob(f"{config.name()}-s*")):
            seed = place.name.rpartition("-s")[2]
            adapter = place / "adapter" if finished(place) else place
            if seed.isdigit() and (adapter / "adapter_config.json").is_file():
                found[config][int(seed)] = adapter
    return found


def coverage(found: Mapping[RunConfig, Mapping[int, Any]]) -> pd.DataFrame:
    """What is trained and what is not, one row a configuration.

    >>> coverage({RunConfig("rrle", 16): {0: "x", 1: "y"}, RunConfig("full", 16): {}})["adapters"].tolist()
    ['seed 0, seed 1', 'not trained']
    """
    return pd.DataFrame([{
        "encoding": config.encoding, "grid": config.grid_size,
        "adapters": ", ".join(f"seed {seed}" for seed in sorted(seeds)) or NOT_TRAINED,
    } for config, seeds in found.items()])


def finished(folder: Path) -> bool:
    """Whether the training in ``folder`` wrote all files of its adapter."""
    return (folder / "adapter" / "finished").is_file()


@dataclass(frozen=True)
class Recipe:
    """What all adapters of one ablation share. It is written beside them and must not change.

    One request in a conversation: three full-length answers side by side make such long rows that
    attention over them takes ten times as long as over three R-RLE ones. Rank 32, half of the adapter
    ``scenes``: a dozen adapters ship. ``start``: folder of the adapter that all of them continue, or
    "" for the bare base.
    """

    backbone: str = "embedded"
    samples: int = 5120
    batch: int = 16
    accumulate: int = 1
    turns: int = 1
    mix: str = "res"
    style: str = "box"
    lr: float = 5e-4
    rank: int = 32
    quantize: str = "none"
    data: str = ""
    data_seed: int = 0
    start: str = ""


BARE_BASE = Recipe()
"""For adapters that begin with the bare base."""

START, START_RECIPE = "start", Recipe(samples=7680)
"""Name of the adapter that the runs of `DESIGN` continue, and how it is trained."""

CONTINUED = Recipe(samples=2048, lr=3e-4)
"""How the runs that continue it are trained; a bare base takes more, as `Recipe` has it."""

STEPS = CONTINUED.samples // (CONTINUED.batch * CONTINUED.accumulate)
"""Optimizer steps of the adapters that ship."""
