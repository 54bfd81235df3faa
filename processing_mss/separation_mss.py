"""A song in, its stems out: the one path that every separation takes.

    Song -> mono, 48 kHz -> level
                         -> windows -> WindowSeparator -> estimates -+-> cross-faded (`stitch_blocks`), or
    Song ------------------------------------------------------------+-> masks and Wiener filter (`filter_windows`)

Every arrow is an iterator of blocks that takes what it needs from the one before. A song of up to half an hour is
decoded once and resampled once, and kept. A longer one is decoded again for its level, for its windows and for the
filter.
"""

import itertools
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from transformers.feature_extraction_utils import BatchFeature
from transformers.utils import logging

from .audio_reader_mss import KEPT_S, AudioReader
from .audio_source_mss import as_waveform, check_layout
from .filtering_mss import WindowEstimate, filter_windows
from .options_mss import CLIP_MODES, SeparationOptions
from .windowing_mss import WindowPlan, cut_windows

logger = logging.get_logger(__name__)

READ_SAMPLES = 2**18  # of a block: 6 s at 44.1 kHz
SILENT_PEAK = 1e-6  # a window below it, 100 dB below the level of a song, holds nothing to separate
DEFAULT_TOP_P = 0.9  # of candidates, where neither the call nor the model limits what is sampled
MEMORY_SHARE = 0.8  # of a GPU's free memory; the rest is for kernels' workspaces and fragmentation
MAX_WINDOWS = 128  # at once: more do not make a GPU faster
CPU_WINDOWS = 16  # a CPU is busy with that, and even the paper's model in float32 needs 4 GB for it
HEADROOM = 1.01  # as in demucs: a peak beyond 1 comes down to 0.99


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
    # Reading the layout here finds a wrong window or overlap before anything is generated.
    plan = processor.window_layout(song.num_samples, song.sampling_rate, options.window_s, options.overlap)
    return StemStream(
        labels=options.labels(model.config),
        sampling_rate=song.sampling_rate,
        num_channels=1 if options.output == "generated" else song.num_channels,
        num_samples=song.num_samples,
        blocks=limit_blocks(_separate(song, model, processor, options, plan), options.clip_mode),
    )


@torch.no_grad()
def _separate(
    song: Song, model, processor, options: SeparationOptions, plan: WindowPlan
) -> Iterator[dict[str, np.ndarray]]:
    def read_mono() -> Iterator[torch.Tensor]:
        return processor.mono_blocks(song.blocks(), song.sampling_rate)

    is_short = song.is_kept and song.num_samples <= KEPT_S * song.sampling_rate
    mono = list(read_mono()) if is_short else None  # resampled once
    plan = replace(plan, gain=processor.input_gain(mean_square(mono or read_mono())))
    scaled = (block * plan.gain for block in mono or read_mono())
    separator = WindowSeparator(model, processor, options)
    estimates = separator(cut_windows(scaled, plan.starts, plan.window), plan.num_windows)
    if options.output == "generated":
        audio = (estimate.audio for estimate in estimates)
        blocks = (block[:, None] for block in processor.stitch_blocks(audio, plan))
    else:
        blocks = filter_windows(
            estimates,
            plan,
            processor.sampling_rate,
            song.blocks(),
            rest=len(separator.stems) < len(model.config.stems),
            token_share=model.config.token_share,
        )
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


