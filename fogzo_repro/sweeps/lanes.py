"""Which cells of a table train side by side instead of run by run, see `side_by_side`.

Cells whose runs differ in numbers alone form a group.

torch is imported inside the functions, as in `sweeps.jobs`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fogzo_repro.config import RunConfig, cell_id, result_fields, run_id
from fogzo_repro.sweeps.jobs import Cell
from fogzo_repro.tracking.records import read_runs

MOST_PAIRS = 100  # probe pairs a step; with more, one run fills a card by itself
DIFFERING = ("seed", "recipe.lr", "quantizer.scale_factor")  # among the lanes of one group


@dataclass(frozen=True)
class LaneCell:
    """A cell, those of its seeds that have no record, and what determines the result but these."""

    config: RunConfig
    seeds: tuple[int, ...]
    result: Mapping[str, Any]
    total_steps: int
    perturbed: int

    @property
    def run_id(self) -> str:
        """The name of its record."""
        return cell_id(self.config, dict(self.result), self.seeds)


def group_key(config: RunConfig) -> str | None:
    """Return what the runs of one group have in common; None for a run that is trained alone."""
    estimator, recipe = config.estimator, config.recipe
    if not (
        config.scale != "smoke"  # two steps on a CPU, which are there to try the ordinary way
        and config.model.name == "mlp"
        and not config.model.first_last
        and config.dataset.name in ("digits", "mnist")
        and config.quantizer.name in ("none", "round", "sign")
        and estimator.name in ("ste", "nspsa", "fogzo")
        and estimator.n <= MOST_PAIRS
        and estimator.probe_fraction == 1
        and estimator.evaluator == "auto"
        and (recipe.kind, recipe.optimizer, recipe.decay) == ("plain", "adamw", "weights")
        and not (recipe.no_decay or recipe.clip_norm or recipe.accumulate or recipe.autocast)
        and recipe.start_from is None
    ):
        return None
    shared = result_fields(config, {})
    shared["estimator"] = {"n": estimator.n, "start": estimator.start_fraction}
    for name in DIFFERING:
        *section, key = name.split(".")
        (shared[section[0]] if section else shared).pop(key, None)
    return json.dumps(shared, sort_keys=True)


def plan_lanes(cells: Iterable[Cell], records: Path) -> list[LaneCell]:
    """Resolve cells that have a `group_key`, and find the seeds that are to be trained.

    Raises:
        UserError: where the data or the device are not as a cell needs them.
    """
    from fogzo_repro.plan import make_plan

    planned = []
    tables: dict[Path, dict[str, tuple[int, ...]]] = {}  # by folder: seeds of records of several
    for cell in cells:
        plan = make_plan(replace(cell.config, seed=cell.seeds[0]))
        alone = plan.result
        result = {k: v for k, v in alone.items() if k != "seed"}
        result["resolved"] = {**alone["resolved"], "evaluator": "lanes"}
        folder = records / cell.config.cell.table
        if folder not in tables:
            tables[folder] = {
                path.stem: tuple(run["seed"] for run in read_runs(path))
                for path in folder.glob("*seeds-*.json")
            }
        known: set[int] = set()
        if not cell.config.force:
            for seeds in set(tables[folder].values()):
                if cell_id(cell.config, result, seeds) in tables[folder]:
                    known.update(seeds)
            for seed in cell.seeds:
                single = run_id(replace(cell.config, seed=seed), {**alone, "seed": seed})
                if (folder / f"{single}.json").is_file():
                    known.add(seed)
        missing = tuple(seed for seed in cell.seeds if seed not in known)
        steps, perturbed = plan.total_steps, plan.network.perturbed
        config = replace(plan.config, seed=cell.config.seed)  # with rho turned into noise
        planned.append(LaneCell(config, missing, result, steps, perturbed))
    return planned


def groups(cells: Iterable[LaneCell]) -> list[list[LaneCell]]:
    """Return cells that train together; each has the same seeds to train, and at least one."""
    found: dict[tuple[str | None, tuple[int, ...]], list[LaneCell]] = {}
    for cell in cells:
        if cell.seeds:
            found.setdefault((group_key(cell.config), cell.seeds), []).append(cell)
    return list(found.values())
