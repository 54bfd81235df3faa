"""Audio of a few excerpts, for pictures and players: `audio/SYSTEM/EXCERPT/STEM.flac`."""

from collections.abc import Iterable
from pathlib import Path

import torch

from processing_mss import write_audio

from .songs import EvaluationSong
from .systems import System

GIVEN = ("mixture", "reference")  # kept for every excerpt; the bounds of these names are the same sounds
IDENTITY_FILE = "identity.txt"  # written last: says that an excerpt is complete, and of which checkpoint


class KeptAudio:
    """16-bit FLAC, cut at full scale, at the song's rate.

    Args:
        folder: of all kept audio.
        excerpts: names of those that are kept.
    """

    def __init__(self, folder: Path, excerpts: Iterable[str]):
        self.folder, self._excerpts = folder, set(excerpts)

    def lacks(self, system: System, excerpt: str) -> bool:
        """Whether an excerpt is to be kept, and this system's estimates of it are not there yet."""
        if excerpt not in self._excerpts or system.name in GIVEN:
            return False
        file = self.folder / system.name / excerpt / IDENTITY_FILE
        return not file.is_file() or file.read_text(encoding="utf-8") != system.identity

    def write(self, system: System, song: EvaluationSong, estimates: dict[str, torch.Tensor]):
        """Keep the estimates, and song and true stems beside them."""
        if not self.lacks(system, song.name):
            return
        self._write_given(song)
        folder = self.folder / system.name / song.name
        for file in folder.glob("*"):  # of another checkpoint
            file.unlink()
        for stem, estimate in estimates.items():
            write_audio(folder / f"{stem}.flac", estimate.cpu().numpy(), song.sampling_rate)
        (folder / IDENTITY_FILE).write_text(system.identity, encoding="utf-8")

    def _write_given(self, song: EvaluationSong):
        sounds = {f"reference/{song.name}/{stem}": sound for stem, sound in zip(song.stems, song.references)}
        sounds[f"mixture/{song.name}/mixture"] = song.mixture
        for name, sound in sounds.items():
            path = self.folder / f"{name}.flac"
            if not path.is_file():
                write_audio(path, sound.numpy(), song.sampling_rate)
