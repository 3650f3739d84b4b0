"""Classification of small images that are held in memory: the task of MNIST and of the digits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fogzo_repro.config import RunConfig, VisionRecipe
from fogzo_repro.data import (
    Batch,
    ImageBatches,
    Images,
    MixedBatches,
    Mixing,
    data_fingerprint,
    load_images,
)
from fogzo_repro.estimators.protocol import Probes
from fogzo_repro.training.batched import BatchedProbes, supports_batched
from fogzo_repro.training.ranks import ALONE, Ranks, current_ranks

EVALUATION_BATCH = 10_000  # images a pass


class InMemoryImages:
    """Cross-entropy on images in memory; see `tasks.Task` for the parts.

    Args:
        images: the dataset.
        fingerprint: identifies it.
        ranks: the processes that share each batch.
        mixing: the recipe's mixup and label smoothing, or None.
        drop_last: whether a last batch that is not full is left out.
    """

    unit = "images"
    units_per_example = 1
    corpus: str | None = None
    best_by = ("test", "top1", True)

    def __init__(
        self,
        images: Images,
        fingerprint: str,
        ranks: Ranks = ALONE,
        mixing: Mixing | None = None,
        drop_last: bool = True,
    ) -> None:
        self.images = images
        self.fingerprint = fingerprint
        self.ranks = ranks
        self.mixing = mixing
        self.drop_last = drop_last
        self.examples = len(images.train.labels)
        self.model_arguments = {"image_shape": images.shape, "classes": images.classes}

    def load(self, device: torch.device) -> None:
        """Move all images to the device."""
        self.images = self.images.to(device)

    def batches(self, global_batch_size: int) -> ImageBatches | MixedBatches:
        """Return this rank's share of shuffled batches."""
        rank, world_size = self.ranks.rank, self.ranks.world_size
        plain = ImageBatches(self.images.train, global_batch_size, rank, world_size, self.drop_last)
        if self.mixing is None:
            return plain
        return MixedBatches(plain, self.mixing, self.images.normalize, self.images.classes)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross-entropy in float32, against labels or soft targets."""
        logits = model(self.images.normalize(batch.pixels))
        return F.cross_entropy(logits.float(), batch.labels)

    def evaluate(self, model: nn.Module, last: bool) -> dict[str, dict[str, float]]:
        """Return the test split; after the last step the whole training split too."""
        self.ranks.same_buffers(model)
        splits = {"test": self.images.test, **({"train": self.images.train} if last else {})}
        return {k: evaluate_classifier(model, self.images, data) for k, data in splits.items()}

    def skipped(self) -> list[str]:
        """Return nothing: the data are checked as a whole."""
        return []

    def batched_probes(self, model: nn.Module, budget: int) -> Callable[[Any], Probes] | None:
        """Return the batched evaluator where the model supports it."""
        if not supports_batched(model) or self.mixing is not None:
            return None
        mlp: Any = model
        return lambda batch: BatchedProbes(mlp, self.images, batch, budget)


def in_memory_images(config: RunConfig, data_dir: Path) -> InMemoryImages:
    """Build the task of `dataset=mnist` and `dataset=digits`."""
    fingerprint = data_fingerprint(config.dataset, data_dir)
    images = load_images(config.dataset, data_dir)
    mixing = recipe_mixing(config.recipe)
    drop_last = getattr(config.recipe, "drop_last", True)
    return InMemoryImages(images, fingerprint, current_ranks(), mixing, drop_last)


def recipe_mixing(recipe: Any) -> Mixing | None:
    """Return the mixing of a vision recipe; None where nothing is mixed or smoothed."""
    if not isinstance(recipe, VisionRecipe):
        return None
    mixing = Mixing(
        recipe.mixup,
        recipe.cutmix,
        recipe.mix_probability,
        recipe.cutmix_share,
        recipe.label_smoothing,
    )
    return mixing if mixing.changes else None


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
