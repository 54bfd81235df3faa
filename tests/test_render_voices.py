"""Who sings in rendered songs: choirs of sung vowels, and singers made of recorded speech."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data_mss.rendering import corpus as rendering
from processing_mss import read_audio, write_audio
from processing_mss.resampling_mss import resample
from tests.rendering import make_config, needs_rendering, solo_config, spoken

pytestmark = needs_rendering


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
    from data_mss.rendering.recipe import Sung, random_numbers
    from data_mss.rendering.song import arrange, make_vocals, render_song

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

    from data_mss.rendering.choir import load_singers, measure_pitch, sing_note

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
    from data_mss.rendering.choir import load_singers

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


def test_backing_vocals_stand_behind_the_lead_and_shift_none_of_its_draws(tmp_path):
    from data_mss.rendering.recipe import random_numbers
    from data_mss.rendering.song import arrange, make_vocals

    folder = str(vowels(tmp_path / "vowels", WOMAN))
    config = solo_config(str(spoken(tmp_path / "speech" / "speech.wav").parent))
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

    from data_mss.rendering.singing import analyse
    from data_mss.rendering.voices import Speech

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

    from data_mss.rendering.score import Note
    from data_mss.rendering.singing import SingingStyle, analyse, sing_melody
    from data_mss.rendering.voices import Speech

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
    from data_mss.rendering.voices import read_speech

    for speaker, level in (("anna", 0.1), ("berta", 0.5)):
        for number in range(4):
            write_audio(tmp_path / speaker / f"{number}.wav", np.full((1, 8000), level), 8000)
    paths = sorted(tmp_path.rglob("*.wav"))
    speech = read_speech(paths[1], paths, 3.0, np.random.default_rng(0))
    assert speech.waveform.shape == (24000,) and np.allclose(speech.waveform, 0.1, atol=1e-3)
    assert speech.description.startswith("anna/1.wav") and speech.description.endswith("and 2 more")


def test_low_melodies_are_sung_by_men_and_high_ones_by_women():
    from data_mss.rendering.score import Note
    from data_mss.rendering.song import draw_style

    melodies = [[Note(0.0, 1.0, pitch, 90)] for pitch in (50, 68)]
    for speech, ranges in ((200.0, ((0.78, 0.9), (0.95, 1.12))), (100.0, ((0.92, 1.05), (1.1, 1.25)))):
        for melody, (low, high) in zip(melodies, ranges):
            drawn = [draw_style(speech, melody, np.random.default_rng(seed)).formants for seed in range(20)]
            assert low <= min(drawn) and max(drawn) <= high and max(drawn) - min(drawn) > 0.02


def test_a_choir_of_too_few_vowels_is_refused(tmp_path):
    with pytest.raises(ValueError, match="A choir needs"):
        rendering.prepare_render(tmp_path, 0.01, make_config(choir_dir=str(vowels(tmp_path / "few", {"aa_A3": 57}))))
