"""Training crops from manifests, as a map-style dataset."""

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from .audio_files import PACKED_SUFFIX, default_cache_dir, read_piece
from .manifest import STEMS, Song, known_stems, read_manifest, stem_paths

SILENCE_RMS = 1e-3  # -60 dBFS: what is quieter is drawn again
MAX_ATTEMPTS = 10
SILENT_STEM_ATTEMPTS = 2  # places tried again for a stem that is silent


class Place(NamedTuple):
    """Where a stem of a crop comes from: number of the song, start in seconds, and speed (2 is an octave up)."""

    song: int
    start_s: float
    speed: float = 1.0


class StemDataset(Dataset):
    """Random crops of the songs of manifests.

    Crop `index` of epoch `epoch` depends on (seed, epoch, index) alone: neither the number of workers and processes nor
    the order of reading changes it.

    Args:
        manifests: a manifest (file or folder of them), several, or songs.
        stems: names and order of the axis S. Stems of a song that are not asked for count as "other", if that is.
        split: "train", "validation" or "test".
        crop_s: length in seconds.
        sampling_rate: in hertz (Hz).
        epoch_size: crops of an epoch; as many as cover the songs once if not given.
        remix_probability: share of crops whose stems come from different songs and times.
        audible_probability: share of silent stems of these crops that are drawn again, so that a stem which is seldom
            heard, as vocals are, is learned too.
        max_semitones: crops are played faster or slower by up to so much, uniformly in semitones; stems of different
            songs each at a speed of their own.
        source_weights: how often each `source` is drawn, relative to the others; in proportion to duration if not
            given. Within a source, songs are drawn in proportion to their durations.
        min_confidence: leave out separated songs whose stems add up worse than this.
        partly_known: take songs too of which some stems are known as a sum only; `known` of a crop says of which stems
            that holds. Without it such songs are left out.
        seed: of all draws.
        cache_dir: where formats that do not seek well are packed.

    Raises:
        ValueError: no song of the split, packed songs of another rate, unknown sources or weights below 0 in
            `source_weights`, or impossible values.
    """

    def __init__(
        self,
        manifests: str | os.PathLike | Iterable[str | os.PathLike | Song],
        stems: Iterable[str] = STEMS,
        split: str = "train",
        crop_s: float = 4.0,
        sampling_rate: int = 48000,
        epoch_size: int | None = None,
        remix_probability: float = 0.0,
        audible_probability: float = 0.0,
        max_semitones: float = 0.0,
        source_weights: dict[str, float] | None = None,
        min_confidence: float | None = None,
        partly_known: bool = False,
        seed: int = 0,
        cache_dir: str | os.PathLike | None = None,
    ):
        if not (0 <= remix_probability <= 1 and 0 <= audible_probability <= 1 and max_semitones >= 0 and crop_s > 0):
            raise ValueError(
                "Need probabilities in 0-1, max_semitones >= 0 and crop_s > 0, got "
                f"{remix_probability=}, {audible_probability=}, {max_semitones=}, {crop_s=}."
            )
        self.stems = list(stems)
        self.sampling_rate = sampling_rate
        self.num_samples = round(crop_s * sampling_rate)
        self.remix_probability = remix_probability
        self.audible_probability = audible_probability
        self.max_semitones = max_semitones
        self.seed = seed
        self.cache_dir = Path(cache_dir or default_cache_dir())
        self.songs = [song for song in _all_songs(manifests) if song.split == split]
        if min_confidence is not None:
            self.songs = [song for song in self.songs if song.confidence is None or song.confidence >= min_confidence]
        if not partly_known:
            self.songs = [song for song in self.songs if all(known_stems(song, self.stems))]
        if not self.songs:
            raise ValueError(f"No song of split {split!r} in {manifests}.")
        shares = _shares(self.songs, source_weights)
        self.songs = [song for song, share in zip(self.songs, shares) if share > 0]
        shares = shares[shares > 0]
        self._known = np.array([known_stems(song, self.stems) for song in self.songs])
        for song in self.songs:
            self._check_packed_rate(song)
        self._cumulated = _cumulated(shares)
        duration = sum(song.duration for song in self.songs)
        self.epoch_size = epoch_size or max(1, round(duration / crop_s))
        # Shared memory: workers that outlive an epoch see the new number.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        # A remixed stem comes from songs that have it.
        self._cumulated_of = {}
        for stem in self.stems:
            has_stem = np.array([bool(self.paths(song, stem)) for song in self.songs])
            shares_of = shares * has_stem
            self._cumulated_of[stem] = _cumulated(shares_of / shares_of.sum()) if shares_of.sum() > 0 else None

    def set_epoch(self, epoch: int):
        """Draw other crops: to be called before every epoch."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return self.epoch_size

    def __getitem__(self, index: int) -> dict:
        """A crop: `stems` `(S, T)` float32, `mixture` `(T,)` their sum, `song_ids`, one per stem, and see `labels`.

        It is drawn again while its mixture is silent, ten times at most.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"Crop {index} of {len(self)}.")
        rng = self.rng(index)
        for _ in range(MAX_ATTEMPTS):
            places = self.draw(rng)
            stems = self.read(places)
            for _ in range(SILENT_STEM_ATTEMPTS):
                again = self.draw_silent_again(places, is_silent(stems).tolist(), rng)
                if again == places:
                    break
                places = again
                stems = self.read(places)
            mixture = stems.sum(dim=0)
            if not is_silent(mixture):
                break
        song_ids = [self.songs[place.song].id for place in places]
        labels = {name: values[0] for name, values in self.labels([places]).items()}
        return {"stems": stems, "mixture": mixture, "song_ids": song_ids, **labels}

    def labels(self, crops: list[list[Place]]) -> dict[str, torch.Tensor]:
        """What is known of crops: `known` `(B, S)`, `estimated` and `remixed` `(B,)`, all bool, on the CPU.

        Stems of a crop that are not known by themselves are known as a sum: all of it lies in the last one of them.
        Estimated crops are what a teacher's masks cut out of one song; remixed ones have stems of different songs or
        times.
        """
        known = [[bool(self._known[place.song, row]) for row, place in enumerate(places)] for places in crops]
        remixed = torch.tensor([is_remixed(places) for places in crops])
        separated = torch.tensor([self.songs[places[0].song].confidence is not None for places in crops])
        return {"known": torch.tensor(known), "estimated": separated & ~remixed, "remixed": remixed}

    def rng(self, index: int) -> np.random.Generator:
        """Where the draws of crop `index` of this epoch come from; any index from 0 on, beyond the epoch's end too."""
        return np.random.default_rng([self.seed, int(self._epoch), index])

    def draw(self, rng: np.random.Generator) -> list[Place]:
        """Choose a crop without reading it: of each stem where it comes from."""
        place = self._draw_place(rng, self._cumulated)
        if rng.random() >= self.remix_probability:
            return [place] * len(self.stems)
        shares = [self._cumulated_of[stem] for stem in self.stems]
        places = [place if share is None else self._draw_place(rng, share) for share in shares]
        return self._with_whole_sums(places)

    def draw_silent_again(self, places: list[Place], silent: list[bool], rng: np.random.Generator) -> list[Place]:
        """Other places for some of the silent stems of a crop whose stems come from different songs."""
        if not self.audible_probability or not is_remixed(places):
            return places
        known = [self._known[place.song, row] for row, place in enumerate(places)]
        again = [
            is_silent and is_known and rng.random() < self.audible_probability
            for is_silent, is_known in zip(silent, known)
        ]
        shares = [self._cumulated_of[stem] for stem in self.stems]
        places = [
            self._draw_place(rng, share) if redraw and share is not None else place
            for place, redraw, share in zip(places, again, shares)
        ]
        return self._with_whole_sums(places)

    def _with_whole_sums(self, places: list[Place]) -> list[Place]:
        """A sum of stems takes the places of all of them: a backing track has drums and bass of its own."""
        for row in range(len(places)):
            if not self._known[places[row].song, row]:
                places = [here if known else places[row] for here, known in zip(places, self._known[places[row].song])]
        return places

    def read(self, places: list[Place]) -> torch.Tensor:
        """The crop at what `draw` chose: `(S, T)` float32."""
        stems = torch.zeros(len(self.stems), self.num_samples)
        for row, stem, (song, start_s, speed) in zip(stems, self.stems, places):
            length = piece_length(self.num_samples, speed)
            for path in self.paths(self.songs[song], stem):
                piece = read_piece(path, start_s, length, self.sampling_rate, self.cache_dir)
                row += at_speed(piece, self.num_samples)
        return stems

    def paths(self, song: Song, stem: str) -> list[Path]:
        """Files of a song that make up a stem: see `stem_paths`."""
        return stem_paths(song, stem, self.stems)

    def _draw_place(self, rng: np.random.Generator, cumulated: np.ndarray) -> Place:
        # What `rng.choice(len(songs), p=shares)` does, without summing up the shares at every draw.
        song = int(cumulated.searchsorted(rng.random(), side="right"))
        speed = 2 ** (rng.uniform(-1, 1) * self.max_semitones / 12) if self.max_semitones else 1.0
        length_s = piece_length(self.num_samples, speed) / self.sampling_rate
        return Place(song, rng.uniform(0, max(0.0, self.songs[song].duration - length_s)), speed)

    def _check_packed_rate(self, song: Song):
        files = [path for stem in self.stems for path in self.paths(song, stem)]
        if song.sampling_rate != self.sampling_rate and any(path.suffix == PACKED_SUFFIX for path in files):
            raise ValueError(
                f"The song {song.id!r} is packed at {song.sampling_rate} Hz, and the dataset is to have "
                f"{self.sampling_rate}: pack it again with `mss-lm prepare pack --sampling_rate {self.sampling_rate}`."
            )


