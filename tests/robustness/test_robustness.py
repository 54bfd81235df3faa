"""The fast subset of odd inputs, through the command line and the pipeline; `python -m tests.robustness` tries all."""

import sys

import numpy as np
import pytest

import mss_lm  # noqa: F401  (registers the task)
from processing_mss import AudioSourceSeparationPipeline
from tests.robustness.elsewhere import Watch
from tests.robustness.inputs import DAMAGED, EXACT, UNDETECTABLE, Made, all_inputs
from tests.robustness.judging import BAD, outcome_of_failure, outcome_of_result, strange_lines
from tests.robustness.sounds import BY_FFMPEG, BY_LIBSNDFILE, encoded, song
from tests.robustness.ways import Case, by_array, by_path, command_line
from tests.tiny import masked_options, tiny_model, tiny_processor

FAST = [odd for odd in all_inputs().values() if odd.fast]


@pytest.fixture(scope="module")
def ways(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model = tiny_model(**masked_options())
    pipe = AudioSourceSeparationPipeline(model=model, processor=tiny_processor(model.config))
    pipe.save_pretrained(folder)
    return {"command": command_line(str(folder)), "path": by_path(pipe), "array": by_array(pipe)}


@pytest.mark.skipif(sys.platform != "linux", reason="needs inotify")
@pytest.mark.parametrize("kind", dict.fromkeys(odd.kind for odd in FAST))
def test_odd_inputs_end_orderly(ways, tmp_path, kind):
    results = []
    with Watch(tmp_path / "elsewhere") as watch:
        for number, odd in enumerate(odd for odd in FAST if odd.kind == kind):
            for way in ways:
                if way in odd.ways:
                    result = Case(odd, tmp_path / f"{number}-{way}", watch.elsewhere).run(way, ways)
                    results.append({"name": odd.name, "way": way, **result})
        assert watch.opened() == []
    assert [result for result in results if result["outcome"] in BAD] == []


@pytest.mark.skipif(sys.platform != "linux", reason="needs inotify")
def test_reading_a_secret_is_noticed(tmp_path):
    with Watch(tmp_path / "elsewhere") as watch:
        (tmp_path / "elsewhere" / "secret.wav").read_bytes()
        assert watch.opened() == ["secret.wav"] and watch.opened() == []


@pytest.mark.parametrize("name", [*BY_LIBSNDFILE, *BY_FFMPEG])
def test_what_files_should_sound_like_is_the_song(name):
    whole = encoded(name)
    waveform, reference = song(whole.rate)[0], whole.reference[0]
    spectra = np.fft.rfft(waveform, 2**17), np.fft.rfft(reference, 2**17)
    lag = int(np.fft.irfft(spectra[1] * spectra[0].conj()).argmax())
    lag -= 2**17 if lag > 2**16 else 0  # encoders begin with silence, or leave out the beginning
    first, second = waveform[max(-lag, 0) :], reference[max(lag, 0) :]
    length = min(len(first), len(second))
    assert -2049 < lag < 2049 and length > 0.9 * len(waveform)
    assert np.square(first[:length] - second[:length]).mean() < 0.01 * np.square(waveform).mean()


def made(lossless: bool = True) -> Made:
    return Made(None, song(), 44100, lossless, exact_end=lossless)


def outcome(expected: str, total: np.ndarray, losses=(), lossless: bool = True) -> str:
    return outcome_of_result(expected, made(lossless), total, 44100, list(losses))[0]


def test_what_is_judged_right_and_wrong():
    whole, half = song(), song()[:, :22050]
    lost = whole.copy()
    lost[:, 10000:14410] = 0
    told = [(10000 / 44100, 0.1, False)]
    moved = np.concatenate((whole[:, :10000], whole[:, 14410:]), axis=1)
    assert outcome(EXACT, whole) == "right" and outcome(EXACT, whole, told) == "WRONG"
    assert outcome(DAMAGED, lost, told) == "warned" and outcome(DAMAGED, lost) == "WRONG"
    assert outcome(DAMAGED, moved, [(39690 / 44100, 0.1, True)]) == "WRONG"
    assert outcome(DAMAGED, half, [(0.5, 0.5, True)]) == "warned" and outcome(DAMAGED, half) == "WRONG"
    assert outcome(UNDETECTABLE, half) == outcome(UNDETECTABLE, moved) == outcome(UNDETECTABLE, lost) == "unseen"
    assert outcome(UNDETECTABLE, np.roll(whole, 1, axis=1)) == outcome(UNDETECTABLE, -whole) == "WRONG"
    noise = np.random.default_rng(0).uniform(-0.02, 0.02, whole.shape)
    assert outcome(EXACT, whole + noise) == "WRONG" and outcome(EXACT, whole + noise, lossless=False) == "right"


def test_what_messages_may_be():
    assert outcome_of_failure(DAMAGED, "Cannot read it.")[0] == "refused"
    assert outcome_of_failure(EXACT, "Cannot read it.")[0] == "WRONG"
    for message in ("", "[Errno 2] No such file", "<_io.BytesIO object at 0x1>", "two\nlines"):
        assert outcome_of_failure(DAMAGED, message)[0] == "TRACEBACK"
    bars = "\rsong.wav: 0step [00:00, ?step/s]\rsong.wav: 100%|██████████| 1/1 [00:00<00:00,  3.83step/s, read 1 s]\n"
    assert strange_lines(f"{bars}mss-lm separate: error: Cannot read it.\n", "song.wav") == []
    assert strange_lines(f"{bars}[mp3 @ 0x55] Header missing\n", "song.wav") == ["[mp3 @ 0x55] Header missing"]
