"""Any separator as a teacher, through its command line."""

import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

from processing_mss import read_audio, write_audio
from processing_mss.resampling_mss import resample

from ..manifest import canonical_stem

# What a separator may add or lose at the end (padding of its last chunk, a codec's delay).
MAX_LENGTH_DIFFERENCE_S = 0.1


class TeacherError(ValueError):
    """A command failed on a song, or did not write what it should; the message holds the end of what it said."""


class CommandTeacher:
    """A command line that reads a wav file and writes one wav file a stem.

    Args:
        command: e.g. "mytool --in {input} --out {output}". It runs without a shell, in an empty temporary folder.
            {input} becomes a 32-bit wav file, {output} an existing empty folder. Below that folder, `<stem>.wav` files
            are found by their names (`canonical_stem`); several of the same stem (guitar and piano) are summed, names
            that mean no stem are left out.
        stems: those that it has to write.
    """

    name = "command"
    settings: dict[str, str] = {}
    sampling_rate = 44100  # of the file that it gets; its own files may have any rate

    def __init__(self, command: str, stems: list[str]):
        self._arguments = shlex.split(command)
        for place in ("{input}", "{output}"):
            if not any(place in argument for argument in self._arguments):
                raise ValueError(f"The command needs {{input}} and {{output}}, got {command!r} without {place}.")
        if shutil.which(self._arguments[0]) is None:
            raise ValueError(f"There is no program {self._arguments[0]!r}. Is it installed, is its full path given?")
        unknown = [stem for stem in stems if canonical_stem(stem) is None]
        if unknown or not stems:
            raise ValueError(f"Stems of a command must be such as vocals, drums, bass, other; got {stems}.")
        self.stems = list(dict.fromkeys(canonical_stem(stem) for stem in stems))

    def separate(self, waveform: torch.Tensor) -> dict[str, torch.Tensor]:
        with tempfile.TemporaryDirectory(prefix="mss-teacher-") as folder:
            # Folders apart, so that a tool which writes beside its input does not pass that off as its output.
            song, output, work = Path(folder, "input", "song.wav"), Path(folder, "output"), Path(folder, "work")
            output.mkdir()
            work.mkdir()
            write_audio(song, waveform.cpu().numpy(), self.sampling_rate, bits="32f")
            self._run(song, output, work)
            return self._collect(output, waveform)

    def _run(self, song: Path, output: Path, work: Path):
        arguments = [
            argument.replace("{input}", str(song)).replace("{output}", str(output)) for argument in self._arguments
        ]
        result = subprocess.run(
            arguments,
            cwd=work,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        if result.returncode:
            said = result.stdout.strip()[-500:]
            raise TeacherError(f"The command {self._arguments[0]!r} failed with {result.returncode}: {said}")

    def _collect(self, output: Path, waveform: torch.Tensor) -> dict[str, torch.Tensor]:
        stems = {}
        files = sorted(output.rglob("*.wav"))
        for file in files:
            stem = canonical_stem(file.stem)
            if stem in self.stems:
                stems[stem] = stems.get(stem, 0) + self._read(file, waveform)
        missing = [stem for stem in self.stems if stem not in stems]
        if missing:
            found = [str(file.relative_to(output)) for file in files]
            raise TeacherError(f"The command {self._arguments[0]!r} wrote no {missing}; its wav files: {found}.")
        return {stem: stems[stem] for stem in self.stems}

    def _read(self, file: Path, waveform: torch.Tensor) -> torch.Tensor:
        samples, rate = read_audio(file)
        stem = resample(torch.from_numpy(samples), rate, self.sampling_rate)
        difference = (stem.shape[-1] - waveform.shape[-1]) / self.sampling_rate
        if abs(difference) > MAX_LENGTH_DIFFERENCE_S:
            raise TeacherError(f"{file.name} of the command is {difference:+.2f} s longer than the song.")
        if len(stem) not in (1, len(waveform)):
            raise TeacherError(f"{file.name} of the command has {len(stem)} channels, the song has {len(waveform)}.")
        stem = torch.nn.functional.pad(stem, (0, max(0, waveform.shape[-1] - stem.shape[-1])))
        return stem[:, : waveform.shape[-1]].expand_as(waveform).to(waveform.device)
