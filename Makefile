# make demo | make quick | make test | make check | make fuzz: each sets up what it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
QUICK := tests/core tests/graph tests/ranges tests/ptq/layerwise/test_rounding.py tests/test_layering.py \
  tests/test_public_api.py tests/test_signatures.py tests/test_end_to_end.py

.PHONY: demo quick test check fuzz clean

demo: $(VENV)/.package
	$(BIN)/python -m kquant.cli.ptq

test: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 --dist=worksteal

# The maths, the graph and one end-to-end run: for while you write.
quick: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 --dist=worksteal $(QUICK)

check: $(VENV)/.test
	$(BIN)/ruff check .

# Random operators of every kind, random models, and every layer under every preset, against LiteRT; damaged files.
fuzz: $(VENV)/.test
	$(BIN)/python -m tests.tflite_export.operator_fuzz --cases=2000
	$(BIN)/python -m tests.tflite_export.model_fuzz --cases=2000
	$(BIN)/python -m tests.tflite_export.layer_sweep
	$(BIN)/python -m tests.qmodel.saving_sweep
	$(BIN)/python -m tests.graph.file_fuzz --cases=1000

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "kquant needs Python 3.10 to 3.13; name one: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# By path: else Python started in the folder that holds the clone takes the folder `kquant` for the package.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --config-settings editable_mode=compat

$(VENV)/.package: setup.py pyproject.toml | $(VENV)/bin/python
	$(INSTALL) -e .
	@touch $@

$(VENV)/.test: setup.py pyproject.toml | $(VENV)/bin/python
	$(INSTALL) -e ".[test]"
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info
