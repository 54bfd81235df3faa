"""Bass lines of a subtractive synthesizer, sub-basses among them, and the pumping that kick drums give them.

Soundfonts have few basses, and none that is mostly fundamental: a separator that heard only them takes all low
frequencies for kick drums (docs/checkpoint.md).
"""

from dataclasses import dataclass

import numpy as np

from .render_instruments import SAMPLING_RATE
from .render_samples import GM_DRUMS
from .render_score import Note

WAVES = ("sine", "saw", "square", "driven")
MIN_FREQUENCY = 30.0  # hertz (Hz); what would be lower is played an octave higher, where loudspeakers have it
MAX_FREQUENCY = 8000.0  # hertz (Hz); no partial above it
MAX_PARTIALS = 40


@dataclass
class BassSynth:
    """A sound: wave, octaves up or down, a low-pass of 24 dB per octave at `cutoff` hertz (Hz) that opens by the factor
    1 + `sweep` at every note and closes within about `closing` seconds, and the time constant of notes in seconds.
    `ducking` is by how much a kick drum makes it quieter (0: not at all), over `release` seconds."""

    wave: str
    octave: int
    cutoff: float
    sweep: float
    closing: float
    decay: float
    ducking: float
    release: float


def draw_bass_synth(rng: np.random.Generator) -> BassSynth:
    """How the synthesizer of a song sounds."""
    return BassSynth(
        wave=str(rng.choice(WAVES)),
        octave=int(rng.choice([-1, 0, 0, 0, 1])),
        cutoff=float(80 * 2 ** rng.uniform(0, 3.5)),
        sweep=float(rng.choice([0, rng.uniform(1, 6)])),
        closing=float(rng.uniform(0.08, 0.35)),
        decay=float(rng.choice([0.25, 1.0, 100.0])),
        ducking=float(rng.choice([0, 0, rng.uniform(0.5, 0.95)])),
        release=float(rng.uniform(0.15, 0.35)),
    )


def play_bass_synth(notes: list[Note], synth: BassSynth, duration: float) -> np.ndarray:
    """Notes -> `(2, duration * 48000)` float32, the same in both channels; notes at the end are cut."""
    output = np.zeros(round(duration * SAMPLING_RATE), dtype=np.float32)
    for note in notes:
        start = round(note.start * SAMPLING_RATE)
        length = min(round((note.end - note.start) * SAMPLING_RATE), len(output) - start)
        if start >= 0 and length > 0:
            output[start : start + length] += play_note(note, synth, length)
    return np.stack((output, output))


def play_note(note: Note, synth: BassSynth, length: int) -> np.ndarray:
    """One note, `(length,)`: a sum of partials, each with the gain that the filter has at its frequency just then."""
    time = np.arange(length) / SAMPLING_RATE
    frequency = 440 * 2 ** ((note.pitch - 69) / 12 + synth.octave)
    frequency *= 2 if frequency < MIN_FREQUENCY else 1
    cutoff = synth.cutoff * (1 + synth.sweep * np.exp(-time / synth.closing))
    count = 1 if synth.wave == "sine" else int(np.clip(MAX_FREQUENCY // frequency, 1, MAX_PARTIALS))
    wave = np.zeros(length)
    for partial in range(1, count + 1, 2 if synth.wave == "square" else 1):
        gain = 1 / partial / np.sqrt(1 + (partial * frequency / cutoff) ** 8) if count > 1 else 1.0
        wave += gain * np.sin(2 * np.pi * partial * frequency * time)
    if synth.wave == "driven":
        wave = np.tanh(3 * wave)
    envelope = np.minimum(1, time / 0.004) * np.minimum(1, (length / SAMPLING_RATE - time) / 0.02)
    return (note.velocity / 127 * envelope * np.exp(-time / synth.decay) * wave).astype(np.float32)


def ducking_gain(drums: list[Note], synth: BassSynth, length: int) -> np.ndarray:
    """Side-chain compression by the kicks among the drum notes: gain `(length,)` float32, 1 without ducking."""
    gain = np.ones(length, dtype=np.float32)
    recovery = np.linspace(1 - synth.ducking, 1, round(synth.release * SAMPLING_RATE), dtype=np.float32)
    for note in drums:
        start = round(note.start * SAMPLING_RATE)
        if note.pitch in GM_DRUMS["kick"] and 0 <= start < length:
            span = gain[start : start + len(recovery)]
            np.minimum(span, recovery[: len(span)], out=span)
    return gain
