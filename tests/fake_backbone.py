"""A backbone for the playground's tests that says what it is told to say, and a refiner that counts."""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np
import torch

from t4s_helpers.decoding.generate import Answer
from t4s_helpers.refine import Refined


class Stub:
    """One token a character; a streamer gets a line at a time, after ``pause`` seconds each."""

    spec = SimpleNamespace(name="embedded")
    encoder = SimpleNamespace(
        tokenizer=SimpleNamespace(all_special_tokens=["<eos>", "<image>"],
                                  decode=lambda ids, skip_special_tokens: "".join(map(chr, ids))),
        piece_ids=list)

    def __init__(self, *answers, pause=0.0):
        self.answers, self.asked, self.pause, self.streamed = answers, [], pause, []

    def say(self, images, chats, encoding, max_new_tokens=9999, progress=True, streamer=None):
        answer = self.answers[min(len(self.asked), len(self.answers) - 1)]
        self.asked.append(([turn.question for turn in chats[0]], images[0].shape))
        if isinstance(answer, BaseException):
            raise answer
        if callable(answer):
            answer = answer(chats[0][-1], encoding)
        if streamer is not None:
            streamer.put(torch.zeros(1, 5))  # the prompt
            for line in answer.splitlines(keepends=True):
                time.sleep(self.pause)
                streamer.put(torch.tensor([ord(c) for c in line]))
                self.streamed.append(line)
            streamer.end()
        n = len(answer) + 1
        return [Answer(answer[:max_new_tokens], min(n, max_new_tokens), n <= max_new_tokens, 0.1)]


class Half:
    """A refiner that keeps the left half of a mask, and counts."""

    name = "half"

    def __init__(self, fallback=False):
        self.calls, self.fallback, self.seen = 0, fallback, 0

    def set_image(self, pixels):
        self.seen += 1
        return self

    def refine(self, masks, seed=0):
        self.calls += 1
        masks = masks.copy()
        masks[:, :, masks.shape[2] // 2:] = False
        n = len(masks)
        return Refined(masks, np.ones(n), np.ones(n), np.full(n, self.fallback))


def let_stubs_answer(monkeypatch, module):
    """Backbones that are a `Stub` answer in place of ``generate``."""
    real = module.generate
    monkeypatch.setattr(module, "generate", lambda backbone, *args, **options: (
        Stub.say if isinstance(backbone, Stub) else real)(backbone, *args, **options))
