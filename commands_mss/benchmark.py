"""Measure how long separations take on this machine, where the time goes, and how long other separators take.

examples:
  mss-lm benchmark --seconds 24 --threads 1             the model of the package on one core, all its outputs
  mss-lm benchmark --vs htdemucs bs_roformer            beside HTDemucs and BS-RoFormer, on the same song
  mss-lm benchmark --vs scnet=SCNet/conf/config.yaml    beside SCNet, from a clone of its repository
  mss-lm benchmark --config paper --device cuda         the paper's model, with random weights
  mss-lm benchmark --outputs masked --vs htdemucs       one output only

The song is stereo noise. Separations are measured from array to stems and from file to files, and once more stage by
stage; decoding beside what this machine can copy and multiply. Medians of some runs, of one if it takes 10 s or more.
Other separators have their published architectures and sizes, in float32, and random weights. Progress goes to the
standard error; the last line of the standard output is all of it in JSON.

exit codes: 0 all was measured, 1 something failed, 2 wrong usage, 130 interrupted
"""

import argparse
import json
import sys

from .loading import load_separator

OUTPUTS = ["masked", "filtered", "generated"]
LIMITS_S = (1, 600)  # longer songs are not kept in memory; benchmarks/growth.py measures them


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument(
        "--config",
        choices=["checkpoint", "paper"],
        default="checkpoint",
        help="a trained separator, or the paper's architecture with random weights (default: %(default)s)",
    )
    parser.add_argument(
        "--model", help="with --config checkpoint: folder or Hub id of a separator (default: the package's)"
    )
    parser.add_argument(
        "--outputs",
        nargs="+",
        choices=OUTPUTS,
        metavar="OUTPUT",
        help="masked filtered generated (default: all it has)",
    )
    parser.add_argument(
        "--vs",
        nargs="+",
        default=[],
        metavar="NAME[=CONFIG]",
        help="other separators: htdemucs, bs_roformer, scnet=CLONE/conf/config.yaml",
    )
    parser.add_argument("--seconds", type=float, default=240.0, help="of the song (default: %(default)g)")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="for medians (default: %(default)s)")
    parser.add_argument("--threads", type=int, metavar="N", help="on the CPU (default: torch's choice)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: cuda if there is one)")
    parser.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16", "float16"],
        default="auto",
        help="of the computation (default: as `mss-lm separate` chooses it)",
    )


def run(options: argparse.Namespace) -> int:
    # Imported here so that `--help` answers at once.
    import torch

    from evaluation_mss.benchmark import Benchmark, run_benchmark
    from evaluation_mss.benchmark_peers import find_peer

    check(options)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {options.device}: torch finds no CUDA device here; use --device cpu.")
    peers = dict(find_peer(peer) for given in options.vs for peer in given.split(","))
    say("load the model")
    pipe = load_pipeline(options, device)
    available = list(pipe.model.config.outputs)
    outputs = options.outputs or available
    if not set(outputs) <= set(available):
        raise ValueError(f"--outputs must be some of {available}, what this model has, got {outputs}.")
    name = "paper" if options.config == "paper" else options.model or "the package's"
    result = run_benchmark(Benchmark(name, pipe, outputs, peers, options.seconds, options.runs, say))
    print(table(result))
    print(json.dumps(rounded(result)))
    return 1 if "captured_error" in result else 0


def check(options: argparse.Namespace):
    """Raise ValueError for options that cannot be measured."""
    if not LIMITS_S[0] <= options.seconds <= LIMITS_S[1]:
        raise ValueError(f"--seconds must be from {LIMITS_S[0]} to {LIMITS_S[1]}, got {options.seconds:g}.")
    if options.runs < 1 or (options.threads is not None and options.threads < 1):
        raise ValueError(f"--runs and --threads must be at least 1, got {options.runs} and {options.threads}.")
    if options.model is not None and options.config == "paper":
        raise ValueError(f"--config paper has random weights: leave --model {options.model} out.")


def say(text: str):
    print(f"mss-lm benchmark: {text}", file=sys.stderr, flush=True)


def load_pipeline(options: argparse.Namespace, device):
    import torch
    from transformers import pipeline

    from evaluation_mss.benchmark import random_separator
    from processing_mss import DEFAULT_MODEL, fitting_dtype

    dtype = fitting_dtype(device) if options.dtype == "auto" else getattr(torch, options.dtype)
    if options.config == "paper":
        model, processor = random_separator(dtype, device)
    else:
        model, processor = load_separator(options.model or DEFAULT_MODEL, dtype)
    return pipeline("audio-source-separation", model=model, processor=processor, device=device)


