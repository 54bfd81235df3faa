"""Voices for the singer: speech spoken by espeak-ng or read from a folder, and real vocal stems cut into phrases."""

import functools
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from scipy import ndimage

from processing_mss import AUDIO_SUFFIXES, read_audio, resample

from ..manifest import canonical_stem
from .score import SAMPLING_RATE

LANGUAGES = ("en-us", "en-gb", "de", "es", "fr-fr", "it", "pt-br", "pl", "sv", "nl", "fi", "ro", "tr", "cs", "hu")
# Voices of espeak-ng that are pitched; whispers and robots are not.
VARIANTS = ("m1", "m2", "m3", "m4", "m5", "m6", "m7", "f1", "f2", "f3", "f4", "f5", "Andy", "Annie", "belinda", "steph",
            "Alicia", "Michael", "linda", "max", "Mario", "shelby", "zac", "caleb", "anika", "antonio")  # fmt: skip
CONSONANTS = ("", "b", "d", "f", "g", "l", "m", "n", "r", "s", "t", "v", "sh", "br", "st", "l", "n", "m", "d")
VOWELS = ("a", "e", "i", "o", "u", "ah", "ee", "oh", "oo", "ay")
CODAS = ("", "", "", "n", "m", "l", "s", "t")
WORDS = (
    "love night light dream fire rain heart home time road river sky fall fly stay run hold believe forever tonight "
    "never always over under again alone together baby summer morning golden hurricane remember running falling "
    "burning waiting calling shadow silver ocean moving slowly yesterday tomorrow nobody everybody you me we oh yeah in"
).split()


@dataclass
class Speech:
    """What a singer's voice is made of: mono float64 in hertz (Hz), and in words where it comes from."""

    waveform: np.ndarray
    sampling_rate: int
    description: str


