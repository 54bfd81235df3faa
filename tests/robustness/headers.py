"""Headers that lie: about sizes, lengths, rates, layouts and times."""

import struct
from collections.abc import Iterator
from functools import partial

import numpy as np

from tests.robustness.inputs import ANY, DAMAGED, EXACT, REFUSED, UNDETECTABLE, Input, file_input
from tests.robustness.sounds import BY_FFMPEG, Encoded, by_ffmpeg, by_libsndfile, encoded, song

KIND = "lying headers"
HUGE = 2**31 - 1
# The time of a packet becomes another one. Half a second in the middle is a hole that is told; ten years are no hole.
TIMES = {
    "half a second late in the middle": lambda time: time + 0.5 * (time > 0.5),
    "an hour late in the middle": lambda time: time + 3600 * (time > 0.5),
    "ten hours late in the middle": lambda time: time + 36000 * (time > 0.5),
    "ten years late in the middle": lambda time: time + 3e8 * (time > 0.5),
    "ten years late as a whole": lambda time: time + 3e8,
    "twice as slow": lambda time: 2 * time,
    "a thousand times as slow": lambda time: 1000 * time,
    "a hundred times as fast": lambda time: time / 100,
}


def inputs() -> Iterator[Input]:
    yield from wav_inputs()
    yield from flac_inputs()
    yield from mp3_inputs()
    yield from box_inputs()
    yield from other_inputs()
    yield from time_inputs()


def song_16() -> Encoded:
    return encoded("wav16")


def chunk(name: bytes, content: bytes, size: int | None = None) -> bytes:
    length = len(content) if size is None else size
    return name + struct.pack("<I", length) + content + b"\0" * (len(content) % 2)


def wav(
    channels: int = 2,
    rate: int = 44100,
    bits: int = 16,
    codec: int = 1,
    block_bytes: int | None = None,
    data_size: int | None = None,
    riff_size: int | None = None,
    before: bytes = b"",
    after: bytes = b"",
    content: bytes | None = None,
) -> bytes:
    """The song in a wav file whose header says what is asked for."""
    content = np.round(song().T * 2**15).astype("<i2").tobytes() if content is None else content
    block_bytes = channels * bits // 8 if block_bytes is None else block_bytes
    layout = struct.pack("<HHIIHH", codec, channels, rate, rate * block_bytes % 2**32, block_bytes, bits)
    body = b"WAVE" + chunk(b"fmt ", layout) + before + chunk(b"data", content, data_size) + after
    return b"RIFF" + struct.pack("<I", len(body) if riff_size is None else riff_size) + body


