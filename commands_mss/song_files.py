"""Which songs a command separates, where their stems go, and what is there already: nothing is lost by a mistake."""

import contextlib
import hashlib
import json
import os
import shutil
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout

WORK_PREFIX = ".separating-"
MADE_BY = "stem by mss-lm"  # begins the comment in the tags of what we write
ORIGINS = {"transformers_version", "_name_or_path"}


@dataclass(frozen=True)
class SongFile:
    path: Path
    track: str  # {track} of --filename: the name without suffix; inside a folder, with the path below it


def find_songs(inputs: list[str], output_dir: Path) -> tuple[list[SongFile], list[str]]:
    """Files as given, and the audio files inside folders (searched through), in order; and what is wrong with others.

    A song that is named twice counts once. In folders, links to folders are not followed, and hidden files are no
    songs, nor are stems of earlier runs: an output folder inside a folder of songs is left out, and so is every file
    whose tags say that we made it.
    """
    from processing_mss import AUDIO_SUFFIXES

    songs, problems, seen = [], [], set()
    for path in map(Path, inputs):
        if os.path.isdir(path):  # False where it may not be looked at: then that song alone is refused
            found, unread = _songs_in(path, os.path.realpath(output_dir))
            problems += unread
            if not found and not unread:
                looked_for = ", ".join(sorted(AUDIO_SUFFIXES))
                problems.append(
                    f"No audio file in {path} (looked for {looked_for}; stems made by mss-lm do not count)."
                )
        else:
            # The name of a file called "...wav" is no name of a folder without its suffix.
            found = [SongFile(path, path.stem if path.stem.strip(".") else path.name)]
        for song in found:
            place = os.path.realpath(song.path)
            if place not in seen:
                songs.append(song)
            seen.add(place)
    return songs, problems


def _songs_in(folder: Path, output: str) -> tuple[list[SongFile], list[str]]:
    """Songs inside, and why some folders cannot be searched."""
    from processing_mss import AUDIO_SUFFIXES, read_comment

    is_output_inside = _is_inside(output, os.path.realpath(folder))
    unread, files = [], []
    for place, folders, names in os.walk(folder, onerror=unread.append):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(place, name) for name in names if not name.startswith(".")]
    songs = []
    for file in sorted(files):
        if file.suffix.lower() not in AUDIO_SUFFIXES:
            continue
        if is_output_inside and _is_inside(os.path.realpath(file), output):
            continue
        if not (read_comment(file) or "").startswith(MADE_BY):
            songs.append(SongFile(file, file.relative_to(folder).with_suffix("").as_posix()))
    return songs, [f"Cannot search {error.filename}: {error.strerror}." for error in unread]


def _is_inside(path: str, folder: str) -> bool:
    return path != folder and Path(path).is_relative_to(folder)


def plan_outputs(
    songs: list[SongFile], stems: list[str], output_dir: Path, filename: str, suffix: str
) -> tuple[list[tuple[SongFile, list[Path]]], list[str]]:
    """Where each stem of each song goes; and why some songs can't be separated.

    Args:
        filename: pattern with {track}, {stem} and {ext}, below `output_dir`.
        suffix: what {ext} is.

    Raises:
        ValueError: a pattern that is wrong whatever the song, or by which a stem would replace a song of this call.
    """
    plan, problems, taken = [], [], {}
    root, given = os.path.realpath(output_dir), {}
    for song in songs:
        given[os.path.realpath(song.path)] = song
        with contextlib.suppress(OSError):  # a file that is missing is told when it is read
            given[_identity(song.path)] = song
    for song in songs:
        try:
            names = [filename.format(track=song.track, stem=stem, ext=suffix) for stem in stems]
        except (KeyError, IndexError, AttributeError, ValueError) as error:
            raise ValueError(f"--filename may hold {{track}}, {{stem}} and {{ext}}, got {filename!r}.") from error
        paths = [output_dir / name for name in names]
        try:
            blocked = next((folder for path in paths for folder in path.parents if folder.is_file()), None)
            there = [path.exists() for path in paths]
        except OSError as error:
            problems.append(f"{song.path} is left out: its stems can't have names like {paths[0].name} ({error}).")
            continue
        if blocked:
            problems.append(f"{song.path} is left out: {blocked} is a file, where a folder for its stems would be.")
            continue
        places = [os.path.realpath(path) for path in paths]
        if len(set(places)) < len(places):
            raise ValueError(f"All stems of {song.path} would be written to {paths[0]}: put {{stem}} in --filename.")
        outside = [path for path, place in zip(paths, places) if not _is_inside(place, root) or path.is_dir()]
        if outside:
            problems.append(f"--filename {filename!r} gives {outside[0]}, which is no file inside {root}.")
            continue
        for path, place, exists in zip(paths, places, there):
            identity = _identity(path) if exists else None
            if replaced := given.get(place) or given.get(identity):
                raise ValueError(
                    f"A stem of {song.path} would replace the song {replaced.path}: choose another --output_dir or "
                    "--filename."
                )
        # To some file systems names are the same that differ in case, or in how accents are coded.
        keys = [unicodedata.normalize("NFC", place).casefold() for place in places]
        other = next((taken[key] for key in keys if key in taken), None)
        if other is not None:
            problems.append(
                f"{song.path} is left out: {other.path} goes to the same files ({paths[0]}). Separate it into another "
                "--output_dir, or put {track} in --filename."
            )
            continue
        taken.update(dict.fromkeys(keys, song))
        plan.append((song, paths))
    return plan, problems


