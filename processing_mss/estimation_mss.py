"""From windows of the mixture to estimates of its stems, a batch at a time: what the model is asked, and how much of it
at once."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers.utils import ModelOutput

from .filtering_mss import WindowEstimate
from .options_mss import SeparationOptions

SILENT_PEAK = 1e-6  # a window below it, 100 dB below the level of a song, holds nothing to separate
DEFAULT_TOP_P = 0.9  # of candidates, where neither the call nor the model limits what is sampled
MEMORY_SHARE = 0.8  # of a GPU's free memory; the rest is for kernels' workspaces and fragmentation
MAX_WINDOWS = 128  # at once: more do not make a GPU faster
# A CPU works best on what its caches hold; measured, docs/performance.md.
CPU_ENCODER_WINDOWS = 4  # whose planes are large
CPU_CODEC_TRACKS = 16
CPU_WINDOWS = 32  # of the language model, which reads all its weights for every position of them
CPU_BYTES = 4e9  # for these windows, which is less of them at the paper's size


class WindowEstimator:
    """What a model knows of windows, for the options of a call.

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
        on_gpu = model.device.type == "cuda"
        self.aside = torch.cuda.Stream(model.device) if on_gpu else None  # the codec's, beside the language model

    def fitting_batch_size(self) -> int:
        """Windows that fit into memory with all their candidates, at least 1."""
        config, device = self.model.config, self.model.device
        if self.options.output == "masked" and device.type != "cuda":
            return CPU_ENCODER_WINDOWS
        num_tracks = 1 + max(map(list(config.stems).index, self.stems))
        window_samples = self.processor.window_samples(self.options.window_s)
        needed = window_bytes(config, window_samples, num_tracks, self.model.dtype.itemsize)
        return max(1, fitting_windows(device, needed) // self.options.num_candidates)

    def estimate(
        self, batch: torch.Tensor, indices: Sequence[int], on_step: Callable[[int, int], None] | None = None
    ) -> list[WindowEstimate]:
        """Estimates of windows `(B, T)`, on the model's device: masks, audio `(S, T)` float32, or both; N candidates to
        be averaged come as `(N, S, T)`.

        Args:
            batch: mono, at the model's rate and level.
            indices: of the windows in their songs. Seeds depend on them, so batches of any size, of one song or of
                several, give the same stems.
            on_step: called with (steps done, steps in all) of this batch.
        """
        rows = batch.to(self.model.device, non_blocking=True)
        masks = audio = [None] * len(batch)
        encoded = self.encode(self.features(rows))
        if self.options.output == "masked":
            masks = self._known_masks(encoded)
            if on_step is not None:
                on_step(1, 1)
        else:
            if self.options.output != "generated" and self.model.config.mask_head:
                masks = self._known_masks(self.model.masks(encoder_outputs=encoded))
            audio = self.generate(encoded, indices, on_step)
            # Windows that are silent have silent stems, whatever the model says.
            audible = (rows.abs().amax(dim=-1) > SILENT_PEAK)[:, None, None, None]
            audio = torch.where(audible, audio, 0)
            audio = audio if self.options.num_candidates > 1 else audio[:, 0]
        return [WindowEstimate(batch.shape[-1], *estimate) for estimate in zip(audio, masks)]

    def features(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """Windows `(B, T)` -> what the encoder reads."""
        return self.processor.feature_extractor(rows[:, None], sampling_rate=self.processor.sampling_rate)

    def encode(self, features: dict[str, torch.Tensor]) -> torch.Tensor | ModelOutput:
        """The masks alone, for `masked`, or all that the encoder makes of the mixture; in parts, on a CPU."""
        read = self.model.masks if self.options.output == "masked" else self.model.encode_mixture
        size = len(next(iter(features.values()))) if self.aside is not None else CPU_ENCODER_WINDOWS
        parts = [read(**dict(zip(features, part))) for part in zip(*(rows.split(size) for rows in features.values()))]
        if isinstance(parts[0], torch.Tensor):
            return torch.cat(parts)
        return type(parts[0])(**{name: torch.cat([part[name] for part in parts]) for name in parts[0]})

    def _known_masks(self, masks: torch.Tensor) -> torch.Tensor:
        """Masks of all stems -> `(B, S, L, M)` of those of the estimate, and of the rest if some are left out."""
        names = list(self.model.config.stems)
        known = masks[:, [names.index(stem) for stem in self.stems]]
        if len(self.stems) == len(names):
            return known
        return torch.cat((known, 1 - known.sum(dim=1, keepdim=True)), dim=1)

    def generate(
        self, mixture: ModelOutput, indices: Sequence[int], on_step: Callable[[int, int], None] | None
    ) -> torch.Tensor:
        """What the encoder made of B windows -> `(B, N, S, T)` float32. A track is decoded as soon as it is written."""
        seed, audio = self.options.seed, {}

        def on_track(stem: str, track: ModelOutput):
            with self._aside(track):
                audio[stem] = self.decode(track)

        self.model.generate(
            encoder_outputs=mixture,
            stems=self.stems,
            seed=None if seed is None else self.model.derive_seeds(seed, indices),
            num_return_sequences=self.options.num_candidates,
            output_latents=self.options.uses_averages,
            step_callback=on_step,
            track_callback=on_track,
            **self.sampling,
        )
        if self.aside is not None:
            torch.cuda.current_stream(self.model.device).wait_stream(self.aside)
        stems = torch.stack([audio[stem] for stem in self.stems], dim=1).float()
        return stems.unflatten(0, (len(indices), self.options.num_candidates))

    def decode(self, track: ModelOutput) -> torch.Tensor:
        """One track of N candidates of B windows -> `(B * N, T)`."""
        size = len(track.codes) if self.aside is not None else CPU_CODEC_TRACKS
        if self.options.uses_averages:
            latents = zip(track.acoustic_latents[:, 0].split(size), track.semantic_latents[:, 0].split(size))
            return torch.cat([self.model.codec.decode_latents(*part).audio_values for part in latents])
        parts = track.codes.split(size)
        return torch.cat([self.model.decode_codes(part, self.options.num_codebooks)[:, 0] for part in parts])

    @contextmanager
    def _aside(self, track: ModelOutput) -> Iterator[None]:
        """On a GPU, what is done inside waits for the track, and not the language model for it."""
        if self.aside is None:
            yield
            return
        self.aside.wait_stream(torch.cuda.current_stream(self.model.device))
        with torch.cuda.stream(self.aside):
            for values in track.values():
                values.record_stream(self.aside)  # its memory is not given to others before we have read it
            yield

    def check_finite(self, estimate: WindowEstimate) -> None:
        """Not done by `estimate`: a song has nothing to do with the others in its batch. Raises ValueError."""
        if not all(values.isfinite().all() for values in (estimate.audio, estimate.masks) if values is not None):
            raise ValueError(f"The model gives NaN or infinity in {self.model.dtype}: use bfloat16 or float32.")


def window_bytes(config, window_samples: int, num_stems: int, element_size: int) -> int:
    """Memory in bytes that generating one window takes, beside the weights.

    (2 * layers * kv_heads * head_dim * positions + P * (4 * hidden + 3 * intermediate)) * element_size
    + (64 + 4 * stems) * samples: the key-value cache over all positions, activations while the P positions of the
    prefix are read, the codec's decoder, which at its widest holds 16 floats per sample of a track, and what it gave.

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
    return (cache + activations) * element_size + (64 + 4 * num_stems) * window_samples


def fitting_windows(device: torch.device, bytes_per_window: int) -> int:
    """Windows that fit into the free memory of a CUDA device, from 1 to `MAX_WINDOWS`; elsewhere into `CPU_BYTES`, up
    to `CPU_WINDOWS`."""
    if device.type != "cuda":
        return max(1, min(int(CPU_BYTES / bytes_per_window), CPU_WINDOWS))
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # held by torch, unused
    return max(1, min(int(MEMORY_SHARE * free / bytes_per_window), MAX_WINDOWS))


def fitting_dtype(device: torch.device | str) -> torch.dtype:
    """bfloat16 where the device multiplies matrices of it in hardware (GPUs since Ampere, CPUs with AMX), else float32.

    What decides codes, and the codec's last layers, stay in float32 when a checkpoint is loaded in bfloat16. The
    difference is measured in docs/performance.md.
    """
    device = torch.device(device)
    if device.type == "cuda":
        with torch.cuda.device(device):
            is_fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # torch 2.11 may not tell yet what a CPU can do.
        is_fast = device.type == "cpu" and getattr(torch.cpu, "get_capabilities", dict)().get("amx_bf16", False)
    return torch.bfloat16 if is_fast else torch.float32
