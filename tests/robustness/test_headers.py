"""The reader, given headers that are nearly right: it reads, or says that it can't, and does not take for ever."""

import resource
import struct
import tempfile
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processing_mss import AudioReader, AudioReadError, audio_reader_mss, read_audio
from tests.robustness.no_audio import MAGICS
from tests.robustness.sounds import by_ffmpeg, by_libsndfile, song
from tests.robustness.ways import captured
from tests.robustness.whole import WHOLE

LONGEST_S = 5  # for files of some kilobytes
SHORT = song(samples=4410)
FILES = {
    container: by_libsndfile(SHORT, 44100, container, "PCM_16")
    for container in ("WAV", "RF64", "W64", "AIFF", "CAF", "FLAC")
}
FILES |= {
    "OGG": by_libsndfile(SHORT, 44100, "OGG", "VORBIS"),
    "MP3": by_libsndfile(SHORT, 44100, "MP3", "MPEG_LAYER_III"),
}
FILES |= {"M4A": by_ffmpeg(SHORT, 44100, "ipod", "aac", "fltp", {"movflags": "faststart"})}
FILES |= {
    "MKA": by_ffmpeg(SHORT, 44100, "matroska", "flac", "s16"),
    "WV": by_ffmpeg(SHORT, 44100, "wv", "wavpack", "s16p"),
}
FILES |= {"AAC": by_ffmpeg(SHORT, 44100, "adts", "aac", "fltp"), "WMA": by_ffmpeg(SHORT, 44100, "asf", "wmav2", "fltp")}


def check_reading(content: bytes):
    """Samples are finite or there are none, nothing is written to the terminal, and it ends."""
    deadline = time.monotonic() + LONGEST_S

    def on_read(seconds):
        assert time.monotonic() < deadline, "no end of reading"

    # A file and not bytes: it is pickier about places to seek.
    with tempfile.NamedTemporaryFile(buffering=0) as file, captured() as streams:
        file.write(content)
        try:
            with AudioReader(file.name, on_read=on_read) as reader:
                num_samples = 0
                for block in reader.blocks(2**16):
                    assert np.isfinite(block).all() and block.shape[0] == reader.num_channels
                    num_samples += block.shape[1]
            assert num_samples == reader.num_samples > 0
        except AudioReadError as error:
            assert str(error) and "\n" not in str(error)
    assert streams["stderr"] == ""


@settings(max_examples=150)
@given(magic=st.sampled_from(sorted(MAGICS)), rest=st.binary(max_size=3000))
def test_anything_after_the_first_bytes_of_a_container(magic, rest):
    check_reading(MAGICS[magic] + rest)


@pytest.mark.parametrize("name", sorted(FILES))
@settings(max_examples=30)
@given(data=st.data())
def test_changed_headers(name, data):
    content = bytearray(FILES[name])
    places = st.tuples(st.integers(0, min(len(content), 700) - 1), st.sampled_from([0, 1, 0x7F, 0x80, 0xFE, 0xFF]))
    for place, value in data.draw(st.lists(places, min_size=1, max_size=4)):
        content[place] = value
    length = data.draw(st.one_of(st.just(len(content)), st.integers(1, len(content))))
    check_reading(bytes(content[:length]))


@pytest.mark.parametrize("name", WHOLE)
def test_whole_files_that_look_damaged_are_read_without_a_word(name):
    whole = WHOLE[name][1]()
    assert AudioReader(whole.content, strict=True).losses == []
    waveform, rate = read_audio(whole.content)
    assert rate == whole.rate
    np.testing.assert_allclose(waveform, whole.reference, atol=1e-6, rtol=0)


def box(name: bytes, *content: bytes) -> bytes:
    content = b"".join(content)
    return struct.pack(">I4s", 8 + len(content), name) + content


def full(name: bytes, *numbers: int) -> bytes:
    return box(name, bytes(4), *(struct.pack(">I", number) for number in numbers))


def indexed(packets: int = 1, size: int = 0, edits: int = 0, step: int = 1024, chunks: int = 1) -> bytes:
    """An mp4 of 5000 bytes whose index counts packets of equal size, in an edit list over and over."""
    config = b"\x03\x19\0\0\0\x04\x11\x40\x15" + bytes(11) + b"\x05\x02\x12\x10\x06\x01\x02"
    codec = box(
        b"mp4a",
        bytes(6),
        b"\0\1",
        bytes(8),
        struct.pack(">HHII", 2, 16, 0, 44100 << 16),
        box(b"esds", bytes(4), config),
    )
    tables = box(b"stsd", bytes(4), struct.pack(">I", 1), codec), full(b"stts", 1, packets, step)
    tables += full(b"stsc", 1, 1, packets, 1), full(b"stsz", size, packets), full(b"stco", chunks, *[100] * chunks)
    handler = box(b"hdlr", bytes(8), b"soun", bytes(13))
    media = box(b"mdia", full(b"mdhd", 0, 0, 44100, 2**30, 0), handler, box(b"minf", box(b"stbl", *tables)))
    edit = box(b"edts", box(b"elst", bytes(4), struct.pack(">I", edits), struct.pack(">IIHH", 2**30, 0, 1, 0) * edits))
    track = box(b"trak", full(b"tkhd", 0, 0, 1, 0, 2**30, *[0] * 15), edit, media)
    index = box(b"moov", full(b"mvhd", 0, 0, 1000, 2**30, *[0] * 20), track)
    return box(b"ftyp", b"M4A \0\0\2\0M4A mp42isom") + index + box(b"mdat", bytes(5000))


@pytest.mark.parametrize(
    "content",
    [
        indexed(64_000_000),
        indexed(64_000_000, size=1),
        indexed(4_000_000, step=1, chunks=3000),
        indexed(1000, size=1, edits=1000),
        indexed().replace(b"mdat", b"moof", 1)[:-5000] + box(b"traf", full(b"trun", 64_000_000)),
    ],
)
def test_an_index_that_counts_more_than_there_is_costs_nothing(content):
    begin, memory = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(AudioReadError, match="counts more packets than it can hold"):
        AudioReader(content)
    assert time.monotonic() - begin < 2 and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 100_000


def test_packets_are_told_and_counted(monkeypatch):
    """Where FFmpeg has read all bytes, packets without audio can still be stopped."""
    monkeypatch.setattr(audio_reader_mss, "counts_too_many_packets", lambda *_: False)
    told = []
    with pytest.raises(AudioReadError, match="more packets than bytes"):
        AudioReader(indexed(200, size=1, edits=200), on_read=told.append)
    assert len(told) > 5000
