"""Speed of training data: crops a second from files, a device corpus and a bank of codes, and the cost of augmentation.

    python -m benchmarks.crop_speed [--device cuda]

One process, one thread. Files: four stereo stems of 60 s in each format. Packed songs, corpus and bank: ten songs of
60 s, batches of 16 crops, half of them remixed; the bank's encoder is free of charge, so that only the bank itself is
measured. Augmentation: processor time, which other work on the machine does not stretch as much as the clock. Ends in
one JSON line.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import torch

from data_mss.audio_files import write_packed
from data_mss.augmentation import StemAugmentation, random_level
from data_mss.dataset import StemDataset
from data_mss.device_corpus import DeviceCorpus
from data_mss.manifest import STEMS, Song
from data_mss.stem_folders import prepare_stem_folders
from data_mss.token_bank import TokenBank

FORMATS = [("wav", 44100), ("wav", 48000), ("flac", 44100), ("flac", 48000), ("mp3", 44100)]
RATE = 48000  # of packed songs
BATCH = 16
# Parts of the augmentation that go beyond the paper's, as often as `configs/ablations_data.yaml` has them.
PARTS = {
    "levels": {"stem_level_db": {stem: (-6.0, 6.0) for stem in STEMS}},
    "silence": {"silence_probability": 0.2},
    "reverb": {"reverb_probability": 0.25},
    "bus": {"bus_probability": 0.4},
    "lossy": {"lossy_probability": 0.3},
}
PARTS["all"] = {name: value for part in PARTS.values() for name, value in part.items()}
NUM_BATCHES = 12


def per_second(make: Callable[[int], object], device: torch.device, seconds: float = 4.0) -> float:
    """Calls of `make(number)` a second, after two that warm up."""
    for number in range(2):
        make(number)
    calls, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        make(2 + calls)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        calls += 1
    return calls / (time.perf_counter() - start)


def from_files(folder: Path, suffix: str, rate: int) -> float:
    """Crops a second of songs in a format."""
    (folder / "song").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for stem in STEMS:
        samples = np.cumsum(rng.standard_normal((60 * rate, 2)), axis=0)
        soundfile.write(folder / "song" / f"{stem}.{suffix}", 0.5 * samples / np.abs(samples).max(), rate)
    prepare_stem_folders(folder, folder)
    dataset = StemDataset(folder / "manifest.jsonl", epoch_size=64, cache_dir=folder / "cache")
    return per_second(lambda number: dataset[number % 64], torch.device("cpu"))


def packed_songs(folder: Path) -> list[Song]:
    rng, songs = np.random.default_rng(0), []
    for number in range(10):
        paths = {stem: folder / str(number) / f"{stem}.npy" for stem in STEMS}
        for path in paths.values():
            write_packed(path, rng.integers(-8000, 8000, 60 * RATE, dtype=np.int16))
        songs.append(
            Song(str(number), "train", {stem: [str(path)] for stem, path in paths.items()}, 60.0, RATE, "noise")
        )
    return songs


def from_packed(songs: list[Song], device: torch.device) -> dict[str, float]:
    """Crops a second of packed songs and of a corpus on the device, batches a second of a bank of codes."""
    dataset = StemDataset(songs, remix_probability=0.5)
    corpus = DeviceCorpus(dataset, device)

    def numbers(batch: int) -> list[int]:
        return list(range(batch * BATCH, (batch + 1) * BATCH))

    def read(batch: int) -> torch.Tensor:
        return torch.stack([dataset[number % len(dataset)]["stems"] for number in numbers(batch)]).to(device)

    def read_levelled(indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        crops = corpus.crops(indices)
        return random_level(crops["stems"]), crops["known"]

    def encode(stems: torch.Tensor) -> torch.Tensor:
        return torch.zeros(*stems.shape[:2], 100, 16, dtype=torch.int64, device=device)

    results = {"packed_crops_per_s": BATCH * per_second(read, device)}
    results["corpus_crops_per_s"] = BATCH * per_second(lambda batch: corpus.crops(numbers(batch)), device)
    for refresh in (0, 4):
        bank = TokenBank(read_levelled, encode, size=64, refresh=refresh)
        speed = per_second(lambda batch, bank=bank: bank.batch(batch, BATCH), device)
        results[f"bank_refresh_{refresh}_batches_per_s"] = speed
    return results


def ms_per_batch(augmentation: StemAugmentation, stems: torch.Tensor) -> float:
    """Milliseconds of processor time for a batch, median."""
    times, remixed = [], torch.arange(len(stems)) % 2 == 0
    for seed in range(NUM_BATCHES + 1):
        start = time.process_time()
        draw = augmentation.draw(len(stems), torch.Generator().manual_seed(seed))
        augmentation.transmit(augmentation.apply(stems, draw, remixed).sum(dim=1), draw)
        times.append(time.process_time() - start)
    return 1000 * statistics.median(times[1:])  # the first one fills caches


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="of corpus and bank")
    device = parser.parse_args().device
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        results = {
            f"{suffix}_{rate}_crops_per_s": from_files(Path(folder) / f"{suffix}{rate}", suffix, rate)
            for suffix, rate in FORMATS
        }
        results |= from_packed(packed_songs(Path(folder) / "packed"), device)
    stems = torch.randn(8, 4, 4 * RATE)
    for part, options in {"paper": {}, **PARTS}.items():
        results[f"augmentation_{part}_ms_per_batch_of_8"] = ms_per_batch(StemAugmentation(**options), stems)
    print(json.dumps({"benchmark": "crop_speed", **{name: round(value, 1) for name, value in results.items()}}))


if __name__ == "__main__":
    main()
