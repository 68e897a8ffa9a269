"""The design of the ablations: what is compared, by which recipe, and which adapters are there.

The paper's three ablations ask about resolution, encoding and refiner (Figures 6, 8, 14; Tables 6, 8).
Here the field is level: every adapter starts from the base, reads the same samples in the same order,
and stops when its answers have used up the same number of tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ...codec.encodings import Encoding, get_encoding
from ...files import ASSETS, ROOT, write_json

SHIPPED = ASSETS / "adapters" / "ablations"
"""Where the adapters of `DESIGN` with the first seed ship; of the others, tables alone."""

TABLES = ROOT / "results" / "ablations"
"""Where the tables of all adapters lie."""

SEEDS = (0, 1)

NOT_TRAINED = "not trained"


class AblationError(RuntimeError):
    """A training or table that cannot be used; the message names it and says what to do."""


@dataclass(frozen=True)
class RunConfig:
    """What differs between the adapters of an ablation: how an answer is written.

    The levers, empty for what the recipe says: ``style`` of the sentence before the descriptor, ``mix`` of
    requests about scenes, and ``label``, a word that stands in the descriptor for the expression.
    """

    encoding: str
    grid_size: int = 16
    style: str = ""
    mix: str = ""
    label: str = ""

    def name(self, seed: int | None = None) -> str:
        """Of the configuration, or of its adapter with one seed.

        >>> RunConfig("rrle").name(), RunConfig("rrle", mix="all").name(1)
        ('rrle-16', 'rrle-16-all-s1')
        """
        own = [self.encoding, str(self.grid_size), self.style, self.mix, self.label,
               "" if seed is None else f"s{seed}"]
        return "-".join(part for part in own if part)

    @property
    def text(self) -> Encoding:
        """The encoding with its grid."""
        return get_encoding(self.encoding, self.grid_size)


DESIGN = tuple(RunConfig(*one) for one in (
    ("rrle", 16), ("irle", 16), ("full", 16), ("rrle", 24), ("rrle", 32), ("boxwise", 12)))
"""The three encodings at 16 x 16, R-RLE at the three resolutions, and beyond the paper 12 x 12 cells within
the target's box, in the order of training."""

TAG, EXPECTED, BASE = "target", "expected IoU", "base, no adapter"
"""The short label of one lever; and rows of levers without a training of their own: answers chosen among
draws, and the bare base."""


@dataclass(frozen=True)
class Recipe:
    """What all adapters of one ablation share. It is written beside them and must not change.

    Attributes:
        backbone, quantize: what is fine-tuned; ``quantize`` is ``"nf4"`` or ``"none"``.
        tokens: of answers, ends of answers included, after which a run ends.
        samples: conversations that are drawn up; a run reads as many of them as its tokens allow.
        batch, accumulate: conversations in a pass, and passes in a step.
        mix, style: of requests about scenes, and of the sentence in answers.
        lr, rank: learning rate, and rank of the LoRA matrices.
        data: a name or file for `t4s_helpers.data.load`, of whose first split the samples are.
        held_out: what `t4s_helpers.lab.ablations.measure.held_out` takes; by default ``data``.
        n_scored, points: held-out requests behind a point of a learning curve, and points of a curve
            after its start.
        data_seed: of what is asked about which picture.
    """

    backbone: str = "embedded"
    quantize: str = "none"
    tokens: int = 500_000
    samples: int = 16_384
    batch: int = 16
    accumulate: int = 1
    mix: str = "res"
    style: str = "box"
    lr: float = 3e-3
    rank: int = 32
    data: str = "scenes"
    held_out: str = ""
    n_scored: int = 64
    points: int = 10
    data_seed: int = 0

    def opening(self, source: Path | str | None = None) -> dict[str, Any]:
        """Arguments of `t4s_helpers.model.backbones.load_backbone`; ``source``: another folder or hub id."""
        return {"name": self.backbone, "source": source,
                "quantize": None if self.quantize == "none" else self.quantize}


REAL = dict(quantize="nf4", tokens=20_000_000, samples=400_000, batch=4, accumulate=32, lr=2e-4, rank=64,
            data="refcoco", n_scored=256)
"""Where the recipe of a backbone from the model hub differs: the paper's batch, rank and learning rate."""


def recipe_for(backbone: str = "embedded", **given: Any) -> Recipe:
    """The recipe of a backbone, with what is given in place of its own."""
    return replace(Recipe(backbone), **{**({} if backbone == "embedded" else REAL), **given})


def levers(recipe: Recipe) -> dict[str, RunConfig]:
    """Rows of R-RLE at 16 x 16 -> what is trained for them; one thing differs from the first in each."""
    other = "plain" if recipe.style == "box" else "box"
    rows = {"recipe": DESIGN[0], f"{other} sentence": RunConfig("rrle", style=other),
            "tag as label": RunConfig("rrle", label=TAG)}
    return rows | ({"mix with questions": RunConfig("rrle", mix="all")} if recipe.data == "scenes" else {})


def configurations(recipe: Recipe) -> tuple[RunConfig, ...]:
    """All that are trained, in order: the design, then the levers."""
    return tuple(dict.fromkeys((*DESIGN, *levers(recipe).values())))


# --- what is there -------------------------------------------------------------------------------

Trained = Mapping[RunConfig, Mapping[int, Path]]
"""Configuration -> seed -> folder of the adapter."""


def trained(folder: Path | str = SHIPPED, design: Sequence[RunConfig] = DESIGN) -> Trained:
    """The adapters in a folder, as they ship or as training left them; an empty entry: not trained."""
    found: dict[RunConfig, dict[int, Path]] = {config: {} for config in design}
    for config in design:
        for place in sorted(Path(folder).glob(f"{config.name()}-s*")):
            seed = place.name.rpartition("-s")[2]
            adapter = place / "adapter" if finished(place) else place
            if seed.isdigit() and (adapter / "adapter_config.json").is_file():
                found[config][int(seed)] = adapter
    return found


def finished(folder: Path) -> bool:
    """Whether the training in ``folder`` wrote all files of its adapter."""
    return (folder / "adapter" / "finished").is_file()


def read_recipe(folder: Path | str) -> Recipe | None:
    """The recipe of the adapters or tables in a folder; None where none is written."""
    file = Path(folder) / "recipe.json"
    return Recipe(**json.loads(file.read_text())) if file.is_file() else None


def keep_recipe(out: Path | str, recipe: Recipe) -> None:
    """Write a recipe into a folder; an `AblationError` if what lies there is of another."""
    before = read_recipe(out)
    changed = [] if before is None else [
        f"{name} was {old!r} and is now {getattr(recipe, name)!r}"
        for name, old in asdict(before).items() if old != getattr(recipe, name)]
    if changed:
        raise AblationError(f"{out} is of another recipe: {', '.join(changed)}. Adapters are only compared "
                            "when all but their configuration is alike; give another folder.")
    write_json(Path(out) / "recipe.json", asdict(recipe))
