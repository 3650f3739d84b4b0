"""How good is each estimator along a run? Measured against the smoothed gradient.

    python -m fogzo_repro.diagnose runs/<run_id> [data_dir=...] [directions=...] [batches=...]

At every snapshot of the run (`snapshots=5` keeps five), on a few batches, the smoothed gradient R
is estimated by n-SPSA with many directions, and STE, n-SPSA and FOGZO are compared with it: cosine
and norm ratio of one estimate, bias and variance, for n = 1, 10, 100 and several values of beta;
and so is the run's own estimator, where it is another one, with its settings at the snapshot's
step. The values are those of the paper's Section 4.1 for its MLP, and rho = (1 - beta) d / beta
from 100 to 0.01 for other networks.

R is what n-SPSA estimates, the q-smoothed gradient of PAPER 1: n-SPSA is unbiased for it by
definition, and on a quantized loss it is not the gradient of the p-smoothed loss. All vectors are
in units of epsilon, eps * g, as in estimators/fogzo.py; all losses are in float32, in training
mode, with one set of masks per batch.

The batches are the first of a permutation drawn from the stream (seed, 0, "diagnose/batches"), the
same at all snapshots; directions come from streams of (seed, step, "diagnose/..."). Each figure is
a ratio of means over the batches, with a 95% interval from the jackknife over the batches and
Student's t: it covers the draws of directions and the choice of batches.

Writes diagnose.csv and diagnose.png into the run folder and prints a table.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fogzo_repro.config import UserError, own_files_named
from fogzo_repro.estimators import SequentialProbes, fogzo, nspsa
from fogzo_repro.estimators.protocol import Estimator, Point, ProbeLosses, Probes
from fogzo_repro.estimators.quality import (
    Quality,
    estimator_quality,
    repeated_quality,
    smoothed_gradient,
    ste_quality,
)
from fogzo_repro.estimators.schedule import noise_from_rho, start_step
from fogzo_repro.evaluate import parse_settings
from fogzo_repro.plan import batched_probes, build_estimator
from fogzo_repro.randomness import derive_seed, generator_for
from fogzo_repro.reporting.diagnosis import Row, draw, table, write_csv
from fogzo_repro.reporting.statistics import jackknife
from fogzo_repro.stored import StoredRun, open_run, tell_skipped
from fogzo_repro.terminal import command_parser, one_line_errors
from fogzo_repro.tracking.progress import RunProgress
from fogzo_repro.training.checkpoint import load_weights, read_tensors
from fogzo_repro.training.network import Network
from fogzo_repro.training.passes import Passes
from fogzo_repro.training.tasks import Task

SIZES = (1, 10, 100)  # n
BUILT_IN = ("ste", "spsa", "fogzo")  # families
NOISES = (1 - 0.666, 1 - 0.9, 1e-3, 1e-4, 1e-5, 1e-6)  # 1 - beta, as in the paper's Section 4.1
RHOS = (100.0, 10.0, 1.0, 0.1, 0.01)  # of other networks than that section's


@dataclass(frozen=True)
class Effort:
    """How much to measure at each snapshot."""

    directions: int  # probe pairs for the smoothed gradient, over all batches together
    batches: int  # at least 2
    draws: int  # probe pairs for each estimator on each batch, at least 100

    def __post_init__(self) -> None:
        if self.batches < 2:
            raise UserError(f"batches={self.batches} must be at least 2; intervals are over them")
        if self.directions < 2 * self.batches:
            raise UserError(f"directions={self.directions} must be at least 2 for each batch")
        if self.draws < max(SIZES):
            raise UserError(f"draws={self.draws} must be at least {max(SIZES)}, the largest n")


MANY = Effort(directions=2**14, batches=8, draws=200)  # where the batched evaluator runs the model
FEW = Effort(directions=2**8, batches=4, draws=100)  # one pair after another


@dataclass(frozen=True)
class Measured:
    """One batch at one snapshot: ||R||^2, and each estimator's moments by (name, 1 - beta)."""

    smoothed_square: float
    qualities: dict[tuple[str, float | None], Quality]


