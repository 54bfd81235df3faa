"""Audio read, resampled and written block by block equals audio handled whole; damaged audio is told."""

import io
import os
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from processing_mss import (
    AudioReader,
    AudioReadError,
    AudioWriteError,
    AudioWriter,
    StreamingResampler,
    audio_reader_mss,
    audio_source_mss,
    audio_writer_mss,
    read_audio,
    read_comment,
    resample,
    write_audio,
)
from tests.launching import fork_server

BY_LIBSNDFILE = {"wav": "PCM_24", "flac": "PCM_16", "ogg": "VORBIS", "opus": "OPUS", "mp3": "MPEG_LAYER_III"}
BY_FFMPEG = {"m4a": "aac", "mp4": "aac", "mov": "pcm_s16le"}
NAN = np.full((2, 5000), np.nan, dtype=np.float32)


def encode_with_ffmpeg(path, codec: str, waveform: np.ndarray):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=48000, layout="stereo")
        stream.format = "fltp" if codec == "aac" else "s16"
        for start in range(0, waveform.shape[1], 1024):
            samples = np.ascontiguousarray(waveform[:, start : start + 1024])
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="stereo")
            frame.sample_rate, frame.pts = 48000, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.fixture(scope="module")
def encoded(tmp_path_factory, four_sounds):
    """The path of one sound in each format, `(2, 150000)` and so longer than what is decoded at once."""
    folder, waveform = tmp_path_factory.mktemp("encoded"), four_sounds[:2, :150000].numpy()
    for suffix, subtype in BY_LIBSNDFILE.items():
        container = "OGG" if suffix == "opus" else suffix.upper()
        soundfile.write(folder / f"song.{suffix}", waveform.T, 48000, subtype, format=container)
    for suffix, codec in BY_FFMPEG.items():
        encode_with_ffmpeg(folder / f"song.{suffix}", codec, waveform)
    # Without its first frame, which is no audio but counts it, an mp3 does not state its length.
    mp3 = (folder / "song.mp3").read_bytes()
    (folder / "uncounted.mp3").write_bytes(mp3[mp3.index(b"\xff\xfb", 4) :])
    return {path.name: path for path in folder.iterdir()}


NAMES = [*(f"song.{suffix}" for suffix in (*BY_LIBSNDFILE, *BY_FFMPEG)), "uncounted.mp3"]


@pytest.mark.parametrize("name", NAMES)
@given(
    block_samples=st.one_of(st.integers(64, 3000), st.integers(1, 300000)), as_bytes=st.booleans(), kept=st.booleans()
)
@settings(max_examples=6)
def test_blocks_are_what_is_read_at_once(encoded, name, block_samples, as_bytes, kept):
    source = encoded[name].read_bytes() if as_bytes else encoded[name]
    whole, rate = read_audio(source)
    assert abs(whole.shape[1] - 150000) <= 3000  # encoders pad
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audio_reader_mss, "KEPT_VALUES", whole.size - (0 if kept else 1))
        opened = AudioReader(source)
    assert opened.is_kept == kept
    with opened as reader:
        assert (reader.num_channels, reader.num_samples, reader.sampling_rate) == (*whole.shape, rate)
        unfinished = reader.blocks(block_samples)
        next(unfinished)
        for _ in range(2):  # every pass starts anew
            blocks = list(reader.blocks(block_samples))
            assert all(block.shape == (2, block_samples) for block in blocks[:-1])
            assert blocks[-1].shape[1] > 0 and {block.dtype for block in blocks} == {np.dtype("float32")}
            np.testing.assert_array_equal(np.concatenate(blocks, axis=1), whole)
    assert list(unfinished) == []  # closed with the reader


@pytest.mark.parametrize("suffix", BY_LIBSNDFILE)
def test_samples_are_what_libsndfile_reads(encoded, suffix):
    expected, _ = soundfile.read(encoded[f"song.{suffix}"], dtype="float32")
    tolerance = 0 if suffix in ("wav", "flac") else 1e-3  # two decoders of one format
    np.testing.assert_allclose(read_audio(encoded[f"song.{suffix}"])[0], expected.T, atol=tolerance, rtol=0)


@pytest.mark.parametrize("channels", [1, 9, 32])
def test_channels_keep_their_order(tmp_path, channels):
    waveform = np.random.default_rng(0).uniform(-1, 1, (channels, 5000)).astype(np.float32)
    soundfile.write(tmp_path / "song.wav", waveform.T, 8000, "FLOAT")
    np.testing.assert_array_equal(read_audio(tmp_path / "song.wav")[0], waveform)


