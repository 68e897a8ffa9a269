"""Decoding that cannot break the format, and that asks the model only what is open.

`Writer` follows one answer: free text up to ``<seg>``, then the grammar of the request
(`t4s_helpers.grammar`), then free text again. `DescriptorProcessor` puts it behind transformers' own
``generate`` as a logits processor, a token per pass. `DraftingDecoder` is the same decoder as a
``custom_generate`` loop that writes the same tokens in far fewer passes: what the grammar forces is
never asked, and drafts (`t4s_helpers.drafting`) are verified many tokens at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers import LogitsProcessor

from .drafting import Draft
from .grammar import START, Grammar, State
from .rle import SEG_OPEN

SENTENCE_LIMIT, TAIL_LIMIT = 48, 16
"""Tokens of free text before ``<seg>`` and after ``</seg>``; a model that is still talking then is cut
short."""

AHEAD = 32
"""Rows that a draft reaches beyond the current one."""


class ConstraintError(RuntimeError):
    """Decoding that cannot go on; the message says why."""


@dataclass
class Trace:
    """How an answer came about.

    Attributes:
        passes: forward passes after the one over the prompt.
        sources: per token, ``"free"`` (text outside the tags), ``"chosen"`` (the model's choice among
            what the grammar allows), ``"forced"`` (the only possibility).
        at_pass: per token, the pass (0: the prompt's) whose logits decided it; of a forced token, the
            pass after which it was written.
        drafted: per token, whether a draft had guessed it.
    """

    passes: int = 0
    sources: list[str] = field(default_factory=list)
    at_pass: list[int] = field(default_factory=list)
    drafted: list[bool] = field(default_factory=list)


class Writer:
    """One answer as it grows: what may come next, and a guess at what will.

    Args:
        encoder: a `t4s_helpers.training.ConversationEncoder`.
        labels, size, scheme, spaced: the request, see `t4s_helpers.grammar.Grammar`. Without labels
            everything is free text (a question, say).
        opening: token ids of a sentence to draft until the model has said otherwise.
    """

    def __init__(self, encoder, labels: Sequence[str], size=16, scheme: str = "rrle",
                 spaced: bool = False, opening: Sequence[int] = ()):
        from .descriptors import parse_size

        self.tokenizer = encoder.tokenizer
        self.end = encoder.tokenizer.eos_token_id
        self.tags = list(encoder.piece_ids(SEG_OPEN))
        self.break_ids = list(encoder.piece_ids("\n"))
        self.opening = list(opening)
        self.grammar = Grammar(encoder.piece_ids, labels, size, scheme, spaced) if labels else None
        self.draft = Draft(self.grammar, parse_size(size)[1]) if labels else None
        self.ids: list[int] = []
        self.state: State | None = None
        self.closed_at: int | None = None  # tokens up to the closing tag, once it is there
        self.sentence: list[int] = []
        self.read = 0  # how many of them the model's cache holds
        self.trace = Trace()

    @property
    def finished(self) -> bool:
        """Whether the end mark has been written."""
        return bool(self.ids) and self.ids[-1] == self.end

    @property
    def in_grammar(self) -> bool:
        """Whether the next token belongs to the descriptor or its closing tag."""
        return self.state is not None and not self.grammar.done(self.state)

    def forced(self) -> int | None:
        """The next token, where there is only one."""
        if self.in_grammar:
            allowed = self.grammar.allowed(self.state)
            return next(iter(allowed)) if len(allowed) == 1 else None
        if self.grammar is not None and self.state is None and len(self.ids) >= SENTENCE_LIMIT:
            return (self.break_ids + self.tags)[len(self.ids) - SENTENCE_LIMIT]
        if self.closed_at is not None and len(self.ids) >= self.closed_at + TAIL_LIMIT:
            return self.end
        return None

    def allowed(self) -> list[int] | None:
        """Tokens that may come next; ``None`` if any may but for those in `barred`."""
        if (only := self.forced()) is not None:
            return [only]
        return list(self.grammar.allowed(self.state)) if self.in_grammar else None

    def barred(self) -> list[int]:
        """What may not come next in free text: padding, and the end before there is a descriptor."""
        pad = [] if self.tokenizer.pad_token_id in (None, self.end) else [self.tokenizer.pad_token_id]
        return [self.end, *pad] if self.grammar is not None and self.state is None else pad

    def choose(self, logits: torch.Tensor) -> int:
        """The likeliest token that may come next.

        Args:
            logits: float ``(vocabulary,)``, after the tokens so far.

        Raises:
            ConstraintError: the logits are not numbers.
        """
        allowed = self.allowed()
        if allowed is None:
            scores = logits.clone()
            scores[self.barred()] = -torch.inf
            token = int(scores.argmax())
        else:
            scores = logits[allowed]
            token = allowed[int(scores.argmax())]
        if not torch.isfinite(scores.max()):
            raise ConstraintError(
                f"The model's logits after {len(self.ids)} tokens are not numbers. It may have been "
                "trained into overflow, or run in float16: load it in bfloat16 or float32.")
        return token

    def push(self, token: int, drafted: bool = False) -> None:
        """Write a token."""
        forced = self.forced() is not None
        source = "forced" if forced else "chosen" if self.in_grammar else "free"
        for values, value in ((self.trace.sources, source), (self.trace.drafted, drafted),
                              (self.trace.at_pass, self.trace.passes)):
            values.append(value)
        if self.in_grammar:
            self._follow(token)
        self.ids.append(token)
        if self.state is None and self.grammar is not None and self._opened():
            self.state, self.sentence = START, list(self.ids)

    def _follow(self, token: int) -> None:
        before, self.state = self.state, self.grammar.walk(self.state, [token])
        if self.state.at != before.at:
            label, length = self.grammar.finished_run(before, token)
            self.draft.settle(before.at, label, length)
        if self.grammar.done(self.state):
            self.closed_at = len(self.ids) + 1

    def _opened(self) -> bool:
        if self.ids[-len(self.tags):] == self.tags:
            return True
        return self.tokenizer.decode(self.ids[-len(self.tags) - 2:]).endswith(SEG_OPEN)

    def guess(self, ahead: int = AHEAD) -> list[int]:
        """Tokens that may well follow, at no cost if they do not."""
        if self.finished or self.grammar is None:
            return []
        if self.in_grammar:
            return [*self.draft.tokens(self.state, ahead), self.end]
        if self.state is not None:
            return [self.end]
        rest = self.opening[len(self.ids):]
        return [*rest, *self.draft.tokens(START, ahead)] if rest else []


class DescriptorProcessor(LogitsProcessor):
    """Holds transformers' ``generate`` to the grammar, one token per pass, greedy or sampled.

    Args:
        writers: one fresh `Writer` per row of the batch.
        prompt: length of the prompt in tokens, padding included.
    """

    def __init__(self, writers: Sequence[Writer], prompt: int):
        self.writers, self.prompt = list(writers), prompt

    def __call__(self, input_ids, scores):
        for row, writer in enumerate(self.writers):
            for token in input_ids[row, self.prompt + len(writer.ids):].tolist():
                if writer.finished:
                    break
                writer.trace.passes += 1
                writer.push(token)
            if writer.finished:
                continue
            if not torch.isfinite(scores[row].max()):
                writer.choose(scores[row])
            allowed = writer.allowed()
            if allowed is None:
                scores[row, writer.barred()] = -torch.inf
            else:
                kept = scores[row, allowed].clone()
                scores[row] = -torch.inf
                scores[row, allowed] = kept
        return scores


class DraftingDecoder:
    """A ``custom_generate`` loop: greedy, grammatical, with drafts verified in one pass.

    Writes what ``generate(do_sample=False, logits_processor=[DescriptorProcessor(...)])`` writes.
    Rows of a batch go on at their own pace: each keeps what it accepts, and the cache is laid out
    anew, padded on the left, after every pass.

    Args:
        writers: one fresh `Writer` per row of the batch.
        ahead: rows that a draft reaches beyond the current one.
        limit: most tokens of an answer, its end included.
    """

    def __init__(self, writers: Sequence[Writer], ahead: int = AHEAD, limit: int = 4096):
        self.writers, self.ahead, self.limit = list(writers), ahead, limit

    def __call__(self, model, input_ids, **options):
        """Called by ``generate``; returns prompt and answers, int64 ``(B, T)``, padded at the end."""
        kwargs = {name: v for name, v in options.items() if name not in _NOT_FOR_FORWARD}
        inputs = model.prepare_inputs_for_generation(input_ids, is_first_iteration=True, **kwargs)
        out = model(**inputs, return_dict=True)
        logits = out.logits[:, -1:].float().cpu()
        mask = kwargs.get("attention_mask")
        lengths = (torch.ones_like(input_ids) if mask is None else mask).sum(-1).tolist()
        cache = _Cache(model, out.past_key_values, lengths)
        rows = list(range(len(self.writers)))
        for row in rows:
            self._accept(row, [], logits[row])
        while going := [row for row in rows if not self._over(row)]:
            cache.select([rows.index(row) for row in going])
            rows = going
            fed = [self._feed(row) for row in rows]
            logits = cache.forward(model, fed).float().cpu()
            for row in rows:
                self.writers[row].trace.passes += 1
            cache.keep([self._accept(row, tokens, some)
                        for row, tokens, some in zip(rows, fed, logits)])
        return self._sequences(input_ids)

    def _over(self, row: int) -> bool:
        return self.writers[row].finished or len(self.writers[row].ids) >= self.limit

    def _feed(self, row: int) -> list[int]:
        """What the cache has not read of an answer, and a guess at how it goes on."""
        writer = self.writers[row]
        return [*writer.ids[writer.read:], *writer.guess(self.ahead)]

    def _accept(self, row: int, fed: list[int], logits) -> int:
        """Go as far as the logits reach; returns how many of the tokens that were fed stay.

        ``logits[k]`` speak of the token after ``fed[k]``; with nothing fed, of the first one.
        """
        writer = self.writers[row]
        at = max(0, len(writer.ids) - writer.read - 1)
        going = True
        while going and not self._over(row):
            token = writer.forced()
            token = writer.choose(logits[at]) if token is None else token
            going = at + 1 < len(fed) and fed[at + 1] == token
            writer.push(token, drafted=going)
            at += going
        while not self._over(row) and (token := writer.forced()) is not None:
            writer.push(token)
        kept = at + 1 if fed else 0
        writer.read += kept
        return kept

    def _sequences(self, input_ids):
        longest = max(len(writer.ids) for writer in self.writers)
        longest = min(longest, self.limit)
        pad = self.writers[0].tokenizer.pad_token_id
        rows = [(writer.ids + [pad] * longest)[:longest] for writer in self.writers]
        answers = torch.tensor(rows, dtype=input_ids.dtype, device=input_ids.device)
        return torch.cat([input_ids, answers], dim=-1)


_NOT_FOR_FORWARD = ("logits_processor", "stopping_criteria", "generation_config", "synced_gpus",
                    "streamer", "assistant_model", "tokenizer")


class _Cache:
    """Keys and values of a batch whose rows have read different numbers of tokens.

    Every row's tokens stand together at the right end, with padding before them, as `generate` lays
    out prompts of different lengths.
    """

    def __init__(self, model, cache, lengths: list[int]):
        self.cache, self.lengths, self.before = cache, list(lengths), 0
        self.inner = getattr(model, "model", model)

    @property
    def columns(self) -> int:
        return self.cache.get_seq_length()

    def select(self, rows: list[int]) -> None:
        """Keep some rows of the batch."""
        if len(rows) == len(self.lengths):
            return
        at = torch.tensor(rows)
        self.cache.batch_select_indices(at.to(self.cache.layers[0].keys.device))
        if getattr(self.inner, "rope_deltas", None) is not None:  # M-RoPE's, one for each row
            self.inner.rope_deltas = self.inner.rope_deltas[at.to(self.inner.rope_deltas.device)]
        self.lengths = [self.lengths[row] for row in rows]

    def forward(self, model, fed: list[list[int]]):
        """Logits after every token fed, float ``(B, longest, vocabulary)``."""
        longest, device = max(map(len, fed)), self.cache.layers[0].keys.device
        self.before = self.columns
        ids = torch.zeros((len(fed), longest), dtype=torch.long)
        mask = torch.zeros((len(fed), self.before + longest), dtype=torch.long)
        for row, (tokens, length) in enumerate(zip(fed, self.lengths)):
            ids[row, :len(tokens)] = torch.tensor(tokens)
            mask[row, self.before - length:self.before + len(tokens)] = 1
        places = (torch.tensor(self.lengths)[:, None] + torch.arange(longest)).to(device)
        if (deltas := getattr(self.inner, "rope_deltas", None)) is not None:
            places = (places + deltas.to(device))[None].expand(3, -1, -1)  # M-RoPE's three axes
        out = model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=True,
                    past_key_values=self.cache, return_dict=True, position_ids=places)
        return out.logits

    def keep(self, kept: list[int]) -> None:
        """Forget all but the first ``kept`` of the tokens that each row was fed last."""
        self.lengths = [length + n for length, n in zip(self.lengths, kept)]
        if len(kept) == 1:
            if surplus := self.columns - self.before - kept[0]:
                self.cache.crop(-surplus)
            return
        width = max(self.lengths)
        ends = torch.tensor(kept)[:, None] + self.before
        columns = (ends - width + torch.arange(width)).clamp(min=0)
        for layer in self.cache.layers:
            at = columns.to(layer.keys.device)[:, None, :, None]
            layer.keys = layer.keys.gather(2, at.expand(-1, layer.keys.shape[1], -1,
                                                        layer.keys.shape[3]))
            layer.values = layer.values.gather(2, at.expand(-1, layer.values.shape[1], -1,
                                                            layer.values.shape[3]))
