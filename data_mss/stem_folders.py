"""Folders of stems, one folder a song -> manifest."""

import os
from functools import partial
from pathlib import Path

from processing_mss import AUDIO_SUFFIXES

from .audio_files import probe_audio
from .manifest import SPLITS, ManifestWriter, Song, canonical_stem, require
from .preparing import PrepareReport, made_from, prepare_songs

SPLIT_FOLDERS = {**{split: split for split in SPLITS}, "valid": "validation", "val": "validation"}


def prepare_stem_folders(
    input_dir: str | os.PathLike,
    output_dir: str | os.PathLike,
    split: str = "train",
    validation_songs: tuple[str, ...] = (),
    source: str = "stems",
    licence: str = "unknown",
) -> PrepareReport:
    """Write `output_dir/manifest.jsonl` for folders `song/vocals.*`, `song/drums.*`, `song/bass.*`, `song/other.*`.

    Other names are mapped by `manifest.STEM_ALIASES` (guitar, piano, ... to other); several files of one stem are
    summed; a missing stem is silence. `mixture.*` or `mix.*` is the mixture. Songs below `train/`, `valid/` or `test/`
    get that split.

    Args:
        split: of songs that lie in no such folder.
        validation_songs: names of song folders that go to validation, wherever they lie.

    Raises:
        ValueError: no song folder, none of a name in `validation_songs`, an unknown split, or a manifest that was made
            from others or otherwise.
    """
    input_dir = Path(input_dir)
    require(split in SPLITS, "split", f"one of {list(SPLITS)}", split)
    folders = sorted({path.parent for path in input_dir.rglob("*") if _role(path)})
    if not folders:
        raise ValueError(f"No stems below {input_dir}: expected <song>/vocals.wav, drums.wav, bass.wav, other.wav.")
    if absent := sorted(set(validation_songs) - {folder.name for folder in folders}):
        names = [folder.name for folder in folders]
        raise ValueError(
            f"Of {len(names)} song folders below {input_dir}, such as {names[:5]}, none is called {absent}."
        )
    jobs, wanted = [], {}
    for folder in folders:
        song_id = folder.relative_to(input_dir).as_posix() if folder != input_dir else folder.resolve().name
        song_split = SPLIT_FOLDERS.get(song_id.split("/")[0].lower(), split) if "/" in song_id else split
        song_split = "validation" if folder.name in validation_songs else song_split
        jobs.append((song_id, partial(_from_folder, folder, song_id, song_split, source, licence)))
        files = sorted(path for path in folder.iterdir() if _role(path))
        wanted[song_id] = made_from(files, split=song_split, source=source, licence=licence)
    return prepare_songs(ManifestWriter(Path(output_dir) / "manifest.jsonl"), jobs, "stems", wanted)


def _role(path: Path) -> str | None:
    """What a file is: a stem, "mixture", or None."""
    if path.suffix.lower() not in AUDIO_SUFFIXES:
        return None
    return "mixture" if path.stem.lower() in ("mixture", "mix") else canonical_stem(path.stem)


def _from_folder(folder: Path, song_id: str, split: str, source: str, licence: str) -> Song:
    stems, infos, mixture = {}, [], None
    for path in sorted(folder.iterdir()):
        role = _role(path)
        if role == "mixture":
            mixture = str(path)
        elif role:
            infos.append(probe_audio(path))
            stems.setdefault(role, []).append(str(path))
    if not stems:
        raise ValueError(f"{folder} holds a mixture but no stems.")
    # A sum beside all of its stems (no_vocals.wav beside drums.wav, bass.wav, other.wav) would be heard twice.
    twice = {name for name in stems if "+" in name and set(name.split("+")) <= stems.keys()}
    return Song(
        id=song_id,
        split=split,
        stems={name: paths for name, paths in stems.items() if name not in twice},
        mixture=mixture,
        duration=max(info.duration for info in infos),
        sampling_rate=max(info.sampling_rate for info in infos),
        source=source,
        licence=licence,
    )