def _identity(path: Path) -> tuple[int, int]:
    """Of the file, whatever names and links it has."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


def model_digest(model, processor) -> str:
    """SHA-256 of all weights, and of all that was saved with them and changes stems."""
    import torch

    parts = (model.config.to_dict(), model.generation_config.to_dict(), processor.to_dict())
    # Read again without what only tells where they come from, at any depth.
    settings = json.loads(
        json.dumps(parts, default=str),
        object_pairs_hook=lambda pairs: {name: value for name, value in pairs if name not in ORIGINS},
    )
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def stem_comments(song: Path, stems: list[str], settings: dict) -> list[str]:
    """What is written into the tags of each stem, by which the next run knows what it was made from, and how.

    Raises ValueError if there is no such file.
    """
    if not song.is_file():  # opening a pipe could keep us waiting
        reason = "it is no file but a pipe or a device" if song.exists() else "there is no such file"
        raise ValueError(f"Cannot read {song}: {reason}.")
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    with open(song, "rb") as file:
        digest.update(hashlib.file_digest(file, "sha256").digest())
    return [f"{MADE_BY}: {stem}, of song and settings {digest.hexdigest()[:32]}" for stem in stems]


def is_done(song: SongFile, paths: list[Path], comments: list[str]) -> bool:
    """Whether all stems are there, made from this song with these settings.

    Some of them only, or damaged ones, as a killed run or a full disk may leave, do not count, and may be replaced.

    Raises:
        ValueError: a file is there that is none of these stems.
    """
    from processing_mss import AudioReader, AudioReadError, read_comment

    there = [path.exists() for path in paths]
    for path, comment, exists in zip(paths, comments, there):
        if exists and read_comment(path) != comment:
            raise ValueError(
                f"{song.path} would replace {path}, which was made from another song, with other options, or not by "
                "this program: choose another --output_dir or --filename, or --overwrite."
            )
    if not all(there):
        return False
    for path in paths:
        try:
            with AudioReader(path, strict=True):
                pass
        except AudioReadError:
            return False
    return True


@contextlib.contextmanager
def work_folder(output_dir: Path) -> Iterator[Path]:
    """A folder for unfinished files, inside `output_dir`. It is deleted at the end; so are those of killed runs."""
    output_dir.mkdir(parents=True, exist_ok=True)
    remove_abandoned(output_dir)
    lock = output_dir / f"{WORK_PREFIX}{uuid4().hex[:12]}.lock"
    folder = lock.with_suffix("")
    try:
        with FileLock(lock):
            folder.mkdir()
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.unlink(missing_ok=True)


def remove_abandoned(output_dir: Path):
    """Remove work folders that no running process holds: the system gives up the lock of one that was killed.

    A lock that another process has made but not yet taken may be taken here and removed: its folder is not there yet.
    """
    for lock in output_dir.glob(f"{WORK_PREFIX}*.lock"):
        with contextlib.suppress(Timeout, OSError), FileLock(lock, timeout=0):
            shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
            lock.unlink(missing_ok=True)
