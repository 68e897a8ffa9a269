"""The tokens of constrained decoding in far fewer passes, by drafts that one pass verifies.

The model reads a whole draft in one pass, and the part that agrees with what it would have written itself
stays; a wrong guess costs little. Objects change little from row to row, so the guess for a row is the row
above, and where the current row has already departed from it, the row above from its next edge on. Where
such a guess is doubtful, others stand beside it: drafts that share their beginnings form a tree, and one
pass reads all of it. Tokens that the grammar forces are written without asking the model.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from heapq import heappop, heappush
from math import ceil
from typing import NamedTuple

import numpy as np
import torch

from ..data.prompts import BOX_BINS, read_box
from .constrained import ConstrainedSequence
from .grammar import START, Grammar, Position, State

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

Run = tuple[int, int]
"""``(label, end)``, the end exclusive."""


def row_runs(row: Sequence[int] | np.ndarray) -> list[Run]:
    """The runs of a row of labels.

    >>> row_runs([0, 0, 1, 0])
    [(0, 2), (1, 3), (0, 4)]
    """
    row = np.asarray(row)
    ends = [*(np.flatnonzero(np.diff(row)) + 1).tolist(), len(row)]
    return [(int(row[end - 1]), end) for end in ends]


def rest_of_row(above: list[Run], col: int, last: int, first: int | None = None,
                appears: int = 1) -> list[Run]:
    """Guess the runs of a row from a cell on.

    Args:
        above: the runs of the row above, the last one ending with the row.
        col: the first cell to guess.
        last: label of the run that ends there, -1 at the start of the row.
        first: label of the first guessed run, if that is known already.
        appears: label of an object that the row above does not have.

    Returns:
        runs up to the end of the row. Neighbours differ, the first one from ``last``.

    >>> above = [(0, 3), (1, 8), (0, 16)]
    >>> rest_of_row(above, 2, 0)  # the object begins a cell earlier
    [(1, 8), (0, 16)]
    >>> rest_of_row(above, 3, 0), rest_of_row(above, 5, 0)
    ([(1, 8), (0, 16)], [(1, 8), (0, 16)])
    """
    cols = above[-1][1]
    at = next(k for k, (_, end) in enumerate(above) if end > col)
    if first is None:  # where the run above goes on, ours has ended already
        rest = above[at + 1:] if above[at][0] == last else above[at:]
    else:
        rest = next((above[k:] for k in range(at, len(above)) if above[k][0] == first), [])
        if first == 0 and rest and rest[0][1] == cols and at < len(above) - 1:
            rest = [(0, col + 1), *above[at:]]  # the object's edge has moved in a little
    if not rest:
        label = first if first is not None else (0 if last else appears)
        rest = [(label, cols if label == 0 else col + max(1, round(FIRST_WIDTH * cols)))]
    return _proper([*rest, (0, cols)], col, last)


def _proper(runs: list[Run], col: int, last: int) -> list[Run]:
    """Without empty runs and repeated labels, to the end of the row."""
    cols, out = runs[-1][1], []
    for label, end in runs:
        end = min(end, cols)
        if end <= (out[-1][1] if out else col):
            continue
        if out and out[-1][0] == label:
            out[-1] = (label, end)
        elif out or label != last:
            out.append((label, end))
    return out


class Part(NamedTuple):
    """A stretch of a draft that is right or wrong as a whole.

    Attributes:
        ids: its token ids.
        kind: the sort of guess, see `PRIORS`, or the probability that it is right, where that is known.
    """

    ids: tuple[int, ...]
    kind: str | float


class Guess(NamedTuple):
    """A part, and a function that returns the guesses behind it, the likeliest first."""

    part: Part
    follow: Callable[[], list[Guess]]


def chain(parts: Iterator[Part], then: Callable[[], list[Guess]] = list) -> list[Guess]:
    """Parts one after the other, as guesses without an alternative, then others."""
    part = next(parts, None)
    return then() if part is None else [Guess(part, partial(chain, parts, then))]


class DraftTree:
    """Drafts that share their beginnings, for one pass over all of them.

    Attributes:
        tokens: ids; each comes after its parent.
        parents: for each token the index of the one that it follows, -1 for what is already written.
    """

    def __init__(self, tokens: Iterable[int] = ()):
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self._children: dict[tuple[int, int], int] = {}
        self._parts: list[tuple[int, Part, int]] = []
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

    def add_part(self, parent: int, part: Part) -> int:
        """`add` a part, and remember it for `outcomes`."""
        at = self.add(parent, part.ids)
        self._parts.append((parent, part, at))
        return at

    def child(self, parent: int, token: int) -> int | None:
        """Index of a token behind another one, if it was drafted."""
        return self._children.get((parent, token))

    def outcomes(self, accepted: Iterable[int]) -> Iterator[tuple[Part, bool]]:
        """The parts that were reached, and whether each of them held.

        Args:
            accepted: indices of the tokens that were kept.
        """
        kept = {-1, *accepted}
        return ((part, at in kept) for parent, part, at in self._parts if parent in kept)

    def depths(self) -> list[int]:
        """For each token the number of the tree's tokens before it."""
        out: list[int] = []
        for parent in self.parents:
            out.append(0 if parent < 0 else out[parent] + 1)
        return out

    def ancestors(self) -> np.ndarray:
        """Bool ``(n, n)``: whether token ``j`` stands before token ``i``, or is the same."""
        out = np.eye(len(self.tokens), dtype=bool)
        for at, parent in enumerate(self.parents):
            if parent >= 0:
                out[at] |= out[parent]
        return out

    @property
    def is_chain(self) -> bool:
        """Whether every token has at most one other behind it."""
        return self.parents == list(range(-1, len(self.tokens) - 1))


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

    def chance(self, part: Part) -> float:
        """Probability that a part holds, if everything before it does."""
        if isinstance(part.kind, float):
            return part.kind
        held, of = self.counts[part.kind]
        return held / of

    def plan(self, guesses: list[Guess]) -> DraftTree:
        """The drafts worth reading, the likeliest parts first. The first part always is."""
        tree, waiting, number = DraftTree(), [], 0
        parent, before = -1, 1.0
        while True:
            for guess in guesses if self.tree else guesses[:1]:
                number += 1  # decides between equal probabilities
                heappush(waiting, (-before * self.chance(guess.part), number, guess, parent))
            if not waiting or 0 < self.tree <= len(tree.tokens):
                return tree
            minus, _, guess, behind = heappop(waiting)
            before = -minus
            if tree.tokens and before * self.overhead < (1 - before) * len(guess.part.ids):
                return tree
            parent = tree.add_part(behind, guess.part)
            guesses = guess.follow()

    def learn(self, tree: DraftTree, accepted: Iterable[int]) -> None:
        """Count which parts of a draft held, given the indices of the tokens that were kept."""
        for part, held in tree.outcomes(accepted):
            if part.kind in self.counts:
                self.counts[part.kind][0] += held
                self.counts[part.kind][1] += 1

    def sentence(self, said: Sequence[int]) -> Part | None:
        """A guess at the rest of the sentence before the descriptor, by a vote of earlier answers.

        It is drafted in full, however unlikely: the model's logits behind its wrong numbers are the basis
        of the next draft.
        """
        said, rest = tuple(said), []
        while (now := (*said, *rest)) not in self.sentences:
            n = len(now)
            alike = [one for one in self.sentences if len(one) > n and one[:1] == now[:1]]
            exact = [one for one in alike if one[:n] == now]
            votes = Counter(one[n] for one in exact or (alike if n else self.sentences))
            if not votes:
                break
            rest.append(votes.most_common(1)[0][0])
        return Part(tuple(rest), "sentence") if rest else None


