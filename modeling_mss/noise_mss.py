"""Noise for drawing codes that is a function of seed, step and index: the same in every batch and on every device."""

from collections.abc import Sequence

import torch

MASK_32 = 0xFFFFFFFF


def hash_words(*words: int | torch.Tensor) -> int | torch.Tensor:
    """Words of 32 bits, in this order, to one; ints, or int64 tensors that broadcast.

    Each word goes through the two-round mixer of hash-prospector with the least known bias (16 21f0aaad 15 735a2d97
    15). Both factors are below 2^31: no product leaves int64, so every device computes the same.
    """
    value = 0
    for word in words:
        value = ((value + 0x9E3779B9) & MASK_32) ^ word
        value = ((value ^ (value >> 16)) * 0x21F0AAAD) & MASK_32
        value = ((value ^ (value >> 15)) * 0x735A2D97) & MASK_32
        value = value ^ (value >> 15)
    return value


class CounterNoise:
    """Noise that is a function of a row's seed, the step and the index alone, the same in every batch and device.

    A random generator gives a row what the rows before it left; one generator per row is a loop on the host.
    """

    def __init__(self, seeds: Sequence[int], num_steps: int, num_values: int, device: torch.device):
        words = torch.tensor([(seed & MASK_32, (seed >> 32) & MASK_32) for seed in seeds], device=device)
        steps = torch.arange(num_steps, device=device)[:, None, None]
        # Two keys `(steps, B, 1)`: one of 32 bits would be the same for two of some 2^16 pairs of row and step.
        self.keys = [hash_words(domain, words[:, :1], words[:, 1:], steps) for domain in (0, 1)]
        self.indices = hash_words(torch.arange(num_values, device=device))

    def uniform(self, step: int) -> torch.Tensor:
        """`(B, num_values)` float32 in (0, 1], finest near 0."""
        bits = hash_words(((self.indices ^ self.keys[0][step]) + self.keys[1][step]) & MASK_32)
        return (bits.float() + 0.5) * 2.0**-32

    def gumbel(self, step: int) -> torch.Tensor:
        """`(B, num_values)` float32: arg max (log p + noise) is a draw from p. A uniform 1 gives minus infinity."""
        return -(-torch.log1p(-self.uniform(step))).log()
