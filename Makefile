# Everything a fresh machine with Python 3.11+ and make needs. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/python -m uv
INSTALLED := $(VENV)/.installed
# Two processes, a file of tests for one of them at a time. Both have to collect the same tests, in the same order.
PYTEST := PYTHONHASHSEED=0 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile
BENCHMARKS := $(filter-out _%,$(basename $(notdir $(wildcard simulations/benchmarks/*.py))))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo federation test check bench soak bundle lock

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## set up, then train and judge a federation of synthetic hospitals
	$(BIN)/consilium-simulate scenario=demo

federation: $(INSTALLED) ## set up, then a coordinator and four hospitals as real processes, ten rounds
	$(BIN)/python -m simulations.trial

test: $(INSTALLED) ## set up, then run the whole test suite
	$(PYTEST)

check: $(INSTALLED) ## set up, then lint, types, import rules and tests: what .ci/run calls
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PYTEST)

bench: $(INSTALLED) ## set up, then run every benchmark in simulations/benchmarks
	@set -e; for name in $(BENCHMARKS); do \
		echo "== $$name"; $(BIN)/python -m simulations.benchmarks.$$name; \
	done

# The seeds are messages of every kind: the fuzzer finds the way into them much faster than from nothing.
soak: $(INSTALLED) ## set up, then 50,000 operation lists, kills at every instant, 30 rounds through 20 kills, fuzzing; hours
	CONSILIUM_OPERATION_LISTS=50000 $(BIN)/python -m pytest tests/federation/test_operation_lists.py
	CONSILIUM_SOAK=1 $(BIN)/python -m pytest tests/flower tests/federation/test_resume.py tests/deploy
	$(BIN)/python -m simulations.trial --no-noise --rounds 30 --kills 20 --limit 5400
	$(BIN)/python -m simulations.trial --rounds 30 --kills 20 --limit 5400
	$(BIN)/python -m tests.fuzzing.seeds $(VENV)/fuzzing-seeds
	$(BIN)/python -m tests.fuzzing.wire $(VENV)/fuzzing-seeds -max_total_time=600 -max_len=4096 -timeout=10

bundle: $(INSTALLED) ## set up, then pack ROLE=coordinator|site for a hospital without internet, into dist/
	deploy/bundle.sh $(or $(ROLE),coordinator)

lock: $(VENV)/.uv ## write requirements.lock anew from pyproject.toml, keeping the versions that still fit
	$(UV) pip compile pyproject.toml --quiet --universal --all-extras --group dev --generate-hashes \
		--no-emit-index-url --custom-compile-command "make lock" --output-file requirements.lock

# uv comes from the lock itself, checked by hash: flwr pins a version of uv, and a second one would be replaced
# during the installation that it is running.
$(VENV)/.uv:
	@$(PYTHON) -c 'import sys; sys.exit("Expected Python 3.11 or newer, got " + sys.version.split()[0] \
		+ "; choose another with: make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	@if test -f requirements.lock; then \
		awk '/^[^ #]/ { wanted = /^uv==/ } wanted && !/^ *#/' requirements.lock > $(VENV)/uv.txt; \
	else echo uv > $(VENV)/uv.txt; fi
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $(VENV)/uv.txt
	@touch $@

# Written last: an interrupted set-up starts again.
$(INSTALLED): requirements.lock pyproject.toml | $(VENV)/.uv
	$(UV) pip install --python $(BIN)/python --require-hashes --compile-bytecode -r requirements.lock
	$(UV) pip install --python $(BIN)/python --quiet --no-deps --editable .
	@touch $@
