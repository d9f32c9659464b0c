# Two commands do everything from a bare machine: `make demo` and `make test`.
# Each sets up what it needs first (tools/setup.sh) and skips what is there already.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
PYTHON := $(VENV)/bin/python
# Compilers that are newer than ours may warn about more; that fails in CI, not on a user's machine.
WERROR := $(if $(CI),ON,OFF)
CMAKE := PATH="$(CURDIR)/$(VENV)/bin:$$PATH" cmake
CTEST := PATH="$(CURDIR)/$(VENV)/bin:$$PATH" ctest --output-on-failure
NATIVE := $(CMAKE) -S . -G Ninja -DSF_BUILD_PYTHON=OFF -DSF_BUILD_TESTS=ON -DSF_WERROR=$(WERROR)
CPP_FILES := find native tests bench -name '*.cc' -o -name '*.h'
FUZZ_SECONDS ?= 60
SOAK_SEEDS ?= 1000
SOAK_FIRST ?= 1

.PHONY: help setup demo test lint format native-test python-test conformance asan tsan fuzz soak \
  bench bench-micro bench-network clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## set up for the demo: system packages, .venv, native core
	@tools/setup.sh demo

setup-%:
	@tools/setup.sh $*

demo: setup-demo ## train on 4 ranks over the encrypted fabric, under mpirun and under torchrun
	@tools/demo.sh

test: setup-test ## everything that must pass: lint, native tests, Python tests
	@$(MAKE) --no-print-directory lint native-test python-test

lint: setup-test ## check style and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(PYTHON) -m mypy
	$(CPP_FILES) | xargs $(VENV)/bin/clang-format --dry-run --Werror

format: setup-test ## rewrite the sources in the house format
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	$(CPP_FILES) | xargs $(VENV)/bin/clang-format -i

native-test: setup-test ## the C++ tests
	$(NATIVE) -B build/native
	$(CMAKE) --build build/native
	$(CTEST) --test-dir build/native

python-test: setup-test ## the Python tests; PYTEST_ARGS="-k roster" picks some
	$(PYTHON) -m pytest $(PYTEST_ARGS)

conformance: setup-test ## all of PyTorch's distributed tests, at 2, 3 and 4 ranks; CONFORMANCE_ARGS picks some
	$(PYTHON) tests/conformance/run.py --json build/conformance.json $(CONFORMANCE_ARGS)

asan: setup-test ## the C++ tests under the address and undefined-behaviour sanitizers
	$(NATIVE) -B build/asan -DSF_SANITIZE=address,undefined
	$(CMAKE) --build build/asan
	$(CTEST) --test-dir build/asan

tsan: setup-test ## the C++ tests under the thread sanitizer
	$(NATIVE) -B build/tsan -DSF_SANITIZE=thread
	$(CMAKE) --build build/tsan
	setarch -R $(SHELL) -c '$(CTEST) --test-dir build/tsan'

fuzz: setup-fuzz ## run each fuzz target for FUZZ_SECONDS (60)
	@tools/fuzz.sh $(FUZZ_SECONDS)

soak: setup ## simulate SOAK_SEEDS (1000) jobs in random weather, from seed SOAK_FIRST (1) on
	$(PYTHON) -m securefabric.simulate soak --seed $(SOAK_FIRST) --seeds $(SOAK_SEEDS)

bench: setup-bench ## compare with gloo, MPI and WireGuard (root), train; JSON and plots in build/bench
	$(NATIVE) -B build/native
	$(CMAKE) --build build/native --target bench_all_reduce bench_all_reduce_null bench_micro
	$(PYTHON) bench/run.py $(BENCH_ARGS)

bench-micro: setup-bench ## time seal, open, headers, range sets and reductions on one core
	$(NATIVE) -B build/native
	$(CMAKE) --build build/native --target bench_micro
	build/native/bench_micro $(BENCH_ARGS)

bench-network: setup-bench ## loss, cuts and incast over four links, beside gloo; draws build/network (root)
	$(PYTHON) bench/network.py

clean: ## remove everything that was built; keeps .venv
	rm -rf build dist $(VENV)/.built .mypy_cache .ruff_cache .pytest_cache .hypothesis
