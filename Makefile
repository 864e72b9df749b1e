# A fresh clone needs python3 (3.11 to 3.13) and pip, nothing else. Every target can be run again at any time.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := -m pip install --quiet --constraint constraints.txt --editable
DEMO_VENV := $(if $(wildcard .venv/.ready),.venv,.venv-demo)
# glibc hands large blocks back at each release; kept, training on a CPU is up to three times as fast.
KEEP_MEMORY := MALLOC_MMAP_THRESHOLD_=200000000 MALLOC_TRIM_THRESHOLD_=2147483648
LEFT_OUT := notebook or kill or spark or ray or node or lowest or slow
# Tests that measure time or memory, or kill processes in the middle of something; the others run two at a time.
ALONE := $(addprefix tests/,process embed/test_overhead.py populate/test_faults.py populate/test_interrupts.py \
	populate/test_kills.py runtime/test_event_loop.py runtime/test_soak.py serve/test_process.py test_ray.py test_spark.py)
TWO_AT_A_TIME := --numprocesses 2 --dist loadfile $(addprefix --ignore=,$(ALONE))
# Scripts for this repository alone, written for what `make setup` installs.
OWN_TOOLS := tests/test_benchmarks.py tests/test_training.py

.PHONY: setup demo test test-all test-lowest check bench bench-gpu bench-serve train clean

setup: .venv/.ready  ## .venv with every extra and the development tools

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv && $(BIN)/python $(INSTALL) ".[all,dev]" && touch $@

.venv-demo/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-demo && .venv-demo/bin/python $(INSTALL) ".[demo]" && touch $@

demo: $(DEMO_VENV)/.ready  ## the main job on real text, offline
	$(DEMO_VENV)/bin/python examples/demo.py

test: setup  ## under 8 minutes on 2 cores
	$(BIN)/python -m pytest -m "not ($(LEFT_OUT))" $(ALONE)
	$(BIN)/python -m pytest -m "not ($(LEFT_OUT))" $(TWO_AT_A_TIME)

test-all: setup  ## every test this machine can run
	$(BIN)/python -m pytest $(ALONE)
	$(BIN)/python -m pytest $(TWO_AT_A_TIME)

test-lowest: .venv-lowest/.ready  ## on the oldest versions that pyproject.toml allows; what warns there is theirs
	.venv-lowest/bin/python -m pytest -W default -m "not ($(LEFT_OUT))" $(addprefix --ignore=,$(OWN_TOOLS))

.venv-lowest/.ready: pyproject.toml constraints.txt tests/lowest.py
	$(PYTHON) -m venv --clear .venv-lowest
	$(PYTHON) tests/lowest.py > .venv-lowest/lowest.txt
	.venv-lowest/bin/python $(INSTALL) ".[all,dev]" --constraint .venv-lowest/lowest.txt && touch $@

check: setup  ## format, lint, types
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy

bench: setup  ## measured against the peers: make bench DATA=path/to/data; without DATA on docstrings, no labelled sets
	$(BIN)/python -m pip install --quiet --no-deps --target build/benchmarks/packages --requirement benchmarks/peers.txt
	$(BIN)/python -m benchmarks $(if $(DATA),--data $(DATA))
	$(BIN)/python -m benchmarks.fresh

bench-serve: setup build/benchmarks/infinity/.ready  ## the server beside one process and others; memory of 16 clients
	$(BIN)/python -m benchmarks.serving $(if $(DATA),--data $(DATA))

# Without infinity the benchmark measures beside the other peers.
build/benchmarks/infinity/.ready: benchmarks/infinity.txt constraints.txt
	$(PYTHON) -m venv --clear $(@D) && $(@D)/bin/python -m pip install --quiet --only-binary :all: \
		--constraint constraints.txt --requirement benchmarks/infinity.txt && touch $@ || echo "infinity could not be installed" >&2

bench-gpu: setup  ## the same on a GPU
	$(BIN)/python -m benchmarks --gpu cuda $(if $(DATA),--data $(DATA))

train: setup  ## the pair that ships, again: make train DATA=path/to/data (training/README.md)
	$(BIN)/python -m pip install --quiet --no-deps --target build/training/packages --requirement training/packages.txt
	$(KEEP_MEMORY) $(BIN)/python -m training $(DATA) build/training

clean:  ## back to a fresh clone
	rm -rf .venv .venv-demo .venv-lowest dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
