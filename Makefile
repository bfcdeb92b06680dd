# Each target makes its environment when it is missing; a machine needs Python >= 3.11 and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: validate bounds check test lint bench quality clean

validate: $(VENV)/.cli
	$(BIN)/mftadv validate

bounds: $(VENV)/.cli
	$(BIN)/mftadv bounds

# what one runs between edits
check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -n auto --dist loadfile -m "not slow and not law"

# a file is one process's, which computes its fixtures and compiles its programs once
test: $(VENV)/.dev
	$(BIN)/python -m pytest -n auto --dist loadfile

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks

quality: $(VENV)/.peers
	$(BIN)/python -m benchmarks.quality

clean:
	rm -rf $(VENV) $(VENV)-oldest .pytest_cache .ruff_cache .hypothesis .jax_cache *.egg-info

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# A stamp per extra: an environment is brought up to date when pyproject.toml changes.
$(VENV)/.%: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable ".[$*]"
	touch $@
