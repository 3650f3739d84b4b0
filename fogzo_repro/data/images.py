"""Small images held in memory: a dataset, its batches, random crops and mirror images.

A dataset is one Python file with `build(...)`, which returns an `ImageDataset`, and one YAML file.

Shapes: N images, B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from numbers import Real
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fogzo_repro.config import UserError
from fogzo_repro.data.order import EpochOrder

HELD_OUT_SEED = 0


class Batch(NamedTuple):
    """Pixels (B, C, H, W) uint8 and labels (B,) int64.

    Where images are mixed or erased: normalised inputs (B, C, H, W) float32 instead of pixels, and
    soft targets (B, classes) instead of labels.
    """

    pixels: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Images:
    """A dataset in memory: uint8 pixels, and the mean and deviation that normalise pixel / 255.

    Mean and deviation are numbers, or tensors (C, 1, 1).
    """

    train: Batch
    test: Batch
    mean: float | Tensor
    std: float | Tensor
    classes: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        c, h, w = self.train.pixels.shape[1:]
        return c, h, w

    def to(self, device: torch.device) -> Images:
        """Return the dataset on a device."""
        train, test = (Batch(*(t.to(device) for t in b)) for b in (self.train, self.test))
        mean, std = (v.to(device) if isinstance(v, Tensor) else v for v in (self.mean, self.std))
        return replace(self, train=train, test=test, mean=mean, std=std)

    def normalize(self, pixels: Tensor) -> Tensor:
        """Return (pixel / 255 - mean) / std in float32; inputs that are float already stay."""
        if pixels.is_floating_point():
            return pixels
        return (pixels.float() / 255 - self.mean) / self.std


@dataclass(frozen=True)
class ImageDataset:
    """What is known of a dataset in memory before it is read, and how it is read.

    Attributes:
        fingerprint: identifies the data; part of a run's identity.
        examples: training images.
        shape: (C, H, W).
        classes: labels are 0 .. classes-1.
        read: reads the images; downloads them first where they are not there.
        is_there: whether nothing has to be downloaded.
    """

    fingerprint: str
    examples: int
    shape: tuple[int, int, int]
    classes: int
    read: Callable[[], Images]
    is_there: Callable[[], bool] = lambda: True

    def checked(self) -> Images:
        """Read the images.

        Raises:
            UserError: where they are missing or damaged, of a type or shape that would be taken
                for something else, or not what the attributes say.
        """
        images = self.read()
        if wrong := _unusable(images):
            raise UserError(f"the data {self.fingerprint}: {wrong}")
        found = len(images.train.labels), images.shape, images.classes
        if found != (self.examples, self.shape, self.classes):
            raise UserError(
                f"the data {self.fingerprint}: training images, shape and classes are {found}, and "
                f"the dataset's file says {self.examples, self.shape, self.classes}"
            )
        return images


def _unusable(images: Images) -> str:
    """Return what of the images could not be trained on, or would be taken for something else."""
    for split, (pixels, labels) in {"train": images.train, "test": images.test}.items():
        if _type(pixels) != "uint8" or pixels.dim() != 4:
            must = "uint8 tensor (N, C, H, W), 0 to 255"
            return f"the {split} images must be a {must}, not {_found(pixels)}"
        if _type(labels) != "int64" or labels.shape != pixels.shape[:1]:
            must = f"int64 tensor of shape {tuple(pixels.shape[:1])}"
            return f"the {split} labels must be an {must}, not {_found(labels)}"
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < images.classes:
            return f"the {split} labels must be from 0 to {images.classes - 1}"
    by_channel = (images.train.pixels.shape[1], 1, 1)
    for name, value in {"mean": images.mean, "std": images.std}.items():
        fits = value.shape in ((), by_channel) if isinstance(value, Tensor) else True
        if not isinstance(value, Tensor | Real) or not fits:
            return f"{name} must be a number or a tensor {by_channel}, not {_found(value)}"
    return ""


def _type(value: object) -> str:
    if isinstance(value, Tensor):
        return str(value.dtype).removeprefix("torch.")
    return type(value).__name__


def _found(value: object) -> str:
    return f"{_type(value)} {tuple(value.shape)}" if isinstance(value, Tensor) else _type(value)


def hold_out(data: Batch, count: int) -> tuple[Batch, Batch]:
    """Return the images that are left without `count` of them, and those.

    They are drawn without regard to the class, by a fixed seed, so that all runs have the same.
    """
    order = torch.randperm(len(data.labels), generator=torch.Generator().manual_seed(HELD_OUT_SEED))
    held, kept = order[:count].sort().values, order[count:].sort().values
    return Batch(data.pixels[kept], data.labels[kept]), Batch(data.pixels[held], data.labels[held])


@dataclass(frozen=True)
class ImageBatches:
    """One rank's share of the batches of an epoch.

    Attributes:
        order: which images a batch holds.
        rank: this process.
        data: the training images on the device; None until they are read.
        crop_padding: each image is shifted at random by up to so many pixels and mirrored in one
            case of two; None leaves the images as they are.
    """

    order: EpochOrder
    rank: int
    data: Batch | None
    crop_padding: int | None = None

    def epoch(self, generator: torch.Generator, start: int = 0) -> Iterator[Batch]:
        """Yield this rank's share of each batch from `start` on; all ranks pass the same stream."""
        assert self.data is not None, "read the images first"
        pixels, labels = self.data
        images, _ = self.order.draw(generator)
        view: Callable[[Tensor], Tensor] = pixels.__getitem__
        if self.crop_padding is not None:
            view = crop_and_flip(pixels, self.crop_padding, generator)
        shares = list(self.order.batches(images, self.rank, start))
        on_device = torch.cat(shares).to(labels.device)  # one copy an epoch: a step waits for none
        for chosen in on_device.split([len(share) for share in shares]):
            yield Batch(view(chosen), labels[chosen])


def crop_and_flip(
    pixels: Tensor, padding: int, generator: torch.Generator
) -> Callable[[Tensor], Tensor]:
    """Draw a crop and a flip for each image; return what gives the images of a batch so changed.

    An image is padded with black on all sides, then a window of its old size is cut out at random,
    then mirrored with probability 1/2. What is drawn for image i is a function of the generator's
    state and i, whatever batch or process the image is in. A batch is one gather on the device.

    Args:
        pixels: (N, C, H, W).
        padding: pixels on each side.
        generator: on the CPU; all N draws are made here.
    """
    count, channels, height, width = pixels.shape
    device = pixels.device
    shifts = torch.randint(2 * padding + 1, (2, count, 1), generator=generator).to(device)
    mirrored = torch.randint(2, (count, 1), generator=generator).bool().to(device)
    across = torch.arange(width, device=device)
    rows = shifts[0] + torch.arange(height, device=device)  # (N, H)
    columns = shifts[1] + torch.where(mirrored, across.flip(0), across)  # (N, W)
    padded = F.pad(pixels, (padding,) * 4)
    channel = torch.arange(channels, device=device).view(-1, 1, 1)

    def view(chosen: Tensor) -> Tensor:
        image = chosen.view(-1, 1, 1, 1)
        return padded[
            image, channel, rows[chosen][:, None, :, None], columns[chosen][:, None, None]
        ]

    return view
