"""Other separators to measure time beside: published architectures and sizes, random weights.

- htdemucs: package demucs, 42 M parameters, chunks of 7.8 s with a quarter of overlap;
- bs_roformer: package BS-RoFormer, the network of four stems that Music-Source-Separation-Training (MSST) publishes
  (dim 384, depth 8), chunks of 11 s with half of overlap;
- scnet: the network of a clone, as its YAML has it.

All compute in float32, as they do by default.
"""

import importlib
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import torch
import yaml

from data_mss.labelling import Teacher
from data_mss.labelling.bs_roformer import BSRoformerTeacher, build_bs_roformer
from data_mss.labelling.teachers import HTDemucsTeacher

from .baseline_scnet import SCNetTeacher, build_scnet, find_code, read_config

PEERS = ("htdemucs", "bs_roformer", "scnet")
PACKAGES = {"htdemucs": ("demucs.htdemucs", "demucs"), "bs_roformer": ("bs_roformer.bs_roformer", "BS-RoFormer")}
STEMS = ["drums", "bass", "other", "vocals"]
# What demucs publishes as htdemucs, where it differs from the defaults of the class.
HTDEMUCS = {"bottom_channels": 512, "dconv_mode": 3, "segment": Fraction(39, 5)}
BS_ROFORMER = {
    "model": {
        "dim": 384,
        "depth": 8,
        "stereo": True,
        "num_stems": 4,
        "time_transformer_depth": 1,
        "freq_transformer_depth": 1,
        "stft_hop_length": 441,
        "mlp_expansion_factor": 2,
        "flash_attn": True,
    },
    "audio": {"sample_rate": 44100, "chunk_size": 485100},
    "training": {"instruments": STEMS},
    "inference": {"batch_size": 2, "num_overlap": 2},
}


def find_peer(given: str) -> tuple[str, Callable[[torch.device], Teacher]]:
    """A peer's name, and what builds it on a device.

    Args:
        given: "htdemucs", "bs_roformer", or "scnet=CLONE/conf/config.yaml".

    Raises:
        ValueError: another name, or no YAML where one is needed, or one where none is.
        ImportError: its package is missing.
    """
    name, _, config = given.partition("=")
    if name not in PEERS or bool(config) != (name == "scnet"):
        raise ValueError(
            f"--vs takes htdemucs, bs_roformer and scnet=YAML, the YAML of a clone (git clone "
            f"https://github.com/starrytong/SCNet, then scnet=SCNet/conf/config.yaml), got {given!r}."
        )
    if name == "scnet":
        read_config(config)
        find_code(None, Path(config))
        return name, lambda device: _scnet(config, device)
    module, package = PACKAGES[name]
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"--vs {name} needs the package {package}: pip install {package} ({error}).") from error
    return name, _htdemucs if name == "htdemucs" else _bs_roformer


def _htdemucs(device: torch.device) -> Teacher:
    from demucs.htdemucs import HTDemucs

    return HTDemucsTeacher(HTDemucs(STEMS, **HTDEMUCS), device)


def _bs_roformer(device: torch.device) -> Teacher:
    model = build_bs_roformer(BS_ROFORMER["model"])
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        config.write_text(yaml.safe_dump(BS_ROFORMER))
        return BSRoformerTeacher(_saved(model, folder), str(config), device)


def _scnet(config: str, device: torch.device) -> Teacher:
    model = build_scnet(find_code(None, Path(config)), read_config(config)["model"])
    with tempfile.TemporaryDirectory() as folder:
        return SCNetTeacher(_saved(model, folder), config, device=device)


def _saved(model: torch.nn.Module, folder: str) -> str:
    """Path of the weights: these teachers read files."""
    path = str(Path(folder) / "weights.ckpt")
    torch.save(model.state_dict(), path)
    return path
