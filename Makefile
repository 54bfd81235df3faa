# setup: virtual environment and install. demo: separate a real song. test, check: what CI runs, with its tools.
# wheel: what could be published, in dist/. wheel_test: install it into an environment of its own and use it elsewhere.
# robustness: odd and malformed inputs through command line, pipeline and Space, about half an hour; writes docs/robustness.md.
# train_tiny: render songs and train HuBERT, codec and separator on two CPU cores, in about 20 minutes.
# train_demo: train masks and separator of configs/demo.yaml, in the background; the same command goes on with it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev
# A real song with a free licence for this use lies inside the stempeg package (CC BY-NC-SA); it is read from there.
DEMO_SONG = $$($(BIN)/python -c "from importlib.util import find_spec; \
	print(find_spec('stempeg').submodule_search_locations[0] + '/data/The Easton Ellises - Falcon 69.stem.mp4')")

SOUNDFONT ?= $(firstword $(wildcard /usr/share/sounds/sf2/FluidR3_GM.sf2 /usr/share/sounds/sf3/MuseScore_General_Lite.sf3))
TRAIN = $(BIN)/python train_accelerate.py --config configs/tiny.yaml --manifests runs/tiny/songs --num_workers 1 \
	--validation_steps 300 --checkpointing_steps 300 --resume

# Songs as docs/checkpoint.md makes them, and minutes of training.
SONGS ?= data/packed
MINUTES ?= masks=60 separator=30
# By its command line: the number of a process that has ended may be another one's by now.
IS_RUNNING = grep -qs training_mss.recipe /proc/$$(cat runs/demo/pid 2>/dev/null)/cmdline

.PHONY: setup demo test check wheel wheel_test robustness train_tiny train_demo stop_demo

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
	$(BIN)/python -m pytest -n auto --dist worksteal

check: $(DEV_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

wheel: $(DEV_STAMP)
	rm -rf dist
	$(BIN)/python -m build --outdir dist . >/dev/null

# Away from the sources, which python would import instead. A Space that is uploaded from there has the same files.
wheel_test: wheel
	@set -e; unset PYTHONPATH; folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	$(PYTHON) -m venv "$$folder/venv"; \
	"$$folder/venv/bin/python" -m pip install --quiet dist/*.whl; \
	ln -s "$(DEMO_SONG)" "$$folder/song.mp4"; \
	$(BIN)/python -m commands_mss.main push --space --dry_run me/demo >"$$folder/expected.txt"; \
	cd "$$folder"; export PATH="$$folder/venv/bin:$$PATH"; \
	mss-lm separate song.mp4; \
	for stem in vocals drums bass other; do test -s separated/song/$$stem.wav; done; \
	mss-lm push --space --dry_run me/demo | diff expected.txt -; \
	echo "The wheel works by itself."

robustness: $(DEV_STAMP)
	$(BIN)/python -m tests.robustness

train_tiny: $(DEV_STAMP)
	@test -n "$(SOUNDFONT)" || { echo "No soundfont: apt install fluid-soundfont-gm, or SOUNDFONT=file.sf2"; exit 1; }
	$(BIN)/mss-lm prepare render --hours 0.25 --soundfont $(SOUNDFONT) --output_dir runs/tiny/rendered
	$(BIN)/mss-lm prepare pack runs/tiny/rendered --output_dir runs/tiny/songs
	$(TRAIN) --stage hubert --output_dir runs/tiny/hubert
	$(TRAIN) --stage codec --hubert runs/tiny/hubert/final --output_dir runs/tiny/codec
	$(TRAIN) --stage separator --codec runs/tiny/codec/final --output_dir runs/tiny/separator
	$(BIN)/mss-lm separate "$(DEMO_SONG)" --model runs/tiny/separator/final --output_dir runs/tiny/demo

train_demo: $(DEV_STAMP)
	@test -e $(SONGS)/manifest.jsonl || { echo "No songs in $(SONGS): docs/checkpoint.md says how to make them."; exit 1; }
	@mkdir -p runs/demo
	@if $(IS_RUNNING); then echo "It is running already."; exit 1; fi
	@nohup nice -n 10 $(BIN)/python -m training_mss.recipe --config configs/demo.yaml --manifests $(SONGS) \
		--codec pretrained_mss/codec --output_dir runs/demo --minutes $(MINUTES) --num_workers 0 --validation_steps 100 \
		--checkpointing_steps 100 >>runs/demo/log.txt 2>&1 & echo $$! >runs/demo/pid
	@echo "Training in the background: tail -f runs/demo/log.txt; make stop_demo ends it with a checkpoint."

stop_demo:
	@$(IS_RUNNING) || { echo "No training is running."; exit 1; }
	@kill -TERM $$(cat runs/demo/pid) && echo "It ends after this step; make train_demo goes on."
