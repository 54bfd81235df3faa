"""The corpus renderer: same seed, same songs; stems where they belong; voices on their melody; kills lose nothing."""

import itertools
import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from data_mss.manifest import read_manifest
from data_mss.rendering import corpus as rendering
from processing_mss import read_audio
from processing_mss.resampling_mss import resample
from tests.launching import fork_server
from tests.rendering import SOUNDFONT, make_config, needs_rendering, solo_config, spoken

pytestmark = needs_rendering


@pytest.fixture(scope="module")
def speech_dir(tmp_path_factory) -> str:
    return str(spoken(tmp_path_factory.mktemp("speech") / "speech.wav").parent)


@pytest.fixture(scope="module")
def song(speech_dir):
    """A composed song with sung vocals (one take), drums, bass and others."""
    from data_mss.rendering.song import render_song

    return render_song(solo_config(speech_dir), 0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, speech_dir):
    """Two rendered songs on disk, made by two processes."""
    folder = tmp_path_factory.mktemp("corpus")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rendering, "get_context", lambda method: {"spawn": fork_server()}[method])
        report = prepare(folder, speech_dir, num_workers=2)
    assert report.written == 2 and not report.failures
    return folder


def prepare(folder: Path, speech_dir: str, num_workers: int = 1):
    config = make_config(speech_dir=speech_dir, seed=5, min_seconds=6, max_seconds=6.5)
    return rendering.prepare_render(folder, 12 / 3600, config, num_workers, licence="a licence")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def onset_strength(waveform: np.ndarray) -> float:
    """How sudden the spectrum grows, relative to its size: mean positive flux of the loudest tenth of the frames."""
    spectrum = torch.stft(
        torch.from_numpy(waveform.mean(axis=0)), 1024, 256, window=torch.hann_window(1024), return_complex=True
    ).abs()
    flux = (spectrum[:, 1:] - spectrum[:, :-1]).clamp(min=0).sum(0) / spectrum.sum(0).mean()
    return float(flux.sort(descending=True).values[: len(flux) // 10].mean())


def test_stems_are_where_they_belong(song):
    stems, recipe = song
    assert set(stems) == {"vocals", "drums", "bass", "other"}
    assert all(waveform.shape == (2, round(recipe.duration * 48000)) for waveform in stems.values())
    assert all(np.abs(waveform).max() > 0.01 for waveform in stems.values())

    power = np.abs(np.fft.rfft(stems["bass"])) ** 2
    low = np.fft.rfftfreq(stems["bass"].shape[1], 1 / 48000) < 250
    assert power[:, low].sum() > 0.8 * power.sum()

    onsets = {stem: onset_strength(waveform) for stem, waveform in stems.items()}
    assert onsets["drums"] > max(onsets["bass"], onsets["other"], onsets["vocals"]), onsets


def test_vocals_follow_the_melody_within_a_quarter_tone(song):
    from data_mss.rendering.singing import load_world

    stems, recipe = song
    assert recipe.vocals.kind == "sung" and len(recipe.vocals.takes) == 1
    mono = resample(torch.from_numpy(stems["vocals"].mean(axis=0).astype(np.float64)), 48000, 24000).numpy()
    world = load_world()
    pitch, times = world.dio(mono, 24000, frame_period=5.0)
    pitch = world.stonemask(mono, pitch, times, 24000)

    target = np.full(len(times), np.nan)
    for start, end, note in recipe.vocals.melody:
        target[(times > start + 0.1) & (times < end - 0.05)] = note  # after the glide, before the release
    voiced = np.zeros(len(times), dtype=bool)
    for start, end in recipe.vocals.voiced:
        voiced |= (times > start) & (times < end)
    counted = voiced & (pitch > 0) & np.isfinite(target)
    assert counted.sum() > 0.7 * np.isfinite(target).sum()
    deviation = np.abs(69 + 12 * np.log2(pitch[counted] / 440) - target[counted])
    assert np.mean(deviation < 0.5) > 0.95 and np.median(deviation) < 0.25

    # Where nobody sings there is at most reverberation.
    sung = np.zeros(len(times), dtype=bool)
    for start, end, _ in recipe.vocals.melody:
        sung |= (times > start - 0.2) & (times < end + 0.3)
    frames = len(mono) // 120  # of 5 ms
    level = np.abs(mono[: frames * 120]).reshape(frames, 120).mean(axis=1)
    sung = sung[:frames]
    assert sung.any() and not sung.all()
    assert level[~sung].mean() < 0.3 * level[sung].mean()


def test_synthetic_basses_are_low_and_make_room_for_the_kick(speech_dir):
    from data_mss.rendering.instruments import BassSynth, ducking_gain, play_bass_synth
    from data_mss.rendering.score import Note
    from data_mss.rendering.song import render_song

    stems, recipe = render_song(make_config(synthesizer_share=1.0, instrumental_share=1.0), 1)
    (bass,) = [part for part in recipe.parts if part.stem == "bass"]
    assert bass.player == "synthesizer" and bass.synth is not None
    assert np.abs(stems["bass"]).max() > 0.01

    sub = BassSynth("sine", octave=-1, cutoff=200, sweep=0, closing=0.1, decay=100, ducking=0.8, release=0.2)
    notes = [Note(0.0, 1.0, 36, 100), Note(1.0, 2.5, 28, 100), Note(-1, 0.5, 40, 100)]  # beyond the ends: cut, left out
    line = play_bass_synth(notes, sub, 2.0)
    assert line.shape == (2, 96000) and np.array_equal(line[0], line[1])
    for second, frequency in ((0, 32.7), (1, 41.2)):  # C1; E0 would be below what is heard: E1
        spectrum = np.abs(np.fft.rfft(line[0, second * 48000 : (second + 1) * 48000]))
        assert spectrum.argmax() == pytest.approx(frequency, abs=1)
    gain = ducking_gain([Note(0.5, 0.6, 36, 90), Note(1.0, 1.1, 38, 90)], sub, 96000)  # a kick, and a snare
    assert gain[24000] == pytest.approx(0.2) and gain[:24000].min() == gain[24000 + 9600 :].min() == 1


def test_the_seed_decides_and_no_song_depends_on_another(song, speech_dir):
    from data_mss.rendering.song import render_song

    stems, recipe = song
    config = solo_config(speech_dir)
    others, other_recipe = render_song(config, 1)
    again, recipe_again = render_song(config, 0)
    assert recipe_again.to_dict() == recipe.to_dict() != other_recipe.to_dict()
    assert all(np.array_equal(again[stem], stems[stem]) for stem in stems)
    assert not np.array_equal(others["other"][:, :48000], stems["other"][:, :48000])


def test_files_add_up_to_the_mixture_and_do_not_clip(corpus):
    songs = read_manifest(corpus / "manifest.jsonl")
    assert [song.id for song in songs] == ["render_5_000000", "render_5_000001"]
    for song in songs:
        mixture, rate = read_audio(corpus / song.mixture)
        stems = [read_audio(path)[0] for stem in song.stems for path in song.paths(stem)]
        assert rate == song.sampling_rate == 48000 and song.licence == "a licence" and song.source == "render"
        # Each file is rounded to 16 bits: half a step each.
        assert np.abs(sum(stems) - mixture).max() <= 0.5 * (len(stems) + 1) / 32768 + 1e-7
        assert all(np.abs(waveform).max() < 0.99 for waveform in (mixture, *stems))
        recipe = json.loads((corpus / song.id / "recipe.json").read_text(encoding="utf-8"))
        assert recipe["duration"] == song.duration == mixture.shape[1] / rate and recipe["split"] == song.split


def test_a_killed_run_goes_on_and_finished_songs_stay(corpus, speech_dir, tmp_path, monkeypatch):
    # Killed in the middle of the second song: a first song with its line, and half of a folder under another name.
    calls = []

    def killed_in_the_second(config, index):
        calls.append(index)
        if len(calls) == 2:
            (tmp_path / f".render_5_{index:06d}.partial" / "vocals.flac").write_bytes(b"half")
            raise KeyboardInterrupt
        return render_song(config, index)

    render_song = rendering.render_song
    monkeypatch.setattr(rendering, "render_song", killed_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path, speech_dir)
    monkeypatch.undo()
    assert len(read_manifest(tmp_path / "manifest.jsonl")) == 1
    first = (tmp_path / "render_5_000000" / "mixture.flac").stat().st_mtime_ns

    # The second song exists already but its line was not written: it is taken as it is.
    shutil.copytree(corpus / "render_5_000001", tmp_path / "render_5_000001")
    second = (tmp_path / "render_5_000001" / "mixture.flac").stat().st_mtime_ns
    report = prepare(tmp_path, speech_dir)
    assert (report.written, report.kept) == (1, 1)
    assert (tmp_path / "render_5_000000" / "mixture.flac").stat().st_mtime_ns == first
    assert (tmp_path / "render_5_000001" / "mixture.flac").stat().st_mtime_ns == second
    with pytest.raises(ValueError, match=r"has 'render_5_000000', made with {.*6.5}, not with {.*7.0}: choose"):
        rendering.prepare_render(tmp_path, 0.001, make_config(speech_dir=speech_dir, seed=5))


def test_another_process_renders_the_same_files(corpus, speech_dir, tmp_path):
    config = make_config(speech_dir=speech_dir, seed=5, min_seconds=6, max_seconds=6.5)
    song = rendering.make_song(config, tmp_path, "a licence", 0)
    assert contents(tmp_path / song.id) == contents(corpus / song.id)


def test_arrangements_from_a_midi_file(tmp_path):
    import mido

    from data_mss.rendering.song import render_song

    midi = mido.MidiFile(ticks_per_beat=480)
    tracks = ((9, 0, [36, 42, 38, 42]), (1, 33, [36, 36, 43, 36]), (2, 65, [69, 72, 74, 76]), (3, 0, [60, 64, 67, 72]))
    for channel, program, pitches in tracks:
        track = mido.MidiTrack([mido.Message("program_change", channel=channel, program=program)])
        for number in range(40):
            pitch = pitches[number % 4]
            track.append(mido.Message("note_on", channel=channel, note=pitch, velocity=90, time=0))
            track.append(mido.Message("note_off", channel=channel, note=pitch, velocity=0, time=240))
        midi.tracks.append(track)
    midi.save(tmp_path / "söng one.mid")
    (tmp_path / "broken.mid").write_bytes(b"MThd nonsense")

    config = make_config(midi_dir=str(tmp_path), midi_share=1.0, synthetic_vocals=False)
    with warnings.catch_warnings(record=True):  # the broken file is left out, with a warning, if it was drawn first
        stems, recipe = render_song(config, 2)
    assert recipe.source == "söng one.mid"
    programs = {part.stem: part.program for part in recipe.parts if part.stem != "other"}
    assert programs["bass"] in range(32, 40) and "drums" in programs
    lead = [part for part in recipe.parts if part.name == "track2"]
    assert lead and lead[0].program in range(64, 72)  # a saxophone stays in its family
    assert np.abs(stems["bass"]).max() > 0.01 and np.abs(stems["drums"]).max() > 0.01 and not stems["vocals"].any()


def test_composed_songs_have_singable_melodies_and_every_metre():
    from data_mss.rendering.composition import compose

    metres = set()
    for number in range(30):
        arrangement = compose(40.0, 50, np.random.default_rng(number))
        metres.add(arrangement.metre)
        assert {part.stem for part in arrangement.parts} <= {"drums", "bass", "other"}
        assert all(50 <= note.pitch <= 64 for note in arrangement.melody)
        assert all(first.end <= second.start + 1e-6 for first, second in itertools.pairwise(arrangement.melody))
    assert metres == {"4/4", "3/4", "6/8"}


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(ValueError, match="no soundfont"):
        make_config(soundfonts=("nowhere.sf2",))
    with pytest.raises(ValueError, match="at least one soundfont"):
        make_config(soundfonts=())
    with pytest.raises(ValueError, match="`midi_dir` must be a folder"):
        make_config(midi_dir=str(tmp_path / "missing"))
    with pytest.raises(ValueError, match="no MIDI files"):
        rendering.prepare_render(tmp_path, 0.01, make_config(midi_dir=str(tmp_path)))
    with pytest.raises(ValueError, match="a kick and a snare"):
        rendering.prepare_render(tmp_path, 0.01, make_config(drums_dirs=(str(tmp_path),)))
    with pytest.raises(ValueError, match="no bass samples"):
        rendering.prepare_render(tmp_path, 0.01, make_config(bass_dirs=(str(tmp_path),)))
    with pytest.raises(ValueError, match=r"no info\.csv"):
        rendering.prepare_render(tmp_path, 0.01, make_config(grooves_dir=str(tmp_path)))
    with pytest.raises(ValueError, match="no vocals"):
        rendering.prepare_render(tmp_path, 0.01, make_config(vocals_dir=str(tmp_path)))
    with pytest.raises(ValueError, match="positive"):
        rendering.prepare_render(tmp_path, 0, make_config())


def test_splits_come_by_position():
    from data_mss.rendering.recipe import files_of_split, split_of

    splits = [split_of(index) for index in range(200)]
    assert (splits.count("train"), splits.count("validation"), splits.count("test")) == (180, 10, 10)
    paths = [Path(str(number)) for number in range(20)]
    used = [set(files_of_split(paths, split)) for split in ("train", "validation", "test")]
    assert not used[0] & used[1] and not used[0] & used[2] and all(used)
    config = rendering.RenderConfig(soundfonts=(SOUNDFONT,), split="test")
    assert {config.split_of(index) for index in range(20)} == {"test"} and config.files_for(paths, 0) == paths
