"""Production: the effects of each part (panning, tone, saturation, compression, echo), one room, and the master.

Waveforms are `(2, T)` float32 at 48 kHz.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage, signal

from ..manifest import STEMS
from .score import SAMPLING_RATE

TONE_BANDS = (60, 200, 800, 3000, 8000)  # hertz (Hz), where `equalize` sets gains
FRAME = 240  # samples (5 ms) that a compressor measures at once
PEAK = 0.98  # of the loudest of the mixture and the stems
FADE = 0.3  # seconds at the end


@dataclass
class Room:
    """A room to be heard in: 60 dB decay in seconds, first reflection in seconds, brightness 0-1."""

    decay: float
    predelay: float
    brightness: float


@dataclass
class Channel:
    """Production of one part: position -1 to 1, stereo width 0-1, tone in dB at `TONE_BANDS`, saturation, compression
    (ratio 1: none), echo in seconds (0: none), share sent to the room, level in dB."""

    position: float
    width: float
    tone_db: list[float]
    drive: float
    ratio: float
    echo_seconds: float
    send: float
    level_db: float


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

    Levels are measured frame by frame (5 ms); gain falls within two frames and comes back over `release` seconds.

    Args:
        threshold_db: relative to the loudest frame, so that the effect does not depend on the level.
        ratio: of input to output changes above the threshold.
    """
    length = waveform.shape[1]
    padded = np.pad(waveform, ((0, 0), (0, -length % FRAME)))
    levels = 10 * np.log10(np.mean(padded.reshape(2, -1, FRAME) ** 2, axis=(0, 2)) + 1e-10)
    over = np.maximum(levels - (levels.max() + threshold_db), 0) * (1 - 1 / ratio)
    # Hold the reduction over the neighbouring frames, then let it go exponentially: attack looks ahead, release trails.
    held = ndimage.maximum_filter1d(over, 5)
    keep = np.exp(-FRAME / (release * SAMPLING_RATE))
    trailing = signal.lfilter([1 - keep], [1, -keep], held)
    reduction = np.maximum(ndimage.uniform_filter1d(held, 3), trailing)
    centres = np.arange(len(reduction)) * FRAME + FRAME / 2
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
    """Integrated loudness in LUFS (ITU-R BS.1770-4: K weighting, frames of 400 ms, both gates); -inf for silence."""
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
    frames = np.convolve(power, np.ones(min(4, count)), mode="valid") / (hop * min(4, count))
    levels = -0.691 + 10 * np.log10(frames + 1e-20)
    loud = frames[levels > -70]
    if not len(loud):
        return float("-inf")
    relative = -0.691 + 10 * np.log10(loud.mean()) - 10
    return float(-0.691 + 10 * np.log10(frames[levels > max(relative, -70)].mean()))


def active_rms(waveform: np.ndarray) -> np.float32:
    """Root mean square of the samples within 40 dB of the peak; 1 for silence."""
    active = waveform[np.abs(waveform) > 0.01 * np.abs(waveform).max()]
    return np.sqrt(np.mean(active**2)) if active.size else np.float32(1)


def draw_channel(stem: str, name: str, tempo: float, rng: np.random.Generator) -> Channel:
    """Production that suits a stem: bass and vocals in the middle, bass dark and dry, drums compressed."""
    central = stem in ("vocals", "drums", "bass")
    tone = rng.normal(0, 3, len(TONE_BANDS))
    if stem == "bass":
        tone = np.array([*rng.uniform(0, 3, 2), *-rng.uniform(0, 6, 3)])
    elif stem in ("vocals", "other"):
        tone[0] = -abs(tone[0]) - 6  # a high-pass, as every mix has it
    level = {"pad": -6, "comping": -2, "arpeggio": -5, "riff": -2, "solo": 1, "lead": 1}.get(name, 0)
    has_echo = stem not in ("bass", "drums") and rng.random() < 0.2
    return Channel(
        position=float(rng.normal(0, 0.05)) if central else float(rng.uniform(-0.8, 0.8)),
        width=float(rng.uniform(0, 0.3)) if stem == "bass" else float(rng.uniform(0.4, 1)),
        tone_db=np.clip(tone, -15, 9).round(2).tolist(),
        drive=float(rng.choice([0, 0, rng.uniform(0.3, 1)] if stem == "bass" else [0, 0, 0, rng.uniform(0.3, 2.5)])),
        ratio=float(rng.uniform(2, 6)) if central and rng.random() < 0.8 else 1.0,
        echo_seconds=60 / max(tempo, 40) * float(rng.choice([0.5, 0.75, 1])) if has_echo else 0.0,
        send=0.0 if stem == "bass" else float(rng.choice([0, rng.uniform(0.03, 0.15), rng.uniform(0.1, 0.4)])),
        level_db=level + float(rng.uniform(-3, 3)),
    )


def produce(waveform: np.ndarray, channel: Channel) -> np.ndarray:
    """A part after its channel: all parts come out equally loud but for the channel's level."""
    waveform = equalize(waveform, channel.tone_db)
    waveform = saturate(waveform, channel.drive)
    if channel.ratio > 1:
        waveform = waveform * compression_gain(waveform, -12, channel.ratio, 0.15)
    if channel.echo_seconds > 0:
        waveform = echo(waveform, channel.echo_seconds, 0.4, 0.35)
    gain = 10 ** (channel.level_db / 20) * 0.1 / active_rms(waveform)
    return pan(waveform * gain, channel.position, channel.width)


def mix_stems(
    tracks: list[tuple[str, np.ndarray, Channel]], length: int, response: np.ndarray
) -> dict[str, np.ndarray]:
    """Tracks added up to stems, each stem with its own share of the room."""
    stems = {stem: np.zeros((2, length), dtype=np.float32) for stem in STEMS}
    sends = {}
    for stem, waveform, channel in tracks:
        stems[stem] += waveform
        if channel.send > 0:
            sends[stem] = sends.get(stem, 0) + channel.send * waveform
    for stem, send in sends.items():
        stems[stem] += reverberate(send, response)
    return stems


def master(stems: dict[str, np.ndarray], levels: dict[str, float], bus_ratio: float, target: float):
    """Balance the stems by loudness (LUFS), compress and fade them with one common gain, and scale them together, in
    place: the mixture reaches the target loudness unless a peak would pass `PEAK`."""
    for stem, waveform in stems.items():
        measured = loudness(waveform)
        if np.isfinite(measured):
            waveform *= 10 ** ((levels[stem] - measured) / 20)
    mixture = sum(stems.values())
    gain = compression_gain(mixture, -9, bus_ratio, 0.2)
    fade = min(round(FADE * SAMPLING_RATE), len(gain))
    gain[-fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
    mixture *= gain
    for waveform in stems.values():
        waveform *= gain
    peak = max(np.abs(waveform).max() for waveform in (mixture, *stems.values()))
    measured = loudness(mixture)
    scale = PEAK / max(peak, 1e-9)
    if np.isfinite(measured):
        scale = min(scale, 10 ** ((target - measured) / 20))
    for waveform in stems.values():
        waveform *= np.float32(scale)
