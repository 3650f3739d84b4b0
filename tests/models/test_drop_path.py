"""Stochastic depth with masks that are drawn before the passes."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from fogzo_repro.models.drop_path import DropPath, DropPathMasks, share_drop_path


def masked(drop_prob: float, examples: int) -> tuple[nn.Sequential, DropPathMasks]:
    model = nn.Sequential(DropPath(drop_prob), DropPath(0.0)).train()
    masks = DropPathMasks(model)
    masks.draw(examples, torch.Generator().manual_seed(0))
    return model, masks


def test_a_branch_is_dropped_whole_with_its_probability_and_keeps_its_mean():
    model, _ = masked(0.25, 20_000)
    out = model(torch.ones(20_000, 3))
    assert torch.equal(out.unique(), torch.tensor([0, 1 / 0.75]))
    assert torch.equal(out[:, 0], out[:, 2])
    assert out.mean().item() == pytest.approx(1, abs=0.02)  # 5 sd: sqrt(1/3 / 20,000) = 0.004


def test_all_passes_of_a_step_see_one_draw_and_the_next_step_another():
    model, masks = masked(0.5, 64)
    x = torch.ones(64, 2)
    first = model(x)
    assert torch.equal(first, model(x))
    masks.draw(64, torch.Generator().manual_seed(1))
    assert not torch.equal(first, model(x))


def test_a_part_of_the_batch_gets_its_own_examples_masks():
    model, masks = masked(0.5, 64)
    whole = model(torch.ones(64, 2))
    masks.select(16, 8)
    assert torch.equal(model(torch.ones(8, 2)), whole[16:24])
    masks.select(0, 64)
    assert torch.equal(model(torch.ones(16, 2)), whole[:16])  # the probes' first part


def test_masks_keep_their_memory_so_that_a_captured_graph_reads_the_new_draw():
    model, masks = masked(0.5, 64)
    where = model[0].factors.data_ptr()
    masks.draw(64, torch.Generator().manual_seed(1))
    assert model[0].factors.data_ptr() == where


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
    assert len(DropPathMasks(model).layers) == 4  # the first block's rate is 0
