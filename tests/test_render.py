"""The corpus renderer: same seed, same songs; stems where they belong; voices on their melody; kills lose nothing."""

import importlib.util
import itertools
import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data_mss import render
from data_mss.manifest import read_manifest
from processing_mss import read_audio, write_audio
from processing_mss.resampling_mss import resample

SOUNDFONTS = [
    "/usr/share/sounds/sf2/FluidR3_GM.sf2",
    "/usr/share/sounds/sf3/MuseScore_General_Lite.sf3",
]
SOUNDFONT = next((path for path in SOUNDFONTS if Path(path).is_file()), None)
NEEDED = ("tinysoundfont", "pretty_midi", "mido", "pyworld", "scipy")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]

pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"rendering needs {MISSING}, not installed"),
    pytest.mark.skipif(
        SOUNDFONT is None, reason=f"no soundfont: none of {SOUNDFONTS} (apt install fluid-soundfont-gm)"
    ),
]


def make_config(**changes):
    from data_mss.render_recipe import RenderConfig

    values = {"soundfonts": (SOUNDFONT,), "seed": 3, "min_seconds": 6.0, "max_seconds": 7.0, **changes}
    return RenderConfig(**values)


def solo_config(speech_dir: str):
    """Songs with one singer and one take, long enough for phrases and pauses."""
    return make_config(
        speech_dir=speech_dir, instrumental_share=0.0, doubling_share=0.0, harmony_share=0.0, min_seconds=8,
        max_seconds=10,
    )  # fmt: skip


def spoken(path: Path) -> Path:
    """Something like speech, made here: a buzz at about 140 Hz through moving formants, in syllables of 0.3 s."""
    from scipy import signal

    rate, rng = 24000, np.random.default_rng(0)
    time = np.arange(6 * rate) / rate
    buzz = signal.sawtooth(2 * np.pi * np.cumsum(140 + 10 * np.sin(3 * time)) / rate)
    output = np.zeros_like(time)
    for number in range(20):
        span = slice(int(number * 0.3 * rate), int((number * 0.3 + 0.24) * rate))
        syllable = buzz[span] * np.hanning(span.stop - span.start)
        for formant in (rng.uniform(300, 800), rng.uniform(1000, 2200)):
            syllable = syllable + signal.lfilter(*signal.iirpeak(formant, 5, fs=rate), syllable)
        output[span] = syllable
    output += 0.001 * rng.standard_normal(len(output))
    write_audio(path, (0.5 * output / np.abs(output).max())[None], rate)
    return path


@pytest.fixture(scope="module")
def speech_dir(tmp_path_factory) -> str:
    return str(spoken(tmp_path_factory.mktemp("speech") / "speech.wav").parent)


@pytest.fixture(scope="module")
def song(speech_dir):
    """A composed song with sung vocals (one take), drums, bass and others."""
    from data_mss.render_song import render_song

    return render_song(solo_config(speech_dir), 0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, speech_dir):
    """Two rendered songs on disk, made by two processes."""
    folder = tmp_path_factory.mktemp("corpus")
    report = prepare(folder, speech_dir, num_workers=2)
    assert report.written == 2 and not report.failures
    return folder


def prepare(folder: Path, speech_dir: str, num_workers: int = 1):
    return render.prepare_render(
        folder, 12 / 3600, [SOUNDFONT], speech_dir=speech_dir, seed=5, min_seconds=6, max_seconds=6.5,
        num_workers=num_workers, licence="a licence",
    )  # fmt: skip


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
    from data_mss.render_singing import load_world

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
    from data_mss.render_score import Note
    from data_mss.render_song import render_song
    from data_mss.render_synthesizer import BassSynth, ducking_gain, play_bass_synth

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
    from data_mss.render_song import render_song

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

    render_song = render.render_song
    monkeypatch.setattr(render, "render_song", killed_in_the_second)
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


def test_another_process_renders_the_same_files(corpus, speech_dir, tmp_path):
    config = make_config(speech_dir=speech_dir, seed=5, min_seconds=6, max_seconds=6.5)
    song = render.make_song(config, tmp_path, "a licence", 0)
    assert contents(tmp_path / song.id) == contents(corpus / song.id)


def test_arrangements_from_a_midi_file(tmp_path):
    import mido

    from data_mss.render_song import render_song

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


