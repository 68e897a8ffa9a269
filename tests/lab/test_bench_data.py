"""Reading data stays small: what the benchmark measures, at a small size."""

from __future__ import annotations

import csv
import gc

import numpy as np
import pytest

from t4s_helpers.lab.benchmarks import data as bench_data
from t4s_helpers.lab.benchmarks.data import benchmark, growth_per_access, open_files, write_files
from t4s_helpers.data.dataset import Subset

OUTLINES = 6000


@pytest.fixture(scope="module", params=["pickle", "json"])
def dataset(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return open_files(write_files(folder, OUTLINES, request.param), request.param)


def test_files_have_the_proportions_of_refcoco(dataset):
    assert len(dataset.coco.annotations) == OUTLINES
    assert len(dataset) == pytest.approx(OUTLINES * 142 / 197, rel=0.01)
    assert len(dataset.by_image()) == pytest.approx(OUTLINES * 20 / 197, rel=0.01)
    sample = dataset[7]
    assert sample.masks.any() and sample.pixels().shape == (480, 640, 3)


@pytest.mark.slow
def test_reading_leaves_nothing_behind(dataset):
    assert growth_per_access(dataset, 400) < 50, "bytes for each sample"


class Hoarder(Subset):
    """Keeps every sample it has made, without its masks."""

    def __init__(self, whole):
        super().__init__(whole, np.arange(len(whole)))
        self.kept = []

    def sample(self, index):
        self.kept.append(super().sample(index))
        return self.kept[-1]


@pytest.mark.slow
def test_the_measure_finds_what_is_left_behind(dataset):
    assert growth_per_access(Hoarder(dataset), 100) > 500


def test_any_order_gives_the_same_samples(dataset):
    order = np.random.default_rng(0).permutation(len(dataset))[:50].tolist()
    forwards = {n: dataset[n] for n in order}
    for n in reversed(order):
        again = dataset[n]
        assert again.labels == forwards[n].labels
        assert np.array_equal(again.masks, forwards[n].masks)
    gc.collect()


@pytest.mark.slow
def test_the_command_writes_every_measure(tmp_path, monkeypatch, capsys):
    out = tmp_path / "results" / "bench.csv"
    monkeypatch.setattr(bench_data, "_PICTURES", 2)
    bench_data.main(["--sizes", "400", "--full", "600", "--read", "50", "--photos", "5",
                     "--folder", str(tmp_path / "files"), "--out", str(out)])
    with open(out, newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(r["form"], r["outlines"]) for r in rows} == {
        ("pickle", "600"), ("json", "600"), ("json", "400")}
    assert {r["promised"] for r in rows if r["outlines"] == "600"} == {
        "<20", "<3000", ">2000", ">150", ""}
    assert all(float(r["value"]) > 0 for r in rows if not r["measure"].startswith("added"))
    assert "rate with photo" in capsys.readouterr().out


@pytest.mark.slow
def test_benchmark_counts_its_own_samples(tmp_path):
    table = benchmark([], tmp_path, full=300, n_read=10, n_photos=2)
    assert set(table["samples"]) == {300 * 50 // 197 * 142 // 50}
