"""How fast songs are rendered: seconds of four-stem audio for each second of one core, production included.

    python -m benchmarks.render_speed [--soundfont FILE] [--midi DIR] [--drums DIR] [--basses DIR] [--grooves DIR]

One process, one thread. Loading the soundfont and the samples (once a worker, not once a song) is not counted. Ends in
one JSON line.
"""

import argparse
import json
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # numpy's libraries read it when they are loaded

import torch

from data_mss.rendering import make_song
from data_mss.rendering.instruments import load_soundfont
from data_mss.rendering.recipe import RenderConfig
from data_mss.rendering.samples import load_bass, load_kit
from data_mss.rendering.song import render_song

REQUIRED = 8.0  # seconds of audio a core-second, without vocals


def measure(config: RenderConfig, songs: int) -> float:
    """Seconds of audio for each second of processor time."""
    start, seconds = time.process_time(), 0.0
    for index in range(songs):
        seconds += render_song(config, index)[1].duration
    return seconds / (time.process_time() - start)


def measure_with_files(config: RenderConfig, songs: int) -> float:
    """The same with the mixture and the stems written as FLAC."""
    with tempfile.TemporaryDirectory() as folder:
        start, seconds = time.process_time(), 0.0
        for index in range(songs):
            seconds += make_song(config, Path(folder), "unknown", index).duration
        return seconds / (time.process_time() - start)


def main():
    parser = argparse.ArgumentParser(description="Speed of the corpus renderer.")
    parser.add_argument("--soundfont", default="/usr/share/sounds/sf2/FluidR3_GM.sf2")
    parser.add_argument("--midi", help="folder of MIDI files for half of the songs")
    parser.add_argument("--drums", nargs="+", default=[], help="folders of drum samples")
    parser.add_argument("--basses", nargs="+", default=[], help="folders of bass samples")
    parser.add_argument("--grooves", help="the Groove MIDI Dataset")
    parser.add_argument("--songs", type=int, default=6, help="of 30 to 60 s (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)

    start = time.process_time()
    load_soundfont(options.soundfont)
    for folder in options.drums:
        load_kit(folder)
    for folder in options.basses:
        load_bass(folder)
    loading = time.process_time() - start
    print(f"{Path(options.soundfont).name} and samples loaded in {loading:.1f} s (not counted below)")

    given = RenderConfig(
        (options.soundfont,), midi_dir=options.midi, drums_dirs=tuple(options.drums), bass_dirs=tuple(options.basses),
        grooves_dir=options.grooves, max_seconds=60.0,
    )  # fmt: skip
    config = replace(given, synthetic_vocals=False)
    render_song(config, 0)  # compiled filters, imports
    without_vocals = measure(config, options.songs)
    print(f"without vocals: {without_vocals:.1f} s of four-stem audio per core-second (required: {REQUIRED:.0f})")
    with_files = measure_with_files(config, options.songs)
    print(f"without vocals, FLAC files written: {with_files:.1f}")
    results = {"without_vocals": without_vocals, "without_vocals_flac": with_files}
    config = replace(given, instrumental_share=0.0)
    try:
        results["sung"] = measure(config, options.songs)
        print(f"with sung vocals (espeak-ng): {results['sung']:.1f}")
    except ValueError as error:
        print(f"with sung vocals: not measured ({error})")
    values = {f"{name}_audio_s_per_core_s": round(value, 2) for name, value in results.items()}
    print(json.dumps({"soundfont": Path(options.soundfont).name, "load_s": round(loading, 2), **values}))


if __name__ == "__main__":
    main()
