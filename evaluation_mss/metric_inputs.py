"""What all metrics ask of their input, checked in one place, and of the machine: their packages."""

import numpy as np
import torch

from data_mss.scores import SILENCE_RMS
from processing_mss import resample


class MetricUnavailable(RuntimeError):  # noqa: N818 (it says what the metric is, and an evaluation goes on without it)
    """A metric cannot run here: its package or its weights are missing. The message says what to do about it."""


def missing_package(metric: str, package: str, error: ImportError) -> MetricUnavailable:
    return MetricUnavailable(
        f"`{metric}` needs the package {package} ({error}): pip install '{package}', or pip install 'mss-lm[eval]' for "
        "all metrics."
    )


def as_waveform(audio: torch.Tensor | np.ndarray, name: str) -> torch.Tensor:
    """`(T,)` or `(C, T)` float -> `(C, T)` float32 on the CPU.

    Raises:
        ValueError: another shape, no samples, or NaN or infinity among them: a metric would make NaN of those, and NaN
            stands for "not defined" here, not for "broken".
    """
    waveform = torch.as_tensor(audio).detach().float().cpu()
    waveform = waveform[None] if waveform.ndim == 1 else waveform
    if waveform.ndim != 2 or waveform.numel() == 0:
        raise ValueError(f"The {name} must be (T,) or (C, T) with at least one sample, got {tuple(waveform.shape)}.")
    if not waveform.isfinite().all():
        raise ValueError(f"The {name} holds NaN or infinite samples: look at what made it.")
    return waveform


def as_pair(
    estimate: torch.Tensor | np.ndarray, reference: torch.Tensor | np.ndarray
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both as `(C, T)`; a mono estimate counts for every channel of the reference.

    Raises:
        ValueError: see `as_waveform`, or the shapes differ.
    """
    estimate, reference = as_waveform(estimate, "estimate"), as_waveform(reference, "reference")
    if len(estimate) == 1:
        estimate = estimate.expand(len(reference), -1)
    if estimate.shape != reference.shape:
        raise ValueError(
            f"Estimate and reference must have as many channels (or the estimate one) and samples, got "
            f"{tuple(estimate.shape)} and {tuple(reference.shape)}: cut or resample the estimate first."
        )
    return estimate, reference


def is_silent(waveform: torch.Tensor) -> bool:
    """Whether the RMS over all of `(C, T)` is below -60 dBFS."""
    return waveform.square().mean().sqrt().item() < SILENCE_RMS


def to_mono(waveform: torch.Tensor, sampling_rate: int, new_rate: int) -> torch.Tensor:
    """`(C, T)` -> `(T',)` at `new_rate` (Hz): the mean of the channels, resampled as everywhere in this package."""
    return resample(waveform.mean(dim=0), sampling_rate, new_rate)
