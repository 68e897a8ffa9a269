"""Every family of backbones in miniature: the real classes, made on the spot from small configs.

A folder of each is what ``from_pretrained`` reads: model, processor, tokenizer and a chat template
in the shape of the family's own (wording and special tokens of its dialect, our code).
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import torch
import transformers as t
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from t4s_helpers.data.mixtures import SceneMixture

WIDTH = 64
"""NF4's block: a narrower layer is refused by bitsandbytes' bfloat16 kernels for processors."""
PATCH = 14
SIDE = 56

TEXT = dict(hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, max_position_embeddings=2048)
VISION = dict(hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=2, num_attention_heads=2)

PARTS = ("{% for p in m['content'] %}{% if p['type'] == 'image' %}IMAGE{% else %}{{ p['text'] }}"
         "{% endif %}{% endfor %}")
CHATML = ("{% for m in messages %}<|im_start|>{{ m['role'] }}\n" + PARTS + "<|im_end|>\n{% endfor %}"
          "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
USER = ("{% for m in messages %}{% if m['role'] == 'user' %}USER: " + PARTS + " ASSISTANT:"
        "{% else %} " + PARTS + "</s>{% endif %}{% endfor %}")
DEEPSEEK = ("{% for m in messages %}{% if m['role'] == 'user' %}User: " + PARTS + "\n\n"
            "{% else %}Assistant: " + PARTS + "</s>{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}Assistant:{% endif %}")
SMOL = ("<|im_start|>{% for m in messages %}{{ m['role'] | capitalize }}: " + PARTS +
        "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}")


def tokenizer(template: str, image: str, eos: str, extra=(), **named):
    """A byte-level BPE trained on the spot, with a family's special tokens and template."""
    scenes = SceneMixture(20)
    texts = [f"{turn.question}\n{turn.text}" for k in range(20) for turn in scenes.turns(k)]
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = list(dict.fromkeys(["<pad>", "<s>", eos, *extra, *named.values()]))
    raw.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=500, special_tokens=special, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return t.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token=eos,
        extra_special_tokens=named, additional_special_tokens=list(extra),
        chat_template=template.replace("IMAGE", image), clean_up_tokenization_spaces=False)


def text(tok, kind: str = "llama", **more) -> dict:
    return {**TEXT, "model_type": kind, "vocab_size": len(tok), "pad_token_id": tok.pad_token_id,
            "bos_token_id": tok.bos_token_id, "eos_token_id": tok.eos_token_id, **more}


def llava():
    tok = tokenizer(USER, "<image>\n", "</s>", image_token="<image>")
    config = t.LlavaConfig(
        vision_config=t.CLIPVisionConfig(**VISION, image_size=SIDE, patch_size=PATCH,
                                         projection_dim=WIDTH).to_dict(),
        text_config=text(tok), image_token_index=tok.image_token_id, vision_feature_layer=-2)
    images = t.CLIPImageProcessor(size={"shortest_edge": SIDE},
                                  crop_size={"height": SIDE, "width": SIDE})
    return t.LlavaForConditionalGeneration(config), t.LlavaProcessor(
        images, tok, patch_size=PATCH, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=tok.chat_template)


def deepseek_vl(hybrid: bool = False):
    tok = tokenizer(DEEPSEEK, "<image_placeholder>", "</s>", image_token="<image_placeholder>")
    kind, side, patch, towers, sizes = "DeepseekVL", SIDE, PATCH, {}, {}
    if hybrid:  # two towers, at two resolutions
        kind, side, patch, sizes = "DeepseekVLHybrid", 32, 8, {"high_res_size": {"height": 128, "width": 128}}
        towers["high_res_vision_config"] = {
            "model_type": "sam_vision_model", "hidden_size": 16, "num_hidden_layers": 2,
            "num_attention_heads": 2, "mlp_dim": 24, "output_channels": 16, "image_size": 128,
            "patch_size": 32, "window_size": 2, "global_attn_indexes": [1]}
    config = getattr(t, f"{kind}Config")(
        vision_config={**VISION, "model_type": "siglip_vision_model", "image_size": side,
                       "patch_size": patch, "vision_use_head": False},
        text_config=text(tok), image_token_id=tok.image_token_id, **towers)
    images = getattr(t, f"{kind}ImageProcessor")(size={"height": side, "width": side}, **sizes)
    return getattr(t, f"{kind}ForConditionalGeneration")(config), getattr(t, f"{kind}Processor")(
        images, tok, chat_template=tok.chat_template, num_image_tokens=16)


