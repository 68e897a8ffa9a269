"""What the base can do: exact answers, skill by skill, to exercises it was not trained on."""

from __future__ import annotations

import numpy as np

from ...data.expressions import make_question
from ...data.prompts import Turn
from ...data.scenes import make_scene
from ...model.chat import IGNORE_INDEX, pad_batch
from . import words
from .language import box_turn, list_turn, point_turn, row_turn

TEXT_SKILLS = {"copy": words.copy_turn, "count": words.count_turn, "runs": words.runs_turn,
               "rectangle": words.rectangle_turn}
SCENE_SKILLS = {"box": box_turn, "point": point_turn, "row": row_turn, "list": list_turn}
QUESTIONS = ("color", "category", "count", "exist", "side")
SKILLS = (*TEXT_SKILLS, *SCENE_SKILLS, *(f"ask {kind}" for kind in QUESTIONS))


def exercise(skill: str, index: int, split: str = "val") -> tuple[Turn, np.ndarray | None]:
    """Exercise ``index`` of a skill: the exchange, and its picture (``None`` for text alone).

    Raises:
        ValueError: an unknown skill.
    """
    if skill not in SKILLS:
        raise ValueError(f"Unknown skill {skill!r}: choose one of {', '.join(SKILLS)}.")
    rng = np.random.default_rng([SKILLS.index(skill), index, 77])
    if skill in TEXT_SKILLS:
        return TEXT_SKILLS[skill](rng), None
    scene = make_scene(split, index)
    if skill in SCENE_SKILLS:
        return SCENE_SKILLS[skill](rng, scene), scene.image
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
        one row per skill: ``skill``, ``picture``, ``n``, ``exact``, ``tokens_right``, both 0..1.
    """
    encoder = backbone.encoder
    rows = []
    for skill in skills:
        items = []
        for index in range(n):
            turn, image = exercise(skill, index)
            item = encoder([turn], has_image=image is not None)
            items.append(item if image is None else {**item, "image": image})
        hits = [hit for at in range(0, n, batch)
                for hit in _right_tokens(backbone, items[at:at + batch])]
        rows.append({"skill": skill, "picture": skill not in TEXT_SKILLS, "n": n,
                     "exact": float(np.mean([hit.all() for hit in hits])),
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
