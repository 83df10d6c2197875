# `make demo` and `make test` need Python and make, nothing else: they create .venv, install into it and run.
# PYTHON names the interpreter that .venv is made from: make test PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
HOOK := $(addprefix tests/support/torchvision_cpu,.py .pth)
# Two pytest workers on two cores: more threads in each would only wait for one another.
PYTEST_WORKERS ?= 2

.PHONY: demo test test-anywhere lint docs figures demo-install test-install docs-install torchvision-hook clean

demo: demo-install
	$(BIN)/multigrain demo

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(PYTEST_WORKERS)

# Under six settings that round as other processors do; SETTINGS names some of them (tests/anywhere.py).
test-anywhere: test-install
	$(BIN)/python -m tests.anywhere --workers $(PYTEST_WORKERS) $(SETTINGS)

lint: test-install
	$(BIN)/ruff check
	$(BIN)/basedpyright --pythonpath $(BIN)/python

docs: docs-install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

figures: test-install
	$(BIN)/python docs/figures

demo-install: $(VENV)/.installed-demo
test-install: $(VENV)/.installed-dev
docs-install: $(VENV)/.installed-docs

# One stamp for each extra: a second `make` installs nothing until the files below change.
$(VENV)/.installed-%: pyproject.toml constraints.txt $(HOOK)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$*]'
	$(MAKE) --no-print-directory torchvision-hook
	touch $@

# Why: tests/support/torchvision_cpu.py.
torchvision-hook: $(HOOK)
	cp $^ "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

clean:
	rm -rf $(VENV) build dist site .coverage .hypothesis .pytest_cache .ruff_cache
	find . -type d -name __pycache__ -prune -exec rm -rf {} +
