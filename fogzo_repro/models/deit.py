"""DeiT-Tiny and -Small by timm (RECIPES B.4): class token, learned positions, pre-norm."""

from __future__ import annotations

from torch import Tensor, nn

from fogzo_repro.models.steered import EndOfPrefix, share_drop_path

AT_ONCE = 3  # blocks in a compiled region: at its borders a sum and the next norm are two kernels


def build(
    image_shape: tuple[int, int, int],
    classes: int,
    depth: int,
    heads: int,
    head_dim: int,
    patch_size: int,
    drop_path: float,
) -> nn.Module:
    """Build the network for square images; drop path's rate rises from 0 to that of the last block.

    Raises:
        ValueError: where the patches do not make up the image.
    """
    from timm.models.vision_transformer import VisionTransformer

    channels, size, _ = image_shape
    if size % patch_size:
        raise ValueError(
            f"model.patch_size={patch_size} does not divide the {size} px of the images; "
            "images of 28 or 32 px take model.patch_size=4"
        )

    class Deit(VisionTransformer):
        """timm's network, its forward pass in three parts."""

        regions = ("stem", "some_blocks", "classify")  # of training.compilation

        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            """Map images (B, C, H, W) to logits (B, classes)."""
            x = self.stem(x)
            for first in range(0, len(self.blocks), AT_ONCE):
                x = self.some_blocks(tuple(self.blocks)[first : first + AT_ONCE], x)
            return self.classify(x)

        def stem(self, x: Tensor) -> Tensor:
            """Map images to what the blocks take (B, tokens, width)."""
            return self.norm_pre(self._pos_embed(self.patch_embed(x)))

        def some_blocks(self, blocks: tuple[nn.Module, ...], x: Tensor) -> Tensor:
            """Map (B, tokens, width) to the same shape by one block after another."""
            for block in blocks:
                x = block(x)
            return x

        def classify(self, x: Tensor) -> Tensor:
            """Map what the blocks give to logits."""
            return self.forward_head(self.norm(x))

    model = Deit(
        img_size=size,
        patch_size=patch_size,
        in_chans=channels,
        num_classes=classes,
        embed_dim=heads * head_dim,
        depth=depth,
        num_heads=heads,
        drop_path_rate=drop_path,
    )
    share_drop_path(model)
    model.norm_pre = EndOfPrefix(model.norm_pre, (model.patch_embed,))  # what the blocks take
    return model
