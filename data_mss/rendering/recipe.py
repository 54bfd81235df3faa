"""What a rendered corpus is made of, and what was decided about each of its songs."""

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from ..manifest import require
from .instruments import BassSynth
from .production import Channel, Room
from .synth import Sound

T = TypeVar("T")
SYNTHESIZER = "synthesizer"  # in place of a soundfont or a kit, and in credits
# Each has its own random numbers; new ones come last, so that the others' stay.
TOPICS = (
    "length", "score", "instruments", "vocals", "production", "synthesizer", "samples", "groove", "choir", "sound",
)  # fmt: skip


@dataclass
class RenderConfig:
    """What songs are made of.

    Args:
        soundfonts: SF2 or SF3 files; every part is played by one of them. "synthesizer" among them stands for sounds
            that are drawn anew for each part, and among `drums_dirs` for a kit that is drawn anew for each song.
        midi_dir: MIDI files to take arrangements from, besides composed ones.
        vocals_dir: real vocal stems.
        speech_dir: speech recordings that are made to sing. espeak-ng speaks where there are none, if it is installed.
        drums_dirs: folders of drum samples, a kit each.
        bass_dirs: folders of bass samples, an instrument each.
        grooves_dir: the Groove MIDI Dataset: drums as people played them, of the song's split.
        choir_dir: recordings of single sung vowels that backing vocals and choirs are made of.
        seed: of the corpus.
        min_seconds, max_seconds: song length.
        midi_share: share of songs from `midi_dir`.
        recorded_share: share of songs with real vocals among those with vocals, where both kinds are there.
        instrumental_share: share of songs without vocals.
        doubling_share, harmony_share: share of sung songs with a second take, and with a second voice.
        choir_share: share of songs with vocals that have a choir behind them, where there is `choir_dir`.
        synthesizer_share: share of songs whose bass is a synthesizer's.
        sampled_drums_share: share of songs whose drums are played by one of `drums_dirs`.
        sampled_bass_share: share of songs with a bass from `bass_dirs` among those without a synthesizer's.
        groove_share: share of songs with drums from `grooves_dir` among those that one of its performances fits.
        synthetic_vocals: without it speech is not made to sing.
        split: of all songs; if not given, 5 % are for validation and 5 % for testing.
    """

    soundfonts: tuple[str, ...]
    midi_dir: str | None = None
    vocals_dir: str | None = None
    speech_dir: str | None = None
    drums_dirs: tuple[str, ...] = ()
    bass_dirs: tuple[str, ...] = ()
    grooves_dir: str | None = None
    choir_dir: str | None = None
    seed: int = 0
    min_seconds: float = 30.0
    max_seconds: float = 90.0
    midi_share: float = 0.5
    recorded_share: float = 0.5
    instrumental_share: float = 0.08
    doubling_share: float = 0.35
    harmony_share: float = 0.3
    choir_share: float = 0.4
    synthesizer_share: float = 0.35
    sampled_drums_share: float = 0.75
    sampled_bass_share: float = 0.6
    groove_share: float = 0.7
    synthetic_vocals: bool = True
    split: str | None = None

    def __post_init__(self):
        for name, value in vars(self).items():  # of `Path`s, which recipes could not hold
            if name == "soundfonts" or name.endswith("_dirs"):
                setattr(self, name, tuple(map(os.fspath, value)))
            elif name.endswith("_dir") and value is not None:
                setattr(self, name, os.fspath(value))
        if not self.soundfonts:
            raise ValueError("Rendering needs at least one soundfont (see docs/rendering.md for how to install two).")
        for path in self.soundfonts:
            if path != SYNTHESIZER and not Path(path).is_file():
                raise ValueError(f"There is no soundfont {path}.")
        if not 0 < self.min_seconds <= self.max_seconds:
            raise ValueError(f"Need 0 < min_seconds <= max_seconds, got {self.min_seconds} and {self.max_seconds}.")
        for name, value in vars(self).items():
            if name.endswith("_dir"):
                require(value is None or Path(value).is_dir(), name, "a folder", value)
            elif name.endswith("_dirs"):
                for folder in value:
                    synthetic = name == "drums_dirs" and folder == SYNTHESIZER
                    require(synthetic or Path(folder).is_dir(), name, "folders", folder)
            elif name.endswith("_share"):
                require(0 <= value <= 1, name, "in 0-1", value)

    def split_of(self, index: int) -> str:
        """Split of a song."""
        return self.split or split_of(index)

    def files_for(self, paths: list[T], index: int) -> list[T]:
        """Files that a song may use: they are divided among the splits as songs are, but where `split` says that all
        songs are of one, all files are for it."""
        return paths if self.split else files_of_split(paths, split_of(index))


