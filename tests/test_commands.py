"""The command line, run as a user runs it."""

import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from transformers import GenerationConfig

from commands_mss.main import main
from processing_mss import AudioSourceSeparationPipeline
from tests.tiny import tiny_model, tiny_processor


@pytest.fixture
def song(tmp_path):
    path = tmp_path / "song.wav"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, (44100, 2)), 44100)
    return path


def test_separate_writes_four_files_of_the_songs_rate_and_length(song, tmp_path, model_dir, capsys):
    assert main(["separate", str(song), "--output_dir", str(tmp_path / "out"), "--model", model_dir]) == 0
    names = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert names == ["song/bass.wav", "song/drums.wav", "song/other.wav", "song/vocals.wav"]
    for name in names:
        info = soundfile.info(tmp_path / "out" / name)
        assert (info.samplerate, info.frames, info.subtype) == (44100, 44100, "PCM_16")
    captured = capsys.readouterr()
    assert "song/vocals.wav" in captured.out and "404" in captured.err  # the progress bar counts steps


def test_separate_options(song, tmp_path, model_dir):
    arguments = ["--model", model_dir, "--output_dir", str(tmp_path / "out"), "--stems", "vocals", "--format", "flac"]
    arguments += ["--bits", "24", "--filename", "{stem}/{track}.{ext}", "--do_sample", "--seed", "1"]
    assert main(["separate", str(song.parent), *arguments]) == 0  # a folder
    assert soundfile.info(tmp_path / "out" / "vocals" / "song.flac").subtype == "PCM_24"
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == ["song.flac"]


def test_a_folder_keeps_its_shape_and_its_own_output_is_left_alone(song, tmp_path, model_dir):
    album = tmp_path / "album"
    for disc in ("CD1", "CD2"):
        (album / disc).mkdir(parents=True)
        (album / disc / "01.wav").write_bytes(song.read_bytes())
    arguments = [
        "separate",
        str(album),
        "--output_dir",
        str(album / "stems"),
        "--model",
        model_dir,
        "--stems",
        "vocals",
    ]
    for _ in range(2):
        assert main(arguments) == 0
        written = sorted(str(path.relative_to(album / "stems")) for path in (album / "stems").rglob("*.wav"))
        assert written == ["CD1/01/vocals.wav", "CD2/01/vocals.wav"]


def test_the_saved_generation_config_holds_unless_an_option_says_otherwise(song, tmp_path):
    model = tiny_model()
    model.generation_config = GenerationConfig(do_sample=True, top_k=3)
    AudioSourceSeparationPipeline(model=model, processor=tiny_processor()).save_pretrained(tmp_path / "model")
    files = {}
    for name, options in {"a": ["--seed", "1"], "b": ["--seed", "2"], "c": ["--no-do_sample"]}.items():
        arguments = ["separate", str(song), "--model", str(tmp_path / "model"), "--output_dir", str(tmp_path / name)]
        assert main([*arguments, "--stems", "vocals", *options]) == 0
        files[name] = (tmp_path / name / "song" / "vocals.wav").read_bytes()
    assert len(set(files.values())) == 3


def test_a_bad_file_does_not_stop_the_others_and_leaves_nothing(song, tmp_path, model_dir, capsys):
    bad = tmp_path / "text.wav"
    bad.write_text("not audio")
    out = tmp_path / "out"
    assert main(["separate", str(bad), str(song), "--output_dir", str(out), "--model", model_dir]) == 1
    assert "error: Cannot read" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["song"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.wav"], "no such file"),
        (["{song}", "--stems", "guitar"], "guitar"),
        (["{song}", "--filename", "{track}.{ext}"], "would both write"),
        (["{song}", "--filename", "{title}.wav"], "--filename may hold"),
        (["{song}", "--filename", "{track.name}/{stem}.wav"], "--filename may hold"),
        (["{song}", "--filename", "../{stem}.wav"], "no file inside"),
        (["{song}", "--filename", "/tmp/{stem}.wav"], "no file inside"),
        (["{song}", "{song}"], "would both write"),
        (["{song}", "--format", "flac", "--bits", "32f"], "use wav"),
        (["{song}", "--temperature", "0.5"], "do_sample=True"),
        (["{song}", "--device", "cuda:99"], "CUDA" if not torch.cuda.is_available() else "device"),
        (["{song}", "--device", "banana"], "banana"),
        (["{song}", "--window_s", "inf"], "window_s"),
        (["{empty}"], "No audio file"),
    ],
)
def test_errors_are_one_line_and_leave_no_folder_behind(song, tmp_path, model_dir, capsys, arguments, message):
    (tmp_path / "empty").mkdir()
    places = {"song": song, "empty": tmp_path / "empty"}
    filled = [a.format(**places) if a in ("{song}", "{empty}") else a for a in arguments]
    out = tmp_path / "out"
    assert main(["separate", *filled, "--output_dir", str(out), "--model", model_dir]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert message in line
    assert not out.exists() or list(out.rglob("*")) == []


def test_a_model_that_is_none_is_named(song, tmp_path, capsys):
    assert main(["separate", str(song), "--model", str(tmp_path), "--output_dir", str(tmp_path / "out")]) == 1
    assert "error" in capsys.readouterr().err


def test_prepare_writes_a_manifest_and_reports_what_it_skips(song, tmp_path, capsys):
    for name in ("good", "bad"):
        (tmp_path / "songs" / name).mkdir(parents=True)
    song.rename(tmp_path / "songs" / "good" / "vocals.wav")
    (tmp_path / "songs" / "bad" / "drums.wav").write_text("not audio")
    arguments = ["prepare", "stems", str(tmp_path / "songs"), "--output_dir", str(tmp_path / "out")]
    assert main([*arguments, "--licence", "CC0-1.0"]) == 1
    assert "1 songs written, 0 already there, 1 skipped" in capsys.readouterr().out
    assert '"licence": "CC0-1.0"' in (tmp_path / "out" / "manifest.jsonl").read_text()
    assert main(["prepare", "musdb18", str(tmp_path), "--output_dir", str(tmp_path / "none")]) == 1
    assert "error: No songs in" in capsys.readouterr().err
    arguments = ["prepare", "pseudo-label", str(tmp_path), "--output_dir", str(tmp_path / "none")]
    assert main([*arguments, "--device", "banana"]) == 1
    assert "pseudo-label: error:" in capsys.readouterr().err


def test_help_teaches_and_needs_no_torch():
    code = (
        "import sys; from commands_mss.main import main\ntry: main(['separate', '--help'])\nexcept SystemExit: pass\n"
    )
    code += "assert 'torch' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "mss-lm separate song.mp3" in result.stdout and "--stems" in result.stdout
