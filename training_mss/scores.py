"""The scores of validation; `evaluation_mss` has the full set."""

import torch

SILENCE_RMS = 1e-3  # -60 dBFS: a reference below has no meaningful ratio


def si_sdr(estimates: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al., 2019), of the zero-mean signals.

    Args:
        estimates, references: `(..., T)`.

    Returns:
        `(...)`; NaN where the reference is silent.
    """
    estimates = (estimates - estimates.mean(dim=-1, keepdim=True)).double()
    references = (references - references.mean(dim=-1, keepdim=True)).double()
    energy = references.square().sum(dim=-1)
    scale = (estimates * references).sum(dim=-1) / energy.clamp(min=1e-12)
    target = scale[..., None] * references
    noise = (estimates - target).square().sum(dim=-1)
    ratio = 10 * ((target.square().sum(dim=-1) + 1e-12) / (noise + 1e-12)).log10()
    audible = energy / references.shape[-1] > SILENCE_RMS**2
    return torch.where(audible, ratio, torch.nan).float()


def usdr(estimates: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """Signal-to-distortion ratio over the whole signal in dB (the score of the Music Demixing Challenge 2021).

    Args:
        estimates, references: `(..., T)`.

    Returns:
        `(...)`; NaN where the reference is silent.
    """
    energy, error = references.square().mean(dim=-1), (estimates - references).square().mean(dim=-1)
    ratio = 10 * (energy / error.clamp(min=1e-10)).log10()
    return torch.where(energy > SILENCE_RMS**2, ratio, torch.nan)
