"""Reading pieces of audio files, mono and at one rate, without decoding whole songs."""

import hashlib
import math
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from uuid import uuid4

import numpy as np
import torch

from processing_mss import AudioReadError, read_audio, resample

# Formats in which a piece costs no more than its own length; libsndfile seeks exactly in all of them. A 4 s piece of an
# Opus file took 25-57 ms (flac: 6-10 ms), and FFmpeg's formats do not seek exactly: those are decoded once and packed.
DIRECT_SUFFIXES = {".wav", ".flac", ".aif", ".aiff"}
PACKED_SUFFIX = ".npy"  # int16 mono, full scale 32768; the rate stands in the manifest


def default_cache_dir() -> Path:
    """Where packed audio goes unless a folder is given: below XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mss-lm" / "packed"


@dataclass(frozen=True)
class AudioInfo:
    duration: float  # seconds
    sampling_rate: int  # hertz (Hz)


def probe_audio(path: str | os.PathLike) -> AudioInfo:
    """Length and rate; reads the file's end too, where a truncated file breaks.

    Raises:
        AudioReadError: missing, empty, truncated, or no audio.
    """
    import soundfile

    path = Path(path)
    if not path.is_file():
        raise AudioReadError(f"Cannot read {path}: there is no such file.")
    try:
        with soundfile.SoundFile(path) as file:
            tail = min(file.frames, file.samplerate // 10)
            file.seek(file.frames - tail)
            samples = file.read(tail, dtype="float32", always_2d=True)
            if len(samples) < max(tail, 1):
                raise AudioReadError(f"Cannot read {path}: it is truncated or holds no samples.")
            _check(path, samples.T)
            return AudioInfo(file.frames / file.samplerate, file.samplerate)
    except soundfile.LibsndfileError as error:
        if path.suffix.lower() in DIRECT_SUFFIXES:
            raise AudioReadError(f"Cannot read {path}: {error}") from error
    waveform, sampling_rate = read_audio(path)  # a format that only FFmpeg knows: the whole file
    _check(path, waveform)
    return AudioInfo(waveform.shape[1] / sampling_rate, sampling_rate)


def _check(path: Path, waveform: np.ndarray):
    if waveform.size == 0:
        raise AudioReadError(f"Cannot read {path}: it holds no samples.")
    if not np.isfinite(waveform).all():
        raise AudioReadError(f"Cannot use {path}: it holds NaN or infinity.")


def read_piece(
    path: str | os.PathLike, start_s: float, num_samples: int, sampling_rate: int, cache_dir: str | os.PathLike
) -> torch.Tensor:
    """Samples from `start_s` seconds on: mono (mean of channels), at `sampling_rate`, `(num_samples,)` float32.

    Beyond the end of the file there is silence. A packed file (`.npy`) does not say its rate: `sampling_rate` must be
    that of its manifest, which datasets check once.

    Raises:
        AudioReadError: missing, no audio, or NaN in the piece.
    """
    path = Path(path)
    if path.suffix.lower() in DIRECT_SUFFIXES:
        return _read_direct(path, start_s, num_samples, sampling_rate)
    packed = open_packed(path) if path.suffix == PACKED_SUFFIX else packed_audio(path, sampling_rate, cache_dir)
    start = round(start_s * sampling_rate)
    piece = torch.from_numpy(packed[start : start + num_samples].astype(np.float32) / 32768)
    return torch.nn.functional.pad(piece, (0, num_samples - len(piece)))


def _read_direct(path: Path, start_s: float, num_samples: int, sampling_rate: int) -> torch.Tensor:
    import soundfile

    try:
        samples, rate, margin = _samples_around(path, start_s, num_samples, sampling_rate)
    except soundfile.LibsndfileError as error:
        reason = error if path.is_file() else "there is no such file."
        raise AudioReadError(f"Cannot read {path}: {reason}") from error
    # One NaN would make every update of the batch impossible, and with it the run, without a word about the file.
    _check(path, samples)
    piece = resample(torch.from_numpy(samples), rate, sampling_rate)
    skipped = margin * sampling_rate // rate
    return piece[skipped : skipped + num_samples]


def _samples_around(path: Path, start_s: float, num_samples: int, sampling_rate: int) -> tuple[np.ndarray, int, int]:
    """A piece at the file's own rate, mono, with more samples on both sides; the rate, and how many more."""
    import soundfile

    with soundfile.SoundFile(path) as file:
        rate = file.samplerate
        # Some samples more on both sides feed the resampling filter; their number is whole at both rates.
        unit = rate // math.gcd(rate, sampling_rate)
        margin = 0 if rate == sampling_rate else unit * math.ceil(64 * max(1, rate / sampling_rate) / unit)
        start = round(start_s * rate) - margin
        wanted = math.ceil(num_samples * rate / sampling_rate) + 2 * margin
        first, last = max(start, 0), min(start + wanted, file.frames)
        samples = np.zeros(wanted, dtype=np.float32)
        if last > first:
            file.seek(first)
            read = file.read(last - first, dtype="float32", always_2d=True)
            read = read @ np.full(read.shape[1], 1 / read.shape[1], dtype=np.float32)  # ten times as fast as .mean(1)
            samples[first - start : first - start + len(read)] = read
    return samples, rate, margin