def make_kit(folder: Path, names: tuple[str, ...]) -> str:
    """Hits of noise; `_v01`, `_v02`, ... are harder and brighter the higher the number."""
    from scipy import signal

    noise = np.random.default_rng(0).standard_normal(4800) * np.exp(-np.arange(4800) / 800)
    for name in names:
        strength = int(name.rpartition("_v")[2]) if "_v" in name else 4
        hit = signal.lfilter(*signal.butter(2, 1000 * strength, fs=48000), noise)
        write_audio(folder / f"{name}.flac", (0.9 * 2.0 ** (strength - 4) * hit / np.abs(hit).max())[None], 48000)
    return str(folder)


def play_hits(folder: str, hits: list[tuple[float, int, int]], seconds: float) -> np.ndarray:
    """(time, key, velocity) played by a kit."""
    from data_mss.render_samples import choose_pieces, load_kit, play_drums
    from data_mss.render_score import Note

    rng = np.random.default_rng(0)
    notes = [Note(start, start + 0.1, key, velocity) for start, key, velocity in hits]
    return play_drums(notes, choose_pieces(load_kit(folder), rng), seconds, rng)


def centroid(waveform: np.ndarray) -> float:
    power = np.abs(np.fft.rfft(waveform.mean(axis=0))) ** 2
    return float(np.sum(power * np.fft.rfftfreq(waveform.shape[1], 1 / 48000)) / power.sum())


def test_harder_hits_are_louder_and_brighter_and_come_in_time(tmp_path):
    # The names' order is not the strengths': what is measured counts.
    folder = make_kit(tmp_path / "kit", tuple(f"{piece}_v{n}" for piece in ("Kick", "Snare") for n in (1, 2, 3, 4)))
    shutil.move(tmp_path / "kit" / "Snare_v4.flac", tmp_path / "kit" / "Snare_v0.flac")
    velocities = (30, 60, 90, 120)
    played = play_hits(folder, [(0.5 * n + 0.25, 38, velocity) for n, velocity in enumerate(velocities)], 2.0)
    beats = np.split(played, 4, axis=1)
    levels = [np.abs(beat).max() for beat in beats]
    assert all(later > 1.3 * sooner for sooner, later in itertools.pairwise(levels)), levels
    assert centroid(beats[3]) > 1.5 * centroid(beats[0])
    onsets = [np.argmax(np.abs(beat).max(axis=0) > 0.1 * level) / 48000 for beat, level in zip(beats, levels)]
    assert onsets == pytest.approx([0.25] * 4, abs=0.003)


def test_left_and_right_take_turns_and_a_closed_hat_ends_an_open_one(tmp_path):
    folder = Path(make_kit(tmp_path / "kit", ("KickL", "snare", "HihatClosed", "Tom1", "Tom2")))
    time = np.arange(48000) / 48000
    for name, frequency in (("KickR", 60), ("HihatOpen", 9000), ("Tom1", 200), ("Tom2", 100)):
        write_audio(folder / f"{name}.flac", 0.5 * np.sin(2 * np.pi * frequency * time)[None], 48000)
    kicks = np.split(play_hits(str(folder), [(0.0, 36, 100), (1.0, 36, 100), (2.0, 36, 100)], 3.0), 3, axis=1)
    assert centroid(kicks[0]) > 2 * centroid(kicks[1]) and centroid(kicks[2]) > 2 * centroid(kicks[1])

    hats = play_hits(str(folder), [(0.0, 46, 100), (0.5, 42, 100)], 1.0)
    assert np.abs(hats[:, :23000]).max() > 0.1 and np.abs(hats[:, 40000:]).max() < 0.01

    toms = [centroid(play_hits(str(folder), [(0.0, key, 100)], 1.0)) for key in (50, 41)]
    assert toms == pytest.approx([200, 100], rel=0.05)


def test_a_kit_of_hydrogen_says_what_its_files_are(tmp_path):
    from data_mss.render_samples import load_kit

    folder = make_kit(tmp_path / "kit", ("beats_1", "beats_2", "kick_unused"))
    parts = "".join(
        f"<instrument><name>{name}</name><layer><filename>{file}.flac</filename></layer></instrument>"
        for name, file in (("c3 - bass drum 1", "beats_1"), ("d3 - snare 1", "beats_2"))
    )
    xml = f'<drumkit_info xmlns="http://www.hydrogen-music.org/drumkit"><name>kit</name>{parts}</drumkit_info>'
    (tmp_path / "kit" / "drumkit.xml").write_text(xml, encoding="utf-8")
    kit = load_kit(folder)
    assert [piece.name for (piece,) in kit["kick"]] == ["bass drum 1"]
    assert [piece.name for (piece,) in kit["snare"]] == ["snare 1"]


