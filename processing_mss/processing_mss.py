"""The processor: a song into windows of features, codes into audio, windows of audio back into a song.

It holds no weights: what needs the codec gets it as an argument.
"""

import math

import numpy as np
import torch
from transformers import ProcessorMixin
from transformers.feature_extraction_utils import BatchFeature

from .resampling_mss import resample
from .windowing_mss import overlap_add, split_windows, window_starts

MAX_CHANNELS = 32  # more "channels" than this are samples: the array is transposed
RATE_LIMITS = (1000, 1_000_000)  # hertz (Hz)
INTEGER_RANGES = {"int16": (0, 2**15), "int32": (0, 2**31), "uint8": (2**7, 2**7)}  # dtype: (centre, full scale)


class MssProcessor(ProcessorMixin):
    r"""
    Constructs the processor of a separator.

    Args:
        feature_extractor ([`MssFeatureExtractor`]): features of one window.
        stems (`list[str]`): the tracks of the model's configuration, in its order.
        window_s (`float`): length of a window in seconds; the model was trained on this length.
        overlap (`float`): share of a window that overlaps with the next and is cross-faded, from 0 to below 1.
        code_hop_length (`int`): samples per code frame; a window is a whole number of them.
        input_rms (`float`): level at which the model hears the whole song (root mean square of the mono mixture).
    """

    def __init__(
        self,
        feature_extractor,
        stems: list[str] = ("vocals", "drums", "bass", "other"),
        window_s: float = 4.0,
        overlap: float = 0.1,
        code_hop_length: int = 3840,
        input_rms: float = 0.1,
        **kwargs,
    ):
        self.stems = list(stems)
        self.window_s = window_s
        self.overlap = overlap
        self.code_hop_length = code_hop_length
        self.input_rms = input_rms
        super().__init__(feature_extractor, **kwargs)

    @property
    def sampling_rate(self) -> int:
        """Rate in hertz (Hz) at which the model works."""
        return self.feature_extractor.sampling_rate

    def window_samples(self, window_s: float | None = None) -> int:
        """Samples of a window at the model's rate, a whole number of code frames."""
        window_s = self.window_s if window_s is None else window_s
        frames = round(window_s * self.sampling_rate / self.code_hop_length) if math.isfinite(window_s) else 0
        if frames < 1:
            raise ValueError(
                f"`window_s` must be at least {self.code_hop_length / self.sampling_rate} s, got {window_s}."
            )
        return frames * self.code_hop_length

    def __call__(
        self,
        mixture: np.ndarray | torch.Tensor,
        sampling_rate: int,
        window_s: float | None = None,
        overlap: float | None = None,
    ) -> BatchFeature:
        """Prepare a song.

        It is mixed to mono, resampled, scaled to `input_rms` and cut into windows.

        Args:
            mixture: `(samples,)` or `(channels, samples)`, floating point with full scale 1, or integers.
            sampling_rate: in hertz (Hz), any.
            window_s, overlap: replace the processor's own.

        Returns:
            `input_features` `(W, 200, 120)` (or `input_values`), for the model, and what `stitch` needs:
            `window_starts` `(W,)` in samples at the model's rate, `overlap_samples`, `gain` (the factor applied),
            `num_samples` and `sampling_rate` of the mixture.

        Raises:
            ValueError: no samples, NaN or infinity, wrong shape, rate or overlap.
        """
        mixture = self.check_mixture(mixture, sampling_rate)
        overlap = self.overlap if overlap is None else overlap
        if not 0 <= overlap < 1:
            raise ValueError(f"`overlap` is a share of the window, from 0 to below 1, got {overlap}.")
        mono = resample(mixture.mean(dim=0), sampling_rate, self.sampling_rate)
        rms = mono.double().square().mean().sqrt()
        gain = torch.where(rms > 1e-8, self.input_rms / rms.clamp(min=1e-8), 1.0).float()  # silence stays silence
        window = self.window_samples(window_s)
        overlap_samples = round(overlap * window)
        starts = window_starts(len(mono), window, overlap_samples)
        windows = split_windows(mono * gain, starts, window)
        inputs = self.feature_extractor(windows, sampling_rate=self.sampling_rate)
        inputs["window_starts"] = torch.tensor(starts)
        inputs["overlap_samples"] = overlap_samples
        inputs["gain"] = gain
        inputs["num_samples"] = mixture.shape[-1]
        inputs["sampling_rate"] = sampling_rate
        return inputs

    def check_mixture(self, mixture: np.ndarray | torch.Tensor, sampling_rate: int) -> torch.Tensor:
        """Any array of audio -> `(channels, samples)` float32, or a ValueError that says what is wrong."""
        mixture = _as_float(mixture)
        if mixture.dim() not in (1, 2) or mixture.shape[-1] == 0 or mixture.shape[0] == 0:
            raise ValueError(
                f"Audio must have shape (samples,) or (channels, samples) and hold samples, got {tuple(mixture.shape)}."
            )
        mixture = mixture[None] if mixture.dim() == 1 else mixture
        if len(mixture) > MAX_CHANNELS:
            raise ValueError(
                f"Audio of shape {tuple(mixture.shape)} has more than {MAX_CHANNELS} channels; the layout is "
                "(channels, samples): is it transposed?"
            )
        low, high = RATE_LIMITS
        if not isinstance(sampling_rate, (int, np.integer)) or not low <= sampling_rate <= high:
            raise ValueError(
                f"`sampling_rate` must be a whole number of hertz (Hz) from {low} to {high}, got {sampling_rate!r}."
            )
        if not mixture.isfinite().all():
            raise ValueError("Audio must be finite, got NaN or infinity in it.")
        return mixture

    def interleave(self, acoustic_codes, semantic_codes):
        """Codes of both paths, `(..., Q, F)` each, -> a0 s0 a1 s1 ... `(..., 2 F, Q)`. Tensors or arrays."""
        if acoustic_codes.shape != semantic_codes.shape or acoustic_codes.ndim < 2:
            raise ValueError(
                "Acoustic and semantic codes must have one shape (..., codebooks, frames), got "
                f"{tuple(acoustic_codes.shape)} and {tuple(semantic_codes.shape)}."
            )
        as_numpy = isinstance(acoustic_codes, np.ndarray)
        pair = torch.stack((torch.as_tensor(acoustic_codes), torch.as_tensor(semantic_codes)), dim=-1)
        codes = pair.flatten(-2).transpose(-1, -2)  # (..., Q, F, 2) -> (..., Q, 2 F) -> (..., 2 F, Q)
        return codes.numpy() if as_numpy else codes

    def deinterleave(self, codes):
        """The inverse of `interleave`: `(..., 2 F, Q)` -> acoustic, semantic codes `(..., Q, F)`."""
        if codes.ndim < 2 or codes.shape[-2] % 2:
            raise ValueError(f"Codes must have shape (..., 2 x frames, codebooks), got {tuple(codes.shape)}.")
        acoustic, semantic = codes[..., 0::2, :], codes[..., 1::2, :]
        return acoustic.swapaxes(-1, -2), semantic.swapaxes(-1, -2)

    @torch.no_grad()
    def batch_decode(self, codes: torch.Tensor, codec) -> torch.Tensor:
        """Generated codes `(W, stems, 2 F, Q)` -> waveforms `(W, stems, T)` by the codec that is passed in."""
        acoustic, semantic = self.deinterleave(codes)
        audio = codec.decode(acoustic.flatten(0, 1), semantic.flatten(0, 1)).audio_values
        return audio.unflatten(0, codes.shape[:2])

    def stitch(
        self,
        windows: torch.Tensor,
        window_starts: torch.Tensor,
        overlap_samples: int,
        gain: torch.Tensor,
        num_samples: int,
        sampling_rate: int,
    ) -> torch.Tensor:
        """Windows of stems at the model's rate `(W, stems, T)` -> stems of the song `(stems, num_samples)`.

        Cross-fades the windows, undoes the gain, and returns to the rate and length of the mixture; the other
        arguments are what `__call__` returned.
        """
        starts = window_starts.tolist()
        length = -(-num_samples * self.sampling_rate // sampling_rate)  # what `resample` gave
        song = overlap_add(windows, starts, overlap_samples, length) / gain
        return resample(song, self.sampling_rate, sampling_rate)[..., :num_samples]


def _as_float(audio: np.ndarray | torch.Tensor | list) -> torch.Tensor:
    """Floating point as it is, PCM integers with full scale 1; anything else is a ValueError."""
    if not isinstance(audio, torch.Tensor):
        array = np.asarray(audio)
        if array.dtype.name not in (*INTEGER_RANGES, "float16", "float32", "float64"):
            raise ValueError(
                f"Audio must be floating point, or integers of type {list(INTEGER_RANGES)}, got {array.dtype}."
            )
        audio = torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))
    name = str(audio.dtype).removeprefix("torch.")
    if name in INTEGER_RANGES:
        centre, full_scale = INTEGER_RANGES[name]
        return ((audio.double() - centre) / full_scale).float()
    if not audio.is_floating_point():
        raise ValueError(
            f"Audio must be floating point, or integers of type {list(INTEGER_RANGES)}, got {audio.dtype}."
        )
    return audio.detach().float()


__all__ = ["MssProcessor"]
