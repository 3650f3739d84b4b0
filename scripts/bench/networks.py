"""The networks of scripts/bench/steps.py, and how one of them is measured."""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from fogzo_repro.composition import compose_run
from fogzo_repro.config import RunConfig
from fogzo_repro.data import Batch
from fogzo_repro.data.c4 import TokenBatch
from fogzo_repro.estimators import SequentialProbes
from fogzo_repro.plan import build_step
from fogzo_repro.reporting.benches import PEAK_TFLOPS
from fogzo_repro.sweeps.benched import flop_per_token
from fogzo_repro.training.imagenet import photograph_loss
from fogzo_repro.training.language import token_loss
from fogzo_repro.training.machine import resolve_machine
from fogzo_repro.training.network import build_network
from fogzo_repro.training.ranks import current_ranks
from fogzo_repro.training.step import TrainStep
from scripts.bench.clock import Clock
from scripts.bench.floor import floors, measured_rates, products_of

NETWORKS = {
    "vision": {
        name: [f"model={name}"] for name in ("resnet18", "resnet50", "deit_tiny", "deit_small")
    },
    "language": {
        "llama_30m": ["model=llama_30m"],
        "llama_30m V=32000": ["model=llama_30m", "model.vocabulary=32000"],
        "llama_200m": ["model=llama_200m"],
        "llama_300m": ["model=llama_300m"],
    },
}
FOGZO = ["estimator=fogzo", "estimator.noise=1e-9"]  # the cost does not depend on 1 - beta
QUANTIZERS = {
    "none": ["quantizer=none", "estimator=ste"],
    "round-w2": ["quantizer=round", *FOGZO],
    "sign-w1": ["quantizer=sign", "quantizer.surrogate=tanh", *FOGZO],
    "lsq-w2": ["quantizer=lsq", *FOGZO],
    "lsq-w2a2": ["quantizer=lsq", "quantizer.activation_bits=2", *FOGZO],
    "quest-w2a2": ["quantizer=quest", "quantizer.activation_bits=2", *FOGZO],
}
EXACT = {  # the same with products in eight bits where they are measured to be faster
    f"{name}-exact": [*QUANTIZERS[name], "hardware.exact_products=null"]
    for name in ("lsq-w2a2", "quest-w2a2")
}
QUANTIZERS |= EXACT
LEARNED = ("lsq-w2", "lsq-w2a2", "quest-w2a2")
MEASURED = {  # beside none and round-w2
    "vision": {"resnet50": LEARNED},
    "language": {
        "llama_30m": (*LEARNED, *EXACT),
        "llama_200m": ("lsq-w2a2", "quest-w2a2", *EXACT),
        "llama_300m": ("lsq-w2a2", "quest-w2a2", *EXACT),
    },
}
CLASSES = 1000
BATCHES = 4  # different ones, taken in turn
TOY = {
    "vision": ["scale=smoke", "hardware=cpu", "recipe.global_batch_size=4"],
    "language": [
        "scale=smoke", "hardware=cpu", "model.layers=2", "model.context=32", "model.vocabulary=512",
        "recipe.global_batch_size=4",
    ],
}  # fmt: skip


def cases(group: str) -> list[str]:
    """Return the group's cases, network and quantizer, the unquantized one first."""
    return [
        f"{network} {quantizer}"
        for network in NETWORKS[group]
        for quantizer in ("none", "round-w2", *MEASURED[group].get(network, ()))
    ]


def configure(
    group: str, case: str, arguments: argparse.Namespace, more: Sequence[str] = ()
) -> RunConfig:
    """Compose the run that a case stands for, with more overrides."""
    network, quantizer = case.rsplit(" ", 1)
    overrides = [*NETWORKS[group][network], *QUANTIZERS[quantizer], *more]
    if group == "vision":
        overrides += ["dataset=imagenet1k", "recipe.global_batch_size=256"]
    return compose_run(*overrides, *(TOY[group] if arguments.toy else []))


