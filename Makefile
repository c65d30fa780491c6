# make run: set everything up and do the main job. make test: set everything up and pass every test.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := setup.py pyproject.toml $(shell find csrc tools -type f)

FUZZ_SECONDS ?= 1800

.PHONY: run test fuzz upstream-tests bench lint sanitize build wheel wheel-build wheel-test clean
.DEFAULT_GOAL := run

# torch first: a CPU build where the installer offers one, and the headers that the build needs.
$(VENV)/.dependencies: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "torch==2.13.0" "setuptools>=77" wheel
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "intel-sycl-rt==2026.2.0" "intel-opencl-rt==2026.2.0" "bitsandbytes==0.50.2"
	touch $@

$(VENV)/.built: $(VENV)/.dependencies $(SOURCES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation -e ".[virtual-xpu,model,test,bench]"
	touch $@

build: $(VENV)/.built

run: build
	$(BIN)/python -m bitsandbytes_intel
	$(BIN)/python -m bitsandbytes_intel model

# A test process a core: threads that wait must leave it to the other.
test: build
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

# Wrong, odd and corrupted arguments, checkpoints and cache files, for half an hour; a crash is a fault.
fuzz: build
	$(BIN)/python tests/fuzz.py --seconds $(FUZZ_SECONDS)

upstream-tests: build
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[upstream-tests]" --no-build-isolation
	mkdir -p build
	$(BIN)/python tools/upstream_tests.py --results build/upstream_tests.jsonl
	$(BIN)/python tools/upstream_tests.py --device cpu --without --results build/upstream_tests_cpu_without.jsonl
	$(BIN)/python tools/upstream_tests.py --device cpu --compare build/upstream_tests_cpu_without.jsonl --results build/upstream_tests_cpu.jsonl

bench: build
	$(BIN)/python -m bitsandbytes_intel bench --device xpu
	$(BIN)/python -m bitsandbytes_intel bench --device cpu

lint: build
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[lint]" --no-build-isolation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/typos
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/clang-format --dry-run --Werror $(filter %.cpp %.h,$(shell git ls-files))

# dist/*.whl: one for every Python, torch from 2.10 on, and libsycl 8 and 9; then tried where there is no compiler.
wheel: wheel-build wheel-test

wheel-build: build
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[wheel]" --no-build-isolation
	$(BIN)/python tools/make_wheel.py build

wheel-test:
	$(BIN)/python tools/make_wheel.py test

# The CPU kernels and the operators' entries, checked by AddressSanitizer and UBSan while the CPU's tests run.
SANITIZE := build/sanitize
# Every instruction set's tests. Not those of SYCL: its runtime loads libraries in a way that AddressSanitizer refuses.
SANITIZED := (cpu-scalar or cpu-avx or cpu-amx or test_gemm_4bit_transposed or (within and (scalar or avx or amx))) and not xpu and not test_cli
SANITIZERS := -g -fsanitize=address,undefined -fno-sanitize-recover=undefined
sanitize: build
	rm -rf $(SANITIZE) && mkdir -p $(SANITIZE)
	cp -r $(filter-out build dist,$(wildcard *)) $(SANITIZE)
	cd $(SANITIZE) && CXX="g++ $(SANITIZERS)" $(CURDIR)/$(BIN)/python setup.py --quiet build_ext --inplace --only cpu,torch
	cd $(SANITIZE) && LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
		ASAN_OPTIONS=detect_leaks=0 BNB_INTEL_VIRTUAL_XPU=0 PYTHONPATH=src $(CURDIR)/$(BIN)/python -m pytest -q -k "$(SANITIZED)" tests

clean:
	rm -rf $(VENV) build dist src/*.egg-info src/bitsandbytes_intel/*.so
