# Each target sets up what it needs: a virtual environment in .venv, made once and anew when pins change.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
OUT ?= demo
SEEDS ?= 10000
KILLS ?= 200
AT_ONCE ?= -n 3 --dist worksteal

# Material for MkDocs is mended until May 2027, and says so at each build.
export NO_MKDOCS_2_WARNING := 1

.PHONY: demo test check docs bench simtest crashtest clean

demo: $(VENV)/.demo
	$(BIN)/krea-batch run sample_jobs/first.jsonl --out $(OUT) --simulate --time-scale 4

test: $(VENV)/.dev
	$(BIN)/python -m pytest $(AT_ONCE)

check: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy krea_batch tests benchmarks examples docs
	$(BIN)/lint-imports
	$(BIN)/mkdocs build --strict
	$(BIN)/python -m pytest -m "not slow" -q $(AT_ONCE)

docs: $(VENV)/.dev
	$(BIN)/mkdocs build --strict

simtest: $(VENV)/.dev
	$(BIN)/python -m tests.simulation --seeds $(SEEDS)

crashtest: $(VENV)/.dev
	KILLS=$(KILLS) $(BIN)/python -m pytest tests/crash -v -rsP

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) demo site build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "krea-batch needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: constraints.txt pyproject.toml | $(BIN)/python
	$(PIP) install -c constraints.txt -e '.[simulator,fast]'
	touch $@

$(VENV)/.dev: constraints.txt pyproject.toml | $(BIN)/python
	$(PIP) install -c constraints.txt -e '.[dev]'
	touch $@ $(VENV)/.demo