def photographs(config: RunConfig, device: Any, toy: bool) -> tuple[list[Any], Any, dict[str, Any]]:
    """Return batches of random pixels, the loss, and what the model is built with."""
    batch, side = config.recipe.global_batch_size, 64 if toy else 224
    stream = torch.Generator().manual_seed(current_ranks().rank)
    shape = (BATCHES * batch, 3, side, side)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=stream).to(device)
    labels = torch.randint(0, CLASSES, shape[:1], generator=stream).to(device)
    batches = [Batch(*part) for part in zip(pixels.split(batch), labels.split(batch), strict=True)]
    return batches, photograph_loss, {"image_shape": shape[1:], "classes": CLASSES}


def sequences(config: RunConfig, device: Any) -> tuple[list[Any], Any, dict[str, Any]]:
    """Return batches of random tokens, the loss, and what the model is built with."""
    model: Any = config.model
    shape = (config.recipe.global_batch_size, model.context + 1)
    stream = torch.Generator().manual_seed(current_ranks().rank)
    words = min(32000, model.vocabulary)  # the tokenizer's, whatever the vocabulary
    drawn = [torch.randint(words, shape, generator=stream).to(device) for _ in range(BATCHES)]
    return [TokenBatch(windows) for windows in drawn], token_loss, {}


def build(config: RunConfig, group: str, toy: bool) -> tuple[Any, list[Any], Any]:
    """Return the training step as a run builds it, its batches, and the machine."""
    machine = resolve_machine(config)
    if group == "vision":
        batches, loss, of_model = photographs(config, machine.device, toy)
    else:
        batches, loss, of_model = sequences(config, machine.device)
    network = build_network(config, of_model, machine.device)
    if machine.channels_last:
        network.model.to(memory_format=torch.channels_last)
    network.model.train()
    return build_step(config, machine, network, loss), batches, machine


