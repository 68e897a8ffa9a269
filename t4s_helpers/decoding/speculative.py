"""The tokens of constrained decoding in far fewer passes, by drafts that one pass verifies.

The model reads a whole draft in one pass, and the part that agrees with what it would have written itself
stays; a wrong guess costs little. Objects change little from row to row, so the guess for a row is the row
above, and where the current row has already departed from it, the row above from its next edge on. Where
such a guess is doubtful, others stand beside it: drafts that share their beginnings form a tree, and one
pass reads all of it. Tokens that the grammar forces are written without asking the model.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from heapq import heappop, heappush
from math import ceil
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from ..data.prompts import BOX_BINS, read_box
from .constrained import ConstrainedSequence
from .grammar import Grammar, Position, State

CPU_OVERHEAD, GPU_OVERHEAD = 80.0, 2000.0
"""Fixed cost of a pass, in tokens: measured for the embedded model on two cores, and for a 7B model, whose
weights have to be read from memory for one token as for a hundred."""

GPU_TREE = 256
"""Tokens of the trees of drafts of a whole batch, on a GPU, where tokens read in parallel cost next to
nothing."""

FIRST_WIDTH = 0.1
"""Guessed width of an object where it first appears, as a share of the grid's width."""

AHEAD = 32
"""Rows that a draft reaches beyond the current one."""

REJECTED_TOKENS = 3
"""Tokens kept for each place behind a rejected guess: the likeliest ones there."""


def rest_of_row(above: np.ndarray, col: int, last: int, first: int | None = None,
                appears: int = 1) -> np.ndarray:
    """Guess the labels of a row from a cell on.

    Args:
        above: int ``(cols,)``, labels of the row above.
        col: the first cell to guess.
        last: label of the run that ends there, -1 at the start of the row.
        first: label of the first guessed run, if that is known already.
        appears: label of an object that the row above does not have.

    Returns:
        int ``(cols - col,)``; the first label differs from ``last``.

    >>> above = np.array([0, 0, 1, 1, 1, 0])
    >>> rest_of_row(above, 1, 0).tolist()  # the object begins a cell earlier
    [1, 1, 1, 1, 0]
    >>> rest_of_row(above, 3, 0).tolist()  # a cell later
    [1, 1, 0]
    """
    cols = len(above)
    ends = [*(np.flatnonzero(np.diff(above)) + 1).tolist(), cols]
    runs = [(int(above[end - 1]), end) for end in ends if end > col]
    if first is None:  # where the run above goes on, ours has ended already
        rest = runs[1:] if runs[0][0] == last else runs
    else:
        rest = next((runs[k:] for k in range(len(runs)) if runs[k][0] == first), [])
        if first == 0 and rest and rest[0][1] == cols and len(runs) > 1:
            rest = [(0, col + 1), *runs]  # the object's edge has moved in a little
    if not rest:
        label = first if first is not None else (0 if last else appears)
        rest = [(label, cols if label == 0 else col + max(1, round(FIRST_WIDTH * cols)))]
    out, begin = np.zeros(cols, above.dtype), col
    for label, end in rest:
        if begin > col or label != last:
            out[begin:max(begin, end)] = label
            begin = max(begin, end)
    return out[col:]


class Guess(NamedTuple):
    """A stretch of a draft that is right or wrong as a whole.

    Attributes:
        ids: its token ids.
        kind: the sort of guess, see `PRIORS`, or the probability that it is right, where that is known.
        follow: returns the guesses behind it, the likeliest first.
    """

    ids: tuple[int, ...]
    kind: str | float
    follow: Callable[[], list[Guess]] = list


