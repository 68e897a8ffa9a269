"""Better eyes for a finished base: a tower that was trained further takes the place of the old one.

The language model has learned to read visual tokens as they are, so the connector is fitted until the
new tower's features say what the old one's said, and say the codes of `.drawing` (what begins and ends
where) more exactly than before. Nothing above the connector changes.

``python -m t4s_helpers.tiny_base.eyes --start checkpoints/drawn/final --tower checkpoints/tower2 \\
    --out checkpoints/eyes`` writes the model to ``<out>/final``.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import torch

from . import drawing
from .dense import GRID, HEADS, IGNORE

PARTS = ("runs", "boxes", "print", "square")
"""What visual tokens say more exactly afterwards, of `drawing.VISUAL`."""

RIDGE = 1e-3
"""Of the least squares with which the connector begins, against the mean square of a feature."""


def code_directions(language_model):
    """Directions of visual tokens in which a base with `.drawing` reads `PARTS`: ``(width, n)``.

    They are read off the layers that were wired to them.
    """
    first, last = language_model.layers[2].self_attn, language_model.layers[1].self_attn
    n = drawing.VISUAL["boxes"] + drawing.VISUAL["print"]
    start = last.q_proj.out_features - last.head_dim
    read = torch.cat([first.v_proj.weight[:drawing.VISUAL["runs"]], last.v_proj.weight[start:start + n],
                      -first.k_proj.weight[2 * first.head_dim - 1:2 * first.head_dim]]).T.float()
    basis = torch.linalg.qr(read)[0]  # which may turn a direction around
    return torch.where((basis * read).sum(0) < 0, -basis, basis)


def change_tower(model, tower: dict, images, targets, steps: int = 4000, seed: int = 0):
    """A copy of a base with another tower, and a connector fitted to it.

    Args:
        model: the embedded ``LlavaForConditionalGeneration`` with `.drawing`, float32.
        tower: tensors of a `.tower.DenseTower`.
        images: float ``(N, 3, 128, 128)``, pixel values of training scenes.
        targets: int64 ``(N, n_heads, 16, 16)``, their `.dense.dense_targets`.

    Returns:
        the new model, and two shares: of the variance of the codes that its visual tokens do not
        write, and of the squared length of visual tokens that is not as it was.
    """
    from .alignment import by_visual_token

    grown = copy.deepcopy(model)
    own = {k.removeprefix("tower."): v for k, v in tower.items() if k.startswith("tower.")}
    strange = grown.model.vision_tower.load_state_dict(own, strict=False).unexpected_keys
    if strange:
        raise ValueError(f"This is not the tower of such a model: {strange[:3]} do not fit.")
    with torch.no_grad():
        before, features = (see(one, images).flatten(0, 1) for one in (model, grown))
        tokens = model.model.multi_modal_projector(before)
        room = code_directions(model.model.language_model)
        codes = _codes(by_visual_token(targets)).flatten(0, 1)
        wanted = drawing.with_codes(tokens, codes, room)
        connector = grown.model.multi_modal_projector
        _carry_over(connector.linear_1, before, features)
    weight = torch.cat([torch.full((drawing.VISUAL[name],), drawing.MATTERS[name]) for name in PARTS])
    lost = drawing.approach(connector, features, wanted, room, weight, codes.var(0).sum(), steps, seed)
    with torch.no_grad():
        rest = (connector(features[::7]) - wanted[::7]) / wanted[::7].norm(dim=-1, keepdim=True)
        return grown, lost, (rest - rest @ room @ room.T).square().sum(-1).mean().item()


def see(model, images):
    """The tower's features, as the connector gets them: float ``(N, 64, 768)``."""
    return torch.cat([model.model.vision_tower(part, output_hidden_states=True).hidden_states[-1]
                      for part in images.split(50)])


def _codes(targets):
    names, at, parts = list(drawing.VISUAL), 0, []
    codes = drawing.visual_codes(targets)
    for name in names:
        if name in PARTS:
            parts.append(codes[..., at:at + drawing.VISUAL[name]])
        at += drawing.VISUAL[name]
    return torch.cat(parts, -1)


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
    room = code_directions(model.model.language_model)[:, :2 * drawing.RUN_DIMS]
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
    parser.add_argument("--tower", type=Path, required=True, help="folder of the new tower")
    parser.add_argument("--out", type=Path, default=Path("checkpoints/eyes"))
    parser.add_argument("--scenes", type=int, default=6000)
    args = parser.parse_args()
    set_seed(0)
    processor = AutoProcessor.from_pretrained(args.start)
    model = AutoModelForImageTextToText.from_pretrained(args.start, dtype=torch.float32)
    batch = collate(render_many(render_with_targets, list(range(args.scenes))))
    grown, lost, changed = change_tower(model, load_tower(args.tower), batch["pixel_values"],
                                        batch["targets"])
    for name, one in (("before", model), ("after", grown)):
        print(name, columns_right(one))
    print(f"not written of the codes: {lost:.3f}; changed of the rest: {changed:.3f}")
    grown.to(torch.bfloat16).save_pretrained(args.out / "final")
    processor.save_pretrained(args.out / "final")


if __name__ == "__main__":
    main()
