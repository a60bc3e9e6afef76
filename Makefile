# The two commands are `make demo` and `make test`. Both set up .venv themselves, once.

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test test-long test-slow test-gpu check docs bench

help:
	@echo "make demo       train, align and compare a small bilingual model, ending in a report"
	@echo "make test       the test suite"
	@echo "make test-long  the tests that take some seconds each"
	@echo "make test-slow  the tests that take minutes"
	@echo "make test-gpu   the tests that need a CUDA device"
	@echo "make check      formatter, linter, type checker"
	@echo "make docs       the documentation as a site, build/site/index.html"
	@echo "make bench      every benchmark, side by side with the peers; BENCH=\"--data PAIRS\" names real pairs"
	@echo "PYTHON=... names another interpreter than python3; VENV=... another folder than .venv."

demo: $(VENV)/.runtime
	@$(BIN)/prefiere demo

test: $(VENV)/.dev
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

test-long: $(VENV)/.dev
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m long -n $(WORKERS)

test-slow: $(VENV)/.dev
	@$(BIN)/python -m pytest -m slow

test-gpu: $(VENV)/.dev
	@$(BIN)/python -m pytest -m gpu

check: $(VENV)/.dev
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

# Pages link to files beside docs/: MkDocs gets them all, where they are to each other.
docs: $(VENV)/.docs
	@mkdir -p build/pages
	@for each in README.md README.es.md CONTRIBUTING.md SECURITY.md docs examples recipes; do \
		ln -sfn ../../$$each build/pages/$$each; done
	@$(BIN)/mkdocs build --strict --config-file docs/site/mkdocs.yml
	@echo "build/site/index.html"

bench: $(VENV)/.dev
	@$(BIN)/python -m benchmarks $(BENCH)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "prefiere needs Python 3.11 or newer, and '$(PYTHON)' is not. Name one: make PYTHON=python3.12 ..."; exit 1; }
	@echo "Setting up $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing prefiere and what it needs into $(VENV) (1.5 GB, a minute or more; once) ..."
	@$(PIP) --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing prefiere and what its tests need into $(VENV) (1.5 GB, a minute or more; once) ..."
	@$(PIP) --editable ".[dev]"
	@touch $(VENV)/.runtime $@

$(VENV)/.docs: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing prefiere and what its documentation needs into $(VENV) (1.5 GB, a minute or more; once) ..."
	@$(PIP) --editable ".[docs]"
	@touch $(VENV)/.runtime $@
