"""A whole grid in one pass: the cells of a draft, each judged at once, in place of a text written in order.

STAMP lets a model say its sentence and then predicts all cells of the mask in one further pass. Here no head
and no training is added: a draft of the descriptor (the box that the sentence states, filled) is read in one
pass, and the logits along it tell the probability of each label in each cell
(`t4s_helpers.decoding.confidence.cell_confidence`). The likeliest label of every cell is the answer.

What is lost against writing: every row is judged behind the draft's rows, not behind those that the model
would have written. Further passes read the last result as their draft.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

from ..codec.encodings import SEG_CLOSE, SEG_OPEN, BoxWise, Encoding, get_encoding, wrap
from ..codec.grid import BOX_BINS, masks_to_grid
from ..data.prompts import Turn, box_in_words, read_box
from .confidence import cell_confidence
from .constrained import ConstrainedSequence, DecodingError, Trace
from .generate import Answer, generate, read_answers
from .grammar import grammar_of

NOWHERE = box_in_words(np.zeros((1, 1), bool))


class Opening(NamedTuple):
    """How an answer begins: its sentence, the ids up to ``<seg>``, and passes and seconds that it took."""

    sentence: str
    ids: tuple[int, ...]
    passes: int = 0
    seconds: float = 0.0


def one_pass(backbone, images: Sequence[np.ndarray], conversations: Sequence[Sequence[Turn]],
             encoding: Encoding, *, sentence: str | None = None, passes: int = 1, batch: int = 16,
             progress: bool = True) -> list[Answer]:
    """Answer as `t4s_helpers.decoding.generate.generate` does, the grid read off the logits of a draft.

    Args:
        backbone, images, conversations, encoding, batch, progress: as for ``generate``; every request needs
            labels, and the encoding one grid over the image.
        sentence: said before every descriptor, so that a single pass over each request is all. By default
            the model writes its own first, held to the grammar of a grid of one cell, in a few passes.
        passes: over the descriptor; the second reads the result of the first, and so on.

    Returns:
        an `Answer` for each request. ``trace.passes`` counts those of the sentence and the grid after the
        one over the prompt, which a given sentence does without; there is no grammar, and so no confidence.

    Raises:
        DecodingError: a request in words, no pass, or the encoding ``boxwise``.

    >>> draft_grid("At 8 0 23 15:", get_encoding("rrle", 4), 1).tolist()
    [[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    """
    labels = [turns[-1].labels for turns in conversations]
    if isinstance(encoding, BoxWise) or not all(labels) or passes < 1:
        raise DecodingError("A grid in one pass needs labels in every request, at least one pass, and an "
                            "encoding with one grid over the image, such as 'rrle'.")
    openings = _openings(backbone, images, conversations, sentence, batch)
    grids = [draft_grid(one.sentence, encoding, len(names)) for one, names in zip(openings, labels)]
    seconds = [one.seconds for one in openings]
    for part in tqdm(range(0, len(grids), batch), desc="one pass", unit="batch",
                     disable=not progress or len(grids) <= batch):
        some, start = range(len(grids))[part:part + batch], time.perf_counter()
        for _ in range(passes):
            drafts = [_draft_ids(backbone.encoder, grids[k], labels[k], encoding) for k in some]
            with torch.inference_mode():
                logits = read_answers(backbone, [images[k] for k in some], [conversations[k] for k in some],
                                      [[*openings[k].ids, *draft] for k, draft in zip(some, drafts)])
            for k, draft, scores in zip(some, drafts, logits):
                grids[k] = judged(backbone.encoder, openings[k].ids, draft, scores, grids[k], labels[k],
                                  encoding)
        for k in some:
            seconds[k] += (time.perf_counter() - start) / len(some)
    answers, end = [], backbone.processor.tokenizer.eos_token_id
    for one, grid, names, spent in zip(openings, grids, labels, seconds):
        ids = (*one.ids, *_draft_ids(backbone.encoder, grid, names, encoding), end)
        answers.append(Answer(wrap(encoding.encode(grid, names), one.sentence), len(ids), True, spent,
                              Trace(one.passes + passes - (sentence is not None)), None, ids))
    return answers


def _openings(backbone, images, conversations, sentence: str | None, batch: int) -> list[Opening]:
    encoder = backbone.encoder
    tag = tuple(i for piece in ("\n", SEG_OPEN) for i in encoder.piece_ids(piece))
    if sentence is not None:
        return [Opening(sentence, (*encoder.piece_ids(sentence), *tag))] * len(images)
    openings = []
    for said in generate(backbone, images, conversations, get_encoding("rrle", 1), batch=batch,
                         progress=False):
        n = next(k for k, source in enumerate(said.trace.sources) if source != "free")
        whole = encoder.tokenizer.decode(said.ids[:n]).endswith(SEG_OPEN)  # else the tag was forced
        openings.append(Opening(said.text.partition(SEG_OPEN)[0].rstrip("\n"),
                                said.ids[:n] if whole else (*said.ids[:n], *tag),
                                said.trace.at_pass[n - 1], said.seconds))
    return openings


def draft_grid(sentence: str, encoding: Encoding, n_labels: int) -> np.ndarray:
    """A first guess at the cells, int32 ``(rows, cols)``: the stated box, labels in stripes from its left.

    Without a box it is the middle of the image, where rows tell both of an object's edges; nothing where
    the sentence says that there is nothing.
    """
    if sentence.startswith(NOWHERE):
        return np.zeros(encoding.grid_size, np.int32)
    quarter = BOX_BINS // 4
    x0, y0, x1, y1 = read_box(sentence) or (quarter, quarter, 3 * quarter, 3 * quarter)
    box = np.zeros((BOX_BINS, BOX_BINS), bool)
    box[y0:y1, x0:x1] = True
    grid = masks_to_grid([box], encoding.grid_size)
    columns = np.flatnonzero(grid.any(0))
    for place, column in enumerate(columns):
        grid[:, column] *= 1 + place * n_labels // len(columns)
    return grid


def _draft_ids(encoder, grid: np.ndarray, labels, encoding: Encoding) -> list[int]:
    return [i for piece in (*encoding.pieces(grid, labels), SEG_CLOSE) for i in encoder.piece_ids(piece)]


def judged(encoder, opening: Sequence[int], draft: Sequence[int], logits, grid: np.ndarray, labels,
           encoding: Encoding) -> np.ndarray:
    """The likeliest label of each cell, int32 ``(rows, cols)``, by the logits along a draft.

    Args:
        opening, draft: token ids of the sentence with ``<seg>``, and of the descriptor with ``</seg>``.
        logits: float ``(tokens, vocabulary)`` of both, from `t4s_helpers.decoding.generate.read_answers`.
        grid: what the draft says.
    """
    sequence = ConstrainedSequence(encoder, grammar_of(encoder, labels, encoding))
    sequence.catch_up(opening)
    for token, scores in zip(draft, logits[len(opening):]):
        sequence.choose(scores)  # notes what the model would choose from
        sequence.push(token)
    return cell_confidence(sequence.grammar, sequence.trace.choices, grid).probs.argmax(0).astype(np.int32)
