"""HCodec: a 48 kHz mono neural audio codec with an acoustic and a semantic path (H-Codec-2.0).

    waveform -> STFT -> ConvNeXt layers -> transformer ------------------> acoustic quantizer --+
    waveform -> HuBERT -> semantic encoder (convolutions) ---------------> semantic quantizer --+--> decoder -> iSTFT
                                                     semantic decoder <---------+

Reference: QuarkAudio-HCodec/HCodec-2.0 in github.com/alibaba/unified-audio. Codes and waveforms equal those of the
published model (see `convert_hcodec.py` and its tests). Nothing here knows about music, stems or language models.

Shapes: B batch, T samples, L STFT frames (T / 960), F code frames (T / 3840), D latent size, Q codebooks.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from transformers import initialization
from transformers.modeling_utils import PreTrainedAudioTokenizerBase
from transformers.utils import ModelOutput

from .checkpoint_mss import CheckedWeights
from .configuration_hcodec import HCodecConfig
from .quantization_hcodec import HCodecCodebook, HCodecResidualVectorQuantizer
from .rotary_mss import rotary_attention
from .semantic_hcodec import HCodecSemanticDecoder, HCodecSemanticEncoder, HubertFeatures, decimate


@dataclass
class HCodecEncoderOutput(ModelOutput):
    """Codes of both paths, each `(B, Q, F)` int64, and the two as one: a0 s0 a1 s1 ..., `audio_codes` `(B, 2 F, Q)`."""

    audio_codes: torch.LongTensor | None = None
    acoustic_codes: torch.LongTensor | None = None
    semantic_codes: torch.LongTensor | None = None


@dataclass
class HCodecDecoderOutput(ModelOutput):
    """`audio_values` `(B, T)`."""

    audio_values: torch.FloatTensor | None = None


@dataclass
class HCodecOutput(ModelOutput):
    """Everything a training step needs.

    audio_values `(B, T)`; audio_codes, acoustic_codes and semantic_codes as `encode` gives them; commitment_loss, a
    scalar, mean over layers, summed over both paths; semantic_features and reconstructed_semantic_features
    `(B, L, semantic_feature_size)`.
    """

    audio_values: torch.FloatTensor | None = None
    audio_codes: torch.LongTensor | None = None
    acoustic_codes: torch.LongTensor | None = None
    semantic_codes: torch.LongTensor | None = None
    commitment_loss: torch.FloatTensor | None = None
    semantic_features: torch.FloatTensor | None = None
    reconstructed_semantic_features: torch.FloatTensor | None = None


class HCodecConvNeXtLayer(nn.Module):
    """Depthwise convolution, then a pointwise MLP with layer scale (ConvNeXt in one dimension); `(B, C, L)`."""

    def __init__(self, hidden_size: int, intermediate_size: int, layer_scale: float):
        super().__init__()
        self.depthwise = nn.Conv1d(hidden_size, hidden_size, kernel_size=7, padding=3, groups=hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps=1e-6)
        self.up = nn.Linear(hidden_size, intermediate_size)
        self.down = nn.Linear(intermediate_size, hidden_size)
        self.initial_scale = layer_scale
        self.scale = nn.Parameter(torch.full((hidden_size,), layer_scale))

    def forward(self, hidden_states):
        residual = hidden_states
        hidden_states = self.norm(self.depthwise(hidden_states).transpose(1, 2))
        hidden_states = self.scale * self.down(functional.gelu(self.up(hidden_states)))
        return residual + hidden_states.transpose(1, 2)


class HCodecResnetLayer(nn.Module):
    """Two normalised convolutions around a residual connection; `(B, C, L)`."""

    def __init__(self, hidden_size: int, dropout: float):
        super().__init__()
        self.norm1 = nn.GroupNorm(32, hidden_size, eps=1e-6)
        self.conv1 = nn.Conv1d(hidden_size, hidden_size, kernel_size=3, padding=1)
        self.norm2 = nn.GroupNorm(32, hidden_size, eps=1e-6)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv1d(hidden_size, hidden_size, kernel_size=3, padding=1)

    def forward(self, hidden_states):
        residual = hidden_states
        hidden_states = self.conv1(functional.silu(self.norm1(hidden_states)))
        hidden_states = self.conv2(self.dropout(functional.silu(self.norm2(hidden_states))))
        return residual + hidden_states


class HCodecTransformerLayer(nn.Module):
    """Pre-norm transformer layer whose attention reads an LSTM's output (as published); `(B, L, C)`."""

    rope_theta = 10000.0

    def __init__(self, hidden_size: int):
        super().__init__()
        intermediate_size = min(hidden_size * 4, 4096)
        self.num_heads = hidden_size // 64
        self.input_norm = nn.RMSNorm(hidden_size, eps=1e-6)
        self.lstm = nn.LSTM(hidden_size, hidden_size, batch_first=True)
        self.q_proj = nn.Linear(hidden_size, hidden_size)
        self.k_proj = nn.Linear(hidden_size, hidden_size)
        self.v_proj = nn.Linear(hidden_size, hidden_size)
        self.o_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.mlp_norm = nn.RMSNorm(hidden_size, eps=1e-6)
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, hidden_states):
        recurrent, _ = self.lstm(self.input_norm(hidden_states))
        attended = rotary_attention(
            self.q_proj(recurrent), self.k_proj(recurrent), self.v_proj(recurrent), self.num_heads, self.rope_theta
        )
        hidden_states = hidden_states + self.o_proj(attended)
        normed = self.mlp_norm(hidden_states)
        return hidden_states + self.down_proj(functional.silu(self.gate_proj(normed)) * self.up_proj(normed))


