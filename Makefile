# One command from a clone to a result. `make help` lists the others; the README has the
# same steps without make.
PYTHON ?= python3
UV_VERSION := 0.13.9
BIN := .venv/bin
# DVC runs `python` from PATH, so PATH begins with the environment's.
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Where a remote is configured, pull what it has.
PULL := $(shell grep -qs 'remote = ' .dvc/config .dvc/config.local && echo --pull)

.PHONY: all test verify bench lock clean help

all: .venv/installed  ## Set up .venv, run the stages that need it, show the result
	@$(if $(PULL),echo "Pulling what the DVC remote has and building the rest.")
	@$(BIN)/python -m dvc repro $(PULL)
	@$(BIN)/python -m tools.summary

test: .venv/tested  ## Run lint, types and tests
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/python -m pytest -n auto

verify: .venv/installed  ## Rebuild this commit in a clone and compare the bytes with dvc.lock
	@$(BIN)/python -m tools.verify

bench: .venv/tested  ## Repeat the timings in bench/*.md; TORCH=PYTHON adds PyTorch's
	$(BIN)/python -m dvc repro --quiet
	for name in pipeline decode solvers; do \
		$(BIN)/python -m bench.$$name --write $(if $(TORCH),--torch $(TORCH)) || exit 1; done
	for name in scaling growth; do $(BIN)/python -m bench.$$name --write || exit 1; done

lock: .venv/installed  ## Resolve pyproject.toml again into requirements*.txt
	$(BIN)/python -m uv pip compile $(COMPILE) pyproject.toml -o requirements.txt
	$(BIN)/python -m uv pip compile $(COMPILE) -c requirements.txt --group test pyproject.toml -o requirements-test.txt
COMPILE := --quiet --upgrade --universal --fork-strategy fewest --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-annotate --no-header

clean:  ## Remove the environment, the outputs and DVC's cache
	rm -rf .venv .dvc/cache .dvc/tmp .hypothesis .*_cache data/archive data/tensors.npz models/*.npz
	rm -rf metrics/*.png metrics/report.html

help:  ## Show this list
	@sed -n 's/^\([a-z]*\):.*  ## /make \1\t/p' Makefile | expand -t 14

.venv/bin/uv:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' || \
		{ echo "Python 3.11 to 3.14 is needed: install one and run make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
		{ echo "Python's venv module is missing: install it (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

INSTALL = VIRTUAL_ENV=.venv $(BIN)/python -m uv pip install --quiet --require-hashes -r

.venv/installed: .venv/bin/uv requirements.txt
	@$(INSTALL) requirements.txt
	@touch $@

.venv/tested: .venv/installed requirements-test.txt
	@$(INSTALL) requirements-test.txt
	@touch $@
