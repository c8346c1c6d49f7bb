# What people type. `make help` lists it; everything that a target needs, it sets up itself.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TOOLS := node_modules/.ready
PLATFORM := $(BIN)/perdure-platform
LOCK_INPUTS := framework/pyproject.toml services/pyproject.toml

.PHONY: help run demo chaos audit test check lint types unit integration e2e bench format lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(READY) ## start the platform, book a trip, stay up until Ctrl-C
	@exec $(PLATFORM) run

demo: $(READY) ## play the scenarios on a fresh platform and compare what happened with what should
	@exec $(PLATFORM) demo

chaos: $(READY) ## kill processes and the engine while trips are booked; SEED=n repeats, TRIPS=n (300)
	@exec $(PLATFORM) chaos $(if $(SEED),--seed $(SEED)) --trips $(or $(TRIPS),300)

audit: $(READY) ## check the business invariants over the database, platform up or down
	@exec $(PLATFORM) audit

test: check unit integration e2e ## lint, types, and all tests on a real restate-server

check: lint types ## lint and types, without running anything

lint: $(READY)
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --check --quiet
	@$(BIN)/lint-imports --no-cache >.local/lint-imports.log 2>&1 || { cat .local/lint-imports.log; exit 1; }
	@echo "lint: clean"

types: $(READY) $(TOOLS)
	@$(BIN)/mypy --no-error-summary -p perdure -p services -p benchmarks
	@node_modules/.bin/pyright --pythonpath $(BIN)/python >.local/pyright.log || { cat .local/pyright.log; exit 1; }
	@echo "types: mypy and pyright clean"

unit: $(READY)
	@$(BIN)/pytest tests/unit tests/typing

integration: $(READY)
	@$(BIN)/pytest tests/integration

e2e: $(READY)
	@$(BIN)/pytest tests/e2e

bench: $(READY) ## a 3-step saga through perdure and by hand on the SDK, side by side
	@exec $(BIN)/python -m benchmarks.saga

format: $(READY) ## format the code and sort the imports
	@$(BIN)/ruff check --quiet --fix
	@$(BIN)/ruff format --quiet

lock: $(READY) ## resolve the dependencies anew into requirements.lock (needs uv)
	@uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate \
	  --no-header --no-emit-package perdure -o requirements.lock $(LOCK_INPUTS) --group dev --group build

clean: ## remove what was built; the platform's data in .local/data stays
	@rm -rf $(VENV) node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis

# The environment: the locked versions, each checked against its hash, then the two distributions of this workspace.
$(READY): requirements.lock $(LOCK_INPUTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "perdure needs Python 3.11 or later; '$(PYTHON)' is not. Name another one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@mkdir -p .local
	@echo "setting up $(VENV) (once) ..."
	@$(PYTHON) -m venv --clear $(VENV) >.local/setup.log 2>&1 || { \
	  echo "'$(PYTHON) -m venv' failed (on Debian: apt install python3-venv); see .local/setup.log" >&2; exit 1; }
	@$(BIN)/pip install --disable-pip-version-check --require-hashes -r requirements.lock >>.local/setup.log 2>&1 || { \
	  tail -n 3 .local/setup.log >&2; echo "installing the dependencies failed; see .local/setup.log" >&2; exit 1; }
	@$(BIN)/pip install --disable-pip-version-check --no-deps --no-build-isolation -e framework -e services \
	  >>.local/setup.log 2>&1 || { tail -n 3 .local/setup.log >&2; echo "installing perdure failed; see .local/setup.log" >&2; exit 1; }
	@touch $@

$(TOOLS): package.json package-lock.json
	@command -v npm >/dev/null || { echo "npm is missing: it brings the type checker pyright; install Node.js with npm" >&2; exit 1; }
	@mkdir -p .local
	@npm ci --ignore-scripts --no-audit --no-fund >.local/npm.log 2>&1 || { tail -n 3 .local/npm.log >&2; exit 1; }
	@touch $@
