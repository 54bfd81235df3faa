"""How many training crops a worker reads a second, by format, and what augmentation costs.

    python -m benchmarks.crop_speed

One process, one thread; four stereo stems of 60 s each, made here. Ends in one JSON line.
"""

import json
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import torch

from data_mss.augmentation import StemAugmentation, random_level
from data_mss.dataset import StemDataset
from data_mss.stem_folders import prepare_stem_folders

FORMATS = [("wav", 44100), ("wav", 48000), ("flac", 44100), ("flac", 48000), ("mp3", 44100)]
NUM_CROPS = 60


def main():
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for suffix, rate in FORMATS:
            root = Path(folder) / f"{suffix}{rate}"
            (root / "song").mkdir(parents=True)
            for stem in ("vocals", "drums", "bass", "other"):
                samples = np.cumsum(rng.standard_normal((60 * rate, 2)), axis=0)
                samples = 0.5 * samples / np.abs(samples).max()
                soundfile.write(root / "song" / f"{stem}.{suffix}", samples, rate)
            prepare_stem_folders(root, root)
            dataset = StemDataset(root / "manifest.jsonl", epoch_size=NUM_CROPS, cache_dir=root / "cache")
            dataset[0]  # packs what has to be packed
            start = time.perf_counter()
            for index in range(NUM_CROPS):
                dataset[index]
            name = f"{suffix}_{rate}"
            results[name] = NUM_CROPS / (time.perf_counter() - start)
            print(f"{name}: {results[name]:.1f} crops/s per worker")
    stems = torch.randn(8, 4, 192000)
    augmentation = StemAugmentation()
    augmentation(stems)
    start = time.perf_counter()
    random_level(augmentation(stems))
    results["augmentation"] = 8 / (time.perf_counter() - start)
    print(f"augmentation: {results['augmentation']:.1f} crops/s on one core")
    print(json.dumps({f"{name}_crops_per_s": round(value, 1) for name, value in results.items()}))


if __name__ == "__main__":
    main()
