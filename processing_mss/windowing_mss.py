"""Cutting a song into windows of one length, and cross-fading windows back into a song."""

import torch


def window_starts(num_samples: int, window: int, overlap: int) -> list[int]:
    """Where windows begin: every `window - overlap` samples, the last one shifted back so that it ends with the song.

    A song no longer than a window gets one window from 0. Raises ValueError if the overlap is not smaller than the
    window, or there is no sample.
    """
    if num_samples < 1 or not 0 <= overlap < window:
        raise ValueError(f"Need samples and 0 <= overlap < window, got {num_samples=}, {window=}, {overlap=}.")
    last = max(num_samples - window, 0)
    return [*range(0, last, window - overlap), last]


def split_windows(waveform: torch.Tensor, starts: list[int], window: int) -> torch.Tensor:
    """`(..., T)` -> `(W, ..., window)`; only a song shorter than a window is padded, with zeros at its end."""
    missing = window - waveform.shape[-1]
    if missing > 0:
        waveform = torch.nn.functional.pad(waveform, (0, missing))
    return torch.stack([waveform[..., start : start + window] for start in starts])


def cross_fade(window: int, overlap: int, device: torch.device | None = None) -> torch.Tensor:
    """Weight of a window's samples: linear over `overlap` samples at both ends, one between, never zero."""
    ramp = (torch.arange(window, device=device) + 0.5) / max(overlap, 1)
    return torch.minimum(ramp, ramp.flip(0)).clamp(max=1.0)


def overlap_add(windows: torch.Tensor, starts: list[int], overlap: int, num_samples: int) -> torch.Tensor:
    """Weighted mean of overlapping windows: `(W, ..., window)` -> `(..., num_samples)`.

    Exact where windows agree: splitting and adding gives the song back.
    """
    window = windows.shape[-1]
    fade = cross_fade(window, overlap, windows.device).to(windows.dtype)
    length = max(num_samples, starts[-1] + window)
    total = windows.new_zeros(*windows.shape[1:-1], length)
    weight = windows.new_zeros(length)
    for start, samples in zip(starts, windows):
        total[..., start : start + window] += fade * samples
        weight[start : start + window] += fade
    return (total / weight)[..., :num_samples]
