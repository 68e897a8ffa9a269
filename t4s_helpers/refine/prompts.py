"""What SAM is told about a coarse mask: points, a box, and the mask itself as logits.

SAM sees an image scaled until its longest side fills a square frame of 1024 x 1024 pixels; the rest is
padding. Its mask prompt has 256 x 256 cells over the same square, so a coarse mask has to be laid into
that frame, not stretched over it. SAM 2 does stretch the image, and its mask prompt with it. Images are
``(H, W)``, row 0 at the top; points are ``(x, y)``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from ..codec.grid import mask_to_box

LOGIT_EPS = 1e-3  # coverage is kept this far from 0 and 1, so that its inverse sigmoid stays within +-6.9
RING = (1 / 32, 1 / 16)  # distances from the mask in longer sides of the image: ½ to 1 cell of 16 x 16

_CHOICES = {
    "points": ("random", "spread", "interior", "ring", "none"), "mask": ("hard", "soft", "binary", "none"),
    "frame": ("sam", "stretched"), "resize": ("coverage", "bilinear"), "choose": ("score", "agreement"),
    "box": (False, True), "multimask": (False, True),
}


class RefineError(ValueError):
    """Something that cannot be refined; the message says what to change."""


@dataclass(frozen=True)
class Prompts:
    """A prompt configuration. The defaults are the paper's.

    Attributes:
        points: how positive points are chosen in the coarse mask and negative ones outside it.
            ``random`` draws them (`sample_points`); ``spread`` takes them as far apart as can be;
            ``interior`` also keeps off the mask's edge, which is the edge of a cell and not of the
            object; ``ring`` takes the negative ones in a ring around it (`chosen_points`); ``none``.
        n_points: at most this many points of each sign, from 1. A region with fewer pixels gives all.
        box: add the bounding box of the coarse mask.
        mask: the mask prompt of the first call. ``hard`` is the inverse sigmoid of the coarse mask,
            ``soft`` that of the probabilities passed as ``confidence`` to `Refiner.refine`. ``binary``
            passes 1 and 0, which SAM does not expect: a common mistake, here to show its cost.
        strength: above 0; the logits of the mask prompt are multiplied by it.
        frame: ``sam`` lays the mask prompt where the model lays the image, for SAM into the padded frame;
            ``stretched`` pulls it over the whole frame, as happens when the aspect ratio is forgotten.
        resize: ``coverage`` takes the inverse sigmoid of how much of each of SAM's cells the mask covers;
            ``bilinear`` resizes the mask's logits as Pillow resizes a picture, and leaves 0 ("unknown")
            outside of it. A grid that is stretched so has slopes between its cells, not steps.
        calls: predictor calls in all, from 1. Each one gets the logits of the one before.
        multimask: let SAM propose three masks in each call; ``choose`` picks the one with the highest
            ``score``, or with the highest product of score and IoU with the coarse mask
            (``agreement``).

    Raises:
        RefineError: any other value, or no prompt at all.
    """

    points: str = "random"
    n_points: int = 10
    box: bool = False
    mask: str = "hard"
    strength: float = 1.0
    frame: str = "sam"
    resize: str = "coverage"
    calls: int = 3
    multimask: bool = False
    choose: str = "score"

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if type(value) is not type(choices[0]) or value not in choices:
                raise RefineError(f"Prompts({name}={value!r}) is not known; choose one of {choices}.")
        for name in ("n_points", "calls"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise RefineError(f"Prompts({name}={value!r}) must be a whole number from 1.")
        if not 0 < self.strength < float("inf"):
            raise RefineError(f"Prompts(strength={self.strength!r}) must be a number above 0.")
        if self.points == "none" and self.mask == "none" and not self.box:
            raise RefineError("Prompts needs at least one of points, box and mask.")


PAPER_PROMPTS = Prompts()
"""10 + 10 random points and the mask's logits in SAM's frame, three calls (appendix A.1)."""

BEST_PROMPTS = Prompts(points="ring", box=True, strength=0.5)
"""Interior points and a ring of negative ones, the box, and the logits at half strength: chosen among some
thirty configurations by the cIoU on the bundled photos (53 targets, oracle 16 x 16 grids), nothing else."""


def sam_prompt(
    mask: np.ndarray, prompts: Prompts, seed: int = 0, confidence: np.ndarray | None = None,
    cells: tuple[int, int] = (256, 256), frame_size: tuple[int, int] = (1024, 1024), frame: str = "sam",
) -> dict[str, np.ndarray]:
    """Everything that SAM is told about one coarse mask ``(H, W)``, in the coordinates of SAM's frames.

    Args:
        seed: of random points, from 0.
        confidence: float ``(rows, cols)`` in [0, 1], for ``mask="soft"``.
        cells, frame_size: as in `mask_logits`.
        frame: how the model lays the image: ``sam``, or ``stretched`` for SAM 2.

    Returns:
        as far as asked for, ``point_coords`` ``(P, 2)``, ``point_labels`` ``(P,)``, ``boxes`` ``(4,)``,
        ``mask_input`` ``(1, *cells)``; ``coarse`` ``cells`` where a choice among masks needs it.
    """
    rows, columns = filled_frame(mask.shape, max(frame_size)) if frame == "sam" else frame_size
    scale = np.array([columns / mask.shape[1], rows / mask.shape[0]])
    told = {}
    if prompts.points != "none":
        pixels, labels = POINTS[prompts.points](mask, prompts.n_points, seed)
        # The middle of a pixel; SAM itself adds the half that leads to the middle of its own.
        told["point_coords"] = (pixels + 0.5) * scale - 0.5
        told["point_labels"] = labels
    if prompts.box:
        told["boxes"] = np.array(mask_to_box(mask), float) * np.tile(scale, 2)
    if prompts.mask != "none":
        shown = confidence if prompts.mask == "soft" else mask
        laid = frame if prompts.frame == "sam" else prompts.frame
        logits = mask_logits(shown, cells, frame_size, laid, mask.shape, prompts.resize)
        logits = (logits > 0).astype(np.float32) if prompts.mask == "binary" else logits
        told["mask_input"] = prompts.strength * logits[None]
    if prompts.multimask and prompts.choose == "agreement":
        told["coarse"] = mask_logits(mask, cells, frame_size, frame) > 0
    return told


def filled_frame(image_size: tuple[int, int], side: int = 1024) -> tuple[int, int]:
    """(rows, columns) that an image ``(H, W)`` fills in SAM's square frame, rounded as SAM does."""
    scale = side / max(image_size)
    return int(image_size[0] * scale + 0.5), int(image_size[1] * scale + 0.5)


