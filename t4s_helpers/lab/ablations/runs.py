"""The paper's three ablations: resolution, encoding, refiner (Figures 6, 8, 14; Tables 6, 8).

One adapter is trained for each cell of the design and each seed: the same base, the same
conversations, the same steps; only how an answer is written differs. Measuring writes one row an
answer, from which every table and figure is made again without a model::

    python -m t4s_helpers.lab.ablations.runs start   --out checkpoints/start --ship
    python -m t4s_helpers.lab.ablations.runs train   --out checkpoints/ablations --ship
    python -m t4s_helpers.lab.ablations.runs train   --out checkpoints/levers --levers --ship
    python -m t4s_helpers.lab.ablations.runs measure --out results/ablations
    python -m t4s_helpers.lab.ablations.runs plot    --tables results/ablations --out figures

A cell whose adapter is not there is said to be not trained, in every table and figure. All commands
go on where they were cut off. Notebook ``08_ablations`` shows the tables of ``results/ablations`` and
measures a few of their rows again. `t4s_helpers.lab.ablations.tables` sums the rows up, and
`t4s_helpers.lab.ablations.figures` draws them.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .tables import NOT_TRAINED, AblationError, read_tables
from ...model.backbones import ADAPTERS
from ...workbook.tables import write_rows

SHIPPED = ADAPTERS / "ablations"
"""Where the trained cells ship: one folder ``<scheme>-<size>-s<seed>`` each."""

SEEDS = (0, 1)


@dataclass(frozen=True)
class Cell:
    """What differs between the adapters of an ablation: how an answer is written, and if need be what
    the recipe says of the sentence before it or of the mix of requests."""

    scheme: str
    size: int
    style: str = ""
    mix: str = ""

    def name(self, seed: int | None = None) -> str:
        """Of the cell, or of its adapter with one seed.

        >>> Cell("rrle", 16).name(), Cell("rrle", 16).name(1), Cell("rrle", 16, mix="all").name(1)
        ('rrle-16', 'rrle-16-s1', 'rrle-16-all-s1')
        """
        own = [self.scheme, str(self.size), self.style, self.mix, "" if seed is None else f"s{seed}"]
        return "-".join(part for part in own if part)


DESIGN = (Cell("full", 16), Cell("irle", 16), Cell("rrle", 16), Cell("rrle", 24), Cell("rrle", 32))
"""The three encodings at 16 x 16, and R-RLE at the three resolutions."""

LEVERS = (Cell("rrle", 16, "box", "res"), Cell("rrle", 16, "plain", "res"),
          Cell("rrle", 16, "box", "all"))
"""What a recipe decides besides: an answer states a box first, against a fixed sentence; and nothing but
targets is asked for, against the mix with questions. Trained from the bare base."""


def trained(folder: Path | str = SHIPPED, design: Sequence[Cell] = DESIGN) -> dict:
    """The adapters that are there.

    Args:
        folder: of adapters as they ship, or the one that `train` was given.

    Returns:
        ``cell -> {seed: folder}`` for every cell of the design; an empty dict: not trained.
    """
    found: dict[Cell, dict[int, Path]] = {cell: {} for cell in design}
    for cell in design:
        for place in sorted(Path(folder).glob(f"{cell.name()}-s*")):
            seed = place.name.rpartition("-s")[2]
            adapter = place / "adapter" if (place / "adapter" / "finished").exists() else place
            if seed.isdigit() and (adapter / "adapter_config.json").is_file():
                found[cell][int(seed)] = adapter
    return found


def coverage(found: Mapping[Cell, Mapping[int, Any]]) -> list[dict]:
    """What is trained and what is not, one row a cell of the design.

    >>> coverage({Cell("rrle", 16): {0: "x", 1: "y"}, Cell("full", 16): {}})[1]["adapters"]
    'not trained'
    """
    return [{"encoding": cell.scheme, "grid": cell.size,
             "adapters": ", ".join(f"seed {seed}" for seed in sorted(seeds)) or NOT_TRAINED}
            for cell, seeds in found.items()]


def logs(found: Mapping[Cell, Mapping[int, Path]]) -> list[dict]:
    """The losses behind the adapters that are there, one row a line of an adapter's ``log.csv``.

    Args:
        found: from `trained`.

    Returns:
        rows with ``encoding``, ``grid``, ``seed``, ``step``, and ``loss``, cross-entropy a token.
    """
    from ...model.training import read_log

    # Among an adapter's files where it ships, beside the adapter where it was trained.
    return [{"encoding": cell.scheme, "grid": cell.size, "seed": seed, "step": int(line["step"]),
             "loss": line["loss"]}
            for cell, seeds in found.items() for seed, folder in seeds.items()
            for line in read_log(folder / "log.csv") or read_log(folder.parent / "log.csv")]


# --- training ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """What all adapters of one ablation share. It is written beside them and must not change.

    One request in a conversation: three full-length answers side by side make such long rows that
    attention over them takes ten times as long as over three R-RLE ones. Rank 32, half of the adapter
    ``scenes``: a dozen adapters ship. ``start``: folder of the adapter that all of them go on from, or
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


