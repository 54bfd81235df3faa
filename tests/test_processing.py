"""Features, windows, codes and audio files."""

import io
import itertools

import numpy as np
import pytest
import scipy.signal
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from processing_mss import (
    AudioWriteError,
    MssFeatureExtractor,
    log_mel_spectrogram,
    read_audio,
    resampling_mss,
    write_audio,
)
from processing_mss.audio_source_mss import as_waveform
from processing_mss.resampling_mss import resample
from processing_mss.windowing_mss import overlap_add, split_windows, window_starts
from tests.tiny import tiny_processor


def test_log_mel_is_the_papers_written_out_in_numpy(four_sounds):
    audio = four_sounds.sum(dim=0).double().numpy()
    padded = np.pad(audio, 544, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(2048) / 2048)
    frames = np.stack([padded[i * 960 : i * 960 + 2048] for i in range(200)])
    magnitude = np.abs(np.fft.rfft(frames * window))
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 24000 / 700), 122) / 2595) - 1)
    bins = np.arange(1025) * 48000 / 2048
    rising = (bins[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins[:, None]) / (edges[2:] - edges[1:-1])
    expected = np.log(magnitude @ np.clip(np.minimum(rising, falling), 0, None) + 1e-10)

    features = log_mel_spectrogram(torch.from_numpy(audio).float())
    assert features.shape == (200, 120)
    # 5e-3 of a log: float32 spectra of quiet bands beside loud ones.
    np.testing.assert_allclose(features.numpy(), expected, atol=5e-3)


@given(frames=st.integers(3, 300), batch=st.integers(1, 2))
@settings(max_examples=20)
def test_frame_count_is_exact(frames, batch):
    extractor = MssFeatureExtractor()
    windows = np.zeros((batch, 1, frames * 960))
    for same in (windows, list(windows[:, 0])):
        assert extractor(same, 48000).input_features.shape == (batch, frames, 120)


def test_feature_extractor_checks_the_rate_and_the_shape(caplog):
    extractor = MssFeatureExtractor()
    with pytest.raises(ValueError, match=r"48000 Hz, got 44100 Hz"):
        extractor(np.zeros(9600), sampling_rate=44100)
    with pytest.raises(ValueError, match=r"got \(1, 2, 9600\)"):
        extractor(np.zeros((1, 2, 9600)), sampling_rate=48000)
    with pytest.raises(ValueError, match=r"\(2, 9600\) can be channels or windows"):
        extractor(np.zeros((2, 9600)), sampling_rate=48000)  # stereo
    with pytest.raises(ValueError, match=r"of one length, got shapes \[\(9600,\), \(9601,\)\]"):
        extractor([np.zeros(9600), np.zeros(9601)], sampling_rate=48000)
    with pytest.raises(ValueError, match="got 'tf'"):
        extractor(np.zeros(9600), sampling_rate=48000, return_tensors="tf")
    with pytest.raises(ValueError, match=r"full scale 1, got torch\.int16"):
        extractor(np.zeros(9600, dtype=np.int16), sampling_rate=48000)
    assert extractor(np.zeros(1), sampling_rate=48000).input_features.shape == (1, 3, 120)
    waveform = MssFeatureExtractor(features="waveform")(np.zeros((2, 1, 192000)), 48000, return_tensors="np")
    assert isinstance(waveform.input_values, np.ndarray) and waveform.input_values.shape == (2, 64000)


codes = st.tuples(st.integers(0, 3), st.integers(1, 16), st.integers(1, 60), st.booleans())


@given(codes)
def test_interleave_and_deinterleave_are_inverse(shape):
    batch, num_codebooks, num_frames, as_numpy = shape
    processor = tiny_processor()
    acoustic, semantic = torch.randint(1024, (2, batch, 4, num_codebooks, num_frames))
    if as_numpy:
        acoustic, semantic = acoustic.numpy(), semantic.numpy()
    interleaved = processor.interleave(acoustic, semantic)
    assert interleaved.shape == (batch, 4, 2 * num_frames, num_codebooks)
    if batch:
        assert (interleaved[0, 0, 0] == acoustic[0, 0, :, 0]).all()
        assert (interleaved[0, 0, 1] == semantic[0, 0, :, 0]).all()
    for ours, theirs in zip(processor.deinterleave(interleaved), (acoustic, semantic)):
        assert type(ours) is type(theirs) and ours.shape == theirs.shape and (ours == theirs).all()


@given(num_samples=st.integers(1, 500), window=st.integers(1, 60), data=st.data())
def test_windows_cover_the_song_and_add_up_to_it(num_samples, window, data):
    overlap = data.draw(st.integers(0, window - 1))
    starts = window_starts(num_samples, window, overlap)
    assert starts[0] == 0 and starts[-1] == max(num_samples - window, 0)  # shifted back, never past the end
    assert all(0 < later - earlier <= window - overlap for earlier, later in itertools.pairwise(starts))
    song = torch.randn(2, num_samples, dtype=torch.float64)
    windows = split_windows(song, starts, window)
    assert windows.shape == (len(starts), 2, window)
    torch.testing.assert_close(overlap_add(windows, starts, overlap, num_samples), song)
    # Nothing is mixed for longer than the overlap, however far the last window was shifted back.
    labels = torch.arange(len(starts), dtype=torch.float64)[:, None].expand(-1, window)
    mixed = overlap_add(labels, starts, overlap, num_samples)
    assert (mixed != mixed.round()).sum() <= overlap * (len(starts) - 1)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 96000, 192000, 44101, 48005])
