# make demo: from nothing to a report.  make test: lint and tests, about fifteen minutes on two cores.  make matrix: the rest of what CI runs.
PYTHON ?= python3
BIN = .venv/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
RUN = runs/shallow_half-prune_2

# Whole matrices of which `make test` runs a part, other launchers, four ranks, two hosts: `make matrix`. CI runs both.
.PHONY: demo test matrix lint unit assets install gpu clean

install: .venv/.installed

# torch first and alone: which build it is decides what everything else may pull in.
.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) -e .
	touch $@

.venv/.developing: .venv/.installed
	$(PIP) -e '.[dev]'
	touch $@

assets: install
	$(BIN)/python -m slayer.data.assets fetch

demo: assets
	$(BIN)/python train.py expansion=shallow_half prune=2
	$(BIN)/python evaluate.py checkpoint=$(RUN)
	@echo "The report: $(RUN)/report.html"

lint: .venv/.developing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: .venv/.developing assets
	$(PYTEST) -m "not matrix"

matrix: .venv/.developing assets
	$(PYTEST) -m matrix

test: lint unit

gpu: .venv/.developing
	$(BIN)/python -m pytest -m gpu tests/gpu

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
