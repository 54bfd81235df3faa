"""Singing made from speech: the WORLD vocoder keeps a voice's timbre, the pitch is the melody's.

Speech is cut into syllables; each note of the melody gets one. Its consonant keeps its speed and comes just before the
note, its vowel is stretched over it. Pitch glides between notes, wavers and carries vibrato.
"""

import importlib.metadata
import itertools
import sys
import types
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage, signal

from processing_mss.resampling_mss import resample

from .score import SAMPLING_RATE, Note
from .voices import Speech, runs

PITCH_RATE = 24000  # hertz (Hz) at which the speech's pitch is measured
FRAME = 0.005  # seconds between frames of WORLD
BIN = 48000 / 2048  # hertz (Hz) between bins, at every rate of analysis
VOWEL_BINS = 128  # bins that hold most of a vowel
BAND_DB = 35  # where a recording ends: so far below its level at 2-6 kHz
# Singing is brighter than speech, and mixes brighten it more: (from hertz, fully from hertz, band, level in dB of that
# band over 0.2-4 kHz) that dull voices are lifted to, as measured on vocals of released songs.
BRIGHTNESS = ((1000, 5000, (4000, 8000), -18.0), (7000, 10000, (8000, 16000), -21.0))
MAX_LIFT = 15.0  # dB
MAX_ONSET = 0.12  # seconds that a consonant takes before its note


@dataclass
class Voice:
    """A voice in WORLD's terms, at 48 kHz, frames of 5 ms.

    Args:
        log_envelope: `(frames, 1025)` float32, natural logarithm of the power spectrum's envelope.
        aperiodicity: `(frames, 1025)` float32, 0 (tone) to 1 (noise).
        voiced: `(frames,)` bool.
        syllables: (first frame, first of the vowel, last of the vowel, end) of each syllable.
        pitch: of the speech, in hertz (Hz), the median.
        description: where it comes from.
    """

    log_envelope: np.ndarray
    aperiodicity: np.ndarray
    voiced: np.ndarray
    syllables: list[tuple[int, int, int, int]]
    pitch: float
    description: str


@dataclass
class SingingStyle:
    """How a take is sung.

    Args:
        vibrato_rate: in hertz (Hz).
        vibrato_depth: in semitones to either side, on long notes.
        glide: seconds that the pitch takes from note to note.
        scoop: semitones below a phrase's first note where it begins.
        drift: semitones (standard deviation) of slow wavering.
        tuning: semitones that the whole take is off.
        lateness: seconds that the whole take is late.
        formants: factor on the spectral envelope's frequencies: above 1 a smaller singer.
        breath: noise mixed into the tone, 0-1.
    """

    vibrato_rate: float = 5.5
    vibrato_depth: float = 0.25
    glide: float = 0.06
    scoop: float = 0.5
    drift: float = 0.04
    tuning: float = 0.0
    lateness: float = 0.0
    formants: float = 1.0
    breath: float = 0.05


def load_world() -> types.ModuleType:
    """The module pyworld.

    pyworld 0.3.5 asks `pkg_resources` for its own version number while it is imported; setuptools dropped that module
    in its version 82. Only for that import a stand-in answers.
    """
    if "pyworld" in sys.modules or "pkg_resources" in sys.modules:
        import pyworld

        return pyworld
    stand_in = types.ModuleType("pkg_resources")
    stand_in.get_distribution = importlib.metadata.distribution
    sys.modules["pkg_resources"] = stand_in
    try:
        import pyworld
    finally:
        del sys.modules["pkg_resources"]
    return pyworld


