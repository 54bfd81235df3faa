"""Reading and writing audio files: any common format in, wav, flac or mp3 out, never half a file."""

import io
import os
import tempfile
from pathlib import Path

import numpy as np
from huggingface_hub import get_session

try:
    import soundfile
except ImportError:
    soundfile = None
try:
    import av
except ImportError:
    av = None

AUDIO_SUFFIXES = {".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".mp4", ".aac", ".aif", ".aiff", ".wma"}
SUBTYPES = {"16": "PCM_16", "24": "PCM_24", "32f": "FLOAT"}  # of --bits
FORMATS = ("wav", "flac", "mp3")


class AudioReadError(ValueError):
    """A file is missing, empty, or no audio that any reader understands; the message holds each reader's answer."""


class AudioWriteError(ValueError):
    """Audio cannot be written in the format, depth or rate asked for."""


def read_audio(source: str | os.PathLike | bytes) -> tuple[np.ndarray, int]:
    """Read a whole file: path, URL (http or https), or the bytes of a file.

    libsndfile reads wav, flac, ogg, mp3 and more; FFmpeg (PyAV) reads the rest (m4a, mp4, ...), the first audio stream
    of several.

    Returns:
        waveform `(channels, samples)` float32, and its rate in hertz (Hz).

    Raises:
        AudioReadError: see there.
    """
    name = "the given bytes" if isinstance(source, bytes) else str(source)
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        source = _download(source)
    if isinstance(source, bytes):
        size = len(source)
    elif not os.path.isfile(source):
        raise AudioReadError(f"Cannot read {name}: there is no such file.")
    else:
        size = os.path.getsize(source)
    if size == 0:
        raise AudioReadError(f"Cannot read {name}: it is empty (0 bytes).")

    answers = []
    for reader in (_read_soundfile, _read_av):
        try:
            return reader(io.BytesIO(source) if isinstance(source, bytes) else os.fspath(source))
        except Exception as error:  # each library has its own hierarchy; all answers are reported below
            answers.append(f"{reader.__name__.removeprefix('_read_')}: {error}")
    raise AudioReadError(f"Cannot read {name} as audio ({'; '.join(answers)}). Is it wav, flac, mp3, ogg or m4a?")


def _download(url: str) -> bytes:
    try:
        response = get_session().get(url, follow_redirects=True)
    except Exception as error:  # the client's exceptions differ between versions of huggingface_hub
        raise AudioReadError(f"Cannot download {url}: {error}") from error
    if response.status_code != 200:
        raise AudioReadError(f"Cannot download {url}: the server answered {response.status_code}.")
    return response.content


def _read_soundfile(file) -> tuple[np.ndarray, int]:
    if soundfile is None:
        raise ImportError("not installed (pip install soundfile)")
    samples, sampling_rate = soundfile.read(file, dtype="float32", always_2d=True)
    return np.ascontiguousarray(samples.T), sampling_rate


def _read_av(file) -> tuple[np.ndarray, int]:
    if av is None:
        raise ImportError("not installed (pip install av)")
    with av.open(file) as container:
        if not container.streams.audio:
            raise ValueError("no audio stream")
        stream = container.streams.audio[0]
        converter = av.AudioResampler(format="fltp", layout=stream.layout, rate=stream.rate)
        frames = [frame for decoded in container.decode(stream) for frame in converter.resample(decoded)]
        frames += converter.resample(None)
        if not frames:
            raise ValueError("no sample could be decoded")
        return np.concatenate([frame.to_ndarray() for frame in frames], axis=1), stream.rate


def check_format(format_name: str, bits: str):
    """Raise AudioWriteError unless `write_audio` knows this format ("wav") with this sample format ("16")."""
    if format_name not in FORMATS or bits not in SUBTYPES:
        raise AudioWriteError(
            f"Cannot write {format_name!r} with bits={bits!r}: formats are {list(FORMATS)}, bits are {list(SUBTYPES)}."
        )
    if format_name == "flac" and bits == "32f":
        raise AudioWriteError("flac holds 16 or 24 bits; use wav for 32f.")


def write_audio(path: str | os.PathLike, waveform: np.ndarray, sampling_rate: int, bits: str = "16"):
    """Write `(channels, samples)` float; the format follows the suffix (wav, flac, mp3).

    The file appears complete or not at all: it is written under a temporary name beside it and renamed. Integer formats
    cut at full scale; "32f" (wav only) keeps everything. mp3 has no bits.

    Raises:
        AudioWriteError: format, bits or rate that cannot be written.
    """
    path = Path(path)
    format_name = path.suffix.lower().removeprefix(".")
    check_format(format_name, bits)
    subtype = "MPEG_LAYER_III" if format_name == "mp3" else SUBTYPES[bits]
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    try:
        soundfile.write(temporary, waveform.T, sampling_rate, subtype=subtype, format=format_name.upper())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes files private
        os.replace(temporary, path)
    except soundfile.LibsndfileError as error:
        raise AudioWriteError(
            f"Cannot write {path.name}, {len(waveform)} channels at {sampling_rate} Hz: {error}"
        ) from error
    finally:
        Path(temporary).unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
