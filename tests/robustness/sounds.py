"""A generated song, and the same song in every container that is read: with what it must sound like."""

import functools
import io
import tempfile
from collections.abc import Callable
from dataclasses import dataclass

import av
import numpy as np
import soundfile

RATE = 44100  # hertz (Hz)
PIECE = 4096  # frames written at once: libsndfile's vorbis encoder crashes on one large write

# Name: suffix, libsndfile's format and subtype.
BY_LIBSNDFILE = {
    "wav16": ("wav", "WAV", "PCM_16"),
    "wav24": ("wav", "WAV", "PCM_24"),
    "wav-float": ("wav", "WAV", "FLOAT"),
    "wav-u8": ("wav", "WAV", "PCM_U8"),
    "rf64": ("wav", "RF64", "PCM_16"),
    "w64": ("w64", "W64", "PCM_16"),
    "aiff": ("aiff", "AIFF", "PCM_16"),
    "caf": ("caf", "CAF", "PCM_16"),
    "flac": ("flac", "FLAC", "PCM_16"),
    "vorbis": ("ogg", "OGG", "VORBIS"),
    "opus": ("opus", "OGG", "OPUS"),
    "mp3": ("mp3", "MP3", "MPEG_LAYER_III"),
}
# Name: suffix, FFmpeg's container, codec and sample format, options of the container.
BY_FFMPEG = {
    "m4a": ("m4a", "ipod", "aac", "fltp", {}),
    "m4a-index-first": ("m4a", "ipod", "aac", "fltp", {"movflags": "faststart"}),
    "m4a-fragmented": ("m4a", "mp4", "aac", "fltp", {"movflags": "empty_moov", "frag_duration": "200000"}),
    "alac": ("m4a", "ipod", "alac", "s16p", {}),
    "mov-pcm": ("mov", "mov", "pcm_s16le", "s16", {}),
    "aac": ("aac", "adts", "aac", "fltp", {}),
    "ogg-flac": ("ogg", "ogg", "flac", "s16", {}),
    "mka-flac": ("mka", "matroska", "flac", "s16", {}),
    "webm": ("webm", "webm", "libopus", "flt", {}),
    "wv": ("wv", "wv", "wavpack", "s16p", {}),
    "wma": ("wma", "asf", "wmav2", "fltp", {}),
}
# Name: suffix, libsndfile's format and subtype of further codecs in these containers; only tried whole.
MORE_CODECS = {
    "wav-extensible": ("wav", "WAVEX", "PCM_24"),
    "wav32": ("wav", "WAV", "PCM_32"),
    "wav-double": ("wav", "WAV", "DOUBLE"),
    "wav-alaw": ("wav", "WAV", "ALAW"),
    "wav-ulaw": ("wav", "WAV", "ULAW"),
    "wav-ms-adpcm": ("wav", "WAV", "MS_ADPCM"),
    "wav-ima-adpcm": ("wav", "WAV", "IMA_ADPCM"),
    "aiff24": ("aif", "AIFF", "PCM_24"),
    "aiff-float": ("aif", "AIFF", "FLOAT"),
    "caf-float": ("caf", "CAF", "FLOAT"),
    "caf-alac": ("caf", "CAF", "ALAC_16"),
    "flac24": ("flac", "FLAC", "PCM_24"),
}
LOSSLESS = {"wav16", "wav24", "wav-float", "rf64", "w64", "aiff", "caf", "flac", "alac", "mov-pcm", "ogg-flac"}
LOSSLESS |= {"mka-flac", "wv", "wav-extensible", "wav32", "wav-double", "aiff24", "aiff-float", "caf-float", "caf-alac"}
LOSSLESS |= {"flac24"}
CHECKED = {"flac", "vorbis", "opus", "ogg-flac", "mka-flac", "wv"}  # every byte of audio is under a checksum
# The length is stated.
COUNTED = {"wav16", "wav24", "wav-float", "wav-u8", "rf64", "w64", "aiff", "caf", "flac", "mov-pcm", "wv", "mp3"}
COUNTED |= {"vorbis", "opus", "ogg-flac", "mka-flac", "webm", "m4a", "m4a-index-first", "alac"}
RATES = {"opus": 48000, "webm": 48000}  # the only one of Opus


@dataclass(frozen=True)
class Encoded:
    """A whole file.

    Args:
        reference: what is in it, `(channels, samples)`: of lossless formats the song itself, of others what a plain
            decoder makes of them.
    """

    suffix: str
    content: bytes
    reference: np.ndarray
    rate: int
    lossless: bool


