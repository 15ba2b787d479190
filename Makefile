# One command for each thing one does with RemoteGPU. `make help` lists them.
.DEFAULT_GOAL := help
SHELL := /bin/sh
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=

REQUIREMENTS := requirements/dev.txt
BENCH_REQUIREMENTS := requirements/bench.txt
# Stamps hold the checksum of what was installed, so a fresh checkout of the same pins costs nothing.
READY := $(BIN)/.remotegpu-ready
BENCH_READY := $(BIN)/.remotegpu-bench-ready
STANDALONE := $(BIN)/python -m remotegpu_server.standalone

.PHONY: help setup up down status test lint docs e2e image bench-spawn bench-import bench-agent bench-placement bench-claims bench-logs bench-dispatch bench-heartbeat lock clean

help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z0-9-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(READY) ## Make the virtual environment with everything that tests and `up` need

$(READY): $(REQUIREMENTS) pyproject.toml requirements/install.py
	@$(PYTHON) requirements/install.py --venv $(VENV) --project $(REQUIREMENTS)
	@touch $@

$(BENCH_READY): $(READY) $(BENCH_REQUIREMENTS)
	@$(PYTHON) requirements/install.py --venv $(VENV) $(BENCH_REQUIREMENTS)
	@touch $@

up: $(READY) ## Start everything on this machine; Ctrl-C stops it (DETACH=1 returns when it is ready)
	@$(STANDALONE) up $(if $(filter-out 0,$(DETACH)),--detach)

down: $(READY) ## Stop everything that `make up` started
	@$(STANDALONE) down

status: $(READY) ## Print what runs as JSON
	@$(STANDALONE) status

test: $(READY) ## Run the tests, two files at a time (ARGS="-k words" for some of them)
	@$(BIN)/python -m pytest -m "not e2e" -n 2 --dist loadfile $(ARGS)

lint: $(READY) ## Check style, types, import contracts and the generated client
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python sdk/generate_sync.py --check
	@$(BIN)/python sdk/generate_reference.py --check
	@$(BIN)/python monitoring/generate.py --check

docs: $(READY) ## Write the SDK's reference from its docstrings, and the rules and dashboards
	@$(BIN)/python sdk/generate_reference.py
	@$(BIN)/python monitoring/generate.py

e2e: $(READY) ## Run the end-to-end tests: the whole product, a browser in front
	@$(BIN)/python -m pytest -m e2e $(ARGS)

image: $(READY) ## Build the notebook image with Docker
	@$(BIN)/python notebooks/images/build.py $(ARGS)

bench-spawn: $(BENCH_READY) ## Click to notebook, against DockerSpawner
	@env -u PYTHONDONTWRITEBYTECODE $(BIN)/python tests/benchmarks/bench_spawn.py $(ARGS)

bench-import: $(BENCH_READY) ## Import time of the SDK, against other clients
	@env -u PYTHONDONTWRITEBYTECODE $(BIN)/python tests/benchmarks/bench_import.py $(ARGS)

bench-agent: $(BENCH_READY) ## CPU and memory of the agent over a minute
	@env -u PYTHONDONTWRITEBYTECODE $(BIN)/python tests/benchmarks/bench_agent.py $(ARGS)

bench-placement: $(READY) ## GPUs allocated on a production trace, and the time of a decision
	@env -u PYTHONDONTWRITEBYTECODE $(BIN)/python tests/benchmarks/bench_placement.py $(ARGS)

bench-claims: $(READY) ## Attempts claimed per second by 200 hollow agents
	@env -u PYTHONDONTWRITEBYTECODE $(BIN)/python tests/benchmarks/bench_claims.py $(ARGS)

bench-logs: $(READY) ## Output of a task in MB/s, through agent and server
	@env -u PYTHONDONTWRITEBYTECODE $(BIN)/python tests/benchmarks/bench_logs.py $(ARGS)

bench-dispatch: $(READY) ## Submit to first instruction on an idle local host
	@env -u PYTHONDONTWRITEBYTECODE $(BIN)/python tests/benchmarks/bench_dispatch.py $(ARGS)

bench-heartbeat: $(READY) ## What heartbeats of 1,000 hosts with 8 GPUs cost, and the most a server takes
	@env -u PYTHONDONTWRITEBYTECODE $(BIN)/python tests/benchmarks/bench_heartbeat.py $(ARGS)

lock: $(READY) ## Pin all dependencies again, to the newest that fit
	@$(BIN)/python requirements/lock.py $(ARGS)

clean: ## Remove what make made in this folder; data folders stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist
