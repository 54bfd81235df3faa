"""Production: panning, tone, saturation, compression, echo, reverberation, loudness; `(2, T)` float32 at 48 kHz."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage, signal

from .render_instruments import SAMPLING_RATE

TONE_BANDS = (60, 200, 800, 3000, 8000)  # hertz (Hz), where `equalize` sets gains
BLOCK = 240  # samples (5 ms) that a compressor measures at once


@dataclass
class Room:
    """A room to be heard in: 60 dB decay in seconds, first reflection in seconds, brightness 0-1."""

    decay: float
    predelay: float
    brightness: float


def pan(waveform: np.ndarray, position: float, width: float) -> np.ndarray:
    """Constant-power panning from -1 (left) to 1 (right), after narrowing the stereo image (`width` 0 is mono)."""
    middle = waveform.mean(axis=0, keepdims=True)
    angle = (position + 1) * np.pi / 4
    gains = (np.sqrt(2) * np.array([[np.cos(angle)], [np.sin(angle)]])).astype(np.float32)
    return gains * (middle + np.float32(width) * (waveform - middle))


def equalize(waveform: np.ndarray, gains_db: list[float]) -> np.ndarray:
    """A smooth tone curve through gains in dB at `TONE_BANDS`, as one linear-phase filter of 1023 taps."""
    frequencies = np.array([0, *TONE_BANDS, SAMPLING_RATE / 2]) / (SAMPLING_RATE / 2)
    gains = 10 ** (np.array([gains_db[0], *gains_db, gains_db[-1]]) / 20)
    taps = signal.firwin2(1023, frequencies, gains).astype(np.float32)
    return signal.oaconvolve(waveform, taps[None], mode="same", axes=-1)


def saturate(waveform: np.ndarray, drive: float) -> np.ndarray:
    """Soft clipping; `drive` is how far the peak goes into it (0 changes nothing, 3 is distortion). Keeps the peak."""
    peak = np.abs(waveform).max()
    if peak == 0 or drive <= 0:
        return waveform
    return (np.tanh(waveform * (drive / peak)) * (peak / np.tanh(drive))).astype(np.float32)


def compression_gain(waveform: np.ndarray, threshold_db: float, ratio: float, release: float) -> np.ndarray:
    """Gain of a compressor, `(T,)` float32 of at most 1, to be multiplied onto one waveform or onto all stems alike.

    Levels are measured block-wise (5 ms); gain falls within two blocks and comes back over `release` seconds.

    Args:
        threshold_db: relative to the loudest block, so that the effect does not depend on the level.
        ratio: of input to output changes above the threshold.
    """
    length = waveform.shape[1]
    padded = np.pad(waveform, ((0, 0), (0, -length % BLOCK)))
    levels = 10 * np.log10(np.mean(padded.reshape(2, -1, BLOCK) ** 2, axis=(0, 2)) + 1e-10)
    over = np.maximum(levels - (levels.max() + threshold_db), 0) * (1 - 1 / ratio)
    # Hold the reduction over the neighbouring blocks, then let it go exponentially: attack looks ahead, release trails.
    held = ndimage.maximum_filter1d(over, 5)
    keep = np.exp(-BLOCK / (release * SAMPLING_RATE))
    trailing = signal.lfilter([1 - keep], [1, -keep], held)
    reduction = np.maximum(ndimage.uniform_filter1d(held, 3), trailing)
    centres = np.arange(len(reduction)) * BLOCK + BLOCK / 2
    return (10 ** (-np.interp(np.arange(length), centres, reduction) / 20)).astype(np.float32)


def echo(waveform: np.ndarray, delay: float, feedback: float, level: float) -> np.ndarray:
    """Repeats every `delay` seconds, each `feedback` times as loud as the one before, in turn left and right."""
    output, step = waveform.copy(), round(delay * SAMPLING_RATE)
    for repeat in range(1, 5):
        shift = repeat * step
        if shift >= waveform.shape[1]:
            break
        gains = np.array([[1.0], [0.4]] if repeat % 2 else [[0.4], [1.0]], dtype=np.float32)
        output[:, shift:] += level * feedback ** (repeat - 1) * gains * waveform[:, :-shift]
    return output


def impulse_response(room: Room, rng: np.random.Generator) -> np.ndarray:
    """A room's stereo impulse response `(2, N)` float32 of unit energy, without the direct sound.

    Early reflections are single taps within 80 ms; the rest is noise, different for both ears, in three bands that
    decay exponentially, high ones faster the darker the room.
    """
    length = int(SAMPLING_RATE * min(room.predelay + room.decay, 4.0))
    start = int(SAMPLING_RATE * room.predelay)
    time = np.arange(length) / SAMPLING_RATE
    spectrum = np.fft.rfft(rng.standard_normal((2, length)))
    frequencies = np.fft.rfftfreq(length, 1 / SAMPLING_RATE)
    response = np.zeros((2, length))
    bands = ((150, 800, 1.0), (800, 4000, 0.6 + 0.35 * room.brightness), (4000, 16000, 0.25 + 0.5 * room.brightness))
    for low, high, share in bands:
        inside = 1 / (1 + (low / np.maximum(frequencies, 1)) ** 4) / (1 + (frequencies / high) ** 4)
        response += np.fft.irfft(spectrum * inside, length) * np.exp(-6.9 * time / (room.decay * share))
    response[:, :start] = 0
    response /= np.sqrt(np.sum(response**2) / 2) + 1e-12

    taps = start + (rng.uniform(0, 0.08, (2, 12)) * SAMPLING_RATE).astype(int)
    strengths = rng.choice([-1, 1], (2, 12)) * np.exp(-(taps - start) / (0.03 * SAMPLING_RATE))
    early = np.zeros_like(response)
    inside = taps < length
    np.add.at(early, (np.nonzero(inside)[0], taps[inside]), strengths[inside])
    response += 0.6 * early / (np.sqrt(np.sum(early**2) / 2) + 1e-12)
    return (response / np.sqrt(np.sum(response**2) / 2)).astype(np.float32)


def reverberate(waveform: np.ndarray, response: np.ndarray) -> np.ndarray:
    """The reverberation alone (no direct sound), as long as the waveform."""
    return signal.oaconvolve(waveform, response, axes=-1)[:, : waveform.shape[1]].astype(np.float32)


def loudness(waveform: np.ndarray) -> float:
    """Integrated loudness in LUFS after ITU-R BS.1770-4: K weighting, 400 ms blocks, both gates. -inf for silence."""
    # The standard's two filters at 48 kHz: the head's shelf, then a high-pass.
    sections = np.array(
        [
            [1.53512485958697, -2.69169618940638, 1.19839281085285, 1, -1.69065929318241, 0.73248077421585],
            [1.0, -2.0, 1.0, 1, -1.99004745483398, 0.99007225036621],
        ]
    )
    hop = SAMPLING_RATE // 10
    weighted = signal.sosfilt(sections, waveform.astype(np.float64))
    count = max(weighted.shape[1] // hop, 1)
    power = np.sum(np.pad(weighted, ((0, 0), (0, hop)))[:, : count * hop].reshape(2, count, hop) ** 2, axis=(0, 2))
    blocks = np.convolve(power, np.ones(min(4, count)), mode="valid") / (hop * min(4, count))
    levels = -0.691 + 10 * np.log10(blocks + 1e-20)
    loud = blocks[levels > -70]
    if not len(loud):
        return float("-inf")
    relative = -0.691 + 10 * np.log10(loud.mean()) - 10
    return float(-0.691 + 10 * np.log10(blocks[levels > max(relative, -70)].mean()))
