"""ResNet-18 and -50 by torchvision (RECIPES A): stride in the 3 x 3 convolution, fan-out init.

With 3 channels and width 64 the network is torchvision's own, random draws included. One channel
(MNIST) changes the first convolution alone: the stem keeps its 7 x 7 convolution of stride 2 and
its pooling, so 28 x 28 images are 7 x 7 in the first stage; choice, see README.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from fogzo_repro.models.prefix import EndOfPrefix

FULL_WIDTH = 64


def build_resnet(config: Any, *, image_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Build from the `model` section: `depth` 18 or 50, `width` channels in the first stage."""
    from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

    block: Any = BasicBlock if config.depth == 18 else Bottleneck
    layers = [2, 2, 2, 2] if config.depth == 18 else [3, 4, 6, 3]
    channels = image_shape[0]
    if config.width == FULL_WIDTH and channels == 3:
        return _with_prefix(ResNet(block, layers, num_classes=classes))

    class Resized(ResNet):
        """torchvision's network with other widths and input channels."""

        def _make_layer(self, block: Any, planes: int, *arguments: Any, **more: Any) -> Any:
            if planes == FULL_WIDTH:
                self.inplanes = config.width  # what the stem below gives
            planes = planes * config.width // FULL_WIDTH
            return super()._make_layer(block, planes, *arguments, **more)

    model = Resized(block, layers, num_classes=classes)
    model.conv1 = nn.Conv2d(channels, config.width, 7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.bn1 = nn.BatchNorm2d(config.width)
    model.fc = nn.Linear(8 * config.width * block.expansion, classes)
    return _with_prefix(model)


def _with_prefix(model: Any) -> nn.Module:
    """Let a step's passes share the stem, which no probe moves while conv1 is not quantized."""
    model.maxpool = EndOfPrefix(model.maxpool, (model.conv1, model.bn1))
    return model
