"""How rendered voices compare with real ones: pitch against the melody, bandwidth, and level against the rest.

    python -m benchmarks.voice_quality --soundfont FILE [--speech DIR] [--real DIR] [--songs 6]

Pitch is measured on single takes before production, everything else on finished stems. `--real` is searched for folders
that hold vocals.* and the other stems. Ends in one JSON line.
"""

import argparse
import json
import os
import time
from dataclasses import replace
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # numpy's libraries read it when they are loaded

import numpy as np
import torch
from scipy import signal

from data_mss.manifest import STEMS
from data_mss.rendering.production import loudness
from data_mss.rendering.recipe import RenderConfig, random_numbers
from data_mss.rendering.singing import load_world
from data_mss.rendering.song import arrange, make_vocals, render_song
from processing_mss import read_audio, resample

RATE = 48000
BLOCK = RATE // 10


def pitch_errors(config: RenderConfig, index: int) -> tuple[np.ndarray, float]:
    """Absolute errors in cents of every voiced 5 ms of a song's vocals, and seconds of song for each core-second."""
    arrangement = arrange(config, index)
    start = time.process_time()
    vocals, sung = make_vocals(config, index, arrangement, random_numbers(config.seed, index, "vocals"))
    speed = arrangement.duration / (time.process_time() - start)
    mono = resample(torch.from_numpy(vocals.mean(axis=0).astype(np.float64)), RATE, RATE // 2).numpy()
    world = load_world()
    pitch, times = world.dio(mono, RATE // 2, frame_period=5.0)
    pitch = world.stonemask(mono, pitch, times, RATE // 2)
    target = np.full(len(times), np.nan)
    for begin, end, note in sung.melody:
        target[(times > begin + 0.1) & (times < end - 0.05)] = note  # after the glide, before the release
    counted = (pitch > 0) & np.isfinite(target)
    return 100 * np.abs(69 + 12 * np.log2(pitch[counted] / 440) - target[counted]), speed


def describe(stems: dict[str, np.ndarray]) -> dict[str, float]:
    """Bandwidth and level of the vocals among stems `(2, T)`, where they are active (within 30 dB of their loudest).

    Returns:
        `band_99_hz` (99 % of the energy lies below), `air_db` (8-16 kHz over 0.2-8 kHz), `presence_db` (4-8 kHz over
        0.2-4 kHz), `above_rest_lu` (loudness of vocals less that of all the rest), `active` (share of the song).
    """
    length = min(waveform.shape[1] for waveform in stems.values()) // BLOCK * BLOCK
    vocals = stems["vocals"][:, :length]
    rest = sum(waveform[:, :length] for stem, waveform in stems.items() if stem != "vocals")
    power = np.mean(vocals.reshape(2, -1, BLOCK) ** 2, axis=(0, 2))
    active = power > 1e-3 * power.max()
    inside = np.repeat(active, BLOCK)
    frequencies, spectrum = signal.welch(vocals[:, inside], RATE, nperseg=4096)
    spectrum = spectrum.sum(axis=0, dtype=np.float64)

    def band(low: float, high: float) -> float:
        return 10 * np.log10(spectrum[(frequencies >= low) & (frequencies < high)].sum() + 1e-20)

    return {
        "band_99_hz": float(frequencies[np.searchsorted(np.cumsum(spectrum), 0.99 * spectrum.sum())]),
        "air_db": band(8000, 16000) - band(200, 8000),
        "presence_db": band(4000, 8000) - band(200, 4000),
        "above_rest_lu": loudness(vocals[:, inside]) - loudness(rest[:, inside]),
        "active": float(active.mean()),
    }


def median_of(rows: list[dict[str, float]]) -> dict[str, float]:
    """The median of each value."""
    return {name: round(float(np.median([row[name] for row in rows])), 2) for name in rows[0]}


def read_stems(folder: Path) -> dict[str, np.ndarray]:
    """Stems of a song folder, `(2, T)` at 48 kHz."""
    stems = {}
    for path in sorted(path for path in folder.iterdir() if path.stem in STEMS):
        waveform, rate = read_audio(path)
        waveform = waveform[:2] if len(waveform) >= 2 else np.repeat(waveform, 2, axis=0)
        stems[path.stem] = resample(torch.from_numpy(waveform), rate, RATE).numpy()
    return stems


def show(name: str, row: dict[str, float]):
    print(f"{name:<24}" + "  ".join(f"{key} {value:9.2f}" for key, value in row.items()), flush=True)


def main():
    parser = argparse.ArgumentParser(description="Rendered voices beside real ones.")
    parser.add_argument("--soundfont", default="/usr/share/sounds/sf2/FluidR3_GM.sf2")
    parser.add_argument("--speech", metavar="DIR", help="as in mss-lm prepare render")
    parser.add_argument("--real", metavar="DIR", help="song folders with stems of real vocals")
    parser.add_argument("--songs", type=int, default=6, help="of 20 to 30 s (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)

    config = RenderConfig(
        (options.soundfont,), speech_dir=options.speech, instrumental_share=0.0, min_seconds=20.0, max_seconds=30.0
    )
    errors, speeds, rendered, real = [], [], [], []
    single = replace(config, doubling_share=0.0, harmony_share=0.0)
    for index in range(options.songs):
        cents, speed = pitch_errors(single, index)
        errors.append(cents)
        speeds.append(speed)
        rendered.append(describe(render_song(config, index)[0]))
        show(f"rendered song {index}", rendered[-1])
    cents = np.concatenate(errors)
    results = {
        "speech": options.speech and Path(options.speech).name,
        "pitch_error_cents": round(float(np.median(cents)), 1),
        "within_50_cents": round(float(np.mean(cents < 50)), 3),
        "song_s_per_core_s": round(float(np.median(speeds)), 1),
        "rendered": median_of(rendered),
    }
    if options.real:
        for folder in sorted({path.parent for path in Path(options.real).rglob("vocals.*")}):
            real.append(describe(read_stems(folder)))
            show(folder.name, real[-1])
        results["real"] = median_of(real)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
