"""The one road from conversations to answers, and from an answer's text to masks."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from ..codec.encodings import BoxWise, Encoding
from ..codec.parsing import ParseReport, parse
from ..data.prompts import Turn, ask
from ..model.chat import PER_TOKEN
from .constrained import ConstrainedSequence, DecodingError, DescriptorProcessor, FiniteLogits, Trace
from .grammar import Grammar, GrammarError, grammar_of
from .shared_pictures import shared_pictures
from .speculative import DraftingDecoder, DraftScheduler

MODES = ("plain", "constrained", "fast")
"""``plain``: the backbone's own ``generate``. ``constrained``: the same, but only valid descriptors of
the request can be written. ``fast``: the tokens of ``constrained``, greedy or sampled, in far fewer
passes."""


@dataclass(frozen=True)
class Answer:
    """What the model said to one request.

    Attributes:
        text: the whole answer, special tokens removed.
        n_tokens: tokens generated, the end mark included.
        finished: whether the model ended the answer itself, before the token limit.
        seconds: wall-clock time of its batch divided by the batch size.
        trace: how a ``constrained`` or ``fast`` answer came about, else None.
        grammar: the one that it was held to, else None.
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
class ParsedAnswer:
    """An answer read back.

    Attributes:
        grid: int32 ``(rows, cols)``, 0 others, ``k`` is ``labels[k-1]``; of the encoding ``boxwise`` a
            `t4s_helpers.codec.grid.BoxGrid`.
        masks: bool ``(L, H, W)`` at the image's size.
        report: what had to be repaired.
    """

    grid: Any
    masks: np.ndarray
    report: ParseReport


def token_budget(encoder, labels: Sequence[str], encoding: Encoding) -> int:
    """A limit on new tokens that no sensible answer reaches: every row cut into six runs."""
    longest = max((len(encoder.piece_ids(label)) for label in labels), default=1)
    grids = max(1, len(labels)) if isinstance(encoding, BoxWise) else 1
    return 48 + grids * encoding.rows * min(encoding.cols, 6) * (longest + 3)


