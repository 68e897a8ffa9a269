"""A user's own data as a CSV file of image, expression, mask."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from t4s_helpers.codec.encodings import get_encoding
from t4s_helpers.data import load
from t4s_helpers.data.mixtures import DataMixture
from t4s_helpers.data.own import load_own
from t4s_helpers.data.sample import SampleError


@pytest.fixture
def folder(tmp_path):
    Image.fromarray(np.full((20, 30, 3), 9, np.uint8)).save(tmp_path / "a.png")
    mask = np.zeros((20, 30), np.uint8)
    mask[2:5, 3:9] = 255
    Image.fromarray(mask).save(tmp_path / "m.png")
    return tmp_path


def write(folder, *lines, header="image,expression,mask"):
    (folder / "own.csv").write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return folder / "own.csv"


def test_lines_become_samples(folder):
    path = write(folder, 'a.png,"the cup, left",m.png,Ann', "a.png,the dog,,Bob",
                 header="image,expression,mask,who")
    cup, dog = load_own(path, split="mine")
    assert cup.labels == ("the cup, left",) and cup.size == (20, 30) and cup.split == "mine"
    assert cup.masks.sum() == 18 and cup.masks[0, 2:5, 3:9].all() and cup.meta["who"] == "Ann"
    assert dog.masks.shape == (1, 20, 30) and not dog.has_target.any()
    assert cup.pixels().shape == (20, 30, 3) and cup.grid(4).max() == 1


@pytest.mark.parametrize("line, said", [
    ("b.png,the dog,m.png", "b.png"), ("a.png,the dog,n.png", "n.png"),
    ("a.png,,m.png", "no expression"), ("a.png,others,m.png", "others"),
])
def test_a_bad_line_is_named(folder, line, said):
    path = write(folder, "a.png,fine,m.png", line)
    with pytest.raises(SampleError, match=rf"(?s)Line 3 of .*own\.csv.*{said}"):
        load_own(path)


def test_a_mask_of_another_size_is_found_when_the_picture_is_read(folder):
    Image.fromarray(np.ones((5, 5), np.uint8)).save(folder / "small.png")
    sample, = load_own(write(folder, "a.png,the dog,small.png"))
    with pytest.raises(SampleError, match="a.png"):
        sample.pixels()


def test_a_missing_file_or_column_is_named(folder):
    for name in ("nothing.csv", "instances.json"):
        with pytest.raises(SampleError, match=name):
            load_own(folder / name)
    with pytest.raises(SampleError, match="no column mask"):
        load_own(write(folder, "a.png,b", header="image,expression"))


def test_own_data_is_trained_on(folder):
    """Every picture in turn, its expression answered by its own mask."""
    path = write(folder, "a.png,the dog,m.png", "a.png,the cat,")
    mixture = DataMixture([load(path)], 5, encoding=get_encoding(grid_size=4))
    assert mixture.image(4).shape == (20, 30, 3)
    told = [(mixture.source(k).labels, mixture.turns(k)[0].text) for k in range(5)]
    assert len(set(told)) == 2, "the same answer at every pass"
    assert all(("the dog *" in text) == (label == "the dog") and "the cat" not in text
               for (label,), text in told)