def mask_logits(
    mask: np.ndarray, cells: tuple[int, int] = (256, 256), frame_size: tuple[int, int] = (1024, 1024),
    frame: str = "sam", image_size: tuple[int, int] | None = None, resize: str = "coverage",
) -> np.ndarray:
    """A mask as SAM's mask prompt: the inverse sigmoid of how much of each cell it covers.

    Args:
        mask: bool ``(H, W)``, or float probabilities in [0, 1].
        cells, frame_size: (rows, columns) of SAM's mask frame, and of its input frame in pixels.
        frame, resize: see `Prompts`.
        image_size: ``(H, W)`` of the image under a coarser grid; by default the mask's own size.

    Returns:
        float32 ``cells``, from -6.9 (background) to 6.9 (covered), see `LOGIT_EPS`.

    >>> wide = np.ones((2, 4), bool)
    >>> (mask_logits(wide, (4, 4), (16, 16)) > 0).astype(int).tolist()
    [[1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]]
    """
    image_size = image_size or mask.shape
    if resize == "bilinear":
        return _resized_logits(mask, cells, filled_frame(image_size, max(cells)) if frame == "sam" else cells)
    filled = filled_frame(image_size, max(frame_size)) if frame == "sam" else frame_size
    # Edges of the frame's cells in pixels of the mask; some lie past the mask.
    row_edges, column_edges = (
        np.arange(cells[axis] + 1) * (frame_size[axis] / cells[axis]) * (mask.shape[axis] / filled[axis])
        for axis in (0, 1)
    )
    covered = _integrate(_integrate(mask, row_edges).T, column_edges).T
    covered /= (row_edges[1] - row_edges[0]) * (column_edges[1] - column_edges[0])
    return _inverse_sigmoid(covered)


def _inverse_sigmoid(probs: np.ndarray) -> np.ndarray:
    probs = np.clip(probs, LOGIT_EPS, 1 - LOGIT_EPS)
    return np.log(probs / (1 - probs)).astype(np.float32)


def _resized_logits(mask: np.ndarray, cells: tuple[int, int], filled: tuple[int, int]) -> np.ndarray:
    """Logits of a mask brought to ``filled`` cells (rows, columns), and 0 in the rest of ``cells``."""
    from PIL import Image

    logits = np.zeros(cells, np.float32)
    picture = Image.fromarray(_inverse_sigmoid(mask))
    logits[:filled[0], :filled[1]] = np.asarray(picture.resize(filled[::-1], Image.Resampling.BILINEAR))
    return logits


