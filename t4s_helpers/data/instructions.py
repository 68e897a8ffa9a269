"""Instruction data: conversations about scenes for training, a mix of every task.

Each conversation shows one picture and asks several things about it, so that one pass over the
visual tokens trains several answers. Semantic requests come as partial, conditioned and open ones
in the paper's proportions (section 4.1); see `t4s_helpers.data.prompts`.
"""

from __future__ import annotations

import numpy as np

from .prompts import Turn, turn
from .expressions import request
from .scenes import CATEGORIES, SPLITS, Scene, make_scene

MIXES = {
    "res": {"res": 1.0},
    "gres": {"res": 0.4, "gres": 0.6},
    "all": {"res": 0.35, "gres": 0.4, "semantic": 0.1, "vqa": 0.15},
}
"""Share of each task among the questions of a training mix."""


def scene_turns(rng, scene: Scene, mix: str = "all", n: int = 4, **layout) -> list[Turn]:
    """Up to ``n`` exchanges about a scene, no two with the same mask for an answer.

    Args:
        rng: a ``numpy.random.Generator``; it draws tasks, requests and wordings.
        mix: a key of `MIXES`.
        layout: ``size``, ``rule``, ``scheme`` and ``style`` of the answers, see
            `t4s_helpers.data.prompts.turn`.

    Raises:
        ValueError: an unknown mix.
    """
    if mix not in MIXES:
        raise ValueError(f"Unknown mix {mix!r}: choose one of {', '.join(MIXES)}.")
    turns, seen = [], set()
    for _ in range(2 * n):
        task = str(rng.choice(list(MIXES[mix]), p=list(MIXES[mix].values())))
        sample = request(rng, scene, task)
        target = np.packbits(sample.masks.any(0)).tobytes() if len(sample.masks) else sample.question
        if target in seen:  # else the answer could be copied instead of read off the picture
            continue
        seen.add(target)
        absent = _absent_classes(rng, sample.labels) if task == "semantic" else ()
        turns.append(turn(sample, rng=rng, distractors=absent, **layout))
        if len(turns) == n:
            break
    return turns


def _absent_classes(rng, present) -> list[str]:
    """One to four class names that a conditioned request lists although they do not occur."""
    others = [c for c in CATEGORIES if c not in present]
    return [str(c) for c in rng.choice(others, int(rng.integers(1, 5)), replace=False)]


def instruction(index: int, mix: str = "all", n: int = 4, split: str = "train", seed: int = 0,
                **layout) -> tuple[Scene, list[Turn]]:
    """Conversation number ``index``: the scene and its exchanges.

    The scene is scene ``index`` of ``split``; ``seed`` only changes what is asked about it.
    """
    rng = np.random.default_rng([SPLITS[split], index, seed, 31])
    scene = make_scene(split, index)
    return scene, scene_turns(rng, scene, mix, n, **layout)
