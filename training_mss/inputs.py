"""Batches of crops: read, augmented and levelled, on the device.

Batch `number` of a run, counted over all processes and micro-steps, is a function of (seed, number) alone: a resumed
run goes on with the crops that an uninterrupted one would have seen, and N processes see together what one process
with N times the batch would.
"""

import itertools
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch.utils.data import DataLoader, Dataset, default_collate

from data_mss.augmentation import AugmentationConfig, AugmentationDraw, StemAugmentation, draw_levels, set_level
from data_mss.dataset import StemDataset
from data_mss.device_corpus import DeviceCorpus
from data_mss.token_bank import TokenBank

from .configuration import CropConfig

VALIDATION_RMS = 0.1  # the level at which inference presents a song
ENDLESS = 2**62  # crops of the one epoch


def seed_of(*numbers: int) -> int:
    """One well-mixed 63-bit seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, dtype=np.uint64)[0] >> np.uint64(1))


class TrainingCrops:
    """Training batches.

    Args:
        config: which crops, and how they are changed.
        manifests: see `StemDataset`.
        encode: stems `(N, S, T)` -> codes, for the token bank.
        cache_dir: where formats that do not seek well are packed.
        partly_known: see `StemDataset`.

    Raises:
        ValueError: as `StemDataset`; or a bank without a tokeniser.
    """

    def __init__(
        self,
        config: CropConfig,
        manifests: list[str],
        stems: list[str],
        sampling_rate: int,
        accelerator: Accelerator,
        seed: int,
        num_workers: int,
        encode: Callable[[torch.Tensor], torch.Tensor] | None = None,
        cache_dir: str | None = None,
        partly_known: bool = False,
    ):
        self.config, self.seed, self.num_workers = config, seed, num_workers
        self.device = accelerator.device
        self.process_index, self.num_processes = accelerator.process_index, accelerator.num_processes
        self.dataset = StemDataset(
            manifests,
            stems=stems,
            split="train",
            crop_s=config.crop_s,
            sampling_rate=sampling_rate,
            epoch_size=ENDLESS,
            remix_probability=0.0 if config.input == "bank" else config.remix_probability,  # the bank remixes itself
            audible_probability=config.audible_probability,
            max_semitones=config.max_semitones,
            source_weights=config.source_weights,
            min_confidence=config.min_confidence,
            partly_known=partly_known,
            seed=seed,
            cache_dir=cache_dir,
        )
        changes = {item.name: getattr(config, item.name) for item in fields(AugmentationConfig)}
        self.augmentation = StemAugmentation(**changes, stems=stems, sampling_rate=sampling_rate)
        self.corpus = None if config.input == "files" else DeviceCorpus(self.dataset, self.device)
        self.bank = None
        if config.input == "bank":
            if encode is None:
                raise ValueError("input 'bank' keeps codes: only the separator's stage has them. Use 'device'.")
            self.bank = TokenBank(
                read_crops=self._read_for_bank,
                encode=encode,
                size=config.bank_size,
                refresh=config.bank_refresh,
                remix_probability=config.remix_probability,
                index_offset=self.process_index,
                index_stride=self.num_processes,
            )

    def _read_for_bank(self, indices: list[int]) -> dict[str, torch.Tensor]:
        return self.augment(self.corpus.crops(indices), indices)

    def indices(self, number: int) -> list[int]:
        """Crops of this process in batch `number`."""
        size = self.config.batch_size
        first = (number * self.num_processes + self.process_index) * size
        return list(range(first, first + size))

    def batches(self, first: int) -> Iterator[dict]:
        """Batches from number `first` on, without end.

        Raises:
            AudioReadError: a file cannot be read; also from a worker, in one sentence.
        """
        numbers = itertools.count(first)
        if self.bank is not None:
            self.bank.fill(first)
            for number in numbers:
                generator = torch.Generator().manual_seed(seed_of(self.seed, number, self.process_index))
                yield send_to_device(self.bank.batch(number, self.config.batch_size, generator), self.device)
        elif self.corpus is not None:
            for number in numbers:
                indices = self.indices(number)
                yield self.augment(self.corpus.crops(indices), indices)
        else:
            index_lists = map(self.indices, numbers)
            for number, crops in zip(itertools.count(first), self._loader(index_lists)):
                if isinstance(crops, Exception):
                    raise crops
                yield self.augment(crops, self.indices(number))

    def _loader(self, index_lists: Iterable[list[int]]) -> DataLoader:
        return DataLoader(
            _Batches(self.dataset),
            sampler=index_lists,
            batch_size=None,
            num_workers=self.num_workers,
            pin_memory=self.device.type == "cuda",
            prefetch_factor=4 if self.num_workers else None,
            worker_init_fn=_leave_interrupts_to_the_loop,
            generator=torch.Generator(),  # its own: a loader that starts would draw from the one of dropout
        )

    def augment(self, crops: dict, indices: list[int]) -> dict:
        """Augmentation and level; the draws of a crop depend on (seed, its index) alone.

        Args:
            crops: `stems` `(B, S, T)`, `known`, `estimated` and `remixed` (`StemDataset.labels`).

        Returns:
            `stems`; `mixture` `(B, T)`: their sum, but for crops whose mixture has been through a lossy codec; `known`
            and `estimated`; all on the device.
        """
        original = crops["stems"].to(self.device, non_blocking=True)
        labels = {name: crops[name].to(self.device, non_blocking=True) for name in ("known", "estimated")}
        generators = [torch.Generator().manual_seed(seed_of(self.seed, index)) for index in indices]
        draws = AugmentationDraw.join([self.augmentation.draw(1, generator) for generator in generators])
        levels = torch.cat([draw_levels(1, generator, self.config.rms_range) for generator in generators])
        changed = self.augmentation.apply(original, draws, crops["remixed"], crops["known"])
        stems = set_level(changed, levels)
        return {"stems": stems, "mixture": self.augmentation.transmit(stems.sum(dim=1), draws), **labels}


class _Batches(Dataset):
    """Batches of a dataset, each by the list of its crops.

    What cannot be read comes as the error itself: a loader raises those of its workers with a traceback for a message.
    The worker's traceback goes along as a note, which shows where tracebacks do.
    """

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __getitem__(self, indices: list[int]) -> dict | Exception:
        try:
            return default_collate([self.dataset[index] for index in indices])
        except (ValueError, OSError) as error:
            error.add_note(f"Where it was read:\n{traceback.format_exc()}")
            return error


def _leave_interrupts_to_the_loop(worker: int) -> None:
    """Ctrl-C reaches the workers too, but the loop still wants its batch then."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(signal, "SIGHUP"):  # so does the end of a terminal
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


