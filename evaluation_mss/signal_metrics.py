"""Metrics that compare waveforms: `si_sdr`, `usdr`, `csdr`, `log_wmse`, `mel_distance`.

All take `(C, T)` arrays or tensors, float, and return floats. None solves systems of equations with torch: some builds
of torch 2.13 solve batches of large ones wrongly (`torch.linalg.solve` with two threads), and torchmetrics' `SDR` and
fast-bss-eval rest on that.
"""

import math

import numpy as np
import torch

from data_mss import scores
from processing_mss.feature_extraction_mss import mel_filters
from processing_mss.filtering_mss import stft

from .metric_inputs import as_pair, missing_package

MEL_FFT_SIZES = (4096, 2048, 1024, 512, 256)  # samples; hop n_fft / 4, n_fft / 32 bands
MEL_FLOOR = 1e-4  # -80 dB of a full-scale sine: what lies below is the same silence


def si_sdr(estimate, reference) -> float:
    """Scale-invariant signal-to-distortion ratio in dB of `(C, T)`, channels joined, as torchmetrics has it.

    Means are not subtracted, unlike in validation (`data_mss.scores.si_sdr` by default). A mono estimate counts for
    all channels. Higher is better; NaN if the reference is silent (below -60 dBFS RMS). Raises what `as_pair` does.
    """
    estimate, reference = as_pair(estimate, reference)
    return scores.si_sdr(estimate.flatten(), reference.flatten(), zero_mean=False).item()


def usdr(estimate, reference) -> float:
    """Signal-to-distortion ratio over the whole signal in dB, as in the Music Demixing Challenge 2021.

    10 log10(|s|^2 / |s - e|^2) of `(C, T)`, both sums over channels and samples and raised by 1e-7, so that an estimate
    without any error stays finite (about 100 dB). Channels, silence and errors as in `si_sdr`.
    """
    estimate, reference = as_pair(estimate, reference)
    return scores.usdr(estimate.flatten(), reference.flatten()).item()


def csdr(estimates, references, sampling_rate: int) -> list[float]:
    """SDR of museval (BSS Eval v4, "images") in windows of 1 s, median over windows.

    museval splits the error into spatial distortion, interference and artifacts by projections on filtered references,
    and the SDR is the energy of the reference over that of the sum of all three. The sum is the error, whatever the
    filters are: so they are left out here, and the ratio of energies, many times cheaper, is museval's to rounding
    (and it is there where two channels are equal, when museval's equations are singular).

    As museval has it: windows do not overlap; a rest that fills none is left out; a window in which any estimate or
    reference is digital silence (channels that cancel count as such) is left out for all stems. Where museval refuses
    the whole song because a stem is digital silence from end to end, that stem gets NaN and the others are scored
    without it.

    Args:
        estimates, references: `(S, C, T)`, or sequences of S `(C, T)`; a mono estimate counts for both channels.
        sampling_rate: in hertz (Hz).

    Returns:
        S figures in dB, higher is better; infinity without any error in most windows; NaN without a window that counts.
    """
    if len(estimates) != len(references):
        raise ValueError(f"Need one estimate for each reference, got {len(estimates)} and {len(references)}.")
    pairs = [as_pair(estimate, reference) for estimate, reference in zip(estimates, references)]
    sounding = [index for index, pair in enumerate(pairs) if all(_sounds(signal).any() for signal in pair)]
    ratios, counts = {}, True
    for index in sounding:
        estimate, reference = pairs[index]
        energy, error = (_in_windows(signal, sampling_rate) for signal in (reference, reference - estimate))
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios[index] = 10 * np.log10(_energies(energy) / _energies(error))
        for signal in pairs[index]:
            counts = counts & _in_windows(_sounds(signal)[None], sampling_rate).any(axis=(0, 2))
    medians = {index: float(np.median(values[counts])) for index, values in ratios.items() if counts.any()}
    return [medians.get(index, math.nan) for index in range(len(pairs))]


def _sounds(waveform: torch.Tensor) -> torch.Tensor:
    """Samples whose channels do not add up to 0, `(C, T)` -> `(T,)`: museval's test of silence."""
    return waveform.double().sum(dim=0) != 0


def _in_windows(signal: torch.Tensor, window: int) -> np.ndarray:
    """`(C, T)` -> `(C, windows, window)`, float64; a signal shorter than a window is one."""
    window = min(window, signal.shape[-1])
    return signal.unfold(-1, window, window).double().numpy()


def _energies(windows: np.ndarray) -> np.ndarray:
    return np.square(windows).sum(axis=(0, 2))


def log_wmse(estimate, reference, mixture, sampling_rate: int) -> float:
    """logWMSE: log of the mean squared error, weighted by the ear's sensitivity, relative to the mixture's level.

    It is the one of these metrics that is defined for silent references: what bleeds into them lowers it.

    Args:
        estimate, reference, mixture: `(C, T)`; a mono estimate or mixture counts for both channels.
        sampling_rate: in hertz (Hz); the package resamples to 44.1 kHz.

    Returns:
        About the scale of an SDR, higher is better; 73.7 for no audible error.

    Raises:
        MetricUnavailable: log-wmse-audio-quality is not installed.
    """
    try:
        from log_wmse_audio_quality import calculate_log_wmse
    except ImportError as error:
        raise missing_package("log_wmse", "log-wmse-audio-quality>=0.2", error) from error
    estimate, reference = as_pair(estimate, reference)
    mixture, _ = as_pair(mixture, reference)
    return float(calculate_log_wmse(mixture.numpy(), estimate.numpy(), reference.numpy(), sampling_rate))


def mel_distance(estimate, reference, sampling_rate: int) -> float:
    """Mean absolute difference of log-mel spectrograms in dB, over FFTs of 4096 to 256 samples.

    Of the mean of the channels. Hann window, hop a quarter of the FFT, `n_fft / 32` HTK mel bands of magnitudes, where
    a full-scale sine is 0 dB and everything below -80 dB is the same; mean over bands and frames, then over
    resolutions.

    Args:
        estimate, reference: `(C, T)`.
        sampling_rate: in hertz (Hz).

    Returns:
        dB, lower is better, 0 for equal spectrograms.
    """
    estimate, reference = as_pair(estimate, reference)
    signals = torch.stack((estimate.mean(dim=0), reference.mean(dim=0)))
    distances = []
    for n_fft in MEL_FFT_SIZES:
        magnitude = stft(signals, n_fft).abs() * (4 / n_fft)  # over half the sum of the Hann window
        mel = magnitude.mT @ mel_filters(n_fft, n_fft // 32, sampling_rate)
        levels = 20 * mel.clamp(min=MEL_FLOOR).log10()  # (2, frames, bands)
        distances.append((levels[0] - levels[1]).abs().mean().item())
    return sum(distances) / len(distances)
