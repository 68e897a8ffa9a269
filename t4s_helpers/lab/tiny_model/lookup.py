"""Looking up, fitted: the keys of `.matching` and the connector, so that attention finds what is meant.

`.matching` set the keys by least squares on few scenes. Some of what they read lies in directions that
words hardly use, and there `.drawing` later wrote its codes: phrases then drew attention to tokens with
the wrong box or row, and of two objects that differ in category alone the right one was found little
more often than by chance. Here keys and visual tokens are fitted to what the heads are for, the share of
attention on the tokens that show every word of a phrase, or on the start of the text if none does.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from ...data.scenes import CATEGORIES, COLORS, SIZES
from .matching import (DISTANCE, FIRST_PAIR, SHARPNESS, WORDS, _codes, _normed, _token_codes,
                       look_up_gain, write_look_up)

HEARD = 0.42, 0.72
"""Size of the queries that arrive, against what `.matching` writes: the rest of the residual stream
shares their norm (measured: 0.56 to 0.63)."""

MISHEARD = 0.3
"""Noise that is added to queries in training, against their length (measured: 0.27 for one word)."""

BEHIND = 6, 60
"""Tokens between the last visual token and the place that looks, in training."""

STRANGE, NAMED = 0.2, 0.6
"""Shares of phrases whose category is drawn anew, and of attributes that a phrase names."""

QUIET = 0.02
"""Weight of what the keys say of text, squared. Words that a phrase could name weigh ten times as much:
they must not be found in place of what they mean."""

KINDS = tuple(len(part) for part in (CATEGORIES, COLORS, SIZES))


class LookUp:
    """Keys of the look-up in training.

    Args:
        model: the embedded ``LlavaForConditionalGeneration`` with `.matching`, float32.
        tokenizer: its tokenizer.
        shown: float ``(N, 64, len(WORDS))``, the share of each visual token's cells that show a word.
        weight: of the loss.
    """

    def __init__(self, model, tokenizer, shown, weight: float = 0.2):
        language = model.model.language_model
        gather, look = (layer.self_attn for layer in language.layers[:2])
        self.shown, self.weight, self.heads = shown, weight, look.q_proj.out_features // look.head_dim
        theta = look.config.rope_parameters["rope_theta"]
        pairs = torch.arange(FIRST_PAIR, look.head_dim // 2 - 1)
        self.speed = theta ** (-pairs / (look.head_dim // 2))
        self.codes = torch.stack([_codes(head) for head in range(self.heads)])
        with torch.no_grad():
            table = language.embed_tokens.weight
            self.text = _normed(table)
            named = _token_codes(tokenizer, len(table)).sum(-1) > 0
            gathered = F.normalize(gather.o_proj.weight[:, :len(WORDS)], dim=0).T
            gathered = gathered * table.shape[1] ** 0.5 / 2  # a quarter of what a norm lets through
            self.words = torch.cat([self.text[named], gathered])
            slow = look.head_dim // 2 - 1 + look.head_dim * torch.arange(self.heads)
            always = look.k_proj.weight[slow] * look_up_gain(look) / look.head_dim**0.5
            self.always = always.mean(0)
            self.start = self._start(language, tokenizer.bos_token_id)
            self.probe = self._probe(look)

    def _start(self, language, bos: int):
        """Attention logit of the start of the text."""
        seen = language(input_ids=torch.tensor([[bos]]), output_hidden_states=True).hidden_states[1]
        return _normed(seen[0, 0]) @ self.always

    def _probe(self, look):
        """What the keys read now, ``(width, len(WORDS))``: `matching.write_look_up`, undone."""
        keys = look.k_proj.weight.unflatten(0, (self.heads, 2, look.head_dim // 2))
        keys = keys[:, :, FIRST_PAIR:-1].transpose(1, 2).flatten(0, 2) / look_up_gain(look)
        codes = self.codes.transpose(1, 2).flatten(0, 1)  # (heads * 14, words)
        return torch.linalg.lstsq(codes, keys).solution.T.contiguous()

    def parameters(self):
        return [self.probe]

    def loss(self, tokens, at, noise):
        """How far attention is from what phrases mean, and the keys from being quiet on text.

        Args:
            tokens: float ``(B, 64, width)``, visual tokens of the scenes ``at``.
            at: int64 ``(B,)``.
            noise: ``torch.Generator``, draws phrases, distances and what is misheard.
        """
        query, fits = phrases(self.shown[at], noise)
        logits = self._logits(_normed(tokens), self._heard(query, noise), noise)
        start = self.start.expand(*logits.shape[:-1], 1)
        shares = torch.cat([logits, start], -1).log_softmax(-1)
        fits = torch.cat([fits, ~fits.any(-1, keepdim=True)], -1)[:, None]
        missed = -shares.masked_fill(~fits, -torch.inf).logsumexp(-1).mean()
        quiet = sum(size * (text @ self.probe).square().sum(-1).mean()
                    for size, text in ((1, self.text), (20, self.words)))
        return self.weight * (missed + QUIET * quiet)

    def _heard(self, query, noise):
        """Queries as they arrive in every head, ``(B, heads, n, 14)``."""
        coded = torch.einsum("bnw,hwd->bhnd", query, self.codes)
        low, high = HEARD
        size = low + (high - low) * torch.rand(len(query), 1, query.shape[1], 1, generator=noise)
        off = torch.randn(coded.shape, generator=noise) * coded.norm(dim=-1, keepdim=True)
        return size * (coded + MISHEARD / coded.shape[-1] ** 0.5 * off)

    def _logits(self, seen, query, noise):
        """Attention logits ``(B, heads, n, 64)``, rotary turns included."""
        keys = torch.einsum("btw,hwd->bhtd", seen @ self.probe, self.codes)
        n = seen.shape[1]
        behind = torch.randint(*BEHIND, (len(seen), 1, query.shape[2], 1), generator=noise)
        turn = (behind + n - torch.arange(n) - DISTANCE)[..., None] * self.speed
        one, other = query[..., None, 0::2], query[..., None, 1::2]
        key, next_key = keys[:, :, None, :, 0::2], keys[:, :, None, :, 1::2]
        agree = turn.cos() * (one * key + other * next_key) + turn.sin() * (one * next_key - other * key)
        return SHARPNESS * agree.sum(-1) + (seen @ self.always)[:, None, None]

    @torch.no_grad()
    def write(self, model) -> None:
        """Put the keys into a model."""
        write_look_up(model.model.language_model.layers[1].self_attn, self.probe)


def phrases(shown, noise, n: int = 2):
    """Random phrases about scenes, each of one to three words, and the visual tokens that fit.

    Args:
        shown: float ``(B, 64, len(WORDS))``.
        noise: ``torch.Generator``.
        n: phrases about each scene; a fifth name a category that need not be there.

    Returns:
        float ``(B, n, len(WORDS))``, weights of the words, which sum to 1, and bool ``(B, n, 64)``.
    """
    some = shown[..., :KINDS[0]].sum(-1) + 1e-6
    token = torch.multinomial(some, n, generator=noise)
    own = shown.gather(1, token[..., None].expand(-1, -1, shown.shape[-1]))
    first, picked = 0, []
    for size in KINDS:
        part = own[..., first:first + size].flatten(0, 1) + 1e-6
        picked.append(first + torch.multinomial(part, 1, generator=noise).view(len(shown), n))
        first += size
    anew = torch.randint(KINDS[0], token.shape, generator=noise)
    strange = torch.rand(token.shape, generator=noise) < STRANGE
    picked = torch.stack([torch.where(strange, anew, picked[0]), *picked[1:]], -1)  # (B, n, 3)
    named = torch.rand(picked.shape, generator=noise) < NAMED
    named[..., 0] |= ~named.any(-1)
    weights = named * (0.5 + torch.rand(picked.shape, generator=noise))
    query = torch.zeros(len(shown), n, shown.shape[-1])
    query.scatter_(2, picked, weights / weights.sum(-1, keepdim=True))
    there = shown.transpose(1, 2).gather(1, picked.flatten(1)[..., None].expand(-1, -1, shown.shape[1])) > 0
    return query, (there.unflatten(1, picked.shape[1:]) | ~named[..., None]).all(2)
