"""Keeping one's place, wired into a base: which row is being written, and what the picture shows there.

To write a mask row by row a model must know which row it is at, which object it draws, and where
that object begins and ends in this row. The first is counting, the second comparing, the third
looking at one row of the picture; large models can do all three, and ours learned none of them in
an hour. `add_drawing` gives a base that already has `.matching` what it takes:

- the connector is fitted anew, so that each visual token also carries, in directions that words
  hardly use, what the tower knows and the old connector had lost: its row, the box of what it shows,
  and where that begins and ends in its two rows of cells;
- a head of the first layer counts line breaks since ``<seg>``: looking evenly at both, its share of
  ``<seg>`` is a / (a + breaks), which the layer's MLP turns into a code of the row; another head
  gathers the numbers of a box that was stated;
- a head of the second layer hands on the box of what matches the words;
- a new third layer looks for visual tokens of this row whose box is the stated or the matching one,
  and hands on where the object begins and ends in it.

Nothing of it is trained on descriptors, and what is read where decides nothing yet: which label
stands for an object, how beginnings become counts, and when to end is left to the layers above.

``python -m t4s_helpers.lab.tiny_model.drawing --start checkpoints/matched3/final --out checkpoints/drawing``
writes the grown model to ``<out>/final``.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

from ...data.prompts import BOX_BINS
from .dense import GRID, HEADS, IGNORE
from .matching import WORDS, _fit, _normed, insert_layer, match_in_pairs

SIDE = GRID // 2
"""Visual tokens in a row of them; each shows two rows and two columns of cells."""

RUN_DIMS, BOX_DIMS = 8, 6
"""Dimensions in which a cell's column, and a coordinate of a box, are coded."""

PERIODS = (64, 32, 16)
"""Periods, in bins of a box, of the waves of which a box's fingerprint consists."""

COUNT = 16.0
"""``<seg>`` weighs as much as so many line breaks where these are counted."""

DISTANCE = 150
"""Tokens between a visual token and the place in a descriptor that looks for it, about."""

FIRST_PAIR = 10
"""Rotary pairs from here on turn slowly enough to match over a whole descriptor."""

SAME_BOX, SAME_ROW = 40.0, 36.0
"""Attention logits, about, of a box's fingerprint against itself, and of agreeing rows (twice that).
One row off must cost more than the right box gains, or rows without the object would borrow it."""

LOUD = 2.0
"""Size of what a visual token carries besides its words, where its own length is 16."""

WRITE = 0.45
"""Size of what is written for the layers above, where a word embedding has about length 0.9."""

READ = 8.0
"""What the norm before the first MLP multiplies the text's directions with, about: 16 over the length
that the residual stream has there."""

READ_ROW, READ_STATED, READ_FOUND = 10.4, 5.9, 2.5
"""The same before the third layer, times how far a part exceeds or misses `WRITE`. What matches the
words is weak: the look-up also looks elsewhere."""


def hat_code(values, n: int, top: float):
    """Numbers in 0..``top`` as ``n`` neighbouring weights that sum to 1.

    >>> hat_code(torch.tensor([0.0, 5.0]), 3, 10.0)
    tensor([[1., 0., 0.],
            [0., 1., 0.]])
    """
    centres = torch.linspace(0, top, n)
    return (1 - (values[..., None] - centres).abs() * (n - 1) / top).clamp(min=0)


def fingerprint(numbers):
    """Mean of waves over some numbers, in no order: ``(..., k)`` -> ``(..., 6)``."""
    angles = numbers[..., None] * (2 * math.pi / torch.tensor(PERIODS))
    return torch.cat([angles.cos(), angles.sin()], -1).mean(-2)


def row_code(row):
    """Rows of visual tokens, 0..7, on two circles: ``(...,)`` -> ``(..., 4)``.

    The circles are small, so that neighbouring rows agree little.
    """
    angle = torch.as_tensor(row).float() * 2 * math.pi / SIDE
    return torch.stack([angle.cos(), angle.sin(), (2 * angle).cos(), (2 * angle).sin()], -1)


