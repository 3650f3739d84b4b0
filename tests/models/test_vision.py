"""The vision networks are torchvision's and timm's, and are what RECIPES A and B.4 count."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fogzo_repro.models import build_model

PHOTO = (3, 224, 224)


def resnet(depth: int, width: int = 64) -> Any:
    return SimpleNamespace(name=f"resnet{depth}", depth=depth, width=width, first_last=[])


def deit(name: str, heads: int, head_dim: int = 64, depth: int = 12) -> Any:
    return SimpleNamespace(
        name=name, heads=heads, head_dim=head_dim, depth=depth, patch_size=16, small_patch_size=4,
        drop_path=0.1, first_last=[],
    )  # fmt: skip


def count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("config", "image_shape", "classes", "parameters"),
    [
        (resnet(18), PHOTO, 1000, 11_689_512),
        (resnet(50), PHOTO, 1000, 25_557_032),
        (deit("deit_tiny", 3), PHOTO, 1000, 5_717_416),
        (deit("deit_small", 6), PHOTO, 1000, 22_050_664),
        (deit("deit_tiny", 3), (1, 28, 28), 10, 5_353_738),
        # 49 * 64 * 2 fewer in the stem, 513 * 990 fewer in fc
        (resnet(18), (1, 28, 28), 10, 11_689_512 - 2 * 3136 - 990 * 513),
    ],
    ids=["resnet18", "resnet50", "deit_tiny", "deit_small", "deit_tiny-mnist", "resnet18-mnist"],
)
def test_parameter_counts_are_the_published_ones(
    config: Any, image_shape: Any, classes: int, parameters: int
) -> None:
    assert count(build_model(config, image_shape=image_shape, classes=classes)) == parameters


def test_resnet18_is_torchvisions_with_the_same_seed() -> None:
    from torchvision.models import resnet18

    torch.manual_seed(3)
    ours = build_model(resnet(18), image_shape=(3, 64, 64), classes=100)
    torch.manual_seed(3)
    theirs = resnet18(weights=None, num_classes=100)
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(ours.eval()(x), theirs.eval()(x))


def test_resnet50_gives_torchvisions_logits_for_the_same_weights() -> None:
    from torchvision.models import resnet50

    ours = build_model(resnet(50), image_shape=(3, 64, 64), classes=10)
    theirs = resnet50(weights=None, num_classes=10)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(ours.eval()(x), theirs.eval()(x))


def test_deit_gives_timms_logits_for_the_same_weights() -> None:
    import timm

    ours = build_model(deit("deit_tiny", 3), image_shape=(3, 224, 224), classes=10)
    theirs = timm.create_model(
        "deit_tiny_patch16_224", pretrained=False, num_classes=10, drop_path_rate=0.1
    )
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(1, 3, 224, 224)
    assert torch.equal(ours.eval()(x), theirs.eval()(x))


def test_drop_path_rises_linearly_to_a_tenth() -> None:
    model: Any = build_model(deit("deit_tiny", 3, 8), image_shape=(1, 28, 28), classes=10)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in model.blocks]
    assert rates == pytest.approx([0.1 * k / 11 for k in range(12)])


def test_an_eighth_of_the_width_keeps_every_stage_of_the_resnet() -> None:
    model: Any = build_model(resnet(50, 8), image_shape=(3, 64, 64), classes=10)
    assert [model.conv1.out_channels, model.fc.in_features] == [8, 256]
    stages = (model.layer1, model.layer2, model.layer3, model.layer4)
    assert [stage[0].conv1.out_channels for stage in stages] == [8, 16, 32, 64]
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 10)
