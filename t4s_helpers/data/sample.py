"""The unit of data that flows through the workbook: one image, its labels and their masks.

Coordinates are pixels, row first: an image is ``(H, W, 3)`` and a mask ``(H, W)``, with row 0 at
the top and column 0 at the left.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..codec.encodings import check_labels
from ..codec.grid import GridSize, masks_to_grid

BEYOND_TASKS = ("ores", "multi", "correction")
"""Tasks beyond the paper: things by a reference that may be a mask, several things by name, and corrections
of the answer before; see `t4s_helpers.data.beyond`."""

TASKS = ("res", "gres", "rec", "semantic", "instances", "vqa", *BEYOND_TASKS)
"""Referring segmentation, its generalised form (none or many targets), box comprehension,
semantic and instance segmentation, visual question answering, and `BEYOND_TASKS`."""

REFERENCE = "this"
"""The word in a label of the task ``ores`` for which a question has the reference's mask."""

CLASS_TASKS = ("semantic", "instances")
"""Tasks whose labels are all the classes that an image shows; requests name or list classes."""


class SampleError(ValueError):
    """A sample that cannot be used; the message names the sample or file and what to do."""


class MaskSource(Protocol):
    """Masks that are kept small and decoded when they are asked for."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(L, H, W)`` of what `decode` returns, known without decoding."""

    def decode(self) -> np.ndarray:
        """bool ``(L, H, W)``"""


def is_source(masks: Any) -> bool:
    """Whether masks are a `MaskSource` rather than an array."""
    return hasattr(masks, "decode") and hasattr(masks, "shape")


class _MaskField:
    """Data descriptor behind ``Sample.masks``: returns the array, decoding a source if need be."""

    def __get__(self, sample: Sample | None, owner: type) -> np.ndarray:
        if sample is None:  # lets dataclass() see a field without a default
            raise AttributeError("masks")
        return _decoded(sample.mask_source, sample)

    def __set__(self, sample: Sample, value: Any) -> None:
        sample.__dict__["_masks"] = value


def _decoded(stored: Any, sample: Sample) -> np.ndarray:
    if stored is None:
        return np.zeros((0, *sample.size), bool)
    if not is_source(stored):
        return stored
    masks = stored.decode()
    if masks.dtype != bool or masks.shape != tuple(stored.shape):
        raise SampleError(f"The masks of sample '{sample.id}' decode to {masks.dtype} {masks.shape}, "
                          f"but bool {tuple(stored.shape)} was announced; check its annotations.")
    return masks


_TYPES = {
    "labels": (Sequence, "a tuple of texts"),
    "question": ((str, type(None)), "text or None"), "answer": ((str, type(None)), "text or None"),
    "meta": (dict, "a dict"),
    "image": ((np.ndarray, str, Path), "a uint8 array (H, W, 3) or the path of an image file"),
}
"""Fields of a sample, their types, and the types in words."""