def train(out: Path | str, recipe: Recipe = Recipe(), seeds: Sequence[int] = SEEDS,
          design: Sequence[Cell] = DESIGN, base: Path | str | None = None,
          ship: Path | str | None = None) -> list[Path]:
    """Train every cell of the design with every seed; what is finished is left as it is.

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
    for cell in design:
        for seed in seeds:
            folder = out / cell.name(seed)
            if not _finished(folder):
                print(f"{cell.name(seed)}: {recipe.samples} conversations", flush=True)
                _train_one(folder, cell, seed, recipe, base)
            done.append(folder / "adapter")
            if ship:
                _ship(folder, Path(ship), recipe.backbone)
    return done


def _keep_recipe(out: Path, recipe: Recipe) -> None:
    out.mkdir(parents=True, exist_ok=True)
    file = out / "recipe.json"
    wanted = asdict(recipe)
    if not file.exists():
        file.write_text(json.dumps(wanted, indent=2) + "\n")
        return
    before = json.loads(file.read_text())
    changed = {k: (before.get(k), v) for k, v in wanted.items() if before.get(k) != v}
    if changed:
        told = ", ".join(f"{k} was {a!r} and is now {b!r}" for k, (a, b) in changed.items())
        raise AblationError(f"{out} holds adapters of another recipe: {told}. Adapters are only "
                            "compared when all is alike but the cell; give another --out.")


def _finished(folder: Path) -> bool:
    return (folder / "adapter" / "finished").is_file()


def _train_one(folder: Path, cell: Cell, seed: int, recipe: Recipe, base) -> None:
    from ...model.training import add_adapter, continued_adapter

    backbone = _backbone(recipe, base)
    dataset, collate = _conversations(backbone, cell, recipe)
    model = (continued_adapter(backbone, recipe.start) if recipe.start else
             add_adapter(backbone, recipe.rank, 2 * recipe.rank, seed=seed))
    _fine_tune(folder, backbone, dataset, collate, model, recipe, seed=seed)


def _backbone(recipe: Recipe, base):
    from ...model.backbones import load_backbone

    return load_backbone(recipe.backbone, None if recipe.quantize == "none" else recipe.quantize,
                         source=base)


def _fine_tune(folder: Path, backbone, dataset, collate, model, recipe: Recipe, **more) -> None:
    from ...model.training import fine_tune

    fine_tune(backbone, dataset, collate, folder, batch=recipe.batch, accumulate=recipe.accumulate,
              model=model, learning_rate=recipe.lr, **more)
    # The adapter's files come one by one; only this mark says that all of them are there.
    (folder / "adapter" / "finished").touch()


def _conversations(backbone, cell: Cell, recipe: Recipe):
    from ...model.training import sample_data, scene_data

    layout = dict(seed=recipe.data_seed, size=cell.size, scheme=cell.scheme,
                  style=cell.style or recipe.style)
    if recipe.data:
        from ...data.own import load_own

        return sample_data(backbone, load_own(recipe.data), recipe.samples, **layout)
    return scene_data(backbone, recipe.samples, mix=cell.mix or recipe.mix, n=recipe.turns, **layout)


START, START_RECIPE = "start", Recipe(samples=7680)
"""Name of the adapter that the cells of `DESIGN` go on from, and how it is trained."""

CONTINUED = Recipe(samples=2048, lr=3e-4)
"""How the cells are trained that go on from it; a bare base takes more, as `Recipe` has it."""

STEPS = CONTINUED.samples // (CONTINUED.batch * CONTINUED.accumulate)
"""Optimizer steps of the cells that ship."""


class InTurn:
    """Data sets that take turns, a batch each; read in order.

    One batch holds items of one data set: of like length, where the data sets differ in that.

    Args:
        parts: map-style data sets, equally long.
        batch: items of a turn.

    >>> "".join(InTurn(["abcd", "ABCD"], 2))
    'abABcdCD'
    """

    def __init__(self, parts: Sequence, batch: int):
        self.parts, self.batch = list(parts), batch

    def __len__(self) -> int:
        return len(self.parts) * len(self.parts[0])

    def __getitem__(self, i: int):
        if not 0 <= i < len(self):
            raise IndexError(i)
        turn, within = divmod(i, self.batch)
        lap, part = divmod(turn, len(self.parts))
        return self.parts[part][lap * self.batch + within]


def train_start(out: Path | str, adapter: Path | str = "scenes", recipe: Recipe = START_RECIPE,
                design: Sequence[Cell] = DESIGN, base: Path | str | None = None,
                ship: Path | str | None = None) -> Path:
    """The adapter that all cells go on from: one that knows the task, shrunk to the recipe's rank and
    taught all cells' ways to write in turn, a batch each.

    To learn the task from the bare base takes some hours, most of them spent on what all cells share:
    finding the target, and where its rows begin and end. ``adapter`` was trained on one of the cells;
    the turns make up for that as far as they go. No request says which way to write is wanted, so the
    start itself answers in any: it is to go on from, not to ask.

    Args:
        out: folder for checkpoints, ``log.csv`` and ``adapter``; goes on where it was cut off.
        adapter: folder of an adapter for the same backbone, or the name of one that ships.
        recipe: ``samples`` conversations in all, about other pictures than those of the cells.

    Returns:
        the folder of the adapter.
    """
    from ...model.adapters import shrink_adapter
    from ...model.training import continued_adapter

    out = Path(out)
    _keep_recipe(out, recipe)
    if not _finished(out):
        shrunk = out / "shrunk"
        if not (shrunk / "adapter_config.json").exists():
            shrink_adapter(adapter, shrunk, recipe.rank, recipe.backbone, base)
        backbone = _backbone(recipe, base)
        turns = max(1, recipe.samples // (len(design) * recipe.batch))
        each = [_conversations(backbone, cell, replace(
            recipe, samples=turns * recipe.batch, data_seed=recipe.data_seed + 1000 + k))
            for k, cell in enumerate(design)]
        _fine_tune(out, backbone, InTurn([data for data, _ in each], recipe.batch), each[0][1],
                   continued_adapter(backbone, shrunk), recipe, train_sampling_strategy="sequential")
    if ship:
        _ship(out, Path(ship), recipe.backbone, START)
    return out / "adapter"


def _ship(folder: Path, place: Path, backbone: str, name: str = "") -> None:
    from ...model.adapters import export_adapter

    name = name or folder.name
    export_adapter(folder / "adapter", place / name, backbone)
    (place / name / "log.csv").write_bytes((folder / "log.csv").read_bytes())


# --- measuring -----------------------------------------------------------------------------------


def scene_sets(n: int) -> dict[str, list]:
    """The embedded model's splits: held-out scenes, and scenes with unseen colour-shape pairs."""
    from ...data.expressions import scene_samples

    return {"test": scene_samples("test", n, "res", start=8_000),
            "novel": scene_samples("novel", n, "res", start=8_000)}