class Diagnosis:
    """The network and the data of a run, and the batches; measures one snapshot after another.

    `given` are numbers of `Effort`, in place of what is the default for this model.
    """

    def __init__(
        self,
        run: StoredRun,
        network: Network,
        task: Task,
        given: Mapping[str, int],
        device: torch.device,
    ) -> None:
        self.seed = run.config.seed
        self.network, self.task, self.device = network, task, device
        self.batched = batched_probes(task, network.model, run.config.hardware)
        self.passes = Passes(network.model, task.loss, [w.parameter for w in network.weights])
        self.effort = replace(MANY if self.batched else FEW, **given)
        settings = run.config.estimator
        self.own, self.name, self.n = None, settings.name, settings.n
        self.own_gradients = settings.probe_gradients
        if settings.family not in BUILT_IN:
            self.own = build_estimator(run.config, device)
        mlp = run.config.model.family == "mlp"
        self.noises = NOISES if mlp else [noise_from_rho(rho, network.perturbed) for rho in RHOS]
        self.calls = max(2, self.effort.draws // max(1, self.n))  # of the run's own estimator
        data = task.batches(run.config.recipe.global_batch_size)
        self.total_steps = run.config.recipe.total_steps(data.order.steps)
        self.start = start_step(settings.start_fraction, self.total_steps)
        order = generator_for(self.seed, 0, "diagnose/batches")
        self.batches: list[Any] = list(islice(data.epoch(order), self.effort.batches))
        if len(self.batches) < self.effort.batches:
            raise UserError(f"batches={self.effort.batches}: an epoch has {len(self.batches)}")

    def snapshot(self, path: Path, report: Callable[[float], None]) -> list[Row]:
        """Measure every estimator at one snapshot; `report` takes the probe pairs done."""
        load_weights(self.network.model, read_tensors(path), path)
        self.network.model.train()
        step = step_of(path)
        measured = [self._batch(step, index, report) for index in range(len(self.batches))]
        return list(_rows(step, step / self.total_steps, measured))

    def _batch(self, step: int, index: int, report: Callable[[float], None]) -> Measured:
        batch, weights, effort = self.batches[index], self.network.weights, self.effort

        def stream(purpose: str) -> torch.Generator:
            return generator_for(self.seed, step, f"diagnose/{purpose}/{index}", self.device)

        self.passes.seed(derive_seed(self.seed, step, f"diagnose/masks/{index}"))
        self.network.model.zero_grad(set_to_none=True)
        self.passes.straight_through(batch, Tensor.backward)
        probes = self._probes(batch, report)
        pairs = effort.directions // effort.batches
        reference = smoothed_gradient(weights, probes, pairs, stream("smoothed"))

        def measure(estimate: Callable[[Probes], object]) -> Quality:
            return estimator_quality(weights, probes, reference, SIZES, estimate)

        n = effort.draws
        qualities: dict[tuple[str, float | None], Quality] = {}
        qualities["ste", None] = ste_quality(weights, reference)
        g = stream("nspsa")
        qualities["nspsa", None] = measure(lambda p: nspsa(weights, n=n, generator=g, probes=p))
        for noise in self.noises:
            qualities["fogzo", noise] = measure(self._fogzo(noise, stream(f"fogzo/{noise:g}")))
        if self.own is not None and self._begins(self.own, step):
            own, streams = self.own, (stream("own/directions"), stream("own/signs"))
            if self.own_gradients:
                probes = self._probes(batch, report, gradients=True)
            qualities[self.name, None] = repeated_quality(
                weights, reference, self.n, self.calls, lambda: own(weights, probes, *streams)
            )
        self.passes.finish()
        return Measured(reference.square, qualities)

    def _probes(
        self, batch: Any, report: Callable[[float], None], gradients: bool = False
    ) -> Probes:
        """Return what measures pairs, and tells `report` of each as soon as it is measured."""
        if self.batched and not gradients:
            batched = self.batched(batch)

            def measure(here: Point, directions: Sequence[Tensor]) -> ProbeLosses:
                losses = batched(here, directions)
                report(len(losses.plus))
                return losses

            return measure
        loss = self.passes.probe(batch, gradients=gradients)

        def one_side() -> Tensor:
            value = loss()
            report(0.5)
            return value

        return SequentialProbes(one_side)

    def _begins(self, own: Estimator, step: int) -> bool:
        """Begin the estimator's own step after so many of the run; the nearest that there is."""
        total = self.total_steps - self.start
        return total > 0 and own.begin_step(min(max(0, step - self.start), total - 1), total)

    @property
    def pairs(self) -> int:
        """All probe pairs of one snapshot."""
        effort, own = self.effort, 0 if self.own is None else self.calls * self.n
        known = effort.directions // effort.batches + (1 + len(self.noises)) * effort.draws
        return effort.batches * (known + own)

    def _fogzo(self, noise: float, generator: torch.Generator) -> Callable[[Probes], object]:
        weights, n = self.network.weights, self.effort.draws
        return lambda p: fogzo(weights, beta=1 - noise, n=n, generator=generator, probes=p)


def _rows(step: int, progress: float, measured: Sequence[Measured]) -> Iterator[Row]:
    """Turn the moments of all batches into relative figures with intervals."""
    smoothed = jackknife([[m.smoothed_square] for m in measured], lambda x: x[0])
    for name, noise in measured[0].qualities:
        of_batches = [(m.smoothed_square, m.qualities[name, noise]) for m in measured]
        for n in of_batches[0][1].length:
            samples = [
                [
                    r, q.alignment[n], q.length[n], q.square - 2 * q.projection + r,
                    q.variance / max(1, n),
                ]
                for r, q in of_batches
            ]  # fmt: skip
            yield Row(
                step, progress, name, n, noise,
                cosine=jackknife(samples, lambda x: x[1] / x[0].sqrt()),
                norm_ratio=jackknife(samples, lambda x: x[2] / x[0].sqrt()),
                bias_squared=jackknife(samples, lambda x: x[3] / x[0]),
                variance=jackknife(samples, lambda x: x[4] / x[0]),
                smoothed_square=smoothed,
            )  # fmt: skip


def step_of(path: Path) -> int:
    """Return the step of a snapshot's file name."""
    return int(path.stem.removeprefix("snapshot-"))


def diagnose(
    run: StoredRun, data_dir: Path | None, device: torch.device, given: Mapping[str, int]
) -> list[Row]:
    """Measure at all snapshots of a run, with progress.

    Raises:
        UserError: where the run has no snapshots or no quantized weights, or its data are damaged.
    """
    snapshots = sorted(run.folder.glob("snapshot-*.safetensors"))
    if not snapshots:
        raise UserError(
            f"{run.folder} has no snapshots; run its command again with snapshots=5 force=true"
        )
    network = run.network(device)
    if not network.weights:
        raise UserError(f"{run.folder} has no quantized weights, so there is nothing to estimate")
    network.check_laws("diagnose")
    task = run.task(data_dir, device)
    diagnosis = Diagnosis(run, network, task, given, device)
    pairs = diagnosis.pairs * len(snapshots)
    progress = RunProgress("diagnose, probe pairs", pairs, 0)
    done, rows = 0.0, []

    def report(count: float) -> None:
        nonlocal done
        done += count
        progress.update(int(done), {})

    try:
        for path in snapshots:
            rows += diagnosis.snapshot(path, report)
    finally:
        progress.close()
    tell_skipped(task)
    return rows


@one_line_errors
@own_files_named
def main() -> None:
    """Diagnose a run: print the table, write diagnose.csv and diagnose.png."""
    parser = command_parser(__doc__, "fogzo_repro.diagnose")
    parser.add_argument("run", type=Path, help="a run folder with snapshots")
    parser.add_argument(
        "settings",
        nargs="*",
        help="data_dir=DIR, device=auto|cpu|cuda; per snapshot, each 1 or more: directions= (probe "
        "pairs for the smoothed gradient), batches=, draws= (pairs for an estimator on a batch)",
    )
    arguments = parser.parse_args()
    settings = parse_settings(arguments.settings, directions=int, batches=int, draws=int)
    data_dir, device = settings.pop("data_dir"), settings.pop("device")
    run = open_run(arguments.run)
    rows = diagnose(run, data_dir, device, settings)
    print(table(rows))
    write_csv(rows, run.folder / "diagnose.csv")
    draw(rows, run.folder / "diagnose.png", run.folder.resolve().name)
    print(f"\n± and intervals: 95%, over batches. Written: {run.folder}/diagnose.csv, diagnose.png")


if __name__ == "__main__":
    sys.exit(main())
