"""What the base can do: exact answers, skill by skill, to exercises it was not trained on."""

from __future__ import annotations

import numpy as np

from ...data.expressions import make_question
from ...data.prompts import Turn
from ...data.scenes import make_scene
from ...model.chat import IGNORE_INDEX, pad_batch
from .exercises import EXERCISES

QUESTIONS = ("color", "category", "count", "exist", "side")
SKILLS = (*(name for name in EXERCISES if name != "ask"), *(f"ask {kind}" for kind in QUESTIONS))


def exercise(skill: str, index: int, split: str = "val") -> tuple[Turn, np.ndarray]:
    """Exercise ``index`` of a skill: the exchange, and its picture.

    Raises:
        ValueError: an unknown skill.
    """
    if skill not in SKILLS:
        raise ValueError(f"Unknown skill {skill!r}: choose one of {', '.join(SKILLS)}.")
    rng = np.random.default_rng([SKILLS.index(skill), index, 77])
    scene = make_scene(split, index)
    if skill in EXERCISES:
        return EXERCISES[skill][1](rng, scene).turn, scene.image
    for _ in range(200):
        kind, ask, reply = make_question(rng, scene)
        if f"ask {kind}" == skill:
            return Turn(ask, (reply,)), scene.image
    return exercise(skill, index + 100_003, split)  # a scene that does not lend itself to it


def skill_scores(backbone, skills=SKILLS, n: int = 64, batch: int = 16) -> list[dict]:
    """Share of exact answers and of right tokens per skill.

    An answer is exact when every token, its end included, is the model's first choice after the
    true tokens before it, which is when greedy decoding writes just this answer.

    Args:
        backbone: the embedded `t4s_helpers.model.backbones.Backbone`.
        skills: names from `SKILLS`.
        n: exercises per skill.

    Returns:
        one row per skill: ``skill``, ``n``, ``exact``, ``tokens_right``, both 0..1.
    """
    rows = []
    for skill in skills:
        drawn = [exercise(skill, index) for index in range(n)]
        items = [{**backbone.encoder([turn], has_image=True), "image": image} for turn, image in drawn]
        hits = [hit for at in range(0, n, batch)
                for hit in _right_tokens(backbone, items[at:at + batch])]
        rows.append({"skill": skill, "n": n, "exact": float(np.mean([hit.all() for hit in hits])),
                     "tokens_right": float(np.mean(np.concatenate(hits)))})
    return rows


def _right_tokens(backbone, items) -> list[np.ndarray]:
    import torch

    batch = pad_batch(items, backbone.processor)
    labels = batch.pop("labels")[:, 1:]
    with torch.no_grad():
        said = backbone.model(**{k: v.to(backbone.model.device) for k, v in batch.items()})
    right = said.logits[:, :-1].argmax(-1).cpu() == labels
    return [hit[label != IGNORE_INDEX].numpy() for hit, label in zip(right, labels)]
