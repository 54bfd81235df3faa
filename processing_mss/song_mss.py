"""A song that is read in blocks, as often as needed: a file of any length, or an array."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from .audio_reader_mss import RATE_LIMITS, AudioReader

READ_SAMPLES = 2**18  # of a block: 6 s at 44.1 kHz
MAX_CHANNELS = 32  # more "channels" than this are samples: the array is transposed
INTEGER_RANGES = {"int16": (0, 2**15), "int32": (0, 2**31), "uint8": (2**7, 2**7)}  # dtype: (centre, full scale)


@dataclass(frozen=True)
class Song:
    """What the pipeline reads: `blocks()` starts anew at each call, and several may be read side by side.

    Args:
        sampling_rate: in hertz (Hz).
        num_channels, num_samples: of the song.
        blocks: gives consecutive blocks `(num_channels, n)` float32, finite.
    """

    sampling_rate: int
    num_channels: int
    num_samples: int
    blocks: Callable[[], Iterator[torch.Tensor]]

    @classmethod
    def from_array(cls, audio: np.ndarray | torch.Tensor, sampling_rate: int) -> "Song":
        """Audio `(samples,)` or `(channels, samples)`; see `as_waveform` for types and errors."""
        waveform = as_waveform(audio, sampling_rate).cpu()
        return cls(int(sampling_rate), *waveform.shape, blocks=lambda: iter(waveform.split(READ_SAMPLES, dim=-1)))

    @classmethod
    def from_reader(cls, reader: AudioReader) -> "Song":
        """What a reader of a file gives. Raises ValueError if it has too many channels, or an impossible rate."""
        check_layout((reader.num_channels, reader.num_samples), reader.sampling_rate)
        return cls(
            reader.sampling_rate,
            reader.num_channels,
            reader.num_samples,
            blocks=lambda: map(torch.from_numpy, reader.blocks(READ_SAMPLES)),
        )


def check_layout(shape: tuple[int, ...], sampling_rate: int):
    """Raise ValueError unless audio of this shape and rate can be a song."""
    if len(shape) not in (1, 2) or 0 in shape:
        raise ValueError(
            f"Audio must have shape (samples,) or (channels, samples) and hold samples, got {tuple(shape)}."
        )
    if len(shape) == 2 and shape[0] > MAX_CHANNELS:
        raise ValueError(
            f"Audio of shape {tuple(shape)} has more than {MAX_CHANNELS} channels; the layout is "
            "(channels, samples): is it transposed?"
        )
    low, high = RATE_LIMITS
    if not isinstance(sampling_rate, (int, np.integer)) or not low <= sampling_rate <= high:
        raise ValueError(
            f"`sampling_rate` must be a whole number of hertz (Hz) from {low} to {high}, got {sampling_rate!r}."
        )


def as_waveform(audio: np.ndarray | torch.Tensor | list, sampling_rate: int) -> torch.Tensor:
    """Any array of audio -> `(channels, samples)` float32.

    Floating point stays as it is; PCM integers get full scale 1.

    Raises:
        ValueError: other types, tensors without plain samples, no samples, NaN or infinity, wrong shape or rate.
    """
    if not isinstance(audio, torch.Tensor):
        try:
            array = np.asarray(audio)
        except (ValueError, TypeError, RuntimeError) as error:  # of numpy and of what it asks for its samples
            raise ValueError(
                f"Audio must be an array, or lists of numbers of one length, got a {type(audio).__name__} that is "
                "none: its channels differ in length, or have no samples in memory."
            ) from error
        if array.dtype.name not in (*INTEGER_RANGES, "float16", "float32", "float64"):
            raise ValueError(
                f"Audio must be floating point, or integers of type {list(INTEGER_RANGES)}, got {array.dtype}."
            )
        audio = torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))
    if audio.is_meta or audio.is_nested or audio.layout != torch.strided:
        kind = "meta" if audio.is_meta else "nested" if audio.is_nested else str(audio.layout).removeprefix("torch.")
        raise ValueError(f"Audio must be a dense tensor with its samples in memory, got one of kind {kind!r}.")
    name = str(audio.dtype).removeprefix("torch.")
    if name not in INTEGER_RANGES and not audio.is_floating_point():
        raise ValueError(
            f"Audio must be floating point, or integers of type {list(INTEGER_RANGES)}, got {audio.dtype}."
        )
    check_layout(tuple(audio.shape), sampling_rate)
    if name in INTEGER_RANGES:
        centre, full_scale = INTEGER_RANGES[name]
        audio = (audio.double() - centre) / full_scale
    waveform = torch.atleast_2d(audio.detach().float())
    if not waveform.isfinite().all():
        raise ValueError("Audio must be finite, got NaN or infinity in it.")
    return waveform
