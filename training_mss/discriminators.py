"""The codec's adversaries: multi-period and multi-scale STFT discriminators, and their losses.

Sources: J. Kong et al., "HiFi-GAN", 2020 (periods, widths); A. Defossez et al., "High fidelity neural audio
compression", 2022 (complex STFTs, dilations, hinge losses, relative feature matching).

A discriminator gives a list of feature maps, the last one its scores: high for what it takes for real.
"""

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from processing_mss.filtering_mss import stft

from .codec_losses import HANN_ENERGY
from .configuration import DiscriminatorConfig

SLOPE = 0.1  # of the leaky rectifiers


def _feature_maps(hidden_states: torch.Tensor, convolutions: nn.ModuleList) -> list[torch.Tensor]:
    """All but the last convolution are followed by a leaky rectifier."""
    maps = []
    for convolution in convolutions[:-1]:
        # In place: maps fill most of the memory of adversarial training.
        hidden_states = functional.leaky_relu(convolution(hidden_states), SLOPE, inplace=True)
        maps.append(hidden_states)
    return [*maps, convolutions[-1](hidden_states)]


class PeriodDiscriminator(nn.Module):
    """Hears every `period`-th sample only, from each possible start; `(B, T)` -> `(B period, C, L)`."""

    def __init__(self, period: int, channels: int):
        super().__init__()
        self.period = period
        widths = [1, *(channels * factor for factor in (1, 4, 16, 32, 32))]
        strides = (3, 3, 3, 3, 1)
        layers = [nn.Conv1d(*pair, 5, stride, padding=2) for *pair, stride in zip(widths, widths[1:], strides)]
        self.convolutions = nn.ModuleList(map(weight_norm, [*layers, nn.Conv1d(widths[-1], 1, 3, padding=1)]))

    def forward(self, waveform: torch.Tensor) -> list[torch.Tensor]:
        padded = functional.pad(waveform, (0, -waveform.shape[-1] % self.period))
        phases = padded.unflatten(-1, (-1, self.period)).transpose(1, 2)  # (B, period, T / period)
        return _feature_maps(phases.flatten(0, 1)[:, None], self.convolutions)


class SpectrumDiscriminator(nn.Module):
    """Looks at real and imaginary part of an STFT with hop n_fft / 4; `(B, T)` -> `(B, C, frames, bins)`."""

    def __init__(self, n_fft: int, channels: int):
        super().__init__()
        self.n_fft = n_fft
        layers = [nn.Conv2d(2, channels, (3, 9), padding=(1, 4))]
        for dilation in (1, 2, 4):  # over frames
            layers.append(nn.Conv2d(channels, channels, (3, 9), (1, 2), padding=(dilation, 4), dilation=(dilation, 1)))
        layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.Conv2d(channels, 1, 3, padding=1)]
        self.convolutions = nn.ModuleList(map(weight_norm, layers))

    def forward(self, waveform: torch.Tensor) -> list[torch.Tensor]:
        spectrum = stft(waveform.float(), self.n_fft) / (HANN_ENERGY * self.n_fft) ** 0.5
        parts = torch.view_as_real(spectrum).permute(0, 3, 2, 1)  # (B, 2, frames, bins)
        return _feature_maps(parts, self.convolutions)


class CodecDiscriminator(nn.Module):
    """All discriminators of a configuration. They hear waveforms at their own level: that of a stem is part of it."""

    def __init__(self, config: DiscriminatorConfig):
        super().__init__()
        periods = [PeriodDiscriminator(period, config.channels) for period in config.periods]
        spectra = [SpectrumDiscriminator(n_fft, config.channels) for n_fft in config.fft_sizes]
        self.discriminators = nn.ModuleList([*periods, *spectra])

    def forward(self, waveform: torch.Tensor) -> list[list[torch.Tensor]]:
        """`(B, T)` -> feature maps of each discriminator; B is the slowest axis of their first dimension."""
        return [discriminator(waveform) for discriminator in self.discriminators]


def discriminator_loss(real: list[list[torch.Tensor]], fake: list[list[torch.Tensor]]) -> torch.Tensor:
    """Hinge: scores of real sounds should exceed 1, those of decoded ones fall below -1. Mean over discriminators."""
    losses = [functional.relu(1 - r[-1]).mean() + functional.relu(1 + f[-1]).mean() for r, f in zip(real, fake)]
    return torch.stack(losses).mean()


def adversarial_loss(fake: list[list[torch.Tensor]]) -> torch.Tensor:
    """Hinge of the generator: scores of decoded sounds should exceed 1. Mean over discriminators."""
    return torch.stack([functional.relu(1 - maps[-1]).mean() for maps in fake]).mean()


def feature_matching_loss(real: list[list[torch.Tensor]], fake: list[list[torch.Tensor]]) -> torch.Tensor:
    """Mean absolute difference of feature maps relative to the mean magnitude of the real ones, mean over all maps."""
    pairs = [pair for maps in zip(real, fake) for pair in zip(maps[0][:-1], maps[1][:-1])]
    # 1e-5: maps of digital silence can be close to 0.
    return torch.stack([(f - r).abs().mean() / r.abs().mean().clamp(min=1e-5) for r, f in pairs]).mean()
