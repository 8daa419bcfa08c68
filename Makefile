# The verbs of this project; `make` lists them.
PYTHON ?= python3

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

build: ## compile the extension in place
	$(PYTHON) setup.py build_ext --inplace

test: build ## run the whole suite
	$(PYTHON) -m pytest -q

test-isa: build ## run the suite that depends on kernels at each lower instruction set
	for isa in base avx2; do BEYONDVL_ISA=$$isa $(PYTHON) -m pytest -q tests/test_api.py tests/test_default.py || exit 1; done

lint: ## ruff and clang-format
	ruff check . && ruff format --check .
	clang-format --dry-run --Werror $$(git ls-files 'csrc/*.c' 'csrc/*.h')

format: ## rewrite files in the house style
	ruff check --fix . && ruff format .
	clang-format -i $$(git ls-files 'csrc/*.c' 'csrc/*.h')

sanitize: ## build with ASan and UBSan and run the tests of the core
	BEYONDVL_SANITIZE=1 $(PYTHON) setup.py build_ext --inplace
	LD_PRELOAD=$$(gcc -print-file-name=libasan.so) ASAN_OPTIONS=detect_leaks=0 \
	  $(PYTHON) -m pytest -q tests/test_kernels.py tests/test_api.py tests/test_images.py

bench: ## time the models beside their peers (needs torch; onnxruntime and openvino when installed)
	$(PYTHON) benchmarks/all.py

.PHONY: help build test test-isa lint format sanitize bench
