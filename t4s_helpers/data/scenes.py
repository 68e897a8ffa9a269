"""Rendered pictogram scenes: the data set that ships inside the workbook.

A scene is a small textured picture with one to five coloured pictograms (glyphs of the DejaVu
Sans font that matplotlib bundles, and four plain shapes). Everything about it is known exactly:
category, colour, size, position and the visible pixels of every object. That makes scenes the
data on which the embedded model is trained and scored without any download.

Scenes are made from ``(split, index)`` alone, so two runs always see the same picture, and the
splits are disjoint because each has its own random stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, cache
from pathlib import Path

import numpy as np

from ..codec.grid import mask_to_box

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

_ANGLES = (-10, -5, 0, 5, 10)
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
        objects: back to front.
    """

    id: str
    split: str
    index: int
    image: np.ndarray
    objects: tuple[SceneObject, ...]


def make_scene(split: str, index: int, max_objects: int = 5, palette: str = "seen") -> Scene:
    """Render scene number ``index`` of ``split``.

    Args:
        split: a key of `SPLITS`.
        index: non-negative scene number; the same pair always gives the same scene.
        max_objects: most objects in a scene (1 to 8); the count is uniform from 1.
        palette: a key of `PALETTES`; ids of scenes in other than the seen paint end in its name.

    Raises:
        ValueError: an unknown split or palette, a negative index, or a count out of range.

    >>> make_scene("val", 3).image.shape
    (128, 128, 3)
    """
    if split not in SPLITS:
        raise ValueError(f"Unknown scene split {split!r}: choose one of {', '.join(SPLITS)}.")
    if palette not in PALETTES:
        raise ValueError(f"Unknown palette {palette!r}: choose one of {', '.join(PALETTES)}.")
    if index < 0 or not 1 <= max_objects <= 8:
        raise ValueError(
            f"Scene index {index} must be at least 0 and max_objects {max_objects} in 1..8."
        )
    rng = np.random.default_rng([SPLITS[split], index, 4])
    image = _background(rng)
    layers = _place(rng, _choose_kinds(rng, split, int(rng.integers(1, max_objects + 1))))
    owner = np.full((SCENE_SIZE, SCENE_SIZE), -1, np.int8)
    for k, layer in enumerate(layers):
        _paint(rng, image, owner, layer, k, PALETTES[palette])
    objects = tuple(_finish(layer, owner == k) for k, layer in enumerate(layers))
    name = f"{split}-{index:06d}" + f"-{palette}" * (palette != "seen")
    return Scene(name, split, index, _to_uint8(image), objects)


# --- what is in a scene -------------------------------------------------------------------------


def _choose_kinds(rng, split: str, n: int) -> list[tuple[str, str, str]]:
    """Draw ``n`` (category, color, size) triples that share words, so that expressions matter."""
    some_categories = rng.choice(CATEGORIES, 2, replace=False)
    some_colors = rng.choice(list(COLORS), 2, replace=False)
    kinds = []
    while len(kinds) < n:
        category = str(rng.choice(some_categories if rng.random() < 0.5 else CATEGORIES))
        color = str(rng.choice(some_colors if rng.random() < 0.5 else list(COLORS)))
        wants_novel = split == "novel" and not kinds
        if is_novel(color, category) == wants_novel or (split == "novel" and kinds):
            kinds.append((category, color, str(rng.choice(list(SIZES)))))
    order = rng.permutation(n)  # the held-out object of a novel scene is not always at the back
    return [kinds[i] for i in order]


@dataclass(frozen=True, eq=False)
class _Layer:
    kind: tuple[str, str, str]
    silhouette: np.ndarray  # uint8 alpha (h, w)
    detail: np.ndarray  # uint8 alpha of the holes drawn in a second tone (h, w)
    x: int
    y: int

    @property
    def window(self):
        h, w = self.silhouette.shape
        return slice(self.y, self.y + h), slice(self.x, self.x + w)


def _place(rng, kinds) -> list[_Layer]:
    """Choose sizes and positions; an object for which no room is found is left out."""
    layers: list[_Layer] = []
    for kind in kinds:
        low, high = SIZES[kind[2]]
        size, angle = int(rng.integers(low, high + 1)), int(rng.choice(_ANGLES))
        silhouette, detail = pictogram(kind[0], size, angle)
        h, w = silhouette.shape
        for _ in range(30):
            x, y = int(rng.integers(0, SCENE_SIZE - w)), int(rng.integers(0, SCENE_SIZE - h))
            layer = _Layer(kind, silhouette, detail, x, y)
            if _fits(layers, layer):
                layers.append(layer)
                break
    return layers


