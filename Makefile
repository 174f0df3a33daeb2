# Two commands matter: `make demo` and `make test`. Both need only Python (3.10 or newer) and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two test processes with one compute thread each are faster than one with two on a small machine. A third is faster
# still (the one with the Milvus server mostly waits), at the price of tests that compete for two cores.
WORKERS ?= 2

.PHONY: help demo test test-all coverage docs lint clean

help:
	@echo "make demo      ingest examples/photos, search it with five texts, write demo.html"
	@echo "make test      lint, type check and all tests (starts the servers that it needs)"
	@echo "make test-all  the same and the slow tests: more random calls, other index kinds (20 minutes)"
	@echo "make coverage  the tests of make test, measured: fails below the floor in pyproject.toml"
	@echo "make docs      the documentation as a site in site/, with the reference; a warning is an error"
	@echo "make lint      the checks alone: ruff and mypy"

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

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup -m "not slow"

test-all: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup

# Apart from make test, which it would slow down by a fifth.
coverage: $(VENV)/.installed-dev
	$(BIN)/coverage erase
	OMP_NUM_THREADS=1 $(BIN)/coverage run -m pytest -n $(WORKERS) --dist loadgroup -m "not slow"
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "Open $(CURDIR)/site/index.html, or read it with the search: $(BIN)/mkdocs serve"

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
