"""Configuration of the HCodec neural audio codec."""

import math

from huggingface_hub.dataclasses import strict
from transformers import HubertConfig, PreTrainedConfig


@strict
class HCodecConfig(PreTrainedConfig):
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
        encoder_*, decoder_* : the acoustic path. `intermediate_size` is that of the ConvNeXt blocks.
        decoder_dropout (`float`): in the decoder's residual blocks.
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
        for name in ("encoder_hidden_size", "decoder_hidden_size"):
            if getattr(self, name) % 64:
                raise ValueError(f"`{name}` must be a multiple of 64 (one attention head), got {getattr(self, name)}.")
        for name in ("semantic_encoder_strides", "semantic_decoder_strides"):
            if math.prod(getattr(self, name)) != self.stride:
                raise ValueError(
                    f"The product of `{name}` must equal `stride` ({self.stride}) so that both paths end at the same "
                    f"frame rate, got {list(getattr(self, name))}."
                )
        if self.semantic_model_config is not None:
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


__all__ = ["HCodecConfig"]