def test_a_sampled_bass_is_in_tune_an_octave_below_its_names(tmp_path):
    from data_mss.render_samples import load_bass, measure_pitch, play_bass
    from data_mss.render_score import Note

    time = np.arange(96000) / 48000
    # Named C3 and G3 where C2 and G2 sound, G2 30 cents too high; the loud recording of each is three times as loud.
    for name, pitch in (("c3", 36.0), ("g3", 43.3)):
        wave = sum(np.sin(2 * np.pi * n * 440 * 2 ** ((pitch - 69) / 12) * time) / n**2 for n in (1, 2, 3))
        for strength, level in (("p", 0.1), ("f", 0.3)):
            for turn in (1, 2):
                write_audio(tmp_path / "bass" / f"{name}_{strength}_rr{turn}.wav", level * wave[None], 48000)
    keys = load_bass(str(tmp_path / "bass"))
    assert [key.pitch for key in keys] == [36, 43]
    rng = np.random.default_rng(0)
    for pitch, heard in ((35, 35), (38, 38), (42, 42), (28, 40), (60, 36)):
        line = play_bass([Note(0.0, 1.0, pitch, 110)], keys, 1.5, rng)
        assert line.shape == (2, 72000) and measure_pitch(line[0], heard - 6, heard + 6) == pytest.approx(
            heard, abs=0.05
        )
        held, released = np.abs(line[0, 24000:48000]).max(), np.abs(line[0, 50500:]).max()
        assert held > 0.03 and released < 0.3 * held and not line[0, 51000:].any()  # it ends within 60 ms
    soft, hard = (np.abs(play_bass([Note(0.0, 1.0, 40, v)], keys, 1.0, rng)).max() for v in (40, 110))
    assert hard > 4 * soft


def write_performance(folder: Path, name: str, key: int, velocity: int, bars: int):
    """A drummer who hits one key on every quarter note, a sixteenth of a quarter late."""
    import mido

    track = mido.MidiTrack([mido.MetaMessage("set_tempo", tempo=mido.bpm2tempo(100))])
    for number in range(4 * bars):
        track.append(mido.Message("note_on", channel=9, note=key, velocity=velocity, time=420 if number else 30))
        track.append(mido.Message("note_off", channel=9, note=key, velocity=0, time=60))
    midi = mido.MidiFile(ticks_per_beat=480)
    midi.tracks.append(track)
    folder.mkdir(exist_ok=True)
    midi.save(folder / name)


def make_grooves(folder: Path) -> str:
    rows = []
    for split, key in (("train", 22), ("test", 26)):
        for kind, velocity in (("beat", 77), ("fill", 99)):
            write_performance(folder, f"{split}_{kind}.mid", key, velocity, bars=3 if kind == "beat" else 1)
            rows.append(f"rock,100,{kind},4-4,{split}_{kind}.mid,{split}")
    table = "\n".join(["style,bpm,beat_type,time_signature,midi_filename,split", *rows])
    (folder / "info.csv").write_text(table, encoding="utf-8")
    return str(folder)


def test_people_drum_in_time_with_the_song_where_it_has_drums(tmp_path):
    from data_mss.render_grooves import load_grooves, play_groove
    from data_mss.render_score import Arrangement, Note, Part

    grooves = load_grooves(make_grooves(tmp_path / "groove"))
    bar = 4 * 60 / 110
    # Six bars at 110; the drums pause in the third.
    drums = Part("drums", "drums", 0, [Note(n * bar, n * bar + 0.1, 36, 100) for n in (0, 1, 3, 4, 5)], is_drum=True)
    bass = Part("bass", "bass", 33, [Note(0.0, 1.0, 36, 100)])

    def song(tempo_bar: float, metre: str = "4/4") -> Arrangement:
        lines = [number * tempo_bar for number in range(7)]
        return Arrangement("composed", 6 * bar, 110, metre, "", (), [drums, bass], [], bars=lines)

    for split, key in (("train", 42), ("test", 46)):  # edges of the hi-hat are a hi-hat's in General MIDI
        parts, name = play_groove(song(bar), grooves, split, np.random.default_rng(1))
        (played,) = [part for part in parts if part.is_drum]
        assert f"{split}_beat" in name and bass in parts and {note.pitch for note in played.notes} == {key}
        expected = [n * bar + (quarter + 1 / 16) * bar / 4 for n in (0, 1, 3, 4, 5) for quarter in range(4)]
        assert [note.start for note in played.notes] == pytest.approx(expected, abs=1e-6)
        assert {note.velocity for note in played.notes} == {77, 99}  # beats and fills
    assert play_groove(song(bar), grooves, "validation", np.random.default_rng(1)) is None
    assert play_groove(song(1.4 * bar), grooves, "train", np.random.default_rng(1)) is None  # too slow
    assert play_groove(song(bar, "7/8"), grooves, "train", np.random.default_rng(1)) is None


