"""Matching wired into a base: two layers that look up what a phrase describes.

"The small red star" is answered in two steps of attention. A first head gathers the content words of
the question into one vector; heads of the next layer look for the visual tokens that show all of
them and hand on what stands there, or look at the start of the text if nothing fits. A large model has
such heads; a small one did not find them within an hour of training (it answered "Nowhere" to most
categories). `add_matching` puts two layers that do it below a trained base, by least squares on its
own word embeddings and visual tokens; they start there, every weight stays trainable, and the layers
above find their old input almost unchanged.

``python -m t4s_helpers.lab.tiny_model.matching --start checkpoints/base/final --out checkpoints/matched``
writes the grown model to ``<out>/final``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch.nn import functional as F

from ...data.scenes import CATEGORIES, COLORS, SIZES

WORDS = (*CATEGORIES, *COLORS, *SIZES)

FIRST_PAIR = 8
"""Rotary pairs from here on turn so slowly that words and visual tokens, some 70 tokens apart, match."""

DISTANCE = 70
"""Tokens between a visual token and the place that looks for it, about."""

GATHER = 8.0
"""Attention logit of a content word above other text."""

SHARPNESS = 14.0
"""Attention logit of a visual token that shows every word asked for."""

NOTHING_FITS = 0.6
"""The start of the text attracts as much as a visual token with this share of the words."""

NOTED, HANDED_ON = 0.5, 0.4
"""Length of what the two layers write, against the length of a word embedding: enough to be read, and
little enough for the layers above to go on as before."""


def add_matching(model, tokenizer, images, targets, questions):
    """A copy of a base with two more layers at the bottom of its language model.

    Args:
        model: the embedded ``LlavaForConditionalGeneration``.
        images: float ``(N, 3, 128, 128)``, pixel values of training scenes.
        targets: bool or float ``(N, 64, len(WORDS))``, the words for what each visual token shows.
        questions: texts as they are asked; their other words must not be gathered.

    Returns:
        the grown model, float32, and a dictionary with the shares of right tokens of the visual
        probe among ``category``, ``color`` and ``size``.
    """
    grown = insert_layer(insert_layer(model, 0), 0)
    language = grown.model.language_model
    table = language.embed_tokens.weight.detach()
    with torch.no_grad():
        features = grown.model.vision_tower(images, output_hidden_states=True).hidden_states[-1]
        visual = grown.model.multi_modal_projector(features).flatten(0, 1)
        words = _token_codes(tokenizer, len(table))
        text, seen, truth = _normed(table), _normed(visual), targets.flatten(0, 1).float()
        room = _quiet_directions(table, visual, len(WORDS))
        scale = table.norm(dim=-1).median()
        bos = torch.zeros(len(table)).index_fill_(0, torch.tensor(tokenizer.bos_token_id), 1.0)
        spoken = torch.tensor(sorted({i for ask in questions for i in tokenizer(ask)["input_ids"]}))
        _wire_gathering(language.layers[0], text, seen, spoken, words, room, scale)
        probe = _wire_look_up(language.layers[1], text, seen, truth, words, room, bos, scale)
    return grown, _probe_accuracy(seen @ probe, truth)


def insert_layer(model, at: int):
    """The model with a layer before layer ``at`` of its language model that adds nothing yet."""
    from copy import deepcopy

    from transformers import LlavaForConditionalGeneration

    def moved(name: str) -> str:
        before, mark, after = name.partition("language_model.layers.")
        number, _, rest = after.partition(".")
        up = bool(mark) and int(number) >= at
        return f"{before}{mark}{int(number) + up}.{rest}" if mark else name

    config = deepcopy(model.config)
    config.text_config.num_hidden_layers += 1
    grown = LlavaForConditionalGeneration(config).float()
    state = {moved(name): weight.float() for name, weight in model.state_dict().items()}
    missing = grown.load_state_dict(state, strict=False).missing_keys
    assert all(f".layers.{at}." in name for name in missing), missing
    layer = grown.model.language_model.layers[at]
    for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
        torch.nn.init.zeros_(projection.weight)
    return grown.eval()


def _normed(x):
    return x / x.pow(2).mean(-1, keepdim=True).add(1e-5).sqrt()


def _token_codes(tokenizer, n: int):
    """float ``(n, len(WORDS))``: 1 where a token is a word, alone or in the plural."""
    out = torch.zeros(n, len(WORDS))
    for k, word in enumerate(WORDS):
        for form in (word, f"{word}s"):
            for text in (f" {form}", form):
                ids = tokenizer(text, add_special_tokens=False)["input_ids"]
                if len(ids) == 1:
                    out[ids[0], k] = 1
    return out


def _codes(seed: int = 0, steps: int = 400):
    """Unit vectors for the words, as far from each other as the slow pairs allow: ``(n, 14)``."""
    noise = torch.Generator().manual_seed(seed)
    codes = torch.randn(len(WORDS), 2 * (15 - FIRST_PAIR), generator=noise)
    with torch.enable_grad():
        codes.requires_grad_(True)
        descent = torch.optim.Adam([codes], lr=0.02)
        for _ in range(steps):
            unit = F.normalize(codes, dim=-1)
            close = (unit @ unit.T - torch.eye(len(WORDS))).pow(6).sum()
            descent.zero_grad()
            close.backward()
            descent.step()
    return F.normalize(codes.detach(), dim=-1)


def _fit(inputs, outputs, weights, ridge: float = 1e-2):
    """Weighted least squares without an intercept: ``inputs @ result`` is about ``outputs``."""
    weighted = inputs * weights[:, None]
    gram = weighted.T @ inputs
    gram += ridge * gram.diagonal().mean() * torch.eye(len(gram))
    return torch.linalg.solve(gram, weighted.T @ outputs)


def _separate(these, *those, steps: int = 100):
    """A direction in which the mean of ``these`` is 1 and all of ``those`` lie below 0, as far as
    they can: logistic regression, every group weighing the same."""
    inputs = torch.cat([these, *those])
    sign = -torch.ones(len(inputs))
    sign[:len(these)] = 1
    weight = torch.cat([torch.full((len(part),), 1 / len(part)) for part in (these, *those)])
    direction = torch.zeros(inputs.shape[1], requires_grad=True)
    offset = torch.zeros(1, requires_grad=True)
    descent = torch.optim.LBFGS([direction, offset], max_iter=steps, line_search_fn="strong_wolfe")

    def loss():
        descent.zero_grad()
        margin = sign * (inputs @ direction + offset)
        total = (weight * F.softplus(2 - margin)).sum() + 1e-3 * direction.square().sum()
        total.backward()
        return total

    with torch.enable_grad():
        descent.step(loss)
    direction = direction.detach()
    return direction / (these @ direction).mean()


def _quiet_directions(table, visual, n: int):
    """``n`` orthonormal directions, ``(width, n)``, in which embeddings hardly differ from zero."""
    both = torch.cat([table / table.norm(dim=-1).median(),
                      visual[::8] / visual.norm(dim=-1).median()])
    return torch.linalg.eigh(both.T @ both)[1][:, :n].contiguous()


def _wire_gathering(layer, text, seen, spoken, words, room, scale) -> None:
    """Head 0 looks at content words and writes which they are into ``room``."""
    attention, content = layer.self_attn, words.sum(-1)
    dim, half = attention.head_dim, attention.head_dim // 2
    plain = spoken[content[spoken] == 0]
    key = _separate(text[content > 0], text[plain], text[content == 0], seen)
    value = _fit(text, words, 1 + 60 * content)
    pairs = range(10, half)
    size = (GATHER * dim**0.5 / len(pairs)) ** 0.5
    for projection in (attention.q_proj, attention.k_proj):
        projection.weight[:dim] = 0
        projection.bias[:dim] = 0
    for pair in pairs:
        attention.q_proj.bias[pair] = size
        attention.k_proj.weight[pair] = size * key
    attention.v_proj.weight[:dim] = 0
    attention.v_proj.bias[:dim] = 0
    attention.v_proj.weight[:len(WORDS)] = value.T
    attention.o_proj.weight[:, :len(WORDS)] = NOTED * scale * room


def _visual_probe(text, seen, truth, words):
    """``(width, len(WORDS))``: 1 on average where a visual token shows a word, 0 on text."""
    weights = torch.cat([0.2 + truth.amax(-1), 0.5 + 20 * words.sum(-1)])
    probe = _fit(torch.cat([seen, text]), torch.cat([truth, torch.zeros_like(words)]), weights, 1e-3)
    return probe / ((seen @ probe) * truth).sum(0) * truth.sum(0)


def _start_probe(text, seen, bos):
    """``(width,)``: 1 on the token that starts every text, 0 elsewhere."""
    some = seen[::16]
    weights = torch.cat([1 + 500 * bos, torch.ones(len(some))])
    wanted = torch.cat([bos, torch.zeros(len(some))])
    return _fit(torch.cat([text, some]), wanted[:, None], weights)[:, 0]


def _wire_look_up(layer, text, seen, truth, words, room, bos, scale):
    """Every head looks at the visual tokens whose words are in ``room`` and hands on a part of them."""
    attention, width = layer.self_attn, room.shape[0]
    dim = attention.head_dim
    probe, start = _visual_probe(text, seen, truth, words), _start_probe(text, seen, bos)
    noise = torch.Generator().manual_seed(1)
    read, write = (torch.linalg.qr(torch.randn(width, width, generator=noise))[0] for _ in range(2))
    for head in range(attention.q_proj.out_features // dim):
        codes, at = _codes(head), slice(head * dim, (head + 1) * dim)
        query = codes.T @ room.T * width**-0.5 / NOTED  # what is normed has length sqrt(width)
        _compare(attention, at, query, codes.T @ probe.T, NOTHING_FITS * start)
        attention.v_proj.weight[at] = read[at]
        attention.v_proj.bias[at] = 0
    attention.o_proj.weight.copy_(HANDED_ON * scale * width**-0.5 * write)
    return probe


def look_up_gain(attention) -> float:
    """Size of the look-up's queries and of its keys."""
    return (SHARPNESS * attention.head_dim**0.5) ** 0.5