class HCodecEncoder(nn.Module):
    """Waveform `(B, T)` -> acoustic latents `(B, D, F)`."""

    def __init__(self, config: HCodecConfig):
        super().__init__()
        hidden_size, num_layers = config.encoder_hidden_size, config.encoder_convnext_layers
        self.n_fft, self.stft_hop_length = config.n_fft, config.stft_hop_length
        self.register_buffer("window", torch.hann_window(config.n_fft))
        self.embed = nn.Conv1d(config.n_fft + 2, hidden_size, kernel_size=3, padding=1)
        self.norm = nn.LayerNorm(hidden_size, eps=1e-6)
        convnext = (hidden_size, config.encoder_intermediate_size, 1 / num_layers)
        self.convnext = nn.ModuleList([HCodecConvNeXtLayer(*convnext) for _ in range(num_layers)])
        self.transformer = nn.ModuleList(
            [HCodecTransformerLayer(hidden_size) for _ in range(config.encoder_transformer_layers)]
        )
        self.final_norm = nn.LayerNorm(hidden_size, eps=1e-6)
        self.out = nn.Conv1d(
            hidden_size,
            config.latent_size,
            kernel_size=2 * config.stride + 1,
            stride=config.stride,
            padding=config.stride,
        )

    def forward(self, waveform):
        margin = (self.n_fft - self.stft_hop_length) // 2
        spectrum = torch.stft(
            functional.pad(waveform.float(), (margin, margin)),
            self.n_fft,
            self.stft_hop_length,
            window=self.window.float(),
            center=False,
            return_complex=True,
        )
        log_magnitude = spectrum.abs().clamp(min=1e-5).log()
        features = torch.cat((log_magnitude, spectrum.angle() / math.pi), dim=1).to(self.embed.weight.dtype)

        hidden_states = self.norm(self.embed(features).transpose(1, 2)).transpose(1, 2)
        for layer in self.convnext:
            hidden_states = layer(hidden_states)
        hidden_states = hidden_states.transpose(1, 2)
        for layer in self.transformer:
            hidden_states = layer(hidden_states)
        return self.out(self.final_norm(hidden_states).transpose(1, 2))


