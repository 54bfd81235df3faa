"""The command line, run as a user runs it."""

import errno
import itertools
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from filelock import FileLock
from transformers import GenerationConfig

from commands_mss.main import main
from processing_mss import AudioSourceSeparationPipeline, AudioWriter, audio_reader_mss, fitting_dtype
from tests.launching import fork_server
from tests.tiny import masked_options, tiny_model, tiny_processor


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
        assert (info.samplerate, info.frames, info.channels, info.subtype) == (44100, 44100, 2, "PCM_16")
    stems = [soundfile.read(tmp_path / "out" / name)[0] for name in names]
    np.testing.assert_allclose(sum(stems), soundfile.read(song)[0], atol=2.01 * 2**-15)  # each is half a step off
    captured = capsys.readouterr()
    dtype = str(fitting_dtype(torch.device("cpu"))).removeprefix("torch.")
    assert "song.wav: 0:01 in" in captured.out and f"x real time in {dtype}, wrote" in captured.out
    assert "song/vocals.wav" in captured.out and "404" in captured.err  # the progress bar counts steps


def test_separate_options(song, tmp_path, model_dir):
    arguments = ["--model", model_dir, "--output_dir", str(tmp_path / "out"), "--stems", "vocals", "--format", "flac"]
    arguments += ["--bits", "24", "--filename", "{stem}/{track}.{ext}", "--do_sample", "--seed", "1"]
    assert main(["separate", str(song.parent), *arguments]) == 0  # a folder
    assert soundfile.info(tmp_path / "out" / "vocals" / "song.flac").subtype == "PCM_24"
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == ["song.flac"]


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_two_stems_and_what_the_pipeline_can_more(song, tmp_path, model_dir):
    arguments = ["separate", str(song), "--model", model_dir, "--output_dir", str(tmp_path / "out"), "--bits", "32f"]
    arguments += ["--two_stems", "vocals", "--window_s", "0.8", "--overlap", "0.25", "--batch_size", "2"]
    for more in (
        ["--expected", "--overlap", "0.25"],
        ["--num_candidates", "2", "--seed", "1", "--top_k", "5", "--num_codebooks", "2"],
    ):
        assert main([*arguments, *more, "--overwrite"]) == 0
        assert files_in(tmp_path / "out") == ["song/no_vocals.wav", "song/vocals.wav"]
        both = [soundfile.read(tmp_path / "out" / name)[0] for name in files_in(tmp_path / "out")]
        np.testing.assert_allclose(sum(both), soundfile.read(song)[0], atol=1e-5)
    assert main([*arguments, "--output", "generated", "--overwrite"]) == 0
    assert soundfile.info(tmp_path / "out" / "song" / "no_vocals.wav").channels == 1


def test_only_what_was_made_from_the_same_song_with_the_same_options_is_left_as_it_is(
    song, tmp_path, model_dir, capsys
):
    out = tmp_path / "out"
    arguments = ["separate", str(song), "--model", model_dir, "--output_dir", str(out), "--window_s", "0.8"]
    vocals, bass = out / "song" / "vocals.wav", out / "song" / "bass.wav"
    vocals.parent.mkdir(parents=True)
    vocals.write_text("mine")
    for stems in (["vocals"], ["vocals", "bass"]):
        assert main([*arguments, "--stems", *stems]) == 1
        assert "not by this program" in capsys.readouterr().err and not bass.exists()
    assert vocals.read_text() == "mine"
    both = [*arguments, "--stems", "vocals", "bass"]
    assert main([*both, "--overwrite"]) == 0
    made = vocals.read_bytes()
    assert soundfile.info(vocals).frames == soundfile.info(bass).frames == 44100

    bass.unlink()  # as after a kill between two renames: what is left is ours, and is made again
    capsys.readouterr()
    assert main(both) == 0 and "wrote" in capsys.readouterr().out
    assert main(both) == 0 and "left as it is" in capsys.readouterr().out
    bass.write_bytes(bass.read_bytes()[:50000])
    assert main(both) == 0 and "wrote" in capsys.readouterr().out and soundfile.info(bass).frames == 44100
    assert main([*both, "--format", "flac", "--filename", "{track}/{stem}.wav"]) == 1
    assert "other options" in capsys.readouterr().err
    warmer = shutil.copytree(model_dir, tmp_path / "warmer")
    config = json.loads((warmer / "config.json").read_text())
    (warmer / "config.json").write_text(json.dumps({**config, "mask_temperature": 3.0}))
    assert main([*both, "--model", str(warmer)]) == 1 and "other options" in capsys.readouterr().err
    assert main([*both, "--output", "generated"]) == 1 and "other options" in capsys.readouterr().err
    other = tmp_path / "other" / "song.wav"
    other.parent.mkdir()
    soundfile.write(other, np.zeros((100, 1)), 44100)
    assert main(["separate", str(other), *both[2:]]) == 1 and "another song" in capsys.readouterr().err
    assert vocals.read_bytes() == made


