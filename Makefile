# Everything one does here. `make` alone prints this list.
PYTHON ?= python3
BIN := .venv/bin
DISTRIBUTIONS := -e 'api[generate]' -e 'engine[train]' -e router -e operator
PYTEST_WORKERS ?= 2

.PHONY: help
help: ## print this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

.PHONY: setup
setup: .venv/installed ## make .venv, with everything at the versions of constraints.txt (about a minute)

.venv/installed: constraints.txt api/pyproject.toml engine/pyproject.toml router/pyproject.toml operator/pyproject.toml tests/requirements.txt
	@scripts/system-packages.sh
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt uv
	@$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.txt --build-constraint constraints.txt $(DISTRIBUTIONS) -r tests/requirements.txt
	@touch $@

.PHONY: run
run: setup ## serve the model that ships with Quire at http://127.0.0.1:8000/v1
	@$(BIN)/quire up -f config/samples/tiny-cpu.yaml

.PHONY: test
test: setup ## all tests that need no root, cluster or GPU (a few minutes)
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist loadgroup

.PHONY: check
check: setup ## formatting, lint, types, and that generated files are fresh
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m quire_api.generate --check
	$(BIN)/python benchmarks/gpu_table.py --check

.PHONY: generate
generate: setup ## write the CRD and docs/reference from the types, and README's table of GPUs
	$(BIN)/python -m quire_api.generate
	$(BIN)/python benchmarks/gpu_table.py

.PHONY: e2e
e2e: setup ## everything on a real Kubernetes (root; cold about 40 minutes, warm about 28; 40 GB of disk)
	$(BIN)/python e2e/run.py

.PHONY: dashboard
dashboard: setup ## the dashboard in headless Chromium (a minute); pictures go to build/dashboard/
	$(BIN)/python e2e/local/dashboard.py

.PHONY: soak
soak: setup ## an engine under 20,000 requests at random, then under twice what it can do (about 10 minutes; LONG=1: prompts of 8,000 tokens, 45)
	$(BIN)/python e2e/soak.py $(if $(LONG),--requests 0 --seconds 600 --prompt 8000)

.PHONY: cluster-up
cluster-up: setup ## start a Kubernetes on this machine: NAME=dev
	@scripts/system-packages.sh e2e
	$(BIN)/python e2e/cluster/cluster.py up $(or $(NAME),dev)

.PHONY: cluster-down
cluster-down: ## end it, and leave nothing: NAME=dev
	$(BIN)/python e2e/cluster/cluster.py down $(or $(NAME),dev)

.PHONY: bench
bench: setup ## measure the engine on this machine; JSON goes to benchmarks/results/
	$(BIN)/python benchmarks/engine.py

.PHONY: bench-peers
bench-peers: setup ## measure beside vLLM, llama.cpp and transformers, in .venv-peers (an hour; nothing else may run)
	benchmarks/peers/setup.sh
	$(BIN)/python benchmarks/offline.py

.PHONY: bench-serving
bench-serving: setup ## measure the server beside `vllm serve`, in .venv-peers (half an hour; nothing else may run)
	benchmarks/peers/setup.sh
	$(BIN)/python benchmarks/serving.py

.PHONY: bench-router
bench-router: setup ## measure the router beside nginx (five minutes; nothing else may run)
	@scripts/system-packages.sh bench
	$(BIN)/python benchmarks/router.py

.PHONY: bench-fetch
bench-fetch: setup ## measure how fast weights arrive, beside curl and huggingface_hub (two minutes)
	$(BIN)/python benchmarks/fetch.py

.PHONY: compile-kernels
compile-kernels: setup ## compile every kernel for GPUs, without one: a table of what each takes (ten minutes)
	PYTHONPATH=tests $(BIN)/python -m fakes.compiling

.PHONY: bench-fleet
bench-fleet: setup ## measure the operator with 1,000 resources and 5,000 pods on a control plane with kwok (root; ten minutes; nothing else may run)
	@scripts/system-packages.sh e2e
	$(BIN)/python benchmarks/fleet.py

.PHONY: gpu
gpu: ## on a machine with a GPU: its limits, every kernel's numbers, the engine beside its roofline (9 minutes); JSON goes to benchmarks/results/
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) e2e/gpu/run.py

.PHONY: lock
lock: setup ## write constraints.txt from what is installed now
	$(BIN)/uv pip freeze --python $(BIN)/python --exclude-editable | grep -v -E '^(pip|setuptools|wheel)==' > .venv/freeze
	@(head -n 2 constraints.txt; cat .venv/freeze) > .venv/constraints && mv .venv/constraints constraints.txt