def lever_sets(n: int) -> tuple[list, list]:
    """Targets and questions about held-out scenes for `measure_levers`, ``n`` each."""
    from ...data.expressions import scene_samples

    return (scene_samples("test", n, "res", start=8_000), scene_samples("test", n, "vqa", start=4_000))


def refer_sets(folder: Path | str, n: int, split: str = "val") -> dict[str, list]:
    """The first ``n`` requests of every RefCOCO data set that lies in a folder (Table 8).

    Raises:
        AblationError: none does.
    """
    from ...data.refer import load_refer

    ways = (("refcoco", "unc"), ("refcoco+", "unc"), ("refcocog", "umd"))
    there = [(name, by) for name, by in ways if (Path(folder) / name / f"refs({by}).p").is_file()]
    if not there:
        raise AblationError(f"{folder} holds no refcoco, refcoco+ or refcocog; see the README on "
                            "the layout of data.")
    return {f"{name} {split}": load_refer(folder, name, by, split)[:n] for name, by in there}


def measure(found: Mapping[Cell, Mapping[int, Path]], sets: Mapping[str, Sequence], refiner=None,
            backbone: str = "embedded", n_timed: int = 4, batch: int = 32, seed: int = 0,
            progress: bool = True, keep: Path | None = None) -> tuple[list[dict], list[dict]]:
    """Score every adapter that is there.

    Answers are decoded under the grammar in mode ``fast``, so none is malformed. The masks of all
    adapters for one picture are refined together, on one embedding.

    Args:
        found: from `trained`.
        sets: name -> samples of one target.
        refiner: from `t4s_helpers.refine.refiners.load_refiner`; ``None``: the coarse masks alone.
        n_timed: requests answered one by one in every decoding mode, for seconds; 0 for none.
        seed: of the refiner's points.
        keep: folder for what is finished, one file an adapter and one a set, from which a call after
            an interruption goes on; ``None``: nothing is kept.

    Returns:
        ``(rows, times)``. ``rows``: one an answer and refiner, with pixel counts, tokens and the
        refiner's seconds (embedding included). ``times``: one an answer and decoding mode.
    """
    from tqdm.auto import tqdm

    keep, refined_by = keep and Path(keep), refiner and refiner.name
    ids = {name: [sample.id for sample in samples] for name, samples in sets.items()}
    jobs = [(cell, s, folder) for cell, seeds in found.items() for s, folder in seeds.items()]
    answers, times = {}, []
    for cell, s, folder in tqdm(jobs, desc="answer", unit="adapter", disable=not progress):
        timed = n_timed if s == min(found[cell]) else 0
        about = keep and [ids, timed, _digest(folder)]
        done = _kept(keep, cell.name(s), about, lambda: _answered(backbone, folder, cell, sets, timed,
                                                                  batch))
        answers[cell, s] = done["answers"]
        times += done["times"]
    rows: list[dict] = []
    for name, samples in sets.items():
        about = keep and [ids[name], [_digest(folder) for *_, folder in jobs], seed, refined_by]
        bar = tqdm(samples, desc=f"refine {name}", unit="request", disable=not (progress and jobs))
        rows += _kept(keep, f"refined-{name}", about, lambda: _all_scored(name, bar, answers, refiner,
                                                                          seed))
    return rows, times


