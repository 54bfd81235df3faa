"""The songs of an evaluation: which excerpts of a manifest, and what they sound like."""

import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from data_mss.audio_files import PACKED_SUFFIX, open_packed
from data_mss.manifest import STEMS, Song, known_stems, read_manifest, stem_paths
from data_mss.scores import SILENCE_RMS
from processing_mss import read_audio, resample

EQUAL_RMS = 0.05  # of each stem at equal loudness: four of them make the RMS of 0.1 that the models hear


@dataclass(frozen=True)
class EvaluationSong:
    """A song, or an excerpt of one, as systems and metrics get it.

    Args:
        name: of the excerpt: unique in an evaluation, fit for a file name.
        song_id: of the song in its manifest.
        sampling_rate: in hertz (Hz).
        references: the true stems `(S, C, T)` float32.
        mixture: `(C, T)` float32.
        stems: names of the axis S.
        start_s: where the excerpt begins in the song, in seconds.
        equal_loudness: see `Excerpt`: mixture and stems are not those of the song's files.
    """

    name: str
    song_id: str
    sampling_rate: int
    references: torch.Tensor
    mixture: torch.Tensor
    stems: list[str]
    start_s: float = 0.0
    equal_loudness: bool = False


@dataclass(frozen=True)
class Excerpt:
    """Where an excerpt lies; nothing of it is read yet.

    Args:
        song: of a manifest.
        start_s: in seconds.
        duration_s: in seconds; None for all up to the end of the song.
        equal_loudness: mix all audible stems at one level, whatever theirs is in the song: no stem is easy or hard for
            being loud or quiet.
    """

    song: Song
    start_s: float = 0.0
    duration_s: float | None = None
    equal_loudness: bool = False

    @property
    def name(self) -> str:
        """ "4.Potassium" for a whole song, "4.Potassium@100s" for an excerpt, then "-equal" for equal loudness.

        It fits as a file name on any system.
        """
        name = file_name(self.song.id)
        place = "" if self.duration_s is None and self.start_s == 0 else f"@{self.start_s:.10g}s"
        return name + place + ("-equal" if self.equal_loudness else "")

    def read(self, stems: Iterable[str] = STEMS) -> EvaluationSong:
        """Decode the excerpt at the song's own rate.

        A stem without files is silent. "other" has those of all stems that are not asked for too. The mixture is the
        manifest's own file, or the sum of all stems of the song. Mono files among stereo ones are doubled.

        Raises:
            ValueError: a file that cannot be read (`AudioReadError`), files whose channels do not fit together, or
                stems that are known as a sum only.
        """
        stems, song = list(stems), self.song
        if not all(known_stems(song, stems)):
            raise ValueError(
                f"The song {song.id!r} has {list(song.stems)}: not each of {stems} is known by itself. Leave it out of "
                "the manifests that are evaluated."
            )
        files = [path for name in song.stems for path in song.paths(name)]
        mixture_files = [song.folder / song.mixture] if song.mixture else files
        # Each file is decoded once, also where it is part of a stem and of the mixture.
        waveforms = {path: self._read_file(path) for path in dict.fromkeys([*files, *mixture_files])}
        if not waveforms:
            raise ValueError(f"The song {song.id!r} has neither stems nor a mixture: leave it out of the manifest.")
        num_samples = self._num_samples(waveforms.values())
        num_channels = self._num_channels(waveforms)

        def total(paths: Iterable[Path]) -> torch.Tensor:
            summed = torch.zeros(num_channels, num_samples)
            for path in paths:
                waveform = waveforms[path][:, :num_samples]
                summed[:, : waveform.shape[1]] += waveform
            return summed

        references = torch.stack([total(stem_paths(song, stem, stems)) for stem in stems])
        mixture = total(mixture_files)
        if self.equal_loudness:
            references = at_equal_loudness(references)
            mixture = references.sum(dim=0)
        return EvaluationSong(
            self.name, song.id, song.sampling_rate, references, mixture, stems, self.start_s, self.equal_loudness
        )

    def _read_file(self, path: Path) -> torch.Tensor:
        """`(C, n)`: fewer samples than asked for where the file ends."""
        rate = self.song.sampling_rate
        first = round(self.start_s * rate)
        last = None if self.duration_s is None else first + round(self.duration_s * rate)
        if path.suffix == PACKED_SUFFIX:  # mono, at the rate of its manifest
            return torch.from_numpy(open_packed(path)[None, first:last].astype(np.float32) / 32768)
        # All of the file, so that an excerpt is exactly a piece of the resampled song.
        waveform = _decoded_for_excerpts(path, rate) if last is not None else _decoded(path, rate)
        return waveform[:, first:last]

    def _num_samples(self, waveforms: Iterable[torch.Tensor]) -> int:
        longest = max(waveform.shape[1] for waveform in waveforms)
        if longest == 0:
            raise ValueError(
                f"The song {self.song.id!r} ends before {self.start_s} s: its files are shorter than the "
                f"{self.song.duration} s of the manifest. Prepare it again."
            )
        return longest if self.duration_s is None else round(self.duration_s * self.song.sampling_rate)

    def _num_channels(self, waveforms: dict[Path, torch.Tensor]) -> int:
        channels = {len(waveform) for waveform in waveforms.values()}
        if len(channels - {1}) > 1:
            raise ValueError(
                f"The files of the song {self.song.id!r} have {sorted(channels)} channels: they must agree."
            )
        return max(channels)


