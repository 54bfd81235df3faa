"""A sheet of spectrograms, mixture and stems below each other: to see at a glance what a song is made of.

python -m benchmarks.spectrogram_sheet data/rendered/render_0_000000 --start 10 --seconds 15 --output sheet.png
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no window

import numpy as np
from matplotlib import pyplot
from scipy import signal

from processing_mss import read_audio

TRACKS = ("mixture", "vocals", "drums", "bass", "other")


def draw(song: Path, start: float, seconds: float, output: Path):
    """Write the sheet of a song's folder as PNG; the melody of sung vocals is drawn over them, dashed."""
    figure, axes = pyplot.subplots(len(TRACKS), 1, figsize=(12, 14), sharex=True, constrained_layout=True)
    for axis, name in zip(axes, TRACKS):
        axis.set(title=name, ylabel="Hz", facecolor="black")
        if not (song / f"{name}.flac").is_file():
            continue
        waveform, rate = read_audio(song / f"{name}.flac")
        mono = waveform[:, int(start * rate) : int((start + seconds) * rate)].mean(axis=0)
        frequencies, times, power = signal.spectrogram(mono, rate, "hann", 4096, 4096 - 480)
        level = 10 * np.log10(power + 1e-12)
        # Every row has its own scale: 60 dB below its loudest spot are shown.
        axis.pcolormesh(times + start, frequencies, level, vmin=level.max() - 60, vmax=level.max(), rasterized=True)
        axis.set(yscale="log", ylim=(30, 20000), xlim=(start, start + seconds))
    recipe = json.loads((song / "recipe.json").read_text(encoding="utf-8"))
    for begin, end, pitch in recipe["vocals"]["melody"]:
        if start <= begin and end <= start + seconds:
            axes[1].plot([begin, end], [440 * 2 ** ((pitch - 69) / 12)] * 2, color="white", linewidth=1, linestyle="--")
    axes[-1].set_xlabel("seconds")
    vocals = recipe["vocals"]["voice"] or "no vocals"
    figure.suptitle(f"{song.name}: {recipe['source']}, {recipe['key']}, {recipe['tempo']:.0f} bpm; {Path(vocals).name}")
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=60)


def main():
    parser = argparse.ArgumentParser(description="Spectrograms of a rendered song.")
    parser.add_argument("song", type=Path, help="folder with mixture.flac, stems and recipe.json")
    parser.add_argument("--start", type=float, default=0.0, help="seconds (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=15.0, help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=Path("spectrogram_sheet.png"), help="default: %(default)s")
    options = parser.parse_args()
    draw(options.song, options.start, options.seconds, options.output)


if __name__ == "__main__":
    main()