def analyse(speech: Speech) -> Voice:
    """Speech as a voice that can sing: recordings of 44.1 kHz and more keep their full band, others are analysed at
    24 kHz, which takes half the time; espeak-ng gives no more.

    Raises:
        ValueError: no syllable found (silence, noise, or whispering).
    """
    world = load_world()
    rate = SAMPLING_RATE if speech.sampling_rate >= 44100 else SAMPLING_RATE // 2
    original = torch.from_numpy(speech.waveform)
    peak = np.abs(speech.waveform).max(initial=0)
    if peak == 0 or len(speech.waveform) < speech.sampling_rate // 2:
        raise ValueError(f"There is no speech in {speech.description}.")
    low_rate = resample(original, speech.sampling_rate, PITCH_RATE).numpy() / peak
    pitch, times = world.dio(low_rate, PITCH_RATE, frame_period=1000 * FRAME)
    pitch = world.stonemask(low_rate, pitch, times, PITCH_RATE)
    waveform = resample(original, speech.sampling_rate, rate).numpy() / peak
    envelope = world.cheaptrick(waveform, pitch, times, rate, fft_size=round(rate / BIN))
    aperiodicity = world.d4c(waveform, pitch, times, rate, fft_size=round(rate / BIN))
    # Syllables are built on vowels: voiced, and loudest below 3 kHz, which a buzzing "z" is not.
    low, high = envelope[:, :VOWEL_BINS].sum(axis=1), envelope[:, VOWEL_BINS:].sum(axis=1)
    syllables = find_syllables((pitch > 0) & (low > high), low)
    if not syllables:
        raise ValueError(f"There is no voiced syllable in {speech.description}.")
    log_envelope = np.log(envelope + 1e-12)
    log_envelope, aperiodicity = extend_band(log_envelope, aperiodicity, find_band(log_envelope[pitch > 0]))
    return Voice(
        log_envelope.astype(np.float32),
        aperiodicity.astype(np.float32),
        pitch > 0,
        syllables,
        float(np.median(pitch[pitch > 0])),
        speech.description,
    )


def find_band(log_envelope: np.ndarray) -> int:
    """The first bin above which a recording holds nothing, from spectra of its voiced frames `(frames, bins)`.

    Files of 48 kHz often end far below 24 kHz: they were recorded or stored at a lower rate.
    """
    level = ndimage.uniform_filter1d(10 / np.log(10) * log_envelope.mean(axis=0), 17)
    reference = level[round(2000 / BIN) : round(6000 / BIN)].mean()
    begin = round(4000 / BIN)
    # The first fall, not the last sound: lossy files hold some noise far above the band's end.
    silent = np.append(level[begin:] < reference - BAND_DB, True)
    return int(0.96 * (begin + np.argmax(silent)))


def extend_band(log_envelope: np.ndarray, aperiodicity: np.ndarray, edge: int) -> tuple[np.ndarray, np.ndarray]:
    """To 1025 bins (24 kHz): from the bin `edge` on air, as noise.

    The envelope goes on from its level below the edge and falls by 12 dB an octave, as that of studio speech does.
    """
    level = log_envelope[:, edge - 64 : edge].mean(axis=1, keepdims=True)
    bins = np.arange(edge, round(SAMPLING_RATE / 2 / BIN) + 1)
    air = level - 2 * np.log(4) * np.log2(bins / edge)[None]
    log_envelope = np.concatenate((log_envelope[:, :edge], air), axis=1)
    noise = np.clip(aperiodicity[:, edge - 64 : edge].mean(axis=1, keepdims=True) + 0.3, 0, 1)
    return log_envelope, np.concatenate((aperiodicity[:, :edge], np.repeat(noise, len(bins), axis=1)), axis=1)


def brighten(log_envelope: np.ndarray, voiced: np.ndarray) -> np.ndarray:
    """Envelopes `(frames, 1025)` with the bands of `BRIGHTNESS` lifted to their levels; bright ones stay."""
    frequencies = np.arange(log_envelope.shape[1]) * BIN
    power = np.exp(log_envelope[voiced]).mean(axis=0)
    for begin, full, (low, high), target in BRIGHTNESS:
        band = power[(frequencies >= low) & (frequencies < high)].sum()
        level = 10 * np.log10(band / power[(frequencies >= 200) & (frequencies < 4000)].sum())
        ramp = np.clip(np.log2(np.maximum(frequencies, 1) / begin) / np.log2(full / begin), 0, 1)
        lift = np.log(10) / 10 * np.clip(target - level, 0, MAX_LIFT) * ramp
        log_envelope = log_envelope + lift
        power = power * np.exp(lift)
    return log_envelope


