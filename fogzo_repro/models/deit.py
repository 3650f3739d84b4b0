"""DeiT-Tiny and -Small by timm (RECIPES B.4): class token, learned positions, pre-norm."""

from __future__ import annotations

from typing import Any

from torch import nn

from fogzo_repro.models.drop_path import share_drop_path
from fogzo_repro.models.prefix import EndOfPrefix

SMALL_IMAGE = 64  # images below this many pixels a side get `small_patch_size`


def build_deit(config: Any, *, image_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Build from the `model` section; `drop_path` rises linearly over the blocks."""
    from timm.models.vision_transformer import VisionTransformer

    channels, size, _ = image_shape
    model = VisionTransformer(
        img_size=size,
        patch_size=config.patch_size if size >= SMALL_IMAGE else config.small_patch_size,
        in_chans=channels,
        num_classes=classes,
        embed_dim=config.heads * config.head_dim,
        depth=config.depth,
        num_heads=config.heads,
        drop_path_rate=config.drop_path,
    )
    share_drop_path(model)
    model.norm_pre = EndOfPrefix(model.norm_pre, (model.patch_embed,))  # what the blocks take
    return model
