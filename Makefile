# Development commands. Requires Python 3.11 or newer, make and a package registry; `make` installs everything else.
# Targets depend on the stamp of the virtual environment, so no target needs an earlier `make setup`.

SHELL := /bin/sh
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TESTS ?= tests
# Tests that wait for processes leave room for one worker more than there are processors.
WORKERS ?= $(shell expr 1 + $$(getconf _NPROCESSORS_ONLN))
PYTEST_ARGS ?= -q -n $(WORKERS)

.PHONY: help setup proto fmt lint format types proto-check check test k8s matrix soak chaos chaos-net demo bench compare dist clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## create .venv with the project and its development tools
	@echo "Ready: $(BIN)/stepflow --help"

# Rebuilt when pyproject.toml changes. Touched last, so an interrupted installation is repeated.
$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is required, and none was found. Try: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is too old: Python 3.11 or newer is required. Try: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || { echo "Creating $(VENV) with $(PYTHON)"; "$(PYTHON)" -m venv $(VENV); }
	@echo "Installing the project and its tools into $(VENV) (a minute or two the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable . --group dev
	@$(BIN)/python -m compileall -q stepflow control_plane executor component_host  # bytecode for users who set PYTHONDONTWRITEBYTECODE
	@touch $(STAMP)

proto: ## generate the Python code from proto/
	@scripts/proto.sh

fmt: $(STAMP) ## format the code and apply safe lint fixes
	@$(BIN)/ruff check --quiet --fix-only .
	@$(BIN)/ruff format --quiet .

lint: $(STAMP) ## lint the code (ruff) and check the layers of imports (import-linter)
	@$(BIN)/ruff check --quiet --output-format concise .
	@$(BIN)/lint-imports --no-logo pyproject.toml > /dev/null || { $(BIN)/lint-imports --no-logo pyproject.toml >&2; exit 1; }
	@echo "lint: ok"

format: $(STAMP)
	@$(BIN)/ruff format --quiet --check --output-format concise . || { echo "format: run 'make fmt'" >&2; exit 1; }
	@echo "format: ok"

types: $(STAMP) ## check the types (mypy --strict)
	@$(BIN)/mypy --no-error-summary && echo "types: ok"

proto-check:
	@scripts/proto.sh --check && echo "proto: ok"

check: lint format types proto-check test ## run all checks: lint, format, types, generated code, tests

test: $(STAMP) ## run the tests (TESTS=tests/unit: only these)
	@PYTHONPATH=tests $(BIN)/python -m support.etcd
	@$(BIN)/pytest $(PYTEST_ARGS) $(TESTS)

k8s: $(STAMP) ## render and validate the manifests, and start their commands
	@$(BIN)/pytest -q -n 2 tests/mesh/kubernetes/test_manifests.py tests/mesh/kubernetes/test_package.py

matrix: $(STAMP) ## run the matrix of component servers and transports (minutes; the first run installs the servers)
	@$(BIN)/pytest $(PYTEST_ARGS) tests/matrix

MINUTES ?= 10
SEED ?= 1

soak: $(STAMP) ## call all kinds of component server while servers are killed at random (MINUTES=10 SEED=1)
	@PYTHONPATH=.:tests $(BIN)/python tests/soak.py --minutes $(MINUTES) --seed $(SEED)

chaos: $(STAMP) ## inject random faults into a mesh under load (MINUTES=10 SEED=1)
	@PYTHONPATH=tests $(BIN)/python -m chaos.campaign --minutes $(MINUTES) --seed $(SEED)

chaos-net: $(STAMP) ## drop packets between processes in network namespaces (requires root)
	@$(BIN)/pytest -q tests/chaos/namespaces.py

demo: $(STAMP) ## run the examples, then kill a run and resume it
	@$(BIN)/python scripts/demo.py

bench: $(STAMP) ## measure throughput, latency, cost per call of each bridge, take-over, 10,000 live runs, listings, folders of local runs, large batches, and large values
	@$(BIN)/python -m benchmarks.startup
	@$(BIN)/python -m benchmarks.embedded
	@$(BIN)/python -m benchmarks.mesh
	@$(BIN)/python -m benchmarks.bridges
	@$(BIN)/python -m benchmarks.bridges_mcp
	@$(BIN)/python -m benchmarks.safety
	@$(BIN)/python -m benchmarks.live_runs
	@$(BIN)/python -m benchmarks.listings
	@$(BIN)/python -m benchmarks.folders
	@$(BIN)/python -m benchmarks.batches
	@$(BIN)/python -m benchmarks.large_values
	@$(BIN)/python -m benchmarks.large_results

BASE ?= HEAD~1
PAIRS ?= 5

compare: $(STAMP) ## compare the CPU time of a step and of a start with another commit's (BASE=HEAD~1 PAIRS=5)
	@$(BIN)/python -m benchmarks.compare $(BASE) $(PAIRS)

dist: ## build and check sdist, wheel and SBOM (TAG=v1.2.3: require this version)
	@TAG="$(TAG)" scripts/dist.sh

clean: ## remove caches and build output (not .venv, not .stepflow)
	@rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
