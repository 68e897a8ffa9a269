"""From exchanges to token ids: chat templates, the label mask, batches.

A backbone's processor turns a conversation into text by its chat template and the text into token
ids. `ConversationEncoder` adds what training and constrained decoding need.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..files import ASSETS

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from ..data.prompts import Turn

IGNORE_INDEX = -100
"""Label of a token on which no loss is taken (PyTorch's convention)."""

PER_TOKEN = ("mm_token_type_ids", "token_type_ids")
"""Inputs that a processor may give for every token beside its id; padded with 0. Without the first,
in which 0 means text, the Qwen families silently place visual tokens as if they were text."""


class ConversationError(ValueError):
    """A conversation that a backbone cannot be trained on; the message says why."""


class TokenizerError(ValueError):
    """A tokenizer that cannot be had; the message names it and says what to give instead."""


def messages(turns: Sequence[Turn], image: bool = True, open_ended: bool = False) -> list[dict]:
    """Exchanges as chat messages for ``processor.apply_chat_template``.

    Args:
        turns: `t4s_helpers.data.prompts.Turn` objects in order.
        image: whether the first question carries the picture.
        open_ended: leave out the last answer, for generation.
    """
    chat = []
    for k, turn in enumerate(turns):
        content = [{"type": "text", "text": turn.question}]
        if image and k == 0:
            content.insert(0, {"type": "image"})
        chat.append({"role": "user", "content": content})
        chat.append({"role": "assistant", "content": [{"type": "text", "text": turn.text}]})
    return chat[:-1] if open_ended else chat


class ConversationEncoder:
    """Turns exchanges into token ids and a label mask: only answers and their end are trained.

    The ids of an answer are the concatenation of the ids of its pieces (see
    `t4s_helpers.codec.encodings`), so that decoding can force pieces as they were trained.

    Args:
        processor: the backbone's processor, with a chat template.
        n_image_tokens: set where images take a fixed number of tokens: the text then goes through
            the tokenizer alone (fast), and images are prepared by the caller.
        max_length: longest conversation in tokens.
        dtype: of the processor's image tensors; not every model converts them itself.
    """

    def __init__(self, processor, n_image_tokens: int | None = None, max_length: int = 4096,
                 dtype=None):
        self.processor, self.n_image_tokens, self.dtype = processor, n_image_tokens, dtype
        self.tokenizer, self.max_length = processor.tokenizer, max_length
        self._pieces: dict[str, list[int]] = {}
        self._surpluses: dict[bool, str] = {}
        self._special = set(self.tokenizer.all_special_ids)

    def piece_ids(self, piece: str) -> list[int]:
        """Token ids of one piece of an answer, as it stands after other text."""
        if piece not in self._pieces:
            # Behind an anchor, because some tokenizers put a space before the start of a text.
            anchor = self._plain_ids("\n")
            ids = self._plain_ids("\n" + piece)
            fits = ids[:len(anchor)] == anchor
            self._pieces[piece] = ids[len(anchor):] if fits else self._plain_ids(piece)
        return self._pieces[piece]

    def _plain_ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def prompt_text(self, turns: Sequence[Turn], image: bool = True) -> str:
        """The chat up to the point where the answer to the last question starts."""
        return self.processor.apply_chat_template(
            messages(turns, image, open_ended=True), add_generation_prompt=True, tokenize=False)

    def prompt(self, turns: Sequence[Turn], image: np.ndarray | None = None) -> dict:
        """Model inputs for generating the last answer.

        Args:
            turns: exchanges in order; the last answer is left out.
            image: uint8 ``(H, W, 3)`` RGB, or ``None`` for text alone.

        Returns:
            the processor's output, tensors of batch size 1.
        """
        return self._process(self.prompt_text(turns, image is not None), image)

    def __call__(self, turns: Sequence[Turn], image: np.ndarray | None = None,
                 has_image: bool | None = None) -> dict:
        """Encode a conversation.

        Args:
            turns: exchanges in order; the image belongs to the first question.
            image: uint8 ``(H, W, 3)``; with ``n_image_tokens`` it may be left to the caller.
            has_image: whether the first question shows an image; by default, if one is given.

        Returns:
            ``input_ids`` and ``labels`` (lists of the same length, `IGNORE_INDEX` where not
            trained), and the processor's image tensors, if it was used.

        Raises:
            ConversationError: longer than ``max_length``, or a chat template that does not keep
                the answer's text.
        """
        has_image = image is not None if has_image is None else has_image
        before = self._around_answers(turns, has_image)
        extra, ids = self._first_ids(before[0], image, has_image)
        labels = [IGNORE_INDEX] * len(ids)
        for turn, after in zip(turns, before[1:]):
            said = [i for piece in turn.answer for i in self.piece_ids(piece)]
            closing = self._plain_ids(after)
            end = next((k for k, i in enumerate(closing, 1) if i in self._special), None)
            if end is None:  # a template without an end mark: the model must still learn to stop
                closing, end = [self.tokenizer.eos_token_id, *closing], 1
            ids += said + closing
            labels += said + closing[:end] + [IGNORE_INDEX] * (len(closing) - end)
        if len(ids) > self.max_length:
            raise ConversationError(
                f"A conversation has {len(ids)} tokens, more than the context of {self.max_length}, and is "
                "not cut, because half a descriptor would teach a broken format: use a smaller grid, fewer "
                "labels or exchanges, or the encoding 'rrle'.")
        for name in set(extra) & set(PER_TOKEN):
            first = extra[name].flatten().tolist()
            extra[name] = first + [0] * (len(ids) - len(first))
        return {"input_ids": ids, "labels": labels, **extra}

    def _around_answers(self, turns: Sequence[Turn], has_image: bool) -> list[str]:
        """The chat's text before, between and after the answers: ``len(turns) + 1`` strings."""
        marks = [f"\u2402{k}\u2403" for k in range(len(turns))]
        marked = [replace(turn, answer=(mark,)) for turn, mark in zip(turns, marks)]
        rest = self.processor.apply_chat_template(messages(marked, has_image), tokenize=False)
        parts = []
        for mark in marks:
            part, found, rest = rest.partition(mark)
            if not found:
                raise ConversationError("The chat template drops or reorders answers: give one that "
                                        "keeps assistant messages as they are.")
            parts.append(part)
        surplus = self._surplus(turns, has_image, parts[0])
        return [*(part.removesuffix(surplus) for part in parts), rest]

    def _surplus(self, turns: Sequence[Turn], has_image: bool, before: str) -> str:
        """White space that the template puts before an answer, but not when it asks for one.

        LLaVA-1.5's does. A model trained with it would later be asked in a way it never saw.
        """
        if has_image not in self._surpluses:  # a property of the template: found once
            more = before.removeprefix(self.prompt_text(turns[:1], has_image))
            self._surpluses[has_image] = more if more.isspace() else ""
        return self._surpluses[has_image]

    def _first_ids(self, text: str, image, has_image: bool) -> tuple[dict, list[int]]:
        if has_image and self.n_image_tokens is None:
            out = dict(self._process(text, image))
            out.pop("attention_mask", None)
            return out, out.pop("input_ids")[0].tolist()
        if has_image:
            token = self.processor.image_token
            text = text.replace(token, token * self.n_image_tokens)
        return {}, self.tokenizer(text, add_special_tokens=self.needs_bos(text))["input_ids"]

    def _process(self, text: str, image):
        out = self.processor(
            text=[text], images=None if image is None else [image], return_tensors="pt",
            add_special_tokens=self.needs_bos(text))
        return out if self.dtype is None else out.to(self.dtype)  # of pictures, not of ids

    def needs_bos(self, text: str) -> bool:
        """Whether the tokenizer must add its special tokens, the template having written none."""
        bos = self.tokenizer.bos_token
        return not (bos and text.startswith(bos))


# --- batches ----------------------------------------------------------------------------------------


def pad_batch(items: list[dict], processor) -> dict[str, Any]:
    """Encoded conversations -> tensors, padded on the right to the longest.

    Args:
        items: of `ConversationEncoder`, all with the same image inputs or none; or of `side_by_side`.
        processor: knows the padding token, and how pictures that are still pixels are normalised.

    Returns:
        ``input_ids``, ``attention_mask``, ``labels`` int64 ``(B, T)``, `PER_TOKEN` inputs padded
        with 0, and every image tensor concatenated along its first axis, with blank tiles where a family
        cuts pictures into unequal numbers of them along the second. Of items side by side,
        ``input_ids`` and image tensors of what they share, and ``groups``, see `group_exchanges`.
    """
    import torch

    length = max(len(item["input_ids"]) for item in items)

    def padded(name: str, fill: int):
        rows = [list(item.get(name, ())) for item in items]
        return torch.tensor([[*map(int, row), *[fill] * (length - len(row))] for row in rows])

    batch: dict[str, Any] = {"input_ids": padded("input_ids", processor.tokenizer.pad_token_id)}
    if all("exchanges" in item for item in items):
        batch["groups"] = group_exchanges(items, processor)
    else:
        batch["labels"] = padded("labels", IGNORE_INDEX)
        batch["attention_mask"] = torch.tensor(
            [[int(k < len(item["input_ids"])) for k in range(length)] for item in items])
    names = {name for item in items for name in item} - {*batch, "exchanges", "image"}
    for name in sorted(names):
        batch[name] = padded(name, 0) if name in PER_TOKEN else _concatenated(
            [torch.as_tensor(item[name]) for item in items if name in item])
    if pictures := [item["image"] for item in items if "image" in item]:
        towers = processor.image_processor
        batch["pixel_values"] = pixel_values(np.stack(pictures), towers.image_mean, towers.image_std)
    return batch


def _concatenated(tensors: list):
    """Along the first axis; zeros fill up the second, which SmolVLM's models take for no tile."""
    from torch import cat
    from torch.nn.functional import pad

    n = max(one.shape[1] for one in tensors)
    return cat([pad(one, (0, 0) * (one.ndim - 2) + (0, n - one.shape[1])) for one in tensors])


def group_exchanges(items: list[dict], processor, n: int = 3) -> list[dict[str, Any]]:
    """The exchanges of items side by side, in groups of like length, so that little is padding.

    Args:
        items: of `side_by_side`.
        n: groups, of about as many tokens each.

    Returns:
        for each group ``row`` and ``number``, int64 ``(N,)``: the item that an exchange belongs to, and its
        number there; and its ``input_ids`` and ``labels``, int64 ``(N, T)``.
    """
    import torch

    parts = [(row, number, ids, labels) for row, item in enumerate(items)
             for number, (ids, labels) in enumerate(item["exchanges"])]
    parts.sort(key=lambda part: len(part[2]))
    upto = np.cumsum([len(part[2]) for part in parts])
    group = np.ceil(n * upto / upto[-1])
    groups = []
    for k in np.unique(group):
        rows, numbers, *exchanges = zip(*(part for part, own in zip(parts, group) if own == k))
        batch = pad_batch([{"input_ids": ids, "labels": known} for ids, known in zip(*exchanges)], processor)
        groups.append({"row": torch.tensor(rows), "number": torch.tensor(numbers),
                       "input_ids": batch["input_ids"], "labels": batch["labels"]})
    return groups


def pixel_values(images: np.ndarray, mean: Sequence[float] | float, std: Sequence[float] | float):
    """uint8 ``(B, H, W, 3)`` of the tower's size -> float32 tensor ``(B, 3, H, W)``, normalised."""
    import torch

    pixels = torch.as_tensor(images).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
    return ((pixels - mean) / std).contiguous(memory_format=torch.contiguous_format)


def side_by_side(encode: ConversationEncoder, conversations: Sequence[Sequence[Turn]],
                 image: np.ndarray | None = None) -> dict[str, Any]:
    """Encode conversations about one picture so that one pass over it trains them all.

    Each is read behind the picture alone, as if there were no other: most answers about the same few
    objects could else be copied from earlier ones.

    Args:
        encode: made with ``n_image_tokens``.
        image: uint8 ``(H, W, 3)`` of the tower's size; ``None`` for text alone.

    Returns:
        ``input_ids``, the ids up to the end of the picture, the same for all; ``exchanges``, the ids and
        labels of what follows in each, int16, because thousands wait in memory; and the ``image``.
    """
    items = [encode(turns, has_image=image is not None) for turns in conversations]
    ids, mark = items[0]["input_ids"], encode.tokenizer.convert_tokens_to_ids(encode.processor.image_token)
    shared = 1 if image is None else len(ids) - ids[::-1].index(mark)
    exchanges = [tuple(np.asarray(item[name][shared:], np.int16) for name in ("input_ids", "labels"))
                 for item in items]
    out = {"input_ids": np.asarray(ids[:shared], np.int16), "exchanges": exchanges}
    return out if image is None else {**out, "image": image}


# --- tokenizers alone -------------------------------------------------------------------------------


def load_tokenizer(source: str | Path = "embedded") -> Tokenizer:
    """A tokenizer without its model, for counting what a text costs.

    Args:
        source: ``"embedded"``, a ``tokenizer.json``, a folder that holds one, or the id of a
            repository on the model hub (fetched, and cached by the hub's own library).

    Raises:
        TokenizerError: nothing usable there.
    """
    from tokenizers import Tokenizer

    place = ASSETS / "embedded" if source == "embedded" else Path(source).expanduser()
    file = place / "tokenizer.json" if place.is_dir() else place
    try:
        # Anything that is not on the disk is taken for a name on the hub.
        on_disk = file.is_file() or place.is_dir()
        return Tokenizer.from_file(str(file)) if on_disk else Tokenizer.from_pretrained(str(source))
    except Exception as error:  # the library raises plain Exception for every fault
        raise TokenizerError(f"There is no usable tokenizer at {str(source)!r} ({str(error)[:120]}): give a "
                             "tokenizer.json, a folder that holds one, or a hub repository's id.") from error


def count_tokens(tokenizer: Tokenizer, text: str) -> int:
    """Tokens of a text, without those that a tokenizer adds at its ends.

    >>> count_tokens(load_tokenizer("embedded"), "others *16")
    2
    """
    return len(tokenizer.encode(text, add_special_tokens=False).ids)
