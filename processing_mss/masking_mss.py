"""Masks on mel bands and frames -> masks on the bins and frames of a song's own STFT.

Masks are smooth, so values between the centres of bands, and between those of frames, are interpolated linearly; beyond
the first and the last centre they are held. Interpolated masks add up to 1 as those they come from do.
"""

import functools

import torch


@functools.lru_cache(maxsize=8)
def band_matrix(num_mel_bins: int, mel_rate: int, n_fft: int, sampling_rate: int) -> torch.Tensor:
    """`(num_mel_bins, n_fft / 2 + 1)`: weights of the bands of `log_mel_spectrogram` at `mel_rate` in each bin of an
    STFT at `sampling_rate`, both in hertz (Hz); those of a bin add up to 1."""
    highest = 2595 * torch.log10(torch.tensor(1 + mel_rate / 2 / 700, dtype=torch.float64))
    mels = torch.linspace(0, 1, num_mel_bins + 2, dtype=torch.float64)[1:-1] * highest  # HTK, as the extractor's
    centres = 700 * (10 ** (mels / 2595) - 1)
    bins = torch.arange(n_fft // 2 + 1, dtype=torch.float64) * sampling_rate / n_fft
    upper = torch.searchsorted(centres, bins).clamp(1, num_mel_bins - 1)
    share = ((bins - centres[upper - 1]) / (centres[upper] - centres[upper - 1])).clamp(0, 1)
    columns = torch.arange(len(bins))
    matrix = torch.zeros(num_mel_bins, len(bins), dtype=torch.float64)
    matrix[upper - 1, columns] = 1 - share
    matrix[upper, columns] += share
    return matrix.float()


def masks_at_frames(masks: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """`(..., L, M)` -> `(..., N, M)` at positions `(N,)`, in frames: 0.5 is the middle between the first two."""
    last = masks.shape[-2] - 1
    positions = positions.clamp(0, last)
    lower = positions.floor().long().clamp(max=max(last - 1, 0))
    share = (positions - lower).to(masks)[:, None]
    return torch.lerp(masks[..., lower, :], masks[..., (lower + 1).clamp(max=last), :], share)


def masks_at_bins(masks: torch.Tensor, mel_rate: int, n_fft: int, sampling_rate: int) -> torch.Tensor:
    """`(..., N, M)` -> `(..., n_fft / 2 + 1, N)`, as STFTs have their axes; `band_matrix` says what the rest is."""
    matrix = band_matrix(masks.shape[-1], mel_rate, n_fft, sampling_rate).to(masks)
    return (masks @ matrix).transpose(-1, -2)
