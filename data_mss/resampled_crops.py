"""Crops that are played faster or slower: pitch and tempo change together, as on a tape."""

import math

import torch


def piece_length(num_samples: int, speed: float) -> int:
    """Samples to read for a crop of `num_samples` at this speed (1: as it is)."""
    return num_samples if speed == 1 else math.ceil(num_samples * speed)


def at_speed(piece: torch.Tensor, num_samples: int) -> torch.Tensor:
    """A piece `(n,)` played in `num_samples`, linearly interpolated, as augmentation need not be better than that."""
    if piece.shape[-1] == num_samples:
        return piece
    return torch.nn.functional.interpolate(piece[None, None], size=num_samples, mode="linear", align_corners=False)[
        0, 0
    ]