def _all_scored(name: str, samples: Iterable, answers: Mapping[tuple, Mapping], refiner, seed: int):
    return [{"set": name, **row} for k, sample in enumerate(samples) for row in _scored(
        sample, {job: said[name][k] for job, said in answers.items()}, refiner, seed)]


def _kept(folder: Path | None, name: str, about, make):
    """What ``make`` returned about the same before, where that was kept; what it returns now else."""
    from ...files import write_json

    if folder is None:
        return make()
    told = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:12]
    file = Path(folder) / f"{name.replace('/', '_')}-{told}.json"
    if not file.is_file():
        made = make()
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, made)
    return json.loads(file.read_text())


def _digest(adapter: Path) -> str:
    return hashlib.sha256((Path(adapter) / "adapter_model.safetensors").read_bytes()).hexdigest()


def _answered(backbone: str, adapter: Path, cell: Cell, sets, n_timed: int, batch: int) -> dict:
    """``answers``: set -> (grid as lists, tokens) a sample; ``times``: rows."""
    from ...model.backbones import load_backbone
    from ...decoding.generate import answer_samples

    model = load_backbone(backbone, adapter=adapter)
    answers = {}
    for name, samples in sets.items():
        out = answer_samples(model, samples, cell.size, cell.scheme, mode="fast", batch=batch,
                             progress=False)
        answers[name] = [(reading.grid.tolist(), said.n_tokens) for said, reading in out]
    timed = next(iter(sets.values()))[:n_timed] if n_timed else []
    return {"answers": answers, "times": _times(model, timed, cell)}