def test_channels_in_an_order_of_their_own_do_no_harm(tmp_path):
    """PyAV from 17.1 on frees such layouts twice, which ends the process."""
    process = fork_server().Process(target=_read_odd_layouts, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 0


def _read_odd_layouts(folder: Path):
    for suffix, codec, layout, channels in (("caf", "pcm_s16be", "7.1", 8), ("mov", "pcm_s16le", "6.1", 7)):
        path = folder / f"song.{suffix}"
        samples = np.random.default_rng(0).integers(-9999, 9999, (1, 4000 * channels)).astype(np.int16)
        with av.open(str(path), "w") as output:
            stream = output.add_stream(codec, rate=48000, layout=layout)
            frame = av.AudioFrame.from_ndarray(samples, format="s16", layout=layout)
            frame.sample_rate = 48000
            output.mux((*stream.encode(frame), *stream.encode(None)))
        for _ in range(3):
            blocks = list(AudioReader(path).blocks(1000))
        read, written = np.concatenate(blocks, axis=1) * 2**15, samples.reshape(4000, -1).T
        np.testing.assert_array_equal(np.sort(read, axis=0), np.sort(written, axis=0))


def test_files_that_break_are_refused_when_opened(tmp_path, encoded):
    for name, waveform in [("nan.wav", NAN), ("none.wav", NAN[:, :0])]:
        write_audio(tmp_path / name, waveform, 48000, "32f")
    (tmp_path / "empty.wav").touch()
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "list.wav").write_text(f"#EXTM3U\n#EXTINF:10,\n{encoded['song.m4a']}\n#EXT-X-ENDLIST\n")
    (tmp_path / "concat.mp3").write_text(f"ffconcat version 1.0\nfile {encoded['song.m4a']}\n")
    for name, message in [
        ("nan.wav", "NaN or infinity"),
        ("none.wav", "no sample"),
        ("list.wav", "is it wav"),
        ("concat.mp3", "is it wav"),
        ("pipe.wav", "no file but"),
        ("empty.wav", "0 bytes"),
        ("missing.wav", "no such file"),
    ]:
        for read in (read_audio, AudioReader):
            with pytest.raises(AudioReadError, match=rf"{name}.*{message}"):
                read(tmp_path / name)


def damaged(content: bytes, place: float | None, end: float) -> bytes:
    """With eight bytes changed at `place`, and cut off at `end`; both are shares of the file."""
    content = bytearray(content[: int(len(content) * end)])
    if place is not None:
        start = int(len(content) * place)
        content[start : start + 8] = bytes(255 - byte for byte in content[start : start + 8])
    return bytes(content)


# At 0.7 of the opus lies the page before its last one, from which FFmpeg counts on.
@pytest.mark.parametrize(
    ("name", "place"),
    [("song.flac", 0.6), ("song.ogg", 0.6), ("song.opus", 0.2), ("song.opus", 0.7), ("song.m4a", 0.6)],
)
def test_what_a_damaged_file_has_lost_is_silent_and_told(encoded, name, place):
    whole, rate = read_audio(encoded[name])
    content = damaged(encoded[name].read_bytes(), place, 1)
    reader = AudioReader(content)
    (loss,) = reader.losses
    assert not loss.at_end and loss.duration_s < 1.3 and abs(loss.start_s / (150000 / rate) - place) < 0.45
    (read,) = reader.blocks(10**6)
    start, stop = round(loss.start_s * rate), round((loss.start_s + loss.duration_s) * rate)
    assert read.shape == whole.shape and not read[:, start:stop].any()
    overlap = 0 if name == "song.flac" else 2048  # of frames: the next one has a part in this one's samples
    before = max(start - overlap, 0)
    np.testing.assert_array_equal(read[:, :before], whole[:, :before])
    if name == "song.flac":  # other formats need some frames until they are right again, or make noise at random
        np.testing.assert_array_equal(read[:, stop:], whole[:, stop:])
    with pytest.raises(AudioReadError, match=r"the given bytes is damaged: lost are 0\.\d+ s at|1\.\d+ s at"):
        AudioReader(content, strict=True)


@pytest.mark.parametrize("name", ["song.wav", "song.flac", "song.mp3", "song.ogg", "song.opus"])
def test_a_missing_end_is_told(encoded, name):
    _, rate = read_audio(encoded[name])
    reader = AudioReader(damaged(encoded[name].read_bytes(), None, 0.7))
    (loss,) = reader.losses
    assert loss.at_end and loss.start_s == reader.num_samples / rate
    assert name in ("song.ogg", "song.opus") or loss.start_s + loss.duration_s == pytest.approx(150000 / rate, abs=1e-3)


