# `make demo` and `make test` need only Python 3.11-3.13 and make; each sets up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2  # processes of the tests; each takes up to 7 GB of memory
# Python compiles what it imports when it first does; all of TensorFlow would take half a minute. Where the surroundings
# forbid it to keep that (containers often do), every process would compile TensorFlow again, for some 15 seconds.
unexport PYTHONDONTWRITEBYTECODE
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check --no-compile
INSTALL := $(BIN)/python $(PIP_INSTALL) --constraint .ci/constraints.txt

ADDONS := .venv-addons
PYTHON311 ?= $(PYTHON)
BEAM := .venv-beam
PYTHONS ?= python3.11 python3.12 python3.13  # of `make test-pythons` and `make package`

.PHONY: help demo environments test quick torture lint test-addons test-beam test-pythons package benchmark audit clean
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

help:
	@echo "make demo          synthetic music from data to SavedModel and predictions: some 3 minutes, 2.4 GB of disk"
	@echo "make quick         lint and the quick tests"
	@echo "make test          lint and all tests but the hour-long ones"
	@echo "make test-addons   the tests of the TensorFlow Addons stack (PYTHON311=python3.11)"
	@echo "make test-beam     the tests of Apache Beam"
	@echo "make test-pythons  the same records under Python 3.11 to 3.13"
	@echo "make package       wheel and sdist, each Python's wheel installed and used in a folder without the repository"
	@echo "make torture       kills, damaged files, broken requests at length: some hours"
	@echo "make benchmark     ratios side by side; ARGS=\"converter --gigabytes 5\", ARGS=--help lists the options"
	@echo "make audit         the pinned packages against the advisories of osv.dev"
	@echo "make lint clean    formatting, lint and types; remove what make has made"

demo: $(VENV)/installed
	$(BIN)/python -m tfmusic synth --out demo/data --tracks 400 --overwrite
	$(BIN)/python -m tfmusic build-records demo --data demo/data --out demo/records --overwrite
	$(BIN)/python -m tfmusic fit demo --records demo/records --out demo/run --overwrite
	$(BIN)/python -m tfmusic evaluate demo/run
	$(BIN)/python -m tfmusic predict demo/run demo/data/q2/test --out demo/predictions.json --overwrite
	$(BIN)/python -m tfmusic score q2 demo/predictions.json demo/data/answers/q2.json
	$(BIN)/python -m tfmusic export demo/run --overwrite
	$(BIN)/python -m tfmusic predict demo/run/export demo/data/q2/test --out demo/predictions-export.json --overwrite
	cmp demo/predictions.json demo/predictions-export.json && echo "run and SavedModel give the same answers"

# The three environments; `make --jobs 3 environments` installs them side by side.
environments: $(VENV)/installed-test $(BEAM)/installed $(ADDONS)/installed

# Each process begins with its own contiguous part of the tests, so that the fixtures of a file are rarely made twice; one
# that has finished takes tests from the end of another's part.
test: $(VENV)/installed-test lint
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal --durations 40

quick: $(VENV)/installed-test lint
	$(BIN)/python -m pytest -m "not slow"

# Some hours on 2 cores: kills, faults, bit flips and random input at length, and every variant of what `make test` does
# for one (one architecture a family, one task, one precision). The shortest come first. It ends with a table: promise,
# trials, failures. One part: make torture TORTURE=tests/test_kill.py
TORTURE ?= tests/test_[!fk]*.py tests/test_f*.py tests/test_k*.py

torture: $(VENV)/installed-test
	$(BIN)/python -m pytest -p tests.torture -m torture --verbose --capture=no $(TORTURE)

lint: $(VENV)/installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# The stack of TensorFlow Addons: Python 3.11, TensorFlow 2.15.1, Keras 2.15, in an environment of its own. It runs the
# quick tests whose code meets TensorFlow or Keras (of the models: that each builds, answers, saves and loads), and the
# slow ones of what this stack alone has.
ADDONS_TESTS := $(addprefix tests/test_,$(addsuffix .py,\
	addons losses augment pipeline devices processes formats serving explain tf_serving hostile_models links)) \
	$(addprefix tests/test_models.py::test_,codes_in_logits_out save_and_load_keep_the_output \
	keras_2_gets_its_model_back)

test-addons: $(ADDONS)/installed $(VENV)/installed
	KERAS_BACKEND=tensorflow $(ADDONS)/bin/python -m pytest -m "not slow" $(ADDONS_TESTS)
	KERAS_BACKEND=tensorflow TFMUSIC_OTHER_PYTHON=$(CURDIR)/$(BIN)/python TFMUSIC_OTHER_PYTHONS=$(CURDIR)/$(BIN)/python \
		$(ADDONS)/bin/python -m pytest -m slow tests/test_addons.py tests/test_processes.py tests/test_pythons.py

