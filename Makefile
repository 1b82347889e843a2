# Everything happens in $(VENV), made on first use and reused; what is up to date is not done again.
#
#   make demo PYTHON=python3.12                        another interpreter
#   make demo CMAKE_ARGS=-DGGML_CUDA=ON                with CUDA; any option of llama.cpp's build
#   make test TORCH='torch --index-url URL'            another build of torch
#   make asan PYTEST=tests/native                      some of the tests with sanitizers

PYTHON     ?= python3
VENV       ?= .venv
# Named apart because on Linux the plain wheel of the public index brings gigabytes of CUDA along.
TORCH      ?= torch==2.13.0
CMAKE_ARGS ?=
PYTEST     ?=
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
VALIDATOR := build/fuzz-validator
NATIVE  := $(or $(NATIVE_PYTHON),$(abspath $(BIN)/python))
CMAKE   := PATH="$$PATH:$(dir $(NATIVE))" cmake
# Python sources need no new install: the package is installed in editable mode.
SOURCES := pyproject.toml CMakeLists.txt $(wildcard cmake/*) $(shell find csrc -type f 2>/dev/null)

# llama.cpp's converter, from a build folder into the package of the work tree.
define install-converter
$(CMAKE) --install $(1) --component converter --prefix . >/dev/null
echo '*' > otter_gguf/converters/llama_cpp/.gitignore
endef

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow fuzz fuzz-validator soak asan lint native clean distclean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.demo ## install what the demo needs (no torch) and run the demo
	$(BIN)/otter-gguf demo

test: lint ## all checks and tests but the slow ones
	$(BIN)/python -m pytest $(PYTEST)

test-slow: $(VENV)/.test ## the slow tests
	$(BIN)/python -m pytest -m slow $(PYTEST)

fuzz: $(VENV)/.test ## 20,000 damaged files through the public API
	$(BIN)/python -m tests.gguf.fuzz $(FUZZ)

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

lint: $(VENV)/.test ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/mypy

native: ## compile the module into otter_gguf/, for use with PYTHONPATH
native: $(if $(NATIVE_PYTHON),,$(VENV)/.tools)
	$(CMAKE) -S . -B build/dev -G Ninja $(CMAKE_ARGS) -DPython_EXECUTABLE=$(NATIVE)
	$(CMAKE) --build build/dev --target _native
	$(CMAKE) --install build/dev --component native --prefix . >/dev/null
	$(call install-converter,build/dev)

clean: ## remove builds and caches, keep the virtual environment
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache otter_gguf/converters/llama_cpp otter_gguf/_native*.so
	rm -f $(VENV)/.demo $(VENV)/.test

distclean: clean ## remove the virtual environment too
	rm -rf $(VENV)

# The steps behind them, each with a stamp in the virtual environment.

$(VENV)/.tools: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo \
	    "make: $(PYTHON) is missing or older than Python 3.10; name another: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo \
	    "make: $(PYTHON) has no venv module; install it (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@for compiler in "$(CXX)" c++ g++ clang++; do command -v $$compiler >/dev/null 2>&1 && exit 0; done; echo \
	    "make: no C++ compiler; install one (Debian, Ubuntu: apt install g++; macOS: xcode-select --install)" >&2; exit 1
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) 'scikit-build-core>=0.11' 'pybind11>=2.12' cmake ninja
	touch $@

# Without build isolation the tools keep their place, and an install after a change compiles what changed.
$(VENV)/.demo: $(VENV)/.tools $(SOURCES)
	@echo "make: compiling otter-gguf and llama.cpp (the first time some minutes on 2 cores) ..."
	$(PIP) --no-build-isolation --editable '.[plot]'
	touch $@

$(VENV)/.test: $(VENV)/.tools $(SOURCES)
	$(PIP) $(TORCH)
	@echo "make: compiling otter-gguf and llama.cpp (the first time some minutes on 2 cores) ..."
	$(PIP) --no-build-isolation --editable '.[test]'
	touch $@
