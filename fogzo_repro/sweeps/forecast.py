"""What a cell takes, known before its data are there: parameters, steps, data, disk, memory, hours.

How long a run takes on a card is known from the records of the benches (results/records/bench). A
network or quantizer that was not measured itself is estimated and marked so: a LLaMA by the
measured one of the nearest size with its quantizer, by FLOP a token, 6 (N_non-embedding + V d) +
6 L d T; a quantizer that no record has by 2-bit round. Other networks are not scaled: unknown. The
benches time training steps with data on the card. Where photographs are decoded more slowly than
that, by the record of the loader, a run takes as long as its loader; evaluation comes on top. The
memory of a step is known from them too, of a network that was measured itself.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fogzo_repro.config import RunConfig, UserError, VisionRecipe, quantizer_label
from fogzo_repro.project import script
from fogzo_repro.reporting.benches import read_benches as bench_records

if TYPE_CHECKING:
    from fogzo_repro.data.order import EpochOrder
    from fogzo_repro.training.network import Network

PHOTOGRAPHS = {  # training images, shape, classes
    "imagenet100": (128_117, (3, 224, 224), 100),  # a tenth of ImageNet-1K; the tree decides
    "imagenet1k": (1_281_167, (3, 224, 224), 1000),
}
ROUGH = ("imagenet100",)  # images are an estimate
DATA_GB = {"imagenet100": 15.0, "imagenet1k": 150.0}  # about
SPARE = 1.02  # tokens to prepare, over those that are seen: a split holds whole documents
SMALL_TEXT = 1e8  # tokens that a mini passes several times (docs/data.md)
NO_GPU = "no GPU is here"
MNIST_STEPS = 1170  # of the MLP bench's runs


@dataclass(frozen=True)
class Forecast:
    """What one run of a cell takes.

    Attributes:
        parameters: trainable, the steps that a quantizer learns among them.
        perturbed: d, the quantized weights that an estimator perturbs.
        steps: optimizer steps.
        rough: the steps rest on an estimate of the number of images.
        units: images or tokens seen.
        unit: which of them.
        memory: bytes of weights, gradients, optimizer and estimator; activations come on top.
        disk: bytes of the run folder, checkpoints and snapshots.
        data: bytes of the prepared data that all runs of the dataset share.
    """

    parameters: int
    perturbed: int
    steps: int
    rough: bool
    units: int
    unit: str
    memory: int
    disk: int
    data: float


def forecast(config: RunConfig, networks: dict[str, Network] | None = None) -> Forecast:
    """Forecast a run without its data and without memory for its weights.

    Args:
        config: of the run.
        networks: of the forecasts before, which gets this one's; most cells of a table share one.
    """
    import torch

    from fogzo_repro.plan import build_estimator, needs_of
    from fogzo_repro.training.tasks import build_task

    build_estimator(config, torch.device("cpu"))  # what is wrong in its file is said here too
    made_of = config.model, config.dataset, config.quantizer, config.hardware, config.parts_dir
    networks, key = {} if networks is None else networks, repr(made_of)
    network = networks.get(key) or _network_without_memory(config)
    networks[key] = network
    needs = needs_of(config, network)
    recipe, language = config.recipe, config.dataset.name == "c4"
    if language:
        steps = recipe.max_steps
        if steps is None:  # an epoch of a text, which has to be there
            batches = build_task(config).batches(recipe.global_batch_size)
            steps = recipe.total_steps(batches.order.steps)
        units = steps * recipe.global_batch_size * config.model.context
    else:
        order = _order(config)
        steps = recipe.total_steps(order.steps)
        units = order.seen(steps)
    return Forecast(
        network.parameters,
        network.perturbed,
        steps,
        recipe.max_steps is None and config.dataset.name in ROUGH,
        units,
        "tokens" if language else "images",
        needs.memory,
        needs.disk,
        2 * _tokens_to_prepare(config, units) if language else _bytes_of_images(config),
    )


def _tokens_to_prepare(config: RunConfig, units: float) -> float:
    """Return how many tokens to prepare for a run that sees so many."""
    return SPARE * (units if config.scale == "full" else min(units, SMALL_TEXT))


def _bytes_of_images(config: RunConfig) -> float:
    if config.dataset.name in DATA_GB:
        return 1e9 * DATA_GB[config.dataset.name]
    images, shape, _ = _images(config)
    return float(images * math.prod(shape))


def _images(config: RunConfig) -> tuple[int, tuple[int, int, int], int]:
    """Return training images, shape and classes; those of ImageNet without looking at its tree."""
    if config.dataset.name in PHOTOGRAPHS:
        return PHOTOGRAPHS[config.dataset.name]
    from fogzo_repro.training.tasks import build_task

    task = build_task(config)
    return task.examples, task.model_arguments["image_shape"], task.model_arguments["classes"]


def _order(config: RunConfig) -> EpochOrder:
    """Return how the images of an epoch are cut into batches."""
    from fogzo_repro.data.order import EpochOrder

    images, recipe = _images(config)[0], config.recipe
    order = EpochOrder(images, recipe.global_batch_size, getattr(recipe, "drop_last", True))
    if isinstance(recipe, VisionRecipe):
        order = replace(order, repeats=recipe.repeats, sampler_ranks=recipe.repeat_ranks)
    return order


def _network_without_memory(config: RunConfig) -> Network:
    """Return the quantized network on the meta device: shapes without numbers."""
    import torch

    from fogzo_repro.training.network import build_network

    arguments: dict[str, Any] = {}
    if config.dataset.name != "c4":
        _, shape, classes = _images(config)
        arguments = {"image_shape": shape, "classes": classes}
    meta = torch.device("meta")
    with meta:
        return build_network(config, arguments, meta)


def missing_here(config: RunConfig, needed: Forecast) -> list[str]:
    """Return what a run lacks on this machine: data, tokens, a card. Each in one line."""
    import torch

    said = []
    device = config.hardware.device
    if device.startswith("cuda") and not torch.cuda.is_available():
        said.append(f"hardware={config.hardware.name}: no CUDA device is here")
    if device == "auto" and not torch.cuda.is_available():
        said.append(f"{NO_GPU}: hardware=auto would take the CPU")
    return said + _missing_data(config, needed)


def device_here(device: str) -> str:
    """Return the kind of device that hardware.device takes on this machine, `cpu` or `cuda`."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return "cpu" if device == "cpu" else "cuda"


