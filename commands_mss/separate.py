"""Separate songs into stems.

examples:
  mss-lm separate song.mp3                              four stems in separated/song/
  mss-lm separate album/ --stems vocals --format flac   the vocals of every song in a folder (a quarter of the time)
  mss-lm separate a.wav b.wav --filename "{stem}/{track}.{ext}"
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

AUDIO_SUFFIXES = {".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".mp4", ".aac", ".aif", ".aiff", ".wma"}


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument(
        "inputs", nargs="+", metavar="INPUT", help="audio files (wav, flac, mp3, ogg, m4a, ...) or folders"
    )
    parser.add_argument(
        "--model", help="folder or Hub id of a separator (default: the one that ships with the package)"
    )
    parser.add_argument("--output_dir", type=Path, default=Path("separated"), help="default: %(default)s")
    parser.add_argument("--stems", nargs="+", metavar="STEM", help="stems to write (default: all); vocals come first")
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
    parser.add_argument("--do_sample", action="store_true", help="draw codes instead of taking the most likely ones")
    parser.add_argument("--temperature", type=float, help="with --do_sample: below 1 is more careful")
    parser.add_argument("--top_k", type=int, help="with --do_sample: draw among the k most likely")
    parser.add_argument("--top_p", type=float, help="with --do_sample: draw among those that make up this probability")
    parser.add_argument("--seed", type=int, help="with --do_sample: repeatable draws")


def run(options: argparse.Namespace) -> int:
    # Imported here so that `--help` answers at once.
    from tqdm import tqdm
    from transformers import pipeline

    import mss_lm  # noqa: F401  (registers the task)
    from processing_mss import DEFAULT_MODEL

    try:
        songs = find_songs(options.inputs)
        pipe = pipeline(
            "audio-source-separation", model=options.model or DEFAULT_MODEL, device=options.device, dtype=options.dtype
        )
    except (ValueError, OSError) as error:
        return fail(error)

    failures = 0
    for song in songs:
        with tqdm(desc=song.name, unit="step", leave=False) as bar:

            def on_progress(done, total, bar=bar):
                bar.total = total
                bar.update(done - bar.n)

            try:
                stems = pipe(
                    str(song),
                    stems=options.stems,
                    window_s=options.window_s,
                    overlap=options.overlap,
                    batch_size=options.batch_size,
                    do_sample=options.do_sample,
                    temperature=options.temperature,
                    top_k=options.top_k,
                    top_p=options.top_p,
                    seed=options.seed,
                    progress_callback=on_progress,
                )
                paths = write_stems(stems, song, options)
            except (ValueError, OSError) as error:
                failures += 1
                fail(error)
                continue
        print(f"{song}: wrote {', '.join(str(path) for path in paths)}")
    return 1 if failures else 0


def fail(error: Exception) -> int:
    print(f"mss-lm separate: error: {error}", file=sys.stderr)
    return 1


def find_songs(inputs: list[str]) -> list[Path]:
    """Files as given, and the audio files inside folders (searched through), in order."""
    songs = []
    for path in map(Path, inputs):
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.suffix.lower() in AUDIO_SUFFIXES)
            if not found:
                raise ValueError(f"No audio file in {path} (looked for {', '.join(sorted(AUDIO_SUFFIXES))}).")
            songs += found
        else:
            songs.append(path)
    return songs


def write_stems(stems: list[dict], song: Path, options: argparse.Namespace) -> list[Path]:
    """Write all stems of a song, or none: into a temporary folder first, from which they are renamed."""
    from processing_mss import write_audio

    try:
        names = [options.filename.format(track=song.stem, stem=stem["label"], ext=options.format) for stem in stems]
    except (KeyError, IndexError) as error:
        raise ValueError(f"--filename may hold {{track}}, {{stem}} and {{ext}}, got {options.filename!r}.") from error
    if len(set(names)) < len(names):
        raise ValueError(f"--filename {options.filename!r} gives several stems one name; put {{stem}} in it.")
    options.output_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.output_dir, prefix=".separating-") as temporary:
        for name, stem in zip(names, stems):
            write_audio(Path(temporary) / name, stem["audio"], stem["sampling_rate"], options.bits)
        paths = [options.output_dir / name for name in names]
        for name, path in zip(names, paths):
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(Path(temporary) / name, path)
    return paths
