# setup: virtual environment and install. demo: separate a real song. test, check: what CI runs, with its tools.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev
# A real song with a free licence for this use lies inside the stempeg package (CC BY-NC-SA); it is read from there.
DEMO_SONG = $$($(BIN)/python -c "from importlib.util import find_spec; \
	print(find_spec('stempeg').submodule_search_locations[0] + '/data/The Easton Ellises - Falcon 69.stem.mp4')")

.PHONY: setup demo test check

setup: $(STAMP)

$(STAMP): setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable . stempeg
	touch $(STAMP)

# pyworld has no wheels: where no compiler is at hand, the tests of singing are skipped.
$(DEV_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps tinysoundfont
	$(BIN)/python -m pip install --quiet pyworld || echo "pyworld could not be built: some tests will be skipped"
	touch $(DEV_STAMP)

demo: setup
	$(BIN)/mss-lm separate "$(DEMO_SONG)" --output_dir demo_output
	@echo "Listen to the stems in demo_output/"

test: $(DEV_STAMP)
	$(BIN)/python -m pytest

check: $(DEV_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
