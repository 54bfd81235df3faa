"""Convert the published H-Codec-2.0 checkpoint to a `from_pretrained` folder.

    python -m modeling_mss.convert_hcodec --checkpoint large_12.5hz_weights.pt --config large_12.5hz_config.yaml \
        --hubert bosonai/hubert_base --output_dir DIR

The published code keeps its HuBERT elsewhere; `--hubert` (a folder or a Hub id) puts it inside. Without it the codec
decodes, and encodes when it is given semantic features.
"""

import argparse
import re
import sys
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file
from transformers import DacFeatureExtractor, HubertConfig, HubertModel

from .configuration_hcodec import HCodecConfig
from .modeling_hcodec import HCodecModel

# Published name -> ours, applied in this order to every entry.
RENAMES = [
    (r"^encoder\.stft\.window", "encoder.window"),
    (r"^decoder\.head\.istft\.window", "decoder.window"),
    (r"^decoder\.head\.out\.", "decoder.out."),
    (r"^encoder\.prior_net\.(\d+)\.", r"encoder.convnext.\1."),
    (r"^encoder\.post_net\.1\.layers\.", "encoder.transformer."),
    (r"^decoder\.post_net\.(\d+)\.", r"decoder.convnext.\1."),
    (r"^decoder\.prior_net\.([01])\.", r"decoder.resnet_in.\1."),
    (r"^decoder\.prior_net\.3\.layers\.", "decoder.transformer."),
    (r"^decoder\.prior_net\.5\.", "decoder.resnet_out.0."),
    (r"^decoder\.prior_net\.6\.", "decoder.resnet_out.1."),
    (r"^decoder\.prior_net\.7\.", "decoder.group_norm."),
    (r"final_layer_norm\.", "final_norm."),
    (r"\.gamma$", ".scale"),
    (r"\.dwconv\.", ".depthwise."),
    (r"\.pwconv1\.linear\.", ".up."),
    (r"\.pwconv2\.linear\.", ".down."),
    (r"\.self_attn\.rnn\.", ".lstm."),
    (r"\.self_attn\.([qkvo]_proj)\.", r".\1."),
    (r"\.mlp\.w1\.", ".gate_proj."),
    (r"\.mlp\.w2\.", ".down_proj."),
    (r"\.mlp\.w3\.", ".up_proj."),
    (r"\.input_layernorm\.", ".input_norm."),
    (r"\.post_attention_layernorm\.", ".mlp_norm."),
    (r"^semantic_encoder\.conv\.", "semantic_encoder.conv_in."),
    (r"^semantic_decoder\.conv1\.", "semantic_decoder.conv_in."),
    (r"^(semantic_\w+coder)\.conv2\.", r"\1.conv_out."),
    (r"\.conv_blocks\.", ".blocks."),
    (r"\.(conv|deconv)\.(weight|bias)$", r".\2"),  # the published convolutions sit inside a padding module
    (r"^quantizer\.", "acoustic_quantizer."),
    (r"\._codebook\.initted$", ".initialized"),
    (r"\._codebook\.", "."),
]


def convert_upstream_config(upstream: dict, hubert_config: HubertConfig | None = None) -> HCodecConfig:
    """Published configuration (the parsed YAML) -> `HCodecConfig`.

    Args:
        upstream: sections `encoder_config`, `decoder_config`, ... as published; `encoder`, ... are taken too.
        hubert_config: configuration of the HuBERT to embed; without it the codec has none inside.

    Raises:
        ValueError: a section is missing, or describes a variant that this codec does not have.
    """
    names = ("encoder", "decoder", "quantizer", "semantic_encoder", "semantic_decoder")
    sections = {name: upstream.get(f"{name}_config", upstream.get(name)) for name in names}
    missing = [name for name, section in sections.items() if section is None]
    if missing:
        raise ValueError(f"The configuration lacks {missing}; it has {sorted(upstream)}.")
    encoder, decoder, quantizer, semantic_encoder, semantic_decoder = sections.values()
    latent_size = quantizer["dim"]
    sampling_rate = upstream.get("sampling_rate", 48000)

    _require(not encoder.get("causal") and not decoder.get("causal"), "only codecs that are not causal are supported")
    _require(encoder["dimension"] == latent_size, "the encoder's `dimension` must equal the quantizer's `dim`")
    _require(semantic_encoder["out_channels"] == latent_size, "the semantic encoder must end at the quantizer's `dim`")
    _require(semantic_decoder["code_dim"] == latent_size, "the semantic decoder must start at the quantizer's `dim`")
    _require(decoder["input_channels"] == 2 * latent_size, "the decoder must read both paths (twice `dim`)")
    for name in ("n_fft", "hop_length", "target_frame_rate"):
        _require(encoder[name] == decoder[name], f"`{name}` must be the same in encoder and decoder")
    stft_frame_rate = sampling_rate / encoder["hop_length"]
    return HCodecConfig(
        sampling_rate=sampling_rate,
        n_fft=encoder["n_fft"],
        stft_hop_length=encoder["hop_length"],
        stride=int(stft_frame_rate / encoder["target_frame_rate"]),
        latent_size=latent_size,
        num_codebooks=quantizer["num_quantizers"],
        codebook_size=quantizer["codebook_size"],
        codebook_decay=quantizer.get("decay", 0.99),
        kmeans_iterations=quantizer.get("kmeans_iters", 10),
        encoder_hidden_size=encoder["dim"],
        encoder_intermediate_size=encoder["intermediate_dim"],
        encoder_convnext_layers=encoder["convnext_layers"],
        encoder_transformer_layers=encoder["transformer_layers"],
        decoder_hidden_size=decoder["dim"],
        decoder_intermediate_size=decoder["intermediate_dim"],
        decoder_convnext_layers=decoder["convnext_layers"],
        decoder_transformer_layers=decoder["transformer_layers"],
        semantic_feature_size=semantic_encoder["input_channels"],
        semantic_encoder_hidden_size=semantic_encoder["encode_channels"],
        semantic_encoder_channel_ratios=list(semantic_encoder["channel_ratios"]),
        semantic_encoder_strides=list(semantic_encoder["strides"]),
        semantic_decoder_hidden_size=semantic_decoder["decode_channels"],
        semantic_decoder_channel_ratios=list(semantic_decoder["channel_ratios"]),
        semantic_decoder_strides=list(semantic_decoder["strides"]),
        semantic_model_config=hubert_config,
        include_semantic_model=hubert_config is not None,
    )


