"""The multimodal language models that the workbook can fine-tune, by name.

Every backbone is a native transformers class (no remote code) with its own processor, in 4 bits if
asked. ``embedded`` ships inside the package and runs anywhere; the others come from the model hub
and need a GPU.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig

from ..files import ASSETS
from .chat import ConversationEncoder
from .weights import from_hub

EMBEDDED = ASSETS / "embedded"
ADAPTERS = ASSETS / "adapters"

_LLAMA_LINEAR = "q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj"

# On import, bitsandbytes looks for a faster 4-bit product for CPUs in the optional package `kernels`, and
# would warn in every notebook that it is missing. It has a product of its own.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(
    lambda record: "gemm_4bit_forward" not in str(record.msg))


class BackboneError(RuntimeError):
    """A backbone or adapter that cannot be loaded; the message says what to do."""


@dataclass(frozen=True)
class Spec:
    """One line of the table of backbones.

    Attributes:
        name: its name in the workbook.
        source: hub id, or a folder for the embedded model.
        model_class: the native transformers class.
        paper: the backbone of the paper that it stands for.
        lora_targets: regular expression of the linear layers of connector and language model.
        keep: regular expressions of the modules that stay unquantized.
        memory_gb: GPU memory for QLoRA at batch 4 and 1,024 tokens, a quarter of them answers, roughly; 0
            for the CPU. Each token of an answer takes 14 bytes for each word of the vocabulary.
        billions: of parameters, all parts together.
        kept: of these, billions that NF4 leaves in 16 bits: tower, embeddings and head.
        licence: of the weights.
        n_image_tokens: tokens per image where that number is fixed and images need no processor.
        revision: commit of the hub repository, or a branch; of another ``source`` ``main``.
        squeeze: scale pictures to the tower's square instead of cropping out the middle: the model
            never sees what a crop cuts off, yet the descriptor's grid covers the whole picture. The
            other families pad to a square, cut tiles, or keep the aspect by themselves.
    """

    name: str
    source: str
    model_class: str
    paper: str
    lora_targets: str
    memory_gb: int
    billions: float
    kept: float
    licence: str
    keep: tuple[str, ...] = (r".*vision_tower", "lm_head")
    n_image_tokens: int | None = None
    revision: str = "main"
    squeeze: bool = False

    def weights_gb(self, quantize: str | None = "nf4") -> float:
        """GB of 2**30 bytes: NF4 with double quantization takes 4.13 bits a weight, all else 16."""
        in_nf4 = self.billions - self.kept if quantize else 0
        return (2 * (self.billions - in_nf4) + 4.13 / 8 * in_nf4) * 1e9 / 2**30


def _targets(language: str, connector: str) -> str:
    return rf".*({language}\..*({_LLAMA_LINEAR})|{connector})"


_LLAVA = _targets("language_model", r"multi_modal_projector\.linear_[12]")
_QWEN3 = _targets("language_model", r"visual\.(merger|deepstack_merger_list\.\d+)\.linear_fc[12]")
_SMOL = _targets("text_model", r"connector\.modality_projection\.proj")
_SMALL = "none: a small one for a small GPU"

# The commits stand in public projects on GitHub that ran these weights, beside the hub id or in paths such as
# models--OWNER--NAME/snapshots/COMMIT. Of the native DeepSeek-VL none was found: the newest counts.
BACKBONES = {spec.name: spec for spec in (
    Spec("embedded", str(EMBEDDED), "LlavaForConditionalGeneration", "none: made here for the CPU",
         _LLAVA, 0, 0.0083, 0.0055, "Apache-2.0", n_image_tokens=64),
    Spec("llava-1.5-7b", "llava-hf/llava-1.5-7b-hf", "LlavaForConditionalGeneration",
         "LLaVA-1.5 7B", _LLAVA, 13, 7.1, 0.57, "Llama 2", squeeze=True,
         revision="b234b804b114d9e37bb655e11cbbb5f5e971b7a9"),
    Spec("llava-1.5-13b", "llava-hf/llava-1.5-13b-hf", "LlavaForConditionalGeneration",
         "LLaVA-1.5 13B", _LLAVA, 21, 13.4, 0.63, "Llama 2", squeeze=True,
         revision="5dda2880bda009266dda7c4baff660b95ca64540"),
    Spec("deepseek-vl-1.3b", "deepseek-community/deepseek-vl-1.3b-chat",
         "DeepseekVLForConditionalGeneration", "DeepSeek-VL 1.3B",
         _targets("language_model", r"aligner\.linear[12]"), 6, 2.0, 0.74, "DeepSeek model licence",
         keep=(r".*vision_model", "lm_head")),
    Spec("deepseek-vl-7b", "deepseek-community/deepseek-vl-7b-chat",
         "DeepseekVLHybridForConditionalGeneration", "DeepSeek-VL 7B",
         _targets("language_model", r"aligner\.(vision_proj|high_res_vision_proj|proj)"), 12, 7.3, 1.25,
         "DeepSeek model licence", keep=(r".*vision_model", r".*high_res_vision", "lm_head")),
    Spec("internvl3-8b", "OpenGVLab/InternVL3-8B-hf", "InternVLForConditionalGeneration",
         "InternVL2 8B (native successor)", _LLAVA, 13, 7.9, 1.39, "Qwen licence",
         revision="259a3b64a14623c0ec91a045cb43f7c5af5fa6af"),
    Spec("internvl3.5-8b", "OpenGVLab/InternVL3_5-8B-HF", "InternVLForConditionalGeneration",
         "InternVL2 8B (native successor)", _LLAVA, 14, 8.5, 1.55, "Apache-2.0",
         revision="741a7d03020411e666c6109218ab71e08151ef86"),
    Spec("qwen2.5-vl-7b", "Qwen/Qwen2.5-VL-7B-Instruct", "Qwen2_5_VLForConditionalGeneration",
         "Qwen-VL 7B (native successor)", _targets("language_model", r"visual\.merger\.mlp\.[02]"),
         14, 8.3, 1.77, "Apache-2.0", keep=(r".*visual", "lm_head"),
         revision="cc594898137f460bfe9f0759e9844b3ce807cfb5"),
    Spec("qwen3-vl-8b", "Qwen/Qwen3-VL-8B-Instruct", "Qwen3VLForConditionalGeneration",
         "Qwen-VL 7B (native successor)", _QWEN3, 15, 8.8, 1.82, "Apache-2.0", keep=(r".*visual", "lm_head"),
         revision="0c351dd01ed87e9c1b53cbc748cba10e6187ff3b"),
    Spec("qwen3-vl-4b", "Qwen/Qwen3-VL-4B-Instruct", "Qwen3VLForConditionalGeneration", _SMALL,
         _QWEN3, 10, 4.4, 0.8, "Apache-2.0", keep=(r".*visual", "lm_head"),
         revision="ebb281ec70b05090aa6165b016eac8ec08e71b17"),
    Spec("qwen3-vl-2b", "Qwen/Qwen3-VL-2B-Instruct", "Qwen3VLForConditionalGeneration", _SMALL,
         _QWEN3, 7, 2.1, 0.72, "Apache-2.0", keep=(r".*visual", "lm_head"),
         revision="89644892e4d85e24eaac8bacfd4f463576704203"),
    Spec("internvl3.5-4b", "OpenGVLab/InternVL3_5-4B-HF", "InternVLForConditionalGeneration", _SMALL,
         _LLAVA, 10, 4.7, 1.08, "Apache-2.0",
         revision="6bd4487402110ef9889ba50eb7aefeb302526fed"),
    Spec("internvl3.5-2b", "OpenGVLab/InternVL3_5-2B-HF", "InternVLForConditionalGeneration", _SMALL,
         _LLAVA, 7, 2.3, 0.93, "Apache-2.0",
         revision="3f301ffcf3dcbb47893afae6650ea3e78d96fb6d"),
    Spec("internvl3.5-1b", "OpenGVLab/InternVL3_5-1B-HF", "InternVLForConditionalGeneration", _SMALL,
         _LLAVA, 5, 1.1, 0.62, "Apache-2.0",
         revision="9191dbccf312b537016f041b25d61c72e7c5c9f3"),
    Spec("smolvlm2-2.2b", "HuggingFaceTB/SmolVLM2-2.2B-Instruct", "SmolVLMForConditionalGeneration", _SMALL,
         _SMOL, 6, 2.2, 0.62, "Apache-2.0", keep=(r".*vision_model", "lm_head"),
         revision="482adb537c021c86670beed01cd58990d01e72e4"),
    Spec("smolvlm-500m", "HuggingFaceTB/SmolVLM-500M-Instruct", "Idefics3ForConditionalGeneration", _SMALL,
         _SMOL, 3, 0.51, 0.18, "Apache-2.0", keep=(r".*vision_model", "lm_head"),
         revision="a7da5b986cb59b408707209984f360a5f4ad7e47"),
    Spec("smolvlm-256m", "HuggingFaceTB/SmolVLM-256M-Instruct", "Idefics3ForConditionalGeneration", _SMALL,
         _SMOL, 2, 0.26, 0.14, "Apache-2.0", keep=(r".*vision_model", "lm_head"),
         revision="7e3e67edbbed1bf9888184d9df282b700a323964"),
)}

NOT_NATIVE = {"internvl2": "internvl3.5-8b", "qwen-vl": "qwen3-vl-8b"}
"""Backbones of the paper whose repositories bring their own code -> the nearest with a native class."""


@dataclass
class Backbone:
    """A loaded model with its processor and the line of the table that it came from."""

    spec: Spec
    model: Any
    processor: Any

    @property
    def encoder(self) -> ConversationEncoder:
        """What turns conversations into token ids for this backbone."""
        return ConversationEncoder(self.processor, self.spec.n_image_tokens,
                                   dtype=getattr(self.model, "dtype", None))


def multiplies_in_bf16() -> bool:
    """Whether this machine's GPU, or else its processor, multiplies bfloat16 in hardware.

    Training on a processor that does is 4-5 times faster with it; on another, 3 times slower.
    """
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def half() -> torch.dtype:
    """The 16-bit type of weights: float16 on a GPU without bfloat16, else bfloat16."""
    return torch.float16 if torch.cuda.is_available() and not multiplies_in_bf16() else torch.bfloat16


def quantization(keep: Sequence[str]) -> Any:
    """NF4 with double quantization (QLoRA), except for the modules that ``keep`` names.

    Computed in the 16-bit type that the hardware multiplies in; in float32 on a CPU without one.
    """
    compute = half() if torch.cuda.is_available() or multiplies_in_bf16() else torch.float32
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute, llm_int8_skip_modules=list(keep),
        # FSDP shards tensors of one dtype only, so the 4-bit numbers are stored under that of the rest.
        bnb_4bit_quant_storage=compute if sharded() else torch.uint8,
    )


def sharded() -> bool:
    """Whether ``accelerate launch`` started this process with FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true")