def make_text(syllables: int, rng: np.random.Generator) -> str:
    """Nonsense lyrics, in words or in syllables of about every sound."""
    if rng.random() < 0.5:
        return " ".join(rng.choice(WORDS, max(4, syllables // 2)).tolist())
    made = [f"{rng.choice(CONSONANTS)}{rng.choice(VOWELS)}{rng.choice(CODAS)}" for _ in range(max(6, syllables))]
    words, position = [], 0
    while position < len(made):
        size = int(rng.integers(1, 4))
        words.append("".join(made[position : position + size]))
        position += size
    return " ".join(words)


def speak(syllables: int, rng: np.random.Generator) -> Speech:
    """Speech of a random voice by espeak-ng, long enough for about so many syllables.

    Raises:
        ValueError: espeak-ng is not installed, or gave no sound.
    """
    if shutil.which("espeak-ng") is None:
        raise ValueError("Synthetic speech needs the program espeak-ng (Debian: apt install espeak-ng).")
    language, variant = str(rng.choice(LANGUAGES)), str(rng.choice(VARIANTS))
    pitch, speed, text = int(rng.integers(20, 80)), int(rng.integers(110, 170)), make_text(syllables, rng)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speech.wav"
        voice = f"{language}+{variant}"
        command = ["espeak-ng", "-v", voice, "-p", str(pitch), "-s", str(speed), "-w", str(path), text]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode or not path.is_file():
            raise ValueError(f"espeak-ng failed with the voice {voice}: {result.stderr.strip()}")
        waveform, rate = soundfile.read(path)
    return Speech(waveform, rate, f"espeak-ng {voice}, pitch {pitch}, speed {speed}")


def find_audio(folder: str | Path, vocals_only: bool) -> list[Path]:
    """Audio files below a folder, sorted; with `vocals_only` those whose name says another stem are left out.

    Raises:
        ValueError: none there.
    """
    paths = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
    if vocals_only:
        paths = [path for path in paths if canonical_stem(path.stem) in ("vocals", None)]
    if not paths:
        raise ValueError(f"There are no {'vocals' if vocals_only else 'audio files'} in {folder}.")
    return paths


def read_speech(path: Path, paths: list[Path], seconds: float, rng: np.random.Generator) -> Speech:
    """So many seconds of one speaker: a recording from a random place, and if it is short, others of its folder.

    Args:
        paths: the files to take others from, in random order; those of another folder or rate are passed over.
    """
    waveform, rate = read_audio(path)
    length = round(seconds * rate)
    start = int(rng.integers(0, max(1, waveform.shape[1] - length)))
    pieces = [waveform[:, start : start + length].mean(axis=0)]
    others = [other for other in paths if other.parent == path.parent and other != path]
    for number in rng.permutation(len(others)):
        if sum(map(len, pieces)) >= length:
            break
        waveform, other_rate = read_audio(others[number])
        if other_rate == rate:
            pieces.append(waveform.mean(axis=0))
    joined = np.concatenate(pieces)[:length].astype(np.float64)
    more = f" and {len(pieces) - 1} more" if len(pieces) > 1 else ""
    return Speech(joined, rate, f"{path.parent.name}/{path.name} from {start / rate:.2f} s{more}")


@functools.lru_cache(maxsize=2)
def _read_stereo(path: Path) -> np.ndarray:
    waveform, rate = read_audio(path)
    waveform = waveform[:2] if len(waveform) >= 2 else np.repeat(waveform, 2, axis=0)
    return resample(torch.from_numpy(waveform), rate, SAMPLING_RATE).numpy()


def find_phrases(waveform: np.ndarray) -> list[tuple[int, int]]:
    """Where a vocal stem `(2, T)` is heard: (start, end) in samples, pauses of less than 0.4 s included.

    The threshold is 40 dB below the loudest tenth of a second; every phrase gets 50 ms before and 150 ms after.
    """
    frame = SAMPLING_RATE // 100
    count = waveform.shape[1] // frame
    power = np.mean(waveform[:, : count * frame].reshape(2, count, frame) ** 2, axis=(0, 2))
    power = ndimage.uniform_filter1d(power, 10) if count else power
    if not count or power.max() < 1e-8:
        return []
    active = power > power.max() * 1e-4
    active = ndimage.binary_closing(np.pad(active, 50), np.ones(40))[50:-50]
    return [
        (max(0, (start - 5) * frame), min(waveform.shape[1], (end + 15) * frame))
        for start, end in runs(active)
        if end - start >= 20
    ]


def runs(active: np.ndarray) -> list[tuple[int, int]]:
    """Where `(frames,)` bool is True: first frame of each run and the one after its last."""
    edges = np.flatnonzero(np.diff(active.astype(int), prepend=0, append=0)).tolist()
    return list(zip(edges[::2], edges[1::2]))


def place_recorded(
    path: Path, sung: list[tuple[float, float]], duration: float, rng: np.random.Generator
) -> tuple[np.ndarray, list[dict]]:
    """Phrases of a real vocal stem, from a random one on, at the beginning of every sung section.

    Returns:
        `(2, duration * 48000)` float32, and what was placed: start in the song, start in the file, length, in seconds.

    Raises:
        ValueError: the stem is silent.
    """
    vocals = _read_stereo(path)
    spans = find_phrases(vocals)
    if not spans:
        raise ValueError(f"{path} is silent.")
    output = np.zeros((2, round(duration * SAMPLING_RATE)), dtype=np.float32)
    number, placed = int(rng.integers(len(spans))), []
    for begin, end in sung:
        position, limit = round(begin * SAMPLING_RATE), min(round(end * SAMPLING_RATE), output.shape[1])
        while limit - position > SAMPLING_RATE // 2:
            start, stop = spans[number % len(spans)]
            length = min(stop - start, limit - position)
            phrase = vocals[:, start : start + length] * fades(length)
            output[:, position : position + length] += phrase
            at, came_from, seconds = (samples / SAMPLING_RATE for samples in (position, start, length))
            placed.append({"at": at, "from": came_from, "seconds": seconds})
            following = spans[(number + 1) % len(spans)][0]
            # The singer's own pause before the next phrase, at most two seconds of it.
            position += length + int(np.clip(following - stop, 0, 2 * SAMPLING_RATE))
            number += 1
    return output, placed


def fades(length: int, seconds: float = 0.03) -> np.ndarray:
    """`(length,)` float32 of ones that begins and ends with a raised cosine."""
    size = min(round(seconds * SAMPLING_RATE), length // 2)
    ramp = 0.5 - 0.5 * np.cos(np.pi * np.arange(size) / max(size, 1))
    return np.concatenate((ramp, np.ones(length - 2 * size), ramp[::-1])).astype(np.float32)
