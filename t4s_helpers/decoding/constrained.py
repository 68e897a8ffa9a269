"""Decoding that cannot break the format, and that asks the model only what is open.

`Writer` follows one answer: free text up to ``<seg>``, then the grammar of the request
(`t4s_helpers.decoding.grammar`), then free text again. `DescriptorProcessor` puts it behind transformers' own
``generate`` as a logits processor, a token per pass. `DraftingDecoder` is the same decoder as a
``custom_generate`` loop that writes the same tokens in far fewer passes: what the grammar forces is
never asked, and drafts (`t4s_helpers.decoding.speculative`) are verified many tokens at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from math import ceil
from typing import NamedTuple

import numpy as np
import torch
from transformers import LogitsProcessor

from .speculative import (
    CPU_OVERHEAD, GPU_OVERHEAD, GPU_TREE, Draft, Guess, Pace, Part, Tree, in_turn,
)
from .grammar import START, Grammar, State
from ..data.prompts import BOX_BINS, read_box
from ..codec.encodings import SEG_OPEN

SENTENCE_LIMIT, TAIL_LIMIT = 48, 16
"""Tokens of free text before ``<seg>`` and after ``</seg>``; a model that is still talking then is cut
short."""

AHEAD = 32
"""Rows that a draft reaches beyond the current one."""

HEARD = 3
"""How many ways to go on are kept of what a model says beyond a wrong guess."""


class ConstraintError(RuntimeError):
    """Decoding that cannot go on; the message says why."""


class Choice(NamedTuple):
    """What the model was asked in a descriptor.

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
        sources: per token, ``"free"`` (text outside the tags), ``"chosen"`` (the model's choice among
            what the grammar allows), ``"forced"`` (the only possibility).
        at_pass: per token, the pass (0: the prompt's) whose logits decided it; of a forced token, the
            pass after which it was written.
        drafted: per token, whether a draft had guessed it.
        choices: a `Choice` for each ``"chosen"`` token, in order.
    """

    passes: int = 0
    sources: list[str] = field(default_factory=list)
    at_pass: list[int] = field(default_factory=list)
    drafted: list[bool] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)


class Writer:
    """One answer as it grows: what may come next, and a guess at what will.

    Args:
        encoder: a `t4s_helpers.model.training.ConversationEncoder`.
        labels, size, scheme, spaced: the request, see `t4s_helpers.decoding.grammar.Grammar`. Without labels
            everything is free text (a question, say).
        pace: what has been learned about drafts; shared by the answers of a run.
        temperature, rng: with a generator, tokens are drawn at this temperature; without one, the
            likeliest is taken.
        lead: token ids of an answer to write in place of the model's own, its end included; for
            measuring what a given answer costs.
    """

    def __init__(self, encoder, labels: Sequence[str], size=16, scheme: str = "rrle",
                 spaced: bool = False, pace: Pace | None = None, temperature: float = 1.0,
                 rng: np.random.Generator | None = None, lead: Sequence[int] | None = None):
        from ..codec.grid import parse_size

        self.tokenizer = encoder.tokenizer
        self.end = encoder.tokenizer.eos_token_id
        pad = encoder.tokenizer.pad_token_id
        self.pad = [] if pad in (None, self.end) else [pad]
        self.tags = list(encoder.piece_ids(SEG_OPEN))
        self.break_ids = list(encoder.piece_ids("\n"))
        self.pace = pace or Pace()
        self.temperature, self.rng, self.lead = temperature, rng, lead
        self.grammar = Grammar(encoder.piece_ids, labels, size, scheme, spaced) if labels else None
        self.rows, self.cols = parse_size(size)
        self.draft = Draft(self.grammar, self.cols) if labels else None
        self.ids: list[int] = []
        self.state: State | None = None
        self.closed_at: int | None = None  # tokens up to the closing tag, once it is there
        self.read = -1  # how many of them the model's cache holds; first not even the prompt's last
        self.trace = Trace()
        self.tree = Tree()  # the last draft
        # What the model said beyond a wrong guess at its sentence: tokens and their probabilities.
        self.heard: list[tuple[list[int], list[float]]] = []

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
            choices = self.grammar.choices(self.state)
            return int(choices[0]) if len(choices) == 1 else None
        if self.grammar is not None and self.state is None and len(self.ids) >= SENTENCE_LIMIT:
            return (self.break_ids + self.tags)[len(self.ids) - SENTENCE_LIMIT]
        if self.closed_at is not None and len(self.ids) >= self.closed_at + TAIL_LIMIT:
            return self.end
        return None

    def allowed(self) -> np.ndarray | None:
        """Tokens that may come next, ascending; ``None`` if any may but for those in `barred`."""
        if (only := self.forced()) is not None:
            return np.array([only])
        return self.grammar.choices(self.state) if self.in_grammar else None

    def barred(self) -> list[int]:
        """What may not come next in free text: padding, and the end before there is a descriptor."""
        opening = self.grammar is not None and self.state is None
        return [self.end, *self.pad] if opening else self.pad

    def choose(self, logits) -> int:
        """The next token: the only one, or the likeliest that may come, or one that is drawn.

        Args:
            logits: float ``(vocabulary,)``, after the tokens so far: an array, or a tensor that may
                lie on another device.

        Raises:
            ConstraintError: the logits are not numbers.
        """
        if (only := self.forced()) is not None:
            return only
        if not self.in_grammar:
            scores = _numbers(logits).copy()
            scores[self.barred()] = -np.inf
            token = self._pick(scores)
            return token if self.lead is None else self.lead[len(self.ids)]
        choices = self.grammar.choices(self.state)
        scores = _numbers(logits[choices])
        at = self._pick(scores)
        self.trace.choices.append(Choice(self.state, choices, scores))
        return int(choices[at]) if self.lead is None else self.lead[len(self.ids)]

    def _pick(self, scores: np.ndarray) -> int:
        # The largest is NaN if any is, and not finite if none can be chosen.
        if not np.isfinite(scores.max()):
            raise ConstraintError(_NOT_NUMBERS.format(len(self.ids)))
        if self.rng is None:
            return int(scores.argmax())
        noise = self.rng.gumbel(size=len(scores))  # the largest sum is a draw from the softmax
        return int((scores / self.temperature + noise).argmax())

    def push(self, token: int, drafted: bool = False) -> None:
        """Write a token."""
        forced = self.forced() is not None
        source = "forced" if forced else "chosen" if self.in_grammar else "free"
        self.trace.sources.append(source)
        self.trace.drafted.append(drafted)
        self.trace.at_pass.append(self.trace.passes)
        if self.in_grammar:
            self._follow(token)
        self.ids.append(token)
        if self.state is None and self.grammar is not None and self._opened():
            self._open()

    def _follow(self, token: int) -> None:
        before, (self.state, run) = self.state, self.grammar.step(self.state, token)
        if run is not None:
            self.draft.settle(before.at, *run)
        if self.grammar.done(self.state):
            self.closed_at = len(self.ids) + 1

    def _opened(self) -> bool:
        if self.ids[-len(self.tags):] == self.tags:
            return True
        return self.tokenizer.decode(self.ids[-len(self.tags) - 2:]).endswith(SEG_OPEN)

    def _open(self) -> None:
        self.state = START
        self.pace.sentences.append(tuple(self.ids))
        self.draft.bottom = self._bottom(self.ids)

    def _bottom(self, sentence: Sequence[int]) -> int | None:
        """The last row whose middle lies in the box that the sentence states."""
        box = read_box(self.tokenizer.decode(sentence))
        if box is None:
            return None
        # The mask may end anywhere in its last bin; at three quarters of it the guess is best.
        return ceil((box[3] + 0.75) * self.rows / BOX_BINS - 0.5) - 1

    def guess(self, ahead: int) -> Tree:
        """Tokens that may well follow, at no cost if they do not."""
        self.tree = Tree() if self.finished else self.pace.plan(self._guesses(ahead))
        return self.tree

    def guess_opening(self) -> Tree:
        """The sentence before the descriptor, as far as answers before tell."""
        self.tree = Tree()
        if self.grammar and (part := self.pace.sentence(())):
            self.tree.plant(-1, part)
        return self.tree

    def _guesses(self, ahead: int) -> list[Guess]:
        """How the answer may go on."""
        if self.grammar is None:
            return []
        if self.in_grammar:
            return self.draft.guesses(self.state, ahead, self._end)
        return self._end() if self.state is not None else self._opening(ahead)

    def _end(self) -> list[Guess]:
        return in_turn(iter([Part((self.end,), 0.9)]))

    def _opening(self, ahead: int) -> list[Guess]:
        """The sentence: as it was heard, else as one was before; and what comes behind its tag."""
        parts = self._as_heard()
        if not parts and (part := self.pace.sentence(self.ids)):
            parts = [part]
        return [Guess(part, partial(self._opened_with, part.ids, ahead)) for part in parts]

    def _as_heard(self) -> list[Part]:
        """What the model was about to say when it was last asked, up to the opening tag; and the same
        with another token in one place, the next likeliest there."""
        words = [tokens[0] for tokens, _ in self.heard]
        said = self.ids + words
        ends = range(len(self.ids) + 1, len(said) + 1)
        end = next((n for n in ends if said[n - len(self.tags):n] == self.tags), None)
        if end is None:
            return []
        words = words[:end - len(self.ids)]
        sure = float(np.prod([chances[0] for _, chances in self.heard[:len(words)]]))
        return [Part(tuple(words), "heard"), *(
            Part((*words[:k], token, *words[k + 1:]), sure * chance / self.heard[k][1][0])
            for k in range(len(words)) for token, chance in list(zip(*self.heard[k]))[1:])]

    def _opened_with(self, more: Sequence[int], ahead: int) -> list[Guess]:
        sentence = [*self.ids, *more]
        if sentence[-len(self.tags):] != self.tags:
            return []
        draft = Draft(self.grammar, self.cols, self._bottom(sentence))
        return draft.guesses(START, ahead, self._end)

    def hear(self, words: Sequence[tuple[list[int], list[float]]]) -> None:
        """Take note of what the model would say next, had its sentence gone on as it was drafted.

        Args:
            words: for each place the likeliest tokens, and their probabilities.
        """
        self.heard = list(words)

    def learn(self, accepted: Sequence[int]) -> None:
        """Take note of which tokens of the last draft were kept: their indices in the tree."""
        self.pace.learn(self.tree, accepted)
        self.tree = Tree()


def _numbers(logits) -> np.ndarray:
    """float32 on the processor."""
    return logits.float().cpu().numpy() if isinstance(logits, torch.Tensor) else logits


_NOT_NUMBERS = ("The model's logits after {} tokens are not numbers. It may have been trained into "
                "overflow, or run in float16: load it in bfloat16 or float32.")


class FiniteLogits(LogitsProcessor):
    """Stops plain decoding of a model whose logits are not numbers, which ``generate`` reads as text.

    Args:
        leads: for each row the token ids to write in place of the model's own, see `Writer`.
    """

    def __init__(self, leads: Sequence[Sequence[int]] | None = None):
        self.prompt: int | None = None
        self.leads = leads

    def __call__(self, input_ids, scores):
        self.prompt = input_ids.shape[1] if self.prompt is None else self.prompt
        if not torch.isfinite(scores.amax(-1)).all():
            raise ConstraintError(_NOT_NUMBERS.format(input_ids.shape[1] - self.prompt))
        for row, lead in enumerate(self.leads or ()):
            scores[row, lead[min(input_ids.shape[1] - self.prompt, len(lead) - 1)]] = torch.inf
        return scores


class DescriptorProcessor(LogitsProcessor):
    """Holds transformers' ``generate`` to the grammar, one token per pass.

    The writers choose, so that ``generate`` has to be greedy even where they draw.

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
            token = writer.choose(scores[row])
            scores[row] = -torch.inf
            scores[row, token] = 0.0
        return scores


class DraftingDecoder:
    """A ``custom_generate`` loop: grammatical, with drafts verified in one pass.

    Writes what ``generate(do_sample=False, logits_processor=[DescriptorProcessor(...)])`` writes, be
    the writers greedy or drawing. Rows of a batch go on at their own pace: each keeps what it
    accepts, and the cache is laid out anew, padded on the left, after every pass.

    Args:
        writers: fresh `Writer` objects: as many as prompts, or a multiple of that, for several
            answers to each prompt in turn, which then is read once.
        ahead: rows that a draft reaches beyond the current one, at most.
        limit: most tokens of an answer, its end included.
        trees: read drafts that differ in a few places as a tree, in one pass, as if tokens read along
            cost nothing; by default on a GPU only.
    """

    def __init__(self, writers: Sequence[Writer], ahead: int = AHEAD, limit: int = 4096,
                 trees: bool | None = None):
        self.writers, self.ahead, self.limit, self.trees = list(writers), ahead, limit, trees

    def __call__(self, model, input_ids, **options):
        """Called by ``generate``; returns prompt and answers, int64 ``(B, T)``, padded at the end."""
        kwargs = {name: v for name, v in options.items() if name not in _NOT_FOR_FORWARD}
        self._set_pace(input_ids.device)
        each = len(self.writers) // len(input_ids)
        opening = self._opening()
        mask = kwargs.get("attention_mask")
        lengths = (torch.ones_like(input_ids) if mask is None else mask).sum(-1).tolist()
        out = model(**_first_inputs(model, input_ids, kwargs, opening), return_dict=True)
        # From here on the prompt's last token is the first of those that were just read.
        cache = _Cache(model, out.past_key_values, [length - 1 for length in lengths],
                       before=input_ids.shape[1] - 1)
        cache.repeat(each)
        logits = _at_hand(out.logits[:, -1 - len(opening):])
        rows = list(range(len(self.writers)))
        cache.keep([self._accept(row, Tree([int(input_ids[row // each, -1]), *opening]),
                                 logits[row // each]) for row in rows])
        while going := [row for row in rows if not self._over(row)]:
            cache.select([rows.index(row) for row in going])
            rows = going
            fed = [self._feed(row) for row in rows]
            logits = _at_hand(cache.forward(model, fed))
            for row in rows:
                self.writers[row].trace.passes += 1
            cache.keep([self._accept(row, tree, some)
                        for row, tree, some in zip(rows, fed, logits)])
        return self._sequences(input_ids.repeat_interleave(each, 0))

    def _opening(self) -> list[int]:
        """A guess at how the answers begin, to be read along with the prompts."""
        if any(writer.ids for writer in self.writers):  # what is written is part of the prompt
            return []
        trees = [writer.guess_opening() for writer in self.writers]
        return next((tree.tokens for tree in trees if tree.tokens), [])

    def _set_pace(self, device) -> None:
        """On a processor the rows of a batch share what a pass costs beside its tokens."""
        rows, on_cpu = len(self.writers), device.type == "cpu"
        trees = not on_cpu if self.trees is None else self.trees
        for writer in self.writers:
            writer.pace.overhead = GPU_OVERHEAD if trees or not on_cpu else CPU_OVERHEAD / rows
            writer.pace.tree = max(GPU_TREE // 8, GPU_TREE // rows) if trees else 0

    def _over(self, row: int) -> bool:
        return self.writers[row].finished or len(self.writers[row].ids) >= self.limit

    def _feed(self, row: int) -> Tree:
        """What the cache has not read of an answer, and behind it guesses at how it goes on."""
        writer = self.writers[row]
        fed = Tree(writer.ids[writer.read:])
        behind, guess = len(fed.tokens) - 1, writer.guess(self.ahead)
        for token, parent in zip(guess.tokens, guess.parents):
            fed.add(behind if parent < 0 else behind + 1 + parent, [token])
        return fed

    def _accept(self, row: int, fed: Tree, logits) -> list[int]:
        """Go as far as the logits reach; returns which of the tokens that were fed stay, in order.

        ``logits[k]`` speak of the token after number ``k`` of those fed; with nothing fed, of the first.
        """
        writer = self.writers[row]
        at: int | None = max(0, len(writer.ids) - writer.read - 1)
        kept = list(range(at + 1)) if fed.tokens else []
        drafted = len(kept)
        while at is not None and not self._over(row):
            token, before = writer.choose(logits[at]), at
            at = fed.child(at, token)
            writer.push(token, drafted=at is not None)
            if at is not None:
                kept.append(at)
            elif fed.tokens and writer.state is None:
                writer.hear(self._beyond(fed, before, logits))
        writer.learn([k - drafted for k in kept[drafted:]])
        while not self._over(row) and (token := writer.forced()) is not None:
            writer.push(token)
        writer.read += len(kept)
        return kept

    @staticmethod
    def _beyond(fed: Tree, at: int, logits) -> list[tuple[list[int], list[float]]]:
        """What the model says after each guess behind one that it did not follow."""
        last = at
        while last + 1 < len(fed.tokens) and fed.parents[last + 1] == last:
            last += 1
        # All places at once: on a GPU every reading of a result waits for the device.
        best = torch.as_tensor(logits[at + 1:last + 1]).float().softmax(-1).topk(HEARD)
        return list(zip(best.indices.tolist(), best.values.tolist()))

    def _sequences(self, input_ids):
        longest = max(len(writer.ids) for writer in self.writers)
        longest = min(longest, self.limit)
        pad = self.writers[0].tokenizer.pad_token_id
        rows = [(writer.ids + [pad] * longest)[:longest] for writer in self.writers]
        answers = torch.tensor(rows, dtype=input_ids.dtype, device=input_ids.device)
        return torch.cat([input_ids, answers], dim=-1)


def _first_inputs(model, input_ids, kwargs: dict, opening: list[int]) -> dict:
    """Inputs of the pass over the prompt and what is guessed to follow it, alike for all rows."""
    if opening:
        guessed = torch.tensor(opening, device=input_ids.device).expand(len(input_ids), -1)
        input_ids = torch.cat([input_ids, guessed], -1)
        kwargs = model._update_model_kwargs_for_generation({}, dict(kwargs),
                                                           num_new_tokens=len(opening))
        if "logits_to_keep" in kwargs:
            kwargs["logits_to_keep"] = 1 + len(opening)
    return model.prepare_inputs_for_generation(input_ids, is_first_iteration=True, **kwargs)


def _at_hand(logits):
    """Logits as they are indexed soonest: an array on the processor, else where they are."""
    return logits.float().numpy() if logits.device.type == "cpu" else logits


_NOT_FOR_FORWARD = ("logits_processor", "stopping_criteria", "generation_config", "synced_gpus",
                    "streamer", "assistant_model", "tokenizer")


class _Cache:
    """Keys and values of a batch whose rows have read different numbers of tokens.

    Every row's tokens stand together at the right end, with padding before them, as `generate` lays
    out prompts of different lengths.
    """

    def __init__(self, model, cache, lengths: list[int], before: int):
        self.cache, self.lengths, self.before = cache, list(lengths), before
        self.inner = getattr(model, "model", model)

    @property
    def columns(self) -> int:
        return self.cache.get_seq_length()

    def repeat(self, times: int) -> None:
        """Every row several times over, for as many answers to one prompt."""
        if times > 1:
            self._take([row for row in range(len(self.lengths)) for _ in range(times)])

    def select(self, rows: list[int]) -> None:
        """Keep some rows of the batch."""
        if len(rows) < len(self.lengths):
            self._take(rows)

    def _take(self, rows: list[int]) -> None:
        at = torch.tensor(rows)
        self.cache.batch_select_indices(at.to(self.cache.layers[0].keys.device))
        if getattr(self.inner, "rope_deltas", None) is not None:  # M-RoPE's, one for each row
            self.inner.rope_deltas = self.inner.rope_deltas[at.to(self.inner.rope_deltas.device)]
        self.lengths = [self.lengths[row] for row in rows]

    def forward(self, model, fed: list[Tree]):
        """Logits after every token fed, float ``(B, longest, vocabulary)``."""
        longest, device = max(len(tree.tokens) for tree in fed), self.cache.layers[0].keys.device
        self.before = self.columns
        ids = torch.zeros((len(fed), longest), dtype=torch.long)
        steps = torch.arange(longest).repeat(len(fed), 1)
        for row, tree in enumerate(fed):
            ids[row, :len(tree.tokens)] = torch.tensor(tree.tokens)
            steps[row, :len(tree.tokens)] = torch.tensor(tree.depths())
        places = (torch.tensor(self.lengths)[:, None] + steps).to(device)
        if (deltas := getattr(self.inner, "rope_deltas", None)) is not None:
            places = (places + deltas.to(device))[None].expand(3, -1, -1)  # M-RoPE's three axes
        out = model(input_ids=ids.to(device), attention_mask=self._mask(fed, longest).to(device),
                    use_cache=True, past_key_values=self.cache, return_dict=True,
                    position_ids=places)
        return out.logits

    def _mask(self, fed: list[Tree], longest: int):
        """Who is seen: int64 ``(B, T)`` where drafts are chains, else bool ``(B, 1, longest, T)``."""
        if all(tree.is_chain for tree in fed):
            mask = torch.zeros((len(fed), self.before + longest), dtype=torch.long)
            for row, (tree, length) in enumerate(zip(fed, self.lengths)):
                mask[row, self.before - length:self.before + len(tree.tokens)] = 1
            return mask
        mask = torch.zeros((len(fed), 1, longest, self.before + longest), dtype=torch.bool)
        mask[..., self.before:] = torch.eye(longest, dtype=torch.bool)  # padding sees itself
        for row, (tree, length) in enumerate(zip(fed, self.lengths)):
            n = len(tree.tokens)
            mask[row, 0, :n, self.before - length:self.before] = True
            mask[row, 0, :n, self.before:self.before + n] = torch.from_numpy(tree.ancestors())
        return mask

    def keep(self, kept: list[list[int]]) -> None:
        """Forget all but some of the tokens that each row was fed last, given by number, ascending."""
        self.lengths = [length + len(some) for length, some in zip(self.lengths, kept)]
        if all(some == list(range(len(kept[0]))) for some in kept):  # all rows end alike
            if surplus := self.columns - self.before - len(kept[0]):
                self.cache.crop(-surplus)
            return
        width = max(self.lengths)
        columns = torch.zeros((len(kept), width), dtype=torch.long)
        for row, (some, length) in enumerate(zip(kept, self.lengths)):
            old = length - len(some)
            columns[row, width - length:width - len(some)] = torch.arange(self.before - old, self.before)
            columns[row, width - len(some):] = self.before + torch.tensor(some, dtype=torch.long)
        for layer in self.cache.layers:
            at = columns.to(layer.keys.device)[:, None, :, None]
            layer.keys = layer.keys.gather(2, at.expand(-1, layer.keys.shape[1], -1,
                                                        layer.keys.shape[3]))
            layer.values = layer.values.gather(2, at.expand(-1, layer.values.shape[1], -1,
                                                            layer.values.shape[3]))
