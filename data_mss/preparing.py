"""What all preparers share: songs one by one, broken ones skipped and reported, finished ones kept.

Finished is a song that was made from the same source with the same settings, which the manifest says of each. One of
the same name that was made otherwise is an error: it would seem to be done.
"""

import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

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


def made_from(files: Iterable[str | os.PathLike], **settings) -> dict:
    """What a manifest says of the source and the settings of a song, as JSON gives it back.

    Files are known by their places, sizes and times: reading all of a corpus would take as long as preparing it.
    """
    places = [Path(file).absolute() for file in files]
    digest = hashlib.sha256()
    for place in places:
        status = place.stat() if place.is_file() else None
        digest.update(f"{place}\0{status and (status.st_size, status.st_mtime_ns)}\0".encode(errors="surrogateescape"))
    names = f"{places[0] if places else None}" + (f" and {len(places) - 1} more" if places[1:] else "")
    return json.loads(json.dumps({"files": f"{names} ({digest.hexdigest()[:16]})", **settings}))


def require_different_ids(songs: Iterable[Song]):
    """Raise ValueError if two songs of several manifests have one id: in one folder, one would be lost."""
    twice = [song_id for song_id, count in Counter(song.id for song in songs).items() if count > 1]
    if twice:
        raise ValueError(f"The manifests have several songs of the ids {twice[:5]}: take them into separate folders.")


def copied_from(song: Song, **settings) -> dict:
    """`made_from` of a copy of a song, which takes over more than its audio."""
    files = [path for stem in song.stems for path in song.paths(stem)]
    taken_over = {name: getattr(song, name) for name in ("split", "source", "licence", "confidence")}
    return made_from(files, parts={stem: len(paths) for stem, paths in song.stems.items()}, **taken_over, **settings)


def copy_of(song: Song, stems: dict[str, list[str]], duration: float, sampling_rate: int) -> Song:
    """The entry of a copy of a song: other files, the same song."""
    return Song(
        song.id, song.split, stems, duration, sampling_rate, song.source, song.licence, confidence=song.confidence
    )


def check_made_from(place: Path, there: Mapping[str, dict | None], wanted: Mapping[str, dict]) -> None:
    """Raise ValueError for a song of `wanted` that `place` has, but made from something else, or in another way."""
    for name in filter(there.__contains__, wanted):
        old, new = there[name] or {}, wanted[name]
        different = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
        if different:
            ours, theirs = ({key: values.get(key) for key in different} for values in (new, old))
            raise ValueError(
                f"{place} already has {name!r}, made with {theirs}, not with {ours}: choose another --output_dir."
            )


def prepare_songs(
    writer: ManifestWriter,
    jobs: Iterable[tuple[str, Callable[[], Song]]],
    description: str,
    wanted: Mapping[str, dict],
) -> PrepareReport:
    """Run every job that is not in the manifest yet and add its song.

    Args:
        jobs: (song id, function that makes the song and returns its entry). A job that raises ValueError or OSError
            is a broken song: it is reported and left out, so that a later run tries it again.
        wanted: `made_from` of every song, by id.

    Raises:
        ValueError: the manifest has a song that was made otherwise; nothing is written then.
    """
    check_made_from(writer.path, writer.made_from, wanted)
    report = PrepareReport()
    with tqdm(jobs, desc=description, unit="song", total=len(wanted), file=sys.stderr) as progress:
        for song_id, make_song in progress:
            if song_id in writer:
                report.kept += 1
                continue
            try:
                song = make_song()
                song.to_json().encode()  # names of files need not be UTF-8, and a manifest is
            except (ValueError, OSError) as error:
                report.failures[song_id] = str(error)
                progress.write(f"skipped {song_id}: {error}", file=sys.stderr)
                continue
            song.made_from = wanted[song_id]
            writer.add(song)
            report.written += 1
    return report
