"""The oracle table: true masks through the text, against pixels counted one by one."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from t4s_helpers.codec.encodings import get_encoding
from t4s_helpers.data.sample import Sample
from t4s_helpers.evaluation import oracle
from t4s_helpers.evaluation.oracle import distinct_targets, oracle_summary, oracle_table, through_text
from t4s_helpers.refine import PAPER_PROMPTS, Prompts, load_refiner

H, W = 24, 32
RNG = np.random.default_rng(5)
PHOTOS = [RNG.integers(0, 256, (H, W, 3), dtype=np.uint8) for _ in range(2)]


def rectangle(y0, y1, x0, x1):
    mask = np.zeros((H, W), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def sample(name, photo, *masks, labels=None):
    labels = labels or tuple(f"thing {k} of {name}" for k in range(len(masks)))
    return Sample(name, PHOTOS[photo], labels, np.stack(masks), task="gres")


NOTHING = np.zeros((H, W), bool)
BIG, LOW = rectangle(3, 17, 5, 22), rectangle(19, 24, 0, 11)
SAMPLES = [
    sample("a", 0, BIG),
    sample("b", 1, rectangle(2, 12, 9, 27), rectangle(13, 21, 2, 30)),
    sample("c", 0, LOW, labels=("odd *3 | label",)),
    sample("d", 1, NOTHING),
]


def by_hand(masks, size, rule):
    """Cell by cell and pixel by pixel; cells of these sizes hold whole pixels."""
    rows, cols = size if isinstance(size, tuple) else (size, size)
    tall, wide = H // rows, W // cols
    assert tall * rows == H and wide * cols == W
    out = np.zeros_like(masks)
    for r in range(rows):
        for c in range(cols):
            cell = np.s_[r * tall:(r + 1) * tall, c * wide:(c + 1) * wide]
            if rule == "area":
                shares = [mask[cell].mean() for mask in masks]
            else:
                shares = [mask[r * tall + tall // 2, c * wide + wide // 2] for mask in masks]
            best = int(np.argmax(shares))
            if shares[best] >= 0.5:
                out[best][cell] = True
    return out


def count(mask, truth):
    pixels = [(a, b) for a, b in zip(mask.ravel().tolist(), truth.ravel().tolist(), strict=True)]
    return sum(a and b for a, b in pixels), sum(a or b for a, b in pixels)


@pytest.mark.parametrize("refiner", [None, load_refiner("none")], ids=["no refiner", "none"])
@pytest.mark.parametrize("encoding", ["rrle", "irle", "full"])
def test_the_numbers_by_brute_force(refiner, encoding):
    sizes = (4, (8, 16))
    rows, table = oracle_table(SAMPLES, sizes, refiner=refiner, encoding=get_encoding(encoding),
                               progress=False)
    assert len(rows) == len(sizes) * 2 * 5  # rules, labels
    assert [(t["grid"], t["rule"], t["refiner"]) for t in table] == [
        ("4", "area", "none"), ("4", "nearest", "none"),
        ("8x16", "area", "none"), ("8x16", "nearest", "none"),
    ]
    for case, (size, rule) in zip(
        table, [(size, rule) for size in sizes for rule in ("area", "nearest")], strict=True
    ):
        inter, union, ious = 0, 0, []
        for one in SAMPLES:
            for mask, truth in zip(by_hand(one.masks, size, rule), one.masks, strict=True):
                i, u = count(mask, truth)
                inter, union = inter + i, union + u
                ious.append(i / u if u else 1.0)
        assert case["ciou"] == pytest.approx(inter / union)
        assert case["giou"] == pytest.approx(np.mean(ious))
        assert case["n"] == 5 and case["fallbacks"] == 0
        mine = [r["iou"] for r in rows if (r["grid"], r["rule"]) == (case["grid"], rule)]
        assert sorted(mine) == pytest.approx(sorted(ious))
    assert 0.5 < min(t["ciou"] for t in table) < max(t["ciou"] for t in table) < 1.0
    assert oracle_summary(rows) == table


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
        fallback = np.arange(len(masks)) == 0
        return SimpleNamespace(masks=np.ones_like(masks), fallback=fallback)


def test_one_embedding_an_image_and_other_prompts_at_the_first_size():
    refiner, other = Recorder(), Prompts(calls=1)
    rows, table = oracle_table(
        SAMPLES, (4, 8), ("area",), refiner, {"once": other}, seed=7, progress=False
    )
    assert len(refiner.images) == 2
    assert all(found is wanted for found, wanted in zip(refiner.images, PHOTOS, strict=True))
    a, b = (2, 7, PAPER_PROMPTS), (3, 7, PAPER_PROMPTS)
    assert refiner.asked == [a, (2, 7, other), a, b, (3, 7, other), b]
    found = {(t["grid"], t["refiner"]): t for t in table}
    assert set(found) == {
        ("4", "none"), ("4", "recorder"), ("4", "once"), ("8", "none"), ("8", "recorder")
    }
    areas = [one.masks[k].sum() for one in SAMPLES for k in range(len(one.labels))]
    for way in ("recorder", "once"):
        assert found["4", way]["ciou"] == pytest.approx(sum(areas) / (5 * H * W))
        assert found["4", way]["fallbacks"] == 2
    no_target = [r for r in rows if r["id"] == "d" and r["refiner"] == "recorder"]
    assert [r["iou"] for r in no_target] == [0.0, 0.0]


def test_every_label_keeps_its_own_truth():
    rows, _ = oracle_table(SAMPLES, (8,), ("area",), progress=False)
    targets = {(r["id"], r["label"]): r["target"] for r in rows}
    assert targets == {
        (one.id, label): int(mask.sum())
        for one in SAMPLES for label, mask in zip(one.labels, one.masks, strict=True)
    }


def test_a_target_named_twice_counts_once():
    again = sample("e", 0, BIG)
    elsewhere = sample("f", 1, BIG)
    kept = distinct_targets([*SAMPLES, again, elsewhere])
    assert [one.id for one in kept] == ["a", "b", "c", "f"]
