"""The semantic path of the codec: what a HuBERT hears, and the convolutions around its quantizer.

Shapes: B batch, T samples, L STFT frames, F code frames, D latent size.
"""

import math

import torch
from torch import nn
from torch.nn import functional
from transformers import HubertModel

from .configuration_hcodec import HCodecConfig


class HCodecResidualUnit(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv1d(channels, channels, kernel_size=3, padding=1, bias=False)
        self.conv2 = nn.Conv1d(channels, channels, kernel_size=1, bias=False)

    def forward(self, hidden_states):
        return hidden_states + self.conv2(functional.elu(self.conv1(functional.elu(hidden_states))))


class HCodecSemanticEncoder(nn.Module):
    """Semantic features `(B, semantic_feature_size, L)` -> semantic latents `(B, D, F)`."""

    def __init__(self, config: HCodecConfig):
        super().__init__()
        channels = config.semantic_encoder_hidden_size
        self.conv_in = nn.Conv1d(config.semantic_feature_size, channels, kernel_size=3, padding=1, bias=False)
        self.blocks = nn.ModuleList()
        for ratio, stride in zip(config.semantic_encoder_channel_ratios, config.semantic_encoder_strides):
            res_units = nn.Sequential(*[HCodecResidualUnit(channels) for _ in range(2)])
            out_channels = int(config.semantic_encoder_hidden_size * ratio)
            kernel_size = 3 if stride == 1 else 2 * stride
            conv = nn.Conv1d(channels, out_channels, kernel_size, stride, padding=(kernel_size - 1) // 2)
            self.blocks.append(nn.ModuleDict({"res_units": res_units, "conv": conv}))
            channels = out_channels
        self.conv_out = nn.Conv1d(channels, config.latent_size, kernel_size=3, padding=1, bias=False)

    def forward(self, features):
        hidden_states = self.conv_in(features)
        for layer in self.blocks:
            hidden_states = layer["conv"](layer["res_units"](hidden_states))
        return self.conv_out(hidden_states)


class HCodecSemanticDecoder(nn.Module):
    """Quantized semantic latents `(B, D, F)` -> semantic features `(B, semantic_feature_size, L)`, for training."""

    def __init__(self, config: HCodecConfig):
        super().__init__()
        hidden_size, ratios = config.semantic_decoder_hidden_size, list(config.semantic_decoder_channel_ratios)
        widths = [int(hidden_size * ratio) for ratio in ratios] + [hidden_size]
        self.conv_in = nn.Conv1d(config.latent_size, widths[0], kernel_size=3, padding=1, bias=False)
        self.blocks = nn.ModuleList()
        for channels, out_channels, stride in zip(widths, widths[1:], config.semantic_decoder_strides):
            if stride == 1:
                conv = nn.Conv1d(channels, out_channels, kernel_size=3, padding=1)
            else:
                conv = nn.ConvTranspose1d(
                    channels, out_channels, 2 * stride, stride, padding=(stride + 1) // 2, output_padding=stride % 2
                )
            res_units = nn.Sequential(*[HCodecResidualUnit(out_channels) for _ in range(2)])
            self.blocks.append(nn.ModuleDict({"conv": conv, "res_units": res_units}))
        self.conv_out = nn.Conv1d(hidden_size, config.semantic_feature_size, kernel_size=3, padding=1, bias=False)

    def forward(self, latents):
        hidden_states = self.conv_in(latents)
        for layer in self.blocks:
            hidden_states = layer["res_units"](layer["conv"](hidden_states))
        return self.conv_out(hidden_states)


class HubertFeatures(nn.Module):
    """Frozen HuBERT: 16 kHz waveform `(B, T)` -> features `(B, T // 320, hidden_size)`.

    The mean of all hidden states, compressed by sign(x) |x|^0.3 (HCodec-2.0, `audio_tokenizer.py`). 160 zeros on
    either side make the number of frames exact.
    """

    def __init__(self, config, padding: int = 160):
        super().__init__()
        self.padding = padding
        self.hubert = HubertModel(config)
        self.eval()

    def train(self, mode: bool = True):
        # Frozen: no dropout, no layer drop, no masking. `from_pretrained` makes new parameters and then calls this.
        return super().train(False).requires_grad_(False)

    @torch.no_grad()
    def forward(self, waveform):
        padded = functional.pad(waveform, (self.padding, self.padding)).to(self.hubert.dtype)
        hidden_states = self.hubert(padded, output_hidden_states=True).hidden_states
        mean = torch.stack(hidden_states).mean(dim=0)
        return torch.where(mean > 0, 1, -1) * mean.abs() ** 0.3


def decimate(waveform: torch.Tensor, factor: int) -> torch.Tensor:
    """Low-pass and keep every `factor`-th sample; `(B, T)` -> `(B, ceil(T / factor))`.

    A Hann-windowed sinc of 6 zero crossings a side and roll-off 0.99, which is what `torchaudio.functional.resample`
    computes for this ratio by default.
    """
    if factor == 1:
        return waveform
    width = math.ceil(6 * factor / 0.99)
    time = torch.arange(-width, width + factor, device=waveform.device, dtype=torch.float64) / factor * 0.99
    time = time.clamp(-6, 6)
    kernel = torch.sinc(time) * torch.cos(time * math.pi / 12) ** 2 * 0.99 / factor
    padded = functional.pad(waveform[:, None], (width, width + factor))
    filtered = functional.conv1d(padded, kernel.to(waveform.dtype)[None, None], stride=factor)
    return filtered[:, 0, : math.ceil(waveform.shape[-1] / factor)]
