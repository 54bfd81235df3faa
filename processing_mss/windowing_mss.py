"""Cutting a song into windows of one length, and cross-fading windows back into a song, a piece at a time.

Songs and windows come and go as iterables, so a song of any length takes the memory of a few windows.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class WindowPlan:
    """How a song is cut into windows, and what brings windows back together.

    Args:
        starts: where windows begin, in samples at the model's rate.
        window, overlap: of a window, and of what it shares with the next, in the same samples.
        gain: the factor by which the song is scaled before the model hears it.
        num_samples, sampling_rate: of the song, the latter in hertz (Hz).
    """

    starts: list[int]
    window: int
    overlap: int
    gain: float
    num_samples: int
    sampling_rate: int

    @property
    def num_windows(self) -> int:
        return len(self.starts)


class BlockBuffer:
    """Reads a song that comes in blocks by position, forwards: what lies before the last read is forgotten."""

    def __init__(self, blocks: Iterable[torch.Tensor]):
        """blocks: consecutive pieces `(..., n)` of the song."""
        self.blocks = iter(blocks)
        self.kept = None  # samples from `first` on
        self.first = 0

    def read(self, first: int, last: int) -> torch.Tensor:
        """Samples `first` to `last` (not included), fewer where the song ends.

        Raises:
            ValueError: the song has no sample at `first`, or forgot it already.
        """
        while self.kept is None or self.first + self.kept.shape[-1] < last:
            block = next(self.blocks, None)
            if block is None:
                break
            self.kept = block if self.kept is None else torch.cat((self.kept, block), dim=-1)
            self._forget(first)
        if self.kept is not None:
            self._forget(first)
        if self.kept is None or self.kept.shape[-1] == 0 or first < self.first:
            raise ValueError(f"There is no sample {first} to read (any more), the buffer begins at {self.first}.")
        return self.kept[..., : last - first]

    def _forget(self, first: int):
        dropped = min(max(first - self.first, 0), self.kept.shape[-1])
        self.kept = self.kept[..., dropped:]
        self.first += dropped


def window_starts(num_samples: int, window: int, overlap: int) -> list[int]:
    """Where windows begin: every `window - overlap` samples, the last one shifted back so that it ends with the song.

    A song no longer than a window gets one window from 0. Raises ValueError if the overlap is not smaller than the
    window, or there is no sample.
    """
    if num_samples < 1 or not 0 <= overlap < window:
        raise ValueError(f"Need samples and 0 <= overlap < window, got {num_samples=}, {window=}, {overlap=}.")
    last = max(num_samples - window, 0)
    return [*range(0, last, window - overlap), last]


def cut_windows(blocks: Iterable[torch.Tensor], starts: list[int], window: int) -> Iterator[torch.Tensor]:
    """Blocks `(..., n)` of a song -> its windows `(..., window)`, as the blocks come.

    Only a song shorter than a window is padded, with zeros at its end.
    """
    song = BlockBuffer(blocks)
    for start in starts:
        samples = song.read(start, start + window)
        yield torch.nn.functional.pad(samples, (0, window - samples.shape[-1]))


def split_windows(waveform: torch.Tensor, starts: list[int], window: int) -> torch.Tensor:
    """`cut_windows` of a whole song: `(..., T)` -> `(W, ..., window)`."""
    return torch.stack(list(cut_windows([waveform], starts, window)))


def cross_fade(
    windows: Iterable[torch.Tensor], starts: list[int], overlap: int, num_samples: int
) -> Iterator[torch.Tensor]:
    """Windows `(..., window)`, in order -> consecutive pieces `(..., n)` of a song of `num_samples`, as they come.

    A window fades in linearly over the last `overlap` samples of what came before and is alone from there on. Nothing
    is averaged for longer than that, also where the last window was shifted back: two generations are never in phase,
    and their mean would be 3 dB quieter.
    """
    windows = iter(windows)
    pending, position = next(windows), 0  # samples from `position` on that the next window may still change
    window = pending.shape[-1]
    fade_in = (torch.arange(overlap, device=pending.device, dtype=pending.dtype) + 0.5) / max(overlap, 1)
    for previous, start, samples in zip(starts, starts[1:], windows):
        end = previous + window
        seam = end - overlap
        yield pending[..., : seam - position]
        faded = torch.lerp(pending[..., seam - position :], samples[..., seam - start : end - start], fade_in)
        pending, position = torch.cat((faded, samples[..., end - start :]), dim=-1), seam
    yield pending[..., : num_samples - position]


def overlap_add(windows: torch.Tensor, starts: list[int], overlap: int, num_samples: int) -> torch.Tensor:
    """`cross_fade` of all windows of a song: `(W, ..., window)` -> `(..., num_samples)`."""
    return torch.cat(list(cross_fade(windows, starts, overlap, num_samples)), dim=-1)
