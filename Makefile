# make demo: from nothing to a report.  make test: everything that CI checks.
PYTHON ?= python3
BIN = .venv/bin
export HF_HUB_OFFLINE ?= 1

.PHONY: demo test lint unit assets install gpu clean

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

assets: install
	$(BIN)/python -m slayer.data.assets fetch

demo: assets
	$(BIN)/python train.py expansion=shallow_half prune=2
	$(BIN)/python evaluate.py checkpoint=runs/shallow_half-prune_2
	@echo "The report: runs/shallow_half-prune_2/report.html"

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test: lint unit

gpu: install
	$(BIN)/python -m pytest -m gpu tests/gpu

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
