"""Choirs and backing vocals out of recordings of single sung vowels.

Files of one singer (or group) are named alike but for the pitch at the end: `female_aa_A3.mp3`, `female_aa_C#4.mp3`.
Every note is the singer's nearest recording, resampled to its pitch and looped as long as it lasts.
"""

import functools
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import fft, ndimage, signal

from processing_mss import read_audio, resample

from .credits import source_name
from .production import active_rms
from .recipe import Choir, RenderConfig, Sung
from .score import SAMPLING_RATE, Arrangement, Note, harmonize
from .singing import load_world
from .voices import fades, find_audio

PITCH_NAME = re.compile(r"[_ -]?[A-Ga-g][#b]?-?\d$")
MIN_RECORDINGS = 3  # of a singer; fewer would have to be bent too far
MAX_SHIFT = 4.0  # semitones that a recording is resampled by: formants move with it, by a quarter at most
PITCH_RATE = 16000  # hertz (Hz) at which pitch is measured
STEADY = 0.7  # share of a vowel's frames that must be within a quarter tone of its pitch
SEAM = round(0.12 * SAMPLING_RATE)  # samples over which a loop's end fades into its beginning
ALONE_SHARE = 0.2  # of the songs that nobody sings, with a choir
HARMONY_SHARE = 0.5  # of choirs that sing along with a melody; others hold chords
INTERVALS = (2, -2, 4, -3, 5, 7, -7)  # degrees of the scale from the melody


@dataclass
class Vowel:
    """A recorded vowel: the steady part, evenly loud (RMS 1), `(T,)` float32 at 48 kHz; its MIDI pitch, measured."""

    waveform: np.ndarray
    pitch: float
    file: str


@dataclass
class Singer:
    """A singer, or a group in unison: recordings by rising pitch."""

    name: str
    vowels: list[Vowel]

    @property
    def low(self) -> float:
        return self.vowels[0].pitch - MAX_SHIFT

    @property
    def high(self) -> float:
        return self.vowels[-1].pitch + MAX_SHIFT

    def nearest(self, pitch: float) -> Vowel:
        return min(self.vowels, key=lambda vowel: abs(vowel.pitch - pitch))


@functools.lru_cache(maxsize=2)
def load_singers(folder: str) -> tuple[Singer, ...]:
    """The singers of a folder, by name. Files without a steady pitch (glides, noises, synthesizers) are left out.

    Raises:
        ValueError: nobody with `MIN_RECORDINGS` usable vowels.
    """
    groups: dict[str, list[Vowel]] = {}
    for path in find_audio(folder, vocals_only=False):
        match = PITCH_NAME.search(path.stem)
        vowel = read_vowel(path) if match else None
        if vowel is not None:
            groups.setdefault(path.stem[: match.start()], []).append(vowel)
    singers = tuple(
        Singer(name, sorted(vowels, key=lambda vowel: vowel.pitch))
        for name, vowels in sorted(groups.items())
        if len(vowels) >= MIN_RECORDINGS
    )
    if not singers:
        raise ValueError(
            f"A choir needs a singer with {MIN_RECORDINGS} steady vowels, named alike but for their pitch "
            f"(female_aa_A3.wav, female_aa_C#4.wav, ...); there is none in {folder}."
        )
    return singers


def read_vowel(path: Path) -> Vowel | None:
    """A recording's steady part, or None if it has no steady pitch for half a second."""
    waveform, rate = read_audio(path)
    mono = torch.from_numpy(waveform.mean(axis=0).astype(np.float64))
    pitch = measure_pitch(resample(mono, rate, PITCH_RATE).numpy())
    if pitch is None:
        return None
    part = steady_part(resample(mono, rate, SAMPLING_RATE).numpy())
    return Vowel(part.astype(np.float32), pitch, path.name) if len(part) > SAMPLING_RATE // 2 else None