def written_row_code(row):
    """What the text side knows of the row that it writes, ``(..., 14)``: `row_code` of the visual
    tokens that show it, the upper or the lower of their two rows (1 or -1), whether a mask is being
    written, and waves of the row itself."""
    row = torch.as_tensor(row)
    waves = torch.cat([row.float()[..., None] * 2 * math.pi / p for p in (32, 16, 8, 4)], -1)
    return torch.cat([row_code(row // 2), 1 - 2.0 * (row % 2)[..., None], torch.ones_like(waves[..., :1]),
                      waves.cos(), waves.sin()], -1)


# --- what visual tokens carry -----------------------------------------------------------------------

VISUAL = {"row": 4, "runs": 4 * RUN_DIMS, "boxes": 4 * BOX_DIMS, "print": 2 * len(PERIODS), "square": 1}
"""What a visual token carries -> dimensions. ``runs``: first and last column of the upper, then of
the lower row of cells; ``print``: the box's `fingerprint`, ``square`` its squared length."""

MATTERS = {"row": 4.0, "runs": 1.0, "boxes": 1.0, "print": 3.0, "square": 1.0}
"""Weights of their errors: what is compared must be more exact than what is read."""


def visual_codes(targets):
    """What every visual token is to carry.

    Args:
        targets: int64 ``(B, n_heads, 64, 4)``, see `.alignment.by_visual_token`.

    Returns:
        float ``(B, 64, sum of VISUAL)``; 0 where a token shows no object, but for the row.
    """
    names = list(HEADS)
    part = {name: targets[:, names.index(name)] for name in names}
    rows = row_code(torch.arange(SIDE**2) // SIDE).expand(len(targets), -1, -1)
    runs = [_mean(hat_code(part[name][..., cells].float(), RUN_DIMS, GRID - 1.0),
                  (part[name] != IGNORE)[..., cells] & (part["inside"][..., cells] == 1))
            for cells in (slice(0, 2), slice(2, 4)) for name in ("run0", "run1")]
    corners = torch.stack([part[name] for name in ("x0", "y0", "x1", "y1")], -1).float()
    shown = part["x0"] != IGNORE
    boxes = _mean(hat_code(corners, BOX_DIMS, BOX_BINS - 1.0).flatten(-2), shown)
    prints = _mean(fingerprint(corners), shown)
    return torch.cat([rows, *runs, boxes, prints, prints.square().sum(-1, keepdim=True)], -1)


def _mean(codes, use):
    """Mean over the cells in use: ``(B, 64, cells, n)`` -> ``(B, 64, n)``, 0 where there is none."""
    return (codes * use[..., None]).sum(-2) / use.sum(-1).clamp(min=1)[..., None]


def refit_connector(connector, features, codes, room, steps: int = 1500, seed: int = 0) -> float:
    """Let the connector also write ``codes`` into ``room``, and the rest as before.

    Args:
        connector: the two-layer connector, changed in place.
        features: float ``(N, 64, 768)``, the tower's.
        codes: float ``(N, 64, n)``.
        room: orthonormal ``(width, n)``.

    Returns:
        share of the variance of ``codes`` that it does not write.
    """
    with torch.no_grad():
        wanted = with_codes(connector(features), codes, room)
    return approach(connector, features, wanted, room, codes.flatten(0, 1).var(0).sum(), steps, seed)


def with_codes(tokens, codes, room):
    """Visual tokens ``(N, width)`` that say ``codes`` in ``room``, and the rest as before."""
    length = tokens.norm(dim=-1, keepdim=True)
    return tokens - tokens @ room @ room.T + codes @ room.T * LOUD * length / 16


SCENES = 32
"""Scenes to a step of the connector's fit."""


def approach(connector, features, wanted, room, variance, steps: int, seed: int, also=None,
             tower=None, rate: float = 2e-3) -> float:
    """Train a connector to turn features into the visual tokens that are wanted.

    Args:
        connector: changed in place.
        features: float ``(N, 64, 768)``, or with ``tower`` pixel values ``(N, 3, 128, 128)``.
        wanted: float ``(N, 64, width)``.
        room: orthonormal ``(width, sum of VISUAL)``; errors in its directions count more, see `MATTERS`.
        variance: of the codes in ``room``, all directions together.
        also: a `.lookup.LookUp` to be trained together with it.
        tower: trained too, at a fifth of the learning rate.
        rate: the learning rate at its peak.

    Returns:
        share of that variance that is not written.
    """
    from tqdm.auto import tqdm

    from ...model.backbones import multiplies_in_bf16

    noise = torch.Generator().manual_seed(seed)
    weight = torch.cat([torch.full((n,), MATTERS[name]) for name, n in VISUAL.items()])
    length = wanted.norm(dim=-1, keepdim=True)
    groups = [{"params": [*connector.parameters(), *(also.parameters() if also else ())]}]
    if tower is not None:
        groups.append({"params": list(tower.parameters()), "lr": rate / 5})
    descent = torch.optim.AdamW(groups, lr=rate, weight_decay=0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        descent, [group["lr"] for group in descent.param_groups], total_steps=steps, pct_start=0.05)
    spread = variance * LOUD**2 / 256
    with torch.enable_grad():
        for group in groups:
            for parameter in group["params"]:
                parameter.requires_grad_(True)
        for _ in tqdm(range(steps), "connector" if tower is None else "tower and connector"):
            at = torch.randint(len(features), (SCENES,), generator=noise)
            with torch.autocast("cpu", torch.bfloat16, enabled=multiplies_in_bf16()):
                seen = features[at] if tower is None else last_features(tower, features[at])
                said = connector(seen)
            error = (said.float() - wanted[at]) / length[at]
            missed = (error @ room).square() / spread
            loss = error.square().sum(-1).mean() + (missed * weight).sum(-1).mean()
            if also:
                loss = loss + also.loss(said.float(), at, noise)
            descent.zero_grad()
            loss.backward()
            descent.step()
            schedule.step()
    return missed.sum(-1).mean().item()


def last_features(tower, images):
    """The tower's features, as the connector gets them: float ``(N, 64, 768)``."""
    return tower(images, output_hidden_states=True).hidden_states[-1]


def see(model, images):
    """`last_features` of a model's tower, some pictures at a time."""
    return torch.cat([last_features(model.model.vision_tower, part) for part in images.split(50)])


# --- layers -----------------------------------------------------------------------------------------


@dataclass
class Room:
    """Orthonormal directions of the residual stream, each ``(width, n)``, by what they hold."""

    visual: torch.Tensor
    counter: torch.Tensor
    row: torch.Tensor
    stated: torch.Tensor
    found: torch.Tensor
    runs: torch.Tensor
    here: torch.Tensor

    @classmethod
    def choose(cls, table, visual, taken):
        """The quietest directions of word embeddings and visual tokens, apart from those ``taken``."""
        both = torch.cat([table / table.norm(dim=-1).median(), _normed(visual)[::8] / 16])
        away = torch.eye(len(taken)) - taken @ taken.T
        directions = torch.linalg.eigh(away @ both.T @ both @ away)[1][:, taken.shape[1]:]
        sizes = [2, 14, 2 * len(PERIODS), 4 * BOX_DIMS + 2 * len(PERIODS), 4 * RUN_DIMS, 2 * RUN_DIMS]
        counter, visual, *rest = directions.split(
            [sizes[0], sum(VISUAL.values()), *sizes[1:], directions.shape[1] - sum(sizes)
             - sum(VISUAL.values())], -1)
        return cls(visual, counter, *rest[:-1])

    @property
    def all(self):
        """Every direction that is used, ``(width, n)``."""
        return torch.cat(list(vars(self).values()), 1)

    def of(self, name: str):
        """The directions of a part of `VISUAL`."""
        at = list(VISUAL).index(name)
        start = sum(list(VISUAL.values())[:at])
        return self.visual[:, start:start + VISUAL[name]]


def add_drawing(model, tokenizer, images, targets):
    """A copy of a base with `.matching` that also keeps its place.

    Args:
        model: the embedded ``LlavaForConditionalGeneration``.
        images: float ``(N, 3, 128, 128)``, pixel values of training scenes.
        targets: int64 ``(N, n_heads, 16, 16)``, their `.dense.dense_targets`.

    Returns:
        the grown model, float32, and the share of the codes that visual tokens do not carry.

    Raises:
        ValueError: the model's lowest layer is not one of `.matching`.
    """
    from .alignment import by_visual_token

    lowest = model.model.language_model.layers[0].mlp.down_proj.weight
    if lowest.abs().max() > 0:
        raise ValueError("The model's lowest layer is not a fresh one of tiny_base.matching, whose idle "
                         "heads and MLP drawing takes: run tiny_base.matching on the base first.")
    grown = insert_layer(model, 2)
    language = grown.model.language_model
    layers, table = language.layers, language.embed_tokens.weight
    with torch.no_grad():
        features = see(grown, images)
        old = grown.model.multi_modal_projector(features[:300]).flatten(0, 1)
        taken = F.normalize(layers[0].self_attn.o_proj.weight[:, :len(WORDS)], dim=0)
        taken = torch.linalg.qr(taken)[0]
        room = Room.choose(table, old, taken)
    lost = refit_connector(grown.model.multi_modal_projector, features,
                           visual_codes(by_visual_token(targets)), room.visual)
    with torch.no_grad():
        # only what must be exact: frequent words have half of their length in quiet directions
        table -= table @ room.counter @ room.counter.T
        seen = _normed(grown.model.multi_modal_projector(features[:300]).flatten(0, 1))
        text = _normed(table)
        _wire_counter(layers[0], tokenizer, text, seen, room)
        _wire_numbers(layers[0], tokenizer, text, seen, room)
        _wire_row_code(layers[0].mlp, room)
        _wire_found(layers[1], room)
        _wire_rows(layers[2], tokenizer, text, seen, room)
        _wire_halves(layers[2].mlp, room)
    return grown, lost


def _head(attention, head: int) -> slice:
    """The head's rows of the projections, its queries, keys and values set to nothing."""
    at = slice(head * attention.head_dim, (head + 1) * attention.head_dim)
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
        projection.weight[at] = 0
        projection.bias[at] = 0
    attention.o_proj.weight[:, at] = 0
    return at


RIDGE = 1e-5
"""Of the least squares, against the mean square of an input: weights must not grow on directions
that words hardly use, where rounding would speak."""


def _key(text, seen, wanted: dict[int, float]):
    """A direction with the given values at some tokens and about 0 at everything else."""
    some = seen[::16]
    values = torch.zeros(len(text) + len(some), 1)
    weights = torch.ones(len(values))
    for token, value in wanted.items():
        values[token], weights[token] = value, 1e4
    return _fit(torch.cat([text, some]), values, weights, RIDGE)[:, 0]


def _constant_query(attention, at: slice, key, logit: float) -> None:
    """Every place looks at ``key`` alike, however far: in the pair that turns most slowly."""
    last = at.start + attention.head_dim // 2 - 1
    size = (logit * attention.head_dim**0.5) ** 0.5
    attention.q_proj.bias[last] = size
    attention.k_proj.weight[last] = size * key


def _wire_counter(layer, tokenizer, text, seen, room) -> None:
    """Head 1 writes the share of ``<seg>`` among line breaks and ``<seg>``, beside a constant."""
    attention, logit = layer.self_attn, 16.0
    at = _head(attention, 1)
    seg, line = tokenizer.convert_tokens_to_ids(["<seg>", tokenizer.tokenize("\n")[0]])
    key = _key(text, seen, {seg: 1 + math.log(COUNT) / logit, line: 1.0})
    _constant_query(attention, at, key, logit)
    attention.v_proj.weight[at.start] = _key(text, seen, {seg: 1.0, line: 0.0})
    attention.v_proj.bias[at.start + 1] = 1.0
    attention.o_proj.weight[:, at.start:at.start + 2] = room.counter


def _numbers(tokenizer) -> dict[int, int]:
    """Token -> number, for the numbers of a box as they stand in a text."""
    ids = {n: tokenizer(f" {n}", add_special_tokens=False)["input_ids"] for n in range(BOX_BINS)}
    return {i[0]: n for n, i in ids.items() if len(i) == 1}


def _wire_numbers(layer, tokenizer, text, seen, room) -> None:
    """Head 2 writes the `fingerprint` of the numbers so far; without any it looks at the start."""
    attention, numbers = layer.self_attn, _numbers(tokenizer)
    at = _head(attention, 2)
    key = _key(text, seen, {**dict.fromkeys(numbers, 1.0), tokenizer.bos_token_id: 0.5})
    _constant_query(attention, at, key, 16.0)
    wanted = torch.zeros(len(text), 2 * len(PERIODS))
    weights = torch.ones(len(text))
    for token, number in numbers.items():
        wanted[token] = fingerprint(torch.tensor([float(number)]))
        weights[token] = 1e4
    weights[tokenizer.bos_token_id] = 1e4
    n = wanted.shape[1]
    attention.v_proj.weight[at.start:at.start + n] = _fit(text, wanted, weights, RIDGE).T
    attention.o_proj.weight[:, at.start:at.start + n] = WRITE * room.stated


ROWS = GRID
GATE = 0.25
"""Half width of the counter's steps, as a share of the distance between two counts."""


def _wire_row_code(mlp, room) -> None:
    """The counter's share of ``<seg>``, compared with that of every row, becomes `written_row_code`.

    A line break stands before ``<seg>`` too, so row r is written after r + 1 of them. Share and
    thresholds are multiples of the same constant, because the norm before the MLP scales both.
    """
    share, one = room.counter.T
    codes = written_row_code(torch.arange(ROWS))
    steps = codes - torch.cat([codes[1:], torch.zeros_like(codes[:1])])
    mlp.gate_proj.weight.zero_()
    mlp.up_proj.weight.zero_()
    mlp.down_proj.weight.zero_()
    for row, step in enumerate(steps):
        here, after = COUNT / (COUNT + row + 1), COUNT / (COUNT + row + 2)
        middle, half = (here + after) / 2, GATE * (here - after)
        gain = 1.0 / half  # so that the gate's bend is short against the step
        for k, (side, sign) in enumerate(((half, 1), (-half, -1))):
            unit = 2 * row + k
            mlp.gate_proj.weight[unit] = gain * (share - (middle - side) * one)
            mlp.up_proj.weight[unit] = one
            size = WRITE / (2 * gain * half * READ**2)
            mlp.down_proj.weight[:, unit] = sign * size * room.row @ step


def _wire_found(layer, room) -> None:
    """The last head of the look-up hands on box and fingerprint of what matches the words."""
    attention = layer.self_attn
    start = attention.q_proj.out_features - attention.head_dim
    at = slice(start, start + attention.head_dim)
    read = torch.cat([room.of("boxes"), room.of("print")], 1)
    n = read.shape[1]
    attention.v_proj.weight[at] = 0
    attention.v_proj.bias[at] = 0
    attention.v_proj.weight[at.start:at.start + n] = read.T / LOUD
    attention.o_proj.weight[:, at] = 0
    attention.o_proj.weight[:, at.start:at.start + n] = WRITE * room.found


def _wire_rows(layer, tokenizer, text, seen, room) -> None:
    """Two heads look at visual tokens of this row with the matching and with the stated box, and hand
    on their runs; the others look at the stated box in all rows and hand on a part of what they see."""
    attention = layer.self_attn
    heads = attention.q_proj.out_features // attention.head_dim
    bos = _key(text, seen, {tokenizer.bos_token_id: 1.0})
    noise = torch.Generator().manual_seed(2)
    width = attention.q_proj.in_features
    read, write = (torch.linalg.qr(torch.randn(width, width, generator=noise))[0] for _ in range(2))
    found = room.found[:, 4 * BOX_DIMS:]
    for head in range(heads):
        at = _head(attention, head)
        asked = found / READ_FOUND if head == 0 else room.stated / READ_STATED
        _same_place(attention, at, asked / WRITE, room, bos, rows=head < 2)
        if head < 2:
            n = 4 * RUN_DIMS
            attention.v_proj.weight[at.start:at.start + n] = room.of("runs").T / LOUD
            attention.o_proj.weight[:, at.start:at.start + n] = WRITE * (1 + head) / 2 * room.runs
        else:
            attention.v_proj.weight[at] = read[at]
            attention.o_proj.weight[:, at] = 0.3 * width**-0.5 * write[:, at]


def _same_place(attention, at: slice, box, room, bos, rows: bool) -> None:
    """Logits: minus `SAME_BOX` times about the squared distance of fingerprints, plus `SAME_ROW` times the
    agreement of rows; the start of the text is a little worse than an agreeing row with nothing in it."""
    dim, half = attention.head_dim, attention.head_dim // 2
    unit = dim**0.25
    query = [*(2 * SAME_BOX) ** 0.5 * box.T]
    key = [*(2 * SAME_BOX) ** 0.5 * room.of("print").T / LOUD]
    order = [0, 3, 1, 4, 2, 5]  # cosine and sine of one wave in one pair
    query, key = [query[i] for i in order], [key[i] for i in order]
    none = torch.zeros_like(bos)
    row = room.row.T / (WRITE * READ_ROW) if rows else none.expand(6, -1)
    query += [SAME_ROW**0.5 * part for part in row[:4]]
    key += [SAME_ROW**0.5 * part for part in room.of("row").T / LOUD]
    match_in_pairs(attention, at, query, key, FIRST_PAIR, DISTANCE, unit)
    i, j = at.start + half - 1, at.start + dim - 1
    attention.q_proj.weight[i] = unit * 1.3 * SAME_ROW * row[5]
    attention.k_proj.weight[i] = unit * bos
    attention.q_proj.bias[j] = unit * SAME_BOX / 2  # half: both sides of the product read a little low
    attention.k_proj.weight[j] = -unit * room.of("square")[:, 0] / LOUD


def _wire_halves(mlp, room) -> None:
    """Of both rows of cells that a visual token shows, the MLP hands on the one being written."""
    parity = room.row[:, 4]
    half = 2 * RUN_DIMS
    mlp.gate_proj.weight.zero_()
    mlp.up_proj.weight.zero_()
    mlp.down_proj.weight.zero_()
    for k in range(2 * half):
        mlp.gate_proj.weight[k] = 4 * parity * (1 if k < half else -1)
        mlp.up_proj.weight[k] = room.runs[:, k]
        mlp.down_proj.weight[:, k] = room.here[:, k % half] / (4 * READ**2 * WRITE)


@torch.no_grad()
def looks_at_rows(backbone, n: int = 48, split: str = "val") -> list[dict]:
    """Where the row heads of the third layer look while a true answer is written, row by row.

    Args:
        backbone: the embedded `t4s_helpers.model.backbones.Backbone`; an adapter changes nothing below
            the fourth layer.
        n: scenes, one request for a single object in each.

    Returns:
        one row per head (``"matching"``: the box of what fits the words, ``"stated"``: the box that
        the answer stated), over the grid's rows that show the object: ``n`` such rows, and mean
        shares of attention: ``here`` (the object's visual tokens that show this row), ``rows`` (the
        object's others), ``elsewhere``; and ``right``, how often ``here`` is more than ``rows``.
    """
    from ...data.expressions import scene_samples

    model = backbone.model
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")  # the only one that hands out its weights
    samples = scene_samples(split, n, "res", start=6000, kinds=("attribute", "position"))
    looks = torch.cat([_look_at_rows(backbone, sample) for sample in samples])
    model.set_attn_implementation(before)
    return [{"head": head, "n": len(looks), **dict(zip(("here", "rows", "elsewhere"),
                                                       looks[:, k].mean(0).tolist())),
             "right": (looks[:, k, 0] > looks[:, k, 1]).float().mean().item()}
            for k, head in enumerate(("matching", "stated"))]


def _look_at_rows(backbone, sample):
    """Attention at the start of every row that shows the object, ``(rows, 2 heads, 3 places)``."""
    import numpy as np

    from ...codec.grid import masks_to_grid
    from ...data.prompts import turn
    from .language import collate, packed

    tokenizer = backbone.processor.tokenizer
    item = packed(backbone.encoder([turn(sample, style="box")], has_image=True), sample.pixels())
    batch = collate([item], tokenizer.pad_token_id)
    ids = batch["input_ids"][0]
    batch.pop("labels")
    batch = {name: part.to(backbone.model.device) for name, part in batch.items()}
    out = backbone.model(**batch, output_attentions=True)
    pictured = (ids == backbone.processor.image_token_id).nonzero()[:, 0]
    start = (ids == tokenizer.convert_tokens_to_ids("<seg>")).nonzero()[0, 0].item()
    line = tokenizer(" a\n")["input_ids"][-1]
    starts = [start, *(start + (ids[start:] == line).nonzero()[:, 0]).tolist()]
    grid = masks_to_grid(sample.masks, GRID) > 0
    shows = torch.as_tensor(grid.reshape(SIDE, 2, SIDE, 2).any((1, 3)))
    rows = torch.arange(SIDE)[:, None].expand(SIDE, SIDE)
    found = []
    for row in np.flatnonzero(grid.any(1)):
        seen = out.attentions[2][0, :2, starts[row]][:, pictured].reshape(2, SIDE, SIDE).float().cpu()
        here = (seen * (shows & (rows == row // 2))).sum((1, 2))
        own = (seen * shows).sum((1, 2))
        found.append(torch.stack([here, own - here, 1 - own], -1))
    return torch.stack(found)


def grow(start: Path, out: Path, n: int = 1000) -> float:
    """Add drawing to the base in ``start`` with ``n`` training scenes; see `add_drawing`."""
    from transformers import AutoModelForImageTextToText, AutoProcessor, set_seed

    from .dense import render_with_targets
    from .rendering import render_many
    from .tower import collate

    set_seed(0)
    processor = AutoProcessor.from_pretrained(start)
    model = AutoModelForImageTextToText.from_pretrained(start, dtype=torch.float32)
    batch = collate(render_many(render_with_targets, list(range(n))))
    grown, lost = add_drawing(model, processor.tokenizer, batch["pixel_values"], batch["targets"])
    grown.to(torch.bfloat16).save_pretrained(out / "final")
    processor.save_pretrained(out / "final")
    return lost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--start", type=Path, required=True, help="a base with matching")
    parser.add_argument("--out", type=Path, default=Path("checkpoints/drawing"))
    args = parser.parse_args()
    print(f"share of the codes that visual tokens do not carry: {grow(args.start, args.out):.3f}")


if __name__ == "__main__":
    main()
