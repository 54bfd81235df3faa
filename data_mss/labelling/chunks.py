"""Long songs through networks that take short ones: bounded chunks with cross-fades, and channels that fit."""

import math
from collections.abc import Callable

import torch


def separate_in_chunks(
    separate: Callable[[torch.Tensor], torch.Tensor],
    waveform: torch.Tensor,
    chunk: int,
    overlap: int,
    batch_size: int = 1,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Run a network over overlapping chunks and cross-fade its answers.

    Only `batch_size` chunks are on the device at a time; the song and its stems stay in main memory.

    Args:
        separate: `(batch, C, chunk)` -> `(batch, S, C, chunk)`.
        waveform: `(C, T)`; the last chunk is filled up with zeros.
        chunk, overlap: in samples. Fades are linear over the overlap, and a triangle if that is more than half a chunk.

    Returns:
        `(S, C, T)` on the device of `waveform`.
    """
    if not 0 <= overlap < chunk:
        raise ValueError(f"Need 0 <= overlap < chunk, got overlap={overlap}, chunk={chunk} samples.")
    num_samples, stride = waveform.shape[-1], chunk - overlap
    num_chunks = max(1, math.ceil((num_samples - overlap) / stride))
    length = (num_chunks - 1) * stride + chunk
    chunks = torch.nn.functional.pad(waveform, (0, length - num_samples)).unfold(-1, chunk, stride).transpose(0, 1)

    ramp = torch.arange(1, chunk + 1, dtype=waveform.dtype) / (overlap + 1)
    fade = torch.minimum(ramp, ramp.flip(0)).clamp(max=1).to(waveform.device)
    weight = waveform.new_zeros(length)
    total = None
    for first in range(0, num_chunks, batch_size):
        estimates = separate(chunks[first : first + batch_size].to(device)).to(waveform.device)
        if total is None:
            total = waveform.new_zeros(estimates.shape[1], waveform.shape[0], length)
        for index, estimate in enumerate(estimates, start=first):
            total[..., index * stride : index * stride + chunk] += estimate * fade
            weight[index * stride : index * stride + chunk] += fade
    return (total / weight)[..., :num_samples]


def separate_with_channels(
    separate: Callable[[torch.Tensor], torch.Tensor], waveform: torch.Tensor, channels: int
) -> torch.Tensor:
    """Fit a song to a network of `channels` channels: mono is doubled for a stereo one, stereo goes channel by channel
    through a mono one.

    Args:
        separate: `(channels, T)` -> `(S, channels, T)`.
        waveform: `(C, T)`.

    Returns:
        `(S, C, T)`.

    Raises:
        ValueError: more than two channels, which no teacher has learned.
    """
    if len(waveform) == channels:
        return separate(waveform)
    if len(waveform) == 1:
        return separate(waveform.expand(channels, -1)).mean(dim=1, keepdim=True)
    if channels == 1:
        return torch.cat([separate(channel[None]) for channel in waveform], dim=1)
    raise ValueError(f"The song has {len(waveform)} channels, the teacher takes mono and stereo: mix it down first.")