def test_resampling_keeps_tones_and_removes_aliases(rate):
    time = torch.arange(rate) / rate
    tone = torch.sin(2 * torch.pi * 1000 * time)
    resampled = resample(tone, rate, 48000)
    assert len(resampled) == 48000
    expected = torch.sin(2 * torch.pi * 1000 * torch.arange(48000) / 48000)
    middle = slice(1000, -1000)
    assert (resampled - expected)[middle].abs().max() < 2e-3
    if rate > 2 * 30000:
        alias = resample(torch.sin(2 * torch.pi * 30000 * time), rate, 48000)
        assert alias[middle].abs().max() < 0.02
    back = resample(resampled, 48000, rate)
    assert len(back) == rate and (back - tone)[middle].abs().max() < 5e-3


def test_both_ways_of_resampling_are_one():
    noise = torch.randn(2, 5000)
    by_phases = resample(noise, 44100, 48000)
    by_samples = resampling_mss._resample_by_samples(noise, 147, 160, by_phases.shape[-1])
    torch.testing.assert_close(by_samples, by_phases, atol=1e-5, rtol=0)  # float32 sums in another order


def test_resampling_agrees_with_scipy():
    noise = np.random.default_rng(0).standard_normal(44100)
    smooth = scipy.signal.lfilter(*scipy.signal.butter(4, 0.3), noise)
    ours = resample(torch.from_numpy(smooth), 44100, 48000).numpy()
    theirs = scipy.signal.resample_poly(smooth, 160, 147)
    # 1e-2: the two filters differ near the band edge, which the low-passed noise hardly reaches.
    assert np.abs(ours - theirs)[200:-200].max() < 1e-2 * np.abs(theirs).max()


@given(
    num_channels=st.integers(1, 3),
    num_samples=st.integers(1, 3000),
    rate=st.sampled_from([8000, 44100, 48000, 192000]),
    target=st.sampled_from([("wav", "16"), ("wav", "24"), ("wav", "32f"), ("flac", "16"), ("flac", "24")]),
)
@settings(max_examples=30)
def test_written_audio_reads_back(tmp_path_factory, num_channels, num_samples, rate, target):
    suffix, bits = target
    waveform = np.random.default_rng(num_samples).uniform(-0.999, 0.999, (num_channels, num_samples)).astype(np.float32)
    path = tmp_path_factory.mktemp("audio") / f"song.{suffix}"
    write_audio(path, waveform, rate, bits)
    for source in (path, str(path), path.read_bytes()):
        read, read_rate = read_audio(source)
        assert read_rate == rate and read.dtype == np.float32
        half_a_step = {"16": 0.5 * 2**-15, "24": 0.5 * 2**-23, "32f": 0}[bits]
        np.testing.assert_allclose(read, waveform, atol=1.01 * half_a_step)
    assert list(path.parent.iterdir()) == [path]


def test_mp3_and_ogg_read_back(tmp_path, four_sounds):
    waveform = four_sounds[:2].numpy()
    write_audio(tmp_path / "song.mp3", waveform, 48000)
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform.T, 48000, format="OGG")
    for source in (tmp_path / "song.mp3", buffer.getvalue()):
        read, rate = read_audio(source)
        assert rate == 48000 and abs(read.shape[1] - 192000) <= 1152  # at most a frame of padding
        assert np.corrcoef(read[0, 20000:180000], waveform[0, 20000:180000])[0, 1] > 0.99


def test_mp4_is_read_by_ffmpeg(song_path):
    waveform, rate = read_audio(song_path)
    assert rate == 44100 and waveform.shape[0] == 2 and 5 < waveform.shape[1] / rate < 8
    assert np.abs(waveform).max() > 0.1


