# make demo         set up, then watch a small network shrink while it learns (about a minute, no data)
# make test         set up, then run the tests, doctests and the code blocks of the documentation
# make check        everything a change must pass: lint, format, types, documentation, tests
# make help         this list

PYTHON    ?= python3
VENV      ?= .venv
PIP_FLAGS ?=
WORKERS   ?= auto

BIN  := $(VENV)/bin
# Stamps: installed once, again only after pyproject.toml changes.
RUN  := $(VENV)/.installed-run
DEV  := $(VENV)/.installed-dev

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo install test slow mutants lint format types docs serve check arena clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' $(firstword $(MAKEFILE_LIST))

# torch and torchvision must match, so both are always resolved by one and the same pip command.
$(RUN): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) -e '.[cli,data,vision]'
	@touch $@

$(DEV): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) -e '.[dev]'
	@touch $(RUN) $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# make install      the development environment in .venv
install: $(DEV)

demo: $(RUN)
	$(BIN)/guyot train --data digits

test: $(DEV)
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

# make slow         the tests that take minutes
slow: $(DEV)
	$(BIN)/python -m pytest -m slow --timeout 3600

# make mutants      change the mathematics in small ways and see tests fail: hours; ONLY for a pattern
mutants: $(DEV)
	$(BIN)/mutmut run --max-children $$(nproc) $(ONLY)
	$(BIN)/mutmut results

# make lint         ruff: rules and format
lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# make format       let ruff repair what it can
format: $(DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# make types        pyright, strict, on src
types: $(DEV)
	$(BIN)/pyright

# make docs         the documentation in site/, warnings are errors
docs: $(DEV)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# make serve        the documentation on a local port, rebuilt as you write
serve: $(DEV)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

check: lint types docs test

# make arena        guyot against what one would do instead: DATA=DIR with CIFAR-10, ARGS for the script
arena: $(RUN)
	$(if $(DATA),,$(error give the folder of CIFAR-10: make arena DATA=DIR))
	$(BIN)/python benchmarks/arena.py --data-dir $(DATA) $(ARGS)

# make clean        remove caches and builds, not .venv and not runs
clean:
	rm -rf build dist mutants site .pytest_cache .ruff_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
