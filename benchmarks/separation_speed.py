"""How fast a separator is, beside HTDemucs (package demucs, random weights) on the same clip and machine.

    python -m benchmarks.separation_speed --model runs/separator/final [--seconds 24]

Stereo noise at 44.1 kHz, four stems, each separator once to warm up and then three times; the fastest counts. Seconds
of CPU time are given too: they hardly depend on what else the machine does. Prints one JSON line.
"""

import argparse
import functools
import json
import time
from collections.abc import Callable

import torch

import mss_lm  # noqa: F401
from processing_mss import DEFAULT_MODEL

RATE = 44100


def measure(separate: Callable[[torch.Tensor], object], clip: torch.Tensor) -> dict[str, float]:
    """Wall and CPU seconds of the fastest of three runs, and how many times faster than playing that is."""
    separate(clip)
    runs = []
    for _ in range(3):
        wall, process = time.perf_counter(), time.process_time()
        separate(clip)
        runs.append((time.perf_counter() - wall, time.process_time() - process))
    wall, process = min(runs)
    duration = clip.shape[-1] / RATE
    return {"seconds": round(wall, 2), "cpu_seconds": round(process, 2), "times_real_time": round(duration / wall, 2)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="folder of a separator (default: the package's)")
    parser.add_argument("--seconds", type=float, default=24.0, help="of the clip (default: %(default)s)")
    options = parser.parse_args()
    from demucs.htdemucs import HTDemucs
    from transformers import pipeline

    from data_mss.labelling.teachers import HTDemucsTeacher

    torch.manual_seed(0)
    clip = 0.1 * torch.randn(2, round(options.seconds * RATE))
    pipe = pipeline("audio-source-separation", model=options.model, device="cpu")
    htdemucs = HTDemucsTeacher(HTDemucs(["drums", "bass", "other", "vocals"]), device="cpu")
    calls = {
        "masked": {"output": "masked"},
        "filtered": {"output": "filtered"},
        "filtered_vocals": {"output": "filtered", "stems": ["vocals"]},
        "filtered_one_candidate": {"output": "filtered", "num_candidates": 1},
        "generated": {"output": "generated"},
    }
    systems = {
        name: functools.partial(pipe, sampling_rate=RATE, **call)
        for name, call in calls.items()
        if call["output"] in pipe.model.config.outputs
    }
    scores = {
        name: measure(lambda clip, separate=separate: separate(clip.numpy()), clip)
        for name, separate in systems.items()
    }
    scores["htdemucs"] = measure(htdemucs.separate, clip)
    facts = {"benchmark": "separation_speed", "seconds_of_audio": options.seconds, "threads": torch.get_num_threads()}
    print(json.dumps(facts | scores))


if __name__ == "__main__":
    main()
