"""Score the stems of any program (demucs, Spleeter, a DAW) against the true ones: usdr and si_sdr, in dB.

python examples/evaluate_stems.py true_stems separated/htdemucs

Both folders hold a folder a song, of the same name, with vocals.*, drums.*, bass.*, other.* in any audio format, at any
rate, aligned to the sample. Scores are means over songs, in brackets their 95 % intervals, of two songs or more. Beside
them stands a quarter of the mixture for every stem, which knows nothing: what does not score more has not separated.
The mixture is the sum of the true stems, so all of these must be there; the program need not make all.

No manifest is needed, and no file is written. A system is anything that has `separate(song)`, as a model of yours may;
`mss-lm evaluate` is for many of them, excerpts and reports.

exit codes: 0 all is scored, 1 some songs or stems are missing or do not fit (the others are scored), 2 wrong usage
"""

import argparse
import sys
from collections import defaultdict
from pathlib import Path

from tqdm import tqdm

from data_mss.audio_files import probe_audio
from data_mss.manifest import STEMS, Song, canonical_stem
from evaluation_mss.bounds import load_bound
from evaluation_mss.metric_table import METRICS
from evaluation_mss.protocol import score_song
from evaluation_mss.songs import Excerpt
from evaluation_mss.summary import summarize_score
from evaluation_mss.systems import StemFolderSystem
from evaluation_mss.tables import markdown_table
from processing_mss import AUDIO_SUFFIXES

SCORES = {name: METRICS[name] for name in ("usdr", "si_sdr")}  # or csdr, mel_distance, visqol, ...: docs/evaluation.md


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("references", type=Path, help="folder of true stems")
    parser.add_argument("estimates", type=Path, help="folder of the program's stems")
    options = parser.parse_args(arguments)
    songs = find_stems(options.references)
    if not songs:
        parser.error(f"No stems in {options.references}: looked for SONG/vocals.wav and the like.")
    try:
        theirs, equal_shares = StemFolderSystem(options.estimates), load_bound("equal_shares")
    except ValueError as error:
        parser.error(str(error))

    values = defaultdict(lambda: defaultdict(list))  # (score, system) -> stem -> (song, value) of each song
    problems, lacking = [], []
    for name, files in tqdm(songs.items(), desc="scoring", unit="song"):
        try:
            infos = [probe_audio(path) for paths in files.values() for path in paths]
            duration, rate = max(info.duration for info in infos), max(info.sampling_rate for info in infos)
            song = Excerpt(Song(name, "test", files, duration, rate, source=str(options.references))).read()
            estimates = theirs.separate(song)
        except ValueError as error:
            problems.append(f"{name} is not scored: {error}")
            continue
        missing = [stem for stem in files if stem not in estimates]
        lacking += [(name, stem) for stem in missing if stem != "other" or len(missing) == 1]  # "other" falls with any
        shares = {stem: share for stem, share in equal_shares.separate(song).items() if stem in estimates}
        for system, stems in (("a quarter of the mixture", shares), (theirs.name, estimates)):
            scores, failed = score_song(song, stems, SCORES)
            problems += [f"{name}: {score} could not be computed: {reason}" for score, reason in failed.items()]
            for score, found in scores.items():
                for stem, value in found.items():
                    values[score, system][stem].append((name, value))

    rows = []
    for (score, system), by_stem in sorted(values.items(), key=lambda item: list(SCORES).index(item[0][0])):
        cells = summarize_score(by_stem, list(STEMS), seed=0)  # the seed is the bootstrap's
        rows.append([score, system, *(as_text(cells.get(column)) for column in (*STEMS, "mean"))])
    if rows:
        print(markdown_table(["score", "stems", *STEMS, "mean"], rows))
    made = {stem for by_stem in values.values() for stem in by_stem}
    problems += [f"{name} has no {stem} in {options.estimates}." for name, stem in lacking if stem in made]
    for problem in problems:
        print(f"evaluate_stems.py: error: {problem}", file=sys.stderr)
    return 1 if problems else 0


def find_stems(folder: Path) -> dict[str, dict[str, list[str]]]:
    """Song -> stem -> its files: "Lead Vocals.wav" and "vocals.flac" are both vocals, and are summed."""
    songs = defaultdict(lambda: defaultdict(list))
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in AUDIO_SUFFIXES and (stem := canonical_stem(path.stem)):
            songs[path.parent.relative_to(folder).as_posix()][stem].append(str(path))
    return songs


def as_text(cell: dict | None) -> str:
    if cell is None or cell["mean"] is None:
        return "-"
    return f"{cell['mean']:.2f}" + ("" if cell["low"] is None else f" [{cell['low']:.2f}, {cell['high']:.2f}]")


if __name__ == "__main__":
    sys.exit(main())
