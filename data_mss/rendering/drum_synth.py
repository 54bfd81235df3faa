"""Drum kits that nobody recorded, another for each song: sweeping sines, struck metal and noise, as drum machines have.

A separator that hears a few recorded kits learns these: with kits as many as songs it has to learn what drums have in
common. `synthesize_kit` gives what `choose_pieces` gives of a folder of samples, so all else is alike.
"""

from collections.abc import Callable

import numpy as np
from scipy import signal

from .samples import DRUM_NAMES, OTHER_PEAK, PEAKS, Piece, level_of
from .score import SAMPLING_RATE

STRENGTHS = (0.25, 0.5, 1.0)  # of hits: softer ones are darker, and have less of the stick
Ranges = dict[str, tuple[float, float]]
Strike = Callable[[dict[str, float], float, np.random.Generator], np.ndarray]  # (sound, strength, ...) -> (T,)

# Drums with a skin: frequency in hertz (Hz) where it comes to rest, how many times higher it starts, time constants in
# seconds of that fall and of the sound, noise relative to the tone, the noise's time constant and lowest frequency.
SKINS: dict[str, Ranges] = {
    "kick": {
        "pitch": (36, 80), "sweep": (1.2, 6), "fall": (0.006, 0.06), "decay": (0.05, 0.4),
        "noise": (0.01, 0.3), "hiss": (0.002, 0.02), "lowest": (500, 4000),
    },
    "snare": {
        "pitch": (130, 280), "sweep": (1.05, 1.8), "fall": (0.005, 0.03), "decay": (0.03, 0.15),
        "noise": (0.3, 3), "hiss": (0.04, 0.22), "lowest": (300, 3000),
    },
    "tom": {
        "pitch": (70, 130), "sweep": (1.1, 2.5), "fall": (0.02, 0.12), "decay": (0.1, 0.4),
        "noise": (0.01, 0.3), "hiss": (0.01, 0.08), "lowest": (300, 3000),
    },
    "rim": {
        "pitch": (400, 2200), "sweep": (1, 1.3), "fall": (0.003, 0.01), "decay": (0.006, 0.03),
        "noise": (0.1, 1), "hiss": (0.002, 0.01), "lowest": (1000, 5000),
    },
}  # fmt: skip
# Cymbals: lowest partial and lowest frequency heard in hertz (Hz), time constant in seconds, noise beside metal.
METALS: dict[str, Ranges] = {
    "hat": {"pitch": (180, 600), "lowest": (3000, 9000), "decay": (0.01, 0.07), "noise": (0.1, 3)},
    "ride": {"pitch": (200, 600), "lowest": (2000, 6000), "decay": (0.3, 0.9), "noise": (0.05, 0.5)},
    "crash": {"pitch": (150, 500), "lowest": (800, 4000), "decay": (0.4, 1.2), "noise": (0.5, 4)},
}
OPEN = (4.0, 15.0)  # times as long an open hi-hat sounds
PARTIALS = 6


def synthesize_kit(rng: np.random.Generator) -> dict[str, list[Piece]]:
    """The drums of a song, as `choose_pieces` gives them; every kind is there."""
    kit = {kind: [_piece(kind, _skin, _draw(ranges, rng), rng)] for kind, ranges in SKINS.items() if kind != "tom"}
    low = _draw(SKINS["tom"], rng)
    toms = [{**low, "pitch": low["pitch"] * step} for step in (1, 1.35, 1.8)]
    kit["tom"] = [_piece("tom", _skin, tom, rng) for tom in toms]
    metals = {kind: _draw(ranges, rng) for kind, ranges in METALS.items()}
    kit |= {kind: [_piece(kind, _metal, sound, rng)] for kind, sound in metals.items()}
    hat = metals["hat"]
    kit["open_hat"] = [_piece("open_hat", _metal, {**hat, "decay": hat["decay"] * rng.uniform(*OPEN)}, rng)]
    kit["ride_bell"] = kit["ride"]
    kit["clap"] = [_piece("clap", _clap, {"decay": rng.uniform(0.03, 0.15), "centre": rng.uniform(800, 2500)}, rng)]
    kit["percussion"] = kit[str(rng.choice(["rim", "tom", "hat"]))]
    assert kit.keys() == DRUM_NAMES.keys()
    return kit


