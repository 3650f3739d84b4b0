"""The commands beside `python -m fogzo_repro`, each with its own `--help`."""