def write_look_up(attention, probe) -> None:
    """Let the keys of every head of the look-up read ``probe``, ``(width, len(WORDS))``."""
    dim, half, gain = attention.head_dim, attention.head_dim // 2, look_up_gain(attention)
    for head in range(attention.k_proj.out_features // dim):
        key = gain * _codes(head).T @ probe.T
        first = head * dim + FIRST_PAIR
        n = half - 1 - FIRST_PAIR
        attention.k_proj.weight[first:first + n] = key[0::2]
        attention.k_proj.weight[first + half:first + half + n] = key[1::2]


def _compare(attention, at: slice, query, key, always) -> None:
    """Let a head's logits be `SHARPNESS` times ``query . key`` at `DISTANCE` tokens, plus ``always``.

    Args:
        query, key: ``(14, width)``, two rows to a rotary pair from `FIRST_PAIR` on.
        always: ``(width,)``, a key that every query likes, in the last pair.
    """
    half, gain = attention.head_dim // 2, look_up_gain(attention)
    for projection in (attention.q_proj, attention.k_proj):
        projection.weight[at] = 0
        projection.bias[at] = 0
    match_in_pairs(attention, at, query, key, FIRST_PAIR, DISTANCE, gain)
    attention.q_proj.bias[at.start + half - 1] = gain
    attention.k_proj.weight[at.start + half - 1] = gain * always


def match_in_pairs(attention, at: slice, query, key, first: int, distance: float, gain: float) -> None:
    """Write what is compared into a head's slow rotary pairs, but for the last.

    Args:
        at: the head's rows of the projections.
        query, key: two directions, ``(width,)`` each, to a pair; queries are turned back by the angle
            of ``distance`` tokens, so that they meet the keys there.
        first: number of the first pair.
        gain: size of both queries and keys.
    """
    half = attention.head_dim // 2
    theta = attention.config.rope_parameters["rope_theta"]
    for k, pair in enumerate(range(first, half - 1)):
        angle = torch.tensor(distance * theta ** (-pair / half))
        one, other = query[2 * k], query[2 * k + 1]
        i, j = at.start + pair, at.start + half + pair
        attention.q_proj.weight[i] = gain * (angle.cos() * one + angle.sin() * other)
        attention.q_proj.weight[j] = gain * (angle.cos() * other - angle.sin() * one)
        attention.k_proj.weight[i], attention.k_proj.weight[j] = gain * key[2 * k], gain * key[2 * k + 1]


def _probe_accuracy(said, truth) -> dict[str, float]:
    scores, at = {}, 0
    shows = truth.amax(-1) > 0
    for name, words in (("category", CATEGORIES), ("color", COLORS), ("size", SIZES)):
        kind = slice(at, at + len(words))
        first = said[shows][:, kind].argmax(-1, keepdim=True)
        scores[name] = truth[shows][:, kind].gather(-1, first).mean().item()
        at = kind.stop
    return scores


PHRASES = {"color": (False, True, False), "category": (False, False, True),
           "size": (True, False, False), "color, category": (False, True, True),
           "size, color, category": (True, True, True)}
"""Kinds of phrase -> which of size, colour and category it names."""


@torch.no_grad()
def looks_at(backbone, words: str, n: int = 64, split: str = "val") -> dict:
    """Where the heads of the second layer look when the answer to a box question begins.

    Args:
        backbone: the embedded `t4s_helpers.model.backbones.Backbone`, without an adapter.
        words: a key of `PHRASES`.
        n: scenes with at least two objects, one of which the phrase alone describes.

    Returns:
        ``words``, ``n``, and mean shares of attention: ``target`` (visual tokens that the object
        covers by a tenth), ``others`` (those of other objects), ``right`` (how often the target has
        more than any other object).
    """
    model = backbone.model
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")  # the only one that hands out its weights
    rows = [_look(backbone, scene, k, phrase) for scene, k, phrase in _described(words, n, split)]
    model.set_attn_implementation(before)
    target, others, right = (sum(part) / len(rows) for part in zip(*rows))
    return {"words": words, "n": len(rows), "target": target, "others": others, "right": right}


def _described(words: str, n: int, split: str):
    from ...data.expressions import Description
    from ...data.scenes import make_scene

    found, index = [], 0
    while len(found) < n:
        scene = make_scene(split, index)
        index += 1
        for k, thing in enumerate(scene.objects if len(scene.objects) > 1 else ()):
            phrase = Description(*(word if named else None for word, named in zip(
                (thing.size, thing.color, thing.category), PHRASES[words])))
            if phrase.of(scene) == (k,):
                found.append((scene, k, f"the {phrase}"))
                break
    return found


def _look(backbone, scene, k: int, phrase: str) -> tuple[float, float, bool]:
    """Attention on the target and on other objects, and whether the target has the most."""
    from ...data.prompts import Turn, question

    inputs = backbone.encoder.prompt([Turn(question("box", [phrase]), ())], scene.image)
    out = backbone.model(**inputs.to(backbone.model.device), output_attentions=True)
    at = (inputs["input_ids"][0] == backbone.processor.image_token_id).nonzero()[:, 0]
    looks = out.attentions[1][0, :, -1].mean(0).float().cpu()[at.cpu()]
    side = int(len(at) ** 0.5)
    covers = [torch.tensor(_pooled(thing.mask, side).ravel() > 0.1) for thing in scene.objects]
    each = [looks[cover].sum().item() for cover in covers]
    rest = torch.stack([c for j, c in enumerate(covers) if j != k]).any(0) & ~covers[k]
    return each[k], looks[rest].sum().item(), each[k] > max(e for j, e in enumerate(each) if j != k)


def _pooled(mask, side: int):
    step = len(mask) // side
    return mask.reshape(side, step, side, step).mean((1, 3))


def grow(start: Path, out: Path, n: int = 300, seed: int = 0) -> dict[str, float]:
    """Add matching to the base in ``start`` with ``n`` training scenes; see `add_matching`.

    ``seed`` draws what is not wired: the other heads of the first layer and both layers' MLPs.
    """
    import numpy as np
    from transformers import AutoModelForImageTextToText, AutoProcessor, set_seed

    from ...data.scenes import make_scene
    from .alignment import by_visual_token, word_targets
    from .dense import render_with_targets
    from .language import scene_turn
    from .tower import collate

    set_seed(seed)
    processor = AutoProcessor.from_pretrained(start)
    model = AutoModelForImageTextToText.from_pretrained(start, dtype=torch.float32)
    batch = collate([render_with_targets(index) for index in range(n)])
    shown = word_targets(by_visual_token(batch["targets"])[:, :3])[..., 1:]
    rng = np.random.default_rng(0)
    asked = [scene_turn(rng, make_scene("train", index)).question for index in range(n)]
    chat = "".join(processor.tokenizer.all_special_tokens)
    grown, accuracy = add_matching(model, processor.tokenizer, batch["pixel_values"], shown,
                                   [chat, *asked])
    grown.to(torch.bfloat16).save_pretrained(out / "final")
    processor.save_pretrained(out / "final")
    return accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--start", type=Path, required=True, help="a finished base")
    parser.add_argument("--out", type=Path, default=Path("checkpoints/matched"))
    args = parser.parse_args()
    print(grow(args.start, args.out))


if __name__ == "__main__":
    main()
