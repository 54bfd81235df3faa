"""Which criterion finds singing: Silero or level, on true vocals and on those that Spleeter separates.

    python benchmarks/voice_activity.py [--songs_dir ../shared/data/everything_is_free] [--seconds 60]

Songs are folders of stems. The reference is every 0.1 s of the true vocals above -50 dBFS. Prints a row for each song
and criterion, and at the end one JSON line: seconds found, recall and precision against the reference, raw and after
merging and dropping, and the speed of Spleeter and of both criteria in seconds of audio per core-second (one thread).
"""

import argparse
import json
import sys
import time
from collections import defaultdict
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_mss.labelling.teachers import load_teacher
from data_mss.labelling.voice_activity import Segment, drop_short, energy_segments, merge_segments, silero_segments
from data_mss.manifest import canonical_stem
from processing_mss import read_audio
from processing_mss.resampling_mss import resample

FRAME_S = 0.1
REFERENCE_DBFS = -50
MAX_GAP_S, MIN_SEGMENT_S = 1.0, 2.0


def read_song(folder: Path, sampling_rate: int, seconds: float | None) -> tuple[torch.Tensor, torch.Tensor]:
    """True vocals and the mixture, `(2, T)` each; of the middle of the song if `seconds` are given."""
    stems = {}
    for file in sorted(folder.iterdir()):
        if canonical_stem(file.stem):
            samples, rate = read_audio(file)
            stems[canonical_stem(file.stem)] = resample(torch.from_numpy(samples), rate, sampling_rate)
    length = min(stem.shape[-1] for stem in stems.values())
    keep = length if seconds is None else min(length, round(seconds * sampling_rate))
    start = (length - keep) // 2
    stems = {name: stem[:, start : start + keep] for name, stem in stems.items()}
    return stems["vocals"], sum(stems.values())


def reference_frames(vocals: torch.Tensor, sampling_rate: int) -> torch.Tensor:
    frame = round(FRAME_S * sampling_rate)
    power = vocals.square().mean(dim=0)
    power = power[: len(power) // frame * frame].view(-1, frame).mean(dim=1)
    return 10 * torch.log10(power + 1e-20) > REFERENCE_DBFS


def active_frames(segments: list[Segment], num_frames: int) -> torch.Tensor:
    centres = (torch.arange(num_frames) + 0.5) * FRAME_S
    active = torch.zeros(num_frames, dtype=torch.bool)
    for segment in segments:
        active |= (centres >= segment.start) & (centres < segment.end)
    return active


def timed(seconds: defaultdict, name: str, function, *arguments):
    start = time.process_time()
    result = function(*arguments)
    seconds[name] += time.process_time() - start
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(__file__).resolve().parents[2] / "shared" / "data" / "everything_is_free"
    parser.add_argument("--songs_dir", type=Path, default=default)
    parser.add_argument(
        "--seconds", type=float, default=None, help="of the middle of each song; the whole song if unset"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    teacher = load_teacher("spleeter", device="cpu")
    rate = teacher.sampling_rate
    silero_segments(torch.zeros(1, rate), rate)  # loading is not what is measured

    counts, cpu, audio_s = defaultdict(lambda: [0, 0, 0]), defaultdict(float), 0.0
    print(
        f"{'song':14} {'vocals':9} {'criterion':14} {'reference s':>11} {'found s':>8} {'recall':>7} {'precision':>9}"
    )
    for folder in sorted(path for path in arguments.songs_dir.iterdir() if path.is_dir()):
        vocals, mixture = read_song(folder, rate, arguments.seconds)
        audio_s += mixture.shape[-1] / rate
        reference = reference_frames(vocals, rate)
        separated = timed(cpu, "spleeter", teacher.separate, mixture)["vocals"]
        for kind, signal in (("true", vocals), ("spleeter", separated)):
            found = {
                "silero": timed(cpu, "silero", silero_segments, signal, rate),
                "energy": timed(cpu, "energy", energy_segments, signal, mixture, rate),
            }
            for criterion, segments in found.items():
                merged = drop_short(merge_segments(segments, MAX_GAP_S), MIN_SEGMENT_S)
                for name, chosen in ((criterion, segments), (f"{criterion} merged", merged)):
                    active = active_frames(chosen, len(reference))
                    row = [int(reference.sum()), int(active.sum()), int((active & reference).sum())]
                    counts[kind, name] = [total + value for total, value in zip(counts[kind, name], row)]
                    print_row(folder.name, kind, name, row)
    summary = {}
    for (kind, name), row in counts.items():
        print_row("all", kind, name, row)
        summary[f"{kind} {name}"] = {
            "reference_s": round(row[0] * FRAME_S, 1),
            "found_s": round(row[1] * FRAME_S, 1),
            "recall": round(row[2] / max(row[0], 1), 3),
            "precision": round(row[2] / max(row[1], 1), 3),
        }
    # Both criteria ran twice, on true and on separated vocals.
    speed = {name: round((1 if name == "spleeter" else 2) * audio_s / seconds, 1) for name, seconds in cpu.items()}
    print(json.dumps({"audio_s": round(audio_s, 1), "audio_s_per_core_s": speed, "criteria": summary}))


def print_row(song: str, kind: str, name: str, row: list[int]):
    reference, found, both = row
    print(
        f"{song:14} {kind:9} {name:14} {reference * FRAME_S:11.1f} {found * FRAME_S:8.1f} "
        f"{both / max(reference, 1):7.2f} {both / max(found, 1):9.2f}"
    )


if __name__ == "__main__":
    main()
