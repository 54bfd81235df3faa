"""The pipeline as a user calls it: any source, any shape, any bad input."""

import http.server
import io
import threading
import weakref

import av
import numpy as np
import pytest
import soundfile
import torch
from transformers import GenerationConfig, pipeline

import mss_lm  # noqa: F401
from modeling_mss import MssConfig
from processing_mss import (
    AudioReadError,
    AudioSourceSeparationPipeline,
    SeparationOptions,
    WindowEstimate,
    read_audio,
)
from processing_mss.estimation_mss import WindowEstimator, fitting_windows, window_bytes
from processing_mss.separation_mss import separate_songs
from processing_mss.song_queue_mss import Song
from tests.tiny import tiny_config, tiny_model, tiny_processor


@pytest.fixture(scope="module")
def pipe(model_dir):
    return pipeline("audio-source-separation", model=model_dir)


SHORT = {"window_s": 0.8, "overlap": 0.25}  # windows of 84 steps, for tests in which their length does not matter


def noise(num_channels: int, num_samples: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.5, 0.5, (num_channels, num_samples)).astype(np.float32)


def check(result, rate: int, shape: tuple[int, int], labels=("vocals", "drums", "bass", "other")):
    """Shape: (channels, samples) of every stem."""
    assert [stem["label"] for stem in result] == list(labels)
    for stem in result:
        assert stem["sampling_rate"] == rate
        assert stem["audio"].dtype == np.float32 and stem["audio"].shape == shape
        assert np.isfinite(stem["audio"]).all()