def read_mono(path: str | os.PathLike, sampling_rate: int, packed_rate: int | None = None) -> torch.Tensor:
    """A whole file, mono (mean of channels), at `sampling_rate`: `(T,)` float32.

    Args:
        packed_rate: rate of a packed file (`.npy`), which does not say it itself; others say theirs.

    Raises:
        AudioReadError: no audio, no samples, or NaN.
    """
    path = Path(path)
    if path.suffix == PACKED_SUFFIX:
        waveform, rate = open_packed(path)[None].astype(np.float32) / 32768, packed_rate
    else:
        waveform, rate = read_audio(path)
    _check(path, waveform)
    return resample(torch.from_numpy(waveform).mean(dim=0), rate, sampling_rate)


def add_up(waveforms: list[torch.Tensor]) -> torch.Tensor:
    """Sum of waveforms `(T_i,)`, as long as the longest of them."""
    length = max(map(len, waveforms))
    return sum(torch.nn.functional.pad(waveform, (0, length - len(waveform))) for waveform in waveforms)


@lru_cache(maxsize=256)
def packed_audio(path: Path, sampling_rate: int, cache_dir: str | os.PathLike) -> np.ndarray:
    """A whole file as int16 mono at `sampling_rate`, memory-mapped from `cache_dir`, where the first call puts it.

    The name of the packed file depends on size and time of the original: a changed file is packed again.
    """
    stat = path.stat()
    key = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{sampling_rate}"
    target = Path(cache_dir) / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}{PACKED_SUFFIX}"
    if not target.exists():
        mono = read_mono(path, sampling_rate)
        write_packed(target, (mono.clamp(-1, 1) * 32767).round().to(torch.int16).numpy())
    return open_packed(target)


@lru_cache(maxsize=256)
def open_packed(path: Path) -> np.ndarray:
    """A packed file `(T,)` int16, memory-mapped; the handle is kept.

    Raises:
        AudioReadError: missing, truncated, or no array of this kind.
    """
    try:
        packed = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:  # EOFError: an empty file
        raise AudioReadError(f"Cannot read {path}: {error}") from error
    if packed.dtype != np.int16 or packed.ndim != 1:
        raise AudioReadError(
            f"Cannot read {path}: expected int16 of shape (T,) as `mss-lm prepare pack` writes it, "
            f"got {packed.dtype} of shape {packed.shape}."
        )
    return packed


def write_packed(path: Path, packed: np.ndarray):
    """Write `(T,)` int16; the file appears complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Workers may pack one file at the same time: each writes its own, the last rename wins.
    temporary = path.with_name(f".{path.stem}-{uuid4().hex}.tmp")
    try:
        with open(temporary, "wb") as file:
            np.save(file, packed)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