def internvl(language: str = "qwen2", **more):
    tok = tokenizer(CHATML, "<IMG_CONTEXT>\n", "<|im_end|>", extra=("<|im_start|>",),
                    start_image_token="<img>", end_image_token="</img>",
                    context_image_token="<IMG_CONTEXT>", video_token="<video>")
    config = t.InternVLConfig(
        vision_config={**VISION, "image_size": [SIDE, SIDE], "patch_size": [PATCH, PATCH]},
        text_config=text(tok, language, **more), image_token_id=tok.context_image_token_id,
        image_seq_length=4)
    images = t.GotOcr2ImageProcessor(size={"height": SIDE, "width": SIDE}, crop_to_patches=True,
                                     max_patches=3)
    return t.InternVLForConditionalGeneration(config), t.InternVLProcessor(
        images, tok, t.InternVLVideoProcessor(size={"height": SIDE, "width": SIDE}),
        image_seq_length=4, chat_template=tok.chat_template)


def qwen(kind: str, patch: int, language: str, tower: dict, rope: dict, tied: bool = False, **more):
    names = ("image_token", "video_token", "vision_start_token", "vision_end_token")
    special = dict(zip(names, ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")))
    tok = tokenizer(CHATML, "<|vision_start|><|image_pad|><|vision_end|>", "<|im_end|>",
                    extra=("<|im_start|>",), **special)
    config = getattr(t, f"{kind}Config")(
        vision_config=dict(depth=2, hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_heads=2,
                           patch_size=patch, out_hidden_size=WIDTH, **tower),
        text_config=text(tok, language, rope_parameters={
            "rope_type": "default", "rope_theta": 10000.0, **rope}, **more), tie_word_embeddings=tied,
        **{f"{name}_id": getattr(tok, f"{name}_id") for name in names})
    cell = 2 * patch
    images = t.Qwen2VLImageProcessor(patch_size=patch, min_pixels=cell**2, max_pixels=4 * cell**2)
    videos = getattr(t, "Qwen3VLVideoProcessor" if kind == "Qwen3VL" else "Qwen2VLVideoProcessor")()
    return getattr(t, f"{kind}ForConditionalGeneration")(config), getattr(t, f"{kind}Processor")(
        images, tok, videos, chat_template=tok.chat_template)


qwen2_5_vl = functools.partial(
    qwen, "Qwen2_5_VL", PATCH, "qwen2_5_vl_text", dict(fullatt_block_indexes=[1]),
    dict(mrope_section=[4, 6, 6]))
qwen3_vl = functools.partial(
    qwen, "Qwen3VL", 16, "qwen3_vl_text", dict(num_position_embeddings=16, deepstack_visual_indexes=[0]),
    dict(mrope_section=[6, 5, 5], mrope_interleaved=True), head_dim=32)


def smolvlm(kind: str = "SmolVLM", tiles: int = 1):
    """Pictures are shown whole, and cut into at most ``tiles`` x ``tiles`` squares besides."""
    tok = tokenizer(SMOL, "<image>", "<end_of_utterance>", image_token="<image>",
                    extra=("<|im_start|>", *(f"<row_{r}_col_{c}>" for r in (1, 2) for c in (1, 2))),
                    fake_image_token="<fake_token_around_image>", global_image_token="<global-img>",
                    end_of_utterance_token="<end_of_utterance>")
    config = getattr(t, f"{kind}Config")(
        vision_config={**VISION, "image_size": SIDE, "patch_size": PATCH},
        text_config=text(tok), image_token_id=tok.image_token_id, scale_factor=2)
    images = getattr(t, f"{kind}ImageProcessor")(size={"longest_edge": tiles * SIDE},
                                                 max_image_size={"longest_edge": SIDE})
    videos = [t.SmolVLMVideoProcessor()] if kind == "SmolVLM" else []
    return getattr(t, f"{kind}ForConditionalGeneration")(config), getattr(t, f"{kind}Processor")(
        images, tok, *videos, image_seq_len=4, chat_template=tok.chat_template)


FAMILIES = {
    "llava-1.5-7b": llava, "deepseek-vl-1.3b": deepseek_vl,
    "deepseek-vl-7b": functools.partial(deepseek_vl, hybrid=True), "internvl3.5-8b": internvl,
    "internvl3.5-1b": functools.partial(internvl, "qwen3", head_dim=32),
    "qwen2.5-vl-7b": qwen2_5_vl, "qwen3-vl-8b": qwen3_vl,
    "qwen3-vl-2b": functools.partial(qwen3_vl, tied=True), "smolvlm2-2.2b": smolvlm,
    "smolvlm-256m": functools.partial(smolvlm, "Idefics3", tiles=2),
}
"""Name in the table of backbones -> builder of the family in miniature: one for every kind of model,
language model and head that the table holds."""


@functools.cache
def folder(name: str) -> Path:
    """A saved, untrained miniature of a backbone's family; made once per test run."""
    place = Path(tempfile.mkdtemp(prefix="t4s-family-"))
    torch.manual_seed(0)
    model, processor = FAMILIES[name]()
    model.save_pretrained(place)
    processor.save_pretrained(place)
    return place
