"""What all preparers share: songs one by one, broken ones skipped and reported, finished ones kept."""

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from tqdm import tqdm

from .manifest import ManifestWriter, Song


@dataclass
class PrepareReport:
    """Outcome of a run: how many songs were written now, were there before, and failed (with the reason)."""

    written: int = 0
    kept: int = 0
    failures: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        text = f"{self.written} songs written, {self.kept} already there, {len(self.failures)} skipped"
        return text + "".join(f"\n  {song_id}: {reason}" for song_id, reason in self.failures.items())


def prepare_songs(
    writer: ManifestWriter, jobs: Iterable[tuple[str, Callable[[], Song]]], description: str, total: int | None = None
) -> PrepareReport:
    """Run every job that is not in the manifest yet and add its song.

    Args:
        jobs: (song id, function that makes the song and returns its entry). A job that raises ValueError or OSError
            is a broken song: it is reported and left out, so that a later run tries it again.
    """
    report = PrepareReport()
    with tqdm(jobs, desc=description, unit="song", total=total, file=sys.stderr) as progress:
        for song_id, make_song in progress:
            if song_id in writer:
                report.kept += 1
                continue
            try:
                song = make_song()
            except (ValueError, OSError) as error:
                report.failures[song_id] = str(error)
                progress.write(f"skipped {song_id}: {error}", file=sys.stderr)
                continue
            writer.add(song)
            report.written += 1
    return report
