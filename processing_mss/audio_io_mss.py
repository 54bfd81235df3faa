"""Reading and writing audio files, whole or block by block: any common format in, wav, flac or mp3 out.

Blocks keep memory constant, however long the file; a written file appears complete or not at all.
"""

import contextlib
import io
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator
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
SAMPLE_BYTES = {"16": 2, "24": 3, "32f": 4}
FORMATS = ("wav", "flac", "mp3")
WAV_LIMIT = 2**32 - 2**16  # bytes of samples: a wav header counts with 32 bits, and is itself counted
PIECE_SAMPLES = 2**16  # that libsndfile decodes at once

Pieces = Iterator[tuple[np.ndarray, int]]  # of decoded audio, (channels, samples) float32, and their rate in hertz


class AudioReadError(ValueError):
    """A file is missing, empty, NaN in places, or no audio that any reader knows; then it holds each one's answer."""


class AudioWriteError(ValueError):
    """Audio cannot be written: the format, bits, rate or channels asked for, or what the samples are."""


def read_audio(source: str | os.PathLike | bytes) -> tuple[np.ndarray, int]:
    """Read a whole file: path, URL (http or https), or the bytes of a file.

    libsndfile reads wav, flac, ogg, mp3 and more; FFmpeg (PyAV) reads the rest (m4a, mp4, mp3 that do not state their
    length, ...), the first audio stream of several. A wav, ogg or mp3 that was cut off is read up to where it ends; a
    flac that was is an error.

    Returns:
        waveform `(channels, samples)` float32, and its rate in hertz (Hz).

    Raises:
        AudioReadError: see there.
    """
    _, whole = _with_first_decoder(*_locate(source), _join)
    return whole


class AudioReader(contextlib.AbstractContextManager):
    """A file that is read block by block, as often as wanted: the same samples that `read_audio` gives.

    Opening decodes the file once and keeps nothing, because the headers of some formats only estimate the length. So
    errors come now and not after an hour, and `num_samples` is exact. A URL is downloaded once and its bytes are kept.

    Attributes:
        sampling_rate: in hertz (Hz).
        num_channels, num_samples: of what `blocks` delivers.

    Args:
        source: as for `read_audio`.

    Raises:
        AudioReadError: see there; from `blocks` if the file changed since it was opened.
    """

    def __init__(self, source: str | os.PathLike | bytes):
        self._name, self._source = _locate(source)
        self._decoder, measured = _with_first_decoder(self._name, self._source, _measure)
        self.num_channels, self.num_samples, self.sampling_rate = measured
        self._passes = contextlib.ExitStack()

    def __exit__(self, *exception):
        """Close the file, also for passes that have not reached its end."""
        self._passes.close()

    def blocks(self, block_samples: int) -> Iterator[np.ndarray]:
        """From the beginning, `(channels, block_samples)` float32 each; the last block is shorter if need be."""
        if block_samples < 1:
            raise ValueError(f"`block_samples` must be at least 1, got {block_samples}.")
        blocks = self._blocks(block_samples)
        self._passes.callback(blocks.close)
        return blocks

    def _blocks(self, block_samples: int) -> Iterator[np.ndarray]:
        held, num_held, num_samples = [], 0, 0
        try:
            for samples, _ in _pieces(self._decoder, self._name, self._source):
                held.append(samples)
                num_held += samples.shape[1]
                num_samples += samples.shape[1]
                if num_held >= block_samples:
                    joined = np.concatenate(held, axis=1)
                    num_held %= block_samples
                    ready = joined.shape[1] - num_held
                    held = [joined[:, ready:]]
                    for start in range(0, ready, block_samples):
                        yield np.ascontiguousarray(joined[:, start : start + block_samples])
        except AudioReadError:
            raise
        except Exception as error:  # as in `_with_first_decoder`
            raise AudioReadError(f"Cannot read {self._name} again: {error}") from error
        if num_samples != self.num_samples:
            raise AudioReadError(
                f"Cannot read {self._name} again: it had {self.num_samples} samples, now {num_samples}."
            )
        if num_held:
            yield np.concatenate(held, axis=1)


