# The front door: `make demo` and `make test` work on a fresh clone. The building itself is CMake's
# (CMakePresets.json); this file only puts the steps in order.
#
#   make demo ARGS="..."     options for the demo
#   make test ARGS="-L core" options for ctest
#   CMAKE, CTEST             other programs than the cmake and ctest on PATH

SHELL := bash
CMAKE ?= cmake
CTEST ?= ctest
ARGS ?=
export CMAKE CTEST

.DEFAULT_GOAL := help
.PHONY: help demo test build check format setup clean

help: ## show this list
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 16

demo: build ## set up, build, and show what Tactic does on a real model
	@build/release/apps/tactic/tactic demo $(ARGS)

test: build ## set up, build, and run all tests
	@$(CTEST) --test-dir build/release --parallel $$(nproc) --output-on-failure --no-tests=error $(ARGS)

build: setup ## set up and build into build/release
	@scripts/build.sh release

setup:
	@scripts/setup.sh

check: ## the extra checks: formatting, clang-tidy, Python, sanitizers, clang, CUDA
	@scripts/setup.sh --dev
	@scripts/check.sh $(ARGS)

format: ## format all C++ and Python in place
	@scripts/setup.sh --dev
	@scripts/check.sh fix-format

clean: ## remove what was built (not .venv, which holds llama.cpp and the model)
	@rm -rf build
