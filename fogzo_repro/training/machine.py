"""From the `hardware` section to the machine that is there."""

from __future__ import annotations

import os
import platform
import resource
from dataclasses import dataclass
from pathlib import Path

import torch

from fogzo_repro.config import RunConfig, UserError
from fogzo_repro.quantization.products import has_products

DTYPES = {"auto": None, "fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Machine:
    """What a run computes on."""

    device: torch.device
    card: str  # its name, or the processor's
    autocast: torch.dtype | None  # of the forward passes; None for float32
    cuda_graph: bool  # whether the whole step is captured
    compile: bool  # whether the network is compiled
    channels_last: bool  # the memory format of convolution weights

    def peak_memory_mb(self) -> float:
        """Return the peak of allocated device memory, or of resident memory on the CPU."""
        if self.device.type == "cuda":
            return round(torch.cuda.max_memory_allocated(self.device) / 2**20, 1)
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10, 1)


def processor_name() -> str:
    """Return the processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def resolve_machine(config: RunConfig) -> Machine:
    """Find the device and decide how it computes.

    Raises:
        UserError: where the device is not there or cannot do what is asked.
    """
    hardware = config.hardware
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    device = _find_device(hardware.device, several)
    on_gpu = device.type == "cuda"
    autocast = _autocast(hardware.precision, device) if config.recipe.autocast else None
    graph = hardware.cuda_graph
    if graph is None:  # GradScaler and shared batch statistics stay outside of captured graphs
        graph = on_gpu and autocast != torch.float16 and not (several and hardware.sync_batchnorm)
    # The MLP is too small for fused kernels to matter, and is the one network in float32.
    shallow = config.model.name == "mlp"
    compiles = on_gpu and not shallow if hardware.compile is None else hardware.compile
    channels_last = on_gpu if hardware.channels_last is None else hardware.channels_last
    if hardware.exact_products and not (has_products(device) and autocast == torch.bfloat16):
        raise UserError(
            "hardware.exact_products=true needs bf16 and a card of compute capability 9 (H100, "
            "H200); leave it out"
        )
    if graph and not on_gpu:
        raise UserError("hardware.cuda_graph=true needs a CUDA device; leave it out")
    card = f"{processor_name()}, {torch.get_num_threads()} threads"
    if on_gpu:
        card = torch.cuda.get_device_name(device)
    return Machine(device, card, autocast, graph, compiles, channels_last)


def _find_device(wanted: str, several: bool) -> torch.device:
    available, count = torch.cuda.is_available(), torch.cuda.device_count()
    name = ("cuda" if available else "cpu") if wanted == "auto" else wanted
    if name == "cuda" and several:
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"  # torchrun: one card a process
    device = torch.device(name)
    if device.type == "cuda" and not available:
        raise UserError(f"hardware.device={name}: no CUDA device is here; use hardware=cpu")
    if device.type == "cuda" and (device.index or 0) >= count:
        raise UserError(f"hardware.device={name}: there are {count} CUDA devices, from cuda:0 on")
    return device


def _autocast(precision: str, device: torch.device) -> torch.dtype | None:
    """Return the type of a precision; `auto` goes by the card, and is float32 on a CPU."""
    if precision == "auto" and device.type == "cuda":
        precision = "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"
    return DTYPES[precision]
