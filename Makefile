# `make run` and `make test` need only Python 3.11+, make and network access to a package index.
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=
# In this order: with the long ones last, two processes would wait for the third.
SLOW_TESTS := tests/acceptance tests/integration tests/contract

.PHONY: run setup test check soak bench compat compat-ci clean

run: .venv/.runtime
	@exec $(BIN)/python -m bridge up $(ARGS)

setup: .venv/.development

check: .venv/.development
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/pytest tests/unit

# Celery's suite mostly waits, so that the fast checks run beside it.
test: .venv/.development
	$(MAKE) --jobs=2 --output-sync=target check compat-ci
	$(BIN)/pytest $(SLOW_TESTS) -m "not alone and not soak" -n 3 --dist loadfile --no-loadscope-reorder
	$(BIN)/pytest $(SLOW_TESTS) -m alone

# The part of Celery's own suite that `make test` runs (docs/compatibility.md).
compat-ci: .venv/.development
	$(BIN)/python -m tests.compat --ci

# Faults at random, one pool after the other: SOAK_SECONDS=180 SOAK_SEED=7 make soak
soak: .venv/.development
	$(BIN)/pytest tests/integration -m soak

bench: .venv/.development
	$(BIN)/python -m tests.benchmarks $(ARGS)

# Celery's and kombu's own integration tests, on NATS and on Redis (docs/compatibility.md).
compat: .venv/.development
	$(BIN)/python -m tests.compat $(ARGS)

clean:
	rm -rf .venv .compat build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

# The stamps make a second run instant; a changed requirement makes them stale.
.venv/.runtime: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "$(PYTHON) is missing or older than 3.11: install Python 3.11+ or run 'make PYTHON=/path/to/python3.11'" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -e .
	@touch $@

.venv/.development: requirements-dev.txt .venv/.runtime
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@