def measure_limits(sets: Mapping[str, Sequence], sizes: Sequence[int] = (16, 24, 32)) -> list[dict]:
    """The ceilings on the same requests: true masks through the same grids.

    Returns:
        rows of `t4s_helpers.evaluation.evaluate.oracle_table`, rule ``area`` and no refiner, with ``set``.
    """
    from ...evaluation.evaluate import oracle_table

    return [{"set": name, **row, "id": row["id"], "grid": int(row["grid"])}
            for name, samples in sets.items()
            for row in oracle_table(samples, sizes, ["area"], progress=False)[0]]


def measure_again(found: Mapping[Cell, Mapping[int, Path]], sets: Mapping[str, Sequence],
                  rows: Sequence[Mapping], **more) -> list[dict]:
    """Answers some of the requests behind finished rows once more, without a refiner.

    Args:
        found: from `trained`; of each cell, the first seed answers.
        sets: name -> some of the samples that the rows are about.
        rows: of `measure`, perhaps made on another machine.
        more: for `measure`.

    Returns:
        one row a cell: ``encoding``, ``grid``, ``asked``, and ``same``, how many answers have the
        tokens and the pixels of their row. Where two tokens are all but equally likely, another
        processor's rounding can choose the other.

    Raises:
        AblationError: the rows are about other requests.
    """
    firsts = {cell: dict([min(seeds.items())]) for cell, seeds in found.items() if seeds}
    keys, values = ("set", "id", "encoding", "grid", "seed"), ("tokens", "intersection", "predicted")
    before = {tuple(row[k] for k in keys): row for row in rows if row["refiner"] == "none"}
    again, _ = measure(firsts, sets, n_timed=0, **more)
    counted: dict[tuple, list[bool]] = {}
    for row in again:
        old = before.get(tuple(row[k] for k in keys))
        if old is None:
            raise AblationError(f"The table has no row of {row['set']} {row['id']} by {row['encoding']} "
                                f"at {row['grid']}, seed {row['seed']}: it is of other adapters or "
                                "requests. Make it again with 'python -m t4s_helpers.lab.ablations.runs measure'.")
        counted.setdefault((row["encoding"], row["grid"]), []).append(
            all(row[k] == old[k] for k in values))
    return [{"encoding": encoding, "grid": grid, "asked": len(same), "same": sum(same)}
            for (encoding, grid), same in counted.items()]


def _times(model, samples, cell: Cell) -> list[dict]:
    from ...decoding.generate import answer_samples

    rows = []
    for mode in ("plain", "fast") if samples else ():
        options = dict(mode=mode, batch=1, progress=False)
        answer_samples(model, samples[:1], cell.size, cell.scheme, **options)  # warms up
        for sample in samples:
            [(said, _)] = answer_samples(model, [sample], cell.size, cell.scheme, **options)
            rows.append({"encoding": cell.scheme, "grid": cell.size, "decoding": mode,
                         "id": sample.id, "tokens": said.n_tokens, "seconds": said.seconds})
    return rows


