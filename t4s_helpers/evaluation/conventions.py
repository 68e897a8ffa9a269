"""Conventions of evaluation: our own strict ones, and those of Text4Seg's public code.

One model's scores differ with what a damaged answer counts for and with what SAM is told, so a number may
stand beside a published one only under the same conventions. These are facts about the ``ms-swift`` tree of
https://github.com/mc-lan/Text4Seg, the source of the paper's tables 1 to 3 (``infer_refer_seg.py``,
``utils.py``, ``eval_refer_seg.py``); no code is taken from it.

| | ``strict`` | ``official`` |
|---|---|---|
| target | the asked label | every label but "others"; without any "others", all but the first |
| a short or long row | damage stays within the row | shifts all that follows: one long line |
| text too short | the rest is "others" | the rest has the last label |
| an unreadable run | "others" | the whole answer is an empty mask |
| unreadable, no target | earns nothing | a right rejection |
| from cells to pixels | by a pixel's centre | by its upper left corner |
| mask prompt | coverage, in SAM's padded frame | the grid's logits, stretched over SAM's square |
| ... before 2025-07-20 | | pixels' logits in the padded frame (``official-2024``) |
| refined far off | the coarse mask stays | counts |
| decoding | by the grammar | greedy, free |
| question | the first of our wordings | one of six by chance; here that of the paper's figure 4 |

Not followed: questions drawn by chance, points drawn without a seed, boxes whose last pixel does not count.
The ``llava`` tree has drawn 20 + 20 points since 2025-11-08 (``replace(PROMPTS, n_points=20)``); but its
script for expressions leaves out an argument of its reader, so that every answer ends as an empty mask. The
prompts are those under the pinned torchvision 0.15.2: newer ones squeeze such logits into bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..codec.encodings import OTHERS, SEG_CLOSE, SEG_OPEN, Encoding
from ..decoding.generate import ParsedAnswer, parse_answer
from ..refine import Prompts


@dataclass(frozen=True)
class Conventions:
    """How an answer is asked for, read and refined, and what a damaged one counts for.

    Attributes:
        name: the protocol's.
        reading: ``strict``, ``lenient`` (`t4s_helpers.codec.parsing.near`) or ``official``.
        malformed_is_rejection: see `t4s_helpers.evaluation.metrics.SegmentationMetric`.
        prompts: what the refiner is told; None for its own.
        min_iou: below this overlap the coarse mask stays, see `t4s_helpers.refine.Refiner.refine`; None for
            the refiner's own.
        question: wording with ``{labels}``; empty for that of `t4s_helpers.data.prompts.ask`.
        mode: of decoding, where the run names none; empty for that of
            `t4s_helpers.decoding.generate.generate`.
    """

    name: str = "strict"
    reading: str = "strict"
    malformed_is_rejection: bool = False
    prompts: Prompts | None = None
    min_iou: float | None = None
    question: str = ""
    mode: str = ""

    def read(self, text: str, labels, image_size: tuple[int, int], encoding: Encoding) -> ParsedAnswer:
        """An answer's text as masks ``(L, H, W)``; ``official`` has one, whatever the labels.

        The report is that of our parser in any case, except that ``no_target`` says what counts as one.
        """
        parsed = parse_answer(text, labels, image_size, encoding, self.reading == "lenient")
        if self.reading != "official":
            return parsed
        grid = official_grid(text, encoding)
        rows, cols = (np.arange(side) * cells // side for side, cells in zip(image_size, grid.shape))
        report = replace(parsed.report, no_target=not grid.any())
        return ParsedAnswer(grid, grid[np.ix_(rows, cols)][None] > 0, report)

    def refining(self, parsed: ParsedAnswer) -> dict[str, Any]:
        """Options for a refiner of an answer's masks."""
        given = {"prompts": self.prompts, "min_iou": self.min_iou}
        if self.prompts and self.prompts.mask == "soft":
            given["confidence"] = [parsed.grid == k for k in range(1, len(parsed.masks) + 1)]
        return {name: value for name, value in given.items() if value is not None}


def official_grid(text: str, encoding: Encoding) -> np.ndarray:
    r"""The cells that the official evaluation takes for the target, int32 ``(rows, cols)`` of 0 and 1.

    The official separators are those of the spaced spelling; texts in the canonical one, which the official
    code would not read at all, are read with theirs.

    >>> from t4s_helpers.codec.encodings import get_encoding
    >>> official_grid("<seg>others *1|dog *1\nothers *1|dog *1</seg>", get_encoding("rrle", 2)).tolist()
    [[0, 1], [0, 1]]
    >>> official_grid("<seg>dog *2\ndog *2</seg>", get_encoding("rrle", 2)).tolist()
    [[0, 0], [0, 0]]
    """
    body = text.strip().partition(SEG_OPEN)[2].partition(SEG_OPEN)[0].partition(SEG_CLOSE)[0].strip("\n")
    bar, line_break = ("| ", "\n ") if "| " in body or "\n " in body else ("|", "\n")
    lines = body.split(line_break) if encoding.breaks_rows else [body]
    words: list[str] = []
    for run in (run for line in lines for run in line.split(bar)):
        label, *counts = run.split(" *") if encoding.counts_runs else (run, "1")
        try:
            (count,) = map(int, counts)
        except ValueError:  # one run that is no label with a count empties the whole answer
            return np.zeros(encoding.grid_size, np.int32)
        words += [label.strip()] * min(count, encoding.rows * encoding.cols)
    words, n = words or [OTHERS], encoding.rows * encoding.cols
    nothing = OTHERS if OTHERS in words else words[0]
    words += words[-1:] * (n - len(words))
    return np.array([word != nothing for word in words[:n]], np.int32).reshape(encoding.grid_size)


STRICT = Conventions()
PROMPTS = Prompts(mask="soft", frame="stretched", resize="bilinear")
"""What SAM is told by the official evaluation since 2025-07-20; a soft mask is one given as a grid."""

OFFICIAL = Conventions("official", "official", malformed_is_rejection=True, prompts=PROMPTS, min_iou=0.0,
                       question="Can you segment the {labels} in the image?", mode="plain")
PROTOCOLS = {one.name: one for one in (
    STRICT, Conventions("lenient", "lenient"), OFFICIAL,
    replace(OFFICIAL, name="official-2024", prompts=Prompts(resize="bilinear")))}
"""Conventions by name: ``lenient`` is strict but for its reading, ``official-2024`` the official code before
2025-07-20, that of the paper's time."""
