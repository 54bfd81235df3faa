"""Parts to sound: General MIDI soundfonts, and a subtractive synthesizer for bass lines.

Soundfonts have few basses, and none that is mostly fundamental: a separator that heard only them takes all low
frequencies for kick drums (docs/checkpoint.md). So some basses are the synthesizer's, sub-basses among them, and some
of these pump with the kick drum.
"""

import functools
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .score import GM_DRUMS, SAMPLING_RATE, Note, Part

WAVES = ("sine", "saw", "square", "driven")
MIN_FREQUENCY = 30.0  # hertz (Hz); what would be lower is played an octave higher, where loudspeakers have it
MAX_FREQUENCY = 8000.0  # hertz (Hz); no partial above it
MAX_PARTIALS = 40


# tinysoundfont 0.3.7, not midirenderer 0.1.3: it keeps the loaded font, reads SF3, and hands out float samples.
# Measured on one core with FluidR3_GM.sf2 and 30 s of a six-track rock song (931 notes): 0.28 s, and 0.29 s track by
# track, after 0.66 s of loading once (3.6 s for the compressed MuseScore_General_Lite.sf3). midirenderer reads the font
# in every call: 0.59 s for the song in one call, and one call a track is needed; it refuses SF3.
class Soundfont:
    """A loaded soundfont. A part sounds the same however many were played before it.

    Args:
        path: an SF2 or SF3 file.

    Raises:
        ValueError: the file is missing or no soundfont.
        ImportError: tinysoundfont is not installed.
    """

    def __init__(self, path: str | os.PathLike):
        try:
            import tinysoundfont
        except ImportError as error:
            raise ImportError(
                "Rendering needs tinysoundfont: pip install --no-deps tinysoundfont (its PyAudio is for playing aloud)."
            ) from error
        if not Path(path).is_file():
            raise ValueError(f"There is no soundfont {path}.")
        self._synth = tinysoundfont.Synth(samplerate=SAMPLING_RATE)
        try:
            self._font = self._synth.sfload(os.fspath(path))
        except Exception as error:  # the library has no exception of its own for this
            raise ValueError(f"Cannot load the soundfont {path}: {error}") from error

    def has_preset(self, bank: int, program: int) -> bool:
        """Whether the font has this program (bank 0) or drum kit (bank 128)."""
        try:
            return self._synth.sfpreset_name(self._font, bank, program) is not None
        except RuntimeError:
            return False

    def play(self, part: Part, duration: float) -> np.ndarray:
        """A part as `(2, duration * 48000)` float32; notes still sounding at the end are cut."""
        synth, total = self._synth, round(duration * SAMPLING_RATE)
        bank = 128 if part.is_drum else 0
        program = part.program if self.has_preset(bank, part.program) else 0
        synth.program_select(0, self._font, bank, program, part.is_drum)
        # (sample, 0 for off or 1 for on, pitch, velocity): sorted, so that a repeated note ends before it starts again.
        events = [(round(note.start * SAMPLING_RATE), 1, note.pitch, note.velocity) for note in part.notes]
        events += [(round(note.end * SAMPLING_RATE), 0, note.pitch, 0) for note in part.notes]
        events = [event for event in events if 0 <= event[0] < total]

        samples, position = np.zeros((total, 2), dtype=np.float32), 0
        buffer = memoryview(samples).cast("B")
        for time, is_on, pitch, velocity in [*sorted(events), (total, 0, 0, 0)]:
            if time > position:
                synth.generate_simple(time - position, buffer[position * 8 : time * 8])
                position = time
            if is_on:
                synth.noteon(0, pitch, velocity)
            else:
                synth.noteoff(0, pitch)
        # What still sounds would leak into the next part: after 0.1 s every voice is gone (checked bit by bit).
        synth.sounds_off(0)
        synth.generate_simple(SAMPLING_RATE // 10)
        return np.ascontiguousarray(samples.T)


@functools.lru_cache(maxsize=4)
def load_soundfont(path: str) -> Soundfont:
    """A soundfont, loaded once a process (FluidR3_GM takes about 0.3 GB)."""
    return Soundfont(path)


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
