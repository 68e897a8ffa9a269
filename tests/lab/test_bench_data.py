"""Reading data stays small: what the benchmark measures, at a small size."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pandas as pd
import pytest

from t4s_helpers.lab.benchmarks import data as bench_data
from t4s_helpers.lab.benchmarks.data import open_files, read_samples, write_files

OUTLINES = 6000


@pytest.fixture(scope="module", params=["pickle", "json"])
def dataset(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return open_files(write_files(folder, OUTLINES, request.param), request.param)


def test_files_have_the_proportions_of_refcoco_and_samples_no_order(dataset):
    assert len(dataset.coco.annotations) == OUTLINES
    assert len(dataset) == pytest.approx(OUTLINES * 142 / 197, rel=0.01)
    assert len(dataset.by_image()) == pytest.approx(OUTLINES * 20 / 197, rel=0.01)
    order = np.random.default_rng(0).permutation(len(dataset))[:50].tolist()
    forwards = {n: dataset[n] for n in order}
    assert forwards[order[0]].pixels().shape == (480, 640, 3)
    for n in reversed(order):
        again = dataset[n]
        assert again.labels == forwards[n].labels and again.masks.any()
        assert np.array_equal(again.masks, forwards[n].masks)


def growth_per_access(dataset, n: int) -> float:
    """Bytes that stay for each sample read: the least of three spans, as what grows, grows in each."""
    order, held = np.random.default_rng(0).permutation(len(dataset)), []
    tracemalloc.start()
    try:
        for span in np.split(order[:500 + 3 * n], [500, 500 + n, 500 + 2 * n]):  # caches fill first
            read_samples(dataset, span, photos=False)
            held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    return float(np.diff(held).min()) / n


class Hoarder:
    """Keeps every sample it has made, without its masks."""

    def __init__(self, whole):
        self.whole, self.kept = whole, []

    def __len__(self):
        return len(self.whole)

    def __getitem__(self, index):
        self.kept.append(self.whole[index])
        return self.kept[-1]


@pytest.mark.slow
def test_reading_leaves_nothing_behind(dataset):
    assert growth_per_access(dataset, 400) < 50, "bytes for each sample"
    assert growth_per_access(Hoarder(dataset), 100) > 500, "what is left behind is found"


@pytest.mark.slow
def test_the_command_writes_every_measure(tmp_path, monkeypatch, capsys):
    out = tmp_path / "results" / "bench.csv"
    monkeypatch.setattr(bench_data, "PICTURES", 2)
    bench_data.main(["--sizes", "400", "--full", "600", "--read", "50", "--photos", "5",
                     "--folder", str(tmp_path / "files"), "--out", str(out)])
    rows = pd.read_csv(out, keep_default_na=False)
    assert set(zip(rows["form"], rows["outlines"])) == {("pickle", 600), ("json", 600), ("json", 400)}
    full = rows[rows["outlines"] == 600]
    assert set(full["promised"]) == {"<20", "<3000", ">2000", ">150", ""}
    assert set(full["samples"]) == {600 * 50 // 197 * 142 // 50}
    assert (rows[~rows["measure"].str.startswith("added")]["value"] > 0).all()
    assert "rate with photo" in capsys.readouterr().out