@pytest.mark.parametrize("as_bytes", [False, True])
def test_a_song_that_is_too_long_is_refused_before_it_is_decoded(tmp_path, as_bytes):
    path = tmp_path / "silence.flac"
    with AudioWriter(path, 44100, 2) as writer:
        for _ in range(30):
            writer.write(np.zeros((2, 2**18)))
    content = bytearray(path.read_bytes())
    decoded = []
    with pytest.raises(AudioReadError, match="it has 178 s, 60 s at most are taken"):
        AudioReader(bytes(content) if as_bytes else path, max_seconds=60, on_read=decoded.append)
    assert set(decoded) == {0}
    content[21:26] = bytes([content[21] & 0xF0, 0, 0, 0, 0])  # the header does not say how many samples there are
    path.write_bytes(content)
    with pytest.raises(AudioReadError, match="it has more than 60 s"):
        AudioReader(bytes(content) if as_bytes else path, max_seconds=60, on_read=decoded.append)
    assert 59 < max(decoded) < 61


def test_reading_ends_where_it_is_told_to(encoded):
    class EnoughError(Exception):
        pass

    def enough(seconds: float):
        if seconds >= after:
            raise EnoughError

    for name, after in [("song.wav", 0), ("song.wav", 1), ("song.m4a", 0), ("song.m4a", 1)]:  # noqa: B007
        with pytest.raises(EnoughError):
            AudioReader(encoded[name], on_read=enough)


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3"])
def test_comments_are_read_again(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr(audio_writer_mss, "WAV_LIMIT", 60000)
    path = tmp_path / f"song.{suffix}"
    with AudioWriter(path, 44100, 2, comment="vocals: 100 % möglich", num_samples=27000) as writer:
        for _ in range(3):
            writer.write(np.zeros((2, 9000)))
    assert read_comment(path) == "vocals: 100 % möglich"
    assert read_comment(tmp_path / "none.wav") is None
    write_audio(path, np.zeros((2, 9000)), 44100)
    assert read_comment(path) is None


def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path, monkeypatch):
    path = tmp_path / "song.wav"
    write_audio(path, np.zeros((1, 1000)), 8000)
    kept = AudioReader(path)
    monkeypatch.setattr(audio_reader_mss, "KEPT_VALUES", 999)
    with AudioReader(path) as reader:
        with pytest.raises(ValueError, match="at least 1"):
            reader.blocks(0)
        write_audio(path, np.zeros((1, 900)), 8000)
        with pytest.raises(AudioReadError, match=r"song.wav changed .* it had 1000 samples, now 900"):
            list(reader.blocks(300))
        path.write_text("no audio any more")
        with pytest.raises(AudioReadError, match=r"song.wav as audio"):
            list(reader.blocks(300))
    assert sum(block.shape[1] for block in kept.blocks(300)) == 1000  # decoded once, and kept


def test_a_file_that_is_gone_is_an_error(tmp_path, monkeypatch):
    path = tmp_path / "song.wav"
    write_audio(path, np.zeros((1, 1000)), 8000)
    monkeypatch.setattr(audio_reader_mss, "KEPT_VALUES", 999)
    reader = AudioReader(path)
    path.unlink()
    with pytest.raises(AudioReadError, match=r"^Cannot read .*song\.wav: No such file or directory\.$"):
        list(reader.blocks(300))


def test_names_are_shown_in_one_line(tmp_path):
    with pytest.raises(AudioReadError, match=r"a\\nb\\x1b\[31m ü\.wav: there is no such file") as raised:
        AudioReader(tmp_path / "a\nb\x1b[31m ü.wav")
    assert str(raised.value).isprintable()


def test_bytes_of_every_kind_are_read(encoded):
    content = encoded["song.wav"].read_bytes()
    for source in (bytearray(content), memoryview(content)):
        np.testing.assert_array_equal(read_audio(source)[0], read_audio(content)[0])
    for source in (io.BytesIO(content), 0, None):
        with pytest.raises(
            AudioReadError, match=rf"given as a path, a URL or the bytes of a file, got {type(source).__name__}"
        ):
            AudioReader(source)


def test_a_url_is_downloaded_once(encoded, monkeypatch):
    contents = [encoded["song.ogg"].read_bytes()]
    monkeypatch.setattr(audio_source_mss, "_download", lambda url: contents.pop())
    monkeypatch.setattr(audio_reader_mss, "KEPT_VALUES", 0)
    with AudioReader("https://example.org/song.ogg") as reader:
        assert sum(block.shape[1] for block in reader.blocks(9999)) == reader.num_samples


