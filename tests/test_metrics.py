"""Metrics against official scores, reference implementations and closed forms; and as `evaluate` modules."""

import csv
import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from data_mss import scores
from evaluation_mss import perceptual_metrics
from evaluation_mss.metric_inputs import MetricUnavailable
from evaluation_mss.metric_table import metric_versions
from evaluation_mss.perceptual_metrics import dnsmos, nisqa, nisqa_weights, visqol
from evaluation_mss.signal_metrics import csdr, log_wmse, mel_distance, si_sdr, usdr
from processing_mss import resample
from tests.make_dnsmos_golden import CLIPS, GOLDEN, RATE, synthetic_speech

METRICS_DIR = Path(__file__).resolve().parents[1] / "evaluation_mss" / "metrics"
MODULES = ("visqol", "dnsmos", "nisqa", "si_sdr", "usdr", "csdr", "log_wmse", "mel_distance")
NO_ERROR = -4 * math.log(1e-8)  # of log_wmse


def noise(*shape: int, seed: int = 0, rms: float = 0.1) -> torch.Tensor:
    return rms * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def at_right_angles(signal: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """`other` without its part along `signal`, with the energy of `signal`."""
    rest = other - (other * signal).sum() / signal.square().sum() * signal
    return rest * signal.norm() / rest.norm()


# ViSQOL and DNSMOS, against those who made them


@pytest.mark.parametrize("case", range(3))
def test_visqol_gives_the_official_conformance_scores(shared_dir, case):
    """Google's tolerance is 1e-4. visqol-python meets it here, and exceeds it by 1.7e-5 in one of Google's 12 cases."""
    pytest.importorskip("visqol")
    folder = shared_dir / "fixtures" / "visqol"
    with (folder / "cases.tsv").open() as file:
        row = list(csv.DictReader(file, delimiter="\t"))[case]
    assert row["mode"] == "audio"
    signals = []
    for name in ("degraded", "reference"):
        samples, rate = soundfile.read(folder / row[name], dtype="float32", always_2d=True)
        signals.append(samples.T)
    assert visqol(*signals, rate) == pytest.approx(float(row["official_moslqo"]), abs=2e-4)


def test_visqol_of_silence():
    pytest.importorskip("visqol")
    sound = noise(2, 44100)
    assert math.isnan(visqol(sound, 1e-5 * sound, 44100))
    for silence in (torch.zeros(1, 44100), torch.stack((sound[0], -sound[0]))):
        assert visqol(silence, sound, 44100) == 1.0
    with pytest.raises(ValueError, match=r"at least 1 s, got 0\.50 s"):
        visqol(sound, sound[:, :22050], 44100)


@pytest.mark.parametrize("clip", CLIPS)
def test_dnsmos_gives_what_the_original_program_gives(clip):
    pytest.importorskip("speechmos.dnsmos")
    expected = json.loads(GOLDEN.read_text())[clip]
    assert dnsmos(synthetic_speech(**CLIPS[clip]), RATE) == pytest.approx(expected, abs=1e-4)


def test_dnsmos_takes_any_rate_channels_and_level():
    pytest.importorskip("speechmos.dnsmos")
    quiet = resample(torch.from_numpy(synthetic_speech(**CLIPS["short"])), RATE, 48000)
    loud = 100 * torch.stack((quiet, quiet)) + noise(1, len(quiet)) * torch.tensor([[1.0], [-1.0]])
    # The mean of the channels, through the one resampler, scaled since it exceeds full scale.
    mono = resample(quiet, 48000, RATE)
    scores = dnsmos(loud, 48000)
    assert scores == pytest.approx(dnsmos(mono / mono.abs().max(), RATE), abs=1e-3)
    # Level matters: the golden clips, with peaks of 0.2, are left as they are.
    assert scores != pytest.approx(json.loads(GOLDEN.read_text())["short"], abs=0.05)


# NISQA


def test_nisqa_without_weights_says_where_they_belong_and_downloads_nothing(monkeypatch, tmp_path):
    pytest.importorskip("torchmetrics.functional.audio")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(MetricUnavailable, match=r"NISQA/nisqa.tar.*github.com/gabrielmittag/NISQA.*CC BY-NC-SA 4.0"):
        nisqa(noise(48000), 48000)
    assert not list(tmp_path.iterdir())
    assert "weights" not in metric_versions().get("nisqa", "")


def test_nisqa_gives_what_the_original_program_gives():
    """The expected score is of `run_predict.py --mode predict_file` of gabrielmittag/NISQA on the same clip."""
    pytest.importorskip("torchmetrics.functional.audio")
    if not nisqa_weights().is_file():
        pytest.skip(f"the weights of NISQA are not at {nisqa_weights()} (non-commercial: not part of the repository)")
    clip = resample(torch.from_numpy(synthetic_speech(**CLIPS["long"])), RATE, 48000)
    assert nisqa(clip, 48000) == pytest.approx(2.329796, abs=1e-3)
    long = clip.repeat(5)  # 62.5 s, more than the network takes
    assert 1 <= nisqa(long, 48000) <= 5
    assert "weights" in metric_versions()["nisqa"]


# Signal metrics, against closed forms and museval


@pytest.mark.parametrize("error_db", [-20.0, 0.0, 5.0])
def test_sdrs_have_their_closed_forms(error_db):
    reference = noise(2, 8000)
    error = at_right_angles(reference, noise(2, 8000, seed=1)) * 10 ** (error_db / 20)
    assert usdr(reference + error, reference) == pytest.approx(-error_db, abs=1e-3)
    assert si_sdr(0.3 * (reference + error), reference) == pytest.approx(-error_db, abs=1e-3)
    assert usdr(0.5 * reference, reference) == pytest.approx(20 * math.log10(2), abs=1e-3)
    # Means are not subtracted: an offset is an error.
    assert si_sdr(reference + 0.1, reference) == pytest.approx(0.0, abs=0.1)


@pytest.mark.parametrize("error_db", [-40.0, -10.0, 0.0, 10.0, 40.0])
def test_sdrs_are_those_of_torchmetrics(error_db):
    """For music, offset by more than any has, and for estimates without any error, or of silence."""
    audio = pytest.importorskip("torchmetrics.functional.audio")
    reference = noise(2, 44100) + 1e-3
    for estimate in (reference + noise(2, 44100, seed=1) * 10 ** (error_db / 20), 0.5 * reference, 0 * reference):
        pair = (estimate.flatten(), reference.flatten())
        assert usdr(estimate, reference) == pytest.approx(audio.signal_noise_ratio(*pair).item(), abs=1e-4)
        official = audio.scale_invariant_signal_distortion_ratio
        assert si_sdr(estimate, reference) == pytest.approx(official(*pair).item(), abs=1e-4)
        assert scores.si_sdr(*pair).item() == pytest.approx(official(*pair, zero_mean=True).item(), abs=1e-4)


def test_a_mono_estimate_counts_for_both_channels_and_silence_is_not_defined():
    reference = noise(2, 8000)
    mono = reference.mean(dim=0, keepdim=True)
    for metric in (si_sdr, usdr):
        assert metric(mono.numpy(), reference.numpy()) == metric(mono.expand(2, -1), reference)
        assert math.isnan(metric(reference, 1e-3 * reference))
        assert 80 < metric(reference, reference) < 200


def test_csdr_is_that_of_museval_with_its_defaults():
    if shutil.which("ffmpeg") is None:
        pytest.skip("museval imports stempeg, which wants the program ffmpeg")
    museval = pytest.importorskip("museval")
    rate = 44100
    references = noise(2, 2, int(3.4 * rate)) * torch.tensor([1.0, 0.3])[:, None, None]
    estimates = references + 0.3 * references.flip(0) + noise(*references.shape, seed=1, rms=0.02)
    references[1, :, rate : 2 * rate] = 0  # this window counts for none
    estimates[0, :, 2 * rate : 3 * rate] *= 0.5
    expected = museval.evaluate(references.transpose(1, 2).numpy(), estimates.transpose(1, 2).numpy())[0]
    assert expected.shape == (2, 3) and np.isnan(expected[:, 1]).all()
    assert csdr(estimates, references, rate) == pytest.approx(np.nanmedian(expected, axis=1).tolist(), abs=1e-4)


def test_csdr_scores_the_rest_of_a_song_without_vocals_and_takes_mono_stems():
    references = noise(3, 1, 4500).expand(-1, 2, -1).clone()
    references[0] = 0
    estimates = [0.5 * references[1][:1], 0.5 * references[1], references[2] + 0.1 * references[1]]
    scores = csdr(estimates, list(references), 1000)
    assert math.isnan(scores[0])
    assert scores[1:] == pytest.approx([20 * math.log10(2), 20], abs=0.5)
    assert csdr(estimates, references, 6000)[1] == pytest.approx(20 * math.log10(2))  # shorter than a window
    with pytest.raises(ValueError, match="one estimate for each reference, got 2 and 3"):
        csdr(estimates[:2], references, 1000)


def test_log_wmse_has_its_closed_form_where_the_error_is_a_part_of_the_mixture():
    pytest.importorskip("log_wmse_audio_quality")
    mixture, reference = noise(2, 44100), noise(2, 44100, seed=1)
    for part in (0.3, 0.1):
        expected = -4 * math.log(part**2 + 1e-8)
        assert log_wmse(reference + part * mixture, reference, mixture, 44100) == pytest.approx(expected, abs=0.02)
        assert log_wmse(part * mixture, torch.zeros(2, 44100), mixture, 44100) == pytest.approx(expected, abs=0.02)
    assert log_wmse(reference, reference, mixture, 48000) == pytest.approx(NO_ERROR, abs=1e-3)


def test_mel_distance_is_that_of_levels_and_not_of_phases():
    reference = noise(2, 48000)
    assert mel_distance(reference, reference, 48000) == 0
    assert mel_distance(0.5 * reference, reference, 48000) == pytest.approx(20 * math.log10(2), abs=0.01)
    assert mel_distance(1e-7 * reference, torch.zeros(1, 48000).expand(2, -1), 48000) == 0  # below the floor
    inverted, others = (
        mel_distance(-reference, reference, 48000),
        mel_distance(noise(2, 48000, seed=1), reference, 48000),
    )
    assert inverted == pytest.approx(0, abs=1e-4) and 1 < others < 6
    assert mel_distance(reference[:, :100], reference[:, :100], 8000) == 0  # shorter than an FFT
    # A full-scale sine is 0 dB, the floor -80 dB: louder than the floor in the bands around it, at any FFT.
    sine = torch.sin(2 * math.pi * 1000 * torch.arange(48000) / 48000)
    assert 0 < mel_distance(sine, torch.zeros(48000), 48000) < 80


def test_broken_input_is_an_error_and_never_a_score():
    good = noise(2, 1000)
    broken = good.clone()
    broken[0, 3] = torch.nan
    with pytest.raises(ValueError, match="estimate holds NaN"):
        usdr(broken, good)
    with pytest.raises(ValueError, match=r"\(2, 999\) and \(2, 1000\)"):
        mel_distance(good[:, :-1], good, 48000)
    with pytest.raises(ValueError, match="at least one sample"):
        dnsmos(torch.zeros(2, 0), 16000)


@pytest.mark.parametrize(
    ("module", "package", "call"),
    [
        ("visqol", "visqol-python", lambda sound: visqol(sound, sound, 48000)),
        ("speechmos", "speechmos", lambda sound: dnsmos(sound, 48000)),
        ("librosa", "librosa", lambda sound: nisqa(sound, 48000)),
        ("torchmetrics.functional.audio.nisqa", "torchmetrics", lambda sound: nisqa(sound, 48000)),
        ("log_wmse_audio_quality", "log-wmse-audio-quality", lambda sound: log_wmse(sound, sound, sound, 48000)),
    ],
)
def test_a_missing_package_is_named(monkeypatch, module, package, call):
    perceptual_metrics._visqol_api.cache_clear()
    monkeypatch.setitem(sys.modules, module, None)  # makes Python fail to import it
    with pytest.raises(MetricUnavailable, match=f"pip install '{package}"):
        call(noise(2, 48000))


def test_versions_name_what_is_installed():
    pytest.importorskip("visqol")
    versions = metric_versions()
    assert versions["visqol"].startswith("visqol-python 3.")
    assert set(versions) <= set(MODULES) and {"csdr", "mel_distance"} <= set(versions)


def test_versions_without_nisqa(monkeypatch):
    pytest.importorskip("torchmetrics.functional.audio")
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.audio.nisqa", None)  # as in old torchmetrics
    assert "nisqa" not in metric_versions() and "usdr" in metric_versions()


# `evaluate` modules


@pytest.fixture(scope="module")
def load_module(tmp_path_factory):
    evaluate = pytest.importorskip("evaluate")
    folder = tmp_path_factory.mktemp("evaluate")
    patch = pytest.MonkeyPatch()
    patch.setattr(evaluate.config, "HF_MODULES_CACHE", folder / "modules")
    patch.setattr(evaluate.config, "HF_EVALUATE_OFFLINE", True)
    yield lambda name: evaluate.load(str(METRICS_DIR / name), cache_dir=str(folder / "cache"))
    patch.undo()


@pytest.mark.parametrize("name", MODULES)
def test_modules_load_by_path_offline_and_say_what_they_take(load_module, name):
    module = load_module(name)
    inputs = {"dnsmos": {"predictions"}, "nisqa": {"predictions"}}
    inputs["log_wmse"] = {"predictions", "references", "mixtures"}
    assert all(set(features) == inputs.get(name, {"predictions", "references"}) for features in module.features)
    assert len(module.features) == (2 if name == "csdr" else 3)  # paths, arrays of one or two axes
    assert (
        module.description
        and module.citation
        and f'evaluate.load("evaluation_mss/metrics/{name}")' in (module.inputs_description)
    )


def test_modules_score_arrays_and_files_as_the_functions_do(load_module, tmp_path):
    references, rate = noise(2, 2, 16000), 8000
    estimates = references + noise(2, 2, 16000, seed=1, rms=0.05)
    paths = {"estimates": [], "references": []}
    for kind, signals in (("estimates", estimates), ("references", references)):
        for index, signal in enumerate(signals):
            paths[kind].append(str(tmp_path / f"{kind}{index}.wav"))
            soundfile.write(paths[kind][-1], signal.T.numpy(), rate, subtype="FLOAT")

    ratios = [usdr(*pair) for pair in zip(estimates, references)]
    module = load_module("usdr")
    for inputs in ((paths["estimates"], paths["references"]), (estimates.numpy(), references.numpy())):
        assert module.compute(predictions=inputs[0], references=inputs[1])["usdr"] == pytest.approx(np.mean(ratios))
    silent = [references[0].numpy(), np.zeros((2, 16000), np.float32)]
    assert module.compute(predictions=estimates.numpy(), references=silent)["usdr"] == pytest.approx(ratios[0])

    stems = csdr(estimates, references, rate)
    expected = {"csdr": pytest.approx(np.mean(stems)), "csdr_stems": pytest.approx(stems)}
    module = load_module("csdr")
    assert module.compute(predictions=[paths["estimates"]], references=[paths["references"]]) == expected
    arrays = {"predictions": [estimates.numpy()], "references": [references.numpy()]}
    assert module.compute(**arrays, sampling_rate=rate) == expected
    with pytest.raises(ValueError, match="sampling_rate=44100"):
        load_module("mel_distance").compute(
            predictions=[estimates[0, 0].numpy()], references=[references[0, 0].numpy()]
        )

    mixture = [references.sum(dim=0).numpy()]
    result = load_module("log_wmse").compute(
        predictions=[estimates[0].numpy()], references=[references[0].numpy()], mixtures=mixture, sampling_rate=rate
    )
    assert result["log_wmse"] == pytest.approx(log_wmse(estimates[0], references[0], mixture[0], rate), abs=1e-5)
