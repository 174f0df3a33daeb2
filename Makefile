# The main targets are `make demo` and `make test`. Both require only Python 3.10 or newer and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# On two cores, test processes with one compute thread each are faster than one process with two threads. Tests wait for
# servers and other processes: two test processes left two fifths of the cores idle.
WORKERS ?= 3

.PHONY: help demo up down test test-all bench coverage docs lint clean

help:
	@echo "make demo      ingest examples/photos, run five searches and write demo.html"
	@echo "make up        start Redis, Milvus, a worker and the service on this machine, without containers"
	@echo "make down      stop them"
	@echo "make test      run ruff, mypy and all tests but the slow ones (starts the servers that they need)"
	@echo "make test-all  run ruff, mypy and all tests, with the slow ones (half an hour)"
	@echo "make bench     measure what docs/speed.md shows, and draw its plots (half an hour on a quiet machine)"
	@echo "make coverage  run the tests of make test and fail if coverage is below the limit in pyproject.toml"
	@echo "make docs      build the documentation with the API reference in site/ (warnings are errors)"
	@echo "make lint      run ruff and mypy"
	@echo "make clean     delete .venv, ldot-data, demo.html and everything else that these commands create"

demo: $(VENV)/.installed
	$(BIN)/celery -A workers enqueue examples/photos --metadata examples/photos/photos.jsonl
	$(BIN)/ldot search \
	  "two people riding horses on the beach" \
	  "a boy doing a trick on a skateboard" \
	  "a man standing next to an elephant" \
	  "a bear and some vultures in the grass" \
	  "a long red bus" \
	  --html demo.html
	@echo "Open $(CURDIR)/demo.html in a browser."

up: $(VENV)/.installed-dev
	@$(BIN)/python -m tests.servers up

down: $(VENV)/.installed-dev
	@$(BIN)/python -m tests.servers down

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup -m "not slow"

test-all: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup

# Each result is a ratio of alternating runs. Comparisons with earlier versions (cold_start.py, snapshots.py, ...) need a
# working tree of one, see benchmarks/README.md.
bench: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.headline --out benchmarks/results/headline.json
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.query --out benchmarks/results/query.json
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.encoding --out benchmarks/results/encoding.json
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.serve --out benchmarks/results/serve.json
	$(BIN)/python -m benchmarks.plots

# Not part of make test, since measuring takes a fifth more time.
coverage: $(VENV)/.installed-dev
	$(BIN)/coverage erase
	OMP_NUM_THREADS=1 $(BIN)/coverage run -m pytest -n $(WORKERS) --dist loadgroup -m "not slow"
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "Open $(CURDIR)/site/index.html, or serve it with full-text search: $(BIN)/mkdocs serve"

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/.installed: pyproject.toml
	@echo "Creating $(VENV) and installing (about two minutes the first time) ..."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --editable ".[dev]"
	@sh tests/install-servers.sh
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/pip install --quiet --editable ".[docs]"
	@touch $@

clean:
	rm -rf $(VENV) ldot-data demo.html site .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache
