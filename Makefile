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
.PHONY: help install demo test quick lint types check smoke figure-shallow readings minis mini-finetune table1 table2 table3 table4 tables status bench bench-vision bench-language bench-peers bench-loop bench-products bench-cards bench-loader bench-prepare bench-start clean

help:  ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | column -t -s'|' 2>/dev/null \
	  || sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1  \2/p' Makefile

install: .venv/installed  ## set up .venv from the locked dependencies

.venv/installed: requirements.lock
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(not (3, 11) <= v < (3, 14))' \
	  || { echo "error: $$($(PYTHON) --version) is not supported; give PYTHON=python3.11, 3.12 or 3.13" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv \
	  || { echo "error: python3 cannot create .venv; install its venv package (Debian: python3-venv)" >&2; exit 2; }
	@echo "installing the locked dependencies into .venv (7 GB, most of it CUDA libraries)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check $(UV)
	@$(BIN)/uv pip sync -q --compile-bytecode --python $(BIN)/python --require-hashes requirements.lock \
	  || $(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements.lock
	@touch $@

demo: install  ## two quantizers by the STE and by FOGZO on bundled images: what FOGZO is for, in 2 minutes
	@$(BIN)/python scripts/demo.py

# A process for each core, whole files to each.
PYTEST := $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist loadfile

test: install  ## run the tests, about 7 minutes on two cores; with a GPU then those that use it
	@$(PYTEST)
	@! command -v nvidia-smi > /dev/null || FOGZO_TEST_GPU=1 $(BIN)/python -m pytest

quick: install  ## run the tests that take no more than a second each, while you work
	@$(PYTEST) -m 'not slow'

lint: install
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: install
	@$(BIN)/mypy

check: lint types test  ## lint, type check, tests

smoke: install  ## the cells of every table for two steps on the CPU, without any download, in 4 minutes
	@$(BIN)/python scripts/smoke.py

# One cell a card at a time, only what is missing; SCALE=smoke goes through scripts/smoke.py.
SMOKE := $(filter smoke,$(SCALE))
ifneq ($(and $(SMOKE),$(DRY_RUN)),)
$(error SCALE=smoke trains two steps a cell and has no dry run; leave out SCALE=smoke or DRY_RUN=1)
endif
OPTIONS = $(if $(SCALE),scale=$(SCALE)) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(GPUS),--gpus $(GPUS)) \
  $(if $(WORKERS),--workers $(WORKERS)) $(if $(MINUTES),--minutes $(MINUTES)) $(if $(DRY_RUN),--dry-run)
CELLS = $(if $(SMOKE),scripts/smoke.py $@,scripts/run_cells.py $@ hardware=$(HARDWARE) $(OPTIONS))
AFTER = $(if $(SMOKE)$(DRY_RUN),true,$(BIN)/python scripts/make_tables.py)
# Status 2 is an error that the user can mend: its line stays the last one.
RUN = $(BIN)/python $(CELLS); status=$$?; test $$status -ne 2 || exit 2; $(AFTER) && exit $$status

# All cells, the sweeps on their tuning seeds; then on fresh seeds what the sweeps have chosen.
CHOSEN = $(if $(SMOKE)$(DRY_RUN),true,$(BIN)/python scripts/run_cells.py 'figure-shallow/sweep-*' --claims \
  hardware=$(HARDWARE) $(OPTIONS) $(if $(SEEDS),,--seeds 2000..2499))
figure-shallow: install  ## run the missing cells of Section 4.1 on MNIST, then make tables
	@$(BIN)/python $(CELLS); status=$$?; \
	  if test $$status -eq 0 -o $$status -eq 3; then $(CHOSEN) || status=$$?; fi; \
	  test $$status -ne 2 || exit 2; $(AFTER) && exit $$status

readings: install  ## run the missing readings of Section 4.1, side by side on one card, then make tables
	@$(RUN)

# The noises choose first, then the rates; what they chose goes into configs/table/ by hand before the rest is run.
MINIS := mini-deit-tiny mini-llama mini-resnet18
PART ?= *
MINI = $(BIN)/python $(if $(SMOKE),scripts/smoke.py $(1),scripts/run_cells.py "$(1)/$(PART)" hardware=$(HARDWARE) $(OPTIONS))
minis: install  ## run the missing cells of the mini tables: PART='sweep-noise-*', then PART='sweep-lr-*', then all
	@for table in $(MINIS); do \
	  $(call MINI,$$table) || { status=$$?; test $$status -eq 3 || break; }; \
	done; test "$${status:-0}" -ne 2 || exit 2; $(AFTER) || exit; \
	echo "left out: mini-finetune, whose runs begin with networks that are trained first: make mini-finetune"; \
	exit $${status:-0}

