"""The multimodal language models that the workbook can fine-tune, by name.

Every backbone is a native transformers class (no remote code), loaded with its own processor, in
4 bits if asked. ``embedded`` ships inside the package and runs anywhere; the others come from the
model hub and want a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

ASSETS = Path(__file__).parent / "assets"
EMBEDDED = ASSETS / "embedded"
ADAPTERS = ASSETS / "adapters"

_LLAMA_LINEAR = "q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj"


class BackboneError(RuntimeError):
    """A backbone or adapter that cannot be loaded; the message says what to do."""


@dataclass(frozen=True)
class Spec:
    """One line of the table of backbones.

    Attributes:
        name: how the workbook calls it.
        source: hub id, or a folder for the embedded model.
        paper: the paper's backbone that it stands for.
        lora_targets: regular expression over module names: the linear layers of connector and
            language model, and nothing else.
        keep: regular expressions of module names that stay unquantized.
        memory_gb: GPU memory for QLoRA at batch 4, roughly; 0 for the CPU.
        licence: of the weights.
        n_image_tokens: tokens per image where that number is fixed and images need no processor.
    """

    name: str
    source: str
    paper: str
    lora_targets: str
    memory_gb: int
    licence: str
    keep: tuple[str, ...] = (r".*vision_tower", "lm_head")
    n_image_tokens: int | None = None


def _targets(language: str, connector: str) -> str:
    return rf".*({language}\..*({_LLAMA_LINEAR})|{connector})"


_LLAVA = _targets("language_model", r"multi_modal_projector\.linear_[12]")

BACKBONES = {spec.name: spec for spec in (
    Spec("embedded", str(EMBEDDED), "none: made here for the CPU", _LLAVA, 0, "Apache-2.0",
         n_image_tokens=64),
    Spec("llava-1.5-7b", "llava-hf/llava-1.5-7b-hf", "LLaVA-1.5 7B", _LLAVA, 14, "Llama 2"),
    Spec("llava-1.5-13b", "llava-hf/llava-1.5-13b-hf", "LLaVA-1.5 13B", _LLAVA, 22, "Llama 2"),
    Spec("deepseek-vl-1.3b", "deepseek-community/deepseek-vl-1.3b-chat", "DeepSeek-VL 1.3B",
         _targets("language_model", r"aligner\.linear[12]"), 6, "DeepSeek model licence",
         keep=(r".*vision_model", "lm_head")),
    Spec("internvl3-8b", "OpenGVLab/InternVL3-8B-hf", "InternVL2 8B (native successor)",
         _LLAVA, 16, "MIT, Qwen licence"),
    Spec("qwen2.5-vl-7b", "Qwen/Qwen2.5-VL-7B-Instruct", "Qwen-VL 7B (native successor)",
         _targets("language_model", r"visual\.merger\.mlp\.[02]"), 16, "Apache-2.0",
         keep=(r".*visual", "lm_head")),
)}


@dataclass
class Backbone:
    """A loaded model with its processor and the line of the table that it came from."""

    spec: Spec
    model: Any
    processor: Any

    @property
    def encoder(self):
        """The `t4s_helpers.training.ConversationEncoder` that fits this backbone."""
        from .training import ConversationEncoder

        return ConversationEncoder(self.processor, self.spec.n_image_tokens)


def quantization(keep) -> Any:
    """NF4 with double quantization and bfloat16 arithmetic (QLoRA), but for the parts ``keep``."""
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16, llm_int8_skip_modules=list(keep),
    )


def find(name: str) -> Spec:
    """The `Spec` called ``name``.

    Raises:
        BackboneError: no such name; the message lists those that there are.
    """
    if name not in BACKBONES:
        raise BackboneError(f"No backbone is called {name!r}: choose {', '.join(BACKBONES)}.")
    return BACKBONES[name]


def load_backbone(name: str = "embedded", quantize: str | None = None,
                  adapter: str | Path | None = None, source: str | Path | None = None) -> Backbone:
    """Load a backbone by name.

    Args:
        name: a key of `BACKBONES`.
        quantize: ``"nf4"`` for 4-bit weights in connector and language model, or ``None``. What is
            not quantized is bfloat16 (float32 in the embedded model, whose size does not matter).
        adapter: folder of a peft adapter, or the name of one that ships in `ADAPTERS`.
        source: another folder or hub id to load the same kind of model from.

    Returns:
        a `Backbone` in evaluation mode, on the GPU if there is one.

    Raises:
        BackboneError: an unknown name or precision, weights or adapter not found.
    """
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    spec = find(name)
    if quantize not in (None, "nf4"):
        raise BackboneError(f"Unknown precision {quantize!r}: choose 'nf4' or None.")
    options: dict[str, Any] = {"dtype": torch.float32 if name == "embedded" else torch.bfloat16}
    if quantize:
        options["quantization_config"] = quantization(spec.keep)
    if torch.cuda.is_available():
        options["device_map"] = "cuda"
    place = str(source or spec.source)
    try:
        processor = AutoProcessor.from_pretrained(place)
        model = AutoModelForImageTextToText.from_pretrained(place, **options)
    except (OSError, ValueError) as error:
        raise BackboneError(
            f"The weights of {name!r} could not be loaded from {place}: {str(error)[:200]} "
            "Check the network and the hub login, or give a folder as source."
        ) from error
    processor.tokenizer.padding_side = "left"
    backbone = Backbone(spec, model.eval(), processor)
    return with_adapter(backbone, adapter) if adapter else backbone


def with_adapter(backbone: Backbone, adapter: str | Path) -> Backbone:
    """The backbone with a trained LoRA adapter on top.

    Raises:
        BackboneError: there is no adapter in that folder, or it was trained on another base.
    """
    from peft import PeftModel

    folder = ADAPTERS / adapter if (ADAPTERS / str(adapter)).is_dir() else Path(adapter)
    if not (folder / "adapter_config.json").exists():
        shipped = sorted(p.name for p in ADAPTERS.glob("*")) if ADAPTERS.is_dir() else []
        raise BackboneError(f"No adapter lies in {folder}: give the folder that holds "
                            f"adapter_config.json, or one of {shipped}.")
    try:
        model = PeftModel.from_pretrained(backbone.model, str(folder))
    except (RuntimeError, ValueError) as error:
        raise BackboneError(f"The adapter in {folder} does not fit {backbone.spec.name!r}: it was "
                            f"trained on another base ({str(error)[:160]}).") from error
    return Backbone(backbone.spec, model.eval(), backbone.processor)
