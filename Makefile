# Everything happens in $(VENV), made on first use and reused; what is up to date is not done again.
#
#   make demo PYTHON=python3.12                        another interpreter
#   make demo CMAKE_ARGS=-DGGML_CUDA=ON                with CUDA; any option of llama.cpp's build
#   make test TORCH='torch --index-url URL'            another build of torch
#   make test PYTEST=tests/native WORKERS=0            some of the tests, in one process
#   make asan PYTEST=tests/native                      some of the tests with sanitizers

PYTHON     ?= python3
VENV       ?= .venv
# Not in the locks: on Linux the plain wheel of the public index brings gigabytes of CUDA along, so its build is chosen apart.
TORCH      ?= torch==2.13.0
CMAKE_ARGS ?=
PYTEST     ?=
# Processes that run tests side by side; 0: none but the first.
WORKERS    ?= auto
FUZZ       ?=
SOAK       ?=
# What libFuzzer is told, and the clang that has it: CLANG=clang-14 takes clang++-14 and llvm-cov-14 too.
FUZZER     ?= -max_total_time=600
CLANG      ?= clang
# The interpreter of `make native`: one with pybind11. Default: the virtual environment.
NATIVE_PYTHON ?=

export CMAKE_ARGS
export PIP_DISABLE_PIP_VERSION_CHECK = 1

