# Needs nothing but make and Python 3.11 or newer: every target sets up .venv itself, once, and again only when
# pyproject.toml has changed. Another interpreter: make test PYTHON=/path/to/python3.12
PYTHON ?= python3
PROMPT ?= left pleural effusion
# The demo's seed: one whose image shows the prompt well. Look at a few again whenever `mini` is trained anew.
SEED ?= 3
DEMO ?= out/demo.png
VENV := .venv
PY := $(VENV)/bin/python
LOWEST := .venv-lowest

# Recipes read it from the environment, so that quotes in a prompt stay what they are.
export PROMPT

.PHONY: help demo install install-dev test test-fast test-lowest check docs benchmarks clean

help:
	@echo 'make install      make $(VENV) and install roentgen in it'
	@echo 'make demo         install, then generate "$(PROMPT)" (PROMPT="..." for another) into $(DEMO)'
	@echo 'make install-dev  install, with what tests and documentation need'
	@echo 'make test         install-dev, then run all tests that need no GPU'
	@echo 'make test-fast    the same without the slow ones'
	@echo 'make test-lowest  the lowest versions that pyproject.toml allows, in $(LOWEST), and the tests that hold them'
	@echo 'make check        install-dev, then ruff and mypy'
	@echo 'make docs         install-dev, then build the documentation into site/'
	@echo 'make benchmarks   install-dev, then time everything that docs/benchmarks.md shows: two hours, idle machine'
	@echo 'make clean        remove $(VENV) and $(LOWEST)'

demo: $(VENV)/.installed
	@path=$$($(PY) -m roentgen generate "$$PROMPT" --seed $(SEED) --out "$(DEMO)" --overwrite) && \
		echo "A synthetic chest X-ray of \"$$PROMPT\" (research only, not for diagnosis) is in $$path" && \
		echo "To go on, type: source $(VENV)/bin/activate"

install: $(VENV)/.installed
	@echo "installed; to use it, type: source $(VENV)/bin/activate"

install-dev: $(VENV)/.installed-dev

# No test may reach a model hub; CI has no use for what a download would hide. Two files at a time, a thread each:
# many small runs use two cores better one by one than both for each.
PYTEST := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses 2 --dist loadfile

test: $(VENV)/.installed-dev
	$(PYTEST) -m "not gpu"

test-fast: $(VENV)/.installed-dev
	$(PYTEST) -m "not gpu and not slow"

# What other people's programs and versions read: the card's snippet, a fine-tune and an adapter with equal pictures, key
# names, missing tensors, a trained text encoder beside the base one, features and distances of other packages.
test-lowest: $(LOWEST)/.installed
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest tests/test_lowest.py tests/models/test_portable.py \
		tests/models/test_whole.py tests/recipes/test_recipe_guards.py tests/metrics/test_distribution.py \
		tests/metrics/test_extractors.py

# Here and not in `dev`, which wants tools in their newest versions.
$(LOWEST)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' || { \
		echo "the lowest versions need Python 3.11 or 3.12: make test-lowest PYTHON=python3.11" >&2; exit 2; }
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install --disable-pip-version-check --quiet uv
	$(LOWEST)/bin/python -m uv pip install --python $(LOWEST)/bin/python --resolution lowest-direct \
		--editable '.[eval]' 'pytest>=8' 'prdc>=0.2'
	@touch $@

check: $(VENV)/.installed-dev
	$(PY) -m ruff check .
	$(PY) -m mypy

docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet
	@echo "the documentation is in site/index.html"

benchmarks: $(VENV)/.installed-dev
	PYTHON=$(PY) benchmarks/all.sh

# torch and torchvision are resolved in one go, so that the index gives a pair that fits.
$(VENV)/.installed: pyproject.toml | $(VENV)/bin/pip
	@echo "installing into $(VENV): a few minutes and several GB the first time, most of it PyTorch"
	$(PY) -m pip install --disable-pip-version-check --editable '.[eval,serve]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/pip
	@echo "installing into $(VENV): a few minutes and several GB the first time, most of it PyTorch"
	$(PY) -m pip install --disable-pip-version-check --editable '.[dev]'
	@touch $(VENV)/.installed $@

# --clear: a half-made environment (no venv package, Ctrl-C) is made again from nothing.
$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "roentgen needs Python 3.11 or newer, and '$(PYTHON)' is $$($(PYTHON) --version 2>&1);" \
			"name another: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv --clear $(VENV)

clean:
	rm -rf $(VENV) $(LOWEST) site