def measure_pitch(waveform: np.ndarray) -> float | None:
    """MIDI pitch of a steady tone `(T,)` at 16 kHz between 60 and 1200 Hz, None if it is none.

    Names of files are not asked: they may be an octave off. WORLD's Dio alone takes groups in unison for an octave
    higher, so it searches around the period that the autocorrelation finds.
    """
    peak = np.abs(waveform).max(initial=0)
    if peak == 0 or len(waveform) < PITCH_RATE // 2:
        return None
    frames = np.lib.stride_tricks.sliding_window_view(waveform / peak, 1024)[::160] * np.hanning(1024)
    likeness = np.fft.irfft(np.abs(np.fft.rfft(frames, 2048)) ** 2)[:, : PITCH_RATE // 60]
    window = np.fft.irfft(np.abs(np.fft.rfft(np.hanning(1024), 2048)) ** 2)[: PITCH_RATE // 60]
    likeness = likeness / (likeness[:, :1] + 1e-12) / (window / window[0])
    likeness[:, : PITCH_RATE // 1200] = 0
    # The first lag that is nearly as good as the best: multiples of the period are as good as it.
    best = likeness.max(axis=1, keepdims=True)
    peaks = (likeness[:, 1:-1] >= likeness[:, :-2]) & (likeness[:, 1:-1] >= likeness[:, 2:])
    periods = 1 + np.argmax(peaks & (likeness[:, 1:-1] > 0.9 * best), axis=1)
    coarse = PITCH_RATE / np.median(periods)
    pitch, _ = load_world().dio(
        waveform / peak, PITCH_RATE, f0_floor=0.75 * coarse, f0_ceil=1.33 * coarse, frame_period=10.0
    )
    voiced = pitch[pitch > 0]
    if len(voiced) < STEADY * len(pitch):
        return None
    middle = np.median(voiced)
    near = np.abs(12 * np.log2(voiced / middle)) < 0.5
    return float(69 + 12 * np.log2(middle / 440)) if near.sum() > STEADY * len(pitch) else None


def steady_part(waveform: np.ndarray) -> np.ndarray:
    """The part within 12 dB of the loudest 50 ms, its loudness evened out so that a loop does not pump."""
    size = SAMPLING_RATE // 20
    power = ndimage.uniform_filter1d(waveform**2, size)
    loud = np.flatnonzero(power > power.max() * 10**-1.2)
    part = waveform[loud[0] : loud[-1] + 1]
    return part / np.sqrt(ndimage.uniform_filter1d(part**2, 3 * size) + 1e-12)


def sustain(part: np.ndarray, length: int) -> np.ndarray:
    """A steady tone `(T,)` made `length` samples long: its end fades into where its beginning resembles it most."""
    if length <= len(part):
        return part[:length]
    seam = min(SEAM, len(part) // 4)
    tail, head = part[-seam:], part[: seam + len(part) // 3]
    energy = np.convolve(head**2, np.ones(seam), mode="valid") * np.sum(tail**2)
    likeness = signal.correlate(head, tail, mode="valid") / np.sqrt(energy + 1e-12)
    start = int(np.argmax(likeness))
    rise = np.linspace(0, 1, seam, dtype=np.float32)
    # Equally loud throughout, however alike the two are.
    loudness = np.sqrt((1 - rise) ** 2 + rise**2 + 2 * rise * (1 - rise) * max(likeness[start], 0))
    joint = ((1 - rise) * tail + rise * part[start : start + seam]) / loudness
    turn = np.concatenate((joint, part[start + seam : -seam]))
    count = -(-(length - len(part) + seam) // len(turn))
    return np.concatenate((part[:-seam], np.tile(turn, count)))[:length]


def sing_note(vowel: Vowel, pitch: float, length: int) -> np.ndarray:
    """`length` samples of a vowel at a MIDI pitch, `(length,)` float32, as loud as the recording; no fades."""
    # Lengths that are quick to transform: a cent or two off, many times faster than prime ones.
    target = fft.next_fast_len(length)
    source = fft.next_fast_len(round(target * 2 ** ((pitch - vowel.pitch) / 12)))
    return signal.resample(sustain(vowel.waveform, source), target)[:length].astype(np.float32)


def sounding_chords(arrangement: Arrangement) -> tuple[np.ndarray, float]:
    """What the instruments play: which of 12 pitch classes (0 is C) belong to the chord of each bar, and bars' seconds.

    At most three a bar, those that last longest; read from the notes, because MIDI files name no chords.
    """
    bar = 60 / max(arrangement.tempo, 30) * (4 if arrangement.metre in ("4/4", "") else 3)
    notes = [note for part in arrangement.parts if not part.is_drum for note in part.notes]
    begins = np.arange(int(np.ceil(arrangement.duration / bar)))[:, None] * bar
    if not notes:
        return np.zeros((len(begins), 12), dtype=bool), bar
    starts, ends = np.array([note.start for note in notes]), np.array([note.end for note in notes])
    overlap = np.clip(np.minimum(ends, begins + bar) - np.maximum(starts, begins), 0, None)
    weight = overlap @ np.eye(12)[np.array([note.pitch for note in notes]) % 12]
    third = np.sort(weight, axis=1)[:, -3:-2]
    return (weight >= np.maximum(third, 0.15 * weight.max(axis=1, keepdims=True))) & (weight > 0), bar


def hold_chords(
    arrangement: Arrangement, spans: list[tuple[float, float]], singers: list[Singer], centres: list[float]
) -> list[list[Note]]:
    """Chords for some voices over spans of seconds, each voice moving as little as it can; a line of notes a voice."""
    chords, bar = sounding_chords(arrangement)
    lines: list[list[Note]] = [[] for _ in singers]
    previous = list(centres)
    for begin, end in spans:
        for number in range(round(begin / bar), min(len(chords), max(round(end / bar), 1))):
            taken: set[int] = set()
            for voice, singer in enumerate(singers):
                pitches = np.arange(int(np.ceil(singer.low)), int(singer.high) + 1)
                pitches = pitches[chords[number][pitches % 12]]
                if not len(pitches):
                    continue
                cost = np.abs(pitches - previous[voice]) + 0.3 * np.abs(pitches - centres[voice])
                cost = cost + 5 * np.isin(pitches % 12, list(taken))
                pitch = int(pitches[np.argmin(cost)])
                taken.add(pitch % 12)
                previous[voice] = pitch
                start, stop = number * bar, min((number + 1) * bar, end, arrangement.duration)
                line = lines[voice]
                if line and line[-1].pitch == pitch and abs(line[-1].end - start) < 1e-6:
                    line[-1] = line[-1]._replace(end=stop)
                elif stop - start > 0.2:
                    line.append(Note(start, stop, pitch, 100))
    return lines


def follow_melody(
    arrangement: Arrangement, spans: list[tuple[float, float]], singers: list[Singer], centres: list[float],
    intervals: list[int],
) -> list[list[Note]]:  # fmt: skip
    """The melody within spans of seconds, for each voice some degrees of the scale away, in its own octave."""
    melody = [note for note in arrangement.melody if any(begin <= note.start < end for begin, end in spans)]
    lines = []
    for singer, centre, interval in zip(singers, centres, intervals):
        line = harmonize(melody, arrangement.scale, interval)
        shift = 12 * round((centre - np.median([note.pitch for note in line])) / 12) if line else 0
        line = [note._replace(pitch=note.pitch + shift) for note in line]
        lines.append([note for note in line if singer.low <= note.pitch <= singer.high])
    return lines


def sing_lines(
    lines: list[list[Note]], singers: list[Singer], positions: list[float], attack: float, duration: float,
    rng: np.random.Generator,
) -> np.ndarray:  # fmt: skip
    """Lines of notes, one a voice at its place from -1 (left) to 1, `(2, duration * 48000)` float32."""
    output = np.zeros((2, round(duration * SAMPLING_RATE)), dtype=np.float32)
    for line, singer, position in zip(lines, singers, positions):
        angle = (position + 1) * np.pi / 4
        gains = np.array([[np.cos(angle)], [np.sin(angle)]], dtype=np.float32)
        for note in line:
            # Nobody is exactly on the beat or in tune; a note sounds on while the next one begins.
            start = max(0, round((note.start + rng.normal(0, 0.012)) * SAMPLING_RATE))
            length = min(round((note.end - note.start + attack) * SAMPLING_RATE), output.shape[1] - start)
            if length > SAMPLING_RATE // 20:
                tone = sing_note(singer.nearest(note.pitch), note.pitch + rng.normal(0, 0.06), length)
                output[:, start : start + length] += gains * tone * fades(length, attack)
    return output


def choose_spans(arrangement: Arrangement, rng: np.random.Generator) -> list[tuple[float, float]]:
    """Where a choir sings: one or more of the sections where singing belongs, or one half of a song without any."""
    sections = [(begin, min(end, arrangement.duration)) for begin, end in arrangement.sung]
    if not sections:
        half = arrangement.duration / 2
        sections = [(0.0, half), (half, arrangement.duration)]
    count = int(rng.integers(1, len(sections) + 1))
    return [sections[number] for number in sorted(rng.permutation(len(sections))[:count])]


def add_choir(
    config: RenderConfig,
    index: int,
    arrangement: Arrangement,
    vocals: np.ndarray | None,
    sung: Sung,
    rng: np.random.Generator,
) -> tuple[np.ndarray | None, Sung]:
    """A song's vocals `(2, T)` (None: nobody sings) and what they are, now and then with a choir.

    Raises:
        ValueError: see `load_singers`.
    """
    alone = vocals is None
    if rng.random() >= (ALONE_SHARE if alone else config.choir_share):
        return vocals, sung
    available = config.files_for(list(load_singers(str(config.choir_dir))), index)
    count = int(rng.integers(2, 5))
    singers = [available[number % len(available)] for number in rng.permutation(max(count, len(available)))[:count]]
    # Below the middle of what was recorded: the highest notes of a range are not those of backing vocals.
    centres = [
        singer.vowels[0].pitch + float(rng.uniform(0.25, 0.5)) * (singer.vowels[-1].pitch - singer.vowels[0].pitch)
        for singer in singers
    ]
    spans = choose_spans(arrangement, rng)
    intervals = rng.permutation(INTERVALS)[:count].tolist()
    follows = rng.random() < HARMONY_SHARE and sung.kind == "sung"
    if follows:
        lines, attack = follow_melody(arrangement, spans, singers, centres, intervals), float(rng.uniform(0.03, 0.08))
    else:
        lines, attack = hold_chords(arrangement, spans, singers, centres), float(rng.uniform(0.08, 0.4))
    positions = [float(rng.uniform(-0.9, 0.9)) for _ in singers]
    waveform = sing_lines(lines, singers, positions, attack, arrangement.duration, rng)
    gain_db = float(rng.uniform(-14, -4))
    if not waveform.any():
        return vocals, sung
    waveform /= active_rms(waveform)
    if alone:
        vocals, sung.kind = 0.1 * waveform, "choir"
    else:
        vocals = vocals + np.float32(float(active_rms(vocals)) * 10 ** (gain_db / 20)) * waveform
    files = sorted({singer.nearest(note.pitch).file for singer, line in zip(singers, lines) for note in line})
    sung.choir = Choir(
        folder=source_name(config.choir_dir),
        files=files,
        sings="melody" if follows else "chords",
        singers=[singer.name for singer in singers],
        positions=positions,
        gain_db=0.0 if alone else gain_db,
        notes=[[[*note[:3]] for note in line] for line in lines],
    )
    return vocals, sung
