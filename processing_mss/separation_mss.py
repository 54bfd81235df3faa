"""Songs in, their stems out: the one path that every separation takes.

    Song -> mono, 48 kHz -> level
                         -> windows -> SongQueue -> estimates -+-> cross-faded (`stitch_blocks`), or
    Song ------------------------------------------------------+-> masks and Wiener filter (`filter_windows`)

Every arrow is an iterator of blocks that takes what it needs from the one before. A song of up to ten minutes is
decoded once and resampled once, and kept. A longer one is decoded again for its level, for its windows and for the
filter.
"""

import itertools
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from .estimation_mss import WindowEstimator
from .filtering_mss import filter_windows
from .options_mss import CLIP_MODES, SeparationOptions
from .song_queue_mss import QueuedSong, Song, SongQueue
from .windowing_mss import WindowPlan

HEADROOM = 1.01  # as in demucs: a peak beyond 1 comes down to 0.99


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


def separate_songs(songs: Iterable[Song], model, processor, options: SeparationOptions) -> Iterator[StemStream]:
    """The stems of each song, in order; take those of one before the next. Windows of several share batches.

    The work is done as blocks are taken, and songs are asked for when a batch has room for them. An error in one song
    is raised where its blocks are taken; the next one can be separated nevertheless.

    Raises:
        ValueError: options that contradict each other, the model or a song, before anything is done.
    """
    options.check(model, processor)
    options = options.as_saved_with(model.config, model.generation_config)
    labels = options.labels(model.config)

    def layout(song: Song) -> WindowPlan:
        return processor.window_layout(song.num_samples, song.sampling_rate, options.window_s, options.overlap)

    estimator = WindowEstimator(model, processor, options)
    queue = SongQueue(songs, estimator, layout, options.progress_callback)
    for queued in queue:
        song = queued.song
        yield StemStream(
            labels=labels,
            sampling_rate=song.sampling_rate,
            num_channels=1 if options.output == "generated" else song.num_channels,
            num_samples=song.num_samples,
            blocks=limit_blocks(_stems(queued, queue, estimator), options.clip_mode),
        )


@torch.no_grad()
def _stems(queued: QueuedSong, queue: SongQueue, estimator: WindowEstimator) -> Iterator[dict[str, np.ndarray]]:
    song, options, config = queued.song, estimator.options, estimator.model.config
    estimates = queue.estimates(queued)
    # The first one is waited for here: with it the level of the song is known, and `plan` complete.
    estimates = itertools.chain([next(estimates)], estimates)
    if options.output == "generated":
        audio = (estimate.audio for estimate in estimates)
        blocks = (block[:, None] for block in estimator.processor.stitch_blocks(audio, queued.plan))
    else:
        blocks = filter_windows(
            estimates,
            queued.plan,
            estimator.processor.sampling_rate,
            song.blocks(),
            rest=len(estimator.stems) < len(config.stems),
            token_share=config.token_share,
        )
    for block in blocks:
        yield name_stems(block.cpu().numpy(), estimator.stems, options, config)


def name_stems(block: np.ndarray, generated: list[str], options: SeparationOptions, config) -> dict[str, np.ndarray]:
    """Stems `(S or more, C, n)`, of which the first have the names `generated`, -> those that were asked for, by name.

    With `two_stems` all but the one are summed up: of filtered stems this is the mixture without it.
    """
    labels = options.labels(config)
    if options.two_stems is None:
        return {label: block[generated.index(label)] for label in labels}
    index = generated.index(options.two_stems)
    return dict(zip(labels, (block[index], np.delete(block, index, axis=0).sum(axis=0))))


def limit_blocks(
    blocks: Iterable[dict[str, np.ndarray]], mode: str, folder: str | os.PathLike | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Blocks of the stems of a song, brought into full scale, which integer formats cannot go beyond.

    Args:
        blocks: stems `(C, n)` float32 by name, of the same shape.
        mode: "none" changes nothing. "clamp" cuts at -1 and 1. "rescale" makes the whole song quieter if a peak is
            beyond 1, by one factor for all stems, so that their balance and sum stay (demucs, whose modes these are,
            takes a factor for each stem). It has to hear the whole song first: until then it lies in a temporary file.
        folder: of that file, deleted in any case; the system's folder for temporary files if not given.

    Raises:
        ValueError: another mode.
    """
    if mode not in CLIP_MODES:
        raise ValueError(f"`clip_mode` must be among {list(CLIP_MODES)}, got {mode!r}.")
    if mode == "none":
        yield from blocks
    elif mode == "clamp":
        for block in blocks:
            yield {label: samples.clip(-1, 1) for label, samples in block.items()}
    else:
        yield from _rescaled(blocks, folder)


def _rescaled(blocks, folder) -> Iterator[dict[str, np.ndarray]]:
    peak, shapes, labels = 0.0, [], []
    with tempfile.TemporaryFile(dir=folder) as file:
        for block in blocks:
            labels = list(block)
            stacked = np.stack(list(block.values())).astype(np.float32)
            peak = max(peak, float(np.abs(stacked).max(initial=0)))
            shapes.append(stacked.shape)
            file.write(stacked.tobytes())
        file.seek(0)
        factor = np.float32(1 / (HEADROOM * peak) if peak > 1 else 1)
        for shape in shapes:
            samples = np.frombuffer(file.read(4 * int(np.prod(shape))), dtype=np.float32).reshape(shape)
            yield dict(zip(labels, samples * factor))
