"""The vision networks are torchvision's and timm's, and are what RECIPES A and B.4 count."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from fogzo_repro.models import deit, resnet
from fogzo_repro.models.steered import DropPath, share_drop_path

PHOTO = (3, 224, 224)
Build = Callable[[tuple[int, int, int], int], torch.nn.Module]


def build_resnet(depth: int, width: int = 64, stem: str = "imagenet") -> Build:
    return partial(resnet.build, depth=depth, width=width, stem=stem)


def build_deit(heads: int, head_dim: int = 64, patch_size: int = 16) -> Build:
    return partial(
        deit.build, depth=12, heads=heads, head_dim=head_dim, patch_size=patch_size, drop_path=0.1
    )


def count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "image_shape", "classes", "parameters"),
    [
        (build_resnet(18), PHOTO, 1000, 11_689_512),
        (build_resnet(50), PHOTO, 1000, 25_557_032),
        (build_deit(3), PHOTO, 1000, 5_717_416),
        (build_deit(6), PHOTO, 1000, 22_050_664),
        (build_deit(3, patch_size=4), (1, 28, 28), 10, 5_353_738),
        # 49 * 64 * 2 fewer in the stem, 513 * 990 fewer in fc
        (build_resnet(18), (1, 28, 28), 10, 11_689_512 - 2 * 3136 - 990 * 513),
        # 3 x 3 instead of 7 x 7: 40 * 64 * 3 fewer in the stem, 513 * 900 fewer in fc
        (build_resnet(18, stem="small"), (3, 32, 32), 100, 11_689_512 - 40 * 192 - 900 * 513),
    ],
    ids=["resnet18", "resnet50", "deit_tiny", "deit_small", "deit-mnist", "resnet-mnist", "cifar"],
)
def test_parameter_counts_are_the_published_ones(
    build: Build, image_shape: Any, classes: int, parameters: int
) -> None:
    assert count(build(image_shape, classes)) == parameters


def test_resnet18_is_torchvisions_with_the_same_seed() -> None:
    from torchvision.models import resnet18

    torch.manual_seed(3)
    ours = build_resnet(18)((3, 64, 64), 100)
    torch.manual_seed(3)
    theirs = resnet18(weights=None, num_classes=100)
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(ours.eval()(x), theirs.eval()(x))


def test_resnet50_gives_torchvisions_logits_for_the_same_weights() -> None:
    from torchvision.models import resnet50

    ours = build_resnet(50)((3, 64, 64), 10)
    theirs = resnet50(weights=None, num_classes=10)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(ours.eval()(x), theirs.eval()(x))


def test_deit_gives_timms_logits_for_the_same_weights() -> None:
    import timm

    ours = build_deit(3)(PHOTO, 10)
    theirs = timm.create_model(
        "deit_tiny_patch16_224", pretrained=False, num_classes=10, drop_path_rate=0.1
    )
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(1, 3, 224, 224)
    assert torch.equal(ours.eval()(x), theirs.eval()(x))


def test_drop_path_rises_linearly_to_a_tenth() -> None:
    model: Any = build_deit(3, 8, patch_size=4)((1, 28, 28), 10)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in model.blocks]
    assert rates == pytest.approx([0.1 * k / 11 for k in range(12)])


def test_an_eighth_of_the_width_keeps_every_stage_of_the_resnet() -> None:
    model: Any = build_resnet(50, 8)((3, 64, 64), 10)
    assert [model.conv1.out_channels, model.fc.in_features] == [8, 256]
    stages = (model.layer1, model.layer2, model.layer3, model.layer4)
    assert [stage[0].conv1.out_channels for stage in stages] == [8, 16, 32, 64]
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 10)


@pytest.mark.parametrize(
    ("stem", "side"), [("imagenet", 8), ("small", 32)], ids=["imagenet", "small"]
)
def test_the_stem_and_not_the_images_decide_how_many_pixels_are_left(stem: str, side: int) -> None:
    model: Any = build_resnet(18, 8, stem)((3, 32, 32), 10)
    seen: list[torch.Size] = []
    model.layer1.register_forward_hook(lambda layer, inputs, out: seen.append(out.shape))
    model(torch.randn(2, 3, 32, 32))
    assert seen == [(2, 8, side, side)]


def test_patches_that_do_not_make_up_the_image_are_refused() -> None:
    with pytest.raises(ValueError, match=r"model.patch_size=16 does not divide the 28 px"):
        build_deit(3)((1, 28, 28), 10)


def test_evaluation_is_the_identity_and_training_without_a_draw_is_refused():
    layer = DropPath(0.5)
    x = torch.randn(4, 2)
    assert torch.equal(layer.eval()(x), x)
    with pytest.raises(RuntimeError, match="draw the masks"):
        layer.train()(x)


def test_every_drop_path_of_a_timm_network_is_replaced():
    sizes = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2}
    model = VisionTransformer(**sizes, num_classes=3, drop_path_rate=0.1)
    share_drop_path(model)
    kinds = {type(m) for m in model.modules() if type(m).__name__ == "DropPath"}
    assert kinds == {DropPath}
    rates = [m.drop_prob for m in model.modules() if isinstance(m, DropPath)]
    assert rates == pytest.approx([0, 0, 0.05, 0.05, 0.1, 0.1])