def test_options_that_change_nothing_in_the_stems_do_not_make_them_others(song, tmp_path, capsys):
    model = tiny_model(**masked_options())
    AudioSourceSeparationPipeline(model=model, processor=tiny_processor(model.config)).save_pretrained(tmp_path / "m")
    arguments = ["separate", str(song), "--model", str(tmp_path / "m"), "--output_dir", str(tmp_path / "out")]
    arguments += ["--format", "mp3"]
    assert main([*arguments, "--seed", "1", "--bits", "24"]) == 0
    assert main([*arguments, "--output", "masked", "--batch_size", "1"]) == 0
    assert "left as it is" in capsys.readouterr().out
    assert main([*arguments, "--overlap", "0.2"]) == 1 and "other options" in capsys.readouterr().err


@pytest.mark.parametrize("link", [None, "symlink_to", "hardlink_to"])
def test_a_stem_never_replaces_a_song(song, tmp_path, model_dir, capsys, link):
    before = song.read_bytes()
    target = song.rename(tmp_path / "vocals.wav") if link is None else tmp_path / "vocals.wav"
    if link:
        getattr(target, link)(song)
    given = song if link else target
    arguments = ["separate", str(given), "--model", model_dir, "--output_dir", str(tmp_path), "--overwrite"]
    assert main([*arguments, "--filename", "{stem}.{ext}"]) == 1
    assert "would replace the song" in capsys.readouterr().err and given.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} <= {"song.wav", "vocals.wav"}


