"""Decoding that cannot break the format, one token per pass.

`ConstrainedSequence` follows one answer as it grows: free text up to ``<seg>``, then the grammar of the
request (`t4s_helpers.decoding.grammar`), then free text again. `DescriptorProcessor` puts such sequences
behind transformers' own ``generate``. `t4s_helpers.decoding.speculative` writes the same tokens in far
fewer passes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from transformers import LogitsProcessor

from ..codec.encodings import SEG_OPEN
from .grammar import Grammar, State

SENTENCE_LIMIT, TAIL_LIMIT = 48, 16
"""Tokens of free text before ``<seg>`` and after ``</seg>``. A model that has not stopped by then is made
to: the tag, or the end of the answer, is forced."""


class DecodingError(RuntimeError):
    """Decoding that cannot go on; the message says why."""


class Choice(NamedTuple):
    """One question to the model within a descriptor.

    Attributes:
        state: the place in the grammar.
        tokens: int64 ``(n,)``, what may come next there.
        scores: float32 ``(n,)``, the model's logits of these tokens.
    """

    state: State
    tokens: np.ndarray
    scores: np.ndarray


@dataclass
class Trace:
    """How an answer came about.

    Attributes:
        passes: forward passes after the one over the prompt.
        sources: for each token ``"free"`` (text outside the tags), ``"chosen"`` (the model's choice among
            what the grammar allows) or ``"forced"`` (the only possibility).
        at_pass: for each token the pass (0: the prompt's) whose logits decided it; for a forced token,
            the pass after which it was written.
        drafted: for each token whether a draft had guessed it.
        choices: a `Choice` for each ``"chosen"`` token, in order.
    """

    passes: int = 0
    sources: list[str] = field(default_factory=list)
    at_pass: list[int] = field(default_factory=list)
    drafted: list[bool] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)


class ConstrainedSequence:
    """One answer as it grows, and what may come next in it.

    Args:
        encoder: a `t4s_helpers.model.chat.ConversationEncoder`.
        grammar: of the request; None for an answer in words, which is free text throughout.
        temperature, rng: with a generator, tokens are drawn at this temperature; without one the
            likeliest is taken.

    Attributes:
        ids: the tokens so far.
        state: the place in the grammar; None before the opening tag.
        cells: int32 ``(n_lines * width,)``, labels of the cells written so far, 0 for the rest.
        trace: how the tokens came about.
    """

    def __init__(self, encoder, grammar: Grammar | None, temperature: float = 1.0,
                 rng: np.random.Generator | None = None):
        self.tokenizer, self.end = encoder.tokenizer, encoder.tokenizer.eos_token_id
        self._pad = [pad for pad in [encoder.tokenizer.pad_token_id] if pad not in (None, self.end)]
        self.tag = list(encoder.piece_ids(SEG_OPEN))
        self._line_break = list(encoder.piece_ids("\n"))
        self.grammar, self.temperature, self.rng = grammar, temperature, rng
        self.ids: list[int] = []
        self.state: State | None = None
        self.cells = np.zeros(grammar.n_lines * grammar.width if grammar else 0, np.int32)
        self._closed_at: int | None = None  # tokens up to the closing tag, once it is there
        self.trace = Trace()

    @property
    def finished(self) -> bool:
        """Whether the end mark has been written."""
        return bool(self.ids) and self.ids[-1] == self.end

    @property
    def in_grammar(self) -> bool:
        """Whether the next token belongs to the descriptor or its closing tag."""
        return self.state is not None and not self.grammar.done(self.state)

    @property
    def in_sentence(self) -> bool:
        """Whether the answer is still in the sentence before its descriptor."""
        return self.grammar is not None and self.state is None

    def forced(self) -> int | None:
        """The next token, where only one is possible."""
        if self.in_grammar:
            choices = self.grammar.choices(self.state)
            return int(choices[0]) if len(choices) == 1 else None
        if self.in_sentence and len(self.ids) >= SENTENCE_LIMIT:
            return (self._line_break + self.tag)[len(self.ids) - SENTENCE_LIMIT]
        if self._closed_at is not None and len(self.ids) >= self._closed_at + TAIL_LIMIT:
            return self.end
        return None

    def choose(self, logits: np.ndarray | torch.Tensor) -> int:
        """The next token: the only one, or the likeliest that may come, or one that is drawn.

        Args:
            logits: float ``(vocabulary,)``, after the tokens so far: an array, or a tensor on any device.

        Raises:
            DecodingError: the logits are not numbers.
        """
        if (only := self.forced()) is not None:
            return only
        if self.in_grammar:
            choices = self.grammar.choices(self.state)
            scores = _as_array(logits[choices])
            at = self._pick(scores)
            self.trace.choices.append(Choice(self.state, choices, scores))
            return int(choices[at])
        scores = _as_array(logits).copy()
        scores[[self.end, *self._pad] if self.in_sentence else self._pad] = -np.inf
        return self._pick(scores)

    def _pick(self, scores: np.ndarray) -> int:
        # The largest is NaN if any is, and not finite if none can be chosen.
        if not np.isfinite(scores.max()):
            raise DecodingError(_NOT_NUMBERS.format(len(self.ids)))
        if self.rng is None:
            return int(scores.argmax())
        noise = self.rng.gumbel(size=len(scores))  # the largest sum is a draw from the softmax
        return int((scores / self.temperature + noise).argmax())

    def push(self, token: int, drafted: bool = False) -> None:
        """Write a token.

        Raises:
            GrammarError: it is not allowed here.
        """
        forced = self.forced() is not None
        self.trace.sources.append("forced" if forced else "chosen" if self.in_grammar else "free")
        self.trace.drafted.append(drafted)
        self.trace.at_pass.append(self.trace.passes)
        self.ids.append(token)
        if self.in_grammar:
            start = self.grammar.index(self.state.at)
            self.state, run = self.grammar.step(self.state, token)
            if run is not None:
                label, length = run
                self.cells[start:start + length] = label
            if self.grammar.done(self.state):
                self._closed_at = len(self.ids)
        elif self.in_sentence and self.tokenizer.decode(self.ids[-len(self.tag) - 2:]).endswith(SEG_OPEN):
            self.state = self.grammar.start

    def catch_up(self, tokens: Iterable[int]) -> None:
        """Write tokens that ``generate`` has taken, each of them in a pass of its own."""
        for token in tokens:
            if self.finished:
                return
            self.trace.passes += 1
            self.push(token)


def _as_array(logits: np.ndarray | torch.Tensor) -> np.ndarray:
    """float32 on the processor."""
    return logits.float().cpu().numpy() if isinstance(logits, torch.Tensor) else logits


_NOT_NUMBERS = ("The model's logits after {} tokens are not numbers. It may have been trained into "
                "overflow, or run in float16: load it in bfloat16 or float32.")


class FiniteLogits(LogitsProcessor):
    """Stops plain decoding when logits are not numbers, which ``generate`` would turn into text.

    Args:
        prompt: length of the prompt in tokens, padding included.
    """

    def __init__(self, prompt: int):
        self.prompt = prompt

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if not torch.isfinite(scores.amax(-1)).all():
            raise DecodingError(_NOT_NUMBERS.format(input_ids.shape[1] - self.prompt))
        return scores


class DescriptorProcessor(LogitsProcessor):
    """Holds transformers' ``generate`` to the grammar, one token per pass.

    The sequences choose, so ``generate`` has to be greedy even where they draw.

    Args:
        sequences: a fresh one for each row of the batch.
        prompt: length of the prompt in tokens, padding included.
    """

    def __init__(self, sequences: Sequence[ConstrainedSequence], prompt: int):
        self.sequences, self.prompt = list(sequences), prompt

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        for row, sequence in enumerate(self.sequences):
            sequence.catch_up(input_ids[row, self.prompt + len(sequence.ids):].tolist())
            if not sequence.finished:
                token = sequence.choose(scores[row])
                scores[row] = -torch.inf
                scores[row, token] = 0.0
        return scores
