"""How time and memory of `mss-lm separate` grow with the length of a song, and what a call costs by itself.

    python -m benchmarks.growth [--model PATH] [--seconds 10 60 240 1200 3600] [--clips 100]

Each measurement is a process of its own, `mss-lm separate` from file to files with one thread, on stereo noise at
44.1 kHz: its seconds of processor time, start of Python included, and its highest resident memory. A line is fitted to
the processor time over the length. A folder of clips of 3 s in one call is measured beside as much sound in one file.
All files are deleted. Needs some GB in the system's folder for temporary files, and POSIX (os.wait4). Ends in one JSON
line.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from processing_mss import AudioWriter

RATE = 44100
CLIP_S = 3.0
BLOCK_S = 10
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def write_noise(path: Path, seconds: float, seed: int = 0):
    """A wav of 16 bits, written block by block."""
    rng, missing = np.random.default_rng(seed), round(seconds * RATE)
    with AudioWriter(path, RATE, 2, num_samples=missing) as writer:
        while missing:
            block = 0.1 * rng.standard_normal((2, min(missing, BLOCK_S * RATE)), dtype=np.float32)
            writer.write(block)
            missing -= block.shape[1]


def measure(model: str | None, make_input: Callable[[Path], object]) -> dict[str, float]:
    """Separate what `make_input` writes into a folder; processor and wall seconds, and peak memory, of the process.

    Raises:
        RuntimeError: the command fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        songs, stems = Path(folder) / "songs", Path(folder) / "stems"
        songs.mkdir()
        make_input(songs)
        arguments = ["separate", str(songs), "--output_dir", str(stems), "--device", "cpu"]
        arguments += ["--model", model] if model else []
        begin = time.perf_counter()
        with open(Path(folder) / "log", "w+") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "commands_mss.main", *arguments],
                stdout=log,
                stderr=log,
                env={**os.environ, **ONE_THREAD},
            )
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                log.seek(0)
                raise RuntimeError(f"mss-lm {' '.join(arguments)} failed: {log.read()[-1000:]}")
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "wall_seconds": time.perf_counter() - begin,
        "peak_bytes": unit * usage.ru_maxrss,
    }


def fit_line(seconds: list[float], cpu_seconds: list[float]) -> dict[str, float]:
    """The line through processor seconds over lengths, by least squares.

    Returns:
        cpu_seconds_per_second: its slope. constant_s: what a call takes whatever the length. largest_residual_s: of a
        point. r_squared: share of the variance that the line explains.
    """
    lengths, times = np.asarray(seconds, float), np.asarray(cpu_seconds, float)
    slope, constant = np.polyfit(lengths, times, 1)
    residuals = times - (slope * lengths + constant)
    return {
        "cpu_seconds_per_second": slope,
        "constant_s": constant,
        "largest_residual_s": np.abs(residuals).max(),
        "r_squared": 1 - (residuals**2).sum() / ((times - times.mean()) ** 2).sum(),
    }


def measure_clips(model: str | None, num_clips: int) -> dict[str, dict]:
    """A folder of clips, and one file as long as all of them."""

    def make_clips(folder: Path):
        for number in range(num_clips):
            write_noise(folder / f"{number}.wav", CLIP_S, seed=number)

    say(f"{num_clips} clips of {CLIP_S:g} s")
    clips = measure(model, make_clips)
    say(f"one file of {num_clips * CLIP_S:g} s")
    return {
        "clips": clips,
        "one_file": measure(model, lambda folder: write_noise(folder / "song.wav", num_clips * CLIP_S)),
    }


def say(text: str):
    print(f"growth: {text}", file=sys.stderr, flush=True)


def row(name: str, score: dict[str, float]) -> str:
    return f"{name:<22}{score['cpu_seconds']:>10.2f}{score['wall_seconds']:>10.2f}{score['peak_bytes'] / 1e9:>10.2f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or Hub id of a separator (default: the package's)")
    parser.add_argument(
        "--seconds", type=float, nargs="+", default=[10, 60, 240, 1200, 3600], help="lengths, two or more"
    )
    parser.add_argument("--clips", type=int, default=100, help="in the folder (default: %(default)s)")
    options = parser.parse_args()
    if len(set(options.seconds)) < 2 or options.clips < 1:
        parser.error("a line needs two lengths, and a folder one clip")
    lengths = []
    for seconds in options.seconds:
        say(f"{seconds:g} s")
        score = measure(options.model, lambda folder, seconds=seconds: write_noise(folder / "song.wav", seconds))
        lengths.append({"seconds": seconds, **score})
    line = fit_line(options.seconds, [score["cpu_seconds"] for score in lengths])
    clips = measure_clips(options.model, options.clips)
    print(f"{'':<22}{'CPU s':>10}{'wall s':>10}{'peak GB':>10}")
    for score in lengths:
        print(row(f"{score['seconds']:g} s", score))
    print(row(f"{options.clips} clips of {CLIP_S:g} s", clips["clips"]))
    print(row(f"one file of {options.clips * CLIP_S:g} s", clips["one_file"]))
    print(
        f"\n{line['cpu_seconds_per_second']:.4f} CPU s for each second and {line['constant_s']:.2f} s for the call; "
        f"largest residual {line['largest_residual_s']:.2f} s, R^2 {line['r_squared']:.5f}\n"
    )
    print(json.dumps({"benchmark": "growth", "lengths": lengths, "line": line, "num_clips": options.clips, **clips}))


if __name__ == "__main__":
    main()
