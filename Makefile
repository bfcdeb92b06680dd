# Each target makes its environment when it is missing; a machine needs Python >= 3.11 and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# What an installed wheel must do.
define SMOKE
import importlib.metadata, pathlib, subprocess, sys, mftadv
here = pathlib.Path.cwd()
assert here in pathlib.Path(mftadv.__file__).parents, mftadv.__file__
assert importlib.metadata.version("mftadv") == mftadv.__version__
inside, sources = (
    {path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    for folder in (here / "mftadv", here.parents[1] / "mftadv")
)
assert inside == sources and pathlib.Path("py.typed") in inside, inside ^ sources
assert not (here / "tests").exists()
for command in (["-m", "mftadv"], ["bin/mftadv"]):
    said = subprocess.run([sys.executable, *command, "--version"], check=True, capture_output=True, text=True).stdout
    assert said == f"mftadv {mftadv.__version__}\n", said
print("the wheel works:", said, end="")
endef
export SMOKE

.PHONY: validate bounds check test lint docs dist bench quality clean

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

# the site, in build/docs; any warning is an error
docs: $(VENV)/.docs
	$(BIN)/python -m sphinx -E -W --keep-going -n -q docs build/docs

# the source archive and the wheel made of it, in dist/; then the wheel is used outside of the sources
dist: $(VENV)/.dev
	rm -rf dist build/dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python -m pip install --quiet --no-deps --target build/dist dist/*.whl
	cd build/dist && PYTHONPATH=. ../../$(BIN)/python -c "$$SMOKE"

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks

quality: $(VENV)/.peers
	$(BIN)/python -m benchmarks.quality

clean:
	rm -rf $(VENV) $(VENV)-oldest .pytest_cache .ruff_cache .hypothesis .jax_cache build dist *.egg-info

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# A stamp per extra: an environment is brought up to date when pyproject.toml changes.
$(VENV)/.%: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable ".[$*]"
	touch $@
