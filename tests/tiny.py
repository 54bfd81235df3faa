"""The tiny models that tests are built from."""

from pathlib import Path

import numpy as np
import torch
import yaml
from transformers import HubertConfig

from data_mss.manifest import ManifestWriter, Song
from modeling_mss import HCodecConfig, HCodecModel, MssConfig, MssForConditionalGeneration
from processing_mss import MssFeatureExtractor, MssProcessor
from training_mss.codebooks import CodebookTraining


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


def masked_options(conv_channels: list[int] | None = (8, 12)) -> dict:
    """Fields of `MssConfig`: masks, of which the language model is told, and the options that go with them."""
    return {
        "mask_head": True,
        "masked_conditioning": True,
        "prefix_stride": 2,
        "aligned_conditioning": True,
        "track_embeddings": True,
        "conv_channels": list(conv_channels) if conv_channels else None,
    }


def tiny_config(conv_channels: list[int] | None = None, conv_norm: str = "layer_norm", **options) -> MssConfig:
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
            "conv_norm": conv_norm,
            "dropout": 0.0,
            "conv_channels": conv_channels,
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


def tiny_codec(seed: int = 0, num_codebooks: int = 4) -> HCodecModel:
    torch.manual_seed(seed)
    return HCodecModel(tiny_codec_config(num_codebooks)).eval()


def start_codebooks(codec: HCodecModel, waveforms: torch.Tensor) -> None:
    """Let the codebooks learn from one batch `(B, T)`: by a k-means of it."""
    for quantizer in (codec.acoustic_quantizer, codec.semantic_quantizer):
        CodebookTraining(quantizer, codec.config)
    with torch.no_grad():
        codec.train()(waveforms)
    codec.eval()


def tiny_model(seed: int = 0, **options) -> MssForConditionalGeneration:
    torch.manual_seed(seed)
    return MssForConditionalGeneration(tiny_config(**options)).eval()


def tiny_processor(config: MssConfig | None = None) -> MssProcessor:
    config = config or tiny_config()
    features = "waveform" if config.conditional_encoder == "hubert" else "log_mel"
    return MssProcessor(MssFeatureExtractor(features=features), stems=config.stems)


def tiny_training_config(folder: Path, base: str = "tiny.yaml") -> Path:
    """A training configuration over one of `configs/`, with models as small as those above and no dropout.

    Everything that makes the ablations what they are is left as the base has it. No samples are generated: that takes
    longer than all the rest.
    """
    root = Path(__file__).resolve().parents[1]
    codec = tiny_codec_config(num_codebooks=16 if base.startswith("paper") else 4).to_diff_dict()
    for name in ("model_type", "transformers_version", "semantic_model_config", "semantic_feature_size"):
        codec.pop(name, None)
    crops = {"crop_s": 0.96, "batch_size": 2, "input": "files"}
    optimizer = {"learning_rate": 2e-3, "warmup_steps": 4}
    stage = {"crops": crops, "optimizer": optimizer, "max_steps": 4, "validation_crops": 2, "generated_crops": 0}
    stage["mixed_precision"] = "no"
    no_dropout = ("hidden_dropout", "attention_dropout", "feat_proj_dropout", "layerdrop")
    hubert = {**tiny_hubert_config().to_diff_dict(), **dict.fromkeys(no_dropout, 0.0)}
    for name in ("model_type", "transformers_version"):
        hubert.pop(name, None)
    separator = {
        "decoder_config": {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "attention_dropout": 0.0,
        },
    }
    if base != "paper_a1.yaml":
        separator["encoder_config"] = {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "conv_norm": "layer_norm",
            "dropout": 0.0,
        }
    values = {
        "base": str(root / "configs" / base),
        "hubert": {**stage, "model": hubert, "num_mel_units": 8, "num_feature_units": 8, "feature_layer": 1},
        "codec": {**stage, "model": {**codec, "decoder_dropout": 0.0}, "quantizer_dropout": 0.0},
        "separator": {**stage, "model": separator},
        "peer": {**stage, "model": tiny_peers()},
    }
    path = folder / f"training_{base}"
    path.write_text(yaml.safe_dump(values))
    return path


def tiny_peers() -> dict:
    """Both networks of the stage `peer`; crops need whole hops of none of them."""
    bs_roformer = {
        "dim": 16,
        "depth": 2,
        "heads": 2,
        "dim_head": 8,
        "time_transformer_depth": 1,
        "freq_transformer_depth": 1,
        "mlp_expansion_factor": 1,
        "freqs_per_bands": [205, 410, 410],
        "stft_hop_length": 1000,
        "multi_stft_resolutions_window_sizes": [2048, 512],
        "multi_stft_hop_size": 1000,
    }
    return {"bs_roformer": bs_roformer, "htdemucs": {"channels": 8, "t_layers": 1, "t_heads": 2}}


def small_corpus(folder: Path, songs: int = 2, seconds: float = 3.0) -> Path:
    """A packed corpus of made-up songs, one of them for validation; the folder of its manifest."""
    rng = np.random.default_rng(0)
    num_samples = int(48000 * seconds)
    time = np.arange(num_samples) / 48000
    writer = ManifestWriter(folder / "manifest.jsonl")
    for number in range(songs + 1):
        pitch = 110 * 2 ** (number / 5)
        sounds = {
            "vocals": 0.2 * np.sin(4 * np.pi * pitch * time + 2 * np.sin(30 * time)),
            "drums": 0.3 * rng.standard_normal(num_samples) * np.exp(-20 * (time % 0.4)),
            "bass": 0.2 * np.sign(np.sin(np.pi * pitch * time)),
            "other": 0.1 * (np.sin(6 * np.pi * pitch * time) + np.sin(7.5 * np.pi * pitch * time)),
        }
        stems = {}
        for stem, waveform in sounds.items():
            # Noise everywhere: the codec hears phases too, and those of empty bins are rounding errors.
            waveform = waveform + 0.003 * rng.standard_normal(num_samples)
            path = folder / f"{number}_{stem}.npy"
            np.save(path, (waveform.clip(-1, 1) * 32767).astype(np.int16))
            stems[stem] = [str(path)]
        split = "validation" if number == songs else "train"
        song = Song(f"song{number}", split, stems, seconds, 48000, source="made", licence="CC0-1.0")
        writer.add(song)
    return folder
