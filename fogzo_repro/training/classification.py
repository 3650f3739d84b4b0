"""Classification of small images that are held in memory: the task of MNIST and of the digits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fogzo_repro.config import RunConfig
from fogzo_repro.data import Batch, ImageBatches, Images, data_fingerprint, load_images
from fogzo_repro.estimators.protocol import Probes
from fogzo_repro.training.batched import BatchedProbes, supports_batched

EVALUATION_BATCH = 10_000  # images a pass


class InMemoryImages:
    """Cross-entropy on images in memory; see `tasks.Task` for the parts."""

    unit = "images"
    units_per_example = 1
    best_by = ("test", "top1", True)

    def __init__(self, images: Images, fingerprint: str) -> None:
        self.images = images
        self.fingerprint = fingerprint
        self.examples = len(images.train.labels)
        self.model_arguments = {"image_shape": images.shape, "classes": images.classes}

    def load(self, device: torch.device) -> None:
        """Move all images to the device."""
        self.images = self.images.to(device)

    def batches(self, global_batch_size: int) -> ImageBatches:
        """Return shuffled full batches."""
        return ImageBatches(self.images.train, global_batch_size)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross-entropy in float32."""
        logits = model(self.images.normalize(batch.pixels))
        return F.cross_entropy(logits.float(), batch.labels)

    def evaluate(self, model: nn.Module, last: bool) -> dict[str, dict[str, float]]:
        """Return the test split; after the last step the whole training split too."""
        splits = {"test": self.images.test, **({"train": self.images.train} if last else {})}
        return {k: evaluate_classifier(model, self.images, data) for k, data in splits.items()}

    def batched_probes(self, model: nn.Module, budget: int) -> Callable[[Any], Probes] | None:
        """Return the batched evaluator where the model supports it."""
        if not supports_batched(model):
            return None
        mlp: Any = model
        return lambda batch: BatchedProbes(mlp, self.images, batch, budget)


def in_memory_images(config: RunConfig, data_dir: Path) -> InMemoryImages:
    """Build the task of `dataset=mnist` and `dataset=digits`."""
    fingerprint = data_fingerprint(config.dataset, data_dir)
    return InMemoryImages(load_images(config.dataset, data_dir), fingerprint)


@torch.no_grad()
def evaluate_classifier(model: nn.Module, images: Images, data: Batch) -> dict[str, float]:
    """Return the mean cross-entropy in nats and top-1 in percent, with the quantizers active.

    Args:
        model: put into evaluation mode for the pass, and back.
        images: how pixels become inputs.
        data: all images of a split, on the model's device.
    """
    training = model.training
    model.eval()
    loss = torch.zeros((), dtype=torch.float64, device=data.labels.device)
    correct = torch.zeros((), dtype=torch.int64, device=data.labels.device)
    for start in range(0, len(data.labels), EVALUATION_BATCH):
        pixels, labels = (t[start : start + EVALUATION_BATCH] for t in data)
        logits = model(images.normalize(pixels)).float()
        loss += F.cross_entropy(logits, labels, reduction="sum")
        correct += (logits.argmax(1) == labels).sum()
    model.train(training)
    count = len(data.labels)
    return {"loss": loss.item() / count, "top1": 100 * correct.item() / count}
