"""What the codec's generator is trained by, besides its discriminators.

Sources: R. Kumar et al., "High-fidelity audio compression with improved RVQGAN", 2023 (log-mel spectrograms at several
resolutions, window and number of bands halved together); R. Yamamoto et al., "Parallel WaveGAN", 2020 (log-magnitudes
and spectral convergence). The loss through the ratio mask is ours.
"""

import functools
from collections.abc import Sequence

import torch

from processing_mss.feature_extraction_mss import mel_filters
from processing_mss.filtering_mss import power, stft, wiener_filter

FFT_SIZES = (4096, 2048, 1024, 512, 256)
BINS_PER_BAND = 25.6  # n_fft per mel band: 160 bands at 4096, 10 at 256; at 48 kHz even the narrowest holds a bin

HANN_ENERGY = 3 / 8  # mean square of a Hann window: over n_fft times this, powers have the scale of the waveform

# Of a magnitude, where noise of RMS r has about r in every bin: the rounding noise of 16 bits. What is quieter counts
# as silent, so that losses and gradients of digital silence, which many stems are, stay finite.
MAGNITUDE_FLOOR = 1e-5

# Spectral convergence divides by the reference's RMS, but by no less than this, 20 dB below the mixtures of training:
# a silent reference then weighs about as much as a quiet one.
CONVERGENCE_FLOOR = 1e-2

# Part of the mixture's energy that is added to both sides of the ratio in `ratio_mask_loss`: -40 dB.
RATIO_FLOOR = 1e-4


@functools.lru_cache(maxsize=16)
def mean_filters(n_fft: int, sampling_rate: int, device: torch.device) -> torch.Tensor:
    """`mel_filters`, each adding up to 1 over the bins: `(n_fft / 2 + 1, bands)`. Kept on the device between steps."""
    filters = mel_filters(n_fft, round(n_fft / BINS_PER_BAND), sampling_rate).to(device)
    return filters / filters.sum(dim=0)


def magnitudes(waveform: torch.Tensor, n_fft: int) -> torch.Tensor:
    """`(N, T)` -> STFT magnitudes, at least MAGNITUDE_FLOOR: `(N, T // hop + 1, n_fft / 2 + 1)`, hop n_fft / 4.

    The scale is that of the waveform: noise of RMS r has a mean power of r^2 in every bin, at every FFT size.
    """
    powers = power(stft(waveform, n_fft).transpose(1, 2)) / (HANN_ENERGY * n_fft)
    # The clamp comes before the root, whose slope is infinite at 0.
    return powers.clamp(min=MAGNITUDE_FLOOR**2).sqrt()


def spectral_losses(
    estimates: torch.Tensor,
    targets: torch.Tensor,
    sampling_rate: int,
    mel: bool = True,
    stft: bool = True,
    fft_sizes: Sequence[int] = FFT_SIZES,
) -> dict[str, torch.Tensor]:
    """Losses over STFTs of several sizes, which they share; means over the resolutions.

    Args:
        estimates, targets: `(N, T)` float32, any T.
        mel, stft: which ones to compute.

    Returns:
        `mel`: mean absolute difference of log-mel spectrograms, natural logarithm. `stft`: the same of all bins, plus
        spectral convergence, the RMS of the magnitudes' difference over that of the targets' magnitudes. `(N,)` each.
    """
    mel_distances, stft_distances = [], []
    for n_fft in fft_sizes:
        estimate, target = magnitudes(estimates, n_fft), magnitudes(targets, n_fft)
        if mel:
            filters = mean_filters(n_fft, sampling_rate, estimate.device)
            bands, target_bands = estimate @ filters, target @ filters
            mel_distances.append((bands.log() - target_bands.log()).abs().mean(dim=(1, 2)))
        if stft:
            difference = _rms(estimate - target) / _rms(target).clamp(min=CONVERGENCE_FLOOR)
            stft_distances.append((estimate.log() - target.log()).abs().mean(dim=(1, 2)) + difference)
    distances = {"mel": mel_distances, "stft": stft_distances}
    return {name: torch.stack(values).mean(dim=0) for name, values in distances.items() if values}


def _rms(magnitude: torch.Tensor) -> torch.Tensor:
    """`(N, L, F)` -> `(N,)`. The gradient of the norm is 0 at 0, unlike that of a root of a mean."""
    return torch.linalg.vector_norm(magnitude, dim=(1, 2)) / (magnitude.shape[1] * magnitude.shape[2]) ** 0.5


def filter_mixture(estimates: torch.Tensor, mixture: torch.Tensor) -> torch.Tensor:
    """Estimates `(B, S, T)`, mixture `(B, T)` -> stems cut out of the mixture as `filtered` output is, `(B, S, T)`."""
    return wiener_filter(estimates, mixture[:, None])[:, :, 0]


def ratio_mask_loss(estimates: torch.Tensor, stems: torch.Tensor, mixture: torch.Tensor) -> torch.Tensor:
    """Minus the `usdr` of the stems that the estimates' ratio masks cut out of the mixture, in dB.

    It trains the figure that `filtered` output is judged by: magnitudes count as far as they decide a mask, phases do
    not count.

    Energies of error and stem are raised by RATIO_FLOOR of the mixture's. What is 20 dB above this floor changes by
    0.04 dB, and errors below it are not worth fighting. A silent stem, which has no `usdr`, is charged what bleeds into
    it, relative to the floor: 0 dB for nothing, 40 dB for the whole mixture. All stems count alike.

    Args:
        estimates, stems: `(B, S, T)` float32. mixture: `(B, T)`.

    Returns:
        A scalar, mean over all stems.
    """
    error = (filter_mixture(estimates, mixture) - stems).square().mean(dim=-1)
    floor = RATIO_FLOOR * mixture.square().mean(dim=-1, keepdim=True) + MAGNITUDE_FLOOR**2
    return 10 * ((error + floor) / (stems.square().mean(dim=-1) + floor)).log10().mean()
