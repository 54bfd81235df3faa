"""Write tests/hcodec_golden.json and .safetensors: what the published H-Codec-2.0 computes with weights made here.

Run it as `python -m tests.make_hcodec_golden unified-audio`, where the argument is a clone of
https://github.com/alibaba/unified-audio (written with revision 7afa7ab); its QuarkAudio-HCodec/HCodec-2.0 runs as it
is. It needs torchaudio, and vector-quantize-pytorch 1.22.15 as its requirements say; with 1.32.0 the results are the
same, bit for bit, but `initted` is a scalar.

Weights and inputs are drawn from a seed, here and again in the test: stored are names, shapes and results. Stored too
are the names and shapes of the large model (12.5 frames a second), as the published code builds it from its YAML.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import yaml
from safetensors.torch import save_file

GOLDEN = Path(__file__).with_name("hcodec_golden.json")
FRAMES = 5
STFT = {"n_fft": 1920, "hop_length": 960, "target_frame_rate": 12.5, "causal": False}
WIDTHS = {"dim": 64, "intermediate_dim": 96, "convnext_layers": 2, "transformer_layers": 1}
CONFIG = {
    "encoder": {**STFT, **WIDTHS, "dimension": 32},
    "decoder": {**STFT, **WIDTHS, "input_channels": 64},
    "quantizer": {"dim": 32, "codebook_size": 64, "num_quantizers": 16, "kmeans_init": True},
    "semantic_encoder": {
        "input_channels": 48,
        "encode_channels": 64,
        "out_channels": 32,
        "channel_ratios": [1, 1, 1],
        "strides": [2, 1, 2],
    },
    "semantic_decoder": {
        "code_dim": 32,
        "output_channels": 48,
        "decode_channels": 64,
        "channel_ratios": [1, 1, 1],
        "strides": [2, 1, 2],
    },
}


def draw_weights(shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """Published names -> weights at which every layer matters: matrices keep the size of what passes through."""
    random = np.random.RandomState(0)  # NumPy keeps the stream of this generator the same for ever
    weights = {}
    for name, shape in shapes.items():
        values = torch.from_numpy(np.asarray(random.standard_normal(shape))).float()
        if name.endswith("window"):
            values = torch.hann_window(*shape)
        elif name.endswith("initted"):
            values = torch.ones(shape, dtype=torch.bool)
        elif "_codebook" in name:
            values *= 0.5
        elif values.dim() > 1:
            values /= (values.numel() / shape[0]) ** 0.5
        else:
            values = 0.1 * values + (0 if "bias" in name else 1)
        weights[name] = values
    return weights


def draw_inputs() -> dict[str, torch.Tensor]:
    """`waveform` `(2, T)` and `semantic_features` `(2, 48, 4 F)`, as the published model takes them."""
    random = np.random.RandomState(1)
    inputs = {"waveform": 0.2 * random.standard_normal((2, FRAMES * 3840))}
    inputs["semantic_features"] = random.standard_normal((2, 48, FRAMES * 4))
    return {name: torch.from_numpy(values).float() for name, values in inputs.items()}


def shapes_of(codec: torch.nn.Module) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in codec.state_dict().items()}


@torch.no_grad()
def main(clone: str):
    folder = Path(clone) / "QuarkAudio-HCodec" / "HCodec-2.0"
    sys.path.insert(0, str(folder))
    from vq import Codec

    large = yaml.safe_load((folder / "conf" / "large_12.5hz_config.yaml").read_text())
    with torch.device("meta"):
        large_codec = Codec(*[large[f"{section}_config"] for section in CONFIG])
    codec = Codec(*CONFIG.values()).eval()
    codec.load_state_dict(draw_weights(shapes_of(codec)))

    inputs = draw_inputs()
    acoustic_codes, semantic_codes = codec.encode(*inputs.values())
    reconstruction, reconstructed_features, _ = codec(*inputs.values())
    # A code that hangs by a thread would be another one on another machine.
    for codes in (codec.encode(*[(1 + change) * value for value in inputs.values()]) for change in (-1e-4, 1e-4)):
        assert torch.equal(codes[0], acoustic_codes) and torch.equal(codes[1], semantic_codes), "draw other inputs"
    results = {
        "acoustic_codes": acoustic_codes.contiguous(),
        "semantic_codes": semantic_codes.contiguous(),
        "reconstruction": reconstruction,
        "reconstructed_semantic_features": reconstructed_features.contiguous(),
    }
    save_file(results, GOLDEN.with_suffix(".safetensors"))
    small = {"config": CONFIG, "shapes": shapes_of(codec)}
    golden = {"small": small, "large": {"config": large, "shapes": shapes_of(large_codec)}}
    GOLDEN.write_text(json.dumps(golden, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
