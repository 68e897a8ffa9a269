"""From requests to text: generation with the backbone, and reading the text back as masks."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .descriptors import grid_to_masks, parse_size
from .parsing import ParseReport, parse
from .prompts import Turn, ask

if TYPE_CHECKING:
    from .confidence import Confidence
    from .constrained import Trace
    from .grammar import Grammar

MODES = ("plain", "constrained", "fast")
"""``plain``: the backbone's own ``generate``. ``constrained``: the same, but only valid descriptors of
the request can be written. ``fast``: the tokens of ``constrained``, greedy or sampled, in far fewer
passes."""


class DecodingError(RuntimeError):
    """Generation that cannot go on; the message says why."""


@dataclass(frozen=True)
class Answer:
    """What the model said to one request.

    Attributes:
        text: the whole answer, special tokens removed.
        n_tokens: tokens generated, the end mark included.
        finished: whether the model ended the answer itself, before the token limit.
        seconds: wall-clock time of its batch divided by the batch size.
        trace: how a ``constrained`` or ``fast`` answer came about, else ``None``.
        grammar: that held it, else ``None``.
    """

    text: str
    n_tokens: int
    finished: bool
    seconds: float
    trace: Trace | None = None
    grammar: Grammar | None = None


@dataclass(frozen=True, eq=False)
class Reading:
    """An answer read back.

    Attributes:
        grid: int32 ``(rows, cols)``, 0 others, ``k`` is ``labels[k-1]``.
        masks: bool ``(L, H, W)`` at the image's size.
        report: what had to be repaired.
    """

    grid: np.ndarray
    masks: np.ndarray
    report: ParseReport


def token_budget(encoder, labels, size=16) -> int:
    """A limit on new tokens that no sensible answer reaches: every row cut into six runs."""
    rows, cols = parse_size(size)
    longest = max((len(encoder.piece_ids(label)) for label in labels), default=1)
    return 48 + rows * min(cols, 6) * (longest + 3)


def generate(backbone, images, questions, labels=(), size=16, batch: int = 16,
             max_new_tokens: int | None = None, temperature: float = 0.0, seed: int = 0,
             progress: bool = True, mode: str = "plain", scheme: str = "rrle") -> list[Answer]:
    """Answer questions about images.

    Args:
        backbone: a `t4s_helpers.backbones.Backbone`, with or without an adapter.
        images: uint8 ``(H, W, 3)`` arrays.
        questions: one text per image.
        labels: for each question the names that its descriptor may use, none if it wants no
            descriptor; or one list of names for all. ``plain`` only bounds the length with them.
        size, scheme: of the descriptors.
        batch: requests that go through the model together; padded on the left.
        max_new_tokens: limit of an answer; by default `token_budget`.
        temperature: 0 for greedy decoding, above for sampling with ``seed``.
        mode: one of `MODES`.

    Raises:
        DecodingError: images, questions and labels differ in number, an unknown mode, or
            logits that are not numbers.
        GrammarError: labels that the mode cannot tell apart.
    """
    import torch
    from tqdm.auto import tqdm

    from .constrained import ConstraintError, Writer
    from .drafting import Pace

    if len(images) != len(questions):
        raise DecodingError(f"{len(images)} images came with {len(questions)} questions; "
                            "give one question for each image.")
    if mode not in MODES:
        raise DecodingError(f"Unknown decoding mode {mode!r}: choose one of {', '.join(MODES)}.")
    names = _names_per_question(labels, len(questions))
    encoder, answers = backbone.encoder, []
    longest = max(names, key=lambda some: sum(map(len, some)), default=())
    budget = max_new_tokens or token_budget(encoder, longest, size)
    choice = {"do_sample": False} if temperature == 0 or mode != "plain" else {
        "do_sample": True, "temperature": temperature, "top_k": 0}
    torch.manual_seed(seed)
    pace = Pace()
    order = tqdm(range(0, len(questions), batch), desc="generate", unit="batch",
                 disable=not progress or len(questions) <= batch)
    for at in order:
        chunk = slice(at, at + batch)
        inputs = _inputs(backbone, encoder, images[chunk], questions[chunk])
        writers = [] if mode == "plain" else [
            Writer(encoder, some, size, scheme, pace=pace, temperature=temperature,
                   rng=np.random.default_rng([seed, k]) if temperature else None)
            for k, some in enumerate(names[chunk], at)]
        extra = _decoder(mode, writers, inputs["input_ids"].shape[1], budget)
        start = time.perf_counter()
        try:
            with torch.inference_mode():
                out = backbone.model.generate(**inputs, **choice, **extra, max_new_tokens=budget,
                                              pad_token_id=encoder.tokenizer.pad_token_id)
        except ConstraintError as error:
            raise DecodingError(str(error)) from error
        new = out[:, inputs["input_ids"].shape[1]:]
        seconds = (time.perf_counter() - start) / len(new)
        answers += [_answer(encoder.tokenizer, row.tolist(), seconds, writer)
                    for row, writer in zip(new, writers or [None] * len(new))]
    return answers


def _names_per_question(labels, n: int) -> list[tuple[str, ...]]:
    if not len(labels) or isinstance(labels[0], str):
        return [tuple(labels)] * n
    if len(labels) != n:
        raise DecodingError(f"{n} questions came with {len(labels)} lists of labels; give one list "
                            "for each question.")
    return [tuple(some) for some in labels]


def _decoder(mode: str, writers, prompt: int, budget: int) -> dict:
    """What ``generate`` is told beside its own options."""
    from .constrained import DescriptorProcessor, DraftingDecoder

    if mode == "constrained":
        return {"logits_processor": [DescriptorProcessor(writers, prompt)]}
    return {"custom_generate": DraftingDecoder(writers, limit=budget)} if mode == "fast" else {}


def _inputs(backbone, encoder, images, questions):
    texts = [encoder.prompt_text([Turn(question, ())]) for question in questions]
    out = backbone.processor(text=texts, images=[[image] for image in images],
                             return_tensors="pt", padding=True,
                             add_special_tokens=encoder.needs_bos(texts[0]))
    return out.to(backbone.model.device)


def _answer(tokenizer, ids: list[int], seconds: float, writer=None) -> Answer:
    ends = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    n = next((k for k, i in enumerate(ids) if i in ends), None)
    text = tokenizer.decode(ids if n is None else ids[:n], skip_special_tokens=True)
    trace = grammar = None
    if writer is not None:
        for token in ids[len(writer.ids):len(ids) if n is None else n + 1]:
            writer.trace.passes += 1  # the processor never sees the last token
            writer.push(token)
        trace, grammar = writer.trace, writer.grammar
    return Answer(text, len(ids) if n is None else n + 1, n is not None, seconds, trace, grammar)


def answer_confidence(answer: Answer, reading: Reading) -> Confidence:
    """The probability of each label in each cell of an answer, from the passes that wrote it.

    Args:
        answer, reading: from `answer_samples`, modes ``constrained`` or ``fast``.

    Raises:
        DecodingError: a plain answer, or one that was cut short.
    """
    from .confidence import cell_confidence

    if answer.grammar is None:
        raise DecodingError("Only answers held to a grammar have a confidence: decode with "
                            "mode='constrained' or mode='fast'.")
    if not reading.report.ok:
        raise DecodingError("The answer was cut short, so its confidence is unknown: raise "
                            "max_new_tokens.")
    return cell_confidence(answer.grammar, answer.trace.choices, reading.grid)


def read_answer(text: str, labels, image_size, size=16, scheme: str = "rrle") -> Reading:
    """Parse an answer and lay its grid over the image.

    Args:
        text: what the model wrote.
        labels: the texts asked for.
        image_size: ``(H, W)`` in pixels.
    """
    grid, report = parse(text, labels, size, scheme)
    return Reading(grid, grid_to_masks(grid, len(labels), image_size), report)


def answer_samples(backbone, samples, size=16, scheme: str = "rrle", **options) -> list[tuple]:
    """Generate for samples and read the answers: a list of ``(Answer, Reading or None)``.

    Questions are worded by `t4s_helpers.prompts.ask` with its fixed wording; ``vqa`` answers are
    not read as descriptors. ``options`` go to `generate`.
    """
    asked = [ask(sample) for sample in samples]
    answers = generate(backbone, [sample.pixels() for sample in samples],
                       [one.question for one in asked], [one.labels for one in asked], size,
                       scheme=scheme, **options)
    return [
        (said, None if sample.task == "vqa" else
         read_answer(said.text, one.labels, sample.size, size, scheme))
        for sample, one, said in zip(samples, asked, answers)
    ]