def _locate(source: str | os.PathLike | bytes) -> tuple[str, str | bytes]:
    """A source's name for messages, and its path or bytes."""
    name = "the given bytes" if isinstance(source, bytes) else str(source)
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        source = _download(source)
    if isinstance(source, bytes):
        size = len(source)
    elif not os.path.isfile(source):
        raise AudioReadError(f"Cannot read {name}: there is no such file.")
    else:
        source, size = os.fspath(source), os.path.getsize(source)
    if size == 0:
        raise AudioReadError(f"Cannot read {name}: it is empty (0 bytes).")
    return name, source


def _download(url: str) -> bytes:
    try:
        response = get_session().get(url, follow_redirects=True)
    except Exception as error:  # the client's exceptions differ between versions of huggingface_hub
        raise AudioReadError(f"Cannot download {url}: {error}") from error
    if response.status_code != 200:
        raise AudioReadError(f"Cannot download {url}: the server answered {response.status_code}.")
    return response.content


def _with_first_decoder(name: str, source: str | bytes, use: Callable[[Pieces], tuple]) -> tuple[Callable, tuple]:
    """The first decoder that gets through the whole file, and what `use` makes of its pieces."""
    answers = []
    for decoder in (_decode_soundfile, _decode_av):
        try:
            return decoder, use(_pieces(decoder, name, source))
        except AudioReadError:
            raise
        except Exception as error:  # each library has its own hierarchy; all answers are reported below
            answers.append(f"{decoder.__name__.removeprefix('_decode_')}: {error}")
    raise AudioReadError(f"Cannot read {name} as audio ({'; '.join(answers)}). Is it wav, flac, mp3, ogg or m4a?")


def _pieces(decoder: Callable, name: str, source: str | bytes) -> Pieces:
    """What a decoder finds, checked: there are samples, they are finite, and their layout never changes."""
    layout = None
    for samples, rate in decoder(source):
        layout = layout or (len(samples), rate)
        if layout != (len(samples), rate):
            raise ValueError(f"{layout[0]} channels at {layout[1]} Hz become {len(samples)} at {rate} Hz")
        if not np.isfinite(samples).all():
            raise AudioReadError(f"Cannot use {name}: it holds NaN or infinity.")
        yield samples, rate
    if layout is None:
        raise ValueError("no sample could be decoded")


def _join(pieces: Pieces) -> tuple[np.ndarray, int]:
    waveforms, rates = zip(*pieces)
    return np.concatenate(waveforms, axis=1), rates[0]


def _measure(pieces: Pieces) -> tuple[int, int, int]:
    """Channels, samples, rate."""
    num_samples = 0
    for piece in pieces:
        num_samples += piece[0].shape[1]
    samples, rate = piece
    return len(samples), num_samples, rate


def _openable(source: str | bytes) -> str | io.BytesIO:
    return io.BytesIO(source) if isinstance(source, bytes) else source


def _decode_soundfile(source: str | bytes) -> Pieces:
    if soundfile is None:
        raise ImportError("not installed (pip install soundfile)")
    with soundfile.SoundFile(_openable(source)) as audio:
        if audio.format == "MP3" and not _mp3_states_its_length(source):
            raise ValueError("an mp3 that does not state its length; libsndfile would guess it and stop there")
        while len(samples := audio.read(PIECE_SAMPLES, dtype="float32", always_2d=True)):
            yield np.ascontiguousarray(samples.T), audio.samplerate


def _mp3_states_its_length(source: str | bytes) -> bool:
    """Whether the first frame counts the others; the guess for variable bit rate may miss most of a song."""
    with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
        head, start = file.read(10), 0
        if head.startswith(b"ID3"):  # tags and pictures, their size given in 7 bits a byte
            start = 10 + sum(byte << shift for byte, shift in zip(head[6:], (21, 14, 7, 0)))
        file.seek(start)
        frame = file.read(4096)
    return any(name in frame for name in (b"Xing", b"Info", b"VBRI"))


