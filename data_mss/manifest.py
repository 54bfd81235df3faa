"""The manifest: one JSON line per song, written by every preparer and read by every dataset."""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path

SPLITS = ("train", "validation", "test")
STEMS = ("vocals", "drums", "bass", "other")  # that models are trained on, in their order

# What other names for stems mean. Stems that a dataset is not asked for count as "other" too.
STEM_ALIASES = {
    "vocals": "vocals vocal voice voices singing lead_vocals backing_vocals lead choir".split(),
    "drums": "drums drum percussion drumkit kick snare hihat cymbals toms".split(),
    "bass": "bass bass_guitar bassline synth_bass double_bass".split(),
    "other": "other others guitar guitars piano keys keyboard synth strings violin violins "
    "brass organ pads fx melody".split(),
    # Stems that are known as a sum only: all but the vocals.
    "drums+bass+other": "accompaniment instrumental backing_track no_vocals rest".split(),
}


class ManifestError(ValueError):
    """A manifest is missing, or a line of it is no song; the message names file and line."""


@dataclass
class Song:
    """One song of a manifest.

    Args:
        id: unique within its manifest. What is made of a song lies in a folder of this name, "/" in it included.
        split: one of "train", "validation", "test".
        stems: audio files of each stem; several files are summed, none means silence. A name such as "drums+bass+other"
            is a sum of stems that are not known one by one; see `stems_of`.
        duration: in seconds (of the longest file).
        sampling_rate: of the files, in hertz (Hz).
        source: which corpus or preparer it comes from; datasets weigh sources by this name.
        licence: of the audio; "unknown" if it was not said.
        mixture: the mixture's own file, if there is one. Training sums the stems instead.
        sha256: of the mixture or the stems' files, if it was computed.
        confidence: how well separated stems add up to the song, 0 to 1; None for true stems.
        made_from: source and settings of a preparer, by which its next run knows what is done; see `preparing`.

    Raises:
        ValueError: a value of another kind, or out of range; an id or a stem that would leave its folder.
    """

    id: str
    split: str
    stems: dict[str, list[str]]
    duration: float
    sampling_rate: int
    source: str
    licence: str = "unknown"
    mixture: str | None = None
    sha256: str | None = None
    confidence: float | None = None
    made_from: dict | None = None
    # Folder that relative paths start from: the manifest's own. Not written.
    folder: Path = field(default=Path("."), compare=False)

    def __post_init__(self):
        for name in ("id", "source", "licence"):
            require(isinstance(getattr(self, name), str), name, "a string", getattr(self, name))
        if Path(self.id).is_absolute() or {"", ".", ".."} & set(self.id.split("/")):
            # "a", "./a" and "a//" would share a folder, and "../a" lies outside.
            raise ValueError(
                f"The id {self.id!r} names no folder of its own: it must be names joined by '/', none of them empty, "
                "'.' or '..'; rename the song."
            )
        require(self.split in SPLITS, "split", f"one of {list(SPLITS)}", self.split)
        require(isinstance(self.stems, dict), "stems", 'lists of files by stem, as {"bass": ["bass.wav"]}', self.stems)
        for stem, paths in self.stems.items():
            if not isinstance(stem, str) or {"/", "\\"} & set(stem):
                raise ValueError(f"A stem must have a name that fits a file, without slashes, got {stem!r}.")
            is_list = isinstance(paths, list) and all(isinstance(path, str) for path in paths)
            require(is_list, f"stems.{stem}", "a list of files, [] for silence", paths)
        is_length = _is_number(self.duration) and 0 < self.duration < math.inf
        require(is_length, "duration", "a positive number of seconds", self.duration)
        is_rate = _is_number(self.sampling_rate) and isinstance(self.sampling_rate, int) and self.sampling_rate > 0
        require(is_rate, "sampling_rate", "a positive whole number of hertz", self.sampling_rate)
        for name in ("mixture", "sha256"):
            value = getattr(self, name)
            require(value is None or isinstance(value, str), name, "a string, or left out", value)
        is_share = self.confidence is None or (_is_number(self.confidence) and 0 <= self.confidence <= 1)
        require(is_share, "confidence", "a number from 0 to 1, or left out", self.confidence)
        is_object = self.made_from is None or isinstance(self.made_from, dict)
        require(is_object, "made_from", "an object, or left out", self.made_from)

    def paths(self, stem: str) -> list[Path]:
        """Files of a stem, empty for silence."""
        return [self.folder / path for path in self.stems.get(stem, [])]

    def to_json(self) -> str:
        values = asdict(self)
        values.pop("folder")
        return json.dumps({name: value for name, value in values.items() if value is not None}, ensure_ascii=False)


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def require(fits: bool, name: str, allowed: str, value) -> None:
    """Raise ValueError unless a value fits, saying what is allowed and what was given."""
    if not fits:
        raise ValueError(f"`{name}` must be {allowed}, got {value!r}.")