@dataclass(frozen=True, eq=False, repr=False)
class Sample:
    """One image, the labels asked for, and one mask per label.

    Attributes:
        id: non-empty text, unique within a data set; messages name it.
        image: uint8 RGB array ``(H, W, 3)`` with values 0..255, or the path of an image file, which is
            read only by `pixels`.
        labels: ``L`` referring expressions or class names, in the order of ``masks``. They follow the
            rules of `t4s_helpers.codec.encodings.check_labels` and are stored trimmed. Only ``vqa``
            samples may have none.
        masks: bool ``(L, H, W)`` (values 0 and 1 of another type are converted), or a `MaskSource`, or
            None without labels. A mask without a pixel is a no-target request. A source is decoded at
            every access and nothing is kept, so that large data sets stay small in memory: bind
            ``masks = sample.masks`` once where it is used often.
        task: one of `TASKS`.
        split: name of the part of the data set.
        question, answer: used instead of a template where they are given.
        meta: anything a reader wants to hand on. Some keys mean something here: ``instance_masks``,
            bool ``(N, H, W)`` or a `MaskSource`, and ``instance_owners``, ``N`` integers, say which
            single objects make up the mask of which label (an owner indexes ``labels``), so that a grid
            keeps each of them visible; ``instance_crowds``, ``N`` booleans, which of them are regions of
            several that were not told apart (by default none); ``part``, ``(y0, x0, y1, x1)``, is what is
            shown of the file. Of ``ores``, ``reference``, bool ``(H, W)``, is the mask for `REFERENCE`, a
            word of the one label; of a ``correction`` behind the first, ``change`` are the words for what
            it adds or drops, and ``kind`` is ``add`` or ``drop``.

    Raises:
        SampleError: any of these does not hold; the message names the sample.

    >>> pixels = np.zeros((2, 4, 3), np.uint8)
    >>> left = np.array([[[True, True, False, False]] * 2])
    >>> sample = Sample("demo", pixels, ("left half",), left)
    >>> sample.size, sample.has_target.tolist()
    ((2, 4), [True])
    """

    id: str
    image: np.ndarray | str | Path
    labels: tuple[str, ...]
    masks: np.ndarray = _MaskField()  # type: ignore[assignment]
    task: str = "res"
    split: str = "train"
    question: str | None = None
    answer: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not self.id.strip():
            raise SampleError(f"A sample needs a non-empty text as its id, got {self.id!r}.")
        if self.task not in TASKS:
            raise self._error(f"has the task {self.task!r}; choose one of {', '.join(TASKS)}")
        if not isinstance(self.split, str) or not self.split:
            raise self._error(f"has the split {self.split!r}; give a name such as 'train'")
        for name, (kinds, wanted) in _TYPES.items():
            if not isinstance(value := getattr(self, name), kinds):
                raise self._error(f"has {name} of type {type(value).__name__}; give {wanted}")
        if not self.labels and self.task != "vqa":
            raise self._error("has no labels; give at least one")
        try:
            object.__setattr__(self, "labels", check_labels(self.labels))
        except ValueError as error:
            raise SampleError(f"Sample '{self.id}': {error}") from error
        self.__dict__["_masks"] = self._checked_masks(self.mask_source)
        if isinstance(self.image, np.ndarray):
            self._check_pixels(self.image, "its image array")
        if {"instance_masks", "instance_owners"} & self.meta.keys():
            self._check_instances()
        if self.task == "ores" and "reference" in self.meta:
            self._check_reference()

    def __repr__(self) -> str:
        height, width = self.size
        return f"Sample({self.id!r}, {width} x {height}, {self.task}, labels={self.labels!r})"

    def pixels(self) -> np.ndarray:
        """The image, uint8 RGB ``(H, W, 3)``; a path is read anew at each call.

        Raises:
            SampleError: the file is missing, truncated or no RGB image, or its size is not that of the
                masks.
        """
        if isinstance(self.image, np.ndarray):
            return self.image
        pixels, origin = read_image(self.image), str(self.image)
        if part := self.meta.get("part"):
            y0, x0, y1, x1 = part
            pixels, origin = pixels[y0:y1, x0:x1], f"the part {part} of {origin}"
        self._check_pixels(pixels, origin)
        return pixels

    @property
    def mask_source(self) -> Any:
        """The masks as they are stored: an array, a `MaskSource` that is not decoded, or None."""
        return self.__dict__["_masks"]

    @property
    def size(self) -> tuple[int, int]:
        """``(H, W)`` of the masks; without masks that of the image, from its file's header."""
        if self.mask_source is not None:
            height, width = self.mask_source.shape[1:]
        else:
            array = isinstance(self.image, np.ndarray)
            height, width = self.image.shape[:2] if array else image_size(self.image)
        return int(height), int(width)

    @property
    def has_target(self) -> np.ndarray:
        """bool ``(L,)``: whether the image holds anything that the label names."""
        return self.masks.any(axis=(1, 2))

    def instances(self) -> tuple[np.ndarray, np.ndarray]:
        """The single objects behind the labels: one each where the sample does not say more.

        Returns:
            bool ``(N, H, W)`` masks and int64 ``(N,)`` indices into ``labels``.
        """
        if "instance_masks" not in self.meta:
            masks = self.masks
            return masks, np.arange(len(masks))
        masks = _decoded(self.meta["instance_masks"], self)
        return masks, np.asarray(self.meta["instance_owners"], dtype=np.int64)

    def crowds(self) -> np.ndarray:
        """bool ``(N,)``: which of the `instances` are regions of several objects."""
        n = len(self.meta.get("instance_owners", self.labels))
        return np.asarray(self.meta.get("instance_crowds", np.zeros(n)), bool)

    def grid(self, grid_size: GridSize = 16, rule: str = "area") -> np.ndarray:
        """The label grid, int32 ``(rows, cols)``: 0 is "others", ``k`` is ``labels[k-1]``.

        ``grid_size`` and ``rule`` are those of `t4s_helpers.codec.grid.masks_to_grid`.
        """
        masks, owners = self.instances()
        return masks_to_grid(masks, grid_size, rule, owners)

    def _error(self, what: str) -> SampleError:
        return SampleError(f"Sample '{self.id}' {what}.")

    def _checked_masks(self, masks: Any) -> Any:
        if masks is None and not self.labels:
            return None
        if not is_source(masks):
            masks = np.asarray(masks)
            if masks.dtype != bool:
                if masks.dtype.kind not in "iuf" or not np.isin(masks, (0, 1)).all():
                    raise self._error(f"has masks of type {masks.dtype} with values other than 0 and 1; "
                                      "give booleans, one mask (H, W) of one size per label")
                masks = masks.astype(bool)
        shape = tuple(masks.shape)
        if len(shape) != 3 or shape[0] != len(self.labels) or 0 in shape[1:]:
            raise self._error(
                f"has {len(self.labels)} labels but masks of shape {shape}; "
                f"give one mask (H, W) per label, stacked to ({len(self.labels)}, H, W)")
        return masks

    def _check_pixels(self, pixels: np.ndarray, origin: str) -> None:
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise self._error(f"has an image of type {pixels.dtype} and shape {pixels.shape}; "
                              "give uint8 RGB of shape (H, W, 3) with values 0 to 255")
        if pixels.shape[:2] != self.size:
            raise self._error(f"has masks of {size_text(self.size)}, but {origin} is "
                              f"{size_text(pixels.shape[:2])}; use the masks that were drawn on this image")

    def _check_instances(self) -> None:
        if not {"instance_masks", "instance_owners"} <= self.meta.keys():
            raise self._error("needs both or none of instance_masks and instance_owners in meta")
        found, owners = self.meta["instance_masks"], np.asarray(self.meta["instance_owners"])
        if not is_source(found) and getattr(found, "dtype", None) != bool:
            raise self._error("has instance_masks in meta that are not a boolean array")
        shape = tuple(found.shape)
        if len(shape) != 3 or shape[1:] != self.size or owners.shape != shape[:1]:
            raise self._error(
                f"has instance_masks of shape {shape} and {owners.size} instance_owners in meta; "
                f"give masks (N, {self.size[0]}, {self.size[1]}) and N owners")
        whole = owners.size == 0 or owners.dtype.kind in "iu"
        if not whole or not np.isin(owners, range(len(self.labels))).all():
            raise self._error(f"has instance_owners {owners.tolist()} in meta, but an owner is an index "
                              f"into its {len(self.labels)} labels")

    def _check_reference(self) -> None:
        mask = np.asarray(self.meta["reference"])
        if mask.dtype != bool or mask.shape != self.size or not mask.any():
            raise self._error(f"has a reference of type {mask.dtype} and shape {mask.shape} in meta; give a "
                              f"boolean mask of {size_text(self.size)} that is not empty")
        if not speak_of_reference(self.labels):
            raise self._error(f"has a reference, but the labels {list(self.labels)}; give one label with the "
                              f"word {REFERENCE!r} once, where the mask belongs")


