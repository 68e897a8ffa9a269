"""Sample: what it accepts, what it refuses in which words, and how images are read."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest
from PIL import Image

from t4s_helpers.data import Sample, SampleError, read_image
from t4s_helpers.data.sample import exif_orientation, image_size, is_source
from t4s_helpers.codec.grid import masks_to_grid

RED, GREEN = (200, 10, 20), (10, 190, 30)


def picture(height=6, width=8):
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2] = RED
    pixels[:, width // 2 :] = GREEN
    return pixels


def left_right(height=6, width=8):
    masks = np.zeros((2, height, width), bool)
    masks[0, :, : width // 2] = True
    masks[1, :, width // 2 :] = True
    return masks


def sample(**changes):
    given = {"id": "demo", "image": picture(), "labels": ("left", "right"), "masks": left_right()}
    return Sample(**{**given, **changes})


class Recorder:
    """A source of masks that counts how often it is decoded."""

    def __init__(self, masks, shape=None):
        self.masks, self.shape, self.calls = masks, shape or masks.shape, 0

    def decode(self):
        self.calls += 1
        return self.masks


def test_holds_what_it_was_given():
    s = sample(labels=[" left ", "right"], question="what?", answer="this", meta={"a": 1})
    assert s.labels == ("left", "right") and s.size == (6, 8) and s.pixels() is s.image
    assert s.masks.dtype == bool and np.array_equal(s.masks, left_right())
    assert (s.task, s.split, s.question, s.answer, s.meta) == ("res", "train", "what?", "this", {"a": 1})
    assert repr(s) == "Sample('demo', 8 x 6, res, labels=('left', 'right'))"
    with pytest.raises(dataclasses.FrozenInstanceError):
        s.masks = left_right()
    assert sample() != sample(), "samples are compared by identity, not array by array"


def test_masks_of_zeros_and_ones_become_booleans():
    assert sample(masks=left_right().astype(np.uint8)).masks.dtype == bool
    assert np.array_equal(sample(masks=list(left_right().astype(float))).masks, left_right())


def test_has_target_per_label():
    masks = left_right()
    masks[1] = False
    assert sample(masks=masks, task="gres").has_target.tolist() == [True, False]


def test_questions_need_no_label(tmp_path):
    path = tmp_path / "photo.png"
    none = np.zeros((0, 6, 8), bool)
    made = (sample(task="vqa", labels=(), masks=none), sample(task="vqa", labels=(), masks=None),
            sample(task="vqa", labels=(), masks=None, image=path))
    Image.fromarray(picture()).save(path)  # only now: making the sample opened nothing
    for s in made:
        assert s.size == (6, 8) and s.masks.shape == none.shape and s.has_target.shape == (0,)
        assert np.array_equal(s.pixels(), picture())


def test_survives_pickling_and_replacing():
    lazy = sample(masks=Recorder(left_right()))
    other = dataclasses.replace(lazy, split="val")
    for copy in (pickle.loads(pickle.dumps(lazy)), other):
        assert np.array_equal(copy.masks, left_right())
    assert other.split == "val"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": ("left",)}, r"demo.* 1 labels but masks of shape \(2, 6, 8\)"),
        ({"masks": left_right()[0]}, r"demo.*2 labels but masks of shape \(6, 8\)"),
        ({"masks": np.zeros((2, 0, 8), bool)}, r"demo.*\(2, 0, 8\)"),
        ({"masks": None}, "demo.*object"),
        ({"masks": left_right().astype(np.uint8) * 255}, "demo.*uint8.*other than 0 and 1"),
        ({"masks": left_right() * 0.5}, "demo.*other than 0 and 1"),
        ({"masks": np.full((2, 6, 8), np.nan)}, "demo.*other than 0 and 1"),
        ({"labels": ("others", "x")}, "demo.*others"),
        ({"labels": ("cat", " cat")}, "demo.*cat"),
        ({"labels": ("", "x")}, "demo.*empty"),
        ({"labels": ("x", 3)}, "demo.*text"),
        ({"labels": "ab"}, "demo.*list of texts"),
        ({"labels": {"a", "b"}}, "demo.*of type set; give a tuple of texts"),
        ({"labels": (), "masks": np.zeros((0, 6, 8), bool)}, "demo.*no labels"),
        ({"task": "segment"}, "demo.*'segment'; choose one of res, gres"),
        ({"split": ""}, "demo.*split"),
        ({"question": 7}, "demo.*question"),
        ({"meta": None}, "demo.*meta"),
        ({"id": " "}, "non-empty text as its id"),
        ({"id": 5}, "non-empty text as its id"),
        ({"image": picture().astype(float)}, "demo.*float64.*uint8 RGB"),
        ({"image": picture()[..., 0]}, r"demo.*\(6, 8\); give uint8 RGB"),
        ({"image": np.zeros((6, 8, 4), np.uint8)}, r"demo.*\(6, 8, 4\)"),
        ({"image": picture(8, 6)}, "demo.*masks of 8 x 6 pixels.*is 6 x 8 pixels"),
        ({"image": None}, "demo.*NoneType"),
    ],
)
def test_refuses_in_one_sentence_that_names_the_sample(changes, words):
    with pytest.raises(SampleError, match=words) as caught:
        sample(**changes)
    assert "\n" not in str(caught.value)


def test_refuses_masks_of_different_sizes():
    with pytest.raises(ValueError):
        sample(masks=[np.zeros((6, 8), bool), np.zeros((6, 7), bool)])


# masks decoded on demand


def test_a_source_is_decoded_only_when_asked():
    source = Recorder(left_right())
    s = sample(masks=source, meta={"instance_masks": source, "instance_owners": [1, 0]})
    assert (s.size, source.calls) == ((6, 8), 0)
    assert np.array_equal(s.masks, left_right()) and source.calls == 1
    masks, owners = s.instances()
    assert np.array_equal(masks, left_right()) and owners.tolist() == [1, 0]


@pytest.mark.parametrize("masks", [left_right()[:1], left_right().astype(int)])
def test_a_source_that_decodes_to_something_else_is_named(masks):
    s = sample(masks=Recorder(masks, shape=(2, 6, 8)))
    with pytest.raises(SampleError, match="demo.*decode to"):
        s.masks  # noqa: B018


def test_sources_are_told_from_arrays():
    assert is_source(Recorder(left_right()))
    for other in (left_right(), [left_right()], None, "text", b"bytes", object()):
        assert not is_source(other)


# the grid


@pytest.mark.parametrize("rule", ["area", "nearest"])
def test_grid_is_that_of_the_codec(rule):
    assert np.array_equal(sample().grid((3, 7), rule), masks_to_grid(left_right(), (3, 7), rule))


def test_every_single_object_of_a_label_stays_visible():
    objects = np.zeros((3, 64, 64), bool)
    objects[0, 2:40, 2:40] = objects[1, 50:52, 9:11] = objects[2, 57:58, 57:58] = True
    masks = np.stack([objects[0] | objects[1], objects[2]])
    meta = {"instance_masks": objects, "instance_owners": (0, 0, 1)}
    plain, grid = (sample(image=picture(64, 64), masks=masks, meta=some).grid(8) for some in ({}, meta))
    assert plain[6, 1] == 0, "without the single objects the small one is lost"
    assert (grid[6, 1], grid[7, 7], grid[1, 1]) == (1, 2, 1)


def test_instances_without_further_knowledge_are_the_masks():
    masks, owners = sample().instances()
    assert np.array_equal(masks, left_right()) and owners.tolist() == [0, 1]
    meta = {"instance_masks": np.zeros((0, 6, 8), bool), "instance_owners": ()}
    assert not sample(labels=("ghost",), masks=np.zeros((1, 6, 8), bool), meta=meta).grid(4).any()


@pytest.mark.parametrize(
    ("meta", "words"),
    [
        ({"instance_masks": left_right()}, "both or none"),
        ({"instance_masks": left_right(), "instance_owners": [0]}, "1 instance_owners"),
        ({"instance_masks": left_right(), "instance_owners": [0, 2]}, r"\[0, 2\]"),
        ({"instance_masks": left_right(), "instance_owners": [0, -1]}, r"\[0, -1\]"),
        ({"instance_masks": left_right(), "instance_owners": [0.0, 1.0]}, "index"),
        ({"instance_masks": left_right(4, 4), "instance_owners": [0, 1]}, r"\(N, 6, 8\)"),
        ({"instance_masks": left_right().astype(int), "instance_owners": [0, 1]}, "boolean"),
    ],
)
def test_refuses_instances_that_do_not_fit(meta, words):
    with pytest.raises(SampleError, match=words):
        sample(meta=meta)


# image files


def test_a_path_is_read_when_the_pixels_are_asked_for(tmp_path):
    path = tmp_path / "photo.png"
    s = sample(image=path)
    with pytest.raises(SampleError, match="photo.png does not exist"):
        s.pixels()
    Image.fromarray(picture()).save(path)
    assert np.array_equal(s.pixels(), picture())
    assert np.array_equal(sample(image=str(path)).pixels(), picture())


def test_a_photo_of_another_size_is_named_with_both_sizes(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(picture(6, 9)).save(path)
    with pytest.raises(SampleError, match=r"demo.*8 x 6 pixels.*photo\.png is 9 x 6 pixels"):
        sample(image=path).pixels()


def read_back(tmp_path, image, suffix="png", **options):
    image.save(tmp_path / f"i.{suffix}", **options)
    return read_image(tmp_path / f"i.{suffix}")


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr", "RGBA", "LA"])
def test_other_kinds_of_images_become_rgb(tmp_path, mode):
    image = Image.fromarray(picture()).convert(mode)
    pixels = read_back(tmp_path, image, "tif" if mode in ("CMYK", "YCbCr") else "png")
    assert pixels.dtype == np.uint8 and pixels.shape == (6, 8, 3)
    assert np.array_equal(pixels, np.array(image.convert("RGB"))) and np.ptp(pixels) > 40


def test_transparent_pixels_are_laid_on_white(tmp_path):
    hidden = np.dstack([picture(), np.full((6, 8), 255, np.uint8)])
    hidden[0, 0] = (7, 7, 7, 0)
    pixels = read_back(tmp_path, Image.fromarray(hidden, "RGBA"))
    assert pixels[0, 0].tolist() == [255, 255, 255] and np.array_equal(pixels[1:], picture()[1:])
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([9, 9, 9, *RED])
    assert read_back(tmp_path, palette, transparency=0).tolist() == [[[255, 255, 255], list(RED)]]


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.fromarray(np.full((4, 4, 3), c, np.uint8)) for c in (RED, GREEN)]
    pixels = read_back(tmp_path, frames[0], "gif", save_all=True, append_images=frames[1:])
    assert np.abs(pixels.astype(int) - RED).max() < 8


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_refuses_what_eight_bits_cannot_hold(tmp_path, dtype):
    with pytest.raises(SampleError, match=r"i\.tif has pixels of mode .*8-bit"):
        read_back(tmp_path, Image.fromarray(np.full((4, 4), 700, dtype)), "tif")


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp"])
def test_refuses_a_truncated_file(tmp_path, suffix):
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(SampleError, match=rf"cut\.{suffix} cannot be read") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no image at all", b"\x89PNG\r\n\x1a\n"])
@pytest.mark.parametrize("read", [read_image, image_size])
def test_refuses_what_is_no_image(tmp_path, content, read):
    path = tmp_path / "text.png"
    for nothing in (path, tmp_path):
        with pytest.raises(SampleError, match="does not exist"):
            read(nothing)
    path.write_bytes(content)
    with pytest.raises(SampleError, match=r"text\.png cannot be read"):
        read(path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_the_camera_says(tmp_path, orientation):
    image = Image.fromarray(picture())
    exif = image.getexif()
    exif[0x0112] = orientation
    pixels = read_back(tmp_path, image, exif=exif)
    assert image_size(tmp_path / "i.png") == pixels.shape[:2]
    assert image_size(tmp_path / "i.png", apply_exif=False) == picture().shape[:2]
    assert exif_orientation(tmp_path / "i.png") == orientation
    if orientation == 6:  # turn by 90 degrees clockwise to show
        assert np.array_equal(pixels, np.rot90(picture(), -1))


def test_the_size_of_a_png_file_is_read_without_its_pixels(tmp_path, monkeypatch):
    """But where its orientation stands behind the pixels, it counts all the same."""
    path, moved = tmp_path / "i.png", tmp_path / "moved.png"
    image = Image.fromarray(picture())
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(path, exif=exif)
    data = path.read_bytes()
    start = data.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(data[start:start + 4], "big")
    moved.write_bytes(data[:start] + data[end:-12] + data[start:end] + data[-12:])
    assert image_size(moved) == read_image(moved).shape[:2] == (8, 6)
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", None)
    assert image_size(path) == (8, 6)
    Image.fromarray(picture()).save(path)
    assert image_size(path) == (6, 8)
