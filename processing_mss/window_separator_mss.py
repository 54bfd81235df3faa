"""From windows of the mixture to estimates of its stems, in batches that fit into memory."""

import itertools
from collections.abc import Iterable, Iterator

import torch
from transformers.feature_extraction_utils import BatchFeature
from transformers.utils import logging

from .batching_mss import fitting_windows, window_bytes
from .candidates_mss import best_candidates
from .filtering_mss import WindowEstimate
from .options_mss import SeparationOptions

logger = logging.get_logger(__name__)

SILENT_PEAK = 1e-6  # a window below it, 100 dB below the level of a song, holds nothing to separate
DEFAULT_TOP_P = 0.9  # of candidates, where neither the call nor the model says how to draw


class WindowSeparator:
    """Estimates the stems of windows.

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
        batch_size = self.options.batch_size
        while True:
            waiting += itertools.islice(windows, max((batch_size or 1) - len(waiting), 0))
            if not waiting:
                return
            if batch_size is None:
                batch_size = self.fitting_batch_size(waiting[0].shape[-1])
                continue
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

    def fitting_batch_size(self, window_samples: int) -> int:
        """Windows of this length, with all their candidates, that fit into memory; at least 1."""
        config = self.model.config
        num_tracks = 1 + max(map(list(config.stems).index, self.stems))
        element_size = self.model.dtype.itemsize
        rows = fitting_windows(self.model.device, window_bytes(config, window_samples, num_tracks, element_size))
        return max(1, rows // self.options.num_candidates)

    def estimate(self, batch: torch.Tensor, first: int, num_windows: int) -> list[WindowEstimate]:
        """Estimates of windows `(B, T)`, on the model's device: masks, audio `(S, T)` float32, or both; N candidates to
        be averaged come as `(N, S, T)`.

        Args:
            first: index of the first window in the song: it says which noise is drawn, so that a song's stems are the
                same in batches of any size, and how far the song is done.
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
        num_candidates, num_rows = self.options.num_candidates, len(rows)

        def on_step(done: int, total: int):
            if self.options.progress_callback is not None:
                self.options.progress_callback(first * total + done * num_rows, num_windows * total)

        generated = self.model.generate(
            **self._features(rows),
            stems=self.stems,
            seed=self._seeds(range(first, first + num_rows)),
            num_return_sequences=num_candidates,
            output_latents=self.options.uses_averages,
            step_callback=on_step,
            **self.sampling,
        )
        stems = self._decode(generated).float()
        self._check_finite(stems)
        audible = (rows.abs().amax(dim=-1) > SILENT_PEAK)[:, None, None, None]
        stems = torch.where(audible, stems.unflatten(0, (num_rows, num_candidates)), 0)
        if self.options.keeps_best:
            return best_candidates(stems, rows, self.processor.sampling_rate)
        return stems if num_candidates > 1 else stems[:, 0]

    def _features(self, rows: torch.Tensor) -> BatchFeature:
        return self.processor.feature_extractor(rows[:, None], sampling_rate=self.processor.sampling_rate)

    def _check_finite(self, values: torch.Tensor) -> None:
        if not values.isfinite().all():
            raise ValueError(f"The model gives NaN or infinity in {self.model.dtype}: use bfloat16 or float32.")

    def _decode(self, generated) -> torch.Tensor:
        """What `generate` returned -> waveforms `(rows, S, T)`."""
        if not self.options.uses_averages:
            return self.model.decode_codes(generated, self.options.num_codebooks)
        latents = generated.acoustic_latents.flatten(0, 1), generated.semantic_latents.flatten(0, 1)
        return self.model.codec.decode_latents(*latents).audio_values.unflatten(0, generated.codes.shape[:2])

    def _seeds(self, windows: range) -> list[int] | None:
        """A seed for every window."""
        return None if self.options.seed is None else self.model.derive_seeds(self.options.seed, windows)
