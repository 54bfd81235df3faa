"""Resampling in pure torch, so that Hub-shipped code needs no audio library for it."""

import functools
import math
from fractions import Fraction

import torch

ROLLOFF = 0.99


def resample(waveform: torch.Tensor, orig_rate: int, new_rate: int) -> torch.Tensor:
    """Polyphase windowed-sinc resampling along the last axis, differentiable, on any device.

    Hann window, 6 zero crossings a side, roll-off 0.99: the defaults of `torchaudio.functional.resample`, whose result
    it equals for ordinary pairs of rates.

    Args:
        waveform: `(..., T)` float.
        orig_rate, new_rate: in hertz (Hz).

    Returns:
        `(..., ceil(T * new_rate / orig_rate))`.
    """
    num_samples = math.ceil(waveform.shape[-1] * new_rate / orig_rate)
    # Coprime rates would need as many filters as hertz; a denominator of 4096 is off by less than 1e-7.
    ratio = Fraction(new_rate, orig_rate).limit_denominator(4096)
    new, orig = ratio.numerator, ratio.denominator
    if new == orig:
        return waveform
    width = _filter_width(orig, new)
    kernel = _kernel(orig, new).to(waveform)

    padded = torch.nn.functional.pad(waveform.reshape(-1, 1, waveform.shape[-1]), (width, width + orig + new))
    phases = torch.nn.functional.conv1d(padded, kernel[:, None], stride=orig)  # (N, new, steps)
    resampled = phases.transpose(1, 2).flatten(1)[:, :num_samples]
    resampled = torch.nn.functional.pad(resampled, (0, num_samples - resampled.shape[-1]))
    return resampled.view(*waveform.shape[:-1], num_samples)


def _filter_width(orig: int, new: int) -> int:
    return math.ceil(6 * orig / (min(orig, new) * ROLLOFF))


@functools.lru_cache(maxsize=32)
def _kernel(orig: int, new: int) -> torch.Tensor:
    """One filter per output phase, `(new, taps)` float64."""
    base = min(orig, new) * ROLLOFF
    width = _filter_width(orig, new)
    taps = torch.arange(-width, width + orig, dtype=torch.float64) / orig
    time = (taps[None] - torch.arange(new, dtype=torch.float64)[:, None] / new) * base
    time = time.clamp(-6, 6)
    return torch.sinc(time) * torch.cos(time * math.pi / 12) ** 2 * base / orig
