# Each target sets up what it needs: a virtual environment in .venv, made once and again when the pins change.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
UV := $(BIN)/uv --no-config
OUT ?= demo
SEEDS ?= 10000
KILLS ?= 200
WORKERS ?= -n 4 --dist worksteal

# Silence the end-of-life notice of Material for MkDocs.
export NO_MKDOCS_2_WARNING := 1

# The tests that reach the code of rules, ledger and pipeline, whose coverage has a gate (pyproject.toml).
COVERING := tests/rules tests/ledger tests/pipeline tests/engine tests/simulation tests/maintenance/test_recover.py \
	tests/crash/test_killed_workers.py \
	$(addprefix tests/storage/test_,reference_files.py reference_store.py sink_writer.py) \
	$(addprefix tests/cli/test_,charges.py database_ledger.py edited_lists.py locked_ledger.py read_only.py \
	recover_command.py resolve.py retry.py webhook.py worker.py)

GENERATED := docs/reference/command-line.md docs/reference/settings.md docs/reference/files.md docs/reference/messages.md

.PHONY: demo test check coverage generate screenshots lock docs bench simtest crashtest clean

demo: $(VENV)/.demo
	$(BIN)/krea-batch demo $(OUT)

test: $(VENV)/.dev
	$(BIN)/python -m pytest $(WORKERS)

check: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy krea_batch tests benchmarks examples docs
	$(BIN)/mypy --platform darwin krea_batch
	$(BIN)/mypy --platform win32 krea_batch
	$(BIN)/lint-imports
	$(BIN)/codespell -D - -D .codespell-dictionary
	$(BIN)/cog --check --check-fail-msg "run make generate" $(GENERATED)
	$(BIN)/mkdocs build --strict
	$(BIN)/python -m pytest -m "not slow" -q $(WORKERS)

coverage: $(VENV)/.dev
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -q $(WORKERS) -k "not planted" $(COVERING)
	$(BIN)/coverage combine -q
	$(BIN)/coverage report --fail-under 98 --omit none
	$(BIN)/coverage report

generate: $(VENV)/.dev
	$(BIN)/cog -r $(GENERATED)
	$(BIN)/python -m docs.state_diagram > docs/reference/states.svg
	$(BIN)/python -m docs.explanations > krea_batch/cli/ui/explanations.json

screenshots: $(VENV)/.dev
	$(BIN)/python -m docs.screenshots

lock: $(VENV)/.dev
	$(UV) pip compile pyproject.toml --extra dev --extra ray --universal --python-version 3.11 --no-annotate \
		--custom-compile-command "make lock" --quiet -o constraints.txt

docs: $(VENV)/.dev
	$(BIN)/mkdocs build --strict

simtest: $(VENV)/.dev
	$(BIN)/python -m tests.simulation --seeds $(SEEDS)
	$(BIN)/python -m tests.simulation --workers --seeds $(SEEDS)

crashtest: $(VENV)/.dev
	TMPDIR=$${TMPDIR:-/var/tmp} KILLS=$(KILLS) $(BIN)/python -m pytest tests/crash -v -rsP

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
