"""Many runs of the shallow network side by side, as one batched network (`evaluator: lanes`).

A run of the 784-10-10 network keeps a GPU busy for a few percent of its time. Here a lane is such a
run, and lanes whose runs differ in numbers alone (seed, learning rate, noise, scale factor) share
every kernel. A lane follows the streams of the run that it stands for: initialisation, order of the
images, directions, signs and control are functions of its seed, as everywhere. In float64 it is
that run, to rounding; in float32 until rounding moves a first weight to another level.

Two things save most of the work. Lanes of one seed see the same images and the same directions, so
that these are fetched and drawn once a seed. And probes multiply integer levels by integer pixels,
see `training.batched`.

Left out: checkpoints, folders, and evaluations before the end. Lanes take minutes and start over.

Shapes: S seeds, C cells of a table, S x C lanes; B images a batch, P pixels, H hidden units, K
classes, n probe pairs, T steps. A weight is (S, C, i, j), so i, j stand for H, P or K, H.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fogzo_repro.config import RunConfig
from fogzo_repro.data import Images
from fogzo_repro.estimators.schedule import noise_at, start_step
from fogzo_repro.estimators.smoothing import widest
from fogzo_repro.training.batched import losses_of_levels, mean_cross_entropy
from fogzo_repro.training.network import Network, build_network
from fogzo_repro.training.row import MAX_BAD_STREAK
from fogzo_repro.training.schedules import learning_rate
from fogzo_repro.training.streams import SeedStreams


@dataclass
class Layer:
    """A linear layer of all lanes."""

    weight: Tensor  # latent, (S, C, i, j)
    bias: Tensor  # (S, C, i, 1)
    quantizer: Any  # with a scale for each lane; None in full precision
    law: Any  # that belongs to it

    def __call__(self, x: Tensor) -> Tensor:
        """Map (S, C, j, B) to (S, C, i, B), or (S, j, B) and (j, B), which lanes share."""
        w = self.weight if self.quantizer is None else self.quantizer(self.weight)
        if x.dim() == 4:
            return w @ x + self.bias
        return (w.flatten(1, 2) @ x).view(*w.shape[:3], -1) + self.bias

    @property
    def width(self) -> Tensor:
        """Epsilon, (S, C, 1, 1)."""
        return self.quantizer.perturbation_scale(self.weight).abs() * self.law.epsilon_bar


class Lanes:
    """The lanes of some cells and seeds, from their first step to their last.

    Args:
        configs: one a cell. They differ in numbers alone, see `sweeps.lanes`; their seeds count for
            nothing.
        seeds: of every cell.
        images: the dataset, on the device.
        dtype: of all that is neither level nor pixel; float64 is for tests.
        compile: make one kernel of the random numbers, on a GPU.

    Attributes:
        layers: the network's two.
        failed: (S, C), lanes that have stopped, with the weights from before the bad step.
        counts: over a lane's steps, (S, C) each: updates, flat and bad probe pairs, dead guides.
    """

    def __init__(
        self,
        configs: Sequence[RunConfig],
        seeds: Sequence[int],
        images: Images,
        dtype: torch.dtype = torch.float32,
        compile: bool = False,
    ) -> None:
        self.configs, self.seeds, self.images, self.dtype = configs, seeds, images, dtype
        self.device = images.train.labels.device
        self.recipe = configs[0].recipe
        self.batch = self.recipe.global_batch_size
        self.steps_per_epoch = len(images.train.labels) // self.batch
        self.total_steps = self.recipe.total_steps(self.steps_per_epoch)
        self.n = configs[0].estimator.n
        start = configs[0].estimator.start_fraction if self.n else 1.0
        self.first_probed = start_step(start, self.total_steps)

        exact = torch.bfloat16 if self.device.type == "cuda" else dtype  # for levels and pixels
        pixels = images.train.pixels.flatten(1)
        self.pixels, self.inputs = pixels.to(exact), self._normalized(pixels)  # (images, P)
        self.streams = SeedStreams(seeds, self.device, compile)
        self.layers = self._initialised()
        self._tabulate()
        weights, biases = ([getattr(x, k) for x in self.layers] for k in ("weight", "bias"))
        self.parameters: list[Tensor] = [*weights, *biases]
        self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in self.parameters]
        for p in self.parameters:
            p.requires_grad_()
        nothing = torch.zeros(len(seeds), len(configs), dtype=torch.int32, device=self.device)
        self.failed = nothing.bool()
        self.bad_streak = self.dead_steps = nothing
        counted = "steps", "flat_probes", "bad_probes", "dead_guides"
        self.counts = {name: nothing.clone() for name in counted}

    def _initialised(self) -> list[Layer]:
        """Build each run's network as `build_network` does, and stack what they consist of."""
        shape = {"image_shape": self.images.shape, "classes": self.images.classes}
        networks: dict[tuple[int, Any], Network] = {}
        for seed in self.seeds:
            for c in self.configs:
                if (seed, c.quantizer) not in networks:
                    built = build_network(replace(c, seed=seed), shape, torch.device("cpu"))
                    networks[seed, c.quantizer] = built
        grid = [[networks[seed, c.quantizer] for c in self.configs] for seed in self.seeds]

        def stacked(name: str) -> Tensor:
            rows = [[net.model.state_dict()[name] for net in row] for row in grid]
            lanes = torch.stack([torch.stack(row) for row in rows])
            return lanes.to(self.device, self.dtype)

        layers = []
        for index, name in enumerate(("fc1", "fc2")):
            quantizer: Any = getattr(grid[0][0].model.get_submodule(name), "weight_quantizer", None)
            law = None
            if quantizer is not None:  # the first lane's, with a scale for each
                quantizer = copy.deepcopy(quantizer)
                quantizer.scale = stacked(f"{name}.weight_quantizer.scale")[..., None, None]
                law = grid[0][0].weights[index].law
            bias = stacked(f"{name}.bias").unsqueeze(-1)
            layers.append(Layer(stacked(f"{name}.weight"), bias, quantizer, law))
        return layers

    def _tabulate(self) -> None:
        """Put on the device what depends on step and cell alone, once for the whole run."""
        total, configs = self.total_steps, self.configs

        def table(row: Callable[[int], list[float]]) -> Tensor:
            rows = [row(t) for t in range(total)]
            return torch.tensor(rows, dtype=torch.float64).to(self.device, self.dtype)

        def rate(config: RunConfig, t: int) -> float:
            return learning_rate(config.recipe, t, total, self.steps_per_epoch)

        self.lr = table(lambda t: [rate(c, t) for c in configs])  # (T, C)
        self.sqrt_beta = table(lambda t: [math.sqrt(1 - _noise(c, t, total)) for c in configs])
        self.sqrt_noise = table(lambda t: [math.sqrt(_noise(c, t, total)) for c in configs])
        signed = [c.estimator.random_sign for c in configs]
        self.random_sign = torch.tensor(signed, device=self.device).view(-1, 1)  # (C, 1)

    def run(self, tick: Callable[[int], None] = lambda done: None) -> None:
        """Take all steps; `tick` is told after each how many are done. Nothing waits for a GPU."""
        for t in range(self.total_steps):
            epoch, k = divmod(t, self.steps_per_epoch)
            if k == 0:
                self._open_epoch(epoch)
            self.step(t)
            if k + 1 == self.steps_per_epoch and self.layers[0].quantizer:  # as `Training` does
                self.failed = self.failed | (self.dead_steps >= self.steps_per_epoch)
            tick(t + 1)

    def _open_epoch(self, epoch: int) -> None:
        """Draw the order of an epoch; derive the seeds of its steps."""
        order = self.streams.orders(epoch, len(self.inputs))
        self.order = order[:, : self.steps_per_epoch * self.batch].to(self.device)
        steps = range(epoch * self.steps_per_epoch, (epoch + 1) * self.steps_per_epoch)
        self.streams.derive(steps, ("directions", "signs", "control") if self.n else ())

    @torch.no_grad()
    def step(self, t: int) -> None:
        """Take one step, in the order of `TrainStep`."""
        k = t % self.steps_per_epoch
        rows = self.order[:, k * self.batch : (k + 1) * self.batch].flatten()
        labels = self.images.train.labels.index_select(0, rows).view(-1, 1, self.batch)
        loss = self._backward(self._batch(self.inputs, rows), labels)
        written: list[Any] = [p.grad for p in self.parameters]
        finite = loss.isfinite() & _norm(written).isfinite()
        flat = bad = dead = torch.zeros_like(self.dead_steps)
        if t >= self.first_probed:
            pixels = self._batch(self.pixels, rows)
            found = self._estimate(t, written[:2], pixels, labels.unsqueeze(1))
            written[:2], flat, bad, dead = found
        norm = _norm(written[:2])

        self.bad_streak = torch.where(bad > 0, self.bad_streak + 1, 0)
        stops = ~finite | ~norm.isfinite() | (self.bad_streak >= MAX_BAD_STREAK)
        self.failed = self.failed | stops
        alive = ~self.failed
        for count, value in zip(self.counts.values(), (alive, flat, bad, dead), strict=True):
            count += alive * value
        # Dead is a gradient of zero for the optimizer, unless flat probes alone have made it.
        without = (norm == 0) & ~((flat > 0) & (dead == 0))
        self.dead_steps = torch.where(without, self.dead_steps + 1, 0)

        lr = (self.lr[t] * alive)[..., None, None]
        decays = [self.recipe.weight_decay] * 2 + [0.0] * 2  # weights, biases
        for p, g, (m, v), decay in zip(self.parameters, written, self.moments, decays, strict=True):
            g = g.masked_fill(~alive[..., None, None], 0.0)
            adamw_(p.detach(), g, m, v, lr, decay, t + 1, self.recipe)
            p.grad = None

    @torch.enable_grad()
    def _backward(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Put the STE gradients into `.grad`; return the losses (S, C)."""
        loss = mean_cross_entropy(self._logits(inputs), labels)
        loss.sum().backward()
        return loss.detach()

    def _logits(self, inputs: Tensor) -> Tensor:
        """Return (S, C, K, B) for inputs (S, P, B), or (P, B) for all lanes."""
        first, second = self.layers
        return second(first(inputs).relu())

    def _estimate(
        self, t: int, gradients: Sequence[Tensor], pixels: Tensor, labels: Tensor
    ) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
        """Return Algorithm 1's gradients; and how many pairs are flat and bad, and guides dead.

        n-SPSA is FOGZO at beta = 0. The directions v are never kept: since lanes of one seed share
        the u, sum_i c_i v_i = sqrt(1 - beta) sum_i c_i u_i + sqrt(beta) (sum_i c_i s_i) g^.
        """
        along = self._signs(t, "signs") * self.sqrt_beta[t].unsqueeze(-1)  # (S, C, n)
        across = self.sqrt_noise[t].unsqueeze(-1)  # (C, 1)
        guides = [x.width * g for x, g in zip(self.layers, gradients, strict=True)]
        norm = _norm(guides)
        norm = torch.where(norm < torch.finfo(norm.dtype).tiny, 0.0, norm)  # as `Point.guide_norm`
        inverse = torch.where(norm > 0, 1 / norm, 0.0)[..., None, None]
        guides = [g * inverse for g in guides]

        sizes = [self.n * x.weight[0, 0].numel() for x in self.layers]
        draws = self.streams.integers(t, "directions", sizes)
        us, sides = [], []
        for x, g, drawn in zip(self.layers, guides, draws, strict=True):
            u = x.law.shape_(drawn.to(widest(self.dtype))).view(-1, self.n, *g.shape[2:])
            v = u.unsqueeze(1) * across[..., None, None]  # (S, C, n, i, j)
            v.addcmul_(along[..., None, None], g.unsqueeze(2))
            units, width = x.quantizer.units(x.weight).unsqueeze(2), x.law.epsilon_bar
            moved = torch.add(units, v, alpha=width), torch.sub(units, v, alpha=width)
            us.append(u)
            sides.append([x.quantizer.levels(units, pixels.dtype) for units in moved])
        scales = [x.quantizer.scale.unsqueeze(2) for x in self.layers]
        biases = [x.bias.unsqueeze(2) for x in self.layers]
        plus, minus = (
            losses_of_levels(levels, scales, biases, self.images, pixels, labels)
            for levels in zip(*sides, strict=True)
        )
        swapped = self.random_sign & (self._signs(t, "control") < 0)
        c = torch.where(swapped, minus - plus, plus - minus) / 2  # (S, C, n)

        bad = (~c.isfinite()).sum(-1)
        estimates = []
        kept = (bad > 0)[..., None, None]
        for x, u, guide, g in zip(self.layers, us, guides, gradients, strict=True):
            total = ((c * across) @ u.flatten(2)).view_as(g)
            total += (c * along).sum(-1)[..., None, None] * guide
            estimates.append(torch.where(kept, g, total / (self.n * x.width)))
        return estimates, (c == 0).sum(-1), bad, norm == 0

    def _signs(self, t: int, purpose: str) -> Tensor:
        return self.streams.signs(t, purpose, self.n).to(self.dtype).unsqueeze(1)

    def _batch(self, table: Tensor, rows: Tensor) -> Tensor:
        """Return the columns (S, P, B) that are the given rows of a table (images, P)."""
        return table.index_select(0, rows).view(len(self.seeds), self.batch, -1).mT

    def _normalized(self, pixels: Tensor) -> Tensor:
        """Return inputs as `Images.normalize` does, in the dtype of the lanes."""
        return (pixels.to(self.dtype) / 255 - self.images.mean) / self.images.std

    @torch.no_grad()
    def evaluate(
        self, images_at_once: int, tick: Callable[[], None] = lambda: None
    ) -> dict[str, dict[str, Tensor]]:
        """Return loss in nats and top-1 in percent over all of each split, (S, C) each.

        `tick` is called after each pass over `images_at_once`.
        """
        found = {}
        for split, data in (("train", self.images.train), ("test", self.images.test)):
            count = len(data.labels)
            loss = torch.zeros(self.failed.shape, dtype=torch.float64, device=self.device)
            correct = torch.zeros_like(self.counts["steps"])
            for start in range(0, count, images_at_once):
                pixels, labels = (x[start : start + images_at_once] for x in data)
                logits = self._logits(self._normalized(pixels.flatten(1)).T)
                loss += mean_cross_entropy(logits, labels).double() * len(labels)
                correct += (logits.argmax(-2) == labels).sum(-1)
                tick()
            found[split] = {"loss": loss / count, "top1": 100 * correct.double() / count}
        return found


def adamw_(
    p: Tensor, g: Tensor, m: Tensor, v: Tensor, lr: Tensor, decay: float, step: int, recipe: Any
) -> None:
    """Make torch's AdamW step with a rate for each lane; a rate of 0 leaves p as it is.

    m and v, shaped as p, are the moments of the gradient g; lr is (S, C, 1, 1), steps count from 1,
    and the recipe has betas and eps.
    """
    beta1, beta2 = recipe.betas
    m.lerp_(g, 1 - beta1)
    v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
    denominator = v.sqrt().div_(math.sqrt(1 - beta2**step)).add_(recipe.eps)
    p.mul_(1 - lr * decay).sub_((m / denominator).mul_(lr / (1 - beta1**step)))


def _noise(config: RunConfig, t: int, total: int) -> float:
    """Return a cell's 1 - beta at a step; for n-SPSA all of a direction is noise."""
    estimator: Any = config.estimator
    if estimator.name != "fogzo":
        return 1.0
    start = start_step(estimator.start_fraction, total)
    if t < start:
        return 0.0
    own = t - start, total - start
    return noise_at(*own, noise=estimator.noise, schedule=estimator.beta_schedule)


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    """Return each lane's norm over all tensors together, (S, C)."""
    unit = _unit_of(torch.stack([x.abs().amax((-2, -1)) for x in tensors]).amax(0))
    parts = [torch.linalg.vector_norm(x / unit[..., None, None], dim=(-2, -1)) for x in tensors]
    return torch.linalg.vector_norm(torch.stack(parts), dim=0) * unit


def _unit_of(largest: Tensor) -> Tensor:
    """Return the power of two to measure numbers by of which this is the largest.

    Dividing by it and multiplying with it rounds nothing.
    """
    limits = torch.finfo(largest.dtype)
    return largest.log2().floor().exp2().clamp(limits.tiny, limits.max)
