"""Separate songs into stems.

examples:
  mss-lm separate song.mp3                              four stems in separated/song/
  mss-lm separate album/ --stems vocals --format flac   the vocals of every song in a folder
  mss-lm separate song.mp3 --two_stems vocals           vocals.wav and no_vocals.wav, for karaoke
  mss-lm separate a.wav b.wav --filename "{stem}/{track}.{ext}"

Songs of up to ten minutes are kept in memory, longer ones are read block by block. A song whose stems are all there,
made from the same song with the same options (a comment in their tags tells), is left as it is, so a run that was
stopped goes on where it was; --overwrite separates it again. Other files are never replaced without --overwrite, and
songs never. What a damaged file has lost is silent in the stems, and a warning tells where.

exit codes: 0 all songs are separated, 1 some are not, 2 wrong usage, 130 interrupted
"""

import argparse
import contextlib
import os
import sys
import time
from collections import deque
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import fail
from .loading import load_separator
from .song_files import SongFile, find_songs, is_done, model_digest, plan_outputs, stem_comments, work_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from processing_mss import AudioReader


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
        "--batch_size",
        type=int,
        help="windows at once (default: what fits into a GPU's memory; 32 on CPUs, 4 for masked)",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: the best there is)")
    parser.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16", "float16"],
        default="auto",
        help="of the computation (default: bfloat16 where the processor multiplies it in hardware, GPUs since Ampere "
        "and CPUs with AMX, else float32; the codec's last layers are in float32 in any case)",
    )
    parser.add_argument("--shard_index", type=int, help="default: this process of an Accelerate launch")
    parser.add_argument("--num_shards", type=int, help="default: processes of an Accelerate launch")


def add_file_arguments(parser: argparse.ArgumentParser):
    group = parser.add_argument_group("files")
    group.add_argument("--output_dir", type=Path, default=Path("separated"), help="default: %(default)s")
    group.add_argument(
        "--overwrite", action="store_true", help="replace what is there already (never a song of this call)"
    )
    group.add_argument("--strict", action="store_true", help="refuse damaged songs, instead of warning")
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
        help="with filtered: sample N candidates of every window and filter by their mean power, N times the work; "
        "implies --do_sample (default: as the model was saved)",
    )
    group.add_argument(
        "--do_sample",
        action=argparse.BooleanOptionalAction,
        help="sample codes instead of taking the most likely ones (default: as the model was saved)",
    )
    group.add_argument("--temperature", type=float, help="with --do_sample: below 1 is more careful")
    group.add_argument("--top_k", type=int, help="with --do_sample: choose among the k most likely")
    group.add_argument("--top_p", type=float, help="with --do_sample: choose among those that make up this probability")
    group.add_argument("--seed", type=int, help="with --do_sample: makes the choice repeatable")
    group.add_argument("--num_codebooks", type=int, help="decode the first layers of codes only (default: all)")
    group.add_argument(
        "--expected",
        action=argparse.BooleanOptionalAction,
        help="filter by averages of what the model holds possible (default: yes, unless --num_codebooks is given)",
    )


def run(options: argparse.Namespace) -> int:
    # Imported here so that `--help` answers at once.
    import torch
    from transformers import pipeline

    from data_mss.sharding import default_device, ends_together, shard_of_this_process
    from processing_mss import DEFAULT_MODEL, SeparationOptions, check_format, fitting_dtype

    # All that can be wrong with the options is found before the first song, not after hours.
    check_format(options.format, options.bits)
    shard_index, num_shards = shard_of_this_process(options.shard_index, options.num_shards)
    device = torch.device(options.device) if options.device else default_device()
    dtype = fitting_dtype(device) if options.dtype == "auto" else getattr(torch, options.dtype)
    songs, problems = find_songs(options.inputs, options.output_dir)
    model, processor = load_separator(options.model or DEFAULT_MODEL, dtype)
    pipe = pipeline("audio-source-separation", model=model, processor=processor, device=device)
    wanted = SeparationOptions(**call_options(options))
    wanted.check(pipe.model, pipe.processor)
    stems = wanted.labels(pipe.model.config)
    plan, more = plan_outputs(songs, stems, options.output_dir, options.filename, options.format)
    settings = stem_settings(options, wanted.output or pipe.model.config.outputs[0])
    settings |= {"dtype": str(dtype), "model": model_digest(pipe.model, pipe.processor)}

    problems += more
    if shard_index:
        problems = []  # the first process tells them
    for problem in problems:
        fail("mss-lm separate", ValueError(problem))
    with ends_together():
        failed = FileSeparation(pipe, plan[shard_index::num_shards], stems, settings, options).run()
    return 1 if problems or failed else 0


def call_options(options: argparse.Namespace) -> dict:
    """What the pipeline is asked for, apart from the song."""
    names = ("stems", "two_stems", "output", "window_s", "overlap", "batch_size", "num_candidates")
    names += ("do_sample", "temperature", "top_k", "top_p", "seed", "num_codebooks", "expected")
    return {name: getattr(options, name) for name in names}


def stem_settings(options: argparse.Namespace, output: str) -> dict:
    """Options that change what stems are, as they are: others have their default here, or are left out."""
    settings = {**call_options(options), "bits": options.bits, "clip_mode": clip_mode_of(options)}
    settings |= {"format": options.format, "strict": options.strict}
    settings["output"] = output
    del settings["batch_size"]
    if output == "masked":
        settings["seed"] = None
    if options.format == "mp3":
        settings["bits"] = "16"
    return settings


