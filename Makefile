# Everything runs in a virtual environment of its own; nothing has to be installed by hand.
#   PYTHON           interpreter that makes it, 3.11 to 3.13                     (python3)
#   STACK            openmmlab, or onedl for the maintained forks                (openmmlab)
#   MMCV             lite, or full to compile mmcv's operators, which needs Python's
#                    headers and, without STACK=onedl, 3.12 at most (what is installed, else lite)
#   TORCH            the torch to install                                        (torch==2.13.0)
#   TORCH_INDEX_URL  another package index for torch, e.g. of CPU-only builds    (none)
#   ABI_PYTHON       the interpreter of test-abi, 3.10 or newer                  (PYTHON)
#   WORKERS          processes that share the tests                              (one per core and 4 GB)
#   TORCH_CUDA_ARCH_LIST  GPUs to compile CUDA kernels for, where nvcc is        (9.0+PTX)
#   MMVIM_CUDA       0: no CUDA kernels; 1: or fail       (where nvcc is and torch is for CUDA)

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
MMCV ?= $(if $(wildcard $(VENV)/.stamps/stack-full),full,lite)

# GPUs that the environment's library is compiled for, where nvcc is; a wheel serves all of them.
export TORCH_CUDA_ARCH_LIST ?= 9.0+PTX
WHEEL_CUDA_ARCHS ?=

# What the native library is made of; here it is no option, or tests would pass without it.
NATIVE := ops/build.py ops/mmvim_ops/library_file.py $(shell find ops/csrc -type f)
export MMVIM_FORCE_EXT ?= 1

# Images of containers forbid bytecode to stay small; here each of many processes would compile what
# it imports, which takes it longer than importing.
unexport PYTHONDONTWRITEBYTECODE

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
# Python compiles the modules that it imports, a third of those that are installed.
INSTALL := $(PIP) install --no-compile --no-warn-conflicts
STAMPS := $(VENV)/.stamps
TORCH_STAMP := $(STAMPS)/torch-$(subst =,-,$(TORCH))
# A process takes tests in their order, which builds a file's fixtures once, until it runs out and
# takes some from the other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help arm-tools packages packages-onedl install demo demo-quick demo-det demo-cls beside-demo-det test smoke \
	smoke-onedl operators operators-full lint format slow slow-tests build-wheel wheel test-abi test-pure \
	clean

help: ## this list
	@echo 'make TARGET [STACK=onedl] [MMCV=full] [PYTHON=python3.12] [TORCH_INDEX_URL=...]'
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | \
		awk -F '\t' '{printf "  %-14s %s\n", $$1, $$2}'

ifeq ($(filter $(STACK),openmmlab onedl),)
$(error STACK=$(STACK) is unknown: valid are openmmlab and onedl)
endif
ifeq ($(filter $(MMCV),lite full),)
$(error MMCV=$(MMCV) is unknown: valid are lite and full)
endif

# --- the environment, step by step; each step is done again when its inputs change ---

$(STAMPS)/venv: requirements/build.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		"error: $(PYTHON) is older than 3.11; name a newer one: make PYTHON=python3.12")'
	@echo 'Making $(VENV).'
	@$(PYTHON) -m venv $(VENV)
	@$(INSTALL) -r $<
	@mkdir -p $(STAMPS) && touch $@

$(TORCH_STAMP): $(STAMPS)/venv
	@echo 'Installing $(TORCH).'
	@$(INSTALL) $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL)) $(TORCH)
	@touch $@

# Pure Python all of it, mmcv too: mmvim computes the few operators that are needed.
$(STAMPS)/stack-lite: $(STAMPS)/venv requirements/$(STACK).txt requirements/runtime.txt
	@echo 'Installing the $(STACK) stack.'
	@rm -f $(STAMPS)/stack-*
	@$(PIP) uninstall -y mmcv onedl-mmcv
	@$(INSTALL) --no-deps -r requirements/$(STACK).txt
	@touch $@

# The same with mmcv compiled, without debug information, which takes a third of the time. The wheel
# is kept for this torch; one in pip's cache may lack the operators.
MMCV_FULL = $(subst mmcv-lite,mmcv,$(shell grep -E '^(onedl-)?mmcv' requirements/$(STACK).txt))
MMCV_WHEELS := build/mmcv-$(subst =,-,$(TORCH))
$(STAMPS)/stack-full: $(TORCH_STAMP) requirements/$(STACK).txt requirements/runtime.txt
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info >= (3, 13) and "$(STACK)" == "openmmlab" and \
		"error: $(MMCV_FULL) cannot be built by Python 3.13: make PYTHON=python3.12, or STACK=onedl")'
	@$(MAKE) -s $(STAMPS)/stack-lite
	@echo 'Installing $(MMCV_FULL); where pip finds no wheel it is compiled, about 10 minutes on 2 cores.'
	@flags="$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_config_var("CFLAGS"))') -g0"; \
		PATH="$(abspath $(BIN)):$$PATH" MMCV_WITH_OPS=1 CFLAGS="$$flags" CXXFLAGS="$$flags" \
		$(PIP) wheel --no-deps --no-build-isolation --no-cache-dir -f $(MMCV_WHEELS) -w $(MMCV_WHEELS) $(MMCV_FULL)
	@rm -f $(STAMPS)/stack-*
	@$(PIP) uninstall -y mmcv-lite onedl-mmcv
	@$(INSTALL) --no-deps --no-index -f $(MMCV_WHEELS) $(MMCV_FULL)
	@$(BIN)/python -c 'import torch, mmcv._ext'
	@touch $@