class Draft:
    """Guesses at the rest of a descriptor.

    Args:
        grammar: of the request.
        cells: int ``(n_lines * width,)``, labels of the cells written so far; none by default.
        bottom: the last row that shows anything, where the answer's sentence has said so.
    """

    def __init__(self, grammar: Grammar, cells: np.ndarray | None = None, bottom: int | None = None):
        self.grammar, self.bottom = grammar, bottom
        self.by_row = grammar.encoding.breaks_rows
        self.cells = np.zeros(grammar.n_lines * grammar.width, np.int32) if cells is None else cells
        shown = self.cells[self.cells > 0]
        self.appears = int(shown[-1]) if len(shown) else 1  # the object seen last may come again

    def guesses(self, state: State, ahead: int, then: Callable[[], list[Guess]] = list) -> list[Guess]:
        """How a descriptor may go on from a place in it, the likeliest way first.

        Args:
            ahead: rows to guess after the current one.
            then: what may come after the descriptor.
        """
        run = None if self.grammar.done(state) else self._current_run(state)
        if run is None:
            return then()
        return self._alternatives(self.cells, state, run, state.at.line + ahead, then)

    def _current_run(self, state: State) -> tuple[int, int] | None:
        """Label and length of the run that has begun: as guessed, or the nearest that is possible."""
        for first in (None, *range(len(self.grammar.words))):
            if first is not None and not self.grammar.may_follow(state.at, first):
                continue
            label, guessed = self._runs(state.at, self._guess(self.cells, state.at, 1, first))[0]
            lengths = range(1, self.grammar.longest(state.at) + 1)
            for length in sorted(lengths, key=lambda n: abs(n - guessed)):
                if self.grammar.complete(state, label, length) is not None:
                    return label, length
        return None

    def _after(self, cells: np.ndarray, at: Position, last_line: int, then) -> list[Guess]:
        """Guesses from a position on; all cells before it are settled."""
        if at.line == self.grammar.n_lines:
            return then()
        if not self.by_row:
            return chain(self._in_a_row(at, self._runs(at, self._guess(cells, at, last_line))), then)
        if at.line > last_line:
            return []
        run = self._runs(at, self._guess(cells, at, 0))[0]
        return self._alternatives(cells, State(at), run, last_line, then)

    def _in_a_row(self, at: Position, runs: list[tuple[int, int]]) -> Iterator[Part]:
        for run in runs:
            yield Part(self.grammar.tokens(at, *run), self._kind(at, run))
            at = self.grammar.move(at, *run)

    def _alternatives(self, cells, state: State, run: tuple[int, int], last_line: int, then) -> list[Guess]:
        """A run, and what else may stand in its place."""
        out, at = [], state.at
        for kind, (label, length) in self._kinds(at, *run):
            if (ids := self.grammar.complete(state, label, length)) is not None:
                out.append(Guess(Part(ids, kind), partial(self._settled, cells, at, label, length,
                                                          last_line, then)))
        return out

    def _settled(self, cells, at: Position, label: int, length: int, last_line: int, then) -> list[Guess]:
        """What may come once a run is taken for certain."""
        cells, start = cells.copy(), self._index(at)
        cells[start:start + length] = label
        return self._after(cells, self.grammar.move(at, label, length), last_line, then)

    def _kinds(self, at: Position, label: int, length: int) -> list[tuple[str, tuple[int, int]]]:
        out, cols = [(self._kind(at, (label, length)), (label, length))], self.grammar.width
        if self.by_row and at.cell + length < cols:
            out += [("shorter", (label, length - 1))] * (length > 1)
            out += [("longer", (label, length + 1))]  # perhaps up to the row's end
            out += [("empty", (0, cols))] * (at.cell == 0 and length + 1 < cols)
        return out

    def _kind(self, at: Position, run: tuple[int, int]) -> str:
        ends = at.cell + run[1] == self.grammar.width
        return "edge" if not ends else "rest" if at.cell else "row"

    def _index(self, at: Position) -> int:
        return at.line * self.grammar.width + at.cell

    def _guess(self, cells: np.ndarray, at: Position, ahead: int, first: int | None = None) -> np.ndarray:
        """Guessed labels of the cells from a position to the end of a row.

        Args:
            cells: all labels, right up to the position.
            ahead: rows after the current one.
            first: label of the first run, if that is known.
        """
        start, width = self._index(at), self.grammar.row_width
        row, col = divmod(start, width)
        rows = cells.reshape(-1, width)
        above, line = rows[row - 1] if row else np.zeros_like(rows[0]), rows[row].copy()
        last, begin = at.last if self.grammar.counts_runs else -1, col
        for label, end in rest_of_row(row_runs(self._below(above, row)), col, last, first, self.appears):
            line[begin:end] = label
            begin = end
        out = [line]
        for below in range(row + 1, min(len(rows), row + 1 + ahead)):
            out.append(self._below(out[-1], below))
        return np.concatenate(out)[col:]

    def _below(self, above: np.ndarray, row: int) -> np.ndarray:
        """A guess at a row from the one above: the same, but nothing below the box."""
        return np.zeros_like(above) if row - 1 == self.bottom else above

    def _runs(self, at: Position, cells: np.ndarray) -> list[tuple[int, int]]:
        """Cells as the grammar's runs ``(label, length)``, without a last one that may go on."""
        if not self.grammar.counts_runs:
            return [(int(label), 1) for label in cells]
        width = self.grammar.width
        changes = np.flatnonzero(np.diff(cells)) + 1
        line_ends = np.arange(width - at.cell, len(cells) + 1, width)
        ends = np.union1d(changes, line_ends).astype(int).tolist() or [len(cells)]
        return [(int(cells[start]), end - start) for start, end in zip([0, *ends], ends)]


