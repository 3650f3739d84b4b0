"""Trains every case of test_ranks.py for some steps, as one process or as one of several."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from fogzo_repro.data import Batch, ImageBatches, MixedBatches, mixer
from fogzo_repro.data.c4 import TokenStream, WindowBatches
from fogzo_repro.data.order import EpochOrder
from fogzo_repro.estimators.averaged import averaged_gradient
from fogzo_repro.estimators.fogzo import Fogzo
from fogzo_repro.estimators.protocol import Estimator
from fogzo_repro.estimators.spsa import Nspsa
from fogzo_repro.estimators.ste import Ste
from fogzo_repro.models import deit, llama, mlp, resnet
from fogzo_repro.quantization import quantize_layers
from fogzo_repro.quantization.uniform import Round
from fogzo_repro.randomness import generator_for
from fogzo_repro.training.language import token_loss
from fogzo_repro.training.network import _perturbed_weight
from fogzo_repro.training.ranks import Ranks, current_ranks, share_batchnorm
from fogzo_repro.training.step import TrainStep

STEPS, BATCH = 5, 8
SHAPE, CLASSES = (1, 12, 12), 10
MODELS = {
    "mlp": lambda: mlp.build(SHAPE, CLASSES, hidden=6),
    "deit": lambda: deit.build(
        SHAPE, CLASSES, heads=2, head_dim=4, depth=2, drop_path=0.0, patch_size=4
    ),
    "resnet": lambda: resnet.build(SHAPE, CLASSES, depth=18, width=4, stem="imagenet"),
    "llama": lambda: llama.build(
        layers=2, width=16, heads=2, hidden=24, context=8, vocabulary=20,
        norm_eps=1e-5, rope_theta=1e4, init_std=0.1,
    ),
}  # fmt: skip
CPU = torch.device("cpu")


class Uneven(Nspsa):
    """n-SPSA that rounds differently on each rank, as kernels may that each rank has tuned."""

    def __call__(self, weights: Any, *arguments: Any) -> Any:
        """Write the estimate."""
        estimate = super().__call__(weights, *arguments)
        for w in weights:
            w.parameter.grad.mul_(1 + 1e-12 * current_ranks().rank)
        return estimate


ESTIMATORS: dict[str, Any] = {
    "ste": lambda device: Ste(),
    "nspsa": lambda device: Nspsa(2),
    "uneven": lambda device: Uneven(2),
    "fogzo": lambda device: Fogzo(1, 0.01, "constant", device),
    "averaged": lambda device: Fogzo(1, 0.01, "constant", device, averaged_gradient),
}
MIXING: Any = SimpleNamespace(
    mixes=True, mixup=0.8, cutmix=1.0, mix_probability=1.0, cutmix_share=0.5, label_smoothing=0.1
)


def images(device: torch.device) -> Batch:
    """64 images that are the same in every process."""
    stream = generator_for(0, 0, "test images")
    pixels = torch.randint(0, 256, (64, *SHAPE), dtype=torch.uint8, generator=stream)
    labels = torch.randint(0, CLASSES, (64,), generator=stream)
    return Batch(pixels.to(device), labels.to(device))


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return the mean cross-entropy in the model's type."""
    dtype = next(model.parameters()).dtype
    return F.cross_entropy(model(batch.pixels.to(dtype)), batch.labels.to(dtype))


def windows(ranks: Ranks, device: torch.device) -> WindowBatches:
    """Return windows of tokens that are the same in every process."""
    tokens = torch.randint(0, 20, (600,), generator=generator_for(0, 0, "test tokens"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shard"
        path.write_bytes(tokens.to(torch.uint16).numpy().tobytes())
        stream = TokenStream([(path, 600, "")], 20)  # mapped: it outlives the file's name
    return WindowBatches(stream, 8, BATCH, device, ranks.rank, ranks.world_size)


def train(
    model_name: str,
    estimator_name: str,
    ranks: Ranks,
    adamw: bool = False,
    device: torch.device = CPU,
) -> dict[str, Tensor]:
    """Train one case; return its weights and losses, and the last gradients.

    By SGD in float64; with `adamw` one step in float32.
    """
    torch.manual_seed(1)
    model = MODELS[model_name]().to(device)
    estimator: Estimator = ESTIMATORS[estimator_name](device)
    if not adamw:
        model = model.double()
    layers = quantize_layers(model, lambda name, weight: Round(weight, bits=2))
    if ranks.world_size > 1:
        share_batchnorm(model)
    optimizer: torch.optim.Optimizer
    if adamw:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, fused=True)
    weights = [_perturbed_weight(layer) for layer in layers.values()]
    function: Any = token_loss if model_name == "llama" else loss
    step = TrainStep(
        model.train(), function, optimizer, estimator, weights, seed=3,
        pairs=getattr(estimator, "n", 0), probe_gradients=estimator_name == "averaged",
        ranks=ranks,
    )  # fmt: skip
    order = EpochOrder(64, BATCH, world_size=ranks.world_size)
    plain = ImageBatches(order, ranks.rank, images(device), crop_padding=2)
    batches: Any = MixedBatches(plain, mixer(MIXING, CLASSES), lambda pixels: pixels.double() / 255)
    if model_name == "llama":
        batches = windows(ranks, device)
    rows = []
    epoch = batches.epoch(generator_for(0, 0, "order"))
    for t, batch in zip(range(1 if adamw else STEPS), epoch, strict=False):
        probing = step.begin(t, STEPS, 0.05)
        rows.append(step(batch, probing))
    found = {f"weight/{k}": v.detach().clone() for k, v in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        found[f"gradient/{name}"] = parameter.grad.clone()
    table = torch.stack(rows)
    return found | {"loss": table[:, 0].contiguous(), "coefficient": table[:, 1].contiguous()}


def all_cases(ranks: Ranks, device: torch.device) -> dict[str, Tensor]:
    """Return the weights of every case, by model/estimator/name."""
    return {
        f"{'adamw/' * adamw}{model}/{estimator}/{name}": value
        for adamw in (False, True)
        for model in MODELS
        for estimator in ESTIMATORS
        for name, value in train(model, estimator, ranks, adamw, device).items()
    }


def join(rank: int, port: int, on_gpu: bool = False) -> None:
    """Be one of two processes."""
    current_ranks.cache_clear()  # the parent is one process
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    if not on_gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def work(rank: int, port: int, folder: Path, on_gpu: bool = False) -> None:
    """Train every case as one of two processes; write the weights to folder/rank<k>.safetensors."""
    join(rank, port, on_gpu)
    device = torch.device("cuda", rank) if on_gpu else CPU
    save_file(all_cases(current_ranks(), device), folder / f"rank{rank}.safetensors")


def drift(rank: int, port: int, folder: Path) -> None:
    """Join as one of two processes; say what `agree` finds for equal and for drifted weights."""
    join(rank, port)
    ranks = current_ranks()
    found = []
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        same = [torch.arange(6.0).view(2, 3).to(dtype).t(), torch.ones((), dtype=dtype)]
        # the least change of one number on one rank
        other = [same[0].clone(), same[1].clone()]
        if rank:
            other[0][0, 1] = torch.nextafter(other[0][0, 1], other[1])
        found += [ranks.agree(same), ranks.agree(other)]
    (folder / f"agree{rank}").write_text(str(found))
