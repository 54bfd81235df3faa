"""Resampling in pure torch, so that Hub-shipped code needs no audio library for it."""

import functools
import math

import torch

ROLLOFF = 0.99
ZERO_CROSSINGS = 6  # a side
MAX_PHASES = 4096  # beyond that, filters are computed for every sample


def resample(waveform: torch.Tensor, orig_rate: int, new_rate: int) -> torch.Tensor:
    """Windowed-sinc resampling along the last axis, on any device.

    Hann window, 6 zero crossings a side, roll-off 0.99: the defaults of `torchaudio.functional.resample`, whose result
    it equals. Pairs of rates without a large common divisor (48001 and 48000 Hz) would need as many filters as hertz;
    those are computed sample by sample, which is slower and the same.

    Args:
        waveform: `(..., T)` float.
        orig_rate, new_rate: in hertz (Hz).

    Returns:
        `(..., ceil(T * new_rate / orig_rate))`.
    """
    if orig_rate == new_rate:
        return waveform
    divisor = math.gcd(orig_rate, new_rate)
    orig, new = orig_rate // divisor, new_rate // divisor
    num_samples = -(-waveform.shape[-1] * new // orig)
    signals = waveform.reshape(math.prod(waveform.shape[:-1]), waveform.shape[-1])  # -1 fails without samples
    method = _resample_by_phases if max(orig, new) <= MAX_PHASES else _resample_by_samples
    return method(signals, orig, new, num_samples).view(*waveform.shape[:-1], num_samples)


class StreamingResampler:
    """`resample` for audio that comes in blocks: what `push` and `finish` return, joined, is what it gives at once.

    Memory: a block, and a common period of the two rates (147 samples for 44100 -> 48000 Hz, at most a second) with a
    filter's length on both sides. `push` returns what is settled so far, often less than its block and maybe nothing.

    Args:
        orig, new: rates in hertz (Hz).
    """

    def __init__(self, orig: int, new: int):
        divisor = math.gcd(orig, new)
        self._orig, self._new = orig // divisor, new // divisor
        self._width = _half_width(self._orig, self._new)
        # Whole periods, so that the filters fall on the same positions in every part.
        self._max_past = -(-self._width // self._orig) * self._orig
        self._past = 0  # samples at the start of the buffer that have had their turn
        self._buffer = torch.zeros(0)

    def push(self, block: torch.Tensor) -> torch.Tensor:
        """`(..., n)` -> the next `(..., m)`; leading axes, type and device are the same in every call."""
        if self._orig == self._new:
            self._buffer = block[..., :0]
            return block
        buffer = torch.cat((self._buffer, block), dim=-1) if self._buffer.numel() else block
        periods = max(buffer.shape[-1] - self._past - self._width, 0) // self._orig
        end = self._past + periods * self._orig
        resampled = resample(buffer[..., : end + self._width], self._orig, self._new) if periods else buffer[..., :0]
        settled = resampled[..., self._past * self._new // self._orig : end * self._new // self._orig]
        start = max(end - self._max_past, 0)
        self._buffer, self._past = buffer[..., start:].clone(), end - start  # a view would hold the whole block
        return settled

    def finish(self) -> torch.Tensor:
        """The rest, `(..., m)`; after it the next signal may be pushed."""
        rest = resample(self._buffer, self._orig, self._new)[..., self._past * self._new // self._orig :]
        self._buffer, self._past = torch.zeros(0), 0
        return rest


def _resample_by_phases(signals: torch.Tensor, orig: int, new: int, num_samples: int) -> torch.Tensor:
    """`new` filters, one per position of an output sample between input samples, applied as one convolution."""
    width = _half_width(orig, new)
    padded = torch.nn.functional.pad(signals[:, None], (width, width + orig))
    kernel = _kernel(orig, new).to(signals)
    phases = torch.nn.functional.conv1d(padded, kernel[:, None], stride=orig)  # (N, new, steps)
    return phases.transpose(1, 2).flatten(1)[:, :num_samples]


def _resample_by_samples(signals: torch.Tensor, orig: int, new: int, num_samples: int) -> torch.Tensor:
    """Output sample n lies at input position n * orig / new; a block of them at a time."""
    width = _half_width(orig, new)
    padded = torch.nn.functional.pad(signals, (width, width + 1))
    taps = torch.arange(-width, width + 2, device=signals.device)
    resampled = signals.new_empty(len(signals), num_samples)
    for first in range(0, num_samples, 2**18):
        outputs = torch.arange(first, min(first + 2**18, num_samples), device=signals.device)
        whole, rest = outputs * orig // new, (outputs * orig % new).double() / new
        filters = _windowed_sinc(taps - rest[:, None], orig, new).to(signals)  # (n, taps)
        index = (whole[:, None] + taps + width).clamp(max=padded.shape[-1] - 1)
        resampled[:, first : first + len(outputs)] = (padded[:, index] * filters).sum(dim=-1)
    return resampled


def _half_width(orig: int, new: int) -> int:
    return math.ceil(ZERO_CROSSINGS * orig / (min(orig, new) * ROLLOFF))


def _windowed_sinc(offset: torch.Tensor, orig: int, new: int) -> torch.Tensor:
    """Filter at offsets counted in input samples."""
    scale = min(orig, new) * ROLLOFF / orig
    time = (offset * scale).clamp(-ZERO_CROSSINGS, ZERO_CROSSINGS)
    return torch.sinc(time) * torch.cos(time * math.pi / ZERO_CROSSINGS / 2) ** 2 * scale


@functools.lru_cache(maxsize=32)
def _kernel(orig: int, new: int) -> torch.Tensor:
    """`(new, taps)` float64."""
    width = _half_width(orig, new)
    taps = torch.arange(-width, width + orig, dtype=torch.float64)
    return _windowed_sinc(taps - torch.arange(new, dtype=torch.float64)[:, None] * orig / new, orig, new)
