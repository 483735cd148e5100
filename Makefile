# Everything a new machine needs is git, make and Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEV := $(VENV)/.dev
ZOO_VENV := .venv-zoo
COMPILE := uv pip compile -q --universal --python-version 3.11 --generate-hashes \
  --no-emit-index-url --no-annotate --no-header
# All extras but torch, which has a list of its own: requirements/torch.lock.
EXTRAS := $(foreach name,bedrock mistralrs onnx s3 signing tiktoken,--extra $(name))

.DEFAULT_GOAL := help
.PHONY: help env demo test test-long lint format types layers gen check-gen check bench lock clean

help: ## show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1|/' | column -t -s '|'

env: $(DEV) ## create .venv with everything pinned

$(STAMP): requirements/core.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "error: Python's venv module is missing; on Debian or Ubuntu: apt install python3-venv"; exit 1; }
	@echo "creating $(VENV) (once) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -qq --disable-pip-version-check --require-hashes -r requirements/core.lock
	@$(BIN)/pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# What development and the tests need besides: the engines' extras, and torch.
$(DEV): $(STAMP) requirements/dev.lock requirements/torch.lock
	@echo "installing the engines and tools for the tests (once) ..."
	@$(BIN)/pip install -qq --disable-pip-version-check --require-hashes -r requirements/dev.lock
	@$(BIN)/pip install -qq --disable-pip-version-check -r requirements/torch.lock
	@touch $@

demo: $(STAMP) ## start a server with the built-in models and ask it questions
	@$(BIN)/python examples/demo.py

test: $(DEV) ## the whole suite
	@$(BIN)/pytest

test-long: $(DEV) ## the tests that take minutes
	@$(BIN)/pytest -m long

lint: $(DEV) ## style
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

format: $(DEV) ## mend style
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

types: $(DEV) ## static types
	@$(BIN)/mypy

layers: $(DEV) ## which way imports may point
	@$(BIN)/lint-imports --no-cache

gen: $(DEV) ## rewrite generated files (schema, reference docs)
	@$(BIN)/python scripts/generate.py

check-gen: $(DEV) ## fail if a generated file is stale
	@$(BIN)/python scripts/generate.py --check

check: lint types layers check-gen test ## all of the above

bench: $(DEV) ## measure; results go to bench/LOG.md
	@$(BIN)/python -m bench

lock: ## write requirements/{dev,core}.lock anew (needs uv)
	$(COMPILE) --group dev $(EXTRAS) pyproject.toml -o requirements/dev.lock
	$(COMPILE) --group demo -c requirements/dev.lock pyproject.toml -o requirements/core.lock

clean: ## remove everything that was made here
	rm -rf $(VENV) $(ZOO_VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis dist build
