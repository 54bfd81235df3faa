"""Seconds of each stage of a separation, from file to files.

The stages are those of `separate_songs` in processing_mss, one after another and in the same batches, each under a
clock. A GPU is waited for where a stage ends, and the codec never runs beside the language model, so the sum is more
than the separation takes without clocks.

- read: decode the file, mix it to mono, resample, find its level, cut windows
- features: log-mel frames
- encoder: the Conformer: masks, and what the language model reads
- prefill: the language model reads the mixture
- steps: it writes the codes, position by position
- codec: codes, or averages of them, to sound
- filter: Wiener filter of the song, or for `generated` the cross-fade of windows; and back to the song's rate
- write: bring the song into full scale, write the stems as wav
"""

import contextlib
import itertools
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from processing_mss import AudioReader, AudioWriter, SeparationOptions, limit_blocks
from processing_mss.estimation_mss import WindowEstimator
from processing_mss.filtering_mss import WindowEstimate, filter_windows
from processing_mss.song_queue_mss import Song, mean_square
from processing_mss.windowing_mss import cut_windows

STAGES = ("read", "features", "encoder", "prefill", "steps", "codec", "filter", "write")
SEED = 0  # of what is sampled: every run does the same


def synchronize(device: torch.device) -> None:
    """Wait for a GPU; nothing to do elsewhere."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class StageClock:
    """Wall seconds by stage. Stages nest, as iterators call each other: time counts for the innermost one.

    Attributes:
        seconds: by stage.
    """

    def __init__(self, device: torch.device):
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._device, self._stages, self._last = device, [], 0.0

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        self._count()
        self._stages.append(stage)
        try:
            yield
        finally:
            self._count()
            self._stages.pop()

    def turn(self, stage: str) -> None:
        """From now on the innermost stage is this one."""
        self._count()
        self._stages[-1] = stage

    def iterate(self, stage: str, items: Iterable) -> Iterator:
        """The same items; the time it takes to get each counts for the stage."""
        items = iter(items)
        while True:
            with self(stage):
                item = next(items, None)
            if item is None:
                return
            yield item

    def _count(self) -> None:
        synchronize(self._device)
        now = time.perf_counter()
        if self._stages:
            self.seconds[self._stages[-1]] += now - self._last
        self._last = now


@dataclass(frozen=True)
class DecodedBatch:
    """What one call of `generate` did.

    Args:
        rows: windows times candidates.
        num_steps: positions that the decoder computed, of each row.
        seconds: of these steps, without the prefill.
        context: positions in the key-value cache, the mean over the steps.
    """

    rows: int
    num_steps: int
    seconds: float
    context: float


class ClockedEstimator(WindowEstimator):
    """A `WindowEstimator` under a clock.

    Attributes:
        batches: `DecodedBatch` of each call of `generate`.
    """

    def __init__(self, model, processor, options: SeparationOptions, clock: StageClock):
        super().__init__(model, processor, options)
        self.clock, self.batches = clock, []

    def features(self, rows):
        with self.clock("features"):
            return super().features(rows)

    def encode(self, features):
        with self.clock("encoder"):
            return super().encode(features)

    def decode(self, track):
        with self.clock("codec"):
            return super().decode(track)

    def generate(self, mixture, indices, on_step):
        """The time until the first steps are done counts as prefill, but for these steps."""
        first, total, seconds = 0, 0, self.clock.seconds

        def turn(done: int, steps: int):
            nonlocal first, total
            if not first:
                self.clock.turn("steps")
                first, total = done, steps - 1  # E at the end is not computed

        before = dict(seconds)
        with self.clock("prefill"):
            audio = super().generate(mixture, indices, turn)
        spent = {stage: seconds[stage] - before[stage] for stage in ("prefill", "steps")}
        moved = min(spent["prefill"], first * spent["steps"] / (total - first))
        seconds["prefill"] -= moved
        seconds["steps"] += moved
        context = 1 + mixture.prefix.shape[1] + (total + 1) / 2
        rows = len(indices) * self.options.num_candidates
        self.batches.append(DecodedBatch(rows, total, spent["steps"] + moved, context))
        return audio


class StagedSeparation:
    """A separation under a clock.

    Attributes:
        seconds: by stage, of the last call.
        batches: `DecodedBatch` of each call of `generate`, of the last call.

    Args:
        model, processor: of a separator.
        output: "masked", "filtered" or "generated".
    """

    def __init__(self, model, processor, output: str):
        self.model, self.processor = model, processor
        options = SeparationOptions(output=output, seed=SEED)
        options.check(model, processor)
        self.options = options.as_saved_with(model.config, model.generation_config)

    @torch.no_grad()
    def __call__(self, path: str, folder: Path) -> list[Path]:
        """Separate a file; returns the paths of the stems, which are written into the folder."""
        device = self.model.device
        clock = StageClock(device)
        estimator = ClockedEstimator(self.model, self.processor, self.options, clock)
        self.seconds, self.batches = clock.seconds, estimator.batches
        with clock("read"):
            song = Song.from_reader(AudioReader(path))
            blocks = (block.to(device) for block in song.blocks())
            mono = list(self.processor.mono_blocks(blocks, song.sampling_rate))
            plan = self.processor.window_layout(song.num_samples, song.sampling_rate)
            plan = replace(plan, gain=self.processor.input_gain(mean_square(mono)))
        windows = cut_windows((block * plan.gain for block in mono), plan.starts, plan.window)
        estimates = estimate_all(estimator, clock.iterate("read", windows))
        if self.options.output == "generated":
            audio = (estimate.audio for estimate in estimates)
            blocks = (block[:, None] for block in self.processor.stitch_blocks(audio, plan))
        else:
            share = self.model.config.token_share
            blocks = filter_windows(estimates, plan, self.processor.sampling_rate, song.blocks(), token_share=share)
        named = (dict(zip(estimator.stems, block.cpu().numpy())) for block in clock.iterate("filter", blocks))
        with clock("write"):
            return write_stems(named, estimator.stems, song.sampling_rate, song.num_samples, folder)


def estimate_all(estimator: WindowEstimator, windows: Iterator[torch.Tensor]) -> Iterator[WindowEstimate]:
    """Estimates of the windows of a song, in the batches that a separation makes of them."""
    size, numbered = estimator.fitting_batch_size(), enumerate(windows)
    while batch := list(itertools.islice(numbered, size)):
        indices, samples = zip(*batch)
        yield from estimator.estimate(torch.stack(samples), indices)


def write_stems(
    blocks: Iterable[dict[str, np.ndarray]],
    labels: list[str],
    sampling_rate: int,
    num_samples: int,
    folder: str | os.PathLike,
) -> list[Path]:
    """Write blocks of stems as `mss-lm separate` does by default: brought into full scale, as wav of 16 bits."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    paths, writers = [Path(folder) / f"{label}.wav" for label in labels], {}
    with contextlib.ExitStack() as stack:
        for block in limit_blocks(blocks, "rescale", folder):
            for label, path in zip(labels, paths):
                if label not in writers:
                    writer = AudioWriter(path, sampling_rate, len(block[label]), num_samples=num_samples)
                    writers[label] = stack.enter_context(writer)
                writers[label].write(block[label])
    return paths