def piece_length(num_samples: int, speed: float) -> int:
    """Samples to read for a crop of `num_samples` at this speed (1: as it is)."""
    return num_samples if speed == 1 else math.ceil(num_samples * speed)


def at_speed(piece: torch.Tensor, num_samples: int) -> torch.Tensor:
    """A piece `(n,)` played in `num_samples`, linearly interpolated, as augmentation need not be better than that."""
    if piece.shape[-1] == num_samples:
        return piece
    stretched = torch.nn.functional.interpolate(piece[None, None], num_samples, mode="linear", align_corners=False)
    return stretched[0, 0]


def is_remixed(places: list[Place]) -> bool:
    """Whether the stems of a crop come from different songs or times."""
    return len(set(places)) > 1


def is_silent(waveforms: torch.Tensor) -> torch.Tensor:
    """`(..., T)` -> `(...)`."""
    return waveforms.square().mean(dim=-1).sqrt() <= SILENCE_RMS


def _all_songs(manifests) -> list[Song]:
    if isinstance(manifests, (str, os.PathLike)):
        return read_manifest(manifests)
    songs = []
    for item in manifests:
        songs += [item] if isinstance(item, Song) else read_manifest(item)
    return songs


def _shares(songs: list[Song], source_weights: dict[str, float] | None) -> np.ndarray:
    """Probability of each song, `(songs,)`."""
    durations = np.array([song.duration for song in songs])
    if source_weights is None:
        return durations / durations.sum()
    sources = np.array([song.source for song in songs])
    there = {song.source for song in songs}
    unknown = set(source_weights) - there
    if unknown or not any(source_weights.values()):
        raise ValueError(
            f"`source_weights` names {sorted(unknown)}; the songs come from {sorted(there)}. (Songs of which stems "
            "are known as a sum only are left out unless `partly_known`.)"
        )
    if not all(0 <= weight < math.inf for weight in source_weights.values()):
        raise ValueError(f"`source_weights` must be numbers from 0 on, got {source_weights}.")
    shares = np.zeros(len(songs))
    for source, weight in source_weights.items():
        of_source = sources == source
        shares[of_source] = weight * durations[of_source] / durations[of_source].sum()
    return shares / shares.sum()


def _cumulated(shares: np.ndarray) -> np.ndarray:
    cumulated = shares.cumsum()
    return cumulated / cumulated[-1]
