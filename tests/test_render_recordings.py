"""Recordings in rendered songs: kits, basses, people's grooves, vocals; and whom a song is owed to."""

import dataclasses
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from data_mss.manifest import read_manifest
from data_mss.rendering import corpus as rendering
from processing_mss import write_audio
from tests.rendering import SOUNDFONT, make_config, needs_rendering

pytestmark = needs_rendering


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
    from data_mss.rendering.samples import choose_pieces, load_kit, play_drums
    from data_mss.rendering.score import Note

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
    from data_mss.rendering.samples import load_kit

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
    (tmp_path / "kit" / "drumkit.xml").write_text(xml[:-9], encoding="utf-8")
    load_kit.cache_clear()
    with pytest.raises(ValueError, match=r"drumkit\.xml is no XML"):
        load_kit(folder)


def test_a_sampled_bass_is_in_tune_an_octave_below_its_names(tmp_path):
    from data_mss.rendering.samples import load_bass, measure_pitch, play_bass
    from data_mss.rendering.score import Note

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
    from data_mss.rendering.grooves import load_grooves, play_groove, read_hits
    from data_mss.rendering.score import Arrangement, Note, Part

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
    path = tmp_path / "groove" / "train_beat.mid"
    path.write_bytes(path.read_bytes()[:-40])
    read_hits.cache_clear()
    with pytest.raises(ValueError, match=r"Cannot read .*train_beat\.mid as MIDI"):
        play_groove(song(bar), grooves, "train", np.random.default_rng(1))
    table = tmp_path / "groove" / "info.csv"
    table.write_text(table.read_text() + "\nrock,100")
    load_grooves.cache_clear()
    with pytest.raises(ValueError, match=r"info\.csv, line 6: "):
        load_grooves(str(tmp_path / "groove"))


def test_a_song_is_credited_to_what_is_heard_in_it(tmp_path):
    kit = make_kit(tmp_path / "Kit", ("kick", "snare", "hat"))
    lines = {
        Path(SOUNDFONT).name: "a font, MIT",
        "Kit": "a kit, CC0",
        "groove": "grooves, CC BY",
        "synthesizer": "none",
    }
    (tmp_path / "credits.yaml").write_text(json.dumps(lines), encoding="utf-8")
    config = make_config(
        drums_dirs=(kit,), grooves_dir=make_grooves(tmp_path / "groove"), synthetic_vocals=False, seed=0,
        max_seconds=6.5,
    )  # fmt: skip
    credits = tmp_path / "credits.yaml"
    rendering.prepare_render(tmp_path / "out", 12 / 3600, config, credits=credits)
    songs = read_manifest(tmp_path / "out" / "manifest.jsonl")
    heard = set()
    for song in songs:
        recipe = json.loads((tmp_path / "out" / song.id / "recipe.json").read_text(encoding="utf-8"))
        players = {part["player"] for part in recipe["parts"]}
        names = players | ({"groove"} if any(part["groove"] for part in recipe["parts"]) else set())
        assert set(song.licence.split("; ")) == {lines[name] for name in names}
        heard |= names
    assert {"Kit", "groove"} <= heard

    (tmp_path / "out" / "manifest.jsonl").unlink()  # what is left is not taken for songs of other settings
    changed = dataclasses.replace(config, drums_dirs=())
    report = rendering.prepare_render(tmp_path / "out", 12 / 3600, changed, licence="MIT")
    assert not report.written and "rendered from other sounds" in str(report.failures)

    (tmp_path / "credits.yaml").write_text(json.dumps({"Kit": "a kit, CC0"}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"no credit for .*groove.*Add a line"):
        rendering.prepare_render(tmp_path / "none", 0.01, config, credits=credits)
    with pytest.raises(ValueError, match="leave out `licence`"):
        rendering.prepare_render(tmp_path / "none", 0.01, config, licence="MIT", credits=credits)


def test_credits_are_there_for_all_that_the_documents_name(shared_dir):
    from data_mss.rendering.credits import read_credits

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
    from data_mss.rendering.song import render_song

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
