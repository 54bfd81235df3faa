"""Writing audio files, whole or block by block: wav, flac or mp3; a file appears complete or not at all."""

import contextlib
import io
import os
import tempfile
from pathlib import Path

import numpy as np

try:
    import soundfile
except ImportError:
    soundfile = None

from .audio_source_mss import signals_deferred

SUBTYPES = {"16": "PCM_16", "24": "PCM_24", "32f": "FLOAT"}  # of --bits
SAMPLE_BYTES = {"16": 2, "24": 3, "32f": 4}
FORMATS = ("wav", "flac", "mp3")
WAV_LIMIT = 2**32 - 2**16  # bytes of samples: a wav header counts with 32 bits, and is itself counted


class AudioWriteError(ValueError):
    """Audio cannot be written: the format, bits, rate or channels asked for, or what the samples are."""


def check_format(format_name: str, bits: str):
    """Raise AudioWriteError unless `AudioWriter` knows this format ("wav") with this sample format ("16")."""
    if format_name not in FORMATS or bits not in SUBTYPES:
        raise AudioWriteError(
            f"Cannot write {format_name!r} with bits={bits!r}: formats are {list(FORMATS)}, bits are {list(SUBTYPES)}."
        )
    if format_name == "flac" and bits == "32f":
        raise AudioWriteError("flac holds 16 or 24 bits; use wav for 32f.")


def write_audio(path: str | os.PathLike, waveform: np.ndarray, sampling_rate: int, bits: str = "16"):
    """Write `(channels, samples)` float at once; the format follows the suffix (wav, flac, mp3).

    Raises:
        AudioWriteError: see `AudioWriter`.
    """
    with AudioWriter(path, sampling_rate, len(waveform), bits=bits, num_samples=np.shape(waveform)[-1]) as writer:
        writer.write(waveform)


class AudioWriter(contextlib.AbstractContextManager):
    """Writes a file block by block.

    The file appears complete or not at all: it is written under a temporary name beside it, renamed at the end of the
    `with` block, and removed if that ends in an exception. "32f" (wav only) keeps every value; all else is cut at full
    scale. A wav with more than 4 GiB of samples (3.4 hours of stereo at 44.1 kHz in 32f) is written as RF64, the wav
    with 64-bit sizes. Fewer programs read RF64 than wav, so it is written only where `num_samples` says that it must.

    Args:
        path: its folder is made if need be.
        sampling_rate: in hertz (Hz).
        num_channels: of each block.
        format: "wav", "flac" or "mp3"; the suffix of the path if not given.
        bits: "16", "24" or "32f"; an mp3 has none.
        comment: for the tags of the file; `read_comment` reads it again.
        num_samples: that all blocks together will have; only a wav beyond 4 GiB needs it.

    Raises:
        AudioWriteError: format, bits, rate or channels that cannot be written, blocks of another shape or of integers,
            NaN or infinity outside 32f, a full disk, more than 4 GiB of wav that `num_samples` did not tell of.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        sampling_rate: int,
        num_channels: int,
        format: str | None = None,
        bits: str = "16",
        comment: str | None = None,
        num_samples: int = 0,
    ):
        self._path = Path(path)
        format_name = self._path.suffix.lower().removeprefix(".") if format is None else format
        check_format(format_name, bits)
        if soundfile is None:
            raise ImportError("Writing audio needs soundfile (pip install soundfile).")
        self._format, self._bits = format_name.upper(), bits
        if self._format == "WAV" and num_samples * num_channels * SAMPLE_BYTES[bits] > WAV_LIMIT:
            self._format = "RF64"
        self._sampling_rate, self._num_channels = sampling_rate, num_channels
        self._comment = comment
        self._num_bytes = 0

    def __enter__(self):
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._create()
        return self

    def write(self, block: np.ndarray):
        """Append `(num_channels, samples)` float, full scale 1."""
        block = np.asarray(block)
        if block.ndim != 2 or len(block) != self._num_channels or block.dtype not in (np.float32, np.float64):
            raise AudioWriteError(
                f"Cannot write {self._path.name}: blocks must be float32 or float64 of shape "
                f"({self._num_channels}, samples), got {block.dtype} of {block.shape}."
            )
        if self._format == "MP3" or self._bits != "32f":
            # Not left to libsndfile: its mp3 encoder ends the whole process at NaN and at values far beyond 1.
            if not np.isfinite(block).all():
                raise AudioWriteError(f"Cannot write {self._path.name}: NaN or infinity in it.")
            block = block.clip(-1, 1)
        self._num_bytes += block.size * SAMPLE_BYTES[self._bits]
        if self._format == "WAV" and self._num_bytes > WAV_LIMIT:
            raise AudioWriteError(
                f"Cannot write {self._path.name}: a wav holds 4 GiB. Tell the length beforehand (num_samples=...), and "
                "it is written as RF64; or write flac."
            )
        with self._explained():
            self._file.write(self._samples(block))

    def _samples(self, block: np.ndarray) -> np.ndarray:
        """`(channels, n)` -> `(n, channels)` as the file holds it; libsndfile itself would cut bits off, not round."""
        if self._format == "MP3" or self._bits == "32f":
            return block.T
        steps = 2 ** (int(self._bits) - 1)
        integers = np.rint(block.T * steps).clip(-steps, steps - 1)
        if self._bits == "16":
            return integers.astype(np.int16)
        return integers.astype(np.int32) << 8  # libsndfile takes the upper 24 bits

    def __exit__(self, exception_type, exception, traceback):
        try:
            if exception_type is None:
                self._finish()
                os.chmod(self._temporary, 0o666 & ~_umask())  # mkstemp makes files private
                os.replace(self._temporary, self._path)
            else:
                with contextlib.suppress(AudioWriteError):  # what ended it is told, not what follows from it
                    self._finish()
        finally:
            self._temporary.unlink(missing_ok=True)

    def _create(self):
        handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.stem}-", suffix=self._path.suffix)
        self._temporary, self._target = Path(name), _Target(handle)
        subtype = "MPEG_LAYER_III" if self._format == "MP3" else SUBTYPES[self._bits]
        try:
            with self._explained():
                self._file = soundfile.SoundFile(
                    self._target, "w", self._sampling_rate, self._num_channels, subtype, format=self._format
                )
                if self._comment is not None:
                    self._file.comment = self._comment
        except BaseException:
            self._target.close()
            self._temporary.unlink()
            raise

    def _finish(self):
        """The end of the samples, sizes in the header, and all of it on the disk."""
        try:
            with self._explained():
                self._file.close()
                self._target.sync()
        finally:
            self._target.close()

    @contextlib.contextmanager
    def _explained(self):
        reason = None
        try:
            with signals_deferred():
                yield
        except (soundfile.LibsndfileError, AssertionError) as error:  # soundfile asserts that all was written
            reason = error
        if reason or self._target.error:
            raise AudioWriteError(
                f"Cannot write {self._path.name}, {self._num_channels} channels at {self._sampling_rate} Hz: "
                f"{self._target.error.strerror if self._target.error else reason}"
            ) from (self._target.error or reason)


class _Target:
    """The file that libsndfile sees. It keeps the first error, which libsndfile would forget when it closes."""

    def __init__(self, handle: int):
        self._file = io.FileIO(handle, "w")  # not buffered: what fails does so at once
        self.error = None
        self.seek, self.tell, self.close = self._file.seek, self._file.tell, self._file.close

    def write(self, content: bytes) -> int:
        left = memoryview(content)
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            self.error = self.error or error
        return len(content) - len(left)

    def sync(self):
        """Some file systems tell only now that there is no room."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            self.error = self.error or error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
