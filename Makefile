# Everything runs in .venv from a fresh clone: no root, no Docker, no GPU. `make` alone lists the targets.

# Extra options of every `pip install`, for example an index with CPU-only builds of torch:
#   make test PIP_FLAGS="--extra-index-url URL"
PIP_FLAGS ?=
# The interpreter that makes .venv, 3.11 or newer; found by itself when left empty.
PYTHON ?=
# Extra options of pytest: make test PYTEST_FLAGS="-k bins"
PYTEST_FLAGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install -qq --no-compile --disable-pip-version-check --no-input $(PIP_FLAGS) -c constraints.txt
# Compiled ahead, so that no first forecast waits for it: half a minute, kept beside the source.
COMPILE := $(BIN)/python -m model.warmup
PROJECT := pyproject.toml constraints.txt

# `--no-compile` halves the time of an install; Python then compiles, once, the few modules that are imported.
unexport PYTHONDONTWRITEBYTECODE

# More than one BLAS or OpenMP thread spins on busy cores and makes small models slower, not faster.
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast coverage lint check clean install install-dev

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: install ## set up, then simulate, train, serve and replay a live stream; prints forecast against outcome
	@$(BIN)/m3tr-build demo

test: install-dev ## set up and run every test
	@$(BIN)/python -m pytest $(PYTEST_FLAGS)

test-fast: install-dev ## run the tests that neither train nor kill nor wait
	@$(BIN)/python -m pytest -m "not slow" $(PYTEST_FLAGS)

coverage: install-dev ## run every test and hold branch coverage of model and service to its gate
	@$(BIN)/python -m pytest --cov --cov-report=term:skip-covered $(PYTEST_FLAGS)

lint: install-dev ## ruff, its formatter, and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

check: lint test ## lint and test

clean: ## remove .venv, caches and what the demo left
	rm -rf $(VENV) build demo *.egg-info .coverage* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

install: $(VENV)/.installed ## set up .venv for running

install-dev: $(VENV)/.installed-dev ## set up .venv for developing

$(BIN)/python:
	@python='$(PYTHON)'; \
	for candidate in $${python:-python3.11 python3.12 python3.13 python3 python}; do \
	    if "$$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        echo "Creating $(VENV) with $$candidate"; \
	        rm -rf $(VENV); \
	        exec "$$candidate" -m venv $(VENV); \
	    fi; \
	done; \
	echo "error: Python 3.11 or newer with its venv module is needed (tried: $${python:-python3.11 python3.12 python3.13 python3 python})." >&2; \
	echo "Install it (Debian, Ubuntu: apt install python3 python3-venv) or name it: make PYTHON=/path/to/python3" >&2; \
	exit 1

$(VENV)/.installed: $(PROJECT) | $(BIN)/python
	@echo "Installing the project and its dependencies into $(VENV) (once; a minute or two)"
	@$(PIP_INSTALL) -e '.[cpu]'
	@$(COMPILE)
	@touch $@

$(VENV)/.installed-dev: $(PROJECT) | $(BIN)/python
	@echo "Installing the project, its dependencies and its tools into $(VENV) (once; a minute or two)"
	@$(PIP_INSTALL) -e '.[cpu,dev]'
	@$(COMPILE)
	@touch $(VENV)/.installed $@