def find_syllables(voiced: np.ndarray, power: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Syllables as (first frame, first of the vowel, last of the vowel, end), from peaks of the power of voiced frames.

    A syllable reaches from the dip of power before its peak to the next; its vowel is where, around the peak, frames
    are voiced and within 9 dB of it.
    """
    level = 10 * np.log10(ndimage.gaussian_filter1d(power, 3) + 1e-12)
    level = np.where(voiced, level, level - 20)
    peaks, _ = signal.find_peaks(level, prominence=3, distance=16, height=level.max() - 25)
    peaks = [int(peak) for peak in peaks if voiced[peak]]
    if not peaks:
        return []
    dips = [first + int(np.argmin(level[first:second])) for first, second in itertools.pairwise(peaks)]
    bounds = [max(0, peaks[0] - 30), *dips, min(len(level), peaks[-1] + 40)]
    syllables = []
    for peak, begin, end in zip(peaks, bounds[:-1], bounds[1:]):
        strong = voiced & (level > level[peak] - 9)
        before, after = ~strong[begin:peak][::-1], ~strong[peak:end]
        first = peak - (int(np.argmax(before)) if before.any() else peak - begin)
        last = peak + (int(np.argmax(after)) if after.any() else end - peak) - 1
        if last - first >= 6:
            syllables.append((int(begin), int(first), int(last), int(end)))
    return syllables


def pitch_curve(melody: list[Note], frames: int, style: SingingStyle, rng: np.random.Generator) -> np.ndarray:
    """The sung pitch of every frame of 5 ms as MIDI pitch, `(frames,)`; also defined where nobody sings."""
    times = np.arange(frames) * FRAME
    starts = np.array([note.start for note in melody]) + style.lateness
    pitches = np.array([note.pitch for note in melody], dtype=np.float64)
    current = np.clip(np.searchsorted(starts, times, side="right") - 1, 0, None)
    # A glide is a smoothed step: half of it before the note, half after.
    size = max(1, round(style.glide / FRAME))
    window = np.hanning(size + 2)[1:-1]
    curve = np.convolve(np.pad(pitches[current], size, mode="edge"), window / window.sum(), mode="same")[size:-size]

    ends = np.array([note.end for note in melody]) + style.lateness
    since, length = times - starts[current], (ends - starts)[current]
    first = np.concatenate(([True], starts[1:] - ends[:-1] > 0.15))[current]
    curve -= np.where(first & (since >= 0), style.scoop * np.exp(-np.maximum(since, 0) / 0.03), 0)
    # Vibrato sets in after 0.25 s, on notes that last.
    depth = style.vibrato_depth * np.clip((since - 0.25) / 0.3, 0, 1) * np.clip((length - 0.3) / 0.3, 0, 1)
    rate = style.vibrato_rate * (1 + 0.05 * ndimage.gaussian_filter1d(rng.standard_normal(frames), 40) * np.sqrt(80))
    curve += depth * np.sin(2 * np.pi * np.cumsum(rate) * FRAME + rng.uniform(0, 2 * np.pi))
    drift = ndimage.gaussian_filter1d(rng.standard_normal(frames), 20)
    return curve + style.tuning + style.drift * drift / (drift.std() + 1e-9)


def source_frames(
    melody: list[Note], syllables: list[tuple[int, int, int, int]], frames: int, lateness: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which frame of the speech every frame of the song takes.

    Args:
        syllables: of each note; see `Voice`.

    Returns:
        position in the speech (fractional), the note's number (-1 outside notes), and whether the vowel is sung; each
        `(frames,)`.
    """
    position, owner = np.zeros(frames), np.full(frames, -1)
    vowel = np.zeros(frames, dtype=bool)
    end_before = 0
    for number, (note, (begin, first, last, end)) in enumerate(zip(melody, syllables)):
        start, stop = (round((time + lateness) / FRAME) for time in (note.start, note.end))
        onset = max(end_before, start - min(first - begin, round(MAX_ONSET / FRAME)), 0)
        coda = min(end - last, max((stop - start) // 3, 1), 16)
        stop = min(stop, frames)
        if stop - start < 4:
            continue
        # Natural speed for the consonant, for the way into the vowel and out of it; only its middle is stretched.
        edge = min((last - first) // 3, (stop - coda - start) // 3)
        knots = [onset, start, start + edge, stop - coda - edge, stop - coda, stop]
        sources = [first - (start - onset), first, first + edge, last - edge, last, min(last + coda, end)]
        span = np.arange(onset, stop)
        position[span] = np.interp(span, knots, sources)
        owner[span] = number
        vowel[start : stop - coda] = True
        end_before = stop
    return position, owner, vowel


def sing_melody(
    voice: Voice, melody: list[Note], duration: float, style: SingingStyle, order: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """One take of a melody.

    Args:
        melody: notes that do not overlap; see `Arrangement.melody`.
        duration: of the song, in seconds.
        order: number of the syllable that each note is sung on, `(notes,)`.

    Returns:
        `(duration * 48000,)` float32 with a peak of 1, and the pitch of every 5 ms in hertz (Hz), 0 where unvoiced.
    """
    if not melody:
        raise ValueError("There is no melody to sing.")
    frames, total = int(duration / FRAME) + 1, round(duration * SAMPLING_RATE)
    chosen = [voice.syllables[number % len(voice.syllables)] for number in order]
    position, owner, vowel = source_frames(melody, chosen, frames, style.lateness)
    sung = owner >= 0
    nearest = np.clip(position.astype(int), 0, len(voice.voiced) - 1)
    pitch = 440 * 2 ** ((pitch_curve(melody, frames, style, rng) - 69) / 12)
    pitch = np.where(sung & (vowel | voice.voiced[nearest]), pitch, 0)

    # Every note is as loud as its velocity says, whatever its syllable was; gains are of the logarithm of power.
    envelope = brighten(shift_formants(voice.log_envelope, style.formants), voice.voiced)
    aperiodicity = np.clip(shift_formants(voice.aperiodicity, style.formants) + style.breath, 0.001, 0.999)
    numbers = np.where(sung & vowel, owner, len(melody))
    counts = np.bincount(numbers, minlength=len(melody) + 1)
    means = np.bincount(numbers, envelope.max(axis=1)[nearest], len(melody) + 1) / np.maximum(counts, 1)
    targets = np.array([2 * np.log(note.velocity / 127) for note in melody] + [0.0])
    edges = ndimage.uniform_filter1d(sung.astype(np.float64), 7)  # attack and release
    gains = (targets - means)[owner] + 2 * np.log(np.maximum(edges * sung, 1e-6))

    output = np.zeros(total, dtype=np.float32)
    for begin, end in runs(ndimage.binary_dilation(sung, iterations=8)):
        # Silence is not synthesized: WORLD takes as long for it as for singing.
        span = slice(begin, end)
        phrase = synthesize(pitch[span], position[span], envelope, aperiodicity, gains[span])
        start = round(begin * FRAME * SAMPLING_RATE)
        phrase = phrase[: total - start]
        output[start : start + len(phrase)] += phrase
    return output / (np.abs(output).max() + 1e-9), pitch


def shift_formants(frames: np.ndarray, factor: float) -> np.ndarray:
    """Spectra `(frames, bins)` with their frequencies multiplied by `factor`."""
    last = frames.shape[1] - 1
    bins = np.minimum(np.arange(frames.shape[1], dtype=np.float32) / factor, last)
    lower = np.minimum(bins.astype(int), last - 1)
    share = (bins - lower).astype(np.float32)
    return frames[:, lower] * (1 - share) + frames[:, lower + 1] * share


def synthesize(
    pitch: np.ndarray, position: np.ndarray, log_envelope: np.ndarray, aperiodicity: np.ndarray, gains: np.ndarray
) -> np.ndarray:
    """The waveform of a phrase from the speech's frames at fractional positions; arrays of `(frames,)`, see `Voice`."""
    lower = np.clip(position.astype(int), 0, len(log_envelope) - 1)
    upper = np.minimum(lower + 1, len(log_envelope) - 1)
    weight = (position - np.floor(position)).astype(np.float32)[:, None]
    envelope = log_envelope[lower] * (1 - weight) + log_envelope[upper] * weight
    # Syllables meet with a jump of the timbre; over 15 ms it is not heard as a click.
    envelope = ndimage.uniform_filter1d(envelope, 3, axis=0)
    envelope = np.exp(envelope + gains[:, None].astype(np.float32)).astype(np.float64)
    noise = (aperiodicity[lower] * (1 - weight) + aperiodicity[upper] * weight).astype(np.float64)
    waveform = load_world().synthesize(pitch, envelope, noise, SAMPLING_RATE, frame_period=1000 * FRAME)
    return waveform.astype(np.float32)
