"""The processor: a song into windows of features, and windows of stems back into a song. It holds no weights."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import torch
from transformers import ProcessorMixin
from transformers.feature_extraction_utils import BatchFeature
from transformers.utils import logging

from .audio_source_mss import as_waveform
from .feature_extraction_mss import require_tensor_type, require_whole_number
from .resampling_mss import StreamingResampler, resample
from .windowing_mss import WindowPlan, cross_fade, split_windows, window_starts

logger = logging.get_logger(__name__)

SILENT_RMS = 1e-8  # a song below this level (160 dB below full scale) is silent: no gain makes it louder


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

    Raises:
        ValueError: values that none of these can have.
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
        for name, value in (("window_s", window_s), ("input_rms", input_rms)):
            if not is_number(value) or not 0 < value < math.inf:
                raise ValueError(f"`{name}` must be a positive number, got {value!r}.")
        require_overlap(overlap)
        require_whole_number("code_hop_length", code_hop_length)
        names = stems if isinstance(stems, (list, tuple)) and all(isinstance(stem, str) for stem in stems) else ()
        if not names or not all(names) or len(set(names)) < len(names):
            raise ValueError(f"`stems` must be a list that names at least one track, each once, got {stems!r}.")
        self.stems = list(stems)
        self.window_s = window_s
        self.overlap = overlap
        self.code_hop_length = code_hop_length
        self.input_rms = input_rms
        super().__init__(feature_extractor, **kwargs)
        self.window_samples()  # raises for less than a code frame

    @property
    def sampling_rate(self) -> int:
        """Rate in hertz (Hz) at which the model works."""
        return self.feature_extractor.sampling_rate

    def check_model(self, config) -> None:
        """Raise ValueError unless this is the processor of models with this configuration (an `MssConfig`)."""
        if config.model_type != "mss":
            raise ValueError(f"Separation needs a model of `model_type` 'mss', got one of {config.model_type!r}.")
        extractor, codec = self.feature_extractor, config.codec_config
        hears_waveform = config.conditional_encoder == "hubert"
        pairs = {
            "the stems": (self.stems, list(config.stems)),
            "the sampling rate in hertz (Hz)": (self.sampling_rate, codec.sampling_rate),
            "the samples of a code frame": (self.code_hop_length, codec.hop_length),
            "what the model hears": (extractor.features, "waveform" if hears_waveform else "log_mel"),
        }
        if hears_waveform:
            pairs["the rate of its input in hertz (Hz)"] = (extractor.waveform_rate, codec.semantic_sampling_rate)
        else:
            frames = self.code_hop_length / extractor.hop_length
            pairs["the mel bands"] = (extractor.feature_size, config.encoder_config.num_mel_bins)
            pairs["the frames of features per code frame"] = (frames, config.prefix_frames_per_code_frame)
        for what, (ours, theirs) in pairs.items():
            if ours != theirs:
                raise ValueError(
                    f"Processor and model do not belong together, {what}: {ours!r} in the processor, {theirs!r} in the "
                    "model; load both from one checkpoint, as it was saved."
                )

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
        audio: np.ndarray | torch.Tensor | list,
        sampling_rate: int | None = None,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """A song, or several, as the model hears them: what `generate`, `masks` and `forward` take.

        A song is mixed to mono, resampled, scaled to `input_rms` and cut into windows, as `plan` says.

        ```python
        >>> codes = model.generate(**processor(song, sampling_rate=44100))
        >>> stems = processor.stitch(model.decode_codes(codes), processor.plan(song, sampling_rate=44100))
        ```

        Args:
            audio: a song `(samples,)` or `(channels, samples)`, floating point with full scale 1, or integers; or a
                list of songs, whose windows follow one another.
            sampling_rate: in hertz (Hz), any; if not given, the model's.
            return_tensors: "pt", torch tensors (also if not given), or "np", arrays.

        Returns:
            `input_features` `(W, 200, 120)` for windows of 4 s, or `input_values`.

        Raises:
            ValueError: no samples, NaN or infinity, or a wrong shape or rate.
        """
        require_tensor_type(return_tensors)
        windows = []
        for song, rate in self._songs(audio, sampling_rate):
            mono = self._mono(song, rate)
            plan = self._plan_of(mono, song.shape[-1], rate)
            windows.append(split_windows(mono * plan.gain, plan.starts, plan.window))
        return self.feature_extractor(torch.cat(windows)[:, None], self.sampling_rate, return_tensors)

    def plan(
        self, audio: np.ndarray | torch.Tensor | list, sampling_rate: int | None = None
    ) -> WindowPlan | list[WindowPlan]:
        """How a song is cut and scaled, for `stitch`; for a list of songs a list. Arguments and errors as in a call."""
        plans = [
            self._plan_of(self._mono(song, rate), song.shape[-1], rate)
            for song, rate in self._songs(audio, sampling_rate)
        ]
        return plans if is_list_of_songs(audio) else plans[0]

    def _songs(self, audio, sampling_rate: int | None) -> list[tuple[torch.Tensor, int]]:
        """Every song `(channels, samples)` and its rate."""
        if sampling_rate is None:
            sampling_rate = self.sampling_rate
            logger.warning(f"No `sampling_rate` given with the audio: {sampling_rate} Hz is assumed.")
        songs = audio if is_list_of_songs(audio) else [audio]
        if songs is audio and any(isinstance(song, (list, tuple)) for song in songs):
            raise ValueError("Lists of lists can be channels or songs: pass an array for each song.")
        return [(as_waveform(song, sampling_rate), sampling_rate) for song in songs]

    def _mono(self, song: torch.Tensor, sampling_rate: int) -> torch.Tensor:
        return resample(song.mean(dim=0), sampling_rate, self.sampling_rate)

    def _plan_of(self, mono: torch.Tensor, num_samples: int, sampling_rate: int) -> WindowPlan:
        gain = self.input_gain(mono.double().square().mean().item())
        return replace(self.window_layout(num_samples, sampling_rate), gain=gain)

    def window_layout(
        self, num_samples: int, sampling_rate: int, window_s: float | None = None, overlap: float | None = None
    ) -> WindowPlan:
        """The plan of a song of which the level is not known yet: its gain is 1.

        Args:
            num_samples, sampling_rate: of the song.
            window_s, overlap: replace the processor's own.

        Raises:
            ValueError: a window of no code frame, or an overlap that is no share of it.
        """
        overlap = self.overlap if overlap is None else overlap
        require_overlap(overlap)
        window = self.window_samples(window_s)
        overlap_samples = round(overlap * window)
        starts = window_starts(self.model_samples(num_samples, sampling_rate), window, overlap_samples)
        return WindowPlan(starts, window, overlap_samples, 1.0, num_samples, sampling_rate)

    def model_samples(self, num_samples: int, sampling_rate: int) -> int:
        """Length at the model's rate of `num_samples` at `sampling_rate`: what `resample` gives."""
        return -(-num_samples * self.sampling_rate // sampling_rate)

    def input_gain(self, mean_square: float) -> float:
        """Factor that brings a song with this mean square (of its mono mixture) to `input_rms`; 1 for silence."""
        rms = mean_square**0.5
        return self.input_rms / rms if rms > SILENT_RMS else 1.0

    def mono_blocks(self, blocks: Iterable[torch.Tensor], sampling_rate: int) -> Iterator[torch.Tensor]:
        """Blocks of a song `(C, n)` -> mono at the model's rate, `(m,)` each, as they come."""
        resampler = StreamingResampler(sampling_rate, self.sampling_rate)
        for block in blocks:
            yield resampler.push(block.mean(dim=0))
        yield resampler.finish()

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

    def stitch(self, windows: torch.Tensor, plan: WindowPlan | list[WindowPlan]) -> torch.Tensor | list[torch.Tensor]:
        """Windows of stems at the model's rate `(W, stems, T)` -> stems of the song `(stems, num_samples)`.

        With a list of plans, windows of several songs one after another -> a list.

        Cross-fades the windows, undoes the gain, and returns to the rate and length of the song.

        Raises:
            ValueError: other windows than the plan has, such as several candidates of each.
        """
        if isinstance(plan, list) and len(windows) == sum(one.num_windows for one in plan):
            return list(map(self.stitch, windows.split([one.num_windows for one in plan]), plan))
        if isinstance(plan, list):
            raise ValueError(f"The plans have {[one.num_windows for one in plan]} windows, got {len(windows)}.")
        if windows.dim() != 3 or len(windows) != plan.num_windows or windows.shape[-1] != plan.window:
            raise ValueError(
                f"The plan has {plan.num_windows} windows of {plan.window} samples, (windows, stems, samples), got "
                f"shape {tuple(windows.shape)}."
            )
        return torch.cat(list(self.stitch_blocks(windows, plan)), dim=-1)

    def stitch_blocks(self, windows: Iterable[torch.Tensor], plan: WindowPlan) -> Iterator[torch.Tensor]:
        """`stitch` for songs of any length: windows `(stems, T)` as they come -> consecutive pieces `(stems, n)`."""
        resampler = StreamingResampler(self.sampling_rate, plan.sampling_rate)
        missing = plan.num_samples
        length = self.model_samples(plan.num_samples, plan.sampling_rate)
        for samples in cross_fade(windows, plan.starts, plan.overlap, length):
            block = resampler.push(samples / plan.gain)[..., :missing]
            missing -= block.shape[-1]
            yield block
        yield resampler.finish()[..., :missing]


def is_list_of_songs(audio) -> bool:
    """Whether audio is several songs; a list of numbers is one."""
    return isinstance(audio, (list, tuple)) and len(audio) > 0 and not is_number(audio[0])


def is_number(value) -> bool:
    """Whether a value is a number; JSON also gives text and true."""
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


def require_overlap(overlap) -> None:
    """Raise ValueError unless windows can overlap by this share of them."""
    if not is_number(overlap) or not 0 <= overlap < 1:
        raise ValueError(f"`overlap` is a share of the window, from 0 to below 1, got {overlap!r}.")


__all__ = ["MssProcessor"]
