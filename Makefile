# make demo   trains a small VAETKI, converts it, serves it and talks to it
# make test   lint, types and the whole test suite
# make test-sglang   the tests of our models and our gateway with SGLang
# make test-clients   LangChain, LiteLLM and locust against the gateway
# Each makes its own environment first, .venv, .venv-sglang or .venv-clients; a second run does not.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SGLANG_VENV ?= .venv-sglang
SGLANG_READY := $(SGLANG_VENV)/.ready
CLIENTS_VENV ?= .venv-clients
CLIENTS_READY := $(CLIENTS_VENV)/.ready

.PHONY: demo test test-sglang test-clients lint bench clean
.DEFAULT_GOAL := test

$(READY): requirements/cpu.txt pyproject.toml scripts/setup-cpu.sh scripts/cpu-torch.sh
	scripts/setup-cpu.sh $(VENV) $(PYTHON)
	touch $@

$(SGLANG_READY): requirements/sglang-cpu.txt pyproject.toml scripts/setup-sglang.sh scripts/cpu-torch.sh
	scripts/setup-sglang.sh $(SGLANG_VENV) $(PYTHON)
	touch $@

$(CLIENTS_READY): requirements/clients.txt pyproject.toml
	$(PYTHON) -m venv $(CLIENTS_VENV)
	$(CLIENTS_VENV)/bin/pip install --quiet --no-deps -r requirements/clients.txt
	$(CLIENTS_VENV)/bin/pip install --quiet --no-deps --editable .
	touch $@

demo: $(READY)
	$(BIN)/trillion-serve demo $(ARGS)

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 $(ARGS)

# Torchvision cannot be imported beside a CPU build of torch without what is in that folder.
test-sglang: $(SGLANG_READY)
	PYTHONPATH=tests/support/sglang_cpu $(SGLANG_VENV)/bin/python -m pytest tests/sglang $(ARGS)

# What is not installed here is no reason to skip: it is a failure.
test-clients: $(CLIENTS_READY)
	$(CLIENTS_VENV)/bin/python -c "from importlib.metadata import version; \
		print(*map(version, ('langchain-openai', 'litellm', 'locust')))"
	$(CLIENTS_VENV)/bin/python -m pytest tests/serve/gateway/test_other_clients.py \
		tests/benchmarks/test_gateway_benchmarks.py $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python benchmarks/kv_cache.py --quick

clean:
	rm -rf $(VENV) $(SGLANG_VENV) $(CLIENTS_VENV) .venv-gateway .mypy_cache .pytest_cache .ruff_cache .hypothesis
