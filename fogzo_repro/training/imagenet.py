"""Classification of ImageNet: `dataset=imagenet100` and `dataset=imagenet1k`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fogzo_repro.config import RunConfig, UserError, VisionRecipe
from fogzo_repro.data import MixedBatches, mixer
from fogzo_repro.data.augmentation import (
    TrainingView,
    evaluation_view,
    normalize,
    training_view,
)
from fogzo_repro.data.decoded import DecodedFiles, open_decoded
from fogzo_repro.data.device_views import why_not
from fogzo_repro.data.imagenet import Files, ImageNetIndex
from fogzo_repro.data.images import Batch
from fogzo_repro.data.order import EpochOrder
from fogzo_repro.data.photographs import (
    PhotographBatches,
    PhotographLoader,
    Photographs,
    all_batches,
)
from fogzo_repro.terminal import stderr
from fogzo_repro.training.preemption import evaluated
from fogzo_repro.training.ranks import Ranks, current_ranks

EVALUATION_BATCH = 250  # images a pass and rank


def photograph_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return the mean cross-entropy in float32, against labels or soft targets."""
    return F.cross_entropy(model(normalize(batch.pixels)).float(), batch.labels)


class ImageNet:
    """Cross-entropy on image files, by a `VisionRecipe`; see `tasks.Task` for the parts."""

    unit = "images"
    units_per_example = 1
    corpus: str | None = None
    best_by = ("val", "top1", True)
    loss = staticmethod(photograph_loss)

    def __init__(self, config: RunConfig, index: ImageNetIndex, ranks: Ranks) -> None:
        self.config = config
        self.index = index
        self.ranks = ranks
        self.fingerprint = index.fingerprint
        self.train: Files | DecodedFiles = index.train
        if config.dataset.decoded is not None:
            side, dataset = config.dataset.decoded, config.dataset
            # A list is decoded as a whole alone: a part of one by all the images that there are.
            classes = None if dataset.allow_partial else dataset.classes
            self.train = open_decoded(index.train, side, classes)
            self.fingerprint += f"/decoded:{side}-{self.train.digest}"
            self.corpus = f"{config.dataset.name} decoded at a shorter side of {side}"
        self.examples = len(index.train.names)
        size = config.dataset.image_size
        self.model_arguments = {"image_shape": (3, size, size), "classes": len(index.classes)}
        assert isinstance(config.recipe, VisionRecipe)
        self.mix = mixer(config.recipe, len(index.classes))
        self.device = torch.device("cpu")
        self.loaders: dict[str, PhotographLoader] = {}

    def load(self, device: torch.device) -> None:
        """Set up the loaders; workers start with the first batch."""
        self.device = device
        config, size = self.config, self.config.dataset.image_size
        skip = config.dataset.on_bad_image == "skip"
        view = training_view(config.recipe, size)
        halved = on_device(view, config.hardware.augmentation, device)
        photographs = {
            "train": Photographs(self.train, view, skip and config.dataset.decoded is None, halved),
            "val": Photographs(self.index.val, evaluation_view(config.recipe, size), skip),
        }
        for split, images in photographs.items():
            self.loaders[split] = PhotographLoader(images, config.hardware.workers, device)

    def batches(self, global_batch_size: int) -> Any:
        """Return this rank's share of each epoch's batches; `load` comes before iterating."""
        recipe, ranks = self.config.recipe, self.ranks
        assert isinstance(recipe, VisionRecipe)
        order = EpochOrder(
            self.examples, global_batch_size, recipe.drop_last, ranks.world_size, recipe.repeats,
            recipe.repeat_ranks,
        )  # fmt: skip
        loader: Any = self.loaders.get("train")
        plain = PhotographBatches(loader, order, ranks.rank)
        return plain if self.mix is None else MixedBatches(plain, self.mix, normalize)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, last: bool) -> dict[str, dict[str, float]]:
        """Return loss, top-1 and top-5 on the validation split."""
        count = len(self.index.val.names)
        own = all_batches(count, EVALUATION_BATCH, self.ranks.rank, self.ranks.world_size)
        sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        for batch in evaluated(self.loaders["val"].load(own), self.ranks):
            logits = model(normalize(batch.pixels)).float()
            best = logits.topk(min(5, logits.shape[1])).indices == batch.labels.unsqueeze(1)
            loss = F.cross_entropy(logits, batch.labels, reduction="sum")
            sums += torch.stack([loss.double(), best[:, 0].sum(), best.sum()])
        loss_sum, top1, top5 = (self.ranks.sum(sums) / count).tolist()
        return {"val": {"loss": loss_sum, "top1": 100 * top1, "top5": 100 * top5}}

    def skipped(self) -> list[str]:
        """Return which images the ranks have replaced, and what was wrong; all ranks must ask."""
        own = set().union(*(loader.skipped for loader in self.loaders.values()))
        return sorted(self.ranks.union(own))


def on_device(view: TrainingView, wanted: str, device: torch.device) -> bool:
    """Return whether the second half of a view is done on the device, see `device_views`.

    Raises:
        UserError: where it is asked for and gives other pixels, or there is no such half.
    """
    if wanted == "cpu" or (wanted == "auto" and device.type == "cpu"):
        return False
    why = why_not(view, device)
    if why and wanted == "device":
        raise UserError(f"hardware.augmentation=device: {why}; give hardware.augmentation=cpu")
    if why:
        print(f"photographs are augmented by their loaders: {why}", file=stderr())
    return not why


def imagenet(config: RunConfig, index: ImageNetIndex) -> ImageNet:
    """Build the task of a dataset of photographs.

    Raises:
        UserError: where the recipe has nothing for them.
    """
    recipe = config.recipe
    if not isinstance(recipe, VisionRecipe) or recipe.augmentation not in ("torchvision", "timm"):
        raise UserError(
            f"recipe={recipe.name} has no augmentation of photographs, which dataset="
            f"{config.dataset.name} needs; use recipe=imagenet_resnet or recipe=imagenet_deit"
        )
    return ImageNet(config, index, current_ranks())
