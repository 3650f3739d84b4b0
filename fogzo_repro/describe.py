"""What `dry_run=true` prints."""

from __future__ import annotations

import math

from fogzo_repro.config import RunConfig, to_yaml
from fogzo_repro.prepare import evaluations_per_step, prepare


def describe(config: RunConfig) -> str:
    """Return what `dry_run=true` prints: the resolved run, and what it takes."""
    prepared = prepare(config)
    network, estimator = prepared.network, config.estimator
    d, total = network.perturbed, network.parameters
    evaluations = evaluations_per_step(estimator)
    states = {"adamw": 2, "sgd": 1 if config.recipe.momentum else 0}[config.recipe.optimizer]
    directions = getattr(estimator, "n", 0) and 2
    memory = 4 * (total * (2 + states) + d * directions)
    facts = {
        "run": prepared.run_id,
        "folder": prepared.folder,
        "device": prepared.machine.card,
        "precision": prepared.result["resolved"]["precision"],
        "steps": f"{prepared.total_steps} on {prepared.task.examples:,} training examples",
        "parameters": network.described_parameters,
        "d (perturbed weights)": f"{d:,}",
        "evaluations per step": f"{evaluations['probes']} probes; "
        f"{evaluations['total']} with the STE pass as 3 forwards",
        "evaluator": prepared.result["resolved"]["evaluator"],
        "memory": f"{memory / 2**20:,.1f} MiB for weights, gradients, optimizer and estimator; "
        "activations and data come on top",
    }
    noise = getattr(estimator, "noise", None)
    if noise is not None:
        ratio = noise * d / (1 - noise) if noise < 1 else math.inf
        facts["rho = (1-beta) d / beta"] = f"{ratio:.4g} at 1 - beta = {noise:g}"
    width = max(map(len, facts))
    text = to_yaml(config)
    return text + "\n" + "\n".join(f"{k:<{width}}  {v}" for k, v in facts.items())
