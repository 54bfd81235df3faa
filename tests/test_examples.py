"""The scripts of `examples/` as a user runs them; `transformers_api.py` is in `test_hub.py`."""

import re
import shutil

import numpy as np
import pytest
import soundfile
import torch
import yaml

from commands_mss.main import main as mss_lm
from data_mss.manifest import STEMS, read_manifest
from evaluation_mss.signal_metrics import usdr
from examples import evaluate_stems, finetune_own_stems, karaoke
from modeling_mss import MssForConditionalGeneration
from processing_mss import AudioSourceSeparationPipeline, read_audio, write_audio
from tests.test_training import read_log
from tests.tiny import masked_options, tiny_codec, tiny_model, tiny_processor

RATE = 44100
STEP = 2**-15  # of 16 bits


@pytest.fixture(scope="module")
def masked_dir(tmp_path_factory):
    """A tiny separator with masks, and the whole codec it is over in `codec/`."""
    folder = tmp_path_factory.mktemp("masked")
    codec, model = tiny_codec(), tiny_model(**masked_options([8, 12]))
    half = model.codec.state_dict()
    model.codec.load_state_dict({name: value for name, value in codec.state_dict().items() if name in half})
    AudioSourceSeparationPipeline(model=model, processor=tiny_processor(model.config)).save_pretrained(folder)
    codec.save_pretrained(folder / "codec")
    return folder


@pytest.fixture(scope="module")
def stems_folder(tmp_path_factory):
    """Three songs of 2 s in stereo; the first has no bass."""
    folder, rng = tmp_path_factory.mktemp("stems"), np.random.default_rng(0)
    time = np.arange(2 * RATE) / RATE
    for number, song in enumerate(("A Song", "B Song", "C Song")):
        for pitch, stem in enumerate(STEMS):
            sound = 0.1 * np.sin(2 * np.pi * 110 * 2 ** (pitch + number / 5) * time) * (time * (pitch + 2) % 1 < 0.5)
            if (song, stem) != ("A Song", "bass"):
                sounds = np.stack([sound, 0.5 * sound]) + 0.003 * rng.standard_normal((2, len(time)))
                write_audio(folder / song / f"{stem}.wav", sounds.astype(np.float32), RATE)
    return folder


def test_karaoke_is_the_song_without_its_voice(stems_folder, masked_dir, tmp_path, capsys):
    songs, command_line = tmp_path / "songs", tmp_path / "command_line"
    song = sum(read_audio(path)[0] for path in sorted((stems_folder / "B Song").glob("*.wav")))
    write_audio(songs / "plain.wav", song, RATE)
    write_audio(songs / "loud.wav", 5 * song, RATE, bits="32f")  # beyond full scale
    soundfile.write(songs / "coded.ogg", song.T, RATE)
    options = ["--model", str(masked_dir)]
    assert karaoke.main([str(songs), "--output_dir", str(tmp_path / "sung"), *options]) == 0
    arguments = [str(songs), "--output_dir", str(command_line), "--two_stems", "vocals", "--format", "flac", *options]
    assert mss_lm(["separate", *arguments]) == 0
    for name in ("plain", "loud", "coded"):
        ours, rate = read_audio(tmp_path / "sung" / f"{name}.flac")
        assert rate == RATE and ours.shape == song.shape
        np.testing.assert_array_equal(ours, read_audio(command_line / name / "no_vocals.flac")[0])
    plain, vocals = (
        read_audio(path)[0] for path in (tmp_path / "sung" / "plain.flac", command_line / "plain" / "vocals.flac")
    )
    assert np.abs(vocals).max() > 100 * STEP
    np.testing.assert_allclose(plain, song - vocals, atol=1.5 * STEP)
    capsys.readouterr()

    # What cannot be done is told, nothing is replaced, and the other songs are separated.
    (songs / "broken.mp3").write_bytes(b"no audio")
    shutil.copy(songs / "plain.wav", songs / "coded.wav")
    (tmp_path / "sung" / "coded.flac").unlink()
    assert karaoke.main([str(songs), "--output_dir", str(tmp_path / "sung"), *options]) == 1
    printed = capsys.readouterr()
    assert "1 of 5 songs" in printed.out
    errors = [line for line in printed.err.splitlines() if ": error: " in line]
    assert len(errors) == 4 and sum("is there already" in line for line in errors) == 3
    assert re.search(r"broken\.mp3: error: .*Cannot read", printed.err)
    assert soundfile.info(tmp_path / "sung" / "coded.flac").frames == 2 * RATE


