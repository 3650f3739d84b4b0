"""The composition root: builds the parts of one run, trains, writes the record.

A run folder holds config.yaml, resolved.json, metrics.jsonl, timing.jsonl, log.txt, the last two
checkpoints and, once the run is over, record.json; forced.txt where a job of Slurm has emptied it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import traceback
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fogzo_repro import METHOD_VERSION, files
from fogzo_repro.config import RunConfig, UserError, published, to_yaml
from fogzo_repro.plan import Plan, evaluations_per_step, make_plan, needs_of
from fogzo_repro.tracking.environment import git_state, provenance, why_refused
from fogzo_repro.tracking.metrics import Journal, binned_history
from fogzo_repro.tracking.progress import RunProgress
from fogzo_repro.tracking.records import SCHEMA_VERSION, make_good, read_record, write_record
from fogzo_repro.training.compilation import compile_failure, start_compilers
from fogzo_repro.training.graph import CapturedStep
from fogzo_repro.training.kept_code import KeptCode, kept_folder
from fogzo_repro.training.loop import Diverged, Timetable, Training
from fogzo_repro.training.memory import check_batch_fits
from fogzo_repro.training.preemption import Preempted, StopRequest, how_to_go_on
from fogzo_repro.training.ranks import current_ranks
from fogzo_repro.training.row import course
from fogzo_repro.training.schedules import learning_rate

SHAPING = ("n", "probe_fraction")  # what of an estimator tells one compiled step from another
OF_THE_DATA = ("data", "corpus", "start_from")  # what does not
FORCED = "forced.txt"
FORCED_BEFORE = "force=true begins nothing anew here: this job of Slurm did, before it was requeued"
NO_LOCKS = (
    "warning: the file system of this folder has no locks, so that nothing keeps a second process "
    "from writing into it; start the run once"
)


def execute(
    config: RunConfig, *, quiet: bool = False, label: str = "", beside: int = 0
) -> dict[str, Any]:
    """Run, or go on with, or skip one run; return its record.

    Args:
        config: the run.
        quiet: do not say that a run is over.
        label: what tells the run from others beside it, for people: in progress lines, in log.txt
            and in wandb's name it stands behind the run id. By default where it stands in a table.
        beside: how many other runs the caller has on the same card, or processor, meanwhile; the
            record says so, since its time is then none of a run by itself.

    Raises:
        UserError: for what the user can mend.
        Preempted: after a signal, with the checkpoint written.
    """
    ranks = current_ranks()
    with ranks.together():
        plan = make_plan(config)
        path = plan.folder / "record.json"
        anew = config.force and not _emptied_before(plan.folder)
        record = read_record(path) if path.is_file() and not anew else None
    name = named(plan.run_id, config, label)
    if record is not None:
        if ranks.first:
            record = make_good(path)
            if not quiet:
                why = FORCED_BEFORE if config.force else _skipped(record)
                print(f"{name}: {record['status']} before, {why}")
        return record
    machine = plan.machine
    with ranks.together():
        kept = KeptCode(kept_folder() if machine.compile else None, machine.card, _shape(plan))
        said = kept.load()  # before any kernel is compiled
        if machine.compile and machine.device.type == "cuda":
            start_compilers()
        plan.task.load(machine.device)  # data that cannot be read leave no run folder behind
        check_batch_fits(
            config, plan.task, plan.network.model, machine, ranks.world_size,
            plan.total_steps, needs_of(config, plan.network).first_step,
        )  # fmt: skip
    with contextlib.ExitStack() as stack:
        stack.enter_context(files.told_where_unreadable(plan.folder))
        with ranks.together():
            said += stack.enter_context(_run_folder(plan, anew))
        return _train(plan, name, kept, said, beside)


def named(run_id: str, config: RunConfig, label: str = "") -> str:
    """Return how a run is called in what people read, see `execute`."""
    cell = config.cell
    label = label or (f"{cell.row} | {cell.column}" if cell.row != "none" else "")
    return f"{run_id} ({label})" if label else run_id


def _skipped(record: dict[str, Any]) -> str:
    """Return what becomes of a run that is over."""
    if record["dirty"] is False or record["table"] == "none":
        return "skipped (force=true runs it again)"
    return (
        "skipped; tables refuse its record, since no commit is known of the files it was made "
        "from; commit those very files, or give force=true to run it again"
    )


def _emptied_before(folder: Path) -> bool:
    """Return whether this job has emptied the folder before Slurm took its machine away.

    A command that is given twice in one allocation begins anew twice: nothing was requeued.
    """
    job, restarts = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_RESTART_COUNT", "0")
    try:
        return restarts != "0" and (folder / FORCED).read_text(errors="replace") == job
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _run_folder(plan: Plan, anew: bool) -> Iterator[list[str]]:
    """Create and lock the run folder, as the first rank; give what there is to say about it."""
    if not current_ranks().first:
        yield []
        return
    folder = plan.folder
    files.make_folder(folder, f"output_root={plan.config.output_root}")
    with files.locked(folder / "lock", str(folder)) as has_locks:
        files.remove_unfinished(folder)
        said = [] if has_locks else [NO_LOCKS]
        if anew:
            _empty(folder)
            if job := os.environ.get("SLURM_JOB_ID"):
                files.write(folder / FORCED, job)
        elif plan.config.force:
            said.append(FORCED_BEFORE)
        _check_stored_config(plan)
        yield said


def _empty(folder: Path) -> None:
    """Remove what an earlier run has left, but the lock; first the record of what then is gone."""
    try:
        for path in sorted(folder.iterdir(), key=lambda path: path.name != "record.json"):
            if path.name != "lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    except OSError as error:
        raise files.cannot(f"empty {folder}", error) from None


def _check_stored_config(plan: Plan) -> None:
    """Refuse a folder that another configuration has written; write ours."""
    path = plan.folder / "resolved.json"
    ours = plan.result
    try:
        stored = files.parse_json(path.read_bytes())
    except (OSError, ValueError):
        stored = None
    if isinstance(stored, dict):  # else it is not there, or lost: the run id says the same
        differing = sorted(k for k in {*stored, *ours} if stored.get(k) != ours.get(k))
        if differing:
            raise UserError(
                f"{plan.folder} was written by another configuration; it differs in "
                f"{', '.join(differing)}; give another output_root= or force=true"
            )
    files.write(path, json.dumps(ours, indent=1))
    files.write(plan.folder / "config.yaml", to_yaml(plan.config))


def _train(plan: Plan, name: str, kept: KeptCode, said: list[str], beside: int) -> dict[str, Any]:
    config, machine, folder = plan.config, plan.machine, plan.folder
    ranks, training = current_ranks(), _training(plan)
    journal = training.journal
    said += training.resume()
    said += [no_times] if (no_times := journal.lost_times()) else []
    resumed_at = training.done
    if config.tracker.name == "wandb" and ranks.first:
        from fogzo_repro.tracking.wandb import WandbMirror

        mirror = WandbMirror(config.tracker, plan.run_id, folder, asdict(config), name)
        mirror.append(journal.lines())  # what a kill kept from it
        journal.mirrors.append(mirror)
    if machine.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    started = datetime.now(UTC)
    progress = RunProgress(name, plan.total_steps, training.done, quiet=not ranks.first)
    log = _Log(folder / "log.txt" if ranks.first else Path(os.devnull), progress)
    log.say(f"{name}: {plan.total_steps} steps on {machine.card}")
    log.say(f"{name}: {plan.network.described_parameters} parameters")
    code = git_state() if ranks.first else {}
    if ranks.first and config.cell.table != "none" and (why := why_refused(code)):
        said.append(f"warning: {why}")
    for line in said:
        log.say(f"{name}: {line}")
    status, notes = "finished", list[str]()
    try:
        with StopRequest() as stop:
            try:
                training.run(progress, stop)
            except Diverged as error:
                status, notes = "diverged", [str(error)]
            skipped = plan.task.skipped()
    except BaseException as error:
        journal.finish(None)
        if isinstance(error, Preempted):
            log.say(f"{name}: {error}; {how_to_go_on(config.force)}")
        if machine.compile and (failure := compile_failure(error)):
            log.keep(traceback.format_exc())
            raise failure from None
        raise
    finally:
        for line in kept.save():
            log.say(f"{name}: {line}")
        progress.close()
    if skipped:
        since = f" since step {resumed_at}" if resumed_at else ""
        notes.append(f"{len(skipped)} unreadable images were replaced{since}")
        for line in skipped:
            log.say(f"{name}: replaced {line}")
    if no_times := journal.lost_times():
        notes.append(no_times)
    log.say(" ".join([f"{name}: {status}", *notes]))
    if ranks.first:
        record = _record(plan, training, status, " ".join(notes), started, code)
        record["beside"] = beside
        write_record(folder / "record.json", record)
        journal.finish(record)
    ranks.barrier()
    return read_record(folder / "record.json")


def _training(plan: Plan) -> Training:
    """Build what is trained and how: the step, as a graph where it is captured, data and files."""
    ranks, batch = current_ranks(), plan.config.recipe.global_batch_size
    step, batches = plan.build_step(), plan.task.batches(batch)
    return Training(
        _timetable(plan, batches.order.steps),
        step,
        CapturedStep(step, batch // ranks.world_size) if plan.machine.cuda_graph else step,
        batches,
        partial(plan.task.evaluate, plan.network.model),
        Journal(plan.folder, writes=ranks.first),
    )


def _shape(plan: Plan) -> dict[str, Any]:
    """Return what tells apart the code that runs compile."""
    config, machine = plan.config, plan.machine
    estimator, recipe = config.estimator, config.recipe
    return {
        "model": asdict(config.model),
        "quantizer": asdict(config.quantizer),
        "estimator": [estimator.family, *(vars(estimator).get(k) for k in SHAPING)],
        "micro_batch_size": recipe.accumulate and recipe.micro_batch_size,
        "machine": [str(machine.device), machine.channels_last],
        "resolved": {k: v for k, v in plan.result["resolved"].items() if k not in OF_THE_DATA},
    }


def _timetable(plan: Plan, steps_per_epoch: int) -> Timetable:
    config, total = plan.config, plan.total_steps
    kept = config.snapshots
    return Timetable(
        seed=config.seed,
        total_steps=total,
        lr=lambda t: learning_rate(config.recipe, t, total, steps_per_epoch),
        eval_every_epochs=config.recipe.eval_every_epochs,
        eval_every_steps=config.eval_every_steps,
        checkpoint_seconds=60 * config.checkpoint_minutes,
        snapshot_steps=frozenset(
            round(total * k / (kept - 1)) if kept > 1 else total for k in range(kept)
        ),
        folder=plan.folder,
    )


class _Log:
    """log.txt and the terminal."""

    def __init__(self, path: Path, progress: RunProgress) -> None:
        self.path = path
        self.progress = progress

    def say(self, line: str) -> None:
        """Write a line to both."""
        self.keep(line)
        self.progress.say(line)

    def keep(self, line: str) -> None:
        """Write a line, or several, to log.txt alone."""
        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        with contextlib.suppress(UserError):  # to tell what happens must not end it
            files.append(self.path, f"{stamp} {line}\n")


def _record(
    plan: Plan, training: Training, status: str, notes: str, started: datetime, code: dict[str, Any]
) -> dict[str, Any]:
    config, machine, journal = plan.config, plan.machine, training.journal
    wall, order = journal.seconds(), training.data.order
    evaluations = [line for line in journal.lines() if "split" in line]
    last = {e["split"]: {k: v for k, v in e.items() if k != "split"} for e in evaluations}
    if "train" not in last:  # the losses that were trained on in the last epoch
        loss = journal.mean_loss(training.done - order.steps, order.seen)
        last["train"] = {} if loss is None else {"step": training.done, "loss": loss}
    split, metric, more = plan.task.best_by
    candidates = [e for e in evaluations if e["split"] == split]
    best = (max if more else min)(candidates, key=lambda e: e[metric], default=None)
    on_gpu = machine.device.type == "cuda"
    return {
        "schema_version": SCHEMA_VERSION,
        "method_version": METHOD_VERSION,
        "run_id": plan.run_id,
        **asdict(config.cell),
        "scale": config.scale,
        "status": status,
        "config": published(config),
        "resolved": {**plan.result["resolved"], **plan.how_computed()},
        **provenance(code, machine.card),
        "seed": config.seed,
        "metrics": {"last": last, "best": {split: best} if best else {}},
        "history": binned_history(journal.lines(), training.done, course),
        "perturbed_weights": plan.network.perturbed,
        "evaluations_per_step": evaluations_per_step(config.estimator),
        "steps": training.done,
        f"{plan.task.unit}_seen": order.seen(training.done) * plan.task.units_per_example,
        "wall_seconds": round(wall, 4),  # first to last step, evaluations and checkpoints included
        "capture_seconds": round(getattr(training.take, "capture_seconds", 0.0), 4),  # part of wall
        "gpu_hours": wall / 3600 if on_gpu else 0.0,
        "peak_memory_mb": machine.peak_memory_mb(),
        "started": started.isoformat(timespec="seconds"),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "notes": notes,
    }
