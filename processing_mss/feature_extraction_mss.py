"""Log-mel features of the mixture, as the paper has them (section 3.2), in torch on any device."""

import functools

import numpy as np
import torch
from transformers import SequenceFeatureExtractor
from transformers.audio_utils import mel_filter_bank
from transformers.feature_extraction_utils import BatchFeature
from transformers.utils import logging

from .resampling_mss import resample

logger = logging.get_logger(__name__)

LARGEST = 1_000_000  # of samples, bands and hertz (Hz): the number in a damaged file, not that of a model


def require_whole_number(name: str, value) -> None:
    """Raise ValueError unless `value` is a whole number from 1 to LARGEST."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or not 1 <= value <= LARGEST:
        raise ValueError(f"`{name}` must be a whole number from 1 to {LARGEST}, got {value!r}.")


@functools.lru_cache(maxsize=32)
def mel_filters(n_fft: int, num_mel_bins: int, sampling_rate: int) -> torch.Tensor:
    """HTK triangles from 0 Hz to half the rate, without area normalisation: `(n_fft / 2 + 1, num_mel_bins)` float32."""
    filters = mel_filter_bank(n_fft // 2 + 1, num_mel_bins, 0, sampling_rate / 2, sampling_rate, mel_scale="htk")
    return torch.from_numpy(filters).float()


def _spectrum(waveform: torch.Tensor, n_fft: int, hop_length: int) -> torch.Tensor:
    """`(..., T)` -> complex `(..., T / hop_length, n_fft / 2 + 1)`; frames as `log_mel_spectrogram` describes them."""
    num_samples = waveform.shape[-1]
    if num_samples % hop_length or num_samples < n_fft:
        raise ValueError(f"Need a multiple of {hop_length} samples and at least {n_fft}, got {num_samples}.")
    margin = (n_fft - hop_length) // 2
    padded = torch.nn.functional.pad(waveform.float().reshape(-1, num_samples), (margin, margin), mode="reflect")
    window = torch.hann_window(n_fft, device=waveform.device)
    spectrum = torch.stft(padded, n_fft, hop_length, window=window, center=False, return_complex=True)
    return spectrum.transpose(1, 2).reshape(*waveform.shape[:-1], -1, n_fft // 2 + 1)


def log_mel_spectrogram(
    waveform: torch.Tensor,
    sampling_rate: int = 48000,
    n_fft: int = 2048,
    hop_length: int = 960,
    num_mel_bins: int = 120,
) -> torch.Tensor:
    """log(mel + 1e-10) of the magnitude spectrogram; the one function that the extractor and training use.

    Hann window, HTK mel scale without area normalisation from 0 Hz to half the rate, `(n_fft - hop_length) / 2` samples
    of reflection on both sides: T samples give exactly T / hop_length frames.

    Args:
        waveform: `(..., T)` float; T a multiple of `hop_length`, at least `n_fft`.

    Returns:
        `(..., T / hop_length, num_mel_bins)` float32.

    Raises:
        ValueError: T is too short or no multiple.
    """
    filters = mel_filters(n_fft, num_mel_bins, sampling_rate).to(waveform.device)
    return (_spectrum(waveform, n_fft, hop_length).abs() @ filters + 1e-10).log()


def mel_power_spectrogram(
    waveform: torch.Tensor,
    sampling_rate: int = 48000,
    n_fft: int = 2048,
    hop_length: int = 960,
    num_mel_bins: int = 120,
) -> torch.Tensor:
    """Powers in the bands and frames of `log_mel_spectrogram`: what masks on them are trained by.

    Sums of squared magnitudes, where the other has sums of magnitudes: their ratios are the shares of a stem in the
    energy of a band.

    Args, returns and raises: as `log_mel_spectrogram`.
    """
    filters = mel_filters(n_fft, num_mel_bins, sampling_rate).to(waveform.device)
    spectrum = _spectrum(waveform, n_fft, hop_length)
    return (spectrum.real.square() + spectrum.imag.square()) @ filters


class MssFeatureExtractor(SequenceFeatureExtractor):
    r"""
    Mono windows at 48 kHz -> what the conditional encoder reads. Songs, which have channels, another rate and any
    length, are for `MssProcessor`.

    Args:
        feature_size (`int`): log-mel bands.
        sampling_rate (`int`): rate of the input in hertz (Hz).
        n_fft (`int`), hop_length (`int`): STFT window and stride, in samples.
        features (`str`): `"log_mel"` gives `input_features` `(W, T / hop_length, feature_size)`; `"waveform"` gives
            `input_values` `(W, T / 3)`, resampled to `waveform_rate`, for the HuBERT of ablation A1.
        waveform_rate (`int`): rate of `input_values` in hertz (Hz).

    Raises:
        ValueError: sizes and rates that are no positive whole numbers, or STFT windows that leave samples out.
    """

    model_input_names = ["input_features"]

    def __init__(
        self,
        feature_size: int = 120,
        sampling_rate: int = 48000,
        padding_value: float = 0.0,
        n_fft: int = 2048,
        hop_length: int = 960,
        features: str = "log_mel",
        waveform_rate: int = 16000,
        **kwargs,
    ):
        if features not in ("log_mel", "waveform"):
            raise ValueError(f"`features` must be 'log_mel' or 'waveform', got {features!r}.")
        sizes = {"feature_size": feature_size, "sampling_rate": sampling_rate, "waveform_rate": waveform_rate}
        for name, value in {**sizes, "n_fft": n_fft, "hop_length": hop_length}.items():
            require_whole_number(name, value)
        if n_fft < hop_length or (n_fft - hop_length) % 2:
            raise ValueError(
                "`n_fft` must be at least `hop_length` and differ from it by an even number, which is divided between "
                f"both ends of a window, got {n_fft} and {hop_length}."
            )
        super().__init__(feature_size=feature_size, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs)
        self.n_fft = n_fft
        self.hop_length = hop_length
        self.features = features
        self.waveform_rate = waveform_rate
        self.model_input_names = ["input_features" if features == "log_mel" else "input_values"]

    def __call__(
        self,
        raw_audio: np.ndarray | torch.Tensor | list,
        sampling_rate: int | None = None,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """Features of one window or of several; the batch axis is always there.

        Args:
            raw_audio: a mono window `(T,)`, a list of windows of one length, or a batch `(W, 1, T)`. Not `(W, T)`: a
                stereo song `(2, T)` would be taken for two windows. T is padded with zeros to whole frames.
            sampling_rate: of the audio, in hertz (Hz).
            return_tensors: "pt", torch tensors on the device of the audio (also if not given), or "np", arrays.

        Raises:
            ValueError: the rate is not the extractor's, the shape is none of the three above, or values are integers.
        """
        require_tensor_type(return_tensors)
        if sampling_rate is None:
            logger.warning(
                "It is strongly recommended to pass the `sampling_rate` argument: audio at another rate than "
                f"{self.sampling_rate} Hz would give wrong features without an error."
            )
        elif sampling_rate != self.sampling_rate:
            raise ValueError(
                f"{type(self).__name__} reads audio at {self.sampling_rate} Hz, got {sampling_rate} Hz. "
                "`MssProcessor` takes any rate."
            )
        windows = _as_windows(raw_audio)
        num_samples = max(windows.shape[-1] + -windows.shape[-1] % self.hop_length, self.n_fft)
        num_samples += -num_samples % self.hop_length
        windows = torch.nn.functional.pad(windows, (0, num_samples - windows.shape[-1]), value=self.padding_value)
        if self.features == "waveform":
            inputs = resample(windows, self.sampling_rate, self.waveform_rate)
        else:
            inputs = log_mel_spectrogram(windows, self.sampling_rate, self.n_fft, self.hop_length, self.feature_size)
        if return_tensors == "np":
            inputs = inputs.cpu().numpy()
        return BatchFeature({self.model_input_names[0]: inputs})


def require_tensor_type(return_tensors: str | None) -> None:
    """Raise ValueError unless features can be returned as this."""
    if return_tensors not in (None, "pt", "np"):
        raise ValueError(f"`return_tensors` must be 'pt' (the same as None here) or 'np', got {return_tensors!r}.")


def _as_windows(raw_audio: np.ndarray | torch.Tensor | list) -> torch.Tensor:
    """What `MssFeatureExtractor` takes -> `(W, T)` float32."""
    if isinstance(raw_audio, (list, tuple)) and len(raw_audio) and not np.isscalar(raw_audio[0]):
        windows = [torch.as_tensor(window) for window in raw_audio]
        shapes = {tuple(window.shape) for window in windows}
        if len(shapes) > 1 or windows[0].dim() != 1:
            raise ValueError(f"Windows of a list must be mono, (samples,), of one length, got shapes {sorted(shapes)}.")
        audio = torch.stack(windows)[:, None]
    else:
        audio = torch.as_tensor(raw_audio)
    if audio.dim() == 2 and len(audio) > 1:
        raise ValueError(
            f"Audio of shape {tuple(audio.shape)} can be channels or windows: pass mono windows as a list or with "
            "shape (windows, 1, samples), and whole songs to `MssProcessor`."
        )
    if audio.dim() not in (1, 2, 3) or audio.shape[-1] == 0 or (audio.dim() == 3 and audio.shape[1] != 1):
        raise ValueError(
            f"Audio must have shape (samples,) or (windows, 1, samples), one channel, got {tuple(audio.shape)}."
        )
    if not audio.is_floating_point():
        raise ValueError(f"Windows must be floating point with full scale 1, got {audio.dtype}; songs may be integers.")
    return audio.float().reshape(-1, audio.shape[-1])


__all__ = ["MssFeatureExtractor", "log_mel_spectrogram"]
