"""Mask files: which pixels are meant, in whatever way annotation tools and editors write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .dataset import BadRow
from .sample import opened_image

VOID = 255
"""Index of the rim around objects in the manner of PASCAL VOC; it belongs to nothing."""


def read_mask(path: Path, apply_exif: bool = True) -> np.ndarray:
    """bool ``(1, H, W)``: the target in a mask file.

    - Where transparency varies, what is opaque is the target, whatever its colours (a cut-out).
    - Of a palette the index counts, not the colour: 0 is background, 255 beside another index the rim.
    - Grey of two values, in any number of bits: 0 is background and the other the target. Beside 0 and 1,
      255 is the rim.
    - Soft grey, as JPEG and smooth edges make it: what is lighter than half. At most half as many pixels
      may be of a middle grey as are light, as in a photo or a map of classes they are not.
    - Colour: black is background, one further colour the target.

    ``apply_exif`` turns the mask as its own EXIF orientation says.

    Raises:
        BadRow: the file is missing or unreadable, or can be read in more than one way; the message names it.
    """
    from PIL import ImageOps

    with opened_image(path) as opened:
        opened.load()
        image = ImageOps.exif_transpose(opened) if apply_exif else opened.copy()
        lossy = opened.format in ("JPEG", "MPO")
    try:
        return _target(image, lossy)[None]
    except ValueError as error:
        raise BadRow("ambiguous mask", f"The mask {path} {error}; save the target white and all else black, "
                     "one file for each expression.") from None


def _target(image: Any, lossy: bool) -> np.ndarray:
    """bool ``(H, W)``; a ValueError is the rest of a sentence."""
    if image.mode == "P" and "transparency" not in image.info:
        return _of_indices(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = np.asarray(image)[..., 3]
        opaque = {colour[:3] for _, colour in image.getcolors(256) or () if colour[3]}
        if not alpha.any() or (alpha.min() < 255 and len(opaque) == 2 and (0, 0, 0) in opaque):
            raise ValueError("is transparent everywhere, or is both transparent and black")
        if alpha.min() < 255:
            return alpha > 127
        image = image.convert("RGB")
    if image.mode in ("1", "L") or image.mode.startswith(("I", "F")):
        return _of_grey(image, lossy)
    image = image.convert("RGB")
    pixels = np.asarray(image)
    if (pixels == pixels[..., :1]).all():
        return _of_grey(image.getchannel(0), lossy)
    if (0, 0, 0) not in [colour for _, colour in image.getcolors(2) or ()]:
        raise ValueError("holds colours besides black and one other, so that it is not clear which are meant")
    return pixels.any(axis=2)


def _of_indices(image: Any) -> np.ndarray:
    """`_target` of a palette image."""
    used, shades = [index for _, index in image.getcolors()], np.reshape(image.getpalette(), (-1, 3))
    black = [index for index in used if index < len(shades) and not shades[index].any()]
    if black and 0 not in black:
        raise ValueError(f"has a palette with black at index {black[0]} instead of 0, so that it is not "
                         "clear which is the background")
    targets = [index for index in used if index]
    if len(targets) > 1 and black == [0] and (shades == shades[:, :1]).all():
        return _of_grey(image.convert("L"), lossy=False)
    if len(targets) == 2 and VOID in targets:
        targets.remove(VOID)
    if len(targets) > 1:
        raise ValueError(f"holds the indices {_listed(targets)}, so that it is not clear which are meant")
    return np.isin(np.asarray(image), targets)


def _of_grey(image: Any, lossy: bool) -> np.ndarray:
    """`_target` of an image with one number at each pixel, of any type."""
    if image.mode in ("1", "L"):
        times, found = np.transpose(sorted(image.getcolors(), key=lambda pair: pair[1]))
    else:
        found, times = np.unique(np.asarray(image), return_counts=True)
    if len(found) == 1 or (len(found) == 2 and not found[0] and not lossy):
        return np.asarray(image) > 0
    if found.tolist() == [0, 1, VOID] and not lossy:
        return np.asarray(image) == 1
    white = next((white for white in (1, 255, 65_535) if found[-1] <= white), found[-1])
    levels = found / white
    light, middle = times[levels > 0.75].sum(), times[(levels > 0.25) & (levels <= 0.75)].sum()
    smooth = ((levels > 0) & (levels <= 0.5)).any() and ((levels > 0.5) & (levels < 1)).any()
    if found[0] >= 0 and (lossy or smooth) and light and light >= 2 * middle:
        return np.asarray(image) > 0.5 * white
    raise ValueError(f"holds the values {_listed(found.tolist())}, so that it is not clear which are meant")


def _listed(values: list) -> str:
    return ", ".join(f"{value:g}" for value in values[:5]) + ", ..." * (len(values) > 5)
