"""Reading pieces of audio files, mono and at one rate, without decoding whole songs."""

import hashlib
import math
import os
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from processing_mss import AudioReadError, read_audio, resample

# Formats in which a piece costs no more than its own length; libsndfile seeks exactly in all of them. A 4 s piece of an
# Opus file took 25-57 ms (flac: 6-10 ms), and FFmpeg's formats do not seek exactly: those are decoded once and packed.
DIRECT_SUFFIXES = {".wav", ".flac", ".aif", ".aiff"}


def default_cache_dir() -> Path:
    """Where packed audio goes unless a folder is given: below XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mss-lm" / "packed"


@dataclass(frozen=True)
class AudioInfo:
    duration: float  # seconds
    sampling_rate: int  # hertz (Hz)
    num_channels: int


def probe_audio(path: str | os.PathLike) -> AudioInfo:
    """Length, rate and channels; reads the file's end too, where a truncated file breaks.

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
            return AudioInfo(file.frames / file.samplerate, file.samplerate, file.channels)
    except soundfile.LibsndfileError as error:
        if path.suffix.lower() in DIRECT_SUFFIXES:
            raise AudioReadError(f"Cannot read {path}: {error}") from error
    waveform, sampling_rate = read_audio(path)  # a format that only FFmpeg knows: the whole file
    _check(path, waveform)
    return AudioInfo(waveform.shape[1] / sampling_rate, sampling_rate, len(waveform))


def _check(path: Path, waveform: np.ndarray):
    if waveform.size == 0:
        raise AudioReadError(f"Cannot read {path}: it holds no samples.")
    if not np.isfinite(waveform).all():
        raise AudioReadError(f"Cannot use {path}: it holds NaN or infinity.")


def read_piece(
    path: str | os.PathLike, start_s: float, num_samples: int, sampling_rate: int, cache_dir: str | os.PathLike
) -> torch.Tensor:
    """Samples from `start_s` seconds on: mono (mean of channels), at `sampling_rate`, `(num_samples,)` float32.

    Beyond the end of the file there is silence.
    """
    path = Path(path)
    if path.suffix.lower() in DIRECT_SUFFIXES:
        return _read_direct(path, start_s, num_samples, sampling_rate)
    packed = packed_audio(path, sampling_rate, cache_dir)
    start = round(start_s * sampling_rate)
    piece = torch.from_numpy(packed[start : start + num_samples].astype(np.float32) / 32768)
    return torch.nn.functional.pad(piece, (0, num_samples - len(piece)))


def _read_direct(path: Path, start_s: float, num_samples: int, sampling_rate: int) -> torch.Tensor:
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
    piece = resample(torch.from_numpy(samples), rate, sampling_rate)
    skipped = margin * sampling_rate // rate
    return piece[skipped : skipped + num_samples]


@lru_cache(maxsize=256)
def packed_audio(path: Path, sampling_rate: int, cache_dir: str | os.PathLike) -> np.ndarray:
    """A whole file as int16 mono at `sampling_rate`, memory-mapped from `cache_dir`, where the first call puts it.

    The name of the packed file depends on size and time of the original: a changed file is packed again.
    """
    stat = path.stat()
    key = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{sampling_rate}"
    target = Path(cache_dir) / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npy"
    if not target.exists():
        waveform, rate = read_audio(path)
        _check(path, waveform)
        mono = resample(torch.from_numpy(waveform).mean(dim=0), rate, sampling_rate)
        packed = (mono.clamp(-1, 1) * 32767).round().to(torch.int16).numpy()
        target.parent.mkdir(parents=True, exist_ok=True)
        # Workers may pack one file at the same time: each writes its own, the last rename wins.
        with tempfile.NamedTemporaryFile(dir=target.parent, suffix=".tmp", delete=False) as temporary:
            np.save(temporary, packed)
        os.replace(temporary.name, target)
    return np.load(target, mmap_mode="r")
