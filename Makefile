# The two commands of a newcomer: `make demo` and `make test`. Both need nothing but python3 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MAKEFLAGS += --no-print-directory

.PHONY: help demo test test-fast integration chaos check format docs reproduction bench s3-server cluster-up cluster-down clean

help:
	@echo "make demo        install, train, certify RS and DRS on real digits, write runs/demo/report.html"
	@echo "make test        install, run all tests"
	@echo "make test-fast   the tests without Ray, servers and slow ones"
	@echo "make integration the tests of a run on a cluster of several nodes: submitted, hurt, resumed"
	@echo "make chaos       kills and storage faults at random for MINUTES (10), from SEED; checks every vote"
	@echo "make check       lint, format, types, and which room of the package imports which"
	@echo "make docs        the documents as a site with search, in build/docs; a broken link or anchor is an error"
	@echo "make reproduction DATA=DIR   RS against DRS on CIFAR-10, from training to certificates: hours, resumable"
	@echo "make bench       speed and memory, as ratios measured side by side"
	@echo "make s3-server   a real S3 server on loopback, to try s3:// outputs"
	@echo "make cluster-up  a Ray cluster of a head and WORKERS (2) nodes on this machine; make cluster-down ends it"

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

$(VENV)/.docs: pyproject.toml | $(VENV)/.runtime
	@echo "installing what the site of the documents needs into $(VENV)"
	$(BIN)/pip install --quiet --group docs
	@touch $@

demo: $(VENV)/.runtime
	$(BIN)/drs-ray demo

# Two tests at a time, each of which may start a Ray of its own; a process that is done takes over half of the other's rest.
test: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

test-fast: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not ray and not s3 and not slow"

integration: $(VENV)/.dev
	$(BIN)/python -m pytest tests/integration/test_submission.py tests/integration/test_slurm.py \
		tests/integration/test_cluster.py tests/unit/cluster

chaos: $(VENV)/.dev
	$(BIN)/python -m tests.chaos --minutes $(or $(MINUTES),10) $(if $(SEED),--seed $(SEED))

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --quiet tests/unit/test_imports.py

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.docs
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --fresh-env -c docs . build/docs
	@cp build/docs/README.html build/docs/index.html
	@echo "build/docs/index.html"

reproduction: $(VENV)/.runtime
	$(BIN)/python jobs/reproduction.py $(if $(DATA),--data $(DATA))

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks

s3-server: $(VENV)/.dev
	$(BIN)/python -m tests.servers

cluster-up: $(VENV)/.runtime
	@$(BIN)/python -m cluster.local up --workers $(or $(WORKERS),2)

cluster-down: $(VENV)/.runtime
	@$(BIN)/python -m cluster.local down

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
