"""What a mixing desk does to a sum, as a gain over time that all stems share: they go on to add up to the mixture."""

import math

import torch

RATIO_RANGE = (1.3, 4.0)
THRESHOLD_RANGE = (-20.0, -4.0)  # decibels, relative to the loudest 5 ms of a crop
RELEASE_RANGE = (20.0, 150.0)  # decibels a second
DRIVE_RANGE = (0.0, 1.5)  # how far the peak goes into the clipping; 1.5 is 4.4 dB off it
BLOCK_S = 0.005  # a level is measured so often


def bus_gain(mixture: torch.Tensor, bus: torch.Tensor, sampling_rate: int) -> torch.Tensor:
    """Gain of a compressor and a soft clipper, at most 1, independent of the level: `(B, T)` -> `(B, T)`.

    Args:
        bus: `(B, 4)`: ratio of input to output changes above the threshold (1: no compression), threshold in decibels
            relative to the loudest block, release in decibels a second, drive of the clipper (0: none).
    """
    gain = compression_gain(mixture, *bus[:, :3].unbind(dim=1), sampling_rate)
    compressed = mixture * gain
    drive = bus[:, 3:]
    driven = compressed * (drive / compressed.abs().amax(dim=1, keepdim=True).clamp(min=1e-8))
    # tanh(x) / x, which float32 cannot divide near 0.
    small = driven.abs() < 1e-2
    clipping = torch.where(small, 1 - driven.square() / 3, driven.tanh() / torch.where(small, 1.0, driven))
    return gain * clipping


def compression_gain(
    mixture: torch.Tensor,
    ratio: torch.Tensor,
    threshold_db: torch.Tensor,
    release: torch.Tensor,
    sampling_rate: int,
) -> torch.Tensor:
    """Mixtures `(B, T)`, parameters `(B,)` as above -> `(B, T)`.

    Levels are those of blocks; the gain falls two blocks ahead of what is loud, and comes back by so many decibels a
    second.
    """
    num_samples, block = mixture.shape[-1], round(BLOCK_S * sampling_rate)
    padded = torch.nn.functional.pad(mixture, (0, -num_samples % block))
    levels = 10 * padded.unflatten(-1, (-1, block)).square().mean(dim=-1).clamp(min=1e-10).log10()  # (B, blocks)
    over = (levels - levels.amax(dim=1, keepdim=True) - threshold_db[:, None]).clamp(min=0) * (1 - 1 / ratio[:, None])
    held = torch.nn.functional.max_pool1d(over, 5, stride=1, padding=2)
    # What is left of each earlier reduction falls along a straight line; the highest of all lines counts.
    fallen = release[:, None] * BLOCK_S * torch.arange(held.shape[1], device=held.device)
    released = (held + fallen).cummax(dim=1).values - fallen
    smooth = torch.nn.functional.avg_pool1d(
        torch.nn.functional.pad(released[:, None], (1, 1), mode="replicate"), 3, stride=1
    )
    reduction = torch.nn.functional.interpolate(smooth, size=padded.shape[-1], mode="linear", align_corners=False)[:, 0]
    return torch.exp(reduction[:, :num_samples] * (-math.log(10) / 20))
