# Everything a newcomer needs: `make demo` and `make test`. Only python3 and make come first.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUTPUT ?= outputs/demo
DATA ?= data
OUT ?= outputs/gpu
MINUTES ?= 12
GPU_PYTHON ?= $(BIN)/python

.PHONY: help install demo test test-slow lint format options docs bench gpu clean

help:  ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

install: $(VENV)/.installed  ## .venv with the versions that were tested

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "lightning_merge needs Python 3.11 or later: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@echo "Installing into $(VENV), once (torch is large) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	@# Compiled once, as PYTHONDONTWRITEBYTECODE would have every process compile torch and Lightning.
	@$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python \
		--constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: install  ## train, align and merge two networks on real images: a table, figures, a checkpoint
	@$(BIN)/python -m lightning_merge study --config configs/studies/demo.yaml --output $(OUTPUT)

test: install  ## the tests, without the slow ones
	$(BIN)/python -m pytest -n 2

test-slow: install  ## the slow tests too
	$(BIN)/python -m pytest -n 2 -m "not gpu"

lint: install  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install  ## rewrite the code as ruff likes it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

options: install  ## describe the options of every command anew, for --help
	$(BIN)/python tests/describe_options.py

docs: install  ## the site, into outputs/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir outputs/site

bench: install  ## speed, as ratios of two things measured in one run
	$(BIN)/python -m benchmarks

gpu:  ## on a GPU: its tests, its benchmarks, then the papers' tables (DATA=, OUT=, MINUTES=, GPU_PYTHON=)
	$(GPU_PYTHON) -m benchmarks.on_a_gpu --data $(DATA) --output $(OUT) --minutes $(MINUTES)

clean:  ## remove .venv, caches and outputs
	rm -rf $(VENV) outputs .pytest_cache .mypy_cache .ruff_cache .hypothesis
