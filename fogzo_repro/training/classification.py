"""Classification of small images that are held in memory: MNIST, CIFAR-100, digits, a user's."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fogzo_repro.config import RunConfig, UserError, VisionRecipe
from fogzo_repro.data import Batch, ImageBatches, ImageDataset, Images, Mix, MixedBatches, mixer
from fogzo_repro.data.images import hold_out
from fogzo_repro.data.order import EpochOrder
from fogzo_repro.training.preemption import evaluated
from fogzo_repro.training.ranks import ALONE, Ranks, current_ranks

EVALUATION_PIXELS = 10_000 * 28 * 28  # a pass takes as many images as have so many numbers
CPU_IMAGES, SHALLOW = 64, 10**6  # of more parameters, so that a signal does not wait for minutes


@dataclass(eq=False)
class InMemoryImages:
    """Cross-entropy on images in memory; see `tasks.Task` for the parts.

    So many training images as are held out are kept out of training and evaluated as `val` in place
    of the test images: what settings are chosen by.
    """

    unit = "images"
    units_per_example = 1

    dataset: ImageDataset
    ranks: Ranks = ALONE
    held_out: int = 0
    crop_padding: int | None = None  # see `ImageBatches`
    mix: Mix | None = None
    drop_last: bool = True

    def __post_init__(self) -> None:
        dataset = self.dataset
        self.corpus: str | None = None
        self.fingerprint = dataset.fingerprint
        self.examples = dataset.examples - self.held_out
        self.model_arguments = {"image_shape": dataset.shape, "classes": dataset.classes}
        self.evaluated = "val" if self.held_out else "test"
        self.best_by = (self.evaluated, "top1", True)
        self._images: Images | None = None

    @property
    def images(self) -> Images:
        """The images on the device, those that are evaluated as `test`; `load` comes first."""
        assert self._images is not None, "the images have not been read"
        return self._images

    def load(self, device: torch.device) -> None:
        """Read the images and move them to the device."""
        images = self.dataset.checked()
        if self.held_out:
            kept, held = hold_out(images.train, self.held_out)
            images = replace(images, train=kept, test=held)
        self._images = images.to(device)

    def batches(self, global_batch_size: int) -> ImageBatches | MixedBatches:
        """Return this rank's share of shuffled batches; `load` comes before iterating."""
        order = EpochOrder(self.examples, global_batch_size, self.drop_last, self.ranks.world_size)
        train = self._images.train if self._images else None
        plain = ImageBatches(order, self.ranks.rank, train, self.crop_padding)
        if self.mix is None:
            return plain
        return MixedBatches(plain, self.mix, lambda p: self.images.normalize(p))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross-entropy in float32, against labels or soft targets."""
        logits = model(self.images.normalize(batch.pixels))
        return F.cross_entropy(logits.float(), batch.labels)

    def evaluate(self, model: nn.Module, last: bool) -> dict[str, dict[str, float]]:
        """Return what is not trained on; after the last step the whole training split too."""
        splits = {self.evaluated: self.images.test}
        if last:
            splits["train"] = self.images.train
        return {
            split: evaluate_classifier(model, self.images, data, self.ranks)
            for split, data in splits.items()
        }

    def skipped(self) -> list[str]:
        """Return nothing: the data are checked as a whole."""
        return []


def in_memory_images(config: RunConfig, dataset: ImageDataset) -> InMemoryImages:
    """Build the task of a dataset that is held in memory.

    Raises:
        UserError: where the recipe asks for what only photographs get, or nothing is left to train.
    """
    recipe, held_out = config.recipe, getattr(config.dataset, "held_out", 0)
    if not 0 <= held_out < dataset.examples:
        raise UserError(
            f"dataset.held_out={held_out} is not one of 0 .. {dataset.examples - 1}: "
            f"dataset={config.dataset.name} has {dataset.examples:,} training images"
        )
    crop_padding = mix = None
    if isinstance(recipe, VisionRecipe):
        _check_no_photographs(config, recipe)
        mix = mixer(recipe, dataset.classes)
        if recipe.augmentation == "crop_flip":
            crop_padding = recipe.crop_padding
    return InMemoryImages(
        dataset,
        current_ranks(),
        held_out=held_out,
        crop_padding=crop_padding,
        mix=mix,
        drop_last=getattr(recipe, "drop_last", True),
    )


def _check_no_photographs(config: RunConfig, recipe: VisionRecipe) -> None:
    """Refuse what would be left undone without a word."""
    asked = {
        f"augmentation={recipe.augmentation}": recipe.augmentation in ("torchvision", "timm"),
        f"rand_augment={recipe.rand_augment}": recipe.rand_augment is not None,
        f"erase_probability={recipe.erase_probability}": recipe.erase_probability > 0,
        f"repeats={recipe.repeats}": recipe.repeats > 1,
    }
    found = [setting for setting, is_asked in asked.items() if is_asked]
    if found:
        raise UserError(
            f"recipe.{found[0]} is for photographs, and dataset={config.dataset.name} is held in "
            "memory; use recipe=cifar_resnet or recipe=cifar_deit, whose recipe.augmentation is "
            "crop_flip"
        )


@torch.no_grad()
def evaluate_classifier(
    model: nn.Module, images: Images, data: Batch, ranks: Ranks = ALONE
) -> dict[str, float]:
    """Return the mean cross-entropy in nats and top-1 in percent, with the quantizers active.

    The ranks all evaluate all images of the split, and stop together.

    Raises:
        EvaluationStopped: where one of them was asked to leave.
    """
    loss = torch.zeros((), dtype=torch.float64, device=data.labels.device)
    correct = torch.zeros((), dtype=torch.int64, device=data.labels.device)
    at_once = max(1, EVALUATION_PIXELS // math.prod(images.shape))
    if loss.device.type == "cpu" and sum(p.numel() for p in model.parameters()) > SHALLOW:
        at_once = min(at_once, CPU_IMAGES)
    for start in evaluated(range(0, len(data.labels), at_once), ranks):
        pixels, labels = (t[start : start + at_once] for t in data)
        logits = model(images.normalize(pixels)).float()
        loss += F.cross_entropy(logits, labels, reduction="sum")
        correct += (logits.argmax(1) == labels).sum()
    count = len(data.labels)
    return {"loss": loss.item() / count, "top1": 100 * correct.item() / count}
