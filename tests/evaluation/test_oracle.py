"""The oracle table: true masks through the text, against pixels counted one by one."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from t4s_helpers.codec.encodings import get_encoding
from t4s_helpers.data.registry import load
from t4s_helpers.data.sample import Sample
from t4s_helpers.evaluation import oracle
from t4s_helpers.evaluation.oracle import distinct_targets, oracle_summary, oracle_table, through_text
from t4s_helpers.model.chat import count_tokens, load_tokenizer
from t4s_helpers.refine import PAPER_PROMPTS, Prompts, load_refiner

H, W = 24, 32
PHOTOS = list(np.random.default_rng(5).integers(0, 256, (2, H, W, 3), dtype=np.uint8))


def rectangle(y0, y1, x0, x1):
    mask = np.zeros((H, W), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def sample(name, photo, *masks, labels=None):
    labels = labels or tuple(f"thing {k} of {name}" for k in range(len(masks)))
    return Sample(name, PHOTOS[photo], labels, np.stack(masks), task="gres")


BIG = rectangle(3, 17, 5, 22)
SAMPLES = [
    sample("a", 0, BIG),
    sample("b", 1, rectangle(2, 12, 9, 27), rectangle(13, 21, 2, 30)),
    sample("c", 0, rectangle(19, 24, 0, 11), labels=("odd *3 | label",)),
    sample("d", 1, rectangle(0, 0, 0, 0)),
]
TARGETS = [(one.id, label, mask) for one in SAMPLES for label, mask in zip(one.labels, one.masks)]


def by_hand(masks, size, rule):
    """Cell by cell and pixel by pixel; cells of these sizes hold whole pixels."""
    rows, cols = size if isinstance(size, tuple) else (size, size)
    tall, wide = H // rows, W // cols
    out = np.zeros_like(masks)
    for r, c in np.ndindex(rows, cols):
        cell = np.s_[r * tall:(r + 1) * tall, c * wide:(c + 1) * wide]
        shares = [mask[cell].mean() if rule == "area" else mask[cell][tall // 2, wide // 2] for mask in masks]
        best = int(np.argmax(shares))
        out[best][cell] = shares[best] >= 0.5
    return out


@pytest.mark.parametrize(("encoding", "refiner"), [
    ("rrle", None), ("irle", load_refiner("none")), ("full", None)])
def test_the_numbers_by_brute_force(encoding, refiner):
    sizes = (4, (8, 16))
    rows, table = oracle_table(SAMPLES, sizes, refiner=refiner, encoding=get_encoding(encoding),
                               progress=False)
    assert [(t["grid"], t["rule"], t["refiner"]) for t in table] == [
        (grid, rule, "none") for grid in ("4", "8x16") for rule in ("area", "nearest")]
    for case, (size, rule) in zip(table, [(size, rule) for size in sizes for rule in ("area", "nearest")]):
        masks = np.concatenate([by_hand(one.masks, size, rule) for one in SAMPLES])
        counts = [(int((mask & truth).sum()), int((mask | truth).sum()))
                  for mask, (*_, truth) in zip(masks, TARGETS)]
        ious = [i / u if u else 1.0 for i, u in counts]
        assert case["ciou"] == pytest.approx(sum(i for i, _ in counts) / sum(u for _, u in counts))
        assert case["giou"] == pytest.approx(np.mean(ious))
        assert case["n"] == 5 and case["fallbacks"] == 0
        mine = {(r["id"], r["label"]): (r["iou"], r["target"]) for r in rows
                if (r["grid"], r["rule"]) == (case["grid"], rule)}
        assert mine == {(name, label): (iou, truth.sum()) for (name, label, truth), iou in zip(TARGETS, ious)}
    assert 0.5 < min(t["ciou"] for t in table) < max(t["ciou"] for t in table) < 1.0
    assert len(rows) == 4 * 5 and oracle_summary(rows) == table


def test_the_masks_went_through_the_text(monkeypatch):
    seen = []
    monkeypatch.setattr(
        oracle, "parse", lambda text, *rest, keep=oracle.parse: seen.append(text) or keep(text, *rest))
    assert through_text(SAMPLES[2], get_encoding("rrle", 8)).any()
    assert len(seen) == 1 and "<seg>" in seen[0] and "odd" in seen[0]


class Recorder:
    """Stands for SAM: keeps what it was asked, answers the whole picture, falls back once."""

    name = "recorder"

    def __init__(self):
        self.images, self.asked = [], []

    def set_image(self, pixels):
        self.images.append(pixels)
        return self

    def refine(self, masks, seed=0, prompts=PAPER_PROMPTS):
        self.asked.append((len(masks), seed, prompts))
        return SimpleNamespace(masks=np.ones_like(masks), fallback=np.arange(len(masks)) == 0)


def test_one_embedding_an_image_and_other_prompts_at_the_first_size():
    refiner, other = Recorder(), Prompts(calls=1)
    rows, table = oracle_table(SAMPLES, (4, 8), ("area",), refiner, {"once": other}, seed=7, progress=False)
    assert len(refiner.images) == 2
    assert all(found is wanted for found, wanted in zip(refiner.images, PHOTOS))
    a, b = (2, 7, PAPER_PROMPTS), (3, 7, PAPER_PROMPTS)
    assert refiner.asked == [a, (2, 7, other), a, b, (3, 7, other), b]
    found = {(t["grid"], t["refiner"]): t for t in table}
    assert set(found) == {("8", "none"), ("8", "recorder"), *(("4", n) for n in ("none", "recorder", "once"))}
    share = sum(truth.sum() for *_, truth in TARGETS) / (5 * H * W)
    for way in ("recorder", "once"):
        assert found["4", way]["ciou"] == pytest.approx(share) and found["4", way]["fallbacks"] == 2
    assert [r["iou"] for r in rows if r["id"] == "d" and r["refiner"] == "recorder"] == [0.0, 0.0]


def test_a_target_named_twice_counts_once():
    kept = distinct_targets([*SAMPLES, sample("e", 0, BIG), sample("f", 1, BIG)])
    assert [one.id for one in kept] == ["a", "b", "c", "f"]


def test_box_by_box_is_finer_than_32_with_no_more_tokens_than_24():
    """True text of drawn scenes."""
    samples = distinct_targets(load("scenes", "test", n=60, start=500, task="res"))
    tokenizer, tokens, ciou = load_tokenizer(), {}, {}
    for name, side in (("rrle", 24), ("rrle", 32), ("boxwise", 12)):
        encoding = get_encoding(name, side)
        tokens[name, side] = sum(count_tokens(tokenizer, encoding.encode(encoding.from_masks(one.masks),
                                                                         one.labels)) for one in samples)
        _, [case] = oracle_table(samples, (side,), ("area",), encoding=encoding, progress=False)
        ciou[name, side] = case["ciou"]
    assert tokens["boxwise", 12] <= tokens["rrle", 24], tokens
    assert ciou["boxwise", 12] > ciou["rrle", 32], ciou
