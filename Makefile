# Every target sets itself up: a virtual environment beside this file, filled on first use and
# again when pyproject.toml changes. Needs Python 3.11 or newer and a package index.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

.PHONY: help demo paper benchmarks tpu docs check-docs test test-all test-compatible lint format package test-oldest \
  test-newest newest clean
.DEFAULT_GOAL := help

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.demo ## train a classifier with every optimiser (ARGS="--quick", ARGS="--help")
	$(VENV)/bin/python -m examples.digits $(ARGS)

paper: $(VENV)/.demo ## reproduce the paper's experiments (ARGS="--quick"; data in ADAMX_DATA_DIR)
	$(VENV)/bin/python -m examples.paper all $(ARGS)

benchmarks: $(VENV)/.demo ## measure what the docs' tables show, for hours (ARGS="--list", ARGS="gates cost")
	$(VENV)/bin/python -m examples.benchmarks $(ARGS)

# An environment of its own: where libtpu is installed, JAX looks for a TPU whenever it starts.
tpu: ## compile every optimiser's step for TPUs, which needs no TPU but Linux (ARGS="--only adamw")
	@$(MAKE) .venv-tpu/.tpu VENV=.venv-tpu || { \
	  echo "Found no libtpu, the compiler for TPUs, for this platform."; exit 1; }
	.venv-tpu/bin/python -m examples.benchmarks.tpu $(ARGS)

docs: $(VENV)/.docs ## build the documentation site, out/docs/index.html; warnings are errors
	$(VENV)/bin/python -m sphinx --quiet --fail-on-warning --keep-going docs out/docs $(ARGS)
	@echo "The site: out/docs/index.html"

check-docs: $(VENV)/.test ## look at every page of the built site in a Chromium (its path in CHROME, if not found)
	$(VENV)/bin/python -m pytest -q tests/test_site.py
	$(VENV)/bin/python docs/check_site.py $(ARGS)

test: $(VENV)/.test ## run the tests for everyday work, and all examples (ARGS="-k adam")
	$(VENV)/bin/python -m pytest -n 2 -m "not slow" $(ARGS)

test-all: $(VENV)/.test ## run every test, and all examples in docstrings
	$(VENV)/bin/python -m pytest -n 2 $(ARGS)

# The tests that depend on the versions of Python, JAX, Optax and Flax.
COMPATIBLE = $(patsubst %,tests/test_%.py,core laws optax flax equinox config state_form)

test-compatible: $(VENV)/.test
	$(VENV)/bin/python -m pytest -n 2 $(COMPATIBLE) $(ARGS)

lint: $(VENV)/.dev ## check formatting, style and types
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python

format: $(VENV)/.dev ## format the code and repair what can be repaired
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

package: $(VENV)/.dev ## build the package, and try it where nothing else is installed
	rm -rf dist out/package
	$(VENV)/bin/python -m build --outdir dist
	$(PYTHON) -m venv out/package
	for built in dist/*.whl dist/*.tar.gz; do \
	  out/package/bin/python -m pip install --quiet --disable-pip-version-check "$$built" && \
	  out/package/bin/python tests/installed.py && \
	  out/package/bin/python -m pip uninstall --quiet --yes adamx || exit 1; done

test-oldest: ## run the tests that depend on versions, on the oldest Python and JAX
	$(MAKE) test-compatible VENV=.venv-oldest PYTHON="$(or $(call find_python,11),$(PYTHON))"

test-newest: ## the same and kernels on the newest Python found here, with the newest JAX for it
	@test -n "$(NEWEST)" || { echo "Found no Python newer than $(PYTHON)."; exit 1; }
	$(MAKE) test-compatible VENV=.venv-newest PYTHON="$(NEWEST)" COMPATIBLE="$(COMPATIBLE) tests/test_kernels.py"

newest: # print the Python of test-newest, or nothing where none is newer than $(PYTHON)
	@echo $(NEWEST)

clean: ## remove the environments, caches and outputs
	rm -rf .venv .venv-oldest .venv-newest .venv-tpu out build dist docs/notebooks .pytest_cache .ruff_cache .hypothesis
	find adamx examples tests -name __pycache__ -type d -prune -exec rm -rf {} +

# $(call find_python,13 12) is the first Python 3.13, else 3.12, on the path or among pyenv's.
find_python = $(shell for minor in $(1); do \
  for python in python3.$$minor "$$(pyenv root 2>/dev/null)"/versions/3.$$minor.*/bin/python; do \
    "$$python" -c "" 2>/dev/null && echo "$$python" && exit; done; done)
NEWEST = $(call find_python,$(shell \
  $(PYTHON) -c "import sys; print(*range(13, sys.version_info.minor, -1))"))

# The file $(VENV)/.<extra> says that adamx is installed there with this extra.
$(VENV)/.%: pyproject.toml | $(VENV)/bin/python
	@echo "Installing adamx[$*] into $(VENV): once, and again when pyproject.toml changes."
	$(VENV)/bin/python -m pip install --disable-pip-version-check $(PINS) -e ".[$*]"
	@touch $@

$(VENV)/bin/python:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { \
	  echo "adamx needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
	       "Name another: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The oldest set: what pyproject.toml asks for as "name>=version", at exactly that version.
.venv-oldest/.test: PINS = --constraint .venv-oldest/pins.txt
.venv-oldest/.test: .venv-oldest/pins.txt
.venv-oldest/pins.txt: pyproject.toml | .venv-oldest/bin/python
	sed -n 's/.*"\([a-z-][a-z-]*\)>=\([0-9.]*\)".*/\1==\2/p' $< > $@
