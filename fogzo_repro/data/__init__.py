"""Datasets. Nothing here draws from a global generator: the order of an epoch is an argument."""

from fogzo_repro.data.images import Batch, ImageBatches, ImageDataset, Images
from fogzo_repro.data.mixing import Mix, MixedBatches, mixer