mini-finetune: install  ## train the networks that missing runs of mini-finetune begin with, then these: PART='sweep-*', then all
	@$(if $(SMOKE),true,$(BIN)/python scripts/finetune_starts.py "$@/$(PART)" hardware=$(HARDWARE) \
	  $(if $(SEEDS),--seeds $(SEEDS)) $(if $(DRY_RUN),--dry-run)) || exit; \
	  $(call MINI,$@); status=$$?; test $$status -ne 2 || exit 2; $(AFTER) && exit $$status

table1: install  ## Table 1: SEEDS=0..4 HARDWARE=h200 SCALE=smoke GPUS=0,1 MINUTES=8 DRY_RUN=1
	@$(RUN)

table2: install  ## Table 2, LSQ with 2-bit weights: the same settings
	@$(RUN)

table3: install  ## Table 3, 2-bit weights and activations: the same settings
	@$(RUN)

table4: install  ## Table 4, quality at equal training time: the same settings
	@$(RUN)

tables: install  ## make results/ (Markdown, CSV, LaTeX, figures) from the committed records alone
	@$(BIN)/python scripts/make_tables.py

status: install  ## per table: runs done, running, interrupted, failed, stale, missing, not needed
	@$(BIN)/python scripts/status.py $(if $(SEEDS),--seeds $(SEEDS))

bench: install  ## measure the speed on this machine: HARDWARE=cpu, h200, ...
	@$(BIN)/python -m scripts.bench.mnist hardware=$(HARDWARE) --out results/records/bench/mnist-$(HARDWARE).json

bench-vision: install  ## measure the training step of ResNets and DeiTs on one GPU, about 5 minutes
	@$(BIN)/python -m scripts.bench.steps vision --out 'results/records/bench/{group}-$(HARDWARE).json'

bench-language: install  ## measure the training step of the LLaMAs on one GPU, about 5 minutes
	@$(BIN)/python -m scripts.bench.steps language --out 'results/records/bench/{group}-$(HARDWARE).json'

bench-peers: install  ## measure the STE step beside QuEST's own code on one GPU: QUEST=its clone, about 4 minutes
	@$(BIN)/python -m scripts.bench.peers --quest "$(or $(QUEST),QuEST)" --out results/records/bench/peers-$(HARDWARE).json

bench-loop: install  ## measure FogzoStep beside the suite's own FOGZO step on one GPU, about 3 minutes
	@$(BIN)/python -m scripts.bench.loop --out results/records/bench/loop-$(HARDWARE).json

bench-products: install  ## measure products in eight bits against bf16, and the head, on one GPU, a minute
	@$(BIN)/python -m scripts.bench.products --out results/records/bench/products-$(HARDWARE).json

# Asked before torchrun starts, which adds a traceback to the one line of an error.
HAS_GPU := import sys, fogzo_repro.terminal as t, scripts.bench.record as r; sys.exit(t.one_line_errors(r.check_gpu)())
bench-cards: install  ## measure the step of several cards in one run: CARDS=4, about 6 minutes
	@$(BIN)/python -c '$(HAS_GPU)'
	@$(BIN)/python -m torch.distributed.run --nproc-per-node=$(or $(CARDS),4) -m scripts.bench.cards \
	  --out results/records/bench/cards-$(HARDWARE).json

bench-loader: install  ## measure how fast photographs are loaded: DATA=..., WORKERS=16, DECODED=256, TRAIN=1
	@$(BIN)/python -m scripts.bench.loader --data-dir "$${FOGZO_DATA:-data}" --workers $(or $(WORKERS),16) \
	  $(if $(DECODED),--decoded $(DECODED)) $(if $(TRAIN),--train) \
	  --out results/records/bench/loader-$(HARDWARE).json

bench-prepare: install  ## measure how fast C4 is tokenised: SOURCE=folder of *.json.gz, TOKENIZER=folder
	@$(BIN)/python -m scripts.bench.prepare --source $(SOURCE) --tokenizer $(TOKENIZER) \
	  --out results/records/bench/prepare-$(HARDWARE).json

bench-start: install  ## measure how long a run takes to its first steps on one GPU: DATA=..., about 5 minutes
	@$(BIN)/python -m scripts.bench.start --data-dir "$${FOGZO_DATA:-data}" --out results/records/bench/start-$(HARDWARE).json

clean:  ## remove what the demo and the tools left; runs/ and results/ stay
	rm -rf demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
