"""What a step of the language model must read and compute, and how fast this machine reads and computes."""

import contextlib
import copy
import os
import time
from collections.abc import Callable, Iterator

import torch

from modeling_mss.cuda_graphs_mss import SWITCH

from .benchmark_stages import DecodedBatch, synchronize

REPEATS = 5  # of which the fastest counts


def step_bytes(config, rows: int, context: float, element_size: int) -> float:
    """Bytes that a step reads.

    (layers * (hidden * head_dim * (2 * heads + 2 * kv_heads) + 3 * hidden * intermediate)
    + hidden * tracks * Q * (V + 1/2) + 2 * layers * kv_heads * head_dim * context * rows) * element_size:
    the matrices of the decoder and of a head of codes (the acoustic one has V + 1 classes for each of Q codebooks, the
    semantic one V), and the key-value cache. Norms, the embedding of codes and sampling, a few percent, are left out.

    Args:
        config: an `MssConfig`.
        rows: sequences that are generated at once.
        context: positions in the cache.
        element_size: in bytes.
    """
    decoder = config.decoder_config
    cache = 2 * decoder.num_hidden_layers * decoder.num_key_value_heads * decoder.head_dim * context * rows
    return (step_weights(config) + cache) * element_size


def step_flops(config, rows: int, context: float) -> float:
    """Floating-point operations of a step: 2 * rows * weights + 4 * layers * heads * head_dim * context * rows.

    A multiplication and an addition for each of the weights that `step_bytes` counts, and of the attention's products
    of queries with keys and of probabilities with values.
    """
    decoder = config.decoder_config
    attention = decoder.num_hidden_layers * decoder.num_attention_heads * decoder.head_dim * context
    return rows * (2 * step_weights(config) + 4 * attention)


def step_weights(config) -> float:
    """Numbers in the matrices of a step, see `step_bytes`; half an acoustic and half a semantic head."""
    decoder = config.decoder_config
    hidden, heads = decoder.hidden_size, 2 * decoder.num_attention_heads + 2 * decoder.num_key_value_heads
    layer = hidden * decoder.head_dim * heads + 3 * hidden * decoder.intermediate_size
    classes = config.tracks_per_position * config.num_codebooks * (config.codebook_size + 0.5)
    return decoder.num_hidden_layers * layer + hidden * classes


def describe_decoding(batches: list[DecodedBatch], config, element_size: int, rates: dict[str, float]) -> dict:
    """Means over all steps of a song.

    A token is one position of one sequence, the Q codes of a path and track.

    Args:
        batches: of a `StagedSeparation`.
        rates: `copy_bytes_per_second` and `matmul_flops_per_second` of this machine.

    Returns:
        rows_per_step (of the largest batch), num_steps, seconds_per_step, tokens_per_second, bytes_per_step,
        flops_per_step, and `bandwidth_share` and `compute_share`, what is reached of the rates.
    """
    num_steps = sum(batch.num_steps for batch in batches)
    seconds = sum(batch.seconds for batch in batches)
    read = sum(batch.num_steps * step_bytes(config, batch.rows, batch.context, element_size) for batch in batches)
    computed = sum(batch.num_steps * step_flops(config, batch.rows, batch.context) for batch in batches)
    return {
        "rows_per_step": max(batch.rows for batch in batches),
        "num_steps": num_steps,
        "seconds_per_step": seconds / num_steps,
        "tokens_per_second": sum(batch.rows * batch.num_steps for batch in batches) / seconds,
        "bytes_per_step": read / num_steps,
        "flops_per_step": computed / num_steps,
        "bandwidth_share": read / seconds / rates["copy_bytes_per_second"],
        "compute_share": computed / seconds / rates["matmul_flops_per_second"],
    }


def machine_rates(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """`copy_bytes_per_second`, bytes read and written by a copy that fits into no cache, and `matmul_flops_per_second`
    of a product of square matrices of this dtype."""
    on_gpu = device.type == "cuda"
    source = torch.ones(2**30 if on_gpu else 2**28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_seconds = _fastest(lambda: target.copy_(source), device)
    size = 8192 if on_gpu else 1024
    matrix = torch.randn(size, size, device=device).to(dtype)
    matmul_seconds = _fastest(lambda: matrix @ matrix, device)
    return {
        "copy_bytes_per_second": 2 * source.numel() / copy_seconds,
        "matmul_flops_per_second": 2 * size**3 / matmul_seconds,
    }


def _fastest(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of some calls, after one that warms up."""
    seconds = []
    for _ in range(1 + REPEATS):
        synchronize(device)
        start = time.perf_counter()
        call()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


@contextlib.contextmanager
def cuda_graphs(captured: bool) -> Iterator[None]:
    """Let `generate` launch its steps as captured CUDA graphs, or kernel by kernel."""
    before = os.environ.get(SWITCH)
    os.environ[SWITCH] = str(int(captured))
    try:
        yield
    finally:
        if before is None:
            del os.environ[SWITCH]
        else:
            os.environ[SWITCH] = before


def captured_equal_share(model, inputs) -> float:
    """Share of the greedy codes that are the same with captured graphs and without, in float32.

    Less than 1 need not be an error of a graph: attention over whole buckets rounds differently, and where two codes
    are as good as equal, as with random weights they may be, the window goes on differently. Wrong graphs share next to
    nothing.

    Args:
        model: a separator in any dtype; a copy of it computes.
        inputs: of some windows, what a processor gives, on the model's device.
    """
    model, codes = copy.deepcopy(model).float(), []
    for captured in (False, True):
        with cuda_graphs(captured):
            codes.append(model.generate(**inputs, do_sample=False))
    return (codes[0] == codes[1]).double().mean().item()
