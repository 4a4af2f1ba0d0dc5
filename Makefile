# Two commands set up a fresh machine: "make demo" and "make test". Each makes the virtual environment first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO_DIR ?= hagmil-demo

.PHONY: demo test lint format clean

demo: $(READY)
	$(BIN)/hagmil demo --out $(DEMO_DIR)

# Two processes, which take one test file at a time; one thread each, since more threads would compete for the cores.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(DEMO_DIR) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml setup.py $(wildcard hagmil/runtime/tiles/*.[ch]) constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[cpu,train,export,dev]"
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps timm  # its tests need no torchvision
	touch $(READY)
