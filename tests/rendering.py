"""What tests of the corpus renderer are built from: a soundfont, configurations of short songs, speech made here."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from processing_mss import write_audio

SOUNDFONTS = [
    "/usr/share/sounds/sf2/FluidR3_GM.sf2",
    "/usr/share/sounds/sf3/MuseScore_General_Lite.sf3",
]
SOUNDFONT = next((path for path in SOUNDFONTS if Path(path).is_file()), None)
NEEDED = ("tinysoundfont", "pretty_midi", "mido", "pyworld", "scipy")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]

needs_rendering = [
    pytest.mark.skipif(bool(MISSING), reason=f"rendering needs {MISSING}, not installed"),
    pytest.mark.skipif(
        SOUNDFONT is None, reason=f"no soundfont: none of {SOUNDFONTS} (apt install fluid-soundfont-gm)"
    ),
]


def make_config(**changes):
    from data_mss.rendering.recipe import RenderConfig

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