def audio(result) -> np.ndarray:
    """All stems, `(stems, channels, samples)`."""
    return np.stack([stem["audio"] for stem in result])


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
    from_path = pipe(str(path), stems=["vocals"])
    check(from_path, 44100, waveform.shape, labels=["vocals"])

    handler = type("Files", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *arguments: None})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *a: handler(*a, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/song.{suffix}"
        sources = [path, body] if suffix == "wav" else [body]
        for source in [*sources, *([url] if suffix == "mp3" else [])]:
            np.testing.assert_array_equal(audio(from_path), audio(pipe(source, stems=["vocals"])))
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
    expected = pipe(waveform, sampling_rate=44100, **SHORT)
    check(expected, 44100, (2, 20000))
    for source in (
        {"array": waveform, "sampling_rate": 44100},
        {"raw": torch.from_numpy(waveform), "sampling_rate": 44100},
    ):
        np.testing.assert_array_equal(pipe(source, **SHORT)[0]["audio"], expected[0]["audio"])
    songs = pipe([{"array": waveform, "sampling_rate": 44100}, {"array": waveform[0], "sampling_rate": 8000}], **SHORT)
    check(songs[0], 44100, (2, 20000))
    check(songs[1], 8000, (1, 20000))
    assert pipe([]) == []


def test_songs_of_a_list_share_batches_and_are_what_they_are_alone(pipe, monkeypatch):
    lengths = (20000, 100000, 50000, 30000)  # 1, 4, 2 and 1 windows
    songs = [{"array": (index + 1) * noise(1, length), "sampling_rate": 48000} for index, length in enumerate(lengths)]
    options = {"output": "generated", "do_sample": True, "seed": 3, **SHORT}
    alone = [pipe(song, **options) for song in songs]
    indices, estimate = [], WindowEstimator.estimate

    def watched(self, batch, given, on_step):
        indices.append(given)
        return estimate(self, batch, given, on_step)

    monkeypatch.setattr(WindowEstimator, "estimate", watched)
    together = pipe(songs, batch_size=3, **options)
    assert indices == [[0, 0, 1], [2, 3, 0], [1, 0]]
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(audio(one), audio(other), atol=1e-4)


def test_songs_that_share_batches_fail_alone(pipe):
    def broken():
        yield torch.zeros(1, 30000)
        raise ValueError("the disk is gone")

    songs = [Song.from_array(noise(1, length), 48000) for length in (20000, 20000, 700000, 20000)]
    songs[1] = Song(48000, 1, 100000, broken)
    options = SeparationOptions(**SHORT, output="filtered", stems=["vocals"])
    streams, lengths = separate_songs(songs, pipe.model, pipe.processor, options), []
    for number, stream in enumerate(streams):
        if number == 1:
            with pytest.raises(ValueError, match="the disk is gone"):
                list(stream)
        elif number == 2:
            assert 0 < next(stream.blocks)["vocals"].shape[1] < 700000
            left = stream
        else:
            lengths.append(sum(block["vocals"].shape[1] for block in stream))
    assert lengths == [20000, 20000]
    with pytest.raises(RuntimeError, match="before those of the next one"):
        list(left)


def test_what_half_precision_cannot_hold_is_an_error_of_that_song_alone(pipe, monkeypatch):
    decode_codes = type(pipe.model).decode_codes

    def last_window_overflows(self, codes, *options):
        audio = decode_codes(self, codes, *options)
        return audio.index_fill(0, torch.tensor([len(audio) - 1]), torch.inf)

    monkeypatch.setattr(type(pipe.model), "decode_codes", last_window_overflows)
    songs = [{"array": noise(1, 20000), "sampling_rate": 48000}] * 2
    streams = pipe.stream_songs(songs, output="generated", stems=["vocals"], **SHORT)
    assert all(np.isfinite(block["vocals"]).all() for block in next(streams))
    with pytest.raises(ValueError, match="NaN or infinity"):
        list(next(streams))


def test_songs_that_are_done_leave_memory(pipe):
    opened = []

    def songs():
        for _ in range(4):
            song = Song.from_array(noise(1, 20000), 48000)
            opened.append(weakref.ref(song))
            yield song

    options = SeparationOptions(**SHORT, output="filtered", stems=["vocals"], batch_size=1)
    for number, stream in enumerate(separate_songs(songs(), pipe.model, pipe.processor, options)):
        if number != 1:  # nor does one stay whose stems are not taken
            list(stream)
            assert [reference() is not None for reference in opened] == [*number * [False], True]


def test_stems_windows_batches_and_progress(pipe):
    song = {"array": noise(1, 192000), "sampling_rate": 48000}  # 4 s: three windows
    steps = []
    whole = pipe(song, batch_size=2, window_s=1.6, progress_callback=lambda done, total: steps.append((done, total)))
    check(whole, 48000, (1, 192000))
    # Three windows of four tracks, each of 20 frames of two codes and an end: two of the windows, then the last.
    ends = [41 * track + step for track in range(4) for step in (*range(2, 41, 2), 41)]
    assert steps == [(2 * step, 492) for step in ends] + [(328 + step, 492) for step in ends]
    single = pipe(song, batch_size=1, window_s=1.6)
    # 1e-4: the same windows in batches of another size.
    np.testing.assert_allclose(audio(single), audio(whole), atol=1e-4)
    some = pipe(song, stems=["bass", "vocals"], output="generated", window_s=1.6)
    check(some, 48000, (1, 192000), labels=["bass", "vocals"])
    np.testing.assert_allclose(audio(some), audio(pipe(song, output="generated", window_s=1.6))[[2, 0]], atol=1e-4)
    check(pipe(song, stems="vocals", window_s=0.8, overlap=0.5), 48000, (1, 192000), labels=["vocals"])

    class StopError(Exception):
        pass

    def stop(done, total):
        raise StopError

    with pytest.raises(StopError):
        pipe(song, progress_callback=stop)


@pytest.mark.parametrize("output", ["filtered", "generated"])
@pytest.mark.parametrize(
    ("num_channels", "num_samples", "rate"),
    [(1, 1, 48000), (1, 1, 8000), (2, 8000, 8000), (2, 192000, 192000), (6, 44100, 44100), (1, 30000, 44101)],
)
def test_unusual_songs_are_separated(pipe, num_channels, num_samples, rate, output):
    song = noise(num_channels, num_samples)
    result = pipe(song, sampling_rate=rate, output=output, **SHORT)
    check(result, rate, (num_channels if output == "filtered" else 1, num_samples))
    if output == "filtered":
        np.testing.assert_allclose(audio(result).sum(axis=0), song, atol=1e-5)


@pytest.mark.parametrize("stem", ["vocals", "bass"])
def test_filtered_stems_of_any_choice_add_up_to_the_mixture(pipe, stem):
    song, steps = noise(2, 100000), []
    options = {"sampling_rate": 44100, "progress_callback": lambda done, total: steps.append(total), **SHORT}
    two = pipe(song, two_stems=stem, **options)
    check(two, 44100, song.shape, labels=[stem, f"no_{stem}"])
    np.testing.assert_allclose(audio(two).sum(axis=0), song, atol=1e-5)
    np.testing.assert_array_equal(two[0]["audio"], pipe(song, stems=[stem], **options)[0]["audio"])
    pipe(song, **options)
    assert steps[0] * 4 == steps[-1] * {"vocals": 1, "bass": 3}[stem]  # only the tracks up to this one are generated


def test_tracks_in_parallel_all_shape_the_filter():
    model = tiny_model(track_generation="parallel")
    pipe = AudioSourceSeparationPipeline(model=model, processor=tiny_processor(model.config))
    song = {"array": noise(2, 60000), "sampling_rate": 44100}
    every = audio(pipe(song, **SHORT))
    two = audio(pipe(song, two_stems="vocals", **SHORT))
    np.testing.assert_allclose(two, [every[0], every[1:].sum(axis=0)], atol=1e-5)


def test_two_generated_stems_are_the_stem_and_the_sum_of_the_others(pipe):
    song = {"array": noise(2, 100000), "sampling_rate": 44100}
    every = audio(pipe(song, output="generated", **SHORT))
    two = pipe(song, output="generated", two_stems="drums", **SHORT)
    check(two, 44100, (1, 100000), labels=["drums", "no_drums"])
    np.testing.assert_allclose(audio(two), [every[1], every[[0, 2, 3]].sum(axis=0)], atol=1e-5)


@pytest.mark.parametrize("output", ["filtered", "generated"])
def test_silence_stays_silent(pipe, output):
    silence = pipe(np.zeros((2, 100000), dtype=np.float32), sampling_rate=44100, output=output, **SHORT)
    assert (audio(silence) == 0).all()
    song = noise(2, 200000)
    song[:, 80000:] = 0  # windows lie within; a resampler and a filter hear less than 4000 samples beyond the edge
    assert np.abs(audio(pipe(song, sampling_rate=44100, output=output, **SHORT)))[..., 80000 + 44100 :].max() < 1e-7


@pytest.mark.parametrize("output", ["filtered", "generated"])
@pytest.mark.parametrize("level", [1e-5, 100.0])
def test_the_level_of_a_song_makes_no_difference(pipe, output, level):
    song = noise(2, 60000)
    expected = audio(pipe(song, sampling_rate=44100, output=output, **SHORT))
    scaled = audio(pipe(song * np.float32(level), sampling_rate=44100, output=output, **SHORT))
    np.testing.assert_allclose(scaled / level, expected, atol=1e-3 * np.abs(expected).max())


def test_integer_songs_have_full_scale_one(pipe):
    song = (noise(2, 40000) * 32767).astype(np.int16)
    result = pipe(song, sampling_rate=44100, **SHORT)
    np.testing.assert_allclose(audio(result).sum(axis=0), song / 32768, atol=1e-5)


def steepness_at_seams(pipe, output: str, overlap: float) -> float:
    """Steepest step between two samples within 10 ms of a seam, against the steepest elsewhere; of the first stem."""
    rate, time = 48000, np.arange(48000 * 6) / 48000
    song = sum(0.1 * np.sin(2 * np.pi * pitch * time) for pitch in (111.3, 222.9, 331.1, 554.7)).astype(np.float32)
    plan = pipe.processor.window_layout(len(song), rate, 1.6, overlap)
    seams = [previous + plan.window - plan.overlap for previous in plan.starts[:-1]]
    near = np.zeros(len(song), dtype=bool)
    for seam in seams:
        near[seam - 480 : seam + plan.overlap + 480] = True
    stem = pipe(song, sampling_rate=rate, output=output, window_s=1.6, overlap=overlap)[0]["audio"][0]
    steps = np.abs(np.diff(stem, prepend=stem[:1]))
    return steps[near].max() / steps[~near].max()


def test_windows_leave_no_clicks(pipe, monkeypatch):
    def quarter_of_the_mixture_in_any_phase(self, batch, indices, on_step):
        phases = torch.tensor([1.0 if index % 2 else -1.0 for index in indices])
        stems = 0.25 * (batch * phases[:, None])[:, None].expand(-1, len(self.stems), -1)
        return [WindowEstimate(batch.shape[-1], audio) for audio in stems]

    monkeypatch.setattr(WindowEstimator, "estimate", quarter_of_the_mixture_in_any_phase)
    # 1.1: in a steady sound, windows of opposite phase meet no steeper than the sound is. Without a fade it is a click.
    assert steepness_at_seams(pipe, "filtered", overlap=0.1) < 1.1
    assert steepness_at_seams(pipe, "filtered", overlap=0.0) < 1.1  # the filter's frames fade, not the windows
    assert steepness_at_seams(pipe, "generated", overlap=0.1) < 1.1
    assert steepness_at_seams(pipe, "generated", overlap=0.0) > 3


def test_samples_depend_on_the_seed_and_not_on_the_batch(pipe):
    song = {"array": noise(1, 100000), "sampling_rate": 48000}
    options = {"do_sample": True, "output": "generated", **SHORT}
    first = audio(pipe(song, seed=5, batch_size=1, **options))
    np.testing.assert_allclose(audio(pipe(song, seed=5, batch_size=3, **options)), first, atol=1e-4)
    assert np.abs(audio(pipe(song, seed=6, **options)) - first).max() > 1e-2


def test_candidates_are_sampled_in_one_batch(pipe, monkeypatch):
    song = {"array": noise(1, 100000), "sampling_rate": 48000}
    batches, generate = [], type(pipe.model).generate
    watched = ("num_return_sequences", "top_p", "stems")
    monkeypatch.setattr(
        type(pipe.model),
        "generate",
        lambda self, **k: batches.append([k.get(name) for name in watched]) or generate(self, **k),
    )
    result = pipe(song, num_candidates=3, seed=0, batch_size=2, **SHORT)
    check(result, 48000, (1, 100000))
    assert batches == 2 * [[3, 0.9, pipe.model.config.stems]]  # two of four windows each
    batches.clear()
    check(pipe(song, num_candidates=2, stems=["vocals"], top_k=5, **SHORT), 48000, (1, 100000), ["vocals"])
    assert batches == [[2, None, ["vocals"]]]


def test_the_model_says_how_many_candidates_there_are_unless_the_call_does(pipe, monkeypatch):
    song = {"array": noise(1, 50000), "sampling_rate": 48000}
    greedy = audio(pipe(song, **SHORT))
    monkeypatch.setattr(pipe.model, "generation_config", GenerationConfig(do_sample=True, top_p=0.5))
    monkeypatch.setattr(pipe.model.config, "num_candidates", 3)
    three = audio(pipe(song, seed=0, **SHORT))
    np.testing.assert_array_equal(three, audio(pipe(song, seed=0, num_candidates=3, **SHORT)))
    assert np.abs(three - audio(pipe(song, seed=0, num_candidates=1, **SHORT))).max() > 1e-3
    np.testing.assert_array_equal(greedy, audio(pipe(song, do_sample=False, **SHORT)))
    generated = {"seed": 0, "output": "generated", **SHORT}  # no filter to average them
    np.testing.assert_array_equal(audio(pipe(song, **generated)), audio(pipe(song, num_candidates=1, **generated)))


def test_expected_and_codebooks_change_filtered_stems(pipe):
    song = {"array": noise(2, 60000), "sampling_rate": 44100}
    results = [pipe(song, **SHORT)]
    for option in ({"expected": False}, {"num_codebooks": 1}):
        results.append(pipe(song, **option, **SHORT))
        np.testing.assert_allclose(audio(results[-1]).sum(axis=0), song["array"], atol=1e-5)
    assert len({result[0]["audio"].tobytes() for result in results}) == 3
    every = pipe(song, num_codebooks=pipe.model.config.num_codebooks, **SHORT)
    np.testing.assert_array_equal(audio(every), audio(results[1]))  # layers are chosen, not averaged


def test_peaks_beyond_full_scale(pipe):
    song = {"array": 4 * noise(2, 60000), "sampling_rate": 44100}
    kept = audio(pipe(song, **SHORT))
    peak = np.abs(kept).max()
    assert peak > 1
    np.testing.assert_array_equal(audio(pipe(song, clip_mode="clamp", **SHORT)), kept.clip(-1, 1))
    np.testing.assert_allclose(audio(pipe(song, clip_mode="rescale", **SHORT)), kept / (1.01 * peak), rtol=1e-5)
    quiet = {"array": noise(2, 10000), "sampling_rate": 44100}
    np.testing.assert_array_equal(audio(pipe(quiet, clip_mode="rescale", **SHORT)), audio(pipe(quiet, **SHORT)))


def test_batches_are_halved_when_memory_runs_out(pipe, monkeypatch):
    song = {"array": noise(1, 150000), "sampling_rate": 48000}  # five windows
    expected, sizes, generate = audio(pipe(song, **SHORT)), [], type(pipe.model).generate
    limit = 2

    def short_of_memory(self, encoder_outputs, **options):
        sizes.append(len(encoder_outputs.prefix))
        if sizes[-1] > limit:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return generate(self, encoder_outputs=encoder_outputs, **options)

    monkeypatch.setattr(type(pipe.model), "generate", short_of_memory)
    np.testing.assert_allclose(audio(pipe(song, **SHORT)), expected, atol=1e-4)
    assert sizes == [5, 2, 2, 1]
    limit = 0
    with pytest.raises(RuntimeError, match=r"one window of 0\.80 s.*window_s"):
        pipe(song, **SHORT)


def test_a_gpus_memory_says_how_many_windows_fit(monkeypatch):
    config = MssConfig()  # the paper's: 605 positions of 16 layers of 2048, keys and values, in bfloat16
    needed = window_bytes(config, 192000, 4, 2)
    assert 2 * 16 * 2048 * 605 * 2 < needed < 2.5 * 2 * 16 * 2048 * 605 * 2
    assert fitting_windows(torch.device("cpu"), needed) == 32
    assert fitting_windows(torch.device("cpu"), 2 * needed) == int(4e9 / (2 * needed)) < 32
    for free, windows in ((24e9, 128), (4e9, int(0.8 * 4e9 / needed)), (1e6, 1)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (int(free), 0))
        for name in ("memory_reserved", "memory_allocated"):
            monkeypatch.setattr(torch.cuda, name, lambda device: 0)
        assert fitting_windows(torch.device("cuda"), needed) == windows


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
        ({"two_stems": "guitar"}, "vocals.*guitar"),
        ({"two_stems": "vocals", "stems": ["vocals"]}, "leave `stems` out"),
        ({"stems": ["vocals", "vocals"]}, "each stem once"),
        ({"num_candidates": 0}, "at least 1"),
        ({"num_candidates": 2, "do_sample": False}, "do_sample"),
        ({"num_candidates": 2, "output": "generated"}, "filtered"),
        ({"num_codebooks": 5}, "at most 4"),
        ({"num_codebooks": 2, "expected": True}, "all codebooks"),
        ({"output": "generated", "expected": True}, "filtered"),
        ({"clip_mode": "soft"}, "rescale.*soft"),
        ({"overlap": 1.0}, "below 1"),
        ({"window_s": 0.01}, "at least"),
        ({"batch_size": 0}, "at least 1"),
        ({"do_sample": True, "temperature": 0.0}, "above 0"),
        ({"do_sample": True, "top_k": -1}, "at least 0"),
        ({"do_sample": True, "top_p": 1.1}, "at most 1"),
    ],
)
def test_bad_options_are_named(pipe, options, message):
    with pytest.raises(ValueError, match=message):
        pipe(noise(1, 100), sampling_rate=48000, **options)


