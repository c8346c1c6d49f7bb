# Commands for development. `make help` lists them. Each target sets up its requirements.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TOOLS := node_modules/.ready
PLATFORM := $(BIN)/perdure-platform
SYSTEM := $(BIN)/python -m tests.system
# Tests run in WORKERS processes. MODES=all runs all modes of the engine, MODES=vqueues the tests on tomorrow's engine.
WORKERS ?= 4
PYTEST := $(BIN)/pytest -n $(WORKERS) --durations=20 --durations-min=1 $(if $(MODES),--restate-modes=$(MODES))
LOCK_INPUTS := framework/pyproject.toml services/pyproject.toml
# Without cached bytecode, each test worker and service process compiles its modules again.
unexport PYTHONDONTWRITEBYTECODE
# Engines that tests start themselves, and those of platforms.
ifeq ($(MODES),vqueues)
export PERDURE_ENGINE_VQUEUES := true
endif

.PHONY: help run demo chaos soak cluster attack audit audit-deps dist sbom security test tests nightly coverage pythons engine check lint types mypy pyright bandit pip-audit unit integration e2e examples bench scaling format lock clean up down logs test-containers test-cluster tools observe observability prometheus reference

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(READY) ## start the platform, book a trip, stay up until Ctrl-C
	@exec $(PLATFORM) run

demo: $(READY) ## run the scenarios on a fresh platform and compare expected and observed results
	@exec $(SYSTEM) demo

chaos: $(READY) ## break processes, connections, disks and the databases while trips are booked; SEED=n repeats, TRIPS=n (100)
	@exec $(SYSTEM) chaos $(if $(SEED),--seed $(SEED)) --trips $(or $(TRIPS),100)

soak: $(READY) ## book trips at a steady rate; memory, descriptors and latency must not grow; MINUTES=n (10)
	@exec $(SYSTEM) soak --minutes $(or $(MINUTES),10)

cluster: $(READY) ## book trips on three engine nodes while one is killed and another is stopped
	@exec $(SYSTEM) cluster

attack: $(READY) ## run all attacks on fresh platforms with plain and encrypted journals; all must be refused
	@exec $(SYSTEM) attack

audit: $(READY) ## check the business invariants over the databases, platform up or down
	@exec $(PLATFORM) audit

test: ## lint, types, and all tests on a real restate-server, in minutes
	@.ci/stages check tests

nightly: ## the tests in all modes of the engine with coverage, on each Python, all attacks, 10,000 trips of chaos, a soak, and 100,000 sagas of history
	@TRIPS=$(or $(TRIPS),10000) .ci/stages check coverage pythons attack "chaos test-cluster" soak observability scaling

check: $(READY) $(TOOLS) ## lint, types and the supply chain, without running anything
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target lint types security

security: bandit pip-audit ## bandit over the code, pip-audit over its dependencies

bandit: $(READY)
	@$(BIN)/bandit --quiet --configfile pyproject.toml --recursive framework/perdure services deploy
	@echo "bandit: clean"

pip-audit: $(READY)
	@$(BIN)/python -m deploy.supply_chain.audit --tolerate-silence

audit-deps: $(READY) ## pip-audit alone; it also fails if the database of vulnerabilities is unavailable
	@$(BIN)/python -m deploy.supply_chain.audit

sbom: $(READY) ## a CycloneDX list of the image's packages, in .local/sbom.json
	@$(BIN)/python -W ignore::UserWarning -m cyclonedx_py requirements --pyproject services/pyproject.toml --spec-version 1.6 --output-reproducible \
	  --output-file .local/sbom.json deploy/docker/runtime.lock
	@echo "sbom: .local/sbom.json"

# Ignored: packages that are loaded by name, and packages of a declared one (starlette of fastapi).
DEPTRY := $(BIN)/deptry --no-ansi