class WindowSeparator:
    """From windows of the mixture to estimates of its stems, in batches that fit into memory.

    Args:
        model, processor: of the pipeline.
        options: checked and complete (`as_saved_with`).
    """

    def __init__(self, model, processor, options: SeparationOptions):
        self.model, self.processor, self.options = model, processor, options
        self.stems = options.generated_stems(model.config)
        self.sampling = {
            "do_sample": options.do_sample,
            "temperature": options.temperature,
            "top_k": options.top_k,
            "top_p": options.top_p,
        }
        model_samples = bool(model.generation_config.do_sample)
        if options.num_candidates > 1:
            self.sampling["do_sample"] = True
            if not model_samples and (options.temperature, options.top_k, options.top_p) == (None, None, None):
                self.sampling["top_p"] = DEFAULT_TOP_P

    def __call__(self, windows: Iterable[torch.Tensor], num_windows: int) -> Iterator[WindowEstimate]:
        """Windows `(T,)` mono at the model's rate and level -> what `estimate` says of each.

        Windows are taken as needed, a batch at a time. A batch that memory does not hold is halved, and those after it.

        Args:
            num_windows: in all, to report progress.

        Raises:
            RuntimeError: a single window does not fit into memory.
        """
        windows, waiting, done = iter(windows), [], 0
        batch_size = self.options.batch_size or self._fitting_batch_size()
        while True:
            waiting += itertools.islice(windows, max(batch_size - len(waiting), 0))
            if not waiting:
                return
            batch = torch.stack(waiting[:batch_size])
            try:
                estimates = self.estimate(batch, done, num_windows)
            except torch.OutOfMemoryError as error:
                if len(batch) == 1:
                    raise RuntimeError(
                        f"Out of memory with one window of {batch.shape[-1] / self.processor.sampling_rate:.2f} s and "
                        f"{self.options.num_candidates} candidate(s) of it: use fewer candidates, a shorter window_s, "
                        f"a smaller dtype or another device ({error})."
                    ) from error
                batch_size = len(batch) // 2
                logger.warning(f"Out of memory with {len(batch)} windows at once: going on with {batch_size}.")
                continue
            yield from estimates
            done += len(batch)
            waiting = waiting[len(batch) :]

    def _fitting_batch_size(self) -> int:
        """Windows that fit into memory with all their candidates, at least 1."""
        config = self.model.config
        num_tracks = 1 + max(map(list(config.stems).index, self.stems))
        window_samples = self.processor.window_samples(self.options.window_s)
        needed = window_bytes(config, window_samples, num_tracks, self.model.dtype.itemsize)
        return max(1, fitting_windows(self.model.device, needed) // self.options.num_candidates)

    def estimate(self, batch: torch.Tensor, first: int, num_windows: int) -> list[WindowEstimate]:
        """Estimates of windows `(B, T)`, on the model's device: masks, audio `(S, T)` float32, or both; N candidates to
        be averaged come as `(N, S, T)`.

        Args:
            first: index of the first window in the song. Seeds depend on it, so batches of any size give the same
                stems, and so does the progress that is reported.
        """
        rows = batch.to(self.model.device)
        masks = audio = [None] * len(batch)
        if self.options.output != "generated" and self.model.config.mask_head:
            masks = self._masks(rows)
        if self.options.output != "masked":
            audio = self._generate(rows, first, num_windows)
        elif self.options.progress_callback is not None:
            self.options.progress_callback(first + len(batch), num_windows)
        return [WindowEstimate(batch.shape[-1], *estimate) for estimate in zip(audio, masks)]

    def _masks(self, rows: torch.Tensor) -> torch.Tensor:
        """Windows `(B, T)` -> masks `(B, S, L, M)` of the stems, and of the rest if some are not generated."""
        masks = self.model.masks(**self._features(rows))
        self._check_finite(masks)
        names = list(self.model.config.stems)
        known = masks[:, [names.index(stem) for stem in self.stems]]
        if len(self.stems) == len(names):
            return known
        return torch.cat((known, 1 - known.sum(dim=1, keepdim=True)), dim=1)

    def _generate(self, rows: torch.Tensor, first: int, num_windows: int) -> torch.Tensor:
        """Windows `(B, T)` -> `(B, S, T)`, or `(B, N, S, T)`. Windows that are silent have silent stems, whatever the
        model says."""
        num_candidates, num_rows, seed = self.options.num_candidates, len(rows), self.options.seed

        def on_step(done: int, total: int):
            if self.options.progress_callback is not None:
                self.options.progress_callback(first * total + done * num_rows, num_windows * total)

        generated = self.model.generate(
            **self._features(rows),
            stems=self.stems,
            seed=None if seed is None else self.model.derive_seeds(seed, range(first, first + num_rows)),
            num_return_sequences=num_candidates,
            output_latents=self.options.uses_averages,
            step_callback=on_step,
            **self.sampling,
        )
        if self.options.uses_averages:
            latents = generated.acoustic_latents.flatten(0, 1), generated.semantic_latents.flatten(0, 1)
            stems = self.model.codec.decode_latents(*latents).audio_values.unflatten(0, generated.codes.shape[:2])
        else:
            stems = self.model.decode_codes(generated, self.options.num_codebooks)
        self._check_finite(stems)
        audible = (rows.abs().amax(dim=-1) > SILENT_PEAK)[:, None, None, None]
        stems = torch.where(audible, stems.float().unflatten(0, (num_rows, num_candidates)), 0)
        return stems if num_candidates > 1 else stems[:, 0]

    def _features(self, rows: torch.Tensor) -> BatchFeature:
        return self.processor.feature_extractor(rows[:, None], sampling_rate=self.processor.sampling_rate)

    def _check_finite(self, values: torch.Tensor) -> None:
        if not values.isfinite().all():
            raise ValueError(f"The model gives NaN or infinity in {self.model.dtype}: use bfloat16 or float32.")


def window_bytes(config, window_samples: int, num_stems: int, element_size: int) -> int:
    """Memory in bytes that generating one window takes, beside the weights.

    (2 * layers * kv_heads * head_dim * positions + P * (4 * hidden + 3 * intermediate)) * element_size
    + 64 * stems * samples: the key-value cache over all positions, activations while the P positions of the prefix are
    read, and the codec's decoder, which at its widest holds 16 floats per sample of each stem.

    Args:
        config: the model's.
        window_samples: at the model's rate.
        num_stems: tracks up to the last one that is generated.
        element_size: of the weights, in bytes.
    """
    decoder = config.decoder_config
    num_frames = window_samples // config.codec_config.hop_length
    prefix = num_frames * config.prefix_frames_per_code_frame // config.prefix_stride
    tracks = 1 if config.tracks_per_position > 1 else num_stems
    positions = 1 + prefix + tracks * (2 * num_frames + 1)
    head_dim = decoder.hidden_size // decoder.num_attention_heads
    cache = 2 * decoder.num_hidden_layers * decoder.num_key_value_heads * head_dim * positions
    activations = prefix * (4 * decoder.hidden_size + 3 * decoder.intermediate_size)
    return (cache + activations) * element_size + 64 * num_stems * window_samples


def fitting_windows(device: torch.device, bytes_per_window: int) -> int:
    """Windows that fit into the free memory of a CUDA device, from 1 to `MAX_WINDOWS`; elsewhere `CPU_WINDOWS`."""
    if device.type != "cuda":
        return CPU_WINDOWS
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # held by torch, unused
    return max(1, min(int(MEMORY_SHARE * free / bytes_per_window), MAX_WINDOWS))


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
