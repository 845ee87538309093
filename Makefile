# Each command sets up all it needs; a fresh machine has Python >= 3.11 (with venv) and make.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-long fuzz bench gpu-check clean

demo: .venv/demo  ## normalization at work on two photographs: prints a table, writes style_contrast.png
	$(BIN)/python examples/style_contrast.py --out style_contrast.png

test: .venv/test  ## all checks and tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-long: .venv/test  ## the tests with many examples each, and once with every array access checked
	HYPOTHESIS_PROFILE=many $(BIN)/python -m pytest -n 2 --dist loadfile
	NUMBA_BOUNDSCHECK=1 NUMBA_CACHE_DIR=.numba_cache/checked $(BIN)/python -m pytest -n 2 tests/test_properties.py tests/test_gradients.py tests/test_gradient_sums.py

MINUTES ?= 10
fuzz: .venv/test  ## random arrays, sets and options against the oracle for MINUTES; saves what it finds
	$(BIN)/python -W ignore -m tests.fuzz --minutes $(MINUTES) --devices cpu cuda

bench: .venv/bench  ## the case table on the current commit, beside a copy of the same bytes
	cd asv_bench && ../$(BIN)/asv machine --yes && ../$(BIN)/asv run --python=same --quick --show-stderr

gpu-check: .venv/gpu-check  ## the tests on a CUDA device, and its table of times: writes docs/gpu-results.md
	$(BIN)/python -m tests.gpu_check

.venv/%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	touch $@

clean:
	rm -rf .venv .numba_cache