lint: $(READY)
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --check --quiet
	@$(BIN)/lint-imports --no-cache >.local/lint-imports.log 2>&1 || { cat .local/lint-imports.log; exit 1; }
	@$(DEPTRY) framework/perdure --config framework/pyproject.toml --known-first-party perdure \
	  --per-rule-ignores "DEP002=perdure|tzdata|uvloop,DEP003=pydantic_core" >.local/deptry.log 2>&1 || { cat .local/deptry.log; exit 1; }
	@$(DEPTRY) services --config services/pyproject.toml --known-first-party services --per-rule-ignores \
	  "DEP002=aiosqlite|asyncpg|python-multipart,DEP003=h11|markupsafe|pydantic_core|restate|starlette" \
	  >.local/deptry.log 2>&1 || { cat .local/deptry.log; exit 1; }
	@.ci/terms
	@$(BIN)/python deploy/grafana/build.py --check
	@$(BIN)/python docs/reference/build.py --check
	@$(BIN)/python -m deploy.supply_chain.licences --check
	@echo "lint: clean"

types: pyright mypy

mypy: $(READY)
	@$(BIN)/mypy --no-error-summary -p perdure -p services -p benchmarks -p examples
	@echo "mypy: clean"

pyright: $(READY) $(TOOLS)
	@node_modules/.bin/pyright --pythonpath $(BIN)/python >.local/pyright.log || { cat .local/pyright.log; exit 1; }
	@echo "pyright: clean"

unit: $(READY) $(TOOLS) ## tests that need no engine
	@$(PYTEST) tests/typing tests/unit

integration: $(READY) engine ## tests of the library on a real engine; MODES=all for all modes
	@$(PYTEST) tests/integration tests/examples

e2e: $(READY) engine ## tests of the whole platform, and of the console in Chromium where it is installed
	@$(PYTEST) tests/e2e

# One session, so that no worker idles at the end of a folder. tests/plugins/parallel.py orders the tests.
TESTS := tests/e2e tests/integration tests/examples tests/typing tests/unit

tests: $(READY) $(TOOLS) engine
	@$(PYTEST) $(TESTS)

# Subprocesses are measured, too, so the path of the data is absolute.
coverage: export COVERAGE_FILE := $(CURDIR)/.local/coverage/data
coverage: $(READY) $(TOOLS) engine ## the tests in all modes of the engine, with the coverage of lines and branches
	@rm -rf .local/coverage && mkdir -p .local/coverage
	@$(BIN)/coverage run -m pytest -n $(WORKERS) --restate-modes=$(or $(MODES),all) --hypothesis-profile=nightly --durations=20 --durations-min=1 $(TESTS)
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report --include='services/*' --skip-covered --sort=cover
	@$(BIN)/coverage report --include='framework/perdure/*' --skip-covered --sort=cover --fail-under=90

pythons: $(READY) ## the unit tests on every supported Python that this machine has
	@.ci/pythons

# Before the tests, since an installation takes longer than a test may.
engine: $(READY)
	@$(BIN)/python -c 'from pathlib import Path; from perdure.engine import locate_engine; locate_engine(Path(".local/engine"))'

dist: $(READY) ## build sdist and wheel into dist/, and check that they install and run alone
	@.ci/dist

up: ## the whole platform in containers; the first start creates secrets in volumes
	@docker compose up --build --wait

down: ## stop the containers; their data stays in volumes
	@docker compose down

logs: ## follow the logs of the containers
	@docker compose logs --follow --tail 50

test-containers: $(READY) ## build and run the compose file, inject faults, check that nothing is lost
	@$(BIN)/pytest -rs tests/system/containers

test-cluster: $(READY) prometheus ## three engine nodes: trips continue while one is killed and one is stopped; an upgrade under load
	@$(BIN)/pytest -rs tests/system/cluster

examples: $(READY) ## run the sixteen patterns on one engine, a line each
	@exec $(BIN)/python -m examples

tools: ## as root on Debian: install missing tools of the tests (Chromium, PostgreSQL, openssl, curl)
	@.ci/tools

bench: $(READY) ## a 3-step saga through perdure and by hand on the SDK, side by side
	@exec $(BIN)/python -m benchmarks.saga

