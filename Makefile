# Two commands do everything: `make demo` and `make test`. `make help` lists the rest.
PYTHON ?= python3
BIN := .venv/bin
HARDWARE ?= auto
UV := $(shell sed -n 's/^\(uv==[0-9.]*\).*/\1/p' requirements.lock)

ifdef DATA  # DATA=folder on the command line; else FOGZO_DATA, else data/
export FOGZO_DATA := $(DATA)
endif
export MPLBACKEND := Agg

.DEFAULT_GOAL := help
.PHONY: help install demo test lint types check figure-shallow minis tables bench bench-vision bench-language clean

help:  ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | column -t -s'|' 2>/dev/null \
	  || sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1  \2/p' Makefile

install: .venv/installed  ## set up .venv from the locked dependencies

.venv/installed: requirements.lock
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(not (3, 11) <= v < (3, 14))' \
	  || { echo "error: $$($(PYTHON) --version) is not supported; give PYTHON=python3.11, 3.12 or 3.13" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv \
	  || { echo "error: python3 cannot create .venv; install its venv package (Debian: python3-venv)" >&2; exit 2; }
	@echo "installing the locked dependencies into .venv (6 GB, most of it CUDA libraries)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check $(UV)
	@$(BIN)/uv pip sync -q --python $(BIN)/python --require-hashes requirements.lock \
	  || $(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements.lock
	@touch $@

demo: install  ## train the MLP by all three estimators on data that needs no download; show the result
	@$(BIN)/python scripts/demo.py

test: install  ## run the tests
	@$(BIN)/python -m pytest

lint: install
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: install
	@$(BIN)/mypy

check: lint types test  ## lint, type check, tests

figure-shallow: install  ## run the missing cells of Section 4.1 on MNIST, then its table and figure: SEEDS=, WORKERS=
	@$(BIN)/python scripts/run_cells.py figure-shallow hardware=$(HARDWARE) \
	  $(if $(SEEDS),--seeds $(SEEDS)) $(if $(WORKERS),--workers $(WORKERS)); status=$$?; \
	  $(BIN)/python scripts/make_tables.py && exit $$status

minis: install  ## run the missing cells of the three mini tables, then make tables: HARDWARE=, SEEDS=, WORKERS=
	@status=0; for table in mini-resnet18 mini-deit-tiny mini-llama; do \
	  $(BIN)/python scripts/run_cells.py $$table hardware=$(HARDWARE) \
	    $(if $(SEEDS),--seeds $(SEEDS)) $(if $(WORKERS),--workers $(WORKERS)) || status=$$?; \
	  test $$status -ne 75 || break; done; \
	  $(BIN)/python scripts/make_tables.py && exit $$status

tables: install  ## make results/ (Markdown, CSV, LaTeX, figures) from the committed records alone
	@$(BIN)/python scripts/make_tables.py

bench: install  ## measure the speed on this machine: HARDWARE=cpu, h200, ...
	@$(BIN)/python scripts/bench.py hardware=$(HARDWARE) --out results/records/bench/mnist-$(HARDWARE).json

bench-vision: install  ## measure the speed of ResNets and DeiTs on one GPU, about 5 minutes
	@$(BIN)/python scripts/bench_vision.py --out results/records/bench/vision-$(HARDWARE).json

bench-language: install  ## measure the LLaMA training step, about 5 minutes on one card
	@$(BIN)/python scripts/bench_language.py --out results/records/bench/language-$(HARDWARE).json

clean:  ## remove what the demo and the tools left; runs/ and results/ stay
	rm -rf demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
