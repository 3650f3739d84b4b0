"""Batches of photographs, read and augmented by worker processes, or by them and the device.

Which images a batch holds, and what is drawn for each, are functions of the epoch's generator
alone: ranks, workers and an interruption do not matter.
"""

from __future__ import annotations

import multiprocessing.queues
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from fogzo_repro.config import UserError
from fogzo_repro.data.augmentation import UnreadableImage, drawn_from, seed_generators
from fogzo_repro.data.decoded import DecodedFiles
from fogzo_repro.data.device_views import Bundle, Part, cut, finish, pack_parts, to_device
from fogzo_repro.data.imagenet import Files
from fogzo_repro.data.images import Batch
from fogzo_repro.data.order import EpochOrder, one_after_another
from fogzo_repro.data.workers import outlive_signals
from fogzo_repro.randomness import derive_seed
from fogzo_repro.terminal import first_line

MORE = (
    "; give a short TMPDIR, more shared memory (/dev/shm; of docker --shm-size) or more open files "
    "(ulimit -n), or hardware.workers=0"
)
SUBSTITUTES = 10  # neighbours tried in place of an unreadable image


class Sample(NamedTuple):
    """One image of a batch: its place in the split, and the seed of what is drawn for it."""

    image: int
    seed: int


@dataclass(eq=False)
class Photographs(Dataset):
    """Images as tensors; an unreadable one is reported, or replaced by its neighbour.

    Args:
        files: one split.
        view: from pixels (H, W, 3) to a tensor.
        skip_bad: replace an unreadable image instead of reporting it.
        halved: leave the second half of a training view to the device.
    """

    files: Files | DecodedFiles
    view: Any
    skip_bad: bool
    halved: bool = False

    def __getitem__(self, sample: Sample) -> tuple[Tensor | Part | None, int, list[str]]:
        """Return the image, its label, and what was wrong; no image where it is an error."""
        complaints: list[str] = []
        for step in range(SUBSTITUTES if self.skip_bad else 1):
            index = (sample.image + step) % len(self.files.labels)
            try:
                pixels = self.files.pixels(index)
            except UnreadableImage as error:
                complaints.append(str(error))
                continue
            with _drawn_here(sample.seed):
                seen = cut(self.view, pixels) if self.halved else self.view(pixels)
            return seen, int(self.files.labels[index]), complaints
        return None, 0, complaints

    def collate(self, samples: list[tuple[Tensor | Part | None, int, list[str]]]) -> Collated:
        """Put a batch together; None where an image is missing."""
        complaints = [line for _, _, lines in samples for line in lines]
        seen: list[Any] = [image for image, _, _ in samples if image is not None]
        if len(seen) < len(samples):
            return None, complaints
        pixels: Any = Bundle.of(pack_parts(self.view, seen)) if self.halved else torch.stack(seen)
        return Batch(pixels, torch.tensor([label for _, label, _ in samples])), complaints

    def finish(self, batch: Batch) -> Batch:
        """Return a batch of images from what `collate` gives, moved to the device."""
        if not self.halved:
            return batch
        bundle: Any = batch.pixels
        return Batch(finish(self.view, bundle.open()), batch.labels)


def _drawn_here(seed: int) -> AbstractContextManager[None]:
    """Seed the generators; a worker, which draws from them for nothing else, restores nothing."""
    if get_worker_info() is None:
        return drawn_from(seed)
    seed_generators(seed)
    return nullcontext()


Collated = tuple[Batch | None, list[str]]


class NotHandedOver(NamedTuple):
    """What a worker sends in place of a batch that it cannot hand over."""

    why: str


@dataclass
class Wanted:
    """What a loader is asked for: its batch sampler, whose batches are set anew for each use."""

    batches: Iterable[list[Sample]] = ()

    def __iter__(self) -> Iterator[list[Sample]]:
        return iter(self.batches)


