"""Reading audio files by FFmpeg (PyAV), whole or block by block in memory that does not grow, and never trusting them.

Only containers that hold their own sound are opened (`CONTAINERS`), known by their content and not by their name: no
playlist, and nothing else that refers to other files or addresses. What is damaged is silent in what is read, so that
all the rest stays in its place, and is told (`AudioReader.losses`).
"""

import contextlib
import functools
import io
import os
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from transformers.utils import logging

try:
    import av
except ImportError:
    av = None

from .audio_headers_mss import Timing, bounds_of_sound, has_short_last_packet
from .audio_source_mss import (
    RATE_LIMITS,
    SPARE_PACKETS,
    AudioReadError,
    FilePart,
    Source,
    counts_too_many_packets,
    locate,
    signals_deferred,
    whole_file,
)

logger = logging.get_logger(__name__)

FFMPEG_ERRORS = (av.FFmpegError,) if av else ()
AUDIO_SUFFIXES = {".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".mp4", ".aac", ".aif", ".aiff", ".wma"}
AUDIO_SUFFIXES |= {".aifc", ".caf", ".m4b", ".mka", ".oga", ".w64", ".webm", ".wv"}
# FFmpeg's names of wav (also RF64), Wave64, aiff, caf, flac, ogg, mp3, aac, m4a and mp4, mka and webm, wma, WavPack.
CONTAINERS = ("wav", "w64", "aiff", "caf", "flac", "ogg", "mp3", "aac", "mov", "matroska", "asf", "wv")
GAP_S = 0.01  # between the times of two frames: shorter ones are rounding, not loss
MAX_GAP_S = 10  # that is believed where headers do not say how long all is
MAX_LOST_S = 3600  # in all: a damaged time must not be silence without an end
KEPT_S = 600  # of a song that is kept in memory
KEPT_VALUES = KEPT_S * 48000 * 2  # samples of all its channels: 0.23 GB
MAX_LOST_SHARE = 0.5  # of what is read: beyond, the file is refused
SILENCE_SAMPLES = 2**16  # at once

Pieces = Iterator[np.ndarray]  # of decoded audio, (channels, samples) float32


@dataclass(frozen=True)
class Loss:
    """Audio that a damaged file no longer holds.

    Args:
        start_s: where, in seconds of what is read.
        duration_s: how much. It is silent there, or, at the end, missing; 0 for an end of unknown length.
        at_end: whether it is missing at the end.
    """

    start_s: float
    duration_s: float
    at_end: bool = False

    def __str__(self):
        if self.at_end:
            return f"the last {self.duration_s:.3f} s" if self.duration_s else "an end of unknown length"
        return f"{self.duration_s:.3f} s at {self.start_s:.3f} s"


def read_audio(source: str | os.PathLike | bytes) -> tuple[np.ndarray, int]:
    """Read a whole file: path, URL (http or https), or the bytes of a file. A warning tells what was damaged in it.

    Returns:
        waveform `(channels, samples)` float32, and its rate in hertz (Hz).

    Raises:
        AudioReadError: see there.
    """
    name, source = locate(source)
    decoding = _Decoding(name, source)
    pieces = list(decoding)
    decoding.check_losses()
    if decoding.losses:
        logger.warning(damage_message(name, decoding.losses))
    return np.concatenate(pieces, axis=1), decoding.sampling_rate


class AudioReader(contextlib.AbstractContextManager):
    """A file that is read block by block, as often as wanted: the same samples that `read_audio` gives.

    Opening decodes the whole file, because the headers of some formats only estimate the length. So errors come now
    and not after an hour, and `num_samples` is exact. Up to ten minutes of music is kept in memory and never decoded
    again (`KEPT_S`, `KEPT_VALUES`); of a longer file nothing is kept, and every pass decodes it anew. A URL is
    downloaded once.

    Attributes:
        name: of the source, for messages.
        sampling_rate: in hertz (Hz).
        num_channels, num_samples: of what `blocks` delivers.
        is_kept: whether all of it is in memory.
        losses: what the file is too damaged to give, in order (`Loss`); empty for a whole file.

    Args:
        source: as for `read_audio`.
        strict: refuse a file of which anything is lost.
        max_seconds: refuse a longer file, from its header where that tells, or as soon as so much was decoded.
        on_read: called with the seconds decoded so far, now and whenever it is decoded again, also while bytes are read
            that give no audio. An exception raised in it ends the reading: the place to cancel, and to limit time.

    Raises:
        AudioReadError: see there; from `blocks` if a file that is not kept changed since it was opened.
    """

    def __init__(
        self,
        source: str | os.PathLike | bytes,
        strict: bool = False,
        max_seconds: float | None = None,
        on_read: Callable[[float], None] | None = None,
    ):
        self.name, self._source = locate(source)
        self._max_seconds, self._on_read = max_seconds, on_read
        decoding, kept = self._decode(), []
        for piece in decoding:
            self.num_channels = len(piece)
            is_short = decoding.num_samples <= KEPT_S * decoding.sampling_rate
            if is_short and decoding.num_samples * self.num_channels <= KEPT_VALUES:
                kept.append(piece)
            else:
                kept.clear()
        decoding.check_losses(strict)
        self.is_kept, self._kept = bool(kept), kept
        self.num_samples, self.sampling_rate = decoding.num_samples, decoding.sampling_rate
        self.losses = decoding.losses
        self._passes = weakref.WeakSet()  # a pass holds its reader: what is done with goes at once, with its song

    def __exit__(self, *exception):
        """Close the file, also for passes that have not reached its end."""
        for blocks in list(self._passes):
            blocks.close()

    def blocks(self, block_samples: int) -> Iterator[np.ndarray]:
        """From the beginning, `(channels, block_samples)` float32 each; the last block is shorter if need be."""
        if block_samples < 1:
            raise ValueError(f"`block_samples` must be at least 1, got {block_samples}.")
        blocks = self._blocks(block_samples)
        self._passes.add(blocks)
        return blocks

    def _decode(self) -> "_Decoding":
        return _Decoding(self.name, self._source, self._max_seconds, self._on_read)

    def _blocks(self, block_samples: int) -> Iterator[np.ndarray]:
        held, num_held = [], 0
        pieces = self._kept if self.is_kept else self._decode()
        for samples in pieces:
            held.append(samples)
            num_held += samples.shape[1]
            if num_held >= block_samples:
                joined = np.concatenate(held, axis=1)
                num_held %= block_samples
                ready = joined.shape[1] - num_held
                held = [joined[:, ready:]]
                for start in range(0, ready, block_samples):
                    yield joined[:, start : start + block_samples].copy()
        if not self.is_kept and pieces.num_samples != self.num_samples:
            raise AudioReadError(
                f"{self.name} changed while it was read: it had {self.num_samples} samples, now {pieces.num_samples}."
            )
        if num_held:
            yield np.concatenate(held, axis=1)


def damage_message(name: str, losses: list[Loss]) -> str:
    """One sentence about what is lost, and where."""
    shown = ", ".join(map(str, losses[:4])) + (f" and {len(losses) - 4} more places" if len(losses) > 4 else "")
    return f"{name} is damaged: lost are {shown}."


def read_comment(path: str | os.PathLike) -> str | None:
    """The comment in a file's tags, as `AudioWriter` writes it; None if there is none, or the file is no audio."""
    if not os.path.isfile(path):  # opening a pipe could keep us waiting
        return None
    try:
        with open(path, "rb") as file, _open_container(Source(whole_file(file), lambda: None)) as container:
            tags = {key.lower(): value for key, value in container.metadata.items()}
    except (OSError, ValueError):
        return None
    return tags.get("comment")


@functools.cache
def _audio_decoders() -> str:
    """Names of all, for FFmpeg, which would decode cover art and video too, of any size, before anything is known."""
    names = []
    for name in av.codecs_available:
        with contextlib.suppress(ValueError):  # of encoders
            if av.Codec(name, "r").type == "audio":
                names.append(name)
    return ",".join(sorted(names))


def _open_container(source: Source) -> "av.container.InputContainer":
    """Raises AudioReadError where there is no audio in it that is read."""
    if av is None:
        raise ImportError("Reading audio files needs PyAV (pip install av).")
    options = {
        "format_whitelist": ",".join(CONTAINERS),
        "protocol_whitelist": "none",
        "codec_whitelist": _audio_decoders(),
        "err_detect": "crccheck",
    }
    if source.read(4) == b"RIFX":  # FFmpeg takes its samples for the other order, which makes noise at full scale
        raise AudioReadError("it is a wav with its bytes in reverse order (RIFX); save it as a usual one (RIFF).")
    if counts_too_many_packets(source, source.size):
        raise AudioReadError("its index counts more packets than it can hold; it is damaged.")
    source.seek(0)
    try:
        with signals_deferred():
            return av.open(source, options=options, metadata_errors="ignore")
    except FFMPEG_ERRORS as error:
        raise AudioReadError("is it wav, flac, mp3, ogg, m4a, aac, aiff, caf, mka, wma or wv, and whole?") from error


class _Decoding:
    """One pass over a file: iterate over it, then read the attributes.

    Attributes:
        num_samples, sampling_rate, losses: of what was decoded so far.
    """

    def __init__(
        self,
        name: str,
        source: str | bytes,
        max_seconds: float | None = None,
        on_read: Callable[[float], None] | None = None,
    ):
        self.name, self._source = name, source
        self._max_seconds, self._on_read = max_seconds, on_read
        self.num_samples, self.sampling_rate, self.losses = 0, 0, []

    def __iter__(self) -> Pieces:
        with self._open() as whole:
            try:
                file = FilePart(whole, *bounds_of_sound(whole))
                with _open_container(Source(file, self._tell)) as container:
                    yield from self._checked(self._pieces(container, file))
            except AudioReadError as error:
                raise AudioReadError(f"Cannot read {self.name} as audio: {error}") from error
            except FFMPEG_ERRORS as error:  # a layout that it can't convert, for one
                raise AudioReadError(f"Cannot read {self.name} as audio: {error.strerror}.") from error

    def _open(self) -> io.BufferedIOBase:
        if isinstance(self._source, bytes):
            return io.BytesIO(self._source)
        try:
            return open(self._source, "rb")
        except OSError as error:
            raise AudioReadError(f"Cannot read {self.name}: {error.strerror}.") from error

    def _tell(self):
        if self._on_read is not None:
            self._on_read(self.num_samples / self.sampling_rate if self.sampling_rate else 0.0)

    def check_losses(self, strict: bool = False):
        """Raises AudioReadError if more is lost than is good for anything; with `strict`, if anything is."""
        lost = sum(loss.duration_s for loss in self.losses if not loss.at_end) * self.sampling_rate
        if lost > MAX_LOST_SHARE * self.num_samples or (strict and self.losses):
            raise AudioReadError(damage_message(self.name, self.losses))

    def _checked(self, pieces: Pieces) -> Pieces:
        """Counts samples, and sees that they are finite and not too many."""
        for piece in pieces:
            if not np.isfinite(piece).all():
                raise AudioReadError("it holds NaN or infinity.")
            self.num_samples += piece.shape[1]
            self._check_length(self.num_samples / self.sampling_rate, "more than ")
            self._tell()
            yield piece
        if self.num_samples == 0:
            raise AudioReadError("no sample could be decoded.")

    def _check_length(self, seconds: float, at_least: str = ""):
        if self._max_seconds is not None and seconds > self._max_seconds:
            raise AudioReadError(
                f"it has {at_least}{seconds:.0f} s, {self._max_seconds:g} s at most are taken; cut it."
            )

    def _pieces(self, container: "av.container.InputContainer", file: FilePart) -> Pieces:
        """Every frame at its place, silence where one is missing."""
        stream = self._open_stream(container)
        rate, num_samples, lost = self.sampling_rate, 0, 0
        timing = Timing(container, stream, file)
        self._packets_left = file.size + SPARE_PACKETS
        if timing.stated is not None:
            self._check_length(timing.stated / rate)
        converter = av.AudioResampler(format="flt", layout=stream.layout, rate=rate)
        for packet, frame in self._frames(container, stream):
            start = timing.start_of(packet, frame, num_samples)
            gap = 0 if start is None else start - num_samples
            # A time that is far beyond the end is damaged itself.
            if gap > GAP_S * rate and (gap < MAX_GAP_S * rate or (timing.stated and start < timing.stated)):
                self.losses.append(Loss(num_samples / rate, gap / rate))
                lost += gap
                if lost > MAX_LOST_S * rate:
                    raise AudioReadError(f"more than {MAX_LOST_S} s of it are lost.")
                num_samples += gap
                yield from _silence(len(frame.layout.channels), gap)
            frame.pts = None
            with signals_deferred():
                resampled = converter.resample(frame)
            for converted in resampled:
                piece = _as_array(converted)
                if timing.end is not None:
                    piece = piece[:, : max(timing.end - num_samples, 0)]
                num_samples += piece.shape[1]
                yield piece
        missing_s = timing.missing_s(num_samples, self._unread_s)
        if missing_s is None and self._broken_off:
            missing_s = self._unread_s
        if missing_s is not None:
            self.losses.append(Loss(num_samples / rate, missing_s, at_end=True))

    def _open_stream(self, container: "av.container.InputContainer") -> "av.AudioStream":
        if not container.streams.audio:
            raise AudioReadError("there is no audio stream in it.")
        stream = container.streams.audio[0]
        if stream.codec_context is None or not stream.rate:
            raise AudioReadError("its audio is in a codec that is not known here.")
        low, high = RATE_LIMITS
        if not low <= stream.rate <= high:
            raise AudioReadError(f"its sampling rate must be from {low} to {high} Hz, got {stream.rate} Hz.")
        # A frame whose checksum is wrong is lost: what FFmpeg would make of it may be noise at full scale.
        stream.codec_context.options = {"err_detect": "crccheck+explode"}
        if has_short_last_packet(container, stream):
            stream.codec_context.options |= {"flags2": "+skip_manual"}
        self.sampling_rate = stream.rate
        return stream

    def _frames(self, container, stream) -> Iterator[tuple["av.Packet", "av.AudioFrame"]]:
        """Frames of one layout, and the packets that they come from; afterwards, what could not be read at the end."""
        layout = stream.layout.name
        self._unread_s, self._broken_off = 0.0, False
        packets = container.demux(stream)
        while True:
            try:
                with signals_deferred():
                    packet = next(packets, None)
            except FFMPEG_ERRORS:  # nothing more is found in it
                self._broken_off = True
                return
            if packet is None:
                return
            self._tell()  # FFmpeg may go on for long with what it has read
            self._packets_left -= 1
            if self._packets_left < 0:
                raise AudioReadError("it has more packets than bytes; it is damaged.")
            try:
                with signals_deferred():
                    frames = packet.decode()
            except FFMPEG_ERRORS:
                self._unread_s += float((packet.duration or 0) * stream.time_base)
                continue
            for frame in frames:
                if (frame.layout.name, frame.sample_rate) == (layout, stream.rate):
                    self._unread_s = 0.0
                    yield packet, frame
                else:
                    self._unread_s += frame.samples / stream.rate


def _as_array(frame: "av.AudioFrame") -> np.ndarray:
    """Interleaved -> `(channels, samples)`. PyAV crashes where more than eight channels are planes of their own."""
    return np.ascontiguousarray(frame.to_ndarray().reshape(frame.samples, -1).T)


def _silence(num_channels: int, num_samples: int) -> Pieces:
    for start in range(0, num_samples, SILENCE_SAMPLES):
        yield np.zeros((num_channels, min(SILENCE_SAMPLES, num_samples - start)), dtype=np.float32)
