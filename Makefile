# make demo   trains a small VAETKI, converts it, serves it and talks to it
# make test   lint, types and the whole test suite
# make test-sglang   the tests of our models and our gateway with SGLang
# Each makes its own environment first, .venv or .venv-sglang; a second run does not.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SGLANG_VENV ?= .venv-sglang
SGLANG_READY := $(SGLANG_VENV)/.ready

.PHONY: demo test test-sglang lint bench clean
.DEFAULT_GOAL := test

$(READY): requirements/cpu.txt pyproject.toml scripts/setup-cpu.sh scripts/cpu-torch.sh
	scripts/setup-cpu.sh $(VENV) $(PYTHON)
	touch $@

$(SGLANG_READY): requirements/sglang-cpu.txt pyproject.toml scripts/setup-sglang.sh scripts/cpu-torch.sh
	scripts/setup-sglang.sh $(SGLANG_VENV) $(PYTHON)
	touch $@

demo: $(READY)
	$(BIN)/trillion-serve demo $(ARGS)

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 $(ARGS)

# Torchvision cannot be imported beside a CPU build of torch without what is in that folder.
test-sglang: $(SGLANG_READY)
	PYTHONPATH=tests/support/sglang_cpu $(SGLANG_VENV)/bin/python -m pytest tests/sglang $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python benchmarks/kv_cache.py --quick

clean:
	rm -rf $(VENV) $(SGLANG_VENV) .venv-gateway .mypy_cache .pytest_cache .ruff_cache .hypothesis
