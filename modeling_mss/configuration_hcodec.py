"""Configuration of the HCodec neural audio codec."""

import math

from huggingface_hub.dataclasses import strict
from transformers import HubertConfig, PreTrainedConfig

from .checkpoint_mss import (
    LAYERS,
    RATES,
    WIDTHS,
    CheckedConfig,
    require_affordable,
    require_transformer,
    require_whole_numbers,
    stack_parameters,
)

SIZES = {
    "sampling_rate": RATES,
    "semantic_sampling_rate": RATES,
    "codebook_size": WIDTHS,
    "num_codebooks": LAYERS,
    "semantic_padding": range(RATES.stop),
    **dict.fromkeys(("n_fft", "stft_hop_length", "stride", "latent_size", "semantic_feature_size"), WIDTHS),
    **{f"{part}_hidden_size": WIDTHS for part in ("encoder", "decoder", "semantic_encoder", "semantic_decoder")},
    **{f"{part}_intermediate_size": WIDTHS for part in ("encoder", "decoder")},
    **{f"{part}_{kind}_layers": LAYERS for part in ("encoder", "decoder") for kind in ("convnext", "transformer")},
}


@strict
class HCodecConfig(CheckedConfig, PreTrainedConfig):
    r"""
    Configuration of an [`HCodecModel`]. The defaults are the published H-Codec-2.0, large, 12.5 Hz (1.243 B parameters
    without the HuBERT inside).

    Args:
        sampling_rate (`int`): rate of the waveform in hertz (Hz).
        n_fft (`int`), stft_hop_length (`int`): STFT of the encoder and inverse STFT of the decoder, in samples.
        stride (`int`): STFT frames merged into one code frame; both paths end at the same frame rate.
        latent_size (`int`): width of the vectors that are quantized, per path.
        num_codebooks (`int`), codebook_size (`int`): layers of each residual quantizer, and entries per layer.
        codebook_decay (`float`): decay of the moving averages that train the codebooks.
        kmeans_iterations (`int`): iterations of the k-means that starts a codebook from the first training batch.
        dead_code_threshold (`float`): in training, an entry used less than this share of uniform usage is replaced by
            a vector of the batch. 0 switches revival off, as in the published training.
        encoder_*, decoder_* : the acoustic path. `intermediate_size` is that of the ConvNeXt layers.
        decoder_dropout (`float`): in the decoder's residual layers.
        semantic_feature_size (`int`): width of the semantic features (HuBERT's hidden size).
        semantic_encoder_*, semantic_decoder_* : the convolutional adapters of the semantic path.
        semantic_sampling_rate (`int`): rate in hertz (Hz) at which HuBERT hears the waveform.
        semantic_padding (`int`): zeros added on both sides of HuBERT's input, in samples, so that it yields exactly
            one frame per STFT frame.
        semantic_model_config (`HubertConfig` or `dict`, *optional*): the HuBERT inside; base if not given.
        include_semantic_model (`bool`): whether the HuBERT is part of this model. Without it `encode` has to be given
            `semantic_features`.
        decoder_only (`bool`): keep only what `decode` needs (quantizers and decoder), for repositories of separators.
    """

    model_type = "hcodec"
    sub_configs = {"semantic_model_config": HubertConfig}

    sampling_rate: int = 48000
    n_fft: int = 1920
    stft_hop_length: int = 960
    stride: int = 4

    latent_size: int = 512
    num_codebooks: int = 16
    codebook_size: int = 1024
    codebook_decay: float = 0.99
    kmeans_iterations: int = 50
    dead_code_threshold: float | int = 0.1

    encoder_hidden_size: int = 1536
    encoder_intermediate_size: int = 4608
    encoder_convnext_layers: int = 24
    encoder_transformer_layers: int = 2

    decoder_hidden_size: int = 1536
    decoder_intermediate_size: int = 4608
    decoder_convnext_layers: int = 32
    decoder_transformer_layers: int = 2
    decoder_dropout: float | int = 0.1

    semantic_feature_size: int = 768
    semantic_encoder_hidden_size: int = 1536
    semantic_encoder_channel_ratios: list[float] | list[int] | tuple = (1, 1, 1)
    semantic_encoder_strides: list[int] | tuple = (2, 1, 2)
    semantic_decoder_hidden_size: int = 1536
    semantic_decoder_channel_ratios: list[float] | list[int] | tuple = (1, 1, 1)
    semantic_decoder_strides: list[int] | tuple = (2, 1, 2)

    semantic_sampling_rate: int = 16000
    semantic_padding: int = 160
    semantic_model_config: dict | PreTrainedConfig | None = None
    include_semantic_model: bool = True
    decoder_only: bool = False
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        if self.decoder_only:
            self.include_semantic_model = False
        if not self.include_semantic_model:
            self.semantic_model_config = None
        elif self.semantic_model_config is None:
            self.semantic_model_config = HubertConfig()
        elif isinstance(self.semantic_model_config, dict):
            self.semantic_model_config = HubertConfig(**self.semantic_model_config)
        super().__post_init__(**kwargs)

    @property
    def hop_length(self) -> int:
        """Samples per code frame: 3840 in the published model."""
        return self.stft_hop_length * self.stride

    @property
    def frame_rate(self) -> float:
        """Code frames per second: 12.5 in the published model."""
        return self.sampling_rate / self.hop_length

    def validate_architecture(self):
        """Called by the `strict` decorator after construction."""
        require_whole_numbers(vars(self), SIZES)
        for part in ("encoder", "decoder"):
            num_layers = getattr(self, f"{part}_convnext_layers") + getattr(self, f"{part}_transformer_layers")
            sizes = (getattr(self, f"{part}_hidden_size"), getattr(self, f"{part}_intermediate_size"))
            require_affordable(stack_parameters(num_layers, *sizes), f"The codec's {part}")
        require_affordable(self.num_codebooks * self.codebook_size * self.latent_size, "The codec's codebooks")
        if self.n_fft % 2 or self.stft_hop_length % 2 or self.n_fft <= self.stft_hop_length:
            raise ValueError(
                "`n_fft` and `stft_hop_length` must be even, and the first larger: frames overlap, and half a hop is "
                f"cut from both ends; got {self.n_fft} and {self.stft_hop_length}."
            )
        for name in ("encoder_hidden_size", "decoder_hidden_size"):
            if getattr(self, name) % 64:
                raise ValueError(f"`{name}` must be a multiple of 64 (one attention head), got {getattr(self, name)}.")
        for part in ("semantic_encoder", "semantic_decoder"):
            strides, ratios = getattr(self, f"{part}_strides"), getattr(self, f"{part}_channel_ratios")
            if math.prod(strides) != self.stride or min(strides, default=1) < 1:
                raise ValueError(
                    f"The product of `{part}_strides` must equal `stride` ({self.stride}) so that both paths end at "
                    f"the same frame rate, got {list(strides)}."
                )
            widths = [getattr(self, f"{part}_hidden_size") * ratio for ratio in ratios]
            if len(ratios) != len(strides) or not all(1 <= width <= WIDTHS[-1] for width in widths):
                raise ValueError(
                    f"`{part}_channel_ratios` must hold one ratio per stride ({len(strides)}), and times "
                    f"`{part}_hidden_size` be from 1 to {WIDTHS[-1]}, got {list(ratios)}."
                )
        if self.semantic_model_config is not None:
            require_hubert(self.semantic_model_config, "semantic_model_config.")
            hidden_size = self.semantic_model_config.hidden_size
            if hidden_size != self.semantic_feature_size:
                raise ValueError(
                    f"`semantic_feature_size` ({self.semantic_feature_size}) must equal the hidden size of "
                    f"`semantic_model_config` ({hidden_size})."
                )
            if self.sampling_rate % self.semantic_sampling_rate:
                raise ValueError(
                    f"`sampling_rate` ({self.sampling_rate} Hz) must be a multiple of `semantic_sampling_rate` "
                    f"({self.semantic_sampling_rate} Hz)."
                )


def require_hubert(config: HubertConfig, part: str) -> None:
    """Raise ValueError unless the sizes of a HuBERT can be; `part` is what stands before their names."""
    require_transformer(vars(config), part)
    for name in ("conv_dim", "conv_stride", "conv_kernel"):
        layers = dict(enumerate(getattr(config, name)))
        require_whole_numbers(layers, dict.fromkeys(layers, WIDTHS), f"{part}{name}.")


__all__ = ["HCodecConfig"]
