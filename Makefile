# The two commands of a newcomer: `make demo` and `make test`. Both need nothing but python3 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MAKEFLAGS += --no-print-directory

.PHONY: help demo test test-fast chaos check format bench s3-server clean

help:
	@echo "make demo        install, train, certify RS and DRS on real digits, write runs/demo/report.html"
	@echo "make test        install, run all tests"
	@echo "make test-fast   the tests without Ray, servers and slow ones"
	@echo "make chaos       kills and storage faults at random for MINUTES (10), from SEED; checks every vote"
	@echo "make check       lint, format, types"
	@echo "make bench       speed and memory, as ratios measured side by side"
	@echo "make s3-server   a real S3 server on loopback, to try s3:// outputs"

$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade "pip>=25.1"

$(VENV)/.runtime: pyproject.toml | $(BIN)/pip
	@echo "installing drs-ray and what it needs into $(VENV) (torch is large: a few minutes the first time)"
	$(BIN)/pip install --quiet --editable ".[demo,report]"
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/.runtime
	@echo "installing what tests and checks need into $(VENV)"
	$(BIN)/pip install --quiet --editable ".[demo,report]" --group dev
	@touch $@

demo: $(VENV)/.runtime
	$(BIN)/drs-ray demo

# Two tests at a time, each of which may start a Ray of its own; a process that is done takes over half of the other's rest.
test: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

test-fast: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not ray and not s3 and not slow"

chaos: $(VENV)/.dev
	$(BIN)/python -m tests.chaos --minutes $(or $(MINUTES),10) $(if $(SEED),--seed $(SEED))

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks

s3-server: $(VENV)/.dev
	$(BIN)/python -m tests.servers

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
