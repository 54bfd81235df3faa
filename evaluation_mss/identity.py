"""What exactly was evaluated, in a few characters: hashes of weights, and versions of packages."""

import hashlib
import importlib.metadata
from collections.abc import Iterable
from pathlib import Path

import torch

DIGITS = 12


def local_folder(model: str) -> Path:
    """The folder of a checkpoint: a path as it is, a Hub id after the download.

    Raises:
        ValueError, OSError: neither, and the message of huggingface_hub says why.
    """
    from huggingface_hub import snapshot_download

    return Path(model) if Path(model).is_dir() else Path(snapshot_download(model))


def files_hash(paths: Iterable[Path]) -> str:
    """First 12 digits of the SHA-256 over names and contents of files, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(paths, key=lambda path: path.name):
        with open(path, "rb") as file:
            digest.update(f"{path.name}:{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()[:DIGITS]


def checkpoint_hash(folder: Path) -> str:
    """Of a `from_pretrained` folder: its weights and configurations; code and model card do not count."""
    paths = [path for pattern in ("*.safetensors", "*.bin", "*config.json") for path in folder.glob(pattern)]
    if not paths:
        raise ValueError(f"{folder} holds no checkpoint: there is neither a config.json nor weights in it.")
    return files_hash(paths)


def weights_hash(model: torch.nn.Module) -> str:
    """Of the weights in memory, for models whose files a package keeps to itself."""
    digest = hashlib.sha256()
    for name, weight in model.state_dict().items():
        digest.update(f"{name}:{tuple(weight.shape)}:".encode())
        digest.update(weight.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:DIGITS]


def package_version(package: str) -> str:
    """ "demucs 4.1.0" """
    return f"{package} {importlib.metadata.version(package)}"


def stat_hash(folder: Path, paths: Iterable[Path]) -> str:
    """Of files that are too many to be read: their names, sizes and times of change."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        stat = path.stat()
        digest.update(f"{path.relative_to(folder)}:{stat.st_size}:{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:DIGITS]