def table(result: dict) -> str:
    """What was measured, for people."""
    parts = [heading(result), separations_table(result["separations"])]
    for peer, outputs in result["ratios"].items():
        parts.append("\n".join(f"{output} takes {share(ratio, peer)}" for output, ratio in outputs.items()))
    parts.append(stages_table(result["stages"]))
    if result["decoding"]:
        parts.append(decoding_table(result["decoding"], result["machine_rates"]))
    if "captured_equal_share" in result:
        share_of_codes = result["captured_equal_share"]
        parts.append(f"codes that captured graphs and plain steps have in common, in float32: {share_of_codes:.2%}")
    if "captured_error" in result:
        parts.append(f"steps could not be captured: {result['captured_error']}")
    return "\n\n".join(parts) + "\n"


def heading(result: dict) -> str:
    machine, model, song = result["machine"], result["model"], result["song"]
    device = "" if machine["device"] == "cpu" else f"{machine['device']}, "
    peers = ", ".join(result["peers"]["names"]) or "none"
    return (
        f"{device}{machine['processor']}, threads: {machine['threads']}, torch {machine['torch']}, {machine['date']}\n"
        f"{model['name']}: {model['parameters'] / 1e6:.1f} M parameters, {model['weights']} weights, {model['dtype']}\n"
        f"song of {song['seconds']:g} s in stereo at {song['sampling_rate']} Hz, {song['windows']} windows\n"
        f"other separators: {peers} ({result['peers']['weights']} weights, {result['peers']['dtype']})"
    )


def separations_table(separations: dict) -> str:
    lines = [f"{'separation':<18}{'wall s':>9}{'CPU s':>9}{'x real time':>13}{'CPU s/s':>9}{'peak GB':>9}{'runs':>6}"]
    for name, score in separations.items():
        lines.append(
            f"{name:<18}{score['wall_seconds']:>9.2f}{score['cpu_seconds']:>9.2f}{score['times_real_time']:>13.2f}"
            f"{score['cpu_seconds_per_second']:>9.3f}{score['peak_bytes'] / 1e9:>9.2f}{score['runs']:>6}"
        )
    return "\n".join(lines)


def share(ratio: dict, peer: str) -> str:
    """ "1/21 of the time of htdemucs, 1/20 of its CPU time" """

    def of(value: float) -> str:
        return f"{value:.1f} times" if value > 0.67 else f"1/{1 / value:.0f} of"

    return f"{of(ratio['wall'])} the time of {peer}, {of(ratio['cpu'])} its CPU time"


def stages_table(stages: dict) -> str:
    from evaluation_mss.benchmark_stages import STAGES

    lines = [f"{'seconds of stage':<18}" + "".join(f"{output:>12}" for output in stages)]
    for stage in STAGES:
        spent = (f"{seconds[stage]:.3f}" if stage in seconds else "-" for seconds in stages.values())
        lines.append(f"{stage:<18}" + "".join(f"{text:>12}" for text in spent))
    lines.append(f"{'sum':<18}" + "".join(f"{sum(seconds.values()):>12.3f}" for seconds in stages.values()))
    return "\n".join(lines)


def decoding_table(decoding: dict, rates: dict) -> str:
    lines = [
        f"decoding of {decoding['output']}; this machine copies {rates['copy_bytes_per_second'] / 1e9:.1f} GB/s "
        f"and multiplies {rates['matmul_flops_per_second'] / 1e9:.0f} GFLOP/s"
    ]
    for kind in ("plain", "captured"):
        if kind in decoding:
            step = decoding[kind]
            lines.append(
                f"{kind}: {step['tokens_per_second']:.0f} tokens/s; {step['num_steps']} steps of up to "
                f"{step['rows_per_step']} rows, each {1e3 * step['seconds_per_step']:.2f} ms, "
                f"{step['bytes_per_step'] / 1e6:.1f} MB ({step['bandwidth_share']:.0%} of the bandwidth), "
                f"{step['flops_per_step'] / 1e9:.2f} GFLOP ({step['compute_share']:.0%} of the rate)"
            )
    return "\n".join(lines)


def rounded(value):
    """Numbers of a result to five digits."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return float(f"{value:.5g}") if isinstance(value, float) else value
