# Everything a new machine needs is git, make and Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ZOO_VENV := .venv-zoo

.DEFAULT_GOAL := help
.PHONY: help env demo test test-long lint format types layers gen check-gen check bench lock clean

help: ## show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1|/' | column -t -s '|'

env: $(STAMP) ## create .venv with everything pinned

$(STAMP): requirements/dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "error: Python's venv module is missing; on Debian or Ubuntu: apt install python3-venv"; exit 1; }
	@echo "creating $(VENV) (once) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements/dev.lock
	@$(BIN)/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: $(STAMP) ## start a server with the built-in models and ask it questions
	@$(BIN)/python examples/demo.py

test: $(STAMP) ## the whole suite
	@$(BIN)/pytest

test-long: $(STAMP) ## the tests that take minutes
	@$(BIN)/pytest -m long

lint: $(STAMP) ## style
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

format: $(STAMP) ## mend style
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

types: $(STAMP) ## static types
	@$(BIN)/mypy

layers: $(STAMP) ## which way imports may point
	@$(BIN)/lint-imports --no-cache

gen: $(STAMP) ## rewrite generated files (schema, reference docs)
	@$(BIN)/python scripts/generate.py

check-gen: $(STAMP) ## fail if a generated file is stale
	@$(BIN)/python scripts/generate.py --check

check: lint types layers check-gen test ## all of the above

bench: $(STAMP) ## measure; results go to bench/LOG.md
	@$(BIN)/python -m bench

lock: ## write requirements/dev.lock anew (needs uv)
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-annotate --no-header --group dev pyproject.toml -o requirements/dev.lock

clean: ## remove everything that was made here
	rm -rf $(VENV) $(ZOO_VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis dist build