def missing_disk(root: Path, needed: int) -> list[str]:
    """Return a line where the disk of output_root has not `needed` bytes left, else nothing."""
    place = root.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    gigabytes = plain(needed / 1e9), plain(free / 1e9)
    said = f"{gigabytes[0]} GB on the disk of output_root={root}: {gigabytes[1]} GB are free"
    return [said] if free < needed else []


def plain(value: float) -> str:
    """Return a number with two digits at least, never as a power of ten where it is large.

    >>> plain(0.0123), plain(1.234), plain(1234.5)
    ('0.012', '1.2', '1234')
    """
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"


def _missing_data(config: RunConfig, needed: Forecast) -> list[str]:
    from fogzo_repro.training.tasks import build_task

    name, data_dir = config.dataset.name, Path(config.data_dir)
    if name.startswith("imagenet"):
        tree = data_dir / "imagenet"
        check = f"python {script('prepare_imagenet')} --root {tree}"
        if not (tree / "train").is_dir():
            return [f"{tree}/train is not there: get ImageNet from image-net.org, then {check}"]
        if not (tree / "manifest.json").is_file():
            return [f"{tree} was not checked; run {check}"]
        try:
            build_task(config)
        except UserError as error:  # of a class, or of the decoded tree
            return [str(error)]
        return []
    if name == "c4":
        from fogzo_repro.data.c4 import MANIFEST, TOKENIZER, build

        manifest = data_dir / "c4" / MANIFEST
        if not manifest.is_file():
            line = (
                f"{manifest} is not there; write it with python {script('prepare_c4')} "
                f"--source hub --tokenizer {TOKENIZER} --out {manifest.parent} "
                f"--tokens {_tokens_to_prepare(config, needed.units):.3g}"
            )
            mini = " --held-out 0.005; the recorded runs had another text (docs/data.md)"
            return [line + mini * (config.scale == "mini")]
        try:
            splits = build(data_dir).manifest["splits"]
        except UserError as error:
            return [str(error)]
        tokens = sum(shard["tokens"] for shard in splits.get("train", {}).get("shards", []))
        if tokens < needed.units and config.scale == "full":
            return [
                f"{data_dir}/c4 has {tokens / 1e9:.3g}B training tokens, {needed.units / 1e9:.3g}B "
                f"are seen: documents would repeat; run python {script('prepare_c4')} with more "
                "--tokens"
            ]
        return []
    from fogzo_repro.training.classification import InMemoryImages

    task = build_task(config)
    if isinstance(task, InMemoryImages) and not task.dataset.is_there():
        return [f"dataset={name} is not under {data_dir}; the first run downloads it"]
    return []


