"""Better eyes for a finished base: a tower that was trained further takes the place of the old one.

The language model has learned to read visual tokens as they are, so the connector is fitted until the
new tower's features say what the old one's said, and say the codes of `.drawing` (what begins and ends
where) more exactly than before. The keys of the look-up are fitted with it, see `.lookup`; nothing else
above the connector changes. What a two-layer connector cannot work out from the tower's features the
tower can learn to say itself: ``--together`` goes on with all three, on other scenes.

``python -m t4s_helpers.lab.tiny_model.eyes --start checkpoints/drawn/final --tower checkpoints/tower2 \\
    --out checkpoints/eyes`` writes the model to ``<out>/final``.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import torch

from . import drawing
from .dense import GRID, HEADS, IGNORE
from .drawing import see

TO_CARRY = 1000
"""Scenes from which the connector's first layer learns to read the new features."""

TOGETHER = 1e-3
"""Learning rate where the tower is fitted too."""

RIDGE = 1e-3
"""Of the least squares with which the connector begins, against the mean square of a feature."""


def code_directions(language_model):
    """Directions of visual tokens in which a base with `.drawing` reads `drawing.VISUAL`: ``(width, n)``.

    They are read off the layers that were wired to them.
    """
    first, last = language_model.layers[2].self_attn, language_model.layers[1].self_attn
    dim, half, pair = first.head_dim, first.head_dim // 2, drawing.FIRST_PAIR + len(drawing.PERIODS)
    rows = first.k_proj.weight[[dim + pair, dim + half + pair, dim + pair + 1, dim + half + pair + 1]]
    n = drawing.VISUAL["boxes"] + drawing.VISUAL["print"]
    start = last.q_proj.out_features - last.head_dim
    read = torch.cat([rows, first.v_proj.weight[:drawing.VISUAL["runs"]], last.v_proj.weight[start:start + n],
                      -first.k_proj.weight[2 * dim - 1:2 * dim]]).T.float()
    basis = torch.linalg.qr(read)[0]  # which may turn a direction around
    return torch.where((basis * read).sum(0) < 0, -basis, basis)


def change_tower(model, tower: dict, images):
    """A copy of a base with another tower, whose connector reads it about as it read the old one.

    Args:
        model: the embedded ``LlavaForConditionalGeneration``, float32.
        tower: tensors of a `.tower.DenseTower`.
        images: float ``(N, 3, 128, 128)``, pixel values of training scenes.
    """
    grown = copy.deepcopy(model)
    own = {k.removeprefix("tower."): v for k, v in tower.items() if k.startswith("tower.")}
    strange = grown.model.vision_tower.load_state_dict(own, strict=False).unexpected_keys
    if strange:
        raise ValueError(f"This is not the tower of such a model: {strange[:3]} do not fit.")
    with torch.no_grad():
        _carry_over(grown.model.multi_modal_projector.linear_1, see(model, images).flatten(0, 1),
                    see(grown, images).flatten(0, 1))
    return grown


def fit(model, tokenizer, images, targets, like, steps: int = 4000, together: bool = False,
        seed: int = 0) -> tuple[float, float]:
    """Fit a base's connector and look-up, in place, to what visual tokens shall say.

    Args:
        model: the embedded ``LlavaForConditionalGeneration`` with `.drawing`, float32.
        tokenizer: its tokenizer.
        images: float ``(N, 3, 128, 128)``, pixel values of training scenes.
        targets: int64 ``(N, n_heads, 16, 16)``, their `.dense.dense_targets`.
        like: the model whose visual tokens the new ones shall be like, but for the codes.
        together: fit the tower too.

    Returns:
        two shares: of the variance of the codes that visual tokens do not write, and of the squared
        length of visual tokens that is not as in ``like``.
    """
    from .alignment import by_visual_token, word_targets
    from .lookup import LookUp

    shown, tower = by_visual_token(targets), model.model.vision_tower
    connector = model.model.multi_modal_projector
    with torch.no_grad():
        room, codes = code_directions(model.model.language_model), drawing.visual_codes(shown)
        wanted = drawing.with_codes(like.model.multi_modal_projector(see(like, images)), codes, room)
        features = images if together else see(model, images)
    look_up = LookUp(model, tokenizer, word_targets(shown[:, :3])[..., 1:].float())
    variance = codes.flatten(0, 1).var(0).sum()
    lost = drawing.approach(connector, features, wanted, room, variance, steps, seed, look_up,
                            *((tower, TOGETHER) if together else ()))
    look_up.write(model)
    with torch.no_grad():
        said, some = connector(see(model, images[::7])), wanted[::7]
        rest = (said - some) / some.norm(dim=-1, keepdim=True)
        return lost, (rest - rest @ room @ room.T).square().sum(-1).mean().item()


