"""Audio of a few excerpts, for pictures and players: `audio/SYSTEM/EXCERPT/STEM.flac`."""

from collections.abc import Iterable
from pathlib import Path

import torch

from processing_mss import write_audio

from .songs import EvaluationSong, Excerpt
from .systems import System

GIVEN = ("mixture", "reference")  # kept for every excerpt; the bounds of these names are the same sounds
IDENTITY_FILE = "identity.txt"  # written last: says that an excerpt is complete, of which checkpoint, and how long


def kept_identity(folder: Path) -> str | None:
    """Of the system whose sound is in `audio/SYSTEM/EXCERPT`; None if it is not complete."""
    file = folder / IDENTITY_FILE
    return file.read_text(encoding="utf-8").split("\n")[0] if file.is_file() else None


class KeptAudio:
    """16-bit FLAC, cut at full scale, at the song's rate.

    Args:
        folder: of all kept audio.
        excerpts: those that are kept.
    """

    def __init__(self, folder: Path, excerpts: Iterable[Excerpt]):
        self.folder, self._durations = folder, {excerpt.name: excerpt.duration_s for excerpt in excerpts}

    def lacks(self, system: System, excerpt: str) -> bool:
        """Whether an excerpt is to be kept, and this system's estimates of it are not there yet."""
        if excerpt not in self._durations or system.name in GIVEN:
            return False
        return not self._has(system.name, excerpt, system.identity)

    def write(self, system: System, song: EvaluationSong, estimates: dict[str, torch.Tensor]):
        """Keep the estimates, and song and true stems beside them."""
        if not self.lacks(system, song.name):
            return
        given = {"mixture": {"mixture": song.mixture}, "reference": dict(zip(song.stems, song.references))}
        for name, sounds in given.items():
            if not self._has(name, song.name, song.song_id):
                self._replace(name, song, sounds, song.song_id)
        self._replace(system.name, song, estimates, system.identity)

    def _has(self, name: str, excerpt: str, identity: str) -> bool:
        file = self.folder / name / excerpt / IDENTITY_FILE
        return file.is_file() and file.read_text(encoding="utf-8") == self._mark(excerpt, identity)

    def _mark(self, excerpt: str, identity: str) -> str:
        # The name of an excerpt says where it begins, not how long it is.
        return f"{identity}\n{self._durations[excerpt]} s asked for\n"

    def _replace(self, name: str, song: EvaluationSong, sounds: dict[str, torch.Tensor], identity: str):
        folder = self.folder / name / song.name
        for file in folder.glob("*"):  # of another checkpoint or length
            file.unlink()
        for stem, sound in sounds.items():
            write_audio(folder / f"{stem}.flac", sound.numpy(), song.sampling_rate)
        folder.mkdir(parents=True, exist_ok=True)  # also where there is no estimate to write
        (folder / IDENTITY_FILE).write_text(self._mark(song.name, identity), encoding="utf-8")
