"""Training the adapters of the ablations: one for each run configuration and seed, all else alike.

The same base, the same conversations, the same steps; only how an answer is written differs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd

from ...codec.encodings import get_encoding
from ...data.mixtures import DataMixture, SceneMixture
from ...data.registry import load
from ...model import adapters, training
from ...model.backbones import load_backbone, open_adapter
from .design import (
    BARE_BASE, DESIGN, SEEDS, START, START_RECIPE, Recipe, RunConfig, Trained, finished,
)
from .tables import AblationError


def losses(found: Trained) -> pd.DataFrame:
    """The losses behind the adapters that are there, one row a line of an adapter's ``log.csv``.

    Returns:
        ``encoding``, ``grid``, ``seed``, ``step``, and ``loss``, cross-entropy a token.
    """
    # Among an adapter's files where it ships, beside the adapter where it was trained.
    return pd.DataFrame([
        {"encoding": config.encoding, "grid": config.grid_size, "seed": seed, "step": int(line["step"]),
         "loss": line["loss"]}
        for config, seeds in found.items() for seed, folder in seeds.items()
        for line in (training.read_log(folder / "log.csv")
                     or training.read_log(folder.parent / "log.csv"))])


def train(out: Path | str, recipe: Recipe = BARE_BASE, seeds: Sequence[int] = SEEDS,
          design: Sequence[RunConfig] = DESIGN, base: Path | str | None = None,
          ship: Path | str | None = None) -> list[Path]:
    """Train every configuration of the design with every seed; finished ones are left as they are.

    ``seed`` draws the LoRA matrices, dropout and the order of the conversations. What is asked
    about which picture depends on ``recipe.data_seed`` alone, so all adapters see the same requests.

    Args:
        out: one folder an adapter: checkpoints, ``log.csv``, ``adapter``; ``recipe.json``.
        base: folder of the backbone's weights, if not its own.
        ship: also export each finished adapter and its log here, as they ship.

    Returns:
        the adapters' folders, in the order of design and seeds.

    Raises:
        AblationError: ``out`` holds adapters of another recipe.
    """
    out, done = Path(out), []
    _keep_recipe(out, recipe)
    for config in design:
        for seed in seeds:
            folder = out / config.name(seed)
            if not finished(folder):
                print(f"{config.name(seed)}: {recipe.samples} conversations", flush=True)
                _train_one(folder, config, seed, recipe, base)
            done.append(folder / "adapter")
            if ship:
                _ship(folder, Path(ship), recipe.backbone)
    return done


def _keep_recipe(out: Path, recipe: Recipe) -> None:
    out.mkdir(parents=True, exist_ok=True)
    file, wanted = out / "recipe.json", asdict(recipe)
    if not file.exists():
        file.write_text(json.dumps(wanted, indent=2) + "\n")
    before = json.loads(file.read_text())
    changed = [f"{name} was {before.get(name)!r} and is now {value!r}"
               for name, value in wanted.items() if before.get(name) != value]
    if changed:
        raise AblationError(f"{out} holds adapters of another recipe: {', '.join(changed)}. Adapters are "
                            "only compared when all but their configuration is alike; give another --out.")


def _train_one(folder: Path, config: RunConfig, seed: int, recipe: Recipe, base) -> None:
    backbone = _backbone(recipe, base)
    dataset, collate = _conversations(backbone, config, recipe)
    model = (open_adapter(backbone, recipe.start, trainable=True) if recipe.start else
             training.add_adapter(backbone, recipe.rank, 2 * recipe.rank, seed=seed))
    _fine_tune(folder, backbone, dataset, collate, model, recipe, seed=seed)


def _backbone(recipe: Recipe, base):
    return load_backbone(recipe.backbone, None if recipe.quantize == "none" else recipe.quantize,
                         source=base)


def _fine_tune(folder: Path, backbone, dataset, collate, model, recipe: Recipe, **more) -> None:
    training.fine_tune(backbone, dataset, collate, folder, batch=recipe.batch,
                       accumulate=recipe.accumulate, model=model, learning_rate=recipe.lr, **more)
    # The adapter's files come one by one; only this mark says that all of them are there.
    (folder / "adapter" / "finished").touch()


def _conversations(backbone, config: RunConfig, recipe: Recipe):
    layout = dict(seed=recipe.data_seed, encoding=get_encoding(config.encoding, config.grid_size),
                  style=config.style or recipe.style)
    mixture = (DataMixture([load(recipe.data)], recipe.samples, **layout) if recipe.data else
               SceneMixture(recipe.samples, mix=config.mix or recipe.mix, n_requests=recipe.turns,
                            **layout))
    return training.training_data(backbone, mixture)


def in_turn(parts: Sequence, batch: int):
    """Equally long data sets that take turns, a batch each, so that a batch holds items of like length.

    >>> "".join(in_turn(["abcd", "ABCD"], 2))
    'abABcdCD'
    """
    from torch.utils.data import ConcatDataset, Subset

    first = np.arange(len(parts)) * len(parts[0])
    order = [start + k for turn in range(0, len(parts[0]), batch) for start in first.tolist()
             for k in range(turn, turn + batch)]
    return Subset(ConcatDataset(parts), order)


def train_start(out: Path | str, adapter: Path | str = "scenes", recipe: Recipe = START_RECIPE,
                design: Sequence[RunConfig] = DESIGN, base: Path | str | None = None,
                ship: Path | str | None = None) -> Path:
    """Make the adapter that all runs continue.

    One that knows the task is shrunk to the recipe's rank and taught all encodings and grids of the
    design in turn, a batch each. Learning the task from the bare base takes some hours, most of them
    spent on what all runs share: finding the target, and where its rows begin and end. ``adapter`` was
    trained on one encoding; the turns make up for that as far as they can. No request says which
    encoding is wanted, so the start itself answers in any of them: it is there to be trained further.

    Args:
        out: folder for checkpoints, ``log.csv`` and ``adapter``; a call after an interruption resumes.
        adapter: folder of an adapter for the same backbone, or the name of one that ships.
        recipe: ``samples`` conversations in all, about other pictures than those of the runs.

    Returns:
        the folder of the adapter.
    """
    out = Path(out)
    _keep_recipe(out, recipe)
    if not finished(out):
        shrunk = out / "shrunk"
        if not (shrunk / "adapter_config.json").exists():
            _shrink(adapter, shrunk, recipe, base)
        backbone = _backbone(recipe, base)
        turns = max(1, recipe.samples // (len(design) * recipe.batch))
        each = [_conversations(backbone, config, replace(
            recipe, samples=turns * recipe.batch, data_seed=recipe.data_seed + 1000 + k))
            for k, config in enumerate(design)]
        _fine_tune(out, backbone, in_turn([data for data, _ in each], recipe.batch), each[0][1],
                   open_adapter(backbone, shrunk, trainable=True), recipe,
                   train_sampling_strategy="sequential")
    if ship:
        _ship(out, Path(ship), recipe.backbone, START)
    return out / "adapter"


def _shrink(adapter: Path | str, place: Path, recipe: Recipe, base) -> None:
    """Save the best approximation of a LoRA adapter by one of the recipe's rank.

    Of each layer's product of matrices, peft keeps only the largest singular values.
    """
    model = load_backbone(recipe.backbone, source=base, adapter=adapter).model
    [old] = model.peft_config
    # The mean of the adapter and itself: peft would copy a single adapter as it is.
    model.add_weighted_adapter([old, old], [0.5, 0.5], place.name, combination_type="svd",
                               svd_rank=recipe.rank)
    model.delete_adapter(old)
    # In a folder of the adapter's name, as peft keeps all that are not called "default".
    model.save_pretrained(place.parent, selected_adapters=[place.name], save_embedding_layers=False)


def _ship(folder: Path, place: Path, backbone: str, name: str = "") -> None:
    name = name or folder.name
    adapters.export_adapter(folder / "adapter", place / name, backbone)
    (place / name / "log.csv").write_bytes((folder / "log.csv").read_bytes())