def _carry_over(linear, before, features) -> None:
    """Let a linear layer say of new features what it said of the old ones, by least squares."""
    said, x = linear(before), features - features.mean(0)
    square = x.T @ x
    ridge = RIDGE * square.diagonal().mean() * torch.eye(len(square))
    linear.weight.copy_(torch.linalg.solve(square + ridge, x.T @ (said - said.mean(0))).T)
    linear.bias.copy_(said.mean(0) - linear.weight @ features.mean(0))


@torch.no_grad()
def columns_right(model, n: int = 64, split: str = "val") -> dict[str, float]:
    """How exactly visual tokens say where their object begins and ends in a row.

    Args:
        model: a base with `.drawing`.
        n: scenes.

    Returns:
        ``exact``: share of first and last columns that are read off right, of all tokens that show an
        object in their upper row of cells; ``cells``: mean distance from the right column.
    """
    from .alignment import by_visual_token
    from .dense import render_with_targets
    from .tower import collate

    batch = collate([render_with_targets(index, split) for index in range(n)])
    tokens = model.model.multi_modal_projector(see(model, batch["pixel_values"]))
    first = drawing.VISUAL["row"]  # before the runs
    room = code_directions(model.model.language_model)[:, first:first + 2 * drawing.RUN_DIMS]
    said = (tokens / tokens.norm(dim=-1, keepdim=True) @ room * 16 / drawing.LOUD).unflatten(-1, (2, -1))
    known = drawing.hat_code(torch.arange(float(GRID)), drawing.RUN_DIMS, GRID - 1.0)
    column = (said[..., None, :] - known).square().sum(-1).argmin(-1)  # (n, 64, first or last)
    targets, names = by_visual_token(batch["targets"]), list(HEADS)
    truth = torch.stack([targets[:, names.index(name), :, 0] for name in ("run0", "run1")], -1)
    off = (column - truth)[truth != IGNORE].abs().float()
    return {"exact": (off == 0).float().mean().item(), "cells": off.mean().item()}


def main() -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor, set_seed

    from .dense import render_with_targets
    from .rendering import render_many
    from .tower import collate, load_tower

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--start", type=Path, required=True, help="a base with drawing")
    parser.add_argument("--tower", type=Path, help="folder of a new tower; without one it stays")
    parser.add_argument("--like", type=Path, help="the base whose visual tokens are kept, but for codes")
    parser.add_argument("--together", action="store_true", help="fit the tower too")
    parser.add_argument("--out", type=Path, default=Path("checkpoints/eyes"))
    parser.add_argument("--scenes", type=int, default=6000)
    parser.add_argument("--first", type=int, default=0, help="number of the first scene")
    parser.add_argument("--steps", type=int, default=4000)
    args = parser.parse_args()
    set_seed(0)
    processor = AutoProcessor.from_pretrained(args.start)
    model, like = (AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
                   for folder in (args.start, args.like or args.start))
    batch = collate(render_many(render_with_targets, list(range(args.first, args.first + args.scenes))))
    print("before", columns_right(model))
    if args.tower:
        model = change_tower(model, load_tower(args.tower), batch["pixel_values"][:TO_CARRY])
    lost, changed = fit(model, processor.tokenizer, batch["pixel_values"], batch["targets"], like,
                        args.steps, args.together)
    print("after", columns_right(model))
    print(f"not written of the codes: {lost:.3f}; changed of the rest: {changed:.3f}")
    model.to(torch.bfloat16).save_pretrained(args.out / "final")
    processor.save_pretrained(args.out / "final")


if __name__ == "__main__":
    main()
