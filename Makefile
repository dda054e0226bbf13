# The habits of this project. Each target makes .venv if it is missing, so a fresh clone needs only python3.11, pip and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Without compiled files, each of the many processes of the tests compiles all of mfmd again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo check quick test nightly durations soak lint lock format bench bench-step bench-serving clean help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@

demo: $(STAMP)  ## the whole job on drawn street scenes, about five minutes
	$(BIN)/mfmd demo

# Two more than there are cores: often a test waits for a process or a clock (507 s with one more, 477 s with two).
PYTEST := $(BIN)/python -m pytest -n 4 --dist worksteal
ROOMS ?= tests/configs tests/storage tests/adapters tests/daemon
check: $(STAMP)  ## lint, types and the quick tests of the rooms beside each other, within 90 seconds (ROOMS=tests/storage)
	$(MAKE) --no-print-directory --jobs=2 lint quick

quick: $(STAMP)
	$(PYTEST) -q -m "not slow" $(ROOMS)

test: $(STAMP)  ## every test but the matrices of nightly, on both cores, within 8 minutes
	$(PYTEST)

nightly: soak  ## every test with its whole matrix, after the soak
	$(PYTEST) -m "nightly or not nightly"

durations: $(STAMP)  ## measure all of `make test` again and write tests/slow.txt (on a quiet machine)
	$(PYTEST) --write-slow

KILLS ?= 1000
SWAPS ?= 1000
soak: $(STAMP)  ## 1,000 kills of ingest at random moments, then 1,000 swaps under load (KILLS=n SWAPS=n)
	$(BIN)/python -m tests.faults.soak --kills $(KILLS)
	$(BIN)/python -m tests.daemon.serving.swap_soak --swaps $(SWAPS)

lint: $(STAMP)  ## ruff, format, codespell and mypy --strict
	$(BIN)/codespell .
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lock: $(STAMP)  ## pin what is installed in .venv: constraints.txt
	(grep '^#' constraints.txt; $(BIN)/pip freeze --all --exclude pip --exclude-editable | sed 's/+cpu$$//') > constraints.new
	mv constraints.new constraints.txt && touch $(STAMP)

format: $(STAMP)  ## let ruff rewrite the tree
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

DATA ?= ../shared/data/camvid
bench: $(STAMP)  ## CamVid day to dusk through the real daemon (DATA=path)
	$(BIN)/python benchmarks/day2dusk.py --data $(DATA)

SIZE ?= tiny
bench-step: $(STAMP)  ## time of a training step of every recipe, with and without MFM (SIZE=tiny, b0 or b5)
	$(BIN)/python benchmarks/step_time.py --size $(SIZE)

bench-serving: $(STAMP)  ## throughput, swaps, rollback and ingest under load (SWAPS=n; peers: see the script)
	$(BIN)/python benchmarks/serving.py --swaps $(SWAPS)

clean:  ## remove the environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info build