def _scored(sample, answers: Mapping[tuple, tuple], refiner, seed: int) -> list[dict]:
    """Rows of one request: every adapter's mask, as it is and refined."""
    from ...codec.grid import grid_to_masks
    from ...evaluation.evaluate import pixel_counts

    if not answers:
        return []
    coarse = np.concatenate([grid_to_masks(np.array(grid), 1, sample.size)
                             for grid, _ in answers.values()])
    ways = {"none": (coarse, np.zeros(len(coarse), bool), 0.0)}
    if refiner is not None and refiner.name != "none":
        start = time.perf_counter()
        embedded = time.perf_counter()
        if coarse.any():
            refiner.set_image(sample.pixels())
            embedded = time.perf_counter()
            done = refiner.refine(coarse, seed=seed)
            masks, fell = done.masks, done.fallback
        else:  # no reason to look at the picture
            masks, fell = coarse, np.zeros(len(coarse), bool)
        # each answer alone would pay for the embedding, and for its share of the decoder
        each = embedded - start + (time.perf_counter() - embedded) / max(1, coarse.any((1, 2)).sum())
        ways[refiner.name] = masks, fell, each
    return [{"id": sample.id, "encoding": cell.scheme, "grid": cell.size, "seed": s,
             "refiner": way, **pixel_counts(masks[k], sample.masks[0]), "fallback": bool(fell[k]),
             "tokens": answers[cell, s][1], "refine_seconds": each if coarse[k].any() else 0.0}
            for way, (masks, fell, each) in ways.items() for k, (cell, s) in enumerate(answers)]


def measure_levers(found: Mapping[Cell, Mapping[int, Path]], targets: Sequence, questions: Sequence,
                   backbone: str = "embedded", others: Mapping[str, Path | str] | None = None,
                   batch: int = 32, progress: bool = True) -> list[dict]:
    """What each lever of the recipe is worth: masks of targets, and answers to questions.

    Args:
        found: from `trained`, of `LEVERS`.
        others: name of a lever -> further adapter, a name or a folder, of 16 x 16 descriptors.
        targets: samples of one target.
        questions: samples of questions, which the bare backbone answers too.

    Returns:
        one row an answer: ``lever`` (the cell's name, ``base`` for the bare backbone, and the cell's
        name with ``expected IoU`` where the first cell's grids are weighed,
        `t4s_helpers.decoding.expected_iou`), ``seed``, ``id``, and for a target pixel counts and ``tokens``,
        for a question ``score``.
    """
    from ...model.backbones import load_backbone
    from ...evaluation.evaluate import evaluate
    from ...evaluation.metrics import box_iou
    from ...evaluation.scoring import box_from_text

    def answered(model, samples, lever: str, seed: int, **options) -> list[dict]:
        rows, _ = evaluate(model, samples, batch=batch, progress=progress, **options)
        kept = ("id", "intersection", "union", "tokens", "score")
        return [{"lever": lever, "seed": seed, **{k: row[k] for k in kept if k in row}, **box(row)}
                for row in rows]

    def box(row) -> dict:
        boxes = [box_from_text(row[name]) for name in ("box", "true_box") if name in row]
        return {"box_right": None not in boxes and box_iou(*boxes) > 0.5} if boxes else {}

    jobs = [(cell.name(), s, folder, cell.size) for cell, seeds in found.items()
            for s, folder in seeds.items()]
    jobs += [(name, 0, adapter, 16) for name, adapter in (others or {}).items()]
    out = answered(load_backbone(backbone), questions, "base", 0)
    for name, s, adapter, size in jobs:
        model = load_backbone(backbone, adapter=adapter)
        out += answered(model, targets, name, s, mode="fast", size=size)
        out += answered(model, questions, name, s)
        if name == next(iter(found)).name():
            out += answered(model, targets, f"{name}, expected IoU", s, mode="expected_iou", size=size)
    return out


