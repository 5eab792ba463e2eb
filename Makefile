# `make demo` and `make test` set up everything they need in .venv, offline but for the package registry.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DATA := $(or $(REPLAYGEN_DATA),$(wildcard ../shared/data))
export REPLAYGEN_DATA := $(if $(DATA),$(abspath $(DATA)),)
export OMP_NUM_THREADS := 1

.PHONY: setup demo test soak bench docs lint clean
BENCHES := $(patsubst benchmarks/bench_%.py,%,$(wildcard benchmarks/bench_*.py))

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $(READY)

demo: setup
	$(BIN)/replaygen demo

test: setup
	$(BIN)/python -m pytest -m "not soak" $(PYTEST)

soak: setup
	$(BIN)/python -m pytest -m soak --timeout 36000 $(PYTEST)

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "open build/site/index.html; with its search: $(BIN)/python -m http.server --bind 127.0.0.1 -d build/site"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	@for name in $(BENCHES); do $(BIN)/python benchmarks/bench_$$name.py || exit 1; done

bench-%: setup
	$(BIN)/python benchmarks/bench_$(subst -,_,$*).py

clean:
	rm -rf $(VENV) data/digits reports