@dataclass
class Validation:
    """Crops of the validation split.

    Args:
        batches: this process's share, on the host; as batches of training, and `source` `(B,)`, numbers of sources.
        sources: names of the sources.
    """

    batches: list[dict]
    sources: list[str]


def validation_crops(
    config: CropConfig,
    manifests: list[str],
    stems: list[str],
    sampling_rate: int,
    accelerator: Accelerator,
    num_crops: int,
    cache_dir: str | None = None,
) -> Validation:
    """The same crops of the validation split every time, as they are, at one level, about as many of each source.

    There are more than `num_crops` where some source or process would have none. Songs that are known in part are left
    out: they cannot be scored.

    Raises:
        ValueError: no song of the validation split.
    """

    def dataset_of(source_weights: dict[str, float] | None) -> StemDataset:
        return StemDataset(
            manifests,
            stems=stems,
            split="validation",
            crop_s=config.crop_s,
            sampling_rate=sampling_rate,
            epoch_size=ENDLESS,
            source_weights=source_weights,
            cache_dir=cache_dir,
        )

    sources = sorted({song.source for song in dataset_of(None).songs})
    datasets = [dataset_of({source: 1.0}) for source in sources]
    num_crops = max(num_crops, accelerator.num_processes, len(sources))
    mine = range(accelerator.process_index, num_crops, accelerator.num_processes)
    batches = []
    for start in range(0, len(mine), config.batch_size):
        numbers = mine[start : start + config.batch_size]
        crops = [datasets[number % len(sources)][number // len(sources)] for number in numbers]
        stems, known, estimated = (
            torch.stack([crop[name] for crop in crops]) for name in ("stems", "known", "estimated")
        )
        stems = set_level(stems, torch.full((len(crops),), VALIDATION_RMS))
        source = torch.tensor([number % len(sources) for number in numbers])
        batch = {"stems": stems, "mixture": stems.sum(dim=1), "known": known, "estimated": estimated}
        batches.append({**batch, "source": source})
    return Validation(batches, sources)
