"""MobileSAM: Segment Anything with a TinyViT image encoder, built from two libraries.

Prompt encoder, mask decoder and neck are ``segment_anything``'s own. The image encoder is ``timm``'s
TinyViT (5 M parameters) with a stride of 16 in place of 32, so that 1024 x 1024 pixels give the 64 x 64
embedding that SAM's decoder expects.

Sources: Zhang et al., "Faster Segment Anything" (2023); Wu et al., "TinyViT" (2022).
"""

from __future__ import annotations

import re

import timm
import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.modeling.common import LayerNorm2d
from torch import nn

EMBED_DIM = 256  # channels of SAM's image embedding and of its prompt embeddings
STRIDE = 16  # input pixels along one side of a cell of the image embedding


class TinyViTEncoder(nn.Module):
    """MobileSAM's image encoder for a square of ``img_size`` pixels, a positive multiple of 16."""

    def __init__(self, img_size: int = 1024) -> None:
        super().__init__()
        if img_size < STRIDE or img_size % STRIDE:
            raise ValueError(f"img_size must be a positive multiple of {STRIDE}, got {img_size}.")
        self.img_size = img_size  # read by ``SamPredictor``
        # timm's name speaks of 224 pixels; its windows do not depend on the input's size.
        self.backbone = timm.create_model("tiny_vit_5m_224", pretrained=False, num_classes=0)
        self.backbone.head = nn.Identity()
        # SAM's decoder needs a stride of 16, a classifier has 32: the last merge keeps the size.
        self.backbone.stages[-1].downsample.conv2.conv.stride = (1, 1)
        self.neck = nn.Sequential(
            nn.Conv2d(self.backbone.num_features, EMBED_DIM, kernel_size=1, bias=False),
            LayerNorm2d(EMBED_DIM),
            nn.Conv2d(EMBED_DIM, EMBED_DIM, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(EMBED_DIM),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalised RGB ``(B, 3, img_size, img_size)`` -> ``(B, 256, img_size / 16, img_size / 16)``."""
        return self.neck(self.backbone.forward_features(x))


def build_mobile_sam(img_size: int = 1024) -> Sam:
    """MobileSAM with random weights on the CPU, for ``segment_anything.SamPredictor``.

    Args:
        img_size: side of SAM's square input frame in pixels; 1024 for the published weights, whose
            names `renamed` turns into those of this model.
    """
    cells, transformer = img_size // STRIDE, TwoWayTransformer(2, EMBED_DIM, num_heads=8, mlp_dim=2048)
    return Sam(
        image_encoder=TinyViTEncoder(img_size),
        prompt_encoder=PromptEncoder(EMBED_DIM, (cells, cells), (img_size, img_size), mask_in_chans=16),
        mask_decoder=MaskDecoder(transformer_dim=EMBED_DIM, transformer=transformer),
    ).eval()


_NAMES = (
    # The published network closes a stage with the convolution that leads to the next one; timm opens
    # the next stage with it.
    (r"^(image_encoder\.)layers\.(\d+)\.downsample",
     lambda m: f"{m[1]}backbone.stages.{int(m[2]) + 1}.downsample"),
    (r"^(image_encoder\.)layers\.", r"\1backbone.stages."),
    (r"^(image_encoder\.)patch_embed\.seq\.0\.", r"\1backbone.patch_embed.conv1."),
    (r"^(image_encoder\.)patch_embed\.seq\.2\.", r"\1backbone.patch_embed.conv2."),
    # A convolution inside a pair of convolution and batch norm: `c` there, `conv` in timm.
    (r"^(image_encoder\..*)\.c\.weight$", r"\1.conv.weight"),
)


def renamed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """MobileSAM's published keys as those of `build_mobile_sam`; other keys stay, SAM's too.

    Dropped are the parts of a classifier that TinyViT was trained with.

    >>> renamed({"image_encoder.layers.0.downsample.conv1.c.weight": 0, "image_encoder.head.bias": 0})
    {'image_encoder.backbone.stages.1.downsample.conv1.conv.weight': 0}
    """
    dropped = ("image_encoder.head.", "image_encoder.norm_head.")
    state = {key: value for key, value in state.items() if not key.startswith(dropped)}
    for old, new in _NAMES:
        state = {re.sub(old, new, key): value for key, value in state.items()}
    return state
