# One word for what a person does daily. Everything is installed into .venv from the lock; nothing else of the machine is changed.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PY ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.synced
PYTEST := $(BIN)/pytest

$(STAMP): pyproject.toml uv.lock
	@hack/bootstrap
	@touch $@

.PHONY: help
help: ## Show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: $(STAMP) ## Bring the lab up and run the whole story: old payload, patch, broken payload, roll back, mended payload
	@$(BIN)/python -m lab demo

.PHONY: demo-cloud
demo-cloud: $(STAMP) ## The story of a whole cloud: hosts, two zones, twelve VMs; plan, patch, upgrade, recreate, and what each cost
	@$(BIN)/python -m lab demo --cloud

.PHONY: demo-down
demo-down: $(STAMP) ## Leave no process, mount, namespace or file of the lab behind
	@$(BIN)/python -m lab down

# A process of tests that dies ends the run: another in its place would wait for tests that nobody gives it.
WORKERS ?= 3
.PHONY: test
test: $(STAMP) ## Every test that this machine can run, real machines in one process beside all others (WORKERS=3)
	@HYPOTHESIS_PROFILE=thorough $(PYTEST) tests -n $(WORKERS) --max-worker-restart=0

.PHONY: test-unit
test-unit: $(STAMP) ## The inner loop: unit tests, seconds (HYPOTHESIS_PROFILE=thorough: eight times the examples)
	@$(PYTEST) tests/unit -q

.PHONY: test-remote
test-remote: $(STAMP) ## The on-VM program in a scratch root, killed at every step
	@$(PYTEST) tests/remote -q

.PHONY: test-integration
test-integration: $(STAMP) ## Reconcilers against a real API server, the transport against real OpenSSH
	@$(PYTEST) tests/integration tests/chart -q

.PHONY: test-system
test-system: $(STAMP) ## Real system VMs (root on Linux)
	@$(PYTEST) tests/system -q

.PHONY: contract
contract: $(STAMP) ## CloudStack's API as relied on: recorded answers and stand-in; CLOUDSTACK_URL= a real one (ALLOW_CHANGES=1: all of it)
	@CLOUDSTACK_URL=$(CLOUDSTACK_URL) ALLOW_CHANGES=$(ALLOW_CHANGES) $(PYTEST) tests/contract -q

VMS ?= 20
REPEATS ?= 3
.PHONY: bench
bench: $(STAMP) ## Ours beside Ansible, ssh loops and one VM after the other, on real system VMs (VMS=20 REPEATS=3; root on Linux)
	@UV_PROJECT_ENVIRONMENT=.venv-bench uv sync --frozen --quiet --only-group bench
	@BENCH_ANSIBLE=.venv-bench $(BIN)/python -m bench --vms $(VMS) --repeats $(REPEATS)

.PHONY: fuzz
fuzz: $(STAMP) ## Coverage-guided fuzzing of everything that reads strange bytes (SECONDS=60 a target; borrows atheris)
	@PYTHONPATH=controller:hack SECONDS_PER_TARGET=$(or $(SECONDS),60) \
		uv run -q --no-project --python $(BIN)/python --with atheris python -m fuzz.run

.PHONY: traffic
traffic: $(STAMP) ## What patching costs tenants: ours beside CloudStack's, on real system VMs (root on Linux, 10 minutes)
	@$(BIN)/python -m traffic

.PHONY: faults
faults: $(STAMP) ## Break VMs in every way at every step; prints old, new, neither (FAULTS_SEEDS=, FAULTS_VM_SEEDS=, FAULTS_ONLY=)
	@PYTHONPATH=.:controller:hack $(BIN)/python -m faults

KILLS ?= 1
.PHONY: kills
kills: $(STAMP) ## Kill the operator at each of its writes around calls, a story for each (KILLS=1::6: every sixth; an hour for all)
	@SYSVM_TEST_EVERY_KILL=$(KILLS) $(PYTEST) -s -q tests/integration/engine/test_cloud_kills.py

WORLDS ?= 1000
.PHONY: sim
sim: $(STAMP) ## Whole rollouts on virtual time: golden logs, and random worlds with the operator killed at any write (WORLDS=1000)
	@$(BIN)/python -m sim --worlds $(WORLDS)

SIZES ?= 100,1000,10000
.PHONY: scale
scale: $(STAMP) ## Memory, processor, writes and time of the operator with ten thousand VMs on a real API server (SIZES=...)
	@$(BIN)/python -m scale --sizes $(SIZES)

.PHONY: check
check: $(STAMP) ## Before a commit: ruff, mypy --strict, layers, generated files, the language of the on-VM program
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@PYTHONPATH=controller:hack $(BIN)/lint-imports
	@$(BIN)/vermin --quiet --no-tips --violations -t=3.5- controller/sysvm/patching/remote
	@$(BIN)/python hack/generate.py --check

.PHONY: format
format: $(STAMP) ## Put the code into shape
	@$(BIN)/ruff check --fix -q . ; $(BIN)/ruff format -q .

.PHONY: generate
generate: $(STAMP) ## Write crds/, the chart's copy and the API reference from controller/sysvm/api
	@$(BIN)/python hack/generate.py

IMAGE ?= sysvm-operator:dev
.PHONY: image
image: ## Build the operator's image (IMAGE=REGISTRY/sysvm-operator:0.1.0; needs docker, or podman under its name)
	docker build -t $(IMAGE) .

.PHONY: clean
clean: ## Remove what the checks and tests wrote into the tree
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build
