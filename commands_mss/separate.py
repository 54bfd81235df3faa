"""Separate songs into stems.

examples:
  mss-lm separate song.mp3                              four stems in separated/song/
  mss-lm separate album/ --stems vocals --format flac   the vocals of every song in a folder
  mss-lm separate song.mp3 --two_stems vocals           vocals.wav and no_vocals.wav, for karaoke
  mss-lm separate a.wav b.wav --filename "{stem}/{track}.{ext}"

Songs of any length take the same memory. A song whose files are all there already is left as it is, so a run that was
stopped goes on where it was; --overwrite separates it again. A song appears with all its stems or not at all.

exit codes: 0 all songs are separated, 1 some are not, 2 wrong usage, 130 interrupted
"""

import argparse
import contextlib
import os
import tempfile
import time
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
    wanted = parser.add_mutually_exclusive_group()
    wanted.add_argument("--stems", nargs="+", metavar="STEM", help="stems to write (default: all); vocals come first")
    wanted.add_argument("--two_stems", metavar="STEM", help="write this stem, and all the rest as no_STEM")
    parser.add_argument(
        "--output",
        choices=["masked", "filtered", "generated"],
        help="masked: the song, divided among the stems by the encoder's masks, in seconds; filtered: the same, with "
        "what the language model generates taken into account; generated: the codec's waveform, mono (default: what "
        "the model does best)",
    )
    add_file_arguments(parser)
    add_quality_arguments(parser)
    parser.add_argument(
        "--batch_size", type=int, help="windows generated at once (default: what fits into a GPU's memory, 16 on CPUs)"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: the best there is)")
    parser.add_argument(
        "--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto", help="of weights"
    )


def add_file_arguments(parser: argparse.ArgumentParser):
    group = parser.add_argument_group("files")
    group.add_argument("--output_dir", type=Path, default=Path("separated"), help="default: %(default)s")
    group.add_argument("--overwrite", action="store_true", help="separate again what is there already")
    group.add_argument("--format", choices=["wav", "flac", "mp3"], default="wav", help="default: %(default)s")
    group.add_argument(
        "--bits", choices=["16", "24", "32f"], default="16", help="sample format of wav and flac (default: %(default)s)"
    )
    group.add_argument(
        "--clip_mode",
        choices=["rescale", "clamp", "none"],
        help="what is done to peaks beyond full scale: make all stems of the song quieter by one factor (needs room "
        "for a temporary file in the output folder), cut them, or nothing (default: rescale; none for --bits 32f, the "
        "only one that can hold them)",
    )
    group.add_argument(
        "--filename", default="{track}/{stem}.{ext}", help="pattern below the output folder (default: %(default)s)"
    )


def add_quality_arguments(parser: argparse.ArgumentParser):
    group = parser.add_argument_group("quality")
    group.add_argument("--window_s", type=float, help="length of a window in seconds (default: the model's, 4)")
    group.add_argument(
        "--overlap", type=float, help="share of a window that is cross-faded (default: the model's, 0.1)"
    )
    group.add_argument(
        "--num_candidates",
        type=int,
        metavar="N",
        help="draw N candidates of every window, N times the work; implies --do_sample (default: as the model was "
        "saved)",
    )
    group.add_argument(
        "--combine",
        choices=["mean", "best"],
        help="what is made of candidates: filter by their mean power, or keep the one whose stems explain the song "
        "best, which takes all stems (default: mean for filtered, best for generated)",
    )
    group.add_argument(
        "--do_sample",
        action=argparse.BooleanOptionalAction,
        help="draw codes instead of taking the most likely ones (default: as the model was saved)",
    )
    group.add_argument("--temperature", type=float, help="with --do_sample: below 1 is more careful")
    group.add_argument("--top_k", type=int, help="with --do_sample: draw among the k most likely")
    group.add_argument("--top_p", type=float, help="with --do_sample: draw among those that make up this probability")
    group.add_argument("--seed", type=int, help="with --do_sample: repeatable draws")
    group.add_argument("--num_codebooks", type=int, help="decode the first layers of codes only (default: all)")
    group.add_argument(
        "--expected",
        action=argparse.BooleanOptionalAction,
        help="filter by averages of what the model holds possible (default: yes, unless --num_codebooks is given)",
    )
    group.add_argument(
        "--filter_iterations",
        type=int,
        default=0,
        metavar="N",
        help="refine filtered stems by the stereo image in N steps (default: %(default)s)",
    )


