# make tune   solve, generate, check and time an LSTM on this machine
# make test   the test suite; make lint, make bench
# make gpu-check   on a machine with a GPU: correctness, predictions, benchmarks beside cuDNN
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Workers share the cores, so OpenMP's threads sleep while they wait.
PYTEST := OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

.PHONY: tune test test-slow bench bench-constrint gpu-check lint clean

tune: $(STAMP)
	$(BIN)/autotune run lstm --batch 16 --time 256 --heads 4 --head-dim 64 --dtype float32 --budget 40

test: $(STAMP)
	$(PYTEST) -m "not slow"

test-slow: $(STAMP)
	$(PYTEST) -m slow

bench: $(STAMP)
	$(BIN)/flashrnn-bench run --suite quick

# Beside other tools, where the extra `bench` is installed.
bench-constrint: $(STAMP)
	$(BIN)/python -m bench.constrint.suite
	$(BIN)/python -m bench.constrint.models

gpu-check: $(STAMP)
	$(BIN)/python -m bench.gpu_check

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# torch comes first and pinned: resolved through a dependant, pip would fetch the CUDA build.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) dist build