def test_finetuning_trains_on_some_songs_and_scores_others(stems_folder, masked_dir, tmp_path, capsys, monkeypatch):
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "finetuned"
    crops = {"crop_s": 0.96, "batch_size": 2}
    masks = {
        "crops": crops,
        "max_steps": 3,
        "validation_crops": 2,
        "optimizer": {"learning_rate": 1e-2, "warmup_steps": 1},
    }
    recipe.write_text(yaml.safe_dump({"base": str(finetune_own_stems.RECIPE), "masks": masks}))
    options = ["--model", str(masked_dir), "--config", str(recipe), "--output_dir", str(out)]
    # One process has one precision: that of the other tests, whatever this processor could.
    monkeypatch.setattr(finetune_own_stems, "fitting_dtype", lambda device: torch.float32)
    assert finetune_own_stems.main([str(stems_folder), "--held_out", "B Song", *options]) == 0
    printed = capsys.readouterr().out
    assert "Held out, for scores alone: B Song\n" in printed
    splits = {song.id: song.split for song in read_manifest(out / "packed")}
    assert splits == {"A Song": "train", "B Song": "validation", "C Song": "train"}
    assert read_log(out / "training").keys() == {3}

    tuned = out / "training" / "final"
    card = (tuned / "README.md").read_text()
    assert f"It went on from `{masked_dir.parent.name}/{masked_dir.name}`" in card and str(masked_dir) not in card
    before, after = (MssForConditionalGeneration.from_pretrained(path).state_dict() for path in (masked_dir, tuned))
    changed = {name.split(".")[0] for name, weight in before.items() if not torch.equal(weight, after[name])}
    assert changed == {"encoder"}
    rows = {name: re.search(rf"^{name} +([-\d. ]+)$", printed, re.MULTILINE)[1].split() for name in ("before", "after")}
    assert len(rows["before"]) == len(STEMS) + 1 and rows["before"] != rows["after"]
    is_better = float(rows["after"][-1]) > float(rows["before"][-1])
    assert (f"mss-lm separate song.mp3 --model {tuned}" in printed) == is_better
    song = [read_audio(stems_folder / "B Song" / f"{stem}.wav")[0] for stem in STEMS]
    quarter = re.search(r"^a quarter of the mixture +(\S+)", printed, re.MULTILINE)[1]
    assert float(quarter) == pytest.approx(usdr(sum(song) / 4, song[0]), abs=0.006)


def test_finetuning_refuses_what_would_flatter_or_lose_something(stems_folder, masked_dir, tmp_path, capsys):
    alone, out = tmp_path / "alone", tmp_path / "out"
    shutil.copytree(stems_folder / "B Song", alone / "B Song")
    assert finetune_own_stems.main([str(alone), "--output_dir", str(out)]) == 1
    assert "Add a song" in capsys.readouterr().err
    assert finetune_own_stems.main([str(stems_folder), "--output_dir", str(out)]) == 1
    assert "is not empty" in capsys.readouterr().err
    options = [str(stems_folder), "--output_dir", str(tmp_path / "new")]
    assert finetune_own_stems.main([*options, "--held_out", "D Song"]) == 1
    assert "got ['D Song']" in capsys.readouterr().err


def test_stems_of_another_program_are_scored(stems_folder, tmp_path, capsys):
    """Noise at a known level below each stem, uncorrelated with it: both scores are that level."""
    theirs, rng = tmp_path / "theirs", np.random.default_rng(0)
    levels = {"A Song": {"vocals": 10.0, "drums": 20.0}, "B Song": {"vocals": 14.0, "drums": 20.0}}
    for song, level_db in levels.items():
        for stem, level in level_db.items():
            true, _ = read_audio(stems_folder / song / f"{stem}.wav")
            noise = rng.standard_normal(true.shape)
            noise -= true * (noise * true).sum() / (true * true).sum()
            noise *= np.linalg.norm(true) / np.linalg.norm(noise) * 10 ** (-level / 20)
            write_audio(theirs / song / f"{stem}.wav", (true + noise).astype(np.float32), RATE, bits="32f")
    references = shutil.copytree(stems_folder, tmp_path / "true", ignore=shutil.ignore_patterns("C Song"))
    assert evaluate_stems.main([str(references), str(theirs)]) == 0
    lines = capsys.readouterr().out.splitlines()
    for score in ("usdr", "si_sdr"):
        assert f"| {score} | theirs | 12.00 [10.00, 14.00] | 20.00 [20.00, 20.00] | - | - | - |" in lines
    songs = {song: [read_audio(path)[0] for path in sorted((references / song).glob("*.wav"))] for song in levels}
    drums = [usdr(sum(stems) / 4, read_audio(references / song / "drums.wav")[0]) for song, stems in songs.items()]
    row = next(line for line in lines if line.startswith("| usdr | a quarter of the mixture |"))
    assert float(row.split(" | ")[3].split()[0]) == pytest.approx(sum(drums) / 2, abs=0.006)

    # What is missing or does not fit is told, and the rest is scored.
    (theirs / "A Song" / "drums.wav").unlink()
    short, _ = read_audio(theirs / "B Song" / "vocals.wav")
    write_audio(theirs / "B Song" / "vocals.wav", short[:, :RATE], RATE)
    assert evaluate_stems.main([str(stems_folder), str(theirs)]) == 1
    printed = capsys.readouterr()
    assert "| usdr | theirs | 10.00 | - | - | - | - |" in printed.out
    errors = [line for line in printed.err.splitlines() if "error: " in line]
    assert len(errors) == 2 and "B Song is not scored" in errors[0] and "vocals.wav is too short" in errors[0]
    assert "C Song is not scored" in errors[1] and "has no stems of the song" in errors[1]
    shutil.copytree(stems_folder / "B Song", theirs / "B Song", dirs_exist_ok=True)
    shutil.copy(stems_folder / "A Song" / "other.wav", theirs / "A Song")
    assert evaluate_stems.main([str(references), str(theirs)]) == 1
    (error,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]  # what is there is no error
    assert "A Song has no drums in" in error
    for folders in ([tmp_path / "nothing", theirs], [references, tmp_path / "nothing"]):
        with pytest.raises(SystemExit, match="2"):
            evaluate_stems.main([str(folder) for folder in folders])
