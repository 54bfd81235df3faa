"""The stage masks as a user runs it: it learns, resumes, keeps its best; the language model goes on from it."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import pipeline

import mss_lm  # noqa: F401
import train_accelerate
from data_mss.manifest import ManifestWriter, Song
from evaluation_mss.calibration import calibrate
from modeling_mss import MssConfig, MssForConditionalGeneration
from tests.test_training import arguments, read_log
from tests.tiny import masked_options, small_corpus, tiny_codec, tiny_training_config
from training_mss import recipe, run_state
from training_mss.configuration import load_config
from training_mss.run_state import last_state

MODEL = {name: value for name, value in masked_options().items() if name != "conv_channels"}
SETTINGS = [
    *(f"separator.model.{name}={str(value).lower()}" for name, value in MODEL.items()),
    "separator.model.encoder_config.conv_channels=[8, 12]",
    "separator.freeze_encoder=true",
    "masks.crops.crop_s=0.96",
    "masks.crops.batch_size=4",
    "masks.crops.remix_probability=0.5",
    "masks.crops.audible_probability=0.7",
    "masks.crops.max_semitones=5",
    "masks.crops.source_weights={made: 0.8, backing: 0.2}",
    "masks.optimizer.warmup_steps=1",
    "masks.optimizer.learning_rate=3e-3",
    "masks.mixed_precision=no",
    "masks.ema_decay=0.9",
    "masks.validation_crops=4",
    "masks.generated_crops=1",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Configuration, songs of two sources for validation, one known as a sum, a codec, and a run of twelve steps."""
    folder = tmp_path_factory.mktemp("masks")
    tiny_training_config(folder)
    small_corpus(folder / "corpus")
    small_corpus(folder / "other", songs=0)
    manifest = folder / "other" / "manifest.jsonl"
    manifest.write_text(manifest.read_text().replace('"made"', '"elsewhere"').replace("song0", "other0"))
    backing = Song(
        "backing", "train", {"drums+bass+other": [str(folder / "corpus" / "0_drums.npy")]}, 3, 48000, "backing"
    )
    ManifestWriter(manifest).add(backing)
    tiny_codec().save_pretrained(folder / "codec")
    assert train(folder, "masks", "run", max_steps=12) == 0
    return folder


@pytest.fixture(scope="module")
def told(folder) -> Path:
    """A separator of two steps over the masks of the run."""
    assert train(folder, "separator", "told", "--init_from", str(folder / "run" / "final"), max_steps=2) == 0
    return folder / "told"


def train(folder: Path, stage: str, name: str, *more: str, max_steps: int, settings: tuple[str, ...] = ()) -> int:
    given = arguments(stage, folder / "training_tiny.yaml", folder / "corpus", folder / name, *more)
    given.insert(given.index("--output_dir"), str(folder / "other"))
    given += ["--codec", str(folder / "codec"), "--max_steps", str(max_steps), "--set", *SETTINGS, *settings]
    return train_accelerate.main(given)


def test_it_learns_and_judges_itself_on_every_source_alike(folder):
    log, scores = read_log(folder / "run"), read_log(folder / "run", "validation")
    assert log[12]["train/loss"] < 0.7 * log[1]["train/loss"]
    last = scores[12]
    assert last["validation/usdr"] > scores[4]["validation/usdr"]
    of_sources = [last["validation/usdr/source/elsewhere"], last["validation/usdr/source/made"]]
    assert last["validation/usdr"] == pytest.approx(sum(of_sources) / 2)


def test_what_it_exports_separates_by_masks_alone(folder):
    separate = pipeline("audio-source-separation", model=str(folder / "run" / "final"))
    assert separate.model.config.outputs == ["masked"]
    song = torch.randn(2, 48000).numpy()
    stems = separate(song, sampling_rate=48000)
    assert sum(stem["audio"] for stem in stems) == pytest.approx(song, abs=1e-5)
    with pytest.raises(ValueError, match="what this checkpoint is for"):
        separate(song, sampling_rate=48000, output="generated")


