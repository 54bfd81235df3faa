"""SCNet (arXiv 2401.13276) as a baseline: its code comes from a clone that the user has, its weights from a file.

Two repositories have the network, with the same names of weights and fields of the configuration:

- starrytong/SCNet, its authors': `scnet/SCNet.py`, `conf/config.yaml`; the network normalises its own spectrogram;
- ZFTurbo/Music-Source-Separation-Training (MSST): `models/scnet/scnet.py`, `configs/config_musdb18_scnet*.yaml`; it
  does not, and has more published checkpoints.

So a checkpoint runs with the code it was trained with; with the other's it loads, and separates badly.
"""

import importlib
import re
import sys
import types
from pathlib import Path

import torch

from data_mss.labelling.bs_roformer import WRAPPERS, fit_weights, read_weights, read_yaml_with_tuples
from data_mss.labelling.chunks import separate_in_chunks, separate_with_channels

PLACES = ("scnet/SCNet.py", "models/scnet/scnet.py")  # of the network in a clone
AUTHORS_CHUNK_S = 20  # of the authors' inference, with half of it overlapping; MSST's YAML says its own


class SCNetTeacher:
    """An SCNet with the interface of a teacher (`data_mss.labelling.teachers.Teacher`).

    Songs are cut and scaled as in the inference of the repository that the YAML is from, but without the random shift
    of the authors' (a song done again gives the same stems) and without half precision; the last chunk of a longer song
    is filled up with zeros, where the authors' is short and MSST's reflected.

    Args:
        checkpoint: weights (.th, .ckpt), read with `weights_only=True`.
        config: YAML with a section `model`; a section `audio` says that it is MSST's.
        code: the clone's folder, or the file in it that has the class `SCNet` (MSST's `models/scnet/scnet_masked.py`);
            the clone that `config` lies in if it is None. Its code runs with your rights, as in `python -m`.

    Raises:
        ValueError: files that cannot be read safely, no code there, or weights that do not fit.
        ImportError: the clone's code needs a package that is missing.
    """

    name = "scnet"

    def __init__(self, checkpoint: str, config: str, code: str | None = None, device: torch.device | str = "cpu"):
        settings = read_config(config)
        self.device = torch.device(device)
        self.code = find_code(Path(code) if code else None, Path(config))
        self.model = build_scnet(self.code, settings["model"])
        load_weights(self.model, checkpoint)
        self.model.eval().to(self.device)
        self.stems = list(self.model.sources)
        inference, audio = settings.get("inference") or {}, settings.get("audio")
        self.batch_size = 1
        if audio:
            self.sampling_rate = audio.get("sample_rate", 44100)
            self.batch_size = inference.get("batch_size", 1)
            self.chunk = inference.get("chunk_size") or audio["chunk_size"]
            self.overlap = self.chunk - self.chunk // max(1, inference.get("num_overlap", 2))
            self.normalise = bool(inference.get("normalize"))
            self.fill_up = True  # songs shorter than a chunk
        else:
            self.sampling_rate = (settings.get("data") or {}).get("samplerate", 44100)
            self.chunk = AUTHORS_CHUNK_S * self.sampling_rate
            self.overlap = self.chunk // 2
            self.normalise = True
            self.fill_up = False

    @torch.inference_mode()
    def separate(self, waveform: torch.Tensor) -> dict[str, torch.Tensor]:
        return dict(zip(self.stems, separate_with_channels(self._separate, waveform, self.model.audio_channels)))

    def _separate(self, waveform: torch.Tensor) -> torch.Tensor:
        mono = waveform.mean(dim=0)
        mean, deviation = (mono.mean(), mono.std() + 1e-8) if self.normalise else (0.0, 1.0)
        chunk, overlap = self.chunk, self.overlap
        if not self.fill_up and waveform.shape[-1] <= chunk:
            chunk, overlap = waveform.shape[-1], 0
        estimates = separate_in_chunks(
            self.model, (waveform - mean) / deviation, chunk, overlap, self.batch_size, self.device
        )
        return estimates * deviation + mean


def read_config(path: str) -> dict:
    """Sections of a YAML file.

    Raises:
        ValueError: no YAML of this kind.
    """
    settings = read_yaml_with_tuples(path)
    if not isinstance(settings, dict) or not isinstance(settings.get("model"), dict):
        raise ValueError(f"{path} needs a section `model`, as the YAML files of SCNet have.")
    audio, inference = settings.get("audio"), settings.get("inference") or {}
    if audio and "chunk_size" not in {**audio, **inference}:
        raise ValueError(f"{path} needs `chunk_size` (in samples) in its section `audio` or `inference`.")
    return settings


def find_code(code: Path | None, config: Path) -> Path:
    """The file with the class.

    Raises:
        ValueError: there is none.
    """
    if code is not None and code.is_file():
        return code
    folders = config.resolve().parents if code is None else [code]
    for folder in folders:
        for place in PLACES:
            if (folder / place).is_file():
                return folder / place
    raise ValueError(
        f"No code of SCNet in {code or f'the folders above {config}'}: looked for {list(PLACES)}. Clone "
        "https://github.com/starrytong/SCNet or https://github.com/ZFTurbo/Music-Source-Separation-Training, whichever "
        "the checkpoint is from, and put the YAML into the clone or say where the clone is (`code`)."
    )


def build_scnet(file: Path, model_section: dict) -> torch.nn.Module:
    """The network of a YAML's section `model`.

    Raises:
        ValueError: no class `SCNet` in the file, or one that does not know a setting.
        ImportError: the file needs a package that is missing.
    """
    # A package of its own name for its folder: clones call theirs `scnet` or `models`, and their `__init__` may import
    # everything that training needs. Relative imports of the file work.
    folder = str(file.parent.resolve())
    package = re.sub(r"\W", "_", f"_scnet_in_{folder}")
    sys.modules.setdefault(package, types.ModuleType(package)).__path__ = [folder]
    try:
        network = importlib.import_module(f"{package}.{file.stem}").SCNet
    except ImportError as error:
        raise ImportError(f"The code of SCNet in {file} needs something that is missing: {error}") from error
    except AttributeError as error:
        raise ValueError(f"{file} has no class `SCNet`: is it another network's?") from error
    try:
        return network(**model_section)
    except TypeError as error:
        raise ValueError(
            f"The YAML's section `model` does not fit the code in {file}: {error}. Is it another network's (such as "
            "SCNet Tran, or the unofficial SCNet)? Separate with its own program and evaluate the folder of its stems."
        ) from error


def load_weights(model: torch.nn.Module, checkpoint: str):
    """Put a checkpoint's weights into the network; of the authors' training checkpoints the best state counts.

    Raises:
        ValueError: the file cannot be read safely, or it does not fit the network.
    """
    state = read_weights(checkpoint, ("best_state", *WRAPPERS))
    state = {name.removeprefix("module."): weight for name, weight in state.items()}  # of training on several GPUs
    fit_weights(model, state, checkpoint)
