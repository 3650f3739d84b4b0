"""wandb as an optional mirror of metrics.jsonl. Whatever it does, the run goes on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


class WandbMirror:
    """Sends metrics to wandb: offline unless WANDB_API_KEY is set.

    Args:
        config: the `tracker` section.
        run_id: also wandb's run id, so a resumed run goes on in the same wandb run.
        folder: where wandb keeps its files.
        settings: the resolved configuration.
        after: the step that the run is resumed at; earlier lines are there already.
    """

    def __init__(
        self, config: Any, run_id: str, folder: Path, settings: dict[str, Any], after: int
    ) -> None:
        self.after = after
        self.run: Any = None
        try:
            import wandb

            self.run = wandb.init(
                project=config.project, group=config.group, id=run_id, name=run_id,
                resume="allow", config=settings, dir=folder,
                mode="online" if os.environ.get("WANDB_API_KEY") else "offline",
                settings=wandb.Settings(
                    console="off", silent=True, disable_git=True, x_disable_stats=True,
                    save_code=False, init_timeout=20,
                ),
            )  # fmt: skip
        except Exception as error:  # a mirror must not stop the run, whatever it raises
            print(f"wandb is not available ({_first_line(error)}); the run goes on")

    def append(self, rows: list[dict[str, Any]]) -> None:
        """Mirror the lines of this process."""
        for row in rows:
            if self.run is None or row["step"] <= self.after:
                continue
            prefix = f"{row['split']}/" if "split" in row else ""
            values = {
                prefix + k: v for k, v in row.items() if k != "step" and not isinstance(v, str)
            }
            try:
                self.run.log(values, step=row["step"])
            except Exception as error:
                print(f"wandb failed ({_first_line(error)}); the run goes on without it")
                self.run = None

    def finish(self) -> None:
        """Close wandb's files."""
        if self.run is not None:
            try:
                self.run.finish()
            except Exception as error:
                print(f"wandb failed to finish ({_first_line(error)})")
