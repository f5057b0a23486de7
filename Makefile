# Everything a developer does, by name. Needs Python 3.11 or newer, make and a package registry; the rest is made here.
# A target that needs the virtual environment depends on its stamp, so that nothing has to be run first.

SHELL := /bin/sh
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TESTS ?= tests
PYTEST_ARGS ?= -q -n auto

.PHONY: help setup proto fmt lint format types proto-check check test k8s matrix soak chaos chaos-net demo bench dist clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## create .venv with the project and its development tools (quick when repeated)
	@echo "Ready: $(BIN)/stepflow --help"

# Remade when a dependency may have changed. The stamp comes last, so that an interrupted installation starts again.
$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; none was found. Try: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is too old: Python 3.11 or newer is needed. Try: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || { echo "Creating $(VENV) with $(PYTHON)"; "$(PYTHON)" -m venv $(VENV); }
	@echo "Installing the project and its tools into $(VENV) (a minute or two the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable . --group dev
	@$(BIN)/python -m compileall -q stepflow control_plane executor component_host  # for those who forbid it at run time
	@touch $(STAMP)

proto: ## generate the Python code of proto/
	@scripts/proto.sh

fmt: $(STAMP) ## format the code and apply the safe fixes of the linter
	@$(BIN)/ruff check --quiet --fix-only .
	@$(BIN)/ruff format --quiet .

lint: $(STAMP) ## look for mistakes (ruff) and for imports against the layers (import-linter)
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

check: lint format types proto-check test ## all of it: lint, format, types, generated code, tests

test: $(STAMP) ## run the tests (TESTS=tests/unit for a part of them)
	@PYTHONPATH=tests $(BIN)/python -m support.etcd
	@$(BIN)/pytest $(PYTEST_ARGS) $(TESTS)

k8s: $(STAMP) ## render the manifests, validate them, start what they start
	@$(BIN)/pytest -q -n 2 tests/mesh/kubernetes/test_manifests.py tests/mesh/kubernetes/test_package.py

matrix: $(STAMP) ## drive every component server there is, in every way (minutes; installs them the first time)
	@$(BIN)/pytest $(PYTEST_ARGS) tests/matrix

MINUTES ?= 10
SEED ?= 1

soak: $(STAMP) ## call every kind of server while servers are killed at random (MINUTES=10 SEED=1)
	@PYTHONPATH=.:tests $(BIN)/python tests/soak.py --minutes $(MINUTES) --seed $(SEED)

chaos: $(STAMP) ## every fault at random against a mesh under load (MINUTES=10 SEED=1)
	@PYTHONPATH=tests $(BIN)/python -m chaos.campaign --minutes $(MINUTES) --seed $(SEED)

chaos-net: $(STAMP) ## processes in network namespaces whose packets vanish (as root)
	@$(BIN)/pytest -q tests/chaos/namespaces.py

demo: $(STAMP) ## run the examples, then kill a run in the middle and resume it
	@$(BIN)/python scripts/demo.py

bench: $(STAMP) ## measure steps per second, milliseconds per step, what each bridge costs per call, and 10,000 live runs
	@$(BIN)/python -m benchmarks.startup
	@$(BIN)/python -m benchmarks.embedded
	@$(BIN)/python -m benchmarks.mesh
	@$(BIN)/python -m benchmarks.bridges
	@$(BIN)/python -m benchmarks.bridges_mcp
	@$(BIN)/python -m benchmarks.safety
	@$(BIN)/python -m benchmarks.live_runs

dist: ## build sdist, wheel and SBOM, and check them (TAG=v1.2.3: as that version)
	@TAG="$(TAG)" scripts/dist.sh

clean: ## remove caches and build output (not .venv, not .stepflow)
	@rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