def wordings(backbone, samples: Sequence, words: Mapping[str, str | None], size: int = 16,
             scheme: str = "rrle", batch: int = 32) -> list[dict]:
    """Answers whose descriptor names the target in another way than the question.

    The question stays; under the grammar, the descriptor can only use the label given here. No
    adapter was trained on that, so this asks how much an answer hangs on the label's text.

    Args:
        samples: of one target.
        words: name of the wording -> label for every descriptor; None: the expression itself.

    Returns:
        one row a request and wording: ``wording``, ``id``, pixel counts, ``tokens``, ``seconds``.
    """
    from ...decoding.generate import generate, read_answer
    from ...evaluation.evaluate import pixel_counts
    from ...data.prompts import ask

    asked, rows = [ask(sample) for sample in samples], []
    for name, word in words.items():
        labels = [one.labels if word is None else (word,) for one in asked]
        answers = generate(backbone, [s.pixels() for s in samples], [a.question for a in asked],
                           labels, size, batch=batch, progress=False, mode="fast", scheme=scheme)
        for sample, own, said in zip(samples, labels, answers):
            mask = read_answer(said.text, own, sample.size, size, scheme).masks[0]
            rows.append({"wording": name, "id": sample.id, "tokens": said.n_tokens,
                         "seconds": said.seconds, **pixel_counts(mask, sample.masks[0])})
    return rows


def text_costs(samples: Sequence, tokenizer, sizes: Sequence[int] = (16, 24, 32),
               schemes: Sequence[str] = ("full", "irle", "rrle"), word: str | None = None,
               rule: str = "area") -> list[dict]:
    """Tokens of the true descriptor of every sample; no model.

    Args:
        tokenizer: from `t4s_helpers.model.tokens.load_tokenizer`.
        word: label in the descriptor of a sample with one label; None: its own labels.

    Returns:
        one row a sample, encoding and grid: ``id``, ``encoding``, ``grid``, ``tokens``.
    """
    from ...codec.encodings import encode
    from ...model.tokens import count_tokens

    rows = []
    for sample in samples:
        labels = sample.labels if word is None else (word,)
        for size in sizes:
            grid = sample.grid(size, rule)
            rows += [{"id": sample.id, "encoding": scheme, "grid": size,
                      "tokens": count_tokens(tokenizer, encode(grid, labels, scheme))}
                     for scheme in schemes]
    return rows


