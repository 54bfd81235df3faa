"""What a user hands over as a song, before anything of it is believed: an array, a path, a URL, or the bytes of a file.

`as_waveform` checks arrays. `locate` finds files, and `Source` is all of a file that FFmpeg sees: bytes without a name.
`counts_too_many_packets` finds an MPEG-4 index that lies. `signals_deferred` keeps Ctrl-C out of calls into C
libraries, also for the writer.
"""

import contextlib
import io
import os
import re
import signal
import struct
import threading
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import torch
from huggingface_hub import get_session

RATE_LIMITS = (1000, 1_000_000)  # hertz (Hz)
MAX_CHANNELS = 32  # more "channels" than this are samples: the array is transposed
INTEGER_RANGES = {"int16": (0, 2**15), "int32": (0, 2**31), "uint8": (2**7, 2**7)}  # dtype: (centre, full scale)
MAX_DOWNLOAD_BYTES = 2**31
DOWNLOAD_TIMEOUT_S = 30  # without a byte
# Those that ask a program to end; Windows does not know the last one.
END_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
# Boxes of an MPEG-4 file that hold others. FFmpeg looks into them wherever they are, and where it finds no index
# elsewhere, into boxes that are said to be free.
PARENTS = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"mvex", b"moof", b"traf", b"dinf", b"udta", b"wave"}
PARENTS |= {b"meta", b"sinf", b"schi", b"tref", b"clip", b"iprp", b"ipco", b"cmov", b"free", b"hoov"}
MAX_DEPTH = 12  # FFmpeg's is 10
MAX_INDEX_BYTES = 2**26  # of one that is compressed
SPARE_PACKETS = 1000
PCM_PACKET_SAMPLES = 1024  # of PCM, which FFmpeg takes at once


class AudioReadError(ValueError):
    """A file is missing, empty, too long, too damaged, NaN in places, or nothing that is read as audio."""


def check_layout(shape: tuple[int, ...], sampling_rate: int):
    """Raise ValueError unless audio of this shape and rate can be a song."""
    if len(shape) not in (1, 2) or 0 in shape:
        raise ValueError(
            f"Audio must have shape (samples,) or (channels, samples) and hold samples, got {tuple(shape)}."
        )
    if len(shape) == 2 and shape[0] > MAX_CHANNELS:
        raise ValueError(
            f"Audio of shape {tuple(shape)} has more than {MAX_CHANNELS} channels; the layout is "
            "(channels, samples): is it transposed?"
        )
    low, high = RATE_LIMITS
    if not isinstance(sampling_rate, (int, np.integer)) or not low <= sampling_rate <= high:
        raise ValueError(
            f"`sampling_rate` must be a whole number of hertz (Hz) from {low} to {high}, got {sampling_rate!r}."
        )


def as_waveform(audio: np.ndarray | torch.Tensor | list, sampling_rate: int) -> torch.Tensor:
    """Any array of audio -> `(channels, samples)` float32.

    Floating point stays as it is; PCM integers get full scale 1.

    Raises:
        ValueError: other types, tensors without plain samples, no samples, NaN or infinity, wrong shape or rate.
    """
    if not isinstance(audio, torch.Tensor):
        try:
            array = np.asarray(audio)
        except (ValueError, TypeError, RuntimeError) as error:  # of numpy and of what it asks for its samples
            raise ValueError(
                f"Audio must be an array, or lists of numbers of one length, got a {type(audio).__name__} that is "
                "none: its channels differ in length, or have no samples in memory."
            ) from error
        if array.dtype.name not in (*INTEGER_RANGES, "float16", "float32", "float64"):
            raise ValueError(
                f"Audio must be floating point, or integers of type {list(INTEGER_RANGES)}, got {array.dtype}."
            )
        audio = torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))
    if audio.is_meta or audio.is_nested or audio.layout != torch.strided:
        kind = "meta" if audio.is_meta else "nested" if audio.is_nested else str(audio.layout).removeprefix("torch.")
        raise ValueError(f"Audio must be a dense tensor with its samples in memory, got one of kind {kind!r}.")
    name = str(audio.dtype).removeprefix("torch.")
    if name not in INTEGER_RANGES and not audio.is_floating_point():
        raise ValueError(
            f"Audio must be floating point, or integers of type {list(INTEGER_RANGES)}, got {audio.dtype}."
        )
    check_layout(tuple(audio.shape), sampling_rate)
    if name in INTEGER_RANGES:
        centre, full_scale = INTEGER_RANGES[name]
        audio = (audio.double() - centre) / full_scale
    waveform = torch.atleast_2d(audio.detach().float())
    if not waveform.isfinite().all():
        raise ValueError("Audio must be finite, got NaN or infinity in it.")
    return waveform


