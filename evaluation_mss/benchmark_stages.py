"""Seconds of each stage of a separation, from file to files.

The stages are those of `separate_song` in processing_mss, one after another and in the same batches, each under a
clock. A GPU is waited for where a stage ends, so the sum may be a little more than the separation takes without clocks.

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
from processing_mss.filtering_mss import WindowEstimate, filter_windows
from processing_mss.separation_mss import Song, WindowSeparator, fitting_windows, mean_square, window_bytes
from processing_mss.windowing_mss import WindowPlan, cut_windows

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
        options.check(model.config)
        self.options = options.as_saved_with(model.config, model.generation_config)
        self.separator = WindowSeparator(model, processor, self.options)

    @torch.no_grad()
    def __call__(self, path: str, folder: Path) -> list[Path]:
        """Separate a file; returns the paths of the stems, which are written into the folder."""
        self._clock, self.batches = StageClock(self.model.device), []
        self.seconds = self._clock.seconds
        with self._clock("read"):
            song = Song.from_reader(AudioReader(path))
            mono = list(self.processor.mono_blocks(song.blocks(), song.sampling_rate))
            plan = self.processor.window_layout(song.num_samples, song.sampling_rate)
            plan = replace(plan, gain=self.processor.input_gain(mean_square(mono)))
        windows = cut_windows((block * plan.gain for block in mono), plan.starts, plan.window)
        estimates = self._estimates(self._clock.iterate("read", windows), plan)
        if self.options.output == "generated":
            audio = (estimate.audio for estimate in estimates)
            blocks = (block[:, None] for block in self.processor.stitch_blocks(audio, plan))
        else:
            share = self.model.config.token_share
            blocks = filter_windows(estimates, plan, self.processor.sampling_rate, song.blocks(), token_share=share)
        named = (
            dict(zip(self.separator.stems, block.cpu().numpy())) for block in self._clock.iterate("filter", blocks)
        )
        with self._clock("write"):
            return write_stems(named, self.separator.stems, song.sampling_rate, song.num_samples, folder)

    def _estimates(self, windows: Iterator[torch.Tensor], plan: WindowPlan) -> Iterator[WindowEstimate]:
        batch_size, first = self._batch_size(plan), 0
        while batch := list(itertools.islice(windows, batch_size)):
            yield from self._estimate(torch.stack(batch), first)
            first += len(batch)

    def _batch_size(self, plan: WindowPlan) -> int:
        config = self.model.config
        needed = window_bytes(config, plan.window, len(config.stems), self.model.dtype.itemsize)
        return max(1, fitting_windows(self.model.device, needed) // self.options.num_candidates)

    def _estimate(self, batch: torch.Tensor, first: int) -> list[WindowEstimate]:
        masks = audio = [None] * len(batch)
        output, config = self.options.output, self.model.config
        with self._clock("features"):
            rows = batch.to(self.model.device)
            inputs = self.processor.feature_extractor(rows[:, None], sampling_rate=self.processor.sampling_rate)
        with self._clock("encoder"):
            if output == "masked":
                masks = self.model.masks(**inputs)
            else:
                mixture = self.model.encode_mixture(**inputs)
            if output == "filtered" and config.mask_head:
                masks = (mixture.mask_logits.float() / config.mask_temperature).softmax(dim=1)
        if output != "masked":
            generated = self._generate(mixture, range(first, first + len(batch)))
            with self._clock("codec"):
                audio = self._decode(generated, len(batch))
        return [WindowEstimate(batch.shape[-1], *estimate) for estimate in zip(audio, masks)]

    def _generate(self, mixture, windows: range):
        """Codes of a batch; the time until the first callback counts as prefill, but for the steps done by then."""
        num_candidates, first, total = self.options.num_candidates, 0, 0

        def on_step(done: int, steps: int):
            nonlocal first, total
            if not first:
                self._clock.turn("steps")
                first, total = done, steps - 1  # E at the end is not computed

        before = dict(self.seconds)
        with self._clock("prefill"):
            generated = self.model.generate(
                encoder_outputs=mixture,
                seed=self.model.derive_seeds(SEED, windows),
                num_return_sequences=num_candidates,
                output_latents=self.options.uses_averages,
                step_callback=on_step,
                **self.separator.sampling,
            )
        spent = {stage: self.seconds[stage] - before[stage] for stage in ("prefill", "steps")}
        moved = min(spent["prefill"], first * spent["steps"] / (total - first))
        self.seconds["prefill"] -= moved
        self.seconds["steps"] += moved
        context = 1 + mixture.prefix.shape[1] + (total + 1) / 2
        self.batches.append(DecodedBatch(len(windows) * num_candidates, total, spent["steps"] + moved, context))
        return generated

    def _decode(self, generated, num_windows: int) -> torch.Tensor:
        if self.options.uses_averages:
            latents = generated.acoustic_latents.flatten(0, 1), generated.semantic_latents.flatten(0, 1)
            audio = self.model.codec.decode_latents(*latents).audio_values.unflatten(0, generated.codes.shape[:2])
        else:
            audio = self.model.decode_codes(generated)
        audio = audio.float().unflatten(0, (num_windows, -1))
        return audio if self.options.num_candidates > 1 else audio[:, 0]


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
