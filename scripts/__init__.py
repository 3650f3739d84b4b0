"""The commands beside `python -m fogzo_repro`, each with its own `--help`."""

from fogzo_repro.project import check_installed

check_installed()
