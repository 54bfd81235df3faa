"""What the headers of audio files promise: how long they are, and where frames begin.

By that the reader knows what a damaged file has lost. FFmpeg tells most of it, but goes by what is there of a file that
was cut off, and loses the times of a file where its first part is damaged.
"""

import io
import os
import struct
from fractions import Fraction

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


def stated_samples(container, stream, file: io.BufferedIOBase) -> int | None:
    """How many samples the headers promise; None where they do not, or only guess."""
    name, rate, alone = container.format.name, stream.rate, len(container.streams) == 1
    if name == "aac" or (name == "mp3" and not _mp3_counts_its_frames(file)):
        return None
    if name == "asf" and (seconds := _asf_seconds(file)):  # FFmpeg goes by what is there
        return round(seconds * rate)
    stated = None
    if stream.duration is not None:
        stated = round(stream.duration * stream.time_base * rate)
    elif container.duration and alone:
        stated = round(container.duration * rate / 1e6)
    if name == "ogg" and alone:  # FFmpeg leaves out a last page that is damaged
        start = time_of_start(container, stream, (stream.start_time or 0) * stream.time_base)
        stated = max(stated or 0, last_ogg_page(file)[0] - round(start * rate))
    return stated


def time_of_start(container, stream, first_time: Fraction) -> Fraction:
    """The time of the first sample in seconds, by that of the first frame that could be decoded."""
    name = container.format.name
    if name == "ogg" and first_time < MAX_PAGE_S:
        return Fraction(0)  # if it begins later, its first page is lost; a live recording begins much later
    if name == "asf" or stream.start_time is None:
        return first_time  # frames of wma begin late by what the decoder holds back: nothing is lost before them
    return stream.start_time * stream.time_base


def flac_block_samples(codec_context) -> int | None:
    """Samples of a FLAC frame, by the header of the stream (STREAMINFO); None for other codecs."""
    header = codec_context.extradata or b""
    return int.from_bytes(header[2:4]) or None if codec_context.name == "flac" and len(header) == 34 else None


def flac_frame_start(packet: bytes, block_samples: int) -> int | None:
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


def data_bytes(file: io.BufferedIOBase) -> tuple[int, int] | None:
    """Bytes of samples: as stated by the header of a wav, Wave64 or caf file, and as there are; None if it states none.

    Programs that write to a pipe state the largest number, or none.
    """
    size, head = _size(file), _read_at(file, 0, 40)
    if head[:4] not in CHUNKS:
        return None
    start, layout, wanted, counted = CHUNKS[head[:4]]
    length = struct.calcsize(layout)
    for _ in range(MAX_CHUNKS):
        header = _read_at(file, start, length)
        if len(header) < length:
            return None
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


def last_ogg_page(file: io.BufferedIOBase) -> tuple[int, bool]:
    """Its granule, which is the sample that it ends with; and whether it is whole and says that it is the last one."""
    tail = _read_at(file, max(0, _size(file) - 2**16), 2**16)
    start = tail.rfind(b"OggS")
    if start < 0 or len(tail) < start + 27:
        return 0, False
    lengths = tail[start + 27 : start + 27 + tail[start + 26]]
    is_whole = start + 27 + tail[start + 26] + sum(lengths) <= len(tail)
    granule = int.from_bytes(tail[start + 6 : start + 14], "little", signed=True)
    return granule, is_whole and bool(tail[start + 5] & 4)


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
