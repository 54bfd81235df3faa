"""Masks of the stems on the time x mel plane: the convolutional stem before the Conformer, its mirror, and their loss.

A frame-wise encoder learns the timbres of its training songs by heart; convolution over frequency is what carries over
to other music (docs/checkpoint.md). The two halves are a U-Net with the Conformer at its bottom; its residual layers
are TFC blocks without their dense connections (Choi et al. 2020, arXiv 1912.02591).

Shapes: B windows, L frames (50 a second), M mel bands, C channels, S stems.
"""

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

from .configuration_mss import MssEncoderConfig

GROUPS = 4  # of GroupNorm
FLOOR = -7.0  # log-mel of what counts as silent: 60 dB below full scale, where digital silence would be at -23
MAX_WEIGHT = 20.0  # of a bin in the loss, where 1 is the mean
EPSILON = 1e-7  # keeps the logarithm of a sum of masks finite


def scaled_log_mel(log_mel: torch.Tensor) -> torch.Tensor:
    """Log-mel of the feature extractor -> about -3.7 (silence) to 3, what convolutions like to see."""
    return log_mel.clamp(min=FLOOR) * (2 / 3) + 1


def in_fast_format(plane: torch.Tensor) -> torch.Tensor:
    """The same `(B, C, L, M)`; in bfloat16 on CPUs with channels last in memory, which all layers after it keep.

    There it is faster. In float32 it hardly is, and torch's group norm is 20 times less exact in that format; GPUs have
    no group norm for it.
    """
    is_faster = plane.device.type == "cpu" and plane.dtype == torch.bfloat16
    return plane.contiguous(memory_format=torch.channels_last) if is_faster else plane


class MssConvLayer(nn.Module):
    """Two convolutions over time and frequency beside the identity, `(B, C, L, M)`."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm1 = nn.GroupNorm(GROUPS, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(GROUPS, channels)

    def forward(self, plane: torch.Tensor) -> torch.Tensor:
        return plane + self.norm2(self.conv2(functional.silu(self.norm1(self.conv1(plane)))))


class MssConvStem(nn.Module):
    """Log-mel `(B, L, M)` -> planes `(B, C_i, L, M / 2^i)` of all levels, the coarsest last."""

    def __init__(self, config: MssEncoderConfig):
        super().__init__()
        channels = config.conv_channels
        self.embed = nn.Conv2d(1, channels[0], 3, padding=1)
        self.blocks = nn.ModuleList([MssConvLayer(width) for width in channels])
        self.down = nn.ModuleList([nn.Conv2d(fine, coarse, (1, 2), (1, 2)) for fine, coarse in pairwise(channels)])

    def forward(self, log_mel: torch.Tensor) -> list[torch.Tensor]:
        plane = in_fast_format(self.embed(scaled_log_mel(log_mel)[:, None]))
        planes = [self.blocks[0](plane)]
        for down, layer in zip(self.down, self.blocks[1:]):
            planes.append(layer(down(planes[-1])))
        return planes


class MssMaskHead(nn.Module):
    """Conformer frames and the planes of the stem -> mask logits. Without a convolutional stem, one linear layer."""

    def __init__(self, config: MssEncoderConfig):
        super().__init__()
        self.num_masks = config.num_masks
        channels = config.conv_channels
        if not channels:
            self.out = nn.Linear(config.hidden_size, config.num_masks * config.num_mel_bins)
            return
        self.embed = nn.Linear(config.hidden_size, config.bottom_size)
        self.up = nn.ModuleList(
            [nn.ConvTranspose2d(coarse, fine, (1, 2), (1, 2)) for fine, coarse in pairwise(channels)]
        )
        self.blocks = nn.ModuleList([MssConvLayer(width) for width in channels[:-1]])
        self.out = nn.Conv2d(channels[0], config.num_masks, 1)

    def forward(self, hidden_states: torch.Tensor, planes: list[torch.Tensor]) -> torch.Tensor:
        """`(B, L, hidden)` and what `MssConvStem` gave (nothing without one) -> `(B, S, L, M)`."""
        if not planes:
            return self.out(hidden_states).unflatten(-1, (self.num_masks, -1)).transpose(1, 2)
        bottom = planes[-1]
        update = self.embed(hidden_states).unflatten(-1, bottom.shape[1:4:2])  # (B, L, C, M / 2^i)
        plane = in_fast_format(bottom + update.transpose(1, 2).to(bottom.dtype))
        for up, layer, skip in zip(reversed(self.up), reversed(self.blocks), reversed(planes[:-1])):
            plane = layer(functional.silu(up(plane)) + skip)
        return self.out(plane)


def mask_loss(
    mask_logits: torch.Tensor, stem_powers: torch.Tensor, known_stems: torch.Tensor | None = None
) -> torch.Tensor:
    """How far masks are from the stems' shares of the power.

    Half cross-entropy against the ratios of mel powers, half L1 of magnitudes, both weighted by the magnitude that all
    stems have together, relative to its mean over the window. The first is calibrated, the second minds what bleeds.

    Args:
        mask_logits: `(B, S, L, M)`.
        stem_powers: mel powers `(B, S, L, M)` of the true stems (`mel_power_spectrogram` of the feature extractor).
        known_stems: `(B, S)` bool. The others are known as a sum only: their masks and their powers are added up first,
            so that the loss says nothing about how the masks share that sum. All are known if not given.

    Returns:
        A scalar, mean over bins, in float32.
    """
    powers = stem_powers.float()
    log_masks = mask_logits.float().log_softmax(dim=1)
    total = powers.sum(dim=1)
    shares = powers / total.clamp(min=1e-10)[:, None]
    magnitude = total.sqrt()
    weight = (magnitude / magnitude.mean(dim=(1, 2), keepdim=True).clamp(min=1e-6)).clamp(max=MAX_WEIGHT)
    masks = log_masks.exp()
    if known_stems is not None:
        unknown = ~known_stems[:, :, None, None]
        rest = (masks * unknown).sum(dim=1, keepdim=True)
        # The sum stands beside the stems that are known, as one more of them; 0 where all are.
        log_masks = torch.cat((log_masks.masked_fill(unknown, 0), (rest + EPSILON).log()), dim=1)
        masks = torch.cat((masks.masked_fill(unknown, 0), rest), dim=1)
        shares = torch.cat((shares.masked_fill(unknown, 0), (shares * unknown).sum(dim=1, keepdim=True)), dim=1)
    cross_entropy = -(shares * log_masks).sum(dim=1)
    distance = (masks - shares.sqrt()).abs().sum(dim=1)
    return (weight * (cross_entropy + distance)).mean() / 2