@dataclass
class Played:
    """A part as it was played: by which soundfont, kit or bass (base name of the file or folder), or by a synthesizer,
    whose sound is `synth`, but for drums; `groove` names the performance that drums are from. `player` is the name in
    recipe.json of what plays."""

    name: str
    stem: str
    program: int
    notes: int
    player: str
    channel: Channel
    synth: BassSynth | Sound | None = None
    groove: str = ""


@dataclass
class Choir:
    """Voices behind the lead, or alone: the base name of their folder and the files in it that are heard, whether they
    sing the "melody" or "chords", and for each voice whose it is, its place from -1 to 1, and its notes as [start, end,
    MIDI pitch] in seconds; level in dB relative to the lead."""

    folder: str
    files: list[str]
    sings: str
    singers: list[str]
    positions: list[float]
    gain_db: float
    notes: list[list[list[float]]]


@dataclass
class Sung:
    """The vocals: kind ("none", "sung", "recorded", "choir": one alone), where the voice comes from, and what it sings.

    `melody` holds [start, end, MIDI pitch] in seconds; `voiced` holds [start, end] of the first take where it has
    pitch; `takes` holds every take's style and interval (in degrees of the scale). All empty for recorded vocals, whose
    phrases are in `placed`. `choir` is what was added to them.
    """

    kind: str = "none"
    voice: str = ""
    melody: list[list[float]] = field(default_factory=list)
    voiced: list[list[float]] = field(default_factory=list)
    takes: list[dict] = field(default_factory=list)
    placed: list[dict] = field(default_factory=list)
    choir: Choir | None = None
    channel: Channel | None = None


@dataclass
class Recipe:
    """Everything that was decided about a song; `sources` are what is heard in it, by the names that credits have."""

    seed: int
    index: int
    split: str
    duration: float
    sampling_rate: int
    source: str
    tempo: float
    metre: str
    key: str
    parts: list[Played]
    vocals: Sung
    room: Room
    levels_lufs: dict[str, float]
    bus_ratio: float
    loudness_lufs: float
    sources: list[str]

    def to_dict(self) -> dict:
        return asdict(self)


def split_of(index: int) -> str:
    """90 % train, 5 % validation, 5 % test by position, so that a small corpus has some of each."""
    return {3: "validation", 7: "test"}.get(index % 20, "train")


def files_of_split(paths: list[T], split: str) -> list[T]:
    """Files (or singers) that songs of a split may use: where there are enough, none is heard in training and
    elsewhere."""
    own = [path for number, path in enumerate(paths) if split_of(number) == split]
    held_out = [path for number, path in enumerate(paths) if split_of(number) != "train"]
    return own or held_out or paths


def random_numbers(seed: int, index: int, topic: str) -> np.random.Generator:
    """Random numbers of one topic of one song: one topic's random numbers do not shift another's."""
    return np.random.default_rng([seed, index, TOPICS.index(topic)])


def song_seconds(config: RenderConfig, index: int) -> float:
    """How long song `index` is, in seconds (whole tenths)."""
    rng = random_numbers(config.seed, index, "length")
    return round(float(rng.uniform(config.min_seconds, config.max_seconds)), 1)
