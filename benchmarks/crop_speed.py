"""How many training crops a worker reads a second, by format, and what augmentation costs.

    python -m benchmarks.crop_speed

One process, one thread; four stereo stems of 60 s each, made here. Ends in one JSON line.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import torch

from data_mss.augmentation import StemAugmentation, random_level
from data_mss.dataset import StemDataset
from data_mss.stem_folders import prepare_stem_folders

# Parts of the augmentation that go beyond the paper's, as often as `configs/ablations_data.yaml` has them.
PARTS = {
    "levels": {"stem_level_db": {stem: (-6.0, 6.0) for stem in ("vocals", "drums", "bass", "other")}},
    "silence": {"silence_probability": 0.2},
    "reverb": {"reverb_probability": 0.25},
    "bus": {"bus_probability": 0.4},
    "lossy": {"lossy_probability": 0.3},
}
PARTS["all"] = {name: value for part in PARTS.values() for name, value in part.items()}
NUM_BATCHES = 12
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
    facts = {f"{name}_crops_per_s": round(value, 1) for name, value in results.items()}
    for name, options in {"augmentation": {}, **{f"with_{part}": options for part, options in PARTS.items()}}.items():
        facts[f"{name}_ms_per_batch"] = round(1000 * seconds_of_a_batch(StemAugmentation(**options), stems))
        print(f"{name}: {facts[f'{name}_ms_per_batch']} ms of processor time for 8 crops, the median of {NUM_BATCHES}")
    print(json.dumps(facts))


def seconds_of_a_batch(augmentation: StemAugmentation, stems: torch.Tensor) -> float:
    """Processor time, which other work on the machine does not stretch as much as the clock."""
    times, remixed = [], torch.arange(len(stems)) % 2 == 0
    for seed in range(NUM_BATCHES + 1):
        start = time.process_time()
        draw = augmentation.draw(len(stems), torch.Generator().manual_seed(seed))
        augmentation.transmit(augmentation.apply(stems, draw, remixed).sum(dim=1), draw)
        times.append(time.process_time() - start)
    return statistics.median(times[1:])  # the first one fills caches


if __name__ == "__main__":
    main()