def _draw(ranges: Ranges, rng: np.random.Generator) -> dict[str, float]:
    """Within each range, evenly in octaves."""
    return {name: float(np.exp(rng.uniform(*np.log(limits)))) for name, limits in ranges.items()}


def _piece(kind: str, strike: Strike, sound: dict[str, float], rng: np.random.Generator) -> Piece:
    """A drum at all strengths; the hardest hit has the peak of its kind."""
    drive = float(rng.choice([0, rng.uniform(0.5, 4)]))
    hits = []
    for strength in STRENGTHS:
        hit = strike(sound, strength, rng)
        hit = np.tanh(drive * hit / np.abs(hit).max()) if drive else hit / np.abs(hit).max()
        hits.append(strength * hit / np.abs(hit).max() * PEAKS.get(kind, OTHER_PEAK))
    recordings = [np.broadcast_to(hit.astype(np.float32), (2, len(hit))) for hit in hits]
    hardest = level_of(recordings[-1])
    return Piece(kind, recordings, [level_of(hit) - hardest for hit in recordings])


def _skin(sound: dict[str, float], strength: float, rng: np.random.Generator) -> np.ndarray:
    """A sine whose frequency falls, and noise."""
    time = _time(max(sound["decay"], sound["hiss"]))
    frequency = sound["pitch"] * (1 + (sound["sweep"] - 1) * strength * np.exp(-time / sound["fall"]))
    tone = np.sin(2 * np.pi * np.cumsum(frequency) / SAMPLING_RATE) * np.exp(-time / sound["decay"])
    hiss = _filtered(rng.standard_normal(len(time)), sound["lowest"], "highpass") * np.exp(-time / sound["hiss"])
    return tone * np.minimum(1, time / 0.001) + sound["noise"] * strength * hiss


def _metal(sound: dict[str, float], strength: float, rng: np.random.Generator) -> np.ndarray:
    """Square waves that fit no scale, and noise, without their low end."""
    time = _time(sound["decay"])
    ratios = 1 + np.cumsum(rng.uniform(0.1, 0.6, PARTIALS))
    metal = sum(np.sign(np.sin(2 * np.pi * sound["pitch"] * ratio * time + ratio)) for ratio in ratios) / PARTIALS
    body = metal + sound["noise"] * rng.standard_normal(len(time))
    return _filtered(body, sound["lowest"] * strength**0.3, "highpass") * np.exp(-time / sound["decay"])


def _clap(sound: dict[str, float], strength: float, rng: np.random.Generator) -> np.ndarray:
    """A few hands, not quite together."""
    time = _time(sound["decay"])
    envelope = 0.6 * np.exp(-time / sound["decay"])
    for start in np.cumsum(rng.uniform(0.007, 0.014, 4)):
        envelope += np.where(time >= start, np.exp(-(time - start).clip(0) / 0.004), 0)
    band = [0.6 * sound["centre"], min(2 * sound["centre"] * (1 + strength), 20000)]
    return _filtered(rng.standard_normal(len(time)), band, "bandpass") * envelope


def _time(decay: float) -> np.ndarray:
    """Sample times in seconds until a sound of this time constant is 60 dB down, at most 4 s."""
    return np.arange(round(min(7 * decay + 0.02, 4) * SAMPLING_RATE)) / SAMPLING_RATE


def _filtered(waveform: np.ndarray, frequency: float | list[float], kind: str) -> np.ndarray:
    return signal.sosfilt(signal.butter(2, frequency, kind, fs=SAMPLING_RATE, output="sos"), waveform)
