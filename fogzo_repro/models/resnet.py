"""ResNet-18 and -50 by torchvision (RECIPES A): stride in the 3 x 3 convolution, fan-out init.

With 3 channels, width 64 and the stem of ImageNet the network is torchvision's own, random draws
included. The small stem, a 3 x 3 convolution of stride 1 without pooling, is the usual one for
images of 32 px; the large one would leave the first stage 8 x 8 pixels of them.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from fogzo_repro.models.steered import EndOfPrefix

FULL_WIDTH = 64


def build(
    image_shape: tuple[int, int, int], classes: int, depth: int, width: int, stem: str
) -> nn.Module:
    """Build the network; `width` is that of its first stage."""
    from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

    block: Any = BasicBlock if depth == 18 else Bottleneck
    layers = [2, 2, 2, 2] if depth == 18 else [3, 4, 6, 3]
    channels = image_shape[0]
    if width == FULL_WIDTH and channels == 3 and stem == "imagenet":
        return _with_prefix(ResNet(block, layers, num_classes=classes))

    class Resized(ResNet):
        """torchvision's network with other widths, input channels and stem."""

        def _make_layer(self, block: Any, planes: int, *arguments: Any, **more: Any) -> Any:
            if planes == FULL_WIDTH:
                self.inplanes = width  # what the stem below gives
            planes = planes * width // FULL_WIDTH
            return super()._make_layer(block, planes, *arguments, **more)

    model = Resized(block, layers, num_classes=classes)
    if stem == "small":
        model.conv1 = nn.Conv2d(channels, width, 3, stride=1, padding=1, bias=False)
        model.maxpool = nn.Identity()
    else:
        model.conv1 = nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.bn1 = nn.BatchNorm2d(width)
    model.fc = nn.Linear(8 * width * block.expansion, classes)
    return _with_prefix(model)


def _with_prefix(model: Any) -> nn.Module:
    """Let a step's passes share the stem, which no probe moves while conv1 is not quantized.

    And name the layers of a block that take the same input, see `quantization.replace`.
    """
    model.shared_inputs = (("conv1", "downsample.0"),)
    model.maxpool = EndOfPrefix(model.maxpool, (model.conv1, model.bn1))
    return model
