"""Data sets by name, and the command that lists and checks them."""

from __future__ import annotations

import importlib

import pytest
from miniatures import ade, halves

from t4s_helpers.data import ENTRIES, SampleError, load
from t4s_helpers.data.photos import photo_samples
from t4s_helpers.data.registry import listing


def test_entries_are_complete_and_their_readers_exist():
    text = listing()
    for name, entry in ENTRIES.items():
        module, _, called = entry.reader.partition(":")
        reader = getattr(importlib.import_module(f"t4s_helpers.data.{module}"), called)
        assert reader.__doc__ and entry.layout and entry.licence and entry.metric
        assert entry.default_split in entry.splits and entry.name == name
        assert entry.task in ("res", "gres", "semantic", "instances", "vqa", "conversation")
        assert f"{name}  ({entry.task}: {entry.metric})" in text and entry.source.split()[0] in text
    assert "splits: test 2,910 or 3,000" in text and "splits: train, val, testA, testB, testC" in text


def test_the_published_counts():
    counts = {name: dict(ENTRIES[name].splits) for name in ("refcoco", "refcoco+", "refcocog")}
    assert [counts["refcoco"][s] for s in ("val", "testA", "testB")] == [10834, 5657, 5095]
    assert [counts["refcoco+"][s] for s in ("val", "testA", "testB")] == [10758, 5726, 4889]
    assert counts["refcocog"]["val"] == 4896


def test_unknown_names_and_splits():
    with pytest.raises(SampleError, match="'coco'; .*choose scenes, photos, refclef"):
        load("coco")
    with pytest.raises(SampleError, match="'minival'; choose one of train"):
        load("refcoco", "minival", root=".")


def test_options_of_own_files_are_refused_elsewhere():
    for name in ("refcoco", "scenes", "photos"):
        with pytest.raises(SampleError, match=f"own have the option apply_exif; leave it out for {name}"):
            load(name, apply_exif=False)


def test_the_folder_of_data_sets(tmp_path, monkeypatch):
    monkeypatch.delenv("T4S_DATA", raising=False)
    with pytest.raises(SampleError, match="set T4S_DATA .*ADEChallengeData2016.*images/"):
        load("ade20k-150")
    monkeypatch.setenv("T4S_DATA", str(tmp_path))
    with pytest.raises(SampleError, match="ADEChallengeData2016 of ade20k-150 does not exist"):
        load("ade20k-150")
    ade(tmp_path / "ADEChallengeData2016", halves(1, 2))
    ade(tmp_path / "ADEChallengeData2016", halves(1, 2), "ADE_val_00000002")
    assert len(load("ade20k-150", counts="off")) == 2
    (sample,) = load("ade20k-150", counts="off", n=3, start=1)
    assert sample.id == "ade20k-150/validation/ADE_val_00000002"


def test_every_name_opens(tmp_path):
    """Scenes, photos and a person's own files come through the same door."""
    assert [s.task for s in load("scenes", n=2, task="rec", start=5)] == ["rec", "rec"]
    assert load("scenes", n=1, start=7)[0].id == "res-test-000007"
    assert len(load("scenes", n=1, task="conversation")[0]) == 3
    seen, unseen = (load("scenes", n=1, task="semantic", palette=p)[0] for p in ("seen", "unseen"))
    assert (seen.image != unseen.image).any() and seen.labels == unseen.labels
    with pytest.raises(ValueError, match="names colours"):
        load("scenes", n=1, task="res", palette="unseen")
    assert [s.id for s in load("photos", n=2)] == [s.id for s in photo_samples()[:2]]
    own = tmp_path / "own.csv"
    own.write_text("image,expression,mask\n")
    assert [*load(own)] == [*load(str(own))] == [*load(own, bad="exclude", counts="off", n=3)] == []
