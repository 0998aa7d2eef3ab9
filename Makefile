# `make demo` and `make test` need only Python 3.11-3.13 and make; each sets up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt

.PHONY: demo test quick torture lint clean
.DELETE_ON_ERROR:

demo: $(VENV)/installed
	$(BIN)/python -m tfmusic synth demo/data --tracks 400 --overwrite
	$(BIN)/python -m tfmusic build-records demo --data demo/data --out demo/records --overwrite
	$(BIN)/python -m tfmusic fit demo --records demo/records --run-dir demo/run --overwrite
	$(BIN)/python -m tfmusic evaluate demo/run
	$(BIN)/python -m tfmusic predict demo/run demo/data/q2/test --out demo/predictions.json
	$(BIN)/python -m tfmusic score q2 demo/predictions.json demo/data/answers/q2.json
	$(BIN)/python -m tfmusic export demo/run --overwrite
	$(BIN)/python -m tfmusic predict demo/run/export demo/data/q2/test --out demo/predictions-export.json
	cmp demo/predictions.json demo/predictions-export.json && echo "run and SavedModel give the same answers"

test: $(VENV)/installed-test lint
	$(BIN)/python -m pytest

quick: $(VENV)/installed-test lint
	$(BIN)/python -m pytest -m "not slow and not torture"

# Hours: what `make test` does a few times for the promises of the README, done at length.
torture: $(VENV)/installed-test
	$(BIN)/python -m tests.kill --trials 100
	$(BIN)/python -m tests.fuzz --executions 1000000
	$(BIN)/python -m pytest -m torture

lint: $(VENV)/installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"tfmusic needs Python 3.11 to 3.13, $(PYTHON) is {v[0]}.{v[1]}: pass PYTHON=python3.12, say")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(VENV)/bin/python pyproject.toml .ci/constraints.txt
	@echo "installing TensorFlow and friends into $(VENV): some minutes, some 2 GB"
	$(INSTALL) --editable .
	@touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(INSTALL) --editable '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) demo build dist
