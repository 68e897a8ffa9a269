"""The front door: a picture and some words in, a mask out.

`Text4Seg` walks the whole road of the method (paper, figure 2): request, descriptor text, label grid,
coarse mask, refined mask. Everything that it does is a call of a room's public function, so a notebook
that wants one step otherwise calls that function itself.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from .codec.encodings import Encoding, check_labels, get_encoding
from .codec.grid import GridSize
from .codec.parsing import ParseReport
from .data.prompts import Turn, question
from .data.sample import SampleError, read_image
from .files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

    from .decoding.confidence import Confidence
    from .decoding.generate import Answer, ParsedAnswer
    from .model.backbones import Backbone

    Picture = str | Path | np.ndarray | Image.Image

SHIPPED_ADAPTER = "scenes"
"""What `Text4Seg.from_pretrained` puts on the embedded model, whose base cannot segment."""


class Text4Seg:
    """A backbone, a refiner and an encoding, ready to be asked.

    Args:
        backbone: from `t4s_helpers.model.backbones.load_backbone`.
        refiner: from `t4s_helpers.refine.load_refiner`; ``load_refiner("none")`` keeps the grid's mask.
        encoding: of the descriptors, from `t4s_helpers.codec.encodings.get_encoding`. It must be the one
            that the backbone was trained on.
    """

    def __init__(self, backbone: Backbone, refiner: Any, encoding: Encoding | None = None):
        self.backbone, self.refiner, self.encoding = backbone, refiner, encoding or get_encoding()

    @classmethod
    def from_pretrained(cls, backbone: str = "embedded", *, adapter: str | Path | None = None,
                        refiner: str = "none", encoding: str = "rrle", grid_size: GridSize = 16,
                        quantize: str | None = None, source: str | Path | None = None) -> Text4Seg:
        """Load everything by name.

        Args:
            backbone: a key of `t4s_helpers.model.backbones.BACKBONES`.
            adapter: folder of a LoRA adapter, or the name of one that ships, or ``"none"``; the embedded
                model takes `SHIPPED_ADAPTER` unless another is named.
            refiner: ``"none"``, ``"mobile_sam"``, ``"sam_vit_h"``, ...
            encoding, grid_size: what the adapter was trained to write.
            quantize: ``"nf4"`` for 4-bit weights.
            source: another folder or hub id of the backbone.

        Raises:
            BackboneError: an unknown name, or weights that cannot be had.
            RefineError: an unknown refiner.
        """
        from .model.backbones import load_backbone
        from .refine import load_refiner

        if adapter is None and backbone == "embedded":
            adapter = SHIPPED_ADAPTER
        loaded = load_backbone(backbone, quantize, None if adapter == "none" else adapter, source)
        return cls(loaded, load_refiner(refiner), get_encoding(encoding, grid_size))

    @overload
    def segment(self, images: Picture, expressions: str, *, seed: int = 0, **options) -> Segmentation: ...

    @overload
    def segment(self, images: Picture | Sequence[Picture], expressions: Sequence, *, seed: int = 0,
                **options) -> list: ...

    def segment(self, images: Any, expressions: Any, *, seed: int = 0, **options) -> Any:
        """Segment what expressions name.

        Args:
            images: a picture or a list of pictures. A picture is the path of an image file, a uint8 RGB
                array ``(H, W, 3)`` or a PIL image.
            expressions: an expression or a list of them, each a request of its own. With several
                pictures: one entry for each picture.
            seed: of the points that a refiner draws.
            options: for `t4s_helpers.decoding.generate.generate`, ``batch`` or ``mode`` for example.

        Returns:
            one `Segmentation` for one picture and one expression; a list where a list was given, a list
            of lists where both were.

        Raises:
            SampleError: a picture that cannot be read; the message names it.
            DescriptorError: an expression that cannot be a label; the message names it.
            ValueError: another number of pictures than of entries in ``expressions``.
        """
        several = isinstance(images, (list, tuple))
        pictures = [as_pixels(image) for image in (images if several else [images])]
        asked = list(expressions) if several else [expressions]
        if several and (isinstance(expressions, str) or len(asked) != len(pictures)):
            raise ValueError(f"{len(pictures)} pictures came with {expressions!r}: give one entry of "
                             "expressions for each picture.")
        flat = [(pixels, text) for pixels, some in zip(pictures, asked)
                for text in ([some] if isinstance(some, str) else some)]
        found = iter(self._answered(flat, seed, options))
        out = [next(found) if isinstance(some, str) else [next(found) for _ in some]
               for some in asked]
        return out if several else out[0]

    def _answered(self, asked: list[tuple[np.ndarray, str]], seed: int, options: dict
                  ) -> list[Segmentation]:
        from .decoding.generate import generate, parse_answer

        labels = [check_labels([text]) for _, text in asked]
        turns = [Turn(question("res", some), (), some) for some in labels]
        answers = generate(self.backbone, [pixels for pixels, _ in asked], [[turn] for turn in turns],
                           self.encoding, **options)
        out = []
        for (pixels, _), some, turn, answer in zip(asked, labels, turns, answers):
            parsed = parse_answer(answer.text, some, pixels.shape[:2], self.encoding)
            refined = self.refiner.refine_masks(pixels, parsed.masks, seed=seed)
            out.append(Segmentation(pixels, some[0], turn.question, answer, parsed, refined,
                                    self.refiner.name))
        return out


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What came of one request.

    Attributes:
        image: uint8 ``(H, W, 3)``.
        expression: what was asked for.
        question: as the model read it.
        answer: what the model said, with tokens, seconds and trace.
        parsed: the answer read back: grid, coarse masks, report.
        masks: bool ``(1, H, W)``, after the refiner.
        refiner: its name.
    """

    image: np.ndarray
    expression: str
    question: str
    answer: Answer
    parsed: ParsedAnswer
    masks: np.ndarray
    refiner: str

    @property
    def mask(self) -> np.ndarray:
        """bool ``(H, W)``: the final mask."""
        return self.masks[0]

    @property
    def text(self) -> str:
        """The model's whole answer."""
        return self.answer.text

    @property
    def grid(self) -> np.ndarray:
        """int32 ``(rows, cols)``: 1 where the answer shows the expression, else 0."""
        return self.parsed.grid

    @property
    def report(self) -> ParseReport:
        """What the parser had to repair."""
        return self.parsed.report

    @property
    def malformed(self) -> bool:
        """Whether the text breaks the format; such an answer is never a "no target"."""
        return self.report.malformed

    @property
    def no_target(self) -> bool:
        """Whether a well-formed answer says that nothing in the picture is meant."""
        return self.report.no_target

    @cached_property
    def confidence(self) -> Confidence | None:
        """The probability of each cell; None where it was cut short, decoded plainly, or in boxes."""
        from .decoding.confidence import answer_confidence

        if self.malformed or self.answer.grammar is None or not isinstance(self.grid, np.ndarray):
            return None
        return answer_confidence(self.answer, self.parsed)

    def summary(self) -> str:
        """The outcome in one sentence: what was repaired, that nothing is meant, or the share covered."""
        if self.malformed:
            return f"The answer about {self.expression!r} cannot be trusted. {self.report.summary()}"
        if self.no_target:
            return f"Nothing in this picture is {self.expression!r}, says the model."
        return f"{self.expression!r} covers {self.mask.mean():.1%} of the picture."

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON; the mask as COCO's compressed RLE (``coco_rle``)."""
        from .evaluation.tasks import to_rle

        return {"expression": self.expression, "question": self.question, "text": self.text,
                "summary": self.summary(), "no_target": self.no_target, "malformed": self.malformed,
                "report": self.report.summary(), "grid": self.grid.tolist(), "refiner": self.refiner,
                "tokens": self.answer.n_tokens, "seconds": round(self.answer.seconds, 3),
                "pixels": int(self.mask.sum()), "coco_rle": to_rle(self.mask)}

    def save(self, path: str | Path) -> Path:
        """Write the mask as a grey PNG of the picture's size: 255 inside, 0 outside.

        Raises:
            FileError: it cannot be written.
        """
        from PIL import Image

        return _write_png(path, Image.fromarray(self.mask.astype(np.uint8) * 255))

    def save_overlay(self, path: str | Path, alpha: float = 0.5) -> Path:
        """Write the picture as a PNG with the mask tinted."""
        from matplotlib.colors import to_rgb
        from PIL import Image

        from .workbook.plotting import label_colour

        tint = 255 * np.array(to_rgb(label_colour(1)))
        out = self.image.astype(float)
        out[self.mask] = (1 - alpha) * out[self.mask] + alpha * tint
        return _write_png(path, Image.fromarray(out.round().astype(np.uint8)))

    def figure(self) -> Figure:
        """Picture with the grid, the answer's text, and the final mask, side by side."""
        import matplotlib.pyplot as plt

        from .workbook import plotting

        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4.4), layout="constrained")
        plotting.draw_grid(left, self.image, self.grid, [self.expression], "what the text says")
        after = "the grid's mask" if self.refiner == "none" else f"refined by {self.refiner}"
        plotting.show_mask(right, self.image, self.masks, [self.expression], after)
        plt.close(figure)
        return figure

    def _repr_png_(self) -> bytes:
        page = io.BytesIO()
        self.figure().savefig(page, format="png", dpi=90)
        return page.getvalue()

    def __repr__(self) -> str:
        return f"Segmentation({self.summary()})"


def as_pixels(image: Picture) -> np.ndarray:
    """A picture as uint8 RGB ``(H, W, 3)``.

    Args:
        image: the path of an image file, an array, or a PIL image.

    Raises:
        SampleError: a file that is no image, or an array of another shape or type.
    """
    if isinstance(image, (str, Path)):
        return read_image(image)
    pixels = np.asarray(image.convert("RGB")) if hasattr(image, "convert") else np.asarray(image)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise SampleError(f"A picture is a uint8 array (height, width, 3), but this one is "
                          f"{pixels.dtype} {pixels.shape}: give RGB values from 0 to 255.")
    return pixels


def _write_png(path: str | Path, image: Image.Image) -> Path:
    content = io.BytesIO()
    image.save(content, format="png")
    path = Path(path)
    atomic_write({path: content.getvalue()})
    return path
