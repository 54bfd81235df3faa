"""Peak memory of `mss-lm separate` against the length of the song, each length in a process of its own.

    python -m benchmarks.long_file --minutes 4 60

The song is noise with a slow swell, stereo, in a wav file of 16 bits; its vocals are written. Ends in one JSON line.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile


def write_song(path: Path, minutes: float, sampling_rate: int):
    """Second by second, so that this process stays small too."""
    rng = np.random.default_rng(0)
    with soundfile.SoundFile(path, "w", sampling_rate, 2, "PCM_16") as file:
        for second in range(int(60 * minutes)):
            level = 0.2 + 0.1 * np.sin(second / 7)
            file.write(level * rng.uniform(-1, 1, (sampling_rate, 2)))


def measure(command: list[str]) -> tuple[float, float]:
    """Run a command; its peak resident memory in MB, and seconds."""
    begin = time.monotonic()
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{' '.join(command)} failed: run it to see why.")
    return usage.ru_maxrss / 1024, time.monotonic() - begin  # Linux counts in KB


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, nargs="+", default=[4, 60])
    parser.add_argument("--sampling_rate", type=int, default=22050)
    parser.add_argument("--output", choices=["masked", "filtered", "generated"], default="filtered")
    parser.add_argument("--model", help="folder or Hub id (default: the one that ships with the package)")
    parser.add_argument("--batch_size", type=int, default=16)
    options = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        song = Path(folder) / "song.wav"
        for minutes in options.minutes:
            write_song(song, minutes, options.sampling_rate)
            command = [sys.executable, "-m", "commands_mss.main", "separate", str(song), "--output_dir", folder]
            command += ["--stems", "vocals", "--overwrite", "--output", options.output]
            command += ["--batch_size", str(options.batch_size)]
            command += ["--model", options.model] if options.model else []
            peak_mb, seconds = measure(command)
            decoded_mb = minutes * 60 * options.sampling_rate * 2 * 4 / 2**20
            results.append({"minutes": minutes, "peak_mb": round(peak_mb), "song_in_float32_mb": round(decoded_mb)})
            print(f"{minutes:g} min: peak {peak_mb:.0f} MB, {seconds:.0f} s (the song in float32: {decoded_mb:.0f} MB)")
    print(json.dumps({"benchmark": "long_file", "output": options.output, "results": results}))


if __name__ == "__main__":
    main()
