"""A whole corpus in the accelerator's memory: crops without files, decoders and copies."""

import math

import numpy as np
import torch

from .audio_files import PACKED_SUFFIX, open_packed, read_piece
from .dataset import MAX_ATTEMPTS, SILENT_STEM_ATTEMPTS, Place, StemDataset, at_speed, is_silent, piece_length
from .manifest import Song


class DeviceCorpus:
    """The songs of a dataset as one tensor `(S, samples of all songs)` int16, and the dataset's crops out of it.

    Two bytes a sample and stem: 1.4 GB an hour of four stems at 48 kHz. Packed songs (`mss-lm prepare pack`) are copied
    as they are, and their crops equal the dataset's; other files are read whole, rounded, and cut at full scale.

    Args:
        dataset: chooses the crops; `set_epoch` works as ever.
        device: where the audio goes.
        max_bytes: the most it may take there.

    Raises:
        ValueError: the corpus is larger than `max_bytes`.
    """

    def __init__(self, dataset: StemDataset, device: str | torch.device, max_bytes: int | None = None):
        self.dataset = dataset
        # One sample more than a song has: the start of a crop is rounded. Shorter songs end in silence.
        longest = piece_length(dataset.num_samples, 2 ** (dataset.max_semitones / 12))
        lengths = [max(longest, math.ceil(song.duration * dataset.sampling_rate) + 1) for song in dataset.songs]
        self.num_bytes = 2 * len(dataset.stems) * sum(lengths)
        if max_bytes is not None and self.num_bytes > max_bytes:
            raise ValueError(
                f"{len(dataset.songs)} songs take {self.num_bytes} bytes of {device}, more than max_bytes={max_bytes}: "
                "take fewer songs, or read crops from the dataset itself."
            )
        self._audio = torch.zeros(len(dataset.stems), sum(lengths), dtype=torch.int16, device=device)
        self._offsets = [0]
        for song, length in zip(dataset.songs, lengths):
            start = self._offsets[-1]
            for row, stem in zip(self._audio, dataset.stems):
                samples = self._read(song, stem, length)
                row[start : start + len(samples)] = samples
            self._offsets.append(start + length)

    def _read(self, song: Song, stem: str, length: int) -> torch.Tensor:
        """A stem of a song, `(length,)` int16 at most."""
        dataset, paths = self.dataset, self.dataset.paths(song, stem)
        if len(paths) == 1 and paths[0].suffix == PACKED_SUFFIX:
            return torch.tensor(open_packed(paths[0])[:length])
        files = [read_piece(path, 0.0, length, dataset.sampling_rate, dataset.cache_dir) for path in paths]
        return (32768 * sum(files, torch.zeros(length))).round().clamp(-32768, 32767).to(torch.int16)

    def crops(self, indices: list[int]) -> dict:
        """Crops `dataset[index]`: `stems` `(B, S, T)` float32, `mixture` `(B, T)`, on the device, and see
        `StemDataset.labels`.

        Indices may go beyond the epoch's end. Silent crops are drawn again as in the dataset; to know them, the host
        waits for the device once, and once more for each time that any was silent.
        """
        rngs = [self.dataset.rng(index) for index in indices]
        stems, places = self._audible_crops(rngs)
        mixture = stems.sum(dim=1)
        for _ in range(MAX_ATTEMPTS - 1):
            rows = is_silent(mixture).nonzero().flatten().tolist()
            if not rows:
                break
            again, their_places = self._audible_crops([rngs[row] for row in rows])
            stems[rows], mixture[rows] = again, again.sum(dim=1)
            for row, changed in zip(rows, their_places):
                places[row] = changed
        return {"stems": stems, "mixture": mixture, **self.dataset.labels(places)}

    def _audible_crops(self, rngs: list[np.random.Generator]) -> tuple[torch.Tensor, list[list[Place]]]:
        """One draw of a crop from each generator, silent stems of remixed ones drawn again as in the dataset.

        Returns:
            Stems `(N, S, T)` on the device, and their places.
        """
        dataset = self.dataset
        places = [dataset.draw(rng) for rng in rngs]
        stems = self._gather(places)
        rows = list(range(len(rngs))) if dataset.audible_probability else []
        for _ in range(SILENT_STEM_ATTEMPTS):
            if not rows:
                break
            silent = is_silent(stems[rows]).tolist()
            again = [dataset.draw_silent_again(places[row], of_row, rngs[row]) for row, of_row in zip(rows, silent)]
            changed = {row: new for row, new in zip(rows, again) if new != places[row]}
            if rows := list(changed):
                stems[rows] = self._gather(list(changed.values()))
            for row, new in changed.items():
                places[row] = new
        return stems, places

    def _gather(self, places: list[list[Place]]) -> torch.Tensor:
        dataset, (num_stems, total) = self.dataset, self._audio.shape
        flat = self._audio.flatten()
        starts = [
            stem * total + self._offsets[place.song] + round(place.start_s * dataset.sampling_rate)
            for crop in places
            for stem, place in enumerate(crop)
        ]
        if dataset.max_semitones:
            lengths = [piece_length(dataset.num_samples, place.speed) for crop in places for place in crop]
            pieces = [
                at_speed(flat[start : start + length].float().div_(32768), dataset.num_samples)
                for start, length in zip(starts, lengths)
            ]
            return torch.stack(pieces).unflatten(0, (-1, num_stems))
        # All windows of the corpus as a view without memory, (starts, T); one index operation picks B * S of them.
        windows = flat.unfold(0, dataset.num_samples, 1)
        stems = windows[torch.tensor(starts, device=self._audio.device)].float().div_(32768)
        return stems.unflatten(0, (-1, num_stems))
