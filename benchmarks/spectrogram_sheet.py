"""A sheet of spectrograms, mixture and stems below each other: to see at a glance what a song is made of.

python -m benchmarks.spectrogram_sheet data/rendered/render_0_000000 --start 10 --seconds 15 --output sheet.png
"""

import argparse
import json
from pathlib import Path

import torch

from evaluation_mss.pictures import draw_levels, mel_heights, mel_levels, new_figure, save_png
from processing_mss import read_audio

TRACKS = ("mixture", "vocals", "drums", "bass", "other")


def draw(song: Path, start: float, seconds: float, output: Path):
    """Write the sheet of a song's folder as PNG; the melody of sung vocals is drawn over them, dashed."""
    figure, cells = new_figure(len(TRACKS), 1, (12, 14))
    recipe = json.loads((song / "recipe.json").read_text(encoding="utf-8"))
    for axes, name in zip(cells[:, 0], TRACKS):
        axes.set(title=name, facecolor="black", yticks=[])
        if not (song / f"{name}.flac").is_file():
            continue
        waveform, rate = read_audio(song / f"{name}.flac")
        cut = torch.from_numpy(waveform[:, int(start * rate) : int((start + seconds) * rate)])
        levels = mel_levels(cut, rate)
        # Every row has its own scale: 60 dB below its loudest spot are shown.
        draw_levels(axes, levels, rate, levels.max(), range_db=60, start_s=start)
        if name == "vocals":
            for begin, end, pitch in recipe["vocals"]["melody"]:
                if start <= begin and end <= start + seconds:
                    height = mel_heights([440 * 2 ** ((pitch - 69) / 12)], rate)[0]
                    axes.plot([begin, end], [height, height], color="cyan", linewidth=2, linestyle="--")
    cells[-1, 0].set(xlabel="seconds", xlim=(start, start + seconds))
    vocals = recipe["vocals"]["voice"] or "no vocals"
    figure.suptitle(f"{song.name}: {recipe['source']}, {recipe['key']}, {recipe['tempo']:.0f} bpm; {Path(vocals).name}")
    save_png(figure, output, dpi=60)


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
