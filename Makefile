# Everything runs in a virtual environment of its own; nothing has to be installed by hand.
#   PYTHON           interpreter that makes it, 3.11 or newer with its headers   (python3)
#   STACK            openmmlab, or onedl for the maintained forks                (openmmlab)
#   TORCH            the torch to install                                        (torch==2.13.0)
#   TORCH_INDEX_URL  another package index for torch, e.g. of CPU-only builds    (none)

SHELL := /bin/bash
PYTHON ?= python3
STACK ?= openmmlab
TORCH ?= torch==2.13.0
TORCH_INDEX_URL ?=
VENV ?= $(if $(filter openmmlab,$(STACK)),.venv,.venv-$(STACK))

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
STAMPS := $(VENV)/.stamps

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo demo-quick test lint format slow wheel clean

help: ## this list
	@echo 'make TARGET [STACK=onedl] [PYTHON=python3.12] [TORCH_INDEX_URL=...]'
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | \
		awk -F '\t' '{printf "  %-12s %s\n", $$1, $$2}'

ifeq ($(filter $(STACK),openmmlab onedl),)
$(error STACK=$(STACK) is unknown: valid are openmmlab and onedl)
endif

# --- the environment, step by step; each step is done again when its inputs change ---

$(STAMPS)/venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than 3.11; name a newer one: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/torch-$(subst =,-,$(TORCH)): $(STAMPS)/venv requirements/build.txt
	$(PIP) install -q -r requirements/build.txt
	$(PIP) install -q $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL)) $(TORCH)
	@touch $@

$(STAMPS)/stack: $(STAMPS)/torch-$(subst =,-,$(TORCH)) requirements/$(STACK).txt requirements/runtime.txt
	@echo 'Installing the $(STACK) stack; the first time mmcv is compiled (about 7 minutes on 2 cores).'
	PATH="$(abspath $(BIN)):$$PATH" MMCV_WITH_OPS=1 \
		$(PIP) install -q --no-deps --no-build-isolation -r requirements/$(STACK).txt
	@touch $@

$(STAMPS)/project: $(STAMPS)/stack setup.py pyproject.toml
	$(PIP) install -q --no-deps --no-build-isolation -e .
	@touch $@

$(STAMPS)/test: $(STAMPS)/project requirements/test.txt
	$(PIP) install -q -r requirements/test.txt
	@touch $@

$(STAMPS)/dev: $(STAMPS)/project requirements/dev.txt
	$(PIP) install -q -r requirements/dev.txt
	@touch $@

install: $(STAMPS)/project ## make the environment with the pinned stack

# --- what one does with it ---

demo: install ## generate data, train, test and picture UperNet on Vim, beside a ViT
	$(BIN)/python tools/demo.py

demo-quick: install ## the same without the ViT
	$(BIN)/python tools/demo.py --quick

test: $(STAMPS)/test ## the test suite
	$(BIN)/python -m pytest -m 'not slow'

# mypy looks packages up by their folder's name, and mmvim_ops lies in ops/.
lint: $(STAMPS)/dev ## format, lint and type check
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	@mkdir -p $(VENV)/types && ln -sfn $(CURDIR)/ops $(VENV)/types/mmvim_ops
	MYPYPATH=$(VENV)/types $(BIN)/mypy

format: $(STAMPS)/dev ## rewrite the sources in the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

slow: $(STAMPS)/test wheel ## long sweeps, the wheel and the demo
	$(BIN)/python -m pytest -m slow
	$(BIN)/python tools/demo.py

wheel: $(STAMPS)/test ## build the wheel under dist/ and check what it ships
	rm -rf build dist
	$(PIP) wheel -q --no-deps --no-build-isolation -w dist .
	$(BIN)/python tests/check_wheel.py dist/mmvim-*.whl

clean: ## remove environments, builds and caches; data/ and work_dirs/ stay
	rm -rf .venv .venv-* build dist *.egg-info mmvim/.mim .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