# Apache Beam, which goes with other versions of packages than TensorFlow: a small environment that can build records.
test-beam: $(BEAM)/installed
	$(BEAM)/bin/python -m pytest tests/test_beam.py tests/test_store.py

# Records have the same bytes under other Pythons, and with the packages of the other stack: small environments without
# TensorFlow, as `build-records` needs none.
RECORDS := numpy pandas pyyaml pydantic rich google-crc32c scipy soundfile soxr

test-pythons: $(VENV)/installed-test
	@for python in $(PYTHONS); do for stack in constraints constraints-addons; do \
		place=.venv-pythons/$$python-$$stack; \
		if [ $$stack = constraints-addons ] && [ $$python != python3.11 ]; then continue; fi; \
		$$python -m venv $$place && $$place/bin/python -m pip install --quiet --disable-pip-version-check \
			--constraint .ci/$$stack.txt $(RECORDS) || exit 1; \
	done; done
	TFMUSIC_OTHER_PYTHONS="$$(echo $(CURDIR)/.venv-pythons/*/bin/python)" $(BIN)/python -m pytest tests/test_pythons.py

# Wheel and sdist in dist/. Each Python installs the wheel with all it needs and goes from data to a prediction in a folder
# without the repository; the wheel that the sdist makes is the same.
package: $(VENV)/installed-test
	rm -rf dist && $(BIN)/python -m hatchling build
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist/of-sdist dist/*.tar.gz
	$(BIN)/python -c 'import glob, zipfile; a, b = (zipfile.ZipFile(glob.glob(p)[0]) for p in ("dist/*.whl", "dist/of-sdist/*.whl")); \
		assert {i.filename: i.CRC for i in a.infolist()} == {i.filename: i.CRC for i in b.infolist()}'
	@for python in $(PYTHONS); do place=$$(mktemp -d) && $$python -m venv $$place/venv && \
		$$place/venv/bin/python $(PIP_INSTALL) --constraint .ci/constraints.txt dist/*.whl && (cd $$place && \
			venv/bin/tfmusic synth --out DATA --tracks 24 --quiet && \
			venv/bin/tfmusic build-records q2 --data DATA --out records --quiet && \
			venv/bin/tfmusic fit q2 --records records --out run --quiet training.fold=0 training.epochs=1 model.width=8 && \
			venv/bin/tfmusic predict run DATA/q2/test --out p.json --quiet && \
			venv/bin/tfmusic score q2 p.json DATA/answers/q2.json && \
			venv/bin/python -c 'import glob, tfmusic; print(tfmusic.load("run").predict(glob.glob("DATA/q2/test/**/*.npy", recursive=True)[0]))') && \
		rm -rf $$place && echo "$$python: the wheel works" || exit 1; \
	done

# Ratios of tfmusic and what it is compared with, measured in turn in one run: tests/benchmarks/README.md.
ARGS ?= startup

benchmark: $(VENV)/installed-test
	$(BIN)/python -m tests.benchmarks $(ARGS)

# The pinned packages of all environments against the advisories of osv.dev; fails where that cannot be reached.
audit:
	$(PYTHON) -m venv .venv-audit && .venv-audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	for list in .ci/constraints.txt .ci/constraints-addons.txt .ci/requirements-beam.txt; do \
		.venv-audit/bin/pip-audit --strict --no-deps --disable-pip --vulnerability-service osv --requirement $$list || exit 1; \
	done

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

$(ADDONS)/installed: pyproject.toml .ci/constraints-addons.txt
	@$(PYTHON311) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v == (3, 11) else f"the addons stack needs Python 3.11, $(PYTHON311) is {v[0]}.{v[1]}: pass PYTHON311=python3.11, say")'
	$(PYTHON311) -m venv $(ADDONS)
	@echo "installing TensorFlow 2.15 and its addons into $(ADDONS)"
	$(ADDONS)/bin/python $(PIP_INSTALL) --constraint .ci/constraints-addons.txt --editable '.[addons,test-addons]'
	@touch $@

$(BEAM)/installed: pyproject.toml .ci/requirements-beam.txt
	$(PYTHON) -m venv $(BEAM)
	$(BEAM)/bin/python $(PIP_INSTALL) --requirement .ci/requirements-beam.txt
	$(BEAM)/bin/python $(PIP_INSTALL) --no-deps --editable .
	@touch $@

clean:
	rm -rf $(VENV) $(ADDONS) $(BEAM) .venv-pythons .venv-audit demo build dist
