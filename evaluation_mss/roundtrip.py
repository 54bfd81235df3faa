"""Audio through the codec and back, as the paper does with references and with other systems' stems (section 3.3)."""

import functools

import torch
from transformers import AutoConfig

from data_mss.sharding import default_device
from modeling_mss import HCodecConfig, HCodecModel
from processing_mss import resample
from processing_mss.processing_mss import SILENT_RMS
from processing_mss.windowing_mss import overlap_add, split_windows, window_starts

from .systems import checkpoint_hash, local_folder

# Windows, cross-fades and levels are those of a separator: what comes out is then the very thing that a perfect
# language model over this codec would generate.
WINDOW_S = 4.0
OVERLAP_S = 0.4
MIXTURE_RMS = 0.1
BATCH_SIZE = 8


class CodecRoundTrip:
    """Encodes and decodes waveforms of any length and rate.

    Args:
        codec_path: folder of a whole codec (a separator's repository has the decoding half only), or its Hub id.
        device: accelerate's for this process, or CUDA if there is one, if it is not said.

    Raises:
        ValueError: no whole codec.
        OSError: nothing there.
    """

    def __init__(self, codec_path: str, device: torch.device | str | None = None):
        self.codec, checkpoint = _load_codec(str(codec_path), str(device or default_device()))
        self.rate = self.codec.config.sampling_rate
        hop = self.codec.config.hop_length
        self.window = round(WINDOW_S * self.rate / hop) * hop
        self.overlap = round(OVERLAP_S * self.rate)
        self.identity = f"codec {checkpoint}"

    def __call__(self, waveforms: torch.Tensor, sampling_rate: int, gain: float = 1.0) -> torch.Tensor:
        """Send waveforms through the codec.

        Args:
            waveforms: `(N, C, T)`, mixed down by the mean of the channels.
            sampling_rate: in hertz (Hz).
            gain: factor applied before and undone after: `mixture_gain` of the song, so that the codec hears a stem at
                the level that it has in a mixture of the separator's level.

        Returns:
            `(N, T)` mono, float32, at the same rate and on the device of `waveforms`.
        """
        num_samples = waveforms.shape[-1]
        starts = self.starts(num_samples, sampling_rate)
        windows = self.windows(waveforms, sampling_rate, gain)
        decoded = overlap_add(windows, starts, self.overlap, starts[-1] + self.window)
        return resample(decoded, self.rate, sampling_rate)[:, :num_samples] / gain

    def starts(self, num_samples: int, sampling_rate: int) -> list[int]:
        """Where the windows of waveforms of `num_samples` begin, in samples at the codec's rate."""
        return window_starts(-(-num_samples * self.rate // sampling_rate), self.window, self.overlap)

    @torch.inference_mode()
    def windows(self, waveforms: torch.Tensor, sampling_rate: int, gain: float) -> torch.Tensor:
        """What the codec makes of every window, before it is cross-faded, with `gain`, at the codec's rate.

        Arguments as in a call; returns `(W, N, window)`.
        """
        mono = resample(waveforms.float().mean(dim=1) * gain, sampling_rate, self.rate)
        windows = split_windows(mono, self.starts(waveforms.shape[-1], sampling_rate), self.window)
        decoded = []
        for batch in windows.flatten(0, 1).split(BATCH_SIZE):
            codes = self.codec.encode(batch.to(self.codec.device))
            decoded.append(self.codec.decode(codes.acoustic_codes, codes.semantic_codes).audio_values)
        return torch.cat(decoded).to(windows).view_as(windows)


def mixture_gain(mixture: torch.Tensor) -> float:
    """Factor that brings a mixture `(C, T)` to the level at which separators hear songs; 1 for silence."""
    rms = mixture.double().mean(dim=0).square().mean().sqrt().item()
    return MIXTURE_RMS / rms if rms > SILENT_RMS else 1.0


@functools.lru_cache(maxsize=1)
def _load_codec(path: str, device: str) -> tuple[HCodecModel, str]:
    """The codec and the hash of its files; loaded once, however many bounds and scores use it."""
    folder = local_folder(path)
    config = AutoConfig.from_pretrained(folder)
    # Another model's folder would give a codec with random weights and a warning.
    if not isinstance(config, HCodecConfig) or config.decoder_only:
        raise ValueError(
            f"A round trip needs a whole codec, as codec training or the conversion of the published checkpoint write "
            f"it; {path} is {'the decoding half of one' if isinstance(config, HCodecConfig) else config.model_type!r}."
        )
    return HCodecModel.from_pretrained(folder, dtype=torch.float32).eval().to(device), checkpoint_hash(folder)
