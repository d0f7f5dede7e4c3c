# Freehold: `make run` starts it, `make test` tests it, `make check` is what a change must pass.
# Everything is installed into .venv by scripts/setup.py; nothing else on the machine is touched.

PYTHON ?= $(shell for p in python3 python3.15 python3.14 python3.13 python3.12 python3.11; do \
  command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' && echo $$p && break; done)
BIN := .venv/bin
TESTS ?= tests
ON_POSTGRES := $(addprefix tests/,app crash scenarios services store xrpc)

.PHONY: help run test test-postgres check format docs interop crash soak bench clean setup-run setup-test setup-check

help:
	@grep -hE '^## ' Makefile | sed 's/^## //'

## make run      set up and start a server on this machine, with two accounts, no configuration
run: setup-run
	@$(BIN)/pds dev

## make test     set up and run the tests, with SQLite and with PostgreSQL in its place (peers that are not
##               installed are skipped with a message); `make test TESTS=tests/net` runs some, on SQLite
test: setup-test
	@$(BIN)/python -m pytest -n auto --dist loadgroup $(TESTS) --ignore=tests/interop --ignore=tests/soak
ifeq ($(TESTS),tests)
	@$(MAKE) --no-print-directory test-postgres
endif

## make test-postgres  what keeps anything in a database, with PostgreSQL in it
test-postgres: setup-test
	@PDS_TEST_ENGINE=postgres $(BIN)/python -m pytest -n auto --dist loadgroup $(ON_POSTGRES)

## make interop  tests against other implementations (Node packages, the Python SDK; goat if PDS_TEST_GOAT names it)
interop: setup-test
	@$(BIN)/python -m pytest tests/interop

## make check    format, lint, types, layering, spec anchors, generated docs
check: setup-check
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/python scripts/check_rules.py
	@$(BIN)/python scripts/check_specs.py
	@$(BIN)/python scripts/make_docs.py --check

## make format   rewrite the code in the project's format
format: setup-check
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format .

## make docs     write the generated reference pages
docs: setup-check
	@$(BIN)/python scripts/make_docs.py

## make soak     the long series: 100 kills, 10,000 random writes, a reader of 1 KB/s for 10 minutes
soak: setup-test
	@$(BIN)/python -m pytest tests/soak -p no:xdist --timeout 3600

## make bench    time budget of a write, requests a second, firehose fan-out
bench: setup-test
	@$(BIN)/python -m bench

setup-run:
	@test -n "$(PYTHON)" || { echo "Freehold needs Python 3.11 or later, and found none. Install it, or name it: make PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) scripts/setup.py

setup-test:
	@test -n "$(PYTHON)" || { echo "Freehold needs Python 3.11 or later, and found none. Install it, or name it: make PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) scripts/setup.py test

setup-check:
	@test -n "$(PYTHON)" || { echo "Freehold needs Python 3.11 or later, and found none. Install it, or name it: make PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) scripts/setup.py test check

## make clean    remove what the commands above installed
clean:
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
