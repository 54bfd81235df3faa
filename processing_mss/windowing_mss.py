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


def overlap_add(windows: torch.Tensor, starts: list[int], overlap: int, num_samples: int) -> torch.Tensor:
    """Windows `(W, ..., window)`, in order -> song `(..., num_samples)`, cross-faded.

    A window fades in linearly over the last `overlap` samples of what came before and is alone from there on. Nothing
    is averaged for longer than that, also where the last window was shifted back: two generations are never in phase,
    and their mean would be 3 dB quieter.
    """
    window = windows.shape[-1]
    song = windows.new_zeros(*windows.shape[1:-1], max(num_samples, starts[-1] + window))
    fade_in = (torch.arange(overlap, device=windows.device, dtype=windows.dtype) + 0.5) / max(overlap, 1)
    song[..., :window] = windows[0]
    for previous, start, samples in zip(starts, starts[1:], windows[1:]):
        end = previous + window
        seam = end - overlap
        song[..., seam:end] = torch.lerp(song[..., seam:end], samples[..., seam - start : end - start], fade_in)
        song[..., end : start + window] = samples[..., end - start :]
    return song[..., :num_samples]
