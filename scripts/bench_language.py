"""Measure the training step of the LLaMAs on one card: STE, unquantized, two forwards, FOGZO n=1.

    python scripts/bench_language.py --out bench_language.json      # about 5 minutes on an H200
    python scripts/bench_language.py --toy --out toy.json           # a check on the CPU

bf16 autocast, 64 sequences of 512 tokens already on the device, compiled, 2-bit round; every figure
is the median of 50 whole steps after a warm-up: forward, backward, probes, clipping and fused
AdamW, so the weights change at every step. The two forwards are the probes' own: the same compiled
training-mode graph without gradients. The file is written after each size.

FLOP a token = 6 (N_non-embedding + V d) + 6 L d T; the MFU is against 790 TFLOP/s, the bf16 matrix
rate measured on an H200.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the package need not be installed

from fogzo_repro.config import NoQuantizer, RunConfig, SteConfig, parse_config
from fogzo_repro.data.c4 import TokenBatch
from fogzo_repro.estimators.build import build_estimator
from fogzo_repro.models import head_loss
from fogzo_repro.tracking.environment import command_line, git_state, versions
from fogzo_repro.training.network import Network, build_network
from fogzo_repro.training.optimizers import build_optimizer
from fogzo_repro.training.step import TrainStep

CONFIGS = str(ROOT / "configs")
PEAK = 790e12  # FLOP/s, bf16, measured
PAPER_RATIO = 1.58  # a FOGZO step in STE steps, PAPER 2, Table 4
SIZES = {
    "6/640/5 V=50304": ["model=llama_30m"],
    "6/640/5 V=32000": ["model=llama_30m", "model.vocabulary=32000"],
    "8/1024/8 V=50304": ["model=llama_200m"],
    "10/1280/10 V=50304": ["model=llama_300m"],
}
TOY = [
    "scale=smoke", "model.layers=2", "model.context=32", "model.vocabulary=512",
    "recipe.global_batch_size=4",
]  # fmt: skip


def settings(overrides: list[str], args: argparse.Namespace) -> RunConfig:
    """Compose a run's configuration."""
    more = ["quantizer=round", "estimator=fogzo", "estimator.noise=1e-9"]
    more += ["estimator.beta_schedule=linear", *(TOY if args.toy else [])]
    with initialize_config_dir(CONFIGS, version_base=None):
        return parse_config(compose("config", [*overrides, *more]))


def loss(model: torch.nn.Module, batch: TokenBatch) -> torch.Tensor:
    """Return the loss, as training.language does."""
    return model(batch.windows[:, :-1], batch.windows[:, 1:])


