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
    b"BW64": (12, "<4sI", b"data", 0),
    b"caff": (8, ">4sq", b"data", 0),
    b"riff": (40, "<16sQ", b"data\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a", 24),
}
CHUNK_ALIGNMENT = {b"RIFF": 2, b"RF64": 2, b"BW64": 2, b"caff": 1, b"riff": 8}
MIN_ZEROS = 1000  # at the end, that are no sound
MAX_CHUNKS = 1000  # of a header
MAX_PAGE_S = 5  # of an ogg page: 64 KiB
LATE_CODECS = ("vorbis", "wmav1", "wmav2")  # hold back a part of the first frame, of which times may not tell
EXACT_CODECS = ("alac", "flac", "wavpack")  # and PCM: headers count every sample
END_S = 0.1  # that may be missing at the end of others without being a loss, or come too late at the beginning
UNEVEN_S = 0.035  # of Vorbis: FFmpeg takes long packets for short ones where a page ends
ROUGH_END_S = {"matroska,webm": 0.002, "asf": 0.002, "mov,mp4,m4a,3gp,3g2,mj2": 0.002}  # of exact codecs: times in ms
ROUGH_END_S["ogg"] = 0.002  # where it was copied out of one of them
PADDED = ("matroska,webm", "asf", "caf")  # state lengths in whole packets, also where the last one is shorter


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
        self._name, self._codec, self._rate = container.format.name, stream.codec_context.name, stream.rate
        self._origin = None  # time of the first sample in seconds
        self._first_number = None  # of a FLAC frame
        self._num_frames = 0  # decoded so far
        self._before = 0  # samples that the file counts and that are before its beginning
        self._packet_end, self._covered = None, 0  # of the last one: time in seconds, and sample if it is a full one
        self._block_samples = _flac_block_samples(stream.codec_context)
        sizes = {"flac": int.from_bytes(_stream_info(stream.codec_context)[2:4]), "wavpack": self._rate // 2}
        sizes["alac"] = min(int.from_bytes((stream.codec_context.extradata or b"")[12:16]), self._rate)
        self._full_samples = sizes.get(self._codec, stream.codec_context.frame_size or 0)  # of a packet
        self._last_page = _last_ogg_page(file) if self._name == "ogg" else None
        self.stated = self._stated_samples()
        self.end = self.stated if has_short_last_packet(container, stream) else None

    def start_of(self, packet, frame, num_samples: int) -> int | None:
        """The first sample of a frame that was decoded from this packet; None where nothing tells.

        Args:
            num_samples: before it, with what was missing between them.
        """
        self._num_frames += 1
        time = frame.pts * frame.time_base if frame.pts is not None and not self._is_badly_indexed() else None
        if time is not None and self._origin is None:
            self._origin = self._time_of_start(time, packet)
        start = self._start_of(packet, time, num_samples)
        if time is not None and start is not None:
            self._before = round(time * self._rate) - start
        rounding = round(ROUGH_END_S.get(self._name, 0) * self._rate)
        self._full_samples = max(self._full_samples, frame.samples)
        self._covered = (num_samples if start is None else start) + self._full_samples + rounding
        if packet.pts is not None:
            self._packet_end = (packet.pts + (packet.duration or 0)) * packet.time_base
        return start

    def _start_of(self, packet, time: Fraction | None, num_samples: int) -> int | None:
        if self._block_samples and (start := _flac_frame_start(bytes(packet), self._block_samples)) is not None:
            if self._first_number is None:
                self._first_number = self._number_of_start(start, packet, time)
            return start - self._first_number
        if time is None:
            return None
        late = time - self._origin - Fraction(num_samples, self._rate)
        if self._num_frames == 2 and late > 0:
            # MPEG-4 in fragments: what an encoder puts before the song lasts until that begins.
            is_pause = self._name.startswith("mov") and self._packet_end is not None and self._packet_end >= time
            if is_pause or (self._codec in LATE_CODECS and late < END_S):
                self._origin += late
                self.stated = self.stated and self.stated - round(late * self._rate)
        if self._last_page and packet.pos == self._last_page.place:
            # FFmpeg counts on from what came before, also if a page is missing there; and leaves out too little then.
            begin = Fraction(_granule_before(self._file, packet.pos) - self._opus_delay(), self._rate)
            if begin > time + Fraction(END_S):  # less is what the decoder of Vorbis holds back
                time, self.end = begin, self._total()
            self._last_page = self._last_page._replace(place=-1)
        start = round((time - self._origin) * self._rate)
        is_uneven = self._codec == "vorbis" and 0 < start - num_samples < UNEVEN_S * self._rate
        return num_samples if is_uneven else start

    def missing_s(self, num_samples: int, unread_s: float) -> float | None:
        """Seconds that are missing at the end; 0 for an unknown length, None if nothing is missing.

        Args:
            num_samples: that there were, with those that were missing between them.
            unread_s: of the frames after the last one that could be decoded.
        """
        stated = self._total()
        if self._name in ("wav", "w64", "caf") and (counted := _data_bytes(self._file)):
            # FFmpeg goes by what is there.
            stated = -(-(num_samples + round(unread_s * self._rate)) * counted[0] // counted[1])
        elif stated and self._name in PADDED and self._codec in EXACT_CODECS and stated <= self._covered:
            stated = num_samples
        missing = unread_s if stated is None else (stated - num_samples) / self._rate
        is_exact = self._codec in EXACT_CODECS or self._codec.startswith("pcm_")
        if missing > (ROUGH_END_S.get(self._name, 0) if is_exact else END_S):
            return missing
        return None if self._last_page is None or self._last_page.is_whole else max(missing, 0.0)

    def _stated_samples(self) -> int | None:
        """By headers only: where they state none, FFmpeg guesses by the bit rate."""
        container, stream, rate = self._container, self._stream, self._rate
        if self._name == "mp3":
            return _mp3_samples(self._file)
        if self._name == "flac":
            return int.from_bytes(_stream_info(stream.codec_context)[13:18]) & (2**36 - 1) or None
        start = max((stream.start_time or 0) * stream.time_base, 0)
        end = None
        if self._name == "asf" and len(container.streams) == 1:
            end = _asf_seconds(self._file)
        elif self._name == "matroska,webm":
            if duration := re.fullmatch(r"(\d+):(\d\d):(\d\d\.\d+)", stream.metadata.get("DURATION", "")):
                hours, minutes, seconds = map(float, duration.groups())
                end = 3600 * hours + 60 * minutes + seconds
            elif container.duration and len(container.streams) == 1 and _states_duration(self._file):
                end = container.duration / 1e6
        if end is not None:
            return round((end - float(start)) * rate)
        states_none = self._name in ("aac", "asf", "matroska,webm") or (self._name == "ogg" and not self._last_page)
        if self._name in ("wav", "w64"):
            states_none = not self._codec.startswith("pcm_")
        if states_none or self._is_badly_indexed() or stream.duration is None:
            return None
        before = start * rate + self._opus_delay() if self._name == "ogg" else 0  # FFmpeg counts it, or does not
        return round(stream.duration * stream.time_base * rate - before)

    def _total(self) -> int | None:
        """Samples that there should be, known better after the first frame."""
        if self._last_page and len(self._container.streams) == 1:  # FFmpeg leaves out a last page that is damaged
            stated = max(self.stated or 0, self._last_page.granule - self._opus_delay())
            return stated - max(self._before, 0)
        if self._name == "flac" and self.stated:
            return self.stated - (self._first_number or 0)
        return self.stated

    def _is_badly_indexed(self) -> bool:
        """FFmpeg writes caf files of these with packets of equal lengths."""
        return self._name == "caf" and self._codec in ("flac", "opus")

    def _time_of_start(self, first_time: Fraction, packet) -> Fraction:
        """In seconds, by the first frame that could be decoded."""
        if self._name == "ogg":
            # A live recording begins much later.
            is_lost = first_time < MAX_PAGE_S and _lacks_page_before(self._file, packet.pos)
            return Fraction(0) if is_lost else first_time
        if self._name == "asf" or self._stream.start_time is None:
            return first_time  # frames of wma begin late by what the decoder holds back: nothing is lost before them
        start = self._stream.start_time * self._stream.time_base
        begins_file = self._name == "wv" and packet.pos == 0
        is_late = self._codec in LATE_CODECS and first_time - start < END_S
        return max(start, first_time) if begins_file or is_late else start

    def _number_of_start(self, first: int, packet, time: Fraction | None) -> int:
        """Number of the first sample in FLAC: not 0 in what was cut out of a longer file without being decoded."""
        if self._name == "flac":
            return first if packet.pos is not None and packet.pos <= _flac_header_bytes(self._file) else 0
        if time is None or (self._name == "ogg" and _lacks_page_before(self._file, packet.pos)):
            return 0
        number = first - round((time - self._origin) * self._rate)
        return number if abs(number) > END_S * self._rate else 0

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
    is_whole: bool  # some programs do not mark the last page as such


def _stream_info(codec_context) -> bytes:
    """The header of a FLAC stream (STREAMINFO), empty for other codecs."""
    header = codec_context.extradata or b""
    return header if codec_context.name == "flac" and len(header) == 34 else b""


def _flac_block_samples(codec_context) -> int | None:
    """Samples of a FLAC frame; None for other codecs, and where the header only limits them."""
    header = _stream_info(codec_context)
    return int.from_bytes(header[2:4]) or None if header[:2] == header[2:4] else None


def _flac_header_bytes(file: io.BufferedIOBase) -> int:
    """Place of the first frame in a FLAC file (RFC 9639, section 8.1)."""
    place, is_last = 4, False
    while not is_last and len(header := _read_at(file, place, 4)) == 4:
        place, is_last = place + 4 + int.from_bytes(header[1:]), header[0] >= 128
    return place


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

    Programs that write to a pipe state a number near the largest one, with a sign or without, or none.
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
            if head[:4] in (b"RF64", b"BW64") and stated == 2**32 - 1:
                stated = int.from_bytes(head[28:36], "little")
            elif head[:4] == b"RIFF" and (stated + 2**20) % 2**31 <= 2**21 and stated > 2**21:
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
    return OggPage(first + start, granule, is_whole)


def _lacks_page_before(file: io.BufferedIOBase, place: int | None) -> bool:
    """Whether between the headers of an ogg stream and its page at `place` another one is missing or damaged."""
    if place is None:
        return False
    page = _read_at(file, place, 27)
    before, start = None, 0
    while start < place:
        header = _read_at(file, start, 282)
        if len(header) < 27 or header[:4] != b"OggS":
            return True
        if header[14:18] == page[14:18]:
            before = header
        start += 27 + header[26] + sum(header[27 : 27 + header[26]])
    if before is None or len(page) < 27:
        return False
    numbers = [int.from_bytes(header[18:22], "little") for header in (before, page)]
    is_header = int.from_bytes(before[6:14], "little", signed=True) <= 0
    return not is_header or numbers[1] != numbers[0] + 1


def _granule_before(file: io.BufferedIOBase, place: int) -> int:
    """Of the page before the one at `place`, whether that can be decoded or not; 0 if there is none."""
    first = max(0, place - 2**16)
    before = _read_at(file, first, place - first)
    start = before.rfind(b"OggS")
    return int.from_bytes(before[start + 6 : start + 14], "little", signed=True) if start >= 0 else 0


def _mp3_samples(file: io.BufferedIOBase) -> int | None:
    """By the first frame, where that counts the others: without what its encoder put around them.

    Not by FFmpeg, which guesses where a long tag at the end makes it doubt that count.
    """
    start = _after_id3(file)
    frame = _read_at(file, start, 4096)
    sync = re.search(rb"\xff[\xe2-\xff]", frame)
    found = re.search(b"Xing|Info|VBRI", frame)
    if not found or not sync:
        return None
    tag = frame[found.start() :]
    samples_per_frame = 1152 if frame[sync.start() + 1] & 8 else 576
    if found.group() == b"VBRI":
        return int.from_bytes(tag[14:18]) * samples_per_frame or None
    padding = int.from_bytes(tag[141:144]) if tag[120:124] in (b"LAME", b"Lavf", b"Lavc") else 0
    counted = int.from_bytes(tag[8:12]) if tag[7:8] and tag[7] & 1 else 0
    return counted * samples_per_frame - (padding >> 12) - (padding & 0xFFF) if counted else None


def _after_id3(file: io.BufferedIOBase) -> int:
    """Place behind the ID3v2 tags, also with pictures, that a file begins with: their size has 7 bits a byte."""
    start = 0
    while (head := _read_at(file, start, 10)).startswith(b"ID3") and len(head) == 10:
        has_footer = head[5] & 16
        start += (
            10 + sum((byte & 127) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0))) + bool(has_footer) * 10
        )
    return start


