"""Tasks: what a dataset brings to training: batches, a loss, an evaluation.

The loop, the step and the run know a task and nothing of images or tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fogzo_repro.config import RunConfig, UserError, build_part
from fogzo_repro.data import ImageDataset
from fogzo_repro.data.c4 import Corpus
from fogzo_repro.data.imagenet import ImageNetIndex
from fogzo_repro.training.classification import in_memory_images
from fogzo_repro.training.imagenet import imagenet
from fogzo_repro.training.language import c4_language
from fogzo_repro.training.loop import Data


class Task(Protocol):
    """What a run needs of its dataset.

    Attributes:
        fingerprint: identifies the data; part of the run's identity.
        corpus: what the data are called where the dataset's name does not say it, else None.
        model_arguments: what `build_network` needs beside the configuration.
        examples: training examples in an epoch.
        unit: what a step consumes, `images` or `tokens`.
        units_per_example: 1 for images, the sequence length for tokens.
        best_by: the split and the metric that decide which evaluation was best, and whether more is
            better.
    """

    fingerprint: str
    corpus: str | None
    model_arguments: dict[str, Any]
    examples: int
    unit: str
    units_per_example: int
    best_by: tuple[str, str, bool]

    def load(self, device: torch.device) -> None:
        """Get ready to train: read the data, move to the device what lives there.

        All ranks must ask; what is missing and can be downloaded is.
        """
        ...

    def batches(self, global_batch_size: int) -> Data:
        """Return the training batches."""
        ...

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the training loss, a 0-dim float32 tensor."""
        ...

    def evaluate(self, model: nn.Module, last: bool) -> dict[str, dict[str, float]]:
        """Return metrics by split; after the last step those of the final report too.

        The model is in evaluation mode, with the buffers of the first rank.
        """
        ...

    def skipped(self) -> list[str]:
        """Return which examples were left out as unreadable; all ranks must ask, at the end.

        Raises:
            UserError: where what was read is not what it should be, so that no result stands.
        """
        ...


# What a dataset's `build` returns decides what is done with it.
TASKS: dict[type, Callable[[RunConfig, Any], Task]] = {
    ImageDataset: in_memory_images,
    ImageNetIndex: imagenet,
    Corpus: c4_language,
}


def build_task(config: RunConfig) -> Task:
    """Build the task of a run's dataset; no data are read, nothing is downloaded.

    Raises:
        UserError: where the data are missing, or do not go with the recipe or the model.
    """
    data_dir = Path(config.data_dir)
    data = build_part("dataset", config.dataset, config.parts_dir, data_dir=data_dir)
    if type(data) not in TASKS:
        known = ", ".join(kind.__name__ for kind in TASKS)
        raise UserError(
            f"dataset={config.dataset.name}: build() returned a {type(data).__name__}, not one of "
            f"{known}"
        )
    return TASKS[type(data)](config, data)