def convert_upstream_state_dict(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Published names and shapes -> ours, entry by entry. Works on meta tensors as well.

    The published codebooks have a leading axis of length one (heads of `vector_quantize_pytorch`), which is dropped.
    """
    converted = {}
    for name, tensor in state_dict.items():
        is_codebook = "._codebook." in name and tensor.dim() > 0
        for pattern, replacement in RENAMES:
            name = re.sub(pattern, replacement, name)
        assert name not in converted, f"two entries map to {name}"
        converted[name] = tensor[0] if is_codebook else tensor
    return converted


def convert(
    checkpoint: str | Path, config: str | Path, output_dir: str | Path, hubert: str | None = None
) -> HCodecModel:
    """Read, convert, check that every entry finds its place, and save.

    Raises:
        ValueError: names or shapes of checkpoint and configuration do not fit together.
    """
    hubert_model = HubertModel.from_pretrained(hubert) if hubert else None
    upstream_config = yaml.safe_load(Path(config).read_text())
    try:
        codec_config = convert_upstream_config(upstream_config, hubert_model.config if hubert_model else None)
    except KeyError as error:
        raise ValueError(f"{config} lacks {error} in one of its sections.") from error
    if str(checkpoint).endswith(".safetensors"):
        upstream = load_file(checkpoint)
    else:
        upstream = torch.load(checkpoint, map_location="cpu", weights_only=True)
    state_dict = convert_upstream_state_dict(upstream)
    if hubert_model is not None:
        state_dict |= {f"semantic_model.hubert.{name}": value for name, value in hubert_model.state_dict().items()}

    codec = HCodecModel(codec_config)
    try:
        codec.load_state_dict(state_dict)
    except RuntimeError as error:
        raise ValueError(f"{checkpoint} does not fit {config}: {error}") from error
    codec.save_pretrained(output_dir)
    save_feature_extractor(codec_config, output_dir)
    return codec


def save_feature_extractor(config: HCodecConfig, directory: str | Path) -> None:
    """Write what `AutoFeatureExtractor` finds beside a codec: mono waveforms of its rate, padded to whole code frames.

    It is DAC's, whose output, `input_values` `(B, 1, T)`, `HCodecModel.encode` takes.
    """
    extractor = DacFeatureExtractor(sampling_rate=config.sampling_rate, hop_length=config.hop_length)
    extractor.save_pretrained(directory)


def _require(condition: bool, message: str):
    if not condition:
        raise ValueError(f"Cannot convert this configuration: {message}.")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="published weights, .pt or .safetensors")
    parser.add_argument("--config", required=True, help="published configuration, YAML (JSON is YAML too)")
    parser.add_argument("--output_dir", required=True, help="folder to write config.json and model.safetensors to")
    parser.add_argument("--hubert", help="folder or Hub id of the HuBERT to embed, published: bosonai/hubert_base")
    arguments = parser.parse_args()
    try:
        codec = convert(arguments.checkpoint, arguments.config, arguments.output_dir, arguments.hubert)
    except (ValueError, OSError) as error:
        sys.exit(f"convert_hcodec: {error}")
    parameters = sum(parameter.numel() for parameter in codec.parameters())
    print(
        f"{arguments.output_dir}: {parameters / 1e6:.1f} M parameters, {codec.config.frame_rate} code frames a second"
    )


if __name__ == "__main__":
    main()
