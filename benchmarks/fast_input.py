"""How many training crops a second come from packed songs, from a corpus on the device, and from a bank of codes.

    python -m benchmarks.fast_input [--device cuda]

One process, one thread; ten songs of 60 s with four stems, made here; crops of 4 s, half of them remixed, in batches of
16. The bank's encoder is free of charge, so that only the bank itself is measured. Ends in one JSON line.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from data_mss.audio_files import write_packed
from data_mss.augmentation import random_level
from data_mss.dataset import StemDataset
from data_mss.device_corpus import DeviceCorpus
from data_mss.manifest import Song
from data_mss.token_bank import TokenBank

RATE = 48000
STEMS = ("vocals", "drums", "bass", "other")
BATCH = 16


def write_songs(folder: Path) -> list[Song]:
    rng = np.random.default_rng(0)
    songs = []
    for number in range(10):
        paths = {stem: folder / str(number) / f"{stem}.npy" for stem in STEMS}
        for path in paths.values():
            write_packed(path, rng.integers(-8000, 8000, 60 * RATE, dtype=np.int16))
        stems = {stem: [str(path)] for stem, path in paths.items()}
        songs.append(Song(str(number), "train", stems, 60.0, RATE, "noise"))
    return songs


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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    device = parser.parse_args().device
    torch.set_num_threads(1)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        dataset = StemDataset(write_songs(Path(folder)), remix_probability=0.5)
        start = time.perf_counter()
        corpus = DeviceCorpus(dataset, device)
        results["corpus_bytes_per_s"] = corpus.num_bytes / (time.perf_counter() - start)

        def indices(number):
            return range(number * BATCH, (number + 1) * BATCH)

        def read(number):
            torch.stack([dataset[index % len(dataset)]["stems"] for index in indices(number)]).to(device)

        results["dataset_crops_per_s"] = BATCH * per_second(read, device)
        results["draws_per_s"] = BATCH * per_second(
            lambda number: [dataset.draw(dataset.rng(index)) for index in indices(number)], torch.device("cpu"), 1.0
        )
        results["corpus_crops_per_s"] = BATCH * per_second(lambda number: corpus.crops(list(indices(number))), device)

        def read_levelled(numbers):
            crops = corpus.crops(numbers)
            return random_level(crops["stems"]), crops["known"]

        for refresh in (0, 1, 4):
            bank = TokenBank(
                read_levelled,
                lambda stems: torch.zeros(*stems.shape[:2], 100, 16, dtype=torch.int64, device=device),
                size=64,
                refresh=refresh,
            )
            results[f"bank_refresh_{refresh}_batches_per_s"] = per_second(
                lambda number, bank=bank: bank.batch(number, BATCH), device
            )
    for name, value in results.items():
        print(f"{name.replace('_', ' ').replace(' per s', ' / s')}: {value:,.1f}")
    print(json.dumps({name: round(value, 1) for name, value in results.items()}))


if __name__ == "__main__":
    main()