@dataclass(frozen=True)
class Hours:
    """Hours of one run on a card.

    Attributes:
        hours: of its training.
        scaled: whether they are estimated from another network or quantizer.
        loader: whether decoding the images takes that long, and not the steps.
        shared: whether they are of runs that shared their card, and so too many.
    """

    hours: float
    scaled: bool
    loader: bool = False
    shared: bool = False


@dataclass(frozen=True)
class _Step:
    """Seconds of a step, and what each direction adds; None where FOGZO was not measured.

    `far` says how far from the run the measured network is: whether its quantizer is another, and
    the logarithm of the ratio of sizes.
    """

    ste: float
    direction: float | None
    far: tuple[bool, float] = (False, 0.0)


@dataclass(frozen=True)
class Peak:
    """Bytes that a run takes on a card at most, and whether of another batch or quantizer."""

    memory: float
    scaled: bool


def read_benches(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the bench records of training steps by card, those of processors left out."""
    found: dict[str, list[dict[str, Any]]] = {}
    for record in bench_records(folder).values():
        card = record["hardware"]
        if ("networks" in record or "jobs" in record) and "threads" not in card:
            found.setdefault(card, []).append(record)
    return found


LOADERS = {"torchvision": "resnet18", "timm": "deit_tiny"}  # recipe.augmentation: bench's recipe


def loader_rates(folder: Path) -> dict[str, float]:
    """Return how many images a second a loader gives, by recipe of its bench.

    `resnet18` is from the files, `resnet18 decoded` from a decoded tree.
    """
    found: dict[str, float] = {}
    for record in bench_records(folder).values():
        for recipe, figures in record.get("recipes", {}).items():
            decoded = figures.get("ways", {}).get("decoded_device")
            for name, way in ((recipe, figures), (f"{recipe} decoded", decoded)):
                if way is not None:
                    found[name] = max(found.get(name, 0.0), way["images_per_s"])
    return found


def run_hours(
    config: RunConfig,
    steps: int,
    benches: list[dict[str, Any]],
    rates: Mapping[str, float] | None = None,
) -> Hours | None:
    """Return how long a run takes on the card of some records.

    Args:
        config: the run.
        steps: that it takes.
        benches: the records.
        rates: of the loader, see `loader_rates`; none: the data are there at once.

    Returns:
        The hours; None where they are unknown.
    """
    found = _step_hours(config, steps, benches)
    if found is None or config.dataset.family != "imagenet":
        return found
    recipe = LOADERS.get(getattr(config.recipe, "augmentation", ""), "")
    if config.dataset.decoded is not None:
        recipe += " decoded"
    rate = (rates or {}).get(recipe)
    if rate is None:
        return found
    loading = _order(config).seen(steps) / rate / 3600
    return found if loading <= found.hours else Hours(loading, False, loader=True)


def _step_hours(config: RunConfig, steps: int, benches: list[dict[str, Any]]) -> Hours | None:
    found: list[tuple[tuple[bool, float], Hours]] = []
    for record in benches:
        step = _mlp(config, record["jobs"]) if "jobs" in record else _network(config, record)
        if step is None:
            continue
        estimator: Any = config.estimator
        directions = (1 - getattr(estimator, "start_fraction", 0.0)) * getattr(estimator, "n", 0)
        direction = step.direction
        if getattr(estimator, "probe_gradients", False):
            direction = 2 * step.ste  # passes forward and backward
        if directions and direction is None:
            continue
        seconds = steps * (step.ste + directions * (direction or 0.0))
        hours = Hours(seconds / 3600, step.far > (False, 1e-6))
        found.append((step.far, hours))
    return min(found, key=lambda one: one[0])[1] if found else None


def peak_memory(config: RunConfig, benches: list[dict[str, Any]]) -> Peak | None:
    """Return what a run takes of a card's memory, by records of its network; None without any."""
    found: list[Peak] = []
    for record in benches:
        measured = _measured(config, record)
        if measured is not None:
            figures, substituted = measured
            factor = _units_at_once(config) / figures["units_per_step"]
            memory = factor * 2**20 * figures["peak_memory_mb"]
            found.append(Peak(memory, substituted or factor != 1))
    return min(found, key=lambda peak: (peak.scaled, -peak.memory), default=None)


def _units_at_once(config: RunConfig) -> int:
    """Return how many images or tokens are in memory at a time."""
    recipe = config.recipe
    examples = recipe.micro_batch_size if recipe.accumulate else recipe.global_batch_size
    return int(examples or 1) * getattr(config.model, "context", 1)


def flop_per_token(model: Any) -> float:
    """Return the FLOP of a training token, as scripts/bench/steps.py counts them."""
    d, layers = model.width, model.layers
    non_embedding = layers * (4 * d * d + 3 * d * model.hidden + 2 * d) + d
    return 6 * (non_embedding + model.vocabulary * d) + 6 * layers * d * model.context


def _network(config: RunConfig, record: dict[str, Any]) -> _Step | None:
    """Return the step of a network by a record of scripts/bench/steps.py."""
    if config.dataset.name == "c4":
        return _language(config, record["networks"]) if _is_of_kind(config, record) else None
    found = _measured(config, record)
    if found is None:
        return None
    figures, substituted = found
    factor = config.recipe.global_batch_size / figures["units_per_step"]
    return _step(figures, (substituted, 0.0), factor)


def _is_of_kind(config: RunConfig, record: dict[str, Any]) -> bool:
    """Return whether a bench's networks are of the run's scale and kind."""
    kind = "language" if config.dataset.name == "c4" else "vision"
    return config.scale == "full" and record.get("bench") == kind


def _measured(config: RunConfig, record: dict[str, Any]) -> tuple[dict[str, Any], bool] | None:
    """Return the figures of the run's very network, and whether of another quantizer."""
    if not _is_of_kind(config, record):
        return None
    found = _of_quantizer(record["networks"].get(config.model.name, {}), config)
    if found is None or found[0].get("size") != getattr(config.dataset, "image_size", None):
        return None
    return found


def _language(config: RunConfig, networks: dict[str, Any]) -> _Step | None:
    wanted = flop_per_token(config.model)
    measured = [_of_quantizer(v, config) for v in networks.values()]
    found = [each for each in measured if each is not None and "flop_per_token" in each[0]]
    if not found:
        return None
    figures, substituted = min(
        found, key=lambda each: (each[1], abs(each[0]["flop_per_token"] - wanted))
    )
    ratio = wanted / figures["flop_per_token"]
    tokens = config.recipe.global_batch_size * config.model.context
    far = substituted, abs(math.log(ratio))
    return _step(figures, far, ratio * tokens / figures["units_per_step"])


def _of_quantizer(
    measured: dict[str, Any], config: RunConfig
) -> tuple[dict[str, Any], bool] | None:
    """Return the figures of the run's quantizer, or of 2-bit round and that they stand in."""
    name = quantizer_label(asdict(config.quantizer))
    if name in measured:
        return measured[name], False
    return (measured["round-w2"], True) if "round-w2" in measured else None


def _step(figures: dict[str, Any], far: tuple[bool, float], factor: float) -> _Step:
    ste = factor * figures["ste_ms"]["median"] / 1000
    if "fogzo_ms" not in figures:
        return _Step(ste, None, far)
    return _Step(ste, factor * figures["fogzo_ms"]["median"] / 1000 - ste, far)


def _mlp(config: RunConfig, jobs: dict[str, Any]) -> _Step | None:
    if config.model.name != "mlp" or config.dataset.name != "mnist":
        return None
    ste = jobs["mnist_ste"]["seconds"] / MNIST_STEPS
    n = getattr(config.estimator, "n", 0)
    job = {0: "mnist_ste", 1: "mnist_fogzo_n1", 7960: "mnist_nspsa_n7960"}.get(n)
    if job not in jobs:  # many directions go at once: nothing to scale by
        return None
    return _Step(ste, (jobs[job]["seconds"] / MNIST_STEPS - ste) / max(1, n))
