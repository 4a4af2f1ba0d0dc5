# Two commands set up a fresh machine: "make demo" and "make test". Each makes the virtual environment first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO_DIR ?= hagmil-demo

GPU_VENV ?= .venv-gpu

.PHONY: demo test test-gpu-install lint format clean

demo: $(READY)
	$(BIN)/hagmil demo --out $(DEMO_DIR)

# Two processes, which take one test file at a time; one thread each, since more threads would compete for the cores.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

# The GPU extras in fresh environments, from the package index (3 GB). Needs no GPU, but uses one if there is one.
test-gpu-install:
	for extra in gpu tensorrt-rtx; do \
	  rm -rf $(GPU_VENV) && $(PYTHON) -m venv $(GPU_VENV) && \
	  $(GPU_VENV)/bin/pip install --quiet --no-cache-dir --constraint constraints.txt ".[$$extra]" && \
	  $(GPU_VENV)/bin/python scripts/check_gpu_install.py $$extra || exit 1; \
	done
	rm -rf $(GPU_VENV)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(GPU_VENV) $(DEMO_DIR) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml setup.py $(wildcard hagmil/runtime/tiles/*.[ch]) constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[cpu,train,export,dev]"
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps timm  # its tests need no torchvision
	touch $(READY)
