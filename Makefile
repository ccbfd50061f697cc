# Everything a person types. `make help` lists it.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Threads that spin long while they wait for each other cost ten times beside a busy neighbour.
export GOMP_SPINCOUNT ?= 10000

.PHONY: help setup demo test soak lint types contracts docs bench bench-quick chaos claims check-cuda check clean

help:  ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(STAMP)  ## make .venv with everything locked; leaves .venv/bin/manylora

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "manylora needs Python 3.11 or newer (make PYTHON=python3.11 …)" >&2; exit 1; }
	$(PYTHON) -m venv "$(VENV)"
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check -r requirements.lock
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch "$(STAMP)"

demo: setup  ## three customers' adapters on one real base, by the real service
	"$(BIN)/python" examples/demo.py

test: setup  ## every test, on real PostgreSQL, Valkey and SeaweedFS
	"$(BIN)/python" -m pytest

soak: setup  ## 100,000 simulated histories full of faults; half an hour of one core
	SEEDS=100000 "$(BIN)/python" -m pytest -q -n auto tests/scheduler/simulate/test_seeds.py -k chunk

lint: setup  ## style
	"$(BIN)/ruff" check .
	"$(BIN)/ruff" format --check .

types: setup  ## static types
	"$(BIN)/mypy"

contracts: setup  ## who may import whom
	"$(BIN)/lint-imports"

docs: setup  ## write the tables of docs/ that come from the code
	"$(BIN)/python" docs/generate.py

bench: setup  ## measure against the peers, over an hour; writes docs/performance.md
	"$(BIN)/python" -m bench.report --check
	"$(BIN)/python" -m bench.engine
	"$(BIN)/python" -m bench.memory
	"$(BIN)/python" -m bench.quantized
	"$(BIN)/python" -m bench.service
	"$(BIN)/python" -m bench.queue --plot
	"$(BIN)/python" -m bench.fair
	"$(BIN)/python" -m bench.report

bench-quick: setup  ## see that the bench works: a few minutes, numbers that mean nothing
	"$(BIN)/python" -m bench.report --check
	"$(BIN)/python" -m bench.engine --quick
	"$(BIN)/python" -m bench.memory --quick
	"$(BIN)/python" -m bench.quantized --quick
	"$(BIN)/python" -m bench.service --quick
	"$(BIN)/python" -m bench.queue --quick
	"$(BIN)/python" -m bench.fair --quick
	"$(BIN)/python" -m bench.report --quick

chaos: setup  ## kill and freeze every part, 100 times over 20 jobs; FAULTS=, JOBS=, SEED= choose
	"$(BIN)/python" -m tests.chaos --faults $(or $(FAULTS),100) --jobs $(or $(JOBS),20) --seed $(or $(SEED),1)

claims: setup  ## do again what the documents claim; minutes; writes docs/claims.md; CIFAR= a folder
	"$(BIN)/python" -m claims $(if $(CIFAR),--cifar "$(CIFAR)")

check-cuda: setup  ## on a GPU: jobs among others against alone, and the engine's bench
	"$(BIN)/python" -m bench.cuda

check: lint types contracts test  ## all of the above

clean:  ## remove .venv and build
	rm -rf "$(VENV)" build