def test_formats_that_cannot_be_written_are_named(tmp_path):
    for name, rate, bits, message in [
        ("a.ogg", 48000, "16", "formats are"),
        ("a.flac", 48000, "32f", "use wav"),
        ("a.wav", 48000, "8", "bits are"),
        ("a.mp3", 192000, "16", "192000 Hz"),
    ]:
        with pytest.raises(AudioWriteError, match=message):
            write_audio(tmp_path / "out" / name, np.zeros((1, 100), dtype=np.float32), rate, bits)
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("rate", [8000, 44100, 48000, 192000])
@pytest.mark.parametrize("seconds", [0.01, 3.0, 4.0, 9.3])
def test_processor_prepares_and_stitches_any_song(rate, seconds):
    processor = tiny_processor()
    num_samples = int(rate * seconds)
    time = torch.arange(num_samples) / rate
    song = torch.stack((torch.sin(2 * torch.pi * 440 * time), torch.zeros(num_samples)))
    inputs, plan = processor(song, rate), processor.plan(song, rate)
    assert list(inputs) == ["input_features"] and type(plan.gain) is float
    assert inputs.input_features.shape == (plan.num_windows, 200, 120)
    # Windows of the mixture itself, given back as the only stem: the song in mono returns.
    mono = resample(song.mean(dim=0), rate, 48000) * plan.gain
    assert mono.square().mean().sqrt() == pytest.approx(0.1, rel=1e-3)
    windows = split_windows(mono[None], plan.starts, plan.window)
    (stitched,) = processor.stitch(windows, plan)
    assert stitched.shape == (num_samples,)
    middle = slice(num_samples // 4, -num_samples // 4)
    assert (stitched - song.mean(dim=0))[middle].abs().max() < 5e-3


def test_integer_audio_has_full_scale_one():
    processor = tiny_processor()
    noise = np.random.default_rng(0).uniform(-1, 1, 9600)
    gain = processor.plan(noise, 48000).gain
    for integers in ((noise * 32767).astype(np.int16), (noise * 127 + 128).astype(np.uint8)):
        assert processor.plan(integers, 48000).gain == pytest.approx(gain, rel=1e-2)
    assert processor.plan((noise * 32767).astype(">i2")[::-1], 48000).gain == pytest.approx(gain, rel=1e-3)
    assert processor.plan(noise * 1e25, 48000).gain == pytest.approx(gain * 1e-25, rel=1e-3)


def test_several_songs_are_one_batch(caplog):
    processor = tiny_processor()
    noise = np.random.default_rng(0).uniform(-1, 1, 300000)
    songs = [0.1 * noise, np.stack((noise, -0.5 * noise))[:, :9600]]  # 6.25 s in mono, 0.2 s in stereo
    inputs, plans = processor(songs, sampling_rate=48000), processor.plan(songs, sampling_rate=48000)
    assert [plan.num_windows for plan in plans] == [2, 1] and len(inputs.input_features) == 3
    each = [processor(song, sampling_rate=48000).input_features for song in songs]
    assert torch.equal(inputs.input_features, torch.cat(each))
    with pytest.raises(ValueError, match=r"has 1 windows of 192000 samples.*got shape \(3, 4, 192000\)"):
        processor.stitch(torch.zeros(3, 4, 192000), plans[1])
    windows = torch.randn(3, 4, 192000)
    first, second = processor.stitch(windows, plans)
    assert torch.equal(first, processor.stitch(windows[:2], plans[0])) and second.shape == (4, 9600)
    with pytest.raises(ValueError, match=r"have \[2, 1\] windows, got 6"):
        processor.stitch(torch.zeros(6, 4, 192000), plans)
    assert processor.plan(noise.tolist()) == processor.plan(noise, sampling_rate=48000)  # numbers are one song
    assert isinstance(processor(noise, 48000, return_tensors="np").input_features, np.ndarray)
    with pytest.raises(ValueError, match="can be channels or songs"):
        processor([[0.0, 0.1], [0.1, 0.0]], sampling_rate=48000)


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (torch.zeros(100, device="meta"), "'meta'"),
        (torch.zeros(2, 100).to_sparse(), "'sparse_coo'"),
        (torch.nested.nested_tensor([torch.zeros(3), torch.zeros(4)], layout=torch.jagged), "'nested'"),
        ([[0.0, 0.5], [0.0]], "got a list"),
        ([torch.zeros(100, device="meta")], "got a list"),
    ],
)
def test_arrays_without_plain_samples_are_refused(audio, message):
    with pytest.raises(ValueError, match=rf"^Audio must be .*{message}"):
        as_waveform(audio, 48000)
