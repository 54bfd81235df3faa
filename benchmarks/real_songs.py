"""What a separator makes of real sung songs that have no stems, beside Spleeter: no truth, two opinions.

    python -m benchmarks.real_songs SONG_OR_FOLDER... [--heard SONG_OR_FOLDER...] [--model PATH] [--pictures FOLDER]

Each song is separated into vocals and the rest (the song less the vocals), by the model in its default output and by
Spleeter. Then, without any reference:

- agreement: on an FFT of 4096 samples each system gives every bin a share m of vocals, |V|^2 / (|V|^2 + |R|^2). The
  song's power |X|^2 is divided into what both call vocals (the lesser m), what both call the rest (the lesser 1 - m),
  and what only one of them calls vocals. The first two together are the agreement, the sum of |X|^2 (1 - |m - m'|),
  which is high, too, for a system that finds no vocals at all: how high, stands beside it. The overlap is what both
  call vocals over what at least one does, and such a system has none;
- DNSMOS of the vocals of each, and of the song itself, in segments of 10 s where the vocals of both are within 25 dB
  of the song, at most six, spread over the song. NISQA too, if its weights are there;
- how loud vocals are in the segments where Spleeter's are fainter than that: either the model takes the band for a
  voice there, or Spleeter has missed one;
- pictures: mel spectrograms, ten seconds with voice and ten seconds without.

Songs of `--heard` were in the model's training: they are listed apart and count in no mean. Writes real_songs.md into
the output folder, and ends in one JSON line.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from commands_mss.song_files import SongFile, find_songs
from data_mss.manifest import STEMS
from evaluation_mss.baselines import load_baseline
from evaluation_mss.metric_inputs import MetricUnavailable
from evaluation_mss.perceptual_metrics import dnsmos, nisqa
from evaluation_mss.pictures import spectrogram_sheet
from evaluation_mss.protocol import audible_segments
from evaluation_mss.results import replace_text
from evaluation_mss.songs import EvaluationSong, file_name
from evaluation_mss.systems import ModelSystem, System, outputs_of
from processing_mss import DEFAULT_MODEL, read_audio
from processing_mss.filtering_mss import power, stft

OURS, PEER = "mss-lm", "spleeter"
N_FFT = 4096
FAINT_DB = -25.0  # relative to the song: fainter vocals are none
FLOOR_DB = -100.0
MAX_SCORED = 6  # segments of a song that the listening models hear: a second of processor time for each
METRICS: dict[str, Callable[[torch.Tensor, int], dict[str, float]]] = {
    "dnsmos": dnsmos,
    "nisqa": lambda waveform, sampling_rate: {"nisqa": nisqa(waveform, sampling_rate)},
}


def channel_power(waveform: torch.Tensor) -> torch.Tensor:
    """`(C, T)` -> `(F, L)`: power of the bins, summed over channels."""
    return power(stft(waveform, N_FFT)).sum(dim=0)


def vocal_share(vocals: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
    """From powers, the share of vocals from 0 to 1; 0 where there is nothing."""
    return vocals / (vocals + rest).clamp(min=torch.finfo(vocals.dtype).tiny)


def agreement(song: torch.Tensor, ours: torch.Tensor, theirs: torch.Tensor) -> dict[str, float | None]:
    """How two systems divide a song between vocals and the rest; see the head of this file.

    Args:
        song: power of bins, of any shape, as all three. ours, theirs: shares of vocals.

    Returns:
        Shares of the song's power: `both_vocals`, `both_rest`, `ours_only` and `spleeter_only` (vocals for one of
        them), which sum to 1; `agreement`, and that of no vocals at all with Spleeter; and `overlap`, None if neither
        hears vocals.
    """
    parts = {
        "both_vocals": torch.minimum(ours, theirs),
        "both_rest": 1 - torch.maximum(ours, theirs),
        "ours_only": (ours - theirs).clamp(min=0),
        f"{PEER}_only": (theirs - ours).clamp(min=0),
    }
    shares = {name: ((song * part).sum() / song.sum()).item() for name, part in parts.items()}
    vocals = 1 - shares["both_rest"]
    return {
        "agreement": shares["both_vocals"] + shares["both_rest"],
        "agreement_of_no_vocals": shares["both_rest"] + shares["ours_only"],
        **shares,
        "overlap": shares["both_vocals"] / vocals if vocals > 0 else None,
    }


def level_db(waveform: torch.Tensor, song: torch.Tensor) -> float:
    """Power of a waveform over that of the song, in dB, not below FLOOR_DB."""
    ratio = waveform.square().mean() / song.square().mean().clamp(min=1e-12)
    return max(10 * math.log10(max(ratio.item(), 1e-12)), FLOOR_DB)


def score_vocals(sounds: dict[str, torch.Tensor], spans: list[slice], rate: int) -> tuple[dict, dict[str, str]]:
    """Means over segments, "score, system" -> value; and why a metric could not run."""
    scores, reasons = {}, {}
    for metric, compute in METRICS.items():
        try:
            for name, sound in sounds.items():
                mean = _mean([compute(sound[:, span], rate) for span in spans])
                scores |= {f"{score}, {name}": value for score, value in mean.items()}
        except MetricUnavailable as error:
            reasons[metric] = str(error)
    return scores, reasons


def compare(path: Path, name: str, systems: dict[str, System], picture: Path | None) -> tuple[dict, dict[str, str]]:
    """All about one song, and why metrics could not run; `picture`: the file to draw.

    Raises:
        ValueError: it cannot be read (`AudioReadError`), or is silent.
    """
    samples, rate = read_audio(path)
    mixture = torch.from_numpy(samples)
    spans = audible_segments(mixture, rate)
    if not spans:
        raise ValueError(f"{path} is silent: leave it out.")
    song = EvaluationSong(name, name, rate, mixture[None, :0], mixture, list(STEMS))  # no references
    stems = systems[OURS].separate(song)
    vocals = {OURS: stems.pop("vocals"), PEER: systems[PEER].separate(song)["vocals"]}
    rest = {name: mixture - sound for name, sound in vocals.items()}
    levels = [{name: level_db(sound[:, span], mixture[:, span]) for name, sound in vocals.items()} for span in spans]
    sung = [number for number, level in enumerate(levels) if min(level.values()) > FAINT_DB]
    unsung = [number for number, level in enumerate(levels) if level[PEER] <= FAINT_DB]
    if picture:
        by_level = sorted(range(len(spans)), key=lambda number: levels[number][PEER])
        ordinary = [number for number in by_level if number in sung]
        places = {"voice": ordinary[len(ordinary) // 2 :][:1], f"none by {PEER}": by_level[:1] if unsung else []}
        columns = {f"{title}, from {spans[n].start / rate:.0f} s": spans[n] for title in places for n in places[title]}
        rows = {"mixture": mixture}
        for title, sounds in (("vocals", vocals), ("no vocals", rest), ("other", {OURS: stems["other"]})):
            rows |= {f"{title}, {name}": sound for name, sound in sounds.items()}
        cells = {name: {title: row[:, span] for title, span in columns.items()} for name, row in rows.items()}
        if columns:
            spectrogram_sheet(cells, list(columns), rate, picture, name)
    weight = channel_power(mixture)
    shares = [vocal_share(channel_power(vocals[name]), channel_power(rest[name])) for name in (OURS, PEER)]
    missed = weight * (shares[1] - shares[0]).clamp(min=0)
    scored = [spans[number] for number in sung[:: -(-len(sung) // MAX_SCORED) or 1]]
    scores, reasons = score_vocals({"mixture": mixture, **vocals}, scored, rate)
    missed_in = divide(missed, {stem: channel_power(sound) for stem, sound in stems.items()})
    return {
        "song": name,
        "seconds": mixture.shape[1] / rate,
        "shares": agreement(weight, *shares) | {f"{PEER}_only_in_{stem}": share for stem, share in missed_in.items()},
        "levels": {
            **{f"vocals_db, {name}": level_db(sound, mixture) for name, sound in vocals.items()},
            "segments": len(spans),
            f"segments_without_vocals_by_{PEER}": len(unsung),
            f"vocals_there_db, {OURS}": _mean([levels[number] for number in unsung]).get(OURS),
        },
        "segments": [{"start_s": span.start / rate, **level} for span, level in zip(spans, levels)],
        "listening": {"segments_with_vocals": len(sung), "scored": len(scored), **scores},
    }, reasons


def divide(power_of_bins: torch.Tensor, stems: dict[str, torch.Tensor]) -> dict[str, float]:
    """Which shares of some bins' power belong to each stem, by the stems' own powers there."""
    tiny = torch.finfo(power_of_bins.dtype).tiny
    total = sum(stems.values()).clamp(min=tiny)
    whole = power_of_bins.sum().clamp(min=tiny)
    return {stem: ((power_of_bins * part / total).sum() / whole).item() for stem, part in stems.items()}


def _mean(results: list[dict]) -> dict[str, float]:
    """By key, over those that have a number there."""
    found = {}
    for key in dict.fromkeys(key for result in results for key in result):
        values = [result[key] for result in results if result.get(key) is not None]
        found[key] = sum(values) / len(values) if values else None
    return found


def table(group: str, songs: list[dict], heard: list[dict]) -> str:
    """Markdown, a line for each song, of one group of its numbers: "shares", "levels" or "listening"."""
    lines = {song["song"]: song[group] for song in songs}
    if len(songs) > 1:
        lines["**mean**"] = _mean(list(lines.values()))
    lines |= {f"{song['song']} (heard in training)": song[group] for song in heard}
    columns = list(dict.fromkeys(key for line in lines.values() for key in line))
    rows = [["song", *(column.replace("_", " ") for column in columns)], ["---", *["---:"] * len(columns)]]
    for name, line in lines.items():
        rows.append([name])
        for column in columns:
            value = line.get(column)
            form = ".0%" if group == "shares" else ".1f" if "_db" in column else ".2f"
            rows[-1].append("-" if value is None else str(value) if isinstance(value, int) else format(value, form))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("songs", nargs="*", help="songs, or folders of them")
    parser.add_argument("--heard", nargs="+", default=[], help="songs that the model was trained on")
    parser.add_argument(
        "--model", default=DEFAULT_MODEL, help="folder or Hub id of a separator (default: the package's)"
    )
    parser.add_argument("--output_dir", type=Path, default=Path("scores/real_songs"), help="(default: %(default)s)")
    parser.add_argument("--pictures", type=Path, help="folder for a picture of each song")
    options = parser.parse_args()
    heard, problems = find_songs(options.heard, options.output_dir)
    given, more_problems = find_songs(options.songs, options.output_dir)
    known = {song.path.resolve() for song in heard}
    songs: list[SongFile] = heard + [song for song in given if song.path.resolve() not in known]
    tracks = [song.track for song in songs]
    problems += more_problems + [
        f"Two songs are called {track!r}: give the folder above them."
        for track in dict.fromkeys(tracks)
        if tracks.count(track) > 1
    ]
    problems += [f"{song.path} is no file." for song in songs if not song.path.is_file()]
    if problems or not songs:
        parser.error(" ".join(problems) or "give a song, or a folder of songs")
    try:
        systems = {OURS: ModelSystem(options.model, outputs_of(options.model)[0]), PEER: load_baseline(PEER)}
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"real_songs: {error}")
    results, reasons, failed = {True: [], False: []}, {}, {}
    for song in songs:
        print(f"real_songs: {song.track}", file=sys.stderr, flush=True)
        picture = options.pictures and options.pictures / f"{file_name(song.track)}.png"
        try:
            result, missing = compare(song.path, song.track, systems, picture)
        except (ValueError, OSError) as error:
            print(f"real_songs: {song.track}: {error}", file=sys.stderr)
            failed[song.track] = str(error)
            continue
        results[song.path.resolve() in known].append(result)
        reasons |= missing
    identities = {name: f"{system.name}, {system.identity}" for name, system in systems.items()}
    notes = [f"- {name}: {identity}" for name, identity in identities.items()]
    notes += [f"- {metric} is missing. {reason}" for metric, reason in reasons.items()]
    notes += [f"- {track} is missing. {reason}" for track, reason in failed.items()]
    parts = [table(group, results[False], results[True]) for group in ("shares", "levels", "listening")]
    text = "\n\n".join(["# Real songs, without references", *parts, "\n".join(notes)]) + "\n"
    options.output_dir.mkdir(parents=True, exist_ok=True)
    replace_text(options.output_dir / "real_songs.md", text)
    print(text)
    outcome = {"systems": identities, "songs": results[False], "heard": results[True], "missing": reasons}
    print(json.dumps({"benchmark": "real_songs", **outcome, "errors": failed}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