@pytest.mark.parametrize("target", [("wav", "16"), ("wav", "24"), ("wav", "32f"), ("flac", "24"), ("mp3", "16")])
@pytest.mark.parametrize("wav_limit", [audio_writer_mss.WAV_LIMIT, 60000])
def test_blocks_write_what_is_written_at_once(tmp_path, monkeypatch, target, wav_limit):
    suffix, bits = target
    rng = np.random.default_rng(0)
    waveform = rng.normal(0, 0.7, (2, 40000))  # beyond full scale here and there
    write_audio(tmp_path / f"whole.{suffix}", waveform, 44100, bits)
    monkeypatch.setattr(audio_writer_mss, "WAV_LIMIT", wav_limit)
    paths = [tmp_path / f"{name}.{suffix}" for name in ("a", "b")]
    known = {"bits": bits, "num_samples": 40000}
    with AudioWriter(paths[0], 44100, 2, suffix, **known) as a, AudioWriter(paths[1], 44100, 2, **known) as b:
        for block in np.split(waveform, sorted(rng.integers(0, 40000, 7)), axis=1):
            a.write(block)
            b.write(block)
    whole, _ = read_audio(tmp_path / f"whole.{suffix}")
    for path in paths:
        np.testing.assert_array_equal(read_audio(path)[0], whole)
        is_rf64 = suffix == "wav" and wav_limit == 60000
        assert path.read_bytes()[:4] == (b"RF64" if is_rf64 else path.with_stem("whole").read_bytes()[:4])
    if bits != "32f" and suffix != "mp3":
        np.testing.assert_allclose(whole, waveform.clip(-1, 1), atol=2**-15)  # cut, never wrapped around
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupted_file_leaves_nothing_but_what_was_there(tmp_path, error):
    (tmp_path / "old.wav").write_text("old")
    for name in ("old.wav", "new.mp3"):
        with pytest.raises(error), AudioWriter(tmp_path / name, 48000, 1) as writer:
            writer.write(np.zeros((1, 5000)))
            raise error
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_what_cannot_be_written_is_refused(tmp_path, monkeypatch):
    with pytest.raises(AudioWriteError, match="formats are"):
        AudioWriter(tmp_path / "song", 48000, 1)
    wrong = [NAN, NAN[:1] * 0, np.zeros(5), np.zeros((2, 5), dtype=np.int16)]  # libmp3lame dies of NaN
    for block, message in zip(wrong, ["NaN or infinity", "(2, samples)", "(2, samples)", "int16"]):
        with pytest.raises(AudioWriteError) as raised, AudioWriter(tmp_path / "song.mp3", 48000, 2) as writer:
            writer.write(block)
        assert message in str(raised.value)
    with monkeypatch.context() as patch, pytest.raises(AudioWriteError, match="num_samples"):
        patch.setattr(audio_writer_mss, "WAV_LIMIT", 60000)
        with AudioWriter(tmp_path / "long.wav", 48000, 1) as writer:
            writer.write(np.zeros((1, 40000)))
    write_audio(tmp_path / "loud.mp3", np.full((1, 5000), 1e9), 48000)  # and of this, were it not cut
    assert [path.name for path in tmp_path.iterdir()] == ["loud.mp3"]


RATES = [(44100, 48000), (48000, 44100), (8000, 48000), (192000, 48000), (48000, 48000), (44101, 48000), (8000, 8011)]


@given(
    rates=st.sampled_from(RATES), num_samples=st.integers(0, 60000), shape=st.sampled_from([(), (2,)]), data=st.data()
)
@settings(max_examples=60)
def test_streaming_resampler_is_resample(rates, num_samples, shape, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, num_samples), max_size=12)))
    waveform = torch.rand(*shape, num_samples) * 2 - 1
    expected = resample(waveform, *rates)
    resampler = StreamingResampler(*rates)
    for _ in range(2):  # it can be used again
        blocks = [resampler.push(block) for block in waveform.tensor_split(cuts, dim=-1)]
        resampled = torch.cat([*blocks, resampler.finish()], dim=-1)
        assert resampled.shape == expected.shape
        torch.testing.assert_close(resampled, expected, atol=1e-6, rtol=0)


def test_streaming_resampler_holds_on_to_little():
    resampler = StreamingResampler(44100, 48000)
    held = []
    for _ in range(50):
        assert abs(resampler.push(torch.zeros(2, 44100)).shape[-1] - 48000) < 500
        held.append(resampler._buffer.shape[-1])
    assert max(held) < 1000 and resampler.finish().shape[-1] < 500
