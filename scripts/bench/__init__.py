"""What is measured on a machine: `python -m scripts.bench.steps` and its like, see the Makefile."""
