"""Ratios of signal to distortion, batched and differentiable: the scores of validation and of `evaluation_mss`."""

import torch

SILENCE_RMS = 1e-3  # -60 dBFS: a reference below has no meaningful ratio
EPSILON = torch.finfo(torch.float32).eps  # as torchmetrics has it: about 100 dB for an estimate without any error


def si_sdr(estimates: torch.Tensor, references: torch.Tensor, zero_mean: bool = True) -> torch.Tensor:
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al., 2019).

    Args:
        estimates, references: `(..., T)`.
        zero_mean: subtract the means of both first.

    Returns:
        `(...)` float32; NaN where the reference is silent (below -60 dBFS RMS).
    """
    estimates, references = estimates.float(), references.float()
    if zero_mean:
        estimates = estimates - estimates.mean(dim=-1, keepdim=True)
        references = references - references.mean(dim=-1, keepdim=True)
    scale = ((estimates * references).sum(dim=-1) + EPSILON) / (references.square().sum(dim=-1) + EPSILON)
    target = scale[..., None] * references
    return _ratio(target, estimates - target, references)


def usdr(estimates: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """Signal-to-distortion ratio over the whole signal in dB (the score of the Music Demixing Challenge 2021).

    Args:
        estimates, references: `(..., T)`.

    Returns:
        `(...)`; NaN where the reference is silent (below -60 dBFS RMS).
    """
    return _ratio(references, references - estimates, references)


def _ratio(target: torch.Tensor, error: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """Energy of the target over that of the error, in dB, where the reference is audible."""
    ratio = 10 * ((target.square().sum(dim=-1) + EPSILON) / (error.square().sum(dim=-1) + EPSILON)).log10()
    return torch.where(references.square().mean(dim=-1) > SILENCE_RMS**2, ratio, torch.nan)
