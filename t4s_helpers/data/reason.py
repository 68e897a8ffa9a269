"""ReasonSeg: segmentation asked for by reasoning (Lai et al., "LISA", CVPR 2024)."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from .dataset import BadRow, Dataset, LazyMasks, check_annotation, check_label
from .sample import Sample, SampleError, image_size, size_text

_TARGET, _IGNORED = 1, 255


class ReasonSeg(Dataset):
    """Instructions that need reasoning, with one mask each.

    Beside each photo lies a JSON file of its name with ``text`` (instructions), ``is_sentence`` and
    ``shapes``, polygons labelled "target" or "ignore".

    One sample per image with its first instruction, as the benchmark is scored; in ``train`` one
    for each instruction. ``meta["ignore"]`` is a mask source ``(1, H, W)`` of pixels that are not
    scored. The rules of the release hold: corners in whole pixels, outlines included, and where
    polygons overlap the smaller one counts. ``checks`` are those of
    `t4s_helpers.data.dataset.Dataset`; images are what is counted.
    """

    def __init__(self, root: str | Path, split: str = "val", **checks: Any):
        folder = Path(root) / split
        if not folder.is_dir():
            raise SampleError(f"There is no folder {folder}; unpack ReasonSeg's {split}.zip there.")
        stems = sorted({path.stem for path in folder.iterdir() if path.suffix in (".json", ".jpg")})
        rows = [(f"{stem}/{k}", folder / f"{stem}.jpg", k) for stem in stems
                for k in range(_n_texts(folder / f"{stem}.json") if split == "train" else 1)]
        super().__init__("reasonseg", split, "res", folder, rows, listed=len(stems), **checks)

    def check(self, row: tuple[str, Path, int]) -> None:
        _, image, k = row
        path = image.with_suffix(".json")
        texts, _, shapes = _read(path)
        self.check_image(image, str(path))
        if self.verify:
            _check_shapes(path, shapes, image_size(image))
        check_label(texts[k], self.row_id(row))

    def make(self, row: tuple[str, Path, int]) -> Sample:
        _, image, k = row
        path, size = image.with_suffix(".json"), image_size(image)
        texts, is_sentence, _ = _read(path)
        target, ignored = (LazyMasks((1, *size), _pixels, (path, size, value)) for value in
                           (_TARGET, _IGNORED))
        meta = {"ignore": ignored, "is_sentence": is_sentence, "dataset": self.name}
        return Sample(self.row_id(row), image, (texts[k],), target, "res", self.split, meta=meta)


def _n_texts(path: Path) -> int:
    """How many instructions a file has; 1 where it cannot be read, which its check will tell."""
    try:
        return len(_read(path)[0])
    except BadRow:
        return 1


def _read(path: Path) -> tuple[list[str], bool, list[dict[str, Any]]]:
    """Instructions, whether they are sentences, and polygons of an annotation file."""
    check_annotation(path)
    try:
        data = path.read_bytes()
        try:
            found = json.loads(data)
        except UnicodeDecodeError:  # some files of the release were written on Windows
            found = json.loads(data.decode("cp1252"))
        texts, shapes = found["text"], found["shapes"]
        texts = [" ".join(text.split()) for text in ([texts] if isinstance(texts, str) else texts)]
        if not texts or not all("points" in shape for shape in shapes):
            raise ValueError("no instruction, or a shape without points")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadRow("unreadable annotation", f"Annotation file {path} cannot be read ({error}); "
                     "unpack ReasonSeg again.") from error
    return texts, bool(found.get("is_sentence")), shapes


def _check_shapes(path: Path, shapes: list[dict[str, Any]], size: tuple[int, int]) -> None:
    slack = 0.05 * max(size) + 2
    for shape in shapes:
        points = np.asarray(shape["points"], float)
        if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
            raise BadRow("unusable outline", f"A shape of {path} is no list of pairs x, y; mend it.")
        if points.min() < -slack or (points.max(0) > np.add(size[::-1], slack)).any():
            raise BadRow("image of another size", f"A shape of {path} lies outside its photo of "
                         f"{size_text(size)}; use the photos that were annotated.")
    if not (_drawn(path, size) == _TARGET).any():
        raise BadRow("no target outline", f"{path} has no target that shows; it is not taken for a "
                     "request without target: mend or remove it.")


def _pixels(path: Path, size: tuple[int, int], value: int) -> np.ndarray:
    """bool ``(1, H, W)``: target or ignored pixels of an annotation file."""
    return (_drawn(path, size) == value)[None]


@lru_cache(maxsize=4)
def _drawn(path: Path, size: tuple[int, int]) -> np.ndarray:
    """uint8 ``(H, W)``: 0, target or ignored; larger polygons first, so that smaller ones stay."""
    drawn = []
    for shape in _read(path)[2]:
        label = str(shape.get("label", "")).lower()
        if label != "flag":  # withdrawn by the annotators
            value = _IGNORED if "ignore" in label else _TARGET
            drawn.append((_polygon(shape["points"], size), value))
    values = np.zeros(size, np.uint8)
    for mask, value in sorted(drawn, key=lambda one: -np.count_nonzero(one[0])):
        values[mask] = value
    values.setflags(write=False)
    return values


def _polygon(points: list[list[float]], size: tuple[int, int]) -> np.ndarray:
    """bool ``(H, W)``: the polygon with its outline, corners cut to whole pixels."""
    from PIL import Image, ImageDraw

    corners = [(int(x), int(y)) for x, y in points]
    image = Image.new("1", size[::-1])
    draw = ImageDraw.Draw(image)
    if len(corners) > 2:
        draw.polygon(corners, fill=1, outline=1)
    else:
        draw.line(corners, fill=1) if len(corners) == 2 else draw.point(corners, fill=1)
    return np.array(image)