class Drafter:
    """Writes one sequence through drafts: what to feed the model, and what to keep of it.

    Args:
        sequence: what has been written of it is taken to be part of the prompt.
        scheduler: shared by the sequences of a run.
        limit: most tokens of the answer, its end included.
    """

    def __init__(self, sequence: ConstrainedSequence, scheduler: DraftScheduler, limit: int):
        self.sequence, self.scheduler, self.limit = sequence, scheduler, limit
        self.read = len(sequence.ids) - 1  # tokens that the cache holds; the prompt's last one is not read
        self.tree = DraftTree()  # the last draft
        # Rejected-draft logits: behind a wrong guess at the sentence, for each place the likeliest tokens
        # and their probabilities.
        self.rejected: list[tuple[list[int], list[float]]] = []
        self.bottom = None if sequence.in_sentence else self._bottom(sequence.ids)

    @property
    def over(self) -> bool:
        """Whether the answer is complete, or as long as it may be."""
        return self.sequence.finished or len(self.sequence.ids) >= self.limit

    def opening(self) -> list[int]:
        """A guess at the sentence before the descriptor, as far as earlier answers tell."""
        self.tree = DraftTree()
        if self.sequence.grammar and (part := self.scheduler.sentence(())):
            self.tree.add_part(-1, part)
        return self.tree.tokens

    def feed(self) -> DraftTree:
        """What the cache has not read of the answer, and behind it guesses at how it goes on."""
        fed = DraftTree(self.sequence.ids[self.read:])
        behind = len(fed.tokens) - 1
        self.tree = self.scheduler.plan(self._guesses())
        for token, parent in zip(self.tree.tokens, self.tree.parents):
            fed.add(behind if parent < 0 else behind + 1 + parent, [token])
        return fed

    def accept(self, fed: DraftTree, logits) -> list[int]:
        """Write as far as the logits reach; returns which of the tokens fed stay, ascending.

        Args:
            fed: at least one token, the last of what is written or of the prompt among them.
            logits: ``logits[k]`` speak of the token behind number ``k`` of those fed.
        """
        sequence = self.sequence
        at: int | None = max(0, len(sequence.ids) - self.read - 1)
        kept = list(range(at + 1))
        n_written = len(kept)
        while at is not None and not self.over:
            token, before = sequence.choose(logits[at]), at
            at = fed.child(at, token)
            self._push(token, drafted=at is not None)
            if at is not None:
                kept.append(at)
            elif sequence.in_sentence:
                self.rejected = self._behind(fed, before, logits)
        self.scheduler.learn(self.tree, [k - n_written for k in kept[n_written:]])
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
        """The last row whose middle lies in the box that the sentence states."""
        box = self.sequence.grammar and read_box(self.sequence.tokenizer.decode(sentence))
        if box is None:
            return None
        # The mask may end anywhere in its last bin; at three quarters of it the guess is best.
        return ceil((box[3] + 0.75) * self.sequence.grammar.encoding.rows / BOX_BINS - 0.5) - 1

    def _guesses(self) -> list[Guess]:
        """How the answer may go on."""
        sequence = self.sequence
        if sequence.grammar is None:
            return []
        if sequence.state is None:
            return self._sentence_guesses()
        return Draft(sequence.grammar, sequence.cells, self.bottom).guesses(sequence.state, AHEAD, self._end)

    def _end(self) -> list[Guess]:
        return chain(iter([Part((self.sequence.end,), 0.9)]))

    def _sentence_guesses(self) -> list[Guess]:
        """The sentence, from rejected-draft logits or else from earlier answers, and what follows it."""
        parts = self._from_rejected()
        if not parts and (part := self.scheduler.sentence(self.sequence.ids)):
            parts = [part]
        return [Guess(part, partial(self._descriptor_behind, part.ids)) for part in parts]

    def _from_rejected(self) -> list[Part]:
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
        return [Part(tuple(words), "rejected"), *(
            Part((*words[:k], token, *words[k + 1:]), sure * chance / self.rejected[k][1][0])
            for k in range(len(words)) for token, chance in list(zip(*self.rejected[k]))[1:])]

    def _descriptor_behind(self, more: Sequence[int]) -> list[Guess]:
        sentence, tag = [*self.sequence.ids, *more], self.sequence.tag
        if sentence[-len(tag):] != tag:
            return []
        return Draft(self.sequence.grammar, bottom=self._bottom(sentence)).guesses(START, AHEAD, self._end)


