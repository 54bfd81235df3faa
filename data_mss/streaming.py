"""Training crops streamed through `datasets`, for corpora that do not fit a disk.

A row of such a data set is a song: `id`, and one column of audio file bytes per stem. `song_rows` makes rows of a
manifest, so that a corpus can be written to parquet or pushed to the Hub:

```python
rows = datasets.Dataset.from_generator(song_rows, gen_kwargs={"songs": read_manifest("corpus"), "stems": (*stems,)})
rows.push_to_hub("org/corpus")
crops = StreamingStemDataset(datasets.load_dataset("org/corpus", split="train", streaming=True))
```
"""

import io
from collections.abc import Iterable, Iterator

import numpy as np
import soundfile
import torch
from torch.utils.data import IterableDataset

from processing_mss import read_audio, resample

from .audio_files import PACKED_SUFFIX, add_up, read_mono
from .manifest import STEMS, Song, known_stems, stem_paths


def song_rows(songs: Iterable[Song], stems: Iterable[str]) -> Iterator[dict]:
    """Rows of songs: `id`, and per stem the bytes of a file (empty for silence).

    A stem that is one audio file goes as it is; several, and packed ones, are summed and written as FLAC. Stems that
    are not asked for count as "other", if that is.

    Raises:
        ValueError: a song some of whose stems are known as a sum only.
    """
    stems = list(stems)
    for song in songs:
        if not all(known_stems(song, stems)):
            raise ValueError(
                f"The song {song.id!r} has {list(song.stems)}: rows need each of {stems} by itself. Leave the song out."
            )
        row = {"id": song.id}
        for stem in stems:
            paths = stem_paths(song, stem, stems)
            one_file = len(paths) == 1 and paths[0].suffix != PACKED_SUFFIX
            row[stem] = paths[0].read_bytes() if one_file else _summed(paths, song.sampling_rate)
        yield row


def _summed(paths: list, rate: int) -> bytes:
    if not paths:
        return b""
    total = add_up([read_mono(path, rate, packed_rate=rate) for path in paths])
    buffer = io.BytesIO()
    soundfile.write(buffer, total.numpy(), rate, format="FLAC", subtype="PCM_24")
    return buffer.getvalue()


class StreamingStemDataset(IterableDataset):
    """Crops of a stream of songs.

    Every song is decoded once and gives `crops_per_song` crops. `rows` divides itself between the workers of a
    DataLoader; between processes, divide it by `datasets.distributed.split_dataset_by_node` first. Order is shuffled
    within a buffer; the crops of a song depend on (seed, epoch, id) alone.

    Args:
        rows: a `datasets.IterableDataset` of rows as above; values may also be `{"bytes": ...}`.
        buffer_size: songs in the shuffling buffer; 1 keeps the order.
    """

    def __init__(
        self,
        rows,
        stems: Iterable[str] = STEMS,
        crop_s: float = 4.0,
        sampling_rate: int = 48000,
        crops_per_song: int = 8,
        buffer_size: int = 16,
        seed: int = 0,
    ):
        self.rows = rows.shuffle(seed=seed, buffer_size=buffer_size) if buffer_size > 1 else rows
        self.stems = list(stems)
        self.num_samples = round(crop_s * sampling_rate)
        self.sampling_rate = sampling_rate
        self.crops_per_song = crops_per_song
        self.seed = seed
        # Shared memory: workers that outlive an epoch see the new number.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int):
        """Draw other crops, in another order: to be called before every epoch."""
        self._epoch.fill_(epoch)
        self.rows.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict]:
        for row in self.rows:
            stems = [self._decode(row[stem]) for stem in self.stems]
            length = max(self.num_samples, *(len(stem) for stem in stems))
            song = torch.stack([torch.nn.functional.pad(stem, (0, length - len(stem))) for stem in stems])
            rng = np.random.default_rng([self.seed, self._epoch.item(), *row["id"].encode()])
            for start in rng.integers(0, length - self.num_samples + 1, self.crops_per_song):
                crop = song[:, start : start + self.num_samples].clone()
                yield {"stems": crop, "mixture": crop.sum(dim=0), "song_ids": [row["id"]] * len(self.stems)}

    def _decode(self, value: bytes | dict | None) -> torch.Tensor:
        content = value["bytes"] if isinstance(value, dict) else value
        if not content:
            return torch.zeros(0)
        waveform, rate = read_audio(bytes(content))
        return resample(torch.from_numpy(waveform).mean(dim=0), rate, self.sampling_rate)
