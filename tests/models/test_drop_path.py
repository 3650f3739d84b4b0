"""Stochastic depth with masks that are drawn before the passes, see tests/training/test_passes."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from fogzo_repro.models.drop_path import DropPath, share_drop_path


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