def test_only_the_encoder_is_trained_and_kept(folder):
    weights = load_file(folder / "run" / "best" / "separator.safetensors")
    assert weights and all(name.startswith("encoder.") for name in weights)
    checkpoint = folder / "run" / "checkpoints" / "step-00000012" / "separator.safetensors"
    assert weights.keys() == load_file(checkpoint).keys()


def test_a_resumed_run_is_the_run_that_was_not_stopped(folder):
    assert train(folder, "masks", "resumed", max_steps=6) == 0
    assert train(folder, "masks", "resumed", "--resume", max_steps=12) == 0
    assert read_log(folder / "resumed") == read_log(folder / "run")
    # Step 6 was validated too, as the end of the first part.
    whole, parts = read_log(folder / "run", "validation"), read_log(folder / "resumed", "validation")
    assert {step: parts[step] for step in whole} == whole
    ours, theirs = (load_file(folder / name / "final" / "model.safetensors") for name in ("run", "resumed"))
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())


def test_the_best_weights_are_exported_not_the_last(folder):
    """A rate that grows and destroys what was learned: the export has the weights from before.

    There are fewer crops for validation than sources of songs, which must not keep any from being the best.
    """
    growing = ("masks.optimizer.decay=2.5", "masks.optimizer.max_grad_norm=1e9", "masks.ema_decay=0.01")
    settings = (*growing, "masks.validation_crops=1", "masks.crops.source_weights={made: 1, backing: 0}")
    assert train(folder, "masks", "spoilt", max_steps=12, settings=settings) == 0
    cards = [(folder / run / "final" / "README.md").read_text() for run in ("run", "spoilt")]
    assert ["| backing |" in card for card in cards] == [True, False]  # what is never drawn is no data of the weights
    scores = {step: record["validation/usdr"] for step, record in read_log(folder / "spoilt", "validation").items()}
    state = last_state(folder / "spoilt")
    assert 0 < state.best_step == max(scores, key=scores.get) < 12
    assert state.best_scores["usdr"] == pytest.approx(max(scores.values()))
    best = load_file(folder / "spoilt" / "best" / "separator.safetensors")
    exported = load_file(folder / "spoilt" / "final" / "model.safetensors")
    assert all(torch.equal(exported[name], weight) for name, weight in best.items())


def test_the_best_weights_on_a_full_disk_are_an_error_and_no_half_file(folder, capsys, monkeypatch):
    def half_a_file(state, path):
        path.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(run_state, "save_file", half_a_file)
    assert train(folder, "masks", "full", max_steps=1) == 1
    best = folder / "full" / "best"
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"Cannot write {best / 'separator.safetensors'} (Error while serializing" in error
    assert not list(best.iterdir())


def test_the_language_model_goes_on_from_the_masks_and_leaves_them_alone(folder, told):
    model = MssForConditionalGeneration.from_pretrained(told / "final")
    assert model.config.outputs == ["masked", "filtered", "generated"]
    masks = load_file(folder / "run" / "best" / "separator.safetensors")
    state = model.state_dict()
    assert all(torch.equal(state[name], weight) for name, weight in masks.items())
    record = json.loads((told / "log.jsonl").read_text().splitlines()[0])
    assert "train/loss/drums/00" in record and "train/mask_loss" not in record


def test_calibration_chooses_by_validation_songs_and_writes_what_it_chose(folder, told):
    small_corpus(folder / "silent", songs=0)  # nothing to be scored
    for path in (folder / "silent").glob("*.npy"):
        np.save(path, np.zeros_like(np.load(path)))
    manifests = [str(folder / name) for name in ("corpus", "other", "silent")]
    target = shutil.copytree(told / "final", folder / "calibrated")
    result = calibrate(target, manifests, excerpt_s=1.0, with_tokens=True)
    for field, scores in (("mask_temperature", result["masked"]), ("token_share", result["filtered"])):
        assert result[field] == max(scores, key=lambda value: scores[value]["mean"])
    of_sources = result["masked"][1.0]
    assert of_sources["mean"] == pytest.approx((of_sources["made"] + of_sources["elsewhere"]) / 2)
    config = MssConfig.from_pretrained(target)
    assert [config.mask_temperature, config.outputs] == [result["mask_temperature"], result["outputs"]]
    with pytest.raises(ValueError, match="what this checkpoint is for"):  # its language model is not trained yet
        calibrate(folder / "run" / "final", manifests, excerpt_s=1.0, with_tokens=True)
    target = shutil.copytree(folder / "run" / "final", folder / "calibrated_masks")
    result = calibrate(target, manifests, excerpt_s=1.0, with_tokens=False)
    assert MssConfig.from_pretrained(target).outputs == result["outputs"] == ["masked"] and "token_share" not in result


