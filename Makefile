# make study      the flagship study, from nothing to a printed front
# make test       all tests
# make check      format, lint, types, import contracts, tests
# make bench      benchmarks
# make bench-dashboard  the front page at 100,000 designs
# make bench-executors  what a second worker brings
# make bench-faults  250 kills of running studies
# make bench-search  search methods on frozen spaces
# make bench-agents  agents and samplers in the first designs
# make bench-thesis  joint search against stage by stage, half an hour
# make bench-junk  what a language model without a clue costs
# make validation  the figures of docs/validation.json, written by the tests that validate (minutes)
# make reference  what of docs/ follows from the code: commands, knobs, metrics, shown output, tables of validation
# make docs       docs/ as pages, in build/docs
# make dashboard  the web dashboard over the stored studies
#
# Each target sets up .venv first: pinned dependencies, verified by hash, no index address in the lock.

PYTHON ?= python3
BIN := .venv/bin
SETUP := $(PYTHON) scripts/setup.py

.PHONY: study test check format lint types contracts bench bench-dashboard bench-executors bench-faults bench-search bench-agents bench-thesis bench-junk dashboard validation reference docs lock clean

study: .venv/runtime
	@$(BIN)/dse run studies/medical_vqa_edge.py

dashboard: .venv/runtime
	@$(BIN)/dse dashboard

test: .venv/dev
	$(BIN)/pytest -n auto

check: .venv/dev format lint types contracts test

format: .venv/dev
	$(BIN)/ruff format --check .

lint: .venv/dev
	$(BIN)/ruff check .

types: .venv/dev
	$(BIN)/mypy

contracts: .venv/dev
	$(BIN)/lint-imports

bench: .venv/dev
	$(BIN)/python -m tests.benchmarks

bench-dashboard: .venv/dev
	$(BIN)/python -m tests.benchmarks.dashboard

bench-executors: .venv/dev
	$(BIN)/python -m tests.benchmarks.executors

bench-faults: .venv/dev
	$(BIN)/python -m tests.faults.killing --kills 250

bench-search: .venv/dev
	$(BIN)/python -m tests.benchmarks.search

bench-agents: .venv/dev
	$(BIN)/python -m tests.benchmarks.search.agents

bench-thesis: .venv/dev
	$(BIN)/python -m tests.benchmarks.thesis

bench-junk: .venv/dev
	$(BIN)/python -m tests.benchmarks.search.junk

validation: .venv/dev
	$(BIN)/pytest -p no:xdist --timeout 1800 --record-validation

reference: .venv/dev
	$(BIN)/python scripts/reference.py

docs: .venv-docs/ready
	.venv-docs/bin/mkdocs build --strict

lock: .venv/dev
	$(BIN)/python scripts/lock.py

clean:
	rm -rf .venv .venv-docs .tools build dist *.egg-info

.venv/runtime: requirements/runtime.lock pyproject.toml scripts/setup.py
	@$(SETUP) runtime

.venv/dev: requirements/dev.lock pyproject.toml scripts/setup.py
	@$(SETUP) dev

# The generator of pages needs nothing of ours, and stays out of the other environments.
.venv-docs/ready: requirements/docs.lock
	@$(PYTHON) -m venv .venv-docs
	@.venv-docs/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/docs.lock
	@touch $@