def bounds_of_sound(file: io.BufferedIOBase) -> tuple[int, int]:
    """Places of a file between its tags, from which FFmpeg does not know FLAC, AAC, or where the sound ends."""
    size = _size(file)
    start, end = _after_id3(file), size
    mark = _read_at(file, start, 4).ljust(4, b"\0")
    is_aac, is_mpeg = mark[0] == 0xFF and mark[1] & 0xF6 == 0xF0, mark[0] == 0xFF and mark[1] >= 0xE0
    if mark in (b"fLaC", b"OggS"):
        end = _before_zeros(file, size)
    elif not is_mpeg and mark != b"wvpk":
        return 0, size
    before = None
    while before != end and end - start > 160:
        before, tail = end, _read_at(file, end - 160, 160)
        if tail[-128:-125] == b"TAG":
            end -= 128
        elif tail[-32:-24] == b"APETAGEX":
            end -= int.from_bytes(tail[-20:-16], "little") + 32 * (tail[-9] >> 7)
        elif tail[-9:] == b"LYRICS200" and tail[-15:-9].isdigit():
            first = end - 15 - int(tail[-15:-9])
            end = first if first > start and _read_at(file, first, 11) == b"LYRICSBEGIN" else end
    # FFmpeg reads the comment of an mp3 from the tag before it.
    return (start if mark == b"fLaC" or is_aac else 0, end) if end > start else (0, size)


def _before_zeros(file: io.BufferedIOBase, end: int) -> int:
    """Place of many zeros at the end of a file; some could be a part of its sound."""
    first, kept = end, b""
    while first > 0 and not kept:
        stop, first = first, max(0, first - 2**16)
        kept = _read_at(file, first, stop - first).rstrip(b"\0")
    return first + len(kept) if end - first - len(kept) >= MIN_ZEROS else end


def _states_duration(file: io.BufferedIOBase) -> bool:
    """Whether the header of a Matroska file (Info) has a Duration."""
    head = _read_at(file, 0, 2**16)
    start = head.find(b"\x15\x49\xa9\x66")
    return start >= 0 and re.search(rb"\x44\x89[\x84\x88]", head[start : start + 500]) is not None


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