def test_a_song_is_credited_to_what_is_heard_in_it(tmp_path):
    kit = make_kit(tmp_path / "Kit", ("kick", "snare", "hat"))
    lines = {
        Path(SOUNDFONT).name: "a font, MIT",
        "Kit": "a kit, CC0",
        "groove": "grooves, CC BY",
        "synthesizer": "none",
    }
    (tmp_path / "credits.yaml").write_text(json.dumps(lines), encoding="utf-8")
    options = {
        "drums_dirs": [kit], "grooves_dir": make_grooves(tmp_path / "groove"), "synthetic_vocals": False,
        "min_seconds": 6, "max_seconds": 6.5, "credits": tmp_path / "credits.yaml",
    }  # fmt: skip
    render.prepare_render(tmp_path / "out", 12 / 3600, [SOUNDFONT], **options)
    songs = read_manifest(tmp_path / "out" / "manifest.jsonl")
    heard = set()
    for song in songs:
        recipe = json.loads((tmp_path / "out" / song.id / "recipe.json").read_text(encoding="utf-8"))
        players = {part["player"] for part in recipe["parts"]}
        names = players | ({"groove"} if any(part["groove"] for part in recipe["parts"]) else set())
        assert set(song.licence.split("; ")) == {lines[name] for name in names}
        heard |= names
    assert {"Kit", "groove"} <= heard

    (tmp_path / "credits.yaml").write_text(json.dumps({"Kit": "a kit, CC0"}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"no credit for .*groove.*Add a line"):
        render.prepare_render(tmp_path / "none", 0.01, [SOUNDFONT], **options)
    with pytest.raises(ValueError, match="leave out `licence`"):
        render.prepare_render(tmp_path / "none", 0.01, [SOUNDFONT], licence="MIT", **options)


def test_credits_are_there_for_all_that_the_documents_name(shared_dir):
    from data_mss.render_credits import read_credits

    data = shared_dir / "data"
    config = make_config(
        midi_dir=str(data / "freedoom_midi"), vocals_dir=str(data / "everything_is_free"),
        speech_dir=str(data / "speech_cc0_rhasspy"), grooves_dir=str(data / "groove_midi_ccby4" / "groove"),
        drums_dirs=(str(data / "instruments" / "muldjordkit_ccby4"),),
        bass_dirs=tuple(str(data / "instruments" / name) for name in ("growlybass_cc0", "meatbass_pizz_cc0")),
    )  # fmt: skip
    credits = read_credits(Path(__file__).parents[1] / "configs" / "credits.yaml", config)
    assert credits["muldjordkit_ccby4"] == "MuldjordKit by Lars Muldjord, CC BY 4.0"


def test_real_vocals_and_one_shots_are_used(tmp_path):
    from data_mss.render_song import render_song

    time = np.arange(48000 * 4) / 48000
    phrase = 0.3 * np.sin(2 * np.pi * 330 * time) * (np.sin(2 * np.pi * 0.5 * time) > 0)
    write_audio(tmp_path / "stems" / "a song" / "vocals.wav", phrase[None], 48000)
    write_audio(tmp_path / "stems" / "a song" / "drums.wav", 0.9 * np.ones((1, 48000)), 48000)
    make_kit(tmp_path / "hits", ("kick", "snare", "hat"))

    config = make_config(
        vocals_dir=str(tmp_path / "stems"), drums_dirs=(str(tmp_path / "hits"),), sampled_drums_share=0.5,
        instrumental_share=0.0, synthetic_vocals=False,
    )  # fmt: skip
    recipes = []
    for index in range(4):
        stems, recipe = render_song(config, index)
        recipes.append(recipe)
        assert recipe.vocals.kind == "recorded" and Path(recipe.vocals.voice).name == "vocals.wav"
        assert recipe.vocals.placed and np.abs(stems["vocals"]).max() > 0.01
    players = {part.player for recipe in recipes for part in recipe.parts if part.stem == "drums"}
    assert players == {"hits", Path(SOUNDFONT).name}


def test_composed_songs_have_singable_melodies_and_every_metre():
    from data_mss.render_composition import compose

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
        render.prepare_render(tmp_path, 0.01, ["nowhere.sf2"])
    with pytest.raises(ValueError, match="at least one soundfont"):
        render.prepare_render(tmp_path, 0.01, [])
    with pytest.raises(ValueError, match="`midi_dir` must be a folder"):
        make_config(midi_dir=str(tmp_path / "missing"))
    with pytest.raises(ValueError, match="no MIDI files"):
        render.prepare_render(tmp_path, 0.01, [SOUNDFONT], midi_dir=str(tmp_path))
    with pytest.raises(ValueError, match="a kick and a snare"):
        render.prepare_render(tmp_path, 0.01, [SOUNDFONT], drums_dirs=[str(tmp_path)])
    with pytest.raises(ValueError, match="no bass samples"):
        render.prepare_render(tmp_path, 0.01, [SOUNDFONT], bass_dirs=[str(tmp_path)])
    with pytest.raises(ValueError, match=r"no info\.csv"):
        render.prepare_render(tmp_path, 0.01, [SOUNDFONT], grooves_dir=str(tmp_path))
    with pytest.raises(ValueError, match="no vocals"):
        render.prepare_render(tmp_path, 0.01, [SOUNDFONT], vocals_dir=str(tmp_path))
    with pytest.raises(ValueError, match="A choir needs"):
        render.prepare_render(tmp_path, 0.01, [SOUNDFONT], choir_dir=str(vowels(tmp_path / "few", {"aa_A3": 57})))
    with pytest.raises(ValueError, match="positive"):
        render.prepare_render(tmp_path, 0, [SOUNDFONT])


def test_splits_come_by_position():
    from data_mss.render_recipe import files_of_split, split_of

    splits = [split_of(index) for index in range(200)]
    assert (splits.count("train"), splits.count("validation"), splits.count("test")) == (180, 10, 10)
    paths = [Path(str(number)) for number in range(20)]
    used = [set(files_of_split(paths, split)) for split in ("train", "validation", "test")]
    assert not used[0] & used[1] and not used[0] & used[2] and all(used)
    config = render.RenderConfig(soundfonts=(SOUNDFONT,), split="test")
    assert {config.split_of(index) for index in range(20)} == {"test"} and config.files_for(paths, 0) == paths


def vowels(folder: Path, names: dict[str, float], rate: int = 44100) -> Path:
    """Sung vowels of 1.5 s made here: a buzz of a MIDI pitch, with some vibrato, through two formants."""
    from scipy import signal

    time = np.arange(int(1.5 * rate)) / rate
    for name, pitch in names.items():
        phase = 440 * 2 ** ((pitch - 69) / 12) * time + 0.02 * np.sin(2 * np.pi * 5 * time)
        tone = signal.sawtooth(2 * np.pi * phase)
        tone = sum(signal.lfilter(*signal.iirpeak(formant, 3, fs=rate), tone) for formant in (700, 1200))
        write_audio(
            folder / f"{name}.wav", (0.5 * tone / np.abs(tone).max() * np.hanning(len(tone)) ** 0.2)[None], rate
        )
    return folder


WOMAN = {"woman_aa_A3": 57, "woman_aa_C#4": 61, "woman_aa_F4": 65, "woman_aa_A4": 69}


def test_a_choir_sings_in_tune_on_the_chords_and_says_whose_voices_they_are(tmp_path):
    from data_mss.render_recipe import Sung, random_numbers
    from data_mss.render_song import arrange, make_vocals, render_song

    # Pitch is heard, whatever octave a name says; a file without a pitch in its name is nobody's.
    folder = vowels(tmp_path / "vowels", {**WOMAN, "man_oo_C4": 48, "man_oo_F4": 53, "man_oo_A4": 57, "whistle": 80})
    config = make_config(choir_dir=str(folder), synthetic_vocals=False, split="train")

    def sung_in(index: int) -> Sung:
        return make_vocals(config, index, arrange(config, index), random_numbers(config.seed, index, "vocals"))[1]

    kinds = [sung_in(index).kind for index in range(30)]
    assert set(kinds) == {"none", "choir"} and kinds.count("none") > kinds.count("choir")  # now and then
    stems, recipe = render_song(config, kinds.index("choir"))
    choir = recipe.vocals.choir
    assert recipe.vocals.kind == "choir" and choir.folder == "vowels" and choir.sings == "chords"
    assert choir.files and set(choir.files) <= {
        f"{name}.wav" for name in (*WOMAN, "man_oo_C4", "man_oo_F4", "man_oo_A4")
    }
    lowest = {"woman_aa": 53, "man_oo": 44}
    for singer, line in zip(choir.singers, choir.notes):
        assert all(lowest[singer] <= pitch <= lowest[singer] + 20 for _, _, pitch in line)
    assert np.abs(stems["vocals"]).max() > 0.01


def test_a_sung_vowel_lasts_without_clicks_at_any_pitch(tmp_path):
    from scipy import signal

    from data_mss.render_choir import load_singers, measure_pitch, sing_note

    folder = vowels(tmp_path, WOMAN)
    write_audio(folder / "woman_aa_C5.wav", 0.1 * np.random.default_rng(0).standard_normal((1, 48000)), 48000)
    glide = 0.3 * signal.chirp(np.arange(48000) / 48000, 200, 1, 300)
    write_audio(folder / "woman_aa_D4.wav", glide[None], 48000)
    (singer,) = load_singers(str(folder))  # without the noise and the glide
    assert [round(vowel.pitch) for vowel in singer.vowels] == list(WOMAN.values())
    for pitch in (55, 59, 66.5):
        tone = sing_note(singer.nearest(pitch), pitch, 6 * 48000)  # four times as long as the recording
        assert tone.shape == (6 * 48000,)
        heard = resample(torch.from_numpy(tone.astype(np.float64)), 48000, 16000).numpy()
        assert measure_pitch(heard) == pytest.approx(pitch, abs=0.15)
        blocks = signal.sosfilt(signal.butter(4, 6000, "high", fs=48000, output="sos"), tone)[4800:-4800]
        power = (blocks[: len(blocks) // 480 * 480].reshape(-1, 480) ** 2).mean(axis=1)
        assert power.max() < 4 * np.median(power)
        levels = (tone[4800:-4800].reshape(-1, 1920) ** 2).mean(axis=1)
        assert levels.max() < 1.35 * levels.min()


def test_real_vowels_are_heard_at_the_pitch_of_their_names(shared_dir):
    from data_mss.render_choir import load_singers

    folder = shared_dir / "data" / "berklee_voices_ccby3"
    if not folder.is_dir():
        pytest.skip("shared/data/berklee_voices_ccby3 is missing")
    singers = load_singers(str(folder))
    vowels = [vowel for singer in singers for vowel in singer.vowels]
    assert len(singers) == 8 and len(vowels) >= 45
    semitones = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
    for vowel in vowels:
        name = vowel.file.removesuffix(".mp3").rsplit("_")[-1]
        named = 12 * (int(name[-1]) + 1) + semitones[name[0].upper()] + name.count("#") - name[1:-1].count("b")
        assert vowel.pitch == pytest.approx(named, abs=0.5), vowel.file


def test_backing_vocals_stand_behind_the_lead_and_shift_none_of_its_draws(tmp_path, speech_dir):
    from data_mss.render_recipe import random_numbers
    from data_mss.render_song import arrange, make_vocals

    folder = str(vowels(tmp_path, WOMAN))
    config = solo_config(speech_dir)
    arrangement = arrange(config, 0)
    lead, sung = make_vocals(config, 0, arrangement, random_numbers(config.seed, 0, "vocals"))
    both = replace(config, choir_dir=folder, choir_share=1.0)
    vocals, with_choir = make_vocals(both, 0, arrangement, random_numbers(config.seed, 0, "vocals"))
    assert (with_choir.kind, with_choir.takes, with_choir.melody) == (sung.kind, sung.takes, sung.melody)
    assert sung.choir is None and with_choir.choir.gain_db < 0
    backing = vocals - lead
    assert 0 < np.mean(backing**2) < np.mean(lead**2)
    sounding = np.zeros(lead.shape[1], dtype=bool)
    for start, end, pitch in [note for line in with_choir.choir.notes for note in line]:
        assert 50 <= pitch <= 73 and (with_choir.choir.sings == "melody" or pitch % 12 in arrangement.scale)
        sounding[max(0, int((start - 0.1) * 48000)) : int((end + 0.5) * 48000)] = True
    assert not backing[:, ~sounding].any()


def test_speech_of_48_khz_keeps_its_band_and_gets_air_where_it_ends(tmp_path):
    from scipy import signal

    from data_mss.render_singing import analyse
    from data_mss.render_voices import Speech

    low, _ = read_audio(spoken(tmp_path / "speech.wav"))
    dull = resample(
        torch.from_numpy(low[0, : 2 * 24000].astype(np.float64)), 24000, 48000
    ).numpy()  # nothing above 12 kHz
    hiss = signal.sosfilt(
        signal.butter(6, (14000, 16000), "band", fs=48000, output="sos"),
        np.random.default_rng(0).standard_normal(len(dull)),
    )
    spectra = []
    for waveform in (dull, dull + 0.1 * np.abs(dull) * hiss):
        voice = analyse(Speech(waveform, 48000, "a test"))
        assert voice.log_envelope.shape[1] == voice.aperiodicity.shape[1] == 1025
        decibels = 4.34 * voice.log_envelope[voice.voiced].mean(axis=0)
        spectra.append(
            {kilohertz: decibels[round(kilohertz * 1000 / (48000 / 2048))] for kilohertz in (10, 13, 15, 20)}
        )
    without, hissing = spectra
    assert hissing[15] > without[15] + 3 and hissing[15] > hissing[13] + 3
    assert without[10] - 20 < without[15] < without[10] and without[20] < without[15]


def test_dull_voices_are_brightened_as_those_of_songs_are(tmp_path):
    from scipy import signal

    from data_mss.render_score import Note
    from data_mss.render_singing import SingingStyle, analyse, sing_melody
    from data_mss.render_voices import Speech

    speech, rate = read_audio(spoken(tmp_path / "speech.wav"))
    speech = signal.lfilter([1, -0.6], 1, speech[0, : 3 * 24000].astype(np.float64))
    levels = []
    for waveform in (speech, signal.sosfilt(signal.butter(2, 2000, fs=rate, output="sos"), speech)):
        voice = analyse(Speech(waveform, rate, "a test"))
        melody = [Note(0.3 * number, 0.3 * number + 0.29, 57, 100) for number in range(8)]
        style, rng = SingingStyle(formants=0.8), np.random.default_rng(0)
        sung, _ = sing_melody(voice, melody, 2.5, style, np.arange(8), rng)
        frequencies, power = signal.welch(sung, 48000, nperseg=2048)
        low = power[(frequencies >= 200) & (frequencies < 4000)].sum()
        levels.append(10 * np.log10(power[(frequencies >= 4000) & (frequencies < 8000)].sum() / low))
    assert levels[0] > -14 and levels[1] > -23, levels  # bright ones stay as they are


def test_short_recordings_are_joined_with_others_of_the_same_speaker(tmp_path):
    from data_mss.render_voices import read_speech

    for speaker, level in (("anna", 0.1), ("berta", 0.5)):
        for number in range(4):
            write_audio(tmp_path / speaker / f"{number}.wav", np.full((1, 8000), level), 8000)
    paths = sorted(tmp_path.rglob("*.wav"))
    speech = read_speech(paths[1], paths, 3.0, np.random.default_rng(0))
    assert speech.waveform.shape == (24000,) and np.allclose(speech.waveform, 0.1, atol=1e-3)
    assert speech.description.startswith("anna/1.wav") and speech.description.endswith("and 2 more")


def test_low_melodies_are_sung_by_men_and_high_ones_by_women():
    from data_mss.render_score import Note
    from data_mss.render_song import draw_style

    melodies = [[Note(0.0, 1.0, pitch, 90)] for pitch in (50, 68)]
    for speech, ranges in ((200.0, ((0.78, 0.9), (0.95, 1.12))), (100.0, ((0.92, 1.05), (1.1, 1.25)))):
        for melody, (low, high) in zip(melodies, ranges):
            drawn = [draw_style(speech, melody, np.random.default_rng(seed)).formants for seed in range(20)]
            assert low <= min(drawn) and max(drawn) <= high and max(drawn) - min(drawn) > 0.02
