"""Metrics that stand for listeners: `visqol`, `dnsmos`, `nisqa`.

All take `(T,)` or `(C, T)` arrays or tensors, float, at any rate; channels are averaged, and the one resampler of this
package gives each metric the rate that it was made for. Another one (soxr) changed DNSMOS by up to 0.1.
"""

import functools
from pathlib import Path

import torch

from .metric_inputs import MetricUnavailable, as_waveform, is_silent, missing_package, to_mono

VISQOL_RATE = 48000
DNSMOS_RATE = 16000
NISQA_RATE = 48000
NISQA_MAX_S = 50  # it refuses 60 s
VISQOL_MIN_S = 1
VISQOL_WORST = 1.0


def visqol(estimate, reference, sampling_rate: int) -> float:
    """ViSQOL v3 in audio mode, MOS-LQO from 1 to 4.73 (no difference).

    It ignores level and delays by design, and says nothing about a silent reference.

    Args:
        estimate, reference: `(C, T)`, at least 1 s, best segments of about 10 s, which it was made for. It aligns them
            itself, so lengths (and channels) may differ.
        sampling_rate: in hertz (Hz).

    Returns:
        MOS; NaN if the reference is silent (below -60 dBFS RMS); 1.0 for an estimate whose mono mix is digital
        silence, as Google's own program has it (the package gives NaN, which would spare silent systems their worst
        songs).

    Raises:
        ValueError: less than 1 s.
        MetricUnavailable: visqol-python is not installed.
    """
    api = _visqol_api()
    estimate, reference = as_waveform(estimate, "estimate"), as_waveform(reference, "reference")
    num_samples = min(estimate.shape[-1], reference.shape[-1])
    if num_samples < VISQOL_MIN_S * sampling_rate:
        raise ValueError(f"`visqol` needs at least {VISQOL_MIN_S} s, got {num_samples / sampling_rate:.2f} s.")
    if is_silent(reference):
        return float("nan")
    signals = [to_mono(waveform, sampling_rate, VISQOL_RATE).double().numpy() for waveform in (reference, estimate)]
    if not signals[1].any():
        return VISQOL_WORST
    return float(api.measure_from_arrays(*signals, VISQOL_RATE).moslqo)


@functools.lru_cache(maxsize=1)
def _visqol_api():
    try:
        from visqol import VisqolApi
    except ImportError as error:
        raise missing_package("visqol", "visqol-python[accel]==3.8.0", error) from error
    api = VisqolApi()
    api.create(mode="audio")
    return api


def dnsmos(estimate, sampling_rate: int) -> dict[str, float]:
    """DNSMOS P.835, non-personalised: quality of speech without a reference, MOS from 1 to 5.

    Silence gets 2.5, 3.5 and 1.8: leave out where nobody sings. What exceeds [-1, 1] is scaled into it as a whole,
    everything else keeps its level, which matters.

    Args:
        estimate: `(C, T)`; shorter than 9.01 s it is doubled until it is not; 9.01 s from every second on are scored.
        sampling_rate: in hertz (Hz).

    Returns:
        `dnsmos_sig` (of the speech), `dnsmos_bak` (of the background), `dnsmos_ovrl` (overall).

    Raises:
        MetricUnavailable: speechmos, or one of the packages that it does not declare, is not installed.
    """
    try:
        from speechmos import dnsmos as speechmos_dnsmos
    except ImportError as error:  # its own requirements are not declared: librosa, onnxruntime, requests, tqdm
        package = "speechmos==0.0.1.1" if (error.name or "").startswith("speechmos") else error.name
        raise missing_package("dnsmos", package or "speechmos==0.0.1.1", error) from error
    samples = to_mono(as_waveform(estimate, "estimate"), sampling_rate, DNSMOS_RATE)
    samples = samples / samples.abs().max().clamp(min=1)
    scores = speechmos_dnsmos.run(samples.numpy(), DNSMOS_RATE)
    return {f"dnsmos_{name}": float(scores[f"{name}_mos"]) for name in ("sig", "bak", "ovrl")}


def nisqa(estimate, sampling_rate: int) -> float:
    """NISQA v2.0, overall quality of speech without a reference, MOS from 1 to 5.

    Its weights (CC BY-NC-SA 4.0, non-commercial) are in no package: the user puts them where `nisqa_weights` says.

    Args:
        estimate: `(C, T)`; longer than 50 s it is scored in equal parts, whose mean is given.
        sampling_rate: in hertz (Hz).

    Returns:
        MOS. Silence gets 2.1: leave out where nobody sings.

    Raises:
        MetricUnavailable: torchmetrics, librosa, requests or the weights are missing.
    """
    non_intrusive_speech_quality_assessment = _nisqa_function()
    samples = to_mono(as_waveform(estimate, "estimate"), sampling_rate, NISQA_RATE)
    num_parts = -(-len(samples) // (NISQA_MAX_S * NISQA_RATE))
    parts = samples.tensor_split(num_parts)
    scores = [non_intrusive_speech_quality_assessment(part, NISQA_RATE)[0] for part in parts]
    return torch.stack(scores).mean().item()


def nisqa_weights() -> Path:
    """Where torchmetrics looks for the weights of NISQA."""
    from torchmetrics.functional.audio.nisqa import NISQA_DIR

    return Path(NISQA_DIR).expanduser() / "nisqa.tar"


def _nisqa_function():
    try:
        import librosa  # noqa: F401
        import requests  # noqa: F401
        from torchmetrics.functional.audio.nisqa import non_intrusive_speech_quality_assessment
    except ImportError as error:
        package = "torchmetrics>=1.9" if (error.name or "").startswith("torchmetrics") else error.name
        raise missing_package("nisqa", package or "torchmetrics>=1.9", error) from error
    if not nisqa_weights().is_file():  # torchmetrics would download them without a word about the licence
        raise MetricUnavailable(
            "`nisqa` needs its weights as ~/.torchmetrics/NISQA/nisqa.tar: download weights/nisqa.tar (1 MB) from "
            "https://github.com/gabrielmittag/NISQA and put it there. Their licence is CC BY-NC-SA 4.0, "
            "non-commercial use only."
        )
    return non_intrusive_speech_quality_assessment
