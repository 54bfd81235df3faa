"""Files that hold no sound, or sound in a container that is not read."""

import gzip
import io
import zipfile
from collections.abc import Iterator
from fractions import Fraction
from functools import partial

import av
import numpy as np

from tests.robustness.inputs import REFUSED, Input, file_input
from tests.robustness.sounds import by_ffmpeg, by_libsndfile, encoded, song

KIND = "no audio"
MAGICS = {
    "riff": b"RIFF\xff\xff\xff\x7fWAVEfmt ",
    "rf64": b"RF64\xff\xff\xff\xffWAVEds64",
    "w64": b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00",
    "aiff": b"FORM\0\0\1\0AIFFCOMM",
    "caf": b"caff\0\1\0\0desc",
    "flac": b"fLaC\0\0\0\x22",
    "ogg": b"OggS\0\2",
    "id3": b"ID3\3\0\0\0\0\1\0",
    "mp3": b"\xff\xfb\x90\x64",
    "adts": b"\xff\xf1\x50\x80",
    "mp4": b"\0\0\0\x20ftypM4A \0\0\2\0M4A mp42isom",
    "matroska": b"\x1a\x45\xdf\xa3",
    "asf": b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\0\xaa\0\x62\xce\x6c",
    "wavpack": b"wvpk\x40\0\0\0\x10\4",
}


def inputs() -> Iterator[Input]:
    noise = np.random.default_rng(0).bytes(20000)
    for name, content in {
        "empty": b"",
        "one byte": b"R",
        "four bytes": b"RIFF",
        "100 zeros": bytes(100),
        "a million zeros": bytes(10**6),
        "a million times 0xFF": b"\xff" * 10**6,
        "random bytes": noise,
        "text": b"These are words. " * 1000,
        "utf-16": "Dies sind W\u00f6rter.".encode("utf-16") * 100,
        "json": b'{"song": [1, 2, 3]}',
        "pdf": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n<<>>\nendobj\n",
        "elf": b"\x7fELF\2\1\1" + bytes(2000),
        "midi": b"MThd\0\0\0\6\0\0\0\1\0\x60MTrk\0\0\0\4\0\xff\x2f\0",
        "gif": b"GIF89a\1\0\1\0\x80\0\0\0\0\0\xff\xff\xff!\xf9\4\1\0\0\0\0,\0\0\0\0\1\0\1\0\0\2\2D\1\0;",
    }.items():
        yield file_input(f"{name}, called .wav", KIND, REFUSED, "song.wav", content, fast=len(content) < 5)
    yield file_input("zip of a wav, called .wav", KIND, REFUSED, "song.wav", zipped)
    yield file_input("gzip of a wav, called .wav", KIND, REFUSED, "song.wav", gzipped)
    yield file_input("mp4 without sound", KIND, REFUSED, "song.mp4", silent_film, fast=True)
    yield file_input("png, called .mp3", KIND, REFUSED, "song.mp3", partial(picture, "png"))
    yield file_input("jpeg, called .mp3", KIND, REFUSED, "song.mp3", partial(picture, "mjpeg"))
    for name, magic in MAGICS.items():
        yield file_input(f"{name}, then nothing", KIND, REFUSED, "song.wav", magic)
        yield file_input(f"{name}, then noise", KIND, REFUSED, "song.wav", magic + noise)
        yield file_input(f"{name}, then zeros", KIND, REFUSED, "song.wav", magic + bytes(20000))
    for name, content in {
        "au": partial(by_libsndfile, song(), 44100, "AU"),
        "voc": partial(by_libsndfile, song(), 44100, "VOC"),
        "ircam": partial(by_libsndfile, song(), 44100, "IRCAM"),
        "nist": partial(by_libsndfile, song(), 44100, "NIST"),
        "svx": partial(by_libsndfile, song(channels=1), 44100, "SVX"),
        "tta": partial(by_ffmpeg, song(), 44100, "tta", "tta", "s16"),
        "ac3": partial(by_ffmpeg, song(), 44100, "ac3", "ac3", "fltp"),
        "avi": partial(by_ffmpeg, song(), 44100, "avi", "pcm_s16le", "s16"),
        "mpegts": partial(by_ffmpeg, song(), 44100, "mpegts", "aac", "fltp"),
        "flv": partial(by_ffmpeg, song(), 44100, "flv", "aac", "fltp"),
        "nut": partial(by_ffmpeg, song(), 44100, "nut", "pcm_s16le", "s16"),
        "swf": partial(by_ffmpeg, song(), 44100, "swf", "libmp3lame", "s16p"),
    }.items():
        yield file_input(f"{name}, called .wav", "other containers", REFUSED, "song.wav", content)
        yield file_input(f"{name}, called .{name}", "other containers", REFUSED, f"song.{name}", content)


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("song.wav", encoded("wav16").content)
    return file.getvalue()


def gzipped() -> bytes:
    return gzip.compress(encoded("wav16").content)


def picture(codec: str) -> bytes:
    encoder = av.CodecContext.create(codec, "w")
    encoder.width = encoder.height = 64
    encoder.pix_fmt, encoder.time_base = {"png": "rgb24", "mjpeg": "yuvj420p"}[codec], Fraction(1, 25)
    frame = av.VideoFrame(64, 64, encoder.pix_fmt)
    return b"".join(bytes(packet) for packet in (*encoder.encode(frame), *encoder.encode(None)))


def silent_film() -> bytes:
    return by_ffmpeg(song(), 44100, "mp4", "aac", "fltp", video=True, streams=0)
