# Everything a person or a robot runs. `make help` lists it.

BIN := .venv/bin
STAMP := .venv/.installed$(subst /,-,$(subst $() ,_,$(CURDIR)))
BENCH_STAMP := .venv-bench/.installed$(subst /,-,$(subst $() ,_,$(CURDIR)))
SCVI_TOOLS := 1.4.2
BENCH_ARGS ?=
FAULTS_ARGS ?=
WORKERS ?= 2
PYTEST_ARGS ?=

# The first of these that runs and is new enough. Set PYTHON to choose another.
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
  $$p -c '$(NEW_ENOUGH)' 2>/dev/null && echo $$p && break; done)

# Each test worker computes on one thread: more would only wait for each other.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 NUMBA_NUM_THREADS=1

.PHONY: help setup demo test faults check format bench docs clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## create .venv and install countvi with all it needs

# Installed again when the requirements change. The stamp carries the path, because an environment that was
# moved or copied along with its checkout still points to the old one.
$(STAMP): pyproject.toml constraints.txt
	@$(or $(PYTHON),false) -c '$(NEW_ENOUGH)' 2>/dev/null || { \
	  echo "countvi needs Python 3.11 or newer; $(if $(PYTHON),'$(PYTHON)' is not,none was found on the path)."; \
	  echo "Install one and name it: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@echo "Installing countvi and what it needs into .venv; the first time takes a few minutes."
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo,test,check,docs]'
	@touch $@

demo: setup  ## train scVI on a small real data set and write model, latent space and picture
	$(BIN)/python examples/demo.py

test: setup  ## run the tests (PYTEST_ARGS='-k name' for some of them)
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(WORKERS) $(PYTEST_ARGS)

faults: setup  ## try damaged and hostile files and killed runs (some minutes; Linux)
	$(ONE_THREAD) $(BIN)/python benchmarks/faults.py $(FAULTS_ARGS)

check: setup  ## format, lint, types, layers
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m ruff check .
	$(BIN)/python -c 'from importlinter.cli import lint_imports_command as run; run()' --no-cache
	$(BIN)/python -m pyright --pythonpath $(BIN)/python

format: setup  ## rewrite the sources in the house format
	$(BIN)/python -m ruff check --fix --exit-zero --quiet .
	$(BIN)/python -m ruff format .

bench: $(BENCH_STAMP)  ## time countvi side by side with scvi-tools (BENCH_ARGS='step import' for parts)
	.venv-bench/bin/python benchmarks/run.py $(BENCH_ARGS)

# An environment of its own: scvi-tools brings many packages that countvi does without.
$(BENCH_STAMP): pyproject.toml constraints.txt
	@.venv-bench/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv-bench
	@echo "Installing countvi and scvi-tools $(SCVI_TOOLS) into .venv-bench; the first time takes a few minutes."
	@.venv-bench/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[demo]' 'torch==2.13.0'
	@.venv-bench/bin/python -m pip install --quiet --constraint constraints.txt 'scvi-tools==$(SCVI_TOOLS)'
	@touch $@

docs: setup  ## build the API reference into build/docs
	$(BIN)/python -W error::UserWarning -W 'ignore:Error parsing type annotation:UserWarning' -m pdoc \
	  --docformat numpy --math --output-directory build/docs countvi $(MODULES:%=countvi.%)

clean:  ## remove what the targets made
	rm -rf .venv .venv-bench build dist .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