@dataclass(frozen=True)
class OpenSong:
    """A song whose stems are on their way. comments: of the files at `paths`, one for each stem."""

    song: SongFile
    paths: list[Path]
    comments: list[str]
    reader: "AudioReader"


class FileSeparation:
    """Separates songs into files, one for each stem in order, and says what was done.

    Windows of songs that follow each other share batches, so a song is opened before the one ahead of it is written.

    Args:
        plan: songs and where their stems go, in the order of `stems`.
        settings: on which stems depend, for the comments in their tags.
    """

    def __init__(
        self,
        pipe,
        plan: list[tuple[SongFile, list[Path]]],
        stems: list[str],
        settings: dict,
        options: argparse.Namespace,
    ):
        from tqdm import tqdm

        self.pipe, self.plan, self.stems, self.settings, self.options = pipe, plan, stems, settings, options
        self.num_failed, self.opened = 0, deque()
        self.bar = tqdm(desc="mss-lm separate", unit="step", leave=False)

    def run(self) -> int:
        """Separate all; returns how many songs failed."""
        with self.bar:
            begin = time.monotonic()
            options = call_options(self.options)
            for stream in self.pipe.stream_songs(self.readers(), **options, progress_callback=self.on_progress):
                current = self.opened.popleft()
                self.bar.set_description(current.song.path.name)
                try:
                    self.write(stream, current, begin)
                except Exception as error:  # the other songs are not lost by it
                    self.report(current.song, error)
                begin = time.monotonic()
                self.bar.total = None
                self.bar.reset()
        return self.num_failed

    def readers(self) -> "Iterator[AudioReader]":
        """Songs that are still to be done and can be read."""
        from processing_mss import AudioReader

        for song, paths in self.plan:
            try:
                comments = stem_comments(song.path, self.stems, self.settings)
                if not self.options.overwrite and is_done(song, paths, comments):
                    done = "left as it is, its stems are there already (--overwrite separates it again)"
                    self.say(f"{song.path}: {done}")
                    continue
                on_read = partial(self.on_read, song)
                reader = AudioReader(str(song.path), strict=self.options.strict, on_read=on_read)
                self.pipe.preprocess(reader)  # refuses here what it would refuse among songs that share batches
            except Exception as error:
                self.report(song, error)
                continue
            self.opened.append(OpenSong(song, paths, comments, reader))
            yield reader

    def write(self, stream, current: OpenSong, begin: float):
        from processing_mss import damage_message

        with current.reader as reader:
            write_stems(stream, current, self.options)
        if reader.losses:
            self.say(f"mss-lm separate: warning: {damage_message(reader.name, reader.losses)}", file=sys.stderr)
        written, dtype = ", ".join(map(str, current.paths)), self.settings["dtype"].removeprefix("torch.")
        self.say(f"{current.song.path}: {speed(stream, begin)} in {dtype}, wrote {written}")

    def report(self, song: SongFile, error: Exception):
        self.num_failed += 1
        if isinstance(error, OSError) and error.filename is None:  # the system's own, about a temporary file
            error = OSError(f"{song.path} is not separated: {error.strerror or error}.")
        with self.bar.external_write_mode():
            fail("mss-lm separate", error, subject="" if str(song.path) in str(error) else str(song.path))

    def say(self, line: str, file=None):
        with self.bar.external_write_mode():  # not behind the bar, in its line
            print(line, file=file, flush=True)

    def on_read(self, song: SongFile, seconds: float):
        if self.bar.total is None:
            self.bar.set_postfix_str(f"read {seconds:.0f} s of {song.path.name}", refresh=False)
            self.bar.update(0)  # shows it from time to time

    def on_progress(self, done: int, total: int):
        self.bar.total = total
        self.bar.set_postfix_str("", refresh=False)
        self.bar.update(done - self.bar.n)


def speed(stream, begin: float) -> str:
    """Of a song that was begun at this time of the monotonic clock; of short ones, a batch may hold several."""
    elapsed, duration = time.monotonic() - begin, stream.num_samples / stream.sampling_rate
    minutes, seconds = divmod(round(duration), 60)
    return f"{minutes}:{seconds:02} in {elapsed:.1f} s, {duration / elapsed:.2f} x real time"


def clip_mode_of(options: argparse.Namespace) -> str:
    return options.clip_mode or ("none" if (options.format, options.bits) == ("wav", "32f") else "rescale")


def write_stems(stream, current: OpenSong, options: argparse.Namespace):
    """Write all stems of a song into a work folder, and rename them when all are complete.

    A kill between two renames leaves some of them; the next run knows them for its own.
    """
    from processing_mss import AudioWriter, limit_blocks

    paths = current.paths
    with work_folder(options.output_dir) as work:
        written = [work / f"{index}.{options.format}" for index in range(len(paths))]
        with contextlib.ExitStack() as stack:
            layout = {"bits": options.bits, "num_samples": stream.num_samples}
            writers = {
                label: stack.enter_context(
                    AudioWriter(path, stream.sampling_rate, stream.num_channels, comment=comment, **layout)
                )
                for label, path, comment in zip(stream.labels, written, current.comments)
            }
            for block in limit_blocks(stream, clip_mode_of(options), str(work)):
                for label, samples in block.items():
                    writers[label].write(samples)
        if not options.overwrite:
            is_done(current.song, paths, current.comments)  # raises if somebody has put a file there in the meantime
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
        for source, path in zip(written, paths):
            os.replace(source, path)