def test_masks_and_codes_learn_together_unless_the_encoder_is_frozen(folder):
    settings = ("separator.freeze_encoder=false", "separator.crops.input=bank", "separator.crops.bank_size=4")
    start = ["--init_from", str(folder / "run" / "best")]
    assert train(folder, "separator", "both", *start, max_steps=2, settings=settings) == 0
    assert "train/mask_loss" in read_log(folder / "both")[1]
    before = load_file(folder / "run" / "best" / "separator.safetensors")
    after = load_file(folder / "both" / "final" / "model.safetensors")
    assert any(not torch.equal(after[name], weight) for name, weight in before.items())


def test_a_model_without_masks_is_refused(folder, capsys):
    settings = ("separator.model.mask_head=false", "separator.model.masked_conditioning=false")
    assert train(folder, "masks", "none", max_steps=1, settings=settings) == 1
    assert "mask_head: true" in capsys.readouterr().err
    assert train(folder, "separator", "none", max_steps=1) == 1  # a new encoder, frozen
    assert "a new one knows nothing" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"masks\.model"):
        load_config(folder / "training_tiny.yaml", ["masks.model.hidden_size=1"])
    with pytest.raises(ValueError, match="audible_probability"):  # a bank would ignore it
        bank = ["separator.crops.input=bank", "separator.crops.remix_probability=0.5"]
        load_config(folder / "training_tiny.yaml", [*bank, "separator.crops.audible_probability=0.7"])
    assert not MssConfig().mask_head  # the paper's


def test_a_recipe_runs_its_stages_and_has_nothing_left_to_do_afterwards(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(recipe, "run_stage", lambda command: train_accelerate.main(command[2:]))  # in this process
    given = arguments("", folder / "training_tiny.yaml", folder / "corpus", tmp_path / "recipe")[2:]
    given.insert(given.index("--output_dir"), str(folder / "other"))
    given += ["--codec", str(folder / "codec"), "--set", *SETTINGS, "masks.max_steps=3", "separator.max_steps=2"]
    minutes = ["--minutes", "masks=0.001", "separator=0.001"]  # half a minute at least: the steps end first
    assert recipe.main([*given, *minutes]) == 0
    masks = load_file(tmp_path / "recipe" / "masks" / "best" / "separator.safetensors")
    separator = load_file(tmp_path / "recipe" / "separator" / "final" / "model.safetensors")
    assert all(torch.equal(separator[name], weight) for name, weight in masks.items())
    capsys.readouterr()
    assert recipe.main([*given, *minutes]) == 0 and "had their minutes" in capsys.readouterr().out
    assert [read_log(tmp_path / "recipe" / stage).keys() for stage in recipe.STAGES] == [{1, 2, 3}, {1, 2}]
    with pytest.raises(SystemExit):
        recipe.main([*given, "--minutes", "codec=1"])


def test_ctrl_c_reaches_a_stage_of_a_recipe_once():
    """A terminal sends it to the whole group; a second signal would cost the stage its checkpoint."""
    stage = """
import signal, sys, time
seen = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: seen.append(number))
print("ready", flush=True)
while not seen:
    time.sleep(0.05)
time.sleep(0.5)
print(len(seen), flush=True)
"""
    # Where the tests themselves run in the background of a shell, SIGINT is ignored, and what they start inherits that.
    run = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from training_mss.recipe import run_stage
sys.exit(run_stage([sys.executable, "-c", {stage!r}]))
"""
    process = subprocess.Popen([sys.executable, "-c", run], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=60)[0] == "1\n" and process.returncode == recipe.INTERRUPTED
