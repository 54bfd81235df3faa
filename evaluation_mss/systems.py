"""What is evaluated: our models in each output mode, and stems that any other program has made.

The identity of a system, hashes of weights or versions of packages, says in a few characters what exactly ran.
"""

import dataclasses
import hashlib
import importlib.metadata
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import torch

import modeling_mss  # also registers the model with transformers
from data_mss.manifest import canonical_stem
from data_mss.sharding import default_device
from processing_mss import AUDIO_SUFFIXES, SeparationOptions, read_audio, resample

from .songs import EvaluationSong, file_name

DIGITS = 12  # of hashes
MISSING_S = 0.1  # that may be missing at the end of a stem: programs that work in frames drop the last one


class System(Protocol):
    """One line of a table.

    Attributes:
        name: "mss-lm filtered", "spleeter", ...
        generative: its output is the codec's output, so that the paper's round trip does not apply to it.
        identity: what exactly ran: hash of the checkpoint, version of the package, options.
    """

    name: str
    generative: bool
    identity: str

    def separate(self, song: EvaluationSong) -> dict[str, torch.Tensor]:
        """Estimates by stem, `(C, T)` at the rate and length of the mixture; C is the song's, or 1.

        Stems that the system does not know, or that the song is not asked for, are missing.
        """


class ModelSystem:
    """A separator of this project, or any repository that `pipeline("audio-source-separation")` loads.

    Args:
        model_path: folder or Hub id.
        output: "masked", "filtered" or "generated".
        options: everything else that a call of the pipeline may say (seed, decoding, windows); `output` replaces its
            own.
        device: accelerate's for this process, or CUDA if there is one, if it is not said.
        name: of the line; "mss-lm filtered" and the like if it is not said.

    Raises:
        ValueError: options that the model does not have, or `two_stems`, which is no stem of a song.
        OSError: no model there.
    """

    def __init__(
        self,
        model_path: str,
        output: str = "filtered",
        options: SeparationOptions | None = None,
        device: torch.device | str | None = None,
        name: str | None = None,
    ):
        from transformers import pipeline

        self.options = dataclasses.replace(options or SeparationOptions(), output=output)
        if self.options.two_stems is not None:
            raise ValueError(f"`two_stems` cannot be evaluated, got {self.options.two_stems!r}: use `stems`.")
        folder = local_folder(str(model_path))
        device = torch.device(device or default_device())
        self._pipeline = pipeline("audio-source-separation", model=str(folder), device=device, dtype="auto")
        self._pipeline.model.to(device)  # in one of several processes, transformers leaves it where it was loaded
        self.options.check(self._pipeline.model, self._pipeline.processor)
        self.name = name or f"mss-lm {output}"
        self.generative = output == "generated"
        said = {}
        for field in dataclasses.fields(SeparationOptions):
            value = getattr(self.options, field.name)
            # Batches and progress change nothing in what comes out.
            if value != field.default and field.name not in ("output", "batch_size", "progress_callback"):
                said[field.name] = value
        described = [f"{name}={value}" for name, value in said.items()]
        if self.generative:
            described.insert(0, "one candidate")  # earlier scores, without these words, may be of the best of several
        self.identity = ", ".join([f"checkpoint {checkpoint_hash(folder)}", output, *described])

    def separate(self, song: EvaluationSong) -> dict[str, torch.Tensor]:
        """See `System`."""
        stems = self._pipeline(song.mixture.numpy(), sampling_rate=song.sampling_rate, **vars(self.options))
        found = {stem["label"]: torch.from_numpy(stem["audio"]) for stem in stems}
        return {
            stem: sum(found[name] for name in names)
            for stem, names in names_of_stems(self._pipeline.model.config.stems, song.stems).items()
            if found.keys() >= set(names)  # not all are generated if the options name stems
        }


def outputs_of(model_path: str) -> list[str]:
    """The outputs that a separator is good for, best first."""
    return list(modeling_mss.MssConfig.from_pretrained(local_folder(str(model_path))).outputs)