$(STAMPS)/project: $(TORCH_STAMP) setup.py pyproject.toml $(NATIVE)
	@echo 'Compiling the scan kernels.'
	@$(INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

# Two steps at a time, unless this make is told how many.
STEPS = +@$(MAKE) -s $(if $(findstring --jobserver,$(MAKEFLAGS)),,-j2)

packages:
	$(STEPS) $(TORCH_STAMP) $(STAMPS)/stack-$(MMCV)

install: ## make the environment with the pinned stack
	$(STEPS) $(TORCH_STAMP) $(STAMPS)/stack-$(MMCV) $(STAMPS)/project

$(STAMPS)/test: requirements/test.txt | install
	@$(INSTALL) -r $<
	@touch $@

$(STAMPS)/dev: requirements/dev.txt | install
	@$(INSTALL) -r $<
	@touch $@

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

ONEDL := STACK=onedl VENV=.venv-onedl MMCV=lite
smoke-onedl: ## the same part, on the other stack in an environment of its own
	$(MAKE) $(ONEDL) smoke

operators: $(STAMPS)/test ## the tests that call mmcv's operators
	$(PYTEST) -m 'operators and not slow'

operators-full: ## the same on compiled ones, which ours must equal, in both stacks
	$(MAKE) MMCV=full operators
	$(MAKE) MMCV=$(MMCV) packages
	$(MAKE) $(ONEDL) MMCV=full operators

lint: $(STAMPS)/dev ## format, lint and type check
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMPS)/dev ## rewrite the sources in the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# OpenMMLab's package manager stays out of the environment, whose packages it would replace.
$(STAMPS)/mim: requirements/mim.txt | install
	@rm -rf $(VENV)/mim
	@$(INSTALL) --no-deps --target $(VENV)/mim -r $<
	@touch $@

# Without them the test that needs them is skipped.
arm-tools: ## as root on Debian: what tests the CPU kernels for ARM, a cross compiler and an emulator
	apt-get update -q
	apt-get install -q -y --no-install-recommends g++-aarch64-linux-gnu qemu-user

slow-tests: $(STAMPS)/test $(STAMPS)/mim ## the tests that `make test` leaves out
	$(PYTEST) -m slow

packages-onedl:
	$(MAKE) $(ONEDL) packages

# What takes about as long as the demo of detection, once its backbone is trained: the other demos
# and what the onedl stack, which operators-full has made by then, does in an environment of its own.
beside-demo-det:
	$(MAKE) demo
	$(MAKE) demo-cls
	$(MAKE) smoke-onedl

HALF_WORKERS = WORKERS=$$((($(WORKERS) + 1) / 2))

# The other environments are filled beside the tests. The wheels are tested side by side, since one
# process makes the environment of each; so are the demos, since small models gain little by a second
# thread. All else shares the cores or an environment, so one follows the other.
slow: ## long sweeps, the wheels, another torch, compiled operators, the demos, the onedl stack
	$(MAKE) -j3 slow-tests $(ABI)/.stamp packages-onedl
	$(MAKE) -j3 $(HALF_WORKERS) wheel test-abi test-pure
	$(MAKE) operators-full
	$(MAKE) demo-quick
	OMP_NUM_THREADS=1 $(MAKE) -j2 $(HALF_WORKERS) demo-det beside-demo-det

build-wheel: $(STAMPS)/test
	rm -rf build/lib* build/bdist* dist
	TORCH_CUDA_ARCH_LIST="$(WHEEL_CUDA_ARCHS)" \
		$(PIP) wheel --no-deps --no-build-isolation -w dist .

wheel: build-wheel ## build the wheel under dist/ and test it as installed
	$(BIN)/python tests/check_wheel.py --workers $(WORKERS) dist/mmvim-*.whl

$(ABI)/.stamp: requirements/abi.txt
	@echo 'Installing torch 2.10 and the CUDA libraries it does not import without (5.6 GB of disk).'
	@rm -rf $(ABI)
	@$(ABI_PYTHON) -m venv $(ABI)
	@$(subst $(VENV),$(ABI),$(INSTALL)) --no-deps -r $<
	@touch $@

test-abi: build-wheel $(ABI)/.stamp ## test the ops of the same wheel under another torch
	$(BIN)/python tests/check_wheel.py --workers $(WORKERS) --python $(ABI)/bin/python dist/mmvim-*.whl

test-pure: build-wheel ## test the ops of a wheel without the native library
	rm -rf build/lib* build/bdist*
	MMVIM_NO_EXT=1 MMVIM_FORCE_EXT=0 $(PIP) wheel --no-deps --no-build-isolation -w dist/pure .
	MMVIM_FORCE_EXT=0 $(BIN)/python tests/check_wheel.py --workers $(WORKERS) --pure dist/pure/mmvim-*.whl

clean: ## remove environments, builds and caches; data/ and work_dirs/ stay
	rm -rf .venv .venv-* build dist *.egg-info mmvim/.mim ops/mmvim_ops/libmmvim_ops.* .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
