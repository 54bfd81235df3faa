"""Sounds that are drawn instead of recorded: each part and kit of its own, in tune, where its kind has its energy."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_mss.rendering.drum_synth import synthesize_kit
from data_mss.rendering.recipe import RenderConfig
from data_mss.rendering.samples import DRUM_NAMES
from data_mss.rendering.score import SAMPLING_RATE, Note
from data_mss.rendering.song import render_song
from data_mss.rendering.synth import ENGINES, draw_sound, play_synth


def share_below(waveform: np.ndarray, frequency: float) -> float:
    """Of the energy of `(2, T)`."""
    power = np.abs(np.fft.rfft(waveform[0])) ** 2
    return power[np.fft.rfftfreq(waveform.shape[1], 1 / SAMPLING_RATE) < frequency].sum() / power.sum()


@pytest.mark.parametrize("seed", range(6))
def test_each_drum_has_its_place(seed):
    kit = synthesize_kit(np.random.default_rng(seed))
    hits = {kind: pieces[0].recordings[-1] for kind, pieces in kit.items()}
    assert kit.keys() == DRUM_NAMES.keys() and all(np.isfinite(hit).all() for hit in hits.values())
    assert share_below(hits["kick"], 400) > 0.7 > 0.3 > share_below(hits["hat"], 2000)
    assert share_below(hits["kick"], 120) > share_below(hits["snare"], 120)
    assert hits["open_hat"].shape[1] > 2 * hits["hat"].shape[1]
    for pieces in kit.values():
        assert pieces[0].levels == sorted(pieces[0].levels) and pieces[0].levels[-1] == 0


@pytest.mark.parametrize("engine", ENGINES)
def test_every_sound_is_in_tune_and_ends(engine):
    for seed in range(4):
        rng = np.random.default_rng(seed)
        sound = replace(draw_sound(rng), engine=engine, detune=0.0, vibrato=0.0, attack=0.005, ratio=1.0, index=1.0)
        notes = [Note(second, second + 0.8, pitch, 100) for second, pitch in enumerate((45, 57, 81))]
        played = play_synth(notes, sound, 4.0, rng)
        assert played.shape == (2, 4 * SAMPLING_RATE) and np.isfinite(played).all()
        assert not played[:, int((2.8 + sound.release) * SAMPLING_RATE) + 1 :].any()
        for note in notes:
            heard = played[0, int((note.start + 0.1) * SAMPLING_RATE) :][: SAMPLING_RATE // 2]
            frequency = 440 * 2 ** ((note.pitch - 69) / 12)
            spectrum = np.abs(np.fft.rfft(heard * np.hanning(len(heard)), 1 << 17))
            near = np.abs(np.fft.rfftfreq(1 << 17, 1 / SAMPLING_RATE) / frequency - 1)
            spectrum[near > 0.06] = 0
            assert near[spectrum.argmax()] < 0.01  # 17 cents


def test_a_song_needs_no_recording_and_says_how_it_sounds():
    config = RenderConfig(
        ("synthesizer",), drums_dirs=("synthesizer",), synthetic_vocals=False, min_seconds=8, max_seconds=8
    )
    songs = [render_song(config, index) for index in (0, 1)]
    sounds = [part.synth for _, recipe in songs for part in recipe.parts if part.stem == "other"]
    assert len({repr(sound) for sound in sounds}) == len(sounds) > 1
    for stems, recipe in songs:
        assert recipe.sources == ["synthesizer"] and {part.player for part in recipe.parts} == {"synthesizer"}
        assert all(np.abs(stems[part.stem]).max() > 0.01 for part in recipe.parts)
    again, _ = render_song(config, 0)
    assert all(np.array_equal(again[stem], samples) for stem, samples in songs[0][0].items())


def test_voices_are_not_begun_where_a_synthesizer_is_missing(tmp_path):
    script = Path(__file__).parents[1] / "data_mss" / "rendering" / "speakers.py"
    done = subprocess.run([sys.executable, script, tmp_path / "voices"], capture_output=True, text=True)
    assert done.returncode == 1 and "is missing; docs/rendering.md says" in done.stderr and not [*tmp_path.iterdir()]
