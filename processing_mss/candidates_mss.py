"""Which of several candidates of a window explains its mixture best."""

import functools

import torch
from transformers.audio_utils import mel_filter_bank

from .filtering_mss import power, stft

N_FFT = 2048  # at 48 kHz
NUM_BANDS = 64
FLOOR = 1e-5  # of the mixture's mean power in a band and frame: what lies 50 dB below it is not compared


@functools.lru_cache(maxsize=4)
def _mel_filters(sampling_rate: int) -> torch.Tensor:
    filters = mel_filter_bank(N_FFT // 2 + 1, NUM_BANDS, 0, sampling_rate / 2, sampling_rate, mel_scale="htk")
    return torch.from_numpy(filters).float().T  # (bands, bins)


def candidate_distances(stems: torch.Tensor, mixture: torch.Tensor, sampling_rate: int) -> torch.Tensor:
    """How far the stems of each candidate are, together, from the mixture.

    Stems of music are nearly uncorrelated, so their powers add up to the mixture's, whatever their phases. Compared are
    logarithms in mel bands, as ears would: the mean over bands and frames of |ln(sum of powers) - ln(mixture's)|.
    Nothing else counts: a candidate that has the right sum in the wrong stems is not punished.

    Args:
        stems: `(..., S, T)`, all stems of the mixture.
        mixture: `(..., T)` mono, at the level of the stems.
        sampling_rate: in hertz (Hz).

    Returns:
        `(...,)`; 0 for stems whose powers are exactly the mixture's.
    """
    filters = _mel_filters(sampling_rate).to(stems)
    target = filters @ power(stft(mixture, N_FFT))
    explained = filters @ power(stft(stems, N_FFT)).sum(dim=-3)
    floor = FLOOR * target.mean(dim=(-2, -1), keepdim=True) + 1e-10
    return ((explained + floor).log() - (target + floor).log()).abs().mean(dim=(-2, -1))


def best_candidates(stems: torch.Tensor, mixtures: torch.Tensor, sampling_rate: int) -> torch.Tensor:
    """Candidates `(W, N, S, T)` of W windows with mixtures `(W, T)` -> the best of each, `(W, S, T)`."""
    distances = torch.stack(
        [candidate_distances(stems[:, index], mixtures, sampling_rate) for index in range(stems.shape[1])], dim=1
    )  # one candidate at a time: spectra take more memory than waveforms
    return stems[torch.arange(len(stems), device=stems.device), distances.argmin(dim=1)]