def _decode_av(source: str | bytes) -> Pieces:
    if av is None:
        raise ImportError("not installed (pip install av)")
    with av.open(_openable(source)) as container:
        if not container.streams.audio:
            raise ValueError("no audio stream")
        stream = container.streams.audio[0]
        converter = av.AudioResampler(format="fltp", layout=stream.layout, rate=stream.rate)
        for decoded in itertools.chain(container.decode(stream), [None]):  # None: what the converter still holds
            for frame in converter.resample(decoded):
                yield frame.to_ndarray(), stream.rate


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
    with AudioWriter(path, sampling_rate, len(waveform), bits=bits) as writer:
        writer.write(waveform)


class AudioWriter(contextlib.AbstractContextManager):
    """Writes a file block by block.

    The file appears complete or not at all: it is written under a temporary name beside it, renamed at the end of the
    `with` block, and removed if that ends in an exception. "32f" (wav only) keeps every value; all else is cut at full
    scale. A wav whose samples pass 4 GiB (3.4 hours of stereo at 44.1 kHz in 32f) becomes an RF64 file, the wav with
    64-bit sizes that current software reads; it is copied once at that point, so there has to be room for 4 GiB more.

    Args:
        path: its folder is made if need be.
        sampling_rate: in hertz (Hz).
        num_channels: of each block.
        format: "wav", "flac" or "mp3"; the suffix of the path if not given.
        bits: "16", "24" or "32f"; an mp3 has none.

    Raises:
        AudioWriteError: format, bits, rate or channels that cannot be written, blocks of another shape or of integers,
            NaN or infinity outside 32f, a full disk.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        sampling_rate: int,
        num_channels: int,
        format: str | None = None,
        bits: str = "16",
    ):
        self._path = Path(path)
        format_name = self._path.suffix.lower().removeprefix(".") if format is None else format
        check_format(format_name, bits)
        if soundfile is None:
            raise ImportError("Writing audio needs soundfile (pip install soundfile).")
        self._format, self._bits = format_name.upper(), bits
        self._sampling_rate, self._num_channels = sampling_rate, num_channels
        self._num_bytes = 0

    def __enter__(self):
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._create(self._format)
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
        with self._explained():
            if self._format == "WAV" and self._num_bytes > WAV_LIMIT:
                self._move_to_rf64()
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
            with self._explained():
                self._file.close()
            if exception_type is None:
                os.chmod(self._temporary, 0o666 & ~_umask())  # mkstemp makes files private
                os.replace(self._temporary, self._path)
        finally:
            self._temporary.unlink(missing_ok=True)

    def _create(self, format_name: str):
        handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.stem}-", suffix=self._path.suffix)
        os.close(handle)
        self._format, self._temporary = format_name, Path(name)
        subtype = "MPEG_LAYER_III" if format_name == "MP3" else SUBTYPES[self._bits]
        try:
            with self._explained():
                self._file = soundfile.SoundFile(
                    name, "w", self._sampling_rate, self._num_channels, subtype, format=format_name
                )
        except BaseException:
            self._temporary.unlink()
            raise

    def _move_to_rf64(self):
        """Nothing in a wav header leaves room for 64-bit sizes, and few readers of 16-bit files know RF64: only now."""
        self._file.close()
        wav = self._temporary
        try:
            self._create("RF64")
            with soundfile.SoundFile(wav) as written:
                lossless = "float32" if self._bits == "32f" else "int32"
                while len(samples := written.read(PIECE_SAMPLES, dtype=lossless, always_2d=True)):
                    self._file.write(samples)
        finally:
            wav.unlink()

    @contextlib.contextmanager
    def _explained(self):
        try:
            yield
        except soundfile.LibsndfileError as error:
            raise AudioWriteError(
                f"Cannot write {self._path.name}, {self._num_channels} channels at {self._sampling_rate} Hz: {error}"
            ) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