def _integrate(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Integrals of ``values`` (constant within each pixel of axis 0) between neighbouring edges."""
    total = np.zeros((len(values) + 1, values.shape[1]))
    np.cumsum(values, axis=0, out=total[1:])
    edges = np.minimum(edges, len(values))
    whole = np.minimum(edges.astype(int), len(values) - 1)
    part = (edges - whole)[:, None]
    return np.diff(total[whole] * (1 - part) + total[whole + 1] * part, axis=0)


def sample_points(mask: np.ndarray, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw positive points from a mask and negative points from the rest of the image.

    The generator is seeded by ``seed`` (from 0) and the mask's content, so that neither the order of
    the labels nor the way a data set is split changes a point.

    Args:
        mask: bool ``(H, W)``.
        n: points of each sign; where there are fewer pixels, all of them.

    Returns:
        pixel indices ``(x, y)``, float64 ``(P, 2)``, the positive ones first, no pixel twice; and int64
        ``(P,)``, 1 for positive and 0 for negative.

    >>> points, labels = sample_points(np.array([[True, False, False]]), n=2, seed=0)
    >>> points[0].tolist(), labels.tolist()
    ([0.0, 0.0], [1, 0, 0])
    """
    rng = np.random.default_rng([seed, int.from_bytes(digest(np.packbits(mask)), "little")])
    flat = mask.reshape(-1)
    inside, outside = np.flatnonzero(flat), np.flatnonzero(~flat)
    chosen = [rng.choice(part, min(n, len(part)), replace=False) for part in (inside, outside)]
    rows, columns = np.divmod(np.concatenate(chosen), mask.shape[1])
    labels = np.repeat([1, 0], [len(part) for part in chosen])
    return np.stack([columns, rows], axis=1).astype(float), labels


def chosen_points(
    mask: np.ndarray, n: int, seed: int = 0, *, edge_counts: bool, ring: tuple[float, float] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Choose points one by one, each as far as possible from those before, by the distance transform.

    The first lies deepest inside its region. Images with more than 128 pixels a side are looked at in
    steps. Nothing is drawn: ``seed`` is there to be called like `sample_points`.

    Args:
        edge_counts: keep away from the mask's edge (for positive points the image's border is one too)
            as from other points.
        ring: take negative points, where there are any, at distances from the mask between these shares
            of the image's longer side: beyond its uncertain edge, yet near enough to say where it ends.
    """
    from scipy.ndimage import distance_transform_edt

    step = max(1, -(-max(mask.shape) // 128))
    small = mask[step // 2 :: step, step // 2 :: step]
    # A small mask (or a small rest) may vanish in the steps; such an image is taken whole.
    if small.any() != mask.any() or small.all() != mask.all():
        step, small = 1, mask
    inside = distance_transform_edt(np.pad(small, 1))[1:-1, 1:-1]
    outside = distance_transform_edt(~small) if small.any() else np.ones(small.shape)
    negative = _farthest(outside, n, edge_counts)
    if ring:
        near, far = (max(small.shape) * share for share in ring)
        band = (outside >= near) & (outside <= far)
        negative = _farthest(band.astype(float), n, edge_counts=False) if band.any() else negative
    chosen = [_farthest(inside, n, edge_counts), negative]
    points = np.concatenate(chosen).astype(float) * step + step // 2
    return points, np.repeat([1, 0], [len(part) for part in chosen])


def _farthest(depth: np.ndarray, n: int, edge_counts: bool) -> np.ndarray:
    """Greedily chosen ``(x, y)`` of positive depth, int64 ``(<= n, 2)``, the deepest first."""
    rows, columns = np.nonzero(depth)
    room, chosen = depth[rows, columns], []
    for k in range(min(n, len(rows))):
        best = int(room.argmax())
        chosen.append((columns[best], rows[best]))
        away = np.hypot(rows - rows[best], columns - columns[best])
        room = np.minimum(room, away) if edge_counts or k else away
    return np.array(chosen, np.int64).reshape(-1, 2)


POINTS: dict[str, Callable[..., tuple[np.ndarray, np.ndarray]]] = {
    "random": sample_points,
    "spread": partial(chosen_points, edge_counts=False),
    "interior": partial(chosen_points, edge_counts=True),
    "ring": partial(chosen_points, edge_counts=True, ring=RING),
}
"""The choices of ``Prompts.points``: functions of a mask, a number of points and a seed."""


def digest(array: np.ndarray) -> bytes:
    """16 bytes that tell arrays of different shape or content apart."""
    found = hashlib.blake2b(str(array.shape).encode(), digest_size=16)
    found.update(np.ascontiguousarray(array))
    return found.digest()
