# Two commands do everything on a fresh machine: `make quickstart` and `make test`.
# PYTHON=…  the interpreter, if the one that infra/find_python.sh finds is not the one you want
# EXTRA=gpu installs the GPU build of the same versions, EXTRA=light what a server's client needs (no engines);
#   without a word the one that is installed, or cpu
# TORCH_INDEX=…  where PyTorch's CPU build is, if neither pip's own sources nor PyTorch's CPU index has it
EXTRA ?= $(or $(patsubst $(VENV)/.installed-%,%,$(firstword $(wildcard $(VENV)/.installed-*))),cpu)
NAME ?= quality
# JOBS=…  how many test files run side by side
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed-$(EXTRA)
PIP_INSTALL := $(BIN)/python -m pip --disable-pip-version-check install --quiet
# pip's words only where it failed: it warns of every source that lacks a package
QUIETLY := >.pip.log 2>&1 && rm -f .pip.log || { cat .pip.log; rm -f .pip.log; exit 1; }

# a file's tests stay together, for what they share; files begin in the order of tests/conftest.py, the longest first;
# three on two cores where servers and schedules are waited for
SIDE_BY_SIDE := --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help setup quickstart run test test-unit chaos check bench experiment up down bootstrap images docs release clean lock demo

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(INSTALLED) ## Install everything into .venv (about 3 minutes, 5 GB on disk)

$(INSTALLED): $(EXTRA).lock infra/build.lock pyproject.toml
	@python=$$(sh infra/find_python.sh $(EXTRA) $(or $(wildcard $(BIN)/python),$(PYTHON))) && \
	  { test -x $(BIN)/python || "$$python" -m venv $(VENV); }
	@$(PIP_INSTALL) --require-hashes -r infra/build.lock $(QUIETLY)
	@$(BIN)/python infra/install.py $(EXTRA).lock $(if $(TORCH_INDEX),--torch-index $(TORCH_INDEX))
	@$(PIP_INSTALL) --no-deps --no-build-isolation --editable . $(QUIETLY)
	@$(if $(filter light,$(EXTRA)),true,$(BIN)/python -m infra.processes.warm_up)
	@rm -f $(VENV)/.installed-*
	@touch $@

quickstart: setup ## Distil the demo student: every real part, a few minutes on two cores
	@$(BIN)/distilflow run

test: setup ## Run all tests, with real servers and engines
	@$(BIN)/python -m pytest -n $(or $(JOBS),3) $(SIDE_BY_SIDE)

test-unit: setup ## Run the tests that start no server and no engine
	@$(BIN)/python -m pytest -n $(or $(JOBS),2) $(SIDE_BY_SIDE) tests/unit

chaos: setup ## Kill and cancel every part of a run in turn, and compare (about ten minutes)
	@$(BIN)/python -m pytest tests/flows/test_chaos.py -m chaos -rP

check: setup ## Style, types, and which module may import which
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-cache > .lint-imports.log || { cat .lint-imports.log; exit 1; }
	@rm -f .lint-imports.log
	@echo "check: style, types and import rules hold"

experiment: setup ## Answer one question on the demo: make experiment NAME=k (agents, data_size, order, …)
	@$(BIN)/distilflow experiment $(NAME)

bench: setup ## Run a benchmark: make bench NAME=quality
	@$(BIN)/python -m tests.bench $(NAME)

up: setup ## Start the Prefect UI and storage, and keep them running
	@$(BIN)/distilflow up

down: setup ## Stop what `up` started (refused under runs and workers; distilflow down --now stops all the same)
	@$(BIN)/distilflow down

bootstrap: setup ## Create work pools, limits and deployments on the Prefect server (after `up`)
	@$(BIN)/distilflow bootstrap

# REGISTRY=…/ goes in front of the images' names (end it with a slash). The training image builds on the vLLM image.
images: ## Build the images of workers (needs Docker): make images REGISTRY=registry.example.com/team/
	docker build -f infra/images/light.Dockerfile -t $(REGISTRY)distilflow-light:$(VERSION) .
	docker build -f infra/images/vllm.Dockerfile -t $(REGISTRY)distilflow-vllm:$(VERSION) .
	docker build -f infra/images/train.Dockerfile -t $(REGISTRY)distilflow-train:$(VERSION) \
	  --build-arg VLLM_IMAGE=$(REGISTRY)distilflow-vllm:$(VERSION) .

# In an environment of its own. Mermaid's package wants a newer Python for code that is not used: its one file is copied.
docs: ## Build the documentation as a site: build/docs/site/index.html
	@python=$$(sh infra/find_python.sh docs $(PYTHON)) && \
	  { test -x build/docs/venv/bin/python || "$$python" -m venv build/docs/venv; }
	@build/docs/venv/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --ignore-requires-python \
	  --require-hashes -r docs.lock $(QUIETLY)
	@build/docs/venv/bin/python docs/site/build.py

release: ## Build sdist and wheel into build/release, and try them in an empty environment (a few minutes)
	@python=$$(sh infra/find_python.sh light $(PYTHON)) && "$$python" infra/release.py

clean: ## Delete all local state (.distilflow) and caches; keeps .venv
	@if [ -x $(BIN)/distilflow ]; then $(BIN)/distilflow down --now; fi
	@rm -rf .distilflow .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

lock: ## Resolve the locks anew (needs uv; UV_FIND_LINKS or UV_INDEX for PyTorch's CPU build)
	uv pip compile pyproject.toml --extra cpu --extra eval --extra quantise --extra dev --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
	  --generate-hashes --no-header --no-annotate --quiet --output-file cpu.lock
	sed -i 's/^torch==\([0-9.]*\)+cpu/torch==\1/' cpu.lock
	env -u UV_FIND_LINKS uv pip compile pyproject.toml --extra gpu --extra eval --extra quantise --extra dev --universal --python-version 3.11 \
	  --generate-hashes --no-header --no-annotate --quiet --output-file gpu.lock
	sed -i "s/ ; python_full_version < '3.14' and platform_machine == 'x86_64' and sys_platform == 'linux' / /" gpu.lock
	env -u UV_FIND_LINKS uv pip compile pyproject.toml --extra cluster --extra eval --constraint gpu.lock --universal --no-config --python-version 3.11 \
	  --generate-hashes --no-header --no-annotate --quiet --output-file light.lock
	env -u UV_FIND_LINKS uv pip compile --group docs --python-version 3.12 --python-platform x86_64-manylinux_2_28 \
	  --generate-hashes --no-header --no-annotate --quiet --output-file docs.lock

demo: setup ## Make the demo's data and models anew (about half an hour on one core)
	@$(BIN)/python -m tasks.demo.build