class DraftTree:
    """Drafts that share their beginnings, for one pass over all of them.

    Attributes:
        tokens: ids; each comes after its parent.
        parents: for each token the index of the one that it follows, -1 for what is read already.
        guesses: the indices of the tokens before a guess and at its end, with the guess between them.
    """

    def __init__(self, tokens: Iterable[int] = ()):
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.guesses: list[tuple[int, Guess, int]] = []
        self._children: dict[tuple[int, int], int] = {}
        self.add(-1, tokens)

    def add(self, parent: int, ids: Iterable[int]) -> int:
        """Add tokens in a row behind another one; returns the index of the last."""
        for token in ids:
            at = self._children.setdefault((parent, token), len(self.tokens))
            if at == len(self.tokens):
                self.tokens.append(token)
                self.parents.append(parent)
            parent = at
        return parent

    def child(self, parent: int, token: int) -> int | None:
        """Index of a token behind another one, if it was drafted."""
        return self._children.get((parent, token))

    def ancestors(self) -> np.ndarray:
        """Bool ``(n, n)``: whether token ``j`` stands before token ``i``, or is the same."""
        out = np.eye(len(self.tokens), dtype=bool)
        for at, parent in enumerate(self.parents):
            if parent >= 0:
                out[at] |= out[parent]
        return out


PRIORS = {
    "row": (9, 10),  # a run that fills a whole row
    "edge": (7, 10),  # a run that ends within its row
    "rest": (19, 20),  # the last run of a row, behind others
    "shorter": (1, 8), "longer": (1, 8),  # a run that ends one cell before, or behind, the likeliest end
    "empty": (1, 10),  # a row of "others", below an object
    "sentence": (1, 10),  # the sentence before the descriptor, from earlier answers
    "rejected": (1, 2),  # that sentence as the model's logits behind a rejected guess continue it
}
"""Kind of guess -> how often it held, of how many times, before anything is known."""