class Bench:
    """One network size on one device."""

    def __init__(self, config: RunConfig, args: argparse.Namespace) -> None:
        self.config = config
        self.args = args
        self.device = torch.device(args.device)
        generator = torch.Generator(self.device).manual_seed(0)
        shape = (config.recipe.global_batch_size, config.model.context + 1)
        self.batches = [
            TokenBatch(
                torch.randint(
                    min(32000, config.model.vocabulary), shape,
                    device=self.device, generator=generator,
                )
            )
            for _ in range(4)
        ]  # fmt: skip
        self.tokens = shape[0] * (shape[1] - 1)

    def network(self, config: RunConfig) -> Network:
        """Build and compile."""
        network = build_network(config, {}, self.device)
        network.model.train()
        if self.args.compile:
            network.model.compile(dynamic=False)
        return network

    def step(self, network: Network, estimator: Any, optimizer: Any) -> TrainStep:
        """Build the step of the training loop."""
        return TrainStep(
            network.model, loss, optimizer, build_estimator(estimator, self.device),
            network.weights, seed=0, autocast=torch.bfloat16,
            clip_norm=self.config.recipe.clip_norm,
        )  # fmt: skip

    def optimizer(self, network: Network) -> Any:
        """Build the recipe's optimizer."""
        return build_optimizer(self.config.recipe, network.model, capturable=False)

    def milliseconds(self, call: Callable[[int], Any]) -> float:
        """Return the median time of a call over the steps after the warm-up, without waiting."""
        total = self.args.warmup + self.args.steps
        cuda = self.device.type == "cuda"
        marks: list[Any] = []
        for index in range(total + 1):
            if cuda:
                mark = torch.cuda.Event(enable_timing=True)
                mark.record()
                marks.append(mark)
            else:
                marks.append(1e3 * time.perf_counter())
            if index < total:
                call(index)
        if cuda:
            torch.cuda.synchronize()
        kept = marks[self.args.warmup :]
        pairs = itertools.pairwise(kept)
        return statistics.median(a.elapsed_time(b) if cuda else b - a for a, b in pairs)

    def whole_step(self, step: TrainStep) -> float:
        """Time whole training steps."""
        total = self.args.warmup + self.args.steps

        def call(index: int) -> None:
            # One step later than the first: there beta is 1 and the direction has no noise.
            probing = step.prepare(index + 1, total + 2, 1e-4)
            step(self.batches[index % len(self.batches)], probing)

        return self.milliseconds(call)

    def memory(self) -> int:
        """Return the bytes that are allocated between steps."""
        return torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else 0

    def peak(self) -> int:
        """Return the peak of allocated bytes and start a new one."""
        if self.device.type != "cuda":
            return 0
        found = torch.cuda.max_memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        return found

    def run(self, unquantized: RunConfig) -> dict[str, Any]:
        """Measure all figures of this size."""
        ste_section = SteConfig("ste")
        self.peak()
        plain = self.network(unquantized)
        plain_step = self.step(plain, ste_section, self.optimizer(plain))
        none_ms = self.whole_step(plain_step)
        none_peak = self.peak()
        del plain, plain_step

        network = self.network(self.config)
        optimizer = self.optimizer(network)
        ste = self.step(network, ste_section, optimizer)
        ste_ms = self.whole_step(ste)
        ste_memory, ste_peak = self.memory(), self.peak()

        probe = [ste.probe_loss(batch) for batch in self.batches]
        forwards_ms = 2 * self.milliseconds(lambda i: probe[i % len(probe)]())

        def forward_backward(index: int) -> None:
            optimizer.zero_grad(set_to_none=True)
            ste._mean_loss(self.batches[index % len(self.batches)], backward=True)

        pass_ms = self.milliseconds(forward_backward)
        optimizer.zero_grad(set_to_none=True)
        self.peak()
        fogzo = self.step(network, self.config.estimator, optimizer)
        fogzo_ms = self.whole_step(fogzo)
        fogzo_memory, fogzo_peak = self.memory(), self.peak()

        m = self.config.model
        non_embedding = network.parameters - network.model.embedding_parameters  # type: ignore
        per_token = 6 * (non_embedding + m.vocabulary * m.width)
        per_token += 6 * m.layers * m.width * m.context

        def rates(ms: float) -> dict[str, float]:
            per_second = self.tokens / (ms / 1e3)
            mfu = per_second * per_token / PEAK
            return {"ms": ms, "tokens_per_s": per_second, "mfu": mfu}

        return {
            "non_embedding": non_embedding,
            "flop_per_token": per_token,
            "floor_ms": 1e3 * self.tokens * per_token / PEAK,
            "ste": rates(ste_ms),
            "unquantized": rates(none_ms),
            "ste_forward_backward_ms": pass_ms,
            "two_forwards_ms": forwards_ms,
            "fogzo": {
                "ms": fogzo_ms, "tokens_per_s": self.tokens / (fogzo_ms / 1e3),
                "over_ste": fogzo_ms / ste_ms, "paper_over_ste": PAPER_RATIO,
                "over_ste_and_two_forwards": fogzo_ms / (ste_ms + forwards_ms),
            },
            "quantized_over_unquantized": ste_ms / none_ms,
            "estimator_persistent_bytes": fogzo_memory - ste_memory,
            "quantized_weight_bytes": 4 * network.perturbed,
            "peak_bytes": {"ste": ste_peak, "unquantized": none_peak, "fogzo": fogzo_peak},
        }  # fmt: skip


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    parser.add_argument("--sizes", nargs="*", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--warmup", type=int, default=10)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    parser.add_argument("--chunk-logits", type=int, default=head_loss.CHUNK_LOGITS)
    parser.add_argument("--toy", action="store_true", help="tiny sizes, for a check on the CPU")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    head_loss.CHUNK_LOGITS = args.chunk_logits
    on_gpu = args.device.startswith("cuda")
    result: dict[str, Any] = {
        "command": command_line(),
        **git_state(),
        "versions": versions(),
        "device": torch.cuda.get_device_name(args.device) if on_gpu else "cpu",
        "settings": {k: str(v) for k, v in vars(args).items() if k != "out"},
        "sizes": {},
    }
    for name in args.sizes:
        started = time.monotonic()
        torch._dynamo.reset()
        config = settings(SIZES[name], args)
        bench = Bench(config, args)
        measured = bench.run(_without_quantizer(config))
        measured["seconds"] = round(time.monotonic() - started, 1)
        result["sizes"][name] = measured
        args.out.write_text(json.dumps(result, indent=1) + "\n")
        ste, fogzo = measured["ste"], measured["fogzo"]
        print(
            f"{name}: STE {ste['ms']:.2f} ms, {ste['tokens_per_s']:,.0f} tokens/s, MFU "
            f"{ste['mfu']:.1%}; quantized/unquantized {measured['quantized_over_unquantized']:.3f};"
            f" FOGZO/STE {fogzo['over_ste']:.3f}, against STE + 2 forwards "
            f"{fogzo['over_ste_and_two_forwards']:.3f}; {measured['seconds']:.0f} s",
            flush=True,
        )


def _without_quantizer(config: RunConfig) -> RunConfig:
    return replace(config, quantizer=NoQuantizer("none"), estimator=SteConfig("ste"))


if __name__ == "__main__":
    main()
