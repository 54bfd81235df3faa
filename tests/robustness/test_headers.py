"""The reader, given headers that are nearly right: it reads, or says that it can't, and does not take for ever."""

import tempfile
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processing_mss import AudioReader, AudioReadError
from tests.robustness.no_audio import MAGICS
from tests.robustness.sounds import by_ffmpeg, by_libsndfile, song
from tests.robustness.ways import captured

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
