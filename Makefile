# make demo   trains a small VAETKI, converts it, serves it and talks to it
# make test   lint, types and the whole test suite
# Both make their own environment in .venv first; a second run does not.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint bench clean
.DEFAULT_GOAL := test

$(READY): requirements/cpu.txt pyproject.toml scripts/setup-cpu.sh
	scripts/setup-cpu.sh $(VENV) $(PYTHON)
	touch $@

demo: $(READY)
	$(BIN)/trillion-serve demo $(ARGS)

test: lint
	$(BIN)/python -m pytest $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python benchmarks/kv_cache.py --quick

clean:
	rm -rf $(VENV) .venv-gateway .mypy_cache .pytest_cache .ruff_cache .hypothesis