def _fits(layers: list[_Layer], new: _Layer) -> bool:
    """Whether every object stays visible enough with ``new`` on top."""
    touching = [layer for layer in layers if not _apart(layer, new)]
    if not touching:
        return True
    if any(layer.kind[1] == new.kind[1] for layer in touching):
        return False  # same colour on same colour would hide the border from any reader
    owner = np.full((SCENE_SIZE, SCENE_SIZE), -1, np.int8)
    everyone = [*layers, new]
    for k, layer in enumerate(everyone):
        owner[layer.window][layer.silhouette > 127] = k
    return all(
        np.count_nonzero(owner[layer.window] == k)
        >= MIN_VISIBLE * np.count_nonzero(layer.silhouette > 127)
        for k, layer in enumerate(everyone)
    )


def _apart(a: _Layer, b: _Layer) -> bool:
    (ha, wa), (hb, wb) = a.silhouette.shape, b.silhouette.shape
    return a.x + wa <= b.x or b.x + wb <= a.x or a.y + ha <= b.y or b.y + hb <= a.y


def _finish(layer: _Layer, visible: np.ndarray) -> SceneObject:
    h, w = layer.silhouette.shape
    return SceneObject(*layer.kind, (layer.x + w / 2, layer.y + h / 2), visible, mask_to_box(visible))


# --- drawing ------------------------------------------------------------------------------------


@cache
def _master(category: str):
    """Master drawing of a pictogram: silhouette with small holes filled, and those holes."""
    from PIL import Image, ImageDraw, ImageFont

    canvas = Image.new("L", (3 * _MASTER, 3 * _MASTER))
    draw, s = ImageDraw.Draw(canvas), _MASTER
    if category in GLYPHS:
        import matplotlib

        path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
        draw.text((s, s // 2), GLYPHS[category], font=ImageFont.truetype(str(path), s), fill=255)
    elif category == "circle":
        draw.ellipse((s, s, 2 * s, 2 * s), fill=255)
    elif category == "square":
        draw.rectangle((s, s, 2 * s, 2 * s), fill=255)
    elif category == "triangle":
        draw.polygon(((1.5 * s, s), (2 * s, 1.9 * s), (s, 1.9 * s)), fill=255)
    elif category == "ring":
        draw.ellipse((s, s, 2 * s, 2 * s), fill=255)
        draw.ellipse((1.3 * s, 1.3 * s, 1.7 * s, 1.7 * s), fill=0)
    else:
        raise ValueError(f"Unknown pictogram {category!r}: choose one of {', '.join(CATEGORIES)}.")
    canvas = canvas.crop(canvas.getbbox())
    framed = Image.new("L", (canvas.width + 2, canvas.height + 2))
    framed.paste(canvas, (1, 1))
    filled = framed.point(lambda v: 255 * (v > 127))
    if category != "ring":  # what the border cannot reach is a hole: part of the silhouette
        ImageDraw.floodfill(filled, (0, 0), 128)
        filled = filled.point(lambda v: 0 if v == 128 else 255)
    else:
        filled = framed
    holes = np.where(np.asarray(framed) > 127, 0, np.asarray(filled)).astype(np.uint8)
    return filled, Image.fromarray(holes)


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

    silhouette, holes = (
        part.rotate(angle, Image.Resampling.BICUBIC, expand=True) for part in _master(category)
    )
    frame = silhouette.getbbox()
    silhouette, holes = silhouette.crop(frame), holes.crop(frame)
    scale = size / max(silhouette.size)
    shape = tuple(max(1, round(scale * side)) for side in silhouette.size)
    return tuple(
        np.asarray(part.resize(shape, Image.Resampling.BOX)) for part in (silhouette, holes)
    )


def _background(rng) -> np.ndarray:
    """A muted textured ground, float32 ``(128, 128, 3)``."""
    n = SCENE_SIZE
    value, tint = rng.uniform(90, 190), rng.uniform(-22, 22, 3)
    ground = np.empty((n, n, 3), np.float32)
    ground[:] = value + tint
    field = _smooth_noise(rng, int(rng.choice((4, 8, 16, 32)))) * rng.uniform(6, 22)
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


def _smooth_noise(rng, cells: int) -> np.ndarray:
    from PIL import Image

    coarse = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((SCENE_SIZE, SCENE_SIZE), Image.Resampling.BICUBIC))


def _paint(rng, image: np.ndarray, owner: np.ndarray, layer: _Layer, k: int, paints) -> None:
    """Blend one object into ``image`` and claim its pixels in ``owner``."""
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
    owner[layer.window][layer.silhouette > 127] = k


def _to_uint8(image: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)
