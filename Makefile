# The one task runner. `make demo` and `make test` work on a fresh machine with Python 3.11 or later.

PYTHON ?= python3
BIN := .venv/bin
TORCH := torch==2.13.0

.PHONY: help demo test lint format types check unsloth schemas docs bench corpora clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.venv/base: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; set PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

# torch first and by version: a plain `torch` pulls gigabytes of CUDA libraries.
.venv/test: .venv/base
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable '.[all,dev]'
	touch $@

.venv-unsloth/test: docs/unsloth-env.sh pyproject.toml
	PYTHON=$(PYTHON) TORCH=$(TORCH) sh docs/unsloth-env.sh .venv-unsloth
	touch $@

demo: .venv/base  ## install, convert and validate fixtures of several kinds, leave shards in demo/
	BIN=$(BIN) sh docs/demo.sh

# On a Mac Unsloth is another program (MLX), which trainglue does not drive.
test: .venv/test lint types check $(if $(filter Linux,$(shell uname)),unsloth)  ## install what tests need, then lint, types and every test that needs no GPU

lint: .venv/test  ## ruff: rules and layout
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv/test  ## let ruff rewrite the files
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: .venv/test  ## mypy, strict
	$(BIN)/mypy

check: .venv/test  ## every test that needs no GPU
	$(BIN)/python -m pytest -n 2 --dist worksteal

unsloth: .venv-unsloth/test  ## the tests of engine="unsloth", in an environment of its own
	.venv-unsloth/bin/python -m pytest tests/unsloth

schemas: .venv/base  ## write schemas/ from the code
	$(BIN)/python -m datakit.jsonschema schemas/

docs: .venv/base  ## write the generated pages of docs/
	$(BIN)/python docs/generate.py

bench: .venv/test  ## measure; takes minutes, needs 4 GB of disk
	$(BIN)/python benchmarks/convert.py

corpora: .venv/test  ## write docs/corpora.md and docs/masks.md from real files; CORPORA names their folder
	@test -n "$(CORPORA)" || { echo "make corpora CORPORA=FOLDER"; exit 2; }
	$(BIN)/python docs/corpora.py $(CORPORA)
	$(BIN)/python docs/masks.py $(CORPORA)

clean:  ## remove what was installed and built
	rm -rf .venv .venv-unsloth demo build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
