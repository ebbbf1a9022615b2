# One command from a clone to a result. `make help` lists the others; the README has the
# same steps without make.
PYTHON ?= python3
UV_VERSION := 0.13.9
BIN := .venv/bin
# DVC runs `python` from PATH, so PATH begins with the environment's.
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Drop the caller's uv, pip and Python settings, which could install into another Python or
# import from one. Keep those for fetching packages (UV_INDEX_URL, PIP_CERT, …; proxies and
# SSL_CERT_FILE are not touched) and for printing.
UNSET := $(filter UV_% PIP_% PYTHON% VIRTUAL_ENV%,$(.VARIABLES))
KEPT := UV_INDEX% UV_HTTP_% UV_CONCURRENT_% %_INDEX %_INDEX_URL %_FIND_LINKS %_HOST %CERT %_CERTS \
	%_NATIVE_TLS %_PROXY %_KEYRING_PROVIDER %_CONFIG_FILE %_CACHE_DIR %_NO_CACHE %TIMEOUT \
	%_RETRIES %_OFFLINE %_LINK_MODE %_USE_FEATURE %_NO_PROGRESS \
	PYTHONUNBUFFERED PYTHONIOENCODING PYTHONUTF8
unexport $(filter-out $(KEPT),$(UNSET)) CDPATH
# Let uv trust the system's certificates, as pip does: a corporate proxy may have its own.
# If there are none, uv uses its bundled ones.
export UV_SYSTEM_CERTS ?= $(if $(wildcard /etc/ssl/certs/* /etc/ssl/*.pem /etc/pki/tls/certs/*),1,0)
# A container may run as a user without a name, or without a home to read or to write to.
export HOME := $(shell test -x "$$HOME" && echo "$$HOME" || echo /)
export LOGNAME ?= $(shell id -u)
ifneq ($(shell cd "$(HOME)" && test -w .cache -o ! -e .cache -a -w . && echo writable),writable)
export XDG_CACHE_HOME ?= $(CURDIR)/.dvc/tmp/cache
endif
# Pull what the DVC remote has, if one is configured.
PULL := $(shell grep -qs 'remote = ' .dvc/config .dvc/config.local && echo --pull)

.PHONY: all pack compare test verify bench lock clean help new

all: .venv/installed  ## Set up .venv, run the stages that are out of date, show the result
	@$(if $(PULL),echo "Pulling what the DVC remote has and building the rest.")
	@$(BIN)/python -m tools.check
	@$(BIN)/python -m dvc repro $(PULL)
	@$(BIN)/python -m tools.summary

pack: .venv/installed  ## Pack the images in FOLDER=… and set params.yaml; OPTIONS="--dry-run", …
	@$(BIN)/python -m tools.pack "$$FOLDER" $(value OPTIONS)

compare: .venv/installed  ## Compare REV (default HEAD) with the workspace, and test for significance
	@$(BIN)/python -m tools.compare $(REV)

test: .venv/tested  ## Run lint, types and tests
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/python -m pytest -n auto --dist worksteal

verify: .venv/installed  ## Rebuild this commit in a clone, and compare the bytes with dvc.lock
	@$(BIN)/python -m tools.verify

bench: .venv/tested  ## Time the last commit, as bench/*.md do; TORCH=PYTHON adds PyTorch
	$(BIN)/python -m bench.pipeline $(if $(TORCH),--torch $(TORCH))
	$(BIN)/python -m bench.growth

lock: .venv/installed  ## Resolve pyproject.toml again into requirements*.txt
	@$(UV_TOML)
	$(UV) compile $(COMPILE) pyproject.toml -o requirements.txt
	$(UV) compile $(COMPILE) -c requirements.txt --group test pyproject.toml -o requirements-test.txt
COMPILE := --python $(BIN)/python --quiet --upgrade --universal --fork-strategy fewest \
	--python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header

clean:  ## Remove the environment, the outputs and DVC's cache
	rm -rf .venv .dvc/cache .dvc/tmp .hypothesis .*_cache data/archive data/tensors.npz models/*.npz
	rm -rf metrics/*.png metrics/history.csv metrics/predictions.csv metrics/report.html

help:  ## Show this list
	@sed -n 's/^\([a-z-]*\):.*  ## /make \1\t/p' Makefile | expand -t 20

# Repeat this if the environment's Python does not start (then from scratch) or cannot find its
# packages: the base Python may have been removed or upgraded.
.venv/bin/uv: $(shell $(BIN)/python -IB -c 'import uv' >/dev/null 2>&1 || echo new)
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' || \
		{ echo "Python 3.11 to 3.14 is needed: install one and run make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -IB -c 'import venv, ensurepip' 2>/dev/null || \
		{ echo "Python's venv module is missing: install it (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@$(PYTHON) -IB -c 'import bz2, ctypes, lzma, sqlite3, ssl' || \
		{ echo "This Python was built without a module: install the library it needs (pyenv: see \
	\"Suggested build environment\" in its wiki), and build Python again" >&2; exit 1; }
	@test -f .venv/pyvenv.cfg || ! test -e .venv -o -L .venv || test -z "$$(ls -A .venv)" || \
		{ echo ".venv is not a virtual environment: move it away" >&2; exit 1; }
	@echo "Creating .venv, and installing uv into it"
	@$(PYTHON) -m venv $$($(BIN)/python -IB -c '' 2>/dev/null || echo --clear) \
		"$$(test -L .venv && cd .venv && pwd -P || echo .venv)"
	@$(PIP) download --quiet --no-deps --only-binary :all: --dest .venv/wheels uv==$(UV_VERSION)
	@PIP_CONFIG_FILE=/dev/null $(PIP) install --quiet --no-deps --no-index .venv/wheels/uv-*.whl
	@rm -rf .venv/wheels

# The caller's pip.conf decides where uv comes from. It may also name a folder to install into,
# so it does not count for that.
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Of the caller's uv.toml, keep the index, certificates and proxies.
UV := $(BIN)/python -m uv pip --config-file .venv/uv.toml
UV_TOML := $(BIN)/python -IB tools/uv_settings.py >.venv/uv.toml
# On a terminal, uv shows its progress.
QUIET := $(shell test -t 2 || echo --quiet)
# Compile bytecode: where Python may not write it, every run would take twice as long.
INSTALL := $(UV_TOML) && $(UV) install --python $(BIN)/python $(QUIET) --require-hashes \
	--compile-bytecode -r

.venv/installed: requirements.txt .venv/bin/uv
	@echo "Installing the packages of requirements.txt into .venv"
	@$(INSTALL) requirements.txt
	@touch $@

.venv/tested: .venv/installed requirements-test.txt
	@echo "Installing the packages of requirements-test.txt into .venv"
	@$(INSTALL) requirements-test.txt
	@touch $@
