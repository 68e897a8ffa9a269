"""MobileSAM: Segment Anything with a TinyViT image encoder, put together from two libraries.

The prompt encoder and the mask decoder are ``segment_anything``'s own classes. The image encoder
is ``timm``'s TinyViT (5 M parameters) with the last stage left at a stride of 16, so that an image
of 1024 x 1024 pixels gives the 64 x 64 embedding that SAM's decoder expects, followed by SAM's
neck. The published weights fit after their keys are renamed.

Sources: Zhang et al., "Faster Segment Anything" (2023), MobileSAM; Wu et al., "TinyViT" (2022);
Kirillov et al., "Segment Anything" (2023).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import timm
import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.modeling.common import LayerNorm2d
from torch import nn

EMBED_DIM = 256
"""Channels of SAM's image embedding and of its prompt embeddings."""

STRIDE = 16
"""Input pixels along one side of a cell of the image embedding."""

# Published key -> key of TinyViTEncoder. The published network closes a stage with the
# convolution that leads to the next one; timm opens the next stage with it.
_RENAMES = (
    (re.compile(r"^patch_embed\.seq\.0\."), lambda m: "backbone.patch_embed.conv1."),
    (re.compile(r"^patch_embed\.seq\.2\."), lambda m: "backbone.patch_embed.conv2."),
    (
        re.compile(r"^layers\.(\d+)\.downsample\."),
        lambda m: f"backbone.stages.{int(m[1]) + 1}.downsample.",
    ),
    (re.compile(r"^layers\.(\d+)\."), lambda m: f"backbone.stages.{m[1]}."),
)

# Left over from training TinyViT as a classifier; the embedding does not pass through them.
_CLASSIFIER = ("norm_head.", "head.")


class TinyViTEncoder(nn.Module):
    """MobileSAM's image encoder.

    Parameters
    ----------
    img_size : int
        Side of the square input in pixels, a multiple of 16. The published weights were trained
        at 1024. ``SamPredictor`` reads this attribute.

    Raises
    ------
    ValueError
        ``img_size`` is not a positive multiple of 16.
    """

    def __init__(self, img_size: int = 1024) -> None:
        super().__init__()
        if img_size < STRIDE or img_size % STRIDE:
            raise ValueError(f"img_size must be a positive multiple of {STRIDE}, got {img_size}.")
        self.img_size = img_size
        # Windows of 7, 7, 14, 7 cells come with timm's name of the 224-pixel model; they do not
        # depend on the input's size, which is padded to whole windows.
        self.backbone = timm.create_model("tiny_vit_5m_224", pretrained=False, num_classes=0)
        self.backbone.head = nn.Identity()
        # SAM's decoder wants a stride of 16, a classifier has 32: the last merge keeps the size.
        self.backbone.stages[-1].downsample.conv2.conv.stride = (1, 1)
        self.neck = nn.Sequential(
            nn.Conv2d(self.backbone.num_features, EMBED_DIM, kernel_size=1, bias=False),
            LayerNorm2d(EMBED_DIM),
            nn.Conv2d(EMBED_DIM, EMBED_DIM, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(EMBED_DIM),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Embed normalised images.

        Parameters
        ----------
        x : float tensor (B, 3, img_size, img_size)
            RGB, normalised and padded by ``Sam.preprocess``.

        Returns
        -------
        float tensor (B, 256, img_size / 16, img_size / 16), rows before columns.
        """
        return self.neck(self.backbone.forward_features(x))


def rename_keys(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Published image-encoder keys (without ``image_encoder.``) as :class:`TinyViTEncoder`'s.

    The classifier's left-over keys are dropped; any other key that is not known passes through,
    so that a strict load names it.

    >>> sorted(rename_keys({"layers.0.downsample.conv1.c.weight": 0, "head.bias": 0}))
    ['backbone.stages.1.downsample.conv1.conv.weight']
    """
    renamed = {}
    for key, value in state.items():
        if key.startswith(_CLASSIFIER):
            continue
        renamed[_rename(key)] = value
    return renamed


def _rename(key: str) -> str:
    for pattern, new in _RENAMES:
        key, hits = pattern.subn(new, key)
        if hits:
            break
    # A convolution inside a convolution + batch-norm pair: `c` there, `conv` in timm.
    return key.replace(".c.weight", ".conv.weight")


def build_mobile_sam(checkpoint: str | Path | None = None, img_size: int = 1024) -> Sam:
    """MobileSAM in evaluation mode on the CPU, for ``segment_anything.SamPredictor``.

    Parameters
    ----------
    checkpoint : path or None
        The published ``mobile_sam.pt``; None leaves random weights (for tests).
    img_size : int
        Side of SAM's square input frame in pixels; 1024 for the published weights.

    Raises
    ------
    RuntimeError
        The file does not hold exactly the keys and shapes of MobileSAM.
    """
    cells = img_size // STRIDE
    sam = Sam(
        image_encoder=TinyViTEncoder(img_size),
        prompt_encoder=PromptEncoder(
            embed_dim=EMBED_DIM,
            image_embedding_size=(cells, cells),
            input_image_size=(img_size, img_size),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            transformer_dim=EMBED_DIM,
            transformer=TwoWayTransformer(
                depth=2, embedding_dim=EMBED_DIM, num_heads=8, mlp_dim=2048
            ),
        ),
    )
    if checkpoint is not None:
        load_published(sam, torch.load(checkpoint, map_location="cpu", weights_only=True))
    return sam.eval()


def load_published(sam: Sam, state: Mapping[str, torch.Tensor]) -> None:
    """Load MobileSAM's published state dict strictly: every key is used, none is missing."""
    prefix = "image_encoder."
    encoder = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
    rest = {k: v for k, v in state.items() if not k.startswith(prefix)}
    renamed = {prefix + k: v for k, v in rename_keys(encoder).items()}
    sam.load_state_dict(rest | renamed, strict=True)
