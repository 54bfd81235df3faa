"""How many windows fit into memory at once."""

import torch

MEMORY_SHARE = 0.8  # of what is free; the rest is for kernels' workspaces and fragmentation
MAX_WINDOWS = 128  # more do not make a GPU faster
CPU_WINDOWS = 16  # a CPU is busy with that, and even the paper's model in float32 needs 4 GB for it


def window_bytes(config, window_samples: int, num_stems: int, element_size: int) -> int:
    """Memory in bytes that generating one window takes, beside the weights.

    (2 * layers * kv_heads * head_dim * positions + P * (4 * hidden + 3 * intermediate)) * element_size
    + 64 * stems * samples: the key-value cache over all positions, activations while the P positions of the prefix are
    read, and the codec's decoder, which at its widest holds 16 floats per sample of each stem.

    Args:
        config: the model's.
        window_samples: at the model's rate.
        num_stems: tracks up to the last one that is generated.
        element_size: of the weights, in bytes.
    """
    decoder = config.decoder_config
    num_frames = window_samples // config.codec_config.hop_length
    prefix = num_frames * config.prefix_frames_per_code_frame // config.prefix_stride
    blocks = 1 if config.num_lanes > 1 else num_stems
    positions = 1 + prefix + blocks * (2 * num_frames + 1)
    head_dim = decoder.hidden_size // decoder.num_attention_heads
    cache = 2 * decoder.num_hidden_layers * decoder.num_key_value_heads * head_dim * positions
    activations = prefix * (4 * decoder.hidden_size + 3 * decoder.intermediate_size)
    return (cache + activations) * element_size + 64 * num_stems * window_samples


def fitting_windows(device: torch.device, bytes_per_window: int) -> int:
    """Windows that fit into the free memory of a CUDA device, from 1 to `MAX_WINDOWS`; elsewhere `CPU_WINDOWS`."""
    if device.type != "cuda":
        return CPU_WINDOWS
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # held by torch, unused
    return max(1, min(int(MEMORY_SHARE * free / bytes_per_window), MAX_WINDOWS))