def test_defaults_of_a_pipeline_are_checked_at_once_and_hold(model_dir):
    with pytest.raises(ValueError, match=r"generated.*both"):
        pipeline("audio-source-separation", model=model_dir, output="both")
    pipe = pipeline("audio-source-separation", model=model_dir, output="generated", stems="bass", batch_size=1, **SHORT)
    check(pipe(noise(2, 60000), sampling_rate=44100), 44100, (1, 60000), labels=["bass"])
    check(pipe(noise(2, 60000), sampling_rate=44100, output="filtered"), 44100, (2, 60000), labels=["bass"])


def test_an_array_without_a_rate_is_taken_at_the_models_and_unknown_options_are_refused(pipe):
    check(pipe(noise(1, 100)), 48000, (1, 100))
    with pytest.raises(TypeError, match="stem"):
        pipe(noise(1, 100), stem="vocals")


def test_half_precision(model_dir):
    pipe = pipeline("audio-source-separation", model=model_dir, dtype=torch.bfloat16)
    assert pipe.model.dtype == torch.bfloat16
    check(pipe(noise(2, 44100), sampling_rate=44100), 44100, (2, 44100))


def test_a1_separates_through_the_pipeline(tmp_path):
    config = tiny_config(conditional_encoder="hubert")
    pipe = AudioSourceSeparationPipeline(
        model=tiny_model(conditional_encoder="hubert"), processor=tiny_processor(config)
    )
    pipe.save_pretrained(tmp_path)
    again = pipeline("audio-source-separation", model=str(tmp_path))
    check(again(noise(2, 44100), sampling_rate=44100), 44100, (2, 44100))