class HCodecDecoder(nn.Module):
    """Concatenated latents of both paths `(B, 2 D, F)` -> waveform `(B, T)`."""

    max_magnitude = 100.0  # of an STFT bin, as published

    def __init__(self, config: HCodecConfig):
        super().__init__()
        hidden_size, num_layers = config.decoder_hidden_size, config.decoder_convnext_layers
        self.n_fft, self.stft_hop_length, self.stride = config.n_fft, config.stft_hop_length, config.stride
        kernel_size = config.stride + 1
        self.embed = nn.Conv1d(2 * config.latent_size, hidden_size, kernel_size, padding=kernel_size // 2)
        self.resnet_in = nn.ModuleList([HCodecResnetLayer(hidden_size, config.decoder_dropout) for _ in range(2)])
        self.transformer = nn.ModuleList(
            [HCodecTransformerLayer(hidden_size) for _ in range(config.decoder_transformer_layers)]
        )
        self.resnet_out = nn.ModuleList([HCodecResnetLayer(hidden_size, config.decoder_dropout) for _ in range(2)])
        self.group_norm = nn.GroupNorm(32, hidden_size, eps=1e-6)
        self.norm = nn.LayerNorm(hidden_size, eps=1e-6)
        convnext = (hidden_size, config.decoder_intermediate_size, 1 / num_layers)
        self.convnext = nn.ModuleList([HCodecConvNeXtLayer(*convnext) for _ in range(num_layers)])
        self.final_norm = nn.LayerNorm(hidden_size, eps=1e-6)
        self.out = nn.Linear(hidden_size, config.n_fft + 2)
        self.register_buffer("window", torch.hann_window(config.n_fft))

    def forward(self, latents):
        # Every code frame is held for `stride` STFT frames; an even kernel is cut back to their number.
        num_frames = latents.shape[-1] * self.stride
        hidden_states = self.embed(latents.repeat_interleave(self.stride, dim=-1))[..., :num_frames]
        for layer in self.resnet_in:
            hidden_states = layer(hidden_states)
        hidden_states = hidden_states.transpose(1, 2)
        for layer in self.transformer:
            hidden_states = layer(hidden_states)
        hidden_states = hidden_states.transpose(1, 2)
        for layer in self.resnet_out:
            hidden_states = layer(hidden_states)
        hidden_states = self.norm(self.group_norm(hidden_states).transpose(1, 2)).transpose(1, 2)
        for layer in self.convnext:
            hidden_states = layer(hidden_states)
        hidden_states = hidden_states.transpose(1, 2).to(self.final_norm.weight.dtype)  # see `HCodecModel`
        return self.inverse_stft(self.out(self.final_norm(hidden_states)))

    def inverse_stft(self, head: torch.Tensor) -> torch.Tensor:
        """Log-magnitude and phase `(B, L, n_fft + 2)` -> `(B, L * hop)`, in float32.

        `torch.istft` does not offer this "same" padding: half a hop is cut from both ends, where frames overlap only
        once (see the note in Vocos, `spectral_ops.ISTFT`).
        """
        log_magnitude, phase = head.float().transpose(1, 2).chunk(2, dim=1)
        spectrum = torch.polar(log_magnitude.exp().clamp(max=self.max_magnitude), phase)
        window = self.window.float()
        frames = torch.fft.irfft(spectrum, self.n_fft, dim=1) * window[:, None]
        num_frames = frames.shape[-1]

        def overlap_add(columns):  # (B, n_fft, L) -> (B, (L - 1) * hop + n_fft)
            length = (num_frames - 1) * self.stft_hop_length + self.n_fft
            folded = functional.fold(columns, (1, length), (1, self.n_fft), stride=(1, self.stft_hop_length))
            return folded[:, 0, 0]

        margin = (self.n_fft - self.stft_hop_length) // 2
        envelope = overlap_add(window.square()[None, :, None].expand(1, -1, num_frames))
        return (overlap_add(frames) / envelope.clamp(min=1e-11))[:, margin:-margin]


def interleave(acoustic_codes: torch.Tensor, semantic_codes: torch.Tensor) -> torch.Tensor:
    """Codes of both paths, each `(B, Q, F)`, -> a0 s0 a1 s1 ... `(B, 2 F, Q)`."""
    return torch.stack((acoustic_codes, semantic_codes), dim=-1).flatten(-2).transpose(-1, -2)


class HCodecModel(CheckedWeights, PreTrainedAudioTokenizerBase):
    """The codec. See the functions below for shapes; `config.decoder_only` leaves out everything `decode` needs not.

    Example:

    ```python
    >>> codec = HCodecModel.from_pretrained(path)
    >>> codes = codec.encode(waveform).audio_codes                                # (B, T) at 48 kHz -> (B, 2 F, Q)
    >>> audio = codec.decode(audio_codes=codes).audio_values
    ```

    Loaded in half precision, what decides codes stays in float32, since rounding changes most of them (of a song's
    codes in bfloat16 8 % were the same in the acoustic path). So do the decoder's last norm and output layer, which
    brings the waveform 4 dB closer to that of float32. `from_pretrained(dtype=...)` sees to that; `.to(dtype)` and
    waveforms in half precision change codes.
    """

    config_class = HCodecConfig
    base_model_prefix = "codec"
    main_input_name = "input_values"
    input_modalities = ("audio",)
    _keys_to_ignore_on_load_missing = {r"coder\.window$"}  # computed, see `_init_weights`

    def __init__(self, config: HCodecConfig):
        super().__init__(config)
        # Patterns of weights' names. The last ones would also fit other parts of the separator that holds a decoder.
        self._keep_in_fp32_modules_strict = [
            "acoustic_quantizer",
            "semantic_quantizer",
            "decoder.final_norm",
            "decoder.out",
        ]
        if not config.decoder_only:
            self._keep_in_fp32_modules_strict += ["encoder", "semantic_model"]
        self._keep_in_fp32_modules = self._keep_in_fp32_modules_strict  # the name that quantisation asks for
        self.acoustic_quantizer = HCodecResidualVectorQuantizer(config)
        self.semantic_quantizer = HCodecResidualVectorQuantizer(config)
        self.decoder = HCodecDecoder(config)
        if not config.decoder_only:
            self.encoder = HCodecEncoder(config)
            self.semantic_encoder = HCodecSemanticEncoder(config)
            self.semantic_decoder = HCodecSemanticDecoder(config)
        if config.include_semantic_model:
            self.semantic_model = HubertFeatures(config.semantic_model_config, config.semantic_padding)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, HCodecConvNeXtLayer):
            initialization.constant_(module.scale, module.initial_scale)
        elif isinstance(module, (HCodecEncoder, HCodecDecoder)):
            initialization.copy_(module.window, torch.hann_window(module.n_fft))
        elif isinstance(module, HCodecCodebook):
            # Untrained codebooks differ from each other; `initialized` stays false, so training starts them from data.
            initialization.normal_(module.embed)
            for buffer in (module.initialized, module.cluster_size, module.embed_avg):
                initialization.zeros_(buffer)

    @staticmethod
    def _as_mono(input_values: torch.Tensor) -> torch.Tensor:
        """`(B, T)` or `(B, 1, T)` -> `(B, T)`."""
        if input_values.dim() == 3 and input_values.shape[1] == 1:
            input_values = input_values[:, 0]
        if not input_values.is_floating_point():
            raise ValueError(f"`input_values` must be floating point with full scale 1, got {input_values.dtype}.")
        if input_values.dim() != 2 or input_values.shape[-1] == 0:
            raise ValueError(
                "`input_values` must have shape (batch, samples) or (batch, 1, samples), the codec is mono, got "
                f"{tuple(input_values.shape)}."
            )
        return input_values

    def extract_semantic_features(self, input_values: torch.Tensor) -> torch.Tensor:
        """HuBERT's features of a waveform `(B, T)` -> `(B, L, semantic_feature_size)`, T a multiple of 3840.

        Raises:
            ValueError: if this codec was saved without its HuBERT.
        """
        if not self.config.include_semantic_model:
            raise ValueError(
                "This codec has no HuBERT inside, so `semantic_features` are needed. Pass them, or convert the codec "
                "with `python -m modeling_mss.convert_hcodec --hubert HUBERT ...`."
            )
        factor = self.config.sampling_rate // self.config.semantic_sampling_rate
        return self.semantic_model(decimate(input_values, factor))

    def encode_latents(
        self, input_values: torch.Tensor, semantic_features: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Latents before quantization.

        Args:
            input_values: waveform `(B, T)` or `(B, 1, T)` at `config.sampling_rate`; padded with zeros to whole code
                frames.
            semantic_features: `(B, L, semantic_feature_size)`; computed by the HuBERT inside if not given.

        Returns:
            acoustic latents `(B, D, F)`, semantic latents `(B, D, F)` and the semantic features.
        """
        if self.config.decoder_only:
            raise ValueError("This codec holds only its decoding half (`decoder_only`); encode with the whole codec.")
        input_values = self._as_mono(input_values)
        input_values = functional.pad(input_values, (0, -input_values.shape[-1] % self.config.hop_length))
        if semantic_features is None:
            semantic_features = self.extract_semantic_features(input_values)
        num_frames = input_values.shape[-1] // self.config.stft_hop_length
        expected = (len(input_values), num_frames, self.config.semantic_feature_size)
        if tuple(semantic_features.shape) != expected:
            raise ValueError(
                f"`semantic_features` must have shape (batch, frames, features) = {expected} for this waveform, got "
                f"{tuple(semantic_features.shape)}."
            )
        semantic_features = semantic_features.to(self.semantic_encoder.conv_in.weight.dtype)
        semantic_latents = self.semantic_encoder(semantic_features.transpose(1, 2))
        return self.encoder(input_values), semantic_latents, semantic_features

    @torch.no_grad()
    def encode(
        self,
        input_values: torch.Tensor,
        semantic_features: torch.Tensor | None = None,
        padding_mask: torch.Tensor | None = None,
    ) -> HCodecEncoderOutput:
        """Waveform `(B, T)` or `(B, 1, T)` -> codes of ceil(T / 3840) frames.

        Arguments as in `encode_latents`. `padding_mask`, which feature extractors give, is not needed: zeros at the end
        are silence.
        """
        waveforms = self._as_mono(input_values).float()
        with torch.autocast(waveforms.device.type, enabled=False):  # see the class
            acoustic_latents, semantic_latents, _ = self.encode_latents(waveforms, semantic_features)
        acoustic = self.acoustic_quantizer.encode(acoustic_latents)
        semantic = self.semantic_quantizer.encode(semantic_latents)
        return HCodecEncoderOutput(interleave(acoustic, semantic), acoustic, semantic)

    def decode(
        self,
        acoustic_codes: torch.Tensor | None = None,
        semantic_codes: torch.Tensor | None = None,
        audio_codes: torch.Tensor | None = None,
    ) -> HCodecDecoderOutput:
        """Codes -> waveform `(B, 3840 F)`.

        Args:
            acoustic_codes, semantic_codes: each `(B, q, F)`. With q < Q only the first q layers are used.
            audio_codes: the two as one, `(B, 2 F, q)`, in their place.

        Raises:
            ValueError: not exactly one of the two forms, or other shapes.
        """
        if (audio_codes is None) == (acoustic_codes is None) or (acoustic_codes is None) != (semantic_codes is None):
            raise ValueError("`decode` needs either `audio_codes`, or both `acoustic_codes` and `semantic_codes`.")
        if audio_codes is not None:
            if audio_codes.dim() != 3 or audio_codes.shape[1] % 2:
                raise ValueError(
                    f"`audio_codes` must have shape (batch, 2 x frames, codebooks), got {tuple(audio_codes.shape)}."
                )
            acoustic_codes, semantic_codes = audio_codes.mT[..., 0::2], audio_codes.mT[..., 1::2]
        for name, codes in (("acoustic_codes", acoustic_codes), ("semantic_codes", semantic_codes)):
            if codes.dim() != 3 or not 1 <= codes.shape[1] <= self.config.num_codebooks:
                raise ValueError(
                    f"`{name}` must have shape (batch, codebooks, frames) with 1 to {self.config.num_codebooks} "
                    f"codebooks, got {tuple(codes.shape)}."
                )
        return self.decode_latents(
            self.acoustic_quantizer.decode(acoustic_codes), self.semantic_quantizer.decode(semantic_codes)
        )

    def decode_latents(self, acoustic_latents: torch.Tensor, semantic_latents: torch.Tensor) -> HCodecDecoderOutput:
        """Quantized (or averaged) latents, each `(B, D, F)`, -> waveform `(B, 3840 F)`."""
        latents = torch.cat((acoustic_latents, semantic_latents), dim=1)
        return HCodecDecoderOutput(audio_values=self.decoder(latents.to(self.decoder.embed.weight.dtype)))

    def forward(
        self,
        input_values: torch.Tensor,
        semantic_features: torch.Tensor | None = None,
        num_codebooks: torch.Tensor | None = None,
        padding_mask: torch.Tensor | None = None,
    ) -> HCodecOutput:
        """Encode, quantize, decode and cut back to T samples.

        Args:
            num_codebooks: `(B,)` int: clip b is decoded from the first `num_codebooks[b]` layers of both paths only
                (quantizer dropout). All layers if not given. The other arguments as in `encode_latents`.
        """
        input_values = self._as_mono(input_values)
        acoustic_latents, semantic_latents, semantic_features = self.encode_latents(input_values, semantic_features)
        acoustic = self.acoustic_quantizer(acoustic_latents, num_codebooks)
        semantic = self.semantic_quantizer(semantic_latents, num_codebooks)
        audio_values = self.decode_latents(acoustic.quantized, semantic.quantized).audio_values
        semantic_latents = semantic.quantized.to(self.semantic_decoder.conv_in.weight.dtype)
        return HCodecOutput(
            audio_values=audio_values[..., : input_values.shape[-1]],
            audio_codes=interleave(acoustic.codes, semantic.codes),
            acoustic_codes=acoustic.codes,
            semantic_codes=semantic.codes,
            commitment_loss=acoustic.commitment_loss + semantic.commitment_loss,
            semantic_features=semantic_features,
            reconstructed_semantic_features=self.semantic_decoder(semantic_latents).transpose(1, 2),
        )


__all__ = ["HCodecModel"]