def generate(backbone, images: Sequence[np.ndarray], conversations: Sequence[Sequence[Turn]],
             encoding: Encoding, *, mode: str = "fast", batch: int = 16,
             max_new_tokens: int | None = None, temperature: float = 0.0, seed: int = 0,
             draws: int = 1, trees: bool | None = None, progress: bool = True, streamer=None) -> list[Answer]:
    """Answer the last questions of conversations about images.

    Equal pictures of a batch are read once by the vision tower.

    Args:
        backbone: a `t4s_helpers.model.backbones.Backbone`, with or without an adapter.
        images: uint8 ``(H, W, 3)`` RGB arrays, one for each conversation.
        conversations: `Turn` objects in order. The last one is open: its ``labels`` are the names that
            the descriptor may use; without labels an answer in words is wanted. The turns before it are
            the history, which goes back in as text.
        encoding: of the descriptors, from `t4s_helpers.codec.encodings.get_encoding`.
        mode: one of `MODES`. ``plain`` takes no more than the token limit from labels and encoding.
        batch: answers that go through the model together; prompts are padded on the left.
        max_new_tokens: limit of an answer; by default `token_budget`.
        temperature: 0 for greedy decoding, above for sampling with ``seed``. Except in mode ``plain``, the
            draws depend on a request's number and the seed alone, not on the batch.
        draws: answers to each request, next to each other in the result. Mode ``fast`` reads the prompt
            once for all of them.
        trees: whether mode ``fast`` reads many drafts at once, as a tree: fewer passes over more tokens;
            by default on a GPU, where tokens read in parallel cost next to nothing.
        progress: show a bar.
        streamer: sees a single answer grow, in every mode: a transformers ``BaseStreamer``, whose ``put``
            gets the prompt's ids first and then new ids, as many as a pass has confirmed. What it raises
            ends the decoding and comes out here, which is how a request is cancelled.

    Raises:
        DecodingError: other numbers of images and conversations, an unknown mode, a request that the
            model's context does not hold, or logits that are not numbers.
        GrammarError: labels that the mode cannot tell apart; the message names request and labels. To
            find out before, call `t4s_helpers.decoding.grammar.grammar_of`, which builds each grammar once.
    """
    _check_request(images, conversations, mode, draws)
    if streamer is not None and len(conversations) * draws != 1:
        raise DecodingError(f"A streamer follows one answer, but {len(conversations) * draws} are asked for.")
    encoder, scheduler, answers = backbone.encoder, DraftScheduler(), []
    labels = [turns[-1].labels for turns in conversations]
    longest = max(labels, key=lambda names: sum(map(len, names)), default=())
    budget = max_new_tokens or token_budget(encoder, longest, encoding)
    torch.manual_seed(seed)
    reads = 1 if mode == "fast" else draws  # how often a prompt is read
    requests = [(k, draw) for k in range(len(conversations)) for draw in range(reads)]
    step = max(1, batch * reads // draws)
    for at in tqdm(range(0, len(requests), step), desc="generate", unit="batch",
                   disable=not progress or len(requests) <= step):
        chunk = requests[at:at + step]
        asked = [k for k, _ in chunk]
        inputs = prompt_inputs(backbone, [images[k] for k in asked], [conversations[k] for k in asked])
        limit = min(budget, _room(backbone, inputs, [labels[k] for k in asked], encoding))
        sequences = [] if mode == "plain" else [
            ConstrainedSequence(encoder, _grammar(encoder, k, conversations[k][-1], encoding), temperature,
                                np.random.default_rng([seed, k, draw + more]) if temperature else None)
            for k, draw in chunk for more in range(draws // reads)]
        prompt = inputs["input_ids"].shape[1]
        options = _decoder(mode, sequences, scheduler, temperature, prompt, limit, trees, streamer)
        answers += _generated(backbone, inputs, sequences, limit, options)
    return answers


def _check_request(images, conversations, mode: str, draws: int) -> None:
    if len(images) != len(conversations):
        raise DecodingError(f"{len(images)} images came with {len(conversations)} conversations; "
                            "give one conversation (a list of turns) for each image.")
    if mode not in MODES:
        raise DecodingError(f"Unknown decoding mode {mode!r}: choose one of {', '.join(MODES)}.")
    if draws < 1:
        raise DecodingError(f"{draws} answers to each request are asked for; ask for at least one.")
    if (empty := next((k for k, turns in enumerate(conversations) if not len(turns)), None)) is not None:
        raise DecodingError(f"Conversation {empty + 1} has no turn; the last turn asks the question.")


def _grammar(encoder, number: int, turn: Turn, encoding: Encoding) -> Grammar | None:
    if not turn.labels:
        return None
    try:
        return grammar_of(encoder, turn.labels, encoding)
    except GrammarError as error:
        raise GrammarError(f"Request {number + 1} ({turn.question[:80]!r}): {error}") from error


def _decoder(mode: str, sequences, scheduler: DraftScheduler, temperature: float, prompt: int, limit: int,
             trees: bool | None, streamer) -> dict:
    """What transformers' ``generate`` is told about how to choose tokens, and who sees them."""
    told = {"streamer": streamer, "do_sample": False}
    if mode == "fast":
        return {**told, "custom_generate": DraftingDecoder(sequences, scheduler, limit, trees, streamer)}
    if mode == "constrained":  # the sequences draw
        return {**told, "logits_processor": [DescriptorProcessor(sequences, prompt)]}
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {}
    return {**told, "logits_processor": [FiniteLogits(prompt)], **sampling}


def _generated(backbone, inputs, sequences, limit: int, options: dict) -> list[Answer]:
    """The answers of one batch."""
    tokenizer, start = backbone.processor.tokenizer, time.perf_counter()
    with torch.inference_mode(), shared_pictures(backbone.model):
        out = backbone.model.generate(**inputs, **options, max_new_tokens=limit,
                                      pad_token_id=tokenizer.pad_token_id)
    new, answers = out[:, inputs["input_ids"].shape[1]:], []
    seconds = (time.perf_counter() - start) / len(new)
    for ids, sequence in zip(new.tolist(), sequences or [None] * len(new)):
        ends = (k for k, i in enumerate(ids) if i in (tokenizer.eos_token_id, tokenizer.pad_token_id))
        n = next(ends, len(ids))
        text, said = tokenizer.decode(ids[:n], skip_special_tokens=True), tuple(ids[:n + 1])
        if sequence is not None:
            sequence.catch_up(said[len(sequence.ids):])  # a logits processor never sees the last token
        answers.append(Answer(text, len(said), n < len(ids), seconds, getattr(sequence, "trace", None),
                              getattr(sequence, "grammar", None), said))
    return answers


def _room(backbone, inputs, labels, encoding: Encoding) -> int:
    """New tokens that the model's context has room for.

    Raises:
        DecodingError: not even the shortest descriptor fits.
    """
    config = backbone.model.config
    context = getattr(getattr(config, "text_config", config), "max_position_embeddings", None)
    if context is None:
        return 1 << 30
    encoder, lengths = backbone.encoder, inputs["attention_mask"].sum(-1).tolist()
    for length, names in zip(lengths, labels):
        needed = sum(len(encoder.piece_ids(piece))
                     for piece in encoding.pieces(encoding.blank(len(names)), names)) + 2 if names else 1
        if length + needed > context:
            raise DecodingError(
                f"The question takes {length} tokens with its picture and {len(names)} labels, and the "
                f"shortest answer {needed} more, but the model's context holds {context}. Ask for "
                "fewer labels at a time, or for a smaller grid.")
    return context - max(lengths)


def prompt_inputs(backbone, images: Sequence[np.ndarray], conversations: Sequence[Sequence[Turn]]):
    """The model's inputs for the last answers of conversations, on its device.

    Token ids are int64 ``(B, T)``, padded on the left; pictures have the model's own type.
    """
    encoder = backbone.encoder
    texts = [encoder.prompt_text(turns) for turns in conversations]
    out = backbone.processor(text=texts, images=[[image] for image in images],
                             return_tensors="pt", padding=True,
                             add_special_tokens=encoder.needs_bos(texts[0]))
    return out.to(backbone.model.device, backbone.model.dtype)


def read_answers(backbone, images: Sequence[np.ndarray], conversations: Sequence[Sequence[Turn]],
                 answers: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """What the model thinks along given answers, token by token, in one pass over all of them.

    Args:
        backbone, images, conversations: as for `generate`.
        answers: token ids, one answer to each conversation.

    Returns:
        logits, float ``(tokens, vocabulary)`` for each answer: row ``k`` is what the model would have chosen
        token ``k`` by. They carry gradients where the caller allows them.
    """
    inputs, pad = prompt_inputs(backbone, images, conversations), backbone.processor.tokenizer.pad_token_id
    rows = [torch.tensor(ids) for ids in answers]
    more = pad_sequence(rows, batch_first=True, padding_value=pad)
    read = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    nothing = {name: torch.zeros_like(more) for name in PER_TOKEN}
    for name, part in {"input_ids": more, "attention_mask": read, **nothing}.items():
        if name in inputs:
            inputs[name] = torch.cat([inputs[name], part.to(inputs[name])], -1)
    with shared_pictures(backbone.model):
        logits = backbone.model(**inputs, use_cache=False, return_dict=True,
                                logits_to_keep=more.shape[1] + 1).logits
    return [one[:len(row)] for one, row in zip(logits, rows)]


def parse_answer(text: str, labels: Sequence[str], image_size: tuple[int, int], encoding: Encoding,
                 lenient: bool = False) -> ParsedAnswer:
    """Parse an answer and lay its grid over the image.

    Args:
        text: what the model wrote.
        labels: the texts asked for.
        image_size: ``(H, W)`` in pixels.
        encoding: that the answer was asked for in.
        lenient: see `t4s_helpers.codec.parsing.parse`.
    """
    grid, report = parse(text, labels, encoding, lenient)
    return ParsedAnswer(grid, encoding.to_masks(grid, len(labels), image_size), report)


def answer_samples(backbone, samples, encoding: Encoding, by: Callable = generate, **options
                   ) -> list[tuple[Answer, ParsedAnswer | None]]:
    """Answer samples and parse the answers.

    Args:
        backbone, encoding: as for `generate`.
        samples: `t4s_helpers.data.sample.Sample` objects, each a conversation of one turn, worded by
            `t4s_helpers.data.prompts.ask` with its fixed wording.
        by: `generate`, or what answers as it does (`t4s_helpers.decoding.one_pass.one_pass`).
        options: for it.

    Returns:
        a pair for each answer, ``draws`` of them for each sample next to each other. Answers in words are
        not parsed: None.
    """
    turns = [ask(sample, encoding=encoding) for sample in samples]
    answers = by(backbone, [sample.pixels() for sample in samples], [[turn] for turn in turns], encoding,
                 **options)
    each = options.get("draws", 1)
    return [(answer, parse_answer(answer.text, turns[k // each].labels, samples[k // each].size, encoding)
             if turns[k // each].labels else None) for k, answer in enumerate(answers)]
