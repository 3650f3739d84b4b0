"""Train the networks that missing runs of mini-finetune begin with; `make mini-finetune` does.

    python scripts/finetune_starts.py 'mini-finetune/sweep-*' hardware=h200
    python scripts/finetune_starts.py mini-finetune --dry-run       say which; trains none

A link in runs/ names each, since a run's own name ends in a hash. One that is there, or with which
no missing run begins, is not trained. The tuning runs begin with a network that was not trained on
the images by which they choose.

Exit status: that of `python -m fogzo_repro`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if not __package__:  # started as a file
    import root  # noqa: F401

    __package__ = "scripts"

from fogzo_repro.__main__ import run_one
from fogzo_repro.composition import compose_run
from fogzo_repro.plan import make_plan
from fogzo_repro.project import working_folder
from fogzo_repro.sweeps.jobs import device_here
from fogzo_repro.sweeps.status import absent_starts, known_runs
from fogzo_repro.sweeps.tables import evaluation_seeds
from fogzo_repro.terminal import command_parser, one_line_errors

from .run_cells import check_overrides
from .table_cells import table_cells

NETWORKS = {  # by recipe.start_from
    "runs/full-precision": ["experiment=mini-resnet18/none-full-precision", "seed=0"],
    "runs/full-precision-tuning": [
        "model=resnet18", "scale=mini", "quantizer=none", "estimator=ste",
        "dataset.held_out=5000", "seed=100",
    ],
}  # fmt: skip


@one_line_errors
def main() -> int:
    """Run what the command line says; return the exit status."""
    parser = command_parser(__doc__)
    parser.add_argument("table", help="mini-finetune or mini-finetune/CELL; then hardware=")
    parser.add_argument("--seeds", help="evaluation seeds, as 0,1 or 0..4")
    parser.add_argument("--dry-run", action="store_true", help="say which, train none")
    arguments, overrides = parser.parse_known_args()
    check_overrides(overrides)
    cells = table_cells(arguments.table, overrides, evaluation_seeds(arguments.seeds))
    device = device_here(cells[0].config.hardware.device)
    known = known_runs(working_folder() / "results" / "records", [Path("runs")], device)
    absent = absent_starts(cells, known)
    for start in (name for name in NETWORKS if name in absent):
        if arguments.dry_run:
            print(f"make mini-finetune trains {start} first: 60 epochs")
            continue
        config = compose_run(*NETWORKS[start], *overrides)
        if status := run_one(config, "", []):
            return status
        link = Path(start)
        link.parent.mkdir(exist_ok=True)  # output_root= may be elsewhere
        link.unlink(missing_ok=True)  # to a run that is gone
        link.symlink_to(os.path.relpath(make_plan(config).folder, link.parent))
    return 0


if __name__ == "__main__":
    sys.exit(main())
