"""The `hardware`, `tracker` and `cell` sections: where to compute, who else is told, labels."""

from __future__ import annotations

from dataclasses import dataclass

from fogzo_repro.config.rules import MOST, choice, finite


@dataclass(frozen=True)
class HardwareConfig:
    """Where and how to compute; never what."""

    name: str
    device: str
    precision: str
    compile: bool | None
    channels_last: bool | None
    sync_batchnorm: bool
    workers: int
    augmentation: str
    cuda_graph: bool | None
    exact_products: bool | None
    probe_memory_mb: int

    def __post_init__(self) -> None:
        kind = self.device.split(":")[0]
        choice("hardware.device", kind, ("auto", "cpu", "cuda"))
        choice("hardware.precision", self.precision, ("auto", "fp32", "bf16", "fp16"))
        choice("hardware.augmentation", self.augmentation, ("auto", "cpu", "device"))
        finite("hardware.probe_memory_mb", self.probe_memory_mb, 256)  # directions take up to 192
        finite("hardware.workers", self.workers, 0, most=MOST)


@dataclass(frozen=True)
class NoTracker:
    """metrics.jsonl alone."""

    name: str


@dataclass(frozen=True)
class WandbConfig:
    """An optional mirror of metrics.jsonl."""

    name: str
    project: str
    group: str | None


@dataclass(frozen=True)
class CellConfig:
    """Labels: where the run stands in a table. They change nothing in the run."""

    table: str
    row: str
    column: str
