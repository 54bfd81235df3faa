"""Files that are whole though they look damaged: cut without decoding, late, without lengths, between tags."""

import io
import struct
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import av
import numpy as np

from tests.robustness.headers import id3, ogg_pages, signed, wav
from tests.robustness.inputs import EXACT, Input, file_input
from tests.robustness.sounds import BY_FFMPEG, Encoded, by_ffmpeg, encoded, plainly_decoded, song

LATE_S = 3
ID3V1 = b"TAG" + bytes(125)
PICTURE = id3(b"APIC" + struct.pack(">IH", 1_100_000, 0) + bytes(1_100_000))
ASF_FILE_PROPERTIES = b"\xa1\xdc\xab\x8c\x47\xa9\xcf\x11\x8e\xe4\x00\xc0\x0c\x20\x53\x65"


def inputs() -> Iterator[Input]:
    for name, (suffix, make) in WHOLE.items():
        content, like = partial(content_of, make), make
        yield file_input(name, "whole files", EXACT, f"song.{suffix}", content, like, fast=name in FAST)


def content_of(make: Callable[[], Encoded]) -> bytes:
    return make().content


def changed(name: str, change: Callable[[bytes], bytes]) -> Encoded:
    """Something of the file that does not matter for how it sounds is another."""
    return replace(encoded(name), content=change(encoded(name).content))


def written(name: str, container: str | None = None, samples: int | None = None, **how) -> Encoded:
    """By FFmpeg, in another way than `encoded`."""
    suffix, own_container, codec, sample_format, options = BY_FFMPEG[name]
    whole, waveform = encoded(name), song(encoded(name).rate, samples=samples)
    content = by_ffmpeg(waveform, whole.rate, container or own_container, codec, sample_format, options, **how)
    reference = waveform if whole.lossless else plainly_decoded(content)
    return Encoded(suffix, content, reference, whole.rate, whole.lossless)


def copied(name: str, container: str, start_s: float = 0.0) -> Encoded:
    """From the first packet after that time on, packets as they are, like `ffmpeg -ss ... -c copy`."""
    whole, file = encoded(name), tempfile.NamedTemporaryFile()
    with file, av.open(io.BytesIO(whole.content)) as source, av.open(file.name, "w", format=container) as target:
        stream, first = target.add_stream_from_template(source.streams.audio[0]), None
        for packet in source.demux(audio=0):
            if packet.pts is not None and packet.pts * packet.time_base >= start_s:
                first = packet.pts if first is None else first
                packet.pts = packet.dts = packet.pts - first
                packet.stream = stream
                target.mux(packet)
        target.close()
        content = file.read()
    reference = plainly_decoded(content)
    if whole.lossless:  # the end of the song
        np.testing.assert_array_equal(reference, whole.reference[:, -reference.shape[1] :])
    return Encoded(whole.suffix, content, reference, whole.rate, whole.lossless)


def two_lengths() -> Encoded:
    """A wma of two streams, of which the first is a tenth as long."""
    file = tempfile.NamedTemporaryFile()
    with file, av.open(file.name, "w", format="asf") as output:
        streams = [output.add_stream("wmav2", rate=44100, layout="stereo") for _ in range(2)]
        for stream in streams:
            stream.bit_rate, stream.codec_context.format = 256000, "fltp"
        for stream, samples in zip(streams, (20480, 204800)):
            for start in range(0, samples, 2048):
                part = np.ascontiguousarray(song(samples=samples)[:, start : start + 2048])
                frame = av.AudioFrame.from_ndarray(part, format="fltp", layout="stereo")
                frame.sample_rate, frame.pts = 44100, start
                output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
        output.close()
        content = file.read()
    return Encoded("wma", content, plainly_decoded(content), 44100, lossless=False)


def ape(size: int) -> bytes:
    item = struct.pack("<II", size, 2) + b"Cover Art (Front)\0" + np.random.default_rng(0).bytes(size)
    head, tail = (
        b"APETAGEX" + struct.pack("<IIII", 2000, len(item) + 32, 1, flags) + bytes(8)
        for flags in (0xA0000000, 0x80000000)
    )
    return head + item + tail


def without_asf_length(content: bytes) -> bytes:
    place = content.index(ASF_FILE_PROPERTIES) + 64
    return content[:place] + bytes(16) + content[place + 16 :]


def without_last_mark() -> Encoded:
    *pages, last = ogg_pages(encoded("vorbis").content)
    content = b"".join(pages) + signed(bytearray(last[:5] + bytes([last[5] & ~4]) + last[6:]))
    return replace(encoded("vorbis"), content=content, reference=plainly_decoded(content))


def sized_wav(size: int) -> Encoded:
    return replace(encoded("wav16"), content=wav(data_size=size))


def late(time: float) -> float:
    return time + LATE_S


WHOLE: dict[str, tuple[str, Callable[[], Encoded]]] = {
    **{
        f"{name} that begins late": (BY_FFMPEG[name][0], partial(written, name, move_time=late))
        for name in ("mka-flac", "webm", "wma", "ogg-flac", "m4a-fragmented", "alac", "mov-pcm")
    },
    "opus that begins late": ("opus", partial(written, "webm", "ogg", move_time=late)),
    **{
        f"mka of {samples} samples of {codec}": ("mka", partial(written, name, "matroska", samples=samples))
        for samples in (40960, 40961, 7)
        for name, codec in (("mka-flac", "flac"), ("alac", "alac"), ("mov-pcm", "PCM"), ("wv", "WavPack"))
    },
    **{
        f"{name} copied from the middle on into {suffix}": (suffix, partial(copied, name, container, 0.4))
        for name, container, suffix in (
            ("flac", "flac", "flac"),
            ("ogg-flac", "ogg", "oga"),
            ("flac", "matroska", "mka"),
            ("wv", "wv", "wv"),
            ("alac", "ipod", "m4a"),
            ("mov-pcm", "mov", "mov"),
        )
    },
    "wma of streams of two lengths": ("wma", two_lengths),
    "wma without a length": ("wma", partial(changed, "wma", without_asf_length)),
    "ADPCM wav without a count": (
        "wav",
        partial(changed, "wav-ms-adpcm", lambda content: content.replace(b"fact", b"none")),
    ),
    "wav with an unknown length, 0x80000000": ("wav", partial(sized_wav, 0x80000000)),
    "wav with an unknown length, 0xFFFF0000": ("wav", partial(sized_wav, 0xFFFF0000)),
    "flac that may have frames of any length": (
        "flac",
        partial(changed, "flac", lambda content: content[:8] + b"\0\x10\xff\xff" + content[12:]),
    ),
    "flac behind a large picture": ("flac", partial(changed, "flac", lambda content: PICTURE + content)),
    "aac behind a large picture": ("aac", partial(changed, "aac", lambda content: PICTURE + content)),
    "mp3 before a large picture": ("mp3", partial(changed, "mp3", lambda content: content + ape(140_000) + ID3V1)),
    "wv before tags": ("wv", partial(changed, "wv", lambda content: content + ape(3000) + ID3V1)),
    "vorbis before zeros": ("ogg", partial(changed, "vorbis", lambda content: content + bytes(100_000))),
    "vorbis without a mark on its last page": ("ogg", without_last_mark),
}  # fmt: skip
FAST = ("mka of 40961 samples of flac", "wma without a length")