def at_equal_loudness(references: torch.Tensor) -> torch.Tensor:
    """Stems `(S, C, T)`, each at an RMS of EQUAL_RMS; silent ones as they are."""
    rms = references.square().mean(dim=(1, 2), keepdim=True).sqrt()
    return torch.where(rms > SILENCE_RMS, references * (EQUAL_RMS / rms.clamp(min=SILENCE_RMS)), references)


def _decoded(path: Path, sampling_rate: int) -> torch.Tensor:
    waveform, file_rate = read_audio(path)
    return resample(torch.from_numpy(waveform), file_rate, sampling_rate)


# The excerpts of a song follow each other: its stems, and its mixture, are kept until the next song needs the room.
_decoded_for_excerpts = lru_cache(maxsize=5)(_decoded)


def file_name(song_id: str) -> str:
    """An id as one part of a path: "test/A - B" -> "test_A - B"."""
    return re.sub(r'[/\\:*?"<>|\x00-\x1f]', "_", song_id).strip(". ") or "_"


def find_excerpts(
    manifests: str | os.PathLike | Iterable[str | os.PathLike],
    splits: str | Iterable[str] = "test",
    starts_s: list[float] | None = None,
    excerpt_s: float | None = None,
    max_songs: int | None = None,
    equal_loudness: bool = False,
) -> list[Excerpt]:
    """What is evaluated: whole songs, or excerpts of one length.

    Args:
        manifests: files, or folders of them.
        splits: one or several of "train", "validation" and "test".
        starts_s: where excerpts begin, in seconds. Those that do not fit into a song are left out; where none fits, or
            none is given, the excerpt is the middle of the song.
        excerpt_s: length of an excerpt in seconds; None for whole songs. Shorter songs are taken whole.
        max_songs: only the first ones, in the order of the manifests.
        equal_loudness: see `Excerpt`.

    Raises:
        ValueError: no song of the splits, two that would have the same name, impossible numbers; `ManifestError`.
    """
    if starts_s and excerpt_s is None:
        raise ValueError(f"`starts_s`, got {starts_s}, need `excerpt_s`: how long are the excerpts?")
    if excerpt_s is not None and not excerpt_s > 0:
        raise ValueError(f"`excerpt_s` must be above 0, got {excerpt_s}.")
    if any(not start >= 0 for start in starts_s or []):
        raise ValueError(f"`starts_s` must be 0 or later, got {starts_s}.")
    if max_songs is not None and max_songs < 1:
        raise ValueError(f"`max_songs` must be at least 1, got {max_songs}.")
    paths = [manifests] if isinstance(manifests, (str, os.PathLike)) else list(manifests)
    songs = [song for path in paths for song in read_manifest(path)]
    splits = [splits] if isinstance(splits, str) else list(splits)
    chosen = [song for song in songs if song.split in splits][:max_songs]
    if not chosen:
        there = dict(Counter(song.split for song in songs))
        where = f"of split {' or '.join(splits)} in {list(map(str, paths))}"
        raise ValueError(f"No song {where}; there are {there or 'no songs'}.")
    twice = [name for name, count in Counter(file_name(song.id) for song in chosen).items() if count > 1]
    if twice:
        raise ValueError(f"Several songs are called {twice[:5]}: evaluate their manifests one at a time.")
    excerpts = [excerpt for song in chosen for excerpt in _excerpts_of(song, starts_s or [], excerpt_s)]
    return [replace(excerpt, equal_loudness=equal_loudness) for excerpt in excerpts]


def _excerpts_of(song: Song, starts_s: list[float], excerpt_s: float | None) -> list[Excerpt]:
    if excerpt_s is None or song.duration <= excerpt_s:
        return [Excerpt(song)]
    fitting = [start for start in dict.fromkeys(starts_s) if start + excerpt_s <= song.duration]
    return [Excerpt(song, start, excerpt_s) for start in fitting or [round((song.duration - excerpt_s) / 2, 2)]]
