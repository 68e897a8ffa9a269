"""Rendered pictogram scenes: the data set that ships inside the workbook.

A scene is a small textured picture with one to five coloured pictograms (glyphs of the DejaVu
Sans font that matplotlib bundles, and four plain shapes). Category, colour, size, position and the
visible pixels of every object are known exactly, and nothing is downloaded: the embedded model is
trained and scored on scenes.

Scenes are made from ``(split, index)`` alone, so two runs always see the same picture, and the
splits are disjoint because each has its own random stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..codec.grid import mask_to_box
from .dataset import choose

SCENE_SIZE = 128
"""Height and width of a scene in pixels."""

GLYPHS = {
    "umbrella": "☂", "cloud": "☁", "phone": "☎", "anchor": "⚓", "plane": "✈", "heart": "♥",
    "horse": "♞", "crown": "♛", "castle": "♜", "flag": "⚑", "gear": "⚙", "star": "★",
    "clover": "♣", "flower": "✿", "arrow": "➔", "smiley": "☻",
}
SHAPES = ("circle", "square", "triangle", "ring")
CATEGORIES = (*GLYPHS, *SHAPES)

COLORS = {
    "red": (212, 38, 38), "orange": (246, 140, 22), "yellow": (250, 222, 52),
    "green": (46, 164, 68), "blue": (44, 94, 216), "purple": (140, 58, 184),
    "white": (244, 244, 244), "black": (26, 26, 30),
}
UNSEEN_COLORS = {
    "red": (240, 150, 190), "orange": (118, 70, 34), "yellow": (172, 222, 62),
    "green": (24, 148, 148), "blue": (120, 204, 246), "purple": (206, 42, 162),
    "white": (252, 206, 170), "black": (22, 32, 92),
}
"""Other paint for the same words, which no training picture shows: pink, brown, lime, teal, sky,
magenta, peach, navy. The words do not describe it, so it suits requests that name no colour."""

PALETTES = {"seen": COLORS, "unseen": UNSEEN_COLORS}
"""What a scene is painted with; its objects and their places are the same under each."""

SIZES = {"small": (22, 30), "large": (38, 54)}
"""Longest side of an object in pixels, inclusive; the gap keeps the words unambiguous."""

SPLITS = {"train": 0, "val": 1, "test": 2, "novel": 3}
"""``novel`` scenes hold at least one (colour, category) pair that no other split ever shows."""

MIN_VISIBLE = 0.6
"""Objects may overlap, but at least this fraction of each stays visible."""

_MASTER = 160  # pixels of the master drawing from which every size of a pictogram is made


def is_novel(color: str, category: str) -> bool:
    """Whether the pair is held out of ``train``, ``val`` and ``test`` (one pair in eight).

    >>> sum(is_novel(c, k) for c in COLORS for k in CATEGORIES), len(COLORS) * len(CATEGORIES)
    (20, 160)
    """
    return (list(COLORS).index(color) + 3 * CATEGORIES.index(category)) % 8 == 0


@dataclass(frozen=True, eq=False)
class SceneObject:
    """One pictogram of a scene.

    Attributes:
        category, color, size: words from `CATEGORIES`, `COLORS`, `SIZES`.
        center: ``(x, y)`` of the full silhouette's box, in pixels.
        mask: bool ``(H, W)``, the visible pixels.
        box: ``(x0, y0, x1, y1)`` of the visible pixels, integers, half-open.
    """

    category: str
    color: str
    size: str
    center: tuple[float, float]
    mask: np.ndarray
    box: tuple[int, int, int, int]

    @property
    def words(self) -> tuple[str, str, str]:
        """Size, colour and category."""
        return self.size, self.color, self.category


@dataclass(frozen=True, eq=False)
class Scene:
    """A rendered picture and what it shows.

    Attributes:
        id: ``"<split>-<index>"``.
        image: uint8 ``(128, 128, 3)``, RGB.
        objects: one to five, back to front.
    """

    id: str
    split: str
    image: np.ndarray
    objects: tuple[SceneObject, ...]


def make_scene(split: str, index: int, palette: str = "seen") -> Scene:
    """Render scene number ``index`` of ``split``; the same pair always gives the same scene.

    Args:
        split: a key of `SPLITS`.
        index: from 0; there is no last one.
        palette: a key of `PALETTES`; ids of scenes in other than the seen paint end in its name.

    Raises:
        ValueError: an unknown split or palette, or a negative index.

    >>> make_scene("val", 3).image.shape
    (128, 128, 3)
    """
    choose("split", split, tuple(SPLITS))
    choose("palette", palette, tuple(PALETTES))
    if index < 0:
        raise ValueError(f"There is no scene {index}: scenes are numbered from 0.")
    rng = np.random.default_rng([SPLITS[split], index, 4])
    image = _background(rng)
    layers = _place(rng, _choose_kinds(rng, split))
    for layer in layers:
        _paint(rng, image, layer, PALETTES[palette])
    owner = _owners(layers)
    objects = []
    for k, layer in enumerate(layers):
        y, x = ((side.start + side.stop) / 2 for side in layer.window)
        objects.append(SceneObject(*layer.kind, (x, y), owner == k, mask_to_box(owner == k)))
    name = f"{split}-{index:06d}" + f"-{palette}" * (palette != "seen")
    return Scene(name, split, np.clip(np.rint(image), 0, 255).astype(np.uint8), tuple(objects))


# --- what is in a scene -------------------------------------------------------------------------


def _choose_kinds(rng, split: str) -> list[tuple[str, str, str]]:
    """Draw (category, color, size) triples that share words, so that expressions matter."""
    n = int(rng.integers(1, 6))
    some_categories = rng.choice(CATEGORIES, 2, replace=False)
    some_colors = rng.choice(list(COLORS), 2, replace=False)
    kinds = []
    while len(kinds) < n:
        category = str(rng.choice(some_categories if rng.random() < 0.5 else CATEGORIES))
        color = str(rng.choice(some_colors if rng.random() < 0.5 else list(COLORS)))
        # Of a novel scene the first is held out, and the others may be.
        if is_novel(color, category) == (split == "novel") or (split == "novel" and kinds):
            kinds.append((category, color, str(rng.choice(list(SIZES)))))
    order = rng.permutation(n)  # the held-out object of a novel scene is not always at the back
    return [kinds[i] for i in order]


class _Layer(NamedTuple):
    kind: tuple[str, str, str]
    silhouette: np.ndarray  # uint8 alpha (h, w)
    detail: np.ndarray  # uint8 alpha of the holes drawn in a second tone (h, w)
    window: tuple[slice, slice]  # rows and columns of the scene


def _place(rng, kinds) -> list[_Layer]:
    """Choose sizes and positions; an object for which no room is found is left out."""
    layers: list[_Layer] = []
    for kind in kinds:
        low, high = SIZES[kind[2]]
        size, angle = int(rng.integers(low, high + 1)), int(rng.choice((-10, -5, 0, 5, 10)))
        silhouette, detail = pictogram(kind[0], size, angle)
        h, w = silhouette.shape
        for _ in range(30):
            x, y = int(rng.integers(0, SCENE_SIZE - w)), int(rng.integers(0, SCENE_SIZE - h))
            layer = _Layer(kind, silhouette, detail, (slice(y, y + h), slice(x, x + w)))
            if _fits(layers, layer):
                layers.append(layer)
                break
    return layers


def _fits(layers: list[_Layer], new: _Layer) -> bool:
    """Whether every object stays visible enough with ``new`` on top."""
    if any(layer.kind[1] == new.kind[1] and not _apart(layer, new) for layer in layers):
        return False  # same colour on same colour would hide the border from any reader
    owner = _owners([*layers, new])
    return all(
        np.count_nonzero(owner == k) >= MIN_VISIBLE * np.count_nonzero(layer.silhouette > 127)
        for k, layer in enumerate(layers)
    )


def _apart(a: _Layer, b: _Layer) -> bool:
    return any(p.stop <= q.start or q.stop <= p.start for p, q in zip(a.window, b.window))


def _owners(layers: list[_Layer]) -> np.ndarray:
    """Index of the object seen at each pixel, -1 for the ground; int8 ``(128, 128)``."""
    owner = np.full((SCENE_SIZE, SCENE_SIZE), -1, np.int8)
    for k, layer in enumerate(layers):
        owner[layer.window][layer.silhouette > 127] = k
    return owner


# --- drawing ------------------------------------------------------------------------------------


@cache
def _master(category: str):
    """Master drawing of a pictogram: silhouette with small holes filled, and those holes."""
    from PIL import Image, ImageDraw, ImageFont
    from scipy.ndimage import binary_fill_holes

    canvas = Image.new("L", (3 * _MASTER, 3 * _MASTER))
    draw, s = ImageDraw.Draw(canvas), _MASTER
    if category in GLYPHS:
        import matplotlib

        path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
        draw.text((s, s // 2), GLYPHS[category], font=ImageFont.truetype(str(path), s), fill=255)
    elif category == "square":
        draw.rectangle((s, s, 2 * s, 2 * s), fill=255)
    elif category == "triangle":
        draw.polygon(((1.5 * s, s), (2 * s, 1.9 * s), (s, 1.9 * s)), fill=255)
    else:
        draw.ellipse((s, s, 2 * s, 2 * s), fill=255)
    if category == "ring":
        draw.ellipse((1.3 * s, 1.3 * s, 1.7 * s, 1.7 * s), fill=0)
    x0, y0, x1, y1 = canvas.getbbox()
    drawn = np.asarray(canvas.crop((x0 - 1, y0 - 1, x1 + 1, y1 + 1)))
    # What the border cannot reach is a hole: part of the silhouette.
    filled = drawn if category == "ring" else 255 * binary_fill_holes(drawn > 127).astype(np.uint8)
    holes = np.where(drawn > 127, 0, filled).astype(np.uint8)
    return Image.fromarray(filled), Image.fromarray(holes)


@lru_cache(maxsize=8192)
def pictogram(category: str, size: int, angle: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw one pictogram.

    Args:
        category: a word from `CATEGORIES`.
        size: longest side in pixels.
        angle: counter-clockwise rotation in degrees.

    Returns:
        ``(silhouette, detail)``: uint8 alpha maps ``(h, w)`` with ``max(h, w) == size``; ``detail``
        marks inner lines (a face's eyes) that belong to the object but take a second tone.
    """
    from PIL import Image

    choose("category", category, CATEGORIES)
    silhouette, holes = (
        part.rotate(angle, Image.Resampling.BICUBIC, expand=True) for part in _master(category)
    )
    frame = silhouette.getbbox()
    silhouette, holes = silhouette.crop(frame), holes.crop(frame)
    scale = size / max(silhouette.size)
    shape = tuple(max(1, round(scale * side)) for side in silhouette.size)
    return tuple(np.asarray(part.resize(shape, Image.Resampling.BOX)) for part in (silhouette, holes))