def wav_inputs() -> Iterator[Input]:
    size, empty = 2 * 2 * 44100, chunk(b"none", b"")
    for name, expected, header in [
        ("data size 0", DAMAGED, {"data_size": 0}),
        ("data size 0xFFFFFFFF", EXACT, {"data_size": 2**32 - 1}),
        ("data size 0x7FFFFFFF", EXACT, {"data_size": 2**31 - 1}),
        ("data size 2**31 - 2", DAMAGED, {"data_size": 2**31 - 2}),
        ("data size twice as long", DAMAGED, {"data_size": 2 * size}),
        ("data size one sample too long", DAMAGED, {"data_size": size + 4}),
        ("data size half as long", ANY, {"data_size": size // 2}),
        ("data size odd", ANY, {"data_size": size - 1}),
        ("riff size 0", EXACT, {"riff_size": 0}),
        ("riff size 0xFFFFFFFF", EXACT, {"riff_size": 2**32 - 1}),
        ("riff size too small", EXACT, {"riff_size": 1000}),
        ("rate 0", REFUSED, {"rate": 0}),
        ("rate 1", REFUSED, {"rate": 1}),
        ("rate 999", REFUSED, {"rate": 999}),
        ("rate 2**31", REFUSED, {"rate": 2**31}),
        ("rate 2**32 - 1", REFUSED, {"rate": 2**32 - 1}),
        ("0 channels", REFUSED, {"channels": 0}),
        ("0 channels with blocks", REFUSED, {"channels": 0, "block_bytes": 4}),
        ("33 channels", REFUSED, {"channels": 33}),
        ("255 channels", REFUSED, {"channels": 255}),
        ("65535 channels", REFUSED, {"channels": 65535, "block_bytes": 65534}),
        ("bits 0", REFUSED, {"bits": 0}),
        ("bits 0 with blocks", ANY, {"bits": 0, "block_bytes": 4}),
        ("bits 7", ANY, {"bits": 7, "block_bytes": 4}),
        ("bits 65535", REFUSED, {"bits": 65535, "block_bytes": 4}),
        ("block size 0", ANY, {"block_bytes": 0}),
        ("block size 1", ANY, {"block_bytes": 1}),
        ("block size 65535", ANY, {"block_bytes": 65535}),
        ("unknown codec", REFUSED, {"codec": 0x1234}),
        ("codec of mp3 over PCM", ANY, {"codec": 0x55}),
        ("codec of aac over PCM", ANY, {"codec": 0xFF}),
        ("float over PCM", ANY, {"codec": 3}),
        ("extensible without its extension", ANY, {"codec": 0xFFFE}),
        ("no samples", REFUSED, {"content": b""}),
        ("half a sample", REFUSED, {"content": b"\1"}),
        ("thousand empty chunks before", EXACT, {"before": 1000 * empty}),
        ("100000 empty chunks before", EXACT, {"before": 100000 * empty}),
        ("an odd chunk before", EXACT, {"before": chunk(b"odd ", b"abc")}),
        ("a chunk before that reaches beyond the end", ANY, {"before": chunk(b"LIST", b"abcd", HUGE)}),
        ("a chunk of size 0xFFFFFFFF before", ANY, {"before": chunk(b"junk", b"", 2**32 - 1)}),
        ("an empty second format", ANY, {"before": chunk(b"fmt ", b"")}),
        ("a second format", ANY, {"before": chunk(b"fmt ", struct.pack("<HHIIHH", 1, 1, 8000, 8000, 1, 8))}),
        ("tags after", EXACT, {"after": chunk(b"LIST", b"INFOISFT\4\0\0\0abc\0")}),
        ("garbage after", EXACT, {"after": b"\xff" * 1001}),
        ("a second data chunk after", ANY, {"after": chunk(b"data", bytes(4000))}),
        ("tags that lie about their size after", EXACT, {"after": chunk(b"LIST", b"INFO", HUGE)}),
    ]:  # fmt: skip
        like = song_16 if expected in (EXACT, DAMAGED) else None
        fast = name in ("data size 0xFFFFFFFF", "data size twice as long", "rate 0", "bits 0")
        yield file_input(f"wav: {name}", KIND, expected, "song.wav", partial(wav, **header), like, fast)
    whole = wav()
    for name, content in {
        "wav without a format": whole.replace(b"fmt ", b"none", 1),
        "wav without data": whole.replace(b"data", b"none", 1),
        "wav with its bytes in reverse order (RIFX)": reversed_wav(whole),
        "wav that is no WAVE": whole.replace(b"WAVE", b"WAVY", 1),
        "wav: data before format": whole[:12] + whole[36:] + whole[12:36],
        "wav of the first 12 bytes": whole[:12],
    }.items():
        yield file_input(name, KIND, REFUSED if "data before" not in name else ANY, "song.wav", content)


def reversed_wav(content: bytes) -> bytes:
    samples = np.frombuffer(content[44:], "<i2").astype(">i2").tobytes()
    layout = struct.pack(">HHIIHH", 1, 2, 44100, 4 * 44100, 4, 16)
    body = b"WAVEfmt " + struct.pack(">I", 16) + layout + b"data" + struct.pack(">I", len(samples)) + samples
    return b"RIFX" + struct.pack(">I", len(body)) + body


def with_stream_info(
    rate: int | None = None, channels: int | None = None, bits: int | None = None, total: int | None = None
) -> bytes:
    """The song's flac, in whose header some of 20 bits of rate, 3 of channels, 5 of bits, 36 of samples are others."""
    content = bytearray(encoded("flac").content)
    fields = int.from_bytes(content[18:26], "big")
    for value, shift, width in ((rate, 44, 20), (channels, 41, 3), (bits, 36, 5), (total, 0, 36)):
        if value is not None:
            fields = fields & ~((2**width - 1) << shift) | value << shift
    content[18:26] = fields.to_bytes(8, "big")
    return bytes(content)


def flac_inputs() -> Iterator[Input]:
    like = partial(encoded, "flac")
    for name, expected, fields in [
        ("0 samples stated", EXACT, {"total": 0}),
        ("1 sample stated", DAMAGED, {"total": 1}),
        ("half of the samples stated", DAMAGED, {"total": 22050}),
        ("twice the samples stated", DAMAGED, {"total": 88200}),
        ("2**36 - 1 samples stated", DAMAGED, {"total": 2**36 - 1}),
        ("rate 0", ANY, {"rate": 0}),
        ("rate 1", ANY, {"rate": 1}),
        ("rate 655350", ANY, {"rate": 655350}),
        ("1 channel stated", ANY, {"channels": 0}),
        ("8 channels stated", ANY, {"channels": 7}),
        ("1 bit stated", ANY, {"bits": 0}),
        ("32 bits stated", ANY, {"bits": 31}),
    ]:
        content = partial(with_stream_info, **fields)
        fast = name == "2**36 - 1 samples stated"
        yield file_input(f"flac: {name}", KIND, expected, "song.flac", content, like, fast)
    whole = encoded("flac").content
    for name, expected, content in [
        ("tags of 2**24 - 1 bytes stated", ANY, whole[:42] + b"\x04\xff\xff\xff" + whole[42:]),
        ("only the header", REFUSED, whole[:42]),
        ("a last header only", ANY, whole[:4] + b"\x80" + whole[5:42]),
        ("ID3 tags before it", EXACT, id3(b"") + whole),
        ("ID3 tags after it", EXACT, whole + b"TAG" + bytes(125)),
        ("2000 zeros after it", EXACT, whole + bytes(2000)),
        ("999 zeros after it", DAMAGED, whole + bytes(999)),
    ]:
        yield file_input(f"flac: {name}", KIND, expected, "song.flac", content, like)


def id3(content: bytes, size: int | None = None, version: int = 3) -> bytes:
    size = len(content) if size is None else size
    return b"ID3" + bytes([version, 0, 0, *(size >> shift & 127 for shift in (21, 14, 7, 0))]) + content


def with_mp3_count(frames: int) -> bytes:
    content = bytearray(encoded("mp3").content)
    place = max(content.find(b"Xing"), content.find(b"Info"))
    content[place + 8 : place + 12] = frames.to_bytes(4, "big")
    return bytes(content)


def mp3_inputs() -> Iterator[Input]:
    like, whole = partial(encoded, "mp3"), encoded("mp3").content
    place = max(whole.find(b"Xing"), whole.find(b"Info"))
    frames = int.from_bytes(whole[place + 8 : place + 12], "big")
    for count in (0, 1, frames // 2, 2 * frames, 10**6, 2**32 - 1):
        name = f"mp3: {count} frames stated"
        # What is to be left out at the end is then left out in the middle.
        expected = UNDETECTABLE if 1 < count < frames else DAMAGED
        yield file_input(name, KIND, expected, "song.mp3", partial(with_mp3_count, count), like)
    picture = b"APIC" + struct.pack(">IH", 200014, 0) + b"\0image/jpeg\0\3\0" + b"\xff\xd8\xff" + bytes(199997)
    noise = np.random.default_rng(0).bytes(5000)
    for name, expected, content in [
        ("tags with a picture that is none", EXACT, id3(picture) + whole),
        ("tags with a frame of 2**31 bytes", EXACT, id3(b"TIT2" + struct.pack(">IH", 2**31, 0) + bytes(20)) + whole),
        ("tags of 2**28 - 1 bytes stated", ANY, id3(b"", 2**28 - 1) + whole),
        ("tags of another version", EXACT, id3(bytes(100), version=99) + whole),
        ("thousand tags", EXACT, 1000 * id3(b"") + whole),
        ("ID3v1 tags after it", EXACT, whole + b"TAG" + bytes(125)),
        ("APE tags after it", EXACT, whole + b"APETAGEX" + struct.pack("<IIII", 2000, 32, 2**31, 0) + bytes(8)),
        ("5000 zeros before it", ANY, bytes(5000) + whole),
        ("5000 bytes of noise before it", ANY, noise + whole),
        ("5000 bytes of noise after it", ANY, whole + noise),
        ("sync words only", REFUSED, b"\xff\xfb\x90\x00" * 2000),
        ("sync words in wrong places", ANY, b"\xff\xfb\x90\x00".join(whole[i : i + 999] for i in range(0, 20000, 999))),
    ]:  # fmt: skip
        yield file_input(f"mp3: {name}", KIND, expected, "song.mp3", content, like if expected == EXACT else None)


def with_number(name: str, mark: bytes, offset: int, value: int, layout: str = ">I") -> bytes:
    """A file in which the number that stands `offset` bytes from a mark is another one."""
    content = bytearray(encoded(name).content)
    struct.pack_into(layout, content, content.index(mark) + offset, value)
    return bytes(content)


def box_inputs() -> Iterator[Input]:
    """MPEG-4: the size before a box's name, and counts in it."""
    for box in ("ftyp", "moov", "mdat", "trak", "mdia", "stbl", "stsd", "stts", "stsz", "stco"):
        for size in (0, 1, 7, HUGE, 2**32 - 1):
            content = partial(with_number, "m4a", box.encode(), -4, size)
            yield file_input(f"m4a: size of {box} {size}", KIND, ANY, "song.m4a", content)
    for box, field, offset in (
        ("stsz", "samples", 12),
        ("stsz", "equal sizes", 8),
        ("stts", "entries", 8),
        ("stts", "packets in the first entry", 12),
        ("stts", "duration in the first entry", 16),
        ("stco", "entries", 8),
        ("stco", "first place", 12),
        ("stsc", "entries", 8),
        ("stsc", "packets in a piece", 16),
        ("mvhd", "time scale", 16),
        ("mdhd", "time scale", 16),
        ("mdhd", "duration", 20),
        ("elst", "entries", 8),
        ("elst", "duration", 12),
        ("elst", "start", 16),
        ("mp4a", "channels", 20),
        ("mp4a", "rate", 28),
    ):
        for value in (0, 1, HUGE, 2**32 - 1):
            content = partial(with_number, "m4a", box.encode(), offset, value)
            yield file_input(f"m4a: {field} of {box} {value}", KIND, ANY, "song.m4a", content)


def other_inputs() -> Iterator[Input]:
    for name, suffix, mark, offset, layout, value, expected in [
        ("caf", "caf", b"data", 4, ">q", -1, EXACT),
        ("caf", "caf", b"data", 4, ">q", 0, ANY),
        ("caf", "caf", b"data", 4, ">q", -2, ANY),
        ("caf", "caf", b"data", 4, ">q", 2**62, DAMAGED),
        ("caf", "caf", b"data", 4, ">q", 400000, DAMAGED),
        ("caf", "caf", b"desc", 12, ">d", 0.0, REFUSED),
        ("caf", "caf", b"desc", 12, ">d", -44100.0, REFUSED),
        ("caf", "caf", b"desc", 12, ">d", float("nan"), REFUSED),
        ("caf", "caf", b"desc", 12, ">d", 1e300, REFUSED),
        ("caf", "caf", b"desc", 36, ">I", 0, REFUSED),  # channels
        ("caf", "caf", b"desc", 36, ">I", 2**31, REFUSED),
        ("aiff", "aiff", b"COMM", 8, ">H", 0, REFUSED),  # channels
        ("aiff", "aiff", b"COMM", 8, ">H", 65535, REFUSED),
        ("aiff", "aiff", b"COMM", 10, ">I", 0, ANY),  # samples
        ("aiff", "aiff", b"COMM", 10, ">I", 22050, ANY),
        ("aiff", "aiff", b"COMM", 10, ">I", 88200, DAMAGED),
        ("aiff", "aiff", b"COMM", 10, ">I", 2**32 - 1, DAMAGED),
        ("aiff", "aiff", b"COMM", 14, ">H", 0, ANY),  # bits
        ("aiff", "aiff", b"COMM", 16, ">H", 0, REFUSED),  # exponent of the rate
        ("aiff", "aiff", b"COMM", 16, ">H", 0x7FFF, REFUSED),
        ("aiff", "aiff", b"SSND", 4, ">I", 0, ANY),
        ("aiff", "aiff", b"SSND", 4, ">I", 2**32 - 1, DAMAGED),
        ("aiff", "aiff", b"SSND", 8, ">I", 2**31, ANY),  # where samples begin
        ("w64", "w64", b"data", 16, "<Q", 0, ANY),
        ("w64", "w64", b"data", 16, "<Q", 10, ANY),
        ("w64", "w64", b"data", 16, "<Q", 400000, DAMAGED),
        ("w64", "w64", b"data", 16, "<Q", 2**63, ANY),
        ("w64", "w64", b"data", 16, "<Q", 2**64 - 1, ANY),
        ("w64", "w64", b"fmt ", 16, "<Q", 2**48 + 40, ANY),
        ("w64", "w64", b"fmt ", 16, "<Q", 2**64 - 1, ANY),
        ("caf", "caf", b"desc", 4, ">q", 2**48 + 32, ANY),
        ("caf", "caf", b"desc", 4, ">q", -(2**62), ANY),
        ("rf64", "wav", b"ds64", 16, "<Q", 0, ANY),  # size of the data
        ("rf64", "wav", b"ds64", 16, "<Q", 400000, DAMAGED),
        ("rf64", "wav", b"ds64", 16, "<Q", 2**63, ANY),
        ("rf64", "wav", b"ds64", 16, "<Q", 2**64 - 1, ANY),
        ("wv", "wv", b"wvpk", 4, "<I", 0, ANY),  # size of the first block
        ("wv", "wv", b"wvpk", 4, "<I", 2**31, ANY),
        ("wv", "wv", b"wvpk", 12, "<I", 0, ANY),  # samples
        ("wv", "wv", b"wvpk", 12, "<I", 88200, DAMAGED),
        ("wv", "wv", b"wvpk", 12, "<I", 2**32 - 2, ANY),
        ("wv", "wv", b"wvpk", 20, "<I", 0, ANY),  # samples of the first block
        ("wv", "wv", b"wvpk", 20, "<I", 2**32 - 1, ANY),
    ]:
        title = f"{name}: {value} at {mark.decode()} + {offset}"
        like = partial(encoded, name) if expected in (EXACT, DAMAGED) else None
        content = partial(with_number, name, mark, offset, value, layout)
        yield file_input(title, KIND, expected, f"song.{suffix}", content, like)
    for name, mark in (("vorbis", b"vorbis"), ("opus", b"OpusHead")):
        for offset, value in ((11, 0), (9, 0), (9, 255), (12, 2**31)):
            content = partial(with_ogg_number, name, mark, offset, value)
            title = f"{name}: {value} at {mark.decode()} + {offset}, checksum right"
            yield file_input(title, KIND, ANY, f"song.{name[:4]}", content)
    for granule in (0, 10**6, 10**9, 10**15, 2**62, 2**64 - 1):
        for name in ("vorbis", "opus", "ogg-flac"):
            content = partial(with_granule, name, granule)
            title = f"{name}: a page in the middle at sample {granule}, checksum right"
            yield file_input(title, KIND, ANY, "song.ogg", content)


def ogg_checksum(page: bytes) -> int:
    """CRC-32 of polynomial 0x04C11DB7, neither reflected nor inverted."""
    value = 0
    for byte in page:
        value ^= byte << 24
        for _ in range(8):
            value = (value << 1 ^ 0x04C11DB7 if value & 2**31 else value << 1) & 0xFFFFFFFF
    return value


def ogg_pages(content: bytes) -> list[bytes]:
    pages, start = [], 0
    while start < len(content):
        segments = content[start + 26]
        end = start + 27 + segments + sum(content[start + 27 : start + 27 + segments])
        pages.append(content[start:end])
        start = end
    return pages


def signed(page: bytearray) -> bytes:
    page[22:26] = bytes(4)
    page[22:26] = ogg_checksum(page).to_bytes(4, "little")
    return bytes(page)


def with_ogg_number(name: str, mark: bytes, offset: int, value: int) -> bytes:
    first, *rest = ogg_pages(encoded(name).content)
    page, size = bytearray(first), 1 if value < 256 else 4
    place = page.index(mark) + offset
    page[place : place + size] = value.to_bytes(size, "little")
    return signed(page) + b"".join(rest)


def with_granule(name: str, granule: int) -> bytes:
    pages = ogg_pages(encoded(name).content)
    middle = len(pages) // 2 + 1
    page = bytearray(pages[middle])
    page[6:14] = granule.to_bytes(8, "little")
    return b"".join((*pages[:middle], signed(page), *pages[middle + 1 :]))


def with_times(name: str, moved: str) -> bytes:
    _, container, codec, sample_format, options = BY_FFMPEG[name]
    rate = encoded(name).rate
    return by_ffmpeg(song(rate), rate, container, codec, sample_format, options, move_time=TIMES[moved])


def time_inputs() -> Iterator[Input]:
    for name in ("m4a", "m4a-fragmented", "mka-flac", "webm", "wma", "mov-pcm"):
        # FFmpeg does not write several packets of wma at one time.
        for moved in list(TIMES)[: -1 if name == "wma" else None]:
            content, suffix = partial(with_times, name, moved), BY_FFMPEG[name][0]
            yield file_input(f"{name} {moved}", "wrong times", ANY, f"song.{suffix}", content)
    silence = partial(by_libsndfile, np.zeros((1, 8000 * 7200), np.float32), 8000, "FLAC", "PCM_16")
    yield file_input("two hours of silence", "too long", REFUSED, "song.flac", silence, ways=("space",))