scaling: $(READY) engine ## cost of queries and background work with 1,000 to 100,000 finished sagas, into docs/explanation/scaling.md
	@exec $(BIN)/python -m benchmarks.scaling --sagas 0 --sagas 1000 --sagas 4000 --sagas 16000 --sagas 100000 --page docs/explanation/scaling.md

observe: $(READY) ## run the scenarios, then show the trace of a trip and the value of every panel
	@exec $(SYSTEM) observe

observability: $(READY) prometheus ## a real Prometheus beside a real platform: every panel has data, every alert fires
	@$(BIN)/pytest -rs tests/system/observability

prometheus: ## fetch Debian's Prometheus into .local/prometheus, without installing or starting it
	@command -v prometheus >/dev/null || test -x .local/prometheus/usr/bin/prometheus || { \
	  command -v apt-get >/dev/null || { echo "there is no apt-get here: put prometheus and promtool on the PATH" >&2; exit 1; }; \
	  mkdir -p .local/prometheus; \
	  ( cd .local/prometheus && { apt-get update || true; } && apt-get download prometheus && dpkg -x prometheus_*.deb . && rm prometheus_*.deb ) \
	    >.local/prometheus.log 2>&1 || { tail -n 3 .local/prometheus.log >&2; exit 1; }; }

reference: $(READY) ## write the generated pages of docs/reference and the dashboards
	@$(BIN)/python -m perdure.observability.reference >docs/reference/metrics.md
	@$(BIN)/python docs/reference/build.py
	@$(BIN)/python -m deploy.supply_chain.licences
	@$(BIN)/python deploy/grafana/build.py

format: $(READY) ## format the code and sort the imports
	@$(BIN)/ruff check --quiet --fix
	@$(BIN)/ruff format --quiet

lock: ## resolve the dependencies anew into requirements.lock and the locks of the image (needs uv)
	@uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate \
	  --no-header --no-emit-package perdure -o requirements.lock $(LOCK_INPUTS) --group dev --group build
	@uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate \
	  --no-header --no-emit-package perdure -c requirements.lock -o deploy/docker/runtime.lock $(LOCK_INPUTS)
	@uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate \
	  --no-header -c requirements.lock -o deploy/docker/build.lock --group pyproject.toml:build

clean: ## remove built files; the platform's data in .local/data stays
	@rm -rf $(VENV) node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis

# The environment: the locked versions, each checked against its hash, then the two distributions of this workspace.
$(READY): requirements.lock $(LOCK_INPUTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "perdure needs Python 3.11 or later; '$(PYTHON)' is not. Name another one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@mkdir -m 700 -p .local
	@echo "setting up $(VENV) (once, a minute or two) ..."
	@$(PYTHON) -m venv --clear $(VENV) >.local/setup.log 2>&1 || { \
	  echo "'$(PYTHON) -m venv' failed (on Debian: apt install python3-venv); see .local/setup.log" >&2; exit 1; }
	@$(BIN)/pip install --disable-pip-version-check --require-hashes -r requirements.lock >>.local/setup.log 2>&1 || { \
	  tail -n 3 .local/setup.log >&2; echo "installing the dependencies failed; see .local/setup.log" >&2; exit 1; }
	@$(BIN)/pip install --disable-pip-version-check --no-deps --no-build-isolation -e framework -e services \
	  >>.local/setup.log 2>&1 || { tail -n 3 .local/setup.log >&2; echo "installing perdure failed; see .local/setup.log" >&2; exit 1; }
	@touch $@

$(TOOLS): package.json package-lock.json
	@command -v npm >/dev/null || { echo "npm is missing: it brings the type checker pyright; install Node.js with npm" >&2; exit 1; }
	@mkdir -m 700 -p .local
	@npm ci --ignore-scripts --no-audit --no-fund >.local/npm.log 2>&1 || { tail -n 3 .local/npm.log >&2; exit 1; }
	@touch $@
