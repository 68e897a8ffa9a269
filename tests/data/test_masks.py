"""Mask files in every form that annotation tools write, each with the same target of 200 pixels."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from t4s_helpers.data import SampleError
from t4s_helpers.data.masks import read_mask

TARGET = np.zeros((30, 40), bool)
TARGET[7:17, 11:31] = True
RIM = np.zeros_like(TARGET)
RIM[6:18, 10:32] = True
RIM &= ~TARGET
PHOTO = np.random.default_rng(0).integers(0, 256, (*TARGET.shape, 3), np.uint8)
VOC = [0, 0, 0, 128, 0, 0, 0, 128, 0] + [224, 224, 192] * 253


def grey(target, rim=0, dtype=np.uint8):
    return Image.fromarray((TARGET * target + RIM * rim).astype(dtype))


def colour(target, rim=(0, 0, 0)):
    pixels = np.zeros((*TARGET.shape, 3), np.uint8)
    pixels[TARGET], pixels[RIM] = target, rim
    return Image.fromarray(pixels)


def palette(colours, target=1, rim=0, **info):
    image = Image.fromarray((TARGET * target + RIM * rim).astype(np.uint8), "P")
    image.putpalette(colours)
    image.info |= info
    return image


def cut_out(pixels, alpha=255):
    return Image.fromarray(np.dstack([pixels, (TARGET * alpha).astype(np.uint8)]))


def jpeg(image, quality=75):
    file = io.BytesIO()
    image.save(file, "jpeg", quality=quality)
    return Image.open(file)


def soft():
    """As an editor draws a smooth edge: the outermost pixels are dark, those beside them light."""
    inside = TARGET & ~np.roll(TARGET, 1, 1)
    return Image.fromarray((TARGET * 255 - inside * 60 + RIM * 60).astype(np.uint8))


FORMS = {
    "white on black": (grey(255), "png"), "0 and 1": (grey(1), "png"),
    "one bit": (grey(255).convert("1"), "png"), "class 15": (grey(15), "png"),
    "16 bits": (grey(65_535, dtype=np.uint16), "png"),
    "0 and 1 in 16 bits": (grey(1, dtype=np.uint16), "png"), "32 bits": (grey(9, dtype=np.int32), "tif"),
    "floating point": (grey(1, dtype=np.float32), "tif"), "1 and a rim of 255": (grey(1, 255), "png"),
    "smooth edges": (soft(), "png"), "smooth edges in 16 bits": (
        Image.fromarray(np.asarray(soft()).astype(np.uint16) * 257), "png"),
    "JPEG": (grey(255), "jpg"), "coarse JPEG": (jpeg(grey(255), 40), "png"),
    "JPEG in colour": (grey(255).convert("RGB"), "jpg"),
    "white in colour": (grey(255).convert("RGB"), "png"), "red on black": (colour((128, 0, 0)), "png"),
    "cut out of a photo": (cut_out(PHOTO), "png"), "black on transparent": (cut_out(0 * PHOTO), "png"),
    "white on transparent": (cut_out(0 * PHOTO + 255), "png"),
    "all opaque": (grey(255).convert("RGBA"), "png"),
    "grey and transparent": (cut_out(PHOTO).convert("LA"), "png"),
    "palette in the manner of VOC": (palette(VOC), "png"), "with VOC's rim": (palette(VOC, 2, 255), "png"),
    "palette without colours": (palette([0] * 768), "png"), "grey palette": (soft().convert("P"), "png"),
    "index 0 is white": (palette([255, 255, 255, 200, 0, 0]), "png"),
    "index 0 is transparent": (palette([255, 255, 255, 0, 0, 0], transparency=0), "png"),
    "GIF": (palette(VOC), "gif"),
}


@pytest.mark.parametrize("name", FORMS)
def test_the_target_is_read_from_every_form(tmp_path, name):
    image, suffix = FORMS[name]
    image.save(tmp_path / f"m.{suffix}", **image.info)
    mask = read_mask(tmp_path / f"m.{suffix}")
    assert mask.shape == (1, *TARGET.shape) and mask.dtype == bool and np.array_equal(mask[0], TARGET)


AMBIGUOUS = {
    "index 0 white, index 1 black": (palette([255, 255, 255, 0, 0, 0]), "black at index 1 instead of 0"),
    "two indices": (palette(VOC, 1, 2), "the indices 1, 2"),
    "a map of classes": (grey(1, 2), "the values 0, 1, 2,"),
    "a trimap": (grey(255, 128), "the values 0, 128, 255"),
    "a map of classes, and a rim": (Image.fromarray((TARGET * 150 + RIM * 255 + ~(TARGET | RIM) * 7).astype(
        np.uint8)), "the values 7, 150, 255"),
    "a photo": (Image.fromarray(PHOTO), "colours"),
    "a grey photo": (Image.fromarray(PHOTO[..., 0]), "0, 1, 2, "),
    "two colours": (colour((128, 0, 0), (0, 128, 0)), "colours"),
    "nothing but transparent": (cut_out(PHOTO, 0), "transparent everywhere"),
    "white and black, and transparent": (Image.fromarray(np.dstack(
        [TARGET * 255] * 3 + [(TARGET | RIM) * 255]).astype(np.uint8)), "transparent and black"),
    "0 and 1 as JPEG": (jpeg(grey(9), 95), "the values 0, "),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_what_can_be_read_in_two_ways_is_refused(tmp_path, name):
    image, words = AMBIGUOUS[name]
    image.save(tmp_path / ("m.jpg" if "JPEG" in name else "m.png"))
    with pytest.raises(SampleError, match=rf"The mask .*m\..* .*{words}.*save the target white"):
        read_mask(next(tmp_path.iterdir()))


def test_nothing_and_everything(tmp_path):
    for value in (0, 255):
        for suffix in ("png", "jpg"):
            Image.new("L", (4, 3), value).save(tmp_path / f"m.{suffix}")
            assert (read_mask(tmp_path / f"m.{suffix}") == (value > 0)).all()


def test_a_mask_is_turned_as_its_own_exif_says(tmp_path):
    image = grey(255)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "m.png", exif=exif)
    assert np.array_equal(read_mask(tmp_path / "m.png")[0], np.rot90(TARGET, -1))
    assert np.array_equal(read_mask(tmp_path / "m.png", apply_exif=False)[0], TARGET)