def measure(group: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Compile one network, say so, wait to be told, measure."""
    started = time.monotonic()
    config = configure(group, arguments.one, arguments)
    step, batches, machine = build(config, group, arguments.toy)
    captured = machine.cuda_graph
    clock = Clock(step, batches, machine, arguments, captured)
    probed = config.estimator.name != "ste"
    kinds = (False, True)[: 1 + probed]
    clock.compile(kinds)
    compile_seconds = round(time.monotonic() - started, 1)
    on_parts = {}
    if arguments.one.endswith(" round-w2"):
        for fraction in arguments.probe_fractions:
            of_part = with_probe_fraction(step, fraction)
            on_parts[fraction] = Clock(of_part, batches, machine, arguments, captured)
            on_parts[fraction].compile([True])
    if machine.device.type == "cuda":
        torch.cuda.empty_cache()  # for those that compile beside it
    print("ready", flush=True)
    if sys.stdin.readline() != "go\n":
        raise SystemExit("the bench is gone")
    clock.capture(kinds)
    if probed:
        clock.capture_forwards()

    found: dict[str, Any] = {"compile_seconds": compile_seconds, "ste_ms": clock.steps(False)}
    if probed:
        found["two_forwards_ms"] = clock.two_forwards()
        found["fogzo_ms"] = clock.steps(True)
    found["loss"] = clock.last_loss()
    on_gpu = machine.device.type == "cuda"
    if on_gpu and arguments.profile:
        found["ste_kernels"] = clock.kernels(partial(clock.train, False), arguments.profile)
        if probed:
            found["two_forwards_kernels"] = clock.kernels(clock.forwards, arguments.profile)
    found["peak_memory_mb"] = clock.peak_memory_mb() if on_gpu else machine.peak_memory_mb()
    found["memory_mb"] = clock.memory_mb
    if probed:
        found["estimator_memory"] = estimator_memory(step)
    examples = config.recipe.global_batch_size
    if config.dataset.name != "c4":
        found |= {"unit": "images", "units_per_step": examples, "size": batches[0].pixels.shape[-1]}
    else:
        tokens = examples * config.model.context  # type: ignore[union-attr]
        flop = flop_per_token(config.model)
        found |= {"unit": "tokens", "units_per_step": tokens, "flop_per_token": flop}
    found |= rates(found)
    del clock
    if on_parts:
        found["probe_fraction"] = {
            str(fraction): _on_part(on_parts, fraction, found["ste_ms"]["median"])
            for fraction in arguments.probe_fractions
        }
    found["floor"] = _floor(group, arguments, config, batches[0], machine)
    for kind in ("ste", "two_forwards", "fogzo"):
        if f"{kind}_ms" in found:
            found["floor"][kind]["measured_over"] = (
                found[f"{kind}_ms"]["median"] / found["floor"][kind]["ms"]
            )
    return found


def _floor(
    group: str, arguments: argparse.Namespace, config: RunConfig, batch: Any, machine: Any
) -> dict[str, Any]:
    """Return what a case's steps take at the least, at the rates that the card has just now."""
    plain = configure(group, f"{arguments.one.rsplit(' ', 1)[0]} none", arguments)
    meta, of_model = torch.device("meta"), {}
    if config.dataset.name == "c4":
        example = torch.zeros_like(batch.windows[:, :-1], device=meta)
    else:
        of_model = {"image_shape": tuple(batch.pixels.shape[1:]), "classes": CLASSES}
        example = torch.empty(batch.pixels.shape, device=meta)
    with meta:
        network = build_network(plain, of_model, meta)
        products = products_of(network.model.eval(), example)
    rates = measured_rates(machine.device, machine.autocast or torch.float32, arguments.toy)
    return floors(products, network.parameters, config, rates)


def _on_part(clocks: dict[float, Clock], fraction: float, ste_ms: float) -> dict[str, Any]:
    """Return the figures of a FOGZO step whose probes see a part of the batch."""
    gc.collect()  # a captured graph must not be freed while the next one captures
    clock = clocks.pop(fraction)
    clock.capture([True])
    fogzo_ms = clock.steps(True)
    clock.last_loss()
    over_ste = fogzo_ms["median"] / ste_ms
    return {"fogzo_ms": fogzo_ms, "fogzo_over_ste": over_ste, "memory_mb": clock.memory_mb}


def with_probe_fraction(step: Any, fraction: float) -> Any:
    """Return a step of the same network and optimizer whose probes see a part of the batch."""
    return TrainStep(
        step.model, step.passes.loss, step.optimizer, step.estimator, step.weights,
        seed=step.seed, pairs=step.pairs, probe_fraction=fraction, autocast=step.passes.autocast,
        clip_norm=step.clip_norm, micro_batch=step.passes.micro_batch,
    )  # fmt: skip


def rates(found: dict[str, Any]) -> dict[str, float]:
    """Return the figures that need this network alone, from medians in milliseconds."""
    ste, units = found["ste_ms"]["median"], found["units_per_step"]
    figures = {"ste_per_s": 1000 * units / ste}
    if "flop_per_token" in found:
        flop_per_s = figures["ste_per_s"] * found["flop_per_token"]
        figures["share_of_peak"] = flop_per_s / (1e12 * PEAK_TFLOPS)
    if "fogzo_ms" in found:
        fogzo, forwards = found["fogzo_ms"]["median"], found["two_forwards_ms"]["median"]
        figures["fogzo_per_s"] = 1000 * units / fogzo
        figures["fogzo_over_ste"] = fogzo / ste
        figures["fogzo_over_parts"] = fogzo / (ste + forwards)
    return figures


def estimator_memory(step: Any) -> dict[str, float]:
    """Return what the estimator itself takes beside the passes: at its peak, and between steps."""
    weights = step.weights
    quantized = sum(w.parameter.numel() * w.parameter.element_size() for w in weights)
    found: dict[str, float] = {"quantized_weight_bytes": quantized}
    if step.device.type == "cuda":
        zero = torch.zeros((), device=step.device)
        for w in weights:
            w.parameter.grad = torch.rand_like(w.parameter)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        streams = step.generators["directions"], step.generators["signs"]
        step.estimator(weights, SequentialProbes(lambda: zero), *streams)
        torch.cuda.synchronize()
        found["peak_bytes"] = torch.cuda.max_memory_allocated() - before
        found["persistent_bytes"] = torch.cuda.memory_allocated() - before
        found["peak_over_quantized_weights"] = found["peak_bytes"] / quantized
    return found