def locate(source: str | os.PathLike | bytes) -> tuple[str, str | bytes]:
    """A source's name for messages, and its path or bytes."""
    if isinstance(source, (bytearray, memoryview)):
        source = bytes(source)
    if not isinstance(source, (str, os.PathLike, bytes)):
        raise AudioReadError(f"A song is given as a path, a URL or the bytes of a file, got {type(source).__name__}.")
    name = "the given bytes" if isinstance(source, bytes) else _shown(source)
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        source = _download(source)
    if isinstance(source, bytes):
        size = len(source)
    elif not os.path.exists(source):
        raise AudioReadError(f"Cannot read {name}: there is no such file.")
    elif not os.path.isfile(source):  # a pipe could keep us waiting for ever
        raise AudioReadError(f"Cannot read {name}: it is no file but a folder, a pipe or a device.")
    elif not os.access(source, os.R_OK):
        raise AudioReadError(f"Cannot read {name}: its permissions do not allow it.")
    else:
        source, size = os.fspath(source), os.path.getsize(source)
    if size == 0:
        raise AudioReadError(f"Cannot read {name}: it is empty (0 bytes).")
    return name, source


def _shown(source: str | os.PathLike) -> str:
    """The name in one line, control characters escaped."""
    name = os.fsdecode(source)
    return "".join(part if part.isprintable() else part.encode("unicode_escape").decode() for part in name)


def _download(url: str) -> bytes:
    content = bytearray()
    try:
        with get_session().stream("GET", url, follow_redirects=True, timeout=DOWNLOAD_TIMEOUT_S) as response:
            if response.status_code != 200:
                raise AudioReadError(f"Cannot download {url}: the server answered {response.status_code}.")
            for part in response.iter_bytes():
                content += part
                if len(content) > MAX_DOWNLOAD_BYTES:
                    raise AudioReadError(f"Cannot download {url}: it has more than {MAX_DOWNLOAD_BYTES} bytes.")
    except AudioReadError:
        raise
    except Exception as error:  # the client's exceptions differ between versions of huggingface_hub
        reason = re.sub(r"\[Errno -?\d+\] *", "", str(error))
        raise AudioReadError(f"Cannot download {url}: {reason}.") from error
    return bytes(content)


class FilePart:
    """A file from one place to another, as a file to read."""

    def __init__(self, file: io.BufferedIOBase, start: int, end: int):
        self._file, self._start, self._end, self.size = file, start, end, end - start
        self.seek(0)

    def tell(self) -> int:
        return self._file.tell() - self._start

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        place = offset + (0, self.tell(), self.size)[whence]
        if place < 0:
            raise ValueError("There is no place before the beginning.")
        return self._file.seek(self._start + place) - self._start

    def read(self, size: int) -> bytes:
        try:
            return self._file.read(max(0, min(size, self._end - self._file.tell())))
        except OSError as error:
            raise AudioReadError(f"its bytes cannot be read: {error.strerror}.") from error


def whole_file(file: io.BufferedIOBase) -> FilePart:
    return FilePart(file, 0, file.seek(0, os.SEEK_END))


class Source:
    """The file that FFmpeg sees: it has no name, and is not read over and over."""

    def __init__(self, file: FilePart, on_read: Callable[[], None]):
        self._file, self._on_read = file, on_read
        self.size = file.size
        self._left = 4 * self.size + 2**26  # bytes
        self.tell = file.tell
        file.seek(0)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return self._file.seek(offset, whence)
        except (OSError, ValueError):  # a place that a damaged header names: there is nothing
            return self._file.seek(0, os.SEEK_END)

    def read(self, size: int) -> bytes:
        self._on_read()
        content = self._file.read(size)
        self._left -= len(content)
        if self._left < 0:
            raise AudioReadError("The file was read four times and no end was found.")
        return content


