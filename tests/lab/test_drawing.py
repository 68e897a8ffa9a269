"""A layer put into a base keeps its place in a picture while a mask is written."""

from __future__ import annotations

import math

import pytest
import tiny_model
import torch

from t4s_helpers.model import backbones
from t4s_helpers.codec.grid import mask_to_box
from t4s_helpers.data.prompts import box_in_words
from t4s_helpers.data.scenes import make_scene
from t4s_helpers.lab.tiny_model import drawing
from t4s_helpers.lab.tiny_model.alignment import by_visual_token
from t4s_helpers.lab.tiny_model.dense import dense_targets


def codes(scene):
    """Codes of a scene's visual tokens by name, each ``(8, 8, n)``."""
    targets = by_visual_token(torch.as_tensor(dense_targets(scene)).long()[None])
    parts = drawing.visual_codes(targets)[0].split(list(drawing.VISUAL.values()), -1)
    return {name: part.unflatten(0, (8, 8)) for name, part in zip(drawing.VISUAL, parts)}


def test_a_hat_code_is_read_back_exactly():
    values = torch.tensor([0.0, 1.0, 6.3, 15.0])
    code = drawing.hat_code(values, 8, 15.0)
    assert torch.allclose(code @ torch.linspace(0, 15, 8), values, atol=1e-5)
    assert torch.allclose(code.sum(-1), torch.ones(4))


def test_a_fingerprint_knows_the_numbers_and_not_their_order():
    box = torch.tensor([3.0, 10.0, 8.0, 21.0])
    assert torch.allclose(drawing.fingerprint(box), drawing.fingerprint(box[[2, 0, 3, 1]]), atol=1e-6)
    assert (drawing.fingerprint(box) - drawing.fingerprint(box + 4)).norm() > 0.3


def test_rows_next_to_each_other_agree_little():
    agree = drawing.row_code(torch.arange(8)) @ drawing.row_code(torch.arange(8)).T
    assert torch.allclose(agree.diagonal(), torch.full((8,), 2.0), atol=1e-6)
    assert (agree - 2 * torch.eye(8)).max() < 0.8


def test_visual_tokens_carry_the_box_in_the_words_of_answers():
    scene = make_scene("val", 3)
    thing = scene.objects[-1]
    box = [float(n) for n in box_in_words(thing.mask).split()[1:]]
    x0, y0, x1, y1 = mask_to_box(thing.mask)
    token = codes(scene)["print"][(y0 + y1) // 2 // 16, (x0 + x1) // 2 // 16]
    assert torch.allclose(token, drawing.fingerprint(torch.tensor(box)), atol=1e-5)


def test_a_grown_model_keeps_the_layers_above_and_writes_little():
    backbone = tiny_model.backbone()
    n = len(backbone.model.model.language_model.layers)
    grown = drawing.insert_layer(backbone.model, 2)
    old, new = (m.model.language_model.layers for m in (backbone.model, grown))
    assert len(new) == n + 1
    for a, b in zip([*old[:2], *old[2:]], [*new[:2], *new[3:]]):
        for (name, x), (_, y) in zip(a.named_parameters(), b.named_parameters()):
            assert torch.equal(x, y), name
    ids = torch.arange(40, 60)[None]
    with torch.no_grad():
        before, after = (m(input_ids=ids).logits for m in (backbone.model.float(), grown))
    assert torch.allclose(before, after, atol=1e-4)


def test_the_share_of_seg_tells_the_rows_apart():
    mlp = torch.nn.Module()
    for name, shape in (("gate_proj", (704, 256)), ("up_proj", (704, 256)), ("down_proj", (256, 704))):
        setattr(mlp, name, torch.nn.Linear(shape[1], shape[0], bias=False))
    basis = torch.linalg.qr(torch.randn(256, 256, generator=torch.Generator().manual_seed(0)))[0]
    room = type("Room", (), {"counter": basis[:, :2], "row": basis[:, 2:16]})
    with torch.no_grad():
        drawing._wire_row_code(mlp, room)
        rows = torch.arange(16)
        share = drawing.COUNT / (drawing.COUNT + rows + 1)
        state = torch.stack([share, torch.ones(16)], -1) @ room.counter.T * drawing.READ
        out = mlp.down_proj(torch.nn.functional.silu(mlp.gate_proj(state)) * mlp.up_proj(state))
        none = mlp.down_proj(torch.nn.functional.silu(mlp.gate_proj(state * 0 + room.counter[:, 1] * 8))
                             * mlp.up_proj(state))
    said, true = out @ room.row, drawing.written_row_code(rows)
    nearest = torch.cdist(said / said[:, 5:6], true).argmin(-1)
    assert nearest.tolist() == rows.tolist()
    assert math.isclose(none.norm().item(), 0, abs_tol=0.02)


def test_rows_are_looked_at_in_shares_that_sum_to_one():
    looks = drawing.looks_at_rows(tiny_model.backbone(), n=4)
    assert [row["head"] for row in looks] == ["matching", "stated"]
    for row in looks:
        assert math.isclose(row["here"] + row["rows"] + row["elsewhere"], 1, abs_tol=1e-3)
        assert 0 < row["n"] <= 4 * 16


def test_the_shipped_base_looks_at_the_row_it_writes():
    looks = {row["head"]: row for row in drawing.looks_at_rows(backbones.load_backbone("embedded"), n=12)}
    assert looks["stated"]["right"] > 0.8 and looks["stated"]["here"] > 0.4
    assert looks["matching"]["here"] > 2 * looks["matching"]["rows"]


def test_a_base_without_matching_is_refused(tmp_path):
    with pytest.raises(ValueError, match="matching"):
        drawing.add_drawing(tiny_model.backbone().model, None, None, None)
