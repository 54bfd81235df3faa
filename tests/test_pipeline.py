"""The pipeline as a user calls it: any source, any shape, any bad input."""

import http.server
import io
import threading

import av
import numpy as np
import pytest
import soundfile
import torch
from transformers import pipeline

import mss_lm  # noqa: F401
from processing_mss import AudioReadError, read_audio
from tests.tiny import tiny_config


@pytest.fixture(scope="module")
def pipe(model_dir):
    return pipeline("audio-source-separation", model=model_dir)


def noise(num_channels: int, num_samples: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.5, 0.5, (num_channels, num_samples)).astype(np.float32)


def check(result, rate: int, num_samples: int, labels=("vocals", "drums", "bass", "other")):
    assert [stem["label"] for stem in result] == list(labels)
    for stem in result:
        assert stem["sampling_rate"] == rate
        assert stem["audio"].dtype == np.float32 and stem["audio"].shape == (1, num_samples)
        assert np.isfinite(stem["audio"]).all()


def encode(waveform: np.ndarray, rate: int, suffix: str) -> bytes:
    buffer = io.BytesIO()
    if suffix != "m4a":
        soundfile.write(buffer, waveform.T, rate, format=suffix.upper())
        return buffer.getvalue()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=rate, layout="stereo")
        frame = av.AudioFrame.from_ndarray(waveform, format="fltp", layout="stereo")
        frame.rate = rate
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "ogg", "m4a"])
def test_every_format_by_path_bytes_and_url(pipe, tmp_path, suffix):
    body = encode(noise(2, 48000), 44100, suffix)
    path = tmp_path / f"song.{suffix}"
    path.write_bytes(body)
    waveform, rate = read_audio(path)
    assert rate == 44100 and abs(waveform.shape[1] - 48000) < 3000  # encoders of mp3 and m4a pad
    from_path = pipe(str(path))
    check(from_path, 44100, waveform.shape[1])

    handler = type("Files", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *arguments: None})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *a: handler(*a, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/song.{suffix}"
        sources = [path, body] if suffix == "wav" else [body]
        for source in [*sources, *([url] if suffix == "mp3" else [])]:
            for one, other in zip(from_path, pipe(source)):
                np.testing.assert_array_equal(one["audio"], other["audio"])
        if suffix == "mp3":
            with pytest.raises(AudioReadError, match="404"):
                pipe(url + ".none")
        server.shutdown()


@pytest.fixture(scope="module", autouse=True)
def online():
    """URLs of this machine are fetched by `huggingface_hub`'s client, which refuses when it was told to be offline."""
    import huggingface_hub.constants as constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, False
    yield
    constants.HF_HUB_OFFLINE = before


def test_arrays_dictionaries_and_lists(pipe):
    waveform = noise(2, 20000)
    expected = pipe(waveform, sampling_rate=44100)
    check(expected, 44100, 20000)
    for source in (
        {"array": waveform, "sampling_rate": 44100},
        {"raw": torch.from_numpy(waveform), "sampling_rate": 44100},
    ):
        np.testing.assert_array_equal(pipe(source)[0]["audio"], expected[0]["audio"])
    songs = pipe([{"array": waveform, "sampling_rate": 44100}, {"array": waveform[0], "sampling_rate": 8000}])
    check(songs[0], 44100, 20000)
    check(songs[1], 8000, 20000)
    assert pipe([]) == []


def test_stems_windows_batches_and_progress(pipe):
    song = {"array": noise(1, 480000), "sampling_rate": 48000}  # 10 s: three windows
    steps = []
    whole = pipe(song, batch_size=2, progress_callback=lambda done, total: steps.append((done, total)))
    check(whole, 48000, 480000)
    assert steps == [(step, 808) for step in range(1, 809)]  # two batches of 404
    single = pipe(song, batch_size=1)
    # 1e-4: the same windows in batches of another size.
    np.testing.assert_allclose(single[3]["audio"], whole[3]["audio"], atol=1e-4)
    some = pipe(song, stems=["bass", "vocals"])
    check(some, 48000, 480000, labels=["bass", "vocals"])
    np.testing.assert_allclose(some[0]["audio"], whole[2]["audio"], atol=1e-4)
    check(pipe(song, stems="vocals", window_s=2.0, overlap=0.5), 48000, 480000, labels=["vocals"])

    class StopError(Exception):
        pass

    def stop(done, total):
        raise StopError

    with pytest.raises(StopError):
        pipe(song, progress_callback=stop)


@pytest.mark.parametrize(
    ("num_channels", "num_samples", "rate"),
    [(1, 1, 48000), (1, 1, 8000), (2, 8000, 8000), (2, 192000, 192000), (6, 44100, 44100), (1, 30000, 44101)],
)
def test_unusual_songs_are_separated(pipe, num_channels, num_samples, rate):
    check(pipe(noise(num_channels, num_samples), sampling_rate=rate), rate, num_samples)


def test_silence_is_separated(pipe):
    check(pipe(np.zeros((2, 44100), dtype=np.float32), sampling_rate=44100), 44100, 44100)


@pytest.mark.parametrize(
    ("song", "message"),
    [
        (np.zeros((2, 0)), "hold samples"),
        (np.array([0.0, np.nan]), "NaN or infinity"),
        (np.array([0.0, np.inf]), "NaN or infinity"),
        (np.zeros((1000, 2)), "transposed"),
        (np.zeros((1, 2, 100)), r"\(1, 2, 100\)"),
        ({"array": np.zeros(100)}, "sampling_rate"),
        ({"array": np.zeros(100), "sampling_rate": 0}, "from 1000"),
        ({"array": np.zeros(100), "sampling_rate": "44100"}, "whole number"),
        ({"array": "song.wav", "sampling_rate": 44100}, "floating point"),
        (np.zeros(100, dtype=bool), "got bool"),
        (torch.zeros(100, dtype=torch.int64), "got torch.int64"),
        (42, "got int"),
        ("none.wav", "no such file"),
        (b"", "0 bytes"),
    ],
)
def test_bad_input_is_named(pipe, song, message):
    with pytest.raises(ValueError, match=message):
        pipe(song, **({"sampling_rate": 48000} if isinstance(song, (np.ndarray, torch.Tensor)) else {}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stems": ["guitar"]}, "vocals.*guitar"),
        ({"stems": []}, "vocals"),
        ({"output": "both"}, "generated.*both"),
        ({"overlap": 1.0}, "below 1"),
        ({"window_s": 0.01}, "at least"),
        ({"batch_size": 0}, "at least 1"),
        ({"do_sample": True, "temperature": 0.0}, "temperature"),
    ],
)
def test_bad_options_are_named(pipe, options, message):
    with pytest.raises(ValueError, match=message):
        pipe(noise(1, 100), sampling_rate=48000, **options)


def test_an_array_without_a_rate_is_taken_at_the_models_and_unknown_options_are_refused(pipe):
    check(pipe(noise(1, 100)), 48000, 100)
    with pytest.raises(TypeError, match="stem"):
        pipe(noise(1, 100), stem="vocals")


def test_half_precision(model_dir):
    pipe = pipeline("audio-source-separation", model=model_dir, dtype=torch.bfloat16)
    assert pipe.model.dtype == torch.bfloat16
    check(pipe(noise(2, 44100), sampling_rate=44100), 44100, 44100)


def test_a1_separates_through_the_pipeline(tmp_path):
    from processing_mss import AudioSourceSeparationPipeline
    from tests.tiny import tiny_model, tiny_processor

    config = tiny_config(conditional_encoder="hubert")
    pipe = AudioSourceSeparationPipeline(
        model=tiny_model(conditional_encoder="hubert"), processor=tiny_processor(config)
    )
    pipe.save_pretrained(tmp_path)
    check(pipeline("audio-source-separation", model=str(tmp_path))(noise(2, 44100), sampling_rate=44100), 44100, 44100)
