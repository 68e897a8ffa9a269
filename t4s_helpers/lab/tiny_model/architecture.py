"""Shape of the embedded model: a LLaVA of a SegFormer encoder and a small Llama.

Why these parts: SegFormer's overlapping patch embeddings and depth-wise convolutions learn
shapes from little data, and at 128 pixels its third stage gives 16x16 features, one per cell of
the default grid; a last convolution lays 2x2 of them side by side, as InternVL's pixel shuffle
does, so that the language model reads 64 tokens. LLaVA's two-layer connector and the Llama are the native
classes, so the embedded model takes the same code paths as the 7B models.
"""

from __future__ import annotations

IMAGE_SIZE = 128
N_VISUAL = 64
"""Visual tokens per image: 8 rows of 8, each a block of 2x2 cells of the 16x16 grid."""

IMAGE_MEAN, IMAGE_STD = 0.5, 0.25
TOWER_WIDTH = 192


def vision_config(merge: bool = True):
    """Configuration of the vision tower, a ``transformers.SegformerConfig``.

    Args:
        merge: with the last stage, which lays the features of 2x2 cells side by side in one of 64
            tokens; without it the tower ends in 256 tokens, one per cell, as in pre-training.
    """
    from transformers import SegformerConfig

    stages = dict(
        depths=[1, 2, 5, 0], hidden_sizes=[48, 96, TOWER_WIDTH, 4 * TOWER_WIDTH],
        patch_sizes=[7, 3, 3, 3], strides=[4, 2, 1, 2], sr_ratios=[8, 4, 2, 1],
        num_attention_heads=[1, 2, 3, 1], mlp_ratios=[2, 3, 4, 1],
    )
    used = 4 if merge else 3
    return SegformerConfig(
        num_encoder_blocks=used, reshape_last_stage=False, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, drop_path_rate=0.0,
        hidden_size=stages["hidden_sizes"][used - 1],  # LLaVA's connector asks for this name
        **{name: values[:used] for name, values in stages.items()},
    )


def text_config(vocab_size: int, pad: int, bos: int, eos: int):
    """Configuration of the language model, a ``transformers.LlamaConfig``."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=vocab_size, hidden_size=192, intermediate_size=512, num_hidden_layers=6,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=4096,
        rms_norm_eps=1e-5, rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True, pad_token_id=pad, bos_token_id=bos, eos_token_id=eos,
    )


def build_model(tokenizer, tower_state: dict | None = None):
    """An untrained ``LlavaForConditionalGeneration``, with a pre-trained tower if one is given.

    Args:
        tokenizer: the trained tokenizer; it sets the vocabulary and the special ids.
        tower_state: tensors of `t4s_helpers.lab.tiny_model.tower.DenseTower` (``tower.*``, ``heads.*``).
    """
    import torch
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    config = LlavaConfig(
        vision_config=vision_config(),
        text_config=text_config(len(tokenizer), tokenizer.pad_token_id, tokenizer.bos_token_id,
                                tokenizer.eos_token_id),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), image_seq_length=N_VISUAL,
        vision_feature_layer=-1, vision_feature_select_strategy="full", tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    tower = model.model.vision_tower
    with torch.no_grad():
        merge_cells(tower.stages[-1].patch_embeddings.proj)
    if tower_state is not None:
        own = {k.removeprefix("tower."): v for k, v in tower_state.items() if k[:6] == "tower."}
        missing, unexpected = tower.load_state_dict(own, strict=False)
        if unexpected or any(not key.startswith("stages.3.") for key in missing):
            raise ValueError(f"This is not a pre-trained tower: {missing[:3]} {unexpected[:3]} "
                             "do not fit; make one with python -m t4s_helpers.lab.tiny_model.tower.")
    return model


def merge_cells(conv) -> None:
    """Set a 3x3, stride 2 convolution to lay 2x2 cells side by side, unchanged.

    The kernel is centred on the upper left cell of each block, so its first row and column, which
    reach into the blocks before, start at zero.
    """
    conv.weight.zero_()
    conv.bias.zero_()
    for part, (row, col) in zip(conv.weight.chunk(4), ((1, 1), (1, 2), (2, 1), (2, 2))):
        part[:, :, row, col].fill_diagonal_(1.0)


def build_processor(tokenizer):
    """The native ``LlavaProcessor`` for the embedded model: images are squared to 128 pixels."""
    from transformers import CLIPImageProcessor, LlavaProcessor

    images = CLIPImageProcessor(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, do_center_crop=False,
        image_mean=[IMAGE_MEAN] * 3, image_std=[IMAGE_STD] * 3,
    )
    return LlavaProcessor(
        image_processor=images, tokenizer=tokenizer, patch_size=16,
        vision_feature_select_strategy="full", chat_template=tokenizer.chat_template,
    )
