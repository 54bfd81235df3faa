"""Windows of several songs in common batches: a hundred short clips are not a hundred small batches.

Songs are read when a batch needs their windows, so those of the next song may be in the same batch as the last ones of
this. What becomes of a song does not depend on its neighbours: one that cannot be read, or whose stems nobody wants any
more, leaves the queue, and the others stay.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from transformers.utils import logging

from .audio_reader_mss import KEPT_S, AudioReader
from .audio_source_mss import as_waveform, check_layout
from .estimation_mss import WindowEstimator
from .filtering_mss import WindowEstimate
from .windowing_mss import WindowPlan, cut_windows

logger = logging.get_logger(__name__)

READ_SAMPLES = 2**18  # of a block: 6 s at 44.1 kHz


@dataclass(frozen=True)
class Song:
    """What is separated: an array or a file. `blocks()` starts anew at each call.

    Args:
        sampling_rate: in hertz (Hz).
        num_channels, num_samples: of the song.
        blocks: gives consecutive blocks `(num_channels, n)` float32, finite.
        is_kept: whether it lies in memory; if not, every call of `blocks` decodes a file.
    """

    sampling_rate: int
    num_channels: int
    num_samples: int
    blocks: Callable[[], Iterator[torch.Tensor]]
    is_kept: bool = True

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
            is_kept=reader.is_kept,
        )


class QueuedSong:
    """A song whose windows are in the queue.

    Attributes:
        plan: how it is cut; its gain is 1 until windows are read.
        estimates: of the windows that were in a batch, and not taken yet.
        error: what went wrong while it was read.
        is_wanted: its stems are still taken. If not, no more of its windows are.
    """

    def __init__(self, song: Song, plan: WindowPlan):
        self.song, self.plan = song, plan
        self.estimates: deque[WindowEstimate] = deque()
        self.error: Exception | None = None
        self.is_wanted = True

    def windows(self, processor, device: torch.device) -> Iterator["QueuedWindow"]:
        """Its windows, as they are needed. A song of up to ten minutes is resampled once, a longer one twice."""
        song, on_gpu = self.song, device.type == "cuda"

        def read_mono() -> Iterator[torch.Tensor]:
            blocks = (block.to(device) for block in song.blocks()) if on_gpu else song.blocks()
            return processor.mono_blocks(blocks, song.sampling_rate)

        try:
            is_short = song.is_kept and song.num_samples <= KEPT_S * song.sampling_rate
            mono = list(read_mono()) if is_short else None
            self.plan = replace(self.plan, gain=processor.input_gain(mean_square(mono or read_mono())))
            scaled = (block * self.plan.gain for block in mono or read_mono())
            for index, samples in enumerate(cut_windows(scaled, self.plan.starts, self.plan.window)):
                if not self.is_wanted:
                    return
                yield QueuedWindow(samples, index, self)
        except Exception as error:  # raised again where its stems are taken: the other songs have nothing to do with it
            self.error = error


@dataclass(frozen=True, eq=False)
class QueuedWindow:
    """A window `(T,)` of a song, mono at the model's rate and level, and its place there."""

    samples: torch.Tensor
    index: int
    song: QueuedSong


class SongQueue:
    """Songs in order, and the estimates of their windows. Iterate over it, and take a song's before the next song.

    Args:
        songs: taken when a batch has room for their windows.
        estimator: of all of them.
        layout: a song's plan, of which the gain is not known yet.
        on_step: called with (steps done, steps in all) of the song whose stems are being taken.
    """

    def __init__(
        self,
        songs: Iterable[Song],
        estimator: WindowEstimator,
        layout: Callable[[Song], WindowPlan],
        on_step: Callable[[int, int], None] | None = None,
    ):
        self._estimator, self._on_step = estimator, on_step
        self._batch_size = estimator.options.batch_size or estimator.fitting_batch_size()
        self._songs = (QueuedSong(song, layout(song)) for song in songs)
        # Not `itertools.tee`, which holds on to dozens of songs after both have gone by.
        self._to_take: deque[QueuedSong] = deque()
        self._to_read: deque[QueuedSong] = deque()
        self._windows = self._read_windows()
        self._waiting: list[QueuedWindow] = []

    def __iter__(self) -> Iterator[QueuedSong]:
        while self._to_take or self._open():
            song = self._to_take.popleft()
            yield song
            song.is_wanted = False
            song.estimates.clear()
            if self._to_read and self._to_read[0] is song:
                self._to_read.popleft()

    def _open(self) -> bool:
        """Take the next song; whether there is one."""
        for song in self._songs:
            self._to_take.append(song)
            self._to_read.append(song)
            return True
        return False

    def _read_windows(self) -> Iterator[QueuedWindow]:
        while self._to_read or self._open():
            yield from self._to_read.popleft().windows(self._estimator.processor, self._estimator.model.device)

    def estimates(self, song: QueuedSong) -> Iterator[WindowEstimate]:
        """Estimates of its windows, in order; a batch is computed when the next one is not there.

        Raises:
            ValueError: the model gives NaN or infinity.
            RuntimeError: a single window does not fit into memory, or the queue has gone on to the next song.
        """
        for _ in song.plan.starts:
            while not song.estimates:
                if song.error is not None:
                    raise song.error
                if not song.is_wanted:
                    raise RuntimeError("The stems of a song have to be taken before those of the next one.")
                if not self._estimate_batch() and song.error is None:
                    raise RuntimeError("The reading of songs was interrupted: separate those that are left anew.")
            estimate = song.estimates.popleft()
            self._estimator.check_finite(estimate)
            yield estimate

    def _estimate_batch(self) -> bool:
        """Estimate the next windows; whether there are any. A batch that memory does not hold is halved, and so are
        those after it."""
        self._waiting = [window for window in self._waiting if window.song.is_wanted]
        self._waiting += itertools.islice(self._windows, max(self._batch_size - len(self._waiting), 0))
        batch = self._waiting[: self._batch_size]
        if not batch:
            return False  # the song could not be read, and says so
        first = batch[0].song  # the one that is waited for: all before it are done
        num_windows = sum(window.song is first for window in batch)

        def on_step(done: int, total: int):
            if self._on_step is not None:
                self._on_step(batch[0].index * total + done * num_windows, first.plan.num_windows * total)

        try:
            samples = torch.stack([window.samples for window in batch])
            estimates = self._estimator.estimate(samples, [window.index for window in batch], on_step)
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                seconds = len(batch[0].samples) / self._estimator.processor.sampling_rate
                raise RuntimeError(
                    f"Out of memory with one window of {seconds:.2f} s and {self._estimator.options.num_candidates} "
                    "candidate(s) of it: use fewer candidates, a shorter window_s, a smaller dtype or another device "
                    f"({error})."
                ) from error
            self._batch_size = len(batch) // 2
            logger.warning(f"Out of memory with {len(batch)} windows at once: going on with {self._batch_size}.")
            return True
        self._waiting = self._waiting[len(batch) :]
        for window, estimate in zip(batch, estimates):
            window.song.estimates.append(estimate)
        return True


def mean_square(blocks: Iterable[torch.Tensor]) -> float:
    """Of a waveform `(n,)` that comes in blocks."""
    total, count = 0.0, 0
    for block in blocks:
        total += block.double().square().sum().item()
        count += len(block)
    return total / count
