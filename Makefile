# Needs nothing but make and Python 3.11 or newer: every target sets up .venv itself, once, and again only when
# pyproject.toml has changed. Another interpreter: make test PYTHON=/path/to/python3.12
PYTHON ?= python3
PROMPT ?= left pleural effusion
# The demo's seed: one whose image shows the prompt well. Look at a few again whenever `mini` is trained anew.
SEED ?= 3
DEMO ?= out/demo.png
VENV := .venv
PY := $(VENV)/bin/python

# Recipes read it from the environment, so that quotes in a prompt stay what they are.
export PROMPT

.PHONY: help demo install install-dev test test-fast check docs benchmarks clean

help:
	@echo 'make install      make $(VENV) and install roentgen in it'
	@echo 'make demo         install, then generate "$(PROMPT)" (PROMPT="..." for another) into $(DEMO)'
	@echo 'make install-dev  install, with what tests and documentation need'
	@echo 'make test         install-dev, then run all tests that need no GPU'
	@echo 'make test-fast    the same without the slow ones'
	@echo 'make check        install-dev, then ruff and mypy'
	@echo 'make docs         install-dev, then build the documentation into site/'
	@echo 'make benchmarks   install-dev, then time everything that docs/benchmarks.md shows: two hours, idle machine'
	@echo 'make clean        remove $(VENV)'

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
	rm -rf $(VENV) site
