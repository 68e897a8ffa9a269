"""The embedded model's own byte-level BPE tokenizer, trained on the spot and committed.

Any text can be written with it (256 byte tokens), run lengths (a space and ``*1`` to ``*64``) and the
numbers of boxes are single tokens as a rule, and no token crosses the border of two descriptor pieces.
"""

from __future__ import annotations

SPECIAL = ("<pad>", "<bos>", "<eos>", "<image>", "<user>", "<assistant>")
TAGS = ("<seg>", "</seg>")

PIECE_BORDERS = r" \*\d+|[|\n:]| ?\d+| ?\p{L}+|\s+| ?[^\s\p{L}\d|]+"
"""Text is cut here before merging, so that pieces never grow together."""

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<user>' if m['role'] == 'user' else '<assistant>' }}"
    "{% for part in m['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}"
    "{% endfor %}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def train_tokenizer(vocab_size: int = 1536, lines: int = 2500, seed: int = 0):
    """Train and wrap the tokenizer; returns a ``PreTrainedTokenizerFast``."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from .words import corpus

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PIECE_BORDERS), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(TAGS), special_tokens=list(SPECIAL), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    raw.train_from_iterator(corpus(lines, seed), trainer)
    raw.add_tokens([AddedToken(tag, normalized=False) for tag in TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>",
        additional_special_tokens=["<image>", "<user>", "<assistant>"],
        chat_template=CHAT_TEMPLATE, clean_up_tokenization_spaces=False, padding_side="left",
        model_max_length=4096,
    )
