"""The tiny models that tests, and the untrained checkpoint of the package, are built from."""

import torch
from transformers import HubertConfig

from modeling_mss import HCodecConfig, HCodecModel, MssConfig, MssForConditionalGeneration
from processing_mss import MssFeatureExtractor, MssProcessor


def tiny_hubert_config() -> HubertConfig:
    return HubertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        conv_dim=[16] * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        vocab_size=2,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )


def tiny_codec_config(num_codebooks: int = 4) -> HCodecConfig:
    """A whole codec with the published layout and rates, small in every width and depth."""
    return HCodecConfig(
        latent_size=16,
        num_codebooks=num_codebooks,
        codebook_size=64,
        kmeans_iterations=5,
        encoder_hidden_size=64,
        encoder_intermediate_size=64,
        encoder_convnext_layers=1,
        encoder_transformer_layers=1,
        decoder_hidden_size=64,
        decoder_intermediate_size=64,
        decoder_convnext_layers=1,
        decoder_transformer_layers=1,
        semantic_feature_size=32,
        semantic_encoder_hidden_size=32,
        semantic_decoder_hidden_size=32,
        semantic_model_config=tiny_hubert_config(),
    )


def tiny_config(**options) -> MssConfig:
    """A separator over the tiny codec; `options` are fields of `MssConfig`."""
    if options.get("conditional_encoder") == "hubert":
        encoder_config = tiny_hubert_config()
    else:
        encoder_config = {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "conv_kernel_size": 7,
            "conv_norm": "layer_norm",
            "dropout": 0.0,
        }
    decoder_config = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "attention_dropout": 0.0,
    }
    return MssConfig(
        encoder_config=encoder_config, decoder_config=decoder_config, codec_config=tiny_codec_config(), **options
    )


def tiny_codec(seed: int = 0) -> HCodecModel:
    torch.manual_seed(seed)
    return HCodecModel(tiny_codec_config()).eval()


def tiny_model(seed: int = 0, **options) -> MssForConditionalGeneration:
    torch.manual_seed(seed)
    return MssForConditionalGeneration(tiny_config(**options)).eval()


def tiny_processor(config: MssConfig | None = None) -> MssProcessor:
    config = config or tiny_config()
    features = "waveform" if config.conditional_encoder == "hubert" else "log_mel"
    return MssProcessor(MssFeatureExtractor(features=features), stems=config.stems)
