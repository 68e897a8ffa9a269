"""From requests to text: generation with the backbone, and reading the text back as masks."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..codec.grid import grid_to_masks, parse_size
from ..codec.parsing import ParseReport, parse
from ..data.prompts import Turn, ask
from ..codec.encodings import pieces

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
        ids: token ids, the end mark included.
    """

    text: str
    n_tokens: int
    finished: bool
    seconds: float
    trace: Trace | None = None
    grammar: Grammar | None = None
    ids: tuple[int, ...] = ()


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
             progress: bool = True, mode: str = "plain", scheme: str = "rrle",
             draws: int = 1, leads=None, trees: bool | None = None) -> list[Answer]:
    """Answer questions about images.

    Args:
        backbone: a `t4s_helpers.model.backbones.Backbone`, with or without an adapter.
        images: uint8 ``(H, W, 3)`` arrays.
        questions: one text per image.
        labels: for each question the names that its descriptor may use, none if it wants no
            descriptor; or one list of names for all. ``plain`` only bounds the length with them.
        size, scheme: of the descriptors.
        batch: answers that go through the model together; padded on the left.
        max_new_tokens: limit of an answer; by default `token_budget`.
        temperature: 0 for greedy decoding, above for sampling with ``seed``. In the modes that know
            the grammar a question's draws depend on its number and the seed alone, not on the batch.
        mode: one of `MODES`.
        draws: answers to each question, next to each other in the result. Mode ``fast`` reads image
            and question once for all of them.
        leads: for each question the token ids of an answer, its end included, that is written in place
            of the model's own choice: what a given answer costs, whatever the model has learned.
        trees: whether mode ``fast`` reads many drafts at once, as a tree: fewer passes over more tokens;
            by default on a GPU, where tokens read along cost next to nothing.

    Raises:
        DecodingError: images, questions and labels differ in number, an unknown mode, a request
            that the model's context does not hold, or logits that are not numbers.
        GrammarError: labels that the mode cannot tell apart.
    """
    import torch
    from tqdm.auto import tqdm

    from .constrained import ConstraintError, FiniteLogits, Writer
    from .speculative import Pace

    _check_request(images, questions, mode, draws)
    names = _names_per_question(labels, len(questions))
    encoder, answers, pace = backbone.encoder, [], Pace()
    longest = max(names, key=lambda some: sum(map(len, some)), default=())
    budget = max_new_tokens or token_budget(encoder, longest, size)
    choice = {"do_sample": False} if temperature == 0 or mode != "plain" else {
        "do_sample": True, "temperature": temperature, "top_k": 0}
    torch.manual_seed(seed)
    once = 1 if mode == "fast" else draws  # how often a question is read
    turns = [(k, draw) for k in range(len(questions)) for draw in range(once)]
    step = max(1, batch * once // draws)
    order = tqdm(range(0, len(turns), step), desc="generate", unit="batch",
                 disable=not progress or len(turns) <= step)
    for at in order:
        chunk = turns[at:at + step]
        asked = [k for k, _ in chunk]
        inputs = _inputs(backbone, encoder, [images[k] for k in asked],
                         [questions[k] for k in asked])
        prompt = inputs["input_ids"].shape[1]
        room = _room(backbone, inputs, [names[k] for k in asked], size, scheme)
        writers = [] if mode == "plain" else [
            Writer(encoder, names[k], size, scheme, pace=pace, temperature=temperature,
                   rng=np.random.default_rng([seed, k, draw + more]) if temperature else None,
                   lead=leads[k] if leads else None)
            for k, draw in chunk for more in range(draws // once)]
        extra = _decoder(mode, writers, prompt, min(budget, room), trees)
        if mode == "plain":
            extra = {"logits_processor": [FiniteLogits(leads and [leads[k] for k in asked])]}
        start = time.perf_counter()
        try:
            with torch.inference_mode():
                out = backbone.model.generate(
                    **inputs, **choice, **extra, max_new_tokens=min(budget, room),
                    pad_token_id=encoder.tokenizer.pad_token_id)
        except ConstraintError as error:
            raise DecodingError(str(error)) from error
        new = out[:, prompt:]
        seconds = (time.perf_counter() - start) / len(new)
        answers += [_answer(encoder.tokenizer, row.tolist(), seconds, writer)
                    for row, writer in zip(new, writers or [None] * len(new))]
    return answers


def _check_request(images, questions, mode: str, draws: int) -> None:
    if len(images) != len(questions):
        raise DecodingError(f"{len(images)} images came with {len(questions)} questions; "
                            "give one question for each image.")
    if mode not in MODES:
        raise DecodingError(f"Unknown decoding mode {mode!r}: choose one of {', '.join(MODES)}.")
    if draws < 1:
        raise DecodingError(f"{draws} answers to a question are asked for; ask for at least one.")


def _room(backbone, inputs, names, size, scheme: str) -> int:
    """New tokens that the model's context has room for.

    Raises:
        DecodingError: not even the shortest descriptor fits.
    """
    config = backbone.model.config
    context = getattr(getattr(config, "text_config", config), "max_position_embeddings", None)
    if context is None:
        return 1 << 30
    lengths = inputs["attention_mask"].sum(-1).tolist()
    nothing = np.zeros(parse_size(size), int)
    for length, some in zip(lengths, names):
        needed = sum(len(backbone.encoder.piece_ids(piece))
                     for piece in pieces(nothing, some, scheme)) + 2 if some else 1
        if length + needed > context:
            raise DecodingError(
                f"The question takes {length} tokens with its picture and {len(some)} labels, and the "
                f"shortest answer {needed} more, but the model's context holds {context}. Ask for "
                "fewer labels at a time, or for a smaller grid.")
    return context - max(lengths)


def _names_per_question(labels, n: int) -> list[tuple[str, ...]]:
    if not len(labels) or isinstance(labels[0], str):
        return [tuple(labels)] * n
    if len(labels) != n:
        raise DecodingError(f"{n} questions came with {len(labels)} lists of labels; give one list "
                            "for each question.")
    return [tuple(some) for some in labels]


def _decoder(mode: str, writers, prompt: int, budget: int, trees: bool | None) -> dict:
    """What ``generate`` is told beside its own options."""
    from .constrained import DescriptorProcessor, DraftingDecoder

    if mode == "constrained":
        return {"logits_processor": [DescriptorProcessor(writers, prompt)]}
    if mode == "fast":
        return {"custom_generate": DraftingDecoder(writers, limit=budget, trees=trees)}
    return {}


def _inputs(backbone, encoder, images, questions):
    texts = [encoder.prompt_text([Turn(question, ())]) for question in questions]
    out = backbone.processor(text=texts, images=[[image] for image in images],
                             return_tensors="pt", padding=True,
                             add_special_tokens=encoder.needs_bos(texts[0]))
    return out.to(backbone.model.device, backbone.model.dtype)  # the type is that of pictures


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
    said = tuple(ids if n is None else ids[:n + 1])
    return Answer(text, len(said), n is not None, seconds, trace, grammar, said)


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
    """Generate for samples and read the answers: a list of ``(Answer, Reading or None)``, with
    ``draws`` of them for each sample if that is among the options. Mode ``expected_iou`` gives the
    grid with the best expected IoU, see `t4s_helpers.decoding.expected_iou.answer_samples`.

    Questions are worded by `t4s_helpers.data.prompts.ask` with its fixed wording; ``vqa`` answers are
    not read as descriptors. ``options`` go to `generate`.
    """
    if options.get("mode") == "expected_iou":
        from . import expected_iou

        return expected_iou.answer_samples(backbone, samples, size, scheme, **options)
    asked = [ask(sample) for sample in samples]
    answers = generate(backbone, [sample.pixels() for sample in samples],
                       [one.question for one in asked], [one.labels for one in asked], size,
                       scheme=scheme, **options)
    each = options.get("draws", 1)
    return [
        (said, None if sample.task == "vqa" else
         read_answer(said.text, one.labels, sample.size, size, scheme))
        for k, (sample, one) in enumerate(zip(samples, asked))
        for said in answers[k * each:(k + 1) * each]
    ]
