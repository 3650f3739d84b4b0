"""wandb as an optional mirror of metrics.jsonl. Whatever it does, the run goes on.

Everything that touches wandb happens on a thread of its own, behind a queue of bounded length: a
service that is slow or down costs the run nothing but the mirror, and at its end at most
FINISH_SECONDS. wandb.json in the run folder holds wandb's id and the step that was handed over
last, so a resumed run goes on in the same wandb run and sends nothing twice.
"""

from __future__ import annotations

import json
import os
import queue
import threading
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from fogzo_repro import files
from fogzo_repro.terminal import first_line, stderr

QUEUE_LENGTH = 1000  # calls of `append`, of up to 100 lines each
INIT_SECONDS = 20.0
FINISH_SECONDS = 30.0
LEAVE_SECONDS = 1.0  # where a signal asks to leave; what was not sent is sent when the run goes on
TOTALS = ("status", "steps", "wall_seconds", "gpu_hours", "peak_memory_mb", "perturbed_weights")


class WandbMirror:
    """Sends metrics to wandb: as WANDB_MODE says, else offline unless WANDB_API_KEY is set.

    wandb keeps its files in the run folder too, and calls the run by its `name`, or its id.
    """

    def __init__(
        self, config: Any, run_id: str, folder: Path, settings: dict[str, Any], name: str = ""
    ) -> None:
        self.state = folder / "wandb.json"
        self.id, self.after = self._stored(run_id)
        table = settings["cell"]["table"]
        self.arguments: dict[str, Any] = {
            "project": config.project,
            "group": config.group or (None if table == "none" else table),
            "id": self.id, "name": name or run_id, "resume": "allow",
            "config": settings, "dir": os.environ.get("WANDB_DIR") or folder,
            "mode": os.environ.get("WANDB_MODE")
            or ("online" if os.environ.get("WANDB_API_KEY") else "offline"),
        }  # fmt: skip
        self.run: Any = None
        self.failed = False
        self.calls: queue.Queue[Callable[[], None] | None] = queue.Queue(QUEUE_LENGTH)
        self.thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self.thread.start()
        self._put(self._start)

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Mirror lines of metrics.jsonl; those that were sent before are left out."""
        new = [row for row in rows if row["step"] > self.after]
        if new:
            self._put(lambda: self._send(new))

    def finish(self, record: dict[str, Any] | None) -> None:
        """Send the final metrics, close wandb's files, wait a bounded time.

        A run that was stopped and may go on has no record yet.
        """
        self._put(lambda: self._close(record))
        self._put(None)
        self.thread.join(FINISH_SECONDS if record else min(LEAVE_SECONDS, FINISH_SECONDS))
        if self.thread.is_alive():
            self._say("wandb has not answered; the run ends without it")

    def _stored(self, run_id: str) -> tuple[str, int]:
        """Return wandb's id and the last step that was sent; a new id where there is none."""
        try:
            stored = files.parse_json(self.state.read_text())
            return str(stored["id"]), int(stored["sent"])
        except (OSError, ValueError, KeyError, TypeError):
            return f"{run_id}-{uuid.uuid4().hex[:8]}", 0  # force=true must not write to the old one

    def _put(self, call: Callable[[], None] | None) -> None:
        try:
            self.calls.put_nowait(call)
        except queue.Full:
            self._say("wandb is too slow; the run goes on without it")

    def _say(self, line: str) -> None:
        """Print a line, the first time alone; nothing is sent from then on."""
        if not self.failed:
            self.failed = True
            print(line, file=stderr())

    def _work(self) -> None:
        while (call := self.calls.get()) is not None:
            if self.failed:
                return
            try:
                call()
            except Exception as error:  # a mirror must not stop the run, whatever it raises
                self._say(f"wandb failed ({first_line(error)}); the run goes on without it")

    def _start(self) -> None:
        try:
            self._begin(**self.arguments)
        except Exception as error:
            if self.arguments["mode"] != "online":
                raise
            said = f"wandb is not reached ({first_line(error)}); mirrored offline"
            where = f"`wandb sync` in {self.arguments['dir']} sends it later"
            print(f"{said}: {where}", file=stderr())
            self._begin(**{**self.arguments, "mode": "offline"})

    def _begin(self, **arguments: Any) -> None:
        import wandb

        self.run = wandb.init(
            **arguments,
            settings=wandb.Settings(
                console="off", silent=True, disable_git=True, x_disable_stats=True, save_code=False,
                init_timeout=INIT_SECONDS, finish_timeout=FINISH_SECONDS,
                reinit="create_new",  # a worker runs several cells in one process
            ),
        )  # fmt: skip

    def _send(self, rows: list[dict[str, Any]]) -> None:
        # Noted before it is sent: after a kill between the two, lines are missing, never doubled.
        files.write(self.state, json.dumps({"id": self.id, "sent": rows[-1]["step"]}))
        for row in rows:
            prefix = f"{row['split']}/" if "split" in row else ""
            values = {
                prefix + k: v for k, v in row.items() if k != "step" and not isinstance(v, str)
            }
            self.run.log(values, step=row["step"])

    def _close(self, record: dict[str, Any] | None) -> None:
        if record is not None:
            final: list[Any] = [
                [which, split, name, value]
                for which, splits in record["metrics"].items()
                for split, values in splits.items()
                for name, value in values.items()
                if isinstance(value, int | float)
            ]
            self.run.summary.update({k: record[k] for k in TOTALS})
            self.run.summary.update({f"{w}/{s}/{name}": value for w, s, name, value in final})
            import wandb

            columns: list[Any] = ["which", "split", "metric", "value"]
            self.run.log({"final": wandb.Table(columns=columns, data=final)})
        self.run.finish(exit_code=int(record is not None and record["status"] != "finished"))