class DraftingDecoder:
    """A loop for ``generate(custom_generate=...)``: grammatical, with drafts verified in one pass.

    Writes what ``generate(do_sample=False, logits_processor=[DescriptorProcessor(...)])`` writes, whether
    the sequences are greedy or draw. Rows of a batch advance at different speeds: each keeps what it
    accepts, and the cache is laid out anew, padded on the left, after every pass.

    Args:
        sequences: as many as prompts, or a multiple of that, for several answers to each prompt in turn,
            which then is read once.
        scheduler: shared by the batches of a run.
        limit: most tokens of an answer, its end included.
        trees: read trees of drafts, as if tokens in parallel cost nothing; by default on a GPU only.
    """

    def __init__(self, sequences: Sequence[ConstrainedSequence], scheduler: DraftScheduler | None = None,
                 limit: int = 4096, trees: bool | None = None):
        self.scheduler, self.limit, self.trees = scheduler or DraftScheduler(), limit, trees
        self.drafters = [Drafter(sequence, self.scheduler, limit) for sequence in sequences]

    def __call__(self, model, input_ids: torch.Tensor, **options) -> torch.Tensor:
        """Called by ``generate``; returns prompts and answers, int64 ``(B, T)``, padded at the end."""
        kwargs = {name: v for name, v in options.items() if name not in _NOT_FOR_FORWARD}
        going, on_cpu = list(range(len(self.drafters))), input_ids.device.type == "cpu"
        self.scheduler.suit(len(going), on_cpu, not on_cpu if self.trees is None else self.trees)
        each = len(going) // len(input_ids)
        opening = self._opening()
        mask = kwargs.get("attention_mask")
        lengths = (torch.ones_like(input_ids) if mask is None else mask).sum(-1).tolist()
        out = model(**_first_inputs(model, input_ids, kwargs, opening), return_dict=True)
        # From here on the prompt's last token is the first of those that were just read.
        cache = BatchCache(model, out.past_key_values, [length - 1 for length in lengths],
                           before=input_ids.shape[1] - 1)
        cache.repeat(each)
        logits = _indexable(out.logits[:, -1 - len(opening):])
        cache.keep([self.drafters[row].accept(DraftTree([int(input_ids[row // each, -1]), *opening]),
                                              logits[row // each]) for row in going])
        while rows := [row for row in going if not self.drafters[row].over]:
            cache.select([going.index(row) for row in rows])
            going = rows
            fed = [self.drafters[row].feed() for row in going]
            logits = _indexable(cache.forward(model, fed))
            for row in going:
                self.drafters[row].sequence.trace.passes += 1
            cache.keep([self.drafters[row].accept(*one) for row, *one in zip(going, fed, logits)])
        return self._joined(input_ids.repeat_interleave(each, 0))

    def _opening(self) -> list[int]:
        """A guess at how the answers begin, to be read along with the prompts."""
        if any(drafter.sequence.ids for drafter in self.drafters):  # what is written is part of the prompt
            return []
        return next(filter(None, [drafter.opening() for drafter in self.drafters]), [])

    def _joined(self, input_ids: torch.Tensor) -> torch.Tensor:
        written = [drafter.sequence.ids for drafter in self.drafters]
        longest = min(max(map(len, written)), self.limit)
        pad = self.drafters[0].sequence.tokenizer.pad_token_id
        rows = [(ids + [pad] * longest)[:longest] for ids in written]
        return torch.cat([input_ids, torch.tensor(rows, dtype=input_ids.dtype, device=input_ids.device)], -1)


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
        self.inner = getattr(model, "model", model)

    @property
    def device(self) -> torch.device:
        return self.cache.layers[0].keys.device

    def repeat(self, times: int) -> None:
        """Copy every row, for several answers to one prompt."""
        if times > 1:
            self._take([row for row in range(len(self.lengths)) for _ in range(times)])

    def select(self, rows: list[int]) -> None:
        """Keep some rows of the batch."""
        if len(rows) < len(self.lengths):
            self._take(rows)

    def _take(self, rows: list[int]) -> None:
        at = torch.tensor(rows)
        self.cache.batch_select_indices(at.to(self.device))
        if getattr(self.inner, "rope_deltas", None) is not None:  # M-RoPE's, one for each row
            self.inner.rope_deltas = self.inner.rope_deltas[at.to(self.inner.rope_deltas.device)]
        self.lengths = [self.lengths[row] for row in rows]

    def forward(self, model, fed: list[DraftTree]) -> torch.Tensor:
        """Logits after every token fed, float ``(B, longest, vocabulary)``."""
        longest, device = max(len(tree.tokens) for tree in fed), self.device
        self.before = self.cache.get_seq_length()
        ids = torch.zeros((len(fed), longest), dtype=torch.long)
        steps = torch.arange(longest).repeat(len(fed), 1)
        for row, tree in enumerate(fed):
            ids[row, :len(tree.tokens)] = torch.tensor(tree.tokens)
            steps[row, :len(tree.tokens)] = torch.tensor(tree.depths())
        places = (torch.tensor(self.lengths)[:, None] + steps).to(device)
        if (deltas := getattr(self.inner, "rope_deltas", None)) is not None:
            places = (places + deltas.to(device))[None].expand(3, -1, -1)  # M-RoPE's three axes
        return model(input_ids=ids.to(device), attention_mask=self._mask(fed, longest).to(device),
                     use_cache=True, past_key_values=self.cache, return_dict=True,
                     position_ids=places).logits

    def _mask(self, fed: list[DraftTree], longest: int) -> torch.Tensor:
        """Who is seen: int64 ``(B, T)`` where all drafts are chains, else bool ``(B, 1, longest, T)``."""
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
            if surplus := self.cache.get_seq_length() - self.before - len(kept[0]):
                self.cache.crop(-surplus)
            return
        width = max(self.lengths)
        columns = torch.zeros((len(kept), width), dtype=torch.long)
        for row, (some, length) in enumerate(zip(kept, self.lengths)):
            old = length - len(some)
            columns[row, width - length:width - len(some)] = torch.arange(self.before - old, self.before)
            columns[row, width - len(some):] = self.before + torch.tensor(some, dtype=torch.long)
        at = columns.to(self.device)[:, None, :, None]
        for layer in self.cache.layers:
            for name in ("keys", "values"):
                old = getattr(layer, name)
                setattr(layer, name, old.gather(2, at.to(old.device).expand(
                    -1, old.shape[1], -1, old.shape[3])))
