"""Trained folders -> folders with weights of half the size, as `pretrained_mss` holds them.

    python -m training_mss.half_precision runs/separator/final pretrained_mss
    python -m training_mss.half_precision runs/codec/final pretrained_mss/codec

Weights are stored as float16 and the configuration says float32, so `from_pretrained` computes in float32 unless it is
asked for another type: CPUs are slow in half precision. Separator and codec are rounded alike, so the entries of their
codebooks stay equal.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

LARGEST = torch.finfo(torch.float16).max


def halve(source: str | os.PathLike, target: str | os.PathLike) -> int:
    """Write configurations and float16 weights of a `from_pretrained` folder; returns the size of the weights in bytes.

    Code and cards are not copied.

    Raises:
        ValueError: no weights in one file there, or values that float16 does not hold.
    """
    source, target = Path(source), Path(target)
    weights = source / "model.safetensors"
    if not weights.is_file():
        raise ValueError(f"There is no {weights.name} in {source}: expected the final/ folder of a training run.")
    state = halved(load_file(weights))
    target.mkdir(parents=True, exist_ok=True)
    for path in source.glob("*.json"):
        values = json.loads(path.read_text(encoding="utf-8"))
        if path.name == "config.json":
            values["dtype"] = "float32"
        (target / path.name).write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary = target / f".{weights.name}.partial"
    save_file(state, temporary, metadata={"format": "pt"})
    os.replace(temporary, target / weights.name)
    return (target / weights.name).stat().st_size


def halved(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights with float16 in place of every other floating-point type.

    Raises:
        ValueError: values that float16 does not hold.
    """
    too_large = [name for name, value in state.items() if value.is_floating_point() and value.abs().max() > LARGEST]
    if too_large:
        raise ValueError(f"float16 holds values up to {LARGEST:.0f}, and these have larger ones: {too_large}.")
    return {name: value.half() if value.is_floating_point() else value for name, value in state.items()}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="final/ of a run")
    parser.add_argument("target", help="folder to write")
    options = parser.parse_args(arguments)
    try:
        num_bytes = halve(options.source, options.target)
    except (ValueError, OSError, SafetensorError) as error:
        print(f"half_precision: {error}", file=sys.stderr)
        return 1
    print(f"{options.target}: {num_bytes / 1e6:.1f} MB of weights")
    return 0


if __name__ == "__main__":
    sys.exit(main())