# --- command line --------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> None:
    import argparse

    parser = argparse.ArgumentParser(prog="python -m t4s_helpers.lab.ablations.runs",
                                     description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    _start_options(commands.add_parser("start", help="the adapter that the cells go on from"))
    _train_options(commands.add_parser("train", help="one adapter for each cell and seed"))
    _measure_options(commands.add_parser("measure", help="score the adapters that are there"))
    plot = commands.add_parser("plot", help="the figures from the tables, without a model")
    plot.add_argument("--tables", type=Path, required=True, nargs="+",
                      help="folders of tables: results/ablations, results/08_ablations")
    plot.add_argument("--out", type=Path, required=True, help="folder for the PNG files")
    args = parser.parse_args(argv)
    try:
        {"start": _start_command, "train": _train_command, "measure": _measure_command,
         "plot": _plot_command}[args.command](args)
    except AblationError as error:
        raise SystemExit(str(error)) from None


def _start_options(parser) -> None:
    _recipe_options(parser, START_RECIPE)
    parser.add_argument("--adapter", default="scenes", help="name or folder of one that knows the task")


def _start_command(args) -> None:
    print(train_start(args.out, args.adapter, _recipe(args, START_RECIPE), base=args.base, ship=args.ship))


def _train_options(parser) -> None:
    add = parser.add_argument
    _recipe_options(parser, Recipe(), CONTINUED)
    add("--levers", action="store_true", help="those of the recipe's levers, from the bare base")
    names = [c.name() for c in (*DESIGN, *LEVERS)]
    add("--cells", nargs="+", choices=names, metavar="CELL", help=f"only these of {' '.join(names)}")
    add("--seeds", type=int, nargs="+", default=list(SEEDS))
    add("--start", help="folder of the adapter to go on from, or 'none'; by default the one that ships "
        "for the embedded model, and none for the levers and for other backbones")


def _recipe_options(parser, usual: Recipe, continued: Recipe | None = None) -> None:
    from ...data.instructions import MIXES

    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder for checkpoints, logs and adapters")
    add("--ship", type=Path, nargs="?", const=SHIPPED, help="export finished adapters here too "
        "(without a folder: into the package)")
    add("--base", type=Path, help="folder to load the backbone from, if not its own")
    add("--mix", choices=MIXES, default=usual.mix, help="of requests about scenes")
    add("--quantize", choices=("nf4", "none"), default=usual.quantize)
    for name, told in (("backbone", "name of the backbone"), ("samples", "conversations"),
                       ("batch", "conversations in a pass"), ("accumulate", "passes in a step"),
                       ("turns", "requests in a conversation"), ("lr", "learning rate"),
                       ("rank", "of the LoRA matrices"), ("style", "of the answer's sentence"),
                       ("data", "COCO folder or CSV file of your own; rendered scenes else"),
                       ("data-seed", "of what is asked about which picture")):
        value, other = (getattr(one, name.replace("-", "_")) for one in (usual, continued or usual))
        also = "" if value == other else f"; {other!r} from an adapter"
        add(f"--{name}", type=type(value), default=None if also else value,
            help=f"{told} ({value!r}{also})")


def _recipe(args, usual: Recipe, start: str = "") -> Recipe:
    given = {name: getattr(args, name) for name in asdict(usual) if name != "start"}
    return replace(usual, start=start, **{k: v for k, v in given.items() if v is not None})


def _train_command(args) -> None:
    design = [c for c in (*DESIGN, *LEVERS) if c.name() in args.cells] if args.cells else (
        LEVERS if args.levers else DESIGN)
    start = args.start or ("none" if set(design) <= set(LEVERS) or args.backbone != "embedded"
                           else str(SHIPPED / START))
    if start != "none" and not (Path(start) / "adapter_config.json").is_file():
        raise AblationError(f"{start} holds no adapter to go on from. 'python -m t4s_helpers.lab.ablations.runs "
                            "start' makes one; with '--start none' all begin with the bare base.")
    recipe = _recipe(args, Recipe()) if start == "none" else _recipe(args, CONTINUED, start)
    for folder in train(args.out, recipe, args.seeds, design, args.base, args.ship):
        print(folder)


def _measure_options(parser) -> None:
    add = parser.add_argument
    add("--adapters", type=Path, default=SHIPPED, help="folder of <cell>-s<seed> folders")
    add("--out", type=Path, required=True, help="folder for the tables rows, times, limits, logs and, "
        "where there are any, levers")
    add("--backbone", default="embedded")
    add("--refiner", default="mobile_sam")
    add("--data", help="folder with RefCOCO's files; rendered scenes else")
    add("--split", default="val", help="part of the data")
    add("-n", type=int, default=96, help="requests a split")
    add("--timed", type=int, default=8, help="requests answered one by one for seconds")
    add("--batch", type=int, default=32)


def _measure_command(args) -> None:
    from ...refine.refiners import load_refiner

    found = trained(args.adapters)
    if not any(found.values()):
        raise AblationError(f"No adapter of the ablation lies in {args.adapters}: train them with "
                            "'python -m t4s_helpers.lab.ablations.runs train', or name their folder.")
    sets = refer_sets(args.data, args.n, args.split) if args.data else scene_sets(args.n)
    unfinished = args.out / "unfinished"
    rows, times = measure(found, sets, load_refiner(args.refiner), args.backbone, args.timed,
                          args.batch, keep=unfinished)
    tables = {"rows": rows, "times": times, "limits": measure_limits(sets), "logs": logs(found)}
    levers = trained(args.adapters, LEVERS)
    if any(levers.values()) and not args.data:  # the levers are of the recipe for scenes
        tables["levers"] = measure_levers(levers, *lever_sets(args.n), args.backbone,
                                          {"scenes": "scenes"}, args.batch)
    for name, table in tables.items():
        print(write_rows(table, args.out / f"{name}.csv"))
    shutil.rmtree(unfinished)
    for row in coverage(found):
        print(f"{row['encoding']:>5} {row['grid']}: {row['adapters']}")


def _plot_command(args) -> None:
    from .figures import plot_all

    for path in plot_all(read_tables(*args.tables), args.out, STEPS):
        print(path)


if __name__ == "__main__":
    main()