def free_memory() -> tuple[float, str]:
    """GB of 2**30 bytes that are free, and where: on the GPU, or in RAM where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0] / 2**30, "on the GPU"
    return psutil.virtual_memory().available / 2**30, "in RAM (no GPU)"


def listing() -> str:
    """The table of backbones as text, with the memory that each needs and what fits on this machine."""
    free, where = free_memory()
    form = "{:<17}{:<18}{:<41}{:>6}{:>8}{:>10}  {}"
    lines = [form.format("name", "class", "hub id", "B", "NF4 GB", "train GB", "here")]
    for s in BACKBONES.values():
        nf4 = s.weights_gb()
        here = "trains" if max(s.memory_gb, nf4) <= free else "answers" if nf4 <= free else "-"
        lines.append(form.format(
            s.name, s.model_class.removesuffix("ForConditionalGeneration"),
            "(ships with the package)" if s.source == str(EMBEDDED) else s.source,
            f"{s.billions:.3g}", f"{nf4:.1f}", s.memory_gb or "<1", here))
    return "\n".join([*lines, "NF4 GB: 4-bit weights alone; train GB: QLoRA at batch 4 and 1,024 tokens, "
                      f"roughly; here: with NF4 in the {free:.1f} GB free {where}."])


def check_memory(spec: Spec, quantize: str | None, free_gb: float) -> None:
    """Refuse a backbone whose weights do not fit, before hours of download.

    Args:
        free_gb: free GPU memory, in GB of 2**30 bytes.

    Raises:
        BackboneError: says the need, the free amount and the setting to change.
    """
    needs = {s.name: s.weights_gb(quantize) for s in BACKBONES.values()}
    if needs[spec.name] > free_gb:
        fits = ", ".join(name for name, need in needs.items() if need <= free_gb)
        advice = "free the GPU" if quantize else "load it with quantize='nf4', free the GPU"
        raise BackboneError(
            f"{spec.name!r} needs {needs[spec.name]:.1f} GB of GPU memory for its weights alone (about "
            f"{spec.memory_gb} GB to train with quantize='nf4' at batch 4), but {free_gb:.1f} GB are free: "
            f"{advice} (nvidia-smi lists who uses it), or choose one that fits: {fits}.")


def find(name: str, source: str | Path | None = None) -> Spec:
    """The `Spec` called ``name``; of another ``source``, where one is given.

    Raises:
        BackboneError: no such name; the message lists those that there are, or names the nearest.
    """
    if name in BACKBONES:
        spec = BACKBONES[name]
        return replace(spec, source=str(source), revision="main") if source else spec
    for start, nearest in NOT_NATIVE.items():
        if name.lower().startswith(start):
            raise BackboneError(f"{name!r} has no class in transformers, and the workbook does not run "
                                f"its repository's code; the nearest that works is {nearest!r}.")
    raise BackboneError(f"No backbone is called {name!r}: choose {', '.join(BACKBONES)}.")


def load_backbone(name: str = "embedded", quantize: str | None = None,
                  adapter: str | Path | None = None, source: str | Path | None = None) -> Backbone:
    """Load a backbone by name.

    Args:
        name: a key of `BACKBONES`.
        quantize: ``"nf4"`` for 4-bit weights in connector and language model, or ``None``. What is
            not quantized has 16 bits (32 in the embedded model, whose size does not matter).
        adapter: folder of a peft adapter, or the name of one that ships in `ADAPTERS`.
        source: another folder or hub id to load the same kind of model from.

    Returns:
        a `Backbone` in evaluation mode, on the GPU if there is one.

    Raises:
        BackboneError: an unknown name or precision, weights or adapter not found, too little GPU
            memory, or a tokenizer without the image token.
    """
    spec = find(name, source)
    if quantize not in (None, "nf4"):
        raise BackboneError(f"Unknown precision {quantize!r}: choose 'nf4' or None.")
    if torch.cuda.is_available():
        check_memory(spec, quantize, free_memory()[0])
    options: dict[str, Any] = {"dtype": torch.float32 if name == "embedded" else half()}
    if torch.cuda.is_available() and not sharded():  # FSDP itself spreads the weights
        options["device_map"] = {"": int(os.environ.get("LOCAL_RANK", 0))}
    if quantize:
        options["quantization_config"] = quantization(spec.keep)
    processor = load_processor(spec)
    model = _pretrained(AutoModelForImageTextToText, spec, **options)
    backbone = Backbone(spec, model.eval(), processor)
    return with_adapter(backbone, adapter) if adapter else backbone


def load_processor(spec: Spec):
    """The processor of a backbone, without its weights; errors as in `load_backbone`."""
    processor = _pretrained(AutoProcessor, spec)
    check_image_token(processor, spec.source)
    processor.tokenizer.padding_side = "left"
    if spec.squeeze:
        images = processor.image_processor
        images.do_center_crop = False
        images.size = {side: images.crop_size[side] for side in ("height", "width")}
    return processor


def _pretrained(kind: Any, spec: Spec, **options: Any) -> Any:
    # A folder has no revisions, and transformers then ignores the name.
    return from_hub(kind, repr(spec.name), spec.source, "check the network and the hub login, or give a "
                    "folder as source.", BackboneError, revision=spec.revision, **options)


def check_image_token(processor, place: str) -> None:
    """Refuse, by `BackboneError`, a tokenizer that would spell the image token letter by letter."""
    token = getattr(processor, "image_token", None)
    if token is None or processor.tokenizer.encode(token, add_special_tokens=False) != [
            processor.tokenizer.convert_tokens_to_ids(token)]:
        raise BackboneError(
            f"The tokenizer in {place} does not know its image token {token!r}, so pictures would become "
            "plain text: take the tokenizer that belongs to the weights, or add the token with "
            f"tokenizer.add_special_tokens({{'additional_special_tokens': [{token!r}]}}) and train it.")


@contextlib.contextmanager
def peft_calls() -> Iterator[None]:
    """Around peft's wrapping of a model: silences a warning about a property that transformers renamed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def with_adapter(backbone: Backbone, adapter: str | Path) -> Backbone:
    """The backbone with a trained LoRA adapter on top; errors as in `open_adapter`."""
    return Backbone(backbone.spec, open_adapter(backbone, adapter).eval(), backbone.processor)


