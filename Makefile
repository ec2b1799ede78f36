# Needs Python >= 3.11 and make; everything else goes into .venv.
PYTHON ?= python3
ARGS ?= experiment=pong_fast
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --constraint constraints.txt
# A file's tests stay together: they share what is expensive to make. The order is conftest.py's.
WORKERS := --numprocesses 2 --dist loadfile --no-loadscope-reorder

.PHONY: train test-fast test test-all lint docs audit bench bench-check clean

train: $(VENV)/.installed
	$(BIN)/python -m ppo1_lightning $(ARGS)

# Starts no process and compiles nothing; hypothesis takes three seconds to be imported
test-fast: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(WORKERS) -m "not slow and not heavy" --ignore tests/test_fuzz.py

test: lint docs
	$(BIN)/python -m pytest $(WORKERS) -m "not slow"

test-all: lint docs
	$(BIN)/python -m pytest $(WORKERS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/pyright --pythonplatform Darwin ppo1_lightning
	$(BIN)/pyright --pythonplatform Windows ppo1_lightning
	$(BIN)/lint-imports --no-logo

# site/index.html; a broken link is an error
docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

# Known vulnerabilities of the pinned packages; fails, too, where PyPI's advisories cannot be had
audit:
	pipx run pip-audit --strict --no-deps --disable-pip --requirement constraints.txt

# Side by side with the other libraries, steady states (one case: make bench ARGS=cartpole) and whole short runs
bench: ARGS =
bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks.setup_peers
	$(BIN)/python -m benchmarks.run $(ARGS)
	$(BIN)/python -m benchmarks.whole

bench-check: $(VENV)/.installed
	$(BIN)/python -m benchmarks.check

clean:
	rm -rf $(VENV) dist build site .pytest_cache .ruff_cache .import_linter_cache

# The last line of each recipe marks its install as finished: without the mark it starts afresh.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -e $@ || $(PYTHON) -m venv --clear $(VENV)
	rm -f $@
	$(PIP) --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	rm -f $@
	$(PIP) --editable ".[dev,docs,sweep,video,play,atari,export,report,wandb,mlflow,comet]"
	touch $@