class StemFolderSystem:
    """Finished stems, made by any program: `folder/SONG/STEM.ext` or `folder/STEM/SONG.ext`.

    SONG is the id of the song, or the last part of it ("test/A - B" -> "A - B"), or the name of the excerpt; the same
    with what no file name may hold replaced ("test_A - B"). Stems of a whole song are cut to the excerpt. STEM is any
    name that manifests understand ("Lead Vocals"); several of the same stem are summed. Any rate is resampled.

    Args:
        folder: with audio files in any format that is read.
        name: of the line; the folder's own if it is not said.
        generative: the stems are this codec's output.

    Raises:
        ValueError: no stems in the folder.
    """

    def __init__(self, folder: str | Path, name: str | None = None, generative: bool = False):
        folder = Path(folder)
        self.folder = folder
        self.name = name or folder.resolve().name
        self.generative = generative
        self._files: dict[str, dict[str, list[Path]]] = {}  # song -> name of the stem -> files
        paths = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in AUDIO_SUFFIXES]
        paths = [path for path in paths if not path.name.startswith(".")]  # unfinished, or another system's notes
        for path in paths:
            *parents, last = path.relative_to(folder).with_suffix("").parts
            # A file may be read in both ways ("vocals/bass.wav"): the songs that are asked for say which is meant.
            if parents and canonical_stem(last):
                self._add("/".join(parents), last, path)
            if parents and canonical_stem(parents[0]):
                self._add("/".join([*parents[1:], last]), parents[0], path)
        if not self._files:
            raise ValueError(
                f"No stems in {folder}: expected audio files such as SONG/vocals.wav or vocals/SONG.wav below it."
            )
        self.identity = f"{len(paths)} files {stat_hash(folder, paths)}"

    def _add(self, song: str, stem: str, path: Path):
        self._files.setdefault(song, {}).setdefault(stem, []).append(path)

    def separate(self, song: EvaluationSong) -> dict[str, torch.Tensor]:
        """See `System`.

        Raises:
            ValueError: the song is not in the folder, or its stems are shorter than it, or do not fit otherwise.
        """
        found, is_excerpt = self._find(song)
        first_s = 0.0 if is_excerpt else song.start_s
        return {
            stem: sum(self._read(path, song, first_s) for name in names for path in found[name])
            for stem, names in names_of_stems(found, song.stems).items()
        }

    def _find(self, song: EvaluationSong) -> tuple[dict[str, list[Path]], bool]:
        """Files by name of the stem, and whether they hold the excerpt alone."""
        last = song.song_id.rpartition("/")[2]
        names = {song.name: song.name != file_name(song.song_id)}
        if not song.equal_loudness:  # stems of the song itself have other levels
            names |= dict.fromkeys((song.song_id, file_name(song.song_id), last, file_name(last)), False)
        for name, is_excerpt in names.items():
            if name in self._files:
                return self._files[name], is_excerpt
        raise ValueError(
            f"{self.folder} has no stems of the song {song.song_id!r}: looked for {list(names)}, there are "
            f"{len(self._files)} songs, such as {sorted(self._files)[:3]}."
        )

    def _read(self, path: Path, song: EvaluationSong, first_s: float) -> torch.Tensor:
        """`(C, T)` of the excerpt; C is the song's, or 1."""
        samples, rate = read_audio(path)
        first = round(first_s * song.sampling_rate)
        waveform = resample(torch.from_numpy(samples), rate, song.sampling_rate)[:, first:]
        num_channels, num_samples = song.mixture.shape
        missing = num_samples - waveform.shape[1]
        if missing > MISSING_S * song.sampling_rate:
            raise ValueError(
                f"{path} is too short: it has {samples.shape[1] / rate:.2f} s, and {song.name!r} needs "
                f"{first_s + num_samples / song.sampling_rate:.2f} s. Give the stems of the whole song, or those of "
                f"the excerpt under the name {song.name!r}."
            )
        if len(waveform) not in (1, num_channels):
            if num_channels > 1:
                raise ValueError(f"{path} has {len(waveform)} channels, the song {song.song_id!r} has {num_channels}.")
            waveform = waveform.mean(dim=0, keepdim=True)
        return torch.nn.functional.pad(waveform[:, :num_samples], (0, max(missing, 0)))


def names_of_stems(names: Iterable[str], stems: Iterable[str]) -> dict[str, list[str]]:
    """Which of a system's own names make up each of `stems`, in the order of `stems`; they are summed.

    What is none of `stems` counts as "other", as in manifests. "other" is only a stem beside all the others: a system
    for vocals alone calls everything else so. A sum of stems, such as an accompaniment, counts as "other" if nothing
    but vocals is asked for beside it, and else not at all.
    """
    stems, found = list(stems), {}
    for name in names:
        stem = canonical_stem(name)
        if stem and "+" in stem and not set(stems) <= {"vocals", "other"}:
            continue
        if stem is not None:
            found.setdefault(stem if stem in stems else "other", []).append(name)
    if not set(stems) - {"other"} <= found.keys():
        found.pop("other", None)
    return {stem: found[stem] for stem in stems if stem in found}


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