def speak_of_reference(labels: Sequence[str]) -> bool:
    """Whether there is one label, and in it once the word `REFERENCE`.

    >>> speak_of_reference(["all stars left of this"]), speak_of_reference(["this", "that"])
    (True, False)
    """
    return len(labels) == 1 and len(re.findall(rf"\b{REFERENCE}\b", labels[0])) == 1


def read_image(path: str | Path) -> np.ndarray:
    """Read an image file as it is meant to be seen.

    The orientation that a camera stored (EXIF) is applied, transparent pixels are laid on white,
    grey and palette images become RGB, and of an animation the first frame is taken.

    Returns:
        uint8 RGB ``(H, W, 3)``, values 0..255.

    Raises:
        SampleError: the file is missing, unreadable, truncated, not an image, or of a kind that 8-bit
            RGB cannot hold (16-bit or floating point); the message names the file.
    """
    from PIL import Image, ImageOps

    with opened_image(path) as opened:
        opened.load()
        image = ImageOps.exif_transpose(opened)
    if image.mode.startswith(("I", "F")):
        raise SampleError(f"Image file {path} has pixels of mode {image.mode}, which 8-bit RGB cannot hold; "
                          "save it as an 8-bit RGB image.")
    if image.mode in ("LA", "PA", "La", "RGBa", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def image_size(path: str | Path, apply_exif: bool = True) -> tuple[int, int]:
    """``(H, W)`` of what `read_image` returns, from the file's header alone.

    ``apply_exif=False`` asks for the size of the picture as it is stored, whatever its EXIF says.

    Raises:
        SampleError: the file is missing or is no image; the message names it.
    """
    with opened_image(path) as opened:
        width, height = opened.size
        sideways = apply_exif and _orientation(opened) > 4
    return (width, height) if sideways else (height, width)


def exif_orientation(path: str | Path) -> int:
    """How a camera says that a stored picture must be turned: 1 (not at all) to 8, from the header.

    The errors are those of `image_size`.
    """
    with opened_image(path) as opened:
        return _orientation(opened)


def _orientation(opened: Any) -> int:
    """The EXIF orientation of an opened image, 1 where it says none.

    Pillow decodes a whole PNG file for it, as it may stand behind the pixels; here only where it may do so.
    """
    from PIL import Image
    from PIL.ExifTags import Base

    if opened.format == "PNG":
        place, end = opened.fp.tell(), opened.fp.seek(0, 2)
        opened.fp.seek(max(0, end - 65_536))
        tail = opened.fp.read()
        opened.fp.seek(place)
        behind = any(kind in tail for kind in (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp"))
    exif = opened.getexif() if opened.format == "PNG" and behind else Image.Image.getexif(opened)
    return exif.get(Base.Orientation) if exif.get(Base.Orientation) in range(1, 9) else 1


@contextmanager
def opened_image(path: str | Path) -> Iterator[Any]:
    """An image file, whose faults are told in one sentence."""
    from PIL import Image

    if not Path(path).is_file():
        raise SampleError(f"Image file {path} does not exist; check the path or the image folder.")
    try:
        with Image.open(path) as opened:
            yield opened
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise SampleError(f"Image file {path} cannot be read ({said}); it may be cut short or be no "
                          "image: fetch or export it again.") from error


def size_text(size: tuple[int, int]) -> str:
    """``(H, W)`` in the words of a picture viewer."""
    return f"{size[1]} x {size[0]} pixels (width x height)"