def open_adapter(backbone: Backbone, adapter: str | Path, trainable: bool = False):
    """The peft model of a backbone and a saved LoRA adapter.

    Args:
        adapter: folder of a peft adapter, or the name of one that ships in `ADAPTERS`.
        trainable: whether its matrices are to be trained further.

    Raises:
        BackboneError: there is no adapter in that folder, or it was trained on another base.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from peft.utils import load_peft_weights

    folder = ADAPTERS / adapter if (ADAPTERS / str(adapter)).is_dir() else Path(adapter)
    if not (folder / "adapter_config.json").exists():
        shipped = sorted(p.name for p in ADAPTERS.glob("*"))
        raise BackboneError(f"No adapter lies in {folder}: give the folder that holds "
                            f"adapter_config.json, or one of {shipped}.")
    misfit = f"The adapter in {folder} does not fit {backbone.spec.name!r}, it was trained on"
    recorded = json.loads((folder / "adapter_config.json").read_text()).get("base_model_name_or_path")
    base = next((s.name for s in BACKBONES.values() if recorded in (s.name, s.source)), None)
    if base not in (None, backbone.spec.name):
        raise BackboneError(f"{misfit} {base!r}: load that backbone instead.")
    try:
        with peft_calls():
            model = PeftModel.from_pretrained(backbone.model, str(folder), is_trainable=trainable)
    except (RuntimeError, ValueError) as error:
        raise BackboneError(f"{misfit} another base ({str(error)[:160]}).") from error
    saved = set(load_peft_weights(str(folder), device="cpu"))
    # By default, peft would ask the hub whether the base, called "embedded", has other embeddings.
    unmatched = set(get_peft_model_state_dict(model, save_embedding_layers=False)) ^ saved
    if unmatched:  # peft only warns of them, and the model would answer like the base
        raise BackboneError(f"{misfit} another base: {len(unmatched)} of its matrices have no "
                            f"counterpart, {min(unmatched)!r} among them.")
    return model
