"""Every container whole, cut off, and with damage in it."""

from collections.abc import Iterator
from functools import partial

import numpy as np

from tests.robustness.inputs import ANY, DAMAGED, EXACT, UNDETECTABLE, Input, file_input
from tests.robustness.sounds import (
    BY_FFMPEG,
    BY_LIBSNDFILE,
    CHECKED,
    COUNTED,
    MORE_CODECS,
    Encoded,
    by_ffmpeg,
    by_libsndfile,
    encoded,
    plainly_decoded,
    song,
)

CUTS = (10, 60, 0.25, 0.5, 0.5001, 0.75, 0.95, -1)  # bytes, shares of all bytes, bytes before the end
FLIPS = (0, 5, 24, 60, 0.3, 0.5, 0.75, -2)
TAILS = {"m4a", "m4a-fragmented", "alac", "mov-pcm", "mka-flac", "webm", "wma"}  # end with an index and not with audio
ALL_CHECKED = {"vorbis", "opus", "ogg-flac"}  # headers too
EXACT_END = {"wav16", "wav24", "wav-float", "wav-u8", "rf64", "w64", "aiff", "caf", "flac", "wv"}
PLAIN = {"wav16", "wav24", "wav-float", "wav-u8", "rf64", "w64", "aiff", "caf", "mov-pcm"}
FAST_WHOLE = {"m4a"}
FAST_CUT = {"mp3", "vorbis"}
FAST_FLIP = {"flac"}


def inputs() -> Iterator[Input]:
    for name in [*BY_LIBSNDFILE, "mp3-uncounted", *BY_FFMPEG, *MORE_CODECS]:
        suffix = suffix_of(name)
        whole, content = partial(encoded, name), partial(changed, name, bytes)
        yield file_input(name, "whole files", EXACT, f"song.{suffix}", content, whole, fast=name in FAST_WHOLE)
        if name in MORE_CODECS:
            continue
        exact_end = name in EXACT_END
        for place in CUTS:
            yield file_input(
                f"{name} cut at {place}",
                "files cut off",
                DAMAGED if name in COUNTED else UNDETECTABLE,
                f"song.{suffix}",
                partial(changed, name, partial(cut, place)),
                whole,
                fast=name in FAST_CUT and place == 0.5,
                exact_end=exact_end,
            )
        for place in FLIPS:
            yield file_input(
                f"{name} with a wrong byte at {place}",
                "a wrong byte",
                expected_of_flip(name, place),
                f"song.{suffix}",
                partial(changed, name, partial(flip, place)),
                whole,
                fast=name in FAST_FLIP and place == 0.5,
                exact_end=exact_end,
            )
        for change in (zeroed, removed, inserted):
            expected = expected_of_hole(name, change)
            yield file_input(
                f"{name} with 1000 bytes {change.__name__}",
                "a hole",
                expected,
                f"song.{suffix}",
                partial(changed, name, change),
                whole,
                exact_end=exact_end,
            )
    yield from special_inputs()


def special_inputs() -> Iterator[Input]:
    """Containers that hold more, or less, than one plain song."""
    for name, content in {
        "video and audio": with_video,
        "two audio streams": partial(several_streams, 2),
    }.items():
        like = partial(as_decoded, content)
        yield file_input(name, "whole files", EXACT, "song.mp4", content, like)
    for samples in (1, 10, 100):
        for suffix, container in (("wav", "WAV"), ("flac", "FLAC")):
            like = partial(short_song, samples, container)
            content = partial(content_of, like)
            yield file_input(f"{suffix} of {samples} samples", "whole files", EXACT, f"song.{suffix}", content, like)
    for name in ("mp3", "aac", "vorbis", "opus", "flac", "wav16"):
        content = partial(joined, name, name)
        yield file_input(f"{name} twice, joined", "joined files", ANY, f"song.{suffix_of(name)}", content)
    for first, second in (("mp3", "flac"), ("aac", "mp3"), ("vorbis", "opus"), ("vorbis", "ogg-flac")):
        content = partial(joined, first, second)
        yield file_input(f"{first} joined with {second}", "joined files", ANY, f"song.{suffix_of(first)}", content)
    for container, codec, rate in (("MP3", "MPEG_LAYER_III", 8000), ("OGG", "VORBIS", 8000), ("FLAC", "PCM_16", 8000)):
        content = partial(layout_change, container, codec, rate)
        name = f"{container.lower()} that turns to mono at {rate} Hz"
        yield file_input(name, "joined files", ANY, f"song.{container.lower()}", content)


def suffix_of(name: str) -> str:
    return "mp3" if name == "mp3-uncounted" else {**BY_LIBSNDFILE, **BY_FFMPEG, **MORE_CODECS}[name][0]


def changed(name: str, change) -> bytes:
    return change(encoded(name).content)


def expected_of_flip(name: str, place: float) -> str:
    if name in ALL_CHECKED:
        return DAMAGED
    if place == -2:
        return ANY if name in TAILS else DAMAGED if name in CHECKED else UNDETECTABLE
    if isinstance(place, int):  # in the header
        return ANY
    return DAMAGED if name in CHECKED else UNDETECTABLE


def expected_of_hole(name: str, change) -> str:
    if change is zeroed:
        return DAMAGED if name in CHECKED else UNDETECTABLE
    # The length of samples without frames is stated: where some come in, others go out at the end.
    return ANY if change is inserted and name in PLAIN else UNDETECTABLE


def position(place: float, content: bytes) -> int:
    return int(place * len(content)) if isinstance(place, float) else place % len(content)


def cut(place: float, content: bytes) -> bytes:
    return content[: position(place, content)]


def flip(place: float, content: bytes) -> bytes:
    damaged = bytearray(content)
    damaged[position(place, content)] ^= 0xFF
    return bytes(damaged)


def zeroed(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes(1000) + content[middle + 1000 :]


def removed(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + content[middle + 1000 :]


def inserted(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + np.random.default_rng(0).bytes(1000) + content[middle:]


def joined(first: str, second: str) -> bytes:
    return encoded(first).content + encoded(second).content


def layout_change(container: str, codec: str, rate: int) -> bytes:
    return by_libsndfile(song(), 44100, container, codec) + by_libsndfile(song(rate, 1), rate, container, codec)


def short_song(samples: int, container: str) -> Encoded:
    waveform = song(samples=samples)
    return Encoded("", by_libsndfile(waveform, 44100, container, "PCM_16"), waveform, 44100, lossless=True)


def content_of(like) -> bytes:
    return like().content


def as_decoded(content) -> Encoded:
    return Encoded("", content(), plainly_decoded(content()), 44100, lossless=False)


def with_video() -> bytes:
    return by_ffmpeg(song(), 44100, "mp4", "aac", "fltp", video=True)


def several_streams(number: int) -> bytes:
    return by_ffmpeg(song(), 44100, "mp4", "aac", "fltp", streams=number)