class DraftScheduler:
    """Decides how far a draft reaches, and learns from the fate of earlier drafts.

    A pass over ``n`` tokens costs ``overhead + n``. A part of a draft saves a pass if it holds, together
    with everything before it; otherwise its tokens are wasted. It is worth reading if the saving times its
    probability exceeds the waste times the probability against it.

    Args:
        overhead: fixed cost of a pass, in tokens.
        tree: tokens of a tree of drafts, roughly; 0 for the likeliest draft alone. On real masks a tree
            saves three passes in ten and reads five times the tokens, which does not pay on a CPU.
    """

    def __init__(self, overhead: float = CPU_OVERHEAD, tree: int = 0):
        self.overhead, self.tree = overhead, tree
        self.counts = {kind: list(prior) for kind, prior in PRIORS.items()}
        self.sentences: deque[tuple[int, ...]] = deque(maxlen=16)

    def suit(self, rows: int, on_cpu: bool, trees: bool) -> None:
        """Set the costs: on a CPU, the rows of a batch share the fixed cost of a pass."""
        self.overhead = CPU_OVERHEAD / rows if on_cpu and not trees else GPU_OVERHEAD
        self.tree = max(GPU_TREE // 8, GPU_TREE // rows) if trees else 0

    def chance(self, guess: Guess) -> float:
        """Probability that a guess holds, if everything before it does."""
        if isinstance(guess.kind, float):
            return guess.kind
        held, of = self.counts[guess.kind]
        return held / of

    def plan(self, guesses: list[Guess], written: Sequence[int] = ()) -> DraftTree:
        """The drafts worth reading, the likeliest guesses first. The first guess always is.

        Args:
            guesses: how the answer may go on.
            written: tokens before them that the model has not read yet.
        """
        tree, waiting, number = DraftTree(written), [], 0
        parent, before = len(written) - 1, 1.0
        while True:
            for guess in guesses if self.tree else guesses[:1]:
                number += 1  # decides between equal probabilities
                heappush(waiting, (-before * self.chance(guess), number, guess, parent))
            drafted = len(tree.tokens) - len(written)
            if not waiting or 0 < self.tree <= drafted:
                return tree
            minus, _, guess, behind = heappop(waiting)
            before = -minus
            if drafted and before * self.overhead < (1 - before) * len(guess.ids):
                return tree
            parent = tree.add(behind, guess.ids)
            tree.guesses.append((behind, guess, parent))
            guesses = guess.follow()

    def learn(self, tree: DraftTree, accepted: Iterable[int]) -> None:
        """Count which guesses of a draft held, given the indices of the tokens that were kept."""
        kept = {-1, *accepted}
        for behind, guess, end in tree.guesses:
            if behind in kept and guess.kind in self.counts:
                self.counts[guess.kind][0] += end in kept
                self.counts[guess.kind][1] += 1

    def sentence(self, said: Sequence[int]) -> list[Guess]:
        """A guess at the rest of the sentence before the descriptor, by a vote of earlier answers.

        It is drafted in full, however unlikely: the model's logits behind its wrong numbers are the basis
        of the next draft.
        """
        now = tuple(said)
        while now not in self.sentences:
            n = len(now)
            alike = [one for one in self.sentences if len(one) > n and one[:1] == now[:1]]
            exact = [one for one in alike if one[:n] == now]
            votes = Counter(one[n] for one in exact or (alike if n else self.sentences))
            if not votes:
                break
            now += (votes.most_common(1)[0][0],)
        return [Guess(now[len(said):], "sentence")] if len(now) > len(said) else []


class Draft:
    """Guesses at the rest of a descriptor.

    Args:
        grammar: of the request.
        cells: int ``(n_lines * width,)``, labels of the cells written so far; none by default.
        bottom: the last row that shows anything, where the answer's sentence has said so.
        ahead: rows to guess after the current one.
        then: what may come after the descriptor.
    """

    def __init__(self, grammar: Grammar, cells: np.ndarray | None = None, bottom: int | None = None,
                 ahead: int = AHEAD, then: Callable[[], list[Guess]] = list):
        self.grammar, self.bottom, self.ahead, self.then = grammar, bottom, ahead, then
        self.by_row = grammar.encoding.breaks_rows
        self.cells = np.zeros(grammar.n_lines * grammar.width, np.int32) if cells is None else cells
        shown = self.cells[self.cells > 0]
        self.appears = int(shown[-1]) if len(shown) else 1  # the object seen last may come again

    def guesses(self, state: State) -> list[Guess]:
        """How a descriptor may go on from a place in it, the likeliest way first; box by box, no guess."""
        if not self.grammar.width:
            return []
        run = None if self.grammar.done(state) else self._current_run(state)
        if run is None:
            return self.then()
        return self._alternatives(self.cells, state, run, state.at.line + self.ahead)

    def _current_run(self, state: State) -> tuple[int, int] | None:
        """Label and length of the run that has begun: as guessed, or the nearest that is possible."""
        at, grammar = state.at, self.grammar
        for first in (None, *range(len(grammar.words))):
            if first is not None and not grammar.may_follow(at, first):
                continue
            label, guessed = grammar.first_run(at, self._guess(self.cells, at, 1, first))
            for length in sorted(range(1, grammar.longest(at) + 1), key=lambda n: abs(n - guessed)):
                if grammar.complete(state, label, length) is not None:
                    return label, length
        return None

    def _alternatives(self, cells, state: State, run: tuple[int, int], last_line: int) -> list[Guess]:
        """A run, and what else may stand in its place."""
        at, (label, length), width = state.at, run, self.grammar.width
        runs = [(self._kind(at, length), label, length)]
        if self.by_row and at.cell + length < width:
            runs += [("shorter", label, length - 1)] * (length > 1)
            runs += [("longer", label, length + 1)]  # perhaps up to the row's end
            runs += [("empty", 0, width)] * (at.cell == 0 and length + 1 < width)
        return [Guess(ids, kind, partial(self._settled, cells, at, label, length, last_line))
                for kind, label, length in runs
                if (ids := self.grammar.complete(state, label, length)) is not None]

    def _settled(self, cells, at: Position, label: int, length: int, last_line: int) -> list[Guess]:
        """What may come once a run is taken for certain."""
        cells, start = cells.copy(), self.grammar.index(at)
        cells[start:start + length] = label
        at = self.grammar.move(at, label, length)
        if at.line == self.grammar.n_lines:
            return self.then()
        if not self.by_row:
            return self._runs(at, self._guess(cells, at, last_line))
        if at.line > last_line:
            return []
        run = self.grammar.first_run(at, self._guess(cells, at, 0))
        return self._alternatives(cells, State(at), run, last_line)

    def _runs(self, at: Position, cells: np.ndarray, first: bool = True) -> list[Guess]:
        """Cells as runs without an alternative; behind the first, none that may go on after the cells."""
        if at.line == self.grammar.n_lines:
            return self.then()
        if not len(cells):
            return []
        label, length = self.grammar.first_run(at, cells)
        if length == len(cells) < self.grammar.longest(at) and not first:
            return []
        after = self.grammar.move(at, label, length)
        return [Guess(self.grammar.tokens(at, label, length), self._kind(at, length),
                      partial(self._runs, after, cells[length:], False))]

    def _kind(self, at: Position, length: int) -> str:
        return "edge" if at.cell + length < self.grammar.width else "rest" if at.cell else "row"

    def _guess(self, cells: np.ndarray, at: Position, ahead: int, first: int | None = None) -> np.ndarray:
        """Guessed labels of the cells from a position to the end of a row.

        Args:
            cells: all labels, right up to the position.
            ahead: rows after the current one.
            first: label of the first run, if that is known.
        """
        rows = cells.reshape(-1, self.grammar.row_width)
        row, col = divmod(self.grammar.index(at), rows.shape[1])
        above = rows[row - 1] if row else np.zeros_like(rows[0])
        last = at.last if self.grammar.counts_runs else -1
        rest = rest_of_row(self._below(above, row), col, last, first, self.appears)
        out = [np.concatenate([rows[row, :col], rest])]
        for below in range(row + 1, min(len(rows), row + 1 + ahead)):
            out.append(self._below(out[-1], below))
        return np.concatenate(out)[col:]

    def _below(self, above: np.ndarray, row: int) -> np.ndarray:
        """A guess at a row from the one above: the same, but nothing below the box."""
        return np.zeros_like(above) if row - 1 == self.bottom else above


class Drafter:
    """Writes one sequence through drafts: what to feed the model, and what to keep of it.

    Args:
        sequence: a fresh one.
        scheduler, limit: see `DraftingDecoder`.
    """

    def __init__(self, sequence: ConstrainedSequence, scheduler: DraftScheduler, limit: int):
        self.sequence, self.scheduler, self.limit = sequence, scheduler, limit
        self.read = -1  # tokens of it that the cache holds; the prompt's last one is not read at first
        self.bottom: int | None = None
        # Rejected-draft logits: behind a wrong guess at the sentence, for each place the likeliest tokens
        # and their probabilities.
        self.rejected: list[tuple[list[int], list[float]]] = []

    @property
    def over(self) -> bool:
        """Whether nothing more is to be written."""
        return self.sequence.finished or len(self.sequence.ids) >= self.limit

    def feed(self) -> DraftTree:
        """What the cache has not read of the answer, and behind it guesses at how it goes on."""
        return self.scheduler.plan(self._guesses(), self.sequence.ids[self.read:])

    def accept(self, fed: DraftTree, logits) -> list[int]:
        """Write as far as the logits reach; returns which of the tokens fed stay, ascending.

        Args:
            fed: at least one token, the last of what is written or of the prompt among them.
            logits: ``logits[k]`` speak of the token behind number ``k`` of those fed.
        """
        sequence = self.sequence
        at: int | None = max(0, len(sequence.ids) - self.read - 1)
        kept = list(range(at + 1))
        while at is not None and not self.over:
            token, before = sequence.choose(logits[at]), at
            at = fed.child(at, token)
            self._push(token, drafted=at is not None)
            if at is not None:
                kept.append(at)
            elif sequence.in_sentence:
                self.rejected = self._behind(fed, before, logits)
        if sequence.grammar:
            self.scheduler.learn(fed, kept)
        while not self.over and (only := sequence.forced()) is not None:
            self._push(only)
        self.read += len(kept)
        return kept

    def _push(self, token: int, drafted: bool = False) -> None:
        opening = self.sequence.in_sentence
        self.sequence.push(token, drafted)
        if opening and not self.sequence.in_sentence:
            self.scheduler.sentences.append(tuple(self.sequence.ids))
            self.bottom = self._bottom(self.sequence.ids)

    @staticmethod
    def _behind(fed: DraftTree, at: int, logits) -> list[tuple[list[int], list[float]]]:
        """What the model says along the guess behind a token that it did not follow."""
        last = at
        while last + 1 < len(fed.tokens) and fed.parents[last + 1] == last:
            last += 1
        # All places at once: on a GPU every reading of a result waits for the device.
        best = torch.as_tensor(logits[at + 1:last + 1]).float().softmax(-1).topk(REJECTED_TOKENS)
        return list(zip(best.indices.tolist(), best.values.tolist()))

    def _bottom(self, sentence: Sequence[int]) -> int | None:
        """The last row whose middle lies in the box that the sentence states, if any."""
        box = read_box(self.sequence.tokenizer.decode(sentence))
        # The mask may end anywhere in its last bin; at three quarters of it the guess is best.
        rows = self.sequence.grammar.encoding.rows
        return None if box is None else ceil((box[3] - 0.25) * rows / BOX_BINS - 0.5) - 1

    def _guesses(self) -> list[Guess]:
        """How the answer may go on: within a sentence by rejected-draft logits, else by earlier answers."""
        sequence = self.sequence
        if sequence.in_sentence:
            guesses = self._from_rejected() or self.scheduler.sentence(sequence.ids)
            return [guess._replace(follow=partial(self._behind_sentence, guess.ids)) for guess in guesses]
        if sequence.grammar is None:
            return []
        return self._draft(sequence.cells, self.bottom).guesses(sequence.state)

    def _from_rejected(self) -> list[Guess]:
        """The sentence as the rejected-draft logits continue it, up to the opening tag.

        Behind it variants with the next likeliest tokens, one in one place each.
        """
        words, tag = [tokens[0] for tokens, _ in self.rejected], self.sequence.tag
        n, said = len(self.sequence.ids), self.sequence.ids + words
        end = next((k for k in range(n + 1, len(said) + 1) if said[k - len(tag):k] == tag), None)
        if end is None:
            return []
        words = words[:end - n]
        sure = float(np.prod([chances[0] for _, chances in self.rejected[:len(words)]]))
        return [Guess(tuple(words), "rejected"), *(
            Guess((*words[:k], token, *words[k + 1:]), sure * chance / self.rejected[k][1][0])
            for k in range(len(words)) for token, chance in list(zip(*self.rejected[k]))[1:])]

    def _behind_sentence(self, more: Sequence[int]) -> list[Guess]:
        sentence, tag = [*self.sequence.ids, *more], self.sequence.tag
        whole = sentence[-len(tag):] == tag
        return self._draft(None, self._bottom(sentence)).guesses(self.sequence.grammar.start) if whole else []

    def _draft(self, cells: np.ndarray | None, bottom: int | None) -> Draft:
        end = [Guess((self.sequence.end,), 0.9)]
        return Draft(self.sequence.grammar, cells, bottom, then=lambda: end)


class DraftingDecoder:
    """A loop for ``generate(custom_generate=...)``: grammatical, with drafts verified in one pass.

    Writes what ``generate(do_sample=False, logits_processor=[DescriptorProcessor(...)])`` writes, whether
    the sequences are greedy or draw. Rows of a batch advance at different speeds: each keeps what it
    accepts, and the cache is laid out anew, padded on the left, after every pass.

    Args:
        sequences: fresh ones, as many as prompts, or a multiple of that, for several answers to each
            prompt in turn, which then is read once.
        scheduler: shared by the batches of a run.
        limit: most tokens of an answer, its end included.
        trees: read trees of drafts, as if tokens in parallel cost nothing; by default on a GPU only.
        streamer: of a single answer; ``generate`` hands its own to no custom loop.
    """

    def __init__(self, sequences: Sequence[ConstrainedSequence], scheduler: DraftScheduler, limit: int,
                 trees: bool | None = None, streamer=None):
        self.scheduler, self.trees, self.streamer = scheduler, trees, streamer
        self.drafters = [Drafter(sequence, self.scheduler, limit) for sequence in sequences]

    def __call__(self, model, input_ids: torch.Tensor, **options) -> torch.Tensor:
        """Called by ``generate``; returns prompts and answers, int64 ``(B, T)``, padded at the end."""
        kwargs = {name: v for name, v in options.items() if name not in _NOT_FOR_FORWARD}
        streamed = 0
        going, on_cpu = self.drafters, input_ids.device.type == "cpu"
        self.scheduler.suit(len(going), on_cpu, not on_cpu if self.trees is None else self.trees)
        prompts = torch.arange(len(input_ids)).repeat_interleave(len(going) // len(input_ids)).tolist()
        # A guess at how the answers begin is read along with the prompts.
        opening = self.scheduler.sentence(()) if any(one.sequence.grammar for one in going) else []
        fed = [self.scheduler.plan(opening, [token]) for token in input_ids[prompts, -1].tolist()]
        mask = kwargs.get("attention_mask")  # None where nothing is padded
        lengths = (torch.ones_like(input_ids) if mask is None else mask).sum(-1).tolist()
        inputs = _first_inputs(model, input_ids, kwargs, fed[0].tokens[1:])
        out = model(**inputs, return_dict=True)
        # From here on the prompt's last token is the first of those that were just read.
        cache = BatchCache(model, out.past_key_values, [length - 1 for length in lengths],
                           before=input_ids.shape[1] - 1)
        cache.take(prompts)
        logits = _indexable(out.logits[:, -len(fed[0].tokens):])
        logits = [logits[prompt] for prompt in prompts]
        while True:
            cache.keep([one.accept(tree, scores) for one, tree, scores in zip(going, fed, logits)])
            if self.streamer is not None:
                new = self.drafters[0].sequence.ids[streamed:]
                streamed += len(new)
                self.streamer.put(torch.tensor(new))
            rows = [row for row, one in enumerate(going) if not one.over]
            if not rows:
                break
            cache.take(rows)
            going = [going[row] for row in rows]
            fed = [one.feed() for one in going]
            logits = _indexable(cache.forward(model, fed))
            for one in going:
                one.sequence.trace.passes += 1
        if self.streamer is not None:
            self.streamer.end()
        sequences = [one.sequence for one in self.drafters]
        answers = pad_sequence([torch.tensor(one.ids) for one in sequences], batch_first=True,
                               padding_value=sequences[0].tokenizer.pad_token_id)
        return torch.cat([input_ids[prompts], answers.to(input_ids)], -1)


def _first_inputs(model, input_ids: torch.Tensor, kwargs: dict, opening: list[int]) -> dict:
    """Inputs of the pass over the prompt and the guess at how it goes on, the same for all rows."""
    if opening:
        guessed = torch.tensor(opening, device=input_ids.device).expand(len(input_ids), -1)
        input_ids = torch.cat([input_ids, guessed], -1)
        kwargs = model._update_model_kwargs_for_generation({}, dict(kwargs), num_new_tokens=len(opening))
        if "logits_to_keep" in kwargs:
            kwargs["logits_to_keep"] = 1 + len(opening)
    return model.prepare_inputs_for_generation(input_ids, is_first_iteration=True, **kwargs)


def _indexable(logits: torch.Tensor) -> np.ndarray | torch.Tensor:
    """Logits as they are indexed fastest: an array on the CPU, otherwise where they are."""
    return logits.float().numpy() if logits.device.type == "cpu" else logits


_NOT_FOR_FORWARD = ("logits_processor", "stopping_criteria", "generation_config", "synced_gpus",
                    "streamer", "assistant_model", "tokenizer")


class BatchCache:
    """Keys and values of a batch whose rows have read different numbers of tokens.

    Every row's tokens stand together at the right end, with padding before them, as ``generate`` lays out
    prompts of different lengths.

    Args:
        model: that the cache belongs to.
        cache: transformers' cache.
        lengths: tokens of each row before those that were fed last.
        before: columns of the cache before those.
    """

    def __init__(self, model, cache, lengths: Sequence[int], before: int):
        self.cache, self.lengths, self.before = cache, list(lengths), before
        self.inner, self.device = getattr(model, "model", model), cache.layers[0].keys.device

    def take(self, rows: list[int]) -> None:
        """Keep some rows of the batch, or copy them, for several answers to one prompt."""
        if rows == list(range(len(self.lengths))):
            return
        at = torch.tensor(rows)
        self.cache.batch_select_indices(at.to(self.device))
        if getattr(self.inner, "rope_deltas", None) is not None:  # M-RoPE's, one for each row
            self.inner.rope_deltas = self.inner.rope_deltas[at.to(self.inner.rope_deltas.device)]
        self.lengths = [self.lengths[row] for row in rows]

    def forward(self, model, fed: list[DraftTree]) -> torch.Tensor:
        """Logits after every token fed, float ``(B, longest, vocabulary)``."""
        device, self.before = self.device, self.cache.get_seq_length()
        ids = pad_sequence([torch.tensor(tree.tokens) for tree in fed], batch_first=True)
        seen = [torch.from_numpy(tree.ancestors()) for tree in fed]
        steps = pad_sequence([one.sum(-1) - 1 for one in seen], batch_first=True)
        places = (torch.tensor(self.lengths)[:, None] + steps).to(device)
        if (deltas := getattr(self.inner, "rope_deltas", None)) is not None:
            places = (places + deltas.to(device))[None].expand(3, -1, -1)  # M-RoPE's three axes
        return model(input_ids=ids.to(device), attention_mask=self._mask(seen).to(device), use_cache=True,
                     past_key_values=self.cache, return_dict=True, position_ids=places).logits

    def _mask(self, seen: list[torch.Tensor]) -> torch.Tensor:
        """Who is seen, bool ``(B, 1, longest, T)``, given who is among the tokens fed."""
        longest = max(map(len, seen))
        mask = torch.zeros((len(seen), 1, longest, self.before + longest), dtype=torch.bool)
        mask[..., self.before:] = torch.eye(longest, dtype=torch.bool)  # padding sees itself
        for row, (among, length) in enumerate(zip(seen, self.lengths)):
            n = len(among)
            mask[row, 0, :n, self.before - length:self.before] = True
            mask[row, 0, :n, self.before:self.before + n] = among
        return mask

    def keep(self, kept: list[list[int]]) -> None:
        """Forget all but some of the tokens that each row was fed last, given by number, ascending."""
        columns = [[*range(self.before - length, self.before), *(self.before + k for k in some)]
                   for some, length in zip(kept, self.lengths)]
        self.lengths = [len(row) for row in columns]
        if all(some == list(range(len(kept[0]))) for some in kept):  # all rows end alike
            if surplus := self.cache.get_seq_length() - self.before - len(kept[0]):
                self.cache.crop(-surplus)
            return
        width = max(self.lengths)
        at = torch.tensor([[0] * (width - len(row)) + row for row in columns])[:, None, :, None]
        for layer in self.cache.layers:
            layer.keys = layer.keys.take_along_dim(at.to(layer.keys.device), 2)
            layer.values = layer.values.take_along_dim(at.to(layer.values.device), 2)