BIN     := $(VENV)/bin
PIP     := $(BIN)/python -m pip install --quiet
# Nothing but the files that a lock names by hash: no resolution, and no build, which would fetch what no lock names.
LOCKED  := $(PIP) --require-hashes --no-deps --only-binary :all: --requirement
PYTESTS := python -m pytest --numprocesses $(WORKERS)
VALIDATOR := build/fuzz-validator
NATIVE  := $(or $(NATIVE_PYTHON),$(abspath $(BIN)/python))
CMAKE   := PATH="$$PATH:$(dir $(NATIVE))" cmake
# Python sources need no new install: the package is installed in editable mode.
SOURCES := pyproject.toml otter_gguf/__init__.py CMakeLists.txt $(wildcard cmake/*) $(shell find csrc -type f 2>/dev/null)
# The unit tests: what they leave out runs whole processes or models, or goes through files byte by byte.
WHOLE   := $(addprefix tests/test_,batch build engine hostile_templates interrupts isolation quantization records synthetic verify)
WHOLE   += $(addprefix tests/,evaluation/test_runner gguf/test_hostile gguf/test_mutants)
UNIT    := $(filter-out $(WHOLE:=.py),$(wildcard tests/test_*.py $(addsuffix /test_*.py,$(addprefix tests/,evaluation gguf guidance native))))
CXX_SOURCES = $(shell find csrc -name '*.cpp' -o -name '*.h')

# llama.cpp's converter, from a build folder into the package of the work tree.
define install-converter
$(CMAKE) --install $(1) --component converter --prefix . >/dev/null
echo '*' > otter_gguf/converters/llama_cpp/.gitignore
endef

.DEFAULT_GOAL := help
.PHONY: help demo check test qa lint format test-slow fuzz fuzz-coverage fuzz-validator soak asan native lock test-lowest test-latest \
    clean distclean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.demo ## install what the demo needs (no torch) and run the demo
	$(BIN)/otter-gguf demo

# ---- the three tiers of tests; CONTRIBUTING.md says how long each takes

check: lint ## before a commit: lint and the unit tests, which need no torch
	$(BIN)/$(PYTESTS) -p tests.without_torch $(or $(PYTEST),$(UNIT))

# OTTER_LOCK: tests/test_locks.py compares what is installed with it.
test: $(VENV)/.test ## all tests but the slow ones
	OTTER_LOCK=locks/test.txt $(BIN)/$(PYTESTS) $(PYTEST)

qa: native test-slow fuzz soak fuzz-validator asan ## what runs at night (hours)

# ---- lint

lint: $(VENV)/.test ## ruff, mypy --strict, layers of imports, and clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m tests.layers
	$(BIN)/clang-format --dry-run -Werror $(CXX_SOURCES)

format: $(VENV)/.test ## format Python and C++ as lint expects it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES)

# ---- the parts of qa

test-slow: $(VENV)/.test ## the slow tests
	$(BIN)/$(PYTESTS) -m slow $(PYTEST)

fuzz: $(VENV)/.test ## 20,000 changed files and 4,000 strange texts through the public API
	$(BIN)/python -m tests.fuzz $(FUZZ)

fuzz-coverage: ## the same on a build that counts what of csrc/ and of llama.cpp runs (GCC)
fuzz-coverage: $(if $(NATIVE_PYTHON),,$(VENV)/.test)
	$(CMAKE) -S . -B build/coverage -G Ninja $(CMAKE_ARGS) -DPython_EXECUTABLE=$(NATIVE) -DOTTER_COVERAGE=ON
	$(CMAKE) --build build/coverage --target _native
	$(NATIVE) -m tests.fuzz.coverage build/coverage $(FUZZ)

soak: $(VENV)/.test ## all of docs/reliability.md (hours; SOAK="kills --count 10": a part)
	$(BIN)/python -m tests.reliability.soak $(SOAK)

fuzz-validator: ## 10 minutes of coverage-guided fuzzing of the native validator, with clang
fuzz-validator: $(if $(NATIVE_PYTHON),,$(VENV)/.test)
	$(CMAKE) -S . -B $(VALIDATOR) -G Ninja -DOTTER_FUZZ=ON -DPython_EXECUTABLE=$(NATIVE) \
	    -DCMAKE_C_COMPILER=$(CLANG) -DCMAKE_CXX_COMPILER=$(subst clang,clang++,$(CLANG))
	$(CMAKE) --build $(VALIDATOR) --target fuzz_validator
	$(NATIVE) -m tests.gguf.corpus $(VALIDATOR)
	mkdir -p $(VALIDATOR)/work
	cd $(VALIDATOR) && LLVM_PROFILE_FILE=fuzz.profraw ./fuzz_validator -max_len=16384 -timeout=10 \
	    -dict=$(CURDIR)/csrc/fuzz/gguf.dict -artifact_prefix=bad- $(FUZZER) work seeds $(CURDIR)/tests/gguf/corpus
	cd $(VALIDATOR) && LLVM_PROFILE_FILE=named.profraw ./fuzz_validator -runs=0 named
	cd $(VALIDATOR) && $(subst clang,llvm-profdata,$(CLANG)) merge -sparse fuzz.profraw named.profraw -o all.profdata
	cd $(VALIDATOR) && $(subst clang,llvm-cov,$(CLANG)) report ./fuzz_validator -instr-profile=all.profdata \
	    -show-region-summary=false -ignore-filename-regex=fuzz_validator

# Optimised as little as keeps the tests bearable, with libstdc++'s own assertions; the assertions of ggml stay off, as
# in what users run.
SANITIZE := -fsanitize=address,undefined -fno-omit-frame-pointer -D_GLIBCXX_ASSERTIONS -DNDEBUG -O1 -g1

asan: ## the tests with AddressSanitizer and UBSan (Linux, GCC)
asan: $(if $(NATIVE_PYTHON),,$(VENV)/.test)
	$(CMAKE) -S . -B build/asan -G Ninja $(CMAKE_ARGS) -DPython_EXECUTABLE=$(NATIVE) -DCMAKE_BUILD_TYPE=Sanitize \
	    '-DCMAKE_C_FLAGS=$(SANITIZE)' '-DCMAKE_CXX_FLAGS=$(SANITIZE)' -DCMAKE_MODULE_LINKER_FLAGS=-fsanitize=address,undefined
	$(CMAKE) --build build/asan --target _native
	$(call install-converter,build/asan)
	$(NATIVE) -m tests.reliability.asan $(PYTEST)

# ---- the native module alone

native: ## compile the module into otter_gguf/, for use with PYTHONPATH
native: $(if $(NATIVE_PYTHON),,$(VENV)/.tools)
	$(CMAKE) -S . -B build/dev -G Ninja $(CMAKE_ARGS) -DPython_EXECUTABLE=$(NATIVE)
	$(CMAKE) --build build/dev --target _native
	$(CMAKE) --install build/dev --component native --prefix . >/dev/null
	$(call install-converter,build/dev)

# ---- locks

UV      := $(VENV)-lock/bin/uv
COMPILE := $(UV) pip compile --quiet --no-annotate --no-header pyproject.toml
PINNED  := $(COMPILE) --upgrade --universal --python-version 3.10 --generate-hashes --no-emit-package torch

lock: $(VENV)-lock/.uv ## renew locks/ with the newest versions that pyproject.toml admits
	echo '$(firstword $(TORCH))' > $(VENV)-lock/torch.txt
	$(PINNED) --extra test --group build --group lint --constraint $(VENV)-lock/torch.txt --output-file locks/test.txt
	$(PINNED) --extra plot --group build --constraint locks/test.txt --output-file locks/demo.txt
	$(PINNED) --group lock --output-file locks/lock.txt

# Both ends of what pyproject.toml admits, each in an environment of its own. A new release of a dependency may turn these
# two red, never `make test`.
define test-without-lock
$(call check-machine)
test -x $(VENV)-$(1)/bin/python || $(PYTHON) -m venv $(VENV)-$(1)
$(COMPILE) --python $(VENV)-$(1)/bin/python --resolution $(2) --extra test --group build --output-file $(VENV)-$(1)/installed.txt
$(VENV)-$(1)/bin/python -m pip install --quiet --requirement $(VENV)-$(1)/installed.txt
$(VENV)-$(1)/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
$(VENV)-$(1)/bin/$(PYTESTS) $(PYTEST)
endef

test-lowest: $(VENV)-lock/.uv ## the tests with the lowest versions that pyproject.toml admits
	$(call test-without-lock,lowest,lowest-direct)

test-latest: $(VENV)-lock/.uv ## the tests with the newest version of everything
	$(call test-without-lock,latest,highest)

# ---- cleaning

clean: ## remove builds and caches, keep the virtual environments
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache otter_gguf/converters/llama_cpp otter_gguf/_native*.so
	rm -f $(VENV)/.demo $(VENV)/.test

distclean: clean ## remove the virtual environments too
	rm -rf $(VENV) $(VENV)-lock $(VENV)-lowest $(VENV)-latest

# ---- the steps behind them, each with a stamp in its environment

define check-machine
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo \
    "make: $(PYTHON) is missing or older than Python 3.10; name another: make PYTHON=python3.12" >&2; exit 1; }
@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo \
    "make: $(PYTHON) has no venv module; install it (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
@for compiler in "$(CXX)" c++ g++ clang++; do command -v $$compiler >/dev/null 2>&1 && exit 0; done; echo \
    "make: no C++ compiler; install one (Debian, Ubuntu: apt install g++; macOS: xcode-select --install)" >&2; exit 1
endef

# With other locks all is installed anew: what a lock no longer names would stay.
$(VENV)/.tools: locks/demo.txt locks/test.txt
	$(check-machine)
	$(PYTHON) -m venv --clear $(VENV)
	$(LOCKED) locks/demo.txt
	touch $@

$(VENV)-lock/.uv: locks/lock.txt
	$(PYTHON) -m venv --clear $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet --require-hashes --no-deps --only-binary :all: --requirement $<
	touch $@

# Without build isolation the tools keep their place, and an install after a change compiles what changed.
define install-package
@echo "make: compiling otter-gguf and llama.cpp (the first time some minutes on 2 cores) ..."
$(PIP) --no-deps --no-build-isolation --editable .
endef

$(VENV)/.demo: $(VENV)/.tools $(SOURCES)
	$(install-package)
	touch $@

$(VENV)/.test: $(VENV)/.tools $(SOURCES)
	$(LOCKED) locks/test.txt
	$(PIP) $(TORCH)
	$(install-package)
	touch $@ $(VENV)/.demo