def _background(rng) -> np.ndarray:
    """A muted textured ground, float32 ``(128, 128, 3)``."""
    from PIL import Image

    n = SCENE_SIZE
    value, tint = rng.uniform(90, 190), rng.uniform(-22, 22, 3)
    ground = np.full((n, n, 3), value + tint, np.float32)
    cells = int(rng.choice((4, 8, 16, 32)))
    coarse = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
    field = np.asarray(coarse.resize((n, n), Image.Resampling.BICUBIC)) * rng.uniform(6, 22)
    y, x = np.mgrid[0:n, 0:n].astype(np.float32)
    pattern = rng.integers(4)
    if pattern == 1:  # stripes
        turn = rng.uniform(0, np.pi)
        wave = np.cos(turn) * x + np.sin(turn) * y
        field = field + rng.uniform(6, 16) * np.sign(np.sin(wave * 2 * np.pi / rng.uniform(8, 32)))
    elif pattern == 2:  # checks
        side = int(rng.integers(6, 22))
        field = field + rng.uniform(6, 14) * (2 * (((x // side) + (y // side)) % 2) - 1)
    elif pattern == 3:  # slope
        turn = rng.uniform(0, 2 * np.pi)
        field = field + (np.cos(turn) * (x - n / 2) + np.sin(turn) * (y - n / 2)) * 0.35
    ground += field[..., None]
    ground += rng.normal(0, 3.0, (n, n, 1)).astype(np.float32)
    return ground


def _paint(rng, image: np.ndarray, layer: _Layer, paints) -> None:
    """Blend one object into ``image``, in place."""
    base = np.asarray(paints[layer.kind[1]], np.float32) + rng.uniform(-12, 12, 3)
    h, w = layer.silhouette.shape
    shade = np.linspace(10, -10, h, dtype=np.float32)[:, None, None] * rng.uniform(-1, 1)
    body = base + shade + rng.normal(0, 3.0, (h, w, 1)).astype(np.float32)
    second = 0.45 * base if base.mean() > 70 else base + 95  # inner lines stay readable on black
    inner = layer.detail[..., None] / np.float32(255)
    body = body * (1 - inner) + second * inner
    alpha = layer.silhouette[..., None] / np.float32(255)
    patch = image[layer.window]
    patch += alpha * (body - patch)
