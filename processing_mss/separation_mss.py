"""A song in, its stems out, block by block: the one path that every separation takes, in memory that does not grow.

    song --(first pass)--> level
    song -> mono windows -> WindowSeparator -> estimates -+-> stitched, or
    song -------------------------------------------------+-> masks and Wiener filter -> stems

Every arrow is an iterator that takes what it needs from the one before.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from .clipping_mss import limit_blocks
from .filtering_mss import filter_windows
from .options_mss import SeparationOptions
from .song_mss import Song
from .window_separator_mss import WindowSeparator
from .windowing_mss import WindowPlan, cut_windows


@dataclass(frozen=True)
class StemStream:
    """The stems of a song as they are ready; iterate over it once.

    Args:
        labels: names of the stems.
        sampling_rate: in hertz (Hz).
        num_channels, num_samples: of each stem.
        blocks: consecutive pieces `(num_channels, n)` float32 of all stems, by name.
    """

    labels: list[str]
    sampling_rate: int
    num_channels: int
    num_samples: int
    blocks: Iterator[dict[str, np.ndarray]]

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self.blocks


def separate_song(song: Song, model, processor, options: SeparationOptions) -> StemStream:
    """Check the options and say what will come; the work is done as blocks are taken.

    Raises:
        ValueError: options that contradict each other, the model or the song.
    """
    options.check(model.config)
    options = options.as_saved_with(model.config, model.generation_config)
    if options.filter_iterations and song.num_channels > 2:
        raise ValueError(
            f"`filter_iterations` must be 0 for more than two channels, got {options.filter_iterations} for "
            f"{song.num_channels} channels."
        )
    # Reading the layout here finds a wrong window or overlap before anything is generated.
    plan = processor.window_layout(song.num_samples, song.sampling_rate, options.window_s, options.overlap)
    blocks = _separate(song, model, processor, options, plan)
    return StemStream(
        labels=options.labels(model.config),
        sampling_rate=song.sampling_rate,
        num_channels=1 if options.output == "generated" else song.num_channels,
        num_samples=song.num_samples,
        blocks=limit_blocks(blocks, options.clip_mode),
    )


@torch.no_grad()
def _separate(
    song: Song, model, processor, options: SeparationOptions, plan: WindowPlan
) -> Iterator[dict[str, np.ndarray]]:
    rate = song.sampling_rate
    plan = replace(plan, gain=processor.input_gain(mean_square(processor.mono_blocks(song.blocks(), rate))))
    separator = WindowSeparator(model, processor, options)
    scaled = (block * plan.gain for block in processor.mono_blocks(song.blocks(), rate))
    estimates = separator(cut_windows(scaled, plan.starts, plan.window), plan.num_windows)
    if options.output != "generated":
        blocks = filter_windows(
            estimates,
            plan.starts,
            plan.overlap,
            plan.gain,
            processor.sampling_rate,
            song.blocks(),
            song.num_samples,
            rate,
            rest=len(separator.stems) < len(model.config.stems),
            iterations=options.filter_iterations,
            token_share=model.config.token_share,
        )
    else:
        audio = (estimate.audio for estimate in estimates)
        blocks = (block[:, None] for block in processor.stitch_blocks(audio, plan))
    for block in blocks:
        yield name_stems(block.cpu().numpy(), separator.stems, options, model.config)


def mean_square(blocks: Iterable[torch.Tensor]) -> float:
    """Of a waveform `(n,)` that comes in blocks."""
    total, count = 0.0, 0
    for block in blocks:
        total += block.double().square().sum().item()
        count += len(block)
    return total / count


def name_stems(block: np.ndarray, generated: list[str], options: SeparationOptions, config) -> dict[str, np.ndarray]:
    """Stems `(S or more, C, n)`, of which the first have the names `generated`, -> those that were asked for, by name.

    With `two_stems` all but the one are summed up: of filtered stems this is the mixture without it.
    """
    labels = options.labels(config)
    if options.two_stems is None:
        return {label: block[generated.index(label)] for label in labels}
    index = generated.index(options.two_stems)
    return dict(zip(labels, (block[index], np.delete(block, index, axis=0).sum(axis=0))))