@functools.cache
def song(rate: int = RATE, channels: int = 2, samples: int | None = None, seed: int = 0) -> np.ndarray:
    """`(channels, samples)` float32, 1 s if not said otherwise, in whole steps of 16 bits.

    Tones that sweep, another one in each channel, so that nothing can be moved or exchanged unseen; some noise.
    """
    samples = rate if samples is None else samples
    time = np.arange(samples) / rate
    top = min(3000, rate / 4)
    noise = np.random.default_rng(seed).uniform(-0.01, 0.01, (channels, samples))
    starts = top * (0.1 + np.arange(channels) / channels)[:, None]
    sweeps = 0.35 * np.sin(2 * np.pi * (starts * time + (top - starts) / 2 * time**2))
    waveform = np.round((sweeps + noise) * 2**15) / 2**15
    return waveform.astype(np.float32)


@functools.cache
def encoded(name: str) -> Encoded:
    """The song in one of the formats above; "mp3-uncounted" has no header frame that counts the others."""
    rate = RATES.get(name, RATE)
    waveform = song(rate)
    if name == "mp3-uncounted":
        suffix, content = "mp3", encoded("mp3").content
        content = content[content.index(b"\xff\xfb", 4) :]
    elif name in BY_FFMPEG:
        suffix, container, codec, sample_format, options = BY_FFMPEG[name]
        content = by_ffmpeg(waveform, rate, container, codec, sample_format, options)
    else:
        suffix, container, subtype = {**BY_LIBSNDFILE, **MORE_CODECS}[name]
        content = by_libsndfile(waveform, rate, container, subtype)
    lossless = name in LOSSLESS
    return Encoded(suffix, content, waveform if lossless else plainly_decoded(content), rate, lossless)


def by_libsndfile(waveform: np.ndarray, rate: int, container: str = "WAV", subtype: str = "PCM_16") -> bytes:
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", rate, len(waveform), subtype, format=container) as output:
        for start in range(0, waveform.shape[1], PIECE):
            output.write(waveform[:, start : start + PIECE].T)
    return file.getvalue()


def by_ffmpeg(
    waveform: np.ndarray,
    rate: int,
    container: str,
    codec: str,
    sample_format: str,
    options: dict | None = None,
    video: bool = False,
    streams: int = 1,
    move_time: Callable[[float], float] | None = None,
) -> bytes:
    """A file, also one with a moving picture before the sound, with the sound in several streams, or with other times.

    Args:
        move_time: time of a packet in seconds -> the time that is written.
    """
    layout = {1: "mono", 2: "stereo"}[len(waveform)]
    file = tempfile.NamedTemporaryFile()  # one with a name: FFmpeg opens it again to move an index to its beginning
    with file, av.open(file.name, "w", format=container, options=options or {}) as output:
        if video:
            picture = output.add_stream("mpeg4", rate=25, width=64, height=64, pix_fmt="yuv420p")
        audio = [output.add_stream(codec, rate=rate, layout=layout) for _ in range(streams)]
        for stream in audio:
            stream.bit_rate, stream.codec_context.format = 256000, sample_format
            stream.codec_context.open()
        if video:
            for _ in range(25):
                output.mux(picture.encode(av.VideoFrame(64, 64, "yuv420p")))
            output.mux(picture.encode(None))
        for stream in audio:
            frame_size = stream.codec_context.frame_size or 1024
            resampler = av.AudioResampler(sample_format, layout, rate, frame_size=frame_size)
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(waveform), format="fltp", layout=layout)
            frame.sample_rate, frame.pts = rate, 0
            for part in (*resampler.resample(frame), *resampler.resample(None), None):
                for packet in stream.encode(part):
                    if move_time:
                        time = move_time(float(packet.pts * packet.time_base))
                        packet.pts = packet.dts = int(time / packet.time_base)
                    output.mux(packet)
        output.close()
        return file.read()


def plainly_decoded(content: bytes) -> np.ndarray:
    """Of a whole file, by FFmpeg and nothing around it."""
    with av.open(io.BytesIO(content)) as container:
        converter = av.AudioResampler(format="fltp")
        frames = [part for frame in container.decode(audio=0) for part in converter.resample(frame)]
        return np.concatenate([frame.to_ndarray() for frame in frames], axis=1)
