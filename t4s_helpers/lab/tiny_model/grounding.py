"""Two losses that tie text to places: say what a visual token shows, and look at what is spoken of.

From random weights, answers alone teach a small model to find things only after hundreds of thousands of
them: the loss tells that a number is wrong, not where in the picture the right one could have been read. The
scenes know that, as data sets with boxes do for real models:

- *name*: behind the connector, every visual token is to be nearest to the words for what it shows;
- *look*: in the layer `LOOKING`, a word of a question is to attend to the visual tokens that show what it
  names, and the tokens of an answer to those that show what they speak of.

Both are plain losses beside that of the answers; no weight is set, and the trained model is asked without
them. Source of the second: supervised attention (Liu et al., "Neural machine translation with supervised
attention", COLING 2016).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ...data.scenes import CATEGORIES, COLORS, SIZES, Scene
from ...model.chat import IGNORE_INDEX, ConversationEncoder, pad_batch
from ...model.training import ResumableTrainer, of_rows
from .architecture import N_VISUAL
from .dense import GRID, dense_targets
from .exercises import Exercise

WEIGHTS = {"answer": 1.0, "name": 0.3, "look": 0.3}
"""Of the three losses in their sum."""

LOOKING = 3
"""The layer, of six from 0, whose heads look: what is asked is known by then, and can still be said."""

SIDE = round(N_VISUAL**0.5)
"""Visual tokens in a row."""


def places(mask: np.ndarray | None) -> np.ndarray:
    """The visual tokens that show a good part of a mask, bool ``(N_VISUAL,)``; none without a mask.

    >>> int(places(np.ones((128, 128), bool)).sum()), int(places(None).sum())
    (64, 0)
    """
    if mask is None:
        return np.zeros(N_VISUAL, bool)
    step = len(mask) // SIDE
    cover = mask.reshape(SIDE, step, SIDE, step).mean((1, 3)).ravel()
    return (cover > 0) & (cover >= cover.max() / 2)


def looks(encode: ConversationEncoder, talk: Sequence[Exercise], words: dict[int, np.ndarray],
          ids: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Where to look from each token of a conversation, bool ``(T, N_VISUAL)``; anywhere where there is none.

    Args:
        words: of `places_of_words`.
        ids, labels: of the conversation's tokens, int ``(T,)``, as `ConversationEncoder` gives them.
    """
    nowhere, rows = places(None), []
    out = np.stack([words.get(int(one), nowhere) for one in ids])
    for turn, where in talk:
        for piece, mask in zip(turn.answer, where):
            rows += [places(mask)] * len(encode.piece_ids(piece))
        rows.append(nowhere)  # the end of the answer
    out[np.flatnonzero(labels != IGNORE_INDEX) - 1] = rows  # where a token is chosen: one before it
    return out


def places_of_words(encode: ConversationEncoder, scene: Scene) -> dict[int, np.ndarray]:
    """Ids of the words that name something in a scene -> `places` of all that they name."""
    named: dict[str, np.ndarray] = {}
    for thing in scene.objects:
        for word in (*thing.words, thing.category + "s"):
            named[word] = named.get(word, False) | thing.mask
    spelt = ((encode.piece_ids(text), mask) for word, mask in named.items() for text in (word, f" {word}"))
    return {ids[0]: places(mask) for ids, mask in spelt if len(ids) == 1}


def names_of_tokens(encode: ConversationEncoder, scene: Scene) -> np.ndarray:
    """Ids of the words for the cells under each visual token, int16 ``(N_VISUAL, 3 * cells)``.

    Of every cell the category, the colour and the size of what it shows, three times "nothing" if it is none.
    """
    shown, step = dense_targets(scene)[:3], GRID // SIDE
    words = [("nothing", *some) for some in (CATEGORIES, COLORS, SIZES)]
    ids = [np.array(encode.tokenizer.convert_tokens_to_ids(["\u0120" + word for word in some]), np.int16)
           for some in words]  # words within a text begin with a space, which byte-level BPE writes so
    names = np.stack([some[kind] for some, kind in zip(ids, shown)])
    return names.reshape(3, SIDE, step, SIDE, step).transpose(1, 3, 0, 2, 4).reshape(N_VISUAL, -1)


def collate(items: list[dict], processor) -> dict:
    """`t4s_helpers.model.chat.pad_batch`, and for every group of exchanges the ``places`` of its tokens."""
    batch = pad_batch([{k: v for k, v in item.items() if k != "places"} for item in items], processor)
    for group in batch["groups"]:
        length = group["input_ids"].shape[1]
        known = (items[row]["places"][number] for row, number in zip(group["row"], group["number"]))
        group["places"] = torch.as_tensor(
            np.stack([np.pad(one, ((0, length - len(one)), (0, 0))) for one in known]))
    return batch


class GroundedTrainer(ResumableTrainer):
    """Trains on the weighted sum of `grounded_losses`, and logs the mean of each beside it."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.unlogged: list[dict[str, float]] = []

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        losses = grounded_losses(model, **inputs)
        self.unlogged.append({name: float(loss.detach()) for name, loss in losses.items()})
        return sum(WEIGHTS[name] * loss for name, loss in losses.items())

    def log(self, logs: dict, *args, **kwargs) -> None:
        if "loss" in logs:
            means = {name: np.mean([losses[name] for losses in self.unlogged]) for name in WEIGHTS}
            logs |= {name: round(float(mean), 4) for name, mean in means.items()}
            self.unlogged.clear()
        super().log(logs, *args, **kwargs)


def grounded_losses(model, groups: Sequence[dict], names: torch.Tensor, **shared) -> dict[str, torch.Tensor]:
    """The losses of exchanges side by side, by the names in `WEIGHTS`, each a mean over its tokens.

    Args:
        model: a LLaVA whose language model has the attention implementation "eager".
        groups, names, shared: of `collate`.
    """
    picture = model(**shared, use_cache=True, logits_to_keep=1)
    seen = picture.image_hidden_states.reshape(len(names), -1)
    words = model.lm_head(model.model.language_model.norm(seen)).float().log_softmax(-1)
    first = int((shared["input_ids"][0] == model.config.image_token_index).nonzero()[0])
    answer, look, n_answer, n_look = 0.0, 0.0, 0, 0
    for group in groups:
        row, ids, labels, known = (group[name] for name in ("row", "input_ids", "labels", "places"))
        out = model(input_ids=ids, labels=labels, past_key_values=of_rows(picture.past_key_values, row),
                    output_attentions=True)
        n = int((labels != IGNORE_INDEX).sum())
        answer, n_answer = answer + n * out.loss, n_answer + n
        paid = out.attentions[LOOKING][..., first:first + N_VISUAL].transpose(1, 2)
        some = known.any(-1)
        share = (paid[some] * known[some][:, None]).sum(-1)
        look, n_look = look - (share + 1e-3).log().mean(-1).sum(), n_look + int(some.sum())
    look = look / n_look if n_look else words.new_zeros(())
    return {"answer": answer / n_answer, "name": -words.gather(1, names.long()).mean(), "look": look}
