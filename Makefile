# Each target sets itself up: the virtual environment is made, and filled from the tested pins, on first use
# and again whenever pyproject.toml or constraints.txt change.
#
#   make quickstart                          curate -> SFT -> GRPO -> evaluate on a tiny model
#   make quickstart ARGS="seed=1"            the same, with Hydra overrides
#   make test                                the fast tests        (make test WORKERS=0: in one process)
#   make test-slow                           the rest; as root on Debian it first installs slurm, munge and iproute2
#   make test-gpu                            the GPU's kernels against torch's, on a machine that has one
#   make ablations                           GRPO with one thing changed at a time, three seeds: hours, goes on if interrupted
#   make check                               lint, format, types, fast tests

VENV ?= .venv
EXPERIMENT ?= quickstart
ARGS ?=
WORKERS ?= 4
PYTEST_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup system-packages quickstart ablations test test-slow test-gpu lint check format constraints-check
.DELETE_ON_ERROR:

help:
	@sed -n 's/^#   //p' Makefile

# --- set-up ---------------------------------------------------------------------------------------------

SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))
PYTHON ?= $(shell for p in python3 python3.12 python3.11; do \
	if $$p -c '$(SUPPORTED)' 2>/dev/null; then echo $$p; break; fi; done)

# Named after the content of the two files, so that neither a checkout nor a copy makes it stale.
INSTALLED := $(VENV)/.installed-$(shell cat pyproject.toml constraints.txt | cksum | cut -d ' ' -f 1)

setup: $(INSTALLED)

# deepspeed compiles its kernels when one is used, never here.
$(INSTALLED): export DS_BUILD_OPS = 0
$(INSTALLED):
	@$(or $(PYTHON),false) -c '$(SUPPORTED)' 2>/dev/null || { \
		echo "Python 3.11 or 3.12 is needed: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; exit 1; }
	@echo "Installing into $(VENV) (once; a few minutes)"
	@test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install -qq --constraint constraints.txt pip setuptools wheel
	@$(VENV)/bin/python -m pip install -qq --constraint constraints.txt --editable ".[dev]"
ifeq ($(shell uname -s),Linux)
	@$(KERNELS) || echo "mamba-ssm could not be built: the tests of the GPU scan's call site will be skipped" >&2
endif
	@rm -f $(VENV)/.installed-* && touch $@

# mamba-ssm's sources, for the tests that run its scan without a GPU; nothing is compiled. They stay out of
# site-packages, where transformers would find a package that does not import. And out of pip's cache, from which
# a GPU's environment would take this wheel for its own.
KERNELS = MAMBA_SKIP_CUDA_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE $(VENV)/bin/python -m pip install -qq \
	--constraint constraints.txt --no-deps --no-build-isolation --no-cache-dir --no-binary mamba-ssm \
	--upgrade --target $(VENV)/mamba-ssm mamba-ssm

# What the tests of slurm and of several nodes start; where it is not there, those tests are skipped with the reason.
system-packages:
	@for command in munged slurmctld slurmd ip; do command -v $$command >/dev/null || missing=yes; done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && [ -e /etc/debian_version ]; then \
		echo "Installing slurm-wlm, munge and iproute2 (once)"; \
		{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends \
			slurm-wlm munge iproute2; } >/dev/null 2>&1 && exit 0; \
	fi; \
	echo "slurm-wlm, munge or iproute2 are missing and could not be installed: their tests will be skipped" >&2

# --- the main job ---------------------------------------------------------------------------------------

quickstart: $(INSTALLED)
	$(VENV)/bin/python recipes/pipeline.py experiment=$(EXPERIMENT) $(ARGS)

ablations: $(INSTALLED)
	$(VENV)/bin/python recipes/benchmark.py suite=ablations $(ARGS)

# --- tests ----------------------------------------------------------------------------------------------

# Two torch threads on a small model are slower than one, and the tests start processes of their own. Many of them wait
# for deadlines, so that two cores keep four workers busy; long files come before the many short ones of the verifier.
test test-slow check: export OMP_NUM_THREADS = 1
test test-slow check: export HF_HUB_OFFLINE = 1

test: $(INSTALLED)
	$(VENV)/bin/python -m pytest -m "not slow and not gpu" -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

test-slow: $(INSTALLED) system-packages
	$(VENV)/bin/python -m pytest -m "slow and not gpu" $(PYTEST_ARGS)

# On a machine with a GPU, in the environment of constraints-gpu.txt.
test-gpu:
	$(VENV)/bin/python -m pytest -m gpu $(PYTEST_ARGS)

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy falcon_h1r

check: lint test

format: $(INSTALLED)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# --- pins -----------------------------------------------------------------------------------------------

# Resolves every constraints file from nothing, downloading metadata only, and installs nothing. Building the
# metadata of mamba-ssm and causal-conv1d imports torch, hence no isolation; nothing of theirs is compiled.
DRY_RUN := $(VENV)/bin/python -m pip install --dry-run -qq --ignore-installed

constraints-check: export MAMBA_SKIP_CUDA_BUILD = TRUE
constraints-check: export CAUSAL_CONV1D_SKIP_CUDA_BUILD = TRUE
constraints-check: $(INSTALLED)
	$(DRY_RUN) --constraint constraints.txt ".[dev]"
	$(DRY_RUN) --constraint constraints-gpu.txt --no-build-isolation ".[gpu,dev]"
	$(DRY_RUN) --constraint constraints-vllm.txt ".[vllm]"
