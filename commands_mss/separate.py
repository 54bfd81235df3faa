"""Separate songs into stems.

examples:
  mss-lm separate song.mp3                              four stems in separated/song/
  mss-lm separate album/ --stems vocals --format flac   the vocals of every song in a folder (a quarter of the time)
  mss-lm separate a.wav b.wav --filename "{stem}/{track}.{ext}"
"""

import argparse
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from .errors import EXPECTED_ERRORS, fail


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument(
        "inputs", nargs="+", metavar="INPUT", help="audio files (wav, flac, mp3, ogg, m4a, ...) or folders"
    )
    parser.add_argument(
        "--model", help="folder or Hub id of a separator (default: the one that ships with the package)"
    )
    parser.add_argument("--output_dir", type=Path, default=Path("separated"), help="default: %(default)s")
    parser.add_argument("--stems", nargs="+", metavar="STEM", help="stems to write (default: all); vocals come first")
    parser.add_argument("--output", choices=["generated"], default="generated", help="the codec's waveform (mono)")
    parser.add_argument("--format", choices=["wav", "flac", "mp3"], default="wav", help="default: %(default)s")
    parser.add_argument(
        "--bits", choices=["16", "24", "32f"], default="16", help="sample format of wav and flac (default: %(default)s)"
    )
    parser.add_argument(
        "--filename", default="{track}/{stem}.{ext}", help="pattern below the output folder (default: %(default)s)"
    )
    parser.add_argument("--window_s", type=float, help="length of a window in seconds (default: the model's, 4)")
    parser.add_argument(
        "--overlap", type=float, help="share of a window that is cross-faded (default: the model's, 0.1)"
    )
    parser.add_argument("--batch_size", type=int, default=16, help="windows generated at once (default: %(default)s)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: the best there is)")
    parser.add_argument(
        "--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto", help="of weights"
    )
    parser.add_argument(
        "--do_sample",
        action=argparse.BooleanOptionalAction,
        help="draw codes instead of taking the most likely ones (default: as the model was saved)",
    )
    parser.add_argument("--temperature", type=float, help="with --do_sample: below 1 is more careful")
    parser.add_argument("--top_k", type=int, help="with --do_sample: draw among the k most likely")
    parser.add_argument("--top_p", type=float, help="with --do_sample: draw among those that make up this probability")
    parser.add_argument("--seed", type=int, help="with --do_sample: repeatable draws")


def run(options: argparse.Namespace) -> int:
    # Imported here so that `--help` answers at once.
    from tqdm import tqdm
    from transformers import pipeline

    import mss_lm  # noqa: F401  (registers the task)
    from processing_mss import DEFAULT_MODEL, check_format

    try:
        # All that can be wrong with the options is found before the first song, not after hours.
        check_format(options.format, options.bits)
        songs = find_songs(options.inputs, options.output_dir)
        pipe = pipeline(
            "audio-source-separation",
            model=options.model or DEFAULT_MODEL,
            device=options.device,
            dtype=options.dtype,
            batch_size=options.batch_size,
        )
        targets = plan_outputs(songs, options.stems or pipe.model.config.stems, options)
    except EXPECTED_ERRORS as error:
        return fail("separate", error)

    failures = 0
    for song, paths in zip(songs, targets):
        with tqdm(desc=song.path.name, unit="step", leave=False) as bar:

            def on_progress(done, total, bar=bar):
                bar.total = total
                bar.update(done - bar.n)

            try:
                stems = pipe(
                    str(song.path),
                    stems=options.stems,
                    output=options.output,
                    window_s=options.window_s,
                    overlap=options.overlap,
                    do_sample=options.do_sample,
                    temperature=options.temperature,
                    top_k=options.top_k,
                    top_p=options.top_p,
                    seed=options.seed,
                    progress_callback=on_progress,
                )
                write_stems(stems, paths, options)
            except EXPECTED_ERRORS as error:
                failures += 1
                fail("separate", error)
                continue
        print(f"{song.path}: wrote {', '.join(map(str, paths))}")
    return 1 if failures else 0


@dataclass(frozen=True)
class SongFile:
    path: Path
    track: str  # {track} of --filename: the name without suffix; inside a folder, with the path below it


def find_songs(inputs: list[str], output_dir: Path) -> list[SongFile]:
    """Files as given, and the audio files inside folders (searched through, but for the output folder), in order."""
    from processing_mss import AUDIO_SUFFIXES

    songs = []
    for path in map(Path, inputs):
        if not path.is_dir():
            songs.append(SongFile(path, path.stem))
            continue
        found = sorted(file for file in path.rglob("*") if file.suffix.lower() in AUDIO_SUFFIXES)
        found = [file for file in found if not file.resolve().is_relative_to(output_dir.resolve())]
        if not found:
            raise ValueError(f"No audio file in {path} (looked for {', '.join(sorted(AUDIO_SUFFIXES))}).")
        songs += [SongFile(file, file.relative_to(path).with_suffix("").as_posix()) for file in found]
    return songs


def plan_outputs(songs: list[SongFile], stems: list[str], options: argparse.Namespace) -> list[list[Path]]:
    """Where each stem of each song goes; a ValueError if two files would have one name or leave the output folder."""
    targets, root = [], options.output_dir.resolve()
    for song in songs:
        try:
            names = [options.filename.format(track=song.track, stem=stem, ext=options.format) for stem in stems]
        except (KeyError, IndexError, AttributeError, ValueError) as error:
            raise ValueError(
                f"--filename may hold {{track}}, {{stem}} and {{ext}}, got {options.filename!r}."
            ) from error
        paths = [options.output_dir / name for name in names]
        for path in paths:
            if not path.resolve().is_relative_to(root) or path.resolve() == root or path.is_dir():
                raise ValueError(f"--filename {options.filename!r} gives {path}, which is no file inside {root}.")
        targets.append(paths)
    seen = {}
    for song, paths in zip(songs, targets):
        for path in paths:
            other = seen.setdefault(path.resolve(), song)
            if other is not song or len(set(paths)) < len(paths):
                raise ValueError(
                    f"{other.path} and {song.path} would both write {path}: put {{stem}} and {{track}} in --filename, "
                    "or separate them into two output folders."
                )
    return targets


def write_stems(stems: list[dict], paths: list[Path], options: argparse.Namespace):
    """Write all stems of a song, or none: into a temporary folder first, from which they are renamed."""
    from processing_mss import write_audio

    options.output_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.output_dir, prefix=".separating-") as temporary:
        written = [Path(temporary) / f"{stem['label']}.{options.format}" for stem in stems]
        for path, stem in zip(written, stems):
            write_audio(path, stem["audio"], stem["sampling_rate"], options.bits)
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
        for source, path in zip(written, paths):
            os.replace(source, path)
