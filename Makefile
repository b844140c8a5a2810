# make demo | make test | make check | make fuzz: each sets up what it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test check fuzz clean

demo: $(VENV)/.package
	$(BIN)/python -m kquant.cli.ptq

test: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 --dist=worksteal

check: $(VENV)/.test
	$(BIN)/ruff check .

# Thousands of random operators of every kind, and of random models, against LiteRT; make test runs a few.
fuzz: $(VENV)/.test
	$(BIN)/python -m tests.tflite_export.operator_fuzz --cases=2000
	$(BIN)/python -m tests.tflite_export.model_fuzz --cases=2000

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "kquant needs Python 3.10 to 3.13; name one: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.package: setup.py pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.test: setup.py pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[test]"
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info
