"""What the headers of audio files promise: how long they are, and where frames begin.

By that the reader knows what a damaged file has lost. FFmpeg tells most of it, but goes by what is there of a file that
was cut off, and loses the times where the first part of a file is damaged, or the page before the last one of an ogg.
"""

import io
import os
import re
import struct
from fractions import Fraction
from typing import NamedTuple

# Start of the first chunk, layout of name and size, name of the one with samples, header bytes in its size.
CHUNKS = {
    b"RIFF": (12, "<4sI", b"data", 0),
    b"RF64": (12, "<4sI", b"data", 0),
    b"caff": (8, ">4sq", b"data", 0),
    b"riff": (40, "<16sQ", b"data\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a", 24),
}
CHUNK_ALIGNMENT = {b"RIFF": 2, b"RF64": 2, b"caff": 1, b"riff": 8}
MAX_CHUNKS = 1000  # of a header
MAX_PAGE_S = 5  # of an ogg page: 64 KiB
EXACT_CODECS = ("alac", "flac", "wavpack")  # and PCM: headers count every sample
END_S = 0.1  # that may be missing at the end of others without being a loss


class Timing:
    """Where the frames of an audio stream begin, and where it ends: by FFmpeg where it knows, else by the file's bytes.

    Args:
        container, stream: PyAV's.
        file: that is read; its place is left as it is.

    Attributes:
        stated: how many samples the headers promise; None where they do not, or only guess.
        end: where decoded samples have to end; None where FFmpeg knows.
    """

    def __init__(self, container, stream, file: io.BufferedIOBase):
        self._container, self._stream, self._file = container, stream, file
        self._name, self._rate = container.format.name, stream.rate
        self._origin = None  # time of the first sample in seconds
        self._block_samples = _flac_block_samples(stream.codec_context)
        self._last_page = _last_ogg_page(file) if self._name == "ogg" else None
        self.stated = self._stated_samples()
        self.end = self.stated if has_short_last_packet(container, stream) else None

    def start_of(self, packet, frame) -> int | None:
        """The first sample of a frame that was decoded from this packet; None where nothing tells."""
        if self._block_samples and (start := _flac_frame_start(bytes(packet), self._block_samples)) is not None:
            return start
        if frame.pts is None:
            return None
        time = frame.pts * frame.time_base
        if self._origin is None:
            self._origin = self._time_of_start(time)
        if self._last_page and packet.pos == self._last_page.place:
            # FFmpeg counts on from what came before, also if a page is missing there; and leaves out too little then.
            begin = Fraction(_granule_before(self._file, packet.pos) - self._opus_delay(), self._rate)
            if begin > time:
                time, self.end = begin, self.stated
            self._last_page = self._last_page._replace(place=-1)
        return round((time - self._origin) * self._rate)

    def missing_s(self, num_samples: int, unread_s: float) -> float | None:
        """Seconds that are missing at the end; 0 for an unknown length, None if nothing is missing.

        Args:
            num_samples: that there were, with those that were missing between them.
            unread_s: of the frames after the last one that could be decoded.
        """
        stated, codec = self.stated, self._stream.codec_context.name
        if self._name in ("wav", "w64", "caf") and (counted := _data_bytes(self._file)):
            stated = -(-num_samples * counted[0] // counted[1])  # FFmpeg goes by what is there
        missing = unread_s if stated is None else (stated - num_samples) / self._rate
        if missing > (0 if codec in EXACT_CODECS or codec.startswith("pcm_") else END_S):
            return missing
        return None if self._last_page is None or self._last_page.is_end else max(missing, 0.0)

    def _stated_samples(self) -> int | None:
        container, stream, rate = self._container, self._stream, self._rate
        if self._name == "aac" or (self._name == "mp3" and not _mp3_counts_its_frames(self._file)):
            return None
        if self._name == "asf" and (seconds := _asf_seconds(self._file)):  # FFmpeg goes by what is there
            return round(seconds * rate)
        stated = None
        if stream.duration is not None:
            stated = round(stream.duration * stream.time_base * rate)
        elif duration := re.fullmatch(r"(\d+):(\d\d):(\d\d\.\d+)", stream.metadata.get("DURATION", "")):  # of mka
            hours, minutes, seconds = map(float, duration.groups())
            stated = round((3600 * hours + 60 * minutes + seconds) * rate)
        elif container.duration and len(container.streams) == 1:
            stated = round(container.duration * rate / 1e6)
        if self._last_page and len(container.streams) == 1:  # FFmpeg leaves out a last page that is damaged
            start = self._time_of_start((stream.start_time or 0) * stream.time_base)
            stated = max(stated or 0, self._last_page.granule - round(start * rate)) - self._opus_delay()
        return stated

    def _time_of_start(self, first_time: Fraction) -> Fraction:
        """In seconds, by the time of the first frame that could be decoded."""
        if self._name == "ogg" and first_time < MAX_PAGE_S:
            return Fraction(0)  # if it begins later, its first page is lost; a live recording begins much later
        if self._name == "asf" or self._stream.start_time is None:
            return first_time  # frames of wma begin late by what the decoder holds back: nothing is lost before them
        return self._stream.start_time * self._stream.time_base

    def _opus_delay(self) -> int:
        """Samples that an Opus decoder leaves out at the beginning, but granules count (RFC 7845, section 5.1)."""
        header = self._stream.codec_context.extradata or b""
        return int.from_bytes(header[10:12], "little") if header.startswith(b"OpusHead") else 0


def has_short_last_packet(container, stream) -> bool:
    """ALAC in caf: FFmpeg leaves out what the last packet lacks, whether the decoder has already done so or not."""
    return container.format.name == "caf" and stream.codec_context.name == "alac"


class OggPage(NamedTuple):
    place: int  # in bytes
    granule: int  # sample that it ends with
    is_end: bool  # whether it is whole, and says that it is the last one


def _flac_block_samples(codec_context) -> int | None:
    """Samples of a FLAC frame, by the header of the stream (STREAMINFO); None for other codecs."""
    header = codec_context.extradata or b""
    return int.from_bytes(header[2:4]) or None if codec_context.name == "flac" and len(header) == 34 else None


def _flac_frame_start(packet: bytes, block_samples: int) -> int | None:
    """Number of a FLAC frame's first sample, by its own header (RFC 9639, section 9.1); containers' times may be none.

    The number is coded as UTF-8 codes characters, in up to seven bytes.
    """
    if len(packet) < 11 or packet[0] != 0xFF or packet[1] & 0xFE != 0xF8:
        return None
    ones = f"{packet[4]:08b}".find("0") if packet[4] != 0xFF else 8
    number = packet[4] & (0xFF >> min(ones + 1, 8))
    for byte in packet[5 : 4 + max(ones, 1)]:
        number = number << 6 | byte & 0x3F
    return number if packet[1] & 1 else number * block_samples


def _asf_seconds(file: io.BufferedIOBase) -> float | None:
    """How long a wma file says that it is, in its File Properties Object (ASF specification, section 3.2)."""
    head = _read_at(file, 0, 2**16)
    start = head.find(b"\xa1\xdc\xab\x8c\x47\xa9\xcf\x11\x8e\xe4\x00\xc0\x0c\x20\x53\x65")
    if start < 0 or len(head) < start + 88:
        return None
    played, _, preroll = struct.unpack_from("<QQQ", head, start + 64)  # 100 ns, 100 ns, ms
    return played / 1e7 - preroll / 1e3


def _data_bytes(file: io.BufferedIOBase) -> tuple[int, int] | None:
    """Bytes of samples: as stated by the header of a wav, Wave64 or caf file, and as there are; None if it states none.

    Programs that write to a pipe state the largest number, or none.
    """
    size, head = _size(file), _read_at(file, 0, 40)
    if head[:4] not in CHUNKS:
        return None
    start, layout, wanted, counted = CHUNKS[head[:4]]
    length = struct.calcsize(layout)
    for _ in range(MAX_CHUNKS):
        if start + length > size:
            return None
        header = _read_at(file, start, length)
        name, stated = struct.unpack(layout, header)
        if name == wanted:
            if head[:4] == b"RF64" and stated == 2**32 - 1:
                stated = int.from_bytes(head[28:36], "little")
            elif head[:4] == b"RIFF" and stated % 2**31 > 2**31 - 2**16:
                return None
            stated, available = stated - counted, size - start - length
            return (stated, available) if stated > available > 0 else None
        step = length + stated - counted
        start += step + -step % CHUNK_ALIGNMENT[head[:4]] if step > 0 else length
    return None


def _last_ogg_page(file: io.BufferedIOBase) -> OggPage | None:
    """The last page of an ogg file, which has 64 KiB at most; None if other things stand behind it."""
    first = max(0, _size(file) - 2**16)
    tail = _read_at(file, first, 2**16)
    start = tail.rfind(b"OggS")
    if start < 0 or len(tail) < start + 27:
        return None
    lengths = tail[start + 27 : start + 27 + tail[start + 26]]
    is_whole = start + 27 + tail[start + 26] + sum(lengths) <= len(tail)
    granule = int.from_bytes(tail[start + 6 : start + 14], "little", signed=True)
    return OggPage(first + start, granule, is_whole and bool(tail[start + 5] & 4))


def _granule_before(file: io.BufferedIOBase, place: int) -> int:
    """Of the page before the one at `place`, whether that can be decoded or not; 0 if there is none."""
    first = max(0, place - 2**16)
    before = _read_at(file, first, place - first)
    start = before.rfind(b"OggS")
    return int.from_bytes(before[start + 6 : start + 14], "little", signed=True) if start >= 0 else 0


def _mp3_counts_its_frames(file: io.BufferedIOBase) -> bool:
    """Whether the first frame counts the others; where it does not, FFmpeg guesses."""
    head, start = _read_at(file, 0, 10), 0
    if head.startswith(b"ID3"):  # tags and pictures, their size given in 7 bits a byte
        start = 10 + sum(byte << shift for byte, shift in zip(head[6:], (21, 14, 7, 0)))
    frame = _read_at(file, start, 4096)
    return any(name in frame for name in (b"Xing", b"Info", b"VBRI"))


def _size(file: io.BufferedIOBase) -> int:
    place = file.tell()
    size = file.seek(0, os.SEEK_END)
    file.seek(place)
    return size


def _read_at(file: io.BufferedIOBase, start: int, size: int) -> bytes:
    """Without moving the place where FFmpeg reads on."""
    place = file.tell()
    try:
        file.seek(start)
        return file.read(size)
    finally:
        file.seek(place)