def test_odd_entries_do_not_lose_the_others(song, tmp_path, model_dir, capsys, monkeypatch):
    album = tmp_path / "album"
    for folder in ("empty", "CD1", "locked"):
        (album / folder).mkdir(parents=True)
    (album / "loop").symlink_to(album)
    (album / "none.wav").symlink_to(album / "none.wav")
    (album / "nothing.wav").touch()
    flac = album / "CD1" / "song.flac"
    soundfile.write(flac, soundfile.read(song)[0] / 2, 44100)
    song.rename(album / "CD1" / "song.wav")
    inputs = [str(album / "empty"), str(album), str(album / "CD1" / "song.wav")]
    scandir = os.scandir

    def locked(folder):  # by a patch: permissions do not hold for a superuser
        if not isinstance(folder, int) and os.path.basename(folder) == "locked":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", locked)
    arguments = ["separate", *inputs, "--model", model_dir, "--output_dir", str(album), "--stems", "vocals"]
    assert main([*arguments, "--window_s", "0.8"]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    for text in ("No audio file in", "goes to the same files", "none.wav", "nothing.wav", "Cannot search"):
        assert sum(text in line for line in errors) == 1, (text, errors)
    assert len(errors) == 5
    # The album is its own output folder: the stems of the first run are no songs of the second.
    made = ["CD1/song/vocals.wav"]  # the other was named twice, and left out
    for _ in range(2):
        assert [name for name in files_in(album) if "vocals" in name] == made
        assert main([*arguments, "--window_s", "0.8"]) == 1


def test_damage_is_told_and_strict_refuses_it(song, tmp_path, model_dir, capsys):
    content = song.read_bytes()
    song.write_bytes(content[: len(content) // 2])
    arguments = ["separate", str(song), "--model", model_dir, "--output_dir", str(tmp_path / "out")]
    assert main([*arguments, "--window_s", "0.8", "--strict"]) == 1
    assert "error" in (told := capsys.readouterr().err) and "is damaged" in told and not files_in(tmp_path / "out")
    assert main([*arguments, "--window_s", "0.8"]) == 0
    assert "warning" in (told := capsys.readouterr().err) and "is damaged: lost are the last 0.5" in told


def test_what_a_kill_left_goes_with_the_next_run_and_others_stay(song, tmp_path, model_dir):
    out = tmp_path / "out"
    for name in ("dead", "alive"):
        (out / f".separating-{name}").mkdir(parents=True)
        (out / f".separating-{name}" / "0.wav").touch()
        (out / f".separating-{name}.lock").touch()
    with FileLock(out / ".separating-alive.lock"):
        assert main(["separate", str(song), "--model", model_dir, "--output_dir", str(out), "--stems", "vocals"]) == 0
        assert sorted(path.name for path in out.iterdir()) == [".separating-alive", ".separating-alive.lock", "song"]


@pytest.mark.parametrize("name", [b"...wav", b"s\xffng.wav"])
def test_odd_names_are_names(song, tmp_path, model_dir, capfd, name):
    odd = song.rename(tmp_path / os.fsdecode(name))
    arguments = ["separate", str(odd), "--model", model_dir, "--output_dir", str(tmp_path / "out"), "--stems", "vocals"]
    assert main([*arguments, "--window_s", "0.8"]) == 0
    assert "wrote" in capfd.readouterr().out
    (folder,) = (tmp_path / "out").iterdir()
    assert [path.name for path in folder.iterdir()] == ["vocals.wav"]


def test_tracebacks_are_shown_to_those_who_ask_for_them(monkeypatch, capsys, song, tmp_path, model_dir):
    arguments = ["separate", str(song), "--model", model_dir, "--output_dir", str(tmp_path / "out"), "--window_s", "-1"]
    for debug in ("0", "1"):
        monkeypatch.setenv("MSS_DEBUG", debug)
        assert main(arguments) == 1
        assert ("Traceback" in capsys.readouterr().err) == (debug == "1")
    monkeypatch.setenv("MSS_DEBUG", "0")
    monkeypatch.setattr("commands_mss.separate.find_songs", lambda *arguments: {}["a mistake"])
    assert main(arguments) == 1
    assert "KeyError: 'a mistake' (a mistake of this program" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("clip_mode", "expected"), [("rescale", 1 / 1.01), ("clamp", 1.0), ("none", 1.0), (None, 1 / 1.01)]
)
def test_peaks_that_16_bits_cannot_hold(tmp_path, model_dir, clip_mode, expected):
    song, out = tmp_path / "loud.wav", tmp_path / "out"
    soundfile.write(song, 8 * np.random.default_rng(0).uniform(-1, 1, (20000, 2)), 44100, subtype="FLOAT")
    arguments = ["separate", str(song), "--model", model_dir, "--output_dir", str(out), "--window_s", "0.48"]
    assert main([*arguments, *(["--clip_mode", clip_mode] if clip_mode else [])]) == 0
    stems = [soundfile.read(out / name)[0] for name in (f"loud/{stem}.wav" for stem in ("vocals", "drums"))]
    stems += [soundfile.read(out / "loud" / f"{stem}.wav")[0] for stem in ("bass", "other")]
    assert max(np.abs(stem).max() for stem in stems) == pytest.approx(expected, abs=1e-4)
    assert files_in(out) == sorted(f"loud/{stem}.wav" for stem in ("vocals", "drums", "bass", "other"))


@pytest.mark.parametrize("stop_in", ["write", "__exit__"])
@pytest.mark.parametrize("by", ["Ctrl-C", "SIGTERM", "SIGHUP"])
def test_an_interrupted_run_leaves_no_half_file(song, tmp_path, model_dir, monkeypatch, capsys, stop_in, by):
    original = getattr(AudioWriter, stop_in)

    def interrupt(self, *arguments):
        try:
            if by == "Ctrl-C":
                raise KeyboardInterrupt  # not by its signal: shells make processes in the background ignore that
            signal.raise_signal(signal.Signals[by])
        finally:
            original(self, *arguments)

    monkeypatch.setattr(AudioWriter, stop_in, interrupt)
    arguments = ["separate", str(song), "--model", model_dir, "--output_dir", str(tmp_path / "out")]
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup makes tests ignore it
    try:
        assert main([*arguments, "--window_s", "0.8"]) == 130
    finally:
        signal.signal(signal.SIGHUP, before)
    assert "interrupted" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("at_read", [1, 3, 5])
def test_a_signal_inside_of_ffmpeg_is_not_taken_for_the_end_of_the_song(
    song, tmp_path, model_dir, monkeypatch, capsys, at_read
):
    reads, read = itertools.count(), audio_reader_mss.Source.read

    def interrupted(source, size):
        if next(reads) == at_read:
            signal.raise_signal(signal.SIGTERM)
        return read(source, size)

    monkeypatch.setattr(audio_reader_mss.Source, "read", interrupted)
    arguments = ["separate", str(song), "--model", model_dir, "--output_dir", str(tmp_path / "out")]
    assert main([*arguments, "--window_s", "0.8"]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize("suffix", ["flac", "mp3"])
def test_a_disk_that_is_full_at_the_last_byte_is_an_error(song, tmp_path, model_dir, capsys, suffix):
    arguments = ["separate", str(song), "--model", model_dir, "--stems", "vocals", "--format", suffix]
    arguments += ["--window_s", "0.8", "--clip_mode", "clamp", "--output_dir"]
    assert main([*arguments, str(tmp_path / "whole")]) == 0
    size = (tmp_path / "whole" / "song" / f"vocals.{suffix}").stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - 10, before[1]))
    try:
        assert main([*arguments, str(tmp_path / "full")]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "Cannot write" in (told := capsys.readouterr().err) and "File too large" in told
    assert not list(tmp_path.glob("full/*"))


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
    for more in ([], ["--overwrite"], []):
        assert main([*arguments, *more]) == 0
        written = sorted(str(path.relative_to(album / "stems")) for path in (album / "stems").rglob("*.wav"))
        assert written == ["CD1/01/vocals.wav", "CD2/01/vocals.wav"]


def test_shards_divide_the_songs(song, tmp_path, model_dir):
    album = tmp_path / "album"
    album.mkdir()
    for name in "abc":
        (album / f"{name}.wav").write_bytes(song.read_bytes())
    arguments = ["separate", str(album), str(tmp_path / "none.wav"), "--model", model_dir, "--stems", "vocals"]
    arguments += ["--window_s", "0.8", "--output_dir", str(tmp_path / "out"), "--num_shards", "2", "--shard_index"]
    assert main([*arguments, "1"]) == 1  # the fourth is not there
    assert files_in(tmp_path / "out") == ["b/vocals.wav"]
    assert main([*arguments, "0"]) == 0
    assert files_in(tmp_path / "out") == [f"{name}/vocals.wav" for name in "abc"]


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


def test_messages_stand_beside_the_progress_bar_and_name_their_song(tmp_path, model_dir, capsys, monkeypatch):
    for name, channels in (("a", 1), ("b", 40), ("c", 1)):
        soundfile.write(tmp_path / f"{name}.wav", np.zeros((4410, channels)), 44100)
    monkeypatch.setattr(sys, "stderr", sys.stdout)  # as on a terminal
    arguments = ["--model", model_dir, "--output_dir", str(tmp_path / "out"), "--window_s", "0.8"]
    assert main(["separate", str(tmp_path), *arguments]) == 1
    seen = [line.rpartition("\r")[2] for line in capsys.readouterr().out.split("\n")]
    for name, begin in (("a", ""), ("b", "mss-lm separate: error: "), ("c", "")):
        assert sum(line.startswith(f"{begin}{tmp_path / name}.wav: ") for line in seen) == 1


def _separate_in_launch(rank: int, port: str, arguments: list[str]):
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    os.environ.update({**place, "MASTER_PORT": port})
    torch.set_num_threads(1)
    sys.exit(main(arguments))


def test_no_process_of_a_launch_ends_before_the_others_are_done(song, tmp_path, model_dir):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    out = tmp_path / "out"
    arguments = ["separate", str(tmp_path / "none.wav"), str(song), "--model", model_dir, "--output_dir", str(out)]
    launch = [fork_server().Process(target=_separate_in_launch, args=(rank, port, arguments)) for rank in range(2)]
    try:
        for process in launch:
            process.start()
        launch[0].join(timeout=120)
        # Its song is not there, at which a launcher ends the other: not before that one's is separated.
        assert launch[0].exitcode == 1 and len(files_in(out)) == 4
        launch[1].join(timeout=120)
        assert launch[1].exitcode == 0
    finally:
        for process in launch:
            process.kill()
            process.join()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.wav"], "no such file"),
        (["{song}", "--stems", "guitar"], "guitar"),
        (["{song}", "--filename", "{track}.{ext}"], "put {stem}"),
        (["{song}", "--filename", "{title}.wav"], "--filename may hold"),
        (["{song}", "--filename", "{track.name}/{stem}.wav"], "--filename may hold"),
        (["{song}", "--filename", "../{stem}.wav"], "no file inside"),
        (["{song}", "--filename", "/tmp/{stem}.wav"], "no file inside"),
        (["{song}", "--format", "flac", "--bits", "32f"], "use wav"),
        (["{song}", "--temperature", "0.5"], "do_sample=True"),
        (["{song}", "--device", "cuda:99"], "CUDA" if not torch.cuda.is_available() else "device"),
        (["{song}", "--device", "banana"], "banana"),
        (["{song}", "--window_s", "inf"], "window_s"),
        (["{song}", "--two_stems", "guitar"], "guitar"),
        (["{song}", "--batch_size", "0"], "batch_size"),
        (["{song}", "--output", "generated", "--expected"], "filtered"),
        (["{song}", "--num_codebooks", "99"], "at most 4"),
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


def test_stems_and_two_stems_exclude_each_other(song, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["separate", str(song), "--stems", "vocals", "--two_stems", "vocals"])
    assert stop.value.code == 2 and "not allowed with" in capsys.readouterr().err


def test_a_model_that_is_none_is_named(song, tmp_path, capsys):
    for name in (tmp_path, tmp_path / "gone"):
        assert main(["separate", str(song), "--model", str(name), "--output_dir", str(tmp_path / "out")]) == 1
        told = capsys.readouterr().err
        assert "error" in told and str(name) in told and "generation_config" not in told


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
