"""Instruments that nobody recorded, another for each part: analogue, frequency modulation, plucked strings, organs.

Soundfonts have one recording of each instrument: with sounds as many as parts, a separator has to learn what tells
instruments from voices, drums and basses, rather than a soundfont by heart.
"""

from dataclasses import dataclass

import numpy as np
from scipy import signal

from .score import SAMPLING_RATE, Note

ENGINES = ("analogue", "fm", "pluck", "organ")
TABLE = 2048  # samples of a period
MAX_FREQUENCY = 16000.0  # hertz (Hz); no partial above it
DRAWBARS = (0.5, 1, 1.5, 2, 3, 4, 6, 8)  # partials of an organ


@dataclass
class Sound:
    """How a part sounds. Times in seconds; `attack` and `release` are those of each note, `decay` the time constant of
    what is struck (100: it is held). `brightness` is how far partials fall with each octave, in dB, and `sweep` how
    much more they have when a note begins; `detune` in cents between voices; `ratio` and `index` are those of
    frequency modulation; `drawbars` the partials of an organ; `vibrato` in cents."""

    engine: str
    attack: float
    decay: float
    release: float
    square: bool
    brightness: float
    sweep: float
    voices: int
    detune: float
    ratio: float
    index: float
    drawbars: tuple[float, ...]
    vibrato: float


def draw_sound(rng: np.random.Generator) -> Sound:
    """A sound, struck or held."""
    engine = str(rng.choice(ENGINES))
    held = engine == "organ" or (engine != "pluck" and rng.random() < 0.5)
    return Sound(
        engine=engine,
        attack=float(np.exp(rng.uniform(np.log(0.002), np.log(0.25 if held else 0.01)))),
        decay=100.0 if held else float(np.exp(rng.uniform(np.log(0.15), np.log(2.5)))),
        release=float(np.exp(rng.uniform(np.log(0.03), np.log(0.5)))),
        square=bool(rng.random() < 0.4),
        brightness=float(rng.uniform(3, 18)),
        sweep=float(rng.choice([0, rng.uniform(3, 12)])),
        voices=int(rng.choice([1, 2, 3])),
        detune=float(rng.uniform(3, 25)),
        ratio=float(rng.choice([0.5, 1, 1, 2, 3, 3.5, 7, 1.41])),
        index=float(rng.uniform(0.3, 5)),
        drawbars=tuple(rng.uniform(0, 1, len(DRAWBARS)).round(2).tolist()),
        vibrato=float(rng.choice([0, rng.uniform(5, 30)])),
    )


def play_synth(notes: list[Note], sound: Sound, duration: float, rng: np.random.Generator) -> np.ndarray:
    """Notes -> `(2, duration * 48000)` float32, the voices of each note spread from left to right."""
    output = np.zeros((2, round(duration * SAMPLING_RATE)), dtype=np.float32)
    for note in notes:
        start = round(note.start * SAMPLING_RATE)
        length = min(round((note.end - note.start + sound.release) * SAMPLING_RATE), output.shape[1] - start)
        if start < 0 or length <= 0:
            continue
        time = np.arange(length) / SAMPLING_RATE
        envelope = np.minimum(1, time / sound.attack) * np.exp(-time / sound.decay)
        envelope *= np.clip((note.end - note.start + sound.release - time) / sound.release, 0, 1)
        envelope *= (note.velocity / 127) ** 1.5
        frequency = 440 * 2 ** ((note.pitch - 69) / 12)
        for voice in np.linspace(-1, 1, sound.voices) if sound.voices > 1 else [0.0]:
            cents = voice * sound.detune + sound.vibrato * np.sin(2 * np.pi * 5.5 * time + voice) * (time > 0.3)
            wave = envelope * _wave(sound, frequency * 2 ** (cents / 1200), frequency, time, rng) / sound.voices
            output[0, start : start + length] += ((1 - 0.7 * voice) * wave).astype(np.float32)
            output[1, start : start + length] += ((1 + 0.7 * voice) * wave).astype(np.float32)
    return output


def _wave(
    sound: Sound, frequencies: np.ndarray, frequency: float, time: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """One voice `(T,)` without its envelope, at frequencies `(T,)` about the note's."""
    if sound.engine == "pluck":
        return _string(frequencies[0], len(time), sound.brightness, rng)
    phase = np.cumsum(frequencies) / SAMPLING_RATE + rng.random()
    if sound.engine == "organ":
        heard = [(share, bar) for share, bar in zip(sound.drawbars, DRAWBARS) if bar * frequency < MAX_FREQUENCY]
        return sum(share * np.sin(2 * np.pi * bar * phase) for share, bar in heard) / sum(sound.drawbars)
    closing = np.exp(-time / 0.2)
    if sound.engine == "fm":
        index = min(sound.index, MAX_FREQUENCY / (4 * frequency)) * (0.3 + 0.7 * closing)
        return np.sin(2 * np.pi * phase + index * np.sin(2 * np.pi * sound.ratio * phase))
    place = (phase % 1 * TABLE).astype(int)
    dark = _table(frequency, sound.square, sound.brightness)[place]
    if not sound.sweep:
        return dark
    return dark + closing * (_table(frequency, sound.square, sound.brightness - sound.sweep)[place] - dark)


def _table(frequency: float, square: bool, fall_db: float) -> np.ndarray:
    """A period `(TABLE,)` of a saw or a square, whose partials fall by so many dB an octave; peak 1."""
    partials = np.arange(1, max(2, min(TABLE // 4, int(MAX_FREQUENCY / frequency))), 2 if square else 1)
    spectrum = np.zeros(TABLE // 2 + 1, dtype=complex)
    spectrum[partials] = -1j * partials ** (-max(fall_db, 1) / (20 * np.log10(2)))
    table = np.fft.irfft(spectrum)
    return table / np.abs(table).max()


def _string(frequency: float, length: int, fall_db: float, rng: np.random.Generator) -> np.ndarray:
    """A plucked string `(length,)`: noise that goes round in a delay and loses its highs (Karplus and Strong, 1983)."""
    period = SAMPLING_RATE / frequency
    delay, share = int(period - 0.5), (period - 0.5) % 1
    pluck = np.zeros(length)
    burst = signal.lfilter([1], [1, -min(0.95, fall_db / 20)], rng.standard_normal(delay))[:length]
    pluck[: len(burst)] = burst / np.abs(burst).max()
    loss = 0.5 * 10 ** (-3 / (4 * frequency))  # 60 dB in 4 s; highs go sooner
    feedback = np.zeros(delay + 3)
    feedback[0], feedback[delay : delay + 3] = 1, [-loss * (1 - share), -loss, -loss * share]
    return signal.lfilter([1], feedback, pluck)