def run(options: argparse.Namespace) -> int:
    # Imported here so that `--help` answers at once.
    from transformers import pipeline

    import mss_lm  # noqa: F401  (registers the task)
    from processing_mss import DEFAULT_MODEL, SeparationOptions, check_format

    try:
        # All that can be wrong with the options is found before the first song, not after hours.
        check_format(options.format, options.bits)
        songs = find_songs(options.inputs, options.output_dir)
        pipe = pipeline(
            "audio-source-separation",
            model=options.model or DEFAULT_MODEL,
            device=options.device,
            dtype=options.dtype,
        )
        wanted = SeparationOptions(**call_options(options))
        wanted.check(pipe.model.config)
        targets = plan_outputs(songs, wanted.labels(pipe.model.config), options)
    except EXPECTED_ERRORS as error:
        return fail("separate", error)

    failures = 0
    for song, paths in zip(songs, targets):
        try:
            print(separate_file(pipe, song, paths, options), flush=True)
        except EXPECTED_ERRORS as error:
            failures += 1
            fail("separate", error)
    return 1 if failures else 0


def call_options(options: argparse.Namespace) -> dict:
    """What the pipeline is asked for, apart from the song."""
    names = ("stems", "two_stems", "output", "window_s", "overlap", "batch_size", "num_candidates", "combine")
    names += ("do_sample", "temperature", "top_k", "top_p", "seed", "num_codebooks", "expected", "filter_iterations")
    return {name: getattr(options, name) for name in names}


def separate_file(pipe, song: "SongFile", paths: list[Path], options: argparse.Namespace) -> str:
    """Separate one song into files, one for each stem in order; returns a line that says what was done.

    Raises:
        ValueError: some of its files are there already, but not all. And whatever separating and writing raise.
    """
    from tqdm import tqdm

    existing = [path for path in paths if path.exists()]
    if len(existing) == len(paths) and not options.overwrite:
        return f"{song.path}: left as it is, its stems are there already (--overwrite separates it again)"
    if existing and not options.overwrite:
        raise ValueError(f"{song.path} would replace {existing[0]}: choose another --output_dir, or --overwrite.")
    begin = time.monotonic()
    with tqdm(desc=song.path.name, unit="step", leave=False) as bar:

        def on_progress(done, total):
            bar.total = total
            bar.update(done - bar.n)

        stems = pipe.stream(str(song.path), **call_options(options), progress_callback=on_progress)
        write_stems(stems, paths, options)
    elapsed = time.monotonic() - begin
    duration = stems.num_samples / stems.sampling_rate
    minutes, seconds = divmod(round(duration), 60)
    speed = f"{minutes}:{seconds:02} in {elapsed:.1f} s, {duration / elapsed:.2f} x real time"
    return f"{song.path}: {speed}, wrote {', '.join(map(str, paths))}"


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


def write_stems(stems, paths: list[Path], options: argparse.Namespace):
    """Write all stems of a song, or none: into a temporary folder first, from which they are renamed."""
    from processing_mss import AudioWriter, limit_blocks

    clip_mode = options.clip_mode or ("none" if (options.format, options.bits) == ("wav", "32f") else "rescale")
    options.output_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.output_dir, prefix=".separating-") as temporary:
        written = [Path(temporary) / f"{label}.{options.format}" for label in stems.labels]
        with contextlib.ExitStack() as stack:
            writers = {
                label: stack.enter_context(
                    AudioWriter(path, stems.sampling_rate, stems.num_channels, bits=options.bits)
                )
                for label, path in zip(stems.labels, written)
            }
            for block in limit_blocks(stems, clip_mode, temporary):
                for label, samples in block.items():
                    writers[label].write(samples)
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
        for source, path in zip(written, paths):
            os.replace(source, path)