@contextlib.contextmanager
def signals_deferred() -> Iterator[None]:
    """Signals that come inside of the `with` statement are answered at its end.

    PyAV and soundfile drop a KeyboardInterrupt that is raised while their C library calls back into Python, and take
    the file to end there, or the disk to be full. PyAV's wheels also drop one while they make an exception of their
    own, as they do at every frame. So none is raised there. Only the main thread ever hears of signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came = []
    handlers = {number: signal.getsignal(number) for number in END_SIGNALS}
    handlers = {number: handler for number, handler in handlers.items() if callable(handler)}
    for number in handlers:
        signal.signal(number, lambda number, frame: came.append((number, frame)))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number, frame in came:
            handlers[number](number, frame)


def counts_too_many_packets(file: io.BufferedIOBase, size: int) -> bool:
    """Whether the index of an MPEG-4 file (m4a, mp4, mov) counts more packets than so many bytes can hold.

    FFmpeg makes an entry in memory for each packet that an index counts, once more for each part of an edit list that
    plays it, and cannot be stopped meanwhile: a few bytes can count millions. In a whole file each packet has at least
    one byte. Other formats look like one box or two, and count none. The file's place is moved.
    """
    packets, track = 0, _Track()
    for name, head in _boxes(file, 0, size):
        if name == b"trak":
            packets, track = packets + track.packets(), _Track()
        track.add(name, head)
        if name in (b"trun", b"moof") or packets > size:  # a fragment need not have a track before it
            packets, track.fragments = packets + track.fragments, 0
        if packets > size + SPARE_PACKETS:
            return True
    return packets + track.packets() > size + SPARE_PACKETS


class _Track:
    """What the boxes of one track count."""

    def __init__(self):
        self.samples = self.fragments = self.edits = self.chunks = 0
        self._handlers, self._times, self._in_chunks = set(), set(), b""

    def add(self, name: bytes, head: bytes):
        numbers = struct.unpack(f">{len(head[:24]) // 4}I", head[: len(head[:24]) // 4 * 4]) + (0,) * 6
        if name in (b"stsz", b"stz2"):
            self.samples += numbers[2]
        elif name == b"trun":
            self.fragments += numbers[1]
        elif name == b"elst":
            self.edits += numbers[1]
        elif name in (b"stco", b"co64"):
            self.chunks += numbers[1]
        elif name == b"stts":
            self._times.add((numbers[1], numbers[3]))
        elif name == b"stsc":
            self._in_chunks += head[8 : 8 + 12 * numbers[1]]
        elif name == b"hdlr":
            self._handlers.add(head[8:12])

    def packets(self) -> int:
        samples = self.samples
        if self._times == {(1, 1)} and b"soun" in self._handlers and not self._handlers & {b"vide", b"subp", b"clcp"}:
            # Samples of PCM, or of the codecs of old QuickTime, that are counted one by one and taken by the chunk.
            samples, entries = 0, list(struct.iter_unpack(">III", self._in_chunks[: len(self._in_chunks) // 12 * 12]))
            for (first, in_chunk, _), (after, _, _) in zip(entries, [*entries[1:], (self.chunks + 1, 0, 0)]):
                samples += max(after - first, 0) * -(-in_chunk // PCM_PACKET_SAMPLES)
        return samples * max(self.edits // 2, 1) + self.fragments  # many begin with an edit that is a pause


def _boxes(file: io.BufferedIOBase, start: int, end: int, depth: int = 0) -> Iterator[tuple[bytes, bytes]]:
    """Name of each box, also of those in others, and its first bytes; of tables that matter to the last entry, all."""
    while start + 8 <= end:
        file.seek(start)
        size, name = struct.unpack(">I4s", file.read(8).ljust(8, b"\0"))
        inside = start + 8
        if size == 1:  # the size does not fit into four bytes
            size, inside = int.from_bytes(file.read(8)), start + 16
        stop = end if size == 0 else min(start + size, end)
        if stop < inside:
            return
        head = file.read(stop - inside if name in (b"stsc", b"cmvd") else min(stop - inside, 24))
        yield name, head
        if name == b"cmvd":
            unpacker, unpacked = zlib.decompressobj(), b""
            with contextlib.suppress(zlib.error):
                unpacked = unpacker.decompress(head[4:], MAX_INDEX_BYTES)
            if unpacker.unconsumed_tail:
                yield b"trun", b"\xff" * 8  # counts too many, whatever it holds
            yield from _boxes(io.BytesIO(unpacked), 0, len(unpacked), depth + 1)
        elif name in PARENTS and depth < MAX_DEPTH:
            has_version = name == b"meta" and head.startswith(bytes(4))
            yield from _boxes(file, inside + 4 * has_version, stop, depth + 1)
        start = stop
