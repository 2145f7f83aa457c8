# Everything runs in a virtual environment of its own; nothing has to be installed by hand.
#   PYTHON           interpreter that makes it, 3.11 or 3.12 with its headers;
#                    with STACK=onedl 3.13 too                                   (python3)
#   STACK            openmmlab, or onedl for the maintained forks                (openmmlab)
#   TORCH            the torch to install                                        (torch==2.13.0)
#   TORCH_INDEX_URL  another package index for torch, e.g. of CPU-only builds    (none)
#   ABI_PYTHON       the interpreter of test-abi, 3.10 or newer                  (PYTHON)
#   WORKERS          processes that share the tests                              (one per core and 4 GB)
#   TORCH_CUDA_ARCH_LIST  GPUs to compile CUDA kernels for, where nvcc is        (9.0+PTX)

SHELL := /bin/bash
PYTHON ?= python3
STACK ?= openmmlab
TORCH ?= torch==2.13.0
TORCH_INDEX_URL ?=
ABI_PYTHON ?= $(PYTHON)
ABI := .venv-abi
WORKERS ?= $(shell $(PYTHON) -c "from os import cpu_count, sysconf; \
	print(max(1, min(8, cpu_count(), sysconf('SC_PHYS_PAGES') * sysconf('SC_PAGE_SIZE') >> 32)))")
VENV ?= $(if $(filter openmmlab,$(STACK)),.venv,.venv-$(STACK))

# GPUs that the environment's library is compiled for, where nvcc is; a wheel serves all of them.
export TORCH_CUDA_ARCH_LIST ?= 9.0+PTX
WHEEL_CUDA_ARCHS ?=

# What the native library is made of; here it is no option, or tests would pass without it.
NATIVE := ops/build.py ops/mmvim_ops/library_file.py $(shell find ops/csrc -type f)
export MMVIM_FORCE_EXT ?= 1

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
STAMPS := $(VENV)/.stamps
# A file's tests stay in one process, which builds their fixtures once.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo demo-quick demo-det demo-cls test smoke smoke-onedl lint format slow slow-tests \
	wheel test-abi test-pure clean

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
	@[ $(STACK) != openmmlab ] || \
		$(PYTHON) -c 'import sys; sys.exit(sys.version_info >= (3, 13))' || \
		{ echo "error: mmcv 2.1.0 cannot be built by $(PYTHON): make PYTHON=python3.12, or STACK=onedl"; exit 1; }
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

$(STAMPS)/project: $(STAMPS)/stack setup.py pyproject.toml $(NATIVE)
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
	$(BIN)/python tools/demos/segmentation.py

demo-quick: install ## the same without the ViT
	$(BIN)/python tools/demos/segmentation.py --quick

demo-det: install ## train, test and picture Mask R-CNN on the demo's Vim, which is trained if absent
	$(BIN)/python tools/demos/detection.py

demo-cls: install ## train, test and picture a classifier on Vim, beside a linear one
	$(BIN)/python tools/demos/classification.py

test: $(STAMPS)/test ## the test suite
	$(PYTEST) -m 'not slow'

smoke: $(STAMPS)/test ## the tests that depend on the stack (2 minutes)
	$(PYTEST) -m 'stack and not slow'

smoke-onedl: ## the same part, on the other stack in an environment of its own
	$(MAKE) STACK=onedl VENV=.venv-onedl smoke

lint: $(STAMPS)/dev ## format, lint and type check
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMPS)/dev ## rewrite the sources in the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

slow-tests: $(STAMPS)/test ## the tests that `make test` leaves out
	$(PYTEST) -m slow

# The other torch is downloaded beside the tests. All else shares the cores or writes into the
# checkout, so one follows the other.
slow: ## long sweeps, the wheels, another torch, the onedl stack, the demos
	$(MAKE) -j2 slow-tests $(ABI)/.stamp
	$(MAKE) test-abi test-pure
	$(MAKE) smoke-onedl
	$(MAKE) demo
	$(MAKE) demo-det
	$(MAKE) demo-cls

wheel: $(STAMPS)/test ## build the wheel under dist/ and test it as installed
	rm -rf build/lib* build/bdist* dist
	TORCH_CUDA_ARCH_LIST="$(WHEEL_CUDA_ARCHS)" \
		$(PIP) wheel -q --no-deps --no-build-isolation -w dist .
	$(BIN)/python tests/check_wheel.py --workers $(WORKERS) dist/mmvim-*.whl

$(ABI)/.stamp: requirements/abi.txt
	rm -rf $(ABI)
	$(ABI_PYTHON) -m venv $(ABI)
	@echo 'Installing torch 2.10 and the CUDA libraries it does not import without (5.6 GB of disk).'
	$(ABI)/bin/python -m pip --disable-pip-version-check install -q --no-deps -r requirements/abi.txt
	@touch $@

test-abi: wheel $(ABI)/.stamp ## test the ops of the same wheel under another torch
	$(BIN)/python tests/check_wheel.py --workers $(WORKERS) --python $(ABI)/bin/python dist/mmvim-*.whl

test-pure: wheel ## test the ops of a wheel without the native library
	rm -rf build/lib* build/bdist*
	MMVIM_NO_EXT=1 MMVIM_FORCE_EXT=0 $(PIP) wheel -q --no-deps --no-build-isolation -w dist/pure .
	MMVIM_FORCE_EXT=0 $(BIN)/python tests/check_wheel.py --workers $(WORKERS) --pure dist/pure/mmvim-*.whl

clean: ## remove environments, builds and caches; data/ and work_dirs/ stay
	rm -rf .venv .venv-* build dist *.egg-info mmvim/.mim ops/mmvim_ops/libmmvim_ops.* .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
