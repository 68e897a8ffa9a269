"""A user's own data as a CSV file of image, expression, mask."""

from __future__ import annotations

from unicodedata import normalize

import numpy as np
import pytest
from PIL import Image

from t4s_helpers.__main__ import main
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
    ("a.png,a cup, on the left,m.png", "more fields"),
    ("a.png,the dog,photo.png", "photo.png holds the values"),
    ("own.csv,the dog,m.png", "own.csv cannot be read"),
])
def test_a_bad_line_is_named(folder, line, said):
    noise = np.random.default_rng(0).integers(0, 256, (20, 30), np.uint8)
    Image.fromarray(noise).save(folder / "photo.png")
    path = write(folder, "a.png,fine,m.png", line)
    with pytest.raises(SampleError, match=rf"(?s)Line 3 of .*own\.csv.*{said}"):
        load_own(path)


def test_a_mask_of_another_size_is_found_before_the_first_step(folder):
    Image.fromarray(np.ones((5, 5), np.uint8)).save(folder / "small.png")
    path = write(folder, "a.png,the dog,small.png")
    with pytest.raises(SampleError, match=r"Line 2 of .*a\.png is 30 x 20 .*small\.png says 5 x 5"):
        load(path)
    with pytest.raises(SampleError, match=r"own/2' decode to bool \(1, 5, 5\)"):
        load(path, verify=False)[0].has_target.any()
    lines = [f"{'a' if k % 2 else 'b'}.png,dog {k},{'m' if k % 3 else 'small'}.png" for k in range(60)]
    path = write(folder, *lines)
    with pytest.raises(SampleError, match=r"(?s)40 samples of .*30 x missing image, 10 x image of another "
                                          r"size.*Line 2 .*Line 4 .*and 20 more"):
        load(path)
    data = load(path, bad="exclude")
    assert (len(data), len(data.excluded)) == (20, 40) and data[1].labels == ("dog 5",)
    assert data.exclusions() == [{"reason": "missing image", "n": 30, "first": "own/2"},
                                 {"reason": "image of another size", "n": 10, "first": "own/5"}]


def test_masks_on_the_stored_picture_are_turned_with_it(folder):
    image = Image.open(folder / "a.png")
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    image.save(folder / "turned.jpg", exif=exif)
    path = write(folder, "turned.jpg,the dog,m.png", "turned.jpg,the cat,")
    with pytest.raises(SampleError, match="turned.jpg is 20 x 30 .*EXIF.*pass apply_exif=False"):
        load(path)
    assert main(["data", str(path)]) == 1 and main(["data", str(path), "--no-exif"]) == 0
    dog, cat = load(path, apply_exif=False)
    assert dog.pixels().shape == cat.pixels().shape == (30, 20, 3) and cat.masks.shape == (1, 30, 20)
    assert dog.masks.sum() == dog.masks[0, 3:9, 15:18].sum() == 18


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_what_spreadsheets_write(folder, encoding, delimiter):
    lines = [("image", "expression ", "mask"), ("a.png", "die Tür – links", "m.png"), ()]
    (folder / "own.csv").write_bytes("\r\n".join(map(delimiter.join, lines)).encode(encoding))
    sample, = load(folder / "own.csv")
    assert sample.labels == ("die Tür – links",) and sample.masks.sum() == 18


def test_a_file_in_no_unicode(folder):
    path = folder / "own.csv"
    path.write_bytes("image;expression;mask\na.png;die Tür – links;m.png\n".encode("cp1252"))
    with pytest.warns(UserWarning, match="own.csv is not UTF-8 .*'a.png;die Tür – links;m.png'.*encoding="):
        assert load(path)[0].labels == ("die Tür – links",)
    path.write_bytes("image,expression,mask\na.png,左の犬,m.png\n".encode("cp932"))
    assert load(path, encoding="cp932")[0].labels == ("左の犬",)
    with pytest.raises(SampleError, match="own.csv cannot be read as text .*UTF-8"):
        load(path, encoding="utf-8")
    path.write_bytes(b"image,expression,mask\na.png,\x81,m.png\n")
    with pytest.raises(SampleError, match="own.csv cannot be read as text .*UTF-8"):
        load(path)


@pytest.mark.parametrize("written, there", [("NFD", "NFC"), ("NFC", "NFD")])
def test_file_names_in_another_form_of_unicode(folder, written, there):
    (folder / normalize(there, "Straße é")).mkdir()
    (folder / "a.png").rename(folder / normalize(there, "Straße é") / normalize(there, "tür.png"))
    (folder / "m.png").rename(folder / normalize(there, "mañana.png"))
    name, mask = normalize(written, "Straße é\\tür.png"), normalize(written, "mañana.png")
    sample, = load(write(folder, f"{name},the dog,{mask}"))
    assert sample.masks.sum() == 18 and sample.pixels().shape == (20, 30, 3)


def test_a_missing_file_or_column_is_named(folder):
    for name in ("nothing.csv", "instances.json"):
        with pytest.raises(SampleError, match=name):
            load_own(folder / name)
    with pytest.raises(SampleError, match="no column mask"):
        load_own(write(folder, "a.png,b", header="image,expression"))
    with pytest.raises(SampleError, match=r"Line 2 of .*quotation mark"):
        load_own(write(folder, 'a.png,"' + 200_000 * "b"))


def test_own_data_is_trained_on(folder):
    """Every picture in turn, its expression answered by its own mask."""
    path = write(folder, "a.png,the dog,m.png", "a.png,the cat,")
    mixture = DataMixture([load(path)], 5, encoding=get_encoding(grid_size=4))
    assert mixture.image(4).shape == (20, 30, 3)
    told = [(mixture.source(k).labels, mixture.turns(k)[0].text) for k in range(5)]
    assert len(set(told)) == 2, "the same answer at every pass"
    assert all(("the dog *" in text) == (label == "the dog") and "the cat" not in text
               for (label,), text in told)