def canonical_stem(name: str) -> str | None:
    """The stem that a file or folder name means ("Lead Vocals" -> "vocals"), or None if no alias fits.

    Names joined by "+" are a sum of stems: "Guitar + Drums" -> "drums+other".
    """
    name = name.strip().lower().replace(" ", "_").replace("-", "_")
    if "+" in name:
        parts = {canonical_stem(part.strip("_")) for part in name.split("+")}
        return None if None in parts else "+".join(stem for stem in STEM_ALIASES if stem in parts)
    for stem, aliases in STEM_ALIASES.items():
        if name in aliases or name.rstrip("0123456789_") in aliases:
            return stem
    return None


def stems_of(name: str, stems: Sequence[str]) -> list[str]:
    """Which of `stems`, in their order, a stem of a manifest is part of.

    Usually one: itself, or "other" where it is not among `stems`. Several where it is a sum ("drums+bass+other"). None
    where it, or a part of a sum, has no place in `stems`: such audio is left out.
    """
    parts = {part if part in stems else "other" for part in name.split("+")}
    return [stem for stem in stems if stem in parts] if parts <= set(stems) else []


def stem_paths(song: Song, stem: str, stems: Sequence[str]) -> list[Path]:
    """Files that make up one of `stems`; "other" has those of all stems that are not in `stems` too.

    Files of a sum of several of `stems` count as the last one of these: what `stems` add up to is right, and
    `known_stems` says which of them are not.
    """
    return [path for name in song.stems if stems_of(name, stems)[-1:] == [stem] for path in song.paths(name)]


def known_stems(song: Song, stems: Sequence[str]) -> list[bool]:
    """For each of `stems` whether it is known by itself, and not only as part of a sum with others of them."""
    sums = [stems_of(name, stems) for name, paths in song.stems.items() if paths]
    unknown = {stem for parts in sums if len(parts) > 1 for stem in parts}
    return [stem not in unknown for stem in stems]


def read_manifest(path: str | os.PathLike) -> list[Song]:
    """Songs of a manifest, or of all manifests (`*.jsonl`) of a folder, as sharded preparers write them.

    Raises:
        ManifestError: nothing there, or a line that is no song.
    """
    path = Path(path)
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise ManifestError(f"No manifest at {path}: expected a .jsonl file, or a folder with some.")
    songs = []
    for file in files:
        for number, line in enumerate(file.read_bytes().split(b"\n"), start=1):
            if not line.strip():
                continue
            try:
                songs.append(_song_of(line, file.parent))
            except ValueError as error:
                raise ManifestError(f"{file}, line {number}: {error}") from error
    return songs


def _song_of(line: bytes, folder: Path) -> Song:
    """The song of a line; raises ValueError."""
    try:
        values = json.loads(line.decode())
    except json.JSONDecodeError as error:
        raise ValueError(f"It is no JSON: {error.msg} at character {error.pos + 1}.") from error
    if not isinstance(values, dict):
        raise ValueError(f"A line must be a JSON object with the fields of a song, got {values!r}.")
    written = [item for item in fields(Song) if item.name != "folder"]
    missing = [item.name for item in written if item.default is MISSING and item.name not in values]
    if missing:
        raise ValueError(f"A song needs the fields {missing}, got {list(values)}.")
    unknown = sorted(set(values) - {item.name for item in written})
    if unknown:
        raise ValueError(f"A song has no fields {unknown}; allowed are {[item.name for item in written]}.")
    return Song(**values, folder=folder)


def append_line(path: Path, line: str):
    """Add a line to a file; it is on the disk when this returns."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


class ManifestWriter:
    """Appends songs to a manifest, one whole line at a time, so that a killed run can go on where it stopped.

    Songs that are already there are known by `id in writer`. A last line that was cut off by a kill is dropped; if it
    lacks only its end, it is a song like the others.

    Args:
        path: the manifest; its folder is made. Paths of songs below that folder are written relative to it.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._finish_last_line()
        songs = read_manifest(self.path) if self.path.exists() else []
        self.made_from = {song.id: song.made_from for song in songs}

    def __contains__(self, song_id: str) -> bool:
        return song_id in self.made_from

    def add(self, song: Song):
        """Write a song; it counts as finished from here on. Raises ValueError if its id is already there."""
        if song.id in self:
            raise ValueError(f"The manifest {self.path} already has a song {song.id!r}.")
        song.stems = {stem: [self._relative(path) for path in paths] for stem, paths in song.stems.items()}
        song.mixture = self._relative(song.mixture) if song.mixture else None
        append_line(self.path, song.to_json())
        self.made_from[song.id] = song.made_from

    def _relative(self, path: str | os.PathLike) -> str:
        path, folder = Path(path).resolve(), self.path.parent.resolve()
        return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)

    def _finish_last_line(self):
        if not self.path.exists():
            return
        content = self.path.read_bytes()
        end = content.rfind(b"\n") + 1
        if end == len(content):
            return
        try:
            json.loads(content[end:])
        except ValueError:  # cut off; whole but wrong, it is for whoever reads it to say so
            os.truncate(self.path, end)
        else:
            with open(self.path, "ab") as file:
                file.write(b"\n")