@dataclass
class PhotographLoader:
    """Loads lists of samples as batches on the device, in their order.

    Workers go on while a batch is used, until two a worker are ready.

    Attributes:
        photographs: one split.
        workers: processes that decode; 0 decodes in this one.
        device: where batches go.
        skipped: what unreadable images were replaced for, by this process.
    """

    photographs: Photographs
    workers: int
    device: torch.device
    skipped: set[str] = field(default_factory=set)
    _wanted: Wanted = field(default_factory=Wanted)
    _loader: DataLoader | None = None

    def load(self, batches: Iterable[list[Sample]]) -> Iterator[Batch]:
        """Yield one batch for each list; a list is taken when a worker is to begin with it.

        Raises:
            UserError: for an unreadable image that is not to be skipped, and for workers that are
                lost or cannot hand over what they have loaded.
        """
        self._wanted.batches = batches
        if self._loader is None:
            self._loader = DataLoader(
                self.photographs,
                batch_sampler=self._wanted,
                num_workers=self.workers,
                collate_fn=self.photographs.collate,
                pin_memory=self.device.type == "cuda",
                persistent_workers=self.workers > 0,
                worker_init_fn=begin_worker,
                generator=torch.Generator(),
            )
        for batch, complaints in self._collated(self._loader):
            if batch is None:
                raise UserError(f"cannot decode {complaints[-1]}; {self.photographs.files.remedy}")
            self.skipped.update(complaints)
            yield self.photographs.finish(to_device(batch, self.device))

    @staticmethod
    def _collated(loader: DataLoader) -> Iterator[Collated]:
        batches = None
        while True:
            try:
                if batches is None:
                    with ends_are_found_in_the_wait():
                        batches = iter(loader)
                loaded = next(batches)
            except StopIteration:
                return
            except (OSError, EOFError, RuntimeError) as error:
                lost = lost_workers(error)
                if lost is None:
                    raise
                raise lost from None
            if isinstance(loaded, NotHandedOver):
                raise UserError(f"a loader's worker cannot hand over a batch ({loaded.why}){MORE}")
            yield loaded


@contextmanager
def ends_are_found_in_the_wait() -> Iterator[None]:
    """Keep torch, which starts workers in here, from raising at once where one of them ends.

    It would raise from the signal, in the midst of a step in which other processes wait for this
    one. Who waits for a batch looks for lost workers every few seconds, where all can leave.
    """
    before = signal.getsignal(signal.SIGCHLD)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, before)


def lost_workers(error: BaseException) -> UserError | None:
    """Return in one line what became of the loaders' workers, where that is the error."""
    said = first_line(error)
    if isinstance(error, RuntimeError) and "DataLoader worker (pid" in said:
        return UserError(
            f"{said.partition('. ')[0]}: memory may be short, or the shared memory; give fewer "
            "hardware.workers, or 0"
        )
    if isinstance(error, OSError | EOFError) or "ancdata" in said:  # torch's, of too many files
        return UserError(f"the loader's workers do not work here ({said}){MORE}")
    return None


def begin_worker(worker: int) -> None:
    """Make a worker process ready.

    A thread of its own hands batches over; a batch for which that fails would be dropped there, and
    be waited for without an end.
    """
    outlive_signals()

    def tell(queue: Any, error: Exception, item: Any) -> None:
        queue.put((item[0], NotHandedOver(first_line(error))))

    # A bound method, as torch's queue asks for it; only this process has it.
    multiprocessing.queues.Queue._on_queue_feeder_error = tell  # type: ignore[attr-defined]


@dataclass(frozen=True)
class PhotographBatches:
    """The training batches of one rank."""

    loader: PhotographLoader
    order: EpochOrder
    rank: int

    def epoch(self, generator: torch.Generator, start: int = 0) -> Iterator[Batch]:
        """Yield this rank's share of each batch from `start` on; earlier ones are not loaded."""
        return self.loader.load(samples_of(self.order, self.rank, generator, start))

    def across_epochs(
        self, generator_of: Callable[[int], torch.Generator], steps: range
    ) -> Iterator[Batch]:
        """Yield this rank's share of a run's batches, see `order.across_epochs`.

        Workers begin with an epoch while the last batches of the one before are trained on.
        """
        # What the loader holds does not hold the loader: its workers end with it.
        own = partial(samples_of, self.order, self.rank)
        return self.loader.load(one_after_another(own, generator_of, steps, self.order.steps))


def samples_of(
    order: EpochOrder, rank: int, generator: torch.Generator, start: int
) -> Iterator[list[Sample]]:
    """Yield a rank's share of what each batch of the epoch holds, from `start` on."""
    seed = generator.initial_seed()
    images, copies = order.draw(generator)
    shares = (order.batches(places, rank, start) for places in (images, copies))
    for own in zip(*shares, strict=True):
        places = zip(*map(Tensor.tolist, own), strict=True)
        yield [Sample(i, derive_seed(seed, i, c)) for i, c in places]


def all_batches(images: int, size: int, rank: int, world_size: int) -> list[list[Sample]]:
    """Return a split in order, one rank's share, for evaluation: nothing is drawn."""
    own = [Sample(i, 0) for i in range(rank, images, world_size)]
    return [own[start : start + size] for start in range(0, len(own), size)]
